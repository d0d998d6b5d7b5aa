//! The server's TLS against unmodified clients of quinn-proto and rustls.

use std::path::PathBuf;
use std::time::Duration;

use quinn_proto::crypto::rustls::{HandshakeData, QuicClientConfig};
use quinn_proto::{ClientConfig, ConnectionError, Dir, Event, Side, StreamId, TransportErrorCode};
use rustls::client::Resumption;
use rustls::{CipherSuite, RootCertStore};

use super::pair::{End, Pair, Peer};
use super::*;

/// A folder that goes with the value.
pub(super) struct Folder(pub PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("headgate-tls-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server's identity, and the roots that a client needs to trust it.
pub(super) fn identity(name: &str) -> (TlsIdentity, RootCertStore) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = Folder::new(name);
    let certificate = folder.write("cert.pem", made.cert.pem());
    let key = folder.write("key.pem", made.signing_key.serialize_pem());
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    (TlsIdentity::load(&certificate, &key).unwrap(), roots)
}

fn reset_key() -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &[2; 32])
}

fn token_key() -> Arc<dyn HandshakeTokenKey> {
    Arc::new(ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, &[]).extract(&[1; 32]))
}

/// A client's TLS configuration, with one suite or all.
pub(super) fn client_tls(roots: RootCertStore, suite: Option<CipherSuite>) -> rustls::ClientConfig {
    let mut provider = rustls::crypto::ring::default_provider();
    provider
        .cipher_suites
        .retain(|known| suite.is_none_or(|suite| known.suite() == suite));
    client_tls_of(provider, roots)
}

/// The same with what a provider has.
pub(super) fn client_tls_of(
    provider: CryptoProvider,
    roots: RootCertStore,
) -> rustls::ClientConfig {
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"mqtt".to_vec()];
    tls.resumption = Resumption::in_memory_sessions(16);
    tls
}

fn client(tls: rustls::ClientConfig) -> ClientConfig {
    let initial = cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .unwrap()
        .quic_suite()
        .unwrap();
    ClientConfig::new(Arc::new(
        QuicClientConfig::with_initial(Arc::new(tls), initial).unwrap(),
    ))
}

fn server(identity: &TlsIdentity, settings: &QuicSettings) -> ServerConfig {
    let tickets = Arc::new(TicketStore::new(16));
    let tls = quic_tls_config(identity, None, settings, &tickets).unwrap();
    quic_server_config(&LiveTls::new(tls), settings, token_key())
}

fn pair(identity: &TlsIdentity, settings: &QuicSettings) -> Pair {
    let server = server(identity, settings);
    Pair::new(quic_endpoint_config(settings, reset_key()).unwrap(), server)
}

const SECOND: Duration = Duration::from_secs(1);
/// The first stream that the client opens.
fn stream() -> StreamId {
    StreamId::new(Side::Client, Dir::Bi, 0)
}

/// Sends `data` both ways on the first stream, over a link without loss, and checks that it arrives.
fn exchange(pair: &mut Pair, data: &[u8]) {
    let (from_client, from_server) = (pair.server.read(stream()), pair.client.read(stream()));
    pair.client.write(stream(), data);
    pair.run(SECOND);
    pair.server.write(stream(), data);
    pair.run(SECOND);
    assert_eq!(pair.server.read(stream()), [&from_client, data].concat());
    assert_eq!(pair.client.read(stream()), [&from_server, data].concat());
}

/// A client's configuration that sends 0-RTT data where it may.
fn early_client(roots: RootCertStore) -> ClientConfig {
    let mut tls = client_tls(roots, None);
    tls.enable_early_data = true;
    client(tls)
}

/// Begins a connection that resumes a session, with `data` in 0-RTT packets.
fn begin_early(pair: &mut Pair, config: &ClientConfig, data: &[u8]) {
    pair.connect(config.clone());
    let opened = pair.client.connection().streams().open(Dir::Bi);
    assert_eq!(opened, Some(stream()), "the client remembers the limits");
    pair.client.write(stream(), data);
}

