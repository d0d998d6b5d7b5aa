//! `cargo xtask bench`: measures, and compares with the bars.
//!
//! Each program `bench_*` of the tests crate prints an array of figures on standard output and its progress on standard
//! error.

mod peers;

use std::fs;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::setup::{self, ebpf};
use crate::test::BINARY;
use crate::{build_ebpf, paths, shell};

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Which programs to run, without `bench_` in front; all of them if none is named, but `peers`, which installs other
    /// brokers and runs for a quarter of an hour
    names: Vec<String>,
    /// Sessions of the program `million` [default: 1,000,000 where it is named, which takes 20 GiB and a quarter of an
    /// hour, and 20,000 among all]
    #[arg(long, value_name = "N")]
    count: Option<u32>,
    /// How long the program `overload` lets too many clients come, in seconds [default: 600 where it is named, which
    /// takes 6 GiB, and 20 among all]
    #[arg(long, value_name = "S")]
    seconds: Option<u32>,
    /// Print the figures as an array of objects: name, value, unit, bar, met
    #[arg(long)]
    json: bool,
}

/// With this the programs are built, and what they compare with.
pub const BENCH_FEATURE: &str = "headgate-tests/bench";

/// Tells the program `million` how many sessions are wanted.
const COUNT: &str = "HEADGATE_BENCH_COUNT";

/// Sessions of the program `million` where it is named.
const COUNT_NAMED: u32 = 1_000_000;

/// Tells the program `overload` how long too many clients are to come.
const SECONDS: &str = "HEADGATE_BENCH_SECONDS";

/// The same where it is named.
const SECONDS_NAMED: u32 = 600;

/// The keys of a figure, which are the table's columns as well.
const COLUMNS: [&str; 5] = ["name", "value", "unit", "bar", "met"];

/// Runs the command.
///
/// # Errors
/// A program doesn't compile, fails, or prints something else than figures. A missed bar is no error, but the exit code
/// says so.
pub fn run(options: &Options) -> Result<ExitCode> {
    let programs = select(&available()?, &options.names)?;
    if options.names.is_empty() {
        eprintln!(
            "not among all: {}, which installs other brokers: name it",
            peers::PROGRAM
        );
    }
    for line in setup::kernel_part()? {
        eprintln!("missing: {line}");
    }
    if programs.iter().any(|program| program == peers::PROGRAM) {
        peers::install();
    }
    if let Ok(toolchain) = ebpf::find() {
        eprintln!("{}", build_ebpf::build(&toolchain)?);
    }
    let mut build = shell::cargo();
    build.args([
        "build",
        "--release",
        "--package",
        "headgate",
        "--package",
        "headgate-tests",
        "--features",
        BENCH_FEATURE,
        "--bins",
    ]);
    shell::must("bench-build", "cargo build --release", &mut build)?;
    let mut figures = Vec::new();
    let mut unmeasured = Vec::new();
    for program in &programs {
        let is_named = options.names.contains(program);
        let count = options.count.or(is_named.then_some(COUNT_NAMED));
        let seconds = options.seconds.or(is_named.then_some(SECONDS_NAMED));
        let measured = measure(program, &[(COUNT, count), (SECONDS, seconds)])?;
        if measured.is_empty() {
            unmeasured.push(program.as_str());
        }
        figures.extend(measured);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print!("{}", table(&figures));
    }
    let missed = figures.iter().filter(|figure| is_missed(figure)).count();
    if missed > 0 {
        eprintln!("{missed} of {} figures missed their bar", figures.len());
    }
    // A bar that nobody measured is not met.
    if !unmeasured.is_empty() {
        eprintln!("not measured here: {}", unmeasured.join(", "));
    }
    if missed > 0 || !unmeasured.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The names of the programs that measure, without `bench_`.
fn available() -> Result<Vec<String>> {
    let folder = paths::root().join("tests/src/bin");
    let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name.strip_prefix("bench_")?;
            Some(name.strip_suffix(".rs").unwrap_or(name).to_owned())
        })
        .collect();
    names.sort();
    Ok(names)
}

fn select(available: &[String], wanted: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = wanted.iter().find(|name| !available.contains(name)) {
        bail!(
            "no benchmark is called {unknown:?}; there are: {}",
            available.join(", ")
        );
    }
    if !wanted.is_empty() {
        return Ok(wanted.to_vec());
    }
    let all = available.iter().filter(|name| *name != peers::PROGRAM);
    Ok(all.cloned().collect())
}

