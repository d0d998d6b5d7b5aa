//! The programs that cargo builds from tests: which there are, what they hold, and running a part of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::test::{self, Counted, Reader};
use crate::{paths, shell};

/// The name of a library's own tests in the map, where other programs have the name of their file.
const UNIT: &str = "unit";

/// A program with tests.
#[derive(Debug)]
pub struct Program {
    package: String,
    /// Its name in the map.
    name: String,
    executable: PathBuf,
    /// The folder in which cargo runs it.
    folder: PathBuf,
}

impl Program {
    /// Whether it is the program in this file, by the file's name.
    pub fn is(&self, executable: &str) -> bool {
        self.file_name() == executable
    }

    /// The file's name: the crate's, and a hash.
    pub fn file_name(&self) -> &str {
        let name = self.executable.file_name().and_then(|name| name.to_str());
        name.unwrap_or_default()
    }

    /// The crate's name, or that of the file that the tests are in.
    pub fn name(&self) -> &str {
        let file = self.file_name();
        file.rsplit_once('-').map_or(file, |(name, _hash)| name)
    }

    /// What people read in a list of programs.
    pub fn title(&self) -> String {
        let of_library = if self.name == UNIT { " (unit)" } else { "" };
        format!("{}{of_library}", self.name())
    }

    /// The name of one of its tests in the map.
    pub fn name_of(&self, path: &str) -> String {
        format!("{}::{}::{path}", self.package, self.name)
    }

    /// The path in this program of a test with this name in the map, if it can be one of this program's.
    pub fn path_of<'a>(&self, test: &'a str) -> Option<&'a str> {
        let rest = test.strip_prefix(&self.package)?.strip_prefix("::")?;
        rest.strip_prefix(&self.name)?.strip_prefix("::")
    }

    /// The paths of its tests.
    ///
    /// # Errors
    /// It can't be started.
    pub fn list(&self) -> Result<BTreeSet<String>> {
        let mut list = self.command();
        list.args(["--list", "--format", "terse"]);
        let text = shell::output(&mut list)
            .with_context(|| format!("{} does not list its tests", self.executable.display()))?;
        let tests = text.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(tests.map(str::to_owned).collect())
    }

    /// Runs the given tests, or all of them if there are none given.
    ///
    /// # Errors
    /// It can't be started, or a log can't be written. Tests that fail are no error.
    pub fn run(&self, tests: &BTreeSet<String>) -> Result<Ended> {
        let log_name = format!("test-{}-{}", self.package, self.name);
        let skip_log = test::fresh_skip_log(&log_name)?;
        let mut command = self.command();
        if !tests.is_empty() {
            command.arg("--exact").args(tests);
        }
        command
            .env(test::SKIP_LOG, &skip_log)
            .env(test::BINARY, paths::target().join("debug/headgate"));
        let mut reader = Reader::of(&self.title(), self.file_name());
        let mut summary = None;
        let finished = shell::watch(&log_name, &self.title(), &mut command, |line| {
            summary = reader.line(line).or(summary.take());
        })?;
        let counted = reader.finish(&fs::read_to_string(&skip_log).unwrap_or_default());
        let complaint = match (finished.status.success(), counted.failed_tests.is_empty()) {
            (true, _) => None,
            (false, true) => Some(format!("{}\n    ({})", finished.tail(), finished.status)),
            (false, false) => Some(test::failures(&finished.output()?)),
        };
        Ok(Ended {
            counted,
            summary,
            complaint,
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        // Not the folder of xtask, which the cargo that started us has set.
        command
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its tests.
    pub counted: Counted,
    /// A line about them, if there are any.
    pub summary: Option<String>,
    /// What tells why it failed, if it did.
    pub complaint: Option<String>,
}

/// Builds all tests of the workspace, as `cargo test --workspace` does, and says what came out.
///
/// # Errors
/// They don't build.
pub fn build() -> Result<Vec<Program>> {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--workspace", "--no-run", "--quiet"]);
    cargo.arg("--message-format=json-render-diagnostics");
    test::settle_incremental(&mut cargo);
    let mut programs = Vec::new();
    let mut diagnostics = String::new();
    let finished = shell::watch("build-tests", "building tests", &mut cargo, |line| {
        programs.extend(program(line));
        if !line.starts_with('{') {
            diagnostics.push_str(&format!("    {line}\n"));
        }
    })?;
    if !finished.status.success() {
        bail!("the tests don't build:\n{diagnostics}");
    }
    Ok(programs)
}

/// The program that a line of cargo's JSON announces.
fn program(line: &str) -> Option<Program> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let executable = message["executable"].as_str()?;
    if message["profile"]["test"].as_bool() != Some(true) {
        return None;
    }
    let manifest = Path::new(message["manifest_path"].as_str()?);
    let target = &message["target"];
    let kind = target["kind"].get(0)?.as_str()?;
    let name = target["name"].as_str()?;
    Some(Program {
        package: package(message["package_id"].as_str()?)?,
        name: if kind == "lib" { UNIT } else { name }.to_owned(),
        executable: executable.into(),
        folder: manifest.parent()?.to_owned(),
    })
}

/// The name in `path+file:///…/core#headgate-core@0.1.0`, or `…/xtask#0.1.0`, where the folder has the name.
fn package(id: &str) -> Option<String> {
    let (source, rest) = id.rsplit_once('#')?;
    let name = match rest.split_once('@') {
        Some((name, _version)) => name,
        None => source.rsplit('/').next()?,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_named_by_package_program_and_path() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///r/broker/core#headgate-core@0.1.0",
            "manifest_path":"/r/broker/core/Cargo.toml","target":{"kind":["test"],"name":"connect"},
            "profile":{"test":true},"executable":"/r/target/debug/deps/connect-01ab"}"#;
        let program = program(line).expect("a program");
        assert!(program.is("connect-01ab") && !program.is("connect-02"));
        assert_eq!(program.name_of("a::b"), "headgate-core::connect::a::b");
        assert_eq!(
            program.path_of("headgate-core::connect::a::b"),
            Some("a::b")
        );
        assert_eq!(program.path_of("headgate-core::connecting::a"), None);
        assert_eq!(program.path_of("headgate::connect::a"), None);
        assert_eq!(program.folder, Path::new("/r/broker/core"));
        assert_eq!(
            package("path+file:///r/broker#headgate@0.1.0").as_deref(),
            Some("headgate")
        );
        assert_eq!(
            package("path+file:///r/xtask#0.1.0").as_deref(),
            Some("xtask")
        );
    }
}
