//! Adaptive control: one evaluation of the signal, at most one step. Pure and total; docs/control-law.md gives the
//! reasons.

use std::fmt;

use super::{
    disturbance::Disturbance,
    guard::settled_at,
    openness::{self, Percent},
    signal::{Reading, Signal},
    state::{Episode, MAX_CHANGES, State, Watched, Way},
    step_size::Share,
    tuning::{DAY, EPISODE_END, EPISODE_START, HOUR, MINUTE, RELAX_BELOW, Tuning, millis},
};
use crate::api::{
    self, LimitValues,
    adaptive::Mode,
    guarded::ConnectionRate,
    wording::{percent, spoken},
};

/// Allowance for a write and its reading back, in addition to the time that pools need to drain (milliseconds).
pub(super) const WRITE_ALLOWANCE: i64 = 5_000;
/// How long a node must report itself as critical before that alone counts as too many tasks.
const CRITICAL_AFTER: i64 = MINUTE;
/// How long there must be a quorum again before the fallback ends.
pub(super) const FALLBACK_EXIT_AFTER: i64 = 2 * MINUTE;
/// Tightening within this time after relaxing makes the next relaxing wait longer (milliseconds).
pub const QUICK_RETIGHTEN: i64 = 2 * HOUR;
/// Room is recorded after the window for relaxing divided by this.
const WORTH_SAYING: i64 = 5;
/// The highest factor (see [`State::relax_backoff`]); at this value the status reports flapping.
const MAX_RELAX_BACKOFF: u8 = 8;
/// Where each change closes all idle connections, a step is judged after this many times its own waiting time at the
/// latest.
pub(super) const MAX_WAITS: i64 = 3;

/// What holds besides the signal.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools)] // Independent facts, not a state machine.
pub struct Facts<'a> {
    /// The declared limits.
    pub declared: &'a LimitValues,
    /// The floor of the limits.
    pub floor: &'a LimitValues,
    /// No tightening: a pause, or `suspend`.
    pub no_tightening: bool,
    /// No relaxing: a pause, or `suspend`.
    pub no_relaxing: bool,
    /// Whether most nodes use the desired values.
    pub in_effect: bool,
    /// Whether nodes wait for a later batch of the update.
    pub updating: bool,
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
    /// New connections per second up to which no step is harmful; `None` where the policy names no counter of them.
    pub guard: Option<f64>,
    /// No decision before this time (Unix milliseconds), because the process has just begun to watch.
    pub not_before: i64,
}

impl<'a> Facts<'a> {
    /// Nothing is paused, everything is in effect, and nothing is known of the pools.
    #[must_use]
    pub const fn undisturbed(declared: &'a LimitValues, floor: &'a LimitValues) -> Self {
        Self {
            declared,
            floor,
            no_tightening: false,
            no_relaxing: false,
            in_effect: true,
            updating: false,
            needs_restart: false,
            rolls: false,
            share: Share::UNKNOWN,
            levels: false,
            disturbance: None,
            guard: None,
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
    /// Tightening made new connections too frequent.
    Harmful,
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
                write!(f, "on average {}% of the threshold for {}", percent(pressure), spoken(lasted))
            }
            Self::High { pressure: None, lasted } => write!(f, "task count alert raised for {}", spoken(lasted)),
            Self::Low { pressure: None, lasted } => write!(f, "no task count alert for {}", spoken(lasted)),
            Self::Ineffective => write!(f, "tightening did not help"),
            Self::PoolsTooSmall => write!(f, "the pools are too small for tightening to help"),
            Self::Harmful => write!(f, "tightening made new connections more than twice as frequent"),
            Self::Withdrawn => write!(f, "the task count fell before the last step was in effect"),
            Self::SignalGone => write!(f, "the task count is not available"),
        }
    }
}

/// The verdict on a step. The history shows its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr)]
pub enum Verdict {
    /// The task count fell.
    Effective,
    /// The task count did not fall, and more steps would not change that.
    Ineffective,
    /// No statement is possible: the task count was rising anyway, a process was restarted, or it takes another step to
    /// tell.
    Inconclusive,
    /// New connections became too frequent.
    Harmful,
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

/// New connections before and after a step that made them too frequent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Harm {
    /// Before.
    pub before: ConnectionRate,
    /// After.
    pub after: ConnectionRate,
}

