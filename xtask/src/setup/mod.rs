//! `cargo xtask setup`: finds out what is missing, and installs it, saying what and why.

pub mod clients;
pub mod ebpf;
pub mod packages;

use std::fs;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Result;

use crate::paths;
use crate::shell;

use packages::Package;

/// What `cargo xtask setup` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Also what only the tests need: foreign MQTT clients, rustfmt, clippy
    #[arg(long)]
    pub tests: bool,
}

/// Programs that the kernel part and its tests call.
const SYSTEM_TOOLS: [(&str, Package); 5] = [
    (
        "ip",
        Package::new("iproute2", "network namespaces and interfaces of the tests"),
    ),
    (
        "ethtool",
        Package::new(
            "ethtool",
            "offloads of network drivers, which XDP depends on",
        ),
    ),
    (
        "sysctl",
        Package::new(
            "procps",
            "settings of the network inside the tests' namespaces",
        ),
    ),
    (
        "bpftool",
        Package::new(
            "bpftool",
            "shows pinned maps, and the programs as the kernel verified them",
        ),
    ),
    ("mount", Package::new("mount", "mounts the BPF file system")),
];

/// Where the kernel keeps pinned maps and programs.
const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";

/// Runs the command.
///
/// # Errors
/// As root: something could not be installed.
pub fn run(options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    let mut missing = kernel_part()?;
    if options.tests {
        missing.extend(for_tests()?);
    }
    if missing.is_empty() {
        println!(
            "setup: everything is there ({})",
            shell::seconds(started.elapsed())
        );
    } else {
        for line in &missing {
            println!("setup: missing: {line}");
        }
        if !shell::is_root() {
            let flag = if options.tests { " --tests" } else { "" };
            println!("setup: as root, `cargo xtask setup{flag}` installs what is missing");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Sees to everything that building and running the kernel part needs. As root it installs what is missing; for
/// anybody else it returns what is missing, and what will not work without.
///
/// # Errors
/// As root: something could not be installed.
pub fn kernel_part() -> Result<Vec<String>> {
    let mut missing = Vec::new();
    let tools: Vec<Package> = SYSTEM_TOOLS
        .iter()
        .filter(|(program, _)| paths::find_program(program).is_none())
        .map(|(_, package)| package.clone())
        .collect();
    if shell::is_root() {
        ebpf::install(tools)?;
        if let Err(reason) = mount_bpf_file_system() {
            missing.push(reason);
        }
        return Ok(missing);
    }
    if let Err(reason) = ebpf::find() {
        missing.push(format!(
            "{reason}: the kernel part will be absent, and its tests are skipped"
        ));
    }
    missing.extend(
        tools
            .iter()
            .map(|tool| format!("{}: {}", tool.name, tool.why)),
    );
    Ok(missing)
}

/// Sees to everything that only the tests need; returns what is missing all the same, with its consequence.
///
/// # Errors
/// As root: something could not be installed.
pub fn for_tests() -> Result<Vec<String>> {
    components()?;
    clients::install()
}

/// rustfmt and clippy come with rustup's default profile, not with its minimal one.
///
/// # Errors
/// rustup can't add them.
pub fn components() -> Result<()> {
    let absent: Vec<&str> = [("rustfmt", "cargo-fmt"), ("clippy", "cargo-clippy")]
        .iter()
        .filter(|(_, program)| paths::find_program(program).is_none())
        .map(|(component, _)| *component)
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    println!(
        "setup: adding {} to the toolchain: the checks of style need them",
        absent.join(" and ")
    );
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add"]).args(&absent);
    shell::must("components", "rustup component add", &mut rustup)?;
    Ok(())
}

fn mount_bpf_file_system() -> Result<(), String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let is_mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPF_FILE_SYSTEM) && fields.next() == Some("bpf")
    });
    if is_mounted {
        return Ok(());
    }
    println!("setup: mounting {BPF_FILE_SYSTEM}: the kernel keeps pinned maps there");
    let mounted = Command::new("mount")
        .args(["-t", "bpf", "bpf", BPF_FILE_SYSTEM])
        .status();
    match mounted {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!(
            "{BPF_FILE_SYSTEM}: this kernel or container refused the mount; nothing can be pinned"
        )),
    }
}
