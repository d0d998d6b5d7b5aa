//! The server inside the test's process: sockets are real, the kernel part is off.

use bytes::{Bytes, BytesMut};
use headgate::{config::Config, metrics::Metrics, server::Server};
use headgate_codec::{
    Connect, ConnectProperties, Packet, Publish, QoS, ReasonCode, Text, Version, decode, encode,
};
use headgate_tests::{
    broker::certificate,
    quic_client::{Client, Error, endpoint},
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

struct Running {
    server: Server,
    metrics: Arc<Metrics>,
    _folder: tempfile::TempDir,
}

impl Running {
    fn start(workers: u16, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = Config::default();
        certificate::write(folder.path());
        config.tls.certificate = folder.path().join(certificate::CHAIN);
        config.tls.key = folder.path().join(certificate::KEY);
        config.node.state_dir = folder.path().join("state");
        config.node.workers = workers;
        config.node.pin_threads = false;
        config.listen.quic = Some((Ipv4Addr::LOCALHOST, 0).into());
        config.listen.tcp = Some((Ipv4Addr::LOCALHOST, 0).into());
        config.mqtt.allow_anonymous = true;
        // Not on a BPF file system, so nothing is put into the kernel, and the brokers of tests side by side don't meet.
        config.kernel.pin_dir = folder.path().join("pins");
        change(&mut config);
        let metrics = Metrics::new();
        let server = Server::start(Arc::new(config), Arc::clone(&metrics)).expect("it starts");
        Self {
            server,
            metrics,
            _folder: folder,
        }
    }

    fn address(&self, transport: &str) -> SocketAddr {
        self.server
            .listeners()
            .iter()
            .find(|l| l.transport == transport)
            .expect("it listens")
            .address
    }

    fn run<T>(test: impl Future<Output = Result<T, Error>>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await })
            .expect("in time")
            .expect("no error")
    }
}

fn client_endpoint() -> Result<quinn::Endpoint, Error> {
    endpoint(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?)
}

fn payload(packet: Packet) -> Bytes {
    match packet {
        Packet::Publish(publish) => publish.payload,
        other => panic!("expected PUBLISH, got {other:?}"),
    }
}

/// A blocking MQTT 3.1.1 client over TCP.
struct Tcp(TcpStream, BytesMut);

impl Tcp {
    fn connect(address: SocketAddr, id: &str) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a socket");
        let mut client = Self(stream, BytesMut::new());
        client.send(&Packet::Connect(Box::new(Connect {
            version: Version::V311,
            clean_start: true,
            keep_alive_s: 60,
            client_id: Text::from(id),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties::default(),
        })));
        match client.receive() {
            Some(Packet::ConnAck(ack)) => assert_eq!(ack.reason, ReasonCode::SUCCESS),
            other => panic!("{other:?}"),
        }
        client
    }

    fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        encode(packet, Version::V311, &mut bytes);
        self.0.write_all(&bytes).expect("connected");
    }

    fn publish(&mut self, topic: &str, payload: Vec<u8>) {
        self.send(&Packet::Publish(Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic: Text::from(topic),
            packet_id: None,
            properties: None,
            payload: payload.into(),
        }));
    }

    /// `None` = the server has closed the connection.
    fn receive(&mut self) -> Option<Packet> {
        loop {
            let mut bytes = self.1.split().freeze();
            let packet = decode(&mut bytes, Some(Version::V311), u32::MAX).expect("MQTT");
            self.1 = BytesMut::from(bytes);
            if packet.is_some() {
                return packet;
            }
            let mut buffer = [0; 65536];
            match self.0.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => self.1.extend_from_slice(&buffer[..length]),
                Err(error) => panic!("no packet: {error}"),
            }
        }
    }
}

#[test]
fn messages_cross_workers_and_transports() {
    let running = Running::start(4, |_| {});
    let (quic, tcp) = (running.address("quic"), running.address("tcp"));
    Running::run(async {
        // Twelve connections on four workers, all of them subscribers of one topic.
        let endpoints: Vec<_> = (0..12)
            .map(|_| client_endpoint())
            .collect::<Result<_, _>>()?;
        let mut clients = Vec::new();
        for (index, endpoint) in endpoints.iter().enumerate() {
            let mut client = Client::connect(endpoint, quic, &format!("q{index}")).await?;
            client.subscribe("a/+/c", QoS::AtLeastOnce).await?;
            clients.push(client);
        }
        clients[0]
            .publish("a/b/c", QoS::AtMostOnce, b"over quic")
            .await?;
        for client in &mut clients {
            assert_eq!(payload(client.receive().await?), "over quic");
        }
        // A large message, cut over many packets, from a client on TCP.
        let large = vec![b'x'; 200_000];
        let mut publisher = Tcp::connect(tcp, "t");
        publisher.publish("a/b/c", large.clone());
        for client in &mut clients {
            assert_eq!(payload(client.receive().await?), large);
        }
        Ok(())
    });
    let received = |m: &headgate::metrics::WorkerMetrics| m.connections.sum();
    assert!(
        running
            .metrics
            .workers()
            .filter(|(_, m)| received(m) > 0)
            .count()
            > 1,
        "several workers took part"
    );
    running.server.shutdown(Duration::from_secs(5));
}

