//! Who may open a connection, and when.
//!
//! Beginning a connection costs a hundred times what a packet of one that is up does. So a worker begins only as many in
//! a turn as fit in a slice of time, and the others wait: when a whole fleet comes back at once, it is let in as fast as
//! the worker can, and those that are in notice little of it.

use super::{QuicLink, QuicSide, Record, Unvalidated, Window};
use crate::{
    limits::{Admission, Limit, Permit},
    metrics::{Transport, WorkerMetrics},
    net::tcp::canonical,
    worker::{
        Clock,
        conns::{Conn, Conns, Link},
    },
};
use headgate_core::ConnId;
use quinn_proto::Incoming;
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

/// Time for beginning connections in one turn.
const SLICE: Duration = Duration::from_millis(10);
/// The same while the socket holds more than a turn takes from it: they may be packets of clients that are up.
const SLICE_BEHIND: Duration = Duration::from_millis(2);
/// How long a connection waits to be begun. Its client may have given up then, and if not, it repeats its Initial.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How soon it is looked again whether the worker has time.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A connection that is to be begun.
struct Waiting {
    incoming: Incoming,
    /// Of its first datagram.
    bytes: usize,
    since: Instant,
}

/// Connections that are to be begun, in their order. quinn-proto announces no more than its `max_incoming` of them.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    /// Time spent in this turn.
    spent: Duration,
    /// The worker's time is short: none is begun.
    is_short: bool,
    /// When the rate allows the next.
    next_at: Option<Instant>,
}

impl Queue {
    /// Whether one that comes now can be begun at once.
    fn lets_pass(&self) -> bool {
        self.waiting.is_empty() && !self.is_short && self.spent < SLICE_BEHIND
    }

    /// The next one, unless it has to wait on.
    fn pop(&mut self, slice: Duration, admission: &Admission, now: Instant) -> Option<Waiting> {
        if self.is_short || self.spent >= slice {
            return None;
        }
        self.next_at = admission.next_handshake(now);
        match self.next_at {
            None => self.waiting.pop_front(),
            Some(_) => None,
        }
    }

    fn pop_expired(&mut self, now: Instant) -> Option<Waiting> {
        let is_expired = |waiting: &mut Waiting| now.duration_since(waiting.since) > WAIT_MAX;
        self.waiting.pop_front_if(is_expired)
    }
}

impl QuicSide {
    /// No new connections from now on: the server shuts down.
    pub fn stop_accepting(&mut self) {
        self.accepting = false;
        while let Some(waiting) = self.queue.waiting.pop_front() {
            self.refuse(waiting.incoming);
        }
    }

    /// Whether the worker's time is too short for new connections.
    pub fn set_short(&mut self, is_short: bool) {
        self.queue.is_short = is_short;
    }

    /// When a connection that waits can be begun; `None` = none waits.
    pub fn begins_at(&self, now: Instant) -> Option<Instant> {
        if self.queue.waiting.is_empty() {
            return None;
        }
        match self.queue.is_short {
            true => Some(now + LOOK_AGAIN),
            false => Some(self.queue.next_at.unwrap_or(now)),
        }
    }

