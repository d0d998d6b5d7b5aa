//! Where to connect: `mqtt://host:port/topic`, and the same with `mqtts`, `ws`, `wss` and `quic`.

use std::fmt;

/// What carries MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// MQTT over TCP.
    Mqtt,
    /// MQTT over TLS.
    Mqtts,
    /// MQTT over WebSocket, path `/mqtt`, subprotocol `mqtt`.
    Ws,
    /// MQTT over WebSocket over TLS.
    Wss,
    /// MQTT over QUIC, ALPN `mqtt`; the first bidirectional stream is the control stream.
    Quic,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Mqtt, Self::Mqtts, Self::Ws, Self::Wss, Self::Quic];

    /// As it stands in a URL.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Quic => "quic",
        }
    }

    /// The port that is meant when none is given.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Mqtt => 1883,
            Self::Mqtts => 8883,
            Self::Ws => 8083,
            Self::Wss => 8084,
            Self::Quic => 14567,
        }
    }

    /// Whether the server shows a certificate.
    pub const fn is_encrypted(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss | Self::Quic)
    }
}

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What carries MQTT.
    pub scheme: Scheme,
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// TCP or UDP port.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.scheme.name();
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// A target with what else such a URL may say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// The server.
    pub target: Target,
    /// User Name.
    pub user_name: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// What follows the first slash behind the port: a Topic Name or Topic Filter.
    pub topic: Option<String>,
}

/// Why a URL isn't one that `--url` takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// None of the schemes.
    #[error("{0:?}: mqtt://host[:port]/topic is expected, or the same with mqtts, ws, wss or quic")]
    Scheme(String),
    /// No host.
    #[error("{0:?} names no host")]
    Host(String),
    /// A port that is none.
    #[error("{0:?} is not a port; 1 to 65535 are")]
    Port(String),
}

impl std::str::FromStr for Url {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let unknown = || TargetError::Scheme(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(unknown)?;
        let known = Scheme::ALL.into_iter().find(|known| known.name() == scheme);
        let scheme = known.ok_or_else(unknown)?;
        let (authority, topic) = match rest.split_once('/') {
            Some((authority, topic)) => (authority, Some(topic)),
            None => (rest, None),
        };
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        let (host, port) = split_port(place);
        if host.is_empty() {
            return Err(TargetError::Host(text.to_owned()));
        }
        let port = match port {
            None => scheme.default_port(),
            Some(port) => port
                .parse()
                .ok()
                .filter(|p| *p != 0)
                .ok_or_else(|| TargetError::Port(port.to_owned()))?,
        };
        let (user_name, password) = match user.map(|u| u.split_once(':').unwrap_or((u, ""))) {
            Some((name, "")) => (Some(name), None),
            Some((name, password)) => (Some(name), Some(password)),
            None => (None, None),
        };
        Ok(Self {
            target: Target {
                scheme,
                host: host.to_owned(),
                port,
            },
            user_name: user_name.map(str::to_owned),
            password: password.map(str::to_owned),
            topic: topic.filter(|t| !t.is_empty()).map(str::to_owned),
        })
    }
}

/// Host and port of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn split_port(place: &str) -> (&str, Option<&str>) {
    if let Some(rest) = place.strip_prefix('[')
        && let Some((host, port)) = rest.split_once(']')
    {
        return (host, port.strip_prefix(':'));
    }
    match place.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (place, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    #[test]
    fn default_ports_go_with_the_scheme() {
        assert_eq!(url("mqtt://h/t").target.to_string(), "mqtt://h:1883");
        assert_eq!(url("mqtts://h/t").target.to_string(), "mqtts://h:8883");
        assert_eq!(url("ws://h/t").target.to_string(), "ws://h:8083");
        assert_eq!(url("wss://h/t").target.to_string(), "wss://h:8084");
        assert_eq!(url("quic://h/t").target.to_string(), "quic://h:14567");
        assert_eq!(
            url("quic://[::1]/t").target.to_string(),
            "quic://[::1]:14567"
        );
        assert_eq!(url("mqtt://[::1]:99").target.to_string(), "mqtt://[::1]:99");
    }

    #[test]
    fn user_and_topic_are_taken_apart() {
        let all = url("mqtt://me:p:w@h:5/a/b/#");
        assert_eq!(all.user_name.as_deref(), Some("me"));
        assert_eq!(all.password.as_deref(), Some("p:w"));
        assert_eq!(all.topic.as_deref(), Some("a/b/#"));
        assert_eq!(url("mqtt://h/").topic, None);
        assert_eq!(url("mqtt://h//a").topic.as_deref(), Some("/a"));
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for (text, error) in [
            ("h", TargetError::Scheme("h".into())),
            ("http://h", TargetError::Scheme("http://h".into())),
            ("mqtt:///t", TargetError::Host("mqtt:///t".into())),
            ("mqtt://h:0", TargetError::Port("0".into())),
            ("mqtt://h:70000", TargetError::Port("70000".into())),
            ("quic://h:x/t", TargetError::Port("x".into())),
        ] {
            assert_eq!(text.parse::<Url>(), Err(error));
        }
    }
}
