//! The map from statements to tests: `tests/conformance.toml`, beside the list of all statements.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::paths;

/// The map.
const MAP: &str = "tests/conformance.toml";

/// The identifiers of all statements, a line each: what the map has to hold.
const LIST: &str = "tests/conformance.ids";

/// Normative statements of MQTT 5.0 that concern a server.
const STATEMENTS: usize = 227;

/// The table of the map that isn't a statement.
const ALSO_CITED: &str = "also-cited";

/// The levels of RFC 2119 that statements have.
const LEVELS: [&str; 3] = ["must", "must not", "may"];

/// One statement and what shows that it holds.
#[derive(Debug, Default)]
pub struct Statement {
    /// As the standard numbers it: `MQTT-3.1.0-1`.
    pub id: String,
    /// Of [`LEVELS`].
    pub level: String,
    /// What it demands, in a few words.
    pub demands: String,
    /// The tests that fail when it doesn't hold: `package::program::path`.
    pub tests: Vec<String>,
    /// Why no test is possible.
    pub untested: Option<String>,
    /// Why no place in the code implements it: `none: reason`.
    pub code: Option<String>,
}

/// All statements.
#[derive(Debug, Default)]
pub struct Map {
    /// In the order of their identifiers.
    pub statements: Vec<Statement>,
    /// Identifiers that the code may cite though they are not in the list, and why.
    pub also_cited: BTreeMap<String, String>,
    listed: Vec<String>,
    odd_keys: Vec<String>,
}

impl Map {
    /// Reads the map and the list.
    ///
    /// # Errors
    /// One of them is missing, or the map isn't TOML of the right form.
    pub fn read() -> Result<Self> {
        let text = |path: &str| {
            fs::read_to_string(paths::root().join(path)).with_context(|| format!("reading {path}"))
        };
        Self::parse(&text(MAP)?, &text(LIST)?).with_context(|| format!("in {MAP}"))
    }

    /// Reads a map and a list.
    ///
    /// # Errors
    /// The map isn't TOML, or a value has the wrong type.
    pub fn parse(map: &str, list: &str) -> Result<Self> {
        let mut parsed = Self {
            listed: list.lines().map(str::to_owned).collect(),
            ..Self::default()
        };
        for (id, value) in map.parse::<toml::Table>()? {
            let Some(entry) = value.as_table() else {
                bail!("{id} is not a table");
            };
            if id == ALSO_CITED {
                for (id, why) in entry {
                    parsed.also_cited.insert(id.clone(), text_of(id, why)?);
                }
                continue;
            }
            let mut statement = Statement {
                id: id.clone(),
                ..Statement::default()
            };
            for (key, value) in entry {
                match key.as_str() {
                    "level" => statement.level = text_of(&id, value)?,
                    "demands" => statement.demands = text_of(&id, value)?,
                    "untested" => statement.untested = Some(text_of(&id, value)?),
                    "code" => statement.code = Some(text_of(&id, value)?),
                    "tests" => statement.tests = texts_of(&id, value)?,
                    other => parsed.odd_keys.push(format!("{id}: unknown key {other}")),
                }
            }
            parsed.statements.push(statement);
        }
        parsed.statements.sort_by_key(|s| order(&s.id));
        Ok(parsed)
    }

    /// What is wrong with the map by itself.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = self.odd_keys.clone();
        if self.listed.len() != STATEMENTS {
            let found = self.listed.len();
            complaints.push(format!("{LIST} has {found} lines; there are {STATEMENTS}"));
        }
        if !self.listed.is_sorted_by_key(|id| order(id)) {
            complaints.push(format!("{LIST} is not in order"));
        }
        let listed: BTreeSet<&str> = self.listed.iter().map(String::as_str).collect();
        if listed.len() != self.listed.len() {
            complaints.push(format!("{LIST} names a statement twice"));
        }
        let mapped: BTreeSet<&str> = self.statements.iter().map(|s| s.id.as_str()).collect();
        for id in listed.difference(&mapped) {
            complaints.push(format!("{id}: not in {MAP}"));
        }
        for id in mapped.difference(&listed) {
            complaints.push(format!("{id}: not in {LIST}"));
        }
        for id in listed.iter().filter(|id| order(id).is_none()) {
            complaints.push(format!("{id} has not the form of an identifier"));
        }
        for statement in &self.statements {
            complaints.extend(statement.complaints());
        }
        complaints
    }

    /// All tests, once each.
    pub fn tests(&self) -> BTreeSet<String> {
        self.statements
            .iter()
            .flat_map(|statement| statement.tests.iter().cloned())
            .collect()
    }

    /// A line for each statement and each of its tests.
    pub fn table(&self) -> String {
        let mut table = String::new();
        for statement in &self.statements {
            let Statement {
                id, level, demands, ..
            } = statement;
            let _ = writeln!(table, "{id:<16} {level:<9} {demands}");
            for test in &statement.tests {
                let _ = writeln!(table, "{:<26} {test}", "");
            }
            if let Some(reason) = &statement.untested {
                let _ = writeln!(table, "{:<26} no test: {reason}", "");
            }
        }
        table
    }
}

