//! Reads the sources of a configuration, one over the other.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};
use toml::de::{DeTable, DeValue};

use super::{
    Config, ConfigError, Location, Origin, Problem, quota,
    sections::{KeySpec, SECTIONS, SectionSpec},
    setting::{Raw, nearest},
};

/// Where a configuration comes from; later ones win.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// What applies where nothing is set: the defaults, or those of `--dev`.
    pub base: Config,
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// The environment: all of it, or at least what begins with `HEADGATE_`.
    pub environment: Vec<(String, String)>,
    /// Flags of the command line that stand for keys.
    pub flags: Vec<Flag>,
}

/// A flag of the command line that stands for a key.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As it is written: `--workers`.
    pub flag: String,
    /// The section of the key.
    pub section: String,
    /// The key.
    pub key: String,
    /// The value as it was given; items of lists are separated by commas.
    pub value: String,
}

/// A configuration, and where its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    origins: BTreeMap<(&'static str, &'static str), Origin>,
}

impl Sources {
    /// Reads all sources and checks how the values fit together. Lists every problem.
    pub fn load(self) -> Result<Loaded, ConfigError> {
        let loaded = self.load_unchecked()?;
        let problems = super::check::fit_together(&loaded);
        match problems.is_empty() {
            true => Ok(loaded),
            false => Err(ConfigError { problems }),
        }
    }

    /// Reads all sources; each value by itself is allowed, but they may not fit together.
    pub fn load_unchecked(self) -> Result<Loaded, ConfigError> {
        let mut loader = Loader {
            loaded: Loaded {
                config: self.base,
                origins: BTreeMap::new(),
            },
            problems: Vec::new(),
        };
        if let Some(file) = &self.file {
            loader.file(file)?;
        }
        for (name, value) in &self.environment {
            loader.variable(name, value);
        }
        for flag in &self.flags {
            loader.flag(flag);
        }
        match loader.problems.is_empty() {
            true => Ok(loader.loaded),
            false => Err(ConfigError {
                problems: loader.problems,
            }),
        }
    }
}

impl Loaded {
    /// Where the value of a key came from.
    pub fn origin(&self, section: &str, key: &str) -> Origin {
        self.origins
            .iter()
            .find(|((s, k), _)| *s == section && *k == key)
            .map_or(Origin::Default, |(_, origin)| origin.clone())
    }
}

struct Loader {
    loaded: Loaded,
    problems: Vec<Problem>,
}

/// The file that is being read.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn at(&self, span: Range<usize>) -> Origin {
        Origin::File(Location::new(self.path.to_owned(), self.text, span))
    }
}

