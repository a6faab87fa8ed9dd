//! The status: what was seen, never more. Bounded whatever the size of the cluster.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Knob, Limits};

/// Most names that a list of nodes in the status holds.
pub const MOST_NODES_NAMED: usize = 5;
/// Most characters of a condition's message.
pub const MESSAGE_LENGTH: usize = 120;

/// What the operator last saw.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IdleConnectionPolicyStatus {
    /// The `metadata.generation` that this status speaks of; -1 until the operator has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Accepted, Programmed, `InEffect`; Reconciling and Stalled only while True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The three truths of every limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<StatusLimits>,
    /// How many nodes hold the declared limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
    /// Declared fields that this target has no place for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub unsupported: Vec<String>,
    /// Nodes that hold the declared limits and use them only after their next restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_restart: Option<PendingRestart>,
    /// The newest ControllerRevision with what the nodes held before the first write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_ref: Option<ObjectName>,
    /// What the operator needs to resume; not for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
}

/// The three truths of every limit.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatusLimits {
    /// What limits and preset ask for, capped at what the target can take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared: Option<Limits>,
    /// What all reachable nodes store; a field on which they differ is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programmed: Option<Limits>,
    /// What all reachable processes use, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_effect: Option<Limits>,
}

/// How many nodes hold the declared limits.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// `programmed/total`.
    pub summary: String,
    /// Nodes of the target.
    #[schemars(extend("format" = "int32"))]
    pub total: u32,
    /// Nodes that store every supported field as declared.
    #[schemars(extend("format" = "int32"))]
    pub programmed: u32,
    /// Nodes whose processes are known to use them.
    #[schemars(extend("format" = "int32"))]
    pub in_effect: u32,
    /// Nodes that did not answer, or not as their kind does.
    #[schemars(extend("format" = "int32"))]
    pub unreachable: u32,
    /// Nodes that answered and hold something else.
    #[schemars(extend("format" = "int32"))]
    pub drifted: u32,
    /// Up to five nodes that are not as declared, each with its cause.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub worst: Vec<NodeCause>,
}

/// A node that is not as declared.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct NodeCause {
    /// Its name.
    pub name: String,
    /// Why, in a sentence.
    pub cause: String,
}

/// Nodes that wait for a restart.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct PendingRestart {
    /// How many.
    #[schemars(extend("format" = "int32"))]
    pub count: u32,
    /// Up to five of them.
    #[schemars(length(max = 5))]
    pub nodes: Vec<String>,
}

/// An object in the policy's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct ObjectName {
    /// Its name.
    pub name: String,
}

/// What the operator needs to resume after a crash or a change of leader. At most 512 bytes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Control {
    /// Transitions reported so far; names the next Event, so that one told twice is one Event.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(extend("format" = "int32"))]
    pub events: u32,
    /// When the stored value of a field last changed (Unix milliseconds), for fields that need a restart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, i64>")]
    pub changed: BTreeMap<Knob, i64>,
    /// Fields that somebody else put back: `[times, first seen, left alone until]` (Unix seconds).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, Vec<i64>>")]
    pub contended: BTreeMap<Knob, [i64; 3]>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde calls it with a reference.
const fn is_zero(n: &u32) -> bool {
    *n == 0
}
