//! The TLS session of a server's connection, which lets go of rustls when the handshake is over.
//!
//! After the handshake, QUIC needs of TLS only the secrets for the next key update. rustls's state (about 4 KB) is kept
//! until its last message is written, which is the last session ticket, and dropped then. The keys of the next phase
//! are derived when a key update happens, which on an idle connection it never does.

use std::any::Any;
use std::cell::Cell;
use std::sync::Arc;

use headgate_core::ClientCertificate;
use quinn_proto::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn_proto::crypto::{
    self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
    UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::quic::{KeyChange, ServerConnection, Version};
use rustls::{AlertDescription, HandshakeKind, KeyLog};

use super::clients;
use super::keys::{self, ClientKeys, NextPhase};
use super::parameters;
use super::{LiveTls, QUIC_VERSION_1};

/// `quinn_proto::crypto::ServerConfig` whose sessions need little memory once their handshake is over.
pub(super) struct LeanServer {
    tls: Arc<LiveTls>,
    /// Application protocols, as clients may ask for them.
    protocols: Vec<Vec<u8>>,
    /// What needs no session: Retry tags.
    stateless: QuicServerConfig,
}

impl LeanServer {
    /// `tls` must be for TLS 1.3, have the suite of Initial packets, AES-128-GCM, and log its secrets to
    /// [`SecretsTap`].
    pub(super) fn new(tls: Arc<LiveTls>) -> Self {
        let current = tls.current();
        let protocols = current.alpn_protocols.clone();
        let stateless = QuicServerConfig::try_from(current).expect("bug: no AES-128-GCM");
        Self {
            tls,
            protocols,
            stateless,
        }
    }
}

impl crypto::ServerConfig for LeanServer {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        if version != QUIC_VERSION_1 {
            return Err(UnsupportedVersion);
        }
        Ok(keys::initial_keys(dst_cid))
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.stateless.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        _version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        let mut encoded = Vec::new();
        params.write(&mut encoded);
        Box::new(LeanSession::new(self, encoded))
    }
}

/// The secrets that protect 1-RTT packets in the first key phase.
#[derive(Default)]
struct TrafficSecrets {
    client: Vec<u8>,
    server: Vec<u8>,
}

thread_local! {
    /// What rustls has logged in the call that is under way.
    static LOGGED: Cell<TrafficSecrets> = Cell::default();
    /// The name that the last client asked for.
    static LAST_NAME: Cell<Option<Arc<str>>> = Cell::default();
}

/// The same name again, without memory of its own for each connection: nearly all clients ask for the same one.
fn shared_name(name: &str) -> Arc<str> {
    let last = LAST_NAME.take().filter(|last| &**last == name);
    let shared = last.unwrap_or_else(|| name.into());
    LAST_NAME.set(Some(Arc::clone(&shared)));
    shared
}

/// Receives the traffic secrets from rustls, which gives them away in no other form: its own keys hide theirs. They
/// stay within these modules: this one, and the one of the keys.
#[derive(Debug)]
pub struct SecretsTap;

impl SecretsTap {
    /// The keys of a client whose handshake was completed in a call that has just ended, on this thread.
    pub fn client_keys() -> Option<ClientKeys> {
        let logged = LOGGED.take();
        ClientKeys::new(&logged.client, &logged.server)
    }
}

impl KeyLog for SecretsTap {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let mut logged = LOGGED.take();
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => logged.client = secret.to_vec(),
            "SERVER_TRAFFIC_SECRET_0" => logged.server = secret.to_vec(),
            _ => {}
        }
        LOGGED.set(logged);
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, "CLIENT_TRAFFIC_SECRET_0" | "SERVER_TRAFFIC_SECRET_0")
    }
}

/// One connection's session: 72 bytes after the handshake, and the next key phase.
struct LeanSession {
    /// Until the handshake is over and all its messages are written.
    tls: Option<Box<ServerConnection>>,
    server: Arc<LeanServer>,
    /// From when rustls has derived them until the 1-RTT keys are made of them.
    secrets: Option<Box<TrafficSecrets>>,
    /// The key phase after the current one, from when the 1-RTT keys are known.
    next: Option<Arc<dyn NextPhase>>,
    /// Whether quinn-proto has the keys of `next` already.
    next_handed_out: bool,
    /// Whether the client's ClientHello was read, so that the fields below are known.
    negotiated: bool,
    /// The negotiated protocol's place in the list of the server's.
    protocol: Option<u8>,
    server_name: Option<Arc<str>>,
    /// What the client's certificate says; the chain goes with rustls's state.
    certificate: Option<Arc<ClientCertificate>>,
}

