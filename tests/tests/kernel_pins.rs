//! Attaching, pinning, adopting and going away, in network namespaces of the tests' own.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use headgate::kernel::{
    Adoption, AttachedMode, KernelError, KernelSettings, Mode, Shield, Steering,
};
use headgate::keys::Keys;
use headgate_common::{DropReason, PassReason};
use headgate_tests::netns::{self, Namespace, address, veth};
use headgate_tests::packets::{QUIC_PORT, short};
use headgate_tests::rig::{EPOCH, NODE, pin_dir, receive, settings, why_not};
use headgate_tests::skip;
use socket2::{Domain, Socket, Type};

fn keys() -> Keys {
    Keys::from_secret(&[42; 32])
}

fn start(namespace: &Namespace, settings: &KernelSettings) -> Result<Shield, KernelError> {
    let settings = settings.clone();
    namespace
        .enter(move || Shield::start(&settings, &keys(), EPOCH))
        .join()
        .expect("no panic")
}

/// Takes a test's shield down when the test fails.
struct Cleanup(KernelSettings);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0.pin_dir);
    }
}

fn on(interfaces: &[&str], mode: Mode) -> Cleanup {
    let interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
    Cleanup(KernelSettings {
        mode,
        interfaces,
        ..settings()
    })
}

fn missing() -> Option<String> {
    if let Some(reason) = why_not() {
        return Some(reason.to_owned());
    }
    if let Err(reason) = netns::available() {
        return Some(reason);
    }
    let bpftool = Command::new("bpftool").arg("version").output();
    (!bpftool.is_ok_and(|output| output.status.success())).then(|| "bpftool is missing".to_owned())
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// What the kernel says of an interface's XDP: "", "xdp" (native) or "xdpgeneric".
fn attached(namespace: &Namespace, interface: &str) -> String {
    let text = output(
        namespace
            .command("ip")
            .args(["link", "show", "dev", interface]),
    );
    let words = text.split_whitespace();
    words
        .filter(|word| word.starts_with("xdp"))
        .map(|word| word.split('/').next().unwrap_or(word))
        .take(1)
        .collect()
}

fn pinned(settings: &KernelSettings, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(&settings.pin_dir)
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.map(|entry| entry.path().display().to_string());
    names
        .filter(|path| {
            path.rsplit('/')
                .next()
                .is_some_and(|name| name.starts_with(prefix))
        })
        .collect()
}

fn link_id(settings: &KernelSettings) -> String {
    let pins = pinned(settings, "link_");
    let text = output(Command::new("bpftool").args(["link", "show", "pinned", &pins[0]]));
    text.split(':')
        .next()
        .expect("bpftool begins with the id")
        .to_owned()
}

/// Two namespaces, `s0` with 10.60.0.1 in the first and `c0` with 10.60.0.2 in the second.
fn pair() -> (Namespace, Namespace) {
    let (server, client) = (Namespace::new("pin-s"), Namespace::new("pin-c"));
    veth((&server, "s0"), (&client, "c0"));
    address(&server, "s0", "10.60.0.1/24");
    address(&client, "c0", "10.60.0.2/24");
    (server, client)
}

#[test]
fn the_maps_take_at_most_64_mib() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let cleanup = on(&[], Mode::Off);
    let shield = Shield::start(&cleanup.0, &keys(), EPOCH).expect("the shield starts");
    let bytes = shield.status().map_memory_bytes;
    println!("{} KiB", bytes >> 10);
    assert!((1 << 20..=64 << 20).contains(&bytes), "{bytes}");
    shield.stop().expect("it is taken down");
}

