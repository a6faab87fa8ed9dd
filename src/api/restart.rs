//! `spec.restart`: restarts of nodes for limits that their processes read only when they start.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::GoDuration;

/// Restarts of nodes whose processes read a limit only when they start. Absent: the same as `policy: Never`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// Policy of restarts. Never only reports the nodes that wait for a restart, in `status.pendingRestart`. Rolling restarts
    /// them one after the other by evicting their pods.
    #[serde(default)]
    pub policy: RestartPolicy,
    /// Changes for which nodes are restarted. Declared: only a change of the declared limits. Any: also every step of
    /// `spec.adaptive`.
    #[serde(default, rename = "for")]
    pub for_: RestartFor,
    /// Maximum number of nodes out of service at the same time, 1 to 3. Nodes that are out of service for another reason count
    /// too.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 3), extend("format" = "int32"))]
    pub max_unavailable: u32,
    /// Maximum number of changes in any 24 hours for which the nodes are restarted, 1 to 24. Each node restarts at most once for
    /// one change.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 24), extend("format" = "int32"))]
    pub max_per_day: u32,
    /// Time that a restarted node may take until it is back and uses the new limits, 1s to 24h. The operator restarts no other
    /// node before that.
    #[serde(default = "GoDuration::seconds::<600>")]
    #[x_kube(validation = Rule::new("self >= duration('1s') && self <= duration('24h')").message("restart.timeout must be between 1s and 24h"))]
    pub timeout: GoDuration,
}

const fn one() -> u32 {
    1
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::default(),
            for_: RestartFor::default(),
            max_unavailable: one(),
            max_per_day: one(),
            timeout: GoDuration::seconds::<600>(),
        }
    }
}

/// Policy of restarts.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RestartPolicy {
    #[default]
    Never,
    Rolling,
}

/// Changes for which nodes are restarted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RestartFor {
    #[default]
    Declared,
    Any,
}
