//! The way to one other worker while its ring is full.

use crate::mesh::{Mesh, Post};
use headgate_codec::QoS;
use headgate_core::{ConnId, Mesh as CoreMessage, Time, WorkerSlot};
use std::collections::VecDeque;

/// How far a worker may be behind, milliseconds: until then whoever publishes to it is not read from; then deliveries to
/// it with QoS 0 are dropped, and nobody waits for it any more.
pub const MESH_STALL_MS_MAX: u64 = 5_000;

/// Messages that may wait for one worker beyond its ring. The publishers are not read from meanwhile, so that this is
/// reached only by what they had in flight, and by QoS 1 and 2 to a worker that is too far behind.
pub const MESH_SPOOL_MESSAGES_MAX: usize = 16_384;

/// What waits for room in a ring, and who isn't read from because of it.
#[derive(Default)]
pub(super) struct Spool {
    posts: VecDeque<Spooled>,
    held: Vec<ConnId>,
    /// What waits has waited for too long.
    is_late: bool,
}

struct Spooled {
    post: Post,
    since: Time,
}

/// What becomes of something that found no room.
pub(super) struct Spooling {
    /// Its publisher isn't read from until there is some.
    pub(super) holds: bool,
    /// It doesn't wait.
    pub(super) dropped: Option<Post>,
}

/// What a round of tries has come to.
#[derive(Default)]
pub(super) struct Drained {
    /// Messages that wait no more.
    pub(super) gone: usize,
    /// Of these: dropped.
    pub(super) dropped: usize,
    /// Publishers that go on.
    pub(super) released: Vec<ConnId>,
}

impl Spool {
    /// Nothing waits: the ring can be tried.
    pub(super) fn is_empty(&self) -> bool {
        self.posts.is_empty()
    }

    /// Puts something behind what waits.
    pub(super) fn push(&mut self, post: Post, origin: Option<ConnId>, now: Time) -> Spooling {
        let is_delivery = !matches!(&post, Post::Core(message) if message.is_control());
        let is_full = self.posts.len() >= MESH_SPOOL_MESSAGES_MAX;
        let holder = origin.filter(|_| !self.is_late);
        self.held.extend(holder);
        let holds = holder.is_some();
        if is_delivery && (is_full || self.is_late && is_qos0(&post)) {
            let dropped = Some(post);
            return Spooling { holds, dropped };
        }
        self.posts.push_back(Spooled { post, since: now });
        let dropped = None;
        Spooling { holds, dropped }
    }

    /// Tries again to pass on what found no room; drops what may not wait for so long.
    pub(super) fn drain(
        &mut self,
        mesh: &Mesh,
        (from, to): (WorkerSlot, WorkerSlot),
        now: Time,
    ) -> Drained {
        let before = self.posts.len();
        while let Some(front) = self.posts.pop_front() {
            if let Err(post) = mesh.send(from, to, front.post) {
                let since = front.since;
                self.posts.push_front(Spooled { post, since });
                break;
            }
        }
        let waiting = self.posts.len();
        let is_late = |s: &Spooled| now.0.saturating_sub(s.since.0) > MESH_STALL_MS_MAX;
        self.is_late = self.posts.front().is_some_and(is_late);
        if self.is_late {
            self.posts.retain(|s| !is_qos0(&s.post));
        }
        let released = match self.is_late || self.posts.is_empty() {
            true => std::mem::take(&mut self.held),
            false => Vec::new(),
        };
        Drained {
            gone: before - self.posts.len(),
            dropped: waiting - self.posts.len(),
            released,
        }
    }
}

fn is_qos0(post: &Post) -> bool {
    matches!(post, Post::Core(CoreMessage::Deliver(d)) if d.message.qos == QoS::AtMostOnce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use headgate_core::{Delivery, Message};
    use std::sync::Arc;

    const WAY: (WorkerSlot, WorkerSlot) = (WorkerSlot(0), WorkerSlot(1));
    const CONN: ConnId = ConnId {
        index: 1,
        generation: 1,
    };

    fn delivery(qos: QoS) -> Post {
        let message = Message {
            topic: "t".into(),
            payload: "x".into(),
            qos,
            retain: false,
            expires_at: None,
            properties: None,
        };
        Post::Core(CoreMessage::Deliver(Box::new(Delivery {
            message: Arc::new(message),
            publisher: None,
            targets: Vec::new(),
            receipt: None,
            txn: None,
            weight: 0,
        })))
    }

    /// A ring that takes no delivery more.
    fn full_mesh() -> Arc<Mesh> {
        let mesh = Mesh::new(2);
        while mesh.send(WAY.0, WAY.1, delivery(QoS::AtMostOnce)).is_ok() {}
        mesh
    }

    #[test]
    fn publishers_wait_for_a_worker_until_it_is_too_late() {
        let (mesh, mut spool) = (full_mesh(), Spool::default());
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
            let pushed = spool.push(delivery(qos), Some(CONN), Time(0));
            assert!(pushed.holds && pushed.dropped.is_none());
        }
        let early = spool.drain(&mesh, WAY, Time(MESH_STALL_MS_MAX));
        assert_eq!((early.gone, early.released.len()), (0, 0));
        let late = spool.drain(&mesh, WAY, Time(MESH_STALL_MS_MAX + 1));
        assert_eq!((late.gone, late.dropped, late.released.len()), (1, 1, 2));
        // QoS 1 is kept, and holds nobody up any more; QoS 0 is not even kept.
        let now = Time(MESH_STALL_MS_MAX + 2);
        let kept = spool.push(delivery(QoS::AtLeastOnce), Some(CONN), now);
        assert!(!kept.holds && kept.dropped.is_none());
        let dropped = spool.push(delivery(QoS::AtMostOnce), Some(CONN), now);
        assert!(!dropped.holds && dropped.dropped.is_some());
        // The worker goes on, and everything is as before.
        while mesh.receive(WAY.0, WAY.1).is_some() {}
        let drained = spool.drain(&mesh, WAY, now);
        assert_eq!((drained.gone, drained.dropped), (2, 0));
        assert!(spool.is_empty());
        let again = spool.push(delivery(QoS::AtMostOnce), Some(CONN), now);
        assert!(again.holds && again.dropped.is_none());
    }

    #[test]
    fn what_waits_is_bounded() {
        let (mesh, mut spool) = (full_mesh(), Spool::default());
        let count = (0..2 * MESH_SPOOL_MESSAGES_MAX).filter(|_| {
            let pushed = spool.push(delivery(QoS::AtLeastOnce), None, Time(0));
            pushed.dropped.is_none()
        });
        assert_eq!(count.count(), MESH_SPOOL_MESSAGES_MAX);
        let late = spool.drain(&mesh, WAY, Time(10 * MESH_STALL_MS_MAX));
        assert_eq!(late.gone, 0, "QoS 1 waits for as long as it takes");
    }
}
