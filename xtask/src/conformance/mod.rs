//! `cargo xtask conformance`: every normative statement of MQTT 5.0 that concerns a server has tests, the tests exist and
//! hold, and the code says where it implements the statement.

mod citations;
mod map;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::programs::{self, Program};
use crate::shell;
use crate::test::{Outcome, Ran};

use map::Map;

/// What `cargo xtask conformance` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Print each statement with its level and its tests, and run nothing
    #[arg(long)]
    table: bool,
}

/// The paths of tests, by the index of their program.
type Selection = BTreeMap<usize, BTreeSet<String>>;

/// How each test of a run ended, by its name in the map: `package::program::path`.
type Outcomes = BTreeMap<String, Outcome>;

/// Runs the command.
///
/// # Errors
/// The map can't be read, or the tests can't be built or started.
pub fn run(options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    let map = Map::read()?;
    if options.table {
        print!("{}", map.table());
        return Ok(ExitCode::SUCCESS);
    }
    let mut complaints = static_complaints(&map)?;
    let programs = programs::build()?;
    let (listed, missing) = listed(&map, &programs)?;
    complaints.extend(missing);
    let outcomes = outcomes_of(&programs, &listed)?;
    let verdict = judge(&map, &outcomes, shell::is_root());
    // What doesn't exist can't run: it is said once.
    let repeats = |line: &String| complaints.iter().any(|said| is_about_same(said, line));
    let news: Vec<String> = verdict
        .complaints
        .into_iter()
        .filter(|c| !repeats(c))
        .collect();
    complaints.extend(news);
    for line in verdict.remarks {
        println!("{line}");
    }
    for line in &complaints {
        println!("error: {line}");
    }
    println!(
        "{} statements, {} tests, {} errors ({})",
        map.statements.len(),
        map.tests().len(),
        complaints.len(),
        shell::seconds(started.elapsed())
    );
    Ok(if complaints.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the given tests of the given programs.
///
/// # Errors
/// A program can't be started, or the broker that tests drive can't be built.
fn outcomes_of(programs: &[Program], tests: &Selection) -> Result<Outcomes> {
    let mut cargo = shell::cargo();
    cargo.args(["build", "--quiet", "--workspace", "--bins"]);
    shell::must("conformance-broker", "building the broker", &mut cargo)?;
    let mut outcomes = Outcomes::new();
    for (index, paths) in tests {
        let program = &programs[*index];
        let ended = program.run(paths)?;
        if let Some(complaint) = &ended.complaint {
            println!("{complaint}");
        }
        for ran in ended.counted.ran {
            outcomes.insert(program.name_of(&ran.path), ran.outcome);
        }
    }
    Ok(outcomes)
}

/// What is wrong with the map and with the code's references to statements; nothing is built or run.
///
/// # Errors
/// A file can't be read.
fn static_complaints(map: &Map) -> Result<Vec<String>> {
    let mut complaints = map.complaints();
    complaints.extend(citations::complaints(map)?);
    Ok(complaints)
}

/// The verdict over a run of all tests of the workspace.
///
/// # Errors
/// The map or a source can't be read.
pub fn after_run(programs: &[Program], all: &[Ran], is_complete: bool) -> Result<Verdict> {
    let map = Map::read()?;
    let mut outcomes = Outcomes::new();
    for ran in all {
        if let Some(program) = programs.iter().find(|p| p.is(&ran.executable)) {
            outcomes.insert(program.name_of(&ran.path), ran.outcome.clone());
        }
    }
    let mut verdict = judge(&map, &outcomes, is_complete);
    verdict.complaints.extend(static_complaints(&map)?);
    Ok(verdict)
}

/// What came out.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What fails the check.
    pub complaints: Vec<String>,
    /// What is worth a line.
    pub remarks: Vec<String>,
}

/// Whether `said`, a test that doesn't exist, is why `line` says that it did not run.
fn is_about_same(said: &str, line: &str) -> bool {
    said.split_once(": there is no such")
        .is_some_and(|(test, _)| line.ends_with(&format!(": {test} did not run")))
}

/// Compares the map with what ran. `is_complete`: this machine has all that tests need, so that none has a reason to
/// be skipped.
fn judge(map: &Map, outcomes: &Outcomes, is_complete: bool) -> Verdict {
    let mut verdict = Verdict::default();
    for statement in &map.statements {
        let id = &statement.id;
        let mut held = 0;
        let mut skipped = Vec::new();
        for test in &statement.tests {
            match outcomes.get(test) {
                Some(Outcome::Passed) => held += 1,
                Some(Outcome::Skipped(reason)) => skipped.push(format!("{test} ({reason})")),
                Some(Outcome::Failed) => {
                    verdict.complaints.push(format!("{id}: {test} failed"));
                }
                Some(Outcome::Ignored) => {
                    let line = format!("{id}: {test} is marked #[ignore] and never runs");
                    verdict.complaints.push(line);
                }
                None => verdict.complaints.push(format!("{id}: {test} did not run")),
            }
        }
        if held == 0 && !skipped.is_empty() {
            let line = format!("{id}: all its tests were skipped: {}", skipped.join(", "));
            if is_complete {
                verdict.complaints.push(line);
            } else {
                verdict.remarks.push(line);
            }
        }
    }
    verdict
}

/// The tests of the map that exist, by program, and complaints about those that don't.
fn listed(map: &Map, programs: &[Program]) -> Result<(Selection, Vec<String>)> {
    let mut found = Selection::new();
    let mut complaints = Vec::new();
    let mut lists: Vec<Option<BTreeSet<String>>> = vec![None; programs.len()];
    for test in map.tests() {
        let place = programs
            .iter()
            .enumerate()
            .find_map(|(index, program)| Some((index, program.path_of(&test)?)));
        let Some((index, path)) = place else {
            complaints.push(format!("{test}: there is no such test program"));
            continue;
        };
        if lists[index].is_none() {
            lists[index] = Some(programs[index].list()?);
        }
        if lists[index]
            .as_ref()
            .is_some_and(|list| list.contains(path))
        {
            found.entry(index).or_default().insert(path.to_owned());
        } else {
            complaints.push(format!("{test}: there is no such test"));
        }
    }
    Ok((found, complaints))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(outcome: Option<Outcome>, is_complete: bool) -> (usize, usize) {
        let text = "[\"MQTT-1.5.4-1\"]\nlevel = \"must\"\ndemands = \"x\"\ntests = [\"p::t::a\"]";
        let map = Map::parse(text, "MQTT-1.5.4-1").expect("a map");
        let outcomes = outcome.map(|o| ("p::t::a".to_owned(), o)).into_iter();
        let verdict = judge(&map, &outcomes.collect(), is_complete);
        (verdict.complaints.len(), verdict.remarks.len())
    }

    #[test]
    fn the_map_and_the_code_go_together() {
        let map = Map::read().expect("the map is committed");
        let complaints = static_complaints(&map).expect("the sources can be read");
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    #[test]
    fn a_statement_needs_a_test_that_ran_and_held() {
        assert_eq!(judged(Some(Outcome::Passed), true), (0, 0));
        assert_eq!(judged(Some(Outcome::Failed), true), (1, 0));
        assert_eq!(judged(Some(Outcome::Ignored), true), (1, 0));
        assert_eq!(judged(None, true), (1, 0));
        let skipped = Some(Outcome::Skipped("needs root".to_owned()));
        assert_eq!(judged(skipped.clone(), false), (0, 1));
        assert_eq!(judged(skipped, true), (1, 0));
    }
}
