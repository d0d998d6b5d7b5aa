//! What comes back from the store after a restart, and what is refused while the store can't take anything.

use headgate_codec::{Packet, QoS, SubscriptionOptions};
use std::sync::Arc;

use crate::{
    Handed, OpId, Output, Owner, QueueSummary, Record, RestoredSession, RestoredWill, Session,
    Shared, StorageState,
    close::DueWill,
    conns::{Conn, PAUSED_RESTORING, State},
    counters::add,
    env::Env,
    hub::Hub,
    options::Options,
    session::{Flow, NEVER, PendingWill},
    share,
    slots::{Handle, Slot},
    spill::{IDS_SPAN_MAX, Spill},
    subscribe::Wanted,
};

/// Packet Identifiers that a session may have been sent in the moments that a power failure took from the store.
const FORGOTTEN_IDS: u16 = 0x4000;

impl Hub {
    /// A session of an earlier run lives here from now on. Its queue stays in the store until it is wanted.
    pub(crate) fn on_restore(&mut self, restored: Box<RestoredSession>, out: &mut Vec<Output>) {
        let epoch = self.next_epoch.max(restored.epoch.wrapping_add(1));
        self.next_epoch = epoch.wrapping_add(1);
        let placed = self.slots.restore_with(|_, handle| {
            let session = Session::new(restored.id, &restored.client_id, handle, epoch);
            Slot::Live(Box::new(session))
        });
        let Some(slot) = placed else {
            add(&mut self.env.counters.limit_sessions, 1);
            return;
        };
        add(&mut self.env.counters.sessions, 1);
        add(&mut self.env.counters.sessions_restored, 1);
        let Self {
            env, slots, shared, ..
        } = self;
        let Some(session) = slots.session(slot) else {
            return;
        };
        session.resume(&restored, env);
        let count = shared.enter_all(session, &restored);
        add(&mut env.counters.subscriptions, count);
        // Another restart counts from here, too.
        if restored.is_connected {
            session.record_closed(env, out);
        }
        let owner = Owner {
            node: self.config.node,
            worker: self.config.worker,
            slot,
            epoch,
        };
        let op = self.env.op();
        self.restoring.insert(op, self.slots.handle(slot));
        out.push(Output::Claim {
            op,
            client_id: restored.client_id,
            expected: None,
            new: Some(owner),
        });
        self.arm_slot(slot);
        self.slots.park_later(slot);
        // What another member of a group may have to get is kept at hand.
        self.pump(slot, out);
    }

    /// A session of a lost worker for the connection that waits for it in this place; `discard`: it has to end.
    pub(crate) fn revive(
        &mut self,
        slot: u32,
        restored: &RestoredSession,
        (epoch, discard): (u32, bool),
        out: &mut Vec<Output>,
    ) -> Handed {
        let handle = self.slots.handle(slot);
        let mut session = Session::new(restored.id, &restored.client_id, handle, epoch);
        session.resume(restored, &self.env);
        if discard || session.expires_at <= self.env.now {
            self.will_due(&mut session);
            session.put(&mut self.env, Record::SessionEnded, out);
            return Handed::Ended;
        }
        add(&mut self.env.counters.sessions_restored, 1);
        let mut session = Box::new(session);
        self.shared.enter_all(&mut session, restored);
        Handed::Session(session)
    }

    /// Wills that have to wait until all sessions are there are recorded together with what says that their sessions have
    /// them no more.
    pub(crate) fn keep_wills(&mut self, out: &mut Vec<Output>) {
        let mut wills = std::mem::take(&mut self.wills);
        for due in wills
            .iter_mut()
            .filter(|w| w.is_recorded && w.kept.is_none())
        {
            let id = self.make_session_id();
            let message = Arc::clone(&due.message);
            due.kept = Some(id);
            self.env
                .persist(id, due.epoch, 1, Record::WillDue { message }, out);
        }
        self.wills = wills;
    }

    /// A will of an earlier run, or of a former worker in this place.
    pub(crate) fn on_restore_will(&mut self, will: RestoredWill) {
        let RestoredWill { id, message } = will;
        let is_known = self.has_made(id) || self.wills.iter().any(|due| due.kept == Some(id));
        if !is_known {
            self.wills.push(DueWill {
                message,
                publisher: Handle(0),
                session: id,
                epoch: 0,
                is_recorded: true,
                kept: Some(id),
            });
        }
    }

    /// The directory knows a session that was restored, or it knows another owner.
    pub(crate) fn on_restore_claimed(&mut self, op: OpId, is_owner: bool) {
        let Some(handle) = self.restoring.remove(&op) else {
            return;
        };
        if is_owner || !matches!(self.slots.by_handle(handle), Some(Slot::Live(_))) {
            return;
        }
        if let Slot::Live(session) = self.slots.remove(handle.slot()) {
            self.forget_subscriptions(&session);
            self.count_session_gone(&session);
        }
    }

    /// The store can do more than before, or less.
    pub(crate) fn on_storage(&mut self, state: StorageState, out: &mut Vec<Output>) {
        self.env.storage = state;
        if state != StorageState::Failed {
            self.load_again(true, out);
            self.pump_where(|flow| flow.spill.is_some(), out);
        }
    }

