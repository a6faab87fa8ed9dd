//! Turns a spec into values that a target can take: preset, limits, caps, and limits that the target does not have.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value as Json;

use super::{
    adaptive::{
        attribution::MostPooled,
        openness::{self, Percent},
    },
    observed::{Moved, NodeState, Sites, Unit, UnitState},
};
use crate::api::{
    Format, IdleConnectionPolicySpec, Limit, LimitValues, Limits, Value,
    flush::{Flush, Reload},
};

/// What a target does with a new value of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// A running process uses a new value at once, and nothing is closed.
    Hot,
    /// A running process uses a new value at once, and the write itself closes connections.
    Flush(Flush),
    /// A new value is stored, and takes effect when the process next starts.
    AfterRestart,
    /// A process may read a new value while it runs. Whether it uses the value is known only from its own report, or
    /// from its start.
    Reported(Reload),
    /// The target has no such setting.
    Unsupported,
}

impl Capability {
    /// What each change of the limit closes, if it closes connections.
    #[must_use]
    pub const fn flush(self) -> Option<Flush> {
        match self {
            Self::Flush(flush) | Self::Reported(Reload::Flush(flush)) => Some(flush),
            Self::Hot | Self::AfterRestart | Self::Reported(Reload::Hot | Reload::AtStart) | Self::Unsupported => None,
        }
    }
}

/// What decides when each node takes a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacedBy {
    /// The operator: each node is written by a separate write, which closes the idle connections of this node alone. So the
    /// nodes can be written in batches.
    Operator,
    /// The cluster: one write reaches all of its nodes.
    Cluster,
    /// The kubelet of each pod, which updates a mounted file.
    Kubelet,
}

/// Maps a unit's saved values to the current names of its config paths; see [`TargetCapabilities::moved`].
pub type Follow = fn(&Sites, &UnitState, &BTreeSet<(Limit, Value)>) -> Option<Moved>;

/// What all targets of a kind can do.
#[derive(Clone, Copy)]
pub struct TargetCapabilities {
    /// What the target does with a new value of a limit.
    pub capability: fn(Limit) -> Capability,
    /// The format, if the target is a file: its limits are [`Capability::Reported`], whatever `capability` says.
    pub file: Option<Format>,
    /// What decides when each node takes a change; `None` if that is not known.
    pub paced_by: Option<PacedBy>,
    /// Whether the operator restarts its nodes for limits that they read only when they start
    /// (`restart.policy: Rolling`).
    pub rolling: bool,
    /// Why the target cannot express a value, as the end of a sentence; `None` if it can. Usually the value is 0, "no
    /// limit", and the target takes 0 for its own default.
    pub inexpressible: fn(Limit, Value) -> Option<&'static str>,
    /// Reads a saved value as a limit; `None` if it is not valid for one.
    pub value: fn(Limit, &Json) -> Option<Value>,
    /// Lowers a value to the target's maximum.
    pub cap: fn(Limit, Value) -> Value,
    /// Further values that have to be written together with the declared ones; otherwise the target refuses them.
    pub companions: fn(&LimitValues, &UnitState, Option<&Sites>) -> LimitValues,
    /// Maps a unit's saved values to the current names of its config paths, where names changed. The last argument is
    /// the values that the operator may have written.
    pub moved: Follow,
    /// The idle timeout of a pool whose limit is not set, if it is known.
    pub default_idle: fn(Limit) -> Option<Duration>,
    /// The highest number of tasks of each of these nodes that pools with these limits can hold; `None` where nothing
    /// bounds them.
    pub most_pooled: fn(&LimitValues, &[&NodeState]) -> Option<MostPooled>,
}

impl TargetCapabilities {
    /// A server that takes every value while it runs, with nothing else known. Each kind of target overrides what
    /// differs.
    pub const PLAIN: Self = Self {
        capability: |_| Capability::Hot,
        file: None,
        paced_by: None,
        rolling: false,
        inexpressible: |_, _| None,
        value: |_, _| None,
        cap: |_, value| value,
        companions: |_, _, _| LimitValues::new(),
        moved: |_, _, _| None,
        default_idle: |_| None,
        most_pooled: |_, _| None,
    };

    /// Whether the nodes can be written in batches.
    #[must_use]
    pub fn has_batches(&self) -> bool {
        self.paced_by == Some(PacedBy::Operator)
    }

    /// Whether the target has a limit and can express this value.
    #[must_use]
    pub fn takes(&self, limit: Limit, value: Value) -> bool {
        self.supports(limit) && (self.inexpressible)(limit, value).is_none()
    }

    /// The idle timeout of a pool whose limit is not set, if it is known.
    #[must_use]
    pub fn default_idle(&self, limit: Limit) -> Option<Duration> {
        match self.file {
            Some(format) => format.default_idle(limit),
            None => (self.default_idle)(limit),
        }
    }

