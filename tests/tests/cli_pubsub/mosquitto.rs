//! A mosquitto of the test's own.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long a start may take: a machine that runs many tests at once is slow.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Ports that are tried; somebody else may take one between finding and using it.
const START_ATTEMPTS_MAX: usize = 5;

/// A running mosquitto; it ends when this is dropped.
pub struct Mosquitto {
    child: Child,
    pub port: u16,
    _folder: TempDir,
}

/// Where Debian has mosquitto, if it is installed.
pub fn program() -> Option<&'static str> {
    ["/usr/sbin/mosquitto", "/usr/bin/mosquitto"]
        .into_iter()
        .find(|p| Path::new(p).is_file())
}

impl Mosquitto {
    pub fn start(program: &str, allow_anonymous: bool) -> Self {
        for _ in 0..START_ATTEMPTS_MAX {
            if let Some(started) = Self::try_start(program, allow_anonymous) {
                return started;
            }
        }
        panic!("mosquitto doesn't start");
    }

    fn try_start(program: &str, allow_anonymous: bool) -> Option<Self> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("mosquitto.conf");
        let config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous {allow_anonymous}\npersistence false\n\
             max_queued_messages 0\nmax_inflight_messages 100\n"
        );
        fs::write(&file, config).expect("writable");
        let mut child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto can be executed");
        let started = Instant::now();
        while started.elapsed() < START_TIMEOUT {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Some(Self {
                    child,
                    port,
                    _folder: folder,
                });
            }
            if child.try_wait().expect("our child").is_some() {
                return None;
            }
            thread::sleep(Duration::from_millis(20));
        }
        child.kill().expect("our child");
        child.wait().expect("our child");
        None
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
