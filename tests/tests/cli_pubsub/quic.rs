//! What the commands do over QUIC besides: 0-RTT data, tokens from one process to the next, qlog.

use super::{done, failed, flags, headgate, over_quic, over_tcp};
use headgate_tests::broker::Broker;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Duration,
};

const HELLO: [&str; 6] = ["-t", "a", "-q", "1", "-m", "hello"];

/// The words, and one more flag with its value.
fn with<'a>(flag: &'a str, value: &'a str) -> Vec<&'a str> {
    [&HELLO[..], &[flag, value]].concat()
}

#[test]
fn publishes_with_0_rtt_data() {
    let broker = Broker::start("");
    let early = || broker.metrics().sum("headgate_early_connections_total");
    let server = over_quic(&broker);
    // Clean Start would wait for the end of the handshake.
    let words = [&HELLO[..], &["--0rtt", "-i", "early", "-c", "-x", "60"]].concat();
    done(&mut headgate("pub", &server, &words));
    assert_eq!(early(), 1.0);
    done(&mut headgate("pub", &server, &HELLO));
    assert_eq!(early(), 1.0, "only where it is asked for");
}

/// DISCONNECT leaves right behind the message, in the same packet as a rule.
#[test]
fn a_message_in_a_datagram_or_on_a_data_stream_is_not_lost_with_the_session() {
    let broker = Broker::start("");
    let server = over_quic(&broker);
    let rounds = 20;
    for round in 0..rounds {
        for (topic, beside) in [("d", &["--datagram"][..]), ("s", &["--streams", "2"])] {
            let text = format!("{topic} {round}");
            let message = ["-t", topic, "-r", "-m", &text];
            done(&mut headgate("pub", &server, &[&message, beside].concat()));
            let one = ["-t", topic, "-C", "1"];
            let told = done(&mut headgate("sub", &server, &[&one, beside].concat()));
            assert_eq!(told.trim_end(), text);
        }
    }
    let rounds = f64::from(rounds);
    broker.counts("headgate_publish_datagrams_received_total", rounds);
    // One of each publisher's and one of each subscriber's.
    broker.counts("headgate_data_streams_opened_total", 2.0 * rounds);
}

#[test]
fn says_so_where_0_rtt_data_is_not_taken() {
    let broker = Broker::start("[quic]\nearly_data = false");
    let words = [&HELLO[..], &["--0rtt"]].concat();
    let (code, errors) = failed(&mut headgate("pub", &over_quic(&broker), &words));
    assert_eq!(code, 1);
    assert!(errors.contains("no 0-RTT data"), "{errors}");
}

/// Where every new connection has to prove its address, one with a token of an earlier one has done so.
#[test]
fn a_token_in_a_file_saves_the_retry() {
    let broker = Broker::start("[kernel]\nretry = \"always\"");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokens.json");
    let words = with("--resume-file", file.to_str().expect("UTF-8"));
    let retries = || broker.metrics().sum("headgate_retries_total");
    // The broker takes no token of the second in which it began, since one from before a restart would look the same.
    std::thread::sleep(Duration::from_secs(1));
    done(&mut headgate("pub", &over_quic(&broker), &words));
    let first = retries();
    // One for each packet of the ClientHello.
    assert!(first >= 1.0);
    for turn in 0..3 {
        done(&mut headgate("pub", &over_quic(&broker), &words));
        assert_eq!(retries(), first, "turn {turn}");
    }
    done(&mut headgate("pub", &over_quic(&broker), &HELLO));
    assert!(retries() > first, "without the file");
    std::fs::write(&file, "something else").expect("a file");
    let (code, errors) = failed(&mut headgate("pub", &over_quic(&broker), &words));
    assert_eq!(code, 1);
    assert!(errors.contains("tokens.json"), "{errors}");
}

#[test]
fn writes_a_qlog() {
    let broker = Broker::start("");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("one.sqlog");
    let words = with("--qlog", file.to_str().expect("UTF-8"));
    done(&mut headgate("pub", &over_quic(&broker), &words));
    assert!(count(&file, "transport:packet_sent") >= 3);
    assert!(count(&file, "transport:packet_received") >= 2);
}

/// Of its own side, and for the one connection that was asked for.
#[test]
fn the_broker_writes_a_qlog_of_one_connection() {
    let broker = Broker::start("");
    let file = PathBuf::from(broker.ctl_says(&["qlog", "127.0.0.1"]).trim());
    assert!(file.starts_with(broker.state_dir()), "{}", file.display());
    let server = over_quic(&broker);
    done(&mut headgate("pub", &server, &HELLO));
    done(&mut headgate("pub", &server, &HELLO));
    assert!(count(&file, "transport:packet_sent") >= 2);
    assert!(count(&file, "transport:packet_received") >= 3);
    let of_connections: HashSet<String> = events(&file)
        .iter()
        .filter_map(|event| Some(event["group_id"].as_str()?.to_owned()))
        .collect();
    assert_eq!(of_connections.len(), 1, "the other one is not in it");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&file).expect("the file").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

/// The records of a qlog behind its header. RFC 7464: each begins with U+001E and ends with a line feed.
fn events(file: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(file).expect("UTF-8");
    let mut records = text.split('\u{1e}').skip(1);
    let mut next = || Some(serde_json::from_str(records.next()?).expect("JSON"));
    let header: serde_json::Value = next().expect("a header");
    assert!(header["qlog_version"].is_string(), "{header}");
    std::iter::from_fn(next).collect()
}

/// How many of them have this name.
fn count(file: &Path, name: &str) -> usize {
    let of_name = |event: &&serde_json::Value| event["name"] == name;
    events(file).iter().filter(of_name).count()
}

#[test]
fn other_transports_have_none_of_it() {
    let broker = Broker::start("");
    for more in [&["--0rtt"][..], &["--resume-file", "f"], &["--qlog", "f"]] {
        let words = [&HELLO[..], more].concat();
        for server in [over_tcp(&broker), flags(&["-L", "mqtts://localhost"])] {
            let (code, errors) = failed(&mut headgate("pub", &server, &words));
            assert_eq!(code, 2, "{errors}");
            assert!(errors.contains("quic://"), "{errors}");
        }
    }
}
