//! `status`: the state of policies, in a table.

use jiff::Timestamp;
use kube::ResourceExt as _;

use crate::{
    api::{
        IdleConnectionPolicy, IdleConnectionPolicyStatus,
        conditions::{ConditionType, State},
        wording::spoken,
    },
    decide::{adaptive::pause::Pause, report::condition::find},
};

/// Columns of the table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Columns {
    /// Whether the policies may have different namespaces.
    pub namespace: bool,
    /// Whether the columns of `-o wide` are shown.
    pub wide: bool,
}

impl Columns {
    /// Returns the headings.
    pub fn headings(self) -> Vec<&'static str> {
        let mut headings =
            vec!["NAME", "TARGET", "MODE", "READY", "TASKS", "UTILIZATION", "TIGHTENED", "OPENNESS", "NODES", "LAST CHANGE"];
        if self.namespace {
            headings.insert(0, "NAMESPACE");
        }
        if self.wide {
            headings.extend(["PROGRAMMED", "IN EFFECT", "LIMITED", "EFFECTIVE", "MOST TASKS", "AGE"]);
        }
        headings
    }

    /// Returns the row of a policy; `-` if a value is not known.
    pub fn row(self, policy: &IdleConnectionPolicy, now: Timestamp) -> Vec<String> {
        let unseen = IdleConnectionPolicyStatus::default();
        let status = policy.status.as_ref().unwrap_or(&unseen);
        let condition = |type_| {
            let is_true = <&str>::from(State::True);
            // A True of these conditions needs no reason.
            find(status, type_)
                .map(|c| if c.status == is_true { c.status.clone() } else { format!("{} ({})", c.status, c.reason) })
        };
        let reason = |type_| find(status, type_).map(|condition| condition.reason.clone());
        let tasks = status.tasks.as_ref().and_then(|tasks| Some((tasks.percentile?, tasks.threshold)));
        let tasks = tasks.map(|(count, threshold)| match threshold {
            Some(threshold) => format!("{count}/{threshold}"),
            None => count.to_string(),
        });
        let percent = |value: Option<u32>| value.map(|value| format!("{value}%"));
        let since = |time: Timestamp| spoken((now.as_millisecond() - time.as_millisecond()).max(0));
        let changed = status
            .history
            .first()
            .map(|last| format!("{} -> {}%, {} ago", last.from_percent, last.to_percent, since(last.time.0)));
        let pause = Pause::of(policy.spec.suspend, policy.annotations(), now);
        let paused = if pause == Pause::NONE { String::new() } else { format!(" ({})", pause.label()) };
        let mut row = vec![
            Some(policy.name_any()),
            Some(format!("{:?}", policy.spec.target.type_)),
            policy.spec.adaptive.as_ref().map(|adaptive| format!("{:?}{paused}", adaptive.mode)),
            condition(ConditionType::Ready),
            tasks,
            percent(status.utilization_percent),
            reason(ConditionType::Tightened),
            percent(status.openness_percent),
            status.nodes.as_ref().map(|nodes| nodes.summary.clone() + update(status)),
            changed,
        ];
        if self.namespace {
            row.insert(0, policy.namespace());
        }
        if self.wide {
            row.extend([
                condition(ConditionType::Programmed),
                condition(ConditionType::InEffect),
                reason(ConditionType::TighteningLimited),
                reason(ConditionType::TighteningEffective),
                status.tasks.as_ref().and_then(|tasks| tasks.node.clone()),
                policy.metadata.creation_timestamp.as_ref().map(|created| since(created.0)),
            ]);
        }
        row.into_iter().map(|cell| cell.filter(|cell| !cell.is_empty()).unwrap_or_else(|| "-".to_owned())).collect()
    }
}

/// Returns what is added to the number of nodes during an update.
fn update(status: &IdleConnectionPolicyStatus) -> &'static str {
    match &status.update {
        Some(update) if update.blocked_by.is_some() => " (stopped)",
        Some(_) => " (updating)",
        None => "",
    }
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
    fn a_value_that_is_not_known_is_a_dash_and_never_a_zero() {
        let row = |columns: Columns| columns.row(&policy(&json!({})), Timestamp::UNIX_EPOCH).join(" ");
        assert_eq!(row(Columns::default()), "gw Caddy Enforce - - - - - - -");
        assert_eq!(row(Columns { namespace: true, wide: true }), "shop gw Caddy Enforce - - - - - - - - - - - - -");
    }

    #[test]
    fn every_column_has_a_heading() {
        for columns in [Columns::default(), Columns { namespace: true, wide: false }, Columns { namespace: false, wide: true }] {
            let row = columns.row(&policy(&json!({})), Timestamp::UNIX_EPOCH);
            assert_eq!(columns.headings().len(), row.len(), "{columns:?}");
        }
    }

    #[test]
    fn the_row_of_a_policy_has_its_figures() {
        let condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z"});
        let status = json!({
            "conditions": [condition("Ready", "False", "ProgrammingFailed"), condition("Tightened", "True", "Holding")],
            "tasks": {"percentile": 21900, "threshold": 20000}, "utilizationPercent": 110, "opennessPercent": 55,
            "nodes": {"summary": "11/12", "total": 12, "programmed": 11, "inEffect": 11, "unreachable": 1, "drifted": 0},
            "history": [{"time": "1970-01-01T00:00:00Z", "fromPercent": 75, "toPercent": 55, "reason": "high"}],
        });
        let row = Columns::default().row(&policy(&status), Timestamp::from_second(90).expect("a time"));
        let mut paused = policy(&status);
        paused.annotations_mut().insert("idleconn.io/paused-relax".into(), "true".into());
        let cells = Columns::default().row(&paused, Timestamp::UNIX_EPOCH);
        assert!(cells.iter().any(|cell| cell == "Enforce (relaxing paused)"), "{cells:?}");
        for cell in
            ["Enforce", "False (ProgrammingFailed)", "21900/20000", "110%", "Holding", "55%", "11/12", "75 -> 55%, 90s ago"]
        {
            assert!(row.iter().any(|known| known == cell), "{cell} in {row:?}");
        }
    }
}
