//! How `headgate sub -F` prints a message.

use headgate_codec::{Publish, PublishProperties};
use serde_json::{Map, Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// A format, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Bytes(Vec<u8>),
    /// The letter behind `%`.
    Field(char),
}

/// The letters that mean something.
const FIELDS: &str = "tpxXlqrmUjCRDEFPS";

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut bytes = Vec::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '%' => match letters.next() {
                    Some('%') => bytes.push(b'%'),
                    Some(field) if FIELDS.contains(field) => {
                        pieces.push(Piece::Bytes(std::mem::take(&mut bytes)));
                        pieces.push(Piece::Field(field));
                    }
                    Some(other) => return Err(format!("%{other} is none of %{FIELDS}")),
                    None => return Err("a single % at the end; %% prints one".into()),
                },
                '\\' => bytes.push(match letters.next() {
                    Some('n') => b'\n',
                    Some('r') => b'\r',
                    Some('t') => b'\t',
                    Some('0') => 0,
                    Some('a') => 7,
                    Some('e') => 0x1b,
                    Some('\\') => b'\\',
                    _ => return Err(r"\n \r \t \0 \a \e and \\ are known".into()),
                }),
                other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        pieces.push(Piece::Bytes(bytes));
        Ok(Self(pieces))
    }
}

impl Format {
    /// Appends the message to `out`.
    pub fn write(&self, message: &Publish, out: &mut Vec<u8>) {
        for piece in &self.0 {
            match piece {
                Piece::Bytes(bytes) => out.extend_from_slice(bytes),
                Piece::Field('p') => out.extend_from_slice(&message.payload),
                Piece::Field('D') => {
                    let data = message
                        .properties
                        .as_ref()
                        .and_then(|p| p.correlation_data.as_ref());
                    out.extend_from_slice(data.map_or(&[], |data| data));
                }
                Piece::Field(letter) => out.extend_from_slice(field(*letter, message).as_bytes()),
            }
        }
    }
}

fn field(letter: char, message: &Publish) -> String {
    let none = PublishProperties::default();
    let p = message.properties.as_deref().unwrap_or(&none);
    match letter {
        't' => message.topic.to_string(),
        'x' => hex(&message.payload, false),
        'X' => hex(&message.payload, true),
        'l' => message.payload.len().to_string(),
        'q' => (message.qos as u8).to_string(),
        'r' => u8::from(message.retain).to_string(),
        'm' => message.packet_id.map_or(0, Into::into).to_string(),
        'U' => unix_time(),
        'j' => json_of(message, p).to_string(),
        'C' => p.content_type.as_deref().unwrap_or_default().to_owned(),
        'R' => p.response_topic.as_deref().unwrap_or_default().to_owned(),
        'E' => p
            .message_expiry_s
            .map(|s| s.to_string())
            .unwrap_or_default(),
        'F' => p
            .payload_format_utf8
            .map(|f| u8::from(f).to_string())
            .unwrap_or_default(),
        'P' => {
            let pairs = p
                .user_properties
                .iter()
                .map(|(name, value)| format!("{name}:{value}"));
            pairs.collect::<Vec<_>>().join(" ")
        }
        'S' => {
            let ids = p.subscription_ids.iter().map(ToString::to_string);
            ids.collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    }
}

fn hex(bytes: &[u8], upper: bool) -> String {
    let octet = |octet: &u8| {
        if upper {
            format!("{octet:02X}")
        } else {
            format!("{octet:02x}")
        }
    };
    bytes.iter().map(octet).collect()
}

/// Seconds since 1970 with nanoseconds.
fn unix_time() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
}

/// The message as a JSON object. A payload that isn't UTF-8 is in `payload_hex`.
fn json_of(message: &Publish, p: &PublishProperties) -> Value {
    let mut object = Map::new();
    object.insert("topic".into(), json!(message.topic.as_str()));
    object.insert("qos".into(), json!(message.qos as u8));
    object.insert("retain".into(), json!(u8::from(message.retain)));
    if let Some(id) = message.packet_id {
        object.insert("mid".into(), json!(id.get()));
    }
    object.insert("payloadlen".into(), json!(message.payload.len()));
    match std::str::from_utf8(&message.payload) {
        Ok(text) => object.insert("payload".into(), json!(text)),
        Err(_) => object.insert("payload_hex".into(), json!(hex(&message.payload, false))),
    };
    let mut properties = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            properties.insert(name.to_owned(), value);
        }
    };
    set(
        "payload-format-indicator",
        p.payload_format_utf8.map(|f| json!(u8::from(f))),
    );
    set(
        "message-expiry-interval",
        p.message_expiry_s.map(|s| json!(s)),
    );
    set(
        "content-type",
        p.content_type.as_ref().map(|t| json!(t.as_str())),
    );
    set(
        "response-topic",
        p.response_topic.as_ref().map(|t| json!(t.as_str())),
    );
    set(
        "correlation-data-hex",
        p.correlation_data.as_ref().map(|d| json!(hex(d, false))),
    );
    let pairs = || {
        p.user_properties
            .iter()
            .map(|(n, v)| json!([n.as_str(), v.as_str()]))
    };
    set(
        "user-properties",
        (!p.user_properties.is_empty()).then(|| pairs().collect()),
    );
    let ids = (!p.subscription_ids.is_empty()).then(|| json!(p.subscription_ids));
    set("subscription-identifiers", ids);
    if !properties.is_empty() {
        object.insert("properties".into(), Value::Object(properties));
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use headgate_codec::{PacketId, QoS};

    fn message() -> Publish {
        Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: true,
            topic: "a/b".into(),
            packet_id: Some(PacketId::MIN),
            properties: Some(Box::new(PublishProperties {
                content_type: Some("ct".into()),
                user_properties: vec![("k".into(), "v".into()), ("l".into(), "w".into())],
                ..PublishProperties::default()
            })),
            payload: vec![b'h', 0xff].into(),
        }
    }

    fn written(format: &str) -> Vec<u8> {
        let mut out = Vec::new();
        format
            .parse::<Format>()
            .expect("a format")
            .write(&message(), &mut out);
        out
    }

    #[test]
    fn fields_are_filled_in() {
        assert_eq!(
            written(r"%t|%q|%r|%m|%l\t%x %X%%"),
            b"a/b|1|1|1|2\t68ff 68FF%"
        );
        assert_eq!(written("<%p>"), b"<h\xff>");
        assert_eq!(written("%C,%P,%R,%E,%S"), b"ct,k:v l:w,,,");
        let json: Value = serde_json::from_slice(&written("%j")).expect("JSON");
        assert_eq!(json["payload_hex"], "68ff");
        assert_eq!(
            json["properties"]["user-properties"],
            json!([["k", "v"], ["l", "w"]])
        );
    }

    #[test]
    fn unknown_fields_are_refused() {
        for wrong in ["%", "%z", r"\q", "a%"] {
            assert!(wrong.parse::<Format>().is_err(), "{wrong}");
        }
    }
}
