//! The sections and keys of the configuration: one table makes the structs, their docs, the
//! defaults, what is allowed, and the file that `headgate check --print-defaults` prints.

use std::{net::SocketAddr, path::PathBuf};

use super::quota::QuotaConfig;
use super::setting::{Allowed, Raw, Setting, words};
use super::size::MemoryLimit;

words! {
    /// How the XDP program is attached.
    KernelMode {
        /// Native where the driver can, generic elsewhere; without the needed rights, off.
        Auto = "auto",
        /// In the driver, or the broker does not start.
        Native = "native",
        /// In the network stack, on every interface.
        Generic = "generic",
        /// Not at all.
        Off = "off",
    }
}

words! {
    /// When new QUIC connections have to prove their address first.
    RetryMode {
        /// Under load, and where a budget for Initials is used up.
        Auto = "auto",
        /// All of them.
        Always = "always",
        /// None: what is above a budget is dropped.
        Never = "never",
    }
}

words! {
    /// How packets find the worker that owns their connection.
    Steering {
        /// `Reuseport`, and CPUMAP besides with native drivers and more than one worker.
        Auto = "auto",
        /// The sk_reuseport program picks the owner's socket.
        Reuseport = "reuseport",
        /// XDP sends the packet to the owner's CPU; the kernel's own hash picks the socket.
        Cpumap = "cpumap",
        /// Neither: the kernel's own hash picks the socket.
        None = "none",
    }
}

words! {
    /// Whether the kernel may join datagrams of one source on receipt (UDP_GRO).
    UdpGro {
        /// With one worker only: a train of several connections arrives at one socket.
        Auto = "auto",
        /// Always.
        On = "true",
        /// Never.
        Off = "false",
    }
}

words! {
    /// How much of what was sent may be on its way (RFC 9002 §7).
    Congestion {
        /// RFC 9002 §7: the smallest state.
        NewReno = "new_reno",
        /// RFC 9438: faster on long paths.
        Cubic = "cubic",
        /// By the measured rate, not by loss; quinn-proto calls it experimental.
        Bbr = "bbr",
    }
}

words! {
    /// Which member of a Shared Subscription gets a message.
    SharedSubscriptions {
        /// Each in its turn.
        RoundRobin = "round_robin",
        /// The same one for as long as it is connected and keeps up.
        Sticky = "sticky",
        /// The one with the fewest messages that wait or are not acknowledged.
        LeastQueued = "least_queued",
    }
}

words! {
    /// The Reason Code for a filter that is denied.
    DeniedReason {
        /// 0x87.
        NotAuthorized = "not_authorized",
        /// 0x80.
        Unspecified = "unspecified",
    }
}

words! {
    /// When a record of a persistent session counts as safe, so that its acknowledgement may leave.
    StoreFsync {
        /// It is on the disk: nothing acknowledged is lost when the power fails.
        Always = "always",
        /// The system has it: what the last interval brought is lost when the power fails, and nothing when only the
        /// broker ends, however it ends.
        Interval = "interval",
        /// The same, and when it comes to the disk is left to the system.
        Never = "never",
    }
}

words! {
    /// The least severe events that are logged.
    LogLevel {
        /// What makes the broker useless.
        Error = "error",
        /// What somebody should look at.
        Warn = "warn",
        /// Starts, stops and changes.
        Info = "info",
        /// Each connection.
        Debug = "debug",
        /// Each packet.
        Trace = "trace",
    }
}

words! {
    /// How events are written.
    LogFormat {
        /// Lines for people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

/// A section of the file.
pub(super) struct SectionSpec {
    pub name: &'static str,
    pub docs: &'static [&'static str],
    pub keys: &'static [KeySpec],
}

/// A key of a section.
pub(super) struct KeySpec {
    pub name: &'static str,
    pub docs: &'static [&'static str],
    /// Lists are not overridden by the environment.
    pub list: bool,
    /// What is allowed, for the end of a sentence.
    pub allowed: fn() -> String,
    pub words: fn() -> &'static [&'static str],
    /// The value as TOML.
    pub show: fn(&Config) -> String,
    /// `false` if the value isn't allowed.
    pub set: fn(&mut Config, Raw<'_>) -> bool,
}

