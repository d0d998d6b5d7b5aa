//! One client of a swarm: a QUIC connection with an MQTT session on its control stream.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use headgate::net::tls::X25519_MLKEM768;
use headgate_codec::{
    Connect, ConnectProperties, Packet, PacketId, Publish, QoS, Subscribe, SubscriptionOptions,
    Text, Version, decode, encode,
};
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring::kx_group::X25519};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::tickets::{self, FullHandshakes};

/// How clients present themselves: TLS and transport parameters.
#[derive(Clone, Debug)]
pub struct Profile {
    pub(super) config: ClientConfig,
}

impl Profile {
    /// A device: one stream, small windows, no datagrams, silent for up to five minutes.
    pub fn device() -> Self {
        Self::device_of(tls())
    }

    /// A device that exchanges keys by X25519MLKEM768.
    pub fn post_quantum_device() -> Self {
        Self::device_of(tls_with(X25519_MLKEM768))
    }

    /// A device with this TLS.
    pub fn device_of(tls: rustls::ClientConfig) -> Self {
        let mut transport = TransportConfig::default();
        let idle = IdleTimeout::try_from(Duration::from_secs(300)).expect("five minutes fit");
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(64 * 1024))
            .receive_window(VarInt::from_u32(64 * 1024))
            .datagram_receive_buffer_size(None)
            .mtu_discovery_config(None)
            .max_idle_timeout(Some(idle));
        Self::with(tls, transport)
    }

    /// quinn as it comes.
    pub fn quinn_defaults() -> Self {
        Self::with(tls(), TransportConfig::default())
    }

    fn with(tls: rustls::ClientConfig, transport: TransportConfig) -> Self {
        let crypto = QuicClientConfig::try_from(tls);
        let crypto = crypto.expect("TLS 1.3 with AES-128-GCM fits QUIC");
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        Self { config }
    }
}

/// First datagrams of clients, each with a ClientHello of its own: well-formed Initials (RFC 9000 §17.2.2).
///
/// # Panics
/// When quinn-proto refuses to begin.
pub fn first_initials(count: usize) -> Vec<Vec<u8>> {
    let Profile { config } = Profile::device();
    let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 14567));
    let mut initial = || {
        let mut datagram = Vec::new();
        let now = Instant::now();
        let (_, mut connection) = endpoint
            .connect(now, config.clone(), server, "localhost")
            .expect("a connection");
        let sent = connection.poll_transmit(now, 1, &mut datagram);
        datagram.truncate(sent.expect("an Initial").size);
        datagram
    };
    (0..count).map(|_| initial()).collect()
}

/// TLS 1.3 with X25519 only, ALPN `mqtt`, without resumption. The broker's certificate isn't looked at: that is the client's
/// work, and the broker is what is measured.
pub(super) fn tls() -> rustls::ClientConfig {
    tls_with(X25519)
}

/// The same with another key exchange.
fn tls_with(group: &'static dyn SupportedKxGroup) -> rustls::ClientConfig {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.kx_groups = vec![group];
    tls_of(provider, FullHandshakes::default())
}

/// X25519 and AES-128-GCM alone, without resumption: for clients that fall asleep.
pub fn tls_of_one_suite() -> rustls::ClientConfig {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.kx_groups = vec![X25519];
    let suite = rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.retain(|of| of.suite() == suite);
    tls_of(provider, FullHandshakes::default())
}

/// X25519, with a count of handshakes that were full; `resumes` sessions, or never.
pub fn tls_counted(resumes: bool) -> (rustls::ClientConfig, FullHandshakes) {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.kx_groups = vec![X25519];
    let full = FullHandshakes::default();
    let mut config = tls_of(provider, full.clone());
    if resumes {
        config.resumption = tickets::resumption();
    }
    (config, full)
}

