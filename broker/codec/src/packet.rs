//! The control packets and what they carry, in MQTT 5.0's terms. In 3.1 and 3.1.1 what the
//! version does not have is absent: no properties, reason codes mapped at the codec's edge.

use crate::Text;
use alloc::{boxed::Box, vec::Vec};
use bytes::Bytes;
use core::num::NonZeroU16;

/// Protocol Version (MQTT 5.0 §3.1.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Version {
    /// MQTT 3.1 (`MQIsdp`).
    V31 = 3,
    /// MQTT 3.1.1.
    V311 = 4,
    /// MQTT 5.0.
    V5 = 5,
}

/// Quality of Service (§4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum QoS {
    /// QoS 0.
    #[default]
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

/// Packet Identifier (§2.2.1): never zero \[MQTT-2.2.1-3\].
pub type PacketId = NonZeroU16;

/// Reason Code (§2.4): the octet on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReasonCode(pub u8);

/// A User Property: name and value.
pub type UserProperty = (Text, Text);

/// Any control packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// §3.1.
    Connect(Box<Connect>),
    /// §3.2.
    ConnAck(Box<ConnAck>),
    /// §3.3.
    Publish(Publish),
    /// §3.4.
    PubAck(Ack),
    /// §3.5.
    PubRec(Ack),
    /// §3.6.
    PubRel(Ack),
    /// §3.7.
    PubComp(Ack),
    /// §3.8.
    Subscribe(Box<Subscribe>),
    /// §3.9.
    SubAck(Box<SubAck>),
    /// §3.10.
    Unsubscribe(Box<Unsubscribe>),
    /// §3.11.
    UnsubAck(Box<SubAck>),
    /// §3.12.
    PingReq,
    /// §3.13.
    PingResp,
    /// §3.14.
    Disconnect(Disconnect),
    /// §3.15 (MQTT 5.0 only).
    Auth(Box<Auth>),
}

/// CONNECT (§3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Protocol Version.
    pub version: Version,
    /// Clean Start (5.0) or Clean Session (3.x).
    pub clean_start: bool,
    /// Keep Alive, seconds; 0 = off.
    pub keep_alive_s: u16,
    /// Client Identifier; may be empty.
    pub client_id: Text,
    /// Will Message.
    pub will: Option<Will>,
    /// User Name.
    pub user_name: Option<Text>,
    /// Password.
    pub password: Option<Bytes>,
    /// Properties.
    pub properties: ConnectProperties,
}

/// CONNECT Properties (§3.1.2.11).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ConnectProperties {
    /// Session Expiry Interval, seconds. Absent = 0; `u32::MAX` = never.
    pub session_expiry_s: Option<u32>,
    /// Receive Maximum; never 0. Absent = 65,535.
    pub receive_maximum: Option<u16>,
    /// Maximum Packet Size, bytes; never 0.
    pub maximum_packet_size: Option<u32>,
    /// Topic Alias Maximum. Absent = 0.
    pub topic_alias_maximum: Option<u16>,
    /// Request Response Information. Absent = false.
    pub request_response_information: Option<bool>,
    /// Request Problem Information. Absent = true.
    pub request_problem_information: Option<bool>,
    /// User Properties, in order.
    pub user_properties: Vec<UserProperty>,
    /// Authentication Method.
    pub authentication_method: Option<Text>,
    /// Authentication Data.
    pub authentication_data: Option<Bytes>,
}

/// Will Message (§3.1.2.5, §3.1.3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// Will QoS.
    pub qos: QoS,
    /// Will Retain.
    pub retain: bool,
    /// Will Topic.
    pub topic: Text,
    /// Will Payload.
    pub payload: Bytes,
    /// Will Delay Interval, seconds. Absent = 0.
    pub delay_s: Option<u32>,
    /// The properties that the published message will carry.
    pub properties: Option<Box<PublishProperties>>,
}

/// CONNACK (§3.2).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ConnAck {
    /// Session Present.
    pub session_present: bool,
    /// Connect Reason Code. For 3.x the encoder maps it to a return code (3.1.1 §3.2.2.3).
    pub reason: ReasonCode,
    /// Properties (5.0).
    pub properties: ConnAckProperties,
}