    /// Whether targets of this kind have a limit.
    #[must_use]
    pub fn supports(&self, limit: Limit) -> bool {
        self.capability(limit) != Capability::Unsupported
    }

    /// What the target does with a new value of a limit.
    #[must_use]
    pub fn capability(&self, limit: Limit) -> Capability {
        match self.file {
            Some(format) if format.has(limit) => Capability::Reported(format.reload(limit)),
            Some(_) => Capability::Unsupported,
            None => (self.capability)(limit),
        }
    }
}

/// What a policy declares for a target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// The values to store.
    pub settings: LimitValues,
    /// Limits that the user wrote and the target does not have, or cannot express.
    pub unsupported: BTreeSet<Limit>,
    /// Limits that the user wrote, rather than a preset.
    pub written: BTreeSet<Limit>,
    /// Limits of a preset that exceed the target's own maximum, with that maximum.
    pub capped: LimitValues,
    /// Overrides for some of the nodes. Those by role come first, because an override by node name beats them.
    pub overrides: Vec<Override>,
    /// Limits towards a provider. They are written as declared; adaptive control does not tighten them.
    pub providers: BTreeMap<String, LimitValues>,
}

/// Limits that differ for some of the nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// The override's name.
    pub name: String,
    /// The role that it applies to.
    pub role: Option<String>,
    /// Names of the nodes that it applies to.
    pub nodes: BTreeSet<String>,
    /// The limits that differ.
    pub settings: LimitValues,
}

impl Declared {
    /// Every value that is declared for any unit.
    #[must_use]
    pub fn values(&self) -> BTreeSet<(Limit, Value)> {
        let overrides = self.overrides.iter().flat_map(|over| &over.settings);
        self.settings.iter().chain(overrides).map(|(limit, value)| (*limit, *value)).collect()
    }

    /// The limits that are declared for one unit.
    #[must_use]
    pub fn of(&self, unit: &Unit) -> LimitValues {
        let mut settings = self.settings.clone();
        let concerns = |o: &&Override| o.nodes.contains(&unit.name) || (o.role.is_some() && o.role == unit.role);
        for o in self.overrides.iter().filter(concerns) {
            settings.extend(&o.settings);
        }
        settings
    }

    /// The declared limits at an openness. A limit without a floor stays.
    #[must_use]
    pub fn at(&self, floor: &LimitValues, openness: Percent) -> Self {
        let mut desired = self.clone();
        desired.settings = openness::at(&self.settings, floor, openness);
        for o in &mut desired.overrides {
            let mut whole = self.settings.clone();
            whole.extend(&o.settings);
            let moved = openness::at(&whole, floor, openness);
            // A floor may also move a limit that the override leaves to the policy. Then the override gets that limit
            // too.
            o.settings = moved
                .into_iter()
                .filter(|(limit, value)| o.settings.contains_key(limit) || desired.settings.get(limit) != Some(value))
                .collect();
        }
        desired
    }

    /// Why an override is invalid, as a message for the user. The API server does not merge it with the rest, so it
    /// cannot check this.
    #[must_use]
    pub fn invalid(&self, floor: &LimitValues) -> Option<String> {
        if let Some(message) = openness::invalid(&self.settings, floor) {
            return Some(message);
        }
        let mut seen = BTreeSet::new();
        for o in &self.overrides {
            if let Some(node) = o.nodes.iter().find(|node| !seen.insert(node.as_str())) {
                return Some(format!("spec.overrides names node {node} twice; name it in one override only"));
            }
        }
        let nodes = self.overrides.iter().map(|o| (&o.name, &o.settings));
        nodes.chain(&self.providers).find_map(|(name, settings)| {
            let mut whole = self.settings.clone();
            whole.extend(settings);
            let bound: LimitValues =
                floor.iter().filter(|(limit, _)| settings.contains_key(limit)).map(|(limit, floor)| (*limit, *floor)).collect();
            let wrong = openness::invalid(&whole, &bound).or_else(|| openness::apart(&whole))?;
            Some(format!("Override {name}: {wrong}"))
        })
    }
}

