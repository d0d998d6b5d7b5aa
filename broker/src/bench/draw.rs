//! What is left to chance: sizes, topics, QoS. With the same seed it is the same every time.

use headgate_codec::QoS;
use std::{fmt, str::FromStr};

/// The shortest payload, bytes: what a run writes into it.
pub(super) const SIZE_MIN: u32 = 16;
/// The longest payload, bytes.
pub(super) const SIZE_MAX: u32 = 16 << 20;
/// Entries of a table of sizes.
const ENTRIES_MAX: usize = 1_000;

/// Why a distribution isn't one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrawError {
    /// None of the forms.
    #[error(
        "{0:?}: a size is 128, a range 64..1024, lognormal:MEDIAN,SIGMA[,MAX], or a table SIZE:WEIGHT,SIZE:WEIGHT,…"
    )]
    Sizes(String),
    /// Too small or too large.
    #[error(
        "{0} bytes: payloads have {SIZE_MIN} to {SIZE_MAX}, since each carries when it was due"
    )]
    Size(u32),
    /// None of the forms.
    #[error("{0:?}: topics are drawn by uniform, or zipf:EXPONENT such as zipf:1.1")]
    Choice(String),
    /// None of the forms.
    #[error("{0:?}: QoS is 0, 1, 2, or a table such as 0:70,1:25,2:5")]
    Qos(String),
}

/// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// At least 0 and below 1.
    pub fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Below `end`, which isn't 0.
    pub fn below(&mut self, end: u32) -> u32 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u32
    }

    /// Normally distributed, with mean 0 and deviation 1 (Box, Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.share()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.share()).cos()
    }
}

/// Values with weights.
#[derive(Clone, Debug, PartialEq)]
struct Table<T> {
    entries: Vec<(T, f64)>,
}

impl<T: Copy + FromStr> Table<T> {
    /// `VALUE:WEIGHT,VALUE:WEIGHT,…`
    fn parse(text: &str) -> Option<Self> {
        let entry = |entry: &str| {
            let (value, weight) = entry.trim().split_once(':')?;
            let weight: f64 = weight.trim_end_matches('%').parse().ok()?;
            let is_weight = weight.is_finite() && weight >= 0.0;
            is_weight.then_some((value.parse().ok()?, weight))
        };
        let entries: Vec<_> = text.split(',').map(entry).collect::<Option<_>>()?;
        let total: f64 = entries.iter().map(|(_, weight)| weight).sum();
        (total > 0.0 && entries.len() <= ENTRIES_MAX).then_some(Self { entries })
    }

    fn draw(&self, random: &mut Random) -> T {
        let total: f64 = self.entries.iter().map(|(_, weight)| weight).sum();
        let mut left = random.share() * total;
        let mut last = self.entries[0].0;
        for (value, weight) in &self.entries {
            if *weight > 0.0 {
                last = *value;
                if left < *weight {
                    break;
                }
                left -= weight;
            }
        }
        last
    }
}

/// How long payloads are, bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes(SizesKind, String);

#[derive(Clone, Debug, PartialEq)]
enum SizesKind {
    Fixed(u32),
    /// Both ends included.
    Uniform(u32, u32),
    LogNormal {
        median: f64,
        sigma: f64,
        max: u32,
    },
    Table(Table<u32>),
}

impl Sizes {
    /// The longest that there is, bytes.
    pub fn max(&self) -> u32 {
        match &self.0 {
            SizesKind::Fixed(size) | SizesKind::Uniform(_, size) => *size,
            SizesKind::LogNormal { max, .. } => *max,
            SizesKind::Table(table) => {
                let sizes = table.entries.iter().map(|(size, _)| *size);
                sizes.max().unwrap_or(SIZE_MIN)
            }
        }
    }

    /// The next one.
    pub fn draw(&self, random: &mut Random) -> u32 {
        match &self.0 {
            SizesKind::Fixed(size) => *size,
            SizesKind::Uniform(from, to) => from + random.below(to - from + 1),
            SizesKind::LogNormal { median, sigma, max } => {
                let size = median * (sigma * random.normal()).exp();
                (size as u32).clamp(SIZE_MIN, *max)
            }
            SizesKind::Table(table) => table.draw(random),
        }
    }

    fn parse(text: &str) -> Option<SizesKind> {
        if let Ok(size) = text.parse() {
            return Some(SizesKind::Fixed(size));
        }
        if let Some((from, to)) = text.split_once("..") {
            let (from, to) = (from.parse().ok()?, to.parse().ok()?);
            return (from <= to).then_some(SizesKind::Uniform(from, to));
        }
        let Some(parameters) = text.strip_prefix("lognormal:") else {
            return Table::parse(text).map(SizesKind::Table);
        };
        let mut parameters = parameters.split(',');
        let median: f64 = parameters.next()?.parse().ok()?;
        let sigma: f64 = parameters.next()?.parse().ok()?;
        let max = parameters.next().map_or(Ok(64 * 1024), str::parse).ok()?;
        let is_one = median.is_finite() && median >= 1.0 && (0.0..=10.0).contains(&sigma);
        (is_one && parameters.next().is_none()).then_some(SizesKind::LogNormal {
            median,
            sigma,
            max,
        })
    }
}

