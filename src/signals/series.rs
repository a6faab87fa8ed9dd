//! Aggregation of the samples of one family on one page.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use super::exposition::{LabelValue, Sample};
use crate::{api::adaptive::Aggregation, decide::adaptive::signal::NoSample};

/// Most series that are aggregated.
const MAX_SERIES: usize = 4096;

/// The series of a family to use, and how they are aggregated.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    labels: BTreeMap<String, String>,
    aggregation: Aggregation,
}

impl Selection {
    /// Selects the series that have all of these labels.
    #[must_use]
    pub const fn new(labels: BTreeMap<String, String>, aggregation: Aggregation) -> Self {
        Self { labels, aggregation }
    }

    fn admits(&self, sample: &Sample<'_>) -> bool {
        self.labels.iter().all(|(name, wanted)| {
            let given = sample.labels.into_iter().find(|(given, _)| *given == name.as_bytes());
            // A missing label equals an empty one.
            given.map_or_else(|| wanted.is_empty(), |(_, value)| *value.text() == *wanted.as_bytes())
        })
    }

    /// Most series to remember. For `ExactlyOne`, a second series is already an error.
    const fn most(&self) -> usize {
        match self.aggregation {
            Aggregation::ExactlyOne => 1,
            Aggregation::Sum | Aggregation::Max => MAX_SERIES,
        }
    }
}

/// The newest sample of a series.
#[derive(Clone, Copy, Debug)]
struct Newest {
    value: f64,
    /// Time as written. A sample without a time is the newest.
    time: Option<f64>,
    /// Whether the page has another value for the same time.
    contradicted: bool,
}

/// The samples of a family so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    series: BTreeMap<u64, Newest>,
    too_many: bool,
    passed_over: bool,
    malformed: bool,
}

/// The aggregated value of a family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    /// The aggregated number.
    pub value: f64,
    /// The oldest time of the aggregated samples, as written.
    pub time: Option<f64>,
}

impl Tally {
    /// Adds a sample if it is selected.
    pub fn add(&mut self, sample: &Sample<'_>, selection: &Selection) {
        if !selection.admits(sample) {
            self.passed_over = true;
            return;
        }
        let fresh = Newest { value: sample.value, time: sample.timestamp, contradicted: false };
        let series = identity(sample);
        if let Some(known) = self.series.get_mut(&series) {
            known.take(fresh);
        } else if self.series.len() < selection.most() {
            self.series.insert(series, fresh);
        } else {
            self.too_many = true;
        }
    }

    /// Records a line that begins with the family's name and cannot be parsed.
    pub const fn malformed(&mut self) {
        self.malformed = true;
    }

    /// Whether the page has no line of this family so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.series.is_empty() && !self.passed_over && !self.malformed
    }

    /// The number of selected series.
    #[must_use]
    pub fn series(&self) -> usize {
        self.series.len()
    }

    /// Aggregates the samples.
    pub fn value(&self, selection: &Selection) -> Result<Value, NoSample> {
        if self.malformed {
            return Err(NoSample::Malformed);
        }
        if self.too_many {
            return Err(match selection.aggregation {
                Aggregation::ExactlyOne => NoSample::SeveralSeries,
                Aggregation::Sum | Aggregation::Max => NoSample::TooManySeries(MAX_SERIES),
            });
        }
        if self.series.is_empty() {
            return Err(if self.passed_over { NoSample::NoMatch } else { NoSample::NoSeries });
        }
        if self.series.values().any(|newest| newest.contradicted) {
            return Err(NoSample::Contradiction);
        }
        let values = self.series.values().map(|newest| newest.value);
        if values.clone().any(|value| !value.is_finite() || value < 0.0) {
            return Err(NoSample::NotFinite);
        }
        let value = match selection.aggregation {
            Aggregation::ExactlyOne | Aggregation::Max => values.fold(0.0, f64::max),
            Aggregation::Sum => values.sum(),
        };
        let times = self.series.values().filter_map(|newest| newest.time);
        let time = times.min_by(f64::total_cmp);
        if value.is_finite() { Ok(Value { value, time }) } else { Err(NoSample::NotFinite) }
    }
}

