//! Data streams and datagrams of a QUIC connection, on the client's side.

use super::{ClientError, Transport};
use bytes::{Bytes, BytesMut};
use headgate_codec::{Packet, Version, decode, frame_len};
use quinn::{Connection, RecvStream, SendStream};
use std::{collections::VecDeque, future::poll_fn, task::Poll};
use tokio::io::AsyncWriteExt;

/// Bytes read from a stream at a time.
const READ_BYTES: usize = 16 * 1024;

/// How a client uses a QUIC connection beside its control stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Data streams on which messages and subscriptions take turns; 0 = all on the control stream.
    pub streams: usize,
    /// QoS 0 messages go and come in datagrams where they fit.
    pub datagrams: bool,
}

/// One data stream.
#[derive(Debug)]
struct Lane {
    send: SendStream,
    recv: RecvStream,
    input: BytesMut,
    output: BytesMut,
}

/// Data streams, opened as they are used, and datagrams.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    connection: Option<Connection>,
    beside: Beside,
    open: Vec<Lane>,
    turn: usize,
    /// The server takes no datagrams of this client.
    mute: bool,
    /// Arrived and not taken apart; at most as many as one call has read.
    datagrams: VecDeque<Bytes>,
}

impl Lanes {
    /// # Errors
    /// Something else than QUIC carries the connection.
    pub(super) fn new(transport: &Transport, beside: Beside) -> Result<Self, ClientError> {
        if beside == Beside::default() {
            return Ok(Self::default());
        }
        let Transport::Quic { connection, .. } = transport else {
            let text = "data streams and datagrams without QUIC";
            return Err(ClientError::NotSupported(text.into()));
        };
        Ok(Self {
            connection: Some(connection.clone()),
            beside,
            ..Self::default()
        })
    }

    /// The server has not agreed to datagrams of the client: messages go on streams.
    pub(super) fn send_no_datagrams(&mut self) {
        self.mute = true;
    }

    /// Ends the data streams, and waits until the server has everything that was written on them.
    pub(super) async fn finish(&mut self) {
        for mut lane in self.open.drain(..) {
            // The server may have ended it; there is nothing to wait for then.
            if lane.send.finish().is_ok() {
                let _ = lane.send.stopped().await;
            }
        }
    }

    /// Whether something may come here.
    pub(super) fn is_used(&self) -> bool {
        !self.open.is_empty() || self.beside.datagrams
    }

    /// The data stream whose turn it is; `None` = the control stream. More than a few are allowed only once one is used.
    pub(super) async fn next(&mut self) -> Result<Option<usize>, ClientError> {
        let Some(connection) = self.connection.as_ref().filter(|_| self.beside.streams > 0) else {
            return Ok(None);
        };
        let at = self.turn % self.beside.streams;
        self.turn += 1;
        if self.open.len() <= at {
            let opened = connection.open_bi().await;
            let (send, recv) = opened.map_err(|error| closed(&error))?;
            self.open.push(Lane {
                send,
                recv,
                input: BytesMut::new(),
                output: BytesMut::new(),
            });
        }
        Ok(Some(at))
    }

    /// What is to be written on a data stream.
    pub(super) fn output(&mut self, at: usize) -> Option<&mut BytesMut> {
        self.open.get_mut(at).map(|lane| &mut lane.output)
    }

    /// Sends a whole packet in a datagram; `false`: it doesn't fit into one, or the server takes none.
    pub(super) fn send_datagram(&self, packet: &[u8]) -> Result<bool, ClientError> {
        let Some(connection) = self
            .connection
            .as_ref()
            .filter(|_| !self.mute && self.beside.datagrams)
        else {
            return Ok(false);
        };
        if connection
            .max_datagram_size()
            .is_none_or(|max| packet.len() > max)
        {
            return Ok(false);
        }
        let sent = connection.send_datagram(Bytes::copy_from_slice(packet));
        sent.map(|()| true).map_err(|error| closed(&error))
    }

    /// Writes what is queued. Can be cancelled: the rest is written the next time. Whether there was something.
    pub(super) async fn flush(&mut self) -> Result<bool, ClientError> {
        let mut any = false;
        for lane in &mut self.open {
            while !lane.output.is_empty() {
                any = true;
                let written = lane.send.write_buf(&mut lane.output).await;
                written.map_err(|error| closed(&error))?;
            }
        }
        Ok(any)
    }

    /// Takes a packet from what has arrived, and the data stream that it has come on.
    pub(super) fn buffered(
        &mut self,
        version: Version,
        bytes_max: u32,
    ) -> Result<Option<(Option<usize>, Packet)>, ClientError> {
        while let Some(datagram) = self.datagrams.front_mut() {
            match decode(datagram, Some(version), bytes_max)? {
                Some(packet) => return Ok(Some((None, packet))),
                None => drop(self.datagrams.pop_front()),
            }
        }
        for (at, lane) in self.open.iter_mut().enumerate() {
            if let Some(len) = frame_len(&lane.input, bytes_max)?
                && len <= lane.input.len()
            {
                let mut frame = lane.input.split_to(len).freeze();
                let packet = decode(&mut frame, Some(version), bytes_max)?;
                return Ok(packet.map(|packet| (Some(at), packet)));
            }
        }
        Ok(None)
    }

    /// Waits for something on one of them. Can be cancelled without losing anything.
    pub(super) async fn read(&mut self) -> Result<(), ClientError> {
        let datagrams = self.connection.clone().filter(|_| self.beside.datagrams);
        let (open, arrived) = (&mut self.open, &mut self.datagrams);
        let streams = poll_fn(|context| {
            for lane in &mut *open {
                let mut chunk = [0; READ_BYTES];
                match lane.recv.poll_read(context, &mut chunk) {
                    Poll::Ready(Ok(0)) => {
                        let reason = Some("the server ended a data stream".into());
                        return Poll::Ready(Err(ClientError::Closed { reason }));
                    }
                    Poll::Ready(Ok(len)) => {
                        lane.input.extend_from_slice(&chunk[..len]);
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(closed(&error))),
                    Poll::Pending => {}
                }
            }
            Poll::Pending
        });
        let Some(connection) = datagrams else {
            return streams.await;
        };
        tokio::select! {
            read = streams => read,
            datagram = connection.read_datagram() => {
                arrived.push_back(datagram.map_err(|error| closed(&error))?);
                Ok(())
            }
        }
    }
}

fn closed(error: &impl ToString) -> ClientError {
    let reason = Some(error.to_string());
    ClientError::Closed { reason }
}
