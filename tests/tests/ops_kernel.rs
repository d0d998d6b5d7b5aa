//! Quotas and lists in the kernel's maps: an edit with bpftool, a client that the kernel polices while its neighbour goes on,
//! and a source that XDP drops.

use headgate_codec::{Packet, QoS};
use headgate_tests::{
    broker::{Broker, Metrics, Settings, kernel_available},
    netns::{self, Namespace},
    quic_client::{Client, Error, endpoint},
    skip,
    tcp_client::TcpClient,
};
use serde_json::Value;
use std::{
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

fn bpftool(args: &[&str]) -> Result<String, String> {
    let mut command = Command::new("bpftool");
    let output = command.args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("needs bpftool: {error}"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(said(&output.stdout)),
        false => Err(said(&output.stderr)),
    }
}

fn why_not() -> Option<String> {
    let kernel = kernel_available().and_then(|()| netns::available());
    let tool = kernel.and_then(|()| bpftool(&["version"]).map(drop));
    tool.err()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Writes a number into a field of the first entry of a map of 88 bytes.
fn edit_first(pin: &Path, offset: usize, number: u64) {
    let pin = pin.to_str().expect("a path that is text");
    let key = ["key", "hex", "00", "00", "00", "00"];
    let lookup = [&["-j", "map", "lookup", "pinned", pin][..], &key].concat();
    let json: Value = serde_json::from_str(&bpftool(&lookup).expect("it is there")).expect("JSON");
    let bytes = json["value"].as_array().expect("bytes").iter();
    let mut bytes: Vec<String> = bytes
        .map(|byte| {
            byte.as_str()
                .expect("a byte")
                .trim_start_matches("0x")
                .to_owned()
        })
        .collect();
    assert_eq!(bytes.len(), 88, "the layout of the map");
    for (place, byte) in number.to_le_bytes().iter().enumerate() {
        bytes[offset + place] = format!("{byte:02x}");
    }
    let value: Vec<&str> = bytes.iter().map(String::as_str).collect();
    let update = [
        &["map", "update", "pinned", pin][..],
        &key,
        &["value", "hex"],
        &value,
    ]
    .concat();
    bpftool(&update).expect("the kernel takes it");
}

#[test]
fn an_edit_with_bpftool_is_in_force_soon_and_is_told() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let config = "[kernel]\nmode = \"auto\"\ninterfaces = []\n";
    let broker = Broker::start(config);
    let accepted = |client: &mut TcpClient| {
        let codes = client.subscribe(&["a", "b", "c"], QoS::AtMostOnce);
        codes.iter().filter(|code| code.0 < 0x80).count()
    };
    let mut client = TcpClient::connect(broker.tcp(), "c");
    // After the name (32 bytes): packets, bytes, messages, connections, subscriptions.
    edit_first(&broker.pin_dir().join("quotas"), 32 + 4 * 8, 2);
    let begin = Instant::now();
    let subscriptions = || {
        let json = broker.ctl_says(&["quota", "list", "--json"]);
        let json: Value = serde_json::from_str(&json).expect("it is JSON");
        json[0]["values"]["subscriptions"].clone()
    };
    wait_until("the edit is taken over", || subscriptions()["by"] == "map");
    eprintln!("taken over after {:?}", begin.elapsed());
    assert_eq!(subscriptions()["value"], "2");
    wait_until("and it is in force", || {
        let unsubscribed = TcpClient::connect(broker.tcp(), "d");
        let mut client = unsubscribed;
        accepted(&mut client) == 2
    });
    assert_eq!(accepted(&mut client), 2);
    let log = broker.log();
    assert!(log.contains("default.subscriptions: 0 -> 2"), "{log}");
    // Words and bpftool mean the same map.
    broker.ctl_says(&["quota", "set", "default", "subscriptions=3"]);
    let pin = broker.pin_dir().join("quotas");
    let dump =
        bpftool(&["map", "dump", "pinned", pin.to_str().expect("text")]).expect("it is there");
    assert!(dump.contains("\"subscriptions\": 3"), "{dump}");
    assert_eq!(subscriptions()["by"], "ctl");
}

struct Net(Namespace);

impl Net {
    fn broker(&self, config: &str) -> Broker {
        Broker::start_with(Settings {
            namespace: Some(self.0.name().to_owned()),
            config: format!(
                "[kernel]\nmode = \"generic\"\ninterfaces = [\"lo\"]\n\
                 [listen]\ntls = \"\"\nws = \"\"\nwss = \"\"\n{config}"
            ),
            ..Settings::default()
        })
    }

    /// Runs a QUIC client in the namespace.
    fn client<F: Future<Output = Result<(), Error>>>(
        &self,
        make: impl FnOnce(SocketAddr) -> F + Send + 'static,
    ) -> JoinHandle<Result<(), String>> {
        self.0.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let server = SocketAddr::from(([127, 0, 0, 1], 14567));
            runtime
                .block_on(make(server))
                .map_err(|error| error.to_string())
        })
    }
}

