//! A shield of its own for a test, with workers that only have sockets.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use headgate::kernel::{Counters, KernelSettings, Mode, RetrySettings, Shield, object};
use headgate::keys::Keys;
use headgate_common::records::{Budgets, RetryMode};
use headgate_common::{AnswerReason, CidKeys, DropReason, PassReason, SocketReason};

use socket2::{Domain, Socket, Type};

use crate::packets::QUIC_PORT;

/// The epoch of the rig's connection-ID keys.
pub const EPOCH: u32 = 8;
/// The rig's node id.
pub const NODE: u16 = 0x1234;
/// XDP actions of linux/bpf.h.
pub const XDP_DROP: u32 = 1;
/// See [`XDP_DROP`].
pub const XDP_PASS: u32 = 2;
/// See [`XDP_DROP`].
pub const XDP_TX: u32 = 3;

/// Why the kernel programs can't be tried here, if they can't.
#[must_use]
pub fn why_not() -> Option<&'static str> {
    if !crate::skip::is_root() {
        return Some("needs root");
    }
    if object().is_none() {
        return Some("the broker was built without its kernel programs (cargo xtask build-ebpf)");
    }
    None
}

/// A shield, its keys and its workers' sockets. Dropping it takes the shield down.
#[derive(Debug)]
pub struct Rig {
    /// The shield.
    pub shield: Option<Shield>,
    /// Its keys.
    pub keys: Keys,
    /// One socket per worker slot.
    pub sockets: Vec<UdpSocket>,
    /// What it was started with.
    pub settings: KernelSettings,
}

/// What one packet came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Let through, and not counted.
    Ignored,
    /// Let through.
    Passed(PassReason),
    /// Dropped.
    Dropped(DropReason),
    /// Sent back.
    Answered(AnswerReason),
}

/// A folder on the BPF file system that no other test has.
#[must_use]
pub fn pin_dir() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("/sys/fs/bpf/headgate-test-{}-{number}", std::process::id()).into()
}

/// Settings of a shield on no interface, whose budgets never run out and which never asks for an address to be proved.
#[must_use]
pub fn settings() -> KernelSettings {
    KernelSettings {
        mode: Mode::Off,
        pin_dir: pin_dir(),
        quic_port: QUIC_PORT,
        tcp_ports: vec![1883, 8883],
        node: NODE,
        budgets: Budgets::UNLIMITED,
        retry: RetrySettings {
            mode: RetryMode::Never,
            ..RetrySettings::default()
        },
        ..KernelSettings::default()
    }
}

impl Rig {
    /// A shield on no interface with workers in slots 0 to 3 and budgets that never run out.
    ///
    /// # Panics
    /// When the kernel refuses the programs.
    #[must_use]
    pub fn new() -> Self {
        Self::with(settings(), 4)
    }

    /// A shield with these budgets and workers in slots 0 to 3.
    ///
    /// # Panics
    /// When the kernel refuses the programs.
    #[must_use]
    pub fn with_budgets(budgets: Budgets) -> Self {
        Self::with(
            KernelSettings {
                budgets,
                ..settings()
            },
            4,
        )
    }

    /// A shield with these settings and `workers` workers on the loopback interface.
    ///
    /// # Panics
    /// When the kernel refuses the programs.
    #[must_use]
    pub fn with(settings: KernelSettings, workers: u8) -> Self {
        let keys = Keys::from_secret(&[42; 32]);
        let shield = match Shield::start(&settings, &keys, EPOCH) {
            Ok(shield) => shield,
            Err(error) => panic!("the shield starts: {}", tail(&error.to_string())),
        };
        // First of all the rig, which takes the shield down if the rest fails.
        let mut rig = Self {
            shield: Some(shield),
            keys,
            sockets: Vec::new(),
            settings,
        };
        for slot in 0..workers {
            let socket = worker_socket();
            rig.shield()
                .add_worker(slot, &socket, 0)
                .expect("the worker is added");
            rig.sockets.push(socket);
        }
        rig
    }

    /// The shield.
    ///
    /// # Panics
    /// When it was taken out.
    #[must_use]
    pub fn shield(&self) -> &Shield {
        self.shield
            .as_ref()
            .expect("the shield is there until the test takes it out")
    }

    /// The connection-ID keys that are live.
    #[must_use]
    pub fn cids(&self) -> CidKeys {
        self.keys.cid_keys(EPOCH)
    }

    /// A connection ID of a worker's.
    #[must_use]
    pub fn cid(&self, slot: u8) -> [u8; 14] {
        self.cids().encode(NODE, slot, [9, 8, 7, 6, 5, 4])
    }

    /// Sends one packet through the XDP program: what became of it, and its bytes afterwards.
    ///
    /// # Panics
    /// When it was counted more than once, or its action is not what the counters say.
    #[must_use]
    pub fn judge(&self, packet: &[u8]) -> (Outcome, Vec<u8>) {
        let before = self.counters();
        let run = self.shield().test_run(packet, 1).expect("the program runs");
        let after = self.counters();
        assert!(
            after.judged() - before.judged() <= 1,
            "a packet is counted once"
        );
        let mut outcome = Outcome::Ignored;
        for reason in DropReason::ALL
            .iter()
            .filter(|reason| after.dropped(**reason) != before.dropped(**reason))
        {
            outcome = Outcome::Dropped(*reason);
        }
        for reason in PassReason::ALL
            .iter()
            .filter(|reason| after.passed(**reason) != before.passed(**reason))
        {
            outcome = Outcome::Passed(*reason);
        }
        for reason in AnswerReason::ALL
            .iter()
            .filter(|reason| after.answered(**reason) != before.answered(**reason))
        {
            outcome = Outcome::Answered(*reason);
        }
        let action = match outcome {
            Outcome::Ignored | Outcome::Passed(_) => XDP_PASS,
            Outcome::Dropped(_) => XDP_DROP,
            Outcome::Answered(_) => XDP_TX,
        };
        assert_eq!(run.action, action, "{outcome:?}");
        (outcome, run.packet)
    }

    /// The counters.
    ///
    /// # Panics
    /// When they can't be read.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shield().counters().expect("the counters can be read")
    }

    /// Datagrams at the sockets for a reason.
    #[must_use]
    pub fn at_sockets(&self, reason: SocketReason) -> u64 {
        self.counters().at_sockets(reason)
    }
}

impl Default for Rig {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(shield) = self.shield.take()
            && let Err(error) = shield.stop()
        {
            eprintln!(
                "the shield of {} stays: {error}",
                self.settings.pin_dir.display()
            );
        }
    }
}

/// Receives a datagram, also when a signal comes in between: a socket with a timeout isn't waited for again by itself.
///
/// # Errors
/// As [`UdpSocket::recv`], except for interruptions.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn worker_socket() -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
    socket.set_reuse_port(true).expect("SO_REUSEPORT");
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    socket
        .bind(&address.into())
        .expect("the loopback interface has free ports");
    socket.into()
}

/// The end of a verifier's log, where the reason stands.
fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(4_000);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}
