//! A thread that looks several times a second at what has changed or expired.

use super::{shield::KernelPart, supervisor::Workshop};
use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How often: what is written into a map is in force everywhere within a second.
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
    pub fn spawn(workshop: Arc<Workshop>, kernel: Arc<KernelPart>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("headgate-house".to_owned())
            .spawn(move || {
                let mut is_owing = false;
                while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    follow_quotas(&workshop, &kernel, &mut is_owing);
                    workshop.lists.sweep(unix_s());
                    if let Err(error) = kernel.follow_lists(&workshop.lists) {
                        tracing::warn!(%error, "the kernel doesn't take an entry of the lists");
                    }
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

/// What somebody has written into the map `quotas` is in force in user space, too. `is_owing`: a worker was stuck, and
/// has to be told.
fn follow_quotas(workshop: &Workshop, kernel: &KernelPart, is_owing: &mut bool) {
    let edits = workshop.quotas.follow(|| kernel.quotas());
    for edit in &edits {
        tracing::warn!(%edit, "a quota was changed in the map `quotas`; it lasts until the broker stops");
    }
    if *is_owing || !edits.is_empty() {
        *is_owing = !workshop.publish_quotas();
    }
}

fn save(workshop: &Workshop) {
    if let Err(error) = workshop.lists.save() {
        tracing::warn!(%error, "the lists can't be kept");
    }
}
