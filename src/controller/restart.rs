//! Performs restarts: looks up pods, drains nodes and evicts pods. [`crate::decide::restart`] decides what is restarted when.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{core::v1, policy::v1::Eviction},
    apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions, Status},
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};

use super::{Context, Error, Subject, in_time, logging, memory::Memory, places, reachability::pod_name_in_dns, rollout};
use crate::{
    api::restart::{Restart, RestartFor, RestartPolicy},
    clock,
    decide::{
        self, Cause, Fault, Plan, Traits, Unit,
        conditions::UnitResult,
        lives,
        restart::{self, Act, Input, Pod},
    },
    targets::{self, Target},
};

/// Restart settings of the policy, and whether a restart may begin.
pub struct Asked {
    /// `spec.restart`.
    pub spec: Restart,
    /// The policy is not suspended, and `restart.for` covers the pending change.
    pub may_begin: bool,
}

/// Decision, and the blocker of a restart; `None` if no node waits for a restart.
pub type Looked = Option<(restart::Outcome, Option<String>)>;

/// Decides about restarts, and adds the decision to the plan.
pub async fn look(
    ctx: &Context,
    subject: &Subject,
    memory: &mut Memory,
    plan: &mut Plan,
    traits: &Traits,
    results: &[UnitResult],
) -> Result<(), Error> {
    let spec = subject.spec().restart.clone().unwrap_or_default();
    let idle = plan.control.restart.nodes.is_empty();
    if ctx.settings.dry_run || (spec.policy == RestartPolicy::Never && idle) {
        return Ok(());
    }
    let as_declared = plan.outcome.as_ref().is_none_or(|outcome| outcome.state.openness == 100);
    let may_begin = !subject.spec().suspend && (spec.for_ == RestartFor::Any || as_declared);
    let asked = Asked { spec, may_begin };
    let looked = match &subject.spec().target.config_map {
        Some(config_map) => rollout::look(ctx, subject, plan, config_map, &asked, results).await?,
        None => evictions(ctx, subject, memory, plan, traits, &asked, results).await?,
    };
    let Some((outcome, obstacle)) = looked else { return Ok(()) };
    logging::restarts(&outcome, may_begin, obstacle.as_deref());
    plan.control.restart = outcome.control.clone();
    plan.restart = Some((outcome, obstacle.or_else(|| memory.restart_note.clone())));
    Ok(())
}

/// Decides about restarts by eviction, one node after the other.
async fn evictions(
    ctx: &Context,
    subject: &Subject,
    memory: &mut Memory,
    plan: &Plan,
    traits: &Traits,
    asked: &Asked,
    results: &[UnitResult],
) -> Result<Looked, Error> {
    let control = &plan.control;
    let saved = memory.saved();
    let (nodes, changed) = decide::conditions::waiting(&plan.desired, traits, &control.changed, &memory.lives, &saved, results);
    if control.restart.nodes.is_empty() && nodes.iter().all(|node| !node.pending) {
        return Ok(None);
    }
    let pending = || nodes.iter().filter(|node| node.pending);
    tracing::debug!(nodes = logging::names(pending().map(|node| node.name)), "nodes need a restart");
    let waiting = pending().filter_map(|node| node.process);
    let mut names: BTreeSet<_> = waiting.map(|process| process.pod.clone()).filter(|name| !name.is_empty()).collect();
    names.extend(control.restart.nodes.iter().map(|current| current.pod.clone()));
    let (pods, obstacle) = match pods(ctx, subject, names).await {
        Ok(pods) => (pods, None),
        Err(Error::Kube(kube::Error::Api(status))) if status.is_forbidden() => {
            (BTreeMap::new(), Some("the operator lacks the right to get pods; grant it in this namespace".into()))
        }
        Err(error) => return Err(error),
    };
    // A node whose pod was evicted for this change had stored the desired values by then, and has a new process now.
    let replaced: Vec<_> = restart::replaced(&control.restart, changed, &nodes, &pods).map(str::to_owned).collect();
    let (nodes, changed) = if replaced.is_empty() {
        (nodes, changed)
    } else {
        let values = lives::read_at_start(&plan.desired.settings, traits);
        for node in &replaced {
            lives::replaced(&mut memory.lives, node, &values);
        }
        decide::conditions::waiting(&plan.desired, traits, &control.changed, &memory.lives, &saved, results)
    };
    let outcome = restart::step(&Input {
        spec: &asked.spec,
        may_begin: asked.may_begin,
        nodes: &nodes,
        pods: &pods,
        control: &control.restart,
        changed,
        now: clock::now().as_second(),
    });
    Ok(Some((outcome, obstacle)))
}

async fn pods(ctx: &Context, subject: &Subject, names: BTreeSet<String>) -> Result<BTreeMap<String, Pod>, Error> {
    let api = Api::<v1::Pod>::namespaced(ctx.client.clone(), &subject.namespace);
    // Nodes at an endpoint may be outside this cluster, with names of another DNS.
    let behind_service = subject.spec().target.service().is_some();
    let mut pods = BTreeMap::new();
    for name in names {
        if let Some(pod) = in_time(api.get_opt(&name)).await? {
            let dns = behind_service.then(|| pod_name_in_dns(&pod)).flatten();
            pods.insert(name, Pod { dns, ..seen(&pod) });
        }
    }
    Ok(pods)
}

