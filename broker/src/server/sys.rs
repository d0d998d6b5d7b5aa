//! The topics below `$SYS/broker`, by mosquitto's names: a thread reads the counters and gives worker 0 what has changed, to be
//! published as retained messages.

use super::background::Background;
use crate::{
    mesh::Mesh,
    metrics::{Metrics, WorkerMetrics},
    worker::Control,
};
use headgate_codec::Text;
use headgate_core::{Input, Shared, WorkerSlot};
use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// Minutes over which loads are averaged.
const MINUTES: [u32; 3] = [1, 5, 15];

/// What the topics are about.
pub(super) struct SysSource {
    pub metrics: Arc<Metrics>,
    pub shared: Arc<Shared>,
    pub mesh: Arc<Mesh>,
    /// Of worker 0.
    pub control: Arc<Control>,
    pub start: Instant,
}

impl SysSource {
    /// Publishes a value below `$SYS/broker`. `false`: worker 0 takes nothing.
    pub fn tell(&self, topic: &str, value: &str) -> bool {
        let is_taken = self.control.order(Input::Publish {
            topic: Text::from(format!("$SYS/broker/{topic}").as_str()),
            payload: value.to_owned().into(),
        });
        if is_taken {
            self.mesh.ring_doorbell(WorkerSlot(0));
        }
        is_taken
    }
}

/// Starts the thread, which publishes every `interval_s` seconds.
pub(super) fn spawn(source: SysSource, interval_s: u32) -> io::Result<Background> {
    let interval = Duration::from_secs(u64::from(interval_s));
    Background::spawn("headgate-sys", move |pause| {
        let mut topics = Topics::default();
        topics.tell(
            &source,
            "version",
            concat!("headgate ", env!("CARGO_PKG_VERSION")),
        );
        loop {
            topics.publish(&source, interval_s);
            if !pause.wait(interval) {
                return;
            }
        }
    })
}

/// A counter whose load is told as well: how much it grew in a minute.
struct Counted {
    /// Of the total, if it is told; below `$SYS/broker`.
    topic: Option<&'static str>,
    /// Of the load; below `$SYS/broker/load`.
    load: &'static str,
    read: fn(&WorkerMetrics) -> u64,
}

const COUNTED: &[Counted] = &[
    Counted {
        topic: Some("messages/received"),
        load: "messages/received",
        read: |m| m.packets_received.get(),
    },
    Counted {
        topic: Some("messages/sent"),
        load: "messages/sent",
        read: |m| m.packets_sent.get(),
    },
    Counted {
        topic: Some("publish/messages/received"),
        load: "publish/received",
        read: |m| m.messages_received.sum(),
    },
    Counted {
        topic: Some("publish/messages/sent"),
        load: "publish/sent",
        read: |m| m.messages_sent.sum(),
    },
    Counted {
        topic: Some("publish/messages/dropped"),
        load: "publish/dropped",
        read: |m| m.messages_dropped.sum(),
    },
    Counted {
        topic: Some("bytes/received"),
        load: "bytes/received",
        read: |m| m.bytes_received.sum(),
    },
    Counted {
        topic: Some("bytes/sent"),
        load: "bytes/sent",
        read: |m| m.bytes_sent.sum(),
    },
    Counted {
        topic: None,
        load: "sockets",
        read: |m| m.connections_opened.sum(),
    },
    Counted {
        topic: None,
        load: "connections",
        read: |m| m.connects_accepted.get(),
    },
];

/// What was told last.
#[derive(Default)]
struct Topics {
    told: BTreeMap<String, String>,
    /// By counter: its value, and its averages.
    loads: Vec<(u64, [f64; MINUTES.len()])>,
    clients_max: u64,
}

impl Topics {
    fn publish(&mut self, source: &SysSource, interval_s: u32) {
        let sum = |read: fn(&WorkerMetrics) -> u64| source.metrics.sum(read);
        let uptime = format!("{} seconds", source.start.elapsed().as_secs());
        self.tell(source, "uptime", &uptime);
        let (sessions, connected) = (sum(|m| m.sessions.get()), sum(|m| m.clients.get()));
        let disconnected = sessions.saturating_sub(connected);
        self.clients_max = self.clients_max.max(connected);
        for (topic, value) in [
            ("clients/total", sessions),
            ("clients/connected", connected),
            ("clients/active", connected),
            ("clients/disconnected", disconnected),
            ("clients/inactive", disconnected),
            ("clients/maximum", self.clients_max),
            ("clients/expired", sum(|m| m.sessions_expired.get())),
            ("subscriptions/count", sum(|m| m.subscriptions.get())),
            (
                "shared_subscriptions/count",
                source.shared.shared_subscriptions() as u64,
            ),
            (
                "retained messages/count",
                source.shared.retained.len() as u64,
            ),
        ] {
            self.tell(source, topic, &value.to_string());
        }
        if let Some(bytes) = crate::metrics::resident_bytes() {
            self.tell(source, "heap/current", &bytes.to_string());
        }
        self.counted(source, interval_s);
    }

    fn counted(&mut self, source: &SysSource, interval_s: u32) {
        let is_first = self.loads.is_empty();
        for (index, counted) in COUNTED.iter().enumerate() {
            let value = source.metrics.sum(counted.read);
            if let Some(topic) = counted.topic {
                self.tell(source, topic, &value.to_string());
            }
            if is_first {
                self.loads.push((value, [0.0; MINUTES.len()]));
                continue;
            }
            let (last, averages) = &mut self.loads[index];
            let grown = value.saturating_sub(std::mem::replace(last, value));
            let averages = averages_after(averages, grown, interval_s);
            for (minutes, average) in MINUTES.into_iter().zip(averages) {
                let topic = format!("load/{}/{minutes}min", counted.load);
                self.tell(source, &topic, &format!("{average:.2}"));
            }
        }
    }

    /// Publishes a value, if it is another than the last time.
    fn tell(&mut self, source: &SysSource, topic: &str, value: &str) {
        if self.told.get(topic).is_some_and(|told| told == value) {
            return;
        }
        // A worker that takes nothing gets it the next time.
        if source.tell(topic, value) {
            self.told.insert(topic.to_owned(), value.to_owned());
        }
    }
}

/// Moving averages per minute, each after `grown` more in `interval_s` seconds.
fn averages_after(
    averages: &mut [f64; MINUTES.len()],
    grown: u64,
    interval_s: u32,
) -> [f64; MINUTES.len()] {
    let interval_s = f64::from(interval_s);
    let per_minute = grown as f64 * 60.0 / interval_s;
    for (minutes, average) in MINUTES.into_iter().zip(averages.iter_mut()) {
        let kept = (-interval_s / (60.0 * f64::from(minutes))).exp();
        *average = per_minute + kept * (*average - per_minute);
    }
    *averages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_come_to_the_rate_and_the_longer_ones_slower() {
        let mut averages = [0.0; 3];
        let after_a_minute = (0..6).fold([0.0; 3], |_, _| averages_after(&mut averages, 100, 10));
        // A minute brings the one-minute average to 1 - 1/e of the rate.
        assert!(
            (after_a_minute[0] - 600.0 * 0.632).abs() < 1.0,
            "{after_a_minute:?}"
        );
        assert!(after_a_minute.is_sorted_by(|a, b| a > b));
        let later = (0..1_000).fold([0.0; 3], |_, _| averages_after(&mut averages, 100, 10));
        assert!(
            later.iter().all(|average| (average - 600.0).abs() < 1.0),
            "{later:?}"
        );
    }
}
