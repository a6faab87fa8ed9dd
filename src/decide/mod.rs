//! What to do, and what to say of it. Pure and total: values in (`now` is one), values out.
//!
//! No kube client, no HTTP, no tokio and no clock may come in here: the controller, the tests and every
//! tool that explains a decision call the very same code.

pub mod adapt;
pub mod advice;
pub mod attribution;
pub mod claims;
pub mod condition;
pub mod conditions;
pub mod contention;
pub mod declare;
pub mod disturbance;
pub mod efficacy;
pub mod flushes;
pub mod hash;
pub mod lease;
pub mod lives;
pub mod loop_conditions;
pub mod measured;
pub mod observed;
pub mod openness;
pub mod order;
pub mod originals;
pub mod path;
pub mod restart;
pub mod rollout;
pub mod signal;
pub mod state;
pub mod tighten;
pub mod truths;
pub mod tuning;
pub mod verify;

use std::collections::{BTreeMap, BTreeSet};

use adapt::{Facts, Outcome};
use attribution::{Attribution, MostPooled};
pub use declare::{Capability, Declared, Traits, declare, floor};
pub use disturbance::disturbance;
use jiff::Timestamp;
pub use lives::Lives;
pub use observed::{Cause, Fault, Moved, NodeState, Process, Serves, Site, Sites, Stored, Unit, UnitState};
use originals::Saved;
use serde_json::Value as Json;
use signal::Signal;
use state::State;
use tighten::Share;
use tuning::Tuning;

use crate::api::{
    IdleConnectionPolicyStatus, Knob, Settings, Value,
    conditions::{ConditionType, Reason},
    policy::DriftPolicy,
    status::Control,
};

/// What a site is to hold.
#[derive(Clone, Debug, PartialEq)]
pub enum To {
    /// A limit, in whatever way the target writes it.
    Value(Value),
    /// Exactly what was there; `None` removes it.
    Raw(Option<Json>),
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Where.
    pub site: Site,
    /// What.
    pub to: To,
}

/// Everything a decision is made from.
pub struct Input<'a> {
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `spec.suspend`.
    pub suspend: bool,
    /// `spec.driftPolicy`.
    pub drift_policy: DriftPolicy,
    /// What the policy asks for.
    pub declared: &'a Declared,
    /// What is true of the target.
    pub traits: &'a Traits,
    /// The units that answered.
    pub units: &'a [(Unit, UnitState)],
    /// What they held before the first write.
    pub saved: &'a BTreeMap<String, Saved>,
    /// Units whose last write did not end well: what they hold is unfinished work, not drift.
    pub unfinished: &'a BTreeSet<String>,
    /// Units whose process has started anew since it was last written: what they hold is their own file's, and nobody's contest.
    pub restarted: &'a BTreeSet<String>,
    /// What the nodes' processes are known to use.
    pub lives: &'a Lives,
    /// The status as it stands.
    pub previous: &'a IdleConnectionPolicyStatus,
    /// What moves the limits by itself, if anything does.
    pub adaptive: Option<Adaptive<'a>>,
    /// The time.
    pub now: Timestamp,
}

/// What the loop is made from.
#[derive(Clone, Copy)]
pub struct Adaptive<'a> {
    /// The numbers.
    pub tuning: &'a Tuning,
    /// How far the limits may be tightened.
    pub floor: &'a Settings,
    /// Where it stands.
    pub state: &'a State,
    /// What the nodes' tasks say.
    pub signal: &'a Signal,
    /// Annotations that stop it.
    pub pause: Pause,
    /// What is known of the pools' part of the tasks, besides what the signal tells.
    pub share: Share,
    /// The most tasks of each node that pooled connections can be, by the limits that the nodes may be using.
    pub most_pooled: Option<&'a MostPooled>,
    /// Whether the source says only that there are too many.
    pub levels: bool,
    /// Whether nodes are restarted for every step.
    pub rolls: bool,
    /// What a change does by itself; `None` where it closes nothing.
    pub disturbance: Option<adapt::Disturbance>,
    /// Nothing is decided before this (Unix milliseconds).
    pub not_before: i64,
    /// The loop's own clock (Unix milliseconds), which does not jump.
    pub now: i64,
}

/// What may not be done for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// No tightening.
    pub tighten: bool,
    /// No relaxing.
    pub relax: bool,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// By unit id; a unit with nothing to do is absent.
    pub units: BTreeMap<String, UnitPlan>,
    /// Where somebody else changed a value: limit, unit name, what was found.
    pub drift: Vec<Drift>,
    /// Limits that are left alone for a while, because somebody else insists on another value.
    pub contended: BTreeSet<Knob>,
    /// What to remember.
    pub control: Control,
    /// What is declared, at the present openness.
    pub desired: Declared,
    /// What came of the loop's look.
    pub outcome: Option<Outcome>,
    /// What came of looking at restarts, and what stands in the way of one.
    pub restart: Option<(restart::Outcome, Option<String>)>,
}

