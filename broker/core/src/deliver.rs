//! From the router to a client: sending, queueing, and sending again.

use headgate_codec::{Ack, Packet, PacketId, PublishTemplate, QoS, ReasonCode, Text};
use std::sync::Arc;

use crate::{
    ConnId, DataStream, Frame, Output, Record, Retained, Session,
    counters::add,
    env::Env,
    message::{self, Fanout, Message},
    options::Options,
    session::{Flow, Held, Ids, Inflight, Waiting},
    share::GroupId,
};

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
        let (Some(conn), Some(mut flow)) = (self.conn, self.flow.take()) else {
            return false;
        };
        self.resend(env, &mut flow, conn, out);
        if self.lanes.is_some() {
            self.send_lost_again(env, &mut flow, conn, out);
        }
        self.drain(env, &mut flow, conn, out);
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
    fn is_too_large(&self, env: &mut Env, len: usize) -> bool {
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
        }
        let message = Arc::clone(fan.message());
        if !self.has_room(env, stream, &message, qos) {
            return;
        }
        let queued = self.record(env, &message, qos, out);
        let template = (qos != QoS::AtMostOnce && ids.is_none() && self.conn.is_some())
            .then(|| fan.template(self.version, qos, retain));
        self.place(
            env,
            Waiting {
                message,
                ids,
                queued,
                group,
                stream,
                qos,
                retain,
            },
            template,
            out,
        );
    }

    /// Records a message with QoS > 0 for the session; the record's sequence, or 0.
    pub(crate) fn record(
        &mut self,
        env: &mut Env,
        message: &Arc<Message>,
        qos: QoS,
        out: &mut Vec<Output>,
    ) -> u64 {
        if qos == QoS::AtMostOnce || !self.is_persistent() {
            return 0;
        }
        self.persist(
            env,
            Record::Queued {
                message: Arc::clone(message),
                qos,
            },
            out,
        )
    }

    /// Sends a message now, if none waits and the client may get it, or puts it at the queue's end:
    /// every topic is an Ordered Topic \[MQTT-4.6.0-6\], and every session gets its copy \[MQTT-4.5.0-1\].
    fn place(
        &mut self,
        env: &mut Env,
        waiting: Waiting,
        template: Option<&PublishTemplate>,
        out: &mut Vec<Output>,
    ) {
        let mut flow = self.flow.take().unwrap_or_default();
        flow.bytes += waiting.message.cost();
        match (self.conn, template) {
            (Some(conn), Some(template)) if self.takes_now(env, &flow, waiting.stream) => {
                self.send_first(env, &mut flow, conn, waiting, template, out);
            }
            (Some(conn), None)
                if waiting.qos != QoS::AtMostOnce && self.takes_now(env, &flow, waiting.stream) =>
            {
                self.encode_and_send(env, &mut flow, conn, waiting, out);
            }
            _ => {
                add(&mut env.counters.queued, 1);
                let queue = match waiting.qos {
                    QoS::AtMostOnce => &mut flow.queue_qos0,
                    _ => &mut flow.queue,
                };
                queue.push_back(waiting);
            }
        }
        self.flow = Some(flow);
        self.tell_waiting();
    }

    /// Holds a message back until the fences of a move have arrived. It is recorded now.
    pub(crate) fn hold(
        &mut self,
        env: &mut Env,
        message: &Arc<Message>,
        (options, group): (Options, GroupId),
        out: &mut Vec<Output>,
    ) {
        let Some(fence) = &self.fence else { return };
        let cost = message.cost();
        let qos = message.qos.min(options.qos());
        if !env.fits(
            self.quota_class,
            (fence.held.len(), fence.held_bytes),
            message,
            qos,
        ) {
            return;
        }
        let queued = self.record(env, message, qos, out);
        if let Some(fence) = &mut self.fence {
            fence.held_bytes += cost;
            fence.held.push(Held {
                message: Arc::clone(message),
                options,
                group,
                queued,
            });
        }
    }

    /// Delivers what was held back, in its order.
    pub(crate) fn release(&mut self, env: &mut Env, held: Vec<Held>, out: &mut Vec<Output>) {
        for Held {
            message,
            options,
            group,
            queued,
        } in held
        {
            let qos = message.qos.min(options.qos());
            // [MQTT-3.3.2-5]
            if message.is_expired(env.now) {
                add(&mut env.counters.dropped_expired, 1);
                self.forget(env, queued, out);
            } else if qos == QoS::AtMostOnce {
                self.deliver(
                    env,
                    &mut Fanout::of_message(&message, env.now),
                    (options, group),
                    out,
                );
            } else if self.has_room(env, None, &message, qos) {
                let stream = self.way(&message.topic).stream;
                let ids = if options.has(Options::HAS_ID) {
                    self.matching_ids(&message.topic, group)
                } else {
                    None
                };
                let retain = message.retain && options.has(Options::RETAIN_AS_PUBLISHED);
                self.place(
                    env,
                    Waiting {
                        message,
                        ids,
                        queued,
                        group,
                        stream,
                        qos,
                        retain,
                    },
                    None,
                    out,
                );
            } else {
                self.forget(env, queued, out);
            }
        }
    }

    /// Room for one more message. The oldest are kept: a full queue drops what arrives, so that
    /// what a client gets after a pause has no holes before its end.
    fn has_room(
        &self,
        env: &mut Env,
        stream: Option<DataStream>,
        message: &Message,
        qos: QoS,
    ) -> bool {
        let waiting = self
            .flow
            .as_ref()
            .map_or((0, 0), |f| (f.waiting(), f.bytes));
        env.fits(self.quota_class, waiting, message, qos)
            && self.has_share(env, stream, message, qos)
    }

    /// A message with QoS > 0 may be sent without overtaking another \[MQTT-3.3.4-9\] \[MQTT-4.9.0-2\].
    fn takes_now(&self, env: &Env, flow: &Flow, stream: Option<DataStream>) -> bool {
        self.is_clear(&flow.queue, stream)
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
            qos,
            retain,
        } = waiting;
        let cost = message.cost();
        if qos == QoS::AtMostOnce {
            flow.bytes -= cost;
            return self.send_qos0(env, (conn, stream), (template, &message.topic), out);
        }
        let len = template.encoded_len();
        if template.head.is_empty() || self.is_too_large(env, len) {
            flow.bytes -= cost;
            return self.forget(env, queued, out);
        }
        let packet_id = flow.next_packet_id();
        if qos == QoS::ExactlyOnce && queued != 0 {
            self.persist(env, Record::Sent { queued, packet_id }, out);
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

    /// After a reconnect: what wasn't acknowledged, in its order, with its Packet Identifiers and
    /// with DUP \[MQTT-4.4.0-1\] \[MQTT-3.3.1-1\], expired or not \[MQTT-4.3.3-7\].
    fn resend(&mut self, env: &mut Env, flow: &mut Flow, conn: ConnId, out: &mut Vec<Output>) {
        while flow.sent < flow.inflight.len().min(usize::from(self.send_quota))
            && self.unsent < env.limits.send_buffer_bytes
        {
            let entry = &flow.inflight[flow.sent];
            let packet_id = entry.packet_id;
            let Some(message) = entry.message.clone() else {
                flow.sent += 1;
                let pubrel = Ack {
                    packet_id,
                    reason: ReasonCode::SUCCESS,
                    properties: None,
                };
                self.send(env, &Packet::PubRel(pubrel), out);
                continue;
            };
            let kind = (entry.qos, entry.retain);
            let template =
                message::encode(&message, self.version, kind, ids_of(&entry.ids), env.now);
            if self.is_too_large(env, template.encoded_len()) {
                self.give_up(env, flow, out);
                continue;
            }
            flow.sent += 1;
            add(&mut env.counters.publish_out_again, 1);
            self.send_publish(
                env,
                (conn, None),
                (&template, &message.topic),
                (packet_id, true),
                out,
            );
        }
    }

    /// The next message to be sent again is too large for this connection \[MQTT-3.1.2-25\]. The client may
    /// have it already: with QoS 2 its Packet Identifier is released before it is used again.
    fn give_up(&mut self, env: &mut Env, flow: &mut Flow, out: &mut Vec<Output>) {
        let entry = &mut flow.inflight[flow.sent];
        if entry.qos != QoS::ExactlyOnce {
            if let Some(entry) = flow.remove_inflight(flow.sent) {
                self.forget(env, entry.queued, out);
            }
            return;
        }
        if let Some(message) = entry.message.take() {
            flow.bytes = flow.bytes.saturating_sub(message.cost());
        }
        entry.ids = None;
        let queued = entry.queued;
        self.forget(env, queued, out);
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

pub(crate) fn ids_of(ids: &Ids) -> &[u32] {
    ids.as_deref().unwrap_or_default()
}
