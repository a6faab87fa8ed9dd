//! Verdicts: did a step help? A step is judged after the pools have had time to drain, and at equal uptime if a restart
//! came in between.

use super::{
    guard::Guard,
    openness::{self, Percent},
    signal::Reading,
    state::{Efficacy, Episode, Lockout, MARKS, Pending, UptimeCurve, Watched},
    step::{Evaluation, Facts, Judged, MAX_WAITS, Restriction, Verdict},
    tuning::{DAY, HOUR},
};

/// A fall of the task count by this share is an effect, whatever was expected.
const MIN_EFFECT: f64 = 0.05;
/// The same where every change closes connections: steps are larger there, and so is the noise over the minutes that a
/// verdict takes (docs/control-law.md has the runs).
const FLUSH_HELP: f64 = 0.1;
/// A fall by this part of the expected fall is an effect too.
const MIN_EFFECT_OF_EXPECTED: f64 = 0.5;
/// A fall by less than this cannot be distinguished from noise.
const NOISE_FLOOR: f64 = 0.03;
/// After two steps the task count must be down by this share, where nothing is known of the pools.
const EPISODE_HELP: f64 = 0.08;
/// The lowest share that is learned: below it, steps have their maximum size anyway.
const MIN_LEARNED: f64 = 0.15;
/// Steps in a row without an effect after which tightening counts as ineffective.
pub const MAX_FAILURES: u8 = 2;
/// The first lock-out of tightening; each further one doubles, up to a day.
const LOCKOUT: i64 = 4 * HOUR;
/// The age from which a process no longer counts as young: the last of [`MARKS`].
pub(super) const MAX_YOUNG_UPTIME: i64 = MARKS[MARKS.len() - 1];
/// A task count that moves by less than this share of the threshold is level.
const PLATEAU: f64 = 0.02;

/// By how much the task count fell, as a share; negative where it rose.
#[must_use]
pub fn fall(before: f64, after: f64) -> f64 {
    if before > 0.0 { 1.0 - after / before } else { 0.0 }
}

/// Judges a step of an episode, and records the result in the episode. `flushes`: whether every change closes
/// connections.
pub fn judge(pending: &Pending, episode: &mut Episode, after: f64, flushes: bool, now: i64) -> Verdict {
    let help = if flushes { FLUSH_HELP } else { MIN_EFFECT };
    let fallen = fall(pending.before, after);
    let enough = |fall: f64| {
        fall >= help || pending.expected.is_some_and(|expected| fall >= NOISE_FLOOR && fall >= MIN_EFFECT_OF_EXPECTED * expected)
    };
    if enough(fallen) {
        episode.helped = Some(pending.to);
        episode.failed = 0;
        return Verdict::Effective;
    }
    // The utilization without the step, if it had gone on rising as before. That is enough for a doubt, not for a
    // claim.
    #[allow(clippy::cast_precision_loss)] // Minutes.
    let risen = pending.before + pending.slope * ((now - pending.decided) as f64 / 1000.0);
    if enough(fall(risen, after)) || pending.expected.is_some_and(|expected| expected < NOISE_FLOOR) {
        return Verdict::Inconclusive;
    }
    let is_over = if pending.expected.is_some() {
        episode.failed = episode.failed.saturating_add(1);
        episode.failed >= MAX_FAILURES
    } else {
        episode.steps >= 2 && !helped_overall(episode, after)
    };
    if is_over { Verdict::Ineffective } else { Verdict::Inconclusive }
}

/// The pooled share of the remaining tasks, from the effect of a step; `None` where that is not known. It only sizes
/// the next step: it is too rough to give up because of it.
#[must_use]
pub fn learned(pending: &Pending, after: f64, left: f64) -> Option<f64> {
    let fallen = fall(pending.before, after);
    if left >= 1.0 || fallen <= 0.0 || fallen >= 1.0 {
        return None;
    }
    let share = (fallen / (1.0 - left)).min(1.0);
    Some(super::state::rounded((share * left / (1.0 - fallen)).clamp(MIN_LEARNED, 1.0)))
}

/// Whether the task count fell over the whole episode.
#[must_use]
pub fn helped_overall(episode: &Episode, now: f64) -> bool {
    episode.base.is_some_and(|base| fall(base, now) >= EPISODE_HELP)
}

/// The openness to go back to: the last one that helped, or the one at which the episode began.
#[must_use]
pub fn back_to(episode: Option<&Episode>, openness: Percent) -> Percent {
    episode.map_or(100, |episode| episode.helped.unwrap_or(episode.from)).max(openness)
}

