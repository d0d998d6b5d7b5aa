//! A thread that looks several times a second at what has changed or expired.

use super::supervisor::Workshop;
use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How often.
const INTERVAL: Duration = Duration::from_millis(250);

/// Now, in Unix seconds.
pub(super) fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The thread; dropping it ends it.
pub(super) struct Housekeeping {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Housekeeping {
    /// Starts it.
    pub fn spawn(workshop: Arc<Workshop>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("headgate-house".to_owned())
            .spawn(move || {
                while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    workshop.lists.sweep(unix_s());
                    save(&workshop);
                }
                // What was denied in the last moment is kept, too.
                save(&workshop);
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Housekeeping {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn save(workshop: &Workshop) {
    if let Err(error) = workshop.lists.save() {
        tracing::warn!(%error, "the lists can't be kept");
    }
}
