//! `headgate store`.

use super::{Failure, dev, say, shown, sources};
use crate::{
    config::Config,
    store::{
        engine::{Batch, Reader, Table},
        files::{self, StoreError, StoreFiles, Wanted},
        lines::{self, Line},
    },
};
use clap::Subcommand;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Look into the store of persistent sessions and retained messages, while no broker uses it
///
/// The store is found by --path, or where the configuration says; without --config that is ./.headgate/store (that of
/// `run --dev`) if it is there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  headgate store check --config headgate.toml          can everything be read?
  headgate store export --path .headgate/store > store.jsonl
  headgate store import --path /var/lib/headgate/store < store.jsonl

Exit codes: 0 done, nothing wrong; 1 it did not work, or something is damaged; 2 the configuration is wrong.")]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Read everything, and say what is there and what can't be read
    Check {
        #[command(flatten)]
        place: Place,
        /// Where a journal can't be read, cut off what lies behind, even if acknowledged records are among it
        #[arg(long)]
        repair: bool,
    },
    /// Write everything as JSON lines: one object per line, payloads in base64
    Export {
        #[command(flatten)]
        place: Place,
        /// The file to write; - is standard output
        #[arg(long, short, value_name = "FILE", default_value = "-")]
        output: PathBuf,
    },
    /// Make a store from JSON lines that `export` wrote; there may be none yet
    Import {
        #[command(flatten)]
        place: Place,
        /// The file to read; - is standard input
        #[arg(long, short, value_name = "FILE", default_value = "-")]
        input: PathBuf,
    },
}

/// Which store.
#[derive(Debug, clap::Args)]
struct Place {
    /// The store's folder
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,
    /// The configuration file of the broker
    #[arg(long, short, value_name = "FILE", conflicts_with = "path")]
    config: Option<PathBuf>,
}

impl Place {
    fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.path {
            return Ok(path.clone());
        }
        let of_dev = Path::new(dev::STATE_DIR).join("store");
        if self.config.is_none() && of_dev.exists() {
            return Ok(of_dev);
        }
        let loaded = sources(self.config.clone(), Config::default()).load_unchecked()?;
        Ok(loaded.config.store_path())
    }
}

pub(super) fn store(args: &StoreArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        StoreCommand::Check { place, repair } => check(&place.path()?, *repair),
        StoreCommand::Export { place, output } => export(&place.path()?, output),
        StoreCommand::Import { place, input } => import(&place.path()?, input),
    }
}

/// What a store holds.
#[derive(Default)]
struct Found {
    sessions: u64,
    subscriptions: u64,
    queued: u64,
    retained: u64,
    damaged: u64,
}

