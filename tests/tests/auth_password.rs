//! User Name and Password against the password file, seen from outside.

use bytes::Bytes;
use headgate_codec::{Connect, Packet, QoS, ReasonCode, Text, Version};
use headgate_tests::{
    broker::{Broker, binary},
    clients::{Client, Message},
    skip,
    tcp_client::{TcpClient, connect},
    users::Users,
};
use std::{fs, os::unix::fs::PermissionsExt, process::Command};

fn named(id: &str, name: &str, password: Option<&str>) -> Connect {
    Connect {
        user_name: Some(Text::from(name)),
        password: password.map(|password| Bytes::copy_from_slice(password.as_bytes())),
        ..connect(id)
    }
}

fn reason(broker: &Broker, connect: Connect) -> ReasonCode {
    TcpClient::try_connect(broker.tcp(), connect).1
}

fn message(payload: &str) -> Message<'_> {
    Message {
        topic: "t",
        payload,
        qos: QoS::AtLeastOnce,
        retain: false,
    }
}

#[test]
fn a_foreign_client_needs_the_right_password() {
    let clients = [Client::Mosquitto311, Client::Mosquitto5];
    if let Err(reason) = clients[0].available() {
        skip!("{reason}");
    }
    let users = Users::new(&[("ann", "secret")]);
    let broker = Broker::start(&users.config(false));
    for client in clients {
        let as_ann = ["-u", "ann", "-P", "secret"];
        let subscriber = client.subscribe_with(&broker, "t", QoS::AtMostOnce, 1, &as_ann);
        for wrong in [
            &["-u", "ann", "-P", "Secret"][..],
            &["-u", "bob", "-P", "secret"],
            &["-u", "ann"],
        ] {
            let (success, lines) = client.try_publish(&broker, message("wrong"), wrong);
            assert!(!success, "{client} {wrong:?}: {lines:#?}");
            let text = lines.concat().to_lowercase();
            assert!(text.contains("bad user name or password"), "{text}");
        }
        let (success, lines) = client.try_publish(&broker, message("nobody"), &[]);
        assert!(!success, "{lines:#?}");
        let text = lines.concat().to_lowercase();
        assert!(text.contains("not authori"), "{text}");
        let (success, lines) = client.try_publish(&broker, message("right"), &as_ann);
        assert!(success, "{client}: {lines:#?}");
        assert_eq!(subscriber.messages(), ["right"]);
    }
}

