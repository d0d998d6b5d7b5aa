//! Shared Subscriptions (§4.8.2): one member of a group gets a message, and another only if that one leaves it behind.

use headgate_codec::{Publish, QoS, Version};
use headgate_core::Time;
use std::collections::BTreeMap;

use super::{
    Model, SessionNo, number_of,
    route::Matched,
    topics::{matches, shared},
};
use crate::network::LinkId;

/// A message that one member of a group is to get.
#[derive(Debug)]
pub(super) struct Share {
    n: usize,
    /// The whole Topic Filter.
    filter: String,
    expires_at: Option<Time>,
    /// Members that could have got it, all with QoS > 0.
    members: Vec<SessionNo>,
    must: bool,
    /// To whom it was sent for the first time, where and how.
    taken: Vec<(SessionNo, LinkId, QoS)>,
    received: u32,
}

impl Share {
    /// It is of this message, and no member has been sent it.
    pub(super) fn is_untaken(&self, n: usize, filter: &str) -> bool {
        self.n == n && self.filter == filter && self.taken.is_empty()
    }

    pub(super) fn take(&mut self, session: SessionNo, link: LinkId, qos: QoS) {
        self.taken.push((session, link, qos));
    }
}

impl Model {
    /// Notes for each group that one of its members gets a message.
    pub(super) fn route_shared(&mut self, n: usize, expires_at: Option<Time>) -> Matched {
        let mut matched = Matched::default();
        let message = &self.messages[n];
        let mut groups: BTreeMap<&str, (Vec<SessionNo>, QoS)> = BTreeMap::new();
        for &session in self.current.iter().flatten() {
            for (whole, subscribed) in &self.sessions[session].subscriptions {
                if !shared(whole).is_some_and(|filter| matches(filter, message.topic)) {
                    continue;
                }
                matched.maybe = true;
                matched.surely |= self.is_certain(session);
                let group = groups.entry(whole).or_insert((Vec::new(), message.qos));
                group.0.push(session);
                group.1 = group.1.min(subscribed.qos);
            }
        }
        let shares = groups.into_iter().map(|(filter, (members, qos))| Share {
            n,
            filter: filter.to_owned(),
            expires_at,
            must: qos > QoS::AtMostOnce && expires_at.is_none(),
            members,
            taken: Vec::new(),
            received: 0,
        });
        self.shares.extend(shares);
        matched
    }

    /// What a group is to get and a PUBLISH to one of its members meets; the message.
    pub(super) fn find_share(
        &mut self,
        link: LinkId,
        session: SessionNo,
        (packet, topic): (&Publish, &str),
    ) -> Option<(usize, usize)> {
        let fits = |index: &usize| self.share_fits(&self.shares[*index], session, packet, topic);
        let fitting: Vec<usize> = (0..self.shares.len()).filter(fits).collect();
        let is_untaken = |index: &&usize| self.shares[**index].taken.is_empty();
        let is_left = |index: &&usize| {
            let taken = &self.shares[**index].taken;
            taken.iter().all(|taken| self.is_left(*taken, link))
        };
        let index = fitting
            .iter()
            .find(is_untaken)
            .or_else(|| fitting.iter().find(is_left));
        let index = match index.copied() {
            Some(index) => index,
            None => self.exchange(&fitting)?,
        };
        let share = &mut self.shares[index];
        share.taken.push((session, link, packet.qos));
        Some((index, share.n))
    }

    /// What a group is to get of a message, and nobody has been sent. What the session was sent before may have been taken for
    /// this group's and was another's, which looks alike: then that one's is open still.
    pub(super) fn share_of(
        &self,
        session: SessionNo,
        n: usize,
        filter: &str,
        qos: QoS,
    ) -> Option<usize> {
        let all = || (0..self.shares.len()).filter(|index| self.shares[*index].n == n);
        let own = all().find(|index| self.shares[*index].is_untaken(n, filter));
        own.or_else(|| {
            let is_mistaken = |share: &Share| {
                share.filter == filter && share.taken.iter().all(|(to, _, _)| *to == session)
            };
            all().find(|index| is_mistaken(&self.shares[*index]))?;
            all().find(|index| {
                let other = &self.shares[*index];
                other.taken.is_empty() && self.has_granted(other, session, qos, None)
            })
        })
    }

