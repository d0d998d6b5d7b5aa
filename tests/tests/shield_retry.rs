//! Real handshakes through the kernel's Retry, over veth in native mode, and through user space's where there is no XDP.

use std::net::{SocketAddr, UdpSocket};

use headgate_codec::{Packet, QoS};
use headgate_tests::broker::{Broker, Metrics, Settings, kernel_available};
use headgate_tests::clients;
use headgate_tests::netns::{self, Namespace, address, bench_xdp, veth};
use headgate_tests::quic_client::{Client, Error, endpoint};
use headgate_tests::skip;

const CONNECTIONS: usize = 30;

struct Net {
    server: Namespace,
    clients: Namespace,
}

impl Net {
    fn new() -> Self {
        let net = Self {
            server: Namespace::new("rsrv"),
            clients: Namespace::new("rcli"),
        };
        veth((&net.server, "s0"), (&net.clients, "c0"));
        for (namespace, device, last) in [(&net.server, "s0", 1), (&net.clients, "c0", 2)] {
            address(namespace, device, &format!("10.79.0.{last}/24"));
            address(namespace, device, &format!("fd79::{last}/64"));
        }
        net
    }

    fn broker(&self, listen: &str, kernel: &str) -> Broker {
        Broker::start_with(Settings {
            namespace: Some(self.server.name().to_owned()),
            config: format!(
                r#"
                [node]
                workers = 2
                [listen]
                quic = "{listen}:14567"
                [kernel]
                {kernel}
                retry = "always"
                "#
            ),
            ..Settings::default()
        })
    }

    /// Connects one after the other, each with a message to itself.
    fn connect(&self, from: &'static str, to: &'static str) -> Result<(), String> {
        let all = self.clients.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime
                .block_on(connect(from, to))
                .map_err(|error| error.to_string())
        });
        all.join().expect("no panic")
    }
}

async fn connect(from: &str, to: &str) -> Result<(), Error> {
    let server: SocketAddr = to.parse()?;
    for index in 0..CONNECTIONS {
        // A socket of its own, and so no token of an earlier connection.
        let endpoint = endpoint(UdpSocket::bind((from, 0))?)?;
        let mut client = Client::connect(&endpoint, server, &format!("r{index}")).await?;
        client.subscribe("own", QoS::AtMostOnce).await?;
        client.publish("own", QoS::AtMostOnce, b"through").await?;
        match client.receive().await? {
            Packet::Publish(publish) => assert_eq!(publish.payload, b"through"[..]),
            other => return Err(format!("unexpected {other:?}").into()),
        }
    }
    Ok(())
}

fn unavailable() -> Option<String> {
    netns::available().and_then(|()| kernel_available()).err()
}

fn answered(metrics: &Metrics) -> f64 {
    metrics.sum("headgate_kernel_answers_total")
}

fn with_token(metrics: &Metrics) -> f64 {
    metrics.sum(r#"headgate_kernel_passes_total{reason="initial_retry_token"#)
}

/// What a failure is explained by.
fn figures(metrics: &Metrics) -> String {
    let series = [
        "headgate_kernel_answers_total",
        "headgate_kernel_passes_total{reason=\"initial\"",
        "headgate_kernel_passes_total{reason=\"initial_retry_token\"",
        "headgate_kernel_passes_total{reason=\"initial_new_token\"",
        "headgate_kernel_passes_total{reason=\"own_cid_long\"",
        "headgate_kernel_drops_total",
        "headgate_retries_total",
        "headgate_handshakes_total",
    ];
    let lines = series.map(|name| format!("{name} {}", metrics.sum(name)));
    lines.join("\n")
}

/// Everybody gets in by the kernel's Retry, and user space sends none.
fn through_the_kernel(mode: &str, listen: &str, paths: &[(&'static str, &'static str)]) {
    let net = Net::new();
    let _peer = (mode == "native").then(|| bench_xdp(&net.clients, "c0", "nothing"));
    let broker = net.broker(listen, &format!("mode = \"{mode}\"\ninterfaces = [\"s0\"]"));
    for (number, &(from, to)) in paths.iter().enumerate() {
        net.connect(from, to)
            .unwrap_or_else(|error| panic!("{from} → {to}: {error}\n{}", broker.log()));
        let metrics = broker.metrics();
        let connections = ((number + 1) * CONNECTIONS) as f64;
        assert!(answered(&metrics) >= connections, "{}", figures(&metrics));
        assert!(with_token(&metrics) >= connections, "{}", figures(&metrics));
        assert_eq!(metrics.sum("headgate_retries_total"), 0.0);
        assert_eq!(
            metrics.sum(r#"headgate_kernel_passes_total{reason="initial""#),
            0.0,
            "none came in without a token"
        );
        assert_eq!(
            metrics.sum("headgate_connections_opened_total{worker=\"0\",transport=\"quic\"")
                + metrics.sum("headgate_connections_opened_total{worker=\"1\",transport=\"quic\""),
            connections
        );
    }
}

#[test]
fn clients_of_both_ip_versions_get_in_through_the_kernels_retry() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let paths = [
        ("10.79.0.2", "10.79.0.1:14567"),
        ("fd79::2", "[fd79::1]:14567"),
    ];
    through_the_kernel("native", "[::]", &paths);
}

#[test]
fn a_listener_of_ipv4_alone_takes_the_kernels_tokens() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    through_the_kernel("native", "0.0.0.0", &[("10.79.0.2", "10.79.0.1:14567")]);
}

#[test]
fn generic_xdp_answers_with_retry_as_well() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    through_the_kernel("generic", "[::]", &[("fd79::2", "[fd79::1]:14567")]);
}

#[test]
fn without_xdp_user_space_asks_for_the_address() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let net = Net::new();
    for steering in ["auto", "none"] {
        let broker = net.broker(
            "[::]",
            &format!("mode = \"off\"\nsteering = \"{steering}\""),
        );
        net.connect("10.79.0.2", "10.79.0.1:14567")
            .unwrap_or_else(|error| panic!("{steering}: {error}\n{}", broker.log()));
        let retries = broker.metrics().sum("headgate_retries_total");
        assert!(retries >= CONNECTIONS as f64, "{retries}");
    }
}

#[test]
fn clients_that_others_wrote_get_in_through_the_kernels_retry() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let clients = [clients::Client::Aioquic, clients::Client::Mqttv5Quic];
    if let Some(reason) = clients.iter().find_map(|client| client.available().err()) {
        skip!("{reason}");
    }
    let namespace = Namespace::new("rown");
    // The thread's processes are in its namespace, and so is their loopback.
    let inside = namespace.enter(move || {
        let broker = Broker::start(
            "[kernel]\nmode = \"generic\"\ninterfaces = [\"lo\"]\nretry = \"always\"\n",
        );
        for (number, client) in clients.into_iter().enumerate() {
            let message = clients::Message {
                topic: "through/retry",
                payload: "here",
                qos: QoS::AtLeastOnce,
                retain: false,
            };
            client.publish(&broker, message);
            let metrics = broker.metrics();
            let before = number as f64;
            assert!(answered(&metrics) > before, "{client}: {}", broker.log());
            assert!(with_token(&metrics) > before, "{client}");
            assert_eq!(metrics.sum("headgate_retries_total"), 0.0);
        }
    });
    inside.join().expect("no panic");
}
