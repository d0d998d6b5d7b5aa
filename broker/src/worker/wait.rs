//! What a worker waits for when there is nothing to do.

use super::{Clock, FIRST_CONN, FIRST_LISTENER, SLEEP_MAX, UDP, WAKER, Worker, conns};
use crate::net::quic::QuicSide;
use conns::Link;
use mio::Token;
use std::{
    io,
    time::{Duration, Instant},
};

/// How soon a full socket or ring is tried again.
const RETRY: Duration = Duration::from_millis(1);

impl Worker {
    fn busy(&self) -> bool {
        self.udp_readable && self.quic.is_some()
            || !self.again.is_empty()
            || self.conns.has_scheduled()
            || self.mesh.has_mail(self.slot)
            || self.driver.has_authenticated()
            || self.driver.has_stored()
    }

    /// Waits until something comes or is due.
    pub(super) fn sleep(&mut self) -> io::Result<()> {
        let mut timeout = SLEEP_MAX;
        if self.quic.as_ref().is_some_and(QuicSide::has_unsent) || self.driver.has_spooled() {
            timeout = RETRY;
        }
        let clock = Clock::read(self.start);
        for at in [self.tcp.accepts_at(clock.now), self.begins_at(clock.now)] {
            let wait = |at: Instant| at.saturating_duration_since(clock.now);
            timeout = timeout.min(at.map_or(SLEEP_MAX, wait));
        }
        let now = clock.time().0;
        for at in [
            self.timers.next_ms(),
            self.driver.next_timeout().map(|t| t.0),
        ]
        .into_iter()
        .flatten()
        {
            timeout = timeout.min(Duration::from_millis(at.saturating_sub(now)));
        }
        self.mesh.set_sleeping(self.slot, true);
        if self.busy() {
            timeout = Duration::ZERO;
        }
        let polled = self.poll.poll(&mut self.events, Some(timeout));
        self.mesh.set_sleeping(self.slot, false);
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in &self.events {
            match event.token() {
                WAKER => {}
                UDP => self.udp_readable = true,
                Token(token) if token < FIRST_CONN => {
                    self.tcp.set_acceptable(token - FIRST_LISTENER);
                }
                Token(token) => {
                    let index = (token - FIRST_CONN) as u32;
                    if let Some(conns::Conn {
                        link: Link::Tcp(link),
                        ..
                    }) = self.conns.at(index)
                    {
                        let ended = event.is_read_closed() || event.is_error();
                        link.ready(event.is_readable(), event.is_writable(), ended);
                        self.conns.schedule(index);
                    }
                }
            }
        }
        Ok(())
    }
}
