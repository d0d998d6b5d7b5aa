//! What happens to a packet: one function, in the order in which the checks get more expensive.

mod initial;

#[cfg(target_has_atomic = "64")]
use core::sync::atomic::{AtomicU64, Ordering};

use crate::cid::RawCid;
use crate::frame::{Frame, Packet, Source, Tcp, Udp, parse};
use crate::quota::{Debts, ELSEWHERE_COST, Penalty, QuotaClass, filter_bit};
use crate::reason::{AnswerReason, DropReason, PassReason};
use crate::records::{Budgets, Config, Limit, ListAction, PACKET_CELLS, RetryMode, SYN_CELLS};
use crate::route::{Class, Form, HEAD_LEN, Head, NO_SLOT, Routing, Secrets, Steering, classify};
use crate::token::TokenKeys;

pub use initial::is_loaded;

/// What the checks look up. In the kernel these are maps.
pub trait Environment {
    /// A debt that the environment keeps.
    type Debt: Debt;

    /// Ports and switches.
    fn config(&self) -> Option<&Config>;
    /// What is allowed by time.
    fn budgets(&self) -> Option<&Budgets>;
    /// The keys.
    fn secrets(&self) -> Option<&Secrets>;
    /// Where connections live.
    fn steering(&self) -> Option<&Steering>;
    /// The list entry with the longest prefix of the source: its action, and when it expires in Unix seconds (0 = never).
    fn listed(&self, source: &Source) -> Option<(ListAction, u64)>;
    /// A clock in nanoseconds; it may tick coarsely.
    fn now_ns(&self, config: &Config) -> u64;
    /// Unix time in nanoseconds; it may tick coarsely.
    fn unix_ns(&self) -> u64;
    /// A word of the filter in front of the penalties.
    fn penalty_filter(&self, word: u32) -> u64;
    /// What is known against a connection ID.
    fn penalty(&self, cid: RawCid) -> Option<&Penalty>;
    /// The class with this number.
    fn quota(&self, class: u32) -> Option<&QuotaClass>;
    /// What a policed connection has sent from its own address, or from elsewhere.
    fn penalty_debts(&self, bucket: u32, elsewhere: bool) -> Option<Debts>;
    /// Changes it.
    fn set_penalty_debts(&self, bucket: u32, elsewhere: bool, debts: Debts);
    /// The debt of a budget that all sources share.
    fn shared_debt(&self, of: SharedDebt) -> Option<Self::Debt>;
    /// The debt of a source prefix's QUIC packets.
    fn packet_debt(&self, index: u32) -> Option<Self::Debt>;
    /// The debt of a source prefix's Initials and 0-RTT.
    fn initial_debt(&self, index: u32) -> Option<Self::Debt>;
    /// The debt of a source prefix's TCP SYNs.
    fn syn_debt(&self, index: u32) -> Option<Self::Debt>;
    /// The debt of a host that has shown a valid token ([`Source::host`]).
    fn validated_debt(&self, host: u64) -> Option<Self::Debt>;
    /// [`Config::retry`], whatever somebody wrote there.
    fn retry_mode(&self, config: &Config) -> RetryMode;
    /// The keys of tokens.
    fn token_keys(&self) -> Option<&TokenKeys>;
}

/// Until when a budget's debt is paid back, in nanoseconds of [`Environment::now_ns`]. CPUs share it.
pub trait Debt: Copy {
    /// Reads it.
    fn get(self) -> u64;
    /// Writes it.
    fn set(self, until: u64);
    /// Adds to it atomically.
    fn add(self, nanoseconds: u64);
}

