//! Nanoseconds per packet on the hot path: `cargo bench -p headgate-codec`.
//!
//! Each figure is the best of several rounds, so that other work on the machine disturbs it less.

use bytes::{Bytes, BytesMut};
use headgate_codec::{
    Ack, Packet, PacketId, Publish, PublishTemplate, QoS, ReasonCode, Version, decode, encode,
};
use std::{hint::black_box, time::Instant};

const ROUNDS: usize = 15;
const PACKETS: usize = 20_000;
const MAX: u32 = 1 << 20;

fn main() {
    let version = Version::V5;
    let qos0 = publish(QoS::AtMostOnce, None);
    let qos1 = publish(QoS::AtLeastOnce, Some(PacketId::MIN));
    let ack = Packet::PubAck(Ack {
        packet_id: PacketId::MIN,
        reason: ReasonCode::SUCCESS,
        properties: None,
    });
    for (name, packet) in [
        ("publish_qos0_100B", &qos0),
        ("publish_qos1_100B", &qos1),
        ("puback", &ack),
    ] {
        decode_stream(name, packet, version);
        decode_alone(name, packet, version);
        encode_stream(name, packet, version);
    }
    decode_stream("pingreq", &Packet::PingReq, version);
    encode_stream("pingreq", &Packet::PingReq, version);
    let Packet::Publish(p) = &qos1 else {
        unreachable!("made above")
    };
    let ns = best(|| {
        for _ in 0..PACKETS {
            let ids = black_box(&[1_u32]);
            let template =
                PublishTemplate::new(version, p.qos, false, &p.topic, None, ids, &p.payload);
            black_box(template);
        }
    });
    println!("template_new_qos1_100B           {ns:6.1} ns");
    let template = PublishTemplate::new(version, p.qos, false, &p.topic, None, &[], &p.payload);
    let mut out = BytesMut::with_capacity(PACKETS * 128);
    let ns = best(|| {
        out.clear();
        for _ in 0..PACKETS {
            black_box(&template).write(Some(PacketId::MIN), false, &mut out);
        }
    });
    println!("template_write_qos1_100B         {ns:6.1} ns");
}

/// A PUBLISH with a topic of 20 bytes that is 100 bytes long on the wire (QoS 0, MQTT 5.0).
fn publish(qos: QoS, packet_id: Option<PacketId>) -> Packet {
    Packet::Publish(Publish {
        dup: false,
        qos,
        retain: false,
        topic: "site/17/sensor/42/co".into(),
        packet_id,
        properties: None,
        payload: Bytes::from(vec![7; 75]),
    })
}

/// Packets one after the other in buffers of about 16 kB, as a stream brings them.
fn decode_stream(name: &str, packet: &Packet, version: Version) {
    let mut one = BytesMut::new();
    encode(packet, version, &mut one);
    let in_chunk = 16_384 / one.len();
    let chunk = one.repeat(in_chunk);
    let ns = best(|| {
        let mut left = PACKETS;
        while left > 0 {
            let mut input = Bytes::copy_from_slice(&chunk);
            while let Ok(Some(packet)) = decode(&mut input, Some(version), MAX) {
                black_box(&packet);
                left = left.saturating_sub(1);
            }
        }
    });
    println!("decode_{name:<25} {ns:6.1} ns");
}

/// One packet in its own buffer; the copy into it is part of the figure.
fn decode_alone(name: &str, packet: &Packet, version: Version) {
    let mut one = BytesMut::new();
    encode(packet, version, &mut one);
    let ns = best(|| {
        for _ in 0..PACKETS {
            let mut input = Bytes::copy_from_slice(&one);
            black_box(decode(&mut input, Some(version), MAX)).expect("valid");
        }
    });
    println!("decode_alone_{name:<19} {ns:6.1} ns");
}

/// Packets appended to one buffer, which a writer then takes.
fn encode_stream(name: &str, packet: &Packet, version: Version) {
    let ns = best(|| {
        let mut out = BytesMut::with_capacity(16_384);
        for _ in 0..PACKETS {
            if out.len() > 16_000 {
                black_box(out.split().freeze());
                out.reserve(16_384);
            }
            encode(black_box(packet), version, &mut out);
        }
    });
    println!("encode_{name:<25} {ns:6.1} ns");
}

fn best(mut round: impl FnMut()) -> f64 {
    (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_nanos() as f64 / PACKETS as f64
        })
        .fold(f64::MAX, f64::min)
}
