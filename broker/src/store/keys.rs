//! The layout of the store: every key in one place. Numbers are big-endian, so that they sort.
//!
//! | table | key | value ([`codec`](super::codec)) |
//! |---|---|---|
//! | meta | `format` | version of this layout and of the values, 4 bytes |
//! | meta | `starts` | number of starts, 4 bytes |
//! | meta | 0, `synced` | that all that had been written before was on the disk by then |
//! | clients | Client Identifier | session id |
//! | sessions | session id, `1` | what `SessionOpened` says |
//! | sessions | session id, `2` | what `SessionClosed` says; absent while there is a connection |
//! | sessions | session id, `3`, Topic Filter | a subscription |
//! | sessions | session id, `4`, Packet Identifier | an incoming QoS 2 message, not released |
//! | queues | session id, sequence | a message |
//! | queues | session id, sequence, `1` | PUBREC has come for the message before |
//! | retained | Topic Name | a message |
//! | wills | an id like a session's | a message to be published once all sessions are there |
//!
//! A session id has 14 bytes: start number of the node, node, counter.

use headgate_codec::PacketId;
use headgate_core::SessionId;

/// Version of the layout and of the values.
pub const FORMAT: u32 = 1;

/// Key of the format's version.
pub const META_FORMAT: &[u8] = b"format";
/// Key of the number of starts.
pub const META_STARTS: &[u8] = b"starts";

/// Key of the note that all before it was synced. No other key is like it: a text of MQTT has no character 0, and what
/// begins with an id is longer.
pub const META_SYNCED: &[u8] = b"\0synced";

/// Bytes of a session id.
pub const ID_BYTES: usize = 14;

const OPENED: u8 = 1;
const CLOSED: u8 = 2;
const SUBSCRIPTION: u8 = 3;
const RECEIVED: u8 = 4;
const PUBREC: u8 = 1;

/// A session id as bytes.
pub fn id(session: SessionId) -> [u8; ID_BYTES] {
    let mut key = [0; ID_BYTES];
    key[..4].copy_from_slice(&session.epoch.to_be_bytes());
    key[4..6].copy_from_slice(&session.node.to_be_bytes());
    key[6..].copy_from_slice(&session.counter.to_be_bytes());
    key
}

/// The session id at the beginning of a key, and the rest of the key.
pub fn split(key: &[u8]) -> Option<(SessionId, &[u8])> {
    let (epoch, rest) = key.split_first_chunk()?;
    let (node, rest) = rest.split_first_chunk()?;
    let (counter, rest) = rest.split_first_chunk()?;
    let session = SessionId {
        node: u16::from_be_bytes(*node),
        epoch: u32::from_be_bytes(*epoch),
        counter: u64::from_be_bytes(*counter),
    };
    Some((session, rest))
}

fn part(session: SessionId, part: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(ID_BYTES + 1 + rest.len());
    key.extend_from_slice(&id(session));
    key.push(part);
    key.extend_from_slice(rest);
    key
}

/// What `SessionOpened` says.
pub fn opened(session: SessionId) -> Vec<u8> {
    part(session, OPENED, &[])
}

/// What `SessionClosed` says.
pub fn closed(session: SessionId) -> Vec<u8> {
    part(session, CLOSED, &[])
}

/// A subscription.
pub fn subscription(session: SessionId, filter: &str) -> Vec<u8> {
    part(session, SUBSCRIPTION, filter.as_bytes())
}

/// An incoming QoS 2 message.
pub fn received(session: SessionId, packet_id: PacketId) -> Vec<u8> {
    part(session, RECEIVED, &packet_id.get().to_be_bytes())
}

/// A queued message.
pub fn queued(session: SessionId, sequence: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(ID_BYTES + 8);
    key.extend_from_slice(&id(session));
    key.extend_from_slice(&sequence.to_be_bytes());
    key
}

/// That PUBREC has come for it.
pub fn pubrec(session: SessionId, sequence: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(ID_BYTES + 9);
    key.extend_from_slice(&id(session));
    key.extend_from_slice(&sequence.to_be_bytes());
    key.push(PUBREC);
    key
}

/// What a key of the table of sessions means, after the session id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionPart<'a> {
    /// `SessionOpened`.
    Opened,
    /// `SessionClosed`.
    Closed,
    /// A subscription; Topic Filter.
    Subscription(&'a [u8]),
    /// An incoming QoS 2 message.
    Received(PacketId),
}

impl<'a> SessionPart<'a> {
    /// Reads the rest of a key; `None` if it is none of ours.
    pub fn read(rest: &'a [u8]) -> Option<Self> {
        Some(match rest.split_first()? {
            (&OPENED, []) => Self::Opened,
            (&CLOSED, []) => Self::Closed,
            (&SUBSCRIPTION, filter) => Self::Subscription(filter),
            (&RECEIVED, &[high, low]) => {
                Self::Received(PacketId::new(u16::from_be_bytes([high, low]))?)
            }
            _ => return None,
        })
    }
}

/// A key of the table of queues after the session id: the sequence, and whether it is that of a PUBREC.
pub fn queue_part(rest: &[u8]) -> Option<(u64, bool)> {
    let (sequence, rest) = rest.split_first_chunk()?;
    match rest {
        [] => Some((u64::from_be_bytes(*sequence), false)),
        [PUBREC] => Some((u64::from_be_bytes(*sequence), true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId {
        node: 7,
        epoch: 9,
        counter: 1 << 60,
    };

    #[test]
    fn keys_say_what_they_are_of() {
        let id = PacketId::new(0x1234).expect("it isn't 0");
        for (key, part) in [
            (opened(SESSION), SessionPart::Opened),
            (closed(SESSION), SessionPart::Closed),
            (
                subscription(SESSION, "a/#"),
                SessionPart::Subscription(b"a/#"),
            ),
            (received(SESSION, id), SessionPart::Received(id)),
        ] {
            let (session, rest) = split(&key).expect("it begins with an id");
            assert_eq!((session, SessionPart::read(rest)), (SESSION, Some(part)));
        }
        for (key, part) in [
            (queued(SESSION, 5), (5, false)),
            (pubrec(SESSION, 5), (5, true)),
        ] {
            let (session, rest) = split(&key).expect("it begins with an id");
            assert_eq!((session, queue_part(rest)), (SESSION, Some(part)));
        }
        assert!(queued(SESSION, 255) < pubrec(SESSION, 255));
        assert!(pubrec(SESSION, 255) < queued(SESSION, 256));
        assert_eq!(SessionPart::read(&[9]), None);
        assert_eq!(split(&[0; 13]), None);
    }
}
