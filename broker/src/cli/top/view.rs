//! What `headgate top` shows, from the last two answers of the broker.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{Block, Borders, Paragraph, Row, Table},
};
use serde_json::Value;
use std::time::Instant;

/// An answer to "status".
#[derive(Debug)]
pub(super) struct Sample {
    pub at: Instant,
    pub status: Value,
}

/// The last two answers, and whether the broker answers still.
#[derive(Debug, Default)]
pub(super) struct View {
    now: Option<Sample>,
    before: Option<Sample>,
    lost: Option<String>,
}

/// A line of a table of counters: name, per second, in all.
type Counted = (String, Option<f64>, u64);

impl View {
    /// The broker has answered.
    pub fn add(&mut self, sample: Sample) {
        self.before = self.now.take();
        self.now = Some(sample);
        self.lost = None;
    }

    /// The broker doesn't answer any more.
    pub fn lost(&mut self, error: &str) {
        self.lost = Some(error.lines().next().unwrap_or_default().to_owned());
    }

    /// Draws all of it; what doesn't fit is left out from the bottom.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let [head, upper, lower, foot] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Fill(3),
            Constraint::Fill(2),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(self.head()), head);
        let halves = || Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]);
        let [left, right] = halves().areas(upper);
        self.counters(
            frame,
            left,
            "packets let through or answered",
            &["kernel_passes", "kernel_answers"],
        );
        self.counters(frame, right, "packets dropped", &["kernel_drops"]);
        let [left, right] = halves().areas(lower);
        self.workers(frame, left);
        self.prefixes(frame, right);
        frame.render_widget(Paragraph::new(self.foot()), foot);
    }

    fn status(&self) -> &Value {
        self.now
            .as_ref()
            .map_or(&Value::Null, |sample| &sample.status)
    }

    /// How much the number that `read` finds has grown per second; `None` before the second answer.
    fn rate(&self, read: impl Fn(&Value) -> Option<u64>) -> Option<f64> {
        let (now, before) = (self.now.as_ref()?, self.before.as_ref()?);
        let seconds = now.at.duration_since(before.at).as_secs_f64();
        // A broker that was restarted counts anew.
        let grown = read(&now.status)?.checked_sub(read(&before.status)?)?;
        (seconds > 0.0).then(|| grown as f64 / seconds)
    }

    fn head(&self) -> Vec<Line<'static>> {
        let status = self.status();
        let number = |value: &Value| grouped(value.as_u64().unwrap_or(0));
        let per_second = |pointer: &'static str| {
            let rate = self.rate(|status| status.pointer(pointer)?.as_u64());
            rate.map_or_else(|| "-".to_owned(), |rate| grouped(rate.round() as u64))
        };
        let uptime = status["uptime_s"].as_u64().unwrap_or(0);
        let memory = status["resident_bytes"].as_u64().unwrap_or(0) as f64 / 1e6;
        vec![
            Line::styled(
                format!(
                    "headgate {}  up {}:{:02}:{:02}  {memory:.0} MB  shield: {}",
                    status["version"].as_str().unwrap_or("?"),
                    uptime / 3600,
                    uptime / 60 % 60,
                    uptime % 60,
                    shield(&status["kernel"]),
                ),
                Style::new().add_modifier(Modifier::BOLD),
            ),
            Line::raw(format!(
                "connections {}  sessions {}  subscriptions {}",
                number(&status["connections"]),
                number(&status["sessions"]),
                number(&status["subscriptions"]),
            )),
            Line::raw(format!(
                "messages/s in {} out {}  datagrams/s in {} out {}  denied prefixes {}",
                per_second("/messages/received"),
                per_second("/messages/sent"),
                per_second("/datagrams/received"),
                per_second("/datagrams/sent"),
                number(&status["lists"]["denied"]),
            )),
        ]
    }

    fn foot(&self) -> Line<'static> {
        match &self.lost {
            Some(error) => Line::styled(
                format!("the broker doesn't answer: {error}"),
                Style::new().add_modifier(Modifier::REVERSED),
            ),
            None => Line::raw("q quits"),
        }
    }

    fn counters(&self, frame: &mut Frame<'_>, area: Rect, title: &str, keys: &[&str]) {
        let lines = self.counted(keys);
        if lines.is_empty() {
            let text = "the shield is off";
            frame.render_widget(Paragraph::new(text).block(boxed(title)), area);
            return;
        }
        let rows = lines.into_iter().map(|(name, rate, total)| {
            let rate = rate.map_or_else(|| "-".to_owned(), |rate| grouped(rate.round() as u64));
            Row::new([
                name,
                format!("{rate:>10}"),
                format!("{:>14}", grouped(total)),
            ])
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(10),
            Constraint::Length(14),
        ];
        let header = Row::new([
            "reason".to_owned(),
            format!("{:>10}", "/s"),
            format!("{:>14}", "in all"),
        ]);
        frame.render_widget(table(rows, &widths, header, title), area);
    }

    /// The counters below some keys, the busiest first; those at 0 are left out while others are not.
    fn counted(&self, keys: &[&str]) -> Vec<Counted> {
        let mut lines: Vec<Counted> = Vec::new();
        for key in keys {
            for (name, total) in self.status()[*key].as_object().into_iter().flatten() {
                let rate = self.rate(|status| status[*key][name].as_u64());
                lines.push((name.clone(), rate, total.as_u64().unwrap_or(0)));
            }
        }
        lines.sort_by(|a, b| {
            let by_rate = b.1.unwrap_or(0.0).total_cmp(&a.1.unwrap_or(0.0));
            by_rate.then(b.2.cmp(&a.2)).then(a.0.cmp(&b.0))
        });
        if lines.iter().any(|line| line.2 > 0) {
            lines.retain(|line| line.2 > 0);
        }
        lines
    }

    fn workers(&self, frame: &mut Frame<'_>, area: Rect) {
        let none = Vec::new();
        let workers = self.status()["load"].as_array().unwrap_or(&none);
        let rows = workers.iter().enumerate().map(|(place, worker)| {
            let of = |key: &'static str| {
                self.rate(move |status| status["load"].get(place)?[key].as_u64())
            };
            let cpu = of("cpu_ns").map(|ns| format!("{:.0} %", ns / 1e7));
            let messages = of("messages_received").zip(of("messages_sent"));
            let messages =
                messages.map(|(received, sent)| grouped((received + sent).round() as u64));
            let count = grouped(worker["connections"].as_u64().unwrap_or(0));
            Row::new([
                worker["worker"].to_string(),
                format!("{:>6}", cpu.unwrap_or_else(|| "-".to_owned())),
                format!("{count:>11}"),
                format!("{:>10}", messages.unwrap_or_else(|| "-".to_owned())),
            ])
        });
        let widths = [
            Constraint::Length(6),
            Constraint::Length(6),
            Constraint::Length(11),
            Constraint::Length(10),
        ];
        let header = Row::new([
            "worker".to_owned(),
            format!("{:>6}", "CPU"),
            format!("{:>11}", "connections"),
            format!("{:>10}", "messages/s"),
        ]);
        frame.render_widget(table(rows, &widths, header, "workers"), area);
    }

    fn prefixes(&self, frame: &mut Frame<'_>, area: Rect) {
        let none = Vec::new();
        let prefixes = self.status()["prefixes"].as_array().unwrap_or(&none);
        let mut lines: Vec<_> = prefixes.iter().map(|prefix| self.prefix(prefix)).collect();
        lines.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.3.cmp(&a.3)));
        let rows = lines.into_iter().map(|(name, packets, drops, count)| {
            Row::new([
                name,
                format!("{:>10}", grouped(packets.round() as u64)),
                format!("{:>10}", grouped(drops.round() as u64)),
                format!("{:>11}", grouped(count)),
            ])
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(11),
        ];
        let header = Row::new([
            "prefix".to_owned(),
            format!("{:>10}", "packets/s"),
            format!("{:>10}", "dropped/s"),
            format!("{:>11}", "connections"),
        ]);
        frame.render_widget(table(rows, &widths, header, "top prefixes"), area);
    }

    /// Of a prefix its name, packets per second, how many of them are dropped, and connections.
    fn prefix(&self, prefix: &Value) -> (String, f64, f64, u64) {
        let name = prefix["prefix"].as_str().unwrap_or_default();
        let of = |key: &'static str| {
            let rate = self.rate(|status| {
                let mut all = status["prefixes"].as_array()?.iter();
                all.find(|one| one["prefix"] == name)?[key].as_u64()
            });
            rate.unwrap_or(0.0)
        };
        let connections = prefix["connections"].as_u64().unwrap_or(0);
        (
            name.to_owned(),
            of("packets"),
            of("packets_dropped"),
            connections,
        )
    }
}

