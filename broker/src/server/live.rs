//! Quotas and lists in the kernel's maps.

use super::{housekeeping::unix_s, shield::KernelPart};
use crate::{
    kernel::{KernelError, Listed, Prefix},
    lists::{Action, By, Entry, Lists},
};
use headgate_common::{
    quota::QuotaClass,
    records::{ListAction, ListReason},
};
use std::{collections::BTreeSet, time::Duration};

impl KernelPart {
    /// The map `quotas` as it is; `None` without the kernel part.
    pub fn quotas(&self) -> Option<Vec<(u32, QuotaClass)>> {
        let guard = self.shield();
        let quotas = guard.as_ref()?.quotas();
        quotas
            .inspect_err(|error| tracing::warn!(%error, "the map `quotas` can't be read"))
            .ok()
    }

    /// Writes a class into the map `quotas`.
    pub fn set_quota(&self, number: u32, class: QuotaClass) -> Result<(), KernelError> {
        match self.shield().as_ref() {
            Some(shield) => shield.set_quota(number, class),
            None => Ok(()),
        }
    }

    /// Makes the kernel's lists like these.
    pub fn follow_lists(&self, lists: &Lists) -> Result<(), KernelError> {
        let changes = lists.take_changes();
        let guard = self.shield();
        let Some(shield) = guard.as_ref() else {
            return Ok(());
        };
        let now_s = unix_s();
        let mut result = Ok(());
        for (prefix, entry) in changes {
            let done = match entry {
                Some(entry) => {
                    let left_s = entry.expires_s.saturating_sub(now_s);
                    let lasts = (entry.expires_s != 0).then(|| Duration::from_secs(left_s));
                    shield.list(prefix, action(&entry), reason(entry.by), lasts)
                }
                None => shield.unlist(prefix).map(drop),
            };
            result = result.and(done);
        }
        result
    }

    /// Entries of the kernel's lists that these don't have: somebody has written them into the map.
    pub fn listed_by_hand(&self, lists: &Lists) -> Vec<Listed> {
        let guard = self.shield();
        let Some(shield) = guard.as_ref() else {
            return Vec::new();
        };
        let own = prefixes(lists);
        let mut listed = shield.listed().unwrap_or_default();
        listed.retain(|entry| !own.contains(&entry.prefix));
        listed
    }

    /// Takes a prefix off the kernel's list that somebody has written there by hand; whether it was there.
    pub fn unlist_by_hand(&self, prefix: Prefix, action: Action) -> Result<bool, KernelError> {
        let guard = self.shield();
        let Some(shield) = guard.as_ref() else {
            return Ok(false);
        };
        let is_it = |entry: &Listed| entry.prefix == prefix && entry.action == Some(number(action));
        match shield.listed()?.iter().any(is_it) {
            true => shield.unlist(prefix),
            false => Ok(false),
        }
    }

    /// Takes off the kernel's lists what an earlier process has put there and nobody knows of any more. What somebody
    /// has written by hand stays, and is told of.
    pub fn forget_former_lists(&self, lists: &Lists) {
        for entry in self.listed_by_hand(lists) {
            let (prefix, action) = (entry.prefix, entry.action);
            if entry.reason == ListReason::Unknown {
                tracing::warn!(%prefix, ?action, "somebody has written this prefix into the map; it stays");
            } else if let Some(shield) = self.shield().as_ref()
                && let Err(error) = shield.unlist(prefix)
            {
                tracing::warn!(%prefix, %error, "a former entry of the lists can't be removed");
            }
        }
    }
}

fn prefixes(lists: &Lists) -> BTreeSet<Prefix> {
    let entries = lists.entries().into_iter();
    entries.map(|(prefix, _)| prefix).collect()
}

fn action(entry: &Entry) -> ListAction {
    number(entry.action)
}

/// An action as the map has it.
pub(super) fn number(action: Action) -> ListAction {
    match action {
        Action::Deny => ListAction::Deny,
        Action::Allow => ListAction::Allow,
    }
}

fn reason(by: By) -> ListReason {
    match by {
        By::Configuration => ListReason::Configuration,
        By::Operator => ListReason::Operator,
        By::MalformedPackets => ListReason::MalformedPackets,
        By::FailedAuthentications => ListReason::FailedAuthentications,
    }
}
