//! How far a run is: a bar on a terminal, a line now and then elsewhere.

use crate::bench::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

/// Between two lines where there is no terminal.
const LINES: Duration = Duration::from_secs(10);

/// Shows phases on standard error.
pub(super) struct Bars {
    is_quiet: bool,
    bar: Option<ProgressBar>,
    phase: String,
    steps: u64,
    told: Instant,
}

impl Bars {
    pub(super) fn new(is_quiet: bool) -> Self {
        Self {
            is_quiet,
            bar: None,
            phase: String::new(),
            steps: 0,
            told: Instant::now(),
        }
    }
}

impl Progress for Bars {
    fn begin(&mut self, phase: &str, steps: u64) {
        (self.phase, self.steps, self.told) = (phase.to_owned(), steps, Instant::now());
        if self.is_quiet || !stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(
            "{prefix:>16} [{elapsed_precise}] {wide_bar:.cyan/blue} {percent:>3} % {msg}",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix(phase.to_owned());
        self.bar = Some(bar);
    }

    fn at(&mut self, step: u64, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(what.to_owned());
        } else if !self.is_quiet && self.told.elapsed() >= LINES {
            self.told = Instant::now();
            let percent = step as f64 * 100.0 / self.steps.max(1) as f64;
            eprintln!("{}: {percent:.0} % {what}", self.phase);
        }
    }

    fn end(&mut self, what: &str) {
        if let Some(bar) = self.bar.take() {
            bar.set_position(self.steps);
            bar.abandon_with_message(what.to_owned());
        } else if !self.is_quiet && !what.is_empty() {
            eprintln!("{}: {what}", self.phase);
        }
    }
}
