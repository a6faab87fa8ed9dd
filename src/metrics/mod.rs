//! The operator's own metrics, each declared once.
//!
//! This module has the counters and their Prometheus names. Values that other modules count are read there when the
//! metrics are scraped.

mod connections;
mod family;
mod leaders;
mod policies;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use leaders::Leaders;
pub use policies::Policies;
use prometheus::{
    HistogramOpts, HistogramTimer, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder, core::Collector,
};

use crate::pool::Pool;

/// Measured in `make demo`, with three servers on one machine: 45 µs to decide and 1.4 ms to read the nodes. Writing to
/// them and to the API server took 5 to 25 ms, and less than 0.1 ms without changes. A node that does not answer is
/// given up after seconds, a pass over `AIStore` after a minute.
const BUCKETS: [f64; 8] = [0.000_1, 0.001, 0.005, 0.025, 0.1, 0.5, 5.0, 30.0];

/// One evaluation of a policy's task count.
#[derive(Clone, Copy, Debug)]
pub struct Evaluation {
    /// Whether enough nodes gave a sample.
    pub is_fresh: bool,
    /// Utilization (tasks / threshold); `None` if the tasks could not be counted or the source has no count.
    pub pressure: Option<f64>,
    /// Openness of the limits in percent: 100 is as declared, 0 is at the floor.
    pub openness: u8,
}

/// The metrics and their registry. The registry is not global, so that several operators fit into one process.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    steps: HistogramVec,
    writes: IntCounterVec,
    statuses: IntCounter,
    statuses_refused: IntCounter,
    panics: IntCounter,
    /// The metrics of each policy.
    pub policies: Policies,
    leaders: Leaders,
    /// The pool whose counters are shown.
    pool: Arc<OnceLock<Pool>>,
}

impl Metrics {
    /// All metrics, at zero.
    ///
    /// # Errors
    /// Returns an error if a name is declared twice, which a test excludes.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name, help| registered(&registry, IntCounter::new(name, help));
        let counters = |name, help, labels: &[&str]| registered(&registry, IntCounterVec::new(Opts::new(name, help), labels));
        let durations = HistogramOpts::new(
            "idleconn_reconcile_step_seconds",
            "Duration of each step of a reconcile: discover, gather, decide, apply, report; a slow gather or apply means a slow node, a slow report a slow API server",
        );
        Ok(Self {
            reconciles: counters(
                "idleconn_reconciles_total",
                "Reconciles of policies, by outcome; alert on the share of failed ones, not on their number",
                &["outcome"],
            )?,
            steps: registered(&registry, HistogramVec::new(durations.buckets(BUCKETS.to_vec()), &["step"]))?,
            writes: counters(
                "idleconn_node_writes_total",
                "Writes to nodes, by outcome; constant in a steady state",
                &["outcome"],
            )?,
            statuses: counter("idleconn_status_writes_total", "Status writes; constant in a steady state")?,
            statuses_refused: counter(
                "idleconn_status_refused_total",
                "Status writes that the API server rejected as invalid; any value above 0 means a bug in the operator or an outdated CRD",
            )?,
            panics: counter(
                "idleconn_panics_total",
                "Caught panics, each of which ended one policy's reconcile; any value above 0 means a bug in the operator",
            )?,
            policies: Policies::default(),
            leaders: registered(&registry, Leaders::new())?,
            pool: Arc::default(),
            registry,
        })
    }

    /// Counts a pass that succeeded.
    pub fn reconciled(&self) {
        self.reconciles.with_label_values(&["succeeded"]).inc();
    }

    /// Counts a status that the API server rejected.
    pub fn status_refused(&self) {
        self.statuses_refused.inc();
    }

    /// Counts a caught panic.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// Counts a pass that failed.
    pub fn failed(&self) {
        self.reconciles.with_label_values(&["failed"]).inc();
    }

    /// Measures a part of a pass until the timer is dropped.
    pub fn time(&self, step: &str) -> HistogramTimer {
        self.steps.with_label_values(&[step]).start_timer()
    }

    /// Counts a write to a node.
    pub fn wrote(&self, accepted: bool) {
        self.writes.with_label_values(&[if accepted { "accepted" } else { "failed" }]).inc();
    }

    /// Counts a written status.
    pub fn status_written(&self) {
        self.statuses.inc();
    }

    /// Shows the counters of this pool, which are read at each scrape. The first pool stays.
    pub fn connections(&self, pool: &Pool) {
        self.pool.get_or_init(|| pool.clone());
    }

    /// Records the remaining time of each shard's term: zero without leadership, `None` without election. Without shards,
    /// there is one term without a number.
    pub fn leads(&self, terms: impl Iterator<Item = (Option<u32>, Option<Duration>)>) {
        self.leaders.set(terms);
    }

    /// The metrics in Prometheus' text format.
    ///
    /// # Errors
    /// Returns an error if a metric is malformed, which the registry excludes.
    pub fn text(&self) -> prometheus::Result<String> {
        let encoder = TextEncoder::new();
        let mut text = encoder.encode_to_string(&self.registry.gather())?;
        let connections = self.pool.get().into_iter().flat_map(connections::families);
        for family in self.policies.families().chain(connections) {
            encoder.encode_utf8(&[family], &mut text)?;
        }
        Ok(text)
    }
}

