//! Amounts of memory as people write them.

use super::setting::{Allowed, Raw, Setting};
use toml::de::DeValue;

/// How much memory the broker may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// A share of what the machine, or the cgroup, has.
    Auto,
    /// As much as there is.
    Off,
    /// Bytes.
    Bytes(u64),
}

/// Less than any broker needs, bytes: a slip of the pen.
const BYTES_MIN: u64 = 16 << 20;
const BYTES_MAX: u64 = 1 << 50;

/// Units, the longer ones first.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl Setting for MemoryLimit {
    fn read(raw: Raw<'_>, _: Allowed) -> Option<Self> {
        let bytes = match raw {
            Raw::Toml(DeValue::String(text)) => return Self::parse(text),
            Raw::Text(text) => return Self::parse(text),
            raw => u64::read(raw, None)?,
        };
        Self::of(bytes)
    }

    fn allowed(_: Allowed) -> String {
        "\"auto\", \"off\", or an amount of at least 16 MiB, such as \"2GiB\", \"1500MB\" or a number of bytes"
            .to_owned()
    }

    fn words() -> &'static [&'static str] {
        &["auto", "off"]
    }

    fn show(&self) -> String {
        match self {
            Self::Auto => "\"auto\"".to_owned(),
            Self::Off => "\"off\"".to_owned(),
            Self::Bytes(bytes) => bytes.show(),
        }
    }
}

impl MemoryLimit {
    fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Off),
            text => Self::of(bytes(text)?),
        }
    }

    fn of(bytes: u64) -> Option<Self> {
        match bytes {
            0 => Some(Self::Off),
            bytes => (BYTES_MIN..=BYTES_MAX)
                .contains(&bytes)
                .then_some(Self::Bytes(bytes)),
        }
    }
}

/// A whole number or one with decimals, and a unit; bytes without one.
fn bytes(text: &str) -> Option<u64> {
    let found = UNITS
        .iter()
        .find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (number, size) = found.unwrap_or((text, 1));
    let number = number.trim().replace('_', "");
    let (whole, decimals) = number.split_once('.').unwrap_or((&number, ""));
    let is_number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(decimals) || decimals.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(size)?;
    if decimals.is_empty() {
        return (!number.ends_with('.')).then_some(whole);
    }
    let part = u128::from(decimals.parse::<u64>().ok()?) * u128::from(size)
        / 10_u128.pow(decimals.len() as u32);
    whole.checked_add(part as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<MemoryLimit> {
        MemoryLimit::read(Raw::Text(text), None)
    }

    #[test]
    fn amounts_of_memory_are_read_as_people_write_them() {
        let bytes = |n| Some(MemoryLimit::Bytes(n));
        for (text, wanted) in [
            ("auto", Some(MemoryLimit::Auto)),
            ("off", Some(MemoryLimit::Off)),
            ("0", Some(MemoryLimit::Off)),
            ("2GiB", bytes(2 << 30)),
            ("2 GiB", bytes(2 << 30)),
            ("1.5GiB", bytes(3 << 29)),
            ("1500MB", bytes(1_500_000_000)),
            ("500_000kB", bytes(500_000_000)),
            ("2147483648", bytes(2 << 30)),
            ("2_147_483_648B", bytes(2 << 30)),
            ("1TiB", bytes(1 << 40)),
            ("2GB ", bytes(2_000_000_000)),
            ("1MiB", None),
            ("2gb", None),
            ("2G", None),
            ("GiB", None),
            ("-2GiB", None),
            ("2.GiB", None),
            ("1e9", None),
            ("", None),
            ("99999999999999TiB", None),
            ("all", None),
        ] {
            assert_eq!(read(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn what_is_shown_is_read_as_the_same() {
        for limit in [
            MemoryLimit::Auto,
            MemoryLimit::Off,
            MemoryLimit::Bytes(2 << 30),
        ] {
            assert_eq!(read(limit.show().trim_matches('"')), Some(limit));
        }
    }
}
