//! The directory: Client Identifier → {node, worker, slot, epoch}.
//!
//! The only way to change an entry is an asynchronous compare-and-set, so that an engine shared
//! by several nodes can stand behind the same trait later.

use dashmap::{DashMap, Entry};
use headgate_codec::Text;
use headgate_core::{Completion, OpId, Owner, WorkerSlot};

/// An asynchronous compare-and-set register per Client Identifier.
pub trait Directory: Send + Sync {
    /// Sets the owner of `client_id` to `new` (`None`: removes it) if it is `expected` now.
    ///
    /// The answer is a [`Completion::Claimed`] with the operation, pushed to `done` now or delivered to
    /// the worker later.
    fn claim(
        &self,
        from: (WorkerSlot, OpId),
        client_id: Text,
        expected: Option<Owner>,
        new: Option<Owner>,
        done: &mut Vec<Completion>,
    );

    /// The Claim of a worker that was given a session to restore: the session is `new`'s, if it is nobody's.
    fn claim_restored(
        &self,
        from: (WorkerSlot, OpId),
        client_id: Text,
        new: Option<Owner>,
        done: &mut Vec<Completion>,
    ) {
        self.claim(from, client_id, None, new, done);
    }

    /// A worker has taken the session that it was given to restore, or could not.
    fn restored(&self, _client_id: &Text) {}

    /// Forgets everything that `worker` of this node owned, because it was restarted after a panic: of which clients
    /// that were the sessions.
    fn forget_worker(&self, worker: WorkerSlot) -> Vec<Text>;

    /// The owner of a client's session, as far as this node knows; for those who look after the broker, nothing may
    /// depend on it.
    fn owner(&self, client_id: &Text) -> Option<Owner>;

    /// How many sessions have an owner.
    fn len(&self) -> usize;

    /// Whether no session has an owner.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The directory of a single node: a concurrent map, which answers at once.
#[derive(Debug, Default)]
pub struct LocalDirectory {
    /// By Client Identifier; a [`Text`] would keep the whole packet or record that it came in.
    owners: DashMap<Box<str>, Owner>,
}

impl LocalDirectory {
    /// Whether a client's session has an owner.
    pub fn contains(&self, client_id: &Text) -> bool {
        self.owners.contains_key(client_id.as_str())
    }
}

impl Directory for LocalDirectory {
    fn claim(
        &self,
        (_, op): (WorkerSlot, OpId),
        client_id: Text,
        expected: Option<Owner>,
        new: Option<Owner>,
        done: &mut Vec<Completion>,
    ) {
        let result = match self.owners.entry(client_id.as_str().into()) {
            Entry::Occupied(mut entry) => {
                let current = *entry.get();
                if expected != Some(current) {
                    Err(Some(current))
                } else {
                    match new {
                        Some(owner) => {
                            entry.insert(owner);
                        }
                        None => {
                            entry.remove();
                        }
                    }
                    Ok(())
                }
            }
            Entry::Vacant(entry) => {
                if expected.is_some() {
                    Err(None)
                } else {
                    if let Some(owner) = new {
                        entry.insert(owner);
                    }
                    Ok(())
                }
            }
        };
        done.push(Completion::Claimed { op, result });
    }

    fn forget_worker(&self, worker: WorkerSlot) -> Vec<Text> {
        let mut forgotten = Vec::new();
        self.owners.retain(|client_id, owner| {
            let stays = owner.worker != worker;
            if !stays {
                forgotten.push(Text::from(&**client_id));
            }
            stays
        });
        forgotten
    }

    fn owner(&self, client_id: &Text) -> Option<Owner> {
        self.owners.get(client_id.as_str()).map(|owner| *owner)
    }

    fn len(&self) -> usize {
        self.owners.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(worker: u8, epoch: u32) -> Owner {
        Owner {
            node: 0,
            worker: WorkerSlot(worker),
            slot: 7,
            epoch,
        }
    }

    fn claim(
        d: &LocalDirectory,
        expected: Option<Owner>,
        new: Option<Owner>,
    ) -> Result<(), Option<Owner>> {
        let mut done = Vec::new();
        d.claim(
            (WorkerSlot(0), OpId(1)),
            Text::from("c"),
            expected,
            new,
            &mut done,
        );
        match done.pop() {
            Some(Completion::Claimed {
                op: OpId(1),
                result,
            }) => result,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_the_expected_owner_is_replaced() {
        let d = LocalDirectory::default();
        assert_eq!(claim(&d, Some(owner(0, 1)), Some(owner(1, 2))), Err(None));
        assert_eq!(claim(&d, None, Some(owner(0, 1))), Ok(()));
        assert_eq!(claim(&d, None, Some(owner(1, 1))), Err(Some(owner(0, 1))));
        assert_eq!(claim(&d, Some(owner(0, 1)), Some(owner(1, 2))), Ok(()));
        assert_eq!(claim(&d, Some(owner(0, 1)), None), Err(Some(owner(1, 2))));
        assert_eq!(claim(&d, Some(owner(1, 2)), None), Ok(()));
        assert!(d.is_empty());
    }

    #[test]
    fn a_restarted_worker_owns_nothing() {
        let d = LocalDirectory::default();
        assert_eq!(claim(&d, None, Some(owner(3, 1))), Ok(()));
        assert!(d.forget_worker(WorkerSlot(2)).is_empty());
        assert_eq!(d.len(), 1);
        assert_eq!(d.forget_worker(WorkerSlot(3)), [Text::from("c")]);
        assert_eq!(d.len(), 0);
    }
}