impl Newest {
    fn take(&mut self, other: Self) {
        let age = |sample: &Self| sample.time.unwrap_or(f64::INFINITY);
        match age(&other).total_cmp(&age(self)) {
            std::cmp::Ordering::Greater => *self = other,
            std::cmp::Ordering::Equal if other.value.total_cmp(&self.value).is_ne() => self.contradicted = true,
            _ => {}
        }
    }
}

/// A hash of the labels, independent of their order.
fn identity(sample: &Sample<'_>) -> u64 {
    let mut labels: Vec<_> = sample.labels.map(|(name, LabelValue(value))| (name, value)).collect();
    labels.sort_unstable();
    let mut hasher = DefaultHasher::new();
    labels.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::{super::exposition, *};

    fn tell(page: &str, labels: &[(&str, &str)], aggregation: Aggregation) -> Result<(f64, Option<f64>), NoSample> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let selection = Selection::new(labels, aggregation);
        let mut tally = Tally::default();
        exposition::lines(page.as_bytes()).iter().flatten().for_each(|sample| tally.add(sample, &selection));
        tally.value(&selection).map(|value| (value.value, value.time))
    }

    #[test]
    fn the_same_series_twice_is_one() {
        let one = |page| tell(page, &[], Aggregation::ExactlyOne);
        assert_eq!(one("a{b=\"c\",d=\"e\"} 5\na{d=\"e\",b=\"c\"} 5\n"), Ok((5.0, None)), "in any order of its labels");
        assert_eq!(one("a 1 1000\na 3 3000\na 2 2000\n"), Ok((3.0, Some(3000.0))), "the newest counts");
        assert_eq!(one("a 1 1000\na 2\n"), Ok((2.0, None)), "without a time it is of now");
        assert_eq!(one("a 1\na 2\n"), Err(NoSample::Contradiction));
        assert_eq!(one("a 1 7\na 2 7\na 3 8\n"), Ok((3.0, Some(8.0))), "an older contradiction does not matter");
        assert_eq!(one("a{b=\"c\"} 1\na{b=\"d\"} 1\n"), Err(NoSample::SeveralSeries));
    }

    #[test]
    fn several_series_become_one_as_the_policy_says() {
        let page =
            "a{pid=\"1\",app=\"x\"} 5 2000\na{pid=\"2\",app=\"x\"} 7 1000\na{pid=\"2\",app=\"x\"} 9 3000\na{pid=\"3\"} 100\n";
        assert_eq!(tell(page, &[], Aggregation::Sum), Ok((114.0, Some(2000.0))), "as old as the oldest");
        assert_eq!(tell(page, &[], Aggregation::Max), Ok((100.0, Some(2000.0))));
        assert_eq!(tell(page, &[("app", "x")], Aggregation::Sum), Ok((14.0, Some(2000.0))));
        assert_eq!(tell(page, &[("app", "x"), ("pid", "1")], Aggregation::ExactlyOne), Ok((5.0, Some(2000.0))));
        assert_eq!(tell(page, &[("app", "")], Aggregation::ExactlyOne), Ok((100.0, None)), "the one without the label");
        assert_eq!(tell(page, &[("app", "y")], Aggregation::Sum), Err(NoSample::NoMatch));
        assert_eq!(tell("a{b=\"x\\\"y\"} 1\n", &[("b", "x\"y")], Aggregation::ExactlyOne), Ok((1.0, None)), "without escapes");
        assert_eq!(
            tell("a{b=\"1\"} 1\na{b=\"2\"} NaN\n", &[], Aggregation::Sum),
            Err(NoSample::NotFinite),
            "never a part of the sum"
        );
        assert_eq!(tell("a{b=\"1\"} 1e308\na{b=\"2\"} 1e308\n", &[], Aggregation::Sum), Err(NoSample::NotFinite));
    }

    #[test]
    fn more_series_than_can_be_held_are_named() {
        let page = |n: usize| (0..n).map(|n| format!("a{{n=\"{n}\"}} 1\n")).collect::<Vec<_>>().concat();
        assert_eq!(tell(&page(MAX_SERIES), &[], Aggregation::Sum), Ok((4096.0, None)));
        assert_eq!(tell(&page(MAX_SERIES + 1), &[], Aggregation::Sum), Err(NoSample::TooManySeries(MAX_SERIES)));
    }
}
