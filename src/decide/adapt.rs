//! Adaptive control: one evaluation of the signal, at most one step. Pure and total; docs/control-law.md gives the
//! reasons.

use std::fmt;

use super::{
    efficacy::{self, Verdict},
    openness::{self, Percent},
    signal::{Reading, Signal},
    state::{Efficacy, Episode, Lockout, MARKS, MOST_CHANGES, Pending, State, Watched, Way, rounded, rounded_slope},
    tighten::{Share, Step},
    tuning::{CLOSE, DOUBT, NEARLY_OPEN, OPEN, ROOM, SAFE, Tuning},
};
use crate::api::{self, Settings, adaptive::Mode};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// Allowance for a write and its reading back, in addition to the time that pools need to drain (milliseconds).
const APPLY: i64 = 5_000;
/// How long the limits must be at their floor with too many tasks before tightening counts as ineffective.
const AT_FLOOR: i64 = 30 * MINUTE;
/// How long a node must report itself as critical before that alone counts as too many tasks.
const RED: i64 = MINUTE;
/// How long there must be a quorum again before the fallback ends.
const BACK: i64 = 2 * MINUTE;
/// The first lock-out of tightening; each further one doubles, up to a day.
const LOCKOUT: i64 = 4 * HOUR;
/// Tightening within this time after relaxing makes the next relaxing wait longer (milliseconds).
pub const TOO_SOON: i64 = 2 * HOUR;
/// Room is recorded after the window for relaxing divided by this.
const WORTH_SAYING: i64 = 5;
/// The highest patience (see [`State::patience`]); at this value the status reports flapping.
const MOST_PATIENCE: u8 = 8;
/// The longest window for relaxing, unless `relaxAfter` itself is longer.
const LONGEST_RELAX: i64 = 2 * HOUR;
/// The age from which a process no longer counts as young: the last of [`MARKS`].
const LONGEST_LIFE: i64 = MARKS[MARKS.len() - 1];
/// A relaxing step below this utilization says nothing about the openness: the pools are hardly used.
const IDLE: f64 = 0.5;
/// A task count that moves by less than this share of the threshold is level.
const PLATEAU: f64 = 0.02;
/// Where each change closes all idle connections, a step is judged after this many times its own waiting time at the
/// latest.
const MOST_WAITS: i64 = 3;
/// The smallest tightening step, in points of openness, where each change closes all idle connections.
const FLUSH_CUT: Percent = 30;
/// Where each change closes all idle connections, this step of an episode goes to the floor.
const FLUSH_STEPS: u8 = 3;

/// Side effect of a change on a target that closes idle connections whenever its settings are written (measured on
/// Caddy, nginx and HAProxy: docs/control-law.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// How long the target keeps closing connections after the write (milliseconds).
    pub settle: i64,
    /// The longest idle timeout of any pool of the target, managed by the policy or not (milliseconds). Connections
    /// that a write closes can take this long to come back.
    pub longest_idle: i64,
}

/// What holds besides the signal.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools)] // Independent facts, not a state machine.
pub struct Facts<'a> {
    /// The declared limits.
    pub declared: &'a Settings,
    /// The floor of the limits.
    pub floor: &'a Settings,
    /// No tightening: a pause, or `suspend`.
    pub no_tightening: bool,
    /// No relaxing: a pause, or `suspend`.
    pub no_relaxing: bool,
    /// Whether most nodes use the desired values.
    pub in_effect: bool,
    /// Whether the desired values take effect only after a restart.
    pub needs_restart: bool,
    /// Whether the operator restarts the nodes for that.
    pub rolls: bool,
    /// The pooled connections' share of the tasks.
    pub share: Share,
    /// Whether the source only says that there are too many tasks, not how many.
    pub levels: bool,
    /// Side effect of a change; `None` where a change closes no connections.
    pub disturbance: Option<Disturbance>,
    /// No decision before this time (Unix milliseconds), because the process has just begun to watch.
    pub not_before: i64,
}

impl<'a> Facts<'a> {
    /// Nothing is paused, everything is in effect, and nothing is known of the pools.
    #[must_use]
    pub const fn undisturbed(declared: &'a Settings, floor: &'a Settings) -> Self {
        Self {
            declared,
            floor,
            no_tightening: false,
            no_relaxing: false,
            in_effect: true,
            needs_restart: false,
            rolls: false,
            share: Share::UNKNOWN,
            levels: false,
            disturbance: None,
            not_before: 0,
        }
    }
}

