//! What a run is to do.

use super::{
    draw::{QosMix, Sizes},
    layout::{Pattern, Shape},
};
use bytes::Bytes;
use headgate_codec::{Connect, Text, Version};
use std::time::Duration;

/// Clients of one run, at most.
const CLIENTS_MAX: u64 = 10_000_000;
/// Topic Filters of one client, at most: they are in one SUBSCRIBE.
const SUBSCRIPTIONS_MAX: u32 = 1_000;

/// When messages are published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Not at all.
    None,
    /// So many a second, of all publishers together, whether the broker keeps up or not: an open loop.
    Rate(f64),
    /// As fast as the broker delivers, with so many messages of each publisher on their way.
    Window(u32),
}

/// All that a run is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server, as a URL, for the report.
    pub target: String,
    /// What TLS was told, for the report; `None` without TLS.
    pub tls: Option<String>,
    /// Local addresses, as they were given, for the report.
    pub sources: Vec<String>,
    /// Clients and topics.
    pub shape: Shape,
    /// Messages.
    pub load: Load,
    /// Their payloads.
    pub sizes: Sizes,
    /// Their QoS.
    pub qos: QosMix,
    /// Connects a second; `None` = as fast as the broker takes them.
    pub ramp: Option<f64>,
    /// Clients that connect at the same time, at most.
    pub at_once: u32,
    /// How long a client waits until it is connected and has its subscriptions.
    pub connect_timeout: Duration,
    /// A client that doesn't come through tries again after about this time, then twice this, …; `None` = not.
    pub retry: Option<Duration>,
    /// Protocol Version.
    pub version: Version,
    /// User Name; {} in it stands for the client's number.
    pub user_name: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Keep Alive, seconds; 0 = none, and nobody pings.
    pub keep_alive_s: u16,
    /// How long nothing is done before memory is read.
    pub settle: Duration,
    /// How long messages are published, or clients just stay.
    pub duration: Duration,
    /// How long messages that are missing at the end are waited for, after the last that came.
    pub drain: Duration,
    /// How often all lose their connection, with `storm`.
    pub storms: u32,
    /// Between two samples of the report.
    pub interval: Duration,
    /// The broker's process, if it is on this machine.
    pub broker: Option<u32>,
    /// Of all that is left to chance.
    pub seed: u64,
}

/// Options that don't fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionsError(pub String);

impl Options {
    /// Whether the pattern can do what it is asked to. Nothing is left out silently.
    ///
    /// # Errors
    /// What can't be done, and what can.
    pub fn check(&self) -> Result<(), OptionsError> {
        let Shape {
            pattern,
            idle,
            subscribers,
            publishers,
            topics,
            subscriptions,
            ..
        } = self.shape;
        let refuse = |text: String| Err(OptionsError(text));
        let clients = u64::from(idle) + u64::from(subscribers) + u64::from(publishers);
        if clients == 0 || clients > CLIENTS_MAX {
            return refuse(format!(
                "{clients} clients; 1 to {CLIENTS_MAX} are possible"
            ));
        }
        if subscriptions > SUBSCRIPTIONS_MAX {
            return refuse(format!(
                "--subscriptions are {SUBSCRIPTIONS_MAX} at most, which is one SUBSCRIBE"
            ));
        }
        let has_load = self.load != Load::None;
        if pattern.is_idle() {
            if idle == 0 {
                return refuse(format!("{pattern} needs --clients"));
            }
            if subscribers > 0 {
                return refuse(format!(
                    "{pattern}: the clients subscribe; there are no --subscribers"
                ));
            }
            if has_load && subscriptions == 0 {
                return refuse(format!("{pattern} with --rate needs --subscriptions"));
            }
            if matches!(self.load, Load::Window(_)) {
                return refuse(format!(
                    "{pattern} takes --rate; --window goes with the patterns that saturate"
                ));
            }
        } else if !has_load || publishers == 0 || subscribers == 0 {
            return refuse(format!(
                "{pattern} needs --publishers, --subscribers, and --rate or --window"
            ));
        }
        if has_load != (publishers > 0) {
            return refuse(
                "--publishers need --rate or --window, and the other way round".to_owned(),
            );
        }
        if pattern == Pattern::PeerToPeer && publishers != subscribers {
            return refuse("p2p has as many --publishers as --subscribers".to_owned());
        }
        if pattern == Pattern::FanIn && subscribers > publishers {
            return refuse("fan-in has at least as many --publishers as --subscribers".to_owned());
        }
        if pattern == Pattern::Mixed {
            if subscriptions == 0 || subscriptions > topics {
                return refuse(format!(
                    "mixed: --subscriptions of a subscriber are 1 to --topics, which is {topics}"
                ));
            }
            let all = u64::from(subscriptions) * u64::from(subscribers);
            if matches!(self.load, Load::Window(_)) && all < u64::from(topics) {
                return refuse(format!(
                    "mixed with --window needs a subscriber for each topic: {all} subscriptions, {topics} topics"
                ));
            }
        }
        if (pattern == Pattern::Storm) != (self.storms > 0) {
            return refuse("--storms goes with storm, which needs at least one".to_owned());
        }
        self.check_numbers()
    }

