//! Certificates of the broker: by the name that a client asks for, with an OCSP response, and read again while it runs.

use headgate_tests::{
    broker::{self, Broker, certificate},
    quic_client, skip, streams,
};
use nix::sys::signal::Signal;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A sequence in DER, as an OCSP response is one: an `OCSPResponse` that says `tryLater` (RFC 6960 §4.2.1).
const OCSP: [u8; 5] = [0x30, 3, 0x0a, 1, 3];

/// What a server has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shown {
    certificate: Vec<u8>,
    ocsp: Vec<u8>,
}

/// Trusts anybody, and remembers what was shown.
#[derive(Debug)]
struct Watching {
    provider: Arc<CryptoProvider>,
    shown: Mutex<Shown>,
}

impl Watching {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            provider: Arc::new(ring::default_provider()),
            shown: Mutex::default(),
        })
    }

    /// A client's configuration without memory of former sessions.
    fn config(self: &Arc<Self>) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has suites for it")
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = vec![b"mqtt".to_vec()];
        config
    }

    fn shown(&self) -> Shown {
        self.shown.lock().expect("no test panicked with it").clone()
    }
}

impl ServerCertVerifier for Watching {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.shown.lock().expect("no test panicked with it") = Shown {
            certificate: certificate.to_vec(),
            ocsp: ocsp.to_vec(),
        };
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What the broker shows a client that asks for `name` over TLS.
fn over_tls(broker: &Broker, name: &str) -> Shown {
    let watching = Watching::new();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let connection = rustls::ClientConnection::new(Arc::new(watching.config()), name);
    let connection = connection.expect("a configuration");
    let mut stream = rustls::StreamOwned::new(connection, streams::tcp(broker.tls()));
    // PINGREQ before CONNECT: the broker closes, after the handshake.
    stream
        .write_all(&[0xc0, 0])
        .expect("the handshake completes");
    let _closed = stream.read(&mut [0; 16]);
    watching.shown()
}

/// The same over QUIC.
fn over_quic(broker: &Broker, name: &str) -> Shown {
    let watching = Watching::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let endpoint = quic_client::endpoint(socket).expect("an endpoint");
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(watching.config());
        let config = quinn::ClientConfig::new(Arc::new(crypto.expect("TLS 1.3")));
        let connecting = endpoint.connect_with(config, broker.quic(), name);
        let connection = tokio::time::timeout(PATIENCE, connecting.expect("an address")).await;
        let connection = connection
            .expect("in time")
            .expect("the handshake completes");
        connection.close(0u32.into(), b"");
    });
    watching.shown()
}

fn der(pem: &Path) -> Vec<u8> {
    let certificate = CertificateDer::from_pem_file(pem).expect("a certificate");
    certificate.to_vec()
}

/// A file with a certificate for `names` and its key.
fn both_in_one(folder: &Path, file: &str, names: &[&str]) -> PathBuf {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let path = folder.join(file);
    let pem = made.cert.pem() + &made.signing_key.serialize_pem();
    fs::write(&path, pem).expect("a file");
    path
}

#[test]
fn the_name_that_is_asked_for_chooses_the_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = both_in_one(
        folder.path(),
        "one.pem",
        &["one.example", "*.fleet.example"],
    );
    let two = both_in_one(folder.path(), "two.pem", &["two.example"]);
    fs::write(folder.path().join("two.pem.ocsp"), OCSP).expect("a file");
    let broker = Broker::start(&format!("[tls]\nmore_certificates = [{one:?}, {two:?}]"));
    let default = broker.ca_certificate().with_file_name(certificate::CHAIN);
    for (name, file) in [
        ("one.example", &one),
        ("a.fleet.example", &one),
        ("two.example", &two),
        ("localhost", &default),
        ("three.example", &default),
    ] {
        let ocsp = if file == &two {
            OCSP.to_vec()
        } else {
            Vec::new()
        };
        let certificate = der(file);
        let expected = Shown { certificate, ocsp };
        assert_eq!(over_tls(&broker, name), expected, "TLS: {name}");
        assert_eq!(over_quic(&broker, name), expected, "QUIC: {name}");
    }
}

/// What OpenSSL's own client says of the server, and the certificate that it has seen.
fn over_openssl(broker: &Broker, name: &str) -> (String, Vec<u8>) {
    let output = Command::new("openssl")
        .args(["s_client", "-status", "-alpn", "mqtt", "-servername", name])
        .args(["-connect", &broker.tls().to_string()])
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl starts");
    let certificate = CertificateDer::from_pem_slice(&output.stdout).expect("a certificate");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text, certificate.to_vec())
}