impl LeanSession {
    fn new(server: Arc<LeanServer>, transport_parameters: Vec<u8>) -> Self {
        let tls = ServerConnection::new(server.tls.current(), Version::V1, transport_parameters)
            .expect("bug: the configuration is for TLS 1.3 with QUIC suites, which is all that is checked");
        Self {
            tls: Some(Box::new(tls)),
            server,
            secrets: None,
            next: None,
            next_handed_out: false,
            negotiated: false,
            protocol: None,
            server_name: None,
            certificate: None,
        }
    }

    fn fault(&self, error: rustls::Error) -> TransportError {
        let alert = self.tls.as_ref().and_then(|tls| tls.alert());
        match alert {
            Some(alert) => alert_error(alert, error.to_string()),
            None => TransportError {
                code: TransportErrorCode::PROTOCOL_VIOLATION,
                frame: None,
                reason: format!("TLS: {error}"),
            },
        }
    }

    /// Notes what rustls knows of the client; whether that was the first time.
    fn note_client(&mut self) -> bool {
        let Some(tls) = &self.tls else { return false };
        // Of a session that is resumed it was verified then, and 0-RTT data may need it before the handshake is over.
        let is_verified =
            !tls.is_handshaking() || tls.handshake_kind() == Some(HandshakeKind::Resumed);
        if let Some(chain) = tls.peer_certificates().filter(|_| is_verified) {
            self.certificate = chain.first().map(clients::certificate).map(Arc::new);
        }
        // The client's transport parameters are known as soon as its whole ClientHello is.
        if self.negotiated || tls.quic_transport_parameters().is_none() {
            return false;
        }
        self.negotiated = true;
        self.server_name = tls.server_name().map(shared_name);
        let place = |protocol| {
            self.server
                .protocols
                .iter()
                .position(|known| known == protocol)
        };
        self.protocol = tls
            .alpn_protocol()
            .and_then(place)
            .and_then(|place| u8::try_from(place).ok());
        true
    }

    /// The 1-RTT keys, from the secrets that rustls has logged.
    fn one_rtt_keys(&mut self) -> Keys {
        let suite = self
            .tls
            .as_ref()
            .and_then(|tls| tls.negotiated_cipher_suite());
        let secrets = self.secrets.take();
        let (keys, next) = suite
            .zip(secrets)
            .and_then(|(suite, secrets)| keys::one_rtt_keys(suite.suite(), &secrets.server, &secrets.client))
            .expect("bug: rustls has 1-RTT keys, so it has logged their secrets, as long as the suite's hash");
        self.next = Some(next);
        keys
    }
}

