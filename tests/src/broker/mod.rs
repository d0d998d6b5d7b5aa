//! A headgate of a test's own: the real binary, with free ports, a certificate and a state folder that go with it.

mod binary;
pub mod certificate;
mod metrics;
mod ports;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

pub use binary::{binary, kernel_available};
pub use metrics::Metrics;

/// How long a start may take: a machine that runs many tests at once is slow.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a counter may take to come to what is expected.
const COUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a stop may take, beyond what the configuration grants the clients.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a start is tried again when somebody else took a port that was free before.
const START_ATTEMPTS_MAX: usize = 5;

/// How long to wait between two looks at something that takes a while.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What is different from a broker that [`Broker::start`] starts with no overrides.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The network namespace to run in, by the name that `ip netns` knows. Ports are the usual ones then, if `config`
    /// doesn't say otherwise.
    pub namespace: Option<String>,
    /// TOML that is laid over the harness's own configuration, key by key.
    pub config: String,
    /// The state folder of a former broker, for a restart; otherwise a new one.
    pub state_dir: Option<PathBuf>,
}

/// A running headgate. It is killed when this is dropped, and when the thread that started it ends: one broker per
/// test.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    folder: TempDir,
    config: toml::Table,
    settings: Settings,
}

static STARTED: AtomicU32 = AtomicU32::new(0);

impl Broker {
    /// Starts a broker with two workers on free ports of the loopback, and waits until it accepts clients. `config` is
    /// TOML that is laid over the harness's own.
    ///
    /// # Panics
    /// When it doesn't start; its log is in the message.
    pub fn start(config: &str) -> Self {
        Self::start_with(Settings {
            config: config.to_owned(),
            ..Settings::default()
        })
    }

    /// Starts a broker with `settings`.
    ///
    /// # Panics
    /// When it doesn't start; its log is in the message.
    pub fn start_with(settings: Settings) -> Self {
        let mut log = String::new();
        for _ in 0..START_ATTEMPTS_MAX {
            match Self::try_start(&settings) {
                Ok(broker) => return broker,
                Err(failed) => log = failed,
            }
            let is_port_taken = log.contains("in use") && settings.namespace.is_none();
            if !is_port_taken {
                break;
            }
        }
        panic!("headgate did not start. Its log:\n{log}");
    }

    /// Address of the QUIC listener, as clients on this machine use it.
    pub fn quic(&self) -> SocketAddr {
        self.address("listen", "quic")
    }

    /// Address of the TCP listener, as clients on this machine use it.
    pub fn tcp(&self) -> SocketAddr {
        self.address("listen", "tcp")
    }

    /// Address of the TLS listener, as clients on this machine use it.
    pub fn tls(&self) -> SocketAddr {
        self.address("listen", "tls")
    }

    /// Address of the WebSocket listener, as clients on this machine use it.
    pub fn ws(&self) -> SocketAddr {
        self.address("listen", "ws")
    }

    /// Address of the listener for WebSocket over TLS, as clients on this machine use it.
    pub fn wss(&self) -> SocketAddr {
        self.address("listen", "wss")
    }

    /// Address of `/metrics`.
    pub fn http(&self) -> SocketAddr {
        self.address("admin", "http")
    }

    /// The certificate of the authority that signed the broker's, PEM. It is valid for `localhost` and both loopback
    /// addresses.
    pub fn ca_certificate(&self) -> PathBuf {
        self.folder.path().join(certificate::CA)
    }

