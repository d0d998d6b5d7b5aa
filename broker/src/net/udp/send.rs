//! Sending in batches.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;

use quinn_proto::Transmit;

use super::UdpSocket;
use super::sys::{Outgoing, Part};

/// Messages per system call, and when [`SendBatch::is_full`] asks for one.
const MESSAGES_PER_CALL: usize = 64;
/// Bytes at which [`SendBatch::is_full`] asks for a flush, so that they are still in the CPU's cache.
const FLUSH_BYTES: usize = 256 << 10;
/// Bytes that wait at most while the kernel takes nothing.
const BACKLOG_BYTES_MAX: usize = 1 << 20;
/// Messages that wait at most while the kernel takes nothing.
const BACKLOG_MESSAGES_MAX: usize = 4096;
/// UDP_MAX_SEGMENTS: datagrams that the kernel cuts from one message.
const SEGMENTS_MAX: usize = 64;
/// The longest message that the kernel takes for cutting: an IPv4 packet less its headers.
const SEGMENTED_BYTES_MAX: usize = 65_507;

/// What became of the datagrams given to a [`SendBatch`]. Messages count as one, however many datagrams they are cut
/// into, unless it says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendCounters {
    /// Datagrams that the kernel took, each segment counted.
    pub datagrams: u64,
    /// Their bytes, without headers.
    pub bytes: u64,
    /// System calls.
    pub calls: u64,
    /// Calls that the kernel refused because the socket's send buffer was full.
    pub would_block: u64,
    /// Messages dropped, oldest first, because the kernel took nothing for so long that the batch was full.
    pub dropped_full: u64,
    /// Messages dropped because the destination refused them (ECONNREFUSED): nobody listens there any more.
    pub refused: u64,
    /// Messages dropped because there is no route, or no such source address.
    pub unreachable: u64,
    /// Messages dropped because a datagram is longer than the interface takes (EMSGSIZE).
    pub too_long: u64,
    /// Messages dropped because a firewall rule forbids them (EPERM, EACCES).
    pub forbidden: u64,
    /// Messages dropped because the kernel had no memory for them.
    pub no_memory: u64,
    /// Messages dropped for any other error of the kernel.
    pub other_errors: u64,
}

impl SendCounters {
    /// Messages dropped for any reason. QUIC sends again what matters.
    pub fn dropped(&self) -> u64 {
        self.dropped_full
            + self.refused
            + self.unreachable
            + self.too_long
            + self.forbidden
            + self.no_memory
            + self.other_errors
    }
}

/// Datagrams collected for sending with few system calls.
///
/// Memory: up to 1 MiB of payload in at most 4,096 messages, 0.4 MiB for the list of these, and 14 KiB for the call.
/// What the kernel doesn't take at once stays for the next flush; above the limits the oldest are dropped.
pub struct SendBatch {
    backlog: Backlog,
    outgoing: Outgoing,
}

impl SendBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self {
            backlog: Backlog::new(),
            outgoing: Outgoing::new(MESSAGES_PER_CALL),
        }
    }

    /// Copies the datagram `bytes`, or the train of datagrams of `transmit.segment_size` each, to the end of the batch.
    ///
    /// Never sends: ask [`SendBatch::is_full`] after it.
    pub fn push(&mut self, transmit: &Transmit, bytes: &[u8]) {
        self.backlog.push(transmit, bytes);
    }

    /// Whether it is time to flush: a system call's worth of messages has come together.
    pub fn is_full(&self) -> bool {
        self.backlog.queue.len() >= MESSAGES_PER_CALL || self.backlog.buffer.len() >= FLUSH_BYTES
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.backlog.queue.is_empty()
    }

    /// Messages that wait. Non-zero after a flush means that the socket's buffer is full: flush again when the socket
    /// is writable.
    pub fn len(&self) -> usize {
        self.backlog.queue.len()
    }

    /// Sends what the kernel takes without waiting; the number of datagrams. What concerns one destination only is
    /// counted, and that message skipped.
    ///
    /// # Errors
    /// Only those that say that the socket is none (EBADF, ENOTSOCK) or the call is wrong (EFAULT): bugs.
    pub fn flush(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let Self { backlog, outgoing } = self;
        backlog.flush(|buffer, parts| outgoing.send(socket.as_fd(), socket.ipv6, buffer, parts))
    }

    /// How many datagrams one message may hold: 64, or 1 once the kernel or the interface has turned out not to cut
    /// messages (GSO). Longer ones are sent anyway, only with more calls.
    pub fn max_segments(&self) -> usize {
        if self.backlog.gso { SEGMENTS_MAX } else { 1 }
    }

    /// What became of the messages so far.
    pub fn counters(&self) -> &SendCounters {
        &self.backlog.counters
    }

    /// Heap memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let parts = self.backlog.queue.capacity() + self.backlog.parts.capacity();
        self.backlog.buffer.capacity() + parts * size_of::<Part>() + self.outgoing.memory_bytes()
    }
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendBatch")
            .field("len", &self.len())
            .field("gso", &self.backlog.gso)
            .field("counters", self.counters())
            .finish_non_exhaustive()
    }
}

