//! The policies, from the API server and from the last samples.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, Uri},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    answer::{ApiResponse, Error},
    gate::Verb,
};
use crate::{
    api::{
        IdleConnectionPolicy, Limits, StoredPolicy,
        flush::Closes,
        status::{Decision, Nodes, PendingRestart, Recommendation, StatusLimits, Tasks},
        wording::percent,
    },
    clock,
    controller::{
        Context, PolicyRef,
        actors::Acting,
        live::{Live, Point},
    },
    decide::{
        self,
        adaptive::signal::NodeSample,
        flushes::Flushes,
        report::node_status::{Stage, Truths},
    },
    targets,
};

/// Age in milliseconds from which the status's figures are shown instead of the live ones.
const FRESH: i64 = 120_000;

/// Task count, threshold and utilization. A figure that could not be counted is absent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Task count; absent if it could not be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u64>,
    /// Threshold of the task count; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u64>,
    /// Task count as a percentage of the threshold; absent if one of them is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization_percent: Option<u32>,
}

impl Load {
    fn of(tasks: Option<f64>, threshold: Option<f64>, pressure: Option<f64>) -> Self {
        Self { tasks: tasks.map(whole), threshold: threshold.map(whole), utilization_percent: pressure.map(percent) }
    }
}

impl From<&Point> for Load {
    fn from(point: &Point) -> Self {
        Self::of(point.tasks, point.threshold, point.pressure)
    }
}

/// A short view of a policy.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The policy's namespace.
    pub namespace: String,
    /// The policy's name.
    pub name: String,
    /// Type of the target, such as `Caddy`.
    pub target: String,
    /// Mode of adaptive control: Enforce, Recommend or Disabled.
    pub mode: String,
    /// Whether the policy is suspended.
    pub suspended: bool,
    /// Whether the policy is being deleted.
    pub deleting: bool,
    /// The policy's conditions.
    pub conditions: Vec<Condition>,
    /// Load of the node at the percentile that decides (`signal.percentile`).
    #[serde(flatten)]
    pub load: Load,
    /// Openness of the limits: 100 is as declared, 0 is at the floor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub openness_percent: Option<u32>,
    /// When these figures were sampled. It is absent if they come from the status, which is written less often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled: Option<Time>,
    /// Number of nodes that have the declared limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
    /// The last decision of adaptive control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_decision: Option<Decision>,
    /// Connections that a change of a limit closes; empty if changes close none.
    pub flushes: Vec<FlushingLimits>,
    /// Idle connections of all nodes at `sampled`: about so many does a change of all limits close. Only with `signal.idleConnections`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_connections: Option<u64>,
    /// New connections per second of the nodes that report them, as of the last write of the status. Only with
    /// `signal.newConnections`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_connections_per_second: Option<u64>,
    /// Whether the responding replica acts for the policy; another one has no live figures of it.
    pub acting: bool,
}

/// Summaries of policies.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[schemars(rename = "Policies", inline)]
pub struct Summaries(pub Vec<Summary>);

/// Limits whose change closes idle connections, for any new value.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FlushingLimits {
    /// Paths of the limits, such as `server.idleTimeout`.
    pub limits: Vec<String>,
    /// Idle connections that a change closes.
    pub closes: Closes,
    /// Seconds after a change during which the server still closes connections.
    pub settle_seconds: u64,
    /// The same facts as a sentence.
    pub message: String,
}

impl From<Flushes> for FlushingLimits {
    fn from(flushes: Flushes) -> Self {
        Self {
            message: flushes.sentence(),
            limits: flushes.limits.iter().map(ToString::to_string).collect(),
            closes: flushes.flush.closes,
            settle_seconds: flushes.flush.settle.as_secs(),
        }
    }
}

/// A condition of the policy's status.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Condition {
    /// The condition's type, such as `Ready`.
    #[serde(rename = "type")]
    pub type_: String,
    /// Status of the condition: True, False or Unknown.
    pub status: String,
    /// The reason, in one word.
    pub reason: String,
    /// The explanation, as a sentence.
    pub message: String,
    /// When the status last changed.
    pub since: Time,
}

/// The full view of a policy.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// The short view.
    #[serde(flatten)]
    pub summary: Summary,
    /// The declared, programmed and effective values of each limit, over all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<StatusLimits>,
    /// Declared limits that the target does not support.
    pub unsupported: Vec<String>,
    /// Nodes that need a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_restart: Option<PendingRestart>,
    /// The step that adaptive control would take if it were allowed to write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<Recommendation>,
    /// Last decisions of adaptive control, newest first.
    pub history: Vec<Decision>,
    /// The last samples, oldest first; empty in a standby replica.
    pub trend: Vec<Moment>,
}

/// The state of a policy after one round of samples.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[schemars(rename = "TrendPoint")]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// Time of the samples.
    pub time: Time,
    /// Load of the node at the percentile that decides (`signal.percentile`).
    #[serde(flatten)]
    pub load: Load,
    /// Openness of the limits: 100 is as declared, 0 is at the floor.
    pub openness_percent: u32,
}

