//! Topic names and topic filters: what is well formed, and what matches what (MQTT 5 §4.7).

use thiserror::Error;

/// Longest topic name or topic filter, in bytes: the length of an MQTT string is a two-byte integer (§1.5.4) [MQTT-4.7.3-3].
pub const TOPIC_BYTES_MAX: usize = 65_535;

/// Most levels a topic name or a topic filter may have. MQTT sets no limit; this one bounds the work of a match
/// (one probe per level and wildcard path) and lets it run without allocating. Default and maximum: 128.
pub const LEVELS_MAX: usize = 128;

/// Why a topic filter is refused. The peer's fault; the answer is reason code 0x8F, Topic Filter invalid.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FilterError {
    /// [MQTT-4.7.3-1]
    #[error("the topic filter is empty; it needs at least one character")]
    Empty,
    /// [MQTT-4.7.3-3]
    #[error("the topic filter has {0} bytes; at most 65535 can be encoded")]
    TooLong(usize),
    /// [MQTT-4.7.3-2]
    #[error("the topic filter contains a null character (U+0000)")]
    Null,
    /// More than [`LEVELS_MAX`] levels.
    #[error("the topic filter has more than {LEVELS_MAX} levels, the limit of this server")]
    TooManyLevels,
    /// [MQTT-4.7.1-1]
    #[error("`#` must stand alone on the last level of the topic filter")]
    MultiLevelWildcard,
    /// [MQTT-4.7.1-2]
    #[error("`+` must fill a whole level of the topic filter")]
    SingleLevelWildcard,
}

/// Why a topic name is refused. The peer's fault; the answer is reason code 0x90, Topic Name invalid.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum TopicNameError {
    /// [MQTT-4.7.3-1]
    #[error("the topic name is empty; it needs at least one character")]
    Empty,
    /// [MQTT-4.7.3-3]
    #[error("the topic name has {0} bytes; at most 65535 can be encoded")]
    TooLong(usize),
    /// [MQTT-4.7.3-2]
    #[error("the topic name contains a null character (U+0000)")]
    Null,
    /// More than [`LEVELS_MAX`] levels.
    #[error("the topic name has more than {LEVELS_MAX} levels, the limit of this server")]
    TooManyLevels,
    /// [MQTT-3.3.2-2], [MQTT-4.7.0-1]
    #[error("the topic name contains a wildcard (`+` or `#`); wildcards belong in topic filters")]
    Wildcard,
}

/// Checks a topic filter against MQTT 5 §4.7.1 and §4.7.3 and against [`LEVELS_MAX`].
///
/// Shared subscriptions (`$share/…`, §4.8.2) are no special case here: the caller takes them apart first.
///
/// # Errors
/// The first rule that the filter breaks.
pub fn validate_filter(filter: &str) -> Result<(), FilterError> {
    if filter.is_empty() {
        return Err(FilterError::Empty);
    }
    if filter.len() > TOPIC_BYTES_MAX {
        return Err(FilterError::TooLong(filter.len()));
    }
    let mut levels = 1;
    let mut level_start = 0;
    let bytes = filter.as_bytes();
    for (at, &byte) in bytes.iter().enumerate() {
        match byte {
            0 => return Err(FilterError::Null),
            b'/' => {
                levels += 1;
                level_start = at + 1;
            }
            b'#' if at != level_start || at + 1 != bytes.len() => {
                return Err(FilterError::MultiLevelWildcard);
            }
            b'+' if at != level_start || bytes.get(at + 1).is_some_and(|&next| next != b'/') => {
                return Err(FilterError::SingleLevelWildcard);
            }
            _ => {}
        }
    }
    if levels > LEVELS_MAX {
        Err(FilterError::TooManyLevels)
    } else {
        Ok(())
    }
}

/// Checks a topic name against MQTT 5 §4.7.3 and §3.3.2.1 and against [`LEVELS_MAX`].
///
/// # Errors
/// The first rule that the name breaks.
pub fn validate_topic_name(topic: &str) -> Result<(), TopicNameError> {
    if topic.is_empty() {
        return Err(TopicNameError::Empty);
    }
    if topic.len() > TOPIC_BYTES_MAX {
        return Err(TopicNameError::TooLong(topic.len()));
    }
    let mut levels = 1;
    for byte in topic.bytes() {
        match byte {
            0 => return Err(TopicNameError::Null),
            b'+' | b'#' => return Err(TopicNameError::Wildcard),
            b'/' => levels += 1,
            _ => {}
        }
    }
    if levels > LEVELS_MAX {
        Err(TopicNameError::TooManyLevels)
    } else {
        Ok(())
    }
}

