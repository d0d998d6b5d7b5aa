//! Keys derived from the master secret.
//!
//! One secret of 32 bytes lies in the state folder, readable by its owner only; the nodes of a cluster may share it.
//! Every other key is HKDF-SHA256 of it (RFC 5869) under a label of its own, so that a restart keeps the connection
//! IDs that it made before, and a key that leaks doesn't give away the others.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use headgate_common::cid::ROTATIONS;
use headgate_common::token::{EPOCH_S, TokenEpoch, TokenKeys};
use headgate_common::{CidKeys, Secrets, SipKey};
use ring::rand::SecureRandom as _;
use ring::{hkdf, hmac, rand};

use crate::state_file;

/// Name of the master secret's file in the state folder.
pub const MASTER_SECRET_FILE: &str = "master-secret";

/// Length of the master secret, in bytes. The file holds it as hexadecimal digits.
const SECRET_LEN: usize = 32;
/// RFC 5869 §3.1: a salt that says what the keys are for.
const SALT: &[u8] = b"headgate master secret v1";

/// What is wrong with the master secret. Always for the operator to mend.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The state folder or the file in it cannot be read, made or written.
    #[error(
        "cannot {action} {path}: {source}; give the broker's user access to it, or choose another state folder"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Others can read or change the file.
    #[error(
        "{path} is open to other users (mode {mode:04o}): the secret may be known; \
             replace the file if it may have been read, else run `chmod 600 {path}`"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody else.
    #[error(
        "{path} belongs to user id {owner}, the broker runs as {user}; run `chown {user} {path}`"
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// The file's owner.
        owner: u32,
        /// The broker's effective user id.
        user: u32,
    },
    /// The file's content is no secret of ours.
    #[error(
        "{path} must hold exactly 64 hexadecimal digits; restore it, or remove it to get a new secret \
             (clients then have to connect anew)"
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes for a new master secret")]
    Random,
}

/// Everything that is derived from the master secret.
#[derive(Clone)]
pub struct Keys {
    root: hkdf::Prk,
}

/// Keys never show in a log.
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(secret)")
    }
}

impl Keys {
    /// Reads the master secret of a state folder; makes both if they are missing.
    ///
    /// # Errors
    /// When the secret can't be read or made, or when others can read it.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, KeyError> {
        let path = state_dir.join(MASTER_SECRET_FILE);
        state_file::make_folder(state_dir).map_err(|source| KeyError::Io {
            action: "make",
            path: state_dir.to_owned(),
            source,
        })?;
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(state_dir, &path)?;
                File::open(&path)
            }
            other => other,
        };
        let file = file.map_err(|source| KeyError::Io {
            action: "open",
            path: path.clone(),
            source,
        })?;
        Ok(Self::from_secret(&read(file, &path)?))
    }

    /// Derives everything from a secret that the caller holds.
    #[must_use]
    pub fn from_secret(secret: &[u8; SECRET_LEN]) -> Self {
        Self {
            root: hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret),
        }
    }

    /// The connection-ID keys while `epoch` is the current one: its own, and the former epoch's. An epoch's rotation
    /// is its number modulo 7.
    #[must_use]
    pub fn cid_keys(&self, epoch: u32) -> CidKeys {
        let rotation = |epoch: u32| (epoch % u32::from(ROTATIONS)) as u8;
        let keys = CidKeys::new(rotation(epoch), self.cid_key(epoch));
        match epoch.checked_sub(1) {
            Some(former) => keys.with_former(rotation(former), self.cid_key(former)),
            None => keys,
        }
    }

    /// Everything that routing needs while `epoch` is the current one.
    #[must_use]
    pub fn secrets(&self, epoch: u32) -> Secrets {
        Secrets {
            cid: self.cid_keys(epoch),
            initial: self.initial_hash_key(),
            prefix: self.prefix_hash_key(),
        }
    }

    /// Spreads clients' first connection IDs over the workers.
    #[must_use]
    pub fn initial_hash_key(&self) -> SipKey {
        SipKey::from_bytes(self.expand(&[b"initial hash"]))
    }

    /// Spreads source prefixes over the kernel's budgets.
    #[must_use]
    pub fn prefix_hash_key(&self) -> SipKey {
        SipKey::from_bytes(self.expand(&[b"prefix hash"]))
    }

    /// Makes stateless reset tokens (RFC 9000 §10.3.2); the same for every worker.
    #[must_use]
    pub fn reset_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.expand::<32>(&[b"stateless reset"]))
    }

    /// The keys of Retry and address validation tokens (RFC 9000 §8.1) at a time, in Unix seconds; the same for every
    /// worker and for the kernel. They change with the days, and those of the day before are valid still.
    #[must_use]
    pub fn token_keys(&self, unix_s: u64) -> TokenKeys {
        let of = |epoch: u64| {
            let key =
                |label: &[u8]| SipKey::from_bytes(self.expand(&[label, &epoch.to_be_bytes()]));
            TokenEpoch::new(
                epoch,
                key(b"address token MAC"),
                key(b"address token cipher"),
            )
        };
        let epoch = unix_s / EPOCH_S;
        TokenKeys {
            current: of(epoch),
            former: of(epoch.wrapping_sub(1)),
        }
    }

    /// Seeds the hashes of the topic table, so that nobody can prepare colliding topics.
    #[must_use]
    pub fn topic_seed(&self) -> [u64; 2] {
        let key = SipKey::from_bytes(self.expand(&[b"topic seed"]));
        [key.k0, key.k1]
    }

    /// Makes the salts that names get in SCRAM which are no user's; they have to stay.
    pub fn scram_secret(&self) -> [u8; 32] {
        self.expand(&[b"SCRAM salts of nobody"])
    }

    fn cid_key(&self, epoch: u32) -> SipKey {
        SipKey::from_bytes(self.expand(&[b"connection ID MAC", &epoch.to_be_bytes()]))
    }

    fn expand<const N: usize>(&self, label: &[&[u8]]) -> [u8; N] {
        struct Length(usize);
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let mut out = [0; N];
        self.root
            .expand(label, Length(N))
            .and_then(|okm| okm.fill(&mut out))
            .expect("HKDF-SHA256 gives up to 8,160 bytes, and N is at most 32");
        out
    }
}

