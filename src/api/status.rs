//! Status: only what the operator has observed. Its size is bounded, whatever the size of the cluster.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::{
    JsonSchema, Schema, SchemaGenerator,
    transform::{RecursiveTransform, Transform as _},
};
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    Limit, Limits,
    adaptive_state::{AdaptiveState, is_default},
};

/// Maximum number of names in a list of nodes in the status.
pub const MAX_NODES_NAMED: usize = 5;
/// Maximum length of a name in the status, such as the name of a pod, in bytes.
pub const NAME_LENGTH: usize = 253;
/// Maximum length of the message of a condition, in characters.
pub const MESSAGE_LENGTH: usize = 1024;

/// Maximum number of hashes in each list of `status.claims`. It is the maximum of `spec.target.caddy.endpoints`.
pub const MAX_CLAIMS: usize = 64;

/// Last observed state of the policy and its nodes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IdleConnectionPolicyStatus {
    /// Value of `metadata.generation` to which this status belongs; -1 until the operator has observed the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions of the policy: Ready, Accepted, Programmed and `InEffect`; with `spec.adaptive` also `MetricsAvailable`,
    /// `HighTaskCount`, Tightened, `TighteningEffective` and `TighteningLimited`. Reconciling and Stalled are present only while
    /// they are True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Declared, desired, programmed, in-effect and measured value of each limit, for all nodes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<StatusLimits>,
    /// Openness of the limits that have a floor, in percent: 100 = as declared, 0 = at the floor. Absent without `spec.adaptive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub openness_percent: Option<u32>,
    /// Utilization: the task count in percent of its threshold, as of the last relevant change. The metric
    /// `idleconn_utilization_ratio` has the current value. Absent without `spec.adaptive`, and with source `StateFlags`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub utilization_percent: Option<u32>,
    /// Task count, as of the last relevant change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<Tasks>,
    /// Number of nodes in each state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
    /// Paths of declared limits that the target does not have, or whose value it cannot represent. The operator does not manage
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub unsupported: Vec<String>,
    /// Update that is under way. Present while nodes wait for a later batch (see `spec.updateStrategy`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
    /// Nodes that store the desired limits and use them only after their next restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_restart: Option<PendingRestart>,
    /// Change that adaptive control would make if it were allowed to. Present with mode Recommend or during a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<Recommendation>,
    /// Last decisions of adaptive control, newest first. At most 6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6))]
    pub history: Vec<Decision>,
    /// Newest ControllerRevision with the values of the nodes from before the first write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_ref: Option<ObjectName>,
    /// What the policy claims, for the replicas that act for other namespaces. Present only if the operator has several shards.
    /// Do not edit it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<PublishedClaims>,
    /// Internal state with which the operator continues after a restart or a change of leader. Do not edit it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
}

/// Hashes of the identities of the target that a policy of another namespace can claim, too.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishedClaims {
    /// Hashes of the addresses of the target, 16 hexadecimal digits each. The oldest policy that claims an address governs it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_CLAIMS), inner(length(max = 16)))]
    pub targets: Vec<String>,
    /// Hashes of the identities that the target itself reports, such as the UUID of an AIStore cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_CLAIMS), inner(length(max = 16)))]
    pub reported: Vec<String>,
    /// Whether the target has more than 64 addresses. Then `targets` has only those that another policy claims, too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub partial: bool,
}

/// Declared, desired, programmed, in-effect and measured value of each limit, for all nodes together.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatusLimits {
    /// Values from `spec.limits` and `spec.preset`, capped at the maximum of the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reported")]
    pub declared: Option<Limits>,
    /// Declared values at the current openness. Present only if they differ from the declared values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reported")]
    pub desired: Option<Limits>,
    /// Values that all reachable nodes store. A limit is absent if the nodes differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reported")]
    pub programmed: Option<Limits>,
    /// Values that the processes of all reachable nodes use. A limit is absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reported")]
    pub in_effect: Option<Limits>,
    /// Values that `spec.verify` measured on the servers of all nodes. A limit is absent if the nodes differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reported")]
    pub measured: Option<Limits>,
}

/// Schema of reported limits: the fields of the spec without its ranges, because a node may store any value and the status must
/// be able to show it.
fn reported(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = <Option<Limits>>::json_schema(generator);
    let mut widen = RecursiveTransform(|schema: &mut Schema| {
        for bound in ["minimum", "maximum", "pattern", "x-kubernetes-validations"] {
            schema.remove(bound);
        }
        match schema.get("format").and_then(|format| format.as_str()) {
            Some("int32") => drop(schema.insert("format".into(), "int64".into())),
            // The API server refuses a duration that Go cannot represent.
            Some("duration") => drop(schema.remove("format")),
            _ => {}
        }
    });
    widen.transform(&mut schema);
    schema
}

/// Number of nodes in each state.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// Text `programmed/total`, for `kubectl get`.
    pub summary: String,
    /// Number of nodes of the target.
    #[schemars(extend("format" = "int32"))]
    pub total: u32,
    /// Number of nodes that store every supported limit as desired.
    #[schemars(extend("format" = "int32"))]
    pub programmed: u32,
    /// Number of nodes whose processes are known to use the desired limits.
    #[schemars(extend("format" = "int32"))]
    pub in_effect: u32,
    /// Number of nodes that did not answer, or whose answer was not one of this kind of server.
    #[schemars(extend("format" = "int32"))]
    pub unreachable: u32,
    /// Number of nodes that answered and store other values.
    #[schemars(extend("format" = "int32"))]
    pub drifted: u32,
    /// Number of nodes at or above their task threshold, as of the last relevant change. Absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub over_threshold: Option<u32>,
    /// Nodes that do not have the desired limits, with the cause. At most 5.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub worst: Vec<NodeCause>,
}

