//! A worker is lost within the transaction of a PUBLISH: nothing of the message is recorded anywhere, and it goes from
//! memory, too. Its publisher sends it again.

use std::sync::Arc;

use crate::{
    Output, Session, Undone,
    env::Env,
    hub::Hub,
    slots::{Handle, Slot},
    takeover::FORWARD_MS,
};

impl Hub {
    /// The store has left out what it could not have whole.
    pub(crate) fn on_undone(&mut self, undone: &Arc<Undone>, out: &mut Vec<Output>) {
        let now = self.env.now;
        while let Some((at, _)) = self.undone.front()
            && at.after_ms(FORWARD_MS) <= now
        {
            self.undone.pop_front();
        }
        self.undone.push_back((now, Arc::clone(undone)));
        let slots = self.slots.occupied();
        let concerned =
            slots.filter(|(_, slot)| slot.session_id().is_some_and(|id| undone.names(id)));
        let concerned: Vec<u32> = concerned.map(|(index, _)| index).collect();
        for index in concerned {
            if let Some(session) = self.slots.session(index) {
                session.undo(&mut self.env, undone, out);
            }
            self.slots.park_later(index);
        }
    }

    /// The same for a session that has come from another worker meanwhile.
    pub(crate) fn undo_late(&mut self, handle: Handle, out: &mut Vec<Output>) {
        let Self {
            undone, slots, env, ..
        } = self;
        if let Some(Slot::Live(session)) = slots.by_handle(handle) {
            let id = session.id;
            let recent = undone.iter().filter(|(_, undone)| undone.names(id));
            recent.for_each(|(_, undone)| session.undo(env, undone, out));
        }
    }
}

impl Undone {
    fn names(&self, id: crate::SessionId) -> bool {
        let received = self.received.iter().map(|(of, _)| *of);
        received
            .chain(self.queued.iter().map(|(of, _)| *of))
            .any(|of| of == id)
    }
}

impl Session {
    /// Forgets messages that were not recorded and not sent.
    fn undo(&mut self, env: &mut Env, undone: &Undone, out: &mut Vec<Output>) {
        let id = self.id;
        let is_undone = |message: &Arc<crate::Message>| {
            let mut of_it = undone.queued.iter().filter(|(of, _)| *of == id);
            of_it.any(|(_, undone)| Arc::ptr_eq(undone, message))
        };
        let mut recorded = Vec::new();
        if let Some(flow) = &mut self.flow {
            let unknown = |packet_id| undone.received.contains(&(id, packet_id));
            flow.received.retain(|packet_id| !unknown(*packet_id));
            let mut freed = 0;
            flow.queue.retain(|waiting| {
                let goes = is_undone(&waiting.message);
                if goes {
                    recorded.push(waiting.queued);
                    freed += waiting.message.cost();
                }
                !goes
            });
            flow.bytes = flow.bytes.saturating_sub(freed);
        }
        if let Some(fence) = &mut self.fence {
            fence.held.retain(|held| {
                let goes = is_undone(&held.message);
                if goes {
                    recorded.push(held.queued);
                    fence.held_bytes = fence.held_bytes.saturating_sub(held.message.cost());
                }
                !goes
            });
        }
        // What was held back has been recorded a second time when it was released.
        for queued in recorded {
            self.forget(env, queued, out);
        }
        self.tell_waiting();
    }
}
