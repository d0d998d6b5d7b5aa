//! The commands, the same for each stack. An answer is `ok`, what was asked for, or how the connection ended.
//!
//! | command | does |
//! |---|---|
//! | `dial ALPN` | connects |
//! | `version` | connects, offering a version first that there is not |
//! | `session` | a session on the control stream, with a subscription to its own messages |
//! | `early` | connects, with CONNECT and PUBLISH in 0-RTT packets, and waits for their acknowledgements |
//! | `echo N` | N messages to itself with QoS 1, each when the former one has come |
//! | `burst N` | N messages to itself with QoS 1 at once |
//! | `streams N` | N data streams, each with a subscription and messages of its own |
//! | `datagrams N` | N messages to itself in datagrams |
//! | `move ADDRESS` | goes on from another port of this address |
//! | `wait` | sends PINGREQs until the connection ends |
//! | `facts` | what the stack says of the connection |
//! | `end` | DISCONNECT, and waits until the broker has closed the connection |

use std::{
    collections::HashMap,
    io::{self, BufRead, Write},
    net::IpAddr,
    process::ExitCode,
    thread,
    time::Duration,
};

use crate::{
    mqtt::{self, Packet},
    stack::{End, Stack, Target},
};

/// Between two PINGREQs.
const PAUSE: Duration = Duration::from_millis(20);

/// Packets of one connection, by stream, on a stack.
struct Client<'a> {
    stack: &'a mut dyn Stack,
    control: u64,
    inputs: HashMap<u64, Vec<u8>>,
    name: String,
    last_id: u16,
}

/// Where the broker is, from the command line: address, and the authority's certificate.
///
/// # Errors
/// What is wrong with the arguments.
pub fn target() -> Result<Target, String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [broker, authority] = &arguments[..] else {
        return Err("arguments: ADDRESS:PORT CA.pem".to_owned());
    };
    let broker = broker
        .parse()
        .map_err(|error| format!("{broker}: {error}"))?;
    let authority = authority.into();
    Ok(Target { broker, authority })
}

