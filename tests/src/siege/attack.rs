//! Whoever floods.

use super::{ATTACKED, Siege};
use crate::flood::{PacketSocket, Random, frame_v4, mac, spoofed_initial};
use crate::packets::{Packet, QUIC_PORT};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
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
}

/// A sender that is as fast as it can be, until it is told to stop.
pub struct Attack {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<()>>,
}

impl Attack {
    /// Begins with Initials from random sources, which nobody can decrypt.
    ///
    /// # Panics
    /// When the sender can't begin.
    #[must_use]
    pub fn spoofed_initials(siege: &Siege, to: Flood) -> Self {
        let (from, at) = match to {
            Flood::Broker => ("a0", "s1"),
            Flood::Nowhere => ("a1", "s2"),
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
            let mut frame = || {
                let payload = spoofed_initial(&mut random);
                frame_v4(&mut random, macs, ATTACKED, QUIC_PORT, &payload)
            };
            let frames: Vec<_> = (0..FRAMES).map(|_| frame()).collect();
            while !stopped.load(Ordering::Relaxed) {
                for frame in &frames {
                    socket.send(frame)?;
                    count.fetch_add(1, Ordering::Relaxed);
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
