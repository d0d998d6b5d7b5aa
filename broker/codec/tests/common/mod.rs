//! Arbitrary packets of each version, in the form in which decoding gives them back.

use bytes::Bytes;
use headgate_codec::{
    Ack, Auth, ConnAck, ConnAckProperties, Connect, ConnectProperties, Disconnect,
    DisconnectProperties, Packet, PacketId, Publish, PublishProperties, QoS, ReasonCode,
    ReasonProperties, SubAck, Subscribe, SubscriptionOptions, Text, Unsubscribe, UserProperty,
    Version, Will,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

pub fn version() -> impl Strategy<Value = Version> {
    select(vec![Version::V31, Version::V311, Version::V5])
}

/// Any packet that `version` has.
pub fn packet(version: Version) -> BoxedStrategy<Packet> {
    let v5 = version == Version::V5;
    let common = prop_oneof![
        4 => publish(version).prop_map(Packet::Publish),
        1 => ack(version, &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99])
            .prop_flat_map(|a| select(vec![Packet::PubAck(a.clone()), Packet::PubRec(a)])),
        1 => ack(version, &[0, 0x92])
            .prop_flat_map(|a| select(vec![Packet::PubRel(a.clone()), Packet::PubComp(a)])),
        2 => connect(version).prop_map(|p| Packet::Connect(Box::new(p))),
        1 => connack(version).prop_map(|p| Packet::ConnAck(Box::new(p))),
        1 => subscribe(version).prop_map(|p| Packet::Subscribe(Box::new(p))),
        1 => suback(version).prop_map(|p| Packet::SubAck(Box::new(p))),
        1 => unsubscribe(version).prop_map(|p| Packet::Unsubscribe(Box::new(p))),
        1 => unsuback(version).prop_map(|p| Packet::UnsubAck(Box::new(p))),
        1 => disconnect(version).prop_map(Packet::Disconnect),
        1 => select(vec![Packet::PingReq, Packet::PingResp]),
    ];
    if v5 {
        prop_oneof![15 => common, 1 => auth().prop_map(|p| Packet::Auth(Box::new(p)))].boxed()
    } else {
        common.boxed()
    }
}

fn text() -> impl Strategy<Value = Text> {
    prop_oneof![
        "[a-z/+#$]{0,20}",
        "[^\\x00]{0,8}",
        Just("x".repeat(Text::LEN_MAX)),
    ]
    .prop_map(|s| Text::from(s.as_str()))
}

fn binary() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn user_properties() -> impl Strategy<Value = Vec<UserProperty>> {
    vec((text(), text()), 0..3)
}

fn packet_id() -> impl Strategy<Value = PacketId> {
    (1..=u16::MAX).prop_map(|id| PacketId::new(id).expect("not zero"))
}

