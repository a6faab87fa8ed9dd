//! Restarts, for limits that a process reads only when it starts.
//!
//! - [`eviction`]: node by node, by evicting pods.
//! - [`rollout`]: all pods of a workload, by its own rules.

pub mod eviction;
pub mod rollout;

use crate::api::{
    restart::Restart,
    status::{RestartControl, Restarting},
};

const DAY: i64 = 24 * 3600;

/// An action. Repeating it does no harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Take a node out of service, so that its cluster does not rebuild the node's data.
    Drain(String),
    /// Evict exactly this pod.
    Evict {
        /// The node.
        node: String,
        /// The pod.
        pod: String,
        /// The pod's UID.
        uid: String,
    },
    /// Put a node back into service.
    Undrain(String),
    /// Have a workload replace its pods, by an annotation of their template.
    Roll {
        /// Deployment, StatefulSet or DaemonSet.
        kind: String,
        /// The workload's name.
        name: String,
        /// The hash that the pods are started for.
        hash: String,
    },
}

/// What to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartReport {
    /// A node is being restarted.
    Rolling(String),
    /// A node has not come back in time. No other node is restarted before it has.
    Stalled(String),
    /// As many nodes as allowed are already out of service; this is one of them.
    Unavailable(String),
    /// `restart.maxPerDay` is used up.
    Budget,
    /// The pod of a node is not known.
    NoPod(String),
    /// The workload of the selected pods is not known.
    NoWorkload,
}

/// The result of a decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestartPlan {
    /// What to record before any action.
    pub control: RestartControl,
    /// The actions to take after that.
    pub acts: Vec<Act>,
    /// Nodes that came back and use the new limits.
    pub finished: Vec<String>,
    /// What to report.
    pub said: Option<RestartReport>,
    /// Whether the first restart waits until the clock is past the change.
    pub soon: bool,
}

impl RestartPlan {
    /// No action yet. The budget counts the last 24 hours.
    pub(super) fn new(control: &RestartControl, now: i64) -> Self {
        let mut control = control.clone();
        control.begun.retain(|begun| now.saturating_sub(*begun) < DAY);
        Self { control, ..Self::default() }
    }

    /// Whether something is under way that no watch reports, so that another look is due soon.
    #[must_use]
    pub fn is_going_on(&self) -> bool {
        self.soon || !self.control.nodes.is_empty()
    }
}

/// Whether a restart is still within `restart.timeout`.
pub(super) fn in_time(spec: &Restart, current: &Restarting, now: i64) -> bool {
    let timeout = spec.timeout.get().map_or(600, |timeout| i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX));
    now.saturating_sub(current.since) <= timeout
}
