//! Detaching a pinned link at once.
//!
//! Removing the pin and closing the link would detach it as well, but some time later, and a shield that is still
//! there when its broker has gone drops what nobody steers.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Commands of `bpf(2)`, from linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `BPF_OBJ_GET`'s part of `union bpf_attr`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `BPF_LINK_DETACH`'s part of `union bpf_attr`.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// Detaches the link that is pinned at `path`.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut get = ObjGet {
        pathname: path.as_ptr().addr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: the record has the shape that the command reads, and its path ends with a zero and outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut get) }?;
    // SAFETY: the kernel has just given us this descriptor.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut detach = LinkDetach {
        link_fd: link.as_raw_fd().cast_unsigned(),
    };
    // SAFETY: the record has the shape that the command reads.
    unsafe { bpf(BPF_LINK_DETACH, &mut detach) }.map(drop)
}

/// # Safety
/// `attributes` must be the command's part of `union bpf_attr`, and what it points to must be valid.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the caller's promise; the size is that of the record.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as RawFd)
    }
}
