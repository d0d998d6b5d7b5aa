//! A qlog of one connection, on request: what quinn-proto sends, receives and takes for lost.

use crate::net::tls::{self, QuicSettings};
use quinn_proto::{QlogConfig, QlogStream, ServerConfig};
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, LineWriter, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// The longest qlog, bytes; what would come after it is left out.
const BYTES_MAX: u64 = 64 << 20;

/// Whose connection is wanted, of all workers.
#[derive(Debug)]
pub struct Qlogs {
    /// Read for each new connection, so without a lock.
    is_asked: AtomicBool,
    asked: Mutex<Option<(IpAddr, File)>>,
    folder: PathBuf,
    server: Arc<ServerConfig>,
    settings: QuicSettings,
}

impl Qlogs {
    /// Files go into `folder`, which is made when it is needed. `server` was made with `settings`.
    pub fn new(folder: PathBuf, server: Arc<ServerConfig>, settings: QuicSettings) -> Self {
        Self {
            is_asked: AtomicBool::new(false),
            asked: Mutex::new(None),
            folder,
            server,
            settings,
        }
    }

    /// The next connection from `peer` is written down, in place of what was asked for before and hasn't come. Returns the
    /// file, whose name is made from `unix_s`, the time in seconds.
    ///
    /// # Errors
    /// The file can't be made; one of the same second and address is there already.
    pub fn ask(&self, peer: IpAddr, unix_s: u64) -> io::Result<PathBuf> {
        let peer = peer.to_canonical();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        let path = self.folder.join(format!("{unix_s}-{peer}.sqlog"));
        // It says who speaks with whom, and when.
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        *asked = Some((peer, file));
        self.is_asked.store(true, Ordering::Relaxed);
        Ok(path)
    }

    /// The folder of the files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The configuration of a connection that is wanted; `None` is the usual one.
    pub(super) fn wanted(&self, peer: IpAddr) -> Option<Arc<ServerConfig>> {
        if !self.is_asked.load(Ordering::Relaxed) {
            return None;
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, file) = asked.take_if(|(wanted, _)| *wanted == peer.to_canonical())?;
        self.is_asked.store(false, Ordering::Relaxed);
        let mut server = ServerConfig::clone(&self.server);
        server.transport_config(Arc::new(tls::transport_config(
            &self.settings,
            stream(file),
        )));
        Some(Arc::new(server))
    }
}

fn stream(file: File) -> Option<QlogStream> {
    let mut config = QlogConfig::default();
    // Complete lines, so that it can be read while the connection lasts.
    let bounded = Bounded {
        file,
        bytes_left: BYTES_MAX,
    };
    config
        .writer(Box::new(LineWriter::new(bounded)))
        .title(Some("headgate, server".to_owned()));
    config.into_stream()
}

/// Takes no more than so many bytes, and says nothing of the rest.
struct Bounded {
    file: File,
    bytes_left: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.bytes_left.checked_sub(bytes.len() as u64) {
            Some(left) => {
                self.file.write_all(bytes)?;
                self.bytes_left = left;
            }
            None => self.bytes_left = 0,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_within_its_bound_and_ends_with_a_whole_line() {
        let path = std::env::temp_dir().join(format!("headgate-qlog-{}", std::process::id()));
        let bounded = Bounded {
            file: File::create(&path).unwrap(),
            bytes_left: 20,
        };
        let mut lines = LineWriter::new(bounded);
        for _ in 0..5 {
            lines.write_all(b"1234567\n").unwrap();
        }
        drop(lines);
        assert_eq!(std::fs::read(&path).unwrap(), b"1234567\n1234567\n");
        std::fs::remove_file(&path).unwrap();
    }
}