    /// A connection is to be begun: at once, if there is time for it. Returns it then.
    pub(super) fn incoming(
        &mut self,
        (incoming, bytes): (Incoming, usize),
        conns: &mut Conns,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<ConnId> {
        let incoming = self.validated(incoming, metrics, clock)?;
        let is_above_rate = admission.next_handshake(clock.now).is_some();
        if !self.accepting || self.queue.lets_pass() && !is_above_rate {
            return self.begin((incoming, bytes), conns, admission, metrics, clock);
        }
        if is_above_rate {
            metrics.refused[Limit::HandshakesPerSecond].inc();
        }
        metrics.handshakes_delayed.inc();
        self.queue.waiting.push_back(Waiting {
            incoming,
            bytes,
            since: clock.now,
        });
        None
    }

    /// Begins those that wait, as far as there is time for it in this turn: less if the worker `is_behind` with what has
    /// come. `opened` gets the connections.
    pub fn begin_waiting(
        &mut self,
        conns: &mut Conns,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        (clock, is_behind): (Clock, bool),
        opened: &mut Vec<ConnId>,
    ) {
        let slice = if is_behind { SLICE_BEHIND } else { SLICE };
        while let Some(waiting) = self.queue.pop_expired(clock.now) {
            metrics.handshakes_expired.inc();
            self.endpoint.ignore(waiting.incoming);
        }
        while let Some(waiting) = self.queue.pop(slice, admission, clock.now) {
            let incoming = (waiting.incoming, waiting.bytes);
            opened.extend(self.begin(incoming, conns, admission, metrics, clock));
        }
        self.queue.spent = Duration::ZERO;
        metrics
            .handshakes_waiting
            .store(self.queue.waiting.len() as u64);
    }

    /// Begins a connection, if it may.
    fn begin(
        &mut self,
        incoming: (Incoming, usize),
        conns: &mut Conns,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<ConnId> {
        let begun = Instant::now();
        let opened = self.accept(incoming, conns, admission, metrics, clock);
        self.queue.spent += begun.elapsed();
        opened
    }

    fn accept(
        &mut self,
        (incoming, bytes): (Incoming, usize),
        conns: &mut Conns,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<ConnId> {
        let peer = incoming.remote_address();
        let (incoming, permit) = self.admitted(incoming, admission, metrics, clock)?;
        metrics.handshakes[Transport::Quic].inc();
        let unvalidated = (!incoming.remote_address_validated()).then(|| {
            let mut address = Unvalidated::default();
            address.received(bytes);
            Box::new(address)
        });
        match self.endpoint.accept(
            incoming,
            clock.now,
            &mut self.buffer,
            self.settings.qlogs.wanted(peer.ip()),
        ) {
            Ok((handle, connection)) => {
                let mut record = Record::default();
                self.guard.note(&mut record);
                let link = QuicLink {
                    handle,
                    connection,
                    control: false,
                    readable: false,
                    blocked: false,
                    linger: None,
                    connected: false,
                    unvalidated,
                    window: Window::new(self.settings.receive_window_bytes, clock.time().0),
                    record,
                    streams_max: 0,
                    refused: false,
                    data: None,
                };
                let link = Link::Quic(Box::new(link));
                let id = conns.insert(|id| Conn::new(id, canonical(peer), permit, link));
                if self.places.len() <= handle.0 {
                    self.places.resize(handle.0 + 1, u32::MAX);
                }
                self.places[handle.0] = id.index;
                conns.schedule(id.index);
                Some(id)
            }
            Err(error) => {
                metrics.handshakes_failed[Transport::Quic].inc();
                if let Some(transmit) = error.response {
                    self.send.push(&transmit, &self.buffer);
                }
                None
            }
        }
    }

    /// The connection back, if its client need not prove its address first.
    fn validated(
        &mut self,
        incoming: Incoming,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<Incoming> {
        if incoming.remote_address_validated() {
            return Some(incoming);
        }
        // Whoever has seen a connection ID of ours opens nothing with it: a client's first one is its own.
        if self.guard.is_ours(incoming.orig_dst_cid()) {
            metrics.initials_to_own_cids.inc();
            self.endpoint.ignore(incoming);
            return None;
        }
        if !self.guard.retry.asks(clock.now) || !incoming.may_retry() {
            return Some(incoming);
        }
        self.buffer.clear();
        if let Ok(retry) = self.endpoint.retry(incoming, &mut self.buffer) {
            metrics.retries.inc();
            self.send.push(&retry, &self.buffer);
        }
        self.guard.discard();
        None
    }

    /// Whether a connection may begin; otherwise its client is told so, or not.
    fn admitted(
        &mut self,
        incoming: Incoming,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<(Incoming, Permit)> {
        if self.accepting {
            let address = incoming.remote_address().ip().to_canonical();
            match admission.admit(address, clock.now) {
                Ok(permit) => {
                    self.buffer.clear();
                    return Some((incoming, permit));
                }
                Err(limit) => {
                    metrics.refused[limit].inc();
                    if matches!(limit, Limit::HandshakesPerSecond | Limit::Denied) {
                        // The client repeats its Initial: silence delays it, an answer turns it away. Who is denied is
                        // not even told that there is a broker.
                        self.endpoint.ignore(incoming);
                        return None;
                    }
                }
            }
        }
        self.refuse(incoming);
        None
    }

    /// Tells a client that it can't connect (CONNECTION_REFUSED).
    fn refuse(&mut self, incoming: Incoming) {
        self.buffer.clear();
        let refusal = self.endpoint.refuse(incoming, &mut self.buffer);
        self.send.push(&refusal, &self.buffer);
        self.guard.discard();
    }
}

impl Drop for QuicSide {
    fn drop(&mut self) {
        // quinn-proto takes one that is just dropped for a mistake, and says so in the log.
        while let Some(waiting) = self.queue.waiting.pop_front() {
            self.endpoint.ignore(waiting.incoming);
        }
    }
}
