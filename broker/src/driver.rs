//! Executes the outputs of the core, in order, and brings the completions back as inputs.

mod spool;

use crate::{
    auth::desk::Desk,
    cluster::Directory,
    mesh::{Mesh, Post},
    metrics::{MessageDrop, WorkerMetrics},
    store::{LoadRequest, MAIL_PER_TURN, Store, StoreMail},
    worker::conns::Conns,
};
use headgate_codec::{ReasonCode, Text};
use headgate_core::{
    Account, AuthResult, Completion, ConnId, Core, Counters, Input, Mesh as CoreMessage, Output,
    Owner, Receipt, Time, WorkerSlot,
};
use spool::{Spool, Spooling};
use std::{net::IpAddr, sync::Arc};

pub use spool::{MESH_SPOOL_MESSAGES_MAX, MESH_STALL_MS_MAX};

/// One worker's core with everything that its outputs need.
pub struct Driver {
    slot: WorkerSlot,
    core: Core,
    out: Vec<Output>,
    /// The list that is being executed; swapped with `out`.
    executing: Vec<Output>,
    completions: Vec<Completion>,
    store: Box<dyn Store>,
    directory: Arc<dyn Directory>,
    desk: Desk,
    mesh: Arc<Mesh>,
    spools: Vec<Spool>,
    spooled: usize,
    /// Deliveries that were dropped although somebody waits for their receipt.
    refused: Vec<(WorkerSlot, Receipt, u32)>,
    /// What goes to other workers once the records of the same input are in the store's lane: what follows from it there
    /// comes behind them.
    posts: Vec<(WorkerSlot, Option<ConnId>, CoreMessage)>,
    /// Where in `out` the outputs of each input end.
    ends: Vec<usize>,
    /// The connection whose packet is being handled.
    origin: Option<ConnId>,
    /// Publishers that are not read from until the store has caught up.
    waiting: Vec<ConnId>,
    /// What is executed is what a session did that was restored.
    restoring: bool,
    /// What the kernel is to do about clients above their quota.
    penalties: Vec<(ConnId, Option<u8>)>,
    /// Where clients are that failed to authenticate.
    failed: Vec<IpAddr>,
    metrics: Arc<WorkerMetrics>,
}

impl Driver {
    /// A driver for the worker in `slot`.
    pub fn new(
        slot: WorkerSlot,
        core: Core,
        store: Box<dyn Store>,
        directory: Arc<dyn Directory>,
        desk: Desk,
        mesh: Arc<Mesh>,
        metrics: Arc<WorkerMetrics>,
    ) -> Self {
        let spools = (0..mesh.workers()).map(|_| Spool::default()).collect();
        Self {
            slot,
            core,
            out: Vec::with_capacity(256),
            executing: Vec::with_capacity(256),
            completions: Vec::new(),
            store,
            directory,
            desk,
            mesh,
            spools,
            spooled: 0,
            refused: Vec::new(),
            posts: Vec::new(),
            ends: Vec::new(),
            origin: None,
            waiting: Vec::new(),
            restoring: false,
            penalties: Vec::new(),
            failed: Vec::new(),
            metrics,
        }
    }

    /// Tells the core something and does what it wants done.
    pub fn input(&mut self, conns: &mut Conns, input: Input, now: Time) {
        if let Input::Closed { conn } = input {
            self.desk.forget(conn);
        }
        self.origin = match &input {
            Input::Packet { conn, .. }
            | Input::DataPacket { conn, .. }
            | Input::Datagram { conn, .. } => Some(*conn),
            _ => None,
        };
        self.handle(input, now);
        self.execute(conns, now);
        self.origin = None;
    }

    fn handle(&mut self, input: Input, now: Time) {
        self.core.handle(input, now, &mut self.out);
        self.ends.push(self.out.len());
    }

    /// Takes what the store has to say.
    pub fn stored(&mut self, conns: &mut Conns, now: Time) {
        for _ in 0..MAIL_PER_TURN {
            let Some(mail) = self.store.mail() else { break };
            let client_id = match &mail {
                StoreMail::Restore(session) => Some(session.client_id.clone()),
                _ => None,
            };
            self.restoring = client_id.is_some();
            self.handle(mail.into(), now);
            self.execute(conns, now);
            if let Some(client_id) = client_id {
                self.directory.restored(&client_id);
            }
        }
        if !self.waiting.is_empty() && !self.store.is_full() {
            for id in self.waiting.drain(..) {
                if let Some(conn) = conns.get(id) {
                    conn.held = conn.held.saturating_sub(1);
                    let index = conn.id.index;
                    conns.schedule(index);
                }
            }
        }
    }