#[test]
fn each_interface_gets_the_best_mode_that_it_has() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let (server, _client) = pair();
    let settings = on(&["s0", "lo", "nowhere"], Mode::Auto);
    let shield = start(&server, &settings.0).expect("starts");
    let status = shield.status();
    let modes: Vec<_> = status
        .interfaces
        .iter()
        .map(|interface| (interface.name.as_str(), interface.mode))
        .collect();
    assert_eq!(
        modes,
        [
            ("s0", AttachedMode::Native),
            ("lo", AttachedMode::Generic),
            ("nowhere", AttachedMode::None)
        ]
    );
    let why: Vec<_> = status
        .interfaces
        .iter()
        .map(|interface| interface.why_not_better.clone())
        .collect();
    assert_eq!(why[0], None);
    assert!(
        why[1].as_ref().is_some_and(|why| why.contains("native")),
        "{why:?}"
    );
    assert_eq!(why[2].as_deref(), Some("there is no such interface"));
    assert_eq!(attached(&server, "s0"), "xdp");
    assert_eq!(attached(&server, "lo"), "xdpgeneric");
    assert_eq!(status.adoption, Adoption::Fresh);
    shield.stop().expect("stops");
    assert_eq!(
        attached(&server, "s0") + &attached(&server, "lo"),
        "",
        "nothing is left attached"
    );
    assert!(!settings.0.pin_dir.exists(), "nothing is left pinned");
}

#[test]
fn a_mode_that_is_demanded_and_missing_is_an_error() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let namespace = Namespace::new("pin-m");
    let settings = on(&["lo"], Mode::Native);
    let error =
        start(&namespace, &settings.0).expect_err("the loopback interface has no native XDP");
    assert!(
        matches!(&error, KernelError::Attach { interface, .. } if interface == "lo"),
        "{error}"
    );
    assert_eq!(attached(&namespace, "lo"), "");
    assert!(
        !settings.0.pin_dir.exists(),
        "a failed start leaves nothing behind"
    );
}

#[test]
fn a_crash_leaves_the_shield_up_and_the_next_broker_adopts_it() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let (server, client) = pair();
    let settings = on(&["s0"], Mode::Auto);
    let shield = start(&server, &settings.0).expect("starts");
    let listed = Command::new("bpftool")
        .args(["map", "update", "pinned"])
        .arg(settings.0.pin_dir.join("prefixes4"))
        .args("key 32 0 0 0 192 0 2 9 value 1 0 0 0 2 0 0 0 0 0 0 0".split(' '))
        .status();
    assert!(listed.is_ok_and(|status| status.success()));
    let id = link_id(&settings.0);
    // What a crash does, too: every descriptor is closed, and nothing else happens.
    drop(shield);
    assert_eq!(attached(&server, "s0"), "xdp");
    let receiver = server
        .enter(|| UdpSocket::bind(("10.60.0.1", QUIC_PORT)).expect("binds"))
        .join()
        .expect("no panic");
    receiver
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a timeout");
    let sender = client
        .enter(|| UdpSocket::bind("10.60.0.2:0").expect("binds"))
        .join()
        .expect("no panic");
    for _ in 0..5 {
        sender
            .send_to(&short(&[3; 14], 60), ("10.60.0.1", QUIC_PORT))
            .expect("sent");
    }
    assert!(
        receive(&receiver, &mut [0; 100]).is_err(),
        "the shield still drops what is forged"
    );

    let shield = start(&server, &settings.0).expect("starts");
    let status = shield.status();
    assert_eq!(status.adoption, Adoption::Adopted);
    assert!(status.interfaces[0].adopted);
    assert_eq!(status.interfaces[0].mode, AttachedMode::Native);
    assert_eq!(link_id(&settings.0), id, "the program was swapped in place");
    let counters = shield.counters().expect("readable");
    assert_eq!(
        counters.dropped(DropReason::ForgedCid),
        5,
        "the counters go on"
    );
    let dump = output(
        Command::new("bpftool")
            .args(["map", "dump", "pinned"])
            .arg(settings.0.pin_dir.join("prefixes4")),
    );
    assert!(dump.contains("Deny"), "the lists are kept: {dump}");
    shield.stop().expect("stops");
    assert_eq!(attached(&server, "s0"), "");
}

