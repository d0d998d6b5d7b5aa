//! Source files: sizes, left-overs, clocks, and where unsafe code is forbidden.

use std::fs;

use anyhow::Result;

use crate::paths;

/// Lines of a file.
const FILE_LINES_MAX: usize = 600;

/// Lines of a function, without blank lines and comments. The aim is 70; tests, which are often tables of cases, are
/// not counted.
const FUNCTION_LINES_MAX: usize = 80;

/// Files that may be longer, each with the reason.
const LONG_FILES: [(&str, &str); 0] = [];

/// Functions that may be longer, as `path: name`, each with the reason.
const LONG_FUNCTIONS: [(&str, &str); 1] = [(
    "broker/codec/src/error.rs: fmt",
    "one sentence per error, and nothing else",
)];

/// Marks of unfinished work. (Written in two halves, so that this file doesn't hold them.)
const LEFT_OVERS: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
];

/// Crates that are handed the time, and never ask for it.
const WITHOUT_CLOCK: [&str; 4] = [
    "broker/codec/src/",
    "broker/core/src/",
    "broker/topics/src/",
    "xdp-ebpf/common/src/",
];

/// Ways to ask for the time.
const CLOCKS: [&str; 2] = [concat!("Instant", "::now"), concat!("SystemTime", "::now")];

/// Crates that hold no unsafe code, by their root.
const WITHOUT_UNSAFE: [&str; 2] = ["broker/codec/src/lib.rs", "broker/core/src/lib.rs"];

/// Where the broker may use tokio: never on the way of a packet.
const WITH_TOKIO: [&str; 4] = [
    "broker/src/admin/",
    "broker/src/cli/",
    "broker/src/main.rs",
    "tests/",
];

/// Source files that break a rule.
///
/// # Errors
/// A file can't be read.
pub fn complaints(files: &[String]) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for file in files {
        let is_rust = file.ends_with(".rs");
        if !is_rust
            && ![".py", ".sh", ".toml", ".md", ".ci/run"]
                .iter()
                .any(|end| file.ends_with(end))
        {
            continue;
        }
        let text = fs::read_to_string(paths::root().join(file))?;
        complaints.extend(left_overs(file, &text));
        if is_rust {
            complaints.extend(rust(file, &text));
        }
    }
    Ok(complaints)
}

fn left_overs(file: &str, text: &str) -> Vec<String> {
    let is_word = |line: &str, word: &str| {
        line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .any(|candidate| candidate == word)
    };
    numbered(text)
        .filter(|(_, line)| LEFT_OVERS.iter().any(|word| is_word(line, word)))
        .map(|(number, _)| format!("{file}:{number}: unfinished work is done, or is an issue"))
        .collect()
}

fn rust(file: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = text.lines().count();
    let is_excused = LONG_FILES.iter().any(|(excused, _)| *excused == file);
    if lines > FILE_LINES_MAX && !is_excused {
        complaints.push(format!("{file}: {lines} lines, more than {FILE_LINES_MAX}"));
    } else if lines <= FILE_LINES_MAX && is_excused {
        complaints.push(format!("{file}: no longer needs its excuse in tidy"));
    }
    for (number, line) in numbered(text) {
        let code = line.split("//").next().unwrap_or_default();
        if [concat!("#[", "allow("), concat!("#![", "allow(")]
            .iter()
            .any(|allow| code.contains(allow))
        {
            complaints.push(format!(
                "{file}:{number}: use `expect` with a reason: it tells when the reason is gone"
            ));
        }
        if WITHOUT_CLOCK.iter().any(|folder| file.starts_with(folder))
            && CLOCKS.iter().any(|now| code.contains(now))
        {
            complaints.push(format!(
                "{file}:{number}: this crate takes the time as an argument"
            ));
        }
        if file.starts_with("broker/")
            && code.contains(concat!("tokio", "::"))
            && !WITH_TOKIO.iter().any(|place| file.starts_with(place))
        {
            complaints.push(format!(
                "{file}:{number}: tokio belongs into cli and admin only"
            ));
        }
    }
    if WITHOUT_UNSAFE.contains(&file) && !text.contains(concat!("#![forbid(", "unsafe_code)]")) {
        complaints.push(format!("{file}: lacks forbid(unsafe_code)"));
    }
    complaints.extend(long_functions(file, text));
    complaints
}

