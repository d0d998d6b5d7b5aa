//! The subscriptions of a session, in one piece of memory: most sessions have two, and with a piece for each filter they
//! took twice as much.

use crate::{options::Options, share::GroupId};

/// One of a session's subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subscription<'a> {
    pub(crate) filter: &'a str,
    /// Subscription Identifier; 0 = none.
    pub(crate) id: u32,
    /// The group of a Shared Subscription; 0 = it is none.
    pub(crate) group: GroupId,
    pub(crate) options: Options,
}

/// One behind the other, each a header, what the header says is there of identifier and group, and the filter.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions(Vec<u8>);

/// Where one of them is, until the next change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(usize);

/// Length of the filter (2 bytes), options, what follows.
const HEADER_BYTES: usize = 4;
const HAS_ID: u8 = 1;
const HAS_GROUP: u8 = 2;
/// Room is made for exactly what comes below this size, and for half as much again above it.
const SMALL_BYTES: usize = 512;

impl Subscriptions {
    /// How many there are: all are looked at.
    pub(crate) fn len(&self) -> usize {
        self.iter().count()
    }

    /// In the order in which they were made.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Subscription<'_>> {
        self.places().map(|place| self.at(place))
    }

    /// Where they are.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let place = Place(next);
            next += self.bytes_at(place)?;
            Some(place)
        })
    }

    /// The one at a place.
    pub(crate) fn at(&self, place: Place) -> Subscription<'_> {
        let entry = &self.0[place.0..];
        let (options, has) = (Options(entry[2]), entry[3]);
        let mut rest = &entry[HEADER_BYTES..];
        let mut number = |is_there: u8| {
            let (bytes, after) = rest.split_first_chunk().filter(|_| has & is_there != 0)?;
            rest = after;
            Some(u32::from_le_bytes(*bytes))
        };
        let id = number(HAS_ID).unwrap_or(0);
        let group = number(HAS_GROUP).unwrap_or(0);
        let filter = &rest[..filter_bytes(entry)];
        Subscription {
            filter: str::from_utf8(filter).expect("bug: a filter was text when it was put there"),
            id,
            group,
            options,
        }
    }

    /// Where the subscription to a filter is.
    pub(crate) fn find(&self, filter: &str) -> Option<Place> {
        self.places().find(|place| {
            let len = self.bytes_at(*place).unwrap_or(0);
            filter_bytes(&self.0[place.0..]) == filter.len()
                && self.0[..place.0 + len].ends_with(filter.as_bytes())
        })
    }

    /// One more, behind the others.
    pub(crate) fn push(&mut self, subscription: Subscription<'_>) {
        let entry = encoded(subscription);
        let more = if self.0.len() < SMALL_BYTES {
            entry.len()
        } else {
            entry.len().max(self.0.len() / 2)
        };
        if self.0.capacity() - self.0.len() < entry.len() {
            self.0.reserve_exact(more);
        }
        self.0.extend_from_slice(&entry);
    }

    /// Another one in its place.
    pub(crate) fn replace(&mut self, place: Place, subscription: Subscription<'_>) {
        self.put(place, encoded(subscription));
    }

    /// Another group for one of a group: the places of all stay.
    pub(crate) fn set_group(&mut self, place: Place, group: GroupId) {
        let subscription = self.at(place);
        self.put(
            place,
            encoded(Subscription {
                group,
                ..subscription
            }),
        );
    }

    /// Other options for it.
    pub(crate) fn set_options(&mut self, place: Place, options: Options) {
        self.0[place.0 + 2] = options.0;
    }

    /// One less.
    pub(crate) fn remove(&mut self, place: Place) {
        let len = self.bytes_at(place).unwrap_or(0);
        self.0.drain(place.0..place.0 + len);
    }

    /// Gives back what isn't used.
    pub(crate) fn shrink(&mut self) {
        if self.0.capacity() > self.0.len() * 2 {
            self.0.shrink_to_fit();
        }
    }

    /// Memory, bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.capacity()
    }

    fn put(&mut self, place: Place, entry: Vec<u8>) {
        let len = self.bytes_at(place).unwrap_or(0);
        self.0.splice(place.0..place.0 + len, entry);
    }

    fn bytes_at(&self, place: Place) -> Option<usize> {
        let entry = &self.0[place.0..];
        let has = *entry.get(3)?;
        let numbers = usize::from(has & HAS_ID != 0) + usize::from(has & HAS_GROUP != 0);
        Some(HEADER_BYTES + 4 * numbers + filter_bytes(entry))
    }
}

