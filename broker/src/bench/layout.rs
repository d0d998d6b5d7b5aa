//! Who the clients are, what they subscribe to, and which topics there are: a pattern of load.

use super::draw::{Choice, Chooser, Random};
use headgate_codec::{QoS, Text};
use std::{fmt, str::FromStr};

/// Names of so many topics are made once; those of more, when they are needed.
const NAMES_KEPT_MAX: u32 = 100_000;

/// A pattern of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Clients that stay connected, each with topics of its own; publishers send to random ones of them.
    Idle,
    /// 1 → 1: each publisher has a topic, and each topic a subscriber.
    PeerToPeer,
    /// n → 1: each subscriber has all topics of its publishers, by one filter.
    FanIn,
    /// 1 → n: each publisher has a topic, and each subscriber all topics.
    FanOut,
    /// Publishers and subscribers that draw their topics.
    Mixed,
    /// Clients as in `Idle`, that all lose their connection at once, and connect again.
    Storm,
}

impl Pattern {
    const NAMES: [(Self, &str); 6] = [
        (Self::Idle, "idle"),
        (Self::PeerToPeer, "p2p"),
        (Self::FanIn, "fan-in"),
        (Self::FanOut, "fan-out"),
        (Self::Mixed, "mixed"),
        (Self::Storm, "storm"),
    ];

    /// Whether messages go to the clients that are idle otherwise.
    pub fn is_idle(self) -> bool {
        matches!(self, Self::Idle | Self::Storm)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(pattern, _)| pattern == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(_, name)| *name == text);
        found.map(|(pattern, _)| *pattern).ok_or_else(|| {
            let names: Vec<_> = Self::NAMES.iter().map(|(_, name)| *name).collect();
            format!("{text:?} is none of {}", names.join(", "))
        })
    }
}

/// How many clients there are, and topics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Who sends what to whom.
    pub pattern: Pattern,
    /// Clients that only stay connected.
    pub idle: u32,
    /// Clients that get messages.
    pub subscribers: u32,
    /// Clients that publish.
    pub publishers: u32,
    /// Topics of `mixed`.
    pub topics: u32,
    /// Topic Filters of a client; of `idle`, `storm` and `mixed`.
    pub subscriptions: u32,
    /// How topics of `mixed` are drawn, or clients of `idle`.
    pub choice: Choice,
}

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The nth of those that stay connected.
    Idle(u32),
    /// The nth subscriber.
    Subscriber(u32),
    /// The nth publisher.
    Publisher(u32),
}

/// A shape with its names. Clients are numbered: those that stay connected, subscribers, publishers.
#[derive(Debug)]
pub struct Layout {
    shape: Shape,
    /// Of this run, in each topic.
    tag: u32,
    chooser: Chooser,
    names: Vec<Text>,
    /// `mixed`: each subscriber's topics.
    picked: Vec<Vec<u32>>,
    /// `mixed`: subscribers of each topic.
    readers: Vec<u32>,
}

