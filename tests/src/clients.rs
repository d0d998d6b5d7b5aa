//! MQTT clients that this project did not write, as programs that publish and subscribe.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use headgate_codec::QoS;

use crate::broker::Broker;

/// How long a client may take for everything it does.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// What every payload begins with, so that it is told apart from what a client says about itself.
const PAYLOAD_PREFIX: &str = "payload:";

/// A foreign client.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Client {
    /// Debian's mosquitto_pub and mosquitto_sub, MQTT 3.1.1 over TCP.
    Mosquitto311,
    /// The same, MQTT 5.0 over TCP.
    Mosquitto5,
    /// The same, MQTT 5.0 over TLS.
    MosquittoTls,
    /// Eclipse Paho for Python, MQTT 3.1.1 over TCP.
    Paho311,
    /// The same, MQTT 5.0 over TCP.
    Paho5,
    /// The same, MQTT 5.0 over WebSocket.
    PahoWs,
    /// The same, MQTT 3.1.1 over WebSocket over TLS.
    PahoWss,
    /// mqttv5-cli, MQTT 5.0 over QUIC.
    Mqttv5Quic,
    /// mqttv5-cli, MQTT 5.0 over TCP.
    Mqttv5Tcp,
    /// aioquic, with packets that a script writes onto the control stream itself.
    Aioquic,
}

/// A message to be published.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Topic Name.
    pub topic: &'a str,
    /// Application Message; one line.
    pub payload: &'a str,
    /// Quality of Service.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
}

/// A client that has subscribed and waits for messages.
#[derive(Debug)]
pub struct Subscriber {
    client: Client,
    process: Process,
}

