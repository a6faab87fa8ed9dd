//! Decides what to do and what to report. Pure and total: values in (`now` is one of them), values out.
//!
//! This module must not use a kube client, HTTP, tokio or a clock: the controller, the tests and every tool that
//! explains a decision call the same code.

pub mod adaptive;
pub mod advice;
pub mod balance;
pub mod claims;
pub mod contention;
pub mod declare;
pub mod flush_rate;
pub mod flushes;
pub mod hash;
pub mod lease;
pub mod measured;
pub mod observed;
pub mod order;
pub mod originals;
pub mod path;
pub mod report;
pub mod restart;
pub mod shard;
pub mod uptimes;
pub mod verify;

use std::collections::{BTreeMap, BTreeSet};

use adaptive::{driver::AdaptiveDriver, signal::Signal, standing::NodeProgress, step::Outcome};
pub use declare::{Capability, Declared, PacedBy, TargetCapabilities, declare, floor};
use jiff::Timestamp;
pub use observed::{Cause, ConfigPath, Fault, Moved, NodeState, Process, Serves, Sites, Stored, Unit, UnitResult, UnitState};
use originals::Saved;
use serde_json::Value as Json;
pub use uptimes::Lives;

use crate::api::{
    IdleConnectionPolicyStatus, Limit, LimitValues, Value,
    conditions::{ConditionType, Reason},
    policy::DriftPolicy,
    status::Control,
};

/// The value to write to a config path.
#[derive(Clone, Debug, PartialEq)]
pub enum NewValue {
    /// A limit, in the target's own notation.
    Value(Value),
    /// The exact original value; `None` removes the setting.
    Raw(Option<Json>),
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The config path to write.
    pub site: ConfigPath,
    /// The new value.
    pub to: NewValue,
}

/// Everything that a decision depends on.
pub struct Input<'a> {
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `spec.suspend`.
    pub suspend: bool,
    /// `spec.driftPolicy`.
    pub drift_policy: DriftPolicy,
    /// What the policy declares.
    pub declared: &'a Declared,
    /// What the target can do.
    pub traits: &'a TargetCapabilities,
    /// The units that answered.
    pub units: &'a [(Unit, UnitState)],
    /// What the units held before the first write.
    pub saved: &'a BTreeMap<String, Saved>,
    /// By unit: the desired values that it was last seen to hold. A difference is drift only where the unit held this desired value;
    /// otherwise it is unfinished work. A unit that is absent has not been seen since the operator started.
    pub held: &'a BTreeMap<String, LimitValues>,
    /// Units whose process restarted since the last write. Their drift comes from their own config file, so it does not
    /// count as contention.
    pub restarted: &'a BTreeSet<String>,
    /// What the nodes' processes are known to use.
    pub lives: &'a Lives,
    /// Whether units wait for a later batch since the last pass: their drift has been counted.
    pub waiting: bool,
    /// The current status of the policy.
    pub previous: &'a IdleConnectionPolicyStatus,
    /// The input of adaptive control; `None` where the policy has none.
    pub adaptive: Option<AdaptiveInput<'a>>,
    /// The current time.
    pub now: Timestamp,
}

/// The input of adaptive control.
#[derive(Clone, Copy)]
pub struct AdaptiveInput<'a> {
    /// Adaptive control of the policy.
    pub driver: &'a AdaptiveDriver,
    /// The nodes' task counts.
    pub signal: &'a Signal,
    /// Adaptive control's own clock (Unix milliseconds), which does not jump.
    pub now: i64,
}

/// The decision of one reconcile: what to write, and what to remember.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// By unit id; a unit with nothing to do is absent.
    pub units: BTreeMap<String, UnitPlan>,
    /// Values that differ from the desired ones although the operator wrote them.
    pub drift: Vec<Drift>,
    /// Limits that are left alone for a while because another client keeps changing them.
    pub contended: BTreeSet<Limit>,
    /// What to keep in `status.control`.
    pub control: Control,
    /// The declared limits at the current openness.
    pub desired: Declared,
    /// The result of adaptive control's evaluation.
    pub outcome: Option<Outcome>,
    /// The restart plan, and what blocks a restart.
    pub restart: Option<(restart::RestartPlan, Option<String>)>,
}

