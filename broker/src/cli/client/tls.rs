//! Whose certificates the client trusts, and which it shows.

use super::{ClientError, QuicOptions};
use crate::net::tls::X25519_MLKEM768;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Whose certificates the client trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// The authorities that the system has.
    #[default]
    System,
    /// The certificates of a PEM file: authorities, or the server's own.
    File(PathBuf),
    /// Anybody's: the server is not authenticated.
    Anyone,
}

/// The client's certificate, for a server that asks for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its chain, PEM, the client's own certificate first.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// How the two sides know each other where there is TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Whose certificates the client trusts.
    pub trust: Trust,
    /// The client's certificate.
    pub identity: Option<Identity>,
    /// What is done besides over QUIC.
    pub quic: QuicOptions,
}

/// A TLS configuration with one application protocol (RFC 7301): QUIC has TLS 1.3 only (RFC 9001 §4.2).
pub(super) fn config(
    options: &TlsOptions,
    versions: &[&'static SupportedProtocolVersion],
    protocol: &str,
) -> Result<ClientConfig, ClientError> {
    let mut provider = ring::default_provider();
    // A server that doesn't have it takes the share of X25519 that goes with it.
    provider.kx_groups.insert(0, X25519_MLKEM768);
    config_with(provider, options, versions, protocol)
}

/// The same with what somebody else takes for cryptography.
pub(in crate::cli) fn config_with(
    provider: CryptoProvider,
    options: &TlsOptions,
    versions: &[&'static SupportedProtocolVersion],
    protocol: &str,
) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(provider);
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|error| ClientError::NoTrust {
            reason: error.to_string(),
        })?;
    let builder = match &options.trust {
        Trust::Anyone => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(provider))),
        Trust::System => builder.with_root_certificates(system()?),
        Trust::File(path) => builder.with_root_certificates(file(path)?),
    };
    let mut config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let wrong = |path: &Path, reason: String| ClientError::Identity {
                path: path.to_owned(),
                reason,
            };
            let (certificate, key) = (&identity.certificate, &identity.key);
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect)
                .map_err(|error| wrong(certificate, error.to_string()))?;
            let own = PrivateKeyDer::from_pem_file(key);
            let own = own.map_err(|error| wrong(key, error.to_string()))?;
            builder
                .with_client_auth_cert(chain, own)
                .map_err(|error| wrong(certificate, error.to_string()))?
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Ok(config)
}

fn system() -> Result<RootCertStore, ClientError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let reason = found
            .errors
            .first()
            .map_or_else(|| "none found".into(), ToString::to_string);
        return Err(ClientError::NoTrust { reason });
    }
    Ok(roots)
}

fn file(path: &PathBuf) -> Result<RootCertStore, ClientError> {
    let wrong = |reason: String| ClientError::TrustFile {
        path: path.clone(),
        reason,
    };
    let mut roots = RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("there is no certificate in it".into()));
    }
    Ok(roots)
}

/// Takes any certificate; the handshake's signatures are still verified.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
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
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