impl FromStr for Sizes {
    type Err = DrawError;

    fn from_str(text: &str) -> Result<Self, DrawError> {
        let kind = Self::parse(text).ok_or_else(|| DrawError::Sizes(text.to_owned()))?;
        let ends = match &kind {
            SizesKind::Fixed(size) => vec![*size],
            SizesKind::Uniform(from, to) => vec![*from, *to],
            SizesKind::LogNormal { max, .. } => vec![*max],
            SizesKind::Table(table) => table.entries.iter().map(|(size, _)| *size).collect(),
        };
        match ends
            .iter()
            .find(|size| !(SIZE_MIN..=SIZE_MAX).contains(size))
        {
            Some(size) => Err(DrawError::Size(*size)),
            None => Ok(Self(kind, text.to_owned())),
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.1)
    }
}

/// Which of several topics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// Each as often as any other.
    Uniform,
    /// The nth in proportion to n to the power of minus this.
    Zipf(f64),
}

impl Choice {
    /// For so many topics.
    pub(super) fn of(self, topics: u32) -> Chooser {
        let Self::Zipf(exponent) = self else {
            return Chooser::Uniform(topics);
        };
        let mut sum = 0.0;
        let sums = (1..=topics).map(|rank| {
            sum += f64::from(rank).powf(-exponent);
            sum
        });
        Chooser::Sums(sums.collect())
    }
}

impl FromStr for Choice {
    type Err = DrawError;

    fn from_str(text: &str) -> Result<Self, DrawError> {
        if text == "uniform" {
            return Ok(Self::Uniform);
        }
        let exponent = text.strip_prefix("zipf:").and_then(|e| e.parse().ok());
        let exponent = exponent.filter(|exponent| (0.0..=10.0).contains(exponent));
        let exponent = exponent.ok_or_else(|| DrawError::Choice(text.to_owned()))?;
        Ok(Self::Zipf(exponent))
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(exponent) => write!(f, "zipf:{exponent}"),
        }
    }
}

/// A [`Choice`] of a number of topics.
#[derive(Clone, Debug)]
pub(super) enum Chooser {
    Uniform(u32),
    /// Sums of the weights up to each topic.
    Sums(Vec<f64>),
}

impl Chooser {
    /// How often a topic is drawn, of 1.
    pub(super) fn share(&self, topic: u32) -> f64 {
        match self {
            Self::Uniform(topics) => 1.0 / f64::from((*topics).max(1)),
            Self::Sums(sums) => {
                let at = |place: usize| sums.get(place).copied().unwrap_or(0.0);
                let before = (topic as usize).checked_sub(1).map_or(0.0, at);
                (at(topic as usize) - before) / sums.last().copied().unwrap_or(1.0)
            }
        }
    }

    pub(super) fn draw(&self, random: &mut Random) -> u32 {
        match self {
            Self::Uniform(topics) => random.below((*topics).max(1)),
            Self::Sums(sums) => {
                let at = random.share() * sums.last().copied().unwrap_or(0.0);
                let found = sums.partition_point(|sum| *sum <= at);
                found.min(sums.len().saturating_sub(1)) as u32
            }
        }
    }
}

/// With which QoS messages are published.
#[derive(Clone, Debug, PartialEq)]
pub struct QosMix {
    table: Table<u8>,
    text: String,
}

impl QosMix {
    /// The next one.
    pub fn draw(&self, random: &mut Random) -> QoS {
        if let [(only, _)] = self.table.entries[..] {
            return qos(only);
        }
        qos(self.table.draw(random))
    }

    /// The highest that there is.
    pub fn max(&self) -> QoS {
        let used = self
            .table
            .entries
            .iter()
            .filter(|(_, weight)| *weight > 0.0);
        qos(used.map(|(qos, _)| *qos).max().unwrap_or(0))
    }
}

impl FromStr for QosMix {
    type Err = DrawError;

    fn from_str(text: &str) -> Result<Self, DrawError> {
        let table = match text.parse() {
            Ok(only) => Some(Table {
                entries: vec![(only, 1.0)],
            }),
            Err(_) => Table::parse(text),
        };
        table
            .filter(|table| table.entries.iter().all(|(qos, _)| *qos <= 2))
            .map(|table| Self {
                table,
                text: text.to_owned(),
            })
            .ok_or_else(|| DrawError::Qos(text.to_owned()))
    }
}

