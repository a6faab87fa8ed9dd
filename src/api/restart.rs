//! `spec.restart`: whether nodes are restarted for settings that they read only when they start.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::GoDuration;

/// Whether and how nodes are restarted for limits that their processes read only when they start. Absent is the same as policy: Never.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// Never only says which nodes wait for a restart; Rolling restarts them one after the other, by evicting their pods.
    #[serde(default)]
    pub policy: RestartPolicy,
    /// What is worth a restart: Declared, what is declared here; Any, every step of spec.adaptive as well.
    #[serde(default, rename = "for")]
    pub for_: RestartFor,
    /// How many nodes may be out of service at the same time, those included that are so for another reason.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 3), extend("format" = "int32"))]
    pub max_unavailable: u32,
    /// How many times in any 24 hours the nodes may be restarted for a change; each node restarts at most once for one change.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 24), extend("format" = "int32"))]
    pub max_per_day: u32,
    /// How long a node may take until it is back and uses the new limits. No other is restarted before it is.
    #[serde(default = "ten_minutes")]
    #[x_kube(validation = Rule::new("self >= duration('1s') && self <= duration('24h')").message("restart.timeout must be between 1s and 24h"))]
    pub timeout: GoDuration,
}

const fn one() -> u32 {
    1
}

fn ten_minutes() -> GoDuration {
    std::time::Duration::from_secs(600).into()
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::default(),
            for_: RestartFor::default(),
            max_unavailable: one(),
            max_per_day: one(),
            timeout: ten_minutes(),
        }
    }
}

/// Whether nodes are restarted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RestartPolicy {
    #[default]
    Never,
    Rolling,
}

/// What nodes are restarted for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RestartFor {
    #[default]
    Declared,
    Any,
}
