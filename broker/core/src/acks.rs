//! Acknowledgements to clients: in order, and not before what they acknowledge is recorded.

use headgate_codec::{Ack, Packet, PacketId, ReasonCode, Version};
use std::collections::VecDeque;

use crate::{
    ConnId, DataStream, Mesh, OpId, Output, Receipt,
    close::End,
    conns::{AckBody, PAUSED_ACKS, PendingAck, State},
    hub::{Hub, Waiter},
};

/// What an acknowledgement waits for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wait {
    /// The last Persist; 0 = none.
    pub(crate) op: OpId,
    /// Other workers.
    pub(crate) remote: u8,
}

impl Hub {
    /// What began since `before` and has to complete first.
    pub(crate) fn wait_since(&self, before: OpId, remote: u8) -> Wait {
        let op = if self.env.last_persist > before {
            self.env.last_persist
        } else {
            OpId(0)
        };
        Wait { op, remote }
    }

    /// Sends an acknowledgement, or puts it behind those that wait. The client's quota for PUBLISH
    /// doesn't hold it up \[MQTT-3.3.4-10\] \[MQTT-4.9.0-3\].
    pub(crate) fn acknowledge(
        &mut self,
        conn: ConnId,
        slot: u32,
        body: AckBody,
        wait: Wait,
        out: &mut Vec<Output>,
    ) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        c.ack_serial = c.ack_serial.wrapping_add(1);
        let stream = self.stream;
        let behind = c.acks.as_mut().filter(|acks| !acks.is_empty());
        let is_first = |acks: &&mut Box<VecDeque<PendingAck>>| {
            let of_stream = |a: &PendingAck| a.stream == stream && !matches!(a.body, AckBody::Left);
            !acks.iter().any(of_stream)
        };
        if behind.as_ref().is_none_or(is_first) && wait.remote == 0 && wait.op <= self.env.persisted
        {
            // Serials count places.
            if let Some(acks) = behind {
                acks.push_back(PendingAck::left());
            }
            release_quota(c, &body);
            if let Some(session) = self.slots.session(slot) {
                let version = session.version;
                let bytes = match body {
                    AckBody::Other(bytes) => *bytes,
                    AckBody::EndOfStream => return out.extend(end_of(conn, stream)),
                    _ => {
                        encode(&mut self.env, &body, version);
                        self.env.take_encoded()
                    }
                };
                match stream {
                    None => session.send_bytes(bytes, out),
                    Some(_) => session.send_on(stream, bytes, out),
                }
            }
            return self.check_unsent(conn, slot, out);
        }
        let acks = c.acks.get_or_insert_default();
        acks.push_back(PendingAck {
            op: wait.op,
            remote: wait.remote,
            failed: false,
            stream,
            body,
        });
        let is_long = acks.len() >= usize::from(self.env.limits.receive_maximum.max(16));
        if wait.op > self.env.persisted {
            self.waiters.push_back((wait.op, Waiter::Conn(conn)));
        }
        if is_long {
            self.pause(conn, PAUSED_ACKS, true, out);
        }
    }

    /// Storage has recorded everything up to an operation.
    pub(crate) fn on_persisted(&mut self, up_to: OpId, out: &mut Vec<Output>) {
        self.env.persisted = self.env.persisted.max(up_to);
        while let Some((op, waiter)) = self.waiters.front().copied() {
            if op > self.env.persisted {
                return;
            }
            self.waiters.pop_front();
            match waiter {
                Waiter::Conn(conn) => self.flush_acks(conn, out),
                Waiter::Remote(to, receipt) => out.push(stored(to, receipt)),
            }
        }
    }

    /// Another worker has recorded a message, or could not.
    pub(crate) fn on_stored(&mut self, receipt: Receipt, is_stored: bool, out: &mut Vec<Output>) {
        let Some(c) = self.conns.get(receipt.conn) else {
            return;
        };
        let Some(acks) = &mut c.acks else { return };
        // Serials count up and the queue ends with the last one.
        let from_end = c.ack_serial.wrapping_sub(receipt.serial) as usize;
        let Some(index) = acks.len().checked_sub(from_end) else {
            return;
        };
        if let Some(ack) = acks.get_mut(index) {
            ack.remote = ack.remote.saturating_sub(1);
            ack.failed |= !is_stored;
        }
        if index == 0 || acks.iter().any(|a| a.stream.is_some()) {
            self.flush_acks(receipt.conn, out);
        }
    }

    /// Answers another worker's delivery when its records are safe.
    pub(crate) fn confirm(
        &mut self,
        to: crate::WorkerSlot,
        receipt: Receipt,
        before: OpId,
        out: &mut Vec<Output>,
    ) {
        let op = self.wait_since(before, 0).op;
        if op <= self.env.persisted {
            out.push(stored(to, receipt));
        } else {
            self.waiters.push_back((op, Waiter::Remote(to, receipt)));
        }
    }

    /// Sends the acknowledgements that wait for nothing more, as one piece.
    fn flush_acks(&mut self, conn: ConnId, out: &mut Vec<Output>) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let State::Up(slot) = c.state else { return };
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        let Some(acks) = &mut c.acks else { return };
        let released = release(acks, self.env.persisted);
        let is_short = acks.len() * 2 < usize::from(self.env.limits.receive_maximum.max(16));
        let mut stream = None;
        for mut ack in released {
            if ack.stream != stream {
                let before = self.env.take_encoded();
                session.send_on(stream, before, out);
                stream = ack.stream;
            }
            if ack.failed {
                // A worker is stuck. MQTT 3.x has no word for that: the client has to come again.
                if session.version != Version::V5 {
                    let before = self.env.take_encoded();
                    session.send_on(stream, before, out);
                    return self.close(conn, End::Silent(ReasonCode::QUOTA_EXCEEDED), out);
                }
                ack.body = refused(ack.body);
                // [MQTT-4.3.3-9]
                if let (AckBody::PubRec(id, _), Some(flow)) = (&ack.body, &mut session.flow) {
                    flow.received.retain(|r| r != id);
                }
            }
            release_quota(c, &ack.body);
            match ack.body {
                AckBody::Other(bytes) => {
                    let before = self.env.take_encoded();
                    session.send_on(stream, before, out);
                    session.send_on(stream, *bytes, out);
                }
                AckBody::EndOfStream => {
                    let before = self.env.take_encoded();
                    session.send_on(stream, before, out);
                    out.extend(end_of(conn, stream));
                }
                body => encode(&mut self.env, &body, session.version),
            }
        }
        let rest = self.env.take_encoded();
        session.send_on(stream, rest, out);
        if is_short {
            self.pause(conn, PAUSED_ACKS, false, out);
        }
        self.check_unsent(conn, slot, out);
    }
}

