//! A client that sends over QUIC what it must not: `clients/quic_hostile.py`.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use crate::{
    broker::Broker,
    clients::{python, scripts},
};

/// What the broker answers to each of `cases`, which are lines as the script takes them.
///
/// # Panics
/// When the script fails, or does not answer to each.
pub fn answers(broker: &Broker, cases: &[String]) -> Vec<String> {
    let mut command: Command = python();
    command
        .arg(scripts().join("quic_hostile.py"))
        .args(["--port", &broker.quic().port().to_string(), "--ca"])
        .arg(broker.ca_certificate())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("Python starts");
    let mut input = child.stdin.take().expect("it was asked for");
    // Nothing comes back before all is written.
    input
        .write_all(cases.join("\n").as_bytes())
        .expect("the script reads");
    drop(input);
    let output = child.wait_with_output().expect("it is our child");
    let text = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(
        output.status.success() && answers.len() == cases.len(),
        "{} cases, and these answers: {text}",
        cases.len()
    );
    answers
}
