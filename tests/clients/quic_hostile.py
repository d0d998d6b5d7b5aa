"""Sends with aioquic what a QUIC client must not: `quic_hostile.py --port PORT --ca FILE`.

Each line of standard input is a case, and makes a connection of its own:

`packet SPACE BITS HEX...`: sends packets of these payloads, sealed like aioquic's own; SPACE is initial, early, handshake or data, and BITS
    are changed in the first octet before protection. Those of `data` follow CONNACK, the others what aioquic sends first in the space.
`no-ids HEX...`: the same in `data`, of a client whose connection ID is empty.
`old-number HEX`: the same in `data`, sealed with the next keys and with a packet number that is older than the last one.
`parameters ID HEX`: leaves this transport parameter away (- for none, all for the extension as a whole), and adds these octets.
`token HEX`: has this token in its Initial packets.

The answer is a line: `closed 0x…` with the error code of the broker's CONNECTION_CLOSE, `application 0x…` likewise, `goes on` when the
connection still answers after all that, `gave up 0x…` when aioquic ends it, or `no answer`. After `brief`, `no answer` comes soon.
"""

import argparse
import asyncio
import os
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.buffer import encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.crypto import next_key_phase
from aioquic.tls import Epoch

import mqtt_packets as mqtt
from quic_stream import Stream

TIMEOUT_S = 60
BRIEF_TIMEOUT_S = 3
AT_A_TIME = 4
SPACES = {"initial": Epoch.INITIAL, "early": Epoch.ZERO_RTT, "handshake": Epoch.HANDSHAKE, "data": Epoch.ONE_RTT}
LONG_TYPES = {Epoch.INITIAL: 0, Epoch.ZERO_RTT: 1, Epoch.HANDSHAKE: 2}
INITIAL_DATAGRAM_BYTES = 1200
TAG_BYTES = 16
# Packet numbers of four octets, so that there is enough behind them for header protection even in an empty packet.
NUMBER_BYTES = 4


def seal(quic, epoch, bits, payload):
    """A packet (RFC 9000 section 17), in a datagram."""
    number = quic._packet_number
    quic._packet_number += 1
    pair = quic._cryptos[epoch]
    if epoch == Epoch.ONE_RTT:
        header = bytes([(0x40 | pair.key_phase << 2 | NUMBER_BYTES - 1) ^ bits]) + quic._peer_cid.cid
    else:
        first = (0xC0 | LONG_TYPES[epoch] << 4 | NUMBER_BYTES - 1) ^ bits
        header = bytes([first]) + quic._version.to_bytes(4, "big")
        for connection_id in (quic._peer_cid.cid, quic.host_cid):
            header += bytes([len(connection_id)]) + connection_id
        if epoch == Epoch.INITIAL:
            header += encode_uint_var(0)
        header += encode_uint_var(NUMBER_BYTES + len(payload) + TAG_BYTES)
    datagram = pair.encrypt_packet(header + number.to_bytes(NUMBER_BYTES, "big"), payload, number)
    if epoch == Epoch.INITIAL:
        datagram += bytes(INITIAL_DATAGRAM_BYTES - len(datagram))
    return datagram


def seal_old(quic, payload):
    """A 1-RTT packet with the keys of the next phase, and number 0."""
    pair = quic._cryptos[Epoch.ONE_RTT]
    header = bytes([0x40 | (pair.key_phase ^ 1) << 2 | NUMBER_BYTES - 1]) + quic._peer_cid.cid + bytes(NUMBER_BYTES)
    # The key of header protection stays (RFC 9001 section 6).
    return pair.send.hp.apply(header, next_key_phase(pair.send).aead.encrypt(payload, header, 0))


def without(parameters, unwanted):
    """Transport parameters (RFC 9000 section 18) without one of them."""
    kept, at = b"", 0

    def number():
        nonlocal at
        size = 1 << (parameters[at] >> 6)
        value = int.from_bytes(parameters[at : at + size], "big") & (1 << 8 * size - 2) - 1
        at += size
        return value

    while at < len(parameters):
        start = at
        identifier = number()
        length = number()
        at += length
        if identifier != unwanted:
            kept += parameters[start:at]
    return kept


