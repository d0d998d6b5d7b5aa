//! The Unix socket: one JSON object per line, question and answer.
//!
//! `{"command":"status"}` is answered with `{"status":{…}}`, `{"command":"metrics"}` with
//! `{"metrics":"…"}`, `{"command":"drain",…}` with `{"drain":true}`, `{"command":"reload"}` with
//! `{"reload":true}`, anything else with `{"error":"…"}`. Only root and the broker's own user are
//! answered: the socket has mode 0600, and the peer's credentials are checked besides.

use super::{AdminError, AdminSource, own_uid, status};
use headgate_core::Drain;
use serde_json::{Value, json};
use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as StdStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

/// What the server itself answers, for `headgate ctl`.
const CONTROLS: &[&str] = &[
    "quota_list",
    "quota_set",
    "quota_reset",
    "lists",
    "list_add",
    "list_del",
    "qlog",
    "session_show",
];
/// Longest question, bytes. Longer: an error, and the connection is closed.
const LINE_BYTES_MAX: u64 = 4096;
/// Connections that are served at once; further ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may be silent, or not take an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Mode of the socket: the broker's own user, and root.
const MODE: u32 = 0o600;

/// A bound socket; its file is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Bound {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    /// Device and inode of the file: another broker's file of the same name is not ours to remove.
    file: (u64, u64),
}

impl Bound {
    pub(super) fn new(path: &Path) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Socket {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed)?;
        }
        remove_stale(path)?;
        let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let file = identity(path).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file,
        })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Answers until accepting fails for good.
pub(super) async fn serve(bound: &Bound, source: AdminSource) -> io::Error {
    let listener = match bound.listener.try_clone().and_then(UnixListener::from_std) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return io::Error::other("the semaphore was closed");
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let source = source.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, &source).await {
                        tracing::debug!(%error, "admin socket");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, for one: it passes.
                tracing::warn!(%error, "the admin socket can't accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(mut stream: UnixStream, source: &AdminSource) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if !may_ask(uid) {
        tracing::warn!(uid, "a user who may not ask connected to the admin socket");
        let refusal = format!(
            "user {uid} may not ask: only root and the broker's own user (uid {})",
            own_uid()
        );
        return answer(&mut stream, &json!({ "error": refusal })).await;
    }
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = String::new();
        let mut limited = (&mut reader).take(LINE_BYTES_MAX);
        let read = timeout(PATIENCE, limited.read_line(&mut line)).await??;
        if read == 0 {
            return Ok(());
        }
        if !line.ends_with('\n') && read as u64 == LINE_BYTES_MAX {
            let error = format!("a question has at most {LINE_BYTES_MAX} bytes");
            return answer(&mut writer, &json!({ "error": error })).await;
        }
        answer(&mut writer, &reply(&line, source)).await?;
    }
}

/// Root, and whoever could stop the broker anyway.
fn may_ask(uid: u32) -> bool {
    uid == 0 || uid == own_uid()
}

fn reply(line: &str, source: &AdminSource) -> Value {
    let question: Value = match serde_json::from_str(line) {
        Ok(question) => question,
        Err(error) => return json!({ "error": format!("this is not JSON: {error}") }),
    };
    match question.get("command").and_then(Value::as_str) {
        Some("status") => json!({ "status": status::snapshot(source) }),
        Some("metrics") => json!({ "metrics": source.metrics.render() }),
        Some("drain") => {
            (source.drain)(drain(&question));
            json!({ "drain": true })
        }
        Some(command) if CONTROLS.contains(&command) => match (source.control)(&question) {
            Ok(answer) => json!({ command: answer }),
            Err(error) => json!({ "error": error }),
        },
        Some("reload") => match (source.reload)() {
            Ok(()) => json!({ "reload": true }),
            Err(error) => json!({ "error": error }),
        },
        Some(other) => {
            let commands = [&["status", "metrics", "drain", "reload"], CONTROLS].concat();
            json!({ "error": format!("unknown command {other:?}; commands: {}", commands.join(", ")) })
        }
        None => json!({ "error": "no command; a question looks like {\"command\":\"status\"}" }),
    }
}

/// What `headgate drain` asks for; `None` = to take clients again.
fn drain(question: &Value) -> Option<Drain> {
    if question["cancel"] == true {
        return None;
    }
    let per_second = question["clients_per_second"].as_u64().unwrap_or(1_000);
    Some(Drain {
        server_reference: question["server_reference"].as_str().map(str::to_owned),
        moved: question["moved"] == true,
        clients_per_second: u32::try_from(per_second).unwrap_or(u32::MAX),
    })
}

async fn answer(stream: &mut (impl AsyncWriteExt + Unpin), answer: &Value) -> io::Result<()> {
    let mut line = answer.to_string();
    line.push('\n');
    timeout(PATIENCE, stream.write_all(line.as_bytes())).await?
}

/// Removes the socket of a broker that crashed; one that is alive is an error.
fn remove_stale(path: &Path) -> Result<(), AdminError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let failed = |source| AdminError::Socket {
        path: path.to_owned(),
        source,
    };
    if !metadata.file_type().is_socket() {
        return Err(failed(io::Error::other(
            "there is a file of this name that is not a socket",
        )));
    }
    match StdStream::connect(path) {
        Ok(_) => Err(AdminError::Running {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
