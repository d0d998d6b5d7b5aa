//! Labels and their values.

/// A value of a label: one time series each.
pub trait Label: Copy + 'static {
    /// The label's name in Prometheus.
    const NAME: &'static str;
    /// All values, in the order of [`Label::index`].
    const ALL: &'static [Self];
    /// The value as text.
    fn text(self) -> &'static str;
    /// Its place in [`Label::ALL`].
    fn index(self) -> usize;
}

/// Declares a label's enum with its texts.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident = $label:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// What carries a connection.
    Transport = "transport" {
        /// QUIC (RFC 9000).
        Quic = "quic",
        /// TCP.
        Tcp = "tcp",
        /// TLS over TCP.
        Tls = "tls",
        /// WebSocket (RFC 6455) over TCP.
        WebSocket = "ws",
        /// WebSocket over TLS.
        WebSocketTls = "wss",
    }
}

impl From<Transport> for headgate_core::Transport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Quic => Self::Quic,
            Transport::Tcp => Self::Tcp,
            Transport::Tls => Self::Tls,
            Transport::WebSocket => Self::WebSocket,
            Transport::WebSocketTls => Self::WebSocketTls,
        }
    }
}

label! {
    /// Quality of Service (MQTT 5.0 §4.3).
    Qos = "qos" {
        /// At most once.
        Qos0 = "0",
        /// At least once.
        Qos1 = "1",
        /// Exactly once.
        Qos2 = "2",
    }
}

label! {
    /// What is refused while the store has no room or doesn't work.
    StoreRefusal = "what" {
        /// A PUBLISH that some persistent session would have to record, or that is to be retained.
        Publish = "publish",
        /// A CONNECT that needs a persistent session.
        Connect = "connect",
        /// A filter of a SUBSCRIBE in a persistent session.
        Subscribe = "subscribe",
        /// A message with QoS 0 that was to be retained: it is delivered and not retained.
        Retain = "retain",
    }
}

label! {
    /// Why a CONNECT was refused.
    Refusal = "reason" {
        /// Bad user name or password (0x86).
        Password = "bad_user_name_or_password",
        /// Not authorized (0x87).
        NotAuthorized = "not_authorized",
        /// Bad authentication method (0x8C).
        Method = "bad_authentication_method",
        /// Server busy or a quota exceeded (0x89, 0x97).
        Busy = "server_busy",
        /// Any other.
        Other = "other",
    }
}

label! {
    /// Why a message did not reach a subscriber.
    MessageDrop = "reason" {
        /// The session's queue was full (`limits.queued_messages_per_session` or
        /// `limits.memory_per_connection_bytes`).
        QueueFull = "queue_full",
        /// It was the oldest in a full queue, and a newer one took its place (`when_full` of the quota class).
        Oldest = "queue_full_oldest",
        /// QoS 0 and the subscriber is not connected.
        Offline = "offline",
        /// QoS 0, it would have had to wait, and memory or CPU time was short.
        Overload = "overload",
        /// Its Message Expiry Interval has passed (MQTT 5.0 §3.3.2.3.3).
        Expired = "expired",
        /// Larger than the subscriber's Maximum Packet Size [MQTT-3.1.2-25].
        TooLarge = "too_large",
        /// The ring to the subscriber's worker stayed full for longer than is waited.
        MeshFull = "mesh_full",
        /// The session had moved or ended when the message arrived.
        Stale = "stale",
    }
}

label! {
    /// What can run short.
    Resource = "resource" {
        /// Memory (`limits.memory_limit`).
        Memory = "memory",
        /// The workers' time.
        Cpu = "cpu",
        /// Room for new connections (`limits.handshakes_per_second`, `limits.initials_waiting`).
        Handshakes = "handshakes",
    }
}

label! {
    /// Which rate of its quota class a client was above.
    QuotaRate = "rate" {
        /// PUBLISH packets per second.
        Messages = "messages_per_second",
        /// Bytes of topics and payloads per second.
        Bytes = "bytes_per_second",
    }
}

label! {
    /// Why user space dropped a datagram. (What the kernel drops is in
    /// `headgate_kernel_drops_total`.)
    DatagramDrop = "reason" {
        /// The ring to the worker that owns it was full.
        MeshFull = "mesh_full",
        /// It would have been answered with a stateless reset, and `limits.stateless_resets_per_second` was reached.
        ResetBudget = "reset_budget",
        /// A packet of a new connection came while as many waited as `limits.initials_waiting` allows.
        InitialsWaiting = "initials_waiting",
        /// A packet of a new connection has waited for too long: its client has repeated it, or given up.
        InitialExpired = "initial_expired",
        /// The kernel refused to send it.
        SendFailed = "send_failed",
        /// A PUBLISH in a datagram (RFC 9221): as many bytes wait for the network as may.
        SendBufferFull = "send_buffer_full",
        /// A datagram (RFC 9221) of a client that has not asked for them in CONNECT.
        NotAskedFor = "not_asked_for",
    }
}
