//! What the clients of a run have done and heard.

use super::{
    incoming::Incoming,
    record::{Kind, Recorder},
    session::Listener,
};
use std::collections::{BTreeMap, HashMap};

/// Different reasons that are kept; the rest is counted together.
const REASONS_MAX: usize = 20;
/// Bytes of what a run writes into each payload.
pub(super) const HEAD_BYTES: usize = 16;

/// What each payload begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// When it was due, ns after the run began.
    pub(super) due_ns: u64,
    /// Of the run.
    pub(super) tag: u32,
    /// Which publisher it is from.
    pub(super) publisher: u32,
}

impl Head {
    pub(super) fn bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(&self.due_ns.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.tag.to_be_bytes());
        bytes[12..].copy_from_slice(&self.publisher.to_be_bytes());
        bytes
    }

    fn of(payload: &[u8]) -> Option<Self> {
        let (due_ns, rest) = payload.split_first_chunk()?;
        let (tag, rest) = rest.split_first_chunk()?;
        Some(Self {
            due_ns: u64::from_be_bytes(*due_ns),
            tag: u32::from_be_bytes(*tag),
            publisher: u32::from_be_bytes(*rest.first_chunk()?),
        })
    }

    /// A number that stands for the message. Sums of these differ when one message came twice, and another one not.
    pub(super) fn fingerprint(self) -> u64 {
        let mut z = self.due_ns ^ u64::from(self.publisher) << 40;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// How far a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not begun, or gone.
    Gone,
    Connecting,
    Ready,
}

/// When a client began to connect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    /// When it was due to, ns after the run began.
    pub(super) due_ns: u64,
    /// When it did.
    pub(super) at_ns: u64,
}

/// What has come of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Came {
    /// By QoS.
    pub(super) delivered: [u64; 3],
    /// Payloads, bytes.
    pub(super) bytes: u64,
    /// Sum of their fingerprints.
    pub(super) fingerprints: u64,
    /// QoS 1 and 2: completed by the broker.
    pub(super) completed: u64,
    /// QoS 1 and 2: refused by it.
    pub(super) refused: u64,
    /// Messages that are not of this run.
    pub(super) foreign: u64,
}

/// Counts what happens.
pub(super) struct Tally {
    pub(super) recorder: Recorder,
    now_ns: u64,
    tag: u32,
    pub(super) states: Vec<State>,
    /// Of those that are connecting.
    pub(super) connecting: HashMap<u32, Begun>,
    /// When PINGREQs that aren't answered were due, ns after the run began.
    pub(super) pinged: HashMap<u32, u64>,
    /// Clients that are connected.
    pub(super) ready: u64,
    /// How often a client has come through so far.
    pub(super) came_through: u64,
    /// A Keep Alive that the server has asked for, seconds, until it is looked at.
    pub(super) keep_alive_s: Option<u16>,
    /// Clients that didn't come through since this was looked at.
    pub(super) failed: Vec<u32>,
    /// Clients that had come through, and were lost.
    pub(super) lost: u64,
    /// Why clients didn't come through, or were lost.
    pub(super) reasons: BTreeMap<String, u64>,
    pub(super) came: Came,
    /// Deliveries of each publisher's messages that have not come.
    pub(super) outstanding: Vec<u64>,
    wakes: bool,
    /// Publishers that may have room again.
    pub(super) woken: Vec<u32>,
    /// The first client that publishes.
    first_publisher: u32,
    /// When a message last came or was completed, ns after the run began.
    pub(super) moved_ns: u64,
}

impl Tally {
    /// `wakes`: publishers are told when something of theirs has come.
    pub(super) fn new(
        recorder: Recorder,
        tag: u32,
        (clients, publishers): (u32, u32),
        wakes: bool,
    ) -> Self {
        Self {
            recorder,
            now_ns: 0,
            tag,
            states: vec![State::Gone; clients as usize],
            connecting: HashMap::new(),
            pinged: HashMap::new(),
            ready: 0,
            came_through: 0,
            keep_alive_s: None,
            failed: Vec::new(),
            lost: 0,
            reasons: BTreeMap::new(),
            came: Came::default(),
            outstanding: vec![0; publishers as usize],
            wakes,
            woken: Vec::new(),
            first_publisher: clients - publishers,
            moved_ns: 0,
        }
    }

    /// A client has begun to connect.
    pub(super) fn begun(&mut self, client: u32, begun: Begun) {
        self.states[client as usize] = State::Connecting;
        self.connecting.insert(client, begun);
    }

