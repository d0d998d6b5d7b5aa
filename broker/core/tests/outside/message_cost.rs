//! What a message is counted as, for the limits on memory.

use bytes::Bytes;
use headgate_codec::{Publish, PublishProperties, QoS, Text};
use headgate_core::{Message, Time};

/// What a map entry or an allocation may add to the bytes of a field.
const OVERHEAD_BYTES_MAX: u32 = 128;

fn cost(topic: &str, payload: usize, properties: Option<PublishProperties>) -> u32 {
    let publish = Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: Text::from(topic),
        packet_id: None,
        properties: properties.map(Box::new),
        payload: Bytes::from(vec![0; payload]),
    };
    Message::from_publish(&publish, Time(0)).cost()
}

fn with(change: impl FnOnce(&mut PublishProperties)) -> u32 {
    let mut properties = PublishProperties::default();
    change(&mut properties);
    cost("t", 0, Some(properties))
}

/// Every field that a client fills counts with its bytes: none is a way around the limits.
#[test]
fn every_field_counts() {
    let text = |len: usize| Text::from("x".repeat(len).as_str());
    let (bare, empty) = (cost("t", 0, None), with(|_| ()));
    assert!(empty >= bare + size_of::<PublishProperties>() as u32);
    let grown = [
        (cost(&"t".repeat(1_001), 0, None), bare, 1_000),
        (cost("t", 5_000, None), bare, 5_000),
        (with(|p| p.response_topic = Some(text(700))), empty, 700),
        (with(|p| p.content_type = Some(text(600))), empty, 600),
        (
            with(|p| p.correlation_data = Some(Bytes::from(vec![0; 300]))),
            empty,
            300,
        ),
        (
            with(|p| p.user_properties = vec![(text(30), text(50))]),
            empty,
            80,
        ),
        (
            with(|p| p.user_properties = vec![(text(0), text(50))]),
            empty,
            50,
        ),
    ];
    for (cost, before, bytes) in grown {
        let range = before + bytes..=before + bytes + OVERHEAD_BYTES_MAX;
        assert!(range.contains(&cost), "{cost} for {bytes} more: {range:?}");
    }
    // Many small ones count as what they take, too: each has its place in a list.
    let many = with(|p| p.user_properties = vec![(text(1), text(1)); 100]);
    let pair = size_of::<(Text, Text)>() as u32;
    assert!(many >= empty + 100 * (2 + pair), "{many}");
}
