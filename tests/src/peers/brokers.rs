//! One adapter per broker: how it is started, where it listens, and what it can't do.
//!
//! All get limits that let the loads through: 1,000 messages in flight, queues that lose nothing of them, no persistence
//! of sessions that end with their connection, nothing that turns away many clients of one address. headgate has one worker, as
//! mosquitto has one thread; `HEADGATE_BENCH_WORKERS` = more.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::broker::{Broker, binary, certificate};
use crate::load::daemon::{self, Daemon};
use crate::load::{Carrier, Mosquitto};

/// Names the folder that the peers are installed in; `cargo xtask bench peers` sets it.
const FOLDER: &str = "HEADGATE_PEERS";

/// Says how many workers headgate has.
const WORKERS: &str = "HEADGATE_BENCH_WORKERS";

/// PUBLISH packets with QoS 1 or 2 in flight per session, in each direction.
const INFLIGHT: u16 = 1_000;

/// The brokers.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// This one.
    Headgate,
    /// Debian's mosquitto.
    Mosquitto,
    /// rumqttd of crates.io.
    Rumqttd,
    /// The broker of mqttv5-cli of crates.io.
    Mqttv5,
    /// mqttd of PyPI.
    Mqttd,
}

/// What carries MQTT.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// TLS 1.3 over TCP.
    Tls,
    /// QUIC.
    Quic,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Tls, Self::Quic];

    /// As rows and arguments call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Quic => "quic",
        }
    }
}

impl Kind {
    /// All of them, this one first.
    pub const ALL: [Self; 5] = [
        Self::Headgate,
        Self::Mosquitto,
        Self::Rumqttd,
        Self::Mqttv5,
        Self::Mqttd,
    ];