#[test]
fn our_own_client_says_why_it_is_refused() {
    let users = Users::new(&[("ann", "secret")]);
    let broker = Broker::start(&users.config(false));
    let publish = |flags: &[&str]| {
        let mut command = Command::new(binary());
        let port = broker.tcp().port().to_string();
        command.args(["pub", "-h", "127.0.0.1", "-p", &port, "-t", "t", "-m", "x"]);
        let output = command.args(flags).output().expect("headgate starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    assert_eq!(publish(&["-u", "ann", "-P", "secret"]).0, Some(0));
    for (flags, code) in [(&["-u", "ann", "-P", "x"][..], "0x86"), (&[], "0x87")] {
        let (status, text) = publish(flags);
        assert_eq!(status, Some(3), "{text}");
        assert!(text.contains(code), "{text}");
    }
}

/// [MQTT-3.1.4-2]; the return codes of 3.1.1 (§3.2.2.3) are 4 and 5.
#[test]
fn every_version_is_told_the_reason() {
    let users = Users::new(&[("ann", "secret")]);
    let broker = Broker::start(&users.config(false));
    for version in [Version::V31, Version::V311, Version::V5] {
        let as_version = |connect: Connect| Connect { version, ..connect };
        let right = as_version(named("a", "ann", Some("secret")));
        assert_eq!(reason(&broker, right), ReasonCode::SUCCESS);
        for (name, password) in [("ann", Some("x")), ("bob", Some("secret")), ("ann", None)] {
            let wrong = as_version(named("a", name, password));
            let expected = ReasonCode::BAD_USER_NAME_OR_PASSWORD;
            assert_eq!(reason(&broker, wrong), expected, "{version:?} {name}");
        }
        let nobody = as_version(connect("a"));
        assert_eq!(reason(&broker, nobody), ReasonCode::NOT_AUTHORIZED);
    }
}

#[test]
fn where_anybody_may_connect_a_name_has_to_be_right_all_the_same() {
    let users = Users::new(&[("ann", "secret")]);
    let broker = Broker::start(&users.config(true));
    assert_eq!(reason(&broker, connect("a")), ReasonCode::SUCCESS);
    let right = named("a", "ann", Some("secret"));
    assert_eq!(reason(&broker, right), ReasonCode::SUCCESS);
    let wrong = named("a", "ann", Some("x"));
    let expected = ReasonCode::BAD_USER_NAME_OR_PASSWORD;
    assert_eq!(reason(&broker, wrong), expected);
}

/// [MQTT-3.1.4-3] comes behind [MQTT-3.1.4-2].
#[test]
fn nobody_is_pushed_out_by_a_wrong_password() {
    let users = Users::new(&[("ann", "secret")]);
    let broker = Broker::start(&users.config(false));
    let ann = || named("device", "ann", Some("secret"));
    let (mut first, reason_first) = TcpClient::try_connect(broker.tcp(), ann());
    assert_eq!(reason_first, ReasonCode::SUCCESS);
    let intruder = named("device", "ann", Some("x"));
    let expected = ReasonCode::BAD_USER_NAME_OR_PASSWORD;
    assert_eq!(reason(&broker, intruder), expected);
    first.send(&Packet::PingReq);
    assert_eq!(first.receive(), Some(Packet::PingResp));
    assert_eq!(reason(&broker, ann()), ReasonCode::SUCCESS);
    assert_eq!(first.disconnected(), ReasonCode::SESSION_TAKEN_OVER);
}

/// The pool has one thread and two places; a hash takes the longest that is allowed. That a third client is told that
/// the server is busy shows that both places are taken, while the worker goes on: it answers somebody else before and
/// after. Should a hash have ended in between, it is tried again.
#[test]
fn whoever_waits_for_a_hash_keeps_nobody_waiting() {
    let users = Users::new(&[]);
    let slow = "ann:$argon2id$v=19$m=262144,t=16,p=1$c29tZXNhbHQ$\
                CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc\n";
    fs::write(users.path(), slow).expect("it is writable");
    let config = users.config(true).replace("[auth]", "[auth]\nthreads = 1");
    let broker = Broker::start(&format!(
        "{config}[limits]\npassword_checks = 2\n[node]\nworkers = 1\n"
    ));
    let mut other = TcpClient::connect(broker.tcp(), "other");
    let mut ping = || {
        other.send(&Packet::PingReq);
        assert_eq!(other.receive(), Some(Packet::PingResp));
    };
    let mut waiting = Vec::new();
    for attempt in 0..5 {
        for n in 0..2 {
            let mut client = TcpClient::open(broker.tcp(), Version::V5);
            let connect = named(&format!("slow {attempt} {n}"), "ann", Some("x"));
            client.send(&Packet::Connect(Box::new(connect)));
            waiting.push(client);
        }
        let busy = || reason(&broker, named("third", "ann", Some("x")));
        let before = busy();
        ping();
        if (before, busy()) == (ReasonCode::SERVER_BUSY, ReasonCode::SERVER_BUSY) {
            ping();
            return;
        }
    }
    panic!("no client was ever told that the server is busy");
}

#[test]
fn a_wrong_password_file_is_named_with_its_line() {
    let users = Users::new(&[("ann", "secret")]);
    let text = fs::read_to_string(users.path()).expect("it is readable");
    fs::write(users.path(), format!("{text}# a comment\nbob:secret\n")).expect("it is writable");
    let config = users.path().with_file_name("headgate.toml");
    let toml = format!("{}[listen]\nquic = \"\"\n", users.config(false));
    fs::write(&config, toml).expect("it is writable");
    for command in ["check", "run"] {
        let mut headgate = Command::new(binary());
        let output = headgate.arg(command).arg("--config").arg(&config).output();
        let output = output.expect("headgate starts");
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr);
        let line = format!("{}:4: ", users.path().display());
        assert!(text.contains(&line) && text.contains("PHC"), "{text}");
        assert!(!text.contains("bob:secret"), "it may be a secret: {text}");
    }
}

#[test]
fn a_file_that_everybody_can_read_is_warned_of() {
    let users = Users::new(&[("ann", "secret")]);
    let warning = "everybody on this machine can read the password file";
    for (mode, expected) in [(0o600, false), (0o640, false), (0o644, true)] {
        fs::set_permissions(users.path(), fs::Permissions::from_mode(mode)).expect("it is ours");
        let broker = Broker::start(&users.config(false));
        assert_eq!(broker.log().contains(warning), expected, "{mode:o}");
        assert!(!broker.log().contains("argon2id"), "it logs no hashes");
    }
}