fn qos() -> impl Strategy<Value = QoS> {
    select(vec![QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

fn codes(values: &[u8]) -> impl Strategy<Value = ReasonCode> + use<> {
    select(values.to_vec()).prop_map(ReasonCode)
}

/// `strategy` in 5.0, the default in 3.x.
fn in_v5<T: Default + Clone + std::fmt::Debug + 'static>(
    version: Version,
    strategy: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<T> {
    if version == Version::V5 {
        strategy.boxed()
    } else {
        Just(T::default()).boxed()
    }
}

/// Absent rather than empty, as decoding has it.
fn boxed<T: Default + PartialEq + Clone + std::fmt::Debug + 'static>(
    version: Version,
    strategy: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Option<Box<T>>> {
    in_v5(
        version,
        strategy.prop_map(|p| (p != T::default()).then(|| Box::new(p))),
    )
}

fn message_properties() -> impl Strategy<Value = PublishProperties> {
    (
        option::of(any::<bool>()),
        option::of(any::<u32>()),
        option::of(text()),
        option::of(binary()),
        user_properties(),
        option::of(text()),
    )
        .prop_map(
            |(format, expiry, response, correlation, user, content)| PublishProperties {
                payload_format_utf8: format,
                message_expiry_s: expiry,
                topic_alias: None,
                response_topic: response,
                correlation_data: correlation,
                user_properties: user,
                subscription_ids: vec![],
                content_type: content,
            },
        )
}

fn publish(version: Version) -> impl Strategy<Value = Publish> {
    let ids = vec(1..=headgate_codec::REMAINING_LENGTH_MAX as u32, 0..3);
    let properties = (message_properties(), option::of(packet_id()), ids).prop_map(
        |(message, topic_alias, subscription_ids)| PublishProperties {
            topic_alias,
            subscription_ids,
            ..message
        },
    );
    (
        any::<bool>(),
        qos(),
        any::<bool>(),
        text(),
        packet_id(),
        boxed(version, properties),
        binary(),
    )
        .prop_map(
            |(dup, qos, retain, topic, packet_id, properties, payload)| {
                let named = properties.as_ref().is_some_and(|p| p.topic_alias.is_some());
                Publish {
                    dup: dup && qos != QoS::AtMostOnce,
                    qos,
                    retain,
                    topic: if topic.is_empty() && !named {
                        "t".into()
                    } else {
                        topic
                    },
                    packet_id: (qos != QoS::AtMostOnce).then_some(packet_id),
                    properties,
                    payload,
                }
            },
        )
}

fn reason_properties() -> impl Strategy<Value = ReasonProperties> {
    (option::of(text()), user_properties()).prop_map(|(reason_string, user_properties)| {
        ReasonProperties {
            reason_string,
            user_properties,
        }
    })
}

fn ack(version: Version, values: &[u8]) -> impl Strategy<Value = Ack> + use<> {
    let properties = boxed(version, reason_properties());
    (packet_id(), in_v5(version, codes(values)), properties).prop_map(
        |(packet_id, reason, properties)| Ack {
            packet_id,
            reason,
            properties,
        },
    )
}

fn connect_properties() -> impl Strategy<Value = ConnectProperties> {
    (
        option::of(any::<u32>()),
        option::of(1..=u16::MAX),
        option::of(1..=u32::MAX),
        option::of(any::<u16>()),
        option::of(any::<bool>()),
        option::of(any::<bool>()),
        user_properties(),
        option::of((text(), option::of(binary()))),
    )
        .prop_map(
            |(expiry, receive, size, alias, response, problem, user, authentication)| {
                let (method, data) = authentication.unzip();
                ConnectProperties {
                    session_expiry_s: expiry,
                    receive_maximum: receive,
                    maximum_packet_size: size,
                    topic_alias_maximum: alias,
                    request_response_information: response,
                    request_problem_information: problem,
                    user_properties: user,
                    authentication_method: method,
                    authentication_data: data.flatten(),
                }
            },
        )
}

fn will(version: Version) -> impl Strategy<Value = Will> {
    let delay = in_v5(version, option::of(any::<u32>()));
    (
        qos(),
        any::<bool>(),
        text(),
        binary(),
        delay,
        boxed(version, message_properties()),
    )
        .prop_map(|(qos, retain, topic, payload, delay_s, properties)| Will {
            qos,
            retain,
            topic,
            payload,
            delay_s,
            properties,
        })
}

fn connect(version: Version) -> impl Strategy<Value = Connect> {
    (
        any::<bool>(),
        any::<u16>(),
        text(),
        option::of(will(version)),
        option::of(text()),
        option::of(binary()),
        in_v5(version, connect_properties()),
    )
        .prop_map(
            move |(clean_start, keep_alive_s, client_id, will, user, password, properties)| {
                Connect {
                    version,
                    clean_start,
                    keep_alive_s,
                    client_id,
                    will,
                    password: password.filter(|_| user.is_some() || version == Version::V5),
                    user_name: user,
                    properties,
                }
            },
        )
}

fn connack_properties() -> impl Strategy<Value = ConnAckProperties> {
    let numbers = (
        option::of(any::<u32>()),
        option::of(1..=u16::MAX),
        option::of(select(vec![QoS::AtMostOnce, QoS::AtLeastOnce])),
        option::of(1..=u32::MAX),
        option::of(any::<u16>()),
        option::of(any::<u16>()),
    );
    let texts = (
        vec(option::of(text()), 5),
        user_properties(),
        option::of(binary()),
    );
    (numbers, texts, vec(option::of(any::<bool>()), 4)).prop_map(
        |((expiry, receive, qos, size, alias, keep_alive), (texts, user, data), flags)| {
            ConnAckProperties {
                session_expiry_s: expiry,
                receive_maximum: receive,
                maximum_qos: qos,
                retain_available: flags[0],
                maximum_packet_size: size,
                assigned_client_id: texts[0].clone(),
                topic_alias_maximum: alias,
                reason_string: texts[1].clone(),
                user_properties: user,
                wildcard_subscription_available: flags[1],
                subscription_identifiers_available: flags[2],
                shared_subscription_available: flags[3],
                server_keep_alive_s: keep_alive,
                response_information: texts[2].clone(),
                server_reference: texts[3].clone(),
                authentication_method: texts[4].clone(),
                authentication_data: data,
            }
        },
    )
}

fn connack(version: Version) -> impl Strategy<Value = ConnAck> {
    let reasons = match version {
        Version::V5 => codes(&[0, 0x80, 0x84, 0x8a, 0x8c, 0x90, 0x95, 0x97, 0x9d, 0x9f]),
        _ => codes(&[0, 0x84, 0x85, 0x88, 0x86, 0x87]),
    };
    (any::<bool>(), reasons, in_v5(version, connack_properties())).prop_map(
        move |(present, reason, properties)| ConnAck {
            session_present: present && reason == ReasonCode::SUCCESS && version > Version::V31,
            reason,
            properties,
        },
    )
}

fn subscribe(version: Version) -> impl Strategy<Value = Subscribe> {
    let flags = in_v5(version, (any::<bool>(), any::<bool>(), 0..3_u8));
    let options = (qos(), flags).prop_map(|(qos, (no_local, retain_as_published, handling))| {
        SubscriptionOptions {
            qos,
            no_local,
            retain_as_published,
            retain_handling: handling,
        }
    });
    let id = option::of(1..=headgate_codec::REMAINING_LENGTH_MAX as u32);
    (
        packet_id(),
        in_v5(version, id),
        in_v5(version, user_properties()),
        vec((text(), options), 1..4),
    )
        .prop_map(
            |(packet_id, subscription_id, user_properties, filters)| Subscribe {
                packet_id,
                subscription_id,
                user_properties,
                filters,
            },
        )
}

fn suback(version: Version) -> impl Strategy<Value = SubAck> {
    let reasons = match version {
        Version::V5 => codes(&[
            0, 1, 2, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2,
        ]),
        _ => codes(&[0, 1, 2, 0x80]),
    };
    (
        packet_id(),
        in_v5(version, reason_properties()),
        vec(reasons, 1..5),
    )
        .prop_map(|(packet_id, properties, reasons)| SubAck {
            packet_id,
            properties,
            reasons,
        })
}

fn unsubscribe(version: Version) -> impl Strategy<Value = Unsubscribe> {
    (
        packet_id(),
        in_v5(version, user_properties()),
        vec(text(), 1..4),
    )
        .prop_map(|(packet_id, user_properties, filters)| Unsubscribe {
            packet_id,
            user_properties,
            filters,
        })
}

fn unsuback(version: Version) -> impl Strategy<Value = SubAck> {
    let reasons = vec(codes(&[0, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91]), 1..5);
    (
        packet_id(),
        in_v5(version, reason_properties()),
        in_v5(version, reasons),
    )
        .prop_map(|(packet_id, properties, reasons)| SubAck {
            packet_id,
            properties,
            reasons,
        })
}

fn disconnect(version: Version) -> impl Strategy<Value = Disconnect> {
    let properties = (
        option::of(any::<u32>()),
        option::of(text()),
        user_properties(),
        option::of(text()),
    )
        .prop_map(
            |(expiry, reason_string, user_properties, server_reference)| DisconnectProperties {
                session_expiry_s: expiry,
                reason_string,
                user_properties,
                server_reference,
            },
        );
    let reasons = codes(&[
        0, 4, 0x80, 0x81, 0x82, 0x87, 0x89, 0x8b, 0x8e, 0x93, 0x9c, 0xa0, 0xa2,
    ]);
    (in_v5(version, reasons), boxed(version, properties))
        .prop_map(|(reason, properties)| Disconnect { reason, properties })
}

fn auth() -> impl Strategy<Value = Auth> {
    let texts = (
        text(),
        option::of(binary()),
        option::of(text()),
        user_properties(),
    );
    (codes(&[0, 0x18, 0x19]), texts).prop_map(|(reason, (method, data, reason_string, user))| {
        Auth {
            reason,
            authentication_method: Some(method),
            authentication_data: data,
            reason_string,
            user_properties: user,
        }
    })
}
