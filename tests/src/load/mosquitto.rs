//! Debian's mosquitto, to be compared with.

use std::fmt::Write;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::Carrier;
use crate::broker::certificate;

/// How long a start may take.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often is looked whether it has started.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Names of its files.
const CONFIGURATION: &str = "mosquitto.conf";
const LOG: &str = "log.txt";

/// A running mosquitto with a listener for each transport that it was built with. It is killed when this is dropped.
#[derive(Debug)]
pub struct Mosquitto {
    child: Child,
    listeners: Vec<(Carrier, SocketAddr)>,
    folder: TempDir,
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

    /// Starts it with persistence: it writes its database when it ends well.
    ///
    /// # Errors
    /// Why it can't be had here.
    pub fn start_persistent() -> Result<Self, String> {
        Self::try_start_with(
            &[Carrier::Tcp],
            "persistence true\nautosave_interval 3600\n",
        )
    }

    /// Ends it with a signal, and waits until it has ended.
    ///
    /// # Panics
    /// When it can't be waited for.
    pub fn stop(&mut self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("process ids are small"));
        // It may have ended already.
        let _ = kill(pid, signal);
        self.child.wait().expect("it is our child");
    }

    /// Starts it again after it has ended, as it was.
    ///
    /// # Panics
    /// When it doesn't start.
    pub fn restart(&mut self) {
        self.child = spawn(self.folder.path()).expect("it started before");
        self.wait_until_ready()
            .unwrap_or_else(|log| panic!("mosquitto did not start again: {log}"));
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
        Self::try_start_with(carriers, "persistence false\n")
    }

    fn try_start_with(carriers: &[Carrier], persistence: &str) -> Result<Self, String> {
        let folder = tempfile::Builder::new()
            .prefix("headgate-mosquitto-")
            .tempdir()
            .expect("a folder for mosquitto");
        certificate::write(folder.path());
        let listeners: Vec<_> = carriers.iter().map(|own| (*own, free_address())).collect();
        let mut text = configuration(&listeners, folder.path());
        text.insert_str(0, persistence);
        text.insert_str(
            0,
            &format!("persistence_location {}/\n", folder.path().display()),
        );
        fs::write(folder.path().join(CONFIGURATION), text).expect("writing a file");
        let child = spawn(folder.path())?;
        let mut started = Self {
            child,
            listeners,
            folder,
        };
        started.wait_until_ready()?;
        Ok(started)
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let log = || fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default();
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.is_ready() {
            let ended = self.child.try_wait().expect("it is our child");
            if let Some(status) = ended {
                // setpriv's answer to a program that doesn't exist.
                return Err(match status.code() {
                    Some(127) => format!("mosquitto is not installed: {}", log()),
                    _ => log(),
                });
            }
            if Instant::now() > deadline {
                return Err(log());
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
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

/// Starts the process, with the configuration in `folder` and its log there. It ends with the thread that started it.
fn spawn(folder: &Path) -> Result<Child, String> {
    let out = File::create(folder.join(LOG)).expect("creating the log");
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "mosquitto", "-c"])
        .arg(folder.join(CONFIGURATION))
        .env("PATH", path_with_sbin())
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a second handle of the log"))
        .stderr(out)
        .spawn()
        .map_err(|error| format!("mosquitto is not installed: {error}"))
}

fn configuration(listeners: &[(Carrier, SocketAddr)], folder: &Path) -> String {
    let mut text = "user root\n\
        per_listener_settings true\n\
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
