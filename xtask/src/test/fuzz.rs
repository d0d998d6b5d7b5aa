//! Long fuzzing runs with libFuzzer. (The committed corpora are replayed by an ordinary test each time.)

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::{paths, shell};

/// How long each target is fuzzed.
const TARGET_DURATION_S: u32 = 60;

/// The release of cargo-fuzz that runs the targets.
const CARGO_FUZZ: &str = "0.13.2";

/// What became of a target.
pub enum Outcome {
    /// Nothing was found in the time.
    Passed {
        /// Its name.
        target: String,
        /// How long it took, with compiling.
        took: Duration,
    },
    /// It crashed, or doesn't compile.
    Failed {
        /// Its name.
        target: String,
        /// The end of its output: libFuzzer names the input there.
        text: String,
    },
    /// It could not be run here.
    Skipped {
        /// Its name.
        target: String,
        /// Why not.
        reason: String,
    },
}

/// Fuzzes each target of tests/fuzz in turn.
///
/// # Errors
/// A log can't be written.
pub fn run() -> Result<Vec<Outcome>> {
    let targets = targets();
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let cargo_fuzz = match install() {
        Ok(program) => program,
        Err(error) => {
            let reason = format!("{error:#}");
            let skip = |target| Outcome::Skipped {
                target,
                reason: reason.clone(),
            };
            return Ok(targets.into_iter().map(skip).collect());
        }
    };
    targets
        .into_iter()
        .map(|target| fuzz(&cargo_fuzz, target))
        .collect()
}

fn fuzz(cargo_fuzz: &PathBuf, target: String) -> Result<Outcome> {
    // New inputs go where git doesn't look; the committed corpus is read as well.
    let found = paths::target().join("fuzz-corpus").join(&target);
    fs::create_dir_all(&found)?;
    let mut command = Command::new(cargo_fuzz);
    command
        .current_dir(paths::root().join("tests"))
        // libFuzzer's instrumentation is behind -Z, which a stable compiler takes only so.
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["run", "--sanitizer", "none", &target])
        .arg(&found)
        .arg(paths::root().join("tests/fuzz/corpus").join(&target))
        .args(["--", &format!("-max_total_time={TARGET_DURATION_S}")]);
    // libFuzzer is C++; Debian's clang is there where bpf-linker is.
    if paths::find_program("c++").is_none() {
        command.env("CXX", "clang++-22");
    }
    let title = format!("fuzzing {target}");
    let finished = shell::watch(&format!("fuzz-{target}"), &title, &mut command, |_| ())?;
    Ok(if finished.status.success() {
        Outcome::Passed {
            target,
            took: finished.took,
        }
    } else {
        Outcome::Failed {
            target,
            text: finished.tail(),
        }
    })
}

fn targets() -> Vec<String> {
    let Ok(entries) = fs::read_dir(paths::root().join("tests/fuzz/fuzz_targets")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".rs")
                .map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

fn install() -> Result<PathBuf> {
    let program = paths::tools().join("bin/cargo-fuzz");
    if program.is_file() {
        return Ok(program);
    }
    println!("installing cargo-fuzz {CARGO_FUZZ} into the target folder");
    let mut cargo = shell::clean_cargo(&paths::root());
    cargo
        .args([
            "install",
            "cargo-fuzz",
            "--locked",
            "--version",
            CARGO_FUZZ,
            "--root",
        ])
        .arg(paths::tools());
    shell::must("cargo-fuzz", "cargo install cargo-fuzz", &mut cargo)?;
    Ok(program)
}
