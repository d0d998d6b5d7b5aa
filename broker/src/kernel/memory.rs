//! How much memory the kernel's maps take at most.

use aya::maps::{Map, MapInfo, MapType};
use aya::{Ebpf, maps::MapData};

use super::error::{KernelError, chain};

/// `struct htab_elem` of the kernel: what a hash map's entry has besides key and value, in bytes; and a bucket.
const HASH_ENTRY: u64 = 48;
const HASH_BUCKET: u64 = 16;
/// `struct lpm_trie_node` without key and value, in bytes. A trie has up to one node more for each entry.
const TRIE_NODE: u64 = 40;
const TRIE_NODES_PER_ENTRY: u64 = 2;

/// What the memory of one map depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub kind: MapType,
    pub key: u64,
    pub value: u64,
    pub entries: u64,
}

impl Size {
    /// Bytes when it is full.
    pub fn bytes(self, cpus: u64) -> u64 {
        let padded = |bytes: u64| bytes.next_multiple_of(8);
        match self.kind {
            MapType::PerCpuArray => self.entries * padded(self.value) * cpus,
            MapType::LruHash | MapType::Hash => {
                let buckets = self.entries.next_power_of_two() * HASH_BUCKET;
                buckets + self.entries * (HASH_ENTRY + padded(self.key) + padded(self.value))
            }
            MapType::LpmTrie => {
                // The kernel's allocator gives powers of two, or one and a half of them.
                let node = padded(TRIE_NODE + self.key + self.value).next_multiple_of(32);
                self.entries * TRIE_NODES_PER_ENTRY * node
            }
            // Their entries are pointers.
            MapType::CpuMap | MapType::ReuseportSockArray | MapType::ProgramArray => {
                self.entries * 8
            }
            // Each of its bytes is there once; it is mapped twice.
            MapType::RingBuf => self.entries,
            _ => self.entries * padded(self.value),
        }
    }
}

/// All maps of an object together, in bytes, when they are full.
pub(super) fn of(ebpf: &Ebpf) -> Result<u64, KernelError> {
    let refused = |reason| KernelError::Refused {
        what: "to describe a map",
        reason,
    };
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| refused(error.to_string()))? as u64;
    let mut total = 0;
    for (name, map) in ebpf.maps() {
        let Some(data) = data(map) else {
            return Err(KernelError::StaleObject {
                what: format!("{name} is of a type that is not expected"),
            });
        };
        let info = data.info().map_err(|error| refused(chain(&error)))?;
        total += size(&info)
            .map_err(|error| refused(chain(&error)))?
            .bytes(cpus);
    }
    Ok(total)
}

fn size(info: &MapInfo) -> Result<Size, aya::maps::MapError> {
    Ok(Size {
        kind: info.map_type()?,
        key: info.key_size().into(),
        value: info.value_size().into(),
        entries: info.max_entries().into(),
    })
}

fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::CpuMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::ReusePortSockArray(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use headgate_common::quota::{
        CLASSES_MAX, PENALTIES_MAX, PENALTY_BUCKETS, PENALTY_FILTER_WORDS, Penalty, PenaltyBucket,
        PenaltyKey, QuotaClass,
    };
    use headgate_common::records::{
        INITIAL_CELLS, ListEntry, PACKET_CELLS, PREFIXES_MAX, SOCKETS_MAX, SYN_CELLS,
        VALIDATED_MAX, WORKERS_MAX, Worker,
    };
    use headgate_common::talkers::{TALKER_CELLS, Talker};
    use headgate_common::{Drops, Passes};

    use super::*;

    #[test]
    fn the_maps_fit_into_64_mib() {
        let size = |kind, key: usize, value: usize, entries: u32| Size {
            kind,
            key: key as u64,
            value: value as u64,
            entries: entries.into(),
        };
        let maps = [
            size(MapType::LpmTrie, 8, size_of::<ListEntry>(), PREFIXES_MAX),
            size(MapType::LpmTrie, 20, size_of::<ListEntry>(), PREFIXES_MAX),
            size(MapType::Array, 4, size_of::<Worker>(), WORKERS_MAX),
            size(MapType::Array, 4, size_of::<QuotaClass>(), CLASSES_MAX),
            size(
                MapType::LruHash,
                size_of::<PenaltyKey>(),
                size_of::<Penalty>(),
                PENALTIES_MAX,
            ),
            size(
                MapType::Array,
                4,
                size_of::<PenaltyBucket>(),
                PENALTY_BUCKETS,
            ),
            size(MapType::Array, 4, 8, PENALTY_FILTER_WORDS),
            size(MapType::LruHash, 8, 8, VALIDATED_MAX),
            size(
                MapType::Array,
                4,
                8,
                PACKET_CELLS + INITIAL_CELLS + SYN_CELLS,
            ),
            size(MapType::ReuseportSockArray, 4, 8, SOCKETS_MAX),
            size(
                MapType::PerCpuArray,
                4,
                size_of::<Drops>() + size_of::<Passes>(),
                1,
            ),
            size(MapType::PerCpuArray, 4, size_of::<Talker>(), TALKER_CELLS),
        ];
        let bytes: u64 = maps.iter().map(|map| map.bytes(256)).sum();
        assert!(bytes <= 64 << 20, "{bytes}");
    }
}
