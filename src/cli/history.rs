//! `history`: what was decided, why, and whether it helped.

use super::table::table;
use crate::api::{IdleConnectionPolicy, status::Decision};

/// The decisions, newest first, as the status keeps them.
pub fn rows(policy: &IdleConnectionPolicy) -> String {
    let decisions = policy.status.as_ref().map(|status| &status.history[..]).unwrap_or_default();
    let rows: Vec<_> = decisions.iter().map(row).collect();
    table(["TIME", "FROM", "TO", "TASKS", "UTILIZATION", "VERDICT", "REASON"], &rows)
}

fn row(decision: &Decision) -> [String; 7] {
    let then = |before: Option<String>, after: Option<String>| match (before, after) {
        (None, None) => "-".to_owned(),
        (before, after) => {
            let known = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
            format!("{} -> {}", known(before), known(after))
        }
    };
    let count = |count: i64| count.to_string();
    let percent = |percent: u32| format!("{percent}%");
    [
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
    fn a_step_that_has_not_been_judged_says_so() {
        let policy: IdleConnectionPolicy = from_value(json!({
            "metadata": {"name": "gw"},
            "spec": {"target": {"type": "Caddy", "caddy": {}}},
            "status": {"history": [
                {"time": "2026-11-21T20:00:00Z", "fromPercent": 75, "toPercent": 55, "reason": "high", "tasksBefore": 2000, "utilizationBefore": 200},
                {"time": "2026-11-21T19:00:00Z", "fromPercent": 100, "toPercent": 75, "reason": "high", "tasksBefore": 2000, "tasksAfter": 900, "verdict": "Effective"},
            ]},
        }))
        .expect("a policy");
        let said = rows(&policy);
        let lines: Vec<_> = said.lines().collect();
        assert!(lines[1].contains("2000 -> ?") && lines[1].contains("200% -> ?") && lines[1].contains("   -   "), "{said}");
        assert!(lines[2].contains("2000 -> 900") && lines[2].contains("Effective"), "{said}");
    }
}
