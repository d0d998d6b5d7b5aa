//! The other side of the Unix socket: asks a running broker.

use serde_json::{Value, json};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

/// Longest answer, bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// How long the broker may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "no broker answers on {}: it is not running, or its socket is elsewhere.\n  \
         Start one with `headgate run --dev` or `headgate run --config FILE`, or name the socket with --socket PATH \
         (`headgate run` prints it)",
        path.display()
    )]
    Absent {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is another user's.
    #[error(
        "this user may not ask the broker on {}: run this as root or as the broker's own user",
        path.display()
    )]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The conversation broke off.
    #[error("asking the broker on {} broke off: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The broker refused.
    #[error("the broker on {} refused: {message}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What it said.
        message: String,
    },
}

/// Sends a command and returns the member of this name of the answer.
pub fn request(path: &Path, command: &str) -> Result<Value, ClientError> {
    ask(path, &json!({ "command": command }))
}

/// Sends a command with what belongs to it and returns the member of the command's name of the answer.
pub fn ask(path: &Path, question: &Value) -> Result<Value, ClientError> {
    let command = question["command"].as_str().unwrap_or_default();
    let path_owned = || path.to_owned();
    let broken = |source: io::Error| ClientError::Io {
        path: path_owned(),
        source,
    };
    let mut stream = UnixStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::Absent { path: path_owned() }
        }
        io::ErrorKind::PermissionDenied => ClientError::Denied { path: path_owned() },
        _ => broken(source),
    })?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
    // A broker that refuses this user answers and closes without reading: the answer counts.
    let asked = stream.write_all(format!("{question}\n").as_bytes());
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX))
        .read_line(&mut line)
        .map_err(broken)?;
    if line.is_empty() {
        asked.map_err(broken)?;
    }
    let mut answer: Value = serde_json::from_str(&line).map_err(|error| broken(error.into()))?;
    if let Some(message) = answer.get("error").and_then(Value::as_str) {
        return Err(ClientError::Refused {
            path: path_owned(),
            message: message.to_owned(),
        });
    }
    answer.get_mut(command).map(Value::take).ok_or_else(|| {
        broken(io::Error::new(
            io::ErrorKind::InvalidData,
            "the answer is not to the question",
        ))
    })
}
