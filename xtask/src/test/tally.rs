//! Reads what `cargo test` prints, and counts.

use std::collections::BTreeMap;
use std::fmt;

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Held.
    pub passed: usize,
    /// Did not hold.
    pub failed: usize,
    /// Could not be tried here.
    pub skipped: usize,
}

impl Tally {
    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// How a test ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not.
    Failed,
    /// It could not be tried here, and said why.
    Skipped(String),
    /// Nobody runs it.
    Ignored,
}

/// One test of a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ran {
    /// The file name of its program.
    pub executable: String,
    /// Its path in the program.
    pub path: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// The result of one `cargo test`.
#[derive(Debug, Default)]
pub struct Counted {
    /// Each test, in the order in which they ended.
    pub ran: Vec<Ran>,
    /// The counts; a skipped test is not among the passed ones.
    pub tally: Tally,
    /// Names of failed tests, with their program.
    pub failed_tests: Vec<String>,
    /// Names of skipped tests, and why each was.
    pub skipped_tests: BTreeMap<String, String>,
}

/// Follows the output line by line.
#[derive(Default)]
pub struct Reader {
    program: String,
    /// The file name of the program; empty for documentation.
    executable: String,
    counted: Counted,
}

impl Reader {
    /// A reader of what one program prints, which cargo does not announce: its name for people, and its file's.
    pub fn of(program: &str, executable: &str) -> Self {
        Self {
            program: program.to_owned(),
            executable: executable.to_owned(),
            ..Self::default()
        }
    }

    /// Takes a line. At the end of a test program that had tests, returns a line about it.
    pub fn line(&mut self, line: &str) -> Option<String> {
        let text = line.trim();
        if let Some((program, executable)) = program_of(text) {
            self.program = program;
            self.executable = executable;
            return None;
        }
        let Some(result) = text.strip_prefix("test result: ") else {
            self.test(test_of(text)?);
            return None;
        };
        let [passed, failed, ignored] =
            [" passed", " failed", " ignored"].map(|word| count_before(result, word));
        self.counted.tally.add(&Tally {
            passed,
            failed,
            skipped: ignored,
        });
        if passed + failed + ignored == 0 {
            return None;
        }
        let time = result
            .rsplit_once("finished in ")
            .map_or("", |(_, time)| time);
        Some(format!(
            "{:<40} {passed} passed, {failed} failed, {ignored} ignored ({time})",
            self.program
        ))
    }

    /// The counts, with the tests that wrote themselves into the skip log moved from passed to skipped.
    pub fn finish(mut self, skip_log: &str) -> Counted {
        let mut moved = BTreeMap::new();
        for line in skip_log.lines() {
            if let Some((name, reason)) = line
                .strip_prefix("SKIPPED ")
                .and_then(|rest| rest.split_once(": "))
            {
                moved.insert(name.to_owned(), reason.to_owned());
            }
        }
        for ran in &mut self.counted.ran {
            let krate = without_hash(&ran.executable);
            if let Some(reason) = moved.get(&format!("{krate}::{}", ran.path))
                && ran.outcome == Outcome::Passed
            {
                ran.outcome = Outcome::Skipped(reason.clone());
            }
        }
        let count = moved.len().min(self.counted.tally.passed);
        self.counted.tally.passed -= count;
        self.counted.tally.skipped += count;
        self.counted.skipped_tests.append(&mut moved);
        self.counted
    }

    fn test(&mut self, test: &str) {
        let Some((name, outcome)) = test.rsplit_once(" ... ") else {
            return;
        };
        let ended = match outcome {
            "ok" => Some(Outcome::Passed),
            "FAILED" => Some(Outcome::Failed),
            _ => outcome.starts_with("ignored").then_some(Outcome::Ignored),
        };
        if let Some(outcome) = ended.filter(|_| !self.executable.is_empty()) {
            self.counted.ran.push(Ran {
                executable: self.executable.clone(),
                path: name.to_owned(),
                outcome,
            });
        }
        if outcome == "FAILED" {
            self.counted
                .failed_tests
                .push(format!("{}: {name}", self.program));
        } else if let Some(rest) = outcome.strip_prefix("ignored") {
            let reason = rest.trim_start_matches(", ");
            let reason = if reason.is_empty() {
                "ignored, without a reason"
            } else {
                reason
            };
            self.counted
                .skipped_tests
                .insert(format!("{}: {name}", self.program), reason.to_owned());
        }
    }
}

