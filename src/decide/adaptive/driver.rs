//! Adaptive control of one policy, round after round. The controller and the simulation hold the same driver.
//!
//! A round of samples is a [`AdaptiveDriver::tick`], which says whether a pass is due. A pass decides with
//! [`AdaptiveDriver::evaluate`], writes, reports, and then takes the outcome over with [`AdaptiveDriver::commit`]. A
//! pass that fails before its report commits nothing, so the next one decides the same again.

use std::collections::BTreeMap;

use super::{
    attribution::{self, Attribution, MostPooled},
    config::Config,
    pause::By,
    report::SeenLoop,
    signal::{Reading, Signal},
    standing::NodeProgress,
    state::{RateWindow, State},
    step::{self, Digest, Facts, Outcome},
    tighten,
};
use crate::{
    api::{IdleConnectionPolicyStatus, adaptive::NewConnections, wording::percent},
    decide::{Lives, TargetCapabilities, Unit, UnitState, originals::Saved},
};

/// How long a new process observes at most before its first step (milliseconds).
const MAX_FIRST_OBSERVATION: i64 = 120_000;
/// How long the utilization must differ from the status before a pass updates it (milliseconds).
const STATUS_REFRESH_AFTER: i64 = 60_000;
/// Percentage points by which the utilization must differ from the status.
const STATUS_REFRESH_POINTS: u32 = 10;

/// Adaptive control of one policy.
#[derive(Clone, Debug)]
pub struct AdaptiveDriver {
    config: Config,
    state: State,
    /// The nodes at the end of the last pass.
    standing: NodeProgress,
    /// Whether nodes wait for a later batch of the update.
    updating: bool,
    /// The highest number of tasks per node that pooled connections can be; `None` where it is not known.
    most_pooled: Option<MostPooled>,
    /// No step before this time, because the process has just begun to count (Unix milliseconds).
    not_before: i64,
    /// What the last report depended on; `None` before the first one.
    digest: Option<Digest>,
    /// The utilization in the status.
    told: Option<u32>,
    /// Since when the utilization has differed from the status.
    moved_since: Option<i64>,
    /// Whether it has differed for [`STATUS_REFRESH_AFTER`].
    moved: bool,
}

/// The result of a round of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Whether a pass is due.
    pub is_pass_due: bool,
    /// When a step can be due at the earliest, if that is before the next round (milliseconds from now).
    pub ask_in: Option<i64>,
}

impl AdaptiveDriver {
    /// A driver that continues from a state. `told`: the utilization in the status.
    #[must_use]
    pub fn new(config: Config, state: State, told: Option<u32>, now: i64) -> Self {
        let not_before = now + config.tuning.tighten_after.min(MAX_FIRST_OBSERVATION);
        Self {
            config,
            state,
            standing: NodeProgress::default(),
            updating: false,
            most_pooled: None,
            not_before,
            digest: None,
            told,
            moved_since: None,
            moved: false,
        }
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The state after the last round or pass.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Takes over a new version of the policy.
    pub fn configure(&mut self, config: Config) {
        if config.tuning.mode != self.config.tuning.mode {
            self.digest = None;
        }
        let counters = |config: &Config| config.guard.clone().map(|guard| NewConnections { max_per_second: 0, ..guard });
        if counters(&config) != counters(&self.config) {
            // Other counters do not compare.
            (self.state.guarded, self.state.watched.connections) = (None, RateWindow::default());
        }
        self.config = config;
    }

    /// Records the maximum of pooled connections if all units have answered: it bounds the effect of tightening.
    pub fn bound(
        &mut self,
        traits: &TargetCapabilities,
        saved: &BTreeMap<String, Saved>,
        answered: &[(Unit, UnitState)],
        all: bool,
    ) {
        let Config { declared, floor, .. } = &self.config;
        let most = || attribution::most_pooled(&declared.settings, floor, traits, saved, answered);
        self.most_pooled = all.then(most).flatten();
    }

    /// The pooled connections' share of the tasks, as far as it is known.
    fn attribution(&self, signal: &Signal) -> Attribution {
        Attribution::new(self.most_pooled.as_ref(), signal.reading())
    }

    /// The number of idle connections on all nodes; `None` if a node does not report it.
    #[must_use]
    pub fn idle_connections(&self, signal: &Signal) -> Option<f64> {
        Some(signal.reading()?.idle_tasks? / f64::from(self.config.tasks_per_connection))
    }

    /// What holds besides the signal.
    #[must_use]
    pub fn facts(&self, signal: &Signal, standing: NodeProgress) -> Facts<'_> {
        let Config { declared, floor, levels, rolls, pause, disturbance, guard, .. } = &self.config;
        Facts {
            declared: &declared.settings,
            floor,
            no_tightening: pause.stops_tightening(),
            no_relaxing: pause.stops_relaxing(),
            in_effect: standing.in_effect,
            updating: self.updating,
            needs_restart: standing.needs_restart,
            rolls: *rolls && pause.all != Some(By::Suspend),
            share: self.attribution(signal).share,
            levels: *levels,
            disturbance: *disturbance,
            guard: guard.as_ref().map(|guard| guard.max_per_second.into()),
            not_before: self.not_before,
        }
    }

