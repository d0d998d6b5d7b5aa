//! Which worker a datagram belongs to: one pure function, used by XDP, by the sk_reuseport program and in user space.

use crate::cid::{CID_LEN, CidError, CidKeys, RawCid};
use crate::reason::DropReason;
use crate::siphash::SipKey;

/// Bytes of a datagram that [`route`] looks at. No QUIC packet for us is shorter: a short header with a connection ID
/// of ours has at least 1 + 14 + 4 + 16 bytes (RFC 9001 §5.4.2).
pub const HEAD_LEN: usize = 32;
/// Longest connection ID of QUIC v1, in bytes (RFC 9000 §17.2).
pub const CID_LEN_MAX: u8 = 20;
/// Shortest Destination Connection ID of a client's first Initial, in bytes (RFC 9000 §7.2).
pub const FIRST_DCID_LEN_MIN: u8 = 8;
/// Shortest datagram that carries an Initial, in bytes (RFC 9000 §14.1).
pub const INITIAL_DATAGRAM_LEN_MIN: u32 = 1200;
/// QUIC version 1 (RFC 9000 §15).
pub const VERSION_1: u32 = 1;
/// Entries of [`Steering::spread`].
pub const SPREAD: usize = 256;
/// Worker slots: 0–254.
pub const SLOTS: usize = 255;
/// In [`Steering::spread`]: no worker.
pub const NO_SLOT: u8 = 255;

/// The first [`HEAD_LEN`] bytes of a datagram as little-endian words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head(pub [u64; 4]);

impl Head {
    /// The head of a datagram, or None if it is shorter than any QUIC packet for us.
    #[must_use]
    pub fn of(datagram: &[u8]) -> Option<Self> {
        let head: &[u8; HEAD_LEN] = datagram.first_chunk()?;
        let (words, _) = head.as_chunks::<8>();
        Some(Self([
            u64::from_le_bytes(words[0]),
            u64::from_le_bytes(words[1]),
            u64::from_le_bytes(words[2]),
            u64::from_le_bytes(words[3]),
        ]))
    }

    #[inline(always)]
    const fn first_octet(&self) -> u8 {
        self.0[0] as u8
    }

    /// RFC 9000 §17.2: the Version field of a long header.
    #[inline(always)]
    const fn version(&self) -> u32 {
        ((self.0[0] >> 8) as u32).swap_bytes()
    }

    /// Length of a long header's Destination Connection ID.
    #[inline(always)]
    #[must_use]
    pub const fn dcid_len(&self) -> u8 {
        (self.0[0] >> 40) as u8
    }

    /// Length of a long header's Source Connection ID, if the Destination Connection ID has at most 20 bytes.
    #[inline(always)]
    #[must_use]
    pub const fn scid_len(&self) -> u8 {
        self.octet(6 + self.dcid_len() as u32)
    }

    /// One of the bytes; any of the last 8 if there are fewer.
    #[inline(always)]
    #[must_use]
    pub const fn octet(&self, offset: u32) -> u8 {
        let word = match offset >> 3 {
            0 => self.0[0],
            1 => self.0[1],
            2 => self.0[2],
            _ => self.0[3],
        };
        (word >> (8 * (offset & 7))) as u8
    }

    /// The Destination Connection ID of a short header, if it is of our length.
    #[inline(always)]
    #[must_use]
    pub const fn short_cid(&self) -> RawCid {
        let [w0, w1, ..] = self.0;
        RawCid {
            first: w0 >> 8 | w1 << 56,
            second: (w1 >> 8) as u16,
            mac: (w1 >> 24) as u32,
        }
    }

    /// The Destination Connection ID of a long header, if it is of our length.
    #[inline(always)]
    #[must_use]
    pub const fn long_cid(&self) -> RawCid {
        let [w0, w1, w2, _] = self.0;
        RawCid {
            first: w0 >> 48 | w1 << 16,
            second: (w1 >> 48) as u16,
            mac: w2 as u32,
        }
    }

