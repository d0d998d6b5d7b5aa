//! What the process as a whole tells Prometheus, beside its workers.

use super::{KernelCounters, Kind, Label, Resource, head, resident_bytes};
use crate::{lists::ListCounts, overload::OverloadStatus};
use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

pub(super) fn render_process(out: &mut String, started: SystemTime, kernel: bool) {
    let version = env!("CARGO_PKG_VERSION");
    head(
        out,
        Kind::Gauge,
        "headgate_build_info",
        "The version that runs; always 1.",
    );
    let _ = writeln!(out, "headgate_build_info{{version=\"{version}\"}} 1");
    let name = "headgate_start_time_seconds";
    head(
        out,
        Kind::Gauge,
        name,
        "When the process started, in seconds since 1970.",
    );
    let seconds = started
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64());
    let _ = writeln!(out, "{name} {seconds:.3}");
    let name = "headgate_kernel_active";
    let help =
        "1 if the kernel part is loaded; 0 if nothing is shielded and the workers alone steer.";
    head(out, Kind::Gauge, name, help);
    let _ = writeln!(out, "{name} {}", u8::from(kernel));
    if let Some(bytes) = resident_bytes() {
        let name = "headgate_resident_memory_bytes";
        head(out, Kind::Gauge, name, "Resident memory of the process.");
        let _ = writeln!(out, "{name} {bytes}");
    }
}

pub(super) fn render_retained(out: &mut String, (messages, bytes): (u64, u64)) {
    let gauges = [
        (
            "headgate_retained_messages",
            "Retained messages, those below $SYS too.",
            messages,
        ),
        (
            "headgate_retained_bytes",
            "Memory of the retained messages.",
            bytes,
        ),
    ];
    for (name, help, value) in gauges {
        head(out, Kind::Gauge, name, help);
        let _ = writeln!(out, "{name} {value}");
    }
}

pub(super) fn render_overload(out: &mut String, overload: &OverloadStatus) {
    let name = "headgate_overload_level";
    let help = "How short a resource is: 0 = not; 1 = new connections are refused or wait; 2 = QoS 0 is dropped where it would have to wait; 3 = slow consumers are closed.";
    head(out, Kind::Gauge, name, help);
    for resource in Resource::ALL {
        let (text, level) = (resource.text(), overload.level(*resource));
        let _ = writeln!(out, "{name}{{resource=\"{text}\"}} {level}");
    }
    let gauges = [
        (
            "headgate_memory_limit_bytes",
            "What limits.memory_limit comes to; 0 = no limit.",
            overload.memory_limit_bytes,
        ),
        (
            "headgate_memory_used_bytes",
            "What counts against it: resident memory, without most of what lies free in the heap.",
            overload.memory_used_bytes,
        ),
    ];
    for (name, help, value) in gauges {
        head(out, Kind::Gauge, name, help);
        let _ = writeln!(out, "{name} {value}");
    }
}

pub(super) fn render_lists(out: &mut String, counts: &ListCounts) {
    let name = "headgate_listed_prefixes";
    let help = "Prefixes on the deny and the allow list.";
    head(out, Kind::Gauge, name, help);
    let _ = writeln!(out, "{name}{{list=\"deny\"}} {}", counts.denied);
    let _ = writeln!(out, "{name}{{list=\"allow\"}} {}", counts.allowed);
    let families = [
        (
            "headgate_denied_automatically_total",
            "Sources that were denied automatically, by what they did too often.",
            [
                ("malformed_packets", counts.automatic_malformed),
                ("failed_authentications", counts.automatic_failed),
            ],
        ),
        (
            "headgate_not_denied_total",
            "Offences of sources that were let be, because of lists.automatic_max, or because too many are watched.",
            [
                ("automatic_max", counts.automatic_full),
                ("sources", counts.unwatched),
            ],
        ),
    ];
    for (name, help, counts) in families {
        head(out, Kind::Counter, name, help);
        for (reason, count) in counts {
            let _ = writeln!(out, "{name}{{reason=\"{reason}\"}} {count}");
        }
    }
}

pub(super) fn render_kernel(out: &mut String, kernel: &KernelCounters) {
    let families = [
        (
            "headgate_kernel_drops_total",
            "Packets that XDP dropped, by reason.",
            &kernel.drops,
        ),
        (
            "headgate_kernel_passes_total",
            "Packets that XDP passed on or steered, by reason.",
            &kernel.passes,
        ),
        (
            "headgate_kernel_answers_total",
            "Packets that XDP answered, by answer.",
            &kernel.answers,
        ),
        (
            "headgate_kernel_sockets_total",
            "Datagrams at the sk_reuseport program, by what it did with them.",
            &kernel.sockets,
        ),
    ];
    for (name, help, counts) in families {
        head(out, Kind::Counter, name, help);
        for (reason, count) in counts {
            let _ = writeln!(out, "{name}{{reason=\"{reason}\"}} {count}");
        }
    }
    let name = "headgate_kernel_redirected_total";
    head(
        out,
        Kind::Counter,
        name,
        "Packets that XDP sent to their worker's CPU.",
    );
    let _ = writeln!(out, "{name} {}", kernel.redirected);
}