impl Statement {
    fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut complain = |what: &str| complaints.push(format!("{}: {what}", self.id));
        if !LEVELS.contains(&self.level.as_str()) {
            complain("its level is must, must not or may");
        }
        if self.demands.is_empty() {
            complain("say in a few words what it demands");
        }
        match (&self.untested, self.tests.is_empty()) {
            (None, true) => complain("no test is mapped to it"),
            (Some(_), false) => complain("it has tests and a reason for having none"),
            (Some(reason), true) if reason.trim().is_empty() => complain("an empty reason"),
            _ => {}
        }
        let twice = (1..self.tests.len()).any(|i| self.tests[..i].contains(&self.tests[i]));
        if twice {
            complain("a test is named twice");
        }
        if let Some(code) = &self.code
            && code.strip_prefix("none: ").is_none_or(str::is_empty)
        {
            complain("`code` is `none: ` and a reason");
        }
        complaints
    }
}

/// The numbers of an identifier, for sorting; `None` if it has another form.
fn order(id: &str) -> Option<Vec<u32>> {
    let (section, number) = id.strip_prefix("MQTT-")?.split_once('-')?;
    let parts = section.split('.').chain([number]);
    let numbers: Option<Vec<u32>> = parts.map(|part| part.parse().ok()).collect();
    numbers.filter(|numbers| (3..=4).contains(&numbers.len()))
}

fn text_of(id: &str, value: &toml::Value) -> Result<String> {
    let text = value.as_str().with_context(|| format!("{id}: not text"))?;
    Ok(text.to_owned())
}

fn texts_of(id: &str, value: &toml::Value) -> Result<Vec<String>> {
    let list = value
        .as_array()
        .with_context(|| format!("{id}: not a list"))?;
    list.iter().map(|value| text_of(id, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[\"MQTT-3.1.0-1\"]\nlevel = \"must\"\ndemands = \"x\"\ntests = [\"a\"]\n";

    fn complaints(map: &str, list: &str) -> String {
        let parsed = Map::parse(map, list).expect("TOML");
        let all = parsed.complaints().into_iter();
        // The list in these tests is a short one.
        all.filter(|c| !c.contains("lines; there are"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn what_is_in_one_file_is_in_the_other() {
        assert_eq!(complaints(GOOD, "MQTT-3.1.0-1"), "");
        assert!(complaints(GOOD, "MQTT-3.1.0-1\nMQTT-3.1.0-2").contains("MQTT-3.1.0-2: not in"));
        assert!(complaints(GOOD, "").contains("MQTT-3.1.0-1: not in"));
        assert!(complaints(GOOD, "MQTT-3.1.0-1\nMQTT-3.1.0-1").contains("twice"));
        assert!(complaints(GOOD, "MQTT-3.1.0-10\nMQTT-3.1.0-9").contains("order"));
        let short = Map::parse(GOOD, "MQTT-3.1.0-1").expect("TOML");
        assert!(short.complaints().concat().contains("there are 227"));
    }

    #[test]
    fn an_entry_says_all_that_it_has_to() {
        for (from, to) in [
            ("level = \"must\"", "level = \"should\""),
            ("demands = \"x\"", "demands = \"\""),
            ("tests = [\"a\"]", "tests = []"),
            ("tests = [\"a\"]", "tests = [\"a\", \"a\"]"),
            ("tests = [\"a\"]", "tests = [\"a\"]\nuntested = \"no\""),
            ("tests = [\"a\"]", "untested = \" \""),
            ("tests = [\"a\"]", "tests = [\"a\"]\ncode = \"later\""),
            ("tests = [\"a\"]", "tests = [\"a\"]\nwhy = \"b\""),
        ] {
            let found = complaints(&GOOD.replace(from, to), "MQTT-3.1.0-1");
            assert!(found.starts_with("MQTT-3.1.0-1: "), "{to}: {found}");
        }
    }
}