fn is_connected(peer: &Peer) -> bool {
    let connected = |event: &Event| matches!(event, Event::Connected);
    peer.events.iter().any(connected)
}

#[test]
fn early_data_comes_before_the_handshake_is_complete() {
    let (identity, roots) = identity("early");
    let mut pair = pair(&identity, &QuicSettings::default());
    let config = early_client(roots);
    pair.connect(config.clone());
    pair.run(SECOND);
    for round in 0..3u8 {
        begin_early(&mut pair, &config, &[round; 900]);
        // The client's first flight is here, its Finished is not.
        pair.run(Duration::from_millis(15));
        assert_eq!(pair.server.read(stream()), [round; 900]);
        assert!(!is_connected(&pair.server));
        pair.run(SECOND);
        assert!(is_connected(&pair.server) && pair.client.connection().accepted_0rtt());
        exchange(&mut pair, b"later");
    }
}

#[test]
fn early_data_is_read_once_whichever_worker_gets_it_again() {
    let (identity, roots) = identity("replay");
    let settings = QuicSettings::default();
    let server = server(&identity, &settings);
    let endpoint = quic_endpoint_config(&settings, reset_key()).unwrap();
    let mut pair = Pair::new(endpoint.clone(), server.clone());
    let config = early_client(roots);
    pair.connect(config.clone());
    pair.run(SECOND);
    begin_early(&mut pair, &config, b"once");
    pair.run(Duration::from_millis(5));
    let flight = pair.client.datagrams_sent.clone();
    pair.run(SECOND);
    assert_eq!(pair.server.read(stream()), b"once");
    let mut other = Peer::new(endpoint.clone(), Some(server.clone()), 14_568);
    let mut same_again = Peer::new(endpoint, Some(server), 14_567);
    let source = ([198, 51, 100, 1], 7).into();
    for worker in [&mut other, &mut same_again] {
        for data in &flight {
            worker.handle(pair.now, source, data, &mut Vec::new());
            worker.work(pair.now, &mut Vec::new());
        }
        assert!(worker.connection().is_handshaking());
        assert!(!worker.connection().has_0rtt());
        assert_eq!(worker.read(stream()), b"");
    }
}

#[test]
fn without_early_data_sessions_are_still_resumed() {
    let (identity, roots) = identity("not-early");
    let settings = QuicSettings {
        early_data: false,
        ..QuicSettings::default()
    };
    let tickets = Arc::new(TicketStore::new(16));
    let tls = quic_tls_config(&identity, None, &settings, &tickets).unwrap();
    let server = quic_server_config(&LiveTls::new(tls), &settings, token_key());
    let endpoint = quic_endpoint_config(&settings, reset_key()).unwrap();
    let mut pair = Pair::new(endpoint, server);
    let config = early_client(roots);
    pair.connect(config.clone());
    pair.run(SECOND);
    assert_eq!(tickets.len(), 1);
    pair.connect(config);
    assert!(!pair.client.connection().has_0rtt());
    pair.run(SECOND);
    assert!(is_connected(&pair.server));
    assert_eq!(tickets.len(), 1, "one was used, and one was given for it");
}

fn connected(identity: &TlsIdentity, tls: rustls::ClientConfig) -> Pair {
    let mut pair = pair(identity, &QuicSettings::default());
    pair.connect(client(tls));
    pair.run(SECOND);
    for peer in [&pair.client, &pair.server] {
        assert!(
            peer.events
                .iter()
                .any(|event| matches!(event, Event::Connected)),
            "{:?}",
            peer.events
        );
    }
    assert_eq!(
        pair.client.connection().streams().open(Dir::Bi),
        Some(stream())
    );
    pair
}

#[test]
fn every_suite_carries_data_both_ways() {
    let (identity, roots) = identity("suites");
    for suite in [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    ] {
        let mut pair = connected(&identity, client_tls(roots.clone(), Some(suite)));
        exchange(&mut pair, b"hello");
        exchange(&mut pair, &[7; 20_000]);
    }
}

