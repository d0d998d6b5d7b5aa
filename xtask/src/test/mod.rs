//! `cargo xtask test`: every check and every test, a line each, and one closing line that counts them.

mod fuzz;
mod stacks;
mod tally;
mod together;

use std::env;
use std::fs;
use std::panic;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::bench::BENCH_FEATURE;
use crate::programs::{self, Program};
use crate::setup::{self, ebpf};
use crate::{build_ebpf, conformance, mutants, paths, shell, tidy};

pub use tally::{Counted, Outcome, Ran, Reader, failures};

use tally::Tally;

/// What `cargo xtask test` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Also what takes long: each fuzz target for a minute, property tests with many more cases, ten times the simulation's
    /// seeds, 50 kills and losses of power, clients on QUIC stacks that compile for minutes
    #[arg(long)]
    full: bool,
}

/// Where tests that can't run here say so, one line each: `SKIPPED name: reason`.
pub const SKIP_LOG: &str = "HEADGATE_SKIP_LOG";

/// Names the binary that the tests from outside drive.
pub const BINARY: &str = "HEADGATE_BIN";

/// Cases per property in `--full`.
const PROPERTY_CASES_FULL: &str = "5000";

/// How often a thread of a model may be interrupted where it does not wait; without a bound a model takes hours.
const PREEMPTIONS_MAX: &str = "3";

/// How many seeds the simulation runs.
const SIMULATION_SEEDS: &str = "HEADGATE_SIM_SEEDS";

/// Seeds in `--full`.
const SIMULATION_SEEDS_FULL: &str = "100000";

/// How often the broker is killed under load, and how often the power is lost as well; with the numbers for `--full`.
const CRASHES_FULL: [(&str, &str); 2] = [
    ("HEADGATE_CRASH_ROUNDS", "50"),
    ("HEADGATE_POWER_ROUNDS", "50"),
];

/// Runs the command.
///
/// # Errors
/// Something could not be started or installed. Failing tests are no error here: they are counted.
pub fn run(options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    let mut session = Session {
        tally: Tally::default(),
        failed: Vec::new(),
        is_complete: shell::is_root(),
    };
    thread::scope(|threads| {
        let prepared = Session::prepare(threads)?;
        session.checks()?;
        let clients = session.prepared(prepared)?;
        let is_built = session.build()?;
        session.installed(clients)?;
        if options.full {
            session.stacks();
        }
        if is_built {
            session.tests()?;
        }
        anyhow::Ok(())
    })?;
    session.mutants();
    if options.full {
        session.long_runs()?;
    }
    Ok(session.close(started.elapsed()))
}

/// What the broker is built with.
struct KernelPart<'a> {
    missing: Vec<String>,
    /// What building it said, or what is missing for that.
    object: Result<Result<String>, ebpf::Missing>,
    /// What only the tests need is still being installed.
    clients: ScopedJoinHandle<'a, Result<Vec<String>>>,
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|panic| panic::resume_unwind(panic))
}

/// One run of everything.
struct Session {
    tally: Tally,
    /// What failed: names of checks and of tests.
    failed: Vec<String>,
    /// This machine has all that the tests need.
    is_complete: bool,
}

