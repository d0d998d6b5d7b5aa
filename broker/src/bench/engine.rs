//! The clients of a run, whatever carries them.

use super::{
    crowd::Crowd,
    fleet::Fleet,
    session::{Listener, Session},
};
use std::{io, time::Duration};

/// What carries MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
    /// WebSocket over TCP.
    WebSocket,
    /// WebSocket over TLS.
    WebSocketTls,
    /// QUIC, on the connection's first bidirectional stream.
    Quic,
}

impl Carrier {
    /// Whether there is TLS over TCP.
    pub const fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls | Self::WebSocketTls)
    }

    /// Whether MQTT is in frames of WebSocket.
    pub const fn is_web_socket(self) -> bool {
        matches!(self, Self::WebSocket | Self::WebSocketTls)
    }
}

/// The clients, by their numbers.
pub enum Engine {
    /// Over QUIC: those that only stay connected sleep.
    Fleet(Box<Fleet>),
    /// Over TCP and what is on it.
    Crowd(Box<Crowd>),
}

impl Engine {
    /// Begins to connect a client. One that only stays connected (`is_idle`) is kept as small as can be.
    ///
    /// # Errors
    /// The system gives no socket, or the connection can't be begun.
    pub fn connect(&mut self, client: u32, session: Session, is_idle: bool) -> io::Result<()> {
        match self {
            Self::Fleet(fleet) => fleet.connect_as(client, session, is_idle),
            Self::Crowd(crowd) => crowd.connect_as(client, session, is_idle),
        }
    }

    /// The session of a client, unless it is gone or sleeps. What it has to send leaves with the next turn.
    pub fn session(&mut self, client: u32) -> Option<&mut Session> {
        match self {
            Self::Fleet(fleet) => fleet.session(client),
            Self::Crowd(crowd) => crowd.session(client),
        }
    }

    /// Sends a PINGREQ; `false`: the client is gone. For one that sleeps and has not been answered it is the same one.
    pub fn ping(&mut self, client: u32) -> bool {
        if let Self::Fleet(fleet) = self
            && fleet.ping(client)
        {
            return true;
        }
        self.session(client)
            .filter(|session| session.is_ready())
            .map(|session| session.push(&[0xc0, 0]))
            .is_some()
    }

    /// Sends the PINGREQ of a client that sleeps again; `false`: it doesn't sleep, and what carries it sends again by
    /// itself.
    pub fn ping_again(&mut self, client: u32) -> bool {
        match self {
            Self::Fleet(fleet) => fleet.ping(client),
            Self::Crowd(_) => false,
        }
    }

    /// Forgets a client, as if its network had gone.
    pub fn cut(&mut self, client: u32) {
        match self {
            Self::Fleet(fleet) => fleet.cut(client),
            Self::Crowd(crowd) => crowd.cut(client),
        }
    }

    /// Lets a client disconnect.
    pub fn leave(&mut self, client: u32) {
        match self {
            Self::Fleet(fleet) => fleet.leave(client),
            Self::Crowd(crowd) => crowd.leave(client),
        }
    }

    /// Waits until there is something to do, at most `wait`, and does it.
    ///
    /// # Errors
    /// Of the system, when it can't say what there is to do.
    pub fn turn(&mut self, wait: Duration, listener: &mut impl Listener) -> io::Result<()> {
        match self {
            Self::Fleet(fleet) => {
                fleet.turn_with(wait, listener);
                Ok(())
            }
            Self::Crowd(crowd) => crowd.turn(wait, listener),
        }
    }
}
