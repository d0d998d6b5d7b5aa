"""Runs the broker mqttd (PyPI): mqttd_broker.py tcp|tls|quic PORT CERTIFICATE KEY"""

import logging
import ssl
import sys

from mqttd import MQTTApp

transport, port, certificate, key = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
logging.disable(logging.WARNING)
if transport == "quic":
    app = MQTTApp(
        host="127.0.0.1",
        enable_tcp=False,
        enable_quic=True,
        quic_port=port,
        quic_certfile=certificate,
        quic_keyfile=key,
    )
else:
    context = None
    if transport == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    app = MQTTApp(host="127.0.0.1", port=port, ssl_context=context)
app.run()
