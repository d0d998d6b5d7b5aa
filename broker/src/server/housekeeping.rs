//! A thread that looks several times a second at what has changed or expired.

use super::{background::Background, shield::KernelPart, supervisor::Workshop};
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How often: what is written into a map is in force everywhere within a second.
const INTERVAL: Duration = Duration::from_millis(250);

/// Now, in Unix seconds.
pub(super) fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Starts the thread.
pub(super) fn spawn(workshop: Arc<Workshop>, kernel: Arc<KernelPart>) -> io::Result<Background> {
    Background::spawn("headgate-house", move |pause| {
        let mut is_owing = false;
        while pause.wait(INTERVAL) {
            follow_quotas(&workshop, &kernel, &mut is_owing);
            workshop.lists.sweep(unix_s());
            if let Err(error) = kernel.follow_lists(&workshop.lists) {
                tracing::warn!(%error, "the kernel doesn't take an entry of the lists");
            }
            save(&workshop);
        }
        // What was denied in the last moment is kept, too.
        save(&workshop);
    })
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