class Hostile(QuicConnectionProtocol):
    """Does what a case says, and remembers how the connection ended."""

    case = None
    is_old = False

    def __init__(self, quic, **rest):
        super().__init__(quic, **rest)
        self.ended = asyncio.get_running_loop().create_future()
        self.is_done = False
        close_begin = quic._close_begin

        def closing(is_initiator, now):
            close_begin(is_initiator=is_initiator, now=now)
            event = quic._close_event
            kind = "gave up" if is_initiator else "application" if event.frame_type is None else "closed"
            self.end(f"{kind} 0x{event.error_code:x}")

        quic._close_begin = closing
        prepare, *values = self.case
        getattr(self, prepare.replace("-", "_"))(quic, *values)

    def packet(self, quic, space, bits, *payloads):
        """Puts the packets behind the first flight that has the keys; those of the handshake before it, which would end it."""
        self.space, self.bits = SPACES[space], int(bits, 16)
        self.payloads = [bytes.fromhex(payload) for payload in payloads or [""]]
        if self.space == Epoch.ONE_RTT:
            return
        original = quic.datagrams_to_send

        def datagrams_to_send(now):
            sent = original(now)
            if self.is_done or not quic._cryptos[self.space].send.is_valid() or not sent:
                return sent
            added = self.sealed(quic)
            return added + sent if self.space == Epoch.HANDSHAKE else sent + added

        quic.datagrams_to_send = datagrams_to_send

    def old_number(self, quic, payload):
        self.packet(quic, "data", "0", payload)
        self.is_old = True

    def no_ids(self, quic, *payloads):
        # aioquic's first destination would be empty as well, which RFC 9000 section 7.2 forbids, and it would offer more such IDs.
        quic._peer_cid.cid = quic._original_destination_connection_id = os.urandom(8)
        quic._replenish_connection_ids = lambda: None
        self.packet(quic, "data", "0", *payloads)

    def sealed(self, quic):
        self.is_done = True
        to = quic._network_paths[0].addr
        if self.is_old:
            return [(seal_old(quic, payload), to) for payload in self.payloads]
        return [(seal(quic, self.space, self.bits, payload), to) for payload in self.payloads]

    def parameters(self, quic, unwanted, added=""):
        original, initialize = quic._serialize_transport_parameters, quic._initialize

        def serialize():
            kept = original() if unwanted == "-" else without(original(), int(unwanted, 16))
            return kept + bytes.fromhex(added)

        def initialize_without(peer_cid):
            initialize(peer_cid)
            quic.tls.handshake_extensions = []

        if unwanted == "all":
            quic._initialize = initialize_without
        else:
            quic._serialize_transport_parameters = serialize

    def token(self, quic, octets):
        quic._peer_token = bytes.fromhex(octets)

    def end(self, how):
        if not self.ended.done():
            self.ended.set_result(how)

    async def play(self):
        """The part of a case that comes after the first packets."""
        stream = Stream(*await self.create_stream())
        # With an empty Client Identifier: one that several have would be taken over.
        stream.send(mqtt.connect(""))
        try:
            await stream.expect(mqtt.CONNACK)
        except SystemExit as ended:
            # It would end the program.
            raise ConnectionError(ended) from None
        if not self.is_done and hasattr(self, "payloads"):
            for datagram, to in self.sealed(self._quic):
                self._transport.sendto(datagram, to)
        # Acknowledged after all that was sent before.
        await self.ping()
        await self.ping()


async def ticket(options):
    """A session ticket that is good for 0-RTT."""
    tickets = []
    settings = configuration(options)
    async with connect("localhost", options.port, configuration=settings, session_ticket_handler=tickets.append) as client:
        while not tickets:
            await client.ping()
    return tickets[0]


def configuration(options):
    settings = QuicConfiguration(is_client=True, alpn_protocols=["mqtt"])
    settings.load_verify_locations(options.ca)
    return settings


async def run(options, case):
    settings = configuration(options)
    if case[0] == "no-ids":
        settings.connection_id_length = 0
    if case[:2] == ["packet", "early"]:
        settings.session_ticket = await ticket(options)
    protocol = type("Case", (Hostile,), {"case": case})
    async with connect(
        "localhost", options.port, configuration=settings, create_protocol=protocol, wait_connected=False
    ) as client:
        playing = asyncio.ensure_future(client.play())
        # When the connection is over, its complaint is no news.
        playing.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([playing, client.ended], return_when=asyncio.FIRST_COMPLETED)
        if client.ended.done():
            playing.cancel()
            answer = client.ended.result()
        else:
            answer = "goes on" if playing.exception() is None else f"failed: {playing.exception()!r}"
        if settings.session_ticket and not client._quic.tls.early_data_accepted and answer == "goes on":
            answer = "0-RTT refused"
        # Nobody waits for the end of the draining period.
        client._closed.set()
        return answer


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", required=True, help="the authority's certificate, PEM")
    options = parser.parse_args()
    gate = asyncio.Semaphore(AT_A_TIME)
    # Pings of connections that are over fail, and nobody waits for them.
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)

    async def answer(line):
        words = line.split()
        limit_s = TIMEOUT_S
        if words[0] == "brief":
            limit_s = BRIEF_TIMEOUT_S
            del words[0]
        async with gate:
            try:
                return await asyncio.wait_for(run(options, words), limit_s)
            except TimeoutError:
                return "no answer"

    cases = [asyncio.ensure_future(answer(line)) for line in sys.stdin.read().splitlines()]
    for case in cases:
        print(await case, flush=True)


asyncio.run(main())
