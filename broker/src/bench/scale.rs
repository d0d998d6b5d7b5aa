//! Axes: from values to places, where the marks are, and what they are called.

/// An axis from its low end to its high end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    /// What marks are round numbers of.
    unit: f64,
    is_logarithmic: bool,
}

impl Scale {
    /// From 0 to what `high` needs, with marks at 1, 2 or 5 times a power of 10.
    pub(super) fn linear(high: f64) -> Self {
        let high = if high > 0.0 { high } else { 1.0 };
        let step = step(high, 4.0);
        Self {
            low: 0.0,
            high: (high / step).ceil() * step,
            unit: 1.0,
            is_logarithmic: false,
        }
    }

    /// From 0 to what `high` MiB need, with marks at round numbers of MiB, or of GiB if there are any.
    pub(super) fn mebibytes(high: f64) -> Self {
        let unit = if high >= 1_024.0 { 1_024.0 } else { 1.0 };
        let scale = Self::linear(high / unit);
        Self {
            high: scale.high * unit,
            unit,
            ..scale
        }
    }

    /// From one value to another, exactly.
    pub(super) fn between(low: f64, high: f64) -> Self {
        Self {
            low,
            high: if high > low { high } else { low + 1.0 },
            unit: 1.0,
            is_logarithmic: false,
        }
    }

    /// By powers of 10, around values above 0.
    pub(super) fn logarithmic(low: f64, high: f64) -> Self {
        let low = 10_f64.powf(low.max(1e-3).log10().floor());
        let high = 10_f64.powf(high.max(low * 1.001).log10().ceil());
        Self {
            low,
            high,
            unit: 1.0,
            is_logarithmic: true,
        }
    }

    /// Where a value lies: 0 is the low end, 1 the high end. What lies outside is put to the end.
    pub(super) fn place(&self, value: f64) -> f64 {
        let place = match self.is_logarithmic {
            true => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        place.clamp(0.0, 1.0)
    }

    /// Values that get a mark.
    pub(super) fn marks(&self) -> Vec<f64> {
        if self.is_logarithmic {
            let decades = (self.high / self.low).log10().round() as i32;
            return (0..=decades).map(|n| self.low * 10_f64.powi(n)).collect();
        }
        let step = step((self.high - self.low) / self.unit, 4.0) * self.unit;
        let first = (self.low / step - 1e-9).ceil();
        let last = (self.high / step + 1e-9).floor();
        (0..=(last - first) as u32)
            .map(|n| (first + f64::from(n)) * step)
            .collect()
    }
}

/// 1, 2 or 5 times a power of 10, of which about `count` fit into a range.
fn step(range: f64, count: f64) -> f64 {
    let rough = range / count;
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0];
    let fits = factor
        .into_iter()
        .find(|factor| factor * power >= rough * 0.999_999);
    fits.unwrap_or(10.0) * power
}

/// A number without what it doesn't need.
fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A time that is given in µs.
pub(super) fn time(us: f64) -> String {
    match us {
        _ if us >= 1e6 => format!("{} s", short(us / 1e6)),
        _ if us >= 1e3 => format!("{} ms", short(us / 1e3)),
        _ => format!("{} µs", short(us)),
    }
}

/// A count, with k and M.
pub(super) fn count(value: f64) -> String {
    match value {
        _ if value >= 1e6 => format!("{} M", short(value / 1e6)),
        _ if value >= 1e3 => format!("{} k", short(value / 1e3)),
        _ => short(value),
    }
}

/// MiB, or GiB.
pub(super) fn mebibytes(value: f64) -> String {
    match value {
        _ if value >= 1_024.0 => format!("{} GiB", short(value / 1_024.0)),
        _ => format!("{} MiB", short(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_axes_have_round_marks_and_room() {
        for (high, marks) in [
            (7.3, &[0.0, 2.0, 4.0, 6.0, 8.0][..]),
            (100.0, &[0.0, 50.0, 100.0]),
            (10_500.0, &[0.0, 5_000.0, 10_000.0, 15_000.0]),
            (0.0, &[0.0, 0.5, 1.0]),
        ] {
            let scale = Scale::linear(high);
            assert_eq!(scale.marks(), marks, "{high}");
            assert!(scale.place(high) <= 1.0);
        }
        let scale = Scale::linear(8.0);
        assert_eq!(
            [0.0, 4.0, 8.0, 9.0].map(|v| scale.place(v)),
            [0.0, 0.5, 1.0, 1.0]
        );
    }

    #[test]
    fn memory_has_marks_at_round_numbers_of_its_unit() {
        let names = |high| {
            let marks = Scale::mebibytes(high).marks();
            marks.into_iter().map(mebibytes).collect::<Vec<_>>()
        };
        assert_eq!(names(30.0), ["0 MiB", "10 MiB", "20 MiB", "30 MiB"]);
        assert_eq!(names(14_000.0), ["0 MiB", "5 GiB", "10 GiB", "15 GiB"]);
    }

    #[test]
    fn logarithmic_axes_have_a_mark_for_each_power() {
        let scale = Scale::logarithmic(25.0, 4_000.0);
        let marks = scale.marks();
        assert_eq!(marks.len(), 4);
        for (mark, wanted) in marks.iter().zip([10.0, 100.0, 1_000.0, 10_000.0]) {
            assert!((mark / wanted - 1.0).abs() < 1e-9, "{mark}");
        }
        assert!((scale.place(100.0) - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(scale.place(0.0), 0.0);
    }

    #[test]
    fn an_axis_may_begin_anywhere() {
        assert_eq!(Scale::between(3.0, 11.0).marks(), [4.0, 6.0, 8.0, 10.0]);
        assert_eq!(Scale::between(5.0, 5.0).place(5.0), 0.0);
    }

    #[test]
    fn values_are_named_with_their_unit() {
        let times = [12.5, 250.0, 1_000.0, 2_500_000.0].map(time);
        assert_eq!(times, ["12.5 µs", "250 µs", "1 ms", "2.5 s"]);
        assert_eq!([5.0, 1_500.0, 2e6].map(count), ["5", "1.5 k", "2 M"]);
        assert_eq!([100.0, 1_536.0].map(mebibytes), ["100 MiB", "1.5 GiB"]);
    }
}
