//! Certificates that a test makes for the broker that it starts.

use std::path::{Path, PathBuf};

/// Writes a self-signed ECDSA P-256 certificate for localhost and its key into `folder`.
pub fn write(folder: &Path) -> (PathBuf, PathBuf) {
    let names = ["localhost", "127.0.0.1", "::1"].map(String::from);
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("the folder can be written to");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("the folder can be written to");
    (certificate, key)
}
