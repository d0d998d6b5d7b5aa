//! TLS of clients that resume, and a count of those that don't.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;

/// Tickets that are kept; then the oldest goes.
const TICKETS_MAX: usize = 4_096;

/// Tickets of one broker. rustls' own store keeps 8 of them, and many clients shake hands at the same time.
#[derive(Default)]
struct Tickets(Mutex<VecDeque<Tls13ClientSessionValue>>);

/// How many handshakes were not resumed: those in which the client was shown a certificate.
#[derive(Clone, Debug, Default)]
pub struct FullHandshakes(Arc<AtomicU64>);

impl FullHandshakes {
    /// How many so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Every session that the broker gives a ticket for is resumed once.
pub(super) fn resumption() -> Resumption {
    Resumption::store(Arc::new(Tickets::default()))
}

impl Tickets {
    fn with<T>(&self, act: impl FnOnce(&mut VecDeque<Tls13ClientSessionValue>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tickets", self.with(|tickets| tickets.len()))
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    /// The clients know one group only.
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.with(|tickets| {
            tickets.push_back(ticket);
            if tickets.len() > TICKETS_MAX {
                tickets.pop_front();
            }
        });
    }

    /// The newest: some brokers remember a few hundred sessions only.
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.with(VecDeque::pop_back)
    }
}
