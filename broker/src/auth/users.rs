//! The password file: one user per line, `name:hash[:verifier[:quota class]]`.
//!
//! `hash` is a PHC string of argon2id; empty = no password is right. `verifier` is that of
//! [`Verifier::parse`](super::scram::Verifier::parse), for SCRAM-SHA-256; empty = no SCRAM. Empty lines, and those that begin with #, mean
//! nothing. What was read is never changed: new contents are a new [`Users`].

use super::{
    hash::{HashError, PasswordHashed},
    scram::{ITERATIONS_DEFAULT, Verifier},
};
use crate::config::is_class_name;
use headgate_core::Granted;
use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Largest password file, bytes. Worst case: about three times this in memory; a user takes 250
/// bytes or so.
pub const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Longest name, bytes.
pub const NAME_BYTES_MAX: usize = 1_024;

/// A user.
#[derive(Clone, Debug)]
pub struct User {
    /// Its name, prepared by SASLprep.
    pub name: Arc<str>,
    /// The hash of its password.
    pub hash: Option<PasswordHashed>,
    /// What SCRAM-SHA-256 needs.
    pub scram: Option<Verifier>,
    /// The name of its quota class; `None` = that of the listener.
    pub class_name: Option<Arc<str>>,
    /// The number of that class; [`Users::classify`] looks it up.
    pub quota_class: Option<u8>,
}

impl User {
    /// What its sessions are granted.
    pub fn granted(&self) -> Granted {
        Granted {
            user_name: Some(Arc::clone(&self.name)),
            quota_class: self.quota_class,
            data: None,
        }
    }
}

/// All users of a password file.
#[derive(Debug, Default)]
pub struct Users {
    users: HashMap<Arc<str>, User>,
    /// Verified against where there is no such user.
    decoy: Option<PasswordHashed>,
    scram_iterations: Option<u32>,
}

impl Users {
    /// Reads a password file.
    ///
    /// # Errors
    /// When it can't be read, or a line isn't right.
    pub fn load(path: &Path) -> Result<Self, UsersError> {
        let at = |source| UsersError::Read {
            path: path.to_owned(),
            source,
        };
        let text = read(path).map_err(at)?;
        Self::parse(&text).map_err(|(line, problem)| UsersError::Line {
            path: path.to_owned(),
            line,
            problem,
        })
    }

    /// Reads what stands in a password file.
    ///
    /// # Errors
    /// The line that isn't right, counted from 1, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, (usize, LineError)> {
        let mut users = Self::default();
        for (number, line) in text.lines().enumerate() {
            let at = |problem| (number + 1, problem);
            let Some(user) = parse_line(line).map_err(at)? else {
                continue;
            };
            users.decoy = users.decoy.or_else(|| Some(user.hash.as_ref()?.decoy()));
            let iterations = user.scram.as_ref().map(Verifier::iterations);
            users.scram_iterations = users.scram_iterations.or(iterations);
            if users.users.insert(Arc::clone(&user.name), user).is_some() {
                return Err(at(LineError::Twice));
            }
        }
        Ok(users)
    }

    /// The user of this name, however it is written (RFC 4013).
    pub fn get(&self, name: &str) -> Option<&User> {
        self.users.get(&*prepared(name)?)
    }

    /// Looks up the numbers of the users' quota classes.
    ///
    /// # Errors
    /// When there is no such class. `path` is the file's, for the message.
    pub fn classify(
        &mut self,
        path: &Path,
        number: impl Fn(&str) -> Option<u8>,
    ) -> Result<(), UsersError> {
        for user in self.users.values_mut() {
            let Some(class) = &user.class_name else {
                continue;
            };
            user.quota_class = number(class);
            if user.quota_class.is_none() {
                return Err(UsersError::Class {
                    path: path.to_owned(),
                    user: Arc::clone(&user.name),
                    class: Arc::clone(class),
                });
            }
        }
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// A hash to verify against where there is no user, so that it takes as long; `None` if no
    /// user has a password.
    pub fn decoy(&self) -> Option<&PasswordHashed> {
        self.decoy.as_ref()
    }

    /// The iterations of users that don't exist: those of the first one that does.
    pub fn scram_iterations(&self) -> u32 {
        self.scram_iterations.unwrap_or(ITERATIONS_DEFAULT)
    }
}

/// A name or password as SASLprep has it (RFC 4013); `None` if it holds what that prohibits.
pub fn prepared(text: &str) -> Option<Cow<'_, str>> {
    stringprep::saslprep(text).ok()
}

/// Whether others than the owner and its group may read the file.
pub fn is_world_readable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

/// Reads one line; `None` if it means nothing.
///
/// # Errors
/// What is wrong with it.
pub fn parse_line(line: &str) -> Result<Option<User>, LineError> {
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.trim().is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, rest) = line.split_once(':').ok_or(LineError::Fields)?;
    let (hash, rest) = rest.split_once(':').unwrap_or((rest, ""));
    check_name(name)?;
    // A verifier has two colons of its own.
    let fields: Vec<&str> = rest.split(':').collect();
    let (verifier, class) = match fields.as_slice() {
        [""] => (None, ""),
        ["", class] => (None, *class),
        [_, _, _] => (Some(rest), ""),
        [a, b, c, class] => (Some(&rest[..a.len() + b.len() + c.len() + 2]), *class),
        _ => return Err(LineError::Fields),
    };
    let hash = match hash {
        "" => None,
        hash => Some(PasswordHashed::parse(hash)?),
    };
    let scram = match verifier {
        None => None,
        Some(text) => Some(Verifier::parse(text).ok_or(LineError::Verifier)?),
    };
    let class_name = match class {
        "" => None,
        class if is_class_name(class) => Some(class.into()),
        _ => return Err(LineError::QuotaClass),
    };
    Ok(Some(User {
        name: name.into(),
        hash,
        scram,
        class_name,
        quota_class: None,
    }))
}