    /// Evaluates a signal for a pass. Nothing is taken over.
    #[must_use]
    pub fn evaluate(&self, signal: &Signal, standing: NodeProgress, now: i64) -> Outcome {
        step::step(&self.config.tuning, &self.facts(signal, standing), &self.state, signal, now)
    }

    /// Evaluates a round of samples, and takes the outcome over unless a pass is due, which then decides.
    pub fn tick(&mut self, signal: &Signal, now: i64) -> Tick {
        let outcome = self.evaluate(signal, self.standing, now);
        let news = outcome.decision.is_some() || outcome.judged.is_some() || Some(outcome.digest(signal)) != self.digest;
        // While samples are missing, the window does not advance, so sampling earlier would not help.
        let end = signal.reading().and_then(|_| tighten::next_end(&self.config.tuning, &outcome.state, now));
        self.moved = self.moved || self.has_moved(signal, now);
        let is_pass_due = news || self.moved;
        if !is_pass_due {
            self.state = outcome.state;
        }
        Tick { is_pass_due, ask_in: end.filter(|wait| *wait < self.config.tuning.interval) }
    }

    fn has_moved(&mut self, signal: &Signal, now: i64) -> bool {
        let is_far = |reading: &Reading| self.told.is_none_or(|told| told.abs_diff(percent(reading.up)) >= STATUS_REFRESH_POINTS);
        // With alerts there is no utilization that could change.
        if self.config.levels || !signal.reading().is_some_and(is_far) {
            self.moved_since = None;
            return false;
        }
        now - *self.moved_since.get_or_insert(now) >= STATUS_REFRESH_AFTER
    }

    /// The input of the report of a pass.
    #[must_use]
    pub fn seen<'a>(&'a self, signal: &'a Signal) -> SeenLoop<'a> {
        SeenLoop {
            tuning: &self.config.tuning,
            floor: &self.config.floor,
            signal,
            metric: self.config.metric.as_deref(),
            pause: &self.config.pause,
            attribution: self.attribution(signal),
            idle_connections: self.idle_connections(signal),
            closes: self.config.disturbance.is_some(),
            reserves: self.config.guard.is_some(),
            levels: self.config.levels,
            moved: self.moved,
        }
    }

    /// Records whether nodes wait for a later batch of the update. A step is judged, and followed by a relaxing, only after its
    /// last write.
    pub const fn updating(&mut self, updating: bool) {
        self.updating = updating;
    }

    /// Takes over the outcome of a pass whose report was written, with the state of the nodes at its end.
    pub fn commit<'a>(
        &mut self,
        outcome: &Outcome,
        signal: &Signal,
        status: &IdleConnectionPolicyStatus,
        traits: &TargetCapabilities,
        lives: &Lives,
        units: impl IntoIterator<Item = (&'a Unit, &'a UnitState)>,
    ) {
        let changed = status.control.as_ref().map(|control| control.changed.clone()).unwrap_or_default();
        self.digest = Some(outcome.digest(signal));
        self.state = outcome.state.clone();
        self.told = status.utilization_percent;
        self.moved = false;
        let Config { declared, floor, .. } = &self.config;
        self.standing = NodeProgress::of(declared, floor, self.state.openness, traits, lives, &changed, units);
    }
}
