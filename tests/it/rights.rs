//! Operator with missing rights: the affected policy reports it, and no other policy is affected.

use idleconn_operator::{
    controller::{Operator, client},
    leader::Leadership,
    metrics::Metrics,
    pool::Pool,
};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{Api, api::PostParams};
use serde_json::{Value as Json, from_value, json};

use crate::support::{
    admin_api::AdminApi,
    caddy::typical,
    cluster,
    operator::{RESYNC, World, endpoints, find, gateway},
};

const USER: &str = "limited-operator";

/// Grants the rights of the chart in the namespace of the world, except those in `without`.
async fn grant(world: &World, without: &[&str]) {
    let all = [
        ("idleconn.io", "idleconnectionpolicies", &["get", "list", "watch", "patch"][..]),
        ("idleconn.io", "idleconnectionpolicies/status", &["patch"]),
        ("events.k8s.io", "events", &["get", "create"]),
        ("apps", "controllerrevisions", &["list", "create", "delete"]),
        ("", "pods", &["get", "list", "watch"]),
        ("", "services", &["get"]),
        ("discovery.k8s.io", "endpointslices", &["list"]),
    ];
    let rules: Vec<Json> = all
        .iter()
        .filter(|(_, resource, _)| !without.contains(resource))
        .map(|(group, resource, verbs)| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs}))
        .collect();
    let role: Role = from_value(json!({"metadata": {"name": USER}, "rules": rules})).unwrap();
    let binding: RoleBinding = from_value(json!({
        "metadata": {"name": USER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": USER},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}],
    }))
    .unwrap();
    Api::namespaced(world.client.clone(), &world.namespace).create(&PostParams::default(), &role).await.unwrap();
    let _ = Api::namespaced(world.client.clone(), &world.namespace).create(&PostParams::default(), &binding).await;
}

/// Starts one operator with the rights of that user in all these namespaces.
async fn operate(worlds: &[&World]) -> tokio::task::JoinHandle<()> {
    let mut config = cluster::config().await;
    config.auth_info.impersonate = Some(USER.to_owned());
    let mut settings = worlds[0].settings(RESYNC);
    settings.namespaces = worlds.iter().map(|world| world.namespace.clone()).collect();
    let pool = Pool::default();
    let client = client(&config, &pool).unwrap();
    let operator = Operator::new(&client, &pool, settings, Metrics::new().unwrap(), Leadership::always());
    tokio::spawn(operator.run(std::future::pending()))
}

fn limits(target: &Json) -> Json {
    json!({"target": target, "limits": {"server": {"idleTimeout": "30s"}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_right_in_one_namespace_its_policies_alone_are_forbidden_until_it_is_given() {
    let (full, partial, unseen) = (World::empty("rights").await, World::empty("rights").await, World::empty("rights").await);
    let node = AdminApi::start(typical()).await;
    grant(&full, &[]).await;
    grant(&partial, &["pods", "services"]).await;
    full.apply("gw", &limits(&endpoints([node.address.as_str()]))).await;
    partial.apply("pods", &limits(&gateway())).await;
    partial.apply("service", &limits(&json!({"type": "Caddy", "caddy": {"service": {"name": "gw", "port": 2019}}}))).await;
    unseen.apply("unseen", &limits(&gateway())).await;
    let operator = operate(&[&full, &partial, &unseen]).await;

    full.until_programmed("gw").await;
    for (name, what) in [("pods", "list and watch pods"), ("service", "get Service gw")] {
        let status = partial.until_condition(name, "Ready", "False", "Forbidden").await;
        let message = &find(&status, "Ready").unwrap().message;
        assert_eq!(message, &format!("The operator lacks the right to {what}; grant it in this namespace"));
        assert_eq!(find(&status, "Stalled").map(|c| c.reason.as_str()), Some("Forbidden"));
    }
    let status = unseen.status("unseen").await;
    assert_eq!(status.observed_generation, Some(-1), "nothing is said where nothing may be seen");

    // With the right granted, the operator continues without a restart.
    Api::<Role>::namespaced(partial.client.clone(), &partial.namespace)
        .delete(USER, &kube::api::DeleteParams::default())
        .await
        .unwrap();
    grant(&partial, &[]).await;
    partial.until_condition("pods", "Ready", "False", "TargetNotFound").await;
    operator.abort();
}