/// The messages that wait, and what is decided about them: everything but the system call.
struct Backlog {
    buffer: Vec<u8>,
    queue: VecDeque<Part>,
    /// The messages of the next call, cut where the kernel can't.
    parts: Vec<Part>,
    gso: bool,
    /// The kernel refused the first message in a way that may mean that it can't cut: try its first datagram alone.
    try_alone: bool,
    counters: SendCounters,
}

impl Backlog {
    fn new() -> Self {
        Self {
            buffer: Vec::new(),
            queue: VecDeque::new(),
            parts: Vec::with_capacity(MESSAGES_PER_CALL),
            gso: true,
            try_alone: false,
            counters: SendCounters::default(),
        }
    }

    fn push(&mut self, transmit: &Transmit, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.queue.len() >= BACKLOG_MESSAGES_MAX
            || self.buffer.len() + bytes.len() > BACKLOG_BYTES_MAX
        {
            self.make_room(bytes.len());
        }
        let segment_bytes = transmit
            .segment_size
            .filter(|&size| size > 0 && size < bytes.len());
        let message = Part {
            start: self.buffer.len(),
            len: bytes.len(),
            segment_bytes: segment_bytes.and_then(|size| u16::try_from(size).ok()),
            destination: transmit.destination,
            source_ip: transmit.src_ip,
            ecn_bits: transmit.ecn.map_or(0, |ecn| ecn as u8),
        };
        self.buffer.extend_from_slice(bytes);
        let joined = self.gso
            && self
                .queue
                .back_mut()
                .is_some_and(|last| join(last, &message));
        if !joined {
            self.queue.push_back(message);
        }
    }

    /// Drops the oldest messages until a quarter of both limits is free, so that the bytes need not be moved for each
    /// new message.
    fn make_room(&mut self, needed: usize) {
        let free_bytes = needed.max(BACKLOG_BYTES_MAX / 4);
        let free_messages = BACKLOG_MESSAGES_MAX / 4;
        while let Some(first) = self.queue.front() {
            let waiting_bytes = self.buffer.len() - first.start;
            let fits = waiting_bytes + free_bytes <= BACKLOG_BYTES_MAX
                && self.queue.len() + free_messages <= BACKLOG_MESSAGES_MAX;
            if fits {
                break;
            }
            self.queue.pop_front();
            self.try_alone = false;
            self.counters.dropped_full += 1;
        }
        let start = self
            .queue
            .front()
            .map_or(self.buffer.len(), |first| first.start);
        self.buffer.drain(..start);
        for part in &mut self.queue {
            part.start -= start;
        }
    }