/// Merges preset and limits, limit by limit: limits beat the preset, and a limit that neither sets is not managed.
#[must_use]
pub fn declare(spec: &IdleConnectionPolicySpec, traits: &TargetCapabilities) -> Declared {
    let mut declared = Declared::default();
    let written = spec.limits.as_ref().map(Limits::settings).unwrap_or_default();
    for (limit, value) in spec.preset.map(crate::api::Preset::settings).unwrap_or_default() {
        if !traits.takes(limit, value) || written.contains_key(&limit) {
            continue;
        }
        let capped = (traits.cap)(limit, value);
        if capped != value {
            declared.capped.insert(limit, capped);
        }
        declared.settings.insert(limit, capped);
    }
    declared.written = written.keys().copied().collect();
    for (limit, value) in written {
        if traits.takes(limit, value) {
            declared.settings.insert(limit, value);
        } else {
            declared.unsupported.insert(limit);
        }
    }
    let mut overrides: Vec<_> = spec.overrides.iter().flatten().collect();
    overrides.sort_by_key(|o| (o.nodes.is_some(), &o.name));
    for o in overrides {
        let (settings, without): (LimitValues, LimitValues) =
            o.limits.settings().into_iter().partition(|(limit, value)| traits.takes(*limit, *value));
        declared.unsupported.extend(without.into_keys());
        match &o.provider {
            Some(provider) => drop(declared.providers.insert(provider.clone(), settings)),
            None => declared.overrides.push(Override {
                name: o.name.clone(),
                role: o.role.clone(),
                nodes: o.nodes.iter().flatten().cloned().collect(),
                settings,
            }),
        }
    }
    declared
}