    /// A client was cut off by the run itself.
    pub(super) fn cut(&mut self, client: u32) {
        let state = &mut self.states[client as usize];
        self.ready -= u64::from(*state == State::Ready);
        *state = State::Gone;
        self.connecting.remove(&client);
        self.pinged.remove(&client);
    }

    /// Takes a sample if it is time.
    pub(super) fn tick(&mut self) {
        self.recorder.tick(self.ready);
    }
}

impl Listener for Tally {
    fn arrived(&mut self) {
        self.now_ns = self.recorder.now_ns();
    }

    fn ready(&mut self, client: u32) {
        self.states[client as usize] = State::Ready;
        self.ready += 1;
        self.came_through += 1;
        if let Some(begun) = self.connecting.remove(&client) {
            let latency_ns = self.now_ns.saturating_sub(begun.due_ns);
            self.recorder.done(Kind::Connect, latency_ns);
        }
    }

    fn message(&mut self, _client: u32, message: &Incoming<'_>) {
        let head = Head::of(message.payload).filter(|head| head.tag == self.tag);
        let Some(head) = head else {
            self.came.foreign += 1;
            return;
        };
        self.moved_ns = self.now_ns;
        self.came.delivered[usize::from(message.qos().min(2))] += 1;
        self.came.bytes += message.payload.len() as u64;
        self.came.fingerprints = self.came.fingerprints.wrapping_add(head.fingerprint());
        self.recorder
            .done(Kind::Delivery, self.now_ns.saturating_sub(head.due_ns));
        if let Some(outstanding) = self.outstanding.get_mut(head.publisher as usize) {
            *outstanding = outstanding.saturating_sub(1);
            if self.wakes {
                self.woken.push(head.publisher);
            }
        }
    }

    fn completed(&mut self, client: u32, accepted: bool) {
        self.moved_ns = self.now_ns;
        match accepted {
            true => self.came.completed += 1,
            false => self.came.refused += 1,
        }
        if self.wakes {
            self.woken.push(client.saturating_sub(self.first_publisher));
        }
    }

    fn keep_alive(&mut self, seconds: u16) {
        let asked = self.keep_alive_s.unwrap_or(seconds);
        self.keep_alive_s = Some(asked.min(seconds));
    }

    fn pong(&mut self, client: u32) {
        if let Some(due_ns) = self.pinged.remove(&client) {
            self.recorder
                .done(Kind::Ping, self.now_ns.saturating_sub(due_ns));
        }
    }

    fn lost(&mut self, client: u32, why: &str) {
        match self.states[client as usize] {
            State::Gone => return,
            State::Connecting => self.failed.push(client),
            State::Ready => self.lost += 1,
        }
        self.cut(client);
        let is_known = self.reasons.contains_key(why) || self.reasons.len() < REASONS_MAX;
        let why = if is_known { why } else { "other reasons" };
        *self.reasons.entry(why.to_owned()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn heads_survive_and_fingerprints_differ() {
        let head = Head {
            due_ns: 1 << 40 | 7,
            tag: 0xdead_beef,
            publisher: 12,
        };
        assert_eq!(Head::of(&head.bytes()), Some(head));
        assert_eq!(Head::of(&head.bytes()[..15]), None);
        let other = Head {
            publisher: 13,
            ..head
        };
        assert_ne!(head.fingerprint(), other.fingerprint());
    }

    #[test]
    fn a_client_is_counted_where_it_is() {
        let recorder = Recorder::new(None, Duration::from_secs(1));
        let mut tally = Tally::new(recorder, 1, (3, 1), true);
        let begun = Begun {
            due_ns: 0,
            at_ns: 0,
        };
        for client in 0..3 {
            tally.begun(client, begun);
        }
        tally.ready(0);
        tally.ready(1);
        tally.lost(2, "refused");
        tally.lost(1, "gone");
        tally.lost(1, "twice");
        assert_eq!((tally.ready, tally.lost), (1, 1));
        assert_eq!(tally.failed, [2]);
        assert!(tally.connecting.is_empty());
        let reasons: Vec<_> = tally
            .reasons
            .iter()
            .map(|(why, n)| (why.as_str(), *n))
            .collect();
        assert_eq!(reasons, [("gone", 1), ("refused", 1)]);
        let connects = tally.recorder.latency(Kind::Connect).map(|l| l.count);
        assert_eq!(connects, Some(2));
    }
}
