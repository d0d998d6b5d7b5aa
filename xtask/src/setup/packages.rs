//! Debian's packages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{paths, shell};

/// Lists older than this are fetched anew before something is installed.
const LISTS_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A package, and what it is for.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its name in Debian.
    pub name: &'static str,
    /// Why the project needs it.
    pub why: &'static str,
}

impl Package {
    /// A package with the reason for which it is installed.
    pub const fn new(name: &'static str, why: &'static str) -> Self {
        Self { name, why }
    }
}

/// Those of `packages` that are not installed.
pub fn absent(packages: &[Package]) -> Vec<Package> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f=${db:Status-Status} ${Package}\n"]);
    query.args(packages.iter().map(|package| package.name));
    // It fails as soon as one package is unknown, and still prints the others.
    let Ok(output) = query.output() else {
        return packages.to_vec();
    };
    let known = String::from_utf8_lossy(&output.stdout);
    let is_installed = |name: &str| {
        known
            .lines()
            .any(|line| line.strip_prefix("installed ") == Some(name))
    };
    packages
        .iter()
        .filter(|package| !is_installed(package.name))
        .cloned()
        .collect()
}

/// Installs `packages`, all of them, saying what each is for.
///
/// # Errors
/// This is no Debian, or apt can't do it: the message has apt's last words.
pub fn install(packages: &[Package]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    if paths::find_program("apt-get").is_none() {
        bail!(
            "this machine has no apt-get; install by hand what Debian calls {}",
            names.join(" ")
        );
    }
    eprintln!("setup: installing from Debian:");
    for package in packages {
        eprintln!("  {:<20} {}", package.name, package.why);
    }
    if are_lists_stale() {
        update()?;
    }
    let _no_services = NoServices::begin();
    let title = format!("apt-get install {}", names.join(" "));
    let first = shell::watch("apt-install", &title, &mut apt_install(&names), |_| ())?;
    if !first.status.success() {
        // The lists can be younger than a day and older than the archive.
        update()?;
        shell::must("apt-install", &title, &mut apt_install(&names))?;
    }
    if names.contains(&"mosquitto") && Path::new("/run/systemd/system").exists() {
        let mut disable = Command::new("systemctl");
        disable.args(["disable", "--quiet", "mosquitto.service"]);
        shell::must(
            "systemctl",
            "systemctl disable mosquitto.service",
            &mut disable,
        )?;
        eprintln!("  mosquitto.service is disabled: the tests start their own");
    }
    eprintln!("  installed ({})", shell::seconds(first.took));
    Ok(())
}

/// Debian's packages start the services that they bring. A broker on MQTT's port would be in the way of ours:
/// while this lives, none is started.
struct NoServices {
    is_ours: bool,
}

/// What Debian's maintainer scripts ask before they start a service (101 = it may not).
const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> Self {
        let is_ours = !Path::new(POLICY).exists()
            && fs::write(POLICY, "#!/bin/sh\nexit 101\n").is_ok()
            && fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).is_ok();
        Self { is_ours }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("remove {POLICY} by hand, it keeps services from starting: {error}");
        }
    }
}

fn apt_install(names: &[&str]) -> Command {
    let mut apt = apt();
    // Nothing that the user chose is removed for our sake: then apt refuses, and says why.
    apt.args(["install", "--yes", "--no-install-recommends", "--no-remove"])
        .args(names);
    apt
}

fn update() -> Result<()> {
    eprintln!("  fetching the package lists");
    shell::must("apt-update", "apt-get update", apt().arg("update"))?;
    Ok(())
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
    apt
}

fn are_lists_stale() -> bool {
    let lists = Path::new("/var/lib/apt/lists");
    let has_any = fs::read_dir(lists).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    });
    let age = fs::metadata(lists)
        .and_then(|data| data.modified())
        .ok()
        .and_then(|time| time.elapsed().ok());
    !has_any || age.is_none_or(|age| age > LISTS_AGE_MAX)
}