/// Whether `topic` matches `filter`, one against one (MQTT 5 §4.7).
///
/// Both must be valid. For one topic against many filters use [`Table`](crate::Table).
#[must_use]
pub fn filter_matches(filter: &str, topic: &str) -> bool {
    // Octet by octet, without any normalization [MQTT-4.7.3-4].
    // A wildcard on the first level doesn't match names that begin with `$` [MQTT-4.7.2-1].
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut names = topic.split('/');
    for level in filter.split('/') {
        if level == "#" {
            // It stands for any number of levels, none included: `a/#` matches `a` (§4.7.1.2).
            return true;
        }
        match names.next() {
            Some(name) if level == "+" || level == name => {}
            _ => return false,
        }
    }
    names.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [MQTT-4.7.1-1], [MQTT-4.7.1-2]: the examples of §4.7.1.
    #[test]
    fn wildcards_fill_whole_levels() {
        for filter in [
            "#",
            "sport/tennis/#",
            "+",
            "+/tennis/#",
            "sport/+/player1",
            "/+",
            "/",
            "a//b",
            "$SYS/#",
            "+/+",
        ] {
            assert_eq!(validate_filter(filter), Ok(()), "{filter}");
        }
        for filter in ["sport/tennis#", "sport/tennis/#/ranking", "##", "a#"] {
            assert_eq!(
                validate_filter(filter),
                Err(FilterError::MultiLevelWildcard),
                "{filter}"
            );
        }
        for filter in ["sport+", "+a", "a/+b", "a/b+/c", "++", "+#"] {
            assert_eq!(
                validate_filter(filter),
                Err(FilterError::SingleLevelWildcard),
                "{filter}"
            );
        }
    }

    /// [MQTT-4.7.3-1], [MQTT-4.7.3-2], [MQTT-4.7.3-3], and our own limit on levels.
    #[test]
    fn lengths_nulls_and_levels() {
        assert_eq!(validate_filter(""), Err(FilterError::Empty));
        assert_eq!(validate_topic_name(""), Err(TopicNameError::Empty));
        assert_eq!(validate_filter("a\0"), Err(FilterError::Null));
        assert_eq!(validate_topic_name("a\0"), Err(TopicNameError::Null));
        let long = "x".repeat(TOPIC_BYTES_MAX);
        assert_eq!(validate_filter(&long), Ok(()));
        assert_eq!(validate_topic_name(&long), Ok(()));
        let long = "x".repeat(TOPIC_BYTES_MAX + 1);
        assert_eq!(validate_filter(&long), Err(FilterError::TooLong(65_536)));
        assert_eq!(
            validate_topic_name(&long),
            Err(TopicNameError::TooLong(65_536))
        );
        let deep = "/".repeat(LEVELS_MAX - 1);
        assert_eq!(validate_filter(&deep), Ok(()));
        assert_eq!(validate_topic_name(&deep), Ok(()));
        let deep = "/".repeat(LEVELS_MAX);
        assert_eq!(validate_filter(&deep), Err(FilterError::TooManyLevels));
        assert_eq!(
            validate_topic_name(&deep),
            Err(TopicNameError::TooManyLevels)
        );
    }

    /// [MQTT-4.7.0-1]
    #[test]
    fn names_have_no_wildcards() {
        for topic in ["a/+", "#", "a+b", "a#"] {
            assert_eq!(
                validate_topic_name(topic),
                Err(TopicNameError::Wildcard),
                "{topic}"
            );
        }
        assert_eq!(validate_topic_name("a b/ü/$x"), Ok(()));
    }

    /// The examples of §4.7.1 and §4.7.2 [MQTT-4.7.2-1].
    #[test]
    fn matching() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            (
                "sport/tennis/player1/#",
                "sport/tennis/player1/ranking",
                true,
            ),
            (
                "sport/tennis/player1/#",
                "sport/tennis/player1/score/wimbledon",
                true,
            ),
            ("sport/tennis/player1/#", "sport/tennis/player2", false),
            ("sport/#", "sport", true),
            ("#", "sport", true),
            ("#", "/", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/a", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/", true),
            ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
            ("a/+/#", "a/$x", true),
            ("Accounts", "ACCOUNTS", false),
            ("a", "a/", false),
            ("+/#", "a", true),
        ] {
            assert_eq!(filter_matches(filter, topic), expected, "{filter} {topic}");
        }
    }
}