/// A change of the openness.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Openness before.
    pub from: Percent,
    /// Openness after.
    pub to: Percent,
    /// Why it is made.
    pub reason: Reason,
    /// The utilization at which it was decided.
    pub pressure: f64,
}

/// Why a step is taken. The history shows its `Display` text; metrics use its name.
#[derive(Clone, Copy, Debug, PartialEq, strum::IntoStaticStr, strum::VariantNames)]
#[allow(missing_docs)] // `pressure`: the utilization, `None` where nothing is counted. `lasted`: for how long (milliseconds).
pub enum Reason {
    /// Too many tasks for the whole window.
    #[strum(serialize = "HighTaskCount")]
    High { pressure: Option<f64>, lasted: i64 },
    /// Few tasks for the whole window.
    #[strum(serialize = "LowTaskCount")]
    Low { pressure: Option<f64>, lasted: i64 },
    /// Tightening did not help.
    Ineffective,
    /// Tightening cannot help: the pools are too small.
    PoolsTooSmall,
    /// The task count fell before the last step was in effect.
    #[strum(serialize = "LowTaskCount")]
    Withdrawn,
    /// The task count is not known, and the fallback is to relax.
    SignalGone,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::High { pressure: Some(pressure), lasted } | Self::Low { pressure: Some(pressure), lasted } => {
                write!(f, "{}% of the threshold for {}", percent(pressure), spoken(lasted))
            }
            Self::High { pressure: None, lasted } => write!(f, "task count alert raised for {}", spoken(lasted)),
            Self::Low { pressure: None, lasted } => write!(f, "no task count alert for {}", spoken(lasted)),
            Self::Ineffective => write!(f, "tightening did not help"),
            Self::PoolsTooSmall => write!(f, "the pools are too small for tightening to help"),
            Self::Withdrawn => write!(f, "the task count fell before the last step was in effect"),
            Self::SignalGone => write!(f, "the task count is not available"),
        }
    }
}

/// A step with its verdict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// Utilization before.
    pub before: f64,
    /// Utilization after.
    pub after: f64,
}

/// Why adaptive control does less than the task count calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumIter)]
#[allow(missing_docs)] // The reasons of TighteningLimited.
pub enum Limit {
    AtFloor,
    BudgetExhausted,
    RestartForbidden,
    NotInEffect,
    PoolsTooSmall,
    Locked,
    Flapping,
    Paused,
}

/// What adaptive control is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumIter)]
#[allow(missing_docs)] // The reasons of Tightened.
pub enum Phase {
    AsDeclared,
    Tightening,
    Holding,
    Relaxing,
    AtFloor,
    FallbackHold,
}

/// The result of one evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The state after it.
    pub state: State,
    /// The step, if one was decided.
    pub decision: Option<Decision>,
    /// The verdict on an earlier step, if it was reached now.
    pub judged: Option<Judged>,
    /// The step that adaptive control would take if it were allowed to.
    pub recommendation: Option<Decision>,
    /// Why it does less than the task count calls for.
    pub limit: Option<Limit>,
    /// What it is doing.
    pub phase: Phase,
    /// Whether the task count is low because the last step's write closed connections, which may come back.
    pub has_dipped: bool,
}

impl Outcome {
    /// No decision, and the limits are as declared.
    #[must_use]
    pub const fn unmoved(state: State) -> Self {
        Self {
            state,
            decision: None,
            judged: None,
            recommendation: None,
            limit: None,
            phase: Phase::AsDeclared,
            has_dipped: false,
        }
    }

    /// The earliest time at which the last step can be judged (Unix milliseconds); `None` unless a step is in effect
    /// and not judged yet.
    #[must_use]
    pub fn due(&self) -> Option<i64> {
        self.state.pending.as_ref().and_then(|pending| Some(pending.since? + pending.wait))
    }

    /// The latest time at which the last step is judged, where a change closes connections (Unix milliseconds); `None`
    /// as for [`Self::due`].
    #[must_use]
    pub fn overdue(&self) -> Option<i64> {
        self.state.pending.as_ref().and_then(|pending| Some(pending.since? + MOST_WAITS * pending.wait))
    }

    /// A text that changes when the status needs a new report, apart from decisions and verdicts.
    #[must_use]
    pub fn digest(&self, signal: &Signal) -> String {
        let reason = match signal {
            Signal::Fresh(Reading { idle_missing: Some(_), .. }) => api::conditions::Reason::IdleConnectionsMissing,
            Signal::Fresh(_) => api::conditions::Reason::Fresh,
            Signal::Missing { reason, .. } => *reason,
        };
        let recommended = self.recommendation.as_ref().map(|decision| decision.to / 10);
        format!("{} {:?} {:?} {} {reason} {recommended:?}", self.state.encode(), self.phase, self.limit, self.has_dipped)
    }
}

