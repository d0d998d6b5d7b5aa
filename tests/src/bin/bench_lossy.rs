//! Measures QUIC beside TLS over TCP on a link that loses packets and takes 50 ms each way: how long a QoS 1 message takes
//! to its acknowledgement, how long a client is without service when its address changes, and whether a data stream that
//! stands still moves the others. Names of rows as arguments limit the run to these.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use bytes::Bytes;
use headgate::cli::client::{
    Beside, Event, QuicOptions, Scheme, Session, Target, TlsOptions, Trust,
};
use headgate_codec::{Packet, Publish, QoS, Text};
use headgate_tests::bench::{self, Row};
use headgate_tests::broker::{Broker, Settings};
use headgate_tests::lossy::{self, LossyLink, Weather};
use headgate_tests::netns::{Namespace, address};
use headgate_tests::quic_client::{
    Client, Error, Stream, connect, endpoint, puback, publish, subscribe,
};
use tokio::time::{interval, sleep, timeout};

const SERVER: &str = "10.77.0.1";
const CLIENT: &str = "10.77.0.2";
/// Where the client goes when its address changes.
const ELSEWHERE: &str = "10.77.0.3";
/// One way.
const DELAY: Duration = Duration::from_millis(50);
/// Messages per figure, and the time between two of them.
const MESSAGES: usize = 600;
const PACE: Duration = Duration::from_millis(20);
/// Messages of 8,000 bytes that fill a stream.
const FILLING: usize = 400;
/// Only a broken broker takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.starts_with(w.as_str()));
    let mut rows = Vec::new();
    if let Err(reason) = lossy::available() {
        eprintln!("skipped: {reason}");
        return bench::print(&rows);
    }
    for percent in [1, 5] {
        for (scheme, name, streams) in [
            (Scheme::Quic, "quic", 0),
            (Scheme::Quic, "quic_4_streams", 4),
            (Scheme::Mqtts, "tls", 0),
        ] {
            let name = format!("lossy_{percent}pc_{name}");
            if is_wanted(&name) {
                eprintln!("{name} …");
                rows.extend(acknowledged(&name, percent * 10, scheme, streams));
            }
        }
    }
    if is_wanted("address_change") {
        eprintln!("address_change …");
        rows.extend(address_change());
    }
    if is_wanted("quic_multistream_hol_ratio") {
        eprintln!("quic_multistream_hol_ratio …");
        rows.push(hol_ratio());
    }
    bench::print(&rows);
}

/// A broker, and a client's namespace at the other end of a link.
struct Place {
    client: Namespace,
    _link: LossyLink,
    _broker: Broker,
    server: Namespace,
}

fn place(lost_per_mille: u64) -> Place {
    let (server, client) = (Namespace::new("server"), Namespace::new("client"));
    let weather = Weather {
        lost_per_mille,
        delay: DELAY,
        seed: 7,
    };
    let link = LossyLink::new(&client, &server, "lossy", weather);
    address(&server, "lossy", &format!("{SERVER}/24"));
    for own in [CLIENT, ELSEWHERE] {
        address(&client, "lossy", &format!("{own}/24"));
    }
    let broker = Broker::start_with(Settings {
        namespace: Some(server.name().to_owned()),
        config: "[kernel]\nmode = \"off\"\n".to_owned(),
        ..Settings::default()
    });
    Place {
        client,
        _link: link,
        _broker: broker,
        server,
    }
}

/// Runs a client in a namespace.
fn run<T: Send + 'static, F: Future<Output = Result<T, Error>>>(
    namespace: &Namespace,
    work: impl FnOnce() -> F + Send + 'static,
) -> T {
    let thread = namespace.enter(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async { timeout(PATIENCE, work()).await })
    });
    let result = thread.join().expect("the thread ends");
    result.expect("in time").expect("the client succeeds")
}

fn quantile(sorted: &[f64], of: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * of).round() as usize]
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// QoS 1 messages at a steady pace, whether those before are acknowledged or not: time from sending to PUBACK.
fn acknowledged(name: &str, lost_per_mille: u64, scheme: Scheme, streams: usize) -> Vec<Row> {
    let place = place(lost_per_mille);
    let mut times = run(&place.client, move || async move {
        let target = Target {
            scheme,
            host: SERVER.into(),
            port: scheme.default_port(),
        };
        let tls = TlsOptions {
            trust: Trust::Anyone,
            identity: None,
            quic: QuicOptions::default(),
        };
        let beside = Beside {
            streams,
            datagrams: false,
        };
        let mut session = Session::connect(&target, &tls, (connect("c"), beside), PATIENCE).await?;
        let mut sent = std::collections::HashMap::new();
        let mut times = Vec::new();
        let mut pace = interval(PACE);
        let mut number = 0;
        while times.len() < MESSAGES {
            tokio::select! {
                _ = pace.tick(), if number < MESSAGES => {
                    number += 1;
                    let message = Publish {
                        dup: false,
                        qos: QoS::AtLeastOnce,
                        retain: false,
                        topic: Text::from("line/1"),
                        packet_id: None,
                        properties: None,
                        payload: Bytes::from_static(&[b'x'; 100]),
                    };
                    let at = Instant::now();
                    let id = session.publish(message).await?;
                    sent.insert(id, at);
                }
                event = session.next() => {
                    if let Event::Published { packet_id, .. } = event?
                        && let Some(at) = sent.remove(&Some(packet_id))
                    {
                        times.push(millis(at.elapsed()));
                    }
                }
            }
        }
        Ok(times)
    });
    times.sort_by(f64::total_cmp);
    vec![
        Row::info(&format!("{name}_ack_p50_ms"), quantile(&times, 0.5), "ms"),
        Row::info(&format!("{name}_ack_p99_ms"), quantile(&times, 0.99), "ms"),
    ]
}

