//! What adaptive control of one policy depends on besides the samples.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    disturbance::{self, Disturbance},
    openness,
    pause::Pause,
    signal::Ages,
    tuning::{DAY, Tuning, millis},
};
use crate::{
    api::{
        IdleConnectionPolicySpec, Limit, LimitValues,
        adaptive::{IdleConnections, Mode, NewConnections, Signal, Source},
        restart::{RestartFor, RestartPolicy},
    },
    decide::{Declared, TargetCapabilities, declare::floor},
};

/// The configuration of adaptive control, from the spec, the annotations and the target.
#[derive(Clone, Debug)]
pub struct Config {
    /// The parameters of the control law.
    pub tuning: Tuning,
    /// The declared limits.
    pub declared: Declared,
    /// The floor of the limits.
    pub floor: LimitValues,
    /// The percentile of the nodes that decides.
    pub percentile: u32,
    /// The gauge of each node that counts its tasks; `None` where the source is another one.
    pub metric: Option<String>,
    /// How many tasks an idle connection costs.
    pub tasks_per_connection: u32,
    /// Whether the source only says whether there are too many tasks, without a count.
    pub levels: bool,
    /// Whether nodes are restarted for every step.
    pub rolls: bool,
    /// What is paused.
    pub pause: Pause,
    /// Side effect of each change; `None` where a change closes no connections.
    pub disturbance: Option<Disturbance>,
    /// The counters that guard a step against harm.
    pub guard: Option<NewConnections>,
}

impl Config {
    /// A configuration in which nothing is paused and a change closes nothing.
    #[must_use]
    pub fn plain(declared: LimitValues, floor: LimitValues, tuning: Tuning) -> Self {
        Self {
            tuning,
            declared: Declared { settings: declared, ..Declared::default() },
            floor,
            percentile: Signal::unset().percentile,
            metric: None,
            tasks_per_connection: IdleConnections::TASKS_PER_CONNECTION,
            levels: false,
            rolls: false,
            pause: Pause::NONE,
            disturbance: None,
            guard: None,
        }
    }

    /// How old samples and processes are.
    #[must_use]
    pub fn ages(&self) -> Ages {
        let pools = || 2 * millis(openness::longest_idle(&self.declared.settings, &self.floor, 100)).min(DAY);
        let young = self.disturbance.map_or_else(pools, |disturbance| disturbance.claim_time());
        Ages { most: self.tuning.most_age(), young }
    }

    /// The configuration of a policy; `None` where it has no adaptive control. `has_pool` says whether the target has
    /// the pool of a limit.
    #[must_use]
    pub fn of(
        spec: &IdleConnectionPolicySpec,
        annotations: &BTreeMap<String, String>,
        declared: &Declared,
        traits: &TargetCapabilities,
        source: Source,
        has_pool: impl Fn(Limit) -> bool,
        now: Timestamp,
    ) -> Option<Self> {
        let adaptive = spec.adaptive.as_ref().filter(|adaptive| adaptive.mode != Mode::Disabled)?;
        let unset = Signal::unset();
        let signal = adaptive.signal.as_ref().unwrap_or(&unset);
        let floor = floor(spec, traits);
        let restart = spec.restart.clone().unwrap_or_default();
        Some(Self {
            tuning: Tuning::of(Some(adaptive)),
            percentile: signal.percentile,
            guard: signal.new_connections.clone().filter(|_| source == Source::Nodes),
            metric: (source == Source::Nodes).then(|| signal.metric.clone()),
            tasks_per_connection: tasks_per_connection(signal),
            levels: source == Source::StateFlags,
            rolls: restart.policy == RestartPolicy::Rolling && restart.for_ == RestartFor::Any,
            pause: Pause::of(spec.suspend, annotations, now),
            disturbance: disturbance::disturbance(&declared.settings, &floor, traits, has_pool),
            declared: declared.clone(),
            floor,
        })
    }
}

/// How many tasks an idle connection costs, at least 1.
#[must_use]
pub fn tasks_per_connection(signal: &Signal) -> u32 {
    let declared = signal.idle_connections.as_ref().and_then(|idle| idle.tasks_per_connection);
    declared.unwrap_or(IdleConnections::TASKS_PER_CONNECTION).max(1)
}