fn dropped(metrics: &Metrics, reason: &str) -> f64 {
    let name = format!("headgate_kernel_drops_total{{reason=\"{reason}\"}}");
    metrics.get(&name).unwrap_or(0.0)
}

/// How many connection IDs are policed.
fn policed(broker: &Broker) -> usize {
    let pin = broker.pin_dir().join("penalties");
    let args = ["-j", "map", "dump", "pinned", pin.to_str().expect("text")];
    let deadline = Instant::now() + Duration::from_secs(60);
    // bpftool fails when an entry goes between its key and its value.
    let dump = loop {
        match bpftool(&args) {
            Ok(dump) => break dump,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    let json: Value = serde_json::from_str(&dump).expect("JSON");
    json.as_array().map_or(0, Vec::len)
}

/// Publishes without pause until it is told to stop.
async fn publish_on(server: SocketAddr, name: &str, stop: Arc<AtomicBool>) -> Result<(), Error> {
    let endpoint = endpoint(UdpSocket::bind("127.0.0.1:0")?)?;
    let mut client = Client::connect(&endpoint, server, name).await?;
    while !stop.load(Ordering::Relaxed) {
        // Many at once, so that it is above its quota on a slow machine, too.
        for _ in 0..50 {
            let sent = client.publish("flood", QoS::AtMostOnce, &[b'x'; 200]);
            // While it is policed, little gets through.
            if let Ok(sent) = tokio::time::timeout(Duration::from_millis(100), sent).await {
                sent?;
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Sends messages to itself and counts those that come back.
async fn echo(
    server: SocketAddr,
    (stop, echoed): (Arc<AtomicBool>, Arc<AtomicU64>),
) -> Result<(), Error> {
    let endpoint = endpoint(UdpSocket::bind("127.0.0.1:0")?)?;
    let mut client = Client::connect(&endpoint, server, "neighbour").await?;
    client.subscribe("own", QoS::AtMostOnce).await?;
    while !stop.load(Ordering::Relaxed) {
        client.publish("own", QoS::AtMostOnce, b"through").await?;
        match client.receive().await? {
            Packet::Publish(publish) => assert_eq!(publish.payload, b"through"[..]),
            other => return Err(format!("unexpected {other:?}").into()),
        }
        echoed.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[test]
fn the_kernel_polices_a_client_that_goes_on_above_its_quota_and_no_other() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let net = Net(Namespace::new("quota"));
    // Every client is of this class; the neighbour keeps to it.
    let broker = net.broker(
        "[quota.default]\nmessages_per_second = 250\npackets_per_second = 60\nabove = \"refuse\"\n\
         [limits]\npenalty_after_s = 1\npenalty_ends_after_s = 2\n",
    );
    let (stop_flood, stop) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let echoed = Arc::new(AtomicU64::new(0));
    let told = (Arc::clone(&stop), Arc::clone(&echoed));
    let neighbour = net.client(move |server| echo(server, told));
    let told = Arc::clone(&stop_flood);
    let flood = net.client(move |server| publish_on(server, "flood", told));
    wait_until("its connection IDs are policed", || policed(&broker) > 0);
    wait_until("its packets are dropped", || {
        dropped(&broker.metrics(), "penalty") > 0.0
    });
    let before = echoed.load(Ordering::Relaxed);
    wait_until("the neighbour goes on", || {
        echoed.load(Ordering::Relaxed) > before + 50
    });
    stop_flood.store(true, Ordering::Relaxed);
    wait_until("it is over when the client has gone or behaves", || {
        policed(&broker) == 0
    });
    stop.store(true, Ordering::Relaxed);
    neighbour
        .join()
        .expect("no panic")
        .expect("the neighbour notices nothing");
    // It may have been cut off in the end.
    let _ = flood.join().expect("no panic");
}

#[test]
fn who_is_denied_is_dropped_by_xdp() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let net = Net(Namespace::new("deny"));
    let broker = net.broker("");
    let stop = Arc::new(AtomicBool::new(false));
    let echoed = Arc::new(AtomicU64::new(0));
    let told = (Arc::clone(&stop), Arc::clone(&echoed));
    let client = net.client(move |server| echo(server, told));
    wait_until("it is connected", || echoed.load(Ordering::Relaxed) > 5);
    broker.ctl_says(&["deny", "add", "127.0.0.1", "--reason", "a test"]);
    wait_until("it is dropped", || {
        dropped(&broker.metrics(), "denied") > 0.0
    });
    let pin = broker.pin_dir().join("prefixes4");
    let dump =
        bpftool(&["map", "dump", "pinned", pin.to_str().expect("text")]).expect("it is there");
    assert!(dump.contains("127"), "{dump}");
    broker.ctl_says(&["deny", "del", "127.0.0.1/32"]);
    let before = echoed.load(Ordering::Relaxed);
    wait_until("it goes on where it was", || {
        echoed.load(Ordering::Relaxed) > before + 5
    });
    stop.store(true, Ordering::Relaxed);
    client
        .join()
        .expect("no panic")
        .expect("the connection has lived through it");
    let refused = broker.ctl(&["deny", "del", "127.0.0.1/32"]);
    assert!(!refused.status.success());
}
