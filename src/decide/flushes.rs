//! The connections that each change of a policy's limits closes, whatever the new values are.

use std::collections::{BTreeMap, BTreeSet};

use super::{Declared, TargetCapabilities};
use crate::api::{
    GoDuration, Limit,
    flush::{Closes, Flush},
    wording::listed,
};

/// Declared limits whose changes close the same connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flushes {
    /// The limits.
    pub limits: Vec<Limit>,
    /// What a change of one of them closes.
    pub flush: Flush,
    /// Whether these are all limits that the policy declares.
    pub all: bool,
}

/// What changes of the declared limits close; empty where a change closes nothing, or takes effect only after a
/// restart.
#[must_use]
pub fn flushes(declared: &Declared, traits: &TargetCapabilities) -> Vec<Flushes> {
    let mut limits: BTreeSet<_> = declared.values().into_iter().map(|(limit, _)| limit).collect();
    limits.extend(declared.providers.values().flat_map(|settings| settings.keys()));
    let mut groups: BTreeMap<_, Vec<Limit>> = BTreeMap::new();
    for limit in &limits {
        let Some(flush) = traits.capability(*limit).flush() else { continue };
        let pool = (flush.closes == Closes::OwnPool).then(|| limit.pool());
        groups.entry((flush, pool)).or_default().push(*limit);
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
            (Closes::OwnPool, Some(limit)) => format!("the {} pool", limit.pool()),
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
        api::{Format, LimitValues, Value, flush::Reload},
        decide::Capability,
    };

    fn said(keys: &[Limit], traits: &TargetCapabilities) -> Vec<String> {
        let settings: LimitValues = keys.iter().map(|limit| (*limit, Value::Count(1))).collect();
        let declared = Declared { settings, ..Declared::default() };
        flushes(&declared, traits).iter().map(Flushes::sentence).collect()
    }

    #[test]
    fn a_server_that_reloads_closes_all_its_connections() {
        let traits = TargetCapabilities { file: Some(Format::Nginx), ..TargetCapabilities::PLAIN };
        assert_eq!(
            said(&[Limit::ServerIdleTimeout, Limit::BackendIdleConnTimeout], &traits),
            ["Each change of these limits closes all idle connections of the server"]
        );
        assert!(said(&[], &traits).is_empty());
    }

    #[test]
    fn a_pool_that_is_replaced_closes_its_own() {
        let traits = TargetCapabilities { file: Some(Format::Yaml), ..TargetCapabilities::PLAIN };
        let keys = [
            Limit::ServerIdleTimeout,
            Limit::IntraClusterMaxIdleConns,
            Limit::BackendIdleConnTimeout,
            Limit::BackendMaxIdleConns,
        ];
        assert_eq!(
            said(&keys, &traits),
            [
                "Each change of backend.idleConnTimeout, backend.maxIdleConns closes all idle connections of the backend pool",
                "Each change of intraCluster.maxIdleConns closes all idle connections of the intraCluster pool",
            ]
        );
        assert!(said(&keys[..1], &traits).is_empty());
    }

    #[test]
    fn a_provider_counts_and_a_server_may_need_a_while() {
        let drains = Flush { closes: Closes::AllPools, settle: Duration::from_secs(600) };
        assert_eq!(Capability::Reported(Reload::Flush(drains)).flush(), Some(drains));
        let traits = TargetCapabilities {
            capability: |_| Capability::Flush(Flush { closes: Closes::AllPools, settle: Duration::from_secs(600) }),
            ..TargetCapabilities::PLAIN
        };
        let own = LimitValues::from([(Limit::BackendMaxConnsPerHost, Value::Count(1))]);
        let declared = Declared { providers: [("a".to_owned(), own)].into(), ..Declared::default() };
        let found = flushes(&declared, &traits);
        assert_eq!(found, [Flushes { limits: vec![Limit::BackendMaxConnsPerHost], flush: drains, all: true }]);
        assert_eq!(found[0].sentence(), "Each change of these limits closes all idle connections of the server within 10m");
    }

    #[test]
    fn what_is_read_at_a_start_closes_nothing_before() {
        let restarts = TargetCapabilities { capability: |_| Capability::AfterRestart, ..TargetCapabilities::PLAIN };
        let starts = TargetCapabilities { file: Some(Format::ThanosObjstore), ..TargetCapabilities::PLAIN };
        for traits in [restarts, starts, TargetCapabilities::PLAIN] {
            assert!(said(&[Limit::BackendIdleConnTimeout], &traits).is_empty());
        }
    }
}
