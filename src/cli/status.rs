//! `status`: how policies are doing, in a table.

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::table::table;
use crate::{
    api::{IdleConnectionPolicy, IdleConnectionPolicyStatus},
    decide::adapt::spoken,
};

/// What there is to see of a policy; `-` for what is not known.
pub fn rows(policies: &[IdleConnectionPolicy], now: Timestamp) -> String {
    let rows: Vec<_> = policies.iter().map(|policy| row(policy, now)).collect();
    table(
        ["NAMESPACE", "NAME", "TARGET", "MODE", "READY", "TASKS", "UTILIZATION", "TIGHTENED", "OPENNESS", "NODES", "LAST CHANGE"],
        &rows,
    )
}

fn row(policy: &IdleConnectionPolicy, now: Timestamp) -> [String; 11] {
    let unseen = IdleConnectionPolicyStatus::default();
    let status = policy.status.as_ref().unwrap_or(&unseen);
    let condition = |type_: &str| {
        status.conditions.iter().find(|c| c.type_ == type_).map(|c| match c.status.as_str() {
            // A False or Unknown says why; a True of these two says itself.
            "True" => c.status.clone(),
            _ => format!("{} ({})", c.status, c.reason),
        })
    };
    let tightened = status.conditions.iter().find(|c| c.type_ == "Tightened").map(|c| c.reason.clone());
    let tasks = status.tasks.as_ref().and_then(|tasks| Some((tasks.percentile?, tasks.threshold)));
    let tasks = tasks.map(|(count, threshold)| match threshold {
        Some(threshold) => format!("{count}/{threshold}"),
        None => count.to_string(),
    });
    let percent = |value: Option<u32>| value.map(|value| format!("{value}%"));
    let changed = status.history.first().map(|last| {
        let ago = spoken((now.as_millisecond() - last.time.0.as_millisecond()).max(0));
        format!("{} -> {}%, {ago} ago", last.from_percent, last.to_percent)
    });
    let mode = policy.spec.adaptive.as_ref().map(|adaptive| format!("{:?}", adaptive.mode));
    [
        Some(policy.namespace().unwrap_or_default()),
        Some(policy.name_any()),
        Some(format!("{:?}", policy.spec.target.type_)),
        mode,
        condition("Ready"),
        tasks,
        percent(status.utilization_percent),
        tightened,
        percent(status.openness_percent),
        status.nodes.as_ref().map(|nodes| nodes.summary.clone()),
        changed,
    ]
    .map(|cell| cell.filter(|cell| !cell.is_empty()).unwrap_or_else(|| "-".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, from_value, json};

    use super::*;

    fn policy(status: &Json) -> IdleConnectionPolicy {
        from_value(json!({
            "metadata": {"name": "gw", "namespace": "shop"},
            "spec": {"target": {"type": "Caddy", "caddy": {}}, "adaptive": {"mode": "Enforce"}},
            "status": status,
        }))
        .expect("a policy")
    }

    #[test]
    fn what_is_not_known_is_a_dash_and_never_a_zero() {
        let said = rows(&[policy(&json!({}))], Timestamp::UNIX_EPOCH);
        assert_eq!(
            said.lines().nth(1).map(|line| line.split_whitespace().collect::<Vec<_>>()),
            Some("shop gw Caddy Enforce - - - - - - -".split(' ').collect())
        );
    }

    #[test]
    fn what_is_known_is_said_in_one_line() {
        let condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z"});
        let status = json!({
            "conditions": [condition("Ready", "False", "ProgrammingFailed"), condition("Tightened", "True", "Holding")],
            "tasks": {"percentile": 21900, "threshold": 20000}, "utilizationPercent": 110, "opennessPercent": 55,
            "nodes": {"summary": "11/12", "total": 12, "programmed": 11, "inEffect": 11, "unreachable": 1, "drifted": 0},
            "history": [{"time": "1970-01-01T00:00:00Z", "fromPercent": 75, "toPercent": 55, "reason": "high"}],
        });
        let said = rows(&[policy(&status)], Timestamp::from_second(90).expect("a time"));
        let line = said.lines().nth(1).expect("a row");
        for cell in ["False (ProgrammingFailed)", "21900/20000", "110%", "Holding", "55%", "11/12", "75 -> 55%, 90s ago"] {
            assert!(line.contains(cell), "{cell} in {line}");
        }
    }
}
