//! A link between two network namespaces that delays each packet and loses some: two TUN devices and a thread that
//! carries packets from one to the other. What it loses follows from a seed.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Namespace;

/// Packets on their way in one direction, at most; above it, what arrives is dropped as by a full router.
const QUEUE_MAX: usize = 4_096;
/// The longest packet of a TUN device here, bytes.
const MTU: usize = 1_500;
/// How often the thread looks whether it is to end.
const IDLE: Duration = Duration::from_millis(50);

/// What the link does to packets.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Packets of 1,000 that are lost, in each direction.
    pub lost_per_mille: u64,
    /// How long a packet takes, one way.
    pub delay: Duration,
    /// Which packets are lost.
    pub seed: u64,
}

/// The link; it ends when this is dropped.
#[derive(Debug)]
pub struct LossyLink {
    ends: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// Whether this machine has TUN devices: it says why not.
///
/// # Errors
/// The reason, for [`skip!`](crate::skip!).
pub fn available() -> Result<(), String> {
    crate::netns::available()?;
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    opened
        .map(drop)
        .map_err(|error| format!("needs /dev/net/tun: {error}"))
}

impl LossyLink {
    /// Connects two namespaces: a device of this name in each, up and without addresses.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn new(a: &Namespace, b: &Namespace, device: &str, weather: Weather) -> Self {
        let (a, b) = (tun(a, device), tun(b, device));
        let (ends, lost) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let relay = Relay {
            devices: [a, b],
            ways: Default::default(),
            weather,
            random: weather.seed,
            ends: Arc::clone(&ends),
            lost: Arc::clone(&lost),
        };
        Self {
            ends,
            lost,
            thread: Some(std::thread::spawn(move || relay.run())),
        }
    }

    /// Packets that were lost up to now.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for LossyLink {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed already.
            let _ = thread.join();
        }
    }
}

/// A TUN device in a namespace; it goes with its file.
fn tun(namespace: &Namespace, device: &str) -> File {
    let name = device.to_owned();
    let opened = namespace.enter(move || open(&name)).join();
    let file = opened.expect("the thread ends").expect("a TUN device");
    namespace.ip(&["link", "set", device, "up"]);
    file
}

fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid ifreq: integers, and a union of plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one ifreq.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open; the flags are those that it has, and one more.
    let set = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

struct Relay {
    devices: [File; 2],
    /// From the first to the second, and back: when a packet arrives, and the packet.
    ways: [VecDeque<(Instant, Vec<u8>)>; 2],
    weather: Weather,
    random: u64,
    ends: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
}

impl Relay {
    fn run(mut self) {
        while !self.ends.load(Ordering::Relaxed) {
            self.wait();
            for way in 0..2 {
                self.take(way);
                self.give(way);
            }
        }
    }

    /// Until something comes or is due.
    fn wait(&self) {
        let due = self
            .ways
            .iter()
            .filter_map(|way| way.front())
            .map(|(at, _)| *at)
            .min();
        let left = due.map_or(IDLE, |at| {
            at.saturating_duration_since(Instant::now()).min(IDLE)
        });
        let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        let mut files = self
            .devices
            .each_ref()
            .map(|d| PollFd::new(d.as_fd(), PollFlags::POLLIN));
        // Interrupted: as good as over.
        let _ = poll(&mut files, PollTimeout::from(millis));
    }

    fn take(&mut self, way: usize) {
        let mut packet = [0; MTU];
        loop {
            match (&self.devices[way]).read(&mut packet) {
                Ok(length) => {
                    let is_lost = self.next_random() % 1_000 < self.weather.lost_per_mille;
                    if is_lost || self.ways[way].len() >= QUEUE_MAX {
                        self.lost.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let at = Instant::now() + self.weather.delay;
                    self.ways[way].push_back((at, packet[..length].to_vec()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The namespace is gone, or the device is down.
                Err(_) => return,
            }
        }
    }

    fn give(&mut self, way: usize) {
        let now = Instant::now();
        while self.ways[way].front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, packet)) = self.ways[way].pop_front() {
                // What the other side's device doesn't take is lost, as on any link.
                let _ = (&self.devices[1 - way]).write(&packet);
            }
        }
    }

    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
