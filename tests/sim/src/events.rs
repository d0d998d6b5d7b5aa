//! What may happen next between the parts of the world, and how it does.

use headgate_codec::Packet;
use headgate_core::{Completion, Input, StorageState, WorkerSlot};
use std::hash::Hash;

use super::draw::Rng;
use super::network::LinkId;
use super::operations::PACKET_BYTES_MAX;
use super::world::{Claim, World};

/// Something that may happen next.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) enum Event {
    Mesh(usize, usize),
    Claim(usize),
    Answer(usize),
    /// A commit is written.
    Write,
    /// What is written is safe.
    Sync,
    /// The disk works again.
    Repair,
    /// A worker learns what is safe.
    Persist(usize),
    /// A worker gets a part of a queue.
    Load(usize),
    /// A worker gets a session of a lost one.
    Recover(usize),
    Gone(usize),
    /// A session comes from the store.
    Restore,
    /// A worker learns that all sessions are there.
    Restored(usize),
    Backlog(usize),
    Up(LinkId),
    HangUp(LinkId),
    Flush(LinkId),
    Arrive(LinkId),
}

impl World {
    /// One thing happens, if anything can.
    pub(super) fn happen(&mut self, internal: bool, rng: &mut Rng) -> bool {
        self.list_events(internal);
        if self.events.is_empty() {
            return false;
        }
        let mut event = self.events[rng.below(self.events.len())];
        // Sessions take their time, so that clients do something meanwhile.
        if matches!(event, Event::Restore) && rng.below(32) > 0 {
            event = self.events[rng.below(self.events.len())];
        }
        event.hash(&mut self.trace);
        self.model.now = self.now;
        self.model.other_cause();
        match event {
            Event::Mesh(from, to) => {
                if let Some(message) = self.mesh[from * self.workers.len() + to].pop_front() {
                    self.feed(
                        to,
                        Input::Mesh {
                            from: WorkerSlot(from as u8),
                            message,
                        },
                    );
                }
            }
            Event::Claim(worker) => {
                let open = self.open_claims(worker);
                self.execute_claim(worker, open[rng.below(open.len())]);
            }
            Event::Answer(worker) => {
                let answers = &mut self.workers[worker].answers;
                let answer = answers.swap_remove(rng.below(answers.len()));
                self.feed(worker, Input::Completed(answer));
            }
            Event::Write => self.store.write(&self.shared.retained, rng),
            Event::Sync => {
                for (worker, op) in self.store.sync(rng) {
                    self.workers[worker].safe.push_back(op);
                }
            }
            Event::Repair => {
                self.store.has_failed = false;
                for worker in 0..self.workers.len() {
                    self.feed(worker, Input::Storage(StorageState::Ok));
                }
            }
            Event::Persist(worker) => self.persist(worker),
            Event::Load(index) => self.load(index),
            Event::Recover(index) => {
                let wanted = self.store.wanted.remove(index);
                let session = self.store.find(&wanted.client_id);
                let op = wanted.op;
                let answer = Completion::Recovered { op, session };
                self.feed(wanted.worker, Input::Completed(answer));
            }
            Event::Gone(worker) => {
                let gone = self.workers[worker].gone.remove(0);
                self.feed(worker, Input::WorkerGone { worker: gone });
            }
            Event::Restore => self.restore_next(),
            Event::Restored(worker) => self.tell_restored(worker),
            Event::Backlog(worker) => self.feed(worker, Input::Timeout),
            Event::Up(link) => self.go_up(link, rng),
            Event::HangUp(link) => self.hang_up(link),
            Event::Flush(link) => self.flush(link, rng),
            Event::Arrive(link) => self.arrive(link, rng),
        }
        true
    }

    /// Claims that can be answered: of a client whose session is still to come none can.
    fn open_claims(&self, worker: usize) -> Vec<usize> {
        let is_coming = |claim: &Claim| {
            let coming = self.restoring.iter();
            coming
                .into_iter()
                .any(|(_, s)| s.client_id == claim.client_id)
        };
        let claims = self.workers[worker].claims.iter().enumerate();
        let open = claims.filter(|(_, claim)| !is_coming(claim));
        open.map(|(index, _)| index).collect()
    }

    pub(super) fn list_events(&mut self, internal: bool) {
        let can_claim: Vec<bool> = (0..self.workers.len())
            .map(|w| !self.workers[w].claims.is_empty() && !self.open_claims(w).is_empty())
            .collect();
        let Self {
            restoring,
            events,
            mesh,
            workers,
            links,
            live,
            now,
            store,
            ..
        } = self;
        events.clear();
        for from in 0..workers.len() {
            for to in 0..workers.len() {
                if !mesh[from * workers.len() + to].is_empty() {
                    events.push(Event::Mesh(from, to));
                }
            }
        }
        for (i, worker) in workers.iter().enumerate() {
            let mut may = |can: bool, event| events.extend(can.then_some(event));
            may(can_claim[i], Event::Claim(i));
            may(worker.is_restored, Event::Restored(i));
            may(!worker.answers.is_empty(), Event::Answer(i));
            may(!worker.safe.is_empty(), Event::Persist(i));
            may(!worker.gone.is_empty(), Event::Gone(i));
            may(
                worker.core.next_timeout().is_some_and(|at| at <= *now),
                Event::Backlog(i),
            );
        }
        let mut may = |can: bool, event| events.extend(can.then_some(event));
        may(store.can_write(), Event::Write);
        may(store.can_sync(), Event::Sync);
        may(store.has_failed, Event::Repair);
        may(!restoring.is_empty(), Event::Restore);
        if let Some(index) = store.answerable() {
            may(true, Event::Load(index));
        }
        if let Some(index) = store.findable() {
            may(true, Event::Recover(index));
        }
        if internal {
            return;
        }
        live.retain(|link| !links[*link].is_over());
        for &link in live.iter() {
            let l = &links[link];
            let mut may = |can: bool, event| events.extend(can.then_some(event));
            may(l.can_go_up(), Event::Up(link));
            may(l.can_hang_up(), Event::HangUp(link));
            may(l.can_flush(), Event::Flush(link));
            may(l.can_arrive(), Event::Arrive(link));
        }
    }

