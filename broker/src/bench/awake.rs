//! A client with a whole QUIC connection: while it connects, and as long as it publishes.

use super::sleeper::{ServerCid, Sleeper};
use crate::net::tls::ClientKeys;
use bytes::{Buf, Bytes, BytesMut};
use headgate_codec::{
    Connect, Packet, PacketId, QoS, Subscribe, SubscriptionOptions, Text, Version, encode,
    frame_len,
};
use quinn_proto::{Connection, Dir, Event, StreamId, WriteError};
use std::{collections::VecDeque, time::Instant};

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

pub(super) struct Awake {
    pub(super) connection: Connection,
    /// Which client it is.
    pub(super) client: u32,
    pub(super) plan: Plan,
    /// CONNACK, and SUBACK where it subscribes, have come.
    pub(super) is_ready: bool,
    pub(super) keys: Option<ClientKeys>,
    pub(super) server: Option<ServerCid>,
    /// 1-RTT packets received.
    pub(super) packets: u32,
    /// The earliest of its timers that is armed.
    pub(super) timer: Option<Instant>,
    control: Option<StreamId>,
    unsent: VecDeque<Bytes>,
    sent: u32,
    received: u32,
    partial: Vec<u8>,
}

impl Awake {
    pub(super) fn new(connection: Connection, client: u32, plan: Plan) -> Self {
        Self {
            connection,
            client,
            plan,
            is_ready: false,
            keys: None,
            server: None,
            packets: 0,
            timer: None,
            control: None,
            unsent: VecDeque::new(),
            sent: 0,
            received: 0,
            partial: Vec::new(),
        }
    }

    /// Sends bytes on the control stream.
    pub(super) fn send(&mut self, bytes: Bytes) {
        self.unsent.push_back(bytes);
    }

    /// Takes what the connection has to say. `Err`: it is lost, or the server refuses it; why.
    pub(super) fn work(&mut self) -> Result<(), String> {
        while let Some(event) = self.connection.poll() {
            match event {
                Event::Connected => self.start()?,
                Event::ConnectionLost { reason } => return Err(reason.to_string()),
                _ => {}
            }
        }
        self.read()?;
        self.write()
    }

    /// What is left of it when it falls asleep; `None`: it isn't so far.
    pub(super) fn asleep(&self) -> Option<Sleeper> {
        let offsets = (self.sent, self.received);
        Some(Sleeper::new(
            self.keys?,
            self.server?,
            offsets,
            self.packets,
        ))
    }

    fn start(&mut self) -> Result<(), String> {
        self.control = self.connection.streams().open(Dir::Bi);
        if self.control.is_none() {
            return Err("the server allows no stream".to_owned());
        }
        self.send(encoded(&Packet::Connect(Box::new(Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive_s: self.plan.keep_alive_s,
            client_id: Text::from(self.plan.client_id.as_str()),
            will: None,
            user_name: None,
            password: None,
            properties: Default::default(),
        }))));
        if !self.plan.filters.is_empty() {
            let options = SubscriptionOptions {
                qos: QoS::AtMostOnce,
                ..SubscriptionOptions::default()
            };
            let filters = self.plan.filters.iter();
            self.send(encoded(&Packet::Subscribe(Box::new(Subscribe {
                packet_id: PacketId::MIN,
                subscription_id: None,
                user_properties: Vec::new(),
                filters: filters.map(|f| (Text::from(f.as_str()), options)).collect(),
            }))));
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), String> {
        let Some(control) = self.control else {
            return Ok(());
        };
        let mut stream = self.connection.recv_stream(control);
        let Ok(mut chunks) = stream.read(true) else {
            return Ok(());
        };
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            self.received += chunk.bytes.len() as u32;
            self.partial.extend_from_slice(&chunk.bytes);
        }
        // What it says of window updates is done by the poll_transmit that follows.
        let _ = chunks.finalize();
        let mut rest = &self.partial[..];
        while let Ok(Some(len)) = frame_len(rest, u32::MAX)
            && let Some((packet, behind)) = rest.split_at_checked(len)
        {
            let (is_last, refused) = match packet[0] >> 4 {
                2 => (self.plan.filters.is_empty(), packet.get(3) != Some(&0)),
                9 => (true, packet.last().is_none_or(|reason| *reason >= 0x80)),
                14 => return Err(format!("DISCONNECT {:#04x}", packet.get(2).unwrap_or(&0))),
                _ => (false, false),
            };
            if refused {
                return Err(format!("the server refuses it: {packet:02x?}"));
            }
            self.is_ready |= is_last;
            rest = behind;
        }
        let kept = rest.len();
        self.partial.drain(..self.partial.len() - kept);
        Ok(())
    }

    fn write(&mut self) -> Result<(), String> {
        let Some(control) = self.control else {
            return Ok(());
        };
        while let Some(bytes) = self.unsent.front_mut() {
            match self.connection.send_stream(control).write(bytes) {
                Ok(written) => {
                    self.sent += written as u32;
                    bytes.advance(written);
                    if bytes.is_empty() {
                        self.unsent.pop_front();
                    }
                }
                Err(WriteError::Blocked) => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }
}

fn encoded(packet: &Packet) -> Bytes {
    let mut bytes = BytesMut::new();
    encode(packet, Version::V5, &mut bytes);
    bytes.freeze()
}
