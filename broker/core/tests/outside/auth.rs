//! Authentication of CONNECT and AUTH exchanges (MQTT 5.0 §4.12), as the core sees them.

use crate::common::*;
use bytes::Bytes;
use headgate_codec::{Auth, ConnAck, Connect, Disconnect, Packet, QoS, ReasonCode, Text, Version};
use headgate_core::{
    AuthResult, AuthStep, ClientCertificate, Credentials, Granted, Identity, Input, RetainedLimits,
};

/// A server that asks who everybody is.
fn closed_world(workers: u8) -> World {
    World::with(workers, RetainedLimits::default(), |c| {
        c.allow_anonymous = false;
    })
}

fn named(client_id: &str) -> Connect {
    Connect {
        user_name: Some(Text::from("ann")),
        password: Some(Bytes::from_static(b"pw")),
        ..connect(client_id)
    }
}

fn enhanced(client_id: &str) -> Connect {
    let mut connect = connect(client_id);
    connect.properties.authentication_method = Some(Text::from("M"));
    connect.properties.authentication_data = Some(Bytes::from_static(b"first"));
    connect
}

fn auth(reason: ReasonCode, method: &str, data: &'static str) -> Packet {
    Packet::Auth(Box::new(Auth {
        reason,
        authentication_method: Some(Text::from(method)),
        authentication_data: Some(Bytes::from_static(data.as_bytes())),
        ..Auth::default()
    }))
}

fn granted(user_name: &str) -> AuthResult {
    AuthResult::Granted(Granted {
        user_name: Some(user_name.into()),
        ..Granted::default()
    })
}

fn granted_with(user_name: &str, data: &'static str) -> AuthResult {
    AuthResult::Granted(Granted {
        user_name: Some(user_name.into()),
        quota_class: Some(3),
        data: Some(Bytes::from_static(data.as_bytes())),
    })
}

fn go_on(data: &'static str) -> AuthResult {
    AuthResult::Continue {
        data: Bytes::from_static(data.as_bytes()),
    }
}

fn send_connect(world: &mut World, worker: usize, connect: Connect) -> Id {
    let id = world.open(worker);
    world.send(id, Packet::Connect(Box::new(connect)));
    id
}

fn connack(packet: Packet) -> ConnAck {
    match packet {
        Packet::ConnAck(connack) => *connack,
        other => panic!("CONNACK expected, not {other:?}"),
    }
}

fn refused(world: &mut World, id: Id, reason: ReasonCode) {
    let answer = connack(world.read_one(id));
    assert_eq!((answer.reason, answer.session_present), (reason, false));
    assert_eq!(world.wires[id].closed, Some(reason));
}

fn shown(step: AuthStep) -> Credentials {
    match step {
        AuthStep::Connect(credentials) => *credentials,
        other => panic!("a CONNECT expected, not {other:?}"),
    }
}

/// A client that has connected with the method M as user ann.
fn up(world: &mut World, client_id: &str) -> Id {
    let id = send_connect(world, 0, enhanced(client_id));
    world.answer(granted("ann"));
    assert_eq!(connack(world.read_one(id)).reason, ReasonCode::SUCCESS);
    id
}

#[test]
fn who_shows_nothing_is_let_in_only_where_anybody_is() {
    let mut world = World::new(1);
    let id = send_connect(&mut world, 0, connect("a"));
    assert!(world.asked.is_empty());
    assert_eq!(connack(world.read_one(id)).reason, ReasonCode::SUCCESS);
    let mut world = closed_world(1);
    let id = send_connect(&mut world, 0, connect("a"));
    assert!(world.read(id).is_empty() && world.directory.is_empty());
    let credentials = shown(world.answer(AuthResult::Refused(ReasonCode::NOT_AUTHORIZED)));
    assert_eq!((credentials.user_name, credentials.password), (None, None));
    refused(&mut world, id, ReasonCode::NOT_AUTHORIZED);
    assert_eq!(world.counters(0).authentications_failed, 1);
    assert_eq!(world.counters(0).connects_refused, 1);
}

