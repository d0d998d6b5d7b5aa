//! Sessions, routing, retained messages, limits and timers of one worker, as a state machine
//! without clock, I/O or unsafe code: it takes an [`Input`] and the time, and returns
//! [`Output`]s, which the worker's driver executes.
//!
//! ```text
//!             Input, now            ┌────────────────────┐  Output
//!  driver ─────────────────────────►│ Core (one worker)  ├──────────► driver
//!   ▲  Opened Packet Flushed Mesh   │  its connections   │ Send Close Read Mesh Persist Claim Authenticate Penalty
//!   │  Closed Completed Timeout     │  its sessions      │
//!   └───────────────────────────────│  its timers        │
//!                                   └─────────┬──────────┘
//!                   Shared: topic table, retained messages (all workers)
//! ```
//!
//! **Order.** A driver executes outputs in their order. Messages between two workers stay in order.
//! `Persisted` may come at any time, and covers everything up to its operation.
//!
//! **Choices that the standard leaves open.** Overlapping subscriptions of a client get one PUBLISH
//! with the highest QoS and all Subscription Identifiers (§3.3.4). QoS 0 messages are not kept for
//! clients that aren't connected. A full queue drops what arrives, not what waits, unless the client's
//! quota class says otherwise ([`WhenFull`]). Control packets go
//! at once; of the messages that wait, those with QoS > 0 go ahead of those with QoS 0, eight for one;
//! messages of one publisher with the same QoS stay in order for as long as its connection lasts.
#![forbid(unsafe_code)]

mod account;
mod acks;
mod acquire;
mod alias;
mod attach;
mod auth;
mod block;
mod close;
mod connect;
mod conns;
mod counters;
mod deliver;
mod drain;
mod early;
mod env;
mod frame;
mod full;
mod hub;
mod io;
mod keep_alive;
mod lanes;
mod limits;
mod mesh;
mod message;
mod options;
mod park;
mod publish;
mod quota;
mod reasons;
mod record;
mod replay;
mod resend;
mod restore;
mod retained;
mod route;
mod session;
mod share;
mod shed;
mod slots;
mod spill;
mod subscribe;
mod subscriptions;
mod takeover;
mod timers;
mod undo;

use headgate_codec::{Packet, ReasonCode};
use headgate_topics::{Cache, Subscriber, Table};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

pub use account::{Account, SubscriptionAccount};
pub use auth::{AuthResult, AuthStep, Credentials, Granted, Identity};
pub use counters::Counters;
pub use frame::Frame;
pub use full::Publisher;
pub use io::*;
pub use lanes::{DATAGRAMS, DataEnd, DataStream};
pub use limits::{CoreConfig, CoreLimits, RetainedLimits};
pub use mesh::*;
pub use message::Message;
pub use quota::{AboveQuota, QUOTA_CLASSES_MAX, QuotaLimits, WhenFull};
pub use record::*;
pub use retained::{Retained, RetainedFull};
pub use session::Session;
pub use share::ShareStrategy;

use close::End;
use conns::{HeldInput, State};
use counters::add;
use hub::Hub;
use share::Shares;

/// The worker that an entry of the topic table belongs to.
fn worker_of(subscriber: Subscriber) -> WorkerSlot {
    slots::Handle(subscriber.id()).worker()
}

/// What the cores of all workers share.
#[derive(Debug)]
pub struct Shared {
    /// All subscriptions.
    pub topics: Table,
    /// All retained messages.
    pub retained: Retained,
    /// The groups of Shared Subscriptions.
    shares: Shares,
    /// Connections by quota class.
    classes: quota::ClassCounts,
    /// Sessions are still to come from the store.
    restoring: AtomicBool,
}

impl Shared {
    /// Nothing yet. `seed` is a secret random number, for the hashes of the topic table.
    pub fn new(seed: [u64; 2], retained: RetainedLimits) -> Self {
        Self {
            topics: Table::new(seed),
            retained: Retained::new(retained),
            shares: Shares::default(),
            classes: quota::ClassCounts::default(),
            restoring: AtomicBool::new(false),
        }
    }

