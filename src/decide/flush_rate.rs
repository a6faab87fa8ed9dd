//! How many writes that close the idle connections of a node the operator may make in a minute, for all policies together.

use std::{collections::VecDeque, num::NonZeroU32, time::Duration};

const WINDOW: Duration = Duration::from_secs(60);

/// The writes of the last minute.
#[derive(Clone, Debug)]
pub struct FlushRate {
    most: usize,
    /// When each group of writes is a minute old, with their number.
    counted: VecDeque<(Duration, usize)>,
}

impl FlushRate {
    /// At most so many writes in any minute. What another process wrote in the minute before `now` is not known, so the first
    /// minute begins as if it were used up by writes at equal intervals.
    #[must_use]
    pub fn new(most: NonZeroU32, now: Duration) -> Self {
        let most = usize::try_from(most.get()).unwrap_or(usize::MAX);
        let seconds = WINDOW.as_secs();
        let by = |second: u64| most.saturating_mul(usize::try_from(second).unwrap_or(usize::MAX)) / 60;
        let counted = (1..=seconds).map(|second| (now + Duration::from_secs(second), by(second) - by(second - 1)));
        Self { most, counted: counted.filter(|(_, writes)| *writes > 0).collect() }
    }

    /// Grants a part of so many writes. If it is not all, returns the time at which more is granted.
    pub fn grant(&mut self, writes: usize, now: Duration) -> (usize, Option<Duration>) {
        while self.counted.front().is_some_and(|(end, _)| *end <= now) {
            self.counted.pop_front();
        }
        let used: usize = self.counted.iter().map(|(_, writes)| writes).sum();
        let granted = writes.min(self.most.saturating_sub(used));
        if granted > 0 {
            let end = now + WINDOW;
            match self.counted.back_mut().filter(|(last, _)| *last == end) {
                Some((_, writes)) => *writes += granted,
                None => self.counted.push_back((end, granted)),
            }
        }
        (granted, (granted < writes).then(|| self.counted.front().map_or(now, |(end, _)| *end)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_minute_begins_as_if_it_were_used_up() {
        let mut rate = FlushRate::new(NonZeroU32::new(30).unwrap(), seconds(100));
        assert_eq!(rate.grant(5, seconds(100)), (0, Some(seconds(102))));
        assert_eq!(rate.grant(5, seconds(110)), (5, None));
        assert_eq!(rate.grant(40, seconds(160)), (25, Some(seconds(170))), "the five count for a minute");
        assert_eq!(rate.grant(40, seconds(170)), (5, Some(seconds(220))));
    }

    proptest! {
        #[test]
        fn no_minute_has_more_than_is_allowed_and_who_waits_is_granted_something(
            most in 1u32..200,
            asked in prop::collection::vec((1usize..300, 0u64..40_000), 1..60),
        ) {
            let mut rate = FlushRate::new(NonZeroU32::new(most).unwrap(), Duration::ZERO);
            let (mut now, mut granted) = (Duration::ZERO, Vec::new());
            for (writes, later) in asked {
                now += Duration::from_millis(later);
                let (some, next) = rate.grant(writes, now);
                granted.push((now, some));
                let recent: usize = granted.iter().filter(|(at, _)| now.saturating_sub(*at) < WINDOW).map(|(_, some)| some).sum();
                prop_assert!(recent <= most as usize);
                prop_assert_eq!(next.is_some(), some < writes);
                if let Some(next) = next {
                    prop_assert!(next > now);
                    now = next;
                    let (some, _) = rate.grant(1, now);
                    prop_assert_eq!(some, 1);
                    granted.push((now, some));
                }
            }
        }
    }
}
