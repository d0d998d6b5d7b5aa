//! What is given up while the machine runs short, so that the rest is served: new clients, then messages with QoS 0 that
//! would have to wait, then the connections of the slowest consumers.

use std::{cmp::Reverse, collections::BinaryHeap};

use headgate_codec::ReasonCode;

use crate::{
    ConnId, Output, Pressure, Session, Time,
    close::End,
    conns::State,
    counters::add,
    env::Env,
    hub::Hub,
    slots::{Slot, Slots},
};

/// Connections that one step looks at.
const CONNS_PER_STEP: usize = 8_192;
/// Time between two steps, ms: what else there is to do goes on.
const STEP_MS: u64 = 10;
/// Time from one pass over all connections to the next, ms: what the first has freed shows meanwhile.
const PASS_MS: u64 = 250;
/// Connections that one pass closes, at most.
const CLOSED_PER_PASS_MAX: usize = 256;
/// And at least, if so many are slow.
const CLOSED_PER_PASS_MIN: usize = 16;
/// Who has less than this waiting is no slow consumer, bytes.
const SLOW_BYTES_MIN: u32 = 16 * 1024;

/// A pass over the connections that goes on.
#[derive(Debug)]
pub(crate) struct Shedding {
    /// Bytes that it is to free.
    wanted: u64,
    /// Place of the next connection to be looked at.
    place: usize,
    /// Those with the most bytes so far; the one with the fewest of them on top.
    slowest: BinaryHeap<Reverse<(u32, u32)>>,
    next: Time,
}

impl Shedding {
    fn new(wanted: u64, next: Time) -> Self {
        Self {
            wanted,
            place: 0,
            slowest: BinaryHeap::new(),
            next,
        }
    }

    fn note(&mut self, bytes: u32, place: u32) {
        if bytes < SLOW_BYTES_MIN {
            return;
        }
        self.slowest.push(Reverse((bytes, place)));
        if self.slowest.len() > CLOSED_PER_PASS_MAX {
            self.slowest.pop();
        }
    }
}

impl Hub {
    /// It is known how short the machine runs.
    pub(crate) fn on_pressure(&mut self, pressure: Pressure) {
        self.env.pressure = pressure;
        self.shedding = match (pressure.close_slow_bytes, self.shedding.take()) {
            (None, _) => None,
            (Some(wanted), Some(pass)) => Some(Shedding { wanted, ..pass }),
            (Some(wanted), None) => Some(Shedding::new(wanted, self.env.now)),
        };
    }

    /// Why a new client is refused, if it is.
    pub(crate) fn is_short(&mut self) -> Option<ReasonCode> {
        self.env.pressure.refuse_clients.then(|| {
            add(&mut self.env.counters.limit_memory, 1);
            ReasonCode::SERVER_BUSY
        })
    }

    /// Looks at the next connections, and closes the slowest once all were looked at.
    pub(crate) fn work_off_shedding(&mut self, out: &mut Vec<Output>) {
        let Some(mut pass) = self.shedding.take() else {
            return;
        };
        let now = self.env.now;
        if pass.next <= now {
            let end = self.conns.places().min(pass.place + CONNS_PER_STEP);
            for place in pass.place..end {
                let place = place as u32;
                pass.note(self.waiting_bytes(place), place);
            }
            pass.place = end;
            pass.next = now.after_ms(STEP_MS);
            if end == self.conns.places() {
                self.close_slowest(&pass, out);
                pass = Shedding::new(pass.wanted, now.after_ms(PASS_MS));
            }
        }
        self.shedding = Some(pass);
    }

    /// What waits for the client of a connection that doesn't take it, bytes.
    fn waiting_bytes(&mut self, place: u32) -> u32 {
        let Some(conn) = self.conns.at(place) else {
            return 0;
        };
        let state = self.conns.get(conn).map(|c| c.state);
        session_of(state, &mut self.slots).map_or(0, |session| {
            let flow = session.flow.as_ref().filter(|flow| flow.waiting() > 0);
            flow.map_or(0, |flow| flow.bytes.saturating_add(session.unsent))
        })
    }

    fn close_slowest(&mut self, pass: &Shedding, out: &mut Vec<Output>) {
        let mut slowest: Vec<_> = pass.slowest.iter().map(|Reverse(slow)| *slow).collect();
        slowest.sort_unstable_by_key(|slow| Reverse(*slow));
        let mut freed = 0;
        for (closed, (_, place)) in slowest.into_iter().enumerate() {
            if closed >= CLOSED_PER_PASS_MIN && freed >= pass.wanted {
                break;
            }
            // It may have taken everything meanwhile, or be another one.
            let bytes = self.waiting_bytes(place);
            let Some(conn) = self.conns.at(place).filter(|_| bytes >= SLOW_BYTES_MIN) else {
                continue;
            };
            freed += u64::from(bytes);
            self.close_slow(conn, out);
        }
    }

    /// Ends a connection. What its session may lose goes at once: the rest is for when the client comes back.
    fn close_slow(&mut self, conn: ConnId, out: &mut Vec<Output>) {
        let state = self.conns.get(conn).map(|c| c.state);
        if let Some(session) = session_of(state, &mut self.slots) {
            session.drop_qos0(&mut self.env);
        }
        add(&mut self.env.counters.slow_consumers_closed, 1);
        self.close(conn, End::Server(ReasonCode::QUOTA_EXCEEDED), out);
    }

    /// When a pass goes on.
    pub(crate) fn sheds_at(&self) -> Option<Time> {
        self.shedding.as_ref().map(|pass| pass.next)
    }
}

fn session_of(state: Option<State>, slots: &mut Slots) -> Option<&mut Session> {
    let Some(State::Up(slot)) = state else {
        return None;
    };
    match slots.at(slot) {
        Some(Slot::Live(session)) => Some(session),
        _ => None,
    }
}

impl Session {
    /// Forgets the messages with QoS 0 that wait.
    fn drop_qos0(&mut self, env: &mut Env) {
        let Some(flow) = &mut self.flow else { return };
        add(
            &mut env.counters.dropped_overload,
            flow.queue_qos0.len() as u64,
        );
        for waiting in std::mem::take(&mut flow.queue_qos0) {
            flow.bytes -= waiting.message.cost();
        }
    }
}
