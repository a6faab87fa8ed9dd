//! Operator in a separate namespace, with the actions and the view of a user.

use std::{collections::BTreeMap, time::Duration};

use idleconn_operator::{
    api::{IdleConnectionPolicy, IdleConnectionPolicyStatus},
    controller::{ControllerConfig, Operator},
    leader::Leadership,
    metrics::Metrics,
    pool::Pool,
};
use k8s_openapi::{
    api::{
        apps::v1::ControllerRevision,
        core::v1::{ConfigMap, Pod, Secret},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams},
    core::ApiResource,
    runtime::wait::{await_condition, conditions::is_deleted},
};
use serde_json::{Value as Json, json};
use tokio::task::JoinHandle;

use super::{TIMEOUT, admin_api::AdminApi, caddy::Caddy, cluster};

/// Interval at which the operator of the tests reads nodes if nothing happens.
pub const RESYNC: Duration = Duration::from_millis(500);

/// Namespace with an operator.
pub struct World {
    pub client: Client,
    pub namespace: String,
    operator: Option<JoinHandle<()>>,
}

impl World {
    /// Creates a namespace without an operator.
    pub async fn empty(about: &str) -> Self {
        let client = cluster::client().await;
        let namespace = cluster::namespace(&client, about).await;
        Self { client, namespace, operator: None }
    }

    pub async fn new(about: &str) -> Self {
        let mut world = Self::empty(about).await;
        world.start(RESYNC);
        world
    }

    pub fn settings(&self, resync: Duration) -> ControllerConfig {
        ControllerConfig {
            namespaces: vec![self.namespace.clone()],
            allow_endpoints: "127.0.0.0/8".parse().unwrap(),
            resync,
            max_flushes_per_minute: None,
            dry_run: false,
            instance: "tests".into(),
        }
    }

    pub fn start(&mut self, resync: Duration) {
        self.start_with(self.settings(resync));
    }

    pub fn start_with(&mut self, settings: ControllerConfig) {
        let operator = Operator::new(&self.client, &Pool::default(), settings, Metrics::new().unwrap(), Leadership::always());
        self.operator = Some(tokio::spawn(operator.run(std::future::pending())));
    }