macro_rules! sections {
    ($($(#[doc = $section_doc:literal])+ $section:ident: $name:ident {
        $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr $(, $range:expr)?;)+
    })+) => {
        /// The whole configuration. `Config::default()` has every default.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Config {
            $($(#[doc = $section_doc])+ pub $section: $name,)+
            /// Quota classes: the sections `[quota.NAME]`.
            pub quota: QuotaConfig,
        }

        $($(#[doc = $section_doc])+
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $key: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        })+

        pub(super) static SECTIONS: &[SectionSpec] = &[$(SectionSpec {
            name: stringify!($section),
            docs: &[$($section_doc,)+],
            keys: &[$(KeySpec {
                name: stringify!($key),
                docs: &[$($doc,)+],
                list: <$type as Setting>::LIST,
                allowed: || <$type as Setting>::allowed(range!($($range)?)),
                words: <$type as Setting>::words,
                show: |config| config.$section.$key.show(),
                set: |config, raw| {
                    let value = <$type as Setting>::read(raw, range!($($range)?));
                    value.map(|value| config.$section.$key = value).is_some()
                },
            },)+],
        },)+];
    };
}

macro_rules! range {
    () => {
        Allowed::None
    };
    ($range:expr) => {
        Allowed::Some($range)
    };
}

sections! {
    /// This broker.
    node: NodeConfig {
        /// Node id: the part of every connection ID and session id that tells the nodes of a
        /// cluster apart. The nodes of one cluster need different ones.
        id: u16 = 0;
        /// State folder: the master secret (mode 0600), and what outlives a restart. It is made
        /// if it is missing.
        state_dir: PathBuf = "/var/lib/headgate".into();
        /// Worker threads; each owns a UDP socket, its connections and their sessions.
        /// 0 = one per CPU that the process may use.
        workers: u16 = 0, 0..=255;
        /// Pin each worker to a CPU of its own, where there are enough CPUs. Steering by CPUMAP
        /// needs it.
        pin_threads: bool = true;
    }
    /// Where clients connect. `[::]` means all addresses, IPv4 and IPv6.
    listen: ListenConfig {
        /// MQTT over QUIC (ALPN mqtt), UDP.
        quic: Option<SocketAddr> = Some(([0u16; 8], 14567).into());
        /// MQTT over TCP, without encryption.
        tcp: Option<SocketAddr> = Some(([0u16; 8], 1883).into());
        /// MQTT over TLS (1.2 or 1.3). The usual port is 8883; it needs tls.certificate.
        tls: Option<SocketAddr> = None;
        /// MQTT over WebSocket (RFC 6455, subprotocol mqtt, any path), without encryption. The
        /// usual port is 8083.
        ws: Option<SocketAddr> = None;
        /// MQTT over WebSocket over TLS. The usual port is 8084; it needs tls.certificate.
        wss: Option<SocketAddr> = None;
        /// Listeners behind a load balancer that speaks the PROXY protocol, version 1 or 2: some of
        /// "tcp", "tls", "ws" and "wss". Limits and the log then mean the address in the header
        /// (up to 4,096 bytes), and connections without one are refused. Whoever reaches such a
        /// listener can claim any address: let the load balancer alone reach it.
        proxy_protocol: Vec<String> = Vec::new();
        /// Quota classes of clients whose authentication names none, by listener, such as
        /// ["quic=sensors", "tcp=guests"]. All others are of the class "default".
        quota_classes: Vec<String> = Vec::new();
        /// Let the kernel join datagrams of one source on receipt (UDP_GRO). Cheaper for bulk
        /// from few clients; but a train that holds several connections arrives at one worker,
        /// which has to hand over what belongs to others. "auto" = on with one worker only.
        udp_gro: UdpGro = UdpGro::Auto;
    }
    /// QUIC (RFC 9000).
    quic: QuicConfig {
        /// Take 0-RTT data (RFC 9001 §4.6) from clients that resume a session: CONNECT and the first
        /// messages are acknowledged one round trip after the client's first packet. A ticket is good once. What
        /// could do harm if somebody held the data back and sent it later waits for the end of the
        /// handshake: Clean Start, a will, a session that is connected or at another worker, SUBSCRIBE,
        /// retained messages, QoS 2.
        early_data: bool = true;
        /// Congestion control (RFC 9002 §7): new_reno, with the smallest state; cubic (RFC 9438), faster on
        /// long paths; bbr, which goes by the measured rate and not by loss, and which quinn-proto calls
        /// experimental.
        congestion: Congestion = Congestion::NewReno;
        /// Look for a path MTU above 1,200 bytes (RFC 8899), up to 1,452. It costs each connection a few
        /// large packets at its beginning, and no memory; it pays for clients that move much data.
        mtu_discovery: bool = false;
        /// Bytes that a client may send before they are read (RFC 9000 §4.1), when it connects. A client that
        /// fills half of it within two round trips gets twice as much, up to receive_window_bytes_max.
        receive_window_bytes: u32 = 65_536, 16_384..=16_777_216;
        /// The most that it may become. Worst case: this much memory for each connection that sends and
        /// is not read from.
        receive_window_bytes_max: u32 = 1_048_576, 16_384..=16_777_216;
    }
    /// The certificate that clients see over QUIC, TLS and WebSocket over TLS. Required unless these
    /// are off; `headgate run --dev` makes one by itself. A file beside a certificate with its name and
    /// ".ocsp" is an OCSP response (DER) that goes with it. SIGHUP and `headgate reload` read all of these
    /// files again, for connections from then on.
    tls: TlsConfig {
        /// Certificate chain, PEM; the server's own certificate first.
        certificate: PathBuf = PathBuf::new();
        /// Private key of the certificate, PEM. Only the broker should be able to read it.
        key: PathBuf = PathBuf::new();
        /// Further certificates for clients that ask for another name (Server Name Indication): PEM files
        /// that hold a chain and its private key each. The names are those in the certificate, also
        /// wildcards. A client that asks for none of them sees tls.certificate.
        more_certificates: Vec<String> = Vec::new();
        /// Exchange keys with X25519MLKEM768 (draft-ietf-tls-ecdhe-mlkem, with ML-KEM of FIPS 203) where the
        /// client offers it: what is recorded today stays secret from a quantum computer. It costs the
        /// broker about 40 µs of CPU per handshake and nothing after it; clients that don't offer it cost
        /// nothing. Over QUIC such a client's first flight has two Initial packets.
        post_quantum: bool = true;
        /// Authorities of clients' certificates, PEM. A client that shows a certificate of one of
        /// them is known by its name (the subject's Common Name); one that shows another is refused.
        /// "" = none is asked for.
        client_ca: PathBuf = PathBuf::new();
        /// Refuse clients that show no certificate. Applies to QUIC, TLS and WebSocket over TLS, and
        /// needs client_ca.
        require_client_certificate: bool = false;
    }
    /// The part in the kernel: an XDP program that drops floods, and steering. It needs root (or
    /// CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON).
    kernel: KernelConfig {
        /// How the XDP program is attached. "auto" = native where the driver can, generic
        /// elsewhere, and off without the needed rights (it is said at start which).
        mode: KernelMode = KernelMode::Auto;
        /// Network interfaces that the XDP program protects, by name. None = no XDP program: an
        /// interface is never chosen for you. Steering by sk_reuseport works without.
        interfaces: Vec<String> = Vec::new();
        /// Folder in a BPF file system where the maps and links are pinned, for bpftool and for
        /// the next start after a crash. Two brokers on one machine need different ones.
        pin_dir: PathBuf = "/sys/fs/bpf/headgate".into();
        /// How packets find the worker that owns their connection. "reuseport" = sk_reuseport
        /// picks the owner's socket, exactly; "cpumap" = XDP sends the packet to the owner's CPU,
        /// and the kernel's own hash picks the socket; "none" = neither; "auto" = "reuseport", and
        /// CPUMAP besides with native drivers and more than one worker. What arrives at a wrong
        /// worker is handed over and counted.
        steering: Steering = Steering::Auto;
        /// Packets that wait for a CPU behind CPUMAP before further ones are dropped. Worst case: 2 KiB
        /// of kernel memory each, per CPU.
        cpumap_queue_packets: u32 = 2_048, 64..=16_384;
        /// QUIC Initial and 0-RTT packets to unknown connection IDs that pass, per second, all
        /// sources together; a client that offers a post-quantum key exchange sends two for each connection. Of
        /// this and the following budgets two seconds' worth may come at once, and what is above is
        /// dropped and counted. 0 = no limit.
        initials_per_second: u32 = 40_000, 0..=100_000_000;
        /// The same from one source prefix (IPv4 /24, IPv6 /64). 0 = no limit.
        initials_per_second_per_prefix: u32 = 10_000, 0..=100_000_000;
        /// QUIC Initial packets with a valid token that pass, per second, all sources together: a flood from
        /// spoofed addresses doesn't touch this budget. 0 = no limit.
        validated_initials_per_second: u32 = 40_000, 0..=100_000_000;
        /// The same from one host (IPv4 address, IPv6 /64). A client repeats its token on every Initial, and
        /// so may somebody who has seen it. 0 = no limit.
        validated_initials_per_second_per_host: u32 = 2_000, 0..=100_000_000;
        /// When new QUIC connections have to prove their address first, by a Retry packet (RFC 9000 §8.1.2),
        /// which costs them a round trip. "auto" = under load, and where a budget for Initials is used up;
        /// "always"; "never" = what is above a budget is dropped. XDP answers by itself; without it, the
        /// broker does.
        retry: RetryMode = RetryMode::Auto;
        /// "auto" begins above so many Initials without a valid token per second. 0 = not by this.
        retry_above_initials_per_second: u32 = 10_000, 0..=100_000_000;
        /// And ends some seconds after there were fewer than this.
        retry_below_initials_per_second: u32 = 5_000, 0..=100_000_000;
        /// How long the token of a Retry packet is good, seconds. A client uses it at once.
        retry_token_life_s: u32 = 15, 1..=300;
        /// Retry packets that XDP answers with, per second; above it, the Initials are dropped. An answer is
        /// always shorter than what it answers. 0 = no limit.
        retries_per_second: u32 = 1_000_000, 0..=100_000_000;
        /// All QUIC packets from one source prefix that pass, per second. A fleet behind one
        /// carrier's NAT shares a prefix. 0 = no limit.
        packets_per_second_per_prefix: u32 = 500_000, 0..=100_000_000;
        /// TCP SYNs to the MQTT ports from one source prefix that pass, per second. 0 = no limit.
        syns_per_second_per_prefix: u32 = 10_000, 0..=100_000_000;
        /// IP fragments of UDP, and UDP behind IP options or extension headers, that pass, per
        /// second. 0 = no limit.
        fragments_per_second: u32 = 1_000, 0..=100_000_000;
        /// Version Negotiation packets (RFC 9000 §6) that XDP answers with, per second; above it,
        /// unknown versions are dropped. 0 = no limit.
        version_negotiations_per_second: u32 = 1_000, 0..=100_000_000;
        /// Log from inside the XDP program (aya-log). It is slow: for debugging only.
        debug_log: bool = false;
    }
    /// Limits. Where one is hit, the client gets a Reason Code if there is a way to tell it, and
    /// headgate_refused_total{limit="…"} counts.
    limits: LimitsConfig {
        /// Network connections in all; 0 = no limit. Worst case: about 13 kB for an idle QUIC session
        /// (over TLS 5 kB, over TCP 1 kB), and memory_per_connection_bytes for each that is busy; 64 kB
        /// for one over TLS or WebSocket that never finishes its handshake. QUIC: CONNECTION_REFUSED.
        connections: u32 = 1_000_000;
        /// Network connections from one source prefix (IPv4 /24, IPv6 /64); 0 = no limit. Many
        /// devices share a prefix behind a carrier's NAT. Costs 40 bytes per prefix.
        /// QUIC: CONNECTION_REFUSED.
        connections_per_prefix: u32 = 200_000;
        /// Memory of the broker: "auto" = 90 % of what the machine, or its cgroup (v2), has; "off"; or an amount
        /// such as "2GiB". From 85 % of it on new connections are refused (QUIC: CONNECTION_REFUSED, TCP: CONNACK
        /// 0x89), from 92 % on messages with QoS 0 that would have to wait are dropped, and from 97 % on the slowest
        /// consumers are closed (0x97). The same happens while the machine or the cgroup has less than 5, 3, 2 % left.
        /// It means resident memory; sockets and the kernel's maps are not in it.
        memory_limit: MemoryLimit = MemoryLimit::Auto;
        /// Connections begun per second, all workers together; a second's worth may come at once. More: they
        /// wait. 0 = no limit. A handshake over QUIC costs about 0.2 ms of CPU.
        handshakes_per_second: u32 = 20_000;
        /// QUIC packets of new connections that wait, all workers together: for the rate above, or because the
        /// worker has other clients to serve. More: dropped, and the client repeats it. Each waits for 10 s at
        /// most. Worst case: about 1.5 kB each.
        initials_waiting: u32 = 16_384, 64..=1_048_576;
        /// Bidirectional streams that a QUIC client may have open. The first is the control
        /// stream. The first three are allowed at once, all when the client has opened a data stream: an
        /// idle connection that uses one costs no more. More: STREAM_LIMIT_ERROR. A connection may hold
        /// quic.receive_window_bytes more of the client's data for each data stream, and
        /// quic.receive_window_bytes_max for one that isn't read from, two of these at most. A quota class may have
        /// a limit of its own.
        streams_per_connection: u16 = 10, 1..=1_000;
        /// Data streams that a QUIC client may open in a second. More: it is closed (CONNECTION_CLOSE with
        /// application error 2). Opening and resetting a stream costs about as much as a PUBLISH.
        stream_opens_per_second: u32 = 200, 1..=1_000_000;
        /// Bytes of datagrams (RFC 9221) that wait in one QUIC connection, in each direction. More: the
        /// oldest that came is dropped, or the newest that is to be sent. 0 = datagrams are not offered.
        datagram_buffer_bytes: u32 = 65_536, 0..=1_048_576;
        /// Sessions of one worker, connected or not. More: CONNACK 0x97. An empty session costs
        /// about 500 bytes.
        sessions_per_worker: u32 = 1_000_000, 1..=16_777_215;
        /// Subscriptions of one session. More: SUBACK 0x97. About 90 bytes each, and the filter.
        subscriptions_per_session: u32 = 1_000, 1..=1_000_000;
        /// Messages that wait for one session. More: the newest is dropped and counted, or what
        /// when_full of its quota class says. Together with inflight_messages_per_session at most
        /// 65,000: each has a Packet Identifier of its own.
        queued_messages_per_session: u32 = 1_000, 1..=1_000_000;
        /// Memory of the messages that wait for one session or are on their way to it, bytes.
        /// More: as above.
        memory_per_connection_bytes: u32 = 1_000_000, 65_536..=1_073_741_824;
        /// Bytes given to a connection that the network has not taken yet. More: messages wait in
        /// the session's queue; above twice as much, nothing is read from the client.
        send_buffer_bytes: u32 = 65_536, 4_096..=16_777_216;
        /// Maximum Packet Size that clients are told (MQTT 5.0 §3.2.2.3.6), bytes. More:
        /// DISCONNECT 0x95.
        packet_bytes_max: u32 = 262_144, 1_024..=268_435_460;
        /// Receive Maximum that clients are told (§3.2.2.3.3): PUBLISH packets with QoS 1 or 2 that
        /// a client may have open. More: DISCONNECT 0x93.
        receive_maximum: u16 = 256, 1..=65_535;
        /// PUBLISH packets with QoS 1 or 2 on their way to one client; its own Receive Maximum may
        /// be less.
        inflight_messages_per_session: u16 = 256, 1..=65_535;
        /// Length of a Client Identifier, bytes. More: CONNACK 0x85.
        client_id_bytes: u16 = 256, 23..=65_535;
        /// Levels of a Topic Name or Topic Filter. More: SUBACK 0x97, DISCONNECT 0x90.
        topic_levels: u16 = 64, 1..=1_024;
        /// Topic Aliases of one connection, in each direction (MQTT 5.0 §3.3.2.3.4). More: DISCONNECT
        /// 0x94. Each may hold the client's longest topic.
        topic_aliases: u16 = 16, 0..=64;
        /// Retained messages in all; those below $SYS don't count. More: PUBACK 0x97 (5.0); otherwise
        /// delivered, not stored.
        retained_messages: u32 = 100_000;
        /// Memory of these messages, bytes. More: as above.
        retained_bytes: u64 = 268_435_456, 0..=1_099_511_627_776;
        /// How long a client may go on above its quota class's rates before the kernel polices its
        /// packets by the class's packets_per_second and bytes_per_second, seconds. QUIC only.
        penalty_after_s: u32 = 5, 0..=3_600;
        /// How long it has to stay within them until that ends, seconds.
        penalty_ends_after_s: u32 = 10, 1..=3_600;
        /// How long a full queue may take until it is half empty, milliseconds. Of a quota class with
        /// when_full = "block": until then publishers wait; later they are read from again, and the queue
        /// drops what comes. With "disconnect": until then a client that has come back to a full queue
        /// stays.
        full_queue_max_ms: u32 = 5_000, 1..=600_000;
        /// Passwords that are being checked or wait for that, all workers together. More: CONNACK
        /// 0x89. Each holds a CONNECT packet. With 30 ms for each and auth.threads = 2 the last of 512
        /// waits for 8 s, and mqtt.connect_timeout_s is 10.
        password_checks: u32 = 512, 1..=65_536;
        /// Stateless resets (RFC 9000 §10.3) per second, all workers together; a second's worth may go at
        /// once. After a restart they tell each device, with its next packet, that its connection is gone:
        /// at the default a million devices within a minute. More: silence, and the device finds out by its own
        /// timeout. Counted in headgate_datagrams_dropped_total{reason="reset_budget"}. 0 = none.
        stateless_resets_per_second: u32 = 20_000, 0..=10_000_000;
        /// TLS sessions that QUIC clients can resume, all workers together: one for each handshake, for a
        /// day at most. More: the oldest are forgotten, and their clients make a full handshake. Worst
        /// case: about 200 bytes each, and the chain of the client's certificate. 0 = none, and no 0-RTT.
        resumable_sessions: u32 = 1_000_000, 0..=16_777_216;
    }
    /// The protocol.
    mqtt: MqttConfig {
        /// Let in whoever connects and shows nothing. User Names and Passwords are looked at only with
        /// an auth.password_file. With false the section auth has to name a way. Set it to true only where
        /// everybody who can reach the listeners is trusted.
        allow_anonymous: bool = false;
        /// Time for a client to set up what carries MQTT (PROXY header, TLS or QUIC handshake,
        /// WebSocket upgrade), and again from there to CONNECT, seconds. Later: closed.
        connect_timeout_s: u32 = 10, 1..=300;
        /// Longest silence of any client, seconds: applies to Keep Alive 0, and to clients whose
        /// 1.5 × Keep Alive is more (those of 5.0 are told a shorter one: Server Keep Alive, MQTT
        /// 5.0 §3.2.2.3.14). It is also QUIC's max_idle_timeout (RFC 9000 §10.1).
        idle_ceiling_s: u32 = 3_600, 5..=604_800;
        /// Longest Keep Alive, seconds: clients of 5.0 that ask for more, or for none, are told this much
        /// (Server Keep Alive, §3.2.2.3.14).
        keep_alive_max_s: u16 = 65_535, 1..=65_535;
        /// Longest Session Expiry Interval, seconds; a longer one is shortened (5.0: the client is
        /// told), and sessions of 3.1.1 with Clean Session 0 get this one. 4_294_967_295 = sessions may
        /// last for ever.
        session_expiry_max_s: u32 = 604_800;
        /// How often the topics below $SYS/broker are brought up to date, seconds; they have mosquitto's
        /// names. 0 = there are none.
        sys_interval_s: u32 = 10, 0..=86_400;
        /// Which member of a Shared Subscription ($share/…) gets a message, of those that are connected:
        /// each in its turn, always the same one, or the one with the fewest messages that wait or are not
        /// acknowledged.
        shared_subscriptions: SharedSubscriptions = SharedSubscriptions::RoundRobin;
        /// Topic Filters that nobody may subscribe to, exactly as they are written here. A wider filter
        /// still matches their topics: this is no access control.
        denied_filters: Vec<String> = Vec::new();
        /// What SUBACK says of them to clients of 5.0: not_authorized (0x87) or unspecified (0x80).
        denied_filter_reason: DeniedReason = DeniedReason::NotAuthorized;
    }
    /// Who clients are. They are asked in this order: the client's certificate, SCRAM, the password
    /// file; whom none of them knows is let in or not by mqtt.allow_anonymous. Failures are counted
    /// in headgate_authentications_failed_total{method="…"}.
    auth: AuthConfig {
        /// Password file; `headgate passwd` writes it. It allows User Name and Password (CONNACK 0x86
        /// where they are wrong) and, in MQTT 5.0, AUTH with SCRAM-SHA-256. It is read at start.
        /// "" = none.
        password_file: PathBuf = PathBuf::new();
        /// The Common Name in a client's certificate is its user's name: no password is needed. Needs
        /// tls.client_ca. A client that shows a Password or an Authentication Method as well is known
        /// by that instead.
        certificate: bool = false;
        /// Threads that check passwords, which takes tens of milliseconds each: a large fleet that
        /// reconnects at once should use SCRAM or certificates. Worst case: each thread needs the
        /// memory of one hash, 19 MiB for those that `headgate passwd` makes.
        threads: u16 = 2, 1..=64;
    }
    /// Where persistent sessions, their queued messages and retained messages outlive the process.
    store: StoreConfig {
        /// Keep them. Off, they live in memory and end with the broker.
        enabled: bool = true;
        /// The store's folder. "" = store in the state folder.
        path: PathBuf = PathBuf::new();
        /// When a record is safe, and acknowledgements that wait for it leave. "always" = it is on
        /// the disk (records of all workers are synced together); "interval" = the system has it, and
        /// is told to write it every fsync_interval_ms; "never" = the system has it. kill -9 loses
        /// nothing at any level; a loss of power loses nothing at "always", the last interval at
        /// "interval", and what the system hadn't written at "never".
        fsync: StoreFsync = StoreFsync::Always;
        /// How often the disk is synced at fsync = "interval", milliseconds.
        fsync_interval_ms: u32 = 1_000, 10..=600_000;
        /// What the store's files may occupy, bytes. Above it new persistent work is refused (0x97,
        /// quota exceeded) until there is room again; QoS 0 and sessions without expiry go on.
        bytes_max: u64 = 8 * 1_024 * 1_024 * 1_024, 268_435_456..=1_099_511_627_776;
        /// What the messages of one session's queue may occupy in the store, bytes; a message above
        /// it is dropped as from a full queue.
        session_bytes_max: u32 = 16 * 1_024 * 1_024, 65_536..=1_073_741_824;
        /// What has to stay free on the store's filesystem, bytes; below it new persistent work is
        /// refused as above.
        reserve_bytes: u64 = 64 * 1_024 * 1_024, 0..=1_099_511_627_776;
    }
    /// Sources that are let in or turned away; the longest prefix decides. The XDP program drops what is
    /// denied; without it, connections are refused and counted (headgate_refused_total{limit="denied"}).
    /// `headgate ctl deny` and `headgate ctl allow` change the lists while the broker runs.
    lists: ListsConfig {
        /// Prefixes that are denied, such as ["203.0.113.0/24", "2001:db8::/32"].
        deny: Vec<String> = Vec::new();
        /// Prefixes that no budget by source applies to, and that are never denied automatically.
        allow: Vec<String> = Vec::new();
        /// A source (an IPv4 address, an IPv6 /64) is denied automatically when it sent so many malformed
        /// packets within a minute. Only what comes over a connection counts: nobody else's address can be
        /// denied by forging it. Many devices may share an address behind a NAT; allow such ones. 0 = off.
        malformed_per_minute: u32 = 100;
        /// The same for authentications that failed. 0 = off.
        failed_authentications_per_minute: u32 = 100;
        /// How long it is denied, seconds.
        deny_for_s: u32 = 600, 1..=604_800;
        /// Sources that are denied automatically, at most; further ones are let in and counted.
        /// Worst case: 100 bytes here and 130 in the kernel for each.
        automatic_max: u32 = 4_096, 0..=32_768;
    }
    /// How the broker is looked after.
    admin: AdminConfig {
        /// Unix socket of `headgate status`, mode 0600: it answers root and the broker's own user.
        /// "" = admin.sock in the state folder.
        socket: PathBuf = PathBuf::new();
        /// HTTP address of /metrics for Prometheus. It has no authentication: keep it on loopback.
        http: Option<SocketAddr> = Some(([127, 0, 0, 1], 9470).into());
    }
    /// What is logged, to standard error.
    log: LogConfig {
        /// The least severe events that are logged.
        level: LogLevel = LogLevel::Info;
        /// How events are written: lines for people, or one JSON object per line.
        format: LogFormat = LogFormat::Text;
    }
    /// SIGTERM and SIGINT.
    shutdown: ShutdownConfig {
        /// Clients get DISCONNECT 0x8B (server shutting down), and this many seconds for what is
        /// already on its way to them; then the process ends. A second signal ends it at once.
        grace_s: u32 = 5, 0..=300;
    }
}