#[cfg(target_has_atomic = "64")]
impl Debt for &AtomicU64 {
    fn get(self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    fn set(self, until: u64) {
        self.store(until, Ordering::Relaxed);
    }

    fn add(self, nanoseconds: u64) {
        self.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

/// Budgets that all sources share.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedDebt {
    /// [`Budgets::fragments`].
    Fragments = 0,
    /// [`Budgets::version_negotiations`].
    VersionNegotiations = 1,
    /// [`Budgets::initials`].
    Initials = 2,
    /// [`Budgets::validated_initials`].
    Validated = 3,
    /// [`Budgets::retries`].
    Retries = 4,
    /// [`Config::retry_above_per_second`].
    RetryMeter = 5,
    /// Not a debt: until when load keeps Retry on.
    RetryHold = 6,
}

impl SharedDebt {
    /// How many there are.
    pub const COUNT: u32 = 7;
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not for our ports: let through and not counted.
    Ignore,
    /// Let through, to the worker in `slot` unless that is [`NO_SLOT`].
    Pass(PassReason, u8),
    /// Dropped.
    Drop(DropReason),
    /// Answered by the kernel; `payload` is where its UDP payload begins.
    Answer(AnswerReason, usize),
}

/// A verdict, and how much it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What happens to the packet.
    pub verdict: Verdict,
    /// The packet's length as its IP header says; 0 for [`Verdict::Ignore`].
    pub bytes: u32,
    /// [`Source::prefix`] of where it claims to come from; 0 for [`Verdict::Ignore`].
    pub prefix: u64,
}

/// Judges a packet. It charges the budgets of `environment`.
#[inline(always)]
pub fn judge<P: Packet, E: Environment>(packet: &P, environment: &E) -> Judgement {
    let frame = parse(packet);
    let ignore = Judgement {
        verdict: Verdict::Ignore,
        bytes: 0,
        prefix: 0,
    };
    // Each is there from the first moment: these are arrays with one entry.
    let Some(config) = environment.config() else {
        return ignore;
    };
    let Some(budgets) = environment.budgets() else {
        return ignore;
    };
    let judge = Judge {
        config,
        budgets,
        environment,
    };
    match frame {
        Frame::Udp(udp) if udp.port == config.quic_port => Judgement {
            verdict: judge.udp(packet, &udp),
            bytes: udp.end,
            prefix: udp.source.prefix(),
        },
        Frame::Tcp(tcp) if config.tcp_ports.contains(&tcp.port) && tcp.port != 0 => Judgement {
            verdict: judge.tcp(&tcp),
            bytes: tcp.end,
            prefix: tcp.source.prefix(),
        },
        Frame::Fragment { source, end } => Judgement {
            verdict: judge.fragment(&source),
            bytes: end,
            prefix: source.prefix(),
        },
        Frame::Udp(_) | Frame::Tcp(_) | Frame::Other => ignore,
    }
}

/// What every check needs.
struct Judge<'a, E> {
    config: &'a Config,
    budgets: &'a Budgets,
    environment: &'a E,
}

impl<E: Environment> Judge<'_, E> {
    #[inline(always)]
    fn fragment(&self, source: &Source) -> Verdict {
        // The lists are for our ports, which a later fragment doesn't name: only what is denied altogether is dropped
        // by them, and nothing is exempt.
        if self.listed(source) == Some(ListAction::Deny) {
            return Verdict::Drop(DropReason::Denied);
        }
        if self.charge_shared(SharedDebt::Fragments, &self.budgets.fragments) {
            Verdict::Pass(PassReason::Fragment, NO_SLOT)
        } else {
            Verdict::Drop(DropReason::FragmentBudget)
        }
    }

    #[inline(always)]
    fn udp<P: Packet>(&self, packet: &P, udp: &Udp) -> Verdict {
        let Some(len) = udp.payload_len(packet) else {
            return Verdict::Drop(DropReason::MalformedHeader);
        };
        let listed = self.listed(&udp.source);
        if listed == Some(ListAction::Deny) {
            return Verdict::Drop(DropReason::Denied);
        }
        let allowed = listed == Some(ListAction::Allow);
        if (len as usize) < HEAD_LEN {
            return Verdict::Drop(DropReason::Runt);
        }
        let Some(head) = packet.head(udp.payload) else {
            return Verdict::Drop(DropReason::MalformedHeader);
        };
        let Some(secrets) = self.environment.secrets() else {
            return Verdict::Ignore;
        };
        let Some(steering) = self.environment.steering() else {
            return Verdict::Ignore;
        };
        let Routing {
            class,
            form,
            slot,
            reason,
        } = classify(&head, len, secrets, steering);
        match class {
            Class::Refuse => Verdict::Drop(reason),
            Class::UnknownVersion => {
                if self.charge_shared(
                    SharedDebt::VersionNegotiations,
                    &self.budgets.version_negotiations,
                ) {
                    Verdict::Answer(AnswerReason::VersionNegotiation, udp.payload)
                } else {
                    Verdict::Drop(DropReason::VersionNegotiationBudget)
                }
            }
            Class::Own | Class::Orphan | Class::New if slot == NO_SLOT => {
                Verdict::Drop(DropReason::NoWorker)
            }
            Class::New => match form {
                Form::Initial => self.initial(packet, &head, slot, allowed, udp, secrets),
                _ => self.zero_rtt(slot, allowed, &udp.source, secrets),
            },
            Class::Own | Class::Orphan => {
                let cid = own_cid(&head, form);
                let (word, bit) = filter_bit(cid.mac);
                if self.environment.penalty_filter(word) >> bit & 1 != 0
                    && !self.within_penalty(cid, &udp.source, udp.end)
                {
                    return Verdict::Drop(DropReason::Penalty);
                }
                let reason = match (class, form) {
                    (Class::Orphan, _) => PassReason::OwnCidOrphan,
                    (_, Form::Short) => PassReason::OwnCid,
                    _ => PassReason::OwnCidLong,
                };
                self.packet(reason, slot, allowed, &udp.source, secrets)
            }
        }
    }

    /// What the lists say of a source now.
    #[inline(always)]
    fn listed(&self, source: &Source) -> Option<ListAction> {
        let (action, expires_s) = self.environment.listed(source)?;
        if self.is_over(expires_s) {
            return None;
        }
        Some(action)
    }

    /// Whether the time of an entry is over. Unix seconds; 0 is never.
    #[inline(always)]
    fn is_over(&self, expires_s: u64) -> bool {
        // Multiplied, because this target divides by a constant as slowly as by any other number.
        const SECONDS_MAX: u64 = u64::MAX / 1_000_000_000;
        expires_s != 0 && self.environment.unix_ns() >= expires_s.min(SECONDS_MAX) * 1_000_000_000
    }

    /// Whether a packet is within what its connection is policed to, if it is policed at all.
    #[inline(always)]
    fn within_penalty(&self, cid: RawCid, source: &Source, bytes: u32) -> bool {
        let Some(penalty) = self.environment.penalty(cid) else {
            return true;
        };
        let Some(class) = self.environment.quota(penalty.class) else {
            return true;
        };
        let elsewhere = penalty.is_elsewhere(source);
        let Some(debts) = self.environment.penalty_debts(penalty.bucket, elsewhere) else {
            return true;
        };
        let cost = if elsewhere { ELSEWHERE_COST } else { 1 };
        match class.allows(debts, bytes, cost, self.now_ns()) {
            Some(debts) => {
                self.environment
                    .set_penalty_debts(penalty.bucket, elsewhere, debts);
                true
            }
            // Looked at last, because a clock costs as much as all before.
            None => self.is_over(penalty.expires_s),
        }
    }

    /// The packet budget of the source's prefix, for packets that carry a connection ID of ours.
    #[inline(always)]
    fn packet(
        &self,
        reason: PassReason,
        slot: u8,
        allowed: bool,
        source: &Source,
        secrets: &Secrets,
    ) -> Verdict {
        let limit = &self.budgets.packets_per_prefix;
        if !allowed && limit.per_packet_ns != 0 {
            let index = prefix_hash(source, secrets) & (PACKET_CELLS - 1);
            let Some(debt) = self.environment.packet_debt(index) else {
                return Verdict::Ignore;
            };
            if !charge(debt, limit, self.now_ns()) {
                return Verdict::Drop(DropReason::PacketPrefixBudget);
            }
        }
        Verdict::Pass(reason, slot)
    }

    #[inline(always)]
    fn tcp(&self, tcp: &Tcp) -> Verdict {
        let listed = self.listed(&tcp.source);
        if listed == Some(ListAction::Deny) {
            return Verdict::Drop(DropReason::Denied);
        }
        if !tcp.opens {
            return Verdict::Pass(PassReason::Tcp, NO_SLOT);
        }
        if listed != Some(ListAction::Allow) {
            let Some(secrets) = self.environment.secrets() else {
                return Verdict::Ignore;
            };
            let index = prefix_hash(&tcp.source, secrets) & (SYN_CELLS - 1);
            let Some(debt) = self.environment.syn_debt(index) else {
                return Verdict::Ignore;
            };
            if !charge(debt, &self.budgets.syns_per_prefix, self.now_ns()) {
                return Verdict::Drop(DropReason::SynPrefixBudget);
            }
        }
        Verdict::Pass(PassReason::TcpSyn, NO_SLOT)
    }

    #[inline(always)]
    fn charge_shared(&self, of: SharedDebt, limit: &Limit) -> bool {
        match self.environment.shared_debt(of) {
            Some(debt) => charge_exactly(debt, limit, self.now_ns()),
            None => true,
        }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        self.environment.now_ns(self.config)
    }
}

