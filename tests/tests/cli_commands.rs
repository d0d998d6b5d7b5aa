//! The commands as an operator meets them: exit codes, and what is printed.

use headgate_tests::broker::{Broker, binary};
use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

/// Runs headgate to its end in a folder.
fn headgate(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(binary())
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("headgate starts")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn folder(config: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("headgate.toml"), config).expect("it is writable");
    folder
}

const RIGHT: &str = "[listen]\nquic = \"\"\n[mqtt]\nallow_anonymous = true\n";

#[test]
fn check_accepts_what_is_right() {
    let folder = folder(RIGHT);
    let output = headgate(folder.path(), &["check", "--config", "headgate.toml"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(out(&output), "headgate.toml: right\n");
}

#[test]
fn check_says_where_it_is_wrong_and_what_is_allowed() {
    let folder = folder("[listen]\ntcp = \"1883\"\n\n[limits]\nconections = 7\n");
    for command in ["check", "run"] {
        let output = headgate(folder.path(), &[command, "--config", "headgate.toml"]);
        assert_eq!(output.status.code(), Some(2), "{}", out(&output));
        let text = err(&output);
        for expected in [
            "headgate.toml:2:7",
            "tcp = \"1883\"",
            "an IP address and a port",
            "headgate.toml:5:1",
            "did you mean `connections`?",
        ] {
            assert!(text.contains(expected), "{expected} is not in:\n{text}");
        }
    }
}

#[test]
fn check_needs_a_file_that_exists() {
    let folder = folder(RIGHT);
    let output = headgate(folder.path(), &["check", "--config", "missing.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("missing.toml") && err(&output).contains("--print-defaults"));
}

#[test]
fn the_printed_defaults_can_be_used() {
    let folder = folder("");
    let output = headgate(folder.path(), &["check", "--print-defaults"]);
    assert_eq!(output.status.code(), Some(0));
    let config = out(&output)
        .replace("allow_anonymous = false", "allow_anonymous = true")
        .replace("quic = \"[::]:14567\"", "quic = \"\"");
    fs::write(folder.path().join("headgate.toml"), config).expect("it is writable");
    let output = headgate(folder.path(), &["check", "--config", "headgate.toml"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
}

#[test]
fn without_authentication_it_says_how_to_start() {
    let folder = folder("[listen]\nquic = \"\"\n");
    let output = headgate(folder.path(), &["run", "--config", "headgate.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        err(&output).contains("mqtt.allow_anonymous = true"),
        "{}",
        err(&output)
    );
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let folder = folder("");
    for arguments in [
        &["rum"][..],
        &["run", "--worker", "1"],
        &["run", "--set", "limits"],
        &[],
    ] {
        let output = headgate(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(err(&output).contains("--help"), "{}", err(&output));
    }
    let output = headgate(
        folder.path(),
        &["run", "--dev", "--set", "limits.conections=7"],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(
        err(&output).contains("did you mean `connections`?"),
        "{}",
        err(&output)
    );
}

#[test]
fn help_and_version() {
    let folder = folder("");
    let help = headgate(folder.path(), &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(out(&help).contains("headgate run --dev"), "{}", out(&help));
    let version = headgate(folder.path(), &["--version"]);
    assert_eq!(
        out(&version),
        format!("headgate {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn status_without_a_broker_says_what_to_do() {
    let folder = folder("");
    let output = headgate(folder.path(), &["status", "--socket", "none.sock"]);
    assert_eq!(output.status.code(), Some(1));
    let text = err(&output);
    assert!(
        text.contains("none.sock") && text.contains("headgate run"),
        "{text}"
    );
}

#[test]
fn status_of_a_running_broker() {
    let broker = Broker::start("");
    let text = broker.status();
    assert!(text.contains(&format!("pid {}", broker.pid())), "{text}");
    assert!(
        text.contains(&format!("[::]:{}", broker.tcp().port())),
        "{text}"
    );
    let config = broker.config_file();
    let config = config.to_str().expect("it is UTF-8");
    let output = headgate(Path::new("/"), &["status", "--config", config, "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(status["workers"], 2);
    assert_eq!(status["pid"], broker.pid());
    assert_eq!(status["refused"]["connections"], 0);
}

/// The workers share their ports among each other; a second broker does not share with them.
#[test]
fn a_second_broker_on_the_same_ports_is_told() {
    let broker = Broker::start("");
    for (listen, address) in [("tcp", broker.tcp()), ("quic", broker.quic())] {
        let state = tempfile::tempdir().expect("a temporary folder");
        let off = if listen == "tcp" { "quic" } else { "tcp" };
        let config = broker.config_file();
        let arguments = [
            "run".to_owned(),
            format!("--config={}", config.display()),
            format!("--state-dir={}", state.path().display()),
            format!("--admin-socket={}", state.path().join("s").display()),
            "--admin-http=".to_owned(),
            format!("--listen-{off}="),
            "--listen-tls=".to_owned(),
            "--listen-ws=".to_owned(),
            "--listen-wss=".to_owned(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = headgate(state.path(), &arguments);
        assert_eq!(output.status.code(), Some(1), "{}", out(&output));
        let text = err(&output);
        assert!(
            text.contains(&address.port().to_string()) && text.contains("in use"),
            "{text}"
        );
        assert!(!state.path().join("s").exists(), "nothing is left behind");
    }
    let config = broker.config_file();
    let config = config.to_str().expect("it is UTF-8");
    let output = headgate(Path::new("/"), &["run", "--config", config]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("another broker is running"),
        "{}",
        err(&output)
    );
}
