//! Side effect of a step of adaptive control on a target that closes connections when its settings are written.

use std::time::Duration;

use super::tuning::{DAY, millis};
use crate::api::{
    Limit, LimitValues, Value,
    flush::{Closes, Flush},
};
use crate::decide::TargetCapabilities;

/// Side effect of a change on a target that closes idle connections whenever its settings are written (measured on
/// Caddy, nginx and HAProxy: docs/control-law.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// How long the target keeps closing connections after the write (milliseconds).
    pub settle: i64,
    /// The longest idle timeout of any pool of the target, managed by the policy or not (milliseconds). Connections
    /// that a write closes can take this long to come back.
    pub longest_idle: i64,
}

impl Disturbance {
    /// How long after a change the connections of every pool can take to come back (milliseconds).
    #[must_use]
    pub const fn claim_time(&self) -> i64 {
        self.settle + self.longest_idle * 5 / 4
    }
}

/// The assumed idle timeout of a pool whose limit is not declared and whose default is not known: the longest known
/// default of the supported servers (Caddy's, for clients).
const ASSUMED_IDLE: Duration = Duration::from_secs(300);

/// The side effect of a step that moves the limits with a floor; `None` where their change closes nothing. `has_pool`
/// says whether the target has the pool of a limit: a server that forwards nothing has none towards upstreams.
#[must_use]
pub fn disturbance(
    declared: &LimitValues,
    floor: &LimitValues,
    traits: &TargetCapabilities,
    has_pool: impl Fn(Limit) -> bool,
) -> Option<Disturbance> {
    let moved = || floor.keys().filter(|limit| declared.contains_key(*limit));
    let flushes: Vec<Flush> = moved().filter_map(|limit| traits.capability(*limit).flush()).collect();
    let settle = flushes.iter().map(|flush| flush.settle).max()?;
    let closes_all = flushes.iter().any(|flush| flush.closes == Closes::AllPools);
    let idle = |limit: Limit| match declared.get(&limit) {
        Some(Value::Duration(time)) => Some(*time),
        _ if closes_all => Some(traits.default_idle(limit).unwrap_or(ASSUMED_IDLE)),
        _ => None,
    };
    let pools = Limit::ALL.into_iter().filter(|limit| limit.is_idle_time());
    let pools = pools.filter(|limit| floor.contains_key(limit) || (closes_all && traits.supports(*limit) && has_pool(*limit)));
    let longest = pools.filter_map(idle).max().unwrap_or(ASSUMED_IDLE);
    // Longer idle timeouts than a day are not waited for.
    Some(Disturbance { settle: millis(settle).min(DAY), longest_idle: millis(longest).min(DAY) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::Format, decide::Capability};

    const ALL: Flush = Flush { closes: Closes::AllPools, settle: Duration::from_secs(7) };
    const OWN: Flush = Flush { closes: Closes::OwnPool, settle: Duration::ZERO };

    fn seconds(limits: &[(Limit, u64)]) -> LimitValues {
        limits.iter().map(|(limit, secs)| (*limit, Value::Duration(Duration::from_secs(*secs)))).collect()
    }

    #[test]
    fn a_step_waits_for_the_longest_pool_that_its_write_empties() {
        let (server, backend) = (Limit::ServerIdleTimeout, Limit::BackendIdleConnTimeout);
        let flushing = TargetCapabilities {
            capability: |limit| match limit {
                Limit::ServerIdleTimeout | Limit::BackendIdleConnTimeout => Capability::Flush(ALL),
                _ => Capability::Unsupported,
            },
            default_idle: |limit| (limit == Limit::ServerIdleTimeout).then_some(Duration::from_secs(100)),
            ..TargetCapabilities::PLAIN
        };
        let own = TargetCapabilities { capability: |_| Capability::Flush(OWN), ..TargetCapabilities::PLAIN };
        let of = |traits: &TargetCapabilities, declared: &[(Limit, u64)], floor: &[(Limit, u64)]| {
            let found =
                disturbance(&seconds(declared), &seconds(floor), traits, |limit| limit != Limit::IntraClusterIdleConnTimeout);
            found.map(|disturbance| (disturbance.settle / 1000, disturbance.longest_idle / 1000))
        };
        assert_eq!(of(&flushing, &[(server, 30), (backend, 20)], &[(server, 5)]), Some((7, 30)));
        assert_eq!(of(&flushing, &[(backend, 20)], &[(backend, 5)]), Some((7, 100)), "an unmanaged pool with its default");
        assert_eq!(of(&flushing, &[(server, 30)], &[(server, 5)]), Some((7, 300)), "and one whose default is not known");
        assert_eq!(of(&own, &[(server, 900), (backend, 20)], &[(backend, 5)]), Some((0, 20)), "only the pool that is changed");
        assert_eq!(of(&TargetCapabilities::PLAIN, &[(server, 30)], &[(server, 5)]), None, "nothing is closed");
        assert_eq!(of(&flushing, &[(server, 30)], &[]), None, "nothing moves");
        let alone = disturbance(&seconds(&[(server, 30)]), &seconds(&[(server, 5)]), &flushing, |limit| limit == server);
        assert_eq!(alone.map(|alone| alone.longest_idle), Some(30_000), "the target has no upstream pool");
        let nginx = TargetCapabilities { file: Some(Format::Nginx), ..TargetCapabilities::PLAIN };
        assert_eq!(of(&nginx, &[(backend, 20)], &[(backend, 5)]), Some((0, 75)), "nginx keeps its clients for 75 s");
    }
}