    /// Keyed hash of a long header's Destination Connection ID of at most 20 bytes.
    #[inline(always)]
    const fn hash_dcid(&self, key: &SipKey) -> u64 {
        let [w0, w1, w2, w3] = self.0;
        let end = 6 + self.dcid_len() as u32;
        let words = [
            w0 >> 48 & keep(u64::MAX, end, 6),
            keep(w1, end, 8),
            keep(w2, end, 16),
        ];
        key.hash(words, (end as u64) << 56 | keep(w3, end, 24))
    }
}

/// The bytes of `word`, which starts at `offset`, that lie before `end`.
#[inline(always)]
const fn keep(word: u64, end: u32, offset: u32) -> u64 {
    if end <= offset {
        0
    } else if end - offset >= 8 {
        word
    } else {
        word & ((1 << (8 * (end - offset))) - 1)
    }
}

/// The keys that routing needs. In the kernel they live in a map that is not pinned.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// Connection IDs' MAC keys.
    pub cid: CidKeys,
    /// Spreads clients' first connection IDs over the workers.
    pub initial: SipKey,
    /// Spreads source prefixes over the budgets.
    pub prefix: SipKey,
}

/// Where connections live now.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    /// This node's id.
    pub node: u64,
    /// Bit per slot: a worker answers for its connection IDs.
    pub live: [u64; 4],
    /// New connections: hash modulo [`SPREAD`] → slot, or [`NO_SLOT`].
    pub spread: [u8; SPREAD],
}

impl Steering {
    /// No worker yet.
    #[must_use]
    pub const fn new(node: u16) -> Self {
        Self {
            node: node as u64,
            live: [0; 4],
            spread: [NO_SLOT; SPREAD],
        }
    }

    /// Workers in these slots ([`NO_SLOT`] is ignored): `active` ones get new connections, `draining` ones keep those
    /// that they have. A slot that joins or leaves moves few entries of the spread.
    #[must_use]
    pub fn with_slots(node: u16, active: &[u8], draining: &[u8]) -> Self {
        let mut steering = Self::new(node);
        for &slot in active
            .iter()
            .chain(draining)
            .filter(|slot| **slot != NO_SLOT)
        {
            steering.live[usize::from(slot >> 6)] |= 1 << (slot & 63);
        }
        let mut load = [0u16; SPREAD];
        let mut distinct = 0u16;
        for (index, slot) in active.iter().enumerate() {
            distinct += u16::from(*slot != NO_SLOT && !active[..index].contains(slot));
        }
        if distinct == 0 {
            return steering;
        }
        let share_max = (SPREAD as u16).div_ceil(distinct);
        for (entry, chosen) in steering.spread.iter_mut().enumerate() {
            let free = active
                .iter()
                .filter(|slot| **slot != NO_SLOT && load[usize::from(**slot)] < share_max);
            // The highest random weight wins: removing a slot changes only the entries that it held, and a few
            // that overflowed.
            let best =
                free.max_by_key(|slot| WEIGHTS.hash([entry as u64], 9 << 56 | u64::from(**slot)));
            if let Some(&slot) = best {
                *chosen = slot;
                load[usize::from(slot)] += 1;
            }
        }
        steering
    }

    /// Whether a worker answers for the slot's connection IDs.
    #[inline(always)]
    #[must_use]
    pub const fn is_live(&self, slot: u8) -> bool {
        self.live[(slot >> 6) as usize & 3] >> (slot & 63) & 1 != 0
    }

    /// The slot for new connections with this hash, or [`NO_SLOT`].
    #[inline(always)]
    #[must_use]
    pub const fn pick(&self, hash: u64) -> u8 {
        self.spread[hash as usize & (SPREAD - 1)]
    }
}

/// Orders slots per entry of the spread. Not secret: the hash that picks the entry is keyed.
const WEIGHTS: SipKey = SipKey {
    k0: 0x6865_6164_6761_7465,
    k1: 0x7370_7265_6164,
};

