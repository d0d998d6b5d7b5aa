//! Crowds and swarms behind one face: load that doesn't care what carries it.

use std::time::{Duration, Instant};

use super::session::{ClientRef, Counts, Plan, Progress};
use super::{Crowd, Swarm};

/// Clients of one broker in one thread. What fails here is the broker's: it says no, closes a connection, or sends what
/// nobody asked for.
pub trait Clients {
    /// Begins to connect a client.
    ///
    /// # Errors
    /// When the broker doesn't listen.
    fn begin(&mut self, plan: Plan) -> Result<ClientRef, String>;

    /// Sends packets of a client.
    ///
    /// # Errors
    /// When its connection is lost.
    fn send(&mut self, client: ClientRef, packets: &[u8]) -> Result<(), String>;

    /// Ends the connection of a client; until then it can't be used again.
    fn close(&mut self, client: ClientRef);

    /// Waits until there is something to do, at most `wait`, and does it.
    ///
    /// # Errors
    /// A client has lost its connection, or was refused something.
    fn turn(&mut self, wait: Duration) -> Result<(), String>;

    /// What has happened so far.
    fn counts(&self) -> Counts;

    /// How far one client has come; `None` when it is gone.
    fn progress(&self, client: ClientRef) -> Option<Progress>;

    /// Connects clients, never more than `at_once` at the same time, and waits until all are ready.
    ///
    /// # Errors
    /// As the others, and when it isn't done within `patience`.
    fn connect_within(
        &mut self,
        plans: Vec<Plan>,
        at_once: usize,
        patience: Duration,
    ) -> Result<Vec<ClientRef>, String> {
        let (before, deadline) = (self.counts().ready, Instant::now() + patience);
        let count = plans.len();
        let mut plans = plans.into_iter();
        let mut begun = Vec::with_capacity(count);
        loop {
            let ready = self.counts().ready - before;
            if ready == count {
                return Ok(begun);
            }
            let free = at_once.saturating_sub(begun.len() - ready);
            for plan in plans.by_ref().take(free) {
                begun.push(self.begin(plan)?);
            }
            if Instant::now() > deadline {
                let seconds = patience.as_secs();
                return Err(format!(
                    "{ready} of {count} clients ready after {seconds} s"
                ));
            }
            self.turn(Duration::from_millis(20))?;
        }
    }
}

impl Clients for Crowd {
    fn begin(&mut self, plan: Plan) -> Result<ClientRef, String> {
        self.try_connect(plan).map_err(|error| error.to_string())
    }

    fn send(&mut self, client: ClientRef, packets: &[u8]) -> Result<(), String> {
        self.try_send(client, packets)
    }

    fn close(&mut self, client: ClientRef) {
        Crowd::close(self, client);
    }

    fn turn(&mut self, wait: Duration) -> Result<(), String> {
        self.try_turn(wait)
    }

    fn counts(&self) -> Counts {
        Crowd::counts(self)
    }

    fn progress(&self, client: ClientRef) -> Option<Progress> {
        Crowd::progress(self, client)
    }
}

impl Clients for Swarm {
    fn begin(&mut self, plan: Plan) -> Result<ClientRef, String> {
        Ok(self.connect_as(plan))
    }

    fn send(&mut self, client: ClientRef, packets: &[u8]) -> Result<(), String> {
        Swarm::send(self, client, packets.to_vec().into());
        Ok(())
    }

    fn close(&mut self, client: ClientRef) {
        Swarm::close(self, client);
    }

    fn turn(&mut self, wait: Duration) -> Result<(), String> {
        self.try_turn(wait)
    }

    fn counts(&self) -> Counts {
        Swarm::counts(self)
    }

    fn progress(&self, client: ClientRef) -> Option<Progress> {
        Swarm::progress(self, client)
    }
}
