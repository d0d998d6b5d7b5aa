"""A client of Eclipse Paho whose session outlives its connections: `paho_session.py pub|sub --help`.

A publisher reads one payload per line and prints `acknowledged PAYLOAD` for each that the broker has taken. A subscriber
prints `ready` when its subscription is acknowledged, then one payload per line. Both connect again whenever the
connection breaks, and end with their standard input.
"""

import argparse
import queue
import sys
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

RETRY_S = 0.05
SESSION_EXPIRY_S = 3600


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["pub", "sub"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--id", required=True, help="Client Identifier")
    parser.add_argument("--topic", required=True, help="a filter, or the beginning of topics")
    return parser.parse_args()


def say(text):
    print(text, flush=True)


def topic_of(prefix, payload):
    """Payloads begin with PUBLISHER:QOS:, and so do the topics."""
    publisher, qos, _ = payload.split(":", 2)
    return f"{prefix}/{publisher}/{qos}", int(qos)


def publish(client, options):
    payloads = {}
    done = queue.Queue()

    def on_publish(_client, _userdata, mid, reason_code, _properties):
        done.put((mid, reason_code.is_failure))

    def report():
        while True:
            mid, failed = done.get()
            # The answer may be faster than the return of publish().
            while mid not in payloads:
                time.sleep(0.001)
            say(f"{'refused' if failed else 'acknowledged'} {payloads.pop(mid)}")

    client.on_publish = on_publish
    threading.Thread(target=report, daemon=True).start()
    client.loop_start()
    for line in sys.stdin:
        payload = line.rstrip("\n")
        topic, qos = topic_of(options.topic, payload)
        payloads[client.publish(topic, payload, qos).mid] = payload


def subscribe(client, options):
    client.on_subscribe = lambda *_: say("ready")
    client.on_message = lambda _client, _userdata, message: say(message.payload.decode())
    client.loop_start()
    sys.stdin.read()


def main():
    options = arguments()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=options.id, protocol=mqtt.MQTTv5)
    client.reconnect_delay_set(RETRY_S, RETRY_S)
    client.max_inflight_messages_set(20)

    def on_connect(client, _userdata, flags, reason_code, _properties):
        if not reason_code.is_failure and options.action == "sub" and not flags.session_present:
            client.subscribe(options.topic, 2)

    client.on_connect = on_connect
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = SESSION_EXPIRY_S
    # The broker may be away already: the loop tries again.
    client.connect_async(options.host, options.port, keepalive=60, clean_start=False, properties=properties)
    if options.action == "pub":
        publish(client, options)
    else:
        subscribe(client, options)


main()