/// Evaluates the signal once.
#[must_use]
pub fn step(tuning: &Tuning, facts: &Facts<'_>, before: &State, signal: &Signal, now: i64) -> Outcome {
    let Some((mut look, elapsed)) = Look::begin(tuning, facts, before, now) else {
        let state = State { changes: before.changes.clone(), ..State::default() };
        return Outcome::unmoved(state);
    };
    match signal {
        Signal::Fresh(reading) => look.fresh(reading, elapsed),
        Signal::Missing { reason, .. } => {
            // No node has been queried since a change of the signal: that does not say that the count is lost.
            look.state.lost |= *reason != api::conditions::Reason::Pending;
            look.missing(elapsed);
        }
    }
    look.finish()
}

/// If the clock was set back, clamps stored times to `now`.
fn forget_the_future(state: &mut State, now: i64) {
    let past = |time: &mut i64| *time = (*time).min(now);
    if let Some(episode) = &mut state.episode {
        past(&mut episode.since);
    }
    if let Some(pending) = &mut state.pending {
        past(&mut pending.decided);
        pending.since.iter_mut().for_each(past);
    }
    // The state stores these in whole seconds.
    state.changes.iter_mut().for_each(|(time, _)| *time = (*time).min(now / 1000 * 1000));
    state.low_since.iter_mut().for_each(past);
    state.dead_until = state.dead_until.min(now + DAY);
    if let Some(lockout) = &mut state.lockout {
        lockout.until = lockout.until.min(now + DAY);
    }
}

/// Time since the last evaluation that counts for the windows. `None` at the first evaluation and after a silence,
/// because what happened in it is not known. A clock that was set forward looks like a silence; one that was set back
/// counts as no time.
fn elapsed(tuning: &Tuning, state: &mut State, now: i64) -> Option<i64> {
    let since = state.watched.at.replace(now).map(|at| now - at);
    since.filter(|since| (0..=tuning.longest_silence()).contains(since))
}

struct Look<'a> {
    tuning: &'a Tuning,
    facts: &'a Facts<'a>,
    state: State,
    now: i64,
    judged: Option<Judged>,
    decision: Option<Decision>,
    recommendation: Option<Decision>,
    limit: Option<Limit>,
}

impl<'a> Look<'a> {
    /// Begins an evaluation; also returns the time since the last one (see [`elapsed`]). `None` where there is nothing
    /// to move.
    fn begin(tuning: &'a Tuning, facts: &'a Facts<'a>, before: &State, now: i64) -> Option<(Self, Option<i64>)> {
        if tuning.mode == Mode::Disabled || facts.floor.is_empty() {
            return None;
        }
        let mut state = before.clone();
        forget_the_future(&mut state, now);
        let elapsed = elapsed(tuning, &mut state, now);
        Some((Look { tuning, facts, state, now, judged: None, decision: None, recommendation: None, limit: None }, elapsed))
    }
    /// No signal: the windows stand still, and after a while the fallback begins.
    fn unseen(&mut self, elapsed: Option<i64>) {
        let watched = &mut self.state.watched;
        watched.fresh_for = 0;
        watched.red_for = 0;
        watched.missing_for += elapsed.unwrap_or(0);
        if self.state.watched.missing_for >= self.tuning.fallback_after {
            self.state.fallback = true;
        }
    }

    fn missing(&mut self, elapsed: Option<i64>) {
        self.unseen(elapsed);
        let now = self.now;
        if self.state.fallback && self.tuning.fallback_relaxes && self.state.openness < 100 {
            let since = self.state.changes.last().map_or(0, |(time, _)| *time).max(self.facts.not_before);
            if now - since >= self.relax_window() {
                self.relax(Reason::SignalGone, f64::NAN);
            }
        }
    }

    fn observe(&mut self, reading: &Reading, elapsed: Option<i64>) {
        self.average(reading, elapsed);
        let passed = elapsed.unwrap_or(0);
        let watched = &mut self.state.watched;
        watched.missing_for = 0;
        watched.fresh_for += passed;
        watched.red_for = if reading.red { watched.red_for + passed } else { 0 };
        if self.state.fallback && self.state.watched.fresh_for >= BACK {
            self.state.fallback = false;
        }
        if let Some(youngest) = reading.youngest {
            self.state.watched.life.note(youngest, reading.mean);
        }
        self.windows(passed);
        self.calm();
    }

