//! What RFC 9000 forbids a client to send, by a stack that this project did not write, and the error code that answers it. A
//! session of somebody else goes on meanwhile.

use headgate_codec::QoS;
use headgate_tests::{
    broker::Broker,
    clients::{Client, Message},
    hostile, skip,
};

/// What the connection ends with: a code of RFC 9000 §20.1, or of TLS (RFC 9001 §4.8).
const FLOW_CONTROL_ERROR: &str = "closed 0x3";
const STREAM_LIMIT_ERROR: &str = "closed 0x4";
const STREAM_STATE_ERROR: &str = "closed 0x5";
const FINAL_SIZE_ERROR: &str = "closed 0x6";
const FRAME_ENCODING_ERROR: &str = "closed 0x7";
const TRANSPORT_PARAMETER_ERROR: &str = "closed 0x8";
const CONNECTION_ID_LIMIT_ERROR: &str = "closed 0x9";
const PROTOCOL_VIOLATION: &str = "closed 0xa";
const CRYPTO_BUFFER_EXCEEDED: &str = "closed 0xd";
const KEY_UPDATE_ERROR: &str = "closed 0xe";
const UNEXPECTED_MESSAGE: &str = "closed 0x10a";
const MISSING_EXTENSION: &str = "closed 0x16d";
/// It does not end: the server may answer with an error, and has no need to.
const NOTHING: &str = "goes on";
/// The connection is over, and nobody is told; or the client goes on with a connection ID that it has retired.
const SILENCE: &str = "no answer";

