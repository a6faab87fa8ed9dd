//! The state of every limit, node by node: what is desired, what the node stores, what its process is known to use, and
//! what was measured.

use serde::{Deserialize, Serialize};

use super::status::{ReportInput, in_use};
use crate::api::{IdleConnectionPolicyStatus, Limit, LimitValues, Value};
use crate::decide::{Cause, NodeState, Unit, measured::Idled, verify::probe_of};

/// One node, as it reports itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Truths {
    /// Its name.
    pub name: String,
    /// The unit that it belongs to: a Caddy server, an `AIStore` cluster, a file.
    pub unit: String,
    /// What it should hold: the declared limits at the current openness, with its own overrides; only limits that it
    /// has.
    pub desired: LimitValues,
    /// What it stores of these. A limit without a value is absent.
    pub programmed: LimitValues,
    /// What its process is known to use of these.
    pub in_effect: LimitValues,
    /// What was measured of its server, with `spec.verify`.
    pub measured: LimitValues,
    /// How far the desired limits have come.
    pub stage: Stage,
    /// What blocks them, if anything does.
    pub error: Option<String>,
}

/// How far the desired limits have come on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Stage {
    /// The process uses the desired limits.
    InEffect,
    /// The node stores the desired limits; its process is not known to use all of them.
    Programmed,
    /// The node stores other values.
    Drifted,
    /// The node did not answer, or not as its kind does.
    #[default]
    Unreachable,
    /// The node refused access.
    Unauthorized,
}

/// All nodes of a reconcile, by unit and name. `status` is what the same reconcile reported.
#[must_use]
pub fn truths(seen: &ReportInput<'_>, status: &IdleConnectionPolicyStatus) -> Vec<Truths> {
    if seen.problem.is_some() {
        return Vec::new();
    }
    let unchanged = std::collections::BTreeMap::new();
    let changed = status.control.as_ref().map_or(&unchanged, |control| &control.changed);
    let mut all = Vec::new();
    for result in seen.units {
        let blank = |name: &str| Truths { name: name.to_owned(), unit: result.unit.name.clone(), ..Truths::default() };
        let failed = |name: &str, fault: &crate::decide::Fault| {
            let refused = matches!(fault.cause, Cause::Unauthorized | Cause::Forbidden);
            let stage = if refused { Stage::Unauthorized } else { Stage::Unreachable };
            Truths { stage, error: Some(fault.message.clone()), ..blank(name) }
        };
        all.extend(result.state.as_ref().err().map(|fault| failed(&result.unit.name, fault)));
        let Ok(state) = &result.state else { continue };
        let saved = seen.saved.get(&result.unit.id).map(|saved| &*saved.sites);
        let desired = crate::decide::settings(&seen.plan.desired, seen.traits, &result.unit, state, saved);
        for node in &state.nodes {
            all.extend(node.stored.as_ref().err().map(|fault| failed(&node.name, fault)));
            let Ok(stored) = &node.stored else { continue };
            let mut truths = blank(&node.name);
            truths.measured = measured(seen, &result.unit, node);
            let mut used = true;
            for (&limit, &value) in desired.iter().filter(|(limit, _)| stored.contains_key(limit)) {
                truths.desired.insert(limit, value);
                let Some(programmed) = stored[&limit] else { continue };
                truths.programmed.insert(limit, programmed);
                if in_use(limit, seen.traits, changed, seen.lives, node) == Some(true) {
                    truths.in_effect.insert(limit, programmed);
                } else {
                    used = false;
                }
            }
            truths.stage = match (truths.programmed == truths.desired, used) {
                (false, _) => Stage::Drifted,
                (true, true) => Stage::InEffect,
                (true, false) => Stage::Programmed,
            };
            truths.error = result.write.as_ref().map(|fault| fault.message.clone());
            all.push(truths);
        }
    }
    all.sort_by(|a, b| (&a.unit, &a.name).cmp(&(&b.unit, &b.name)));
    all
}

