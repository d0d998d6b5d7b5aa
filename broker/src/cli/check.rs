//! `headgate check`.

use super::{DEFAULT_CONFIG, Failure, say, shown, sources};
use crate::config::{Config, ConfigError, Origin, check_files};
use std::{path::PathBuf, process::ExitCode};

/// Check a configuration file without starting anything
///
/// Reads the file and the environment as `run` would, and the files that they point to. Whatever is
/// wrong is printed with its place and what is allowed, and the exit code is 2.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The configuration file [default: /etc/headgate/headgate.toml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print a configuration file with every key, its default and what it means
    #[arg(long, conflicts_with = "config")]
    print_defaults: bool,
}

pub(super) fn check(args: &CheckArgs) -> Result<ExitCode, Failure> {
    if args.print_defaults {
        say(&Config::defaults_toml());
        return Ok(ExitCode::SUCCESS);
    }
    let sources = sources(args.config.clone(), Config::default());
    let Some(file) = sources.file.clone() else {
        let message = format!("there is no {DEFAULT_CONFIG}, and no other file was named");
        let help = "name one with --config FILE; --print-defaults prints one to begin with";
        return Err(ConfigError::one(message, Origin::Default, help).into());
    };
    let loaded = sources.load()?;
    check_files(&loaded)?;
    say(&format!("{}: right\n", shown(&file)));
    Ok(ExitCode::SUCCESS)
}
