"""A client of OpenSSL's over TLS: prints the key exchange that it and the broker agree on, once CONNECT is accepted."""

import argparse
import socket
import sys

from OpenSSL import SSL

import mqtt_packets as mqtt

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("port", type=int)
parser.add_argument("--ca", required=True)
options = parser.parse_args()

context = SSL.Context(SSL.TLS_CLIENT_METHOD)
context.load_verify_locations(options.ca)
context.set_verify(SSL.VERIFY_PEER)
context.set_alpn_protos([b"mqtt"])
connection = SSL.Connection(context, socket.create_connection(("127.0.0.1", options.port)))
connection.set_tlsext_host_name(b"localhost")
connection.set_connect_state()
connection.do_handshake()
connection.sendall(mqtt.connect("openssl"))
answer = connection.recv(1)
if answer[0] >> 4 != mqtt.CONNACK:
    sys.exit(f"no CONNACK: {answer.hex()}")
print(connection.get_group_name())
