//! The maps by name, and their records as aya wants them.

use std::borrow::Borrow as _;

use aya::maps::{Array, MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::{Ebpf, Pod};
use headgate_common::records::{Budgets, Config, Counter, PassCounter, Worker};
use headgate_common::{AnswerReason, DropReason, PassReason, Secrets, SocketReason, Steering};

use super::error::{KernelError, chain};
use super::status::Counters;

/// A record that may be copied to and from a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Record<T>(pub T);

// SAFETY: these records are `repr(C)` without padding (their sizes are asserted beside them), made of integers only.
unsafe impl Pod for Record<Config> {}
// SAFETY: as above.
unsafe impl Pod for Record<Budgets> {}
// SAFETY: as above.
unsafe impl Pod for Record<Steering> {}
// SAFETY: as above.
unsafe impl Pod for Record<Secrets> {}
// SAFETY: as above.
unsafe impl Pod for Record<Counter> {}
// SAFETY: as above.
unsafe impl Pod for Record<PassCounter> {}
// SAFETY: as above; it is only ever written, because a number read back may be no state.
unsafe impl Pod for Record<Worker> {}

fn refused(what: &'static str) -> impl Fn(MapError) -> KernelError {
    move |error| KernelError::Refused {
        what,
        reason: chain(&error),
    }
}

fn missing(name: &'static str) -> KernelError {
    KernelError::StaleObject {
        what: format!("no map named {name}"),
    }
}

/// Writes an entry of an array map.
pub(super) fn write<T>(
    ebpf: &mut Ebpf,
    name: &'static str,
    index: u32,
    value: T,
) -> Result<(), KernelError>
where
    Record<T>: Pod,
{
    let map = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    let mut array = Array::<_, Record<T>>::try_from(map).map_err(refused("a map's type"))?;
    array
        .set(index, Record(value), 0)
        .map_err(refused("a map's entry"))
}

/// Gives every reason of a counter map its entry, and leaves those that are there alone.
fn fill<C>(ebpf: &mut Ebpf, name: &'static str, reasons: usize, zero: C) -> Result<(), KernelError>
where
    Record<C>: Pod,
    C: Copy,
{
    let cpus = aya::util::nr_cpus().map_err(|(file, error)| KernelError::Pin {
        action: "read",
        path: file.into(),
        source: error,
    })?;
    let map = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    let mut counters =
        PerCpuHashMap::<_, u32, Record<C>>::try_from(map).map_err(refused("a map's type"))?;
    for reason in 0..reasons as u32 {
        if counters.get(&reason, 0).is_ok() {
            continue;
        }
        let zeros = PerCpuValues::try_from(vec![Record(zero); cpus]).map_err(|source| {
            KernelError::Pin {
                action: "count the CPUs for",
                path: name.into(),
                source,
            }
        })?;
        counters
            .insert(reason, zeros, 0)
            .map_err(refused("a counter"))?;
    }
    Ok(())
}

/// Gives every reason its counter.
pub(super) fn fill_counters(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    fill(ebpf, "drops", DropReason::ALL.len(), Counter::default())?;
    fill(
        ebpf,
        "passes",
        PassReason::ALL.len(),
        PassCounter::default(),
    )?;
    fill(ebpf, "answers", AnswerReason::ALL.len(), Counter::default())?;
    fill(ebpf, "sockets", SocketReason::ALL.len(), Counter::default())
}

fn read<C, R: Copy>(
    ebpf: &Ebpf,
    name: &'static str,
    reasons: &[R],
    sum: impl Fn(&mut C, &C),
) -> Result<Vec<(R, C)>, KernelError>
where
    Record<C>: Pod,
    C: Default,
{
    let map = ebpf.map(name).ok_or_else(|| missing(name))?;
    let counters = PerCpuHashMap::<&MapData, u32, Record<C>>::try_from(map)
        .map_err(refused("a map's type"))?;
    let mut all = Vec::with_capacity(reasons.len());
    for (number, reason) in reasons.iter().enumerate() {
        let mut total = C::default();
        let number = number as u32;
        match counters.get(number.borrow(), 0) {
            Ok(values) => values.iter().for_each(|value| sum(&mut total, &value.0)),
            // Somebody deleted the entry by hand: nothing is counted there.
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(refused("to read a counter")(error)),
        }
        all.push((*reason, total));
    }
    Ok(all)
}

/// Reads all counters.
pub(super) fn counters(ebpf: &Ebpf) -> Result<Counters, KernelError> {
    let add = |total: &mut Counter, one: &Counter| {
        total.packets += one.packets;
        total.bytes += one.bytes;
    };
    Ok(Counters {
        drops: read(ebpf, "drops", DropReason::ALL, add)?,
        passes: read(
            ebpf,
            "passes",
            PassReason::ALL,
            |total: &mut PassCounter, one| {
                total.packets += one.packets;
                total.bytes += one.bytes;
                total.redirected += one.redirected;
            },
        )?,
        answers: read(ebpf, "answers", AnswerReason::ALL, add)?,
        sockets: read(ebpf, "sockets", SocketReason::ALL, add)?,
    })
}