/// Functions are found by their indentation, which rustfmt has made regular.
fn long_functions(file: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut complaints = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        if lines[..start]
            .last()
            .is_some_and(|above| above.trim() == "#[test]")
        {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let is_end = |line: &&str| line.len() == indent + 1 && line.trim_start() == "}";
        let Some(length) = lines[start..].iter().position(is_end) else {
            continue;
        };
        let code = lines[start..=start + length]
            .iter()
            .map(|line| line.trim())
            .filter(|line| !line.is_empty() && !line.starts_with("//"))
            .count();
        let key = format!("{file}: {name}");
        if code > FUNCTION_LINES_MAX && !LONG_FUNCTIONS.iter().any(|(excused, _)| *excused == key) {
            complaints.push(format!(
                "{file}:{}: {name} has {code} lines, more than {FUNCTION_LINES_MAX}",
                start + 1
            ));
        }
    }
    complaints
}

/// The name of the function that the line begins, if it begins one with a body.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        if let Some(after) = rest.strip_prefix("fn ") {
            let is_single_line = line.ends_with(';') || line.ends_with('}');
            return (!is_single_line).then(|| after.split(['(', '<']).next().unwrap_or(after));
        }
        let (word, after) = rest.split_once(' ')?;
        let is_qualifier = word.starts_with("pub")
            || word.starts_with('"')
            || ["const", "async", "unsafe", "extern"].contains(&word);
        if !is_qualifier {
            return None;
        }
        rest = after;
    }
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(lines: usize) -> String {
        format!(
            "impl X {{\n    pub(crate) const fn long<T>(x: T) {{\n{}    }}\n}}\n",
            "        one();\n".repeat(lines)
        )
    }

    #[test]
    fn long_functions_are_found() {
        assert!(long_functions("a.rs", &function(FUNCTION_LINES_MAX - 2)).is_empty());
        let complaints = long_functions("a.rs", &function(FUNCTION_LINES_MAX - 1));
        assert_eq!(complaints, ["a.rs:2: long has 81 lines, more than 80"]);
    }

    #[test]
    fn tests_may_be_long() {
        let text = format!("#[test]\nfn x() {{\n{}}}\n", "    one();\n".repeat(100));
        assert!(long_functions("a.rs", &text).is_empty());
    }

    #[test]
    fn comments_do_not_make_a_function_long() {
        let text = function(60).replace("        one();\n", "        // why\n        one();\n\n");
        assert!(long_functions("a.rs", &text).is_empty());
    }

    #[test]
    fn long_files_are_found() {
        let text = "use x;\n".repeat(FILE_LINES_MAX + 1);
        assert_eq!(
            rust("broker/src/a.rs", &text),
            ["broker/src/a.rs: 601 lines, more than 600"]
        );
    }

    #[test]
    fn the_core_does_not_ask_for_the_time() {
        let text = format!(
            "#![forbid(unsafe_code)]\nlet now = std::time::{}();\n",
            CLOCKS[0]
        );
        assert_eq!(rust("broker/core/src/x.rs", &text).len(), 1);
        assert!(rust("broker/src/worker/x.rs", &text).is_empty());
    }

    #[test]
    fn left_overs_are_whole_words() {
        let text = format!("// {}: later\nlet {}S = 1;\n", LEFT_OVERS[0], LEFT_OVERS[0]);
        assert_eq!(
            left_overs("a.rs", &text),
            ["a.rs:1: unfinished work is done, or is an issue"]
        );
    }

    #[test]
    fn crates_without_unsafe_code_forbid_it() {
        assert_eq!(
            rust("broker/core/src/lib.rs", "//! x\n"),
            ["broker/core/src/lib.rs: lacks forbid(unsafe_code)"]
        );
    }

    #[test]
    fn tokio_stays_off_the_data_path() {
        let text = format!("use {}sync::mpsc;\n", concat!("tokio", "::"));
        assert_eq!(rust("broker/src/worker/mod.rs", &text).len(), 1);
        assert!(rust("broker/src/cli/sub.rs", &text).is_empty());
    }
}
