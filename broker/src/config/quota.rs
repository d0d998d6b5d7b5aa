//! The sections `[quota.NAME]`: what the sessions of a class may use. One table makes the struct, the defaults, the
//! printed file and what `headgate ctl quota set` takes.

use headgate_core::QUOTA_CLASSES_MAX;
use std::collections::BTreeMap;

use super::setting::{Allowed, Raw, Setting, words};

words! {
    /// What is done about a client that publishes more than its class may.
    Above {
        /// It is read from more slowly.
        Slow = "slow",
        /// PUBACK with 0x97.
        Refuse = "refuse",
        /// DISCONNECT with 0x97.
        Disconnect = "disconnect",
    }
}

words! {
    /// What is done when a message meets a full queue of a session.
    WhenFull {
        /// The message is dropped.
        DropNewest = "drop-newest",
        /// The oldest one goes that was not sent yet.
        DropOldest = "drop-oldest",
        /// DISCONNECT with 0x97; the session stays.
        Disconnect = "disconnect",
        /// Its publisher is not read from until there is room.
        Block = "block",
    }
}

/// The class of clients without another.
pub const DEFAULT_CLASS: &str = "default";
/// The class of QUIC connections that somebody sends forged packets to, and of such that are gone.
pub const SUSPECT_CLASS: &str = "suspect";
/// Longest name of a class, bytes.
pub const CLASS_NAME_BYTES_MAX: usize = 31;

/// A key of a class.
pub(super) struct QuotaKey {
    pub name: &'static str,
    pub docs: &'static [&'static str],
    /// What is allowed, for the end of a sentence.
    pub allowed: fn() -> String,
    pub words: fn() -> &'static [&'static str],
    /// The value as TOML.
    pub show: fn(&QuotaClass) -> String,
    /// `false` if the value isn't allowed.
    pub set: fn(&mut QuotaClass, Raw<'_>) -> bool,
}

macro_rules! quota_keys {
    ($($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr;)+) => {
        /// What the sessions of a class may use.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct QuotaClass {
            $($(#[doc = $doc])+ pub $key: $type,)+
        }

        impl Default for QuotaClass {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        pub(super) static KEYS: &[QuotaKey] = &[$(QuotaKey {
            name: stringify!($key),
            docs: &[$($doc,)+],
            allowed: || <$type as Setting>::allowed(ALLOWED),
            words: <$type as Setting>::words,
            show: |class| class.$key.show(),
            set: |class, raw| {
                let value = <$type as Setting>::read(raw, ALLOWED);
                value.map(|value| class.$key = value).is_some()
            },
        },)+];
    };
}

const ALLOWED: Allowed = None;

quota_keys! {
    /// QUIC packets per second that the kernel lets through from a connection whose client goes on
    /// above one of its rates (limits.penalty_after_s), until it behaves.
    packets_per_second: u32 = 0;
    /// Bytes per second: of the topics and payloads that a client publishes, a second's worth at once;
    /// and, as above, of the packets that the kernel lets through.
    bytes_per_second: u32 = 0;
    /// PUBLISH packets from one client per second; a second's worth may come at once.
    messages_per_second: u32 = 0;
    /// Connections of the class in all. More: CONNACK 0x97.
    connections: u32 = 0;
    /// Subscriptions of one session. More: SUBACK 0x97. 0 = limits.subscriptions_per_session.
    subscriptions: u32 = 0;
    /// Messages that wait for one session. More: when_full. 0 = limits.queued_messages_per_session.
    queued_messages: u32 = 0;
    /// Memory of the messages that wait for one session or are on their way to it, bytes. More:
    /// when_full. 0 = limits.memory_per_connection_bytes.
    memory_bytes: u32 = 0;
    /// What is done when a session has no room for one more message. "drop-newest" = that one is
    /// dropped; "drop-oldest" = the oldest goes that was not sent yet, those with QoS 0 first, and one
    /// with QoS 1 or 2 for none with QoS 0; "disconnect" = the client gets DISCONNECT 0x97, and its
    /// session stays for its expiry; "block" = the publisher is not read from until the queue is half
    /// empty, for limits.full_queue_max_ms at most, and what it sent before is queued. Only who is
    /// connected is disconnected or blocks: a client that is away has the newest dropped. All is counted.
    when_full: WhenFull = WhenFull::DropNewest;
    /// Bidirectional streams that a QUIC client may have open, the control stream too; for connections
    /// from then on, and 1,000 at most. More: STREAM_LIMIT_ERROR, or RESET_STREAM with 0x97 of those
    /// that it has opened before its class was known. 0 = limits.streams_per_connection.
    streams: u16 = 0;
    /// What is done about a client that publishes above its rates. "slow" = it is read from more
    /// slowly, so that its acknowledgements come later; "refuse" = PUBACK or PUBREC 0x97, and QoS 0 is
    /// dropped (clients of 3.1.1 know no such answer: they are disconnected at QoS 1 and 2);
    /// "disconnect" = DISCONNECT 0x97.
    above: Above = Above::Slow;
}

impl QuotaClass {
    /// Sets a key as it is written; the error says what is allowed.
    ///
    /// # Errors
    /// When there is no such key, or its value isn't allowed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let Some(spec) = KEYS.iter().find(|spec| spec.name == key) else {
            let names: Vec<_> = KEYS.iter().map(|spec| spec.name).collect();
            return Err(format!(
                "a class has no `{key}`; it has: {}",
                names.join(", ")
            ));
        };
        if (spec.set)(self, Raw::Text(value)) {
            return Ok(());
        }
        Err(format!(
            "`{value}` is not allowed for {key}: allowed is {}",
            (spec.allowed)()
        ))
    }

    /// Every key with its value, bare.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        let bare = |text: String| text.replace(['_', '"'], "");
        KEYS.iter()
            .map(move |spec| (spec.name, bare((spec.show)(self))))
    }
}

