//! An MQTT client over quinn, for tests that need many connections on few sockets and sockets
//! that change under them.

use bytes::{Bytes, BytesMut};
use headgate_codec::{
    Ack, Connect, ConnectProperties, Packet, PacketId, Publish, QoS, ReasonCode, Subscribe,
    SubscriptionOptions, Text, Version, decode, encode,
};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

/// What can go wrong; tests print it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Accepts whatever certificate the broker under test made for itself.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS for a client that trusts any server, with one ALPN protocol.
pub fn tls(alpn: &[u8]) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// A quinn endpoint on a socket, with ALPN `mqtt`.
pub fn endpoint(socket: UdpSocket) -> Result<quinn::Endpoint, Error> {
    endpoint_with(socket, tls(b"mqtt"))
}

/// A quinn endpoint that resumes sessions with the servers that it knows, and sends 0-RTT data then.
pub fn early_endpoint(socket: UdpSocket) -> Result<quinn::Endpoint, Error> {
    let mut tls = tls(b"mqtt");
    tls.enable_early_data = true;
    endpoint_with(socket, tls)
}

fn endpoint_with(socket: UdpSocket, tls: rustls::ClientConfig) -> Result<quinn::Endpoint, Error> {
    let runtime = Arc::new(quinn::TokioRuntime);
    let mut endpoint =
        quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime)?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_secs(120).try_into()?));
    config.transport_config(Arc::new(transport));
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// A bidirectional stream with MQTT 5.0 on it.
pub struct Stream {
    /// Client to server.
    pub send: quinn::SendStream,
    /// Server to client.
    pub recv: quinn::RecvStream,
    input: BytesMut,
}

impl Stream {
    /// Opens the connection's next stream.
    pub async fn open(connection: &quinn::Connection) -> Result<Self, Error> {
        let (send, recv) = connection.open_bi().await?;
        let input = BytesMut::new();
        Ok(Self { send, recv, input })
    }

    /// Sends a packet.
    pub async fn send(&mut self, packet: &Packet) -> Result<(), Error> {
        self.send.write_all(&encoded(packet)).await?;
        Ok(())
    }

    /// The next packet.
    pub async fn receive(&mut self) -> Result<Packet, Error> {
        loop {
            let mut bytes: Bytes = self.input.split().freeze();
            let packet = decode(&mut bytes, Some(Version::V5), u32::MAX)?;
            self.input = BytesMut::from(bytes);
            if let Some(packet) = packet {
                return Ok(packet);
            }
            match self.recv.read_chunk(64 * 1024, true).await? {
                Some(chunk) => self.input.extend_from_slice(&chunk.bytes),
                None => return Err("the server ended the stream".into()),
            }
        }
    }
}

/// A packet of MQTT 5.0 on the wire.
pub fn encoded(packet: &Packet) -> Bytes {
    let mut bytes = BytesMut::new();
    encode(packet, Version::V5, &mut bytes);
    bytes.freeze()
}

/// A PUBLISH.
pub fn publish(topic: &str, packet_id: Option<u16>, payload: &[u8]) -> Packet {
    let packet_id = packet_id.and_then(PacketId::new);
    Packet::Publish(Publish {
        dup: false,
        qos: packet_id.map_or(QoS::AtMostOnce, |_| QoS::AtLeastOnce),
        retain: false,
        topic: Text::from(topic),
        packet_id,
        properties: None,
        payload: Bytes::copy_from_slice(payload),
    })
}

/// A SUBSCRIBE to one filter.
pub fn subscribe(packet_id: u16, filter: &str, qos: QoS) -> Subscribe {
    let options = SubscriptionOptions {
        qos,
        ..SubscriptionOptions::default()
    };
    Subscribe {
        packet_id: PacketId::new(packet_id).unwrap_or(PacketId::MIN),
        subscription_id: None,
        user_properties: Vec::new(),
        filters: vec![(Text::from(filter), options)],
    }
}

/// A PUBACK.
pub fn puback(packet_id: PacketId) -> Packet {
    Packet::PubAck(Ack {
        packet_id,
        reason: ReasonCode::SUCCESS,
        properties: None,
    })
}

