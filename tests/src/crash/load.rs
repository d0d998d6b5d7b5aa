//! All clients of a load, together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use headgate_codec::QoS;

use super::foreign::{self, Foreign};
use super::ledger::{FORGETFUL, Ledger, Verdict};
use super::publisher::Publisher;
use super::subscriber::{Presence, Subscriber};
use crate::clients::Client;

/// How long nothing may arrive before what is missing counts as lost.
const SILENCE: Duration = Duration::from_secs(20);

/// How long all the clients may take to come to an end. Only a broken broker takes longer.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// How long is watched for what comes too often, once everything has come.
const SETTLE: Duration = Duration::from_millis(700);

const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Numbers of the foreign publishers.
const PAHO: u8 = FORGETFUL;
const MOSQUITTO: u8 = 101;

/// Which clients a load has.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Publishers of ours for each QoS.
    pub publishers: u8,
    /// Messages that each of them sends in a second.
    pub messages_per_s: u32,
    /// Whether there are foreign clients.
    pub is_foreign: bool,
}

/// What all clients look at.
#[derive(Debug, Default)]
pub struct Control {
    stopping: AtomicBool,
    over: AtomicBool,
}

impl Control {
    /// Publishers send nothing new.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Everybody ends.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// A load that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Load {
    ledger: Arc<Ledger>,
    control: Arc<Control>,
    publishers: Vec<JoinHandle<()>>,
    subscribers: Vec<(Arc<Presence>, JoinHandle<()>)>,
    foreign: Vec<Foreign>,
}

impl Load {
    /// Whether a load with foreign clients can be had here.
    ///
    /// # Errors
    /// The reason, for [`skip!`](crate::skip!).
    pub fn available() -> Result<(), String> {
        foreign::available()
    }

    /// Starts all clients: the subscribers first, and when they have subscribed, the publishers.
    ///
    /// # Panics
    /// When a subscriber can't subscribe.
    pub fn start(broker: SocketAddr, plan: Plan) -> Self {
        let mut load = Self {
            ledger: Arc::default(),
            control: Arc::default(),
            publishers: Vec::new(),
            subscribers: Vec::new(),
            foreign: Vec::new(),
        };
        for (name, qos) in [
            ("steady", QoS::ExactlyOnce),
            ("modest", QoS::AtLeastOnce),
            ("restless", QoS::ExactlyOnce),
            ("late", QoS::ExactlyOnce),
        ] {
            load.subscribe(broker, name, qos);
        }
        if plan.is_foreign {
            for (client, name) in [
                (Client::Mosquitto5, "mosquitto-5"),
                (Client::Mosquitto311, "mosquitto-311"),
                (Client::Paho5, "paho-5"),
            ] {
                let foreign = foreign::subscribe(client, broker, name, &load.ledger);
                load.foreign.push(foreign);
            }
        }
        load.wait_for_subscriptions();
        load.publish(broker, plan);
        load
    }

    /// The account.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Sends the subscriber `number` of ours away, without a word, or has it come back.
    pub fn want(&self, number: usize, wanted: bool) {
        self.subscribers[number]
            .0
            .wanted
            .store(wanted, Ordering::Relaxed);
    }

    /// Ends the publishers, lets the subscribers receive what is missing, and says how it was.
    pub fn finish(mut self) -> Verdict {
        self.control.stopping.store(true, Ordering::Relaxed);
        (0..self.subscribers.len()).for_each(|number| self.want(number, true));
        let deadline = Instant::now() + END_TIMEOUT;
        while !self.publishers.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            thread::sleep(LOOK_INTERVAL);
        }
        let mut seen = (self.ledger.arrivals(), Instant::now());
        while !self.ledger.is_complete() && seen.1.elapsed() < SILENCE {
            thread::sleep(LOOK_INTERVAL);
            let arrivals = self.ledger.arrivals();
            if arrivals != seen.0 {
                seen = (arrivals, Instant::now());
            }
        }
        thread::sleep(SETTLE);
        self.end();
        self.ledger.verdict()
    }

    fn end(&mut self) {
        self.control.stopping.store(true, Ordering::Relaxed);
        self.control.over.store(true, Ordering::Relaxed);
        let subscribers = self.subscribers.drain(..).map(|(_, thread)| thread);
        for thread in self.publishers.drain(..).chain(subscribers) {
            if thread.join().is_err() {
                self.ledger.problem("a client panicked".to_owned());
            }
        }
        self.foreign.clear();
    }

    fn subscribe(&mut self, broker: SocketAddr, name: &str, qos: QoS) {
        self.ledger.subscribed(name, qos as u8);
        let subscriber = Subscriber {
            name: name.to_owned(),
            qos,
        };
        let (ledger, control) = (Arc::clone(&self.ledger), Arc::clone(&self.control));
        let presence = Arc::new(Presence::default());
        let own = Arc::clone(&presence);
        let thread = thread::spawn(move || subscriber.run(broker, &ledger, &control, &own));
        self.subscribers.push((presence, thread));
    }

    fn wait_for_subscriptions(&self) {
        let deadline = Instant::now() + END_TIMEOUT;
        for (presence, _) in &self.subscribers {
            while !presence.subscribed.load(Ordering::Relaxed) {
                assert!(Instant::now() < deadline, "a subscriber can't subscribe");
                thread::sleep(LOOK_INTERVAL);
            }
        }
    }

    fn publish(&mut self, broker: SocketAddr, plan: Plan) {
        let interval = Duration::from_secs(1) / plan.messages_per_s;
        for (number, qos) in (0..plan.publishers).flat_map(|number| [(number, 1), (number, 2)]) {
            let publisher = Publisher {
                number,
                qos,
                interval,
            };
            let (ledger, control) = (Arc::clone(&self.ledger), Arc::clone(&self.control));
            let thread = thread::spawn(move || publisher.run(broker, &ledger, &control));
            self.publishers.push(thread);
        }
        if plan.is_foreign {
            let (ledger, control) = (Arc::clone(&self.ledger), Arc::clone(&self.control));
            self.publishers.push(thread::spawn(move || {
                foreign::publish_with_paho(PAHO, 2 * interval, broker, &ledger, &control);
            }));
            let (ledger, control) = (Arc::clone(&self.ledger), Arc::clone(&self.control));
            self.publishers.push(thread::spawn(move || {
                foreign::publish_with_mosquitto(MOSQUITTO, 5 * interval, broker, &ledger, &control);
            }));
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}