    /// As rows and tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Headgate => "headgate",
            Self::Mosquitto => "mosquitto",
            Self::Rumqttd => "rumqttd",
            Self::Mqttv5 => "mqttv5-cli",
            Self::Mqttd => "mqttd",
        }
    }

    /// The version that is installed.
    ///
    /// # Errors
    /// Why there is none.
    pub fn version(self) -> Result<String, String> {
        let mut command = match self {
            Self::Headgate => Command::new(binary()),
            Self::Mosquitto => Command::new(find_mosquitto()),
            Self::Rumqttd => Command::new(installed("bin/rumqttd")?),
            Self::Mqttv5 => Command::new(installed("bin/mqttv5")?),
            Self::Mqttd => Command::new(installed("venv/bin/python")?),
        };
        const PYTHON: &str = "import importlib.metadata as m; print('mqttd', m.version('mqttd'))";
        match self {
            Self::Mosquitto => command.arg("-h"),
            Self::Mqttd => command.args(["-c", PYTHON]),
            _ => command.arg("--version"),
        };
        let output = command
            .output()
            .map_err(|error| format!("{} is not installed: {error}", self.name()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        version_in(&text).ok_or_else(|| format!("{} names no version: {text}", self.name()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The first word of the first line that begins with a digit.
fn version_in(text: &str) -> Option<String> {
    let mut words = text.lines().next()?.split_whitespace();
    let word = words.find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    word.map(str::to_owned)
}

/// A running broker. It ends when this is dropped.
#[derive(Debug)]
pub struct Peer {
    kind: Kind,
    process: Process,
    address: SocketAddr,
}

#[derive(Debug)]
enum Process {
    Headgate(Broker),
    Mosquitto(Mosquitto),
    Other(Daemon),
}

impl Peer {
    /// Starts a broker that clients reach over `transport`.
    ///
    /// # Errors
    /// Why it can't be had: it is not installed, or doesn't speak that.
    ///
    /// # Panics
    /// When headgate or mosquitto doesn't start though it is installed.
    pub fn start(kind: Kind, transport: Transport) -> Result<Self, String> {
        let (process, address) = match kind {
            Kind::Headgate => headgate(transport),
            Kind::Mosquitto => mosquitto(transport)?,
            Kind::Rumqttd => rumqttd(transport)?,
            Kind::Mqttv5 => mqttv5(transport)?,
            Kind::Mqttd => mqttd(transport)?,
        };
        Ok(Self {
            kind,
            process,
            address,
        })
    }

    /// Which broker it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process. None of these brokers starts others.
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Headgate(broker) => broker.pid(),
            Process::Mosquitto(broker) => broker.pid(),
            Process::Other(daemon) => daemon.pid(),
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        match &mut self.process {
            Process::Headgate(broker) => broker.is_running(),
            Process::Mosquitto(broker) => broker.is_running(),
            Process::Other(daemon) => daemon.is_running(),
        }
    }
}

fn headgate(transport: Transport) -> (Process, SocketAddr) {
    let workers = std::env::var(WORKERS).unwrap_or_else(|_| "1".to_owned());
    let broker = Broker::start(&format!(
        "[node]\n\
         workers = {workers}\n\
         [limits]\n\
         receive_maximum = {INFLIGHT}\n\
         inflight_messages_per_session = {INFLIGHT}\n\
         queued_messages_per_session = 64000\n\
         subscriptions_per_session = 100000\n\
         connections_per_prefix = 0\n\
         handshakes_per_second = 0\n"
    ));
    let address = match transport {
        Transport::Tcp => broker.tcp(),
        Transport::Tls => broker.tls(),
        Transport::Quic => broker.quic(),
    };
    (Process::Headgate(broker), address)
}

fn mosquitto(transport: Transport) -> Result<(Process, SocketAddr), String> {
    let carrier = match transport {
        Transport::Tcp => Carrier::Tcp,
        Transport::Tls => Carrier::Tls,
        Transport::Quic => return Err("has no QUIC".to_owned()),
    };
    let broker = Mosquitto::start_with_inflight(INFLIGHT)?;
    let address = broker.address(carrier).ok_or("built without it")?;
    Ok((Process::Mosquitto(broker), address))
}

/// Its in-flight window is 100 in its source, whatever is configured.
fn rumqttd(transport: Transport) -> Result<(Process, SocketAddr), String> {
    if transport == Transport::Quic {
        return Err("has no QUIC".to_owned());
    }
    let program = installed("bin/rumqttd")?;
    let folder = with_certificate("rumqttd");
    let address = daemon::free_address();
    let tls = match transport {
        Transport::Tls => format!(
            "[v5.1.tls]\ncertpath = {:?}\nkeypath = {:?}\n",
            folder.path().join(certificate::CHAIN),
            folder.path().join(certificate::KEY)
        ),
        _ => String::new(),
    };
    let text = format!(
        "id = 0\n\
         [router]\n\
         id = 0\n\
         max_connections = 10010\n\
         max_outgoing_packet_count = 200\n\
         max_segment_size = 104857600\n\
         max_segment_count = 10\n\
         [v5.1]\n\
         name = \"v5\"\n\
         listen = \"{address}\"\n\
         next_connection_delay_ms = 0\n\
         [v5.1.connections]\n\
         connection_timeout_ms = 60000\n\
         max_payload_size = 262144\n\
         max_inflight_count = {INFLIGHT}\n\
         dynamic_filters = true\n\
         {tls}"
    );
    let file = folder.path().join("rumqttd.toml");
    fs::write(&file, text).expect("writing a file");
    let command = vec![
        shown(&program),
        "-q".to_owned(),
        "-c".to_owned(),
        shown(&file),
    ];
    let daemon = Daemon::start(folder, command, vec![address])?;
    Ok((Process::Other(daemon), address))
}

/// What comes over QUIC goes back on the same stream, as with headgate.
fn mqttv5(transport: Transport) -> Result<(Process, SocketAddr), String> {
    let program = installed("bin/mqttv5")?;
    let folder = with_certificate("mqttv5");
    let made = Command::new(&program)
        .args(["broker", "generate-config", "--format", "json"])
        .output()
        .map_err(|error| error.to_string())?;
    let mut config: Value = serde_json::from_slice(&made.stdout)
        .map_err(|error| format!("its example of a configuration: {error}"))?;
    let [tcp, other] = [daemon::free_address(), daemon::free_address()];
    let nothing = json!(null);
    let listener = |config: &Value| {
        let mut config = config.clone();
        config["cert_file"] = json!(folder.path().join(certificate::CHAIN));
        config["key_file"] = json!(folder.path().join(certificate::KEY));
        config["bind_addresses"] = json!([other]);
        config
    };
    config["bind_addresses"] = json!([tcp]);
    config["tls_config"] = match transport {
        Transport::Tls => listener(&config["tls_config"]),
        _ => nothing.clone(),
    };
    config["quic_config"] = match transport {
        Transport::Quic => listener(&config["quic_config"]),
        _ => nothing.clone(),
    };
    config["websocket_config"] = nothing.clone();
    config["websocket_tls_config"] = nothing;
    config["storage_config"]["enable_persistence"] = json!(false);
    config["sys_topics_enabled"] = json!(false);
    config["max_clients"] = json!(100_000);
    config["max_outbound_inflight"] = json!(INFLIGHT);
    config["server_receive_maximum"] = json!(INFLIGHT);
    config["server_delivery_strategy"] = json!("control_only");
    let file = folder.path().join("mqttv5.json");
    fs::write(&file, config.to_string()).expect("writing a file");
    let command = ["broker", "--config"].map(str::to_owned);
    let command = [shown(&program)]
        .into_iter()
        .chain(command)
        .chain([shown(&file)]);
    let (address, ready) = match transport {
        Transport::Tcp => (tcp, vec![tcp]),
        Transport::Tls => (other, vec![tcp, other]),
        Transport::Quic => (other, vec![tcp]),
    };
    let daemon = Daemon::start(folder, command.collect(), ready)?;
    Ok((Process::Other(daemon), address))
}

fn mqttd(transport: Transport) -> Result<(Process, SocketAddr), String> {
    let python = installed("venv/bin/python")?;
    let folder = with_certificate("mqttd");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/mqttd_broker.py");
    let address = daemon::free_address();
    let command = vec![
        shown(&python),
        shown(&script),
        transport.name().to_owned(),
        address.port().to_string(),
        shown(&folder.path().join(certificate::CHAIN)),
        shown(&folder.path().join(certificate::KEY)),
    ];
    let ready = match transport {
        Transport::Quic => Vec::new(),
        _ => vec![address],
    };
    let daemon = Daemon::start(folder, command, ready)?;
    Ok((Process::Other(daemon), address))
}

fn with_certificate(name: &str) -> TempDir {
    let folder = daemon::folder(name);
    certificate::write(folder.path());
    folder
}

/// The folder that the peers are installed in.
pub fn folder() -> PathBuf {
    std::env::var_os(FOLDER).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers"),
        PathBuf::from,
    )
}

fn installed(program: &str) -> Result<PathBuf, String> {
    let path = folder().join(program);
    match path.exists() {
        true => Ok(path),
        false => Err("is not installed".to_owned()),
    }
}

/// Debian puts it where a user's search path doesn't look.
fn find_mosquitto() -> &'static str {
    let own = "/usr/sbin/mosquitto";
    if Path::new(own).exists() {
        own
    } else {
        "mosquitto"
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::version_in;

    #[test]
    fn versions_are_found() {
        for (text, version) in [
            (
                "mosquitto version 2.0.11\n\nmosquitto is a broker.\n",
                "2.0.11",
            ),
            ("rumqttd 0.20.0\n", "0.20.0"),
            ("mqttv5 0.29.10\n", "0.29.10"),
        ] {
            assert_eq!(version_in(text).as_deref(), Some(version));
        }
        assert_eq!(version_in("no number"), None);
        assert_eq!(version_in(""), None);
    }
}