/// Why adaptive control does less than the task count calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumIter)]
#[allow(missing_docs)] // The reasons of TighteningLimited.
pub enum Restriction {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::EnumIter)]
#[allow(missing_docs)] // The reasons of Tightened.
pub enum Phase {
    #[default]
    AsDeclared,
    Tightening,
    Holding,
    Relaxing,
    AtFloor,
    FallbackHold,
}

/// The result of one evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The state after it.
    pub state: State,
    /// The step, if one was decided.
    pub decision: Option<Decision>,
    /// The verdict on an earlier step, if it was reached now.
    pub judged: Option<Judged>,
    /// New connections, if the verdict is Harmful.
    pub harm: Option<Harm>,
    /// The step that adaptive control would take if it were allowed to.
    pub recommendation: Option<Decision>,
    /// Why it does less than the task count calls for.
    pub limit: Option<Restriction>,
    /// What it is doing.
    pub phase: Phase,
    /// Whether the task count is low because the last step's write closed connections, which may come back.
    pub has_dipped: bool,
    /// What the next tightening step waits for, while there are too many tasks and nothing limits adaptive control.
    pub wait: Option<Wait>,
}

/// What the next tightening step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The last change takes effect first, until this time (Unix milliseconds).
    Settling(i64),
    /// The process has just begun to count, and waits until this time (Unix milliseconds).
    FirstCounts(i64),
    /// The verdict on the last step.
    Verdict,
    /// The task count must stay high for a while. This is the first step of the episode.
    FirstStep,
    /// The task count must stay high for a while.
    NextStep,
}

impl Outcome {
    /// No decision, and the limits are as declared.
    #[must_use]
    pub fn unmoved(state: State) -> Self {
        Self { state, ..Self::default() }
    }

    /// The earliest time at which the last step can be judged (Unix milliseconds); `None` unless a step is in effect
    /// and not judged yet.
    #[must_use]
    pub fn due(&self) -> Option<i64> {
        let pending = self.state.pending.as_ref()?;
        let settled = settled_at(&self.state, pending)?;
        self.state.guarded.map_or_else(|| Some(pending.since? + pending.wait), |guarded| Some(settled + guarded.window))
    }

    /// The latest time at which the last step is judged, where a change closes connections (Unix milliseconds); `None`
    /// as for [`Self::due`].
    #[must_use]
    pub fn overdue(&self) -> Option<i64> {
        self.state.pending.as_ref().and_then(|pending| Some(pending.since? + MAX_WAITS * pending.wait))
    }

    /// What the report depends on, apart from decisions and verdicts.
    #[must_use]
    pub fn digest(&self, signal: &Signal) -> Digest {
        let reason = match signal {
            Signal::Fresh(Reading { idle_missing: Some(_), .. }) => api::conditions::Reason::IdleConnectionsMissing,
            Signal::Fresh(reading) if reading.counter_missing().is_some() => api::conditions::Reason::NewConnectionsMissing,
            Signal::Fresh(_) => api::conditions::Reason::Fresh,
            Signal::Unasked { .. } => api::conditions::Reason::Pending,
            Signal::Missing { reason, .. } => *reason,
        };
        let outcome =
            Self { state: self.state.stored(), decision: None, judged: None, harm: None, recommendation: None, ..*self };
        Digest { outcome, reason, recommended: self.recommendation.map(|decision| decision.to / 10) }
    }
}

/// What the report depends on, apart from decisions and verdicts. The status needs a new report when it changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Digest {
    /// Without decisions and verdicts, and without what is not stored.
    outcome: Outcome,
    /// The reason of `MetricsAvailable`.
    reason: api::conditions::Reason,
    /// The recommended openness in tens of percent.
    recommended: Option<Percent>,
}

