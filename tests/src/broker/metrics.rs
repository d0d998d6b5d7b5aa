//! What `/metrics` said at one moment.

/// The series of Prometheus's text format.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    series: Vec<(String, f64)>,
}

impl Metrics {
    /// Reads the text format.
    ///
    /// # Panics
    /// When a line has no number.
    pub fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| {
            let (name, value) = line
                .rsplit_once(' ')
                .unwrap_or_else(|| panic!("no series: {line:?}"));
            let value = value
                .parse()
                .unwrap_or_else(|error| panic!("{line:?}: {error}"));
            (name.to_owned(), value)
        });
        Self {
            series: series.collect(),
        }
    }

    /// The sum of all series whose name and labels begin with `prefix`. A series that is not there counts as 0.
    pub fn sum(&self, prefix: &str) -> f64 {
        self.series
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(_, value)| value)
            .sum()
    }

    /// The series whose name and labels begin with `prefix` and that are not 0, for a message about a failure.
    pub fn of(&self, prefix: &str) -> Vec<&(String, f64)> {
        let series = self.series.iter();
        series
            .filter(|(name, value)| name.starts_with(prefix) && *value != 0.0)
            .collect()
    }

    /// The value of one series, with its labels.
    pub fn get(&self, series: &str) -> Option<f64> {
        self.series
            .iter()
            .find(|(name, _)| name == series)
            .map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_by_prefix() {
        let metrics = Metrics::parse("# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3.5\n\nab 7\n");
        assert_eq!(metrics.sum("a{"), 5.5);
        assert_eq!(metrics.sum("a"), 12.5);
        assert_eq!(metrics.sum("none"), 0.0);
        assert_eq!(metrics.of("ab"), [&("ab".to_owned(), 7.0)]);
        assert_eq!(metrics.get("a{x=\"2\"}"), Some(3.5));
    }
}
