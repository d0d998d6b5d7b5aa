//! Reason Strings (MQTT 5.0 §3.14.2.2.3): what a Reason Code means here, for whoever reads the client's log.

use headgate_codec::ReasonCode;

/// What to tell a client besides the Reason Code; `None` where the code says it all.
pub(crate) fn explain(reason: ReasonCode) -> Option<&'static str> {
    Some(match reason {
        ReasonCode::MALFORMED_PACKET => "a packet could not be decoded",
        ReasonCode::PROTOCOL_ERROR => "a packet was not allowed at this point",
        ReasonCode::NOT_AUTHORIZED => "not allowed by the broker's configuration",
        ReasonCode::SERVER_BUSY => "the broker is busy; come back later",
        ReasonCode::SERVER_SHUTTING_DOWN => "the broker shuts down; come back later",
        ReasonCode::KEEP_ALIVE_TIMEOUT => "nothing was heard for 1.5 times the Keep Alive",
        ReasonCode::SESSION_TAKEN_OVER => "another connection uses the same Client Identifier",
        ReasonCode::TOPIC_FILTER_INVALID => {
            "a Topic Filter has a wildcard or a character in a wrong place"
        }
        ReasonCode::TOPIC_NAME_INVALID => "a Topic Name has a wildcard or too many levels",
        ReasonCode::RECEIVE_MAXIMUM_EXCEEDED => {
            "more QoS 1 and 2 messages at once than the Receive Maximum"
        }
        ReasonCode::TOPIC_ALIAS_INVALID => "a Topic Alias above the Topic Alias Maximum",
        ReasonCode::PACKET_TOO_LARGE => "a packet above the Maximum Packet Size",
        ReasonCode::QUOTA_EXCEEDED => "a limit of the broker's configuration is reached",
        _ => return None,
    })
}