/// Evaluates the signal once.
#[must_use]
pub fn step(tuning: &Tuning, facts: &Facts<'_>, before: &State, signal: &Signal, now: i64) -> Outcome {
    if tuning.mode == Mode::Disabled || facts.floor.is_empty() {
        return Outcome::unmoved(State { changes: before.changes.clone(), ..State::default() });
    }
    let mut state = before.clone();
    forget_the_future(&mut state, now);
    let elapsed = elapsed(tuning, &mut state, now);
    let mut look = Evaluation {
        tuning,
        facts,
        state,
        now,
        judged: None,
        harm: None,
        is_guarding: false,
        decision: None,
        recommendation: None,
        limit: None,
    };
    match signal {
        Signal::Fresh(reading) => look.fresh(reading, elapsed),
        // That a node was not asked yet does not say that the count is lost.
        Signal::Unasked { .. } => look.missing(elapsed),
        Signal::Missing { reason, .. } => {
            look.state.lost |= *reason != api::conditions::Reason::Pending;
            look.missing(elapsed);
        }
    }
    look.finish()
}

/// Until when the budget of changes is used up (Unix milliseconds); `None` if a change is allowed now.
#[must_use]
pub fn budget_until(tuning: &Tuning, state: &State, now: i64) -> Option<i64> {
    let until = |most: u32, span: i64| {
        let mut times: Vec<_> = state.changes.iter().map(|(time, _)| *time).filter(|time| now - time < span).collect();
        times.sort_unstable();
        // This change must be older than the span.
        let over = times.len().checked_sub(most as usize)?;
        Some(times.get(over).map_or(now, |time| *time) + span)
    };
    until(tuning.per_hour, HOUR).max(until(tuning.per_day, DAY))
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
    state.guarded.iter_mut().for_each(|guarded| past(&mut guarded.decided));
    // The state stores these in whole seconds.
    state.changes.iter_mut().for_each(|(time, _)| *time = (*time).min(now / 1000 * 1000));
    state.relaxable_since.iter_mut().for_each(past);
    state.settle_until = state.settle_until.min(now + DAY);
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

pub(super) struct Evaluation<'a> {
    pub(super) tuning: &'a Tuning,
    pub(super) facts: &'a Facts<'a>,
    pub(super) state: State,
    pub(super) now: i64,
    pub(super) judged: Option<Judged>,
    pub(super) harm: Option<Harm>,
    /// Whether new connections are being measured, so that verdicts and further steps wait.
    pub(super) is_guarding: bool,
    pub(super) decision: Option<Decision>,
    pub(super) recommendation: Option<Decision>,
    pub(super) limit: Option<Restriction>,
}