/// All classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaConfig {
    others: BTreeMap<String, QuotaClass>,
    default: QuotaClass,
    suspect: QuotaClass,
}

impl Default for QuotaConfig {
    fn default() -> Self {
        Self {
            others: BTreeMap::new(),
            default: QuotaClass::default(),
            suspect: QuotaClass {
                packets_per_second: 200,
                ..QuotaClass::default()
            },
        }
    }
}

impl QuotaConfig {
    /// Every class with its name, in the order of their numbers: the default class is 0, the suspect one 1.
    pub fn classes(&self) -> impl Iterator<Item = (&str, &QuotaClass)> {
        let first = [
            (DEFAULT_CLASS, &self.default),
            (SUSPECT_CLASS, &self.suspect),
        ];
        let others = self.others.iter().map(|(name, class)| (&**name, class));
        first.into_iter().chain(others)
    }

    /// The number of a class.
    pub fn number(&self, name: &str) -> Option<u8> {
        let number = self.classes().position(|(class, _)| class == name)?;
        u8::try_from(number).ok()
    }

    /// The class of this name, which is made if there is none. `None`: there can't be one of this name, or there are
    /// as many as can be.
    pub fn class_mut(&mut self, name: &str) -> Option<&mut QuotaClass> {
        match name {
            DEFAULT_CLASS => return Some(&mut self.default),
            SUSPECT_CLASS => return Some(&mut self.suspect),
            _ => {}
        }
        let has_room = self.others.len() + 2 < QUOTA_CLASSES_MAX || self.others.contains_key(name);
        (has_room && is_class_name(name)).then(|| self.others.entry(name.to_owned()).or_default())
    }
}

/// Whether a class can have this name.
pub fn is_class_name(name: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=CLASS_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_fine)
}

/// The sections as they are printed.
pub(super) fn show(config: &QuotaConfig) -> String {
    use std::fmt::Write as _;
    let mut out = String::from(
        "\n# Quota classes: what the sessions of a class may use. There may be up to 62 more, [quota.NAME]; \
         a name\n# has 1 to 31 letters, digits, - and _. A client's class comes from its line in the password \
         file\n# (`headgate passwd --class`), or else from its listener (listen.quota_classes). \
         `headgate ctl quota set`\n# and bpftool (the map `quotas`) change them while the broker runs. In each key 0 = no limit of the\n# class.\n",
    );
    for (name, class) in config.classes() {
        let _ = writeln!(out, "[quota.{name}]");
        for key in KEYS {
            if name == DEFAULT_CLASS {
                for line in key.docs {
                    let _ = writeln!(out, "#{line}");
                }
                let _ = writeln!(out, "# Allowed: {}.", (key.allowed)());
            }
            let _ = writeln!(out, "{} = {}", key.name, (key.show)(class));
            if name == DEFAULT_CLASS {
                out.push('\n');
            }
        }
        if name == DEFAULT_CLASS {
            out.push_str(
                "# QUIC connections that somebody sends forged packets to, and such that are gone: the kernel \
                 polices\n# their packets by the first two keys.\n",
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_numbers_in_their_order() {
        let mut config = QuotaConfig::default();
        for name in ["zeta", "alpha"] {
            config.class_mut(name).expect("a name").connections = 7;
        }
        let names: Vec<_> = config.classes().map(|(name, _)| name).collect();
        assert_eq!(names, ["default", "suspect", "alpha", "zeta"]);
        assert_eq!(config.number("zeta"), Some(3));
        assert_eq!(config.number("beta"), None);
        for wrong in ["", "a b", "a.b", "é", &"x".repeat(32)] {
            assert!(config.class_mut(wrong).is_none(), "{wrong}");
        }
        for number in 0..100 {
            config.class_mut(&format!("c{number}"));
        }
        assert_eq!(config.classes().count(), QUOTA_CLASSES_MAX);
        assert!(config.class_mut("zeta").is_some(), "it is there");
    }

    #[test]
    fn a_key_is_set_as_it_is_written_and_shown_bare() {
        let mut class = QuotaClass::default();
        class.set("messages_per_second", "12_000").expect("right");
        class.set("above", "refuse").expect("right");
        let error = class.set("above", "shout").expect_err("wrong");
        assert!(error.contains("\"disconnect\""), "{error}");
        class.set("when_full", "drop-oldest").expect("right");
        let error = class.set("when_full", "wait").expect_err("wrong");
        assert!(error.contains("\"block\""), "{error}");
        let error = class.set("message", "1").expect_err("wrong");
        assert!(error.contains("messages_per_second"), "{error}");
        let shown: Vec<_> = class.each().collect();
        assert!(shown.contains(&("messages_per_second", "12000".to_owned())));
        assert!(shown.contains(&("above", "refuse".to_owned())));
        assert!(shown.contains(&("when_full", "drop-oldest".to_owned())));
    }
}
