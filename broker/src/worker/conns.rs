//! The slab of a worker's connections: no task, mutex or channel for any of them.

use super::prefetch::prefetch;
use crate::{
    limits::Permit,
    metrics,
    net::{
        framing::Inbox,
        quic::{DataStreams, QuicLink},
        tcp::TcpLink,
    },
};
use bytes::Bytes;
use headgate_codec::{ReasonCode, Version};
use headgate_core::{ClientCertificate, ConnId, DataStream, Frame};
use std::{net::SocketAddr, sync::Arc, time::Instant};

/// One network connection with its transport.
#[derive(Debug)]
pub struct Conn {
    /// This connection's name in the core.
    pub id: ConnId,
    /// The peer's address when it connected.
    pub peer: SocketAddr,
    /// Its place among the connections that the limits allow.
    pub permit: Permit,
    /// Known once CONNECT was decoded.
    pub version: Option<Version>,
    /// The core knows of it: MQTT can flow.
    pub open: bool,
    /// It was opened by 0-RTT data, and its handshake is not complete.
    pub early: bool,
    /// The core lets us read.
    pub reading: bool,
    /// Messages of this publisher that wait for room towards another worker: not read meanwhile.
    pub held: u32,
    /// The round in which it was last flushed.
    pub flushed_in: u32,
    /// It is to be closed when everything has left.
    pub closing: Option<ReasonCode>,
    /// It is closed then, whatever has not left; before it is open, or confirmed: whatever has not come.
    pub close_by: Option<Instant>,
    /// It stands in the list of connections to be served in this turn.
    pub scheduled: bool,
    /// Something came or is due; otherwise there is only something to send.
    pub eventful: bool,
    /// Bytes that came and are no whole packet yet.
    pub inbox: Inbox,
    /// Frames that the transport has not taken yet.
    pub outbox: Outbox,
    /// What has gone over it.
    pub traffic: Traffic,
    /// What carries it.
    pub link: Link,
}

/// What has gone over one connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// MQTT packets that the client has sent.
    pub packets_received: u64,
    /// MQTT packets for it, those that still wait included.
    pub packets_sent: u64,
    /// Their bytes, without what the transport adds.
    pub bytes_received: u64,
    /// The same of what the transport has taken.
    pub bytes_sent: u64,
}

impl Conn {
    /// A connection that nothing has come on.
    pub fn new(id: ConnId, peer: SocketAddr, permit: Permit, link: Link) -> Self {
        Self {
            id,
            peer,
            permit,
            version: None,
            open: false,
            early: false,
            reading: true,
            held: 0,
            flushed_in: 0,
            closing: None,
            close_by: None,
            scheduled: false,
            eventful: false,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            traffic: Traffic::default(),
            link,
        }
    }
}

/// What carries a connection.
#[derive(Debug)]
pub enum Link {
    /// QUIC.
    Quic(Box<QuicLink>),
    /// TCP.
    Tcp(Box<TcpLink>),
}

impl Link {
    /// Its name in the metrics.
    pub fn transport(&self) -> metrics::Transport {
        match self {
            Self::Quic(_) => metrics::Transport::Quic,
            Self::Tcp(link) => link.transport(),
        }
    }

    /// Whether everything below MQTT is set up.
    pub fn is_established(&self) -> bool {
        match self {
            Self::Quic(link) => link.is_established(),
            Self::Tcp(link) => link.is_established(),
        }
    }

    /// Whether what comes is 0-RTT data, which somebody else may have recorded.
    pub fn is_early(&self) -> bool {
        matches!(self, Self::Quic(link) if link.is_early())
    }

    /// The client's verified certificate.
    pub fn certificate(&self) -> Option<Arc<ClientCertificate>> {
        match self {
            Self::Quic(link) => link.certificate(),
            Self::Tcp(link) => link.certificate().map(Arc::new),
        }
    }
}

/// What waits for the transport of one connection. Its size is bounded by the core, which counts
/// each byte from Send to Flushed.
#[derive(Debug, Default)]
pub struct Outbox {
    /// The rest of something that the transport took in part; goes first. Seldom there: 8 bytes, not 32.
    pub rest: Option<Box<Bytes>>,
    /// Frames since the last turn.
    pub frames: Vec<Frame>,
}

impl Outbox {
    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.rest.is_none() && self.frames.is_empty()
    }
}

#[derive(Debug)]
struct Place {
    generation: u32,
    conn: Option<Box<Conn>>,
}

/// All connections of a worker, in places that are reused. A place is 16 bytes, so that growth
/// moves little.
#[derive(Debug, Default)]
pub struct Conns {
    places: Vec<Place>,
    free: Vec<u32>,
    /// To be served in this turn, each once.
    scheduled: Vec<u32>,
    /// Empty frame lists, so that a delivery allocates none.
    spare: Vec<Vec<Frame>>,
    count: usize,
}

/// How many connections ahead of the one at work the next is asked for.
pub const PREFETCH_AHEAD: usize = 2;

/// Frame lists kept for reuse, at most.
const SPARE_LISTS: usize = 4096;
/// A list that grew beyond this is not kept.
const SPARE_LIST_FRAMES: usize = 256;

