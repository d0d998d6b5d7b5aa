//! Who may open a connection, and when.
//!
//! Beginning a connection costs a hundred times what a packet of one that is up does. So a worker begins only as many in
//! a turn as fit in a slice of time, and the others wait, as the datagrams that they are: when a whole fleet comes back at
//! once, it is let in as fast as the worker can, and those that are in notice little of it.

use super::{Arrival, QuicLink, QuicSide, Record, Unvalidated, Window};
use crate::{
    limits::{Admission, Limit, Permit},
    mesh::ForeignDatagram,
    metrics::{DatagramDrop, Transport, WorkerMetrics},
    net::tcp::canonical,
    worker::{
        Clock,
        conns::{Conn, Conns, Link},
    },
};
use bytes::Bytes;
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
/// How long a datagram waits. Its client may have given up then, and if not, it has repeated it.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How soon it is looked again whether the worker has time.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A datagram that waits.
struct Waiting {
    datagram: ForeignDatagram,
    since: Instant,
}

/// Datagrams that may begin a connection and wait, in their order.
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    max: usize,
    /// Time spent in this turn.
    spent: Duration,
    /// The worker's time is short: none is begun.
    is_short: bool,
    /// When the rate allows the next.
    next_at: Option<Instant>,
}

impl Queue {
    /// An empty one with room for `max`.
    pub fn new(max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            max,
            spent: Duration::ZERO,
            is_short: false,
            next_at: None,
        }
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

    fn drop_expired(&mut self, metrics: &WorkerMetrics, now: Instant) {
        let is_expired = |waiting: &mut Waiting| now.duration_since(waiting.since) > WAIT_MAX;
        while self.waiting.pop_front_if(is_expired).is_some() {
            metrics.datagrams_dropped[DatagramDrop::InitialExpired].inc();
        }
    }

    fn push(&mut self, arrival: &Arrival<'_>, metrics: &WorkerMetrics, now: Instant) {
        if self.waiting.len() >= self.max {
            return metrics.datagrams_dropped[DatagramDrop::InitialsWaiting].inc();
        }
        metrics.initials_delayed.inc();
        self.waiting.push_back(Waiting {
            datagram: ForeignDatagram {
                source: arrival.source,
                destination: arrival.destination,
                ecn: arrival.ecn,
                data: Bytes::copy_from_slice(arrival.data),
            },
            since: now,
        });
    }
}

impl QuicSide {
    /// No new connections from now on: the server shuts down.
    pub fn stop_accepting(&mut self) {
        self.accepting = false;
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

    /// Takes a datagram. Returns the connection if it has begun one; what belongs to one that is there waits for
    /// [`QuicSide::deliver`], and what may begin one for [`QuicSide::begin_waiting`], unless there is time for it now.
    pub fn arrived(
        &mut self,
        arrival: Arrival<'_>,
        conns: &mut Conns,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<ConnId> {
        if !arrival.is_new {
            return self.show(arrival, conns, admission, metrics, clock);
        }
        let is_above_rate = admission.next_handshake(clock.now).is_some();
        if is_above_rate {
            metrics.refused[Limit::HandshakesPerSecond].inc();
        }
        let queue = &mut self.queue;
        let has_time = queue.waiting.is_empty() && !queue.is_short && queue.spent < SLICE_BEHIND;
        if is_above_rate || !has_time {
            queue.push(&arrival, metrics, clock.now);
            return None;
        }
        self.begin(arrival, conns, admission, metrics, clock)
    }

    /// Begins what waits, as far as there is time for it in this turn: less if the worker `is_behind` with what has come.
    /// `opened` gets the connections.
    pub fn begin_waiting(
        &mut self,
        conns: &mut Conns,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        (clock, is_behind): (Clock, bool),
        opened: &mut Vec<ConnId>,
    ) {
        let slice = if is_behind { SLICE_BEHIND } else { SLICE };
        self.queue.drop_expired(metrics, clock.now);
        while let Some(waiting) = self.queue.pop(slice, admission, clock.now) {
            let arrival = Arrival::from(&waiting.datagram);
            opened.extend(self.begin(arrival, conns, admission, metrics, clock));
            // It may be a packet that was repeated, or a further one of a connection that has begun.
            self.deliver(conns, clock);
        }
        self.queue.spent = Duration::ZERO;
        let waiting = self.queue.waiting.len() as u64;
        metrics.initials_waiting.store(waiting);
    }

    fn begin(
        &mut self,
        arrival: Arrival<'_>,
        conns: &mut Conns,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<ConnId> {
        let begun = Instant::now();
        let opened = self.show(arrival, conns, admission, metrics, clock);
        self.queue.spent += begun.elapsed();
        opened
    }

    /// Begins a connection, if it may.
    pub(super) fn accept(
        &mut self,
        (incoming, bytes): (Incoming, usize),
        conns: &mut Conns,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<ConnId> {
        let peer = incoming.remote_address();
        let incoming = self.validated(incoming, metrics, clock)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::AdmissionLimits;

    fn arrival(data: &[u8]) -> Arrival<'_> {
        Arrival {
            source: ([192, 0, 2, 1], 7).into(),
            destination: None,
            ecn: None,
            data,
            is_own: false,
            is_new: true,
        }
    }

    fn admission(handshakes_per_second: u32, now: Instant) -> Arc<Admission> {
        let limits = AdmissionLimits {
            connections: 0,
            connections_per_prefix: 0,
            handshakes_per_second,
        };
        Admission::new(limits, now)
    }

    #[test]
    fn datagrams_wait_in_their_order_within_bounds_and_not_for_long() {
        let (metrics, now) = (WorkerMetrics::default(), Instant::now());
        let admission = admission(0, now);
        let mut queue = Queue::new(3);
        for number in 0..5u8 {
            let at = now + Duration::from_secs(number.into());
            queue.push(&arrival(&[number]), &metrics, at);
        }
        let dropped = |reason| metrics.datagrams_dropped[reason].get();
        assert_eq!(dropped(DatagramDrop::InitialsWaiting), 2);
        assert_eq!(metrics.initials_delayed.get(), 3);
        queue.drop_expired(&metrics, now + WAIT_MAX + Duration::from_millis(1));
        assert_eq!(dropped(DatagramDrop::InitialExpired), 1);
        let mut pop = || queue.pop(SLICE, &admission, now);
        let left = std::iter::from_fn(|| Some(pop()?.datagram.data[0]));
        assert_eq!(left.collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_slice_that_is_used_up_a_rate_and_a_worker_without_time_let_them_wait() {
        let (metrics, now) = (WorkerMetrics::default(), Instant::now());
        let admission = admission(1, now);
        let mut queue = Queue::new(9);
        for _ in 0..3 {
            queue.push(&arrival(b"x"), &metrics, now);
        }
        queue.spent = SLICE;
        assert!(queue.pop(SLICE, &admission, now).is_none());
        queue.spent = Duration::ZERO;
        queue.is_short = true;
        assert!(queue.pop(SLICE, &admission, now).is_none());
        queue.is_short = false;
        assert!(queue.pop(SLICE, &admission, now).is_some());
        let _permit = admission.admit([192, 0, 2, 1].into(), now);
        assert!(queue.pop(SLICE, &admission, now).is_none());
        let next_at = queue.next_at.expect("the rate has a next time");
        assert!(queue.pop(SLICE, &admission, next_at).is_some());
    }
}
