//! `headgate pub`.

use super::{
    Failure,
    options::{ConnectionArgs, qos, text},
    properties::Properties,
};
use crate::cli::client::{Event, Session, named};
use bytes::Bytes;
use clap::{ArgGroup, Args};
use headgate_codec::{Disconnect, PacketId, Publish, PublishProperties, QoS, Text};
use std::{path::PathBuf, time::Duration};
use tokio::{
    fs,
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
};

/// The largest message, bytes: what fits a Remaining Length.
const PAYLOAD_MAX: usize = headgate_codec::REMAINING_LENGTH_MAX;

/// Publish messages, over TCP or QUIC. Ends when the server has taken all of them.
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    group = ArgGroup::new("what").required(true).args(["message", "file", "stdin_line", "stdin_file", "null_message"])
)]
pub struct PubArgs {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    /// Topic Name
    #[arg(short, long)]
    topic: Option<String>,
    /// Send this
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    message: Option<String>,
    /// Send the contents of a file as one message
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Send each line of standard input as a message
    #[arg(short = 'l', long)]
    stdin_line: bool,
    /// Send standard input as one message
    #[arg(short = 's', long)]
    stdin_file: bool,
    /// Send an empty message; with -r it removes the retained one
    #[arg(short, long)]
    null_message: bool,
    /// QoS
    #[arg(short, long, value_parser = qos, default_value = "0")]
    qos: QoS,
    /// Let the server retain the message
    #[arg(short, long)]
    retain: bool,
    /// Send the message so many times
    #[arg(
        long,
        default_value_t = 1,
        value_name = "COUNT",
        conflicts_with = "stdin_line"
    )]
    repeat: u64,
    /// Seconds between repeated messages, with a fraction if you like
    #[arg(long, default_value = "0", value_parser = delay, value_name = "SECONDS")]
    repeat_delay: Duration,
}

pub(super) async fn publish(args: PubArgs) -> Result<(), Failure> {
    let given = args.connection.properties()?;
    let message = Message::new(&args, &given)?;
    let payload = payload(&args).await?;
    let connect = args.connection.connect("pub", &given)?;
    let (target, tls) = (args.connection.target(), args.connection.tls()?);
    let beside = args.connection.beside()?;
    let session =
        Session::connect(&target, &tls, (connect, beside), args.connection.patience()).await?;
    let mut publisher = Publisher {
        session,
        message,
        refused: None,
    };
    match payload {
        Some(payload) => {
            publisher
                .repeated(payload, args.repeat, args.repeat_delay)
                .await?
        }
        None => publisher.lines(BufReader::new(tokio::io::stdin())).await?,
    }
    publisher.finish(given).await
}

fn delay(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "seconds are expected")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// What all messages have in common.
struct Message {
    topic: Text,
    qos: QoS,
    retain: bool,
    properties: Option<Box<PublishProperties>>,
}

impl Message {
    fn new(args: &PubArgs, given: &Properties) -> Result<Self, Failure> {
        let topic = match (args.topic.as_deref(), args.connection.topic()) {
            (Some(topic), None) | (None, Some(topic)) => topic,
            (None, None) => return Err(Failure::Usage("a topic is needed: -t TOPIC".into())),
            (Some(_), Some(_)) => {
                return Err(Failure::Usage("-t and the URL both give a topic".into()));
            }
        };
        headgate_topics::validate_topic_name(topic)
            .map_err(|error| Failure::Usage(format!("topic {topic:?}: {error}")))?;
        let properties = given.publish.clone();
        Ok(Self {
            topic: text("--topic", topic)?,
            qos: args.qos,
            retain: args.retain,
            properties: (properties != PublishProperties::default()).then(|| Box::new(properties)),
        })
    }

    fn with(&self, payload: Bytes) -> Publish {
        Publish {
            dup: false,
            qos: self.qos,
            retain: self.retain,
            topic: self.topic.clone(),
            packet_id: None,
            properties: self.properties.clone(),
            payload,
        }
    }
}