    /// All sessions are there: what has waited for that goes on.
    pub(crate) fn on_sessions_restored(&mut self, out: &mut Vec<Output>) {
        // They are taken from the end.
        for conn in self.conns.ids().into_iter().rev() {
            let c = self.conns.get(conn);
            if c.is_some_and(|c| c.paused & PAUSED_RESTORING != 0) {
                self.pause(conn, PAUSED_RESTORING, false, out);
                self.ready.push(conn);
            }
        }
    }

    /// All retained messages are there: subscriptions that were made meanwhile get theirs.
    pub(crate) fn on_retained_loaded(&mut self, out: &mut Vec<Output>) {
        self.pump_where(|flow| !flow.replays.is_empty(), out);
    }

    fn pump_where(&mut self, is_wanted: impl Fn(&Flow) -> bool, out: &mut Vec<Output>) {
        let is_one = |slot: &Slot| match slot {
            Slot::Live(s) => s.conn.is_some() && s.flow.as_ref().is_some_and(|f| is_wanted(f)),
            _ => false,
        };
        let slots = self.slots.occupied().filter(|(_, slot)| is_one(slot));
        let slots: Vec<u32> = slots.map(|(index, _)| index).collect();
        for slot in slots {
            self.pump(slot, out);
        }
    }
}

/// Whether a packet has to wait until all sessions are there: a message that is routed before would miss those that
/// are still to come, although it is acknowledged. QoS 0 is only for who is connected, and so is there.
pub(crate) fn must_wait(conn: &Conn, packet: &Packet) -> bool {
    let is_routed = matches!(packet, Packet::Publish(publish) if publish.qos != QoS::AtMostOnce);
    matches!(conn.state, State::Up(_)) && (is_routed || conn.has_held())
}

impl Shared {
    /// Enters all subscriptions of a session that was restored; how many they are.
    fn enter_all(&self, session: &mut Session, restored: &RestoredSession) -> u64 {
        for subscription in &restored.subscriptions {
            let Ok(of_group) = share::parse(&subscription.filter) else {
                continue;
            };
            let wanted = Wanted {
                filter: &subscription.filter,
                of_group,
                options: options_of(subscription.options),
                id: subscription.subscription_id.unwrap_or(0),
            };
            let existing = session.subscriptions.find(&subscription.filter);
            self.enter(session, &wanted, existing);
        }
        session.subscriptions.len() as u64
    }
}

impl Session {
    /// What the store knows of the session; a connection that it had is lost now.
    fn resume(&mut self, restored: &RestoredSession, env: &Env) {
        let now = env.now;
        self.is_recorded = true;
        self.sequence = restored.sequence;
        self.expiry_s = restored.expiry_s;
        self.version = restored.version;
        self.send_quota = restored.queue.send_quota.max(1);
        self.expires_at = match (restored.is_connected, restored.expiry_s) {
            (true, u32::MAX) => NEVER,
            (true, expiry_s) => now.after_s(expiry_s),
            (false, _) => restored.expires_at.unwrap_or(NEVER),
        };
        self.will = restored.will.as_ref().map(|will| {
            let delay_s = will.delay_s.unwrap_or(0).min(restored.expiry_s);
            let at = match restored.is_connected {
                true => Some(now.after_s(delay_s)),
                false => restored.will_at,
            };
            Box::new(PendingWill {
                will: (**will).clone(),
                at,
            })
        });
        let mut received = restored.received.clone();
        received.sort_unstable();
        // Of a connection that was there, the store doesn't know what was sent on it.
        let sent_up_to = match restored.is_connected {
            true => restored.sequence,
            false => restored.queue.sent_up_to,
        };
        let spill = (restored.queue.count > 0)
            .then(|| Box::new(Spill::of_summary(&restored.queue, sent_up_to)));
        if spill.is_some() || !received.is_empty() {
            self.flow = Some(Box::new(Flow {
                received,
                spill,
                last_packet_id: goes_on_after(&restored.queue, env.first_packet_id != 0),
                ..Flow::default()
            }));
        }
    }
}

/// The Packet Identifier after which those of a restored queue go on. Where the store `forgets`, the client may have been sent
/// more than it knows.
fn goes_on_after(queue: &QueueSummary, forgets: bool) -> u16 {
    let QueueSummary {
        first_packet_id: first,
        last_packet_id: last,
        ..
    } = *queue;
    let is_near = last.wrapping_sub(first) < IDS_SPAN_MAX - FORGOTTEN_IDS;
    match last.checked_add(FORGOTTEN_IDS) {
        _ if last == 0 || !forgets || !is_near => last,
        Some(ahead) => ahead,
        None => last.wrapping_add(FORGOTTEN_IDS) + 1,
    }
}

/// Subscription Options from the octet on the wire (§3.8.3.1).
fn options_of(octet: u8) -> SubscriptionOptions {
    SubscriptionOptions {
        qos: Options::qos_of(octet),
        no_local: octet & 1 << 2 != 0,
        retain_as_published: octet & 1 << 3 != 0,
        retain_handling: octet >> 4 & 0b11,
    }
}
