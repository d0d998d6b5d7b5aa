//! `headgate bench`: load for any MQTT broker, and what it makes of it.
//!
//! Exit codes: 0 done; 1 it did not work, clients did not come through or were lost, or QoS 1 or 2 messages were; 2 the
//! command line is wrong.

mod options;
mod progress;

pub use options::BenchArgs;

use super::{
    client::{ClientError, Scheme, Target, TlsOptions, Transport, config_with},
    say,
};
use crate::{
    bench::{
        self, BenchError, Carrier, Crowd, CrowdOptions, Engine, Fleet, FleetOptions, Options,
        OptionsError, Report,
    },
    net::tls::X25519_MLKEM768,
};
use progress::Bars;
use rustls::{
    CipherSuite, ClientConfig, SupportedProtocolVersion,
    client::Resumption,
    crypto::ring::{default_provider, kx_group::X25519},
    version::TLS13,
};
use std::{
    fs::File,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::time::timeout;

/// How long the first connection, which is only made to see whether there is a broker, may take.
const REACH_WAIT_MAX: Duration = Duration::from_secs(10);
/// Sockets over QUIC, unless there are several sources.
const SOCKETS: usize = 4;
/// QUIC has no other (RFC 9001 §4.2), and X25519MLKEM768 goes with no other.
static TLS13_ONLY: [&SupportedProtocolVersion; 1] = [&TLS13];
/// File descriptors beside the clients' sockets.
const DESCRIPTORS: u64 = 64;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The command line contradicts itself.
    #[error("{0}")]
    Usage(String),
    /// No broker is there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The run.
    #[error(transparent)]
    Bench(BenchError),
    /// A file, or this machine's limits.
    #[error("{0}")]
    System(String),
}

impl From<OptionsError> for Failure {
    fn from(error: OptionsError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Does what the command line says.
pub fn bench(args: &BenchArgs) -> ExitCode {
    match run(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(match failure {
                Failure::Usage(_) => 2,
                _ => 1,
            })
        }
    }
}

/// Whether nothing went wrong.
fn run(args: &BenchArgs) -> Result<bool, Failure> {
    let target = args.target();
    let (trust, identity) = args.server.trust().map_err(Failure::Usage)?;
    let tls = TlsOptions {
        trust,
        identity,
        ..TlsOptions::default()
    };
    let mut options = args.options().map_err(Failure::Usage)?;
    options.check()?;
    check_machine(args, &target, &options)?;
    let json = args.json.as_deref().map(Output::create).transpose()?;
    let svg = args.svg.as_deref().map(Output::create).transpose()?;
    let sources = args.sources();
    let server = reach(&target, &tls, &sources)?;
    if options.broker.is_none() {
        options.broker = bench::listener_of(server, target.scheme == Scheme::Quic);
    }
    options.broker = options.broker.filter(|pid| *pid != 0);
    let engine = engine(args, (&target, server), &tls, sources)?;
    let report = bench::run(&options, engine, &mut Bars::new(args.is_quiet()));
    let report = report.map_err(|error| match error {
        BenchError::Options(error) => error.into(),
        error => Failure::Bench(error),
    })?;
    if let Some(svg) = svg {
        let title = title(&report);
        let picture = bench::picture(&title, &report.phases, &report.series);
        svg.write(&picture)?;
    }
    if json.as_ref().is_none_or(|json| json.file.is_some()) {
        say(&report.text());
    }
    if let Some(json) = json {
        let text = serde_json::to_string_pretty(&report);
        let text = text.map_err(|error| Failure::System(error.to_string()))?;
        json.write(&(text + "\n"))?;
    }
    for failure in &report.failures {
        eprintln!("FAILED: {failure}");
    }
    Ok(report.is_success())
}

fn title(report: &Report) -> String {
    let setup = &report.setup;
    let mut parts = vec![format!("{} · {}", setup.pattern, setup.target)];
    let mut part = |count: u32, what: &str| match count {
        0 => {}
        1 => parts.push(format!("1 {what}")),
        _ => parts.push(format!("{count} {what}s")),
    };
    part(setup.clients, "client");
    part(setup.publishers, "publisher");
    part(setup.subscribers, "subscriber");
    parts.extend(setup.rate_per_s.map(|rate| format!("{rate} messages/s")));
    parts.extend(setup.window.map(|window| format!("window {window}")));
    if setup.publishers > 0 {
        parts.push(format!("QoS {} · {} bytes", setup.qos, setup.size));
    }
    parts.join(" · ")
}

/// A file that is made before the run, so that nobody waits for a report that can't be written.
struct Output {
    path: PathBuf,
    /// `None` = standard output.
    file: Option<File>,
}

impl Output {
    fn create(path: &Path) -> Result<Self, Failure> {
        let wrong = |error: io::Error| Failure::System(format!("{}: {error}", path.display()));
        let file = (path != Path::new("-")).then(|| File::create(path));
        Ok(Self {
            path: path.to_owned(),
            file: file.transpose().map_err(wrong)?,
        })
    }

