//! Data streams and datagrams of a QUIC connection (RFC 9000 §2, RFC 9221).
//!
//! The client opens them; each has an inbox and an outbox of its own, so that one that stands still holds up no other. A
//! connection that has none holds nothing here.

use super::{QuicLink, QuicSide, QuicSideSettings, StreamEnd, control_stream};
use crate::{
    limits::Limit,
    metrics::{DatagramDrop, WorkerMetrics},
    net::framing::Inbox,
    worker::conns::Outbox,
};
use bytes::Bytes;
use headgate_codec::{DecodeError, Packet, ReasonCode, Version};
use headgate_core::{DataEnd, DataStream, Frame};
use quinn_proto::{Dir, ReadError, SendDatagramError, Side, StreamId, VarInt};
use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

/// Credit for bidirectional streams before the client has opened a data stream. quinn-proto's tables of streams take the
/// same memory for one to three.
pub const STREAMS_AT_FIRST: u32 = 3;

/// Data streams that aren't read from, and for each of which the connection's window has the room that one can hold. With
/// more of them a client may hold up its other streams.
const STREAMS_STILL_MAX: u32 = 2;

/// What a connection may have.
#[derive(Clone, Copy, Debug)]
pub struct DataLimits {
    /// Data streams that are opened in a second.
    pub opens_per_second: u32,
    /// Bytes that may wait on a data stream; above it, it is not read from.
    pub send_buffer_bytes: u32,
}

/// The data streams of one connection.
#[derive(Debug, Default)]
pub struct DataStreams {
    open: Vec<Stream>,
    /// What the core has to hear.
    ended: Vec<(DataStream, DataEnd)>,
    /// PUBLISH packets that are to leave in datagrams; `None` = the control stream stands in.
    datagrams: Vec<(Option<DataStream>, Bytes)>,
    /// The core has said that datagrams may be read.
    takes_datagrams: bool,
    /// A datagram has come.
    arrived: bool,
    /// The datagram that is being taken apart.
    datagram: Inbox,
    /// Opened since `counted_from`.
    opened: u32,
    counted_from: Option<Instant>,
    /// The stream that is read first.
    first: usize,
}

#[derive(Debug)]
struct Stream {
    number: DataStream,
    inbox: Inbox,
    outbox: Outbox,
    /// Bytes in the outbox.
    waiting: usize,
    /// It was not read from once, because too much waited.
    stood_still: bool,
    /// There may be something to read.
    readable: bool,
    /// The transport takes nothing; wait for `Writable`.
    blocked: bool,
    /// It is ended once the outbox is empty.
    ending: bool,
    /// FIN is written.
    ended: bool,
}

/// What came on data streams and in datagrams.
#[derive(Debug)]
pub enum DataArrived {
    /// A packet on a data stream.
    Packet(DataStream, Packet),
    /// A packet in a datagram.
    Datagram(Packet),
    /// A data stream has ended.
    Ended(DataStream, DataEnd),
}

fn id_of(stream: DataStream) -> StreamId {
    StreamId::new(Side::Client, Dir::Bi, u64::from(stream.0.get()))
}

fn number_of(id: StreamId) -> Option<DataStream> {
    let index = u32::try_from(id.index()).ok().and_then(NonZeroU32::new);
    index.filter(|_| id.dir() == Dir::Bi).map(DataStream)
}

fn code(reason: ReasonCode) -> VarInt {
    VarInt::from_u32(u32::from(reason.0))
}

impl DataStreams {
    fn get(&mut self, number: DataStream) -> Option<&mut Stream> {
        self.open.iter_mut().find(|stream| stream.number == number)
    }

    fn of(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.get(number_of(id)?)
    }

    /// Appends to what a stream sends.
    pub fn send(&mut self, number: DataStream, frame: Frame) {
        if let Some(stream) = self.get(number).filter(|stream| !stream.ended) {
            stream.waiting += frame.encoded_len();
            stream.outbox.frames.push(frame);
        }
    }

    /// Ends a stream once everything has left.
    pub fn end(&mut self, number: DataStream) {
        if let Some(stream) = self.get(number) {
            stream.ending = true;
        }
    }

    /// One more was opened. How many that are within a second.
    fn count_opened(&mut self, now: Instant) -> u32 {
        let from = *self.counted_from.get_or_insert(now);
        if now.duration_since(from) >= Duration::from_secs(1) {
            (self.opened, self.counted_from) = (0, Some(now));
        }
        self.opened += 1;
        self.opened
    }

