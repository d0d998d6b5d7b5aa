//! Reads queues and sessions back.

use bytes::Bytes;
use headgate_codec::Text;
use headgate_core::{
    Completion, Loaded, QueueSummary, RestoredSession, RestoredSubscription, RestoredWill,
    SessionId,
};
use std::{ops::ControlFlow, sync::Arc};

use super::{
    codec::{self, Calendar, ValueError},
    engine::{EngineError, Reader, Table},
    keys::{self, SessionPart},
    lane::LoadRequest,
    metrics::StoreMetrics,
};

/// The part of a queue that a worker asked for.
pub fn queue(
    reader: &dyn Reader,
    request: LoadRequest,
    calendar: Calendar,
    metrics: &StoreMetrics,
) -> Completion {
    let mut messages: Vec<Loaded> = Vec::new();
    let (mut bytes, mut more) = (0u64, false);
    let from = keys::queued(request.session, request.after.saturating_add(1));
    let read = reader.scan(
        Table::Queues,
        &keys::id(request.session),
        &from,
        &mut |key, value| {
            let part = keys::split(key).and_then(|(_, rest)| keys::queue_part(rest));
            match part {
                Some((sequence, true)) => {
                    let last = messages.last_mut().filter(|last| last.sequence == sequence);
                    if let Some(last) = last {
                        bytes -= last
                            .message
                            .take()
                            .map_or(0, |message| u64::from(message.cost()));
                    }
                }
                Some((sequence, false)) => {
                    let is_enough = messages.len() >= usize::from(request.messages_max.max(1))
                        || bytes >= u64::from(request.bytes_max) && !messages.is_empty();
                    if is_enough {
                        more = true;
                        return ControlFlow::Break(());
                    }
                    match message(value, calendar) {
                        Ok(queued) => {
                            bytes += u64::from(queued.message.cost());
                            messages.push(loaded(sequence, queued));
                        }
                        Err(error) => damaged(&error, key, metrics),
                    }
                }
                None => damaged(&ValueError::Damaged("no key of a queue"), key, metrics),
            }
            ControlFlow::Continue(())
        },
    );
    if let Err(error) = &read {
        tracing::error!(%error, "a session's queue can't be read from the store");
        metrics.failures.inc();
        messages.clear();
    }
    metrics.loads.inc();
    Completion::Loaded {
        op: request.op,
        handle: request.handle,
        messages,
        more,
        failed: read.is_err(),
    }
}

fn message(value: &[u8], calendar: Calendar) -> Result<codec::Queued, ValueError> {
    codec::Reader::new(Bytes::copy_from_slice(value), calendar)?.queued()
}

fn loaded(sequence: u64, queued: codec::Queued) -> Loaded {
    Loaded {
        sequence,
        message: Some(Arc::new(queued.message)),
        qos: queued.qos,
        retain: queued.retain,
        ids: queued.ids,
        packet_id: queued.packet_id,
        group: queued.group,
    }
}

/// All wills that are due and not published: those that came due in the seconds of a start.
///
/// # Errors
/// The store can't be read.
pub fn wills(
    reader: &dyn Reader,
    calendar: Calendar,
    metrics: &StoreMetrics,
) -> Result<Vec<RestoredWill>, EngineError> {
    let mut wills = Vec::new();
    reader.scan(Table::Wills, &[], &[], &mut |key, value| {
        let value = codec::Reader::new(Bytes::copy_from_slice(value), calendar);
        match (keys::split(key), value.and_then(codec::Reader::retained)) {
            (Some((id, [])), Ok(message)) => wills.push(RestoredWill {
                id,
                message: Arc::new(message),
            }),
            (_, Err(error)) => damaged(&error, key, metrics),
            _ => damaged(&ValueError::Damaged("no key of a will"), key, metrics),
        }
        ControlFlow::Continue(())
    })?;
    Ok(wills)
}

/// An entry that can't be read is left where it is, and said to be there.
pub fn damaged(error: &ValueError, key: &[u8], metrics: &StoreMetrics) {
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    tracing::error!(%error, key, "an entry of the store is left out; `headgate store check` tells more");
    metrics.damaged.inc();
}

/// Reads sessions in the order of their ids.
pub struct Sessions<'a> {
    /// The tables.
    pub reader: &'a dyn Reader,
    /// For times.
    pub calendar: Calendar,
    /// Counts what can't be read.
    pub metrics: &'a StoreMetrics,
}

