//! As much of MQTT 5.0's packets as these clients need, written by hand.

/// Packet types (2.1.2).
pub const CONNECT: u8 = 1;
/// CONNACK.
pub const CONNACK: u8 = 2;
/// PUBLISH.
pub const PUBLISH: u8 = 3;
/// PUBACK.
pub const PUBACK: u8 = 4;
/// SUBSCRIBE.
pub const SUBSCRIBE: u8 = 8;
/// SUBACK.
pub const SUBACK: u8 = 9;
/// PINGREQ.
pub const PINGREQ: u8 = 12;
/// DISCONNECT.
pub const DISCONNECT: u8 = 14;

/// The user property that asks the broker for datagrams (its docs/quic.md).
const DATAGRAMS: (&str, &str) = ("headgate-datagram", "1");

/// A packet as it was received.
#[derive(Debug)]
pub struct Packet {
    /// Its type (2.1.2).
    pub kind: u8,
    /// The flags beside the type (2.1.3).
    pub flags: u8,
    /// What follows the Remaining Length.
    pub body: Vec<u8>,
}

impl Packet {
    /// Packet Identifier and Application Message of a PUBLISH; the identifier is 0 with QoS 0.
    pub fn message(&self) -> Option<(u16, &[u8])> {
        let topic = usize::from(u16::from_be_bytes(self.body.get(..2)?.try_into().ok()?));
        let rest = self.body.get(2 + topic..)?;
        let (id, rest) = if self.flags & 0b110 == 0 {
            (0, rest)
        } else {
            let (id, rest) = rest.split_first_chunk()?;
            (u16::from_be_bytes(*id), rest)
        };
        let (length, octets) = variable(rest)?;
        Some((id, rest.get(octets + length..)?))
    }
}

/// Takes the first packet out of `input`, if it is there to its end.
pub fn split(input: &mut Vec<u8>) -> Option<Packet> {
    let (length, octets) = variable(input.get(1..)?)?;
    let (from, to) = (1 + octets, 1 + octets + length);
    let packet = Packet {
        kind: input[0] >> 4,
        flags: input[0] & 0x0f,
        body: input.get(from..to)?.to_vec(),
    };
    input.drain(..to);
    Some(packet)
}

/// A Variable Byte Integer (1.5.5) and how many octets it has.
fn variable(data: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (at, octet) in data.iter().take(4).enumerate() {
        value |= usize::from(octet & 0x7f) << (7 * at);
        if octet & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

fn packet(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind << 4 | flags];
    let mut left = body.len();
    loop {
        let more = left > 127;
        packet.push((left & 0x7f) as u8 | u8::from(more) << 7);
        left >>= 7;
        if !more {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

fn text(into: &mut Vec<u8>, value: &str) {
    into.extend_from_slice(&(value.len() as u16).to_be_bytes());
    into.extend_from_slice(value.as_bytes());
}

/// Properties (2.2.2): none, or the one that asks for datagrams.
fn properties(datagrams: bool) -> Vec<u8> {
    let mut pair = Vec::new();
    if datagrams {
        pair.push(0x26);
        text(&mut pair, DATAGRAMS.0);
        text(&mut pair, DATAGRAMS.1);
    }
    let mut all = vec![pair.len() as u8];
    all.append(&mut pair);
    all
}

/// CONNECT with a Keep Alive of a minute. `clean` is Clean Start.
pub fn connect(client_id: &str, clean: bool, datagrams: bool) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, "MQTT");
    body.extend_from_slice(&[5, u8::from(clean) << 1, 0, 60]);
    body.append(&mut properties(datagrams));
    text(&mut body, client_id);
    packet(CONNECT, 0, &body)
}

/// SUBSCRIBE to one filter.
pub fn subscribe(id: u16, filter: &str, qos: u8, datagrams: bool) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.append(&mut properties(datagrams));
    text(&mut body, filter);
    body.push(qos);
    packet(SUBSCRIBE, 0b10, &body)
}

/// PUBLISH with QoS 1, or QoS 0 without a Packet Identifier.
pub fn publish(topic: &str, id: Option<u16>, message: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    if let Some(id) = id {
        body.extend_from_slice(&id.to_be_bytes());
    }
    body.push(0);
    body.extend_from_slice(message);
    packet(PUBLISH, u8::from(id.is_some()) << 1, &body)
}

/// PUBACK.
pub fn acknowledge(id: u16) -> Vec<u8> {
    packet(PUBACK, 0, &id.to_be_bytes())
}

/// PINGREQ.
pub fn ping() -> Vec<u8> {
    packet(PINGREQ, 0, &[])
}

/// DISCONNECT.
pub fn disconnect() -> Vec<u8> {
    packet(DISCONNECT, 0, &[])
}
