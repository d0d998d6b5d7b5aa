//! Errors that a disk is told to have.

/// What fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum On {
    /// Reading from a file.
    Read,
    /// Writing to a file, also fallocate and a change of its length.
    Write,
    /// fsync and fdatasync of a file. As on Linux, what the failed call should have made safe counts as written
    /// afterwards and is not tried again: it can be read, a later fsync succeeds, and a power loss loses it.
    Sync,
    /// Creating, renaming and deleting files and folders, and fsync of a folder.
    Names,
}

/// Fails every operation of a kind, from some moment on.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The operation.
    pub on: On,
    /// The error number that the program sees, such as `libc::EIO`.
    pub errno: i32,
    /// How many operations of the kind still succeed.
    pub after: u64,
}

/// The faults in force, and what they have done.
#[derive(Debug, Default)]
pub struct Faults {
    active: Vec<Fault>,
    hits: u64,
}

impl Faults {
    pub fn add(&mut self, fault: Fault) {
        self.active.push(fault);
    }

    pub fn clear(&mut self) {
        self.active.clear();
    }

    /// Operations that failed because of them.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// Counts an operation, and fails it if it is one too many.
    pub fn check(&mut self, on: On) -> Result<(), i32> {
        for fault in self.active.iter_mut().filter(|fault| fault.on == on) {
            if fault.after == 0 {
                self.hits += 1;
                return Err(fault.errno);
            }
            fault.after -= 1;
        }
        Ok(())
    }
}
