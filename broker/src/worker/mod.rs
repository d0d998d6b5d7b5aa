//! The per-core worker: one thread, one loop, no task or lock for any connection.
//!
//! A turn of the loop serves its sources in a fixed order of priority, each with a budget, so
//! that none starves another: mail of other workers, UDP, TCP, timers; then every connection
//! that something happened to; then one flush of everything that leaves.

pub mod account;
pub mod conns;
mod data;
mod open;
mod police;
pub(crate) mod prefetch;
mod publish;
mod serve;
mod strain;
mod wait;

use crate::{
    auth::desk::Desk,
    cluster::Directory,
    driver::Driver,
    limits::Admission,
    lists::Offence,
    mesh::{ForeignDatagram, Mesh, Post},
    metrics::{DatagramDrop, WorkerMetrics},
    net::{
        quic::{Arrival, QuicSide, QuicSideSettings, guard::Guard},
        tcp::{Bound, TcpSettings, TcpSide},
        timer::Wheel,
        udp::{RecvBatch, UdpSocket},
    },
    store::Store,
};
use account::AccountOrder;
use bytes::Bytes;
use conns::{Conns, Link};
use headgate_common::route::Router;
use headgate_core::{ConnId, Core, DataStream, Input, Time, WorkerSlot};
use mio::{Events, Interest, Poll, Token, unix::SourceFd};
use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

/// The time of a turn: read once, used by all.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Now.
    pub now: Instant,
    /// When the server started: the core's zero.
    pub start: Instant,
}

impl Clock {
    /// Reads the clock.
    pub fn read(start: Instant) -> Self {
        Self {
            now: Instant::now(),
            start,
        }
    }

    /// Now, as the core has it.
    pub fn time(self) -> Time {
        Time(self.now.saturating_duration_since(self.start).as_millis() as u64)
    }

    /// A deadline in milliseconds, rounded up so that it has passed when it fires.
    fn deadline_ms(self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start)
            .as_nanos()
            .div_ceil(1_000_000) as u64
    }
}

/// What the supervisor tells a worker.
#[derive(Debug, Default)]
pub struct Control {
    phase: AtomicU8,
    panic: AtomicBool,
    any_order: AtomicBool,
    orders: Mutex<Vec<Order>>,
}

/// What a worker is told or asked.
#[derive(Debug)]
enum Order {
    Core(Input),
    Account(AccountOrder),
}

/// Orders that wait for a worker: an interval's worth of `$SYS` topics is about 50.
const ORDERS_MAX: usize = 256;

const RUNNING: u8 = 0;
const DRAINING: u8 = 1;
const STOPPING: u8 = 2;

impl Control {
    /// Say goodbye to every client and end when all are gone.
    pub fn drain(&self) {
        self.phase.fetch_max(DRAINING, Ordering::Relaxed);
    }

    /// End now.
    pub fn stop(&self) {
        self.phase.store(STOPPING, Ordering::Relaxed);
    }

    /// Panic in the next turn. For the test that shows that only this worker restarts.
    pub fn panic(&self) {
        self.panic.store(true, Ordering::Relaxed);
    }

    /// Something for the core that comes from no connection and no worker. `false`: too many wait, the
    /// worker is stuck. What must not get lost (that a worker is gone) is always taken.
    pub fn order(&self, input: Input) -> bool {
        self.push(Order::Core(input))
    }

    /// Asks what a session holds; answered through the order. `false`: too many wait, the worker is stuck.
    pub fn ask(&self, order: AccountOrder) -> bool {
        self.push(Order::Account(order))
    }

    fn push(&self, order: Order) -> bool {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let must = matches!(order, Order::Core(Input::WorkerGone { .. }));
        if orders.len() >= ORDERS_MAX && !must {
            return false;
        }
        orders.push(order);
        self.any_order.store(true, Ordering::Release);
        true
    }

    /// Whether the worker has been told to end.
    pub fn is_ending(&self) -> bool {
        self.phase.load(Ordering::Relaxed) != RUNNING
    }

    fn is_stopping(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == STOPPING
    }
}

