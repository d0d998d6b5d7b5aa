//! What a run consists of: its setting, and a list of operations that clients, the network and the clock perform.

use headgate_codec::{QoS, Version};
use headgate_core::WhenFull;

use super::draw::{Draw, Rng};

/// Topic Names that clients publish to; only Shared Subscriptions match the last one.
pub(crate) const TOPICS: [&str; 9] = ["a", "a/b", "a/c", "a/b/c", "b", "/b", "$s/x", "a/", "$q/x"];
/// Topic Filters that clients subscribe to; two are invalid.
pub(crate) const FILTERS: [&str; 19] = [
    "#",
    "+",
    "a/#",
    "a/+",
    "+/b",
    "a/b",
    "b",
    "$s/#",
    "+/+/#",
    "a/b/#",
    "/+",
    "a/",
    "$s/+",
    "a",
    "a/#/b",
    "b+",
    "$share/g/$q/#",
    "$share/g/$q/+",
    "$share/h/$q/+",
];

/// The setting of a run.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) workers: usize,
    pub(crate) clients: usize,
    /// Small limits: messages may be dropped, and reading stops now and then.
    pub(crate) tight: bool,
    /// What becomes of a message that finds no room.
    pub(crate) when_full: WhenFull,
    pub(crate) receive_maximum: u16,
    pub(crate) inflight_messages: u16,
    pub(crate) topic_aliases: u16,
    /// What is safe is synced: the power may go. Otherwise it is what the process has written.
    pub(crate) syncs: bool,
    /// Long queues are in the store only.
    pub(crate) spills: bool,
}

/// One operation, and the seed of all that happens by chance between it and the next.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) schedule: u64,
}

/// What somebody does. Clients and topics are numbers; what isn't possible is left out.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// A client opens a connection to a worker and sends CONNECT.
    Connect(Box<Connecting>),
    /// The network breaks the client's connection.
    Drop { client: usize },
    /// The client sends DISCONNECT and closes.
    Disconnect {
        client: usize,
        with_will: bool,
        expiry_s: Option<u32>,
    },
    /// The client publishes.
    Publish { client: usize, message: Content },
    /// The client subscribes.
    Subscribe {
        client: usize,
        filters: Vec<Wanted>,
        id: u32,
    },
    /// The client unsubscribes.
    Unsubscribe { client: usize, filter: usize },
    /// The client sends PINGREQ.
    Ping { client: usize },
    /// The client keeps its acknowledgements to itself, or goes on sending them.
    HoldAcks { client: usize, on: bool },
    /// The client reads nothing, or goes on reading.
    Stall { client: usize, on: bool },
    /// The client breaks the protocol.
    Misbehave { client: usize, how: Fault },
    /// Time passes.
    Advance { ms: u64 },
    /// Everything arrives that is on its way.
    Settle,
    /// A worker panics and is built anew.
    Crash { worker: usize },
    /// The power goes and comes back: every worker begins anew with what the disk has kept.
    Restart,
}

/// A CONNECT.
#[derive(Clone, Debug)]
pub(crate) struct Connecting {
    pub(crate) client: usize,
    pub(crate) worker: usize,
    pub(crate) version: Version,
    pub(crate) clean: bool,
    pub(crate) expiry_s: u32,
    pub(crate) keep_alive_s: u16,
    pub(crate) receive_maximum: Option<u16>,
    pub(crate) maximum_packet_size: Option<u32>,
    pub(crate) topic_alias_maximum: Option<u16>,
    pub(crate) will: Option<(Content, u32)>,
    /// The former connection is left to the server to close.
    pub(crate) leave_open: bool,
}

/// A message to be published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    pub(crate) topic: usize,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// Bytes of payload beyond the number; `None`: no payload at all.
    pub(crate) size: Option<usize>,
    pub(crate) expiry_s: Option<u32>,
    /// Which other properties it has, as bits.
    pub(crate) properties: u8,
    /// By alias, if the server takes some.
    pub(crate) alias: bool,
}

