//! The quota classes in force: what the configuration says, then what `headgate ctl quota` has changed, then what
//! somebody has written into the map `quotas`.
//!
//! Changes made by ctl are kept in the state folder; those made in the map last as long as the broker runs, and are
//! reported.

use crate::{
    config::{Above, QuotaClass, QuotaConfig, WhenFull},
    state_file::{self, StateError},
};
use headgate_common::quota::QuotaClass as Record;
use headgate_core::{AboveQuota, QuotaLimits};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bidirectional streams of a connection, whatever a class says.
const STREAMS_MAX: u16 = 1_000;

/// What ctl has changed: class → key → value, as it was written.
type Edits = BTreeMap<String, BTreeMap<String, String>>;

/// What is kept in the state folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    #[serde(default)]
    edits: Edits,
    /// What this broker has written into the map: what differs there was written by somebody else.
    #[serde(default)]
    in_map: Edits,
}

/// All classes, and where their values come from.
#[derive(Debug)]
pub struct QuotaBook {
    file: PathBuf,
    pages: Mutex<Pages>,
}

#[derive(Debug)]
struct Pages {
    /// By number: name, what the configuration says, and what is in force.
    classes: Vec<Class>,
    edits: Edits,
    /// What the former process had written into the map.
    former: Edits,
}

#[derive(Clone, Debug)]
struct Class {
    name: String,
    configured: QuotaClass,
    now: QuotaClass,
}

/// A class as `headgate ctl quota list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassStatus {
    /// Its name.
    pub name: String,
    /// Its number in the map `quotas`.
    pub number: usize,
    /// Each key.
    pub values: BTreeMap<&'static str, ValueStatus>,
}

/// A value of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ValueStatus {
    /// The value.
    pub value: String,
    /// Who has set it: `configuration`, `ctl` or `map`.
    pub by: &'static str,
}

/// Why a change was refused.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    /// There is no such class.
    #[error(
        "there is no quota class `{name}`; there are: {known}. New ones are made in the configuration, [quota.NAME]"
    )]
    NoClass {
        /// The name.
        name: String,
        /// All names.
        known: String,
    },
    /// A key or value is wrong.
    #[error("{0}")]
    Value(String),
    /// The change can't be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel did not take it.
    #[error("the map `quotas` can't be written: {0}")]
    Kernel(String),
}

impl QuotaBook {
    /// The classes of the configuration, with the changes that were made by ctl before.
    ///
    /// # Errors
    /// When the changes are there and can't be read.
    pub fn load(config: &QuotaConfig, state_dir: &Path) -> Result<Self, StateError> {
        let file = state_dir.join("quotas.json");
        let kept: Kept = state_file::read(&file)?;
        let mut classes: Vec<Class> = config
            .classes()
            .map(|(name, class)| Class {
                name: name.to_owned(),
                configured: class.clone(),
                now: class.clone(),
            })
            .collect();
        for (name, edits) in &kept.edits {
            let Some(class) = classes.iter_mut().find(|class| class.name == *name) else {
                tracing::warn!(class = %name, "a quota class that ctl has changed is not configured any more");
                continue;
            };
            for (key, value) in edits {
                if let Err(error) = class.now.set(key, value) {
                    tracing::warn!(class = %name, %error, "a change that ctl has made means nothing any more");
                }
            }
        }
        Ok(Self {
            file,
            pages: Mutex::new(Pages {
                classes,
                edits: kept.edits,
                former: kept.in_map,
            }),
        })
    }

    /// What the cores enforce, by class.
    pub fn limits(&self) -> Arc<[QuotaLimits]> {
        let pages = self.pages();
        pages
            .classes
            .iter()
            .map(|class| limits(&class.now))
            .collect()
    }

    /// Changes keys of a class, all or none of them, and keeps that for the next start.
    ///
    /// # Errors
    /// When there is no such class, key or value, or the change can't be kept.
    pub fn set(
        &self,
        name: &str,
        values: &[(String, String)],
        write: impl FnOnce(u32, Record) -> Result<(), String>,
    ) -> Result<(), QuotaError> {
        self.change(name, write, |class, edits| {
            for (key, value) in values {
                class.now.set(key, value).map_err(QuotaError::Value)?;
                edits.insert(key.clone(), value.clone());
            }
            Ok(())
        })
    }

