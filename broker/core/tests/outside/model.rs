//! Random histories over three cores whose mesh, directory and storage answer in any order, with
//! clients that keep their half of the protocol. What must hold, whatever happens:
//! acknowledged messages reach every lasting subscription, QoS 2 messages reach it once, messages
//! of a publisher's connection stay in order, and a client has one owner.

use crate::common::*;
use headgate_codec::{Packet, PacketId, Publish, QoS, ReasonCode};
use headgate_topics::filter_matches;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const WORKERS: usize = 3;
const CLIENTS: usize = 6;
/// The first clients have lasting sessions and subscriptions.
const LASTING: [&[(&str, QoS)]; 3] = [
    &[("t/#", QoS::ExactlyOnce)],
    &[("t/+", QoS::AtLeastOnce)],
    &[("t/0", QoS::ExactlyOnce), ("t/#", QoS::AtLeastOnce)],
];
const TOPICS: [&str; 2] = ["t/0", "t/1"];
const FILTERS: [&str; 4] = ["t/#", "t/0", "+/1", "other"];

#[derive(Clone, Debug)]
enum Op {
    Connect {
        client: usize,
        worker: usize,
        clean: bool,
        expiry_s: u32,
    },
    Drop(usize),
    Leave(usize),
    Publish {
        client: usize,
        topic: usize,
        qos: QoS,
    },
    Subscribe {
        client: usize,
        filter: usize,
        qos: QoS,
    },
    Unsubscribe {
        client: usize,
        filter: usize,
    },
    Read(usize),
    Steps(Vec<u8>),
    Settle,
    AdvanceMs(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let qos = prop_oneof![
        Just(QoS::AtMostOnce),
        Just(QoS::AtLeastOnce),
        Just(QoS::ExactlyOnce)
    ];
    let client = 0..CLIENTS;
    prop_oneof![
        3 => (client.clone(), 0..WORKERS, any::<bool>(), prop_oneof![Just(0_u32), Just(1), Just(60)])
            .prop_map(|(client, worker, clean, expiry_s)| Op::Connect { client, worker, clean, expiry_s }),
        1 => client.clone().prop_map(Op::Drop),
        1 => client.clone().prop_map(Op::Leave),
        8 => (client.clone(), 0..TOPICS.len(), qos.clone())
            .prop_map(|(client, topic, qos)| Op::Publish { client, topic, qos }),
        1 => (client.clone(), 0..FILTERS.len(), qos)
            .prop_map(|(client, filter, qos)| Op::Subscribe { client, filter, qos }),
        1 => (client.clone(), 0..FILTERS.len()).prop_map(|(client, filter)| Op::Unsubscribe { client, filter }),
        6 => client.prop_map(Op::Read),
        8 => prop::collection::vec(any::<u8>(), 1..12).prop_map(Op::Steps),
        1 => Just(Op::Settle),
        1 => (1_u64..1_500).prop_map(Op::AdvanceMs),
    ]
}

/// A message as its publisher knows it.
#[derive(Debug)]
struct Sent {
    topic: &'static str,
    qos: QoS,
    publisher: usize,
    wire: Id,
    times: u32,
    acked: bool,
}

#[derive(Debug, Default)]
struct Client {
    wire: Option<Id>,
    connected: bool,
    /// It has read the CONNACK of its last CONNECT.
    knows: bool,
    last_id: u16,
    /// Unacknowledged: identifier → message, and whether PUBREC has come.
    open: BTreeMap<u16, (usize, bool)>,
    order: Vec<u16>,
    received: BTreeSet<PacketId>,
    /// What the application got: message and the QoS it came with.
    got: Vec<(usize, QoS)>,
}

struct Model {
    world: World,
    clients: Vec<Client>,
    messages: Vec<Sent>,
    unsettled_ms: u64,
}

impl Model {
    fn new() -> Self {
        let mut model = Self {
            world: World::new(WORKERS as u8),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            messages: Vec::new(),
            unsettled_ms: 0,
        };
        for (i, filters) in LASTING.iter().enumerate() {
            let (id, _) = model
                .world
                .connect(i % WORKERS, lasting(&format!("c{i}"), 2_000));
            for (filter, qos) in *filters {
                model.world.subscribe(id, filter, *qos);
            }
            model.clients[i].wire = Some(id);
            (model.clients[i].connected, model.clients[i].knows) = (true, true);
        }
        model.world.manual = true;
        model
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Connect {
                client,
                worker,
                clean,
                expiry_s,
            } => self.connect(client, worker, clean, expiry_s),
            Op::Drop(client) => {
                if let Some(id) = self.clients[client].wire.take() {
                    self.clients[client].connected = false;
                    self.world.lose(id);
                }
            }
            Op::Leave(client) => {
                if let Some(id) = self.live(client) {
                    self.world.send(id, disconnect(ReasonCode::SUCCESS));
                    self.clients[client].connected = false;
                }
            }
            Op::Publish { client, topic, qos } => self.publish(client, TOPICS[topic], qos),
            Op::Subscribe {
                client,
                filter,
                qos,
            } if client >= LASTING.len() => {
                if let Some(id) = self.live(client) {
                    let options = headgate_codec::SubscriptionOptions {
                        qos,
                        ..Default::default()
                    };
                    self.world
                        .send(id, subscribe(60_000, FILTERS[filter], options));
                }
            }
            Op::Unsubscribe { client, filter } if client >= LASTING.len() => {
                if let Some(id) = self.live(client) {
                    self.world.send(id, unsubscribe(60_001, FILTERS[filter]));
                }
            }
            Op::Subscribe { .. } | Op::Unsubscribe { .. } => {}
            Op::Read(client) => {
                self.read(client);
            }
            Op::Steps(ref choices) => {
                for choice in choices {
                    let events = self.world.events();
                    if !events.is_empty() {
                        self.world
                            .happen(events[usize::from(*choice) % events.len()]);
                    }
                }
            }
            Op::Settle => self.settle(),
            Op::AdvanceMs(ms) => {
                // A session waits 5 s for its fences: the mesh is not slower than that.
                self.unsettled_ms += ms;
                if self.unsettled_ms > 4_000 {
                    self.settle();
                }
                self.world.advance_ms(ms);
            }
        }
    }

