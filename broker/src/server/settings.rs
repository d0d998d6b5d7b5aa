//! From the configuration to what each part wants to know.

use crate::{
    config::{Config, Congestion, DeniedReason, SharedSubscriptions, StoreFsync},
    keys::Keys,
    limits::AdmissionLimits,
    net::{
        cid::CidGenerator,
        quic::{DataLimits, QuicSideSettings, STREAMS_AT_FIRST, guard::Issued, qlog::Qlogs},
        tcp::TcpSettings,
        tls::{
            self, ClientAuthorities, KeyExchange, LiveTls, QuicSettings, TicketStore, TlsError,
            TlsIdentity,
        },
        token::TokenKey,
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
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
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

impl From<Congestion> for tls::Congestion {
    fn from(wanted: Congestion) -> Self {
        match wanted {
            Congestion::NewReno => Self::NewReno,
            Congestion::Cubic => Self::Cubic,
            Congestion::Bbr => Self::Bbr,
        }
    }
}

pub(super) fn router(keys: &Keys, node: u16, slots: &[u8]) -> Router {
    Router {
        secrets: keys.secrets(KEY_EPOCH),
        steering: Steering::with_slots(node, slots, &[]),
    }
}

/// Where Packet Identifiers begin in the run that started at `epoch`, s: far from where they did in those of the last minutes
/// (multiples of the golden ratio keep apart), because a client may still have some of these.
fn first_packet_id(epoch: u32) -> u16 {
    const GOLDEN_RATIO: u32 = 40_503; // of 2^16
    (epoch.wrapping_mul(GOLDEN_RATIO) as u16).max(1)
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
    if config.store.fsync != StoreFsync::Always {
        core.first_packet_id = first_packet_id(epoch);
    }
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
    to.streams = from.streams_per_connection;
    to.datagrams = from.datagram_buffer_bytes > 0;
    to.session_store_bytes = config.store.session_bytes_max;
    to.subscriptions_per_session = from.subscriptions_per_session;
    to.topic_levels = from.topic_levels;
    to.topic_aliases = from.topic_aliases;
    to.connect_timeout_s = config.mqtt.connect_timeout_s;
    to.keep_alive_max_s = config.mqtt.keep_alive_max_s;
    to.idle_ceiling_s = config.mqtt.idle_ceiling_s;
    to.session_expiry_max_s = config.mqtt.session_expiry_max_s;
    to.penalty_after_s = from.penalty_after_s;
    to.penalty_ends_after_s = from.penalty_ends_after_s;
    to.full_queue_ms_max = from.full_queue_max_ms;
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
    /// What the workers' part has to know.
    pub side: QuicSideSettings,
    tls: Arc<LiveTls>,
    settings: QuicSettings,
    server: Arc<ServerConfig>,
    endpoint: EndpointConfig,
    pub cids: CidKeys,
    pub node: u16,
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
        // Each file holds both, so that a list of files says which key is whose.
        let others = tls.more_certificates.iter().map(Path::new);
        let others = others.map(|file| TlsIdentity::load(file, file));
        let others = others.collect::<Result<Vec<_>, _>>()?;
        let identity = TlsIdentity::load(&tls.certificate, &tls.key)?;
        Ok(Self {
            identity: Some(identity.with_others(others)),
            clients,
        })
    }
}

/// rustls's configurations of the listeners over TCP: TLS, and WebSocket over TLS.
type OverTcp = [Option<Arc<rustls::ServerConfig>>; 2];

fn key_exchange(config: &Config) -> KeyExchange {
    match config.tls.post_quantum {
        true => KeyExchange::PostQuantum,
        false => KeyExchange::Classical,
    }
}

fn over_tcp(config: &Config, tls: &TlsParts) -> Result<OverTcp, TlsError> {
    let exchange = key_exchange(config);
    let make = |address: Option<_>, protocols: &[&str]| {
        let identity = tls.identity.as_ref().filter(|_| address.is_some());
        identity
            .map(|identity| {
                tls::tcp_server_config(identity, tls.clients.as_ref(), protocols, exchange)
            })
            .transpose()
    };
    Ok([
        make(config.listen.tls, &["mqtt"])?,
        make(config.listen.wss, &["http/1.1"])?,
    ])
}

pub(super) fn tcp(config: &Config, tls: &TlsParts) -> Result<TcpSettings, TlsError> {
    let [tls, wss] = over_tcp(config, tls)?.map(|config| config.map(LiveTls::new));
    Ok(TcpSettings {
        tls,
        wss,
        frame_bytes_max: config.limits.packet_bytes_max,
    })
}

/// Certificates for connections from now on. Either all listeners get them, or none does.
pub(super) fn replace_certificates(
    config: &Config,
    parts: &TlsParts,
    tcp: &TcpSettings,
    quic: Option<&QuicParts>,
) -> Result<(), TlsError> {
    let [tls, wss] = over_tcp(config, parts)?;
    if let (Some(quic), Some(identity)) = (quic, &parts.identity) {
        let clients = parts.clients.as_ref();
        let fresh = tls::quic_tls_config(identity, clients, &quic.settings, &quic.side.tickets)?;
        quic.tls.replace(fresh);
        if clients.is_some() {
            quic.side.tickets.clear();
        }
    }
    for (live, fresh) in [(&tcp.tls, tls), (&tcp.wss, wss)] {
        if let (Some(live), Some(fresh)) = (live, fresh) {
            live.replace(fresh);
        }
    }
    Ok(())
}

impl QuicParts {
    /// `None` without an identity.
    pub fn new(
        config: &Config,
        keys: &Keys,
        tls: &TlsParts,
        workers: usize,
    ) -> Result<Option<Self>, TlsError> {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
        let Some(identity) = &tls.identity else {
            return Ok(None);
        };
        let settings = QuicSettings {
            // The rest of the credit comes with the first data stream.
            bidi_streams_max: u32::from(config.limits.streams_per_connection).min(STREAMS_AT_FIRST),
            datagram_buffer_bytes: config.limits.datagram_buffer_bytes,
            idle_timeout_ms_max: config.mqtt.idle_ceiling_s * 1_000,
            early_data: config.quic.early_data,
            congestion: config.quic.congestion.into(),
            key_exchange: key_exchange(config),
            mtu_discovery: config.quic.mtu_discovery,
            receive_window_bytes: config.quic.receive_window_bytes,
            // Of one stream the connection's own window is the limit; it has room for data streams besides.
            stream_receive_window_bytes: config.quic.receive_window_bytes_max,
            retry_token_life: Duration::from_secs(config.kernel.retry_token_life_s.into()),
            ..QuicSettings::default()
        };
        let token_key = Arc::new(TokenKey::new(keys.clone()));
        let clients = tls.clients.as_ref();
        let tickets = Arc::new(TicketStore::new(config.limits.resumable_sessions));
        let tls = tls::quic_tls_config(identity, clients, &settings, &tickets)?;
        let tls = LiveTls::new(tls);
        let server = Arc::new(tls::quic_server_config(&tls, &settings, token_key));
        let folder = config.node.state_dir.join("qlog");
        let qlogs = Qlogs::new(folder, Arc::clone(&server), settings.clone());
        let endpoint = tls::quic_endpoint_config(&settings, keys.reset_key())?;
        Ok(Some(Self {
            side: QuicSideSettings {
                tickets,
                resets_per_second: config.limits.stateless_resets_per_second.div_ceil(workers),
                initials_waiting: config.limits.initials_waiting.div_ceil(workers) as usize,
                receive_window_bytes: settings.receive_window_bytes,
                receive_window_bytes_max: settings.stream_receive_window_bytes,
                qlogs: Arc::new(qlogs),
                data: DataLimits {
                    opens_per_second: config.limits.stream_opens_per_second,
                    send_buffer_bytes: config.limits.send_buffer_bytes,
                },
            },
            tls,
            settings,
            server,
            endpoint,
            cids: keys.cid_keys(KEY_EPOCH),
            node: config.node.id,
        }))
    }

    /// quinn-proto's endpoint for the worker in `slot`.
    pub fn endpoint(&self, slot: WorkerSlot, issued: &Issued) -> Endpoint {
        let mut config = self.endpoint.clone();
        let (cids, node) = (self.cids, self.node);
        let issued = issued.clone();
        let generator = move || CidGenerator::new(cids, node, slot.0, issued.clone());
        config.cid_generator(move || Box::new(generator()));
        Endpoint::new(
            Arc::new(config),
            Some(Arc::clone(&self.server)),
            // Where `mtu_discovery` is on. The sockets never fragment, and are told of no path MTU.
            true,
            None,
        )
    }
}
