//! The operator's own connections: its own counters compared with those of the kernel and the API server.

use std::io::{Read as _, Seek as _, SeekFrom};

use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::{Api, api::PostParams};
use serde_json::{Value as Json, from_value, json};

use crate::support::{
    admin_api::AdminApi,
    caddy::typical,
    cluster, eventually,
    operator::{World, restless},
    replica::Replica,
};

/// Returns the length of the API server's audit log; `None` if the log is not accessible.
fn logged() -> Option<u64> {
    Some(std::fs::metadata(cluster::audit_log()?).unwrap().len())
}

/// Returns the number of completed requests of this user in the audit log, from an offset on because the log may be long.
fn answered(user: &str, from: Option<u64>) -> Option<usize> {
    let mut log = std::fs::File::open(cluster::audit_log()?).unwrap();
    log.seek(SeekFrom::Start(from?)).unwrap();
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    let lines = text.lines().filter(|line| line.contains(user)).filter_map(|line| serde_json::from_str::<Json>(line).ok());
    Some(lines.filter(|entry| entry["impersonatedUser"]["username"] == user).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_the_api_server_is_counted_as_it_and_the_kernel_count() {
    let (world, node) = (World::empty("way").await, AdminApi::start(typical()).await);
    world.apply("gw", &restless(&node, "1h")).await;
    let user = format!("operator-{}", world.namespace);
    let binding: RoleBinding = from_value(json!({
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }))
    .unwrap();
    Api::namespaced(world.client.clone(), &world.namespace).create(&PostParams::default(), &binding).await.unwrap();
    let config = cluster::config().await;
    let kubeconfig = std::env::temp_dir().join(format!("idleconn-{}-kubeconfig", world.namespace));
    let as_admin = std::fs::read_to_string(cluster::kubeconfig()).unwrap();
    std::fs::write(&kubeconfig, as_admin.replacen("token:", &format!("as: {user}, token:"), 1)).unwrap();

    let from = logged();
    // Two seconds between renewals of the Lease are a moment without requests, also where reading the audit log takes one.
    let replica = Replica::start_as(&world, "counted", ["10s", "8s", "2s"], &kubeconfig);
    replica.until_it_leads().await;
    world.until_programmed("gw").await;
    let port = config.cluster_url.port_u16().unwrap();
    // The condition must hold at a moment without requests in progress.
    eventually("all have counted the same", || async {
        let before = answered(&user, from);
        // The Lease has separate connections.
        let mut counts = [0; 4];
        for provider in ["kubernetes", "kubernetes-lease"] {
            let labels = format!(r#"protocol="https",provider="{provider}""#);
            let names = [
                format!("idleconn_pool_requests_total{{{labels}}}"),
                format!("idleconn_pool_opened_total{{{labels}}}"),
                format!(r#"idleconn_pool_connections{{{labels},state="active"}}"#),
                format!(r#"idleconn_pool_connections{{{labels},state="idle"}}"#),
            ];
            let own: [usize; 4] = replica.metrics(names.each_ref().map(String::as_str)).await?;
            counts = std::array::from_fn(|n| counts[n] + own[n]);
        }
        let [requests, opened, active, idle] = counts;
        let sockets = replica.sockets(port);
        // A watch completes when it ends; until then it is active. The audit log of an existing cluster is not accessible.
        let seen = before == answered(&user, from) && before.is_none_or(|answered| answered + active == requests);
        (seen && sockets == active + idle && active >= 1 && requests > 20 && opened < requests / 2).then_some(())
    })
    .await;
    std::fs::remove_file(kubeconfig).unwrap();
    replica.clean();
}
