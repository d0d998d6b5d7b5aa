//! Data streams of a client.

use super::{Id, World, publish_of};
use bytes::{Bytes, BytesMut};
use headgate_codec::{Packet, QoS, SubscriptionOptions, Version, decode};
use headgate_core::{DataEnd, DataStream, Input, Output, Transport};
use std::num::NonZeroU32;

/// One worker, whose clients come over QUIC.
pub fn quic_world() -> World {
    let mut world = World::new(1);
    world.transport = Transport::Quic;
    world
}

fn stream(number: u32) -> DataStream {
    DataStream(NonZeroU32::new(number).unwrap())
}

/// A packet comes on a stream.
pub fn on(world: &mut World, id: Id, number: u32, packet: Packet) {
    let (worker, conn) = (world.wires[id].worker, world.wires[id].conn);
    let stream = stream(number);
    world.handle(
        worker,
        Input::DataPacket {
            conn,
            stream,
            packet,
        },
    );
}

/// A stream ends.
pub fn end(world: &mut World, id: Id, number: u32, how: DataEnd) {
    let (worker, conn) = (world.wires[id].worker, world.wires[id].conn);
    let stream = stream(number);
    world.handle(worker, Input::DataEnded { conn, stream, how });
}

/// The transport takes everything that one stream has sent up to now.
pub fn flush(world: &mut World, id: Id, number: u32, bytes: usize) {
    let (worker, conn) = (world.wires[id].worker, world.wires[id].conn);
    let (stream, bytes) = (stream(number), bytes as u32);
    world.handle(
        worker,
        Input::DataFlushed {
            conn,
            stream,
            bytes,
        },
    );
}

/// Takes what has left on a data stream: the packets, and their bytes.
pub fn taken(world: &mut World, number: u32) -> (Vec<Packet>, usize) {
    let mut all = BytesMut::new();
    world.data.retain(|output| match output {
        Output::SendData {
            stream: s, frame, ..
        } if *s == stream(number) => {
            frame.append_to(&mut all);
            false
        }
        _ => true,
    });
    let mut bytes: Bytes = all.freeze();
    let len = bytes.len();
    let mut packets = Vec::new();
    while let Some(packet) = decode(&mut bytes, Some(Version::V5), u32::MAX).unwrap() {
        packets.push(packet);
    }
    (packets, len)
}

/// The payloads of the PUBLISH packets among these.
pub fn payloads(packets: &[Packet]) -> Vec<String> {
    let published = packets.iter().filter_map(publish_of);
    published
        .map(|p| String::from_utf8(p.payload.to_vec()).unwrap())
        .collect()
}

pub fn options(qos: QoS) -> SubscriptionOptions {
    SubscriptionOptions {
        qos,
        ..SubscriptionOptions::default()
    }
}
