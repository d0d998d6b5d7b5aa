//! A session without a connection in one piece of memory, as long as nothing happens to it.

use headgate_codec::{PacketId, Version};

use crate::{
    OpId, Session, SessionId, Time,
    counters::add,
    hub::Hub,
    options::Options,
    session::{Flow, Subscription},
    slots::{Handle, Slot},
    spill::Spill,
};

const HAS_SPILL: u8 = 1;
const IS_RECORDED: u8 = 2;

impl Session {
    /// The session in one piece; `None` = it has more than that.
    fn packed(&self) -> Option<Box<[u8]>> {
        let is_still = self.conn.is_none()
            && self.pending.is_none()
            && self.will.is_none()
            && self.fence.is_none()
            && self.share.is_none()
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
        let texts: usize = self.subscriptions.iter().map(|s| s.filter.len() + 7).sum();
        let spilled = if spill.is_some() { 26 } else { 0 };
        let len = 61 + spilled + 2 * received.len() + self.client_id.len() + texts;
        let mut w = Writer(Vec::with_capacity(len));
        let flags = if spill.is_some() { HAS_SPILL } else { 0 }
            | if self.is_recorded { IS_RECORDED } else { 0 };
        w.u16(self.id.node).u32(self.id.epoch).u64(self.id.counter);
        w.u32(self.epoch).u32(self.expiry_s).u64(self.sequence);
        w.u64(self.expires_at.0).u64(self.armed.0);
        w.u16(self.send_quota).u8(self.version as u8).u8(flags);
        w.u8(self.quota_class);
        w.u16(flow.map_or(0, |f| f.last_packet_id));
        if let Some(s) = spill {
            w.u32(s.count).u32(s.bytes).u64(s.after).u64(s.sent_up_to);
            w.u16(s.first_id);
        }
        w.u16(received.len() as u16);
        for id in received {
            w.u16(id.get());
        }
        w.text(&self.client_id);
        w.u16(u16::try_from(self.subscriptions.len()).ok()?);
        for s in &self.subscriptions {
            w.text(&s.filter).u32(s.id).u8(s.options.0);
        }
        Some(w.0.into_boxed_slice())
    }

    /// The session again.
    fn unpacked(packed: &[u8], handle: Handle) -> Box<Self> {
        let mut r = Reader(packed);
        let id = SessionId {
            node: r.u16(),
            epoch: r.u32(),
            counter: r.u64(),
        };
        let (epoch, expiry_s, sequence) = (r.u32(), r.u32(), r.u64());
        let (expires_at, armed) = (Time(r.u64()), Time(r.u64()));
        let (send_quota, version, flags) = (r.u16(), r.u8(), r.u8());
        let (quota_class, last_packet_id) = (r.u8(), r.u16());
        let spill = (flags & HAS_SPILL != 0).then(|| {
            Box::new(Spill {
                count: r.u32(),
                bytes: r.u32(),
                after: r.u64(),
                sent_up_to: r.u64(),
                first_id: r.u16(),
                ..Spill::default()
            })
        });
        let received: Vec<PacketId> = (0..r.u16())
            .filter_map(|_| PacketId::new(r.u16()))
            .collect();
        let client_id = r.text().into();
        let subscriptions = (0..r.u16())
            .map(|_| Subscription {
                filter: r.text().into(),
                id: r.u32(),
                group: 0,
                options: Options(r.u8()),
            })
            .collect();
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

    fn u16(&mut self, n: u16) -> &mut Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }

    fn u32(&mut self, n: u32) -> &mut Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }

    fn u64(&mut self, n: u64) -> &mut Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.u16(text.len() as u16);
        self.0.extend_from_slice(text.as_bytes());
        self
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((first, rest)) = self.0.split_first_chunk() else {
            debug_assert!(false, "what was written is read");
            return [0; N];
        };
        self.0 = rest;
        *first
    }

    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn text(&mut self) -> &'a str {
        let len = usize::from(self.u16()).min(self.0.len());
        let (text, rest) = self.0.split_at(len);
        self.0 = rest;
        std::str::from_utf8(text).unwrap_or_default()
    }
}
