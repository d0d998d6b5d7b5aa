//! Acknowledgements to clients: in order, and not before what they acknowledge is recorded.

use headgate_codec::{Ack, Packet, PacketId, ReasonCode, Version};
use std::collections::VecDeque;

use crate::{
    ConnId, DataStream, Mesh, OpId, Output, Receipt, Record,
    close::End,
    conns::{AckBody, PAUSED_ACKS, PendingAck, State},
    env::Waiter,
    hub::Hub,
    slots::Slot,
};

/// What an acknowledgement waits for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wait {
    /// The last Persist; 0 = none.
    pub(crate) op: OpId,
    /// Weight of the deliveries to other workers.
    pub(crate) remote: u32,
}

impl Hub {
    /// What began since `before` and has to complete first.
    pub(crate) fn wait_since(&self, before: OpId, remote: u32) -> Wait {
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
        c.acks_on_streams |= stream.is_some();
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
            self.env.waiters.push_back((wait.op, Waiter::Conn(conn)));
        }
        if is_long {
            self.pause(conn, PAUSED_ACKS, true, out);
        }
    }

    /// Storage has recorded everything up to an operation.
    pub(crate) fn on_persisted(&mut self, up_to: OpId, out: &mut Vec<Output>) {
        self.env.persisted = self.env.persisted.max(up_to);
        while self.txns.front().is_some_and(|(op, _)| *op <= up_to) {
            self.txns.pop_front();
        }
        while let Some((_, client_id, owner)) = self.releasing.pop_front_if(|(op, ..)| *op <= up_to)
        {
            self.release(&client_id, owner, out);
        }
        while let Some((op, waiter)) = self.env.waiters.front().copied() {
            if op > self.env.persisted {
                return;
            }
            self.env.waiters.pop_front();
            match waiter {
                Waiter::Conn(conn) => self.flush_acks(conn, out),
                Waiter::Remote(receipt, weight) => self.say_stored(receipt, weight, true, out),
                Waiter::Session(handle) => {
                    if let Some(Slot::Live(_)) = self.slots.by_handle(handle) {
                        self.pump(handle.slot(), out);
                    }
                }
                Waiter::ConnAck(handle) => self.confirm_pending(handle, out),
            }
        }
    }

    /// Another worker has recorded a message, or could not.
    pub(crate) fn on_stored(
        &mut self,
        receipt: Receipt,
        (weight, is_stored): (u32, bool),
        out: &mut Vec<Output>,
    ) {
        // A driver has dropped a delivery that this worker had sent on.
        if receipt.worker != self.config.worker {
            return self.say_stored(receipt, weight, is_stored, out);
        }
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
            ack.remote = ack.remote.saturating_sub(weight);
            ack.failed |= !is_stored;
        }
        if index == 0 || c.acks_on_streams {
            self.flush_acks(receipt.conn, out);
        }
    }

    /// Answers another worker's delivery when its records are safe.
    pub(crate) fn confirm(
        &mut self,
        (receipt, weight): (Receipt, u32),
        before: OpId,
        out: &mut Vec<Output>,
    ) {
        let op = self.wait_since(before, 0).op;
        if op <= self.env.persisted {
            self.say_stored(receipt, weight, true, out);
        } else {
            let waiter = Waiter::Remote(receipt, weight);
            self.env.waiters.push_back((op, waiter));
        }
    }

    /// Answers a delivery that has a receipt.
    pub(crate) fn say_stored(
        &mut self,
        receipt: Receipt,
        weight: u32,
        stored: bool,
        out: &mut Vec<Output>,
    ) {
        // It went away and came back, with a session that did.
        if receipt.worker == self.config.worker {
            return self.on_stored(receipt, (weight, stored), out);
        }
        out.push(Output::Mesh {
            to: receipt.worker,
            origin: None,
            message: Mesh::Stored {
                receipt,
                weight,
                stored,
            },
        });
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
        let mut released = release(acks, self.env.persisted);
        if c.acks_on_streams {
            release_beside(acks, self.env.persisted, &mut released);
            c.acks_on_streams = acks.iter().any(|a| a.stream.is_some());
        }
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
                    let packet_id = *id;
                    session.persist(&mut self.env, Record::Released { packet_id }, out);
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

    fn is_ready(&self, persisted: OpId) -> bool {
        self.remote == 0 && self.op <= persisted
    }
}

/// Takes out what waits for nothing more, from the front.
fn release(acks: &mut VecDeque<PendingAck>, persisted: OpId) -> Vec<PendingAck> {
    let mut released = Vec::new();
    while acks.front().is_some_and(|a| a.is_ready(persisted)) {
        released.extend(acks.pop_front());
    }
    released.retain(|a| !matches!(a.body, AckBody::Left));
    released
}

/// Takes out what waits for nothing more behind others: of each stream from its front, so that none holds up another.
fn release_beside(
    acks: &mut VecDeque<PendingAck>,
    persisted: OpId,
    released: &mut Vec<PendingAck>,
) {
    let mut behind: Vec<Option<DataStream>> = Vec::new();
    for ack in acks.iter_mut().filter(|a| !matches!(a.body, AckBody::Left)) {
        if behind.contains(&ack.stream) {
            continue;
        }
        if ack.is_ready(persisted) {
            released.push(std::mem::replace(ack, PendingAck::left()));
        } else {
            behind.push(ack.stream);
        }
    }
}

fn end_of(conn: ConnId, stream: Option<DataStream>) -> Option<Output> {
    stream.map(|stream| Output::EndData { conn, stream })
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
        AckBody::PubRel(..) | AckBody::Other(_) | AckBody::EndOfStream | AckBody::Left => false,
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
        AckBody::PubRel(id, reason) => Packet::PubRel(ack(id, reason)),
        AckBody::Other(_) | AckBody::EndOfStream | AckBody::Left => return,
    };
    env.encode_more(&packet, version);
}
