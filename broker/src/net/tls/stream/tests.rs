//! A server's side of TLS against rustls's own client, with a wire that cuts where it likes.

use super::super::tests::{Folder, identity};
use super::super::{ClientAuthorities, KeyExchange, tcp_server_config};
use super::*;
use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use std::io::{Read, Write};

/// Both sides of a connection, and what arrived at each.
struct Wire {
    server: TlsStream,
    client: ClientConnection,
    at_server: Vec<u8>,
    at_client: Vec<u8>,
    /// Ends of the pieces in which the server gets what the client sends, in turn.
    pieces: Vec<usize>,
    turn: usize,
}

impl Wire {
    fn new(server: &Arc<ServerConfig>, client: ClientConfig, pieces: Vec<usize>) -> Self {
        let name = "localhost".try_into().unwrap();
        Self {
            server: TlsStream::new(Arc::clone(server)).unwrap(),
            client: ClientConnection::new(Arc::new(client), name).unwrap(),
            at_server: Vec::new(),
            at_client: Vec::new(),
            pieces,
            turn: 0,
        }
    }

    /// Carries what both have to say until neither has any more.
    fn carry(&mut self) -> Result<(), StreamError> {
        loop {
            let mut wire = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut wire).unwrap();
            }
            let mut back = Vec::new();
            let quiet = wire.is_empty();
            let mut wire = &mut wire[..];
            while !wire.is_empty() {
                let length = self.pieces[self.turn % self.pieces.len()].clamp(1, wire.len());
                self.turn += 1;
                let (piece, rest) = wire.split_at_mut(length);
                let received = self.server.receive(piece, &mut self.at_server, &mut back);
                if received.is_err() {
                    let _alert = self.client.read_tls(&mut &back[..]);
                    let _ends_it = self.client.process_new_packets();
                }
                received?;
                wire = rest;
            }
            self.hear(&back);
            if quiet && back.is_empty() {
                return Ok(());
            }
        }
    }

    /// The client gets bytes of the server.
    fn hear(&mut self, mut wire: &[u8]) {
        while !wire.is_empty() {
            self.client.read_tls(&mut wire).unwrap();
            self.client.process_new_packets().unwrap();
            let _nothing_left = self.client.reader().read_to_end(&mut self.at_client);
        }
    }

    fn say(&mut self, plain: &[u8]) {
        let mut out = Vec::new();
        self.server.seal(plain, &mut out).unwrap();
        self.hear(&out);
    }
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

fn client(roots: RootCertStore, version: &'static SupportedProtocolVersion) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// A certificate of an authority of its own, whose file is in `folder`.
fn with_certificate(
    roots: RootCertStore,
    folder: &Folder,
    common_name: Option<&str>,
    version: &'static SupportedProtocolVersion,
) -> ClientConfig {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.distinguished_name.push(DnType::CommonName, "devices");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    folder.write("ca.pem", ca.self_signed(&ca_key).unwrap().pem());
    let key = KeyPair::generate().unwrap();
    let mut device = CertificateParams::new(Vec::new()).unwrap();
    device.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(name) = common_name {
        device.distinguished_name.push(DnType::CommonName, name);
    }
    let certificate = device.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However the wire cuts, in both versions both sides get what the other says; and when nothing is under way,
    /// nothing is held.
    #[test]
    fn pieces_make_no_difference(
        version in 0..2usize,
        pieces in prop::collection::vec(1..3_000usize, 1..6),
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40_000), 1..4),
    ) {
        let (identity, roots) = identity("pieces");
        let config = tcp_server_config(&identity, None, &[], KeyExchange::default()).unwrap();
        let mut wire = Wire::new(&config, client(roots, VERSIONS[version]), pieces);
        wire.carry().unwrap();
        prop_assert!(!wire.server.is_handshaking() && wire.server.certificate().is_none());
        for message in &messages {
            wire.client.writer().write_all(message).unwrap();
            wire.carry().unwrap();
            wire.say(message);
        }
        prop_assert_eq!(&wire.at_server, &messages.concat());
        prop_assert_eq!(&wire.at_client, &messages.concat());
        prop_assert_eq!((wire.server.pending_len(), wire.server.pending.capacity()), (0, 0));
    }

    #[test]
    fn nothing_makes_it_panic(
        begins in any::<bool>(),
        mut wire in prop::collection::vec(any::<u8>(), 1..400),
        pieces in prop::collection::vec(1..200usize, 1..4),
    ) {
        if begins {
            // A record of the handshake.
            let length = (wire.len() as u16).to_be_bytes();
            wire.splice(0..0, [22, 3, 1, length[0], length[1], 1]);
        }
        let (identity, _) = identity("garbage");
        let config = tcp_server_config(&identity, None, &[], KeyExchange::default()).unwrap();
        let mut server = TlsStream::new(config).unwrap();
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        for piece in wire.chunks_mut(pieces[0]) {
            if server.receive(piece, &mut plain, &mut out).is_err() {
                break;
            }
        }
        prop_assert!(plain.is_empty() && server.is_handshaking());
        prop_assert!(server.seal(b"secret", &mut out).is_err());
    }
}

