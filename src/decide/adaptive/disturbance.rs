//! Side effect of a step of adaptive control on a target that closes connections when its settings are written.

use std::time::Duration;

use super::{step::DAY, tuning::millis};
use crate::api::{
    Knob, Settings, Value,
    flush::{Closes, Flush},
};
use crate::decide::Traits;

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

/// The assumed idle timeout of a pool whose limit is not declared and whose default is not known: the longest known
/// default of the supported servers (Caddy's, for clients).
const ASSUMED_IDLE: Duration = Duration::from_secs(300);

/// The side effect of a step that moves the limits with a floor; `None` where their change closes nothing. `has_pool`
/// says whether the target has the pool of a limit: a server that forwards nothing has none towards upstreams.
#[must_use]
pub fn disturbance(
    declared: &Settings,
    floor: &Settings,
    traits: &Traits,
    has_pool: impl Fn(Knob) -> bool,
) -> Option<Disturbance> {
    let moved = || floor.keys().filter(|knob| declared.contains_key(*knob));
    let flushes: Vec<Flush> = moved().filter_map(|knob| traits.capability(*knob).flush()).collect();
    let settle = flushes.iter().map(|flush| flush.settle).max()?;
    let closes_all = flushes.iter().any(|flush| flush.closes == Closes::AllPools);
    let idle = |knob: Knob| match declared.get(&knob) {
        Some(Value::Duration(time)) => Some(*time),
        _ if closes_all => Some(traits.default_idle(knob).unwrap_or(ASSUMED_IDLE)),
        _ => None,
    };
    let pools = Knob::ALL.into_iter().filter(|knob| knob.is_idle_time());
    let pools = pools.filter(|knob| floor.contains_key(knob) || (closes_all && traits.supports(*knob) && has_pool(*knob)));
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

    fn seconds(limits: &[(Knob, u64)]) -> Settings {
        limits.iter().map(|(knob, secs)| (*knob, Value::Duration(Duration::from_secs(*secs)))).collect()
    }

    #[test]
    fn a_step_waits_for_the_longest_pool_that_its_write_empties() {
        let (server, backend) = (Knob::ServerIdleTimeout, Knob::BackendIdleConnTimeout);
        let flushing = Traits {
            capability: |knob| match knob {
                Knob::ServerIdleTimeout | Knob::BackendIdleConnTimeout => Capability::Flush(ALL),
                _ => Capability::Unsupported,
            },
            default_idle: |knob| (knob == Knob::ServerIdleTimeout).then_some(Duration::from_secs(100)),
            ..Traits::PLAIN
        };
        let own = Traits { capability: |_| Capability::Flush(OWN), ..Traits::PLAIN };
        let of = |traits: &Traits, declared: &[(Knob, u64)], floor: &[(Knob, u64)]| {
            let found =
                disturbance(&seconds(declared), &seconds(floor), traits, |knob| knob != Knob::IntraClusterIdleConnTimeout);
            found.map(|disturbance| (disturbance.settle / 1000, disturbance.longest_idle / 1000))
        };
        assert_eq!(of(&flushing, &[(server, 30), (backend, 20)], &[(server, 5)]), Some((7, 30)));
        assert_eq!(of(&flushing, &[(backend, 20)], &[(backend, 5)]), Some((7, 100)), "an unmanaged pool with its default");
        assert_eq!(of(&flushing, &[(server, 30)], &[(server, 5)]), Some((7, 300)), "and one whose default is not known");
        assert_eq!(of(&own, &[(server, 900), (backend, 20)], &[(backend, 5)]), Some((0, 20)), "only the pool that is changed");
        assert_eq!(of(&Traits::PLAIN, &[(server, 30)], &[(server, 5)]), None, "nothing is closed");
        assert_eq!(of(&flushing, &[(server, 30)], &[]), None, "nothing moves");
        let alone = disturbance(&seconds(&[(server, 30)]), &seconds(&[(server, 5)]), &flushing, |knob| knob == server);
        assert_eq!(alone.map(|alone| alone.longest_idle), Some(30_000), "the target has no upstream pool");
        let nginx = Traits { file: Some(Format::Nginx), ..Traits::PLAIN };
        assert_eq!(of(&nginx, &[(backend, 20)], &[(backend, 5)]), Some((0, 75)), "nginx keeps its clients for 75 s");
    }
}
