//! Whatever comes on data streams, and however they end: what leaves is whole packets that belong on a data stream, on
//! streams that are there, within bounds, and each message gets its acknowledgement where it came. The fuzz target and the
//! replay of its corpus share this.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use headgate_codec::{
    Ack, Connect, ConnectProperties, Packet, PacketId, Publish, QoS, ReasonCode, Subscribe,
    SubscriptionOptions, Text, Unsubscribe, Version, decode,
};
use headgate_core::{
    Completion, ConnId, Core, CoreConfig, DataEnd, DataStream, Input, Output, Peer, RetainedLimits,
    Shared, Time, Transport, WorkerSlot,
};

/// Bytes that a stream may be behind before messages wait; acknowledgements and one message may come on top.
const SEND_BUFFER_BYTES: u32 = 4_096;
const STREAMS: u8 = 4;
const PAYLOAD_BYTES: usize = 900;

const CONN: ConnId = ConnId {
    index: 0,
    generation: 1,
};

/// `data`: two octets for each step, what happens and where.
pub fn check(data: &[u8]) {
    let mut state = State::new();
    for step in data.chunks_exact(2).take(2_000) {
        state.step(step[0], step[1]);
        if state.is_closed {
            return;
        }
    }
    state.settle();
}

/// What the client's side of one data stream has seen.
#[derive(Default)]
struct Stream {
    sent: BytesMut,
    unflushed: u32,
    /// Messages on it that have no acknowledgement yet.
    owed: BTreeSet<PacketId>,
    /// The client has ended its side.
    received: bool,
    /// The server has ended its own.
    ended: bool,
}

struct State {
    core: Core,
    streams: BTreeMap<DataStream, Stream>,
    /// Numbers of streams count up and don't come again.
    numbers: [u32; STREAMS as usize],
    last_number: u32,
    last_id: u16,
    /// Messages with QoS 1 that the client has got and not acknowledged.
    unacknowledged: BTreeSet<PacketId>,
    is_closed: bool,
}

