"""Idle MQTT sessions over QUIC with aioquic as it comes: idle_aioquic.py PORT SESSIONS

Connects to 127.0.0.1, subscribes each session to two filters, prints "ready" and keeps them until standard input ends.
"""

import asyncio
import contextlib
import ssl
import sys

from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration

AT_ONCE = 16


def text(value):
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def packet(first, body):
    assert len(body) < 16384
    length = bytes([len(body)]) if len(body) < 128 else bytes([len(body) & 127 | 128, len(body) >> 7])
    return bytes([first]) + length + body


async def open_session(number, port, stack, gate):
    async with gate:
        configuration = QuicConfiguration(is_client=True, alpn_protocols=["mqtt"], verify_mode=ssl.CERT_NONE)
        client = await stack.enter_async_context(connect("127.0.0.1", port, configuration=configuration))
        reader, writer = await client.create_stream()
        name = f"device-{number:06}"
        # MQTT 5: Clean Start, Keep Alive 600 s, no properties.
        writer.write(packet(0x10, text("MQTT") + b"\x05\x02\x02\x58\x00" + text(name)))
        connack = await reader.readexactly(2)
        body = await reader.readexactly(connack[1])
        assert connack[0] == 0x20 and body[1] == 0, f"CONNACK {connack}{body}"
        filters = [f"fleet/{name}/command", f"fleet/{name}/config"]
        writer.write(packet(0x82, b"\x00\x01\x00" + b"".join(text(f) + b"\x00" for f in filters)))
        suback = await reader.readexactly(2)
        body = await reader.readexactly(suback[1])
        assert suback[0] == 0x90 and body[-2:] == b"\x00\x00", f"SUBACK {suback}{body}"
        return reader, writer


async def main(port, sessions):
    async with contextlib.AsyncExitStack() as stack:
        gate = asyncio.Semaphore(AT_ONCE)
        streams = await asyncio.gather(*(open_session(number, port, stack, gate) for number in range(sessions)))
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        assert not any(reader.at_eof() for reader, _ in streams), "a session was lost"


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