/// CONNACK Properties (§3.2.2.3).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ConnAckProperties {
    /// Session Expiry Interval, seconds.
    pub session_expiry_s: Option<u32>,
    /// Receive Maximum.
    pub receive_maximum: Option<u16>,
    /// Maximum QoS, if below 2.
    pub maximum_qos: Option<QoS>,
    /// Retain Available, if it isn't.
    pub retain_available: Option<bool>,
    /// Maximum Packet Size, bytes.
    pub maximum_packet_size: Option<u32>,
    /// Assigned Client Identifier.
    pub assigned_client_id: Option<Text>,
    /// Topic Alias Maximum.
    pub topic_alias_maximum: Option<u16>,
    /// Reason String.
    pub reason_string: Option<Text>,
    /// User Properties.
    pub user_properties: Vec<UserProperty>,
    /// Wildcard Subscription Available.
    pub wildcard_subscription_available: Option<bool>,
    /// Subscription Identifiers Available.
    pub subscription_identifiers_available: Option<bool>,
    /// Shared Subscription Available.
    pub shared_subscription_available: Option<bool>,
    /// Server Keep Alive, seconds.
    pub server_keep_alive_s: Option<u16>,
    /// Response Information.
    pub response_information: Option<Text>,
    /// Server Reference.
    pub server_reference: Option<Text>,
    /// Authentication Method.
    pub authentication_method: Option<Text>,
    /// Authentication Data.
    pub authentication_data: Option<Bytes>,
}

/// PUBLISH (§3.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// DUP flag.
    pub dup: bool,
    /// QoS.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
    /// Topic Name; empty only with a Topic Alias.
    pub topic: Text,
    /// Packet Identifier; present exactly when QoS > 0 (§2.2.1).
    pub packet_id: Option<PacketId>,
    /// Properties; `None` when there are none, so that the common PUBLISH allocates nothing.
    pub properties: Option<Box<PublishProperties>>,
    /// Application Message.
    pub payload: Bytes,
}

/// PUBLISH and Will Properties (§3.3.2.3, §3.1.3.2).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PublishProperties {
    /// Payload Format Indicator: payload is UTF-8.
    pub payload_format_utf8: Option<bool>,
    /// Message Expiry Interval, seconds.
    pub message_expiry_s: Option<u32>,
    /// Topic Alias; never 0. Not in a Will.
    pub topic_alias: Option<NonZeroU16>,
    /// Response Topic.
    pub response_topic: Option<Text>,
    /// Correlation Data.
    pub correlation_data: Option<Bytes>,
    /// User Properties, in order \[MQTT-3.3.2-18\].
    pub user_properties: Vec<UserProperty>,
    /// Subscription Identifiers (server to client only).
    pub subscription_ids: Vec<u32>,
    /// Content Type.
    pub content_type: Option<Text>,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP (§3.4–3.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Packet Identifier.
    pub packet_id: PacketId,
    /// Reason Code; 0 where the version has none.
    pub reason: ReasonCode,
    /// Reason String and User Properties, if any.
    pub properties: Option<Box<ReasonProperties>>,
}

/// The properties that every acknowledgement may carry.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ReasonProperties {
    /// Reason String.
    pub reason_string: Option<Text>,
    /// User Properties.
    pub user_properties: Vec<UserProperty>,
}

/// SUBSCRIBE (§3.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// Packet Identifier.
    pub packet_id: PacketId,
    /// Subscription Identifier, 1 to 268,435,455.
    pub subscription_id: Option<u32>,
    /// User Properties.
    pub user_properties: Vec<UserProperty>,
    /// Topic Filters with their options; at least one \[MQTT-3.8.3-2\].
    pub filters: Vec<(Text, SubscriptionOptions)>,
}

/// Subscription Options (§3.8.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SubscriptionOptions {
    /// Maximum QoS.
    pub qos: QoS,
    /// No Local.
    pub no_local: bool,
    /// Retain As Published.
    pub retain_as_published: bool,
    /// Retain Handling: 0 send, 1 send if new, 2 don't send.
    pub retain_handling: u8,
}

/// SUBACK (§3.9) or UNSUBACK (§3.11; in 3.x without reason codes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubAck {
    /// Packet Identifier.
    pub packet_id: PacketId,
    /// Reason String and User Properties.
    pub properties: ReasonProperties,
    /// One Reason Code per Topic Filter, in order \[MQTT-3.9.3-1\].
    pub reasons: Vec<ReasonCode>,
}

/// UNSUBSCRIBE (§3.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Packet Identifier.
    pub packet_id: PacketId,
    /// User Properties.
    pub user_properties: Vec<UserProperty>,
    /// Topic Filters; at least one \[MQTT-3.10.3-2\].
    pub filters: Vec<Text>,
}

/// DISCONNECT (§3.14).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Disconnect {
    /// Disconnect Reason Code.
    pub reason: ReasonCode,
    /// Properties, if any.
    pub properties: Option<Box<DisconnectProperties>>,
}

/// DISCONNECT Properties (§3.14.2.2).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DisconnectProperties {
    /// Session Expiry Interval, seconds (client to server only).
    pub session_expiry_s: Option<u32>,
    /// Reason String.
    pub reason_string: Option<Text>,
    /// User Properties.
    pub user_properties: Vec<UserProperty>,
    /// Server Reference.
    pub server_reference: Option<Text>,
}

