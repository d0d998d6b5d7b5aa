//! Who publishes what, and when: in an open loop by the clock, or saturated, by what comes back.

use super::{
    draw::Random,
    engine::Engine,
    layout::Layout,
    options::{Load, Options},
    record::Kind,
    tally::{Head, State, Tally},
};
use bytes::Bytes;
use hdrhistogram::Histogram;
use headgate_codec::QoS;
use std::{collections::VecDeque, time::Duration};

/// What a publisher has given to its connection and the connection has not sent, at most, bytes: more waits where it is
/// counted as late.
const UNSENT_BYTES_MAX: usize = 64 * 1024;
/// Time in which nothing comes, after which a saturated publisher takes the messages on their way for lost.
const STALL: Duration = Duration::from_secs(2);

/// What was published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Messages that were due.
    pub(super) offered: u64,
    /// Messages that went out.
    pub(super) messages: u64,
    /// Of these, with QoS 1 or 2.
    pub(super) acknowledged: u64,
    /// Payloads, bytes.
    pub(super) bytes: u64,
    /// Deliveries that must come of them, by QoS.
    pub(super) expected: [u64; 3],
    /// Sum of the fingerprints of all that must come.
    pub(super) fingerprints: u64,
}

/// When the nth message of all is due, ns after the first.
fn due_ns(number: u64, rate: f64) -> u64 {
    (number as f64 * 1e9 / rate) as u64
}

#[derive(Clone, Copy, Debug, Default)]
struct Publisher {
    /// Messages that it has sent.
    sent: u64,
    /// Messages that are due by now; in an open loop.
    due: u64,
    is_queued: bool,
}

/// The publishers of a run.
pub(super) struct Publishers {
    load: Load,
    tag: u32,
    each: Vec<Publisher>,
    /// Those that may have something to send.
    queue: VecDeque<u32>,
    start_ns: u64,
    /// Deliveries that come of a message, on average.
    readers: f64,
    /// Deliveries of one publisher that may be on their way.
    window: u64,
    max_qos: QoS,
    filler: Bytes,
    random: Random,
    pub(super) sent: Sent,
    /// By how much messages left later than they were due, ns.
    lateness: Histogram<u64>,
    /// Deliveries that were taken for lost.
    pub(super) given_up: u64,
}

impl Publishers {
    pub(super) fn new(options: &Options, layout: &Layout, (tag, random): (u32, Random)) -> Self {
        let window = match options.load {
            Load::Window(messages) => u64::from(messages) * u64::from(layout.readers_mean()),
            _ => 0,
        };
        let histogram = Histogram::new_with_max(3_600_000_000_000, 3);
        let idle_qos = layout.shape().pattern.is_idle();
        Self {
            load: options.load,
            tag,
            each: vec![Publisher::default(); layout.shape().publishers as usize],
            queue: VecDeque::new(),
            start_ns: 0,
            readers: layout.readers_expected(),
            window,
            max_qos: match idle_qos {
                true => QoS::AtMostOnce,
                false => QoS::ExactlyOnce,
            },
            filler: Bytes::from(vec![b'x'; options.sizes.max() as usize]),
            random,
            sent: Sent::default(),
            lateness: histogram.expect("an hour, by three digits, is a range"),
            given_up: 0,
        }
    }

    /// Begins to publish.
    pub(super) fn start(&mut self, now_ns: u64) {
        self.start_ns = now_ns;
        if let Load::Window(_) = self.load {
            for number in 0..self.each.len() as u32 {
                self.queue(number);
            }
        }
    }

    /// In an open loop: what has become due.
    pub(super) fn offer(&mut self, now_ns: u64, tally: &mut Tally) {
        let Load::Rate(rate) = self.load else { return };
        if self.each.is_empty() {
            return;
        }
        let before = self.deliveries_due();
        let passed_ns = now_ns.saturating_sub(self.start_ns);
        while due_ns(self.sent.offered, rate) <= passed_ns {
            let number = (self.sent.offered % self.each.len() as u64) as u32;
            self.each[number as usize].due += 1;
            self.queue(number);
            self.sent.offered += 1;
        }
        let due = self.deliveries_due() - before;
        tally.recorder.offered(Kind::Delivery, due);
    }

    /// How many deliveries come of what was offered so far.
    fn deliveries_due(&self) -> u64 {
        (self.sent.offered as f64 * self.readers).round() as u64
    }

    /// How long nothing becomes due. Of a saturated run that is not known.
    pub(super) fn quiet(&self, now_ns: u64) -> Duration {
        let next_ns = match self.load {
            Load::Rate(rate) => self
                .start_ns
                .saturating_add(due_ns(self.sent.offered, rate)),
            _ => u64::MAX,
        };
        Duration::from_nanos(next_ns.saturating_sub(now_ns))
    }

