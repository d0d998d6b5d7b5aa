//! A session as `headgate ctl session show` prints it.

use serde_json::Value;
use std::fmt::Write as _;

/// Subscriptions that are shown line by line; `--json` has all.
const SUBSCRIPTIONS_SHOWN: usize = 20;

/// A session for people.
pub(super) fn show(session: &Value) -> String {
    let mut out = title(session);
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "  {name:<16}{text}");
    };
    line("protocol", text(&session["protocol"]));
    line("quota class", text(&session["quota_class"]));
    line("session ends", ends(session));
    let queue = &session["queue"];
    line(
        "queue",
        format!(
            "{} with QoS 0, {} with QoS 1 and 2, {} more in the store alone",
            queue["qos0"], queue["qos1_2"], queue["in_store"]
        ),
    );
    line("unacknowledged", queue["unacknowledged"].to_string());
    let memory = &session["memory"];
    let connection_bytes = match memory["connection_bytes"].as_u64() {
        Some(bytes) => format!(", connection {bytes} bytes"),
        None => String::new(),
    };
    line(
        "memory",
        format!(
            "session {} bytes, {} of them messages{connection_bytes}",
            memory["session_bytes"], queue["bytes"]
        ),
    );
    let connection = &session["connection"];
    if connection.is_object() {
        for (name, unit) in [("packets", "MQTT packets"), ("bytes", "bytes")] {
            let of = |way: &str| connection[format!("{name}_{way}")].clone();
            let text = format!("{} received, {} sent", of("received"), of("sent"));
            line(unit, text);
        }
        if connection["quic"].is_object() {
            line("QUIC", path(&connection["quic"]));
        }
    }
    subscriptions(session, &mut out);
    out
}

fn title(session: &Value) -> String {
    let (id, connection) = (text(&session["client_id"]), &session["connection"]);
    let worker = &session["worker"];
    if connection.is_object() {
        let (transport, peer) = (text(&connection["transport"]), text(&connection["peer"]));
        format!("{id}: connected over {transport} from {peer}, worker {worker}\n")
    } else {
        format!("{id}: away, worker {worker}\n")
    }
}

fn ends(session: &Value) -> String {
    let is_recorded = session["recorded"] == Value::Bool(true);
    let restart = if is_recorded {
        "; kept over a restart"
    } else {
        ""
    };
    let when = match (
        session["ends_in_s"].as_u64(),
        session["session_expiry_s"].as_u64(),
    ) {
        (Some(left), _) => format!("in {left} s"),
        (None, None) => "never".to_owned(),
        (None, Some(0)) => "with its connection".to_owned(),
        (None, Some(expiry)) => format!("{expiry} s after its connection"),
    };
    when + restart
}

fn path(quic: &Value) -> String {
    format!(
        "round trip {:.1} ms, {} of {} packets lost, datagrams of {} bytes, {} data streams",
        quic["rtt_us"].as_f64().unwrap_or_default() / 1_000.0,
        quic["packets_lost"],
        quic["packets_sent"],
        quic["mtu"],
        quic["data_streams"]
    )
}

fn subscriptions(session: &Value, out: &mut String) {
    let all = session["subscriptions"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let _ = writeln!(out, "  {:<16}{}", "subscriptions", all.len());
    for subscription in all.iter().take(SUBSCRIPTIONS_SHOWN) {
        let _ = writeln!(
            out,
            "    {} (QoS {})",
            text(&subscription["filter"]),
            subscription["qos"]
        );
    }
    if all.len() > SUBSCRIPTIONS_SHOWN {
        out.push_str("    … (--json shows all)\n");
    }
}

/// A text, without what would steer a terminal: clients choose their names.
fn text(value: &Value) -> String {
    let text = value.as_str().unwrap_or("-");
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
