//! What one client's session and connection hold and have done, for `headgate ctl session show`.

use super::{
    Clock, Worker,
    conns::{Conn, Link, Traffic},
};
use crate::{
    metrics::{Label, Transport},
    net::quic::PathAccount,
};
use headgate_codec::Text;
use headgate_core::{Account, Frame, Owner};
use std::{mem::size_of, net::SocketAddr, sync::mpsc::SyncSender};

/// A question about a client's session.
#[derive(Debug)]
pub struct AccountOrder {
    /// Whose.
    pub client_id: Text,
    /// Where it is at home.
    pub owner: Owner,
    /// Who asks; `None` is the answer where the session isn't here any more.
    pub answer: SyncSender<Option<ClientAccount>>,
}

/// What is known of a client.
#[derive(Clone, Debug)]
pub struct ClientAccount {
    /// Its session.
    pub session: Account,
    /// Seconds until the session ends, while the client is away.
    pub ends_in_s: Option<u64>,
    /// Its connection, while there is one.
    pub connection: Option<ConnectionAccount>,
}

/// What is known of a connection.
#[derive(Clone, Debug)]
pub struct ConnectionAccount {
    /// The client's address.
    pub peer: SocketAddr,
    /// What carries it.
    pub transport: &'static str,
    /// What has gone over it.
    pub traffic: Traffic,
    /// Memory of the connection and of what waits in it, bytes. What the libraries for QUIC and TLS, and the kernel's socket,
    /// hold isn't counted.
    pub memory_bytes: usize,
    /// What QUIC knows of the path.
    pub path: Option<PathAccount>,
}

impl Worker {
    /// Answers a question about a session.
    pub(super) fn account(&mut self, order: AccountOrder, clock: Clock) {
        let session = self.driver.account(order.owner, &order.client_id);
        let account = session.map(|session| {
            let conn = session.conn.and_then(|id| self.conns.get(id));
            let left_ms = session
                .expires_at
                .map(|at| at.0.saturating_sub(clock.time().0));
            ClientAccount {
                connection: conn.map(|conn| conn.account()),
                ends_in_s: left_ms.map(|ms| ms.div_ceil(1_000)),
                session,
            }
        });
        // Who has asked may have gone away.
        let _ = order.answer.send(account);
    }
}

impl Conn {
    fn account(&self) -> ConnectionAccount {
        let (link_bytes, path) = match &self.link {
            Link::Quic(link) => (link.memory_bytes(), Some(link.path_account())),
            Link::Tcp(_) => (0, None),
        };
        let waiting: usize = self.outbox.frames.iter().map(Frame::encoded_len).sum();
        let lists = self.outbox.frames.capacity() * size_of::<Frame>();
        ConnectionAccount {
            peer: self.peer,
            transport: Transport::text(self.link.transport()),
            traffic: self.traffic,
            memory_bytes: size_of::<Self>()
                + self.inbox.len()
                + self.outbox.rest.as_ref().map_or(0, |rest| rest.len())
                + waiting
                + lists
                + link_bytes,
            path,
        }
    }
}
