//! What every part of the core needs beside its own state.

use bytes::{Bytes, BytesMut};
use headgate_codec::{Packet, Version, encode};
use std::{collections::VecDeque, sync::Arc};

use crate::{
    ConnId, CoreConfig, CoreLimits, Counters, OpId, Output, Pressure, Publisher, Receipt, Record,
    RetainedFull, SessionId, StorageState, Time, block::Consequence, counters::add, quota::Quotas,
    slots::Handle,
};

/// The time of this input, operation numbers, limits and counters.
pub(crate) struct Env {
    pub(crate) now: Time,
    pub(crate) limits: CoreLimits,
    /// Where Packet Identifiers begin; 0 = at the first.
    pub(crate) first_packet_id: u16,
    pub(crate) quotas: Quotas,
    pub(crate) counters: Counters,
    /// The last operation that was begun.
    pub(crate) last_op: OpId,
    /// The last Persist operation that was begun.
    pub(crate) last_persist: OpId,
    /// Persist operations up to here are safe.
    pub(crate) persisted: OpId,
    /// Who waits for which Persist, in the order of operations.
    pub(crate) waiters: VecDeque<(OpId, Waiter)>,
    pub(crate) storage: StorageState,
    /// Whose message is being delivered; `None` = the server's own, or one that has waited here.
    pub(crate) publisher: Option<Publisher>,
    /// What follows from queues that this input has found full, or emptied.
    pub(crate) consequences: Vec<Consequence>,
    pub(crate) pressure: Pressure,
    scratch: BytesMut,
}

/// What goes on when a Persist has completed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    /// Acknowledgements of a connection.
    Conn(ConnId),
    /// The answer to another worker's delivery, and its weight.
    Remote(Receipt, u32),
    /// What a session has to send.
    Session(Handle),
    /// The CONNACK of a connection that gets a session.
    ConnAck(Handle),
}

impl Env {
    pub(crate) fn new(config: &CoreConfig) -> Self {
        let first = OpId(u64::from(config.incarnation) << 48);
        Self {
            now: Time::default(),
            limits: config.limits.clone(),
            first_packet_id: config.first_packet_id,
            quotas: Quotas::new(Arc::clone(&config.quotas)),
            counters: Counters::default(),
            last_op: first,
            last_persist: first,
            persisted: first,
            waiters: VecDeque::new(),
            storage: StorageState::Ok,
            publisher: None,
            consequences: Vec::new(),
            pressure: Pressure::default(),
            scratch: BytesMut::new(),
        }
    }

    pub(crate) fn op(&mut self) -> OpId {
        self.last_op.0 += 1;
        self.last_op
    }

    pub(crate) fn encode(&mut self, packet: &Packet, version: Version) -> Bytes {
        add(&mut self.counters.packets_out, 1);
        encode(packet, version, &mut self.scratch);
        self.scratch.split().freeze()
    }

    /// Encodes one packet behind others that [`Env::take_encoded`] will take.
    pub(crate) fn encode_more(&mut self, packet: &Packet, version: Version) {
        add(&mut self.counters.packets_out, 1);
        encode(packet, version, &mut self.scratch);
    }

    pub(crate) fn take_encoded(&mut self) -> Bytes {
        self.scratch.split().freeze()
    }

    pub(crate) fn count_retained_full(&mut self, full: RetainedFull) {
        let counter = match full {
            RetainedFull::Messages => &mut self.counters.limit_retained,
            RetainedFull::Bytes => &mut self.counters.limit_retained_bytes,
        };
        add(counter, 1);
    }

    pub(crate) fn persist(
        &mut self,
        session: SessionId,
        epoch: u32,
        sequence: u64,
        record: Record,
        out: &mut Vec<Output>,
    ) {
        let op = self.op();
        self.last_persist = op;
        add(&mut self.counters.persists, 1);
        out.push(Output::Persist {
            op,
            session,
            epoch,
            sequence,
            record,
        });
    }
}
