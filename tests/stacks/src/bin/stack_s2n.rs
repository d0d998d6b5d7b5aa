//! The commands on AWS's s2n-quic, with rustls and AWS-LC: `stack_s2n ADDRESS:PORT CA.pem`.
//!
//! As a client it sends no 0-RTT packets and has no way to change its port; with rustls it takes no tickets either.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use headgate_stacks::{
    commands,
    stack::{End, PATIENCE, Stack, Target},
};
use s2n_quic::{
    Client, Connection,
    client::Connect,
    connection::{Error, Handle},
    provider::{
        datagram::default as datagram,
        event::{ConnectionInfo, ConnectionMeta, Subscriber, events},
        tls::rustls::Client as Tls,
    },
    stream::{ReceiveStream, SendStream},
};
use tokio::{runtime::Runtime, time::timeout};

/// What is waiting in datagrams.
const DATAGRAMS_MAX: usize = 100;

fn main() -> ExitCode {
    match commands::target().and_then(|target| S2n::new(target).map_err(|end| end.to_string())) {
        Ok(mut stack) => commands::run(&mut stack),
        Err(wrong) => {
            eprintln!("{wrong}");
            ExitCode::FAILURE
        }
    }
}

/// What the stack told of its connection.
#[derive(Default)]
struct Seen {
    key_updates: AtomicUsize,
    is_ecn_capable: AtomicBool,
}

struct Watch(Arc<Seen>);

impl Subscriber for Watch {
    type ConnectionContext = ();

    fn create_connection_context(&mut self, _: &ConnectionMeta, _: &ConnectionInfo) {
        self.0.key_updates.store(0, Ordering::Relaxed);
        self.0.is_ecn_capable.store(false, Ordering::Relaxed);
    }

