//! What one worker has counted.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters and gauges of one worker's core.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Names and values, in a fixed order.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Gauge: connections that are open.
    connections,
    /// Gauge: connections with a session.
    clients,
    /// Gauge: sessions, connected or not.
    sessions,
    /// Gauge: subscriptions.
    subscriptions,
    /// Packets from clients.
    packets_in,
    /// Packets that had to wait until the handshake was complete: 0-RTT data that a replay could do harm with.
    early_held,
    /// Packets that had to wait until the sessions of an earlier run were there.
    restoring_held,
    /// CONNECT packets that were accepted.
    connects_accepted,
    /// CONNECT packets that were refused.
    connects_refused,
    /// Of those: bad user name or password (0x86).
    connects_refused_password,
    /// Not authorized (0x87).
    connects_refused_not_authorized,
    /// Bad authentication method (0x8C).
    connects_refused_method,
    /// Server busy or a quota exceeded (0x89, 0x97).
    connects_refused_busy,
    /// For any other reason.
    connects_refused_otherwise,
    /// Authentications that failed, of CONNECT packets and on connections that were up.
    authentications_failed,
    /// Sessions that were resumed.
    sessions_resumed,
    /// Sessions that ended because their expiry interval had passed.
    sessions_expired,
    /// Connections that another connection of the same client took the session from.
    takeovers,
    /// Messages of a Shared Subscription that a member left to another one.
    shared_handed_on,
    /// Sessions that came from another worker.
    sessions_moved_in,
    /// Sessions that another worker took.
    sessions_moved_out,
    /// Connections closed before CONNECT was completed in time.
    connect_timeouts,
    /// Connections closed because the client was silent for too long.
    keep_alive_timeouts,
    /// Connections closed because of a malformed packet or a protocol error.
    protocol_errors,
    /// Messages from clients with QoS 0.
    publish_in_qos0,
    /// Messages from clients with QoS 1.
    publish_in_qos1,
    /// Messages from clients with QoS 2, without repetitions.
    publish_in_qos2,
    /// Repetitions of a QoS 2 PUBLISH that were acknowledged and not delivered again.
    publish_in_repeated,
    /// Packets from clients on data streams.
    data_packets_in,
    /// Data streams that were reset because of a packet that has no place there.
    data_streams_refused,
    /// PUBLISH packets from clients in datagrams.
    datagrams_in,
    /// Bytes of payload from clients.
    publish_in_bytes,
    /// Messages that matched no subscription.
    publish_unmatched,
    /// Messages to topics that clients may not write, `$SYS/…`.
    publish_denied,
    /// Packets to clients.
    packets_out,
    /// Will Messages published.
    wills,
    /// PUBLISH packets to clients with QoS 0.
    publish_out_qos0,
    /// PUBLISH packets to clients with QoS 1, without retransmissions.
    publish_out_qos1,
    /// PUBLISH packets to clients with QoS 2, without retransmissions.
    publish_out_qos2,
    /// PUBLISH packets that were sent again after a reconnect.
    publish_out_again,
    /// Bytes of PUBLISH packets to clients.
    publish_out_bytes,
    /// Retained messages that were sent because of a new subscription.
    retained_out,
    /// Deliveries handed to other workers (one for each message and worker).
    mesh_out,
    /// Deliveries from other workers.
    mesh_in,
    /// Deliveries that were sent on to where the session had moved.
    mesh_forwarded,
    /// Messages that waited in a session's queue.
    queued,
    /// QoS 0 messages for clients that aren't connected: not kept.
    dropped_offline,
    /// QoS 0 messages dropped because the session's queue was full.
    dropped_queue_full_qos0,
    /// QoS 1 and 2 messages dropped because the session's queue was full.
    dropped_queue_full,
    /// QoS 0 messages dropped because a newer one took their place in a full queue.
    dropped_oldest_qos0,
    /// QoS 1 and 2 messages dropped for that reason.
    dropped_oldest,
    /// Messages dropped because their expiry interval had passed.
    dropped_expired,
    /// QoS 0 messages dropped because the machine ran short and they would have had to wait.
    dropped_overload,
    /// Messages dropped because they exceed the client's Maximum Packet Size.
    dropped_too_large,
    /// Deliveries for a session that was gone.
    dropped_no_session,
    /// Messages dropped: as many wait for the session as may.
    limit_queued_messages,
    /// Messages dropped: those that wait for the session have as many bytes as they may.
    limit_session_bytes,
    /// Messages dropped: the part of the session's queue that only the store has is as long as it may be.
    limit_session_store_bytes,
    /// Retained messages that were not stored: the store had as many as it may.
    limit_retained,
    /// Retained messages that were not stored: the store had as many bytes as it may.
    limit_retained_bytes,
    /// SUBSCRIBE filters refused: subscriptions per session, or levels.
    limit_subscriptions,
    /// CONNECT packets refused: sessions per worker.
    limit_sessions,
    /// CONNECT packets refused: connections of the quota class.
    limit_class_connections,
    /// PUBLISH packets above the quota class's messages per second.
    quota_messages,
    /// PUBLISH packets above the quota class's bytes per second.
    quota_bytes,
    /// Times that reading from a client was stopped for a while because of its quota.
    quota_slowed,
    /// Connections that were put under a penalty in the kernel because they went on above their quota.
    quota_penalties,
    /// Connections closed because their clients were too slow for their quota class.
    slow_disconnected,
    /// Times that reading from a publisher was stopped because of a full queue.
    publishers_held,
    /// Of those: the time was over before the queue had room.
    publishers_held_too_long,
    /// CONNECT packets refused: memory is short.
    limit_memory,
    /// Connections closed because the machine ran short and much waited for their clients.
    slow_consumers_closed,
    /// CONNECT packets refused: length of the client identifier.
    limit_client_id,
    /// Connections closed: Receive Maximum exceeded.
    limit_receive_maximum,
    /// Connections closed: packets before CONNECT was completed.
    limit_held_packets,
    /// Times that reading from a client was stopped because it did not take what it asked for.
    reads_paused,
    /// Portions of queues that were read from the store.
    queue_loads,
    /// Times that a session without a connection was packed into one piece of memory.
    sessions_parked,
    /// Sessions that were restored.
    sessions_restored,
    /// PUBLISH packets refused because the store is full or fails.
    storage_refused_publish,
    /// CONNECT packets refused for that reason.
    storage_refused_connect,
    /// Filters of SUBSCRIBE packets refused for that reason.
    storage_refused_subscribe,
    /// Retained messages with QoS 0 that were delivered and not retained for that reason.
    storage_not_retained,
    /// Persist operations begun.
    persists,
}

/// Counts; a counter that would overflow starts again at 0, as Prometheus expects of a restart.
#[inline]
pub(crate) fn add(counter: &mut u64, n: u64) {
    *counter = counter.wrapping_add(n);
}

/// One less on a gauge.
#[inline]
pub(crate) fn sub(gauge: &mut u64, n: u64) {
    debug_assert!(*gauge >= n, "a gauge counts what was counted before");
    *gauge = gauge.saturating_sub(n);
}
