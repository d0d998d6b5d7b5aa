//! Packets that may open a connection: tokens, Retry, and the budgets of those whose address is not validated.

use super::{Debt, Environment, Judge, SharedDebt, Verdict, charge, charge_exactly, prefix_hash};
use crate::frame::{Packet, Source, Udp};
use crate::reason::{AnswerReason, DropReason, PassReason};
use crate::records::{INITIAL_CELLS, Limit, RetryMode};
use crate::route::{CID_LEN_MAX, HEAD_LEN, Head, Secrets};
use crate::token::{NEW_TOKEN_LEN, RETRY_TOKEN_LEN, RETRY_WORDS, Sender, TokenState};

/// Retry by load goes on for so long after it was needed last, in nanoseconds.
const RETRY_HOLD_NS: u64 = 5_000_000_000;
/// Load is what comes above the threshold for so long, in nanoseconds.
const RETRY_MEASURE_NS: u64 = 100_000_000;

impl<E: Environment> Judge<'_, E> {
    /// An Initial that may open a connection.
    #[inline(always)]
    pub(super) fn initial<P: Packet>(
        &self,
        packet: &P,
        head: &Head,
        slot: u8,
        allowed: bool,
        udp: &Udp,
        secrets: &Secrets,
    ) -> Verdict {
        if head.scid_len() > CID_LEN_MAX {
            return Verdict::Drop(DropReason::CidLength);
        }
        let token = self.token(packet, head, udp);
        let (passed, answered) = match token {
            TokenState::Retry => {
                return self.validated(PassReason::InitialRetryToken, slot, allowed, udp);
            }
            TokenState::New => {
                return self.validated(PassReason::InitialNewToken, slot, allowed, udp);
            }
            // RFC 9000 §8.1.2: quinn-proto would close the connection. A client that is slow starts anew.
            TokenState::RetryExpired => return Verdict::Drop(DropReason::RetryTokenExpired),
            TokenState::RetryElsewhere => return Verdict::Drop(DropReason::RetryTokenElsewhere),
            // RFC 9000 §8.1.3: as if there were none. A client that has moved repeats its old one.
            TokenState::Absent => (PassReason::Initial, AnswerReason::Retry),
            TokenState::Foreign => (
                PassReason::InitialForeignToken,
                AnswerReason::RetryForeignToken,
            ),
            TokenState::NewInvalid => (
                PassReason::InitialInvalidNewToken,
                AnswerReason::RetryInvalidNewToken,
            ),
        };
        let now = self.now_ns();
        let mode = self.environment.retry_mode(self.config);
        let refused = if self.wants_retry(mode, now) {
            None
        } else {
            match self.charge_initial(allowed, &udp.source, secrets, now) {
                Ok(()) => return Verdict::Pass(passed, slot),
                Err(reason) => Some(reason),
            }
        };
        match (mode, refused) {
            (RetryMode::Never, Some(reason)) => Verdict::Drop(reason),
            // Not dropped: else whoever spoofs a prefix or many would lock its owners out.
            _ if self.charge_shared(SharedDebt::Retries, &self.budgets.retries) => {
                Verdict::Answer(answered, udp.payload)
            }
            _ => Verdict::Drop(DropReason::RetryBudget),
        }
    }

    /// 0-RTT without a connection ID of ours shares the budgets of Initials.
    #[inline(always)]
    pub(super) fn zero_rtt(
        &self,
        slot: u8,
        allowed: bool,
        source: &Source,
        secrets: &Secrets,
    ) -> Verdict {
        match self.charge_initial(allowed, source, secrets, self.now_ns()) {
            Ok(()) => Verdict::Pass(PassReason::ZeroRtt, slot),
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// The token of an Initial whose connection IDs have lengths that are allowed.
    #[inline(always)]
    fn token<P: Packet>(&self, packet: &P, head: &Head, udp: &Udp) -> TokenState {
        // RFC 9000 §17.2.2: the length is a variable-length integer. Ours need one byte or two.
        let offset = 7 + u32::from(head.dcid_len()) + u32::from(head.scid_len());
        let at = udp.payload as u32 + offset;
        let (first, second) = if offset < HEAD_LEN as u32 - 1 {
            (head.octet(offset), head.octet(offset + 1))
        } else {
            match packet.words::<1>(at) {
                Some([word]) => (word as u8, (word >> 8) as u8),
                None => return TokenState::Absent,
            }
        };
        let (len, skip) = match first >> 6 {
            0 => (first as usize, 1),
            1 => ((first as usize & 0x3f) << 8 | second as usize, 2),
            _ => return TokenState::Foreign,
        };
        if len == 0 {
            return TokenState::Absent;
        }
        if len != RETRY_TOKEN_LEN && len != NEW_TOKEN_LEN {
            return TokenState::Foreign;
        }
        let (Some(token), Some(keys)) = (
            packet.words::<RETRY_WORDS>(at + skip),
            self.environment.token_keys(),
        ) else {
            return TokenState::Foreign;
        };
        let sender = Sender {
            address: udp.source.mapped(),
            port: udp.source_port,
        };
        let now_s = (self.environment.unix_ns() / 1_000_000_000) as u32;
        if len == RETRY_TOKEN_LEN {
            keys.check_retry(&token, sender, now_s, self.config.retry_token_life_s)
        } else {
            keys.check_new(&token, sender.address, now_s)
        }
    }

    /// The budgets of Initials with a valid token, which a flood of spoofed ones doesn't touch.
    #[inline(always)]
    fn validated(&self, reason: PassReason, slot: u8, allowed: bool, udp: &Udp) -> Verdict {
        let limit = &self.budgets.validated_initials_per_address;
        if !allowed && limit.per_packet_ns != 0 {
            let Some(debt) = self.environment.validated_debt(udp.source.host()) else {
                return Verdict::Drop(DropReason::ValidatedAddressBudget);
            };
            if !charge(debt, limit, self.now_ns()) {
                return Verdict::Drop(DropReason::ValidatedAddressBudget);
            }
        }
        if self.charge_shared(SharedDebt::Validated, &self.budgets.validated_initials) {
            Verdict::Pass(reason, slot)
        } else {
            Verdict::Drop(DropReason::ValidatedBudget)
        }
    }

    /// Whether an Initial without a valid token is answered with Retry whatever its budgets say.
    #[inline(always)]
    fn wants_retry(&self, mode: RetryMode, now: u64) -> bool {
        match mode {
            RetryMode::Always => true,
            RetryMode::Never => false,
            RetryMode::Auto => {
                let (Some(hold), Some(meter)) = (
                    self.environment.shared_debt(SharedDebt::RetryHold),
                    self.environment.shared_debt(SharedDebt::RetryMeter),
                ) else {
                    return false;
                };
                let (above, below) = (
                    self.config.retry_above_per_second,
                    self.config.retry_below_per_second,
                );
                is_loaded((hold, meter), (above, below), now)
            }
        }
    }

    /// The budgets of packets that may open a connection and have no valid token. What the source's prefix is denied
    /// doesn't count against all others, and once the shared budget is used up, nothing else is computed.
    #[inline(always)]
    fn charge_initial(
        &self,
        allowed: bool,
        source: &Source,
        secrets: &Secrets,
        now: u64,
    ) -> Result<(), DropReason> {
        let Some(shared) = self.environment.shared_debt(SharedDebt::Initials) else {
            return Ok(());
        };
        if self.budgets.initials.charge(shared.get(), now).is_none() {
            return Err(DropReason::InitialGlobalBudget);
        }
        if !allowed {
            let index = prefix_hash(source, secrets) & (INITIAL_CELLS - 1);
            let Some(debt) = self.environment.initial_debt(index) else {
                return Ok(());
            };
            if !charge(debt, &self.budgets.initials_per_prefix, now) {
                return Err(DropReason::InitialPrefixBudget);
            }
        }
        if charge_exactly(shared, &self.budgets.initials, now) {
            Ok(())
        } else {
            Err(DropReason::InitialGlobalBudget)
        }
    }
}

/// Whether there is load, with one more Initial: more than `above` per second for a tenth of a second, and then until
/// there were fewer than `below` for some seconds. 0 for `above` is never.
#[inline(always)]
pub fn is_loaded<D: Debt>((hold, meter): (D, D), (above, below): (u32, u32), now: u64) -> bool {
    if above == 0 {
        return false;
    }
    let until = hold.get();
    if until > now {
        // Time shortens what is left as fast as Initials at the lower threshold prolong it.
        if until - now < RETRY_HOLD_NS && below != 0 {
            hold.add(1_000_000_000 / u64::from(below));
        }
        return true;
    }
    let threshold = Limit {
        per_packet_ns: 1_000_000_000 / u64::from(above),
        burst_ns: RETRY_MEASURE_NS,
    };
    if charge_exactly(meter, &threshold, now) {
        return false;
    }
    hold.set(now + RETRY_HOLD_NS);
    true
}
