//! Developer commands: `cargo xtask setup | build-ebpf | run | test | conformance | mutants | bench | tidy`.

mod bench;
mod build_ebpf;
mod conformance;
mod mutants;
mod paths;
mod programs;
mod run;
mod setup;
mod shell;
mod test;
mod tidy;
mod verifier;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs, tests and measures headgate.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building (and testing) needs and is missing; says what and why
    Setup(setup::Options),
    /// Build the kernel programs: xdp-ebpf/target/bpfel-unknown-none/release/headgate-xdp
    BuildEbpf,
    /// Set up, build, and start the broker with a development certificate
    Run(run::Options),
    /// Set up, then run every check and every test
    Test(test::Options),
    /// Run the tests that MQTT 5.0's normative statements are mapped to, and check the map
    Conformance(conformance::Options),
    /// Change the core and the codec in small ways, and see whether their tests notice
    Mutants(mutants::Options),
    /// Measure, and compare with the bars
    Bench(bench::Options),
    /// Check the rules of the project that no compiler checks
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Setup(options) => setup::run(&options),
        Command::BuildEbpf => build_ebpf::run(),
        Command::Run(options) => run::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Conformance(options) => conformance::run(&options),
        Command::Mutants(options) => mutants::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Tidy => tidy::run(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
