//! The commands on Cloudflare's quiche, with BoringSSL: `stack_quiche ADDRESS:PORT CA.pem`.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use headgate_stacks::{
    commands,
    stack::{End, PATIENCE, Stack, Target},
};
use quiche::{Config, ConnectionId, PathEvent, RecvInfo};

/// The longest UDP payload.
const DATAGRAM_BYTES: usize = 1_350;

/// A version that is reserved for exercising version negotiation (RFC 9000 §15).
const UNKNOWN_VERSION: u32 = 0xbaba_baba;

/// A connection's own port.
struct Network {
    socket: UdpSocket,
    address: SocketAddr,
}

struct Quiche {
    target: Target,
    connection: Option<(quiche::Connection, Network)>,
    /// Of the last connection that got one: the ticket, and what goes with it.
    session: Option<Vec<u8>>,
    next_stream: u64,
    key_updates: KeyUpdates,
}

fn main() -> ExitCode {
    match commands::target() {
        Ok(target) => commands::run(&mut Quiche {
            target,
            connection: None,
            session: None,
            next_stream: 0,
            key_updates: KeyUpdates::default(),
        }),
        Err(wrong) => {
            eprintln!("{wrong}");
            ExitCode::FAILURE
        }
    }
}

/// Counts the key updates in a qlog: nothing else of quiche tells of them.
#[derive(Clone, Default)]
struct KeyUpdates {
    count: Arc<AtomicUsize>,
    line: Vec<u8>,
}

impl Write for KeyUpdates {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        for octet in data {
            self.line.push(*octet);
            if *octet == b'\n' {
                let line = String::from_utf8_lossy(&self.line);
                // One event for the keys of each direction.
                let is_one = line.contains("key_updated") && line.contains("server_1rtt");
                self.count.fetch_add(usize::from(is_one), Ordering::Relaxed);
                self.line.clear();
            }
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn network(address: IpAddr) -> Result<Network, End> {
    let socket = UdpSocket::bind((address, 0)).map_err(End::other)?;
    let address = socket.local_addr().map_err(End::other)?;
    Ok(Network { socket, address })
}

/// Octets that nobody else has: of a connection ID, or of a reset token.
fn unique() -> Result<[u8; 16], End> {
    use std::io::Read;
    let mut octets = [0; 16];
    let mut source = std::fs::File::open("/dev/urandom").map_err(End::other)?;
    source.read_exact(&mut octets).map_err(End::other)?;
    Ok(octets)
}

fn config(target: &Target, version: u32, alpn: &str) -> Result<Config, End> {
    let mut config = Config::new(version).map_err(End::other)?;
    let authority = target.authority.to_string_lossy();
    config
        .load_verify_locations_from_file(&authority)
        .map_err(End::other)?;
    config.verify_peer(true);
    config
        .set_application_protos(&[alpn.as_bytes()])
        .map_err(End::other)?;
    config.set_max_idle_timeout(120_000);
    config.set_max_recv_udp_payload_size(DATAGRAM_BYTES);
    config.set_max_send_udp_payload_size(DATAGRAM_BYTES);
    config.set_initial_max_data(1_000_000);
    config.set_initial_max_stream_data_bidi_local(100_000);
    config.set_active_connection_id_limit(4);
    config.enable_dgram(true, 100, 100);
    config.enable_early_data();
    Ok(config)
}

impl Quiche {
    fn begin(&mut self, version: u32, alpn: &str) -> Result<&mut quiche::Connection, End> {
        let mut config = config(&self.target, version, alpn)?;
        let network = network(Ipv4Addr::LOCALHOST.into())?;
        let id = unique()?;
        let mut connection = quiche::connect(
            Some("localhost"),
            &ConnectionId::from_ref(&id),
            network.address,
            self.target.broker,
            &mut config,
        )
        .map_err(End::other)?;
        self.key_updates = KeyUpdates::default();
        let log = Box::new(self.key_updates.clone());
        connection.set_qlog(log, String::new(), String::new());
        if let Some(session) = &self.session {
            connection.set_session(session).map_err(End::other)?;
        }
        self.next_stream = 0;
        let (connection, _) = self.connection.insert((connection, network));
        Ok(connection)
    }

    fn current(&mut self) -> Result<&mut quiche::Connection, End> {
        let (connection, _) = self
            .connection
            .as_mut()
            .ok_or(End::other("no connection"))?;
        Ok(connection)
    }

    /// Sends what there is to send.
    fn flush(&mut self) -> Result<(), End> {
        let Some((connection, network)) = &mut self.connection else {
            return Err(End::other("no connection"));
        };
        let mut datagram = [0; DATAGRAM_BYTES];
        // What is left for a former port may be lost.
        while let Ok((length, info)) = connection.send(&mut datagram) {
            if info.from == network.address {
                let sent = network.socket.send_to(&datagram[..length], info.to);
                sent.map_err(End::other)?;
            }
        }
        Ok(())
    }

    /// Sends what there is to send, and waits for a datagram or a timer.
    fn turn(&mut self) -> Result<(), End> {
        const WAIT: Duration = Duration::from_millis(50);
        self.flush()?;
        let Some((connection, network)) = &mut self.connection else {
            return Err(End::other("no connection"));
        };
        let wait = connection.timeout().map_or(WAIT, |due| due.min(WAIT));
        let wait = wait.max(Duration::from_millis(1));
        let set = network.socket.set_read_timeout(Some(wait));
        set.map_err(End::other)?;
        let mut buffer = [0; 65_536];
        if let Ok((length, from)) = network.socket.recv_from(&mut buffer) {
            let info = RecvInfo {
                from,
                to: network.address,
            };
            // Errors end the connection, and are told below.
            let _taken = connection.recv(&mut buffer[..length], info);
        }
        if connection.timeout() == Some(Duration::ZERO) {
            connection.on_timeout();
        }
        match end_of(connection) {
            Some(end) => Err(end),
            None => Ok(()),
        }
    }

