//! What is sent again: after a reconnect (MQTT 5.0 §4.4), and what was on a data stream that is gone.

use headgate_codec::{Ack, Packet, PacketId, QoS, ReasonCode};

use crate::{
    ConnId, Output, Record, Session,
    counters::add,
    deliver::ids_of,
    env::{Env, Waiter},
    message,
    session::Flow,
};

impl Session {
    /// After a reconnect: what wasn't acknowledged, in its order, with its Packet Identifiers and
    /// with DUP \[MQTT-4.4.0-1\] \[MQTT-3.3.1-1\], expired or not \[MQTT-4.3.3-7\].
    pub(crate) fn resend(
        &mut self,
        env: &mut Env,
        flow: &mut Flow,
        conn: ConnId,
        out: &mut Vec<Output>,
    ) {
        while flow.sent < flow.inflight.len().min(usize::from(self.send_quota))
            && self.unsent < env.limits.send_buffer_bytes
        {
            let entry = &flow.inflight[flow.sent];
            let packet_id = entry.packet_id;
            let Some(message) = entry.message.clone() else {
                // What is not safe yet is what has just been given up.
                if entry.op > env.persisted {
                    return;
                }
                flow.sent += 1;
                self.send_pubrel(env, packet_id, out);
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
        if queued != 0 {
            self.persist(env, Record::PubRec { queued }, out);
            flow.inflight[flow.sent].op = env.last_persist;
            env.waiters
                .push_back((env.last_persist, Waiter::Session(self.handle)));
        }
    }

    /// Sends again what was sent on streams that are gone, with DUP \[MQTT-3.3.1-1\], as far as the connection takes it.
    pub(crate) fn send_lost_again(
        &mut self,
        env: &mut Env,
        flow: &mut Flow,
        conn: ConnId,
        out: &mut Vec<Output>,
    ) {
        while self.is_open(env, None)
            && let Some(packet_id) = self.first_lost()
        {
            let position = flow.position(packet_id);
            let entry = position.map(|position| &flow.inflight[position]);
            // [MQTT-4.3.3-4] once it is safe that the client has the message: `Hub::on_data_ended` sees to it that this
            // goes on then.
            if entry.is_some_and(|e| e.message.is_none() && e.op > env.persisted) {
                return;
            }
            self.take_lost(packet_id);
            let Some(entry) = entry else { continue };
            let Some(message) = entry.message.clone() else {
                self.send_pubrel(env, packet_id, out);
                continue;
            };
            let kind = (entry.qos, entry.retain);
            let template =
                message::encode(&message, self.version, kind, ids_of(&entry.ids), env.now);
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

    fn send_pubrel(&mut self, env: &mut Env, packet_id: PacketId, out: &mut Vec<Output>) {
        let pubrel = Ack {
            packet_id,
            reason: ReasonCode::SUCCESS,
            properties: None,
        };
        self.send(env, &Packet::PubRel(pubrel), out);
    }
}
