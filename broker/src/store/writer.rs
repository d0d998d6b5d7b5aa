//! From the core's records to changes of the store.

use headgate_core::{Record, Retained, SessionId};
use std::{collections::HashSet, ops::ControlFlow};

use super::{
    codec::{self, Calendar, Closed, Opened, Subscription},
    engine::{Batch, EngineError, Reader, Table},
    keys,
    lane::Entry,
};

/// Makes batches.
#[derive(Debug)]
pub struct Records {
    calendar: Calendar,
}

impl Records {
    /// Times are written with this calendar.
    pub fn new(calendar: Calendar) -> Self {
        Self { calendar }
    }

    /// Adds what a record changes. `now` shows the store as it was before the batch.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn add(
        &self,
        entry: &Entry,
        retained: &Retained,
        now: &dyn Reader,
        batch: &mut Batch,
    ) -> Result<(), EngineError> {
        let (session, sequence) = (entry.session, entry.sequence);
        let value = || codec::Writer::new(self.calendar);
        match &entry.record {
            Record::SessionOpened { .. } => self.opened(entry, batch),
            Record::SessionClosed {
                expires_at,
                will_at,
                sent_up_to,
            } => {
                let closed = Closed {
                    expires_at: *expires_at,
                    will_at: *will_at,
                    sent_up_to: *sent_up_to,
                    sequence,
                };
                batch.put(
                    Table::Sessions,
                    keys::closed(session),
                    value().closed(&closed),
                );
            }
            Record::WillGone => self.will_gone(session, now, batch)?,
            Record::SessionEnded => end(session, now, batch)?,
            Record::Subscribed {
                filter,
                options,
                subscription_id,
            } => {
                let subscription = Subscription {
                    options: *options,
                    subscription_id: *subscription_id,
                };
                let key = keys::subscription(session, filter.as_str());
                batch.put(Table::Sessions, key, value().subscription(subscription));
            }
            Record::Unsubscribed { filter } => {
                batch.delete(
                    Table::Sessions,
                    keys::subscription(session, filter.as_str()),
                );
            }
            Record::Queued { .. }
            | Record::Acknowledged { .. }
            | Record::PubRec { .. }
            | Record::Completed { .. } => self.queue(entry, batch),
            Record::Received { packet_id } => {
                let key = keys::received(session, *packet_id);
                batch.put(Table::Sessions, key, vec![codec::VALUE]);
            }
            Record::Released { packet_id } => {
                batch.delete(Table::Sessions, keys::received(session, *packet_id));
            }
            Record::WillDue { message } => {
                let key = keys::id(session).to_vec();
                batch.put(Table::Wills, key, value().retained(message));
            }
            Record::WillPublished => batch.delete(Table::Wills, keys::id(session).to_vec()),
            Record::Retained { message } => {
                let key = message.topic.as_bytes().to_vec();
                match retained.get(message.topic.as_str()) {
                    Some(last) => batch.put(Table::Retained, key, value().retained(&last)),
                    None => batch.delete(Table::Retained, key),
                }
            }
        }
        Ok(())
    }

    fn opened(&self, entry: &Entry, batch: &mut Batch) {
        let Record::SessionOpened {
            client_id,
            expiry_s,
            version,
            send_quota,
            will,
        } = &entry.record
        else {
            return;
        };
        let (session, value) = (entry.session, || codec::Writer::new(self.calendar));
        let index = client_id.as_bytes().to_vec();
        batch.put(Table::Clients, index, value().id(session));
        let opened = Opened {
            client_id: client_id.clone(),
            epoch: entry.epoch,
            expiry_s: *expiry_s,
            version: *version,
            send_quota: *send_quota,
            sequence: entry.sequence,
            will: will.clone(),
        };
        let key = keys::opened(session);
        batch.put(Table::Sessions, key, value().opened(&opened));
        batch.delete(Table::Sessions, keys::closed(session));
    }

    /// What changes the session's queue.
    fn queue(&self, entry: &Entry, batch: &mut Batch) {
        let session = entry.session;
        match &entry.record {
            Record::Queued {
                message,
                qos,
                retain,
                ids,
                packet_id,
                group,
            } => {
                let of = (*qos, *retain);
                let value = codec::Writer::new(self.calendar).queued(
                    of,
                    ids.as_deref(),
                    *packet_id,
                    group.as_ref(),
                    message,
                );
                batch.put(Table::Queues, keys::queued(session, entry.sequence), value);
            }
            Record::Acknowledged { queued } => {
                batch.delete(Table::Queues, keys::queued(session, *queued));
            }
            Record::PubRec { queued } => {
                batch.put(
                    Table::Queues,
                    keys::pubrec(session, *queued),
                    vec![codec::VALUE],
                );
            }
            Record::Completed { queued } => {
                batch.delete(Table::Queues, keys::queued(session, *queued));
                batch.delete(Table::Queues, keys::pubrec(session, *queued));
            }
            _ => {}
        }
    }

    /// The session goes on without a will.
    fn will_gone(
        &self,
        session: SessionId,
        now: &dyn Reader,
        batch: &mut Batch,
    ) -> Result<(), EngineError> {
        let key = keys::closed(session);
        // It may be younger than what the reader shows.
        let pending = batch.changes.iter().rev();
        let mut pending = pending.filter(|(table, of, _)| *table == Table::Sessions && *of == key);
        let value = match pending.next() {
            Some((_, _, value)) => value.clone().map(Into::into),
            None => now.get(Table::Sessions, &key)?,
        };
        let Some(value) = value else { return Ok(()) };
        let closed = codec::Reader::new(value, self.calendar).and_then(codec::Reader::closed);
        let mut closed = closed.map_err(|error| EngineError::Damaged(error.to_string()))?;
        closed.will_at = None;
        let value = codec::Writer::new(self.calendar).closed(&closed);
        batch.put(Table::Sessions, key, value);
        Ok(())
    }
}