    /// The configuration file in force.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("headgate.toml")
    }

    /// The state folder.
    pub fn state_dir(&self) -> PathBuf {
        PathBuf::from(text(&self.config, "node", "state_dir"))
    }

    /// The folder of the pinned maps.
    pub fn pin_dir(&self) -> PathBuf {
        PathBuf::from(text(&self.config, "kernel", "pin_dir"))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        read_log(self.folder.path())
    }

    /// What `headgate status` prints for it.
    ///
    /// # Panics
    /// When the command fails.
    pub fn status(&self) -> String {
        let output = Command::new(binary())
            .arg("status")
            .arg("--config")
            .arg(self.config_file())
            .stdin(Stdio::null())
            .output()
            .expect("headgate starts");
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "headgate status: {stdout}{stderr}");
        stdout.into_owned()
    }

    /// Runs `headgate ctl` with this broker's configuration.
    ///
    /// # Panics
    /// When it doesn't start.
    pub fn ctl(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.arg("ctl").args(args);
        command.arg("--config").arg(self.config_file());
        command.stdin(Stdio::null());
        command.output().expect("headgate starts")
    }

    /// What `headgate ctl` prints with these arguments.
    ///
    /// # Panics
    /// When it fails.
    pub fn ctl_says(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
        assert!(
            output.status.success(),
            "headgate ctl {args:?}: {stdout}{stderr}"
        );
        stdout
    }

    /// What `/metrics` says now.
    ///
    /// # Panics
    /// When it doesn't answer.
    pub fn metrics(&self) -> Metrics {
        let address = self.http();
        let namespace =
            File::open(format!("/proc/{}/ns/net", self.pid())).expect("the broker runs");
        let is_elsewhere = self.is_in_namespace();
        // Entering a namespace changes the thread, so it is one that ends with this.
        let body = thread::spawn(move || {
            if is_elsewhere {
                setns(namespace, CloneFlags::CLONE_NEWNET)
                    .expect("entering the broker's network namespace");
            }
            get(address, "/metrics")
                .unwrap_or_else(|error| panic!("http://{address}/metrics: {error}"))
        });
        Metrics::parse(&body.join().expect("/metrics answers"))
    }

    /// Waits until the series that begin with this have come to a sum: workers tell theirs now and then.
    ///
    /// # Panics
    /// When they don't, or go past it.
    #[track_caller]
    pub fn counts(&self, series: &str, value: f64) {
        self.counts_from(series, value);
        assert_eq!(self.metrics().sum(series), value, "{series}");
    }

    /// Waits until the series that begin with this have come to a sum, or past it.
    ///
    /// # Panics
    /// When they don't.
    #[track_caller]
    pub fn counts_from(&self, series: &str, value: f64) {
        let deadline = Instant::now() + COUNT_TIMEOUT;
        while self.metrics().sum(series) < value {
            let metrics = self.metrics();
            assert!(Instant::now() < deadline, "{series}: {metrics:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it no longer runs.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("process ids are small"));
        kill(pid, signal).expect("the broker runs");
    }

    /// Stops it as an operator does, with SIGTERM, and returns how it ended.
    ///
    /// # Panics
    /// When it doesn't end in time.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Ends it at once, with SIGKILL.
    ///
    /// # Panics
    /// When it can't be waited for.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        self.child.wait().expect("it is our child");
    }

    /// Starts it again after it has ended, as it was: configuration, ports, state. The log goes on.
    ///
    /// # Panics
    /// When it doesn't start; its log is in the message.
    pub fn restart(&mut self) {
        if let Err(log) = self.try_restart() {
            panic!("headgate did not start again. Its log:\n{log}");
        }
    }

    /// As [`Broker::restart`].
    ///
    /// # Errors
    /// Its log, when it ends instead, or isn't ready in time.
    ///
    /// # Panics
    /// When it can't be executed.
    pub fn try_restart(&mut self) -> Result<(), String> {
        self.child = spawn(&self.settings, self.folder.path());
        self.wait_until_ready()
    }

    /// Waits until it has ended by itself or by a signal.
    ///
    /// # Panics
    /// When it doesn't end in time.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "headgate does not end. Its log:\n{}",
                self.log()
            );
            thread::sleep(POLL_INTERVAL);
        }
    }

    fn try_start(settings: &Settings) -> Result<Self, String> {
        let folder = tempfile::Builder::new()
            .prefix("headgate-test-")
            .tempdir()
            .expect("a folder for the broker");
        let config = configuration(settings, folder.path());
        certificate::write(folder.path());
        fs::write(folder.path().join("headgate.toml"), config.to_string())
            .expect("writing the configuration");
        let child = spawn(settings, folder.path());
        let mut broker = Self {
            child,
            folder,
            config,
            settings: settings.clone(),
        };
        broker.wait_until_ready()?;
        Ok(broker)
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.is_ready() {
            if !self.is_running() || Instant::now() > deadline {
                return Err(self.log());
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// All listeners are bound, the admin socket answers, and it has said that it is ready: what arrives before, waits in
    /// the sockets, and XDP may not have seen it.
    fn is_ready(&self) -> bool {
        let is_bound = |section: &str, key: &str, protocol: &str| {
            let address = text(&self.config, section, key);
            address.is_empty() || ports::is_bound(self.pid(), protocol, port(address))
        };
        let over_tcp = ["tcp", "tls", "ws", "wss"];
        over_tcp.iter().all(|key| is_bound("listen", key, "tcp"))
            && is_bound("listen", "quic", "udp")
            && is_bound("admin", "http", "tcp")
            && UnixStream::connect(text(&self.config, "admin", "socket")).is_ok()
            && self
                .log()
                .contains(&format!("is ready (pid {})", self.pid()))
    }

    fn is_in_namespace(&self) -> bool {
        let link = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
        link("self") != link(&self.pid().to_string())
    }

    fn address(&self, section: &str, key: &str) -> SocketAddr {
        let address = text(&self.config, section, key);
        assert!(!address.is_empty(), "{section}.{key} is off in this test");
        SocketAddr::from((Ipv4Addr::LOCALHOST, port(address)))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // After a kill the pins stay: that is what they are for, but not after a test.
        let _ = fs::remove_dir_all(self.pin_dir());
        if thread::panicking() {
            eprintln!("---- the broker's log ----\n{}", self.log());
        }
    }
}

/// Starts the process, with the configuration in `folder` and its log there.
fn spawn(settings: &Settings, folder: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("log.txt"))
        .expect("opening the log");
    command(settings)
        .arg("run")
        .arg("--config")
        .arg(folder.join("headgate.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle of the log"))
        .stderr(log)
        .spawn()
        .expect("headgate starts")
}

/// The command up to the binary.
fn command(settings: &Settings) -> Command {
    // The broker ends with the thread that started it, even when the test is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(namespace) = &settings.namespace {
        // Unlike `ip netns exec` this leaves /sys as it is, and with it the pinned maps.
        command
            .arg("nsenter")
            .arg(format!("--net=/run/netns/{namespace}"));
    }
    command.arg(binary());
    command
}

