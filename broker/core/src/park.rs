//! A session without a connection in one piece of memory, as long as nothing happens to it.

use headgate_codec::{PacketId, Version};

use crate::{
    OpId, Session, SessionId, Time,
    counters::add,
    hub::Hub,
    options::Options,
    session::Flow,
    slots::{Handle, Slot},
    spill::Spill,
    subscriptions::{Subscription, Subscriptions},
};

const HAS_SPILL: u8 = 1;
const IS_RECORDED: u8 = 2;
/// Version, flags and quota class, in front of the session's id.
const HEAD_BYTES: usize = 3;
/// Room for most sessions while they are packed; what isn't used is given back.
const PACKED_BYTES: usize = 256;

impl Session {
    /// The session in one piece; `None` = it has more than that.
    fn packed(&self) -> Option<Box<[u8]>> {
        let is_still = self.conn.is_none()
            && self.pending.is_none()
            && self.will.is_none()
            && self.fence.is_none()
            && self.share.is_none()
            && self.lanes.is_none()
            && self.aliases.is_none();
        let flow = self.flow.as_deref();
        let is_idle = flow.is_none_or(|f| {
            let is_loading = f.spill.as_ref().is_some_and(|s| s.loading != OpId(0));
            let is_empty = f.inflight.is_empty() && f.queue.is_empty() && f.queue_qos0.is_empty();
            is_empty && f.replays.is_empty() && !is_loading
        });
        if !is_still || !is_idle {
            return None;
        }
        let spill = flow.and_then(|f| f.spill.as_deref());
        let received = flow.map_or(&[][..], |f| &f.received);
        let mut w = Writer(Vec::with_capacity(PACKED_BYTES));
        let flags = if spill.is_some() { HAS_SPILL } else { 0 }
            | if self.is_recorded { IS_RECORDED } else { 0 };
        w.u8(self.version as u8).u8(flags).u8(self.quota_class);
        w.number(self.id.node).number(self.id.epoch);
        w.number(self.id.counter);
        w.number(self.epoch).number(self.sequence);
        w.number(self.expiry_s.wrapping_add(1));
        w.time(self.expires_at).time(self.armed);
        w.number(self.send_quota);
        w.number(flow.map_or(0, |f| f.last_packet_id));
        if let Some(s) = spill {
            w.number(s.count).number(s.bytes).number(s.after);
            w.number(s.sent_up_to).number(s.first_id);
        }
        w.number(received.len() as u64);
        for id in received {
            w.number(id.get());
        }
        w.text("", &self.client_id);
        w.number(self.subscriptions.len() as u64);
        let mut before = "";
        for s in self.subscriptions.iter() {
            w.text(before, s.filter).number(s.id).u8(s.options.0);
            before = s.filter;
        }
        Some(w.0.into_boxed_slice())
    }

    /// The session again.
    fn unpacked(packed: &[u8], handle: Handle) -> Box<Self> {
        let mut r = Reader(packed);
        let (version, flags, quota_class) = (r.u8(), r.u8(), r.u8());
        let id = r.session_id();
        let (epoch, sequence) = (r.number(), r.number());
        let expiry_s = r.number::<u32>().wrapping_sub(1);
        let (expires_at, armed) = (r.time(), r.time());
        let (send_quota, last_packet_id) = (r.number(), r.number());
        let spill = (flags & HAS_SPILL != 0).then(|| {
            Box::new(Spill {
                count: r.number(),
                bytes: r.number(),
                after: r.number(),
                sent_up_to: r.number(),
                first_id: r.number(),
                ..Spill::default()
            })
        });
        let received: Vec<PacketId> = (0..r.number::<u16>())
            .filter_map(|_| PacketId::new(r.number()))
            .collect();
        let client_id = r.text("");
        let count: usize = r.number();
        let mut subscriptions = Subscriptions::default();
        let mut before = Box::default();
        for _ in 0..count {
            let filter = r.text(&before);
            subscriptions.push(Subscription {
                filter: &filter,
                id: r.number(),
                group: 0,
                options: Options(r.u8()),
            });
            before = filter;
        }
        let flow = Flow {
            last_packet_id,
            received,
            spill,
            ..Flow::default()
        };
        let is_needed = flow.spill.is_some() || !flow.received.is_empty() || last_packet_id != 0;
        Box::new(Self {
            client_id,
            epoch,
            expiry_s,
            sequence,
            expires_at,
            armed,
            send_quota,
            quota_class,
            version: version_of(version),
            is_recorded: flags & IS_RECORDED != 0,
            subscriptions,
            flow: is_needed.then(|| Box::new(flow)),
            ..Self::new(id, &Default::default(), handle, epoch)
        })
    }
}

