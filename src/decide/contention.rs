//! Contention: a field that somebody else puts back again and again is left alone for a while.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::api::Knob;

/// Two times within this, in seconds, is a contest.
const WINDOW: i64 = 600;
/// The first time out, in seconds; it doubles each time.
const FIRST_TIME_OUT: i64 = 600;
/// The longest time out, in seconds.
const LONGEST_TIME_OUT: i64 = 24 * 3600;
/// Fields that are remembered, so that what the controller keeps in the status stays under 512 bytes.
const MOST_FIELDS: usize = 6;
/// A field that nobody touched for so long, in seconds, starts afresh.
const FORGIVEN: i64 = 24 * 3600;

/// Takes note of drift and answers which fields are left alone now.
///
/// `ledger` holds, by field, `[times, since, until]`: how often it was put back, since when, and until when it is
/// left alone. `times` is in its last digit, the time-outs so far are before it. `count` is false where the drift
/// is already known (a correction under way) or is not corrected at all.
pub fn step(ledger: &mut BTreeMap<Knob, [i64; 3]>, drifted: &BTreeSet<Knob>, count: bool, now: Timestamp) -> BTreeSet<Knob> {
    let now = now.as_second();
    ledger.retain(|_, [_, since, until]| now - (*since).max(*until) < FORGIVEN);
    if count {
        for knob in drifted {
            let [state, since, until] = ledger.entry(*knob).or_insert([0, now, 0]);
            if now < *until {
                continue;
            }
            let (outs, times) = (*state / 10, *state % 10);
            let times = if now - *since < WINDOW { times + 1 } else { 1 };
            if times == 1 {
                *since = now;
            }
            if times >= 2 {
                let out = (FIRST_TIME_OUT << outs.clamp(0, 16)).min(LONGEST_TIME_OUT);
                *state = (outs + 1) * 10;
                *until = now + out;
                *since = *until;
            } else {
                *state = outs * 10 + times;
            }
        }
    }
    while ledger.len() > MOST_FIELDS {
        let Some(oldest) = ledger.iter().min_by_key(|(_, [_, since, _])| *since).map(|(knob, _)| *knob) else { break };
        ledger.remove(&oldest);
    }
    ledger.iter().filter(|(_, [_, _, until])| now < *until).map(|(knob, _)| *knob).collect()
}

/// When the first time-out ends, if one is running.
#[must_use]
pub fn next_end(ledger: &BTreeMap<Knob, [i64; 3]>, now: Timestamp) -> Option<i64> {
    ledger.values().map(|[_, _, until]| *until).filter(|until| now.as_second() < *until).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOB: Knob = Knob::ServerIdleTimeout;

    /// Lets somebody else put the field back at each of these seconds; answers when it was left alone.
    fn left_alone(at: &[i64]) -> Vec<bool> {
        let mut ledger = BTreeMap::new();
        let drifted = BTreeSet::from([KNOB]);
        at.iter()
            .map(|s| {
                let now = Timestamp::from_second(1_000_000 + s).expect("a time");
                step(&mut ledger, &drifted, true, now).contains(&KNOB)
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

    #[test]
    fn the_ledger_stays_small() {
        let mut ledger = BTreeMap::new();
        let now = Timestamp::from_second(1_000_000).expect("a time");
        step(&mut ledger, &Knob::ALL.into(), true, now);
        assert_eq!(ledger.len(), MOST_FIELDS);
    }

    #[test]
    fn drift_that_is_already_being_corrected_is_not_counted_twice() {
        let mut ledger = BTreeMap::new();
        let drifted = BTreeSet::from([KNOB]);
        let now = Timestamp::from_second(1_000_000).expect("a time");
        for _ in 0..5 {
            assert!(step(&mut ledger, &drifted, false, now).is_empty());
        }
        assert!(ledger.is_empty());
    }
}
