//! What a session holds, for whoever looks after the broker.

use std::mem::size_of;

use headgate_codec::{QoS, Text, Version};

use crate::{
    ConnId, Core, Owner, Time,
    session::{Flow, Inflight, NEVER, Session, Waiting},
    slots::Slot,
};

/// What a session holds at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its connection; `None` = the client is away.
    pub conn: Option<ConnId>,
    /// Protocol version of the last connection.
    pub version: Version,
    /// Number of its quota class.
    pub quota_class: u8,
    /// Session Expiry Interval, seconds; `u32::MAX` = it never ends (MQTT 5.0 §3.1.2.11.2).
    pub expiry_s: u32,
    /// When it ends, if the client is away and stays away.
    pub expires_at: Option<Time>,
    /// It is recorded: a restart of the broker leaves it as it is.
    pub is_recorded: bool,
    /// Its subscriptions.
    pub subscriptions: Vec<SubscriptionAccount>,
    /// Messages with QoS 0 that wait.
    pub queued_qos0: usize,
    /// Messages with QoS 1 and 2 that wait in memory.
    pub queued: usize,
    /// Messages behind them that only the store has.
    pub spilled: u32,
    /// What these cost in the store, bytes.
    pub spilled_bytes: u32,
    /// Messages that were sent and are not acknowledged.
    pub inflight: usize,
    /// QoS 2 messages of the client that it has not released.
    pub unreleased: usize,
    /// Bytes given to the connection that the transport hasn't taken.
    pub unsent_bytes: u32,
    /// Memory of the messages that wait or are not acknowledged, bytes: what the class's `memory_bytes` limits.
    pub queue_bytes: u32,
    /// Memory of everything, bytes, about: what the allocator adds isn't counted, nor is the session's share of the topic table.
    pub memory_bytes: usize,
}

/// A subscription of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionAccount {
    /// The Topic Filter as the client has written it.
    pub filter: Box<str>,
    /// The granted QoS.
    pub qos: QoS,
}

impl Core {
    /// What a client's session holds; `None` if this worker hasn't got it (any more), or it is on its way.
    pub fn account(&mut self, owner: Owner, client_id: &Text) -> Option<Account> {
        let slots = &mut self.hub.slots;
        let parked = match slots.at(owner.slot)? {
            Slot::Parked(packed) => Some(packed.len()),
            _ => None,
        };
        // It is packed again with the next input.
        let Slot::Live(session) = slots.owned(owner, client_id)? else {
            return None;
        };
        let mut account = session.account();
        if let Some(bytes) = parked {
            account.memory_bytes = bytes;
        }
        Some(account)
    }
}

impl Session {
    fn account(&self) -> Account {
        let flow = self.flow.as_deref();
        let of_flow = |count: fn(&Flow) -> usize| flow.map_or(0, count);
        let spill = flow.and_then(|flow| flow.spill.as_deref());
        let subscriptions = self.subscriptions.iter().map(|s| SubscriptionAccount {
            filter: s.filter.into(),
            qos: s.options.qos(),
        });
        Account {
            conn: self.conn,
            version: self.version,
            quota_class: self.quota_class,
            expiry_s: self.expiry_s,
            expires_at: (self.expires_at != NEVER).then_some(self.expires_at),
            is_recorded: self.is_recorded,
            subscriptions: subscriptions.collect(),
            queued_qos0: of_flow(|flow| flow.queue_qos0.len()),
            queued: of_flow(|flow| flow.queue.len()),
            spilled: spill.map_or(0, |spill| spill.count),
            spilled_bytes: spill.map_or(0, |spill| spill.bytes),
            inflight: of_flow(|flow| flow.inflight.len()),
            unreleased: of_flow(|flow| flow.received.len()),
            unsent_bytes: self.unsent,
            queue_bytes: flow.map_or(0, |flow| flow.bytes),
            memory_bytes: self.memory_bytes(),
        }
    }

    fn memory_bytes(&self) -> usize {
        let flow = self.flow.as_deref().map_or(0, Flow::memory_bytes);
        size_of::<Self>() + self.client_id.len() + self.subscriptions.memory_bytes() + flow
    }
}

impl Flow {
    fn memory_bytes(&self) -> usize {
        let waiting = self.queue.capacity() + self.queue_qos0.capacity();
        size_of::<Self>()
            + self.bytes as usize
            + waiting * size_of::<Waiting>()
            + self.inflight.capacity() * size_of::<Inflight>()
    }
}
