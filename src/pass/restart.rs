//! Restarts: what is asked before the decision, and the acts after it is in the status. [`crate::decide::restart`]
//! decides what is restarted when.

use std::collections::BTreeSet;

use super::{
    Error, Pass, PolicyHandle,
    cache::{PolicyCache, saved_units},
    logging,
    world::{Target, World},
};
use crate::{
    api::{
        config_map::ConfigMap,
        restart::{Restart, RestartFor, RestartPolicy},
    },
    decide::{
        self, Cause, ConfigPath, Declared, Fault, Plan, UnitResult, UnitState,
        restart::{
            self, Act,
            eviction::{self, RestartInput},
            rollout,
        },
        uptimes,
    },
};

/// Restart settings of the policy, and whether a restart may begin.
struct Asked {
    /// `spec.restart`.
    spec: Restart,
    /// The policy is not suspended, and `restart.for` covers the pending change.
    may_begin: bool,
}

/// Decision, and the blocker of a restart; `None` if no node waits for a restart.
type Looked = Option<(restart::RestartPlan, Option<String>)>;

/// Decides about restarts, and adds the decision to the plan.
pub(super) async fn look(pass: &mut Pass<'_>, plan: &mut Plan, results: &[UnitResult]) -> Result<(), Error> {
    let (world, policy) = (pass.world, &*pass.policy);
    let spec = policy.spec().restart.clone().unwrap_or_default();
    let idle = plan.control.restart.nodes.is_empty();
    if world.is_dry_run() || (spec.policy == RestartPolicy::Never && idle) {
        return Ok(());
    }
    let as_declared = plan.outcome.as_ref().is_none_or(|outcome| outcome.state.openness == 100);
    let may_begin = !policy.spec().suspend && (spec.for_ == RestartFor::Any || as_declared);
    let asked = Asked { spec, may_begin };
    let looked = match &policy.spec().target.config_map {
        Some(config_map) => rollout(world, plan, config_map, &asked, results).await?,
        None => evictions(pass, plan, &asked, results).await?,
    };
    let Some((outcome, obstacle)) = looked else { return Ok(()) };
    logging::restarts(&outcome, may_begin, obstacle.as_deref());
    plan.control.restart = outcome.control.clone();
    plan.restart = Some((outcome, obstacle.or_else(|| pass.memory.restart_note.clone())));
    Ok(())
}

/// Converts a missing right into a blocker of the restart.
fn unless_forbidden<T: Default>(answer: Result<T, Error>, what: &str) -> Result<(T, Option<String>), Error> {
    match answer {
        Ok(found) => Ok((found, None)),
        Err(error) if error.is_forbidden() => {
            Ok((T::default(), Some(format!("the operator lacks the right to get {what}; grant it in this namespace"))))
        }
        Err(error) => Err(error),
    }
}

/// Decides about restarts by eviction, one node after the other.
async fn evictions(pass: &mut Pass<'_>, plan: &Plan, asked: &Asked, results: &[UnitResult]) -> Result<Looked, Error> {
    let Pass { world, policy, memory, traits, .. } = pass;
    let control = &plan.control;
    let saved = saved_units(memory.originals.as_ref());
    let (nodes, changed) =
        decide::report::status::restart_candidates(&plan.desired, traits, &control.changed, &memory.lives, saved, results);
    if control.restart.nodes.is_empty() && nodes.iter().all(|node| !node.pending) {
        return Ok(None);
    }
    let pending = || nodes.iter().filter(|node| node.pending);
    tracing::debug!(nodes = logging::names(pending().map(|node| node.name)), "nodes need a restart");
    let waiting = pending().filter_map(|node| node.process);
    let mut names: BTreeSet<_> = waiting.map(|process| process.pod.clone()).filter(|name| !name.is_empty()).collect();
    names.extend(control.restart.nodes.iter().map(|current| current.pod.clone()));
    // Nodes at an endpoint may be outside this cluster, with names of another DNS.
    let behind_service = policy.spec().target.service().is_some();
    let (pods, obstacle) = unless_forbidden(world.pods(names, behind_service).await, "pods")?;
    // A node whose pod was evicted for this change had stored the desired values by then, and has a new process now.
    let replaced: Vec<_> = eviction::replaced(&control.restart, changed, &nodes, &pods).map(str::to_owned).collect();
    let (nodes, changed) = if replaced.is_empty() {
        (nodes, changed)
    } else {
        let values = uptimes::read_at_start(&plan.desired.settings, traits);
        for node in &replaced {
            uptimes::replaced(&mut memory.lives, node, &values);
        }
        decide::report::status::restart_candidates(&plan.desired, traits, &control.changed, &memory.lives, saved, results)
    };
    let outcome = eviction::step(&RestartInput {
        spec: &asked.spec,
        may_begin: asked.may_begin,
        nodes: &nodes,
        pods: &pods,
        control: &control.restart,
        changed,
        now: world.now().as_second(),
    });
    Ok(Some((outcome, obstacle)))
}

