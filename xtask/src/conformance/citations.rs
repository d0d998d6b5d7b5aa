//! Where the sources name statements: `[MQTT-3.1.0-1]` for MQTT 5.0, `3.1.1 [MQTT-3.1.2-22]` for the older standard.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Result;

use crate::paths;
use crate::{conformance::Map, shell};

/// What the broker is made of; a statement that it implements is cited there.
const CODE: &str = "broker/";

/// Everything that may cite statements.
const CITING: [&str; 2] = [CODE, "tests/"];

/// One mention.
#[derive(Debug, Eq, PartialEq)]
struct Citation {
    line: usize,
    id: String,
    /// Of MQTT 3.1.1, whose statements have numbers of their own.
    is_older: bool,
}

/// Statements that no code implements by its own word, and mentions of what isn't a statement.
///
/// # Errors
/// A file can't be read.
pub fn complaints(map: &Map) -> Result<Vec<String>> {
    let known: BTreeSet<&str> = map.statements.iter().map(|s| s.id.as_str()).collect();
    let mut complaints = Vec::new();
    let mut cited = BTreeSet::new();
    for file in files()? {
        let text = fs::read_to_string(paths::root().join(&file))?;
        let is_code = file.starts_with(CODE) && !is_test(&file);
        // Tests beside the code don't implement anything.
        let code_ends = text
            .find("#[cfg(test)]\nmod tests {")
            .map_or(usize::MAX, |at| text[..at].lines().count());
        for citation in citations(&text) {
            let Citation { line, id, is_older } = citation;
            if is_older || map.also_cited.contains_key(&id) {
                continue;
            }
            if !known.contains(id.as_str()) {
                complaints.push(format!("{file}:{line}: [{id}] is no statement of the list"));
            } else if is_code && line <= code_ends {
                cited.insert(id);
            }
        }
    }
    for statement in &map.statements {
        let is_cited = cited.contains(&statement.id);
        if !is_cited && statement.code.is_none() {
            let id = &statement.id;
            complaints.push(format!("{id}: [{id}] stands nowhere in {CODE}"));
        } else if is_cited && let Some(code) = &statement.code {
            let id = &statement.id;
            complaints.push(format!(
                "{id}: the code cites it, and the map says `{code}`"
            ));
        }
    }
    Ok(complaints)
}

/// Rust sources that git knows or would know.
fn files() -> Result<Vec<String>> {
    let mut git = std::process::Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .args(CITING)
        .current_dir(paths::root());
    let listed = shell::output(&mut git).unwrap_or_default();
    Ok(listed
        .lines()
        .filter(|file| file.ends_with(".rs") && paths::root().join(file).is_file())
        .map(str::to_owned)
        .collect())
}

fn is_test(file: &str) -> bool {
    file.contains("/tests/") || file.ends_with("tests.rs") || file.contains("/benches/")
}

fn citations(text: &str) -> Vec<Citation> {
    const MARK: &str = "[MQTT-";
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (at, _) in line.match_indices(MARK) {
            let rest = &line[at + 1..];
            let len = rest
                .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || "MQT".contains(c)))
                .unwrap_or(rest.len());
            let before = line[..at].trim_end_matches(['\\', ' ', ':']);
            found.push(Citation {
                line: number + 1,
                id: rest[..len].to_owned(),
                is_older: before.ends_with("3.1.1"),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mentions_are_found_in_comments_and_documentation() {
        let text =
            "/// x \\[MQTT-4.2-1\\]\n// 3.1.1 [MQTT-3.1.2-22]; [MQTT-3.1.0-1] [MQTT-2.1.3-1].";
        let found: Vec<_> = citations(text)
            .into_iter()
            .map(|c| (c.line, c.id, c.is_older))
            .collect();
        let expected = [
            (1, "MQTT-4.2-1", false),
            (2, "MQTT-3.1.2-22", true),
            (2, "MQTT-3.1.0-1", false),
            (2, "MQTT-2.1.3-1", false),
        ];
        assert_eq!(found, expected.map(|(l, id, o)| (l, id.to_owned(), o)));
    }

    #[test]
    fn tests_implement_nothing() {
        assert!(is_test("broker/core/tests/connect.rs"));
        assert!(is_test("broker/src/net/udp/tests.rs"));
        assert!(!is_test("broker/core/src/connect.rs"));
    }
}
