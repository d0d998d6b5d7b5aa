//! A session: what the server keeps for a client (MQTT 5.0 §4.1), connected or not.

use bytes::Bytes;
use headgate_codec::{Packet, PacketId, QoS, Text, Version, Will};
use std::{collections::VecDeque, sync::Arc};

use crate::{
    ConnId, DataStream, Delivery, Frame, Mesh, OpId, Output, Record, SessionId, Time, WorkerSlot,
    alias::Aliases,
    attach::PendingConnack,
    env::Env,
    full::FullQueue,
    lanes::Lanes,
    message::Message,
    options::Options,
    share::{GroupId, MemberState},
    slots::{Handle, WaitingTakeover},
    spill::Spill,
    subscriptions::Subscriptions,
};

/// A client's session. It moves between workers by value; outside the core it is opaque.
///
/// Small while idle: what only some sessions have is boxed.
#[derive(Debug)]
pub struct Session {
    pub(crate) id: SessionId,
    pub(crate) client_id: Box<str>,
    pub(crate) handle: Handle,
    /// Its owner's epoch.
    pub(crate) epoch: u32,
    /// Session Expiry Interval, seconds.
    pub(crate) expiry_s: u32,
    /// What happens to it is recorded: it outlives its connection, or the store has a part of its queue.
    pub(crate) is_recorded: bool,
    /// Records written.
    pub(crate) sequence: u64,
    /// When it ends; of meaning while it isn't connected.
    pub(crate) expires_at: Time,
    /// The earliest timer that will fire for it.
    pub(crate) armed: Time,
    pub(crate) conn: Option<ConnId>,
    /// Bytes given to the connection that the transport hasn't taken.
    pub(crate) unsent: u32,
    /// Of the client: Maximum Packet Size, bytes.
    pub(crate) packet_bytes_max: u32,
    /// Messages with QoS > 0 that may be on their way.
    pub(crate) send_quota: u16,
    pub(crate) version: Version,
    /// The client wants Reason Strings in acknowledgements (§3.1.2.11.7).
    pub(crate) problem_info: bool,
    /// Topic Aliases that may be sent to the client on this connection; 0 = none.
    pub(crate) alias_max: u16,
    /// Quota class of the last connection.
    pub(crate) quota_class: u8,
    pub(crate) aliases: Option<Box<Aliases>>,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) will: Option<Box<PendingWill>>,
    pub(crate) flow: Option<Box<Flow>>,
    pub(crate) fence: Option<Box<Fenced>>,
    /// A connection that gets the session once that is recorded.
    pub(crate) pending: Option<Box<PendingConnack>>,
    /// Present while its connection has data streams or datagrams.
    pub(crate) lanes: Option<Box<Lanes>>,
    /// Present once it has been a member of a group.
    pub(crate) share: Option<Arc<MemberState>>,
    /// It ends for the client's next owner, once it is known what it leaves to others.
    pub(crate) heir: Option<Box<WaitingTakeover>>,
}

/// A will, and when it is to be published: `None` while the client is connected.
#[derive(Debug)]
pub(crate) struct PendingWill {
    pub(crate) will: Will,
    pub(crate) at: Option<Time>,
}

/// Messages on their way to and from the client.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// With QoS > 0, not sent yet, in order.
    pub(crate) queue: VecDeque<Waiting>,
    /// Sent and not acknowledged \[MQTT-4.3.2-3\] \[MQTT-4.3.3-3\] \[MQTT-4.3.3-5\], in the order of sending
    /// \[MQTT-4.6.0-5\].
    pub(crate) inflight: VecDeque<Inflight>,
    /// How many of `inflight`, from its front, were sent on this connection.
    pub(crate) sent: usize,
    /// The same for QoS 0.
    pub(crate) queue_qos0: VecDeque<Waiting>,
    /// Messages with QoS > 0 that went ahead of one with QoS 0 since the last one of these.
    pub(crate) ahead_of_qos0: u8,
    /// Memory of the queues and `inflight`, bytes.
    pub(crate) bytes: u32,
    pub(crate) last_packet_id: u16,
    /// Packet Identifiers after that one that are surely free.
    pub(crate) free_ids: u16,
    /// The part of the queue that only the store has, behind all that is here.
    pub(crate) spill: Option<Box<Spill>>,
    /// Incoming QoS 2 messages that were accepted and not released, sorted.
    pub(crate) received: Vec<PacketId>,
    /// Retained messages that new subscriptions still have to get.
    pub(crate) replays: VecDeque<Replay>,
    /// Present while somebody waits until the queue has room, or has waited for as long as that may take.
    pub(crate) full: Option<Box<FullQueue>>,
}