    fn settle(&mut self) {
        self.world.run();
        self.unsettled_ms = 0;
    }

    /// The client's connection, if it believes to be connected and is.
    fn live(&self, client: usize) -> Option<Id> {
        let c = &self.clients[client];
        c.wire
            .filter(|id| c.connected && self.world.wires[*id].closed.is_none())
    }

    fn connect(&mut self, client: usize, worker: usize, clean: bool, expiry_s: u32) {
        // Some leave the former connection open; not one that may still overtake the new one.
        if (client.is_multiple_of(2) || !self.clients[client].knows)
            && let Some(id) = self.clients[client].wire.take()
        {
            self.world.lose(id);
        }
        let id = self.world.open(worker);
        let mut connect = lasting(
            &format!("c{client}"),
            if client < LASTING.len() {
                2_000
            } else {
                expiry_s
            },
        );
        // Without having read the last CONNACK, a client doesn't know what the server remembers.
        let is_lost = !self.clients[client].knows;
        connect.clean_start = (clean || is_lost) && client >= LASTING.len();
        connect.keep_alive_s = 0;
        self.world.send(id, Packet::Connect(Box::new(connect)));
        let c = &mut self.clients[client];
        c.wire = Some(id);
        c.connected = false;
        c.knows = false;
    }

    fn publish(&mut self, client: usize, topic: &'static str, qos: QoS) {
        let Some(wire) = self.live(client) else {
            return;
        };
        let n = self.messages.len();
        let c = &mut self.clients[client];
        let packet = if qos == QoS::AtMostOnce {
            publish(topic, &n.to_string())
        } else {
            if c.open.len() >= 100 {
                return;
            }
            c.last_id += 1;
            c.open.insert(c.last_id, (n, false));
            c.order.push(c.last_id);
            publish_acked(topic, &n.to_string(), qos, c.last_id)
        };
        self.messages.push(Sent {
            topic,
            qos,
            publisher: client,
            wire,
            times: 1,
            acked: false,
        });
        self.world.send(wire, Packet::Publish(packet));
    }

    /// The client reads and answers. `true` = there was something.
    fn read(&mut self, client: usize) -> bool {
        let Some(wire) = self.clients[client].wire else {
            return false;
        };
        let packets = self.world.read(wire);
        let is_any = !packets.is_empty();
        for packet in packets {
            for answer in self.react(client, wire, packet) {
                if self.world.wires[wire].closed.is_none() {
                    self.world.send(wire, answer);
                }
            }
        }
        if self.world.wires[wire].closed.is_some() {
            self.clients[client].connected = false;
        }
        is_any
    }

