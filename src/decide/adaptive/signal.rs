//! From samples to utilization: how many tasks the nodes have relative to their threshold. A missing sample never
//! justifies a change.

use std::{collections::BTreeMap, sync::Arc};

use super::guard::CRITICAL;
use crate::{
    api::{conditions::Reason, guarded::ConnectionRate, wording::of_nodes},
    decide::report::condition::count,
};

/// The tasks of a node that are idle connections, from its own gauge.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum IdleTasks {
    /// The policy names no such gauge.
    #[default]
    NotRequested,
    /// The page does not have the gauge, or not as one number.
    Missing,
    /// The value of the gauge.
    Counted(f64),
}

/// A counter of a node, since its process started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Counter {
    /// The policy names no such counter.
    #[default]
    NotRequested,
    /// The page does not have the counter, or not as one number.
    Missing,
    /// The sum of the counter's series.
    Counted {
        /// The sum.
        value: f64,
        /// The number of series.
        series: usize,
    },
}

impl Counter {
    /// The increase since an earlier sample; `None` where it is not known. A sum that fell, or that has other series, was
    /// reset in part or as a whole, and so was its process.
    fn since(self, old: Self) -> Option<f64> {
        match (old, self) {
            (Self::Counted { value: old, series: then }, Self::Counted { value, series }) if series == then && value >= old => {
                Some(value - old)
            }
            _ => None,
        }
    }
}

/// A sample of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measure {
    /// The task count; `None` where the source only says whether there are too many.
    pub tasks: Option<f64>,
    /// The node's threshold; `None` likewise.
    pub threshold: Option<f64>,
    /// A lower bound of the tasks, where the source gives no count: an alert that begins at so many tasks per CPU,
    /// times the CPUs.
    pub at_least: Option<f64>,
    /// Utilization: tasks divided by the threshold; 1 is exactly at it.
    pub pressure: f64,
    /// Whether the node itself reports its task count as critical.
    pub red: bool,
    /// How many of the tasks are idle connections.
    pub idle: IdleTasks,
    /// New connections.
    pub connections: Counter,
    /// Requests.
    pub requests: Counter,
    /// Open files, if reported: no pool can hold more connections.
    pub open_files: Option<f64>,
    /// How many files the process may have open, if reported.
    pub most_files: Option<f64>,
    /// When the process started (Unix seconds), if reported.
    pub started: Option<f64>,
    /// How long the process has run (seconds), if reported instead.
    pub uptime: Option<f64>,
    /// The sample's own timestamp (Unix milliseconds), where the page has one.
    pub time: Option<i64>,
}