/// What is sent, as a line for the script, and what answers it.
type Case = (&'static str, &'static str, &'static str);

/// Flow control, limits and ends of streams (§4).
const STREAMS: [Case; 22] = [
    (
        "data beyond the window (§4.1)",
        "packet data 0 0c00bfffffff61",
        FLOW_CONTROL_ERROR,
    ),
    (
        "a final size beyond the window (§4.5)",
        "packet data 0 040000bfffffff",
        FLOW_CONTROL_ERROR,
    ),
    (
        "an end before what was sent (§4.5)",
        "packet data 0 04000100",
        FINAL_SIZE_ERROR,
    ),
    (
        "two ends (§4.5)",
        "packet data 0 0f0043e8000f0043e900",
        FINAL_SIZE_ERROR,
    ),
    (
        "data beyond the end (§4.5)",
        "packet data 0 0f0043e8000e0043f00161",
        FINAL_SIZE_ERROR,
    ),
    (
        "RESET_STREAM with another end (§4.5)",
        "packet data 0 0f0043e800 04000043e9",
        FINAL_SIZE_ERROR,
    ),
    (
        "STREAM beyond the limit (§4.6)",
        "packet data 0 087ff061",
        STREAM_LIMIT_ERROR,
    ),
    (
        "STREAM beyond the limit, in one direction (§4.6)",
        "packet data 0 087ff261",
        STREAM_LIMIT_ERROR,
    ),
    (
        "RESET_STREAM beyond the limit (§4.6)",
        "packet data 0 047ff00000",
        STREAM_LIMIT_ERROR,
    ),
    // quinn-proto takes no notice of this one and of STREAM_DATA_BLOCKED below: §4.6 wants STREAM_LIMIT_ERROR.
    (
        "STOP_SENDING beyond the limit (§4.6)",
        "packet data 0 057ff000",
        NOTHING,
    ),
    (
        "MAX_STREAM_DATA beyond the limit (§4.6)",
        "packet data 0 117ff04400",
        STREAM_LIMIT_ERROR,
    ),
    (
        "STREAM_DATA_BLOCKED beyond the limit (§4.6)",
        "packet data 0 157ff000",
        NOTHING,
    ),
    (
        "RESET_STREAM where only the server sends (§19.4)",
        "packet data 0 04030000",
        STREAM_STATE_ERROR,
    ),
    (
        "STOP_SENDING where only the client sends (§19.5)",
        "packet data 0 050200",
        STREAM_STATE_ERROR,
    ),
    (
        "STOP_SENDING for a stream that the server has not opened (§19.5)",
        "packet data 0 050100",
        STREAM_STATE_ERROR,
    ),
    (
        "STREAM where only the server sends (§19.8)",
        "packet data 0 080361",
        STREAM_STATE_ERROR,
    ),
    (
        "STREAM that the server has not opened (§19.8)",
        "packet data 0 080161",
        STREAM_STATE_ERROR,
    ),
    (
        "MAX_STREAM_DATA where only the client sends (§19.10)",
        "packet data 0 11024400",
        STREAM_STATE_ERROR,
    ),
    (
        "MAX_STREAM_DATA for a stream that the server has not opened (§19.10)",
        "packet data 0 11014400",
        STREAM_STATE_ERROR,
    ),
    (
        "STREAM_DATA_BLOCKED where only the server sends (§19.13)",
        "packet data 0 150300",
        STREAM_STATE_ERROR,
    ),
    (
        "MAX_STREAMS above 2^60 (§19.11)",
        "packet data 0 12d000000000000001",
        FRAME_ENCODING_ERROR,
    ),
    (
        "STREAMS_BLOCKED above 2^60 (§19.14)",
        "packet data 0 16d000000000000001",
        FRAME_ENCODING_ERROR,
    ),
];

/// Frames that are wrong by themselves (§12.4, §19), or that only servers send.
const FRAMES: [Case; 24] = [
    (
        "a type that there is not (§12.4)",
        "packet data 0 21",
        FRAME_ENCODING_ERROR,
    ),
    (
        "a type in more octets than it needs (§12.4: may be an error)",
        "packet data 0 4001",
        NOTHING,
    ),
    (
        "a packet without frames (§12.4)",
        "packet data 0",
        PROTOCOL_VIOLATION,
    ),
    (
        "STREAM that is longer than its packet (§12.4)",
        "packet data 0 0a00406461",
        FRAME_ENCODING_ERROR,
    ),
    (
        "MAX_DATA without its value (§12.4)",
        "packet data 0 10",
        FRAME_ENCODING_ERROR,
    ),
    (
        "ACK of a negative packet number (§19.3.1)",
        "packet data 0 020500000a",
        FRAME_ENCODING_ERROR,
    ),
    (
        "ACK with a gap below zero (§19.3.1)",
        "packet data 0 02050001000a00",
        FRAME_ENCODING_ERROR,
    ),
    (
        "ACK of what was not sent (§13.1)",
        "packet data 0 02bffffff0000000",
        PROTOCOL_VIOLATION,
    ),
    (
        "CRYPTO beyond 2^62 (§19.6)",
        "packet data 0 06ffffffffffffffff0161",
        CRYPTO_BUFFER_EXCEEDED,
    ),
    (
        "CRYPTO far ahead (§7.5)",
        "packet data 0 06bfffffff0161",
        CRYPTO_BUFFER_EXCEEDED,
    ),
    (
        "STREAM beyond 2^62 (§19.8)",
        "packet data 0 0e00ffffffffffffffff0161",
        FLOW_CONTROL_ERROR,
    ),
    (
        "NEW_TOKEN (§19.7)",
        "packet data 0 070161",
        PROTOCOL_VIOLATION,
    ),
    (
        "HANDSHAKE_DONE (§19.20)",
        "packet data 0 1e",
        PROTOCOL_VIOLATION,
    ),
    (
        "PATH_RESPONSE to nothing (§19.18: may be an error)",
        "packet data 0 1b0102030405060708",
        NOTHING,
    ),
    (
        "NEW_CONNECTION_ID that retires itself (§19.15)",
        "packet data 0 180207080102030405060708000102030405060708090a0b0c0d0e0f",
        FRAME_ENCODING_ERROR,
    ),
    (
        "NEW_CONNECTION_ID without an ID (§19.15)",
        "packet data 0 18090000000102030405060708090a0b0c0d0e0f",
        FRAME_ENCODING_ERROR,
    ),
    (
        "NEW_CONNECTION_ID with too long an ID (§19.15)",
        "packet data 0 180900150102030405060708090a0b0c0d0e0f101112131415000102030405060708090a0b0c0d0e0f",
        FRAME_ENCODING_ERROR,
    ),
    (
        "NEW_CONNECTION_ID beyond the limit (§5.1.1)",
        "packet data 0 181400080102030405060708000102030405060708090a0b0c0d0e0f",
        CONNECTION_ID_LIMIT_ERROR,
    ),
    (
        "NEW_CONNECTION_ID with a number that another ID has (§19.15: may be an error)",
        "brief packet data 0 180300080102030405060708000102030405060708090a0b0c0d0e0f",
        NOTHING,
    ),
    (
        "NEW_CONNECTION_ID of a client that has none (§19.15)",
        "no-ids 180100080102030405060708000102030405060708090a0b0c0d0e0f",
        PROTOCOL_VIOLATION,
    ),
    (
        "RETIRE_CONNECTION_ID of none (§19.16)",
        "packet data 0 197fff",
        PROTOCOL_VIOLATION,
    ),
    (
        "RETIRE_CONNECTION_ID of the packet's own (§19.16: may be an error)",
        "brief packet data 0 1900",
        SILENCE,
    ),
    (
        "TLS KeyUpdate (RFC 9001 §6)",
        "packet data 0 0600051800000100",
        UNEXPECTED_MESSAGE,
    ),
    (
        "new keys for an old packet number (RFC 9001 §6.4)",
        "old-number 01",
        KEY_UPDATE_ERROR,
    ),
];

/// What is not permitted in a type of packet (§12.4, §12.5), and reserved bits (§17).
const PACKETS: [Case; 25] = [
    (
        "an Initial without frames (§12.4)",
        "packet initial 0",
        PROTOCOL_VIOLATION,
    ),
    (
        "STREAM in an Initial",
        "packet initial 0 0a000161",
        PROTOCOL_VIOLATION,
    ),
    (
        "MAX_DATA in an Initial",
        "packet initial 0 104400",
        PROTOCOL_VIOLATION,
    ),
    (
        "PATH_CHALLENGE in an Initial",
        "packet initial 0 1a0102030405060708",
        PROTOCOL_VIOLATION,
    ),
    // quinn-proto takes it for a CONNECTION_CLOSE that is permitted here, and is silent from then on: §12.5 wants
    // PROTOCOL_VIOLATION. The same in a Handshake packet.
    (
        "CONNECTION_CLOSE of the application in an Initial",
        "brief packet initial 0 1d0000",
        SILENCE,
    ),
    (
        "HANDSHAKE_DONE in an Initial",
        "packet initial 0 1e",
        PROTOCOL_VIOLATION,
    ),
    (
        "ACK of what was not sent, in an Initial (§13.1)",
        "packet initial 0 02bffffff0000000",
        PROTOCOL_VIOLATION,
    ),
    (
        "CRYPTO in an Initial after its last (RFC 9001 §4.1.3)",
        "packet initial 0 06bfffffff0161",
        PROTOCOL_VIOLATION,
    ),
    (
        "reserved bits of an Initial (§17.2)",
        "packet initial 0c 01",
        PROTOCOL_VIOLATION,
    ),
    (
        "a Handshake packet without frames (§12.4)",
        "packet handshake 0",
        PROTOCOL_VIOLATION,
    ),
    (
        "STREAM in a Handshake packet",
        "packet handshake 0 0a000161",
        PROTOCOL_VIOLATION,
    ),
    (
        "NEW_CONNECTION_ID in a Handshake packet",
        "packet handshake 0 180100080102030405060708000102030405060708090a0b0c0d0e0f",
        PROTOCOL_VIOLATION,
    ),
    (
        "CONNECTION_CLOSE of the application in a Handshake packet",
        "brief packet handshake 0 1d0000",
        SILENCE,
    ),
    (
        "HANDSHAKE_DONE in a Handshake packet",
        "packet handshake 0 1e",
        PROTOCOL_VIOLATION,
    ),
    (
        "CRYPTO far ahead in a Handshake packet (§7.5)",
        "packet handshake 0 06bfffffff0161",
        CRYPTO_BUFFER_EXCEEDED,
    ),
    (
        "reserved bits of a Handshake packet (§17.2)",
        "packet handshake 0c 01",
        PROTOCOL_VIOLATION,
    ),
    (
        "a 0-RTT packet without frames (§12.4)",
        "packet early 0",
        PROTOCOL_VIOLATION,
    ),
    (
        "ACK of what was not sent, in a 0-RTT packet",
        "packet early 0 02bffffff0000000",
        PROTOCOL_VIOLATION,
    ),
    (
        "CRYPTO in a 0-RTT packet",
        "packet early 0 06000161",
        PROTOCOL_VIOLATION,
    ),
    (
        "NEW_TOKEN in a 0-RTT packet",
        "packet early 0 070161",
        PROTOCOL_VIOLATION,
    ),
    (
        "PATH_RESPONSE in a 0-RTT packet (§12.5: may be an error)",
        "packet early 0 1b0102030405060708",
        NOTHING,
    ),
    (
        "RETIRE_CONNECTION_ID in a 0-RTT packet (§12.5: may be an error)",
        "brief packet early 0 1900",
        SILENCE,
    ),
    // quinn-proto refuses it, and §12.4 permits it: it's an end anyway.
    (
        "CONNECTION_CLOSE of the application in a 0-RTT packet",
        "packet early 0 1d0000",
        PROTOCOL_VIOLATION,
    ),
    (
        "HANDSHAKE_DONE in a 0-RTT packet",
        "packet early 0 1e",
        PROTOCOL_VIOLATION,
    ),
    (
        "reserved bits of a 1-RTT packet (§17.3.1)",
        "packet data 18 01",
        PROTOCOL_VIOLATION,
    ),
];

/// Transport parameters (§7.3, §7.4, §18).
const PARAMETERS: [Case; 18] = [
    (
        "original_destination_connection_id, which only servers send (§18.2)",
        "parameters - 000401020304",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "stateless_reset_token, which only servers send (§18.2)",
        "parameters - 021000112233445566778899aabbccddeeff",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "preferred_address, which only servers send (§18.2)",
        "parameters - 0d2d7f0000011f90000000000000000000000000000000011f90040102030400112233445566778899aabbccddeeff",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "retry_source_connection_id, which only servers send (§18.2)",
        "parameters - 100401020304",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "no initial_source_connection_id (§7.3)",
        "parameters f",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "another initial_source_connection_id (§7.3)",
        "parameters f 0f0401020304",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "one of them twice (§7.4)",
        "parameters a 0a01030a0103",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "max_udp_payload_size below 1,200 (§18.2)",
        "parameters 3 030244af",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "initial_max_streams_bidi above 2^60 (§18.2)",
        "parameters 8 0808d000000000000001",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "initial_max_streams_uni above 2^60 (§18.2)",
        "parameters 9 0908d000000000000001",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "ack_delay_exponent above 20 (§18.2)",
        "parameters a 0a0115",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "max_ack_delay of 2^14 ms (§18.2)",
        "parameters b 0b0480004000",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "disable_active_migration with a value (§18.2)",
        "parameters c 0c0100",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "active_connection_id_limit below 2 (§18.2)",
        "parameters e 0e0101",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "a length beyond the end (§18)",
        "parameters 4 0408",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "a number that is shorter than its parameter (§18)",
        "parameters 1 01020500",
        TRANSPORT_PARAMETER_ERROR,
    ),
    (
        "none at all (RFC 9001 §8.2)",
        "parameters all",
        MISSING_EXTENSION,
    ),
    (
        "one that nobody knows (§7.4.2)",
        "parameters - 1b0161",
        NOTHING,
    ),
];

fn check(cases: &[Case]) {
    if let Err(reason) = Client::Aioquic.available() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    let subscriber = Client::Aioquic.subscribe(&broker, "calm", QoS::AtLeastOnce, 1);
    let lines: Vec<String> = cases.iter().map(|(_, line, _)| line.to_string()).collect();
    let answers = hostile::answers(&broker, &lines);
    let wrong: Vec<String> = cases
        .iter()
        .zip(&answers)
        .filter(|((_, _, due), answer)| due != answer)
        .map(|((what, line, due), answer)| format!("{what}: {answer}, not {due} ({line})"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let message = Message {
        topic: "calm",
        payload: "still here",
        qos: QoS::AtLeastOnce,
        retain: false,
    };
    Client::Aioquic.publish(&broker, message);
    assert_eq!(subscriber.messages(), ["still here"]);
}

#[test]
fn streams_and_flow_control() {
    check(&STREAMS);
}

#[test]
fn frames() {
    check(&FRAMES);
}

#[test]
fn frames_where_they_are_not_permitted() {
    check(&PACKETS);
}

#[test]
fn transport_parameters() {
    check(&PARAMETERS);
}
