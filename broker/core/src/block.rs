//! What a full queue has for consequences beyond its session: a slow client is disconnected, or a publisher isn't read
//! from until there is room (back pressure).
//!
//! A session of a class that blocks ([`crate::WhenFull::Block`]) and its publishers may be on different workers: the
//! session's worker says `Hold` and `GoOn`, and the publisher's worker stops the reading and starts it again. It does so
//! by itself after `full_queue_ms_max`, so that neither a lost message nor a client that stands still holds anybody up for longer.

use std::collections::{BTreeMap, BTreeSet};

use headgate_codec::ReasonCode;

use crate::{
    ConnId, Mesh, Output, Publisher, Time,
    close::End,
    conns::PAUSED_BLOCKED,
    counters::add,
    hub::Hub,
    slots::{Handle, Slot},
};

/// What follows from a full queue, or from one that has room again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Consequence {
    /// This session's client is too slow for its class.
    Disconnect(Handle),
    /// This publisher isn't read from until the session has room.
    Hold(Publisher, Handle),
    /// The session has room.
    GoOn(Publisher, Handle),
}

/// Publishers of this worker that are not read from because of full queues.
#[derive(Debug, Default)]
pub(crate) struct HeldPublishers {
    held: BTreeMap<ConnId, HeldPublisher>,
    /// The same by time.
    until: BTreeSet<(Time, ConnId)>,
}

#[derive(Debug)]
struct HeldPublisher {
    until: Time,
    /// Sessions, of any worker, that have no room.
    by: BTreeSet<u64>,
}

impl HeldPublishers {
    /// `true` = it was read from until now.
    fn hold(&mut self, conn: ConnId, by: u64, until: Time) -> bool {
        let mut is_new = false;
        let entry = self.held.entry(conn).or_insert_with(|| {
            is_new = true;
            HeldPublisher {
                until,
                by: BTreeSet::new(),
            }
        });
        entry.by.insert(by);
        if is_new {
            self.until.insert((until, conn));
        }
        is_new
    }

    /// `true` = nothing holds it any more.
    fn go_on(&mut self, conn: ConnId, by: u64) -> bool {
        let Some(entry) = self.held.get_mut(&conn) else {
            return false;
        };
        entry.by.remove(&by);
        entry.by.is_empty() && self.forget(conn)
    }

    /// Whether it was held.
    pub(crate) fn forget(&mut self, conn: ConnId) -> bool {
        let Some(entry) = self.held.remove(&conn) else {
            return false;
        };
        self.until.remove(&(entry.until, conn))
    }

    /// When the next one goes on by itself.
    pub(crate) fn next(&self) -> Option<Time> {
        self.until.first().map(|(at, _)| *at)
    }

    fn take_due(&mut self, now: Time) -> Option<ConnId> {
        let (_, conn) = self.until.first().copied().filter(|(at, _)| *at <= now)?;
        self.forget(conn);
        Some(conn)
    }
}

impl Hub {
    /// Does what follows from queues that this input has filled or emptied.
    #[cold]
    pub(crate) fn draw_consequences(&mut self, out: &mut Vec<Output>) {
        // Each may bring others: a client that is disconnected has nobody wait for it.
        let mut next = 0;
        while let Some(consequence) = self.env.consequences.get(next).copied() {
            next += 1;
            match consequence {
                Consequence::Disconnect(handle) => self.disconnect_slow(handle, out),
                Consequence::Hold(publisher, by) => self.tell((publisher, by), true, out),
                Consequence::GoOn(publisher, by) => self.tell((publisher, by), false, out),
            }
        }
        self.env.consequences.clear();
    }

    fn disconnect_slow(&mut self, handle: Handle, out: &mut Vec<Output>) {
        let Some(Slot::Live(session)) = self.slots.by_handle_as_it_is(handle) else {
            return;
        };
        if let Some(conn) = session.conn {
            add(&mut self.env.counters.slow_disconnected, 1);
            self.close(conn, End::Server(ReasonCode::QUOTA_EXCEEDED), out);
        }
    }

    fn tell(&mut self, (publisher, by): (Publisher, Handle), on: bool, out: &mut Vec<Output>) {
        if publisher.worker == self.config.worker {
            return self.on_hold(publisher.conn, by.0, on, out);
        }
        out.push(Output::Mesh {
            to: publisher.worker,
            origin: None,
            message: Mesh::Hold {
                conn: publisher.conn,
                session: by.0,
                on,
            },
        });
    }

    /// A session that a connection has published to has no room, or has some again.
    pub(crate) fn on_hold(&mut self, conn: ConnId, by: u64, on: bool, out: &mut Vec<Output>) {
        if !on {
            if self.held_publishers.go_on(conn, by) {
                self.pause(conn, PAUSED_BLOCKED, false, out);
            }
            return;
        }
        let until = self
            .env
            .now
            .after_ms(self.env.limits.full_queue_ms_max.into());
        if self.conns.is_up(conn) && self.held_publishers.hold(conn, by, until) {
            add(&mut self.env.counters.publishers_held, 1);
            self.pause(conn, PAUSED_BLOCKED, true, out);
        }
    }

    /// Publishers that have waited for as long as they may go on.
    pub(crate) fn release_publishers(&mut self, out: &mut Vec<Output>) {
        while let Some(conn) = self.held_publishers.take_due(self.env.now) {
            add(&mut self.env.counters.publishers_held_too_long, 1);
            self.pause(conn, PAUSED_BLOCKED, false, out);
        }
    }
}
