//! Properties given with `-D packet name value`.

use super::options;
use bytes::Bytes;
use headgate_codec::{
    ConnectProperties, DisconnectProperties, PublishProperties, Text, UserProperty,
};
use std::str::FromStr;

/// The properties for all packets that a command sends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Properties {
    pub(super) connect: ConnectProperties,
    pub(super) publish: PublishProperties,
    pub(super) will: PublishProperties,
    pub(super) will_delay_s: Option<u32>,
    pub(super) subscription_id: Option<u32>,
    pub(super) subscribe_user: Vec<UserProperty>,
    pub(super) disconnect: DisconnectProperties,
}

impl Properties {
    /// Takes the words of all `-D` flags, one after the other: packet, name, value; of
    /// `user-property` name and value.
    pub(super) fn parse(words: &[String]) -> Result<Self, String> {
        let mut properties = Self::default();
        let mut words = words.iter().map(String::as_str);
        while let Some(packet) = words.next() {
            let mut word = || {
                words
                    .next()
                    .ok_or_else(|| format!("-D {packet}: packet, name and value are expected"))
            };
            let name = word()?;
            let value = word()?;
            let wrong = |why: String| format!("-D {packet} {name} {value}: {why}");
            if name == "user-property" {
                let pair = (text(value).map_err(wrong)?, text(word()?).map_err(wrong)?);
                properties.user(packet, pair).map_err(wrong)?;
            } else {
                properties.set(packet, name, value).map_err(wrong)?;
            }
        }
        Ok(properties)
    }

    fn user(&mut self, packet: &str, pair: UserProperty) -> Result<(), String> {
        let list = match packet {
            "connect" => &mut self.connect.user_properties,
            "publish" => &mut self.publish.user_properties,
            "will" => &mut self.will.user_properties,
            "subscribe" => &mut self.subscribe_user,
            "disconnect" => &mut self.disconnect.user_properties,
            _ => return Err(PACKETS.into()),
        };
        list.push(pair);
        Ok(())
    }

    fn set(&mut self, packet: &str, name: &str, value: &str) -> Result<(), String> {
        match packet {
            "connect" => self.set_connect(name, value),
            "publish" => set_message(&mut self.publish, name, value),
            "will" if name == "will-delay-interval" => number(&mut self.will_delay_s, value, 0),
            "will" => set_message(&mut self.will, name, value),
            "subscribe" if name == "subscription-identifier" => {
                number(&mut self.subscription_id, value, 1)?;
                let max = headgate_codec::REMAINING_LENGTH_MAX as u32;
                if self.subscription_id.is_some_and(|id| id > max) {
                    return Err(format!("at most {max}"));
                }
                Ok(())
            }
            "disconnect" if name == "session-expiry-interval" => {
                number(&mut self.disconnect.session_expiry_s, value, 0)
            }
            "subscribe" | "disconnect" => Err("the packet has no such property".into()),
            _ => Err(PACKETS.into()),
        }
    }

    fn set_connect(&mut self, name: &str, value: &str) -> Result<(), String> {
        let p = &mut self.connect;
        match name {
            "session-expiry-interval" => number(&mut p.session_expiry_s, value, 0),
            "receive-maximum" => number(&mut p.receive_maximum, value, 1),
            "maximum-packet-size" => number(&mut p.maximum_packet_size, value, 1),
            "request-problem-information" => flag(&mut p.request_problem_information, value),
            "request-response-information" => flag(&mut p.request_response_information, value),
            _ => Err(
                "session-expiry-interval, receive-maximum, maximum-packet-size, \
                request-problem-information, request-response-information and user-property are \
                what CONNECT can have here"
                    .into(),
            ),
        }
    }
}

const PACKETS: &str = "connect, publish, subscribe, will or disconnect is expected first";

/// A property of a message or of the Will.
fn set_message(p: &mut PublishProperties, name: &str, value: &str) -> Result<(), String> {
    match name {
        "payload-format-indicator" => flag(&mut p.payload_format_utf8, value),
        "message-expiry-interval" => number(&mut p.message_expiry_s, value, 0),
        "content-type" => once(&mut p.content_type, text(value)?),
        "response-topic" => {
            headgate_topics::validate_topic_name(value).map_err(|error| error.to_string())?;
            once(&mut p.response_topic, text(value)?)
        }
        "correlation-data" if value.len() > Text::LEN_MAX => Err("at most 65,535 bytes".into()),
        "correlation-data" => once(
            &mut p.correlation_data,
            Bytes::copy_from_slice(value.as_bytes()),
        ),
        _ => Err(
            "payload-format-indicator, message-expiry-interval, content-type, response-topic, \
            correlation-data and user-property are what a message can have here"
                .into(),
        ),
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err("given twice".into()),
    }
}

fn number<T: FromStr + PartialOrd + From<u8>>(
    slot: &mut Option<T>,
    value: &str,
    min: u8,
) -> Result<(), String> {
    let parsed = value.parse().ok().filter(|number| *number >= T::from(min));
    let number = parsed.ok_or_else(|| {
        let max = if size_of::<T>() == 2 {
            "65535"
        } else {
            "4294967295"
        };
        format!("a number from {min} to {max} is expected")
    })?;
    once(slot, number)
}

fn flag(slot: &mut Option<bool>, value: &str) -> Result<(), String> {
    match value {
        "0" => once(slot, false),
        "1" => once(slot, true),
        _ => Err("0 or 1 is expected".into()),
    }
}

fn text(value: &str) -> Result<Text, String> {
    options::text("a string", value).map_err(|failure| failure.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Properties, String> {
        Properties::parse(&words.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_of_several_flags_are_told_apart() {
        let p = parse(
            "publish user-property k v connect receive-maximum 5 publish content-type t \
             will will-delay-interval 3 publish user-property k v2",
        )
        .expect("valid");
        let pair = |v: &str| (Text::from("k"), Text::from(v));
        assert_eq!(p.publish.user_properties, [pair("v"), pair("v2")]);
        assert_eq!(p.publish.content_type, Some("t".into()));
        assert_eq!(
            (p.connect.receive_maximum, p.will_delay_s),
            (Some(5), Some(3))
        );
    }

    #[test]
    fn wrong_properties_are_refused() {
        for (words, says) in [
            ("publish content-type", "packet, name and value"),
            ("connect receive-maximum 0", "from 1 to 65535"),
            ("connect topic-alias 1", "what CONNECT can have"),
            ("publish will-delay-interval 1", "what a message can have"),
            ("pubish content-type x", "connect, publish"),
            (
                "publish content-type a publish content-type b",
                "given twice",
            ),
            ("publish response-topic a/#", "a/#"),
            (
                "subscribe subscription-identifier 268435456",
                "at most 268435455",
            ),
            ("subscribe content-type x", "no such property"),
        ] {
            let error = parse(words).expect_err(words);
            assert!(error.contains(says), "{words}: {error}");
        }
    }
}
