//! Sessions as a store gives them back.

use headgate_codec::{QoS, Text, Version};
use headgate_core::{QueueSummary, RestoredSession, RestoredSubscription, SessionId};

/// A session of MQTT 5.0 that was connected, with one subscription and an empty queue.
pub fn stored_session(client_id: &str, filter: &str, qos: QoS) -> RestoredSession {
    RestoredSession {
        id: SessionId {
            node: 0,
            epoch: 1,
            counter: 7,
        },
        client_id: Text::from(client_id),
        epoch: 3,
        sequence: 40,
        expiry_s: 60,
        version: Version::V5,
        is_connected: true,
        expires_at: None,
        will: None,
        will_at: None,
        subscriptions: vec![RestoredSubscription {
            filter: Text::from(filter),
            options: qos as u8,
            subscription_id: None,
        }],
        received: Vec::new(),
        queue: QueueSummary::default(),
    }
}
