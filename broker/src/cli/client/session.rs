//! One network connection of an MQTT session: CONNECT, acknowledgements, keep alive, DISCONNECT.

use super::{
    Beside, ClientError, Target, TlsOptions, Transport, lanes::Lanes, transport::CLOSE_WAIT_MAX,
};
use bytes::BytesMut;
use headgate_codec::{
    Ack, ConnAck, Connect, Disconnect, Packet, PacketId, Publish, QoS, ReasonCode, SubAck,
    Subscribe, Unsubscribe, Version, decode, encode, encoded_len, frame_len,
};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout};

/// The largest packet that the client takes, bytes: the largest that there is.
const PACKET_SIZE_MAX: u32 = u32::MAX;

/// Unacknowledged QoS 1 and 2 messages that the client sends at a time, unless the server's
/// Receive Maximum is lower.
const INFLIGHT_MAX: u16 = 20;

/// What a session tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message for a subscription. It has been acknowledged (QoS 2: completely).
    Message(Publish),
    /// A QoS 1 or 2 message of ours is completed.
    Published {
        /// As [`Session::publish`] returned it.
        packet_id: PacketId,
        /// The server's verdict: below 0x80 it took the message.
        reason: ReasonCode,
    },
    /// The answer to a SUBSCRIBE.
    Subscribed(SubAck),
    /// The answer to an UNSUBSCRIBE.
    Unsubscribed(SubAck),
}

/// A connected client.
#[derive(Debug)]
pub struct Session {
    transport: Transport,
    lanes: Lanes,
    /// The data stream that what is queued goes to; `None` = the control stream.
    on: Option<usize>,
    version: Version,
    connack: ConnAck,
    input: BytesMut,
    /// What is to be written. Only [`Session::next`]'s answers and one packet of the caller's
    /// gather here: more is read, or taken, after it is written.
    output: BytesMut,
    /// Zero = off.
    keep_alive: Duration,
    ping_at: Instant,
    /// A PINGREQ went out, and its answer hasn't come.
    pinged: bool,
    last_id: u16,
    /// Packet Identifiers of ours that are in use; at most 65,535.
    used: HashSet<PacketId>,
    /// Those of `used` that belong to messages.
    unacknowledged: u16,
    /// Received QoS 2 messages before their PUBREL, by Packet Identifier: at most 65,535.
    unreleased: HashMap<PacketId, Publish>,
}

impl Session {
    /// Connects, sends CONNECT and waits for a CONNACK that accepts.
    ///
    /// # Errors
    /// The server isn't reached, doesn't answer within `patience` or refuses.
    pub async fn connect(
        target: &Target,
        tls: &TlsOptions,
        (connect, beside): (Connect, Beside),
        patience: Duration,
    ) -> Result<Self, ClientError> {
        let what = || ClientError::Timeout {
            what: target.to_string(),
            after: patience,
        };
        let connecting = Self::open(target, tls, (connect, beside));
        timeout(patience, connecting).await.map_err(|_| what())?
    }

    /// The CONNACK.
    pub fn connack(&self) -> &ConnAck {
        &self.connack
    }

    /// Protocol Version of the connection.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How many QoS 1 and 2 messages of ours aren't completed.
    pub fn unacknowledged(&self) -> usize {
        usize::from(self.unacknowledged)
    }

    /// Whether another QoS 1 or 2 message may go out \[MQTT-3.3.4-7\].
    pub fn has_room(&self) -> bool {
        let theirs = self.connack.properties.receive_maximum.unwrap_or(u16::MAX);
        self.unacknowledged < theirs.min(INFLIGHT_MAX)
    }

    /// Sends a message. With QoS 1 or 2 it gets a Packet Identifier, and is completed by
    /// [`Event::Published`].
    ///
    /// # Errors
    /// The server announced that it doesn't take such a message, or the connection is lost.
    pub async fn publish(&mut self, mut message: Publish) -> Result<Option<PacketId>, ClientError> {
        self.check(&message)?;
        message.packet_id = match message.qos {
            QoS::AtMostOnce => None,
            _ => Some(self.take_id()?),
        };
        let packet_id = message.packet_id;
        let packet = Packet::Publish(message);
        let len = encoded_len(&packet, self.version);
        let max = self
            .connack
            .properties
            .maximum_packet_size
            .unwrap_or(u32::MAX);
        if len == 0 || len as u64 > u64::from(max) {
            if let Some(id) = packet_id {
                self.used.remove(&id);
            }
            let text = format!("a message of {len} bytes; its Maximum Packet Size is {max}");
            return Err(ClientError::NotSupported(text));
        }
        self.unacknowledged += u16::from(packet_id.is_some());
        if packet_id.is_none() {
            let mut bytes = BytesMut::with_capacity(len);
            encode(&packet, self.version, &mut bytes);
            if self.lanes.send_datagram(&bytes)? {
                return Ok(None);
            }
        }
        self.send_in_turn(&packet).await?;
        Ok(packet_id)
    }