impl Client {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Mosquitto311,
        Self::Mosquitto5,
        Self::MosquittoTls,
        Self::Paho311,
        Self::Paho5,
        Self::PahoWs,
        Self::PahoWss,
        Self::Mqttv5Quic,
        Self::Mqttv5Tcp,
        Self::Aioquic,
    ];

    /// Whether the client is installed.
    ///
    /// # Errors
    /// The reason for which it can't be used, for [`skip!`](crate::skip!).
    pub fn available(self) -> Result<(), String> {
        let (mut command, hint) = match self {
            Self::Mosquitto311 | Self::Mosquitto5 | Self::MosquittoTls => {
                (Command::new("mosquitto_pub"), "Debian: mosquitto-clients")
            }
            Self::Paho311 | Self::Paho5 | Self::PahoWs | Self::PahoWss | Self::Aioquic => {
                (python(), "cargo xtask setup --tests")
            }
            Self::Mqttv5Quic | Self::Mqttv5Tcp => {
                (Command::new(mqttv5()), "cargo xtask setup --tests")
            }
        };
        // mosquitto_pub takes --help for a failure; that it starts is enough.
        let started = command.arg("--help").stdin(Stdio::null()).output();
        started
            .map(|_| ())
            .map_err(|_| format!("{self} is not installed ({hint})"))
    }

    /// Publishes `message` and waits until the broker has answered for it.
    ///
    /// # Panics
    /// When the client fails.
    pub fn publish(self, broker: &Broker, message: Message<'_>) {
        let (success, lines) = self.try_publish(broker, message, &[]);
        assert!(
            success,
            "{self} could not publish to {}: {lines:#?}",
            message.topic
        );
    }

    /// Publishes `message` with more flags of the client's own; whether that worked, and what the client said.
    ///
    /// # Panics
    /// When the client doesn't start.
    pub fn try_publish(
        self,
        broker: &Broker,
        message: Message<'_>,
        flags: &[&str],
    ) -> (bool, Vec<String>) {
        let mut command = self.command(broker, "pub", message.topic, message.qos);
        let text = format!("{PAYLOAD_PREFIX}{}", message.payload);
        match self {
            Self::Mosquitto311
            | Self::Mosquitto5
            | Self::MosquittoTls
            | Self::Mqttv5Quic
            | Self::Mqttv5Tcp => {
                command.args(["-m", &text]);
                command.args(message.retain.then_some("-r"));
            }
            Self::Paho311 | Self::Paho5 | Self::PahoWs | Self::PahoWss | Self::Aioquic => {
                command.args(["--message", &text]);
                command.args(message.retain.then_some("--retain"));
            }
        }
        command.args(flags);
        let mut process = Process::start(command);
        let lines = process.rest();
        (process.success(), lines)
    }

    /// Subscribes to `filter`, and waits until the broker has acknowledged that. The client ends after `count`
    /// messages.
    ///
    /// # Panics
    /// When the client fails.
    pub fn subscribe(self, broker: &Broker, filter: &str, qos: QoS, count: usize) -> Subscriber {
        self.subscribe_with(broker, filter, qos, count, &[])
    }

    /// As [`Client::subscribe`], with more flags of the client's own.
    ///
    /// # Panics
    /// When the client fails.
    pub fn subscribe_with(
        self,
        broker: &Broker,
        filter: &str,
        qos: QoS,
        count: usize,
        flags: &[&str],
    ) -> Subscriber {
        let count = count.to_string();
        let mut command = self.command(broker, "sub", filter, qos);
        let ready = match self {
            Self::Mosquitto311 | Self::Mosquitto5 | Self::MosquittoTls => {
                command.args(["-d", "-C", &count]);
                "Subscribed"
            }
            Self::Mqttv5Quic | Self::Mqttv5Tcp => {
                command.args(["-n", &count]);
                "Subscribed to"
            }
            Self::Paho311 | Self::Paho5 | Self::PahoWs | Self::PahoWss | Self::Aioquic => {
                command.args(["--count", &count]);
                "ready"
            }
        };
        command.args(flags);
        let mut process = Process::start(command);
        assert!(
            // A resumed session may deliver all that the client waits for before SUBACK.
            process.wait_for(ready) || process.success(),
            "{self} could not subscribe to {filter}: {:#?}",
            process.seen
        );
        Subscriber {
            client: self,
            process,
        }
    }

    fn command(self, broker: &Broker, action: &str, topic: &str, qos: QoS) -> Command {
        let qos = (qos as u8).to_string();
        match self {
            Self::Mosquitto311 | Self::Mosquitto5 | Self::MosquittoTls => {
                let version = match self {
                    Self::Mosquitto311 => "mqttv311",
                    _ => "mqttv5",
                };
                // Its notes about itself would otherwise wait in a buffer.
                let mut command = Command::new("stdbuf");
                command
                    .arg("-oL")
                    .arg(format!("mosquitto_{action}"))
                    .args(["-V", version]);
                if self == Self::MosquittoTls {
                    command.args(["-h", "localhost", "-p", &broker.tls().port().to_string()]);
                    command.arg("--cafile").arg(broker.ca_certificate());
                } else {
                    let address = broker.tcp();
                    command.args(["-h", &address.ip().to_string()]);
                    command.args(["-p", &address.port().to_string()]);
                }
                command.args(["-t", topic, "-q", &qos]);
                command
            }
            Self::Paho311 | Self::Paho5 | Self::PahoWs | Self::PahoWss => {
                let (version, address) = match self {
                    Self::Paho311 => ("3.1.1", broker.tcp()),
                    Self::PahoWs => ("5", broker.ws()),
                    Self::PahoWss => ("3.1.1", broker.wss()),
                    _ => ("5", broker.tcp()),
                };
                let mut command = script("paho_client.py", action, address, topic, &qos);
                command.args(["--version", version]);
                if matches!(self, Self::PahoWs | Self::PahoWss) {
                    command.args(["--transport", "websockets"]);
                }
                if self == Self::PahoWss {
                    command.arg("--ca").arg(broker.ca_certificate());
                }
                command
            }
            Self::Aioquic => {
                let mut command = script("quic_client.py", action, broker.quic(), topic, &qos);
                command.arg("--ca").arg(broker.ca_certificate());
                command
            }
            Self::Mqttv5Quic | Self::Mqttv5Tcp => {
                let mut command = Command::new(mqttv5());
                command.args([action, "--non-interactive", "-t", topic, "-q", &qos]);
                if self == Self::Mqttv5Quic {
                    command
                        .arg("-U")
                        .arg(format!("quic://localhost:{}", broker.quic().port()));
                    command.arg("--ca-cert").arg(broker.ca_certificate());
                } else {
                    command.arg("-U").arg(format!("mqtt://{}", broker.tcp()));
                }
                command
            }
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Mosquitto311 => "mosquitto (3.1.1, TCP)",
            Self::Mosquitto5 => "mosquitto (5.0, TCP)",
            Self::MosquittoTls => "mosquitto (5.0, TLS)",
            Self::Paho311 => "paho-mqtt (3.1.1, TCP)",
            Self::PahoWs => "paho-mqtt (5.0, WebSocket)",
            Self::PahoWss => "paho-mqtt (3.1.1, WebSocket over TLS)",
            Self::Paho5 => "paho-mqtt (5.0, TCP)",
            Self::Mqttv5Quic => "mqttv5-cli (5.0, QUIC)",
            Self::Mqttv5Tcp => "mqttv5-cli (5.0, TCP)",
            Self::Aioquic => "aioquic (5.0, QUIC)",
        })
    }
}

impl Subscriber {
    /// The payloads that came, once the client has all it waits for.
    ///
    /// # Panics
    /// When the client fails, or ends with fewer messages.
    pub fn messages(mut self) -> Vec<String> {
        let lines = self.process.rest();
        let payloads = lines
            .iter()
            .filter_map(|line| line.strip_prefix(PAYLOAD_PREFIX));
        let payloads: Vec<String> = payloads.map(str::to_owned).collect();
        assert!(
            self.process.success(),
            "{} failed after {payloads:?}: {lines:#?}",
            self.client
        );
        payloads
    }
}

