//! Measures the core alone, without codec, mesh or network: what a PUBLISH of 100 bytes costs from
//! the decoded packet to the outputs, for one subscriber and for 1,000, and what an idle session
//! with two subscriptions holds.
//!
//! Times are CPU time of this thread, the best of several passes; dropping the outputs is part of
//! it. Bytes are what the allocator spends, its own headers and rounding included.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headgate_codec::{
    Ack, Connect, ConnectProperties, Packet, PacketId, Publish, QoS, ReasonCode, Subscribe,
    SubscriptionOptions, Text, Version,
};
use headgate_core::{
    Completion, ConnId, Core, CoreConfig, Frame, Input, OpId, Output, Peer, RetainedLimits, Shared,
    Time, Transport, WorkerSlot,
};
use headgate_tests::bench::{self, Row, cpu};
use headgate_tests::heap::Counting;

const PASSES: usize = 9;
const BATCH: usize = 256;
const SUBSCRIBERS: u32 = 1_000;
const SESSIONS: u32 = 100_000;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One worker's core, with directory and storage that answer at once.
struct Bench {
    core: Core,
    out: Vec<Output>,
    shared: Arc<Shared>,
}

const NOW: Time = Time(1_000);

impl Bench {
    fn new() -> Self {
        let shared = Arc::new(Shared::new([3, 4], RetainedLimits::default()));
        let config = CoreConfig::new(WorkerSlot(0), vec![WorkerSlot(0)], [5, 6]);
        let core = Core::new(config, Arc::clone(&shared));
        Self {
            core,
            out: Vec::with_capacity(4_096),
            shared,
        }
    }

    fn handle(&mut self, input: Input) {
        self.core.handle(input, NOW, &mut self.out);
        while let Some(op) = self.out.iter().find_map(claim) {
            self.out.clear();
            let claimed = Completion::Claimed { op, result: Ok(()) };
            self.core
                .handle(Input::Completed(claimed), NOW, &mut self.out);
        }
        self.out.clear();
    }

    /// A connected client with subscriptions to `filters`.
    fn client(&mut self, index: u32, name: &str, filters: &[String], qos: QoS) -> ConnId {
        let conn = ConnId {
            index,
            generation: 1,
        };
        let peer = Peer {
            address: ([192, 0, 2, 1], 1).into(),
            transport: Transport::Quic,
            certificate: None,
            early: false,
        };
        self.handle(Input::Opened { conn, peer });
        let connect = Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive_s: 60,
            client_id: Text::from(name),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties::default(),
        };
        self.handle(Input::Packet {
            conn,
            packet: Packet::Connect(Box::new(connect)),
        });
        if !filters.is_empty() {
            let options = SubscriptionOptions {
                qos,
                ..SubscriptionOptions::default()
            };
            let subscribe = Subscribe {
                packet_id: PacketId::MIN,
                subscription_id: None,
                user_properties: Vec::new(),
                filters: filters
                    .iter()
                    .map(|f| (Text::from(f.as_str()), options))
                    .collect(),
            };
            self.handle(Input::Packet {
                conn,
                packet: Packet::Subscribe(Box::new(subscribe)),
            });
        }
        // The transport has taken what was sent.
        self.handle(Input::Flushed {
            conn,
            bytes: u32::MAX,
        });
        conn
    }
}

fn claim(output: &Output) -> Option<OpId> {
    match output {
        Output::Claim { op, .. } => Some(*op),
        _ => None,
    }
}

fn message(topic: &Text, qos: QoS, id: u16) -> Packet {
    Packet::Publish(Publish {
        dup: false,
        qos,
        retain: false,
        topic: topic.clone(),
        packet_id: PacketId::new(id).filter(|_| qos != QoS::AtMostOnce),
        properties: None,
        payload: Bytes::from_static(&[b'x'; 100]),
    })
}

/// CPU nanoseconds per message of the fastest pass. Packets are made, and connections flushed,
/// outside of what is measured.
fn publish_ns(bench: &mut Bench, publisher: ConnId, subscribers: &[ConnId], batches: usize) -> f64 {
    let topic = Text::from("bench/device/temperature");
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let mut spent = Duration::ZERO;
        for _ in 0..batches {
            let packets: Vec<Packet> = (0..BATCH)
                .map(|_| message(&topic, QoS::AtMostOnce, 0))
                .collect();
            let start = cpu();
            for packet in packets {
                bench.core.handle(
                    Input::Packet {
                        conn: publisher,
                        packet,
                    },
                    NOW,
                    &mut bench.out,
                );
                assert_eq!(bench.out.len(), subscribers.len());
                black_box(&bench.out);
                bench.out.clear();
            }
            spent += cpu() - start;
            for conn in subscribers {
                bench.handle(Input::Flushed {
                    conn: *conn,
                    bytes: u32::MAX,
                });
            }
        }
        best = best.min(spent.as_nanos() as f64 / (batches * BATCH) as f64);
    }
    best
}

