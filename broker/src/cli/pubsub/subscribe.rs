//! `headgate sub`.

use super::{
    Failure,
    format::Format,
    options::{ConnectionArgs, asks_for_datagrams, qos, text},
    properties::Properties,
};
use crate::cli::client::{Event, Session, named};
use clap::Args;
use headgate_codec::{
    Disconnect, PacketId, Publish, QoS, SubAck, Subscribe, SubscriptionOptions, Unsubscribe,
};
use std::io::{self, Write};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, timeout_at},
};

/// Subscribe and print messages, over TCP or QUIC.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct SubArgs {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    /// Topic Filter; may be repeated
    #[arg(short, long = "topic", value_name = "FILTER")]
    topics: Vec<String>,
    /// Maximum QoS
    #[arg(short, long, value_parser = qos, default_value = "0")]
    qos: QoS,
    /// End after so many messages
    #[arg(short = 'C', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print the topic in front of each message
    #[arg(short, long)]
    verbose: bool,
    /// Print messages in this format: %t topic, %p payload, %x payload in hex, %l its length, %q
    /// QoS, %r retain, %m packet identifier, %U Unix time, %j JSON, and of 5.0's properties %C
    /// content type, %R response topic, %D correlation data, %E expiry, %F payload format, %P
    /// user properties, %S subscription identifiers; %% and the escapes \n \t \0 \e \\
    #[arg(short = 'F', value_name = "FORMAT", conflicts_with = "verbose")]
    format: Option<Format>,
    /// No line break after a message
    #[arg(short = 'N')]
    no_newline: bool,
    /// Leave out retained messages that were there before
    #[arg(short = 'R')]
    no_retained: bool,
    /// Leave out messages whose topic matches; may be repeated
    #[arg(short = 'T', long = "filter-out", value_name = "FILTER")]
    filter_out: Vec<String>,
    /// Remove a subscription of the session; may be repeated
    #[arg(short = 'U', long = "unsubscribe", value_name = "FILTER")]
    unsubscribe: Vec<String>,
    /// End as soon as the server has answered the subscriptions
    #[arg(short = 'E')]
    exit_after_subscribing: bool,
    /// Let RETAIN be as it was published (5.0)
    #[arg(long)]
    retain_as_published: bool,
    /// Leave out messages of one's own (5.0)
    #[arg(long)]
    no_local: bool,
}

pub(super) async fn subscribe(args: SubArgs) -> Result<(), Failure> {
    let limit = args
        .connection
        .timeout()
        .map(|limit| Instant::now() + limit);
    let given = args.connection.properties()?;
    let filters = filters(&args)?;
    let connect = args.connection.connect("sub", &given)?;
    let (target, tls) = (args.connection.target(), args.connection.tls()?);
    let beside = args.connection.beside()?;
    let connecting = Session::connect(&target, &tls, (connect, beside), args.connection.patience());
    let session = within(limit, connecting).await??;
    let mut subscriber = Subscriber {
        session,
        args,
        left: 0,
    };
    subscriber.left = subscriber.args.count.unwrap_or(u64::MAX);
    let work = async {
        subscriber.start(filters, &given).await?;
        subscriber.messages().await
    };
    let worked = within(limit, interruptible(work)).await;
    // Said in every case: the Will is for those who vanish.
    let properties = given.disconnect;
    let properties = (properties != Default::default()).then(|| Box::new(properties));
    let disconnect = Disconnect {
        properties,
        ..Disconnect::default()
    };
    match worked {
        Ok(Err(Failure::Client(lost))) => Err(lost.into()),
        worked => {
            subscriber.session.disconnect(disconnect).await?;
            worked?
        }
    }
}

/// The Topic Filters with what may be wrong about them.
fn filters(args: &SubArgs) -> Result<Vec<String>, Failure> {
    let mut filters = args.topics.clone();
    filters.extend(args.connection.topic().map(str::to_owned));
    if filters.is_empty() && args.unsubscribe.is_empty() {
        return Err(Failure::Usage("a topic filter is needed: -t FILTER".into()));
    }
    for filter in filters
        .iter()
        .chain(&args.filter_out)
        .chain(&args.unsubscribe)
    {
        headgate_topics::validate_filter(filter)
            .map_err(|error| Failure::Usage(format!("topic filter {filter:?}: {error}")))?;
    }
    Ok(filters)
}

async fn within<T>(limit: Option<Instant>, work: impl Future<Output = T>) -> Result<T, Failure> {
    match limit {
        Some(limit) => timeout_at(limit, work).await.map_err(|_| Failure::TimedOut),
        None => Ok(work.await),
    }
}

