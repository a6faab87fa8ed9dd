//! Restarts, carried out: pods are looked up, drained and evicted. What is restarted when is decided elsewhere.

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

/// What the policy asks for, and whether anything of it may begin now.
pub struct Asked {
    /// `spec.restart`.
    pub spec: Restart,
    /// Nothing is suspended, and what is pending is worth it.
    pub may_begin: bool,
}

/// What came of looking, and what stood in the way; nothing, where nothing waits.
pub type Looked = Option<(restart::Outcome, Option<String>)>;

/// Looks at what waits for a restart, and puts what is to be done into the plan.
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

/// Nodes that are restarted one after the other, by evicting their pods.
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
    // Whose pod was evicted for this change stored what is wanted then, and has another process now.
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
    // A cluster at an endpoint may be any cluster, and its names those of its own DNS.
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

/// Does what the plan says, after it has been written down. What does not succeed is done again at the next look.
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
            // It is gone, or another pod has its name: what was to be restarted has ended already.
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

/// The eviction of this very pod: another of its name is one that has come back already. kube's own `Api::evict` sends the precondition in a
/// field that the API server does not know (`delete_options`), and so evicts whatever has the name.
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

/// Puts nodes back into service that a policy which is being deleted has taken out of it.
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
                // It was never taken out.
                Err(fault) if fault.cause == Cause::Rejected => {}
                Err(fault) => return Err((node.node.clone(), fault)),
                Ok(()) => {}
            }
        }
    }
    Ok(())
}
