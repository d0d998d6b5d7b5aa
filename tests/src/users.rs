//! Users for a broker, and the client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677).

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::{digest, hmac, pbkdf2};
use std::{
    fs,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

use crate::broker::binary;

/// A password file in a folder of its own.
#[derive(Debug)]
pub struct Users(TempDir);

impl Users {
    /// A file with these names and passwords, which `headgate passwd` has written.
    ///
    /// # Panics
    /// When that fails.
    pub fn new(users: &[(&str, &str)]) -> Self {
        let new = Self(tempfile::tempdir().expect("a temporary folder"));
        fs::write(new.path(), "# users of a test\n").expect("it is writable");
        for (name, password) in users {
            let output = new.passwd(&["-b", "--iterations", "4096"], &[name, password]);
            assert!(output.status.success(), "{output:?}");
        }
        new
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.0.path().join("users")
    }

    /// A broker's configuration with this file. Whoever shows nothing is let in or not.
    pub fn config(&self, anonymous: bool) -> String {
        let file = self.path();
        format!("[mqtt]\nallow_anonymous = {anonymous}\n[auth]\npassword_file = {file:?}\n")
    }

    /// Runs `headgate passwd` with `flags`, this file, and `rest`.
    ///
    /// # Panics
    /// When it doesn't start.
    pub fn passwd(&self, flags: &[&str], rest: &[&str]) -> Output {
        passwd(&self.path(), flags, rest)
    }
}

/// Runs `headgate passwd` with `flags`, a file, and `rest`.
///
/// # Panics
/// When it doesn't start.
pub fn passwd(file: &Path, flags: &[&str], rest: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("passwd").args(flags).arg(file).args(rest);
    command.stdin(Stdio::null());
    command.output().expect("headgate starts")
}

/// An exchange, as a client sees it.
#[derive(Debug)]
pub struct ScramClient {
    password: String,
    gs2_header: String,
    bare: String,
    /// What the server has to send in the end.
    server_final: String,
}

impl ScramClient {
    /// A client that will say that it is `name`.
    pub fn new(name: &str, password: &str) -> Self {
        let name = name.replace('=', "=3D").replace(',', "=2C");
        Self {
            password: password.to_owned(),
            gs2_header: "n,,".to_owned(),
            bare: format!("n={name},r=fyko+d2lbbFgONRv9qkxdawL"),
            server_final: String::new(),
        }
    }

    /// Says this in front of the first message, as in RFC 5802 §7 (`gs2-header`).
    #[must_use]
    pub fn with_header(mut self, gs2_header: &str) -> Self {
        self.gs2_header = gs2_header.to_owned();
        self
    }

    /// client-first-message.
    pub fn first(&self) -> String {
        format!("{}{}", self.gs2_header, self.bare)
    }

    /// client-final-message, the answer to server-first-message.
    ///
    /// # Panics
    /// When the server's message isn't one.
    pub fn last(&mut self, server_first: &[u8]) -> String {
        let server_first = str::from_utf8(server_first).expect("it is text");
        let mut parts = server_first.split(',');
        let mut part = |name| {
            let part = parts.next().and_then(|part| part.strip_prefix(name));
            part.unwrap_or_else(|| panic!("no {name} where it belongs in {server_first}"))
        };
        let (nonce, salt, iterations) = (part("r="), part("s="), part("i="));
        let own = self.bare.rsplit("r=").next().expect("it has a nonce");
        assert!(nonce.starts_with(own) && nonce.len() > own.len(), "{nonce}");
        let salt = BASE64_STANDARD.decode(salt).expect("it is Base64");
        let iterations: NonZeroU32 = iterations.parse().expect("it is a number");
        let mut salted = [0; 32];
        let password = self.password.as_bytes();
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            &salt,
            password,
            &mut salted,
        );
        let header = BASE64_STANDARD.encode(&self.gs2_header);
        let without_proof = format!("c={header},r={nonce}");
        let message = format!("{},{server_first},{without_proof}", self.bare);
        let client_key = mac(&salted, "Client Key");
        let stored_key = digest::digest(&digest::SHA256, &client_key);
        let signature = mac(stored_key.as_ref(), &message);
        let proof: Vec<u8> = client_key
            .iter()
            .zip(&signature)
            .map(|(a, b)| a ^ b)
            .collect();
        let server = mac(&mac(&salted, "Server Key"), &message);
        self.server_final = format!("v={}", BASE64_STANDARD.encode(server));
        format!("{without_proof},p={}", BASE64_STANDARD.encode(proof))
    }

    /// Whether the server has shown that it knows the user, too.
    pub fn trusts(&self, server_final: Option<&[u8]>) -> bool {
        server_final == Some(self.server_final.as_bytes())
    }
}

fn mac(key: &[u8], message: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
}
