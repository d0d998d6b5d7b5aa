//! Which Reason Codes each packet has (§2.4, table 2-6), and what becomes of them in MQTT 3.x.

use crate::{ReasonCode, frame};

/// Whether packets of this type may carry `code`, in either direction.
pub(crate) const fn allowed(packet_type: u8, code: ReasonCode) -> bool {
    let code = code.0;
    match packet_type {
        // [MQTT-3.2.2-8]
        frame::CONNACK => matches!(
            code,
            0x00 | 0x80..=0x8a | 0x8c | 0x90 | 0x95 | 0x97 | 0x99..=0x9d | 0x9f
        ),
        // [MQTT-3.4.2-1] [MQTT-3.5.2-1]
        frame::PUBACK | frame::PUBREC => {
            matches!(
                code,
                0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99
            )
        }
        // [MQTT-3.6.2-1] [MQTT-3.7.2-1]
        frame::PUBREL | frame::PUBCOMP => matches!(code, 0x00 | 0x92),
        // [MQTT-3.9.3-2]
        frame::SUBACK => matches!(
            code,
            0x00..=0x02 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91 | 0x97 | 0x9e | 0xa1 | 0xa2
        ),
        // [MQTT-3.11.3-2]
        frame::UNSUBACK => matches!(code, 0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91),
        // [MQTT-3.14.2-1]
        frame::DISCONNECT => matches!(
            code,
            0x00 | 0x04 | 0x80..=0x83 | 0x87 | 0x89 | 0x8b..=0x90 | 0x93..=0xa2
        ),
        frame::AUTH => matches!(code, 0x00 | 0x18 | 0x19),
        _ => false,
    }
}

/// The Connect Return Code for a Connect Reason Code (3.1.1 §3.2.2.3).
pub(crate) const fn to_return_code(reason: ReasonCode) -> u8 {
    match reason {
        ReasonCode::SUCCESS => 0,
        ReasonCode::UNSUPPORTED_PROTOCOL_VERSION => 1,
        ReasonCode::CLIENT_IDENTIFIER_NOT_VALID => 2,
        ReasonCode::BAD_USER_NAME_OR_PASSWORD | ReasonCode::BAD_AUTHENTICATION_METHOD => 4,
        ReasonCode::NOT_AUTHORIZED | ReasonCode::BANNED => 5,
        // "Server unavailable" is the only code left for everything else.
        _ => 3,
    }
}

/// The Connect Reason Code for a Connect Return Code; `None` for the reserved ones.
pub(crate) const fn from_return_code(code: u8) -> Option<ReasonCode> {
    Some(match code {
        0 => ReasonCode::SUCCESS,
        1 => ReasonCode::UNSUPPORTED_PROTOCOL_VERSION,
        2 => ReasonCode::CLIENT_IDENTIFIER_NOT_VALID,
        3 => ReasonCode::SERVER_UNAVAILABLE,
        4 => ReasonCode::BAD_USER_NAME_OR_PASSWORD,
        5 => ReasonCode::NOT_AUTHORIZED,
        _ => return None,
    })
}
