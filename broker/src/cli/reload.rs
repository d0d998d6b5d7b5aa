//! `headgate reload`.

use super::{Failure, say, status::Broker};
use crate::admin;
use serde_json::json;
use std::process::ExitCode;

/// Let the broker read its certificates again
///
/// It reads the files of the section [tls] again, as it does on SIGHUP: tls.certificate, tls.key, tls.more_certificates,
/// tls.client_ca, and OCSP responses. New connections see them, open ones stay. The configuration itself is read at
/// start only. If a file can't be used, the broker goes on with what it has.
#[derive(Debug, clap::Args)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    broker: Broker,
}

pub(super) fn reload(args: &ReloadArgs) -> Result<ExitCode, Failure> {
    let socket = args.broker.socket()?;
    admin::ask(&socket, &json!({ "command": "reload" })).map_err(Failure::other)?;
    say("the certificates were read again\n");
    Ok(ExitCode::SUCCESS)
}
