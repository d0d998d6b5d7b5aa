//! Measures the machine itself, so that figures of different machines can be compared: most of what a broker spends is in
//! the kernel's system calls, in memory that isn't in a cache, and in signatures. None of these rows has a bar.

use std::hint::black_box;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use headgate_tests::bench::{self, Row, cpu};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

/// Rounds per figure; the fastest counts, the others were disturbed.
const ROUNDS: usize = 30;
/// What a datagram with one small PUBLISH takes, bytes.
const DATAGRAM_BYTES: usize = 150;
const DATAGRAMS: usize = 100;
const SIGNATURES: usize = 50;
/// Loads in a row, each of which needs the one before it.
const LOADS: usize = 200_000;
/// What one load brings into the caches, bytes.
const LINE_BYTES: usize = 64;

fn main() {
    let (send, receive) = datagrams();
    bench::print(&[
        Row::info("machine_udp_send_ns", send, "ns"),
        Row::info("machine_udp_receive_ns", receive, "ns"),
        Row::info("machine_memory_256_kib_ns", memory(256 << 10), "ns"),
        Row::info("machine_memory_4_mib_ns", memory(4 << 20), "ns"),
        Row::info("machine_memory_64_mib_ns", memory(64 << 20), "ns"),
        Row::info("machine_p256_sign_ns", signature(), "ns"),
    ]);
}

/// Nanoseconds per call of the fastest round of `calls`.
fn fastest(calls: usize, mut round: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let start = cpu();
        round();
        best = best.min(cpu() - start);
    }
    best.as_nanos() as f64 / calls as f64
}

/// One system call for each datagram, over the loopback, both ways.
fn datagrams() -> (f64, f64) {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let address = receiver.local_addr().expect("an address");
    sender.connect(address).expect("the loopback is there");
    let datagram = [b'x'; DATAGRAM_BYTES];
    let mut buffer = [0; DATAGRAM_BYTES];
    let mut receiving = f64::INFINITY;
    let mut sending = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = cpu();
        for _ in 0..DATAGRAMS {
            sender.send(&datagram).expect("the receiver has room");
        }
        let sent = cpu();
        for _ in 0..DATAGRAMS {
            receiver.recv(&mut buffer).expect("it was sent");
        }
        sending = sending.min((sent - start).as_nanos() as f64);
        receiving = receiving.min((cpu() - sent).as_nanos() as f64);
    }
    (sending / DATAGRAMS as f64, receiving / DATAGRAMS as f64)
}

/// A load that waits for the one before it, somewhere in `bytes`.
fn memory(bytes: usize) -> f64 {
    let lines = bytes / LINE_BYTES;
    let per_line = LINE_BYTES / size_of::<usize>();
    // Each line holds the next one's place.
    let mut order: Vec<usize> = (0..lines).collect();
    shuffle(&mut order);
    let mut table = vec![0; lines * per_line];
    for pair in order.windows(2) {
        table[pair[0] * per_line] = pair[1] * per_line;
    }
    table[order[lines - 1] * per_line] = order[0] * per_line;
    let mut at = 0;
    fastest(LOADS, || {
        for _ in 0..LOADS {
            at = table[at];
        }
        black_box(at);
    })
}

/// The same order in each run; what matters is that the processor can't guess it.
fn shuffle(order: &mut [usize]) {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    for index in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(index, (state % (index as u64 + 1)) as usize);
    }
}

/// What each TLS handshake costs at least.
fn signature() -> f64 {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
    let key = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).expect("it is one");
    fastest(SIGNATURES, || {
        for _ in 0..SIGNATURES {
            black_box(key.sign(&random, b"what a server signs")).expect("it signs");
        }
    })
}
