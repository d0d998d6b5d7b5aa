//! Data streams and datagrams of a QUIC connection: on which of its streams a packet leaves, so that none holds up another.
//!
//! An acknowledgement leaves on the stream of what it answers. A message leaves on the stream whose SUBSCRIBE has made
//! the first subscription that matches, or on the control stream. Each stream has its own order, its own bound of bytes
//! that the transport has not taken, and an equal share of the session's queue and of the client's Receive Maximum.
//! All of this ends with the connection: on the next one everything is on the control stream again.

use bytes::Bytes;
use headgate_codec::{Connect, Packet, PacketId, QoS, ReasonCode, Text, UserProperty};
use std::{
    collections::{BTreeSet, VecDeque},
    num::NonZeroU32,
};

use crate::{
    ConnId, Core, Output, Session,
    acks::Wait,
    conns::{AckBody, HeldInput, PAUSED_RESTORING, State},
    counters::add,
    env::{Env, Waiter},
    full::Level,
    hub::Hub,
    session::Waiting,
};

/// A data stream of a QUIC connection: a bidirectional stream that the client has opened beside its control stream,
/// by its number among these (RFC 9000 §2.1: the stream ID divided by 4). 0 is the control stream, and none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataStream(pub NonZeroU32);

/// How a data stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataEnd {
    /// The client has ended its side: nothing more comes on it. It can still be sent on.
    Received,
    /// After [`Output::EndData`] everything that was sent on it has arrived. It is over.
    Delivered,
    /// The client has reset it or doesn't read it any more. What was sent on it may be lost.
    Lost,
}

/// The user property (MQTT 5.0 §3.1.2.11.8, §3.8.2.1.3) that asks for datagrams: in CONNECT for those that the
/// client will send, in SUBSCRIBE for the messages of its subscriptions. CONNACK repeats it.
pub const DATAGRAMS: (&str, &str) = ("headgate-datagram", "1");

/// Whether these user properties ask for datagrams.
pub(crate) fn wants_datagrams(user_properties: &[(Text, Text)]) -> bool {
    let (name, value) = DATAGRAMS;
    user_properties
        .iter()
        .any(|(n, v)| n.as_str() == name && v.as_str() == value)
}

/// Whether the client's datagrams are taken, and what CONNACK says of that.
pub(crate) fn agree(are_offered: bool, connect: &Connect) -> (bool, Vec<UserProperty>) {
    let agreed = are_offered && wants_datagrams(&connect.properties.user_properties);
    let (name, value) = DATAGRAMS;
    let said = agreed.then(|| (Text::from(name), Text::from(value)));
    (agreed, said.into_iter().collect())
}

/// How a message leaves; by default as all do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Way {
    /// `None` = the control stream.
    pub(crate) stream: Option<DataStream>,
    /// In a datagram, if its QoS is 0.
    pub(crate) datagram: bool,
}

/// What a session has beside the control stream of its connection.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    /// Subscriptions that aren't plain ones of the control stream; at most as many as subscriptions.
    routes: Vec<Route>,
    /// Data streams with subscriptions; at most as many as the client may have open.
    streams: Vec<Lane>,
    /// Messages that were sent on data streams and are not done; at most as many as are on their way.
    sent: Vec<(PacketId, DataStream)>,
    /// Messages whose stream is gone: they are sent again on the control stream.
    again: VecDeque<PacketId>,
}

#[derive(Debug)]
struct Route {
    /// As the client has written it.
    filter: Box<str>,
    way: Way,
}

#[derive(Debug)]
struct Lane {
    stream: DataStream,
    /// Bytes that the transport hasn't taken.
    unsent: u32,
}

/// The part of a Shared Subscription's filter that topics are compared with.
fn plain(filter: &str) -> &str {
    let of_group = crate::share::parse(filter).ok().flatten();
    of_group.unwrap_or(filter)
}

