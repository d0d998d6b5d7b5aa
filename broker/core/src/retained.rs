//! Retained messages (MQTT 5.0 §3.3.1.3): a trie by level, shared by all workers.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{RetainedLimits, Time, hub::is_reserved, message::Message};

/// The store of retained messages. A new subscription reads those that match its filter, in the
/// order of their topics and in portions, so that neither a lock nor memory is held for long.
#[derive(Debug, Default)]
pub struct Retained {
    limits: RetainedLimits,
    inner: RwLock<Inner>,
    is_loading: AtomicBool,
}

/// The store is full: more messages or bytes than [`RetainedLimits`] allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetainedFull {
    /// [`RetainedLimits::messages`].
    Messages,
    /// [`RetainedLimits::bytes`].
    Bytes,
}

#[derive(Debug, Default)]
struct Inner {
    root: Node,
    /// Of clients: what the limits are about.
    clients: Usage,
    /// Of the server: a fixed set of topics, which clients can neither add to nor crowd out.
    own: Usage,
    /// Messages that expire, by time.
    expiring: BTreeSet<(Time, Box<str>)>,
    /// While messages are being restored: topics whose message was removed.
    removed: Option<BTreeSet<Box<str>>>,
}

#[derive(Debug, Default)]
struct Node {
    children: BTreeMap<Box<str>, Node>,
    message: Option<Arc<Message>>,
}

/// What a part of the store holds.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    messages: u32,
    bytes: u64,
}

/// Of each message and of each level that only it needs: map entry, allocation headers.
const NODE_BYTES: u64 = 96;

impl Retained {
    /// An empty store.
    pub fn new(limits: RetainedLimits) -> Self {
        Self {
            limits,
            inner: RwLock::default(),
            is_loading: AtomicBool::new(false),
        }
    }

    /// Messages of an earlier run are going to be restored. Until [`Retained::finish_loading`], no subscription
    /// gets retained messages, and what is removed is remembered.
    pub fn begin_loading(&self) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.removed = Some(BTreeSet::new());
        self.is_loading.store(true, Ordering::Release);
    }

    /// Puts back messages of an earlier run: how many of these. They were acknowledged once, so a lower limit than
    /// before takes none of them away; it only refuses new ones. Where a message was set or removed meanwhile, that stays.
    pub fn restore(&self, messages: impl IntoIterator<Item = Arc<Message>>, now: Time) -> usize {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let mut restored = 0;
        for message in messages {
            let is_removed = inner
                .removed
                .as_ref()
                .is_some_and(|r| r.contains(&*message.topic));
            if is_removed || message.is_expired(now) || inner.get(&message.topic).is_some() {
                continue;
            }
            inner.insert(&message);
            restored += 1;
        }
        restored
    }

    /// Whether clients have more messages or bytes here than the limits allow, as they can after a restart with lower ones.
    pub fn is_above_limits(&self) -> bool {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.clients.messages > self.limits.messages || inner.clients.bytes > self.limits.bytes
    }

    /// All messages of an earlier run are there.
    pub fn finish_loading(&self) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.removed = None;
        self.is_loading.store(false, Ordering::Release);
    }

    /// Nothing is going to be restored any more.
    pub fn is_loaded(&self) -> bool {
        !self.is_loading.load(Ordering::Acquire)
    }

    /// The retained message of a topic, expired or not.
    pub fn get(&self, topic: &str) -> Option<Arc<Message>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.get(topic).cloned()
    }

    /// Sets the retained message of its topic, or removes it if the payload is empty
    /// \[MQTT-3.3.1-5\] \[MQTT-3.3.1-6\] \[MQTT-3.3.1-7\].
    ///
    /// # Errors
    /// [`RetainedFull`] if the store has no room; what was stored for the topic stays. The server's own topics need none.
    pub fn set(&self, message: &Arc<Message>, now: Time) -> Result<(), RetainedFull> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.remove_expired(now);
        if message.payload.is_empty() {
            inner.remove(&message.topic);
            return Ok(());
        }
        let usage = inner.usage_with(message);
        if !is_reserved(&message.topic) {
            // Above a limit since a restart, what doesn't grow is still taken.
            if usage.messages > self.limits.messages.max(inner.clients.messages) {
                return Err(RetainedFull::Messages);
            }
            if usage.bytes > self.limits.bytes.max(inner.clients.bytes) {
                return Err(RetainedFull::Bytes);
            }
        }
        inner.insert(message);
        Ok(())
    }

    /// Up to `limit` messages that match `filter`, in the order of their topics' levels, after the
    /// place `after`. The place where the search stopped comes with them; `None` = there are no
    /// more. One call looks at no more than 2,048 levels, so it may find nothing and yet
    /// say where to go on.
    pub fn matching(
        &self,
        filter: &str,
        after: Option<&str>,
        limit: usize,
        now: Time,
    ) -> (Vec<Arc<Message>>, Option<Box<str>>) {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let filter: Vec<&str> = filter.split('/').collect();
        let after: Option<Vec<&str>> = after.map(|topic| topic.split('/').collect());
        let mut walk = Walk {
            found: Vec::new(),
            limit,
            now,
            visits: 0,
            path: Vec::new(),
            stopped_at: None,
        };
        walk.visit(&inner.root, &filter, after.as_deref());
        (walk.found, walk.stopped_at)
    }

    /// Number of retained messages, the server's own too.
    pub fn len(&self) -> usize {
        self.total().messages as usize
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory, bytes, as it is counted for the limit; of the server's own messages too.
    pub fn bytes(&self) -> u64 {
        self.total().bytes
    }

    fn total(&self) -> Usage {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        Usage {
            messages: inner.clients.messages + inner.own.messages,
            bytes: inner.clients.bytes + inner.own.bytes,
        }
    }
}

