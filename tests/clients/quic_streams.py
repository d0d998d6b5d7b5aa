"""Several streams and datagrams over QUIC with aioquic: `quic_streams.py --help`.

One connection subscribes to `s/1` and `s/2` on a data stream each, and to `d` for datagrams. A second one publishes to all of
them: with QoS 1 on two data streams of its own, with QoS 0 in datagrams. What comes back has to come on the right stream, in
order, and each acknowledgement on the stream of its message. Prints `done`.
"""

import argparse
import asyncio
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import DatagramFrameReceived, StreamDataReceived

import mqtt_packets as mqtt

TIMEOUT_S = 60
MESSAGES = 40


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", required=True, help="the authority's certificate, PEM")
    return parser.parse_args()


def asking():
    """Properties with the user property that asks for datagrams."""
    pair = b"\x26" + mqtt.text("headgate-datagram") + mqtt.text("1")
    return mqtt.varint(len(pair)) + pair


class Client(QuicConnectionProtocol):
    """Sorts what comes by stream; datagrams are stream -1."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rest, self.packets = {}, {}

    def queue(self, stream):
        return self.packets.setdefault(stream, asyncio.Queue())

    def quic_event_received(self, event):
        if isinstance(event, DatagramFrameReceived):
            packet, rest = mqtt.split(event.data)
            if packet is None or rest:
                sys.exit("a datagram holds one whole packet")
            self.queue(-1).put_nowait(packet)
        elif isinstance(event, StreamDataReceived):
            data = self.rest.get(event.stream_id, b"") + event.data
            while True:
                packet, data = mqtt.split(data)
                if packet is None:
                    break
                self.queue(event.stream_id).put_nowait(packet)
            self.rest[event.stream_id] = data

    def open(self):
        return self._quic.get_next_available_stream_id()

    def send(self, stream, data):
        self._quic.send_stream_data(stream, data)
        self.transmit()

    def send_datagram(self, data):
        self._quic.send_datagram_frame(data)
        self.transmit()

    async def expect(self, stream, wanted):
        kind, flags, body = await self.queue(stream).get()
        if kind != wanted:
            sys.exit(f"packet type {kind} instead of {wanted} on stream {stream}: {body.hex()}")
        return flags, body

    async def log_in(self, name):
        control = self.open()
        body = mqtt.text("MQTT") + bytes([5, 2]) + (30).to_bytes(2, "big") + asking() + mqtt.text(name)
        self.send(control, mqtt.packet(mqtt.CONNECT, 0, body))
        _flags, answer = await self.expect(control, mqtt.CONNACK)
        if answer[1] != 0 or mqtt.text("headgate-datagram") not in answer:
            sys.exit(f"CONNACK: {answer.hex()}")
        return control


async def run(options):
    def configuration():
        made = QuicConfiguration(is_client=True, alpn_protocols=["mqtt"], max_datagram_frame_size=65536)
        made.load_verify_locations(options.ca)
        return made

    def opened():
        return connect("localhost", options.port, configuration=configuration(), create_protocol=Client)

    async with opened() as subscriber, opened() as publisher:
        control = await subscriber.log_in("aioquic-sub")
        streams = {}
        for number in (1, 2):
            stream = subscriber.open()
            subscriber.send(stream, mqtt.subscribe(number, f"s/{number}", 1))
            await subscriber.expect(stream, mqtt.SUBACK)
            streams[number] = stream
        body = (3).to_bytes(2, "big") + asking() + mqtt.text("d") + b"\x00"
        subscriber.send(control, mqtt.packet(mqtt.SUBSCRIBE, 2, body))
        await subscriber.expect(control, mqtt.SUBACK)

        await publisher.log_in("aioquic-pub")
        own = {}
        for number in (1, 2):
            own[number] = publisher.open()
            for count in range(MESSAGES):
                identifier = number * 1000 + count
                payload = str(count).encode()
                publisher.send(own[number], mqtt.publish(f"s/{number}", payload, 1, identifier))
        for number in (1, 2):
            for count in range(MESSAGES):
                _flags, body = await publisher.expect(own[number], mqtt.PUBACK)
                if int.from_bytes(body[:2], "big") != number * 1000 + count:
                    sys.exit(f"PUBACK {body.hex()} on the stream of s/{number}")
                flags, body = await subscriber.expect(streams[number], mqtt.PUBLISH)
                _qos, identifier, payload = mqtt.read_publish(flags, body)
                if payload != str(count).encode():
                    sys.exit(f"{payload} on the stream of s/{number}")
                subscriber.send(streams[number], mqtt.acknowledge(mqtt.PUBACK, identifier))
        for count in range(MESSAGES):
            publisher.send_datagram(mqtt.publish("d", str(count).encode(), 0, 0))
            flags, body = await subscriber.expect(-1, mqtt.PUBLISH)
            if mqtt.read_publish(flags, body)[2] != str(count).encode():
                sys.exit(f"a datagram with {body.hex()}")
    print("done")


asyncio.run(asyncio.wait_for(run(arguments()), TIMEOUT_S))
