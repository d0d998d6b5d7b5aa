//! A worker's part of authentication: it keeps what the connections of the worker are at.

use super::{
    Chain, Exchange, Method, Verdict,
    pool::{Answer, Job, Pool},
};
use crate::{limits::Limit, metrics::WorkerMetrics};
use headgate_codec::{ReasonCode, Text};
use headgate_core::{
    AuthResult, AuthStep, Completion, ConnId, Credentials, Granted, OpId, WorkerSlot,
};
use std::{collections::HashMap, sync::Arc};

/// Answers of the pool that are taken in a turn of the worker.
const ANSWERS_PER_TURN: usize = 256;

/// Takes the steps of a worker's connections. At most one entry for each connection.
pub struct Desk {
    slot: WorkerSlot,
    chain: Arc<Chain>,
    pool: Option<Arc<Pool>>,
    busy: HashMap<ConnId, Busy>,
    metrics: Arc<WorkerMetrics>,
}

/// What a connection waits for.
enum Busy {
    /// Its client.
    Exchange(Method, Box<dyn Exchange>),
    /// The pool. The ticket tells it when the connection is gone.
    Work(
        Method,
        OpId,
        #[expect(dead_code, reason = "held for the pool's Weak")] Arc<()>,
    ),
}

impl Desk {
    /// Nobody is being authenticated. `pool` is needed where the chain checks passwords.
    pub fn new(
        slot: WorkerSlot,
        chain: Arc<Chain>,
        pool: Option<Arc<Pool>>,
        metrics: Arc<WorkerMetrics>,
    ) -> Self {
        let busy = HashMap::new();
        Self {
            slot,
            chain,
            pool,
            busy,
            metrics,
        }
    }

    /// Takes a step of a connection; `None` if the answer comes later.
    pub fn step(&mut self, op: OpId, conn: ConnId, step: AuthStep) -> Option<Completion> {
        let (method, verdict) = match step {
            AuthStep::Connect(credentials) => self.chain.begin(&credentials),
            AuthStep::Again { method, data } => self.chain.begin(&Credentials {
                client_id: Text::from(""),
                user_name: None,
                password: None,
                method: Some(method),
                data,
                certificate: None,
            }),
            AuthStep::Continue { data } => match self.busy.remove(&conn) {
                Some(Busy::Exchange(method, exchange)) => {
                    (method, exchange.proceed(data.as_deref()))
                }
                _ => (Method::Unknown, Verdict::Pass),
            },
        };
        let result = match verdict {
            Verdict::Granted(granted) => Ok(granted),
            Verdict::Refused(reason) => Err(reason),
            Verdict::Continue { data, exchange } => {
                self.busy.insert(conn, Busy::Exchange(method, exchange));
                let result = AuthResult::Continue { data };
                return Some(Completion::Authenticated { op, conn, result });
            }
            Verdict::Work(work) => {
                let ticket = Arc::new(());
                let job = Job {
                    worker: self.slot,
                    op,
                    conn,
                    ticket: Arc::downgrade(&ticket),
                    work,
                };
                if self.pool.as_ref().is_some_and(|pool| pool.submit(job)) {
                    self.busy.insert(conn, Busy::Work(method, op, ticket));
                    return None;
                }
                let limit = Limit::PasswordChecks;
                self.metrics.refused[limit].inc();
                return Some(authenticated(op, conn, Err(limit.reason())));
            }
            Verdict::Pass => {
                debug_assert!(false, "somebody has to decide");
                Err(ReasonCode::NOT_AUTHORIZED)
            }
        };
        Some(self.decided(method, op, conn, result))
    }

    /// What the pool has answered.
    pub fn answers(&mut self, completions: &mut Vec<Completion>) {
        let Some(pool) = self.pool.clone() else {
            return;
        };
        let answers = std::iter::from_fn(|| pool.answer(self.slot)).take(ANSWERS_PER_TURN);
        let answers: Vec<Answer> = answers.collect();
        for Answer { op, conn, result } in answers {
            // The connection may be gone, and another one may have its place.
            let method = match self.busy.get(&conn) {
                Some(Busy::Work(method, asked, _)) if *asked == op => *method,
                _ => continue,
            };
            self.busy.remove(&conn);
            completions.push(self.decided(method, op, conn, result));
        }
    }

    /// Whether the pool has answered something.
    pub fn has_answers(&self) -> bool {
        self.pool
            .as_ref()
            .is_some_and(|pool| pool.has_answers(self.slot))
    }

    /// A connection is gone.
    pub fn forget(&mut self, conn: ConnId) {
        if !self.busy.is_empty() {
            self.busy.remove(&conn);
        }
    }

    /// Connections that are being authenticated.
    pub fn len(&self) -> usize {
        self.busy.len()
    }

    /// Whether no connection is being authenticated.
    pub fn is_empty(&self) -> bool {
        self.busy.is_empty()
    }

    fn decided(
        &self,
        method: Method,
        op: OpId,
        conn: ConnId,
        result: Result<Granted, ReasonCode>,
    ) -> Completion {
        if result.is_err() {
            self.metrics.authentications_failed[method].inc();
        }
        authenticated(op, conn, result)
    }
}

fn authenticated(op: OpId, conn: ConnId, result: Result<Granted, ReasonCode>) -> Completion {
    let result = match result {
        Ok(granted) => AuthResult::Granted(granted),
        Err(reason) => AuthResult::Refused(reason),
    };
    Completion::Authenticated { op, conn, result }
}
