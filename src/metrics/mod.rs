//! The operator's own metrics, each declared once.
//!
//! Lives here: what counts, and how it is said to Prometheus. What is counted elsewhere is read from there when somebody asks.

mod connections;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use connections::Connections;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramTimer, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use strum::VariantNames as _;

use crate::{
    api::IdleConnectionPolicyStatus,
    decide::adapt::{Decision, Reason},
    pool::Pool,
};

/// Reasons by the condition's type.
type Reasons = BTreeMap<String, String>;

/// A part of a pass, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The target's nodes are looked up.
    Discover,
    /// They are read.
    Gather,
    /// What is to be done is worked out.
    Decide,
    /// It is written to the nodes, and read back.
    Apply,
    /// Events and the status.
    Report,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Discover => "discover",
            Self::Gather => "gather",
            Self::Decide => "decide",
            Self::Apply => "apply",
            Self::Report => "report",
        }
    }
}

/// Seen in `make demo`, three servers on one machine: deciding 45 µs, reading the nodes 1.4 ms, writing to them and telling the API server 5 to
/// 25 ms, and where nothing is new less than 0.1 ms. A node that does not answer is given up after seconds, a pass over `AIStore` after a minute.
const BUCKETS: [f64; 8] = [0.000_1, 0.001, 0.005, 0.025, 0.1, 0.5, 5.0, 30.0];

/// A policy: its namespace and name.
type Name = (String, String);

/// One evaluation of a policy's task count.
#[derive(Clone, Copy, Debug)]
pub struct Evaluation {
    /// Whether enough nodes gave a sample.
    pub is_fresh: bool,
    /// Tasks by threshold; `None` where they could not be counted, or the source has no count.
    pub pressure: Option<f64>,
    /// How far open the limits are, percent.
    pub openness: u8,
}

/// The metrics and their registry; no global one, so that several operators fit into one process.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    steps: HistogramVec,
    writes: IntCounterVec,
    statuses: IntCounter,
    statuses_refused: IntCounter,
    panics: IntCounter,
    decisions: IntCounterVec,
    pressure: GaugeVec,
    age: GaugeVec,
    /// When the tasks of each policy that is looked at were last counted, or were to be for the first time.
    counted: Arc<Mutex<HashMap<Name, Instant>>>,
    openness: IntGaugeVec,
    conditions: IntGaugeVec,
    /// By namespace and policy: the reason that each condition's series has now.
    reasons: Arc<Mutex<HashMap<Name, Reasons>>>,
    leader: IntGauge,
    lease: GaugeVec,
}