/// Ends well when the user or the system asks for it.
async fn interruptible(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let listen = |kind| -> Result<Signal, Failure> {
        signal(kind).map_err(|source| Failure::Io {
            what: "signals".into(),
            source,
        })
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    tokio::select! {
        worked = work => worked,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

struct Subscriber {
    session: Session,
    args: SubArgs,
    /// Messages that are still to be printed.
    left: u64,
}

impl Subscriber {
    /// Subscribes and unsubscribes, and waits for the answers.
    async fn start(&mut self, filters: Vec<String>, given: &Properties) -> Result<(), Failure> {
        let mut waiting = Vec::new();
        if !self.args.unsubscribe.is_empty() {
            let packet = self.unsubscription()?;
            waiting.push((self.session.unsubscribe(packet).await?, Vec::new()));
        }
        // With data streams, each subscription is made on one of its own.
        let at_once = match self.args.connection.beside()?.streams {
            0 => filters.len().max(1),
            _ => 1,
        };
        for filters in filters.chunks(at_once) {
            let packet = self.subscription(filters, given)?;
            waiting.push((self.session.subscribe(packet).await?, filters.to_vec()));
        }
        let mut refused = Vec::new();
        while !waiting.is_empty() && self.left > 0 {
            let id = match self.session.next().await? {
                Event::Subscribed(ack) => {
                    let asked = waiting.iter().find(|(waits, _)| *waits == ack.packet_id);
                    if let Some((_, filters)) = asked {
                        refused.extend(refusals(&ack, filters));
                    }
                    ack.packet_id
                }
                Event::Unsubscribed(ack) => ack.packet_id,
                Event::Message(message) => {
                    self.print(&message)?;
                    continue;
                }
                Event::Published { .. } => continue,
            };
            waiting.retain(|(waits, _)| *waits != id);
        }
        if !filters.is_empty() && refused.len() == filters.len() {
            return Err(Failure::Refused(refused.join("; ")));
        }
        for text in refused {
            eprintln!("warning: {text}");
        }
        Ok(())
    }

    fn subscription(&self, filters: &[String], given: &Properties) -> Result<Subscribe, Failure> {
        let options = SubscriptionOptions {
            qos: self.args.qos,
            no_local: self.args.no_local,
            retain_as_published: self.args.retain_as_published,
            retain_handling: if self.args.no_retained { 2 } else { 0 },
        };
        let mut user_properties = given.subscribe_user.clone();
        if self.args.connection.beside()?.datagrams {
            user_properties.push(asks_for_datagrams());
        }
        let with_options = |filter: &String| Ok((text("--topic", filter)?, options));
        Ok(Subscribe {
            packet_id: PacketId::MIN,
            subscription_id: given.subscription_id,
            user_properties,
            filters: filters
                .iter()
                .map(with_options)
                .collect::<Result<_, Failure>>()?,
        })
    }

    fn unsubscription(&self) -> Result<Unsubscribe, Failure> {
        let filters = self
            .args
            .unsubscribe
            .iter()
            .map(|f| text("--unsubscribe", f));
        Ok(Unsubscribe {
            packet_id: PacketId::MIN,
            user_properties: Vec::new(),
            filters: filters.collect::<Result<_, Failure>>()?,
        })
    }

    /// Prints messages until there have been enough.
    async fn messages(&mut self) -> Result<(), Failure> {
        if self.args.exit_after_subscribing {
            return Ok(());
        }
        while self.left > 0 {
            if let Event::Message(message) = self.session.next().await? {
                self.print(&message)?;
            }
        }
        // What acknowledges the last message goes out with the DISCONNECT behind it.
        Ok(())
    }

    fn print(&mut self, message: &Publish) -> Result<(), Failure> {
        let out = |filter: &String| headgate_topics::filter_matches(filter, &message.topic);
        let retained = self.args.no_retained && message.retain;
        if self.left == 0 || retained || self.args.filter_out.iter().any(out) {
            return Ok(());
        }
        self.left -= 1;
        let mut line = Vec::with_capacity(message.payload.len() + message.topic.len() + 2);
        match &self.args.format {
            Some(format) => format.write(message, &mut line),
            None => {
                if self.args.verbose {
                    line.extend_from_slice(message.topic.as_bytes());
                    line.push(b' ');
                    let payload: &[u8] = if message.payload.is_empty() {
                        b"(null)"
                    } else {
                        &message.payload
                    };
                    line.extend_from_slice(payload);
                } else {
                    line.extend_from_slice(&message.payload);
                }
            }
        }
        if !self.args.no_newline {
            line.push(b'\n');
        }
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(&line).and_then(|()| stdout.flush());
        written.map_err(|source| Failure::Io {
            what: "standard output".into(),
            source,
        })
    }
}

/// What the server refuses of the filters of one SUBSCRIBE.
fn refusals(ack: &SubAck, filters: &[String]) -> Vec<String> {
    let verdicts = ack.reasons.iter().zip(filters);
    let refused = verdicts.filter(|(reason, _)| reason.0 >= 0x80);
    let text = ack.properties.reason_string.as_deref();
    refused
        .map(|(reason, filter)| {
            let named = named(*reason, text);
            format!("the server refuses the subscription to {filter}: {named}")
        })
        .collect()
}