/// Length of an entry's filter.
fn filter_bytes(entry: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([entry[0], entry[1]]))
}

fn encoded(subscription: Subscription<'_>) -> Vec<u8> {
    let Subscription {
        filter,
        id,
        group,
        options,
    } = subscription;
    // A UTF-8 string of MQTT is no longer (§1.5.4).
    let len = u16::try_from(filter.len()).expect("bug: a filter of more than 65,535 bytes");
    let mut entry = Vec::with_capacity(HEADER_BYTES + 8 + filter.len());
    entry.extend_from_slice(&len.to_le_bytes());
    entry.push(options.0);
    let flag = |is_there: bool, flag: u8| if is_there { flag } else { 0 };
    entry.push(flag(id != 0, HAS_ID) | flag(group != 0, HAS_GROUP));
    for number in [id, group].into_iter().filter(|number| *number != 0) {
        entry.extend_from_slice(&number.to_le_bytes());
    }
    entry.extend_from_slice(filter.as_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Change {
        Put(String, u32, u32, u8),
        Remove(String),
        Options(String, u8),
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let number = || prop_oneof![Just(0), 1..=u32::MAX];
        let change = prop_oneof![
            3 => ("[a-c+#/é]{1,3}", number(), number(), any::<u8>())
                .prop_map(|(filter, id, group, options)| Change::Put(filter, id, group, options)),
            1 => "[a-c+#/é]{1,3}".prop_map(Change::Remove),
            1 => ("[a-c+#/é]{1,3}", any::<u8>())
                .prop_map(|(filter, options)| Change::Options(filter, options)),
        ];
        prop::collection::vec(change, 0..40)
    }

    proptest! {
        /// They are what a list with a string for each would be.
        #[test]
        fn they_are_a_list(changes in changes()) {
            let mut model: Vec<(String, u32, u32, u8)> = Vec::new();
            let mut packed = Subscriptions::default();
            for change in changes {
                match change {
                    Change::Put(filter, id, group, options) => {
                        let one = Subscription { filter: &filter, id, group, options: Options(options) };
                        match packed.find(&filter) {
                            Some(place) => packed.replace(place, one),
                            None => packed.push(one),
                        }
                        let new = (filter, id, group, options);
                        match model.iter_mut().find(|s| s.0 == new.0) {
                            Some(existing) => *existing = new,
                            None => model.push(new),
                        }
                    }
                    Change::Remove(filter) => {
                        let place = packed.find(&filter);
                        let index = model.iter().position(|s| s.0 == filter);
                        prop_assert_eq!(place.is_some(), index.is_some());
                        if let Some((place, index)) = place.zip(index) {
                            packed.remove(place);
                            model.remove(index);
                        }
                        packed.shrink();
                    }
                    Change::Options(filter, options) => {
                        if let Some(place) = packed.find(&filter) {
                            packed.set_options(place, Options(options));
                        }
                        for existing in model.iter_mut().filter(|s| s.0 == filter) {
                            existing.3 = options;
                        }
                    }
                }
                let all = packed.iter().map(|s| (s.filter.to_owned(), s.id, s.group, s.options.0));
                prop_assert_eq!(all.collect::<Vec<_>>(), model.clone());
                prop_assert_eq!(packed.len(), model.len());
            }
        }
    }

    #[test]
    fn two_take_one_small_piece() {
        let mut subscriptions = Subscriptions::default();
        for filter in [
            "fleet/device-0000001/command",
            "fleet/device-0000001/config",
        ] {
            subscriptions.push(Subscription {
                filter,
                id: 0,
                group: 0,
                options: Options(1),
            });
        }
        assert_eq!(subscriptions.memory_bytes(), 28 + 27 + 2 * HEADER_BYTES);
    }
}