/// The harness's configuration with the test's laid over it.
fn configuration(settings: &Settings, folder: &Path) -> toml::Table {
    let [quic, tcp, tls, ws, wss, http] = match settings.namespace {
        Some(_) => [14567, 1883, 8883, 8083, 8084, 9470],
        None => std::array::from_fn(|_| ports::free()),
    };
    let state = settings
        .state_dir
        .clone()
        .unwrap_or_else(|| folder.join("state"));
    let number = STARTED.fetch_add(1, Ordering::Relaxed);
    let base = format!(
        r#"
        [node]
        state_dir = {state:?}
        workers = 2
        pin_threads = false
        [listen]
        quic = "[::]:{quic}"
        tcp = "[::]:{tcp}"
        tls = "[::]:{tls}"
        ws = "[::]:{ws}"
        wss = "[::]:{wss}"
        [tls]
        certificate = {certificate:?}
        key = {key:?}
        [kernel]
        pin_dir = "/sys/fs/bpf/headgate-broker-{process}-{number}"
        [mqtt]
        allow_anonymous = true
        [admin]
        socket = {socket:?}
        http = "127.0.0.1:{http}"
        "#,
        certificate = folder.join(certificate::CHAIN),
        key = folder.join(certificate::KEY),
        process = std::process::id(),
        socket = folder.join("admin.sock"),
    );
    let mut config: toml::Table = base.parse().expect("the harness's configuration is TOML");
    let overrides: toml::Table = settings
        .config
        .parse()
        .expect("the test's configuration is TOML");
    for (section, keys) in overrides {
        let keys = keys.as_table().cloned().unwrap_or_default();
        let merged = config
            .entry(section)
            .or_insert_with(|| toml::Table::new().into());
        merged
            .as_table_mut()
            .expect("sections are tables")
            .extend(keys);
    }
    config
}

fn text<'a>(config: &'a toml::Table, section: &str, key: &str) -> &'a str {
    config
        .get(section)
        .and_then(|section| section.get(key))
        .and_then(toml::Value::as_str)
        .unwrap_or_default()
}

fn port(address: &str) -> u16 {
    let (_, port) = address.rsplit_once(':').expect("an address with a port");
    port.parse().expect("a port")
}

fn read_log(folder: &Path) -> String {
    fs::read(folder.join("log.txt")).map_or_else(
        |error| error.to_string(),
        |log| String::from_utf8_lossy(&log).into_owned(),
    )
}

/// The body of an answer to GET.
fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let is_ok = head.split(' ').nth(1) == Some("200");
    if is_ok {
        Ok(body.to_owned())
    } else {
        Err(std::io::Error::other(head.to_owned()))
    }
}