    /// Whether somebody could not send all that is due.
    pub(super) fn is_held_up(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Messages that were due and didn't go out.
    pub(super) fn unsent(&self) -> u64 {
        self.sent.offered - self.sent.messages
    }

    /// By how much 99 % of the messages left later than they were due, at most, µs.
    pub(super) fn lateness_p99_us(&self) -> f64 {
        self.lateness.value_at_quantile(0.99) as f64 / 1e3
    }

    /// Publishes what can be.
    pub(super) fn send(
        &mut self,
        engine: &mut Engine,
        layout: &Layout,
        options: &Options,
        tally: &mut Tally,
    ) {
        self.wake(tally);
        for _ in 0..self.queue.len() {
            let Some(number) = self.queue.pop_front() else {
                break;
            };
            self.each[number as usize].is_queued = false;
            if self.send_of(number, engine, (layout, options), tally) {
                self.queue(number);
            }
        }
    }

    /// Queues whoever may have room again.
    fn wake(&mut self, tally: &mut Tally) {
        let mut woken = std::mem::take(&mut tally.woken);
        if let Load::Window(_) = self.load {
            woken.iter().for_each(|number| self.queue(*number));
            self.give_up(tally);
        }
        woken.clear();
        tally.woken = woken;
    }

    /// Saturated: when nothing has come for long, what is on its way is lost, and goes on nobody's account.
    fn give_up(&mut self, tally: &mut Tally) {
        let now_ns = tally.recorder.now_ns();
        let moved_ns = tally.moved_ns.max(self.start_ns);
        if now_ns.saturating_sub(moved_ns) > STALL.as_nanos() as u64 {
            self.given_up += tally.outstanding.iter().sum::<u64>();
            tally.outstanding.fill(0);
            tally.moved_ns = now_ns;
            (0..self.each.len() as u32).for_each(|number| self.queue(number));
        }
    }

    fn queue(&mut self, number: u32) {
        if let Some(publisher) = self.each.get_mut(number as usize)
            && !publisher.is_queued
        {
            publisher.is_queued = true;
            self.queue.push_back(number);
        }
    }

    /// Publishes what one publisher can; whether it has more, and only its connection is in the way.
    fn send_of(
        &mut self,
        number: u32,
        engine: &mut Engine,
        (layout, options): (&Layout, &Options),
        tally: &mut Tally,
    ) -> bool {
        let client = layout.publisher(number);
        if tally.states[client as usize] != State::Ready {
            return false;
        }
        let Some(session) = engine.session(client) else {
            return false;
        };
        let now_ns = tally.recorder.now_ns();
        loop {
            let publisher = self.each[number as usize];
            let due_ns = match self.load {
                Load::Rate(rate) if publisher.sent < publisher.due => {
                    let place = publisher.sent * self.each.len() as u64 + u64::from(number);
                    self.start_ns + due_ns(place, rate)
                }
                Load::Window(_) if tally.outstanding[number as usize] < self.window => now_ns,
                _ => return false,
            };
            if session.unsent() > UNSENT_BYTES_MAX {
                return true;
            }
            if options.qos.max() != QoS::AtMostOnce && !session.has_room() {
                return true;
            }
            let qos = options.qos.draw(&mut self.random);
            let topic = layout.choose(number, &mut self.random);
            let size = options.sizes.draw(&mut self.random);
            let head = Head {
                due_ns,
                tag: self.tag,
                publisher: number,
            };
            let payload = self.filler.slice(..size as usize);
            session.publish(&layout.topic(topic), qos, payload, &head.bytes());
            let readers = layout.readers(topic);
            tally.outstanding[number as usize] += u64::from(readers);
            self.lateness
                .saturating_record(now_ns.saturating_sub(due_ns));
            self.each[number as usize].sent += 1;
            self.count(qos, (size, readers), head);
            if let Load::Window(_) = self.load {
                self.sent.offered += 1;
                tally.recorder.offered(Kind::Delivery, readers.into());
            }
        }
    }

    fn count(&mut self, qos: QoS, (size, readers): (u32, u32), head: Head) {
        let sent = &mut self.sent;
        sent.messages += 1;
        sent.acknowledged += u64::from(qos != QoS::AtMostOnce);
        sent.bytes += u64::from(size);
        let delivered = qos.min(self.max_qos);
        sent.expected[delivered as usize] += u64::from(readers);
        let all = head.fingerprint().wrapping_mul(readers.into());
        sent.fingerprints = sent.fingerprints.wrapping_add(all);
    }

    /// Nothing more becomes due.
    pub(super) fn stop(&mut self) {
        if let Load::Window(_) = self.load {
            self.load = Load::None;
            self.queue.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_due_at_even_times() {
        assert_eq!(
            [0, 1, 2].map(|n| due_ns(n, 4.0)),
            [0, 250_000_000, 500_000_000]
        );
        // After a day at 100,000 a second still to the µs.
        let number = 86_400 * 100_000;
        assert!(due_ns(number, 1e5).abs_diff(86_400_000_000_000) < 1_000);
        assert!(due_ns(number + 1, 1e5) > due_ns(number, 1e5));
    }
}