    /// Memory of the streams and of what waits on them, bytes.
    pub fn memory_bytes(&self) -> usize {
        let waiting = self.open.iter().map(|s| s.inbox.len() + s.waiting);
        let datagrams = self.datagrams.iter().map(|(_, bytes)| bytes.len());
        size_of::<Self>()
            + self.open.capacity() * size_of::<Stream>()
            + waiting.chain(datagrams).sum::<usize>()
    }

    /// `false`: there is none, or none any more.
    fn remove(&mut self, number: DataStream) -> bool {
        let before = self.open.len();
        self.open.retain(|stream| stream.number != number);
        let is_removed = self.open.len() < before;
        if self.open.is_empty() {
            self.open = Vec::new();
        }
        is_removed
    }
}

impl QuicLink {
    /// Data streams may be read from now on, and the client's datagrams. `streams`: as many bidirectional ones may be
    /// open, the control stream too.
    pub fn set_ready(&mut self, streams: u16, datagrams: bool) {
        self.streams_max = streams.max(1);
        if datagrams {
            self.data.get_or_insert_default().takes_datagrams = true;
        }
        let all = u32::from(self.streams_max);
        let opened = self.data.as_ref().and_then(|data| data.counted_from);
        self.set_credit(opened.map_or(all.min(STREAMS_AT_FIRST), |_| all));
    }

    fn set_credit(&mut self, streams: u32) {
        let streams = VarInt::from_u32(streams);
        self.connection.set_max_concurrent_streams(Dir::Bi, streams);
    }

    /// What is to leave in a datagram.
    pub fn send_datagram(&mut self, stream: Option<DataStream>, publish: Bytes) {
        let data = self.data.get_or_insert_default();
        data.datagrams.push((stream, publish));
    }

    /// A data stream, if there is one.
    pub fn data(&mut self) -> Option<&mut DataStreams> {
        self.data.as_deref_mut()
    }

    /// Resets a data stream in both directions. `false`: there is none. quinn-proto must not be asked to reset one that
    /// wasn't accepted: it counts those that were.
    pub fn reset(&mut self, number: DataStream, reason: ReasonCode) -> bool {
        let is_open = self.data.as_mut().is_some_and(|data| data.remove(number));
        if is_open {
            let id = id_of(number);
            // What the client has ended or reset itself is gone already.
            let _gone = self.connection.recv_stream(id).stop(code(reason));
            let _gone = self.connection.send_stream(id).reset(code(reason));
        }
        is_open
    }

    /// Takes a stream that the client has opened beside the control stream. `false`: it opens them too fast.
    pub(super) fn accept_data(
        &mut self,
        id: StreamId,
        settings: &QuicSideSettings,
        metrics: &WorkerMetrics,
    ) -> bool {
        let Some(number) = number_of(id) else {
            return false;
        };
        metrics.data_streams_opened.inc();
        let data = self.data.get_or_insert_default();
        let is_first = data.counted_from.is_none();
        let opened = data.count_opened(Instant::now());
        if opened > settings.data.opens_per_second {
            if opened == settings.data.opens_per_second + 1 {
                metrics.refused[Limit::StreamOpensPerSecond].inc();
                self.refused = true;
            }
            return false;
        }
        data.open.push(Stream {
            number,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            waiting: 0,
            stood_still: false,
            readable: true,
            blocked: false,
            ending: false,
            ended: false,
        });
        if is_first && self.is_ready() {
            self.set_credit(self.streams_max.into());
        }
        self.make_room(settings);
        true
    }

    /// The session is up, and its streams are read.
    fn is_ready(&self) -> bool {
        self.streams_max > 0
    }

    /// Keeps room for each data stream in the connection's window: as much as a connection has at first, and for one
    /// that stands still as much as it can hold, so that it leaves the others theirs.
    fn make_room(&mut self, settings: &QuicSideSettings) {
        let Some(data) = &self.data else { return };
        let open = data.open.len() as u32;
        let still = data.open.iter().filter(|s| s.stood_still).count() as u32;
        let still = still.min(STREAMS_STILL_MAX);
        let at_first = settings.receive_window_bytes.saturating_mul(open);
        let held = settings.receive_window_bytes_max.saturating_mul(still);
        if let Some(bytes) = self.window.reserve(at_first.saturating_add(held)) {
            self.connection.set_receive_window(VarInt::from_u32(bytes));
        }
    }

    /// A data stream can be read.
    pub(super) fn data_readable(&mut self, id: StreamId) {
        if let Some(stream) = self.data.as_mut().and_then(|data| data.of(id)) {
            stream.readable = true;
        }
    }

