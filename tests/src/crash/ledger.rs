//! What was acknowledged to publishers, what subscribers received, and whether that fits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use headgate_codec::QoS;

/// Topics of the load: `crash/PUBLISHER/QOS`.
pub const TOPICS: &str = "crash";

/// How many examples a verdict prints of each kind.
const EXAMPLES_MAX: usize = 10;

/// Bytes of a payload: an identifier, and something behind it.
const PAYLOAD_BYTES: usize = 100;

/// The number of a publisher that repeats and reorders by itself, so that only losses are judged: Paho sends what is new as
/// soon as it has sent CONNECT, and what it has to repeat when CONNACK has come; and when a connection fails before that, it
/// forgets which messages had their PUBREC, and sends them as new ones.
pub const FORGETFUL: u8 = 100;

/// A message of the load. Those of one publisher with one QoS have a topic of their own, and numbers in the order in
/// which they are published.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MessageId {
    /// Number of the publisher.
    pub publisher: u8,
    /// QoS with which it is published: 1 or 2.
    pub qos: u8,
    /// Number in its topic.
    pub number: u32,
}

impl MessageId {
    /// Its Topic Name.
    pub fn topic(self) -> String {
        format!("{TOPICS}/{}/{}", self.publisher, self.qos)
    }

    /// Its Application Message, one line.
    pub fn payload(self) -> String {
        format!("{:-<PAYLOAD_BYTES$}", format!("{self}:"))
    }

    /// The message that has this payload.
    pub fn of(payload: &str) -> Option<Self> {
        let mut parts = payload.splitn(4, ':');
        let mut part = || parts.next();
        let id = Self {
            publisher: part()?.parse().ok()?,
            qos: part()?.parse().ok()?,
            number: part()?.parse().ok()?,
        };
        (id.payload() == payload).then_some(id)
    }

    /// QoS with which it is published.
    pub fn qos(self) -> QoS {
        match self.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        }
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:{}", self.publisher, self.qos, self.number)
    }
}

/// The account that all clients of a load keep together.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Account>);

#[derive(Debug, Default)]
struct Account {
    sent: BTreeSet<MessageId>,
    acknowledged: BTreeMap<MessageId, Instant>,
    received: BTreeMap<String, Received>,
    refused: usize,
    problems: Vec<String>,
}

#[derive(Debug)]
struct Received {
    /// QoS of its subscription.
    qos: u8,
    /// In the order of arrival, repetitions too.
    messages: Vec<(MessageId, Instant)>,
    distinct: BTreeSet<MessageId>,
}

impl Ledger {
    /// A publisher is about to send a message, perhaps not for the first time.
    pub fn sent(&self, id: MessageId) {
        self.account().sent.insert(id);
    }

    /// The broker has told a publisher that the message is taken: PUBACK, or PUBREC.
    pub fn acknowledged(&self, id: MessageId) {
        self.account().acknowledged.insert(id, Instant::now());
    }

    /// The broker has told a publisher that it does not take the message.
    pub fn refused(&self) {
        self.account().refused += 1;
    }

    /// A subscriber waits for all messages, with a subscription of this QoS.
    pub fn subscribed(&self, subscriber: &str, qos: u8) {
        let received = Received {
            qos,
            messages: Vec::new(),
            distinct: BTreeSet::new(),
        };
        self.account()
            .received
            .insert(subscriber.to_owned(), received);
    }

    /// A subscriber's application has received a payload.
    pub fn received(&self, subscriber: &str, payload: &str) {
        let mut account = self.account();
        let Some(id) = MessageId::of(payload).filter(|id| account.sent.contains(id)) else {
            let text = format!("{subscriber} received what nobody sent: {payload:?}");
            account.problems.push(text);
            return;
        };
        if let Some(received) = account.received.get_mut(subscriber) {
            received.messages.push((id, Instant::now()));
            received.distinct.insert(id);
        }
    }

    /// Something that must not be.
    pub fn problem(&self, text: String) {
        self.account().problems.push(text);
    }

    /// How many messages the broker has acknowledged.
    pub fn acknowledgements(&self) -> usize {
        self.account().acknowledged.len()
    }

    /// How many messages the broker has refused.
    pub fn refusals(&self) -> usize {
        self.account().refused
    }

    /// How many messages have arrived at all subscribers together, repetitions too.
    pub fn arrivals(&self) -> usize {
        let account = self.account();
        account
            .received
            .values()
            .map(|own| own.messages.len())
            .sum()
    }

    /// Whether every subscriber has all that was acknowledged.
    pub fn is_complete(&self) -> bool {
        let account = self.account();
        let all = |own: &Received| {
            let mut acknowledged = account.acknowledged.keys();
            acknowledged.all(|id| own.distinct.contains(id))
        };
        account.received.values().all(all)
    }

    /// Whether what was received fits what was acknowledged.
    pub fn verdict(&self) -> Verdict {
        let account = self.account();
        let mut verdict = Verdict {
            acknowledged: account.acknowledged.len(),
            received: account
                .received
                .values()
                .map(|own| own.messages.len())
                .sum(),
            problems: account.problems.clone(),
            ..Verdict::default()
        };
        for (subscriber, own) in &account.received {
            for (id, when) in &account.acknowledged {
                if !own.distinct.contains(id) {
                    verdict.lost.push(Finding::new(subscriber, *id, *when));
                }
            }
            own.judge(subscriber, &mut verdict);
        }
        verdict
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        // Whoever panicked while it held the account has failed the test already.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Received {
    fn judge(&self, subscriber: &str, verdict: &mut Verdict) {
        let mut seen = BTreeSet::new();
        let mut last: HashMap<(u8, u8), u32> = HashMap::new();
        for &(id, when) in &self.messages {
            let finding = || Finding::new(subscriber, id, when);
            if !seen.insert(id) {
                if id.qos.min(self.qos) == 2 && id.publisher != FORGETFUL {
                    verdict.duplicates.push(finding());
                } else {
                    verdict.repeated += 1;
                }
                continue;
            }
            let last = last.entry((id.publisher, id.qos)).or_insert(id.number);
            if id.number < *last && id.publisher != FORGETFUL {
                verdict.disordered.push(finding());
            }
            *last = id.number.max(*last);
        }
    }
}

/// A message that a subscriber did not get as it should.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The subscriber.
    pub subscriber: String,
    /// The message.
    pub id: MessageId,
    /// When it was acknowledged, if it is lost; otherwise when it came.
    pub when: Instant,
}