    /// The same with another way of choosing among the members of a group.
    #[must_use]
    pub fn with_strategy(self, strategy: ShareStrategy) -> Self {
        Self {
            shares: Shares::new(strategy),
            ..self
        }
    }

    /// Groups of Shared Subscriptions.
    pub fn shared_subscriptions(&self) -> usize {
        self.shares.len()
    }

    /// Connections of a quota class on these workers.
    pub fn class_connections(&self, workers: &[WorkerSlot], class: u8) -> u64 {
        self.classes.sum(workers, class)
    }

    /// Sessions will come from the store: all of an earlier run, or those of a worker that was lost. A PUBLISH with QoS
    /// 1 or 2 waits from now on, because one that is routed before their subscriptions are there would miss them. To be
    /// said before any worker takes a packet, or before [`Shared::forget_worker`].
    pub fn begin_restoring(&self) {
        self.restoring.store(true, Ordering::SeqCst);
    }

    /// All of them have been taken by their workers, each of which is to get [`Input::SessionsRestored`] after this.
    pub fn finish_restoring(&self) {
        self.restoring.store(false, Ordering::SeqCst);
    }

    /// Sessions are still to come from the store.
    pub fn is_restoring(&self) -> bool {
        self.restoring.load(Ordering::Acquire)
    }

    /// A worker has lost its sessions: nobody is to find their subscriptions any more.
    pub fn forget_worker(&self, worker: WorkerSlot) {
        self.topics.remove_where(|entry| worker_of(entry) == worker);
        self.shares.forget_worker(&self.topics, worker);
        self.classes.forget_worker(worker);
    }

    fn remove(&self, subscription: subscriptions::Subscription<'_>, handle: slots::Handle) {
        match subscription.group {
            0 => drop(self.topics.unsubscribe(subscription.filter, handle.0)),
            group => self.shares.leave(&self.topics, group, handle),
        }
    }
}

/// The state machine of one worker.
pub struct Core {
    hub: Hub,
    cache: Cache,
    plans: route::Plans,
    merged: Vec<Subscriber>,
}

impl Core {
    /// A core without connections and sessions.
    pub fn new(config: CoreConfig, shared: Arc<Shared>) -> Self {
        let cache = Cache::new(config.limits.topic_cache_entries);
        Self {
            hub: Hub::new(config, shared),
            cache,
            plans: route::Plans::default(),
            merged: Vec::new(),
        }
    }

