//! CONNECT (MQTT 5.0 §3.1): what it asks for, and whether it may.

use headgate_codec::{ConnAck, Connect, Packet, ReasonCode, Text, Version, Will};

use crate::{
    ConnId, CoreLimits, Output, Owner, StorageState,
    acquire::Acquire,
    close::End,
    conns::{PAUSED_CONNECTING, State},
    counters::add,
    hub::Hub,
    slots::Slot,
};

/// Length of a CONNACK of MQTT 5.0 without properties, bytes.
const REFUSAL_BYTES: u32 = 5;

impl Hub {
    pub(crate) fn on_connect(
        &mut self,
        conn: ConnId,
        connect: Box<Connect>,
        out: &mut Vec<Output>,
    ) {
        // [MQTT-3.1.2-24] [MQTT-3.2.2-19]: not even a refusal could be said.
        let packet_bytes_max = connect.properties.maximum_packet_size;
        if packet_bytes_max.is_some_and(|max| max < REFUSAL_BYTES) {
            return self.close(conn, End::Silent(ReasonCode::PACKET_TOO_LARGE), out);
        }
        match self.check(&connect) {
            Ok(()) => self.authenticate(conn, connect, out),
            Err(reason) => self.refuse(conn, connect.version, reason, out),
        }
    }

    /// It is known who the client is: a place is reserved, and the session acquired.
    pub(crate) fn admit(&mut self, conn: ConnId, mut connect: Box<Connect>, out: &mut Vec<Output>) {
        if self.is_too_much_for_store(&connect) {
            add(&mut self.env.counters.storage_refused_connect, 1);
            return self.refuse(conn, connect.version, ReasonCode::QUOTA_EXCEEDED, out);
        }
        if !self.enter_class(conn) {
            return self.refuse(conn, connect.version, ReasonCode::QUOTA_EXCEEDED, out);
        }
        let assigned = connect.client_id.as_bytes().is_empty();
        let client_id = if assigned {
            self.make_client_id()
        } else {
            connect.client_id.detached()
        };
        connect.client_id = client_id.clone();
        if let Some(will) = &mut connect.will {
            *will = detached_will(will);
        }
        let version = connect.version;
        let (node, worker, epoch) = (self.config.node, self.config.worker, 0);
        let slot = self.slots.insert_with(|slot, _| {
            let owner = Owner {
                node,
                worker,
                slot,
                epoch,
            };
            let (conn, former, takeover) = (Some(conn), None, None);
            Slot::Acquiring(Box::new(Acquire {
                client_id,
                owner,
                former,
                conn,
                connect,
                assigned,
                attempts: 0,
                unconfirmed: false,
                ends_recorded: false,
                takeover,
            }))
        });
        let Some(slot) = slot else {
            add(&mut self.env.counters.limit_sessions, 1);
            if let Some(c) = self.conns.get(conn) {
                let class = c.quota_class;
                self.leave_class(class);
            }
            return self.refuse(conn, version, ReasonCode::QUOTA_EXCEEDED, out);
        };
        if let Some(c) = self.conns.get(conn) {
            c.state = State::Connecting(slot);
        }
        self.pause(conn, PAUSED_CONNECTING, true, out);
        self.claim(slot, None, out);
    }

    /// Answers CONNECT with an error and closes \[MQTT-3.2.2-7\] \[MQTT-3.1.4-2\] \[MQTT-4.13.2-1\]: what
    /// follows it finds no connection \[MQTT-3.1.4-6\].
    pub(crate) fn refuse(
        &mut self,
        conn: ConnId,
        version: Version,
        reason: ReasonCode,
        out: &mut Vec<Output>,
    ) {
        self.count_refused(reason);
        let mut connack = ConnAck {
            reason,
            ..ConnAck::default()
        };
        connack.properties.server_reference = self.server_reference(reason);
        let connack = Packet::ConnAck(Box::new(connack));
        let bytes = self.env.encode(&connack, version);
        out.push(Output::Send {
            conn,
            frame: crate::Frame::Bytes(bytes),
        });
        self.close(conn, End::Server(reason), out);
    }

    fn check(&mut self, connect: &Connect) -> Result<(), ReasonCode> {
        if let Some(reason) = self.turned_away().or_else(|| self.is_short()) {
            return Err(reason);
        }
        let id = connect.client_id.as_bytes();
        // MQTT 3.1 knows no empty identifier, 3.1.1 only with Clean Session [MQTT-3.1.3-8].
        let may_be_empty = match connect.version {
            Version::V31 => false,
            Version::V311 => connect.clean_start,
            Version::V5 => true,
        };
        if id.is_empty() && !may_be_empty {
            return Err(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID);
        }
        // The limit leaves room for what has to be taken [MQTT-3.1.3-5].
        if id.len() > usize::from(self.env.limits.client_id_bytes) {
            add(&mut self.env.counters.limit_client_id, 1);
            return Err(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID);
        }
        match &connect.will {
            Some(will) if !self.is_topic_name(&will.topic) => Err(ReasonCode::TOPIC_NAME_INVALID),
            _ => Ok(()),
        }
    }

    /// The store can't take what this CONNECT asks for. While it is full, a session that is there may go on, because its
    /// client takes messages out of it.
    fn is_too_much_for_store(&self, connect: &Connect) -> bool {
        let is_recorded = Terms::of(connect, &self.env.limits).expiry_s > 0;
        match self.env.storage {
            StorageState::Ok => false,
            StorageState::Full => is_recorded && connect.clean_start,
            StorageState::Failed => is_recorded || !connect.clean_start,
        }
    }

    /// A Client Identifier that nobody else has or can guess \[MQTT-3.1.3-6\] \[MQTT-3.2.2-16\].
    fn make_client_id(&mut self) -> Text {
        self.ids_made += 1;
        let [high, low] = self.random(self.ids_made);
        Text::from(format!("auto-{high:016x}{low:016x}").as_str())
    }
}

/// What a CONNECT asks of its session, and what it gets.
pub(crate) struct Terms {
    /// Session Expiry Interval that was asked for, seconds.
    pub(crate) requested_s: u32,
    pub(crate) expiry_s: u32,
    pub(crate) send_quota: u16,
}

impl Terms {
    pub(crate) fn of(connect: &Connect, limits: &CoreLimits) -> Self {
        let requested_s = match (connect.version, connect.clean_start) {
            (Version::V5, _) => connect.properties.session_expiry_s.unwrap_or(0),
            (_, true) => 0,
            (_, false) => u32::MAX,
        };
        let receive_maximum = connect.properties.receive_maximum.unwrap_or(u16::MAX);
        Self {
            requested_s,
            expiry_s: requested_s.min(limits.session_expiry_max_s),
            // [MQTT-4.9.0-1]
            send_quota: receive_maximum.min(limits.inflight_messages).max(1),
        }
    }
}

/// A will whose text and payload share no buffer with the packet.
fn detached_will(will: &Will) -> Will {
    let message = crate::message::Message::from_will(will, crate::Time::default());
    Will {
        qos: will.qos,
        retain: will.retain,
        topic: message.topic,
        payload: message.payload,
        delay_s: will.delay_s,
        properties: message.properties,
    }
}