/// Deletes all that there is of a session.
fn end(session: SessionId, now: &dyn Reader, batch: &mut Batch) -> Result<(), EngineError> {
    let prefix = keys::id(session);
    let own = |(table, key, _): &&(Table, Vec<u8>, Option<Vec<u8>>)| {
        matches!(table, Table::Sessions | Table::Queues) && key.starts_with(&prefix)
    };
    let mut gone: HashSet<(usize, Vec<u8>)> = HashSet::new();
    let mut opened = None;
    for (table, key, value) in batch.changes.iter().filter(own) {
        if *key == keys::opened(session) {
            opened.clone_from(value);
        }
        gone.insert((*table as usize, key.clone()));
    }
    for table in [Table::Sessions, Table::Queues] {
        now.scan(table, &prefix, &prefix, &mut |key, value| {
            if table == Table::Sessions && key == keys::opened(session) && opened.is_none() {
                opened = Some(value.to_vec());
            }
            gone.insert((table as usize, key.to_vec()));
            ControlFlow::Continue(())
        })?;
    }
    for (table, key) in gone {
        let table = if table == Table::Queues as usize {
            Table::Queues
        } else {
            Table::Sessions
        };
        batch.delete(table, key);
    }
    let opened = opened.and_then(|value| {
        let reader = codec::Reader::new(value.into(), Calendar::new(0)).ok()?;
        reader.opened().ok()
    });
    if let Some(opened) = opened {
        let index = opened.client_id.as_bytes().to_vec();
        // The client may have another session by now.
        let pending = batch.changes.iter().rev();
        let mut pending =
            pending.filter(|(table, key, _)| *table == Table::Clients && *key == index);
        let current = match pending.next() {
            Some((_, _, value)) => value.clone().map(Into::into),
            None => now.get(Table::Clients, &index)?,
        };
        let current = current.and_then(|value| {
            let reader = codec::Reader::new(value, Calendar::new(0)).ok()?;
            reader.id().ok()
        });
        if current == Some(session) {
            batch.delete(Table::Clients, index);
        }
    }
    Ok(())
}
