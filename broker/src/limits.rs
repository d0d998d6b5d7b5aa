//! Limits that all workers share: who may connect at all, and how fast.

mod prefix;

use headgate_codec::ReasonCode;
use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    lists::{Action, Lists, Offence},
    metrics::Label,
    overload::Overload,
};

pub(crate) use prefix::Prefix;

/// Every limit, by its key in the sections `[limits]` and `[store]` of the configuration, or in that of a quota class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Network connections in all.
    Connections,
    /// Network connections from one source prefix (IPv4 /24, IPv6 /64).
    ConnectionsPerPrefix,
    /// Memory of the process.
    MemoryLimit,
    /// Connections begun per second, all workers together.
    HandshakesPerSecond,
    /// Streams that a QUIC client may have open.
    StreamsPerConnection,
    /// Data streams that a QUIC client opens in a second.
    StreamOpensPerSecond,
    /// Sessions of one worker.
    SessionsPerWorker,
    /// Connections of one quota class.
    QuotaConnections,
    /// Length of a Client Identifier.
    ClientIdBytes,
    /// Subscriptions of one session.
    SubscriptionsPerSession,
    /// Messages that wait for one session.
    QueuedMessagesPerSession,
    /// Bytes held for one connection.
    MemoryPerConnectionBytes,
    /// Maximum Packet Size (MQTT 5.0 §3.2.2.3.6).
    PacketBytesMax,
    /// Receive Maximum (MQTT 5.0 §3.2.2.3.3).
    ReceiveMaximum,
    /// Retained messages in all.
    RetainedMessages,
    /// Bytes of retained messages in all.
    RetainedBytes,
    /// Passwords that are being checked, all workers together.
    PasswordChecks,
    /// TLS sessions that QUIC clients can resume, all workers together.
    ResumableSessions,
    /// Bytes of one session's queue in the store.
    SessionStoreBytes,
    /// The source is on the deny list (section `[lists]`).
    Denied,
}

impl Limit {
    /// The Reason Code that tells a client that it hit this limit.
    ///
    /// Where a connection is refused before CONNECT was read there is nobody to tell by MQTT:
    /// over QUIC it is then CONNECTION_REFUSED (RFC 9000 §20.1), over TCP the connection is
    /// closed. Above the rate of handshakes nothing is said: the connection waits. Streams beyond the limit are STREAM_LIMIT_ERROR (RFC 9000 §4.6). A session that
    /// can't be resumed any more costs its client a full handshake, and nothing is said.
    pub fn reason(self) -> ReasonCode {
        match self {
            Self::Connections | Self::MemoryLimit | Self::PasswordChecks => ReasonCode::SERVER_BUSY,
            Self::Denied => ReasonCode::BANNED,
            Self::HandshakesPerSecond => ReasonCode::CONNECTION_RATE_EXCEEDED,
            Self::ClientIdBytes => ReasonCode::CLIENT_IDENTIFIER_NOT_VALID,
            Self::PacketBytesMax => ReasonCode::PACKET_TOO_LARGE,
            Self::ReceiveMaximum => ReasonCode::RECEIVE_MAXIMUM_EXCEEDED,
            Self::ConnectionsPerPrefix
            | Self::StreamsPerConnection
            | Self::StreamOpensPerSecond
            | Self::SessionsPerWorker
            | Self::QuotaConnections
            | Self::SubscriptionsPerSession
            | Self::QueuedMessagesPerSession
            | Self::MemoryPerConnectionBytes
            | Self::RetainedMessages
            | Self::RetainedBytes
            | Self::ResumableSessions
            | Self::SessionStoreBytes => ReasonCode::QUOTA_EXCEEDED,
        }
    }
}

impl Label for Limit {
    const NAME: &'static str = "limit";
    const ALL: &'static [Self] = &[
        Self::Connections,
        Self::ConnectionsPerPrefix,
        Self::MemoryLimit,
        Self::HandshakesPerSecond,
        Self::StreamsPerConnection,
        Self::StreamOpensPerSecond,
        Self::SessionsPerWorker,
        Self::QuotaConnections,
        Self::ClientIdBytes,
        Self::SubscriptionsPerSession,
        Self::QueuedMessagesPerSession,
        Self::MemoryPerConnectionBytes,
        Self::PacketBytesMax,
        Self::ReceiveMaximum,
        Self::RetainedMessages,
        Self::RetainedBytes,
        Self::PasswordChecks,
        Self::ResumableSessions,
        Self::SessionStoreBytes,
        Self::Denied,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerPrefix => "connections_per_prefix",
            Self::MemoryLimit => "memory_limit",
            Self::HandshakesPerSecond => "handshakes_per_second",
            Self::StreamsPerConnection => "streams_per_connection",
            Self::StreamOpensPerSecond => "stream_opens_per_second",
            Self::SessionsPerWorker => "sessions_per_worker",
            Self::QuotaConnections => "quota_connections",
            Self::ClientIdBytes => "client_id_bytes",
            Self::SubscriptionsPerSession => "subscriptions_per_session",
            Self::QueuedMessagesPerSession => "queued_messages_per_session",
            Self::MemoryPerConnectionBytes => "memory_per_connection_bytes",
            Self::PacketBytesMax => "packet_bytes_max",
            Self::ReceiveMaximum => "receive_maximum",
            Self::RetainedMessages => "retained_messages",
            Self::RetainedBytes => "retained_bytes",
            Self::PasswordChecks => "password_checks",
            Self::ResumableSessions => "resumable_sessions",
            Self::SessionStoreBytes => "session_bytes_max",
            Self::Denied => "denied",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// What [`Admission`] enforces. 0 = off, for each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Network connections in all.
    pub connections: u32,
    /// Network connections per source prefix.
    pub connections_per_prefix: u32,
    /// Connections begun per second; a second's worth may come at once.
    pub handshakes_per_second: u32,
}

