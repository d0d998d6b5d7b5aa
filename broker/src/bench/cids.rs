//! The connection IDs of a fleet's clients: numbers, in a table that says whose each is.

use quinn_proto::{ConnectionId, ConnectionIdGenerator};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Length of the clients' own connection IDs.
pub(super) const CID_LEN: usize = 8;

/// Whose the connection IDs are, which are numbered.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Who gets the next ones.
    pub(super) current: u32,
    of: Vec<u32>,
}

/// Makes them.
#[derive(Debug)]
pub(super) struct NumberedCids(pub(super) Arc<Mutex<Owners>>);

impl ConnectionIdGenerator for NumberedCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = owners.of.len() as u64;
        let current = owners.current;
        owners.of.push(current);
        ConnectionId::new(&number.to_be_bytes())
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Whose the connection ID of a packet with a short header is.
pub(super) fn owner_of(owners: &Mutex<Owners>, datagram: &[u8]) -> Option<u32> {
    let number = u64::from_be_bytes(*datagram.get(1..)?.first_chunk()?);
    let owners = owners.lock().unwrap_or_else(PoisonError::into_inner);
    owners.of.get(usize::try_from(number).ok()?).copied()
}
