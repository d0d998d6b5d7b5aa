//! The values of the store as bytes.
//!
//! Each begins with [`VALUE`], the version of how it is written. Lengths are in four octets, little-endian, as all
//! numbers in values; times are milliseconds since 1970. What is read may be damaged: reading never panics and
//! allocates no more than there are bytes. Checksums are the engine's.

use bytes::Bytes;
use headgate_codec::{PacketId, PublishProperties, QoS, Text, Version, Will};
use headgate_core::{Message, SessionId, Time};
use std::{
    fmt,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use super::keys;

/// How values are written. A program that meets another number refuses the store.
pub const VALUE: u8 = 1;

/// Why a value can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueError {
    /// A newer headgate wrote it.
    Newer(u8),
    /// It isn't what was written.
    Damaged(&'static str),
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer(format) => write!(
                f,
                "a value of format {format} (this headgate knows {VALUE}): a newer headgate wrote it; use that one"
            ),
            Self::Damaged(what) => write!(f, "a value that can't be read: {what}"),
        }
    }
}

impl std::error::Error for ValueError {}

/// Between the core's time, which counts from the start, and the calendar's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    start_unix_ms: u64,
}

impl Calendar {
    /// `start_unix_ms` is the core's zero.
    pub const fn new(start_unix_ms: u64) -> Self {
        Self { start_unix_ms }
    }

    /// For a core whose zero this was.
    pub fn of(start: Instant) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self::new(now.saturating_sub(start.elapsed()).as_millis() as u64)
    }

    fn unix_ms(self, time: Time) -> u64 {
        self.start_unix_ms.saturating_add(time.0)
    }

    /// What has passed before the start is due at the start.
    fn time(self, unix_ms: u64) -> Time {
        Time(unix_ms.saturating_sub(self.start_unix_ms))
    }
}

/// What `SessionOpened` says, and of which owner it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Client Identifier.
    pub client_id: Text,
    /// The owner's epoch.
    pub epoch: u32,
    /// Session Expiry Interval, seconds.
    pub expiry_s: u32,
    /// The client's version.
    pub version: Version,
    /// Messages with QoS > 0 that might be on their way.
    pub send_quota: u16,
    /// The record's sequence.
    pub sequence: u64,
    /// The connection's Will Message.
    pub will: Option<Box<Will>>,
}

/// What `SessionClosed` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// When the session ends; `None` = never.
    pub expires_at: Option<Time>,
    /// When the will is due; `None` = it is gone.
    pub will_at: Option<Time>,
    /// Sent up to this sequence.
    pub sent_up_to: u64,
    /// The record's sequence.
    pub sequence: u64,
}

/// A subscription without its filter, which is in the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// As on the wire.
    pub options: u8,
    /// Subscription Identifier.
    pub subscription_id: Option<u32>,
}

/// A queued message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// QoS for this session.
    pub qos: QoS,
    /// RETAIN for this session.
    pub retain: bool,
    /// Subscription Identifiers.
    pub ids: Option<Box<[u32]>>,
    /// Its Packet Identifier.
    pub packet_id: PacketId,
    /// Topic Filter of the Shared Subscription.
    pub group: Option<Text>,
    /// The message.
    pub message: Message,
}

/// Writes values.
#[derive(Debug)]
pub struct Writer {
    out: Vec<u8>,
    calendar: Calendar,
}

impl Writer {
    /// A value's beginning.
    pub fn new(calendar: Calendar) -> Self {
        Self {
            out: vec![VALUE],
            calendar,
        }
    }

    /// The value.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    /// See [`Opened`].
    pub fn opened(mut self, opened: &Opened) -> Vec<u8> {
        self.bytes(opened.client_id.as_bytes());
        self.u32(opened.epoch);
        self.u32(opened.expiry_s);
        self.out.push(match opened.version {
            Version::V31 => 3,
            Version::V311 => 4,
            Version::V5 => 5,
        });
        self.u16(opened.send_quota);
        self.u64(opened.sequence);
        self.out.push(u8::from(opened.will.is_some()));
        if let Some(will) = &opened.will {
            self.out
                .push(qos_bits(will.qos) | u8::from(will.retain) << 2);
            self.bytes(will.topic.as_bytes());
            self.bytes(&will.payload);
            self.option(will.delay_s, Self::u32);
            self.properties(will.properties.as_deref());
        }
        self.out
    }

    /// See [`Closed`].
    pub fn closed(mut self, closed: &Closed) -> Vec<u8> {
        self.time(closed.expires_at);
        self.time(closed.will_at);
        self.u64(closed.sent_up_to);
        self.u64(closed.sequence);
        self.out
    }

