//! From the router to a client: sending, queueing, and sending again.

use headgate_codec::{PacketId, PublishTemplate, QoS, Text};
use std::sync::Arc;

use crate::{
    ConnId, DataStream, Frame, OpId, Output, Record, Retained, Session,
    counters::add,
    env::Env,
    full::Full,
    message::{self, Fanout, Message},
    options::Options,
    session::{Flow, Held, Ids, Inflight, Waiting},
    share::GroupId,
    spill::wait_for,
};

/// What is held back by a fence is recorded this far ahead of the session's sequence, so that after a crash it comes
/// behind what the fence waits for.
const HELD_AHEAD: u64 = 1 << 40;

impl Session {
    /// Delivers a message that matched subscriptions of this session. The hot path: a QoS 0
    /// message for a client that keeps up is one reference to shared bytes.
    #[inline]
    pub(crate) fn deliver(
        &mut self,
        env: &mut Env,
        fan: &mut Fanout<'_>,
        (options, group): (Options, GroupId),
        out: &mut Vec<Output>,
    ) {
        // [MQTT-3.8.4-8]
        let qos = fan.qos().min(options.qos());
        // [MQTT-3.3.1-12] [MQTT-3.3.1-13]
        let retain = fan.retain() && options.has(Options::RETAIN_AS_PUBLISHED);
        if qos == QoS::AtMostOnce
            && !options.has(Options::HAS_ID)
            && let Some(conn) = self.conn
            && self.lanes.is_none()
            && self.takes_qos0(env, None)
        {
            let topic = fan.topic();
            let template = fan.template(self.version, qos, retain);
            return self.send_qos0(env, (conn, None), (template, topic), out);
        }
        self.deliver_otherwise(env, fan, (options, group), (qos, retain), out);
    }

    /// Sends what waits, in order, as far as the connection takes it: first what has to be sent
    /// again \[MQTT-4.4.0-1\], then the queue, then retained messages. `true` = the search for
    /// retained messages has used up its share of time and has to go on later.
    pub(crate) fn pump(
        &mut self,
        env: &mut Env,
        retained: &Retained,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(mut flow) = self.flow.take() else {
            return false;
        };
        let Some(conn) = self.conn else {
            self.load(env, &mut flow, out);
            self.flow = Some(flow);
            return false;
        };
        self.resend(env, &mut flow, conn, out);
        if self.lanes.is_some() {
            self.send_lost_again(env, &mut flow, conn, out);
        }
        self.drain(env, &mut flow, conn, out);
        self.load(env, &mut flow, out);
        let more = self.replay(env, &mut flow, conn, retained, out);
        self.flow = Some(flow);
        self.tell_waiting();
        more
    }

    /// PUBACK, or PUBREC with an error: the message is done \[MQTT-4.4.0-2\], for other members of its
    /// group as well \[MQTT-4.8.2-6\]. `None` = unknown.
    pub(crate) fn acknowledged(
        &mut self,
        env: &mut Env,
        packet_id: PacketId,
        out: &mut Vec<Output>,
    ) -> Option<()> {
        let flow = self.flow.as_mut()?;
        let entry = flow.remove_inflight(flow.position(packet_id)?)?;
        self.note_done(packet_id);
        self.forget(env, entry.queued, out);
        Some(())
    }

    fn takes_qos0(&self, env: &Env, stream: Option<DataStream>) -> bool {
        let flow = self.flow.as_ref();
        self.is_open(env, stream) && flow.is_none_or(|f| self.is_clear(&f.queue_qos0, stream))
    }

    /// Sends a message with QoS 0, once and without DUP \[MQTT-4.3.1-1\].
    #[inline]
    fn send_qos0(
        &mut self,
        env: &mut Env,
        (conn, stream): (ConnId, Option<DataStream>),
        (template, topic): (&PublishTemplate, &Text),
        out: &mut Vec<Output>,
    ) {
        if self.is_too_large(env, template.head.len()) {
            return;
        }
        let aliased = match (self.alias_max, stream) {
            (1.., None) => self.aliased(template, topic, None),
            _ => None,
        };
        let frame = aliased.unwrap_or_else(|| Frame::Bytes(template.head.clone()));
        add(&mut env.counters.publish_out_qos0, 1);
        self.send_frame(env, (conn, stream), frame, out);
    }

