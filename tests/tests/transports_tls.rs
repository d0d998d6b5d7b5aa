//! MQTT over TLS on TCP, and clients that show a certificate.

use headgate_codec::QoS;
use headgate_tests::{
    broker::{Broker, certificate},
    clients::{Client, Message, helper},
    skip,
};
use std::{
    path::Path,
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

fn message(payload: &str) -> Message<'_> {
    Message {
        topic: "tls/1",
        payload,
        qos: QoS::AtLeastOnce,
        retain: false,
    }
}

/// mosquitto_pub over TLS, with these flags besides.
fn mosquitto_pub(broker: &Broker, flags: &[&str]) -> Output {
    Command::new("mosquitto_pub")
        .args(["-h", "localhost", "-p", &broker.tls().port().to_string()])
        .args(["-V", "mqttv5", "-q", "1", "-t", "tls/1", "-m", "x"])
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .expect("mosquitto_pub starts")
}

fn path(folder: &Path, file: &str) -> String {
    folder.join(file).display().to_string()
}

#[test]
fn a_foreign_client_hears_another_over_tls() {
    if let Err(reason) = Client::MosquittoTls.available() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    let subscriber = Client::MosquittoTls.subscribe(&broker, "tls/+", QoS::AtLeastOnce, 2);
    Client::MosquittoTls.publish(&broker, message("over TLS"));
    Client::Mosquitto5.publish(&broker, message("over TCP"));
    assert_eq!(subscriber.messages(), ["over TLS", "over TCP"]);
}

/// Both versions of TLS that there are to be had.
#[test]
fn tls_1_2_and_1_3_are_spoken() {
    if let Err(reason) = Client::MosquittoTls.available() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    let ca = broker.ca_certificate().display().to_string();
    for version in ["tlsv1.2", "tlsv1.3"] {
        let output = mosquitto_pub(&broker, &["--cafile", &ca, "--tls-version", version]);
        assert!(output.status.success(), "{version}: {output:?}");
    }
}

/// Which key exchange OpenSSL of pyOpenSSL, which has X25519MLKEM768, agrees on with the broker; it says CONNECT after
/// that.
fn group_of_openssl(broker: &Broker) -> String {
    let output = helper("tls_group.py")
        .args([&broker.tls().port().to_string(), "--ca"])
        .arg(broker.ca_certificate())
        .output()
        .expect("Python starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout)
        .expect("a name")
        .trim()
        .to_owned()
}

#[test]
fn openssl_exchanges_keys_with_ml_kem_where_it_is_offered() {
    if let Err(reason) = Client::Aioquic.available() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    assert_eq!(group_of_openssl(&broker), "X25519MLKEM768");
    let broker = Broker::start("[tls]\npost_quantum = false");
    assert_eq!(group_of_openssl(&broker).to_uppercase(), "X25519");
}

/// The authority of clients, with a client's certificate, and a stranger's.
fn authorities() -> [TempDir; 2] {
    std::array::from_fn(|_| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        certificate::write(folder.path());
        folder
    })
}

fn asking_for_certificates(folder: &Path, required: bool) -> Broker {
    Broker::start(&format!(
        "[tls]\nclient_ca = {:?}\nrequire_client_certificate = {required}",
        folder.join(certificate::CA)
    ))
}

/// Whether a client with the certificate in `folder` gets in.
fn gets_in(broker: &Broker, folder: Option<&Path>) -> bool {
    let ca = broker.ca_certificate().display().to_string();
    let mut flags = vec!["--cafile".to_owned(), ca];
    if let Some(folder) = folder {
        flags.extend(["--cert".to_owned(), path(folder, certificate::CLIENT)]);
        flags.extend(["--key".to_owned(), path(folder, certificate::CLIENT_KEY)]);
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    mosquitto_pub(broker, &flags).status.success()
}

#[test]
fn a_required_certificate_has_to_be_shown() {
    if let Err(reason) = Client::MosquittoTls.available() {
        skip!("{reason}");
    }
    let [own, strange] = authorities();
    let broker = asking_for_certificates(own.path(), true);
    assert!(gets_in(&broker, Some(own.path())));
    assert!(!gets_in(&broker, Some(strange.path())), "a stranger's");
    assert!(!gets_in(&broker, None), "none");
    assert!(gets_in(&broker, Some(own.path())), "nobody else is hurt");
}

#[test]
fn a_certificate_that_is_not_required_may_be_missing_but_not_wrong() {
    if let Err(reason) = Client::MosquittoTls.available() {
        skip!("{reason}");
    }
    let [own, strange] = authorities();
    let broker = asking_for_certificates(own.path(), false);
    assert!(gets_in(&broker, Some(own.path())));
    assert!(gets_in(&broker, None), "none");
    assert!(!gets_in(&broker, Some(strange.path())), "a stranger's");
}
