//! The store as JSON lines, for `headgate store export` and `import`: one object per line, which says its `kind`.
//! Payloads and other bytes are base64, times milliseconds since 1970.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use headgate_codec::{PacketId, PublishProperties, QoS, Text, Version, Will};
use headgate_core::{Message, SessionId, Time};
use serde::{Deserialize, Serialize};

use super::{
    codec::{self, Calendar, Closed, Opened, Queued, Subscription, ValueError},
    engine::{Batch, Table},
    keys::{self, SessionPart},
};

/// Times in lines are the calendar's, and so are those of values that are read with this.
pub const CALENDAR: Calendar = Calendar::new(0);

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Line {
    /// The first line.
    Store {
        /// Version of the lines.
        format: u32,
        /// Who wrote them.
        by: String,
    },
    /// A session, as it was when a connection of it began.
    Session {
        /// Session id, hexadecimal.
        id: String,
        /// Client Identifier.
        client_id: String,
        /// Epoch of the session's owner.
        epoch: u32,
        /// Session Expiry Interval, seconds.
        expiry_s: u32,
        /// 3, 4 or 5.
        version: u8,
        /// Messages that may be on their way.
        send_quota: u16,
        /// Number of the record.
        sequence: u64,
        /// Will Message.
        will: Option<WillLine>,
    },
    /// The session has no connection.
    Closed {
        /// Session id.
        id: String,
        /// When it ends.
        expires_at_ms: Option<u64>,
        /// When its will is due.
        will_at_ms: Option<u64>,
        /// Sent up to here.
        sent_up_to: u64,
        /// Number of the record.
        sequence: u64,
    },
    /// A subscription.
    Subscription {
        /// Session id.
        id: String,
        /// Topic Filter.
        filter: String,
        /// As on the wire.
        options: u8,
        /// Subscription Identifier.
        subscription_id: Option<u32>,
    },
    /// An incoming QoS 2 message that isn't released.
    Received {
        /// Session id.
        id: String,
        /// Packet Identifier.
        packet_id: u16,
    },
    /// A queued message.
    Queued {
        /// Session id.
        id: String,
        /// Its place.
        sequence: u64,
        /// QoS for this session.
        qos: u8,
        /// RETAIN for this session.
        retain: bool,
        /// Subscription Identifiers.
        ids: Option<Vec<u32>>,
        /// Packet Identifier.
        packet_id: u16,
        /// Topic Filter of the Shared Subscription.
        group: Option<String>,
        /// The message.
        message: MessageLine,
    },
    /// PUBREC has come for a queued message.
    Pubrec {
        /// Session id.
        id: String,
        /// The message's place.
        sequence: u64,
    },
    /// A retained message.
    Retained {
        /// The message.
        message: MessageLine,
    },
    /// A will that is due and not published.
    Will {
        /// Its id, hexadecimal.
        id: String,
        /// The message.
        message: MessageLine,
    },
}

/// A message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageLine {
    topic: String,
    payload: String,
    qos: u8,
    retain: bool,
    expires_at_ms: Option<u64>,
    properties: Option<PropertiesLine>,
}

/// A Will Message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WillLine {
    topic: String,
    payload: String,
    qos: u8,
    retain: bool,
    delay_s: Option<u32>,
    properties: Option<PropertiesLine>,
}

/// Properties of a message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PropertiesLine {
    payload_format_utf8: Option<bool>,
    message_expiry_s: Option<u32>,
    response_topic: Option<String>,
    correlation_data: Option<String>,
    content_type: Option<String>,
    user_properties: Vec<(String, String)>,
}

/// The line of an entry; `None` for what is not written out, because it follows from the rest.
///
/// # Errors
/// The entry can't be read.
pub fn of_entry(table: Table, key: &[u8], value: &[u8]) -> Result<Option<Line>, ValueError> {
    let reader = || codec::Reader::new(Bytes::copy_from_slice(value), CALENDAR);
    let bad = ValueError::Damaged("no key of this table");
    let line = match table {
        Table::Meta => return Ok(None),
        Table::Clients => {
            reader()?.id()?;
            return Ok(None);
        }
        Table::Retained => Line::Retained {
            message: MessageLine::of(&reader()?.retained()?),
        },
        Table::Wills => match keys::split(key).ok_or(bad)? {
            (id, []) => Line::Will {
                id: hex(id),
                message: MessageLine::of(&reader()?.retained()?),
            },
            _ => return Err(bad),
        },
        Table::Queues => {
            let (session, rest) = keys::split(key).ok_or(bad)?;
            let id = hex(session);
            match keys::queue_part(rest).ok_or(bad)? {
                (sequence, true) => Line::Pubrec { id, sequence },
                (sequence, false) => queued(id, sequence, &reader()?.queued()?),
            }
        }
        Table::Sessions => {
            let (session, rest) = keys::split(key).ok_or(bad)?;
            let id = hex(session);
            match SessionPart::read(rest).ok_or(bad)? {
                SessionPart::Opened => opened(id, reader()?.opened()?),
                SessionPart::Closed => closed(id, reader()?.closed()?),
                SessionPart::Subscription(filter) => {
                    let filter = std::str::from_utf8(filter);
                    let of = reader()?.subscription()?;
                    Line::Subscription {
                        id,
                        filter: filter
                            .map_err(|_| ValueError::Damaged("a filter that is no text"))?
                            .to_owned(),
                        options: of.options,
                        subscription_id: of.subscription_id,
                    }
                }
                SessionPart::Received(packet_id) => Line::Received {
                    id,
                    packet_id: packet_id.get(),
                },
            }
        }
    };
    Ok(Some(line))
}