#[test]
fn what_a_client_shows_is_asked_about_even_where_anybody_is_let_in() {
    for allow in [true, false] {
        let mut world = World::with(1, RetainedLimits::default(), |c| c.allow_anonymous = allow);
        let id = send_connect(&mut world, 0, named("a"));
        assert!(world.read(id).is_empty() && world.directory.is_empty());
        let credentials = shown(world.answer(granted("ann")));
        assert_eq!(credentials.client_id.as_str(), "a");
        assert_eq!(credentials.user_name.as_deref(), Some("ann"));
        assert_eq!(credentials.password.as_deref(), Some(&b"pw"[..]));
        assert!(!format!("{credentials:?}").contains("pw"), "it is a secret");
        let answer = connack(world.read_one(id));
        assert_eq!(answer.reason, ReasonCode::SUCCESS);
        // [MQTT-4.12.0-6]
        assert_eq!(answer.properties.authentication_method, None);
    }
}

/// [MQTT-3.1.4-2] [MQTT-3.2.2-7]: the return codes of 3.1.1 are the codec's.
#[test]
fn a_refusal_is_said_in_every_version() {
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut world = closed_world(1);
        let connect = Connect {
            version,
            ..named("a")
        };
        let id = send_connect(&mut world, 0, connect);
        world.answer(AuthResult::Refused(ReasonCode::BAD_USER_NAME_OR_PASSWORD));
        let answer = connack(world.read_one(id));
        assert_eq!(answer.reason, ReasonCode::BAD_USER_NAME_OR_PASSWORD);
        let reason = world.wires[id].closed;
        assert_eq!(reason, Some(ReasonCode::BAD_USER_NAME_OR_PASSWORD));
        assert!(world.directory.is_empty());
    }
}

/// [MQTT-3.1.4-3] only after [MQTT-3.1.4-2]: nobody is pushed out by somebody unknown.
#[test]
fn a_session_is_taken_over_only_by_whom_is_granted() {
    for (worker, clean_start) in [(0, false), (0, true), (1, false), (1, true)] {
        let mut world = closed_world(2);
        let there = Connect {
            user_name: Some(Text::from("ann")),
            ..lasting("a", 100)
        };
        let first = send_connect(&mut world, 0, there.clone());
        world.answer(granted("ann"));
        world.read(first);
        world.subscribe(first, "t", QoS::AtMostOnce);
        let intruder = Connect {
            clean_start,
            ..there.clone()
        };
        let second = send_connect(&mut world, worker, intruder.clone());
        assert_eq!(
            world.wires[first].closed, None,
            "it isn't known who that is"
        );
        world.answer(AuthResult::Refused(ReasonCode::BAD_USER_NAME_OR_PASSWORD));
        refused(&mut world, second, ReasonCode::BAD_USER_NAME_OR_PASSWORD);
        assert_eq!(world.wires[first].closed, None, "the intruder was refused");
        assert_eq!(world.sum(|c| c.subscriptions), 1);
        let third = send_connect(&mut world, worker, intruder);
        world.answer(granted("ann"));
        let taken = Some(ReasonCode::SESSION_TAKEN_OVER);
        assert_eq!(world.wires[first].closed, taken);
        let answer = connack(world.read(third).remove(0));
        assert_eq!(answer.session_present, !clean_start);
    }
}

#[test]
fn packets_behind_connect_wait_for_the_answer() {
    let mut world = closed_world(1);
    let other = send_connect(&mut world, 0, named("s"));
    world.answer(granted("ann"));
    world.read(other);
    world.subscribe(other, "t", QoS::AtMostOnce);
    for is_granted in [false, true] {
        let id = send_connect(&mut world, 0, named("a"));
        assert!(!world.wires[id].reading, "nothing more is read");
        world.send_at_once(id, Packet::Publish(publish("t", "early")));
        assert!(world.payloads(other).is_empty());
        if is_granted {
            world.answer(granted("ann"));
            assert!(world.wires[id].reading);
            assert_eq!(world.payloads(other), ["early"]);
        } else {
            world.answer(AuthResult::Refused(ReasonCode::NOT_AUTHORIZED));
            assert!(world.payloads(other).is_empty());
        }
    }
}

