//! From the configuration to what each part wants to know.

use crate::{
    config::{Config, DeniedReason, SharedSubscriptions},
    keys::Keys,
    limits::AdmissionLimits,
    net::{
        cid::CidGenerator,
        quic::{DataLimits, STREAMS_AT_FIRST},
        tcp::TcpSettings,
        tls::{self, ClientAuthorities, QuicSettings, TlsError, TlsIdentity},
    },
};
use headgate_codec::ReasonCode;
use headgate_common::{
    cid::CidKeys,
    route::{Router, Steering},
};
use headgate_core::{
    CoreConfig, QuotaLimits, RetainedLimits, ShareStrategy, Shared, Transport, WorkerSlot,
};
use quinn_proto::{Endpoint, EndpointConfig, ServerConfig};
use ring::rand::{SecureRandom, SystemRandom};
use std::{
    io,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// Which of the keys of connection IDs is current. The layout holds seven in turn and the kernel
/// two at a time; nothing changes it yet.
pub(super) const KEY_EPOCH: u32 = 0;

/// The node's start number, for session ids: the time, which grows from start to start.
pub(super) fn node_epoch() -> u32 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| t.as_secs() as u32)
}

pub(super) fn admission(config: &Config) -> AdmissionLimits {
    AdmissionLimits {
        connections: config.limits.connections,
        connections_per_prefix: config.limits.connections_per_prefix,
        handshakes_per_second: config.limits.handshakes_per_second,
    }
}

fn retained(config: &Config) -> RetainedLimits {
    RetainedLimits {
        messages: config.limits.retained_messages,
        bytes: config.limits.retained_bytes,
    }
}

pub(super) fn shared(config: &Config, keys: &Keys) -> Shared {
    let strategy = match config.mqtt.shared_subscriptions {
        SharedSubscriptions::RoundRobin => ShareStrategy::RoundRobin,
        SharedSubscriptions::Sticky => ShareStrategy::Sticky,
        SharedSubscriptions::LeastQueued => ShareStrategy::LeastQueued,
    };
    Shared::new(keys.topic_seed(), retained(config)).with_strategy(strategy)
}

pub(super) fn router(keys: &Keys, node: u16, slots: &[u8]) -> Router {
    Router {
        secrets: keys.secrets(KEY_EPOCH),
        steering: Steering::with_slots(node, slots, &[]),
    }
}

pub(super) fn core(
    config: &Config,
    slot: WorkerSlot,
    count: usize,
    (epoch, incarnation): (u32, u32),
    quotas: Arc<[QuotaLimits]>,
) -> io::Result<CoreConfig> {
    let mut random = [0; 16];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| io::Error::other("the operating system gave no random bytes"))?;
    let (a, b) = random.split_at(8);
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0u64, |word, byte| word << 8 | u64::from(*byte))
    };
    let workers = (0..count).map(|n| WorkerSlot(n as u8)).collect();
    let mut core = CoreConfig::new(slot, workers, [word(a), word(b)]);
    core.node = config.node.id;
    core.epoch = epoch;
    core.incarnation = incarnation as u8;
    core.allow_anonymous = config.mqtt.allow_anonymous;
    let denied = match config.mqtt.denied_filter_reason {
        DeniedReason::NotAuthorized => ReasonCode::NOT_AUTHORIZED,
        DeniedReason::Unspecified => ReasonCode::UNSPECIFIED_ERROR,
    };
    core.denied_filters = (config.mqtt.denied_filters.clone(), denied);
    let from = &config.limits;
    let to = &mut core.limits;
    to.sessions = from.sessions_per_worker;
    to.client_id_bytes = from.client_id_bytes;
    to.packet_bytes = from.packet_bytes_max;
    to.receive_maximum = from.receive_maximum;
    to.inflight_messages = from.inflight_messages_per_session;
    to.queued_messages = from.queued_messages_per_session;
    to.session_bytes = from.memory_per_connection_bytes;
    to.send_buffer_bytes = from.send_buffer_bytes;
    to.subscriptions_per_session = from.subscriptions_per_session;
    to.topic_levels = from.topic_levels;
    to.topic_aliases = from.topic_aliases;
    to.connect_timeout_s = config.mqtt.connect_timeout_s;
    to.keep_alive_max_s = config.mqtt.keep_alive_max_s;
    to.idle_ceiling_s = config.mqtt.idle_ceiling_s;
    to.session_expiry_max_s = config.mqtt.session_expiry_max_s;
    to.penalty_after_s = from.penalty_after_s;
    to.penalty_ends_after_s = from.penalty_ends_after_s;
    for (transport, class) in config.listen.quota_classes().unwrap_or_default() {
        let transport = Transport::from(transport) as usize;
        core.listener_classes[transport] = config.quota.number(class).unwrap_or(0);
    }
    core.quotas = quotas;
    Ok(core)
}

