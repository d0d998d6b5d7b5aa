//! Who may come in: prefixes that are denied or allowed, and sources that are denied automatically because of what
//! they sent. The longest prefix decides.
//!
//! The lists are kept here, and in the state folder; the kernel's maps follow them ([`Lists::take_changes`]).
//! Without the kernel part, connections are refused.

mod offences;
#[cfg(test)]
mod tests;

pub use offences::Offence;

use crate::{
    config::ListsConfig,
    kernel::Prefix,
    state_file::{self, StateError},
};
use offences::Offences;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Entries of both lists together. Worst case: about 150 bytes here, and 130 in the kernel, for each.
pub const ENTRIES_MAX: usize = 60_000;
/// Longest text that says why a prefix is listed, bytes.
pub const TEXT_BYTES_MAX: usize = 200;

/// What a listed prefix means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing of it is let in.
    Deny,
    /// No budget by source applies to it, and it is never denied automatically.
    Allow,
}

/// Who has listed a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The configuration.
    Configuration,
    /// An operator, with `headgate ctl`.
    Operator,
    /// The broker: it sent malformed packets too often.
    MalformedPackets,
    /// The broker: it failed to authenticate too often.
    FailedAuthentications,
}

impl By {
    /// The broker has listed it by itself.
    pub fn is_automatic(self) -> bool {
        matches!(self, Self::MalformedPackets | Self::FailedAuthentications)
    }
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it means.
    pub action: Action,
    /// Who has made it.
    pub by: By,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// Since when, Unix seconds.
    pub since_s: u64,
    /// Until when, Unix seconds; 0 = for ever.
    #[serde(default)]
    pub expires_s: u64,
}

impl Entry {
    fn is_over(&self, now_s: u64) -> bool {
        self.expires_s != 0 && self.expires_s <= now_s
    }
}

/// A change that the kernel has to follow: the new entry, or `None`.
pub type Change = (Prefix, Option<Entry>);

/// How many there are of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ListCounts {
    /// Prefixes that are denied.
    pub denied: u64,
    /// Prefixes that are allowed.
    pub allowed: u64,
    /// Sources that were denied automatically because of malformed packets, since the start.
    pub automatic_malformed: u64,
    /// Because of authentications that failed.
    pub automatic_failed: u64,
    /// Sources that were not denied because as many are as may be.
    pub automatic_full: u64,
    /// Malformed packets and failures that were not counted, because too many sources are watched.
    pub unwatched: u64,
}

/// Why a list stays as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The configuration has this entry.
    #[error("{0} stands in the configuration ([lists]): take it out there")]
    Configured(Prefix),
    /// There is no such entry.
    #[error("{0} is not on this list")]
    Absent(Prefix),
    /// No room.
    #[error("the lists have {ENTRIES_MAX} entries, and have no room for more")]
    Full,
    /// The text is too long.
    #[error("a reason has at most {TEXT_BYTES_MAX} bytes")]
    Text,
}

/// The lists, and what is counted against sources. Asked once per connection, never per packet.
#[derive(Debug)]
pub struct Lists {
    config: ListsConfig,
    file: PathBuf,
    /// Spares the workers the lock while nothing is listed.
    is_any: AtomicBool,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    entries: BTreeMap<Prefix, Entry>,
    /// How many prefixes of each length there are, for IPv4 and IPv6.
    lengths: [Vec<u32>; 2],
    offences: Offences,
    changes: Vec<Change>,
    automatic: usize,
    counts: ListCounts,
    /// The file doesn't say all of it.
    is_unsaved: bool,
}

/// What is kept in the state folder.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    #[serde(default)]
    entries: BTreeMap<String, Entry>,
}