fn opened(id: String, opened: Opened) -> Line {
    Line::Session {
        id,
        client_id: opened.client_id.to_string(),
        epoch: opened.epoch,
        expiry_s: opened.expiry_s,
        version: match opened.version {
            Version::V31 => 3,
            Version::V311 => 4,
            Version::V5 => 5,
        },
        send_quota: opened.send_quota,
        sequence: opened.sequence,
        will: opened.will.map(|will| WillLine {
            topic: will.topic.to_string(),
            payload: BASE64_STANDARD.encode(&will.payload),
            qos: will.qos as u8,
            retain: will.retain,
            delay_s: will.delay_s,
            properties: will.properties.as_deref().map(PropertiesLine::of),
        }),
    }
}

fn closed(id: String, closed: Closed) -> Line {
    Line::Closed {
        id,
        expires_at_ms: closed.expires_at.map(|time| time.0),
        will_at_ms: closed.will_at.map(|time| time.0),
        sent_up_to: closed.sent_up_to,
        sequence: closed.sequence,
    }
}

fn queued(id: String, sequence: u64, queued: &Queued) -> Line {
    Line::Queued {
        id,
        sequence,
        qos: queued.qos as u8,
        retain: queued.retain,
        ids: queued.ids.as_deref().map(<[u32]>::to_vec),
        packet_id: queued.packet_id.get(),
        group: queued.group.as_ref().map(Text::to_string),
        message: MessageLine::of(&queued.message),
    }
}

impl MessageLine {
    fn of(message: &Message) -> Self {
        Self {
            topic: message.topic.to_string(),
            payload: BASE64_STANDARD.encode(&message.payload),
            qos: message.qos as u8,
            retain: message.retain,
            expires_at_ms: message.expires_at.map(|time| time.0),
            properties: message.properties.as_deref().map(PropertiesLine::of),
        }
    }

    fn message(self) -> Result<Message, String> {
        Ok(Message {
            topic: text(self.topic)?,
            payload: bytes(&self.payload)?,
            qos: qos(self.qos)?,
            retain: self.retain,
            expires_at: self.expires_at_ms.map(Time),
            properties: properties(self.properties)?,
        })
    }
}

impl PropertiesLine {
    fn of(properties: &PublishProperties) -> Self {
        let text = |text: &Text| text.to_string();
        let data = properties.correlation_data.as_ref();
        Self {
            payload_format_utf8: properties.payload_format_utf8,
            message_expiry_s: properties.message_expiry_s,
            response_topic: properties.response_topic.as_ref().map(text),
            correlation_data: data.map(|data| BASE64_STANDARD.encode(data)),
            content_type: properties.content_type.as_ref().map(text),
            user_properties: properties
                .user_properties
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
        }
    }
}

fn properties(line: Option<PropertiesLine>) -> Result<Option<Box<PublishProperties>>, String> {
    let Some(line) = line else { return Ok(None) };
    let pairs = line.user_properties.into_iter();
    let pairs = pairs.map(|(name, value)| Ok((text(name)?, text(value)?)));
    Ok(Some(Box::new(PublishProperties {
        payload_format_utf8: line.payload_format_utf8,
        message_expiry_s: line.message_expiry_s,
        response_topic: line.response_topic.map(text).transpose()?,
        correlation_data: line.correlation_data.as_deref().map(bytes).transpose()?,
        content_type: line.content_type.map(text).transpose()?,
        user_properties: pairs.collect::<Result<_, String>>()?,
        ..PublishProperties::default()
    })))
}

fn text(text: String) -> Result<Text, String> {
    let wrong = format!("{text:?} is no UTF-8 Encoded String of MQTT");
    Text::new(text.into()).ok_or(wrong)
}

fn bytes(base64: &str) -> Result<Bytes, String> {
    let bytes = BASE64_STANDARD.decode(base64);
    bytes
        .map(Bytes::from)
        .map_err(|error| format!("{base64:?} is no base64: {error}"))
}

