//! Application Messages: shared by reference between sessions, encoded once per kind of receiver.

use bytes::Bytes;
use headgate_codec::{Publish, PublishProperties, PublishTemplate, QoS, Text, Version, Will};
use std::sync::Arc;

use crate::Time;

/// An Application Message in buffers of its own, independent of the datagram that it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic Name.
    pub topic: Text,
    /// Application Message.
    pub payload: Bytes,
    /// QoS with which it was published.
    pub qos: QoS,
    /// RETAIN as it was published.
    pub retain: bool,
    /// When its Message Expiry Interval will have passed.
    pub expires_at: Option<Time>,
    /// The publisher's properties.
    pub properties: Option<Box<PublishProperties>>,
}

impl Message {
    /// Takes a message out of a PUBLISH that arrived at `now`.
    pub fn from_publish(publish: &Publish, now: Time) -> Self {
        Self::new(
            (&publish.topic, &publish.payload),
            (publish.qos, publish.retain),
            publish.properties.as_deref(),
            now,
        )
    }

    /// Takes the message out of a will that is published at `now`.
    pub fn from_will(will: &Will, now: Time) -> Self {
        Self::new(
            (&will.topic, &will.payload),
            (will.qos, will.retain),
            will.properties.as_deref(),
            now,
        )
    }

    /// What it costs in memory, bytes, about.
    pub fn cost(&self) -> u32 {
        let properties = self.properties.as_deref().map_or(0, properties_cost);
        let bytes = self.topic.as_bytes().len() + self.payload.len() + properties + OVERHEAD_BYTES;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// The Message Expiry Interval has passed \[MQTT-3.3.2-5\].
    pub fn is_expired(&self, now: Time) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    fn new(
        (topic, payload): (&Text, &Bytes),
        (qos, retain): (QoS, bool),
        properties: Option<&PublishProperties>,
        now: Time,
    ) -> Self {
        let expires_at = properties
            .and_then(|p| p.message_expiry_s)
            .map(|s| now.after_s(s));
        Self {
            topic: topic.detached(),
            payload: Bytes::copy_from_slice(payload),
            qos,
            retain,
            expires_at,
            properties: properties.map(|p| Box::new(detached(p))),
        }
    }
}

/// Allocation headers, `Arc`, queue entry.
const OVERHEAD_BYTES: usize = 160;

fn properties_cost(p: &PublishProperties) -> usize {
    let text = |t: &Option<Text>| t.as_ref().map_or(0, |t| t.as_bytes().len());
    let user: usize = p
        .user_properties
        .iter()
        .map(|(name, value)| name.as_bytes().len() + value.as_bytes().len() + 64)
        .sum();
    size_of::<PublishProperties>()
        + text(&p.response_topic)
        + text(&p.content_type)
        + p.correlation_data.as_ref().map_or(0, Bytes::len)
        + user
}

/// Properties that share no buffer with the packet, unaltered \[MQTT-3.3.2-4\] \[MQTT-3.3.2-15\]
/// \[MQTT-3.3.2-16\] \[MQTT-3.3.2-17\] \[MQTT-3.3.2-20\] and in their order \[MQTT-3.3.2-18\].
fn detached(p: &PublishProperties) -> PublishProperties {
    PublishProperties {
        payload_format_utf8: p.payload_format_utf8,
        message_expiry_s: p.message_expiry_s,
        topic_alias: None,
        response_topic: p.response_topic.as_ref().map(Text::detached),
        correlation_data: p.correlation_data.as_deref().map(Bytes::copy_from_slice),
        user_properties: p
            .user_properties
            .iter()
            .map(|(name, value)| (name.detached(), value.detached()))
            .collect(),
        subscription_ids: Vec::new(),
        content_type: p.content_type.as_ref().map(Text::detached),
    }
}

/// One message on its way to many sessions: what they can share is made once, when the first of
/// them needs it.
pub(crate) struct Fanout<'a> {
    source: Source<'a>,
    /// The shared copy, for queues, other workers and the retained store.
    message: Option<Arc<Message>>,
    /// By version (3.x, 5.0), QoS and RETAIN.
    templates: [Option<PublishTemplate>; 12],
    now: Time,
}

enum Source<'a> {
    Publish(&'a Publish),
    Message(&'a Message),
}

impl<'a> Fanout<'a> {
    /// Of a PUBLISH that has just arrived.
    pub(crate) fn of_publish(publish: &'a Publish, now: Time) -> Self {
        Self {
            source: Source::Publish(publish),
            message: None,
            templates: Default::default(),
            now,
        }
    }

    /// Of a message that may have waited.
    pub(crate) fn of_message(message: &'a Arc<Message>, now: Time) -> Self {
        Self {
            source: Source::Message(message),
            message: Some(Arc::clone(message)),
            templates: Default::default(),
            now,
        }
    }

    /// QoS of the message.
    pub(crate) fn qos(&self) -> QoS {
        match self.source {
            Source::Publish(p) => p.qos,
            Source::Message(m) => m.qos,
        }
    }

    /// RETAIN of the message.
    pub(crate) fn retain(&self) -> bool {
        match self.source {
            Source::Publish(p) => p.retain,
            Source::Message(m) => m.retain,
        }
    }

    /// Topic Name.
    pub(crate) fn topic(&self) -> &'a Text {
        match self.source {
            Source::Publish(p) => &p.topic,
            Source::Message(m) => &m.topic,
        }
    }

    /// The shared message.
    pub(crate) fn message(&mut self) -> &Arc<Message> {
        let (source, now) = (&self.source, self.now);
        self.message.get_or_insert_with(|| match source {
            Source::Publish(p) => Arc::new(Message::from_publish(p, now)),
            Source::Message(m) => Arc::new((*m).clone()),
        })
    }

    /// The packet for a kind of receiver, without Subscription Identifiers.
    pub(crate) fn template(
        &mut self,
        version: Version,
        qos: QoS,
        retain: bool,
    ) -> &PublishTemplate {
        let index = usize::from(version == Version::V5) * 6
            + usize::from(qos as u8) * 2
            + usize::from(retain);
        let (source, now) = (&self.source, self.now);
        self.templates[index].get_or_insert_with(|| match source {
            Source::Publish(p) => PublishTemplate::new(
                version,
                qos,
                retain,
                &p.topic,
                p.properties.as_deref(),
                &[],
                &p.payload,
            ),
            Source::Message(m) => encode(m, version, (qos, retain), &[], now),
        })
    }
}

/// The packet of one message, with what is left of its Message Expiry Interval \[MQTT-3.3.2-6\].
pub(crate) fn encode(
    message: &Message,
    version: Version,
    (qos, retain): (QoS, bool),
    subscription_ids: &[u32],
    now: Time,
) -> PublishTemplate {
    let properties = message.properties.as_deref();
    let adjusted = match (properties, message.expires_at) {
        (Some(p), Some(at)) if version == Version::V5 => {
            let left_s = u32::try_from(at.0.saturating_sub(now.0).div_ceil(1_000))
                .unwrap_or(u32::MAX)
                .max(1);
            (p.message_expiry_s != Some(left_s)).then(|| PublishProperties {
                message_expiry_s: Some(left_s),
                ..p.clone()
            })
        }
        _ => None,
    };
    let properties = adjusted.as_ref().or(properties);
    PublishTemplate::new(
        version,
        qos,
        retain,
        &message.topic,
        properties,
        subscription_ids,
        &message.payload,
    )
}