    /// A data stream can be written.
    pub(super) fn data_writable(&mut self, id: StreamId) {
        if let Some(stream) = self.data.as_mut().and_then(|data| data.of(id)) {
            stream.blocked = false;
        }
    }

    /// The client has everything that a data stream had for it.
    pub(super) fn data_finished(&mut self, id: StreamId) {
        if let (Some(number), Some(data)) = (number_of(id), &mut self.data)
            && data.remove(number)
        {
            data.ended.push((number, DataEnd::Delivered));
        }
    }

    /// The client reads nothing more from a data stream: it is over in both directions.
    pub(super) fn data_stopped(&mut self, id: StreamId) {
        if let Some(number) = number_of(id)
            && self.reset(number, ReasonCode::SUCCESS)
            && let Some(data) = &mut self.data
        {
            data.ended.push((number, DataEnd::Lost));
        }
    }

    /// Resets the newest streams, which the client has opened before it was known how few it may have.
    fn refuse_excess(&mut self, metrics: &WorkerMetrics) {
        let max = usize::from(self.streams_max).saturating_sub(1);
        while let Some(stream) = self.data.as_ref().and_then(|data| data.open.get(max)) {
            self.reset(stream.number, ReasonCode::QUOTA_EXCEEDED);
            metrics.refused[Limit::StreamsPerConnection].inc();
        }
    }

    /// A datagram has come.
    pub(super) fn datagram_arrived(&mut self) {
        self.data.get_or_insert_default().arrived = true;
    }

    /// There is something to do for data streams or datagrams.
    pub fn has_data(&self) -> bool {
        self.data.is_some()
    }

    /// Whether the client opens streams too fast; said once.
    pub fn take_refused(&mut self) -> bool {
        std::mem::take(&mut self.refused)
    }

    /// Places of the open data streams.
    pub fn data_places(&self) -> usize {
        self.data.as_ref().map_or(0, |data| data.open.len())
    }

    /// The next stream begins the next round.
    pub fn next_round(&mut self) {
        if let Some(data) = &mut self.data {
            data.first = data.first.wrapping_add(1);
        }
    }

    /// What has come that isn't a packet of a stream: ends of streams, then datagrams.
    ///
    /// # Errors
    /// A datagram holds something else than whole packets.
    pub fn arrived(
        &mut self,
        (version, bytes_max): (Option<Version>, u32),
        metrics: &WorkerMetrics,
    ) -> Result<Option<DataArrived>, DecodeError> {
        if !self.is_ready() {
            return Ok(None);
        }
        self.refuse_excess(metrics);
        let Some(data) = self.data.as_deref_mut() else {
            return Ok(None);
        };
        if let Some((number, how)) = data.ended.pop() {
            return Ok(Some(DataArrived::Ended(number, how)));
        }
        while data.arrived || !data.datagram.is_empty() {
            if data.datagram.is_empty() {
                let Some(bytes) = self.connection.datagrams().recv() else {
                    data.arrived = false;
                    break;
                };
                if !data.takes_datagrams {
                    metrics.datagrams_dropped[DatagramDrop::NotAskedFor].inc();
                    continue;
                }
                data.datagram.push(bytes);
            }
            match data.datagram.next(version, bytes_max)? {
                Some(packet) => return Ok(Some(DataArrived::Datagram(packet))),
                // A packet isn't continued in another datagram.
                None if !data.datagram.is_empty() => return Err(DecodeError::Truncated),
                None => {}
            }
        }
        Ok(None)
    }

