//! Policies, with the status from the API server and the figures of the last samples.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
};

use axum::{
    Json,
    extract::{Path, State},
    http::HeaderMap,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    answer::{Answer, Error},
    gate::Deed,
};
use crate::{
    api::{
        IdleConnectionPolicy, Limits, StoredPolicy,
        flush::Closes,
        status::{Decision, Nodes, PendingRestart, Recommendation, StatusLimits, Tasks},
    },
    clock,
    controller::{
        PolicyRef,
        live::{Live, Point},
    },
    decide::{
        self,
        adapt::percent,
        flushes::Flushes,
        signal::NodeSample,
        truths::{Stage, Truths},
    },
    targets,
};

/// Age in milliseconds from which a live figure is replaced by that of the status.
const FRESH: i64 = 120_000;

/// Task count and threshold. Figures that are not known are absent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Task count. Absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u64>,
    /// Threshold of the task count. Absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u64>,
    /// Utilization: the task count in percent of its threshold. Absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure_percent: Option<u32>,
}

impl Load {
    fn of(tasks: Option<f64>, threshold: Option<f64>, pressure: Option<f64>) -> Self {
        Self { tasks: tasks.map(whole), threshold: threshold.map(whole), pressure_percent: pressure.map(percent) }
    }
}

impl From<&Point> for Load {
    fn from(point: &Point) -> Self {
        Self::of(point.tasks, point.threshold, point.pressure)
    }
}

/// Summary of a policy.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Namespace of the policy.
    pub namespace: String,
    /// Name of the policy.
    pub name: String,
    /// Kind of the target: AIStore, Caddy or ConfigMap.
    pub target: String,
    /// Mode of adaptive control: Enforce, Recommend or Disabled.
    pub mode: String,
    /// Whether the policy is suspended.
    pub suspended: bool,
    /// Whether the policy is being deleted.
    pub deleting: bool,
    /// Conditions of the policy.
    pub conditions: Vec<Condition>,
    /// Figures of the node that decides.
    #[serde(flatten)]
    pub load: Load,
    /// Openness of the limits in percent: 100 = as declared, 0 = at the floor. Absent without adaptive control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub openness_percent: Option<u32>,
    /// Time of the live figures. Absent if the figures are those of the status, which the operator writes only after a relevant
    /// change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled: Option<Time>,
    /// Number of nodes in each state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
    /// Last decision of adaptive control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_decision: Option<Decision>,
    /// Idle connections that each change of the limits closes. Empty if a change closes none.
    pub flushes: Vec<FlushingLimits>,
}

/// Summaries of policies.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[schemars(rename = "Policies", inline)]
pub struct Summaries(pub Vec<Summary>);

/// Limits of which each change closes idle connections, whatever the new value is.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FlushingLimits {
    /// Paths of the limits, such as `server.idleTimeout`.
    pub limits: Vec<String>,
    /// Idle connections that a change closes.
    pub closes: Closes,
    /// Time after a change during which the server continues to close connections, in seconds.
    pub settle_seconds: u64,
    /// Description of the effect, as a sentence.
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

/// Condition of a policy, from its status.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Condition {
    /// Type of the condition, such as Ready.
    #[serde(rename = "type")]
    pub type_: String,
    /// Status of the condition: True, False or Unknown.
    pub status: String,
    /// Reason for the status, as one word.
    pub reason: String,
    /// Description of the reason and of the fix, as a sentence.
    pub message: String,
    /// Time of the last change of the status.
    pub since: Time,
}

/// Policy with all details.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Summary of the policy.
    #[serde(flatten)]
    pub summary: Summary,
    /// Declared, desired, programmed, in-effect and measured value of each limit, for all nodes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<StatusLimits>,
    /// Paths of declared limits that the target does not have, or whose value it cannot represent.
    pub unsupported: Vec<String>,
    /// Nodes that use their limits only after a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_restart: Option<PendingRestart>,
    /// Change that adaptive control would make if it were allowed to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<Recommendation>,
    /// Last decisions of adaptive control, newest first.
    pub history: Vec<Decision>,
    /// Last rounds of samples, oldest first. Empty in a standby.
    pub trend: Vec<Moment>,
}