/// The parts of the output that tell why tests failed: what each of them printed.
pub fn failures(output: &str) -> String {
    let mut text = String::new();
    let mut is_inside = false;
    for line in output.lines() {
        if line.starts_with("---- ") {
            is_inside = true;
        } else if line == "failures:" || line.starts_with("test result:") {
            is_inside = false;
        }
        if is_inside {
            text.push_str("    ");
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// What a line says of a test. A program that a test starts may have written something before it, without ending its line.
fn test_of(text: &str) -> Option<&str> {
    text.strip_prefix("test ").or_else(|| {
        let (_, test) = text.rsplit_once("test ")?;
        test.ends_with(" ... ok").then_some(test)
    })
}

/// The test program that a line of cargo's announces, for people, and its file's name:
/// `Running tests/x.rs (target/debug/deps/x-0123)`.
fn program_of(text: &str) -> Option<(String, String)> {
    if let Some(of) = text.strip_prefix("Doc-tests ") {
        return Some((format!("{of} (documentation)"), String::new()));
    }
    let (source, path) = text.strip_prefix("Running ")?.split_once(" (")?;
    let file = path.trim_end_matches(')').rsplit('/').next()?;
    let name = without_hash(file);
    let shown = if source.starts_with("unittests") {
        format!("{name} (unit)")
    } else {
        name.to_owned()
    };
    Some((shown, file.to_owned()))
}

/// The crate in the file name of a program: `x` in `x-0123`.
fn without_hash(file: &str) -> &str {
    file.rsplit_once('-').map_or(file, |(name, _hash)| name)
}

fn count_before(text: &str, word: &str) -> usize {
    text.split(word)
        .next()
        .and_then(|before| before.rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
     Running unittests src/lib.rs (target/debug/deps/headgate-0a1b)
running 2 tests
test config::defaults ... ok
test net::slow ... ignored, needs a second machine
test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s
     Running tests/clients_tcp.rs (target/debug/deps/clients_tcp-99ff)
test paho ... FAILED
test mosquitto ... ok
---- paho stdout ----
thread 'paho' panicked: no answer
failures:
    paho
test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s
   Doc-tests headgate_codec
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    fn read(output: &str, skip_log: &str) -> (Vec<String>, Counted) {
        let mut reader = Reader::default();
        let lines = output
            .lines()
            .filter_map(|line| reader.line(line))
            .collect();
        (lines, reader.finish(skip_log))
    }

    #[test]
    fn counts_what_cargo_test_prints() {
        let (lines, counted) = read(OUTPUT, "");
        assert_eq!(
            counted.tally,
            Tally {
                passed: 2,
                failed: 1,
                skipped: 1
            }
        );
        assert_eq!(counted.failed_tests, ["clients_tcp: paho"]);
        assert_eq!(
            counted.skipped_tests["headgate (unit): net::slow"],
            "needs a second machine"
        );
        assert_eq!(
            lines.len(),
            2,
            "programs without tests are not worth a line: {lines:?}"
        );
    }

    #[test]
    fn a_test_that_could_not_run_is_not_a_passed_one() {
        let (_, counted) = read(
            OUTPUT,
            "SKIPPED clients_tcp::mosquitto: no mosquitto_pub\nSKIPPED clients_tcp::mosquitto: twice\n",
        );
        assert_eq!(
            counted.tally,
            Tally {
                passed: 1,
                failed: 1,
                skipped: 2
            }
        );
        assert_eq!(counted.tally.to_string(), "1 passed, 1 failed, 2 skipped");
        let outcomes: Vec<_> = counted
            .ran
            .iter()
            .map(|ran| (ran.executable.as_str(), ran.path.as_str(), &ran.outcome))
            .collect();
        assert_eq!(
            outcomes,
            [
                ("headgate-0a1b", "config::defaults", &Outcome::Passed),
                ("headgate-0a1b", "net::slow", &Outcome::Ignored),
                ("clients_tcp-99ff", "paho", &Outcome::Failed),
                (
                    "clients_tcp-99ff",
                    "mosquitto",
                    &Outcome::Skipped("twice".to_owned())
                ),
            ]
        );
    }

    #[test]
    fn noise_before_a_test_hides_nothing() {
        assert_eq!(test_of("a warningtest a::b ... ok"), Some("a::b ... ok"));
        assert_eq!(test_of("test a::b ... FAILED"), Some("a::b ... FAILED"));
        assert_eq!(test_of("running 2 tests"), None);
    }

    #[test]
    fn failures_are_shown_without_the_rest() {
        let text = failures(OUTPUT);
        assert!(text.contains("no answer"));
        assert!(!text.contains("mosquitto"));
    }
}
