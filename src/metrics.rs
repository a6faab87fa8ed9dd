//! The operator's own metrics, each declared once.

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::api::IdleConnectionPolicyStatus;

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
                "A policy's conditions: 1 True, 0 False, -1 Unknown; alert on Ready == 0 and on Limited == 1",
            ),
            &["namespace", "policy", "type"],
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
        Ok(Self { registry, reconciles, writes, statuses, decisions, pressure, openness, conditions, leader })
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

    /// What a policy's status says.
    pub fn reported(&self, namespace: &str, policy: &str, before: &IdleConnectionPolicyStatus, now: &IdleConnectionPolicyStatus) {
        for condition in &now.conditions {
            let value = match condition.status.as_str() {
                "True" => 1,
                "False" => 0,
                _ => -1,
            };
            self.conditions.with_label_values(&[namespace, policy, &condition.type_]).set(value);
        }
        for gone in before.conditions.iter().filter(|old| now.conditions.iter().all(|new| new.type_ != old.type_)) {
            let _ = self.conditions.remove_label_values(&[namespace, policy, &gone.type_]);
        }
        if now.openness_percent.is_none() {
            let _ = (
                self.pressure.remove_label_values(&[namespace, policy]),
                self.openness.remove_label_values(&[namespace, policy]),
            );
        }
    }

    /// A policy that is gone.
    pub fn forget(&self, namespace: &str, policy: &str) {
        let _ =
            (self.pressure.remove_label_values(&[namespace, policy]), self.openness.remove_label_values(&[namespace, policy]));
        for direction in ["tighten", "relax"] {
            let _ = self.decisions.remove_label_values(&[namespace, policy, direction]);
        }
        for type_ in [
            "Accepted",
            "Ready",
            "Stalled",
            "Reconciling",
            "Programmed",
            "InEffect",
            "MetricsAvailable",
            "HighTaskCount",
            "Tightened",
            "TighteningEffective",
            "Limited",
        ] {
            let _ = self.conditions.remove_label_values(&[namespace, policy, type_]);
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
    #[test]
    fn what_happened_is_counted() {
        let metrics = super::Metrics::new().expect("metrics");
        metrics.wrote(true);
        metrics.status_written();
        let text = metrics.text().expect("text");
        assert!(text.contains("idleconn_node_writes_total{outcome=\"accepted\"} 1"), "{text}");
        assert!(text.contains("idleconn_status_writes_total 1"), "{text}");
    }
}