    /// Sends a SUBSCRIBE with a Packet Identifier of the session's; [`Event::Subscribed`] answers.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn subscribe(&mut self, mut packet: Subscribe) -> Result<PacketId, ClientError> {
        packet.packet_id = self.take_id()?;
        let id = packet.packet_id;
        self.send_in_turn(&Packet::Subscribe(Box::new(packet)))
            .await?;
        Ok(id)
    }

    /// Sends an UNSUBSCRIBE as [`Session::subscribe`] does.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn unsubscribe(&mut self, mut packet: Unsubscribe) -> Result<PacketId, ClientError> {
        packet.packet_id = self.take_id()?;
        let id = packet.packet_id;
        self.send(&Packet::Unsubscribe(Box::new(packet))).await?;
        Ok(id)
    }

    /// Waits for the next event; acknowledges and pings meanwhile. Can be cancelled without
    /// losing anything.
    ///
    /// # Errors
    /// The connection is lost, or the server ends it.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            while let Some((on, packet)) = self.arrived()? {
                // Answers go back where the packet has come from.
                self.on = on;
                let received = self.receive(packet);
                self.on = None;
                if let Some(event) = received? {
                    return Ok(event);
                }
            }
            self.flush().await?;
            self.read().await?;
        }
    }

    /// Sends DISCONNECT and closes, once the server has everything or two seconds are over.
    ///
    /// # Errors
    /// The connection is lost before.
    pub async fn disconnect(mut self, disconnect: Disconnect) -> Result<(), ClientError> {
        // What is on other streams is not to come behind DISCONNECT.
        let _ = timeout(CLOSE_WAIT_MAX, self.lanes.finish()).await;
        let sent = self.send(&Packet::Disconnect(disconnect)).await;
        self.transport.close().await;
        sent
    }

    async fn open(
        target: &Target,
        tls: &TlsOptions,
        (connect, beside): (Connect, Beside),
    ) -> Result<Self, ClientError> {
        let transport = Transport::connect(target, tls).await?;
        let lanes = Lanes::new(&transport, beside)?;
        let mut session = Self {
            transport,
            lanes,
            on: None,
            version: connect.version,
            connack: ConnAck::default(),
            input: BytesMut::with_capacity(4096),
            output: BytesMut::new(),
            keep_alive: Duration::from_secs(connect.keep_alive_s.into()),
            ping_at: Instant::now(),
            pinged: false,
            last_id: 0,
            used: HashSet::new(),
            unacknowledged: 0,
            unreleased: HashMap::new(),
        };
        session.send(&Packet::Connect(Box::new(connect))).await?;
        let packet = loop {
            if let Some(packet) = session.buffered()? {
                break packet;
            }
            session.fill().await?;
        };
        let Packet::ConnAck(connack) = packet else {
            return Err(unexpected(&packet));
        };
        if connack.reason != ReasonCode::SUCCESS {
            let text = connack.properties.reason_string.map(|t| t.to_string());
            return Err(ClientError::Refused {
                reason: connack.reason,
                text,
            });
        }
        // [MQTT-3.1.2-21]
        if let Some(seconds) = connack.properties.server_keep_alive_s {
            session.keep_alive = Duration::from_secs(seconds.into());
        }
        let (name, value) = headgate_core::DATAGRAMS;
        let said = &connack.properties.user_properties;
        if !said
            .iter()
            .any(|(n, v)| n.as_str() == name && v.as_str() == value)
        {
            session.lanes.send_no_datagrams();
        }
        session.connack = *connack;
        session.ping_at = Instant::now() + session.keep_alive;
        Ok(session)
    }

    /// Whether the server said that it takes such a message (§3.2.2.3).
    fn check(&self, message: &Publish) -> Result<(), ClientError> {
        let theirs = &self.connack.properties;
        if theirs.maximum_qos.is_some_and(|max| message.qos > max) {
            return Err(ClientError::NotSupported(format!(
                "QoS {}",
                message.qos as u8
            )));
        }
        if message.retain && theirs.retain_available == Some(false) {
            return Err(ClientError::NotSupported("retained messages".into()));
        }
        Ok(())
    }

    fn take_id(&mut self) -> Result<PacketId, ClientError> {
        for _ in 0..u16::MAX {
            self.last_id = self.last_id.wrapping_add(1).max(1);
            if let Some(id) = PacketId::new(self.last_id)
                && self.used.insert(id)
            {
                return Ok(id);
            }
        }
        Err(ClientError::NoPacketId)
    }

    fn queue(&mut self, packet: &Packet) {
        let lane = self.on.and_then(|on| self.lanes.output(on));
        encode(packet, self.version, lane.unwrap_or(&mut self.output));
    }

    /// Sends a packet on the data stream whose turn it is, or on the control stream.
    async fn send_in_turn(&mut self, packet: &Packet) -> Result<(), ClientError> {
        self.on = self.lanes.next().await?;
        self.queue(packet);
        self.on = None;
        self.flush().await
    }

    /// Writes what is queued. Can be cancelled: the rest is written the next time.
    async fn flush(&mut self) -> Result<(), ClientError> {
        let beside = self.lanes.flush().await?;
        if self.output.is_empty() && !beside {
            return Ok(());
        }
        while !self.output.is_empty() {
            self.transport.write(&mut self.output).await?;
        }
        // Whatever goes out shows the server that the client is alive (§3.1.2.10).
        self.ping_at = Instant::now() + self.keep_alive;
        Ok(())
    }

    async fn send(&mut self, packet: &Packet) -> Result<(), ClientError> {
        self.queue(packet);
        self.flush().await
    }

    /// Takes a packet from what has arrived.
    fn buffered(&mut self) -> Result<Option<Packet>, ClientError> {
        match frame_len(&self.input, PACKET_SIZE_MAX)? {
            Some(len) if len <= self.input.len() => {
                let mut frame = self.input.split_to(len).freeze();
                Ok(decode(&mut frame, Some(self.version), PACKET_SIZE_MAX)?)
            }
            _ => Ok(None),
        }
    }

    /// The next packet of what has arrived, and the data stream that it has come on.
    fn arrived(&mut self) -> Result<Option<(Option<usize>, Packet)>, ClientError> {
        match self.buffered()? {
            Some(packet) => Ok(Some((None, packet))),
            None => self.lanes.buffered(self.version, PACKET_SIZE_MAX),
        }
    }

    async fn fill(&mut self) -> Result<(), ClientError> {
        let read = tokio::select! {
            read = self.transport.read(&mut self.input) => read?,
            read = self.lanes.read(), if self.lanes.is_used() => return read,
        };
        match read {
            0 => Err(ClientError::Closed { reason: None }),
            _ => Ok(()),
        }
    }

    /// Reads, or pings when it is time.
    async fn read(&mut self) -> Result<(), ClientError> {
        if self.keep_alive.is_zero() {
            return self.fill().await;
        }
        let ping_at = self.ping_at;
        tokio::select! {
            read = self.fill() => return read,
            () = sleep_until(ping_at) => {}
        }
        if self.pinged {
            let what = "the server to PINGREQ".into();
            return Err(ClientError::Timeout {
                what,
                after: self.keep_alive,
            });
        }
        self.pinged = true;
        self.send(&Packet::PingReq).await
    }

    fn receive(&mut self, packet: Packet) -> Result<Option<Event>, ClientError> {
        match packet {
            Packet::Publish(message) => return self.message(message),
            Packet::PubAck(ack) => return Ok(self.completed(&ack)),
            Packet::PubRec(ack) if ack.reason.0 >= 0x80 => return Ok(self.completed(&ack)),
            Packet::PubRec(ack) => self.queue(&Packet::PubRel(plain(ack.packet_id))),
            Packet::PubComp(ack) => return Ok(self.completed(&ack)),
            Packet::PubRel(ack) => {
                self.queue(&Packet::PubComp(plain(ack.packet_id)));
                return Ok(self.unreleased.remove(&ack.packet_id).map(Event::Message));
            }
            Packet::SubAck(ack) => {
                self.used.remove(&ack.packet_id);
                return Ok(Some(Event::Subscribed(*ack)));
            }
            Packet::UnsubAck(ack) => {
                self.used.remove(&ack.packet_id);
                return Ok(Some(Event::Unsubscribed(*ack)));
            }
            Packet::PingResp => self.pinged = false,
            Packet::Disconnect(p) => {
                let text = p
                    .properties
                    .and_then(|p| p.reason_string)
                    .map(|t| t.to_string());
                return Err(ClientError::Disconnected {
                    reason: p.reason,
                    text,
                });
            }
            other => return Err(unexpected(&other)),
        }
        Ok(None)
    }

    /// Acknowledges a message by its QoS (§4.3). One with QoS 2 is told when it is released, so
    /// that nothing is open once it has been told.
    fn message(&mut self, message: Publish) -> Result<Option<Event>, ClientError> {
        let Some(id) = message.packet_id else {
            return Ok(Some(Event::Message(message)));
        };
        if message.qos == QoS::AtLeastOnce {
            self.queue(&Packet::PubAck(plain(id)));
            return Ok(Some(Event::Message(message)));
        }
        self.unreleased.insert(id, message);
        self.queue(&Packet::PubRec(plain(id)));
        Ok(None)
    }

    fn completed(&mut self, ack: &Ack) -> Option<Event> {
        // One for a message that isn't ours, of an earlier connection, is of no interest.
        if !self.used.remove(&ack.packet_id) {
            return None;
        }
        self.unacknowledged = self.unacknowledged.saturating_sub(1);
        Some(Event::Published {
            packet_id: ack.packet_id,
            reason: ack.reason,
        })
    }
}

fn plain(packet_id: PacketId) -> Ack {
    Ack {
        packet_id,
        reason: ReasonCode::SUCCESS,
        properties: None,
    }
}

fn unexpected(packet: &Packet) -> ClientError {
    let debug = format!("{packet:?}");
    let name = debug.split(['(', ' ']).next().unwrap_or_default();
    ClientError::Protocol(format!("an unexpected {}", name.to_uppercase()))
}