/// A message that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) message: Arc<Message>,
    pub(crate) ids: Ids,
    /// Sequence of its `Queued` record; 0 = none.
    pub(crate) queued: u64,
    /// The Persist that has to be safe before it leaves; 0 = none.
    pub(crate) op: OpId,
    /// The group that the session got it as a member of; 0 = none.
    pub(crate) group: GroupId,
    /// With QoS > 0.
    pub(crate) packet_id: Option<PacketId>,
    /// Where it leaves; `None` = the control stream.
    pub(crate) stream: Option<DataStream>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
}

/// Subscription Identifiers; most messages have none.
pub(crate) type Ids = Option<Box<[u32]>>;

/// A message that was sent and isn't acknowledged.
#[derive(Debug)]
pub(crate) struct Inflight {
    /// `None`: QoS 2, PUBREC has come, PUBREL was sent \[MQTT-4.3.3-6\].
    pub(crate) message: Option<Arc<Message>>,
    pub(crate) ids: Ids,
    pub(crate) queued: u64,
    /// The Persist that has to be safe before PUBREL leaves; 0 = none.
    pub(crate) op: OpId,
    /// As in [`Waiting`].
    pub(crate) group: GroupId,
    pub(crate) packet_id: PacketId,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
}

/// Retained messages for a subscription, read on as the connection takes them.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) filter: Box<str>,
    pub(crate) after: Option<Box<str>>,
    pub(crate) id: u32,
    pub(crate) qos: QoS,
}

/// A session that has just moved here: fences that haven't arrived, and what they hold back.
#[derive(Debug)]
pub(crate) struct Fenced {
    pub(crate) via: WorkerSlot,
    pub(crate) waiting: u32,
    pub(crate) held: Vec<Held>,
    pub(crate) held_bytes: u32,
    /// A fence that got lost (with its worker) is waited for no longer than this.
    pub(crate) until: Time,
    pub(crate) takeover: Option<WaitingTakeover>,
}

/// A delivery that is held back.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) message: Arc<Message>,
    pub(crate) options: Options,
    /// As in [`Waiting`].
    pub(crate) group: GroupId,
    /// Sequence of its `Queued` record; 0 = none.
    pub(crate) queued: u64,
    /// With QoS > 0.
    pub(crate) packet_id: Option<PacketId>,
}

impl Session {
    pub(crate) fn new(id: SessionId, client_id: &Text, handle: Handle, epoch: u32) -> Self {
        Self {
            id,
            client_id: client_id.as_str().into(),
            handle,
            epoch,
            expiry_s: 0,
            is_recorded: false,
            sequence: 0,
            expires_at: NEVER,
            armed: NEVER,
            conn: None,
            unsent: 0,
            packet_bytes_max: u32::MAX,
            send_quota: 1,
            version: Version::V5,
            problem_info: true,
            alias_max: 0,
            quota_class: 0,
            aliases: None,
            subscriptions: Subscriptions::default(),
            will: None,
            flow: None,
            fence: None,
            pending: None,
            lanes: None,
            share: None,
            heir: None,
        }
    }

    /// It outlives its connection.
    pub(crate) fn is_persistent(&self) -> bool {
        self.expiry_s > 0
    }

    /// Client Identifier.
    pub(crate) fn client_id(&self) -> Text {
        Text::from(&*self.client_id)
    }

    /// Records something, if the session is persistent; the record's sequence, or 0.
    pub(crate) fn persist(&mut self, env: &mut Env, record: Record, out: &mut Vec<Output>) -> u64 {
        if !self.is_recorded {
            return 0;
        }
        self.put(env, record, out)
    }

    /// Records something; the record's sequence.
    pub(crate) fn put(&mut self, env: &mut Env, record: Record, out: &mut Vec<Output>) -> u64 {
        self.sequence += 1;
        env.persist(self.id, self.epoch, self.sequence, record, out);
        self.sequence
    }

