//! Steps towards the declared limits: when there is room, and after a tightening that did not help.

use super::{
    openness::{self, Percent},
    state::Efficacy,
    step::{Decision, Evaluation, Judged, Reason, Restriction, Verdict},
    tuning::{HOUR, NEARLY_OPEN, RELAX_TARGET, UNCERTAIN_RELAX_FACTOR},
};
use crate::api::adaptive::Mode;

/// The longest window for relaxing, unless `relaxAfter` itself is longer.
const MAX_RELAX_WINDOW: i64 = 2 * HOUR;
/// A relaxing step below this utilization says nothing about the openness: the pools are hardly used.
pub(super) const IDLE_UTILIZATION: f64 = 0.5;

impl Evaluation<'_> {
    pub(super) fn maybe_relax(&mut self) {
        let (now, facts) = (self.now, self.facts);
        let slow = self.state.watched.slow;
        if self.state.openness >= 100 {
            return;
        }
        let (from, (to, doubtful)) = (self.state.openness, self.relax_target(slow));
        let window = self.relax_window() * if doubtful { UNCERTAIN_RELAX_FACTOR } else { 1 };
        if self.state.watched.low_for < window {
            return;
        }
        let reason = Reason::Low { pressure: self.counted(slow), lasted: self.state.watched.low_for };
        if self.is_stopped(facts.no_relaxing) {
            self.recommendation = Some(Decision { from, to, reason, pressure: slow });
            return;
        }
        if now < facts.not_before || now < self.state.settle_until {
            return;
        }
        if let Some(pending) = &self.state.pending {
            // Of steps that share a verdict, the nodes may use all but the last.
            let is_shared =
                facts.disturbance.is_some() && self.state.changes.last().is_some_and(|(time, _)| *time > pending.decided);
            if let (false, false, None, false) = (facts.in_effect, facts.rolls, pending.since, is_shared) {
                self.withdraw(pending.from, slow);
                return;
            }
            if facts.disturbance.is_none() || !facts.in_effect {
                return;
            }
            // There is room whatever the step did, so its effect can no longer be measured.
            self.judged = Some(Judged { verdict: Verdict::Inconclusive, before: pending.before, after: self.level() });
            self.state.pending = None;
        }
        if facts.updating {
            return;
        }
        if !facts.in_effect {
            self.limit = (facts.needs_restart && !facts.rolls).then_some(Restriction::RestartForbidden);
            return;
        }
        self.relax(reason, slow);
    }

    /// Takes back a step that no process has used. Returning to what the processes use cannot create tasks, so there is
    /// nothing to wait for.
    fn withdraw(&mut self, to: Percent, pressure: f64) {
        if to <= self.state.openness {
            self.state.pending = None;
            return;
        }
        if !self.may_change() {
            return;
        }
        let before = self.state.pending.take().map_or(f64::NAN, |pending| pending.before);
        self.judged = Some(Judged { verdict: Verdict::Inconclusive, before, after: self.state.watched.fast });
        self.state.efficacy = if to == 100 { Efficacy::NotTightened } else { Efficacy::Measuring };
        self.limit = None;
        self.change(to, Reason::Withdrawn, pressure);
    }

    pub(super) fn relax(&mut self, reason: Reason, pressure: f64) {
        if self.facts.no_relaxing || self.tuning.mode != Mode::Enforce || !self.may_change() {
            return;
        }
        let (to, _) = self.relax_target(pressure);
        // Where the pools were hardly used, this does not disprove what was enough under load.
        self.state.last_sufficient =
            if pressure < IDLE_UTILIZATION { self.state.last_sufficient.min(self.state.openness) } else { 100 };
        self.change(to, reason, pressure);
        if to == 100 {
            self.state.efficacy = Efficacy::NotTightened;
        }
    }

    /// Predicts the utilization after relaxing: pools grow with the limits, everything else stays. Where the pools'
    /// share is not known, all tasks count as pooled.
    fn predicted_utilization(&self, pressure: f64, to: Percent) -> f64 {
        let left = openness::remaining(self.facts.declared, self.facts.floor, to, self.state.openness);
        let share = self.facts.share.estimate.unwrap_or(1.0).min(self.facts.share.most);
        pressure * (1.0 + share * (1.0 / left - 1.0))
    }

    /// The largest of one to three steps that leaves room. If none does, one step and `true`: the prediction is in
    /// doubt. A step that reaches [`NEARLY_OPEN`] goes to 100%.
    fn relax_target(&self, pressure: f64) -> (Percent, bool) {
        let step = self.tuning.relax_step;
        let up = |points: u8| {
            let to = self.state.openness.saturating_add(points).min(100);
            if to >= NEARLY_OPEN { 100 } else { to }
        };
        let leaves_room = |to: &Percent| self.predicted_utilization(pressure, *to) <= RELAX_TARGET;
        let widest = (step..=step.saturating_mul(3)).rev().map(up).find(leaves_room);
        widest.map_or((up(step), true), |to| (to, false))
    }

    pub(super) fn roll_back(&mut self) {
        let Some(to) = self.state.rollback else { return };
        if to <= self.state.openness {
            self.state.rollback = None;
            return;
        }
        if self.is_stopped(self.facts.no_relaxing) {
            return;
        }
        // The last change takes effect first.
        if self.now >= self.state.settle_until && self.may_change() {
            self.state.rollback = None;
            let reason = match self.state.efficacy {
                Efficacy::PoolsTooSmall => Reason::PoolsTooSmall,
                Efficacy::Harmful => Reason::Harmful,
                _ => Reason::Ineffective,
            };
            self.change(to, reason, self.state.watched.fast);
        }
    }

    pub(super) fn relax_window(&self) -> i64 {
        let levels = if self.facts.levels { 2 } else { 1 };
        let window = self.tuning.relax_after * i64::from(self.state.relax_backoff) * levels;
        window.min(MAX_RELAX_WINDOW.max(self.tuning.relax_after))
    }
}