impl Inner {
    fn get(&self, topic: &str) -> Option<&Arc<Message>> {
        let mut node = &self.root;
        for level in topic.split('/') {
            node = node.children.get(level)?;
        }
        node.message.as_ref()
    }

    /// The part that a topic belongs to. The two share no level.
    fn usage(&mut self, topic: &str) -> &mut Usage {
        if is_reserved(topic) {
            &mut self.own
        } else {
            &mut self.clients
        }
    }

    /// The message's part of the store as it would be with it.
    fn usage_with(&mut self, message: &Message) -> Usage {
        let (mut node, mut new_levels) = (Some(&self.root), 0);
        for level in message.topic.split('/') {
            node = node.and_then(|n| n.children.get(level));
            new_levels += u64::from(node.is_none());
        }
        let former = node.and_then(|n| n.message.as_ref());
        let added = u64::from(message.cost()) + new_levels * NODE_BYTES;
        let is_new = u32::from(former.is_none());
        let freed = former.map_or(0, |m| u64::from(m.cost()));
        let usage = self.usage(&message.topic);
        Usage {
            messages: usage.messages + is_new,
            bytes: usage.bytes + added - freed,
        }
    }

    fn insert(&mut self, message: &Arc<Message>) {
        *self.usage(&message.topic) = self.usage_with(message);
        let mut node = &mut self.root;
        for level in message.topic.split('/') {
            if !node.children.contains_key(level) {
                node.children.insert(level.into(), Node::default());
            }
            let Some(next) = node.children.get_mut(level) else {
                return;
            };
            node = next;
        }
        let former = node.message.replace(Arc::clone(message));
        if let Some(at) = former.and_then(|m| m.expires_at) {
            self.expiring.remove(&(at, message.topic.as_str().into()));
        }
        if let Some(at) = message.expires_at {
            self.expiring.insert((at, message.topic.as_str().into()));
        }
    }

    fn remove(&mut self, topic: &str) {
        if let Some(removed) = &mut self.removed {
            removed.insert(topic.into());
        }
        let levels: Vec<&str> = topic.split('/').collect();
        let mut freed = 0;
        if let Some(message) = remove_below(&mut self.root, &levels, &mut freed) {
            let usage = self.usage(topic);
            usage.messages -= 1;
            usage.bytes -= freed + u64::from(message.cost());
            if let Some(at) = message.expires_at {
                self.expiring.remove(&(at, topic.into()));
            }
        }
    }

    fn remove_expired(&mut self, now: Time) {
        while self.expiring.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, topic)) = self.expiring.pop_first() {
                self.remove(&topic);
            }
        }
    }
}

/// Removes the message at `levels` below `node`, and the levels that nothing else needs; their
/// bytes are added to `freed`.
fn remove_below(node: &mut Node, levels: &[&str], freed: &mut u64) -> Option<Arc<Message>> {
    let Some((level, rest)) = levels.split_first() else {
        return node.message.take();
    };
    let child = node.children.get_mut(*level)?;
    let message = remove_below(child, rest, freed)?;
    if child.message.is_none() && child.children.is_empty() {
        node.children.remove(*level);
        *freed += NODE_BYTES;
    }
    Some(message)
}