/// Whether a name can stand in a password file.
///
/// # Errors
/// [`LineError::Name`] if not.
pub fn check_name(name: &str) -> Result<(), LineError> {
    let is_right = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.starts_with('#')
        && !name.contains([':', '\n', '\r', '\0'])
        && prepared(name).is_some_and(|prepared| prepared == name);
    is_right.then_some(()).ok_or(LineError::Name)
}

/// A user as a line, without its end.
pub fn line(user: &User) -> String {
    let hash = user.hash.as_ref().and_then(PasswordHashed::to_phc);
    let verifier = user.scram.as_ref().map(Verifier::to_text);
    let class = user.class_name.as_ref();
    let class = class.map_or(String::new(), |class| format!(":{class}"));
    let (hash, verifier) = (hash.unwrap_or_default(), verifier.unwrap_or_default());
    format!("{}:{hash}:{verifier}{class}", user.name)
}

/// Reads a text file of a bounded length.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut file = File::open(path)?.take(FILE_BYTES_MAX + 1);
    file.read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("it is too large for a password file"));
    }
    Ok(text)
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Not the fields of a user.
    #[error("a user is name:hash, name:hash:verifier or name:hash:verifier:class")]
    Fields,
    /// The name.
    #[error(
        "a name has 1 to 1024 bytes, begins with no #, and has no colon, control character or other \
         form of a character that SASLprep (RFC 4013) replaces"
    )]
    Name,
    /// The hash.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// The verifier.
    #[error(
        "the verifier is not SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey \
         (with 4096 to 10000000 iterations)"
    )]
    Verifier,
    /// The class.
    #[error("the name of a quota class has 1 to 31 letters, digits, - and _")]
    QuotaClass,
    /// A user has two lines.
    #[error("there is a user of this name above")]
    Twice,
}

/// Why a password file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// A user's quota class isn't configured.
    #[error("{}: {user} is of the quota class {class}, which there is not", path.display())]
    Class {
        /// The file.
        path: PathBuf,
        /// The user.
        user: Arc<str>,
        /// The class.
        class: Arc<str>,
    },
    /// It can't be read.
    #[error("the password file {} can't be read: {source} (`headgate passwd -c FILE USER` makes one)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line isn't right.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        problem: LineError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$\
                        CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
    const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
                            WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                            wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn every_form_of_a_line_is_read_and_written() {
        for (fields, has_hash, has_verifier, class) in [
            (format!("{HASH}:"), true, false, None),
            (format!("{HASH}:{VERIFIER}"), true, true, None),
            (
                format!("{HASH}:{VERIFIER}:a-b_C"),
                true,
                true,
                Some("a-b_C"),
            ),
            (format!("{HASH}::3"), true, false, Some("3")),
            (format!(":{VERIFIER}:3"), false, true, Some("3")),
            ("::3".to_owned(), false, false, Some("3")),
            (":".to_owned(), false, false, None),
        ] {
            let text = format!("ann b:{fields}");
            let user = parse_line(&text).expect("right").expect("a user");
            assert_eq!(&*user.name, "ann b");
            let has = (user.hash.is_some(), user.scram.is_some());
            assert_eq!(has, (has_hash, has_verifier), "{text}");
            assert_eq!(user.class_name.as_deref(), class);
            assert_eq!(line(&user), text);
        }
        let short = parse_line(&format!("ann:{HASH}\r"));
        assert!(short.expect("right").expect("a user").hash.is_some());
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number() {
        for (wrong, problem) in [
            ("ann".to_owned(), LineError::Fields),
            (format!(":{HASH}"), LineError::Name),
            ("a\u{ad}nn:".to_owned(), LineError::Name),
            ("ann:x".to_owned(), LineError::Hash(HashError::Syntax)),
            (format!("ann:{HASH}:x"), LineError::Fields),
            (format!("ann:{HASH}:x:y:z"), LineError::Verifier),
            (format!("ann:{HASH}:{VERIFIER}:a b"), LineError::QuotaClass),
            (format!("ann:{HASH}:{VERIFIER}:1:2"), LineError::Fields),
            ("bob::".to_owned(), LineError::Twice),
        ] {
            let text = format!("# comment\n\nbob::\n  \n{wrong}\n");
            assert_eq!(Users::parse(&text).err(), Some((5, problem)), "{wrong}");
        }
    }

    #[test]
    fn a_name_is_found_however_it_is_written() {
        let mut users = Users::parse("I\u{e9}X:::four\n").expect("right");
        let path = Path::new("users");
        let unknown = users.classify(path, |_| None).expect_err("there is none");
        assert!(unknown.to_string().contains("four"), "{unknown}");
        let classified = users.classify(path, |name| (name == "four").then_some(4));
        classified.expect("there is one");
        let class = |name| users.get(name).and_then(|user| user.quota_class);
        assert_eq!(class("I\u{e9}X"), Some(4));
        assert_eq!(class("I\u{ad}e\u{301}X"), Some(4));
        assert_eq!(class("IeX"), None);
        assert_eq!(class("a\u{7}"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_is_read_is_written_again(
            parts in prop::collection::vec(
                prop::sample::select(vec![HASH, VERIFIER, ":", ":", ":", "a", "é", "7", "#", "\n"]),
                0..12,
            )
        ) {
            let text = parts.concat();
            let _ = Users::parse(&text);
            for text in text.lines() {
                if let Ok(Some(user)) = parse_line(text) {
                    let again = parse_line(&line(&user)).expect("right").expect("a user");
                    prop_assert_eq!(line(&again), line(&user));
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(text in "\\PC{0,200}") {
            let _ = Users::parse(&text);
        }
    }
}
