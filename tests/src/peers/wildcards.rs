//! Many subscriptions with wildcards: what a delivery costs among them, and what memory they take.

use std::time::{Duration, Instant};

use headgate_codec::QoS;

use super::deliveries::clients;
use super::{Effort, Peer, Transport};
use crate::flood::Random;
use crate::load::client::publish;
use crate::load::{ClientRef, Clients, Plan, Usage};

/// Sessions that share the subscriptions, at least.
const SESSIONS_MIN: usize = 100;
/// Subscriptions of one session, at most: what headgate allows by default.
const PER_SESSION_MAX: usize = 1_000;
/// Sessions that subscribe at the same time.
const AT_ONCE: usize = 100;
/// How long subscribing may take.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a broker may take to come to rest afterwards, and how long it is looked at whether it has.
const SETTLE_MAX: Duration = Duration::from_secs(20);
const SETTLE_ROUND: Duration = Duration::from_millis(500);
/// Publishes per second, each of which one subscription matches.
const PUBLISHES_PER_S: u64 = 2_000;
/// Messages that may be on their way: what a slow broker can't take isn't offered.
const INFLIGHT_MAX: u64 = 200;
/// How long the rest of a window may take to come.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Payload of the messages, bytes.
const PAYLOAD_BYTES: usize = 128;
/// Groups have so many devices.
const DEVICES: usize = 50;

/// A broker with its subscriptions.
pub struct Forest {
    peer: Peer,
    clients: Box<dyn Clients>,
    publisher: ClientRef,
    subscriptions: usize,
    random: Random,
    published: u64,
    lost: u64,
    /// What the broker has more than before the first, per subscription; sessions and all.
    pub bytes_each: f64,
}

/// The filter `number`: half of them have `+`, half `#`.
fn filter(number: usize) -> String {
    let (group, device) = (number / DEVICES, number % DEVICES);
    match number % 2 {
        0 => format!("fleet/{group}/+/m{device}"),
        _ => format!("fleet/{group}/d{device}/#"),
    }
}

/// A topic that the filter `number` matches, and no other.
fn topic(number: usize) -> String {
    let (group, device) = (number / DEVICES, number % DEVICES);
    match number % 2 {
        0 => format!("fleet/{group}/x/m{device}"),
        _ => format!("fleet/{group}/d{device}/status"),
    }
}

impl Forest {
    /// Makes the subscriptions.
    ///
    /// # Errors
    /// The broker refuses one, or is too slow.
    pub fn new(peer: Peer, transport: Transport, subscriptions: usize) -> Result<Self, String> {
        let before = Usage::of(peer.pid());
        let sessions = (subscriptions / PER_SESSION_MAX).max(SESSIONS_MIN);
        let mut clients = clients(&peer, transport, sessions + 1);
        let each = subscriptions / sessions;
        let plan = |id, filters| Plan {
            id,
            filters,
            qos: QoS::AtMostOnce,
            expiry_s: None,
        };
        let plans = (0..sessions).map(|session| {
            let filters = session * each..(session + 1) * each;
            plan(
                format!("subscriber-{session:04}"),
                filters.map(filter).collect(),
            )
        });
        clients.connect_within(plans.collect(), AT_ONCE, SUBSCRIBE_PATIENCE)?;
        let publisher = plan("publisher".to_owned(), Vec::new());
        let publisher = clients.connect_within(vec![publisher], 1, SUBSCRIBE_PATIENCE)?[0];
        settle(&peer, clients.as_mut())?;
        let more = Usage::of(peer.pid()) - before;
        Ok(Self {
            bytes_each: more.resident_bytes as f64 / subscriptions as f64,
            peer,
            clients,
            publisher,
            subscriptions,
            random: Random::new(1),
            published: 0,
            lost: 0,
        })
    }

    /// The broker.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Publishes to random subscriptions for a while. Deliveries per second of the broker's CPU time.
    ///
    /// # Errors
    /// The broker closes a connection, sends what it shouldn't, or delivers nothing.
    pub fn window(&mut self, effort: Effort) -> Result<f64, String> {
        let length = Duration::from_millis(effort.window_ms);
        let (start, before) = (Instant::now(), Usage::of(self.peer.pid()).cpu);
        let delivered = self.clients.counts().deliveries;
        let mut due = 0;
        while start.elapsed() < length {
            let now_due = start.elapsed().as_micros() as u64 * PUBLISHES_PER_S / 1_000_000;
            let mut packets = Vec::new();
            for _ in due..now_due {
                if self.in_flight() < INFLIGHT_MAX {
                    let topic = topic(self.pick());
                    packets.extend_from_slice(&publish(&topic, &[b'x'; PAYLOAD_BYTES]));
                    self.published += 1;
                }
            }
            due = now_due;
            if !packets.is_empty() {
                self.clients.send(self.publisher, &packets)?;
            }
            self.clients.turn(Duration::from_millis(1))?;
        }
        let until = Instant::now() + DRAIN_MAX;
        while self.in_flight() > 0 && Instant::now() < until {
            self.clients.turn(Duration::from_millis(5))?;
        }
        self.lost += self.in_flight();
        if !self.peer.is_running() {
            return Err("it has ended".to_owned());
        }
        let cpu = Usage::of(self.peer.pid()).cpu - before;
        let deliveries = self.clients.counts().deliveries - delivered;
        if deliveries == 0 {
            return Err("nothing is delivered".to_owned());
        }
        Ok(deliveries as f64 / cpu.as_secs_f64())
    }

    fn in_flight(&self) -> u64 {
        let delivered = self.clients.counts().deliveries;
        self.published.saturating_sub(self.lost + delivered)
    }

    fn pick(&mut self) -> usize {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % self.subscriptions as u64) as usize
    }
}

/// Waits until the broker has done what the subscriptions have left it to do, as looking for retained messages.
fn settle(peer: &Peer, clients: &mut dyn Clients) -> Result<(), String> {
    let until = Instant::now() + SETTLE_MAX;
    while Instant::now() < until {
        let before = Usage::of(peer.pid()).cpu;
        let round = Instant::now() + SETTLE_ROUND;
        while Instant::now() < round {
            clients.turn(Duration::from_millis(20))?;
        }
        if Usage::of(peer.pid()).cpu - before < SETTLE_ROUND / 20 {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, topic: &str) -> bool {
        let mut topic = topic.split('/');
        for level in filter.split('/') {
            match (level, topic.next()) {
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (level, Some(of)) if level == of => {}
                _ => return false,
            }
        }
        topic.next().is_none()
    }

    #[test]
    fn a_topic_has_one_filter() {
        for number in 0..2 * DEVICES {
            let topic = topic(number);
            let found = (0..2 * DEVICES).filter(|of| matches(&filter(*of), &topic));
            assert_eq!(found.collect::<Vec<_>>(), [number]);
        }
    }
}