/// From the moment at which the client has another address to the first acknowledgement of a message that is sent there. QUIC
/// goes on with its connection; TLS needs a new one.
fn address_change() -> Vec<Row> {
    let place = place(0);
    let quic = run(&place.client, || async {
        let endpoint = endpoint(UdpSocket::bind((CLIENT, 0))?)?;
        let server: SocketAddr = format!("{SERVER}:14567").parse()?;
        let mut client = Client::connect(&endpoint, server, "c").await?;
        client.publish("t", QoS::AtLeastOnce, b"1").await?;
        client.receive().await?;
        let moved = Instant::now();
        endpoint.rebind(UdpSocket::bind((ELSEWHERE, 0))?)?;
        client.publish("t", QoS::AtLeastOnce, b"2").await?;
        client.receive().await?;
        Ok(millis(moved.elapsed()))
    });
    let tls = run(&place.client, || async {
        let target = Target {
            scheme: Scheme::Mqtts,
            host: SERVER.into(),
            port: 8883,
        };
        let tls = TlsOptions {
            trust: Trust::Anyone,
            identity: None,
            quic: QuicOptions::default(),
        };
        // The old connection is of no use: nothing that is sent from another address belongs to it.
        let moved = Instant::now();
        let says = (connect("d"), Beside::default());
        let mut session = Session::connect(&target, &tls, says, PATIENCE).await?;
        let message = Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: Text::from("t"),
            packet_id: None,
            properties: None,
            payload: Bytes::from_static(b"2"),
        };
        session.publish(message).await?;
        while !matches!(session.next().await?, Event::Published { .. }) {}
        Ok(millis(moved.elapsed()))
    });
    vec![
        Row::info("address_change_quic_ms", quic, "ms"),
        Row::info("address_change_tls_ms", tls, "ms"),
    ]
}

/// The 99th percentile of deliveries on one data stream, with another one that isn't read and full, by that without it.
fn hol_ratio() -> Row {
    let p99 = |is_full: bool| {
        let place = place(0);
        let subscriber = place.client.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async { timeout(PATIENCE, deliveries()).await })
        });
        // The publisher is at the broker's end of the link.
        run(&place.server, move || async move {
            let endpoint = endpoint(UdpSocket::bind("127.0.0.1:0")?)?;
            let server: SocketAddr = "127.0.0.1:14567".parse()?;
            let mut client = Client::connect(&endpoint, server, "p").await?;
            client.subscribe("ready", QoS::AtMostOnce).await?;
            while !matches!(client.receive().await?, Packet::Publish(_)) {}
            let large = vec![b'x'; 8_000];
            // First until the stream is full: its window, and its share of the session's queue.
            for _ in 0..FILLING * usize::from(is_full) {
                client.publish("slow", QoS::AtMostOnce, &large).await?;
                sleep(PACE / 4).await;
            }
            sleep(DELAY * 20).await;
            for number in 0..MESSAGES {
                if is_full && number % 2 == 0 {
                    client.publish("slow", QoS::AtMostOnce, &large).await?;
                }
                let now = micros(Instant::now()).to_be_bytes();
                client.publish("fast", QoS::AtMostOnce, &now).await?;
                sleep(PACE / 4).await;
            }
            // So that what is on its way isn't lost with the connection.
            client.publish("end", QoS::AtLeastOnce, b"").await?;
            while !matches!(client.receive().await?, Packet::PubAck(_)) {}
            Ok(())
        });
        let times = subscriber.join().expect("the thread ends");
        let mut times = times.expect("in time").expect("the client succeeds");
        times.sort_by(f64::total_cmp);
        quantile(&times, 0.99)
    };
    let (alone, beside) = (p99(false), p99(true));
    eprintln!("p99 {alone} ms alone, {beside} ms beside a full stream");
    Row::at_most("quic_multistream_hol_ratio", beside / alone, "ratio", 1.1)
}

/// Both ends are threads of this process: they have the same clock.
fn micros(at: Instant) -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    at.saturating_duration_since(start).as_micros() as u64
}

/// Subscribes on two data streams, reads one, and returns how long its messages took, in milliseconds.
async fn deliveries() -> Result<Vec<f64>, Error> {
    micros(Instant::now());
    let endpoint = endpoint(UdpSocket::bind((CLIENT, 0))?)?;
    let server: SocketAddr = format!("{SERVER}:14567").parse()?;
    let mut client = Client::connect(&endpoint, server, "s").await?;
    let (mut slow, mut fast) = (client.stream().await?, client.stream().await?);
    for (stream, topic) in [(&mut slow, "slow"), (&mut fast, "fast")] {
        let packet = subscribe(1, topic, QoS::AtMostOnce);
        stream.send(&Packet::Subscribe(Box::new(packet))).await?;
        suback(stream).await?;
    }
    client.send(&publish("ready", None, b"")).await?;
    let mut times = Vec::new();
    while times.len() < MESSAGES {
        if let Packet::Publish(message) = fast.receive().await? {
            let sent = u64::from_be_bytes(message.payload.as_ref().try_into()?);
            let took = Duration::from_micros(micros(Instant::now()).saturating_sub(sent));
            times.push(millis(took));
            if let Some(packet_id) = message.packet_id {
                fast.send(&puback(packet_id)).await?;
            }
        }
    }
    Ok(times)
}

async fn suback(stream: &mut Stream) -> Result<(), Error> {
    match stream.receive().await? {
        Packet::SubAck(_) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}
