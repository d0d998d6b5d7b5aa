//! Waiting, more precisely than by milliseconds: what is due is sent on time.

use nix::{
    poll::{PollFd, ppoll},
    sys::time::TimeSpec,
};
use std::time::Duration;

/// Waits until one of the descriptors has something, or the time is over. Interrupted or not, whoever waits looks.
pub(super) fn wait_for(fds: &mut [PollFd<'_>], wait: Duration) {
    let _ = ppoll(fds, Some(TimeSpec::from_duration(wait)), None);
}