#[test]
fn pins_of_another_layout_are_replaced_and_it_is_said_why() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let namespace = Namespace::new("pin-l");
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil); 4] = [
        ("layout version", |folder| {
            // The version is the first field of `config`; the rest of the record is of no matter here.
            let zeros = ["0"; 36].join(" ");
            let arguments = format!("key 0 0 0 0 value 200 0 0 0 {zeros}");
            let update = Command::new("bpftool")
                .args(["map", "update", "pinned"])
                .arg(folder.join("config"))
                .args(arguments.split(' '))
                .status();
            assert!(update.is_ok_and(|status| status.success()));
        }),
        ("type", |folder| {
            another_map(folder, "drops", ["hash", "4", "16"])
        }),
        ("key, value, entries", |folder| {
            another_map(folder, "workers", ["array", "4", "8"])
        }),
        ("missing", |folder| {
            std::fs::remove_file(folder.join("passes")).expect("removed")
        }),
    ];
    for (word, spoil) in spoils {
        let settings = on(&["lo"], Mode::Auto);
        drop(start(&namespace, &settings.0).expect("starts"));
        spoil(&settings.0.pin_dir);
        let shield = start(&namespace, &settings.0).expect("starts all the same");
        let status = shield.status();
        assert!(
            matches!(&status.adoption, Adoption::Replaced { reason } if reason.contains(word)),
            "{word}: {:?}",
            status.adoption
        );
        assert!(!status.interfaces[0].adopted);
        assert_eq!(attached(&namespace, "lo"), "xdpgeneric");
        shield.stop().expect("stops");
    }
}

/// Puts a map of another shape in a pin's place.
fn another_map(folder: &Path, name: &str, [kind, key, value]: [&str; 3]) {
    let path = folder.join(name);
    std::fs::remove_file(&path).expect("removed");
    let created = Command::new("bpftool")
        .args(["map", "create"])
        .arg(&path)
        .args([
            "type", kind, "key", key, "value", value, "entries", "1", "name", name,
        ])
        .status();
    assert!(created.is_ok_and(|status| status.success()));
}

#[test]
fn two_brokers_never_share_a_shield() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let namespace = Namespace::new("pin-2");
    let settings = on(&["lo"], Mode::Auto);
    let shield = start(&namespace, &settings.0).expect("starts");
    let error = start(&namespace, &settings.0).expect_err("the folder is in use");
    assert!(matches!(error, KernelError::InUse { .. }), "{error}");
    assert!(matches!(
        Shield::clear(&settings.0.pin_dir),
        Err(KernelError::InUse { .. })
    ));
    assert_eq!(
        attached(&namespace, "lo"),
        "xdpgeneric",
        "the first one's shield is untouched"
    );
    drop(shield);
    assert!(
        Shield::clear(&settings.0.pin_dir).expect("cleared"),
        "a crashed one's shield can be taken down"
    );
    assert_eq!(attached(&namespace, "lo"), "");
    assert!(!Shield::clear(&settings.0.pin_dir).expect("nothing to do"));
}

/// The last thing that a broker does is to remove the folder, whose lock another one is waiting for.
#[test]
fn who_waits_for_the_folder_gets_it_and_keeps_others_out() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let namespace = Namespace::new("pin-w");
    let settings = on(&[], Mode::Off);
    let first = start(&namespace, &settings.0).expect("starts");
    let waiting = {
        let settings = settings.0.clone();
        namespace.enter(move || Shield::start(&settings, &keys(), EPOCH))
    };
    std::thread::sleep(Duration::from_millis(200));
    first.stop().expect("stops");
    let second = waiting.join().expect("no panic").expect("starts");
    let error = start(&namespace, &settings.0).expect_err("the folder is in use");
    assert!(matches!(error, KernelError::InUse { .. }), "{error}");
    second.stop().expect("stops");
    assert!(!settings.0.pin_dir.exists());
}

#[test]
fn new_settings_apply_to_what_is_adopted() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let (server, _client) = pair();
    let mut settings = on(&["s0", "lo"], Mode::Generic);
    drop(start(&server, &settings.0).expect("starts"));
    assert_eq!(attached(&server, "s0"), "xdpgeneric");
    settings.0.mode = Mode::Native;
    settings.0.interfaces = vec!["s0".to_owned()];
    settings.0.quic_port = 4433;
    let shield = start(&server, &settings.0).expect("starts");
    assert_eq!(attached(&server, "s0"), "xdp", "another mode");
    assert_eq!(attached(&server, "lo"), "", "no longer named");
    assert_eq!(shield.status().adoption, Adoption::Adopted);
    let dump = output(
        Command::new("bpftool")
            .args(["map", "dump", "pinned"])
            .arg(settings.0.pin_dir.join("config")),
    );
    assert!(dump.contains("4433"), "{dump}");
    shield.stop().expect("stops");
}

