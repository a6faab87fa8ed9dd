//! What passes and samples have shown of each policy, for those who look. Published here and never read back: nothing is decided by it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;

use super::PolicyRef;
use crate::{decide::truths::Truths, signals::Samples};

/// Points of a chart that are remembered: an hour at one each 10 s.
const MOST_POINTS: usize = 360;

/// How a policy stood after a round of samples.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// When (Unix milliseconds).
    pub time: i64,
    /// Tasks of the node that counts; `None` where they could not be counted.
    pub tasks: Option<f64>,
    /// Its threshold; likewise.
    pub threshold: Option<f64>,
    /// Tasks by threshold; likewise.
    pub pressure: Option<f64>,
    /// Idle connections of all nodes, where they report them.
    pub idle_connections: Option<f64>,
    /// How far open the limits were, percent.
    pub openness: u8,
}

/// What is known of one policy.
#[derive(Clone, Default)]
pub struct Live {
    /// The nodes, as the last pass saw them.
    pub nodes: Arc<Vec<Truths>>,
    /// When that was; `None` where there was none.
    pub seen: Option<Timestamp>,
    /// What the nodes last ran, where they are sampled.
    pub samples: Option<Samples>,
    /// The last rounds, oldest first.
    pub trend: VecDeque<Point>,
}

/// All policies that were looked at.
#[derive(Default)]
pub struct Board(Mutex<HashMap<PolicyRef, Live>>);

impl Board {
    /// After a pass.
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

    /// After a round of samples; of a policy that is gone nothing is kept.
    pub fn sampled(&self, policy: &PolicyRef, point: Point) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(live) = known.get_mut(policy) else { return };
        if live.trend.len() == MOST_POINTS {
            live.trend.pop_front();
        }
        live.trend.push_back(point);
    }

    /// What is known of a policy.
    #[must_use]
    pub fn of(&self, policy: &PolicyRef) -> Option<Live> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(policy).cloned()
    }

    /// The last point of each policy that has one.
    #[must_use]
    pub fn latest(&self) -> BTreeMap<(String, String), Point> {
        let live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = |(policy, live): (&PolicyRef, &Live)| {
            Some(((policy.namespace.clone().unwrap_or_default(), policy.name.clone()), *live.trend.back()?))
        };
        live.iter().filter_map(last).collect()
    }

    /// A policy that is gone.
    pub fn forget(&self, policy: &PolicyRef) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(policy);
    }
}