impl Metrics {
    /// All at zero.
    ///
    /// # Errors
    /// Where a name is declared twice, which a test excludes.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let reconciles = IntCounterVec::new(
            Opts::new(
                "idleconn_reconciles_total",
                "Passes over a policy, by outcome; alert on the share of failed ones, not on their number",
            ),
            &["outcome"],
        )?;
        let steps = HistogramVec::new(
            HistogramOpts::new(
                "idleconn_reconcile_step_seconds",
                "How long each part of a pass takes: discover, gather, decide, apply, report; a slow gather or apply is a slow node, a slow report the API server",
            )
            .buckets(BUCKETS.to_vec()),
            &["step"],
        )?;
        let writes = IntCounterVec::new(
            Opts::new("idleconn_node_writes_total", "Writes to nodes, by outcome; in a steady state this does not move"),
            &["outcome"],
        )?;
        let statuses = IntCounter::new("idleconn_status_writes_total", "Statuses written; in a steady state this does not move")?;
        let statuses_refused = IntCounter::new(
            "idleconn_status_refused_total",
            "Statuses that the API server refused as invalid; any is a defect of the operator or an outdated CRD",
        )?;
        let panics = IntCounter::new(
            "idleconn_panics_total",
            "Panics that were caught and ended one policy's visit; any is a defect of the operator",
        )?;
        let decisions = IntCounterVec::new(
            Opts::new(
                "idleconn_decisions_total",
                "Steps of the limits by the operator's own decision, by direction and reason; compare with maxChangesPerDay",
            ),
            &["namespace", "policy", "direction", "reason"],
        )?;
        let pressure = GaugeVec::new(
            Opts::new(
                "idleconn_pressure_ratio",
                "Tasks by threshold of the node that counts; absent while the tasks cannot be counted, never 0 for that",
            ),
            &["namespace", "policy"],
        )?;
        let age = GaugeVec::new(
            Opts::new(
                "idleconn_signal_age_seconds",
                "Since enough nodes last said how many tasks they run; above a few signal intervals nothing is tightened, above a minute look at MetricsAvailable",
            ),
            &["namespace", "policy"],
        )?;
        let openness = IntGaugeVec::new(
            Opts::new("idleconn_openness_percent", "How far open the limits with a floor are: 100 as declared, 0 at the floor"),
            &["namespace", "policy"],
        )?;
        let conditions = IntGaugeVec::new(
            Opts::new(
                "idleconn_condition",
                "A policy's conditions: 1 True, 0 False, -1 Unknown; one series each, with its reason. Alert on Ready == 0 and on Limited == 1",
            ),
            &["namespace", "policy", "type", "reason"],
        )?;
        let leader =
            IntGauge::new("idleconn_leader", "1 in the replica that acts, 0 in those that wait; alert when the sum is not 1")?;
        let lease = GaugeVec::new(
            Opts::new(
                "idleconn_lease_remaining_seconds",
                "For how long this replica may act unless the Lease is renewed: 0 in those that wait, absent without election; near 0 in the one that acts the API server is slow",
            ),
            &[],
        )?;
        registry.register(Box::new(leader.clone()))?;
        registry.register(Box::new(lease.clone()))?;
        registry.register(Box::new(steps.clone()))?;
        registry.register(Box::new(age.clone()))?;
        registry.register(Box::new(decisions.clone()))?;
        registry.register(Box::new(pressure.clone()))?;
        registry.register(Box::new(openness.clone()))?;
        registry.register(Box::new(conditions.clone()))?;
        registry.register(Box::new(reconciles.clone()))?;
        registry.register(Box::new(writes.clone()))?;
        registry.register(Box::new(statuses.clone()))?;
        registry.register(Box::new(statuses_refused.clone()))?;
        registry.register(Box::new(panics.clone()))?;
        Ok(Self {
            registry,
            reconciles,
            steps,
            writes,
            statuses,
            statuses_refused,
            panics,
            decisions,
            pressure,
            age,
            counted: Arc::default(),
            openness,
            conditions,
            reasons: Arc::default(),
            leader,
            lease,
        })
    }

    /// A pass that ended.
    pub fn reconciled(&self) {
        self.reconciles.with_label_values(&["succeeded"]).inc();
    }

    /// A status that the API server refused.
    pub fn status_refused(&self) {
        self.statuses_refused.inc();
    }

    /// A panic that was caught.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// A pass that could not be made.
    pub fn failed(&self) {
        self.reconciles.with_label_values(&["failed"]).inc();
    }

    /// Does a part of a pass, and measures it.
    pub async fn timed<T>(&self, step: Step, work: impl Future<Output = T>) -> T {
        let _timed = self.time(step);
        work.await
    }

    /// Measures a part of a pass, until it is dropped.
    pub fn time(&self, step: Step) -> HistogramTimer {
        self.steps.with_label_values(&[step.name()]).start_timer()
    }

    /// A write to a node.
    pub fn wrote(&self, accepted: bool) {
        self.writes.with_label_values(&[if accepted { "accepted" } else { "failed" }]).inc();
    }

    /// A status.
    pub fn status_written(&self) {
        self.statuses.inc();
    }

    /// A policy was evaluated.
    pub fn looked(&self, namespace: &str, policy: &str, evaluation: Evaluation) {
        let labels = [namespace, policy];
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let last = counted.entry((namespace.to_owned(), policy.to_owned())).or_insert_with(Instant::now);
        if evaluation.is_fresh {
            *last = Instant::now();
        }
        match evaluation.pressure {
            Some(pressure) => self.pressure.with_label_values(&labels).set(pressure),
            // What is not known is not there.
            None => drop(self.pressure.remove_label_values(&labels)),
        }
        drop(counted);
        self.openness.with_label_values(&labels).set(evaluation.openness.into());
    }

    /// A step.
    pub fn decided(&self, namespace: &str, policy: &str, decision: &Decision) {
        let direction = if decision.to < decision.from { "tighten" } else { "relax" };
        self.decisions.with_label_values(&[namespace, policy, direction, decision.reason.into()]).inc();
    }

    /// The operator's own connections are counted where they are; they are read when somebody asks.
    ///
    /// # Errors
    /// Where that has been said before.
    pub fn connections(&self, pool: &Pool) -> prometheus::Result<()> {
        self.registry.register(Box::new(Connections::new(pool.clone())?))
    }

    /// What a policy's status says.
    pub fn reported(&self, namespace: &str, policy: &str, status: &IdleConnectionPolicyStatus) {
        let now = status.conditions.iter().map(|c| (c.type_.clone(), c.reason.clone())).collect();
        self.keep(namespace, policy, now);
        for condition in &status.conditions {
            let value = match condition.status.as_str() {
                "True" => 1,
                "False" => 0,
                _ => -1,
            };
            self.conditions.with_label_values(&[namespace, policy, &condition.type_, &condition.reason]).set(value);
        }
        if status.openness_percent.is_none() {
            self.unlooked(namespace, policy);
        }
    }

    /// A policy that is gone.
    pub fn forget(&self, namespace: &str, policy: &str) {
        self.unlooked(namespace, policy);
        for direction in ["tighten", "relax"] {
            for reason in Reason::VARIANTS {
                let _ = self.decisions.remove_label_values(&[namespace, policy, direction, reason]);
            }
        }
        self.keep(namespace, policy, Reasons::new());
    }

    fn unlooked(&self, namespace: &str, policy: &str) {
        let labels = [namespace, policy];
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).remove(&(namespace.to_owned(), policy.to_owned()));
        for gone in [&self.pressure, &self.age] {
            let _ = gone.remove_label_values(&labels);
        }
        let _ = self.openness.remove_label_values(&labels);
    }

    /// Takes away the series of conditions that are no longer there, or for another reason.
    fn keep(&self, namespace: &str, policy: &str, now: Reasons) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let before = reasons.remove(&(namespace.to_owned(), policy.to_owned())).unwrap_or_default();
        for (type_, reason) in before.iter().filter(|(type_, reason)| now.get(*type_) != Some(reason)) {
            let _ = self.conditions.remove_label_values(&[namespace, policy, type_, reason]);
        }
        if !now.is_empty() {
            reasons.insert((namespace.to_owned(), policy.to_owned()), now);
        }
    }

    /// For how long this replica may act, as it is now: not at all, for ever, or until the Lease has to be renewed.
    pub fn leads(&self, left: Option<Duration>) {
        self.leader.set((left != Some(Duration::ZERO)).into());
        match left {
            Some(left) => self.lease.with_label_values::<&str>(&[]).set(left.as_secs_f64()),
            None => drop(self.lease.remove_label_values::<&str>(&[])),
        }
    }

    /// As Prometheus reads them.
    ///
    /// # Errors
    /// Where a metric is malformed, which the registry excludes.
    pub fn text(&self) -> prometheus::Result<String> {
        {
            let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            for ((namespace, policy), last) in &*counted {
                self.age.with_label_values(&[namespace, policy]).set(last.elapsed().as_secs_f64());
            }
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{from_value, json};

    use super::Evaluation;
    use crate::decide::adapt::{Decision, Reason};

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
            r#"idleconn_pressure_ratio{namespace="shop",policy="gw"} "#,
        );
        assert_eq!((shown(age), shown(pressure)), (None, None), "nobody looks");
        let look = |is_fresh, pressure| metrics.looked("shop", "gw", Evaluation { is_fresh, pressure, openness: 100 });
        look(false, None);
        let first = shown(age).expect("it is looked for");
        assert!(shown(age).is_some_and(|later| later > first) && shown(pressure).is_none());
        let begun = std::time::Instant::now();
        look(true, Some(0.5));
        assert!(shown(age).is_some_and(|age| age <= begun.elapsed().as_secs_f64()));
        assert_eq!(shown(pressure), Some(0.5));
        metrics.forget("shop", "gw");
        assert_eq!((shown(age), shown(pressure)), (None, None));
    }

    #[test]
    fn a_decision_is_counted_with_its_reason_until_its_policy_is_gone() {
        let metrics = super::Metrics::new().expect("metrics");
        for (to, reason) in [(80, Reason::High { pressure: Some(1.2), lasted: 60_000 }), (100, Reason::Ineffective)] {
            metrics.decided("shop", "gw", &Decision { from: 90, to, reason, pressure: 1.0 });
        }
        let text = metrics.text().expect("text");
        for (direction, reason) in [("tighten", "HighTaskCount"), ("relax", "Ineffective")] {
            let series = format!(
                r#"idleconn_decisions_total{{direction="{direction}",namespace="shop",policy="gw",reason="{reason}"}} 1"#
            );
            assert!(text.contains(&series), "{text}");
        }
        metrics.forget("shop", "gw");
        assert!(!metrics.text().expect("text").contains("shop"));
    }

    #[test]
    fn a_replica_that_acts_says_for_how_long() {
        let metrics = super::Metrics::new().expect("metrics");
        for (left, leader, lease) in
            [(Some(Duration::ZERO), 0, Some("0")), (Some(Duration::from_millis(1500)), 1, Some("1.5")), (None, 1, None)]
        {
            metrics.leads(left);
            let text = metrics.text().expect("text");
            let shown = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
            assert_eq!(shown("idleconn_leader "), Some(leader.to_string().as_str()));
            assert_eq!(shown("idleconn_lease_remaining_seconds "), lease);
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
            metrics.reported("shop", "gw", &from_value(json!({"conditions": [condition]})).expect("a status"));
            let expected =
                format!(r#"idleconn_condition{{namespace="shop",policy="gw",reason="{reason}",type="Programmed"}} {value}"#);
            assert_eq!(series(&metrics), [expected]);
        }
        metrics.forget("shop", "gw");
        assert!(series(&metrics).is_empty());
    }
}