#[test]
fn shutdown_says_so_to_every_client() {
    let running = Running::start(2, |_| {});
    let (quic, tcp) = (running.address("quic"), running.address("tcp"));
    Running::run(async {
        let endpoints: Vec<_> = (0..4)
            .map(|_| client_endpoint())
            .collect::<Result<_, _>>()?;
        let mut clients = Vec::new();
        for (index, endpoint) in endpoints.iter().enumerate() {
            clients.push(Client::connect(endpoint, quic, &format!("q{index}")).await?);
        }
        let mut old = Tcp::connect(tcp, "t");
        let begun = Instant::now();
        let stopping = std::thread::spawn(move || running.server.shutdown(Duration::from_secs(10)));
        for client in &mut clients {
            match client.receive().await? {
                Packet::Disconnect(d) => assert_eq!(d.reason, ReasonCode::SERVER_SHUTTING_DOWN),
                other => panic!("{other:?}"),
            }
            client.connection.closed().await;
        }
        // 3.1.1 has no DISCONNECT from the server: the connection ends.
        assert!(old.receive().is_none());
        drop(old);
        assert_eq!(
            stopping.join().expect("no panic"),
            0,
            "nobody had to be cut off"
        );
        assert!(begun.elapsed() < Duration::from_secs(10));
        Ok(())
    });
}

#[test]
fn a_client_that_opens_no_stream_holds_up_nobody_and_is_closed() {
    let running = Running::start(1, |config| config.mqtt.connect_timeout_s = 1);
    let quic = running.address("quic");
    Running::run(async {
        let silent = client_endpoint()?;
        let quiet = silent.connect(quic, "localhost")?.await?;
        let endpoint = client_endpoint()?;
        let mut client = Client::connect(&endpoint, quic, "next").await?;
        client.subscribe("x", QoS::AtMostOnce).await?;
        client
            .publish("x", QoS::AtMostOnce, b"still served")
            .await?;
        assert_eq!(payload(client.receive().await?), "still served");
        quiet.closed().await;
        Ok(())
    });
    running.server.shutdown(Duration::from_secs(5));
}

#[test]
fn a_worker_that_panics_is_restarted_alone() {
    let running = Running::start(2, |_| {});
    let quic = running.address("quic");
    Running::run(async {
        let mut clients = Vec::new();
        let mut endpoints = Vec::new();
        for index in 0..16 {
            let endpoint = client_endpoint()?;
            let mut client = Client::connect(&endpoint, quic, &format!("p{index}")).await?;
            client.subscribe("news", QoS::AtMostOnce).await?;
            clients.push(client);
            endpoints.push(endpoint);
        }
        running.server.inject_panic(0);
        let restarts = |slot| running.metrics.worker(slot).restarts.get();
        while restarts(0) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The clients of worker 0 learn of it by a stateless reset when they next say something.
        let mut lost = Vec::new();
        let mut kept = Vec::new();
        for mut client in clients {
            let sent = client.publish("other", QoS::AtLeastOnce, b"?").await;
            match sent {
                Ok(()) => match client.receive().await {
                    Ok(_) => kept.push(client),
                    Err(_) => lost.push(client),
                },
                Err(_) => lost.push(client),
            }
        }
        assert!(
            !lost.is_empty() && !kept.is_empty(),
            "{} lost, {} kept",
            lost.len(),
            kept.len()
        );
        assert_eq!(restarts(1), 0);
        // Both workers serve: those that stayed, and those that come back.
        for (index, endpoint) in endpoints.iter().enumerate() {
            let mut client = Client::connect(endpoint, quic, &format!("again{index}")).await?;
            client
                .publish("news", QoS::AtMostOnce, format!("{index}").as_bytes())
                .await?;
            for listener in &mut kept {
                assert_eq!(payload(listener.receive().await?), format!("{index}"));
            }
        }
        Ok(())
    });
    running.server.shutdown(Duration::from_secs(5));
}
