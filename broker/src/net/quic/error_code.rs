//! Application error codes on CONNECTION_CLOSE, as the field has them.

use headgate_codec::ReasonCode;

/// Normal end.
pub const NORMAL: u32 = 0;
/// The control stream went down, or MQTT ended with an error.
pub const CONTROL_STREAM_DOWN: u32 = 1;
/// The server has no room.
pub const OVERLOADED: u32 = 2;

/// The code that goes with a reason of MQTT.
pub(super) fn application_error(reason: ReasonCode) -> u32 {
    match reason {
        ReasonCode::SUCCESS | ReasonCode::SERVER_SHUTTING_DOWN | ReasonCode::SESSION_TAKEN_OVER => {
            NORMAL
        }
        ReasonCode::SERVER_BUSY
        | ReasonCode::SERVER_UNAVAILABLE
        | ReasonCode::QUOTA_EXCEEDED
        | ReasonCode::MESSAGE_RATE_TOO_HIGH
        | ReasonCode::CONNECTION_RATE_EXCEEDED => OVERLOADED,
        _ => CONTROL_STREAM_DOWN,
    }
}
