//! Debian's mosquitto, to be compared with.

use std::fmt::Write;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::Carrier;
use crate::broker::certificate;

/// How long a start may take.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often is looked whether it has started.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A running mosquitto with a listener for each transport that it was built with. It is killed when this is dropped.
#[derive(Debug)]
pub struct Mosquitto {
    child: Child,
    listeners: Vec<(Carrier, SocketAddr)>,
    _folder: TempDir,
}

impl Mosquitto {
    /// Starts it on free ports of the loopback, without persistence, with queues that lose nothing of a bounded load, and
    /// as many messages in flight per session as headgate allows by default.
    ///
    /// # Errors
    /// Why it can't be had here.
    ///
    /// # Panics
    /// When it doesn't start though it is installed.
    pub fn start() -> Result<Self, String> {
        let all = [Carrier::Tcp, Carrier::Tls, Carrier::WebSocket];
        match Self::try_start(&all) {
            // Not every build has WebSocket.
            Err(log) if log.to_lowercase().contains("websockets") => {
                Ok(Self::try_start(&all[..2]).unwrap_or_else(|log| panic!("mosquitto: {log}")))
            }
            Err(log) if log.starts_with("mosquitto is not installed") => Err(log),
            started => Ok(started.unwrap_or_else(|log| panic!("mosquitto: {log}"))),
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens for clients of `carrier`; `None` if it can't.
    pub fn address(&self, carrier: Carrier) -> Option<SocketAddr> {
        let mut listeners = self.listeners.iter();
        listeners.find_map(|(own, address)| (*own == carrier).then_some(*address))
    }

    fn try_start(carriers: &[Carrier]) -> Result<Self, String> {
        let folder = tempfile::Builder::new()
            .prefix("headgate-mosquitto-")
            .tempdir()
            .expect("a folder for mosquitto");
        certificate::write(folder.path());
        let listeners: Vec<_> = carriers.iter().map(|own| (*own, free_address())).collect();
        let file = folder.path().join("mosquitto.conf");
        fs::write(&file, configuration(&listeners, folder.path())).expect("writing a file");
        let log = folder.path().join("log.txt");
        let out = File::create(&log).expect("creating the log");
        // It ends with the thread that started it.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "mosquitto", "-c"])
            .arg(&file)
            .env("PATH", path_with_sbin())
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle of the log"))
            .stderr(out)
            .spawn()
            .map_err(|error| format!("mosquitto is not installed: {error}"))?;
        let mut started = Self {
            child,
            listeners,
            _folder: folder,
        };
        let deadline = Instant::now() + START_TIMEOUT;
        while !started.is_ready() {
            let ended = started.child.try_wait().expect("it is our child");
            if let Some(status) = ended {
                let log = fs::read_to_string(&log).unwrap_or_default();
                // setpriv's answer to a program that doesn't exist.
                return Err(match status.code() {
                    Some(127) => format!("mosquitto is not installed: {log}"),
                    _ => log,
                });
            }
            if Instant::now() > deadline {
                return Err(fs::read_to_string(&log).unwrap_or_default());
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(started)
    }

    fn is_ready(&self) -> bool {
        self.listeners
            .iter()
            .all(|(_, address)| TcpStream::connect(address).is_ok())
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(listeners: &[(Carrier, SocketAddr)], folder: &Path) -> String {
    let mut text = "user root\n\
        per_listener_settings true\n\
        persistence false\n\
        log_type error\n\
        log_dest stderr\n\
        sys_interval 0\n\
        set_tcp_nodelay true\n\
        max_queued_messages 100000\n\
        max_inflight_messages 256\n"
        .to_owned();
    for (carrier, address) in listeners {
        let (port, ip) = (address.port(), address.ip());
        let mut add = |line: &str| writeln!(text, "{line}").expect("it is memory");
        add(&format!("listener {port} {ip}"));
        add("allow_anonymous true");
        match carrier {
            Carrier::Tcp => {}
            Carrier::Tls => {
                let file = |name: &str| folder.join(name).display().to_string();
                add(&format!("certfile {}", file(certificate::CHAIN)));
                add(&format!("keyfile {}", file(certificate::KEY)));
            }
            Carrier::WebSocket => add("protocol websockets"),
        }
    }
    text
}

/// Debian puts it where a user's search path doesn't look.
fn path_with_sbin() -> String {
    format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default())
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}
