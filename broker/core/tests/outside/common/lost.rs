//! What is lost with a worker or a connection, and what the store has of it.

use headgate_core::{Completion, Input, RestoredSession};

use super::{Id, World};

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

    /// The network drops a connection.
    pub fn lose(&mut self, id: Id) {
        let wire = &mut self.wires[id];
        wire.gone = true;
        wire.unread.clear();
        let (worker, conn) = (wire.worker, wire.conn);
        self.handle(worker, Input::Closed { conn });
    }
}
