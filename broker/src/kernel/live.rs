//! What an operator may change while the shield runs: the kernel programs see it with the next packet.

use std::time::{SystemTime, UNIX_EPOCH};

use aya::Ebpf;
use headgate_common::quota::{CLASSES_MAX, QuotaClass};
use headgate_common::records::{Budgets, Clock, Config, RetryMode};

use super::error::KernelError;
use super::loader::Shield;
use super::maps::{self, ConfigWords, Record};
use super::settings::RetrySettings;

/// The lists are read through for what has expired at each of so many ticks: they may be long.
const SWEEP_TICKS: u32 = 20;

impl Shield {
    /// The budgets as they are in the map now, whoever wrote them.
    ///
    /// # Errors
    /// When the kernel refuses to give them.
    pub fn budgets(&self) -> Result<Budgets, KernelError> {
        let record: Record<Budgets> = maps::read_entry(&self.state().ebpf, "budgets", 0)?;
        Ok(record.0)
    }

    /// Changes the budgets.
    ///
    /// # Errors
    /// When the kernel refuses the change.
    pub fn set_budgets(&self, budgets: Budgets) -> Result<(), KernelError> {
        maps::write(&mut self.state().ebpf, "budgets", 0, budgets)
    }

    /// When Initials are answered with Retry now, whoever wrote it.
    ///
    /// # Errors
    /// When the kernel refuses to give it.
    pub fn retry(&self) -> Result<RetrySettings, KernelError> {
        let config = config(&self.state().ebpf)?;
        Ok(RetrySettings {
            mode: config.retry,
            above_per_second: config.retry_above_per_second,
            below_per_second: config.retry_below_per_second,
            token_life_s: config.retry_token_life_s,
        })
    }

    /// Changes when Initials are answered with Retry.
    ///
    /// # Errors
    /// When the kernel refuses the change.
    pub fn set_retry(&self, retry: RetrySettings) -> Result<(), KernelError> {
        let mut state = self.state();
        let now = config(&state.ebpf)?;
        let changed = Config {
            retry: retry.mode,
            retry_above_per_second: retry.above_per_second,
            retry_below_per_second: retry.below_per_second,
            retry_token_life_s: retry.token_life_s,
            ..now
        };
        maps::write(&mut state.ebpf, "config", 0, changed)
    }

    /// The classes of quotas as they are in the map now, whoever wrote them: those that have a name.
    ///
    /// # Errors
    /// When the kernel refuses to give them.
    pub fn quotas(&self) -> Result<Vec<(u32, QuotaClass)>, KernelError> {
        let state = self.state();
        let mut classes = Vec::new();
        for number in 0..CLASSES_MAX {
            let class: Record<QuotaClass> = maps::read_entry(&state.ebpf, "quotas", number)?;
            if !class.0.name().is_empty() {
                classes.push((number, class.0));
            }
        }
        Ok(classes)
    }

    /// Changes a class of quotas.
    ///
    /// # Errors
    /// When the kernel refuses the change: there is no class with such a number.
    pub fn set_quota(&self, number: u32, class: QuotaClass) -> Result<(), KernelError> {
        maps::write(&mut self.state().ebpf, "quotas", number, class)
    }

    /// To be called about every second: tells the kernel the time and its keys of tokens, forgets what has expired.
    ///
    /// # Errors
    /// When the kernel refuses a change.
    pub fn tick(&self) -> Result<(), KernelError> {
        let keys = self.keys.token_keys(unix_s());
        let mut state = self.state();
        maps::write(&mut state.ebpf, "clock", 0, clock())?;
        maps::write(&mut state.ebpf, "token_keys", 0, keys)?;
        state.ticks = state.ticks.wrapping_add(1);
        let sweeps = state.ticks.is_multiple_of(SWEEP_TICKS);
        drop(state);
        self.heed_edited_penalties()?;
        self.forget_expired_penalties()?;
        // The kernel looks at the time itself: this only makes room.
        if sweeps {
            self.unlist_expired()?;
        }
        Ok(())
    }
}

/// The map `config` as it is now.
pub(super) fn config(ebpf: &Ebpf) -> Result<Config, KernelError> {
    let words: ConfigWords = maps::read_entry(ebpf, "config", 0)?;
    let [
        layout_version,
        port,
        a,
        b,
        tick_low,
        tick_high,
        retry,
        above,
        below,
        life,
    ] = words;
    let halves = |word: u32| [word as u16, (word >> 16) as u16];
    let [quic_port, cpumap] = halves(port);
    let ([first, second], [third, fourth]) = (halves(a), halves(b));
    Ok(Config {
        layout_version,
        quic_port,
        cpumap,
        tcp_ports: [first, second, third, fourth],
        tick_ns: u64::from(tick_low) | u64::from(tick_high) << 32,
        retry: RetryMode::from_number(retry),
        retry_above_per_second: above,
        retry_below_per_second: below,
        retry_token_life_s: life,
    })
}

/// How far Unix time is from the clock that kernel programs can read.
pub(super) fn clock() -> Clock {
    let mut monotonic = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the record is ours to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut monotonic) };
    let monotonic_ns = monotonic.tv_sec as u64 * 1_000_000_000 + monotonic.tv_nsec as u64;
    Clock {
        wall_offset_ns: unix_ns().saturating_sub(monotonic_ns),
    }
}

/// Unix time in seconds.
pub(super) fn unix_s() -> u64 {
    unix_ns() / 1_000_000_000
}

fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64)
}