/// The floor of those limits that the target has.
#[must_use]
pub fn floor(spec: &IdleConnectionPolicySpec, traits: &TargetCapabilities) -> LimitValues {
    let floor = spec.adaptive.as_ref().and_then(|adaptive| adaptive.floor.as_ref()).map(Limits::settings).unwrap_or_default();
    floor.into_iter().filter(|(limit, value)| traits.takes(*limit, *value)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, from_value, json};

    use super::*;
    use crate::api::GoDuration;

    const TRAITS: TargetCapabilities = TargetCapabilities {
        capability: |limit| if matches!(limit, Limit::BackendRequestTimeout) { Capability::Unsupported } else { Capability::Hot },
        ..TargetCapabilities::PLAIN
    };

    fn declared(overrides: &Json) -> Declared {
        let spec = json!({
            "target": {"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "x"}}}},
            "limits": {"server": {"idleTimeout": "100s"}, "backend": {"maxIdleConns": 100, "maxIdleConnsPerHost": 10}},
            "overrides": overrides,
        });
        declare(&from_value(spec).expect("a spec"), &TRAITS)
    }

    fn of(declared: &Declared, name: &str, role: Option<&str>) -> (String, String) {
        let unit = Unit { id: name.into(), name: name.into(), address: String::new(), role: role.map(str::to_owned) };
        let settings = declared.of(&unit);
        (settings[&Limit::ServerIdleTimeout].to_string(), settings[&Limit::BackendMaxIdleConns].to_string())
    }

    fn is(idle: &str, total: &str) -> (String, String) {
        (idle.into(), total.into())
    }

    #[test]
    fn a_node_beats_a_role_and_a_role_the_policy_field_by_field() {
        let declared = declared(&json!([
            {"name": "a", "nodes": ["gw-1", "gw-2"], "limits": {"server": {"idleTimeout": "10s"}}},
            {"name": "b", "role": "edge", "limits": {"server": {"idleTimeout": "20s"}, "backend": {"maxIdleConns": 50, "requestTimeout": "1s"}}},
        ]));
        assert_eq!(of(&declared, "gw-0", None), is("1m40s", "100"));
        assert_eq!(of(&declared, "gw-0", Some("edge")), is("20s", "50"));
        assert_eq!(of(&declared, "gw-0", Some("core")), is("1m40s", "100"));
        assert_eq!(of(&declared, "gw-1", None), is("10s", "100"));
        assert_eq!(of(&declared, "gw-2", Some("edge")), is("10s", "50"));
        assert_eq!(declared.unsupported, BTreeSet::from([Limit::BackendRequestTimeout]));
    }

    #[test]
    fn an_override_is_tightened_towards_the_same_floor() {
        let declared = declared(&json!([{"name": "a", "nodes": ["gw-1"], "limits": {"server": {"idleTimeout": "60s"}}}]));
        let floor = LimitValues::from([(Limit::ServerIdleTimeout, Value::Duration(Duration::from_secs(20)))]);
        let half = declared.at(&floor, 50);
        assert_eq!((of(&half, "gw-0", None), of(&half, "gw-1", None)), (is("1m", "100"), is("40s", "100")));
        assert_eq!(declared.at(&floor, 100), declared);
        assert_eq!(of(&declared.at(&floor, 0), "gw-1", None), is("20s", "100"));
    }

    #[test]
    fn an_override_of_the_whole_takes_its_part_along() {
        let (part, whole) = (Limit::BackendMaxIdleConnsPerHost, Limit::BackendMaxIdleConns);
        let spec: IdleConnectionPolicySpec = from_value(json!({
            "target": {"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "x"}}}},
            "limits": {"backend": {"maxIdleConns": 10_000, "maxIdleConnsPerHost": 100}},
            "overrides": [{"name": "a", "nodes": ["gw-1"], "limits": {"backend": {"maxIdleConns": 300}}}],
        }))
        .expect("a spec");
        let floor = LimitValues::from([(whole, Value::Count(10)), (part, Value::Count(10))]);
        // The ratio is large, so the interpolation is geometric: at 20% the whole is 39 (19 in the override), and the
        // part is 28.
        let fifth = declare(&spec, &TRAITS).at(&floor, 20);
        assert_eq!(fifth.settings, LimitValues::from([(whole, Value::Count(39)), (part, Value::Count(28))]));
        assert_eq!(fifth.overrides[0].settings, LimitValues::from([(whole, Value::Count(19)), (part, Value::Count(19))]));
    }

    #[test]
    fn an_override_that_does_not_fit_the_rest_is_named() {
        let floor = LimitValues::from([(Limit::ServerIdleTimeout, Value::Duration(Duration::from_secs(20)))]);
        let said = |overrides: &Json| declared(overrides).invalid(&floor).unwrap_or_default();
        assert_eq!(said(&json!([{"name": "a", "nodes": ["n"], "limits": {"server": {"idleTimeout": "20s"}}}])), "");
        let low = said(&json!([{"name": "a", "nodes": ["n"], "limits": {"server": {"idleTimeout": "19s"}}}]));
        assert!(low.starts_with("Override a: spec.adaptive.floor.server.idleTimeout 20s exceeds the limit 19s"), "{low}");
        let apart = said(&json!([{"name": "a", "role": "r", "limits": {"backend": {"maxIdleConns": 9}}}]));
        assert_eq!(
            apart,
            "Override a: backend.maxIdleConnsPerHost 10 exceeds backend.maxIdleConns 9; lower the first or raise the second"
        );
        let twice = said(&json!([{"name": "a", "nodes": ["n"], "limits": {}}, {"name": "b", "nodes": ["n"], "limits": {}}]));
        assert!(twice.contains("names node n twice"), "{twice}");
    }

    #[test]
    fn limits_beat_the_preset_and_what_has_no_place_is_named_only_where_it_was_written() {
        let traits = TargetCapabilities {
            capability: |limit| match limit {
                Limit::ServerIdleTimeout | Limit::IntraClusterMaxIdleConns | Limit::BackendMaxIdleConns => Capability::Hot,
                _ => Capability::Unsupported,
            },
            // A duration is less than any count.
            cap: |_, value| value.min(Value::Count(1500)),
            ..TRAITS
        };
        let spec: IdleConnectionPolicySpec = from_value(json!({
            "target": {"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "x"}}}},
            "preset": "Production",
            "limits": {"backend": {"maxIdleConns": 1900, "maxConnsPerHost": 9}},
            "adaptive": {"floor": {"server": {"idleTimeout": "5s"}, "backend": {"maxConnsPerHost": 3}}},
        }))
        .expect("a spec");
        let declared = declare(&spec, &traits);
        let said = |settings: &LimitValues| settings.iter().map(|(limit, value)| format!("{limit} {value}")).collect::<Vec<_>>();
        assert_eq!(
            said(&declared.settings),
            ["server.idleTimeout 30s", "intraCluster.maxIdleConns 1500", "backend.maxIdleConns 1900"]
        );
        assert_eq!(said(&declared.capped), ["intraCluster.maxIdleConns 1500"], "a preset is capped, a limit is not");
        assert_eq!(declared.unsupported, BTreeSet::from([Limit::BackendMaxConnsPerHost]));
        assert_eq!(declared.written, BTreeSet::from([Limit::BackendMaxIdleConns, Limit::BackendMaxConnsPerHost]));
        assert_eq!(said(&floor(&spec, &traits)), ["server.idleTimeout 5s"]);
    }

    #[test]
    fn a_file_has_the_fields_that_it_has_a_place_for() {
        let traits = TargetCapabilities { file: Some(Format::ThanosObjstore), ..TRAITS };
        assert_eq!(traits.capability(Limit::BackendMaxIdleConns), Capability::Reported(Reload::AtStart));
        assert_eq!(traits.capability(Limit::ServerIdleTimeout), Capability::Unsupported);
        assert_eq!(TRAITS.capability(Limit::BackendMaxIdleConns), Capability::Hot);
    }

    #[test]
    fn a_provider_has_its_own() {
        let declared =
            declared(&json!([{"name": "a", "provider": "anthropic", "limits": {"backend": {"idleConnTimeout": "9s"}}}]));
        let idle = GoDuration::from(Duration::from_secs(9)).get().map(Value::Duration);
        assert_eq!(declared.providers["anthropic"].get(&Limit::BackendIdleConnTimeout).copied(), idle);
        assert!(declared.overrides.is_empty());
    }
}