impl Lanes {
    pub(crate) fn way(&self, topic: &str) -> Way {
        let matching =
            |route: &&Route| headgate_topics::filter_matches(plain(&route.filter), topic);
        let route = self.routes.iter().find(matching);
        route.map(|route| route.way).unwrap_or_default()
    }

    fn lane(&mut self, stream: DataStream) -> Option<&mut Lane> {
        self.streams.iter_mut().find(|lane| lane.stream == stream)
    }

    fn is_unused(&self) -> bool {
        self.routes.is_empty()
            && self.streams.is_empty()
            && self.sent.is_empty()
            && self.again.is_empty()
    }

    /// Streams that share what the session has.
    fn shares(&self) -> usize {
        self.streams.len() + 1
    }

    fn sent_on(&self, stream: DataStream) -> usize {
        self.sent.iter().filter(|(_, on)| *on == stream).count()
    }
}

impl Session {
    /// How a message of this topic leaves.
    pub(crate) fn way(&self, topic: &str) -> Way {
        let lanes = self.lanes.as_ref();
        lanes.map(|lanes| lanes.way(topic)).unwrap_or_default()
    }

    /// The stream on which a subscription was made.
    pub(crate) fn stream_of(&self, filter: &str) -> Option<DataStream> {
        let mut routes = self.lanes.iter().flat_map(|lanes| &lanes.routes);
        let route = routes.find(|route| *route.filter == *filter);
        route.and_then(|route| route.way.stream)
    }

    /// Bytes of a stream that the transport hasn't taken.
    pub(crate) fn unsent_on(&self, stream: Option<DataStream>) -> u32 {
        let Some(stream) = stream else {
            return self.unsent;
        };
        let streams = self.lanes.iter().flat_map(|lanes| &lanes.streams);
        let mut lane = streams.filter(|lane| lane.stream == stream);
        lane.next().map_or(0, |lane| lane.unsent)
    }

    /// The stream has room.
    pub(crate) fn is_open(&self, env: &Env, stream: Option<DataStream>) -> bool {
        self.unsent_on(stream) < env.limits.send_buffer_bytes
    }

    /// Messages with QoS > 0 that the stream may have beside those that it has, of its share of the Receive Maximum.
    pub(crate) fn quota_of(&self, stream: Option<DataStream>) -> usize {
        match (&self.lanes, stream) {
            // What was sent on a stream that is gone goes first.
            (Some(lanes), None) if !lanes.again.is_empty() => 0,
            (Some(lanes), Some(stream)) => {
                let share = usize::from(self.send_quota) / lanes.shares();
                share.max(1).saturating_sub(lanes.sent_on(stream))
            }
            _ => usize::from(self.send_quota),
        }
    }

    /// The stream may have one more.
    pub(crate) fn has_quota(&self, stream: Option<DataStream>) -> bool {
        self.quota_of(stream) > 0
    }

    /// Nothing of this stream waits in a queue.
    pub(crate) fn is_clear(&self, queue: &VecDeque<Waiting>, stream: Option<DataStream>) -> bool {
        match self.lanes {
            None => queue.is_empty(),
            Some(_) => queue.iter().all(|waiting| waiting.stream != stream),
        }
    }

    /// The place of the next message in a queue whose stream can take it.
    pub(crate) fn next_of(
        &self,
        env: &Env,
        queue: &VecDeque<Waiting>,
        with_quota: bool,
    ) -> Option<usize> {
        let is_safe = |waiting: &Waiting| waiting.op <= env.persisted;
        if self.lanes.is_none() {
            let is_next = queue.front().is_some_and(is_safe) && self.is_open(env, None);
            return is_next.then_some(0);
        }
        let takes = |stream| self.is_open(env, stream) && (!with_quota || self.has_quota(stream));
        // Few streams, many messages: what can't leave holds up all that is behind it on its stream.
        let mut full: Vec<Option<DataStream>> = Vec::new();
        queue.iter().position(|waiting| {
            if full.contains(&waiting.stream) {
                return false;
            }
            let takes = is_safe(waiting) && takes(waiting.stream);
            if !takes {
                full.push(waiting.stream);
            }
            takes
        })
    }

