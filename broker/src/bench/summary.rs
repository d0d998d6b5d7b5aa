//! A report in a few lines.

use super::{
    record::{Kind, Percentiles},
    report::{Broker, Messages, Report},
};
use std::fmt::Write as _;

impl Report {
    /// A few lines for a terminal, without the failures.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, what: String| {
            // Writing to a String doesn't fail.
            let _ = writeln!(text, "{name:<12}{what}");
        };
        let setup = &self.setup;
        line(
            "run",
            format!("{} {}, seed {}", setup.pattern, setup.target, setup.seed),
        );
        line("clients", self.clients_text());
        if let Some(connect) = &self.connect {
            line("connect", latency_text(connect));
        }
        if let Some(messages) = &self.messages {
            line("messages", messages.text());
            if let Some(latency) = &messages.latency {
                line("latency", latency_text(latency));
            }
            line(
                "",
                format!(
                    "99 % left at most {:.2} ms late",
                    messages.lateness_p99_us / 1e3
                ),
            );
        }
        if let Some(ping) = &self.ping {
            line("ping", latency_text(ping));
        }
        for (number, storm) in self.storms.iter().enumerate() {
            line(
                &format!("storm {}", number + 1),
                format!(
                    "{} of {} clients back after {:.2} s, {} attempts failed",
                    storm.back, storm.clients, storm.seconds, storm.failed_attempts
                ),
            );
        }
        if let Some(broker) = &self.broker {
            line("broker", broker.text());
        }
        if let Some(last) = self.series.iter().map(|s| s.generator_resident_bytes).max() {
            line(
                "generator",
                format!("{:.1} MiB resident at most", last as f64 / 1_048_576.0),
            );
        }
        for warning in &self.warnings {
            line("warning", warning.clone());
        }
        text
    }

    fn clients_text(&self) -> String {
        let connects = self.phases.iter().find(|phase| phase.of == Kind::Connect);
        let (count, seconds) = connects.map_or((0, 0.0), |p| (p.done, p.to_s - p.from_s));
        format!(
            "{count} connected in {seconds:.2} s ({:.0} a second), {} lost",
            count as f64 / seconds.max(1e-6),
            self.clients.lost
        )
    }
}

impl Messages {
    fn text(&self) -> String {
        format!(
            "{} published, {} of {} deliveries came{}, {:.0} a second",
            self.published,
            self.delivered,
            self.expected,
            if self.exactly_once {
                ", each exactly once"
            } else {
                ""
            },
            self.delivered_per_s
        )
    }
}

impl Broker {
    fn text(&self) -> String {
        let mut parts = vec![format!("pid {}", self.pid)];
        let mut part = |value: Option<f64>, unit: &str| {
            parts.extend(value.map(|value| format!("{value:.0} {unit}")));
        };
        part(self.resident_bytes_per_client, "bytes a client");
        part(self.cpu_us_per_connect, "µs of CPU a connect");
        part(self.cpu_us_per_ping, "µs a ping (with what runs beside)");
        part(self.deliveries_per_cpu_s, "deliveries per CPU-second");
        parts.join(", ")
    }
}

fn latency_text(of: &Percentiles) -> String {
    let ms = |us: f64| us / 1e3;
    format!(
        "p50 {:.2} · p99 {:.2} · p99.9 {:.2} · longest {:.2} ms ({} of them)",
        ms(of.p50_us),
        ms(of.p99_us),
        ms(of.p999_us),
        ms(of.max_us),
        of.count
    )
}