    #[inline]
    fn send_frame(
        &mut self,
        env: &mut Env,
        (conn, stream): (ConnId, Option<DataStream>),
        frame: Frame,
        out: &mut Vec<Output>,
    ) {
        let len = frame.encoded_len();
        add(&mut env.counters.packets_out, 1);
        add(&mut env.counters.publish_out_bytes, len as u64);
        self.count_unsent(stream, len as u32);
        out.push(match stream {
            None => Output::Send { conn, frame },
            Some(stream) => Output::SendData {
                conn,
                stream,
                frame,
            },
        });
    }

    /// \[MQTT-3.1.2-24\] \[MQTT-3.1.2-25\]
    #[inline]
    pub(crate) fn is_too_large(&self, env: &mut Env, len: usize) -> bool {
        let too_large = len > self.packet_bytes_max as usize || len == 0;
        if too_large {
            add(&mut env.counters.dropped_too_large, 1);
        }
        too_large
    }

    fn deliver_otherwise(
        &mut self,
        env: &mut Env,
        fan: &mut Fanout<'_>,
        (options, group): (Options, GroupId),
        (qos, retain): (QoS, bool),
        out: &mut Vec<Output>,
    ) {
        let ids = if options.has(Options::HAS_ID) {
            self.matching_ids(fan.topic(), group)
        } else {
            None
        };
        let way = self.way(fan.topic());
        let stream = way.stream;
        if qos == QoS::AtMostOnce {
            let Some(conn) = self.conn else {
                add(&mut env.counters.dropped_offline, 1);
                return;
            };
            if way.datagram || self.takes_qos0(env, stream) {
                let template = match &ids {
                    None => fan.template(self.version, qos, retain).clone(),
                    Some(ids) => {
                        let kind = (qos, retain);
                        message::encode(fan.message(), self.version, kind, ids, env.now)
                    }
                };
                if !way.datagram {
                    let packet = (&template, fan.topic());
                    return self.send_qos0(env, (conn, stream), packet, out);
                }
                if !self.is_too_large(env, template.head.len()) {
                    self.send_datagram(env, (conn, stream), template.head, out);
                }
                return;
            }
            if env.pressure.drop_qos0 {
                return add(&mut env.counters.dropped_overload, 1);
            }
        }
        let message = Arc::clone(fan.message());
        if !self.has_room(env, stream, (&message, qos), out) {
            return;
        }
        let mut waiting = Waiting::new(message, ids, (group, stream), (qos, retain));
        let mut flow = self.flow.take().unwrap_or_default();
        if !self.register(env, &mut flow, &mut waiting, 0, out) {
            self.flow = Some(flow);
            return;
        }
        let template = (qos != QoS::AtMostOnce && waiting.ids.is_none() && self.conn.is_some())
            .then(|| fan.template(self.version, qos, retain));
        self.place(env, flow, waiting, template, out);
    }

    /// Gives a message with QoS > 0 its Packet Identifier and records it, `ahead` of the sequence. `false` = there
    /// is no Packet Identifier left, and the message is dropped.
    pub(crate) fn register(
        &mut self,
        env: &mut Env,
        flow: &mut Flow,
        waiting: &mut Waiting,
        ahead: u64,
        out: &mut Vec<Output>,
    ) -> bool {
        if waiting.qos == QoS::AtMostOnce {
            return true;
        }
        let Some(packet_id) = flow.next_packet_id(env.first_packet_id) else {
            env.count_dropped(Full::Messages, waiting.qos);
            return false;
        };
        waiting.packet_id = Some(packet_id);
        self.record(env, waiting, ahead, out);
        true
    }

    /// Records a message with QoS > 0 for the session, if it needs that.
    fn record(&mut self, env: &mut Env, waiting: &mut Waiting, ahead: u64, out: &mut Vec<Output>) {
        let (Some(packet_id), true) = (waiting.packet_id, self.is_recorded) else {
            return;
        };
        let record = Record::Queued {
            message: Arc::clone(&waiting.message),
            qos: waiting.qos,
            retain: waiting.retain,
            ids: waiting.ids.clone(),
            packet_id,
            group: self.filter_of(waiting.group),
        };
        self.sequence += 1;
        waiting.queued = self.sequence + ahead;
        env.persist(self.id, self.epoch, waiting.queued, record, out);
        // [MQTT-4.3.3-2]: a client that has it and a server that doesn't know would make two of it.
        if waiting.qos == QoS::ExactlyOnce {
            waiting.op = env.last_persist;
        }
    }

