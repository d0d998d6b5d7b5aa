//! Documents: links that resolve, and commands that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::CommandFactory;

use crate::{paths, shell};

/// Documents that break a rule.
///
/// # Errors
/// A file can't be read.
pub fn complaints(files: &[String]) -> Result<Vec<String>> {
    let known = Known::new();
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| file.ends_with(".md")) {
        let text = fs::read_to_string(paths::root().join(file))?;
        complaints.extend(links(file, &text, |path| paths::root().join(path).exists()));
        complaints.extend(commands(file, &text, &known));
    }
    Ok(complaints)
}

/// The commands that exist.
struct Known {
    xtask: BTreeSet<String>,
    /// None while the broker has not been built.
    headgate: Option<BTreeSet<String>>,
}

impl Known {
    fn new() -> Self {
        let xtask = crate::Arguments::command()
            .get_subcommands()
            .map(|command| command.get_name().to_owned())
            .collect();
        Self {
            xtask,
            headgate: headgate_commands(),
        }
    }
}

/// The commands in the help of the broker that was built last.
fn headgate_commands() -> Option<BTreeSet<String>> {
    let newest = ["debug", "release"]
        .map(|profile| paths::target().join(profile).join("headgate"))
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()?;
    let help = shell::output(Command::new(newest.1).arg("--help"))?;
    let commands = help
        .lines()
        .skip_while(|line| line.trim() != "Commands:")
        .skip(1);
    Some(
        commands
            .take_while(|line| !line.trim().is_empty())
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect(),
    )
}

fn commands(file: &str, text: &str, known: &Known) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, code) in code(text) {
        let words: Vec<&str> = code.split_whitespace().collect();
        for (index, word) in words.iter().enumerate() {
            let next = |distance: usize| {
                words
                    .get(index + distance)
                    .map(|word| word.trim_end_matches(['`', ',', ';', ')']))
            };
            if *word == "cargo" && next(1) == Some("xtask") {
                complaints.extend(next(2).and_then(|name| {
                    unknown(file, number, "cargo xtask", name, Some(&known.xtask))
                }));
            }
            if *word == "headgate" {
                complaints.extend(next(1).and_then(|name| {
                    unknown(file, number, "headgate", name, known.headgate.as_ref())
                }));
            }
        }
    }
    complaints
}

fn unknown(
    file: &str,
    number: usize,
    program: &str,
    name: &str,
    known: Option<&BTreeSet<String>>,
) -> Option<String> {
    let is_command = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    (is_command && known.is_some_and(|known| !known.contains(name)))
        .then(|| format!("{file}:{number}: there is no `{program} {name}`"))
}

/// The lines of code blocks, and the code within lines, each with its line number.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut pieces = Vec::new();
    let mut is_block = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
        } else if is_block {
            // What a command printed is in the same blocks; it is told apart by the sign of the prompt.
            pieces.extend(
                line.trim_start()
                    .strip_prefix("$ ")
                    .map(|command| (index + 1, command)),
            );
        } else {
            pieces.extend(
                line.split('`')
                    .skip(1)
                    .step_by(2)
                    .map(|code| (index + 1, code)),
            );
        }
    }
    pieces
}

fn links(file: &str, text: &str, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    let mut complaints = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for piece in line.split("](").skip(1) {
            let Some((link, _)) = piece.split_once(')') else {
                continue;
            };
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            if !exists(&normal(&folder.join(path))) {
                complaints.push(format!(
                    "{file}:{}: the link to {path} leads nowhere",
                    index + 1
                ));
            }
        }
    }
    complaints
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                result.pop();
            }
            Component::CurDir => {}
            other => result.push(other),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Known {
            xtask: set(&["run", "test"]),
            headgate: Some(set(&["run", "status"])),
        }
    }

    #[test]
    fn commands_in_documents_exist() {
        let text = "Use `cargo xtask test --full`, or `headgate status`.\n```\n$ cargo xtask run\nheadgate listens\n```\n";
        assert!(commands("README.md", text, &known()).is_empty());
        let text = "`cargo xtask tets`\n\n```console\n$ headgate statu --json\n```\n";
        assert_eq!(
            commands("README.md", text, &known()),
            [
                "README.md:1: there is no `cargo xtask tets`",
                "README.md:4: there is no `headgate statu`"
            ]
        );
    }

    #[test]
    fn links_lead_somewhere() {
        let exists = |path: &Path| path == Path::new("broker/ARCHITECTURE.md");
        let text = "[a](ARCHITECTURE.md#map) [b](https://example.org/x) [c](#here) [d](../tests/none.md)\n";
        assert_eq!(
            links("broker/README.md", text, exists),
            ["broker/README.md:1: the link to ../tests/none.md leads nowhere"]
        );
    }
}