impl Layout {
    /// With what chance decides. `tag` keeps runs apart that use the same broker.
    pub fn new(shape: Shape, tag: u32, random: &mut Random) -> Self {
        let mut layout = Self {
            shape,
            tag,
            chooser: Chooser::Uniform(1),
            names: Vec::new(),
            picked: Vec::new(),
            readers: Vec::new(),
        };
        let topics = layout.topics();
        layout.chooser = shape.choice.of(topics);
        if topics <= NAMES_KEPT_MAX {
            let names = (0..topics).map(|topic| layout.name(topic));
            layout.names = names.collect();
        }
        if shape.pattern == Pattern::Mixed {
            layout.pick(random);
        }
        layout
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// How many clients there are.
    pub fn clients(&self) -> u32 {
        self.shape.idle + self.shape.subscribers + self.shape.publishers
    }

    /// What a client is.
    pub fn role(&self, client: u32) -> Role {
        let Shape {
            idle, subscribers, ..
        } = self.shape;
        match client.checked_sub(idle) {
            None => Role::Idle(client),
            Some(rest) => match rest.checked_sub(subscribers) {
                None => Role::Subscriber(rest),
                Some(rest) => Role::Publisher(rest),
            },
        }
    }

    /// The client that is the nth publisher.
    pub fn publisher(&self, number: u32) -> u32 {
        self.shape.idle + self.shape.subscribers + number
    }

    /// How many topics are published to.
    pub fn topics(&self) -> u32 {
        match self.shape.pattern {
            Pattern::Idle | Pattern::Storm => self.shape.idle,
            Pattern::PeerToPeer | Pattern::FanIn | Pattern::FanOut => self.shape.publishers,
            Pattern::Mixed => self.shape.topics,
        }
    }

    /// What a client subscribes to, with which QoS. `qos` is that of the messages.
    pub fn filters(&self, client: u32, qos: QoS) -> Vec<(String, QoS)> {
        let Shape {
            pattern,
            subscriptions,
            publishers,
            ..
        } = self.shape;
        match self.role(client) {
            // With QoS 0: a client that sleeps acknowledges packets of QUIC, and none of MQTT.
            Role::Idle(number) => (0..subscriptions)
                .map(|place| (self.device_topic(number, place), QoS::AtMostOnce))
                .collect(),
            Role::Publisher(_) => Vec::new(),
            Role::Subscriber(number) => {
                let filters = match pattern {
                    Pattern::FanIn => vec![format!("bench/{:08x}/in/{number}/#", self.tag)],
                    Pattern::FanOut => (0..publishers)
                        .map(|topic| self.topic(topic).as_str().to_owned())
                        .collect(),
                    Pattern::Mixed => {
                        let picked = self.picked[number as usize].iter();
                        picked
                            .map(|topic| self.topic(*topic).as_str().to_owned())
                            .collect()
                    }
                    _ => vec![self.topic(number).as_str().to_owned()],
                };
                filters.into_iter().map(|filter| (filter, qos)).collect()
            }
        }
    }

    /// How many get a message on a topic.
    pub fn readers(&self, topic: u32) -> u32 {
        match self.shape.pattern {
            Pattern::Idle | Pattern::Storm => u32::from(self.shape.subscriptions > 0),
            Pattern::PeerToPeer | Pattern::FanIn => 1,
            Pattern::FanOut => self.shape.subscribers,
            Pattern::Mixed => self.readers[topic as usize],
        }
    }

    /// Deliveries of a message, on average, rounded up, at least 1.
    pub fn readers_mean(&self) -> u32 {
        let total: u64 = (0..self.topics()).map(|t| u64::from(self.readers(t))).sum();
        let mean = total.div_ceil(u64::from(self.topics().max(1)));
        u32::try_from(mean).unwrap_or(u32::MAX).max(1)
    }

    /// Deliveries of a message that chance chooses, on average.
    pub fn readers_expected(&self) -> f64 {
        match self.shape.pattern {
            Pattern::Mixed => (0..self.topics())
                .map(|topic| self.chooser.share(topic) * f64::from(self.readers(topic)))
                .sum(),
            _ => f64::from(self.readers(0)),
        }
    }

    /// The topic of the next message of a publisher.
    pub fn choose(&self, publisher: u32, random: &mut Random) -> u32 {
        match self.shape.pattern {
            Pattern::PeerToPeer | Pattern::FanIn | Pattern::FanOut => publisher,
            Pattern::Idle | Pattern::Storm | Pattern::Mixed => self.chooser.draw(random),
        }
    }

    /// The Topic Name of a topic.
    pub fn topic(&self, topic: u32) -> Text {
        match self.names.get(topic as usize) {
            Some(name) => name.clone(),
            None => self.name(topic),
        }
    }

    /// The Client Identifier of a client: at most 23 characters, which every broker takes (MQTT 3.1.1 §3.1.3.1).
    pub fn client_id(&self, client: u32) -> String {
        format!("bench{:08x}{client}", self.tag)
    }

    fn name(&self, topic: u32) -> Text {
        let tag = self.tag;
        let name = match self.shape.pattern {
            Pattern::Idle | Pattern::Storm => self.device_topic(topic, 0),
            Pattern::PeerToPeer => format!("bench/{tag:08x}/p2p/{topic}"),
            Pattern::FanIn => {
                let subscriber = topic % self.shape.subscribers.max(1);
                format!("bench/{tag:08x}/in/{subscriber}/{topic}")
            }
            Pattern::FanOut => format!("bench/{tag:08x}/out/{topic}"),
            Pattern::Mixed => format!("bench/{tag:08x}/mixed/{topic}"),
        };
        Text::from(name.as_str())
    }

    fn device_topic(&self, device: u32, place: u32) -> String {
        format!("bench/{:08x}/device/{device}/{place}", self.tag)
    }

    /// First each topic gets a subscriber, as far as there are subscriptions; then they are drawn. Nobody has one twice.
    fn pick(&mut self, random: &mut Random) {
        let Shape {
            subscribers,
            topics,
            subscriptions,
            ..
        } = self.shape;
        self.picked = vec![Vec::new(); subscribers as usize];
        self.readers = vec![0; topics as usize];
        let mut next = 0;
        for place in 0..subscriptions {
            for picked in &mut self.picked {
                let mut topic = match next < topics {
                    true => next,
                    false => self.chooser.draw(random),
                };
                next = next.saturating_add(1);
                // The next one that it doesn't have yet: it has `place` of more.
                debug_assert!(place < topics);
                while picked.contains(&topic) {
                    topic = (topic + 1) % topics;
                }
                picked.push(topic);
                self.readers[topic as usize] += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headgate_topics::validate_topic_name;

    fn layout(pattern: Pattern, (idle, subscribers, publishers): (u32, u32, u32)) -> Layout {
        let shape = Shape {
            pattern,
            idle,
            subscribers,
            publishers,
            topics: 20,
            subscriptions: 3,
            choice: Choice::Zipf(1.0),
        };
        Layout::new(shape, 0xabc, &mut Random::new(1))
    }

    /// Whether a filter, with # at its end or without wildcards, matches.
    fn matches(filter: &str, topic: &str) -> bool {
        match filter.strip_suffix('#') {
            Some(front) => topic.starts_with(front),
            None => filter == topic,
        }
    }

    #[test]
    fn as_many_subscribe_to_each_topic_as_it_says() {
        for layout in [
            layout(Pattern::Idle, (10, 0, 2)),
            layout(Pattern::PeerToPeer, (3, 5, 5)),
            layout(Pattern::FanIn, (0, 3, 10)),
            layout(Pattern::FanOut, (0, 7, 2)),
            layout(Pattern::Mixed, (2, 9, 4)),
        ] {
            let filters: Vec<_> = (0..layout.clients())
                .flat_map(|client| layout.filters(client, QoS::AtMostOnce))
                .collect();
            for topic in 0..layout.topics() {
                let name = layout.topic(topic);
                assert_eq!(validate_topic_name(name.as_str()), Ok(()));
                let found = filters.iter().filter(|(f, _)| matches(f, name.as_str()));
                let wanted = layout.readers(topic) as usize;
                assert_eq!(found.count(), wanted, "{:?}: {name:?}", layout.shape);
                assert!(wanted > 0, "{:?}: {name:?}", layout.shape);
            }
        }
    }

    #[test]
    fn clients_have_roles_and_short_names() {
        let layout = layout(Pattern::PeerToPeer, (2, 3, 4));
        let roles: Vec<_> = (0..layout.clients()).map(|c| layout.role(c)).collect();
        assert_eq!(roles[..2], [Role::Idle(0), Role::Idle(1)]);
        assert_eq!(roles[2..5], [0, 1, 2].map(Role::Subscriber));
        assert_eq!(roles[5..], [0, 1, 2, 3].map(Role::Publisher));
        assert_eq!(layout.role(layout.publisher(3)), Role::Publisher(3));
        assert!(layout.client_id(9_999_999).len() <= 23);
    }

    #[test]
    fn a_seed_makes_the_same_layout() {
        let [one, other] = [(); 2].map(|()| layout(Pattern::Mixed, (0, 30, 5)));
        assert_eq!(one.picked, other.picked);
        // 90 subscriptions to 20 topics.
        assert_eq!(one.readers_mean(), 5);
    }
}