/// Levels that one call of [`Retained::matching`] looks at: it bounds the time that the lock is
/// held. More than a topic can have levels, so that every call gets further.
pub const VISITS_MAX: usize = 2_048;

/// A walk in the order of levels; its depth is bounded by the levels of a filter and a topic.
struct Walk<'a> {
    found: Vec<Arc<Message>>,
    limit: usize,
    now: Time,
    visits: usize,
    path: Vec<&'a str>,
    stopped_at: Option<Box<str>>,
}

impl<'a> Walk<'a> {
    /// `after` holds the rest of the place to begin after, as long as the walk is on its path.
    fn visit(&mut self, node: &'a Node, filter: &[&str], after: Option<&[&str]>) {
        self.visits += 1;
        let Some((level, rest)) = filter.split_first() else {
            return self.take(node, after);
        };
        if *level == "#" {
            // "a/#" matches "a" too (§4.7.1.2).
            self.take(node, after);
            return self.each(node, filter, after);
        }
        if *level == "+" {
            return self.each(node, rest, after);
        }
        let Some((name, child)) = node.children.get_key_value(*level) else {
            return;
        };
        let tail = match after.and_then(|a| a.split_first()) {
            Some((first, _)) if **name < **first => return,
            Some((first, tail)) if **name == **first => Some(tail),
            _ => None,
        };
        self.descend(name, child, rest, tail);
    }

    /// Goes on below every child, with `filter` for what is below them.
    fn each(&mut self, node: &'a Node, filter: &[&str], after: Option<&[&str]>) {
        let from = after.and_then(|a| a.split_first());
        let start = from.map_or(Bound::Unbounded, |(first, _)| Bound::Included(*first));
        for (name, child) in node.children.range::<str, _>((start, Bound::Unbounded)) {
            // [MQTT-4.7.2-1]: a wildcard at the first level doesn't match topics with "$".
            if self.path.is_empty() && name.starts_with('$') {
                continue;
            }
            let tail = from
                .filter(|(first, _)| ***first == **name)
                .map(|(_, tail)| tail);
            self.descend(name, child, filter, tail);
            if self.stopped_at.is_some() {
                return;
            }
        }
    }

    fn descend(&mut self, name: &'a str, child: &'a Node, filter: &[&str], after: Option<&[&str]>) {
        if self.stopped_at.is_some() {
            return;
        }
        self.path.push(name);
        self.visit(child, filter, after);
        // A child that was finished is passed over next time: whatever is below it sorts before
        // the place that ends in the highest character.
        if self.stopped_at.is_none() && self.visits >= VISITS_MAX {
            self.stopped_at = Some(format!("{}/{}", self.path.join("/"), char::MAX).into());
        }
        self.path.pop();
    }

