use super::*;
use proptest::prelude::*;
use std::{fs, path::Path};

/// A file with a unique name in a folder of this test process; gone when dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!(
            "headgate-config-{}-{name}.toml",
            std::process::id()
        ));
        fs::write(&path, text).expect("the temporary folder is writable");
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What makes the defaults complete.
fn base() -> Config {
    let mut base = Config::default();
    base.mqtt.allow_anonymous = true;
    base.tls.certificate = "cert.pem".into();
    base.tls.key = "key.pem".into();
    base
}

fn load(name: &str, text: &str) -> Result<Loaded, ConfigError> {
    let file = File::new(name, text);
    Sources {
        base: base(),
        file: Some(file.0.clone()),
        ..Sources::default()
    }
    .load()
}

/// Each message that waits for a session or is on its way to it needs a Packet Identifier.
#[test]
fn there_are_packet_identifiers_for_all_that_may_wait() {
    let limit = |n: u32| {
        load(
            "ids",
            &format!("[limits]\nqueued_messages_per_session = {n}"),
        )
    };
    assert!(limit(64_744).is_ok() && limit(64_745).is_err());
    let class = |n: u32| load("ids", &format!("[quota.default]\nqueued_messages = {n}"));
    assert!(class(64_744).is_ok() && class(64_745).is_err());
}

#[test]
fn the_printed_file_parses_to_the_defaults() {
    let text = Config::defaults_toml();
    let mut base = base();
    base.node.id = 99;
    base.kernel.interfaces = vec!["eth9".to_owned()];
    let file = File::new("defaults", &text);
    let loaded = Sources {
        base,
        file: Some(file.0.clone()),
        ..Sources::default()
    }
    .load();
    let error = loaded.expect_err("by default nobody may connect");
    assert!(
        error
            .problems
            .iter()
            .all(|p| p.message.contains("anonymous") || p.message.contains("certificate")),
        "{error}"
    );
    let text = text
        .replace("allow_anonymous = false", "allow_anonymous = true")
        .replace("certificate = \"\"", "certificate = \"cert.pem\"")
        .replace("key = \"\"", "key = \"key.pem\"");
    let loaded = load("complete", &text).expect("the printed file is right");
    assert_eq!(loaded.config, self::base());
}

#[test]
fn the_printed_file_says_what_each_key_means() {
    for section in SECTIONS {
        for key in section.keys {
            let docs = key.docs.concat();
            assert!(docs.len() > 15, "{}.{}: {docs:?}", section.name, key.name);
            assert!(!(key.allowed)().is_empty());
        }
    }
    assert!(
        Config::defaults_toml()
            .lines()
            .all(|line| line.chars().count() <= 110)
    );
}

