//! The size of one step: what is needed, then a chain of small clamps.

use super::{
    openness::{self, Percent},
    tuning::{EPISODE_END, MIN_CUT, MIN_OPENNESS, Tuning},
};
use crate::api::LimitValues;

/// The pooled connections' share of the tasks, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// The best estimate, 0 to 1.
    pub estimate: Option<f64>,
    /// The upper bound, 0 to 1.
    pub most: f64,
}

impl Share {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { estimate: None, most: 1.0 };
    /// Below this share the pools do not matter.
    const LEAST: f64 = 0.05;

    /// How many times the estimate the share may be: estimates are off by a half, and the utilization is noisy
    /// (docs/control-law.md has the runs that show it).
    const OPTIMISM: f64 = 2.5;

    /// A share from an estimate.
    #[must_use]
    pub fn estimated(estimate: f64) -> Self {
        let estimate = estimate.clamp(0.0, 1.0);
        Self { estimate: Some(estimate), most: (Self::OPTIMISM * estimate).min(1.0) }
    }

    /// Bounds the share from above.
    #[must_use]
    pub fn at_most(self, most: f64) -> Self {
        Self { estimate: self.estimate.map(|estimate| estimate.min(most)), most: self.most.min(most) }
    }

    /// Whether the share is so small that no setting of the pools can be the cause.
    #[must_use]
    pub fn is_negligible(&self) -> bool {
        self.estimate.unwrap_or(self.most) < Self::LEAST
    }

    /// Whether even empty pools would leave too many tasks.
    #[must_use]
    pub fn is_too_small(&self, pressure: f64) -> bool {
        pressure > EPISODE_END && (pressure - EPISODE_END) / (pressure * self.most.max(1e-9)) >= 1.0
    }
}

/// The input of one step.
pub struct Step<'a> {
    /// The parameters of the control law.
    pub tuning: &'a Tuning,
    /// The declared limits.
    pub declared: &'a LimitValues,
    /// The floor of the limits.
    pub floor: &'a LimitValues,
    /// The current openness.
    pub openness: Percent,
    /// The utilization.
    pub pressure: f64,
    /// The pooled connections' share of the tasks.
    pub share: Share,
    /// An openness that was enough before, if this step may return to it.
    pub proved: Option<Percent>,
}

impl Step<'_> {
    /// The openness to go to, always lower than the current one (which is not the floor).
    #[must_use]
    pub fn target(&self) -> Percent {
        let scaled = |factor: f64| scaled(self.openness, factor);
        let below = self.openness.saturating_sub(1);
        // At least a step whose effect is no noise, and at most the largest one; or further, to what was enough before.
        let target = self.needed().min(scaled(1.0 - MIN_CUT)).min(below).max(scaled(1.0 - self.tuning.most_cut));
        let target = target.min(self.proved.unwrap_or(target)).min(below);
        if target < MIN_OPENNESS { 0 } else { target }
    }

    /// The openness that brings the utilization to [`EPISODE_END`], by the limits' own effect on the pools.
    fn needed(&self) -> Percent {
        let part = self.share.estimate.unwrap_or(1.0).max(1e-9);
        let need = ((self.pressure - EPISODE_END) / (self.pressure * part)).clamp(0.0, 1.0);
        let left = |to: Percent| openness::remaining(self.declared, self.floor, self.openness, to);
        // What is left of a pool falls with the openness, so a binary search finds the openness.
        let (mut low, mut high) = (0, self.openness);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if left(middle) <= 1.0 - need + 1e-9 {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // At most 100.
fn scaled(openness: Percent, factor: f64) -> Percent {
    (f64::from(openness) * factor).floor() as Percent
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::{Limit, Value};

    fn target(openness: Percent, pressure: f64, share: Share, proved: Option<Percent>) -> Percent {
        let value = |s| LimitValues::from([(Limit::ServerIdleTimeout, Value::Duration(Duration::from_millis(s)))]);
        let (declared, floor) = (value(100_000), value(1));
        // The floor is tiny, but not so far away that the interpolation would be geometric.
        let floor = if openness == 0 { floor } else { value(5_000) };
        Step { tuning: &Tuning::of(None), declared: &declared, floor: &floor, openness, pressure, share, proved }.target()
    }

    #[test]
    fn the_step_by_the_need() {
        let cases = [
            ("a quarter of the tasks has to go", 100, 1.2, Share::UNKNOWN, None, 74),
            ("twice the threshold: half at most", 100, 2.0, Share::UNKNOWN, None, 50),
            ("barely too many: a fifth at least", 100, 0.91, Share::UNKNOWN, None, 80),
            ("pools are half of the tasks: twice the step", 100, 1.0, Share::estimated(0.5), None, 79),
            ("returns to the openness that was enough before", 100, 1.2, Share::UNKNOWN, Some(30), 30),
            ("never upwards", 100, 1.2, Share::UNKNOWN, Some(90), 74),
            ("near the floor it goes to the floor", 9, 2.0, Share::UNKNOWN, None, 0),
            ("at the lowest openness above the floor", 10, 2.0, Share::UNKNOWN, None, 5),
            ("the last point", 1, 0.9, Share::UNKNOWN, None, 0),
        ];
        for (what, openness, pressure, share, proved, expected) in cases {
            assert_eq!(target(openness, pressure, share, proved), expected, "{what}");
        }
    }

    #[test]
    fn every_step_goes_down() {
        for openness in 1..=100 {
            for pressure in [0.9, 0.95, 1.0, 1.5, 10.0, 1e9] {
                assert!(target(openness, pressure, Share::UNKNOWN, None) < openness);
            }
        }
    }

    #[test]
    fn what_pools_cannot_do() {
        assert!(Share::UNKNOWN.at_most(0.04).is_negligible());
        assert!(!Share::UNKNOWN.at_most(0.05).is_negligible());
        assert!(Share::estimated(0.04).is_negligible());
        assert!(!Share::UNKNOWN.is_too_small(100.0));
        assert!(Share::estimated(0.16).is_too_small(1.51), "0.4 at most, and 0.61 of 1.51 has to go");
        assert!(!Share::estimated(0.16).is_too_small(1.49));
        assert!(!Share::estimated(0.0).is_too_small(0.9));
        assert_eq!(Share::estimated(0.6).at_most(0.5), Share { estimate: Some(0.5), most: 0.5 });
    }
}
