"""Publishes or subscribes with Eclipse Paho over TCP or WebSocket: `paho_client.py pub|sub --help`.

A subscriber prints `ready` when its subscription is acknowledged, then one payload per line, and ends after --count.
"""

import argparse
import sys
import threading

import paho.mqtt.client as mqtt

TIMEOUT_S = 60


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["pub", "sub"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--version", choices=["3.1.1", "5"], default="5")
    parser.add_argument("--transport", choices=["tcp", "websockets"], default="tcp")
    parser.add_argument("--ca", help="the authority of the broker's certificate, for TLS")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--qos", type=int, choices=[0, 1, 2], default=0)
    parser.add_argument("--count", type=int, default=1, help="messages to receive before ending")
    parser.add_argument("--message", default="", help="the payload to publish")
    parser.add_argument("--retain", action="store_true")
    return parser.parse_args()


def fail(text):
    print(text, file=sys.stderr)
    sys.exit(1)


def publish(client, options, connected):
    client.loop_start()
    if not connected.wait(TIMEOUT_S):
        fail("no CONNACK")
    message = client.publish(options.topic, options.message, options.qos, options.retain)
    message.wait_for_publish(TIMEOUT_S)
    if not message.is_published():
        fail("not acknowledged")
    client.disconnect()
    client.loop_stop()


def subscribe(client, options, connected):
    done = threading.Event()
    received = []

    def on_subscribe(_client, _userdata, _mid, reason_codes, _properties):
        if any(code.is_failure for code in reason_codes):
            fail(f"refused: {reason_codes}")
        print("ready", flush=True)

    def on_message(_client, _userdata, message):
        print(message.payload.decode(), flush=True)
        received.append(message)
        if len(received) == options.count:
            done.set()

    client.on_subscribe = on_subscribe
    client.on_message = on_message
    client.loop_start()
    if not connected.wait(TIMEOUT_S):
        fail("no CONNACK")
    client.subscribe(options.topic, options.qos)
    if not done.wait(TIMEOUT_S):
        fail(f"{len(received)} of {options.count} messages came")
    client.disconnect()
    client.loop_stop()


def main():
    options = arguments()
    version = mqtt.MQTTv5 if options.version == "5" else mqtt.MQTTv311
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=version, transport=options.transport)
    if options.ca:
        client.tls_set(ca_certs=options.ca)
    connected = threading.Event()

    def on_connect(_client, _userdata, _flags, reason_code, _properties):
        if reason_code.is_failure:
            fail(f"CONNACK: {reason_code}")
        connected.set()

    client.on_connect = on_connect
    client.connect(options.host, options.port, keepalive=30)
    if options.action == "pub":
        publish(client, options, connected)
    else:
        subscribe(client, options, connected)


main()