/// (name, file, line, column, text that is marked, in the message, in the help)
const WRONG: &[(&str, &str, usize, usize, &str, &str, &str)] = &[
    (
        "range",
        "[node]\nworkers = 300\n",
        2,
        11,
        "300",
        "`300` is not allowed for node.workers",
        "allowed: a whole number from 0 to 255",
    ),
    (
        "type",
        "\n[limits]\n  connections = \"many\" # ?\n",
        3,
        17,
        "\"many\"",
        "`\"many\"` is not allowed",
        "0 to 4_294_967_295",
    ),
    (
        "negative",
        "[limits]\nconnections = -1\n",
        2,
        15,
        "-1",
        "limits.connections",
        "whole number",
    ),
    (
        "float",
        "[limits]\nconnections = 1.5\n",
        2,
        15,
        "1.5",
        "limits.connections",
        "whole number",
    ),
    (
        "word",
        "[kernel]\nmode = \"nativ\"\n",
        2,
        8,
        "\"nativ\"",
        "kernel.mode",
        "did you mean \"native\"?",
    ),
    (
        "words",
        "[kernel]\nsteering = \"\"\n",
        2,
        12,
        "\"\"",
        "kernel.steering",
        "allowed: \"auto\", \"reuseport\", \"cpumap\" or \"none\"",
    ),
    (
        "key",
        "[limits]\nconections = 1\n",
        2,
        1,
        "conections",
        "unknown key `conections` in [limits]",
        "did you mean `connections`?",
    ),
    (
        "moved key",
        "[mqtt]\nquic = \"\"\n",
        2,
        1,
        "quic",
        "unknown key `quic` in [mqtt]",
        "below [listen]",
    ),
    (
        "section",
        "[limit]\nconnections = 1\n",
        1,
        2,
        "limit",
        "unknown section [limit]",
        "did you mean [limits]?",
    ),
    (
        "no section",
        "workers = 1\n",
        1,
        1,
        "workers",
        "outside of any section",
        "below [node]",
    ),
    (
        "section as key",
        "node = 3\n",
        1,
        8,
        "3",
        "`node` is a section",
        "[node]",
    ),
    (
        "address",
        "[listen]\ntcp = \"localhost\"\n",
        2,
        7,
        "\"localhost\"",
        "listen.tcp",
        "an IP address and a port",
    ),
    (
        "list",
        "[kernel]\ninterfaces = \"eth0\"\n",
        2,
        14,
        "\"eth0\"",
        "kernel.interfaces",
        "a list of texts",
    ),
    (
        "item",
        "[kernel]\ninterfaces = [1]\n",
        2,
        14,
        "[1]",
        "kernel.interfaces",
        "a list of texts",
    ),
    (
        "syntax",
        "[node]\nid = \n",
        2,
        6,
        "",
        "not TOML",
        "key = value",
    ),
    (
        "twice",
        "[node]\nid = 1\nid = 2\n",
        3,
        1,
        "id",
        "not TOML: duplicate key",
        "key = value",
    ),
    (
        "umlaut",
        "[node]\nstate_dir = \"ü\" # ü\nid = \"ü\"\n",
        3,
        6,
        "\"ü\"",
        "node.id",
        "whole number",
    ),
    (
        "off",
        "[listen]\nquic = \"\"\ntcp = \"\"\n",
        2,
        8,
        "\"\"",
        "all listeners are off",
        "set listen.quic",
    ),
    (
        "anonymous",
        "[mqtt]\nallow_anonymous = false\n",
        2,
        19,
        "false",
        "nobody could connect",
        "allow_anonymous = true",
    ),
    (
        "native",
        "[kernel]\nmode = \"native\"\n",
        2,
        8,
        "\"native\"",
        "names no interface",
        "ip link",
    ),
    (
        "cpumap",
        "[kernel]\nmode = \"off\"\nsteering = \"cpumap\"\n",
        3,
        12,
        "\"cpumap\"",
        "native mode",
        "kernel.mode",
    ),
    (
        "interface",
        "[kernel]\ninterfaces = [\"e/0\"]\n",
        2,
        14,
        "[\"e/0\"]",
        "not the name",
        "ip link",
    ),
    (
        "packet",
        "[limits]\npacket_bytes_max = 2_000_000\n",
        2,
        20,
        "2_000_000",
        "could not be delivered",
        "lower",
    ),
    (
        "certificate of TLS",
        "[listen]\nquic = \"\"\nwss = \"[::]:8084\"\n[tls]\ncertificate = \"\"\n",
        5,
        15,
        "\"\"",
        "listen.wss need a certificate",
        "set tls.certificate",
    ),
    (
        "clients' authorities",
        "[tls]\nrequire_client_certificate = true\n",
        2,
        30,
        "true",
        "whose certificates are good",
        "set tls.client_ca",
    ),
    (
        "a listener's name",
        "[listen]\nproxy_protocol = [\"tcp\", \"quic\"]\n",
        2,
        18,
        "[\"tcp\", \"quic\"]",
        "a listener that there is not",
        "\"wss\"",
    ),
    (
        "key file",
        "[tls]\nkey = \"\"\ncertificate = \"c\"\n",
        3,
        15,
        "\"c\"",
        "tls.key is not",
        "set tls.key",
    ),
];