    /// What waits of a data stream, as if all streams had as much: each has an equal share of the session's queue. And
    /// how many shares there are.
    pub(crate) fn share_of(&self, stream: Option<DataStream>) -> Option<(Level, u32)> {
        let (Some(lanes), Some(_), Some(flow)) = (&self.lanes, stream, &self.flow) else {
            return None;
        };
        let waiting = flow.queue.iter().chain(&flow.queue_qos0);
        let (count, bytes) = waiting
            .filter(|waiting| waiting.stream == stream)
            .fold((0, 0_u32), |(count, bytes), waiting| {
                (count + 1, bytes.saturating_add(waiting.message.cost()))
            });
        let shares = lanes.shares();
        let level = Level {
            messages: count * shares,
            bytes: bytes.saturating_mul(shares as u32),
            spilled: 0,
        };
        Some((level, shares as u32))
    }

    /// The same of all data streams that have subscriptions.
    pub(crate) fn shares(&self) -> Vec<Level> {
        let streams = self.lanes.iter().flat_map(|lanes| &lanes.streams);
        let levels = streams.filter_map(|lane| self.share_of(Some(lane.stream)));
        levels.map(|(level, _)| level).collect()
    }

    /// Counts what is sent on a stream.
    pub(crate) fn count_unsent(&mut self, stream: Option<DataStream>, bytes: u32) {
        match (stream, &mut self.lanes) {
            (None, _) => self.unsent += bytes,
            (Some(stream), Some(lanes)) => {
                if let Some(lane) = lanes.lane(stream) {
                    lane.unsent += bytes;
                }
            }
            (Some(_), None) => {}
        }
    }

    /// A message with QoS > 0 was sent on a stream.
    pub(crate) fn note_sent(&mut self, stream: Option<DataStream>, packet_id: PacketId) {
        if let (Some(stream), Some(lanes)) = (stream, &mut self.lanes) {
            lanes.sent.push((packet_id, stream));
        }
    }

    /// PUBREC has come for it on a stream, and PUBREL leaves there: from now on that one may be lost.
    pub(crate) fn note_received(&mut self, stream: Option<DataStream>, packet_id: PacketId) {
        if stream.is_none() && self.lanes.is_none() {
            return;
        }
        self.note_done(packet_id);
        let lanes = self.lanes.get_or_insert_default();
        lanes.sent.extend(stream.map(|on| (packet_id, on)));
    }

    /// The first of the messages whose stream is gone.
    pub(crate) fn first_lost(&self) -> Option<PacketId> {
        self.lanes.as_ref()?.again.front().copied()
    }

    /// It is sent again.
    pub(crate) fn take_lost(&mut self, packet_id: PacketId) {
        if let Some(lanes) = &mut self.lanes {
            lanes.again.retain(|id| *id != packet_id);
        }
        self.drop_unused_lanes();
    }

    /// It is done.
    pub(crate) fn note_done(&mut self, packet_id: PacketId) {
        if let Some(lanes) = &mut self.lanes {
            lanes.sent.retain(|(id, _)| *id != packet_id);
            lanes.again.retain(|id| *id != packet_id);
        }
        self.drop_unused_lanes();
    }

    /// A session that uses its control stream alone again is as any other.
    fn drop_unused_lanes(&mut self) {
        self.lanes.take_if(|lanes| lanes.is_unused());
    }

    /// Sends encoded packets that aren't a PUBLISH.
    pub(crate) fn send_on(
        &mut self,
        stream: Option<DataStream>,
        bytes: Bytes,
        out: &mut Vec<Output>,
    ) {
        let (Some(stream), Some(conn)) = (stream, self.conn) else {
            return self.send_unchecked(bytes, out);
        };
        if bytes.is_empty() {
            return;
        }
        self.count_unsent(Some(stream), bytes.len() as u32);
        let frame = crate::Frame::Bytes(bytes);
        out.push(Output::SendData {
            conn,
            stream,
            frame,
        });
    }

