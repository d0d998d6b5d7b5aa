//! Lists of prefixes that are denied, or exempt from budgets by source.

use std::net::IpAddr;
use std::time::Duration;

use aya::maps::MapError;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::{Ebpf, Pod};
use headgate_common::records::{ListAction, ListEntry, ListReason};

use super::error::KernelError;
use super::live::unix_s;
use super::loader::Shield;
use super::maps::{Record, missing, refused};

/// A prefix of addresses. The bits behind its length are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// An entry of the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which addresses.
    pub prefix: Prefix,
    /// What happens to their packets; `None` if somebody wrote a number that means nothing.
    pub action: Option<ListAction>,
    /// Why.
    pub reason: ListReason,
    /// Until when, in Unix seconds; 0 for ever.
    pub expires_s: u64,
}

/// [`ListEntry`] as it is read: somebody may have written a number that is no action.
type EntryWords = [u32; size_of::<ListEntry>() / 4];

impl Prefix {
    /// The first `len` bits of an address; `None` if it has fewer. An IPv4 address in IPv6 form counts as IPv4.
    #[must_use]
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        match (address, address.to_canonical()) {
            (IpAddr::V6(_), canonical @ IpAddr::V4(_)) => {
                Self::new(canonical, len.checked_sub(96)?)
            }
            (_, IpAddr::V4(address)) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                let address = IpAddr::V4((address.to_bits() & mask).into());
                Some(Self { address, len })
            }
            (_, IpAddr::V6(address)) if len <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                let address = IpAddr::V6((address.to_bits() & mask).into());
                Some(Self { address, len })
            }
            _ => None,
        }
    }

    /// The smallest prefix that one host is denied by: its address, or its /64.
    #[must_use]
    pub fn of_host(address: IpAddr) -> Self {
        match address.to_canonical() {
            address @ IpAddr::V4(_) => Self { address, len: 32 },
            IpAddr::V6(address) => Self {
                address: IpAddr::V6((address.to_bits() & (u128::MAX << 64)).into()),
                len: 64,
            },
        }
    }

    /// Its first address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Its length in bits.
    #[must_use]
    pub const fn len(&self) -> u8 {
        self.len
    }

    /// Whether it is the whole Internet of its IP version.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether an address lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && Self::new(address, self.len) == Some(*self)
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;

    /// Reads "203.0.113.0/24" or an address alone.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("{text:?} is no address and no prefix"))?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let len = match len {
            Some(len) => len
                .parse()
                .map_err(|_| format!("{text:?} has no length behind its slash"))?,
            None => all,
        };
        Self::new(address, len).ok_or_else(|| format!("{text:?} is longer than {all} bits"))
    }
}

impl Shield {
    /// Lists a prefix, or changes its entry. It is in force with the next packet; `lasts` = `None` is for ever.
    ///
    /// # Errors
    /// When the kernel refuses the entry: the list is full.
    pub fn list(
        &self,
        prefix: Prefix,
        action: ListAction,
        reason: ListReason,
        lasts: Option<Duration>,
    ) -> Result<(), KernelError> {
        let entry = ListEntry {
            action,
            reason,
            expires_s: lasts.map_or(0, expiry),
        };
        let mut state = self.state();
        match prefix.address {
            IpAddr::V4(address) => {
                let key = Key::new(prefix.len.into(), address.octets());
                insert(&mut state.ebpf, "prefixes4", &key, entry)
            }
            IpAddr::V6(address) => {
                let key = Key::new(prefix.len.into(), address.octets());
                insert(&mut state.ebpf, "prefixes6", &key, entry)
            }
        }
    }

    /// Takes a prefix off the list. Says whether it was there.
    ///
    /// # Errors
    /// When the kernel refuses the change.
    pub fn unlist(&self, prefix: Prefix) -> Result<bool, KernelError> {
        let mut state = self.state();
        match prefix.address {
            IpAddr::V4(address) => {
                let key = Key::new(prefix.len.into(), address.octets());
                remove(&mut state.ebpf, "prefixes4", &key)
            }
            IpAddr::V6(address) => {
                let key = Key::new(prefix.len.into(), address.octets());
                remove(&mut state.ebpf, "prefixes6", &key)
            }
        }
    }

