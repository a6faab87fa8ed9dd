//! The policies, as the API server has them and as the last samples show them.

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

/// How old a live figure may be before the status's is shown instead (milliseconds).
const FRESH: i64 = 120_000;

/// Tasks against their threshold. What could not be counted is absent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Tasks; absent where they could not be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u64>,
    /// Their threshold; likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u64>,
    /// Tasks by threshold; likewise.
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

/// A policy in one line.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What kind of server it is about.
    pub target: String,
    /// Enforce, Recommend or Disabled.
    pub mode: String,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its conditions.
    pub conditions: Vec<Condition>,
    /// Of the node that counts.
    #[serde(flatten)]
    pub load: Load,
    /// How far open the limits are: 100 is as declared, 0 the floor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub openness_percent: Option<u32>,
    /// When these figures were taken; absent where they are the status's, which are written only when they matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled: Option<Time>,
    /// How many nodes hold the declared limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
    /// The last decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_decision: Option<Decision>,
    /// What each change of the limits closes; empty where a change closes no connection.
    pub flushes: Vec<FlushingLimits>,
}

/// Limits of which each change closes idle connections, whatever the new value is.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FlushingLimits {
    /// The limits, such as `server.idleTimeout`.
    pub limits: Vec<String>,
    /// Which idle connections a change closes.
    pub closes: Closes,
    /// How long after a change the server goes on closing them (seconds).
    pub settle_seconds: u64,
    /// The same as a sentence.
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

/// A condition, as the status has it.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
    /// Since when.
    pub since: Time,
}

/// A policy in full.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// In one line.
    #[serde(flatten)]
    pub summary: Summary,
    /// The three truths of every limit, of all nodes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<StatusLimits>,
    /// Declared fields that the target has no place for.
    pub unsupported: Vec<String>,
    /// Nodes that have to be restarted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_restart: Option<PendingRestart>,
    /// What would be done, where it may not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<Recommendation>,
    /// The last decisions, newest first.
    pub history: Vec<Decision>,
    /// The last rounds of samples, oldest first; empty in a replica that does not act.
    pub trend: Vec<Moment>,
}

/// How a policy stood after a round of samples.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// When.
    pub time: Time,
    /// Of the node that counts.
    #[serde(flatten)]
    pub load: Load,
    /// How far open the limits were.
    pub openness_percent: u32,
}

/// The nodes of a policy, as the last pass saw them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct NodeList {
    /// When they were looked at.
    pub seen: Time,
    /// Each of them.
    pub nodes: Vec<Node>,
}

/// One node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What is written together with it.
    pub unit: String,
    /// How far it has come.
    pub stage: Stage,
    /// The last error, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was last asked.
    #[serde(flatten)]
    pub load: Load,
    /// Why there are no tasks, where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<String>,
    /// What it is to hold.
    pub desired: Limits,
    /// What it stores of these.
    pub programmed: Limits,
    /// What its process is known to use of these.
    pub in_effect: Limits,
    /// What its server was measured to do, with `spec.verify`.
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

/// In one line; `point` is what the last round of samples said, if it is known here.
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

/// In full.
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

/// The nodes; `samples` is what they last ran, where they are sampled.
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

    /// What a caller may see of the policies.
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
        // Who may not look there is not told either what is there.
        self.gate.check(caller.as_ref(), Deed::Get, Some(namespace)).await?;
        let reference = PolicyRef::new(name).within(namespace);
        let stored = self.context.policies.get(&reference).ok_or_else(|| {
            let shown = |text: &str| text.chars().take(80).collect::<String>();
            Error::NotFound(format!(
                "there is no policy {:?} in namespace {:?}; /api/policies lists them",
                shown(name),
                shown(namespace)
            ))
        })?;
        let unreadable = |foreign| Error::NotFound(format!("policy {name:?} is not shown: {foreign}"));
        let (policy, _) = StoredPolicy::clone(&stored).read().map_err(unreadable)?;
        Ok((policy, self.context.live.of(&reference)))
    }

    /// A policy in full.
    pub(super) async fn in_full(&self, namespace: &str, name: &str, headers: &HeaderMap) -> Result<Policy, Error> {
        let (policy, live) = self.policy(namespace, name, headers).await?;
        Ok(full(&policy, live.as_ref(), clock::now()))
    }
}

/// GET /api/policies
pub async fn get_policies(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<Answer<Vec<Summary>>>, Error> {
    Ok(Answer::of(api.summaries(&headers).await?))
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
        .ok_or(Error::Unavailable("the policy has not been looked at yet"))?;
    let samples = live.samples.as_ref().map(|samples| samples.lock().unwrap_or_else(PoisonError::into_inner).clone());
    Ok(Answer::of(NodeList { seen: Time(seen), nodes: nodes(&live.nodes, samples.as_ref()) }))
}
