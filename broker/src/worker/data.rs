//! Data streams and datagrams of QUIC connections, between the transport and the core.

use super::{Clock, Worker, conns::Link, serve::PACKETS_PER_SERVE};
use crate::{limits::Limit, net::quic::DataArrived};
use headgate_core::{ConnId, Input};

/// Packets taken from one data stream before the others of its connection have their turn.
const PACKETS_PER_STREAM: usize = 64;

impl Worker {
    /// Takes what has arrived on data streams and in datagrams to the core. Whether there may be more.
    pub(super) fn read_data(&mut self, index: u32, clock: Clock) -> bool {
        let (mut place, mut of_stream, mut more) = (0, 0, false);
        for _ in 0..PACKETS_PER_SERVE {
            let (Some(conn), Some(quic)) = (self.conns.at(index), &self.quic) else {
                return false;
            };
            let Link::Quic(link) = &mut conn.link else {
                return false;
            };
            if link.take_refused() {
                let limit = Limit::StreamOpensPerSecond;
                tracing::debug!(peer = %conn.peer, %limit, "closed");
                self.refuse(index, limit.reason(), clock);
                return false;
            }
            let is_paused = conn.closing.is_some() || !conn.reading || conn.held > 0;
            if !link.has_data() || !conn.open || is_paused {
                return false;
            }
            let expected = (conn.version, self.packet_bytes_max);
            let mut received = 0;
            let arrived = match link.arrived(expected, &self.metrics) {
                Ok(None) => link.read_data(place, expected, quic.settings(), &mut received),
                other => other,
            };
            if received > 0 {
                quic.was_read(link, received, clock);
            }
            let (id, places) = (conn.id, link.data_places());
            let transport = conn.link.transport();
            self.metrics.bytes_received[transport].add(received as u64);
            conn.traffic.bytes_received += received as u64;
            if let Ok(Some(DataArrived::Packet(..) | DataArrived::Datagram(_))) = &arrived {
                conn.traffic.packets_received += 1;
            }
            match arrived {
                Ok(Some(arrived)) => {
                    let input = input_of(id, arrived);
                    self.driver.input(&mut self.conns, input, clock.time());
                    of_stream += 1;
                    if of_stream < PACKETS_PER_STREAM {
                        continue;
                    }
                    more = true;
                }
                Ok(None) => {}
                Err(error) => {
                    self.malformed(index, &error, clock);
                    return false;
                }
            }
            (place, of_stream) = (place + 1, 0);
            if place >= places {
                self.next_round(index);
                return more;
            }
        }
        self.next_round(index);
        true
    }

    fn next_round(&mut self, index: u32) {
        if let Some(Link::Quic(link)) = self.conns.at(index).map(|conn| &mut conn.link) {
            link.next_round();
        }
    }

    /// Gives the transport what waits for data streams and datagrams.
    pub(super) fn flush_data(&mut self, index: u32, clock: Clock) {
        let (Some(conn), Some(quic)) = (self.conns.at(index), &mut self.quic) else {
            return;
        };
        let Link::Quic(link) = &mut conn.link else {
            return;
        };
        if !link.has_data() {
            return;
        }
        let mut flushed = std::mem::take(&mut self.flushed);
        quic.write_datagrams(link, &mut conn.outbox, &self.metrics, &mut flushed);
        let resumes = quic.write_data(link, &mut flushed);
        let bytes: u64 = flushed.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
        conn.traffic.bytes_sent += bytes;
        let (conn, open, transport) = (conn.id, conn.open, conn.link.transport());
        self.metrics.bytes_sent[transport].add(bytes);
        if resumes {
            self.conns.schedule(index);
        }
        for (stream, bytes) in flushed.drain(..) {
            if open {
                let input = match stream {
                    None => Input::Flushed { conn, bytes },
                    Some(stream) => Input::DataFlushed {
                        conn,
                        stream,
                        bytes,
                    },
                };
                self.driver.input(&mut self.conns, input, clock.time());
            }
        }
        self.flushed = flushed;
    }
}

fn input_of(conn: ConnId, arrived: DataArrived) -> Input {
    match arrived {
        DataArrived::Packet(stream, packet) => Input::DataPacket {
            conn,
            stream,
            packet,
        },
        DataArrived::Datagram(packet) => Input::Datagram { conn, packet },
        DataArrived::Ended(stream, how) => Input::DataEnded { conn, stream, how },
    }
}
