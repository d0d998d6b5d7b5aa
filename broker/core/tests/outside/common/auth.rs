//! Authentications, which wait until the test answers them.

use super::{Id, World};
use headgate_core::{AuthResult, AuthStep, Completion, ConnId, Identity, Input, OpId};

/// An authentication that waits for its answer.
#[derive(Clone, Debug)]
pub struct Asked {
    pub worker: usize,
    pub op: OpId,
    pub conn: ConnId,
    pub step: AuthStep,
}

impl World {
    pub(super) fn ask(&mut self, worker: usize, (op, conn): (OpId, ConnId), step: AuthStep) {
        self.asked.push_back(Asked {
            worker,
            op,
            conn,
            step,
        });
    }

    /// Answers the oldest authentication.
    pub fn answer(&mut self, result: AuthResult) -> AuthStep {
        let asked = self
            .asked
            .pop_front()
            .expect("nobody is to be authenticated");
        self.answer_to(&asked, result);
        asked.step
    }

    /// Answers an authentication, even if nobody waits for that any more.
    pub fn answer_to(&mut self, asked: &Asked, result: AuthResult) {
        let (op, conn) = (asked.op, asked.conn);
        let answer = Completion::Authenticated { op, conn, result };
        self.handle(asked.worker, Input::Completed(answer));
    }

    /// Who the client of a connection is.
    pub fn identity(&mut self, id: Id) -> Option<Identity> {
        let (worker, conn) = (self.wires[id].worker, self.wires[id].conn);
        self.nodes[worker].core.identity(conn)
    }
}
