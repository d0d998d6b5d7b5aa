//! `cargo xtask build-ebpf`: the kernel programs.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::setup::ebpf::{self, Compiler, Toolchain};
use crate::{paths, shell, verifier};

const TARGET: &str = "bpfel-unknown-none";

/// Runs the command.
///
/// # Errors
/// The toolchain is missing, the programs don't compile, or the verifier has too much to do with them.
pub fn run() -> Result<ExitCode> {
    match ebpf::find() {
        Ok(toolchain) => {
            println!("{}", build(&toolchain)?);
            for line in verifier::check(&paths::ebpf_object())? {
                println!("{line}");
            }
        }
        Err(reason) => bail!("missing: {reason}; `cargo xtask setup` installs it as root"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the object file; returns a sentence about it.
///
/// # Errors
/// The programs don't compile: the message has the compiler's last words.
pub fn build(toolchain: &Toolchain) -> Result<String> {
    let workspace = paths::ebpf_workspace();
    let mut cargo = shell::clean_cargo(&workspace);
    let linker = toolchain.linker.display();
    match &toolchain.compiler {
        // -Z is for nightly compilers; Debian ships one release, and its own source of core.
        Compiler::Debian { .. } => cargo
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1"),
        Compiler::Nightly { name, .. } => cargo.arg(format!("+{name}")),
    };
    // Debug information and BTF let bpftool print the maps' fields by name.
    cargo
        .env(
            "RUSTFLAGS",
            format!("-C debuginfo=2 -C link-arg=--btf -C linker={linker}"),
        )
        .args([
            "build",
            "--release",
            "-Z",
            "build-std=core",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(workspace.join("target"));
    let done = shell::must(
        "build-ebpf",
        "cargo build of the kernel programs",
        &mut cargo,
    )?;
    let object = paths::ebpf_object();
    let size = fs::metadata(&object)
        .with_context(|| format!("{} was not made", object.display()))?
        .len();
    let shown = object.strip_prefix(paths::root()).unwrap_or(&object);
    Ok(format!(
        "{}: {} KiB, by {} ({})",
        shown.display(),
        size.div_ceil(1024),
        toolchain.compiler,
        shell::seconds(done.took)
    ))
}