#[test]
fn a_handshake_that_never_ends_is_refused() {
    let (identity, _) = identity("endless");
    let mut server =
        TlsStream::new(tcp_server_config(&identity, None, &[], KeyExchange::default()).unwrap())
            .unwrap();
    // A ClientHello of 65,000 bytes, in records of 16,000.
    let mut hello = vec![1, 0, 0xfd, 0xe8];
    hello.resize(65_000, 0);
    let mut result = Ok(Peer::Open);
    for part in hello.chunks(16_000) {
        let length = (part.len() as u16).to_be_bytes();
        let mut record = [&[22, 3, 1, length[0], length[1]][..], part].concat();
        result = server.receive(&mut record, &mut Vec::new(), &mut Vec::new());
        if result.is_err() {
            break;
        }
        assert!(server.pending_len() <= PENDING_BYTES_MAX);
    }
    assert!(result.is_err());
}

#[test]
fn both_sides_say_goodbye() {
    for version in VERSIONS {
        let (identity, roots) = identity("goodbye");
        let config = tcp_server_config(&identity, None, &[], KeyExchange::default()).unwrap();
        let mut wire = Wire::new(&config, client(roots, version), vec![10_000]);
        wire.carry().unwrap();
        let mut out = Vec::new();
        wire.server.close(&mut out).unwrap();
        wire.hear(&out);
        let state = wire.client.process_new_packets().unwrap();
        assert!(state.peer_has_closed());
        wire.client.writer().write_all(b"last words").unwrap();
        wire.client.send_close_notify();
        let mut said = Vec::new();
        while wire.client.wants_write() {
            wire.client.write_tls(&mut said).unwrap();
        }
        let received = wire
            .server
            .receive(&mut said, &mut wire.at_server, &mut out);
        assert_eq!(received, Ok(Peer::Closed));
        assert_eq!(wire.at_server, b"last words");
    }
}

/// RFC 8446 §4.6.3: the client asks for new keys whenever it likes, also while something else is on its way.
#[test]
fn keys_are_updated_when_the_client_asks() {
    let (identity, roots) = identity("update");
    let config = tcp_server_config(&identity, None, &[], KeyExchange::default()).unwrap();
    let client = client(roots, &rustls::version::TLS13);
    let mut wire = Wire::new(&config, client, vec![3, 50, 1_000]);
    wire.carry().unwrap();
    for round in 0..20u8 {
        wire.client.writer().write_all(&[round; 100]).unwrap();
        wire.client.refresh_traffic_keys().unwrap();
        wire.client.writer().write_all(&[round; 100]).unwrap();
        wire.carry().unwrap();
        wire.say(&[round; 300]);
    }
    let rounds = |length: usize| {
        (0..20u8)
            .flat_map(|round| vec![round; length])
            .collect::<Vec<_>>()
    };
    assert_eq!(wire.at_server, rounds(200));
    assert_eq!(wire.at_client, rounds(300));
}