/// AUTH (§3.15).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Auth {
    /// Authenticate Reason Code: 0x00, 0x18 or 0x19.
    pub reason: ReasonCode,
    /// Authentication Method.
    pub authentication_method: Option<Text>,
    /// Authentication Data.
    pub authentication_data: Option<Bytes>,
    /// Reason String.
    pub reason_string: Option<Text>,
    /// User Properties.
    pub user_properties: Vec<UserProperty>,
}

macro_rules! reason_codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        impl ReasonCode {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The name in the standard's table 2-6, if it has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($value => Some(stringify!($name)),)* _ => None }
            }
        }
    };
}

reason_codes! {
    /// Success, Normal disconnection or Granted QoS 0.
    SUCCESS = 0x00,
    /// Granted QoS 1.
    GRANTED_QOS_1 = 0x01,
    /// Granted QoS 2.
    GRANTED_QOS_2 = 0x02,
    /// Disconnect with Will Message.
    DISCONNECT_WITH_WILL = 0x04,
    /// No matching subscribers.
    NO_MATCHING_SUBSCRIBERS = 0x10,
    /// No subscription existed.
    NO_SUBSCRIPTION_EXISTED = 0x11,
    /// Continue authentication.
    CONTINUE_AUTHENTICATION = 0x18,
    /// Re-authenticate.
    RE_AUTHENTICATE = 0x19,
    /// Unspecified error.
    UNSPECIFIED_ERROR = 0x80,
    /// Malformed Packet.
    MALFORMED_PACKET = 0x81,
    /// Protocol Error.
    PROTOCOL_ERROR = 0x82,
    /// Implementation specific error.
    IMPLEMENTATION_SPECIFIC = 0x83,
    /// Unsupported Protocol Version.
    UNSUPPORTED_PROTOCOL_VERSION = 0x84,
    /// Client Identifier not valid.
    CLIENT_IDENTIFIER_NOT_VALID = 0x85,
    /// Bad User Name or Password.
    BAD_USER_NAME_OR_PASSWORD = 0x86,
    /// Not authorized.
    NOT_AUTHORIZED = 0x87,
    /// Server unavailable.
    SERVER_UNAVAILABLE = 0x88,
    /// Server busy.
    SERVER_BUSY = 0x89,
    /// Banned.
    BANNED = 0x8a,
    /// Server shutting down.
    SERVER_SHUTTING_DOWN = 0x8b,
    /// Bad authentication method.
    BAD_AUTHENTICATION_METHOD = 0x8c,
    /// Keep Alive timeout.
    KEEP_ALIVE_TIMEOUT = 0x8d,
    /// Session taken over.
    SESSION_TAKEN_OVER = 0x8e,
    /// Topic Filter invalid.
    TOPIC_FILTER_INVALID = 0x8f,
    /// Topic Name invalid.
    TOPIC_NAME_INVALID = 0x90,
    /// Packet Identifier in use.
    PACKET_IDENTIFIER_IN_USE = 0x91,
    /// Packet Identifier not found.
    PACKET_IDENTIFIER_NOT_FOUND = 0x92,
    /// Receive Maximum exceeded.
    RECEIVE_MAXIMUM_EXCEEDED = 0x93,
    /// Topic Alias invalid.
    TOPIC_ALIAS_INVALID = 0x94,
    /// Packet too large.
    PACKET_TOO_LARGE = 0x95,
    /// Message rate too high.
    MESSAGE_RATE_TOO_HIGH = 0x96,
    /// Quota exceeded.
    QUOTA_EXCEEDED = 0x97,
    /// Administrative action.
    ADMINISTRATIVE_ACTION = 0x98,
    /// Payload format invalid.
    PAYLOAD_FORMAT_INVALID = 0x99,
    /// Retain not supported.
    RETAIN_NOT_SUPPORTED = 0x9a,
    /// QoS not supported.
    QOS_NOT_SUPPORTED = 0x9b,
    /// Use another server.
    USE_ANOTHER_SERVER = 0x9c,
    /// Server moved.
    SERVER_MOVED = 0x9d,
    /// Shared Subscriptions not supported.
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9e,
    /// Connection rate exceeded.
    CONNECTION_RATE_EXCEEDED = 0x9f,
    /// Maximum connect time.
    MAXIMUM_CONNECT_TIME = 0xa0,
    /// Subscription Identifiers not supported.
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xa1,
    /// Wildcard Subscriptions not supported.
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xa2,
}

impl core::fmt::Debug for ReasonCode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name}({:#04x})", self.0),
            None => write!(f, "{:#04x}", self.0),
        }
    }
}