/// Which of the cells of a budget a source's prefix has.
#[inline(always)]
const fn prefix_hash(source: &Source, secrets: &Secrets) -> u32 {
    hash_of_prefix(source.prefix(), secrets)
}

/// The same of a prefix. It is keyed, so that nobody knows who shares a cell with whom; but it is no SipHash, which every packet of
/// a connection would pay for: who can spoof a source can name its prefix as well, and needs no collision with it.
#[inline(always)]
#[must_use]
pub const fn hash_of_prefix(prefix: u64, secrets: &Secrets) -> u32 {
    let key = &secrets.prefix;
    let mixed = (prefix ^ key.k0).wrapping_mul(key.k1 | 1);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(key.k0 | 1);
    (mixed >> 32) as u32
}

/// The connection ID of ours that a datagram carries, as routing has found.
#[inline(always)]
const fn own_cid(head: &Head, form: Form) -> RawCid {
    match form {
        Form::Short => head.short_cid(),
        _ => head.long_cid(),
    }
}

/// Charges a budget that few CPUs use at a time: two CPUs that charge at once may charge only once.
#[inline(always)]
fn charge<D: Debt>(debt: D, limit: &Limit, now: u64) -> bool {
    match limit.charge(debt.get(), now) {
        Some(next) => {
            debt.set(next);
            true
        }
        None => false,
    }
}

/// Charges a budget that all CPUs share. CPUs that charge at once all count; each of them may be let through, so the
/// budget is exceeded by no more than a packet per CPU. Only in a moment of no debt may a charge get lost.
#[inline(always)]
fn charge_exactly<D: Debt>(debt: D, limit: &Limit, now: u64) -> bool {
    let seen = debt.get();
    let Some(next) = limit.charge(seen, now) else {
        return false;
    };
    if seen < now {
        debt.set(next);
    } else {
        debt.add(limit.per_packet_ns);
    }
    true
}
