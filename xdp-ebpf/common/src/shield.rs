//! What happens to a packet: one function, in the order in which the checks get more expensive.

#[cfg(target_has_atomic = "64")]
use core::sync::atomic::{AtomicU64, Ordering};

use crate::frame::{Frame, Packet, Source, Tcp, Udp, parse};
use crate::reason::{AnswerReason, DropReason, PassReason};
use crate::records::{Budgets, Config, Limit, ListAction, PREFIX_CELLS};
use crate::route::{Class, Form, NO_SLOT, Routing, Secrets, Steering, classify};

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
    /// The list entry with the longest prefix of the source.
    fn listed(&self, source: &Source) -> Option<ListAction>;
    /// A clock in nanoseconds; it may tick coarsely.
    fn now_ns(&self) -> u64;
    /// The debt of a budget that all sources share.
    fn shared_debt(&self, of: SharedDebt) -> Option<Self::Debt>;
    /// The debts of a source prefix's QUIC packets.
    fn prefix_debts(&self, index: u32) -> Option<PrefixDebts<Self::Debt>>;
    /// The debt of a source prefix's TCP SYNs.
    fn syn_debt(&self, index: u32) -> Option<Self::Debt>;
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

/// The debts of one cell of source prefixes.
#[derive(Clone, Copy, Debug)]
pub struct PrefixDebts<D> {
    /// First Initials and 0-RTT.
    pub initials: D,
    /// QUIC packets.
    pub packets: D,
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
}

impl SharedDebt {
    /// How many there are.
    pub const COUNT: u32 = 3;
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

/// Judges a packet. It charges the budgets of `environment`.
#[inline(always)]
pub fn judge<P: Packet, E: Environment>(packet: &P, environment: &E) -> Verdict {
    let frame = parse(packet);
    // Each is there from the first moment: these are arrays with one entry.
    let Some(config) = environment.config() else {
        return Verdict::Ignore;
    };
    let Some(budgets) = environment.budgets() else {
        return Verdict::Ignore;
    };
    match frame {
        Frame::Udp(udp) if udp.port == config.quic_port => {
            judge_udp(packet, &udp, budgets, environment)
        }
        Frame::Tcp(tcp) if config.tcp_ports.contains(&tcp.port) && tcp.port != 0 => {
            judge_tcp(&tcp, budgets, environment)
        }
        Frame::Fragment(source) => judge_fragment(&source, budgets, environment),
        Frame::Udp(_) | Frame::Tcp(_) | Frame::Other => Verdict::Ignore,
    }
}

#[inline(always)]
fn judge_fragment<E: Environment>(source: &Source, budgets: &Budgets, environment: &E) -> Verdict {
    // The lists are for our ports, which a later fragment doesn't name: only what is denied altogether is dropped
    // by them, and nothing is exempt.
    if environment.listed(source) == Some(ListAction::Deny) {
        return Verdict::Drop(DropReason::Denied);
    }
    if charge_shared(SharedDebt::Fragments, &budgets.fragments, environment) {
        Verdict::Pass(PassReason::Fragment, NO_SLOT)
    } else {
        Verdict::Drop(DropReason::FragmentBudget)
    }
}

#[inline(always)]
fn judge_udp<P: Packet, E: Environment>(
    packet: &P,
    udp: &Udp,
    budgets: &Budgets,
    environment: &E,
) -> Verdict {
    let Some(len) = udp.payload_len(packet.len()) else {
        return Verdict::Drop(DropReason::MalformedHeader);
    };
    let listed = environment.listed(&udp.source);
    if listed == Some(ListAction::Deny) {
        return Verdict::Drop(DropReason::Denied);
    }
    let allowed = listed == Some(ListAction::Allow);
    if (len as usize) < crate::route::HEAD_LEN {
        return Verdict::Drop(DropReason::Runt);
    }
    let Some(head) = packet.head(udp.payload) else {
        return Verdict::Drop(DropReason::MalformedHeader);
    };
    let Some(secrets) = environment.secrets() else {
        return Verdict::Ignore;
    };
    let Some(steering) = environment.steering() else {
        return Verdict::Ignore;
    };
    let Routing {
        class,
        form,
        slot,
        reason,
    } = classify(&head, len, secrets, steering);
    let admission = Admission {
        slot,
        allowed,
        source: &udp.source,
        secrets,
        budgets,
    };
    match class {
        Class::Refuse => Verdict::Drop(reason),
        Class::UnknownVersion => {
            if charge_shared(
                SharedDebt::VersionNegotiations,
                &budgets.version_negotiations,
                environment,
            ) {
                Verdict::Answer(AnswerReason::VersionNegotiation, udp.payload)
            } else {
                Verdict::Drop(DropReason::VersionNegotiationBudget)
            }
        }
        Class::Own if matches!(form, Form::Short) => {
            admission.of_packet(PassReason::OwnCid, environment)
        }
        Class::Own => admission.of_packet(PassReason::OwnCidLong, environment),
        Class::Orphan => admission.of_packet(PassReason::OwnCidOrphan, environment),
        Class::New if matches!(form, Form::Initial) => {
            admission.of_initial(PassReason::Initial, environment)
        }
        Class::New => admission.of_initial(PassReason::ZeroRtt, environment),
    }
}

/// A QUIC packet that knows where to go and asks for its budgets.
struct Admission<'a> {
    slot: u8,
    allowed: bool,
    source: &'a Source,
    secrets: &'a Secrets,
    budgets: &'a Budgets,
}