fn tls_of(provider: CryptoProvider, full: FullHandshakes) -> rustls::ClientConfig {
    let provider = Arc::new(provider);
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified { provider, full }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"mqtt".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// Believes every certificate.
#[derive(Debug)]
struct Unverified {
    provider: Arc<CryptoProvider>,
    full: FullHandshakes,
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.full.add();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// CONNECT. Without a Session Expiry Interval (seconds) it is a new session that ends with its connection.
pub(super) fn connect(client_id: &str, expiry_s: Option<u32>) -> Bytes {
    bytes_of(&Packet::Connect(Box::new(Connect {
        version: Version::V5,
        clean_start: expiry_s.is_none(),
        keep_alive_s: 600,
        client_id: Text::from(client_id),
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties {
            session_expiry_s: expiry_s,
            ..ConnectProperties::default()
        },
    })))
}

/// SUBSCRIBE.
pub(super) fn subscribe(filters: &[String], qos: QoS) -> Bytes {
    let options = SubscriptionOptions {
        qos,
        ..SubscriptionOptions::default()
    };
    let filter = |filter: &String| (Text::from(filter.as_str()), options);
    bytes_of(&Packet::Subscribe(Box::new(Subscribe {
        packet_id: PacketId::MIN,
        subscription_id: None,
        user_properties: Vec::new(),
        filters: filters.iter().map(filter).collect(),
    })))
}

/// PUBLISH with QoS 0.
pub fn publish(topic: &str, payload: &[u8]) -> Bytes {
    publish_with(topic, payload, QoS::AtMostOnce, None)
}

/// PUBLISH with QoS 1.
pub fn publish_qos1(topic: &str, payload: &[u8], packet_id: PacketId) -> Bytes {
    publish_with(topic, payload, QoS::AtLeastOnce, Some(packet_id))
}

/// PUBLISH with any QoS; all but 0 have a Packet Identifier.
pub fn publish_with(topic: &str, payload: &[u8], qos: QoS, packet_id: Option<PacketId>) -> Bytes {
    bytes_of(&Packet::Publish(Publish {
        dup: false,
        qos,
        retain: false,
        topic: Text::from(topic),
        packet_id,
        properties: None,
        payload: Bytes::copy_from_slice(payload),
    }))
}

fn bytes_of(packet: &Packet) -> Bytes {
    let mut bytes = BytesMut::new();
    encode(packet, Version::V5, &mut bytes);
    bytes.freeze()
}

/// What came in on a control stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reply {
    ConnAck {
        reason: u8,
        receive_maximum: Option<u16>,
    },
    SubAck {
        accepted: bool,
    },
    Publish {
        qos: u8,
        /// Of a PUBLISH with QoS 1 or 2, as it came.
        packet_id: Option<[u8; 2]>,
    },
    PubAck {
        reason: u8,
    },
    PubRec {
        reason: u8,
        packet_id: [u8; 2],
    },
    PubRel {
        packet_id: [u8; 2],
    },
    PubComp {
        reason: u8,
    },
    Disconnect {
        reason: u8,
    },
    /// Of this packet type, but not as the standard has it.
    Malformed(u8),
    /// Anything else; its packet type.
    Other(u8),
}

/// Cuts a stream into packets, reading only as much of them as the load needs.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    /// The beginning of a packet whose end hasn't come.
    partial: Vec<u8>,
    /// A PUBLISH has come, and was well-formed.
    is_checked: bool,
}

impl Cutter {
    pub fn cut(&mut self, chunk: &[u8], mut reply: impl FnMut(Reply)) {
        if self.partial.is_empty() {
            let rest = cut_all(chunk, &mut self.is_checked, &mut reply);
            self.partial.extend_from_slice(rest);
            return;
        }
        self.partial.extend_from_slice(chunk);
        let rest = cut_all(&self.partial, &mut self.is_checked, &mut reply).len();
        self.partial.drain(..self.partial.len() - rest);
    }
}

/// Returns what is left: less than a packet.
fn cut_all<'a>(
    mut bytes: &'a [u8],
    is_checked: &mut bool,
    reply: &mut impl FnMut(Reply),
) -> &'a [u8] {
    while let Ok(Some(length)) = headgate_codec::frame_len(bytes, u32::MAX) {
        let Some((packet, rest)) = bytes.split_at_checked(length) else {
            break;
        };
        let read = read(packet);
        if matches!(read, Reply::Publish { .. }) && !*is_checked {
            *is_checked = true;
            if !is_well_formed(packet) {
                reply(Reply::Malformed(packet[0] >> 4));
            }
        }
        reply(read);
        bytes = rest;
    }
    bytes
}

