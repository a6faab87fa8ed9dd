//! The parameters of the control law for one policy: those of the profile, and what the user overrides.

use std::time::Duration;

use crate::api::{
    GoDuration,
    adaptive::{Adaptive, Behavior, Fallback, FallbackBehavior, Mode},
};

/// A minute, an hour and a day (milliseconds).
pub(super) const MINUTE: i64 = 60_000;
pub(super) const HOUR: i64 = 60 * MINUTE;
pub(super) const DAY: i64 = 24 * HOUR;
/// An episode of too many tasks begins at this utilization.
pub const EPISODE_START: f64 = 1.0;
/// An episode ends below this utilization, which is also what a step aims at.
pub const EPISODE_END: f64 = 0.9;
/// There is room at or below this utilization.
pub const RELAX_BELOW: f64 = 0.75;
/// A relaxing step needs no longer window if it is predicted to leave the utilization at or below this.
pub const RELAX_TARGET: f64 = 0.8;
/// Otherwise the window is this many times as long.
pub const UNCERTAIN_RELAX_FACTOR: i64 = 4;
/// The smallest tightening step, as a share of the openness: a smaller effect could not be distinguished from noise.
pub const MIN_CUT: f64 = 0.2;
/// A relaxing step that reaches this openness goes to 100%.
pub const NEARLY_OPEN: u8 = 90;
/// A tightening step that falls below this openness goes to the floor.
pub const MIN_OPENNESS: u8 = 5;

/// The parameters. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    /// Whether adaptive control may act.
    pub mode: Mode,
    /// How often the nodes are queried.
    pub interval: i64,
    /// How long there must be too many tasks before a tightening step.
    pub tighten_after: i64,
    /// How long there must be room before a relaxing step.
    pub relax_after: i64,
    /// Time constant of the average for tightening.
    pub fast: f64,
    /// Time constant of the average for relaxing.
    pub slow: f64,
    /// Maximum number of changes in any hour.
    pub per_hour: u32,
    /// Maximum number of changes in any 24 hours.
    pub per_day: u32,
    /// Points of openness that one relaxing step gives back.
    pub relax_step: u8,
    /// The largest tightening step, as a share of the openness.
    pub most_cut: f64,
    /// How long there must be no quorum before the fallback begins.
    pub fallback_after: i64,
    /// Whether the fallback relaxes.
    pub fallback_relaxes: bool,
}

impl Tuning {
    /// The parameters of a policy; without `adaptive` the mode is Disabled.
    #[must_use]
    pub fn of(adaptive: Option<&Adaptive>) -> Self {
        let unset = Adaptive { mode: Mode::Disabled, ..Adaptive::default() };
        let Adaptive { mode, floor: _, signal, fallback, behavior } = adaptive.unwrap_or(&unset);
        let Behavior { profile, tighten_after, relax_after, max_changes_per_hour, max_changes_per_day, relax_step_percent } =
            behavior.clone().unwrap_or_default();
        let row = profile.row();
        let Fallback { after, behavior: falls_back } = fallback.clone().unwrap_or_default();
        let time = |given: Option<GoDuration>, seconds: u32| {
            millis(given.and_then(|d| d.get()).unwrap_or(Duration::from_secs(seconds.into())))
        };
        let (tighten_after, relax_after) = (time(tighten_after, row.tighten_after), time(relax_after, row.relax_after));
        let per_day = max_changes_per_day.unwrap_or(row.max_changes_per_day);
        #[allow(clippy::cast_precision_loss)] // At most a day.
        Self {
            mode: *mode,
            interval: signal.as_ref().and_then(|signal| signal.interval.get()).map_or(10_000, millis),
            tighten_after,
            relax_after,
            // 20 s and 140 s for Balanced: short compared with the windows that follow them.
            fast: (tighten_after as f64 / 6.0).clamp(1.0, 20_000.0),
            slow: (relax_after as f64 * 7.0 / 45.0).clamp(1.0, 140_000.0),
            per_hour: max_changes_per_hour.unwrap_or(row.max_changes_per_hour).min(per_day),
            per_day,
            relax_step: u8::try_from(relax_step_percent.unwrap_or(row.relax_step_percent).min(100)).unwrap_or(100),
            most_cut: f64::from(row.most_cut_percent) / 100.0,
            fallback_after: time(Some(after), 300),
            fallback_relaxes: falls_back == FallbackBehavior::Declared,
        }
    }

    /// The same with one change less in the budget of a step, which is kept for taking a harmful step back at once. A
    /// budget of one change has none to keep.
    #[must_use]
    pub fn reserving(&self) -> Self {
        let less = |changes: u32| changes.saturating_sub(1).max(1);
        Self { per_hour: less(self.per_hour), per_day: less(self.per_day), ..self.clone() }
    }

    /// The maximum age of a sample (milliseconds).
    #[must_use]
    pub fn most_age(&self) -> i64 {
        (3 * self.interval).max(90_000)
    }

    /// The longest time between two evaluations that still counts for the windows (milliseconds).
    #[must_use]
    pub fn longest_silence(&self) -> i64 {
        (3 * self.interval).max(30_000)
    }
}

/// A time in milliseconds.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn of(behavior: &serde_json::Value, interval: &str) -> Tuning {
        let adaptive: Adaptive = from_value(json!({"behavior": behavior, "signal": {"interval": interval}})).expect("adaptive");
        Tuning::of(Some(&adaptive))
    }

    #[test]
    fn the_averages_are_short_against_the_windows() {
        let times = |behavior| {
            let tuning = of(&behavior, "10s");
            format!("{:.0} {:.0}", tuning.fast, tuning.slow)
        };
        assert_eq!(times(json!({})), "20000 140000");
        assert_eq!(times(json!({"tightenAfter": "1m", "relaxAfter": "9m"})), "10000 84000");
        assert_eq!(times(json!({"tightenAfter": "1h", "relaxAfter": "24h"})), "20000 140000", "at most");
    }

    #[test]
    fn samples_last_for_three_intervals_and_no_less_than_they_may() {
        let ages = |interval| {
            let tuning = of(&json!({}), interval);
            (tuning.most_age(), tuning.longest_silence())
        };
        assert_eq!(ages("1s"), (90_000, 30_000));
        assert_eq!(ages("1m"), (180_000, 180_000));
    }

    #[test]
    fn a_day_has_no_fewer_changes_than_an_hour() {
        let tuning = of(&json!({"maxChangesPerDay": 3, "maxChangesPerHour": 9}), "10s");
        assert_eq!((tuning.per_hour, tuning.per_day), (3, 3));
    }
}
