//! Rollouts, carried out: the workload of the selected pods is looked up, and its pod template annotated. What is rolled out when is decided elsewhere.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{Context, Error, Subject, in_time, memory::Memory, places};
use crate::{
    api::{
        CONFIG_HASH, MANAGER,
        config_map::ConfigMap,
        restart::{Restart, RestartFor},
    },
    clock,
    decide::{
        Plan,
        conditions::UnitResult,
        rollout::{self, Input, Workload},
    },
};

/// Looks at what waits for a rollout, and puts what is to be done into the plan.
pub async fn look(
    ctx: &Context,
    subject: &Subject,
    memory: &Memory,
    plan: &mut Plan,
    config_map: &ConfigMap,
    spec: &Restart,
    results: &[UnitResult],
) -> Result<(), Error> {
    let states: Vec<_> = results.iter().filter_map(|result| result.state.as_ref().ok()).collect();
    let idle = plan.control.restart.nodes.is_empty();
    let wanted = |state: &&&crate::decide::UnitState| {
        let holds = |(knob, value)| {
            let stored = state.sites.iter().find(|(site, _)| site.knob == knob);
            stored.is_none_or(|(_, stored)| stored.value == Some(value))
        };
        plan.desired.settings.iter().all(|(knob, value)| holds((*knob, *value)))
    };
    let hash = states.iter().find(wanted).and_then(|state| state.hash.clone());
    let pending = states.iter().flat_map(|state| &state.nodes).any(|node| node.uses != Some(true));
    if idle && !(pending && hash.is_some()) {
        return Ok(());
    }
    let mut note = memory.restart_note.clone();
    let workload = match workload(ctx, subject, config_map).await {
        Ok(workload) => workload,
        Err(Error::Kube(kube::Error::Api(refusal))) if refusal.is_forbidden() => {
            note = Some("the operator may not get workloads in this namespace".into());
            None
        }
        Err(error) => return Err(error),
    };
    let as_declared = plan.outcome.as_ref().is_none_or(|outcome| outcome.state.openness == 100);
    let outcome = rollout::step(&Input {
        spec,
        may_begin: !subject.spec().suspend && (spec.for_ == RestartFor::Any || as_declared),
        hash: hash.as_deref(),
        pending,
        workload: workload.as_ref(),
        control: &plan.control.restart,
        now: clock::steady().as_second(),
    });
    plan.control.restart = outcome.control.clone();
    plan.restart = Some((outcome, note));
    Ok(())
}

async fn workload(ctx: &Context, subject: &Subject, config_map: &ConfigMap) -> Result<Option<Workload>, Error> {
    let pods = ctx.pods.list(&subject.namespace, &config_map.selector).await?;
    let Some((kind, name)) = pods.iter().find_map(|pod| places::workload(pod)) else { return Ok(None) };
    let seen = |hash: Option<&std::collections::BTreeMap<String, String>>, complete| Workload {
        kind: kind.clone(),
        name: name.clone(),
        hash: hash.and_then(|annotations| annotations.get(CONFIG_HASH).cloned()),
        complete,
    };
    Ok(match kind.as_str() {
        "Deployment" => get::<Deployment>(ctx, subject, &name).await?.and_then(|object| {
            let (spec, status) = (object.spec?, object.status.unwrap_or_default());
            let replicas = spec.replicas.unwrap_or(1);
            let complete = status.observed_generation >= object.metadata.generation
                && [status.updated_replicas, status.replicas, status.available_replicas]
                    .iter()
                    .all(|n| n.unwrap_or(0) == replicas);
            Some(seen(spec.template.metadata.as_ref().and_then(|meta| meta.annotations.as_ref()), complete))
        }),
        "StatefulSet" => get::<StatefulSet>(ctx, subject, &name).await?.and_then(|object| {
            let (spec, status) = (object.spec?, object.status.unwrap_or_default());
            let replicas = spec.replicas.unwrap_or(1);
            let complete = status.observed_generation >= object.metadata.generation
                && [status.updated_replicas, status.ready_replicas].iter().all(|n| n.unwrap_or(0) == replicas);
            Some(seen(spec.template.metadata.as_ref().and_then(|meta| meta.annotations.as_ref()), complete))
        }),
        "DaemonSet" => get::<DaemonSet>(ctx, subject, &name).await?.and_then(|object| {
            let (spec, status) = (object.spec?, object.status.unwrap_or_default());
            let complete = status.observed_generation >= object.metadata.generation
                && [status.updated_number_scheduled, status.number_available]
                    .iter()
                    .all(|n| n.unwrap_or(0) == status.desired_number_scheduled);
            Some(seen(spec.template.metadata.as_ref().and_then(|meta| meta.annotations.as_ref()), complete))
        }),
        _ => None,
    })
}

async fn get<K>(ctx: &Context, subject: &Subject, name: &str) -> Result<Option<K>, Error>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    in_time(Api::<K>::namespaced(ctx.client.clone(), &subject.namespace).get_opt(name)).await
}

/// Has a workload replace its pods. Saying it twice is saying it once.
pub async fn roll(ctx: &Context, subject: &Subject, kind: &str, name: &str, hash: &str) -> Result<(), String> {
    let patch = Patch::Strategic(json!({"spec": {"template": {"metadata": {"annotations": {(CONFIG_HASH): hash}}}}}));
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let (client, namespace) = (ctx.client.clone(), &subject.namespace);
    let answer = match kind {
        "Deployment" => in_time(Api::<Deployment>::namespaced(client, namespace).patch(name, &params, &patch)).await.map(|_| ()),
        "StatefulSet" => {
            in_time(Api::<StatefulSet>::namespaced(client, namespace).patch(name, &params, &patch)).await.map(|_| ())
        }
        _ => in_time(Api::<DaemonSet>::namespaced(client, namespace).patch(name, &params, &patch)).await.map(|_| ()),
    };
    match answer {
        Ok(()) => {
            tracing::info!(policy = subject.path, kind, name, "its pods are replaced, for their processes to use the new limits");
            Ok(())
        }
        Err(Error::Kube(kube::Error::Api(status))) if status.is_not_found() => Ok(()),
        Err(Error::Kube(kube::Error::Api(status))) if status.is_forbidden() => {
            Err(format!("the operator may not patch {kind} {name}; grant patch on it"))
        }
        Err(Error::Kube(kube::Error::Api(status))) => {
            Err(format!("the API server did not take the patch of {kind} {name} ({})", status.code))
        }
        Err(_) => Err(format!("the API server did not answer to the patch of {kind} {name}")),
    }
}