    /// Records what the session is like now.
    pub(crate) fn record_opened(&mut self, env: &mut Env, out: &mut Vec<Output>) {
        let record = Record::SessionOpened {
            client_id: self.client_id(),
            expiry_s: self.expiry_s,
            version: self.version,
            send_quota: self.send_quota,
            will: self.will.as_ref().map(|w| Box::new(w.will.clone())),
        };
        self.put(env, record, out);
    }

    /// Records that the session goes on without a connection.
    pub(crate) fn record_closed(&mut self, env: &mut Env, out: &mut Vec<Output>) {
        let record = Record::SessionClosed {
            expires_at: (self.expires_at != NEVER).then_some(self.expires_at),
            will_at: self.will.as_ref().and_then(|w| w.at),
            sent_up_to: self.flow.as_ref().map_or(0, |f| f.sent_up_to()),
        };
        self.put(env, record, out);
    }

    /// Sends a packet that isn't a PUBLISH. What exceeds the client's Maximum Packet Size is not
    /// sent \[MQTT-3.1.2-24\].
    pub(crate) fn send(&mut self, env: &mut Env, packet: &Packet, out: &mut Vec<Output>) {
        let bytes = env.encode(packet, self.version);
        self.send_bytes(bytes, out);
    }

    /// Sends an encoded packet.
    pub(crate) fn send_bytes(&mut self, bytes: Bytes, out: &mut Vec<Output>) {
        let Some(conn) = self.conn else { return };
        if bytes.len() > self.packet_bytes_max as usize || bytes.is_empty() {
            return;
        }
        self.unsent += bytes.len() as u32;
        out.push(Output::Send {
            conn,
            frame: Frame::Bytes(bytes),
        });
    }

    /// Sends several short packets at once: none exceeds what a client that took a CONNACK takes.
    pub(crate) fn send_unchecked(&mut self, bytes: Bytes, out: &mut Vec<Output>) {
        if let (Some(conn), false) = (self.conn, bytes.is_empty()) {
            self.unsent += bytes.len() as u32;
            out.push(Output::Send {
                conn,
                frame: Frame::Bytes(bytes),
            });
        }
    }

    pub(crate) fn flow(&mut self) -> &mut Flow {
        self.flow.get_or_insert_default()
    }

    /// Gives back what an idle session doesn't need.
    pub(crate) fn shrink(&mut self) {
        // What a fence holds back has its Packet Identifiers already.
        if self.fence.is_none() && self.flow.as_ref().is_some_and(|f| f.is_idle()) {
            self.flow = None;
        }
        self.subscriptions.shrink();
    }

    /// The Topic Filter that makes the session a member of a group.
    pub(crate) fn filter_of(&self, group: GroupId) -> Option<Text> {
        let subscription = self
            .subscriptions
            .iter()
            .find(|s| group != 0 && s.group == group)?;
        Some(Text::from(subscription.filter))
    }

    /// Subscription Identifiers of all subscriptions that match \[MQTT-3.3.4-4\]; for a member of a
    /// `group` that of the one subscription.
    pub(crate) fn matching_ids(&self, topic: &str, group: GroupId) -> Ids {
        let ids: Box<[u32]> = self
            .subscriptions
            .iter()
            .filter(|s| s.id != 0 && s.group == group)
            .filter(|s| group != 0 || headgate_topics::filter_matches(s.filter, topic))
            .map(|s| s.id)
            .collect();
        (!ids.is_empty()).then_some(ids)
    }
}

/// A time that doesn't come.
pub(crate) const NEVER: Time = Time(u64::MAX);

/// Messages with QoS > 0 that go ahead of one with QoS 0, if both wait.
const AHEAD_OF_QOS0_MAX: u8 = 8;

impl Flow {
    /// Messages that haven't been sent, and all that only the store has.
    pub(crate) fn waiting(&self) -> usize {
        let spilled = self.spill.as_ref().map_or(0, |s| s.count as usize);
        self.queue.len() + self.queue_qos0.len() + spilled
    }

