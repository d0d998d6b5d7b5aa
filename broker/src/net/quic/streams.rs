//! Reading and writing: the control stream, and what data streams have in common with it.

use super::{QuicLink, QuicSide, control_stream};
use crate::worker::{Clock, conns::Outbox};
use bytes::Bytes;
use headgate_core::Frame;
use quinn_proto::{Connection, ReadError, StreamId, VarInt, WriteError};

/// A stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamEnd;

impl QuicSide {
    /// The next chunk of the control stream: `Ok(None)` when there is none now, `Err` at its end.
    pub fn read(
        &self,
        link: &mut QuicLink,
        bytes_max: usize,
        clock: Clock,
    ) -> Result<Option<Bytes>, StreamEnd> {
        if !link.control || !link.readable {
            return Ok(None);
        }
        let mut stream = link.connection.recv_stream(control_stream());
        let mut chunks = match stream.read(true) {
            Ok(chunks) => chunks,
            Err(_) => return Err(StreamEnd),
        };
        let next = chunks.next(bytes_max);
        // Window updates go out with the poll_transmit at the end of the turn.
        let _ = chunks.finalize();
        match next {
            Ok(Some(chunk)) => {
                self.was_read(link, chunk.bytes.len(), clock);
                Ok(Some(chunk.bytes))
            }
            Ok(None) | Err(ReadError::Reset(_)) => Err(StreamEnd),
            Err(ReadError::Blocked) => {
                link.readable = false;
                Ok(None)
            }
        }
    }

    /// Bytes of a stream were read: the client may get a larger window.
    pub fn was_read(&self, link: &mut QuicLink, bytes: usize, clock: Clock) {
        let (round_trip, now_ms) = (link.connection.rtt(), clock.time().0);
        let bytes_max = self.settings.receive_window_bytes_max;
        if let Some(bytes) = link.window.read(bytes, bytes_max, round_trip, now_ms) {
            link.connection.set_receive_window(VarInt::from_u32(bytes));
        }
    }

    /// Gives the transport what waits; returns how many bytes it has taken.
    pub fn write(&mut self, link: &mut QuicLink, outbox: &mut Outbox) -> Result<usize, StreamEnd> {
        if !link.control || link.blocked || outbox.is_empty() {
            return Ok(0);
        }
        let (taken, open) = self.write_to(&mut link.connection, control_stream(), outbox)?;
        link.blocked = !open;
        Ok(taken)
    }

    /// Gives a stream what waits for it: how many bytes it has taken, and whether it takes more.
    pub(super) fn write_to(
        &mut self,
        connection: &mut Connection,
        id: StreamId,
        outbox: &mut Outbox,
    ) -> Result<(usize, bool), StreamEnd> {
        let mut stream = connection.send_stream(id);
        let mut taken = 0;
        let mut write = |bytes: Bytes, rest: &mut Option<Box<Bytes>>| -> Result<bool, StreamEnd> {
            let length = bytes.len();
            let mut chunk = [bytes];
            match stream.write_chunks(&mut chunk) {
                Ok(written) => {
                    taken += written.bytes;
                    if written.bytes < length {
                        let [left] = chunk;
                        *rest = Some(Box::new(left));
                        return Ok(false);
                    }
                    Ok(true)
                }
                Err(WriteError::Blocked) => {
                    let [left] = chunk;
                    *rest = Some(Box::new(left));
                    Ok(false)
                }
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => Err(StreamEnd),
            }
        };
        let mut open = true;
        if let Some(rest) = outbox.rest.take() {
            open = write(*rest, &mut outbox.rest)?;
        }
        if open && !outbox.frames.is_empty() {
            open = if let [Frame::Bytes(only)] = outbox.frames.as_slice() {
                // Shared with all its other receivers, as it is.
                write(only.clone(), &mut outbox.rest)?
            } else {
                self.joined.clear();
                for frame in &outbox.frames {
                    frame.append_to(&mut self.joined);
                }
                write(Bytes::copy_from_slice(&self.joined), &mut outbox.rest)?
            };
            outbox.frames.clear();
        }
        Ok((taken, open))
    }
}
