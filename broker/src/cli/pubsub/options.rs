//! The flags that `pub` and `sub` have in common.

use super::{Failure, properties::Properties};
use crate::cli::client::{Beside, QuicOptions, Scheme, Target, TlsOptions};
use crate::cli::server_args::{ServerArgs, VersionArg};
use bytes::Bytes;
use clap::{ArgAction, Args};
use headgate_codec::{Connect, QoS, Text, Version, Will};
use std::{path::PathBuf, time::Duration};

/// How long connecting may take.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(10);

/// Where to connect, as whom, and what to say in CONNECT.
#[derive(Debug, Args)]
pub struct ConnectionArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Over QUIC: send CONNECT and what follows as 0-RTT data (RFC 9001 §4.6), which the server answers after one round
    /// trip. It takes a session ticket; a connection that is made first, and for nothing else, gets one
    #[arg(long = "0rtt", help_heading = "Connection")]
    early_data: bool,
    /// Over QUIC: keep the server's address validation tokens (RFC 9000 §8.1.3) in this file, each for one connection,
    /// which then begins without the round trip that a Retry costs. Session tickets are not in it: the TLS library
    /// doesn't give them away
    #[arg(long, value_name = "FILE", help_heading = "Connection")]
    resume_file: Option<PathBuf>,
    /// Over QUIC: write what the connection does to this file, as qlog (JSON-SEQ)
    #[arg(long, value_name = "FILE", help_heading = "Connection")]
    qlog: Option<PathBuf>,
    /// Over QUIC: messages to publish, or subscriptions, take turns on so many data streams; none holds up another
    #[arg(
        long,
        default_value_t = 0,
        value_name = "COUNT",
        help_heading = "Connection",
        hide_default_value = true
    )]
    streams: u16,
    /// Over QUIC: send, or receive, messages with QoS 0 in datagrams, where they fit into one (5.0). They may get lost
    #[arg(long, help_heading = "Connection")]
    datagram: bool,
    /// Client Identifier; the server chooses one if it isn't given
    #[arg(short, long, value_name = "ID", help_heading = "Connection")]
    id: Option<String>,
    /// Keep Alive, seconds; 0 = off
    #[arg(
        short,
        long,
        default_value_t = 60,
        value_name = "SECONDS",
        help_heading = "Connection"
    )]
    keepalive: u16,
    /// Keep the session of this --id instead of starting a new one
    #[arg(short = 'c', long, help_heading = "Connection", requires = "id")]
    disable_clean_session: bool,
    /// Protocol Version
    #[arg(
        short = 'V',
        long,
        value_enum,
        default_value_t = VersionArg::Mqttv5,
        value_name = "VERSION",
        help_heading = "Connection"
    )]
    protocol_version: VersionArg,
    /// Keep the session so many seconds after disconnecting (5.0); ∞ or max = for ever
    #[arg(
        short = 'x',
        long,
        value_parser = expiry,
        value_name = "SECONDS",
        help_heading = "Connection"
    )]
    session_expiry_interval: Option<u32>,
    /// Give up after so many seconds, with exit code 27
    #[arg(short = 'W', value_name = "SECONDS", help_heading = "Connection")]
    timeout_s: Option<u32>,
    /// Topic of the Will
    #[arg(long, value_name = "TOPIC", help_heading = "Will")]
    will_topic: Option<String>,
    /// Payload of the Will; empty if it isn't given
    #[arg(
        long,
        value_name = "TEXT",
        help_heading = "Will",
        requires = "will_topic"
    )]
    will_payload: Option<String>,
    /// QoS of the Will
    #[arg(
        long,
        value_parser = qos,
        default_value = "0",
        value_name = "QOS",
        help_heading = "Will",
        requires = "will_topic"
    )]
    will_qos: QoS,
    /// Retain the Will
    #[arg(long, help_heading = "Will", requires = "will_topic")]
    will_retain: bool,
    /// A property (5.0): packet (connect, publish, subscribe, will, disconnect), name, value; for
    /// user-property name and value. Example: -D publish user-property unit celsius
    #[arg(
        short = 'D',
        long = "property",
        num_args = 3..=4,
        action = ArgAction::Append,
        value_names = ["PACKET", "NAME", "VALUE"]
    )]
    properties: Vec<String>,
    /// Print this help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

impl ConnectionArgs {
    /// How long the whole command may take.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.timeout_s
            .map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// How long connecting may take.
    pub(super) fn patience(&self) -> Duration {
        CONNECT_WAIT_MAX
    }

    pub(super) fn version(&self) -> Version {
        self.protocol_version.version()
    }

    /// The topic of the URL.
    pub(super) fn topic(&self) -> Option<&str> {
        self.server.topic()
    }

    pub(super) fn target(&self) -> Target {
        self.server.target()
    }

    /// Whom to trust, and what to show; says so if everybody is trusted.
    pub(super) fn tls(&self) -> Result<TlsOptions, Failure> {
        let (trust, identity) = self.server.trust().map_err(Failure::Usage)?;
        let quic = QuicOptions {
            early_data: self.early_data,
            resume_file: self.resume_file.clone(),
            qlog: self.qlog.clone(),
        };
        if quic != QuicOptions::default() && self.target().scheme != Scheme::Quic {
            let text = "--0rtt, --resume-file and --qlog go with --quic and quic://";
            return Err(Failure::Usage(text.into()));
        }
        Ok(TlsOptions {
            trust,
            identity,
            quic,
        })
    }