/// Does what standard input says, until it ends.
pub fn run(stack: &mut dyn Stack) -> ExitCode {
    let name = format!("stack-{}", std::process::id());
    let mut client = Client {
        stack,
        control: 0,
        inputs: HashMap::new(),
        name,
        last_id: 0,
    };
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else {
            return ExitCode::FAILURE;
        };
        let answer = client.command(&line).unwrap_or_else(|end| end.to_string());
        println!("{answer}");
        if io::stdout().flush().is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

impl Client<'_> {
    fn command(&mut self, line: &str) -> Result<String, End> {
        let (word, value) = line.split_once(' ').unwrap_or((line, ""));
        let number = || value.parse::<u32>().map_err(End::other);
        match word {
            "dial" => self.begin(|stack| stack.dial(value))?,
            "version" => self.begin(|stack| stack.dial_unknown_version())?,
            "session" => self.session()?,
            "early" => self.early()?,
            "echo" => (0..number()?).try_for_each(|turn| self.echo(turn, 1))?,
            "burst" => self.echo(0, number()?)?,
            "streams" => self.streams(number()?)?,
            "datagrams" => self.datagrams(number()?)?,
            "move" => {
                let address: IpAddr = value.parse().map_err(End::other)?;
                self.stack.move_to(address)?;
            }
            "wait" => return self.wait(),
            "facts" => return Ok(self.stack.facts().join(" ")),
            "end" => self.end()?,
            _ => return Err(End::Other(format!("{word} is no command"))),
        }
        Ok("ok".to_owned())
    }

    /// Forgets what belongs to the former connection, and makes a new one.
    fn begin<T>(&mut self, dial: impl FnOnce(&mut dyn Stack) -> Result<T, End>) -> Result<T, End> {
        self.inputs.clear();
        dial(self.stack)
    }

    fn topic(&self, of: &str) -> String {
        format!("own/{}/{of}", self.name)
    }

    fn next_id(&mut self) -> u16 {
        self.last_id = self.last_id % u16::MAX + 1;
        self.last_id
    }

    fn send(&mut self, stream: u64, data: &[u8]) -> Result<(), End> {
        self.stack.send(stream, data)
    }

    /// The next packet on a stream.
    fn receive(&mut self, stream: u64) -> Result<Packet, End> {
        loop {
            let input = self.inputs.entry(stream).or_default();
            if let Some(packet) = mqtt::split(input) {
                return Ok(packet);
            }
            input.append(&mut self.stack.receive(stream)?);
        }
    }

    fn expect(&mut self, stream: u64, kind: u8) -> Result<Packet, End> {
        let packet = self.receive(stream)?;
        if packet.kind == kind {
            return Ok(packet);
        }
        Err(End::Other(format!(
            "packet type {kind} was expected on stream {stream}, not {packet:?}"
        )))
    }

    /// CONNECT has been sent on the control stream.
    fn expect_connack(&mut self) -> Result<(), End> {
        let connack = self.expect(self.control, mqtt::CONNACK)?;
        match connack.body.get(1) {
            Some(0) => Ok(()),
            _ => Err(End::Other(format!("{connack:?}"))),
        }
    }

    fn subscribe(&mut self, stream: u64, topic: &str, qos: u8) -> Result<(), End> {
        let id = self.next_id();
        let packet = mqtt::subscribe(id, topic, qos, qos == 0);
        self.send(stream, &packet)?;
        let suback = self.expect(stream, mqtt::SUBACK)?;
        if suback.body.last() == Some(&qos) {
            return Ok(());
        }
        Err(End::Other(format!("{suback:?}")))
    }

    fn session(&mut self) -> Result<(), End> {
        self.control = self.stack.open()?;
        let connect = mqtt::connect(&self.name, true, true);
        self.send(self.control, &connect)?;
        self.expect_connack()?;
        let topic = self.topic("control");
        self.subscribe(self.control, &topic, 1)
    }

    /// Clean Start 0, so that the rules of 0-RTT let the packets through before the handshake is complete.
    fn early(&mut self) -> Result<(), End> {
        let mut first = mqtt::connect(&self.name, false, false);
        first.append(&mut mqtt::publish("early/own", Some(1), b"early"));
        self.control = self.begin(|stack| stack.dial_early(&first))?;
        self.expect_connack()?;
        self.expect(self.control, mqtt::PUBACK)?;
        Ok(())
    }

    fn echo(&mut self, turn: u32, count: u32) -> Result<(), End> {
        let topic = self.topic("control");
        self.round(self.control, &topic, turn, count)
    }

    /// Publishes `count` messages with QoS 1 on a stream, and waits until each has come back there and is acknowledged.
    fn round(&mut self, stream: u64, topic: &str, turn: u32, count: u32) -> Result<(), End> {
        let text = |number: u32| format!("{turn}/{number}").into_bytes();
        let first_id = self.last_id;
        for number in 0..count {
            let id = self.next_id();
            let packet = mqtt::publish(topic, Some(id), &text(number));
            self.send(stream, &packet)?;
        }
        let (mut acknowledged, mut came) = (0, 0);
        while acknowledged < count || came < count {
            let packet = self.receive(stream)?;
            match packet.kind {
                mqtt::PUBACK => {
                    let due = (u32::from(first_id) + acknowledged) % u32::from(u16::MAX) + 1;
                    let id = packet.body.first_chunk().map(|id| u16::from_be_bytes(*id));
                    if id.map(u32::from) != Some(due) {
                        return Err(End::Other(format!("{packet:?} instead of PUBACK {due}")));
                    }
                    acknowledged += 1;
                }
                mqtt::PUBLISH => {
                    let (id, message) = packet.message().ok_or(End::other("no PUBLISH"))?;
                    if message != text(came) {
                        return Err(End::Other(format!("{packet:?} instead of {came}")));
                    }
                    came += 1;
                    self.send(stream, &mqtt::acknowledge(id))?;
                }
                _ => return Err(End::Other(format!("{packet:?}"))),
            }
        }
        Ok(())
    }

    /// Each stream's messages and acknowledgements stay on it.
    fn streams(&mut self, count: u32) -> Result<(), End> {
        const MESSAGES: u32 = 20;
        let mut opened = Vec::new();
        for number in 0..count {
            let stream = self.stack.open()?;
            let topic = self.topic(&format!("stream-{number}"));
            self.subscribe(stream, &topic, 1)?;
            opened.push((stream, topic));
        }
        for turn in 0..2 {
            for (stream, topic) in &opened {
                self.round(*stream, topic, turn, MESSAGES)?;
            }
        }
        self.echo(0, 1)
    }

    fn datagrams(&mut self, count: u32) -> Result<(), End> {
        let topic = self.topic("datagrams");
        self.subscribe(self.control, &topic, 0)?;
        for number in 0..count {
            let text = number.to_string();
            let packet = mqtt::publish(&topic, None, text.as_bytes());
            self.stack.send_datagram(&packet)?;
            let mut datagram = self.stack.receive_datagram()?;
            let came = mqtt::split(&mut datagram).ok_or(End::other("no packet"))?;
            let message = came.message().ok_or(End::other("no PUBLISH"))?;
            if message != (0, text.as_bytes()) || !datagram.is_empty() {
                return Err(End::Other(format!("{came:?} in a datagram")));
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<String, End> {
        loop {
            self.send(self.control, &mqtt::ping())?;
            self.receive(self.control)?;
            thread::sleep(PAUSE);
        }
    }

    fn end(&mut self) -> Result<(), End> {
        self.send(self.control, &mqtt::disconnect())?;
        let end = loop {
            if let Err(end) = self.receive(self.control) {
                break end;
            }
        };
        self.stack.close();
        match end {
            // The broker ends its side of the stream, or the connection, whichever is seen first.
            End::Application(0) => Ok(()),
            End::Other(what) if what == "the stream ended" => Ok(()),
            end => Err(end),
        }
    }
}
