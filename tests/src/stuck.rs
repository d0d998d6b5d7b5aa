//! A worker that is stuck: its thread alone is stopped, as a debugger does it.

use std::{
    fs,
    marker::PhantomData,
    thread,
    time::{Duration, Instant},
};

use headgate_codec::{Connect, ReasonCode};
use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use crate::{broker::Broker, tcp_client::TcpClient};

/// How long a worker may take to go to sleep, and clients to find one.
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker whose thread is stopped. It goes on when this is dropped.
#[derive(Debug)]
pub struct StuckWorker {
    thread: Pid,
    /// Only the thread that has stopped it can let it go on.
    not_send: PhantomData<*const ()>,
}

impl StuckWorker {
    /// Stops a worker while it sleeps, so that it holds no lock of the allocator.
    ///
    /// # Panics
    /// When there is no such worker, it never sleeps, or the system doesn't let us.
    pub fn stop(broker: &Broker, worker: u64) -> Self {
        let threads = format!("/proc/{}/task", broker.pid());
        let name = format!("headgate-w{worker}\n");
        let has_name = |tid: &String| {
            fs::read_to_string(format!("{threads}/{tid}/comm")).is_ok_and(|comm| comm == name)
        };
        let tids = fs::read_dir(&threads).expect("the broker runs");
        let tid = tids
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .find(has_name)
            .expect("each worker has a thread");
        let deadline = Instant::now() + PATIENCE;
        while !sleeps(&format!("{threads}/{tid}/stat")) {
            assert!(Instant::now() < deadline, "worker {worker} never sleeps");
            thread::yield_now();
        }
        let thread = Pid::from_raw(tid.parse().expect("a thread's number"));
        ptrace::seize(thread, ptrace::Options::empty()).expect("it is a child of ours");
        ptrace::interrupt(thread).expect("it is traced");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
        Self {
            thread,
            not_send: PhantomData,
        }
    }

    /// Lets it go on.
    pub fn go_on(self) {}
}

impl Drop for StuckWorker {
    fn drop(&mut self) {
        // A broker that is gone has nothing to go on with.
        let _ = ptrace::detach(self.thread, None);
    }
}

fn sleeps(stat: &str) -> bool {
    let text = fs::read_to_string(stat).unwrap_or_default();
    let after_name = text.rsplit_once(") ").map(|(_, rest)| rest);
    after_name.is_some_and(|rest| rest.starts_with('S'))
}

/// The worker that a client's session is on.
///
/// # Panics
/// When there is no such session.
pub fn worker_of(broker: &Broker, id: &str) -> u64 {
    let text = broker.ctl_says(&["session", "show", id, "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    shown["worker"].as_u64().expect("a worker's number")
}

/// A client of this worker: others are left until the kernel gives it one.
///
/// # Panics
/// When that doesn't come about.
pub fn client_of(broker: &Broker, worker: u64, connect: &Connect) -> TcpClient {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (client, reason) = TcpClient::try_connect(broker.tcp(), connect.clone());
        assert_eq!(reason, ReasonCode::SUCCESS);
        if worker_of(broker, connect.client_id.as_str()) == worker {
            return client;
        }
        assert!(
            Instant::now() < deadline,
            "no connection for worker {worker}"
        );
    }
}
