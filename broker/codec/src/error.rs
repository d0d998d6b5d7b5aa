//! What can be wrong with received bytes, and the Reason Code to answer with.

use crate::ReasonCode;
use core::fmt;

/// Why received bytes are not an acceptable control packet. Always the peer's fault: close the
/// network connection with [`reason`](Self::reason) \[MQTT-4.13.1-1\].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DecodeError {
    /// A packet type that the version doesn't have (§2.1.2).
    PacketType(u8),
    /// Flags of the fixed header that the packet type doesn't allow \[MQTT-2.1.3-1\].
    FixedHeaderFlags {
        /// The first octet of the packet.
        first_octet: u8,
    },
    /// DUP is set in a PUBLISH with QoS 0 \[MQTT-3.3.1-2\].
    DupWithQos0,
    /// A QoS of 3 where that makes the packet malformed \[MQTT-3.3.1-4\] \[MQTT-3.1.2-12\].
    Qos3,
    /// A Variable Byte Integer of more than four bytes, or longer than its value needs (§1.5.5).
    VariableByteInteger,
    /// The packet exceeds the Maximum Packet Size (§3.1.2.11.4).
    TooLarge {
        /// Length of the packet, bytes.
        len: usize,
        /// What was allowed, bytes.
        maximum: u32,
    },
    /// A field runs past the end of the packet.
    Truncated,
    /// Bytes follow the last field.
    TrailingBytes,
    /// A string isn't UTF-8 or contains U+0000 \[MQTT-1.5.4-1\] \[MQTT-1.5.4-2\].
    NotUtf8,
    /// The first packet isn't a CONNECT \[MQTT-3.1.0-1\].
    ExpectedConnect,
    /// A CONNECT on a connection that has one \[MQTT-3.1.0-2\].
    SecondConnect,
    /// The Protocol Name isn't known \[MQTT-3.1.2-1\].
    ProtocolName,
    /// The Protocol Version isn't known, or doesn't go with the name \[MQTT-3.1.2-2\].
    ProtocolVersion(u8),
    /// A combination of flags that CONNECT or CONNACK doesn't allow
    /// \[MQTT-3.1.2-3\] \[MQTT-3.2.2-1\].
    ReservedFlags(u8),
    /// Packet Identifier 0 \[MQTT-2.2.1-3\].
    ZeroPacketId,
    /// A property that the packet type doesn't have, or that doesn't exist (§2.2.2.2).
    InvalidProperty(u8),
    /// A property that may appear once appears twice.
    DuplicateProperty(u8),
    /// A property has a value that the standard excludes.
    PropertyValue(u8),
    /// A Topic Alias of 0 \[MQTT-3.3.2-8\].
    TopicAliasZero,
    /// Authentication Data without an Authentication Method (§3.1.2.11.10), or AUTH without it.
    AuthenticationMethodMissing,
    /// PUBLISH with neither Topic Name nor Topic Alias (§3.3.2.1).
    NoTopic,
    /// SUBSCRIBE or UNSUBSCRIBE without a Topic Filter \[MQTT-3.8.3-2\] \[MQTT-3.10.3-2\], or
    /// an acknowledgement of them without a Reason Code.
    EmptyPayload,
    /// A reserved bit of the Subscription Options is set \[MQTT-3.8.3-5\].
    SubscriptionOptionsReserved(u8),
    /// Maximum QoS or Retain Handling of the Subscription Options is 3 (§3.8.3.1).
    SubscriptionOptions(u8),
    /// No Local on a Shared Subscription \[MQTT-3.8.3-4\].
    NoLocalShared,
    /// A Reason Code (3.x: return code) that the packet type doesn't have (§2.4).
    ReasonCode(ReasonCode),
    /// Session Present together with a refusal \[MQTT-3.2.2-6\].
    SessionPresentInRefusal,
}

