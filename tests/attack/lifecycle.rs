//! Writes, status and restore of a policy while a node, a tenant or a clock interferes.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    http::{Method, Uri},
};
use idleconn_operator::{
    api::{IdleConnectionPolicy, MANAGER},
    decide::hash::fnv1a,
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod, events::v1::Event};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::ApiResource,
};
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;

use super::{ais, answers, caddies};
use crate::support::{
    admin_api::AdminApi,
    caddy,
    caddy::typical,
    eventually,
    hostile::{Hostile, Process, aistore},
    operator::{World, find},
    service::{pod, target},
};

/// AIStore that stores each value four seconds after it has received it.
async fn slow_to_store() -> (String, Arc<Mutex<String>>, Arc<AtomicUsize>) {
    let stored = Arc::new(Mutex::new("6s".to_owned()));
    let begun = Arc::new(AtomicUsize::new(0));
    let script = aistore("slow-to-store", 0, Duration::ZERO, "10s", "1");
    let (held, puts) = (stored.clone(), begun.clone());
    let answer = move |method: Method, uri: Uri, body: Bytes| async move {
        if method == Method::PUT {
            puts.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(4)).await;
            let text = String::from_utf8(body.to_vec()).unwrap();
            let value = ["20s", "6s"].into_iter().find(|value| text.contains(&format!("\"{value}\"")));
            value.unwrap_or_else(|| panic!("{text}")).clone_into(&mut held.lock().unwrap());
            return Vec::new();
        }
        let (_, _, body) = script(uri.path_and_query().unwrap().as_str());
        let value = format!("\"{}\"", held.lock().unwrap());
        String::from_utf8(body).unwrap().replace("\"6s\"", &value).into_bytes()
    };
    let listener = TcpListener::bind((caddy::address(), 0)).await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    (address, stored, begun)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_still_under_way_does_not_outlive_the_policy() {
    let world = World::empty("late").await;
    let _operator = Process::start(&[&world], &[]).await;
    let (address, stored, begun) = slow_to_store().await;
    world.apply("ais", &ais(&address)).await;
    eventually("the write is under way", || async { (begun.load(Ordering::SeqCst) == 1).then_some(()) }).await;
    world.delete("ais").await;
    assert_eq!(begun.load(Ordering::SeqCst), 2, "the restore was written after the write");
    assert_eq!(*stored.lock().unwrap(), "6s");
    // The delay is longer than any write.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((stored.lock().unwrap().as_str(), begun.load(Ordering::SeqCst)), ("6s", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_of_a_workload_that_is_going_have_no_rollout() {
    let world = World::empty("rollout").await;
    let _operator = Process::start(&[&world], &[]).await;
    let deployments = Api::<Deployment>::namespaced(world.client.clone(), &world.namespace);
    let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    for name in ["old", "new"] {
        let labels = json!({"app": "gateway"});
        let object = json!({"metadata": {"name": name}, "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels}, "spec": {"containers": [{"name": "service", "image": "service"}]}}}});
        deployments.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        let generation = deployments.get(name).await.unwrap().metadata.generation;
        let status = json!({"status": {"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}});
        deployments.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
    let of = |workload: &str| {
        json!({"finalizers": ["example.com/hold"], "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{workload}-aaa"), "uid": "u", "controller": true}]})
    };
    let labels = json!({"app": "gateway", "pod-template-hash": "aaa"});
    for n in 0..6 {
        pod(&world, &format!("old-{n}"), &labels, &of("old"), "").await;
        pods.delete(&format!("old-{n}"), &DeleteParams::default().grace_period(0)).await.unwrap();
    }
    pod(&world, "new-0", &labels, &of("new"), "").await;
    let spec = json!({"target": target("yaml"), "limits": {"server": {"idleTimeout": "9s"}}, "restart": {"policy": "Rolling"}});
    world.apply("gw", &spec).await;
    let hash = |name: &'static str| {
        let deployments = deployments.clone();
        async move {
            let template = deployments.get(name).await.unwrap().spec.unwrap().template;
            template.metadata.unwrap().annotations.unwrap_or_default().get("idleconn.io/config-hash").cloned()
        }
    };
    eventually("a workload gets its hash", || async { hash("new").await.or(hash("old").await) }).await;
    assert!(hash("new").await.is_some() && hash("old").await.is_none());
    for name in (0..6).map(|n| format!("old-{n}")).chain(["new-0".to_owned()]) {
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        pods.patch(&name, &PatchParams::default(), &free).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_404_or_400_is_no_caddy() {
    let world = World::empty("nocaddy").await;
    let _operator = Process::start(&[&world], &[]).await;
    for (name, status, body) in
        [("missing", 404, "404 page not found"), ("bad", 400, "{\"error\":\"no\"}"), ("page", 200, "<html>")]
    {
        let server = Hostile::start(Arc::new(move |_| (Duration::ZERO, status, body.as_bytes().to_vec()))).await;
        world.apply(name, &caddies([server.address.as_str()])).await;
        let status = world.until(name, "looked at", |status| find(status, "Ready").is_some()).await;
        for condition in ["Ready", "Programmed", "InEffect"] {
            assert!(find(&status, condition).is_none_or(|c| c.status != "True"), "{name}: {:?}", find(&status, condition));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_cannot_be_read_stands_in_the_way_of_nothing() {
    let world = World::empty("unreadable").await;
    let operator = Process::start(&[&world], &[]).await;
    let node = AdminApi::start(typical()).await;
    world.apply("gw", &caddies([node.address.as_str()])).await;
    world.until_programmed("gw").await;
    drop(operator);
    let forged = json!({"status": {"control": {"contended": {"server.idleTimeout": [1]}, "changed": {"server.mood": 7}}}});
    let resource = ApiResource::erase::<IdleConnectionPolicy>(&());
    let policies = Api::<DynamicObject>::namespaced_with(world.client.clone(), &world.namespace, &resource);
    policies.patch_status("gw", &PatchParams::default(), &Patch::Merge(forged)).await.unwrap();
    let _operator = Process::start(&[&world], &[]).await;
    let edit = Patch::Merge(json!({"spec": {"limits": {"server": {"idleTimeout": "20s"}}}}));
    policies.patch("gw", &PatchParams::default(), &edit).await.unwrap();
    eventually("the edit is written", || async { (node.servers()["web"]["idle_timeout"] == "20s").then_some(()) }).await;
    eventually("the status can be read again", || async {
        let text = serde_json::to_string(&policies.get("gw").await.unwrap().data["status"]).unwrap();
        (text.contains("Programmed") && !text.contains("mood")).then_some(())
    })
    .await;
    world.delete("gw").await;
    assert_eq!(node.servers()["web"]["idle_timeout"], "5m");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_selectors_cost_one_watch() {
    let world = World::empty("selectors").await;
    let operator = Process::start(&[&world], &[]).await;
    for n in 0..40 {
        let selector = json!({"matchLabels": {"app": format!("gateway-{n}")}});
        let spec =
            json!({"target": {"type": "Caddy", "caddy": {"selector": selector}}, "limits": {"server": {"idleTimeout": "30s"}}});
        world.apply(&format!("p-{n}"), &spec).await;
    }
    for n in 0..40 {
        world.until_condition(&format!("p-{n}"), "Ready", "False", "TargetNotFound").await;
    }
    // The connections are watches of policies, of the CRD and of pods, and an occasional request.
    eventually("few connections are in use", || async {
        let active =
            operator.metric("idleconn_pool_connections{protocol=\"http\",provider=\"kubernetes\",state=\"active\"}").await;
        let active = match active {
            Some(active) => Some(active),
            None => {
                operator.metric("idleconn_pool_connections{protocol=\"https\",provider=\"kubernetes\",state=\"active\"}").await
            }
        };
        active.filter(|active| *active <= 8.0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_samples_stop_is_asked_no_more_often_for_it() {
    let world = World::empty("samples").await;
    let _operator = Process::start(&[&world], &[]).await;
    let (broken, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let node = Hostile::start(Arc::new({
        let (broken, asked) = (broken.clone(), asked.clone());
        move |path| {
            if !path.starts_with("/metrics") {
                return (Duration::ZERO, 200, br#"{"web":{"idle_timeout":"30s"}}"#.to_vec());
            }
            asked.fetch_add(1, Ordering::SeqCst);
            let page =
                if broken.load(Ordering::SeqCst) { "# nothing\n" } else { "# TYPE go_goroutines gauge\ngo_goroutines 5000\n" };
            (Duration::ZERO, 200, page.as_bytes().to_vec())
        }
    }))
    .await;
    let mut spec = caddies([node.address.as_str()]);
    spec["adaptive"] = json!({
        "mode": "Enforce", "floor": {"server": {"idleTimeout": "5s"}}, "signal": {"threshold": {"value": 1000}, "interval": "5s"},
        "behavior": {"tightenAfter": "8s"},
    });
    world.apply("gw", &spec).await;
    // Two samples have arrived, and the window ends in less than one interval.
    eventually("it is sampled twice", || async { (asked.load(Ordering::SeqCst) >= 2).then_some(()) }).await;
    broken.store(true, Ordering::SeqCst);
    world.until_condition("gw", "MetricsAvailable", "False", "NoSeries").await;
    let before = asked.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(16)).await;
    let more = asked.load(Ordering::SeqCst) - before;
    assert!((2..=4).contains(&more), "asked {more} times in 16 s at an interval of 5 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_many_bytes_fit_into_status_and_events() {
    let world = World::empty("bytes").await;
    let _operator = Process::start(&[&world], &[]).await;
    let name = "é".repeat(5_000);
    let script = aistore("bytes", 0, Duration::ZERO, "10s", "1");
    let server = Hostile::start(Arc::new(move |path| {
        let (late, status, body) = script(path);
        let body = String::from_utf8(body).unwrap();
        if path.contains("what=smap") {
            let body = body.replace("\"tmap\":{}", &format!("\"tmap\":{{\"{name}\":{{}}}}"));
            return (late, status, body.into_bytes());
        }
        if path.contains("reverse") {
            return (late, 500, format!(r#"{{"message":"{name}","status":500}}"#).into_bytes());
        }
        (late, status, body.into_bytes())
    }))
    .await;
    world.apply("ais", &ais(&server.address)).await;
    let status = world.until("ais", "a status is written", |status| find(status, "Ready").is_some()).await;
    let text = serde_json::to_string(&status).unwrap();
    assert!(text.len() < 6 * 1024, "{} bytes", text.len());
    world.until_event("ais", "Accepted").await;
    for (_, note) in world.event_notes("ais").await {
        assert!(note.len() <= 1024, "{} bytes", note.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_somebody_else_made_first_silences_nothing() {
    let world = World::empty("events").await;
    let node = AdminApi::start(typical()).await;
    let policy = world.apply("gw", &caddies([node.address.as_str()])).await;
    // All names that the first Event can have.
    let events = Api::<Event>::namespaced(world.client.clone(), &world.namespace);
    for n in 0..4 {
        for generation in ["None", "Some(1)", "Some(-1)", "Some(0)"] {
            let seed = format!("{}/0/{n}/{generation}/Accepted", policy.uid().unwrap());
            let event = json!({
                "metadata": {"name": format!("gw.{:016x}", fnv1a(&seed))}, "eventTime": "2026-01-01T00:00:00.000000Z",
                "reportingController": "another.controller", "reportingInstance": "x", "action": "None", "reason": "Nothing", "type": "Normal",
                "regarding": {"kind": "IdleConnectionPolicy", "name": "gw", "namespace": world.namespace, "uid": policy.uid()},
            });
            events.create(&PostParams::default(), &serde_json::from_value(event).unwrap()).await.unwrap();
        }
    }
    let _operator = Process::start(&[&world], &[]).await;
    world.until_programmed("gw").await;
    eventually("the operator's Event is there", || async {
        let all = events.list(&kube::api::ListParams::default()).await.unwrap();
        let told =
            |event: &Event| event.reason.as_deref() == Some("Accepted") && event.reporting_controller.as_deref() == Some(MANAGER);
        all.iter().any(told).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_without_certificates_is_named_as_the_cause() {
    let world = World::empty("nocas").await;
    let none = std::env::temp_dir().join("idleconn-no-certificates");
    std::fs::create_dir_all(&none).unwrap();
    let file = none.join("none.pem");
    std::fs::write(&file, "").unwrap();
    let env = [("SSL_CERT_FILE", file.to_str().unwrap()), ("SSL_CERT_DIR", none.to_str().unwrap())];
    let _operator = Process::start(&[&world], &env).await;
    let server = Hostile::start(answers(b"{}".to_vec())).await;
    let https = server.address.replace("http://", "https://");
    world.apply("gw", &caddies([https.as_str()])).await;
    let status = world.until("gw", "looked at", |status| find(status, "Ready").is_some()).await;
    let message = &find(&status, "Ready").unwrap().message;
    assert!(!message.contains("the CA holds no certificate"), "there is no CA in the policy: {message}");
    let _: Json = serde_json::to_value(&status).unwrap();
}