    fn react(&mut self, client: usize, wire: Id, packet: Packet) -> Vec<Packet> {
        let c = &mut self.clients[client];
        match packet {
            Packet::ConnAck(connack) => {
                assert_eq!(connack.reason, ReasonCode::SUCCESS);
                (c.connected, c.knows) = (true, true);
                if connack.session_present {
                    return self.resend(client, wire);
                }
                assert!(client >= LASTING.len(), "a lasting session is gone");
                c.open.clear();
                c.order.clear();
                c.received.clear();
                Vec::new()
            }
            Packet::Publish(p) => {
                let n: usize = String::from_utf8_lossy(&p.payload)
                    .parse()
                    .expect("a number");
                let is_new =
                    p.qos != QoS::ExactlyOnce || c.received.insert(p.packet_id.expect("QoS 2"));
                if is_new {
                    c.got.push((n, p.qos));
                }
                let id = p.packet_id.map(PacketId::get);
                match p.qos {
                    QoS::AtMostOnce => Vec::new(),
                    QoS::AtLeastOnce => vec![Packet::PubAck(ack(id.unwrap()))],
                    QoS::ExactlyOnce => vec![Packet::PubRec(ack(id.unwrap()))],
                }
            }
            Packet::PubRel(a) => {
                c.received.remove(&a.packet_id);
                vec![Packet::PubComp(ack(a.packet_id.get()))]
            }
            Packet::PubAck(a) => {
                assert!(a.reason.0 < 0x80, "{a:?}");
                let (n, _) = c.open.remove(&a.packet_id.get()).expect("an open message");
                self.messages[n].acked = true;
                Vec::new()
            }
            Packet::PubRec(a) => {
                assert!(a.reason.0 < 0x80, "{a:?}");
                let open = c.open.get_mut(&a.packet_id.get()).expect("an open message");
                open.1 = true;
                self.messages[open.0].acked = true;
                vec![Packet::PubRel(ack(a.packet_id.get()))]
            }
            Packet::PubComp(a) => {
                c.open.remove(&a.packet_id.get());
                Vec::new()
            }
            Packet::SubAck(a) => {
                assert!(a.reasons.iter().all(|r| r.0 < 0x80));
                Vec::new()
            }
            Packet::UnsubAck(_) => Vec::new(),
            Packet::Disconnect(d) => {
                assert_eq!(d.reason, ReasonCode::SESSION_TAKEN_OVER);
                Vec::new()
            }
            other => panic!("{other:?}"),
        }
    }

    /// What isn't acknowledged is sent again [MQTT-4.4.0-1].
    fn resend(&mut self, client: usize, wire: Id) -> Vec<Packet> {
        let c = &mut self.clients[client];
        c.order.retain(|id| c.open.contains_key(id));
        let mut packets = Vec::new();
        for id in &c.order {
            let (n, is_received) = c.open[id];
            if is_received {
                packets.push(Packet::PubRel(ack(*id)));
                continue;
            }
            let sent = &mut self.messages[n];
            sent.times += 1;
            sent.wire = wire;
            let again = publish_acked(sent.topic, &n.to_string(), sent.qos, *id);
            packets.push(Packet::Publish(Publish { dup: true, ..again }));
        }
        packets
    }

    /// Everybody comes back and reads until nothing is left.
    fn finish(&mut self) {
        self.settle();
        for client in 0..CLIENTS {
            self.read(client);
            if self.live(client).is_none() && client < LASTING.len() {
                self.connect(client, client % WORKERS, false, 0);
            }
        }
        for _ in 0..1_000 {
            self.settle();
            if !(0..CLIENTS)
                .map(|client| self.read(client))
                .fold(false, |a, b| a | b)
            {
                return;
            }
        }
        panic!("the clients never come to rest");
    }

    fn check(&self) {
        for (i, filters) in LASTING.iter().enumerate() {
            let got: BTreeSet<usize> = self.clients[i].got.iter().map(|(n, _)| *n).collect();
            for (n, sent) in self.messages.iter().enumerate() {
                let matches = filters
                    .iter()
                    .any(|(filter, _)| filter_matches(filter, sent.topic));
                if matches && sent.acked {
                    assert!(
                        got.contains(&n),
                        "c{i} lost the acknowledged message {n}: {sent:?}"
                    );
                }
            }
        }
        for (i, client) in self.clients.iter().enumerate() {
            let mut seen = BTreeSet::new();
            let mut last: BTreeMap<(usize, Id, &str, QoS), usize> = BTreeMap::new();
            for (n, qos) in &client.got {
                let sent = &self.messages[*n];
                let is_first = seen.insert(*n);
                // QoS 1 may repeat on either side's way.
                let may_repeat =
                    *qos == QoS::AtLeastOnce || (sent.qos == QoS::AtLeastOnce && sent.times > 1);
                assert!(
                    is_first || may_repeat,
                    "c{i} got message {n} twice with {qos:?}"
                );
                if is_first && sent.times == 1 {
                    let key = (sent.publisher, sent.wire, sent.topic, *qos);
                    let former = last.insert(key, *n);
                    assert!(former < Some(*n), "c{i} got {n} after {former:?}");
                }
            }
        }
        let live = self.world.sum(|c| c.sessions);
        assert_eq!(
            live,
            self.world.directory.len() as u64,
            "sessions and directory differ"
        );
        assert_eq!(
            self.world.sum(|c| c.subscriptions),
            self.world.shared.topics.len() as u64
        );
        assert_eq!(self.world.sum(|c| c.dropped_queue_full), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_messages_arrive_once_in_order_and_clients_have_one_owner(
        ops in prop::collection::vec(op(), 1..250),
    ) {
        let mut model = Model::new();
        for op in &ops {
            model.apply(op);
        }
        model.finish();
        model.check();
        // The rest ends with time.
        model.world.manual = false;
        for id in 0..model.world.wires.len() {
            if model.world.wires[id].closed.is_none() && !model.world.wires[id].gone {
                model.world.lose(id);
            }
        }
        model.world.advance_s(2_200);
        prop_assert_eq!(model.world.sum(|c| c.sessions), 0);
        prop_assert_eq!(model.world.directory.len(), 0);
        prop_assert_eq!(model.world.shared.topics.len(), 0);
    }
}
