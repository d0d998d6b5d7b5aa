//! A connection: two streams of bytes that arrive in pieces, late, or not at all.

use bytes::{Bytes, BytesMut};
use headgate_codec::{Packet, Version};
use headgate_core::{ConnId, Frame};
use std::collections::VecDeque;

use super::framing::Inbox;
use super::model::Met;

/// A connection of the run, by number.
pub(crate) type LinkId = usize;

/// One network connection as both ends and the network between them have it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) worker: usize,
    pub(crate) conn: ConnId,
    pub(crate) client: usize,
    pub(crate) client_version: Version,
    /// From the client, not yet at the server.
    pub(crate) up: BytesMut,
    pub(crate) server: Inbox,
    /// As the server has learned it from CONNECT.
    pub(crate) version: Option<Version>,
    pub(crate) reading: bool,
    /// Reading goes on: there may be packets that have already come.
    pub(crate) resumes: bool,
    pub(crate) server_open: bool,
    pub(crate) client_open: bool,
    /// The client's end is closed after what is in `up`; otherwise it may break off before.
    pub(crate) is_graceful: bool,
    /// Given to the transport by the server.
    pub(crate) outbox: BytesMut,
    /// Taken by the transport, not yet at the client.
    pub(crate) in_flight: BytesMut,
    pub(crate) receiving: Inbox,
    /// What the server has sent and the client hasn't seen, with the expectation that it meets.
    pub(crate) sent: VecDeque<(Packet, Option<Met>)>,
    /// The client doesn't read.
    pub(crate) stalled: bool,
}

/// What a client that doesn't read leaves in the network's buffers at most, bytes.
const BUFFER_BYTES: usize = 2_048;

impl Link {
    pub(crate) fn new(worker: usize, conn: ConnId, client: usize, client_version: Version) -> Self {
        Self {
            worker,
            conn,
            client,
            client_version,
            up: BytesMut::new(),
            server: Inbox::default(),
            version: None,
            reading: true,
            resumes: false,
            server_open: true,
            client_open: true,
            is_graceful: false,
            outbox: BytesMut::new(),
            in_flight: BytesMut::new(),
            receiving: Inbox::default(),
            sent: VecDeque::new(),
            stalled: false,
        }
    }

    /// Something of what the client has sent can be taken by the server.
    pub(crate) fn can_go_up(&self) -> bool {
        self.server_open && self.reading && (!self.up.is_empty() || self.resumes)
    }

    /// The server can notice that the client's end is closed.
    pub(crate) fn can_hang_up(&self) -> bool {
        let rest = self.is_graceful && !(self.up.is_empty() && self.server.is_empty());
        self.server_open && !self.client_open && !rest
    }

    /// The transport can take something from the server.
    pub(crate) fn can_flush(&self) -> bool {
        !self.outbox.is_empty() && (!self.client_open || self.in_flight.len() < BUFFER_BYTES)
    }

    /// Something can arrive at the client: bytes, or the end.
    pub(crate) fn can_arrive(&self) -> bool {
        let is_end = !self.server_open && self.outbox.is_empty();
        self.client_open && !self.stalled && (!self.in_flight.is_empty() || is_end)
    }

    /// Nothing more happens on it.
    pub(crate) fn is_over(&self) -> bool {
        !self.server_open && !self.client_open
    }

    /// The network breaks: part of what the client had sent may still arrive.
    pub(crate) fn cut(&mut self, kept: usize) {
        self.client_open = false;
        self.up.truncate(kept);
        self.in_flight.clear();
    }
}

/// The bytes of a frame on the wire.
pub(crate) fn bytes_of(frame: &Frame) -> Bytes {
    let mut bytes = BytesMut::with_capacity(frame.encoded_len());
    frame.append_to(&mut bytes);
    bytes.freeze()
}
