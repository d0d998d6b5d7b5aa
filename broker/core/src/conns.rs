//! Connections: a slab by the driver's index, small enough for a million.

use bytes::Bytes;
use headgate_codec::{Packet, PacketId, ReasonCode};
use std::collections::VecDeque;

use crate::{
    ConnId, DataEnd, DataStream, OpId, Time, auth::AuthState, early, quota::Meter, restore,
};

/// What a connection is to the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum State {
    /// Not one of the core's (any more).
    #[default]
    Free,
    /// Open; CONNECT hasn't come.
    New,
    /// CONNECT has come; it is being found out whose it is.
    Authenticating,
    /// CONNECT has come; the place in the session slab that is reserved for it.
    Connecting(u32),
    /// CONNACK was sent; its session's place.
    Up(u32),
}

impl State {
    /// Whether the connection counts as one of its quota class.
    pub(crate) fn is_counted(self) -> bool {
        matches!(self, Self::Connecting(_) | Self::Up(_))
    }
}

/// A connection.
#[derive(Debug, Default)]
pub(crate) struct Conn {
    pub(crate) generation: u32,
    pub(crate) state: State,
    /// The last packet, or the opening.
    pub(crate) last_seen: Time,
    /// Milliseconds of silence after which it is closed; before CONNECT is completed
    /// `connect_timeout_s` counts instead. At most 1.5 × 65,535 s, or the ceiling.
    pub(crate) silence_ms_max: u64,
    /// The earliest timer that will fire for it.
    pub(crate) armed: Time,
    /// PUBLISH packets with QoS > 0 that the client has open (§4.9).
    pub(crate) open_publishes: u16,
    /// Reasons for not reading from it.
    pub(crate) paused: u8,
    /// Quota class of its client, as the authentication or the listener says; 0 = the default one.
    pub(crate) quota_class: u8,
    /// The handshake is not complete: see [`crate::early`].
    pub(crate) early: bool,
    /// It may have data streams.
    pub(crate) is_quic: bool,
    /// Datagrams of the client are taken.
    pub(crate) datagrams: bool,
    /// Some of `acks` are of data streams.
    pub(crate) acks_on_streams: bool,
    /// Serial of the next acknowledgement.
    pub(crate) ack_serial: u32,
    #[expect(
        clippy::box_collection,
        reason = "most connections never have one: 8 bytes, not 32"
    )]
    pub(crate) acks: Option<Box<VecDeque<PendingAck>>>,
    pub(crate) held: Option<Box<HeldInputs>>,
    pub(crate) auth: Option<Box<AuthState>>,
    /// What the client owes, where its quota class has rates.
    pub(crate) meter: Option<Box<Meter>>,
}

impl Conn {
    /// Packets of it wait.
    pub(crate) fn has_held(&self) -> bool {
        self.held.as_ref().is_some_and(|h| !h.inputs.is_empty())
    }

    /// The reason for which a packet has to wait, and nothing more is read.
    #[inline]
    pub(crate) fn waits_for(&self, is_restoring: bool, packet: &Packet) -> Option<u8> {
        if self.early && early::must_wait(self, packet) {
            return Some(PAUSED_EARLY);
        }
        let is_restoring = is_restoring || self.paused & PAUSED_RESTORING != 0;
        (is_restoring && restore::must_wait(self, packet)).then_some(PAUSED_RESTORING)
    }
}

/// CONNECT is being completed.
pub(crate) const PAUSED_CONNECTING: u8 = 1;
/// The client doesn't take what it has asked for.
pub(crate) const PAUSED_UNSENT: u8 = 2;
/// Acknowledgements wait for storage.
pub(crate) const PAUSED_ACKS: u8 = 4;
/// The client has published more than its quota class may.
pub(crate) const PAUSED_QUOTA: u8 = 8;
/// Something waits until the handshake is complete.
pub(crate) const PAUSED_EARLY: u8 = 16;
/// Something waits until the sessions of an earlier run are there.
pub(crate) const PAUSED_RESTORING: u8 = 32;