    /// Takes what has happened and appends what is to be done. `now` never goes back.
    pub fn handle(&mut self, input: Input, now: Time, out: &mut Vec<Output>) {
        self.hub.env.now = now;
        match input {
            Input::Packet { conn, packet } => self.on_packet(conn, packet, out),
            Input::DataPacket {
                conn,
                stream,
                packet,
            } => self.on_data_packet((conn, stream), packet, out),
            Input::DataFlushed {
                conn,
                stream,
                bytes,
            } => self.hub.data_flushed((conn, stream), bytes, out),
            Input::DataEnded { conn, stream, how } => {
                self.hub.on_data_ended((conn, stream), how, out)
            }
            Input::Datagram { conn, packet } => self.on_datagram(conn, &packet, out),
            Input::Flushed { conn, bytes } => self.hub.flushed(conn, bytes, out),
            Input::Mesh { from, message } => self.on_mesh(from, message, out),
            Input::Completed(Completion::Persisted { up_to }) => self.hub.on_persisted(up_to, out),
            Input::Completed(Completion::Claimed { op, result }) => {
                self.hub.on_claimed(op, result, out)
            }
            Input::Completed(Completion::Loaded {
                op,
                handle,
                messages,
                more,
                failed,
            }) => self
                .hub
                .on_loaded((op, handle), (messages, more, failed), out),
            Input::Completed(Completion::Recovered { op, session }) => {
                self.hub.on_recovered(op, session, out)
            }
            Input::Completed(Completion::Authenticated { op, conn, result }) => {
                self.hub.on_authenticated((op, conn), result, out)
            }
            Input::Opened { conn, peer } => self.hub.opened(conn, peer, out),
            Input::Confirmed { conn } => self.hub.confirmed(conn, out),
            Input::Closed { conn } => self.hub.close(conn, End::Lost, out),
            Input::Malformed { conn, reason } => self.hub.on_malformed(conn, reason, out),
            Input::Timeout => {
                self.hub.on_timeout(out);
                self.hub.release_publishers(out);
                self.hub.work_off_drain(out);
                self.hub.work_off_shedding(out);
                self.hub.load_again(false, out);
                self.hub.work_off_backlog(out);
            }
            Input::WorkerGone { worker } => self.hub.on_worker_gone(worker, out),
            Input::Shutdown => self.hub.shut_down(out),
            Input::Drain(drain) => self.hub.on_drain(drain, out),
            Input::Quotas(classes) => self.hub.on_quotas(classes),
            Input::Pressure(pressure) => self.hub.on_pressure(pressure),
            Input::Publish { topic, payload } => self.publish_own(topic, payload, out),
            Input::Storage(state) => self.hub.on_storage(state, out),
            Input::Restore(session) => self.hub.on_restore(session, out),
            Input::RestoreWill(will) => self.hub.on_restore_will(will),
            Input::Undone(undone) => self.hub.on_undone(&undone, out),
            Input::RetainedLoaded => self.hub.on_retained_loaded(out),
            Input::SessionsRestored => self.hub.on_sessions_restored(out),
        }
        let hub = &self.hub;
        let is_done = hub.ready.is_empty()
            && hub.left_behind.is_empty()
            && hub.wills.is_empty()
            && hub.env.consequences.is_empty();
        if !is_done {
            self.finish(out);
        }
        if !self.hub.slots.unparked.is_empty() {
            self.hub.park();
        }
    }

    /// What few inputs bring about beside their own outputs.
    #[cold]
    fn finish(&mut self, out: &mut Vec<Output>) {
        if !self.hub.ready.is_empty() {
            self.take_held(out);
        }
        loop {
            if !self.hub.left_behind.is_empty() {
                self.hand_on(out);
            }
            if !self.hub.wills.is_empty() {
                match self.hub.shared.is_restoring() {
                    true => self.hub.keep_wills(out),
                    false => self.publish_wills(out),
                }
            }
            if self.hub.env.consequences.is_empty() {
                return;
            }
            // A client that is disconnected may leave a will, and messages to its group.
            self.hub.draw_consequences(out);
        }
    }

    /// When [`Input::Timeout`] is due; a time that has passed = at once.
    pub fn next_timeout(&self) -> Option<Time> {
        if !self.hub.backlog.is_empty() {
            return Some(self.hub.env.now);
        }
        let drain = self.hub.draining.as_ref().map(drain::Draining::next);
        let drain = drain.filter(|at| *at != session::NEVER);
        let loads = self.hub.loads_again.iter().map(|(at, _)| *at).min();
        let held = self.hub.held_publishers.next();
        let timers = self.hub.timers.next().into_iter();
        let sheds = self.hub.sheds_at();
        let more = sheds.into_iter().chain(held);
        timers.chain(drain).chain(loads).chain(more).min()
    }

    /// Who the client of a connection is; `None` before that is known.
    pub fn identity(&mut self, conn: ConnId) -> Option<Identity> {
        self.hub.identity(conn)
    }

    /// What this worker has counted.
    pub fn counters(&self) -> &Counters {
        &self.hub.env.counters
    }

