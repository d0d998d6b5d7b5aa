//! `headgate store`, and what a broker says of a store that it can't use.

use headgate_codec::{Packet, QoS, ReasonCode};
use headgate_tests::{
    broker::{Broker, Settings, binary},
    rig::pin_dir,
    tcp_client::{TcpClient, connect, publish},
};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("headgate-store-")
        .tempdir()
        .expect("a folder for the state")
}

fn start(state_dir: &Path) -> Broker {
    start_at("always", state_dir)
}

/// The same at this level of `store.fsync`.
fn start_at(fsync: &str, state_dir: &Path) -> Broker {
    Broker::start_with(Settings {
        state_dir: Some(state_dir.to_owned()),
        config: format!("[store]\nfsync = {fsync:?}\nfsync_interval_ms = 10"),
        ..Settings::default()
    })
}

/// Runs `headgate store`, with this on its standard input.
fn store(arguments: &[&str], path: &Path, input: &[u8]) -> Output {
    let mut child = Command::new(binary())
        .arg("store")
        .args(arguments)
        .arg("--path")
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("headgate starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    // A command that refuses at once doesn't read.
    let _refused = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// What `headgate run` says of a store that it refuses. It leaves nothing in the kernel.
fn refused(state: &Path) -> String {
    refused_at("always", state)
}

/// The same at this level of `store.fsync`.
fn refused_at(fsync: &str, state: &Path) -> String {
    let pins = pin_dir();
    let started = Command::new(binary())
        .args([
            "run",
            "--set",
            "mqtt.allow_anonymous=true",
            "--listen-quic",
            "",
        ])
        .args([
            "--listen-tcp",
            "127.0.0.1:0",
            "--admin-http",
            "",
            "--kernel-mode",
            "off",
        ])
        .args(["--set", &format!("store.fsync={fsync}")])
        .arg("--pin-dir")
        .arg(&pins)
        .arg("--state-dir")
        .arg(state)
        .stdin(Stdio::null())
        .output()
        .expect("headgate starts");
    assert_eq!(started.status.code(), Some(1), "{}", said(&started));
    assert!(!pins.exists(), "{} is left", pins.display());
    let said = said(&started);
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// A state folder whose broker was killed with a session, `messages` queued messages and a retained one in its store.
fn filled(messages: usize) -> (TempDir, PathBuf) {
    filled_until("always", |sent, _| sent == messages)
}

/// The same at this level of `store.fsync`, with as many messages as are enough, given how many were sent and the store.
fn filled_until(fsync: &str, is_enough: impl Fn(usize, &Path) -> bool) -> (TempDir, PathBuf) {
    const MESSAGES_MAX: usize = 5_000;
    let state = folder();
    let path = state.path().join("store");
    let mut broker = start_at(fsync, state.path());
    let mut subscribe = connect("s");
    subscribe.clean_start = false;
    subscribe.properties.session_expiry_s = Some(3_600);
    let (mut subscriber, reason) = TcpClient::try_connect(broker.tcp(), subscribe);
    assert_eq!(reason, ReasonCode::SUCCESS);
    subscriber.subscribe(&["a/#", "$share/g/b"], QoS::ExactlyOnce);
    drop(subscriber);
    let mut publisher = TcpClient::connect(broker.tcp(), "p");
    for n in (0..).take_while(|n| !is_enough(*n, &path)) {
        assert!(n < MESSAGES_MAX, "it is never enough");
        let mut message = publish("a/b", QoS::AtLeastOnce, format!("message {n}"));
        message.retain = n == 0;
        assert_eq!(publisher.publish_acked(message), ReasonCode::SUCCESS);
    }
    broker.signal(nix::sys::signal::Signal::SIGKILL);
    let _killed = broker.wait();
    (state, path)
}

fn journal(store: &Path) -> PathBuf {
    let entries = fs::read_dir(store.join("data"))
        .expect("it is there")
        .flatten();
    let mut journals = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"));
    journals.next().expect("there is a journal")
}

#[test]
fn a_store_is_exported_imported_and_the_same() {
    let (_state, path) = filled(3);
    let checked = store(&["check"], &path, &[]);
    assert!(checked.status.success(), "{}", said(&checked));
    let text = said(&checked);
    assert!(
        text.contains("1 sessions, 2 subscriptions, 3 queued messages, 1 retained messages"),
        "{text}"
    );
    let exported = store(&["export"], &path, &[]);
    assert!(exported.status.success(), "{}", said(&exported));
    for line in exported
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let line: serde_json::Value = serde_json::from_slice(line).expect("a line is JSON");
        assert!(line["kind"].is_string(), "{line}");
    }

    let state = folder();
    let copy = state.path().join("store");
    let imported = store(&["import"], &copy, &exported.stdout);
    assert!(imported.status.success(), "{}", said(&imported));
    let again = store(&["export"], &copy, &[]);
    assert_eq!(again.stdout, exported.stdout);
    // Not a second time.
    let refused = store(&["import"], &copy, &exported.stdout);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).contains("there is a store"),
        "{}",
        said(&refused)
    );

    // A broker goes on with it.
    let broker = start(state.path());
    let mut resume = connect("s");
    resume.clean_start = false;
    resume.properties.session_expiry_s = Some(3_600);
    let (mut client, _) = TcpClient::try_connect(broker.tcp(), resume);
    for n in 0..3 {
        match client.receive() {
            Some(Packet::Publish(message)) => {
                assert_eq!(message.payload, format!("message {n}").as_bytes());
            }
            other => panic!("expected PUBLISH, got {other:?}"),
        }
    }
}