    fn check_numbers(&self) -> Result<(), OptionsError> {
        let refuse = |text: &str| Err(OptionsError(text.to_owned()));
        let is_rate = |rate: f64| rate.is_finite() && rate > 0.0 && rate <= 1e8;
        match self.load {
            Load::Rate(rate) if !is_rate(rate) => {
                return refuse("--rate is above 0, and at most 1e8");
            }
            Load::Window(0) => return refuse("--window is at least 1"),
            _ => {}
        }
        if self.ramp.is_some_and(|ramp| !is_rate(ramp)) {
            return refuse("--ramp is above 0, and at most 1e8");
        }
        if self.at_once == 0 {
            return refuse("--at-once is at least 1");
        }
        if self.interval < Duration::from_millis(10) {
            return refuse("--interval is at least 0.01 s");
        }
        if self.password.is_some() && self.user_name.is_none() && self.version != Version::V5 {
            return refuse("a password needs a user name; only -V mqttv5 allows a password alone");
        }
        Ok(())
    }

    /// The CONNECT of a client.
    pub(super) fn connect(&self, client: u32, client_id: &str) -> Connect {
        let user_name = self.user_name.as_ref();
        let user_name = user_name.map(|name| name.replace("{}", &client.to_string()));
        Connect {
            version: self.version,
            clean_start: true,
            keep_alive_s: self.keep_alive_s,
            client_id: Text::from(client_id),
            will: None,
            user_name: user_name.map(|name| Text::from(name.as_str())),
            password: self
                .password
                .as_ref()
                .map(|p| Bytes::copy_from_slice(p.as_bytes())),
            properties: Default::default(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::draw::Choice;
    use super::*;

    /// Something that can be done.
    pub(in super::super) fn options(
        pattern: Pattern,
        shape: (u32, u32, u32),
        load: Load,
    ) -> Options {
        let (idle, subscribers, publishers) = shape;
        Options {
            target: "mqtt://localhost:1883".to_owned(),
            tls: None,
            sources: Vec::new(),
            shape: Shape {
                pattern,
                idle,
                subscribers,
                publishers,
                topics: 10,
                subscriptions: 1,
                choice: Choice::Uniform,
            },
            load,
            sizes: "100".parse().expect("sizes"),
            qos: "0".parse().expect("a QoS"),
            ramp: None,
            at_once: 10,
            connect_timeout: Duration::from_secs(10),
            retry: None,
            version: Version::V5,
            user_name: Some("user-{}".to_owned()),
            password: None,
            keep_alive_s: 60,
            settle: Duration::ZERO,
            duration: Duration::from_secs(1),
            drain: Duration::from_secs(1),
            storms: 0,
            interval: Duration::from_secs(1),
            broker: None,
            seed: 1,
        }
    }

    #[test]
    fn what_fits_together_is_taken_and_the_rest_refused() {
        let rate = Load::Rate(10.0);
        let checked = |pattern, shape, load| options(pattern, shape, load).check().is_ok();
        for (pattern, shape, load) in [
            (Pattern::Idle, (1, 0, 0), Load::None),
            (Pattern::Idle, (1, 0, 2), rate),
            (Pattern::PeerToPeer, (0, 2, 2), Load::Window(1)),
            (Pattern::FanIn, (5, 1, 2), rate),
            (Pattern::FanOut, (0, 9, 1), rate),
            (Pattern::Mixed, (0, 10, 3), Load::Window(5)),
        ] {
            assert!(
                checked(pattern, shape, load),
                "{pattern} {shape:?} {load:?}"
            );
        }
        for (pattern, shape, load) in [
            (Pattern::Idle, (0, 0, 0), Load::None),
            (Pattern::Idle, (1, 1, 0), Load::None),
            (Pattern::Idle, (1, 0, 1), Load::None),
            (Pattern::Idle, (1, 0, 0), rate),
            (Pattern::Idle, (1, 0, 1), Load::Window(1)),
            (Pattern::PeerToPeer, (0, 2, 3), rate),
            (Pattern::PeerToPeer, (0, 2, 2), Load::None),
            (Pattern::PeerToPeer, (0, 2, 2), Load::Rate(0.0)),
            (Pattern::FanIn, (0, 2, 1), rate),
            (Pattern::FanOut, (0, 0, 1), rate),
            (Pattern::Mixed, (0, 9, 1), Load::Window(1)),
            (Pattern::Storm, (1, 0, 0), Load::None),
        ] {
            assert!(
                !checked(pattern, shape, load),
                "{pattern} {shape:?} {load:?}"
            );
        }
    }

    #[test]
    fn user_names_may_hold_the_number() {
        let options = options(Pattern::Idle, (1, 0, 0), Load::None);
        let connect = options.connect(17, "id");
        assert_eq!(connect.user_name.as_deref(), Some("user-17"));
    }
}
