use super::*;
use headgate_codec::Text;
use std::path::Path;

/// The exchange that RFC 7677 §3 prints: user "user", password "pencil".
const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

fn users() -> Arc<Users> {
    let salt = BASE64_STANDARD
        .decode("W22ZaJ0SNY7soEsUEjb6gQ==")
        .expect("Base64");
    let verifier = Verifier::new("pencil", &salt, NonZeroU32::new(4096).expect("not 0"));
    let line = format!("user::{}:seven\nonly:::one\n", verifier.to_text());
    let mut users = Users::parse(&line).expect("the file is right");
    let classified = users.classify(Path::new("users"), |name| Some(name.len() as u8 + 2));
    classified.expect("every class has a number");
    Arc::new(users)
}

fn scram() -> Scram {
    Scram::new(users(), [9; 32])
}

fn challenge(scram: &Scram, first: &str) -> Box<Challenge> {
    let first = ClientFirst::parse(first.as_bytes()).expect("a first message");
    Box::new(scram.challenge(&first, SERVER_NONCE))
}

fn granted(verdict: Verdict) -> Option<Granted> {
    match verdict {
        Verdict::Granted(granted) => Some(granted),
        Verdict::Refused(ReasonCode::NOT_AUTHORIZED) => None,
        _ => panic!("neither granted nor refused"),
    }
}

fn credentials(method: &str, data: Option<&str>) -> Credentials {
    Credentials {
        client_id: Text::from("c"),
        user_name: None,
        password: None,
        method: Some(Text::from(method)),
        data: data.map(|data| Bytes::copy_from_slice(data.as_bytes())),
        certificate: None,
    }
}

#[test]
fn the_exchange_of_rfc_7677_comes_out_as_printed() {
    let challenge = challenge(&scram(), CLIENT_FIRST);
    assert_eq!(challenge.server_first, SERVER_FIRST);
    let granted = granted(challenge.proceed(Some(CLIENT_FINAL.as_bytes()))).expect("granted");
    assert_eq!(granted.data.as_deref(), Some(SERVER_FINAL.as_bytes()));
    assert_eq!(granted.user_name.as_deref(), Some("user"));
    assert_eq!(granted.quota_class, Some(7));
}

#[test]
fn whatever_differs_from_it_is_refused() {
    let scram = scram();
    let proof = "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    for (what, with) in [
        (proof, "p=eHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="),
        (proof, ""),
        // Another gs2-header: somebody in between has changed it.
        ("c=biws", "c=eSws"),
        ("c=biws", "c="),
        ("hNlF$k0", "hNlF$k1"),
        ("r=rOpr", "r=sOpr"),
        (",p=", ",x=1,p="),
    ] {
        let last = CLIENT_FINAL.replace(what, with);
        assert_ne!(last, CLIENT_FINAL);
        let challenge = challenge(&scram, CLIENT_FIRST);
        assert!(
            granted(challenge.proceed(Some(last.as_bytes()))).is_none(),
            "{last}"
        );
    }
    let challenge = challenge(&scram, CLIENT_FIRST);
    assert!(granted(challenge.proceed(None)).is_none());
}

#[test]
fn a_name_that_nobody_has_looks_like_any_other() {
    let scram = scram();
    let salt_of = |scram: &Scram, first: &str| challenge(scram, first).verifier.salt.clone();
    let first = "n,,n=nobody,r=x";
    let there = challenge(&scram, first);
    let iterations = there.verifier.iterations;
    assert_eq!((there.verifier.salt.len(), iterations), (16, 4096));
    assert_eq!(
        salt_of(&scram, first),
        there.verifier.salt,
        "each time the same"
    );
    assert_ne!(salt_of(&scram, "n,,n=nobodx,r=x"), there.verifier.salt);
    assert_ne!(
        salt_of(&Scram::new(users(), [8; 32]), first),
        there.verifier.salt
    );
    // Whoever knew the decoy's key would not be let in, either.
    let nonce = there.nonce.clone();
    let proof = BASE64_STANDARD.encode([0; 32]);
    let last = format!("c=biws,r={nonce},p={proof}");
    assert!(granted(there.proceed(Some(last.as_bytes()))).is_none());
    // A user without a verifier is treated in the same way.
    assert_eq!(salt_of(&scram, "n,,n=only,r=x").len(), 16);
}

#[test]
fn only_its_own_method_is_taken_and_each_nonce_is_new() {
    let scram = scram();
    let first = Some(CLIENT_FIRST);
    assert!(matches!(
        scram.begin(&credentials("SCRAM-SHA-1", first)),
        Verdict::Pass
    ));
    for data in [None, Some(""), Some("p=tls-exporter,,n=user,r=x")] {
        let verdict = scram.begin(&credentials(METHOD, data));
        assert!(matches!(
            verdict,
            Verdict::Refused(ReasonCode::NOT_AUTHORIZED)
        ));
    }
    let mut challenges = [(); 2].map(|()| match scram.begin(&credentials(METHOD, first)) {
        Verdict::Continue { data, .. } => data,
        _ => panic!("a challenge is due"),
    });
    assert!(challenges[0].starts_with(b"r=rOprNGfwEbeRWgbNEkqO"));
    challenges.sort();
    assert_ne!(challenges[0], challenges[1]);
}

#[test]
fn a_verifier_is_written_and_read() {
    let iterations = NonZeroU32::new(ITERATIONS_MIN).expect("not 0");
    let made = verifier("pencil", iterations).expect("random bytes");
    let text = made.to_text();
    let read = Verifier::parse(&text).expect("it is right");
    assert_eq!(read.to_text(), text);
    assert_ne!(
        verifier("pencil", iterations).expect("random").salt,
        made.salt
    );
    assert!(!format!("{made:?}").contains(&BASE64_STANDARD.encode(made.stored_key)));
    for (what, with) in [
        ("SCRAM-SHA-256", "SCRAM-SHA-1"),
        ("$4096:", "$4095:"),
        ("$4096:", "$10000001:"),
        ("$4096:", "$:"),
        ("=:", "A:"),
    ] {
        let wrong = text.replacen(what, with, 1);
        assert_ne!(wrong, text);
        assert!(Verifier::parse(&wrong).is_none(), "{wrong}");
    }
}