/// A metric that its registry has.
fn registered<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> prometheus::Result<M> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{from_value, json};

    use super::Evaluation;
    use crate::decide::adaptive::step::{Decision, Reason};

    #[test]
    fn what_happened_is_counted() {
        let metrics = super::Metrics::new().expect("metrics");
        metrics.wrote(true);
        metrics.status_written();
        let text = metrics.text().expect("text");
        assert!(text.contains("idleconn_node_writes_total{outcome=\"accepted\"} 1"), "{text}");
        assert!(text.contains("idleconn_status_writes_total 1"), "{text}");
    }

    #[test]
    fn what_is_not_counted_grows_old_and_is_not_zero() {
        let metrics = super::Metrics::new().expect("metrics");
        let shown =
            |name: &str| metrics.text().expect("text").lines().find_map(|line| line.strip_prefix(name)?.parse::<f64>().ok());
        let (age, pressure) = (
            r#"idleconn_signal_age_seconds{namespace="shop",policy="gw"} "#,
            r#"idleconn_utilization_ratio{namespace="shop",policy="gw"} "#,
        );
        assert_eq!((shown(age), shown(pressure)), (None, None), "no look yet");
        let look =
            |is_fresh, pressure| metrics.policies.evaluated("shop", "gw", Evaluation { is_fresh, pressure, openness: 100 });
        look(false, None);
        let first = shown(age).expect("it is looked for");
        assert!(shown(age).is_some_and(|later| later > first) && shown(pressure).is_none());
        let begun = std::time::Instant::now();
        look(true, Some(0.5));
        assert!(shown(age).is_some_and(|age| age <= begun.elapsed().as_secs_f64()));
        assert_eq!(shown(pressure), Some(0.5));
        metrics.policies.forget("shop", "gw");
        assert_eq!((shown(age), shown(pressure)), (None, None));
    }

    #[test]
    fn policies_whose_names_are_alike_when_put_together_have_series_each() {
        let metrics = super::Metrics::new().expect("metrics");
        let openness = || {
            let text = metrics.text().expect("text");
            text.lines().filter(|line| line.starts_with("idleconn_openness_percent{")).map(str::to_owned).collect::<Vec<_>>()
        };
        let look = |namespace, policy, openness| {
            metrics.policies.evaluated(namespace, policy, Evaluation { is_fresh: true, pressure: Some(0.5), openness });
        };
        look("shop", "gw", 100);
        look("shopg", "w", 40);
        let series = |namespace: &str, policy: &str, value: u8| {
            format!(r#"idleconn_openness_percent{{namespace="{namespace}",policy="{policy}"}} {value}"#)
        };
        assert_eq!(openness(), [series("shop", "gw", 100), series("shopg", "w", 40)]);
        metrics.policies.forget("shopg", "w");
        assert_eq!(openness(), [series("shop", "gw", 100)]);
    }

    #[test]
    fn a_decision_is_counted_with_its_reason_until_its_policy_is_gone() {
        let metrics = super::Metrics::new().expect("metrics");
        for (to, reason) in [(80, Reason::High { pressure: Some(1.2), lasted: 60_000 }), (100, Reason::Ineffective)] {
            metrics.policies.decided("shop", "gw", &Decision { from: 90, to, reason, pressure: 1.0 });
        }
        let text = metrics.text().expect("text");
        for (direction, reason) in [("tighten", "HighTaskCount"), ("relax", "Ineffective")] {
            let series = format!(
                r#"idleconn_decisions_total{{direction="{direction}",namespace="shop",policy="gw",reason="{reason}"}} 1"#
            );
            assert!(text.contains(&series), "{text}");
        }
        metrics.policies.forget("shop", "gw");
        assert!(!metrics.text().expect("text").contains("shop"));
    }

    #[test]
    fn a_replica_that_acts_says_for_how_long() {
        let metrics = super::Metrics::new().expect("metrics");
        for (left, leader, lease) in
            [(Some(Duration::ZERO), 0, Some("0")), (Some(Duration::from_millis(1500)), 1, Some("1.5")), (None, 1, None)]
        {
            metrics.leads([(None, left)].into_iter());
            let text = metrics.text().expect("text");
            let shown = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
            assert_eq!(shown("idleconn_leader "), Some(leader.to_string().as_str()));
            assert_eq!(shown("idleconn_lease_remaining_seconds "), lease);
        }
    }

    #[test]
    fn each_shard_has_a_term() {
        let metrics = super::Metrics::new().expect("metrics");
        metrics.leads([(Some(0), Some(Duration::ZERO)), (Some(1), Some(Duration::from_secs(9)))].into_iter());
        let text = metrics.text().expect("text");
        for series in [
            r#"idleconn_leader{shard="0"} 0"#,
            r#"idleconn_leader{shard="1"} 1"#,
            r#"idleconn_lease_remaining_seconds{shard="1"} 9"#,
        ] {
            assert!(text.lines().any(|line| line == series), "{text}");
        }
    }

    #[test]
    fn a_condition_has_one_series_with_its_reason_and_none_when_its_policy_is_gone() {
        let metrics = super::Metrics::new().expect("metrics");
        let series = |metrics: &super::Metrics| {
            let text = metrics.text().expect("text");
            text.lines().filter(|line| line.starts_with("idleconn_condition{")).map(str::to_owned).collect::<Vec<_>>()
        };
        for (status, reason, value) in
            [("False", "Drifted", 0), ("False", "Contended", 0), ("True", "Programmed", 1), ("Unknown", "Pending", -1)]
        {
            let condition = json!({"type": "Programmed", "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-11-21T20:00:00Z"});
            metrics.policies.reported("shop", "gw", &from_value(json!({"conditions": [condition]})).expect("a status"));
            let expected =
                format!(r#"idleconn_condition{{namespace="shop",policy="gw",reason="{reason}",type="Programmed"}} {value}"#);
            assert_eq!(series(&metrics), [expected]);
        }
        metrics.policies.forget("shop", "gw");
        assert!(series(&metrics).is_empty());
    }
}