fn measure(program: &str, sizes: &[(&str, Option<u32>)]) -> Result<Vec<Value>> {
    eprintln!("measuring {program}");
    let path = format!("release/bench_{program}");
    let output = Command::new(paths::target().join(path))
        .envs(
            sizes
                .iter()
                .filter_map(|(name, n)| Some((name, n.as_ref()?.to_string()))),
        )
        .current_dir(paths::root())
        // What was built with it: a program would build another one, with other features.
        .env(BINARY, paths::target().join("release/headgate"))
        .env(peers::FOLDER, paths::peers())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting bench_{program}"))?;
    if !output.status.success() {
        bail!("bench_{program} failed: {}", output.status);
    }
    figures(&output.stdout)
        .with_context(|| format!("what bench_{program} printed is no array of figures"))
}

fn figures(json: &[u8]) -> Result<Vec<Value>> {
    let figures: Vec<Value> = serde_json::from_slice(json)?;
    for figure in &figures {
        if let Some(column) = COLUMNS.iter().find(|column| figure.get(**column).is_none()) {
            bail!("a figure without {column:?}: {figure}");
        }
    }
    Ok(figures)
}

/// A figure whose bar is null is printed for comparison only, and can't miss it.
fn is_missed(figure: &Value) -> bool {
    !figure["bar"].is_null() && figure["met"] != Value::Bool(true)
}

fn table(figures: &[Value]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(figures.iter().map(row));
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let is_number = column == 1 || column == 3;
            let padding = " ".repeat(width - cell.chars().count());
            let cell = if is_number {
                format!("{padding}{cell}")
            } else {
                format!("{cell}{padding}")
            };
            text.push_str(&cell);
            text.push_str("  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// A figure without a bar has none to meet.
fn row(figure: &Value) -> [String; COLUMNS.len()] {
    COLUMNS.map(|column| match column {
        "met" => cell(if figure["bar"].is_null() {
            &Value::Null
        } else {
            &figure[column]
        }),
        _ => cell(&figure[column]),
    })
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "NO".to_owned(),
        Value::Null => "-".to_owned(),
        Value::Number(number) => thousands(&number.to_string()),
        other => other.to_string(),
    }
}

/// Puts commas into the whole part of a number.
fn thousands(number: &str) -> String {
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, Some(&fraction[..fraction.len().min(1)])),
        None => (number, None),
    };
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) && text != "-" {
            text.push(',');
        }
        text.push(digit);
    }
    if let Some(fraction) = fraction {
        text.push('.');
        text.push_str(fraction);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"[
        {"name": "match_ns", "value": 812.25, "unit": "ns", "bar": 900, "met": true},
        {"name": "handshakes_per_cpu_s", "value": 4999, "unit": "1/s", "bar": 5000, "met": false},
        {"name": "deny_list_ns", "value": 7, "unit": "ns", "bar": null, "met": true}
    ]"#;

    #[test]
    fn a_figure_is_a_row() {
        let table = table(&figures(JSON.as_bytes()).expect("figures"));
        let expected = "\
name                  value  unit    bar  met
match_ns              812.2  ns      900  yes
handshakes_per_cpu_s  4,999  1/s   5,000  NO
deny_list_ns              7  ns        -  -
";
        assert_eq!(table, expected);
    }

    #[test]
    fn only_a_bar_can_be_missed() {
        let missed: Vec<bool> = figures(JSON.as_bytes())
            .expect("figures")
            .iter()
            .map(is_missed)
            .collect();
        assert_eq!(missed, [false, true, false]);
    }

    #[test]
    fn a_figure_has_all_keys() {
        let error =
            figures(br#"[{"name": "x", "value": 1, "unit": "ns", "bar": 2}]"#).expect_err("no met");
        assert!(error.to_string().contains("met"), "{error}");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let known = ["peers", "quic", "xdp"].map(str::to_owned);
        let error = select(&known, &["tcp".to_owned()]).expect_err("there is no tcp");
        assert!(error.to_string().contains("quic, xdp"), "{error}");
        assert_eq!(select(&known, &[]).expect("all"), known[1..]);
        let peers = ["peers".to_owned()];
        assert_eq!(select(&known, &peers).expect("named"), peers);
    }
}
