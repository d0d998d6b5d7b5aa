//! The maps by name, and their records as aya wants them.

use aya::maps::{Array, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use headgate_common::quota::{PenaltyBucket, PenaltyKey, QuotaClass};
use headgate_common::records::{Budgets, Clock, Config, ListEntry, Worker};
use headgate_common::talkers::Talker;
use headgate_common::token::TokenKeys;
use headgate_common::{Answers, Drops, Passes, Secrets, Sockets, Steering};

use super::error::{KernelError, chain};
use super::status::Counters;

/// A record that may be copied to and from a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Record<T>(pub T);

// SAFETY: these records are `repr(C)` without padding (their sizes are asserted beside them), made of integers only.
unsafe impl Pod for Record<Config> {}
/// [`Config`] as it is read: somebody may have written a number that is no mode.
pub(super) type ConfigWords = [u32; size_of::<Config>() / 4];
// SAFETY: as above.
unsafe impl Pod for Record<Budgets> {}
// SAFETY: as above.
unsafe impl Pod for Record<Steering> {}
// SAFETY: as above.
unsafe impl Pod for Record<Secrets> {}
// SAFETY: as above.
unsafe impl Pod for Record<Drops> {}
// SAFETY: as above.
unsafe impl Pod for Record<Passes> {}
// SAFETY: as above.
unsafe impl Pod for Record<Answers> {}
// SAFETY: as above.
unsafe impl Pod for Record<Sockets> {}
// SAFETY: as above.
unsafe impl Pod for Record<Talker> {}
// SAFETY: as above; it is only ever written, because a number read back may be no state.
unsafe impl Pod for Record<Worker> {}
// SAFETY: as above.
unsafe impl Pod for Record<Clock> {}
// SAFETY: as above.
unsafe impl Pod for Record<TokenKeys> {}
// SAFETY: as above.
unsafe impl Pod for Record<QuotaClass> {}
// SAFETY: as above.
unsafe impl Pod for Record<PenaltyKey> {}
// SAFETY: as above.
unsafe impl Pod for Record<PenaltyBucket> {}
// SAFETY: as above; it is only ever written, because a number read back may be no action.
unsafe impl Pod for Record<ListEntry> {}

pub(super) fn refused(what: &'static str) -> impl Fn(MapError) -> KernelError {
    move |error| KernelError::Refused {
        what,
        reason: chain(&error),
    }
}

pub(super) fn missing(name: &'static str) -> KernelError {
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

/// Writes a number into an entry of an array map.
pub(super) fn write_plain<T: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    index: u32,
    value: T,
) -> Result<(), KernelError> {
    let map = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    let mut array = Array::<_, T>::try_from(map).map_err(refused("a map's type"))?;
    array.set(index, value, 0).map_err(refused("a map's entry"))
}

/// Reads an entry of an array map. `T` must be right whatever its bytes are.
pub(super) fn read_entry<T: Pod>(
    ebpf: &Ebpf,
    name: &'static str,
    index: u32,
) -> Result<T, KernelError> {
    let map = ebpf.map(name).ok_or_else(|| missing(name))?;
    let array = Array::<_, T>::try_from(map).map_err(refused("a map's type"))?;
    array.get(&index, 0).map_err(refused("to give an entry"))
}

/// Reads a map of counters, all CPUs together.
fn read<T: Default + Copy>(
    ebpf: &Ebpf,
    name: &'static str,
    add: impl Fn(&mut T, &T),
) -> Result<T, KernelError>
where
    Record<T>: Pod,
{
    let map = ebpf.map(name).ok_or_else(|| missing(name))?;
    let counters =
        PerCpuArray::<&MapData, Record<T>>::try_from(map).map_err(refused("a map's type"))?;
    let mut total = T::default();
    for one in counters
        .get(&0, 0)
        .map_err(refused("to give a counter"))?
        .iter()
    {
        add(&mut total, &one.0);
    }
    Ok(total)
}

/// Reads all counters.
pub(super) fn counters(ebpf: &Ebpf) -> Result<Counters, KernelError> {
    Ok(Counters {
        drops: read(ebpf, "drops", Drops::add)?,
        passes: read(ebpf, "passes", Passes::add)?,
        answers: read(ebpf, "answers", Answers::add)?,
        sockets: read(ebpf, "sockets", Sockets::add)?,
    })
}