#[test]
fn what_waits_for_the_answer_is_bounded() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.allow_anonymous = false;
        c.limits.held_packets = 2;
    });
    let id = send_connect(&mut world, 0, named("a"));
    for _ in 0..3 {
        world.send_at_once(id, Packet::PingReq);
    }
    refused(&mut world, id, ReasonCode::QUOTA_EXCEEDED);
    assert_eq!(world.counters(0).limit_held_packets, 1);
    // [MQTT-3.1.0-2]
    let id = send_connect(&mut world, 0, named("a"));
    world.send_at_once(id, Packet::Connect(Box::new(named("a"))));
    refused(&mut world, id, ReasonCode::PROTOCOL_ERROR);
    let id = send_connect(&mut world, 0, named("a"));
    world.malformed(id, ReasonCode::MALFORMED_PACKET);
    refused(&mut world, id, ReasonCode::MALFORMED_PACKET);
}

#[test]
fn an_answer_that_nobody_waits_for_does_nothing() {
    let mut world = closed_world(1);
    let id = send_connect(&mut world, 0, named("a"));
    let late = world.asked.pop_front().expect("it is asked");
    world.lose(id);
    world.answer_to(&late, granted("ann"));
    assert_eq!(world.counters(0).clients, 0);
    assert!(world.directory.is_empty());
    // The place is used again: the answer is for the former client.
    let next = send_connect(&mut world, 0, named("b"));
    world.answer_to(&late, granted("ann"));
    let (op, conn) = (late.op, world.wires[next].conn);
    let result = granted("ann");
    let answer = headgate_core::Completion::Authenticated { op, conn, result };
    world.handle(0, Input::Completed(answer));
    assert!(world.read(next).is_empty());
    world.answer(granted("ann"));
    assert_eq!(connack(world.read_one(next)).reason, ReasonCode::SUCCESS);
}

#[test]
fn an_authentication_has_the_time_of_connect_whatever_is_sent() {
    for is_enhanced in [false, true] {
        let mut world = closed_world(1);
        let connect = if is_enhanced {
            enhanced("a")
        } else {
            named("a")
        };
        let id = send_connect(&mut world, 0, connect);
        for _ in 0..3 {
            world.advance_s(3);
            assert_eq!(world.wires[id].closed, None);
            if is_enhanced {
                world.answer(go_on("?"));
                world.send(id, auth(ReasonCode::CONTINUE_AUTHENTICATION, "M", "!"));
            } else {
                world.send_at_once(id, Packet::PingReq);
            }
        }
        world.advance_s(2);
        assert_eq!(
            world.wires[id].closed,
            Some(ReasonCode::MAXIMUM_CONNECT_TIME)
        );
        assert_eq!(world.counters(0).connect_timeouts, 1);
    }
}

