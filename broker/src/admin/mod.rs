//! How a running broker is looked after: a Unix socket that answers `headgate status`, and
//! `/metrics` over HTTP. One thread with a small tokio runtime of its own; nothing here is on the
//! way of a message.

mod client;
mod http;
mod socket;
mod status;

pub use client::{ClientError, ask, request};
pub use status::snapshot;

use crate::metrics::Metrics;
use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
};
use tokio::sync::watch;

/// Where the administration listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSettings {
    /// The Unix socket.
    pub socket: PathBuf,
    /// The HTTP address of /metrics; `None` = off.
    pub http: Option<SocketAddr>,
}

/// Answers a question, or says what is wrong with it.
type Control = dyn Fn(&serde_json::Value) -> Result<serde_json::Value, String> + Send + Sync;

/// What it answers from.
#[derive(Clone)]
pub struct AdminSource {
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// What the server says of itself, as a JSON object.
    pub server: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Answers the commands of `headgate ctl`; the error says what is wrong.
    pub control: Arc<Control>,
    /// Sends the clients elsewhere; `None` = takes them again.
    pub drain: Arc<dyn Fn(Option<headgate_core::Drain>) + Send + Sync>,
    /// Reads the certificates again; the error is for the operator.
    pub reload: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// Why the administration did not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Another broker answers on the socket.
    #[error(
        "another broker is running: it answers on {}. Stop it first, or give this one its own node.state_dir or admin.socket",
        path.display()
    )]
    Running {
        /// The socket.
        path: PathBuf,
    },
    /// The Unix socket can't be made.
    #[error("can't make the admin socket {}: {source}{}", path.display(), socket_hint(.source))]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The HTTP address can't be used.
    #[error("can't listen on {address} (admin.http): {source}{}", http_hint(.source))]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The thread can't be started.
    #[error("can't start the administration's thread: {0}")]
    Thread(io::Error),
}

/// Listening, not answering yet: so that whatever is wrong with the addresses is known before the
/// server starts.
#[derive(Debug)]
pub struct Admin {
    socket: socket::Bound,
    http: Option<std::net::TcpListener>,
}

/// The administration's thread; dropping it ends the thread and removes the socket.
#[derive(Debug)]
pub struct AdminThread {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    http: Option<SocketAddr>,
}

impl Admin {
    /// Binds the Unix socket and the HTTP address.
    pub fn bind(settings: &AdminSettings) -> Result<Self, AdminError> {
        let socket = socket::Bound::new(&settings.socket)?;
        let http = settings.http.map(http::bind).transpose()?;
        Ok(Self { socket, http })
    }

    /// Starts to answer.
    pub fn serve(self, source: AdminSource) -> Result<AdminThread, AdminError> {
        let (stop, stopped) = watch::channel(false);
        let http = self
            .http
            .as_ref()
            .and_then(|listener| listener.local_addr().ok());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(AdminError::Thread)?;
        let thread = thread::Builder::new()
            .name("headgate-admin".to_owned())
            .spawn(move || runtime.block_on(self.answer(source, stopped)))
            .map_err(AdminError::Thread)?;
        Ok(AdminThread {
            stop,
            thread: Some(thread),
            http,
        })
    }

    async fn answer(self, source: AdminSource, mut stopped: watch::Receiver<bool>) {
        // The socket's file is removed when `self.socket` is dropped at the end.
        let socket = socket::serve(&self.socket, source.clone());
        let http = async {
            match self.http {
                Some(listener) => http::serve(listener, source.metrics).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => {}
            error = socket => tracing::error!(%error, "the admin socket stopped answering"),
            error = http => tracing::error!(%error, "admin.http stopped answering"),
        }
    }
}

impl AdminThread {
    /// The HTTP address as bound.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }
}

impl Drop for AdminThread {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The user that this process acts as.
pub fn own_uid() -> u32 {
    // SAFETY: geteuid has no preconditions and can't fail.
    unsafe { libc::geteuid() }
}

fn socket_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (this user may not write there: run as root, or set node.state_dir or admin.socket to a folder of this user)"
        }
        io::ErrorKind::NotFound => " (the folder is missing and can't be made)",
        io::ErrorKind::InvalidInput => {
            " (a socket's path has at most 107 bytes: set admin.socket to a shorter one)"
        }
        _ => "",
    }
}

fn http_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            " (another program, perhaps another broker, has it: choose another port for admin.http, or \"\" for none)"
        }
        io::ErrorKind::PermissionDenied => " (ports below 1024 need root or CAP_NET_BIND_SERVICE)",
        io::ErrorKind::AddrNotAvailable => " (no interface of this machine has this address)",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
