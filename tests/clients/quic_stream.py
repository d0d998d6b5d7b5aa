"""MQTT packets on an aioquic stream."""

import sys

import mqtt_packets as mqtt


class Stream:
    """Packets over the control stream: the first bidirectional stream that the client opens."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.data = b""

    def send(self, packet):
        self.writer.write(packet)

    async def receive(self):
        while True:
            packet, self.data = mqtt.split(self.data)
            if packet:
                return packet
            more = await self.reader.read(65536)
            if not more:
                sys.exit("the broker closed the stream")
            self.data += more

    async def expect(self, wanted):
        kind, _flags, body = await self.receive()
        if kind != wanted:
            sys.exit(f"packet type {kind} instead of {wanted}: {body.hex()}")
        return body
