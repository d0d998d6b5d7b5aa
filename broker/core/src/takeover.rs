//! A session moves to another owner (MQTT 5.0 §3.1.4): by value, its entries in the topic table
//! re-pointed one by one, late deliveries sent on, and messages kept in order by fences.

use crate::{
    Fence, FenceLeg, Handed, Mesh, Moved, OpId, Output, Session, Takeover, WorkerSlot,
    attach::repoint,
    close::End,
    counters::add,
    hub::Hub,
    session::{Fenced, NEVER},
    slots::{Forward, Handle, Slot, WaitingTakeover},
};

/// How long deliveries to a session's old home are sent on, ms. A driver must not keep a delivery
/// in a ring for longer than this.
pub(crate) const FORWARD_MS: u64 = 30_000;
/// How long a session that has moved waits for its fences, ms, if a worker has lost one.
const FENCE_MS: u64 = 5_000;

impl Hub {
    /// Another owner (or this worker, for another CONNECT) has claimed the client.
    pub(crate) fn on_takeover(
        &mut self,
        from: WorkerSlot,
        takeover: Box<Takeover>,
        out: &mut Vec<Output>,
    ) {
        let expected = takeover.expected;
        match self.slots.owned(expected, &takeover.client_id) {
            Some(Slot::Acquiring(acquire)) => {
                acquire.takeover = Some(WaitingTakeover { from, takeover })
            }
            Some(Slot::Live(session)) => {
                if let Some(fence) = &mut session.fence {
                    fence.takeover = Some(WaitingTakeover { from, takeover });
                } else {
                    self.give_up(from, takeover, out);
                }
            }
            // Its session has ended meanwhile: its owner knew nothing of the claim.
            _ => {
                let handed = match self.take_releasing(expected) {
                    true => Handed::Ended,
                    false => Handed::Nothing,
                };
                self.answer(from, takeover.op, handed, out);
            }
        }
    }

    /// Answers a takeover.
    pub(crate) fn answer(
        &mut self,
        to: WorkerSlot,
        op: OpId,
        handed: Handed,
        out: &mut Vec<Output>,
    ) {
        if to == self.config.worker {
            return self.on_moved(to, op, handed, out);
        }
        let message = Mesh::Moved(Box::new(Moved { op, handed }));
        out.push(Output::Mesh {
            to,
            origin: None,
            message,
        });
    }

    /// Puts a session that has moved here into its place.
    pub(crate) fn install(
        &mut self,
        slot: u32,
        mut session: Box<Session>,
        (from, epoch): (WorkerSlot, u32),
        out: &mut Vec<Output>,
    ) {
        let former = session.handle;
        session.handle = self.slots.handle(slot);
        session.epoch = epoch;
        session.armed = NEVER;
        repoint(&mut session, &self.shared, former);
        add(&mut self.env.counters.sessions, 1);
        add(
            &mut self.env.counters.subscriptions,
            session.subscriptions.len() as u64,
        );
        // The same records are safe here when the next one is.
        if let Some(flow) = &mut session.flow {
            flow.queue.iter_mut().for_each(|w| w.op = OpId(0));
            flow.inflight.iter_mut().for_each(|i| i.op = OpId(0));
            if let Some(spill) = &mut flow.spill {
                spill.loading = OpId(0);
            }
        }
        if from != self.config.worker {
            add(&mut self.env.counters.sessions_moved_in, 1);
            session.fence = self.send_fences(session.handle, from, out);
        }
        self.slots.replace(slot, Slot::Live(session));
        self.arm_slot(slot);
        self.undo_late(self.slots.handle(slot), out);
    }

    /// A fence on its way.
    pub(crate) fn on_fence(&mut self, fence: Fence, out: &mut Vec<Output>) {
        let me = self.config.worker;
        let next = |leg, to| Output::Mesh {
            to,
            origin: None,
            message: Mesh::Fence(Fence { leg, ..fence }),
        };
        match fence.leg {
            FenceLeg::Ask if fence.via != me => out.push(next(FenceLeg::Pass, fence.via)),
            FenceLeg::Ask | FenceLeg::Pass => out.push(next(FenceLeg::Done, fence.home)),
            FenceLeg::Done => {
                let handle = Handle(fence.session);
                let Some(Slot::Live(session)) = self.slots.by_handle(handle) else {
                    return;
                };
                let Some(fenced) = &mut session.fence else {
                    return;
                };
                fenced.waiting = fenced.waiting.saturating_sub(1);
                if fenced.waiting == 0 {
                    self.lift_fence(handle.slot(), out);
                }
            }
        }
    }

