//! Clients of the load that this project did not write: mosquitto_pub, mosquitto_sub and Paho.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::ledger::{Ledger, MessageId, TOPICS};
use super::load::Control;
use crate::clients::{Client, python, scripts};

/// How long a client may take to start and subscribe.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether the foreign clients are installed.
///
/// # Errors
/// The reason, for [`skip!`](crate::skip!).
pub fn available() -> Result<(), String> {
    Client::Mosquitto5.available()?;
    Client::Paho5.available()
}

/// Last lines of a program that has ended by itself, for the account.
const LAST_LINES: usize = 12;

/// A foreign program that runs until this is dropped.
#[derive(Debug)]
pub struct Foreign {
    child: Child,
    reader: Option<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
}

impl Foreign {
    /// Starts a program and hands its lines, one by one, to `take`. One that ends before this is dropped is a problem.
    fn start(
        mut command: Command,
        ledger: Arc<Ledger>,
        mut take: impl FnMut(&str) + Send + 'static,
    ) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
        let output: ChildStdout = child.stdout.take().expect("its output is ours");
        let was_wanted = Arc::clone(&is_over);
        let reader = thread::spawn(move || {
            let mut last = VecDeque::new();
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                take(&line);
                last.push_back(line);
                last.drain(..last.len().saturating_sub(LAST_LINES));
            }
            if !was_wanted.load(Ordering::Relaxed) {
                ledger.problem(format!("{command:?} has ended: {last:#?}"));
            }
        });
        Self {
            child,
            reader: Some(reader),
            is_over,
        }
    }

    fn input(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("its input is ours")
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Runs a foreign subscriber, and waits until it has subscribed. It connects again by itself whenever the connection
/// breaks, and subscribes again then, too.
pub fn subscribe(
    client: Client,
    broker: SocketAddr,
    name: &'static str,
    ledger: &Arc<Ledger>,
) -> Foreign {
    let filter = format!("{TOPICS}/#");
    let port = broker.port().to_string();
    let (command, ready, qos) = match client {
        Client::Paho5 => {
            let mut command = python();
            command.arg(scripts().join("paho_session.py"));
            command.args(["sub", "--port", &port, "--id", name, "--topic", &filter]);
            (command, "ready", 2)
        }
        Client::Mosquitto311 | Client::Mosquitto5 => {
            let is_old = client == Client::Mosquitto311;
            let version = if is_old { "311" } else { "5" };
            // With QoS 2, libmosquitto 2.0.11 takes a PUBLISH that comes again after a reconnect for another message with the
            // same identifier, and hands the old one out again when the identifier is used anew.
            let qos = "1";
            let mut command = Command::new("stdbuf");
            command.args([
                "-oL",
                "mosquitto_sub",
                "-V",
                version,
                "-c",
                "-d",
                "-i",
                name,
            ]);
            command.args(["-h", &broker.ip().to_string(), "-p", &port]);
            command.args(["-t", &filter, "-q", qos]);
            if !is_old {
                command.args(["-x", "3600"]);
            }
            (command, "Subscribed", 1)
        }
        other => panic!("{other} is no subscriber of this load"),
    };
    ledger.subscribed(name, qos);
    let (sender, subscribed) = std::sync::mpsc::channel();
    let account = Arc::clone(ledger);
    let foreign = Foreign::start(command, Arc::clone(ledger), move |line| {
        if line.starts_with(ready) {
            // Nobody listens any more when it subscribes again.
            let _ = sender.send(());
        } else if line.contains(':') && line.starts_with(|first: char| first.is_ascii_digit()) {
            account.received(name, line);
        }
    });
    subscribed
        .recv_timeout(READY_TIMEOUT)
        .unwrap_or_else(|_| panic!("{client} does not subscribe"));
    foreign
}

/// Publishes with Paho, both QoS in turn, until the load ends and all is acknowledged.
pub fn publish_with_paho(
    number: u8,
    interval: Duration,
    broker: SocketAddr,
    ledger: &Arc<Ledger>,
    control: &Control,
) {
    let mut command = python();
    command.arg(scripts().join("paho_session.py"));
    let name = format!("publisher-{number}");
    command.args(["pub", "--port", &broker.port().to_string()]);
    command.args(["--id", &name, "--topic", TOPICS]);
    let (sender, answers) = std::sync::mpsc::channel();
    let account = Arc::clone(ledger);
    let mut paho = Foreign::start(command, Arc::clone(ledger), move |line| {
        let Some((answer, payload)) = line.split_once(' ') else {
            return;
        };
        match (answer, MessageId::of(payload)) {
            ("acknowledged", Some(id)) => account.acknowledged(id),
            ("refused", Some(_)) => account.refused(),
            _ => return,
        }
        // The other end has given up.
        let _ = sender.send(());
    });
    let mut input = paho.input();
    let mut open = 0;
    let mut ids = ids(number);
    while !control.is_stopping() {
        let id = ids.next().expect("it has no end");
        ledger.sent(id);
        if writeln!(input, "{}", id.payload()).is_err() {
            ledger.problem("Paho's publisher has ended".to_owned());
            return;
        }
        open += 1;
        open -= answers.try_iter().count();
        thread::sleep(interval);
    }
    while open > 0 && !control.is_over() {
        open -= usize::from(answers.recv_timeout(interval).is_ok());
    }
    if open > 0 {
        ledger.problem(format!("{name} (Paho) has no answer for {open} messages"));
    }
}

/// Publishes with a mosquitto_pub for each message, both QoS in turn, until the load ends. One that fails is not
/// repeated: the message may have arrived.
pub fn publish_with_mosquitto(
    number: u8,
    interval: Duration,
    broker: SocketAddr,
    ledger: &Ledger,
    control: &Control,
) {
    let (ip, port) = (broker.ip().to_string(), broker.port().to_string());
    for (count, id) in ids(number).enumerate() {
        if control.is_stopping() {
            return;
        }
        let started = Instant::now();
        let version = ["5", "311"][count / 2 % 2];
        ledger.sent(id);
        let output = Command::new("mosquitto_pub")
            .args(["-d", "-V", version, "-h", &ip, "-p", &port])
            .args(["-t", &id.topic(), "-q", &id.qos.to_string()])
            .args(["-m", &id.payload()])
            .stdin(Stdio::null())
            .output();
        // It ends well only when the last packet of the handshake has come.
        if output.is_ok_and(|output| output.status.success() && is_acknowledged(&output.stdout)) {
            ledger.acknowledged(id);
        }
        thread::sleep(interval.saturating_sub(started.elapsed()));
    }
}

fn is_acknowledged(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(said);
    let code = said.lines().find_map(|line| {
        let is_last = line.contains("received PUBACK") || line.contains("received PUBCOMP");
        is_last.then(|| line.split_once("RC:")?.1.trim_end_matches(')').parse().ok())
    });
    code.flatten().is_some_and(|code: u8| code < 0x80)
}

/// The messages of a publisher with both QoS.
fn ids(publisher: u8) -> impl Iterator<Item = MessageId> {
    (1..).flat_map(move |number| {
        [1, 2].map(|qos| MessageId {
            publisher,
            qos,
            number,
        })
    })
}
