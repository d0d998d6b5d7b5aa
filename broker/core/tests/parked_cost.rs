//! What a session costs whose client isn't connected.

use headgate_codec::{QoS, Text, Version};
use headgate_core::{
    Core, CoreConfig, Input, OpId, Output, QueueSummary, RestoredSession, RestoredSubscription,
    RetainedLimits, SessionId, Shared, Time, WorkerSlot,
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Counts the bytes that are allocated.
struct Counting;

static BYTES: AtomicU64 = AtomicU64::new(0);

// SAFETY: passes everything on to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Sessions; the slab and the tables have no room to spare with a power of two.
const SESSIONS: u64 = 1 << 14;
/// Bytes of a session with two subscriptions and a queue in the store: its place, itself, its entries in the topic
/// table, its timer. The directory's entry comes on top.
const SESSION_BYTES_MAX: u64 = 400;

fn restored(n: u64) -> RestoredSession {
    let subscription = |filter: String, qos: QoS| RestoredSubscription {
        filter: Text::from(filter.as_str()),
        options: qos as u8,
        subscription_id: None,
    };
    RestoredSession {
        id: SessionId {
            node: 0,
            epoch: 1,
            counter: n + 1,
        },
        client_id: Text::from(format!("device-{n:08}").as_str()),
        epoch: 1,
        sequence: 10,
        expiry_s: u32::MAX,
        version: Version::V5,
        is_connected: false,
        expires_at: None,
        will: None,
        will_at: None,
        subscriptions: vec![
            subscription(format!("devices/{n:08}/commands"), QoS::AtLeastOnce),
            subscription("devices/all/commands".to_owned(), QoS::AtLeastOnce),
        ],
        received: Vec::new(),
        queue: QueueSummary {
            count: 3,
            bytes: 900,
            first_packet_id: 1,
            last_packet_id: 3,
            sent_up_to: 0,
            send_quota: 20,
        },
    }
}

#[test]
fn a_session_without_a_connection_takes_few_bytes() {
    let shared = Arc::new(Shared::new([1, 2], RetainedLimits::default()));
    let mut config = CoreConfig::new(WorkerSlot(0), vec![WorkerSlot(0)], [1, 2]);
    config.limits.spills = true;
    let mut core = Core::new(config, shared);
    let mut out = Vec::with_capacity(16);
    let before = BYTES.load(Ordering::Relaxed);
    for n in 0..SESSIONS {
        core.handle(Input::Restore(Box::new(restored(n))), Time(1_000), &mut out);
        let claimed = out.drain(..).find_map(|output| match output {
            Output::Claim { op, .. } => Some(op),
            _ => None,
        });
        let op: OpId = claimed.expect("a session is claimed");
        let claimed = headgate_core::Completion::Claimed { op, result: Ok(()) };
        core.handle(Input::Completed(claimed), Time(1_000), &mut out);
    }
    assert_eq!(core.counters().sessions, SESSIONS);
    let each = (BYTES.load(Ordering::Relaxed) - before) / SESSIONS;
    println!("{each} bytes for a session");
    assert!(each <= SESSION_BYTES_MAX, "{each} bytes for a session");
}
