//! Local addresses that clients come from.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Addresses of a run, at most: over QUIC each has a socket.
const SOURCES_MAX: usize = 1_024;

/// Why these are no sources.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourcesError {
    /// Neither an address nor a prefix.
    #[error("{0:?}: a source is an address of this machine, or a prefix such as 127.0.0.0/28")]
    NoAddress(String),
    /// A prefix with too many addresses.
    #[error("{0} has more than {SOURCES_MAX} addresses")]
    TooMany(String),
}

/// One or several local addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources(pub Vec<IpAddr>);

impl FromStr for Sources {
    type Err = SourcesError;

    fn from_str(text: &str) -> Result<Self, SourcesError> {
        let none = || SourcesError::NoAddress(text.to_owned());
        let Some((address, length)) = text.split_once('/') else {
            return Ok(Self(vec![text.parse().map_err(|_| none())?]));
        };
        let address: IpAddr = address.parse().map_err(|_| none())?;
        let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
        let length: u8 = length.parse().map_err(|_| none())?;
        let free = bits.checked_sub(length).ok_or_else(none)?;
        if free >= 16 || 1_usize << free > SOURCES_MAX {
            return Err(SourcesError::TooMany(text.to_owned()));
        }
        let count = 1_u128 << free;
        let addresses = (0..count).map(|number| match address {
            IpAddr::V4(address) => {
                let first = u32::from(address) & !(count as u32 - 1);
                IpAddr::from(Ipv4Addr::from(first + number as u32))
            }
            IpAddr::V6(address) => {
                let first = u128::from(address) & !(count - 1);
                IpAddr::from(Ipv6Addr::from(first + number))
            }
        });
        // The first and the last of an IPv4 prefix are the network's, and everybody's.
        let is_network = address.is_ipv4() && count > 2;
        let skipped = usize::from(is_network);
        let addresses: Vec<_> = addresses.skip(skipped).collect();
        let kept = addresses.len() - skipped;
        Ok(Self(addresses[..kept].to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_their_addresses() {
        let sources = |text: &str| {
            let Sources(found) = text.parse().expect("sources");
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(sources("127.0.0.9"), ["127.0.0.9"]);
        assert_eq!(sources("127.0.0.6/30"), ["127.0.0.5", "127.0.0.6"]);
        assert_eq!(sources("10.0.0.7/31"), ["10.0.0.6", "10.0.0.7"]);
        assert_eq!(sources("fd00::1/127"), ["fd00::", "fd00::1"]);
        assert_eq!(sources("127.1.0.0/22").len(), 1_022);
    }

    #[test]
    fn what_is_no_source_is_refused() {
        for text in ["x", "127.0.0.1/33", "127.0.0.1/", "/8"] {
            let error = SourcesError::NoAddress(text.to_owned());
            assert_eq!(text.parse::<Sources>(), Err(error), "{text}");
        }
        for text in ["127.0.0.0/8", "fd00::/64", "0.0.0.0/0"] {
            let error = SourcesError::TooMany(text.to_owned());
            assert_eq!(text.parse::<Sources>(), Err(error), "{text}");
        }
    }
}
