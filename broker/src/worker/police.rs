//! Clients that go on above their quota: the kernel polices the packets of their QUIC connections.

use super::{
    Clock, Worker,
    conns::{Conn, Link},
};
use crate::kernel::PenaltyOrder;
use headgate_common::quota::PenaltyReason;
use std::time::Duration;

/// The core takes a penalty back when the client behaves, and it ends with its connection; this is for one that was
/// forgotten.
const PENALTY_MAX: Duration = Duration::from_secs(24 * 3_600);

impl Worker {
    /// Does what the core wants done about clients above their quota. Over TCP the kernel has no name for a
    /// connection: what the core itself does has to do.
    pub(super) fn police(&mut self, clock: Clock) {
        for (id, class) in self.driver.take_penalties() {
            let (
                Some(quic),
                Some(Conn {
                    link: Link::Quic(link),
                    peer,
                    ..
                }),
            ) = (&mut self.quic, self.conns.get(id))
            else {
                continue;
            };
            match class {
                Some(class) => {
                    let order = PenaltyOrder {
                        class: class.into(),
                        reason: PenaltyReason::Quota,
                        own_address: Some(peer.ip()),
                        lasts: PENALTY_MAX,
                    };
                    quic.penalize(link, order, clock);
                }
                None => quic.pardon(link),
            }
        }
    }
}
