//! Measures the codec beside two others in Rust, mqttbytes and rumqttc's: what it costs to decode and to encode a
//! PUBLISH of MQTT 5.0 with 100 bytes of payload, with QoS 0, with QoS 1, and with QoS 1 and properties.
//!
//! All three get the same bytes in buffers that are filled the same way, take turns in short rounds, and count by their
//! fastest; times are CPU time of this thread. Decoding includes filling the buffer, and dropping the packet. What differs
//! is in the codecs: this one checks that a Topic Name is UTF-8 (mqttbytes does, rumqttc doesn't), and neither it nor
//! rumqttc copies the topic.

use std::hint::black_box;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use headgate_codec::{Packet, PacketId, Publish, PublishProperties, QoS, Text, Version};
use headgate_tests::bench::{self, Row, cpu};
use rumqttc::v5::mqttbytes as rumqttc_bytes;

const TOPIC: &str = "site/17/sensor/42/temperature";
const PAYLOAD: [u8; 100] = [b'x'; 100];
/// What a read of a stream brings.
const CHUNK_BYTES: usize = 16 * 1024;
const ROUNDS: usize = 600;
const CHUNKS_PER_ROUND: usize = 8;
const MAXIMUM_PACKET_BYTES: u32 = 1 << 20;

/// The codecs, this project's first.
const CODECS: [&str; 3] = ["", "mqttbytes_", "rumqttc_"];

/// The same PUBLISH for each codec.
struct Case {
    /// What is in the figure's name.
    name: &'static str,
    own: Packet,
    mqttbytes: mqttbytes::v5::Publish,
    rumqttc: rumqttc_bytes::v5::Publish,
}

/// Nanoseconds per packet, by codec.
type Figures = [f64; CODECS.len()];

fn main() {
    let cases = [
        case("", QoS::AtMostOnce, false),
        case("qos1_", QoS::AtLeastOnce, false),
        case("qos1_properties_", QoS::AtLeastOnce, true),
    ];
    let mut rows = Vec::new();
    for case in &cases {
        rows.extend(compare(case.name, "decode", decode(case)));
        rows.extend(compare(case.name, "encode", encode(case)));
    }
    bench::print(&rows);
}

/// A row for each codec; the bar of the first is the fastest of the others.
fn compare(case: &str, what: &str, figures: Figures) -> Vec<Row> {
    let [own, others @ ..] = figures;
    let bar = others.into_iter().fold(f64::INFINITY, f64::min);
    let name = |codec: &str| format!("codec_publish_{case}{what}_{codec}ns");
    let mut rows = vec![Row::below(&name(CODECS[0]), own, "ns", bar)];
    for (codec, figure) in CODECS[1..].iter().zip(others) {
        eprintln!("{}: {:.2} of {codec}", name(""), own / figure);
        rows.push(Row::info(&name(codec), figure, "ns"));
    }
    rows
}

fn case(name: &'static str, qos: QoS, with_properties: bool) -> Case {
    let packet_id = if qos == QoS::AtMostOnce { 0 } else { 4_711 };
    let user_property = ("unit", "celsius");
    let own = PublishProperties {
        message_expiry_s: Some(3_600),
        content_type: Some(Text::from("application/json")),
        user_properties: vec![(user_property.0.into(), user_property.1.into())],
        ..PublishProperties::default()
    };
    let user_property = (user_property.0.to_owned(), user_property.1.to_owned());
    let mqttbytes = mqttbytes::v5::PublishProperties {
        payload_format_indicator: None,
        message_expiry_interval: Some(3_600),
        topic_alias: None,
        response_topic: None,
        correlation_data: None,
        user_properties: vec![user_property.clone()],
        subscription_identifiers: Vec::new(),
        content_type: Some("application/json".to_owned()),
    };
    let rumqttc = rumqttc_bytes::v5::PublishProperties {
        message_expiry_interval: Some(3_600),
        user_properties: vec![user_property],
        content_type: Some("application/json".to_owned()),
        ..Default::default()
    };
    let is_acknowledged = qos != QoS::AtMostOnce;
    Case {
        name,
        own: Packet::Publish(Publish {
            dup: false,
            qos,
            retain: false,
            topic: TOPIC.into(),
            packet_id: PacketId::new(packet_id),
            properties: with_properties.then(|| Box::new(own)),
            payload: Bytes::from_static(&PAYLOAD),
        }),
        mqttbytes: mqttbytes::v5::Publish {
            dup: false,
            qos: if is_acknowledged {
                mqttbytes::QoS::AtLeastOnce
            } else {
                mqttbytes::QoS::AtMostOnce
            },
            retain: false,
            topic: TOPIC.to_owned(),
            pkid: packet_id,
            properties: with_properties.then_some(mqttbytes),
            payload: Bytes::from_static(&PAYLOAD),
        },
        rumqttc: rumqttc_bytes::v5::Publish {
            dup: false,
            qos: if is_acknowledged {
                rumqttc_bytes::QoS::AtLeastOnce
            } else {
                rumqttc_bytes::QoS::AtMostOnce
            },
            retain: false,
            topic: Bytes::from_static(TOPIC.as_bytes()),
            pkid: packet_id,
            payload: Bytes::from_static(&PAYLOAD),
            properties: with_properties.then_some(rumqttc),
        },
    }
}

