use super::{desk::Desk, pool::Pool, *};
use crate::config::AuthConfig;
use crate::{limits::Limit, mesh::Mesh, metrics::WorkerMetrics};
use headgate_codec::Text;
use headgate_core::{
    AuthResult, AuthStep, ClientCertificate, Completion, ConnId, OpId, WorkerSlot,
};
use std::{fs, path::PathBuf};

/// A password file with one user, ann, whose password is "right" and whose class is 5.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("headgate-auth-{}-{name}", std::process::id()));
        let hash = hash::PasswordHashed::new(b"right").expect("it hashes");
        let user = users::User {
            name: "ann".into(),
            hash: Some(hash),
            scram: None,
            class_name: Some("five".into()),
            quota_class: None,
        };
        fs::write(&path, users::line(&user) + "\n").expect("a file");
        Self(path)
    }

    fn config(&self) -> AuthConfig {
        AuthConfig {
            password_file: self.0.clone(),
            ..AuthConfig::default()
        }
    }

    fn chain(&self, anonymous: bool) -> Chain {
        chain(self.config(), anonymous).expect("the file is right")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// With four quota classes, the last one of which is "five".
fn chain(auth: AuthConfig, anonymous: bool) -> Result<Chain, UsersError> {
    let mut config = Config {
        auth,
        ..Config::default()
    };
    for name in ["a", "b", "c", "five"] {
        config.quota.class_mut(name).expect("a class");
    }
    config.mqtt.allow_anonymous = anonymous;
    Chain::load(&config, [0; 32])
}

fn nothing() -> Credentials {
    Credentials {
        client_id: Text::from("c"),
        user_name: None,
        password: None,
        method: None,
        data: None,
        certificate: None,
    }
}

fn named(name: &str, password: Option<&str>) -> Credentials {
    Credentials {
        user_name: Some(Text::from(name)),
        password: password.map(|password| Bytes::copy_from_slice(password.as_bytes())),
        ..nothing()
    }
}

fn certificate(name: &str) -> Option<Arc<ClientCertificate>> {
    let common_name = Some(Text::from(name));
    Some(Arc::new(ClientCertificate { common_name }))
}

fn certified(name: &str) -> Credentials {
    Credentials {
        certificate: certificate(name),
        ..nothing()
    }
}

/// What comes out in the end.
fn decide(chain: &Chain, credentials: &Credentials) -> (Method, Result<Granted, ReasonCode>) {
    let (method, verdict) = chain.begin(credentials);
    let result = match verdict {
        Verdict::Granted(granted) => Ok(granted),
        Verdict::Refused(reason) => Err(reason),
        Verdict::Work(work) => work(),
        Verdict::Pass | Verdict::Continue { .. } => panic!("not decided"),
    };
    (method, result)
}

fn refused(chain: &Chain, credentials: &Credentials) -> (Method, ReasonCode) {
    let (method, result) = decide(chain, credentials);
    (method, result.expect_err("it is refused"))
}

fn user(chain: &Chain, credentials: &Credentials) -> (Option<Arc<str>>, Option<u8>) {
    let granted = decide(chain, credentials).1.expect("it is granted");
    (granted.user_name, granted.quota_class)
}

#[test]
fn without_any_way_nobody_is_let_in() {
    let chain = Chain::default();
    let unknown = |reason| (Method::Unknown, reason);
    let nobody = refused(&chain, &nothing());
    assert_eq!(nobody, unknown(ReasonCode::NOT_AUTHORIZED));
    let somebody = refused(&chain, &named("ann", None));
    assert_eq!(somebody, unknown(ReasonCode::BAD_USER_NAME_OR_PASSWORD));
    let method = Credentials {
        method: Some(Text::from("X")),
        ..nothing()
    };
    // [MQTT-4.12.0-1]
    assert_eq!(
        refused(&chain, &method),
        unknown(ReasonCode::BAD_AUTHENTICATION_METHOD)
    );
}

#[test]
fn the_password_file_decides_about_whoever_shows_a_name_or_a_password() {
    let file = File::new("decides");
    for anonymous in [false, true] {
        let chain = file.chain(anonymous);
        let ann = (Some("ann".into()), Some(5));
        assert_eq!(user(&chain, &named("ann", Some("right"))), ann);
        let alone = Credentials {
            password: Some(Bytes::from_static(b"right")),
            ..nothing()
        };
        for wrong in [
            named("ann", Some("wrong")),
            named("ann", Some("")),
            named("ann", None),
            named("bob", Some("right")),
            named("", Some("right")),
            alone,
        ] {
            let expected = (Method::Password, ReasonCode::BAD_USER_NAME_OR_PASSWORD);
            assert_eq!(refused(&chain, &wrong), expected, "{wrong:?}");
        }
        match anonymous {
            true => assert_eq!(user(&chain, &nothing()), (None, None)),
            false => {
                let expected = (Method::Unknown, ReasonCode::NOT_AUTHORIZED);
                assert_eq!(refused(&chain, &nothing()), expected);
            }
        }
    }
}

#[test]
fn an_unknown_name_costs_a_hash_like_a_known_one() {
    let file = File::new("cost");
    let chain = file.chain(false);
    for name in ["ann", "bob"] {
        let (_, verdict) = chain.begin(&named(name, Some("x")));
        assert!(matches!(verdict, Verdict::Work(_)), "{name}");
    }
}

#[test]
fn a_certificate_names_its_user_and_nobody_else() {
    let file = File::new("certificate");
    let config = AuthConfig {
        certificate: true,
        ..file.config()
    };
    let chain = chain(config, false).expect("the file is right");
    assert_eq!(
        user(&chain, &certified("ann")),
        (Some("ann".into()), Some(5))
    );
    assert_eq!(
        user(&chain, &certified("device 7")),
        (Some("device 7".into()), None)
    );
    let repeated = Credentials {
        user_name: Some(Text::from("ann")),
        ..certified("ann")
    };
    assert_eq!(user(&chain, &repeated), (Some("ann".into()), Some(5)));
    let other = Credentials {
        user_name: Some(Text::from("bob")),
        ..certified("ann")
    };
    let expected = (Method::Certificate, ReasonCode::BAD_USER_NAME_OR_PASSWORD);
    assert_eq!(refused(&chain, &other), expected);
    // A password is for the password file, whatever the certificate says.
    let password = Credentials {
        certificate: certificate("device 7"),
        ..named("ann", Some("right"))
    };
    assert_eq!(user(&chain, &password), (Some("ann".into()), Some(5)));
    // Where certificates are not to be looked at, one is nothing.
    let chain = file.chain(false);
    assert_eq!(
        refused(&chain, &certified("ann")).1,
        ReasonCode::NOT_AUTHORIZED
    );
}

#[test]
fn anonymous_access_alone_looks_at_no_name() {
    let chain = chain(AuthConfig::default(), true).expect("there is no file");
    assert!(!chain.needs_pool());
    assert_eq!(user(&chain, &named("ann", Some("x"))), (None, None));
    let method = Credentials {
        method: Some(Text::from(scram::METHOD)),
        ..nothing()
    };
    assert_eq!(
        refused(&chain, &method).1,
        ReasonCode::BAD_AUTHENTICATION_METHOD
    );
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    let config = AuthConfig {
        password_file: "/nonexistent/users".into(),
        ..AuthConfig::default()
    };
    let error = chain(config, true).err().expect("there is no file");
    assert!(error.to_string().contains("/nonexistent/users"), "{error}");
}

fn conn(index: u32) -> ConnId {
    ConnId {
        index,
        generation: 0,
    }
}

/// A way that asks the client twice, and one that needs the pool.
struct Slow;

impl Authenticator for Slow {
    fn method(&self) -> Method {
        Method::Password
    }

    fn begin(&self, credentials: &Credentials) -> Verdict {
        match &credentials.method {
            Some(_) => Verdict::Continue {
                data: Bytes::from_static(b"?"),
                exchange: Box::new(Self),
            },
            None => Verdict::Work(Box::new(|| Err(ReasonCode::NOT_AUTHORIZED))),
        }
    }
}

impl Exchange for Slow {
    fn proceed(self: Box<Self>, data: Option<&[u8]>) -> Verdict {
        match data {
            Some(b"more") => Verdict::Continue {
                data: Bytes::from_static(b"?"),
                exchange: self,
            },
            _ => Verdict::Granted(Granted::default()),
        }
    }
}

fn desk(pool: Option<Arc<Pool>>) -> (Desk, Arc<WorkerMetrics>) {
    let metrics = Arc::new(WorkerMetrics::default());
    let chain = Chain {
        ways: vec![Box::new(Slow)],
        needs_pool: true,
    };
    let desk = Desk::new(WorkerSlot(0), Arc::new(chain), pool, Arc::clone(&metrics));
    (desk, metrics)
}

fn result(completion: Option<Completion>) -> AuthResult {
    match completion {
        Some(Completion::Authenticated { result, .. }) => result,
        other => panic!("no answer to an authentication: {other:?}"),
    }
}

#[test]
fn an_exchange_is_kept_until_its_end_or_that_of_its_connection() {
    let (mut desk, _) = desk(None);
    let begin = || {
        AuthStep::Connect(Box::new(Credentials {
            method: Some(Text::from("X")),
            ..nothing()
        }))
    };
    let next = |data| AuthStep::Continue {
        data: Some(Bytes::from_static(data)),
    };
    for n in 0..2 {
        let step = desk.step(OpId(1), conn(n), begin());
        assert!(matches!(result(step), AuthResult::Continue { .. }));
    }
    let step = desk.step(OpId(2), conn(0), next(b"more"));
    assert!(matches!(result(step), AuthResult::Continue { .. }));
    assert_eq!(desk.len(), 2);
    let step = desk.step(OpId(3), conn(0), next(b"enough"));
    assert!(matches!(result(step), AuthResult::Granted(_)));
    desk.forget(conn(1));
    assert!(desk.is_empty());
}

#[test]
fn the_pools_answer_is_for_the_connection_that_asked() {
    let pool = Arc::new(Pool::start(1, 1, &Mesh::new(1)).expect("threads start"));
    let (mut desk, metrics) = desk(Some(Arc::clone(&pool)));
    let begin = || AuthStep::Connect(Box::new(nothing()));
    assert!(
        desk.step(OpId(1), conn(0), begin()).is_none(),
        "it takes a while"
    );
    let mut completions = Vec::new();
    // One is there, and no more may be.
    let busy = desk.step(OpId(2), conn(1), begin());
    assert!(matches!(
        result(busy),
        AuthResult::Refused(ReasonCode::SERVER_BUSY)
    ));
    assert_eq!(metrics.refused[Limit::PasswordChecks].get(), 1);
    while !desk.has_answers() {
        std::thread::yield_now();
    }
    desk.answers(&mut completions);
    let answer = result(completions.pop());
    assert!(matches!(
        answer,
        AuthResult::Refused(ReasonCode::NOT_AUTHORIZED)
    ));
    assert_eq!(metrics.authentications_failed[Method::Password].get(), 1);
    assert!(desk.is_empty());
    // Nobody waits for the second one's answer any more.
    assert!(desk.step(OpId(3), conn(0), begin()).is_none());
    desk.forget(conn(0));
    while desk.step(OpId(4), conn(2), begin()).is_some() {
        desk.answers(&mut completions);
    }
    while !desk.has_answers() {
        std::thread::yield_now();
    }
    desk.answers(&mut completions);
    match completions.as_slice() {
        [Completion::Authenticated { op, .. }] => assert_eq!(*op, OpId(4)),
        other => panic!("one answer, to the last one: {other:?}"),
    }
}
