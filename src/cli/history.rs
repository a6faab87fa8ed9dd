//! `history`: the decisions of adaptive control, their reasons and their verdicts.

use kube::ResourceExt as _;
use serde::Serialize;

use crate::api::{IdleConnectionPolicy, status::Decision};

/// Headings of the table; the first column is shown if there are several policies.
pub const HEADINGS: [&str; 8] = ["NAME", "TIME", "FROM", "TO", "TASKS", "UTILIZATION", "VERDICT", "REASON"];

/// One decision, for machines.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    policy: String,
    #[serde(flatten)]
    decision: Decision,
}

/// Returns the decisions of a policy, newest first.
pub fn rows(policy: &IdleConnectionPolicy) -> Vec<Row> {
    let decisions = policy.status.as_ref().map(|status| &status.history[..]).unwrap_or_default();
    decisions.iter().map(|decision| Row { policy: policy.name_any(), decision: decision.clone() }).collect()
}

/// Returns the cells of a decision, in the order of the headings.
pub fn cells(Row { policy, decision }: &Row) -> Vec<String> {
    let then = |before: Option<String>, after: Option<String>| match (before, after) {
        (None, None) => "-".to_owned(),
        (before, after) => {
            let known = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
            format!("{} -> {}", known(before), known(after))
        }
    };
    let count = |count: i64| count.to_string();
    let percent = |percent: u32| format!("{percent}%");
    vec![
        policy.clone(),
        decision.time.0.to_string(),
        percent(decision.from_percent),
        percent(decision.to_percent),
        then(decision.tasks_before.map(count), decision.tasks_after.map(count)),
        then(decision.utilization_before.map(percent), decision.utilization_after.map(percent)),
        decision.verdict.clone().unwrap_or_else(|| "-".to_owned()),
        decision.reason.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_step_without_a_verdict_has_a_question_mark() {
        let policy: IdleConnectionPolicy = from_value(json!({
            "metadata": {"name": "gw"},
            "spec": {"target": {"type": "Caddy", "caddy": {}}},
            "status": {"history": [
                {"time": "2026-11-21T20:00:00Z", "fromPercent": 75, "toPercent": 55, "reason": "high", "tasksBefore": 2000, "utilizationBefore": 200},
                {"time": "2026-11-21T19:00:00Z", "fromPercent": 100, "toPercent": 75, "reason": "high", "tasksBefore": 2000, "tasksAfter": 900, "verdict": "Effective"},
            ]},
        }))
        .expect("a policy");
        let rows: Vec<_> = rows(&policy).iter().map(cells).collect();
        assert_eq!(rows[0], ["gw", "2026-11-21T20:00:00Z", "75%", "55%", "2000 -> ?", "200% -> ?", "-", "high"]);
        assert_eq!(rows[1][4..7], ["2000 -> 900", "-", "Effective"]);
        assert_eq!(rows[0].len(), HEADINGS.len());
    }
}