impl fmt::Display for QosMix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn qos(number: u8) -> QoS {
    match number {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 100_000;

    fn drawn(sizes: &str) -> Vec<u32> {
        let sizes: Sizes = sizes.parse().expect("sizes");
        let mut random = Random::new(1);
        let mut drawn: Vec<_> = (0..DRAWS).map(|_| sizes.draw(&mut random)).collect();
        drawn.sort_unstable();
        drawn
    }

    /// The first outputs of the reference implementation with seed 0.
    #[test]
    fn the_generator_is_the_one_it_says() {
        let mut random = Random::new(0);
        let first = [random.bits(), random.bits()];
        assert_eq!(first, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn sizes_are_what_was_asked_for() {
        let median = |drawn: &[u32]| drawn[drawn.len() / 2];
        let mean =
            |drawn: &[u32]| drawn.iter().copied().map(f64::from).sum::<f64>() / drawn.len() as f64;
        assert_eq!(drawn("100")[..2], [100, 100]);
        let uniform = drawn("64..1024");
        assert_eq!((uniform[0], uniform[uniform.len() - 1]), (64, 1024));
        assert!((mean(&uniform) - 544.0).abs() < 5.0);
        // The mean of a log-normal distribution is median · exp(σ² ÷ 2).
        let lognormal = drawn("lognormal:1000,0.5");
        assert!(median(&lognormal).abs_diff(1000) < 15);
        assert!((mean(&lognormal) - 1000.0 * 0.125_f64.exp()).abs() < 15.0);
        let table = drawn("64:75,1024:20,65536:5%");
        let share = |size| table.iter().filter(|s| **s == size).count() as f64 / f64::from(DRAWS);
        for (size, wanted) in [(64, 0.75), (1024, 0.2), (65536, 0.05)] {
            assert!(
                (share(size) - wanted).abs() < 0.01,
                "{size}: {}",
                share(size)
            );
        }
        for (sizes, max) in [
            ("64:1,9000:1", 9000),
            ("16..20", 20),
            ("lognormal:50,1,80", 80),
        ] {
            assert_eq!(sizes.parse::<Sizes>().map(|sizes| sizes.max()), Ok(max));
        }
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        for text in [
            "",
            "x",
            "9..",
            "20..16",
            "lognormal:5",
            "lognormal:1,2,99,4",
            "64:0",
            "64:-1,65:2",
        ] {
            let error = DrawError::Sizes(text.to_owned());
            assert_eq!(text.parse::<Sizes>(), Err(error), "{text}");
        }
        assert_eq!("15".parse::<Sizes>(), Err(DrawError::Size(15)));
        assert_eq!("20:1,2:1".parse::<Sizes>(), Err(DrawError::Size(2)));
        assert!("zipf:".parse::<Choice>().is_err() && "zipf:-1".parse::<Choice>().is_err());
        for text in ["3", "0:1,3:1", "x", "0:0"] {
            assert!(text.parse::<QosMix>().is_err(), "{text}");
        }
    }

    #[test]
    fn topics_are_drawn_in_proportion() {
        let mut random = Random::new(2);
        for (choice, first, tenth) in [
            // The sum of 1/n up to 1,000 is 7.4855.
            ("zipf:1", 1.0 / 7.4855, 0.1 / 7.4855),
            ("uniform", 0.001, 0.001),
        ] {
            let chooser = choice.parse::<Choice>().expect("a choice").of(1_000);
            let mut counts = [0_u32; 1_000];
            for _ in 0..DRAWS {
                counts[chooser.draw(&mut random) as usize] += 1;
            }
            for (place, wanted) in [(0, first), (9, tenth)] {
                let share = f64::from(counts[place]) / f64::from(DRAWS);
                assert!((share - wanted).abs() < 0.005, "{choice} {place}: {share}");
            }
            assert!(counts[999] > 0, "{choice}");
            let shares: f64 = (0..1_000).map(|topic| chooser.share(topic)).sum();
            assert!((shares - 1.0).abs() < 1e-9, "{choice}: {shares}");
        }
    }

    #[test]
    fn qos_is_mixed() {
        let mut random = Random::new(3);
        let mix: QosMix = "0:70,1:30".parse().expect("a mix");
        let ones = (0..DRAWS).filter(|_| mix.draw(&mut random) == QoS::AtLeastOnce);
        assert!((ones.count() as f64 / f64::from(DRAWS) - 0.3).abs() < 0.01);
        assert_eq!(mix.max(), QoS::AtLeastOnce);
        let only: QosMix = "2".parse().expect("a QoS");
        assert_eq!(
            (only.draw(&mut random), only.max()),
            (QoS::ExactlyOnce, QoS::ExactlyOnce)
        );
    }
}