impl Session {
    /// Begins to install what is missing, and to build the kernel programs, beside the checks: much of it is waiting for a
    /// network, or for one core that compiles a large crate.
    fn prepare<'a>(
        threads: &'a Scope<'a, '_>,
    ) -> Result<ScopedJoinHandle<'a, Result<KernelPart<'a>>>> {
        setup::components()?;
        Ok(threads.spawn(move || {
            let missing = setup::kernel_part()?;
            let clients = threads.spawn(|| {
                let missing = setup::clients::install();
                // The sample of mutants says it if they can't be made.
                let _program = mutants::install();
                missing
            });
            Ok(KernelPart {
                missing,
                object: ebpf::find().map(|toolchain| build_ebpf::build(&toolchain)),
                clients,
            })
        }))
    }

    /// Waits for the kernel part.
    fn prepared<'a>(
        &mut self,
        prepared: ScopedJoinHandle<'a, Result<KernelPart<'a>>>,
    ) -> Result<ScopedJoinHandle<'a, Result<Vec<String>>>> {
        let part = join(prepared)?;
        self.miss(&part.missing);
        match part.object {
            Ok(Ok(text)) => self.passed("build-ebpf", None, &text),
            Ok(Err(error)) => self.fails("build-ebpf", &format!("{error:#}")),
            Err(reason) => self.skipped("build-ebpf", &format!("missing: {reason}")),
        }
        Ok(part.clients)
    }

    /// Waits for what only the tests need.
    fn installed(&mut self, clients: ScopedJoinHandle<'_, Result<Vec<String>>>) -> Result<()> {
        let waited = Instant::now();
        let missing = join(clients)?;
        self.miss(&missing);
        step("clients", waited.elapsed(), "ok");
        Ok(())
    }

    /// Says what isn't there.
    fn miss(&mut self, missing: &[String]) {
        for line in missing {
            println!("missing: {line}");
        }
        self.is_complete &= missing.is_empty();
    }

    /// What is checked without running the code.
    fn checks(&mut self) -> Result<()> {
        let mut format = shell::cargo();
        format.args(["fmt", "--all", "--check", "--", "--color=never"]);
        self.check("fmt", &mut format)?;
        if paths::ebpf_workspace().join("Cargo.toml").is_file() {
            let mut format = shell::cargo();
            format.args(["fmt", "--check", "--manifest-path", "xdp-ebpf/Cargo.toml"]);
            format.args(["--", "--color=never"]);
            self.check("fmt-ebpf", &mut format)?;
        }
        let mut clippy = shell::cargo();
        clippy.args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            BENCH_FEATURE,
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]);
        self.check("clippy", &mut clippy)?;
        let mut doc = shell::cargo();
        doc.args(["doc", "--workspace", "--no-deps", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings");
        self.check("doc", &mut doc)?;
        Ok(())
    }

    /// Sizes, comments, links. It asks the binary for its commands, so that is built before.
    fn tidy(&mut self) -> Result<()> {
        let started = Instant::now();
        let complaints = tidy::complaints()?;
        if complaints.is_empty() {
            self.passed("tidy", Some(started.elapsed()), "");
        } else {
            self.fails("tidy", &format!("    {}", complaints.join("\n    ")));
        }
        Ok(())
    }

    /// The binaries; those among the tests that come from outside drive the broker that is built here.
    fn build(&mut self) -> Result<bool> {
        let mut build = shell::cargo();
        // With the features that the tests' build has: nothing is compiled twice.
        build.args(["build", "--quiet", "--workspace", "--bins"]);
        let is_built = self.check("build", &mut build)?;
        self.tidy()?;
        Ok(is_built)
    }

    /// Clients that an ordinary run does without, and says so for each test that wants them.
    fn stacks(&mut self) {
        match stacks::build() {
            Ok(took) => self.passed("build-stacks", Some(took), ""),
            Err(error) => self.fails("build-stacks", &format!("    {error:#}")),
        }
    }

    /// The tests of all crates.
    fn tests(&mut self) -> Result<()> {
        let started = Instant::now();
        let programs = match programs::build() {
            Ok(programs) => programs,
            Err(error) => {
                self.fails("build-tests", &format!("    {error:#}"));
                return Ok(());
            }
        };
        self.passed("build-tests", Some(started.elapsed()), "");
        let ran = self.programs(&programs)?;
        let mut examples = shell::cargo();
        examples.args(["test", "--workspace", "--doc"]);
        self.cargo_test("doc-tests", &mut examples)?;
        self.interleavings()?;
        self.conformance(&programs, &ran)
    }

    /// Runs the test programs and counts their tests one by one.
    fn programs(&mut self, programs: &[Program]) -> Result<Vec<Ran>> {
        let started = Instant::now();
        let mut all = Vec::new();
        let mut tally = Tally::default();
        together::run(programs, |program, ended| {
            let Counted {
                ran,
                tally: counted,
                failed_tests,
                skipped_tests,
            } = ended.counted;
            if let Some(line) = ended.summary {
                println!("  {line}");
            }
            for (test, reason) in skipped_tests {
                println!("  SKIPPED {test}: {reason}");
            }
            if let Some(complaint) = ended.complaint {
                println!("{complaint}");
                if failed_tests.is_empty() {
                    tally.failed += 1;
                    self.failed.push(program.title());
                }
            }
            self.failed.extend(failed_tests);
            tally.add(&counted);
            all.extend(ran);
        })?;
        self.tally.add(&tally);
        if all.is_empty() {
            self.fails("test", "    not one test ran");
            return Ok(all);
        }
        let outcome = if tally.failed > 0 { "FAILED" } else { "ok" };
        step("test", started.elapsed(), &format!("{outcome}: {tally}"));
        Ok(all)
    }

    /// What readers of the topic table may see while it is written to: loom tries the interleavings of small histories.
    fn interleavings(&mut self) -> Result<()> {
        let mut test = shell::cargo();
        test.args(["test", "--release", "-p", "headgate-topics", "--lib"])
            .arg("--target-dir")
            .arg(paths::target().join("loom"))
            .args(["--", "interleavings"])
            .env("RUSTFLAGS", "--cfg loom")
            // Compiling takes far longer than the models do.
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
            .env("LOOM_MAX_PREEMPTIONS", PREEMPTIONS_MAX);
        self.cargo_test("loom", &mut test)?;
        Ok(())
    }

    /// Whether what ran covers the standard's statements.
    fn conformance(&mut self, programs: &[Program], ran: &[Ran]) -> Result<()> {
        let started = Instant::now();
        let verdict = conformance::after_run(programs, ran, self.is_complete)?;
        for line in &verdict.remarks {
            println!("  {line}");
        }
        if verdict.complaints.is_empty() {
            self.passed("conformance", Some(started.elapsed()), "");
        } else {
            let text = format!("    {}", verdict.complaints.join("\n    "));
            self.fails("conformance", &text);
        }
        Ok(())
    }

    /// What takes too long for every change.
    fn long_runs(&mut self) -> Result<()> {
        let mut test = shell::cargo();
        test.args(["test", "--workspace", "--no-fail-fast", "--lib"])
            .env("PROPTEST_CASES", PROPERTY_CASES_FULL);
        self.cargo_test("properties", &mut test)?;
        let mut test = shell::cargo();
        // As a part of the workspace: alone, its dependencies would be built once more with other features.
        test.args(["test", "--workspace", "--test", "simulation"])
            .env(SIMULATION_SEEDS, SIMULATION_SEEDS_FULL);
        self.cargo_test("simulation", &mut test)?;
        let mut test = shell::cargo();
        test.args(["test", "--workspace"])
            .args(["--test", "durability_kill", "--test", "durability_power"])
            .envs(CRASHES_FULL);
        self.cargo_test("crashes", &mut test)?;
        for outcome in fuzz::run()? {
            match outcome {
                fuzz::Outcome::Passed { target, took } => {
                    self.passed(&format!("fuzz {target}"), Some(took), "")
                }
                fuzz::Outcome::Failed { target, text } => {
                    self.fails(&format!("fuzz {target}"), &text)
                }
                fuzz::Outcome::Skipped { target, reason } => {
                    self.skipped(&format!("fuzz {target}"), &reason)
                }
            }
        }
        Ok(())
    }

    /// A sample of small changes, which the tests of the core and the codec have to notice.
    fn mutants(&mut self) {
        let started = Instant::now();
        match mutants::sample(&mutants::Options::default(), self.tally.failed > 0) {
            Ok(sample) => {
                for survivor in &sample.survivors {
                    println!("  survived: {survivor}");
                }
                if sample.is_bad() {
                    self.fails("mutants", &format!("    {sample}"));
                } else {
                    println!("  {sample}");
                    self.passed("mutants", Some(started.elapsed()), "");
                }
            }
            Err(error) => self.fails("mutants", &format!("    {error:#}")),
        }
    }

    /// Runs a check: it passes if its command does.
    fn check(&mut self, name: &str, command: &mut Command) -> Result<bool> {
        let finished = shell::watch(name, name, command, |_| ())?;
        if finished.status.success() {
            self.passed(name, Some(finished.took), "");
        } else {
            self.fails(
                name,
                &format!("{}\n    ({})", finished.tail(), finished.status),
            );
        }
        Ok(finished.status.success())
    }

    /// Runs `cargo test` and counts its tests one by one.
    fn cargo_test(&mut self, name: &str, command: &mut Command) -> Result<Vec<Ran>> {
        let skip_log = fresh_skip_log(name)?;
        command
            .env(SKIP_LOG, &skip_log)
            .env(BINARY, paths::target().join("debug/headgate"));
        settle_incremental(command);
        let mut reader = Reader::default();
        let finished = shell::watch(name, name, command, |line| {
            if let Some(program) = reader.line(line) {
                println!("  {program}");
            }
        })?;
        let skips = fs::read_to_string(&skip_log).unwrap_or_default();
        let counted = reader.finish(&skips);
        for (test, reason) in &counted.skipped_tests {
            println!("  SKIPPED {test}: {reason}");
        }
        let has_failures = !counted.failed_tests.is_empty();
        if has_failures {
            println!("{}", failures(&finished.output()?));
        }
        self.failed.extend(counted.failed_tests.iter().cloned());
        self.tally.add(&counted.tally);
        if !finished.status.success() && !has_failures {
            self.fails(
                name,
                &format!("{}\n    ({})", finished.tail(), finished.status),
            );
        } else if counted.tally.passed == 0 {
            self.fails(name, "    not one test ran");
        } else {
            let outcome = if has_failures { "FAILED" } else { "ok" };
            step(
                name,
                finished.took,
                &format!("{outcome}: {}", counted.tally),
            );
        }
        Ok(counted.ran)
    }

    fn passed(&mut self, name: &str, took: Option<Duration>, text: &str) {
        self.tally.passed += 1;
        match took {
            Some(took) => step(name, took, "ok"),
            None => println!("{name:<12} {text}"),
        }
    }

    fn fails(&mut self, name: &str, text: &str) {
        self.tally.failed += 1;
        self.failed.push(name.to_owned());
        println!("{name:<12} FAILED\n{text}");
    }

    fn skipped(&mut self, name: &str, reason: &str) {
        self.tally.skipped += 1;
        println!("{name:<12} SKIPPED {name}: {reason}");
    }

    /// Says how it went; the last line is for machines too.
    fn close(self, took: Duration) -> ExitCode {
        for name in &self.failed {
            println!("failed: {name}");
        }
        println!("took {}", shell::seconds(took));
        println!("{}", self.tally);
        if self.tally.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn step(name: &str, took: Duration, outcome: &str) {
    println!("{name:<12} {:>12}  {outcome}", shell::seconds(took));
}

/// Continuous integration compiles everything once: incremental compilation only costs there. Every cargo that builds tests
/// has to agree, because the names of their programs depend on it.
pub fn settle_incremental(cargo: &mut Command) {
    if env::var_os("CI").is_some() {
        cargo.env("CARGO_INCREMENTAL", "0");
    }
}

/// An empty log for the tests of one run that can't be tried.
///
/// # Errors
/// It can't be written.
pub fn fresh_skip_log(name: &str) -> Result<PathBuf> {
    fs::create_dir_all(paths::logs())?;
    let log = paths::logs().join(format!("{name}.skipped"));
    fs::write(&log, "")?;
    Ok(log)
}
