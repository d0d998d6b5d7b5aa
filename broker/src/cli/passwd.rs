//! `headgate passwd`.

use super::{Failure, say, shown};
use crate::auth::{
    hash::{HashError, PasswordHashed},
    scram::{self, ITERATIONS_DEFAULT, ITERATIONS_MAX, ITERATIONS_MIN},
    users::{self, LineError, User, Users, UsersError},
};
use crate::config::is_class_name;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, IsTerminal, Write},
    num::NonZeroU32,
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};
use zeroize::Zeroizing;

/// Write the password file (auth.password_file)
///
/// Adds a user or changes its password. The password is asked for twice; where standard input is no
/// terminal, its first line is the password. The file is replaced at once, with mode 0600; the
/// broker reads it when it starts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  headgate passwd -c /etc/headgate/users ann      a new file with one user
  headgate passwd /etc/headgate/users bob         one more, or a new password
  headgate passwd -b users sensor7 s3cret         for scripts; others may see the command line
  pass show mqtt/ann | headgate passwd users ann
  headgate passwd -D users bob                    bob may no longer connect")]
pub(super) struct PasswdArgs {
    /// Make a new file
    #[arg(short = 'c', long)]
    create: bool,
    /// Take the password from the command line
    #[arg(short = 'b', long)]
    batch: bool,
    /// Delete the user
    #[arg(short = 'D', long, conflicts_with_all = ["create", "batch", "class", "no_scram"])]
    delete: bool,
    /// Quota class of the user's sessions (a section [quota.NAME]), "" = that of the listener [default: as before]
    #[arg(long, value_name = "NAME")]
    class: Option<String>,
    /// Write no verifier for SCRAM-SHA-256: the user can't use AUTH, and the file holds argon2id alone
    #[arg(long)]
    no_scram: bool,
    /// Iterations of SCRAM-SHA-256, which the client does at each connect
    #[arg(long, value_name = "NUMBER", default_value_t = ITERATIONS_DEFAULT,
          value_parser = clap::value_parser!(u32).range(i64::from(ITERATIONS_MIN)..=i64::from(ITERATIONS_MAX)))]
    iterations: u32,
    /// The password file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The user's name
    #[arg(value_name = "USER")]
    user: String,
    /// The password, with -b
    #[arg(
        value_name = "PASSWORD",
        required_if_eq("batch", "true"),
        requires = "batch"
    )]
    password: Option<String>,
}

/// Why the file stays as it was.
#[derive(Debug, thiserror::Error)]
enum PasswdError {
    #[error("`{name}` can't be a user: {}", LineError::Name)]
    Name { name: String },
    #[error("{} exists already: leave -c out to change it", shown(path))]
    Exists { path: PathBuf },
    #[error(transparent)]
    File(#[from] UsersError),
    #[error("there is no user `{name}` in {}", shown(path))]
    NoUser { name: String, path: PathBuf },
    #[error("the password can't be read: {0}")]
    Prompt(io::Error),
    #[error("the two passwords differ")]
    Differ,
    #[error("a password has at least one character")]
    Empty,
    #[error(
        "SCRAM allows no such password: it has a character that SASLprep (RFC 4013) prohibits \
         (--no-scram does without)"
    )]
    Prohibited,
    #[error("no such class: {0}")]
    Class(LineError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error("can't write {}: {source}", shown(path))]
    Write { path: PathBuf, source: io::Error },
}

pub(super) fn passwd(args: PasswdArgs) -> Result<ExitCode, Failure> {
    change(args).map_err(Failure::other)?;
    Ok(ExitCode::SUCCESS)
}

