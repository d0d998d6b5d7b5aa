//! The executor of the cores' outputs, which shows each of them to the model.

use headgate_codec::{Packet, ReasonCode, decode};
use headgate_core::{AuthResult, Completion, ConnId, Granted, Input, Mesh, OpId, Output, Record};
use std::hash::Hash;

use super::network::{LinkId, bytes_of};
use super::store::{Asked, Kept, Unit, Wanted};
use super::world::{Claim, World};

/// Outputs of one input, at most.
const OUTPUTS_MAX: usize = 4_096;

impl World {
    /// The core of a worker takes something in; what it puts out is done.
    pub(super) fn feed(&mut self, worker: usize, input: Input) {
        let mut out = std::mem::take(&mut self.out);
        self.workers[worker].core.handle(input, self.now, &mut out);
        assert!(
            out.len() <= OUTPUTS_MAX,
            "{} outputs of one input",
            out.len()
        );
        for output in out.drain(..) {
            self.sense(&output);
            self.perform(worker, output);
        }
        self.out = out;
        let unit = std::mem::take(&mut self.unit);
        self.store.push(Unit { worker, ..unit });
        // It knows what this input has recorded.
        self.loads.drain(..).for_each(|asked| self.store.ask(asked));
        let wanted = self.recoveries.drain(..);
        wanted.for_each(|wanted| self.store.look_for(wanted));
    }

    /// A will shows for the first time.
    pub(super) fn sense(&mut self, output: &Output) {
        match output {
            Output::Mesh {
                message: Mesh::Deliver(delivery),
                ..
            } => self.model.sensed(&delivery.message.payload),
            Output::Persist {
                record: Record::Queued { message, .. } | Record::Retained { message },
                ..
            } => self.model.sensed(&message.payload),
            _ => {}
        }
    }

    pub(super) fn perform(&mut self, worker: usize, output: Output) {
        match output {
            Output::Send { conn, frame } => self.transmit(worker, conn, &bytes_of(&frame)),
            Output::Close { conn, reason } => self.close(worker, conn, reason),
            Output::Read { conn, enabled } => {
                if let Some(link) = self.link_of(worker, conn) {
                    (self.links[link].reading, self.links[link].resumes) = (enabled, enabled);
                }
            }
            Output::Ready { .. } => {}
            // The clients of the simulation open no data streams.
            Output::SendData { .. }
            | Output::SendDatagram { .. }
            | Output::EndData { .. }
            | Output::ResetData { .. } => panic!("for a client without data streams: {output:?}"),
            Output::Mesh { to, message, .. } => {
                let to = usize::from(to.0);
                assert_ne!(to, worker, "a core doesn't send to itself: {message:?}");
                self.mesh[worker * self.workers.len() + to].push_back(message);
            }
            Output::Persist {
                op,
                session,
                epoch,
                sequence,
                record,
            } => {
                let kept = Kept {
                    session,
                    epoch,
                    sequence,
                    record,
                };
                self.record(worker, op, kept);
            }
            Output::Join { txn, weight } => self.unit.joins.push((txn, weight)),
            Output::Unjoin { txn } => self.store.unjoin(txn),
            Output::Divide => {
                let unit = std::mem::take(&mut self.unit);
                self.store.push(Unit { worker, ..unit });
            }
            Output::Load {
                op,
                session,
                handle,
                after,
                messages_max,
                bytes_max,
            } => {
                let limits = (messages_max, bytes_max);
                let asked = Asked::new(worker, (op, handle), (session, after), limits);
                self.loads.push(asked);
            }
            Output::Recover { op, client_id } => {
                self.recoveries.push(Wanted::new(worker, op, client_id));
            }
            Output::Penalty { .. } => panic!("no class has a rate"),
            // Everybody is let in, some time.
            Output::Authenticate { op, conn, .. } => {
                let result = AuthResult::Granted(Granted::default());
                let answer = Completion::Authenticated { op, conn, result };
                self.workers[worker].answers.push(answer);
            }
            Output::Claim {
                op,
                client_id,
                expected,
                new,
            } => {
                self.workers[worker].claims.push(Claim {
                    op,
                    client_id,
                    expected,
                    new,
                });
            }
        }
    }

    fn close(&mut self, worker: usize, conn: ConnId, reason: ReasonCode) {
        let Some(link) = self.link_of(worker, conn) else {
            panic!("nobody is closed")
        };
        self.note(|| format!("  worker {worker} on {link} closes: {reason:?}"));
        (link, reason.0).hash(&mut self.trace);
        self.model.closed(link, reason);
        self.links[link].server_open = false;
    }

    /// A record joins the others of the same input.
    fn record(&mut self, worker: usize, op: OpId, kept: Kept) {
        assert!(self.workers[worker].last_record < op, "operations count up");
        self.workers[worker].last_record = op;
        self.unit.last = Some(op);
        self.note(|| {
            let (session, sequence) = (kept.session.counter, kept.sequence);
            format!(
                "  worker {worker} records {session} {sequence}: {:?}",
                kept.record
            )
        });
        self.model
            .persisting(worker, op, kept.session, &kept.record);
        self.unit.records.push(kept);
    }

    pub(super) fn link_of(&self, worker: usize, conn: ConnId) -> Option<LinkId> {
        let link = *self.by_conn.get(&(worker, conn.index))?;
        (self.links[link].conn == conn && self.links[link].server_open).then_some(link)
    }

    pub(super) fn transmit(&mut self, worker: usize, conn: ConnId, bytes: &bytes::Bytes) {
        let Some(link) = self.link_of(worker, conn) else {
            panic!("sent to nobody: {bytes:?}")
        };
        (link, &bytes[..]).hash(&mut self.trace);
        let version = self.links[link].version;
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            let before = rest.len();
            let packet = match decode(&mut rest, version, u32::MAX) {
                Ok(Some(packet)) => packet,
                other => panic!("{link}: the server doesn't send MQTT: {other:?} of {bytes:?}"),
            };
            self.note(|| format!("  worker {worker} on {link} sends {packet:?}"));
            if let Packet::Publish(publish) = &packet {
                self.model.sensed(&publish.payload);
            }
            let expected = self.model.emitted(link, &packet, before - rest.len());
            if let Packet::ConnAck(_) = &packet {
                self.sessions[link] = self.model.session_of(link);
            }
            self.links[link].sent.push_back((packet, expected));
        }
        self.links[link].outbox.extend_from_slice(bytes);
    }
}
