//! The toolchain that compiles the kernel programs.
//!
//! Two are known to work: Debian's `rustc-web`, whose packages include the source of `core` and the very LLVM that the
//! compiler links, and a rustup nightly with the component `rust-src`. Both need a bpf-linker for their LLVM.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::packages::{self, Package};
use crate::{paths, shell};

/// The release of bpf-linker that the project is built with.
const BPF_LINKER: &str = "0.13.0";

/// Compilers below this LLVM release don't know the edition of the sources.
const LLVM_MIN: u32 = 21;

/// Debian's compiler; the `rustc` of rustup stands before it in most people's `PATH`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A compiler for the kernel programs, with its linker.
#[derive(Debug)]
pub struct Toolchain {
    /// Which compiler.
    pub compiler: Compiler,
    /// The path of bpf-linker.
    pub linker: PathBuf,
}

/// A compiler that has the source of `core`.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// Debian's rustc-web.
    Debian {
        /// Major version of its LLVM.
        llvm: u32,
    },
    /// A rustup nightly, by its name.
    Nightly {
        /// As in `cargo +NAME`.
        name: String,
        /// Major version of its LLVM.
        llvm: u32,
    },
}

impl Compiler {
    /// Major version of the LLVM that the compiler links.
    pub fn llvm(&self) -> u32 {
        match self {
            Self::Debian { llvm } | Self::Nightly { llvm, .. } => *llvm,
        }
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian { llvm } => write!(out, "Debian's rustc-web, LLVM {llvm}"),
            Self::Nightly { name, llvm } => write!(out, "rustup's {name}, LLVM {llvm}"),
        }
    }
}

/// What keeps the kernel programs from being built.
#[derive(Debug)]
pub enum Missing {
    /// No compiler with the source of `core`.
    Compiler,
    /// No bpf-linker that starts.
    Linker,
    /// The bpf-linker there is reads an older LLVM's bitcode than the compiler writes.
    LinkerTooOld {
        /// Its LLVM.
        has: u32,
        /// The compiler's LLVM.
        needs: u32,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler => write!(
                out,
                "a compiler for eBPF (Debian's rustc-web and rust-web-src, or a rustup nightly with rust-src)"
            ),
            Self::Linker => write!(out, "bpf-linker"),
            Self::LinkerTooOld { has, needs } => write!(
                out,
                "a bpf-linker for LLVM {needs} (the one there is made for LLVM {has})"
            ),
        }
    }
}

/// The toolchain of this machine.
///
/// # Errors
/// What is missing.
pub fn find() -> Result<Toolchain, Missing> {
    let compiler = find_compiler().ok_or(Missing::Compiler)?;
    let linker = find_linker(compiler.llvm())?;
    Ok(Toolchain { compiler, linker })
}

/// Installs what is missing of the toolchain, and `others` with it. Only root can.
///
/// # Errors
/// A package or bpf-linker could not be installed.
pub fn install(mut others: Vec<Package>) -> Result<()> {
    if find_compiler().is_none() {
        others.push(Package::new(
            "rustc-web",
            "the compiler of the kernel programs",
        ));
        others.push(Package::new(
            "rust-web-src",
            "the source of core, which is compiled for the kernel",
        ));
    }
    packages::install(&others)?;
    let compiler = find_compiler().with_context(|| {
        format!("Debian's rustc-web is older than LLVM {LLVM_MIN}: use a rustup nightly with rust-src instead")
    })?;
    if let Err(reason) = find_linker(compiler.llvm()) {
        println!("setup: {reason} is missing: it turns the compiler's output into a BPF object");
        install_linker(&compiler)?;
    }
    Ok(())
}

fn find_compiler() -> Option<Compiler> {
    debian().or_else(nightly)
}

fn debian() -> Option<Compiler> {
    let llvm = llvm_of(Command::new(DEBIAN_RUSTC).arg("-vV"))?;
    let has_source = has_core_source(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]));
    (has_source && llvm >= LLVM_MIN).then_some(Compiler::Debian { llvm })
}

fn nightly() -> Option<Compiler> {
    let toolchains = shell::output(Command::new("rustup").args(["toolchain", "list"]))?;
    toolchains
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .find_map(|name| {
            let rustc = |arguments: &[&str]| {
                let mut command = Command::new("rustup");
                command.args(["run", name, "rustc"]).args(arguments);
                command
            };
            let llvm = llvm_of(&mut rustc(&["-vV"]))?;
            let has_source = has_core_source(&mut rustc(&["--print", "sysroot"]));
            (has_source && llvm >= LLVM_MIN).then(|| Compiler::Nightly {
                name: name.to_owned(),
                llvm,
            })
        })
}

/// The major version of LLVM in what `rustc -vV` prints.
fn llvm_of(rustc: &mut Command) -> Option<u32> {
    let text = shell::output(rustc)?;
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

fn has_core_source(print_sysroot: &mut Command) -> bool {
    shell::output(print_sysroot).is_some_and(|sysroot| {
        Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file()
    })
}

fn find_linker(llvm: u32) -> Result<PathBuf, Missing> {
    let linker = paths::find_program("bpf-linker").ok_or(Missing::Linker)?;
    // It is there and doesn't start when its LLVM has been removed.
    shell::output(Command::new(&linker).arg("--version")).ok_or(Missing::Linker)?;
    match linked_llvm(&linker) {
        Some(has) if has < llvm => Err(Missing::LinkerTooOld { has, needs: llvm }),
        _ => Ok(linker),
    }
}

/// The major version of the LLVM library that the program loads; none when LLVM is linked into it.
fn linked_llvm(program: &Path) -> Option<u32> {
    let libraries = shell::output(Command::new("ldd").arg(program))?;
    let (_, version) = libraries
        .split_once("libLLVM.so.")
        .or_else(|| libraries.split_once("libLLVM-"))?;
    version
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

fn install_linker(compiler: &Compiler) -> Result<()> {
    let llvm = compiler.llvm();
    let (llvm_dev, polly, clang) = match llvm {
        21 => ("llvm-21-dev", "libpolly-21-dev", "clang-21"),
        22 => ("llvm-22-dev", "libpolly-22-dev", "clang-22"),
        other => bail!(
            "bpf-linker {BPF_LINKER} knows LLVM 21 and 22, and the compiler ({compiler}) uses {other}"
        ),
    };
    let wanted = [
        Package::new(llvm_dev, "LLVM's library, which bpf-linker links"),
        Package::new(polly, "a part of LLVM that its library asks for"),
        Package::new(clang, "the C++ library that bpf-linker and libFuzzer link"),
        Package::new("zlib1g-dev", "compression in LLVM"),
        Package::new("libzstd-dev", "compression in LLVM"),
        Package::new("libxml2-dev", "asked for by LLVM's library"),
    ];
    packages::install(&packages::absent(&wanted))?;
    let mut cargo = shell::clean_cargo(&paths::root());
    cargo
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
        // LLVM's library does the work, and that is compiled already: building the rest fast matters more than its speed.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .args([
            "install",
            "bpf-linker",
            "--debug",
            "--version",
            BPF_LINKER,
            "--locked",
            "--force",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{llvm}"),
        ]);
    let done = shell::must(
        "bpf-linker",
        "cargo install bpf-linker (about a minute)",
        &mut cargo,
    )?;
    println!(
        "  bpf-linker {BPF_LINKER} installed ({})",
        shell::seconds(done.took)
    );
    Ok(())
}
