//! Who may open a connection.

use super::QuicSide;
use crate::{
    limits::{Admission, Limit, Permit},
    metrics::WorkerMetrics,
    worker::Clock,
};
use quinn_proto::Incoming;
use std::sync::Arc;

impl QuicSide {
    /// The connection back, if its client need not prove its address first.
    pub(super) fn validated(
        &mut self,
        incoming: Incoming,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<Incoming> {
        if incoming.remote_address_validated() {
            return Some(incoming);
        }
        // Whoever has seen a connection ID of ours opens nothing with it: a client's first one is its own.
        if self.guard.is_ours(incoming.orig_dst_cid()) {
            metrics.initials_to_own_cids.inc();
            self.endpoint.ignore(incoming);
            return None;
        }
        if !self.guard.retry.asks(clock.now) || !incoming.may_retry() {
            return Some(incoming);
        }
        self.buffer.clear();
        if let Ok(retry) = self.endpoint.retry(incoming, &mut self.buffer) {
            metrics.retries.inc();
            self.send.push(&retry, &self.buffer);
        }
        self.guard.discard();
        None
    }

    /// Whether a connection may begin; otherwise its client is told so, or not.
    pub(super) fn admitted(
        &mut self,
        incoming: Incoming,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<(Incoming, Permit)> {
        self.buffer.clear();
        if self.accepting {
            let address = incoming.remote_address().ip().to_canonical();
            match admission.admit(address, clock.now) {
                Ok(permit) => return Some((incoming, permit)),
                Err(limit) => {
                    metrics.refused[limit].inc();
                    if matches!(limit, Limit::HandshakesPerSecond | Limit::Denied) {
                        // The client repeats its Initial: silence delays it, an answer turns it away. Who is denied is
                        // not even told that there is a broker.
                        self.endpoint.ignore(incoming);
                        return None;
                    }
                }
            }
        }
        let refusal = self.endpoint.refuse(incoming, &mut self.buffer);
        self.send.push(&refusal, &self.buffer);
        self.guard.discard();
        None
    }
}
