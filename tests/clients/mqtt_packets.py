"""As much of MQTT 5.0's packets as a client of a few lines needs; no library of MQTT is involved."""

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 1, 2, 3, 4, 5, 6, 7
SUBSCRIBE, SUBACK, DISCONNECT = 8, 9, 14


def varint(value):
    """Variable Byte Integer (1.5.5)."""
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(out)


def text(value):
    """UTF-8 Encoded String (1.5.4)."""
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def packet(kind, flags, body):
    return bytes([kind << 4 | flags]) + varint(len(body)) + body


def connect(client_id, keep_alive_s=30):
    clean_start = 0x02
    body = text("MQTT") + bytes([5, clean_start]) + keep_alive_s.to_bytes(2, "big") + varint(0) + text(client_id)
    return packet(CONNECT, 0, body)


def subscribe(packet_id, topic_filter, qos):
    return packet(SUBSCRIBE, 2, packet_id.to_bytes(2, "big") + varint(0) + text(topic_filter) + bytes([qos]))


def publish(topic, payload, qos, packet_id, retain=False):
    identifier = packet_id.to_bytes(2, "big") if qos else b""
    return packet(PUBLISH, qos << 1 | int(retain), text(topic) + identifier + varint(0) + payload)


def acknowledge(kind, packet_id):
    return packet(kind, 2 if kind == PUBREL else 0, packet_id.to_bytes(2, "big"))


def disconnect():
    return packet(DISCONNECT, 0, b"")


def split(data):
    """The first packet of `data` as (kind, flags, body), and the rest; None and `data` if it is incomplete."""
    length = shift = 0
    for index in range(1, min(len(data), 5)):
        length |= (data[index] & 0x7F) << shift
        shift += 7
        if not data[index] & 0x80:
            end = index + 1 + length
            if len(data) < end:
                break
            return (data[0] >> 4, data[0] & 0x0F, bytes(data[index + 1 : end])), data[end:]
    return None, data


def read_varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 0x80:
            return value, at


def read_publish(flags, body):
    """(QoS, Packet Identifier or 0, payload) of a PUBLISH."""
    qos = flags >> 1 & 3
    at = 2 + int.from_bytes(body[:2], "big")
    packet_id = 0
    if qos:
        packet_id = int.from_bytes(body[at : at + 2], "big")
        at += 2
    properties, at = read_varint(body, at)
    return qos, packet_id, body[at + properties :]