impl Lists {
    /// The lists of the configuration, and what was listed before the last stop and has not expired.
    ///
    /// # Errors
    /// When what was kept is there and can't be read.
    pub fn load(config: &ListsConfig, state_dir: &Path, now_s: u64) -> Result<Self, StateError> {
        let file = state_dir.join("lists.json");
        let kept: Kept = state_file::read(&file)?;
        let mut book = Book {
            lengths: [vec![0; 33], vec![0; 129]],
            ..Book::default()
        };
        let configured = [(Action::Deny, &config.deny), (Action::Allow, &config.allow)];
        for (action, prefixes) in configured {
            let entry = Entry {
                action,
                by: By::Configuration,
                text: String::new(),
                since_s: now_s,
                expires_s: 0,
            };
            // The configuration was checked.
            for prefix in prefixes.iter().filter_map(|text| text.parse().ok()) {
                book.insert(prefix, entry.clone());
            }
        }
        for (text, entry) in kept.entries {
            if let Ok(prefix) = text.parse()
                && !entry.is_over(now_s)
            {
                book.insert(prefix, entry);
            }
        }
        book.is_unsaved = false;
        Ok(Self {
            config: config.clone(),
            file,
            is_any: AtomicBool::new(!book.entries.is_empty()),
            book: Mutex::new(book),
        })
    }