#[test]
fn errors_say_where_and_what_is_allowed() {
    for (name, text, line, column, marked, message, help) in WRONG {
        let error = load(name, text).expect_err(name);
        assert_eq!(error.problems.len(), 1, "{name}: {error}");
        let problem = &error.problems[0];
        let Origin::File(location) = &problem.origin else {
            panic!("{name}: {problem:?}")
        };
        assert_eq!(
            (location.line, location.column),
            (*line, *column),
            "{name}: {error}"
        );
        let found: String = location
            .text
            .chars()
            .skip(column - 1)
            .take(location.width)
            .collect();
        assert_eq!(found, *marked, "{name}: {error}");
        assert!(problem.message.contains(message), "{name}: {error}");
        assert!(problem.help.join("\n").contains(help), "{name}: {error}");
        let shown = format!(":{line}:{column}\n");
        assert!(error.to_string().contains(&shown), "{name}: {error}");
    }
}

#[test]
fn all_problems_are_listed_from_the_top() {
    let error = load("all", "[node]\nid = -1\nworker = 2\n[admin]\nhttp = 3\n")
        .expect_err("three are wrong");
    let lines: Vec<usize> = error
        .problems
        .iter()
        .map(|problem| match &problem.origin {
            Origin::File(location) => location.line,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lines, [2, 3, 5]);
}

#[test]
fn a_problem_is_drawn_below_its_text() {
    let file = File::new("drawn", "[node]\n\tid = \"x\"\n");
    let sources = Sources {
        base: base(),
        file: Some(file.0.clone()),
        ..Sources::default()
    };
    let error = sources.load().expect_err("an id is a number");
    let expected = format!(
        "error: `\"x\"` is not allowed for node.id\n  --> {}:2:7\n   |\n 2 | \tid = \"x\"\n   | \t     ^^^\n  = allowed: a whole number from 0 to 65_535\n",
        file.0.display()
    );
    assert_eq!(error.to_string(), expected);
}

fn flag(section: &str, key: &str, value: &str) -> Flag {
    let [flag, section, key, value] = ["--test", section, key, value].map(str::to_owned);
    Flag {
        flag,
        section,
        key,
        value,
    }
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = File::new(
        "layers",
        "[limits]\nconnections = 1\nretained_messages = 1\nretained_bytes = 1\n",
    );
    let sources = Sources {
        base: base(),
        file: Some(file.0.clone()),
        environment: vec![
            ("HEADGATE_LIMITS_CONNECTIONS".into(), "2".into()),
            ("HEADGATE_LIMITS_RETAINED_MESSAGES".into(), "2_000".into()),
            ("HEADGATE_LISTEN_TCP".into(), String::new()),
            ("HEADGATE_PORT".into(), "tcp://10.0.0.1:1883".into()),
            ("PATH".into(), "/bin".into()),
        ],
        flags: vec![
            flag("limits", "connections", "3"),
            flag("kernel", "interfaces", "lo,eth0"),
        ],
    };
    let loaded = sources.load().expect("all is right");
    assert_eq!(loaded.config.limits.connections, 3);
    assert_eq!(loaded.config.limits.retained_messages, 2_000);
    assert_eq!(loaded.config.limits.retained_bytes, 1);
    assert_eq!(loaded.config.listen.tcp, None);
    assert_eq!(loaded.config.kernel.interfaces, ["lo", "eth0"]);
    assert_eq!(
        loaded.origin("limits", "connections"),
        Origin::Flag("--test".into())
    );
    assert_eq!(loaded.origin("mqtt", "allow_anonymous"), Origin::Default);
}

#[test]
fn wrong_variables_and_flags_are_named() {
    for (variable, value, message, help) in [
        (
            "HEADGATE_NODE_WORKERS",
            "many",
            "`many` is not allowed for node.workers",
            "0 to 255",
        ),
        (
            "HEADGATE_NODE_WORKER",
            "1",
            "unknown key `worker` in [node]",
            "did you mean `workers`?",
        ),
        (
            "HEADGATE_KERNEL_INTERFACES",
            "eth0",
            "it is a list",
            "configuration file",
        ),
        (
            "HEADGATE_LOG_LEVEL",
            "warning",
            "log.level",
            "did you mean \"warn\"?",
        ),
    ] {
        let environment = vec![(variable.to_owned(), value.to_owned())];
        let error = Sources {
            base: base(),
            environment,
            ..Sources::default()
        }
        .load()
        .expect_err(variable);
        assert_eq!(error.problems.len(), 1, "{error}");
        assert_eq!(
            error.problems[0].origin,
            Origin::Environment(variable.into())
        );
        assert!(error.problems[0].message.contains(message), "{error}");
        assert!(error.problems[0].help.join("\n").contains(help), "{error}");
    }
    let flags = vec![flag("node", "workers", "256")];
    let error = Sources {
        base: base(),
        flags,
        ..Sources::default()
    }
    .load()
    .expect_err("too many");
    assert_eq!(error.problems[0].origin, Origin::Flag("--test".into()));
}

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    let missing = Sources {
        file: Some("/nonexistent/headgate.toml".into()),
        ..Sources::default()
    }
    .load();
    assert!(
        missing
            .expect_err("it isn't there")
            .to_string()
            .contains("/nonexistent/headgate.toml")
    );

    let loaded = load(
        "no certificate",
        "[tls]\ncertificate = \"/nonexistent/c.pem\"\nkey = \"/nonexistent/k.pem\"\n",
    )
    .expect("files are looked at later");
    let error = check_files(&loaded).expect_err("they aren't there");
    let lines: Vec<_> = error
        .problems
        .iter()
        .map(|problem| match &problem.origin {
            Origin::File(location) => (location.line, problem.message.contains("/nonexistent/")),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lines, [(2, true), (3, true)], "{error}");

    let empty = File::new("empty", "");
    let text = format!("[tls]\ncertificate = {:?}\nkey = {:?}\n", empty.0, empty.0);
    let error = check_files(&load("empty pem", &text).expect("files are looked at later"));
    let error = error
        .expect_err("an empty file is no certificate")
        .to_string();
    assert!(
        error.contains("no certificate") && error.contains("no private key"),
        "{error}"
    );

    let off = load(
        "off",
        "[listen]\nquic = \"\"\n[tls]\ncertificate = \"/nonexistent\"\n",
    )
    .expect("right");
    assert!(
        check_files(&off).is_ok(),
        "without QUIC no certificate is needed"
    );
}

#[test]
fn derived_values() {
    let mut config = Config::default();
    assert_eq!(
        config.admin_socket(),
        Path::new("/var/lib/headgate/admin.sock")
    );
    config.admin.socket = "/run/x".into();
    assert_eq!(config.admin_socket(), Path::new("/run/x"));
    assert!(config.udp_gro(1) && !config.udp_gro(2));
    config.listen.udp_gro = UdpGro::On;
    assert!(config.udp_gro(2));
}

#[test]
fn gro_is_a_boolean_or_auto() {
    for (text, expected) in [
        ("true", UdpGro::On),
        ("false", UdpGro::Off),
        ("\"auto\"", UdpGro::Auto),
    ] {
        let loaded = load("gro", &format!("[listen]\nudp_gro = {text}\n")).expect("right");
        assert_eq!(loaded.config.listen.udp_gro, expected);
    }
}

proptest! {
    /// Whatever stands in the file, reading it ends with a configuration or with problems that can
    /// be shown.
    #[test]
    fn any_file_is_answered(text in "(\\[?(node|listen|limits|x)\\]?|[a-z_]{1,4}|[ =\"'\\[\\]{},.#\n\t0-9ü]){0,40}") {
        let file = File::new("any", &text);
        let sources = Sources { base: base(), file: Some(file.0.clone()), ..Sources::default() };
        if let Err(error) = sources.load() {
            prop_assert!(!error.problems.is_empty());
            prop_assert!(error.to_string().starts_with("error: "));
        }
    }
}