    /// Takes the message of `node`. On the path of `after` it was taken before.
    fn take(&mut self, node: &Node, after: Option<&[&str]>) {
        if after.is_some() || self.stopped_at.is_some() {
            return;
        }
        if let Some(message) = node.message.as_ref().filter(|m| !m.is_expired(self.now)) {
            self.found.push(Arc::clone(message));
            if self.found.len() >= self.limit {
                self.stopped_at = Some(self.path.join("/").into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use headgate_codec::{QoS, Text};

    fn message(topic: &str, payload: &str, expires_at: Option<Time>) -> Arc<Message> {
        Arc::new(Message {
            topic: Text::from(topic),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            qos: QoS::AtMostOnce,
            retain: true,
            expires_at,
            properties: None,
        })
    }

    /// Everything that matches, read in portions of `portion`.
    fn topics(store: &Retained, filter: &str, portion: usize) -> Vec<String> {
        let (mut all, mut after) = (Vec::new(), None::<Box<str>>);
        loop {
            let (found, next) = store.matching(filter, after.as_deref(), portion, Time(0));
            all.extend(found.iter().map(|m| m.topic.to_string()));
            if next.is_none() {
                return all;
            }
            assert!(
                next > after || after.is_none() || !found.is_empty(),
                "no progress after {after:?}"
            );
            after = next;
        }
    }

    #[test]
    fn matches_as_filter_matches_does_in_any_portion() {
        let store = Retained::new(RetainedLimits::default());
        let names = [
            "a", "a/b", "a/b/c", "a/c", "b", "a!", "a!/x", "$s/a", "/", "//", "/a", "a/", "b/b/b",
            "é/b",
        ];
        for name in names {
            store.set(&message(name, "x", None), Time(0)).unwrap();
        }
        for filter in [
            "#", "+", "a/#", "a/+", "+/b", "+/+", "/+", "+/#", "a", "$s/#", "+/b/#", "a/b/c/#", "x",
        ] {
            let mut expected: Vec<&str> = names
                .into_iter()
                .filter(|n| headgate_topics::filter_matches(filter, n))
                .collect();
            expected.sort_unstable();
            for portion in 1..=names.len() + 1 {
                let mut found = topics(&store, filter, portion);
                found.sort_unstable();
                assert_eq!(found, expected, "{filter} in portions of {portion}");
            }
        }
    }

    #[test]
    fn one_call_visits_a_bounded_number_of_levels_and_all_calls_find_all() {
        let store = Retained::new(RetainedLimits::default());
        for i in 0..6_000 {
            store
                .set(&message(&format!("d/{i}/t"), "x", None), Time(0))
                .unwrap();
        }
        store
            .set(&message("d/3000/hit", "x", None), Time(0))
            .unwrap();
        assert_eq!(topics(&store, "d/+/hit", 10), ["d/3000/hit"]);
        assert_eq!(topics(&store, "#", 100).len(), 6_001);
        let (_, next) = store.matching("d/+/hit", None, 10, Time(0));
        assert!(next.is_some());
    }

    #[test]
    fn limits_hold_and_removal_gives_all_back() {
        let store = Retained::new(RetainedLimits {
            messages: 2,
            bytes: 10_000,
        });
        store.set(&message("a/b/c", "1", None), Time(0)).unwrap();
        store
            .set(&message("a/b", "1", Some(Time(5_000))), Time(0))
            .unwrap();
        assert_eq!(
            store.set(&message("c", "1", None), Time(0)),
            Err(RetainedFull::Messages)
        );
        store
            .set(&message("a/b", "longer", Some(Time(6_000))), Time(0))
            .unwrap();
        // [MQTT-3.3.2-5]: the expired one makes room.
        store.set(&message("c", "1", None), Time(6_000)).unwrap();
        assert_eq!(topics(&store, "#", 9), ["a/b/c", "c"]);
        let large = "x".repeat(10_000);
        assert_eq!(
            store.set(&message("c", &large, None), Time(0)),
            Err(RetainedFull::Bytes)
        );
        // [MQTT-3.3.1-6]
        store.set(&message("a/b/c", "", None), Time(0)).unwrap();
        store.set(&message("c", "", None), Time(0)).unwrap();
        store.set(&message("never", "", None), Time(0)).unwrap();
        assert_eq!((store.len(), store.bytes()), (0, 0));
    }

    #[test]
    fn a_restore_is_not_cut_and_what_does_not_grow_is_taken_above_the_limits() {
        let limits = RetainedLimits {
            messages: 1,
            bytes: 10_000,
        };
        let store = Retained::new(limits);
        store.begin_loading();
        let all = ["a", "b", "c"].map(|topic| message(topic, "12", None));
        assert_eq!(store.restore(all, Time(0)), 3);
        store.finish_loading();
        assert!(store.is_above_limits());
        assert_eq!(topics(&store, "#", 9), ["a", "b", "c"]);
        let new = message("d", "1", None);
        assert_eq!(store.set(&new, Time(0)), Err(RetainedFull::Messages));
        store.set(&message("b", "21", None), Time(0)).unwrap();
        for topic in ["a", "b", "c"] {
            store.set(&message(topic, "", None), Time(0)).unwrap();
        }
        assert!(!store.is_above_limits());
        store.set(&new, Time(0)).unwrap();
    }

    /// A full store neither keeps the server from telling its state, nor do its topics take the clients' room.
    #[test]
    fn the_servers_own_topics_have_room_of_their_own() {
        let one = message("a", "1", None);
        let limits = RetainedLimits {
            messages: 1,
            bytes: u64::from(one.cost()) + NODE_BYTES,
        };
        let store = Retained::new(limits);
        let own = ["$SYS/broker/uptime", "$SYS/broker/version", "$SYS"];
        store.set(&message(own[0], "1", None), Time(0)).unwrap();
        store.set(&one, Time(0)).unwrap();
        store.set(&message(own[1], "1", None), Time(0)).unwrap();
        store.set(&message(own[2], "1", None), Time(0)).unwrap();
        let more = message("$SYSTEM", "1", None);
        assert_eq!(store.set(&more, Time(0)), Err(RetainedFull::Messages));
        assert_eq!(store.len(), 4);
        for topic in own {
            store.set(&message(topic, "", None), Time(0)).unwrap();
        }
        assert_eq!((store.len(), store.bytes()), (1, limits.bytes));
    }
}