impl Session for LeanSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, _side: Side) -> Keys {
        keys::initial_keys(dst_cid)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        if !self.negotiated {
            return None;
        }
        let protocols = &self.server.protocols;
        Some(Box::new(HandshakeData {
            protocol: self
                .protocol
                .and_then(|place| protocols.get(usize::from(place)))
                .cloned(),
            server_name: self.server_name.as_deref().map(str::to_owned),
        }))
    }

    /// What the client's certificate says, `Arc<ClientCertificate>`.
    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        let certificate: Arc<ClientCertificate> = Arc::clone(self.certificate.as_ref()?);
        Some(Box::new(certificate))
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        let keys = self.tls.as_ref()?.zero_rtt_keys()?;
        Some((Box::new(keys.header), Box::new(keys.packet)))
    }

    /// Only clients know.
    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        let Some(tls) = &mut self.tls else {
            // RFC 9001 §6: no key updates by TLS; and a server expects no other message after the handshake.
            let reason = "TLS message after the handshake".to_owned();
            return Err(alert_error(AlertDescription::UnexpectedMessage, reason));
        };
        let read = tls.read_hs(buf);
        let logged = LOGGED.take();
        read.map_err(|error| self.fault(error))?;
        if !logged.server.is_empty() {
            self.secrets = Some(Box::new(logged));
        }
        Ok(self.note_client())
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(encoded) = self
            .tls
            .as_ref()
            .and_then(|tls| tls.quic_transport_parameters())
        else {
            return Ok(None);
        };
        let encoded = parameters::with_few_cids(encoded);
        let parameters = TransportParameters::read(Side::Server, &mut &encoded[..])?;
        Ok(Some(parameters))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let tls = self.tls.as_mut()?;
        let written_before = buf.len();
        match tls.write_hs(buf) {
            Some(KeyChange::Handshake { keys }) => Some(Keys {
                header: KeyPair {
                    local: Box::new(keys.local.header),
                    remote: Box::new(keys.remote.header),
                },
                packet: KeyPair {
                    local: Box::new(keys.local.packet),
                    remote: Box::new(keys.remote.packet),
                },
            }),
            Some(KeyChange::OneRtt { .. }) => Some(self.one_rtt_keys()),
            None => {
                if buf.len() == written_before && !tls.is_handshaking() {
                    // quinn-proto asks until nothing more comes: this was it, the tickets included.
                    self.tls = None;
                }
                None
            }
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let mut phase = self.next.clone()?;
        if self.next_handed_out {
            // A key update makes that phase the current one.
            phase = phase.successor();
            self.next = Some(phase.clone());
        }
        self.next_handed_out = true;
        Some(phase.packet_keys())
    }

    fn is_valid_retry(
        &self,
        _orig_dst_cid: &ConnectionId,
        _header: &[u8],
        _payload: &[u8],
    ) -> bool {
        // Only clients receive Retry packets (RFC 9000 §17.2.5).
        false
    }

    /// Not available: the exporter's secret goes with rustls's state.
    fn export_keying_material(
        &self,
        _output: &mut [u8],
        _label: &[u8],
        _context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

/// RFC 9001 §4.8: a TLS alert becomes the error code 0x0100 + its description.
fn alert_error(alert: AlertDescription, reason: String) -> TransportError {
    TransportError {
        code: TransportErrorCode::crypto(alert.into()),
        frame: None,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;
    use rustls::CipherSuite;
    use rustls::quic::ClientConnection;

    use super::super::tests::{client_tls, client_tls_of, identity};
    use super::super::{KeyExchange, QuicSettings, TicketStore, X25519_MLKEM768, quic_tls_config};
    use super::*;

    /// A session after its handshake, and what its client has.
    struct Done {
        server: LeanSession,
        client: ClientConnection,
        server_keys: Keys,
        client_keys: rustls::quic::Keys,
        client_next: rustls::quic::Secrets,
    }

    fn server(name: &str, session_tickets: usize) -> (Arc<LeanServer>, rustls::RootCertStore) {
        let settings = QuicSettings {
            session_tickets,
            ..QuicSettings::default()
        };
        server_with(name, settings)
    }

    fn server_with(name: &str, settings: QuicSettings) -> (Arc<LeanServer>, rustls::RootCertStore) {
        let (identity, roots) = identity(name);
        let tickets = Arc::new(TicketStore::new(16));
        let tls = quic_tls_config(&identity, None, &settings, &tickets).unwrap();
        (Arc::new(LeanServer::new(LiveTls::new(tls))), roots)
    }

    /// Passes messages between a client of rustls and a session until neither has any more.
    fn handshake(server: &Arc<LeanServer>, client: &Arc<rustls::ClientConfig>) -> Done {
        let name = "localhost".try_into().unwrap();
        let mut client = ClientConnection::new(client.clone(), Version::V1, name, vec![]).unwrap();
        let mut server = LeanSession::new(server.clone(), vec![]);
        let (mut server_keys, mut client_done) = (None, None);
        loop {
            let mut quiet = true;
            let mut bytes = Vec::new();
            while let Some(change) = client.write_hs(&mut bytes) {
                if let KeyChange::OneRtt { keys, next } = change {
                    client_done = Some((keys, next));
                }
            }
            if !bytes.is_empty() {
                server.read_handshake(&bytes).unwrap();
                quiet = false;
            }
            loop {
                let mut bytes = Vec::new();
                let keys = server.write_handshake(&mut bytes);
                if keys.is_none() && bytes.is_empty() {
                    break;
                }
                client.read_hs(&bytes).unwrap();
                server_keys = keys.or(server_keys);
                quiet = false;
            }
            if quiet {
                break;
            }
        }
        let (client_keys, client_next) = client_done.unwrap();
        Done {
            server,
            client,
            server_keys: server_keys.unwrap(),
            client_keys,
            client_next,
        }
    }

    fn crosses(from: &dyn PacketKey, to: &dyn PacketKey) -> bool {
        let mut packet = b"header and payload".to_vec();
        packet.resize(packet.len() + from.tag_len(), 0);
        from.encrypt(5, &mut packet, 6);
        let mut payload = BytesMut::from(&packet[6..]);
        to.decrypt(5, b"header", &mut payload).is_ok() && payload == b" and payload"[..]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Phase after phase, in whichever order the two directions are used, both sides have the same keys, and
        /// those of no other phase.
        #[test]
        fn key_phases_are_those_of_rustls(suite in 0..3usize, used in prop::collection::vec(0..4u8, 1..8)) {
            let suite = [
                CipherSuite::TLS13_AES_128_GCM_SHA256,
                CipherSuite::TLS13_AES_256_GCM_SHA384,
                CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            ][suite];
            let (server, roots) = server("phases", 1);
            let mut done = handshake(&server, &Arc::new(client_tls(roots, Some(suite))));
            let ours = done.server_keys.packet;
            let theirs = (done.client_keys.local.packet, done.client_keys.remote.packet);
            prop_assert!(crosses(&theirs.0, &*ours.remote) && crosses(&*ours.local, &theirs.1));
            let mut before = ours;
            for order in used {
                let ours = done.server.next_1rtt_keys().unwrap();
                let theirs = done.client_next.next_packet_keys();
                // Some phases are passed without a packet in one direction, or in either.
                if order & 1 != 0 {
                    prop_assert!(crosses(&theirs.local, &*ours.remote));
                    prop_assert!(!crosses(&theirs.local, &*before.remote));
                }
                if order & 2 != 0 {
                    prop_assert!(crosses(&*ours.local, &theirs.remote));
                    prop_assert!(!crosses(&*before.local, &theirs.remote));
                }
                before = ours;
            }
        }
    }

    #[test]
    fn rustls_goes_when_the_last_ticket_is_written() {
        for tickets in [0, 1, 2] {
            let (server, roots) = server("tickets", tickets);
            let done = handshake(&server, &Arc::new(client_tls(roots, None)));
            assert!(done.server.tls.is_none() && !done.server.is_handshaking());
            assert!(done.server.secrets.is_none() && LOGGED.take().server.is_empty());
            assert!(!done.client.is_handshaking());
            assert_eq!(done.client.tls13_tickets_received(), tickets as u32);
        }
    }

    #[test]
    fn aes_128_is_preferred() {
        let (server, roots) = server("preference", 1);
        let client = client_tls(roots, None);
        let first = client.crypto_provider().cipher_suites[0].suite();
        assert_ne!(
            first,
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            "the client prefers another one"
        );
        let done = handshake(&server, &Arc::new(client));
        let suite = done.client.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
    }

    /// A handshake of either kind takes one round trip: none of these needs a HelloRetryRequest (RFC 8446 §4.1.4).
    #[test]
    fn the_post_quantum_group_is_taken_where_both_have_it() {
        use rustls::{NamedGroup, crypto::ring::kx_group};
        let hybrid = NamedGroup::X25519MLKEM768;
        let [both, old] = [
            vec![X25519_MLKEM768, kx_group::X25519],
            vec![kx_group::X25519],
        ];
        for (ours, theirs, agreed) in [
            (KeyExchange::PostQuantum, &both, hybrid),
            (KeyExchange::PostQuantum, &old, NamedGroup::X25519),
            (KeyExchange::Classical, &both, NamedGroup::X25519),
            (KeyExchange::Classical, &old, NamedGroup::X25519),
        ] {
            let settings = QuicSettings {
                key_exchange: ours,
                ..QuicSettings::default()
            };
            let (server, roots) = server_with("groups", settings);
            let mut provider = rustls::crypto::ring::default_provider();
            provider.kx_groups.clone_from(theirs);
            let client = Arc::new(client_tls_of(provider, roots));
            for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let client = handshake(&server, &client).client;
                let group = client.negotiated_key_exchange_group();
                assert_eq!(group.map(|group| group.name()), Some(agreed));
                assert_eq!(client.handshake_kind(), Some(kind));
            }
        }
    }

    #[test]
    fn a_ticket_resumes_the_session_after_the_drop() {
        let (server, roots) = server("resume", 1);
        let client = Arc::new(client_tls(roots, None));
        assert_eq!(
            handshake(&server, &client).client.handshake_kind(),
            Some(HandshakeKind::Full)
        );
        for _ in 0..3 {
            let mut done = handshake(&server, &client);
            assert_eq!(done.client.handshake_kind(), Some(HandshakeKind::Resumed));
            assert!(crosses(
                &done.client_keys.local.packet,
                &*done.server_keys.packet.remote
            ));
            assert!(done.server.next_1rtt_keys().is_some());
        }
    }

    #[test]
    fn what_comes_after_the_handshake_is_refused() {
        let (server, roots) = server("late", 1);
        let mut done = handshake(&server, &Arc::new(client_tls(roots, None)));
        // KeyUpdate (RFC 8446 §4.6.3), which RFC 9001 §6 forbids.
        let error = done.server.read_handshake(&[24, 0, 0, 1, 0]).unwrap_err();
        assert_eq!(error.code, TransportErrorCode::crypto(10));
        assert!(done.server.transport_parameters().unwrap().is_none());
        assert!(done.server.write_handshake(&mut Vec::new()).is_none());
    }

    #[test]
    fn what_is_no_client_hello_is_an_alert() {
        let (server, _) = server("garbage", 1);
        for garbage in [&[1, 0, 0, 3, 9, 9, 9][..], &[2, 0, 0, 0], &[1, 0, 0, 0]] {
            let mut session = LeanSession::new(server.clone(), vec![]);
            let error = session.read_handshake(garbage).unwrap_err();
            let code = u64::from(error.code);
            assert!((0x100..0x200).contains(&code), "{garbage:?}: {error}");
            assert!(!session.negotiated && session.handshake_data().is_none());
        }
    }

    #[test]
    fn a_session_is_as_small_as_stated() {
        assert!(
            size_of::<LeanSession>() <= 72,
            "{}",
            size_of::<LeanSession>()
        );
    }
}