/// What kind of packet opens a datagram that can be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// RFC 9000 §17.3.1.
    Short,
    /// RFC 9000 §17.2.2.
    Initial,
    /// RFC 9000 §17.2.3.
    ZeroRtt,
    /// RFC 9000 §17.2.4.
    Handshake,
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Its connection ID is ours, and `slot` answers for it.
    Own {
        /// The worker slot in the connection ID.
        slot: u8,
        /// The packet's form.
        form: Form,
    },
    /// Its connection ID is ours, but nobody has its slot any more: `slot`, which was picked by hash, sends a
    /// stateless reset (RFC 9000 §10.3) or, for a long header, drops it.
    Orphan {
        /// A worker slot by hash, or [`NO_SLOT`].
        slot: u8,
        /// The packet's form.
        form: Form,
    },
    /// A client's own choice of connection ID: a new connection, or one whose first answer is still under way.
    New {
        /// A worker slot by hash, or [`NO_SLOT`].
        slot: u8,
        /// [`Form::Initial`] or [`Form::ZeroRtt`].
        form: Form,
    },
    /// A version that we don't speak, in a datagram long enough to be answered with Version Negotiation.
    UnknownVersion {
        /// A worker slot by hash, or [`NO_SLOT`].
        slot: u8,
    },
    /// No packet for us.
    Refuse(DropReason),
}

impl Route {
    /// The worker slot, if there is one.
    #[must_use]
    pub const fn slot(self) -> Option<u8> {
        match self {
            Self::Own { slot, .. }
            | Self::Orphan { slot, .. }
            | Self::New { slot, .. }
            | Self::UnknownVersion { slot }
                if slot != NO_SLOT =>
            {
                Some(slot)
            }
            _ => None,
        }
    }
}

/// Routes a datagram of `len` bytes by its first bytes. All QUIC packets of one datagram have the same Destination
/// Connection ID (RFC 9000 §12.2), so the first one decides. The fixed bit is not looked at, because peers may grease
/// it (RFC 9287).
#[inline(always)]
#[must_use]
pub fn route(head: &Head, len: u32, secrets: &Secrets, steering: &Steering) -> Route {
    let Routing {
        class,
        form,
        slot,
        reason,
    } = classify(head, len, secrets, steering);
    match class {
        Class::Own => Route::Own { slot, form },
        Class::Orphan => Route::Orphan { slot, form },
        Class::New => Route::New { slot, form },
        Class::UnknownVersion => Route::UnknownVersion { slot },
        Class::Refuse => Route::Refuse(reason),
    }
}

/// [`Route`] with every field present in every case. An enum's unused bytes are undefined, the compiler reads them
/// early where that saves a branch, and the kernel's verifier refuses the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Which variant of [`Route`] it is.
    pub class: Class,
    /// The packet's form, where that matters.
    pub form: Form,
    /// A worker slot, or [`NO_SLOT`].
    pub slot: u8,
    /// Why it is refused, if it is.
    pub reason: DropReason,
}

/// The variants of [`Route`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// [`Route::Own`].
    Own,
    /// [`Route::Orphan`].
    Orphan,
    /// [`Route::New`].
    New,
    /// [`Route::UnknownVersion`].
    UnknownVersion,
    /// [`Route::Refuse`].
    Refuse,
}

impl Routing {
    #[inline(always)]
    const fn to(class: Class, form: Form, slot: u8) -> Self {
        Self {
            class,
            form,
            slot,
            reason: DropReason::Runt,
        }
    }

    #[inline(always)]
    const fn refuse(reason: DropReason) -> Self {
        Self {
            class: Class::Refuse,
            form: Form::Short,
            slot: NO_SLOT,
            reason,
        }
    }
}