/// Decides about a rollout.
async fn rollout(
    world: &dyn World,
    plan: &Plan,
    config_map: &ConfigMap,
    asked: &Asked,
    results: &[UnitResult],
) -> Result<Looked, Error> {
    let states: Vec<_> = results.iter().filter_map(|result| result.state.as_ref().ok()).collect();
    let wanted = |state: &&&UnitState| {
        let sought = |site: &ConfigPath| plan.desired.settings.get(&site.limit).copied();
        state.sites.iter().all(|(site, stored)| sought(site).is_none_or(|value| stored.value == Some(value)))
    };
    let hash = states.iter().find(wanted).and_then(|state| state.hash.clone());
    let pending = states.iter().flat_map(|state| &state.nodes).any(|node| node.uses != Some(true));
    if plan.control.restart.nodes.is_empty() && !(pending && hash.is_some()) {
        return Ok(None);
    }
    let (workload, obstacle) = unless_forbidden(world.workload(config_map).await, "workloads")?;
    tracing::debug!(
        hash,
        pending,
        workload = workload.as_ref().map(|workload| format!("{} {}", workload.kind, workload.name)),
        complete = workload.as_ref().map(|workload| workload.complete),
        "looked up the workload"
    );
    let outcome = rollout::step(&rollout::RolloutInput {
        spec: &asked.spec,
        may_begin: asked.may_begin,
        hash: hash.as_deref(),
        pending,
        workload: workload.as_ref(),
        control: &plan.control.restart,
        now: world.now().as_second(),
    });
    Ok(Some((outcome, obstacle)))
}

/// Performs the planned acts after the plan is in the status. The next pass repeats an act that failed.
pub async fn act(world: &dyn World, memory: &mut PolicyCache, plan: &Plan, target: &dyn Target, results: &[UnitResult]) {
    let Some((outcome, _)) = &plan.restart else {
        memory.restart_note = None;
        return;
    };
    let mut why = None;
    for act in &outcome.acts {
        let ended = match act {
            Act::Drain(node) => drain(target, results, node, true).await,
            Act::Undrain(node) => drain(target, results, node, false).await,
            Act::Evict { node, pod, uid } => world.evict(node, pod, uid).await,
            Act::Roll { kind, name, hash } => world.roll(kind, name, hash).await,
        };
        if let Err(sentence) = ended {
            why.get_or_insert(sentence);
        }
    }
    if memory.is_new_message("restart", why.as_deref().unwrap_or_default()) && why.is_some() {
        tracing::warn!("a restart cannot go on: {}", why.as_deref().unwrap_or_default());
    }
    memory.restart_note = why;
}

async fn drain(target: &dyn Target, results: &[UnitResult], node: &str, out: bool) -> Result<(), String> {
    let has_node = |result: &&UnitResult| result.state.as_ref().is_ok_and(|state| state.nodes.iter().any(|n| n.name == node));
    let Some(result) = results.iter().find(has_node) else { return Ok(()) };
    target.drain(&result.unit, node, out).await.map_err(|fault| fault.message)
}

/// Returns drained nodes to service when the policy is being deleted.
pub async fn call_off(world: &dyn World, policy: &PolicyHandle) -> Result<(), (String, Fault)> {
    let control = policy.object.status.as_ref().and_then(|status| status.control.as_ref());
    let nodes = control.map(|control| control.restart.nodes.clone()).unwrap_or_default();
    let Some(first) = nodes.first() else { return Ok(()) };
    let failed = |failure| (first.node.clone(), Fault::new(Cause::Unreachable, super::text(failure)));
    let located = world.locate(policy).await.map_err(failed)?;
    let target = located.connect(&Declared::default()).await.map_err(failed)?;
    let units = target.discover().await.map_err(|fault| (first.node.clone(), fault))?;
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