impl Conns {
    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes a place for a connection that `make` builds for it.
    pub fn insert(&mut self, make: impl FnOnce(ConnId) -> Conn) -> ConnId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                conn: None,
            });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        let id = ConnId {
            index,
            generation: place.generation,
        };
        place.conn = Some(Box::new(make(id)));
        self.count += 1;
        id
    }

    /// Gives the place back.
    pub fn remove(&mut self, index: u32) -> Option<Box<Conn>> {
        let place = self.places.get_mut(index as usize)?;
        let conn = place.conn.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        self.count -= 1;
        Some(conn)
    }

    /// The connection in a place.
    pub fn at(&mut self, index: u32) -> Option<&mut Conn> {
        self.places.get_mut(index as usize)?.conn.as_deref_mut()
    }

    /// The connection that `id` names, unless it is gone.
    pub fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        let place = self.places.get_mut(id.index as usize)?;
        if place.generation != id.generation {
            return None;
        }
        place.conn.as_deref_mut()
    }

    /// Serves the connection in this turn.
    pub fn schedule(&mut self, index: u32) {
        if let Some(conn) = self
            .places
            .get_mut(index as usize)
            .and_then(|p| p.conn.as_deref_mut())
        {
            conn.eventful = true;
            if !conn.scheduled {
                conn.scheduled = true;
                self.scheduled.push(index);
            }
        }
    }

    /// Asks for a connection that will be looked at soon.
    pub fn prefetch(&self, index: u32) {
        if let Some(conn) = self
            .places
            .get(index as usize)
            .and_then(|p| p.conn.as_deref())
        {
            prefetch(conn);
        }
    }

    /// Asks for what carries a connection that will be looked at soon.
    pub fn prefetch_link(&self, index: u32) {
        if let Some(Link::Quic(link)) = self
            .places
            .get(index as usize)
            .and_then(|p| p.conn.as_deref())
            .map(|conn| &conn.link)
        {
            prefetch::<QuicLink>(link);
        }
    }

    /// Appends to what `id` sends and serves it in this turn. A connection that is gone, or that
    /// is being closed, sends nothing more.
    pub fn send(&mut self, id: ConnId, frame: Frame) {
        let Some(place) = self.places.get_mut(id.index as usize) else {
            return;
        };
        let (true, Some(conn)) = (place.generation == id.generation, place.conn.as_deref_mut())
        else {
            return;
        };
        if conn.closing.is_some() {
            return;
        }
        if conn.outbox.frames.capacity() == 0
            && let Some(list) = self.spare.pop()
        {
            conn.outbox.frames = list;
        }
        conn.traffic.packets_sent += frame.packets() as u64;
        conn.outbox.frames.push(frame);
        if !conn.scheduled {
            conn.scheduled = true;
            self.scheduled.push(id.index);
        }
    }

    /// A connection and what carries it, if that is QUIC and it isn't being closed; it is served in this turn.
    fn quic(&mut self, id: ConnId) -> Option<(&mut Traffic, &mut QuicLink)> {
        let place = self.places.get_mut(id.index as usize)?;
        let conn = place.conn.as_deref_mut()?;
        if place.generation != id.generation || conn.closing.is_some() {
            return None;
        }
        if !conn.scheduled {
            conn.scheduled = true;
            self.scheduled.push(id.index);
        }
        match &mut conn.link {
            Link::Quic(link) => Some((&mut conn.traffic, link)),
            Link::Tcp(_) => None,
        }
    }

    /// The data streams of such a connection.
    fn data(&mut self, id: ConnId) -> Option<(&mut Traffic, &mut DataStreams)> {
        let (traffic, link) = self.quic(id)?;
        Some((traffic, link.data()?))
    }

    /// Data streams and datagrams may be read from now on.
    pub fn ready(&mut self, id: ConnId, streams: u16, datagrams: bool) {
        if let Some((_, link)) = self.quic(id) {
            link.set_ready(streams, datagrams);
            self.schedule(id.index);
        }
    }

    /// Appends to what a data stream sends.
    pub fn send_data(&mut self, id: ConnId, stream: DataStream, frame: Frame) {
        if let Some((traffic, data)) = self.data(id) {
            traffic.packets_sent += frame.packets() as u64;
            data.send(stream, frame);
        }
    }

    /// A PUBLISH that is to leave in a datagram.
    pub fn send_datagram(&mut self, id: ConnId, stream: Option<DataStream>, publish: Bytes) {
        if let Some((traffic, link)) = self.quic(id) {
            traffic.packets_sent += 1;
            link.send_datagram(stream, publish);
        }
    }

    /// Ends a data stream once everything has left.
    pub fn end_data(&mut self, id: ConnId, stream: DataStream) {
        if let Some((_, data)) = self.data(id) {
            data.end(stream);
        }
    }

    /// Resets a data stream.
    pub fn reset_data(&mut self, id: ConnId, stream: DataStream, reason: ReasonCode) {
        if let Some((_, link)) = self.quic(id) {
            let _gone = link.reset(stream, reason);
        }
    }

    /// Takes an emptied list back.
    pub fn recycle(&mut self, mut list: Vec<Frame>) {
        if self.spare.len() < SPARE_LISTS && (1..=SPARE_LIST_FRAMES).contains(&list.capacity()) {
            list.clear();
            self.spare.push(list);
        }
    }

    /// Moves what is scheduled to the end of `to`; each of them can be scheduled again at once.
    pub fn take_scheduled(&mut self, to: &mut Vec<u32>) {
        for &index in &self.scheduled {
            if let Some(conn) = self.places[index as usize].conn.as_deref_mut() {
                conn.scheduled = false;
            }
        }
        to.append(&mut self.scheduled);
    }

    /// Whether anything waits to be served.
    pub fn has_scheduled(&self) -> bool {
        !self.scheduled.is_empty()
    }

    /// Every place that is taken.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.places
            .iter()
            .enumerate()
            .filter(|(_, p)| p.conn.is_some())
            .map(|(i, _)| i as u32)
    }
}