/// Why there is no sample. The message follows the node's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, strum::EnumIter, thiserror::Error)]
pub enum NoSample {
    /// The node has not been queried yet.
    #[error("has not been queried yet")]
    Unasked,
    /// The node's address is neither listed nor that of a pod of the namespace.
    #[error(
        "was not queried: its address is not in --allow-endpoints, it is neither the address nor the host port of a pod in this \
             namespace, and the node names no such pod; add the address to --allow-endpoints"
    )]
    NotPermitted,
    /// No connection.
    #[error("cannot be reached: connection refused or no route")]
    Unreachable,
    /// No complete answer in time.
    #[error("did not send a complete answer in time")]
    TimedOut,
    /// The connection broke, or the answer is not HTTP.
    #[error("closed the connection before the end of its answer, or does not speak HTTP")]
    Broken,
    /// The certificate is not trusted, or the given CA is not valid.
    #[error("has a certificate that is not signed by a trusted CA")]
    Certificate,
    /// All connections, or all of the namespace's memory, were in use.
    #[error("was not queried: all connections or all memory of this namespace were in use")]
    Busy,
    /// The answer has more than this many MiB.
    #[error("answers with more than {0} MiB")]
    TooLarge(usize),
    /// The answer has a content coding that was not requested.
    #[error("answers with a Content-Encoding that was not requested; turn off compression for this path")]
    Encoded,
    /// An HTTP status that is not 200.
    #[error("answers with HTTP status {0} instead of metrics")]
    Status(u16),
    /// A redirect, and the path that it leads to, if that can be shown.
    #[error(
        "answers with HTTP status {0}, a redirect{to}, which is not followed; correct the path",
        to = .1.as_ref().map(|path| format!(" to {path}")).unwrap_or_default()
    )]
    Redirect(u16, Option<Arc<str>>),
    /// The answer is HTML.
    #[error("answers with a web page (text/html) instead of metrics; correct the path or the port")]
    WebPage,
    /// The page is not complete.
    #[error("sent an incomplete page")]
    CutOff,
    /// HTTP status 401 or 403.
    #[error("refuses access (HTTP status {0})")]
    Unauthorized(u16),
    /// The page or the query has no such series.
    #[error("does not have the requested series")]
    NoSeries,
    /// The page has the series, but none with the requested labels.
    #[error("has the series, but not with the labels in spec.adaptive.signal.matchLabels")]
    NoMatch,
    /// The line with the series cannot be read.
    #[error("has the series in a line that cannot be parsed")]
    Malformed,
    /// There are several series, and nothing says which one counts.
    #[error("has several series; set spec.adaptive.signal.matchLabels or spec.adaptive.signal.aggregation")]
    SeveralSeries,
    /// There are more series than this.
    #[error("has more than {0} series; narrow spec.adaptive.signal.matchLabels")]
    TooManySeries(usize),
    /// The page has two values of one series at the same time.
    #[error("has two values for the same series")]
    Contradiction,
    /// The value is NaN, infinite or negative.
    #[error("answers with a value that is NaN, infinite or negative")]
    NotFinite,
    /// The series has another type, such as counter, which says how many there have been, not how many there are.
    #[error("has the series as a {0}; name a gauge")]
    NotGauge(&'static str),
    /// The threshold is per CPU, and the node does not report its CPUs.
    #[error("does not report its number of CPUs; set spec.adaptive.signal.threshold.value")]
    NoCpus,
    /// Prometheus refused the query.
    #[error("refused the query (HTTP status {0})")]
    QueryFailed(u16),
    /// Prometheus reports an error instead of a result.
    #[error("answers with an error instead of a result")]
    QueryError,
    /// Prometheus did not run the query: its answer has this HTTP status.
    #[error("answers the query with HTTP status {0}")]
    QueryStatus(u16),
    /// The answer is not one of Prometheus' API.
    #[error("does not answer with a query result; correct the endpoint or pathPrefix")]
    NotAnAnswer,
    /// The query's result is not a number.
    #[error("answers with a {0}; the query must return one number")]
    NotANumber(&'static str),
    /// The query's result has several series.
    #[error("answers with several series; aggregate them in the query")]
    SeveralResults,
    /// The last answer is too old.
    #[error("has not answered for too long")]
    Stale,
    /// The answer's own timestamp is too old, or too far ahead.
    #[error("answers with a sample whose timestamp is too old or too far in the future")]
    Outdated,
}

impl NoSample {
    /// The reason of MetricsAvailable=False where all nodes have this gap.
    const fn reason(&self) -> Reason {
        match self {
            Self::Unauthorized(_) => Reason::Unauthorized,
            Self::NoSeries
            | Self::NoMatch
            | Self::Malformed
            | Self::NotGauge(_)
            | Self::NoCpus
            | Self::NotFinite
            | Self::Contradiction => Reason::NoSeries,
            Self::SeveralSeries | Self::TooManySeries(_) => Reason::SeveralSeries,
            Self::QueryFailed(_)
            | Self::QueryError
            | Self::QueryStatus(_)
            | Self::NotAnAnswer
            | Self::NotANumber(_)
            | Self::SeveralResults => Reason::QueryFailed,
            Self::Stale | Self::Outdated => Reason::Stale,
            Self::Unasked => Reason::Pending,
            _ => Reason::BelowQuorum,
        }
    }

    /// Whether there was neither a page nor a result, which may be temporary. An address that may not be queried is
    /// different: it may belong to anyone by now, so an earlier sample from it no longer counts.
    const fn is_silence(&self) -> bool {
        match self.reason() {
            // No page.
            Reason::BelowQuorum => !matches!(self, Self::NotPermitted),
            // No result.
            Reason::QueryFailed => matches!(self, Self::QueryStatus(_) | Self::QueryError | Self::NotAnAnswer),
            _ => false,
        }
    }
}

/// What is known of one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSample {
    /// The last good sample and when it was taken (Unix milliseconds).
    pub last: Option<(i64, Measure)>,
    /// New connections between the last two good samples; `None` where that is not known.
    pub rate: Option<ConnectionRate>,
    /// Why the last query had no sample, if it had none.
    pub gap: Option<NoSample>,
}

/// The shortest time between two samples from which a rate is computed (milliseconds): one more connection would change
/// that of a shorter time too much.
const MIN_SPAN: i64 = 500;
/// Start times of the same process can differ by this many seconds, because exporters compute them.
const SAME_START: f64 = 1.0;

/// New connections and requests between two samples of the same process; `None` where that is not known.
fn increase(old: &Measure, new: &Measure) -> Option<(f64, Option<f64>)> {
    let has_other_start = old.started.zip(new.started).is_some_and(|(old, new)| (old - new).abs() > SAME_START);
    let is_younger = old.uptime.zip(new.uptime).is_some_and(|(old, new)| new < old);
    if has_other_start || is_younger {
        return None;
    }
    let requests = match new.requests {
        Counter::NotRequested => None,
        Counter::Missing | Counter::Counted { .. } => Some(new.requests.since(old.requests)?),
    };
    Some((new.connections.since(old.connections)?, requests))
}

impl NodeSample {
    /// Takes over a good sample.
    pub fn record(&mut self, taken: i64, measure: Measure) {
        let time = |taken: i64, measure: &Measure| measure.time.unwrap_or(taken);
        self.rate = self.last.and_then(|(before, old)| {
            let (connections, requests) = increase(&old, &measure)?;
            let span = time(taken, &measure) - time(before, &old);
            #[allow(clippy::cast_precision_loss)] // Milliseconds.
            let each_second = |count: f64| count * 1000.0 / span as f64;
            match span {
                ..0 => None,
                0..MIN_SPAN => self.rate,
                _ => Some(ConnectionRate {
                    connections: each_second(connections),
                    requests: requests.map(each_second),
                    nodes: 1.0,
                }),
            }
        });
        (self.last, self.gap) = (Some((taken, measure)), None);
    }