fn qos(number: u8) -> Result<QoS, String> {
    match number {
        0 => Ok(QoS::AtMostOnce),
        1 => Ok(QoS::AtLeastOnce),
        2 => Ok(QoS::ExactlyOnce),
        other => Err(format!("QoS {other}")),
    }
}

fn packet_id(number: u16) -> Result<PacketId, String> {
    PacketId::new(number).ok_or_else(|| "Packet Identifier 0".to_owned())
}

fn hex(session: SessionId) -> String {
    let bytes = keys::id(session);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn session(hex: &str) -> Result<SessionId, String> {
    let digits = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(digits).collect();
    match bytes.as_deref().and_then(keys::split) {
        Some((session, [])) => Ok(session),
        _ => Err(format!("{hex:?} is no session id")),
    }
}

impl Line {
    /// Puts what the line stands for into a batch.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn put_into(self, batch: &mut Batch) -> Result<(), String> {
        let value = || codec::Writer::new(CALENDAR);
        match self {
            Self::Store { .. } => return Err("a second first line".to_owned()),
            session @ Self::Session { .. } => session.put_session(batch)?,
            message @ Self::Queued { .. } => message.put_queued(batch)?,
            Self::Closed {
                id,
                expires_at_ms,
                will_at_ms,
                sent_up_to,
                sequence,
            } => {
                let closed = Closed {
                    expires_at: expires_at_ms.map(Time),
                    will_at: will_at_ms.map(Time),
                    sent_up_to,
                    sequence,
                };
                let key = keys::closed(session(&id)?);
                batch.put(Table::Sessions, key, value().closed(&closed));
            }
            Self::Subscription {
                id,
                filter,
                options,
                subscription_id,
            } => {
                let key = keys::subscription(session(&id)?, text(filter)?.as_str());
                let subscription = Subscription {
                    options,
                    subscription_id,
                };
                batch.put(Table::Sessions, key, value().subscription(subscription));
            }
            Self::Received {
                id,
                packet_id: number,
            } => {
                let key = keys::received(session(&id)?, packet_id(number)?);
                batch.put(Table::Sessions, key, vec![codec::VALUE]);
            }
            Self::Pubrec { id, sequence } => {
                let key = keys::pubrec(session(&id)?, sequence);
                batch.put(Table::Queues, key, vec![codec::VALUE]);
            }
            Self::Will { id, message } => {
                let key = keys::id(session(&id)?).to_vec();
                batch.put(Table::Wills, key, value().retained(&message.message()?));
            }
            Self::Retained { message } => {
                let message = message.message()?;
                let key = message.topic.as_bytes().to_vec();
                batch.put(Table::Retained, key, value().retained(&message));
            }
        }
        Ok(())
    }

    fn put_session(self, batch: &mut Batch) -> Result<(), String> {
        let Self::Session {
            id,
            client_id,
            epoch,
            expiry_s,
            version,
            send_quota,
            sequence,
            will,
        } = self
        else {
            return Ok(());
        };
        let id = session(&id)?;
        let opened = Opened {
            client_id: text(client_id)?,
            epoch,
            expiry_s,
            version: match version {
                3 => Version::V31,
                4 => Version::V311,
                5 => Version::V5,
                other => return Err(format!("version {other} of MQTT")),
            },
            send_quota,
            sequence,
            will: will.map(WillLine::will).transpose()?,
        };
        let value = || codec::Writer::new(CALENDAR);
        let index = opened.client_id.as_bytes().to_vec();
        batch.put(Table::Clients, index, value().id(id));
        batch.put(Table::Sessions, keys::opened(id), value().opened(&opened));
        Ok(())
    }

    fn put_queued(self, batch: &mut Batch) -> Result<(), String> {
        let Self::Queued {
            id,
            sequence,
            qos: number,
            retain,
            ids,
            packet_id: packet,
            group,
            message,
        } = self
        else {
            return Ok(());
        };
        let group = group.map(text).transpose()?;
        let of = (qos(number)?, retain);
        let (packet, message) = (packet_id(packet)?, message.message()?);
        let value = codec::Writer::new(CALENDAR);
        let queued = value.queued(of, ids.as_deref(), packet, group.as_ref(), &message);
        batch.put(Table::Queues, keys::queued(session(&id)?, sequence), queued);
        Ok(())
    }
}

impl WillLine {
    fn will(self) -> Result<Box<Will>, String> {
        Ok(Box::new(Will {
            qos: qos(self.qos)?,
            retain: self.retain,
            topic: text(self.topic)?,
            payload: bytes(&self.payload)?,
            delay_s: self.delay_s,
            properties: properties(self.properties)?,
        }))
    }
}