impl Evaluation<'_> {
    /// No signal: the windows stand still, and after a while the fallback begins.
    fn missing(&mut self, elapsed: Option<i64>) {
        let watched = &mut self.state.watched;
        (watched.fresh_for, watched.red_for) = (0, 0);
        watched.missing_for += elapsed.unwrap_or(0);
        self.state.fallback |= watched.missing_for >= self.tuning.fallback_after;
        let since = self.state.changes.last().map_or(0, |(time, _)| *time).max(self.facts.not_before);
        let may_relax = self.state.fallback && self.tuning.fallback_relaxes && self.state.openness < 100;
        if may_relax && self.now - since >= self.relax_window() {
            self.relax(Reason::SignalGone, f64::NAN);
        }
    }

    fn observe(&mut self, reading: &Reading, elapsed: Option<i64>) {
        self.average(reading, elapsed);
        let passed = elapsed.unwrap_or(0);
        let watched = &mut self.state.watched;
        watched.missing_for = 0;
        watched.fresh_for += passed;
        watched.red_for = if reading.red { watched.red_for + passed } else { 0 };
        self.state.fallback &= self.state.watched.fresh_for < FALLBACK_EXIT_AFTER;
        self.note_uptime(reading);
        self.note_connections(reading.rate.as_ref(), elapsed);
        self.windows(passed);
        self.expire_memory();
    }

    fn fresh(&mut self, reading: &Reading, elapsed: Option<i64>) {
        self.state.lost = false;
        self.observe(reading, elapsed);
        self.judge(reading);
        if self.state.fallback {
            return;
        }
        self.note_blocks();
        if self.state.rollback.is_some() {
            self.roll_back();
        } else if self.state.episode.is_some() && !self.has_dipped() {
            self.tighten(reading);
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
            let slow = if self.state.relaxable_since.is_some() { reading.down } else { reading.down.max(EPISODE_START) };
            (watched.fast, watched.slow, watched.primed) = (reading.up, slow, true);
        }
    }

    /// Begins and ends the episode, and updates how long each condition of a step has held.
    fn windows(&mut self, passed: i64) {
        let is_disturbed = self.is_disturbed();
        let State { episode, relaxable_since: low_since, watched, openness, .. } = &mut self.state;
        let Watched { fast, slow, high_for, low_for, floor_for, red_for, .. } = watched;
        let red = *red_for >= CRITICAL_AFTER;
        let (is_over, is_under) = (*fast >= EPISODE_START || red, *fast < EPISODE_END && !red);
        // The first step requires the count to stay at or above the threshold without a break.
        let goes_on = episode.is_some_and(|episode| !is_under && (episode.steps > 0 || is_over));
        *high_for = if goes_on { *high_for + passed } else { 0 };
        if is_over && episode.is_none() {
            *episode = Some(Episode::begin(self.now, *openness));
        } else if is_under && !is_disturbed {
            // A count that fell because a write closed connections does not end the episode.
            *episode = None;
        }
        *floor_for = if *openness == 0 && *fast >= EPISODE_START { *floor_for + passed } else { 0 };
        // There is room only without peaks. It is recorded after a while, so that a short dip does not change the
        // status.
        if *slow <= RELAX_BELOW && *fast < EPISODE_END && *openness < 100 {
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
        self.state.watched.fast < EPISODE_END && self.is_disturbed()
    }

    /// Whether connections that the last step's write closed can still be coming back.
    fn is_disturbed(&self) -> bool {
        let Some(pending) = self.state.pending.as_ref().filter(|_| self.facts.disturbance.is_some()) else { return false };
        pending.since.is_none_or(|since| self.now < since + pending.wait)
    }

    /// After a day without a change, forgets what slowed adaptive control down.
    fn expire_memory(&mut self) {
        let now = self.now;
        self.state.changes.retain(|(time, _)| now - time < DAY);
        if self.state.changes.is_empty() {
            self.state.relax_backoff = 1;
            if self.state.openness == 100 && self.state.pending.is_none() {
                self.state.last_sufficient = 100;
            }
        }
        self.state.lockout = self.state.lockout.filter(|lockout| now < lockout.until + DAY);
    }

    /// Records what a pause or the mode blocks. When the block of a direction ends, its window starts from zero, so that
    /// no action is stored up.
    fn note_blocks(&mut self) {
        let is_idle = self.tuning.mode != Mode::Enforce;
        let (tightening, relaxing) = (is_idle || self.facts.no_tightening, is_idle || self.facts.no_relaxing);
        let watched = &mut self.state.watched;
        if watched.tightening_blocked && !tightening {
            watched.high_for = 0;
        }
        if watched.relaxing_blocked && !relaxing {
            watched.low_for = 0;
        }
        (watched.tightening_blocked, watched.relaxing_blocked) = (tightening, relaxing);
    }

    /// The utilization to show; `None` where the source only raises alerts.
    pub(super) fn counted(&self, pressure: f64) -> Option<f64> {
        (!self.facts.levels).then_some(pressure)
    }

    /// How long no further change may follow (milliseconds). Pools drain at the idle timeout that they had, so it is
    /// twice that, plus the time to write and to observe.
    pub(super) fn dead_time(&self) -> i64 {
        let idle = openness::longest_idle(self.facts.declared, self.facts.floor, self.state.openness);
        let settle = self.facts.disturbance.map_or(0, |disturbance| disturbance.settle);
        settle + 2 * millis(idle).min(DAY) + self.tuning.interval + WRITE_ALLOWANCE
    }

    /// How long after a step is in effect it may be judged (milliseconds). Where a change closes connections, those of
    /// every pool can have come back by then.
    pub(super) fn claim_time(&self) -> i64 {
        self.facts.disturbance.map_or_else(|| self.dead_time(), |disturbance| disturbance.claim_time())
    }

    /// Whether tightening is locked out.
    pub(super) fn is_locked(&self) -> bool {
        self.state.lockout.is_some_and(|lockout| self.now < lockout.until)
    }

    /// Whether the budget allows a change. If not, that is the limit.
    pub(super) fn may_change(&mut self) -> bool {
        let is_allowed = budget_until(self.tuning, &self.state, self.now).is_none();
        if !is_allowed {
            self.limit = Some(Restriction::BudgetExhausted);
        }
        is_allowed
    }

    /// Whether the budget allows a tightening. A guarded one needs room for taking it back, too.
    pub(super) fn may_tighten(&mut self) -> bool {
        let has_room = self.facts.guard.is_none() || budget_until(&self.tuning.reserving(), &self.state, self.now).is_none();
        if !has_room {
            self.limit = Some(Restriction::BudgetExhausted);
        }
        has_room && self.may_change()
    }

    /// Whether the mode or a pause stops a step. A pause is then the limit.
    pub(super) fn is_stopped(&mut self, paused: bool) -> bool {
        let is_enforced = self.tuning.mode == Mode::Enforce;
        if is_enforced && !paused {
            return false;
        }
        self.limit = is_enforced.then_some(Restriction::Paused);
        true
    }

    pub(super) fn change(&mut self, to: Percent, reason: Reason, pressure: f64) {
        let from = self.state.openness;
        let way = if to < from { Way::Tighten } else { Way::Relax };
        self.state.settle_until = self.now + self.dead_time();
        let too_soon =
            self.state.changes.last().is_some_and(|(time, last)| *last == Way::Relax && self.now - time < QUICK_RETIGHTEN);
        if way == Way::Tighten && too_soon {
            self.state.relax_backoff = (self.state.relax_backoff * 4).min(MAX_RELAX_BACKOFF);
        }
        // The state stores whole seconds.
        self.state.changes.push((self.now / 1000 * 1000, way));
        if self.state.changes.len() > MAX_CHANGES {
            self.state.changes.remove(0);
        }
        self.state.openness = to;
        self.state.relaxable_since = None;
        self.state.watched.low_for = 0;
        self.decision = Some(Decision { from, to, reason, pressure });
    }

    fn finish(self) -> Outcome {
        let has_dipped = self.has_dipped();
        let wait = self.wait(has_dipped);
        let is_locked = self.is_locked();
        let Self { state, judged, harm, decision, recommendation, limit, tuning, .. } = self;
        let is_flapping = state.relax_backoff >= MAX_RELAX_BACKOFF;
        let limit = limit.or(is_locked.then_some(Restriction::Locked)).or(is_flapping.then_some(Restriction::Flapping));
        let phase = match (&state, state.openness) {
            (_, 100) => Phase::AsDeclared,
            (state, _) if state.fallback => Phase::FallbackHold,
            (_, 0) => Phase::AtFloor,
            (state, _) if state.pending.is_some() => Phase::Tightening,
            (state, _) if state.relaxable_since.is_some() && tuning.mode == Mode::Enforce => Phase::Relaxing,
            _ => Phase::Holding,
        };
        let wait = wait.filter(|_| limit.is_none());
        Outcome { state, decision, judged, harm, recommendation, limit, phase, has_dipped, wait }
    }

    /// Whether the next step waits for the verdict on the last one.
    pub(super) fn waits_for_verdict(&self) -> bool {
        self.state.pending.is_some() && (self.facts.disturbance.is_none() || self.is_guarding)
    }

    fn wait(&self, has_dipped: bool) -> Option<Wait> {
        let Self { state, facts, now, .. } = self;
        let episode = state.episode.filter(|_| !has_dipped && self.tuning.mode == Mode::Enforce)?;
        Some(if *now < state.settle_until && state.settle_until >= facts.not_before {
            Wait::Settling(state.settle_until)
        } else if *now < facts.not_before {
            Wait::FirstCounts(facts.not_before)
        } else if self.waits_for_verdict() {
            Wait::Verdict
        } else if episode.steps == 0 {
            Wait::FirstStep
        } else {
            Wait::NextStep
        })
    }
}