    pub(super) fn execute_claim(&mut self, worker: usize, index: usize) {
        let claims = &mut self.workers[worker].claims;
        let Claim {
            op,
            client_id,
            expected,
            new,
        } = claims.remove(index);
        let current = self.directory.get(&client_id).copied();
        let result = if current == expected {
            match new {
                Some(new) => self.directory.insert(client_id, new),
                None => self.directory.remove(&client_id),
            };
            Ok(())
        } else {
            Err(current)
        };
        self.workers[worker]
            .answers
            .push(Completion::Claimed { op, result });
    }

    /// A part of a queue comes from the store.
    fn load(&mut self, index: usize) {
        let asked = self.store.asked.remove(index);
        let failed = self.store.has_failed;
        let (messages, more) = match failed {
            true => (Vec::new(), false),
            false => self.store.read(&asked),
        };
        let answer = Completion::Loaded {
            op: asked.op,
            handle: asked.handle,
            messages,
            more,
            failed,
        };
        self.feed(asked.worker, Input::Completed(answer));
    }

    /// A worker learns that records are safe.
    pub(super) fn persist(&mut self, worker: usize) {
        let Some(up_to) = self.workers[worker].safe.pop_front() else {
            return;
        };
        self.model.persisted(worker, up_to);
        self.feed(worker, Input::Completed(Completion::Persisted { up_to }));
    }

    /// Bytes of the client reach the server.
    pub(super) fn go_up(&mut self, link: LinkId, rng: &mut Rng) {
        let l = &mut self.links[link];
        l.resumes = false;
        if !l.up.is_empty() {
            let len = 1 + rng.below(l.up.len());
            let chunk = l.up.split_to(len).freeze();
            l.server.push(chunk);
        }
        loop {
            let l = &mut self.links[link];
            let (worker, conn) = (l.worker, l.conn);
            if !l.server_open || !l.reading {
                return;
            }
            match l.server.next(l.version, PACKET_BYTES_MAX) {
                Ok(None) => return,
                Ok(Some(packet)) => {
                    if let Packet::Connect(connect) = &packet {
                        l.version = Some(connect.version);
                    }
                    self.note(|| format!("  worker {worker} on {link} takes {packet:?}"));
                    self.model.handled(link, &packet);
                    self.feed(worker, Input::Packet { conn, packet });
                }
                Err(error) => {
                    let reason = error.reason();
                    self.note(|| format!("  worker {worker} on {link}: {error}"));
                    self.model.malformed(link, reason);
                    self.feed(worker, Input::Malformed { conn, reason });
                    assert!(
                        !self.links[link].server_open,
                        "{link}: open after what isn't MQTT"
                    );
                }
            }
        }
    }

    pub(super) fn hang_up(&mut self, link: LinkId) {
        let l = &mut self.links[link];
        l.server_open = false;
        let (worker, conn) = (l.worker, l.conn);
        self.note(|| format!("  worker {worker} on {link}: gone"));
        self.model.lost(link);
        self.feed(worker, Input::Closed { conn });
    }

    /// The transport takes bytes of the server.
    pub(super) fn flush(&mut self, link: LinkId, rng: &mut Rng) {
        let l = &mut self.links[link];
        let len = 1 + rng.below(l.outbox.len());
        let bytes = l.outbox.split_to(len);
        if l.client_open {
            l.in_flight.extend_from_slice(&bytes);
        }
        let (worker, conn, is_open) = (l.worker, l.conn, l.server_open);
        if is_open {
            self.model.flushed(link, len);
            self.feed(
                worker,
                Input::Flushed {
                    conn,
                    bytes: len as u32,
                },
            );
        }
    }

    /// Bytes of the server reach the client, or the end does.
    pub(super) fn arrive(&mut self, link: LinkId, rng: &mut Rng) {
        let l = &mut self.links[link];
        if l.in_flight.is_empty() {
            l.client_open = false;
            let client = &mut self.clients[l.client];
            if client.link == Some(link) {
                (client.link, client.is_up) = (None, false);
            }
            return;
        }
        let len = 1 + rng.below(l.in_flight.len());
        let chunk = l.in_flight.split_to(len).freeze();
        l.receiving.push(chunk);
        loop {
            let l = &mut self.links[link];
            let packet = match l.receiving.next(Some(l.client_version), u32::MAX) {
                Ok(Some(packet)) => packet,
                Ok(None) => return,
                Err(error) => panic!("{link}: the server doesn't send MQTT: {error}"),
            };
            let sent = l.sent.pop_front();
            let Some((same, expected)) = sent else {
                panic!("{link}: {packet:?} was never sent")
            };
            assert_eq!(packet, same, "{link}: changed on its way");
            let client = l.client;
            if self.clients[client].link != Some(link) {
                continue;
            }
            self.note(|| format!("  c{client} on {link} reads {packet:?}"));
            let met = (self.sessions[link], expected);
            for (answer, n) in self.clients[client].take(packet, met, &mut self.model) {
                self.send(link, &answer, n);
            }
        }
    }
}