    /// Groups with the same options look alike: what was taken for one of `fitting` may have been another's, which
    /// leaves room.
    fn exchange(&mut self, fitting: &[usize]) -> Option<usize> {
        for &index in fitting {
            let [(former, link, qos)] = self.shares[index].taken[..] else {
                continue;
            };
            let n = self.shares[index].n;
            let other = self.shares.iter().position(|other| {
                other.n == n && other.taken.is_empty() && self.has_granted(other, former, qos, None)
            });
            if let Some(other) = other {
                self.shares[other].taken.push((former, link, qos));
                self.shares[index].taken.clear();
                return Some(index);
            }
        }
        None
    }

    /// MQTT 3.x has no Subscription Identifiers.
    fn share_fits(&self, share: &Share, session: SessionNo, packet: &Publish, topic: &str) -> bool {
        let message = &self.messages[share.n];
        let link = self.sessions[session].link;
        let is_v5 = link.is_some_and(|link| self.conns[link].version == Version::V5);
        let ids = packet.properties.iter().flat_map(|p| &p.subscription_ids);
        let ids: Vec<u32> = ids.copied().collect();
        number_of(&packet.payload).is_none_or(|n| n == share.n)
            && message.topic == topic
            && message.payload == packet.payload
            && (message.retain || !packet.retain)
            && self.has_granted(share, session, packet.qos, is_v5.then_some(&ids[..]))
            && share.expires_at.is_none_or(|at| at > self.now)
    }

    /// The session is or was a member, and gets the message with this QoS then [MQTT-4.8.2-3], and with these
    /// Subscription Identifiers, unless it has left the group meanwhile.
    fn has_granted(
        &self,
        share: &Share,
        session: SessionNo,
        qos: QoS,
        ids: Option<&[u32]>,
    ) -> bool {
        let granted = self.sessions[session].shared_ever.get(&share.filter);
        let published = self.messages[share.n].qos;
        let fits = |(granted, id): &(QoS, u32)| {
            let is_id = ids.is_none_or(|ids| ids == [*id] || ids.is_empty());
            published.min(*granted) == qos && is_id
        };
        granted.is_some_and(|granted| granted.iter().any(fits))
    }

    /// The message may be lost, or come again.
    pub(super) fn excuse_shares(&mut self, n: usize) {
        for share in self.shares.iter_mut().filter(|share| share.n == n) {
            share.must = false;
        }
    }

    /// Whoever was sent it has left with QoS 1 unacknowledged; QoS 2 stays with its session [MQTT-4.8.2-5].
    fn is_left(&self, (_, former, qos): (SessionNo, LinkId, QoS), link: LinkId) -> bool {
        qos == QoS::AtLeastOnce && former != link && self.session_of(former).is_none()
    }

    /// The application of a member gets it.
    pub(super) fn received_share(&mut self, index: usize) {
        let n = self.shares[index].n;
        self.shares[index].received += 1;
        let all = || self.shares.iter().filter(|share| share.n == n);
        let is_once = all().all(|share| {
            share
                .taken
                .iter()
                .all(|(_, _, qos)| *qos != QoS::AtLeastOnce)
        });
        let received: u32 = all().map(|share| share.received).sum();
        assert!(
            !is_once || received as usize <= all().count(),
            "message {n} was received {received} times by {} groups",
            all().count()
        );
    }

    /// Messages that groups have got less often than there are groups, although all of their members are still there.
    pub(super) fn missing_shares(&self) -> Vec<String> {
        let is_still_there = |share: &Share, session: &SessionNo| {
            let s = &self.sessions[*session];
            let size = Self::size_max(&self.messages[share.n], &[u32::MAX >> 4]);
            !s.has_ended
                && !s.is_unordered
                && s.subscriptions.contains_key(&share.filter)
                && size <= s.packet_max_ever as usize
        };
        let mut counts: BTreeMap<usize, (u32, u32)> = BTreeMap::new();
        for share in &self.shares {
            let all = share.members.iter().all(|s| is_still_there(share, s));
            let (due, received) = counts.entry(share.n).or_default();
            *due += u32::from(share.must && all);
            *received += share.received;
        }
        let missing = counts.iter().filter(|(_, (due, received))| received < due);
        missing
            .map(|(n, (due, received))| {
                format!("message {n} for {due} groups, {received} have got it")
            })
            .collect()
    }
}