#[test]
fn name_and_protocol_are_known_after_the_handshake() {
    let (identity, roots) = identity("names");
    let mut pair = connected(&identity, client_tls(roots, None));
    exchange(&mut pair, b"later");
    let session = pair.server.connection().crypto_session();
    let data = session
        .handshake_data()
        .unwrap()
        .downcast::<HandshakeData>()
        .unwrap();
    assert_eq!(data.protocol.as_deref(), Some(&b"mqtt"[..]));
    assert_eq!(data.server_name.as_deref(), Some("localhost"));
    assert!(
        session.peer_identity().is_none(),
        "this client has no certificate"
    );
    let mut output = [0; 32];
    assert!(
        session
            .export_keying_material(&mut output, b"label", b"")
            .is_err(),
        "the documented limit"
    );
}

#[test]
fn key_updates_of_both_sides_lose_nothing() {
    let (identity, roots) = identity("updates");
    for suite in [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    ] {
        let mut pair = connected(&identity, client_tls(roots.clone(), Some(suite)));
        exchange(&mut pair, b"phase 0");
        for round in 0..4u8 {
            pair.client.connection().force_key_update();
            exchange(&mut pair, &[round; 3000]);
            // Old keys are kept for three times the probe timeout, and only then may the next update follow.
            pair.run(5 * SECOND);
            pair.server.connection().force_key_update();
            exchange(&mut pair, &[round; 3000]);
            pair.run(5 * SECOND);
        }
        for peer in [&pair.client, &pair.server] {
            let lost = peer
                .events
                .iter()
                .find(|event| matches!(event, Event::ConnectionLost { .. }));
            assert!(lost.is_none(), "{lost:?}");
        }
    }
}

#[test]
fn loss_and_reordering_around_key_updates_lose_nothing() {
    let (identity, roots) = identity("loss");
    let suites = [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    for seed in 0..30u64 {
        let suite = suites[seed as usize % suites.len()];
        let mut pair = connected(&identity, client_tls(roots.clone(), Some(suite)));
        exchange(&mut pair, b"open");
        // A link that loses one datagram in five and delays others past those that follow.
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> 32
        };
        let mut link = move |_: End, _: u64| match random() % 10 {
            0 | 1 => None,
            2..=4 => Some(Duration::from_millis(random() % 60)),
            _ => Some(Duration::ZERO),
        };
        let mut sent = [b"open".to_vec(), b"open".to_vec()];
        for round in 0..6u8 {
            let data = vec![round ^ seed as u8; 5000];
            pair.client.write(stream(), &data);
            pair.server.write(stream(), &data);
            sent.iter_mut()
                .for_each(|sent| sent.extend_from_slice(&data));
            pair.run_over(Duration::from_millis(15), &mut link);
            // In the middle of the exchange, by one side, the other, or both at once.
            if round % 3 != 1 {
                pair.client.connection().force_key_update();
            }
            if round % 3 != 0 {
                pair.server.connection().force_key_update();
            }
            pair.run_over(20 * SECOND, &mut link);
        }
        pair.run(60 * SECOND);
        assert_eq!(pair.server.read(stream()), sent[0], "seed {seed}");
        assert_eq!(pair.client.read(stream()), sent[1], "seed {seed}");
    }
}

/// The code with which the server closed, as the client saw it.
fn refusal(tls: rustls::ClientConfig, identity: &TlsIdentity) -> TransportErrorCode {
    let mut pair = pair(identity, &QuicSettings::default());
    pair.connect(client(tls));
    pair.run(5 * SECOND);
    let closed = pair.client.events.iter().find_map(|event| match event {
        Event::ConnectionLost {
            reason: ConnectionError::ConnectionClosed(close),
        } => Some(close.error_code),
        _ => None,
    });
    closed.unwrap_or_else(|| panic!("{:?}", pair.client.events))
}