/// [MQTT-4.12.0-2] [MQTT-4.12.0-3] [MQTT-4.12.0-5]
#[test]
fn an_exchange_ends_in_connack_with_method_and_data() {
    let mut world = closed_world(1);
    let id = send_connect(&mut world, 0, enhanced("a"));
    let first = shown(world.answer(go_on("challenge")));
    assert_eq!(first.method.as_deref(), Some("M"));
    assert_eq!(first.data.as_deref(), Some(&b"first"[..]));
    let challenge = auth(ReasonCode::CONTINUE_AUTHENTICATION, "M", "challenge");
    assert_eq!(world.read_one(id), challenge);
    assert!(world.wires[id].reading, "the client's turn");
    let response = auth(ReasonCode::CONTINUE_AUTHENTICATION, "M", "response");
    world.send(id, response);
    let data = Some(Bytes::from_static(b"response"));
    assert_eq!(
        world.answer(granted_with("ann", "proof")),
        AuthStep::Continue { data }
    );
    let answer = connack(world.read_one(id));
    assert_eq!(answer.reason, ReasonCode::SUCCESS);
    let properties = answer.properties;
    assert_eq!(properties.authentication_method.as_deref(), Some("M"));
    assert_eq!(
        properties.authentication_data.as_deref(),
        Some(&b"proof"[..])
    );
    world.send(id, Packet::PingReq);
    assert_eq!(world.read_one(id), Packet::PingResp);
    let user_name = Some("ann".into());
    let quota_class = 3;
    let identity = Identity {
        user_name,
        quota_class,
    };
    assert_eq!(world.identity(id), Some(identity));
}

#[test]
fn who_a_client_is_is_known_once_that_is_answered() {
    let mut world = World::new(1);
    let id = world.client(0, "a");
    let nobody = Identity {
        user_name: None,
        quota_class: 0,
    };
    assert_eq!(world.identity(id), Some(nobody));
    let id = send_connect(&mut world, 0, named("b"));
    assert_eq!(world.identity(id), None);
    world.answer(granted("ann"));
    let known = world.identity(id).expect("it is known");
    assert_eq!(known.user_name.as_deref(), Some("ann"));
    world.lose(id);
    assert_eq!(world.identity(id), None);
    // Another class may come with a re-authentication.
    let id = up(&mut world, "c");
    world.send(id, auth(ReasonCode::RE_AUTHENTICATE, "M", "again"));
    world.answer(granted_with("ann", "proof"));
    assert_eq!(world.identity(id).map(|i| i.quota_class), Some(3));
}

#[test]
fn refusals_are_counted_by_their_reason() {
    let reasons = [
        ReasonCode::BAD_USER_NAME_OR_PASSWORD,
        ReasonCode::NOT_AUTHORIZED,
        ReasonCode::BAD_AUTHENTICATION_METHOD,
        ReasonCode::SERVER_BUSY,
        ReasonCode::BANNED,
    ];
    let mut world = closed_world(1);
    for reason in reasons {
        let id = send_connect(&mut world, 0, named("a"));
        world.answer(AuthResult::Refused(reason));
        refused(&mut world, id, reason);
    }
    let counters = world.counters(0);
    assert_eq!(counters.connects_refused, 5);
    let by_reason = [
        counters.connects_refused_password,
        counters.connects_refused_not_authorized,
        counters.connects_refused_method,
        counters.connects_refused_busy,
        counters.connects_refused_otherwise,
    ];
    assert_eq!(by_reason, [1; 5]);
}

/// [MQTT-4.12.0-4]
#[test]
fn an_exchange_may_be_refused_at_any_point() {
    for steps in 0..3 {
        let mut world = closed_world(1);
        let id = send_connect(&mut world, 0, enhanced("a"));
        for _ in 0..steps {
            world.answer(go_on("?"));
            world.read(id);
            world.send(id, auth(ReasonCode::CONTINUE_AUTHENTICATION, "M", "!"));
        }
        world.answer(AuthResult::Refused(ReasonCode::NOT_AUTHORIZED));
        refused(&mut world, id, ReasonCode::NOT_AUTHORIZED);
        assert!(world.directory.is_empty());
    }
}

