//! The server's certificate and private key.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;

use super::by_name::ByName;

/// Why TLS can't be set up. All of these are for whoever configures the broker.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file could not be read.
    #[error("{}: {error}; check the path, and that the broker's user may read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        error: io::Error,
    },
    /// The certificate file holds no usable certificate chain.
    #[error("{}: {problem}; it must hold the server's certificate in PEM, followed by its intermediates", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The key file holds no usable private key.
    #[error("{}: {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The file of the authorities of clients' certificates can't be used.
    #[error("{}: {problem}; it must hold the authorities' certificates in PEM", path.display())]
    ClientAuthorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Key and certificate are each readable but don't belong together.
    #[error(
        "the key in {} is not that of the certificate in {}: check that both are of the same issue",
        key.display(), certificate.display()
    )]
    Mismatch {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// A setting is out of range.
    #[error("{problem}")]
    Settings {
        /// Which, and what is allowed.
        problem: String,
    },
    /// rustls refuses to make a configuration.
    #[error("TLS: {0}")]
    Identity(rustls::Error),
}

/// A certificate chain with its private key, and others for clients that ask for other names.
#[derive(Clone)]
pub struct TlsIdentity {
    key: Arc<CertifiedKey>,
    others: ByName,
}

impl TlsIdentity {
    /// Reads the chain in the file `certificate_pem` and the private key (PKCS #8, SEC 1 or PKCS #1, not encrypted) in
    /// the file `key_pem`. If there is a file of the certificate's name and `.ocsp` behind it, it is an OCSP response
    /// (RFC 6960, DER) that clients get with the certificate (RFC 8446 §4.4.2.1).
    ///
    /// # Errors
    /// Those of the files' contents, each naming the file; [`TlsError::Mismatch`] if they don't belong together.
    pub fn load(certificate_pem: &Path, key_pem: &Path) -> Result<Self, TlsError> {
        let chain = read_chain(certificate_pem)?;
        let key = read_key(key_pem)?;
        let signing = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| {
            TlsError::Key {
                path: key_pem.to_owned(),
                problem: format!(
                    "{error}; use ECDSA P-256 or P-384, Ed25519, or RSA of 2,048 bits or more"
                ),
            }
        })?;
        let mut key = CertifiedKey::new(chain, signing);
        key.ocsp = read_ocsp(certificate_pem)?;
        let matching = key.keys_match();
        let identity = Self {
            key: Arc::new(key),
            others: ByName::default(),
        };
        match matching {
            Ok(()) => Ok(identity),
            // A key that doesn't tell its public part can't be compared: clients will see.
            Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(identity),
            Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::Mismatch {
                certificate: certificate_pem.to_owned(),
                key: key_pem.to_owned(),
            }),
            Err(error) => Err(TlsError::Certificate {
                path: certificate_pem.to_owned(),
                problem: error.to_string(),
            }),
        }
    }

    /// The same with further identities, each for the names in its certificate: a client that asks for one of them
    /// (Server Name Indication, RFC 6066 §3) gets that one.
    #[must_use]
    pub fn with_others(self, others: impl IntoIterator<Item = Self>) -> Self {
        let others = ByName::new(others.into_iter().map(|other| other.key));
        Self { others, ..self }
    }

    /// The chain, end entity first.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// For a `rustls::ServerConfig`: this identity, unless the client asks for the name of another one.
    pub fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::new(Resolver(self.clone()))
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity")
            .field("certificates", &self.key.cert.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Resolver(TlsIdentity);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = client_hello.server_name();
        let named = named.and_then(|name| self.0.others.find(name));
        Some(Arc::clone(named.unwrap_or(&self.0.key)))
    }
}