    /// Takes back what was changed of a class: it is what the configuration says.
    ///
    /// # Errors
    /// When there is no such class, or that can't be kept.
    pub fn reset(
        &self,
        name: &str,
        write: impl FnOnce(u32, Record) -> Result<(), String>,
    ) -> Result<(), QuotaError> {
        self.change(name, write, |class, edits| {
            class.now = class.configured.clone();
            edits.clear();
            Ok(())
        })
    }

    /// The classes as the kernel has them, by number.
    pub fn records(&self) -> Vec<(u32, Record)> {
        let pages = self.pages();
        let numbered = (0..).zip(&pages.classes);
        numbered
            .map(|(number, class)| (number, record(&class.name, &class.now)))
            .collect()
    }

    /// What was changed in the map that a former process has left, each edit in words.
    pub fn found(&self, found: &[(u32, Record)]) -> Vec<String> {
        let pages = self.pages();
        let mut edits = Vec::new();
        for (_, record) in found {
            let Some(values) = pages.former.get(record.name()) else {
                continue;
            };
            let mut was = QuotaClass::default();
            for (key, value) in values {
                // It was written by a broker; one of another version may have had other keys.
                let _ = was.set(key, value);
            }
            edits.extend(take_over(record.name(), &mut was, record));
        }
        edits
    }

    /// Keeps what the map holds from now on, for [`QuotaBook::found`] of the next start.
    ///
    /// # Errors
    /// When it can't be kept.
    pub fn save(&self) -> Result<(), StateError> {
        let pages = self.pages();
        let kept = Kept {
            edits: pages.edits.clone(),
            in_map: in_map(&pages.classes),
        };
        state_file::write(&self.file, &kept)
    }

    /// Takes over what somebody has written into the map, which `read` reads; each edit in words. Nobody changes a
    /// class meanwhile.
    pub fn follow(&self, read: impl FnOnce() -> Option<Vec<(u32, Record)>>) -> Vec<String> {
        let mut pages = self.pages();
        let mut edits = Vec::new();
        for (number, found) in read().unwrap_or_default() {
            if let Some(class) = pages.classes.get_mut(number as usize) {
                edits.extend(take_over(&class.name, &mut class.now, &found));
            }
        }
        edits
    }

    /// Every class, and who has set what.
    pub fn status(&self) -> Vec<ClassStatus> {
        let pages = self.pages();
        let classes = pages.classes.iter().enumerate();
        classes
            .map(|(number, class)| ClassStatus {
                name: class.name.clone(),
                number,
                values: class
                    .now
                    .each()
                    .map(|(key, value)| {
                        let by = pages.author(class, key, &value);
                        (key, ValueStatus { value, by })
                    })
                    .collect(),
            })
            .collect()
    }

    /// What somebody has written into the map and is in force.
    pub fn edited_in_map(&self) -> Vec<String> {
        let mut edited = Vec::new();
        for class in self.status() {
            let values = class.values.iter().filter(|(_, value)| value.by == "map");
            edited.extend(
                values.map(|(key, value)| format!("{}.{key} = {}", class.name, value.value)),
            );
        }
        edited
    }