/// Longest file that is read: a wrong path should not fill the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl Loader {
    fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = read(path)?;
        let source = Source { path, text: &text };
        let (table, errors) = DeTable::parse_recoverable(&text);
        for error in &errors {
            let origin = source.at(error.span().unwrap_or(text.len()..text.len()));
            let message = format!("this is not TOML: {}", error.message());
            self.problems.push(Problem::new(
                message,
                origin,
                "a line is [section], key = value, or # comment; texts stand in double quotes",
            ));
        }
        if !errors.is_empty() {
            return Err(ConfigError {
                problems: std::mem::take(&mut self.problems),
            });
        }
        for (name, value) in table.get_ref() {
            if name.get_ref() == "quota" {
                self.quotas(&source, value.span(), value.get_ref());
                continue;
            }
            match SECTIONS
                .iter()
                .find(|section| section.name == name.get_ref())
            {
                Some(section) => self.section(&source, section, value.span(), value.get_ref()),
                None => self.unknown_section(&source, name.get_ref(), name.span(), value.get_ref()),
            }
        }
        // The tables are sorted by name; people read from the top.
        self.problems.sort_by_key(|problem| match &problem.origin {
            Origin::File(location) => (location.line, location.column),
            _ => (0, 0),
        });
        Ok(())
    }

    fn section(
        &mut self,
        source: &Source<'_>,
        section: &'static SectionSpec,
        span: Range<usize>,
        value: &DeValue<'_>,
    ) {
        let DeValue::Table(table) = value else {
            self.problems.push(Problem::new(
                format!("`{}` is a section, not a key", section.name),
                source.at(span),
                format!(
                    "write [{}] on a line of its own, then its keys",
                    section.name
                ),
            ));
            return;
        };
        for (name, value) in table {
            let Some(key) = section.keys.iter().find(|key| key.name == name.get_ref()) else {
                let origin = source.at(name.span());
                self.problems
                    .push(unknown_key(section, name.get_ref(), origin));
                continue;
            };
            let origin = source.at(value.span());
            let given = &source.text[value.span()];
            self.set(section, key, Raw::Toml(value.get_ref()), given, origin);
        }
    }

    /// `[quota.NAME]`.
    fn quotas(&mut self, source: &Source<'_>, span: Range<usize>, value: &DeValue<'_>) {
        let DeValue::Table(classes) = value else {
            self.problems.push(Problem::new(
                "`quota` is a section, not a key",
                source.at(span),
                "write [quota.NAME] on a line of its own, then its keys",
            ));
            return;
        };
        for (name, value) in classes {
            let DeValue::Table(keys) = value.get_ref() else {
                self.problems.push(Problem::new(
                    format!("`{}` is no quota class", name.get_ref()),
                    source.at(name.span()),
                    "write [quota.NAME] on a line of its own, then its keys",
                ));
                continue;
            };
            if self.loaded.config.quota.class_mut(name.get_ref()).is_none() {
                let origin = source.at(name.span());
                self.no_class(name.get_ref(), origin);
                continue;
            }
            for (key, value) in keys {
                let known = quota::KEYS.iter().any(|spec| spec.name == key.get_ref());
                let at = if known { value.span() } else { key.span() };
                let given = &source.text[value.span()];
                self.quota_key(
                    (name.get_ref(), key.get_ref()),
                    (Raw::Toml(value.get_ref()), given),
                    source.at(at),
                );
            }
        }
    }

    fn no_class(&mut self, name: &str, origin: Origin) {
        self.problems.push(Problem::new(
            format!("there can't be a quota class of the name `{name}`"),
            origin,
            "a name has 1 to 31 letters, digits, - and _; there may be 62 classes beside \
             default and suspect",
        ));
    }

    fn quota_key(
        &mut self,
        (name, key): (&str, &str),
        (raw, given): (Raw<'_>, &str),
        origin: Origin,
    ) {
        let Some(class) = self.loaded.config.quota.class_mut(name) else {
            return self.no_class(name, origin);
        };
        let names = || quota::KEYS.iter().map(|spec| spec.name);
        let Some(spec) = quota::KEYS.iter().find(|spec| spec.name == key) else {
            let all = names().collect::<Vec<_>>().join(", ");
            let mut problem = Problem::new(
                format!("unknown key `{key}` in [quota.{name}]"),
                origin,
                format!("keys of a quota class: {all}"),
            );
            if let Some(near) = nearest(key, names()) {
                problem.help.insert(0, format!("did you mean `{near}`?"));
            }
            self.problems.push(problem);
            return;
        };
        if (spec.set)(class, raw) {
            return;
        }
        let mut problem = Problem::new(
            format!(
                "`{}` is not allowed for quota.{name}.{key}",
                shortened(given)
            ),
            origin,
            format!("allowed: {}", (spec.allowed)()),
        );
        let word = given.trim_matches(['"', '\'']);
        if let Some(near) = nearest(word, (spec.words)().iter().copied()) {
            problem.help.insert(0, format!("did you mean \"{near}\"?"));
        }
        self.problems.push(problem);
    }

    fn unknown_section(
        &mut self,
        source: &Source<'_>,
        name: &str,
        span: Range<usize>,
        value: &DeValue<'_>,
    ) {
        let origin = source.at(span);
        let problem = if matches!(value, DeValue::Table(_)) {
            unknown_section(name, origin)
        } else {
            let homes = homes(name);
            let help = match homes.as_slice() {
                [] => "keys stand below their section, such as [listen]".to_owned(),
                homes => format!("this key belongs below {}", homes.join(" or ")),
            };
            Problem::new(
                format!("key `{name}` stands outside of any section"),
                origin,
                help,
            )
        };
        self.problems.push(problem);
    }

    fn set(
        &mut self,
        section: &'static SectionSpec,
        key: &'static KeySpec,
        raw: Raw<'_>,
        given: &str,
        origin: Origin,
    ) {
        if (key.set)(&mut self.loaded.config, raw) {
            self.loaded.origins.insert((section.name, key.name), origin);
            return;
        }
        let mut problem = Problem::new(
            format!(
                "`{}` is not allowed for {}.{}",
                shortened(given),
                section.name,
                key.name
            ),
            origin,
            format!("allowed: {}", (key.allowed)()),
        );
        let word = given.trim_matches(['"', '\'']);
        if let Some(near) = nearest(word, (key.words)().iter().copied()) {
            problem.help.insert(0, format!("did you mean \"{near}\"?"));
        }
        self.problems.push(problem);
    }

    /// Variables whose second word is no section are none of ours: Kubernetes, for one, sets
    /// `HEADGATE_PORT` for a service of that name.
    fn variable(&mut self, name: &str, value: &str) {
        let Some(rest) = name.strip_prefix("HEADGATE_") else {
            return;
        };
        let rest = rest.to_ascii_lowercase();
        let Some((section, key_name)) = rest.split_once('_') else {
            return;
        };
        let Some(section) = SECTIONS.iter().find(|s| s.name == section) else {
            return;
        };
        let origin = Origin::Environment(name.to_owned());
        match section.keys.iter().find(|key| key.name == key_name) {
            Some(key) if key.list => self.problems.push(Problem::new(
                format!(
                    "{}.{} can't be set by the environment: it is a list",
                    section.name, key.name
                ),
                origin,
                "set it in the configuration file, or by a flag of `headgate run`",
            )),
            Some(key) => self.set(section, key, Raw::Text(value), value, origin),
            None => self.problems.push(unknown_key(section, key_name, origin)),
        }
    }

    fn flag(&mut self, flag: &Flag) {
        let origin = Origin::Flag(flag.flag.clone());
        if flag.section == "quota"
            && let Some(names) = flag.key.split_once('.')
        {
            let value = (Raw::Text(&flag.value), &*flag.value);
            return self.quota_key(names, value, origin);
        }
        let Some(section) = SECTIONS.iter().find(|section| section.name == flag.section) else {
            self.problems.push(unknown_section(&flag.section, origin));
            return;
        };
        match section.keys.iter().find(|key| key.name == flag.key) {
            Some(key) => self.set(section, key, Raw::Text(&flag.value), &flag.value, origin),
            None => self.problems.push(unknown_key(section, &flag.key, origin)),
        }
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |why: String, help: &str| {
        ConfigError::one(format!("{}: {why}", path.display()), Origin::Default, help)
    };
    let metadata = std::fs::metadata(path).map_err(|error| {
        unreadable(
            format!("the configuration file can't be read: {error}"),
            "`headgate check --print-defaults` prints a file to begin with",
        )
    })?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(unreadable(
            format!("the file has {} bytes", metadata.len()),
            "a configuration file has at most 1 MiB: is the path right?",
        ));
    }
    std::fs::read_to_string(path).map_err(|error| {
        unreadable(
            format!("the configuration file can't be read: {error}"),
            "it has to be a text file (UTF-8) that this user may read",
        )
    })
}

