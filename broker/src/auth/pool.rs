//! A few threads that do what takes too long for a worker: argon2id needs tens of milliseconds.

use super::Work;
use crate::mesh::Mesh;
use crossbeam_queue::ArrayQueue;
use headgate_codec::ReasonCode;
use headgate_core::{ConnId, Granted, OpId, WorkerSlot};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

/// What came out of a [`Job`].
pub struct Answer {
    /// The operation of the core.
    pub op: OpId,
    /// Whose it is.
    pub conn: ConnId,
    /// Who the client is, or why it is refused.
    pub result: Result<Granted, ReasonCode>,
}

/// Something to be done for a connection.
pub struct Job {
    /// Who waits for it.
    pub worker: WorkerSlot,
    /// The operation of the core.
    pub op: OpId,
    /// Whose it is.
    pub conn: ConnId,
    /// Gone with the connection: then nothing is to be done any more.
    pub ticket: Weak<()>,
    /// What.
    pub work: Work,
}

/// The threads, the queue towards them, and the answers of each worker.
///
/// At most `jobs_max` jobs are anywhere between [`Pool::submit`] and [`Pool::answer`], so that no
/// queue overflows. Worst case: that many passwords of 65,535 bytes, and the memory of one hash
/// for each thread ([`HASH_MEMORY_KIB_MAX`](super::hash::HASH_MEMORY_KIB_MAX)).
pub struct Pool {
    queue: SyncSender<Job>,
    shared: Arc<Shared>,
    jobs_max: usize,
}

struct Shared {
    answers: Vec<ArrayQueue<Answer>>,
    /// Jobs that were taken and whose answers have not been.
    jobs: AtomicUsize,
    mesh: Arc<Mesh>,
}

impl Pool {
    /// Starts `threads` threads for the workers of `mesh`. They end when the pool is dropped.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(threads: usize, jobs_max: usize, mesh: &Arc<Mesh>) -> io::Result<Self> {
        let (queue, jobs) = sync_channel(jobs_max);
        let jobs = Arc::new(Mutex::new(jobs));
        let shared = Arc::new(Shared {
            answers: (0..mesh.workers())
                .map(|_| ArrayQueue::new(jobs_max))
                .collect(),
            jobs: AtomicUsize::new(0),
            mesh: Arc::clone(mesh),
        });
        for number in 0..threads {
            let (jobs, shared) = (Arc::clone(&jobs), Arc::clone(&shared));
            std::thread::Builder::new()
                .name(format!("headgate-auth{number}"))
                .spawn(move || work(&jobs, &shared))?;
        }
        Ok(Self {
            queue,
            shared,
            jobs_max,
        })
    }

    /// Takes a job; `false` if as many wait as may. Never blocks.
    pub fn submit(&self, job: Job) -> bool {
        if self.shared.jobs.fetch_add(1, Ordering::Relaxed) < self.jobs_max
            && self.queue.try_send(job).is_ok()
        {
            return true;
        }
        self.shared.jobs.fetch_sub(1, Ordering::Relaxed);
        false
    }

    /// The next answer for a worker.
    pub fn answer(&self, worker: WorkerSlot) -> Option<Answer> {
        let answer = self.shared.answers[usize::from(worker.0)].pop()?;
        self.shared.jobs.fetch_sub(1, Ordering::Relaxed);
        Some(answer)
    }

    /// Whether there is an answer for a worker.
    pub fn has_answers(&self, worker: WorkerSlot) -> bool {
        !self.shared.answers[usize::from(worker.0)].is_empty()
    }
}

/// How much further back than the workers these threads stand in the scheduler's queue.
const NICE: libc::c_int = 10;

fn work(jobs: &Mutex<Receiver<Job>>, shared: &Shared) {
    // SAFETY: no memory is passed; 0 is the calling thread. If it isn't allowed, nothing changes.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if job.ticket.strong_count() == 0 {
            shared.jobs.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (op, conn) = (job.op, job.conn);
        let result = catch_unwind(AssertUnwindSafe(job.work)).unwrap_or_else(|_| {
            tracing::error!("checking a password panicked: a bug, please report it");
            Err(ReasonCode::IMPLEMENTATION_SPECIFIC)
        });
        let answer = Answer { op, conn, result };
        let is_kept = shared.answers[usize::from(job.worker.0)]
            .push(answer)
            .is_ok();
        debug_assert!(is_kept, "there are no more answers than jobs");
        shared.mesh.ring_doorbell(job.worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    fn job(n: u64, ticket: &Arc<()>, work: Work) -> Job {
        Job {
            worker: WorkerSlot(1),
            op: OpId(n),
            conn: ConnId {
                index: 0,
                generation: 0,
            },
            ticket: Arc::downgrade(ticket),
            work,
        }
    }

    fn await_answer(pool: &Pool) -> Answer {
        loop {
            match pool.answer(WorkerSlot(1)) {
                Some(answer) => return answer,
                None => std::thread::yield_now(),
            }
        }
    }

    #[test]
    fn jobs_are_bounded_and_skipped_when_nobody_waits_for_them() {
        let pool = Pool::start(1, 3, &Mesh::new(2)).expect("threads start");
        let barrier = Arc::new(Barrier::new(2));
        let ticket = Arc::new(());
        let wait = Arc::clone(&barrier);
        let first: Work = Box::new(move || {
            wait.wait();
            Ok(Granted::default())
        });
        assert!(pool.submit(job(1, &ticket, first)));
        let gone = Arc::new(());
        let never: Work = Box::new(|| panic!("nobody waits for it"));
        assert!(pool.submit(job(2, &gone, never)));
        drop(gone);
        let quick = || -> Work { Box::new(|| Err(ReasonCode::NOT_AUTHORIZED)) };
        assert!(pool.submit(job(3, &ticket, quick())));
        assert!(!pool.submit(job(4, &ticket, quick())), "there are three");
        assert!(!pool.has_answers(WorkerSlot(1)));
        barrier.wait();
        let answer = await_answer(&pool);
        assert!(answer.op == OpId(1) && answer.result.is_ok());
        let answer = await_answer(&pool);
        assert!(answer.op == OpId(3) && answer.result.is_err());
        assert!(!pool.has_answers(WorkerSlot(0)) && !pool.has_answers(WorkerSlot(1)));
        // All places are free again.
        for n in 5..8 {
            assert!(pool.submit(job(n, &ticket, quick())));
        }
        for n in 5..8 {
            assert_eq!(await_answer(&pool).op, OpId(n));
        }
    }
}