    /// Sends with `send`, which is given the buffer and some parts of it and returns how many it sent (at least one)
    /// or the error of the first.
    fn flush(
        &mut self,
        mut send: impl FnMut(&[u8], &[Part]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let datagrams_before = self.counters.datagrams;
        while !self.queue.is_empty() {
            self.collect_parts();
            self.counters.calls += 1;
            match send(&self.buffer, &self.parts) {
                Ok(sent) => self.account(sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.counters.would_block += 1;
                    return Ok((self.counters.datagrams - datagrams_before) as usize);
                }
                Err(error) => self.skip(error)?,
            }
        }
        self.buffer.clear();
        Ok((self.counters.datagrams - datagrams_before) as usize)
    }

    fn collect_parts(&mut self) {
        self.parts.clear();
        for message in &self.queue {
            let limit = match message.segment_bytes.map(usize::from) {
                None => message.len,
                Some(segment) if self.gso && !self.try_alone => {
                    segment * (SEGMENTED_BYTES_MAX / segment).clamp(1, SEGMENTS_MAX)
                }
                Some(segment) => segment,
            };
            let mut done = 0;
            while done < message.len {
                if self.parts.len() == MESSAGES_PER_CALL {
                    return;
                }
                let len = limit.min(message.len - done);
                let segment_bytes = message
                    .segment_bytes
                    .filter(|&segment| usize::from(segment) < len);
                self.parts.push(Part {
                    start: message.start + done,
                    len,
                    segment_bytes,
                    ..*message
                });
                if self.try_alone {
                    return;
                }
                done += len;
            }
        }
    }

    fn account(&mut self, sent: usize) {
        if self.try_alone {
            self.try_alone = false;
            self.gso = false;
            tracing::info!(
                "the kernel or the interface does not segment UDP messages (GSO): sending them one by one"
            );
        }
        for part in &self.parts[..sent] {
            let segments = part
                .segment_bytes
                .map_or(1, |segment| part.len.div_ceil(segment.into()));
            self.counters.datagrams += segments as u64;
            self.counters.bytes += part.len as u64;
            let Some(message) = self.queue.front_mut() else {
                break;
            };
            message.start += part.len;
            message.len -= part.len;
            if message.len == 0 {
                self.queue.pop_front();
            }
        }
    }

    /// Drops the first message for `error`, unless that may be about its being a train.
    fn skip(&mut self, error: io::Error) -> io::Result<()> {
        let counters = &mut self.counters;
        let counter = match error.raw_os_error().unwrap_or(0) {
            libc::EBADF | libc::ENOTSOCK | libc::EFAULT => return Err(error),
            libc::EIO | libc::EINVAL if self.parts[0].segment_bytes.is_some() => {
                self.try_alone = true;
                return Ok(());
            }
            libc::ECONNREFUSED => &mut counters.refused,
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL => {
                &mut counters.unreachable
            }
            libc::EMSGSIZE => &mut counters.too_long,
            libc::EPERM | libc::EACCES => &mut counters.forbidden,
            libc::ENOBUFS | libc::ENOMEM => &mut counters.no_memory,
            _ => &mut counters.other_errors,
        };
        *counter += 1;
        self.try_alone = false;
        if let Some(message) = self.queue.pop_front() {
            tracing::debug!(destination = %message.destination, %error, "dropped an outgoing message");
        }
        Ok(())
    }
}

/// Makes `next` the end of the train `last`, if both are for the same socket and all datagrams but the last have the same
/// length: connections that share a peer's socket (a gateway's, a proxy's) then share a message to the kernel.
fn join(last: &mut Part, next: &Part) -> bool {
    let length = |part: &Part| part.segment_bytes.map_or(part.len, usize::from);
    let segment = length(last);
    let is_same_way = last.destination == next.destination
        && last.source_ip == next.source_ip
        && last.ecn_bits == next.ecn_bits;
    let is_full = last.len.is_multiple_of(segment);
    let fits = length(next) == segment || next.segment_bytes.is_none() && next.len < segment;
    let len = last.len + next.len;
    let is_short = len <= SEGMENTED_BYTES_MAX && len.div_ceil(segment) <= SEGMENTS_MAX;
    let Ok(segment_bytes) = u16::try_from(segment) else {
        return false;
    };
    if !(is_same_way && is_full && fits && is_short) {
        return false;
    }
    last.len = len;
    last.segment_bytes = Some(segment_bytes);
    true
}

#[cfg(test)]
mod tests;