    /// Every entry of the lists, in no order; also those that have expired and are not removed yet.
    ///
    /// # Errors
    /// When the kernel refuses to give them.
    pub fn listed(&self) -> Result<Vec<Listed>, KernelError> {
        let state = self.state();
        let mut entries = Vec::new();
        each::<[u8; 4]>(&state.ebpf, "prefixes4", &mut entries)?;
        each::<[u8; 16]>(&state.ebpf, "prefixes6", &mut entries)?;
        Ok(entries)
    }

    /// Removes the entries whose time is over; says how many there were.
    ///
    /// # Errors
    /// When the kernel refuses a change.
    pub fn unlist_expired(&self) -> Result<usize, KernelError> {
        let now = unix_s();
        let is_over = |entry: &Listed| entry.expires_s != 0 && entry.expires_s <= now;
        let mut removed = 0;
        for entry in self.listed()?.iter().filter(|entry| is_over(entry)) {
            removed += usize::from(self.unlist(entry.prefix)?);
        }
        Ok(removed)
    }
}

fn insert<K: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    key: &Key<K>,
    entry: ListEntry,
) -> Result<(), KernelError> {
    let map = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    let mut list =
        LpmTrie::<_, K, Record<ListEntry>>::try_from(map).map_err(refused("a map's type"))?;
    list.insert(key, Record(entry), 0)
        .map_err(refused("one more prefix"))
}

fn remove<K: Pod>(ebpf: &mut Ebpf, name: &'static str, key: &Key<K>) -> Result<bool, KernelError> {
    let map = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    let mut list = LpmTrie::<_, K, EntryWords>::try_from(map).map_err(refused("a map's type"))?;
    match list.remove(key) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(refused("to remove a prefix")(error)),
    }
}

/// A time that is longer than the record can hold is for ever.
fn expiry(lasts: Duration) -> u32 {
    let until = unix_s().saturating_add(lasts.as_secs().max(1));
    u32::try_from(until).unwrap_or(0)
}

/// Removing what isn't there.
pub(super) fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}

fn each<K: Pod + Into<IpAddr>>(
    ebpf: &Ebpf,
    name: &'static str,
    entries: &mut Vec<Listed>,
) -> Result<(), KernelError> {
    let map = ebpf.map(name).ok_or_else(|| missing(name))?;
    let list = LpmTrie::<_, K, EntryWords>::try_from(map).map_err(refused("a map's type"))?;
    for entry in list.iter() {
        let (key, [action, reason, expires_s]) = entry.map_err(refused("to give a prefix"))?;
        let address = key.data().into();
        let Some(prefix) = Prefix::new(address, key.prefix_len() as u8) else {
            continue;
        };
        entries.push(Listed {
            prefix,
            action: ListAction::from_number(action),
            reason: ListReason::from_number(reason),
            expires_s: expires_s.into(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_and_written() {
        for (text, meant) in [
            ("203.0.113.77/24", "203.0.113.0/24"),
            ("203.0.113.77", "203.0.113.77/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8:1:2:3::/64", "2001:db8:1:2::/64"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::ffff:10.1.2.3/120", "10.1.2.0/24"),
        ] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix.to_string(), meant);
        }
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/",
            "::/129",
            "host",
            "::ffff:1.2.3.4/20",
        ] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_is_denied_by_its_address_or_its_64() {
        let of = |text: &str| Prefix::of_host(text.parse().unwrap()).to_string();
        assert_eq!(of("10.1.2.3"), "10.1.2.3/32");
        assert_eq!(of("::ffff:10.1.2.3"), "10.1.2.3/32");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        let prefix: Prefix = "10.1.2.0/24".parse().unwrap();
        assert!(prefix.contains("10.1.2.99".parse().unwrap()));
        assert!(prefix.contains("::ffff:10.1.2.99".parse().unwrap()));
        assert!(!prefix.contains("10.1.3.1".parse().unwrap()));
        assert!(!prefix.contains("a01:200::".parse().unwrap()));
    }
}