    /// The next packet of the data stream in a place, counted from the one whose turn it is.
    ///
    /// # Errors
    /// What came on it is no MQTT.
    pub fn read_data(
        &mut self,
        place: usize,
        (version, bytes_max): (Option<Version>, u32),
        settings: &QuicSideSettings,
        received: &mut usize,
    ) -> Result<Option<DataArrived>, DecodeError> {
        let is_ready = self.is_ready();
        let Some(data) = self.data.as_deref_mut().filter(|_| is_ready) else {
            return Ok(None);
        };
        let count = data.open.len().max(1);
        let at = (data.first % count + place) % count;
        let Some(stream) = data.open.get_mut(at) else {
            return Ok(None);
        };
        // A client that doesn't take its acknowledgements isn't read from, on this stream.
        if stream.waiting > settings.data.send_buffer_bytes as usize {
            if !std::mem::replace(&mut stream.stood_still, true) {
                self.make_room(settings);
            }
            return Ok(None);
        }
        let number = stream.number;
        loop {
            if let Some(packet) = stream.inbox.next(version, bytes_max)? {
                return Ok(Some(DataArrived::Packet(number, packet)));
            }
            if !stream.readable {
                return Ok(None);
            }
            let mut recv = self.connection.recv_stream(id_of(number));
            let mut chunks = match recv.read(true) {
                Ok(chunks) => chunks,
                Err(_) => {
                    stream.readable = false;
                    return Ok(None);
                }
            };
            let next = chunks.next(READ_BYTES);
            // Window updates go out with the poll_transmit at the end of the turn.
            let _ = chunks.finalize();
            match next {
                Ok(Some(chunk)) => {
                    *received += chunk.bytes.len();
                    stream.inbox.push(chunk.bytes);
                }
                Ok(None) if stream.inbox.is_empty() => {
                    stream.readable = false;
                    return Ok(Some(DataArrived::Ended(number, DataEnd::Received)));
                }
                // It ends within a packet.
                Ok(None) => return Err(DecodeError::Truncated),
                Err(ReadError::Reset(_)) => {
                    self.reset(number, ReasonCode::SUCCESS);
                    return Ok(Some(DataArrived::Ended(number, DataEnd::Lost)));
                }
                Err(ReadError::Blocked) => {
                    stream.readable = false;
                    return Ok(None);
                }
            }
        }
    }
}

/// Bytes taken from a stream at a time.
const READ_BYTES: usize = 64 * 1024;

impl QuicSide {
    /// What else it knows.
    pub fn settings(&self) -> &QuicSideSettings {
        &self.settings
    }

    /// Sends what is to leave in datagrams. What doesn't fit into one is appended to its stream, `control` for the control
    /// stream; of the rest, `flushed` gets the bytes that are no longer waited for.
    pub fn write_datagrams(
        &mut self,
        link: &mut QuicLink,
        control: &mut Outbox,
        metrics: &WorkerMetrics,
        flushed: &mut Vec<(Option<DataStream>, u32)>,
    ) {
        let Some(data) = &mut link.data else { return };
        for (stream, publish) in std::mem::take(&mut data.datagrams) {
            let bytes = publish.len();
            match link.connection.datagrams().send(publish.clone(), false) {
                Ok(()) => metrics.publish_datagrams_sent.inc(),
                Err(SendDatagramError::Blocked(_)) => {
                    metrics.datagrams_dropped[DatagramDrop::SendBufferFull].inc();
                }
                // It is too large, or one side has none.
                Err(_) => {
                    metrics.datagrams_too_large.inc();
                    match stream {
                        None => control.frames.push(Frame::Bytes(publish)),
                        Some(number) => data.send(number, Frame::Bytes(publish)),
                    }
                    continue;
                }
            }
            flushed.push((stream, bytes as u32));
        }
    }

    /// Gives the transport what waits on data streams; appends what it has taken to `flushed`. `true`: one that wasn't read
    /// from can be read again.
    pub fn write_data(
        &mut self,
        link: &mut QuicLink,
        flushed: &mut Vec<(Option<DataStream>, u32)>,
    ) -> bool {
        let Some(data) = &mut link.data else {
            return false;
        };
        let limit = self.settings.data.send_buffer_bytes as usize;
        let mut resumes = false;
        let mut stopped = Vec::new();
        for stream in &mut data.open {
            let id = id_of(stream.number);
            if !stream.blocked && !stream.outbox.is_empty() {
                match self.write_to(&mut link.connection, id, &mut stream.outbox) {
                    Ok((taken, open)) => {
                        stream.blocked = !open;
                        resumes |= stream.waiting > limit && stream.waiting - taken <= limit;
                        stream.waiting -= taken;
                        if taken > 0 {
                            flushed.push((Some(stream.number), taken as u32));
                        }
                    }
                    Err(StreamEnd) => stopped.push(id),
                }
            }
            if stream.outbox.is_empty() {
                stream.outbox = Outbox::default();
                if stream.ending && !stream.ended {
                    stream.ended = true;
                    if link.connection.send_stream(id).finish().is_err() {
                        stopped.push(id);
                    }
                }
            }
        }
        for id in stopped {
            link.data_stopped(id);
            resumes = true;
        }
        resumes
    }

    /// Takes the streams that the client has opened, unless it opens them too fast.
    pub(super) fn accept_streams(&mut self, link: &mut QuicLink, metrics: &WorkerMetrics) {
        while let Some(id) = link.connection.streams().accept(Dir::Bi) {
            if id == control_stream() {
                link.control = true;
                link.readable = true;
            } else if !link.accept_data(id, &self.settings, metrics) {
                return;
            }
        }
    }
}