    /// The sample, if it counts. A missing answer may be temporary, so a good sample counts until it is too old. An
    /// answer without a sample says that there is none.
    fn valid(&self, now: i64, most_age: i64) -> Result<Measure, NoSample> {
        let recent = |time: i64| (0..=most_age).contains(&(now - time));
        match (self.last, &self.gap) {
            (Some((taken, measure)), gap) if gap.as_ref().is_none_or(NoSample::is_silence) && recent(taken) => match measure.time
            {
                // A clock that is slightly ahead is no reason to refuse. One that is far ahead says nothing about the
                // sample's age.
                Some(time) if now.saturating_sub(time).saturating_abs() > most_age => Err(NoSample::Outdated),
                _ => Ok(measure),
            },
            (_, Some(gap)) => Err(gap.clone()),
            (Some(_), None) => Err(NoSample::Stale),
            (None, None) => Err(NoSample::Unasked),
        }
    }
}

/// All nodes combined.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Utilization for tightening: a missing node counts as empty.
    pub up: f64,
    /// Utilization for relaxing: a missing node counts as at its threshold at least.
    pub down: f64,
    /// Nodes with a valid sample.
    pub fresh: u32,
    /// The number of nodes, by the target's own membership.
    pub expected: u32,
    /// Whether a node reports itself as critical.
    pub red: bool,
    /// Nodes at or over their threshold.
    pub over: u32,
    /// Names of the nodes at or over twice their threshold.
    pub twice: Vec<String>,
    /// The highest task count of a node.
    pub max: Option<f64>,
    /// Tasks of the node at the percentile.
    pub percentile: Option<f64>,
    /// The threshold of that node.
    pub threshold: Option<f64>,
    /// The node with the highest utilization.
    pub node: String,
    /// The share of idle connections in the tasks of the nodes that are over the threshold, 0 to 1; `None` where one of
    /// them does not report it.
    pub idle_share: Option<f64>,
    /// Tasks of all valid nodes that are idle connections; `None` where one of them does not report it.
    pub idle_tasks: Option<f64>,
    /// A node that does not report its idle connections although the policy names a gauge for them.
    pub idle_missing: Option<String>,
    /// New connections of all valid nodes for which their frequency is known; `None` where it is known of fewer than half of
    /// the nodes.
    pub rate: Option<ConnectionRate>,
    /// A node that does not report its new connections although the policy names a counter for them.
    pub connections_missing: Option<String>,
    /// A node that does not report its requests although the policy names a counter for them.
    pub requests_missing: Option<String>,
    /// An upper bound of the pooled share of the tasks, from the open files of the nodes that are over the threshold.
    pub files_share: Option<f64>,
    /// The nodes that are over the threshold, or the worst one if none is, with a lower bound of the tasks of each;
    /// empty where one of them reports none.
    pub tasks_over_threshold: Vec<(String, f64)>,
    /// The highest use of file descriptors, in percent of the limit, and its node.
    pub files: Option<(u32, String)>,
    /// The uptime of the youngest process (milliseconds).
    pub youngest: Option<i64>,
    /// The mean utilization of the valid nodes, for comparison at equal uptime.
    pub mean: f64,
}

impl Reading {
    /// A node that lacks a counter, and which counter.
    #[must_use]
    pub fn counter_missing(&self) -> Option<(&str, &'static str)> {
        let connections = self.connections_missing.as_deref().map(|node| (node, "new connections"));
        connections.or_else(|| Some((self.requests_missing.as_deref()?, "requests")))
    }
}

#[cfg(test)]
impl Reading {
    /// One node at a utilization, with nothing else known.
    #[must_use]
    pub fn of(pressure: f64) -> Self {
        Self {
            up: pressure,
            down: pressure,
            fresh: 1,
            expected: 1,
            red: false,
            over: 0,
            twice: Vec::new(),
            max: None,
            percentile: None,
            threshold: None,
            node: "n".into(),
            idle_share: None,
            idle_tasks: None,
            idle_missing: None,
            rate: None,
            connections_missing: None,
            requests_missing: None,
            files_share: None,
            tasks_over_threshold: Vec::new(),
            files: None,
            youngest: None,
            mean: pressure,
        }
    }
}

/// The combined samples.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // There is one at a time.
pub enum Signal {
    /// Enough samples to decide.
    Fresh(Reading),
    /// Too few samples, because a round is not complete: the first one after a start, or after nodes were added.
    Unasked {
        /// Which node is not asked yet.
        message: String,
    },
    /// Too few samples.
    Missing {
        /// The reason of `MetricsAvailable`.
        reason: Reason,
        /// What happened to which node.
        message: String,
    },
}

impl Signal {
    /// The reading, if there are enough samples.
    #[must_use]
    pub const fn reading(&self) -> Option<&Reading> {
        match self {
            Self::Fresh(reading) => Some(reading),
            Self::Unasked { .. } | Self::Missing { .. } => None,
        }
    }
}

/// Tasks that one connection can cost on one node: a Go client connection has two goroutines.
const TASKS_PER_CONNECTION: f64 = 2.0;

/// How old samples and processes are (milliseconds).
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// A sample that is older does not count.
    pub most: i64,
    /// A process that is younger has no frequency of new connections: all of its connections are new.
    pub young: i64,
}

