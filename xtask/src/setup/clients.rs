//! MQTT clients that the project did not write: the tests run them against the broker.
//!
//! What Debian packages is installed for the machine; the others stay in the target folder, so an ordinary user gets
//! them too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::packages::{self, Package};
use crate::{paths, shell};

/// The release of mqttv5-cli that the tests drive over QUIC.
pub const MQTTV5_CLI: &str = "0.29.10";

/// A Python that can make environments, and that the clients still support.
const PYTHON_CHECK: &str = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))";

/// Installs the clients; returns those that are missing all the same, with the consequence.
///
/// # Errors
/// As root: one could not be installed. For anybody else that is no error: the tests that need it are skipped.
pub fn install() -> Result<Vec<String>> {
    let mut missing = Vec::new();
    let mut wanted = Vec::new();
    if paths::find_program("mosquitto_pub").is_none() {
        wanted.push(Package::new(
            "mosquitto-clients",
            "MQTT over TCP by a client that is not ours",
        ));
    }
    if paths::find_program("mosquitto").is_none() {
        wanted.push(Package::new(
            "mosquitto",
            "another broker, which the clients of the project are tested with; not started",
        ));
    }
    if find_python().is_none() {
        wanted.push(Package::new(
            "python3",
            "runs the clients that are written in Python",
        ));
        wanted.push(Package::new(
            "python3-venv",
            "keeps these clients apart from the machine's own packages",
        ));
    }
    if shell::is_root() {
        packages::install(&wanted)?;
    } else {
        missing.extend(
            wanted
                .iter()
                .map(|package| format!("{}: {}", package.name, package.why)),
        );
    }
    for (client, outcome) in [
        ("Python's clients", python_clients()),
        ("mqttv5-cli", mqttv5_cli()),
    ] {
        match outcome {
            Ok(()) => {}
            Err(error) if shell::is_root() => return Err(error),
            Err(error) => missing.push(format!("{client}, so their tests are skipped: {error:#}")),
        }
    }
    Ok(missing)
}

fn find_python() -> Option<PathBuf> {
    ["python3", "/usr/bin/python3"]
        .iter()
        .filter_map(|name| paths::find_program(name))
        .find(|python| {
            let check = Command::new(python).args(["-c", PYTHON_CHECK]).output();
            check.is_ok_and(|output| output.status.success())
        })
}

fn python_clients() -> Result<()> {
    let requirements = paths::root().join("tests/clients/requirements.txt");
    let wanted = fs::read_to_string(&requirements)?;
    let venv = paths::venv();
    let what = "aioquic and paho-mqtt: MQTT clients that are not ours";
    python_packages(&venv, &wanted, what)
}

/// Makes a Python environment with the packages that `requirements` names, one a line, if it isn't there.
///
/// # Errors
/// There is no Python, or pip can't do it.
pub fn python_packages(venv: &Path, requirements: &str, what: &str) -> Result<()> {
    let installed = venv.join("headgate-requirements.txt");
    if fs::read_to_string(&installed).is_ok_and(|text| text == requirements)
        && starts(&venv.join("bin/python"))
    {
        return Ok(());
    }
    let Some(python) = find_python() else {
        anyhow::bail!("there is no Python 3.10 with venv")
    };
    eprintln!("setup: installing into {}: {what}", shown(venv));
    let mut make = Command::new(python);
    make.args(["-m", "venv", "--clear"]).arg(venv);
    shell::must("venv", "python3 -m venv", &mut make)?;
    let mut pip = Command::new(venv.join("bin/python"));
    let install = ["-m", "pip", "install", "--disable-pip-version-check"];
    let packages = requirements.lines().filter(|line| !line.is_empty());
    pip.args(install).args(packages);
    let done = shell::must("pip", "pip install", &mut pip)?;
    fs::write(&installed, requirements)?;
    eprintln!("  installed ({})", shell::seconds(done.took));
    Ok(())
}

fn mqttv5_cli() -> Result<()> {
    let what = Crate {
        name: "mqttv5-cli",
        program: "mqttv5",
        version: MQTTV5_CLI,
        // Because it is run for a few messages.
        optimized: false,
        why: "MQTT over QUIC by a client that is not ours",
    };
    what.install(&paths::tools())
}

/// A program of crates.io.
pub struct Crate {
    /// The package.
    pub name: &'static str,
    /// Its program.
    pub program: &'static str,
    /// The release.
    pub version: &'static str,
    /// Whether it has to be fast.
    pub optimized: bool,
    /// What it is for.
    pub why: &'static str,
}

impl Crate {
    /// Compiles it into `root/bin`, if that release isn't there.
    ///
    /// # Errors
    /// It doesn't compile, or can't be fetched.
    pub fn install(&self, root: &Path) -> Result<()> {
        let (name, version) = (self.name, self.version);
        let program = root.join("bin").join(self.program);
        let found = shell::output(Command::new(&program).arg("--version")).unwrap_or_default();
        if found.split_whitespace().any(|word| word == version) {
            return Ok(());
        }
        eprintln!(
            "setup: compiling {name} {version} into {}: {}",
            shown(root),
            self.why
        );
        let mut cargo = shell::clean_cargo(&paths::root());
        if !self.optimized {
            cargo
                .env("CARGO_PROFILE_DEV_DEBUG", "0")
                .arg("install")
                .arg("--debug");
        } else {
            cargo.arg("install");
        }
        // Lock files of published programs name releases that are gone or that today's compiler refuses, hence no --locked.
        cargo
            .args([name, "--force", "--version", version, "--root"])
            .arg(root);
        let title = format!("cargo install {name} (a few minutes)");
        let done = shell::must(name, &title, &mut cargo)?;
        eprintln!("  installed ({})", shell::seconds(done.took));
        Ok(())
    }
}

fn starts(program: &Path) -> bool {
    shell::output(Command::new(program).arg("--version")).is_some()
}

/// A path as a reader in the top folder would write it.
fn shown(path: &Path) -> String {
    path.strip_prefix(paths::root())
        .unwrap_or(path)
        .display()
        .to_string()
}
