//! 0-RTT data (RFC 9001 §4.6): what a client says before its handshake is complete.
//!
//! Whoever has recorded a client's first flight can keep it from the server and send it later. A ticket is good once,
//! so it has an effect once at most, but possibly long after it was meant, and the client can't tell. So only what
//! does no harm then is done at once: CONNECT, if it neither ends or moves a session nor takes a connection from it,
//! and leaves no will; PUBLISH with QoS 0 or 1 that is not retained; PINGREQ. Everything else, and what follows it, waits until
//! the handshake is complete, which only the client itself can bring about ([`Input::Confirmed`](crate::Input)). So do
//! data streams and datagrams: [`Output::Ready`] comes then.

use headgate_codec::{Connect, Packet, QoS};

use crate::{
    ConnId, Output, Owner,
    conns::{Conn, PAUSED_EARLY, State},
    hub::Hub,
    slots::Slot,
};

/// Whether a packet has to wait until the handshake is complete.
pub(crate) fn must_wait(conn: &Conn, packet: &Packet) -> bool {
    if conn.has_held() {
        return true;
    }
    match (conn.state, packet) {
        (State::New, Packet::Connect(connect)) => changes_more_than_itself(connect),
        // A protocol error, which ends the connection.
        (State::New, _) => false,
        // The answers that CONNECT needs.
        (State::Authenticating, Packet::Auth(_)) => false,
        (_, Packet::Publish(publish)) => publish.retain || publish.qos == QoS::ExactlyOnce,
        (_, Packet::PingReq) => false,
        _ => true,
    }
}

/// Clean Start ends a session, and a will is a message for later.
fn changes_more_than_itself(connect: &Connect) -> bool {
    connect.clean_start || connect.will.is_some()
}

impl Hub {
    /// Whether a client that is not confirmed may have the session of `owner`, which its Client Identifier stands for:
    /// one of this worker's that nobody uses and that has no will, and so one that is only continued.
    pub(crate) fn may_continue_early(&mut self, slot: u32, owner: Owner) -> bool {
        let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) else {
            return false;
        };
        let client_id = acquire.client_id.clone();
        let now = self.env.now;
        if owner.worker != self.config.worker {
            return false;
        }
        match self.slots.owned(owner, &client_id) {
            Some(Slot::Live(session)) => {
                session.is_persistent()
                    && session.conn.is_none()
                    && session.will.is_none()
                    && session.expires_at > now
            }
            _ => false,
        }
    }

    /// Whether the client's handshake is not complete yet.
    pub(crate) fn is_early(&mut self, conn: ConnId) -> bool {
        self.conns.get(conn).is_some_and(|c| c.early)
    }

    /// The handshake is complete: what waited for that goes on.
    pub(crate) fn confirmed(&mut self, conn: ConnId, out: &mut Vec<Output>) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        if !std::mem::take(&mut c.early) {
            return;
        }
        let (state, is_quic, datagrams) = (c.state, c.is_quic, c.datagrams);
        let streams = self.env.streams_max(c.quota_class);
        self.pause(conn, PAUSED_EARLY, false, out);
        match state {
            State::Connecting(slot) => self.claim_confirmed(slot, out),
            State::Up(_) if is_quic => out.push(Output::Ready {
                conn,
                streams,
                datagrams,
            }),
            _ => {}
        }
        self.ready.push(conn);
    }

    /// Claims no more before the handshake is complete.
    pub(crate) fn wait_with_claim(&mut self, slot: u32, owner: Owner) {
        if let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) {
            acquire.former = Some(owner);
            acquire.unconfirmed = true;
        }
    }

    /// The handshake is complete: a claim that waited for that is made.
    fn claim_confirmed(&mut self, slot: u32, out: &mut Vec<Output>) {
        let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) else {
            return;
        };
        if !std::mem::take(&mut acquire.unconfirmed) {
            return;
        }
        let Some(owner) = acquire.former else { return };
        if !self.resume_here(slot, owner, out) {
            self.claim(slot, Some(owner), out);
        }
    }
}
