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

/// File of a client's certificate, of the same authority. Its Common Name is [`CLIENT_NAME`].
pub const CLIENT: &str = "client.pem";

/// File of the client's key.
pub const CLIENT_KEY: &str = "client-key.pem";

/// Common Name of the client's certificate.
pub const CLIENT_NAME: &str = "sensor-17";

/// Writes the files into `folder`.
pub fn write(folder: &Path) {
    let files = make().expect("making a certificate");
    for (name, text) in [CA, CHAIN, KEY, CLIENT, CLIENT_KEY].iter().zip(files) {
        fs::write(folder.join(name), text).expect("writing a certificate");
    }
}

fn make() -> Result<[String; 5], rcgen::Error> {
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
    let issuer = Issuer::new(ca, ca_key);
    let certificate = server.signed_by(&key, &issuer)?;

    let client_key = KeyPair::generate()?;
    let mut client = CertificateParams::new(Vec::new())?;
    client
        .distinguished_name
        .push(DnType::CommonName, CLIENT_NAME);
    let client = client.signed_by(&client_key, &issuer)?;
    Ok([
        ca_certificate.pem(),
        certificate.pem(),
        key.serialize_pem(),
        client.pem(),
        client_key.serialize_pem(),
    ])
}
