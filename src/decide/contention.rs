//! Contention: a limit that another client keeps changing is left alone for a while.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::api::Limit;

/// Two changes by another client within this time (seconds) are a contention.
const WINDOW: i64 = 600;
/// The first time-out (seconds); each further one doubles.
const FIRST_TIME_OUT: i64 = 600;
/// The longest time-out (seconds).
const MAX_TIMEOUT: i64 = 24 * 3600;
/// The number of limits that are remembered, so that `status.control` stays under 1,024 bytes.
const MAX_LIMITS: usize = 6;
/// A limit that no client has changed for this long (seconds) is forgotten.
const FORGIVEN: i64 = 24 * 3600;

/// Records drift and returns the limits that are left alone now.
///
/// `ledger` holds `[times, since, until]` by limit: how often another client changed it, since when, and until when it
/// is left alone (Unix seconds). The last digit of `times` is the number of changes; the digits before it are the
/// number of time-outs so far. `count` is false where the drift is already known (a correction is under way) or is not
/// corrected at all.
pub fn step(ledger: &mut BTreeMap<Limit, [i64; 3]>, drifted: &BTreeSet<Limit>, count: bool, now: Timestamp) -> BTreeSet<Limit> {
    let now = now.as_second();
    // The status may be forged, so no time-out is longer than the longest one.
    for [_, since, until] in ledger.values_mut() {
        *until = (*until).min(now.saturating_add(MAX_TIMEOUT));
        *since = (*since).min(now.saturating_add(MAX_TIMEOUT));
    }
    ledger.retain(|_, [_, since, until]| now.saturating_sub((*since).max(*until)) < FORGIVEN);
    if count {
        for limit in drifted {
            let [state, since, until] = ledger.entry(*limit).or_insert([0, now, 0]);
            if now < *until {
                continue;
            }
            let (outs, times) = (*state / 10, *state % 10);
            let times = if now.saturating_sub(*since) < WINDOW { times.saturating_add(1) } else { 1 };
            if times == 1 {
                *since = now;
            }
            if times >= 2 {
                let out = (FIRST_TIME_OUT << outs.clamp(0, 16)).min(MAX_TIMEOUT);
                *state = outs.saturating_add(1).saturating_mul(10);
                *until = now + out;
                *since = *until;
            } else {
                *state = outs.saturating_mul(10).saturating_add(times);
            }
        }
    }
    while ledger.len() > MAX_LIMITS {
        let Some(oldest) = ledger.iter().min_by_key(|(_, [_, since, _])| *since).map(|(limit, _)| *limit) else { break };
        ledger.remove(&oldest);
    }
    ledger.iter().filter(|(_, [_, _, until])| now < *until).map(|(limit, _)| *limit).collect()
}