impl DecodeError {
    /// The Reason Code for the CONNACK or DISCONNECT (§4.13).
    pub const fn reason(&self) -> ReasonCode {
        match self {
            Self::TooLarge { .. } => ReasonCode::PACKET_TOO_LARGE,
            Self::ProtocolName | Self::ProtocolVersion(_) => {
                ReasonCode::UNSUPPORTED_PROTOCOL_VERSION
            }
            Self::TopicAliasZero => ReasonCode::TOPIC_ALIAS_INVALID,
            Self::ExpectedConnect
            | Self::SecondConnect
            | Self::ZeroPacketId
            | Self::DuplicateProperty(_)
            | Self::PropertyValue(_)
            | Self::AuthenticationMethodMissing
            | Self::NoTopic
            | Self::EmptyPayload
            | Self::SubscriptionOptions(_)
            | Self::NoLocalShared
            | Self::ReasonCode(_)
            | Self::SessionPresentInRefusal => ReasonCode::PROTOCOL_ERROR,
            Self::PacketType(_)
            | Self::FixedHeaderFlags { .. }
            | Self::DupWithQos0
            | Self::Qos3
            | Self::VariableByteInteger
            | Self::Truncated
            | Self::TrailingBytes
            | Self::NotUtf8
            | Self::ReservedFlags(_)
            | Self::InvalidProperty(_)
            | Self::SubscriptionOptionsReserved(_) => ReasonCode::MALFORMED_PACKET,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::PacketType(t) => write!(f, "the peer sent packet type {t}, which is reserved"),
            Self::FixedHeaderFlags { first_octet } => {
                write!(
                    f,
                    "the peer set reserved flags in the fixed header ({first_octet:#04x})"
                )
            }
            Self::DupWithQos0 => f.write_str("the peer set DUP in a PUBLISH with QoS 0"),
            Self::Qos3 => f.write_str("the peer sent a QoS of 3"),
            Self::VariableByteInteger => {
                f.write_str("the peer sent a Variable Byte Integer that is too long")
            }
            Self::TooLarge { len, maximum } => {
                write!(
                    f,
                    "the peer sent a packet of {len} bytes; {maximum} are allowed"
                )
            }
            Self::Truncated => f.write_str("a field runs past the end of the peer's packet"),
            Self::TrailingBytes => f.write_str("bytes follow the last field of the peer's packet"),
            Self::NotUtf8 => f.write_str("the peer sent a string that is not UTF-8 or has U+0000"),
            Self::ExpectedConnect => f.write_str("the peer's first packet is not a CONNECT"),
            Self::SecondConnect => f.write_str("the peer sent a second CONNECT"),
            Self::ProtocolName => f.write_str("the peer's Protocol Name is not MQTT or MQIsdp"),
            Self::ProtocolVersion(v) => {
                write!(
                    f,
                    "the peer wants Protocol Version {v}; 3, 4 and 5 are known"
                )
            }
            Self::ReservedFlags(flags) => {
                write!(
                    f,
                    "the peer sent flags {flags:#04x}, a combination that is not allowed"
                )
            }
            Self::ZeroPacketId => f.write_str("the peer sent Packet Identifier 0"),
            Self::InvalidProperty(id) => {
                write!(
                    f,
                    "the peer sent property {id:#04x}, which this packet doesn't have"
                )
            }
            Self::DuplicateProperty(id) => {
                write!(f, "the peer sent property {id:#04x} more than once")
            }
            Self::PropertyValue(id) => {
                write!(
                    f,
                    "the peer sent property {id:#04x} with a value that is not allowed"
                )
            }
            Self::TopicAliasZero => f.write_str("the peer sent Topic Alias 0"),
            Self::AuthenticationMethodMissing => {
                f.write_str("the peer sent authentication without an Authentication Method")
            }
            Self::NoTopic => {
                f.write_str("the peer sent a PUBLISH with neither Topic Name nor Topic Alias")
            }
            Self::EmptyPayload => {
                f.write_str("the peer sent a packet without the entries that it needs")
            }
            Self::SubscriptionOptionsReserved(o) => {
                write!(
                    f,
                    "the peer set reserved bits in Subscription Options ({o:#04x})"
                )
            }
            Self::SubscriptionOptions(o) => {
                write!(
                    f,
                    "the peer sent Subscription Options {o:#04x}, which are not allowed"
                )
            }
            Self::NoLocalShared => f.write_str("the peer set No Local on a Shared Subscription"),
            Self::ReasonCode(code) => {
                write!(
                    f,
                    "the peer sent Reason Code {code:?}, which this packet doesn't have"
                )
            }
            Self::SessionPresentInRefusal => {
                f.write_str("the peer set Session Present in a CONNACK that refuses")
            }
        }
    }
}

impl core::error::Error for DecodeError {}
