//! A certificate for one broker, and the authority that signed it.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// File of the authority's certificate.
pub const CA: &str = "ca.pem";

/// File of the broker's certificate.
pub const CHAIN: &str = "cert.pem";

/// File of the broker's key.
pub const KEY: &str = "key.pem";

/// Writes the files into `folder`.
pub fn write(folder: &Path) {
    let files = make().expect("making a certificate");
    for (name, text) in [CA, CHAIN, KEY].iter().zip(files) {
        fs::write(folder.join(name), text).expect("writing a certificate");
    }
}

fn make() -> Result<[String; 3], rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.distinguished_name
        .push(DnType::CommonName, "headgate tests");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key)?;

    let key = KeyPair::generate()?;
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut server = CertificateParams::new(names)?;
    server
        .distinguished_name
        .push(DnType::CommonName, "localhost");
    let certificate = server.signed_by(&key, &Issuer::new(ca, ca_key))?;
    Ok([ca_certificate.pem(), certificate.pem(), key.serialize_pem()])
}
