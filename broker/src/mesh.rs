//! Bounded rings between workers: one for each ordered pair, so that what one worker says to
//! another arrives in order.
//!
//! A ring never blocks and never grows. Control messages (takeovers) may use its last slots,
//! which deliveries and handed-over datagrams leave free. What does not fit comes back to the
//! sender, whose driver stops reading from the publisher.

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use headgate_core::{Mesh as CoreMessage, WorkerSlot};
use quinn_proto::EcnCodepoint;
use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering, fence},
    },
};

/// Messages that all rings towards one worker hold together, at most. A message is 16 bytes in
/// the ring; what it points to is bounded by the publishers' flow control.
pub const RING_MESSAGES_PER_WORKER: usize = 16_384;

/// Slots of each ring that only control messages may use.
pub const RING_CONTROL_RESERVE: usize = 64;

/// A QUIC datagram that arrived at a worker that does not own its connection.
#[derive(Debug)]
pub struct ForeignDatagram {
    /// Sender.
    pub source: SocketAddr,
    /// Address that it was sent to.
    pub destination: Option<IpAddr>,
    /// ECN codepoint (RFC 9000 §13.4).
    pub ecn: Option<EcnCodepoint>,
    /// UDP payload.
    pub data: Bytes,
}

/// What goes through a ring.
#[derive(Debug)]
pub enum Post {
    /// From core to core.
    Core(CoreMessage),
    /// Handed over by user space: a GRO train of several connections, or steering without BPF.
    Datagram(Box<ForeignDatagram>),
}

impl Post {
    fn is_control(&self) -> bool {
        matches!(self, Self::Core(message) if message.is_control())
    }
}

/// The receiving side's doorbell.
#[derive(Debug, Default)]
struct Doorbell {
    /// Set while the worker sleeps or is about to; whoever clears it rings.
    sleeping: AtomicBool,
    waker: RwLock<Option<mio::Waker>>,
}

/// All rings between `count` workers.
#[derive(Debug)]
pub struct Mesh {
    count: usize,
    rings: Vec<ArrayQueue<Post>>,
    doorbells: Vec<Doorbell>,
}

impl Mesh {
    /// Rings for `count` workers, with the slots 0 to `count` − 1.
    pub fn new(count: usize) -> Arc<Self> {
        let capacity = (RING_MESSAGES_PER_WORKER / count.max(1)).max(2 * RING_CONTROL_RESERVE);
        Arc::new(Self {
            count,
            rings: (0..count * count)
                .map(|_| ArrayQueue::new(capacity))
                .collect(),
            doorbells: (0..count).map(|_| Doorbell::default()).collect(),
        })
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.count
    }

    /// Sends, or gives the message back if the ring is full.
    pub fn send(&self, from: WorkerSlot, to: WorkerSlot, post: Post) -> Result<(), Post> {
        let ring = self.ring(from, to);
        // One producer per ring: its length can only shrink under our feet.
        if !post.is_control() && ring.len() + RING_CONTROL_RESERVE >= ring.capacity() {
            return Err(post);
        }
        ring.push(post)?;
        self.ring_doorbell(to);
        Ok(())
    }

    /// The next message from `from` to `to`.
    pub fn receive(&self, from: WorkerSlot, to: WorkerSlot) -> Option<Post> {
        self.ring(from, to).pop()
    }

    /// Whether anything waits for `to`.
    pub fn has_mail(&self, to: WorkerSlot) -> bool {
        (0..self.count).any(|from| !self.ring(WorkerSlot(from as u8), to).is_empty())
    }

    /// Installs the waker of worker `to`, also again after a restart.
    pub fn set_waker(&self, to: WorkerSlot, waker: mio::Waker) {
        let bell = &self.doorbells[usize::from(to.0)];
        *bell.waker.write().unwrap_or_else(PoisonError::into_inner) = Some(waker);
        bell.sleeping.store(false, Ordering::SeqCst);
    }

    /// Declares that `worker` is going to sleep. It must look at [`Mesh::has_mail`] once more
    /// between this call and sleeping.
    pub fn set_sleeping(&self, worker: WorkerSlot, sleeping: bool) {
        self.doorbells[usize::from(worker.0)]
            .sleeping
            .store(sleeping, Ordering::SeqCst);
        // Pairs with the fence in `ring_doorbell`: either we see the mail or the sender sees us.
        fence(Ordering::SeqCst);
    }

    /// Wakes worker `to` if it sleeps.
    pub fn ring_doorbell(&self, to: WorkerSlot) {
        fence(Ordering::SeqCst);
        let bell = &self.doorbells[usize::from(to.0)];
        if bell.sleeping.load(Ordering::Relaxed)
            && bell.sleeping.swap(false, Ordering::SeqCst)
            && let Some(waker) = &*bell.waker.read().unwrap_or_else(PoisonError::into_inner)
            && let Err(error) = waker.wake()
        {
            tracing::warn!(worker = to.0, %error, "a worker could not be woken; it wakes by itself in a moment");
        }
    }

    fn ring(&self, from: WorkerSlot, to: WorkerSlot) -> &ArrayQueue<Post> {
        &self.rings[usize::from(to.0) * self.count + usize::from(from.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(n: u8) -> Post {
        Post::Datagram(Box::new(ForeignDatagram {
            source: "127.0.0.1:1".parse().unwrap(),
            destination: None,
            ecn: None,
            data: Bytes::copy_from_slice(&[n]),
        }))
    }

    #[test]
    fn keeps_order_within_a_pair_and_pairs_apart() {
        let mesh = Mesh::new(3);
        let (a, b, c) = (WorkerSlot(0), WorkerSlot(1), WorkerSlot(2));
        for n in 0..10 {
            mesh.send(a, c, datagram(n)).unwrap();
            mesh.send(b, c, datagram(100 + n)).unwrap();
        }
        for (from, base) in [(a, 0), (b, 100)] {
            for n in 0..10 {
                match mesh.receive(from, c) {
                    Some(Post::Datagram(d)) => assert_eq!(d.data[0], base + n),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(!mesh.has_mail(c) && mesh.receive(a, c).is_none());
    }

    #[test]
    fn a_full_ring_refuses_data_and_still_takes_control() {
        let mesh = Mesh::new(2);
        let (a, b) = (WorkerSlot(0), WorkerSlot(1));
        let mut sent = 0;
        while mesh.send(a, b, datagram(0)).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, RING_MESSAGES_PER_WORKER / 2 - RING_CONTROL_RESERVE);
        let control = || {
            Post::Core(CoreMessage::Moved(Box::new(headgate_core::Moved {
                op: headgate_core::OpId(1),
                handed: headgate_core::Handed::Nothing,
            })))
        };
        for _ in 0..RING_CONTROL_RESERVE {
            mesh.send(a, b, control()).unwrap();
        }
        assert!(mesh.send(a, b, control()).is_err());
    }
}
