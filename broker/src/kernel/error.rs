//! Why the kernel half cannot work.

use std::io;
use std::path::PathBuf;

/// Why the kernel half cannot work. The broker can run without it, only slower and without the shield.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The broker was built without the kernel programs.
    #[error(
        "this broker was built without its kernel programs; run `cargo xtask build-ebpf` and build it again"
    )]
    NoObject,
    /// The kernel programs in this broker have other records than the broker itself.
    #[error(
        "the kernel programs in this broker are older than the broker itself ({what}); \
             run `cargo xtask build-ebpf` and build it again"
    )]
    StaleObject {
        /// What doesn't fit.
        what: String,
    },
    /// The user may not load kernel programs.
    #[error(
        "this user may not load kernel programs; run the broker as root, or give it CAP_BPF, CAP_NET_ADMIN, \
             CAP_PERFMON and write access to {pin_dir}"
    )]
    NotPermitted {
        /// Where pins would go.
        pin_dir: PathBuf,
    },
    /// The folder for the pins is not on a BPF file system.
    #[error(
        "{path} is not on a BPF file system; run `mount -t bpf bpf /sys/fs/bpf`, or choose a folder on one"
    )]
    NoBpfFileSystem {
        /// The folder.
        path: PathBuf,
    },
    /// Another broker's shield is there.
    #[error("another broker uses {pin_dir}; give each its own folder with kernel.pin_dir")]
    InUse {
        /// The folder.
        pin_dir: PathBuf,
    },
    /// Something is wrong with the folder for the pins.
    #[error("cannot {action} {path}: {source}")]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The kernel refused the object, most often because it is too old.
    #[error("the kernel refused {what}: {reason}; Linux 6.1 or newer is needed")]
    Refused {
        /// What it refused.
        what: &'static str,
        /// Its answer.
        reason: String,
    },
    /// An interface could not get the mode that the configuration demands.
    #[error(
        "cannot attach XDP to {interface} in {mode} mode: {reason}; \
             check the interface's name, or set the mode to \"auto\""
    )]
    Attach {
        /// The interface.
        interface: String,
        /// The mode.
        mode: &'static str,
        /// The kernel's answer.
        reason: String,
    },
    /// A worker's socket was refused.
    #[error(
        "the kernel refused the socket of worker slot {slot}: {reason}; \
             it must be a bound UDP socket with SO_REUSEPORT (this is a bug of the broker)"
    )]
    Socket {
        /// The slot.
        slot: u8,
        /// The kernel's answer.
        reason: String,
    },
    /// Slot 255 means none.
    #[error("worker slot 255 is reserved (this is a bug of the broker)")]
    ReservedSlot,
}

/// The whole chain of an error in one line: aya's outer errors say little.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(inner) = next {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        next = inner.source();
    }
    text
}

/// Whether an error comes from missing privileges. EACCES is the verifier's answer.
pub(super) fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.raw_os_error() == Some(libc::EPERM)) {
            return true;
        }
        next = error.source();
    }
    false
}
