//! A client with a whole QUIC connection: while it connects, and as long as it publishes.

use super::{
    session::{Listener, Session},
    sleeper::{ServerCid, Sleeper},
};
use crate::net::tls::ClientKeys;
use headgate_codec::{Connect, QoS, Text, Version};
use quinn_proto::{Connection, Dir, Event, StreamId, WriteError};
use std::time::Instant;

/// What a client does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Client Identifier.
    pub client_id: String,
    /// Topic Filters.
    pub filters: Vec<String>,
    /// Keep Alive, seconds; 0 = none.
    pub keep_alive_s: u16,
    /// It sleeps as soon as it is ready.
    pub sleeps: bool,
}

impl Plan {
    /// Its session: MQTT 5.0, new, with QoS 0; it subscribes without waiting for CONNACK.
    pub(super) fn session(&self) -> Session {
        let connect = Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive_s: self.keep_alive_s,
            client_id: Text::from(self.client_id.as_str()),
            will: None,
            user_name: None,
            password: None,
            properties: Default::default(),
        };
        let filters = self.filters.iter();
        let filters: Vec<_> = filters.map(|f| (f.clone(), QoS::AtMostOnce)).collect();
        Session::new(connect, &filters, true)
    }
}

pub(super) struct Awake {
    pub(super) connection: Connection,
    /// Which client it is.
    pub(super) client: u32,
    pub(super) session: Session,
    /// It sleeps as soon as it is ready.
    pub(super) sleeps: bool,
    pub(super) keys: Option<ClientKeys>,
    pub(super) server: Option<ServerCid>,
    /// 1-RTT packets received.
    pub(super) packets: u32,
    /// The earliest of its timers that is armed.
    pub(super) timer: Option<Instant>,
    control: Option<StreamId>,
    /// Bytes sent and received on the control stream.
    sent: u64,
    received: u64,
}

impl Awake {
    pub(super) fn new(connection: Connection, client: u32, session: Session, sleeps: bool) -> Self {
        Self {
            connection,
            client,
            session,
            sleeps,
            keys: None,
            server: None,
            packets: 0,
            timer: None,
            control: None,
            sent: 0,
            received: 0,
        }
    }

    /// Takes what the connection has to say. `Err`: it is lost, or the server refuses it; why.
    pub(super) fn work(&mut self, listener: &mut impl Listener) -> Result<(), String> {
        while let Some(event) = self.connection.poll() {
            match event {
                Event::Connected => {
                    self.control = self.connection.streams().open(Dir::Bi);
                    if self.control.is_none() {
                        return Err("the server allows no stream".to_owned());
                    }
                }
                Event::ConnectionLost { reason } => {
                    // What the server said last tells more.
                    self.read(listener)?;
                    return Err(reason.to_string());
                }
                _ => {}
            }
        }
        self.read(listener)?;
        self.write()
    }

    /// What is left of it when it falls asleep; `None`: it isn't so far.
    pub(super) fn asleep(&self) -> Option<Sleeper> {
        let offset = |bytes: u64| u32::try_from(bytes).ok();
        let offsets = (offset(self.sent)?, offset(self.received)?);
        Some(Sleeper::new(
            self.keys?,
            self.server?,
            offsets,
            self.packets,
        ))
    }

    fn read(&mut self, listener: &mut impl Listener) -> Result<(), String> {
        let Some(control) = self.control else {
            return Ok(());
        };
        let mut stream = self.connection.recv_stream(control);
        let Ok(mut chunks) = stream.read(true) else {
            return Ok(());
        };
        let mut result = Ok(());
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            self.received += chunk.bytes.len() as u64;
            result = self.session.take(&chunk.bytes, self.client, listener);
            if result.is_err() {
                break;
            }
        }
        // What it says of window updates is done by the poll_transmit that follows.
        let _ = chunks.finalize();
        result
    }

    fn write(&mut self) -> Result<(), String> {
        let Some(control) = self.control else {
            return Ok(());
        };
        while !self.session.output().is_empty() {
            let mut stream = self.connection.send_stream(control);
            match stream.write(self.session.output()) {
                Ok(written) => {
                    self.sent += written as u64;
                    self.session.written(written);
                }
                Err(WriteError::Blocked) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        self.session.rest(self.sleeps);
        Ok(())
    }
}
