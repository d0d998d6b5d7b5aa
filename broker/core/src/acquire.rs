//! From CONNECT to the session.
//!
//! A place in the session slab is reserved and claimed for the client in the directory. Whoever
//! wins the claim is the owner, and gets the session, if there is one, from the owner before:
//! owners form a chain by epoch, each handing over to the next, so there is never more than one.

use headgate_codec::{Connect, ReasonCode, Text, Version};

use crate::{
    ConnId, Handed, Mesh, OpId, Output, Owner, Record, RestoredSession, Session, SessionId,
    StorageState, Takeover, WorkerSlot,
    attach::PendingConnack,
    close::End,
    connect::Terms,
    conns::State,
    counters::{add, sub},
    hub::Hub,
    slots::{Slot, WaitingTakeover},
};

/// Claims that may fail in a row, because other workers win, before a CONNECT is refused (0x89).
const ATTEMPTS_MAX: u8 = 16;
/// The part of a session id's counter that one incarnation of a worker counts.
const NUMBER: u64 = (1 << 48) - 1;

/// An operation that completes a CONNECT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) slot: u32,
    /// The claim holds, and this worker was asked for the session.
    pub(crate) asked: Option<WorkerSlot>,
}

/// A CONNECT that is being completed.
#[derive(Debug)]
pub(crate) struct Acquire {
    pub(crate) client_id: Text,
    /// The owner that is or will be claimed.
    pub(crate) owner: Owner,
    /// Whom the session is expected from.
    pub(crate) former: Option<Owner>,
    /// `None`: the connection is gone.
    pub(crate) conn: Option<ConnId>,
    pub(crate) connect: Box<Connect>,
    pub(crate) assigned: bool,
    pub(crate) attempts: u8,
    /// It goes on when the handshake is complete.
    pub(crate) unconfirmed: bool,
    /// A session that was there before has ended, which may not be safe yet.
    pub(crate) ends_recorded: bool,
    /// The next owner, which has to wait.
    pub(crate) takeover: Option<WaitingTakeover>,
}