/// What a worker's QUIC endpoint is made from; the same for all, so that each can answer for a
/// connection of any other.
pub(super) struct QuicParts {
    server: Arc<ServerConfig>,
    endpoint: EndpointConfig,
    cids: CidKeys,
    node: u16,
}

/// What the listeners that speak TLS have in common.
#[derive(Default)]
pub(super) struct TlsParts {
    identity: Option<TlsIdentity>,
    clients: Option<ClientAuthorities>,
}

impl TlsParts {
    /// Reads the files of the configuration, as far as a listener needs them.
    pub fn load(config: &Config) -> Result<Self, TlsError> {
        if !config.listen.needs_certificate() {
            return Ok(Self::default());
        }
        let tls = &config.tls;
        let clients = match tls.client_ca.as_os_str().is_empty() {
            true => None,
            false => Some(ClientAuthorities::load(
                &tls.client_ca,
                tls.require_client_certificate,
            )?),
        };
        Ok(Self {
            identity: Some(TlsIdentity::load(&tls.certificate, &tls.key)?),
            clients,
        })
    }
}

pub(super) fn tcp(config: &Config, tls: &TlsParts) -> Result<TcpSettings, TlsError> {
    let make = |address: Option<_>, protocols: &[&str]| {
        let identity = tls.identity.as_ref().filter(|_| address.is_some());
        identity
            .map(|identity| tls::tcp_server_config(identity, tls.clients.as_ref(), protocols))
            .transpose()
    };
    Ok(TcpSettings {
        tls: make(config.listen.tls, &["mqtt"])?,
        wss: make(config.listen.wss, &["http/1.1"])?,
        frame_bytes_max: config.limits.packet_bytes_max,
    })
}

/// What data streams may have.
pub(super) fn data_limits(config: &Config) -> DataLimits {
    DataLimits {
        streams_max: u32::from(config.limits.streams_per_connection),
        opens_per_second: config.limits.stream_opens_per_second,
        send_buffer_bytes: config.limits.send_buffer_bytes,
        stream_window_bytes: QuicSettings::default().stream_receive_window_bytes,
    }
}

impl QuicParts {
    /// `None` without an identity.
    pub fn new(config: &Config, keys: &Keys, tls: &TlsParts) -> Result<Option<Self>, TlsError> {
        let Some(identity) = &tls.identity else {
            return Ok(None);
        };
        let settings = QuicSettings {
            // The rest of the credit comes with the first data stream.
            bidi_streams_max: u32::from(config.limits.streams_per_connection).min(STREAMS_AT_FIRST),
            datagram_buffer_bytes: config.limits.datagram_buffer_bytes,
            idle_timeout_ms_max: config.mqtt.idle_ceiling_s * 1_000,
            ..QuicSettings::default()
        };
        let token_key = Arc::new(keys.token_key());
        let clients = tls.clients.as_ref();
        let server = tls::quic_server_config(identity, clients, &settings, token_key)?;
        let endpoint = tls::quic_endpoint_config(&settings, keys.reset_key())?;
        Ok(Some(Self {
            server: Arc::new(server),
            endpoint,
            cids: keys.cid_keys(KEY_EPOCH),
            node: config.node.id,
        }))
    }

    /// quinn-proto's endpoint for the worker in `slot`.
    pub fn endpoint(&self, slot: WorkerSlot) -> Endpoint {
        let mut config = self.endpoint.clone();
        let (cids, node) = (self.cids, self.node);
        config.cid_generator(move || Box::new(CidGenerator::new(cids, node, slot.0)));
        Endpoint::new(
            Arc::new(config),
            Some(Arc::clone(&self.server)),
            false,
            None,
        )
    }
}