    fn write(self, text: &str) -> Result<(), Failure> {
        let Some(mut file) = self.file else {
            say(text);
            return Ok(());
        };
        let written = file.write_all(text.as_bytes());
        written.map_err(|error| Failure::System(format!("{}: {error}", self.path.display())))
    }
}

/// Whether this machine can have so many clients.
fn check_machine(args: &BenchArgs, target: &Target, options: &Options) -> Result<(), Failure> {
    let shape = &options.shape;
    let clients =
        u64::from(shape.idle) + u64::from(shape.subscribers) + u64::from(shape.publishers);
    let sources = args.sources().len().max(1) as u64;
    let sockets = match target.scheme {
        Scheme::Quic => sources.max(SOCKETS as u64),
        _ => clients,
    };
    bench::raise_descriptor_limit(sockets + DESCRIPTORS).map_err(Failure::System)?;
    let ports = bench::ephemeral_ports();
    if target.scheme != Scheme::Quic && clients > ports * sources {
        return Err(Failure::System(format!(
            "{clients} clients need as many ports, and there are {ports} for each address: give more addresses \
             with --source, or widen net.ipv4.ip_local_port_range"
        )));
    }
    Ok(())
}

/// Connects once, to say well what is wrong if that fails; the address that answers.
fn reach(target: &Target, tls: &TlsOptions, sources: &[IpAddr]) -> Result<SocketAddr, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::System(format!("can't start: {error}")))?;
    let is_of_use = |address: &SocketAddr| {
        sources.is_empty() || sources.iter().any(|own| own.is_ipv4() == address.is_ipv4())
    };
    runtime.block_on(async {
        let connecting = Transport::connect_to(target, tls, is_of_use);
        let reached = timeout(REACH_WAIT_MAX, connecting).await;
        let (transport, address) = reached.map_err(|_| ClientError::Timeout {
            what: target.to_string(),
            after: REACH_WAIT_MAX,
        })??;
        transport.close().await;
        Ok(address)
    })
}

fn engine(
    args: &BenchArgs,
    (target, server): (&Target, SocketAddr),
    tls: &TlsOptions,
    mut sources: Vec<IpAddr>,
) -> Result<Engine, Failure> {
    sources.retain(|own| own.is_ipv4() == server.is_ipv4());
    let carrier = carrier(target.scheme);
    let server_name = target.host.clone();
    let wrong = |error: io::Error| Failure::System(format!("the sockets: {error}"));
    if carrier == Carrier::Quic {
        if sources.is_empty() {
            let any: IpAddr = match server.is_ipv4() {
                true => Ipv4Addr::UNSPECIFIED.into(),
                false => Ipv6Addr::UNSPECIFIED.into(),
            };
            sources = vec![any; SOCKETS];
        }
        let fleet = Fleet::new(FleetOptions {
            server,
            server_name,
            tls: tls_config(args, carrier, tls)?,
            local: sources,
        });
        return Ok(Engine::Fleet(Box::new(fleet.map_err(wrong)?)));
    }
    let config = carrier
        .is_encrypted()
        .then(|| tls_config(args, carrier, tls).map(Arc::new));
    let crowd = Crowd::new(CrowdOptions {
        server,
        server_name,
        carrier,
        tls: config.transpose()?,
        local: sources,
    });
    Ok(Engine::Crowd(Box::new(crowd.map_err(wrong)?)))
}

fn carrier(scheme: Scheme) -> Carrier {
    match scheme {
        Scheme::Mqtt => Carrier::Tcp,
        Scheme::Mqtts => Carrier::Tls,
        Scheme::Ws => Carrier::WebSocket,
        Scheme::Wss => Carrier::WebSocketTls,
        Scheme::Quic => Carrier::Quic,
    }
}

/// One key exchange, and over QUIC one suite, since clients that sleep know only that; full handshakes unless tickets are
/// asked for.
fn tls_config(
    args: &BenchArgs,
    carrier: Carrier,
    options: &TlsOptions,
) -> Result<ClientConfig, Failure> {
    let mut provider = default_provider();
    provider.kx_groups = vec![match args.post_quantum {
        true => X25519_MLKEM768,
        false => X25519,
    }];
    let is_quic = carrier == Carrier::Quic;
    let mut versions: &[_] = rustls::ALL_VERSIONS;
    if is_quic {
        let suite = CipherSuite::TLS13_AES_128_GCM_SHA256;
        provider.cipher_suites.retain(|of| of.suite() == suite);
    }
    if is_quic || args.post_quantum {
        versions = &TLS13_ONLY;
    }
    let protocol = if carrier.is_web_socket() {
        "http/1.1"
    } else {
        "mqtt"
    };
    let mut config = config_with(provider, options, versions, protocol)?;
    if !args.resume {
        config.resumption = Resumption::disabled();
    }
    Ok(config)
}
