//! A network of a test's own between one client and the broker: it records, delays, loses and reorders datagrams, and
//! gives the client another port or address in the middle of a connection, as a NAT does.

use std::{
    collections::BinaryHeap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the broker.
    Up,
    /// From the broker to the client.
    Down,
}

/// What the network does with datagrams.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// One way.
    pub delay: Duration,
    /// How many of 1,000 datagrams are lost, each way.
    pub lost_per_mille: u32,
    /// How many of 1,000 datagrams take 20 ms longer and so arrive behind those that follow.
    pub late_per_mille: u32,
    /// Nothing gets through this way.
    pub blocked: Option<Way>,
    /// The client's first flight alone gets through: once the broker has answered, the client's datagrams are lost.
    pub one_flight: bool,
}

/// A datagram under way; the one that arrives first is the greatest.
#[derive(PartialEq, Eq)]
struct Flight {
    arrives: Instant,
    number: u64,
    up: bool,
    data: Vec<u8>,
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.arrives, other.number).cmp(&(self.arrives, self.number))
    }
}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct State {
    conditions: Conditions,
    /// The socket that the broker sees.
    outer: Arc<UdpSocket>,
    recorded: Vec<(Way, Vec<u8>)>,
    answered: bool,
}

/// The network. It ends with the value.
pub struct Relay {
    address: SocketAddr,
    broker: SocketAddr,
    state: Arc<Mutex<State>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How long the thread sleeps at most: then it looks whether anything was changed.
const TURN_MS: u16 = 5;

/// How much longer a late datagram takes.
const LATE: Duration = Duration::from_millis(20);

impl Relay {
    /// A network in front of `broker`, for one client. What happens by chance follows from `seed`.
    ///
    /// # Panics
    /// Without sockets on the loopback.
    pub fn start(broker: SocketAddr, conditions: Conditions, seed: u64) -> Self {
        let inner = bind(Ipv4Addr::LOCALHOST.into()).expect("a socket for the client");
        let outer = bind(Ipv4Addr::LOCALHOST.into()).expect("a socket for the broker");
        let address = inner.local_addr().expect("a bound socket has an address");
        let state = Arc::new(Mutex::new(State {
            conditions,
            outer: Arc::new(outer),
            recorded: Vec::new(),
            answered: false,
        }));
        let end = Arc::new(AtomicBool::new(false));
        let (shared, ended) = (Arc::clone(&state), Arc::clone(&end));
        let thread = thread::spawn(move || {
            let mut network = Network {
                inner,
                broker,
                client: None,
                flights: BinaryHeap::new(),
                sent: 0,
                random: seed | 1,
            };
            while !ended.load(Ordering::Relaxed) {
                network.turn(&shared);
            }
        });
        Self {
            address,
            broker,
            state,
            end,
            thread: Some(thread),
        }
    }

    /// Where the client connects to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The broker's address behind it.
    pub fn broker(&self) -> SocketAddr {
        self.broker
    }

    /// Changes what the network does from now on.
    pub fn set(&self, conditions: Conditions) {
        let mut state = self.state();
        state.conditions = conditions;
        state.answered = false;
    }

    /// The client has another port from now on, on the loopback address `ip`.
    ///
    /// # Panics
    /// If `ip` is no address of the loopback.
    pub fn rebind(&self, ip: Ipv4Addr) {
        let outer = bind(ip.into()).expect("another socket for the broker");
        self.state().outer = Arc::new(outer);
    }

    /// What was sent one way so far, as it was sent.
    pub fn recorded(&self, way: Way) -> Vec<Vec<u8>> {
        let state = self.state();
        let of_way = state.recorded.iter().filter(|(w, _)| *w == way);
        of_way.map(|(_, data)| data.clone()).collect()
    }

    /// Forgets what was recorded.
    pub fn forget(&self) {
        self.state().recorded.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

struct Network {
    inner: UdpSocket,
    broker: SocketAddr,
    client: Option<SocketAddr>,
    flights: BinaryHeap<Flight>,
    sent: u64,
    random: u64,
}

impl Network {
    fn turn(&mut self, shared: &Mutex<State>) {
        let locked = || shared.lock().unwrap_or_else(PoisonError::into_inner);
        let outer = || Arc::clone(&locked().outer);
        self.wait(&outer());
        // It may be another one since.
        let outer = outer();
        let mut buffer = [0; 65_536];
        while let Ok((length, from)) = self.inner.recv_from(&mut buffer) {
            self.client = Some(from);
            self.take(Way::Up, &buffer[..length], &mut locked());
        }
        while let Ok((length, _)) = outer.recv_from(&mut buffer) {
            self.take(Way::Down, &buffer[..length], &mut locked());
        }
        let now = Instant::now();
        while self.flights.peek().is_some_and(|f| f.arrives <= now) {
            let Some(flight) = self.flights.pop() else {
                break;
            };
            // A full socket loses it, as a network may.
            let _sent = match (flight.up, self.client) {
                (true, _) => outer.send_to(&flight.data, self.broker),
                (false, Some(client)) => self.inner.send_to(&flight.data, client),
                (false, None) => Ok(0),
            };
        }
    }

    fn wait(&self, outer: &UdpSocket) {
        let due = self.flights.peek().map(|f| f.arrives);
        let left = due.map(|at| at.saturating_duration_since(Instant::now()).as_micros());
        let wait_ms = left.map_or(TURN_MS, |left| {
            left.div_ceil(1_000).min(TURN_MS.into()) as u16
        });
        let mut sockets = [&self.inner, outer].map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN));
        let _woken = poll(&mut sockets, PollTimeout::from(wait_ms));
    }

    fn take(&mut self, way: Way, data: &[u8], state: &mut State) {
        state.recorded.push((way, data.to_vec()));
        state.answered |= way == Way::Down;
        let conditions = &state.conditions;
        if conditions.one_flight && state.answered && way == Way::Up {
            return;
        }
        let [lost, late] = [0, 0].map(|_: u32| (self.next_random() % 1_000) as u32);
        if conditions.blocked == Some(way) || lost < conditions.lost_per_mille {
            return;
        }
        let mut arrives = Instant::now() + conditions.delay;
        if late < conditions.late_per_mille {
            arrives += LATE;
        }
        self.sent += 1;
        self.flights.push(Flight {
            arrives,
            number: self.sent,
            up: way == Way::Up,
            data: data.to_vec(),
        });
    }

    /// xorshift64.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 16
    }
}

fn bind(ip: IpAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((ip, 0))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