/// Nodes of a policy, as observed by the last reconciliation.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct NodeList {
    /// Time of the last pass.
    pub seen: Time,
    /// All nodes.
    pub nodes: Vec<Node>,
}

/// Node of a policy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// The unit to which the node belongs; its nodes are written together.
    pub unit: String,
    /// How far the limits have reached the node.
    pub stage: Stage,
    /// The node's last error, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The node's last sample.
    #[serde(flatten)]
    pub load: Load,
    /// Why the node has no sample, if it is sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<String>,
    /// Values that the node should have.
    pub desired: Limits,
    /// Values that the node stores.
    pub programmed: Limits,
    /// Values that the node's process is known to use.
    pub in_effect: Limits,
    /// Values that were measured from outside; only with `spec.verify`.
    #[serde(default)]
    pub measured: Limits,
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A task count is neither negative nor beyond 2^53.
fn whole(value: f64) -> u64 {
    value.round().max(0.0) as u64
}

fn time(millis: i64) -> Time {
    Time(Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The short view of a policy. `point` is its last sample, if this replica has one; `acting` says whether it acts for it.
#[must_use]
pub fn summary(policy: &IdleConnectionPolicy, point: Option<Point>, acting: bool, now: Timestamp) -> Summary {
    let status = policy.status.clone().unwrap_or_default();
    let point = point.filter(|point| now.as_millisecond() - point.time < FRESH);
    let traits = targets::traits(&policy.spec.target);
    let flushes = decide::flushes::flushes(&decide::declare(&policy.spec, &traits), &traits);
    let (load, openness, idle_connections) = if let Some(point) = &point {
        (Load::from(point), Some(u32::from(point.openness)), point.idle_connections.map(whole))
    } else {
        let count = |of: fn(&Tasks) -> Option<i64>| u64::try_from(of(status.tasks.as_ref()?)?).ok();
        let (tasks, threshold) = (count(|tasks| tasks.percentile), count(|tasks| tasks.threshold));
        let load = Load { tasks, threshold, utilization_percent: status.utilization_percent };
        (load, status.openness_percent, count(|tasks| tasks.idle_connections))
    };
    let new_connections_per_second = status.tasks.as_ref().and_then(|tasks| tasks.new_connections_per_second);
    let conditions = status.conditions.into_iter().map(|condition| Condition {
        type_: condition.type_,
        status: condition.status,
        reason: condition.reason,
        message: condition.message,
        since: condition.last_transition_time,
    });
    Summary {
        namespace: policy.namespace().unwrap_or_default(),
        name: policy.name_any(),
        target: format!("{:?}", policy.spec.target.type_),
        mode: policy.spec.adaptive.as_ref().map_or_else(|| "Disabled".to_owned(), |adaptive| format!("{:?}", adaptive.mode)),
        suspended: policy.spec.suspend,
        deleting: policy.metadata.deletion_timestamp.is_some(),
        conditions: conditions.collect(),
        load,
        openness_percent: openness,
        sampled: point.map(|point| time(point.time)),
        nodes: status.nodes,
        last_decision: status.history.into_iter().next(),
        flushes: flushes.into_iter().map(Into::into).collect(),
        idle_connections,
        new_connections_per_second: new_connections_per_second.and_then(|rate| u64::try_from(rate).ok()),
        acting,
    }
}

/// The full view of a policy.
#[must_use]
pub fn full(policy: &IdleConnectionPolicy, live: Option<&Live>, acting: bool, now: Timestamp) -> Policy {
    let status = policy.status.clone().unwrap_or_default();
    let trend: Vec<_> = live.into_iter().flat_map(|live| live.trend.points()).collect();
    let moment = |point: &Point| Moment { time: time(point.time), load: point.into(), openness_percent: point.openness.into() };
    Policy {
        summary: summary(policy, trend.last().copied(), acting, now),
        limits: status.limits,
        unsupported: status.unsupported,
        pending_restart: status.pending_restart,
        recommendation: status.recommendation,
        history: status.history,
        trend: trend.iter().map(moment).collect(),
    }
}

/// The nodes with their last `samples`, if they are sampled.
#[must_use]
pub fn nodes(truths: &[Truths], samples: Option<&BTreeMap<String, NodeSample>>) -> Vec<Node> {
    let each = |truths: &Truths| {
        let sample = samples.and_then(|samples| samples.get(&truths.name));
        let last = sample.filter(|sample| sample.gap.is_none()).and_then(|sample| sample.last).map(|(_, measure)| measure);
        Node {
            name: truths.name.clone(),
            unit: truths.unit.clone(),
            stage: truths.stage,
            error: truths.error.clone(),
            load: last.map_or_else(Load::default, |measure| {
                Load::of(measure.tasks, measure.threshold, measure.threshold.map(|_| measure.pressure))
            }),
            gap: sample.and_then(|sample| sample.gap.as_ref()).map(ToString::to_string),
            desired: Limits::from(&truths.desired),
            programmed: Limits::from(&truths.programmed),
            in_effect: Limits::from(&truths.in_effect),
            measured: Limits::from(&truths.measured),
        }
    };
    truths.iter().map(each).collect()
}

impl Api {
    fn policies(&self) -> Vec<IdleConnectionPolicy> {
        let readable = |stored: Arc<StoredPolicy>| Some(IdleConnectionPolicy::clone(stored.policy.as_ref().ok()?));
        let stored = self.actors.all().into_iter().flat_map(|actor| actor.policies.state());
        let mut all: Vec<_> = stored.filter_map(readable).collect();
        all.sort_by_key(|policy| (policy.namespace(), policy.name_any()));
        all
    }

    pub(super) fn policy_namespaces(&self) -> BTreeSet<String> {
        let stored = self.actors.all().into_iter().flat_map(|actor| actor.policies.state());
        stored.filter_map(|policy| PolicyRef::from_obj(&*policy).namespace).collect()
    }

    /// The actor of a namespace, if this replica acts for it.
    pub(super) async fn acting(&self, namespace: &str, asked: &Uri) -> Result<Arc<Context>, Error> {
        match self.actors.acting(namespace).await {
            Acting::Here(actor) => Ok(actor),
            Acting::At(url) => Err(Error::Elsewhere(format!("{url}{}", asked.path_and_query().map_or("", |path| path.as_str())))),
            Acting::Elsewhere => Err(Error::NotLeading),
        }
    }

    /// The policies that a caller may see.
    pub(super) async fn summaries(&self, headers: &HeaderMap) -> Result<Vec<Summary>, Error> {
        let caller = self.gate.caller(headers).await?;
        let sight = self.gate.sight(caller.as_ref(), self.policy_namespaces()).await?;
        let now = clock::now();
        let visible = self.policies().into_iter().filter(|policy| sight.has(policy.namespace().as_deref()));
        let shown = |policy: IdleConnectionPolicy| {
            let namespace = policy.namespace().unwrap_or_default();
            let actor = self.actors.of(&namespace);
            let point = actor.live.latest(&PolicyRef::new(&policy.name_any()).within(&namespace));
            summary(&policy, point, actor.leadership.holds(), now)
        };
        Ok(visible.map(shown).collect())
    }

    async fn policy(
        &self,
        namespace: &str,
        name: &str,
        headers: &HeaderMap,
    ) -> Result<(IdleConnectionPolicy, Arc<Context>), Error> {
        let caller = self.gate.caller(headers).await?;
        // Check the right first, so that a caller without it does not learn which policies exist.
        self.gate.check(caller.as_ref(), Verb::Get, Some(namespace)).await?;
        let reference = PolicyRef::new(name).within(namespace);
        let actor = self.actors.of(namespace);
        let stored = actor.policies.get(&reference).ok_or_else(|| {
            let shown = |text: &str| text.chars().take(80).collect::<String>();
            Error::NotFound(format!(
                "Policy {:?} not found in namespace {:?}; /api/policies lists the policies",
                shown(name),
                shown(namespace)
            ))
        })?;
        let unreadable = |foreign| Error::NotFound(format!("Policy {name:?} cannot be shown: {foreign}"));
        let (policy, _) = StoredPolicy::clone(&stored).read().map_err(unreadable)?;
        Ok((*policy, actor))
    }

    /// The full view of one policy, if the caller may see it.
    pub(super) async fn in_full(&self, namespace: &str, name: &str, headers: &HeaderMap) -> Result<Policy, Error> {
        let (policy, actor) = self.policy(namespace, name, headers).await?;
        let live = actor.live.of(&PolicyRef::new(name).within(namespace));
        Ok(full(&policy, live.as_ref(), actor.leadership.holds(), clock::now()))
    }
}

/// GET /api/policies
pub async fn get_policies(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<ApiResponse<Summaries>>, Error> {
    Ok(ApiResponse::of(Summaries(api.summaries(&headers).await?)))
}

/// GET /api/policies/{namespace}/{name}
pub async fn get_policy(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<ApiResponse<Policy>>, Error> {
    Ok(ApiResponse::of(api.in_full(&namespace, &name, &headers).await?))
}

/// GET /api/policies/{namespace}/{name}/nodes
pub async fn get_nodes(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    asked: Uri,
    headers: HeaderMap,
) -> Result<Json<ApiResponse<NodeList>>, Error> {
    api.policy(&namespace, &name, &headers).await?;
    let live = api.acting(&namespace, &asked).await?.live.of(&PolicyRef::new(&name).within(&namespace));
    let seen = live.and_then(|live| live.seen.map(|seen| (live, seen)));
    let (live, seen) = seen.ok_or(Error::Unavailable("The operator has not observed the nodes of this policy yet"))?;
    let samples = live.samples.as_ref().map(|samples| samples.lock().unwrap_or_else(PoisonError::into_inner).clone());
    Ok(ApiResponse::of(NodeList { seen: Time(seen), nodes: nodes(&live.nodes, samples.as_ref()) }))
}
