//! The way of a connection from being accepted to being open for MQTT, and out again.

use super::{
    Clock, Worker,
    conns::{Link, Outbox},
};
use crate::{limits::Limit, lists::Offence};
use headgate_codec::{DecodeError, ReasonCode};
use headgate_core::{Input, Peer};

impl Worker {
    /// Looks at new connections for the first time.
    pub(super) fn accepted(&mut self, clock: Clock) {
        for id in std::mem::take(&mut self.opened) {
            let Some(conn) = self.conns.get(id) else {
                continue;
            };
            self.metrics.connections[conn.link.transport()].inc();
            let established = conn.link.is_established();
            conn.close_by = Some(clock.now + self.connect_timeout);
            if established {
                self.open(id.index, clock);
            }
            self.conns.schedule(id.index);
        }
    }

    /// Tells the core of a connection on which MQTT can flow.
    pub(super) fn open(&mut self, index: u32, clock: Clock) {
        let Some(conn) = self.conns.at(index) else {
            return;
        };
        let early = conn.link.is_early();
        conn.open = true;
        conn.early = early;
        if early {
            self.metrics.early_connections.inc();
        } else {
            conn.close_by = None;
        }
        let (conn, peer) = (
            conn.id,
            Peer {
                address: conn.peer,
                transport: conn.link.transport().into(),
                certificate: conn.link.certificate(),
                early,
            },
        );
        self.driver
            .input(&mut self.conns, Input::Opened { conn, peer }, clock.time());
    }

    /// Tells the core when the handshake of a connection that 0-RTT data has opened is complete.
    pub(super) fn confirm(&mut self, index: u32, clock: Clock) {
        let Some(conn) = self.conns.at(index) else {
            return;
        };
        if !conn.early || conn.link.is_early() {
            return;
        }
        conn.early = false;
        if conn.open {
            conn.close_by = None;
            let conn = conn.id;
            self.driver
                .input(&mut self.conns, Input::Confirmed { conn }, clock.time());
        }
    }

    /// Looks at a connection that is not open yet, after something has come. Whether it goes on.
    pub(super) fn identify(&mut self, index: u32) -> bool {
        let Some(conn) = self.conns.at(index) else {
            return false;
        };
        let transport = conn.link.transport();
        if let Link::Tcp(link) = &mut conn.link
            && let Some(source) = link.take_source()
        {
            // [limits] and the log mean the client, not the proxy.
            conn.peer = source.unwrap_or(conn.peer);
            if let Err(limit) = conn.permit.identify(conn.peer.ip()) {
                self.metrics.refused[limit].inc();
                self.remove(index);
                return false;
            }
        }
        if conn.link.is_established() && matches!(conn.link, Link::Tcp(_)) {
            self.metrics.connections_opened[transport].inc();
        }
        true
    }

    /// What a client sends on some stream, or in a datagram, is no MQTT.
    pub(super) fn malformed(&mut self, index: u32, error: &DecodeError, clock: Clock) {
        let Some(conn) = self.conns.at(index) else {
            return;
        };
        tracing::debug!(peer = %conn.peer, %error, "malformed packet");
        let reason = error.reason();
        let is_offence = matches!(
            reason,
            ReasonCode::MALFORMED_PACKET | ReasonCode::PROTOCOL_ERROR
        );
        // 0-RTT data may come from anywhere.
        if is_offence && !conn.early {
            let source = conn.peer.ip();
            self.admission.report(source, Offence::Malformed);
        }
        self.refuse(index, reason, clock);
    }

    /// What a client sends is no MQTT, or not what carries it.
    pub(super) fn refuse(&mut self, index: u32, reason: ReasonCode, clock: Clock) {
        let Some(conn) = self.conns.at(index) else {
            return;
        };
        if reason == Limit::PacketBytesMax.reason() {
            self.metrics.refused[Limit::PacketBytesMax].inc();
        }
        if conn.open {
            let conn = conn.id;
            let input = Input::Malformed { conn, reason };
            self.driver.input(&mut self.conns, input, clock.time());
        } else {
            conn.closing.get_or_insert(reason);
            conn.close_by = None;
        }
    }

    /// The peer takes nothing any more; the core hears of it.
    pub(super) fn left(&mut self, index: u32, reason: ReasonCode, clock: Clock) {
        let Some(conn) = self.conns.at(index) else {
            return;
        };
        conn.closing.get_or_insert(reason);
        if !conn.open || conn.early {
            conn.close_by = None;
        }
        conn.outbox = Outbox::default();
        if std::mem::take(&mut conn.open) {
            let conn = conn.id;
            self.driver
                .input(&mut self.conns, Input::Closed { conn }, clock.time());
        }
    }
}
