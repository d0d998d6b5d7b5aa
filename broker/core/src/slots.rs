//! Where sessions live: a slab with generations, and the handles by which the topic table and
//! other workers name a place in it.

use headgate_codec::Text;

use crate::{Owner, Session, Takeover, Time, WorkerSlot, acquire::Acquire};

/// A session's place in the topic table: worker slot (8 bits), place in the worker's slab (24),
/// generation of the place (24); 56 bits together, never 0 because generations start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle(pub(crate) u64);

const PART_MAX: u32 = 0x00ff_ffff;

impl Handle {
    pub(crate) fn new(worker: WorkerSlot, slot: u32, generation: u32) -> Self {
        Self(
            u64::from(worker.0) << 48
                | u64::from(slot & PART_MAX) << 24
                | u64::from(generation & PART_MAX),
        )
    }

    pub(crate) fn worker(self) -> WorkerSlot {
        WorkerSlot((self.0 >> 48) as u8)
    }

    pub(crate) fn slot(self) -> u32 {
        (self.0 >> 24) as u32 & PART_MAX
    }

    pub(crate) fn generation(self) -> u32 {
        self.0 as u32 & PART_MAX
    }
}

/// What is in a place.
pub(crate) enum Slot {
    /// Nothing; the next free place.
    Free(Option<u32>),
    /// Reserved for a client whose CONNECT is being completed.
    Acquiring(Box<Acquire>),
    /// A session.
    Live(Box<Session>),
    /// A session without a connection, in one piece.
    Parked(Box<[u8]>),
    /// A session that has moved: where to, and until when late deliveries are sent on.
    Moved(Box<Forward>),
}

/// Where a session has gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forward {
    pub(crate) to: Handle,
    pub(crate) until: Time,
}

struct Entry {
    generation: u32,
    slot: Slot,
}

/// The slab of one worker.
pub(crate) struct Slots {
    worker: WorkerSlot,
    entries: Vec<Entry>,
    free: Option<u32>,
    used: u32,
    /// Places whose sessions may be packed again.
    pub(crate) unparked: Vec<u32>,
    max: u32,
    first_generation: u32,
}

impl Slots {
    /// At most `max` places. Handles of an earlier `incarnation` of the worker name none of them.
    pub(crate) fn new(worker: WorkerSlot, max: u32, incarnation: u8) -> Self {
        let first_generation = (u32::from(incarnation) << 16) + 1;
        Self {
            worker,
            entries: Vec::new(),
            free: None,
            used: 0,
            unparked: Vec::new(),
            max: max.min(PART_MAX),
            first_generation,
        }
    }

    /// Whose slab it is.
    pub(crate) fn worker(&self) -> WorkerSlot {
        self.worker
    }

    /// A handle of a former incarnation of the worker.
    pub(crate) fn is_former(&self, handle: Handle) -> bool {
        handle.worker() == self.worker && handle.generation() < self.first_generation
    }

    /// Takes a place and puts what `make` makes of its number and handle there; `None` = full.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(u32, Handle) -> Slot) -> Option<u32> {
        self.place_with(self.max, make)
    }

    /// Takes a place for what was promised one before, whatever the limit says now; `None` = there are no more numbers.
    pub(crate) fn restore_with(&mut self, make: impl FnOnce(u32, Handle) -> Slot) -> Option<u32> {
        self.place_with(PART_MAX, make)
    }

    fn place_with(&mut self, max: u32, make: impl FnOnce(u32, Handle) -> Slot) -> Option<u32> {
        if self.used >= max {
            return None;
        }
        let index = match self.free {
            Some(index) => {
                if let Slot::Free(next) = self.entries[index as usize].slot {
                    self.free = next;
                }
                index
            }
            None => {
                self.entries.push(Entry {
                    generation: self.first_generation,
                    slot: Slot::Free(None),
                });
                (self.entries.len() - 1) as u32
            }
        };
        self.used += 1;
        self.entries[index as usize].slot = make(index, self.handle(index));
        Some(index)
    }

    /// The handle of what is in a place now.
    pub(crate) fn handle(&self, index: u32) -> Handle {
        Handle::new(self.worker, index, self.entries[index as usize].generation)
    }

    /// Frees a place and returns what was there. Its handle names nothing from now on.
    pub(crate) fn remove(&mut self, index: u32) -> Slot {
        let entry = &mut self.entries[index as usize];
        entry.generation = match (entry.generation + 1) & PART_MAX {
            0 => 1,
            generation => generation,
        };
        self.used -= 1;
        let slot = std::mem::replace(&mut entry.slot, Slot::Free(self.free));
        self.free = Some(index);
        slot
    }

    /// Puts something else into a place; its handle stays.
    pub(crate) fn replace(&mut self, index: u32, slot: Slot) -> Slot {
        std::mem::replace(&mut self.entries[index as usize].slot, slot)
    }

    /// What is in a place, as it is.
    pub(crate) fn at(&mut self, index: u32) -> Option<&mut Slot> {
        self.entries.get_mut(index as usize).map(|e| &mut e.slot)
    }

    /// What is in a place; a session comes to life.
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Slot> {
        let entry = self.entries.get_mut(index as usize)?;
        if entry
            .slot
            .wake(Handle::new(self.worker, index, entry.generation))
        {
            self.unparked.push(index);
        }
        Some(&mut entry.slot)
    }

    /// Once this input is done, the session in a place may be packed.
    pub(crate) fn park_later(&mut self, index: u32) {
        self.unparked.push(index);
    }

    /// The session in a place.
    pub(crate) fn session(&mut self, index: u32) -> Option<&mut Session> {
        match self.get_mut(index) {
            Some(Slot::Live(session)) => Some(session),
            _ => None,
        }
    }

    /// What a handle names, if that is still there; a session comes to life.
    pub(crate) fn by_handle(&mut self, handle: Handle) -> Option<&mut Slot> {
        match self.by_handle_as_it_is(handle) {
            Some(_) => self.get_mut(handle.slot()),
            None => None,
        }
    }

    /// What a handle names, as it is.
    #[inline]
    pub(crate) fn by_handle_as_it_is(&mut self, handle: Handle) -> Option<&mut Slot> {
        let entry = self.entries.get_mut(handle.slot() as usize)?;
        (entry.generation == handle.generation()).then_some(&mut entry.slot)
    }

    /// The client's session, if `owner` is what it is here.
    pub(crate) fn owned(&mut self, owner: Owner, client_id: &Text) -> Option<&mut Slot> {
        let slot = self.get_mut(owner.slot)?;
        let (epoch, id) = match slot {
            Slot::Live(session) => (session.epoch, session.client_id.as_bytes()),
            Slot::Acquiring(acquire) => (acquire.owner.epoch, acquire.client_id.as_bytes()),
            Slot::Free(_) | Slot::Moved(_) | Slot::Parked(_) => return None,
        };
        (epoch == owner.epoch && id == client_id.as_bytes()).then_some(slot)
    }

    /// Places that hold something.
    pub(crate) fn occupied(&self) -> impl Iterator<Item = (u32, &Slot)> {
        self.entries
            .iter()
            .enumerate()
            .map(|(i, e)| (i as u32, &e.slot))
            .filter(|(_, s)| !matches!(s, Slot::Free(_)))
    }
}

/// A takeover that has to wait until the session is here and its messages are in order again.
#[derive(Debug)]
pub(crate) struct WaitingTakeover {
    pub(crate) from: WorkerSlot,
    pub(crate) takeover: Box<Takeover>,
}
