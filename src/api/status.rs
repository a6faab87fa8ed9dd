//! The status: what was seen, never more. Bounded whatever the size of the cluster.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::{
    JsonSchema, Schema, SchemaGenerator,
    transform::{RecursiveTransform, Transform as _},
};
use serde::{Deserialize, Serialize};

use super::{Knob, Limits};

/// Most names that a list of nodes in the status holds.
pub const MOST_NODES_NAMED: usize = 5;
/// Most bytes of a name that the status repeats, as of a pod's.
pub const NAME_LENGTH: usize = 253;
/// Most characters of a condition's message.
pub const MESSAGE_LENGTH: usize = 1024;

/// What the operator last saw.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IdleConnectionPolicyStatus {
    /// The `metadata.generation` that this status speaks of; -1 until the operator has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Accepted, Programmed, `InEffect`; with `spec.adaptive` also `MetricsAvailable`, `HighTaskCount`, Tightened,
    /// `TighteningEffective` and Limited; Reconciling and Stalled only while True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The three truths of every limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<StatusLimits>,
    /// How far open the limits are that have a floor: 100 is as declared, 0 is the floor. Absent without `spec.adaptive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub openness_percent: Option<u32>,
    /// The task count in percent of its threshold, when it last mattered; live figures are in the metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub pressure_percent: Option<u32>,
    /// The task count, when it last mattered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<Tasks>,
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
    /// What the operator would do, where it may not: mode Recommend, or a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<Recommendation>,
    /// The last decisions, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6))]
    pub history: Vec<Decision>,
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
    #[schemars(schema_with = "reported")]
    pub declared: Option<Limits>,
    /// What is declared at the present openness; only where that is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reported")]
    pub desired: Option<Limits>,
    /// What all reachable nodes store; a field on which they differ is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reported")]
    pub programmed: Option<Limits>,
    /// What all reachable processes use, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reported")]
    pub in_effect: Option<Limits>,
    /// What the servers of all nodes were measured to do, with `spec.verify`; a field on which they differ is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reported")]
    pub measured: Option<Limits>,
}

/// Limits as they are reported: the same fields as in the spec, without its ranges. Nodes hold whatever they were given, and the status
/// has to be able to say so.
fn reported(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = <Option<Limits>>::json_schema(generator);
    let mut widen = RecursiveTransform(|schema: &mut Schema| {
        for bound in ["minimum", "maximum", "pattern", "x-kubernetes-validations"] {
            schema.remove(bound);
        }
        match schema.get("format").and_then(|format| format.as_str()) {
            Some("int32") => drop(schema.insert("format".into(), "int64".into())),
            // The API server refuses one that Go cannot hold.
            Some("duration") => drop(schema.remove("format")),
            _ => {}
        }
    });
    widen.transform(&mut schema);
    schema
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
    /// Nodes with more tasks than their threshold, when that last mattered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub over_threshold: Option<u32>,
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

/// The task count of the nodes. Where the source has no counts (`StateFlags`), the counts are absent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Tasks {
    /// Of the fullest node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub max: Option<i64>,
    /// Of the node that counts (`signal.percentile`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub percentile: Option<i64>,
    /// Its threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub threshold: Option<i64>,
    /// The node with the highest share of its threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// When they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// What the operator would do.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Recommendation {
    /// The openness it would choose.
    #[schemars(extend("format" = "int32"))]
    pub openness_percent: u32,
    /// The limits at that openness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reported")]
    pub limits: Option<Limits>,
    /// Why.
    pub reason: String,
}

/// One step of the limits, by the operator's own decision.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// When.
    pub time: Time,
    /// Openness before.
    #[schemars(extend("format" = "int32"))]
    pub from_percent: u32,
    /// Openness after.
    #[schemars(extend("format" = "int32"))]
    pub to_percent: u32,
    /// Why.
    pub reason: String,
    /// Pressure (percent of the threshold) when it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub pressure_before: Option<u32>,
    /// Pressure (percent of the threshold) when it was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub pressure_after: Option<u32>,
    /// Tasks of the node that counts when it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub tasks_before: Option<i64>,
    /// The same when it was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub tasks_after: Option<i64>,
    /// Whether it helped: Effective, Ineffective, Inconclusive; absent until it has been judged, and on relaxing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
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

/// What the operator needs to resume after a crash or a change of leader. At most 1,024 bytes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Control {
    /// Transitions reported so far; names the next Event, so that one told twice is one Event.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("format" = "int32"))]
    pub events: u32,
    /// When the stored value of a field last changed (Unix milliseconds), for fields that need a restart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, i64>")]
    pub changed: BTreeMap<Knob, i64>,
    /// Which processes were seen to use what their nodes store, of fields that need a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Confirmed>,
    /// Limits that another client keeps changing: `[10 x the time-outs so far + corrections since, first seen, left alone until]`, the last
    /// two in Unix seconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, Vec<i64>>")]
    pub contended: BTreeMap<Knob, [i64; 3]>,
    /// Nodes that are being restarted, and when restarts began.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart: RestartControl,
    /// The generation for which advice was given: it is given once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advised: Option<i64>,
    /// The state of adaptive control, as a text that only the operator reads; `kubectl idleconn explain` says what it means.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "loop")]
    pub adaptation: Option<String>,
}

/// Which processes were seen to use which values.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct Confirmed {
    /// A hash of the values.
    pub values: String,
    /// The nodes: one hash of all their names, or a hash of each name for up to 32 of them.
    pub nodes: String,
    /// When the nodes' configuration was last changed before that, by their own word (Unix milliseconds).
    pub changed: i64,
}

/// What has been begun with restarts, so that it is seen through.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct RestartControl {
    /// The change that nodes were last restarted for (Unix milliseconds).
    #[serde(default, skip_serializing_if = "is_default")]
    pub change: i64,
    /// When restarting for a change began, in the last 24 hours (Unix seconds).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begun: Vec<i64>,
    /// The nodes that are being restarted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Restarting>,
}

/// A node that is being restarted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct Restarting {
    /// Its name.
    pub node: String,
    /// The name of its pod.
    pub pod: String,
    /// The UID of the pod that is to go.
    pub uid: String,
    /// Since when (Unix seconds).
    pub since: i64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
