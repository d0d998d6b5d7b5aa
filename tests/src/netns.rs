//! Network namespaces of a test's own: made with unique names, removed when dropped, also when
//! the test fails. Nothing outside of them is touched.

use std::{
    fs::File,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// A network namespace with its loopback up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Whether this process may make namespaces: it says why not.
pub fn available() -> Result<(), String> {
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Err("needs root to make network namespaces".into());
    }
    match Command::new("ip").arg("-V").output() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("needs `ip` (Debian: iproute2): {error}")),
    }
}

/// Runs a command that must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Namespace {
    /// Makes a namespace; `tag` helps to recognise it.
    pub fn new(tag: &str) -> Self {
        let name = format!(
            "hg{}-{}-{tag}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        run("ip", &["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in it.
    pub fn ip(&self, arguments: &[&str]) {
        run("ip", &[&["-n", &self.name], arguments].concat());
    }

    /// A command that will run in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `f` on a thread of its own that is in this namespace: sockets that it opens stay in
    /// it wherever they are used.
    pub fn enter<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace exists");
        std::thread::spawn(move || {
            use std::os::fd::AsRawFd;
            // SAFETY: the descriptor is open; setns changes this thread only.
            let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(entered, 0, "setns: {}", std::io::Error::last_os_error());
            f()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

/// Connects two namespaces with a veth pair, both ends up. Transmit checksum offload is off on
/// both ends: the kernel's CPUMAP drops packets whose checksum is not filled in.
pub fn veth((a, a_name): (&Namespace, &str), (b, b_name): (&Namespace, &str)) {
    a.ip(&[
        "link",
        "add",
        a_name,
        "type",
        "veth",
        "peer",
        "name",
        b_name,
        "netns",
        b.name(),
    ]);
    for (namespace, device) in [(a, a_name), (b, b_name)] {
        namespace.ip(&["link", "set", device, "up"]);
        let output = namespace
            .command("ethtool")
            .args(["-K", device, "tx", "off"])
            .output()
            .expect("ethtool (Debian: ethtool)");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Gives a device an address that is usable at once.
pub fn address(namespace: &Namespace, device: &str, address: &str) {
    if address.contains(':') {
        namespace.ip(&["addr", "add", address, "dev", device, "nodad"]);
    } else {
        namespace.ip(&["addr", "add", address, "dev", device]);
    }
}

/// An XDP program of the benchmarks on a device, until this is dropped.
pub struct BenchXdp(#[expect(dead_code, reason = "kept for its drop")] aya::Ebpf);

/// Attaches the program `name`: `nothing` lets everything pass, `drop_all` nothing. A veth device takes what XDP sends
/// back from its peer only when it has a program itself.
///
/// # Panics
/// When the kernel programs of the benchmarks weren't built, or the kernel refuses.
pub fn bench_xdp(namespace: &Namespace, device: &'static str, name: &'static str) -> BenchXdp {
    let attached = namespace.enter(move || {
        let object = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../xdp-ebpf/target/bpfel-unknown-none/release/headgate-xdp-bench");
        let mut ebpf = aya::Ebpf::load_file(&object)
            .unwrap_or_else(|error| panic!("{}: {error}", object.display()));
        let program: &mut aya::programs::Xdp = ebpf
            .program_mut(name)
            .expect("the object has this program")
            .try_into()
            .expect("an XDP program");
        program.load().expect("the kernel takes the program");
        program
            .attach(device, aya::programs::xdp::XdpMode::Driver)
            .expect("veth has native XDP");
        BenchXdp(ebpf)
    });
    attached.join().expect("no panic")
}
