//! A run as a picture: latency, throughput and memory over time, as SVG.

use super::{
    record::{Kind, Phase, Sample},
    scale::{self, Scale},
};
use std::fmt::Write as _;

/// Of the whole picture, px.
const WIDTH: f64 = 960.0;
/// Of a panel's plot, px.
const PANEL_HEIGHT: f64 = 170.0;
/// Between the plots, px.
const PANEL_GAP: f64 = 56.0;
/// Above the first plot, px: the title, and the phases' names.
const TOP: f64 = 104.0;
/// Left of the plots, px: what the marks are called.
const LEFT: f64 = 84.0;
/// Right of the plots, px.
const RIGHT: f64 = 24.0;
/// Points of a line, at most.
const POINTS_MAX: usize = 400;
/// Of a letter, on average, px: a phase that is narrower than its name is not named.
const NAME_WIDTH: f64 = 6.6;

/// Colours that people who don't see all of them tell apart (Okabe, Ito).
const BLUE: &str = "#0072b2";
const ORANGE: &str = "#d55e00";
const GREEN: &str = "#009e73";
const GREY: &str = "#888888";

/// One line of a panel.
struct Line<'a> {
    name: &'a str,
    colour: &'a str,
    /// Dashed, behind the others.
    is_dashed: bool,
    /// Several samples that share a point: their highest is shown, instead of their mean.
    is_peak: bool,
    value: fn(&Sample) -> Option<f64>,
}

/// One panel.
struct Panel<'a> {
    title: &'a str,
    lines: Vec<Line<'a>>,
    /// From the lowest and the highest value.
    scale: fn(f64, f64) -> Scale,
    mark: fn(f64) -> String,
}

fn panels() -> [Panel<'static>; 3] {
    let line = |name, colour, value| Line {
        name,
        colour,
        is_dashed: false,
        is_peak: false,
        value,
    };
    let latency = |name, colour, value| Line {
        is_peak: true,
        ..line(name, colour, value)
    };
    [
        Panel {
            title: "latency",
            lines: vec![
                latency("p99.9", ORANGE, |s| s.p999_us),
                latency("p99", GREEN, |s| s.p99_us),
                latency("p50", BLUE, |s| s.p50_us),
            ],
            scale: |low, high| match high > 0.0 {
                true => Scale::logarithmic(low, high),
                false => Scale::logarithmic(1.0, 1_000.0),
            },
            mark: scale::time,
        },
        Panel {
            title: "throughput, per second",
            lines: vec![
                Line {
                    is_dashed: true,
                    ..line("offered", GREY, |s| Some(s.offered_per_s))
                },
                line("done", BLUE, |s| Some(s.done_per_s)),
            ],
            scale: |_, high| Scale::linear(high),
            mark: scale::count,
        },
        Panel {
            title: "resident memory",
            lines: vec![
                line("broker", ORANGE, |s| {
                    s.broker_resident_bytes
                        .map(|bytes| bytes as f64 / 1_048_576.0)
                }),
                line("generator", BLUE, |s| {
                    Some(s.generator_resident_bytes as f64 / 1_048_576.0)
                }),
            ],
            scale: |_, high| Scale::mebibytes(high),
            mark: scale::mebibytes,
        },
    ]
}

/// Draws a run. What is timed and counted is said for each phase.
pub fn picture(title: &str, phases: &[Phase], samples: &[Sample]) -> String {
    let height = TOP + 3.0 * PANEL_HEIGHT + 2.0 * PANEL_GAP + 48.0;
    let (from, last) = (0.0, samples.last().map_or(0.0, |sample| sample.at_s));
    let to = phases.last().map_or(last, |phase| phase.to_s.max(last));
    let mut svg = Svg(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        escaped(title)
    ));
    svg.text(
        (LEFT, 26.0),
        "start",
        "font-size=\"14\" font-weight=\"bold\"",
        title,
    );
    let x = Scale::between(from, to);
    let x = |seconds: f64| LEFT + x.place(seconds) * (WIDTH - LEFT - RIGHT);
    for (number, phase) in phases.iter().enumerate() {
        svg.phase(phase, number, (x(phase.from_s), x(phase.to_s)), height);
    }
    for (number, panel) in panels().iter().enumerate() {
        let top = TOP + number as f64 * (PANEL_HEIGHT + PANEL_GAP);
        svg.panel(panel, top, samples, &x);
    }
    let bottom = height - 48.0;
    for mark in Scale::between(from, to).marks() {
        svg.text(
            (x(mark), bottom + 18.0),
            "middle",
            "",
            &format!("{}", (mark * 1e3).round() / 1e3),
        );
    }
    svg.text(
        (WIDTH - RIGHT, bottom + 36.0),
        "end",
        "fill=\"#555555\"",
        "time, seconds",
    );
    svg.0.push_str("</svg>\n");
    svg.0
}