    /// The next message to be sent, within the client's Receive Maximum. What has to be acknowledged
    /// goes first, but nothing starves: eight of these let one with QoS 0 pass.
    /// `session` knows which streams can take one, and `env` what is safe.
    pub(crate) fn next(&mut self, session: &Session, env: &Env) -> Option<Waiting> {
        let acked = (self.sent == self.inflight.len()
            && self.inflight.len() < usize::from(session.send_quota))
        .then(|| session.next_of(env, &self.queue, true))
        .flatten();
        let qos0 = session.next_of(env, &self.queue_qos0, false);
        match (acked, qos0) {
            (Some(place), None) => self.take_acked(place),
            (Some(place), _) if self.ahead_of_qos0 < AHEAD_OF_QOS0_MAX => self.take_acked(place),
            (_, Some(place)) => {
                self.ahead_of_qos0 = 0;
                self.queue_qos0.remove(place)
            }
            (None, None) => None,
        }
    }

    fn take_acked(&mut self, place: usize) -> Option<Waiting> {
        self.ahead_of_qos0 = self.ahead_of_qos0.saturating_add(1);
        self.queue.remove(place)
    }

    fn is_idle(&self) -> bool {
        self.waiting() == 0
            && self.spill.is_none()
            && self.inflight.is_empty()
            && self.received.is_empty()
            && self.replays.is_empty()
            && self.full.is_none()
    }

    /// A Packet Identifier that isn't in use \[MQTT-2.2.1-4\] \[MQTT-4.3.2-1\] \[MQTT-4.3.3-1\]; `None` = there may be none.
    /// They are given out when a message is queued and recorded with it, so that after a restart it
    /// has the same one. The first is the one after `first`.
    pub(crate) fn next_packet_id(&mut self, first: u16) -> Option<PacketId> {
        if self.last_packet_id == 0 {
            self.last_packet_id = first;
        }
        if self.free_ids == 0 {
            self.find_free_ids();
        }
        self.free_ids = self.free_ids.checked_sub(1)?;
        self.last_packet_id = match self.last_packet_id {
            u16::MAX => 1,
            last => last + 1,
        };
        PacketId::new(self.last_packet_id)
    }

    /// Moves on to the next Packet Identifiers that are free, and counts them.
    fn find_free_ids(&mut self) {
        const ALL: i32 = u16::MAX as i32;
        let last = i32::from(self.last_packet_id);
        let distance = |id: u16| (i32::from(id) - last - 1).rem_euclid(ALL);
        let inflight = self.inflight.iter().map(|i| i.packet_id);
        let queued = self.queue.iter().filter_map(|w| w.packet_id);
        let mut used: Vec<i32> = inflight
            .chain(queued)
            .map(|id| distance(id.get()))
            .collect();
        // What the store has goes on from there to the last one.
        let wall = self.spill.as_ref().map_or(ALL, |s| distance(s.first_id));
        used.sort_unstable();
        let mut from = 0;
        while used.get(from as usize) == Some(&from) {
            from += 1;
        }
        let to = used.get(from as usize).copied().unwrap_or(ALL).min(wall);
        self.free_ids = u16::try_from(to - from).unwrap_or(0);
        if self.free_ids > 0 {
            self.last_packet_id = u16::try_from((last + from) % ALL).unwrap_or(0);
        }
    }

    /// The highest sequence of what has been sent to the client and isn't done.
    pub(crate) fn sent_up_to(&self) -> u64 {
        let last = self.inflight.iter().map(|i| i.queued).max();
        let spilled = self.spill.as_ref().map_or(0, |s| s.sent_up_to);
        last.unwrap_or(0).max(spilled)
    }

    /// Where an acknowledgement belongs. Acknowledgements come in order, so it is near the front.
    pub(crate) fn position(&self, packet_id: PacketId) -> Option<usize> {
        self.inflight.iter().position(|i| i.packet_id == packet_id)
    }

    /// Forgets a message that was sent.
    pub(crate) fn remove_inflight(&mut self, position: usize) -> Option<Inflight> {
        let entry = self.inflight.remove(position)?;
        if position < self.sent {
            self.sent -= 1;
        }
        if let Some(message) = &entry.message {
            self.bytes = self.bytes.saturating_sub(message.cost());
        }
        Some(entry)
    }
}

/// A [`Delivery`] as a message to another worker.
pub(crate) fn deliver_to(to: WorkerSlot, origin: Option<ConnId>, delivery: Delivery) -> Output {
    Output::Mesh {
        to,
        origin,
        message: Mesh::Deliver(Box::new(delivery)),
    }
}
