//! Quota classes of a real broker, as far as user space enforces them: whose class a client is of, what becomes of one that is
//! above its quota while others are not, and `headgate ctl quota`.

use headgate_codec::{Connect, Packet, PacketId, QoS, ReasonCode, Text, Version};
use headgate_tests::{
    broker::{Broker, Settings},
    stuck::client_of,
    tcp_client::{TcpClient, connect, publish},
    users::Users,
};
use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

fn user(id: &str, name: &str, password: &str) -> Connect {
    let mut connect = connect(id);
    connect.user_name = Some(Text::from(name));
    connect.password = Some(password.as_bytes().to_vec().into());
    connect
}

/// Sends so many messages with QoS 1 without waiting for an answer.
fn send_messages(client: &mut TcpClient, count: u16) {
    for number in 1..=count {
        let mut message = publish("a", QoS::AtLeastOnce, "x");
        message.packet_id = PacketId::new(number);
        client.send(&Packet::Publish(message));
    }
}

fn next_ack(client: &mut TcpClient) -> ReasonCode {
    match client.receive() {
        Some(Packet::PubAck(ack)) => ack.reason,
        other => panic!("expected PUBACK, got {other:?}"),
    }
}

#[test]
fn the_class_comes_from_the_password_file_or_else_from_the_listener() {
    let users = Users::new(&[("ann", "a"), ("bob", "b")]);
    let set = users.passwd(&["-b", "--class", "staff"], &["ann", "a"]);
    assert!(set.status.success(), "{set:?}");
    let config = users.config(true)
        + "[listen]\nquota_classes = [\"tcp = guests\"]\n\
           [quota.guests]\nconnections = 2\n[quota.staff]\nsubscriptions = 1\n";
    let broker = Broker::start(&config);
    let (mut ann, reason) = TcpClient::try_connect(broker.tcp(), user("ann", "ann", "a"));
    assert_eq!(reason, ReasonCode::SUCCESS);
    let codes = ann.subscribe(&["a", "b"], QoS::AtMostOnce);
    assert_eq!(codes, [ReasonCode::SUCCESS, ReasonCode::QUOTA_EXCEEDED]);
    // bob has no class of his own, and the other one no name at all.
    let (mut bob, reason) = TcpClient::try_connect(broker.tcp(), user("bob", "bob", "b"));
    assert_eq!(reason, ReasonCode::SUCCESS);
    let codes = bob.subscribe(&["a", "b"], QoS::AtMostOnce);
    assert_eq!(codes, [ReasonCode::SUCCESS; 2]);
    let _guest = TcpClient::connect(broker.tcp(), "guest");
    let (_, reason) = TcpClient::try_connect(broker.tcp(), connect("one too many"));
    assert_eq!(reason, ReasonCode::QUOTA_EXCEEDED);
    let listed = broker.ctl_says(&["quota", "list"]);
    assert!(listed.contains("guests: 2 connections"), "{listed}");
    assert!(listed.contains("staff: 1 connections"), "{listed}");
}

