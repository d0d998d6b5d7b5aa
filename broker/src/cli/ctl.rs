//! `headgate ctl`.

use super::{Failure, say, status::Broker};
use crate::admin;
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::{fmt::Write as _, process::ExitCode};

/// Look at and change a running broker
///
/// What is changed is in force at once, and after a restart.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  headgate ctl quota list
  headgate ctl quota set sensors messages_per_second=20 above=refuse
  headgate ctl quota reset sensors                        as the configuration says")]
pub(super) struct CtlArgs {
    #[command(subcommand)]
    topic: Topic,
}

#[derive(Debug, Subcommand)]
enum Topic {
    /// Quota classes: what the sessions of a class may use
    #[command(subcommand)]
    Quota(Quota),
}

#[derive(Debug, Subcommand)]
enum Quota {
    /// Show every class and its connections; (ctl) and (map) mark what is not as the configuration says
    List(Shown),
    /// Change a class
    Set {
        /// The class: [quota.NAME] in the configuration
        #[arg(value_name = "NAME")]
        name: String,
        /// What to change; the keys are those of [quota.NAME]
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = parse_pair)]
        values: Vec<(String, String)>,
        #[command(flatten)]
        broker: Broker,
    },
    /// Take back what was changed of a class
    Reset {
        /// The class
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        broker: Broker,
    },
}

#[derive(Debug, clap::Args)]
struct Shown {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: Broker,
}

pub(super) fn ctl(args: &CtlArgs) -> Result<ExitCode, Failure> {
    match &args.topic {
        Topic::Quota(quota) => quotas(quota)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn quotas(quota: &Quota) -> Result<(), Failure> {
    match quota {
        Quota::List(shown) => {
            let classes = ask(&shown.broker, &json!({ "command": "quota_list" }))?;
            match shown.json {
                true => say(&format!("{classes:#}\n")),
                false => say(&show_classes(&classes)),
            }
        }
        Quota::Set {
            name,
            values,
            broker,
        } => {
            let values: Map<String, Value> = values
                .iter()
                .map(|(key, value)| (key.clone(), value.clone().into()))
                .collect();
            let question = json!({ "command": "quota_set", "name": name, "values": values });
            say(&show_class(&ask(broker, &question)?, name));
        }
        Quota::Reset { name, broker } => {
            let question = json!({ "command": "quota_reset", "name": name });
            say(&show_class(&ask(broker, &question)?, name));
        }
    }
    Ok(())
}

fn ask(broker: &Broker, question: &Value) -> Result<Value, Failure> {
    admin::ask(&broker.socket()?, question).map_err(Failure::other)
}

fn show_classes(classes: &Value) -> String {
    let classes = classes.as_array().map_or(&[][..], Vec::as_slice);
    classes.iter().map(class_lines).collect()
}

fn show_class(classes: &Value, name: &str) -> String {
    let classes = classes.as_array().map_or(&[][..], Vec::as_slice);
    let class = classes.iter().find(|class| class["name"] == name);
    class.map(class_lines).unwrap_or_default()
}

fn class_lines(class: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut out = format!(
        "{}: {} connections\n",
        text(&class["name"]),
        class["open_connections"]
    );
    for (key, value) in class["values"].as_object().into_iter().flatten() {
        let by = match value["by"].as_str() {
            None | Some("configuration") => String::new(),
            Some(by) => format!("  ({by})"),
        };
        let shown = match (&*text(&value["value"]), &**key) {
            ("0", "subscriptions" | "queued_messages" | "memory_bytes") => {
                "as in [limits]".to_owned()
            }
            ("0", _) => "no limit".to_owned(),
            (value, _) => value.to_owned(),
        };
        let _ = writeln!(out, "  {key:<20}{shown}{by}");
    }
    out
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=');
    pair.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .ok_or_else(|| "it has the form KEY=VALUE, such as connections=1000".to_owned())
}
