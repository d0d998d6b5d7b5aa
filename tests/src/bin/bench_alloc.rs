//! Counts what the path of a message allocates: decoded from a stream, through the core, into the receivers' outboxes and
//! joined for their sockets, as a worker does it, without the sockets. Every call of the allocator counts, also one that
//! makes a block larger.
//!
//! What a read of the publisher's socket allocates is part of it: one buffer, which its packets then share.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use headgate::net::framing::Inbox;
use headgate_codec::{
    Ack, Connect, ConnectProperties, Packet, PacketId, Publish, QoS, ReasonCode, Subscribe,
    SubscriptionOptions, Text, Version,
};
use headgate_core::{
    Completion, ConnId, Core, CoreConfig, Frame, Input, OpId, Output, Peer, RetainedLimits, Shared,
    Time, Transport, WorkerSlot,
};
use headgate_tests::bench::{self, Row};

/// Messages that come in one read.
const PER_READ: usize = 16;
const READS: usize = 64;
const PACKET_BYTES_MAX: u32 = 1 << 20;
const NOW: Time = Time(1_000);

/// Counts calls.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: passes everything on to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let fan_out = per_delivery(1_000, QoS::AtMostOnce);
    let fan_out_qos1 = per_delivery(1_000, QoS::AtLeastOnce);
    let unit = "allocations";
    bench::print(&[
        Row::at_most("allocations_per_delivered_message", fan_out, unit, 0.1),
        Row::at_most(
            "allocations_per_delivered_message_qos1",
            fan_out_qos1,
            unit,
            0.1,
        ),
        Row::info(
            "allocations_per_delivered_message_p2p",
            per_delivery(1, QoS::AtMostOnce),
            unit,
        ),
        Row::info(
            "allocations_per_delivered_message_p2p_qos1",
            per_delivery(1, QoS::AtLeastOnce),
            unit,
        ),
    ]);
}

/// Allocations per message that is delivered to `subscribers`, once all buffers have their size.
fn per_delivery(subscribers: u32, qos: QoS) -> f64 {
    let mut node = Node::new(subscribers, qos);
    node.reads(READS);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let delivered = node.reads(READS);
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert_eq!(delivered, READS * PER_READ * subscribers as usize);
    allocations as f64 / delivered as f64
}

/// A core with its connections, and what a worker keeps for these.
struct Node {
    core: Core,
    out: Vec<Output>,
    publisher: ConnId,
    /// What the publisher sends in one read.
    stream: Vec<u8>,
    inbox: Inbox,
    outboxes: Vec<Vec<Frame>>,
    joined: Vec<u8>,
}

impl Node {
    fn new(subscribers: u32, qos: QoS) -> Self {
        let shared = Arc::new(Shared::new([3, 4], RetainedLimits::default()));
        let config = CoreConfig::new(WorkerSlot(0), vec![WorkerSlot(0)], [5, 6]);
        let conn = |index| ConnId {
            index,
            generation: 1,
        };
        let mut stream = BytesMut::new();
        for id in 1..=PER_READ as u16 {
            let publish = Packet::Publish(Publish {
                dup: false,
                qos,
                retain: false,
                topic: Text::from("bench/device/temperature"),
                packet_id: PacketId::new(id).filter(|_| qos != QoS::AtMostOnce),
                properties: None,
                payload: Bytes::from_static(&[b'x'; 100]),
            });
            headgate_codec::encode(&publish, Version::V5, &mut stream);
        }
        let mut node = Self {
            core: Core::new(config, shared),
            out: Vec::with_capacity(4_096),
            publisher: conn(subscribers),
            stream: stream.to_vec(),
            inbox: Inbox::default(),
            outboxes: (0..=subscribers).map(|_| Vec::new()).collect(),
            joined: Vec::new(),
        };
        for index in 0..subscribers {
            node.connect(conn(index));
            node.subscribe(conn(index), qos);
        }
        node.connect(conn(subscribers));
        node.flush();
        node
    }

    /// Reads of the publisher's socket, each with all that follows. Returns how many messages were delivered.
    fn reads(&mut self, reads: usize) -> usize {
        let mut delivered = 0;
        for _ in 0..reads {
            self.inbox.push(Bytes::copy_from_slice(&self.stream));
            while let Some(packet) = self
                .inbox
                .next(Some(Version::V5), PACKET_BYTES_MAX)
                .expect("valid packets")
            {
                let conn = self.publisher;
                self.input(Input::Packet { conn, packet });
            }
            delivered += self.flush();
        }
        delivered
    }

    fn connect(&mut self, conn: ConnId) {
        let peer = Peer {
            address: ([192, 0, 2, 1], 1).into(),
            transport: Transport::Tcp,
            certificate: None,
            early: false,
        };
        self.input(Input::Opened { conn, peer });
        let connect = Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive_s: 60,
            client_id: Text::from(format!("client-{}", conn.index).as_str()),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties::default(),
        };
        let packet = Packet::Connect(Box::new(connect));
        self.input(Input::Packet { conn, packet });
    }

    fn subscribe(&mut self, conn: ConnId, qos: QoS) {
        let options = SubscriptionOptions {
            qos,
            ..SubscriptionOptions::default()
        };
        let subscribe = Subscribe {
            packet_id: PacketId::MIN,
            subscription_id: None,
            user_properties: Vec::new(),
            filters: vec![(Text::from("bench/#"), options)],
        };
        let packet = Packet::Subscribe(Box::new(subscribe));
        self.input(Input::Packet { conn, packet });
    }

    /// Tells the core something, and puts what it sends into the outboxes.
    fn input(&mut self, input: Input) {
        self.core.handle(input, NOW, &mut self.out);
        while let Some(op) = self.out.iter().find_map(claim) {
            self.out.clear();
            let claimed = Completion::Claimed { op, result: Ok(()) };
            let input = Input::Completed(claimed);
            self.core.handle(input, NOW, &mut self.out);
        }
        for output in self.out.drain(..) {
            if let Output::Send { conn, frame, .. } = output {
                self.outboxes[conn.index as usize].push(frame);
            }
        }
    }

    /// Joins the frames of each outbox, as for its socket, which takes them; subscribers acknowledge what asks for it.
    /// Returns how many messages there were.
    fn flush(&mut self) -> usize {
        let mut delivered = 0;
        for index in 0..self.outboxes.len() {
            let conn = ConnId {
                index: index as u32,
                generation: 1,
            };
            let mut frames = std::mem::take(&mut self.outboxes[index]);
            self.joined.clear();
            for frame in &frames {
                frame.append_to(&mut self.joined);
            }
            black_box(&self.joined);
            let bytes = self.joined.len() as u32;
            self.input(Input::Flushed { conn, bytes });
            for frame in frames.drain(..) {
                delivered += usize::from(is_publish(&frame));
                if let Frame::Publish { packet_id, .. } = frame {
                    let packet = Packet::PubAck(Ack {
                        packet_id,
                        reason: ReasonCode::SUCCESS,
                        properties: None,
                    });
                    self.input(Input::Packet { conn, packet });
                }
            }
            // What the acknowledgements have brought on its way comes behind.
            frames.append(&mut self.outboxes[index]);
            self.outboxes[index] = frames;
        }
        delivered
    }
}

fn is_publish(frame: &Frame) -> bool {
    match frame {
        Frame::Bytes(bytes) => bytes.first().is_some_and(|first| first >> 4 == 3),
        Frame::Publish { .. } | Frame::Aliased(_) => true,
    }
}

fn claim(output: &Output) -> Option<OpId> {
    match output {
        Output::Claim { op, .. } => Some(*op),
        _ => None,
    }
}