/// A client over QUIC that does what it must not: `clients/quic_misuse.py`. It is killed when this is dropped.
#[derive(Debug)]
pub struct Misuse(Process);

impl Misuse {
    /// Starts it.
    ///
    /// # Panics
    /// When Python can't be started.
    pub fn start(broker: &Broker, arguments: &[&str]) -> Self {
        Self(over_quic(
            "quic_misuse.py",
            broker,
            broker.quic(),
            arguments,
        ))
    }

    /// Waits until it says `text`.
    ///
    /// # Panics
    /// When it ends without.
    pub fn says(&mut self, text: &str) {
        assert!(self.0.wait_for(text), "no {text:?}: {:#?}", self.0.seen);
    }
}

/// A client over QUIC that uses what lies below MQTT: `clients/quic_transport.py`. It is killed when this is dropped.
#[derive(Debug)]
pub struct BelowMqtt(Process);

impl BelowMqtt {
    /// Starts it.
    ///
    /// # Panics
    /// When Python can't be started.
    pub fn start(broker: &Broker, arguments: &[&str]) -> Self {
        Self(over_quic(
            "quic_transport.py",
            broker,
            broker.quic(),
            arguments,
        ))
    }

    /// Starts it; it connects to `address`.
    ///
    /// # Panics
    /// When Python can't be started.
    pub fn start_at(broker: &Broker, address: SocketAddr, arguments: &[&str]) -> Self {
        let host = address.ip().to_string();
        let arguments = [arguments, &["--host", &host]].concat();
        Self(over_quic("quic_transport.py", broker, address, &arguments))
    }

    /// Waits until it says `text`.
    ///
    /// # Panics
    /// When it ends without.
    pub fn says(&mut self, text: &str) {
        self.line(text);
    }

    /// The next line with `text` in it.
    ///
    /// # Panics
    /// When it ends without.
    pub fn line(&mut self, text: &str) -> String {
        assert!(self.0.wait_for(text), "no {text:?}: {:#?}", self.0.seen);
        self.0.seen.last().cloned().unwrap_or_default()
    }
}

fn over_quic(script: &str, broker: &Broker, address: SocketAddr, arguments: &[&str]) -> Process {
    let mut command = python();
    command
        .arg(scripts().join(script))
        .args(arguments)
        .args(["--port", &address.port().to_string(), "--ca"])
        .arg(broker.ca_certificate());
    Process::start(command)
}

/// A running program whose output is read line by line. It is killed when this is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    deadline: Instant,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let child = command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().expect("a second handle of the pipe"))
            .stderr(writer)
            .spawn()
            .unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
        // The command still holds the pipe's writing ends: the reader would never see its end.
        drop(command);
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                if sender
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    break;
                }
            }
        });
        Self {
            child,
            lines,
            seen: Vec::new(),
            deadline: Instant::now() + CLIENT_TIMEOUT,
        }
    }

    /// Waits for a line that contains `text`.
    fn wait_for(&mut self, text: &str) -> bool {
        while let Ok(line) = self.next() {
            if line.contains(text) {
                return true;
            }
        }
        false
    }

    /// All lines until the program ends or its time is over.
    fn rest(&mut self) -> Vec<String> {
        while self.next().is_ok() {}
        self.seen.clone()
    }

    fn next(&mut self) -> Result<String, RecvTimeoutError> {
        let line = self
            .lines
            .recv_timeout(self.deadline.saturating_duration_since(Instant::now()))?;
        self.seen.push(line.clone());
        Ok(line)
    }

    /// Whether the program ended well; one that still runs has not.
    fn success(&mut self) -> bool {
        let closed = matches!(self.next(), Err(RecvTimeoutError::Disconnected));
        closed && self.child.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn script(name: &str, action: &str, broker: SocketAddr, topic: &str, qos: &str) -> Command {
    let mut command = python();
    command.arg(scripts().join(name));
    command.args([
        action,
        "--port",
        &broker.port().to_string(),
        "--topic",
        topic,
        "--qos",
        qos,
    ]);
    command
}

/// Where the clients are that are scripts.
pub(crate) fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// A script of the folder `clients` that is no [`Client`].
pub fn helper(name: &str) -> Command {
    let mut command = python();
    command.arg(scripts().join(name)).stdin(Stdio::null());
    command
}

/// The Python with the clients' libraries, which `cargo xtask setup --tests` makes.
pub(crate) fn python() -> Command {
    let mut command = Command::new(target().join("venv/bin/python"));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn mqttv5() -> PathBuf {
    target().join("tools/bin/mqttv5")
}

/// The target folder, from the place of the test's own binary: target/PROFILE/deps/NAME.
pub(crate) fn target() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own file");
    own.ancestors()
        .nth(3)
        .expect("it is in the target folder")
        .to_owned()
}
