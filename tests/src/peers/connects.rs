//! Connections: CPU time of handshakes, and memory of clients that are idle.

use std::time::{Duration, Instant};

use headgate_codec::QoS;

use super::deliveries::clients;
use super::{Effort, Peer, Transport};
use crate::load::client::tls_counted;
use crate::load::tickets::FullHandshakes;
use crate::load::{Carrier, Clients, Crowd, Plan, Profile, Swarm, Usage};

/// Connections that shake hands at the same time.
const AT_ONCE: usize = 64;
/// UDP sockets of clients over QUIC; they take them in turn.
const SOCKETS: usize = 64;
/// How long a batch of handshakes may take.
const BATCH_PATIENCE: Duration = Duration::from_secs(10);
/// How long all that are idle then may take to connect.
const IDLE_PATIENCE: Duration = Duration::from_secs(60);
/// Time for a broker to come to rest before its memory is read.
const SETTLE: Duration = Duration::from_secs(3);
/// Of sessions that are to be resumed so many may not be.
const FULL_SHARE_MAX: f64 = 0.05;

/// Clients that connect and leave, again and again.
pub struct Churn {
    peer: Peer,
    clients: Box<dyn Clients>,
    full: FullHandshakes,
    resumes: bool,
    number: usize,
}

impl Churn {
    /// Begins it; those that resume get their tickets here.
    ///
    /// # Errors
    /// The broker refuses something, or is too slow.
    pub fn new(peer: Peer, transport: Transport, resumes: bool) -> Result<Self, String> {
        let (tls, full) = tls_counted(resumes);
        let stream = |carrier, tls| Box::new(Crowd::new(peer.address(), carrier).with_tls(tls));
        let clients: Box<dyn Clients> = match transport {
            Transport::Tcp => stream(Carrier::Tcp, tls),
            Transport::Tls => stream(Carrier::Tls, tls),
            Transport::Quic => {
                let profile = Profile::device_of(tls);
                Box::new(Swarm::with_sockets(peer.address(), profile, SOCKETS))
            }
        };
        let mut churn = Self {
            peer,
            clients,
            full,
            resumes,
            number: 0,
        };
        for _ in 0..2 {
            churn.batch()?;
        }
        Ok(churn)
    }

    /// The broker.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Connects, each with CONNECT and CONNACK and the end of the connection, per second of the broker's CPU time.
    ///
    /// # Errors
    /// The broker refuses something, is too slow, or doesn't resume sessions.
    pub fn window(&mut self, effort: Effort) -> Result<f64, String> {
        let length = Duration::from_millis(effort.window_ms);
        let (start, before) = (Instant::now(), Usage::of(self.peer.pid()).cpu);
        let (number, full) = (self.number, self.full.count());
        while start.elapsed() < length {
            self.batch()?;
        }
        let cpu = Usage::of(self.peer.pid()).cpu - before;
        let count = (self.number - number) as f64;
        let full = (self.full.count() - full) as f64 / count;
        if self.resumes && full > FULL_SHARE_MAX {
            let share = (1.0 - full) * 100.0;
            return Err(format!("resumes {share:.0} % of sessions only"));
        }
        Ok(count / cpu.as_secs_f64())
    }

    fn batch(&mut self) -> Result<(), String> {
        let plans = (self.number..self.number + AT_ONCE).map(|number| plan(number, Vec::new()));
        let connected = self
            .clients
            .connect_within(plans.collect(), AT_ONCE, BATCH_PATIENCE)?;
        self.number += AT_ONCE;
        for client in connected {
            self.clients.close(client);
        }
        // Of what has left, the broker hears before the next come.
        let deadline = Instant::now() + BATCH_PATIENCE;
        while self.clients.counts().gone < self.number && Instant::now() < deadline {
            self.clients.turn(Duration::from_millis(5))?;
        }
        Ok(())
    }
}

/// Resident bytes of the broker per idle session with one subscription, by what it has more than before the first. What
/// the kernel keeps of a socket isn't in them.
///
/// # Errors
/// The broker refuses something, or is too slow.
pub fn idle_bytes(peer: &mut Peer, transport: Transport, effort: Effort) -> Result<f64, String> {
    let before = Usage::of(peer.pid());
    let mut clients = clients(peer, transport, SOCKETS);
    let plans = (0..effort.idle)
        .map(|number| plan(number, vec![format!("fleet/device-{number:06}/command")]));
    clients.connect_within(plans.collect(), AT_ONCE, IDLE_PATIENCE)?;
    let until = Instant::now() + SETTLE;
    while Instant::now() < until {
        clients.turn(Duration::from_millis(20))?;
    }
    if !peer.is_running() {
        return Err("it has ended".to_owned());
    }
    let more = Usage::of(peer.pid()) - before;
    Ok(more.resident_bytes as f64 / effort.idle as f64)
}

fn plan(number: usize, filters: Vec<String>) -> Plan {
    Plan {
        id: format!("device-{number:06}"),
        filters,
        qos: QoS::AtMostOnce,
        expiry_s: None,
    }
}
