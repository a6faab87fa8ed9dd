//! The connections that each change of a policy's limits closes, whatever the new values are.

use std::collections::{BTreeMap, BTreeSet};

use super::{Declared, Traits};
use crate::api::{
    GoDuration, Knob,
    flush::{Closes, Flush},
    wording::listed,
};

/// Declared limits whose changes close the same connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flushes {
    /// The limits.
    pub limits: Vec<Knob>,
    /// What a change of one of them closes.
    pub flush: Flush,
    /// Whether these are all limits that the policy declares.
    pub all: bool,
}

/// What changes of the declared limits close; empty where a change closes nothing, or takes effect only after a
/// restart.
#[must_use]
pub fn flushes(declared: &Declared, traits: &Traits) -> Vec<Flushes> {
    let mut limits: BTreeSet<_> = declared.values().into_iter().map(|(knob, _)| knob).collect();
    limits.extend(declared.providers.values().flat_map(|settings| settings.keys()));
    let mut groups: BTreeMap<_, Vec<Knob>> = BTreeMap::new();
    for knob in &limits {
        let Some(flush) = traits.capability(*knob).flush() else { continue };
        let pool = (flush.closes == Closes::OwnPool).then(|| knob.pool());
        groups.entry((flush, pool)).or_default().push(*knob);
    }
    groups.into_iter().map(|((flush, _), of)| Flushes { all: of.len() == limits.len(), limits: of, flush }).collect()
}

impl Flushes {
    /// A sentence for the user, without a full stop.
    #[must_use]
    pub fn sentence(&self) -> String {
        let names: Vec<_> = self.limits.iter().map(ToString::to_string).collect();
        let limits = if self.all { "these limits".into() } else { listed(&names) };
        let of = match (self.flush.closes, self.limits.first()) {
            (Closes::OwnPool, Some(knob)) => format!("the {} pool", knob.pool()),
            _ => "the server".into(),
        };
        let settle = match self.flush.settle {
            settle if settle.is_zero() => String::new(),
            settle => format!(" within {}", GoDuration::from(settle)),
        };
        format!("Each change of {limits} closes all idle connections of {of}{settle}")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        api::{Format, Settings, Value, flush::Reload},
        decide::Capability,
    };

    fn said(knobs: &[Knob], traits: &Traits) -> Vec<String> {
        let settings: Settings = knobs.iter().map(|knob| (*knob, Value::Count(1))).collect();
        let declared = Declared { settings, ..Declared::default() };
        flushes(&declared, traits).iter().map(Flushes::sentence).collect()
    }

    #[test]
    fn a_server_that_reloads_closes_all_its_connections() {
        let traits = Traits { file: Some(Format::Nginx), ..Traits::PLAIN };
        assert_eq!(
            said(&[Knob::ServerIdleTimeout, Knob::BackendIdleConnTimeout], &traits),
            ["Each change of these limits closes all idle connections of the server"]
        );
        assert!(said(&[], &traits).is_empty());
    }

    #[test]
    fn a_pool_that_is_replaced_closes_its_own() {
        let traits = Traits { file: Some(Format::Yaml), ..Traits::PLAIN };
        let knobs =
            [Knob::ServerIdleTimeout, Knob::IntraClusterMaxIdleConns, Knob::BackendIdleConnTimeout, Knob::BackendMaxIdleConns];
        assert_eq!(
            said(&knobs, &traits),
            [
                "Each change of backend.idleConnTimeout, backend.maxIdleConns closes all idle connections of the backend pool",
                "Each change of intraCluster.maxIdleConns closes all idle connections of the intraCluster pool",
            ]
        );
        assert!(said(&knobs[..1], &traits).is_empty());
    }

    #[test]
    fn a_provider_counts_and_a_server_may_need_a_while() {
        let drains = Flush { closes: Closes::AllPools, settle: Duration::from_secs(600) };
        assert_eq!(Capability::Reported(Reload::Flush(drains)).flush(), Some(drains));
        let traits = Traits {
            capability: |_| Capability::Flush(Flush { closes: Closes::AllPools, settle: Duration::from_secs(600) }),
            ..Traits::PLAIN
        };
        let own = Settings::from([(Knob::BackendMaxConnsPerHost, Value::Count(1))]);
        let declared = Declared { providers: [("a".to_owned(), own)].into(), ..Declared::default() };
        let found = flushes(&declared, &traits);
        assert_eq!(found, [Flushes { limits: vec![Knob::BackendMaxConnsPerHost], flush: drains, all: true }]);
        assert_eq!(found[0].sentence(), "Each change of these limits closes all idle connections of the server within 10m");
    }

    #[test]
    fn what_is_read_at_a_start_closes_nothing_before() {
        let restarts = Traits { capability: |_| Capability::AfterRestart, ..Traits::PLAIN };
        let starts = Traits { file: Some(Format::ThanosObjstore), ..Traits::PLAIN };
        for traits in [restarts, starts, Traits::PLAIN] {
            assert!(said(&[Knob::BackendIdleConnTimeout], &traits).is_empty());
        }
    }
}