/// Combines the samples of the expected nodes. `percentile` is by nearest rank; the highest counts where there are
/// three or fewer nodes. `now` is in milliseconds.
#[must_use]
pub fn read<'a>(
    samples: &BTreeMap<String, NodeSample>,
    expected: impl IntoIterator<Item = &'a str>,
    percentile: u32,
    ages: Ages,
    now: i64,
) -> Signal {
    let none = NodeSample::default();
    let mut rates: Vec<ConnectionRate> = Vec::new();
    let mut valid: Vec<(&str, Measure)> = Vec::new();
    let mut youngest: Option<i64> = None;
    let mut gaps: Vec<(&str, NoSample, f64)> = Vec::new();
    for node in expected {
        let sample = samples.get(node).unwrap_or(&none);
        match sample.valid(now, ages.most) {
            Ok(measure) => {
                let taken = sample.last.map_or(now, |(taken, _)| measure.time.map_or(taken, |time| time.min(taken)));
                #[allow(clippy::cast_possible_truncation)] // Seconds since 1970, and less.
                let age = match (measure.started, measure.uptime) {
                    (Some(started), _) => Some(now - (started * 1000.0) as i64),
                    (None, Some(uptime)) => Some(((uptime * 1000.0) as i64).saturating_add(now - taken)),
                    (None, None) => None,
                };
                rates.extend(sample.rate.filter(|_| age.is_none_or(|age| age >= ages.young)));
                youngest = [youngest, age.map(|age| age.max(0))].into_iter().flatten().min();
                valid.push((node, measure));
            }
            Err(gap) => gaps.push((node, gap, sample.last.map_or(1.0, |(_, measure)| measure.pressure.max(1.0)))),
        }
    }
    let total = valid.len() + gaps.len();
    if total == 0 || valid.len() * 2 < total {
        return missing(&gaps, valid.len(), total);
    }
    let mut up: Vec<f64> = valid.iter().map(|(_, m)| m.pressure).chain(gaps.iter().map(|_| 0.0)).collect();
    let mut down: Vec<f64> = valid.iter().map(|(_, m)| m.pressure).chain(gaps.iter().map(|(_, _, known)| *known)).collect();
    up.sort_unstable_by(f64::total_cmp);
    down.sort_unstable_by(f64::total_cmp);
    let rank = rank(percentile, total);
    let (up, down) = (up[rank], down[rank]);
    // The node at the percentile is the one whose utilization was taken. There is none only where more nodes are
    // missing than the rank allows.
    let counts = valid.iter().find(|(_, m)| m.pressure.total_cmp(&up).is_eq()).map(|(_, m)| *m);
    let worst = valid.iter().max_by(|a, b| a.1.pressure.total_cmp(&b.1.pressure).then_with(|| b.0.cmp(a.0)));
    let crowded = || valid.iter().filter(|(_, m)| m.pressure >= up.min(1.0));
    let crowd = crowded().map(|(node, m)| Some(((*node).to_owned(), m.tasks.or(m.at_least)?)));
    let sums = crowded()
        .filter_map(|(_, m)| Some((m.open_files?, m.tasks?)))
        .fold((0.0, 0.0), |(f, t), (files, tasks)| (f + files, t + tasks));
    #[allow(clippy::cast_precision_loss)] // Nodes.
    Signal::Fresh(Reading {
        idle_share: idle_share(crowded().map(|(_, m)| m)),
        idle_tasks: valid.iter().map(|(_, m)| if let IdleTasks::Counted(tasks) = m.idle { Some(tasks) } else { None }).sum(),
        idle_missing: valid.iter().find(|(_, m)| m.idle == IdleTasks::Missing).map(|(node, _)| (*node).to_owned()),
        rate: (rates.len() * 2 >= total).then(|| sum(&rates)).flatten(),
        connections_missing: valid.iter().find(|(_, m)| m.connections == Counter::Missing).map(|(node, _)| (*node).to_owned()),
        requests_missing: valid.iter().find(|(_, m)| m.requests == Counter::Missing).map(|(node, _)| (*node).to_owned()),
        up,
        down,
        fresh: count(valid.len()),
        expected: count(total),
        red: valid.iter().any(|(_, m)| m.red),
        over: count(valid.iter().filter(|(_, m)| m.pressure >= 1.0).count()),
        twice: valid.iter().filter(|(_, m)| m.pressure >= CRITICAL).map(|(node, _)| (*node).to_owned()).collect(),
        max: valid.iter().filter_map(|(_, m)| m.tasks).max_by(f64::total_cmp),
        percentile: counts.and_then(|m| m.tasks),
        threshold: counts.and_then(|m| m.threshold),
        node: worst.map(|(node, _)| (*node).to_owned()).unwrap_or_default(),
        files_share: (sums.1 > 0.0).then(|| (TASKS_PER_CONNECTION * sums.0 / sums.1).min(1.0)),
        tasks_over_threshold: crowd.collect::<Option<_>>().unwrap_or_default(),
        files: fullest(&valid),
        youngest,
        mean: valid.iter().map(|(_, m)| m.pressure).sum::<f64>() / valid.len() as f64,
    })
}

/// The sum of the rates of several nodes; `None` where there are none.
fn sum(rates: &[ConnectionRate]) -> Option<ConnectionRate> {
    rates.iter().copied().reduce(|all, one| ConnectionRate {
        connections: all.connections + one.connections,
        requests: all.requests.zip(one.requests).map(|(all, one)| all + one),
        nodes: all.nodes + one.nodes,
    })
}