/// How long the node's server kept an idle connection.
fn measured(seen: &ReportInput<'_>, unit: &Unit, node: &NodeState) -> LimitValues {
    let probe = seen.probes.and_then(|probes| probe_of(probes, unit, node));
    match probe.map(|probe| &probe.outcome) {
        Some(Ok(Idled::Closed(after))) => [(Limit::ServerIdleTimeout, Value::Duration(*after))].into(),
        _ => LimitValues::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use jiff::Timestamp;

    use super::*;
    use crate::{
        api::{Limit, Value},
        decide::{Capability, Declared, Fault, NodeState, Plan, TargetCapabilities, Unit, UnitResult, UnitState},
    };

    const LIMIT: Limit = Limit::ServerIdleTimeout;

    fn seconds(n: u64) -> Value {
        Value::Duration(Duration::from_secs(n))
    }

    /// The result for a node that should hold 30 s.
    fn one(traits: TargetCapabilities, node: NodeState) -> Truths {
        let unit = Unit { id: "u".into(), name: "u".into(), address: String::new(), role: None };
        let state = Ok(UnitState { nodes: vec![node], ..UnitState::default() });
        of(traits, UnitResult { unit, state, write: None })
    }

    fn of(traits: TargetCapabilities, result: UnitResult) -> Truths {
        let declared = Declared { settings: [(LIMIT, seconds(30))].into(), ..Declared::default() };
        let status = IdleConnectionPolicyStatus::default();
        let seen = ReportInput {
            generation: Some(1),
            suspend: false,
            declared: &declared,
            traits: &traits,
            problem: None,
            units: &[result],
            plan: &Plan { desired: declared.clone(), ..Plan::default() },
            saved: &BTreeMap::new(),
            original: None,
            lives: &crate::decide::Lives::new(),
            adaptive: None,
            advice: &[],
            shared: None,
            update: None,
            probes: None,
            previous: &status,
            now: Timestamp::UNIX_EPOCH,
        };
        let mut all = truths(&seen, &status);
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn what_is_stored_is_not_what_is_used() {
        let hot = TargetCapabilities::PLAIN;
        let late = TargetCapabilities { capability: |_| Capability::AfterRestart, ..TargetCapabilities::PLAIN };
        let stores = |secs: Option<u64>| NodeState::new("n", Ok([(LIMIT, secs.map(seconds))].into()));
        let seen = |truths: Truths| (truths.stage, truths.programmed.get(&LIMIT).copied(), truths.in_effect.get(&LIMIT).copied());
        assert_eq!(seen(one(hot, stores(Some(30)))), (Stage::InEffect, Some(seconds(30)), Some(seconds(30))));
        assert_eq!(seen(one(hot, stores(Some(9)))), (Stage::Drifted, Some(seconds(9)), Some(seconds(9))));
        assert_eq!(seen(one(hot, stores(None))), (Stage::Drifted, None, None), "set to nothing");
        assert_eq!(seen(one(late, stores(Some(30)))), (Stage::Programmed, Some(seconds(30)), None), "not known to be used");
        let placeless = one(hot, NodeState::new("n", Ok(BTreeMap::new())));
        assert_eq!(
            (placeless.stage, placeless.desired.len()),
            (Stage::InEffect, 0),
            "a limit that the node does not have is not desired"
        );
    }

    #[test]
    fn who_does_not_answer_has_no_truths_and_a_reason() {
        for (cause, stage) in [
            (Cause::Unreachable, Stage::Unreachable),
            (Cause::NotReady, Stage::Unreachable),
            (Cause::Unauthorized, Stage::Unauthorized),
            (Cause::Forbidden, Stage::Unauthorized),
        ] {
            let fault = || Fault::new(cause, "why");
            let unit = Unit { id: "u".into(), name: "n".into(), address: String::new(), role: None };
            let whole = of(TargetCapabilities::PLAIN, UnitResult { unit, state: Err(fault()), write: None });
            let node = one(TargetCapabilities::PLAIN, NodeState::new("n", Err(fault())));
            for truths in [whole, node] {
                assert_eq!((truths.stage, truths.error.as_deref(), truths.name.as_str()), (stage, Some("why"), "n"));
                assert!(truths.desired.is_empty() && truths.programmed.is_empty() && truths.in_effect.is_empty());
            }
        }
    }

    #[test]
    fn what_stands_in_the_way_of_a_write_is_said_of_its_nodes() {
        let unit = Unit { id: "u".into(), name: "u".into(), address: String::new(), role: None };
        let node = NodeState::new("n", Ok([(LIMIT, Some(seconds(9)))].into()));
        let state = Ok(UnitState { nodes: vec![node], ..UnitState::default() });
        let truths = of(TargetCapabilities::PLAIN, UnitResult { unit, state, write: Some(Fault::new(Cause::Rejected, "no")) });
        assert_eq!((truths.stage, truths.error.as_deref()), (Stage::Drifted, Some("no")));
    }
}