/// The payload; `None` if each line of standard input is one.
async fn payload(args: &PubArgs) -> Result<Option<Bytes>, Failure> {
    if args.stdin_line {
        return Ok(None);
    }
    if let Some(message) = &args.message {
        return Ok(Some(message.clone().into()));
    }
    if let Some(path) = &args.file {
        let failed = |source| Failure::Io {
            what: path.display().to_string(),
            source,
        };
        let file = fs::File::open(path).await.map_err(failed)?;
        return whole(file, &path.display().to_string()).await.map(Some);
    }
    if args.stdin_file {
        return whole(tokio::io::stdin(), "standard input").await.map(Some);
    }
    Ok(Some(Bytes::new()))
}

/// Everything that `source` has, if it fits a message.
async fn whole(source: impl AsyncRead + Unpin, name: &str) -> Result<Bytes, Failure> {
    let mut payload = Vec::new();
    let read = source
        .take(PAYLOAD_MAX as u64 + 1)
        .read_to_end(&mut payload)
        .await;
    read.map_err(|source| Failure::Io {
        what: name.to_owned(),
        source,
    })?;
    if payload.len() > PAYLOAD_MAX {
        return Err(Failure::Usage(format!(
            "{name}: more than the {PAYLOAD_MAX} bytes of a message"
        )));
    }
    Ok(payload.into())
}

struct Publisher {
    session: Session,
    message: Message,
    /// The first refusal.
    refused: Option<String>,
}

impl Publisher {
    async fn repeated(
        &mut self,
        payload: Bytes,
        times: u64,
        delay: Duration,
    ) -> Result<(), Failure> {
        for i in 0..times {
            if i > 0 && !delay.is_zero() {
                self.pause(delay).await?;
            }
            self.publish(payload.clone()).await?;
        }
        Ok(())
    }

    /// Sends each line. The connection is served while there is none.
    async fn lines(&mut self, mut source: impl AsyncBufReadExt + Unpin) -> Result<(), Failure> {
        let mut line = Vec::new();
        loop {
            let room = PAYLOAD_MAX.saturating_sub(line.len()) as u64 + 2;
            let mut limited = (&mut source).take(room);
            let read = tokio::select! {
                read = limited.read_until(b'\n', &mut line) => read,
                event = self.session.next() => {
                    // What was read of a line so far stays in `line`.
                    self.note(event?);
                    continue;
                }
            };
            let what = || "standard input".to_owned();
            let read = read.map_err(|source| Failure::Io {
                what: what(),
                source,
            })?;
            let ended = line.pop_if(|octet| *octet == b'\n').is_some();
            line.pop_if(|octet| ended && *octet == b'\r');
            if line.len() > PAYLOAD_MAX {
                return Err(Failure::Usage(
                    "a line is longer than a message may be".into(),
                ));
            }
            if read == 0 && line.is_empty() && !ended {
                return Ok(());
            }
            self.publish(std::mem::take(&mut line).into()).await?;
        }
    }

    /// Sends a message as soon as the server's Receive Maximum allows.
    async fn publish(&mut self, payload: Bytes) -> Result<(), Failure> {
        while self.message.qos != QoS::AtMostOnce && !self.session.has_room() {
            let event = self.session.next().await?;
            self.note(event);
        }
        let sent: Option<PacketId> = self.session.publish(self.message.with(payload)).await?;
        debug_assert_eq!(sent.is_some(), self.message.qos != QoS::AtMostOnce);
        Ok(())
    }

    async fn pause(&mut self, delay: Duration) -> Result<(), Failure> {
        let over = tokio::time::sleep(delay);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return Ok(()),
                event = self.session.next() => self.note(event?),
            }
        }
    }

    fn note(&mut self, event: Event) {
        if let Event::Published { reason, .. } = event
            && reason.0 >= 0x80
        {
            let text = format!("the server refuses a message: {}", named(reason, None));
            self.refused.get_or_insert(text);
        }
    }

    /// Waits until all messages are completed, and disconnects.
    async fn finish(mut self, given: Properties) -> Result<(), Failure> {
        while self.session.unacknowledged() > 0 {
            let event = self.session.next().await?;
            self.note(event);
        }
        let properties = given.disconnect;
        let properties = (properties != Default::default()).then(|| Box::new(properties));
        self.session
            .disconnect(Disconnect {
                properties,
                ..Disconnect::default()
            })
            .await?;
        match self.refused {
            Some(text) => Err(Failure::Refused(text)),
            None => Ok(()),
        }
    }
}