    /// A message with QoS 0 for which datagrams were asked: it waits for nothing, so that a client that doesn't keep up
    /// gets the later ones.
    pub(crate) fn send_datagram(
        &mut self,
        env: &mut Env,
        (conn, stream): (ConnId, Option<DataStream>),
        publish: Bytes,
        out: &mut Vec<Output>,
    ) {
        if !self.is_open(env, stream) {
            add(&mut env.counters.dropped_queue_full_qos0, 1);
            return;
        }
        add(&mut env.counters.publish_out_qos0, 1);
        add(&mut env.counters.packets_out, 1);
        add(&mut env.counters.publish_out_bytes, publish.len() as u64);
        self.count_unsent(stream, publish.len() as u32);
        out.push(Output::SendDatagram {
            conn,
            stream,
            publish,
        });
    }

    /// A subscription was made or replaced by a SUBSCRIBE on a stream.
    pub(crate) fn add_route(&mut self, filter: &str, way: Way) {
        if way == Way::default() && self.lanes.is_none() {
            return;
        }
        let lanes = self.lanes.get_or_insert_default();
        lanes.routes.retain(|route| *route.filter != *filter);
        if way != Way::default() {
            let filter = filter.into();
            lanes.routes.push(Route { filter, way });
        }
        if let Some(stream) = way.stream
            && lanes.lane(stream).is_none()
        {
            lanes.streams.push(Lane { stream, unsent: 0 });
        }
    }

    /// A subscription has ended.
    pub(crate) fn remove_route(&mut self, filter: &str) {
        if let Some(lanes) = &mut self.lanes {
            lanes.routes.retain(|route| *route.filter != *filter);
        }
        self.drop_unused_lanes();
    }

    /// The connection is gone, and its streams with it.
    pub(crate) fn leave_lanes(&mut self) {
        if self.lanes.take().is_some()
            && let Some(flow) = &mut self.flow
        {
            let waiting = flow.queue.iter_mut().chain(&mut flow.queue_qos0);
            waiting.for_each(|waiting| waiting.stream = None);
        }
    }

    /// Messages that leave on a data stream leave on the control stream from now on. Those that were sent on it and may be
    /// lost are sent again.
    fn leave_stream(&mut self, stream: DataStream, how: DataEnd) {
        let Some(lanes) = &mut self.lanes else {
            return;
        };
        for route in &mut lanes.routes {
            if route.way.stream == Some(stream) {
                route.way.stream = None;
            }
        }
        lanes.routes.retain(|route| route.way != Way::default());
        if how == DataEnd::Lost
            && let Some(flow) = &self.flow
        {
            let lost = lanes.sent.iter().filter(|(_, on)| *on == stream);
            let lost = lost.map(|(id, _)| *id);
            let again: BTreeSet<PacketId> = lanes.again.drain(..).chain(lost).collect();
            // In their order of the first time, PUBREL in the place of its message, as after a reconnect.
            let in_order = flow.inflight.iter().map(|entry| entry.packet_id);
            lanes.again.extend(in_order.filter(|id| again.contains(id)));
        }
        if how != DataEnd::Received {
            lanes.sent.retain(|(_, on)| *on != stream);
            lanes.streams.retain(|lane| lane.stream != stream);
        }
        if let Some(flow) = &mut self.flow {
            let waiting = flow.queue.iter_mut().chain(&mut flow.queue_qos0);
            for waiting in waiting.filter(|waiting| waiting.stream == Some(stream)) {
                waiting.stream = None;
            }
        }
        self.drop_unused_lanes();
    }
}