/// The share of idle connections in the tasks, if each of the nodes reports them.
fn idle_share<'a>(mut nodes: impl Iterator<Item = &'a Measure>) -> Option<f64> {
    let (idle, tasks) = nodes.try_fold((0.0, 0.0), |(idle, tasks), measure| match (measure.idle, measure.tasks) {
        (IdleTasks::Counted(of_them), Some(all)) => Some((idle + of_them.min(all), tasks + all)),
        _ => None,
    })?;
    (tasks > 0.0).then(|| idle / tasks)
}

/// The node with the highest use of file descriptors, in percent of the limit.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped.
fn fullest(valid: &[(&str, Measure)]) -> Option<(u32, String)> {
    let used = |m: &Measure| Some(((m.open_files? / m.most_files? * 100.0).clamp(0.0, 100.0)) as u32);
    let all = valid.iter().filter_map(|(node, m)| Some((used(m)?, *node)));
    all.max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(a.1))).map(|(percent, node)| (percent, node.to_owned()))
}

/// Nearest rank, counted from 0.
fn rank(percentile: u32, total: usize) -> usize {
    if total <= 3 {
        return total - 1;
    }
    (percentile as usize * total).div_ceil(100).clamp(1, total) - 1
}

fn missing(gaps: &[(&str, NoSample, f64)], valid: usize, total: usize) -> Signal {
    let Some((node, gap, _)) = gaps.first() else {
        return Signal::Missing { reason: Reason::Pending, message: "No node with a task count is known yet".into() };
    };
    let counted = of_nodes(valid, total);
    if let Some((node, gap, _)) = gaps.iter().find(|(_, gap, _)| *gap == NoSample::Unasked) {
        return Signal::Unasked { message: format!("The tasks of {counted} are counted; {node} {gap}") };
    }
    let same = valid == 0 && gaps.iter().all(|(_, other, _)| other.reason() == gap.reason());
    let reason = if same { gap.reason() } else { Reason::BelowQuorum };
    Signal::Missing { reason, message: format!("The tasks of {counted} are counted; {node} {gap}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGES: Ages = Ages { most: 90_000, young: 0 };

    fn sample(pressure: f64) -> NodeSample {
        NodeSample {
            last: Some((0, Measure { pressure, tasks: Some(pressure * 100.0), threshold: Some(100.0), ..Measure::default() })),
            ..NodeSample::default()
        }
    }

    fn nodes(samples: &[(&str, NodeSample)]) -> BTreeMap<String, NodeSample> {
        samples.iter().map(|(name, sample)| ((*name).to_owned(), sample.clone())).collect()
    }

    fn fresh(samples: &[(&str, NodeSample)], percentile: u32, now: i64) -> Reading {
        let all = nodes(samples);
        match read(&all, samples.iter().map(|(name, _)| *name), percentile, AGES, now) {
            Signal::Fresh(reading) => reading,
            Signal::Unasked { message } | Signal::Missing { message, .. } => panic!("missing: {message}"),
        }
    }

    fn gap(samples: &[(&str, NodeSample)], now: i64) -> (Reason, String) {
        let all = nodes(samples);
        match read(&all, samples.iter().map(|(name, _)| *name), 95, AGES, now) {
            Signal::Unasked { message } => (Reason::Pending, message),
            Signal::Missing { reason, message } => (reason, message),
            Signal::Fresh(reading) => panic!("fresh: {reading:?}"),
        }
    }

    #[test]
    fn a_missing_node_is_empty_to_tightening_and_full_to_relaxing() {
        let lost = NodeSample { gap: Some(NoSample::NoSeries), ..sample(1.7) };
        let reading = fresh(&[("a", sample(0.4)), ("b", sample(0.5)), ("c", lost)], 95, 0);
        assert!((reading.up - 0.5).abs() < 1e-9 && (reading.down - 1.7).abs() < 1e-9, "{reading:?}");
        let unknown = NodeSample { gap: Some(NoSample::Unreachable), ..NodeSample::default() };
        let reading = fresh(&[("a", sample(0.4)), ("b", sample(0.5)), ("c", unknown)], 95, 0);
        assert!((reading.up - 0.5).abs() < 1e-9 && (reading.down - 1.0).abs() < 1e-9, "{reading:?}");
    }

    #[test]
    fn the_rank_is_the_nearest_and_the_highest_among_few() {
        assert_eq!(
            [
                rank(95, 1),
                rank(1, 3),
                rank(95, 4),
                rank(95, 20),
                rank(50, 20),
                rank(1, 20),
                rank(100, 7),
                rank(0, 7),
                rank(200, 7)
            ],
            [0, 2, 3, 18, 9, 0, 6, 0, 6]
        );
    }

    #[test]
    fn a_sample_ages_from_when_it_was_taken_and_a_process_from_when_it_started() {
        let at = |measure| NodeSample { last: Some((5_000_000, measure)), ..NodeSample::default() };
        let ran = |measure, now| fresh(&[("a", at(measure))], 95, now).youngest;
        let full = Measure { pressure: 1.0, ..Measure::default() };
        assert_eq!(ran(full, 5_090_000), None, "no uptime is reported");
        assert_eq!(ran(Measure { started: Some(4_900.0), uptime: Some(7.0), ..full }, 5_060_000), Some(160_000));
        assert_eq!(ran(Measure { uptime: Some(30.0), ..full }, 5_060_000), Some(90_000), "plus the age of the sample");
        assert_eq!(ran(Measure { started: Some(6_000.0), ..full }, 5_060_000), Some(0), "a clock ahead of ours");
        let (young, old) = (Measure { uptime: Some(2.0), ..full }, Measure { uptime: Some(900.0), ..full });
        assert_eq!(fresh(&[("a", at(old)), ("b", at(young))], 95, 5_000_000).youngest, Some(2_000));
        assert_eq!(gap(&[("a", at(full))], 5_090_001).0, Reason::Stale);
    }

    #[test]
    fn half_of_the_nodes_are_a_quorum_and_fewer_are_not() {
        let lost = NodeSample { gap: Some(NoSample::Unreachable), ..NodeSample::default() };
        assert_eq!(fresh(&[("a", sample(0.4)), ("b", lost.clone())], 95, 0).fresh, 1);
        let (reason, message) = gap(&[("a", sample(0.4)), ("b", lost.clone()), ("c", lost)], 0);
        assert_eq!(
            (reason, message.as_str()),
            (Reason::BelowQuorum, "The tasks of 1 of 3 nodes are counted; b cannot be reached: connection refused or no route")
        );
    }

    #[test]
    fn an_old_sample_is_none_and_one_from_the_future_neither() {
        assert!((fresh(&[("a", sample(0.4))], 95, 90_000).up - 0.4).abs() < 1e-9);
        assert_eq!(gap(&[("a", sample(0.4))], 90_001).0, Reason::Stale);
        assert_eq!(gap(&[("a", sample(0.4))], -1).0, Reason::Stale);
    }

    #[test]
    fn each_gap_has_its_reason() {
        for (kind, reason) in [
            (NoSample::Unauthorized(401), Reason::Unauthorized),
            (NoSample::NoSeries, Reason::NoSeries),
            (NoSample::NotGauge("counter"), Reason::NoSeries),
            (NoSample::NoCpus, Reason::NoSeries),
            (NoSample::NotFinite, Reason::NoSeries),
            (NoSample::SeveralSeries, Reason::SeveralSeries),
            (NoSample::SeveralResults, Reason::QueryFailed),
            (NoSample::QueryFailed(400), Reason::QueryFailed),
            (NoSample::QueryStatus(503), Reason::QueryFailed),
            (NoSample::Stale, Reason::Stale),
            (NoSample::Outdated, Reason::Stale),
            (NoSample::Unasked, Reason::Pending),
            (NoSample::Unreachable, Reason::BelowQuorum),
            (NoSample::Status(404), Reason::BelowQuorum),
            (NoSample::Redirect(307, Some("/metrics/".into())), Reason::BelowQuorum),
        ] {
            let sentence = kind.to_string();
            let (seen, message) = gap(&[("a", NodeSample { gap: Some(kind), ..NodeSample::default() })], 0);
            assert_eq!(seen, reason);
            assert!(message.ends_with(&*sentence), "{message}");
        }
        assert_eq!(gap(&[], 0).1, "No node with a task count is known yet");
    }

    #[test]
    fn a_good_sample_outlives_a_moments_silence_but_not_an_answer_without_one() {
        let silent = NodeSample { gap: Some(NoSample::Unreachable), ..sample(0.4) };
        assert!((fresh(&[("a", silent)], 95, 60_000).up - 0.4).abs() < 1e-9);
        assert_eq!(gap(&[("a", NodeSample { gap: Some(NoSample::NotFinite), ..sample(0.4) })], 1).0, Reason::NoSeries);
    }

    #[test]
    fn a_sample_with_a_time_of_its_own_ages_from_that() {
        let at = |time| {
            let last = sample(0.4).last.map(|(_, measure)| (1_000_000, Measure { time: Some(time), ..measure }));
            NodeSample { last, ..NodeSample::default() }
        };
        let seen = |time| gap(&[("a", at(time))], 1_000_000);
        assert_eq!(fresh(&[("a", at(910_000))], 95, 1_000_000).fresh, 1);
        assert_eq!(fresh(&[("a", at(1_000_200))], 95, 1_000_000).fresh, 1, "a clock a little ahead of ours");
        assert_eq!(seen(909_999).0, Reason::Stale);
        assert!(seen(909_999).1.ends_with("a sample whose timestamp is too old or too far in the future"), "{}", seen(909_999).1);
        assert_eq!(seen(1_090_001).0, Reason::Stale);
        for time in [i64::MIN, i64::MAX] {
            assert_eq!(seen(time).0, Reason::Stale);
        }
    }

    #[test]
    fn open_files_bound_what_pools_can_explain() {
        let mut full = sample(2.0);
        full.last = full.last.map(|(t, m)| (t, Measure { open_files: Some(10.0), ..m }));
        assert_eq!(fresh(&[("a", full), ("b", sample(0.1))], 95, 0).files_share, Some(0.1));
    }

    #[test]
    fn a_share_is_known_where_every_node_that_is_over_says_how_many_connections_idle() {
        let with = |pressure: f64, idle| {
            let base = sample(pressure);
            NodeSample { last: base.last.map(|(t, m)| (t, Measure { idle, ..m })), ..base }
        };
        let share = |samples: &[(&str, NodeSample)]| {
            let reading = fresh(samples, 95, 0);
            (reading.idle_share, reading.idle_missing)
        };
        let counted = IdleTasks::Counted;
        assert_eq!(share(&[("a", with(2.0, counted(50.0))), ("b", with(0.1, counted(10.0)))]), (Some(0.25), None));
        assert_eq!(share(&[("a", with(2.0, counted(900.0)))]), (Some(1.0), None), "no more than there are tasks");
        assert_eq!(share(&[("a", with(2.0, counted(0.0)))]), (Some(0.0), None), "zero is a number too");
        let missing = share(&[("a", with(2.0, counted(50.0))), ("b", with(2.0, IdleTasks::Missing))]);
        assert_eq!(missing, (None, Some("b".into())), "a missing gauge is not zero");
        assert_eq!(share(&[("a", with(2.0, IdleTasks::NotRequested))]), (None, None));
        assert_eq!(share(&[("a", with(0.0, counted(0.0)))]), (None, None), "without tasks there is no share");
    }

    #[test]
    fn one_cause_is_named_only_where_it_is_everybodys() {
        let refused = NodeSample { gap: Some(NoSample::Unauthorized(401)), ..NodeSample::default() };
        let silent = NodeSample { gap: Some(NoSample::NoSeries), ..NodeSample::default() };
        assert_eq!(gap(&[("a", refused.clone()), ("b", refused.clone())], 0).0, Reason::Unauthorized);
        assert_eq!(gap(&[("a", refused.clone()), ("b", silent)], 0).0, Reason::BelowQuorum);
        assert_eq!(
            gap(&[("a", sample(0.1)), ("b", refused.clone()), ("c", refused)], 0).0,
            Reason::BelowQuorum,
            "one of them counts"
        );
    }

    #[test]
    fn nodes_are_counted_and_their_mean_is_taken() {
        let all = [("a", sample(1.0)), ("b", sample(1.0)), ("c", sample(0.1)), ("d", sample(0.3))];
        let reading = fresh(&all, 95, 0);
        assert_eq!((reading.over, reading.fresh, reading.expected), (2, 4, 4));
        assert!((reading.mean - 0.6).abs() < 1e-9, "{}", reading.mean);
    }

    #[test]
    fn nothing_is_made_of_tasks_that_are_not_counted() {
        let with = |tasks| NodeSample {
            last: sample(2.0).last.map(|(t, m)| (t, Measure { tasks, open_files: Some(5.0), ..m })),
            ..sample(2.0)
        };
        let uncounted = fresh(&[("a", with(None))], 95, 0);
        assert_eq!((uncounted.tasks_over_threshold, uncounted.files_share), (Vec::new(), None));
        assert_eq!(fresh(&[("a", with(Some(0.0)))], 95, 0).files_share, None, "without tasks there is no share");
    }

    #[test]
    fn the_fullest_node_is_named() {
        let with = |open: f64, most: Option<f64>| {
            let base = sample(0.5);
            NodeSample { last: base.last.map(|(t, m)| (t, Measure { open_files: Some(open), most_files: most, ..m })), ..base }
        };
        let all = [
            ("a", with(10.0, Some(100.0))),
            ("b", with(90.0, Some(100.0))),
            ("c", with(90.0, Some(100.0))),
            ("d", with(99.0, None)),
        ];
        assert_eq!(fresh(&all, 95, 0).files, Some((90, "b".to_owned())));
        assert_eq!(fresh(&all[3..], 95, 0).files, None);
    }

    #[test]
    fn the_crowd_is_the_nodes_that_are_over() {
        let crowd = |samples: &[(&str, NodeSample)]| fresh(samples, 95, 0).tasks_over_threshold;
        let named = |all: &[(&str, f64)]| all.iter().map(|(node, tasks)| ((*node).to_owned(), *tasks)).collect::<Vec<_>>();
        let (high, low) = (sample(2.0), sample(0.1));
        assert_eq!(crowd(&[("a", high.clone()), ("b", low.clone())]), named(&[("a", 200.0)]));
        assert_eq!(crowd(&[("a", low.clone()), ("b", sample(0.2))]), named(&[("b", 20.0)]), "the worst, where none is over");
        assert_eq!(crowd(&[("a", high.clone()), ("b", sample(1.0)), ("c", low)]), named(&[("a", 200.0), ("b", 100.0)]));
        let alert = |at_least| NodeSample {
            last: high.last.map(|(time, m)| (time, Measure { tasks: None, threshold: None, at_least, ..m })),
            ..NodeSample::default()
        };
        assert_eq!(crowd(&[("a", alert(Some(2048.0)))]), named(&[("a", 2048.0)]), "an alert says how many there are at least");
        assert_eq!(crowd(&[("a", alert(None)), ("b", high)]), named(&[]), "one node has no count");
    }

    const fn one(value: f64) -> Counter {
        Counter::Counted { value, series: 1 }
    }

    /// A page at a second: new connections, and the start of the process.
    fn counted(connections: f64, started: f64) -> Measure {
        Measure { connections: one(connections), started: Some(started), ..Measure::default() }
    }

    /// New connections per second after some pages, each with its second.
    fn rate_after(pages: &[(i64, Measure)]) -> Option<f64> {
        let mut node = NodeSample::default();
        for (second, measure) in pages {
            node.record(second * 1000, *measure);
        }
        node.rate.map(|rate| rate.connections)
    }

    #[test]
    fn new_connections_are_counted_between_two_samples_of_the_same_process() {
        let missing = Measure { connections: Counter::Missing, ..counted(0.0, 5.0) };
        let at = |time| Measure { time: Some(time), ..counted(170.0, 5.0) };
        let up = |uptime| Measure { uptime: Some(uptime), started: None, ..counted(170.0, 5.0) };
        for (what, pages, expected) in [
            ("one sample has no rate", vec![(10, counted(70.0, 5.0))], None),
            ("two samples", vec![(10, counted(70.0, 5.0)), (20, counted(170.0, 5.0))], Some(10.0)),
            ("nothing new is a rate, too", vec![(10, counted(70.0, 5.0)), (20, counted(70.0, 5.0))], Some(0.0)),
            ("a counter that fell was reset", vec![(10, counted(70.0, 5.0)), (20, counted(69.0, 5.0))], None),
            ("another process, whose counter is higher", vec![(10, counted(70.0, 5.0)), (20, counted(170.0, 15.0))], None),
            ("the same start, computed again", vec![(10, counted(70.0, 5.0)), (20, counted(170.0, 5.9))], Some(10.0)),
            (
                "a series came back",
                vec![
                    (10, counted(70.0, 5.0)),
                    (20, Measure { connections: Counter::Counted { value: 170.0, series: 2 }, ..counted(0.0, 5.0) }),
                ],
                None,
            ),
            ("a shorter uptime", vec![(10, up(30.0)), (20, up(29.0))], None),
            ("a longer uptime", vec![(10, up(30.0)), (20, up(40.0))], Some(0.0)),
            ("a missing counter is not 0", vec![(10, counted(70.0, 5.0)), (20, missing)], None),
            ("nor is one that comes back", vec![(10, missing), (20, counted(170.0, 5.0))], None),
            ("the next one counts again", vec![(10, missing), (20, counted(70.0, 5.0)), (30, counted(90.0, 5.0))], Some(2.0)),
            ("the clock was set back", vec![(20, counted(70.0, 5.0)), (10, counted(170.0, 5.0))], None),
            (
                "the time of the sample counts",
                vec![(10, at(1000)), (20, Measure { time: Some(2000), ..counted(190.0, 5.0) })],
                Some(20.0),
            ),
        ] {
            assert_eq!(rate_after(&pages), expected, "{what}");
        }
    }

    #[test]
    fn two_samples_in_a_moment_leave_the_rate_as_it_was() {
        let mut node = NodeSample::default();
        for (time, connections) in [(0, 0.0), (10_000, 100.0), (10_000 + MIN_SPAN - 1, 400.0)] {
            node.record(time, counted(connections, 5.0));
        }
        assert_eq!(node.rate.map(|rate| rate.connections), Some(10.0));
        node.record(10_000 + 2 * MIN_SPAN - 1, counted(405.0, 5.0));
        assert_eq!(node.rate.map(|rate| rate.connections), Some(10.0), "10 a second again");
        node.record(10_000 + 2 * MIN_SPAN, counted(0.0, 5.0));
        assert_eq!(node.rate, None, "a restart is noticed at once");
    }

    #[test]
    fn requests_belong_to_the_rate_where_they_are_named() {
        let page = |connections, requests| Measure { requests, ..counted(connections, 5.0) };
        let mut node = NodeSample::default();
        node.record(0, page(0.0, one(10.0)));
        node.record(10_000, page(20.0, one(1010.0)));
        assert_eq!(node.rate, Some(ConnectionRate { connections: 2.0, requests: Some(100.0), nodes: 1.0 }));
        node.record(20_000, page(40.0, Counter::Missing));
        assert_eq!(node.rate, None, "without its requests a node says nothing");
        node.record(30_000, page(60.0, one(5.0)));
        node.record(40_000, page(80.0, one(4.0)));
        assert_eq!(node.rate, None, "this counter fell");
    }

    #[test]
    fn the_fleet_has_the_rates_of_at_least_half_of_its_nodes() {
        let rated = |connections: f64, started: f64| {
            let mut node = NodeSample::default();
            node.record(0, counted(0.0, started));
            node.record(10_000, counted(connections, started));
            node
        };
        let plain = NodeSample { last: Some((10_000, counted(5.0, 0.0))), ..NodeSample::default() };
        let of = |samples: &[(&str, NodeSample)], young| {
            let ages = Ages { young, ..AGES };
            let Signal::Fresh(reading) = read(&nodes(samples), samples.iter().map(|(name, _)| *name), 95, ages, 10_000) else {
                panic!("no quorum")
            };
            reading.rate.map(|rate| (rate.connections, rate.nodes))
        };
        assert_eq!(of(&[("a", rated(10.0, 0.0)), ("b", rated(30.0, 0.0))], 0), Some((4.0, 2.0)));
        assert_eq!(of(&[("a", rated(10.0, 0.0)), ("b", plain.clone())], 0), Some((1.0, 1.0)));
        assert_eq!(of(&[("a", rated(10.0, 0.0)), ("b", plain.clone()), ("c", plain)], 0), None);
        let young = [("a", rated(10.0, 0.0)), ("b", rated(30.0, 4.0))];
        assert_eq!(of(&young, 6_000), Some((4.0, 2.0)), "as old as is asked");
        assert_eq!(of(&young, 6_001), Some((1.0, 1.0)), "all connections of a young process are new");
        let missing = Measure { connections: Counter::Missing, requests: Counter::Missing, ..Measure::default() };
        let lost = NodeSample { last: Some((10_000, missing)), ..NodeSample::default() };
        let reading = fresh(&[("a", rated(10.0, 0.0)), ("b", lost)], 95, 10_000);
        assert_eq!((reading.connections_missing.as_deref(), reading.requests_missing.as_deref()), (Some("b"), Some("b")));
    }
}