    /// See [`Subscription`].
    pub fn subscription(mut self, subscription: Subscription) -> Vec<u8> {
        self.out.push(subscription.options);
        self.option(subscription.subscription_id, Self::u32);
        self.out
    }

    /// See [`Queued`]; the parts are those of the record.
    pub fn queued(
        mut self,
        (qos, retain): (QoS, bool),
        ids: Option<&[u32]>,
        packet_id: PacketId,
        group: Option<&Text>,
        message: &Message,
    ) -> Vec<u8> {
        let flags = u8::from(ids.is_some()) << 3 | u8::from(group.is_some()) << 4;
        self.out.push(qos_bits(qos) | u8::from(retain) << 2 | flags);
        self.u16(packet_id.get());
        if let Some(ids) = ids {
            self.u32(ids.len() as u32);
            for id in ids {
                self.u32(*id);
            }
        }
        if let Some(group) = group {
            self.bytes(group.as_bytes());
        }
        self.message(message);
        self.out
    }

    /// A retained message.
    pub fn retained(mut self, message: &Message) -> Vec<u8> {
        self.message(message);
        self.out
    }

    /// A session id.
    pub fn id(mut self, session: SessionId) -> Vec<u8> {
        self.out.extend_from_slice(&keys::id(session));
        self.out
    }

    fn message(&mut self, message: &Message) {
        self.out
            .push(qos_bits(message.qos) | u8::from(message.retain) << 2);
        self.bytes(message.topic.as_bytes());
        self.bytes(&message.payload);
        self.time(message.expires_at);
        self.properties(message.properties.as_deref());
    }

    fn properties(&mut self, properties: Option<&PublishProperties>) {
        self.out.push(u8::from(properties.is_some()));
        let Some(properties) = properties else { return };
        self.option(properties.payload_format_utf8, |writer, utf8| {
            writer.out.push(u8::from(utf8));
        });
        self.option(properties.message_expiry_s, Self::u32);
        let bytes = |writer: &mut Self, bytes: &[u8]| writer.bytes(bytes);
        self.option(
            properties.response_topic.as_ref().map(Text::as_bytes),
            bytes,
        );
        self.option(properties.correlation_data.as_deref(), bytes);
        self.option(properties.content_type.as_ref().map(Text::as_bytes), bytes);
        self.u32(properties.user_properties.len() as u32);
        for (name, value) in &properties.user_properties {
            self.bytes(name.as_bytes());
            self.bytes(value.as_bytes());
        }
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.out.push(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn time(&mut self, time: Option<Time>) {
        let unix_ms = time.map(|time| self.calendar.unix_ms(time));
        self.option(unix_ms, Self::u64);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.out.extend_from_slice(bytes);
    }

    fn u16(&mut self, value: u16) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }
}

fn qos_bits(qos: QoS) -> u8 {
    match qos {
        QoS::AtMostOnce => 0,
        QoS::AtLeastOnce => 1,
        QoS::ExactlyOnce => 2,
    }
}

/// Reads values. Texts and payloads are slices of the value.
#[derive(Debug)]
pub struct Reader {
    rest: Bytes,
    calendar: Calendar,
}

type Read<T> = Result<T, ValueError>;

const SHORT: ValueError = ValueError::Damaged("it ends too soon");

impl Reader {
    /// # Errors
    /// [`ValueError::Newer`] if the value is of another version.
    pub fn new(value: Bytes, calendar: Calendar) -> Read<Self> {
        let mut reader = Self {
            rest: value,
            calendar,
        };
        match reader.u8()? {
            VALUE => Ok(reader),
            0 => Err(ValueError::Damaged("its version is 0")),
            other => Err(ValueError::Newer(other)),
        }
    }

    /// See [`Opened`].
    pub fn opened(mut self) -> Read<Opened> {
        let opened = Opened {
            client_id: self.text()?,
            epoch: self.u32()?,
            expiry_s: self.u32()?,
            version: match self.u8()? {
                3 => Version::V31,
                4 => Version::V311,
                5 => Version::V5,
                _ => return Err(ValueError::Damaged("no version of MQTT")),
            },
            send_quota: self.u16()?,
            sequence: self.u64()?,
            will: self.option(Self::will)?.map(Box::new),
        };
        self.end(opened)
    }

    fn will(&mut self) -> Read<Will> {
        let (qos, retain) = self.qos(self.rest.first().copied(), 0b111)?;
        self.u8()?;
        Ok(Will {
            qos,
            retain,
            topic: self.text()?,
            payload: self.bytes()?,
            delay_s: self.option(Self::u32)?,
            properties: self.properties()?,
        })
    }

