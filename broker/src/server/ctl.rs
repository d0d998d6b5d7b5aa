//! What `headgate ctl` changes while the server runs.

use super::{Server, housekeeping, live};
use crate::{
    kernel::Prefix,
    lists::{Action, ListError},
};
use headgate_common::quota::QuotaClass;
use headgate_core::{Input, WorkerSlot};
use serde_json::{Value, json};
use std::time::Duration;

impl Server {
    /// Answers a question of `headgate ctl`.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn control(&self, question: &Value) -> Result<Value, String> {
        match question["command"].as_str() {
            Some("quota_list") => Ok(self.quota_list()),
            Some("quota_set") => {
                let values = pairs(&question["values"])?;
                let set = self
                    .workshop
                    .quotas
                    .set(name(question)?, &values, self.writer());
                self.quotas_changed(set)
            }
            Some("quota_reset") => {
                let reset = self.workshop.quotas.reset(name(question)?, self.writer());
                self.quotas_changed(reset)
            }
            Some("qlog") => self.qlog(question),
            Some("session_show") => self.session_show(question),
            Some("lists") => Ok(self.lists(action(question)?)),
            Some("list_add") => self.list_add(question),
            Some("list_del") => {
                let (prefix, action) = (prefix(question)?, action(question)?);
                let by_hand = self.kernel.unlist_by_hand(prefix, action);
                match self.workshop.lists.remove(prefix, action) {
                    Err(ListError::Absent(_)) if matches!(by_hand, Ok(true)) => Ok(json!(true)),
                    removed => self.lists_changed(removed),
                }
            }
            _ => Err("this command is for nobody".to_owned()),
        }
    }

    /// Writes a class into the kernel's map.
    fn writer(&self) -> impl FnOnce(u32, QuotaClass) -> Result<(), String> + '_ {
        |number, class| {
            let written = self.kernel.set_quota(number, class);
            written.map_err(|error| error.to_string())
        }
    }

    /// Every class with its values, who has set them, and how many connections it has.
    pub(super) fn quota_list(&self) -> Value {
        let workers: Vec<_> = (0..self.workers.len())
            .map(|slot| WorkerSlot(slot as u8))
            .collect();
        let classes = self.workshop.quotas.status().into_iter().map(|class| {
            let shared = &self.workshop.shared;
            let connections = shared.class_connections(&workers, class.number as u8);
            json!({
                "name": class.name,
                "number": class.number,
                "open_connections": connections,
                "values": class.values,
            })
        });
        classes.collect()
    }

    /// Writes the next QUIC connection of an address down; answers with the file.
    fn qlog(&self, question: &Value) -> Result<Value, String> {
        let text = question["address"].as_str().unwrap_or_default();
        let peer = text.parse().map_err(|_| {
            format!("`{text}` is no address; it looks like 203.0.113.7 or 2001:db8::7")
        })?;
        let Some(qlogs) = self.workshop.qlogs() else {
            return Err("listen.quic is off: there are no QUIC connections".to_owned());
        };
        let asked = qlogs.ask(peer, housekeeping::unix_s());
        let failed = |error| format!("{}: {error}", qlogs.folder().display());
        let path = asked.map_err(failed)?;
        Ok(json!({ "file": path.display().to_string() }))
    }

    fn list_add(&self, question: &Value) -> Result<Value, String> {
        let lasts = question["for_s"].as_u64().map(Duration::from_secs);
        let what = (action(question)?, question["reason"].as_str().unwrap_or(""));
        let now_s = housekeeping::unix_s();
        let added = self
            .workshop
            .lists
            .add(prefix(question)?, what, lasts, now_s);
        self.lists_changed(added)
    }

    /// The entries of one list, and how long they last.
    fn lists(&self, action: Action) -> Value {
        let now_s = housekeeping::unix_s();
        let entries = self.workshop.lists.entries().into_iter();
        let of_list = entries.filter(|(_, entry)| entry.action == action);
        let left_s = |expires_s: u64| (expires_s != 0).then(|| expires_s.saturating_sub(now_s));
        let listed = of_list.map(|(prefix, entry)| {
            json!({
                "prefix": prefix.to_string(),
                "by": entry.by,
                "reason": entry.text,
                "since_s": entry.since_s,
                "left_s": left_s(entry.expires_s),
            })
        });
        let by_hand = self.kernel.listed_by_hand(&self.workshop.lists).into_iter();
        let by_hand = by_hand.filter(|entry| entry.action == Some(live::number(action)));
        let by_hand = by_hand.map(|entry| {
            json!({
                "prefix": entry.prefix.to_string(),
                "by": "map",
                "reason": "written into the map",
                "since_s": null,
                "left_s": left_s(entry.expires_s),
            })
        });
        listed.chain(by_hand).collect()
    }

    fn lists_changed(&self, changed: Result<(), ListError>) -> Result<Value, String> {
        changed.map_err(|error| error.to_string())?;
        let followed = self.kernel.follow_lists(&self.workshop.lists);
        followed.map_err(|error| error.to_string())?;
        self.workshop
            .lists
            .save()
            .map_err(|error| error.to_string())?;
        Ok(json!(true))
    }

    fn quotas_changed<E: std::fmt::Display>(
        &self,
        changed: Result<(), E>,
    ) -> Result<Value, String> {
        changed.map_err(|error| error.to_string())?;
        self.workshop.publish_quotas();
        Ok(self.quota_list())
    }
}

impl super::supervisor::Workshop {
    /// Tells every worker what the quota classes may use now. `false`: one of them is stuck, and has to be told again.
    pub fn publish_quotas(&self) -> bool {
        let limits = self.quotas.limits();
        let mut all = true;
        for slot in (0..self.mesh.workers()).map(|slot| WorkerSlot(slot as u8)) {
            let input = Input::Quotas(std::sync::Arc::clone(&limits));
            all &= self.control(slot).order(input);
            self.mesh.ring_doorbell(slot);
        }
        all
    }
}

fn prefix(question: &Value) -> Result<Prefix, String> {
    let text = question["prefix"].as_str().unwrap_or_default();
    text.parse().map_err(|error| {
        format!("`{text}` is no prefix: {error}; it looks like 203.0.113.0/24 or 2001:db8::/32")
    })
}

fn action(question: &Value) -> Result<Action, String> {
    match question["list"].as_str() {
        Some("deny") => Ok(Action::Deny),
        Some("allow") => Ok(Action::Allow),
        _ => Err("the question names no list: deny or allow".to_owned()),
    }
}

fn name(question: &Value) -> Result<&str, String> {
    let name = question["name"].as_str();
    name.ok_or_else(|| "the question has no name".to_owned())
}

/// An object of texts.
fn pairs(values: &Value) -> Result<Vec<(String, String)>, String> {
    let object = values.as_object().filter(|object| !object.is_empty());
    let Some(object) = object else {
        return Err("the question has no values".to_owned());
    };
    let pair = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    let pairs: Option<_> = object.iter().map(pair).collect();
    pairs.ok_or_else(|| "each value is a text".to_owned())
}
