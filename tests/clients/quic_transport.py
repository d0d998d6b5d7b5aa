"""Uses QUIC itself, below MQTT, with aioquic.

`early`: connects for a ticket, then sends CONNECT and PUBLISH as 0-RTT data; prints `early accepted` and what was acknowledged.
`rekey`: updates its keys between messages; prints `done`.
`migrate`: goes on from other ports, with a new connection ID each time; prints `done`.
`frame TYPE HEX`: after CONNACK, sends a frame of this type with these octets; prints `closed 0x…`, the broker's error code.
`parameter HEX`: adds these octets to its transport parameters; prints `closed 0x…`.
"""

import argparse
import asyncio
import socket
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated

import mqtt_packets as mqtt
from quic_stream import Stream

TIMEOUT_S = 60
ROUNDS = 5


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["early", "rekey", "migrate", "frame", "parameter"])
    parser.add_argument("values", nargs="*", default=[])
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", required=True, help="the authority's certificate, PEM")
    return parser.parse_args()


class Watched(QuicConnectionProtocol):
    """Remembers how the connection ended; `parameters` are added to the transport parameters."""

    ended = None
    parameters = b""

    def __init__(self, quic, **rest):
        super().__init__(quic, **rest)
        Watched.ended = asyncio.get_running_loop().create_future()
        original = quic._serialize_transport_parameters
        quic._serialize_transport_parameters = lambda: original() + Watched.parameters

    def quic_event_received(self, event):
        super().quic_event_received(event)
        if isinstance(event, ConnectionTerminated) and not Watched.ended.done():
            Watched.ended.set_result(event.error_code)


def configuration(options):
    result = QuicConfiguration(is_client=True, alpn_protocols=["mqtt"])
    result.load_verify_locations(options.ca)
    return result


def open_connection(options, settings, **more):
    return connect(options.host, options.port, configuration=settings, create_protocol=Watched, **more)


def connect_again(client_id):
    """CONNECT with Clean Start 0 and a session that lasts ten minutes."""
    properties = bytes([0x11]) + (600).to_bytes(4, "big")
    body = mqtt.text("MQTT") + bytes([5, 0, 0, 30]) + mqtt.varint(len(properties)) + properties + mqtt.text(client_id)
    return mqtt.packet(mqtt.CONNECT, 0, body)


async def early(options):
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


async def frame(options):
    kind, octets = int(options.values[0], 0), bytes.fromhex(options.values[1] if len(options.values) > 1 else "")
    async with open_connection(options, configuration(options)) as connection:
        stream = Stream(*await connection.create_stream())
        stream.send(mqtt.connect("hostile"))
        await stream.expect(mqtt.CONNACK)

        def write(builder, uids=(), comment=""):
            builder.start_frame(kind, capacity=8 + len(octets)).push_bytes(octets)

        quic = connection._quic
        quic._write_ping_frame = write
        quic.send_ping(0)
        connection.transmit()
        print(f"closed 0x{await Watched.ended:x}", flush=True)


async def parameter(options):
    Watched.parameters = bytes.fromhex(options.values[0])
    try:
        async with open_connection(options, configuration(options)):
            # The refusal comes after the client believes that all is well.
            await Watched.ended
    except ConnectionError:
        pass
    print(f"closed 0x{await Watched.ended:x}", flush=True)


ACTIONS = {"early": early, "rekey": rekey, "migrate": migrate, "frame": frame, "parameter": parameter}


async def run(options):
    await ACTIONS[options.action](options)


asyncio.run(asyncio.wait_for(run(arguments()), TIMEOUT_S))