    /// Kills the operator.
    pub async fn kill(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.abort();
            let _ = operator.await;
        }
    }

    pub fn policies(&self) -> Api<IdleConnectionPolicy> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies a policy, as `kubectl apply` does.
    pub async fn apply(&self, name: &str, spec: &Json) -> IdleConnectionPolicy {
        self.try_apply(name, spec).await.unwrap()
    }

    pub async fn try_apply(&self, name: &str, spec: &Json) -> kube::Result<IdleConnectionPolicy> {
        let object = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": name}, "spec": spec});
        self.policies().patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await
    }

    pub async fn get(&self, name: &str) -> IdleConnectionPolicy {
        self.policies().get(name).await.unwrap()
    }

    pub async fn status(&self, name: &str) -> IdleConnectionPolicyStatus {
        self.get(name).await.status.unwrap_or_default()
    }

    /// Waits until the status of this generation satisfies a condition, and returns the status.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        met: impl Fn(&IdleConnectionPolicyStatus) -> bool + Send,
    ) -> IdleConnectionPolicyStatus {
        let seen = |object: Option<&IdleConnectionPolicy>| {
            object.is_some_and(|object| {
                let status = object.status.clone().unwrap_or_default();
                status.observed_generation == object.metadata.generation && met(&status)
            })
        };
        let waited = tokio::time::timeout(TIMEOUT, await_condition(self.policies(), name, seen)).await;
        match waited {
            Ok(Ok(_)) => self.status(name).await,
            _ => panic!("never came true: {what}; the status is {:#?}", self.status(name).await),
        }
    }

    /// Waits for the status and reason of a condition.
    pub async fn until_condition(&self, name: &str, type_: &str, status: &str, reason: &str) -> IdleConnectionPolicyStatus {
        let what = format!("{type_}={status}/{reason}");
        self.until(name, &what, |s| find(s, type_).is_some_and(|c| c.status == status && c.reason == reason)).await
    }

    pub async fn until_programmed(&self, name: &str) -> IdleConnectionPolicyStatus {
        self.until_condition(name, "Programmed", "True", "Programmed").await
    }

    /// Deletes a policy, as `kubectl delete` does, and waits until it is gone.
    pub async fn delete(&self, name: &str) {
        let uid = self.get(name).await.uid().unwrap();
        self.policies().delete(name, &DeleteParams::default()).await.unwrap();
        let gone = tokio::time::timeout(TIMEOUT, await_condition(self.policies(), name, is_deleted(&uid))).await;
        assert!(gone.is_ok(), "never deleted: {:#?}", self.get(name).await);
    }

    /// Returns the reasons of the Events of a policy, oldest first.
    pub async fn events(&self, name: &str) -> Vec<String> {
        self.event_notes(name).await.into_iter().map(|(reason, _)| reason).collect()
    }

    pub async fn event_notes(&self, name: &str) -> Vec<(String, String)> {
        let mut events =
            Api::<Event>::namespaced(self.client.clone(), &self.namespace).list(&ListParams::default()).await.unwrap().items;
        events.retain(|event| event.regarding.as_ref().is_some_and(|r| r.name.as_deref() == Some(name)));
        events.sort_by_key(|event| event.event_time.clone());
        events.into_iter().map(|event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default())).collect()
    }

    /// Waits for an Event and returns its note.
    pub async fn until_event(&self, name: &str, reason: &str) -> String {
        super::eventually(&format!("Event {reason}"), || async {
            self.event_notes(name).await.into_iter().find(|(r, _)| r == reason).map(|(_, note)| note)
        })
        .await
    }

    /// Returns the saved originals (unit name to path to value), and the names of the objects that contain them.
    pub async fn originals(&self, name: &str) -> (BTreeMap<String, Json>, Vec<String>) {
        let api = Api::<ControllerRevision>::namespaced(self.client.clone(), &self.namespace);
        let mut list = api.list(&ListParams::default().labels(&format!("idleconn.io/policy={name}"))).await.unwrap().items;
        list.sort_by_key(|revision| revision.revision);
        let mut units = BTreeMap::new();
        let mut names = Vec::new();
        for revision in list {
            names.push(revision.name_any());
            for (id, saved) in revision.data.unwrap().0["units"].as_object().unwrap() {
                if saved.is_null() {
                    units.remove(id)
                } else {
                    units.insert(id.clone(), saved["sites"].clone())
                };
            }
        }
        (units, names)
    }

    /// Creates a running pod, as a kubelet would.
    pub async fn pod(&self, name: &str, labels: &Json, caddy: &Caddy) {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let pod =
            json!({"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "caddy", "image": "caddy"}]}});
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let status = json!({"status": {"phase": "Running", "podIP": caddy.ip, "podIPs": [{"ip": caddy.ip}]}});
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    /// Creates the service account that `kubectl idleconn nodes` uses, in the namespace of the operator.
    pub async fn viewer(&self) {
        let (namespace, name) = (&self.namespace, "idleconn-viewer");
        let objects = [
            ("", "v1", "ServiceAccount", json!({})),
            (
                "rbac.authorization.k8s.io",
                "v1",
                "Role",
                json!({"rules": [
                    {"apiGroups": ["idleconn.io"], "resources": ["idleconnectionpolicies"], "verbs": ["get", "list"]},
                ]}),
            ),
            (
                "rbac.authorization.k8s.io",
                "v1",
                "RoleBinding",
                json!({
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                    "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
                }),
            ),
        ];
        for (group, version, kind, mut object) in objects {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            object["metadata"] = json!({"name": name});
            object["apiVersion"] = json!(resource.api_version);
            object["kind"] = json!(kind);
            let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &resource);
            api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        }
    }

    pub async fn secret(&self, name: &str, data: &[(&str, &str)]) {
        let strings: BTreeMap<_, _> = data.iter().copied().collect();
        let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": strings});
        let api = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        api.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await.unwrap();
    }

    pub async fn config_map(&self, name: &str, data: &[(&str, &str)]) {
        let strings: BTreeMap<_, _> = data.iter().copied().collect();
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": strings});
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
        api.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await.unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.abort();
        }
    }
}

pub fn find<'a>(status: &'a IdleConnectionPolicyStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|c| c.type_ == type_)
}

/// Returns a target of Caddy servers at these addresses.
pub fn endpoints<'a>(admins: impl IntoIterator<Item = &'a str>) -> Json {
    json!({"type": "Caddy", "caddy": {"endpoints": admins.into_iter().collect::<Vec<_>>()}})
}

/// Returns a target of the pods with the label `app: gateway`.
pub fn gateway() -> Json {
    json!({"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "gateway"}}}})
}

/// Returns a policy with frequent decisions; the test sets the task count of the node.
pub fn restless(node: &AdminApi, relax_after: &str) -> Json {
    json!({
        "target": endpoints([node.address.as_str()]),
        "limits": {"server": {"idleTimeout": "4s"}},
        "adaptive": {
            "mode": "Enforce",
            "floor": {"server": {"idleTimeout": "1s"}},
            "signal": {"threshold": {"value": 1000}, "interval": "1s"},
            "behavior": {"tightenAfter": "1s", "relaxAfter": relax_after, "maxChangesPerHour": 60, "maxChangesPerDay": 60},
        },
    })
}