fn unknown_section(name: &str, origin: Origin) -> Problem {
    let names = || {
        SECTIONS
            .iter()
            .map(|section| section.name)
            .chain(["quota.NAME"])
    };
    let mut problem = Problem::new(
        format!("unknown section [{name}]"),
        origin,
        format!("sections: {}", names().collect::<Vec<_>>().join(", ")),
    );
    if let Some(near) = nearest(name, names()) {
        problem.help.insert(0, format!("did you mean [{near}]?"));
    }
    problem
}

fn unknown_key(section: &SectionSpec, name: &str, origin: Origin) -> Problem {
    let names = || section.keys.iter().map(|key| key.name);
    let mut problem = Problem::new(
        format!("unknown key `{name}` in [{}]", section.name),
        origin,
        format!(
            "keys of [{}]: {}",
            section.name,
            names().collect::<Vec<_>>().join(", ")
        ),
    );
    if let Some(near) = nearest(name, names()) {
        problem.help.insert(0, format!("did you mean `{near}`?"));
    } else if let [home, ..] = homes(name).as_slice() {
        problem
            .help
            .insert(0, format!("there is a key of this name below {home}"));
    }
    problem
}

/// The sections that have a key of this name.
fn homes(key: &str) -> Vec<String> {
    SECTIONS
        .iter()
        .filter(|section| section.keys.iter().any(|k| k.name == key))
        .map(|section| format!("[{}]", section.name))
        .collect()
}

/// The first line, at most 60 characters of it.
fn shortened(given: &str) -> String {
    let line = given.lines().next().unwrap_or("");
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.len() < given.len() => format!("{line}…"),
        None => line.to_owned(),
    }
}