    /// Sends a message now, if none waits and the client may get it, or puts it at the queue's end:
    /// every topic is an Ordered Topic \[MQTT-4.6.0-6\], and every session gets its copy \[MQTT-4.5.0-1\].
    fn place(
        &mut self,
        env: &mut Env,
        mut flow: Box<Flow>,
        waiting: Waiting,
        template: Option<&PublishTemplate>,
        out: &mut Vec<Output>,
    ) {
        flow.bytes += waiting.message.cost();
        let now = self.takes_now(env, &flow, &waiting);
        match (self.conn, template) {
            (Some(conn), Some(template)) if now => {
                self.send_first(env, &mut flow, conn, waiting, template, out);
            }
            (Some(conn), None) if now && waiting.qos != QoS::AtMostOnce => {
                self.encode_and_send(env, &mut flow, conn, waiting, out);
            }
            _ => self.enqueue(env, &mut flow, waiting),
        }
        self.flow = Some(flow);
        self.tell_waiting();
    }

    /// Puts a message at its queue's end; `flow` has counted its bytes.
    pub(crate) fn enqueue(&self, env: &mut Env, flow: &mut Flow, waiting: Waiting) {
        add(&mut env.counters.queued, 1);
        if waiting.qos == QoS::AtMostOnce {
            return flow.queue_qos0.push_back(waiting);
        }
        if self.spills_next(env, flow, &waiting) {
            return flow.spill(waiting);
        }
        // Otherwise the connection that comes has to wait for a later record.
        if self.conn.is_some() || self.pending.is_some() {
            wait_for(env, self.handle, &waiting);
        }
        flow.queue.push_back(waiting);
    }

    /// Holds a message back until the fences of a move have arrived. It is recorded now, behind all that may come
    /// before it.
    #[cold]
    pub(crate) fn hold(
        &mut self,
        env: &mut Env,
        message: &Arc<Message>,
        (options, group): (Options, GroupId),
        out: &mut Vec<Output>,
    ) {
        let qos = message.qos.min(options.qos());
        if !self.has_room_behind_fence(env, (message, qos), out) {
            return;
        }
        let mut waiting = self.waiting(message, (options, group));
        let mut flow = self.flow.take().unwrap_or_default();
        let is_registered = self.register(env, &mut flow, &mut waiting, HELD_AHEAD, out);
        self.flow = Some(flow);
        if !is_registered {
            return;
        }
        if let Some(fence) = &mut self.fence {
            fence.held_bytes += message.cost();
            fence.held.push(Held {
                message: Arc::clone(message),
                options,
                group,
                queued: waiting.queued,
                packet_id: waiting.packet_id,
            });
        }
    }

    /// A message as it stands in the session's queue.
    fn waiting(&self, message: &Arc<Message>, (options, group): (Options, GroupId)) -> Waiting {
        let ids = if options.has(Options::HAS_ID) {
            self.matching_ids(&message.topic, group)
        } else {
            None
        };
        let qos = message.qos.min(options.qos());
        let retain = message.retain && options.has(Options::RETAIN_AS_PUBLISHED);
        let stream = self.way(&message.topic).stream;
        let message = Arc::clone(message);
        Waiting::new(message, ids, (group, stream), (qos, retain))
    }

    /// Delivers what was held back, in its order.
    pub(crate) fn release(&mut self, env: &mut Env, held: Vec<Held>, out: &mut Vec<Output>) {
        for held in held {
            let (message, to) = (&held.message, (held.options, held.group));
            let qos = message.qos.min(held.options.qos());
            // [MQTT-3.3.2-5]
            if message.is_expired(env.now) {
                add(&mut env.counters.dropped_expired, 1);
            } else if qos == QoS::AtMostOnce {
                self.deliver(env, &mut Fanout::of_message(message, env.now), to, out);
            } else if self.has_room(env, None, (message, qos), out) {
                let mut waiting = self.waiting(message, to);
                waiting.packet_id = held.packet_id;
                // Behind what came by way of the old home.
                self.record(env, &mut waiting, 0, out);
                let flow = self.flow.take().unwrap_or_default();
                self.place(env, flow, waiting, None, out);
            }
            self.forget(env, held.queued, out);
        }
    }

