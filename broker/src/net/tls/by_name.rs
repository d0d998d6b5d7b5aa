//! Which certificate a client gets that asks for a name (Server Name Indication, RFC 6066 §3).

use std::collections::HashMap;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates by the DNS names that are in them, in lower case; one for many names is there many times.
#[derive(Clone, Debug, Default)]
pub(super) struct ByName {
    exact: Arc<HashMap<String, Arc<CertifiedKey>>>,
    /// By what follows the first label: `*.example.org` stands as `example.org`.
    wildcards: Arc<HashMap<String, Arc<CertifiedKey>>>,
}

impl ByName {
    /// The first certificate that has a name gets it.
    pub fn new(keys: impl Iterator<Item = Arc<CertifiedKey>>) -> Self {
        let (mut exact, mut wildcards) = (HashMap::new(), HashMap::new());
        for key in keys {
            for name in key.cert.first().map(|der| names(der)).unwrap_or_default() {
                match name.strip_prefix("*.") {
                    Some(parent) => wildcards
                        .entry(parent.to_owned())
                        .or_insert_with(|| Arc::clone(&key)),
                    None => exact.entry(name).or_insert_with(|| Arc::clone(&key)),
                };
            }
        }
        Self {
            exact: Arc::new(exact),
            wildcards: Arc::new(wildcards),
        }
    }

    /// A wildcard stands for one label, the first (RFC 9525 §6.3).
    pub fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let parent = name.split_once('.').map(|(_, parent)| parent);
        let wildcard = || self.wildcards.get(parent?);
        self.exact.get(&name).or_else(wildcard)
    }
}

/// The DNS names among a certificate's Subject Alternative Names (RFC 5280 §4.2.1.6).
fn names(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Vec::new();
    };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(dns)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(names: &[&str]) -> Arc<CertifiedKey> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let der = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let signing = rustls::crypto::ring::sign::any_supported_type(&der.unwrap()).unwrap();
        Arc::new(CertifiedKey::new(vec![made.cert.der().clone()], signing))
    }

    #[test]
    fn a_name_finds_its_certificate_whatever_the_case() {
        let (one, two) = (
            key(&["a.example", "b.example"]),
            key(&["*.B.Example", "a.example"]),
        );
        let by_name = ByName::new([Arc::clone(&one), Arc::clone(&two)].into_iter());
        let found = |name: &str| by_name.find(name).map(|key| Arc::ptr_eq(key, &one));
        assert_eq!(found("a.example"), Some(true), "the first that has it");
        assert_eq!(found("B.EXAMPLE"), Some(true));
        assert_eq!(found("device.b.example"), Some(false));
        assert_eq!(found("x.device.b.example"), None, "one label only");
        assert_eq!(found("c.example"), None);
        assert_eq!(found("example"), None);
    }
}
