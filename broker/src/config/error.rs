//! What is wrong with a configuration, where, and what is allowed instead.

use std::{fmt, ops::Range, path::PathBuf};

/// Everything that is wrong with a configuration. The process ends with exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one; in the order of the sources: file, environment, flags.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, quoting the offending text.
    pub message: String,
    /// Where.
    pub origin: Origin,
    /// What is allowed, or what was probably meant.
    pub help: Vec<String>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file.
    File(Location),
    /// An environment variable, by name.
    Environment(String),
    /// A flag of the command line, such as `--workers`.
    Flag(String),
    /// Nobody set it: the default, or `--dev`.
    Default,
}

/// A place in the configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file as it was named.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The text of the line.
    pub text: String,
    /// How many characters of it are meant, at least 1.
    pub width: usize,
}

impl ConfigError {
    /// One problem.
    pub fn one(message: impl Into<String>, origin: Origin, help: impl Into<String>) -> Self {
        Self {
            problems: vec![Problem::new(message, origin, help)],
        }
    }
}

impl Problem {
    /// A problem with one line of help.
    pub fn new(message: impl Into<String>, origin: Origin, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            origin,
            help: vec![help.into()],
        }
    }
}

impl Location {
    /// The place of the octets `span` in `source`, the text of `file`. A span over several lines
    /// is cut at the end of the first.
    pub fn new(file: PathBuf, source: &str, span: Range<usize>) -> Self {
        let start = floor_char(source, span.start);
        let end = floor_char(source, span.end.max(start));
        let line_start = source[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = source[start..]
            .find('\n')
            .map_or(source.len(), |newline| start + newline);
        Self {
            file,
            line: source[..start].matches('\n').count() + 1,
            column: source[line_start..start].chars().count() + 1,
            text: source[line_start..line_end]
                .trim_end_matches('\r')
                .to_owned(),
            width: source[start..end.min(line_end)].chars().count().max(1),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.message)?;
        match &self.origin {
            Origin::File(location) => location.fmt(f)?,
            Origin::Environment(name) => writeln!(f, "  --> environment variable {name}")?,
            Origin::Flag(name) => writeln!(f, "  --> command line, {name}")?,
            Origin::Default => {}
        }
        for help in &self.help {
            writeln!(f, "  = {help}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        // Tabs stay tabs, so that the marks stand below what they mean.
        let indent: String = self
            .text
            .chars()
            .take(self.column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        writeln!(
            f,
            "  --> {}:{}:{}",
            self.file.display(),
            self.line,
            self.column
        )?;
        writeln!(f, " {margin} |")?;
        writeln!(f, " {number} | {}", self.text)?;
        writeln!(f, " {margin} | {indent}{}", "^".repeat(self.width))
    }
}

fn floor_char(source: &str, at: usize) -> usize {
    let at = at.min(source.len());
    (0..=at)
        .rev()
        .find(|&at| source.is_char_boundary(at))
        .unwrap_or(0)
}
