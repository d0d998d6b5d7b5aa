//! `headgate status`.

use super::{Failure, dev, say, show, sources};
use crate::{admin, config::Config};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Ask a running broker how it does
///
/// Talks to the broker on this machine over its Unix socket, which answers root and the broker's own
/// user. Without --socket and --config it looks for ./.headgate/admin.sock (that of `run --dev`),
/// then where the default configuration says.
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Print the whole answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: Broker,
}

/// Which broker is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Broker {
    /// The broker's admin socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The configuration file that the broker was started with
    #[arg(long, short, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
}

pub(super) fn status(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let socket = args.broker.socket()?;
    let status = admin::request(&socket, "status").map_err(Failure::other)?;
    if args.json {
        say(&format!("{status:#}\n"));
    } else {
        say(&show::status(&status));
    }
    Ok(ExitCode::SUCCESS)
}

impl Broker {
    /// Its admin socket.
    pub(super) fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let of_dev = Path::new(dev::STATE_DIR).join("admin.sock");
        if self.config.is_none() && of_dev.exists() {
            return Ok(of_dev);
        }
        // Whether a broker could run with this configuration is not the question here.
        let loaded = sources(self.config.clone(), Config::default()).load_unchecked()?;
        Ok(loaded.config.admin_socket())
    }
}
