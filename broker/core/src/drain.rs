//! Draining a node: its clients are sent to another server (MQTT 5.0 §4.11).

use headgate_codec::{DisconnectProperties, ReasonCode, Text};

use crate::{Drain, Output, Time, close::End, hub::Hub, session::NEVER};

/// How often clients are sent away, ms; each time a tenth of a second's worth.
const PORTION_MS: u64 = 100;

/// A drain that goes on.
#[derive(Debug)]
pub(crate) struct Draining {
    drain: Drain,
    /// Place of the next connection to be looked at.
    place: u32,
    /// When; never once all have been told.
    next: Time,
}

impl Draining {
    pub(crate) fn next(&self) -> Time {
        self.next
    }
}

impl Drain {
    fn reason(&self) -> ReasonCode {
        if self.moved {
            ReasonCode::SERVER_MOVED
        } else {
            ReasonCode::USE_ANOTHER_SERVER
        }
    }
}

impl Hub {
    /// Begins to drain, or takes clients again.
    pub(crate) fn on_drain(&mut self, drain: Option<Drain>, out: &mut Vec<Output>) {
        let next = self.env.now;
        self.draining = drain.map(|drain| Draining {
            drain,
            place: 0,
            next,
        });
        self.work_off_drain(out);
    }

    /// Sends the next clients away.
    pub(crate) fn work_off_drain(&mut self, out: &mut Vec<Output>) {
        let Some(draining) = self.draining.as_mut().filter(|d| d.next <= self.env.now) else {
            return;
        };
        let reason = draining.drain.reason();
        let portion = u64::from(draining.drain.clients_per_second) * PORTION_MS / 1_000;
        let (mut place, mut left) = (draining.place, portion.max(1));
        while left > 0 && (place as usize) < self.conns.places() {
            if let Some(conn) = self.conns.at(place)
                && self.conns.is_up(conn)
            {
                left -= 1;
                self.close(conn, End::Server(reason), out);
            }
            place += 1;
        }
        let is_done = place as usize >= self.conns.places();
        let next = self.env.now.after_ms(PORTION_MS);
        if let Some(draining) = &mut self.draining {
            draining.place = place;
            draining.next = if is_done { NEVER } else { next };
        }
    }

    /// Why a new client is turned away, if the node is drained.
    pub(crate) fn turned_away(&self) -> Option<ReasonCode> {
        self.draining.as_ref().map(|d| d.drain.reason())
    }

    /// Where a client that is turned away for this reason should go.
    pub(crate) fn server_reference(&self, reason: ReasonCode) -> Option<Text> {
        let draining = self.draining.as_ref()?;
        let server = draining.drain.server_reference.as_ref()?;
        (reason == draining.drain.reason()).then(|| Text::from(server.as_str()))
    }

    /// What DISCONNECT says besides its Reason Code.
    pub(crate) fn explained_end(&self, reason: ReasonCode) -> Option<Box<DisconnectProperties>> {
        let reason_string = crate::reasons::explain(reason).map(Text::from);
        let server_reference = self.server_reference(reason);
        (reason_string.is_some() || server_reference.is_some()).then(|| {
            Box::new(DisconnectProperties {
                reason_string,
                server_reference,
                ..DisconnectProperties::default()
            })
        })
    }
}
