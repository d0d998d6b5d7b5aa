//! Serving the connections that something happened to: reading, then writing, in rounds, so that
//! all that a turn produces for one connection leaves together.

use super::{
    Clock, Worker,
    conns::{Conn, Link, Outbox, PREFETCH_AHEAD},
};
use crate::limits::Limit;
use crate::net::{
    quic::{Progress, error_code},
    tcp::{End, TcpSide},
};
use headgate_codec::{Packet, ReasonCode};
use headgate_core::Input;
use std::time::{Duration, Instant};

/// Packets taken from one connection before the others have their turn.
pub(super) const PACKETS_PER_SERVE: usize = 1024;
/// Bytes taken from a stream at a time.
const READ_BYTES: usize = 64 * 1024;

/// How long a connection that is to be closed may take to accept what was sent to it before.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);

/// Whether a connection has more to be read.
enum Reading {
    /// Nothing more now.
    Done,
    /// The budget is used up.
    Again,
    /// The stream has ended.
    Ended,
    /// The peer has ended it, and waits for an answer that is under way.
    Closed,
}

impl Worker {
    /// One round: everything scheduled is read, then everything touched is flushed.
    pub(super) fn serve_round(&mut self, clock: Clock) {
        self.round = self.round.wrapping_add(1);
        let mut serving = std::mem::take(&mut self.serving);
        let mut served = 0;
        loop {
            self.conns.take_scheduled(&mut serving);
            if served == serving.len() {
                break;
            }
            while served < serving.len() {
                let index = serving[served];
                if self
                    .conns
                    .at(index)
                    .is_some_and(|conn| std::mem::take(&mut conn.eventful))
                {
                    self.ingest(index, clock);
                }
                served += 1;
            }
        }
        for (at, &index) in serving.iter().enumerate() {
            if let Some(&ahead) = serving.get(at + 2 * PREFETCH_AHEAD) {
                self.conns.prefetch(ahead);
            }
            if let Some(&ahead) = serving.get(at + PREFETCH_AHEAD) {
                self.conns.prefetch_link(ahead);
            }
            let Some(conn) = self.conns.at(index) else {
                continue;
            };
            if conn.flushed_in != self.round {
                conn.flushed_in = self.round;
                self.flush(index, clock);
            }
        }
        serving.clear();
        self.serving = serving;
    }

    /// Takes what has arrived on a connection to the core.
    fn ingest(&mut self, index: u32, clock: Clock) {
        let Some(conn) = self.conns.at(index) else {
            return;
        };
        if let Link::Quic(link) = &mut conn.link {
            let Some(quic) = &mut self.quic else { return };
            if quic.poll_events(link, &self.metrics) == Progress::Lost {
                quic.close(link, error_code::CONTROL_STREAM_DOWN, clock);
                self.lost(index, clock);
                return;
            }
            self.confirm(index, clock);
        }
        let reading = self.read(index, clock);
        let more = self.read_data(index, clock);
        match reading {
            Reading::Done if !more => {}
            Reading::Done | Reading::Again => self.again.push(index),
            Reading::Closed => self.left(index, ReasonCode::SUCCESS, clock),
            Reading::Ended => {
                if let Some(Conn {
                    link: Link::Quic(link),
                    ..
                }) = self.conns.at(index)
                    && let Some(quic) = &mut self.quic
                {
                    quic.close(link, error_code::CONTROL_STREAM_DOWN, clock);
                }
                self.lost(index, clock);
            }
        }
    }

    /// The connection is gone without the core having said so.
    fn lost(&mut self, index: u32, clock: Clock) {
        self.left(index, ReasonCode::UNSPECIFIED_ERROR, clock);
        if let Some(Conn {
            link: Link::Tcp(_), ..
        }) = self.conns.at(index)
        {
            self.remove(index);
        }
    }

    fn read(&mut self, index: u32, clock: Clock) -> Reading {
        let time = clock.time();
        let mut is_alone = false;
        for _ in 0..PACKETS_PER_SERVE {
            let Some(conn) = self.conns.at(index) else {
                return Reading::Done;
            };
            if conn.closing.is_some() {
                return discard(conn, &mut self.tcp);
            }
            if !conn.open && conn.link.is_established() {
                self.open(index, clock);
                continue;
            }
            if !conn.reading || conn.held > 0 {
                return Reading::Done;
            }
            // What was sent before it on data streams and in datagrams may have come with it: the session ends with it.
            if !is_alone && conn.inbox.begins_with_disconnect() {
                if self.read_data(index, clock) {
                    return Reading::Again;
                }
                is_alone = true;
                continue;
            }
            match conn.inbox.next(conn.version, self.packet_bytes_max) {
                Ok(Some(packet)) => {
                    if let Packet::Connect(connect) = &packet {
                        conn.version.get_or_insert(connect.version);
                    }
                    conn.traffic.packets_received += 1;
                    let conn = conn.id;
                    self.driver
                        .input(&mut self.conns, Input::Packet { conn, packet }, time);
                }
                Ok(None) => {
                    let chunk = match &mut conn.link {
                        Link::Quic(link) => match &self.quic {
                            Some(quic) => {
                                let read = quic.read(link, READ_BYTES, clock);
                                read.map_err(|_| End::Lost)
                            }
                            None => Err(End::Lost),
                        },
                        Link::Tcp(link) => self.tcp.read(link),
                    };
                    match chunk {
                        Ok(Some(chunk)) => {
                            let transport = conn.link.transport();
                            self.metrics.bytes_received[transport].add(chunk.len() as u64);
                            conn.traffic.bytes_received += chunk.len() as u64;
                            conn.inbox.push(chunk);
                            if !conn.open && !self.identify(index) {
                                return Reading::Done;
                            }
                        }
                        Ok(None) => return Reading::Done,
                        Err(End::Lost) => return Reading::Ended,
                        Err(End::Closed) => return Reading::Closed,
                        Err(End::Refused(reason)) => {
                            tracing::debug!(peer = %conn.peer, ?reason, "refused below MQTT");
                            self.refuse(index, reason, clock);
                            return Reading::Done;
                        }
                    }
                }
                Err(error) => {
                    self.malformed(index, &error, clock);
                    return Reading::Done;
                }
            }
        }
        Reading::Again
    }

