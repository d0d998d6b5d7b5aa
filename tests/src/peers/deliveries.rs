//! Messages from publishers to subscribers: deliveries per second of the broker's CPU time.

use std::time::{Duration, Instant};

use headgate_codec::{PacketId, QoS};

use super::{Effort, Peer, Transport};
use crate::load::client::{publish_with, tls_counted};
use crate::load::{Carrier, ClientRef, Clients, Crowd, Plan, Profile, Swarm, Usage};

/// Payload of the messages, bytes.
const PAYLOAD_BYTES: usize = 128;
/// Messages that are due leave in ticks of this length.
const TICK: Duration = Duration::from_millis(1);
/// How long clients may take to connect.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// Clients that connect at the same time.
const AT_ONCE: usize = 16;
/// Who delivers nothing for so long has lost what is missing.
const STALL: Duration = Duration::from_secs(3);
/// How long the rest of a window may take to come.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Who sends to whom.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shape {
    /// Each publisher to a subscriber of its own.
    Pairs,
    /// All publishers to one subscriber, which has one filter with a wildcard.
    ToOne,
    /// One publisher to all subscribers.
    ToAll,
}

/// How much is sent.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// PUBLISH packets per second, all publishers together.
    PerSecond(u64),
    /// As much as the broker takes with so many messages of each publisher on their way.
    Window(u64),
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// As rows call it.
    pub name: &'static str,
    publishers: usize,
    subscribers: usize,
    shape: Shape,
    pace: Pace,
}

/// The loads of the table.
pub const WORKLOADS: [Workload; 4] = [
    Workload {
        name: "p2p_50_to_50",
        publishers: 50,
        subscribers: 50,
        shape: Shape::Pairs,
        pace: Pace::PerSecond(10_000),
    },
    Workload {
        name: "fan_in_200_to_1",
        publishers: 200,
        subscribers: 1,
        shape: Shape::ToOne,
        pace: Pace::PerSecond(10_000),
    },
    Workload {
        name: "fan_out_1_to_200",
        publishers: 1,
        subscribers: 200,
        shape: Shape::ToAll,
        pace: Pace::PerSecond(100),
    },
    Workload {
        name: "saturated_10_to_10",
        publishers: 10,
        subscribers: 10,
        shape: Shape::Pairs,
        pace: Pace::Window(1_000),
    },
];

impl Workload {
    /// Deliveries of one message.
    fn copies(&self) -> u64 {
        match self.shape {
            Shape::ToAll => self.subscribers as u64,
            Shape::Pairs | Shape::ToOne => 1,
        }
    }

    fn topic(&self, publisher: usize) -> String {
        format!("plant/line-{publisher:03}/temperature")
    }

    fn filter(&self, subscriber: usize) -> String {
        match self.shape {
            Shape::Pairs => self.topic(subscriber),
            Shape::ToOne => "plant/+/temperature".to_owned(),
            Shape::ToAll => self.topic(0),
        }
    }

    /// Messages that may be on their way at all: what a slow broker can't take isn't offered.
    fn inflight_max(&self) -> u64 {
        match self.pace {
            Pace::PerSecond(rate) => rate / 2,
            Pace::Window(window) => window * self.publishers as u64,
        }
    }
}

/// What a window gave.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Deliveries per second of the broker's CPU time.
    pub per_cpu_s: f64,
    /// What came of what was to be sent.
    pub share: f64,
}

/// Clients for a broker, each with a socket of its own as far as there are `clients` of them.
pub fn clients(peer: &Peer, transport: Transport, clients: usize) -> Box<dyn Clients> {
    let (tls, _) = tls_counted(false);
    let stream = |carrier| Box::new(Crowd::new(peer.address(), carrier).with_tls(tls.clone()));
    match transport {
        Transport::Tcp => stream(Carrier::Tcp),
        Transport::Tls => stream(Carrier::Tls),
        Transport::Quic => Box::new(Swarm::with_sockets(
            peer.address(),
            Profile::device(),
            clients,
        )),
    }
}

/// A broker with its clients.
pub struct Side {
    peer: Peer,
    clients: Box<dyn Clients>,
    workload: Workload,
    publishers: Vec<Publisher>,
    subscribers: Vec<ClientRef>,
    /// Published in all, and given up for lost.
    published: u64,
    lost: u64,
    turn: usize,
}

struct Publisher {
    client: ClientRef,
    message: Message,
    published: u64,
    lost: u64,
    unsent: Vec<u8>,
}

/// An encoded PUBLISH, of which only the Packet Identifier changes.
struct Message {
    bytes: Vec<u8>,
    /// Where that is.
    packet_id_at: Option<usize>,
}