impl PendingAck {
    /// In the place of one that has left ahead of others.
    fn left() -> Self {
        Self {
            op: OpId(0),
            remote: 0,
            failed: false,
            stream: None,
            body: AckBody::Left,
        }
    }
}

/// Takes out what waits for nothing more: of each stream from its front, so that none holds up another.
fn release(acks: &mut VecDeque<PendingAck>, persisted: OpId) -> Vec<PendingAck> {
    let is_ready = |a: &PendingAck| a.remote == 0 && a.op <= persisted;
    let mut released = Vec::new();
    while acks.front().is_some_and(is_ready) {
        released.extend(acks.pop_front());
    }
    if acks.iter().any(|a| a.stream.is_some()) {
        let mut behind: Vec<Option<DataStream>> = Vec::new();
        for ack in acks.iter_mut().filter(|a| !matches!(a.body, AckBody::Left)) {
            if behind.contains(&ack.stream) {
                continue;
            }
            if is_ready(ack) {
                released.push(std::mem::replace(ack, PendingAck::left()));
            } else {
                behind.push(ack.stream);
            }
        }
    }
    released.retain(|a| !matches!(a.body, AckBody::Left));
    released
}

fn end_of(conn: ConnId, stream: Option<DataStream>) -> Option<Output> {
    stream.map(|stream| Output::EndData { conn, stream })
}

fn stored(to: crate::WorkerSlot, receipt: Receipt) -> Output {
    Output::Mesh {
        to,
        origin: None,
        message: Mesh::Stored {
            receipt,
            stored: true,
        },
    }
}

fn refused(body: AckBody) -> AckBody {
    match body {
        AckBody::PubAck(id, _) => AckBody::PubAck(id, ReasonCode::QUOTA_EXCEEDED),
        AckBody::PubRec(id, _) => AckBody::PubRec(id, ReasonCode::QUOTA_EXCEEDED),
        other => other,
    }
}

/// The client may send one more (§4.9).
fn release_quota(conn: &mut crate::conns::Conn, body: &AckBody) {
    let is_done = match body {
        AckBody::PubAck(..) | AckBody::PubComp(..) => true,
        AckBody::PubRec(_, reason) => reason.0 >= 0x80,
        AckBody::Other(_) | AckBody::EndOfStream | AckBody::Left => false,
    };
    if is_done {
        conn.open_publishes = conn.open_publishes.saturating_sub(1);
    }
}

fn encode(env: &mut crate::env::Env, body: &AckBody, version: Version) {
    let ack = |packet_id: PacketId, reason| Ack {
        packet_id,
        reason,
        properties: None,
    };
    let packet = match *body {
        AckBody::PubAck(id, reason) => Packet::PubAck(ack(id, reason)),
        AckBody::PubRec(id, reason) => Packet::PubRec(ack(id, reason)),
        AckBody::PubComp(id, reason) => Packet::PubComp(ack(id, reason)),
        AckBody::Other(_) | AckBody::EndOfStream | AckBody::Left => return,
    };
    env.encode_more(&packet, version);
}