#[test]
fn a_client_above_its_quota_gets_slower_answers_and_its_neighbour_does_not() {
    const RATE: u16 = 20;
    let users = Users::new(&[("fast", "f")]);
    let set = users.passwd(&["-b", "--class", "limited"], &["fast", "f"]);
    assert!(set.status.success(), "{set:?}");
    let config = users.config(true) + &format!("[quota.limited]\nmessages_per_second = {RATE}\n");
    let broker = Broker::start(&config);
    let (mut limited, reason) = TcpClient::try_connect(broker.tcp(), user("l", "fast", "f"));
    assert_eq!(reason, ReasonCode::SUCCESS);
    let mut free = TcpClient::connect(broker.tcp(), "free");
    let begin = Instant::now();
    send_messages(&mut limited, 5 * RATE);
    send_messages(&mut free, 200);
    for _ in 0..200 {
        assert!(next_ack(&mut free).0 < 0x80);
    }
    for _ in 0..5 * RATE {
        assert!(next_ack(&mut limited).0 < 0x80, "nothing is refused");
    }
    // A second's worth may come at once.
    let least = Duration::from_secs(4) - Duration::from_millis(100);
    assert!(begin.elapsed() >= least, "{:?}", begin.elapsed());
    let deadline = Instant::now() + Duration::from_secs(60);
    let slowed = || {
        let metrics = broker.metrics();
        let of = |worker| {
            metrics.get(&format!(
                "headgate_quota_slowed_total{{worker=\"{worker}\"}}"
            ))
        };
        (0..2).filter_map(of).sum::<f64>()
    };
    while slowed() == 0.0 {
        assert!(Instant::now() < deadline, "it was slowed");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_client_above_its_quota_is_told_by_0x97_or_by_the_end() {
    let broker = Broker::start(
        "[listen]\nquota_classes = [\"tcp=refused\"]\n\
         [quota.refused]\nmessages_per_second = 3\nabove = \"refuse\"\n",
    );
    let mut client = TcpClient::connect(broker.tcp(), "c");
    send_messages(&mut client, 20);
    let acks: Vec<_> = (0..20).map(|_| next_ack(&mut client)).collect();
    let refused = acks
        .iter()
        .filter(|r| **r == ReasonCode::QUOTA_EXCEEDED)
        .count();
    assert!(acks[..3].iter().all(|reason| reason.0 < 0x80), "{acks:?}");
    assert!(refused > 0, "{acks:?}");
    broker.ctl_says(&["quota", "set", "refused", "above=disconnect"]);
    send_messages(&mut client, 200);
    let mut packets = std::iter::from_fn(|| client.receive());
    let last = packets.find(|packet| !matches!(packet, Packet::PubAck(_)));
    assert!(
        matches!(&last, Some(Packet::Disconnect(d)) if d.reason == ReasonCode::QUOTA_EXCEEDED),
        "{last:?}"
    );
}

#[test]
fn changes_by_ctl_are_in_force_at_once_and_after_a_restart() {
    let config = "[quota.default]\nsubscriptions = 9\n";
    let mut broker = Broker::start(config);
    let accepted = |client: &mut TcpClient| {
        let codes = client.subscribe(&["a", "b", "c", "d"], QoS::AtMostOnce);
        codes.iter().filter(|code| code.0 < 0x80).count()
    };
    let mut client = TcpClient::connect(broker.tcp(), "c");
    let said = broker.ctl_says(&[
        "quota",
        "set",
        "default",
        "subscriptions=2",
        "connections=5",
    ]);
    assert!(said.contains("(ctl)"), "{said}");
    assert_eq!(
        accepted(&mut client),
        2,
        "of a client that was connected before"
    );
    for (args, expected) in [
        (
            &["quota", "set", "default", "subscriptions=few"][..],
            "`few` is not allowed",
        ),
        (
            &["quota", "set", "default", "color=red"],
            "a class has no `color`",
        ),
        (
            &["quota", "set", "nobody", "connections=1"],
            "no quota class `nobody`",
        ),
    ] {
        let refused = broker.ctl(args);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && error.contains(expected),
            "{error}"
        );
    }
    let state = broker.state_dir();
    assert!(broker.terminate().success());
    let again = Broker::start_with(Settings {
        config: config.to_owned(),
        state_dir: Some(state),
        ..Settings::default()
    });
    assert_eq!(accepted(&mut TcpClient::connect(again.tcp(), "c")), 2);
    let json: serde_json::Value =
        serde_json::from_str(&again.ctl_says(&["quota", "list", "--json"])).expect("it is JSON");
    let values = &json[0]["values"];
    assert_eq!(
        values["connections"],
        serde_json::json!({ "value": "5", "by": "ctl" })
    );
    assert_eq!(values["memory_bytes"]["by"], "configuration");
    let said = again.ctl_says(&["quota", "reset", "default"]);
    assert!(!said.contains("(ctl)"), "{said}");
    assert_eq!(accepted(&mut TcpClient::connect(again.tcp(), "d")), 4);
}

#[test]
fn a_class_that_there_is_not_is_an_error_of_the_configuration() {
    let users = Users::new(&[("ann", "a")]);
    let set = users.passwd(&["-b", "--class", "staff"], &["ann", "a"]);
    assert!(set.status.success(), "{set:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("headgate.toml");
    let check = |config: &str| {
        std::fs::write(&file, config).expect("it is writable");
        let mut command = std::process::Command::new(headgate_tests::broker::binary());
        let output = command.arg("check").arg("--config").arg(&file).output();
        let output = output.expect("headgate starts");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let base = users.config(true) + "[listen]\nquic = \"\"\n";
    let (code, error) = check(&base);
    assert_eq!(code, Some(2), "{error}");
    assert!(
        error.contains("quota class staff") && error.contains("default, suspect"),
        "{error}"
    );
    let with_class = base.clone() + "quota_classes = [\"tcp=guests\"]\n[quota.staff]\n";
    let (code, error) = check(&with_class);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("`guests`"), "{error}");
    let (code, error) = check(&(base + "[quota.staff]\nconections = 1\n"));
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("did you mean `connections`?"), "{error}");
}

/// A client whose connection takes little at once.
fn with_small_window(broker: &Broker, id: &str) -> TcpClient {
    let kind = (socket2::Domain::IPV4, socket2::Type::STREAM);
    let socket = socket2::Socket::new(kind.0, kind.1, None).expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a size");
    socket
        .connect(&broker.tcp().into())
        .expect("the broker listens");
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a socket");
    let mut client = TcpClient::over(TcpStream::from(socket), Version::V5);
    assert_eq!(client.shake_hands(connect(id)), ReasonCode::SUCCESS);
    client
}

/// Publishers at the subscriber's worker and at another one wait for it, as long as it takes, and nothing is lost.
#[test]
fn publishers_wait_for_a_subscriber_whose_class_blocks() {
    // 16 MB: more than the sockets' buffers on the way hold.
    const MESSAGES: u32 = 1_000;
    let broker = Broker::start(
        "[listen]\nquota_classes = [\"tcp = slow\"]\n\
         [limits]\nfull_queue_max_ms = 600000\nsend_buffer_bytes = 4096\n\
         [quota.slow]\nqueued_messages = 20\nwhen_full = \"block\"\n",
    );
    let mut subscriber = with_small_window(&broker, "subscriber");
    subscriber.subscribe(&["to/#"], QoS::AtMostOnce);
    let publishers = [0, 1].map(|worker| {
        let mut client = client_of(&broker, worker, &connect(&format!("publisher-{worker}")));
        thread::spawn(move || {
            for number in 0..MESSAGES {
                let mut payload = vec![b'x'; 8_000];
                payload[..4].copy_from_slice(&number.to_be_bytes());
                let message = publish(&format!("to/{worker}"), QoS::AtMostOnce, payload);
                client.send(&Packet::Publish(message));
            }
            client
        })
    });
    for worker in [0, 1] {
        broker.counts_from(
            &format!("headgate_publishers_held_total{{worker=\"{worker}\"}}"),
            1.0,
        );
    }
    assert!(!publishers.iter().all(|publisher| publisher.is_finished()));
    let mut next = [0; 2];
    for _ in 0..2 * MESSAGES {
        let Some(Packet::Publish(message)) = subscriber.receive() else {
            panic!("a message expected")
        };
        let of = usize::from(message.topic.as_str() == "to/1");
        let number: [u8; 4] = message.payload[..4].try_into().expect("a number");
        assert_eq!(
            u32::from_be_bytes(number),
            next[of],
            "in order, and none is missing"
        );
        next[of] += 1;
    }
    for publisher in publishers {
        let mut client = publisher.join().expect("it publishes");
        client.send(&Packet::PingReq);
        assert_eq!(client.receive(), Some(Packet::PingResp));
    }
    assert_eq!(
        broker.metrics().sum("headgate_messages_dropped_total{"),
        0.0
    );
}

#[test]
fn a_client_that_is_too_slow_for_its_class_is_told_by_0x97() {
    let broker = Broker::start(
        "[listen]\nquota_classes = [\"tcp = slow\"]\n\
         [quota.slow]\nqueued_messages = 10\nwhen_full = \"disconnect\"\n",
    );
    let mut slow = connect("slow");
    slow.properties.receive_maximum = Some(1);
    slow.properties.session_expiry_s = Some(60);
    let (mut subscriber, _) = TcpClient::try_connect(broker.tcp(), slow);
    subscriber.subscribe(&["a"], QoS::AtLeastOnce);
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    send_messages(&mut publisher, 12);
    for _ in 0..12 {
        assert_eq!(next_ack(&mut publisher), ReasonCode::SUCCESS);
    }
    assert!(matches!(subscriber.receive(), Some(Packet::Publish(_))));
    assert_eq!(subscriber.disconnected(), ReasonCode::QUOTA_EXCEEDED);
}