/// What is said while a record of the client has come in part.
#[test]
fn a_cut_record_does_not_stop_the_other_direction() {
    let (identity, roots) = identity("cut");
    let config = tcp_server_config(&identity, None, &[], KeyExchange::default()).unwrap();
    for version in VERSIONS {
        let mut wire = Wire::new(&config, client(roots.clone(), version), vec![10_000]);
        wire.carry().unwrap();
        wire.client.writer().write_all(b"question").unwrap();
        let mut record = Vec::new();
        wire.client.write_tls(&mut record).unwrap();
        let (begin, end) = record.split_at_mut(7);
        let mut out = Vec::new();
        wire.server
            .receive(begin, &mut wire.at_server, &mut out)
            .unwrap();
        assert_eq!(wire.server.pending_len(), 7);
        wire.say(b"meanwhile");
        wire.server
            .receive(end, &mut wire.at_server, &mut out)
            .unwrap();
        assert_eq!(
            (&wire.at_server[..], &wire.at_client[..]),
            (&b"question"[..], &b"meanwhile"[..])
        );
    }
}

/// RFC 7301: a client that offers protocols has to offer ours; one that offers none is served.
#[test]
fn application_protocols_have_to_match() {
    let (identity, roots) = identity("alpn");
    let config = tcp_server_config(&identity, None, &["mqtt"], KeyExchange::default()).unwrap();
    for (offered, fits) in [
        (vec![], true),
        (vec![&b"mqtt"[..]], true),
        (vec![&b"h2"[..]], false),
    ] {
        let mut client = client(roots.clone(), &rustls::version::TLS13);
        client.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let carried = Wire::new(&config, client, vec![10_000]).carry();
        assert_eq!(carried.is_ok(), fits, "{offered:?}: {carried:?}");
    }
}

/// The name in the certificate is there after the handshake, and after one that resumes a session.
#[test]
fn a_client_is_known_by_its_certificate() {
    for version in VERSIONS {
        for name in [Some("sensor-17"), Some("naïve 温度"), None] {
            let (identity, roots) = identity("known");
            let folder = Folder::new("known-clients");
            let client = with_certificate(roots, &folder, name, version);
            let clients = ClientAuthorities::load(&folder.0.join("ca.pem"), true).unwrap();
            let config =
                tcp_server_config(&identity, Some(&clients), &[], KeyExchange::default()).unwrap();
            for _ in 0..2 {
                let mut wire = Wire::new(&config, client.clone(), vec![10_000]);
                wire.carry().unwrap();
                let certificate = wire.server.certificate().expect("it has shown one");
                assert_eq!(certificate.common_name.as_deref(), name);
            }
        }
    }
}

#[test]
fn a_certificate_of_somebody_else_or_none_is_refused() {
    for version in VERSIONS {
        let (identity, roots) = identity("strange");
        let (own, strange) = (Folder::new("own"), Folder::new("strange-clients"));
        let good = with_certificate(roots.clone(), &own, Some("a"), version);
        let bad = with_certificate(roots.clone(), &strange, Some("a"), version);
        for required in [true, false] {
            let clients = ClientAuthorities::load(&own.0.join("ca.pem"), required).unwrap();
            let config =
                tcp_server_config(&identity, Some(&clients), &[], KeyExchange::default()).unwrap();
            let carried = |client: ClientConfig| Wire::new(&config, client, vec![777]).carry();
            assert_eq!(carried(good.clone()), Ok(()));
            assert!(matches!(carried(bad.clone()), Err(StreamError::Tls(_))));
            assert_eq!(carried(client(roots.clone(), version)).is_ok(), !required);
        }
    }
}

#[test]
fn wrong_authorities_are_explained() {
    let folder = Folder::new("authorities");
    let error = |content: &str| {
        let file = folder.write("ca.pem", content);
        ClientAuthorities::load(&file, true)
            .unwrap_err()
            .to_string()
    };
    assert!(error("").contains("ca.pem: no certificate in it"));
    assert!(error("-----BEGIN CERTIFICATE-----\nMIIB\n").contains("not valid PEM"));
    let missing = ClientAuthorities::load(&folder.0.join("missing.pem"), true);
    assert!(missing.unwrap_err().to_string().contains("check the path"));
}

/// Worst case of what an idle connection keeps, besides what rustls has on the heap.
#[test]
fn a_stream_is_as_small_as_stated() {
    assert!(
        size_of::<TlsStream>() <= 1_400,
        "{}",
        size_of::<TlsStream>()
    );
}
