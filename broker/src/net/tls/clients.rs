//! Clients' certificates: whom to ask for one, and what one says.

use super::{KeyExchange, TlsError, provider};
use bytes::Bytes;
use headgate_codec::Text;
use headgate_core::ClientCertificate;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use std::path::Path;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Asks clients for a certificate and verifies it.
#[derive(Clone, Debug)]
pub struct ClientAuthorities {
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientAuthorities {
    /// Reads the authorities in the file `pem`. Without `required`, a client that shows no certificate is let in as
    /// well; one that shows a certificate of somebody else is refused in either case.
    ///
    /// # Errors
    /// Those of the file's contents, which name it.
    pub fn load(pem: &Path, required: bool) -> Result<Self, TlsError> {
        let problem = |problem: String| TlsError::ClientAuthorities {
            path: pem.to_owned(),
            problem,
        };
        let content = std::fs::read(pem).map_err(|error| TlsError::Read {
            path: pem.to_owned(),
            error,
        })?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&content) {
            let certificate =
                certificate.map_err(|error| problem(format!("not valid PEM ({error})")))?;
            roots
                .add(certificate)
                .map_err(|error| problem(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(problem("no certificate in it".to_owned()));
        }
        // It verifies signatures and exchanges no keys.
        let provider = provider(KeyExchange::Classical);
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = match required {
            true => builder,
            false => builder.allow_unauthenticated(),
        };
        let verifier = builder
            .build()
            .map_err(|error| problem(error.to_string()))?;
        Ok(Self { verifier })
    }

    /// For a `rustls::ServerConfig`.
    pub fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }
}

/// What a verified certificate says of its owner.
pub(super) fn certificate(der: &CertificateDer<'_>) -> ClientCertificate {
    ClientCertificate {
        common_name: common_name(der),
    }
}

fn common_name(der: &CertificateDer<'_>) -> Option<Text> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    // Names with U+0000 are refused by `Text`: they have fooled others.
    Text::new(Bytes::copy_from_slice(name.as_str().ok()?.as_bytes()))
}
