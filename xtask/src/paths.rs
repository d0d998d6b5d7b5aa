//! Where things are.

use std::env;
use std::path::{Path, PathBuf};

/// The top folder of the repository.
pub fn root() -> PathBuf {
    // Cargo sets it while it runs us; a binary started by hand knows where it was compiled.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().unwrap_or(Path::new("/")).to_path_buf()
}

/// The folder that cargo builds into; a developer may have moved it with `CARGO_TARGET_DIR`.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Logs of the commands that xtask runs.
pub fn logs() -> PathBuf {
    target().join("xtask-logs")
}

/// Programs that only tests and tools need, installed here and not for the whole machine.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// Other brokers, which `cargo xtask bench peers` compares with.
pub fn peers() -> PathBuf {
    target().join("peers")
}

/// The Python environment with the clients that are written in Python.
pub fn venv() -> PathBuf {
    target().join("venv")
}

/// The kernel programs' workspace.
pub fn ebpf_workspace() -> PathBuf {
    root().join("xdp-ebpf")
}

/// The object file that `build-ebpf` makes and that the broker's build script embeds. Its place is fixed, whatever
/// `CARGO_TARGET_DIR` says.
pub fn ebpf_object() -> PathBuf {
    ebpf_workspace().join("target/bpfel-unknown-none/release/headgate-xdp")
}

/// Finds a program in `PATH`, in cargo's own folder of installed programs, or in the folders where Debian keeps what
/// only root usually needs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_bin())
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| is_executable(candidate))
}

fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))?;
    Some(home.join("bin"))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
