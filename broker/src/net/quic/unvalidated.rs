//! How much may be sent to an address before it is known that somebody there wants it (RFC 9000 §8.1).
//!
//! quinn-proto asks for one byte of what is left and then fills a datagram, which comes to 3.2 times what was
//! received. So it is asked for whole datagrams only.

/// A server sends at most this many times what it has received.
const FACTOR: u64 = 3;

/// What came from a client's address and what went there, before it is validated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unvalidated {
    received_bytes: u64,
    sent_bytes: u64,
}

impl Unvalidated {
    /// A datagram came from there.
    pub fn received(&mut self, bytes: usize) {
        self.received_bytes = self.received_bytes.saturating_add(bytes as u64);
    }

    /// Datagrams went there.
    pub fn sent(&mut self, bytes: usize) {
        self.sent_bytes = self.sent_bytes.saturating_add(bytes as u64);
    }

    /// How many whole datagrams of `bytes` may go there now.
    pub fn datagrams(&self, bytes: u16) -> usize {
        let left = (FACTOR * self.received_bytes).saturating_sub(self.sent_bytes);
        (left / u64::from(bytes.max(1))) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever comes and in whichever order, three times as much is never exceeded by a byte.
        #[test]
        fn three_times_is_never_exceeded(steps in prop::collection::vec((0..1_500usize, 0..20usize), 1..50)) {
            let (mut address, mut received, mut sent) = (Unvalidated::default(), 0, 0);
            for (came, wanted) in steps {
                address.received(came);
                received += came;
                let allowed = address.datagrams(1_200).min(wanted);
                address.sent(allowed * 1_200);
                sent += allowed * 1_200;
                prop_assert!(sent <= 3 * received);
            }
        }
    }
}