fn boxed(title: &str) -> Block<'static> {
    Block::new()
        .borders(Borders::TOP)
        .title(format!(" {title} "))
}

fn table<'a>(
    rows: impl Iterator<Item = Row<'a>>,
    widths: &[Constraint],
    header: Row<'a>,
    title: &str,
) -> Table<'a> {
    let header = header.style(Style::new().add_modifier(Modifier::UNDERLINED));
    Table::new(rows, widths.to_vec())
        .header(header)
        .block(boxed(title))
}

fn shield(kernel: &Value) -> String {
    if kernel["active"] != true {
        return "off".to_owned();
    }
    let none = Vec::new();
    let interfaces = kernel["interfaces"].as_array().unwrap_or(&none);
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let each = interfaces
        .iter()
        .map(|one| format!("{} {}", text(&one["name"]), text(&one["xdp"])));
    match interfaces.is_empty() {
        true => "steering only".to_owned(),
        false => each.collect::<Vec<_>>().join(", "),
    }
}

/// A number with its digits in groups of three.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::json;
    use std::time::Duration;

    fn status(drops: u64, cpu_ns: u64) -> Value {
        json!({
            "version": "1.2.3",
            "uptime_s": 3_725,
            "connections": 12_345,
            "kernel": { "active": true, "interfaces": [{ "name": "eth0", "xdp": "native" }] },
            "kernel_drops": { "denied": drops, "runt": 0, "forged_cid": 5 },
            "kernel_passes": { "own_cid": 7 },
            "messages": { "received": drops, "sent": 0 },
            "lists": { "denied": 2 },
            "load": [{ "worker": 0, "connections": 3, "cpu_ns": cpu_ns, "messages_received": 0, "messages_sent": 0 }],
            "prefixes": [
                { "prefix": "198.51.100.0/24", "connections": 12, "packets": null, "packets_dropped": null },
                { "prefix": "203.0.113.0/24", "connections": 9, "packets": 3 * drops, "packets_dropped": drops },
            ],
        })
    }

    fn screen(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
        terminal
            .draw(|frame| view.draw(frame))
            .expect("it is drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn rates_are_those_between_the_last_two_answers() {
        let start = Instant::now();
        let mut view = View::default();
        view.add(Sample {
            at: start,
            status: status(1_000, 0),
        });
        assert!(screen(&view, 100, 30).contains("denied"));
        let at = start + Duration::from_secs(2);
        view.add(Sample {
            at,
            status: status(7_000, 1_000_000_000),
        });
        let screen = screen(&view, 100, 30);
        for expected in [
            "headgate 1.2.3  up 1:02:05",
            "shield: eth0 native",
            "connections 12,345",
            "messages/s in 3,000 out 0",
            "denied prefixes 2",
            "50 %",
            "203.0.113.0/24",
            "q quits",
        ] {
            assert!(screen.contains(expected), "{expected} is not in\n{screen}");
        }
        let line = screen.lines().find(|line| line.contains("7,000"));
        assert!(line.is_some_and(|line| line.contains("3,000")), "{screen}");
        assert!(!screen.contains("runt"), "{screen}");
        let line = screen.lines().find(|line| line.contains("203.0.113.0"));
        let shows = |line: &str| line.contains("9,000") && line.contains("3,000");
        assert!(line.is_some_and(shows), "{screen}");
        assert!(
            screen.find("203.0.113.0") < screen.find("198.51.100.0"),
            "{screen}"
        );
        let place = |text| screen.find(text).expect("it is shown");
        assert!(place("denied ") < place("forged_cid"));
    }

    #[test]
    fn any_size_and_any_answer_can_be_drawn() {
        let mut view = View::default();
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
            screen(&view, width, height);
        }
        view.add(Sample {
            at: Instant::now(),
            status: Value::Null,
        });
        view.lost("no broker answers\nand more");
        let screen = screen(&view, 80, 24);
        assert!(
            screen.contains("the broker doesn't answer: no broker answers"),
            "{screen}"
        );
        assert!(screen.contains("the shield is off"), "{screen}");
        assert!(screen.contains("connections messages/s "), "{screen}");
    }
}