/// [MQTT-3.1.2-30] [MQTT-4.12.0-3] [MQTT-4.12.0-5] [MQTT-4.12.0-7]
#[test]
fn whoever_breaks_an_exchange_is_refused() {
    let (error, method) = (
        ReasonCode::PROTOCOL_ERROR,
        ReasonCode::BAD_AUTHENTICATION_METHOD,
    );
    let wrong = [
        (auth(ReasonCode::RE_AUTHENTICATE, "M", "!"), error),
        (auth(ReasonCode::SUCCESS, "M", "!"), error),
        (auth(ReasonCode::CONTINUE_AUTHENTICATION, "N", "!"), method),
        (Packet::PingReq, error),
        (Packet::Publish(publish("t", "x")), error),
    ];
    for (packet, reason) in wrong {
        let mut world = closed_world(1);
        let id = send_connect(&mut world, 0, enhanced("a"));
        world.answer(go_on("?"));
        world.read(id);
        world.send(id, packet);
        refused(&mut world, id, reason);
    }
    // It isn't the client's turn.
    let mut world = closed_world(1);
    let id = send_connect(&mut world, 0, enhanced("a"));
    world.send_at_once(id, auth(ReasonCode::CONTINUE_AUTHENTICATION, "M", "!"));
    refused(&mut world, id, error);
    // Without a method there is no AUTH, neither before CONNACK nor behind it.
    let id = send_connect(&mut world, 0, named("b"));
    world.send_at_once(id, auth(ReasonCode::CONTINUE_AUTHENTICATION, "M", "!"));
    refused(&mut world, id, error);
    let mut world = World::new(1);
    let id = world.client(0, "a");
    world.send(id, auth(ReasonCode::RE_AUTHENTICATE, "M", "!"));
    assert_eq!(world.read_one(id), disconnect(error));
}

#[test]
fn a_client_may_leave_in_the_middle_of_an_exchange() {
    let mut world = closed_world(1);
    let id = send_connect(&mut world, 0, enhanced("a"));
    world.answer(go_on("?"));
    world.read(id);
    world.send(id, Packet::Disconnect(Disconnect::default()));
    assert_eq!(world.wires[id].closed, Some(ReasonCode::SUCCESS));
    assert!(world.read(id).is_empty());
    assert_eq!(world.counters(0).connections, 0);
}

/// [MQTT-3.1.2-24]
#[test]
fn a_challenge_that_the_client_cannot_take_is_not_sent() {
    let mut world = closed_world(1);
    let mut connect = enhanced("a");
    connect.properties.maximum_packet_size = Some(20);
    let id = send_connect(&mut world, 0, connect);
    world.answer(go_on("a long challenge"));
    assert!(world.read(id).is_empty());
    assert_eq!(world.wires[id].closed, Some(ReasonCode::PACKET_TOO_LARGE));
}

/// §4.12.1: "can continue to send and receive"
#[test]
fn a_session_goes_on_while_its_client_authenticates_again() {
    let mut world = closed_world(1);
    let id = up(&mut world, "a");
    world.subscribe(id, "t", QoS::AtMostOnce);
    world.read(id);
    world.send(id, auth(ReasonCode::RE_AUTHENTICATE, "M", "again"));
    world.send(id, Packet::Publish(publish("t", "1")));
    assert_eq!(world.payloads(id), ["1"]);
    let (method, data) = (Text::from("M"), Some(Bytes::from_static(b"again")));
    let again = world.answer(go_on("?"));
    assert_eq!(again, AuthStep::Again { method, data });
    let question = auth(ReasonCode::CONTINUE_AUTHENTICATION, "M", "?");
    assert_eq!(world.read_one(id), question);
    world.send(id, Packet::Publish(publish("t", "2")));
    assert_eq!(world.payloads(id), ["2"]);
    world.send(id, auth(ReasonCode::CONTINUE_AUTHENTICATION, "M", "!"));
    world.answer(granted_with("ann", "proof"));
    assert_eq!(world.read_one(id), auth(ReasonCode::SUCCESS, "M", "proof"));
    // And once more.
    world.send(id, auth(ReasonCode::RE_AUTHENTICATE, "M", "again"));
    world.answer(granted_with("ann", "proof"));
    assert_eq!(world.read_one(id), auth(ReasonCode::SUCCESS, "M", "proof"));
    assert_eq!(world.wires[id].closed, None);
}

