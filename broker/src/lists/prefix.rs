//! Prefixes of IP addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// The first bits of IP addresses; those behind them are zero. IPv4 addresses in IPv6 form count as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// A text that is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not an address, or an address and a length that it has")]
pub struct PrefixError;

impl Prefix {
    /// The first `len` bits of an address; `None` if it has fewer.
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        let canonical = address.to_canonical();
        let len = match address.is_ipv4() == canonical.is_ipv4() {
            true => len,
            false => len.checked_sub(96)?,
        };
        let address = match canonical {
            IpAddr::V4(v4) => {
                let drop = 32u32.checked_sub(len.into())?;
                let bits = v4.to_bits() & u32::MAX.checked_shl(drop).unwrap_or(0);
                Ipv4Addr::from_bits(bits).into()
            }
            IpAddr::V6(v6) => {
                let drop = 128u32.checked_sub(len.into())?;
                let bits = v6.to_bits() & u128::MAX.checked_shl(drop).unwrap_or(0);
                Ipv6Addr::from_bits(bits).into()
            }
        };
        Some(Self { address, len })
    }

    /// What is taken for one source: an IPv4 address, or an IPv6 /64.
    pub fn of_host(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let len = if address.is_ipv4() { 32 } else { 64 };
        Self::new(address, len).unwrap_or(Self { address, len })
    }

    /// The lowest address in it.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits it has.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a prefix without bits is no empty one"
    )]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address.to_canonical(), self.len) == Some(*self)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// An address with a length, `203.0.113.0/24`, or alone.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| PrefixError)?;
        let len = match len {
            Some(len) => len.parse().map_err(|_| PrefixError)?,
            None if address.is_ipv4() => 32,
            None => 128,
        };
        Self::new(address, len).ok_or(PrefixError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_and_shown() {
        for (text, shown) in [
            ("203.0.113.77/24", "203.0.113.0/24"),
            ("203.0.113.77", "203.0.113.77/32"),
            ("1.2.3.4/0", "0.0.0.0/0"),
            ("2001:db8:1:2:3::/64", "2001:db8:1:2::/64"),
            ("::1", "::1/128"),
            ("ff::/0", "::/0"),
            ("::ffff:10.1.2.3/120", "10.1.2.0/24"),
        ] {
            let prefix: Prefix = text.parse().expect(text);
            assert_eq!(prefix.to_string(), shown);
        }
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/",
            "::/129",
            "host",
            "::ffff:1.2.3.4/20",
            "1.2.3.4/-1",
        ] {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError), "{text}");
        }
    }

    #[test]
    fn a_source_is_an_address_or_a_64() {
        let of = |text: &str| Prefix::of_host(text.parse().expect("an address")).to_string();
        assert_eq!(of("10.1.2.3"), "10.1.2.3/32");
        assert_eq!(of("::ffff:10.1.2.3"), "10.1.2.3/32");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        let prefix: Prefix = "10.1.2.0/24".parse().expect("a prefix");
        assert!(prefix.contains("::ffff:10.1.2.99".parse().expect("an address")));
        assert!(!prefix.contains("10.1.3.1".parse().expect("an address")));
        assert!(!prefix.contains("a01:200::".parse().expect("an address")));
    }
}
