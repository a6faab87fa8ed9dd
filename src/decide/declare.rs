//! From a spec to the values that a target can take: preset, limits, caps, and what has no place.

use std::collections::BTreeSet;

use super::observed::{Sites, UnitState};
use crate::api::{IdleConnectionPolicySpec, Knob, Limits, Settings, Value};

/// What a target does with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// A running process uses a new value at once.
    Hot,
    /// A new value is stored, and used after the next start of the process.
    AfterRestart,
    /// A process that is told may use a new value while it runs. Whether it does is known by its own word only, or by its start.
    Reported,
    /// There is no such setting.
    Unsupported,
}

/// What is true of every target of a kind.
#[derive(Clone, Copy)]
pub struct Traits {
    /// What it does with a field.
    pub capability: fn(Knob) -> Capability,
    /// The fields that a file has a place for, where it is a file: all of them [`Capability::Reported`], whatever `capability` says.
    pub fields: Option<&'static [(Knob, &'static str)]>,
    /// Whether its nodes are started anew for what they read only then, by the policy's own word (`restart.policy: Rolling`).
    pub rolling: bool,
    /// The largest value it takes, at most the one given.
    pub cap: fn(Knob, Value) -> Value,
    /// Further values that have to be written together with the declared ones, or the target refuses them.
    pub companions: fn(&Settings, &UnitState, Option<&Sites>) -> Settings,
    /// The most tasks of one node, of so many, that pools with these limits can hold; `None` where nothing bounds them.
    pub most_pooled: fn(&Settings, usize) -> Option<f64>,
}

impl Traits {
    /// What the target does with a field.
    #[must_use]
    pub fn capability(&self, knob: Knob) -> Capability {
        match self.fields {
            Some(fields) if fields.iter().any(|(field, _)| *field == knob) => Capability::Reported,
            Some(_) => Capability::Unsupported,
            None => (self.capability)(knob),
        }
    }
}

/// What a policy asks of a target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// What is to be stored.
    pub settings: Settings,
    /// What the user wrote and the target has no place for.
    pub unsupported: BTreeSet<Knob>,
    /// What the user wrote himself, rather than a preset.
    pub written: BTreeSet<Knob>,
    /// What a preset asked for and the target's own maximum lowered, with that maximum.
    pub capped: Settings,
}

/// Field by field: limits beat the preset, and what neither sets is not managed.
#[must_use]
pub fn declare(spec: &IdleConnectionPolicySpec, traits: &Traits) -> Declared {
    let mut declared = Declared::default();
    let written = spec.limits.as_ref().map(Limits::settings).unwrap_or_default();
    for (knob, value) in spec.preset.map(crate::api::Preset::settings).unwrap_or_default() {
        if traits.capability(knob) == Capability::Unsupported || written.contains_key(&knob) {
            continue;
        }
        let capped = (traits.cap)(knob, value);
        if capped != value {
            declared.capped.insert(knob, capped);
        }
        declared.settings.insert(knob, capped);
    }
    declared.written = written.keys().copied().collect();
    for (knob, value) in written {
        if traits.capability(knob) == Capability::Unsupported {
            declared.unsupported.insert(knob);
        } else {
            declared.settings.insert(knob, value);
        }
    }
    declared
}

/// How far the limits may be tightened, of those that the target has.
#[must_use]
pub fn floor(spec: &IdleConnectionPolicySpec, traits: &Traits) -> Settings {
    let floor = spec.adaptive.as_ref().and_then(|adaptive| adaptive.floor.as_ref()).map(Limits::settings).unwrap_or_default();
    floor.into_iter().filter(|(knob, _)| traits.capability(*knob) != Capability::Unsupported).collect()
}