/// All that a worker is made of.
pub struct Parts {
    /// Its index in the `workers` map.
    pub slot: WorkerSlot,
    /// The server's start.
    pub start: Instant,
    /// Sessions.
    pub core: Core,
    /// Where Persist outputs go.
    pub store: Box<dyn Store>,
    /// Who owns which session.
    pub directory: Arc<dyn Directory>,
    /// Who clients are.
    pub desk: Desk,
    /// Rings to the other workers.
    pub mesh: Arc<Mesh>,
    /// Limits that all workers share.
    pub admission: Arc<Admission>,
    /// This worker's counters.
    pub metrics: Arc<WorkerMetrics>,
    /// Which worker a datagram belongs to.
    pub router: Arc<Router>,
    /// QUIC.
    pub quic: Option<QuicOwn>,
    /// This worker's listeners over TCP.
    pub tcp: Vec<Bound>,
    /// What connections over TCP need to know.
    pub tcp_settings: TcpSettings,
    /// Time from accepting a connection until MQTT can flow: PROXY header, TLS or QUIC handshake,
    /// WebSocket upgrade.
    pub connect_timeout: Duration,
    /// Packets above this are refused, bytes.
    pub packet_bytes_max: u32,
    /// The supervisor's word.
    pub control: Arc<Control>,
}

/// What a worker needs for QUIC.
pub struct QuicOwn {
    /// quinn-proto's endpoint.
    pub endpoint: quinn_proto::Endpoint,
    /// What else QUIC's part of the worker has to know.
    pub settings: QuicSideSettings,
    /// This worker's socket.
    pub socket: Arc<UdpSocket>,
    /// What it receives into.
    pub recv: RecvBatch,
    /// Who may connect.
    pub guard: Guard,
}

const WAKER: Token = Token(0);
const UDP: Token = Token(1);
const FIRST_LISTENER: usize = 2;
/// Listeners over TCP: plain, TLS, WebSocket, WebSocket over TLS.
const LISTENERS_MAX: usize = 4;
const FIRST_CONN: usize = FIRST_LISTENER + LISTENERS_MAX;

fn listener_token(place: usize) -> Token {
    Token(FIRST_LISTENER + place)
}

fn conn_token(index: u32) -> Token {
    Token(index as usize + FIRST_CONN)
}

/// Messages taken from each ring in a turn.
const MAIL_PER_RING: usize = 1024;
/// Receive batches in a turn.
const UDP_BATCHES: usize = 4;
/// Rounds of serving within a turn.
const ROUNDS: usize = 8;
/// Longest sleep: counters are published at least this often.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// A worker.
pub struct Worker {
    slot: WorkerSlot,
    start: Instant,
    poll: Poll,
    events: Events,
    conns: Conns,
    driver: Driver,
    quic: Option<QuicSide>,
    recv: Option<(RecvBatch, Arc<UdpSocket>)>,
    udp_readable: bool,
    tcp: TcpSide,
    connect_timeout: Duration,
    timers: Wheel,
    mesh: Arc<Mesh>,
    admission: Arc<Admission>,
    metrics: Arc<WorkerMetrics>,
    router: Arc<Router>,
    packet_bytes_max: u32,
    control: Arc<Control>,
    draining: bool,
    round: u32,
    /// Connections served in this round.
    serving: Vec<u32>,
    /// Connections that used up their budget: served in the next turn.
    again: Vec<u32>,
    due: Vec<u32>,
    /// Bytes of data streams and datagrams that one connection has got rid of.
    flushed: Vec<(Option<DataStream>, u32)>,
    opened: Vec<ConnId>,
    published_at: Instant,
    published: publish::Published,
    strain: strain::Strain,
}

