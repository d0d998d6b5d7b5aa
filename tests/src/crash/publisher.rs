//! A publisher that resumes its session, with a window of messages whose acknowledgement it still expects.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use headgate_codec::{Ack, Packet, PacketId, Publish, ReasonCode, Text};

use super::ledger::{Ledger, MessageId};
use super::link::{Link, RETRY_INTERVAL};
use super::load::Control;

/// How many messages it sends before it waits for acknowledgements.
const WINDOW: usize = 32;

/// How long it waits for acknowledgements when it has nothing to send.
const WAIT: Duration = Duration::from_millis(5);

/// Reason Codes from here on are failures (MQTT 5.0 §2.4).
pub const FAILURE: u8 = 0x80;

/// One publisher with one QoS.
#[derive(Debug)]
pub struct Publisher {
    /// Number of the publisher.
    pub number: u8,
    /// 1 or 2.
    pub qos: u8,
    /// Time between two messages.
    pub interval: Duration,
}

/// A message that the broker has not finished.
#[derive(Debug)]
struct Flight {
    id: MessageId,
    packet_id: PacketId,
    /// PUBREC has come: PUBREL is what is repeated.
    is_recorded: bool,
}

impl Publisher {
    /// Publishes until the load ends, and then until all is acknowledged or the deadline has passed.
    pub fn run(self, broker: SocketAddr, ledger: &Ledger, control: &Control) {
        let mut session = Session {
            name: format!("publisher-{}-{}", self.number, self.qos),
            publisher: self,
            flights: VecDeque::new(),
            next: 1,
            due: Instant::now(),
            existed: false,
        };
        while !session.is_done(control) {
            // A connection that breaks, or can't be made, is what this is about.
            if let Err(_broken) = session.connection(broker, ledger, control) {
                thread::sleep(RETRY_INTERVAL);
            }
            if control.is_over() && !session.flights.is_empty() {
                let (name, open) = (&session.name, session.flights.len());
                ledger.problem(format!("{name} has no answer for {open} messages"));
                return;
            }
        }
    }
}

struct Session {
    publisher: Publisher,
    name: String,
    flights: VecDeque<Flight>,
    next: u32,
    /// When the next message is sent.
    due: Instant,
    /// The broker has said that it has this session.
    existed: bool,
}

impl Session {
    fn is_done(&self, control: &Control) -> bool {
        control.is_stopping() && self.flights.is_empty()
    }

    fn connection(
        &mut self,
        broker: SocketAddr,
        ledger: &Ledger,
        control: &Control,
    ) -> io::Result<()> {
        let (mut link, ack) = Link::connect(broker, &self.name)?;
        if ack.reason.0 >= FAILURE {
            ledger.refused();
            return Err(io::Error::other("refused"));
        }
        if self.existed && !ack.session_present {
            ledger.problem(format!("the session of {} is lost", self.name));
            // What the broker had recorded, it has forgotten; what it had acknowledged, it still owes.
            self.flights.retain(|flight| !flight.is_recorded);
        }
        self.existed = true;
        for flight in &self.flights {
            link.queue(&flight.packet(true));
        }
        while !self.is_done(control) && !control.is_over() {
            self.send(&mut link, ledger, control);
            link.flush()?;
            let mut wait = WAIT;
            while let Some(packet) = link.receive(wait)? {
                self.answer(&mut link, packet, ledger)?;
                wait = Duration::ZERO;
            }
        }
        Ok(())
    }

    /// Queues the messages whose time has come.
    fn send(&mut self, link: &mut Link, ledger: &Ledger, control: &Control) {
        // What could not be sent meanwhile is not made up for.
        self.due = self.due.max(Instant::now() - WAIT);
        while !control.is_stopping() && self.flights.len() < WINDOW && self.due <= Instant::now() {
            let id = MessageId {
                publisher: self.publisher.number,
                qos: self.publisher.qos,
                number: self.next,
            };
            let flight = Flight {
                id,
                packet_id: packet_id(self.next),
                is_recorded: false,
            };
            ledger.sent(id);
            link.queue(&flight.packet(false));
            self.flights.push_back(flight);
            self.next += 1;
            self.due += self.publisher.interval;
        }
    }

    fn answer(&mut self, link: &mut Link, packet: Packet, ledger: &Ledger) -> io::Result<()> {
        let (ack, is_last) = match &packet {
            Packet::PubAck(ack) => (ack, true),
            Packet::PubRec(ack) => (ack, ack.reason.0 >= FAILURE),
            Packet::PubComp(ack) => (ack, true),
            Packet::Disconnect(_) => return Err(io::Error::other("disconnected")),
            other => {
                ledger.problem(format!("{} got {other:?}", self.name));
                return Ok(());
            }
        };
        let mut flights = self.flights.iter();
        let Some(at) = flights.position(|flight| flight.packet_id == ack.packet_id) else {
            ledger.problem(format!(
                "{} got an answer to nothing: {packet:?}",
                self.name
            ));
            return Ok(());
        };
        let flight = &mut self.flights[at];
        let is_first = !flight.is_recorded;
        match packet {
            Packet::PubComp(_) => {}
            _ if ack.reason.0 >= FAILURE => ledger.refused(),
            _ if is_first => ledger.acknowledged(flight.id),
            _ => {}
        }
        if is_last {
            self.flights.remove(at);
        } else {
            flight.is_recorded = true;
            link.queue(&flight.packet(true));
        }
        Ok(())
    }
}

impl Flight {
    /// PUBLISH, or PUBREL once the message is recorded.
    fn packet(&self, dup: bool) -> Packet {
        if self.is_recorded {
            return Packet::PubRel(Ack {
                packet_id: self.packet_id,
                reason: ReasonCode::SUCCESS,
                properties: None,
            });
        }
        Packet::Publish(Publish {
            dup,
            qos: self.id.qos(),
            retain: false,
            topic: Text::from(self.id.topic().as_str()),
            packet_id: Some(self.packet_id),
            properties: None,
            payload: self.id.payload().into(),
        })
    }
}

/// Packet Identifiers in turn. One comes again long after its message is done.
fn packet_id(number: u32) -> PacketId {
    let turn = (number - 1) % u32::from(u16::MAX) + 1;
    PacketId::new(turn as u16).expect("it is not 0")
}
