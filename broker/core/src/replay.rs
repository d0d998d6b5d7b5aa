//! Retained messages for new subscriptions (MQTT 5.0 §3.8.4).

use headgate_codec::QoS;
use std::sync::Arc;

use crate::{
    ConnId, DataStream, Output, Retained, Session,
    counters::add,
    env::Env,
    message::Message,
    session::{Flow, Ids, Waiting},
};

/// Retained messages read from the store at a time.
const REPLAY_PORTION: usize = 32;

impl Session {
    /// Retained messages for new subscriptions, straight from the store: they never wait in the
    /// queue, so a filter that matches many costs no memory.
    pub(crate) fn replay(
        &mut self,
        env: &mut Env,
        flow: &mut Flow,
        conn: ConnId,
        retained: &Retained,
        out: &mut Vec<Output>,
    ) -> bool {
        let mut reads = 0;
        // Until all are there, which of them come after a place isn't known.
        if !retained.is_loaded() {
            return false;
        }
        while !flow.replays.is_empty() {
            if flow.sent < flow.inflight.len() || flow.spill.is_some() {
                return false;
            }
            // One whose stream is full doesn't hold up those of other streams.
            let ready = flow.replays.iter().position(|replay| {
                let stream = self.stream_of(&replay.filter);
                self.is_open(env, stream)
                    && self.has_quota(stream)
                    && self.is_clear(&flow.queue, stream)
                    && self.is_clear(&flow.queue_qos0, stream)
            });
            flow.replays.rotate_left(ready.unwrap_or(0));
            let Some(replay) = flow.replays.front_mut().filter(|_| ready.is_some()) else {
                return false;
            };
            let stream = self.stream_of(&replay.filter);
            let room = match replay.qos {
                QoS::AtMostOnce => REPLAY_PORTION,
                _ => usize::from(self.send_quota)
                    .saturating_sub(flow.inflight.len())
                    .min(self.quota_of(stream))
                    .min(REPLAY_PORTION),
            };
            if room == 0 {
                return false;
            }
            if reads == 4 {
                return true;
            }
            reads += 1;
            let (found, next) =
                retained.matching(&replay.filter, replay.after.as_deref(), room, env.now);
            let (id, qos) = (replay.id, replay.qos);
            replay.after = next;
            let mut is_done = replay.after.is_none();
            let last = found.len();
            for (i, message) in found.into_iter().enumerate() {
                let topic = message.topic.clone();
                self.send_retained(env, flow, conn, (message, id, qos, stream), out);
                // A portion of large messages ends when the connection has enough.
                if !self.is_open(env, stream) && i + 1 < last {
                    is_done = false;
                    if let Some(replay) = flow.replays.front_mut() {
                        replay.after = Some(topic.as_str().into());
                    }
                    break;
                }
            }
            if is_done {
                flow.replays.pop_front();
            }
        }
        false
    }

    fn send_retained(
        &mut self,
        env: &mut Env,
        flow: &mut Flow,
        conn: ConnId,
        (message, id, granted, stream): (Arc<Message>, u32, QoS, Option<DataStream>),
        out: &mut Vec<Output>,
    ) {
        // [MQTT-3.8.4-8]
        let qos = message.qos.min(granted);
        let ids: Ids = (id != 0).then(|| Box::from([id]));
        // §3.3.1.3: RETAIN is 1, whatever Retain As Published says.
        let mut waiting = Waiting::new(message, ids, (0, stream), (qos, true));
        if !self.register(env, flow, &mut waiting, 0, out) {
            return;
        }
        add(&mut env.counters.retained_out, 1);
        flow.bytes += waiting.message.cost();
        if waiting.op <= env.persisted {
            self.encode_and_send(env, flow, conn, waiting, out);
        } else {
            self.enqueue(env, flow, waiting);
        }
    }
}
