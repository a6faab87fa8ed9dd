//! The operator's own metrics, each declared once.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

/// The metrics and their registry; no global one, so that several operators fit into one process.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    writes: IntCounterVec,
    statuses: IntCounter,
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
        registry.register(Box::new(reconciles.clone()))?;
        registry.register(Box::new(writes.clone()))?;
        registry.register(Box::new(statuses.clone()))?;
        Ok(Self { registry, reconciles, writes, statuses })
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
