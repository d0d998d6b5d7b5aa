//! What `headgate ctl` changes while the server runs.

use super::{Server, housekeeping};
use crate::lists::{Action, ListError, Prefix};
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
                let set = self.workshop.quotas.set(name(question)?, &values);
                self.quotas_changed(set)
            }
            Some("quota_reset") => {
                let reset = self.workshop.quotas.reset(name(question)?);
                self.quotas_changed(reset)
            }
            Some("lists") => Ok(self.lists(action(question)?)),
            Some("list_add") => self.list_add(question),
            Some("list_del") => {
                let removed = self
                    .workshop
                    .lists
                    .remove(prefix(question)?, action(question)?);
                self.lists_changed(removed)
            }
            _ => Err("this command is for nobody".to_owned()),
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
        of_list
            .map(|(prefix, entry)| {
                let expires = (entry.expires_s != 0).then_some(entry.expires_s);
                json!({
                    "prefix": prefix.to_string(),
                    "by": entry.by,
                    "reason": entry.text,
                    "since_s": entry.since_s,
                    "left_s": expires.map(|at| at.saturating_sub(now_s)),
                })
            })
            .collect()
    }

    fn lists_changed(&self, changed: Result<(), ListError>) -> Result<Value, String> {
        changed.map_err(|error| error.to_string())?;
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
