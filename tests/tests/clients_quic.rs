//! QUIC with a stack that this project did not write, aioquic: 0-RTT, key updates, other ports, and what RFC 9000
//! forbids a client to send.

use headgate_codec::QoS;
use headgate_tests::{
    broker::Broker,
    clients::{BelowMqtt, Client, Message},
    skip,
};

fn unavailable() -> Option<String> {
    Client::Aioquic.available().err()
}

#[test]
fn early_data_of_another_stack_is_taken() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    BelowMqtt::start(&broker, &["early"]).says("early accepted");
    let metrics = broker.metrics();
    assert_eq!(metrics.sum("headgate_early_connections_total"), 1.0);
}

#[test]
fn key_updates_and_other_ports_of_another_stack_are_followed() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    for action in ["rekey", "migrate"] {
        BelowMqtt::start(&broker, &[action]).says("done");
    }
    let metrics = broker.metrics();
    assert_eq!(metrics.sum("headgate_connections_opened_total"), 2.0);
}

/// Frames that a client must not send, and the code of RFC 9000 §20.1 that answers them.
const FRAMES: [(&str, &str, &str, u64); 14] = [
    ("a type that there is not (§12.4)", "0x21", "", 0x07),
    ("HANDSHAKE_DONE (§19.20)", "0x1e", "", 0x0a),
    ("NEW_TOKEN (§19.7)", "0x07", "0161", 0x0a),
    (
        "MAX_STREAMS above 2^60 (§19.11)",
        "0x12",
        "d000000000000001",
        0x07,
    ),
    (
        "STREAMS_BLOCKED above 2^60 (§19.14)",
        "0x16",
        "d000000000000001",
        0x07,
    ),
    ("a stream beyond the limit (§4.6)", "0x08", "7ff061", 0x04),
    ("a stream of the server's (§19.8)", "0x08", "0161", 0x05),
    (
        "MAX_STREAM_DATA for a stream of the server's (§19.10)",
        "0x11",
        "014400",
        0x05,
    ),
    (
        "data beyond the window (§4.1)",
        "0x0c",
        "00bfffffff61",
        0x03,
    ),
    ("an end before what was sent (§4.5)", "0x04", "000100", 0x06),
    (
        "an acknowledgement of nothing (§13.1)",
        "0x02",
        "bffffff0000000",
        0x0a,
    ),
    (
        "RETIRE_CONNECTION_ID of none (§19.16)",
        "0x19",
        "7fff",
        0x0a,
    ),
    (
        "NEW_CONNECTION_ID that retires itself (§19.15)",
        "0x18",
        "0207080102030405060708000102030405060708090a0b0c0d0e0f",
        0x07,
    ),
    ("CRYPTO far ahead (§7.5)", "0x06", "bfffffff0161", 0x0d),
];

#[test]
fn forbidden_frames_have_the_right_answer_and_nobody_else_notices() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    let subscriber = Client::Aioquic.subscribe(&broker, "calm", QoS::AtLeastOnce, 1);
    for (what, kind, octets, code) in FRAMES {
        eprintln!("{what}");
        BelowMqtt::start(&broker, &["frame", kind, octets]).says(&format!("closed {code:#x}"));
    }
    let message = Message {
        topic: "calm",
        payload: "still here",
        qos: QoS::AtLeastOnce,
        retain: false,
    };
    Client::Aioquic.publish(&broker, message);
    assert_eq!(subscriber.messages(), ["still here"]);
}

/// Transport parameters that a client must not send (RFC 9000 §7.4, §18.2): TRANSPORT_PARAMETER_ERROR.
#[test]
fn forbidden_transport_parameters_are_refused() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    for (what, octets) in [
        ("original_destination_connection_id", "000401020304"),
        (
            "stateless_reset_token",
            "021000112233445566778899aabbccddeeff",
        ),
        ("retry_source_connection_id", "100401020304"),
        ("max_udp_payload_size below 1,200", "030243e8"),
        ("one of them twice", "0a01030a0103"),
        ("a length beyond the end", "0408"),
    ] {
        eprintln!("{what}");
        BelowMqtt::start(&broker, &["parameter", octets]).says("closed 0x8");
    }
}