/// Says who may connect. One for all workers; asked once per connection, never per packet.
///
/// The counts per prefix are exact, and bounded by the connections that are open: each of those
/// holds at most one entry of about 40 bytes (worst case, all from different prefixes:
/// 40 MB for 1,000,000 connections). With `connections_per_prefix` off nothing is stored.
pub struct Admission {
    limits: AdmissionLimits,
    connections: AtomicU64,
    /// Of these, connections that are open only to be told that memory is short.
    to_refuse: AtomicU32,
    overload: Arc<Overload>,
    prefixes: Box<[Mutex<HashMap<Prefix, u32>>]>,
    lists: Option<Arc<Lists>>,
    hasher: RandomState,
    start: Instant,
    /// When the bucket of handshakes will be full again, ns since `start` (a GCRA: one word of
    /// state, so that workers share it without a lock).
    bucket_full_at_ns: AtomicU64,
}

/// One admitted connection; dropping it gives its place back.
#[derive(Debug)]
#[must_use = "the connection counts only as long as its permit lives"]
pub struct Permit {
    admission: Arc<Admission>,
    /// `None` until it is known who is behind a proxy.
    prefix: Option<Prefix>,
    to_refuse: bool,
}

impl Admission {
    /// No connections yet; the budget of handshakes is full.
    pub fn new(limits: AdmissionLimits, now: Instant) -> Arc<Self> {
        Arc::new(Self::unlisted(limits, now))
    }

    /// The same, with lists of who may come in.
    pub fn with_lists(limits: AdmissionLimits, lists: Arc<Lists>, now: Instant) -> Arc<Self> {
        Arc::new(Self {
            lists: Some(lists),
            ..Self::unlisted(limits, now)
        })
    }

    fn unlisted(limits: AdmissionLimits, now: Instant) -> Self {
        Self {
            limits,
            connections: AtomicU64::new(0),
            to_refuse: AtomicU32::new(0),
            overload: Arc::default(),
            prefixes: (0..SHARDS).map(|_| Mutex::default()).collect(),
            lists: None,
            hasher: RandomState::new(),
            start: now,
            bucket_full_at_ns: AtomicU64::new(0),
        }
    }

    /// How short memory, CPU time and handshakes run.
    pub fn overload(&self) -> &Arc<Overload> {
        &self.overload
    }

    /// A source over an established connection has done what sources may be denied for.
    pub fn report(&self, address: IpAddr, offence: Offence) {
        let Some(lists) = &self.lists else { return };
        if lists.report(address, offence, unix_s()) {
            tracing::warn!(%address, ?offence, "a source is denied for a while: it did this too often");
        }
    }

    fn is_denied(&self, address: IpAddr) -> bool {
        let lists = self.lists.as_ref();
        lists.is_some_and(|lists| lists.find(address, unix_s()) == Some(Action::Deny))
    }

    /// The prefixes with the most connections, and how many these are; none when the limit per prefix is off.
    pub(crate) fn top_prefixes(&self, count: usize) -> Vec<(Prefix, u32)> {
        let mut top: Vec<(Prefix, u32)> = Vec::new();
        for shard in &self.prefixes {
            top.extend(lock(shard).iter().map(|(prefix, count)| (*prefix, *count)));
            top.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            top.truncate(count);
        }
        top
    }

    /// How many connections a prefix has; 0 when the limit per prefix is off.
    pub(crate) fn connections_of(&self, prefix: Prefix) -> u32 {
        self.shard(prefix).get(&prefix).copied().unwrap_or(0)
    }

    /// Asks for a place for a connection from `address`. The refusal names the limit; a refused
    /// connection uses nothing up.
    pub fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Result<Permit, Limit> {
        let mut permit = self.permit()?;
        permit.identify(address)?;
        match self.take_handshake(now) {
            true => Ok(permit),
            false => Err(Limit::HandshakesPerSecond),
        }
    }