impl Message {
    fn new(topic: &str, qos: QoS) -> Self {
        let packet_id = (qos != QoS::AtMostOnce).then_some(PacketId::MIN);
        let bytes = publish_with(topic, &[b'x'; PAYLOAD_BYTES], qos, packet_id).to_vec();
        // Behind it come the length of the properties, 0, and the payload.
        let packet_id_at = packet_id.map(|_| bytes.len() - PAYLOAD_BYTES - 3);
        Self {
            bytes,
            packet_id_at,
        }
    }

    /// Appends the message `number`, from 0.
    fn push(&self, number: u64, to: &mut Vec<u8>) {
        let from = to.len();
        to.extend_from_slice(&self.bytes);
        if let Some(at) = self.packet_id_at {
            // 1 to 65,535, again and again.
            let id = (number % u64::from(u16::MAX)) as u16 + 1;
            to[from + at..from + at + 2].copy_from_slice(&id.to_be_bytes());
        }
    }
}

impl Side {
    /// Connects the clients of a load.
    ///
    /// # Errors
    /// The broker refuses something, or is too slow.
    pub fn new(
        peer: Peer,
        transport: Transport,
        workload: Workload,
        qos: QoS,
    ) -> Result<Self, String> {
        let count = workload.publishers + workload.subscribers;
        let mut clients = clients(&peer, transport, count);
        let plan = |role: &str, number: usize, filters| Plan {
            id: format!("{role}-{number:03}"),
            filters,
            qos,
            expiry_s: None,
        };
        let subscribers = (0..workload.subscribers)
            .map(|number| plan("subscriber", number, vec![workload.filter(number)]))
            .collect();
        let publishers = (0..workload.publishers)
            .map(|number| plan("publisher", number, Vec::new()))
            .collect();
        let subscribers = clients.connect_within(subscribers, AT_ONCE, CONNECT_PATIENCE)?;
        let publishers = clients.connect_within(publishers, AT_ONCE, CONNECT_PATIENCE)?;
        let publishers = publishers.into_iter().enumerate();
        let publishers = publishers.map(|(number, client)| Publisher {
            client,
            message: Message::new(&workload.topic(number), qos),
            published: 0,
            lost: 0,
            unsent: Vec::new(),
        });
        Ok(Self {
            publishers: publishers.collect(),
            peer,
            clients,
            workload,
            subscribers,
            published: 0,
            lost: 0,
            turn: 0,
        })
    }

    /// The broker.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Keeps the load up for a while.
    ///
    /// # Errors
    /// The broker closes a connection, sends what it shouldn't, or delivers nothing.
    pub fn window(&mut self, effort: Effort) -> Result<Sample, String> {
        let length = Duration::from_millis(effort.window_ms);
        let before = (Usage::of(self.peer.pid()).cpu, self.delivered());
        let due = match self.workload.pace {
            Pace::PerSecond(rate) => self.paced(rate, length)?,
            Pace::Window(window) => self.saturated(window, length)?,
        };
        self.drain()?;
        if !self.peer.is_running() {
            return Err("it has ended".to_owned());
        }
        let cpu = Usage::of(self.peer.pid()).cpu - before.0;
        let deliveries = self.delivered() - before.1;
        if deliveries == 0 {
            return Err("nothing is delivered".to_owned());
        }
        Ok(Sample {
            per_cpu_s: deliveries as f64 / cpu.as_secs_f64(),
            share: deliveries as f64 / (due * self.workload.copies()) as f64,
        })
    }

    /// Returns how many messages were due.
    fn paced(&mut self, rate: u64, length: Duration) -> Result<u64, String> {
        let start = Instant::now();
        let (mut due, mut next_tick) = (0, TICK);
        while start.elapsed() < length {
            let elapsed = start.elapsed();
            if elapsed >= next_tick {
                // Those that come late leave together, as they do when a machine is busy.
                let now_due = elapsed.as_micros() as u64 * rate / 1_000_000;
                while due < now_due {
                    due += 1;
                    self.turn = (self.turn + 1) % self.publishers.len();
                    self.publish(self.turn);
                }
                self.send()?;
                next_tick = elapsed + TICK;
            }
            self.clients
                .turn(next_tick.saturating_sub(start.elapsed()))?;
        }
        Ok(due)
    }

    /// Returns how many messages were published.
    fn saturated(&mut self, window: u64, length: Duration) -> Result<u64, String> {
        let (start, before) = (Instant::now(), self.published);
        let mut moved = (Instant::now(), self.delivered());
        while start.elapsed() < length {
            for number in 0..self.publishers.len() {
                while self.in_flight(number) < window && self.publish(number) {}
            }
            self.send()?;
            self.clients.turn(Duration::from_millis(5))?;
            let delivered = self.delivered();
            if delivered > moved.1 {
                moved = (Instant::now(), delivered);
            } else if moved.0.elapsed() > STALL {
                self.give_up();
            }
        }
        Ok(self.published - before)
    }

