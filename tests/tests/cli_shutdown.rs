//! SIGTERM and SIGINT: every client is told, and the process ends.

use headgate_codec::{Packet, ReasonCode, Version};
use headgate_tests::{
    broker::Broker,
    quic_client::{Client, Error, endpoint},
    tcp_client::{TcpClient, connect},
};
use nix::sys::signal::Signal;
use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

fn run<T>(test: impl Future<Output = Result<T, Error>>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await })
        .expect("in time")
        .expect("no error")
}

/// [MQTT-4.13.2-1] is the server's half of it: DISCONNECT 0x8B (Server shutting down), where the
/// version has a DISCONNECT of the server's; 3.1.1 clients see the end of the connection.
#[test]
fn clients_are_told_and_the_process_ends_well() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut broker = Broker::start("");
        let mut tcp = TcpClient::connect(broker.tcp(), "tcp");
        let mut old = connect("old");
        old.version = Version::V311;
        let (mut old, reason) = TcpClient::try_connect(broker.tcp(), old);
        assert_eq!(reason, ReasonCode::SUCCESS);
        run(async {
            let endpoint = endpoint(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?)?;
            let mut quic = Client::connect(&endpoint, broker.quic(), "quic").await?;
            broker.signal(signal);
            match quic.receive().await? {
                Packet::Disconnect(disconnect) => {
                    assert_eq!(disconnect.reason, ReasonCode::SERVER_SHUTTING_DOWN);
                }
                other => panic!("expected DISCONNECT, got {other:?}"),
            }
            Ok(())
        });
        assert_eq!(tcp.disconnected(), ReasonCode::SERVER_SHUTTING_DOWN);
        assert_eq!(old.receive(), None);
        assert_eq!(broker.wait().code(), Some(0), "{}", broker.log());
        assert!(!broker.config_file().with_file_name("admin.sock").exists());
    }
}

/// A client that neither reads nor leaves does not hold the broker up.
#[test]
fn a_client_that_stays_is_cut_off() {
    let mut broker = Broker::start("[shutdown]\ngrace_s = 1");
    let stays = TcpClient::connect(broker.tcp(), "stays");
    assert_eq!(broker.terminate().code(), Some(0), "{}", broker.log());
    drop(stays);
}

/// Who is in a hurry sends the signal twice: what remains of the grace is not waited for, and the exit code says that clients
/// were cut off.
#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second) in [
        (Signal::SIGTERM, Signal::SIGTERM),
        (Signal::SIGINT, Signal::SIGTERM),
    ] {
        // Longer than the harness waits for the end.
        let mut broker = Broker::start("[shutdown]\ngrace_s = 300");
        let mut stays = TcpClient::connect(broker.tcp(), "stays");
        broker.signal(first);
        match stays.receive() {
            Some(Packet::Disconnect(disconnect)) => {
                assert_eq!(disconnect.reason, ReasonCode::SERVER_SHUTTING_DOWN);
            }
            other => panic!("expected DISCONNECT, got {other:?}"),
        }
        assert!(broker.is_running(), "{}", broker.log());
        broker.signal(second);
        assert_eq!(broker.wait().code(), Some(1), "{}", broker.log());
        assert!(broker.log().contains("stopped at once"));
    }
}
