//! A thread that looks at how short memory, CPU time and handshakes run, tells the workers, and says so in the log and
//! below `$SYS/broker/overload`.

use super::{background::Background, supervisor::Workshop, sys::SysSource};
use crate::{
    metrics::{Label, Resource},
    overload::{
        OverloadStatus,
        ladder::{Ladder, Steps},
        memory::{MemoryNow, MemoryWatch},
    },
};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(100);
/// The same once memory may soon be short, so that what comes between two looks is little.
const INTERVAL_CLOSE: Duration = Duration::from_millis(10);
/// Which is from so much of the limit on, %.
const CLOSE_SHARE: u64 = 70;
/// How often one resource is mentioned in the log, at most, unless it gets worse.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Levels of handshakes, by [`crowd`].
const HANDSHAKES: Steps = Steps {
    up: [1, 2, u64::MAX],
    down: [1, 2, u64::MAX],
    rise: Duration::from_millis(500),
    rise_values: 3,
    fall: Duration::from_secs(1),
};
/// From this share of the places on that are taken, new connections get no answer before long, %.
const CROWDED_SHARE: u64 = 90;

/// Starts the thread. `sys`: whose topics tell of it, unless they are off.
pub(super) fn spawn(
    workshop: Arc<Workshop>,
    mut memory: MemoryWatch,
    sys: Option<SysSource>,
) -> io::Result<Background> {
    Background::spawn("headgate-watch", move |pause| {
        let mut eye = Eye::new(Instant::now());
        let mut interval = INTERVAL;
        while pause.wait(interval) {
            let now = eye.look(&workshop, &mut memory, sys.as_ref(), Instant::now());
            interval = match is_close(now) {
                true => INTERVAL_CLOSE,
                false => INTERVAL,
            };
        }
    })
}

impl Workshop {
    /// How short the resources run.
    pub fn overload(&self) -> OverloadStatus {
        OverloadStatus::of(self.admission.overload(), &self.metrics)
    }
}

struct Eye {
    handshakes: Ladder,
    looked: Instant,
    told: [Told; 3],
}

impl Eye {
    fn new(now: Instant) -> Self {
        Self {
            handshakes: Ladder::new(HANDSHAKES),
            looked: now,
            told: Default::default(),
        }
    }

    fn look(
        &mut self,
        workshop: &Workshop,
        memory: &mut MemoryWatch,
        sys: Option<&SysSource>,
        now: Instant,
    ) -> MemoryNow {
        let overload = workshop.admission.overload();
        let before = overload.memory();
        let after = memory.look(now);
        overload.set_memory(after);
        let waiting = workshop.metrics.sum(|m| m.initials_waiting.get());
        let span = (std::mem::replace(&mut self.looked, now), now);
        let crowd = crowd(waiting, workshop.initials_waiting_max());
        overload.set_handshakes(self.handshakes.note(crowd, span));
        if needs_the_workers(before, after) {
            workshop.ring_doorbells();
        }
        let status = workshop.overload();
        for (told, resource) in self.told.iter_mut().zip(Resource::ALL) {
            let level = status.level(*resource);
            if told.is_worth_a_line(level, now) {
                log(*resource, &status);
            }
            let Some(sys) = sys.filter(|_| told.topic != Some(level)) else {
                continue;
            };
            let topic = format!("overload/{}", resource.text());
            if sys.tell(&topic, &level.to_string()) {
                told.topic = Some(level);
            }
        }
        after
    }
}

/// What was said of a resource.
#[derive(Default)]
struct Told {
    /// The level that its topic has.
    topic: Option<u8>,
    /// The level that the log has, and since when.
    logged: u8,
    at: Option<Instant>,
}

