//! `cargo xtask run`: from a fresh clone to a running broker.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::setup::{self, ebpf};
use crate::{build_ebpf, paths, shell};

/// What `cargo xtask run` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Arguments of `headgate run`, behind `--`. With none, or without a configuration file among them, it is started
    /// with `--dev`: anybody may connect, the state and a certificate are kept in .headgate, and as root the kernel part
    /// is attached to the loopback interface
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Runs the command. It ends as the broker does.
///
/// # Errors
/// Something could not be installed or built.
pub fn run(options: &Options) -> Result<ExitCode> {
    kernel_part()?;
    println!("broker: building (the first time takes minutes)");
    let mut build = shell::cargo();
    build.args([
        "build",
        "--release",
        "--package",
        "headgate",
        "--bin",
        "headgate",
    ]);
    let done = shell::must("build-release", "cargo build --release", &mut build)?;
    println!("broker: built ({})", shell::seconds(done.took));
    let mut broker = Command::new(paths::target().join("release/headgate"));
    broker.current_dir(paths::root()).arg("run");
    if !has_config(&options.arguments) {
        broker.arg("--dev");
    }
    broker.args(&options.arguments);
    // The broker takes the place of this process: signals and the terminal are its own.
    Err(broker.exec()).context("starting target/release/headgate")
}

/// Builds the kernel programs where they can be used, and says so where they can't.
fn kernel_part() -> Result<()> {
    if !shell::is_root() {
        println!(
            "kernel part: left out, because it needs root; the broker does its work in user space, without the shield"
        );
        return Ok(());
    }
    for line in setup::kernel_part()? {
        println!("setup: missing: {line}");
    }
    match ebpf::find() {
        Ok(toolchain) => println!("kernel part: {}", build_ebpf::build(&toolchain)?),
        Err(reason) => println!("kernel part: left out, missing: {reason}"),
    }
    Ok(())
}

fn has_config(arguments: &[OsString]) -> bool {
    arguments
        .iter()
        .filter_map(|argument| argument.to_str())
        .any(|argument| {
            argument == "--config"
                || argument.starts_with("--config=")
                || (argument.starts_with("-c") && !argument.starts_with("--"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_file_takes_the_place_of_dev() {
        let has = |arguments: &[&str]| {
            has_config(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
        };
        assert!(has(&["--workers", "1", "--config", "x.toml"]));
        assert!(has(&["--config=x.toml"]));
        assert!(has(&["-c", "x.toml"]));
        assert!(!has(&["--workers", "1"]));
        assert!(!has(&[]));
    }
}
