//! A broker's status, for people.

use super::shown;
use crate::config::Config;
use serde_json::{Map, Value};
use std::{fmt::Write as _, net::SocketAddr, path::Path};

/// What `headgate run` prints when it is ready.
pub(super) fn started(
    status: &Value,
    config: &Config,
    http: Option<SocketAddr>,
    dev_certificate: Option<&Path>,
) -> String {
    let mut out = format!(
        "headgate {} is ready (pid {})\n",
        text(status, "version"),
        text(status, "pid")
    );
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<12}{value}");
    };
    for (name, transport) in LISTENERS {
        let Some(address) = listener(status, transport) else {
            continue;
        };
        line(name, format!("{address} ({})", of(transport)));
    }
    line("workers", text(status, "workers"));
    for (name, value) in kernel_lines(status) {
        line(name, value);
    }
    if config.listen.needs_certificate() {
        let made = if dev_certificate.is_some() {
            " (self-made, for development)"
        } else {
            ""
        };
        line(
            "certificate",
            format!("{}{made}", shown(&config.tls.certificate)),
        );
    }
    if config.mqtt.allow_anonymous {
        line(
            "clients",
            "anybody may connect (mqtt.allow_anonymous)".to_owned(),
        );
    } else if !config.auth.password_file.as_os_str().is_empty() {
        line(
            "clients",
            format!("users of {}", shown(&config.auth.password_file)),
        );
    } else if config.auth.certificate {
        line(
            "clients",
            "those with a certificate (auth.certificate)".to_owned(),
        );
    }
    let http = http.map_or("off".to_owned(), |address| {
        format!("http://{address}/metrics")
    });
    line("metrics", http);
    line("admin", shown(&config.admin_socket()));
    let user = match config.mqtt.allow_anonymous {
        true => "",
        false => " -u USER -P PASSWORD",
    };
    out.push_str(&try_it(status, dev_certificate, user));
    out
}

/// What `headgate status` prints.
pub(super) fn status(status: &Value) -> String {
    let mut out = format!(
        "headgate {}, pid {}, up {}\n",
        text(status, "version"),
        text(status, "pid"),
        duration(status["uptime_s"].as_u64().unwrap_or(0)),
    );
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<12}{value}");
    };
    for (_, transport) in LISTENERS {
        if let Some(address) = listener(status, transport) {
            line("listening", format!("{address} ({})", of(transport)));
        }
    }
    line(
        "workers",
        format!("{}{}", text(status, "workers"), restarts(status)),
    );
    line(
        "connections",
        format!(
            "{} ({})",
            text(status, "connections"),
            counts(&status["open"], true)
        ),
    );
    line(
        "sessions",
        format!(
            "{}, {} subscriptions",
            text(status, "sessions"),
            text(status, "subscriptions")
        ),
    );
    let messages = &status["messages"];
    line(
        "messages",
        format!(
            "{} received, {} sent, dropped: {}",
            text(messages, "received"),
            text(messages, "sent"),
            counts(&messages["dropped"], false),
        ),
    );
    line("refused", counts(&status["refused"], false));
    if let Some(text) = store(&status["store"]) {
        line("store", text);
    }
    for edit in status["quotas_edited"].as_array().into_iter().flatten() {
        let edit = edit.as_str().unwrap_or_default();
        line("quota", format!("{edit} (written into the map; not kept)"));
    }
    if let Some(text) = memory(status) {
        line("memory", text);
    }
    line("overload", overload(&status["overload"]));
    for (name, value) in kernel_lines(status) {
        line(name, value);
    }
    let counters = [
        ("XDP drops", "kernel_drops"),
        ("XDP passes", "kernel_passes"),
        ("XDP answers", "kernel_answers"),
        ("sockets", "kernel_sockets"),
    ];
    for (name, key) in counters {
        if status[key].is_object() {
            line(name, counts(&status[key], false));
        }
    }
    out
}

/// The store: what it can do, and how far it has been read after the start.
fn store(store: &Value) -> Option<String> {
    let bytes = store["bytes"].as_u64()?;
    let state = match store["state"].as_str() {
        Some("ok") => "all well",
        Some("full") => "too little room: new persistent work is refused",
        _ => "doesn't work: persistent work is refused",
    };
    let read = format!(
        "{} sessions and {} retained messages read back",
        text(store, "sessions_restored"),
        text(store, "retained_restored")
    );
    let more = match store["restoring"].as_bool() {
        Some(true) => " so far",
        _ => "",
    };
    let damaged = match store["damaged_entries"].as_u64() {
        Some(0) | None => String::new(),
        Some(count) => format!(", {count} damaged entries left out"),
    };
    Some(format!(
        "{state}, {:.1} MB, {read}{more}{damaged}",
        bytes as f64 / 1e6
    ))
}