impl Finding {
    fn new(subscriber: &str, id: MessageId, when: Instant) -> Self {
        Self {
            subscriber: subscriber.to_owned(),
            id,
            when,
        }
    }
}

/// What an account says.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Messages that were acknowledged.
    pub acknowledged: usize,
    /// Messages that came, of all subscribers, repetitions too.
    pub received: usize,
    /// Acknowledged, and never received.
    pub lost: Vec<Finding>,
    /// Received more than once with QoS 2.
    pub duplicates: Vec<Finding>,
    /// Received for the first time after a later one of the same publisher and topic.
    pub disordered: Vec<Finding>,
    /// Received more than once with QoS 1, which may be.
    pub repeated: usize,
    /// What else must not be.
    pub problems: Vec<String>,
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        let findings = [&self.lost, &self.duplicates, &self.disordered];
        findings.iter().all(|findings| findings.is_empty()) && self.problems.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{} messages acknowledged, {} received, {} lost, {} duplicates of QoS 2, {} out of order, {} repetitions of \
             QoS 1, {} other problems",
            self.acknowledged,
            self.received,
            self.lost.len(),
            self.duplicates.len(),
            self.disordered.len(),
            self.repeated,
            self.problems.len()
        )?;
        let kinds = [
            ("lost", &self.lost),
            ("duplicate", &self.duplicates),
            ("out of order", &self.disordered),
        ];
        for (kind, findings) in kinds {
            for finding in findings.iter().take(EXAMPLES_MAX) {
                writeln!(out, "  {kind}: {} for {}", finding.id, finding.subscriber)?;
            }
            for ((publisher, qos, subscriber), count) in counted(findings) {
                writeln!(
                    out,
                    "  {kind}: {count} of {publisher}:{qos} for {subscriber}"
                )?;
            }
        }
        for problem in self.problems.iter().take(EXAMPLES_MAX) {
            writeln!(out, "  {problem}")?;
        }
        Ok(())
    }
}

/// How many findings there are for each publisher, QoS and subscriber.
fn counted(findings: &[Finding]) -> BTreeMap<(u8, u8, &str), usize> {
    let mut counts = BTreeMap::new();
    for Finding { subscriber, id, .. } in findings {
        *counts
            .entry((id.publisher, id.qos, subscriber.as_str()))
            .or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(qos: u8, number: u32) -> MessageId {
        MessageId {
            publisher: 3,
            qos,
            number,
        }
    }

    /// A subscriber that received these of the messages 1 to 4, which were all acknowledged.
    fn received(qos: u8, numbers: &[u32]) -> Verdict {
        let ledger = Ledger::default();
        ledger.subscribed("s", 2);
        for number in 1..=4 {
            ledger.sent(id(qos, number));
            ledger.acknowledged(id(qos, number));
        }
        for &number in numbers {
            ledger.received("s", &id(qos, number).payload());
        }
        assert_eq!(ledger.is_complete(), ledger.verdict().lost.is_empty());
        ledger.verdict()
    }

    #[test]
    fn payloads_are_found_again() {
        let payload = id(2, 77).payload();
        assert_eq!(payload.len(), PAYLOAD_BYTES);
        assert_eq!(MessageId::of(&payload), Some(id(2, 77)));
        assert_eq!(MessageId::of(&payload[1..]), None);
        assert_eq!(MessageId::of("3:2:77"), None);
    }

    #[test]
    fn everything_once_and_in_order_is_clean() {
        assert!(received(1, &[1, 2, 3, 4]).is_clean());
        assert!(received(2, &[1, 2, 3, 4]).is_clean());
    }

    #[test]
    fn repetitions_are_for_qos_1_only() {
        let verdict = received(1, &[1, 2, 3, 1, 2, 3, 4]);
        assert!(verdict.is_clean(), "{verdict}");
        assert_eq!(verdict.repeated, 3);
        let verdict = received(2, &[1, 2, 3, 2, 4]);
        assert_eq!(verdict.duplicates.len(), 1, "{verdict}");
        assert!(!verdict.is_clean());
    }

    #[test]
    fn what_is_missing_is_lost() {
        let verdict = received(2, &[1, 2, 4]);
        assert_eq!(verdict.lost.len(), 1, "{verdict}");
        assert_eq!(verdict.lost[0].id, id(2, 3));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn the_first_time_counts_for_the_order() {
        let verdict = received(1, &[1, 3, 2, 4]);
        assert_eq!(verdict.disordered.len(), 1, "{verdict}");
        assert_eq!(verdict.disordered[0].id, id(1, 2));
    }

    #[test]
    fn what_nobody_sent_is_a_problem() {
        let ledger = Ledger::default();
        ledger.subscribed("s", 2);
        ledger.received("s", &id(1, 1).payload());
        ledger.received("s", "noise");
        assert_eq!(ledger.verdict().problems.len(), 2);
    }
}
