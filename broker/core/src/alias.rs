//! Topic Aliases (MQTT 5.0 §3.3.2.3.4), both ways: they live as long as the connection.

use headgate_codec::{PacketId, Publish, PublishTemplate, ReasonCode, Text};
use std::num::NonZeroU16;

use crate::{Frame, Session, hub::Hub};

/// A longer topic is sent as it is, so that what a connection's aliases hold stays small.
const TOPIC_BYTES_MAX: usize = 1_024;

/// The aliases of one connection.
#[derive(Debug, Default)]
pub(crate) struct Aliases {
    /// By the client, at index alias − 1; grows with use.
    incoming: Vec<Option<Text>>,
    /// By the server: topics, at index alias − 1. The first topics of a connection keep theirs.
    outgoing: Vec<Text>,
}

impl Hub {
    /// A PUBLISH with the topic that its alias stands for \[MQTT-3.3.2-12\], or that it gives the
    /// alias \[MQTT-3.3.2-8\] \[MQTT-3.3.2-9\].
    pub(crate) fn resolve_alias(
        &mut self,
        slot: u32,
        publish: &Publish,
        alias: NonZeroU16,
    ) -> Result<Publish, ReasonCode> {
        let index = usize::from(alias.get()) - 1;
        if index >= usize::from(self.env.limits.topic_aliases) {
            return Err(ReasonCode::TOPIC_ALIAS_INVALID);
        }
        if !publish.topic.as_bytes().is_empty() && !self.is_topic_name(&publish.topic) {
            return Err(ReasonCode::TOPIC_NAME_INVALID);
        }
        let Some(session) = self.slots.session(slot) else {
            return Err(ReasonCode::UNSPECIFIED_ERROR);
        };
        let incoming = &mut session.aliases.get_or_insert_default().incoming;
        let mut resolved = publish.clone();
        if publish.topic.as_bytes().is_empty() {
            let known = incoming.get(index).cloned().flatten();
            resolved.topic = known.ok_or(ReasonCode::PROTOCOL_ERROR)?;
        } else {
            if incoming.len() <= index {
                incoming.resize(index + 1, None);
            }
            incoming[index] = Some(publish.topic.detached());
        }
        if let Some(properties) = &mut resolved.properties {
            properties.topic_alias = None;
        }
        Ok(resolved)
    }
}

impl Session {
    /// The PUBLISH for a client that takes Topic Aliases: by alias, if the client knows the topic's
    /// \[MQTT-3.1.2-26\] \[MQTT-3.1.2-27\] \[MQTT-3.3.2-11\]. `id` is Packet Identifier and DUP where QoS > 0.
    pub(crate) fn aliased(
        &mut self,
        template: &PublishTemplate,
        topic: &Text,
        id: Option<(PacketId, bool)>,
    ) -> Option<Frame> {
        if topic.len() > TOPIC_BYTES_MAX {
            return None;
        }
        let outgoing = &mut self.aliases.get_or_insert_default().outgoing;
        let known = outgoing.iter().position(|known| known == topic);
        let alias = |index: usize| NonZeroU16::new(u16::try_from(index + 1).ok()?);
        if let Some(index) = known {
            return template.by_alias(alias(index)?, id).map(Frame::Aliased);
        }
        if outgoing.len() >= usize::from(self.alias_max) {
            return None;
        }
        let bytes = template.with_alias(alias(outgoing.len())?, id)?;
        if bytes.len() > self.packet_bytes_max as usize {
            return None;
        }
        outgoing.push(topic.detached());
        Some(Frame::Bytes(bytes))
    }
}