/// Writes a new secret beside its place and links it there, so that a crash leaves no half of one and two brokers that
/// start at once agree.
fn create(state_dir: &Path, path: &Path) -> Result<(), KeyError> {
    let mut secret = [0; SECRET_LEN];
    rand::SystemRandom::new()
        .fill(&mut secret)
        .map_err(|_| KeyError::Random)?;
    let temporary = state_dir.join(format!("{MASTER_SECRET_FILE}.{}", std::process::id()));
    let failed = |source| KeyError::Io {
        action: "write",
        path: temporary.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    let written = file
        .write_all(hex(&secret).as_bytes())
        .and_then(|()| file.sync_all());
    let linked =
        written
            .map_err(failed)
            .and_then(|()| match std::fs::hard_link(&temporary, path) {
                Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                made => made
                    .and_then(|()| state_file::sync_entry(path))
                    .map_err(|source| KeyError::Io {
                        action: "make",
                        path: path.to_owned(),
                        source,
                    }),
            });
    // A left-over copy of the secret is as private as the file itself.
    let _ = std::fs::remove_file(&temporary);
    linked
}

fn read(file: File, path: &Path) -> Result<[u8; SECRET_LEN], KeyError> {
    let failed = |source| KeyError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.mode() & 0o077 != 0 {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    // SAFETY: geteuid has no preconditions and cannot fail.
    let user = unsafe { libc::geteuid() };
    if metadata.uid() != user && user != 0 {
        return Err(KeyError::Owner {
            path: path.to_owned(),
            owner: metadata.uid(),
            user,
        });
    }
    let mut text = String::new();
    file.take(4 * SECRET_LEN as u64)
        .read_to_string(&mut text)
        .map_err(failed)?;
    unhex(text.trim_end()).ok_or_else(|| KeyError::Content {
        path: path.to_owned(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .chain(["\n".to_owned()])
        .collect()
}

fn unhex(text: &str) -> Option<[u8; SECRET_LEN]> {
    if text.len() != 2 * SECRET_LEN || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; SECRET_LEN];
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("headgate-keys-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Self(path)
        }

        fn secret(&self) -> PathBuf {
            self.0.join(MASTER_SECRET_FILE)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_restart_keeps_every_key() {
        let folder = Folder::new("restart");
        let first = Keys::load_or_create(&folder.0).expect("makes the secret");
        let second = Keys::load_or_create(&folder.0).expect("reads it back");
        assert_eq!(first.secrets(5), second.secrets(5));
        assert_eq!(first.topic_seed(), second.topic_seed());
        let mode = std::fs::metadata(folder.secret()).expect("there").mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(
            std::fs::read_dir(&folder.0).expect("there").count(),
            1,
            "no other copy is left"
        );
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let folder = Folder::new("exposed");
        Keys::load_or_create(&folder.0).expect("makes the secret");
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(folder.secret(), std::fs::Permissions::from_mode(mode))
                .expect("chmod");
            let error = Keys::load_or_create(&folder.0).expect_err("refused");
            assert!(
                matches!(error, KeyError::Exposed { mode: seen, .. } if seen == mode),
                "{error}"
            );
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn a_damaged_secret_is_refused_and_left_alone() {
        let folder = Folder::new("damaged");
        Keys::load_or_create(&folder.0).expect("makes the secret");
        for content in [
            "",
            "abc",
            &"g".repeat(64),
            &"0".repeat(65),
            &"0".repeat(500),
        ] {
            std::fs::write(folder.secret(), content).expect("write");
            assert!(matches!(
                Keys::load_or_create(&folder.0),
                Err(KeyError::Content { .. })
            ));
            assert_eq!(
                std::fs::read_to_string(folder.secret()).expect("there"),
                content
            );
        }
    }

    #[test]
    fn every_key_differs_from_every_other() {
        let keys = Keys::from_secret(&[7; SECRET_LEN]);
        let mut all = vec![keys.initial_hash_key(), keys.prefix_hash_key()];
        all.extend((0..20).map(|epoch| keys.cid_key(epoch)));
        let [k0, k1] = keys.topic_seed();
        all.push(SipKey { k0, k1 });
        for (index, key) in all.iter().enumerate() {
            assert!(!all[..index].contains(key));
        }
        assert_ne!(
            Keys::from_secret(&[8; SECRET_LEN]).initial_hash_key(),
            keys.initial_hash_key()
        );
    }

    #[test]
    fn connection_ids_outlive_one_change_of_epoch() {
        let keys = Keys::from_secret(&[1; SECRET_LEN]);
        for epoch in [0, 1, 6, 7, 13, 14] {
            let cid = keys.cid_keys(epoch).encode(1, 2, [3; 6]);
            assert!(keys.cid_keys(epoch).decode(&cid).is_ok());
            assert!(keys.cid_keys(epoch + 1).decode(&cid).is_ok());
            assert!(keys.cid_keys(epoch + 2).decode(&cid).is_err());
        }
    }
}