/// [MQTT-4.12.1-2]
#[test]
fn a_re_authentication_that_fails_ends_the_connection() {
    let results = [
        (
            AuthResult::Refused(ReasonCode::NOT_AUTHORIZED),
            ReasonCode::NOT_AUTHORIZED,
        ),
        // DISCONNECT has no 0x86.
        (
            AuthResult::Refused(ReasonCode::BAD_USER_NAME_OR_PASSWORD),
            ReasonCode::NOT_AUTHORIZED,
        ),
        (
            AuthResult::Refused(ReasonCode::SERVER_BUSY),
            ReasonCode::SERVER_BUSY,
        ),
        // The session is ann's.
        (granted("bob"), ReasonCode::NOT_AUTHORIZED),
    ];
    for (result, reason) in results {
        let mut world = closed_world(1);
        let id = up(&mut world, "a");
        world.send(id, auth(ReasonCode::RE_AUTHENTICATE, "M", "again"));
        world.answer(result);
        assert_eq!(world.read_one(id), disconnect(reason));
        assert_eq!(world.wires[id].closed, Some(reason));
        assert_eq!(world.counters(0).authentications_failed, 1);
    }
}

/// [MQTT-4.12.1-1] [MQTT-4.12.0-5]
#[test]
fn the_method_stays_and_steps_do_not_overlap() {
    let (error, method) = (
        ReasonCode::PROTOCOL_ERROR,
        ReasonCode::BAD_AUTHENTICATION_METHOD,
    );
    let again = |method| auth(ReasonCode::RE_AUTHENTICATE, method, "again");
    let next = |method| auth(ReasonCode::CONTINUE_AUTHENTICATION, method, "!");
    for (packets, reason) in [
        (vec![again("N")], method),
        (vec![next("M")], error),
        (vec![auth(ReasonCode::SUCCESS, "M", "")], error),
        (vec![again("M"), again("M")], error),
        (vec![again("M"), next("M")], error),
    ] {
        let mut world = closed_world(1);
        let id = up(&mut world, "a");
        for packet in packets {
            world.send(id, packet);
        }
        assert_eq!(world.read_one(id), disconnect(reason));
    }
    for (packet, reason) in [(again("M"), error), (next("N"), method)] {
        let mut world = closed_world(1);
        let id = up(&mut world, "a");
        world.send(id, again("M"));
        world.answer(go_on("?"));
        world.read(id);
        world.send(id, packet);
        assert_eq!(world.read_one(id), disconnect(reason));
    }
}

#[test]
fn a_shutdown_ends_an_authentication() {
    let mut world = closed_world(1);
    let id = send_connect(&mut world, 0, enhanced("a"));
    let late = world.asked.pop_front().expect("it is asked");
    world.handle(0, Input::Shutdown);
    assert!(world.wires[id].closed.is_some());
    world.answer_to(&late, granted("ann"));
    assert!(world.read(id).is_empty());
    assert_eq!(world.counters(0).connections, 0);
}

#[test]
fn a_certificate_is_shown_with_connect() {
    let mut world = World::new(1);
    let certificate = std::sync::Arc::new(ClientCertificate {
        common_name: Some(Text::from("ann")),
    });
    let id = world.open_with(0, Some(certificate.clone()));
    world.send(id, Packet::Connect(Box::new(connect("a"))));
    // Whoever shows one isn't anonymous, unless it is said so.
    let credentials = shown(world.answer(granted("ann")));
    assert_eq!(credentials.certificate, Some(certificate));
    assert_eq!(connack(world.read_one(id)).reason, ReasonCode::SUCCESS);
    // It doesn't go on to the next connection.
    let next = send_connect(&mut world, 0, named("b"));
    let credentials = shown(world.answer(granted("bob")));
    assert_eq!(credentials.certificate, None);
    assert_eq!(connack(world.read_one(next)).reason, ReasonCode::SUCCESS);
}
