//! Performs rollouts: looks up the workload of the selected pods and annotates its pod template. [`crate::decide::rollout`]
//! decides what is rolled out when.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value as Json, json};

use super::{
    Context, Error, Subject, in_time, logging, places,
    restart::{Asked, Looked},
};
use crate::{
    api::{CONFIG_HASH, MANAGER, config_map::ConfigMap},
    clock,
    decide::{
        Plan, Site, UnitState,
        conditions::UnitResult,
        rollout::{self, Input, Workload},
    },
};

/// Kind of workload that replaces its pods when their template changes.
struct Kind {
    resource: ApiResource,
    /// Path of the desired number of pods, and its default.
    wanted: (&'static str, i64),
    /// Counts in the status that equal this number after all pods have been replaced.
    counts: &'static [&'static str],
}

fn kind(name: &str) -> Option<Kind> {
    Some(match name {
        "Deployment" => Kind {
            resource: ApiResource::erase::<Deployment>(&()),
            wanted: ("/spec/replicas", 1),
            counts: &["updatedReplicas", "replicas", "availableReplicas"],
        },
        "StatefulSet" => Kind {
            resource: ApiResource::erase::<StatefulSet>(&()),
            wanted: ("/spec/replicas", 1),
            counts: &["updatedReplicas", "readyReplicas"],
        },
        "DaemonSet" => Kind {
            resource: ApiResource::erase::<DaemonSet>(&()),
            wanted: ("/status/desiredNumberScheduled", 0),
            counts: &["updatedNumberScheduled", "numberAvailable"],
        },
        _ => return None,
    })
}

impl Kind {
    fn api(&self, ctx: &Context, subject: &Subject) -> Api<DynamicObject> {
        Api::namespaced_with(ctx.client.clone(), &subject.namespace, &self.resource)
    }

    /// Reports whether all pods have the current template and are available.
    fn is_complete(&self, object: &DynamicObject) -> bool {
        let (place, unset) = self.wanted;
        let wanted = object.data.pointer(place).and_then(Json::as_i64).unwrap_or(unset);
        let status = &object.data["status"];
        status["observedGeneration"].as_i64() >= object.metadata.generation
            && self.counts.iter().all(|count| status[count].as_i64().unwrap_or(0) == wanted)
    }
}

/// Decides about a rollout.
pub async fn look(
    ctx: &Context,
    subject: &Subject,
    plan: &Plan,
    config_map: &ConfigMap,
    asked: &Asked,
    results: &[UnitResult],
) -> Result<Looked, Error> {
    let states: Vec<_> = results.iter().filter_map(|result| result.state.as_ref().ok()).collect();
    let wanted = |state: &&&UnitState| {
        let sought = |site: &Site| plan.desired.settings.get(&site.knob).copied();
        state.sites.iter().all(|(site, stored)| sought(site).is_none_or(|value| stored.value == Some(value)))
    };
    let hash = states.iter().find(wanted).and_then(|state| state.hash.clone());
    let pending = states.iter().flat_map(|state| &state.nodes).any(|node| node.uses != Some(true));
    if plan.control.restart.nodes.is_empty() && !(pending && hash.is_some()) {
        return Ok(None);
    }
    let (workload, obstacle) = match workload(ctx, subject, config_map).await {
        Ok(workload) => (workload, None),
        Err(Error::Kube(kube::Error::Api(refusal))) if refusal.is_forbidden() => {
            (None, Some("the operator lacks the right to get workloads; grant it in this namespace".into()))
        }
        Err(error) => return Err(error),
    };
    tracing::debug!(
        hash,
        pending,
        workload = workload.as_ref().map(|workload| format!("{} {}", workload.kind, workload.name)),
        complete = workload.as_ref().map(|workload| workload.complete),
        "looked up the workload"
    );
    let outcome = rollout::step(&Input {
        spec: &asked.spec,
        may_begin: asked.may_begin,
        hash: hash.as_deref(),
        pending,
        workload: workload.as_ref(),
        control: &plan.control.restart,
        now: clock::now().as_second(),
    });
    Ok(Some((outcome, obstacle)))
}

async fn workload(ctx: &Context, subject: &Subject, config_map: &ConfigMap) -> Result<Option<Workload>, Error> {
    let pods = ctx.pods.list(&subject.namespace, &config_map.selector).await?;
    let Some((kind_name, name)) = pods.iter().filter(|pod| !places::is_over(pod)).find_map(|pod| places::workload(pod)) else {
        return Ok(None);
    };
    let Some(kind) = kind(&kind_name) else { return Ok(None) };
    let object = in_time(kind.api(ctx, subject).get_opt(&name)).await?;
    Ok(object.map(|object| Workload {
        complete: kind.is_complete(&object),
        hash: object.data["spec"]["template"]["metadata"]["annotations"][CONFIG_HASH].as_str().map(str::to_owned),
        kind: kind_name,
        name,
    }))
}

/// Annotates the pod template of a workload so that its pods are replaced. Idempotent.
pub async fn roll(ctx: &Context, subject: &Subject, kind: &str, name: &str, hash: &str) -> Result<(), String> {
    let patch = Patch::Merge(json!({"spec": {"template": {"metadata": {"annotations": {(CONFIG_HASH): hash}}}}}));
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let Some(known) = self::kind(kind) else { return Ok(()) };
    match in_time(known.api(ctx, subject).patch(name, &params, &patch)).await {
        Ok(_) => {
            tracing::info!(kind, name, "replacing the pods of the workload so that they use the new limits");
            Ok(())
        }
        Err(Error::Kube(kube::Error::Api(status))) if status.is_not_found() => Ok(()),
        Err(Error::Kube(kube::Error::Api(status))) if status.is_forbidden() => {
            Err(format!("the operator lacks the right to patch {kind} {name}; grant it in this namespace"))
        }
        Err(Error::Kube(kube::Error::Api(status))) => {
            Err(format!("the API server rejected the patch of {kind} {name} ({})", status.code))
        }
        Err(error) => {
            tracing::debug!(kind, name, error = logging::chain(&error), "cannot patch the workload");
            Err(format!("the API server did not answer the patch of {kind} {name}"))
        }
    }
}