impl Hub {
    /// The directory has answered.
    pub(crate) fn on_claimed(
        &mut self,
        op: OpId,
        result: Result<(), Option<Owner>>,
        out: &mut Vec<Output>,
    ) {
        let Some(Claim { slot, .. }) = self.claims.remove(&op) else {
            return self.on_restore_claimed(op, result.is_ok());
        };
        let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) else {
            return;
        };
        match (result, acquire.former) {
            (Ok(()), None) => self.acquired(slot, (Handed::Nothing, self.config.worker), out),
            (Ok(()), Some(former)) => self.ask(slot, op, former, out),
            (Err(current), _) => {
                acquire.attempts += 1;
                let (attempts, conn, version) =
                    (acquire.attempts, acquire.conn, acquire.connect.version);
                let Some(conn) = conn else {
                    self.slots.remove(slot);
                    return;
                };
                if let Some(owner) = current
                    && self.is_early(conn)
                    && !self.may_continue_early(slot, owner)
                {
                    return self.wait_with_claim(slot, owner);
                }
                if current.is_some_and(|owner| self.resume_here(slot, owner, out)) {
                    return;
                }
                if attempts >= ATTEMPTS_MAX {
                    self.refuse(conn, version, ReasonCode::SERVER_BUSY, out);
                    self.slots.remove(slot);
                    return;
                }
                self.claim(slot, current, out);
            }
        }
    }

    /// The former owner has answered.
    pub(crate) fn on_moved(
        &mut self,
        from: WorkerSlot,
        op: OpId,
        handed: Handed,
        out: &mut Vec<Output>,
    ) {
        let slot = self.claims.remove(&op).map(|claim| claim.slot);
        let place = slot.and_then(|s| Some((s, self.slots.get_mut(s)?)));
        match (place, handed) {
            (Some((slot, Slot::Acquiring(_))), handed) => self.acquired(slot, (handed, from), out),
            // It was asked for by a former worker in this place, which has lost what it knew.
            (_, Handed::Session(session)) => self.forget_subscriptions(&session),
            _ => {}
        }
    }

    /// Nobody has the session any more: its entries in the topic table go, too.
    pub(crate) fn forget_subscriptions(&self, session: &Session) {
        for subscription in session.subscriptions.iter() {
            self.shared.remove(subscription, session.handle);
        }
    }

    /// Claims the Client Identifier, which stands for the session \[MQTT-3.1.3-2\].
    pub(crate) fn claim(&mut self, slot: u32, expected: Option<Owner>, out: &mut Vec<Output>) {
        let op = self.env.op();
        let epoch = self
            .next_epoch
            .max(expected.map_or(0, |o| o.epoch.wrapping_add(1)));
        let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) else {
            return;
        };
        self.next_epoch = epoch.wrapping_add(1);
        acquire.owner.epoch = epoch;
        acquire.former = expected;
        let (client_id, new) = (acquire.client_id.clone(), Some(acquire.owner));
        self.claims.insert(op, Claim { slot, asked: None });
        out.push(Output::Claim {
            op,
            client_id,
            expected,
            new,
        });
    }

    /// Asks the former owner for the session.
    fn ask(&mut self, slot: u32, op: OpId, former: Owner, out: &mut Vec<Output>) {
        let handle = self.slots.handle(slot).0;
        let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) else {
            return;
        };
        let takeover = Box::new(Takeover {
            op,
            client_id: acquire.client_id.clone(),
            expected: former,
            new: acquire.owner,
            handle,
            // [MQTT-3.1.2-4] [MQTT-3.1.4-4]
            discard: acquire.connect.clean_start,
        });
        self.claims.insert(
            op,
            Claim {
                slot,
                asked: Some(former.worker),
            },
        );
        if former.worker == self.config.worker {
            self.on_takeover(self.config.worker, takeover, out);
        } else {
            out.push(Output::Mesh {
                to: former.worker,
                origin: None,
                message: Mesh::Takeover(takeover),
            });
        }
    }

    /// The client's session lives here and goes on with the new connection, in its place
    /// \[MQTT-3.1.2-5\].
    pub(crate) fn resume_here(&mut self, slot: u32, owner: Owner, out: &mut Vec<Output>) -> bool {
        if owner.worker != self.config.worker {
            return false;
        }
        let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) else {
            return false;
        };
        if acquire.connect.clean_start {
            return false;
        }
        let (client_id, now) = (acquire.client_id.clone(), self.env.now);
        let (expired, former) = match self.slots.owned(owner, &client_id) {
            Some(Slot::Live(s)) if s.is_persistent() => {
                let expired = s.has_expired(now);
                let pending = s.pending.as_ref().and_then(|p| p.acquire.conn);
                (expired && pending.is_none(), s.conn.or(pending))
            }
            _ => return false,
        };
        if expired {
            // What it leaves may have to be read first: its takeover waits for that.
            if !self.must_read(owner.slot) {
                self.end_session(owner.slot, true, out);
            }
            return false;
        }
        if let Some(former) = former {
            self.close(former, End::TakenOver { resumed: true }, out);
        }
        // Its time had come before the new connection did.
        self.publish_due_will(owner.slot, out);
        if let Slot::Acquiring(acquire) = self.slots.remove(slot) {
            if let Some(c) = acquire.conn.and_then(|conn| self.conns.get(conn)) {
                c.state = State::Connecting(owner.slot);
            }
            self.attach(owner.slot, *acquire, true, out);
        }
        true
    }

    /// This worker is the owner, and the former one has given what it had.
    fn acquired(&mut self, slot: u32, (handed, from): (Handed, WorkerSlot), out: &mut Vec<Output>) {
        let handle = self.slots.handle(slot);
        let Slot::Acquiring(mut acquire) = self.slots.replace(slot, Slot::Free(None)) else {
            return;
        };
        let takeover = acquire.takeover.take();
        let present = matches!(handed, Handed::Session(_));
        acquire.ends_recorded = matches!(handed, Handed::Ended);
        match handed {
            Handed::Session(session) => {
                self.install(slot, session, (from, acquire.owner.epoch), out);
                if acquire.conn.is_none()
                    && let Some(session) = self.slots.session(slot)
                {
                    session.record_opened(&mut self.env, out);
                    session.record_closed(&mut self.env, out);
                    self.slots.park_later(slot);
                }
            }
            _ if acquire.conn.is_none() => {
                return self.give_back(slot, &acquire, takeover, out);
            }
            // A session that would be recorded can't begin while the store is full; what there was of the client is gone.
            _ if self.env.storage != StorageState::Ok
                && Terms::of(&acquire.connect, &self.env.limits).expiry_s > 0 =>
            {
                if let Some(conn) = acquire.conn {
                    add(&mut self.env.counters.storage_refused_connect, 1);
                    let version = acquire.connect.version;
                    self.refuse(conn, version, ReasonCode::QUOTA_EXCEEDED, out);
                }
                return self.give_back(slot, &acquire, takeover, out);
            }
            // [MQTT-3.1.2-6]
            _ => {
                let session = Session::new(
                    self.make_session_id(),
                    &acquire.client_id,
                    handle,
                    acquire.owner.epoch,
                );
                add(&mut self.env.counters.sessions, 1);
                self.slots.replace(slot, Slot::Live(Box::new(session)));
            }
        }
        if acquire.conn.is_some() {
            self.attach(slot, *acquire, present, out);
        }
        if let Some(WaitingTakeover { from, takeover }) = takeover {
            self.on_takeover(from, takeover, out);
        }
    }

    /// Nobody wants the place any more that was reserved, and there is no session to keep in it.
    fn give_back(
        &mut self,
        slot: u32,
        acquire: &Acquire,
        takeover: Option<WaitingTakeover>,
        out: &mut Vec<Output>,
    ) {
        self.slots.remove(slot);
        let (client_id, owner) = (acquire.client_id.clone(), acquire.owner);
        let handed = match acquire.ends_recorded {
            true => Handed::Ended,
            false => Handed::Nothing,
        };
        if acquire.ends_recorded {
            // It stands for the other worker's: whatever follows this record follows that one.
            let id = self.make_session_id();
            let ended = Record::SessionEnded;
            self.env.persist(id, owner.epoch, 1, ended, out);
            let op = self.env.last_persist;
            self.releasing.push_back((op, client_id, owner));
        } else {
            self.release(&client_id, owner, out);
        }
        if let Some(WaitingTakeover { from, takeover }) = takeover {
            self.answer(from, takeover.op, handed, out);
        }
    }

    pub(crate) fn make_session_id(&mut self) -> SessionId {
        self.sessions_made += 1;
        self.session_id(self.sessions_made)
    }

    /// Whether this incarnation of the worker has made an id.
    pub(crate) fn has_made(&self, id: SessionId) -> bool {
        id == self.session_id(id.counter & NUMBER)
    }

    fn session_id(&self, number: u64) -> SessionId {
        let worker = u64::from(self.config.worker.0) << 56;
        let incarnation = u64::from(self.config.incarnation) << 48;
        SessionId {
            node: self.config.node,
            epoch: self.config.epoch,
            counter: worker | incarnation | number,
        }
    }

    /// Whether what had this owner has ended, and the directory hasn't been told: it will not be.
    pub(crate) fn take_releasing(&mut self, owner: Owner) -> bool {
        let position = self.releasing.iter().position(|(.., o)| *o == owner);
        position.is_some_and(|p| self.releasing.remove(p).is_some())
    }

    /// The worker that was asked for a session is gone: what it had is in the store, if anywhere.
    pub(crate) fn recover(&mut self, op: OpId, slot: u32, out: &mut Vec<Output>) {
        let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) else {
            return;
        };
        let client_id = acquire.client_id.clone();
        self.claims.insert(op, Claim { slot, asked: None });
        out.push(Output::Recover { op, client_id });
    }

    /// The store has said what it has of a session whose worker is gone.
    pub(crate) fn on_recovered(
        &mut self,
        op: OpId,
        restored: Option<Box<RestoredSession>>,
        out: &mut Vec<Output>,
    ) {
        let slot = self.claims.remove(&op).map(|claim| claim.slot);
        let place = slot.and_then(|slot| Some((slot, self.slots.get_mut(slot)?)));
        let Some((slot, Slot::Acquiring(acquire))) = place else {
            return;
        };
        let (epoch, discard) = (acquire.owner.epoch, acquire.connect.clean_start);
        let handed = match restored {
            Some(restored) => self.revive(slot, &restored, (epoch, discard), out),
            None => Handed::Nothing,
        };
        self.acquired(slot, (handed, self.config.worker), out);
        // What another member of a group may have to get is kept at hand.
        if let Some(Slot::Live(_)) = self.slots.get_mut(slot) {
            self.pump(slot, out);
        }
    }

    /// Gives the client's entry in the directory back, if it is still this owner's.
    pub(crate) fn release(&mut self, client_id: &Text, owner: Owner, out: &mut Vec<Output>) {
        let op = self.env.op();
        out.push(Output::Claim {
            op,
            client_id: client_id.clone(),
            expected: Some(owner),
            new: None,
        });
    }

    /// The version of a CONNECT that is being completed.
    pub(crate) fn connecting_version(&mut self, slot: u32) -> Option<Version> {
        match self.slots.get_mut(slot) {
            Some(Slot::Acquiring(acquire)) => Some(acquire.connect.version),
            Some(Slot::Live(session)) => {
                let pending = session.pending.as_ref()?;
                Some(pending.acquire.connect.version)
            }
            _ => None,
        }
    }

    /// The client's connection is gone while its CONNECT was being completed.
    pub(crate) fn abandon(&mut self, conn: ConnId, slot: u32, out: &mut Vec<Output>) {
        let session = match self.slots.get_mut(slot) {
            Some(Slot::Acquiring(acquire)) => {
                acquire.conn = None;
                // Otherwise the answer to its claim finds it.
                if acquire.unconfirmed {
                    self.slots.remove(slot);
                }
                return;
            }
            Some(Slot::Live(session)) => session,
            _ => return,
        };
        let is_its = |p: &mut Box<PendingConnack>| p.acquire.conn == Some(conn);
        let Some(pending) = session.pending.take_if(is_its) else {
            return;
        };
        if !pending.present {
            return self.end_session(slot, true, out);
        }
        // It stays as it was before.
        session.record_opened(&mut self.env, out);
        session.record_closed(&mut self.env, out);
        self.arm_slot(slot);
        self.slots.park_later(slot);
    }

    /// A session less.
    pub(crate) fn count_session_gone(&mut self, session: &Session) {
        sub(&mut self.env.counters.sessions, 1);
        sub(
            &mut self.env.counters.subscriptions,
            session.subscriptions.len() as u64,
        );
    }
}
