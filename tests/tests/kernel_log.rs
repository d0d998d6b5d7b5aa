//! The kernel programs' log for debugging.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headgate::kernel::KernelSettings;
use headgate_tests::packets::{Packet, short};
use headgate_tests::rig::{Rig, settings, why_not};
use headgate_tests::skip;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn verdicts_are_logged_if_asked_for_and_only_then() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .init();
    let forged = Packet::quic([198, 51, 100, 7].into(), short(&[0; 14], 60)).bytes();
    let logged =
        || String::from_utf8_lossy(&lines.0.lock().expect("no panic")).contains("drop forged_cid");

    let quiet = Rig::new();
    assert_eq!(
        quiet.judge(&forged).0,
        headgate_tests::rig::Outcome::Dropped(headgate_common::DropReason::ForgedCid)
    );
    drop(quiet);
    assert!(!logged());

    let rig = Rig::with(
        KernelSettings {
            debug_log: true,
            ..settings()
        },
        1,
    );
    assert_eq!(
        rig.judge(&forged).0,
        headgate_tests::rig::Outcome::Dropped(headgate_common::DropReason::ForgedCid)
    );
    // Stopping reads what is left in the ring buffer.
    let deadline = Instant::now() + Duration::from_secs(10);
    drop(rig);
    while !logged() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(logged());
}
