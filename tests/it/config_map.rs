//! The target `configMap`, with a real API server and the example service as the reader of the file.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt as _;
use idleconn_operator::targets::go_duration;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value as Json, json};

use crate::support::{
    caddy::address,
    eventually,
    load::Clients,
    operator::{World, find},
    service::{Service, pod, started, target},
    slow_link::SlowLink,
};

async fn config_map(world: &World) -> Option<ConfigMap> {
    Api::namespaced(world.client.clone(), &world.namespace).get_opt("gateway-http").await.unwrap()
}

async fn text(world: &World) -> Option<String> {
    config_map(world).await?.data?.get("http.yaml").cloned()
}

fn limits(spec: &Json) -> Json {
    let mut policy = json!({"target": target("yaml")});
    policy.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    policy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_process_takes_the_file_and_says_so() {
    let world = World::new("file").await;
    let mut service = Service::start(&world, "gw-0", &[]).await;
    world.apply("gw", &limits(&json!({"limits": {"server": {"idleTimeout": "90s"}, "backend": {"maxIdleConns": 7}}}))).await;
    // The value is stored and not in effect, because the file has not reached the pod.
    let status = world.until_condition("gw", "Programmed", "True", "Programmed").await;
    assert_eq!(find(&status, "Ready").unwrap().status, "True");
    let in_effect = find(&status, "InEffect").unwrap();
    assert_eq!((in_effect.status.as_str(), in_effect.reason.as_str()), ("Unknown", "NotObserved"), "{in_effect:?}");
    assert_eq!(status.limits.as_ref().unwrap().in_effect, None, "no pod was observed to use them");
    let written = text(&world).await.unwrap();
    assert!(written.contains("IdleTimeout: 1m30s") && written.contains("MaxIdleConns: 7"), "{written}");

    service.mount(&world, "gateway-http", "http.yaml");
    let status = world.until_condition("gw", "InEffect", "True", "InEffect").await;
    assert_eq!(status.limits.as_ref().unwrap().in_effect, status.limits.as_ref().unwrap().programmed);
    assert_eq!(status.nodes.as_ref().unwrap().summary, "1/1");

    // A limit that is no longer declared is removed from the file. Deleting the policy deletes the file, and the process uses its
    // own values again.
    world.apply("gw", &limits(&json!({"limits": {"server": {"idleTimeout": "60s"}}}))).await;
    eventually("the service uses the new file", || async {
        let written = text(&world).await?;
        (written.contains("IdleTimeout: 1m") && !written.contains("MaxIdleConns")).then_some(())
    })
    .await;
    world.until_condition("gw", "InEffect", "True", "InEffect").await;
    world.delete("gw").await;
    assert!(config_map(&world).await.is_none(), "it came with the policy, and goes with it");
    eventually("the service uses its own settings", || async { service.hash().await.is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leak_costs_no_step_where_idle_connections_are_counted() {
    let world = World::new("leak").await;
    let mut service = Service::start(&world, "gw-0", &[]).await;
    service.mount(&world, "gateway-http", "http.yaml");
    let policy = |signal: Json| {
        let mut policy = limits(&json!({
            "limits": {"server": {"idleTimeout": "60s"}},
            "adaptive": {
                "mode": "Enforce",
                "floor": {"server": {"idleTimeout": "1s"}},
                "signal": {"threshold": {"value": 500}, "interval": "1s"},
                "behavior": {"tightenAfter": "1s", "relaxAfter": "1h", "maxChangesPerHour": 60, "maxChangesPerDay": 60},
            },
        }));
        policy["adaptive"]["signal"].as_object_mut().unwrap().extend(signal.as_object().unwrap().clone());
        policy
    };
    let gauge =
        |metric: &str| json!({"idleConnections": {"metric": metric, "matchLabels": {"state": "idle"}, "tasksPerConnection": 1}});
    world.apply("gw", &policy(gauge("idleconn_server_connections"))).await;
    world.until_condition("gw", "InEffect", "True", "InEffect").await;
    // Requests that never end: tasks that no limit of idle connections affects.
    let _requests = Clients::asking(service.listen(), "/?after=1h", 600, 0);
    let status = world.until_condition("gw", "TighteningEffective", "Unknown", "NotAttributable").await;
    assert_eq!((status.openness_percent, status.history.len()), (Some(100), 0), "a step was wasted: {:#?}", status.history);
    assert_eq!(find(&status, "HighTaskCount").unwrap().status, "True");
    assert!(status.tasks.unwrap().idle_connections.is_some(), "what a change would close is known");
    assert!(world.until_event("gw", "Ineffective").await.starts_with("Pooled connections account for at most"));

    // Without the gauge the number of idle connections is unknown, and adaptive control tries to tighten. A missing gauge is
    // named in the status and does not count as 0.
    world.apply("gw", &policy(gauge("no_such_gauge"))).await;
    let status = world.until_condition("gw", "MetricsAvailable", "True", "IdleConnectionsMissing").await;
    let message = &find(&status, "MetricsAvailable").unwrap().message;
    assert!(message.contains("gw-0 has no gauge of idle connections"), "{message}");
    assert_eq!(status.tasks.unwrap().idle_connections, None, "a missing gauge is not 0");
    world.until("gw", "a step is tried", |s| s.openness_percent.is_some_and(|open| open < 100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_idle_connections_are_tightened_away_through_the_file() {
    let world = World::new("file-loop").await;
    let mut service = Service::start(&world, "gw-0", &[]).await;
    service.mount(&world, "gateway-http", "http.yaml");
    let policy = limits(&json!({
        "limits": {"server": {"idleTimeout": "4s"}},
        "adaptive": {
            "mode": "Enforce",
            "floor": {"server": {"idleTimeout": "1s"}},
            "signal": {"threshold": {"value": 2000}, "interval": "1s"},
            "behavior": {"tightenAfter": "1s", "relaxAfter": "1h", "maxChangesPerHour": 60, "maxChangesPerDay": 60},
        },
    }));
    world.apply("gw", &policy).await;
    world.until_condition("gw", "InEffect", "True", "InEffect").await;
    let first = service.hash().await;
    let started = service.metric("process_start_time_seconds").await;
    let clients = Clients::start(service.listen(), 3000, 750);
    eventually("3,000 connections are idle", || async {
        let idle = service.metric("idleconn_server_connections{state=\"idle\"}").await;
        (idle > 2500.0 && service.metric("go_goroutines").await > 2500.0).then_some(())
    })
    .await;
    world.until("gw", "tightened", |s| s.openness_percent.is_some_and(|u| u < 100)).await;
    let status = world.until_condition("gw", "HighTaskCount", "False", "UnderThreshold").await;
    assert!(service.metric("go_goroutines").await < 2000.0, "the real count is under the threshold");
    eventually("the clients still come", || async { (clients.open() > 300).then_some(()) }).await;
    assert_ne!(service.hash().await, first, "by another file");
    assert!((service.metric("process_start_time_seconds").await - started).abs() < 0.001, "and by the same process");
    assert!(!status.history.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_owns_is_left_alone_and_named() {
    let world = World::new("owned").await;
    pod(&world, "gw-0", &json!({"app": "gateway"}), &json!({}), "127.0.0.9").await;
    let maps = Api::<ConfigMap>::namespaced(world.client.clone(), &world.namespace);
    let put = |manager: &'static str, object: Json| {
        let maps = maps.clone();
        async move {
            let whole = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "gateway-http"}});
            let mut whole = whole.as_object().unwrap().clone();
            for (key, value) in object.as_object().unwrap() {
                if key == "metadata" {
                    whole["metadata"].as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
                } else {
                    whole.insert(key.clone(), value.clone());
                }
            }
            maps.patch("gateway-http", &PatchParams::apply(manager).force(), &Patch::Apply(Json::Object(whole))).await.unwrap();
        }
    };
    let policy = limits(&json!({"limits": {"server": {"idleTimeout": "90s"}}}));
    for (manager, object, words) in [
        ("helm", json!({"data": {"http.yaml": "mine"}}), "has a key http.yaml owned by the field manager helm"),
        (
            "helm",
            json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}, "data": {"other": "x"}}),
            "belongs to Helm",
        ),
        (
            "argocd-controller",
            json!({"metadata": {"annotations": {"argocd.argoproj.io/tracking-id": "a:b"}}, "data": {"other": "x"}}),
            "belongs to Argo CD",
        ),
        ("user", json!({"immutable": true, "data": {"other": "x"}}), "is immutable"),
        ("user", json!({"binaryData": {"http.yaml": "AAEC"}}), "binary data"),
    ] {
        put(manager, object).await;
        let before = maps.get("gateway-http").await.unwrap();
        world.apply("gw", &policy).await;
        let status = world.until_condition("gw", "Ready", "False", "Conflicted").await;
        let message = &find(&status, "Ready").unwrap().message;
        assert!(message.contains("ConfigMap gateway-http") && message.contains(words), "{message}");
        assert_eq!(find(&status, "Accepted").unwrap().status, "False");
        assert_eq!(find(&status, "Stalled").unwrap().status, "True");
        assert_eq!(maps.get("gateway-http").await.unwrap(), before, "nothing was overwritten");
        world.delete("gw").await;
        assert_eq!(maps.get("gateway-http").await.unwrap(), before, "and nothing was taken away");
        maps.delete("gateway-http", &DeleteParams::default()).await.unwrap();
    }

    // Other keys stay. A change of the policy's own key by another client is a conflict, and the operator does not overwrite it.
    put("user", json!({"data": {"other": "theirs"}})).await;
    world.apply("gw", &policy).await;
    world.until_programmed("gw").await;
    let hand = json!({"data": {"http.yaml": "by hand"}});
    maps.patch(
        "gateway-http",
        &PatchParams { field_manager: Some("kubectl-edit".into()), ..PatchParams::default() },
        &Patch::Merge(hand),
    )
    .await
    .unwrap();
    let status = world.until_condition("gw", "Ready", "False", "Conflicted").await;
    assert!(find(&status, "Ready").unwrap().message.contains("kubectl-edit"), "{:?}", find(&status, "Ready"));
    let data = maps.get("gateway-http").await.unwrap().data.unwrap();
    assert_eq!(data, BTreeMap::from([("http.yaml".into(), "by hand".into()), ("other".into(), "theirs".into())]));
    world.delete("gw").await;
    assert_eq!(maps.get("gateway-http").await.unwrap().data.unwrap(), data, "what a hand wrote is not ours to remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_is_full_takes_nothing_more() {
    let world = World::new("full").await;
    pod(&world, "gw-0", &json!({"app": "gateway"}), &json!({}), "127.0.0.9").await;
    let maps = Api::<ConfigMap>::namespaced(world.client.clone(), &world.namespace);
    let full = json!({"metadata": {"name": "gateway-http"}, "data": {"other": "x".repeat(1024 * 1024 - 5)}});
    maps.create(&PostParams::default(), &serde_json::from_value(full).unwrap()).await.unwrap();
    world.apply("gw", &limits(&json!({"limits": {"server": {"idleTimeout": "90s"}}}))).await;
    let status = world.until_condition("gw", "Stalled", "True", "Rejected").await;
    assert!(find(&status, "Stalled").unwrap().message.contains("larger than 1 MiB"), "{:?}", find(&status, "Stalled"));
    assert_eq!(text(&world).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selector_that_matches_nothing_or_two_workloads_writes_nothing() {
    let world = World::new("selector").await;
    world.apply("gw", &limits(&json!({"limits": {"server": {"idleTimeout": "90s"}}}))).await;
    world.until_condition("gw", "Ready", "False", "TargetNotFound").await;
    assert!(config_map(&world).await.is_none());
    let owned = |kind: &str, name: &str| json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": true}]});
    let replica = |hash: &str| json!({"app": "gateway", "pod-template-hash": hash});
    // Two ReplicaSets of one Deployment are one workload, as during a rollout. Their pods wait for the file.
    pod(&world, "gw-0", &replica("aaa"), &owned("ReplicaSet", "gateway-aaa"), "").await;
    pod(&world, "gw-1", &replica("bbb"), &owned("ReplicaSet", "gateway-bbb"), "").await;
    world.until_programmed("gw").await;
    assert!(text(&world).await.unwrap().contains("1m30s"), "a pod may not start without its file");
    pod(&world, "db-0", &json!({"app": "gateway"}), &owned("StatefulSet", "db"), "127.0.0.9").await;
    let status = world.until_condition("gw", "Accepted", "False", "Invalid").await;
    let message = &find(&status, "Accepted").unwrap().message;
    assert!(message.contains("Deployment gateway") && message.contains("StatefulSet db"), "{message}");
    world.apply("gw", &limits(&json!({"limits": {"server": {"idleTimeout": "30s"}}}))).await;
    world.until_condition("gw", "Accepted", "False", "Invalid").await;
    assert!(text(&world).await.unwrap().contains("1m30s"), "nothing is written while it is not clear for whom");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_says_nothing_counts_when_it_has_started_since() {
    let world = World::new("silent").await;
    pod(&world, "gw-0", &json!({"app": "gateway"}), &json!({}), "").await;
    world.apply("gw", &limits(&json!({"limits": {"server": {"idleTimeout": "90s"}}}))).await;
    world.until_programmed("gw").await;
    world.until_condition("gw", "InEffect", "Unknown", "NotObserved").await;
    started(&world, "gw-0", "", &(jiff::Timestamp::now() + jiff::SignedDuration::from_secs(60)).to_string()).await;
    world.until_condition("gw", "InEffect", "True", "InEffect").await;
    Api::<Pod>::namespaced(world.client.clone(), &world.namespace).delete("gw-0", &DeleteParams::default()).await.unwrap();
    world.until_condition("gw", "Ready", "False", "TargetNotFound").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_without_a_place_in_the_format_is_named() {
    let world = World::new("formats").await;
    pod(&world, "gw-0", &json!({"app": "gateway"}), &json!({}), "").await;
    let spec = json!({"target": target("thanos-objstore"), "preset": "HighTraffic", "limits": {"server": {"idleTimeout": "40s"}, "backend": {"maxConnLifetime": "10m"}}});
    world.apply("gw", &spec).await;
    let status = world.until_programmed("gw").await;
    assert_eq!(status.unsupported, ["server.idleTimeout", "backend.maxConnLifetime"]);
    let written = text(&world).await.unwrap();
    assert!(written.contains("max_conns_per_host: 100") && !written.contains("40s"), "{written}");
    // The same limits in another format give another file.
    world.apply("gw", &json!({"target": target("json"), "preset": "HighTraffic"})).await;
    eventually("the key is JSON", || async {
        let written: Json = serde_json::from_str(&text(&world).await?).ok()?;
        (written["backend"]["MaxConnsPerHost"] == 100).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_has_limits_of_its_own() {
    let world = World::new("provider").await;
    pod(&world, "gw-0", &json!({"app": "gateway"}), &json!({}), "").await;
    let spec = |most: u32| {
        json!({
            "target": target("http-connection-pool"),
            "limits": {"backend": {"maxConnsPerHost": 100, "maxIdleConnsPerHost": 20}},
            "overrides": [{"name": "a", "provider": "anthropic", "limits": {"backend": {"maxConnsPerHost": most}}}],
        })
    };
    for most in [20, 30] {
        world.apply("gw", &spec(most)).await;
        eventually("the file has the provider's own", || async {
            let pool: Json = serde_json::from_str(&text(&world).await?).ok()?;
            (pool["global"]["maxSockets"] == 100 && pool["providers"]["anthropic"]["maxSockets"] == most).then_some(())
        })
        .await;
        world.until_programmed("gw").await;
    }
    world.apply("gw", &json!({"target": target("http-connection-pool"), "limits": spec(1)["limits"]})).await;
    eventually("the provider is gone", || async {
        let pool: Json = serde_json::from_str(&text(&world).await?).ok()?;
        (pool["providers"] == json!({})).then_some(())
    })
    .await;
}

/// Creates a Deployment of one pod, as its controllers would.
async fn deployment(world: &World) -> Api<Deployment> {
    let deployments = Api::<Deployment>::namespaced(world.client.clone(), &world.namespace);
    let labels = json!({"app": "gateway"});
    let object = json!({
        "metadata": {"name": "gateway"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels}, "spec": {"containers": [{"name": "service", "image": "service"}]},
        }},
    });
    deployments.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    rolled_out(&deployments).await;
    deployments
}

/// Sets the status that the Deployment controller reports when all pods have the current template.
async fn rolled_out(deployments: &Api<Deployment>) {
    let generation = deployments.get("gateway").await.unwrap().metadata.generation;
    let status = json!({"status": {"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}});
    deployments.patch_status("gateway", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// Waits for a changed hash in the pod template of the Deployment, and returns it.
async fn told(deployments: &Api<Deployment>, before: &str) -> String {
    eventually("the pod template has another hash", || async {
        let template = deployments.get("gateway").await.ok()?.spec?.template;
        template.metadata?.annotations?.get("idleconn.io/config-hash").filter(|hash| *hash != before).cloned()
    })
    .await
}

/// Replaces the pod, as the Deployment controller and a kubelet do.
async fn replace(world: &World, service: &mut Service, old: &str, new: &str, hash: &str) {
    Api::<Pod>::namespaced(world.client.clone(), &world.namespace)
        .delete(old, &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    service.restart().await;
    let mut metadata = owner("aaa");
    metadata["annotations"] = json!({"idleconn.io/config-hash": hash});
    pod(world, new, &json!({"app": "gateway", "pod-template-hash": "aaa"}), &metadata, &service.ip.to_string()).await;
}

fn owner(hash: &str) -> Json {
    let name = format!("gateway-{hash}");
    json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": "u", "controller": true}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_reads_its_file_once_is_rolled_out_once_for_a_change() {
    let world = World::new("rolling").await;
    let deployments = deployment(&world).await;
    let mut service = Service::alone(&["-once"]).await;
    service.mount(&world, "gateway-http", "http.yaml");
    pod(&world, "gw-0", &json!({"app": "gateway", "pod-template-hash": "aaa"}), &owner("aaa"), &service.ip.to_string()).await;
    let policy = limits(&json!({
        "limits": {"server": {"idleTimeout": "4s"}},
        "adaptive": {
            "mode": "Enforce",
            "floor": {"server": {"idleTimeout": "1s"}},
            "signal": {"threshold": {"value": 2000}, "interval": "1s"},
            "behavior": {"tightenAfter": "1s", "relaxAfter": "1h", "maxChangesPerHour": 60, "maxChangesPerDay": 60},
        },
        "restart": {"policy": "Rolling", "for": "Any", "maxPerDay": 2},
    }));
    world.apply("gw", &policy).await;
    let first = told(&deployments, "").await;
    let status = world.until_condition("gw", "InEffect", "False", "RollingOut").await;
    assert!(find(&status, "InEffect").unwrap().message.contains("Deployment gateway"), "{:?}", find(&status, "InEffect"));
    assert_eq!(service.hash().await, "", "it has not looked again");
    replace(&world, &mut service, "gw-0", "gw-1", &first).await;
    assert_eq!(service.hash().await, first, "the hash is that of the file");
    rolled_out(&deployments).await;
    world.until_condition("gw", "InEffect", "True", "InEffect").await;
    world.until_event("gw", "NodeRestarted").await;
    let generation = deployments.get("gateway").await.unwrap().metadata.generation;

    let clients = Clients::start(service.listen(), 3000, 750);
    world.until("gw", "tightened", |s| s.openness_percent.is_some_and(|u| u < 100)).await;
    assert!(service.metric("go_goroutines").await > 2000.0, "nothing has changed before a restart");
    let second = told(&deployments, &first).await;
    let now = deployments.get("gateway").await.unwrap().metadata.generation;
    assert_eq!(now.zip(generation).map(|(now, before)| now - before), Some(1), "told once");
    replace(&world, &mut service, "gw-1", "gw-2", &second).await;
    rolled_out(&deployments).await;
    world.until_condition("gw", "InEffect", "True", "InEffect").await;
    world.until_condition("gw", "HighTaskCount", "False", "UnderThreshold").await;
    let drop_all = clients.open();
    assert!(service.metric("go_goroutines").await < 2000.0, "with {drop_all} clients");
    let control = world.status("gw").await.control.unwrap();
    assert_eq!((control.restart.begun.len(), control.restart.nodes.len()), (2, 0));

    // The two restarts of the day are used up.
    let mut more = policy.clone();
    more["limits"]["server"]["readHeaderTimeout"] = json!("7s");
    world.apply("gw", &more).await;
    let status = world.until_condition("gw", "InEffect", "False", "RestartRequired").await;
    assert!(find(&status, "InEffect").unwrap().message.contains("maxPerDay"), "{:?}", find(&status, "InEffect"));
    let hash = deployments.get("gateway").await.unwrap().spec.unwrap().template.metadata.unwrap().annotations.unwrap();
    assert_eq!(hash["idleconn.io/config-hash"], second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_and_a_daemon_set_are_told_in_the_same_way() {
    let rolled = json!({
        "StatefulSet": {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1},
        "DaemonSet": {
            "currentNumberScheduled": 1, "desiredNumberScheduled": 1, "updatedNumberScheduled": 1, "numberAvailable": 1,
            "numberMisscheduled": 0, "numberReady": 1,
        },
    });
    for (kind, status) in rolled.as_object().unwrap() {
        let world = World::new(&kind.to_lowercase()).await;
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", kind));
        let workloads = Api::<DynamicObject>::namespaced_with(world.client.clone(), &world.namespace, &resource);
        let labels = json!({"app": "gateway"});
        let object = json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "gateway"},
            "spec": {"selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels}, "spec": {"containers": [{"name": "service", "image": "service"}]},
            }},
        });
        workloads.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        let complete = || async {
            let mut status = status.clone();
            status["observedGeneration"] = workloads.get("gateway").await.unwrap().metadata.generation.into();
            workloads.patch_status("gateway", &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await.unwrap();
        };
        let owner = json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "gateway", "uid": "u", "controller": true}]});
        pod(&world, "gw-0", &labels, &owner, "").await;
        world.apply("gw", &limits(&json!({"limits": {"server": {"idleTimeout": "9s"}}, "restart": {"policy": "Rolling"}}))).await;
        // The operator starts no rollout while another rollout of the Deployment is not complete.
        let status = world.until_condition("gw", "InEffect", "False", "RestartRequired").await;
        assert!(
            find(&status, "InEffect").unwrap().message.contains(&format!("{kind} gateway")),
            "{:?}",
            find(&status, "InEffect")
        );
        complete().await;
        let hash = eventually("the template has a hash", || async {
            let template = workloads.get("gateway").await.ok()?.data["spec"]["template"]["metadata"]["annotations"].clone();
            template["idleconn.io/config-hash"].as_str().map(str::to_owned)
        })
        .await;
        world.until_condition("gw", "InEffect", "False", "RollingOut").await;
        Api::<Pod>::namespaced(world.client.clone(), &world.namespace)
            .delete("gw-0", &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
        let mut told = owner.clone();
        told["annotations"] = json!({"idleconn.io/config-hash": hash});
        pod(&world, "gw-1", &labels, &told, "").await;
        complete().await;
        world.until_condition("gw", "InEffect", "True", "InEffect").await;
    }
}

/// Sends a hundred concurrent requests through the client's own pool. Returns the number of lost requests.
async fn wave(client: &reqwest::Client, front: SocketAddr) -> usize {
    let asked = (0..100).map(|_| async {
        let answer = client.post(format!("http://{front}/peer")).send().await.unwrap();
        usize::from(answer.status() != 200)
    });
    futures::future::join_all(asked).await.into_iter().sum()
}

/// Returns a client without a pool, so that no request is lost between the test and the service.
fn without_pool() -> reqwest::Client {
    reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap()
}

const DELAY: Duration = Duration::from_millis(20);

async fn pair(arguments: &[&str]) -> (Service, Service, SlowLink) {
    let back = Service::alone(&[]).await;
    let link = SlowLink::start(SocketAddr::from((address(), 0)), back.listen(), DELAY).await;
    let peer = format!("-peer=http://{}/", link.address);
    let mut all = vec![peer.as_str()];
    all.extend(arguments);
    let front = Service::alone(&all).await;
    (front, back, link)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_keeps_connections_longer_than_its_server_loses_requests() {
    let (front, back, _link) = pair(&[]).await;
    for service in [&front, &back] {
        service
            .write("server: {IdleTimeout: 1s}\nintraCluster: {IdleConnTimeout: 5s, MaxIdleConns: 0, MaxIdleConnsPerHost: 200}\n");
        eventually("the file is in use", || async { (!service.hash().await.is_empty()).then_some(()) }).await;
    }
    let client = without_pool();
    let mut lost = 0;
    for n in 0..10 {
        lost += wave(&client, front.listen()).await;
        // The idle times are close to the idle timeout of the server.
        tokio::time::sleep(Duration::from_millis(930 + 10 * n)).await;
    }
    assert!(lost > 0, "of 1,000 requests none was lost");
    println!("the client's pool outlives the server's idle time-out: {lost} of 1,000 requests lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_policys_order_and_margin_none_is_lost_while_it_is_being_changed() {
    let world = World::new("pair").await;
    let (mut front, mut back, _link) = pair(&[]).await;
    for (name, service) in [("gw-0", &mut front), ("gw-1", &mut back)] {
        service.mount(&world, "gateway-http", "http.yaml");
        pod(&world, name, &json!({"app": "gateway"}), &json!({}), &service.ip.to_string()).await;
    }
    let (short, long) = ((200, 1200), (1000, 2000));
    let policy = |(client, server): (u32, u32)| {
        limits(&json!({"limits": {
            "server": {"idleTimeout": format!("{server}ms")},
            "intraCluster": {"idleConnTimeout": format!("{client}ms"), "maxIdleConnsPerHost": 200},
        }}))
    };
    world.apply("gw", &policy(long)).await;
    world.until_condition("gw", "InEffect", "True", "InEffect").await;
    // All texts that the pods could have read, in order.
    let texts = Arc::new(Mutex::new(Vec::new()));
    let maps = Api::<ConfigMap>::namespaced(world.client.clone(), &world.namespace);
    let seen = texts.clone();
    let watch =
        tokio::spawn(watcher(maps, watcher::Config::default()).default_backoff().applied_objects().for_each(move |object| {
            if let Some(text) = object.ok().and_then(|object| object.data?.get("http.yaml").cloned()) {
                seen.lock().unwrap().push(text);
            }
            std::future::ready(())
        }));

    let client = without_pool();
    let mut lost = 0;
    for (n, gap) in [190, 990, 210, 1010, 1190, 150, 1990, 200, 1000, 1210].into_iter().enumerate() {
        world.apply("gw", &policy(if n % 2 == 0 { short } else { long })).await;
        lost += wave(&client, front.listen()).await;
        tokio::time::sleep(Duration::from_millis(gap)).await;
    }
    assert_eq!(lost, 0, "of 1,000 requests");
    world.until_condition("gw", "InEffect", "True", "InEffect").await;
    watch.abort();
    let times = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap().trim().to_owned();
        go_duration::parse(&line).unwrap()
    };
    let pairs: Vec<_> =
        texts.lock().unwrap().iter().map(|text| (times(text, "IdleConnTimeout:"), times(text, "IdleTimeout:"))).collect();
    let wide = (Duration::from_millis(200), Duration::from_secs(2));
    assert!(pairs.contains(&wide), "both ways lead over the widest distance: {pairs:?}");
    assert!(pairs.iter().all(|(client, server)| *client + Duration::from_secs(1) <= *server), "{pairs:?}");
}
