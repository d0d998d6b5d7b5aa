//! From the plain counters of the core and the sender to the metrics that others read.

use crate::{
    limits::Limit,
    metrics::{
        DatagramDrop, MessageDrop, Number, Qos, QuotaRate, Refusal, StoreRefusal, WorkerMetrics,
    },
    net::udp::SendCounters,
};
use headgate_core::Counters;

/// What was published last: a worker that was restarted counts from zero, its metrics go on.
#[derive(Debug, Default)]
pub(super) struct Published {
    core: Counters,
    sender: SendCounters,
}

impl Published {
    /// Publishes what the core has counted since.
    pub fn core(&mut self, metrics: &WorkerMetrics, now: &Counters) {
        let last = std::mem::replace(&mut self.core, now.clone());
        let grow = |number: &Number, now: u64, last: u64| number.add(now.wrapping_sub(last));
        macro_rules! grow {
            ($($number:expr => $($field:ident)+,)*) => {
                $(grow(&$number, 0 $(+ now.$field)+, 0 $(+ last.$field)+);)*
            };
        }
        let (refused, dropped) = (&metrics.refused, &metrics.messages_dropped);
        let store_refused = &metrics.store_refused;
        grow! {
            metrics.packets_received => packets_in,
            metrics.packets_sent => packets_out,
            metrics.data_packets_received => data_packets_in,
            metrics.data_streams_refused => data_streams_refused,
            metrics.publish_datagrams_received => datagrams_in,
            metrics.connects_accepted => connects_accepted,
            metrics.early_packets_held => early_held,
            metrics.messages_handed_on => shared_handed_on,
            metrics.messages_denied => publish_denied,
            metrics.sessions_expired => sessions_expired,
            metrics.quota_exceeded[QuotaRate::Messages] => quota_messages,
            metrics.quota_exceeded[QuotaRate::Bytes] => quota_bytes,
            metrics.quota_slowed => quota_slowed,
            metrics.quota_penalties => quota_penalties,
            metrics.slow_clients_disconnected => slow_disconnected,
            metrics.publishers_held => publishers_held,
            metrics.publishers_held_too_long => publishers_held_too_long,
            metrics.packets_malformed => protocol_errors,
            metrics.connects_refused[Refusal::Password] => connects_refused_password,
            metrics.connects_refused[Refusal::NotAuthorized] => connects_refused_not_authorized,
            metrics.connects_refused[Refusal::Method] => connects_refused_method,
            metrics.connects_refused[Refusal::Busy] => connects_refused_busy,
            metrics.connects_refused[Refusal::Other] => connects_refused_otherwise,
            metrics.messages_received[Qos::Qos0] => publish_in_qos0,
            metrics.messages_received[Qos::Qos1] => publish_in_qos1,
            metrics.messages_received[Qos::Qos2] => publish_in_qos2 publish_in_repeated,
            metrics.messages_sent[Qos::Qos0] => publish_out_qos0,
            metrics.messages_sent[Qos::Qos1] => publish_out_qos1,
            metrics.messages_sent[Qos::Qos2] => publish_out_qos2,
            metrics.messages_sent_again => publish_out_again,
            metrics.mesh_sent => mesh_out,
            metrics.mesh_received => mesh_in,
            metrics.sessions_taken_over => takeovers,
            metrics.keep_alive_timeouts => keep_alive_timeouts,
            metrics.slow_consumers_closed => slow_consumers_closed,
            metrics.connect_timeouts => connect_timeouts,
            dropped[MessageDrop::QueueFull] => dropped_queue_full dropped_queue_full_qos0,
            dropped[MessageDrop::Oldest] => dropped_oldest dropped_oldest_qos0,
            dropped[MessageDrop::Offline] => dropped_offline,
            dropped[MessageDrop::Overload] => dropped_overload,
            dropped[MessageDrop::Expired] => dropped_expired,
            dropped[MessageDrop::TooLarge] => dropped_too_large,
            dropped[MessageDrop::Stale] => dropped_no_session,
            refused[Limit::RetainedMessages] => limit_retained,
            refused[Limit::RetainedBytes] => limit_retained_bytes,
            refused[Limit::SubscriptionsPerSession] => limit_subscriptions,
            refused[Limit::SessionsPerWorker] => limit_sessions,
            refused[Limit::QuotaConnections] => limit_class_connections,
            refused[Limit::MemoryLimit] => limit_memory,
            refused[Limit::ClientIdBytes] => limit_client_id,
            refused[Limit::ReceiveMaximum] => limit_receive_maximum,
            refused[Limit::QueuedMessagesPerSession] => limit_queued_messages,
            refused[Limit::MemoryPerConnectionBytes] => limit_session_bytes,
            refused[Limit::SessionStoreBytes] => limit_session_store_bytes,
            store_refused[StoreRefusal::Publish] => storage_refused_publish,
            store_refused[StoreRefusal::Connect] => storage_refused_connect,
            store_refused[StoreRefusal::Subscribe] => storage_refused_subscribe,
            store_refused[StoreRefusal::Retain] => storage_not_retained,
        }
        metrics.clients.store(now.clients);
        metrics.sessions.store(now.sessions);
        metrics.subscriptions.store(now.subscriptions);
    }

    /// Publishes what the sender has counted since.
    pub fn sender(&mut self, metrics: &WorkerMetrics, now: &SendCounters) {
        metrics
            .datagrams_sent
            .add(now.datagrams - self.sender.datagrams);
        metrics.datagrams_dropped[DatagramDrop::SendFailed]
            .add(now.dropped() - self.sender.dropped());
        self.sender = *now;
    }
}
