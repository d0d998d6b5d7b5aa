//! Clients that are known by their certificate.

use headgate_codec::QoS;
use headgate_tests::{
    broker::{Broker, certificate},
    clients::{Client, Message},
    skip,
    users::Users,
};
use std::path::Path;
use tempfile::TempDir;

/// An authority of clients, and a client's certificate.
fn authority() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    certificate::write(folder.path());
    folder
}

fn config(authority: &Path, users: Option<&Users>) -> String {
    let ca = authority.join(certificate::CA);
    let file = users.map(Users::path).unwrap_or_default();
    format!(
        "[mqtt]\nallow_anonymous = false\n[tls]\nclient_ca = {ca:?}\n\
         [auth]\ncertificate = true\npassword_file = {file:?}\n"
    )
}

/// What a foreign client is told that publishes over TLS with these flags; `None` = it gets in.
fn refusal(broker: &Broker, certificate_of: Option<&Path>, flags: &[&str]) -> Option<String> {
    let mut all: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    if let Some(folder) = certificate_of {
        for (flag, file) in [
            ("--cert", certificate::CLIENT),
            ("--key", certificate::CLIENT_KEY),
        ] {
            all.extend([flag.to_owned(), folder.join(file).display().to_string()]);
        }
    }
    let message = Message {
        topic: "t",
        payload: "x",
        qos: QoS::AtLeastOnce,
        retain: false,
    };
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let (success, lines) = Client::MosquittoTls.try_publish(broker, message, &all);
    (!success).then(|| lines.concat().to_lowercase())
}

fn is_refused(refusal: Option<String>, why: &str) -> bool {
    refusal.is_some_and(|text| text.contains(why))
}

#[test]
fn a_certificate_takes_the_place_of_a_password() {
    if let Err(reason) = Client::MosquittoTls.available() {
        skip!("{reason}");
    }
    let own = authority();
    let broker = Broker::start(&config(own.path(), None));
    let certified = Some(own.path());
    assert_eq!(refusal(&broker, certified, &[]), None);
    assert!(is_refused(refusal(&broker, None, &[]), "not authori"));
    // It says whose it is; nobody is somebody else by saying so.
    let own_name = ["-u", certificate::CLIENT_NAME];
    assert_eq!(refusal(&broker, certified, &own_name), None);
    let other = refusal(&broker, certified, &["-u", "ann"]);
    assert!(is_refused(other, "bad user name or password"));
    let bare = refusal(&broker, None, &own_name);
    assert!(is_refused(bare, "bad user name or password"));
}

#[test]
fn a_password_counts_for_more_than_a_certificate() {
    if let Err(reason) = Client::MosquittoTls.available() {
        skip!("{reason}");
    }
    let (own, users) = (authority(), Users::new(&[("ann", "secret")]));
    let broker = Broker::start(&config(own.path(), Some(&users)));
    for certificate_of in [Some(own.path()), None] {
        let right = ["-u", "ann", "-P", "secret"];
        assert_eq!(refusal(&broker, certificate_of, &right), None);
        for wrong in [
            ["-u", "ann", "-P", "x"],
            ["-u", certificate::CLIENT_NAME, "-P", "x"],
        ] {
            let refusal = refusal(&broker, certificate_of, &wrong);
            assert!(
                is_refused(refusal, "bad user name or password"),
                "{wrong:?}"
            );
        }
    }
    assert_eq!(refusal(&broker, Some(own.path()), &[]), None);
}
