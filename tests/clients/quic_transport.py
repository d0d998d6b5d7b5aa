"""Uses QUIC itself, below MQTT, with aioquic.

`early`: connects for a ticket, then sends CONNECT and PUBLISH as 0-RTT data; prints `early accepted` and what was acknowledged.
`resume`: connects for a ticket, and with it; prints `resumed`.
`version`: offers QUIC version 2 first; prints `version 0x…`, the one that is spoken in the end.
`rounds`: prints `round N` for each of a hundred messages to itself, which take five seconds or more; `done` at the end.
`ecn`: marks its packets; prints how many had ECT(1) and CE, how many the broker says there were, and how the broker marks its own.
`rekey`: updates its keys between messages; prints `done`.
`migrate`: goes on from other ports, with a new connection ID each time; prints `done`.
"""

import argparse
import asyncio
import socket
import sys

from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicFrameType, QuicProtocolVersion, pull_ack_frame
from aioquic.tls import Epoch

import mqtt_packets as mqtt
from quic_stream import Stream

TIMEOUT_S = 60
ROUNDS = 5
MANY_ROUNDS = 100
PAUSE_S = 0.05
# Codepoints of ECN (RFC 3168 section 5).
NOT_ECT, ECT_1, CE = 0, 1, 3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["early", "resume", "version", "rounds", "ecn", "rekey", "migrate"])
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", required=True, help="the authority's certificate, PEM")
    return parser.parse_args()


def configuration(options):
    result = QuicConfiguration(is_client=True, alpn_protocols=["mqtt"])
    result.load_verify_locations(options.ca)
    return result


def open_connection(options, settings, **more):
    return connect(options.host, options.port, configuration=settings, **more)


def connect_again(client_id):
    """CONNECT with Clean Start 0 and a session that lasts ten minutes."""
    properties = bytes([0x11]) + (600).to_bytes(4, "big")
    body = mqtt.text("MQTT") + bytes([5, 0, 0, 30]) + mqtt.varint(len(properties)) + properties + mqtt.text(client_id)
    return mqtt.packet(mqtt.CONNECT, 0, body)


async def with_ticket(options):
    """Settings that resume a session of TLS."""
    tickets = []
    settings = configuration(options)
    async with open_connection(options, settings, session_ticket_handler=tickets.append) as connection:
        stream = Stream(*await connection.create_stream())
        stream.send(mqtt.connect("first"))
        await stream.expect(mqtt.CONNACK)
        while not tickets:
            await connection.ping()
    settings = configuration(options)
    settings.session_ticket = tickets[0]
    return settings


async def early(options):
    settings = await with_ticket(options)
    async with open_connection(options, settings, wait_connected=False) as connection:
        stream = Stream(*await connection.create_stream())
        stream.send(connect_again("early") + mqtt.publish("early/t", b"early", 1, 7))
        connection.transmit()
        await stream.expect(mqtt.CONNACK)
        await stream.expect(mqtt.PUBACK)
        accepted = connection._quic.tls.early_data_accepted
        print("early accepted" if accepted else "early refused", flush=True)


async def echo(stream, number):
    """A message to itself with QoS 0, once round."""
    text = str(number).encode()
    stream.send(mqtt.publish("own/echo", text, 0, 0))
    body = await stream.expect(mqtt.PUBLISH)
    if mqtt.read_publish(0, body)[2] != text:
        sys.exit(f"another message: {body.hex()}")


async def session(connection):
    stream = Stream(*await connection.create_stream())
    stream.send(mqtt.connect("transport") + mqtt.subscribe(1, "own/echo", 0))
    await stream.expect(mqtt.CONNACK)
    await stream.expect(mqtt.SUBACK)
    await echo(stream, 0)
    return stream


async def resume(options):
    settings = await with_ticket(options)
    async with open_connection(options, settings) as connection:
        await session(connection)
        print("resumed" if connection._quic.tls.session_resumed else "not resumed", flush=True)


