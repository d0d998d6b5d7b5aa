//! `headgate drain`.

use super::{Failure, say, status::Broker};
use crate::admin;
use serde_json::json;
use std::process::ExitCode;

/// Send the clients of a running broker to another server
///
/// New clients are turned away and those that are connected are told to go, a number per second: 5.0
/// clients by DISCONNECT and CONNACK 0x9C (use another server) or 0x9D (server moved) with the Server
/// Reference, older ones by closing. Sessions stay, for those that come back.
#[derive(Debug, clap::Args)]
pub(super) struct DrainArgs {
    /// Server Reference: where the clients should go
    #[arg(long, value_name = "HOST:PORT")]
    to: Option<String>,
    /// For good: 0x9D instead of 0x9C
    #[arg(long)]
    moved: bool,
    /// Clients that are sent away per second; at least ten per worker
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    per_second: u32,
    /// Take clients again
    #[arg(long, conflicts_with_all = ["to", "moved", "per_second"])]
    cancel: bool,
    #[command(flatten)]
    broker: Broker,
}

pub(super) fn drain(args: &DrainArgs) -> Result<ExitCode, Failure> {
    let question = json!({
        "command": "drain",
        "cancel": args.cancel,
        "server_reference": args.to,
        "moved": args.moved,
        "clients_per_second": args.per_second,
    });
    let socket = args.broker.socket()?;
    admin::ask(&socket, &question).map_err(Failure::other)?;
    if args.cancel {
        say("the broker takes clients again\n");
    } else {
        say(&format!(
            "draining, {} clients per second; watch it with `headgate status`, end it with `headgate drain --cancel`\n",
            args.per_second
        ));
    }
    Ok(ExitCode::SUCCESS)
}