/// A will that had come due when the broker was lost is published by the next one, and then it is out of the store.
#[test]
fn a_will_that_was_due_is_published_after_a_start() {
    let state = folder();
    let path = state.path().join("store");
    let id = "0000000100000000000000000007";
    let lines = [
        r#"{"kind":"store","format":1,"by":"a test"}"#.to_owned(),
        format!(
            r#"{{"kind":"session","id":"{id}","client_id":"s","epoch":1,"expiry_s":3600,"version":5,"send_quota":9,"sequence":1,"will":null}}"#
        ),
        format!(
            r#"{{"kind":"subscription","id":"{id}","filter":"t","options":1,"subscription_id":null}}"#
        ),
        r#"{"kind":"will","id":"0000000101000000000000000008","message":{"topic":"t","payload":"Z29uZQ==","qos":1,"retain":false,"expires_at_ms":null,"properties":null}}"#.to_owned(),
    ]
    .join("\n");
    let imported = store(&["import"], &path, lines.as_bytes());
    assert!(imported.status.success(), "{}", said(&imported));
    let wills = || {
        let exported = store(&["export"], &path, &[]);
        let text = String::from_utf8(exported.stdout).expect("it is JSON");
        let lines = text
            .lines()
            .filter(|line| line.contains("\"kind\":\"will\""));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(wills(), [lines.lines().last().expect("there are some")]);
    let mut broker = start(state.path());
    let mut resume = connect("s");
    resume.clean_start = false;
    resume.properties.session_expiry_s = Some(3_600);
    let (mut client, _) = TcpClient::try_connect(broker.tcp(), resume);
    match client.receive() {
        Some(Packet::Publish(message)) => assert_eq!(message.payload, "gone"),
        other => panic!("expected PUBLISH, got {other:?}"),
    }
    broker.signal(nix::sys::signal::Signal::SIGTERM);
    let _ended = broker.wait();
    assert!(wills().is_empty());
}

#[test]
fn what_is_no_export_is_refused_with_its_line_and_nothing_is_made() {
    let state = folder();
    let path = state.path().join("store");
    let first = r#"{"kind":"store","format":1,"by":"a test"}"#;
    for (input, expected) in [
        ("nonsense".to_owned(), "line 1"),
        (
            r#"{"kind":"store","format":99,"by":"x"}"#.to_owned(),
            "newer",
        ),
        (
            format!("{first}\n{{\"kind\":\"received\",\"id\":\"12\",\"packet_id\":1}}"),
            "line 2",
        ),
        (format!("{first}\n{first}"), "line 2"),
    ] {
        let output = store(&["import"], &path, input.as_bytes());
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(expected), "{}", said(&output));
        assert!(!path.join("format").exists());
    }
}

#[test]
fn a_store_in_use_is_refused() {
    let state = folder();
    let broker = start(state.path());
    // Its listeners are open before its store is.
    broker.status();
    let path = state.path().join("store");
    for arguments in [&["check"][..], &["export"], &["import"]] {
        let output = store(arguments, &path, &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("in use"), "{}", said(&output));
    }
    assert!(refused(state.path()).contains("in use"));
    drop(broker);
}

