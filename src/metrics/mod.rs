//! The operator's own metrics, each declared once.
//!
//! Lives here: what counts, and how it is said to Prometheus. What is counted elsewhere is read from there when somebody asks.

mod connections;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use connections::Connections;
use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::{api::IdleConnectionPolicyStatus, pool::Pool};

/// Reasons by the condition's type.
type Reasons = BTreeMap<String, String>;

/// The metrics and their registry; no global one, so that several operators fit into one process.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    writes: IntCounterVec,
    statuses: IntCounter,
    decisions: IntCounterVec,
    pressure: GaugeVec,
    openness: IntGaugeVec,
    conditions: IntGaugeVec,
    /// By namespace and policy: the reason that each condition's series has now.
    reasons: Arc<Mutex<HashMap<(String, String), Reasons>>>,
    leader: IntGauge,
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
        let writes = IntCounterVec::new(
            Opts::new("idleconn_node_writes_total", "Writes to nodes, by outcome; in a steady state this does not move"),
            &["outcome"],
        )?;
        let statuses = IntCounter::new("idleconn_status_writes_total", "Statuses written; in a steady state this does not move")?;
        let decisions = IntCounterVec::new(
            Opts::new(
                "idleconn_decisions_total",
                "Steps of the limits by the operator's own decision, by direction; compare with maxChangesPerDay",
            ),
            &["namespace", "policy", "direction"],
        )?;
        let pressure = GaugeVec::new(
            Opts::new(
                "idleconn_pressure_ratio",
                "Tasks by threshold of the node that counts; absent while the tasks cannot be counted, never 0 for that",
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
        registry.register(Box::new(leader.clone()))?;
        registry.register(Box::new(decisions.clone()))?;
        registry.register(Box::new(pressure.clone()))?;
        registry.register(Box::new(openness.clone()))?;
        registry.register(Box::new(conditions.clone()))?;
        registry.register(Box::new(reconciles.clone()))?;
        registry.register(Box::new(writes.clone()))?;
        registry.register(Box::new(statuses.clone()))?;
        Ok(Self {
            registry,
            reconciles,
            writes,
            statuses,
            decisions,
            pressure,
            openness,
            conditions,
            reasons: Arc::default(),
            leader,
        })
    }

    /// A pass that ended.
    pub fn reconciled(&self) {
        self.reconciles.with_label_values(&["succeeded"]).inc();
    }

    /// A pass that could not be made.
    pub fn failed(&self) {
        self.reconciles.with_label_values(&["failed"]).inc();
    }

    /// A write to a node.
    pub fn wrote(&self, accepted: bool) {
        self.writes.with_label_values(&[if accepted { "accepted" } else { "failed" }]).inc();
    }

    /// A status.
    pub fn status_written(&self) {
        self.statuses.inc();
    }

    /// A look of a policy's loop.
    pub fn looked(&self, namespace: &str, policy: &str, pressure: Option<f64>, openness: u8) {
        let labels = [namespace, policy];
        match pressure {
            Some(pressure) => self.pressure.with_label_values(&labels).set(pressure),
            // What is not known is not there.
            None => drop(self.pressure.remove_label_values(&labels)),
        }
        self.openness.with_label_values(&labels).set(openness.into());
    }

    /// A step.
    pub fn decided(&self, namespace: &str, policy: &str, tightened: bool) {
        self.decisions.with_label_values(&[namespace, policy, if tightened { "tighten" } else { "relax" }]).inc();
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
            let _ = self.decisions.remove_label_values(&[namespace, policy, direction]);
        }
        self.keep(namespace, policy, Reasons::new());
    }

    fn unlooked(&self, namespace: &str, policy: &str) {
        let labels = [namespace, policy];
        let _ = (self.pressure.remove_label_values(&labels), self.openness.remove_label_values(&labels));
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

    /// Whether it is this replica that acts.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// As Prometheus reads them.
    ///
    /// # Errors
    /// Where a metric is malformed, which the registry excludes.
    pub fn text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

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
