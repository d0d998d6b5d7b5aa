//! Configuration: one TOML file, every key with a default.
//!
//! Environment variables `HEADGATE_SECTION_KEY` override the file (except lists), flags override
//! both. Whatever is wrong is a [`ConfigError`] that says where and what is allowed.

mod check;
mod error;
mod load;
mod sections;
mod setting;

pub use check::check_files;
pub use error::{ConfigError, Location, Origin, Problem};
pub use load::{Flag, Loaded, Sources};
pub use sections::{
    AdminConfig, AuthConfig, Config, DeniedReason, KernelConfig, KernelMode, LimitsConfig,
    ListenConfig, LogConfig, LogFormat, LogLevel, MqttConfig, NodeConfig, SharedSubscriptions,
    ShutdownConfig, Steering, TlsConfig, UdpGro,
};

use crate::limits::AdmissionLimits;
use sections::SECTIONS;
use std::{fmt::Write as _, path::PathBuf, time::Duration};

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