impl Plan {
    /// Merges this plan with a later one for other units of the same policy.
    #[must_use]
    pub fn joined(mut self, later: Self) -> Self {
        let Self { units, drift, contended, control, desired: _, outcome: _, restart: _ } = later;
        self.units.extend(units);
        self.drift.extend(drift);
        self.contended.extend(contended);
        self.control = Control { adaptive: self.control.adaptive.take(), ..control };
        self
    }
}

/// A stored value that differs from the desired one although the operator wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Drift {
    /// The limit.
    pub limit: Limit,
    /// The unit's id.
    pub id: String,
    /// The unit's name.
    pub unit: String,
    /// Whether the unit's process restarted since the last write: the value need not come from another client then.
    pub restarted: bool,
    /// The value that the unit holds now.
    pub found: Option<Value>,
    /// The value that the unit should hold.
    pub declared: Value,
}

/// What to do to one unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnitPlan {
    /// Original values to save before the first write.
    pub capture: Sites,
    /// What to write, before [`order`] splits it.
    pub changes: Vec<Change>,
    /// Config paths whose saved value is no longer needed once the changes are made.
    pub forget: BTreeSet<ConfigPath>,
}

/// Decides what to write. Writes nothing where nothing differs.
#[must_use]
pub fn decide(input: &Input<'_>) -> Plan {
    let programmed = report::condition::reason(input.previous, ConditionType::Programmed);
    let settled = input.generation.is_some()
        && input.previous.observed_generation == input.generation
        && programmed.is_some_and(|reason| !matches!(reason, Reason::Progressing | Reason::UpdateStopped));
    let correcting = programmed == Some(Reason::Drifted) || input.waiting;
    // All nodes were seen to hold the desired values, except those that the status is about.
    let seen_all = matches!(programmed, Some(Reason::Programmed | Reason::Drifted | Reason::Contended));

    let mut plan = Plan { control: input.previous.control.clone().unwrap_or_default(), ..Plan::default() };
    if input.previous.observed_generation != input.generation {
        // A new generation is the author's new decision, so it ends the contention about the previous one.
        plan.control.contended.clear();
    }
    plan.outcome = input.adaptive.map(|adaptive| look(input, &adaptive));
    plan.desired = input.declared.clone();
    plan.control.adaptive = None;
    if let (Some(adaptive), Some(outcome)) = (&input.adaptive, &plan.outcome) {
        plan.desired = input.declared.at(&adaptive.driver.config().floor, outcome.state.openness);
        plan.control.adaptive = Some(Box::new(outcome.state.stored()));
    }
    // A value that was decided just now, or was decided and not yet seen on all nodes, is not drift.
    let settled = settled && plan.outcome.as_ref().is_none_or(|outcome| outcome.decision.is_none());
    let mut wanted = BTreeMap::new();
    for (unit, state) in input.units {
        let saved = input.saved.get(&unit.id).map(|saved| &*saved.sites);
        let settings = settings(&plan.desired, input.traits, unit, state, saved);
        for (site, stored) in &state.sites {
            let Some(&declared) = settings.get(&site.limit) else { continue };
            let original = saved.and_then(|sites| sites.get(site));
            let held = input.held.get(&unit.id).map_or(seen_all, |held| held.get(&site.limit) == Some(&declared));
            if stored.value != Some(declared) && settled && original.is_some() && held {
                plan.drift.push(Drift {
                    limit: site.limit,
                    id: unit.id.clone(),
                    unit: unit.name.clone(),
                    restarted: input.restarted.contains(&unit.id),
                    found: stored.value,
                    declared,
                });
            }
        }
        wanted.insert(&unit.id, settings);
    }

    let drifted: BTreeSet<Limit> = plan.drift.iter().map(|drift| drift.limit).collect();
    let contested = plan.drift.iter().filter(|drift| !drift.restarted).map(|drift| drift.limit).collect();
    let correct = input.drift_policy == DriftPolicy::Correct;
    if input.suspend {
        return plan;
    }
    plan.contended = contention::step(&mut plan.control.contended, &contested, correct && !correcting, input.now);
    for (unit, state) in input.units {
        let saved = input.saved.get(&unit.id).map(|saved| &*saved.sites);
        let settings = &wanted[&unit.id];
        let hands_off = |limit: &Limit| plan.contended.contains(limit) || (!correct && drifted.contains(limit));
        let unit_plan = unit_plan(settings, state, saved, hands_off);
        if unit_plan != UnitPlan::default() {
            plan.units.insert(unit.id.clone(), unit_plan);
        }
    }
    plan
}

