//! What a server gives a client for the next connection: TLS session tickets (RFC 8446 §4.6.1), which last as long as
//! the process, because rustls lets nobody write one down; and address validation tokens (RFC 9000 §8.1.3).

use super::ClientError;
use crate::state_file;
use quinn::TokenStore;
use rustls::{
    NamedGroup,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue,
        Tls13ClientSessionValue,
    },
    pki_types::ServerName,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Servers that tickets are kept of.
const SERVERS_MAX: usize = 8;

/// Tokens that are kept of one server: the newest.
const TOKENS_MAX: usize = 8;

/// Session tickets, and when one comes.
#[derive(Debug)]
pub(super) struct Tickets {
    kept: ClientSessionMemoryCache,
    came: Notify,
}

impl Tickets {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            kept: ClientSessionMemoryCache::new(SERVERS_MAX),
            came: Notify::new(),
        })
    }

    /// Waits for one; returns at once if one has come since this was last asked.
    pub async fn came(&self) {
        self.came.notified().await;
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.kept.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept.kx_hint(server)
    }

    /// QUIC has no TLS 1.2.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'_>) {}

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.kept.insert_tls13_ticket(server, ticket);
        self.came.notify_one();
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept.take_tls13_ticket(server)
    }
}

/// Address validation tokens in a file.
pub(super) struct Tokens {
    path: PathBuf,
    kept: Mutex<Kept>,
}

/// The file: by server name, in hexadecimal, the newest last.
#[derive(Default, Deserialize, Serialize)]
struct Kept {
    tokens: BTreeMap<String, Vec<String>>,
}

impl Tokens {
    /// Reads the file; one that isn't there yet holds none.
    pub fn open(path: &Path) -> Result<Arc<Self>, ClientError> {
        let kept = state_file::read(path).map_err(|error| ClientError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            kept: Mutex::new(kept),
        }))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the file says the same now.
    fn save(&self, kept: &Kept) -> bool {
        let written = state_file::write(&self.path, kept);
        if let Err(error) = &written {
            eprintln!("warning: {error}");
        }
        written.is_ok()
    }
}

impl TokenStore for Tokens {
    fn insert(&self, server: &str, token: bytes::Bytes) {
        let mut kept = self.kept();
        let tokens = kept.tokens.entry(server.to_owned()).or_default();
        tokens.push(hexadecimal(&token));
        let old = tokens.len().saturating_sub(TOKENS_MAX);
        tokens.drain(..old);
        self.save(&kept);
    }

    fn take(&self, server: &str) -> Option<bytes::Bytes> {
        let mut kept = self.kept();
        let token = kept.tokens.get_mut(server)?.pop()?;
        // Whoever sees a token twice knows that both connections are the same client's: it goes from the file first.
        self.save(&kept).then(|| octets(&token)).flatten()
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn hexadecimal(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// `None` if it isn't hexadecimal.
fn octets(text: &str) -> Option<bytes::Bytes> {
    let octets = text.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    octets.collect::<Option<Vec<u8>>>().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_used_once_by_whichever_process() {
        let folder = std::env::temp_dir().join(format!("headgate-tokens-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("tokens.json");
        for token in 0..20u8 {
            let tokens = Tokens::open(&path).unwrap();
            tokens.insert("a.example", vec![token, 0xff].into());
        }
        let (one, two) = (Tokens::open(&path).unwrap(), Tokens::open(&path).unwrap());
        assert!(one.take("b.example").is_none());
        assert_eq!(one.take("a.example").unwrap()[..], [19, 0xff]);
        drop(one);
        let again = Tokens::open(&path).unwrap();
        let mut left = std::iter::from_fn(|| again.take("a.example")).map(|token| token[0]);
        assert_eq!(left.by_ref().count(), TOKENS_MAX - 1);
        drop(two);
        std::fs::write(&path, "nothing of ours").unwrap();
        assert!(Tokens::open(&path).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