#[test]
fn a_client_without_our_protocol_is_told_so() {
    let (identity, roots) = identity("alpn");
    let no_application_protocol = TransportErrorCode::crypto(120);
    for protocols in [
        vec![b"h3".to_vec()],
        vec![b"mqttx".to_vec(), b"mqt".to_vec()],
        vec![],
    ] {
        let mut tls = client_tls(roots.clone(), None);
        tls.alpn_protocols = protocols;
        assert_eq!(refusal(tls, &identity), no_application_protocol);
    }
    let mut tls = client_tls(roots, None);
    tls.alpn_protocols = vec![b"h3".to_vec(), b"mqtt".to_vec()];
    connected(&identity, tls);
}

#[test]
fn a_client_that_does_not_trust_us_ends_only_its_own_connection() {
    let (ours, _) = identity("trust");
    let (_, other_roots) = identity("trust-other");
    let mut pair = pair(&ours, &QuicSettings::default());
    pair.connect(client(client_tls(other_roots, None)));
    pair.run(5 * SECOND);
    let lost = pair.server.events.iter().find_map(|event| match event {
        Event::ConnectionLost {
            reason: ConnectionError::ConnectionClosed(close),
        } => Some(close.error_code),
        _ => None,
    });
    let code = u64::from(lost.expect("the server learns that the client refused"));
    assert!((0x100..0x200).contains(&code), "a TLS alert, not {code:#x}");
}

#[test]
fn a_client_gets_the_streams_that_are_configured() {
    let (identity, roots) = identity("streams");
    let settings = QuicSettings {
        bidi_streams_max: 3,
        uni_streams_max: 1,
        ..QuicSettings::default()
    };
    let mut pair = pair(&identity, &settings);
    pair.connect(client(client_tls(roots, None)));
    pair.run(SECOND);
    let mut streams = pair.client.connection().streams();
    assert_eq!(
        [Dir::Bi, Dir::Uni].map(|dir| std::iter::from_fn(|| streams.open(dir)).count()),
        [3, 1]
    );
}

#[test]
fn connections_have_the_congestion_control_that_is_configured() {
    use quinn_proto::congestion::{Bbr, Cubic, NewReno};
    let (identity, roots) = identity("congestion");
    let controller = |congestion| {
        let settings = QuicSettings {
            congestion,
            ..QuicSettings::default()
        };
        let mut pair = pair(&identity, &settings);
        pair.connect(client(client_tls(roots.clone(), None)));
        pair.run(SECOND);
        assert!(is_connected(&pair.server));
        let controller = pair.server.connection().congestion_state().clone_box();
        controller.into_any()
    };
    assert!(controller(Congestion::NewReno).is::<NewReno>());
    assert!(controller(Congestion::Cubic).is::<Cubic>());
    assert!(controller(Congestion::Bbr).is::<Bbr>());
}

#[test]
fn silence_up_to_the_ceiling_is_allowed() {
    let (identity, roots) = identity("idle");
    let mut tls = client(client_tls(roots, None));
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(None);
    tls.transport_config(Arc::new(transport));
    let settings = QuicSettings {
        idle_timeout_ms_max: 600_000,
        ..QuicSettings::default()
    };
    let mut pair = pair(&identity, &settings);
    pair.connect(tls);
    pair.run(590 * SECOND);
    let lost = |pair: &Pair| {
        pair.server
            .events
            .iter()
            .any(|event| matches!(event, Event::ConnectionLost { .. }))
    };
    assert!(!lost(&pair));
    pair.run(20 * SECOND);
    assert!(lost(&pair));
}

#[test]
fn settings_out_of_range_are_refused() {
    for udp_payload_bytes_max in [0, 1199, 65_528] {
        let settings = QuicSettings {
            udp_payload_bytes_max,
            ..QuicSettings::default()
        };
        let error = quic_endpoint_config(&settings, reset_key()).unwrap_err();
        assert!(
            error.to_string().contains("udp_payload_bytes_max"),
            "{error}"
        );
    }
}
