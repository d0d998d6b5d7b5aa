//! Password hashes: argon2id (RFC 9106) as a PHC string.

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, Version,
    password_hash::phc::{Output, ParamsString, Salt},
};
use subtle::ConstantTimeEq;

/// Memory of one verification, KiB: a hash that asks for more is refused when the file is read.
/// Worst case: this much for each thread that checks passwords.
pub const HASH_MEMORY_KIB_MAX: u32 = 256 * 1024;
/// Passes over that memory.
pub const HASH_PASSES_MAX: u32 = 16;
/// Lanes.
pub const HASH_LANES_MAX: u32 = 16;

/// Longest output, bytes: what a PHC string holds.
const OUTPUT_BYTES_MAX: usize = 64;

/// The hash of a password.
#[derive(Clone)]
pub struct PasswordHashed {
    params: Params,
    salt: Box<[u8]>,
    output: Box<[u8]>,
}

impl PasswordHashed {
    /// Hashes a password with a new salt, and with 19 MiB of memory and two passes.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn new(password: &[u8]) -> Result<Self, HashError> {
        let salt: [u8; 16] = super::random().ok_or(HashError::Random)?;
        let params = Params::default();
        let mut output = [0; Params::DEFAULT_OUTPUT_LEN];
        context(&params)
            .hash_password_into(password, &salt, &mut output)
            .map_err(|_| HashError::Hash)?;
        Ok(Self {
            params,
            salt: salt.into(),
            output: output.into(),
        })
    }

    /// Reads a PHC string: `$argon2id$v=19$m=…,t=…,p=…$salt$hash`.
    ///
    /// # Errors
    /// When it is none, of another function or version, or costs more than is allowed.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        let hash = PasswordHash::new(text).map_err(|_| HashError::Syntax)?;
        let is_right = hash.algorithm == Algorithm::Argon2id.ident()
            && hash.version == Some(Version::V0x13.into());
        if !is_right {
            return Err(HashError::Function);
        }
        let params = Params::try_from(&hash).map_err(|_| HashError::Syntax)?;
        let (Some(salt), Some(output)) = (&hash.salt, &hash.hash) else {
            return Err(HashError::Syntax);
        };
        // A short output would be guessed, a keyed one can't be verified.
        if salt.len() < argon2::MIN_SALT_LEN || output.len() < 16 || !params.keyid().is_empty() {
            return Err(HashError::Syntax);
        }
        if params.m_cost() > HASH_MEMORY_KIB_MAX
            || params.t_cost() > HASH_PASSES_MAX
            || params.p_cost() > HASH_LANES_MAX
        {
            return Err(HashError::Cost);
        }
        Ok(Self {
            params,
            salt: salt.as_ref().into(),
            output: output.as_bytes().into(),
        })
    }

    /// The PHC string; `None` if there is none for what it holds, which `new` and `parse` exclude.
    pub fn to_phc(&self) -> Option<String> {
        let hash = PasswordHash {
            algorithm: Algorithm::Argon2id.ident(),
            version: Some(Version::V0x13.into()),
            params: ParamsString::try_from(&self.params).ok()?,
            salt: Some(Salt::new(&self.salt).ok()?),
            hash: Some(Output::new(&self.output).ok()?),
        };
        Some(hash.to_string())
    }

    /// Whether it is the hash of this password. Takes tens of milliseconds, and as long for a
    /// wrong password as for the right one.
    pub fn verify(&self, password: &[u8]) -> bool {
        let mut output = [0; OUTPUT_BYTES_MAX];
        let output = &mut output[..self.output.len().min(OUTPUT_BYTES_MAX)];
        context(&self.params)
            .hash_password_into(password, &self.salt, output)
            .is_ok_and(|()| output.ct_eq(&self.output).into())
    }

    /// A hash that costs as much to verify and is that of no password anybody knows.
    pub fn decoy(&self) -> Self {
        Self {
            output: vec![0; self.output.len()].into(),
            ..self.clone()
        }
    }
}

/// Hashes and salts aren't shown.
impl std::fmt::Debug for PasswordHashed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PasswordHashed").field(&self.params).finish()
    }
}

/// What is wrong with a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// It is no PHC string.
    #[error("the password hash is no PHC string ($argon2id$v=19$m=…,t=…,p=…$salt$hash)")]
    Syntax,
    /// It is not argon2id, version 0x13.
    #[error("the password hash is not argon2id with v=19; `headgate passwd` makes such hashes")]
    Function,
    /// It would take too much memory or time to verify.
    #[error("the password hash costs too much: at most m=262144, t=16, p=16")]
    Cost,
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Random,
    /// There isn't enough memory.
    #[error("the password can't be hashed: is there enough memory?")]
    Hash,
}

fn context(params: &Params) -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_written_and_read_and_knows_its_password() {
        let hash = PasswordHashed::new(b"secret").expect("it hashes");
        let phc = hash.to_phc().expect("it has a form");
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        let again = PasswordHashed::parse(&phc).expect("it is right");
        assert_eq!(again.to_phc().as_deref(), Some(&*phc));
        assert!(again.verify(b"secret"));
        for wrong in [&b"Secret"[..], b"", b"secret\0"] {
            assert!(!again.verify(wrong));
        }
        assert!(!again.decoy().verify(b"secret"));
        assert_eq!(again.decoy().params, again.params);
        let other = PasswordHashed::new(b"secret").expect("it hashes");
        assert_ne!(other.salt, hash.salt);
        assert!(!format!("{hash:?}").contains(&phc[40..]));
    }

    /// The hash is one that the reference implementation (`argon2 somesalt -id -m 16 -t 2`) made.
    #[test]
    fn hashes_of_other_programs_are_understood() {
        let phc = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$\
                   CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let hash = PasswordHashed::parse(phc).expect("it is right");
        assert!(hash.verify(b"password") && !hash.verify(b"passwore"));
    }

    #[test]
    fn what_is_no_such_hash_is_refused() {
        let rest = "$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        for (head, error) in [
            ("$argon2id$v=19$m=262145,t=2,p=1", HashError::Cost),
            ("$argon2id$v=19$m=65536,t=17,p=1", HashError::Cost),
            ("$argon2id$v=19$m=65536,t=2,p=17", HashError::Cost),
            ("$argon2i$v=19$m=65536,t=2,p=1", HashError::Function),
            ("$argon2id$v=16$m=65536,t=2,p=1", HashError::Function),
            ("$argon2id$m=65536,t=2,p=1", HashError::Function),
            ("$argon2id$v=19$m=1,t=2,p=1", HashError::Syntax),
            ("argon2id$v=19$m=65536,t=2,p=1", HashError::Syntax),
        ] {
            let got = PasswordHashed::parse(&format!("{head}{rest}"));
            assert_eq!(got.err(), Some(error), "{head}");
        }
        for text in [
            "",
            "$argon2id$v=19$m=65536,t=2,p=1",
            "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ",
            "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAA",
        ] {
            assert_eq!(PasswordHashed::parse(text).err(), Some(HashError::Syntax));
        }
    }
}