    /// Waits until all has come, or nothing comes any more.
    fn drain(&mut self) -> Result<(), String> {
        let start = Instant::now();
        let mut moved = (Instant::now(), 0);
        while self.is_waiting() && start.elapsed() < DRAIN_MAX {
            self.clients.turn(Duration::from_millis(5))?;
            let counts = self.clients.counts();
            let progress = counts.deliveries + counts.acknowledged;
            if progress > moved.1 {
                moved = (Instant::now(), progress);
            } else if moved.0.elapsed() > STALL {
                break;
            }
        }
        self.give_up();
        Ok(())
    }

    fn is_waiting(&self) -> bool {
        self.all_in_flight() > 0
            || (0..self.publishers.len()).any(|number| self.unacknowledged(number) > 0)
    }

    /// What hasn't come is lost.
    fn give_up(&mut self) {
        self.lost += self.all_in_flight();
        for number in 0..self.publishers.len() {
            self.publishers[number].lost += self.undelivered(number);
        }
    }

    fn delivered(&self) -> u64 {
        self.clients.counts().deliveries
    }

    fn all_in_flight(&self) -> u64 {
        let delivered = self.delivered() / self.workload.copies();
        self.published.saturating_sub(self.lost + delivered)
    }

    /// Messages of one publisher that have not come all the way.
    fn in_flight(&self, number: usize) -> u64 {
        self.undelivered(number).max(self.unacknowledged(number))
    }

    /// Messages of one publisher that its subscriber hasn't got. Who gets those of others too doesn't say whose they are.
    fn undelivered(&self, number: usize) -> u64 {
        if self.workload.shape != Shape::Pairs {
            return 0;
        }
        let publisher = &self.publishers[number];
        let progress = self.clients.progress(self.subscribers[number]);
        let delivered = progress.map_or(0, |of| of.deliveries);
        publisher
            .published
            .saturating_sub(publisher.lost + delivered)
    }

    /// PUBLISH packets with QoS 1 or 2 of one publisher that the broker has not taken over. They stay so, whatever was lost: more
    /// than its Receive Maximum it may not be sent.
    fn unacknowledged(&self, number: usize) -> u64 {
        let publisher = &self.publishers[number];
        if publisher.message.packet_id_at.is_none() {
            return 0;
        }
        let progress = self.clients.progress(publisher.client);
        let acknowledged = progress.map_or(0, |of| of.acknowledged);
        publisher.published.saturating_sub(acknowledged)
    }

    /// Puts one message of a publisher on its way, if it may send one now.
    fn publish(&mut self, number: usize) -> bool {
        let receive_maximum = self.clients.progress(self.publishers[number].client);
        let receive_maximum = receive_maximum.map_or(0, |of| u64::from(of.receive_maximum));
        if self.all_in_flight() >= self.workload.inflight_max()
            || self.unacknowledged(number) >= receive_maximum
        {
            return false;
        }
        let publisher = &mut self.publishers[number];
        publisher
            .message
            .push(publisher.published, &mut publisher.unsent);
        publisher.published += 1;
        self.published += 1;
        true
    }

    fn send(&mut self) -> Result<(), String> {
        for publisher in &mut self.publishers {
            if !publisher.unsent.is_empty() {
                self.clients.send(publisher.client, &publisher.unsent)?;
                publisher.unsent.clear();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_differ_in_their_packet_identifier_only() {
        let message = Message::new("a/b", QoS::AtLeastOnce);
        let mut bytes = Vec::new();
        message.push(0, &mut bytes);
        message.push(65_534, &mut bytes);
        message.push(65_535, &mut bytes);
        for (packet, id) in bytes.chunks(message.bytes.len()).zip([1, 65_535, 1]) {
            let id = PacketId::new(id);
            let expected = publish_with("a/b", &[b'x'; PAYLOAD_BYTES], QoS::AtLeastOnce, id);
            assert_eq!(packet, expected);
        }
    }

    #[test]
    fn each_message_of_a_load_has_a_subscriber() {
        for workload in WORKLOADS {
            for publisher in 0..workload.publishers {
                let topic = workload.topic(publisher);
                let matches = (0..workload.subscribers).filter(|subscriber| {
                    let filter = workload.filter(*subscriber);
                    filter == topic || filter == "plant/+/temperature"
                });
                assert_eq!(matches.count() as u64, workload.copies(), "{workload:?}");
            }
        }
    }
}