/// The same for a TLS that this project doesn't use itself.
#[test]
fn openssl_sees_the_certificate_of_the_name_and_its_ocsp_response() {
    if Command::new("openssl").arg("version").output().is_err() {
        skip!("no openssl");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let one = both_in_one(folder.path(), "one.pem", &["one.example"]);
    let two = both_in_one(folder.path(), "two.pem", &["two.example"]);
    fs::write(folder.path().join("two.pem.ocsp"), OCSP).expect("a file");
    let broker = Broker::start(&format!("[tls]\nmore_certificates = [{one:?}, {two:?}]"));
    for (name, file, ocsp) in [
        ("one.example", &one, "OCSP response: no response sent"),
        ("two.example", &two, "OCSP Response Status: trylater (0x3)"),
    ] {
        let (text, certificate) = over_openssl(&broker, name);
        assert_eq!(certificate, der(file), "{name}: {text}");
        assert!(text.contains(ocsp), "{name}: {text}");
        assert!(text.contains("ALPN protocol: mqtt"), "{name}: {text}");
    }
}

fn reload(broker: &Broker) -> (bool, String) {
    let output = Command::new(broker::binary())
        .args(["reload", "--config"])
        .arg(broker.config_file())
        .output()
        .expect("headgate starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text)
}

#[test]
fn certificates_are_read_again_while_clients_are_connected() {
    let folder = tempfile::tempdir().expect("a folder");
    certificate::write(folder.path());
    let (chain, key) = (
        folder.path().join(certificate::CHAIN),
        folder.path().join(certificate::KEY),
    );
    let config = format!("[tls]\ncertificate = {chain:?}\nkey = {key:?}");
    let broker = Broker::start(&config);
    let mut open = streams::tcp(broker.tls());
    let first = over_quic(&broker, "localhost");
    assert_eq!(first, over_tls(&broker, "localhost"));

    // A new certificate and a new key, by command.
    certificate::write(folder.path());
    let (is_done, error) = reload(&broker);
    assert!(is_done, "{error}");
    let second = over_quic(&broker, "localhost");
    assert_eq!(second.certificate, der(&chain));
    assert_ne!(first, second);
    assert_eq!(second, over_tls(&broker, "localhost"));

    // Half of a change: nothing happens, and it is said which file is wrong.
    let good_key = fs::read(&key).expect("the key");
    fs::write(&key, "no key").expect("a file");
    let (is_done, error) = reload(&broker);
    assert!(!is_done && error.contains(certificate::KEY), "{error}");
    assert_eq!(second, over_quic(&broker, "localhost"));
    assert_eq!(second, over_tls(&broker, "localhost"));
    fs::write(&key, good_key).expect("a file");

    // By signal.
    certificate::write(folder.path());
    broker.signal(Signal::SIGHUP);
    let deadline = Instant::now() + PATIENCE;
    while over_quic(&broker, "localhost") == second {
        assert!(Instant::now() < deadline, "SIGHUP: {}", broker.log());
    }
    assert_eq!(over_tls(&broker, "localhost").certificate, der(&chain));
    // Nobody was disturbed: the broker still waits for this one's ClientHello.
    open.set_nonblocking(true).expect("a socket");
    let silence = open.read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(silence, Err(std::io::ErrorKind::WouldBlock));
}

/// Whoever was verified by an authority that is no longer one can't resume.
#[test]
fn a_changed_authority_ends_resumption() {
    let folder = tempfile::tempdir().expect("a folder");
    certificate::write(folder.path());
    let ca = folder.path().join(certificate::CA);
    let config = format!("[tls]\nclient_ca = {ca:?}\nrequire_client_certificate = true");
    let broker = Broker::start(&config);
    let file = |name: &str| folder.path().join(name);
    let (cert, own) = (file(certificate::CLIENT), file(certificate::CLIENT_KEY));
    let tls = streams::tls_config(&broker.ca_certificate(), Some((&cert, &own)));
    let mut tls = Arc::unwrap_or_clone(tls);
    tls.alpn_protocols = vec![b"mqtt".to_vec()];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let endpoint = quic_client::endpoint(socket).expect("an endpoint");
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("TLS 1.3");
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let connect = async || {
            let connecting = endpoint.connect_with(config.clone(), broker.quic(), "localhost");
            let connection = connecting.expect("an address").await.ok()?;
            // A refusal comes when the client believes that all is well; the ticket behind it says that it is.
            let closed = tokio::time::timeout(Duration::from_secs(2), connection.closed()).await;
            connection.close(0u32.into(), b"");
            closed.is_err().then_some(())
        };
        assert!(connect().await.is_some() && connect().await.is_some());
        certificate::write(folder.path());
        let (is_done, error) = reload(&broker);
        assert!(is_done, "{error}");
        assert!(connect().await.is_none(), "its authority is gone");
    });
}
