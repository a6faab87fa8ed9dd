//! Carries out restarts by eviction: reads pods and evicts them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{core::v1, policy::v1::Eviction},
    apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions, Status},
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};

use super::{in_time, reachability::pod_name_in_dns};
use crate::{
    decide::restart::eviction::Pod,
    pass::{Error, logging},
};

/// Reads pods, as far as they exist.
pub async fn pods(api: &Api<v1::Pod>, names: BTreeSet<String>, behind_service: bool) -> Result<BTreeMap<String, Pod>, Error> {
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

/// Evicts exactly this pod.
pub async fn evict(api: &Api<v1::Pod>, node: &str, pod: &str, uid: &str) -> Result<(), String> {
    match in_time(api.create_subresource::<Eviction, Status>("eviction", pod, &PostParams::default(), &eviction(pod, uid))).await
    {
        Ok(_) => {
            tracing::info!(node, pod, "evicted the pod so that the node uses the new limits");
            Ok(())
        }
        Err(error) => match error.code() {
            // The pod is gone, or another pod has its name: the old process has already ended.
            Some(404 | 409) => Ok(()),
            Some(429) => Err(format!("a PodDisruptionBudget does not allow the eviction of pod {pod} yet")),
            Some(403) => Err("the operator lacks the right to evict pods; grant create on pods/eviction".into()),
            Some(code) => Err(format!("the API server rejected the eviction of pod {pod} ({code})")),
            None => {
                tracing::debug!(node, pod, error = logging::chain(&error), "cannot evict the pod");
                Err(format!("the API server did not answer the eviction of pod {pod}"))
            }
        },
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