    fn fresh(&mut self, reading: &Reading, elapsed: Option<i64>) {
        self.state.lost = false;
        self.observe(reading, elapsed);
        self.judge(reading);
        if self.state.fallback {
            return;
        }
        self.held();
        if self.state.rollback.is_some() {
            self.roll_back();
        } else if self.state.episode.is_some() && !self.has_dipped() {
            self.tighten();
        } else {
            self.maybe_relax();
        }
    }

    fn average(&mut self, reading: &Reading, elapsed: Option<i64>) {
        let watched = &mut self.state.watched;
        #[allow(clippy::cast_precision_loss)] // Seconds.
        let toward = |old: f64, new: f64, constant: f64| match elapsed {
            Some(passed) if old.is_finite() => (new - old).mul_add(1.0 - (-(passed as f64) / constant).exp(), old),
            _ => new,
        };
        if watched.primed && elapsed.is_some() {
            watched.fast = toward(watched.fast, reading.up, self.tuning.fast);
            watched.slow = toward(watched.slow, reading.down, self.tuning.slow);
        } else {
            // What came before is not known, so there is no room until it has been observed, unless an earlier process
            // observed it.
            let slow = if self.state.low_since.is_some() { reading.down } else { reading.down.max(OPEN) };
            (watched.fast, watched.slow, watched.primed) = (reading.up, slow, true);
        }
    }

    /// Begins and ends the episode, and updates how long each condition of a step has held.
    fn windows(&mut self, passed: i64) {
        let is_disturbed = self.is_disturbed();
        let State { episode, low_since, watched, openness, .. } = &mut self.state;
        let Watched { fast, slow, high_for, low_for, floor_for, red_for, .. } = watched;
        let red = *red_for >= RED;
        match episode {
            None if *fast >= OPEN || red => {
                *episode = Some(Episode::begin(self.now, *openness));
                *high_for = 0;
            }
            // A count that fell because a write closed connections does not end the episode.
            Some(_) if *fast < CLOSE && !red && is_disturbed => *high_for = 0,
            Some(_) if *fast < CLOSE && !red => {
                *episode = None;
                *high_for = 0;
            }
            // The first step requires the count to stay at or above the threshold without a break.
            Some(episode) if episode.steps > 0 || *fast >= OPEN || red => *high_for += passed,
            Some(_) | None => *high_for = 0,
        }
        *floor_for = if *openness == 0 && *fast >= OPEN { *floor_for + passed } else { 0 };
        // There is room only without peaks. It is recorded after a while, so that a short dip does not change the
        // status.
        if *slow <= ROOM && *fast < CLOSE && *openness < 100 {
            *low_for += passed;
            if low_since.is_none() && *low_for >= self.tuning.relax_after / WORTH_SAYING {
                *low_since = Some(self.now - *low_for);
            }
        } else {
            (*low_since, *low_for) = (None, 0);
        }
    }

    /// Whether the task count is low because the last step's write closed connections, which may come back.
    fn has_dipped(&self) -> bool {
        self.state.watched.fast < CLOSE && self.is_disturbed()
    }

    /// Whether connections that the last step's write closed can still be coming back.
    fn is_disturbed(&self) -> bool {
        let Some(pending) = self.state.pending.as_ref().filter(|_| self.facts.disturbance.is_some()) else { return false };
        pending.since.is_none_or(|since| self.now < since + pending.wait)
    }

    /// After a day without a change, forgets what slowed adaptive control down.
    fn calm(&mut self) {
        let now = self.now;
        self.state.changes.retain(|(time, _)| now - time < DAY);
        if self.state.changes.is_empty() {
            self.state.patience = 1;
            if self.state.openness == 100 && self.state.pending.is_none() {
                self.state.proved = 100;
            }
        }
        if self.state.lockout.is_some_and(|lockout| now >= lockout.until + DAY) {
            self.state.lockout = None;
        }
    }

