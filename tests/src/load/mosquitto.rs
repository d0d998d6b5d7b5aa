//! Debian's mosquitto, to be compared with.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use nix::sys::signal::Signal;

use super::Carrier;
use super::daemon::{self, Daemon};
use crate::broker::certificate;

/// Name of its configuration file.
const CONFIGURATION: &str = "mosquitto.conf";
/// Messages in flight per session: as many as headgate allows by default.
const INFLIGHT: u16 = 256;

/// A running mosquitto with a listener for each transport that it was built with. It is killed when this is dropped.
#[derive(Debug)]
pub struct Mosquitto {
    daemon: Daemon,
    listeners: Vec<(Carrier, SocketAddr)>,
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
        Self::start_with_inflight(INFLIGHT)
    }

    /// The same with another number of messages in flight per session.
    ///
    /// # Errors
    /// Why it can't be had here.
    ///
    /// # Panics
    /// When it doesn't start though it is installed.
    pub fn start_with_inflight(inflight: u16) -> Result<Self, String> {
        let more = format!("persistence false\nmax_inflight_messages {inflight}\n");
        let all = [Carrier::Tcp, Carrier::Tls, Carrier::WebSocket];
        match Self::try_start(&all, &more) {
            // Not every build has WebSocket.
            Err(log) if log.to_lowercase().contains("websockets") => {
                let without = Self::try_start(&all[..2], &more);
                Ok(without.unwrap_or_else(|log| panic!("mosquitto: {log}")))
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
        let more =
            format!("persistence true\nautosave_interval 3600\nmax_inflight_messages {INFLIGHT}\n");
        Self::try_start(&[Carrier::Tcp], &more)
    }

    /// Ends it with a signal, and waits until it has ended.
    ///
    /// # Panics
    /// When it can't be waited for.
    pub fn stop(&mut self, signal: Signal) {
        self.daemon.stop(signal);
    }

    /// Starts it again after it has ended, as it was.
    ///
    /// # Panics
    /// When it doesn't start.
    pub fn restart(&mut self) {
        self.daemon
            .restart()
            .unwrap_or_else(|log| panic!("mosquitto did not start again: {log}"));
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.daemon.is_running()
    }

    /// Where it listens for clients of `carrier`; `None` if it can't.
    pub fn address(&self, carrier: Carrier) -> Option<SocketAddr> {
        let mut listeners = self.listeners.iter();
        listeners.find_map(|(own, address)| (*own == carrier).then_some(*address))
    }

    fn try_start(carriers: &[Carrier], more: &str) -> Result<Self, String> {
        let folder = daemon::folder("mosquitto");
        certificate::write(folder.path());
        let listeners: Vec<_> = carriers
            .iter()
            .map(|own| (*own, daemon::free_address()))
            .collect();
        let file = folder.path().join(CONFIGURATION);
        let location = folder.path().display();
        let text = configuration(&listeners, folder.path());
        fs::write(
            &file,
            format!("persistence_location {location}/\n{more}{text}"),
        )
        .expect("writing a file");
        let command = ["mosquitto", "-c"].map(str::to_owned).into_iter();
        let command = command.chain([file.display().to_string()]).collect();
        let addresses = listeners.iter().map(|(_, address)| *address).collect();
        Ok(Self {
            daemon: Daemon::start(folder, command, addresses)?,
            listeners,
        })
    }
}

fn configuration(listeners: &[(Carrier, SocketAddr)], folder: &Path) -> String {
    let mut text = "user root\n\
        per_listener_settings true\n\
        log_type error\n\
        log_dest stderr\n\
        sys_interval 0\n\
        set_tcp_nodelay true\n\
        max_queued_messages 100000\n"
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
