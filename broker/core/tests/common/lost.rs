//! What is lost with a worker, and what the store has of it.

use headgate_core::{Completion, Input, RestoredSession};

use super::World;

impl World {
    /// Answers a Recover: what the store has of the client.
    pub fn recover(&mut self, session: Option<Box<RestoredSession>>) {
        let (worker, op, _) = self.recovers.pop_front().expect("a session is looked for");
        self.handle(
            worker,
            Input::Completed(Completion::Recovered { op, session }),
        );
    }

    /// What is on its way between workers is lost.
    pub fn forget_mesh(&mut self) {
        self.mesh.clear();
    }
}