    /// Whether the store has said something.
    pub fn has_stored(&self) -> bool {
        self.store.has_mail()
    }

    /// When the core wants [`Input::Timeout`].
    pub fn next_timeout(&self) -> Option<Time> {
        self.core.next_timeout()
    }

    /// What a client's session holds, if it is here.
    pub fn account(&mut self, owner: Owner, client_id: &Text) -> Option<Account> {
        self.core.account(owner, client_id)
    }

    /// What the core has counted.
    pub fn counters(&self) -> &Counters {
        self.core.counters()
    }

    /// Takes the answers of the threads that check passwords.
    pub fn authenticated(&mut self, conns: &mut Conns, now: Time) {
        if self.desk.has_answers() {
            self.desk.answers(&mut self.completions);
            self.execute(conns, now);
        }
    }

    /// Whether those threads have answered something.
    pub fn has_authenticated(&self) -> bool {
        self.desk.has_answers()
    }

    /// Penalties that the core has put on connections or taken off since.
    pub fn take_penalties(&mut self) -> Vec<(ConnId, Option<u8>)> {
        std::mem::take(&mut self.penalties)
    }

    /// The addresses of clients that have failed to authenticate since.
    pub fn take_failed(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.failed)
    }

    /// Whether something waits for room in another worker's ring.
    pub fn has_spooled(&self) -> bool {
        self.spooled > 0
    }

    fn execute(&mut self, conns: &mut Conns, now: Time) {
        loop {
            std::mem::swap(&mut self.out, &mut self.executing);
            let mut executing = std::mem::take(&mut self.executing);
            let mut outputs = executing.drain(..);
            let mut done = 0;
            for end in std::mem::take(&mut self.ends) {
                for output in outputs.by_ref().take(end - done) {
                    self.perform(conns, output);
                }
                done = end;
                self.store.end_unit();
                let mut posts = std::mem::take(&mut self.posts);
                for (to, origin, message) in posts.drain(..) {
                    self.post(conns, to, origin, message, now);
                }
                self.posts = posts;
            }
            debug_assert!(outputs.next().is_none(), "each input has its end");
            drop(outputs);
            self.executing = executing;
            self.restoring = false;
            self.completions
                .extend(std::iter::from_fn(|| self.store.done()));
            if self.completions.is_empty() && self.out.is_empty() && self.refused.is_empty() {
                return;
            }
            for (from, receipt, weight) in std::mem::take(&mut self.refused) {
                let message = CoreMessage::Stored {
                    receipt,
                    weight,
                    stored: false,
                };
                self.handle(Input::Mesh { from, message }, now);
            }
            for completion in std::mem::take(&mut self.completions) {
                if let Completion::Authenticated { conn, result, .. } = &completion
                    && is_failure(result)
                    && let Some(conn) = conns.get(*conn)
                    // 0-RTT data may come from anywhere.
                    && !conn.early
                {
                    self.failed.push(conn.peer.ip());
                }
                self.handle(Input::Completed(completion), now);
            }
        }
    }

    fn perform(&mut self, conns: &mut Conns, output: Output) {
        match output {
            Output::Send { conn, frame } => conns.send(conn, frame),
            Output::Ready { .. }
            | Output::SendData { .. }
            | Output::SendDatagram { .. }
            | Output::EndData { .. }
            | Output::ResetData { .. } => perform_beside(conns, output),
            Output::Close { conn, reason } => {
                self.desk.forget(conn);
                if let Some(conn) = conns.get(conn) {
                    conn.closing = Some(reason);
                    conn.open = false;
                    conn.close_by = None;
                    let index = conn.id.index;
                    conns.schedule(index);
                }
            }
            Output::Read { conn, enabled } => {
                if let Some(conn) = conns.get(conn) {
                    conn.reading = enabled;
                    let index = conn.id.index;
                    if enabled {
                        conns.schedule(index);
                    }
                }
            }
            Output::Mesh {
                to,
                origin,
                message,
            } => self.posts.push((to, origin, message)),
            Output::Persist {
                op,
                session,
                epoch,
                sequence,
                record,
            } => {
                self.store.persist(op, session, epoch, sequence, record);
                self.wait_for_store(conns);
            }
            Output::Join { txn, weight } => self.store.join(txn, weight),
            Output::Divide => self.store.end_unit(),
            Output::Unjoin { txn } => self.store.unjoin(txn),
            Output::Load {
                op,
                session,
                handle,
                after,
                messages_max,
                bytes_max,
            } => self.store.load(LoadRequest {
                op,
                session,
                handle,
                after,
                messages_max,
                bytes_max,
            }),
            Output::Claim {
                op,
                client_id,
                expected,
                new,
            } => {
                let (from, done) = ((self.slot, op), &mut self.completions);
                match self.restoring {
                    true => self.directory.claim_restored(from, client_id, new, done),
                    false => self.directory.claim(from, client_id, expected, new, done),
                }
            }
            Output::Recover { op, client_id } => self.store.recover(op, client_id),
            Output::Penalty { conn, class } => self.penalties.push((conn, class)),
            Output::Authenticate { op, conn, step } => {
                self.completions.extend(self.desk.step(op, conn, step));
            }
        }
    }

    fn post(
        &mut self,
        conns: &mut Conns,
        to: WorkerSlot,
        origin: Option<ConnId>,
        message: CoreMessage,
        now: Time,
    ) {
        let Some(spool) = self.spools.get_mut(usize::from(to.0)) else {
            debug_assert!(false, "the core names workers that exist");
            return;
        };
        let mut post = Post::Core(message);
        // What waits already goes first: the order within a pair holds.
        if spool.is_empty() {
            match self.mesh.send(self.slot, to, post) {
                Ok(()) => return,
                Err(back) => post = back,
            }
        }
        self.metrics.mesh_full.inc();
        let origin = origin.and_then(|id| conns.get(id));
        let Spooling { holds, dropped } = spool.push(post, origin.as_ref().map(|c| c.id), now);
        if let Some(conn) = origin.filter(|_| holds) {
            conn.held += 1;
        }
        match dropped {
            None => self.spooled += 1,
            Some(post) => {
                self.metrics.messages_dropped[MessageDrop::MeshFull].inc();
                self.refuse(to, post);
            }
        }
    }

    /// A publisher that causes records is not read from while too many wait.
    fn wait_for_store(&mut self, conns: &mut Conns) {
        if let Some(origin) = self.origin
            && self.store.is_full()
            && self.waiting.last() != Some(&origin)
            && let Some(conn) = conns.get(origin)
        {
            conn.held += 1;
            self.waiting.push(origin);
        }
    }

    /// A delivery that is dropped here answers for its receiver, so that the publisher's
    /// acknowledgement does not wait for ever.
    fn refuse(&mut self, by: WorkerSlot, post: Post) {
        if let Post::Core(CoreMessage::Deliver(delivery)) = post {
            if let Some(txn) = delivery.txn {
                self.store.unjoin(txn);
            }
            if let Some(receipt) = delivery.receipt {
                self.refused.push((by, receipt, delivery.weight));
            }
        }
    }

    /// Tries again to pass on what found no room; drops what is too old.
    pub fn drain_spools(&mut self, conns: &mut Conns, now: Time) {
        if self.spooled == 0 {
            return;
        }
        for (to, spool) in self.spools.iter_mut().enumerate() {
            let way = (self.slot, WorkerSlot(to as u8));
            let drained = spool.drain(&self.mesh, way, now);
            self.spooled -= drained.gone;
            self.metrics.messages_dropped[MessageDrop::MeshFull].add(drained.dropped as u64);
            for id in drained.released {
                if let Some(conn) = conns.get(id) {
                    conn.held = conn.held.saturating_sub(1);
                    let index = conn.id.index;
                    conns.schedule(index);
                }
            }
        }
    }
}

/// Outputs for data streams and datagrams.
fn perform_beside(conns: &mut Conns, output: Output) {
    match output {
        Output::Ready {
            conn,
            streams,
            datagrams,
        } => conns.ready(conn, streams, datagrams),
        Output::SendData {
            conn,
            stream,
            frame,
        } => conns.send_data(conn, stream, frame),
        Output::SendDatagram {
            conn,
            stream,
            publish,
        } => conns.send_datagram(conn, stream, publish),
        Output::EndData { conn, stream } => conns.end_data(conn, stream),
        Output::ResetData {
            conn,
            stream,
            reason,
        } => conns.reset_data(conn, stream, reason),
        _ => debug_assert!(false, "for the control stream: {output:?}"),
    }
}

/// Whether a client has shown something wrong; that the broker is busy is not its fault.
fn is_failure(result: &AuthResult) -> bool {
    let wrong = [
        ReasonCode::BAD_USER_NAME_OR_PASSWORD,
        ReasonCode::NOT_AUTHORIZED,
        ReasonCode::BAD_AUTHENTICATION_METHOD,
    ];
    matches!(result, AuthResult::Refused(reason) if wrong.contains(reason))
}