fn seen(pod: &v1::Pod) -> Pod {
    let status = pod.status.clone().unwrap_or_default();
    let is_ready = |condition: &v1::PodCondition| condition.type_ == "Ready" && condition.status == "True";
    Pod {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        ready: status.conditions.iter().flatten().any(is_ready),
        ips: status.pod_ips.into_iter().flatten().map(|ip| ip.ip).chain(status.pod_ip).collect(),
        dns: None,
        terminating: pod.metadata.deletion_timestamp.is_some(),
    }
}

/// Performs the planned acts after the plan is in the status. The next pass repeats an act that failed.
pub async fn act(
    ctx: &Context,
    subject: &Subject,
    memory: &mut Memory,
    plan: &Plan,
    target: &dyn Target,
    results: &[UnitResult],
) {
    let Some((outcome, _)) = &plan.restart else {
        memory.restart_note = None;
        return;
    };
    let mut why = None;
    for act in &outcome.acts {
        let ended = match act {
            Act::Drain(node) => drain(target, results, node, true).await,
            Act::Undrain(node) => drain(target, results, node, false).await,
            Act::Evict { node, pod, uid } => evict(ctx, subject, node, pod, uid).await,
            Act::Roll { kind, name, hash } => rollout::roll(ctx, subject, kind, name, hash).await,
        };
        if let Err(sentence) = ended {
            why.get_or_insert(sentence);
        }
    }
    if memory.news("restart", why.as_deref().unwrap_or_default()) && why.is_some() {
        tracing::warn!("a restart cannot go on: {}", why.as_deref().unwrap_or_default());
    }
    memory.restart_note = why;
}

async fn drain(target: &dyn Target, results: &[UnitResult], node: &str, out: bool) -> Result<(), String> {
    let has_node = |result: &&UnitResult| result.state.as_ref().is_ok_and(|state| state.nodes.iter().any(|n| n.name == node));
    let Some(result) = results.iter().find(has_node) else { return Ok(()) };
    target.drain(&result.unit, node, out).await.map_err(|fault| fault.message)
}

async fn evict(ctx: &Context, subject: &Subject, node: &str, pod: &str, uid: &str) -> Result<(), String> {
    let api = Api::<v1::Pod>::namespaced(ctx.client.clone(), &subject.namespace);
    match in_time(api.create_subresource::<Eviction, Status>("eviction", pod, &PostParams::default(), &eviction(pod, uid))).await
    {
        Ok(_) => {
            tracing::info!(node, pod, "evicted the pod so that the node uses the new limits");
            Ok(())
        }
        Err(Error::Kube(kube::Error::Api(status))) => match status.code {
            // The pod is gone, or another pod has its name: the old process has already ended.
            404 | 409 => Ok(()),
            429 => Err(format!("a PodDisruptionBudget does not allow the eviction of pod {pod} yet")),
            403 => Err("the operator lacks the right to evict pods; grant create on pods/eviction".into()),
            code => Err(format!("the API server rejected the eviction of pod {pod} ({code})")),
        },
        Err(error) => {
            tracing::debug!(node, pod, error = logging::chain(&error), "cannot evict the pod");
            Err(format!("the API server did not answer the eviction of pod {pod}"))
        }
    }
}

/// Returns the eviction of the pod with this uid: another pod of the same name is already its successor. kube's own `Api::evict`
/// sends the precondition in a field that the API server does not know (`delete_options`), so it would evict any pod of that
/// name.
#[must_use]
pub fn eviction(pod: &str, uid: &str) -> Eviction {
    Eviction {
        metadata: ObjectMeta { name: Some(pod.to_owned()), ..ObjectMeta::default() },
        delete_options: Some(DeleteOptions {
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteOptions::default()
        }),
    }
}

/// Returns drained nodes to service when the policy is being deleted.
pub async fn call_off(ctx: &Context, subject: &Subject, credentials: targets::Credentials) -> Result<(), (String, Fault)> {
    let control = subject.object.status.as_ref().and_then(|status| status.control.as_ref());
    let nodes: Vec<_> = control.map(|control| control.restart.nodes.clone()).unwrap_or_default();
    let Some(first) = nodes.first() else { return Ok(()) };
    let failed = |message: String| (first.node.clone(), Fault::new(Cause::Unreachable, message));
    let target = &subject.spec().target;
    let places = places::places(ctx, subject, target).await.map_err(|failure| match failure {
        places::Failure::Problem(problem) => failed(problem.message),
        places::Failure::Error(error) => failed(error.to_string()),
    })?;
    let target = targets::connect(target, &BTreeMap::new(), places, credentials, ctx.reach(subject))
        .map_err(|fault| (first.node.clone(), fault))?;
    let units: Vec<Unit> = target.discover().await.map_err(|fault| (first.node.clone(), fault))?;
    for node in &nodes {
        for unit in &units {
            match target.drain(unit, &node.node, false).await {
                // The node was not drained.
                Err(fault) if fault.cause == Cause::Rejected => {}
                Err(fault) => return Err((node.node.clone(), fault)),
                Ok(()) => {}
            }
        }
    }
    Ok(())
}