    /// The same for a connection through a proxy, whose client is not known yet: the limit per
    /// prefix is left to [`Permit::identify`].
    pub fn admit_proxied(self: &Arc<Self>, now: Instant) -> Result<Permit, Limit> {
        let permit = self.permit()?;
        match self.take_handshake(now) {
            true => Ok(permit),
            false => Err(Limit::HandshakesPerSecond),
        }
    }

    /// A place for a connection that is to be told by MQTT that memory is short; there are few.
    pub fn admit_to_refuse(self: &Arc<Self>) -> Option<Permit> {
        let open = self.to_refuse.fetch_add(1, Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
        let permit = Permit {
            admission: Arc::clone(self),
            prefix: None,
            to_refuse: true,
        };
        (open < TO_REFUSE_MAX).then_some(permit)
    }

    /// When the next connection may be begun, if not now.
    pub fn next_handshake(&self, now: Instant) -> Option<Instant> {
        let rate = u64::from(self.limits.handshakes_per_second);
        if rate == 0 {
            return None;
        }
        let now_ns = ns(now.saturating_duration_since(self.start));
        let cost_ns = (SECOND_NS / rate).max(1);
        let full_at = self.bucket_full_at_ns.load(Ordering::Relaxed).max(now_ns);
        let wait_ns = (full_at + cost_ns - now_ns).saturating_sub(SECOND_NS.max(cost_ns));
        (wait_ns > 0).then(|| now + Duration::from_nanos(wait_ns))
    }

    /// Connections that hold a permit.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Prefixes that have connections; 0 when the limit per prefix is off.
    pub fn prefixes(&self) -> usize {
        self.prefixes.iter().map(|shard| lock(shard).len()).sum()
    }

    /// A place among all connections; its Drop gives back what is taken with it.
    fn permit(self: &Arc<Self>) -> Result<Permit, Limit> {
        if self.overload.refuses_clients() {
            return Err(Limit::MemoryLimit);
        }
        let open = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        if self.limits.connections != 0 && open > u64::from(self.limits.connections) {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(Limit::Connections);
        }
        Ok(Permit {
            admission: Arc::clone(self),
            prefix: None,
            to_refuse: false,
        })
    }

    fn enter(&self, prefix: Prefix) -> bool {
        if self.limits.connections_per_prefix == 0 {
            return true;
        }
        let mut shard = self.shard(prefix);
        let count = shard.get(&prefix).copied().unwrap_or(0);
        if count >= self.limits.connections_per_prefix {
            return false;
        }
        shard.insert(prefix, count + 1);
        true
    }

    fn leave(&self, prefix: Option<Prefix>) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        let Some(prefix) = prefix else { return };
        if self.limits.connections_per_prefix == 0 {
            return;
        }
        let mut shard = self.shard(prefix);
        if let Some(count) = shard.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&prefix);
                // An attack from many prefixes must not leave its memory behind.
                if shard.capacity() > 64 && shard.len() < shard.capacity() / 8 {
                    shard.shrink_to_fit();
                }
            }
        }
    }

    fn shard(&self, prefix: Prefix) -> MutexGuard<'_, HashMap<Prefix, u32>> {
        let hash = self.hasher.hash_one(prefix) as usize;
        lock(&self.prefixes[hash % SHARDS])
    }

    fn take_handshake(&self, now: Instant) -> bool {
        let rate = u64::from(self.limits.handshakes_per_second);
        if rate == 0 {
            return true;
        }
        let now_ns = ns(now.saturating_duration_since(self.start));
        let cost_ns = (SECOND_NS / rate).max(1);
        self.bucket_full_at_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let next = full_at.max(now_ns) + cost_ns;
                (next - now_ns <= SECOND_NS.max(cost_ns)).then_some(next)
            })
            .is_ok()
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("limits", &self.limits)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Permit {
    /// Says from where the connection really comes: it counts for that prefix from now on. The
    /// refusal names the limit.
    pub fn identify(&mut self, address: IpAddr) -> Result<(), Limit> {
        if self.prefix.is_some() {
            return Ok(());
        }
        if self.admission.is_denied(address) {
            return Err(Limit::Denied);
        }
        let prefix = Prefix::of(address);
        if !self.admission.enter(prefix) {
            return Err(Limit::ConnectionsPerPrefix);
        }
        self.prefix = Some(prefix);
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.leave(self.prefix);
        if self.to_refuse {
            self.admission.to_refuse.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Connections over TCP that are open only to be told that memory is short, at most; about 1 kB each, for at most
/// `mqtt.connect_timeout_s`.
const TO_REFUSE_MAX: u32 = 1_024;

const SHARDS: usize = 64;
const SECOND_NS: u64 = 1_000_000_000;

fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// Counts stay right when a worker panics elsewhere: nothing panics while a shard is locked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
