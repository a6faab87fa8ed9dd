//! The metrics of each policy.
//!
//! They are kept by policy and not in the vectors of the `prometheus` crate. Those find a series by a hash of its label
//! values without a separator (`hash_label_values`), so that `shop/gw` and `shopg/w` would share one series.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use prometheus::proto::{MetricFamily, MetricType};

use super::{Evaluation, family::family};
use crate::{api::IdleConnectionPolicyStatus, decide::adaptive::step::Decision};

/// Namespace and name of a policy.
type Name = (String, String);

/// The metrics of all policies, read at each scrape.
#[derive(Clone, Default)]
pub struct Policies(Arc<Mutex<BTreeMap<Name, Policy>>>);

/// The metrics of one policy.
#[derive(Default)]
struct Policy {
    /// When the tasks were last counted, or when they were first looked for, and the last evaluation.
    evaluated: Option<(Instant, Evaluation)>,
    /// Type, reason and value of each condition.
    conditions: Vec<(String, String, f64)>,
    /// Number of steps by direction and reason.
    decisions: BTreeMap<(&'static str, &'static str), u64>,
}

/// Labels of one series, in alphabetical order, and its value.
type Series<'a> = (Vec<(&'static str, &'a str)>, f64);

/// One metric of each policy.
struct Row {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    /// The series of one policy, without the labels of the policy.
    series: fn(&Policy) -> Vec<Series<'_>>,
}

const ROWS: [Row; 5] = [
    Row {
        name: "idleconn_decisions_total",
        help: "Changes of the limits by adaptive control, by direction and reason; compare with maxChangesPerDay",
        kind: MetricType::COUNTER,
        #[allow(clippy::cast_precision_loss)] // Counts below 2^53.
        series: |policy| {
            let decisions = policy.decisions.iter();
            decisions.map(|((direction, reason), n)| (vec![("direction", *direction), ("reason", *reason)], *n as f64)).collect()
        },
    },
    Row {
        name: "idleconn_utilization_ratio",
        help: "Utilization (tasks / threshold) of the node at signal.percentile; absent while the tasks cannot be counted",
        kind: MetricType::GAUGE,
        series: |policy| policy.evaluated.iter().filter_map(|(_, last)| Some((Vec::new(), last.pressure?))).collect(),
    },
    Row {
        name: "idleconn_signal_age_seconds",
        help: "Seconds since enough nodes last reported their task count; above a few signal intervals nothing is tightened, above a minute check the condition MetricsAvailable",
        kind: MetricType::GAUGE,
        series: |policy| policy.evaluated.iter().map(|(counted, _)| (Vec::new(), counted.elapsed().as_secs_f64())).collect(),
    },
    Row {
        name: "idleconn_openness_percent",
        help: "Openness of the limits with a floor: 100 is as declared, 0 is at the floor",
        kind: MetricType::GAUGE,
        series: |policy| policy.evaluated.iter().map(|(_, last)| (Vec::new(), last.openness.into())).collect(),
    },
    Row {
        name: "idleconn_condition",
        help: "Conditions of a policy: 1 True, 0 False, -1 Unknown; one series for each condition, with its reason. Alert on Ready == 0 and on TighteningLimited == 1",
        kind: MetricType::GAUGE,
        series: |policy| {
            let conditions = policy.conditions.iter();
            conditions.map(|(type_, reason, value)| (vec![("reason", &**reason), ("type", &**type_)], *value)).collect()
        },
    },
];

impl Policies {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Name, Policy>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, namespace: &str, policy: &str, change: impl FnOnce(&mut Policy)) {
        change(self.all().entry((namespace.to_owned(), policy.to_owned())).or_default());
    }

    /// Records an evaluation of a policy.
    pub fn evaluated(&self, namespace: &str, policy: &str, evaluation: Evaluation) {
        self.with(namespace, policy, |policy| {
            let before = policy.evaluated.map(|(counted, _)| counted).filter(|_| !evaluation.is_fresh);
            policy.evaluated = Some((before.unwrap_or_else(Instant::now), evaluation));
        });
    }

    /// Counts a step of adaptive control.
    pub fn decided(&self, namespace: &str, policy: &str, decision: &Decision) {
        let direction = if decision.to < decision.from { "tighten" } else { "relax" };
        self.with(namespace, policy, |policy| *policy.decisions.entry((direction, decision.reason.into())).or_default() += 1);
    }

    /// Records the conditions of a policy's status.
    pub fn reported(&self, namespace: &str, policy: &str, status: &IdleConnectionPolicyStatus) {
        self.with(namespace, policy, |policy| {
            let value = |status: &str| match status {
                "True" => 1.0,
                "False" => 0.0,
                _ => -1.0,
            };
            let conditions = status.conditions.iter().map(|c| (c.type_.clone(), c.reason.clone(), value(&c.status)));
            policy.conditions = conditions.collect();
            if status.openness_percent.is_none() {
                policy.evaluated = None;
            }
        });
    }

    /// Removes the series of a deleted policy.
    pub fn forget(&self, namespace: &str, policy: &str) {
        self.all().remove(&(namespace.to_owned(), policy.to_owned()));
    }

    /// The metrics with at least one series, one after the other: with thousands of policies, each takes megabytes.
    pub fn families(&self) -> impl Iterator<Item = MetricFamily> {
        ROWS.into_iter().map(|row| self.family(&row)).filter(|family| !family.get_metric().is_empty())
    }

    fn family(&self, row: &Row) -> MetricFamily {
        let all = self.all();
        let series = all.iter().flat_map(|((namespace, name), policy)| {
            (row.series)(policy).into_iter().map(move |(labels, value)| {
                let mut labels = [vec![("namespace", &**namespace), ("policy", name)], labels].concat();
                labels.sort_unstable();
                (labels.into_iter(), value)
            })
        });
        family(row.name, row.help, row.kind, series)
    }
}
