//! Which binary is tested, and whether it has its kernel part.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::skip;

/// Names a binary that is tested instead of the one of this workspace.
const BINARY_VARIABLE: &str = "HEADGATE_BIN";

/// The headgate binary under test: built from this workspace, in the profile of the tests, at most once per process.
///
/// # Panics
/// When it doesn't compile.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os(BINARY_VARIABLE).map_or_else(build, PathBuf::from))
}

/// Why the kernel part can't be tested here, if it can't.
///
/// # Errors
/// The reason, for [`skip!`](crate::skip!).
pub fn kernel_available() -> Result<(), String> {
    if !skip::is_root() {
        return Err("needs root to load kernel programs".to_owned());
    }
    let object = workspace().join("xdp-ebpf/target/bpfel-unknown-none/release/headgate-xdp");
    if !object.is_file() {
        return Err("the kernel programs are not built: `cargo xtask build-ebpf`".to_owned());
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    if !mounts.contains(" /sys/fs/bpf bpf ") {
        return Err("/sys/fs/bpf is not mounted: `cargo xtask setup`".to_owned());
    }
    Ok(())
}

/// Cargo finds nothing to do where the binary is fresh; where it isn't, an old broker would be tested.
fn build() -> PathBuf {
    let profile_dir = profile_dir();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).args([
        "build",
        "--quiet",
        "--package",
        "headgate",
        "--bin",
        "headgate",
    ]);
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    if let Some(target) = profile_dir.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    let built = cargo.stdin(Stdio::null()).status();
    assert!(
        built.as_ref().is_ok_and(|status| status.success()),
        "cargo build -p headgate: {built:?}"
    );
    profile_dir.join("headgate")
}

/// The folder that this test's own binary was built into, without `deps`.
fn profile_dir() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own file");
    let folder = own.parent().expect("a file is in a folder");
    if folder.ends_with("deps") {
        folder.parent().expect("deps is in a folder").to_owned()
    } else {
        folder.to_owned()
    }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests are in the workspace's folder")
}