/// A filter of a SUBSCRIBE.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) filter: usize,
    pub(crate) qos: QoS,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) retain_handling: u8,
}

/// How a client breaks the protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// A reserved packet type.
    Garbage,
    /// A second CONNECT.
    SecondConnect,
    /// A topic with a wildcard.
    WildcardTopic,
    /// A packet that exceeds the server's Maximum Packet Size.
    TooLarge,
    /// A Topic Alias above what the server takes.
    AliasTooHigh,
    /// More messages with QoS > 0 than the server's Receive Maximum.
    TooMany,
    /// Subscription Identifier in a PUBLISH.
    SubscriptionId,
}

/// Bytes that a packet of a client may have.
pub(crate) const PACKET_BYTES_MAX: u32 = 8_192;

const POLICIES: [WhenFull; 4] = [
    WhenFull::DropNewest,
    WhenFull::DropOldest,
    WhenFull::Disconnect,
    WhenFull::Block,
];

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

/// The run of a seed.
pub(crate) fn of_seed(seed: u64) -> (Scenario, Vec<Step>) {
    let mut draw = Draw::Random(Rng::new(seed));
    let policy = Rng::new(!seed).below(POLICIES.len());
    let scenario = scenario(&mut draw, POLICIES[policy]);
    let count = 15 + draw.below(50);
    let mut steps = beginning(&scenario, &mut draw);
    steps.extend((0..count).map(|_| step(&scenario, &mut draw)));
    (scenario, steps)
}

/// The run that a fuzzer's bytes describe: at most 64 operations.
pub(crate) fn of_bytes(bytes: &[u8]) -> (Scenario, Vec<Step>) {
    let mut draw = Draw::Bytes(bytes);
    let scenario = scenario(&mut draw, POLICIES[bytes.len() % POLICIES.len()]);
    let mut steps = Vec::new();
    while !draw.is_dry() && steps.len() < 64 {
        steps.push(step(&scenario, &mut draw));
    }
    (scenario, steps)
}

/// What a queue does that is full. It takes no choice of `draw`, so that seeds and inputs mean what they did before.
fn scenario(draw: &mut Draw<'_>, when_full: WhenFull) -> Scenario {
    Scenario {
        when_full,
        workers: 1 + draw.pick(&[1, 2, 2, 0]),
        clients: 3 + draw.below(3),
        tight: draw.one_in(5),
        receive_maximum: draw.pick(&[20, 3]),
        inflight_messages: draw.pick(&[20, 2]),
        topic_aliases: draw.pick(&[4, 2, 0]),
        syncs: !draw.one_in(4),
        spills: !draw.one_in(4),
    }
}

/// Most runs begin with clients that are connected and have subscriptions.
fn beginning(scenario: &Scenario, draw: &mut Draw<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    for client in 0..scenario.clients - 1 {
        let Op::Connect(mut connect) = connect(scenario, draw) else {
            continue;
        };
        connect.client = client;
        let mut push = |op, draw: &mut Draw<'_>| {
            steps.push(Step {
                op,
                schedule: draw.schedule(),
            })
        };
        push(Op::Connect(connect), draw);
        push(Op::Settle, draw);
        if let Op::Subscribe { filters, id, .. } = subscribe(client, draw) {
            push(
                Op::Subscribe {
                    client,
                    filters,
                    id,
                },
                draw,
            );
        }
    }
    steps
}