/// QoS 1 from publisher to subscriber, both acknowledgements included.
fn acknowledged_ns() -> f64 {
    let mut bench = Bench::new();
    let subscriber = bench.client(0, "s", &["bench/#".into()], QoS::AtLeastOnce);
    let publisher = bench.client(1, "p", &[], QoS::AtMostOnce);
    let topic = Text::from("bench/device/temperature");
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let packets: Vec<Packet> = (1..=BATCH as u16)
            .map(|id| message(&topic, QoS::AtLeastOnce, id))
            .collect();
        let start = cpu();
        for packet in packets {
            bench.core.handle(
                Input::Packet {
                    conn: publisher,
                    packet,
                },
                NOW,
                &mut bench.out,
            );
            let Some(packet_id) = bench.out.iter().find_map(sent_id) else {
                panic!("a PUBLISH is sent")
            };
            let puback = Packet::PubAck(Ack {
                packet_id,
                reason: ReasonCode::SUCCESS,
                properties: None,
            });
            bench.core.handle(
                Input::Packet {
                    conn: subscriber,
                    packet: puback,
                },
                NOW,
                &mut bench.out,
            );
            bench.out.clear();
        }
        best = best.min((cpu() - start).as_nanos() as f64 / BATCH as f64);
        for conn in [subscriber, publisher] {
            bench.handle(Input::Flushed {
                conn,
                bytes: u32::MAX,
            });
        }
    }
    best
}

fn sent_id(output: &Output) -> Option<PacketId> {
    match output {
        Output::Send {
            frame: Frame::Publish { packet_id, .. },
            ..
        } => Some(*packet_id),
        _ => None,
    }
}

/// Bytes per idle session without its part of the topic table, and nanoseconds to connect it and
/// to subscribe twice.
fn sessions() -> (f64, f64) {
    let mut bench = Bench::new();
    let before = Counting::live_bytes();
    let start = cpu();
    for i in 0..SESSIONS {
        let filters = [
            format!("fleet/device-{i:06}/cmd/#"),
            format!("fleet/device-{i:06}/config"),
        ];
        bench.client(i, &format!("device-{i:06}"), &filters, QoS::AtLeastOnce);
    }
    let ns = (cpu() - start).as_nanos() as f64 / f64::from(SESSIONS);
    let table = bench.shared.topics.memory_bytes() as f64;
    let bytes = (Counting::live_bytes() - before) as f64;
    ((bytes - table) / f64::from(SESSIONS), ns)
}

fn main() {
    let mut bench = Bench::new();
    let subscriber = bench.client(0, "s", &["bench/device/+".into()], QoS::AtMostOnce);
    let publisher = bench.client(1, "p", &[], QoS::AtMostOnce);
    let one_to_one_ns = publish_ns(&mut bench, publisher, &[subscriber], 200);

    let mut bench = Bench::new();
    let subscribers: Vec<ConnId> = (0..SUBSCRIBERS)
        .map(|i| bench.client(i, &format!("s{i}"), &["bench/#".into()], QoS::AtMostOnce))
        .collect();
    let publisher = bench.client(SUBSCRIBERS, "p", &[], QoS::AtMostOnce);
    let fan_out_ns = publish_ns(&mut bench, publisher, &subscribers, 2) / f64::from(SUBSCRIBERS);
    let acknowledged_ns = acknowledged_ns();
    let (session_bytes, connect_ns) = sessions();

    bench::print(&[
        Row::at_most("core_publish_ns", one_to_one_ns.round(), "ns", 250.0),
        Row::at_most("core_fanout_ns_per_subscriber", fan_out_ns, "ns", 60.0),
        Row::info(
            "core_publish_qos1_acknowledged_ns",
            acknowledged_ns.round(),
            "ns",
        ),
        Row::at_most("core_session_bytes", session_bytes.round(), "B", 600.0),
        Row::info("core_connect_and_subscribe_ns", connect_ns.round(), "ns"),
        Row::info("core_output_bytes", size_of::<Output>() as f64, "B"),
    ]);
}