/// [`route`] for kernel programs.
#[inline(always)]
#[must_use]
pub fn classify(head: &Head, len: u32, secrets: &Secrets, steering: &Steering) -> Routing {
    if head.first_octet() & 0x80 == 0 {
        return match owner(head.short_cid(), secrets, steering) {
            Owner::Us => to_owner(head.short_cid(), Form::Short, secrets, steering),
            Owner::Nobody => Routing::refuse(DropReason::ForgedCid),
            Owner::OtherNode => Routing::refuse(DropReason::OtherNode),
        };
    }
    match head.version() {
        VERSION_1 => classify_long(head, len, secrets, steering),
        0 => Routing::refuse(DropReason::VersionZero),
        _ if len < INITIAL_DATAGRAM_LEN_MIN => Routing::refuse(DropReason::UnknownVersionShort),
        // RFC 9000 §17.2: other versions may have longer connection IDs. We don't know any that does, and don't answer it.
        _ if head.dcid_len() > CID_LEN_MAX || head.scid_len() > CID_LEN_MAX => {
            Routing::refuse(DropReason::CidLength)
        }
        _ => Routing::to(
            Class::UnknownVersion,
            Form::Initial,
            steering.pick(head.hash_dcid(&secrets.initial)),
        ),
    }
}

/// RFC 9000 §17.2: a long header of version 1.
#[inline(always)]
fn classify_long(head: &Head, len: u32, secrets: &Secrets, steering: &Steering) -> Routing {
    let form = match head.first_octet() >> 4 & 3 {
        0 => Form::Initial,
        1 => Form::ZeroRtt,
        2 => Form::Handshake,
        _ => return Routing::refuse(DropReason::RetryFromClient),
    };
    // RFC 9000 §14.1: even an Initial that only acknowledges is padded by its client.
    if matches!(form, Form::Initial) && len < INITIAL_DATAGRAM_LEN_MIN {
        return Routing::refuse(DropReason::InitialTooShort);
    }
    let dcid_len = head.dcid_len();
    if dcid_len as usize == CID_LEN {
        match owner(head.long_cid(), secrets, steering) {
            Owner::Us => return to_owner(head.long_cid(), form, secrets, steering),
            Owner::OtherNode => return Routing::refuse(DropReason::OtherNode),
            Owner::Nobody => {}
        }
    }
    if matches!(form, Form::Handshake) {
        return Routing::refuse(DropReason::HandshakeForeignCid);
    }
    if !(FIRST_DCID_LEN_MIN..=CID_LEN_MAX).contains(&dcid_len) {
        return Routing::refuse(DropReason::CidLength);
    }
    Routing::to(
        Class::New,
        form,
        steering.pick(head.hash_dcid(&secrets.initial)),
    )
}

enum Owner {
    Us,
    OtherNode,
    Nobody,
}

#[inline(always)]
fn owner(cid: RawCid, secrets: &Secrets, steering: &Steering) -> Owner {
    match secrets.cid.verify(cid) {
        Ok(()) if u64::from(cid.node()) == steering.node => Owner::Us,
        Ok(()) => Owner::OtherNode,
        Err(CidError::Length | CidError::Rotation | CidError::Mac) => Owner::Nobody,
    }
}

#[inline(always)]
fn to_owner(cid: RawCid, form: Form, secrets: &Secrets, steering: &Steering) -> Routing {
    if steering.is_live(cid.slot()) {
        return Routing::to(Class::Own, form, cid.slot());
    }
    let hash = secrets
        .initial
        .hash([cid.first], 10 << 56 | u64::from(cid.second));
    Routing::to(Class::Orphan, form, steering.pick(hash))
}

/// Routing for user space: the same function over the same records.
#[derive(Clone, Copy, Debug)]
pub struct Router {
    /// The keys.
    pub secrets: Secrets,
    /// Where connections live.
    pub steering: Steering,
}

impl Router {
    /// Routes a whole datagram.
    #[must_use]
    pub fn route(&self, datagram: &[u8]) -> Route {
        let len = u32::try_from(datagram.len()).unwrap_or(u32::MAX);
        match Head::of(datagram) {
            Some(head) => route(&head, len, &self.secrets, &self.steering),
            None => Route::Refuse(DropReason::Runt),
        }
    }
}