    #[inline]
    fn on_packet(&mut self, conn: ConnId, packet: Packet, out: &mut Vec<Output>) {
        let hub = &mut self.hub;
        let Some(c) = hub.conns.get(conn) else { return };
        c.last_seen = hub.env.now;
        add(&mut hub.env.counters.packets_in, 1);
        if let Some(reason) = c.waits_for(hub.shared.is_restoring(), &packet) {
            let held = HeldInput::Packet(None, packet);
            return hub.hold_back(conn, held, reason, out);
        }
        match (c.state, packet) {
            (State::Up(slot), Packet::Publish(publish)) => {
                self.on_publish(conn, slot, &publish, out)
            }
            (State::Up(slot), packet) => hub.on_session_packet(conn, slot, packet, out),
            (State::Authenticating, packet) => hub.on_packet_early(conn, packet, out),
            (State::Connecting(_), packet) => hub.hold(conn, packet, out),
            (_, Packet::Connect(connect)) => hub.on_connect(conn, connect, out),
            // [MQTT-3.1.0-1]; no DISCONNECT before CONNACK [MQTT-3.14.0-1].
            _ => {
                add(&mut hub.env.counters.protocol_errors, 1);
                hub.close(conn, End::Silent(ReasonCode::PROTOCOL_ERROR), out);
            }
        }
    }

    fn on_mesh(&mut self, from: WorkerSlot, message: Mesh, out: &mut Vec<Output>) {
        match message {
            Mesh::Deliver(delivery) => self.on_delivery(from, &delivery, out),
            Mesh::Takeover(takeover) => self.hub.on_takeover(from, takeover, out),
            Mesh::Moved(moved) => self.hub.on_moved(from, moved.op, moved.handed, out),
            Mesh::Fence(fence) => self.hub.on_fence(fence, out),
            Mesh::Stored {
                receipt,
                weight,
                stored,
            } => self.hub.on_stored(receipt, (weight, stored), out),
            Mesh::Hold { conn, session, on } => self.hub.on_hold(conn, session, on, out),
        }
    }

    /// What came before CONNECT, the handshake or the restoring was completed.
    fn take_held(&mut self, out: &mut Vec<Output>) {
        while let Some(conn) = self.hub.ready.pop() {
            let held = self.hub.conns.get(conn).and_then(|c| c.held.take());
            for input in held.into_iter().flat_map(|h| h.inputs) {
                // Each is recorded, or not, for itself.
                out.push(Output::Divide);
                match input {
                    HeldInput::Packet(None, packet) => self.on_packet(conn, packet, out),
                    HeldInput::Packet(Some(stream), packet) => {
                        self.on_data_packet((conn, stream), packet, out)
                    }
                    HeldInput::DataEnded(stream, how) => {
                        self.hub.on_data_ended((conn, stream), how, out)
                    }
                }
            }
        }
    }
}

impl Hub {
    /// Any packet but PUBLISH, on a connection with a session.
    pub(crate) fn on_session_packet(
        &mut self,
        conn: ConnId,
        slot: u32,
        packet: Packet,
        out: &mut Vec<Output>,
    ) {
        match packet {
            Packet::PubAck(ack) => self.on_puback(conn, slot, &ack, out),
            Packet::PubRec(ack) => self.on_pubrec(conn, slot, &ack, out),
            Packet::PubRel(ack) => self.on_pubrel(conn, slot, &ack, out),
            Packet::PubComp(ack) => self.on_pubcomp(conn, slot, &ack, out),
            Packet::PingReq => {
                // [MQTT-3.12.4-1]
                add(&mut self.env.counters.packets_out, 1);
                if let Some(session) = self.slots.session(slot) {
                    session.send_bytes(PINGRESP, out);
                }
                self.check_unsent(conn, slot, out);
            }
            Packet::Subscribe(packet) => self.on_subscribe(conn, slot, &packet, out),
            Packet::Unsubscribe(packet) => self.on_unsubscribe(conn, slot, &packet, out),
            Packet::Disconnect(packet) => self.on_disconnect(conn, slot, &packet, out),
            Packet::Auth(packet) => self.on_auth(conn, &packet, out),
            // A second CONNECT [MQTT-3.1.0-2], and what only servers send.
            _ => self.protocol_error(conn, ReasonCode::PROTOCOL_ERROR, out),
        }
    }
}

const PINGRESP: bytes::Bytes = bytes::Bytes::from_static(&[0xd0, 0]);