    /// See [`Closed`].
    pub fn closed(mut self) -> Read<Closed> {
        let closed = Closed {
            expires_at: self.time()?,
            will_at: self.time()?,
            sent_up_to: self.u64()?,
            sequence: self.u64()?,
        };
        self.end(closed)
    }

    /// See [`Subscription`].
    pub fn subscription(mut self) -> Read<Subscription> {
        let subscription = Subscription {
            options: self.u8()?,
            subscription_id: self.option(Self::u32)?,
        };
        self.end(subscription)
    }

    /// See [`Queued`].
    pub fn queued(mut self) -> Read<Queued> {
        let flags = self.rest.first().copied();
        let (qos, retain) = self.qos(flags, 0b1_1111)?;
        let flags = self.u8()?;
        let packet_id = PacketId::new(self.u16()?);
        let packet_id = packet_id.ok_or(ValueError::Damaged("Packet Identifier 0"))?;
        let ids = match flags & 8 {
            0 => None,
            _ => {
                let count = self.u32()? as usize;
                let bytes = self.take(count.checked_mul(4).ok_or(SHORT)?)?;
                let (ids, _) = bytes.as_chunks();
                Some(ids.iter().map(|id| u32::from_le_bytes(*id)).collect())
            }
        };
        let group = match flags & 16 {
            0 => None,
            _ => Some(self.text()?),
        };
        let message = self.message()?;
        self.end(Queued {
            qos,
            retain,
            ids,
            packet_id,
            group,
            message,
        })
    }

    /// A retained message.
    pub fn retained(mut self) -> Read<Message> {
        let message = self.message()?;
        self.end(message)
    }

    /// A session id.
    pub fn id(self) -> Read<SessionId> {
        match keys::split(&self.rest) {
            Some((session, [])) => Ok(session),
            _ => Err(ValueError::Damaged("no session id")),
        }
    }

    fn message(&mut self) -> Read<Message> {
        let (qos, retain) = self.qos(self.rest.first().copied(), 0b111)?;
        self.u8()?;
        Ok(Message {
            topic: self.text()?,
            payload: self.bytes()?,
            qos,
            retain,
            expires_at: self.time()?,
            properties: self.properties()?,
        })
    }

    fn properties(&mut self) -> Read<Option<Box<PublishProperties>>> {
        self.option(|reader| {
            let mut properties = PublishProperties {
                payload_format_utf8: reader.option(Self::flag)?,
                message_expiry_s: reader.option(Self::u32)?,
                response_topic: reader.option(Self::text)?,
                correlation_data: reader.option(Self::bytes)?,
                content_type: reader.option(Self::text)?,
                ..PublishProperties::default()
            };
            for _ in 0..reader.u32()? {
                let pair = (reader.text()?, reader.text()?);
                properties.user_properties.push(pair);
            }
            Ok(Box::new(properties))
        })
    }

    fn qos(&self, flags: Option<u8>, known: u8) -> Read<(QoS, bool)> {
        let flags = flags.ok_or(SHORT)?;
        let qos = match flags & 3 {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            2 => QoS::ExactlyOnce,
            _ => return Err(ValueError::Damaged("no QoS")),
        };
        match flags & !known {
            0 => Ok((qos, flags & 4 != 0)),
            _ => Err(ValueError::Damaged("unknown flags")),
        }
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<Option<T>> {
        match self.flag()? {
            true => read(self).map(Some),
            false => Ok(None),
        }
    }

    fn flag(&mut self) -> Read<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ValueError::Damaged("neither yes nor no")),
        }
    }

    fn time(&mut self) -> Read<Option<Time>> {
        let calendar = self.calendar;
        let unix_ms = self.option(Self::u64)?;
        Ok(unix_ms.map(|unix_ms| calendar.time(unix_ms)))
    }

    fn text(&mut self) -> Read<Text> {
        Text::new(self.bytes()?).ok_or(ValueError::Damaged("no UTF-8 Encoded String"))
    }

    fn bytes(&mut self) -> Read<Bytes> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Read<Bytes> {
        match self.rest.len() < length {
            true => Err(SHORT),
            false => Ok(self.rest.split_to(length)),
        }
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let array = *self.rest.first_chunk().ok_or(SHORT)?;
        self.rest = self.rest.slice(N..);
        Ok(array)
    }

    fn u8(&mut self) -> Read<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Read<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn end<T>(self, value: T) -> Read<T> {
        match self.rest.is_empty() {
            true => Ok(value),
            false => Err(ValueError::Damaged("more bytes than there should be")),
        }
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