impl Plan {
    /// This plan and one that was made after it for other units of the same policy.
    #[must_use]
    pub fn joined(mut self, later: Self) -> Self {
        let Self { units, drift, contended, control, desired: _, outcome: _, restart: _ } = later;
        self.units.extend(units);
        self.drift.extend(drift);
        self.contended.extend(contended);
        self.control = Control { adaptation: self.control.adaptation.take(), ..control };
        self
    }
}

/// A value that somebody else changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Drift {
    /// The limit.
    pub knob: Knob,
    /// The unit's id.
    pub id: String,
    /// The unit's name.
    pub unit: String,
    /// Whether its process has started anew, rather than been told otherwise.
    pub restarted: bool,
    /// What it holds now.
    pub found: Option<Value>,
    /// What it should hold.
    pub declared: Value,
}

/// What to do to one unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnitPlan {
    /// What to save before the first write.
    pub capture: Sites,
    /// What to write, all at once.
    pub changes: Vec<Change>,
    /// Sites that are back to what they held, or gone, once the changes are made: no longer kept.
    pub forget: BTreeSet<Site>,
}

/// Decides what to write. Nothing is written where nothing differs.
#[must_use]
pub fn decide(input: &Input<'_>) -> Plan {
    let settled = input.generation.is_some()
        && input.previous.observed_generation == input.generation
        && condition::reason(input.previous, ConditionType::Programmed).is_some_and(|reason| reason != Reason::Progressing);
    let partial = condition::reason(input.previous, ConditionType::Programmed) == Some(Reason::Partial);
    let correcting = condition::reason(input.previous, ConditionType::Programmed) == Some(Reason::Drifted);

    let mut plan = Plan { control: input.previous.control.clone().unwrap_or_default(), ..Plan::default() };
    if input.previous.observed_generation != input.generation {
        // A new generation is a new decision of the policy's author, so it ends a contest about the former one.
        plan.control.contended.clear();
    }
    plan.outcome = input.adaptive.map(|adaptive| look(input, &adaptive));
    plan.desired = input.declared.clone();
    plan.control.adaptation = None;
    if let (Some(adaptive), Some(outcome)) = (&input.adaptive, &plan.outcome) {
        plan.desired = input.declared.at(adaptive.floor, outcome.state.openness);
        plan.control.adaptation = Some(outcome.state.encode());
    }
    // What was just decided is not drift, and neither is what was decided and not yet seen to be everywhere.
    let settled = settled && plan.outcome.as_ref().is_none_or(|outcome| outcome.decision.is_none());
    let mut wanted = BTreeMap::new();
    for (unit, state) in input.units {
        let saved = input.saved.get(&unit.id).map(|saved| &saved.sites);
        let settings = settings(&plan.desired, input.traits, unit, state, saved);
        for (site, stored) in &state.sites {
            let Some(&declared) = settings.get(&site.knob) else { continue };
            let original = saved.and_then(|sites| sites.get(site));
            let unfinished = input.unfinished.contains(&unit.id) || (partial && original == Some(&stored.raw));
            if stored.value != Some(declared) && settled && original.is_some() && !unfinished {
                plan.drift.push(Drift {
                    knob: site.knob,
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

    let drifted: BTreeSet<Knob> = plan.drift.iter().map(|drift| drift.knob).collect();
    let contested = plan.drift.iter().filter(|drift| !drift.restarted).map(|drift| drift.knob).collect();
    let correct = input.drift_policy == DriftPolicy::Correct;
    if !input.suspend {
        plan.contended = contention::step(&mut plan.control.contended, &contested, correct && !correcting, input.now);
    }
    if input.suspend {
        return plan;
    }

    for (unit, state) in input.units {
        let saved = input.saved.get(&unit.id).map(|saved| &saved.sites);
        let settings = &wanted[&unit.id];
        let hands_off = |knob: &Knob| plan.contended.contains(knob) || (!correct && drifted.contains(knob));
        let unit_plan = unit_plan(settings, state, saved, hands_off);
        if unit_plan != UnitPlan::default() {
            plan.units.insert(unit.id.clone(), unit_plan);
        }
    }
    plan
}

/// One look of the loop, with what the nodes say of the values that it wanted before.
fn look(input: &Input<'_>, adaptive: &Adaptive<'_>) -> Outcome {
    let Adaptive { tuning, floor, state, signal, now, .. } = *adaptive;
    let declared = &input.declared.settings;
    let changed = input.previous.control.as_ref().map(|control| control.changed.clone()).unwrap_or_default();
    let units = input.units.iter().map(|(unit, state)| (unit, state));
    let standing = standing(input.declared, floor, state, input.traits, input.lives, &changed, units);
    adapt::step(tuning, &adaptive.facts(declared, input.suspend, standing), state, signal, now)
}

impl<'a> Adaptive<'a> {
    /// What is true around the loop, by all that it was told.
    #[must_use]
    pub fn facts(&self, declared: &'a Settings, suspend: bool, standing: Standing) -> Facts<'a> {
        Facts {
            declared,
            floor: self.floor,
            no_tightening: self.pause.tighten || suspend,
            no_relaxing: self.pause.relax || suspend,
            in_effect: standing.in_effect,
            needs_restart: standing.needs_restart,
            rolls: self.rolls && !suspend,
            share: self.attribution().share,
            levels: self.levels,
            disturbance: self.disturbance,
            not_before: self.not_before,
        }
    }

    /// The pools' part of the tasks, no more than the open files and the limits themselves allow.
    #[must_use]
    pub fn attribution(&self) -> Attribution {
        match self.signal {
            Signal::Fresh(reading) => Attribution::new(self.share, self.most_pooled, reading),
            Signal::Missing { .. } => Attribution { share: self.share, bound: None },
        }
    }
}

/// How far the nodes are with what the loop wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether more than half of the nodes that answered use it.
    pub in_effect: bool,
    /// Whether a limit with a floor takes a restart.
    pub needs_restart: bool,
}

/// See [`Standing`].
#[must_use]
pub fn standing<'a>(
    declared: &Declared,
    floor: &Settings,
    loop_state: &State,
    traits: &Traits,
    lives: &Lives,
    changed: &BTreeMap<Knob, i64>,
    units: impl IntoIterator<Item = (&'a Unit, &'a UnitState)>,
) -> Standing {
    let desired = declared.at(floor, loop_state.openness);
    let (mut nodes, mut using) = (0, 0);
    for (unit, state) in units {
        let wanted: Settings = desired.of(unit).into_iter().filter(|(knob, _)| floor.contains_key(knob)).collect();
        for node in &state.nodes {
            nodes += 1;
            let Ok(stored) = &node.stored else { continue };
            let uses = wanted.iter().all(|(knob, value)| {
                stored.get(knob).is_none_or(|stored| {
                    *stored == Some(*value) && conditions::in_use(*knob, traits, changed, lives, node) == Some(true)
                })
            });
            using += usize::from(uses);
        }
    }
    Standing {
        in_effect: using * 2 > nodes,
        needs_restart: floor.keys().filter(|knob| desired.settings.contains_key(knob)).any(|knob| {
            match traits.capability(*knob) {
                Capability::AfterRestart => true,
                Capability::Reported(_) => traits.rolling,
                Capability::Hot | Capability::Flush(_) | Capability::Unsupported => false,
            }
        }),
    }
}

/// What one unit is to hold: what is declared, and what has to go with it.
#[must_use]
pub fn settings(declared: &Declared, traits: &Traits, unit: &Unit, state: &UnitState, saved: Option<&Sites>) -> Settings {
    let wanted = declared.of(unit);
    let mut settings = (traits.companions)(&wanted, state, saved);
    settings.extend(wanted);
    settings
}

fn unit_plan(settings: &Settings, state: &UnitState, saved: Option<&Sites>, hands_off: impl Fn(&Knob) -> bool) -> UnitPlan {
    let mut plan = UnitPlan::default();
    for (site, stored) in &state.sites {
        let original = saved.and_then(|sites| sites.get(site));
        match (settings.get(&site.knob), original) {
            (Some(_), _) if hands_off(&site.knob) => {}
            (Some(&value), original) if stored.value != Some(value) => {
                if original.is_none() {
                    plan.capture.insert(site.clone(), stored.raw.clone());
                }
                plan.changes.push(Change { site: site.clone(), to: To::Value(value) });
            }
            (None, Some(original)) => {
                // No longer declared: back to what was there before the policy came.
                plan.forget.insert(site.clone());
                if stored.raw != *original {
                    plan.changes.push(Change { site: site.clone(), to: To::Raw(original.clone()) });
                }
            }
            _ => {}
        }
    }
    plan
}

/// Limits of a unit that are no longer declared and have not got their old value back.
#[must_use]
pub fn not_back(settings: &Settings, state: &UnitState, saved: Option<&Sites>) -> BTreeSet<Knob> {
    let changes = saved.map(|saved| restore(state, saved)).unwrap_or_default();
    changes.into_iter().map(|change| change.site.knob).filter(|knob| !settings.contains_key(knob)).collect()
}

/// What brings a unit back to what it held: every saved site that still exists and differs.
#[must_use]
pub fn restore(state: &UnitState, saved: &Sites) -> Vec<Change> {
    state
        .sites
        .iter()
        .filter_map(|(site, stored)| {
            let original = saved.get(site)?;
            (stored.raw != *original).then(|| Change { site: site.clone(), to: To::Raw(original.clone()) })
        })
        .collect()
}

#[cfg(test)]
mod tests;
