//! The MQTT of one load client, whatever carries it.

use headgate_codec::QoS;

use super::client::{self, Cutter, Reply};

/// Topic Filters in one SUBSCRIBE; the next one goes out when the SUBACK has come.
const FILTERS_PER_SUBSCRIBE: usize = 100;
/// What a broker may be sent that doesn't say (MQTT 5.0 §3.2.2.3.3).
const RECEIVE_MAXIMUM_DEFAULT: u16 = 65_535;

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Sessions that are connected and have their subscriptions.
    pub ready: usize,
    /// Connections of which nothing is left.
    pub gone: usize,
    /// PUBLISH packets that came in.
    pub deliveries: u64,
    /// PUBLISH packets with QoS 1 or 2 that the broker has taken over: PUBACK, or PUBCOMP.
    pub acknowledged: u64,
}

/// One client of a crowd or a swarm.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ClientRef(pub(super) usize);

/// How far the MQTT of one client has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// PUBLISH packets that came in.
    pub deliveries: u64,
    /// PUBLISH packets of its own with QoS 1 or 2 that the broker has taken over.
    pub acknowledged: u64,
    /// How many of these the broker takes at a time (Receive Maximum).
    pub receive_maximum: u16,
}

/// What a client is, and what it subscribes to.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Client Identifier.
    pub id: String,
    /// Topic Filters.
    pub filters: Vec<String>,
    /// Maximum QoS of its subscriptions.
    pub qos: QoS,
    /// Session Expiry Interval, seconds; without one it is a new session that ends with its connection.
    pub expiry_s: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Session {
    pub plan: Plan,
    pub progress: Progress,
    /// Packets for the broker.
    pub output: Vec<u8>,
    cutter: Cutter,
    subscribed: usize,
    is_ready: bool,
}

impl Session {
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            progress: Progress {
                deliveries: 0,
                acknowledged: 0,
                receive_maximum: RECEIVE_MAXIMUM_DEFAULT,
            },
            output: Vec::new(),
            cutter: Cutter::default(),
            subscribed: 0,
            is_ready: false,
        }
    }

    /// Sends CONNECT.
    pub fn begin(&mut self) {
        let connect = client::connect(&self.plan.id, self.plan.expiry_s);
        self.output.extend_from_slice(&connect);
    }

    /// Takes bytes of the broker.
    ///
    /// # Errors
    /// The broker refuses something, or sends what this client didn't ask for.
    pub fn take(&mut self, bytes: &[u8], counts: &mut Counts) -> Result<(), String> {
        let mut cutter = std::mem::take(&mut self.cutter);
        let mut outcome = Ok(());
        cutter.cut(bytes, |reply| {
            if outcome.is_ok() {
                outcome = self.reply(reply, counts);
            }
        });
        self.cutter = cutter;
        outcome
    }

    fn reply(&mut self, reply: Reply, counts: &mut Counts) -> Result<(), String> {
        // Acknowledgements without a Reason Code: success (MQTT 5.0 §3.4.2.1).
        let mut answer =
            |kind: u8, [high, low]: [u8; 2]| self.output.extend_from_slice(&[kind, 2, high, low]);
        match reply {
            Reply::Publish { qos, packet_id } => {
                self.progress.deliveries += 1;
                counts.deliveries += 1;
                match (qos, packet_id) {
                    (1, Some(id)) => answer(0x40, id),
                    (2, Some(id)) => answer(0x50, id),
                    _ => {}
                }
            }
            Reply::PubRec { reason, packet_id } if reason < 0x80 => answer(0x62, packet_id),
            Reply::PubRel { packet_id } => answer(0x70, packet_id),
            Reply::PubAck { reason } | Reply::PubComp { reason } if reason < 0x80 => {
                self.progress.acknowledged += 1;
                counts.acknowledged += 1;
            }
            Reply::ConnAck {
                reason: 0,
                receive_maximum,
            } => {
                self.progress.receive_maximum = receive_maximum.unwrap_or(RECEIVE_MAXIMUM_DEFAULT);
                self.subscribe(counts);
            }
            Reply::SubAck { accepted: true } => self.subscribe(counts),
            Reply::Malformed(kind) => {
                return Err(format!("it sends malformed packets (packet type {kind})"));
            }
            refused => return Err(format!("{} got {refused:?}", self.plan.id)),
        }
        Ok(())
    }

    fn subscribe(&mut self, counts: &mut Counts) {
        let rest = &self.plan.filters[self.subscribed..];
        let next = &rest[..rest.len().min(FILTERS_PER_SUBSCRIBE)];
        if next.is_empty() {
            counts.ready += usize::from(!self.is_ready);
            self.is_ready = true;
            return;
        }
        self.output
            .extend_from_slice(&client::subscribe(next, self.plan.qos));
        self.subscribed += next.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNACK: [u8; 8] = [0x20, 6, 0, 0, 3, 0x21, 0, 10];

    fn session(filters: &[&str]) -> (Session, Counts) {
        let session = Session::new(Plan {
            id: "test".to_owned(),
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            qos: QoS::ExactlyOnce,
            expiry_s: None,
        });
        (session, Counts::default())
    }

    #[test]
    fn is_ready_with_the_last_subscription() {
        let (mut session, mut counts) = session(&["a/b"; FILTERS_PER_SUBSCRIBE + 1]);
        session.take(&CONNACK, &mut counts).expect("accepted");
        assert_eq!((session.progress.receive_maximum, counts.ready), (10, 0));
        let suback = [0x90, 4, 0, 1, 0, 2];
        session.take(&suback, &mut counts).expect("accepted");
        assert_eq!(counts.ready, 0);
        session.take(&suback, &mut counts).expect("accepted");
        assert_eq!(counts.ready, 1);
    }

    #[test]
    fn answers_what_qos_2_asks_for() {
        let (mut session, mut counts) = session(&[]);
        session.take(&CONNACK, &mut counts).expect("accepted");
        let publish = [0x34, 6, 0, 1, b'a', 0x12, 0x34, 0];
        session.take(&publish, &mut counts).expect("asked for");
        session
            .take(&[0x62, 2, 0x12, 0x34], &mut counts)
            .expect("PUBREL");
        session
            .take(&[0x50, 2, 0, 7, 0x70, 3, 0, 7, 0], &mut counts)
            .expect("PUBREC, PUBCOMP");
        assert_eq!(
            session.output,
            [0x50, 2, 0x12, 0x34, 0x70, 2, 0x12, 0x34, 0x62, 2, 0, 7]
        );
        assert_eq!((counts.deliveries, counts.acknowledged), (1, 1));
    }

    #[test]
    fn a_refusal_is_an_error() {
        for refusal in [
            &[0x20, 3, 0, 0x87, 0][..],
            &[0x90, 4, 0, 1, 0, 0x97],
            &[0x40, 3, 0, 1, 0x97],
            &[0xe0, 1, 0x93],
        ] {
            let (mut session, mut counts) = session(&["a"]);
            assert!(
                session.take(refusal, &mut counts).is_err(),
                "{refusal:02x?}"
            );
        }
    }
}