    /// All fences have arrived, or there is no point in waiting: what was held back is delivered,
    /// and a takeover that had to wait is done.
    pub(crate) fn lift_fence(&mut self, slot: u32, out: &mut Vec<Output>) {
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        let Some(fenced) = session.fence.take() else {
            return;
        };
        self.env.publisher = None;
        session.release(&mut self.env, fenced.held, out);
        if session.was_full() {
            session.unblock(&mut self.env, false);
        }
        // What only the store has could not be read before.
        if session.flow.as_ref().is_some_and(|f| f.spill.is_some()) {
            self.pump(slot, out);
        }
        self.slots.park_later(slot);
        if let Some(WaitingTakeover { from, takeover }) = fenced.takeover {
            self.on_takeover(from, takeover, out);
        }
    }

    /// A worker is gone, and with it what was expected from it.
    pub(crate) fn on_worker_gone(&mut self, worker: WorkerSlot, out: &mut Vec<Output>) {
        let is_fenced =
            |slot: &Slot| matches!(slot, Slot::Live(session) if session.fence.is_some());
        let fenced: Vec<u32> = self
            .slots
            .occupied()
            .filter(|(_, s)| is_fenced(s))
            .map(|(i, _)| i)
            .collect();
        for slot in fenced {
            self.lift_fence(slot, out);
        }
        let asked = self
            .claims
            .iter()
            .filter(|(_, claim)| claim.asked == Some(worker));
        let asked: Vec<(OpId, u32)> = asked.map(|(op, claim)| (*op, claim.slot)).collect();
        for (op, slot) in asked {
            self.recover(op, slot, out);
        }
        // Nor will its part of what is recorded together.
        out.extend(self.txns.drain(..).map(|(_, txn)| Output::Unjoin { txn }));
        // Acknowledgements that wait for the worker will never leave.
        for conn in self.conns.ids() {
            let waits = |c: &mut crate::conns::Conn| {
                c.acks
                    .as_ref()
                    .is_some_and(|a| a.iter().any(|a| a.remote > 0))
            };
            if self.conns.get(conn).is_some_and(waits) {
                self.close(
                    conn,
                    End::Server(headgate_codec::ReasonCode::SERVER_BUSY),
                    out,
                );
            }
        }
    }

    fn give_up(&mut self, from: WorkerSlot, takeover: Box<Takeover>, out: &mut Vec<Output>) {
        let slot = takeover.expected.slot;
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        let now = self.env.now;
        // Another connection was about to get it.
        if let Some(conn) = session.pending.as_ref().and_then(|p| p.conn()) {
            self.close(conn, End::TakenOver { resumed: true }, out);
        }
        // Its time had come before the new connection did.
        self.publish_due_will(slot, out);
        let Some(session) = self.slots.session(slot) else {
            return self.answer(from, takeover.op, Handed::Nothing, out);
        };
        let was_recorded = session.sequence > 0;
        let expired = session.has_expired(now);
        let ends = takeover.discard || expired || !session.is_persistent();
        if let Some(conn) = session.conn {
            self.close(conn, End::TakenOver { resumed: !ends }, out);
        }
        // What it leaves to other members of groups is read before it ends.
        if ends && self.must_read(slot) {
            if let Some(session) = self.slots.session(slot) {
                session.heir = Some(Box::new(WaitingTakeover { from, takeover }));
            }
            return self.end_when_read(slot, out);
        }
        // A session with expiry 0 has ended with its connection.
        if ends {
            if self.slots.session(slot).is_some() {
                self.end_session(slot, false, out);
            }
            let handed = match was_recorded {
                true => Handed::Ended,
                false => Handed::Nothing,
            };
            return self.answer(from, takeover.op, handed, out);
        }
        let forward = Forward {
            to: Handle(takeover.handle),
            until: now.after_ms(FORWARD_MS),
        };
        let Slot::Live(mut session) = self.slots.replace(slot, Slot::Moved(Box::new(forward)))
        else {
            return;
        };
        session.conn = None;
        self.count_session_gone(&session);
        if from != self.config.worker {
            add(&mut self.env.counters.sessions_moved_out, 1);
        }
        self.arm_slot(slot);
        self.answer(from, takeover.op, Handed::Session(session), out);
    }

    /// Asks every worker for a fence by way of the session's old home.
    fn send_fences(
        &self,
        handle: Handle,
        via: WorkerSlot,
        out: &mut Vec<Output>,
    ) -> Option<Box<Fenced>> {
        let home = self.config.worker;
        let mut waiting = 0;
        for &worker in &self.config.workers {
            let (to, leg) = if worker == home {
                (via, FenceLeg::Pass)
            } else {
                (worker, FenceLeg::Ask)
            };
            let fence = Fence {
                leg,
                session: handle.0,
                home,
                via,
            };
            out.push(Output::Mesh {
                to,
                origin: None,
                message: Mesh::Fence(fence),
            });
            waiting += 1;
        }
        let until = self.env.now.after_ms(FENCE_MS);
        let (held, held_bytes, takeover) = (Vec::new(), 0, None);
        Some(Box::new(Fenced {
            via,
            waiting,
            held,
            held_bytes,
            until,
            takeover,
        }))
    }
}
