//! The clients of tests/stacks: two QUIC stacks with their cryptography in C, which take minutes to compile.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::setup::packages::{self, Package};
use crate::{paths, shell};

/// What compiling them needs beside a C++ compiler.
const CMAKE: Package = Package::new(
    "cmake",
    "builds BoringSSL for quiche, a client of the tests",
);

/// The same.
const LIBCLANG: Package = Package::new(
    "libclang-dev",
    "reads BoringSSL's headers for quiche's crate",
);

/// Builds the programs, and says how long it took.
///
/// # Errors
/// Something could not be installed, or they don't compile.
pub fn build() -> Result<Duration> {
    let mut wanted = Vec::new();
    if paths::find_program("cmake").is_none() {
        wanted.push(CMAKE);
    }
    if !has_libclang() {
        wanted.push(LIBCLANG);
    }
    if shell::is_root() {
        packages::install(&wanted)?;
    } else if let Some(package) = wanted.first() {
        bail!("missing: {}: {}", package.name, package.why);
    }
    let mut cargo = shell::clean_cargo(&paths::root());
    cargo
        .args(["build", "--bins", "--locked", "--manifest-path"])
        .arg(paths::root().join("tests/stacks/Cargo.toml"))
        .arg("--target-dir")
        .arg(paths::target().join("stacks"));
    let title = "compiling quiche and s2n-quic (some minutes)";
    let took = shell::must("stacks-build", title, &mut cargo)?.took;
    // Cargo leaves alone what it finds fresh by its own rules; the tests go by the time.
    for program in ["stack_quiche", "stack_s2n"] {
        let file = paths::target().join("stacks/debug").join(program);
        File::options()
            .write(true)
            .open(&file)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .with_context(|| format!("{} as new", file.display()))?;
    }
    Ok(took)
}

/// Whether bindgen finds the library that it loads, as bpf-linker's clang brings it, too.
fn has_libclang() -> bool {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let folders = folders.map(|entry| entry.path());
    folders
        .flat_map(|folder| [folder.join("lib"), folder])
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten())
        .any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libclang.so") || name.starts_with("libclang-") && name.contains(".so")
        })
}
