//! How far the nodes have applied what adaptive control wants.

use std::collections::BTreeMap;

use super::openness::Percent;
use crate::{
    api::{Limit, LimitValues},
    decide::{Capability, Declared, Lives, TargetCapabilities, Unit, UnitState, report::status},
};

/// How far the nodes have applied what adaptive control wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeProgress {
    /// Whether more than half of the nodes use the desired values.
    pub in_effect: bool,
    /// Whether a limit that has a floor takes effect only after a restart.
    pub needs_restart: bool,
}

impl NodeProgress {
    /// The standing of the nodes at an openness. `changed`: when a limit that needs a restart was last changed (Unix
    /// milliseconds).
    #[must_use]
    pub fn of<'a>(
        declared: &Declared,
        floor: &LimitValues,
        openness: Percent,
        traits: &TargetCapabilities,
        lives: &Lives,
        changed: &BTreeMap<Limit, i64>,
        units: impl IntoIterator<Item = (&'a Unit, &'a UnitState)>,
    ) -> Self {
        let desired = declared.at(floor, openness);
        let (mut nodes, mut using) = (0, 0);
        for (unit, state) in units {
            let wanted: LimitValues = desired.of(unit).into_iter().filter(|(limit, _)| floor.contains_key(limit)).collect();
            for node in &state.nodes {
                nodes += 1;
                let Ok(stored) = &node.stored else { continue };
                let uses = wanted.iter().all(|(limit, value)| {
                    stored.get(limit).is_none_or(|stored| {
                        *stored == Some(*value) && status::in_use(*limit, traits, changed, lives, node) == Some(true)
                    })
                });
                using += usize::from(uses);
            }
        }
        Self {
            in_effect: using * 2 > nodes,
            needs_restart: floor.keys().filter(|limit| desired.settings.contains_key(limit)).any(|limit| {
                match traits.capability(*limit) {
                    Capability::AfterRestart => true,
                    Capability::Reported(_) => traits.rolling,
                    Capability::Hot | Capability::Flush(_) | Capability::Unsupported => false,
                }
            }),
        }
    }
}