async def version(options):
    settings = configuration(options)
    settings.original_version = QuicProtocolVersion.VERSION_2
    settings.supported_versions = [QuicProtocolVersion.VERSION_2, QuicProtocolVersion.VERSION_1]
    async with open_connection(options, settings) as connection:
        await session(connection)
        print(f"version 0x{connection._quic._version:x}", flush=True)


async def rounds(options):
    async with open_connection(options, configuration(options)) as connection:
        stream = await session(connection)
        for number in range(1, MANY_ROUNDS + 1):
            await echo(stream, number)
            print(f"round {number}", flush=True)
            await asyncio.sleep(PAUSE_S)
    print("done", flush=True)


class Counts:
    """What the broker says of the marks on packets that it received (RFC 9000 section 19.3.2): ECT(0), ECT(1), CE."""

    def __init__(self):
        self.last = [0, 0, 0]
        original = QuicConnection._handle_ack_frame

        def handle(quic, context, frame_type, buf):
            start = buf.tell()
            original(quic, context, frame_type, buf)
            if frame_type == QuicFrameType.ACK_ECN and context.epoch == Epoch.ONE_RTT:
                end = buf.tell()
                buf.seek(start)
                pull_ack_frame(buf)
                self.last = [buf.pull_uint_var() for _ in range(3)]
                buf.seek(end)

        # Connections look it up when they are made.
        QuicConnection._handle_ack_frame = handle


def mark(sock, codepoint):
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, codepoint)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, codepoint)


async def ecn(options):
    counts = Counts()
    async with open_connection(options, configuration(options)) as connection:
        # The stream lives as long as somebody knows it.
        _stream = await session(connection)
        transport = connection._transport
        sock = transport.get_extra_info("socket")
        sent = {}
        sendto = transport.sendto

        def count(data, addr=None):
            sent[codepoint] = sent.get(codepoint, 0) + 1
            sendto(data, addr)

        transport.sendto = count
        # Behind the last one comes what is not marked, so that all that is has been reported.
        for codepoint in (ECT_1, CE, NOT_ECT):
            mark(sock, codepoint)
            for _ in range(ROUNDS):
                await connection.ping()
        print(f"ect1 {counts.last[1]} of {sent[ECT_1]}, ce {counts.last[2]} of {sent[CE]}", flush=True)
    quic = QuicConnection(configuration=configuration(options))
    broker = ("127.0.0.1", options.port)
    quic.connect(broker, now=0.0)
    plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    plain.settimeout(TIMEOUT_S)
    plain.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    for data, _ in quic.datagrams_to_send(now=0.0):
        plain.sendto(data, broker)
    _data, ancillary, _flags, _address = plain.recvmsg(2048, 64)
    print(f"answer {[value[0] & CE for _level, kind, value in ancillary if kind == socket.IP_TOS]}", flush=True)


async def rekey(options):
    async with open_connection(options, configuration(options)) as connection:
        stream = await session(connection)
        for number in range(1, ROUNDS + 1):
            connection.request_key_update()
            await echo(stream, number)
    print("done", flush=True)


async def migrate(options):
    async with open_connection(options, configuration(options)) as connection:
        stream = await session(connection)
        for number in range(1, ROUNDS + 1):
            connection.change_connection_id()
            loop = asyncio.get_running_loop()
            former = connection._transport
            other = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            other.bind(("::", 0))
            transport, _ = await loop.create_datagram_endpoint(lambda: Forward(connection), sock=other)
            connection._transport = transport
            former.close()
            await echo(stream, number)
    print("done", flush=True)


class Forward(asyncio.DatagramProtocol):
    """Another socket of a connection."""

    def __init__(self, connection):
        self.connection = connection

    def datagram_received(self, data, addr):
        self.connection.datagram_received(data, addr)


ACTIONS = {
    "early": early,
    "resume": resume,
    "version": version,
    "rounds": rounds,
    "ecn": ecn,
    "rekey": rekey,
    "migrate": migrate,
}


async def run(options):
    await ACTIONS[options.action](options)


asyncio.run(asyncio.wait_for(run(arguments()), TIMEOUT_S))
