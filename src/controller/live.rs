//! Results of passes and samples of each policy, for the API and the metrics. Decisions do not read them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;

use super::PolicyRef;
use crate::{decide::report::node_status::Truths, signals::Samples};

/// Maximum points of a trend: one hour at one point each 10 s.
const MAX_POINTS: usize = 360;

/// State of a policy after a round of samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Time in Unix milliseconds.
    pub time: i64,
    /// Tasks of the node that counts; `None` if they could not be counted.
    pub tasks: Option<f64>,
    /// Threshold of that node; `None` if the tasks could not be counted.
    pub threshold: Option<f64>,
    /// Utilization; `None` if the tasks could not be counted.
    pub pressure: Option<f64>,
    /// Idle connections of all nodes; `None` if a node does not report them.
    pub idle_connections: Option<f64>,
    /// Openness in percent.
    pub openness: u8,
    /// Whether the tasks of enough nodes are known.
    pub is_fresh: bool,
}

/// Points of a policy, oldest first. There are thousands of policies, so a point is stored in 24 bytes.
#[derive(Clone, Default)]
pub struct Trend(VecDeque<Stored>);

/// A [`Point`] with whole seconds and single precision. A missing figure is NaN.
#[derive(Clone, Copy)]
struct Stored {
    seconds: u32,
    tasks: f32,
    threshold: f32,
    pressure: f32,
    idle_connections: f32,
    openness: u8,
    is_fresh: bool,
}

impl Trend {
    /// Returns the points, oldest first.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        self.0.iter().map(|stored| Point::from(*stored))
    }

    fn push(&mut self, point: Point) {
        if self.0.len() == MAX_POINTS {
            self.0.pop_front();
        }
        self.0.push_back(point.into());
    }
}

impl From<Point> for Stored {
    fn from(point: Point) -> Self {
        #[allow(clippy::cast_possible_truncation)]
        let single = |figure: Option<f64>| figure.map_or(f32::NAN, |figure| figure as f32);
        Self {
            seconds: u32::try_from(point.time / 1000).unwrap_or_default(),
            tasks: single(point.tasks),
            threshold: single(point.threshold),
            pressure: single(point.pressure),
            idle_connections: single(point.idle_connections),
            openness: point.openness,
            is_fresh: point.is_fresh,
        }
    }
}

impl From<Stored> for Point {
    fn from(stored: Stored) -> Self {
        let figure = |single: f32| Some(f64::from(single)).filter(|figure| !figure.is_nan());
        Self {
            time: i64::from(stored.seconds) * 1000,
            tasks: figure(stored.tasks),
            threshold: figure(stored.threshold),
            pressure: figure(stored.pressure),
            idle_connections: figure(stored.idle_connections),
            openness: stored.openness,
            is_fresh: stored.is_fresh,
        }
    }
}

/// Last results of one policy.
#[derive(Clone, Default)]
pub struct Live {
    /// Nodes in the last pass.
    pub nodes: Arc<Vec<Truths>>,
    /// Time of the last pass; `None` before the first one.
    pub seen: Option<Timestamp>,
    /// Last samples of the nodes; `None` without adaptive control.
    pub samples: Option<Samples>,
    /// Last rounds of samples.
    pub trend: Trend,
}

/// Last results of all policies.
#[derive(Default)]
pub struct LiveView(Mutex<HashMap<PolicyRef, Live>>);

impl LiveView {
    /// Records the result of a pass.
    pub fn passed(&self, policy: &PolicyRef, nodes: Vec<Truths>, samples: Option<Samples>, now: Timestamp) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let live = known.entry(policy.clone()).or_default();
        live.nodes = Arc::new(nodes);
        live.seen = Some(now);
        if samples.is_none() {
            live.trend = Trend::default();
        }
        live.samples = samples;
    }

    /// Records a round of samples; ignores a policy that is gone.
    pub fn sampled(&self, policy: &PolicyRef, point: Point) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(live) = known.get_mut(policy) else { return };
        live.trend.push(point);
    }

    /// Returns the last results of a policy.
    #[must_use]
    pub fn of(&self, policy: &PolicyRef) -> Option<Live> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(policy).cloned()
    }

    /// Returns the last point of a policy.
    #[must_use]
    pub fn latest(&self, policy: &PolicyRef) -> Option<Point> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(policy)?.trend.0.back().map(|stored| Point::from(*stored))
    }

    /// Forgets a policy.
    pub fn forget(&self, policy: &PolicyRef) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(policy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trend_keeps_an_hour_and_a_missing_figure_is_not_zero() {
        let point = |n: u32| Point {
            time: i64::from(n) * 10_000,
            tasks: Some(f64::from(n)),
            threshold: n.is_multiple_of(2).then_some(100_000.0),
            pressure: Some(0.5),
            idle_connections: None,
            openness: 40,
            is_fresh: true,
        };
        let mut trend = Trend::default();
        (0..1_000).for_each(|n| trend.push(point(n)));
        let (seen, expected): (Vec<_>, Vec<_>) = (trend.points().collect(), (640..1_000).map(point).collect());
        assert_eq!(seen, expected);
        assert_eq!(size_of::<Stored>(), 24);
    }
}
