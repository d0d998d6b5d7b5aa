use super::*;

const CALENDAR: Calendar = Calendar {
    start_unix_ms: 1_700_000_000_000,
};

fn message() -> Message {
    Message {
        topic: Text::from("a/b"),
        payload: Bytes::from_static(b"payload"),
        qos: QoS::ExactlyOnce,
        retain: true,
        expires_at: Some(Time(60_000)),
        properties: Some(Box::new(PublishProperties {
            payload_format_utf8: Some(true),
            message_expiry_s: Some(60),
            response_topic: Some(Text::from("r")),
            correlation_data: Some(Bytes::from_static(b"\x00\x01")),
            content_type: Some(Text::from("text/plain")),
            user_properties: vec![
                (Text::from("k"), Text::from("v")),
                (Text::from("k"), Text::from("")),
            ],
            ..PublishProperties::default()
        })),
    }
}

fn opened() -> Opened {
    Opened {
        client_id: Text::from("client"),
        epoch: 7,
        expiry_s: u32::MAX,
        version: Version::V5,
        send_quota: 20,
        sequence: 1 << 40,
        will: Some(Box::new(Will {
            qos: QoS::AtLeastOnce,
            retain: true,
            topic: Text::from("will"),
            payload: Bytes::from_static(b"gone"),
            delay_s: Some(5),
            properties: message().properties,
        })),
    }
}

/// Whether a value can be read back from these bytes.
type IsRead = fn(Bytes) -> bool;

/// All kinds of values.
fn values() -> Vec<(Vec<u8>, IsRead)> {
    let writer = || Writer::new(CALENDAR);
    let id = PacketId::new(9).expect("it isn't 0");
    let group = Text::from("$share/g/a/#");
    let of = (QoS::AtLeastOnce, true);
    let closed = Closed {
        expires_at: Some(Time(5)),
        will_at: None,
        sent_up_to: 3,
        sequence: 4,
    };
    let subscription = Subscription {
        options: 0b10_1110,
        subscription_id: Some(268_435_455),
    };
    let session = SessionId {
        node: 1,
        epoch: 2,
        counter: 3,
    };
    vec![
        (writer().opened(&opened()), |b| {
            Reader::new(b, CALENDAR).and_then(Reader::opened).is_ok()
        }),
        (writer().closed(&closed), |b| {
            Reader::new(b, CALENDAR).and_then(Reader::closed).is_ok()
        }),
        (writer().subscription(subscription), |b| {
            Reader::new(b, CALENDAR)
                .and_then(Reader::subscription)
                .is_ok()
        }),
        (
            writer().queued(of, Some(&[1, 2]), id, Some(&group), &message()),
            |b| Reader::new(b, CALENDAR).and_then(Reader::queued).is_ok(),
        ),
        (writer().retained(&message()), |b| {
            Reader::new(b, CALENDAR).and_then(Reader::retained).is_ok()
        }),
        (writer().id(session), |b| {
            Reader::new(b, CALENDAR).and_then(Reader::id).is_ok()
        }),
    ]
}

#[test]
fn what_was_written_is_read() {
    let read = |bytes: Vec<u8>| Reader::new(bytes.into(), CALENDAR).expect("of this version");
    let writer = || Writer::new(CALENDAR);
    assert_eq!(read(writer().opened(&opened())).opened(), Ok(opened()));
    assert_eq!(
        read(writer().retained(&message())).retained(),
        Ok(message())
    );
    let id = PacketId::new(9).expect("it isn't 0");
    let group = Text::from("$share/g/a/#");
    let bytes = writer().queued(
        (QoS::AtLeastOnce, false),
        Some(&[1, 2]),
        id,
        Some(&group),
        &message(),
    );
    let queued = Queued {
        qos: QoS::AtLeastOnce,
        retain: false,
        ids: Some([1, 2].into()),
        packet_id: id,
        group: Some(group),
        message: message(),
    };
    assert_eq!(read(bytes).queued(), Ok(queued));
    assert!(
        values()
            .into_iter()
            .all(|(bytes, reads)| reads(bytes.into()))
    );
}

#[test]
fn a_value_that_is_cut_or_longer_is_refused() {
    for (bytes, reads) in values() {
        for length in 0..bytes.len() {
            assert!(
                !reads(Bytes::copy_from_slice(&bytes[..length])),
                "{length} of {bytes:?}"
            );
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(!reads(longer.into()));
    }
}

#[test]
fn a_flipped_bit_never_panics() {
    for (bytes, reads) in values() {
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _either = reads(flipped.into());
        }
    }
}

#[test]
fn a_newer_value_says_so() {
    let error = Reader::new(Bytes::from_static(&[VALUE + 1, 0]), CALENDAR).err();
    assert_eq!(error, Some(ValueError::Newer(VALUE + 1)));
    assert!(error.is_some_and(|error| error.to_string().contains("newer headgate")));
}

#[test]
fn times_are_those_of_the_calendar() {
    let bytes = Writer::new(CALENDAR).retained(&message());
    // Started an hour later, the message has expired; started a minute earlier, it has two.
    for (start_unix_ms, expires) in [(1_700_003_600_000, 0), (1_699_999_940_000, 120_000)] {
        let calendar = Calendar { start_unix_ms };
        let read = Reader::new(bytes.clone().into(), calendar).and_then(Reader::retained);
        assert_eq!(read.ok().and_then(|m| m.expires_at), Some(Time(expires)));
    }
}