fn read(packet: &[u8]) -> Reply {
    // Of acknowledgements: Packet Identifier and Reason Code, which may be left out for success.
    let reason = packet.get(4).copied().unwrap_or(0);
    let acknowledged = || packet.get(2..4).and_then(|id| id.try_into().ok());
    match packet[0] >> 4 {
        2 => connack(packet),
        3 => Reply::Publish {
            qos: packet[0] >> 1 & 3,
            packet_id: packet_id(packet),
        },
        4 => Reply::PubAck { reason },
        5 => acknowledged().map_or(Reply::Malformed(5), |packet_id| Reply::PubRec {
            reason,
            packet_id,
        }),
        6 => acknowledged().map_or(Reply::Malformed(6), |packet_id| Reply::PubRel { packet_id }),
        7 => Reply::PubComp { reason },
        // One reason code per filter, at the end.
        9 => Reply::SubAck {
            accepted: packet.last().is_some_and(|&reason| reason < 0x80),
        },
        14 => Reply::Disconnect {
            reason: packet.get(2).copied().unwrap_or(0),
        },
        other => Reply::Other(other),
    }
}

fn connack(packet: &[u8]) -> Reply {
    let mut bytes = Bytes::copy_from_slice(packet);
    let ack = match decode(&mut bytes, Some(Version::V5), u32::MAX) {
        Ok(Some(Packet::ConnAck(ack))) => Some(ack),
        // Not every broker keeps to the letter in its properties (mqttd: Maximum QoS 2). The Reason Code follows the flags.
        _ => None,
    };
    Reply::ConnAck {
        reason: packet.get(3).copied().unwrap_or(0xff),
        receive_maximum: ack.and_then(|ack| ack.properties.receive_maximum),
    }
}

/// The first PUBLISH is read as a client has to, so that no broker is measured that sends something else.
fn is_well_formed(publish: &[u8]) -> bool {
    let mut bytes = Bytes::copy_from_slice(publish);
    matches!(decode(&mut bytes, Some(Version::V5), u32::MAX), Ok(Some(_)))
}

/// The Packet Identifier of a PUBLISH: behind the fixed header and the Topic Name.
fn packet_id(publish: &[u8]) -> Option<[u8; 2]> {
    if publish.first()? & 0x06 == 0 {
        return None;
    }
    let topic = 2 + publish.get(1..)?.iter().position(|byte| byte & 0x80 == 0)?;
    let length = u16::from_be_bytes([*publish.get(topic)?, *publish.get(topic + 1)?]);
    let at = topic + 2 + usize::from(length);
    publish.get(at..at + 2)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_ids_are_found() {
        let id = PacketId::new(0x1234).expect("it is not 0");
        for length in [0, 10, 200, 20_000] {
            let packet = publish_qos1("a/b", &vec![0; length], id);
            assert_eq!(packet_id(&packet), Some([0x12, 0x34]), "{length}");
            assert_eq!(packet_id(&publish("a/b", &vec![0; length])), None);
        }
    }

    #[test]
    fn a_first_publish_that_no_client_can_read_is_told() {
        // QoS 1 without a Packet Identifier.
        let mut cutter = Cutter::default();
        let mut replies = Vec::new();
        let bytes = b"\x32\x0b\x00\x03a/b\x00hello";
        cutter.cut(bytes, |reply| replies.push(reply));
        assert_eq!(replies[0], Reply::Malformed(3));
    }

    #[test]
    fn packets_are_counted_however_they_are_cut() {
        let one = publish("a/b", &[7; 200]);
        let stream: Vec<u8> = one.iter().chain(&one).chain(&one).copied().collect();
        for size in [1, 2, 3, 7, 100, 205, stream.len()] {
            let mut cutter = Cutter::default();
            let mut count = 0;
            for chunk in stream.chunks(size) {
                cutter.cut(chunk, |reply| {
                    count += u32::from(matches!(
                        reply,
                        Reply::Publish {
                            packet_id: None,
                            ..
                        }
                    ))
                });
            }
            assert_eq!((count, cutter.partial.len()), (3, 0), "cut at {size}");
        }
    }
}
