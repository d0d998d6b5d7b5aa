//! `cargo xtask mutants`: changes the core and the codec in small ways, one at a time, and sees whether their tests notice.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{paths, shell};

/// The release of cargo-mutants that makes and tests the mutants.
const CARGO_MUTANTS: &str = "27.1.0";

/// What is mutated, and whose tests have to notice.
const PACKAGES: [&str; 2] = ["headgate-codec", "headgate-core"];

/// Mutants in a hundred that may survive before the command fails. A sample of twenty scatters widely (in one, four of eighteen
/// survived), and chance alone shall not fail a run.
const SURVIVORS_PERCENT_MAX: usize = 50;

/// How long the tests of one mutant may take, seconds; a mutant that loops for ever is caught by that.
const TEST_TIME_MAX_S: u32 = 120;

/// How long building one mutant may take, seconds.
const BUILD_TIME_MAX_S: u32 = 600;

/// Random cases for each property while a mutant is tried. Unoptimized, the usual ones take longer than all other tests together.
const PROPERTY_CASES: &str = "64";

/// What `cargo xtask mutants` takes.
#[derive(clap::Args)]
pub struct Options {
    /// About how many mutants to try
    #[arg(long, default_value_t = 20)]
    count: usize,
    /// Which ones: the same seed takes the same ones of the same sources. The default is the number of commits
    #[arg(long)]
    seed: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            count: 20,
            seed: None,
        }
    }
}

/// What became of a sample.
#[derive(Debug, Default)]
pub struct Sample {
    /// Chooses the sample, together with the sources.
    pub seed: u64,
    /// How many there are to choose from.
    pub total: usize,
    /// Noticed by a test, or endless.
    pub caught: usize,
    /// That don't compile, and say nothing.
    pub unviable: usize,
    /// Noticed by nothing: what was changed, and where.
    pub survivors: Vec<String>,
}

impl Sample {
    /// Whether so many survive that the tests can't be said to notice.
    pub fn is_bad(&self) -> bool {
        let tried = self.caught + self.survivors.len();
        tried == 0 || self.survivors.len() * 100 > tried * SURVIVORS_PERCENT_MAX
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            seed,
            total,
            caught,
            unviable,
            survivors,
        } = self;
        let missed = survivors.len();
        write!(
            out,
            "mutants of {total} with seed {seed}: {caught} caught, {missed} survived, {unviable} did not compile"
        )
    }
}

