//! Data streams of a QUIC connection, from outside: acknowledgements, order, independence, and what may not be.

use bytes::Bytes;
use headgate_codec::{Packet, QoS, ReasonCode, Text};
use headgate_tests::{
    broker::Broker,
    clients::{self, Client as Foreign},
    quic_client::{Client, Error, Stream, connect, endpoint, puback, publish, subscribe},
    skip,
};
use std::{
    future::Future,
    net::UdpSocket,
    pin::Pin,
    task::{Context, Waker},
    time::Duration,
};
use tokio::time::timeout;

/// Only a broken broker takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test's clients.
fn run(work: impl Future<Output = Result<(), Error>>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let result = runtime.block_on(async { timeout(PATIENCE, work).await });
    result.expect("in time").expect("the clients succeed");
}

fn client() -> Result<quinn::Endpoint, Error> {
    endpoint(UdpSocket::bind("127.0.0.1:0")?)
}

fn puback_of(packet: Packet) -> u16 {
    match packet {
        Packet::PubAck(ack) => ack.packet_id.get(),
        other => panic!("PUBACK expected, not {other:?}"),
    }
}

async fn subscribe_on(stream: &mut Stream, filter: &str, qos: QoS) -> Result<(), Error> {
    let packet = Packet::Subscribe(Box::new(subscribe(900, filter, qos)));
    stream.send(&packet).await?;
    match stream.receive().await? {
        Packet::SubAck(ack) if ack.reasons[0].0 < 0x80 => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// Whether something can't be had now.
fn waits<T>(future: Pin<&mut impl Future<Output = T>>) -> bool {
    future
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
}

/// The session is alive: it still answers on its control stream.
async fn alive(client: &mut Client) -> Result<(), Error> {
    client.send(&Packet::PingReq).await?;
    match client.receive().await? {
        Packet::PingResp => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// DISCONNECT with a reason, then the end of the connection with an application error code.
async fn ended(client: &mut Client, reason: ReasonCode, code: u32) -> Result<(), Error> {
    match client.receive().await? {
        Packet::Disconnect(d) => assert_eq!(d.reason, reason),
        other => return Err(format!("{other:?}").into()),
    }
    match client.connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code, quinn::VarInt::from_u32(code));
            Ok(())
        }
        other => Err(other.into()),
    }
}

#[test]
fn streams_keep_their_order_and_get_their_acknowledgements() {
    let broker = Broker::start("");
    run(async {
        let endpoint = client()?;
        let mut subscriber = Client::connect(&endpoint, broker.quic(), "s").await?;
        subscriber.subscribe("t/#", QoS::AtMostOnce).await?;
        let publisher = Client::connect(&endpoint, broker.quic(), "p").await?;
        let (streams, each) = (4_u16, 50_u16);
        let mut open = Vec::new();
        for number in 0..each {
            for at in 0..streams {
                // All the credit comes when the server has seen the first one.
                if number == 0 {
                    open.push(publisher.stream().await?);
                }
                let id = at * each + number + 1;
                let packet = publish(&format!("t/{at}"), Some(id), &number.to_be_bytes());
                open[usize::from(at)].send(&packet).await?;
            }
        }
        for (at, stream) in open.iter_mut().enumerate() {
            for number in 0..each {
                let expected = at as u16 * each + number + 1;
                assert_eq!(puback_of(stream.receive().await?), expected);
            }
        }
        let mut next = vec![0_u16; usize::from(streams)];
        for _ in 0..streams * each {
            let Packet::Publish(p) = subscriber.receive().await? else {
                panic!("only messages come")
            };
            let at: usize = p.topic["t/".len()..].parse()?;
            assert_eq!(p.payload, Bytes::copy_from_slice(&next[at].to_be_bytes()));
            next[at] += 1;
        }
        assert_eq!(next, vec![each; usize::from(streams)]);
        Ok(())
    });
    broker.counts("headgate_data_streams_opened_total", 4.0);
    broker.counts("headgate_data_packets_received_total", 200.0);
}

#[test]
fn what_comes_before_connect_is_held_until_it_is_accepted() {
    let broker = Broker::start("");
    run(async {
        let endpoint = client()?;
        let connection = endpoint.connect(broker.quic(), "localhost")?.await?;
        let mut control = Stream::open(&connection).await?;
        let mut data = Stream::open(&connection).await?;
        data.send(&publish("t", Some(7), b"x")).await?;
        let connect = Packet::Connect(Box::new(connect("c")));
        control.send(&connect).await?;
        assert!(matches!(control.receive().await?, Packet::ConnAck(_)));
        assert_eq!(puback_of(data.receive().await?), 7);
        Ok(())
    });
}

/// The client doesn't read one stream; what it has subscribed to on the others comes all the same.
#[test]
fn a_stream_that_is_not_read_holds_up_no_other() {
    let broker = Broker::start("");
    run(async {
        let endpoint = client()?;
        let mut subscriber = Client::connect(&endpoint, broker.quic(), "s").await?;
        let (mut slow, mut fast) = (subscriber.stream().await?, subscriber.stream().await?);
        subscribe_on(&mut slow, "slow", QoS::AtLeastOnce).await?;
        subscribe_on(&mut fast, "fast", QoS::AtLeastOnce).await?;
        subscriber.subscribe("control", QoS::AtLeastOnce).await?;
        let mut publisher = Client::connect(&endpoint, broker.quic(), "p").await?;
        // More than the window of a stream and the session's share of queues for it take.
        let large = vec![b'x'; 10_000];
        for number in 0..600_u16 {
            publisher.publish("slow", QoS::AtMostOnce, &large).await?;
            publisher.publish("slow", QoS::AtLeastOnce, &large).await?;
            puback_of(publisher.receive().await?);
            for topic in ["fast", "control"] {
                let payload = number.to_be_bytes();
                publisher.publish(topic, QoS::AtLeastOnce, &payload).await?;
                puback_of(publisher.receive().await?);
            }
            for stream in [&mut fast, &mut subscriber.control] {
                let Packet::Publish(p) = stream.receive().await? else {
                    panic!("only messages come")
                };
                assert_eq!(p.payload, Bytes::copy_from_slice(&number.to_be_bytes()));
                let packet_id = p.packet_id.ok_or("QoS 1")?;
                stream.send(&puback(packet_id)).await?;
            }
        }
        alive(&mut subscriber).await?;
        // It is read at last: what it has waited for is there, in order of each QoS.
        assert!(matches!(slow.receive().await?, Packet::Publish(_)));
        Ok(())
    });
    let dropped = "headgate_messages_dropped_total{worker=";
    assert!(broker.metrics().sum(dropped) > 0.0, "its share was full");
}

/// What came on a stream that the client gives up comes again on the control stream.
#[test]
fn messages_of_a_reset_stream_come_again_on_the_control_stream() {
    let broker = Broker::start("");
    run(async {
        let endpoint = client()?;
        let mut subscriber = Client::connect(&endpoint, broker.quic(), "s").await?;
        let mut data = subscriber.stream().await?;
        subscribe_on(&mut data, "t", QoS::AtLeastOnce).await?;
        let mut publisher = Client::connect(&endpoint, broker.quic(), "p").await?;
        publisher.publish("t", QoS::AtLeastOnce, b"1").await?;
        puback_of(publisher.receive().await?);
        let Packet::Publish(first) = data.receive().await? else {
            panic!("a message comes")
        };
        data.send.reset(0_u32.into())?;
        data.recv.stop(0_u32.into())?;
        let Packet::Publish(again) = subscriber.receive().await? else {
            panic!("it comes again")
        };
        assert!(again.dup && !first.dup);
        assert_eq!(
            (&again.packet_id, &again.payload),
            (&first.packet_id, &first.payload)
        );
        publisher.publish("t", QoS::AtLeastOnce, b"2").await?;
        puback_of(publisher.receive().await?);
        assert!(matches!(subscriber.receive().await?, Packet::Publish(p) if p.payload == "2"));
        Ok(())
    });
}

#[test]
fn a_stream_for_each_message_gets_its_acknowledgement_and_ends() {
    let broker = Broker::start("");
    run(async {
        let endpoint = client()?;
        let mut publisher = Client::connect(&endpoint, broker.quic(), "p").await?;
        for id in 1..=150 {
            let mut stream = publisher.stream().await?;
            stream.send(&publish("t", Some(id), b"x")).await?;
            stream.send.finish()?;
            assert_eq!(puback_of(stream.receive().await?), id);
            assert!(stream.recv.read_chunk(1, true).await?.is_none(), "it ends");
        }
        alive(&mut publisher).await
    });
}

#[test]
fn what_has_no_place_on_a_data_stream_resets_it_alone() {
    let broker = Broker::start("");
    run(async {
        let endpoint = client()?;
        let mut c = Client::connect(&endpoint, broker.quic(), "c").await?;
        let disconnect = Packet::Disconnect(Default::default());
        for packet in [Packet::PingReq, disconnect] {
            let mut stream = c.stream().await?;
            stream.send(&packet).await?;
            let read = stream.recv.read_chunk(1, true).await;
            let code = 0x82_u32.into();
            assert_eq!(read, Err(quinn::ReadError::Reset(code)), "{packet:?}");
            assert_eq!(stream.send.stopped().await?, Some(code));
        }
        alive(&mut c).await
    });
    broker.counts("headgate_data_streams_refused_total", 2.0);
}

#[test]
fn what_mqtt_forbids_on_any_stream_ends_the_connection() {
    let broker = Broker::start("");
    run(async {
        let endpoint = client()?;
        // A second CONNECT [MQTT-3.1.0-2]: a second control stream, if one likes.
        let mut c = Client::connect(&endpoint, broker.quic(), "a").await?;
        let mut stream = c.stream().await?;
        stream
            .send(&Packet::Connect(Box::new(connect("a"))))
            .await?;
        ended(&mut c, ReasonCode::PROTOCOL_ERROR, 1).await?;
        // Octets that are no packet, and a stream that ends within one.
        for (bytes, finish) in [(&b"\0\0"[..], false), (&b"\x30\x05\0\x01"[..], true)] {
            let mut c = Client::connect(&endpoint, broker.quic(), "b").await?;
            let mut stream = c.stream().await?;
            stream.send.write_all(bytes).await?;
            if finish {
                stream.send.finish()?;
            }
            ended(&mut c, ReasonCode::MALFORMED_PACKET, 1).await?;
        }
        Ok(())
    });
}

/// Three at first, as many as the configuration says when one is used; none in one direction.
#[test]
fn credit_for_streams_grows_with_their_use() {
    let broker = Broker::start("[limits]\nstreams_per_connection = 5\n");
    run(async {
        let endpoint = client()?;
        let mut c = Client::connect(&endpoint, broker.quic(), "c").await?;
        let mut streams = Vec::new();
        for id in 1..=4 {
            let mut stream = c.stream().await?;
            stream.send(&publish("t", Some(id), b"x")).await?;
            assert_eq!(puback_of(stream.receive().await?), id);
            streams.push(stream);
        }
        alive(&mut c).await?;
        let mut more = Box::pin(c.connection.open_bi());
        assert!(waits(more.as_mut()), "5 are open");
        let mut uni = Box::pin(c.connection.open_uni());
        assert!(waits(uni.as_mut()), "none of these");
        streams[0].send.finish()?;
        more.await?;
        Ok(())
    });
}

/// A class with few: a stream that was opened before CONNECT is reset, and there is no credit for more.
#[test]
fn a_quota_class_has_its_own_number_of_streams() {
    let broker = Broker::start("[quota.default]\nstreams = 2\n");
    run(async {
        let endpoint = client()?;
        let connection = endpoint.connect(broker.quic(), "localhost")?.await?;
        let mut control = Stream::open(&connection).await?;
        let mut kept = Stream::open(&connection).await?;
        let mut excess = Stream::open(&connection).await?;
        kept.send(&publish("t", Some(7), b"x")).await?;
        excess.send(&publish("t", Some(8), b"x")).await?;
        let connect = Packet::Connect(Box::new(connect("c")));
        control.send(&connect).await?;
        assert!(matches!(control.receive().await?, Packet::ConnAck(_)));
        assert_eq!(puback_of(kept.receive().await?), 7);
        let read = excess.recv.read_chunk(1, true).await;
        assert_eq!(read, Err(quinn::ReadError::Reset(0x97_u32.into())));
        let mut more = Box::pin(connection.open_bi());
        assert!(waits(more.as_mut()), "2 are open");
        // The server keeps a stream until the client's side of it has ended, too.
        drop(excess);
        kept.send.finish()?;
        more.await?;
        Ok(())
    });
    broker.counts("headgate_refused_total", 1.0);
}

/// The number of a class counts in place of the configured one, also where it is larger.
#[test]
fn a_quota_class_may_have_more_streams_than_others() {
    let broker =
        Broker::start("[limits]\nstreams_per_connection = 1\n[quota.default]\nstreams = 5\n");
    run(async {
        let endpoint = client()?;
        let c = Client::connect(&endpoint, broker.quic(), "c").await?;
        let mut streams = Vec::new();
        for id in 1..=4 {
            let mut stream = c.stream().await?;
            stream.send(&publish("t", Some(id), b"x")).await?;
            assert_eq!(puback_of(stream.receive().await?), id);
            streams.push(stream);
        }
        Ok(())
    });
}

/// A client that opens and resets streams in a loop is shut out; nobody else notices.
#[test]
fn streams_in_a_loop_end_the_connection() {
    let broker = Broker::start("[limits]\nstream_opens_per_second = 50\n");
    run(async {
        let endpoint = client()?;
        let mut other = Client::connect(&endpoint, broker.quic(), "other").await?;
        let c = Client::connect(&endpoint, broker.quic(), "c").await?;
        let closed = loop {
            let mut stream = match c.connection.open_bi().await {
                Ok((send, _)) => send,
                Err(closed) => break closed,
            };
            // The connection may be closed by now.
            let _ = stream.write_all(b"\x30").await;
            let _ = stream.reset(0_u32.into());
            alive(&mut other).await?;
        };
        match closed {
            quinn::ConnectionError::ApplicationClosed(close) => {
                assert_eq!(close.error_code, quinn::VarInt::from_u32(2));
            }
            other => panic!("{other}"),
        }
        alive(&mut other).await
    });
    broker.counts("headgate_refused_total", 1.0);
}

/// The same with a stack that isn't quinn: streams both ways, and datagrams both ways.
#[test]
fn aioquic_uses_streams_and_datagrams() {
    if let Err(reason) = Foreign::Aioquic.available() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    let output = clients::helper("quic_streams.py")
        .args(["--port", &broker.quic().port().to_string()])
        .arg("--ca")
        .arg(broker.ca_certificate())
        .output()
        .expect("Python starts");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n");
}

fn asks_for_datagrams() -> Vec<(Text, Text)> {
    vec![(Text::from("headgate-datagram"), Text::from("1"))]
}

/// A message that comes in a datagram.
async fn datagram(client: &Client) -> Result<Packet, Error> {
    let mut bytes = client.connection.read_datagram().await?;
    let packet = headgate_codec::decode(&mut bytes, Some(headgate_codec::Version::V5), u32::MAX)?;
    packet.ok_or_else(|| "no whole packet".into())
}

#[test]
fn messages_with_qos_0_come_and_go_in_datagrams_where_they_fit() {
    let broker = Broker::start("");
    run(async {
        let endpoint = client()?;
        let mut subscriber = Client::connect(&endpoint, broker.quic(), "s").await?;
        let mut packet = subscribe(1, "t", QoS::AtLeastOnce);
        packet.user_properties = asks_for_datagrams();
        subscriber
            .send(&Packet::Subscribe(Box::new(packet)))
            .await?;
        assert!(matches!(subscriber.receive().await?, Packet::SubAck(_)));
        let mut says = connect("p");
        says.properties.user_properties = asks_for_datagrams();
        let mut publisher = Client::connect_with(&endpoint, broker.quic(), says).await?;

        let sent = headgate_tests::quic_client::encoded(&publish("t", None, b"small"));
        publisher.connection.send_datagram(sent)?;
        assert!(matches!(datagram(&subscriber).await?, Packet::Publish(p) if p.payload == "small"));

        let large = vec![b'x'; 4_000];
        publisher.publish("t", QoS::AtMostOnce, &large).await?;
        assert!(matches!(subscriber.receive().await?, Packet::Publish(p) if p.payload == large));
        publisher.publish("t", QoS::AtLeastOnce, b"kept").await?;
        assert!(matches!(subscriber.receive().await?, Packet::Publish(p) if p.payload == "kept"));
        assert!(matches!(publisher.receive().await?, Packet::PubAck(_)));
        alive(&mut publisher).await
    });
    broker.counts("headgate_publish_datagrams_received_total", 1.0);
    broker.counts("headgate_publish_datagrams_sent_total", 1.0);
    broker.counts("headgate_publish_datagrams_too_large_total", 1.0);
}

#[test]
fn datagrams_of_who_has_not_said_so_are_dropped_and_others_must_be_right() {
    let broker = Broker::start("");
    run(async {
        let endpoint = client()?;
        let mut c = Client::connect(&endpoint, broker.quic(), "c").await?;
        let sent = headgate_tests::quic_client::encoded(&publish("t", None, b"x"));
        c.connection.send_datagram(sent)?;
        // On the same path, and behind it.
        alive(&mut c).await?;
        for wrong in [&b"\xc0\0"[..], &b"\x30\x05\0"[..], &b"\0\0"[..]] {
            let mut says = connect("d");
            says.properties.user_properties = asks_for_datagrams();
            let mut c = Client::connect_with(&endpoint, broker.quic(), says).await?;
            c.connection.send_datagram(Bytes::from_static(wrong))?;
            let reason = match wrong[0] {
                0xc0 => ReasonCode::PROTOCOL_ERROR,
                _ => ReasonCode::MALFORMED_PACKET,
            };
            ended(&mut c, reason, 1).await?;
        }
        Ok(())
    });
}