fn step(scenario: &Scenario, draw: &mut Draw<'_>) -> Step {
    let client = draw.below(scenario.clients);
    let op = match draw.below(100) {
        0..13 => connect(scenario, draw),
        13..18 => Op::Drop { client },
        18..21 => disconnect(client, draw),
        21..56 => Op::Publish {
            client,
            message: content(draw),
        },
        56..66 => subscribe(client, draw),
        66..69 => Op::Unsubscribe {
            client,
            filter: draw.below(FILTERS.len()),
        },
        69..71 => Op::Ping { client },
        71..77 => Op::HoldAcks {
            client,
            on: draw.flag(),
        },
        77..82 => Op::Stall {
            client,
            on: draw.flag(),
        },
        82..84 => Op::Misbehave {
            client,
            how: fault(draw),
        },
        84..94 => Op::Advance {
            ms: draw.pick(&[100, 700, 1_000, 1_400, 2_500, 5_200, 11_000, 40_000]),
        },
        94..97 => Op::Settle,
        97..99 => Op::Restart,
        _ => Op::Crash {
            worker: draw.below(scenario.workers),
        },
    };
    Step {
        op,
        schedule: draw.schedule(),
    }
}

fn connect(scenario: &Scenario, draw: &mut Draw<'_>) -> Op {
    let has_will = draw.one_in(3);
    Op::Connect(Box::new(Connecting {
        client: draw.below(scenario.clients),
        worker: draw.below(scenario.workers),
        version: draw.pick(&[
            Version::V5,
            Version::V311,
            Version::V5,
            Version::V31,
            Version::V5,
        ]),
        clean: draw.one_in(4),
        expiry_s: draw.pick(&[30, 60, 0, 1, 3]),
        keep_alive_s: draw.pick(&[0, 0, 0, 2]),
        receive_maximum: draw.pick(&[None, Some(1), Some(2), Some(10)]),
        maximum_packet_size: draw.pick(&[None, None, None, Some(150)]),
        topic_alias_maximum: draw.pick(&[None, Some(1), Some(10)]),
        will: has_will.then(|| (content(draw), draw.pick(&[0, 0, 1, 2, 10]))),
        leave_open: draw.flag(),
    }))
}

fn disconnect(client: usize, draw: &mut Draw<'_>) -> Op {
    let (with_will, changes) = (draw.one_in(3), draw.one_in(3));
    Op::Disconnect {
        client,
        with_will,
        expiry_s: changes.then(|| draw.pick(&[0, 2, 20])),
    }
}

fn content(draw: &mut Draw<'_>) -> Content {
    let topic = draw.below(TOPICS.len());
    Content {
        topic,
        qos: draw.pick(&QOS),
        retain: draw.one_in(4),
        size: draw
            .pick(&[
                Some(0),
                Some(5),
                Some(0),
                Some(60),
                Some(300),
                Some(0),
                None,
                Some(3_000),
            ])
            .or((topic == TOPICS.len() - 1).then_some(0)),
        expiry_s: draw.pick(&[None, None, None, None, Some(1), Some(2), Some(30)]),
        properties: draw.pick(&[0, 0, 0, 31, 1, 6, 24]),
        alias: draw.one_in(3),
    }
}

fn subscribe(client: usize, draw: &mut Draw<'_>) -> Op {
    let count = 1 + draw.pick(&[0, 0, 1, 2]);
    let filters = (0..count)
        .map(|_| Wanted {
            // The first ones overlap most.
            filter: match draw.one_in(8) {
                true => FILTERS.len() - 1 - draw.below(3),
                false => draw.below(FILTERS.len()).min(draw.below(FILTERS.len())),
            },
            qos: draw.pick(&QOS),
            no_local: draw.one_in(6),
            retain_as_published: draw.one_in(3),
            retain_handling: draw.pick(&[0, 0, 1, 2]),
        })
        .collect();
    Op::Subscribe {
        client,
        filters,
        id: draw.pick(&[0, 0, 1, 200, 70_000]),
    }
}

fn fault(draw: &mut Draw<'_>) -> Fault {
    draw.pick(&[
        Fault::Garbage,
        Fault::SecondConnect,
        Fault::WildcardTopic,
        Fault::TooLarge,
        Fault::AliasTooHigh,
        Fault::TooMany,
        Fault::SubscriptionId,
    ])
}
