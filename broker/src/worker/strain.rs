//! How short the worker's time and the machine's memory run, and what the worker gives up for it.

use super::{Clock, Worker};
use crate::overload::{
    REFUSE_CLIENTS,
    ladder::{Ladder, Steps},
};
use headgate_core::{Input, Pressure};
use std::time::{Duration, Instant};

/// Levels of a worker's time: how long a turn of its loop takes, ms, which is how long a packet may have to wait until it is
/// served. Only turn after turn counts, so that a machine that stood still for a moment is none.
const TURN_MS: Steps = Steps {
    up: [100, 500, 2_000],
    down: [50, 250, 1_000],
    rise: Duration::from_secs(1),
    rise_values: 3,
    fall: Duration::from_secs(1),
};

/// What a worker knows of it.
#[derive(Debug)]
pub(super) struct Strain {
    time: Ladder,
    /// What the core was told.
    told: Pressure,
}

impl Default for Strain {
    fn default() -> Self {
        Self {
            time: Ladder::new(TURN_MS),
            told: Pressure::default(),
        }
    }
}

impl Strain {
    /// A turn has ended.
    pub(super) fn note(&mut self, begun: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(begun);
        self.time.note(took.as_millis() as u64, (begun, ended));
    }
}

impl Worker {
    /// Tells the core and the transports what to give up, if that has changed.
    pub(super) fn feel_strain(&mut self, clock: Clock) {
        let level = self.strain.time.level();
        let overload = self.admission.overload();
        let pressure = overload.pressure(level, self.mesh.workers());
        self.metrics.cpu_level.store(level.into());
        let is_short = level >= REFUSE_CLIENTS;
        self.tcp.set_short(is_short);
        if let Some(quic) = &mut self.quic {
            quic.set_short(is_short);
        }
        if pressure != self.strain.told {
            self.strain.told = pressure;
            self.driver
                .input(&mut self.conns, Input::Pressure(pressure), clock.time());
        }
    }

    /// Begins connections over QUIC that have waited, as far as there is time for it.
    pub(super) fn begin_handshakes(&mut self, clock: Clock) {
        let Some(quic) = &mut self.quic else { return };
        let turn = (clock, self.udp_readable);
        let (admission, metrics) = (&self.admission, &self.metrics);
        quic.begin_waiting(&mut self.conns, admission, metrics, turn, &mut self.opened);
        self.accepted(clock);
    }

    /// When a connection over QUIC that waits can be begun.
    pub(super) fn begins_at(&self, now: Instant) -> Option<Instant> {
        self.quic.as_ref()?.begins_at(now)
    }
}