struct Svg(String);

impl Svg {
    fn text(&mut self, (x, y): (f64, f64), anchor: &str, style: &str, text: &str) {
        // Writing to a String doesn't fail, here and below.
        let _ = writeln!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {style}>{}</text>",
            escaped(text)
        );
    }

    /// A band, with what is done in it, and what is timed.
    fn phase(&mut self, phase: &Phase, number: usize, (from, to): (f64, f64), height: f64) {
        let fill = ["#f4f6f8", "#ffffff"][number % 2];
        let (top, width) = (TOP - 62.0, to - from);
        let _ = writeln!(
            self.0,
            "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{fill}\"/>",
            height - 48.0 - top
        );
        let of = match phase.of {
            Kind::Connect => "connects",
            Kind::Ping => "pings",
            Kind::Delivery => "deliveries",
        };
        if width >= NAME_WIDTH * phase.name.chars().count().max(of.len()) as f64 {
            let middle = (from + to) / 2.0;
            self.text((middle, TOP - 46.0), "middle", "", &phase.name);
            let style = "font-size=\"10\" fill=\"#555555\"";
            self.text((middle, TOP - 32.0), "middle", style, of);
        }
    }

    fn panel(&mut self, panel: &Panel<'_>, top: f64, samples: &[Sample], x: &impl Fn(f64) -> f64) {
        let lines: Vec<_> = panel
            .lines
            .iter()
            .map(|line| (line, points(line, samples)))
            .filter(|(_, points)| points.iter().any(|(_, value)| value.is_some()))
            .collect();
        let values = || {
            let all = lines.iter().flat_map(|(_, points)| points);
            all.filter_map(|(_, value)| *value)
        };
        let (low, high) = values().fold((f64::MAX, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let scale = (panel.scale)(low, high);
        let bottom = top + PANEL_HEIGHT;
        let y = |value: f64| bottom - scale.place(value) * PANEL_HEIGHT;
        for mark in scale.marks() {
            let at = y(mark);
            let _ = writeln!(
                self.0,
                "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>",
                WIDTH - RIGHT
            );
            self.text((LEFT - 8.0, at + 4.0), "end", "", &(panel.mark)(mark));
        }
        self.text(
            (LEFT, top - 8.0),
            "start",
            "font-weight=\"bold\"",
            panel.title,
        );
        self.legend(
            &lines.iter().map(|(line, _)| *line).collect::<Vec<_>>(),
            top - 8.0,
        );
        for (line, points) in &lines {
            self.line(line, points, x, y);
        }
    }

    /// Right-aligned, above a plot.
    fn legend(&mut self, lines: &[&Line<'_>], y: f64) {
        let mut right = WIDTH - RIGHT;
        for line in lines.iter().rev() {
            self.text((right, y), "end", "", line.name);
            right -= 7.0 * line.name.len() as f64 + 6.0;
            let dashes = dashes(line);
            let _ = writeln!(
                self.0,
                "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{right:.1}\" y2=\"{:.1}\" stroke=\"{}\" \
                 stroke-width=\"2\"{dashes}/>",
                right - 18.0,
                y - 4.0,
                y - 4.0,
                line.colour
            );
            right -= 34.0;
        }
    }

    /// Broken where there is no value.
    fn line(
        &mut self,
        line: &Line<'_>,
        points: &[(f64, Option<f64>)],
        x: impl Fn(f64) -> f64,
        y: impl Fn(f64) -> f64,
    ) {
        for part in points.split(|(_, value)| value.is_none()) {
            let place = |(at, value): &(f64, Option<f64>)| {
                value.map(|value| format!("{:.1},{:.1}", x(*at), y(value)))
            };
            let places: Vec<_> = part.iter().filter_map(place).collect();
            let (colour, dashes) = (line.colour, dashes(line));
            let _ = match &places[..] {
                [] => Ok(()),
                [only] => {
                    let (cx, cy) = only.split_once(',').unwrap_or_default();
                    writeln!(
                        self.0,
                        "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"2\" fill=\"{colour}\"/>"
                    )
                }
                _ => writeln!(
                    self.0,
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"{dashes}/>",
                    places.join(" ")
                ),
            };
        }
    }
}

fn dashes(line: &Line<'_>) -> &'static str {
    match line.is_dashed {
        true => " stroke-dasharray=\"5 3\"",
        false => "",
    }
}

/// What a line goes through: several samples become one point if there are too many. None joins two kinds.
fn points(line: &Line<'_>, samples: &[Sample]) -> Vec<(f64, Option<f64>)> {
    let together = samples.len().div_ceil(POINTS_MAX).max(1);
    let mut points = Vec::new();
    for part in samples.chunk_by(|one, next| one.of == next.of) {
        for samples in part.chunks(together) {
            let values: Vec<f64> = samples.iter().filter_map(line.value).collect();
            let value = match line.is_peak {
                _ if values.is_empty() => None,
                true => Some(values.iter().copied().fold(0.0, f64::max)),
                false => Some(values.iter().sum::<f64>() / values.len() as f64),
            };
            let middle = samples.iter().map(|s| s.at_s).sum::<f64>() / samples.len() as f64;
            points.push((middle, value));
        }
        if line.is_peak || line.name == "done" || line.name == "offered" {
            // A latency of connects is not joined to one of pings.
            let end = part.last().map_or(0.0, |sample| sample.at_s);
            points.push((end, None));
        }
    }
    points
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::record::Spent;
    use super::*;

    fn phase(name: &str, of: Kind, (from_s, to_s): (f64, f64)) -> Phase {
        Phase {
            name: name.to_owned(),
            of,
            from_s,
            to_s,
            offered: 0,
            done: 0,
            broker: None,
            generator: Spent::default(),
        }
    }

    fn sample(at_s: f64, of: Kind, p50_us: Option<f64>) -> Sample {
        Sample {
            at_s,
            of,
            clients: 1,
            offered_per_s: 10.0,
            done_per_s: 9.0,
            p50_us,
            p99_us: p50_us.map(|us| us * 4.0),
            p999_us: p50_us.map(|us| us * 9.0),
            max_us: p50_us.map(|us| us * 10.0),
            broker_resident_bytes: None,
            broker_cores: None,
            generator_resident_bytes: 10 << 20,
            generator_cores: 0.1,
        }
    }

    #[test]
    fn kinds_and_gaps_part_a_line() {
        let samples = [
            sample(1.0, Kind::Connect, Some(100.0)),
            sample(2.0, Kind::Connect, Some(200.0)),
            sample(3.0, Kind::Delivery, Some(50.0)),
            sample(4.0, Kind::Delivery, None),
            sample(5.0, Kind::Delivery, Some(60.0)),
            sample(6.0, Kind::Delivery, Some(70.0)),
        ];
        let phases = [
            phase("connect", Kind::Connect, (0.0, 2.0)),
            phase("a < b & c", Kind::Delivery, (2.0, 6.0)),
        ];
        let svg = picture("a \"run\"", &phases, &samples);
        // Of each latency two lines and a point; offered and done in both phases; the generator's memory.
        assert_eq!(svg.matches("<polyline").count(), 3 * 2 + 2 * 2 + 1);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("a &quot;run&quot;"));
        assert!(svg.contains(">1 ms<") && svg.contains(">10 MiB<"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        // Nothing is known of a broker.
        assert!(!svg.contains(">broker<"));
    }

    #[test]
    fn a_long_run_keeps_its_peaks_and_few_points() {
        let mut samples: Vec<_> = (0..10_000)
            .map(|n| sample(f64::from(n), Kind::Delivery, Some(100.0)))
            .collect();
        samples[5_003].p50_us = Some(9_000.0);
        let [latency, throughput, _] = panels();
        let p50 = &latency.lines[2];
        let points_of = points(p50, &samples);
        assert!(points_of.len() <= POINTS_MAX + 1);
        let highest = points_of
            .iter()
            .filter_map(|(_, value)| *value)
            .fold(0.0, f64::max);
        assert_eq!(highest, 9_000.0);
        let done = points(&throughput.lines[1], &samples);
        assert!(
            done.iter()
                .filter_map(|(_, v)| *v)
                .all(|v| (v - 9.0).abs() < 1e-9)
        );
    }

    #[test]
    fn nothing_measured_is_a_picture_too() {
        let svg = picture("empty", &[], &[]);
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"));
    }
}