    /// Gives the transport what waits, lets it send, and arms its timer.
    fn flush(&mut self, index: u32, clock: Clock) {
        self.flush_data(index, clock);
        let Some(conn) = self.conns.at(index) else {
            return;
        };
        let taken = match &mut conn.link {
            Link::Quic(link) => match &mut self.quic {
                Some(quic) => quic.write(link, &mut conn.outbox).map_err(|_| ()),
                None => Err(()),
            },
            Link::Tcp(link) => self.tcp.write(link, &mut conn.outbox).map_err(|_| ()),
        };
        let Ok(taken) = taken else {
            if let Link::Quic(link) = &mut conn.link
                && let Some(quic) = &mut self.quic
            {
                quic.close(link, error_code::CONTROL_STREAM_DOWN, clock);
                self.conns.schedule(index);
            }
            self.lost(index, clock);
            return;
        };
        let (id, empty, open) = (conn.id, conn.outbox.is_empty(), conn.open);
        let resumes = match &mut conn.link {
            Link::Tcp(link) => link.resumes(),
            Link::Quic(_) => false,
        };
        let transport = conn.link.transport();
        conn.traffic.bytes_sent += taken as u64;
        if empty && conn.outbox.frames.capacity() > 0 {
            let list = std::mem::take(&mut conn.outbox.frames);
            self.conns.recycle(list);
        }
        if resumes {
            self.conns.schedule(index);
        }
        if taken > 0 {
            self.metrics.bytes_sent[transport].add(taken as u64);
            if open {
                let input = Input::Flushed {
                    conn: id,
                    bytes: taken as u32,
                };
                self.driver.input(&mut self.conns, input, clock.time());
            }
        }
        self.settle(index, clock);
    }

    /// Closing, transmission, timer.
    fn settle(&mut self, index: u32, clock: Clock) {
        let mut by = self.time_to_set_up(index, clock);
        let Some(conn) = self.conns.at(index) else {
            return;
        };
        if conn.closing.is_some() {
            let until = *conn.close_by.get_or_insert(clock.now + CLOSE_TIME_MAX);
            by = Some(until);
            if until <= clock.now {
                conn.outbox = Outbox::default();
                if let Link::Tcp(link) = &mut conn.link {
                    link.abandon();
                }
            }
        }
        let closing = conn.closing.filter(|_| conn.outbox.is_empty());
        let (timeout, over) = match &mut conn.link {
            Link::Quic(link) => {
                let Some(quic) = &mut self.quic else { return };
                if let Some(reason) = closing {
                    quic.finish(link, reason, clock);
                }
                let (timeout, progress) = quic.transmit(link, clock);
                (timeout, progress == Progress::Drained)
            }
            Link::Tcp(link) => match closing {
                Some(reason) => {
                    let until = link.finish(reason, clock);
                    (until, until.is_none())
                }
                None => (None, false),
            },
        };
        if over {
            self.remove(index);
        } else if let Some(at) = timeout
            .into_iter()
            .chain(by.filter(|by| *by > clock.now))
            .min()
        {
            self.timers.arm(index, clock.deadline_ms(at));
        }
    }

    /// Until when a connection has to be set up, if it isn't yet; ends it when that has passed.
    fn time_to_set_up(&mut self, index: u32, clock: Clock) -> Option<Instant> {
        let conn = self.conns.at(index)?;
        if conn.closing.is_some() || conn.open && !conn.early {
            return None;
        }
        let by = conn.close_by;
        if by.is_some_and(|by| by <= clock.now) {
            self.metrics.connect_timeouts.inc();
            self.left(index, ReasonCode::UNSPECIFIED_ERROR, clock);
        }
        by
    }

    pub(super) fn remove(&mut self, index: u32) {
        let Some(mut conn) = self.conns.remove(index) else {
            return;
        };
        let transport = conn.link.transport();
        self.metrics.connections[transport].dec();
        match &conn.link {
            Link::Tcp(link) if !link.is_established() => {
                self.metrics.handshakes_failed[transport].inc();
            }
            _ => self.metrics.connections_closed[transport].inc(),
        }
        match &mut conn.link {
            Link::Quic(link) => {
                if let Some(quic) = &mut self.quic {
                    quic.forget(link);
                }
            }
            Link::Tcp(link) => link.forget(self.poll.registry()),
        }
    }

    /// Shows the counters to whoever reads the metrics.
    pub(super) fn publish(&mut self, clock: Clock) {
        self.published_at = clock.now;
        self.published.core(&self.metrics, self.driver.counters());
        if let Some(quic) = &self.quic {
            self.published.sender(&self.metrics, quic.send_counters());
            self.metrics.refused[Limit::ResumableSessions].add(quic.take_forgotten_tickets());
        }
    }
}

/// A connection that is being closed: what it still sends is read and forgotten, so that a TCP
/// reset does not overtake our last bytes.
fn discard(conn: &mut Conn, tcp: &mut TcpSide) -> Reading {
    match &mut conn.link {
        Link::Tcp(link) => match tcp.discard(link) {
            Ok(()) => Reading::Done,
            Err(_) => Reading::Ended,
        },
        Link::Quic(_) => Reading::Done,
    }
}
