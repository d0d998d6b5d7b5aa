//! A broker that is not ours, as a process with a folder of its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How long a start may take.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often is looked whether it has started.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// setpriv's answer to a program that doesn't exist.
const NO_PROGRAM: i32 = 127;
const LOG: &str = "log.txt";

/// A running process. It is killed when this is dropped, and when the thread that started it ends.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    command: Vec<String>,
    listens_at: Vec<SocketAddr>,
    folder: TempDir,
}

impl Daemon {
    /// Starts `command` in its folder, and waits until it accepts TCP connections at these addresses.
    ///
    /// # Errors
    /// Its log, when it ends instead, or isn't ready in time; or that it is not installed.
    pub fn start(
        folder: TempDir,
        command: Vec<String>,
        listens_at: Vec<SocketAddr>,
    ) -> Result<Self, String> {
        let child = spawn(&command, folder.path())?;
        let mut started = Self {
            child,
            command,
            listens_at,
            folder,
        };
        started.wait_until_ready()?;
        Ok(started)
    }

    /// Ends it with a signal, and waits until it has ended.
    ///
    /// # Panics
    /// When it can't be waited for.
    pub fn stop(&mut self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("process ids are small"));
        // It may have ended already.
        let _ = kill(pid, signal);
        self.child.wait().expect("it is our child");
    }

    /// Starts it again after it has ended, as it was.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn restart(&mut self) -> Result<(), String> {
        self.child = spawn(&self.command, self.folder.path())?;
        self.wait_until_ready()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has written to its standard output and error.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default()
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.is_ready() {
            let ended = self.child.try_wait().expect("it is our child");
            if let Some(status) = ended {
                return Err(match status.code() {
                    Some(NO_PROGRAM) => not_installed(&self.command, &self.log()),
                    _ => self.log(),
                });
            }
            if Instant::now() > deadline {
                return Err(format!("it does not start: {}", self.log()));
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    fn is_ready(&self) -> bool {
        self.listens_at
            .iter()
            .all(|address| TcpStream::connect(address).is_ok())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder for a broker with this name.
///
/// # Panics
/// When it can't be made.
pub fn folder(name: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("headgate-{name}-"))
        .tempdir()
        .expect("a folder in the folder for temporary files")
}

/// A port of the loopback that nobody uses over TCP.
///
/// # Panics
/// When there is none.
pub fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}

fn spawn(command: &[String], folder: &Path) -> Result<Child, String> {
    let out = File::create(folder.join(LOG)).expect("creating the log");
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .args(command)
        .current_dir(folder)
        .env("PATH", path_with_sbin())
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a second handle of the log"))
        .stderr(out)
        .spawn()
        .map_err(|error| not_installed(command, &error.to_string()))
}

fn not_installed(command: &[String], why: &str) -> String {
    let program = command.first().map_or("", |program| program.as_str());
    format!("{program} is not installed: {}", why.trim())
}

/// Debian puts it where a user's search path doesn't look.
fn path_with_sbin() -> String {
    format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default())
}
