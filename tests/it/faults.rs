//! Nodes that hang, are gone or answer nonsense, and targets that never come back.

use std::{sync::atomic::Ordering, time::Duration};

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, api::DeleteParams};
use serde_json::json;

use crate::support::{
    admin_api::{AdminApi, Misbehaving},
    ais::{Ais, Token},
    caddy::{Caddy, typical},
    eventually,
    operator::{World, endpoints, find},
    proxy::{Proxy, Tripwire},
};

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_node_of_each_kind_holds_up_no_other() {
    let world = World::new("bad").await;
    let good = [AdminApi::start(typical()).await, AdminApi::start(typical()).await];
    let bad = [
        (Misbehaving::hangs().await, "did not answer within 3s"),
        (Misbehaving::talks_garbage().await, "closed the connection early or does not speak HTTP"),
        (Misbehaving::answers("<html>secret-of-the-node</html>").await, "did not return JSON"),
        (Misbehaving::answers_ten_megabytes().await, " is larger than 8 MiB"),
    ];
    let gone = Misbehaving::gone().await;
    let mut all: Vec<String> = good.iter().map(|node| node.address.clone()).collect();
    all.extend(bad.iter().map(|(node, _)| node.address.clone()));
    all.push(gone.clone());

    let spec = json!({
        "target": endpoints(all.iter().map(String::as_str)),
        "limits": {"server": {"idleTimeout": "30s"}},
        "updateStrategy": {"type": "AllAtOnce"},
    });
    world.apply("gw", &spec).await;
    let status = world
        .until("gw", "two good, five bad", |s| s.nodes.as_ref().is_some_and(|n| (n.programmed, n.unreachable) == (2, 5)))
        .await;
    assert_eq!(find(&status, "Programmed").unwrap().reason, "Partial");
    let given_up = *bad[0].0.given_up.get().unwrap();
    for node in &good {
        assert!(node.written().unwrap() < given_up, "a good node waited for the one that hangs");
    }

    let nodes = status.nodes.clone().unwrap();
    assert_eq!((nodes.total, nodes.worst.len()), (7, 5));
    assert_eq!(find(&status, "Ready").unwrap().status, "True");
    let cause = |address: &str| {
        let name = address.trim_start_matches("http://");
        nodes.worst.iter().find(|worst| worst.name == name).map(|worst| worst.cause.clone()).unwrap()
    };
    for (node, sentence) in &bad {
        assert!(cause(&node.address).contains(sentence), "{}", cause(&node.address));
    }
    assert!(cause(&gone).contains("cannot connect"), "{}", cause(&gone));
    let everything = format!("{:?}{:?}", world.status("gw").await, world.event_notes("gw").await);
    assert!(!everything.contains("secret-of-the-node"), "a node's answer reached the user");

    // The operator backs off: requests at 0, 1, 3, 7 … seconds.
    let asked: Vec<_> = bad.iter().map(|(node, _)| node.asked.load(Ordering::Relaxed)).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for ((node, _), before) in bad.iter().zip(asked) {
        assert!(node.asked.load(Ordering::Relaxed) <= before + 2, "asked again and again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ails_a_node_is_logged_once() {
    let world = World::empty("log").await;
    let tripwire = Tripwire::new(usize::MAX, &world.namespace);
    let api = Proxy::to_api(world.client.clone(), tripwire.clone()).await;
    let gone = Misbehaving::gone().await;
    world.apply("gw", &json!({"target": endpoints([gone.as_str()]), "limits": {"server": {"idleTimeout": "30s"}}})).await;
    tripwire.start_operator(&api.address);
    world.until_condition("gw", "Ready", "False", "ProgrammingFailed").await;
    // The operator retries after 1 s, and again after 2 s more.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let log = tripwire.log();
    // The warning appears once, beside the line of the Event.
    let warned = log.lines().filter(|line| line.contains(" WARN ") && line.contains("cannot connect")).count();
    assert_eq!((warned, log.matches("cannot connect").count()), (1, 2), "{log}");
    assert!(log.lines().count() < 8, "{log}");
    tripwire.clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_node_that_answers_is_not_ready() {
    let world = World::new("none").await;
    world
        .apply(
            "gw",
            &json!({"target": endpoints([Misbehaving::gone().await.as_str()]), "limits": {"server": {"idleTimeout": "30s"}}}),
        )
        .await;
    let status = world.until_condition("gw", "Ready", "False", "ProgrammingFailed").await;
    assert!(find(&status, "Ready").unwrap().message.starts_with("No node answered; "));
    assert_eq!(find(&status, "InEffect").unwrap().status, "Unknown");
    assert!(status.limits.unwrap().programmed.is_none(), "nothing was seen, so nothing is said");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_target_does_not_block_deletion_for_ever() {
    let (world, mut node) = (World::new("abandon").await, Caddy::typical().await);
    world.apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": {"server": {"idleTimeout": "30s"}}, "restoreTimeout": "2s"})).await;
    world.until_programmed("gw").await;
    node.stop();
    world.delete("gw").await;
    let said = world.until_event("gw", "RestoreAbandoned").await;
    assert!(said.contains("1 node was not restored within 2s") && said.contains("cannot connect"), "{said}");
    assert_eq!(world.originals("gw").await.1, ["gw-original"], "what could not be restored stays saved");

    // A policy of the same name takes over the saved originals.
    node.resume().await;
    node.set("/web/idle_timeout", json!("30s")).await;
    world.apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": {"server": {"idleTimeout": "20s"}}})).await;
    world.until_programmed("gw").await;
    world.delete("gw").await;
    assert_eq!(node.servers().await, typical());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_deleted_although_its_secret_goes_first() {
    let (world, ais) = (World::new("terminating").await, Ais::start().await);
    ais.cluster().auth = true;
    ais.cluster().tokens.insert("let-me-in".into(), Token::Admin);
    world.secret("ais-admin", &[("token", "let-me-in")]).await;
    let target = json!({"type": "AIStore", "aistore": {"endpoint": ais.proxies[0], "tokenSecretRef": {"name": "ais-admin", "key": "token"}}});
    world.apply("prod", &json!({"target": target, "limits": {"intraCluster": {"idleConnTimeout": "20s"}}})).await;
    world.until_programmed("prod").await;

    // The namespace is terminating: the test deletes the Secret and the policy as the namespace controller does.
    Api::<Namespace>::all(world.client.clone()).delete(&world.namespace, &DeleteParams::default()).await.unwrap();
    Api::<Secret>::namespaced(world.client.clone(), &world.namespace)
        .delete("ais-admin", &DeleteParams::default())
        .await
        .unwrap();
    world.delete("prod").await;
    assert_eq!(ais.http("idle_conn_time"), "6s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_recovers_is_programmed() {
    let (world, mut node) = (World::new("recover").await, Caddy::typical().await);
    node.stop();
    world.apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": {"server": {"idleTimeout": "30s"}}})).await;
    world.until_condition("gw", "Ready", "False", "ProgrammingFailed").await;
    node.resume().await;
    eventually("programmed", || async { (node.servers().await["web"]["idle_timeout"] == "30s").then_some(()) }).await;
    let status = world.until_programmed("gw").await;
    assert_eq!(find(&status, "Ready").unwrap().status, "True");
}