/// Two commands to try. Over QUIC only with the certificate that clients can be told of.
fn try_it(status: &Value, dev_certificate: Option<&Path>, user: &str) -> String {
    let server = |transport| {
        let address: SocketAddr = listener(status, transport)?.parse().ok()?;
        Some(match address.ip().is_unspecified() {
            true => format!("localhost:{}", address.port()),
            false => address.to_string(),
        })
    };
    let quic = server("quic").zip(dev_certificate);
    let quic = quic.map(|(server, file)| {
        (
            format!("quic://{server}"),
            format!(" --cafile {}", shown(file)),
        )
    });
    let tcp = server("tcp").map(|server| (format!("mqtt://{server}"), String::new()));
    let Some((sub, sub_flags)) = quic.clone().or_else(|| tcp.clone()) else {
        return String::new();
    };
    let (publish, pub_flags) = tcp.or(quic).unwrap_or_default();
    let program = program();
    format!(
        "Try it, in two other terminals:\n  \
         {program} sub -v -L '{sub}/try/#'{sub_flags}{user}\n  \
         {program} pub -L {publish}/try/it -m hello{pub_flags}{user}\n"
    )
}

/// This program as it can be called from here.
fn program() -> String {
    let called = std::env::args_os()
        .next()
        .unwrap_or_else(|| "headgate".into());
    let here = std::env::current_dir().unwrap_or_default();
    let path = Path::new(&called);
    shown(path.strip_prefix(here).unwrap_or(path))
}

/// The kernel part: what protects, what steers, and where its pins are; or why not.
fn kernel_lines(status: &Value) -> Vec<(&'static str, String)> {
    let kernel = &status["kernel"];
    let mut lines = Vec::new();
    if kernel["active"] != true {
        lines.push(("shield", format!("off: {}", text(kernel, "why_not"))));
        lines.push((
            "steering",
            "by the workers: what arrives at a wrong one is handed over".to_owned(),
        ));
        return lines;
    }
    let none = Vec::new();
    let interfaces = kernel["interfaces"].as_array().unwrap_or(&none);
    if interfaces.is_empty() {
        lines.push((
            "shield",
            "off: kernel.interfaces names no interface".to_owned(),
        ));
    }
    for interface in interfaces {
        let adopted = if interface["adopted"] == true {
            ", taken over from the former broker"
        } else {
            ""
        };
        let why = because(&interface["why_not_better"]);
        let (name, mode) = (text(interface, "name"), text(interface, "xdp"));
        lines.push(("shield", format!("{name}: XDP {mode}{adopted}{why}")));
    }
    let sockets = if kernel["reuseport"] == true {
        "sk_reuseport"
    } else {
        "no sk_reuseport"
    };
    let cpus = if kernel["cpumap"] == true {
        "CPUMAP"
    } else {
        "no CPUMAP"
    };
    lines.push((
        "steering",
        format!("{sockets}, {cpus}{}", because(&kernel["why_no_cpumap"])),
    ));
    let adoption = match kernel["adoption"].as_str() {
        None | Some("fresh") => String::new(),
        Some(other) => format!(" ({other})"),
    };
    lines.push((
        "pins",
        format!(
            "{}{adoption}: {}",
            text(kernel, "pin_dir"),
            text(kernel, "pins")
        ),
    ));
    if let Some(bytes) = kernel["map_memory_bytes"].as_u64() {
        let mib = bytes as f64 / f64::from(1 << 20);
        lines.push(("maps", format!("{mib:.1} MiB when they are full")));
    }
    lines
}

fn because(reason: &Value) -> String {
    reason
        .as_str()
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default()
}

/// Listeners by their names for people and in `[listen]`.
const LISTENERS: [(&str, &str); 5] = [
    ("MQTT/QUIC", "quic"),
    ("MQTT/TCP", "tcp"),
    ("MQTT/TLS", "tls"),
    ("MQTT/WS", "ws"),
    ("MQTT/WSS", "wss"),
];

fn listener(status: &Value, transport: &str) -> Option<String> {
    let listeners = status["listeners"].as_array()?;
    let found = listeners
        .iter()
        .find(|listener| listener["transport"] == transport)?;
    Some(text(found, "address"))
}

fn of(transport: &str) -> &'static str {
    match transport {
        "quic" => "UDP, ALPN mqtt",
        "tls" => "TLS over TCP",
        "ws" => "WebSocket over TCP",
        "wss" => "WebSocket over TLS",
        _ => "TCP",
    }
}

fn restarts(status: &Value) -> String {
    match status["worker_restarts"].as_u64() {
        Some(n) if n > 0 => format!(" ({n} restarts after a panic)"),
        _ => String::new(),
    }
}

/// Resident memory, and the limit if there is one.
fn memory(status: &Value) -> Option<String> {
    let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let resident = status["resident_bytes"].as_u64()?;
    let limit = status["overload"]["memory_limit_bytes"].as_u64();
    let limit = limit.filter(|limit| *limit > 0);
    let of = limit.map_or(String::new(), |limit| format!(" (limit {})", mb(limit)));
    Some(format!("{} resident{of}", mb(resident)))
}

