//! Verdicts in the log, for debugging.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;

use super::error::{KernelError, chain};

/// Reads what the programs log, until it is dropped.
#[derive(Debug)]
pub(super) struct DebugLog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Hands records of the kernel programs to `tracing`.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "headgate::kernel", "{}", record.args());
    }

    fn flush(&self) {}
}

/// How often the ring buffer is emptied. It holds about 1,000 records; what doesn't fit is lost, and only there.
const INTERVAL: Duration = Duration::from_millis(20);

impl DebugLog {
    pub(super) fn start(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let refused = |reason: String| KernelError::Refused {
            what: "the debugging log",
            reason,
        };
        let mut logger = EbpfLogger::init_with_logger(ebpf, ToTracing)
            .map_err(|error| refused(chain(&error)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("kernel-log".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    logger.flush();
                    std::thread::park_timeout(INTERVAL);
                }
                logger.flush();
            })
            .map_err(|error| refused(error.to_string()))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for DebugLog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It only fails if the thread panicked, and then there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}
