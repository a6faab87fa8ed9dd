//! Steps towards the floor: when one is due, and what it sets off.

use super::{
    openness::{self, Percent},
    signal::Reading,
    state::{Efficacy, Pending, State, Way, rounded, rounded_slope},
    step::{Decision, Evaluation, QUICK_RETIGHTEN, Reason, Restriction},
    step_size::{Share, Step},
    tuning::{EPISODE_END, MINUTE, Tuning},
    verdict,
};

/// How long the limits must be at their floor with too many tasks before tightening counts as ineffective.
const AT_FLOOR: i64 = 30 * MINUTE;
/// The smallest tightening step, in points of openness, where each change closes all idle connections.
const FLUSH_CUT: Percent = 30;
/// Where each change closes all idle connections, this step of an episode goes to the floor.
const FLUSH_STEPS: u8 = 3;

impl Evaluation<'_> {
    pub(super) fn tighten(&mut self, reading: &Reading) {
        let (now, tuning, facts) = (self.now, self.tuning, self.facts);
        let fast = self.state.watched.fast;
        let first = self.state.episode.is_some_and(|episode| episode.steps == 0);
        #[allow(clippy::cast_precision_loss)] // At most a day.
        let due = self.state.watched.high_for as f64 >= tuning.tighten_after as f64 * hesitation(&self.state, now);
        if self.is_locked() {
            if self.state.efficacy == Efficacy::PoolsTooSmall {
                self.limit = Some(Restriction::PoolsTooSmall);
            }
            // Otherwise the lock-out itself is the limit: see `finish`.
            return;
        }
        if self.state.openness == 0 {
            self.limit = Some(Restriction::AtFloor);
            let State { episode, pending, efficacy, watched, .. } = &self.state;
            let helped = episode.is_some_and(|episode| episode.helped.is_some() || verdict::helped_overall(&episode, fast));
            if watched.floor_for >= AT_FLOOR && !helped && pending.is_none() && *efficacy != Efficacy::Effective {
                self.give_up(Efficacy::Ineffective);
                self.roll_back();
            }
            return;
        }
        // The average can still be high when the present count is not, such as after another write that closed connections.
        if !due || now < facts.not_before || reading.up < EPISODE_END {
            return;
        }
        if first && facts.share.is_negligible() {
            self.state.efficacy = Efficacy::NotAttributable;
            return;
        }
        if facts.share.is_too_small(fast) {
            self.give_up(Efficacy::PoolsTooSmall);
            self.limit = Some(Restriction::PoolsTooSmall);
            self.roll_back();
            return;
        }
        let step = Step {
            tuning,
            declared: facts.declared,
            floor: facts.floor,
            openness: self.state.openness,
            pressure: fast,
            share: Share { estimate: facts.share.estimate.or(self.state.episode.and_then(|it| it.learned)), ..facts.share },
            proved: first.then_some(self.state.last_sufficient),
        };
        let (from, to) = (self.state.openness, self.coarse(step.target()));
        let reason = Reason::High { pressure: self.counted(fast), lasted: self.state.watched.high_for };
        if self.is_stopped(facts.no_tightening) {
            self.recommendation = Some(Decision { from, to, reason, pressure: fast });
            return;
        }
        if !facts.in_effect {
            self.limit = match (facts.needs_restart, facts.rolls) {
                (true, false) => Some(Restriction::RestartForbidden),
                // After a step, the new values are still on their way.
                (false, _) if self.state.pending.is_none() => Some(Restriction::NotInEffect),
                _ => None,
            };
            return;
        }
        // Where a verdict takes as long as connections take to come back, the next step does not wait for it; the steps
        // share one verdict. While new connections are being measured, the pools are not made even smaller.
        let waits = self.waits_for_verdict();
        if waits || now < self.state.settle_until || !self.may_tighten() {
            return;
        }
        self.guard_step();
        let wait = self.claim_time();
        #[allow(clippy::cast_precision_loss)] // Seconds.
        let lag = ((tuning.slow - tuning.fast) / 1000.0).max(1.0);
        let before = rounded(if facts.disturbance.is_some() { fast.min(self.state.watched.slow) } else { fast });
        let shared = self.state.pending.take().map(|pending| (pending.decided, pending.before, pending.from));
        let (decided, before, first) = shared.unwrap_or((now, before, from));
        let emptied = 1.0 - openness::remaining(facts.declared, facts.floor, first, to);
        self.state.watched.plateau = None;
        self.state.pending = Some(Pending {
            decided,
            since: None,
            wait,
            before,
            slope: rounded_slope(((fast - self.state.watched.slow) / lag).max(0.0)),
            from: first,
            to,
            expected: facts.share.estimate.map(|share| rounded(share * emptied)),
            life: facts.needs_restart.then(|| self.state.watched.life.clone()),
        });
        if let Some(episode) = &mut self.state.episode {
            episode.steps = episode.steps.saturating_add(1);
            episode.base.get_or_insert(rounded(fast));
        }
        self.state.efficacy = Efficacy::Measuring;
        self.change(to, reason, fast);
    }

    /// Fewer and larger steps where each change closes all idle connections.
    fn coarse(&self, to: Percent) -> Percent {
        if self.facts.disturbance.is_none() {
            return to;
        }
        let steps = self.state.episode.map_or(0, |episode| episode.steps);
        if steps + 1 >= FLUSH_STEPS { 0 } else { to.min(self.state.openness.saturating_sub(FLUSH_CUT)) }
    }
}

/// The factor by which a step waits longer than `tightenAfter`. Only the first step of an episode waits longer, and
/// only if the limits were not tightened lately. While the lower of the two averages is barely over the threshold it
/// waits three quarters longer, because noise looks the same; from 120% on it does not wait longer.
fn hesitation(state: &State, now: i64) -> f64 {
    let rising = state.changes.last().is_some_and(|(time, way)| *way == Way::Tighten && now - time < QUICK_RETIGHTEN);
    if rising || state.episode.is_some_and(|episode| episode.steps > 0) {
        return 1.0;
    }
    let pressure = state.watched.fast.min(state.watched.slow);
    0.75f64.mul_add(((1.2 - pressure) / 0.15).clamp(0.0, 1.0), 1.0)
}

/// Time until the running window for tightening can end at the earliest (milliseconds).
#[must_use]
pub fn next_end(tuning: &Tuning, state: &State, now: i64) -> Option<i64> {
    if state.episode.is_none() || state.pending.is_some() || state.watched.fast < EPISODE_END {
        return None;
    }
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // At most a day.
    let window = (tuning.tighten_after as f64 * hesitation(state, now)).ceil() as i64;
    Some(window - state.watched.high_for).filter(|wait| *wait > 0)
}