/// What runs short, and what is given up for it.
fn overload(status: &Value) -> String {
    let gives_up = |resource: &str| {
        let given_up = match (resource, status[resource].as_u64().unwrap_or(0)) {
            (_, 0) => return None,
            ("memory", 1) => "new connections are refused",
            (_, 1) => "new connections wait",
            ("handshakes", _) => "as many new connections wait as may",
            (_, 2) => "QoS 0 is dropped where it would have to wait",
            (_, _) => "slow consumers are closed",
        };
        Some(format!("{resource}: {given_up}"))
    };
    let all: Vec<_> = ["memory", "cpu", "handshakes"]
        .into_iter()
        .filter_map(gives_up)
        .collect();
    match all.is_empty() {
        true => "none".to_owned(),
        false => all.join("; "),
    }
}

/// "quic 3, tcp 0"; without those at 0 unless `all`.
fn counts(object: &Value, all: bool) -> String {
    let empty = Map::new();
    let counts: Vec<String> = object
        .as_object()
        .unwrap_or(&empty)
        .iter()
        .filter(|(_, count)| all || count.as_u64() != Some(0))
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    match counts.is_empty() {
        true => "none".to_owned(),
        false => counts.join(", "),
    }
}

fn text(object: &Value, key: &str) -> String {
    plain(&object[key])
}

/// A JSON value without its quotes and braces.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_is_shown_with_what_happened_only() {
        let shown = status(&json!({
            "version": "1.2.3", "pid": 42, "uptime_s": 3700, "workers": 2, "worker_restarts": 1,
            "listeners": [{ "transport": "tcp", "address": "[::]:1883" }],
            "connections": 3, "open": { "quic": 0, "tcp": 3 }, "sessions": 4, "subscriptions": 5,
            "messages": { "received": 6, "sent": 7, "dropped": { "queue_full": 8, "expired": 0 } },
            "refused": { "connections": 0 }, "resident_bytes": 12_345_678,
            "kernel": { "active": true, "interfaces": [], "reuseport": true, "pin_dir": "/p", "pins": [] },
            "kernel_drops": { "forged_cid": 9, "shape": 0 },
            "overload": { "memory": 1, "cpu": 3, "handshakes": 0, "memory_limit_bytes": 20_000_000 },
        }));
        assert_eq!(
            shown,
            "headgate 1.2.3, pid 42, up 1 h 1 min\n  \
             listening   [::]:1883 (TCP)\n  \
             workers     2 (1 restarts after a panic)\n  \
             connections 3 (quic 0, tcp 3)\n  \
             sessions    4, 5 subscriptions\n  \
             messages    6 received, 7 sent, dropped: queue_full 8\n  \
             refused     none\n  \
             memory      12.3 MB resident (limit 20.0 MB)\n  \
             overload    memory: new connections are refused; cpu: slow consumers are closed\n  \
             shield      off: kernel.interfaces names no interface\n  \
             steering    sk_reuseport, no CPUMAP\n  \
             pins        /p: none\n  \
             XDP drops   forged_cid 9\n"
        );
    }

    #[test]
    fn the_kernel_part_says_why_it_is_not_better() {
        let lines = |kernel: Value| {
            let lines = kernel_lines(&json!({ "kernel": kernel }));
            lines
                .iter()
                .map(|(name, value)| format!("{name}: {value}\n"))
                .collect::<String>()
        };
        assert_eq!(
            lines(json!({ "active": false, "why_not": "it needs root" })),
            "shield: off: it needs root\n\
             steering: by the workers: what arrives at a wrong one is handed over\n"
        );
        assert_eq!(
            lines(json!({
                "active": true, "interfaces": [
                    { "name": "lo", "xdp": "generic", "why_not_better": "no driver", "adopted": false },
                    { "name": "eth0", "xdp": "native", "why_not_better": null, "adopted": true },
                ],
                "reuseport": true, "cpumap": false, "why_no_cpumap": "one worker",
                "pin_dir": "/sys/fs/bpf/x", "pins": ["a", "b"], "adoption": "adopted",
                "map_memory_bytes": 27_787_264,
            })),
            "shield: lo: XDP generic (no driver)\n\
             shield: eth0: XDP native, taken over from the former broker\n\
             steering: sk_reuseport, no CPUMAP (one worker)\n\
             pins: /sys/fs/bpf/x (adopted): a, b\n\
             maps: 26.5 MiB when they are full\n"
        );
        let lines = lines(json!({ "active": true, "interfaces": [], "reuseport": true }));
        assert!(
            lines.contains("shield: off: kernel.interfaces names no interface"),
            "{lines}"
        );
    }

    #[test]
    fn durations_have_two_units() {
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(60), "1 min 0 s");
        assert_eq!(duration(90_000), "1 d 1 h");
    }
}
