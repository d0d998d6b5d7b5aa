//! Counters that the workers keep and the administration reads.
//!
//! A worker adds to its own [`WorkerMetrics`] with relaxed atomics on cache lines that nobody else
//! writes; whoever asks for `/metrics` reads them all. One table (`worker_metrics!`) makes the
//! fields, their docs and the text for Prometheus.

mod labels;
mod render;

pub use labels::{
    DatagramDrop, Label, MessageDrop, Qos, QuotaRate, Refusal, Resource, StoreRefusal, Transport,
};

use render::{render_kernel, render_lists, render_overload, render_process, render_retained};
use std::{
    fmt,
    fmt::Write as _,
    marker::PhantomData,
    ops::Index,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use crate::{
    auth::Method,
    limits::Limit,
    lists::ListCounts,
    overload::{Overload, OverloadStatus},
    store::metrics::StoreMetrics,
};

/// A number that the worker adds to (a counter) or sets (a gauge).
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Subtracts (gauges only).
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// Subtracts one (gauges only).
    pub fn dec(&self) {
        self.sub(1);
    }

    /// Publishes a snapshot that is kept elsewhere, such as the core's plain counters. A counter's
    /// snapshots may only grow.
    pub fn store(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One [`Number`] per value of a label.
pub struct PerLabel<L> {
    numbers: Box<[Number]>,
    label: PhantomData<L>,
}

impl<L: Label> PerLabel<L> {
    /// The sum over all values of the label.
    pub fn sum(&self) -> u64 {
        self.numbers.iter().map(Number::get).sum()
    }
}

impl<L: Label> Default for PerLabel<L> {
    fn default() -> Self {
        Self {
            numbers: L::ALL.iter().map(|_| Number::default()).collect(),
            label: PhantomData,
        }
    }
}

impl<L: Label> Index<L> for PerLabel<L> {
    type Output = Number;

    fn index(&self, label: L) -> &Number {
        &self.numbers[label.index()]
    }
}

impl<L: Label> fmt::Debug for PerLabel<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(L::ALL.iter().map(|l| (l.text(), self[*l].get())))
            .finish()
    }
}

/// Whether a value may only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

/// Takes the label's name and text, if there is one, and the value.
type Visit<'a> = &'a mut dyn FnMut(Option<(&str, &str)>, u64);