/// A subscriber's queue is full, and its class makes publishers wait.
pub(crate) const PAUSED_BLOCKED: u8 = 64;

/// What came before CONNECT, the handshake or the restoring was completed.
#[derive(Debug, Default)]
pub(crate) struct HeldInputs {
    pub(crate) inputs: VecDeque<HeldInput>,
    pub(crate) bytes: usize,
}

/// What waits, in its order.
#[derive(Debug)]
pub(crate) enum HeldInput {
    /// A packet, and where it came; `None` = on the control stream.
    Packet(Option<DataStream>, Packet),
    /// The end of a data stream.
    DataEnded(DataStream, DataEnd),
}

/// An acknowledgement that waits, and those behind it with it: they leave in order.
#[derive(Debug)]
pub(crate) struct PendingAck {
    /// The last Persist that it waits for; 0 = none.
    pub(crate) op: OpId,
    /// Weight of the deliveries whose receivers haven't said that they have recorded the message.
    pub(crate) remote: u32,
    /// One of them couldn't.
    pub(crate) failed: bool,
    /// Where it leaves; `None` = the control stream.
    pub(crate) stream: Option<DataStream>,
    pub(crate) body: AckBody,
}

/// What to send.
#[derive(Debug)]
pub(crate) enum AckBody {
    PubAck(PacketId, ReasonCode),
    PubRec(PacketId, ReasonCode),
    PubComp(PacketId, ReasonCode),
    PubRel(PacketId, ReasonCode),
    /// SUBACK or UNSUBACK, encoded.
    Other(Box<Bytes>),
    /// The end of our side of a data stream.
    EndOfStream,
    /// It has left ahead of those of other streams; its place counts.
    Left,
}

/// All connections of a worker.
#[derive(Debug, Default)]
pub(crate) struct Conns(Vec<Conn>);

impl Conns {
    /// The connection, if it is still the one that `id` names.
    #[inline]
    pub(crate) fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.0.get_mut(id.index as usize)?;
        (conn.generation == id.generation && conn.state != State::Free).then_some(conn)
    }

    /// By a timer's key.
    pub(crate) fn by_timer(&mut self, index: u32, generation: u32) -> Option<(ConnId, &mut Conn)> {
        let id = ConnId { index, generation };
        self.get(id).map(|conn| (id, conn))
    }

    /// The connection that is in a place now.
    pub(crate) fn at(&self, index: u32) -> Option<ConnId> {
        let conn = self
            .0
            .get(index as usize)
            .filter(|c| c.state != State::Free)?;
        Some(ConnId {
            index,
            generation: conn.generation,
        })
    }

    /// Places, taken or not.
    pub(crate) fn places(&self) -> usize {
        self.0.len()
    }

    /// Whether it has its session.
    pub(crate) fn is_up(&mut self, id: ConnId) -> bool {
        self.get(id)
            .is_some_and(|c| matches!(c.state, State::Up(_)))
    }

    /// A new connection in the driver's place.
    pub(crate) fn open(&mut self, id: ConnId, now: Time) -> &mut Conn {
        let index = id.index as usize;
        if self.0.len() <= index {
            self.0.resize_with(index + 1, Conn::default);
        }
        let conn = &mut self.0[index];
        *conn = Conn {
            generation: id.generation,
            state: State::New,
            last_seen: now,
            armed: crate::session::NEVER,
            ..Conn::default()
        };
        conn
    }

    /// Forgets the connection; what it was.
    pub(crate) fn take(&mut self, id: ConnId) -> Option<Conn> {
        self.get(id).map(std::mem::take)
    }

    /// All that are open.
    pub(crate) fn ids(&self) -> Vec<ConnId> {
        let open = self
            .0
            .iter()
            .enumerate()
            .filter(|(_, c)| c.state != State::Free);
        open.map(|(i, c)| ConnId {
            index: i as u32,
            generation: c.generation,
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Conn>() <= 80, "{}", size_of::<Conn>());
        assert!(size_of::<PendingAck>() <= 40, "{}", size_of::<PendingAck>());
    }
}
