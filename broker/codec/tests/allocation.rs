//! What a peer can make the decoder allocate. One test, alone in its process: it counts all
//! allocations.

use bytes::{Bytes, BytesMut};
use headgate_codec::{Packet, Publish, QoS, Version, decode, encode};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: passes everything on to `System`, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that were allocated at a time while decoding, and how often.
fn decoding(bytes: &Bytes, version: Version) -> (usize, usize) {
    let mut input = bytes.clone();
    let (before, calls) = (LIVE.load(Relaxed), CALLS.load(Relaxed));
    PEAK.store(before, Relaxed);
    let decoded = decode(&mut input, Some(version), u32::MAX);
    let cost = (PEAK.load(Relaxed) - before, CALLS.load(Relaxed) - calls);
    drop(decoded);
    cost
}

/// A packet of type and flags `first` with `body`.
fn framed(first: u8, body: &[u8]) -> Bytes {
    let mut bytes = vec![first];
    let mut len = body.len();
    while len >= 0x80 {
        bytes.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    bytes.push(len as u8);
    bytes.extend_from_slice(body);
    let bytes = Bytes::from(bytes);
    // The first reference to a `Vec` allocates; not what is measured here.
    drop(bytes.clone());
    bytes
}

#[test]
fn memory_is_bounded_by_the_input() {
    let n = 10_001;
    let entries = |entry: &[u8]| [&b"\0\x01"[..], &entry.repeat(n)].concat();
    // The entries that cost most for their length: empty filters, and empty User Properties
    // (a Property Length of three bytes: 50,005).
    let block = [&b"\0\x01t\xd5\x86\x03"[..], &b"\x26\0\0\0\0".repeat(n)].concat();
    for (bytes, version) in [
        (framed(0xa2, &entries(b"\0\0")), Version::V311),
        (framed(0x82, &entries(b"\0\0\0")), Version::V311),
        (framed(0x30, &block), Version::V5),
        (framed(0x90, &entries(b"\0")), Version::V311),
    ] {
        let kept = bytes.clone();
        assert!(decode(&mut kept.clone(), Some(version), u32::MAX).is_ok_and(|p| p.is_some()));
        let (peak, _) = decoding(&bytes, version);
        assert!(
            peak <= 48 * bytes.len() + 400,
            "{peak} bytes for {}",
            bytes.len()
        );
    }
    // Lengths that promise much more than is there take nothing.
    for bytes in [
        framed(0x82, b"\0\x01\xff\xff\xff\x7f"),
        framed(0x30, b"\xff\xff"),
        framed(0x82, b"\0\x01\0\xff\xff"),
        Bytes::from_static(b"\x30\xff\xff\xff\x7f"),
    ] {
        let (peak, _) = decoding(&bytes, Version::V5);
        assert!(peak <= 400, "{peak} bytes for {bytes:?}");
    }
    // The common PUBLISH takes no allocation at all, nor does encoding it into a buffer with room.
    let publish = Packet::Publish(Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "a/b".into(),
        packet_id: None,
        properties: None,
        payload: Bytes::from_static(&[1; 100]),
    });
    let mut out = BytesMut::with_capacity(1_000);
    let calls = CALLS.load(Relaxed);
    encode(&publish, Version::V5, &mut out);
    assert_eq!(CALLS.load(Relaxed) - calls, 0, "encoding allocates");
    out.extend_from_slice(b"\xc0\0");
    let stream = out.freeze();
    drop(stream.clone());
    assert_eq!(decoding(&stream, Version::V5), (0, 0), "decoding allocates");
}
