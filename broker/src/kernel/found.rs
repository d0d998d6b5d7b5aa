//! What an earlier process has left in the pinned maps, read before they are written anew.

use std::path::Path;

use aya::Pod;
use aya::maps::{Array, Map, MapData};
use headgate_common::quota::{CLASSES_MAX, QuotaClass};
use headgate_common::records::LAYOUT_VERSION;

use super::maps::{ConfigWords, Record};

/// The classes of the map `quotas` that have a name; none where there is no map of this broker's layout.
#[must_use]
pub fn pinned_quotas(pin_dir: &Path) -> Vec<(u32, QuotaClass)> {
    let version = array::<ConfigWords>(&pin_dir.join("config")).and_then(|config| {
        let [version, ..] = config.get(&0, 0).ok()?;
        Some(version)
    });
    if version != Some(LAYOUT_VERSION) {
        return Vec::new();
    }
    let Some(quotas) = array::<Record<QuotaClass>>(&pin_dir.join("quotas")) else {
        return Vec::new();
    };
    let class = |number| Some((number, quotas.get(&number, 0).ok()?.0));
    let classes = (0..CLASSES_MAX).filter_map(class);
    classes
        .filter(|(_, class)| !class.name().is_empty())
        .collect()
}

fn array<T: Pod>(pin: &Path) -> Option<Array<MapData, T>> {
    // Without a pin there is nothing to be said.
    let data = pin.exists().then(|| MapData::from_pin(pin).ok())??;
    let is_of_size = data.info().ok()?.value_size() as usize == size_of::<T>();
    let map = is_of_size.then(|| Map::from_map_data(data).ok())??;
    Array::try_from(map).ok()
}
