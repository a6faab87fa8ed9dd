//! The harm guard: a pool that is too small costs more than an idle connection. A tightening that makes new connections
//! more than twice as frequent is taken back. docs/control-law.md gives the reasons.

use super::{
    signal::Reading,
    state::{Efficacy, Guarded, Pending, RateWindow, State, rounded},
    step::{Evaluation, Harm, Judged, Verdict},
    tuning::{HOUR, MINUTE, Tuning},
};
use crate::api::guarded::ConnectionRate;

/// A tightening is harmful if new connections are more than this many times as frequent as before.
pub const HARMFUL_GROWTH: f64 = 2.0;
/// From this utilization on, a harmful step is not taken back: a node at twice its threshold is about to fail.
pub const CRITICAL: f64 = 2.0;
/// The longest window over which new connections are averaged.
const MAX_WINDOW: i64 = 2 * MINUTE;
/// A window has at least this many rounds of samples.
const MIN_ROUNDS: i64 = 3;
/// After this many windows, a verdict on the task count no longer waits for one on new connections.
const MAX_WINDOWS: i64 = 3;
/// The level before a step says nothing about a load that is later than this, after the task count was judged.
const EXPIRES: i64 = HOUR;

/// How long new connections are averaged (milliseconds).
#[must_use]
pub fn window(tuning: &Tuning) -> i64 {
    tuning.tighten_after.min(MAX_WINDOW).max(MIN_ROUNDS * tuning.interval)
}

/// Whether new connections are more than [`HARMFUL_GROWTH`] times as frequent as before, and more than `most` a second.
/// Where requests are counted, new connections for each of them are compared. Otherwise both the total and the number for
/// each node must have grown, so that neither a node without samples nor another number of nodes looks like harm.
#[must_use]
pub fn is_harmful(before: &ConnectionRate, after: &ConnectionRate, most: f64) -> bool {
    let has_grown = |now: f64, then: f64| now > HARMFUL_GROWTH * then;
    let grown = match (before.requests, after.requests) {
        // Both are products, because there may have been no new connection before.
        (Some(then), Some(now)) => then > 0.0 && now > 0.0 && has_grown(after.connections * then, before.connections * now),
        _ => {
            has_grown(after.connections, before.connections)
                && has_grown(after.connections * before.nodes, before.connections * after.nodes)
        }
    };
    after.connections > most && grown
}

/// When a step has taken effect and connections that it closed have come back; `None` while it is not in effect.
#[must_use]
pub fn settled_at(state: &State, pending: &Pending) -> Option<i64> {
    Some((pending.since? + pending.wait).max(state.settle_until))
}

/// What the guard says about the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// Nothing is guarded, or the step is harmless.
    Silent,
    /// New connections are still being averaged.
    Measuring,
    /// The step is harmful and was taken back.
    TakenBack,
}

impl Evaluation<'_> {
    /// Averages new connections, except while a change takes effect. `passed`: the time since the last evaluation.
    pub(super) fn note_connections(&mut self, rate: Option<&ConnectionRate>, passed: Option<i64>) {
        let was_settled = passed.is_some_and(|passed| self.has_settled(self.now - passed));
        let length = self.guard_window();
        let window = &mut self.state.watched.connections;
        match (rate, passed) {
            _ if self.facts.guard.is_none() || !was_settled => *window = RateWindow::default(),
            (Some(rate), Some(passed)) => window.add(rate, passed, length),
            (_, passed) => window.skip(passed.unwrap_or(0), self.tuning.longest_silence()),
        }
    }

    /// The window of the guarded step, or of the next one.
    fn guard_window(&self) -> i64 {
        self.state.guarded.map_or_else(|| window(self.tuning), |guarded| guarded.window)
    }

    /// Whether the last change had taken effect at a time, so that connections that it closed have come back.
    fn has_settled(&self, at: i64) -> bool {
        match &self.state.pending {
            Some(pending) => settled_at(&self.state, pending).is_some_and(|settled| at >= settled),
            None => at >= self.state.settle_until,
        }
    }

    /// Whether the task count is so high that nothing waits for the guard.
    pub(super) fn is_critical(&self, reading: &Reading) -> bool {
        reading.red || self.state.watched.fast >= CRITICAL
    }

    /// Guards a step that is about to be made. Steps that share a verdict have the level before the first of them.
    pub(super) fn guard_step(&mut self) {
        let window = window(self.tuning);
        let known = self.state.watched.connections.mean(window / 2).filter(|_| self.facts.guard.is_some());
        if self.state.guarded.is_none() {
            self.state.guarded = known.map(|before| Guarded {
                decided: self.now,
                from: self.state.openness,
                window,
                before: ConnectionRate {
                    connections: rounded(before.connections),
                    requests: before.requests.map(rounded),
                    nodes: rounded(before.nodes),
                },
            });
        }
        self.state.watched.connections = RateWindow::default();
    }

    /// Judges the guarded step by its new connections. It is taken back only below [`CRITICAL`]; until then it stays
    /// guarded, and its effect on the task count is judged as always.
    pub(super) fn guard(&mut self, is_critical: bool) -> Guard {
        let is_gone = |guarded: &Guarded| guarded.from <= self.state.openness;
        let is_old = |guarded: &Guarded| self.state.pending.is_none() && self.now - guarded.decided > EXPIRES;
        let guarded = self.state.guarded.filter(|guarded| !is_gone(guarded) && !is_old(guarded));
        self.state.guarded = guarded.filter(|_| self.facts.guard.is_some());
        let (Some(guarded), Some(most)) = (self.state.guarded, self.facts.guard) else { return Guard::Silent };
        let Some(after) = self.state.watched.connections.mean(guarded.window) else { return Guard::Measuring };
        if !is_harmful(&guarded.before, &after, most) {
            self.state.guarded = None;
            return Guard::Silent;
        }
        if is_critical {
            return Guard::Silent;
        }
        self.take_back(&guarded, after);
        Guard::TakenBack
    }

    /// Whether the verdict on the task count, and the next step, still wait for the verdict on new connections.
    pub(super) fn waits_for_guard(&self, pending: &Pending) -> bool {
        let longest = MAX_WINDOWS * self.guard_window();
        settled_at(&self.state, pending).is_none_or(|settled| self.now < settled + longest)
    }

    fn take_back(&mut self, guarded: &Guarded, after: ConnectionRate) {
        let level = self.level();
        let before = self.state.pending.as_ref().map_or(level, |pending| pending.before);
        self.judged = Some(Judged { verdict: Verdict::Harmful, before, after: level });
        self.harm = Some(Harm { before: guarded.before, after });
        self.give_up(Efficacy::Harmful);
        (self.state.guarded, self.state.rollback) = (None, Some(guarded.from));
    }
}