/// Packets one behind the other, as a stream brings them.
fn decode(case: &Case) -> Figures {
    let mut one = BytesMut::new();
    headgate_codec::encode(&case.own, Version::V5, &mut one);
    let count = CHUNK_BYTES / one.len();
    let chunk = one.repeat(count);
    let mut decoded = [0; CODECS.len()];
    decode_own(&chunk, |packet| {
        assert_eq!(packet, case.own);
        decoded[0] += 1;
    });
    decode_mqttbytes(&chunk, |packet| {
        assert_eq!(
            packet,
            mqttbytes::v5::Packet::Publish(case.mqttbytes.clone())
        );
        decoded[1] += 1;
    });
    decode_rumqttc(&chunk, |packet| {
        assert_eq!(
            packet,
            rumqttc_bytes::v5::Packet::Publish(case.rumqttc.clone())
        );
        decoded[2] += 1;
    });
    assert_eq!(decoded, [count; CODECS.len()]);
    let chunk = chunk.as_slice();
    take_turns(
        count,
        [
            &mut || decode_own(black_box(chunk), |packet| _ = black_box(packet)),
            &mut || decode_mqttbytes(black_box(chunk), |packet| _ = black_box(packet)),
            &mut || decode_rumqttc(black_box(chunk), |packet| _ = black_box(packet)),
        ],
    )
}

fn decode_own(chunk: &[u8], mut each: impl FnMut(Packet)) {
    let mut input = BytesMut::from(chunk).freeze();
    while let Some(packet) =
        headgate_codec::decode(&mut input, Some(Version::V5), MAXIMUM_PACKET_BYTES)
            .expect("valid packets")
    {
        each(packet);
    }
}

fn decode_mqttbytes(chunk: &[u8], mut each: impl FnMut(mqttbytes::v5::Packet)) {
    let mut input = BytesMut::from(chunk);
    // It takes an empty buffer for an incomplete packet, which is an error.
    while !input.is_empty() {
        each(
            mqttbytes::v5::read(&mut input, MAXIMUM_PACKET_BYTES as usize).expect("valid packets"),
        );
    }
}

fn decode_rumqttc(chunk: &[u8], mut each: impl FnMut(rumqttc_bytes::v5::Packet)) {
    let mut input = BytesMut::from(chunk);
    while !input.is_empty() {
        each(
            rumqttc_bytes::v5::Packet::read(&mut input, Some(MAXIMUM_PACKET_BYTES))
                .expect("valid packets"),
        );
    }
}

/// Packets appended to a buffer that has room for all of them.
fn encode(case: &Case) -> Figures {
    let mut expected = BytesMut::new();
    headgate_codec::encode(&case.own, Version::V5, &mut expected);
    let count = CHUNK_BYTES / expected.len();
    let expected = expected.repeat(count);
    let mut buffers = [(); CODECS.len()].map(|()| BytesMut::with_capacity(2 * CHUNK_BYTES));
    let [own, mqttbytes, rumqttc] = &mut buffers;
    let figures = take_turns(
        count,
        [
            &mut || {
                own.clear();
                for _ in 0..count {
                    headgate_codec::encode(black_box(&case.own), Version::V5, own);
                }
            },
            &mut || {
                mqttbytes.clear();
                for _ in 0..count {
                    let written = black_box(&case.mqttbytes).write(mqttbytes);
                    written.expect("a valid packet");
                }
            },
            &mut || {
                rumqttc.clear();
                for _ in 0..count {
                    let written = black_box(&case.rumqttc).write(rumqttc);
                    written.expect("a valid packet");
                }
            },
        ],
    );
    assert_eq!(own, &expected);
    // The others put the properties into another order.
    let lens = buffers.map(|buffer| buffer.len());
    assert_eq!(lens, [expected.len(); CODECS.len()]);
    figures
}

/// Nanoseconds per packet of each codec's fastest round. In a round each codec has the same number of chunks of `count`
/// packets, right after each other.
fn take_turns(count: usize, mut codecs: [&mut dyn FnMut(); CODECS.len()]) -> Figures {
    let mut best = [Duration::MAX; CODECS.len()];
    for _ in 0..ROUNDS {
        for (codec, best) in codecs.iter_mut().zip(&mut best) {
            let start = cpu();
            for _ in 0..CHUNKS_PER_ROUND {
                codec();
            }
            *best = (cpu() - start).min(*best);
        }
    }
    best.map(|best| best.as_nanos() as f64 / (count * CHUNKS_PER_ROUND) as f64)
}