impl Core {
    /// A packet on a data stream. What MQTT forbids ends the connection, as on the control stream; what only has no
    /// place on a data stream ends the stream.
    pub(crate) fn on_data_packet(
        &mut self,
        (conn, stream): (ConnId, DataStream),
        packet: Packet,
        out: &mut Vec<Output>,
    ) {
        let hub = &mut self.hub;
        let Some(c) = hub.conns.get(conn) else { return };
        let State::Up(slot) = c.state else { return };
        c.last_seen = hub.env.now;
        if let Some(reason) = c.waits_for(hub.shared.is_restoring(), &packet) {
            let held = HeldInput::Packet(Some(stream), packet);
            return hub.hold_back(conn, held, reason, out);
        }
        add(&mut hub.env.counters.packets_in, 1);
        add(&mut hub.env.counters.data_packets_in, 1);
        if let Packet::PingReq | Packet::Disconnect(_) | Packet::Auth(_) = packet {
            add(&mut hub.env.counters.data_streams_refused, 1);
            out.push(Output::ResetData {
                conn,
                stream,
                reason: ReasonCode::PROTOCOL_ERROR,
            });
            return hub.on_data_ended((conn, stream), DataEnd::Lost, out);
        }
        hub.stream = Some(stream);
        match packet {
            Packet::Publish(publish) => self.on_publish(conn, slot, &publish, out),
            packet => hub.on_session_packet(conn, slot, packet, out),
        }
        self.hub.stream = None;
    }

    /// A packet in a datagram: nothing but PUBLISH with QoS 0 and its topic, of a client that has said so.
    pub(crate) fn on_datagram(&mut self, conn: ConnId, packet: &Packet, out: &mut Vec<Output>) {
        let hub = &mut self.hub;
        let Some(c) = hub.conns.get(conn) else { return };
        let State::Up(slot) = c.state else { return };
        c.last_seen = hub.env.now;
        add(&mut hub.env.counters.packets_in, 1);
        add(&mut hub.env.counters.datagrams_in, 1);
        let alias = |p: &headgate_codec::Publish| p.properties.as_ref()?.topic_alias;
        match packet {
            Packet::Publish(p) if p.qos == QoS::AtMostOnce && alias(p).is_none() => {
                self.on_publish(conn, slot, p, out);
            }
            _ => hub.protocol_error(conn, ReasonCode::PROTOCOL_ERROR, out),
        }
    }
}

impl Hub {
    /// A data stream has ended.
    pub(crate) fn on_data_ended(
        &mut self,
        (conn, stream): (ConnId, DataStream),
        how: DataEnd,
        out: &mut Vec<Output>,
    ) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let State::Up(slot) = c.state else { return };
        // What it carried comes first.
        if c.has_held() {
            let held = HeldInput::DataEnded(stream, how);
            return self.hold_back(conn, held, PAUSED_RESTORING, out);
        }
        if let Some(session) = self.slots.session(slot) {
            session.leave_stream(stream, how);
        }
        // A PUBREL that is sent again waits as the first one did.
        if how == DataEnd::Lost && self.env.last_persist > self.env.persisted {
            let waiter = Waiter::Session(self.slots.handle(slot));
            self.env.waiters.push_back((self.env.last_persist, waiter));
        }
        if how == DataEnd::Received {
            // Our end leaves behind the acknowledgements that wait.
            self.stream = Some(stream);
            self.acknowledge(conn, slot, AckBody::EndOfStream, Wait::default(), out);
            self.stream = None;
        }
        self.pump(slot, out);
    }

    /// The transport has taken bytes of a data stream.
    pub(crate) fn data_flushed(
        &mut self,
        (conn, stream): (ConnId, DataStream),
        bytes: u32,
        out: &mut Vec<Output>,
    ) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let State::Up(slot) = c.state else { return };
        let half = self.env.limits.send_buffer_bytes / 2;
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        let lane = session.lanes.as_mut().and_then(|l| l.lane(stream));
        let Some(lane) = lane else { return };
        lane.unsent = lane.unsent.saturating_sub(bytes);
        if lane.unsent <= half && session.flow.is_some() {
            self.pump(slot, out);
        }
    }
}
