//! `headgate ctl`.

mod session;

use super::{Failure, say, status::Broker};
use crate::admin;
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::{fmt::Write as _, process::ExitCode, time::Duration};

/// Look at and change a running broker
///
/// What is changed is in force at once, and after a restart.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  headgate ctl quota list
  headgate ctl quota set sensors messages_per_second=20 above=refuse
  headgate ctl quota reset sensors                        as the configuration says
  headgate ctl deny add 203.0.113.0/24 --for 10m --reason \"scans us\"
  headgate ctl deny list
  headgate ctl allow add 198.51.100.0/24                  never denied automatically
  headgate ctl session show sensor-7
  headgate ctl qlog 203.0.113.7                           its next QUIC connection, for qvis and the like")]
pub(super) struct CtlArgs {
    #[command(subcommand)]
    topic: Topic,
}

#[derive(Debug, Subcommand)]
enum Topic {
    /// Quota classes: what the sessions of a class may use
    #[command(subcommand)]
    Quota(Quota),
    /// Sources that are turned away
    #[command(subcommand)]
    Deny(Listing),
    /// Sources that no budget by source applies to, and that are never denied automatically
    #[command(subcommand)]
    Allow(Listing),
    /// Sessions: what one client holds and has done
    #[command(subcommand)]
    Session(Session),
    /// Write the next QUIC connection from an address down as qlog (JSON-SEQ), and say into which file of the state
    /// folder. It takes CPU time of the connection's worker, and ends after 64 MiB; files stay until you delete them
    Qlog {
        /// Such as 203.0.113.7 or 2001:db8::7
        #[arg(value_name = "ADDRESS")]
        address: String,
        #[command(flatten)]
        broker: Broker,
    },
}

#[derive(Debug, Subcommand)]
enum Session {
    /// Show a client's session: subscriptions, queue and memory, and what has gone over its connection
    Show {
        /// The Client Identifier
        #[arg(value_name = "ID")]
        client_id: String,
        #[command(flatten)]
        shown: Shown,
    },
}

#[derive(Debug, Subcommand)]
enum Listing {
    /// Put a prefix on the list, or change its entry; the longest prefix decides
    Add {
        /// Such as 203.0.113.0/24, 203.0.113.7 or 2001:db8::/32
        #[arg(value_name = "PREFIX")]
        prefix: String,
        /// For how long: 30s, 10m, 12h or 7d [default: until it is deleted]
        #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
        lasts: Option<Duration>,
        /// Why, for those who read the list
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        broker: Broker,
    },
    /// Take a prefix off the list
    Del {
        /// As it is listed
        #[arg(value_name = "PREFIX")]
        prefix: String,
        #[command(flatten)]
        broker: Broker,
    },
    /// Show the list: who has put a prefix there, how long it stays, and why
    List(Shown),
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
        Topic::Deny(listing) => lists("deny", listing)?,
        Topic::Allow(listing) => lists("allow", listing)?,
        Topic::Session(Session::Show { client_id, shown }) => {
            let question = json!({ "command": "session_show", "client_id": client_id });
            let session = ask(&shown.broker, &question)?;
            match shown.json {
                true => say(&format!("{session:#}\n")),
                false => say(&session::show(&session)),
            }
        }
        Topic::Qlog { address, broker } => {
            let answer = ask(broker, &json!({ "command": "qlog", "address": address }))?;
            say(&format!(
                "{}\n",
                answer["file"].as_str().unwrap_or_default()
            ));
        }
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

fn lists(list: &str, listing: &Listing) -> Result<(), Failure> {
    match listing {
        Listing::Add {
            prefix,
            lasts,
            reason,
            broker,
        } => {
            let question = json!({
                "command": "list_add",
                "list": list,
                "prefix": prefix,
                "for_s": lasts.map(|lasts| lasts.as_secs()),
                "reason": reason,
            });
            ask(broker, &question)?;
        }
        Listing::Del { prefix, broker } => {
            let question = json!({ "command": "list_del", "list": list, "prefix": prefix });
            ask(broker, &question)?;
        }
        Listing::List(shown) => {
            let entries = ask(&shown.broker, &json!({ "command": "lists", "list": list }))?;
            match shown.json {
                true => say(&format!("{entries:#}\n")),
                false => say(&show_entries(&entries)),
            }
        }
    }
    Ok(())
}

fn show_entries(entries: &Value) -> String {
    let entries = entries.as_array().map_or(&[][..], Vec::as_slice);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut out = String::new();
    for entry in entries {
        let left = match entry["left_s"].as_u64() {
            Some(seconds) => format!("{seconds} s left"),
            None => "for ever".to_owned(),
        };
        let (prefix, by) = (text(&entry["prefix"]), text(&entry["by"]));
        let line = format!("{prefix:<24}{by:<24}{left:<16}{}", text(&entry["reason"]));
        let _ = writeln!(out, "{}", line.trim_end());
    }
    if out.is_empty() {
        out.push_str("nothing is listed\n");
    }
    out
}

/// A number and a unit.
fn parse_time(text: &str) -> Result<Duration, String> {
    let units = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)];
    let parse = || {
        let (unit, seconds) = units.iter().find(|(unit, _)| text.ends_with(*unit))?;
        let number: u64 = text.strip_suffix(*unit)?.parse().ok()?;
        number.checked_mul(*seconds).filter(|seconds| *seconds > 0)
    };
    let wrong = || "it is a number with s, m, h or d, such as 10m".to_owned();
    parse().map(Duration::from_secs).ok_or_else(wrong)
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
            ("0", "subscriptions" | "queued_messages" | "memory_bytes" | "streams") => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        let seconds = |text| parse_time(text).map(|time| time.as_secs());
        assert_eq!(seconds("30s"), Ok(30));
        assert_eq!(seconds("10m"), Ok(600));
        assert_eq!(seconds("2h"), Ok(7_200));
        assert_eq!(seconds("7d"), Ok(604_800));
        for wrong in [
            "",
            "10",
            "m",
            "-1m",
            "0s",
            "1.5h",
            "10é",
            "99999999999999999999d",
        ] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