/// Runs the command.
///
/// # Errors
/// cargo-mutants can't be installed or run, or the tests fail without any mutant.
pub fn run(options: &Options) -> Result<ExitCode> {
    let sample = sample(options, true)?;
    for survivor in &sample.survivors {
        println!("survived: {survivor}");
    }
    println!("{sample}");
    Ok(if sample.is_bad() {
        eprintln!("error: more than {SURVIVORS_PERCENT_MAX} in a hundred survive");
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Tries a sample of all mutants. Each is tested by its own package. With `proves_first` the tests have to pass without a
/// mutant before, which is left out where they just have.
///
/// # Errors
/// As [`run`].
pub fn sample(options: &Options, proves_first: bool) -> Result<Sample> {
    let program = install()?;
    let seed = options.seed.unwrap_or_else(commits);
    let total = count(&program)?;
    let (index, parts) = part(total, options.count, seed);
    let mut mutants = cargo_mutants(&program);
    mutants
        .args([
            "--no-shuffle",
            "--colors",
            "never",
            "--caught",
            "--unviable",
        ])
        .args(["--profile", "mutants"])
        // Most of the time one compiler makes one crate.
        .args(["--jobs", &jobs().to_string()])
        .args(["--timeout", &TEST_TIME_MAX_S.to_string()])
        .args(["--build-timeout", &BUILD_TIME_MAX_S.to_string()]);
    if !proves_first {
        mutants.args(["--baseline", "skip"]);
    }
    mutants
        .args(["--sharding", "round-robin"])
        .args(["--shard", &format!("{index}/{parts}")]);
    let output = paths::target().join("mutants");
    // The mutants are made in copies of the sources, which share what they are built with.
    let built = output.join("target");
    fs::create_dir_all(&built)?;
    mutants.arg("--output").arg(&output);
    mutants.env("CARGO_TARGET_DIR", &built);
    let finished = shell::watch("mutants", "trying mutants", &mut mutants, |_| ());
    // What is built of a copy is of no use to another one.
    fs::remove_dir_all(&built)?;
    let finished = finished?;
    let results = output.join("mutants.out/outcomes.json");
    // 0: all caught; 2: some missed; 3: some timed out. Anything else is no result.
    if !matches!(finished.status.code(), Some(0 | 2 | 3)) {
        bail!("cargo mutants ({}):\n{}", finished.status, finished.tail());
    }
    let text = fs::read_to_string(&results).with_context(|| results.display().to_string())?;
    let mut sample = read(&serde_json::from_str(&text)?)?;
    (sample.seed, sample.total) = (seed, total);
    Ok(sample)
}

/// Reads outcomes.json.
fn read(results: &Value) -> Result<Sample> {
    let mut sample = Sample::default();
    let outcomes = results["outcomes"].as_array();
    for outcome in outcomes.context("no outcomes")? {
        let mutant = &outcome["scenario"]["Mutant"];
        if mutant.is_null() {
            continue;
        }
        let name = mutant["name"].as_str().unwrap_or_default().to_owned();
        match outcome["summary"].as_str().unwrap_or_default() {
            "CaughtMutant" | "Timeout" => sample.caught += 1,
            "Unviable" => sample.unviable += 1,
            "MissedMutant" => sample.survivors.push(name),
            other => bail!("{name}: {other}"),
        }
    }
    Ok(sample)
}

/// Mutants at a time. One is built while another is tested.
fn jobs() -> usize {
    const JOBS_MAX: usize = 4;
    thread::available_parallelism().map_or(1, |cores| cores.get().min(JOBS_MAX))
}

/// How many mutants there are.
fn count(program: &PathBuf) -> Result<usize> {
    let mut mutants = cargo_mutants(program);
    let text = shell::output(mutants.args(["--list", "--json"]));
    let parsed: Value = serde_json::from_str(&text.context("cargo mutants --list")?)?;
    let all = parsed.as_array().context("cargo mutants --list")?;
    Ok(all.len())
}

fn cargo_mutants(program: &PathBuf) -> Command {
    let mut command = Command::new(program);
    command
        .arg("mutants")
        .current_dir(paths::root())
        // CI compiles everything else once.
        .env("CARGO_INCREMENTAL", "1")
        .env("PROPTEST_CASES", PROPERTY_CASES);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    command
}

/// Which of how many equal parts of all mutants to try, so that a part has about `count`. The parts are spread over all
/// sources, and seeds that follow each other take parts that do.
fn part(total: usize, count: usize, seed: u64) -> (u64, u64) {
    let parts = total.div_ceil(count.max(1)).max(1) as u64;
    (seed % parts, parts)
}

/// How many commits there are: it changes what is sampled from change to change, and can be found out again.
fn commits() -> u64 {
    let mut git = Command::new("git");
    git.args(["rev-list", "--count", "HEAD"])
        .current_dir(paths::root());
    let count = shell::output(&mut git).and_then(|text| text.trim().parse().ok());
    count.unwrap_or(1)
}

/// cargo-mutants, which is compiled where it isn't there.
///
/// # Errors
/// It can't be compiled.
pub fn install() -> Result<PathBuf> {
    let program = paths::tools().join("bin/cargo-mutants");
    if program.is_file() {
        return Ok(program);
    }
    println!("installing cargo-mutants {CARGO_MUTANTS} into the target folder");
    let mut cargo = shell::clean_cargo(&paths::root());
    cargo
        // It waits for compilers and tests most of the time: building it fast matters more than its own speed.
        .args(["install", "cargo-mutants", "--locked", "--debug"])
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .args(["--version", CARGO_MUTANTS, "--root"])
        .arg(paths::tools());
    shell::must(
        "cargo-mutants",
        "cargo install cargo-mutants (a few minutes)",
        &mut cargo,
    )?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_that_follow_each_other_try_all_mutants() {
        assert_eq!(part(1_978, 20, 7), (7, 99));
        assert_eq!(part(1_978, 20, 99), (0, 99));
        assert_eq!(part(5, 20, 3), (0, 1));
        assert_eq!(part(0, 0, 3), (0, 1));
    }

    #[test]
    fn survivors_are_named_and_too_many_are_bad() {
        let outcome = |summary: &str| serde_json::json!({"scenario": {"Mutant": {"name": "m"}}, "summary": summary});
        let results = |summaries: &[&str]| {
            let outcomes: Vec<Value> = summaries.iter().map(|s| outcome(s)).collect();
            read(&serde_json::json!({ "outcomes": outcomes }))
        };
        let good = [
            "CaughtMutant",
            "Timeout",
            "CaughtMutant",
            "MissedMutant",
            "Unviable",
        ];
        let sample = results(&good).expect("outcomes");
        assert_eq!((sample.caught, sample.unviable), (3, 1));
        assert_eq!(sample.survivors, ["m"]);
        assert!(!sample.is_bad());
        assert!(
            results(&["CaughtMutant", "MissedMutant", "MissedMutant"])
                .expect("outcomes")
                .is_bad()
        );
        assert!(
            results(&["Unviable"]).expect("outcomes").is_bad(),
            "nothing was tried"
        );
        assert!(results(&["Failure"]).is_err());
    }
}
