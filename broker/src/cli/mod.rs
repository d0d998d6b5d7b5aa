//! The command line.
//!
//! Exit codes: 0 done, 1 it did not work, 2 the command line or the configuration is wrong; [`pubsub`] has two more.

pub mod client;
pub mod pubsub;

mod bench;
mod check;
mod ctl;
mod dev;
mod drain;
mod logging;
mod passwd;
mod reload;
mod run;
mod server_args;
mod show;
mod status;
mod store;
mod top;

use crate::config::{Config, ConfigError, Sources};
use clap::{Parser, Subcommand};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// The configuration file that is read when none is named, if it exists.
pub const DEFAULT_CONFIG: &str = "/etc/headgate/headgate.toml";

/// Reads the command line of this process and does what it says.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => finish(run::run(*args)),
        Command::Check(args) => finish(check::check(&args)),
        Command::Status(args) => finish(status::status(&args)),
        Command::Top(args) => finish(top::top(&args)),
        Command::Drain(args) => finish(drain::drain(&args)),
        Command::Ctl(args) => finish(ctl::ctl(&args)),
        Command::Reload(args) => finish(reload::reload(&args)),
        Command::Store(args) => finish(store::store(&args)),
        Command::Passwd(args) => finish(passwd::passwd(*args)),
        Command::Pub(args) => pubsub::run_pub(*args),
        Command::Sub(args) => pubsub::run_sub(*args),
        Command::Bench(args) => bench::bench(&args),
    }
}

/// An MQTT broker for the network's edge: MQTT 5.0 and 3.1.1 over QUIC, TCP, TLS and WebSocket, on one worker per
/// core, with an XDP program in front that steers packets and drops floods.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Try it, without root and without a configuration:
  headgate run --dev

Run it for good:
  headgate check --print-defaults > headgate.toml    every key, its default and what it means
  headgate check --config headgate.toml
  headgate run --config headgate.toml
  headgate status                                    while it runs
  headgate top                                       the same, as it changes
  headgate drain --to other.example:8883             send its clients elsewhere
  headgate ctl quota set default connections=50000   change a quota
  headgate ctl deny add 203.0.113.0/24 --for 10m     turn somebody away
  headgate reload                                    read its certificates again
  headgate store check                               are persistent sessions all right?
  headgate passwd -c users ann                       who may connect (auth.password_file)

Talk to a broker, this one or another:
  headgate sub -L quic://localhost/a/# -v --cafile ca.pem
  headgate pub -L mqtt://localhost/a/b -m hello
  headgate bench p2p -L mqtt://localhost --rate 10000      how fast is it?

Exit codes: 0 done; 1 it did not work; 2 the command line or the configuration is wrong; of pub and
sub also 3 the server refuses, 27 timed out.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    Top(top::TopArgs),
    Drain(drain::DrainArgs),
    Ctl(ctl::CtlArgs),
    Reload(reload::ReloadArgs),
    Store(store::StoreArgs),
    Passwd(Box<passwd::PasswdArgs>),
    Pub(Box<pubsub::PubArgs>),
    Sub(Box<pubsub::SubArgs>),
    Bench(Box<bench::BenchArgs>),
}

/// Why a command ends without having done its work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Exit code 2.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// Exit code 1.
    #[error("error: {0}")]
    Other(Box<dyn std::error::Error>),
}

impl Failure {
    fn other(error: impl Into<Box<dyn std::error::Error>>) -> Self {
        Self::Other(error.into())
    }
}

fn finish(result: Result<ExitCode, Failure>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("{}", failure.to_string().trim_end());
            ExitCode::from(match failure {
                Failure::Config(_) => 2,
                Failure::Other(_) => 1,
            })
        }
    }
}

/// The sources that `run`, `check` and `status` have in common: the file that was named, or
/// [`DEFAULT_CONFIG`] if there is one, and the environment.
fn sources(file: Option<PathBuf>, base: Config) -> Sources {
    let default = || Some(PathBuf::from(DEFAULT_CONFIG)).filter(|file| file.exists());
    // A variable that is not Unicode is none of ours.
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    Sources {
        base,
        file: file.or_else(default),
        environment: std::env::vars_os().filter_map(text).collect(),
        flags: Vec::new(),
    }
}

/// Writes to standard output. A reader that has enough (`| head`) is no error.
fn say(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A path for a line of output.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
