//! How many units are read or written at the same time: as many as it takes to finish in time, given how fast they answer.

use std::time::Duration;

/// Units at the same time if they answer fast.
const MIN_CONCURRENCY: usize = 64;
/// Units at the same time, however slow they are: each costs a connection and a buffer.
const MAX_CONCURRENCY: usize = 512;
/// Time in which all units of a policy should have answered once.
const GOAL: Duration = Duration::from_secs(5);

/// How fast the units of a policy answer in a pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    answers: u32,
    total: Duration,
}

impl Pace {
    /// Records an answer, or that a unit did not answer, after a time.
    pub fn answered(&mut self, after: Duration) {
        self.answers = self.answers.saturating_add(1);
        self.total = self.total.saturating_add(after);
    }

    /// Returns how many units to ask at the same time, if so many are to be asked.
    #[must_use]
    pub fn concurrency(&self, units: usize) -> usize {
        let mean = self.total.checked_div(self.answers).unwrap_or_default();
        // Little's law: requests in progress are the rate of requests times the time of one.
        let needed = mean.as_millis().saturating_mul(units as u128) / GOAL.as_millis();
        usize::try_from(needed).unwrap_or(usize::MAX).clamp(MIN_CONCURRENCY, MAX_CONCURRENCY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_units_are_asked_more_at_a_time() {
        for (units, millis, concurrency) in
            [(5_000, 0, 64), (5_000, 8, 64), (5_000, 200, 200), (5_000, 1_000, 512), (10, 60_000, 120)]
        {
            let mut pace = Pace::default();
            pace.answered(Duration::from_millis(millis));
            assert_eq!(pace.concurrency(units), concurrency, "{units} units, {millis} ms");
        }
        assert_eq!(Pace::default().concurrency(5_000), 64, "none has answered yet");
        let mut pace = Pace::default();
        (0..9).for_each(|_| pace.answered(Duration::ZERO));
        pace.answered(Duration::from_secs(10));
        assert_eq!(pace.concurrency(5_000), 512, "a tenth does not answer");
    }
}
