//! A recorded task count: CSV with `time,node,tasks` and, if known, `pooled_share`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Deserialize;

use super::{Plant, measure};
use crate::{
    api::LimitValues,
    decide::adaptive::{
        openness,
        signal::{IdleTasks, Measure, NoSample},
    },
};

/// Why a trace cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not CSV, or a column is missing.
    #[error("the trace cannot be read: {0}; its header must be time,node,tasks and optionally pooled_share")]
    Csv(#[from] csv::Error),
    /// A cell has an invalid value.
    #[error("line {line} of the trace: {cell:?} is not {what}")]
    Cell {
        /// Line number from 1, the header included.
        line: u64,
        /// The cell's text.
        cell: String,
        /// The expected kind of value.
        what: &'static str,
    },
    /// The trace has no rows.
    #[error("the trace has no rows")]
    Empty,
    /// The trace is too long.
    #[error("the trace covers {0} days; the maximum is 366")]
    TooLong(i64),
}

#[derive(Deserialize)]
struct Row {
    time: String,
    node: String,
    #[serde(default)]
    tasks: String,
    #[serde(default)]
    pooled_share: String,
}

/// Longest trace in seconds.
const LONGEST: i64 = 366 * 86_400;

#[derive(Clone, Copy, Default)]
struct Cell {
    tasks: Option<f64>,
    share: Option<f64>,
}

/// A trace. If it has the pooled share of the tasks, tightening drains that share like a pool. Otherwise the tasks are
/// as recorded, independent of the limits.
pub struct Trace {
    rows: BTreeMap<i64, BTreeMap<usize, Cell>>,
    names: Vec<String>,
    threshold: f64,
    declared: LimitValues,
    now: Vec<Option<(i64, Cell)>>,
    /// Fraction of the pools that is left.
    left: f64,
    time: i64,
    shares: bool,
}

impl Trace {
    /// Reads a trace; all nodes have the same `threshold`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read(from: impl std::io::Read, threshold: f64, declared: &LimitValues) -> Result<Self, Error> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(from);
        let mut rows: BTreeMap<i64, Vec<(String, Cell)>> = BTreeMap::new();
        let mut names = BTreeSet::new();
        for (n, row) in reader.deserialize().enumerate() {
            let row: Row = row?;
            let line = n as u64 + 2;
            let number = |cell: &str, what| {
                if cell.is_empty() || cell.eq_ignore_ascii_case("nan") {
                    return Ok(None);
                }
                let value = cell.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0);
                value.map(Some).ok_or_else(|| Error::Cell { line, cell: cell.to_owned(), what })
            };
            let time = row.time.parse::<f64>().ok().filter(|t| t.is_finite() && t.abs() < 1e12);
            #[allow(clippy::cast_possible_truncation)] // Seconds, checked.
            let time =
                time.map(|seconds| seconds as i64).or_else(|| row.time.parse::<Timestamp>().ok().map(Timestamp::as_second));
            let time = time.ok_or(Error::Cell { line, cell: row.time, what: "a number of seconds or an RFC 3339 time" })?;
            let share = number(&row.pooled_share, "a share from 0 to 1")?;
            if share.is_some_and(|share| share > 1.0) {
                return Err(Error::Cell { line, cell: row.pooled_share, what: "a share from 0 to 1" });
            }
            let cell = Cell { tasks: number(&row.tasks, "a number of tasks")?, share };
            names.insert(row.node.clone());
            rows.entry(time).or_default().push((row.node, cell));
        }
        let (Some(first), Some(last)) = (rows.keys().next().copied(), rows.keys().next_back().copied()) else {
            return Err(Error::Empty);
        };
        if last - first > LONGEST {
            return Err(Error::TooLong((last - first) / 86_400));
        }
        let names: Vec<String> = names.into_iter().collect();
        let index = |node: &str| names.iter().position(|name| name == node).unwrap_or(0);
        let shares = rows.values().flatten().any(|(_, cell)| cell.share.is_some());
        let rows = rows
            .into_iter()
            .map(|(time, cells)| (time - first, cells.into_iter().map(|(node, cell)| (index(&node), cell)).collect()))
            .collect();
        Ok(Self { rows, now: vec![None; names.len()], names, threshold, declared: declared.clone(), left: 1.0, time: -1, shares })
    }

    /// Length of the trace in seconds.
    #[must_use]
    pub fn seconds(&self) -> i64 {
        self.rows.keys().next_back().map_or(0, |last| last + 1)
    }

    /// Whether the trace has the pooled share of the tasks.
    #[must_use]
    pub const fn has_shares(&self) -> bool {
        self.shares
    }

    fn tasks(&self, cell: Cell) -> Option<f64> {
        let share = cell.share.unwrap_or(0.0);
        cell.tasks.map(|tasks| tasks * (1.0 - share * (1.0 - self.left)))
    }
}