    /// What is used of QUIC beside the control stream.
    pub(super) fn beside(&self) -> Result<Beside, Failure> {
        let beside = Beside {
            streams: self.streams.into(),
            datagrams: self.datagram,
        };
        let usage = |text: &str| Err(Failure::Usage(text.into()));
        if beside != Beside::default() && self.target().scheme != Scheme::Quic {
            return usage("--streams and --datagram go with --quic and quic://");
        }
        if self.datagram && self.version() != Version::V5 {
            return usage("--datagram needs a user property, which only -V mqttv5 has");
        }
        Ok(beside)
    }

    /// The properties of all packets.
    pub(super) fn properties(&self) -> Result<Properties, Failure> {
        let properties = Properties::parse(&self.properties).map_err(Failure::Usage)?;
        let v5_only = !self.properties.is_empty() || self.session_expiry_interval.is_some();
        if v5_only && self.version() != Version::V5 {
            let text = "-D and -x are properties, which only -V mqttv5 has";
            return Err(Failure::Usage(text.into()));
        }
        Ok(properties)
    }

    /// The CONNECT. `kind` (pub, sub) goes into the Client Identifier where one is needed.
    pub(super) fn connect(&self, kind: &str, given: &Properties) -> Result<Connect, Failure> {
        let version = self.version();
        let (user_name, password) = (self.server.user_name(), self.server.password());
        if password.is_some() && user_name.is_none() && version != Version::V5 {
            return Err(Failure::Usage(
                "-P needs -u; only -V mqttv5 allows a password alone".into(),
            ));
        }
        let client_id = match &self.id {
            Some(id) => text("--id", id)?,
            // MQTT 3.1 has no empty Client Identifier.
            None if version == Version::V31 => generated_id(kind).as_str().into(),
            None => Text::default(),
        };
        let mut properties = given.connect.clone();
        // -c in 5.0 keeps the session after disconnecting as well, as it does in 3.1.1.
        let expiry = self
            .disable_clean_session
            .then_some(u32::MAX)
            .filter(|_| version == Version::V5);
        properties.session_expiry_s = self
            .session_expiry_interval
            .or(properties.session_expiry_s)
            .or(expiry);
        if self.datagram {
            properties.user_properties.push(asks_for_datagrams());
        }
        Ok(Connect {
            version,
            clean_start: !self.disable_clean_session,
            keep_alive_s: self.keepalive,
            client_id,
            will: self.will(given)?,
            user_name: user_name.map(|name| text("--username", name)).transpose()?,
            password: password.map(|p| Bytes::copy_from_slice(p.as_bytes())),
            properties,
        })
    }

    fn will(&self, given: &Properties) -> Result<Option<Will>, Failure> {
        let Some(topic) = &self.will_topic else {
            return Ok(None);
        };
        headgate_topics::validate_topic_name(topic)
            .map_err(|error| Failure::Usage(format!("--will-topic {topic:?}: {error}")))?;
        let payload = self.will_payload.clone().unwrap_or_default();
        if payload.len() > Text::LEN_MAX {
            let text = format!("--will-payload: {} bytes; 65,535 fit a Will", payload.len());
            return Err(Failure::Usage(text));
        }
        let properties = given.will.clone();
        Ok(Some(Will {
            qos: self.will_qos,
            retain: self.will_retain,
            topic: text("--will-topic", topic)?,
            payload: payload.into(),
            delay_s: given.will_delay_s,
            properties: (properties != Default::default()).then(|| Box::new(properties)),
        }))
    }
}

/// The user property of CONNECT and SUBSCRIBE that asks for datagrams.
pub(super) fn asks_for_datagrams() -> (Text, Text) {
    let (name, value) = headgate_core::DATAGRAMS;
    (Text::from(name), Text::from(value))
}

/// A string of the command line as a UTF-8 Encoded String.
pub(super) fn text(flag: &str, value: &str) -> Result<Text, Failure> {
    Text::new(Bytes::copy_from_slice(value.as_bytes())).ok_or_else(|| {
        Failure::Usage(format!(
            "{flag}: {} bytes; at most 65,535 without U+0000 fit",
            value.len()
        ))
    })
}

/// A QoS of the command line.
pub(super) fn qos(text: &str) -> Result<QoS, String> {
    match text {
        "0" => Ok(QoS::AtMostOnce),
        "1" => Ok(QoS::AtLeastOnce),
        "2" => Ok(QoS::ExactlyOnce),
        _ => Err("0, 1 or 2 is expected".into()),
    }
}

fn expiry(text: &str) -> Result<u32, String> {
    match text {
        "∞" | "max" => Ok(u32::MAX),
        _ => text
            .parse()
            .map_err(|_| "seconds, ∞ or max is expected".into()),
    }
}

/// A Client Identifier of at most 23 characters (3.1 §3.1) that nobody else is likely to have.
fn generated_id(kind: &str) -> String {
    use std::hash::{BuildHasher, RandomState};
    format!(
        "hg-{kind}-{:016x}",
        RandomState::new().hash_one(std::process::id())
    )
}
