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
#[derive(Clone, Copy, Debug)]
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

/// Last results of one policy.
#[derive(Clone, Default)]
pub struct Live {
    /// Nodes in the last pass.
    pub nodes: Arc<Vec<Truths>>,
    /// Time of the last pass; `None` before the first one.
    pub seen: Option<Timestamp>,
    /// Last samples of the nodes; `None` without adaptive control.
    pub samples: Option<Samples>,
    /// Last rounds of samples, oldest first.
    pub trend: VecDeque<Point>,
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
            live.trend.clear();
        }
        live.samples = samples;
    }

    /// Records a round of samples; ignores a policy that is gone.
    pub fn sampled(&self, policy: &PolicyRef, point: Point) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(live) = known.get_mut(policy) else { return };
        if live.trend.len() == MAX_POINTS {
            live.trend.pop_front();
        }
        live.trend.push_back(point);
    }

    /// Returns the last results of a policy.
    #[must_use]
    pub fn of(&self, policy: &PolicyRef) -> Option<Live> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(policy).cloned()
    }

    /// Returns the last point of a policy.
    #[must_use]
    pub fn latest(&self, policy: &PolicyRef) -> Option<Point> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(policy)?.trend.back().copied()
    }

    /// Forgets a policy.
    pub fn forget(&self, policy: &PolicyRef) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(policy);
    }
}