#[test]
fn a_store_of_a_newer_version_is_refused_with_what_to_do() {
    let (state, path) = filled(1);
    fs::write(path.join("format"), "headgate store 2\n").expect("it can be written");
    let text = refused(state.path());
    assert!(
        text.contains("newer headgate") && text.contains("export"),
        "{text}"
    );
    let output = store(&["check"], &path, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("newer headgate"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    for missing in ["data", "data/version", "data/keyspaces"] {
        let (state, path) = filled(1);
        let file = path.join(missing);
        let removed = if file.is_dir() {
            fs::remove_dir_all(&file)
        } else {
            fs::remove_file(&file)
        };
        removed.expect("it was there");
        let text = refused(state.path());
        assert!(text.contains("missing") && text.contains(missing), "{text}");
    }
}

#[test]
fn a_torn_tail_is_repaired_and_reported() {
    let (state, path) = filled(3);
    let journal = journal(&path);
    let bytes = fs::read(&journal).expect("it can be read");
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("something was written");
    fs::write(&journal, &bytes[..end - 5]).expect("it can be written");
    let broker = start(state.path());
    broker.status();
    assert!(broker.log().contains("cut off"), "{}", broker.log());
    assert_eq!(broker.metrics().sum("headgate_store_repairs_total"), 1.0);
}

#[test]
fn a_flipped_bit_is_an_error_until_it_is_repaired_by_command() {
    let (state, path) = filled(20);
    let journal = journal(&path);
    let mut bytes = fs::read(&journal).expect("it can be read");
    let needle = b"message 2";
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle);
    bytes[at.expect("the journal has the message")] ^= 4;
    fs::write(&journal, &bytes).expect("it can be written");
    let text = refused(state.path());
    assert!(
        text.contains("damaged") && text.contains("check --repair"),
        "{text}"
    );
    let output = store(&["check"], &path, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let output = store(&["check", "--repair"], &path, &[]);
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output);
    assert!(
        text.contains("repaired") && text.contains("2 queued messages"),
        "{text}"
    );
    drop(start(state.path()));
}

fn place_of(needle: &[u8], bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}

/// Without waiting for the disk a loss of power may leave a hole in what wasn't synced: the journal is cut there. A hole
/// in what had been synced is damage as ever.
#[test]
fn a_flipped_bit_is_told_from_a_hole_if_it_is_in_what_was_synced() {
    let needle = b"message 2";
    let is_noted_behind = |store: &Path| {
        let bytes = fs::read(journal(store)).expect("it can be read");
        place_of(needle, &bytes).is_some_and(|at| place_of(b"\0synced", &bytes[at..]).is_some())
    };
    for (fsync, is_noted) in [("interval", true), ("never", false)] {
        let (state, path) = filled_until(fsync, |sent, store| match is_noted {
            true => is_noted_behind(store),
            false => sent == 20,
        });
        let journal = journal(&path);
        let mut bytes = fs::read(&journal).expect("it can be read");
        let at = place_of(needle, &bytes).expect("the journal has the message");
        bytes[at] ^= 4;
        fs::write(&journal, &bytes).expect("it can be written");
        if is_noted {
            let text = refused_at(fsync, state.path());
            let is_said = text.contains("damaged") && text.contains("check --repair");
            assert!(is_said, "{text}");
        } else {
            let broker = start_at(fsync, state.path());
            assert!(broker.log().contains("has a hole"), "{}", broker.log());
            assert_eq!(broker.metrics().sum("headgate_store_repairs_total"), 1.0);
        }
    }
}

/// In the engine's tables damage shows only when it is read, and by then the broker has begun.
#[test]
fn a_flipped_bit_in_a_table_ends_the_broker_with_what_to_do() {
    let state = folder();
    let path = state.path().join("store");
    let mut lines = r#"{"kind":"store","format":1,"by":"a test"}"#.to_owned();
    let payload = "eHh4".repeat(300);
    for n in 0..100 {
        lines.push_str(&format!(
            r#"
{{"kind":"retained","message":{{"topic":"t/{n}","payload":"{payload}","qos":1,"retain":true,"expires_at_ms":null,"properties":null}}}}"#
        ));
    }
    let imported = store(&["import"], &path, lines.as_bytes());
    assert!(imported.status.success(), "{}", said(&imported));
    let table = largest_file(&path.join("data/keyspaces"));
    let mut bytes = fs::read(&table).expect("it can be read");
    let middle = bytes.len() / 2;
    assert_eq!(bytes[middle], b'x', "it is a payload");
    bytes[middle] ^= 1;
    fs::write(&table, &bytes).expect("it can be written");
    let output = store(&["check"], &path, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for text in [said(&output), refused(state.path())] {
        assert!(
            text.contains("damaged") && text.contains("Put a copy of it back"),
            "{text}"
        );
    }
}

fn largest_file(folder: &Path) -> PathBuf {
    let (mut folders, mut largest) = (vec![folder.to_owned()], (0, PathBuf::new()));
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("it is a folder").flatten() {
            let data = entry.metadata().expect("it is there");
            match data.is_dir() {
                true => folders.push(entry.path()),
                false => largest = largest.max((data.len(), entry.path())),
            }
        }
    }
    largest.1
}

#[test]
fn help_says_what_each_command_does() {
    let output = Command::new(binary())
        .args(["store", "--help"])
        .output()
        .expect("headgate starts");
    let text = said(&output);
    for word in ["check", "export", "import", "JSON lines", "Examples"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}
