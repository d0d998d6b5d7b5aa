//! The options octet of a subscription as it stands in the topic table.

use headgate_codec::{QoS, SubscriptionOptions};

/// What a publisher's worker has to know of a subscription without its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Options(pub(crate) u8);

impl Options {
    const QOS: u8 = 0b11;
    /// \[MQTT-3.8.3-3\]
    pub(crate) const NO_LOCAL: u8 = 1 << 2;
    /// \[MQTT-3.3.1-13\]
    pub(crate) const RETAIN_AS_PUBLISHED: u8 = 1 << 3;
    /// The session has to look up Subscription Identifiers \[MQTT-3.3.4-3\].
    pub(crate) const HAS_ID: u8 = 1 << 4;
    /// Another filter of the session may match the same topic.
    pub(crate) const OVERLAPS: u8 = 1 << 5;
    /// Messages with QoS > 0 are recorded for the session before they are acknowledged.
    pub(crate) const PERSISTENT: u8 = 1 << 6;
    /// In the topic table: a group of a Shared Subscription, not a session. In a delivery: its session
    /// gets it as a member of a group.
    pub(crate) const SHARED: u8 = 1 << 7;

    pub(crate) fn new(options: SubscriptionOptions, has_id: bool) -> Self {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        Self(
            options.qos as u8
                | flag(options.no_local, Self::NO_LOCAL)
                | flag(options.retain_as_published, Self::RETAIN_AS_PUBLISHED)
                | flag(has_id, Self::HAS_ID),
        )
    }

    pub(crate) fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    pub(crate) fn with(self, bit: u8, on: bool) -> Self {
        Self(if on { self.0 | bit } else { self.0 & !bit })
    }

    pub(crate) fn qos(self) -> QoS {
        Self::qos_of(self.0)
    }

    /// The QoS in an options octet, here as on the wire.
    pub(crate) fn qos_of(octet: u8) -> QoS {
        match octet & Self::QOS {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        }
    }

    /// Of two overlapping subscriptions, the one delivery: the higher QoS \[MQTT-3.3.4-2\] and
    /// what either asks for.
    pub(crate) fn merge(self, other: Self) -> Self {
        Self((self.0 | other.0) & !Self::QOS | (self.0 & Self::QOS).max(other.0 & Self::QOS))
    }
}

/// Some topic matches both filters. Both are valid.
pub(crate) fn filters_overlap(a: &str, b: &str) -> bool {
    // A wildcard at the first level doesn't match topics with "$" [MQTT-4.7.2-1].
    if a.starts_with('$') != b.starts_with('$') {
        return false;
    }
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (None, None) | (Some("#"), _) | (_, Some("#")) => return true,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headgate_topics::{filter_matches, validate_filter};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn filters_overlap_when_a_topic_matches_both(
            a in "([ab+$]|[ab$])(/[ab+]?){0,2}(/#)?|#|\\+",
            b in "([ab+$]|[ab$])(/[ab+]?){0,2}(/#)?|#|\\+",
            topic in "[ab$](/[ab]?){0,2}|(/[ab]?){1,2}",
        ) {
            prop_assert!(validate_filter(&a).is_ok() && validate_filter(&b).is_ok());
            if filter_matches(&a, &topic) && filter_matches(&b, &topic) {
                prop_assert!(filters_overlap(&a, &b), "{a} {b} {topic}");
            }
        }
    }

    #[test]
    fn overlapping_subscriptions_give_the_higher_qos_and_what_either_asks_for() {
        let of = |qos, bits: u8| Options(qos as u8 | bits);
        let merged = of(QoS::AtMostOnce, Options::RETAIN_AS_PUBLISHED)
            .merge(of(QoS::AtLeastOnce, Options::HAS_ID));
        let both = Options::RETAIN_AS_PUBLISHED | Options::HAS_ID;
        assert_eq!(merged, of(QoS::AtLeastOnce, both));
        let merged = of(QoS::ExactlyOnce, 0).merge(of(QoS::AtLeastOnce, 0));
        assert_eq!(merged, of(QoS::ExactlyOnce, 0));
    }

    #[test]
    fn a_bit_is_as_it_was_set_last() {
        let none = Options::default();
        let once = none.with(Options::PERSISTENT, true);
        assert!(once.has(Options::PERSISTENT) && !once.has(Options::NO_LOCAL));
        assert_eq!(once.with(Options::PERSISTENT, true), once);
        assert_eq!(once.with(Options::PERSISTENT, false), none);
    }

    #[test]
    fn filters_that_share_no_topic_do_not_overlap() {
        for (a, b) in [
            ("a", "b"),
            ("a/b", "a/+/c"),
            ("+", "a/b"),
            ("$s/a", "#"),
            ("a/+", "a"),
        ] {
            assert!(!filters_overlap(a, b), "{a} {b}");
        }
    }
}