impl Admission<'_> {
    /// The packet budget of the source's prefix, for packets that carry a connection ID of ours.
    #[inline(always)]
    fn of_packet<E: Environment>(&self, reason: PassReason, environment: &E) -> Verdict {
        if self.slot == NO_SLOT {
            return Verdict::Drop(DropReason::NoWorker);
        }
        let limit = &self.budgets.packets_per_prefix;
        if !self.allowed && limit.per_packet_ns != 0 {
            let Some(debts) = environment.prefix_debts(cell_index(self.source, self.secrets))
            else {
                return Verdict::Ignore;
            };
            if !charge(debts.packets, limit, environment.now_ns()) {
                return Verdict::Drop(DropReason::PacketPrefixBudget);
            }
        }
        Verdict::Pass(reason, self.slot)
    }

    /// The budgets of packets that may open a connection. What the source's prefix is denied doesn't count against
    /// all others, and once the shared budget is used up, nothing else is computed.
    #[inline(always)]
    fn of_initial<E: Environment>(&self, reason: PassReason, environment: &E) -> Verdict {
        if self.slot == NO_SLOT {
            return Verdict::Drop(DropReason::NoWorker);
        }
        if self.allowed {
            return Verdict::Pass(reason, self.slot);
        }
        let Some(shared) = environment.shared_debt(SharedDebt::Initials) else {
            return Verdict::Ignore;
        };
        let now = environment.now_ns();
        if self.budgets.initials.charge(shared.get(), now).is_none() {
            return Verdict::Drop(DropReason::InitialGlobalBudget);
        }
        let Some(debts) = environment.prefix_debts(cell_index(self.source, self.secrets)) else {
            return Verdict::Ignore;
        };
        if !charge(debts.packets, &self.budgets.packets_per_prefix, now) {
            return Verdict::Drop(DropReason::PacketPrefixBudget);
        }
        if !charge(debts.initials, &self.budgets.initials_per_prefix, now) {
            return Verdict::Drop(DropReason::InitialPrefixBudget);
        }
        if !charge_exactly(shared, &self.budgets.initials, now) {
            return Verdict::Drop(DropReason::InitialGlobalBudget);
        }
        Verdict::Pass(reason, self.slot)
    }
}

#[inline(always)]
fn judge_tcp<E: Environment>(tcp: &Tcp, budgets: &Budgets, environment: &E) -> Verdict {
    let listed = environment.listed(&tcp.source);
    if listed == Some(ListAction::Deny) {
        return Verdict::Drop(DropReason::Denied);
    }
    if !tcp.opens {
        return Verdict::Pass(PassReason::Tcp, NO_SLOT);
    }
    if listed != Some(ListAction::Allow) && budgets.syns_per_prefix.per_packet_ns != 0 {
        let Some(secrets) = environment.secrets() else {
            return Verdict::Ignore;
        };
        let Some(cell) = environment.syn_debt(cell_index(&tcp.source, secrets)) else {
            return Verdict::Ignore;
        };
        if !charge(cell, &budgets.syns_per_prefix, environment.now_ns()) {
            return Verdict::Drop(DropReason::SynPrefixBudget);
        }
    }
    Verdict::Pass(PassReason::TcpSyn, NO_SLOT)
}

/// Spoofed sources cannot choose whom they share a cell with, because the hash is keyed.
#[inline(always)]
fn cell_index(source: &Source, secrets: &Secrets) -> u32 {
    secrets.prefix.hash([source.prefix()], 8 << 56) as u32 & (PREFIX_CELLS - 1)
}

#[inline(always)]
fn charge_shared<E: Environment>(cell: SharedDebt, limit: &Limit, environment: &E) -> bool {
    match environment.shared_debt(cell) {
        Some(debt) => charge_exactly(debt, limit, environment.now_ns()),
        None => true,
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