/// A CONNECT with Clean Start.
pub fn connect(id: &str) -> Connect {
    Connect {
        version: Version::V5,
        clean_start: true,
        keep_alive_s: 60,
        client_id: Text::from(id),
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

/// A session on the control stream of one QUIC connection.
pub struct Client {
    /// The connection.
    pub connection: quinn::Connection,
    /// Its first stream.
    pub control: Stream,
    next_id: u16,
}

impl Client {
    /// Connects and waits for CONNACK with reason 0. Its Keep Alive is a minute.
    pub async fn connect(
        endpoint: &quinn::Endpoint,
        server: SocketAddr,
        id: &str,
    ) -> Result<Self, Error> {
        Self::connect_with(endpoint, server, connect(id)).await
    }

    /// The same with another Keep Alive, seconds; 0 is none.
    pub async fn connect_for(
        endpoint: &quinn::Endpoint,
        server: SocketAddr,
        id: &str,
        keep_alive_s: u16,
    ) -> Result<Self, Error> {
        let connect = Connect {
            keep_alive_s,
            ..connect(id)
        };
        Self::connect_with(endpoint, server, connect).await
    }

    /// The same with another CONNECT.
    pub async fn connect_with(
        endpoint: &quinn::Endpoint,
        server: SocketAddr,
        connect: Connect,
    ) -> Result<Self, Error> {
        let mut client = Self::open(endpoint, server).await?;
        client.send(&Packet::Connect(Box::new(connect))).await?;
        match client.receive().await? {
            Packet::ConnAck(ack) if ack.reason == ReasonCode::SUCCESS => Ok(client),
            other => Err(format!("expected CONNACK, got {other:?}").into()),
        }
    }

    /// A connection with a control stream, on which nothing is sent yet.
    pub async fn open(endpoint: &quinn::Endpoint, server: SocketAddr) -> Result<Self, Error> {
        Self::over(endpoint.connect(server, "localhost")?.await?).await
    }

    /// Begins a connection whose first packets go out as 0-RTT data; nothing is sent on it yet. `None` without a
    /// ticket.
    pub async fn early(
        endpoint: &quinn::Endpoint,
        server: SocketAddr,
    ) -> Result<Option<(Self, quinn::ZeroRttAccepted)>, Error> {
        match endpoint.connect(server, "localhost")?.into_0rtt() {
            Ok((connection, accepted)) => Ok(Some((Self::over(connection).await?, accepted))),
            Err(connecting) => {
                connecting.await?.close(0u32.into(), b"");
                Ok(None)
            }
        }
    }

    async fn over(connection: quinn::Connection) -> Result<Self, Error> {
        let control = Stream::open(&connection).await?;
        Ok(Self {
            connection,
            control,
            next_id: 1,
        })
    }

    /// Opens a data stream.
    pub async fn stream(&self) -> Result<Stream, Error> {
        Stream::open(&self.connection).await
    }

    /// Sends a packet.
    pub async fn send(&mut self, packet: &Packet) -> Result<(), Error> {
        self.control.send(packet).await
    }

    /// The next packet.
    pub async fn receive(&mut self) -> Result<Packet, Error> {
        self.control.receive().await
    }

    /// Subscribes to one filter and waits for SUBACK.
    pub async fn subscribe(&mut self, filter: &str, qos: QoS) -> Result<(), Error> {
        let packet = subscribe(self.packet_id().get(), filter, qos);
        self.send(&Packet::Subscribe(Box::new(packet))).await?;
        match self.receive().await? {
            Packet::SubAck(ack) if ack.reasons.iter().all(|r| r.0 < 0x80) => Ok(()),
            other => Err(format!("expected SUBACK, got {other:?}").into()),
        }
    }

    /// Sends a PUBLISH; with QoS 1 the PUBACK comes back through [`Client::receive`].
    pub async fn publish(&mut self, topic: &str, qos: QoS, payload: &[u8]) -> Result<(), Error> {
        let packet_id = (qos != QoS::AtMostOnce).then(|| self.packet_id());
        self.send(&Packet::Publish(Publish {
            dup: false,
            qos,
            retain: false,
            topic: Text::from(topic),
            packet_id,
            properties: None,
            payload: Bytes::copy_from_slice(payload),
        }))
        .await
    }

    /// Acknowledges a QoS 1 PUBLISH.
    pub async fn acknowledge(&mut self, packet_id: PacketId) -> Result<(), Error> {
        self.send(&puback(packet_id)).await
    }

    fn packet_id(&mut self) -> PacketId {
        let id = PacketId::new(self.next_id).unwrap_or(PacketId::MIN);
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        id
    }
}
