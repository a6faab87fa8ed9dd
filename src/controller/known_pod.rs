//! A pod, reduced to what passes depend on. A `Pod` of k8s-openapi has room for all fields: several KiB, even if they are not set.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;

use super::reachability::{addresses_of, pod_name_in_dns, published_at};
use crate::{api::CONFIG_HASH, targets::PodFacts};

/// A pod of a namespace that is watched. If it stays equal, no pass is due.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownPod {
    /// Its name.
    pub name: Arc<str>,
    /// Its UID, which every object of an API server has.
    pub uid: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its first address, if it has one.
    pub ip: Option<IpAddr>,
    /// All its addresses, IPv4 first.
    pub addresses: Box<[IpAddr]>,
    /// Addresses of its host with the ports that it publishes there.
    pub published: Box<[(IpAddr, u16)]>,
    /// Its DNS name under its headless Service, without the cluster's domain.
    pub dns: Option<String>,
    /// Kind and name of its workload; `None` if it has no controller.
    pub workload: Option<(String, String)>,
    /// Whether it has ended or is being deleted.
    pub is_over: bool,
    /// What matters if it mounts a file.
    pub facts: PodFacts,
}

impl KnownPod {
    /// Reduces a pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        let containers = status.and_then(|status| status.container_statuses.as_ref());
        let running = |status: &ContainerStatus| Some(status.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0);
        let started: Option<Vec<Timestamp>> = containers.and_then(|all| all.iter().map(running).collect());
        Self {
            name: pod.name_any().into(),
            uid: pod.uid(),
            labels: pod.labels().clone(),
            ip: status.and_then(|status| status.pod_ip.as_ref()?.parse().ok()),
            addresses: addresses_of(pod).into(),
            published: published_at(pod).into(),
            dns: pod_name_in_dns(pod),
            workload: workload(pod),
            is_over: matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some(),
            facts: PodFacts {
                // Start of the container that started first; `None` until all have started.
                started: started.and_then(|all| all.into_iter().min()),
                hash: pod.annotations().get(CONFIG_HASH).cloned(),
            },
        }
    }
}

fn workload(pod: &Pod) -> Option<(String, String)> {
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    if owner.kind == "ReplicationController"
        && let Some(name) = pod.labels().get("deploymentconfig")
    {
        return Some(("DeploymentConfig".into(), name.clone()));
    }
    // A Deployment, or a Rollout of Argo, names its ReplicaSets after itself and the hash of the template. The pods have this
    // hash as a label.
    let of = |(label, kind): &(&str, &str)| {
        let name = owner.name.strip_suffix(&format!("-{}", pod.labels().get(*label)?))?;
        Some(((*kind).to_owned(), name.to_owned()))
    };
    let known = [("pod-template-hash", "Deployment"), ("rollouts-pod-template-hash", "Rollout")];
    let above = known.iter().find_map(of).filter(|_| owner.kind == "ReplicaSet");
    Some(above.unwrap_or_else(|| (owner.kind.clone(), owner.name.clone())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, from_value, json};

    use super::*;

    fn known(pod: Json) -> KnownPod {
        KnownPod::of(&from_value(pod).expect("a pod"))
    }

    #[test]
    fn what_keeps_a_pod_running_is_the_same_through_all_its_replica_sets() {
        for (kind, owner, labels, expected) in [
            ("ReplicaSet", "gw-aaa", json!({"pod-template-hash": "aaa"}), ("Deployment", "gw")),
            ("ReplicaSet", "gw-bbb", json!({"rollouts-pod-template-hash": "bbb"}), ("Rollout", "gw")),
            ("ReplicationController", "gw-3", json!({"deploymentconfig": "gw"}), ("DeploymentConfig", "gw")),
            ("ReplicaSet", "gw", json!({}), ("ReplicaSet", "gw")),
            ("StatefulSet", "db", json!({}), ("StatefulSet", "db")),
        ] {
            let pod = known(json!({"metadata": {"name": "p", "labels": labels, "ownerReferences": [
                {"apiVersion": "v1", "kind": kind, "name": owner, "uid": "u", "controller": true}]}}));
            let found = pod.workload.expect("an owner");
            assert_eq!((found.0.as_str(), found.1.as_str()), expected);
        }
    }

    #[test]
    fn a_pod_changes_when_its_containers_start_and_end() {
        let state = |states: &[Json]| {
            let containers: Vec<_> = states
                .iter()
                .map(|state| json!({"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0, "state": state}))
                .collect();
            known(
                json!({"metadata": {"name": "p", "uid": "u"}, "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": containers}}),
            )
        };
        let running = |at: &str| json!({"running": {"startedAt": at}});
        let (early, late) = (running("2026-11-01T00:00:00Z"), running("2026-11-02T00:00:00Z"));
        let (waiting, ended) = (json!({"waiting": {}}), json!({"terminated": {"exitCode": 1}}));
        assert_eq!(state(&[late.clone(), early.clone()]).facts.started, "2026-11-01T00:00:00Z".parse().ok());
        assert_eq!(state(&[late.clone(), waiting.clone()]).facts.started, None, "until all have started");
        let one = |with: Json| state(&[with]);
        assert_ne!(one(waiting), one(early.clone()));
        assert_ne!(one(early.clone()), one(ended));
        assert_ne!(one(early), one(late), "it was restarted");
        let mut other: Pod = from_value(json!({"metadata": {"name": "p", "uid": "u"}})).expect("a pod");
        let before = KnownPod::of(&other);
        other.metadata.resource_version = Some("2".into());
        other.annotations_mut().insert("other".into(), "x".into());
        assert_eq!(KnownPod::of(&other), before, "nothing that passes depend on");
    }
}
