//! Types of values: how each is read from TOML, from an environment variable or a flag, and shown.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf};
use toml::de::DeValue;

/// A value as somebody wrote it.
#[derive(Clone, Copy)]
pub(super) enum Raw<'a> {
    /// In the file.
    Toml(&'a DeValue<'a>),
    /// In an environment variable or a flag.
    Text(&'a str),
}

/// Which numbers a key takes; `None` for types that have no range.
pub(super) type Allowed = Option<RangeInclusive<u64>>;

/// A type that a key can have.
pub(super) trait Setting: Sized {
    /// Lists are not overridden by the environment.
    const LIST: bool = false;
    /// `None` if it isn't allowed.
    fn read(raw: Raw<'_>, allowed: Allowed) -> Option<Self>;
    /// What is allowed, for the end of a sentence.
    fn allowed(allowed: Allowed) -> String;
    /// The words that may stand for a value, to guess from what was probably meant.
    fn words() -> &'static [&'static str] {
        &[]
    }
    /// As TOML.
    fn show(&self) -> String;
}

fn text<'a>(raw: Raw<'a>) -> Option<&'a str> {
    match raw {
        Raw::Toml(DeValue::String(text)) => Some(text),
        Raw::Text(text) => Some(text),
        Raw::Toml(_) => None,
    }
}

fn integer(raw: Raw<'_>) -> Option<u64> {
    match raw {
        Raw::Toml(DeValue::Integer(n)) => u64::from_str_radix(n.as_str(), n.radix()).ok(),
        Raw::Text(text) => text.replace('_', "").parse().ok(),
        Raw::Toml(_) => None,
    }
}

macro_rules! integers {
    ($($type:ty)*) => {$(
        impl Setting for $type {
            fn read(raw: Raw<'_>, allowed: Allowed) -> Option<Self> {
                let n = integer(raw)?;
                if allowed.is_some_and(|allowed| !allowed.contains(&n)) {
                    return None;
                }
                n.try_into().ok()
            }

            fn allowed(allowed: Allowed) -> String {
                let range = allowed.unwrap_or(0..=u64::from(Self::MAX));
                format!("a whole number from {} to {}", grouped(*range.start()), grouped(*range.end()))
            }

            fn show(&self) -> String {
                grouped(u64::from(*self))
            }
        }
    )*};
}

integers! { u16 u32 u64 }

impl Setting for bool {
    fn read(raw: Raw<'_>, _: Allowed) -> Option<Self> {
        match raw {
            Raw::Toml(DeValue::Boolean(value)) => Some(*value),
            Raw::Text("true") => Some(true),
            Raw::Text("false") => Some(false),
            _ => None,
        }
    }

    fn allowed(_: Allowed) -> String {
        "true or false".to_owned()
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for PathBuf {
    fn read(raw: Raw<'_>, _: Allowed) -> Option<Self> {
        text(raw)
            .filter(|text| !text.contains('\0'))
            .map(Self::from)
    }

    fn allowed(_: Allowed) -> String {
        "a path, in quotes".to_owned()
    }

    fn show(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Setting for Option<SocketAddr> {
    fn read(raw: Raw<'_>, _: Allowed) -> Option<Self> {
        match text(raw)? {
            "" => Some(None),
            text => text.parse().ok().map(Some),
        }
    }

    fn allowed(_: Allowed) -> String {
        "an IP address and a port in quotes, such as \"[::]:1883\" or \"127.0.0.1:1883\", or \"\" for off".to_owned()
    }

    fn show(&self) -> String {
        self.map_or_else(|| quoted(""), |address| quoted(&address.to_string()))
    }
}

impl Setting for Vec<String> {
    const LIST: bool = true;

    fn read(raw: Raw<'_>, _: Allowed) -> Option<Self> {
        match raw {
            Raw::Toml(DeValue::Array(items)) => items
                .iter()
                .map(|item| text(Raw::Toml(item.get_ref())).map(str::to_owned))
                .collect(),
            Raw::Text(text) => Some(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(str::to_owned)
                    .collect(),
            ),
            Raw::Toml(_) => None,
        }
    }

    fn allowed(_: Allowed) -> String {
        "a list of texts, such as [\"eth0\", \"eth1\"]".to_owned()
    }

    fn show(&self) -> String {
        let items: Vec<String> = self.iter().map(|item| quoted(item)).collect();
        format!("[{}]", items.join(", "))
    }
}

/// Declares an enum of words, and how it is read.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// The word in the configuration.
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl $crate::config::setting::Setting for $name {
            fn read(
                raw: $crate::config::setting::Raw<'_>,
                _: $crate::config::setting::Allowed,
            ) -> Option<Self> {
                $crate::config::setting::word(raw, &[$(($text, Self::$variant),)*])
            }

            fn allowed(_: $crate::config::setting::Allowed) -> String {
                $crate::config::setting::one_of(&[$($text,)*])
            }

            fn words() -> &'static [&'static str] {
                &[$($text,)*]
            }

            fn show(&self) -> String {
                $crate::config::setting::show_word(self.text())
            }
        }
    };
}
pub(super) use words;

/// The value that a word stands for; `true` and `false` may also be TOML's booleans.
pub(super) fn word<T: Copy>(raw: Raw<'_>, words: &[(&str, T)]) -> Option<T> {
    let given = match raw {
        Raw::Toml(DeValue::Boolean(true)) => "true",
        Raw::Toml(DeValue::Boolean(false)) => "false",
        raw => text(raw)?,
    };
    words
        .iter()
        .find(|(word, _)| *word == given)
        .map(|(_, value)| *value)
}

/// "a", "b" or "c".
pub(super) fn one_of(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| show_word(word)).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

/// A word as TOML: booleans bare.
pub(super) fn show_word(word: &str) -> String {
    match word {
        "true" | "false" => word.to_owned(),
        word => quoted(word),
    }
}

/// The candidate that `given` was probably meant to be.
pub(super) fn nearest<'a>(
    given: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let given = given.to_lowercase();
    candidates
        .map(|candidate| (strsim::jaro_winkler(&given, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// A text as TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A number as TOML, with digits in groups from 10,000 on.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    if digits.len() < 5 {
        return digits;
    }
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('_');
        }
        out.push(digit);
    }
    out
}
