//! `headgate run`.

use super::{Failure, dev, logging, say, show, sources};
use crate::{
    admin::{self, Admin, AdminSettings, AdminSource},
    config::{Config, Flag, Loaded, check_files},
    metrics::Metrics,
    server::Server,
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};

/// Run the broker
///
/// Stops on SIGTERM or SIGINT: clients get DISCONNECT 0x8B (server shutting down) and
/// shutdown.grace_s seconds; a second signal ends the process at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  headgate run --dev                                   try it; anybody may connect
  headgate run --config /etc/headgate/headgate.toml
  headgate run --dev --listen-tcp 127.0.0.1:1884 --workers 2
  HEADGATE_LIMITS_CONNECTIONS=50000 headgate run --config headgate.toml

Flags override the environment (HEADGATE_SECTION_KEY), which overrides the file.")]
pub(super) struct RunArgs {
    /// The configuration file [default: /etc/headgate/headgate.toml, if it exists]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Try it without a configuration: anybody may connect, the state is kept in ./.headgate, a
    /// certificate is made there, and as root the kernel part is attached to lo
    #[arg(long)]
    dev: bool,
    /// Set any key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = parse_set)]
    set: Vec<(String, String, String)>,
    #[command(flatten)]
    keys: KeyFlags,
}

/// Declares flags that stand for keys of the configuration.
macro_rules! key_flags {
    ($($(#[$attribute:meta])* $field:ident = $flag:literal $section:literal $key:literal;)*) => {
        #[derive(Debug, clap::Args)]
        struct KeyFlags {
            $($(#[$attribute])* #[arg(long = $flag)] $field: Option<String>,)*
            /// Network interface that the XDP program protects (kernel.interfaces); may be repeated
            #[arg(long = "interface", value_name = "NAME")]
            interfaces: Vec<String>,
        }

        impl KeyFlags {
            fn flags(&self) -> Vec<Flag> {
                let mut flags = Vec::new();
                $(flags.extend(self.$field.clone().map(|value| key_flag($flag, $section, $key, value)));)*
                if !self.interfaces.is_empty() {
                    let names = self.interfaces.join(",");
                    flags.push(key_flag("interface", "kernel", "interfaces", names));
                }
                flags
            }
        }
    };
}

key_flags! {
    /// State folder (node.state_dir)
    #[arg(value_name = "PATH")]
    state_dir = "state-dir" "node" "state_dir";
    /// Worker threads, 0 = one per CPU (node.workers)
    #[arg(value_name = "NUMBER")]
    workers = "workers" "node" "workers";
    /// UDP address for QUIC, "" = off (listen.quic)
    #[arg(value_name = "ADDRESS")]
    listen_quic = "listen-quic" "listen" "quic";
    /// Address for TCP, "" = off (listen.tcp)
    #[arg(value_name = "ADDRESS")]
    listen_tcp = "listen-tcp" "listen" "tcp";
    /// Address for TLS, "" = off (listen.tls)
    #[arg(value_name = "ADDRESS")]
    listen_tls = "listen-tls" "listen" "tls";
    /// Address for WebSocket, "" = off (listen.ws)
    #[arg(value_name = "ADDRESS")]
    listen_ws = "listen-ws" "listen" "ws";
    /// Address for WebSocket over TLS, "" = off (listen.wss)
    #[arg(value_name = "ADDRESS")]
    listen_wss = "listen-wss" "listen" "wss";
    /// Certificate chain, PEM (tls.certificate)
    #[arg(value_name = "FILE")]
    certificate = "certificate" "tls" "certificate";
    /// Private key, PEM (tls.key)
    #[arg(value_name = "FILE")]
    key = "key" "tls" "key";
    /// How XDP is attached: auto, native, generic or off (kernel.mode)
    #[arg(value_name = "MODE")]
    kernel_mode = "kernel-mode" "kernel" "mode";
    /// Folder for the pins of maps and links (kernel.pin_dir)
    #[arg(value_name = "PATH")]
    pin_dir = "pin-dir" "kernel" "pin_dir";
    /// How packets find their worker: auto, reuseport, cpumap or none (kernel.steering)
    #[arg(value_name = "HOW")]
    steering = "steering" "kernel" "steering";
    /// Admin socket (admin.socket)
    #[arg(value_name = "PATH")]
    admin_socket = "admin-socket" "admin" "socket";
    /// HTTP address of /metrics, "" = off (admin.http)
    #[arg(value_name = "ADDRESS")]
    admin_http = "admin-http" "admin" "http";
    /// What is logged: error, warn, info, debug or trace (log.level)
    #[arg(value_name = "LEVEL")]
    log_level = "log-level" "log" "level";
    /// How it is logged: text or json (log.format)
    #[arg(value_name = "FORMAT")]
    log_format = "log-format" "log" "format";
}

pub(super) fn run(args: RunArgs) -> Result<ExitCode, Failure> {
    let (loaded, dev_certificate) = configure(args)?;
    check_files(&loaded)?;
    let config = Arc::new(loaded.config);
    logging::start(&config.log);
    // Signals count from here on: one that comes during the start is not lost.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::other)?;
    let signals = runtime
        .block_on(async { Signals::new() })
        .map_err(Failure::other)?;

    let settings = AdminSettings {
        socket: config.admin_socket(),
        http: config.admin.http,
    };
    let admin = Admin::bind(&settings).map_err(Failure::other)?;
    let metrics = Metrics::new();
    let server =
        Server::start(Arc::clone(&config), Arc::clone(&metrics)).map_err(Failure::other)?;
    let server = Arc::new(server);
    let (asked, drained) = (Arc::clone(&server), Arc::clone(&server));
    let controlled = Arc::clone(&server);
    let (reloaded, hung_up) = (Arc::clone(&server), Arc::downgrade(&server));
    let looked_at = Arc::downgrade(&server);
    let source = AdminSource {
        metrics,
        server: Arc::new(move || serde_json::to_value(asked.status()).unwrap_or_default()),
        control: Arc::new(move |question| controlled.control(question)),
        drain: Arc::new(move |drain| drained.drain(drain.as_ref())),
        reload: Arc::new(move || {
            let read = reloaded.reload_certificates();
            read.map_err(|error| error.to_string())
        }),
    };
    let snapshot = admin::snapshot(&source);
    let thread = admin.serve(source).map_err(Failure::other)?;
    say(&show::started(
        &snapshot,
        &config,
        thread.http(),
        dev_certificate.as_deref(),
    ));

    let grace = config.shutdown_grace();
    let reload = move || {
        let read = hung_up.upgrade().map(|server| server.reload_certificates());
        if let Some(Err(error)) = read {
            tracing::error!(%error, "the certificates stay as they are");
        }
    };
    let failure = move || {
        let server = looked_at.upgrade()?;
        server.failure().map(ToString::to_string)
    };
    let failure = stop_on_signal(&runtime, signals, (grace, reload, failure), move || {
        // The administration's thread holds the server, too.
        drop(thread);
        Arc::into_inner(server).map_or(0, |server| server.shutdown(grace))
    });
    match failure {
        Some(failure) => Err(Failure::other(failure)),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// How often is looked whether the server can go on.
const FAILURE_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until the server can't go on.
async fn failed(failure: impl Fn() -> Option<String>) -> String {
    loop {
        if let Some(failure) = failure() {
            return failure;
        }
        tokio::time::sleep(FAILURE_INTERVAL).await;
    }
}

/// The configuration of all sources, and the certificate that was made for `--dev`.
fn configure(args: RunArgs) -> Result<(Loaded, Option<PathBuf>), Failure> {
    let state_dir = PathBuf::from(args.keys.state_dir.as_deref().unwrap_or(dev::STATE_DIR));
    let base = if args.dev {
        dev::base(&state_dir)
    } else {
        Config::default()
    };
    let mut sources = sources(args.config, base);
    if args.dev && sources.file.as_deref() == Some(Path::new(super::DEFAULT_CONFIG)) {
        // Trying it out has nothing to do with the broker that is installed here.
        sources.file = None;
    }
    sources.flags = args.keys.flags();
    sources
        .flags
        .extend(args.set.into_iter().map(|(section, key, value)| {
            let flag = format!("--set {section}.{key}");
            Flag {
                flag,
                section,
                key,
                value,
            }
        }));
    let loaded = sources.load()?;
    let certificate = match args.dev {
        true => dev::certificate(&loaded.config, &state_dir).map_err(Failure::other)?,
        false => None,
    };
    Ok((loaded, certificate))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal that ends the process; `reload` is run for each SIGHUP.
    async fn next_after(&mut self, reload: impl Fn()) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => reload(),
            }
        }
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// What the stop itself may take beyond the grace: workers end, the kernel part is taken down.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// Waits for a signal, running `reload` on SIGHUP meanwhile, or until there is a `failure`, which is returned. Then runs
/// `shutdown`, which returns how many clients had to be cut off. The process ends here and now when a second signal comes,
/// or when the stop takes too long.
fn stop_on_signal(
    runtime: &Runtime,
    mut signals: Signals,
    (grace, reload, failure): (Duration, impl Fn(), impl Fn() -> Option<String>),
    shutdown: impl FnOnce() -> u64 + Send + 'static,
) -> Option<String> {
    runtime.block_on(async {
        let failure = tokio::select! {
            name = signals.next_after(reload) => {
                tracing::info!(signal = name, grace_s = grace.as_secs(), "stopping");
                None
            }
            failure = failed(failure) => Some(failure),
        };
        let stopping = tokio::task::spawn_blocking(shutdown);
        tokio::select! {
            cut = stopping => match cut {
                Ok(cut) => tracing::info!(clients_cut_off = cut, "stopped"),
                Err(error) => {
                    tracing::error!(%error, "the stop failed: this is a bug");
                    std::process::exit(1);
                }
            },
            name = signals.next() => {
                tracing::warn!(signal = name, "stopped at once: clients were cut off");
                std::process::exit(1);
            }
            () = tokio::time::sleep(grace + STOP_PATIENCE) => {
                tracing::error!("the stop took too long: clients were cut off");
                std::process::exit(1);
            }
        }
        failure
    })
}

fn key_flag(flag: &str, section: &str, key: &str, value: String) -> Flag {
    Flag {
        flag: format!("--{flag}"),
        section: section.to_owned(),
        key: key.to_owned(),
        value,
    }
}

fn parse_set(text: &str) -> Result<(String, String, String), String> {
    text.split_once('=')
        .and_then(|(path, value)| {
            let (section, key) = path.trim().split_once('.')?;
            Some((section.to_owned(), key.to_owned(), value.to_owned()))
        })
        .ok_or_else(|| {
            "it has the form SECTION.KEY=VALUE, such as limits.connections=1000".to_owned()
        })
}