#[test]
fn packets_go_to_their_workers_cpu_where_the_driver_is_native() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    for (steering, mode, redirects) in [
        (Steering::Auto, Mode::Auto, true),
        (Steering::Reuseport, Mode::Auto, false),
        (Steering::Auto, Mode::Generic, false),
    ] {
        let (server, client) = pair();
        let mut settings = on(&["s0"], mode);
        settings.0.steering = steering;
        let shield = start(&server, &settings.0).expect("starts");
        let workers = server
            .enter(|| [(); 2].map(|()| worker()))
            .join()
            .expect("no panic");
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u32;
        for (slot, socket) in workers.iter().enumerate() {
            shield
                .add_worker(slot as u8, socket, slot as u32 % cpus)
                .expect("added");
        }
        shield.attach_reuseport(&workers[0]).expect("attached");
        assert_eq!(shield.status().cpumap, redirects, "{:?}", shield.status());
        assert_eq!(shield.status().why_no_cpumap.is_none(), redirects);
        let sender = client
            .enter(|| UdpSocket::bind("10.60.0.2:0").expect("binds"))
            .join()
            .expect("no panic");
        let shield = Arc::new(shield);
        for round in 0..100u8 {
            let cid = keys().cid_keys(EPOCH).encode(NODE, round % 2, [round; 6]);
            let datagram = short(&cid, 64);
            sender
                .send_to(&datagram, ("10.60.0.1", QUIC_PORT))
                .expect("sent");
            let mut buffer = [0; 100];
            let received = receive(&workers[usize::from(round % 2)], &mut buffer)
                .expect("arrives at its worker");
            assert_eq!(buffer[..received], datagram[..]);
        }
        let counters = shield.counters().expect("readable");
        assert_eq!(counters.passed(PassReason::OwnCid), 100);
        // A packet that arrives on its worker's CPU stays there: with one CPU nothing is ever sent.
        assert!(counters.redirected() == 0 || redirects, "{counters:?}");
        assert!(
            counters.redirected() > 0 || !redirects || cpus == 1,
            "{counters:?}"
        );
        Arc::into_inner(shield)
            .expect("nobody else has it")
            .stop()
            .expect("stops");
    }
}

fn worker() -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
    socket.set_reuse_port(true).expect("SO_REUSEPORT");
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a timeout");
    let address = std::net::SocketAddr::from(([10, 60, 0, 1], QUIC_PORT));
    socket.bind(&address.into()).expect("binds");
    socket.into()
}

#[test]
fn a_folder_on_another_file_system_is_refused() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let settings = KernelSettings {
        pin_dir: folder.path().join("pins"),
        ..settings()
    };
    let error = Shield::start(&settings, &keys(), EPOCH).expect_err("refused");
    assert!(
        matches!(error, KernelError::NoBpfFileSystem { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("mount -t bpf"), "{error}");
}

#[test]
fn without_privileges_the_error_says_which_are_missing() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let settings = KernelSettings {
        pin_dir: pin_dir(),
        ..settings()
    };
    let folder = settings.pin_dir.clone();
    let result = std::thread::spawn(move || {
        drop_capabilities();
        Shield::start(&settings, &keys(), EPOCH).map(drop)
    });
    let error = result.join().expect("no panic").expect_err("refused");
    let _ = std::fs::remove_dir_all(folder);
    assert!(matches!(error, KernelError::NotPermitted { .. }), "{error}");
    assert!(error.to_string().contains("CAP_BPF"), "{error}");
}

/// Gives up this thread's privileges; other threads keep theirs.
fn drop_capabilities() {
    /// `_LINUX_CAPABILITY_VERSION_3`.
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let none = [0u32; 6];
    // SAFETY: the header and the three sets of two words each have the shape that this version wants.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(result, 0);
}
