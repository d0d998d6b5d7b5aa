//! `headgate bench` from outside: against headgate over each transport, and against mosquitto.

use headgate_tests::{
    broker::{self, Broker},
    load::{Carrier, Mosquitto},
    skip,
};
use serde_json::Value;
use std::{
    fs,
    net::TcpListener,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A run of the command, and what it has written.
struct Run {
    output: Output,
    report: Value,
    picture: String,
}

/// Runs `headgate bench` with words that are parted by blanks, and without waiting for quiet.
fn bench(words: &str) -> Run {
    let folder = TempDir::new().expect("a temporary folder");
    let (json, svg) = (folder.path().join("json"), folder.path().join("svg"));
    let mut command = Command::new(broker::binary());
    command.arg("bench").args(words.split(' '));
    command.args([
        "--settle",
        "0.1",
        "--interval",
        "0.1",
        "--quiet",
        "--connect-timeout",
        "60",
        "--json",
    ]);
    command.arg(&json).arg("--svg").arg(&svg);
    let output = command.output().expect("the command can be executed");
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    Run {
        output,
        report: serde_json::from_str(&read(json)).unwrap_or_default(),
        picture: read(svg),
    }
}

/// The report of a run that must succeed.
fn done(words: &str) -> Value {
    let run = bench(words);
    let errors = String::from_utf8_lossy(&run.output.stderr);
    let status = run.output.status;
    assert!(status.success(), "{words}: {status}: {errors}");
    run.report
}

/// Exit code and standard error of a run that must fail.
fn failed(words: &str) -> (i32, String) {
    let output = bench(words).output;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{words} succeeds");
    (output.status.code().expect("an exit code"), errors)
}

/// All messages were published, and each came to each subscriber exactly once.
fn is_complete(words: &str, published: Option<u64>, subscribers: u64) {
    let report = done(words);
    let messages = &report["messages"];
    let count = |name: &str| messages[name].as_u64().expect(name);
    if let Some(published) = published {
        assert_eq!(count("published"), published, "{words}");
    }
    assert!(count("published") > 0, "{words}");
    assert_eq!(count("offered"), count("published"), "{words}");
    assert_eq!(
        count("delivered"),
        count("published") * subscribers,
        "{words}"
    );
    assert_eq!(messages["exactly_once"], true, "{words}");
    assert_eq!(
        messages["latency"]["count"], messages["delivered"],
        "{words}"
    );
    assert_eq!(report["failures"].as_array().map(Vec::len), Some(0));
}

fn url(scheme: &str, port: u16, broker: &Broker) -> String {
    let ca = broker.ca_certificate().display().to_string();
    format!("-L {scheme}://localhost:{port} --cafile {ca}")
}

#[test]
fn each_message_comes_to_each_subscriber_over_each_transport() {
    let broker = Broker::start("");
    let (quic, tls) = (broker.quic().port(), broker.tls().port());
    let quic = url("quic", quic, &broker);
    let tls = url("mqtts", tls, &broker);
    let wss = url("wss", broker.wss().port(), &broker);
    let tcp = format!("-p {}", broker.tcp().port());
    let ws = format!("-L ws://localhost:{}", broker.ws().port());
    let paced = "--rate 200 --duration 0.5 --drain 60";
    let saturated = "--window 20 --duration 0.3 --drain 60";
    for (words, published, subscribers) in [
        (
            format!("p2p {quic} --publishers 5 --qos 1 {paced}"),
            Some(100),
            1,
        ),
        (
            format!("fan-out {quic} --subscribers 20 --qos 2 {saturated}"),
            None,
            20,
        ),
        (
            format!("fan-in {tcp} --publishers 20 {paced}"),
            Some(100),
            1,
        ),
        (
            format!("p2p {tcp} -V mqttv311 --qos 2 {saturated}"),
            None,
            1,
        ),
        (
            format!("fan-out {tls} --size 20000 --qos 1 {saturated}"),
            None,
            10,
        ),
        // One subscription to each of ten topics.
        (
            format!(
                "mixed {ws} --qos 0:1,1:1,2:1 --topics 10 --subscriptions 1 --size 16..9000 {paced}"
            ),
            Some(100),
            1,
        ),
        (
            format!("p2p {wss} --source 127.0.0.0/29 {saturated}"),
            None,
            1,
        ),
    ] {
        is_complete(&words, published, subscribers);
    }
}

#[test]
fn idle_clients_get_messages_and_come_back_after_storms() {
    let broker = Broker::start("");
    let quic = url("quic", broker.quic().port(), &broker);
    let sources = "--source 127.0.0.1 --source 127.0.0.2";
    let words = format!(
        "storm {quic} {sources} --clients 60 --keepalive 10 --rate 100 --duration 1.5 --storms 2 --resume --drain 60"
    );
    let run = bench(&words);
    let errors = String::from_utf8_lossy(&run.output.stderr);
    assert!(run.output.status.success(), "{errors}");
    let report = run.report;
    assert_eq!(report["messages"]["delivered"], 150);
    // The publisher too, and all others twice again.
    assert_eq!(report["connect"]["count"], 61 + 2 * 60);
    assert!(
        report["ping"]["count"]
            .as_u64()
            .is_some_and(|count| count > 0)
    );
    let storms = report["storms"].as_array().expect("a list");
    assert!(storms.iter().all(|storm| storm["back"] == 60) && storms.len() == 2);
    // It finds the process that listens.
    assert_eq!(report["broker"]["pid"], broker.pid());
    let phases = report["phases"].as_array().expect("a list").iter();
    let names: Vec<_> = phases
        .map(|phase| phase["name"].as_str().unwrap_or_default())
        .collect();
    let wanted = [
        "connect",
        "settle",
        "publish",
        "drain",
        "storm 1",
        "after storm 1",
        "storm 2",
        "after storm 2",
    ];
    assert_eq!(names, wanted);
    let samples = report["series"].as_array().expect("a list");
    let resident = |sample: &Value| {
        sample["broker_resident_bytes"]
            .as_u64()
            .is_some_and(|b| b > 1 << 20)
    };
    assert!(samples.len() >= 8 && samples.iter().all(resident));
    is_a_picture(&run.picture);
    // All have disconnected, also those that slept.
    let deadline = Instant::now() + Duration::from_secs(60);
    while broker.metrics().sum("headgate_clients{") > 0.0 {
        assert!(Instant::now() < deadline, "somebody is still connected");
        thread::sleep(Duration::from_millis(20));
    }
}

/// It is XML, has what the panels show, and nothing lies outside.
fn is_a_picture(svg: &str) {
    let document = roxmltree::Document::parse(svg).expect("XML");
    assert_eq!(document.root_element().tag_name().name(), "svg");
    let texts: Vec<_> = document
        .descendants()
        .filter_map(|node| node.text())
        .collect();
    for text in [
        "latency",
        "throughput, per second",
        "resident memory",
        "broker",
        "p99.9",
        "time, seconds",
    ] {
        assert!(texts.contains(&text), "{text}: {texts:?}");
    }
    let lines = document
        .descendants()
        .filter(|node| node.has_tag_name("polyline"));
    let points: Vec<(f64, f64)> = lines
        .filter_map(|line| line.attribute("points"))
        .flat_map(str::split_whitespace)
        .filter_map(|point| point.split_once(','))
        .map(|(x, y)| (x.parse().expect("a number"), y.parse().expect("a number")))
        .collect();
    assert!(points.len() > 20, "{svg}");
    let is_inside = |(x, y): &(f64, f64)| (0.0..=960.0).contains(x) && (0.0..=800.0).contains(y);
    assert!(points.iter().all(is_inside));
}

#[test]
fn it_measures_a_broker_of_others() {
    let mosquitto = match Mosquitto::start() {
        Ok(mosquitto) => mosquitto,
        Err(reason) => skip!("{reason}"),
    };
    let address = mosquitto.address(Carrier::Tcp).expect("it has TCP");
    let tcp = format!("-L mqtt://{address}");
    let paced = "--rate 200 --duration 0.5 --drain 60";
    let saturated = "--window 20 --duration 0.3 --drain 60";
    is_complete(&format!("p2p {tcp} --qos 1 {saturated}"), None, 1);
    is_complete(
        &format!("fan-out {tcp} --qos 2 --subscribers 7 {paced}"),
        Some(100),
        7,
    );
    is_complete(&format!("fan-in {tcp} -V mqttv311 {paced}"), Some(100), 1);
    let report = done(&format!("idle {tcp} --clients 50 --duration 0.2"));
    assert_eq!(report["clients"]["not_connected"], 0);
    assert_eq!(report["broker"]["pid"], mosquitto.pid());
}

#[test]
fn what_goes_wrong_is_said_and_is_no_success() {
    let broker = Broker::start("[limits]\nconnections = 10\n");
    let tcp = format!("-p {}", broker.tcp().port());
    let (code, errors) = failed(&format!("idle {tcp} --clients 20 --duration 0.1"));
    assert_eq!(code, 1, "{errors}");
    assert!(
        errors.contains("of 20 clients did not come through"),
        "{errors}"
    );
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let closed = closed.expect("a free port").port();
    let (code, errors) = failed(&format!("p2p -L mqtt://127.0.0.1:{closed}"));
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("is the broker running there"), "{errors}");
    let tls = format!("-L mqtts://localhost:{}", broker.tls().port());
    let (code, errors) = failed(&format!("p2p {tls}"));
    assert!(code == 1 && errors.contains("--cafile"), "{errors}");
    let (code, errors) = failed(&format!("idle {tcp} --window 5"));
    assert!(code == 2 && errors.contains("--rate"), "{errors}");
}