fn version_of(number: u8) -> Version {
    match number {
        n if n == Version::V31 as u8 => Version::V31,
        n if n == Version::V311 as u8 => Version::V311,
        _ => Version::V5,
    }
}

impl Slot {
    /// The id of a session that is here, in one piece or not.
    pub(crate) fn session_id(&self) -> Option<SessionId> {
        match self {
            Self::Live(session) => Some(session.id),
            Self::Parked(packed) => {
                let mut r = Reader(packed.get(HEAD_BYTES..)?);
                Some(r.session_id())
            }
            _ => None,
        }
    }

    /// A session that is in one piece comes to life. `false` = it is something else.
    pub(crate) fn wake(&mut self, handle: Handle) -> bool {
        let Self::Parked(packed) = self else {
            return false;
        };
        *self = Self::Live(Session::unpacked(packed, handle));
        true
    }
}

impl Hub {
    /// Packs the sessions that something has happened to, and nothing more happens to.
    pub(crate) fn park(&mut self) {
        while let Some(index) = self.slots.unparked.pop() {
            let Some(slot) = self.slots.at(index) else {
                continue;
            };
            if let Slot::Live(session) = slot
                && let Some(packed) = session.packed()
            {
                *slot = Slot::Parked(packed);
                add(&mut self.env.counters.sessions_parked, 1);
            }
        }
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, n: u8) -> &mut Self {
        self.0.push(n);
        self
    }

    /// Seven bits at a time, the lowest first: most numbers are small.
    fn number(&mut self, n: impl Into<u64>) -> &mut Self {
        let mut n = n.into();
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.u8(n as u8)
    }

    /// Most sessions wait for no time at all, which is the largest number.
    fn time(&mut self, time: Time) -> &mut Self {
        self.number(time.0.wrapping_add(1))
    }

    /// How much it shares with the front of the text before it, and the rest: one client's filters are alike.
    fn text(&mut self, before: &str, text: &str) -> &mut Self {
        let same = before.bytes().zip(text.bytes());
        let shared = same.take_while(|(a, b)| a == b).count();
        let shared = text.floor_char_boundary(shared);
        let rest = &text[shared..];
        self.number(shared as u64).number(rest.len() as u64);
        self.0.extend_from_slice(rest.as_bytes());
        self
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            debug_assert!(false, "what was written is read");
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn number<T: TryFrom<u64> + Default>(&mut self) -> T {
        let (mut n, mut bits) = (0u64, 0);
        loop {
            let octet = self.u8();
            n |= u64::from(octet & 0x7f).wrapping_shl(bits);
            bits += 7;
            if octet < 0x80 {
                break;
            }
        }
        let number = T::try_from(n);
        debug_assert!(number.is_ok(), "what was written is read");
        number.unwrap_or_default()
    }

    fn session_id(&mut self) -> SessionId {
        SessionId {
            node: self.number(),
            epoch: self.number(),
            counter: self.number(),
        }
    }

    fn time(&mut self) -> Time {
        Time(self.number::<u64>().wrapping_sub(1))
    }

    fn text(&mut self, before: &str) -> Box<str> {
        let (shared, len) = (self.number::<usize>(), self.number::<usize>());
        let (rest, after) = self.0.split_at(len.min(self.0.len()));
        self.0 = after;
        let rest = std::str::from_utf8(rest).unwrap_or_default();
        let mut text = String::with_capacity(shared + rest.len());
        text.push_str(before.get(..shared).unwrap_or_default());
        text.push_str(rest);
        text.into_boxed_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_out_as_they_went_in() {
        for version in [Version::V31, Version::V311, Version::V5] {
            assert_eq!(version_of(version as u8), version);
        }
    }

    #[test]
    fn what_is_packed_comes_out_again() {
        let numbers = [0, 1, 127, 128, 16_383, 16_384, u64::MAX - 1, u64::MAX];
        // The first octets of the two letters are the same.
        let texts = ["fleet/ä/1", "fleet/ö/1", "fleet/ö/1", "", "fleet"];
        let mut w = Writer(Vec::new());
        for n in numbers {
            w.number(n).time(Time(n));
        }
        let mut before = "";
        for text in texts {
            w.text(before, text);
            before = text;
        }
        let mut r = Reader(&w.0);
        for n in numbers {
            assert_eq!((r.number::<u64>(), r.time()), (n, Time(n)));
        }
        let mut before = Box::default();
        for text in texts {
            before = r.text(&before);
            assert_eq!(&*before, text);
        }
        assert!(r.0.is_empty());
    }
}
