"""Does with aioquic what a client must not do.

`silent`: connects --count times and opens no stream; prints `ready`, and holds on until it is killed.
`send HEX`: connects, and sends these octets after CONNACK; prints the reason code of the broker's DISCONNECT.
`alpn NAME`: offers this protocol only; prints `refused` if the handshake fails.
"""

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack

from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration

import mqtt_packets as mqtt
from quic_stream import Stream

TIMEOUT_S = 60


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["silent", "send", "alpn"])
    parser.add_argument("value", nargs="?", default="")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", required=True, help="the authority's certificate, PEM")
    parser.add_argument("--count", type=int, default=1)
    return parser.parse_args()


def configuration(options, protocol="mqtt"):
    result = QuicConfiguration(is_client=True, alpn_protocols=[protocol])
    result.load_verify_locations(options.ca)
    return result


async def silent(options):
    async with AsyncExitStack() as connections:
        for _ in range(options.count):
            await connections.enter_async_context(
                connect(options.host, options.port, configuration=configuration(options))
            )
        print("ready", flush=True)
        await asyncio.sleep(TIMEOUT_S)


async def send(options):
    async with connect(options.host, options.port, configuration=configuration(options)) as connection:
        stream = Stream(*await connection.create_stream())
        stream.send(mqtt.connect("misuse"))
        await stream.expect(mqtt.CONNACK)
        stream.send(bytes.fromhex(options.value))
        body = await stream.expect(mqtt.DISCONNECT)
        print(f"disconnect 0x{body[0] if body else 0:02x}", flush=True)
        await connection.wait_closed()


async def alpn(options):
    try:
        async with connect(options.host, options.port, configuration=configuration(options, options.value)):
            sys.exit(f"the broker speaks {options.value}")
    except ConnectionError:
        print("refused", flush=True)


async def run(options):
    await {"silent": silent, "send": send, "alpn": alpn}[options.action](options)


asyncio.run(asyncio.wait_for(run(arguments()), TIMEOUT_S))