/// The OCSP response beside a certificate, if there is one.
fn read_ocsp(certificate_pem: &Path) -> Result<Option<Vec<u8>>, TlsError> {
    let mut path = certificate_pem.as_os_str().to_owned();
    path.push(".ocsp");
    let path = PathBuf::from(path);
    if !path.exists() {
        return Ok(None);
    }
    let response = read(&path)?;
    match x509_parser::der_parser::parse_der(&response) {
        Ok(([], object)) if object.as_sequence().is_ok() => Ok(Some(response)),
        _ => Err(TlsError::Certificate {
            path,
            problem: "this is no OCSP response in DER; remove it, or write it with \
                      `openssl ocsp … -respout`"
                .to_owned(),
        }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read {
        path: path.to_owned(),
        error,
    })
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let problem = |problem: String| TlsError::Certificate {
        path: path.to_owned(),
        problem,
    };
    let chain = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| problem(format!("not valid PEM ({error})")))?;
    if chain.is_empty() {
        return Err(problem("no certificate in it".to_owned()));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read(path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let encrypted = pem
            .windows(ENCRYPTED.len())
            .any(|window| window == ENCRYPTED);
        let problem = match error {
            pem::Error::NoItemsFound if encrypted => {
                "the key is encrypted; decrypt it with `openssl pkey -in FILE -out NEW_FILE`"
                    .to_owned()
            }
            pem::Error::NoItemsFound => "no private key in it; it must hold one in PEM".to_owned(),
            error => format!("not valid PEM ({error})"),
        };
        TlsError::Key {
            path: path.to_owned(),
            problem,
        }
    })
}

const ENCRYPTED: &[u8] = b"BEGIN ENCRYPTED PRIVATE KEY";

#[cfg(test)]
mod tests {
    use super::super::tests::Folder;
    use super::*;

    struct Made {
        folder: Folder,
        certificate: PathBuf,
        key: PathBuf,
    }

    fn made(name: &str) -> Made {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = Folder::new(name);
        let certificate = folder.write("server.crt", made.cert.pem());
        let key = folder.write("server.key", made.signing_key.serialize_pem());
        Made {
            folder,
            certificate,
            key,
        }
    }

    /// The error's text, which must name `file`.
    fn error(certificate: &Path, key: &Path, file: &str) -> String {
        let error = TlsIdentity::load(certificate, key).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        error
    }

    #[test]
    fn a_chain_and_its_key_are_loaded() {
        let made = made("load");
        let identity = TlsIdentity::load(&made.certificate, &made.key).unwrap();
        assert_eq!(identity.certificates().len(), 1);
        let twice = [
            std::fs::read(&made.certificate).unwrap(),
            std::fs::read(&made.certificate).unwrap(),
        ]
        .concat();
        let chain = made.folder.write("chain.crt", twice);
        assert_eq!(
            TlsIdentity::load(&chain, &made.key)
                .unwrap()
                .certificates()
                .len(),
            2
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let made = made("missing");
        let nowhere = made.folder.0.join("nowhere.pem");
        assert!(error(&nowhere, &made.key, "nowhere.pem").contains("check the path"));
        assert!(error(&made.certificate, &nowhere, "nowhere.pem").contains("check the path"));
    }

    #[test]
    fn wrong_contents_are_explained() {
        let made = made("contents");
        let Made {
            folder,
            certificate,
            key,
        } = &made;
        let empty = folder.write("empty.pem", "");
        assert!(error(&empty, key, "empty.pem").contains("no certificate"));
        assert!(error(certificate, &empty, "empty.pem").contains("no private key"));
        assert!(
            error(key, key, "server.key").contains("no certificate"),
            "the files are exchanged"
        );
        assert!(
            error(certificate, certificate, "server.crt").contains("no private key"),
            "the files are exchanged"
        );
        let cut = folder.write("cut.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n");
        assert!(error(&cut, key, "cut.pem").contains("not valid PEM"));
        let garbage = folder.write(
            "garbage.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        error(&garbage, key, "garbage.pem");
        let garbage = folder.write(
            "garbage.key",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        );
        assert!(error(certificate, &garbage, "garbage.key").contains("ECDSA"));
    }

    #[test]
    fn an_encrypted_key_is_recognized() {
        let made = made("encrypted");
        let content =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let encrypted = made.folder.write("encrypted.key", content);
        assert!(error(&made.certificate, &encrypted, "encrypted.key").contains("openssl pkey"));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, two) = (made("mismatch-1"), made("mismatch-2"));
        let text = error(&one.certificate, &two.key, "mismatch-1");
        assert!(text.contains("mismatch-2"), "both files are named: {text}");
    }
}