/// Figures of a policy after one round of samples.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[schemars(rename = "TrendPoint")]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// Time of the round.
    pub time: Time,
    /// Figures of the node that decides.
    #[serde(flatten)]
    pub load: Load,
    /// Openness of the limits in percent: 100 = as declared, 0 = at the floor.
    pub openness_percent: u32,
}

/// Nodes of a policy, as observed by the last reconciliation.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct NodeList {
    /// Time of the observation.
    pub seen: Time,
    /// Nodes of the policy.
    pub nodes: Vec<Node>,
}

/// Node of a policy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Name of the node.
    pub name: String,
    /// Unit of the node: the nodes of one unit are written together.
    pub unit: String,
    /// State of the node.
    pub stage: Stage,
    /// Last error of the node. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Last figures of the node.
    #[serde(flatten)]
    pub load: Load,
    /// Reason why the task count is missing. Absent if the task count is known or not collected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<String>,
    /// Limits that the node should have.
    pub desired: Limits,
    /// Limits that the node stores.
    pub programmed: Limits,
    /// Limits that the process of the node is known to use.
    pub in_effect: Limits,
    /// Limits that `spec.verify` measured on the server of the node.
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

/// Returns the summary of a policy. `point` has the figures of the last round of samples, if this replica knows them.
#[must_use]
pub fn summary(policy: &IdleConnectionPolicy, point: Option<Point>, now: Timestamp) -> Summary {
    let status = policy.status.clone().unwrap_or_default();
    let point = point.filter(|point| now.as_millisecond() - point.time < FRESH);
    let traits = targets::traits(&policy.spec.target);
    let flushes = decide::flushes::flushes(&decide::declare(&policy.spec, &traits), &traits);
    let (load, openness) = if let Some(point) = &point {
        (Load::from(point), Some(u32::from(point.openness)))
    } else {
        let count = |of: fn(&Tasks) -> Option<i64>| u64::try_from(of(status.tasks.as_ref()?)?).ok();
        let (tasks, threshold) = (count(|tasks| tasks.percentile), count(|tasks| tasks.threshold));
        (Load { tasks, threshold, pressure_percent: status.pressure_percent }, status.openness_percent)
    };
    Summary {
        namespace: policy.namespace().unwrap_or_default(),
        name: policy.name_any(),
        target: format!("{:?}", policy.spec.target.type_),
        mode: policy.spec.adaptive.as_ref().map_or_else(|| "Disabled".to_owned(), |adaptive| format!("{:?}", adaptive.mode)),
        suspended: policy.spec.suspend,
        deleting: policy.metadata.deletion_timestamp.is_some(),
        conditions: status
            .conditions
            .into_iter()
            .map(|condition| Condition {
                type_: condition.type_,
                status: condition.status,
                reason: condition.reason,
                message: condition.message,
                since: condition.last_transition_time,
            })
            .collect(),
        load,
        openness_percent: openness,
        sampled: point.map(|point| time(point.time)),
        nodes: status.nodes,
        last_decision: status.history.into_iter().next(),
        flushes: flushes.into_iter().map(Into::into).collect(),
    }
}

/// Returns the policy with all details.
#[must_use]
pub fn full(policy: &IdleConnectionPolicy, live: Option<&Live>, now: Timestamp) -> Policy {
    let status = policy.status.clone().unwrap_or_default();
    let trend = live.map(|live| &live.trend);
    Policy {
        summary: summary(policy, trend.and_then(|trend| trend.back().copied()), now),
        limits: status.limits,
        unsupported: status.unsupported,
        pending_restart: status.pending_restart,
        recommendation: status.recommendation,
        history: status.history,
        trend: trend
            .into_iter()
            .flatten()
            .map(|point| Moment { time: time(point.time), load: point.into(), openness_percent: point.openness.into() })
            .collect(),
    }
}

