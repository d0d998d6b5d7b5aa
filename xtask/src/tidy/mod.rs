//! `cargo xtask tidy`: the rules of the project that no compiler checks.

mod dependencies;
mod documents;
mod sources;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{paths, shell};

/// What may stand at the top of the repository; files whose names begin with a dot may too.
const TOP_LEVEL: [&str; 9] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "broker",
    "images",
    "tests",
    "xdp-ebpf",
    "xtask",
];

/// Runs the command.
///
/// # Errors
/// The repository can't be read.
pub fn run() -> Result<ExitCode> {
    let complaints = complaints()?;
    for complaint in &complaints {
        println!("{complaint}");
    }
    if complaints.is_empty() {
        println!("tidy");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} complaints", complaints.len());
    Ok(ExitCode::FAILURE)
}

/// Everything that breaks a rule: where, and which rule.
///
/// # Errors
/// The repository can't be read.
pub fn complaints() -> Result<Vec<String>> {
    let files = files()?;
    let mut complaints = top_level(&files);
    complaints.extend(dependencies::complaints()?);
    complaints.extend(sources::complaints(&files)?);
    complaints.extend(documents::complaints(&files)?);
    Ok(complaints)
}

/// The repository's files, as paths below its top folder: what git tracks, and what it would be asked to track.
fn files() -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(paths::root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = shell::output(&mut git)
        .context("git ls-files failed: this is no clone of the repository")?;
    let mut files: Vec<String> = listed.lines().map(str::to_owned).collect();
    // A file that was deleted and not yet committed is still listed.
    files.retain(|file| paths::root().join(file).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

fn top_level(files: &[String]) -> Vec<String> {
    let mut names: Vec<&str> = files
        .iter()
        .map(|file| file.split('/').next().unwrap_or(file))
        .collect();
    names.dedup();
    names.retain(|name| !name.starts_with('.') && !TOP_LEVEL.contains(name));
    names
        .iter()
        .map(|name| format!("{name}: not in the list of what the top folder holds"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_folder_is_a_fixed_list() {
        let files = [
            ".ci/run",
            "README.md",
            "broker/src/lib.rs",
            "notes/idea.md",
            "notes/other.md",
        ]
        .map(str::to_owned);
        assert_eq!(
            top_level(&files),
            ["notes: not in the list of what the top folder holds"]
        );
    }
}
