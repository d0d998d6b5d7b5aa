//! Dependencies between the crates point down only, and some libraries stay in one place.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{paths, shell};

/// Each crate, and which crates of the project it may use.
const MAY_USE: [(&str, &[&str]); 11] = [
    ("headgate-codec", &[]),
    ("headgate-topics", &[]),
    ("headgate-common", &[]),
    ("headgate-core", &["headgate-codec", "headgate-topics"]),
    (
        "headgate",
        &[
            "headgate-codec",
            "headgate-common",
            "headgate-core",
            "headgate-topics",
        ],
    ),
    ("headgate-xdp", &["headgate-common"]),
    ("headgate-sim", &["headgate-codec", "headgate-core"]),
    (
        "headgate-tests",
        &[
            "headgate",
            "headgate-codec",
            "headgate-common",
            "headgate-core",
            "headgate-sim",
            "headgate-topics",
        ],
    ),
    (
        "headgate-fuzz",
        &[
            "headgate-codec",
            "headgate-common",
            "headgate-core",
            "headgate-sim",
            "headgate-tests",
            "headgate-topics",
        ],
    ),
    // Clients that share nothing with the broker.
    ("headgate-stacks", &[]),
    ("xtask", &[]),
];

/// Libraries that only some crates may use: the sans-IO crates and the parsers stay free of input and output.
const LIMITED: [(&str, &[&str]); 7] = [
    ("tokio", &["headgate", "headgate-stacks", "headgate-tests"]),
    ("quinn", &["headgate", "headgate-tests"]),
    ("quinn-proto", &["headgate", "headgate-tests"]),
    ("quinn-udp", &["headgate", "headgate-tests"]),
    // xtask asks the kernel's verifier what it says of the kernel programs.
    ("aya", &["headgate", "headgate-tests", "xtask"]),
    ("mio", &["headgate", "headgate-tests"]),
    ("socket2", &["headgate", "headgate-tests"]),
];

/// The workspaces of the repository, by their manifests.
const MANIFESTS: [&str; 4] = [
    "Cargo.toml",
    "xdp-ebpf/Cargo.toml",
    "tests/fuzz/Cargo.toml",
    "tests/stacks/Cargo.toml",
];

/// Dependencies that break the rules.
///
/// # Errors
/// Cargo can't read a manifest.
pub fn complaints() -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for manifest in MANIFESTS {
        let path = paths::root().join(manifest);
        if !path.is_file() {
            continue;
        }
        let mut cargo = Command::new("cargo");
        cargo
            .args([
                "metadata",
                "--no-deps",
                "--offline",
                "--format-version=1",
                "--manifest-path",
            ])
            .arg(path);
        let metadata =
            shell::output(&mut cargo).with_context(|| format!("cargo metadata of {manifest}"))?;
        let metadata: Value = serde_json::from_str(&metadata)?;
        for package in metadata["packages"].as_array().into_iter().flatten() {
            let name = package["name"].as_str().unwrap_or_default();
            let uses: Vec<&str> = package["dependencies"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|dependency| dependency["name"].as_str())
                .collect();
            complaints.extend(check(name, &uses));
        }
    }
    Ok(complaints)
}

fn check(name: &str, uses: &[&str]) -> Vec<String> {
    let Some((_, allowed)) = MAY_USE.iter().find(|(known, _)| *known == name) else {
        return vec![format!(
            "{name}: a crate that tidy doesn't know; say there what it may use"
        )];
    };
    let is_ours = |dependency: &str| MAY_USE.iter().any(|(known, _)| *known == dependency);
    let mut complaints = Vec::new();
    for dependency in uses {
        if is_ours(dependency) && !allowed.contains(dependency) && *dependency != name {
            complaints.push(format!(
                "{name} depends on {dependency}: dependencies point down only"
            ));
        }
        let limited = LIMITED.iter().find(|(library, _)| library == dependency);
        if limited.is_some_and(|(_, users)| !users.contains(&name)) {
            complaints.push(format!(
                "{name} depends on {dependency}: input and output belong into the broker"
            ));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_point_down() {
        assert!(check("headgate", &["headgate-core", "quinn-proto", "tokio"]).is_empty());
        assert_eq!(
            check("headgate-core", &["headgate-codec", "headgate"]),
            ["headgate-core depends on headgate: dependencies point down only"]
        );
    }

    #[test]
    fn the_core_has_no_input_and_output() {
        assert_eq!(
            check("headgate-core", &["tokio"]),
            ["headgate-core depends on tokio: input and output belong into the broker"]
        );
    }

    #[test]
    fn a_new_crate_needs_a_rule() {
        assert_eq!(check("headgate-extra", &[]).len(), 1);
    }
}
