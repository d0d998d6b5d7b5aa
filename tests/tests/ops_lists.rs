//! Deny and allow lists of a real broker, as far as user space goes by them, and sources that are denied automatically.

use headgate_codec::{Connect, Packet, ReasonCode, Text, Version};
use headgate_tests::{
    broker::{Broker, Settings},
    tcp_client::{TcpClient, connect},
    users::Users,
};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Whether a client that comes now gets an answer to its CONNECT.
fn is_let_in(broker: &Broker) -> bool {
    let mut client = TcpClient::open(broker.tcp(), Version::V5);
    client.send(&Packet::Connect(Box::new(connect("c"))));
    matches!(client.receive(), Some(Packet::ConnAck(_)))
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn user(name: &str, password: &str) -> Connect {
    let mut connect = connect(name);
    connect.user_name = Some(Text::from(name));
    connect.password = Some(password.as_bytes().to_vec().into());
    connect
}

/// Sends bytes that are no CONNECT, and waits for the end.
fn send_garbage(broker: &Broker) {
    let mut client = TcpClient::open(broker.tcp(), Version::V5);
    // A reserved packet type [MQTT 5.0 §2.1.2].
    client.send_bytes(&[0x00, 0x00, 0x00, 0x00]);
    client.receive_bytes(1);
}

#[test]
fn who_is_denied_is_turned_away_until_that_ends() {
    let mut broker = Broker::start("");
    assert!(is_let_in(&broker));
    assert_eq!(broker.ctl_says(&["deny", "list"]), "nothing is listed\n");
    let why = [
        "deny",
        "add",
        "127.0.0.1",
        "--for",
        "1h",
        "--reason",
        "a test",
    ];
    broker.ctl_says(&why);
    broker.ctl_says(&["deny", "add", "2001:db8::1/32"]);
    assert!(!is_let_in(&broker));
    wait_until("it is counted", || {
        let metrics = broker.metrics();
        let of = |worker| {
            let name = format!("headgate_refused_total{{worker=\"{worker}\",limit=\"denied\"}}");
            metrics.get(&name)
        };
        (0..2).filter_map(of).sum::<f64>() > 0.0
    });
    let listed = broker.ctl_says(&["deny", "list"]);
    let line = listed.lines().find(|line| line.starts_with("127.0.0.1/32"));
    let line = line.expect("it is listed");
    assert!(
        line.contains("operator") && line.ends_with("a test"),
        "{line}"
    );
    assert!(line.contains(" s left"), "{line}");
    let for_ever = listed
        .lines()
        .find(|line| line.starts_with("2001:db8::/32"));
    assert!(
        for_ever.is_some_and(|line| line.ends_with("for ever")),
        "{listed}"
    );
    // The longest prefix decides, and a restart changes nothing.
    broker.ctl_says(&["allow", "add", "127.0.0.0/8"]);
    assert!(!is_let_in(&broker));
    let state = broker.state_dir();
    assert!(broker.terminate().success());
    let again = Broker::start_with(Settings {
        state_dir: Some(state),
        ..Settings::default()
    });
    assert!(!is_let_in(&again));
    again.ctl_says(&["deny", "del", "127.0.0.1/32"]);
    assert!(is_let_in(&again));
    again.ctl_says(&["deny", "add", "127.0.0.1", "--for", "1s"]);
    wait_until("a second has passed", || is_let_in(&again));
    wait_until("it is off the list", || {
        !again.ctl_says(&["deny", "list"]).contains("127.0.0.1")
    });
}

#[test]
fn what_ctl_cannot_do_it_says() {
    let broker = Broker::start("[lists]\ndeny = [\"203.0.113.0/24\"]\n");
    for (args, expected) in [
        (
            &["deny", "add", "203.0.113.0/33"][..],
            "`203.0.113.0/33` is no prefix",
        ),
        (
            &["deny", "add", "192.0.2.0/24", "--for", "soon"],
            "a number with s, m, h or d",
        ),
        (
            &["deny", "del", "192.0.2.0/24"],
            "192.0.2.0/24 is not on this list",
        ),
        (&["allow", "del", "203.0.113.0/24"], "is not on this list"),
        (
            &["deny", "del", "203.0.113.0/24"],
            "stands in the configuration",
        ),
    ] {
        let output = broker.ctl(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(expected),
            "{args:?}: {error}"
        );
    }
    let json: serde_json::Value =
        serde_json::from_str(&broker.ctl_says(&["deny", "list", "--json"])).expect("it is JSON");
    assert_eq!(json[0]["prefix"], "203.0.113.0/24");
    assert_eq!(json[0]["by"], "configuration");
    assert!(json[0]["left_s"].is_null());
}

#[test]
fn a_source_that_fails_to_authenticate_too_often_is_denied_for_a_while() {
    let users = Users::new(&[("ann", "right")]);
    let config =
        users.config(false) + "[lists]\nfailed_authentications_per_minute = 5\ndeny_for_s = 600\n";
    let broker = Broker::start(&config);
    for _ in 0..5 {
        let (_, reason) = TcpClient::try_connect(broker.tcp(), user("ann", "wrong"));
        assert_eq!(reason, ReasonCode::BAD_USER_NAME_OR_PASSWORD);
    }
    wait_until("it is denied", || !is_let_in(&broker));
    let listed = broker.ctl_says(&["deny", "list"]);
    assert!(
        listed.contains("127.0.0.1/32") && listed.contains("failed_authentications"),
        "{listed}"
    );
    let metrics = broker.metrics();
    let name = "headgate_denied_automatically_total{reason=\"failed_authentications\"}";
    assert_eq!(metrics.get(name), Some(1.0));
    broker.ctl_says(&["deny", "del", "127.0.0.1/32"]);
    let (_, reason) = TcpClient::try_connect(broker.tcp(), user("ann", "right"));
    assert_eq!(reason, ReasonCode::SUCCESS);
}

#[test]
fn what_is_allowed_is_never_denied_automatically() {
    let users = Users::new(&[("ann", "right")]);
    let config = users.config(false)
        + "[lists]\nfailed_authentications_per_minute = 3\nmalformed_per_minute = 3\n\
           allow = [\"127.0.0.0/8\"]\n";
    let broker = Broker::start(&config);
    for _ in 0..10 {
        send_garbage(&broker);
        let (_, reason) = TcpClient::try_connect(broker.tcp(), user("ann", "wrong"));
        assert_eq!(reason, ReasonCode::BAD_USER_NAME_OR_PASSWORD);
    }
    let (_, reason) = TcpClient::try_connect(broker.tcp(), user("ann", "right"));
    assert_eq!(reason, ReasonCode::SUCCESS);
    assert_eq!(broker.ctl_says(&["deny", "list"]), "nothing is listed\n");
}

#[test]
fn a_source_that_sends_no_mqtt_too_often_is_denied() {
    let broker = Broker::start("[lists]\nmalformed_per_minute = 5\n");
    for _ in 0..4 {
        send_garbage(&broker);
    }
    assert!(is_let_in(&broker));
    send_garbage(&broker);
    wait_until("it is denied", || !is_let_in(&broker));
    let listed = broker.ctl_says(&["deny", "list"]);
    assert!(listed.contains("malformed_packets"), "{listed}");
}