/// One evaluation of adaptive control, with the nodes' progress on the previously desired values.
fn look(input: &Input<'_>, adaptive: &AdaptiveInput<'_>) -> Outcome {
    let AdaptiveInput { driver, signal, now } = *adaptive;
    let (floor, openness) = (&driver.config().floor, driver.state().openness);
    let changed = input.previous.control.as_ref().map(|control| control.changed.clone()).unwrap_or_default();
    let units = input.units.iter().map(|(unit, state)| (unit, state));
    let standing = NodeProgress::of(input.declared, floor, openness, input.traits, input.lives, &changed, units);
    driver.evaluate(signal, standing, now)
}

/// What one unit should hold: the declared limits, and those that depend on them.
#[must_use]
pub fn settings(
    declared: &Declared,
    traits: &TargetCapabilities,
    unit: &Unit,
    state: &UnitState,
    saved: Option<&Sites>,
) -> LimitValues {
    let wanted = declared.of(unit);
    let mut settings = (traits.companions)(&wanted, state, saved);
    settings.extend(wanted);
    settings
}

fn unit_plan(settings: &LimitValues, state: &UnitState, saved: Option<&Sites>, hands_off: impl Fn(&Limit) -> bool) -> UnitPlan {
    let mut plan = UnitPlan::default();
    for (site, stored) in &state.sites {
        let original = saved.and_then(|sites| sites.get(site));
        match (settings.get(&site.limit), original) {
            (Some(_), _) if hands_off(&site.limit) => {}
            (Some(&value), original) if stored.value != Some(value) => {
                if original.is_none() {
                    plan.capture.insert(site.clone(), stored.raw.clone());
                }
                plan.changes.push(Change { site: site.clone(), to: NewValue::Value(value) });
            }
            (None, Some(original)) => {
                // No longer declared: restore the original value.
                plan.forget.insert(site.clone());
                if stored.raw != *original {
                    plan.changes.push(Change { site: site.clone(), to: NewValue::Raw(original.clone()) });
                }
            }
            _ => {}
        }
    }
    plan
}

/// Limits of a unit that are no longer declared and whose original value is not restored yet.
#[must_use]
pub fn not_back(settings: &LimitValues, state: &UnitState, saved: Option<&Sites>) -> BTreeSet<Limit> {
    let changes = saved.map(|saved| restore(state, saved)).unwrap_or_default();
    changes.into_iter().map(|change| change.site.limit).filter(|limit| !settings.contains_key(limit)).collect()
}

/// The changes that restore a unit: every saved config path that still exists and differs.
#[must_use]
pub fn restore(state: &UnitState, saved: &Sites) -> Vec<Change> {
    state
        .sites
        .iter()
        .filter_map(|(site, stored)| {
            let original = saved.get(site)?;
            (stored.raw != *original).then(|| Change { site: site.clone(), to: NewValue::Raw(original.clone()) })
        })
        .collect()
}

#[cfg(test)]
mod tests;
