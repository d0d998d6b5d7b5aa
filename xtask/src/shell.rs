//! Runs other programs: quietly, with a line of progress, and with their whole output kept in a log.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;

/// How many lines of a failed command's output are shown; the log has the rest.
const SHOWN_LINES_MAX: usize = 60;

/// How much of the latest line of output fits beside a step's name.
const PROGRESS_CHARACTERS_MAX: usize = 72;

/// What a finished command left behind.
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output and standard error, in the order in which they came.
    pub log: PathBuf,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// The whole output.
    pub fn output(&self) -> Result<String> {
        let bytes =
            fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The end of the output, for a message about a failure.
    pub fn tail(&self) -> String {
        let output = self.output().unwrap_or_default();
        let lines: Vec<&str> = output.lines().collect();
        let from = lines.len().saturating_sub(SHOWN_LINES_MAX);
        let mut text = String::new();
        for line in &lines[from..] {
            text.push_str("    ");
            text.push_str(line);
            text.push('\n');
        }
        text.push_str(&format!("    (all of it: {})", self.log.display()));
        text
    }
}

/// Runs `command` with its output in the log `name`, showing `title` and the latest line while it runs on a terminal.
/// Each line of output goes to `each` as well.
///
/// # Errors
/// The command can't be started, or its log can't be written. A command that fails is no error: look at the status.
pub fn watch(
    name: &str,
    title: &str,
    command: &mut Command,
    mut each: impl FnMut(&str),
) -> Result<Finished> {
    let started = Instant::now();
    fs::create_dir_all(paths::logs())?;
    let log = paths::logs().join(format!("{name}.log"));
    let mut file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    // One pipe for both streams keeps a test's result behind the line that names its program.
    let (reader, writer) = io::pipe()?;
    let program = command.get_program().to_os_string();
    let mut child = command
        .stdin(std::process::Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    // `command` still owns the pipe's writing ends, which would keep the reader waiting for ever.
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut progress = Progress::new(title);
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        file.write_all(&line)?;
        file.write_all(b"\n")?;
        let line = String::from_utf8_lossy(&line);
        each(&line);
        progress.show(&line);
    }
    let status = wait(&mut child)?;
    progress.clear();
    Ok(Finished {
        status,
        log,
        took: started.elapsed(),
    })
}

/// Runs `command` and fails with the end of its output if it does.
///
/// # Errors
/// As [`watch`], and when the command itself fails.
pub fn must(name: &str, title: &str, command: &mut Command) -> Result<Finished> {
    let finished = watch(name, title, command, |_| ())?;
    if !finished.status.success() {
        bail!("{title} ({}):\n{}", finished.status, finished.tail());
    }
    Ok(finished)
}

/// What `command` prints on standard output, or nothing if it fails or doesn't exist.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(std::process::Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether this process may do what only root may.
pub fn is_root() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|ids| ids.split_whitespace().nth(1))
            == Some("0")
    })
}

/// A cargo that knows nothing of the cargo that started us: no target folder, flags or toolchain of the caller's leak
/// into what it builds.
pub fn clean_cargo(folder: &Path) -> Command {
    let mut cargo = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        if leaks(name) {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(folder);
    cargo
}

/// The cargo of this workspace, from its top folder.
pub fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    // What `cargo run` tells the program that it starts must not look like the user's wish to build scripts.
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    // Its output goes to a log.
    cargo
        .env("CARGO_TERM_COLOR", "never")
        .current_dir(paths::root());
    cargo
}

/// A duration as people read it.
pub fn seconds(took: Duration) -> String {
    if took < Duration::from_secs(60) {
        return format!("{:.1} s", took.as_secs_f64());
    }
    format!("{} min {:02} s", took.as_secs() / 60, took.as_secs() % 60)
}

fn leaks(name: &str) -> bool {
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const RUST: [&str; 5] = [
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "__CARGO",
    ];
    let of_cargo = name == "CARGO"
        || (name.starts_with("CARGO_") && !KEPT.iter().any(|kept| name.starts_with(kept)));
    of_cargo || RUST.iter().any(|prefix| name.starts_with(prefix))
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    Ok(child.wait()?)
}

/// One line on a terminal that is rewritten as the work goes on; nothing where there is no terminal.
struct Progress<'a> {
    title: &'a str,
    started: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl<'a> Progress<'a> {
    fn new(title: &'a str) -> Self {
        Self {
            title,
            started: Instant::now(),
            shown: None,
            terminal: io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, line: &str) {
        const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
        if !self.terminal
            || self
                .shown
                .is_some_and(|shown| shown.elapsed() < REDRAW_INTERVAL)
        {
            return;
        }
        self.shown = Some(Instant::now());
        let line: String = line
            .trim()
            .chars()
            .filter(|c| !c.is_control())
            .take(PROGRESS_CHARACTERS_MAX)
            .collect();
        eprint!(
            "\r\x1b[K  {} … {} {line}",
            self.title,
            seconds(self.started.elapsed())
        );
    }

    fn clear(&self) {
        if self.terminal && self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_build_settings_do_not_leak() {
        for name in [
            "CARGO",
            "CARGO_TARGET_DIR",
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
        ] {
            assert!(leaks(name), "{name} would change what is built");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_HTTP_CAINFO",
            "CARGO_REGISTRIES_X_TOKEN",
            "PATH",
            "RUST_BACKTRACE",
            "RUSTUP_HOME",
        ] {
            assert!(!leaks(name), "{name} tells where things are");
        }
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }
}