impl Worker {
    /// Puts a worker together on the thread that will run it.
    pub fn new(parts: Parts) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKER)?;
        parts.mesh.set_waker(parts.slot, waker);
        let (quic, recv) = match parts.quic {
            Some(own) => {
                let socket = own.socket;
                poll.registry().register(
                    &mut SourceFd(&socket.as_raw_fd()),
                    UDP,
                    Interest::READABLE,
                )?;
                (
                    Some(QuicSide::new(
                        own.endpoint,
                        own.settings,
                        Arc::clone(&socket),
                        own.guard,
                    )),
                    Some((own.recv, socket)),
                )
            }
            None => (None, None),
        };
        debug_assert!(parts.tcp.len() <= LISTENERS_MAX, "each kind has one");
        let registry = poll.registry();
        let tcp = TcpSide::new(parts.tcp, parts.tcp_settings, registry, listener_token)?;
        let metrics = Arc::clone(&parts.metrics);
        Ok(Self {
            slot: parts.slot,
            start: parts.start,
            poll,
            events: Events::with_capacity(1024),
            conns: Conns::default(),
            driver: Driver::new(
                parts.slot,
                parts.core,
                parts.store,
                parts.directory,
                parts.desk,
                Arc::clone(&parts.mesh),
                metrics,
            ),
            quic,
            recv,
            udp_readable: true,
            tcp,
            connect_timeout: parts.connect_timeout,
            timers: Wheel::new(0),
            mesh: parts.mesh,
            admission: parts.admission,
            metrics: parts.metrics,
            router: parts.router,
            packet_bytes_max: parts.packet_bytes_max,
            control: parts.control,
            draining: false,
            round: 0,
            serving: Vec::new(),
            again: Vec::new(),
            due: Vec::new(),
            flushed: Vec::new(),
            opened: Vec::new(),
            published_at: parts.start,
            published: publish::Published::default(),
            strain: strain::Strain::default(),
        })
    }

    /// Runs until the supervisor stops it, or until it is drained.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            let clock = Clock::read(self.start);
            self.turn(clock);
            self.strain.note(clock.now, Instant::now());
            if self.control.is_stopping() || (self.draining && self.conns.is_empty()) {
                self.publish(clock);
                return Ok(());
            }
            self.sleep()?;
        }
    }

    fn turn(&mut self, clock: Clock) {
        self.metrics.loop_turns.inc();
        self.obey(clock);
        self.feel_strain(clock);
        self.mail(clock);
        self.driver.authenticated(&mut self.conns, clock.time());
        self.driver.stored(&mut self.conns, clock.time());
        self.udp(clock);
        self.begin_handshakes(clock);
        self.accept(clock);
        self.timers(clock);
        for index in std::mem::take(&mut self.again) {
            self.conns.schedule(index);
        }
        for _ in 0..ROUNDS {
            if !self.conns.has_scheduled() {
                break;
            }
            self.serve_round(clock);
        }
        self.driver.drain_spools(&mut self.conns, clock.time());
        self.police(clock);
        for address in self.driver.take_failed() {
            self.admission
                .report(address, Offence::FailedAuthentication);
        }
        if let Some(quic) = &mut self.quic {
            quic.flush();
        }
        if clock.now.duration_since(self.published_at) >= SLEEP_MAX {
            self.publish(clock);
        }
    }

    /// What the supervisor says.
    fn obey(&mut self, clock: Clock) {
        if self.control.panic.swap(false, Ordering::Relaxed) {
            panic!("asked to panic");
        }
        if self.control.any_order.swap(false, Ordering::Acquire) {
            let orders = &self.control.orders;
            let orders =
                std::mem::take(&mut *orders.lock().unwrap_or_else(PoisonError::into_inner));
            for order in orders {
                match order {
                    Order::Core(input) => self.driver.input(&mut self.conns, input, clock.time()),
                    Order::Account(order) => self.account(order, clock),
                }
            }
        }
        if self.draining || self.control.phase.load(Ordering::Relaxed) == RUNNING {
            return;
        }
        self.draining = true;
        if let Some(quic) = &mut self.quic {
            quic.stop_accepting();
        }
        self.tcp.stop_accepting(self.poll.registry());
        self.driver
            .input(&mut self.conns, Input::Shutdown, clock.time());
        // Whoever has not come as far as CONNECT is closed too.
        let indices: Vec<u32> = self.conns.indices().collect();
        for index in indices {
            if let Some(conn) = self.conns.at(index) {
                conn.closing
                    .get_or_insert(headgate_codec::ReasonCode::SERVER_SHUTTING_DOWN);
            }
            self.conns.schedule(index);
        }
    }

    fn mail(&mut self, clock: Clock) {
        for from in (0..self.mesh.workers()).map(|from| WorkerSlot(from as u8)) {
            for _ in 0..MAIL_PER_RING {
                match self.mesh.receive(from, self.slot) {
                    Some(Post::Core(message)) => {
                        let input = Input::Mesh { from, message };
                        self.driver.input(&mut self.conns, input, clock.time());
                    }
                    Some(Post::Datagram(datagram)) => {
                        self.metrics.datagrams_handed_over.inc();
                        if let Some(quic) = &mut self.quic {
                            let route = self.router.route(&datagram.data);
                            let arrival = Arrival::from(&*datagram).routed(route);
                            let new = quic.arrived(
                                arrival,
                                &mut self.conns,
                                &self.admission,
                                &self.metrics,
                                clock,
                            );
                            self.opened.extend(new);
                            quic.deliver(&mut self.conns, clock);
                        }
                        self.accepted(clock);
                    }
                    None => break,
                }
            }
        }
    }

    /// Receives in batches, and serves the connections of each while they are in the CPU's cache.
    fn udp(&mut self, clock: Clock) {
        for _ in 0..UDP_BATCHES {
            if !self.udp_readable || !self.udp_batch(clock) {
                return;
            }
            self.serve_round(clock);
        }
    }

    /// Whether there may be more.
    fn udp_batch(&mut self, clock: Clock) -> bool {
        let (Some(quic), Some((recv, socket))) = (&mut self.quic, &mut self.recv) else {
            return false;
        };
        let (alone, full) = (self.mesh.workers() == 1, recv.messages_max());
        let received = recv.recv(socket, |datagram| {
            self.metrics.datagrams_received.inc();
            let route = self.router.route(datagram.data);
            let owner = match route.slot() {
                Some(slot) if !alone => WorkerSlot(slot),
                _ => self.slot,
            };
            if owner == self.slot {
                let arrival = Arrival::from(datagram).routed(route);
                let new = quic.arrived(
                    arrival,
                    &mut self.conns,
                    &self.admission,
                    &self.metrics,
                    clock,
                );
                self.opened.extend(new);
            } else {
                self.metrics.datagrams_wrong_worker.inc();
                let foreign = ForeignDatagram {
                    source: datagram.source,
                    destination: datagram.destination_ip,
                    ecn: datagram.ecn,
                    data: Bytes::copy_from_slice(datagram.data),
                };
                if self
                    .mesh
                    .send(self.slot, owner, Post::Datagram(Box::new(foreign)))
                    .is_err()
                {
                    // As good as lost in the network: QUIC repeats it.
                    self.metrics.datagrams_dropped[DatagramDrop::MeshFull].inc();
                }
            }
        });
        quic.deliver(&mut self.conns, clock);
        self.accepted(clock);
        match received {
            // A batch that isn't full has emptied the socket: what comes later is a new event of the poll.
            Ok(messages) => {
                self.udp_readable = messages == full;
                return messages > 0;
            }
            Err(error) => tracing::debug!(%error, "UDP receive failed"),
        }
        false
    }

    fn accept(&mut self, clock: Clock) {
        if self
            .tcp
            .accepts_at(clock.now)
            .is_none_or(|at| at > clock.now)
        {
            return;
        }
        let registry = (self.poll.registry(), conn_token as fn(u32) -> Token);
        let opened = &mut self.opened;
        self.tcp.accept(
            &mut self.conns,
            registry,
            &self.admission,
            &self.metrics,
            clock,
            opened,
        );
        self.accepted(clock);
    }

    fn timers(&mut self, clock: Clock) {
        let time = clock.time();
        self.timers.advance(time.0, &mut self.due);
        for index in std::mem::take(&mut self.due) {
            if let Some(conn) = self.conns.at(index) {
                if let Link::Quic(link) = &mut conn.link {
                    QuicSide::timeout(link, clock);
                }
                self.conns.schedule(index);
            }
        }
        if self.driver.next_timeout().is_some_and(|at| at <= time) {
            self.driver.input(&mut self.conns, Input::Timeout, time);
        }
    }
}
