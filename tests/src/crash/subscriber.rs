//! A subscriber that resumes its session, and does the receiver's half of QoS 2.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use headgate_codec::{
    Ack, Packet, PacketId, Publish, QoS, ReasonCode, Subscribe, SubscriptionOptions, Text,
};

use super::ledger::{Ledger, TOPICS};
use super::link::{ANSWER_TIMEOUT, Link, RETRY_INTERVAL};
use super::load::Control;
use super::publisher::FAILURE;

/// How often it looks whether it shall go on.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// One subscriber to everything.
#[derive(Debug)]
pub struct Subscriber {
    /// Client Identifier.
    pub name: String,
    /// QoS of its subscription.
    pub qos: QoS,
}

/// What a subscriber is told from outside, and says.
#[derive(Debug)]
pub struct Presence {
    /// Whether it shall be connected.
    pub wanted: AtomicBool,
    /// Whether it has subscribed.
    pub subscribed: AtomicBool,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            wanted: AtomicBool::new(true),
            subscribed: AtomicBool::new(false),
        }
    }
}

impl Subscriber {
    /// Receives until the load is over.
    pub fn run(self, broker: SocketAddr, ledger: &Ledger, control: &Control, presence: &Presence) {
        let mut session = Session {
            subscriber: self,
            open: HashMap::new(),
            existed: false,
        };
        while !control.is_over() {
            if !presence.wanted.load(Ordering::Relaxed) {
                thread::sleep(LOOK_INTERVAL);
            } else if let Err(_broken) = session.connection(broker, ledger, control, presence) {
                thread::sleep(RETRY_INTERVAL);
            }
        }
    }
}

struct Session {
    subscriber: Subscriber,
    /// Messages with QoS 2 that have been received and not released (MQTT 5.0 §4.3.3).
    open: HashMap<PacketId, Bytes>,
    existed: bool,
}

impl Session {
    fn connection(
        &mut self,
        broker: SocketAddr,
        ledger: &Ledger,
        control: &Control,
        presence: &Presence,
    ) -> io::Result<()> {
        let name = self.subscriber.name.clone();
        let (mut link, ack) = Link::connect(broker, &name)?;
        if ack.reason.0 >= FAILURE {
            return Err(io::Error::other("refused"));
        }
        if !ack.session_present {
            if self.existed {
                ledger.problem(format!("the session of {name} is lost"));
            }
            self.open.clear();
            presence.subscribed.store(false, Ordering::Relaxed);
        }
        self.existed = true;
        if !presence.subscribed.load(Ordering::Relaxed) {
            link.queue(&self.subscribe());
            link.flush()?;
        }
        while !control.is_over() && presence.wanted.load(Ordering::Relaxed) {
            let timeout = match presence.subscribed.load(Ordering::Relaxed) {
                true => LOOK_INTERVAL,
                false => ANSWER_TIMEOUT,
            };
            let mut next = link.receive(timeout)?;
            while let Some(packet) = next {
                self.take(&mut link, packet, ledger, presence)?;
                next = link.receive(Duration::ZERO)?;
            }
            link.flush()?;
        }
        // It goes without a word: its session stays.
        Ok(())
    }

    fn subscribe(&self) -> Packet {
        let options = SubscriptionOptions {
            qos: self.subscriber.qos,
            ..SubscriptionOptions::default()
        };
        Packet::Subscribe(Box::new(Subscribe {
            packet_id: PacketId::MAX,
            subscription_id: None,
            user_properties: Vec::new(),
            filters: vec![(Text::from(format!("{TOPICS}/#").as_str()), options)],
        }))
    }

    fn take(
        &mut self,
        link: &mut Link,
        packet: Packet,
        ledger: &Ledger,
        presence: &Presence,
    ) -> io::Result<()> {
        let name = &self.subscriber.name;
        match packet {
            Packet::SubAck(ack) => {
                if ack.reasons.iter().any(|reason| reason.0 >= FAILURE) {
                    return Err(io::Error::other("the subscription is refused"));
                }
                presence.subscribed.store(true, Ordering::Relaxed);
            }
            Packet::Publish(publish) => self.publish(link, publish, ledger),
            Packet::PubRel(ack) => {
                self.open.remove(&ack.packet_id);
                link.queue(&Packet::PubComp(answer(ack.packet_id)));
            }
            Packet::Disconnect(_) => return Err(io::Error::other("disconnected")),
            other => ledger.problem(format!("{name} got {other:?}")),
        }
        Ok(())
    }

    fn publish(&mut self, link: &mut Link, publish: Publish, ledger: &Ledger) {
        let name = &self.subscriber.name;
        let text = |payload: &[u8]| String::from_utf8_lossy(payload).into_owned();
        let Some(packet_id) = publish.packet_id else {
            ledger.problem(format!("{name} got {publish:?} with QoS 0"));
            return;
        };
        if publish.qos != QoS::ExactlyOnce {
            ledger.received(name, &text(&publish.payload));
            link.queue(&Packet::PubAck(answer(packet_id)));
            return;
        }
        match self.open.get(&packet_id) {
            None => {
                ledger.received(name, &text(&publish.payload));
                self.open.insert(packet_id, publish.payload);
            }
            Some(open) if *open != publish.payload => ledger.problem(format!(
                "{name} got {} as {packet_id:?}, which still is {}",
                text(&publish.payload),
                text(open)
            )),
            // [MQTT-3.3.1-1]
            Some(_) if !publish.dup => ledger.problem(format!(
                "{name} got {} again without DUP",
                text(&publish.payload)
            )),
            Some(_) => {}
        }
        link.queue(&Packet::PubRec(answer(packet_id)));
    }
}

fn answer(packet_id: PacketId) -> Ack {
    Ack {
        packet_id,
        reason: ReasonCode::SUCCESS,
        properties: None,
    }
}
