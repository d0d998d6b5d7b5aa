//! The name in a client's certificate reaches authentication, over every transport that has TLS.

use headgate_tests::broker::{self, Broker, certificate};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Exit code of `headgate pub` when CONNACK refuses.
const REFUSED: i32 = 3;

fn publish(broker: &Broker, url: &str, flags: &[&str]) -> Output {
    Command::new(broker::binary())
        .args([
            "pub", "-L", url, "-q", "1", "-m", "x", "-W", "60", "--cafile",
        ])
        .arg(broker.ca_certificate())
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .expect("headgate starts")
}

/// A broker that lets in whoever shows a certificate of the authority in the folder, and nobody else.
fn start() -> (Broker, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    certificate::write(folder.path());
    let broker = Broker::start(&format!(
        "[tls]\nclient_ca = {:?}\n[mqtt]\nallow_anonymous = false\n[auth]\ncertificate = true",
        folder.path().join(certificate::CA)
    ));
    (broker, folder)
}

fn urls(broker: &Broker) -> [String; 3] {
    [
        format!("quic://localhost:{}/a", broker.quic().port()),
        format!("mqtts://localhost:{}/a", broker.tls().port()),
        format!("wss://localhost:{}/a", broker.wss().port()),
    ]
}

#[test]
fn the_name_in_the_certificate_is_the_user() {
    let (broker, folder) = start();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (cert, key) = (file(certificate::CLIENT), file(certificate::CLIENT_KEY));
    let shown = ["--cert", &cert, "--key", &key];
    for url in urls(&broker) {
        let output = publish(&broker, &url, &shown);
        assert!(output.status.success(), "{url}: {output:?}");
        let named = [&shown[..], &["-u", certificate::CLIENT_NAME]].concat();
        let output = publish(&broker, &url, &named);
        assert!(output.status.success(), "{url}, by name: {output:?}");
        let contradicting = [&shown[..], &["-u", "somebody-else"]].concat();
        let output = publish(&broker, &url, &contradicting);
        assert_eq!(output.status.code(), Some(REFUSED), "{url}: {output:?}");
        let output = publish(&broker, &url, &[]);
        assert_eq!(
            output.status.code(),
            Some(REFUSED),
            "{url}, none: {output:?}"
        );
    }
}

/// A certificate of an authority that the broker doesn't know ends the handshake, in which nobody else takes part.
#[test]
fn a_stranger_s_certificate_ends_the_connection() {
    let (broker, _folder) = start();
    let strange = tempfile::tempdir().expect("a temporary folder");
    certificate::write(strange.path());
    let file = |name: &str| strange.path().join(name).display().to_string();
    let (cert, key) = (file(certificate::CLIENT), file(certificate::CLIENT_KEY));
    for url in urls(&broker) {
        let output = publish(&broker, &url, &["--cert", &cert, "--key", &key]);
        assert_eq!(output.status.code(), Some(1), "{url}: {output:?}");
    }
}