/// Returns the nodes. `samples` has their last task counts, if they are sampled.
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
            gap: sample.and_then(|sample| sample.gap.as_ref()).map(|gap| gap.sentence().into_owned()),
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
        let readable = |stored: Arc<StoredPolicy>| stored.policy.clone().ok();
        let mut all: Vec<_> = self.context.policies.state().into_iter().filter_map(readable).collect();
        all.sort_by_key(|policy| (policy.namespace(), policy.name_any()));
        all
    }

    pub(super) fn policy_namespaces(&self) -> BTreeSet<String> {
        self.context.policies.state().iter().filter_map(|policy| PolicyRef::from_obj(&**policy).namespace).collect()
    }

    /// Returns the policies that the caller may see.
    pub(super) async fn summaries(&self, headers: &HeaderMap) -> Result<Vec<Summary>, Error> {
        let caller = self.gate.caller(headers).await?;
        let sight = self.gate.sight(caller.as_ref(), self.policy_namespaces()).await?;
        let (latest, now) = (self.context.live.latest(), clock::now());
        let visible = self.policies().into_iter().filter(|policy| sight.has(policy.namespace().as_deref()));
        Ok(visible
            .map(|policy| {
                let point = latest.get(&(policy.namespace().unwrap_or_default(), policy.name_any())).copied();
                summary(&policy, point, now)
            })
            .collect())
    }

    async fn policy(
        &self,
        namespace: &str,
        name: &str,
        headers: &HeaderMap,
    ) -> Result<(IdleConnectionPolicy, Option<Live>), Error> {
        let caller = self.gate.caller(headers).await?;
        // The check comes first, so that a caller without the right does not learn which policies exist.
        self.gate.check(caller.as_ref(), Deed::Get, Some(namespace)).await?;
        let reference = PolicyRef::new(name).within(namespace);
        let stored = self.context.policies.get(&reference).ok_or_else(|| {
            let shown = |text: &str| text.chars().take(80).collect::<String>();
            Error::NotFound(format!(
                "Policy {:?} not found in namespace {:?}; /api/policies lists the policies",
                shown(name),
                shown(namespace)
            ))
        })?;
        let unreadable = |foreign| Error::NotFound(format!("Policy {name:?} cannot be shown: {foreign}"));
        let (policy, _) = StoredPolicy::clone(&stored).read().map_err(unreadable)?;
        Ok((policy, self.context.live.of(&reference)))
    }

    /// Policy with all details.
    pub(super) async fn in_full(&self, namespace: &str, name: &str, headers: &HeaderMap) -> Result<Policy, Error> {
        let (policy, live) = self.policy(namespace, name, headers).await?;
        Ok(full(&policy, live.as_ref(), clock::now()))
    }
}

/// GET /api/policies
pub async fn get_policies(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<Answer<Summaries>>, Error> {
    Ok(Answer::of(Summaries(api.summaries(&headers).await?)))
}

/// GET /api/policies/{namespace}/{name}
pub async fn get_policy(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Answer<Policy>>, Error> {
    Ok(Answer::of(api.in_full(&namespace, &name, &headers).await?))
}

/// GET /api/policies/{namespace}/{name}/nodes
pub async fn get_nodes(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Answer<NodeList>>, Error> {
    let (_, live) = api.policy(&namespace, &name, &headers).await?;
    if !api.context.leadership.holds() {
        return Err(Error::NotLeading);
    }
    let (live, seen) = live
        .and_then(|live| live.seen.map(|seen| (live, seen)))
        .ok_or(Error::Unavailable("The operator has not observed the nodes of this policy yet"))?;
    let samples = live.samples.as_ref().map(|samples| samples.lock().unwrap_or_else(PoisonError::into_inner).clone());
    Ok(Answer::of(NodeList { seen: Time(seen), nodes: nodes(&live.nodes, samples.as_ref()) }))
}
