"""Publishes or subscribes over QUIC with aioquic, as raw MQTT 5.0 on a stream: `quic_client.py pub|sub --help`.

A subscriber prints `ready` when its subscription is acknowledged, then one payload per line, and ends after --count.
"""

import argparse
import asyncio
import os
import sys

from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration

import mqtt_packets as mqtt
from quic_stream import Stream

TIMEOUT_S = 60
PACKET_ID = 7


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["pub", "sub"])
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", required=True, help="the authority's certificate, PEM")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--qos", type=int, choices=[0, 1, 2], default=0)
    parser.add_argument("--count", type=int, default=1, help="messages to receive before ending")
    parser.add_argument("--message", default="", help="the payload to publish")
    parser.add_argument("--retain", action="store_true")
    return parser.parse_args()


async def publish(stream, options):
    stream.send(mqtt.publish(options.topic, options.message.encode(), options.qos, PACKET_ID, options.retain))
    if options.qos == 1:
        await stream.expect(mqtt.PUBACK)
    elif options.qos == 2:
        await stream.expect(mqtt.PUBREC)
        stream.send(mqtt.acknowledge(mqtt.PUBREL, PACKET_ID))
        await stream.expect(mqtt.PUBCOMP)


async def subscribe(stream, options):
    stream.send(mqtt.subscribe(PACKET_ID, options.topic, options.qos))
    body = await stream.expect(mqtt.SUBACK)
    if body[-1] != options.qos:
        sys.exit(f"SUBACK with reason code 0x{body[-1]:02x}")
    print("ready", flush=True)
    received = 0
    released = 0
    owed = 0
    while received < options.count or released < owed:
        kind, flags, body = await stream.receive()
        if kind == mqtt.PUBREL:
            stream.send(mqtt.acknowledge(mqtt.PUBCOMP, int.from_bytes(body[:2], "big")))
            released += 1
        elif kind == mqtt.PUBLISH:
            qos, packet_id, payload = mqtt.read_publish(flags, body)
            print(payload.decode(), flush=True)
            received += 1
            if qos == 1:
                stream.send(mqtt.acknowledge(mqtt.PUBACK, packet_id))
            elif qos == 2:
                stream.send(mqtt.acknowledge(mqtt.PUBREC, packet_id))
                owed += 1
        else:
            sys.exit(f"packet type {kind}: {body.hex()}")


async def run(options):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["mqtt"])
    configuration.load_verify_locations(options.ca)
    async with connect(options.host, options.port, configuration=configuration) as connection:
        stream = Stream(*await connection.create_stream())
        stream.send(mqtt.connect(f"aioquic-{os.getpid()}"))
        body = await stream.expect(mqtt.CONNACK)
        if body[1] != 0:
            sys.exit(f"CONNACK with reason code 0x{body[1]:02x}")
        await (publish if options.action == "pub" else subscribe)(stream, options)
        stream.send(mqtt.disconnect())
        stream.writer.write_eof()
        # Closing at once would throw away what has not been sent; the broker closes when it has read DISCONNECT.
        await connection.wait_closed()


asyncio.run(asyncio.wait_for(run(arguments()), TIMEOUT_S))