/// When the first running time-out ends (Unix seconds).
#[must_use]
pub fn next_end(ledger: &BTreeMap<Limit, [i64; 3]>, now: Timestamp) -> Option<i64> {
    ledger.values().map(|[_, _, until]| *until).filter(|until| now.as_second() < *until).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit::ServerIdleTimeout;

    /// Another client changes the limit at each of these seconds. Returns whether it was left alone then.
    fn left_alone(at: &[i64]) -> Vec<bool> {
        let mut ledger = BTreeMap::new();
        let drifted = BTreeSet::from([LIMIT]);
        at.iter()
            .map(|s| {
                let now = Timestamp::from_second(1_000_000 + s).expect("a time");
                step(&mut ledger, &drifted, true, now).contains(&LIMIT)
            })
            .collect()
    }

    #[test]
    fn the_second_time_within_ten_minutes_is_a_contest() {
        assert_eq!(left_alone(&[0, 300]), [false, true]);
        assert_eq!(left_alone(&[0, 601]), [false, false]);
        assert_eq!(left_alone(&[0, 601, 700]), [false, false, true]);
    }

    #[test]
    fn the_time_out_is_ten_minutes_and_doubles() {
        assert_eq!(left_alone(&[0, 1, 600]), [false, true, true]);
        assert_eq!(left_alone(&[0, 1, 602, 603, 1802, 1804]), [false, true, false, true, true, false]);
    }

    #[test]
    fn a_day_of_peace_starts_afresh() {
        let day = 24 * 3600;
        assert_eq!(
            left_alone(&[0, 1, day + 700, day + 701, day + 701 + 599, day + 701 + 601]),
            [false, true, false, true, true, false]
        );
    }

    /// How long a limit is left alone after this many time-outs (seconds).
    fn time_out(outs: i64) -> i64 {
        let mut ledger = BTreeMap::from([(LIMIT, [outs * 10 + 1, 1_000_000, 0])]);
        let now = Timestamp::from_second(1_000_001).expect("a time");
        step(&mut ledger, &BTreeSet::from([LIMIT]), true, now);
        next_end(&ledger, now).expect("it is left alone") - now.as_second()
    }

    #[test]
    fn the_first_end_of_a_time_out_is_told_while_one_runs() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let ledger = BTreeMap::from([
            (LIMIT, [10, 100, 700]),
            (Limit::BackendMaxIdleConns, [10, 50, 650]),
            (Limit::BackendTcpKeepAlive, [1, 9, 0]),
        ]);
        assert_eq!(
            [600, 649, 650, 699, 700].map(|now| next_end(&ledger, at(now))),
            [Some(650), Some(650), Some(700), Some(700), None]
        );
    }

    #[test]
    fn to_the_second() {
        assert_eq!(left_alone(&[0, 599]), [false, true]);
        assert_eq!(left_alone(&[0, 600]), [false, false], "exactly ten minutes later is not within ten minutes");
        assert_eq!(left_alone(&[0, 1, 600, 601, 602]), [false, true, true, false, true], "the end of a time-out is not in it");
    }

    #[test]
    fn no_time_out_is_longer_than_a_day() {
        assert_eq!([0, 1, 7, 8, 900].map(time_out), [600, 1200, 76_800, 86_400, 86_400]);
    }

    #[test]
    fn a_day_and_no_less_is_forgiven() {
        let known = |later: i64| {
            let mut ledger = BTreeMap::from([(LIMIT, [1, 1_000_000, 0])]);
            step(&mut ledger, &BTreeSet::new(), true, Timestamp::from_second(1_000_000 + later).expect("a time"));
            ledger.contains_key(&LIMIT)
        };
        assert_eq!([3_600, 86_399, 86_400].map(known), [true, true, false]);
    }

    #[test]
    fn the_ledger_stays_small() {
        let mut ledger = BTreeMap::new();
        let now = Timestamp::from_second(1_000_000).expect("a time");
        step(&mut ledger, &Limit::ALL.into(), true, now);
        assert_eq!(ledger.len(), MAX_LIMITS);
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_status_says_a_field_is_left_alone_for_a_day_at_most(ledger in proptest::array::uniform3(proptest::num::i64::ANY)) {
            let now = Timestamp::from_second(1_000_000).expect("a time");
            let mut ledger = BTreeMap::from([(LIMIT, ledger)]);
            step(&mut ledger, &BTreeSet::from([LIMIT]), true, now);
            let until = ledger.get(&LIMIT).map_or(0, |[_, _, until]| *until);
            proptest::prop_assert!(until <= 1_000_000 + MAX_TIMEOUT, "{until}");
        }
    }

    #[test]
    fn drift_that_is_already_being_corrected_is_not_counted_twice() {
        let mut ledger = BTreeMap::new();
        let drifted = BTreeSet::from([LIMIT]);
        let now = Timestamp::from_second(1_000_000).expect("a time");
        for _ in 0..5 {
            assert!(step(&mut ledger, &drifted, false, now).is_empty());
        }
        assert!(ledger.is_empty());
    }
}