/// Update that is under way.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// Value of `metadata.generation` for which the nodes are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub generation: Option<i64>,
    /// Number of nodes that store the desired limits.
    #[schemars(extend("format" = "int32"))]
    pub updated_nodes: u32,
    /// Number of nodes of the target.
    #[schemars(extend("format" = "int32"))]
    pub total_nodes: u32,
    /// Name of a node that has not answered since it was written. The update continues when this node answers, or with a new
    /// version of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub blocked_by: Option<String>,
}

/// Node that does not have the desired limits.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct NodeCause {
    /// Name of the node.
    pub name: String,
    /// Cause, as a sentence.
    pub cause: String,
}

/// Task count of the nodes. The counts are absent if the source has none (`StateFlags`).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Tasks {
    /// Task count of the node with the most tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub max: Option<i64>,
    /// Task count of the node at `signal.percentile`, which decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub percentile: Option<i64>,
    /// Threshold of the node that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub threshold: Option<i64>,
    /// Name of the node with the highest utilization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Idle connections of all nodes; only with `signal.idleConnections`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub idle_connections: Option<i64>,
    /// New connections per second of the nodes that report them; only with `signal.newConnections`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub new_connections_per_second: Option<i64>,
    /// Time at which the tasks were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// Change that adaptive control would make if it were allowed to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Recommendation {
    /// Openness that adaptive control would choose, in percent: 100 = as declared, 0 = at the floor.
    #[schemars(extend("format" = "int32"))]
    pub openness_percent: u32,
    /// Limits at that openness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reported")]
    pub limits: Option<Limits>,
    /// Reason of the decision.
    pub reason: String,
}

/// One change of the limits by adaptive control.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Time of the decision.
    pub time: Time,
    /// Openness before the change, in percent: 100 = as declared, 0 = at the floor.
    #[schemars(extend("format" = "int32"))]
    pub from_percent: u32,
    /// Openness after the change, in percent.
    #[schemars(extend("format" = "int32"))]
    pub to_percent: u32,
    /// Reason of the decision.
    pub reason: String,
    /// Utilization at the time of the decision, in percent of the threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub utilization_before: Option<u32>,
    /// Utilization at the time of the verdict, in percent of the threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub utilization_after: Option<u32>,
    /// Task count of the node that decides, at the time of the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub tasks_before: Option<i64>,
    /// Task count of the node that decides, at the time of the verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub tasks_after: Option<i64>,
    /// Verdict on a tightening: Effective, Ineffective, Inconclusive or Harmful. Absent until the verdict, and for a relaxing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
}

/// Nodes that use their limits only after a restart.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct PendingRestart {
    /// Number of nodes.
    #[schemars(extend("format" = "int32"))]
    pub count: u32,
    /// Names of the nodes. At most 5.
    #[schemars(length(max = 5))]
    pub nodes: Vec<String>,
}

/// Object in the namespace of the policy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct ObjectName {
    /// Name of the object.
    pub name: String,
}

/// Internal state with which the operator continues after a restart or a change of leader. At most 6 KiB.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Control {
    /// Number of transitions reported so far. It names the next Event, so that a repeated report gives the same Event.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("format" = "int32"))]
    pub events: u32,
    /// Time of the last change of the stored value, in Unix milliseconds, for each limit that needs a restart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, i64>")]
    pub changed: BTreeMap<Limit, i64>,
    /// Processes that were observed to use the stored values of limits that need a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Confirmed>,
    /// Limits that another client keeps changing: `[10 x the timeouts so far + corrections since, first seen, left alone until]`,
    /// the last two in Unix seconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, Vec<i64>>")]
    pub contended: BTreeMap<Limit, [i64; 3]>,
    /// Nodes that are restarting, and the times at which restarts began.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart: RestartControl,
    /// Generation for which the operator has given advice; it gives advice once for each generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advised: Option<i64>,
    /// State of adaptive control.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "understood")]
    pub adaptive: Option<Box<AdaptiveState>>,
}

/// Processes that were observed to use certain values.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct Confirmed {
    /// Hash of the values.
    pub values: String,
    /// Hash of the names of all nodes, or one hash of each name for up to 32 nodes.
    pub nodes: String,
    /// Time of the last configuration change before that, as the nodes report it, in Unix milliseconds.
    pub changed: i64,
}

/// Restarts that have begun, so that the operator completes them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct RestartControl {
    /// Time of the change for which nodes were last restarted, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "is_default")]
    pub change: i64,
    /// Times at which restarts for a change began in the last 24 hours, in Unix seconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begun: Vec<i64>,
    /// Nodes that are restarting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Restarting>,
}

/// Node that is restarting.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct Restarting {
    /// Name of the node.
    pub node: String,
    /// Name of the pod of the node.
    pub pod: String,
    /// UID of the pod to evict.
    pub uid: String,
    /// Start of the restart, in Unix seconds.
    pub since: i64,
}

/// Reads a state; `None` where another version wrote one that this version does not understand. It must not make the rest of
/// the status unreadable.
fn understood<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<AdaptiveState>>, D::Error> {
    Ok(serde_json::from_value(serde_json::Value::deserialize(from)?).ok())
}