fn change(mut args: PasswdArgs) -> Result<(), PasswdError> {
    let name = users::prepared(&args.user).unwrap_or_default().into_owned();
    if users::check_name(&name).is_err() {
        return Err(PasswdError::Name { name: args.user });
    }
    // A link stays one: what it leads to is replaced.
    let path = fs::canonicalize(&args.file).unwrap_or_else(|_| args.file.clone());
    let text = match args.create {
        true if path.exists() => return Err(PasswdError::Exists { path }),
        true => String::new(),
        false => users::read(&path).map_err(|source| UsersError::Read {
            path: path.clone(),
            source,
        })?,
    };
    let before = Users::parse(&text).map_err(|(line, problem)| UsersError::Line {
        path: path.clone(),
        line,
        problem,
    })?;
    let former = before.get(&name);
    let line = if args.delete {
        if former.is_none() {
            return Err(PasswdError::NoUser { name, path });
        }
        None
    } else {
        let password = password(&mut args)?;
        let class = match args.class.as_deref() {
            None => former.and_then(|user| user.class_name.clone()),
            Some("") => None,
            Some(class) if is_class_name(class) => Some(class.into()),
            Some(_) => return Err(PasswdError::Class(LineError::QuotaClass)),
        };
        Some(users::line(&user(&args, &name, &password, class)?))
    };
    let after = replaced(&text, &name, line.as_deref());
    write(&path, &after).map_err(|source| PasswdError::Write {
        path: path.clone(),
        source,
    })?;
    let done = match (args.delete, former.is_some()) {
        (true, _) => "deleted",
        (false, true) => "changed",
        (false, false) => "added",
    };
    say(&format!("{}: user {name} {done}\n", shown(&path)));
    Ok(())
}

fn password(args: &mut PasswdArgs) -> Result<Zeroizing<String>, PasswdError> {
    let password = match args.password.take() {
        Some(password) => Zeroizing::new(password),
        None if io::stdin().is_terminal() => {
            let ask = |prompt: &str| rpassword::prompt_password(prompt).map(Zeroizing::new);
            let first = ask("Password: ").map_err(PasswdError::Prompt)?;
            let second = ask("Again: ").map_err(PasswdError::Prompt)?;
            if first != second {
                return Err(PasswdError::Differ);
            }
            first
        }
        None => {
            let mut line = Zeroizing::new(String::new());
            let read = io::stdin().lock().read_line(&mut line);
            read.map_err(PasswdError::Prompt)?;
            let end = line.trim_end_matches(['\n', '\r']).len();
            line.truncate(end);
            line
        }
    };
    match password.is_empty() {
        true => Err(PasswdError::Empty),
        false => Ok(password),
    }
}

fn user(
    args: &PasswdArgs,
    name: &str,
    password: &str,
    class_name: Option<Arc<str>>,
) -> Result<User, PasswdError> {
    let scram = if args.no_scram {
        None
    } else {
        let prepared = users::prepared(password).filter(|prepared| !prepared.is_empty());
        let prepared = prepared.ok_or(PasswdError::Prohibited)?;
        let iterations = NonZeroU32::new(args.iterations).unwrap_or(NonZeroU32::MIN);
        Some(scram::verifier(&prepared, iterations).ok_or(HashError::Random)?)
    };
    Ok(User {
        name: name.into(),
        hash: Some(PasswordHashed::new(password.as_bytes())?),
        scram,
        class_name,
        quota_class: None,
    })
}

/// The file with another line for a user, or none; everything else stays.
fn replaced(text: &str, name: &str, line: Option<&str>) -> String {
    let is_users = |line: &str| line.split_once(':').is_some_and(|(user, _)| user == name);
    let mut lines: Vec<&str> = Vec::new();
    let mut new = line;
    for old in text.lines() {
        match is_users(old) {
            true => lines.extend(new.take()),
            false => lines.push(old),
        }
    }
    lines.extend(new);
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

/// Replaces a file at once: whoever reads it has the old one or the new one.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = path.with_file_name(name);
    let written = write_new(&new, text, path).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The first error is the one that matters.
        let _ = fs::remove_file(&new);
    }
    written
}

fn write_new(new: &Path, text: &str, former: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file: File = options.write(true).create_new(true).mode(0o600).open(new)?;
    file.write_all(text.as_bytes())?;
    // The broker's user goes on reading a file that root changes.
    if let Ok(metadata) = fs::metadata(former) {
        fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_users_line_changes() {
        let text = "# users\nann:1\n\nann b:2\nbob:3";
        assert_eq!(
            replaced(text, "ann", Some("ann:4")),
            "# users\nann:4\n\nann b:2\nbob:3\n"
        );
        assert_eq!(replaced(text, "ann", None), "# users\n\nann b:2\nbob:3\n");
        assert_eq!(
            replaced(text, "an", Some("an:5")),
            "# users\nann:1\n\nann b:2\nbob:3\nan:5\n"
        );
        assert_eq!(replaced("", "ann", Some("ann:1")), "ann:1\n");
    }
}
