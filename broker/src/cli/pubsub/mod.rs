//! `headgate pub` and `headgate sub`: publish and subscribe from the command line, with the flags
//! of mosquitto_pub and mosquitto_sub.
//!
//! Exit codes: 0 done; 1 the server isn't reached, or the connection is lost; 2 the command line
//! is wrong; 3 the server refuses the connection, a subscription or a message; 27 timed out.

mod format;
mod options;
mod properties;
mod publish;
mod subscribe;

pub use publish::PubArgs;
pub use subscribe::SubArgs;

use super::client::ClientError;
use std::{io, process::ExitCode, time::Duration};

/// Publishes what the command line says.
pub fn run_pub(args: PubArgs) -> ExitCode {
    run(args.connection.timeout(), publish::publish(args))
}

/// Subscribes and prints messages as the command line says.
pub fn run_sub(args: SubArgs) -> ExitCode {
    // -W ends it from inside, with a DISCONNECT.
    run(None, subscribe::subscribe(args))
}

/// Why a command ends without having done its work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The command line contradicts itself.
    #[error("{0}")]
    Usage(String),
    /// The connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server refused a subscription or a message.
    #[error("{0}")]
    Refused(String),
    /// The time given with `-W` is over.
    #[error("timed out")]
    TimedOut,
    /// A file or a standard stream.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Of the operating system.
        source: io::Error,
    },
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Client(ClientError::Refused { .. }) | Self::Refused(_) => 3,
            Self::TimedOut => 27,
            Self::Client(_) | Self::Io { .. } => 1,
        }
    }
}

/// Drives `work` to its end, for at most `limit`.
fn run(limit: Option<Duration>, work: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: can't start: {error}");
            return ExitCode::from(1);
        }
    };
    let result = runtime.block_on(async {
        match limit {
            Some(limit) => tokio::time::timeout(limit, work)
                .await
                .unwrap_or(Err(Failure::TimedOut)),
            None => work.await,
        }
    });
    // A thread that still waits for standard input must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
            // Whoever read the output has enough of it.
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code())
        }
    }
}