impl Sessions<'_> {
    /// The session of a client, if it has one.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn of_client(&self, client_id: &str) -> Result<Option<RestoredSession>, EngineError> {
        let Some(value) = self.reader.get(Table::Clients, client_id.as_bytes())? else {
            return Ok(None);
        };
        match codec::Reader::new(value, self.calendar).and_then(codec::Reader::id) {
            Ok(session) => {
                let (mut found, _) = self.after(&keys::id(session), 1)?;
                Ok(found.pop().filter(|found| found.id == session))
            }
            Err(error) => {
                damaged(&error, client_id.as_bytes(), self.metrics);
                Ok(None)
            }
        }
    }

    /// Up to `max` sessions from this key on, and where to go on, if there are more.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn after(
        &self,
        from: &[u8],
        max: usize,
    ) -> Result<(Vec<RestoredSession>, Option<Vec<u8>>), EngineError> {
        let mut found: Vec<Building> = Vec::new();
        let mut next = None;
        self.reader
            .scan(Table::Sessions, &[], from, &mut |key, value| {
                let Some((id, rest)) = keys::split(key) else {
                    damaged(
                        &ValueError::Damaged("no key of a session"),
                        key,
                        self.metrics,
                    );
                    return ControlFlow::Continue(());
                };
                if found.last().is_none_or(|last| last.id != id) {
                    if found.len() == max {
                        next = Some(key.to_vec());
                        return ControlFlow::Break(());
                    }
                    found.push(Building::new(id));
                }
                if let Some(building) = found.last_mut()
                    && let Err(error) = building.part(rest, value, self.calendar)
                {
                    damaged(&error, key, self.metrics);
                }
                ControlFlow::Continue(())
            })?;
        let mut sessions = Vec::with_capacity(found.len());
        for building in found {
            let id = building.id;
            let Some(mut session) = building.session() else {
                damaged(
                    &ValueError::Damaged("a session without its head"),
                    &keys::id(id),
                    self.metrics,
                );
                continue;
            };
            self.summary(&mut session)?;
            sessions.push(session);
        }
        Ok((sessions, next))
    }

    fn summary(&self, session: &mut RestoredSession) -> Result<(), EngineError> {
        let prefix = keys::id(session.id);
        let (mut last_cost, mut summary) = (0, session.queue);
        let mut highest = session.sequence;
        self.reader
            .scan(Table::Queues, &prefix, &prefix, &mut |key, value| {
                let part = keys::split(key).and_then(|(_, rest)| keys::queue_part(rest));
                match part {
                    Some((_, true)) => {
                        summary.bytes -= std::mem::take(&mut last_cost);
                    }
                    Some((sequence, false)) => match message(value, self.calendar) {
                        Ok(queued) => {
                            last_cost = queued.message.cost().min(u32::MAX - summary.bytes);
                            summary.bytes += last_cost;
                            summary.count += 1;
                            if summary.count == 1 {
                                summary.first_packet_id = queued.packet_id.get();
                            }
                            summary.last_packet_id = queued.packet_id.get();
                            highest = highest.max(sequence);
                        }
                        Err(error) => damaged(&error, key, self.metrics),
                    },
                    None => damaged(&ValueError::Damaged("no key of a queue"), key, self.metrics),
                }
                ControlFlow::Continue(())
            })?;
        session.queue = summary;
        session.sequence = highest;
        Ok(())
    }
}

/// A session of which parts have been read.
struct Building {
    id: SessionId,
    opened: Option<codec::Opened>,
    closed: Option<codec::Closed>,
    subscriptions: Vec<RestoredSubscription>,
    received: Vec<headgate_codec::PacketId>,
}

impl Building {
    fn new(id: SessionId) -> Self {
        Self {
            id,
            opened: None,
            closed: None,
            subscriptions: Vec::new(),
            received: Vec::new(),
        }
    }

    fn part(&mut self, rest: &[u8], value: &[u8], calendar: Calendar) -> Result<(), ValueError> {
        let value = codec::Reader::new(Bytes::copy_from_slice(value), calendar)?;
        match SessionPart::read(rest) {
            Some(SessionPart::Opened) => self.opened = Some(value.opened()?),
            Some(SessionPart::Closed) => self.closed = Some(value.closed()?),
            Some(SessionPart::Subscription(filter)) => {
                let filter = Text::new(Bytes::copy_from_slice(filter));
                let subscription = value.subscription()?;
                self.subscriptions.push(RestoredSubscription {
                    filter: filter.ok_or(ValueError::Damaged("a filter that is no text"))?,
                    options: subscription.options,
                    subscription_id: subscription.subscription_id,
                });
            }
            Some(SessionPart::Received(packet_id)) => self.received.push(packet_id),
            None => return Err(ValueError::Damaged("no key of a session")),
        }
        Ok(())
    }

    fn session(self) -> Option<RestoredSession> {
        let opened = self.opened?;
        let closed = self.closed.unwrap_or_default();
        let is_connected = self.closed.is_none();
        let has_will = is_connected || closed.will_at.is_some();
        Some(RestoredSession {
            id: self.id,
            client_id: opened.client_id,
            epoch: opened.epoch,
            sequence: opened.sequence.max(closed.sequence),
            expiry_s: opened.expiry_s,
            version: opened.version,
            is_connected,
            expires_at: closed.expires_at,
            will: opened.will.filter(|_| has_will),
            will_at: closed.will_at,
            subscriptions: self.subscriptions,
            received: self.received,
            queue: QueueSummary {
                sent_up_to: closed.sent_up_to,
                send_quota: opened.send_quota,
                ..QueueSummary::default()
            },
        })
    }
}
