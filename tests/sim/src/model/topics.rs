//! Topic Names and Topic Filters (MQTT 5.0 §4.7), written from the standard and not from the broker's code.

/// Whether a topic matches a filter; both are valid.
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    let filter: Vec<&str> = filter.split('/').collect();
    let topic: Vec<&str> = topic.split('/').collect();
    // [MQTT-4.7.2-1]
    if topic[0].starts_with('$') && matches!(filter[0], "#" | "+") {
        return false;
    }
    levels_match(&filter, &topic)
}

fn levels_match(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        // The parent level is included (§4.7.1.2).
        (["#"], _) => true,
        ([], []) => true,
        ([wanted, filter @ ..], [level, topic @ ..]) => {
            (*wanted == "+" || wanted == level) && levels_match(filter, topic)
        }
        _ => false,
    }
}

/// The filter of a Shared Subscription (§4.8.2), without its ShareName.
pub(super) fn shared(filter: &str) -> Option<&str> {
    let (_name, filter) = filter.strip_prefix("$share/")?.split_once('/')?;
    Some(filter)
}

/// [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1]
pub(super) fn is_filter(filter: &str) -> bool {
    let filter = shared(filter).unwrap_or(filter);
    let levels: Vec<&str> = filter.split('/').collect();
    let last = levels.len() - 1;
    let is_fine = |(i, level): (usize, &&str)| match *level {
        "#" => i == last,
        "+" => true,
        other => !other.contains(['#', '+']),
    };
    !filter.is_empty() && levels.iter().enumerate().all(is_fine)
}
