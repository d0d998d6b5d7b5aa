//! `headgate top`.

mod view;

use super::{Failure, status::Broker};
use crate::admin;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use std::{
    io::IsTerminal,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};
use view::{Sample, View};

/// Watch a running broker
///
/// Packets in the kernel by what became of them, the workers' load, the source prefixes that send the most or have
/// the most connections, sessions and messages: per second, and in all. q ends it.
#[derive(Debug, clap::Args)]
pub(super) struct TopArgs {
    /// How often to look, seconds
    #[arg(long, short = 'n', value_name = "SECONDS", default_value_t = 1.0, value_parser = parse_interval)]
    interval: f64,
    #[command(flatten)]
    broker: Broker,
}

pub(super) fn top(args: &TopArgs) -> Result<ExitCode, Failure> {
    if !std::io::stdout().is_terminal() {
        return Err(Failure::other(
            "standard output is no terminal; `headgate status --json` prints the same numbers once",
        ));
    }
    let socket = args.broker.socket()?;
    // A broker that doesn't answer is said before the screen changes.
    let mut view = View::default();
    view.add(sample(&socket)?);
    let mut terminal = ratatui::try_init().map_err(Failure::other)?;
    let interval = Duration::from_secs_f64(args.interval);
    let watched = watch(&mut terminal, &mut view, &socket, interval);
    ratatui::restore();
    watched.map(|()| ExitCode::SUCCESS)
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    socket: &Path,
    interval: Duration,
) -> Result<(), Failure> {
    let mut next = Instant::now() + interval;
    loop {
        terminal
            .draw(|frame| view.draw(frame))
            .map_err(Failure::other)?;
        let patience = next.saturating_duration_since(Instant::now());
        if event::poll(patience).map_err(Failure::other)? {
            // A new size is an event, too: what is drawn next fits it.
            match event::read().map_err(Failure::other)? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL)
                        && key.code == KeyCode::Char('c');
                    if is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                        return Ok(());
                    }
                }
                _ => {}
            }
            continue;
        }
        next = Instant::now() + interval;
        match sample(socket) {
            Ok(sample) => view.add(sample),
            Err(error) => view.lost(&error.to_string()),
        }
    }
}

fn sample(socket: &Path) -> Result<Sample, Failure> {
    let status = admin::request(socket, "status").map_err(Failure::other)?;
    Ok(Sample {
        at: Instant::now(),
        status,
    })
}

fn parse_interval(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok();
    seconds
        .filter(|seconds| (0.1..=3_600.0).contains(seconds))
        .ok_or_else(|| "it is a number of seconds from 0.1 to 3600".to_owned())
}