    fn on_key_update(&mut self, (): &mut (), _: &ConnectionMeta, event: &events::KeyUpdate) {
        // The first keys are announced in the same way.
        if matches!(event.key_type, events::KeyType::OneRtt { generation, .. } if generation > 0) {
            self.0.key_updates.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn on_ecn_state_changed(
        &mut self,
        (): &mut (),
        _: &ConnectionMeta,
        event: &events::EcnStateChanged<'_>,
    ) {
        let is_capable = matches!(event.state, events::EcnState::Capable { .. });
        self.0.is_ecn_capable.store(is_capable, Ordering::Relaxed);
    }
}

/// A connection, and its streams.
struct Open {
    handle: Handle,
    streams: HashMap<u64, (SendStream, ReceiveStream)>,
}

struct S2n {
    runtime: Runtime,
    target: Target,
    seen: Arc<Seen>,
    /// An endpoint for each connection, so that each has a port of its own.
    client: Option<Client>,
    connection: Option<Open>,
}

fn end_of(error: Error) -> End {
    match error {
        Error::Transport { code, .. } => End::Transport(code.as_u64()),
        Error::Application { error, .. } => End::Application(error.into()),
        Error::Closed { .. } => End::Application(0),
        Error::StatelessReset { .. } => End::Reset,
        other => End::other(other),
    }
}

fn end_of_stream(error: s2n_quic::stream::Error) -> End {
    match error {
        s2n_quic::stream::Error::ConnectionError { error, .. } => end_of(error),
        other => End::other(other),
    }
}

impl S2n {
    fn new(target: Target) -> Result<Self, End> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(End::other)?;
        Ok(Self {
            runtime,
            target,
            seen: Arc::default(),
            client: None,
            connection: None,
        })
    }

    fn endpoint(&self, alpn: &str) -> Result<Client, End> {
        let tls = Tls::builder()
            .with_certificate(self.target.authority.as_path())
            .map_err(End::other)?
            .with_application_protocols([alpn].into_iter())
            .map_err(End::other)?
            .build()
            .map_err(End::other)?;
        let datagrams = datagram::Endpoint::builder()
            .with_send_capacity(DATAGRAMS_MAX)
            .map_err(End::other)?
            .with_recv_capacity(DATAGRAMS_MAX)
            .map_err(End::other)?
            .build()
            .map_err(End::other)?;
        // The sockets belong to the runtime.
        let _inside = self.runtime.enter();
        Client::builder()
            .with_tls(tls)
            .map_err(End::other)?
            .with_event(Watch(Arc::clone(&self.seen)))
            .map_err(End::other)?
            .with_datagram(datagrams)
            .map_err(End::other)?
            .with_io(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .map_err(End::other)?
            .start()
            .map_err(End::other)
    }

    /// Waits for something, but not for ever.
    fn wait<T>(runtime: &Runtime, what: impl Future<Output = Result<T, End>>) -> Result<T, End> {
        let waited = runtime.block_on(async { timeout(PATIENCE, what).await });
        waited.unwrap_or_else(|_| Err(End::other("it takes too long")))
    }

    fn current(&mut self) -> Result<&mut Open, End> {
        self.connection.as_mut().ok_or(End::other("no connection"))
    }
}

impl Stack for S2n {
    fn dial(&mut self, alpn: &str) -> Result<(), End> {
        let client = self.endpoint(alpn)?;
        let connect = Connect::new(self.target.broker).with_server_name("localhost");
        let connecting = client.connect(connect);
        let connected = async { connecting.await.map_err(end_of) };
        let connection: Connection = Self::wait(&self.runtime, connected)?;
        self.client = Some(client);
        self.connection = Some(Open {
            handle: connection.handle(),
            streams: HashMap::new(),
        });
        // Only the handle is used: streams of the broker's are not expected.
        drop(connection);
        Ok(())
    }

    fn dial_early(&mut self, _: &[u8]) -> Result<u64, End> {
        Err(End::other("s2n-quic sends no 0-RTT packets"))
    }

    fn dial_unknown_version(&mut self) -> Result<(), End> {
        Err(End::other("s2n-quic offers version 1 only"))
    }

    fn open(&mut self) -> Result<u64, End> {
        let mut handle = self.current()?.handle.clone();
        let opened = async { handle.open_bidirectional_stream().await.map_err(end_of) };
        let stream = Self::wait(&self.runtime, opened)?;
        let id = stream.id();
        let (receive, send) = stream.split();
        self.current()?.streams.insert(id, (send, receive));
        Ok(id)
    }

    fn send(&mut self, stream: u64, data: &[u8]) -> Result<(), End> {
        let Some(open) = &mut self.connection else {
            return Err(End::other("no connection"));
        };
        let Some((send, _)) = open.streams.get_mut(&stream) else {
            return Err(End::other("no such stream"));
        };
        let data = Bytes::copy_from_slice(data);
        let sent = async { send.send(data).await.map_err(end_of_stream) };
        Self::wait(&self.runtime, sent)
    }

    fn receive(&mut self, stream: u64) -> Result<Vec<u8>, End> {
        let Some(open) = &mut self.connection else {
            return Err(End::other("no connection"));
        };
        let Some((_, receive)) = open.streams.get_mut(&stream) else {
            return Err(End::other("no such stream"));
        };
        let came = async { receive.receive().await.map_err(end_of_stream) };
        match Self::wait(&self.runtime, came)? {
            Some(data) => Ok(data.to_vec()),
            None => Err(End::other("the stream ended")),
        }
    }

    fn send_datagram(&mut self, data: &[u8]) -> Result<(), End> {
        let data = Bytes::copy_from_slice(data);
        let handle = &self.current()?.handle;
        let sent = handle.datagram_mut(|sender: &mut datagram::Sender| sender.send_datagram(data));
        sent.map_err(End::other)?.map_err(End::other)
    }

    fn receive_datagram(&mut self) -> Result<Vec<u8>, End> {
        let handle = self.current()?.handle.clone();
        let came = std::future::poll_fn(|context| {
            let received = handle.datagram_mut(|receiver: &mut datagram::Receiver| {
                receiver.poll_recv_datagram(context)
            });
            match received {
                Ok(poll) => poll.map(|datagram| datagram.map_err(End::other)),
                Err(error) => std::task::Poll::Ready(Err(End::other(error))),
            }
        });
        Ok(Self::wait(&self.runtime, came)?.to_vec())
    }

    fn move_to(&mut self, _: IpAddr) -> Result<(), End> {
        Err(End::other("s2n-quic leaves its port to itself"))
    }

    fn close(&mut self) {
        if let Some(open) = self.connection.take() {
            open.handle.close(0u8.into());
        }
        self.client = None;
    }

    fn facts(&mut self) -> Vec<String> {
        let mut facts = Vec::new();
        let is_ecn_capable = self.seen.is_ecn_capable.load(Ordering::Relaxed);
        facts.extend(is_ecn_capable.then(|| "ecn".to_owned()));
        let updates = self.seen.key_updates.load(Ordering::Relaxed);
        facts.push(format!("keys={updates}"));
        facts
    }
}