    /// Lists a prefix, or changes its entry; `lasts` = `None` is for ever.
    ///
    /// # Errors
    /// When there is no room, or the text is too long.
    pub fn add(
        &self,
        prefix: Prefix,
        (action, text): (Action, &str),
        lasts: Option<Duration>,
        now_s: u64,
    ) -> Result<(), ListError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(ListError::Text);
        }
        let mut book = self.book();
        if book.entries.len() >= ENTRIES_MAX && !book.entries.contains_key(&prefix) {
            return Err(ListError::Full);
        }
        let entry = Entry {
            action,
            by: By::Operator,
            text: text.to_owned(),
            since_s: now_s,
            expires_s: lasts.map_or(0, |lasts| now_s.saturating_add(lasts.as_secs().max(1))),
        };
        book.insert(prefix, entry);
        self.is_any.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a prefix off a list.
    ///
    /// # Errors
    /// When it isn't there, or the configuration has it.
    pub fn remove(&self, prefix: Prefix, action: Action) -> Result<(), ListError> {
        let mut book = self.book();
        match book.entries.get(&prefix) {
            Some(entry) if entry.action != action => Err(ListError::Absent(prefix)),
            None => Err(ListError::Absent(prefix)),
            Some(entry) if entry.by == By::Configuration => Err(ListError::Configured(prefix)),
            Some(_) => {
                book.remove(prefix);
                Ok(())
            }
        }
    }

    /// What the longest prefix of an address means.
    pub fn find(&self, address: IpAddr, now_s: u64) -> Option<Action> {
        if !self.is_any.load(Ordering::Relaxed) {
            return None;
        }
        self.book().find(address, now_s)
    }

    /// A source, whose address is certain, has sent a malformed packet or failed to authenticate. `true`: that was too
    /// often, and it is denied from now on.
    pub fn report(&self, address: IpAddr, offence: Offence, now_s: u64) -> bool {
        let (by, per_minute) = match offence {
            Offence::Malformed => (By::MalformedPackets, self.config.malformed_per_minute),
            Offence::FailedAuthentication => (
                By::FailedAuthentications,
                self.config.failed_authentications_per_minute,
            ),
        };
        if per_minute == 0 {
            return false;
        }
        let mut book = self.book();
        // What is allowed is never denied by itself; what is denied already needs no second entry.
        if book.find(address, now_s).is_some() {
            return false;
        }
        let source = Prefix::of_host(address);
        match book.offences.count(source, offence, now_s) {
            None => {
                book.counts.unwatched += 1;
                return false;
            }
            Some(count) if count < per_minute => return false,
            Some(_) => {}
        }
        if book.automatic >= self.config.automatic_max as usize || book.entries.len() >= ENTRIES_MAX
        {
            book.counts.automatic_full += 1;
            return false;
        }
        book.offences.forget(source);
        let expires_s = now_s + u64::from(self.config.deny_for_s);
        let entry = Entry {
            action: Action::Deny,
            by,
            text: format!("{per_minute} within a minute"),
            since_s: now_s,
            expires_s,
        };
        book.insert(source, entry);
        match offence {
            Offence::Malformed => book.counts.automatic_malformed += 1,
            Offence::FailedAuthentication => book.counts.automatic_failed += 1,
        }
        self.is_any.store(true, Ordering::Relaxed);
        true
    }

    /// Takes what has expired off the lists; how many there were.
    pub fn sweep(&self, now_s: u64) -> usize {
        if !self.is_any.load(Ordering::Relaxed) {
            return 0;
        }
        let mut book = self.book();
        let over: Vec<Prefix> = book
            .entries
            .iter()
            .filter(|(_, entry)| entry.is_over(now_s))
            .map(|(prefix, _)| *prefix)
            .collect();
        for prefix in &over {
            book.remove(*prefix);
        }
        self.is_any
            .store(!book.entries.is_empty(), Ordering::Relaxed);
        over.len()
    }

    /// Every entry.
    pub fn entries(&self) -> Vec<(Prefix, Entry)> {
        let book = self.book();
        let entries = book.entries.iter();
        entries
            .map(|(prefix, entry)| (*prefix, entry.clone()))
            .collect()
    }

    /// How many there are of what.
    pub fn counts(&self) -> ListCounts {
        let book = self.book();
        let of = |action| book.entries.values().filter(|e| e.action == action).count() as u64;
        ListCounts {
            denied: of(Action::Deny),
            allowed: of(Action::Allow),
            ..book.counts
        }
    }

    /// What has changed since it was asked last. The first time these are all entries.
    pub fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.book().changes)
    }

    /// Keeps the entries in the state folder, if something has changed.
    ///
    /// # Errors
    /// When the file can't be written; it is tried again the next time.
    pub fn save(&self) -> Result<(), StateError> {
        let kept = {
            let mut book = self.book();
            if !std::mem::take(&mut book.is_unsaved) {
                return Ok(());
            }
            let own = book
                .entries
                .iter()
                .filter(|(_, e)| e.by != By::Configuration);
            let entries = own.map(|(prefix, entry)| (prefix.to_string(), entry.clone()));
            Kept {
                entries: entries.collect(),
            }
        };
        let written = state_file::write(&self.file, &kept);
        if written.is_err() {
            self.book().is_unsaved = true;
        }
        written
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change is made whole before anything could panic.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn insert(&mut self, prefix: Prefix, entry: Entry) {
        self.automatic += usize::from(entry.by.is_automatic());
        match self.entries.insert(prefix, entry.clone()) {
            Some(former) => self.automatic -= usize::from(former.by.is_automatic()),
            None => *self.length(prefix) += 1,
        }
        self.changes.push((prefix, Some(entry)));
        self.is_unsaved = true;
    }

    fn remove(&mut self, prefix: Prefix) {
        let Some(former) = self.entries.remove(&prefix) else {
            return;
        };
        self.automatic -= usize::from(former.by.is_automatic());
        *self.length(prefix) -= 1;
        self.changes.push((prefix, None));
        self.is_unsaved = true;
    }

    fn length(&mut self, prefix: Prefix) -> &mut u32 {
        let family = usize::from(prefix.address().is_ipv6());
        &mut self.lengths[family][usize::from(prefix.len())]
    }

    fn find(&self, address: IpAddr, now_s: u64) -> Option<Action> {
        let address = address.to_canonical();
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        let longest_first = lengths.iter().enumerate().rev();
        let used = longest_first.filter(|(_, count)| **count > 0);
        used.map(|(len, _)| len)
            .find_map(|len| {
                let prefix = Prefix::new(address, len as u8)?;
                self.entries.get(&prefix).filter(|e| !e.is_over(now_s))
            })
            .map(|entry| entry.action)
    }
}