impl State {
    fn new() -> Self {
        let shared = Arc::new(Shared::new([1, 2], RetainedLimits::default()));
        let mut config = CoreConfig::new(WorkerSlot(0), vec![WorkerSlot(0)], [3, 4]);
        config.limits.send_buffer_bytes = SEND_BUFFER_BYTES;
        config.limits.queued_messages = 20;
        let mut state = Self {
            core: Core::new(config, shared),
            streams: BTreeMap::new(),
            numbers: std::array::from_fn(|at| at as u32 + 1),
            last_number: u32::from(STREAMS),
            last_id: 0,
            unacknowledged: BTreeSet::new(),
            is_closed: false,
        };
        let peer = Peer {
            address: ([192, 0, 2, 1], 7).into(),
            transport: Transport::Quic,
            certificate: None,
            early: false,
        };
        state.feed(Input::Opened { conn: CONN, peer });
        let connect = Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive_s: 60,
            client_id: Text::from("c"),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties {
                receive_maximum: Some(12),
                ..ConnectProperties::default()
            },
        };
        let packet = Packet::Connect(Box::new(connect));
        state.feed(Input::Packet { conn: CONN, packet });
        state
    }

    fn stream(&self, place: u8) -> DataStream {
        let number = self.numbers[usize::from(place % STREAMS)];
        DataStream(NonZeroU32::new(number).expect("they begin with 1"))
    }

    fn step(&mut self, what: u8, place: u8) {
        let stream = self.stream(place);
        let topic = Text::from(["a", "b", "c"][usize::from(place >> 2) % 3]);
        let is_received = self.streams.entry(stream).or_default().received;
        match what % 12 {
            0..=2 if !is_received => self.publish(stream, topic, QoS::AtLeastOnce),
            3..=4 if !is_received => self.publish(stream, topic, QoS::AtMostOnce),
            5 if !is_received => {
                let qos = if what & 0x80 == 0 {
                    QoS::AtLeastOnce
                } else {
                    QoS::AtMostOnce
                };
                let options = SubscriptionOptions {
                    qos,
                    ..SubscriptionOptions::default()
                };
                let packet = Packet::Subscribe(Box::new(Subscribe {
                    packet_id: self.packet_id(),
                    subscription_id: None,
                    user_properties: Vec::new(),
                    filters: vec![(topic, options)],
                }));
                self.on_stream(stream, packet);
            }
            6 if !is_received => {
                let packet = Packet::Unsubscribe(Box::new(Unsubscribe {
                    packet_id: self.packet_id(),
                    user_properties: Vec::new(),
                    filters: vec![topic],
                }));
                self.on_stream(stream, packet);
            }
            7 if !is_received => self.acknowledge(Some(stream)),
            8 => self.acknowledge(None),
            9 => self.flush(stream),
            10 if !is_received => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.received = true;
                }
                self.end(stream, DataEnd::Received);
            }
            11 if what & 0x80 == 0 => self.lose(stream, place),
            11 if !is_received => {
                self.on_stream(stream, Packet::PingReq);
            }
            _ => self.flush(stream),
        }
    }

    fn packet_id(&mut self) -> PacketId {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        PacketId::new(self.last_id).expect("it begins with 1")
    }

    fn publish(&mut self, stream: DataStream, topic: Text, qos: QoS) {
        let packet_id = (qos != QoS::AtMostOnce).then(|| self.packet_id());
        if let Some(id) = packet_id {
            self.streams.entry(stream).or_default().owed.insert(id);
        }
        let packet = Packet::Publish(Publish {
            dup: false,
            qos,
            retain: false,
            topic,
            packet_id,
            properties: None,
            payload: Bytes::from_static(&[b'x'; PAYLOAD_BYTES]),
        });
        self.on_stream(stream, packet);
    }

    fn acknowledge(&mut self, on: Option<DataStream>) {
        let Some(packet_id) = self.unacknowledged.pop_first() else {
            return;
        };
        let packet = Packet::PubAck(Ack {
            packet_id,
            reason: ReasonCode::SUCCESS,
            properties: None,
        });
        match on {
            Some(stream) => self.on_stream(stream, packet),
            None => self.feed(Input::Packet { conn: CONN, packet }),
        }
    }

    fn on_stream(&mut self, stream: DataStream, packet: Packet) {
        self.feed(Input::DataPacket {
            conn: CONN,
            stream,
            packet,
        });
    }

    fn end(&mut self, stream: DataStream, how: DataEnd) {
        let conn = CONN;
        self.feed(Input::DataEnded { conn, stream, how });
    }

    /// The stream is gone; another takes its place.
    fn lose(&mut self, stream: DataStream, place: u8) {
        let former = self.streams.remove(&stream);
        self.last_number += 1;
        self.numbers[usize::from(place % STREAMS)] = self.last_number;
        let is_over = former.is_some_and(|s| s.ended && s.unflushed == 0);
        self.end(
            stream,
            if is_over {
                DataEnd::Delivered
            } else {
                DataEnd::Lost
            },
        );
    }

    fn flush(&mut self, stream: DataStream) {
        let Some(unflushed) = self.streams.get_mut(&stream).map(|s| &mut s.unflushed) else {
            return;
        };
        let bytes = std::mem::take(unflushed);
        self.feed(Input::DataFlushed {
            conn: CONN,
            stream,
            bytes,
        });
    }

    /// Everything is taken and acknowledged: then nothing is owed, and what was ended has ended.
    fn settle(&mut self) {
        loop {
            let streams: Vec<DataStream> = self.streams.keys().copied().collect();
            let waits = self.streams.values().any(|s| s.unflushed > 0);
            if !waits && self.unacknowledged.is_empty() || self.is_closed {
                break;
            }
            for stream in streams {
                self.flush(stream);
            }
            while !self.unacknowledged.is_empty() && !self.is_closed {
                self.acknowledge(None);
            }
        }
        if self.is_closed {
            return;
        }
        for (number, stream) in &self.streams {
            assert!(stream.owed.is_empty(), "{number:?} owes {:?}", stream.owed);
            assert_eq!(stream.received, stream.ended, "{number:?}");
        }
    }

    fn feed(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut out = Vec::new();
            self.core.handle(input, Time(1_000), &mut out);
            for output in out {
                if let Output::Claim { op, .. } = output {
                    let result = Ok(());
                    inputs.push(Input::Completed(Completion::Claimed { op, result }));
                    continue;
                }
                self.perform(output, &mut inputs);
            }
        }
    }

    fn perform(&mut self, output: Output, inputs: &mut Vec<Input>) {
        match output {
            Output::SendData {
                stream: number,
                frame,
                ..
            } => {
                let stream = self.streams.get_mut(&number);
                let stream = stream.unwrap_or_else(|| panic!("{number:?} is gone"));
                assert!(!stream.ended, "nothing leaves behind the end of {number:?}");
                stream.unflushed += frame.encoded_len() as u32;
                frame.append_to(&mut stream.sent);
                let bound = SEND_BUFFER_BYTES + 2 * PAYLOAD_BYTES as u32;
                let acks = 64 * 1_024;
                assert!(stream.unflushed < bound + acks, "{number:?} is not bounded");
                let mut bytes = stream.sent.split().freeze();
                while let Some(packet) = decode(&mut bytes, Some(Version::V5), u32::MAX)
                    .unwrap_or_else(|e| panic!("{number:?}: {e}"))
                {
                    match packet {
                        Packet::Publish(p) => {
                            self.unacknowledged.extend(p.packet_id);
                        }
                        Packet::PubAck(ack) => {
                            assert!(stream.owed.remove(&ack.packet_id), "{ack:?} on {number:?}");
                        }
                        Packet::SubAck(_) | Packet::UnsubAck(_) => {}
                        other => panic!("{other:?} on a data stream"),
                    }
                }
                assert!(bytes.is_empty(), "a frame is whole packets");
            }
            Output::Send { conn, frame } => {
                let bytes = frame.encoded_len() as u32;
                let mut sent = BytesMut::new();
                frame.append_to(&mut sent);
                let mut sent = sent.freeze();
                while let Ok(Some(packet)) = decode(&mut sent, Some(Version::V5), u32::MAX) {
                    if let Packet::Publish(p) = packet {
                        self.unacknowledged.extend(p.packet_id);
                    }
                }
                inputs.push(Input::Flushed { conn, bytes });
            }
            Output::EndData { stream: number, .. } => {
                let stream = self.streams.get_mut(&number);
                let stream = stream.unwrap_or_else(|| panic!("{number:?} is gone"));
                assert!(
                    stream.received && !stream.ended,
                    "{number:?} ends once, behind the client's end"
                );
                stream.ended = true;
            }
            Output::ResetData { stream, .. } => {
                self.streams.remove(&stream);
                self.last_number += 1;
                for number in &mut self.numbers {
                    if *number == stream.0.get() {
                        *number = self.last_number;
                    }
                }
            }
            Output::Close { .. } => self.is_closed = true,
            _ => {}
        }
    }
}
