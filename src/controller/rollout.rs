//! Carries out rollouts: looks up the workload of the selected pods and annotates its pod template.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value as Json, json};

use super::{Context, in_time};
use crate::{
    api::{CONFIG_HASH, MANAGER, config_map::ConfigMap},
    decide::restart::rollout::Workload,
    pass::{Error, logging},
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
    fn api(&self, ctx: &Context, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(ctx.client.clone(), namespace, &self.resource)
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

/// Reads the workload of the selected pods; `None` if it is not known.
pub async fn workload(ctx: &Context, namespace: &str, config_map: &ConfigMap) -> Result<Option<Workload>, Error> {
    let pods = ctx.pods.list(namespace, &config_map.selector).await?;
    let Some((kind_name, name)) = pods.iter().filter(|pod| !pod.is_over).find_map(|pod| pod.workload.clone()) else {
        return Ok(None);
    };
    let Some(kind) = kind(&kind_name) else { return Ok(None) };
    let object = in_time(kind.api(ctx, namespace).get_opt(&name)).await?;
    Ok(object.map(|object| Workload {
        complete: kind.is_complete(&object),
        hash: object.data["spec"]["template"]["metadata"]["annotations"][CONFIG_HASH].as_str().map(str::to_owned),
        kind: kind_name,
        name,
    }))
}

/// Annotates the pod template of a workload so that its pods are replaced. Idempotent.
pub async fn roll(ctx: &Context, namespace: &str, kind: &str, name: &str, hash: &str) -> Result<(), String> {
    let patch = Patch::Merge(json!({"spec": {"template": {"metadata": {"annotations": {(CONFIG_HASH): hash}}}}}));
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let Some(known) = self::kind(kind) else { return Ok(()) };
    match in_time(known.api(ctx, namespace).patch(name, &params, &patch)).await {
        Ok(_) => {
            tracing::info!(kind, name, "replacing the pods of the workload so that they use the new limits");
            Ok(())
        }
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) if error.is_forbidden() => {
            Err(format!("the operator lacks the right to patch {kind} {name}; grant it in this namespace"))
        }
        Err(error) => {
            if let Some(code) = error.code() {
                return Err(format!("the API server rejected the patch of {kind} {name} ({code})"));
            }
            tracing::debug!(kind, name, error = logging::chain(&error), "cannot patch the workload");
            Err(format!("the API server did not answer the patch of {kind} {name}"))
        }
    }
}