    /// A message with QoS > 0 may be sent without overtaking another \[MQTT-3.3.4-9\] \[MQTT-4.9.0-2\].
    fn takes_now(&self, env: &Env, flow: &Flow, waiting: &Waiting) -> bool {
        let stream = waiting.stream;
        waiting.op <= env.persisted
            && self.is_clear(&flow.queue, stream)
            && flow.spill.is_none()
            && flow.sent == flow.inflight.len()
            && flow.inflight.len() < usize::from(self.send_quota)
            && self.is_open(env, stream)
            && self.has_quota(stream)
    }

    pub(crate) fn encode_and_send(
        &mut self,
        env: &mut Env,
        flow: &mut Flow,
        conn: ConnId,
        waiting: Waiting,
        out: &mut Vec<Output>,
    ) {
        let kind = (waiting.qos, waiting.retain);
        let template = message::encode(
            &waiting.message,
            self.version,
            kind,
            ids_of(&waiting.ids),
            env.now,
        );
        self.send_first(env, flow, conn, waiting, &template, out);
    }

    /// Sends a message for the first time; `flow` has counted its bytes.
    fn send_first(
        &mut self,
        env: &mut Env,
        flow: &mut Flow,
        conn: ConnId,
        waiting: Waiting,
        template: &PublishTemplate,
        out: &mut Vec<Output>,
    ) {
        let Waiting {
            message,
            ids,
            queued,
            group,
            stream,
            packet_id,
            qos,
            retain,
            op: _,
        } = waiting;
        let cost = message.cost();
        let Some(packet_id) = packet_id else {
            flow.bytes -= cost;
            return self.send_qos0(env, (conn, stream), (template, &message.topic), out);
        };
        let len = template.encoded_len();
        if template.head.is_empty() || self.is_too_large(env, len) {
            flow.bytes -= cost;
            return self.forget(env, queued, out);
        }
        let counter = match qos {
            QoS::ExactlyOnce => &mut env.counters.publish_out_qos2,
            _ => &mut env.counters.publish_out_qos1,
        };
        add(counter, 1);
        flow.inflight.push_back(Inflight {
            message: Some(Arc::clone(&message)),
            ids,
            queued,
            op: OpId(0),
            group,
            packet_id,
            qos,
            retain,
        });
        flow.sent += 1;
        self.note_sent(stream, packet_id);
        // [MQTT-4.3.2-2] [MQTT-4.3.3-2] [MQTT-3.3.1-3]
        self.send_publish(
            env,
            (conn, stream),
            (template, &message.topic),
            (packet_id, false),
            out,
        );
    }

    pub(crate) fn send_publish(
        &mut self,
        env: &mut Env,
        (conn, stream): (ConnId, Option<DataStream>),
        (template, topic): (&PublishTemplate, &Text),
        (packet_id, dup): (PacketId, bool),
        out: &mut Vec<Output>,
    ) {
        // Another stream could overtake the packet that gives a topic its alias.
        let aliased = match (self.alias_max, stream) {
            (1.., None) => self.aliased(template, topic, Some((packet_id, dup))),
            _ => None,
        };
        let frame = aliased.unwrap_or_else(|| Frame::Publish {
            head: template.head.clone(),
            packet_id,
            dup,
            tail: template.tail.clone(),
        });
        self.send_frame(env, (conn, stream), frame, out);
    }

    /// A recorded message needs its record no more.
    pub(crate) fn forget(&mut self, env: &mut Env, queued: u64, out: &mut Vec<Output>) {
        if queued != 0 {
            self.persist(env, Record::Acknowledged { queued }, out);
        }
    }

    fn drain(&mut self, env: &mut Env, flow: &mut Flow, conn: ConnId, out: &mut Vec<Output>) {
        while let Some(waiting) = flow.next(self, env) {
            // [MQTT-3.3.2-5]
            if waiting.message.is_expired(env.now) {
                add(&mut env.counters.dropped_expired, 1);
                flow.bytes -= waiting.message.cost();
                self.forget(env, waiting.queued, out);
                continue;
            }
            self.encode_and_send(env, flow, conn, waiting, out);
        }
    }
}

impl Waiting {
    pub(crate) fn new(
        message: Arc<Message>,
        ids: Ids,
        (group, stream): (GroupId, Option<DataStream>),
        (qos, retain): (QoS, bool),
    ) -> Self {
        Self {
            message,
            ids,
            queued: 0,
            op: OpId(0),
            group,
            packet_id: None,
            stream,
            qos,
            retain,
        }
    }
}

pub(crate) fn ids_of(ids: &Ids) -> &[u32] {
    ids.as_deref().unwrap_or_default()
}