impl Plant for Trace {
    fn nodes(&self) -> usize {
        self.names.len()
    }

    fn name(&self, node: usize) -> String {
        self.names.get(node).cloned().unwrap_or_default()
    }

    fn step(&mut self, time: i64, passed: i64, settings: &LimitValues) {
        for (at, cells) in self.rows.range(self.time + 1..=time) {
            for (node, cell) in cells {
                self.now[*node] = Some((*at, *cell));
            }
        }
        self.time = time;
        let longest = |settings: &LimitValues| openness::longest_idle(settings, settings, 100).as_secs_f64();
        let full = longest(&self.declared);
        if full > 0.0 {
            #[allow(clippy::cast_precision_loss)] // Seconds.
            let drain = (-(passed as f64) / longest(settings).max(1.0)).exp();
            let wanted = (longest(settings) / full).min(1.0);
            self.left = (self.left - wanted).mul_add(drain, wanted);
        }
    }

    fn pressure(&self) -> f64 {
        self.now.iter().flatten().filter_map(|(_, cell)| self.tasks(*cell)).fold(0.0, f64::max) / self.threshold
    }

    fn sample(&mut self, node: usize) -> Result<Measure, NoSample> {
        match self.now[node] {
            // A row is valid for 90 s, so that a slightly late scrape is no gap.
            Some((at, cell)) if self.time - at <= 90 => {
                let tasks = self.tasks(cell).ok_or(NoSample::NoSeries)?;
                let idle = cell.tasks.zip(cell.share).map(|(all, share)| IdleTasks::Counted(all * share * self.left));
                Ok(Measure { idle: idle.unwrap_or_default(), ..measure(tasks, self.threshold) })
            }
            Some(_) => Err(NoSample::Stale),
            None => Err(NoSample::Unasked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Trace, String> {
        Trace::read(text.as_bytes(), 100.0, &LimitValues::new()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_cell_is_missing_and_never_zero() {
        let mut trace = read("time,node,tasks\n0,a,50\n10,a,\n20,a,NaN\n").expect("a trace");
        for (time, seen) in
            [(0, Ok(0.5)), (10, Err(NoSample::NoSeries)), (20, Err(NoSample::NoSeries)), (120, Err(NoSample::Stale))]
        {
            trace.step(time, 10, &LimitValues::new());
            assert_eq!(trace.sample(0).map(|m| m.pressure), seen, "at {time} s");
        }
    }

    #[test]
    fn times_may_be_dates() {
        let trace = read("time,node,tasks\n2026-01-01T00:00:00Z,a,50\n2026-01-01T00:01:00Z,b,50\n").expect("a trace");
        assert_eq!((trace.seconds(), trace.nodes()), (61, 2));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, sentence) in [
            ("time,node,tasks\n", "the trace has no rows"),
            ("time,node,tasks\n0,a,-3\n", "line 2 of the trace: \"-3\" is not a number of tasks"),
            (
                "time,node,tasks\n0,a,3\nsoon,a,3\n",
                "line 3 of the trace: \"soon\" is not a number of seconds or an RFC 3339 time",
            ),
            ("time,node,tasks,pooled_share\n0,a,3,7\n", "line 2 of the trace: \"7\" is not a share from 0 to 1"),
            ("time,node,tasks\n0,a,3\n99999999,a,3\n", "the trace covers 1157 days; the maximum is 366"),
        ] {
            assert_eq!(read(text).err().as_deref(), Some(sentence));
        }
        assert!(read("when,node\n1,a\n").err().expect("an error").contains("its header must be time,node,tasks"));
    }
}