/// Reads all entries; `each` gets those that can be read.
fn read_all(
    path: &Path,
    reader: &dyn Reader,
    each: &mut dyn FnMut(&Line) -> io::Result<()>,
) -> Result<Found, Failure> {
    let mut found = Found::default();
    let mut written = Ok(());
    for table in Table::ALL {
        let read = reader.scan(table, &[], &[], &mut |key, value| {
            match lines::of_entry(table, key, value) {
                Ok(Some(line)) => {
                    match &line {
                        Line::Session { .. } => found.sessions += 1,
                        Line::Subscription { .. } => found.subscriptions += 1,
                        Line::Queued { .. } => found.queued += 1,
                        Line::Retained { .. } => found.retained += 1,
                        _ => {}
                    }
                    written = each(&line);
                    if written.is_err() {
                        return ControlFlow::Break(());
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    found.damaged += 1;
                    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
                    eprintln!("{} {key}: {error}", table.name());
                }
            }
            ControlFlow::Continue(())
        });
        read.map_err(|error| Failure::other(files::refused(path, error)))?;
    }
    written.map_err(Failure::other)?;
    Ok(found)
}

fn check(path: &Path, repair: bool) -> Result<ExitCode, Failure> {
    let wanted = if repair {
        Wanted::Repaired
    } else {
        Wanted::Existing
    };
    let store = StoreFiles::open(path, wanted).map_err(Failure::other)?;
    let journals = store.journals;
    if journals.torn_bytes > 0 {
        let commits = journals.lost_commits;
        eprintln!(
            "repaired: {} bytes at the end of the journals could not be read and were cut off{}",
            journals.torn_bytes,
            match journals.is_damaged() {
                true => format!(
                    "; at least {commits} commits were among them, and what they had acknowledged is lost"
                ),
                false =>
                    ": a write that was not finished, which nobody had been promised".to_owned(),
            }
        );
    }
    let found = read_all(path, &*store.engine.reader(), &mut |_| Ok(()))?;
    say(&format!(
        "{}: {} sessions, {} subscriptions, {} queued messages, {} retained messages, {} bytes; {} entries damaged\n",
        shown(path),
        found.sessions,
        found.subscriptions,
        found.queued,
        found.retained,
        store.engine.disk_bytes(),
        found.damaged
    ));
    Ok(ExitCode::from(u8::from(found.damaged > 0)))
}

fn export(path: &Path, output: &Path) -> Result<ExitCode, Failure> {
    let store = StoreFiles::open(path, Wanted::Existing).map_err(Failure::other)?;
    let mut out: Box<dyn Write> = match output.as_os_str() == "-" {
        true => Box::new(BufWriter::new(io::stdout().lock())),
        false => Box::new(BufWriter::new(
            File::create(output).map_err(Failure::other)?,
        )),
    };
    let mut write = |line: &Line| -> io::Result<()> {
        serde_json::to_writer(&mut out, line)?;
        out.write_all(b"\n")
    };
    let first = Line::Store {
        format: crate::store::keys::FORMAT,
        by: format!("headgate {}", env!("CARGO_PKG_VERSION")),
    };
    write(&first).map_err(Failure::other)?;
    let found = read_all(path, &*store.engine.reader(), &mut write)?;
    out.flush().map_err(Failure::other)?;
    if found.damaged > 0 {
        eprintln!("{} entries are damaged and were left out", found.damaged);
    }
    Ok(ExitCode::from(u8::from(found.damaged > 0)))
}

/// Entries that are written together.
const IMPORT_CHANGES: usize = 4_096;

fn import(path: &Path, input: &Path) -> Result<ExitCode, Failure> {
    match StoreFiles::open(path, Wanted::Existing) {
        Err(StoreError::Missing(_)) => {}
        Err(error) => return Err(Failure::other(error)),
        Ok(_) => {
            let text = format!(
                "there is a store in {} already: import makes a new one",
                path.display()
            );
            return Err(Failure::other(text));
        }
    }
    let lines: Box<dyn BufRead> = match input.as_os_str() == "-" {
        true => Box::new(BufReader::new(io::stdin())),
        false => Box::new(BufReader::new(File::open(input).map_err(Failure::other)?)),
    };
    let mut lines = (1..).zip(lines.lines());
    let wrong = |number: usize, what: String| {
        Failure::other(format!("line {number}: {what}; nothing was imported"))
    };
    let mut read = || -> Result<Option<(usize, Line)>, Failure> {
        let Some((number, line)) = lines.next() else {
            return Ok(None);
        };
        let line = line.map_err(Failure::other)?;
        let line = serde_json::from_str(&line).map_err(|error| wrong(number, error.to_string()))?;
        Ok(Some((number, line)))
    };
    match read()? {
        Some((
            _,
            Line::Store {
                format: crate::store::keys::FORMAT,
                ..
            },
        )) => {}
        Some((_, Line::Store { format, by })) => {
            let text = format!(
                "lines of format {format}, by {by}; this headgate knows {}: use a newer one",
                crate::store::keys::FORMAT
            );
            return Err(wrong(1, text));
        }
        _ => {
            return Err(wrong(
                1,
                "not what `headgate store export` writes".to_owned(),
            ));
        }
    }
    // Everything is looked at before anything is written.
    let (mut batches, mut count) = (vec![Batch::default()], 0);
    while let Some((number, line)) = read()? {
        if batches
            .last()
            .is_none_or(|last| last.changes.len() >= IMPORT_CHANGES)
        {
            batches.push(Batch::default());
        }
        if let Some(last) = batches.last_mut() {
            line.put_into(last).map_err(|what| wrong(number, what))?;
        }
        count += 1;
    }
    let mut store = StoreFiles::open(path, Wanted::OrNew).map_err(Failure::other)?;
    let failed = |error| Failure::other(files::refused(path, error));
    for batch in &batches {
        store.engine.apply(batch, false).map_err(failed)?;
    }
    store.engine.sync().map_err(failed)?;
    // A start needn't read a long journal then.
    store.engine.settle().map_err(failed)?;
    say(&format!("{}: {count} entries imported\n", shown(path)));
    Ok(ExitCode::SUCCESS)
}
