//! The terms of this replica, one for each shard.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus::{
    core::{Collector, Desc},
    proto::{MetricFamily, MetricType},
};

use super::family::family;

const LEADER: (&str, &str) = (
    "idleconn_leader",
    "1 on the leader, 0 on standby replicas, with shards one series for each; alert when the sum for a shard is not 1",
);
const REMAINING: (&str, &str) = (
    "idleconn_lease_remaining_seconds",
    "Seconds for which this replica may act unless the Lease is renewed: 0 on standby replicas, absent without leader election; near 0 on the leader means a slow API server",
);

/// Number of the shard, absent without shards, and the remaining time of its term: zero without leadership, `None` without
/// election.
type Term = (Option<String>, Option<Duration>);

/// The terms as of the last scrape.
#[derive(Clone)]
pub struct Leaders {
    terms: Arc<Mutex<Vec<Term>>>,
    descriptions: Vec<Desc>,
}

impl Leaders {
    /// No term yet.
    ///
    /// # Errors
    /// Returns an error if a name is not valid, which a test excludes.
    pub fn new() -> prometheus::Result<Self> {
        let described = |(name, help): (&str, &str)| Desc::new(name.into(), help.into(), vec!["shard".into()], HashMap::new());
        Ok(Self { terms: Arc::default(), descriptions: vec![described(LEADER)?, described(REMAINING)?] })
    }

    /// Records the terms of all shards.
    pub fn set(&self, terms: impl Iterator<Item = (Option<u32>, Option<Duration>)>) {
        let terms = terms.map(|(shard, left)| (shard.map(|shard| shard.to_string()), left)).collect();
        *self.terms.lock().unwrap_or_else(PoisonError::into_inner) = terms;
    }
}

impl Collector for Leaders {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(name, help): (&str, &str), value: fn(&Option<Duration>) -> Option<f64>| {
            let series = terms
                .iter()
                .filter_map(|(shard, left)| Some((shard.as_deref().map(|shard| ("shard", shard)).into_iter(), value(left)?)));
            family(name, help, MetricType::GAUGE, series)
        };
        let families = [
            of(LEADER, |left| Some(if *left == Some(Duration::ZERO) { 0.0 } else { 1.0 })),
            of(REMAINING, |left| left.map(|left| left.as_secs_f64())),
        ];
        families.into_iter().filter(|family| !family.get_metric().is_empty()).collect()
    }
}