/// A field of [`WorkerMetrics`]: one number or one per label.
trait Series {
    fn visit(&self, visit: Visit<'_>);
}

impl Series for Number {
    fn visit(&self, visit: Visit<'_>) {
        visit(None, self.get());
    }
}

impl<L: Label> Series for PerLabel<L> {
    fn visit(&self, visit: Visit<'_>) {
        for label in L::ALL {
            visit(Some((L::NAME, label.text())), self[*label].get());
        }
    }
}

/// How a family of series is written.
struct Family {
    kind: Kind,
    name: &'static str,
    help: &'static str,
    series: fn(&WorkerMetrics) -> &dyn Series,
}

/// Makes [`WorkerMetrics`] and the table of its families from one list.
macro_rules! worker_metrics {
    ($($(#[doc = $help:literal])+ $kind:ident $field:ident: $type:ty = $name:literal,)*) => {
        /// What one worker counts. Aligned, so that two workers never write to one cache line
        /// (two lines: the prefetcher fetches pairs).
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct WorkerMetrics {
            $($(#[doc = $help])+ pub $field: $type,)*
        }

        const FAMILIES: &[Family] = &[
            $(Family { kind: Kind::$kind, name: $name, help: concat!($($help),+), series: |m| &m.$field },)*
        ];
    };
}

worker_metrics! {
    /// Open network connections.
    Gauge connections: PerLabel<Transport> = "headgate_connections",
    /// Network connections that were accepted (QUIC: whose handshake completed).
    Counter connections_opened: PerLabel<Transport> = "headgate_connections_opened_total",
    /// Network connections that have ended.
    Counter connections_closed: PerLabel<Transport> = "headgate_connections_closed_total",
    /// Handshakes begun.
    Counter handshakes: PerLabel<Transport> = "headgate_handshakes_total",
    /// QUIC connections whose first packets came as 0-RTT data (RFC 9001 §4.6).
    Counter early_connections: Number = "headgate_early_connections_total",
    /// MQTT packets in 0-RTT data that had to wait for the end of the handshake, because a replay of them could do harm.
    Counter early_packets_held: Number = "headgate_early_packets_held_total",
    /// Handshakes that failed or were given up.
    Counter handshakes_failed: PerLabel<Transport> = "headgate_handshakes_failed_total",
    /// QUIC packets of new connections that had to wait until there was time for them, or the rate allowed them.
    Counter initials_delayed: Number = "headgate_initials_delayed_total",
    /// QUIC packets of new connections that wait.
    Gauge initials_waiting: Number = "headgate_initials_waiting",
    /// How short this worker's time is: 1 = new connections wait, 2 = QoS 0 is dropped where it would have to wait, 3 = slow
    /// consumers are closed.
    Gauge cpu_level: Number = "headgate_worker_overload_level",
    /// Connections that were closed because memory or CPU time was short and much waited for their clients.
    Counter slow_consumers_closed: Number = "headgate_slow_consumers_closed_total",
    /// Errors of accept(2), such as running out of file descriptors.
    Counter accept_errors: Number = "headgate_accept_errors_total",
    /// What a limit refused, by the limit's key in the configuration.
    Counter refused: PerLabel<Limit> = "headgate_refused_total",
    /// What was refused because the store has too little room or doesn't work.
    Counter store_refused: PerLabel<StoreRefusal> = "headgate_store_refused_total",
    /// CONNECT packets that were refused, by the reason that CONNACK gives.
    Counter connects_refused: PerLabel<Refusal> = "headgate_connects_refused_total",
    /// Authentications that failed, by what was to tell who the client is. (Passwords that could not be checked
    /// because too many wait are in `headgate_refused_total`.)
    Counter authentications_failed: PerLabel<Method> = "headgate_authentications_failed_total",
    /// PUBLISH packets received from clients.
    Counter messages_received: PerLabel<Qos> = "headgate_messages_received_total",
    /// PUBLISH packets sent to clients, retransmissions included.
    Counter messages_sent: PerLabel<Qos> = "headgate_messages_sent_total",
    /// Deliveries that did not reach their subscriber.
    Counter messages_dropped: PerLabel<MessageDrop> = "headgate_messages_dropped_total",
    /// MQTT control packets received.
    Counter packets_received: Number = "headgate_packets_received_total",
    /// MQTT control packets sent.
    Counter packets_sent: Number = "headgate_packets_sent_total",
    /// CONNECT packets that were accepted.
    Counter connects_accepted: Number = "headgate_connects_accepted_total",
    /// Byte sequences that were not MQTT.
    Counter packets_malformed: Number = "headgate_packets_malformed_total",
    /// Bytes of MQTT received.
    Counter bytes_received: PerLabel<Transport> = "headgate_received_bytes_total",
    /// Bytes of MQTT sent.
    Counter bytes_sent: PerLabel<Transport> = "headgate_sent_bytes_total",
    /// Data streams that QUIC clients have opened beside their control stream.
    Counter data_streams_opened: Number = "headgate_data_streams_opened_total",
    /// Data streams that were reset because of a packet that has no place there.
    Counter data_streams_refused: Number = "headgate_data_streams_refused_total",
    /// MQTT control packets received on data streams.
    Counter data_packets_received: Number = "headgate_data_packets_received_total",
    /// PUBLISH packets received in datagrams (RFC 9221).
    Counter publish_datagrams_received: Number = "headgate_publish_datagrams_received_total",
    /// PUBLISH packets sent in datagrams.
    Counter publish_datagrams_sent: Number = "headgate_publish_datagrams_sent_total",
    /// PUBLISH packets that were to leave in a datagram and left on a stream, because they did not fit or the client takes
    /// none.
    Counter datagrams_too_large: Number = "headgate_publish_datagrams_too_large_total",
    /// UDP datagrams received from the socket.
    Counter datagrams_received: Number = "headgate_datagrams_received_total",
    /// UDP datagrams sent.
    Counter datagrams_sent: Number = "headgate_datagrams_sent_total",
    /// UDP datagrams that arrived at this worker's socket but belong to another worker.
    Counter datagrams_wrong_worker: Number = "headgate_datagrams_wrong_worker_total",
    /// UDP datagrams that another worker handed over to this one, their owner.
    Counter datagrams_handed_over: Number = "headgate_datagrams_handed_over_total",
    /// UDP datagrams sent without a connection: Version Negotiation, Retry, stateless reset and
    /// refusals (RFC 9000 §5.2.2, §6, §8.1.2, §10.3).
    Counter stateless_responses: Number = "headgate_stateless_responses_total",
    /// Retry packets sent by user space (those of the kernel are answers of XDP).
    Counter retries: Number = "headgate_retries_total",
    /// Connections that were refused because they began with a connection ID of ours and no token.
    Counter initials_to_own_cids: Number = "headgate_initials_to_own_cids_total",
    /// QUIC packets of connections that didn't decrypt.
    Counter packets_forged: Number = "headgate_packets_forged_total",
    /// QUIC datagrams with a connection ID of ours whose connection is gone.
    Counter packets_orphaned: Number = "headgate_packets_orphaned_total",
    /// Times that connection IDs were given to the kernel to be policed.
    Counter penalties: Number = "headgate_penalties_total",
    /// UDP datagrams dropped in user space.
    Counter datagrams_dropped: PerLabel<DatagramDrop> = "headgate_datagrams_dropped_total",
    /// PUBLISH packets that were sent again after a reconnect.
    Counter messages_sent_again: Number = "headgate_messages_sent_again_total",
    /// Connections that lost their session to another connection of the same client.
    Counter sessions_taken_over: Number = "headgate_sessions_taken_over_total",
    /// Connections closed because the client was silent for more than 1.5 times its Keep Alive.
    Counter keep_alive_timeouts: Number = "headgate_keep_alive_timeouts_total",
    /// Connections closed because CONNECT did not come in time.
    Counter connect_timeouts: Number = "headgate_connect_timeouts_total",
    /// Messages of Shared Subscriptions that a member left to another one.
    Counter messages_handed_on: Number = "headgate_messages_handed_on_total",
    /// Messages of clients to topics that only the broker writes ($SYS); they are not delivered.
    Counter messages_denied: Number = "headgate_messages_denied_total",
    /// PUBLISH packets of clients that were above a rate of their quota class.
    Counter quota_exceeded: PerLabel<QuotaRate> = "headgate_quota_exceeded_total",
    /// Times that reading from a client was stopped for a while because of its quota class's rates.
    Counter quota_slowed: Number = "headgate_quota_slowed_total",
    /// Connections that the kernel was told to police, because their clients went on above their quota.
    Counter quota_penalties: Number = "headgate_quota_penalties_total",
    /// Connections closed because their clients were too slow for their quota class (when_full = "disconnect").
    Counter slow_clients_disconnected: Number = "headgate_slow_clients_disconnected_total",
    /// Times that reading from a publisher was stopped because a subscriber's queue was full (when_full = "block").
    Counter publishers_held: Number = "headgate_publishers_held_total",
    /// Of those: the time was over before the queue had room (limits.full_queue_max_ms).
    Counter publishers_held_too_long: Number = "headgate_publishers_held_too_long_total",
    /// Sessions that ended because their Session Expiry Interval had passed.
    Counter sessions_expired: Number = "headgate_sessions_expired_total",
    /// Clients that are connected: CONNECT was accepted.
    Gauge clients: Number = "headgate_clients",
    /// Sessions, connected or not.
    Gauge sessions: Number = "headgate_sessions",
    /// Subscriptions of these sessions.
    Gauge subscriptions: Number = "headgate_subscriptions",
    /// Messages to other workers that found the ring full and had to wait.
    Counter mesh_full: Number = "headgate_mesh_full_total",
    /// Messages sent to other workers.
    Counter mesh_sent: Number = "headgate_mesh_sent_total",
    /// Messages received from other workers.
    Counter mesh_received: Number = "headgate_mesh_received_total",
    /// Times that this worker panicked and was started again.
    Counter restarts: Number = "headgate_worker_restarts_total",
    /// Turns of the worker's loop.
    Counter loop_turns: Number = "headgate_loop_turns_total",
}

/// Counters of the kernel part, read when they are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelCounters {
    /// Packets that XDP dropped, by reason; all reasons, also those at 0.
    pub drops: Vec<(&'static str, u64)>,
    /// Packets that XDP passed or steered, by reason; all reasons, also those at 0.
    pub passes: Vec<(&'static str, u64)>,
    /// Packets that XDP answered, by answer.
    pub answers: Vec<(&'static str, u64)>,
    /// Datagrams at the sk_reuseport program, by what it did.
    pub sockets: Vec<(&'static str, u64)>,
    /// Packets that XDP sent to another CPU.
    pub redirected: u64,
}

/// Retained messages, and the memory that they take in bytes.
type RetainedSource = Box<dyn Fn() -> (u64, u64) + Send + Sync>;

type ListsSource = Box<dyn Fn() -> ListCounts + Send + Sync>;

type KernelSource = Box<dyn Fn() -> Option<KernelCounters> + Send + Sync>;

/// All metrics of the process.
pub struct Metrics {
    workers: Box<[OnceLock<Arc<WorkerMetrics>>]>,
    kernel: OnceLock<KernelSource>,
    retained: OnceLock<RetainedSource>,
    store: OnceLock<Arc<StoreMetrics>>,
    lists: OnceLock<ListsSource>,
    overload: OnceLock<Arc<Overload>>,
    started: SystemTime,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            workers: (0..=u8::MAX).map(|_| OnceLock::new()).collect(),
            kernel: OnceLock::new(),
            retained: OnceLock::new(),
            store: OnceLock::new(),
            lists: OnceLock::new(),
            overload: OnceLock::new(),
            started: SystemTime::now(),
        })
    }

    /// The counters of the worker in this slot; they survive the worker's restart. A worker keeps
    /// a clone of the Arc.
    pub fn worker(&self, slot: u8) -> &Arc<WorkerMetrics> {
        self.workers[usize::from(slot)].get_or_init(Arc::default)
    }

    /// The workers that have counters, by slot.
    pub fn workers(&self) -> impl Iterator<Item = (u8, &WorkerMetrics)> {
        (0..=u8::MAX)
            .zip(&self.workers)
            .filter_map(|(slot, worker)| Some((slot, worker.get()?.as_ref())))
    }

    /// Sum over all workers: `metrics.sum(|m| m.connections.sum())`.
    pub fn sum(&self, read: impl Fn(&WorkerMetrics) -> u64) -> u64 {
        self.workers().map(|(_, worker)| read(worker)).sum()
    }

    /// Registers where the kernel's counters come from. Only the first registration counts;
    /// without one (no kernel part) the families are absent.
    pub fn register_kernel(
        &self,
        source: impl Fn() -> Option<KernelCounters> + Send + Sync + 'static,
    ) {
        let _ = self.kernel.set(Box::new(source));
    }

    /// Registers where the numbers of retained messages come from: how many, and their bytes. Only the
    /// first registration counts.
    pub fn register_retained(&self, source: impl Fn() -> (u64, u64) + Send + Sync + 'static) {
        let _ = self.retained.set(Box::new(source));
    }

    /// Registers the store's numbers; without one the families are absent. Only the first registration counts.
    pub fn register_store(&self, numbers: Arc<StoreMetrics>) {
        let _ = self.store.set(numbers);
    }

    /// Registers where the numbers of the lists come from. Only the first registration counts.
    pub fn register_lists(&self, source: impl Fn() -> ListCounts + Send + Sync + 'static) {
        let _ = self.lists.set(Box::new(source));
    }

    /// Registers where it is known how short the resources run. Only the first registration counts.
    pub fn register_overload(&self, overload: Arc<Overload>) {
        let _ = self.overload.set(overload);
    }

    /// The kernel's counters now; `None` without the kernel part.
    pub fn kernel(&self) -> Option<KernelCounters> {
        self.kernel.get().and_then(|source| source())
    }

    /// Everything in Prometheus' text format 0.0.4.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        let kernel = self.kernel();
        render_process(&mut out, self.started, kernel.is_some());
        if let Some(source) = self.retained.get() {
            render_retained(&mut out, source());
        }
        if let Some(store) = self.store.get() {
            for (name, kind, help, value) in store.families() {
                let _ = writeln!(
                    out,
                    "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
                );
            }
        }
        if let Some(source) = self.lists.get() {
            render_lists(&mut out, &source());
        }
        if let Some(overload) = self.overload.get() {
            render_overload(&mut out, &OverloadStatus::of(overload, self));
        }
        for family in FAMILIES {
            head(&mut out, family.kind, family.name, family.help);
            for (slot, worker) in self.workers() {
                (family.series)(worker).visit(&mut |label, value| {
                    let _ = match label {
                        Some((name, text)) => {
                            writeln!(
                                out,
                                "{}{{worker=\"{slot}\",{name}=\"{text}\"}} {value}",
                                family.name
                            )
                        }
                        None => writeln!(out, "{}{{worker=\"{slot}\"}} {value}", family.name),
                    };
                });
            }
        }
        if let Some(kernel) = kernel {
            render_kernel(&mut out, &kernel);
        }
        out
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.workers()).finish()
    }
}

fn head(out: &mut String, kind: Kind, name: &str, help: &str) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    let help = help.trim().replace('\\', "\\\\");
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Resident set size; `None` where /proc is not mounted.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests;
