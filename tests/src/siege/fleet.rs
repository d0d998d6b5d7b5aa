//! Devices that behave: sessions that live on, and new ones that come all the time.

use super::{SERVER, Siege};
use crate::quic_client::{Client, Error, endpoint};
use headgate_codec::{Packet, QoS};
use std::{
    net::{SocketAddr, UdpSocket},
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::time::{sleep, sleep_until, timeout};

/// UDP sockets of the live sessions.
const SOCKETS: usize = 8;
/// A live session is asked so often, one after the other.
const PACE: Duration = Duration::from_millis(2);
/// Between two new connections.
const PAUSE: Duration = Duration::from_millis(100);
/// An answer that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the fleet has seen for some time.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// How long messages of live sessions took to come back, shortest first. Those that were due while another was under way count from when they
    /// were due.
    pub round_trips: Vec<Duration>,
    /// Messages that didn't come back.
    pub lost: usize,
    /// New connections that were made, and how long the slowest took.
    pub connected: usize,
    /// See [`Phase::connected`].
    pub slowest: Duration,
    /// New connections that weren't made.
    pub refused: usize,
}

impl Phase {
    /// The round trip that 99 of 100 don't exceed.
    #[must_use]
    pub fn p99(&self) -> Duration {
        let at = self.round_trips.len() * 99 / 100;
        self.round_trips.get(at).copied().unwrap_or(Duration::MAX)
    }
}

struct Order {
    length: Duration,
    patience: Duration,
    answer: mpsc::Sender<Phase>,
}

/// A thread with all of them.
pub struct Fleet {
    orders: Option<tokio::sync::mpsc::UnboundedSender<Order>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Fleet {
    /// Connects `live` sessions, each of which gets a message of its own back.
    ///
    /// # Panics
    /// When they can't be connected.
    #[must_use]
    pub fn connect(siege: &Siege, live: usize) -> Self {
        let (orders, taken) = tokio::sync::mpsc::unbounded_channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = siege.clients.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let result = runtime.block_on(serve(live, taken, ready));
            result.map_err(|error| error.to_string())
        });
        let mut fleet = Self {
            orders: Some(orders),
            thread: Some(thread),
        };
        if is_ready.recv().is_err() {
            fleet.end();
            panic!("the fleet ended before it began");
        }
        fleet
    }

    /// Lets live sessions exchange messages and new ones connect for so long. What takes longer than `patience` is
    /// lost.
    ///
    /// # Panics
    /// When a live session has ended.
    pub fn phase(&mut self, length: Duration, patience: Duration) -> Phase {
        let (answer, answered) = mpsc::channel();
        let order = Order {
            length,
            patience: patience.min(PATIENCE),
            answer,
        };
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        assert!(sent.is_some_and(|sent| sent.is_ok()), "the fleet has ended");
        match answered.recv() {
            Ok(mut phase) => {
                phase.round_trips.sort();
                phase
            }
            Err(_) => {
                self.end();
                panic!("the fleet has ended");
            }
        }
    }

    /// Ends all sessions.
    ///
    /// # Panics
    /// When one of them had ended before.
    pub fn end(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let result = thread.join().expect("no panic");
            result.unwrap_or_else(|error| panic!("the fleet: {error}"));
        }
    }
}

async fn serve(
    live: usize,
    mut orders: tokio::sync::mpsc::UnboundedReceiver<Order>,
    ready: mpsc::Sender<()>,
) -> Result<(), Error> {
    let server: SocketAddr = SERVER.parse()?;
    let mut endpoints = Vec::new();
    for _ in 0..SOCKETS {
        endpoints.push(endpoint(UdpSocket::bind(("10.77.0.2", 0))?)?);
    }
    let mut clients = Vec::with_capacity(live);
    for index in 0..live {
        let endpoint = &endpoints[index % SOCKETS];
        // Until all are connected, the first ones say nothing.
        let mut client = Client::connect_for(endpoint, server, &format!("live{index}"), 0).await?;
        let topic = format!("own/{index}");
        client.subscribe(&topic, QoS::AtMostOnce).await?;
        clients.push(client);
    }
    ready.send(())?;
    let mut asked = 0;
    while let Some(order) = orders.recv().await {
        let until = Instant::now() + order.length;
        let (mut phase, newcomers) = tokio::join!(
            messages(&mut clients, &mut asked, until, order.patience),
            newcomers(server, until, order.patience)
        );
        (phase.connected, phase.refused, phase.slowest) = newcomers?;
        if let Some(lost) = clients
            .iter()
            .find_map(|client| client.connection.close_reason())
        {
            return Err(format!("a live session has ended: {lost}").into());
        }
        order.answer.send(phase)?;
    }
    Ok(())
}

/// Each live session in turn sends itself a message.
async fn messages(
    clients: &mut [Client],
    asked: &mut usize,
    until: Instant,
    patience: Duration,
) -> Phase {
    let mut phase = Phase::default();
    let mut due = Instant::now();
    // On a slow machine fewer are asked; the phase takes no longer.
    while due < until && Instant::now() < until {
        let mut begun = due;
        if due > Instant::now() {
            sleep_until(due.into()).await;
            // A timer that is late is not the broker's doing.
            begun = Instant::now();
        }
        let index = *asked % clients.len();
        match timeout(patience, message(&mut clients[index], index, *asked)).await {
            Ok(Ok(())) => phase.round_trips.push(begun.elapsed()),
            _ => phase.lost += 1,
        }
        *asked += 1;
        due += PACE;
    }
    phase
}

async fn message(client: &mut Client, index: usize, number: usize) -> Result<(), Error> {
    let number = number.to_be_bytes();
    let topic = format!("own/{index}");
    client.publish(&topic, QoS::AtMostOnce, &number).await?;
    loop {
        match client.receive().await? {
            // One that was given up may still come.
            Packet::Publish(publish) if publish.payload != number[..] => {}
            Packet::Publish(_) => return Ok(()),
            other => return Err(format!("unexpected {other:?}").into()),
        }
    }
}

/// New connections, one after the other: how many were made and how many not, and how long the slowest took.
async fn newcomers(
    server: SocketAddr,
    until: Instant,
    patience: Duration,
) -> Result<(usize, usize, Duration), Error> {
    let (mut connected, mut refused, mut slowest) = (0, 0, Duration::ZERO);
    while Instant::now() < until {
        let begun = Instant::now();
        // A socket of its own: no token of an earlier connection.
        let endpoint = endpoint(UdpSocket::bind(("10.77.0.3", 0))?)?;
        let name = format!("new{connected}");
        match timeout(patience, Client::connect(&endpoint, server, &name)).await {
            Ok(Ok(_client)) => {
                connected += 1;
                slowest = slowest.max(begun.elapsed());
            }
            _ => refused += 1,
        }
        sleep(PAUSE).await;
    }
    Ok((connected, refused, slowest))
}
