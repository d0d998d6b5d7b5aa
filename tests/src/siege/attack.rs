//! Whoever floods.

use super::{ATTACKED, Siege};
use crate::flood::{PacketSocket, Random, frame_v4, mac, spoofed_initial};
use crate::load::client::first_initials;
use crate::packets::{Packet, QUIC_PORT};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Packets that are made before the flood and sent again and again.
const FRAMES: usize = 4_096;

/// Where a flood goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// To the interface that the broker protects.
    Broker,
    /// To the interface where everything is dropped.
    Nowhere,
    /// To the interface where everything is sent back.
    Mirror,
}

/// How long a sender with a pace sleeps on average.
const PAUSE: Duration = Duration::from_millis(2);

/// A sender, until it is told to stop.
pub struct Attack {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<()>>,
}

impl Attack {
    /// Begins with Initials from random sources, which nobody can decrypt, as fast as it can.
    ///
    /// # Panics
    /// When the sender can't begin.
    #[must_use]
    pub fn spoofed_initials(siege: &Siege, to: Flood) -> Self {
        let mut random = Random::new(0x1417);
        let initials = (0..FRAMES).map(|_| spoofed_initial(&mut random));
        Self::begin(siege, to, initials.collect(), None)
    }

    /// The same with clients' Initials, each of which has a ClientHello that the broker can decrypt, and with at most so many
    /// per second, if that is given. Of random ones, user space drops three in four, because their reserved bits are not 0
    /// (RFC 9000 §17.2).
    ///
    /// # Panics
    /// When the sender can't begin.
    #[must_use]
    pub fn client_hellos(siege: &Siege, to: Flood, per_second: Option<u32>) -> Self {
        Self::begin(siege, to, first_initials(FRAMES), per_second)
    }

    fn begin(siege: &Siege, to: Flood, initials: Vec<Vec<u8>>, per_second: Option<u32>) -> Self {
        let (from, at) = match to {
            Flood::Broker => ("a0", "s1"),
            Flood::Nowhere => ("a1", "s2"),
            Flood::Mirror => ("a2", "s3"),
        };
        let target = siege.server.enter(move || mac(at)).join();
        let target = target.expect("no panic").expect("a MAC address");
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = siege.attacker.enter(move || {
            let socket = PacketSocket::open(from)?;
            let macs = (mac(from)?, target);
            let mut random = Random::new(0x5eed);
            let frames: Vec<_> = initials
                .iter()
                .map(|initial| frame_v4(&mut random, macs, ATTACKED, QUIC_PORT, initial))
                .collect();
            let start = Instant::now();
            let mut endless = frames.iter().cycle();
            while !stopped.load(Ordering::Relaxed) {
                let before = count.load(Ordering::Relaxed);
                let due = per_second.map_or(FRAMES as u64, |rate| {
                    let due = start.elapsed().as_secs_f64() * f64::from(rate);
                    (due as u64).saturating_sub(before)
                });
                for frame in endless.by_ref().take(due as usize) {
                    socket.send(frame)?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                if per_second.is_some() {
                    // Not in step with the tick by which the kernel accounts CPU time.
                    let part = random.word() as u32 as f64 / f64::from(u32::MAX);
                    thread::sleep(PAUSE.mul_f64(2.0 * part));
                }
            }
            Ok(())
        });
        Self { stop, sent, thread }
    }

    /// How many packets the device has taken so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it; how many packets the device took.
    ///
    /// # Panics
    /// When something couldn't be sent.
    #[must_use]
    pub fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join().expect("no panic");
        ended.expect("the flood is sent");
        self.sent.load(Ordering::Relaxed)
    }
}

/// Sends packets, each once, through the attacker's interface to the broker.
///
/// # Panics
/// When that can't be done.
pub fn send_once(siege: &Siege, packets: Vec<Packet>) {
    let target = siege.server.enter(|| mac("s1")).join();
    let target = target.expect("no panic").expect("a MAC address");
    let sent = siege.attacker.enter(move || {
        let socket = PacketSocket::open("a0")?;
        let own = mac("a0")?;
        for packet in packets {
            let mut frame = packet.bytes();
            frame[..6].copy_from_slice(&target);
            frame[6..12].copy_from_slice(&own);
            socket.send(&frame)?;
        }
        io::Result::Ok(())
    });
    sent.join()
        .expect("no panic")
        .expect("the packets are sent");
}