    fn judge(&mut self, reading: &Reading) {
        let Some(mut pending) = self.state.pending.take() else { return };
        if !self.facts.in_effect {
            self.state.efficacy = Efficacy::Measuring;
            self.state.pending = Some(pending);
            self.limit = (self.facts.needs_restart && !self.facts.rolls).then_some(Limit::RestartForbidden);
            return;
        }
        let since = *pending.since.get_or_insert(self.now);
        // The effect is measured from the time at which it could begin.
        self.state.dead_until = self.state.dead_until.max(since + self.acting_time(&pending));
        if !self.is_due(&mut pending, since) {
            self.state.efficacy = Efficacy::Measuring;
            self.state.pending = Some(pending);
            return;
        }
        let restarted = reading.youngest.is_some_and(|uptime| uptime < self.now - pending.decided);
        let mut after = self.level();
        if let Some(life) = &pending.life {
            // A restart empties the pools by itself, so only values at the same uptime can be compared.
            let Some((was, is)) = efficacy::at_equal_uptime(life, &self.state.watched.life, pending.wait) else {
                if self.state.watched.life.last.is_none_or(|(uptime, _)| uptime < LONGEST_LIFE) {
                    self.state.efficacy = Efficacy::AwaitingUptimeMatch;
                    self.state.pending = Some(pending);
                } else {
                    // The earlier process was never observed at an uptime that can be compared.
                    self.judged =
                        Some(Judged { verdict: Verdict::Inconclusive, before: pending.before, after: self.state.watched.fast });
                    self.state.efficacy = Efficacy::Measuring;
                }
                return;
            };
            (pending.before, after) = (was, is);
            pending.slope = 0.0;
        }
        let over = Episode { base: Some(pending.before), steps: 1, ..Episode::begin(pending.decided, pending.from) };
        let mut episode = self.state.episode.unwrap_or(over);
        let left = openness::remaining(self.facts.declared, self.facts.floor, pending.from, pending.to);
        episode.learned = efficacy::learned(&pending, after, left);
        let verdict = if restarted && pending.life.is_none() {
            Verdict::Inconclusive
        } else {
            efficacy::judge(&pending, &mut episode, after, self.facts.disturbance.is_some(), self.now)
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
                    self.state.proved = self.state.openness;
                }
            }
            Verdict::Inconclusive if self.state.efficacy == Efficacy::Effective => {}
            Verdict::Inconclusive => self.state.efficacy = Efficacy::Measuring,
            Verdict::Ineffective => self.give_up(Efficacy::Ineffective),
        }
    }

    /// How long after a step is in effect the next one may follow (milliseconds).
    fn acting_time(&self, pending: &Pending) -> i64 {
        if self.facts.disturbance.is_some() { self.dead_time() } else { pending.wait }
    }

    /// The utilization that a verdict uses. Where a change closes connections, they come back for a while, and noise
    /// must not count as an effect; so it is the higher of the two averages.
    fn level(&self) -> f64 {
        let Watched { fast, slow, .. } = self.state.watched;
        if self.facts.disturbance.is_some() { fast.max(slow) } else { fast }
    }

    /// Whether a step may be judged. Where a change closes connections, they need time to come back, and the count must
    /// be level: it has moved by less than [`PLATEAU`] for a quarter of that time, and for at least as long as the slow
    /// average takes to follow. After twice that time more the step is judged anyway.
    fn is_due(&mut self, pending: &mut Pending, since: i64) -> bool {
        if self.now < since + pending.wait || self.state.watched.fresh_for < self.tuning.interval {
            return false;
        }
        if self.facts.disturbance.is_none() {
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
        self.now >= since + MOST_WAITS * pending.wait
    }

    /// Gives up: takes back the steps that did not help, and locks tightening out for a while.
    fn give_up(&mut self, efficacy: Efficacy) {
        let to = efficacy::back_to(self.state.episode.as_ref(), self.state.openness);
        self.state.rollback = (to > self.state.openness).then_some(to);
        let times = self.state.lockout.map_or(0, |lockout| lockout.times.saturating_add(1));
        let wait = (LOCKOUT << times.min(3)).min(DAY);
        self.state.lockout = Some(Lockout { until: self.now + wait, times });
        self.state.efficacy = efficacy;
        self.state.pending = None;
        self.state.proved = 100;
    }

    /// Records whether a pause or the mode blocks changes. When the block ends, the windows start from zero, so that no
    /// action is stored up.
    fn held(&mut self) {
        let held = self.tuning.mode != Mode::Enforce || self.facts.no_tightening || self.facts.no_relaxing;
        if self.state.watched.held && !held {
            (self.state.watched.high_for, self.state.watched.low_for) = (0, 0);
        }
        self.state.watched.held = held;
    }

    fn tighten(&mut self) {
        let (now, tuning, facts) = (self.now, self.tuning, self.facts);
        let fast = self.state.watched.fast;
        let first = self.state.episode.is_some_and(|episode| episode.steps == 0);
        #[allow(clippy::cast_precision_loss)] // At most a day.
        let due = self.state.watched.high_for as f64 >= tuning.tighten_after as f64 * hesitation(&self.state, now);
        if self.state.lockout.is_some_and(|lockout| now < lockout.until) {
            if self.state.efficacy == Efficacy::PoolsTooSmall {
                self.limit = Some(Limit::PoolsTooSmall);
            }
            // Otherwise the lock-out itself is the limit: see `finish`.
            return;
        }
        if self.state.openness == 0 {
            self.limit = Some(Limit::AtFloor);
            let helped =
                self.state.episode.is_some_and(|episode| episode.helped.is_some() || efficacy::helped_overall(&episode, fast));
            if self.state.watched.floor_for >= AT_FLOOR
                && !helped
                && self.state.pending.is_none()
                && self.state.efficacy != Efficacy::Effective
            {
                self.give_up(Efficacy::Ineffective);
                self.roll_back();
            }
            return;
        }
        if !due || now < facts.not_before {
            return;
        }
        if first && facts.share.is_negligible() {
            self.state.efficacy = Efficacy::NotAttributable;
            return;
        }
        if facts.share.is_too_small(fast) {
            self.give_up(Efficacy::PoolsTooSmall);
            self.limit = Some(Limit::PoolsTooSmall);
            self.roll_back();
            return;
        }
        let step = Step {
            tuning,
            declared: facts.declared,
            floor: facts.floor,
            openness: self.state.openness,
            pressure: fast,
            share: Share {
                estimate: facts.share.estimate.or(self.state.episode.and_then(|episode| episode.learned)),
                ..facts.share
            },
            proved: first.then_some(self.state.proved),
        };
        let (from, to) = (self.state.openness, self.coarse(step.target()));
        let reason = Reason::High { pressure: self.counted(fast), lasted: self.state.watched.high_for };
        if tuning.mode != Mode::Enforce || facts.no_tightening {
            self.recommendation = Some(Decision { from, to, reason, pressure: fast });
            self.limit = (tuning.mode == Mode::Enforce).then_some(Limit::Paused);
            return;
        }
        if !facts.in_effect {
            self.limit = match (facts.needs_restart, facts.rolls) {
                (true, false) => Some(Limit::RestartForbidden),
                // After a step, the new values are still on their way.
                (false, _) if self.state.pending.is_none() => Some(Limit::NotInEffect),
                _ => None,
            };
            return;
        }
        // Where a verdict takes as long as connections take to come back, the next step does not wait for it; the steps
        // share one verdict.
        let waits = self.state.pending.is_some() && facts.disturbance.is_none();
        if waits || now < self.state.dead_until {
            return;
        }
        if !self.may_change() {
            self.limit = Some(Limit::BudgetExhausted);
            return;
        }
        let wait = self.claim_time();
        #[allow(clippy::cast_precision_loss)] // Seconds.
        let lag = ((tuning.slow - tuning.fast) / 1000.0).max(1.0);
        let shared = self.state.pending.take();
        let first = shared.as_ref().map_or(from, |pending| pending.from);
        let before = rounded(if facts.disturbance.is_some() { fast.min(self.state.watched.slow) } else { fast });
        self.state.watched.plateau = None;
        self.state.pending = Some(Pending {
            decided: shared.as_ref().map_or(now, |pending| pending.decided),
            since: None,
            wait,
            before: shared.as_ref().map_or(before, |pending| pending.before),
            slope: rounded_slope(((fast - self.state.watched.slow) / lag).max(0.0)),
            from: first,
            to,
            expected: facts
                .share
                .estimate
                .map(|share| rounded(share * (1.0 - openness::remaining(facts.declared, facts.floor, first, to)))),
            life: facts.needs_restart.then(|| self.state.watched.life.clone()),
        });
        if let Some(episode) = &mut self.state.episode {
            episode.steps = episode.steps.saturating_add(1);
            episode.base.get_or_insert(rounded(fast));
        }
        self.state.efficacy = Efficacy::Measuring;
        self.change(to, reason, fast);
    }

    fn maybe_relax(&mut self) {
        let (now, tuning, facts) = (self.now, self.tuning, self.facts);
        let slow = self.state.watched.slow;
        if self.state.openness >= 100 {
            return;
        }
        let (from, (to, doubtful)) = (self.state.openness, self.wider(slow));
        let window = self.relax_window() * if doubtful { DOUBT } else { 1 };
        if self.state.watched.low_for < window {
            return;
        }
        let reason = Reason::Low { pressure: self.counted(slow), lasted: self.state.watched.low_for };
        if tuning.mode != Mode::Enforce || facts.no_relaxing {
            self.recommendation = Some(Decision { from, to, reason, pressure: slow });
            self.limit = (tuning.mode == Mode::Enforce).then_some(Limit::Paused);
            return;
        }
        if now < facts.not_before || now < self.state.dead_until {
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
        if !facts.in_effect {
            self.limit = (facts.needs_restart && !facts.rolls).then_some(Limit::RestartForbidden);
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
            self.limit = Some(Limit::BudgetExhausted);
            return;
        }
        let before = self.state.pending.take().map_or(f64::NAN, |pending| pending.before);
        self.judged = Some(Judged { verdict: Verdict::Inconclusive, before, after: self.state.watched.fast });
        self.state.efficacy = if to == 100 { Efficacy::NotTightened } else { Efficacy::Measuring };
        self.limit = None;
        self.change(to, Reason::Withdrawn, pressure);
    }

    /// The utilization to show; `None` where the source only raises alerts.
    fn counted(&self, pressure: f64) -> Option<f64> {
        (!self.facts.levels).then_some(pressure)
    }

    fn relax(&mut self, reason: Reason, pressure: f64) {
        if self.facts.no_relaxing || self.tuning.mode != Mode::Enforce {
            return;
        }
        if !self.may_change() {
            self.limit = Some(Limit::BudgetExhausted);
            return;
        }
        let (to, _) = self.wider(pressure);
        if pressure < IDLE {
            // The pools were hardly used, so this does not disprove what was enough under load.
            self.state.proved = self.state.proved.min(self.state.openness);
        } else {
            self.state.proved = 100;
        }
        self.change(to, reason, pressure);
        if to == 100 {
            self.state.efficacy = Efficacy::NotTightened;
        }
    }

    /// Predicts the utilization after relaxing: pools grow with the limits, everything else stays. Where the pools'
    /// share is not known, all tasks count as pooled.
    fn foreseen(&self, pressure: f64, to: Percent) -> f64 {
        let left = openness::remaining(self.facts.declared, self.facts.floor, to, self.state.openness);
        let share = self.facts.share.estimate.unwrap_or(1.0).min(self.facts.share.most);
        pressure * (1.0 + share * (1.0 / left - 1.0))
    }

    /// The largest of one to three steps that leaves room. If none does, one step and `true`: the prediction is in
    /// doubt. A step that reaches [`NEARLY_OPEN`] goes to 100%.
    fn wider(&self, pressure: f64) -> (Percent, bool) {
        let step = self.tuning.relax_step;
        let up = |points: u8| {
            let to = self.state.openness.saturating_add(points).min(100);
            if to >= NEARLY_OPEN { 100 } else { to }
        };
        let leaves_room = |to: &Percent| self.foreseen(pressure, *to) <= SAFE;
        let widest = (step..=step.saturating_mul(3)).rev().map(up).find(leaves_room);
        widest.map_or((up(step), true), |to| (to, false))
    }

    fn roll_back(&mut self) {
        let Some(to) = self.state.rollback else { return };
        let is_paused = self.facts.no_relaxing || self.tuning.mode != Mode::Enforce;
        if to <= self.state.openness {
            self.state.rollback = None;
        } else if is_paused {
            self.limit = (self.tuning.mode == Mode::Enforce).then_some(Limit::Paused);
        } else if self.now < self.state.dead_until {
            // The last change takes effect first.
        } else if self.may_change() {
            self.state.rollback = None;
            let too_small = self.state.efficacy == Efficacy::PoolsTooSmall;
            let reason = if too_small { Reason::PoolsTooSmall } else { Reason::Ineffective };
            self.change(to, reason, self.state.watched.fast);
        } else {
            self.limit = Some(Limit::BudgetExhausted);
        }
    }

    fn relax_window(&self) -> i64 {
        let levels = if self.facts.levels { 2 } else { 1 };
        let window = self.tuning.relax_after * i64::from(self.state.patience) * levels;
        window.min(LONGEST_RELAX.max(self.tuning.relax_after))
    }

    /// How long no further change may follow (milliseconds). Pools drain at the idle timeout that they had, so it is
    /// twice that, plus the time to write and to observe.
    fn dead_time(&self) -> i64 {
        let idle = openness::longest_idle(self.facts.declared, self.facts.floor, self.state.openness);
        let settle = self.facts.disturbance.map_or(0, |disturbance| disturbance.settle);
        settle + 2 * i64::try_from(idle.as_millis()).unwrap_or(DAY).min(DAY) + self.tuning.interval + APPLY
    }

    /// How long after a step is in effect it may be judged (milliseconds). Where a change closes connections, those of
    /// every pool can have come back by then.
    fn claim_time(&self) -> i64 {
        self.facts
            .disturbance
            .map_or_else(|| self.dead_time(), |disturbance| disturbance.settle + disturbance.longest_idle * 5 / 4)
    }

    /// Fewer and larger steps where each change closes all idle connections.
    fn coarse(&self, to: Percent) -> Percent {
        if self.facts.disturbance.is_none() {
            return to;
        }
        let steps = self.state.episode.map_or(0, |episode| episode.steps);
        if steps + 1 >= FLUSH_STEPS { 0 } else { to.min(self.state.openness.saturating_sub(FLUSH_CUT)) }
    }

    fn may_change(&self) -> bool {
        let within = |span: i64| self.state.changes.iter().filter(|(time, _)| self.now - time < span).count();
        within(HOUR) < self.tuning.per_hour as usize && within(DAY) < self.tuning.per_day as usize
    }

    fn change(&mut self, to: Percent, reason: Reason, pressure: f64) {
        let from = self.state.openness;
        let way = if to < from { Way::Tighten } else { Way::Relax };
        self.state.dead_until = self.now + self.dead_time();
        let too_soon = self.state.changes.last().is_some_and(|(time, last)| *last == Way::Relax && self.now - time < TOO_SOON);
        if way == Way::Tighten && too_soon {
            self.state.patience = (self.state.patience * 4).min(MOST_PATIENCE);
        }
        // The state stores whole seconds.
        self.state.changes.push((self.now / 1000 * 1000, way));
        if self.state.changes.len() > MOST_CHANGES {
            self.state.changes.remove(0);
        }
        self.state.openness = to;
        self.state.low_since = None;
        self.state.watched.low_for = 0;
        self.decision = Some(Decision { from, to, reason, pressure });
    }

    fn finish(self) -> Outcome {
        let has_dipped = self.has_dipped();
        let is_locked = self.state.lockout.is_some_and(|lockout| self.now < lockout.until);
        let Self { state, judged, decision, recommendation, mut limit, tuning, .. } = self;
        if limit.is_none() && is_locked {
            limit = Some(Limit::Locked);
        }
        if limit.is_none() && state.patience >= MOST_PATIENCE {
            limit = Some(Limit::Flapping);
        }
        let phase = match (&state, state.openness) {
            (_, 100) => Phase::AsDeclared,
            (state, _) if state.fallback => Phase::FallbackHold,
            (_, 0) => Phase::AtFloor,
            (state, _) if state.pending.is_some() => Phase::Tightening,
            (state, _) if state.low_since.is_some() && tuning.mode == Mode::Enforce => Phase::Relaxing,
            _ => Phase::Holding,
        };
        Outcome { state, decision, judged, recommendation, limit, phase, has_dipped }
    }
}

/// The factor by which a step waits longer than `tightenAfter`. Only the first step of an episode waits longer, and
/// only if the limits were not tightened lately. While the lower of the two averages is barely over the threshold it
/// waits three quarters longer, because noise looks the same; from 120% on it does not wait longer.
fn hesitation(state: &State, now: i64) -> f64 {
    let rising = state.changes.last().is_some_and(|(time, way)| *way == Way::Tighten && now - time < TOO_SOON);
    if rising || state.episode.is_some_and(|episode| episode.steps > 0) {
        return 1.0;
    }
    let pressure = state.watched.fast.min(state.watched.slow);
    0.75f64.mul_add(((1.2 - pressure) / 0.15).clamp(0.0, 1.0), 1.0)
}

/// Time until the running window for tightening can end at the earliest (milliseconds).
#[must_use]
pub fn next_end(tuning: &Tuning, state: &State, now: i64) -> Option<i64> {
    if state.episode.is_none() || state.pending.is_some() || state.watched.fast < CLOSE {
        return None;
    }
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // At most a day.
    let window = (tuning.tighten_after as f64 * hesitation(state, now)).ceil() as i64;
    Some(window - state.watched.high_for).filter(|wait| *wait > 0)
}

/// A share in percent, for display.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Bounded.
pub fn percent(share: f64) -> u32 {
    (share.clamp(0.0, 1e6) * 100.0).round() as u32
}

/// A duration for display: `45s`, `12m`, `3h 5m`.
#[must_use]
pub fn spoken(ms: i64) -> String {
    let seconds = ms / 1000;
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        _ if seconds % 3600 < 60 => format!("{}h", seconds / 3600),
        _ => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests;