    /// Goes on until something is there.
    fn until<T>(
        &mut self,
        mut ready: impl FnMut(&mut quiche::Connection) -> Option<T>,
    ) -> Result<T, End> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = ready(self.current()?) {
                self.flush()?;
                return Ok(value);
            }
            if Instant::now() > deadline {
                return Err(End::other("it takes too long"));
            }
            self.turn()?;
        }
    }
}

/// How the connection has ended, if it has.
fn end_of(connection: &quiche::Connection) -> Option<End> {
    if let Some(error) = connection.peer_error() {
        return Some(if error.is_app {
            End::Application(error.error_code)
        } else {
            End::Transport(error.error_code)
        });
    }
    if let Some(error) = connection.local_error() {
        return Some(End::Other(format!("{error:?}")));
    }
    if connection.is_timed_out() {
        return Some(End::other("idle for too long"));
    }
    // Only a stateless reset ends a connection without any of these.
    connection.is_closed().then_some(End::Reset)
}

impl Stack for Quiche {
    fn dial(&mut self, alpn: &str) -> Result<(), End> {
        self.begin(quiche::PROTOCOL_VERSION, alpn)?;
        self.until(|connection| connection.is_established().then_some(()))
    }

    fn dial_early(&mut self, first: &[u8]) -> Result<u64, End> {
        if self.session.is_none() {
            return Err(End::other("no session to resume"));
        }
        self.begin(quiche::PROTOCOL_VERSION, "mqtt")?;
        // The first packets bring the keys.
        self.flush()?;
        if !self.current()?.is_in_early_data() {
            return Err(End::other("the session is not good for 0-RTT"));
        }
        let stream = self.open()?;
        self.send(stream, first)?;
        self.until(|connection| connection.is_established().then_some(()))?;
        Ok(stream)
    }

    fn dial_unknown_version(&mut self) -> Result<(), End> {
        self.begin(UNKNOWN_VERSION, "mqtt")?;
        self.until(|connection| connection.is_established().then_some(()))
    }

    fn open(&mut self) -> Result<u64, End> {
        let stream = self.next_stream;
        self.next_stream += 4;
        Ok(stream)
    }

    fn send(&mut self, stream: u64, mut data: &[u8]) -> Result<(), End> {
        self.until(|connection| {
            match connection.stream_send(stream, data, false) {
                Ok(sent) => data = &data[sent..],
                Err(quiche::Error::Done) => {}
                Err(error) => return Some(Err(End::other(error))),
            }
            data.is_empty().then_some(Ok(()))
        })?
    }

    fn receive(&mut self, stream: u64) -> Result<Vec<u8>, End> {
        let mut buffer = vec![0; 65_536];
        let length = self.until(|connection| {
            match connection.stream_recv(stream, &mut buffer) {
                Ok((0, true)) => Some(Err(End::other("the stream ended"))),
                Ok((length, _)) => Some(Ok(length)),
                // There is nothing yet.
                Err(quiche::Error::Done | quiche::Error::InvalidStreamState(_)) => None,
                Err(error) => Some(Err(End::other(error))),
            }
        })??;
        buffer.truncate(length);
        Ok(buffer)
    }

    fn send_datagram(&mut self, data: &[u8]) -> Result<(), End> {
        self.current()?.dgram_send(data).map_err(End::other)?;
        self.flush()
    }

    fn receive_datagram(&mut self) -> Result<Vec<u8>, End> {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        let length = self.until(|connection| connection.dgram_recv(&mut buffer).ok())?;
        buffer.truncate(length);
        Ok(buffer)
    }

    fn move_to(&mut self, address: IpAddr) -> Result<(), End> {
        let other = network(address)?;
        let local = other.address;
        let peer = self.target.broker;
        // One of its own IDs for the new path, and one of the broker's.
        let (id, token) = (unique()?, u128::from_be_bytes(unique()?));
        let id = ConnectionId::from_ref(&id);
        self.current()?
            .new_scid(&id, token, true)
            .map_err(End::other)?;
        self.until(|connection| (connection.available_dcids() > 0).then_some(()))?;
        if let Some((_, network)) = &mut self.connection {
            *network = other;
        }
        self.current()?
            .probe_path(local, peer)
            .map_err(End::other)?;
        self.until(|connection| match connection.path_event_next()? {
            PathEvent::Validated(from, to) if (from, to) == (local, peer) => Some(Ok(())),
            PathEvent::FailedValidation(..) => Some(Err(End::other("the path is not validated"))),
            _ => None,
        })??;
        self.current()?.migrate(local, peer).map_err(End::other)?;
        self.flush()
    }

    fn close(&mut self) {
        if let Some((connection, _)) = &mut self.connection {
            self.session = connection.session().map(<[u8]>::to_vec);
            // The broker may have been faster.
            let _closing = connection.close(true, 0, b"");
            let _sent = self.flush();
        }
        self.connection = None;
    }

    fn facts(&mut self) -> Vec<String> {
        /// `ssl_early_data_accepted` of BoringSSL.
        const ACCEPTED: u32 = 2;
        let Some((connection, _)) = &self.connection else {
            return Vec::new();
        };
        let mut facts = Vec::new();
        facts.extend(connection.is_resumed().then(|| "resumed".to_owned()));
        let is_early = connection.early_data_reason() == ACCEPTED;
        facts.extend(is_early.then(|| "early".to_owned()));
        let updates = self.key_updates.count.load(Ordering::Relaxed);
        facts.push(format!("keys={updates}"));
        facts
    }
}
