//! Connection IDs for quinn-proto: they name the worker that owns the connection.

use std::time::Duration;

use super::quic::guard::Issued;
use headgate_common::CidKeys;
use headgate_common::cid::{CID_LEN, RANDOM_LEN};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use ring::rand::{SecureRandom, SystemRandom};

/// Random parts fetched from the operating system at once.
const POOL_LEN: usize = 128;

/// Makes the connection IDs of one worker's connections.
///
/// Their random part must not be predictable (RFC 9000 §5.1: an observer must not be able to correlate the IDs of one
/// connection), so it comes from the operating system's generator, 128 at a time.
pub struct CidGenerator {
    keys: CidKeys,
    node: u16,
    slot: u8,
    random: SystemRandom,
    pool: [[u8; RANDOM_LEN]; POOL_LEN],
    /// Entries of the pool that are not used yet.
    left: usize,
    /// Who wants to know which were made.
    issued: Issued,
}

impl CidGenerator {
    /// For the worker in `slot` of the node `node`. `keys` are the node's; the current rotation is used for new IDs.
    pub fn new(keys: CidKeys, node: u16, slot: u8, issued: Issued) -> Self {
        Self {
            keys,
            node,
            slot,
            random: SystemRandom::new(),
            pool: [[0; RANDOM_LEN]; POOL_LEN],
            left: 0,
            issued,
        }
    }

    fn next_random(&mut self) -> [u8; RANDOM_LEN] {
        if self.left == 0 {
            self.random
                .fill(self.pool.as_flattened_mut())
                .expect("the operating system has random numbers once it has started");
            self.left = POOL_LEN;
        }
        self.left -= 1;
        self.pool[self.left]
    }
}

impl ConnectionIdGenerator for CidGenerator {
    fn generate_cid(&mut self) -> ConnectionId {
        let random = self.next_random();
        self.issued.note(random);
        ConnectionId::new(&self.keys.encode(self.node, self.slot, random))
    }

    /// Only IDs of live keys are answered with a stateless reset; whose worker they name doesn't matter, as the
    /// connection is gone and all workers share the reset key.
    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        self.keys.decode(cid).map(drop).map_err(|_| InvalidCid)
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    /// For the connection's whole life: the keys outlive it.
    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use headgate_common::SipKey;

    use super::*;

    fn key(byte: u8) -> SipKey {
        SipKey::from_bytes([byte; 16])
    }

    #[test]
    fn ids_name_their_worker_and_are_unique() {
        let keys = CidKeys::new(3, key(1));
        let mut generator = CidGenerator::new(keys, 0x1234, 7, Issued::default());
        let mut randoms = HashSet::new();
        for _ in 0..10 * POOL_LEN {
            let cid = generator.generate_cid();
            assert_eq!(cid.len(), generator.cid_len());
            generator.validate(&cid).unwrap();
            let fields = keys.decode(&cid).unwrap();
            assert_eq!((fields.rotation, fields.node, fields.slot), (3, 0x1234, 7));
            assert!(
                randoms.insert(fields.random),
                "no random part is used twice"
            );
        }
    }

    #[test]
    fn ids_of_any_worker_and_of_the_former_key_are_valid_and_others_are_not() {
        let former = CidKeys::new(2, key(1));
        let generator = CidGenerator::new(
            CidKeys::new(3, key(2)).with_former(2, key(1)),
            1,
            0,
            Issued::default(),
        );
        let of_former = CidGenerator::new(former, 1, 5, Issued::default()).generate_cid();
        generator.validate(&of_former).unwrap();
        let of_other_key =
            CidGenerator::new(CidKeys::new(3, key(3)), 1, 0, Issued::default()).generate_cid();
        assert!(generator.validate(&of_other_key).is_err());
        assert!(
            generator
                .validate(&ConnectionId::new(&of_former[..13]))
                .is_err()
        );
        for place in 0..CID_LEN {
            let mut altered = [0; CID_LEN];
            altered.copy_from_slice(&of_former);
            altered[place] ^= 1;
            assert!(
                generator.validate(&ConnectionId::new(&altered)).is_err(),
                "octet {place} is protected"
            );
        }
    }
}
