//! The flags that say which server is meant, and as whom: of `pub`, `sub` and `bench`, in mosquitto's habit.

use super::client::{Identity, Scheme, Target, Trust, Url};
use clap::{Args, ValueEnum};
use headgate_codec::Version;
use std::path::PathBuf;

/// Where to connect, whom to trust, and as whom.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Server, as a name or an address
    #[arg(
        short = 'h',
        long,
        default_value = "localhost",
        help_heading = "Connection"
    )]
    host: String,
    /// Port; 1883, with TLS 8883, with QUIC 14567, if it isn't given
    #[arg(short, long, help_heading = "Connection", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Server and topic in one: mqtt://[user[:password]@]host[:port]/topic, or the same with mqtts (TLS), ws, wss
    /// (WebSocket) or quic
    #[arg(
        short = 'L',
        long,
        value_name = "URL",
        help_heading = "Connection",
        conflicts_with_all = ["host", "port", "quic"]
    )]
    url: Option<Url>,
    /// Connect over QUIC to --host
    #[arg(long, help_heading = "Connection")]
    quic: bool,
    /// Connect over TLS (unless --quic or -L says what else) and trust the certificates of this PEM file instead of the
    /// system's
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Connection",
        conflicts_with = "insecure"
    )]
    cafile: Option<PathBuf>,
    /// Don't verify the server's certificate: anybody could be at the other end
    #[arg(long, help_heading = "Connection")]
    insecure: bool,
    /// Show the server this certificate (PEM), if it asks for one
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Connection",
        requires = "key"
    )]
    cert: Option<PathBuf>,
    /// Private key of --cert (PEM)
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Connection",
        requires = "cert"
    )]
    key: Option<PathBuf>,
    /// User Name
    #[arg(short, long, help_heading = "Connection")]
    username: Option<String>,
    /// Password
    #[arg(
        short = 'P',
        long = "pw",
        value_name = "PASSWORD",
        help_heading = "Connection"
    )]
    password: Option<String>,
}

/// Protocol Version by mosquitto's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VersionArg {
    #[value(alias = "31")]
    /// MQTT 3.1.
    Mqttv31,
    #[value(alias = "311")]
    /// MQTT 3.1.1.
    Mqttv311,
    #[value(alias = "5")]
    /// MQTT 5.0.
    Mqttv5,
}

impl VersionArg {
    /// As the codec calls it.
    pub fn version(self) -> Version {
        match self {
            Self::Mqttv31 => Version::V31,
            Self::Mqttv311 => Version::V311,
            Self::Mqttv5 => Version::V5,
        }
    }
}

impl ServerArgs {
    /// The topic of the URL.
    pub fn topic(&self) -> Option<&str> {
        self.url.as_ref()?.topic.as_deref()
    }

    /// The server.
    pub fn target(&self) -> Target {
        if let Some(url) = &self.url {
            return url.target.clone();
        }
        let scheme = match self.quic {
            true => Scheme::Quic,
            false if self.speaks_of_tls() => Scheme::Mqtts,
            false => Scheme::Mqtt,
        };
        let port = self.port.unwrap_or(scheme.default_port());
        Target {
            scheme,
            host: self.host.clone(),
            port,
        }
    }

    fn speaks_of_tls(&self) -> bool {
        self.cafile.is_some() || self.insecure || self.cert.is_some()
    }

    /// Whom to trust, and what to show; says so if everybody is trusted.
    ///
    /// # Errors
    /// The flags don't go with the URL.
    pub fn trust(&self) -> Result<(Trust, Option<Identity>), String> {
        let scheme = self.target().scheme;
        if self.speaks_of_tls() && !scheme.is_encrypted() {
            return Err(format!(
                "--cafile, --insecure and --cert go with mqtts://, wss:// and quic://; {}:// has \
                 no certificates",
                scheme.name()
            ));
        }
        let trust = match &self.cafile {
            _ if self.insecure => {
                eprintln!("warning: --insecure: the server's certificate is not verified");
                Trust::Anyone
            }
            Some(file) => Trust::File(file.clone()),
            None => Trust::System,
        };
        let identity = self.cert.clone().zip(self.key.clone());
        let identity = identity.map(|(certificate, key)| Identity { certificate, key });
        Ok((trust, identity))
    }

    /// User Name.
    pub fn user_name(&self) -> Option<&str> {
        let of_url = self.url.as_ref().and_then(|url| url.user_name.as_deref());
        self.username.as_deref().or(of_url)
    }

    /// Password.
    pub fn password(&self) -> Option<&str> {
        let of_url = self.url.as_ref().and_then(|url| url.password.as_deref());
        self.password.as_deref().or(of_url)
    }
}
