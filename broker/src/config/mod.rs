//! Configuration: one TOML file, every key with a default.
//!
//! Environment variables `HEADGATE_SECTION_KEY` override the file (except lists), flags override
//! both. Whatever is wrong is a [`ConfigError`] that says where and what is allowed.

mod check;
mod error;
mod load;
mod quota;
mod sections;
mod setting;
mod size;

pub use check::check_files;
pub use error::{ConfigError, Location, Origin, Problem};
pub use load::{Flag, Loaded, Sources};
pub use quota::{
    Above, DEFAULT_CLASS, QuotaClass, QuotaConfig, SUSPECT_CLASS, WhenFull, is_class_name,
};
pub use sections::{
    AdminConfig, AuthConfig, Config, Congestion, DeniedReason, KernelConfig, KernelMode,
    LimitsConfig, ListenConfig, ListsConfig, LogConfig, LogFormat, LogLevel, MqttConfig,
    NodeConfig, RetryMode, SharedSubscriptions, ShutdownConfig, Steering, StoreConfig, StoreFsync,
    TlsConfig, UdpGro,
};

use crate::{
    limits::AdmissionLimits,
    metrics::{Label, Transport},
};
pub use size::MemoryLimit;

use sections::SECTIONS;
use std::{fmt::Write as _, net::SocketAddr, path::PathBuf, time::Duration};

impl ListenConfig {
    /// Whether there is any listener.
    pub fn is_any(&self) -> bool {
        self.quic.is_some() || self.over_tcp().iter().any(|(_, address)| address.is_some())
    }

    /// Whether a listener shows a certificate.
    pub fn needs_certificate(&self) -> bool {
        self.quic.is_some() || self.tls.is_some() || self.wss.is_some()
    }

    /// The listeners over TCP.
    pub fn over_tcp(&self) -> [(Transport, Option<SocketAddr>); 4] {
        [
            (Transport::Tcp, self.tcp),
            (Transport::Tls, self.tls),
            (Transport::WebSocket, self.ws),
            (Transport::WebSocketTls, self.wss),
        ]
    }

    /// The quota class of clients of a listener whose authentication names none: transport and class, as they stand
    /// in `quota_classes`. `None`: this is not written as it should be.
    pub fn quota_classes(&self) -> Option<Vec<(Transport, &str)>> {
        let classes = self.quota_classes.iter().map(|text| {
            let (listener, class) = text.split_once('=')?;
            let find = |transport: &&Transport| transport.text() == listener.trim();
            Some((*Transport::ALL.iter().find(find)?, class.trim()))
        });
        classes.collect()
    }

    /// Whether connections of this listener begin with a PROXY header.
    pub fn is_proxied(&self, transport: Transport) -> bool {
        self.proxy_protocol
            .iter()
            .any(|name| name == transport.text())
    }
}

impl Config {
    /// The configuration file with every key at its default, and what each means.
    pub fn defaults_toml() -> String {
        let defaults = Self::default();
        let mut out = String::from(
            "# Configuration of headgate: every key with its default.\n\
             # HEADGATE_SECTION_KEY in the environment overrides a key (lists excepted); flags override both.\n",
        );
        for section in SECTIONS {
            let _ = writeln!(out);
            for line in section.docs {
                let _ = writeln!(out, "#{line}");
            }
            let _ = writeln!(out, "[{}]", section.name);
            for key in section.keys {
                for line in key.docs {
                    let _ = writeln!(out, "#{line}");
                }
                let _ = writeln!(out, "# Allowed: {}.", (key.allowed)());
                let _ = writeln!(out, "{} = {}\n", key.name, (key.show)(&defaults));
            }
            out.pop();
        }
        out.push_str(&quota::show(&defaults.quota));
        out
    }

    /// The limits that [`crate::limits::Admission`] enforces.
    pub fn admission(&self) -> AdmissionLimits {
        AdmissionLimits {
            connections: self.limits.connections,
            connections_per_prefix: self.limits.connections_per_prefix,
            handshakes_per_second: self.limits.handshakes_per_second,
        }
    }

    /// Where the admin socket is.
    pub fn admin_socket(&self) -> PathBuf {
        match self.admin.socket.as_os_str().is_empty() {
            true => self.node.state_dir.join("admin.sock"),
            false => self.admin.socket.clone(),
        }
    }

    /// Where the store is.
    pub fn store_path(&self) -> PathBuf {
        match self.store.path.as_os_str().is_empty() {
            true => self.node.state_dir.join("store"),
            false => self.store.path.clone(),
        }
    }

    /// Whether the sockets use UDP_GRO, with this many workers.
    pub fn udp_gro(&self, workers: usize) -> bool {
        match self.listen.udp_gro {
            UdpGro::Auto => workers == 1,
            UdpGro::On => true,
            UdpGro::Off => false,
        }
    }

    /// How long a stop may take.
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_secs(self.shutdown.grace_s.into())
    }
}

#[cfg(test)]
mod tests;