/// The utilization of two processes at the same uptime: at the last mark that both have passed and that is at least
/// `settled`. `None` where there is none.
#[must_use]
pub fn at_equal_uptime(before: &UptimeCurve, now: &UptimeCurve, settled: i64) -> Option<(f64, f64)> {
    let pair = |a: u32, b: u32| (f64::from(a) / 1000.0, f64::from(b) / 1000.0);
    let mark = (0..MARKS.len()).rev().find(|n| MARKS[*n] >= settled && before.curve[*n].is_some() && now.curve[*n].is_some());
    if let Some(n) = mark {
        return before.curve[n].zip(now.curve[n]).map(|(a, b)| pair(a, b));
    }
    // The later process has run for at least as long as the earlier one had when it was last observed.
    let ((old, was), (new, is)) = before.last.zip(now.last)?;
    (old >= settled && new >= old).then(|| pair(was, is))
}

/// Records the utilization at an uptime. An uptime that is shorter than the last one, by more than a second, means
/// another process.
pub fn note(life: &mut UptimeCurve, uptime: i64, pressure: f64) {
    if life.last.is_some_and(|(last, _)| uptime + 1000 < last) {
        *life = UptimeCurve::default();
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A utilization.
    let pressure = (pressure.clamp(0.0, 1e6) * 1000.0) as u32;
    let last = life.last.map_or(0, |(last, _)| last);
    for (n, mark) in MARKS.iter().enumerate() {
        // The mark was passed just now. What happened before the first observation is not known.
        let crossed = last < *mark && uptime >= *mark && (life.last.is_some() || uptime < mark + mark / 10);
        if crossed {
            life.curve[n] = Some(pressure);
        }
    }
    life.last = Some((uptime, pressure));
}

impl Evaluation<'_> {
    /// Records the utilization at the uptime of the youngest process.
    pub(super) fn note_uptime(&mut self, reading: &Reading) {
        if let Some(youngest) = reading.youngest {
            note(&mut self.state.watched.life, youngest, reading.mean);
        }
    }

    pub(super) fn judge(&mut self, reading: &Reading) {
        let is_critical = self.is_critical(reading);
        let guard = self.guard(is_critical);
        let Some(mut pending) = self.state.pending.take() else { return };
        let is_due = self.is_due(&mut pending);
        self.is_guarding = guard == Guard::Measuring && !is_critical && self.waits_for_guard(&pending);
        if !is_due || self.is_guarding {
            self.state.efficacy = Efficacy::Measuring;
            self.state.pending = Some(pending);
            return;
        }
        let restarted = reading.youngest.is_some_and(|uptime| uptime < self.now - pending.decided);
        let mut after = self.level();
        if let Some(life) = &pending.life {
            // A restart empties the pools by itself, so only values at the same uptime can be compared.
            let Some((was, is)) = at_equal_uptime(life, &self.state.watched.life, pending.wait) else {
                if self.state.watched.life.last.is_none_or(|(uptime, _)| uptime < MAX_YOUNG_UPTIME) {
                    self.state.efficacy = Efficacy::AwaitingUptimeMatch;
                    self.state.pending = Some(pending);
                } else {
                    // The earlier process was never observed at an uptime that can be compared.
                    let after = self.state.watched.fast;
                    self.judged = Some(Judged { verdict: Verdict::Inconclusive, before: pending.before, after });
                    self.state.efficacy = Efficacy::Measuring;
                }
                return;
            };
            (pending.before, after) = (was, is);
            pending.slope = 0.0;
        }
        if guard == Guard::Measuring && !is_critical {
            // Too little is known of the new connections to judge them.
            self.state.guarded = None;
        }
        let over = Episode { base: Some(pending.before), steps: 1, ..Episode::begin(pending.decided, pending.from) };
        let mut episode = self.state.episode.unwrap_or(over);
        let left = openness::remaining(self.facts.declared, self.facts.floor, pending.from, pending.to);
        episode.learned = learned(&pending, after, left);
        let verdict = if restarted && pending.life.is_none() {
            Verdict::Inconclusive
        } else {
            judge(&pending, &mut episode, after, self.facts.disturbance.is_some(), self.now)
        };
        if self.state.episode.is_some() {
            self.state.episode = Some(episode);
        }
        self.judged = Some(Judged { verdict, before: pending.before, after });
        match verdict {
            Verdict::Effective => {
                self.state.efficacy = Efficacy::Effective;
                self.state.lockout = None;
                if self.state.episode.is_none() {
                    self.state.last_sufficient = self.state.openness;
                }
            }
            Verdict::Inconclusive if self.state.efficacy == Efficacy::Effective => {}
            Verdict::Inconclusive => self.state.efficacy = Efficacy::Measuring,
            Verdict::Ineffective => self.give_up(Efficacy::Ineffective),
            // By the guard only.
            Verdict::Harmful => {}
        }
    }

    /// The utilization that a verdict uses. Where a change closes connections, they come back for a while, and noise
    /// must not count as an effect; so it is the higher of the two averages.
    pub(super) fn level(&self) -> f64 {
        let Watched { fast, slow, .. } = self.state.watched;
        if self.facts.disturbance.is_some() { fast.max(slow) } else { fast }
    }

    /// Whether a step may be judged. It has to be in effect; if that takes a restart, this is the limit. Where a change closes connections, they need time to come back, and the count must
    /// be level: it has moved by less than [`PLATEAU`] for a quarter of that time, and for at least as long as the slow
    /// average takes to follow. After twice that time more the step is judged anyway.
    fn is_due(&mut self, pending: &mut Pending) -> bool {
        let Facts { in_effect, updating, needs_restart, rolls, disturbance, .. } = *self.facts;
        if !in_effect {
            self.limit = (needs_restart && !rolls).then_some(Restriction::RestartForbidden);
            return false;
        }
        if updating {
            return false;
        }
        let since = *pending.since.get_or_insert(self.now);
        // The effect is measured from the time at which it could begin. Until it could act, no other step follows.
        let acting = if disturbance.is_some() { self.dead_time() } else { pending.wait };
        self.state.settle_until = self.state.settle_until.max(since + acting);
        if self.now < since + pending.wait || self.state.watched.fresh_for < self.tuning.interval {
            return false;
        }
        if disturbance.is_none() {
            return true;
        }
        #[allow(clippy::cast_possible_truncation)] // At most minutes.
        let least = (pending.wait / 4).max(self.tuning.slow as i64);
        let slow = self.state.watched.slow;
        let (began, level) = *self.state.watched.plateau.get_or_insert((self.now, slow));
        if (slow - level).abs() >= PLATEAU {
            self.state.watched.plateau = Some((self.now, slow));
        } else if self.now - began >= least {
            // The rise from before has ended, so it no longer counts.
            pending.slope = 0.0;
            return true;
        }
        self.now >= since + MAX_WAITS * pending.wait
    }

    /// Gives up: takes back the steps that did not help, and locks tightening out for a while.
    pub(super) fn give_up(&mut self, efficacy: Efficacy) {
        let to = back_to(self.state.episode.as_ref(), self.state.openness);
        self.state.rollback = (to > self.state.openness).then_some(to);
        let times = self.state.lockout.map_or(0, |lockout| lockout.times.saturating_add(1));
        let wait = (LOCKOUT << times.min(3)).min(DAY);
        self.state.lockout = Some(Lockout { until: self.now + wait, times });
        self.state.efficacy = efficacy;
        self.state.pending = None;
        self.state.last_sufficient = 100;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(before: f64, expected: Option<f64>) -> Pending {
        Pending { decided: 0, since: Some(0), wait: 0, before, slope: 0.0, from: 100, to: 50, expected, life: None }
    }

    const EPISODE: Episode = Episode { since: 0, from: 100, base: Some(1.2), steps: 1, helped: None, failed: 0, learned: None };

    #[test]
    fn a_fall_is_a_share_of_what_was_there() {
        assert!((fall(2.0, 1.0) - 0.5).abs() < 1e-9);
        assert!((fall(1.0, 2.0) + 1.0).abs() < 1e-9, "a rise is a negative fall");
        assert!(fall(0.0, 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_rules_one_by_one() {
        let cases = [
            // what, pending, steps so far, failed so far, after, verdict
            ("a fall by 5% is an effect", pending(1.2, None), 1, 0, 1.14, Verdict::Effective),
            ("less is none, and one step is not enough for a verdict", pending(1.2, None), 1, 0, 1.15, Verdict::Inconclusive),
            ("two steps are enough", pending(1.2, None), 2, 0, 1.15, Verdict::Ineffective),
            ("half of the expected fall is an effect", pending(1.2, Some(0.06)), 1, 0, 1.164, Verdict::Effective),
            ("less than half is one failure", pending(1.2, Some(0.06)), 1, 0, 1.18, Verdict::Inconclusive),
            ("two failures are enough", pending(1.2, Some(0.06)), 1, 1, 1.18, Verdict::Ineffective),
            ("an expected fall at the noise floor counts", pending(1.2, Some(NOISE_FLOOR)), 1, 1, 1.18, Verdict::Ineffective),
            (
                "an expected fall below the noise floor does not count",
                pending(1.2, Some(0.02)),
                1,
                1,
                1.18,
                Verdict::Inconclusive,
            ),
            (
                "a rise that slowed down is inconclusive",
                Pending { slope: 0.002, ..pending(1.2, Some(0.1)) },
                3,
                1,
                1.25,
                Verdict::Inconclusive,
            ),
            (
                "a rise that went on as before is no effect",
                Pending { slope: 0.002, ..pending(1.2, Some(0.1)) },
                3,
                1,
                1.4,
                Verdict::Ineffective,
            ),
        ];
        for (what, pending, steps, failed, after, verdict) in cases {
            let mut episode = Episode { steps, failed, ..EPISODE };
            assert_eq!(judge(&pending, &mut episode, after, false, 100_000), verdict, "{what}");
        }
    }

    #[test]
    fn a_help_is_remembered_and_ends_a_row_of_failures() {
        let mut episode = Episode { failed: 1, ..EPISODE };
        judge(&pending(1.2, None), &mut episode, 1.0, false, 0);
        assert_eq!((episode.helped, episode.failed), (Some(50), 0));
        assert_eq!(back_to(Some(&episode), 30), 50);
        assert_eq!(back_to(Some(&EPISODE), 30), 100);
        assert_eq!(back_to(None, 30), 100);
    }

    #[test]
    fn lives_are_compared_at_the_same_uptime_only() {
        let life = |marks: &[(i64, f64)]| {
            let mut life = UptimeCurve::default();
            for (uptime, pressure) in marks {
                note(&mut life, *uptime, *pressure);
            }
            life
        };
        let before = life(&[(10_000, 0.2), (61_000, 0.5), (121_000, 0.8), (200_000, 1.2)]);
        assert_eq!(at_equal_uptime(&before, &life(&[(5_000, 0.1)]), 60_000), None, "a young process has few tasks");
        assert_eq!(at_equal_uptime(&before, &life(&[(5_000, 0.1), (62_000, 0.3)]), 60_000), Some((0.5, 0.3)));
        assert_eq!(at_equal_uptime(&before, &life(&[(5_000, 0.1), (62_000, 0.3)]), 90_000), None, "not settled yet");
        assert_eq!(at_equal_uptime(&before, &life(&[(5_000, 0.1), (62_000, 0.3), (130_000, 0.4)]), 90_000), Some((0.8, 0.4)));
        let unseen = life(&[(86_400_000, 1.2)]);
        assert_eq!(
            at_equal_uptime(&unseen, &life(&[(5_000, 0.1), (62_000, 0.3)]), 60_000),
            None,
            "the earlier process was not observed when it was young"
        );
        let old = life(&[(200_000, 1.2)]);
        assert_eq!(at_equal_uptime(&old, &life(&[(250_000, 0.6)]), 150_000), Some((1.2, 0.6)));
    }

    #[test]
    fn a_mark_is_noted_when_it_is_passed_and_never_from_hearsay() {
        let first = |uptime: i64| {
            let mut life = UptimeCurve::default();
            note(&mut life, uptime, 0.5);
            life.curve[0]
        };
        assert_eq!(
            [59_999, 60_000, 65_999, 66_000].map(first),
            [None, Some(500), Some(500), None],
            "up to a tenth late still counts"
        );
        let mut life = UptimeCurve::default();
        note(&mut life, 60_000, 0.5);
        note(&mut life, 60_000, 0.6);
        assert_eq!(life.curve[0], Some(500), "once");
        let mut life = UptimeCurve::default();
        note(&mut life, 10_000, 0.1);
        note(&mut life, 100_000, 0.7);
        assert_eq!(life.curve[0], Some(700), "however late, if the process was observed before");
        let mut life = UptimeCurve::default();
        note(&mut life, 59_000, 0.5);
        note(&mut life, 58_000, 0.5);
        assert_eq!(life.last, Some((58_000, 500)));
        note(&mut life, 61_000, 0.5);
        note(&mut life, 60_000, 0.6);
        assert_eq!(life.curve[0], Some(500), "one second back is clock noise, not a restart");
        note(&mut life, 58_999, 0.6);
        assert_eq!(life.curve[0], None, "more than a second back is a restart");
    }

    #[test]
    fn a_younger_process_is_another_life() {
        let mut life = UptimeCurve::default();
        note(&mut life, 59_000, 0.5);
        note(&mut life, 61_000, 0.6);
        note(&mut life, 1_000, 0.1);
        assert_eq!(life.curve, UptimeCurve::default().curve);
        assert_eq!(life.last, Some((1_000, 100)));
    }
}