impl Told {
    fn is_worth_a_line(&mut self, level: u8, now: Instant) -> bool {
        let is_recent = self
            .at
            .is_some_and(|at| now.duration_since(at) < LOG_INTERVAL);
        if level == self.logged || is_recent && level < self.logged {
            return false;
        }
        // What comes and goes gets a line for the first time, and then one in a while.
        if is_recent && self.logged == 0 {
            return false;
        }
        (self.logged, self.at) = (level, Some(now));
        true
    }
}

/// Whether memory may soon be short.
fn is_close(now: MemoryNow) -> bool {
    now.limit_bytes > 0 && now.used_bytes / CLOSE_SHARE >= now.limit_bytes / 100
}

/// Workers that sleep look at the memory when they wake up; that may be a second later.
fn needs_the_workers(before: MemoryNow, after: MemoryNow) -> bool {
    before.level != after.level || after.excess_bytes > 0
}

/// How many connections wait to be begun: 0 = none, 1 = some, 2 = about as many as may.
fn crowd(waiting: u64, max: u64) -> u64 {
    match waiting {
        0 => 0,
        _ if waiting * 100 >= max * CROWDED_SHARE => 2,
        _ => 1,
    }
}

fn log(resource: Resource, status: &OverloadStatus) {
    let level = status.level(resource);
    if level == 0 {
        return tracing::info!(resource = resource.text(), "is no longer short");
    }
    let (used_mib, limit_mib) = (
        status.memory_used_bytes >> 20,
        status.memory_limit_bytes >> 20,
    );
    let waiting = status.initials_waiting;
    match (resource, level) {
        (Resource::Memory, 1) => tracing::warn!(
            level,
            used_mib,
            limit_mib,
            "memory is short: new connections are refused; raise limits.memory_limit, add memory, or another node"
        ),
        (Resource::Memory, 2) => tracing::warn!(
            level,
            used_mib,
            limit_mib,
            "memory is short: messages with QoS 0 that would have to wait are dropped"
        ),
        (Resource::Memory, _) => tracing::warn!(
            level,
            used_mib,
            limit_mib,
            "memory is short: the slowest consumers are closed; lower limits.memory_per_connection_bytes or the quota classes' memory_bytes"
        ),
        (Resource::Cpu, 1) => tracing::warn!(
            level,
            "a worker is behind: new connections wait; more cores, or fewer clients on this node"
        ),
        (Resource::Cpu, 2) => tracing::warn!(
            level,
            "a worker is behind: messages with QoS 0 that would have to wait are dropped"
        ),
        (Resource::Cpu, _) => tracing::warn!(
            level,
            "a worker is behind: the slowest consumers are closed; quota classes can limit who publishes the most"
        ),
        (Resource::Handshakes, 1) => tracing::warn!(
            level,
            waiting,
            "new connections wait: more come than limits.handshakes_per_second or the workers' time let in"
        ),
        (Resource::Handshakes, _) => tracing::warn!(
            level,
            waiting,
            "as many packets of new connections wait as limits.initials_waiting allows; the others are dropped, and repeated by their clients"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_comes_and_goes_does_not_fill_the_log() {
        let (mut told, start) = (Told::default(), Instant::now());
        let mut lines = |levels: &[u8], from_ms: u64| {
            let at = |n: usize| start + Duration::from_millis(from_ms + 100 * n as u64);
            let worth = levels.iter().enumerate();
            let worth = worth.filter(|(n, level)| told.is_worth_a_line(**level, at(*n)));
            worth.map(|(_, level)| *level).collect::<Vec<_>>()
        };
        assert_eq!(lines(&[0, 1, 1, 0, 1, 0, 1, 2, 3, 2], 0), [1, 2, 3]);
        assert_eq!(lines(&[0, 0, 1, 1, 0, 1], 20_000), [0]);
        assert_eq!(lines(&[1, 0], 40_000), [1]);
    }

    #[test]
    fn a_crowd_is_when_the_places_are_taken() {
        assert_eq!(crowd(0, 1_000), 0);
        assert_eq!(crowd(1, 1_000), 1);
        assert_eq!(crowd(900, 1_000), 2);
    }
}