    fn change(
        &self,
        name: &str,
        write: impl FnOnce(u32, Record) -> Result<(), String>,
        change: impl FnOnce(&mut Class, &mut BTreeMap<String, String>) -> Result<(), QuotaError>,
    ) -> Result<(), QuotaError> {
        let mut pages = self.pages();
        let Some(number) = pages.classes.iter().position(|class| class.name == name) else {
            let known: Vec<_> = pages.classes.iter().map(|class| &*class.name).collect();
            return Err(QuotaError::NoClass {
                name: name.to_owned(),
                known: known.join(", "),
            });
        };
        let mut class = pages.classes[number].clone();
        let mut edits = pages.edits.get(name).cloned().unwrap_or_default();
        change(&mut class, &mut edits)?;
        let mut all = pages.edits.clone();
        match edits.is_empty() {
            true => all.remove(name),
            false => all.insert(name.to_owned(), edits),
        };
        let before = Kept {
            edits: pages.edits.clone(),
            in_map: in_map(&pages.classes),
        };
        let entry = record(&class.name, &class.now);
        let former = std::mem::replace(&mut pages.classes[number], class);
        let kept = Kept {
            edits: all,
            in_map: in_map(&pages.classes),
        };
        // In the map under the lock: otherwise its former value would be taken for somebody's edit.
        let done = state_file::write(&self.file, &kept)
            .map_err(QuotaError::State)
            .and_then(|()| write(number as u32, entry).map_err(QuotaError::Kernel));
        if let Err(error) = done {
            pages.classes[number] = former;
            // If this fails as well, the log of the next start says what differs.
            let _ = state_file::write(&self.file, &before);
            return Err(error);
        }
        pages.edits = kept.edits;
        Ok(())
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // A change is put in place at its end: a panic leaves nothing half done.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    /// Who has set a value that is in force.
    fn author(&self, class: &Class, key: &str, value: &str) -> &'static str {
        let edited = self.edits.get(&class.name).and_then(|e| e.get(key));
        let mut meant = class.configured.clone();
        if let Some(edited) = edited {
            // It was tried when it was read.
            let _ = meant.set(key, edited);
        }
        let is_meant = meant.each().any(|(k, v)| k == key && v == value);
        match (is_meant, edited) {
            (false, _) => "map",
            (true, Some(_)) => "ctl",
            (true, None) => "configuration",
        }
    }
}

/// The values of all classes as they are in force.
fn in_map(classes: &[Class]) -> Edits {
    let values = |class: &Class| {
        let values = class.now.each();
        values.map(|(key, value)| (key.to_owned(), value)).collect()
    };
    let each = classes
        .iter()
        .map(|class| (class.name.clone(), values(class)));
    each.collect()
}

/// A class as the kernel has it.
fn record(name: &str, class: &QuotaClass) -> Record {
    Record {
        packets_per_second: class.packets_per_second.into(),
        bytes_per_second: class.bytes_per_second.into(),
        messages_per_second: class.messages_per_second.into(),
        connections: class.connections.into(),
        subscriptions: class.subscriptions.into(),
        queued_messages: class.queued_messages.into(),
        memory_bytes: class.memory_bytes.into(),
        ..Record::named(name)
    }
}

/// What differs in the map is in force, and told of. Larger numbers than a key can have are the largest.
fn take_over(name: &str, class: &mut QuotaClass, found: &Record) -> Vec<String> {
    let values = [
        (
            "packets_per_second",
            &mut class.packets_per_second,
            found.packets_per_second,
        ),
        (
            "bytes_per_second",
            &mut class.bytes_per_second,
            found.bytes_per_second,
        ),
        (
            "messages_per_second",
            &mut class.messages_per_second,
            found.messages_per_second,
        ),
        ("connections", &mut class.connections, found.connections),
        (
            "subscriptions",
            &mut class.subscriptions,
            found.subscriptions,
        ),
        (
            "queued_messages",
            &mut class.queued_messages,
            found.queued_messages,
        ),
        ("memory_bytes", &mut class.memory_bytes, found.memory_bytes),
    ];
    let mut edits = Vec::new();
    for (key, value, found) in values {
        let found = u32::try_from(found).unwrap_or(u32::MAX);
        if *value != found {
            edits.push(format!("{name}.{key}: {value} -> {found}"));
            *value = found;
        }
    }
    edits
}

fn limits(class: &QuotaClass) -> QuotaLimits {
    QuotaLimits {
        messages_per_s: class.messages_per_second,
        bytes_per_s: class.bytes_per_second,
        connections: class.connections,
        subscriptions: class.subscriptions,
        queued_messages: class.queued_messages,
        memory_bytes: class.memory_bytes,
        streams: class.streams.min(STREAMS_MAX),
        is_policed: class.packets_per_second != 0 || class.bytes_per_second != 0,
        above: match class.above {
            Above::Slow => AboveQuota::Slow,
            Above::Refuse => AboveQuota::Refuse,
            Above::Disconnect => AboveQuota::Disconnect,
        },
        when_full: match class.when_full {
            WhenFull::DropNewest => headgate_core::WhenFull::DropNewest,
            WhenFull::DropOldest => headgate_core::WhenFull::DropOldest,
            WhenFull::Disconnect => headgate_core::WhenFull::Disconnect,
            WhenFull::Block => headgate_core::WhenFull::Block,
        },
    }
}

#[cfg(test)]
mod tests;
