//! The target `aistore`, with a fake that is checked against recorded responses.

use std::{net::SocketAddr, time::Duration};

use idleconn_operator::api::IdleConnectionPolicyStatus;
use k8s_openapi::api::core::v1::Service;
use kube::{Api, api::PostParams};
use serde_json::{Value as Json, json};

use crate::support::{
    ais::{Ais, Life, Phase},
    eventually,
    operator::{World, find},
};

fn target(ais: &Ais) -> Json {
    json!({"type": "AIStore", "aistore": {"endpoint": ais.proxies[0]}})
}

fn spec(ais: &Ais, limits: &Json) -> Json {
    json!({"target": target(ais), "limits": limits})
}

const NODES: [&str; 5] = ["proxy-p0", "proxy-p1", "target-t0", "target-t1", "target-t2"];

#[tokio::test(flavor = "multi_thread")]
async fn all_fields_go_in_one_put_and_only_where_something_differs() {
    let (world, ais) = (World::new("ais-put").await, Ais::start().await);
    let limits = json!({"intraCluster": {"idleConnTimeout": "20s", "maxIdleConns": 2000, "maxIdleConnsPerHost": 100}, "backend": {"idleConnTimeout": "60s"}});
    world.apply("prod", &spec(&ais, &limits)).await;
    let status = world.until_programmed("prod").await;
    assert_eq!(ais.puts(), 1);
    assert_eq!(
        (ais.http("idle_conn_time"), ais.http("idle_conns"), ais.http("idle_conns_per_host")),
        ("20s".into(), 2000.into(), 100.into())
    );
    // The server stores 1m: the same time in another spelling is no difference.
    assert_eq!(ais.http("backend_idle_conn_time"), "1m");
    assert_eq!(status.nodes.unwrap().summary, "5/5");

    let reads = ais.gets();
    eventually("three more looks", || async { (ais.gets() > reads + 6).then_some(()) }).await;
    assert_eq!(ais.puts(), 1, "a second write although nothing differed");

    world.delete("prod").await;
    assert_eq!(
        (ais.http("idle_conn_time"), ais.http("idle_conns"), ais.http("idle_conns_per_host")),
        ("6s".into(), 256.into(), 32.into())
    );
    assert_eq!(ais.puts(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_is_not_in_effect_until_each_node_has_restarted_since() {
    let (world, ais) = (World::new("ais-effect").await, Ais::start().await);
    world.apply("prod", &spec(&ais, &json!({"intraCluster": {"idleConnTimeout": "20s"}}))).await;
    let status = world.until_condition("prod", "InEffect", "False", "RestartRequired").await;
    assert_eq!(status.pending_restart.as_ref().unwrap().count, 5);
    assert_eq!(find(&status, "Ready").unwrap().status, "True", "a pending restart does not touch Ready");
    assert!(status.limits.as_ref().unwrap().in_effect.is_none());
    world.until_event("prod", "RestartRequired").await;

    for node in &NODES[..4] {
        ais.restart(node);
    }
    let status = world.until("prod", "one node left", |s| s.pending_restart.as_ref().is_some_and(|p| p.count == 1)).await;
    assert_eq!(status.pending_restart.unwrap().nodes, ["target-t2"]);
    assert_eq!(find(&world.status("prod").await, "InEffect").unwrap().status, "False");

    ais.restart("target-t2");
    let status = world.until_condition("prod", "InEffect", "True", "InEffect").await;
    assert!(status.pending_restart.is_none());
    assert_eq!(status.limits.unwrap().in_effect.unwrap().intra_cluster.unwrap().idle_conn_timeout.unwrap().to_string(), "20s");
    // The fake, which knows the values in effect, confirms it.
    assert!(NODES.iter().all(|node| ais.in_use(node, "idle_conn_time") == "20s"));
}

/// Waits until these nodes have run for a while and the operator has observed it. The operator detects a restart by an uptime
/// that has decreased.
async fn grown(ais: &Ais, nodes: &[&str]) {
    let old = || nodes.iter().all(|node| ais.uptime(node) >= Duration::from_secs(2));
    eventually("the nodes have run for a while", || async { old().then_some(()) }).await;
    let looks = ais.gets();
    eventually("two more looks", || async { (ais.gets() > looks + 2).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_or_was_down_is_not_said_to_use_what_it_only_stores() {
    let (world, ais) = (World::new("ais-join").await, Ais::start().await);
    ais.refresh_every("1s");
    let policy = |time: &str| spec(&ais, &json!({"intraCluster": {"idleConnTimeout": time}}));
    world.apply("prod", &policy("20s")).await;
    world.until_condition("prod", "InEffect", "False", "RestartRequired").await;
    for node in NODES {
        ais.restart(node);
    }
    world.until_condition("prod", "InEffect", "True", "InEffect").await;

    // The node has created its transports from its own file before it received the configuration of the cluster.
    ais.join("target-t3");
    let status = world.until("prod", "six nodes", |s| s.nodes.as_ref().is_some_and(|nodes| nodes.summary == "6/6")).await;
    assert_eq!(ais.in_use("target-t3", "idle_conn_time"), "6s");
    assert_ne!(find(&status, "InEffect").unwrap().status, "True");
    assert_eq!(status.pending_restart.unwrap().nodes, ["target-t3"]);
    grown(&ais, &["target-t3"]).await;
    ais.restart("target-t3");
    world.until_condition("prod", "InEffect", "True", "InEffect").await;

    // The node was down when the value changed, so its file has the old value.
    ais.set("target-t0", Life::Dead);
    world.until("prod", "a dead node", |s| s.nodes.as_ref().is_some_and(|nodes| nodes.unreachable == 1)).await;
    world.apply("prod", &policy("15s")).await;
    world.until("prod", "the others store it", |s| s.nodes.as_ref().is_some_and(|nodes| nodes.summary == "5/6")).await;
    grown(&ais, &["proxy-p0", "proxy-p1", "target-t1", "target-t2", "target-t3"]).await;
    ais.restart("target-t0");
    for node in ["proxy-p0", "proxy-p1", "target-t1", "target-t2", "target-t3"] {
        ais.restart(node);
    }
    // A node that does not answer does not count as pending a restart.
    let all_answer = |s: &IdleConnectionPolicyStatus| s.nodes.as_ref().is_some_and(|nodes| nodes.unreachable == 0);
    let one_waits = |s: &IdleConnectionPolicyStatus| s.pending_restart.as_ref().is_some_and(|pending| pending.count == 1);
    let status = world.until("prod", "one is left", |s| all_answer(s) && one_waits(s)).await;
    assert_eq!(ais.in_use("target-t0", "idle_conn_time"), "20s");
    assert_eq!(status.pending_restart.unwrap().nodes, ["target-t0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_edit_that_is_put_back_needs_no_restart() {
    let (world, ais) = (World::new("ais-back").await, Ais::start().await);
    ais.refresh_every("1s");
    world.apply("prod", &spec(&ais, &json!({"intraCluster": {"idleConnTimeout": "20s"}}))).await;
    world.until_condition("prod", "InEffect", "False", "RestartRequired").await;
    for node in NODES {
        ais.restart(node);
    }
    world.until_condition("prod", "InEffect", "True", "InEffect").await;
    let puts = ais.puts();
    ais.set_http("idle_conn_time", &"7s".into());
    eventually("it is put back", || async { (ais.http("idle_conn_time") == "20s" && ais.puts() > puts).then_some(()) }).await;
    world.until_event("prod", "DriftCorrected").await;
    let status = world.until_condition("prod", "InEffect", "True", "InEffect").await;
    assert!(status.pending_restart.is_none());
    assert!(
        !world
            .events("prod")
            .await
            .iter()
            .skip_while(|reason| *reason != "DriftDetected")
            .any(|reason| reason == "RestartRequired")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_generation_ends_a_contest_and_is_ready_only_once_it_was_written() {
    let (world, ais) = (World::new("ais-contest").await, Ais::start().await);
    let policy = |time: &str| spec(&ais, &json!({"intraCluster": {"idleConnTimeout": time}}));
    world.apply("prod", &policy("20s")).await;
    world.until_programmed("prod").await;
    let contended = || async { find(&world.status("prod").await, "Programmed").is_some_and(|c| c.reason == "Contended") };
    // Another client keeps changing the value.
    while !contended().await {
        let puts = ais.puts();
        ais.set_http("idle_conn_time", &"7s".into());
        eventually("put back or left alone", || async { (contended().await || ais.puts() > puts).then_some(()) }).await;
    }
    let status = world.until_condition("prod", "Programmed", "False", "Contended").await;
    let message = &find(&status, "Programmed").unwrap().message;
    assert!(
        message
            .starts_with("Another client keeps changing intraCluster.idleConnTimeout (now 7s, declared 20s); the operator leaves it alone until 2"),
        "{message}"
    );
    assert_eq!(ais.http("idle_conn_time"), "7s");
    world.apply("prod", &policy("18s")).await;
    world.until_programmed("prod").await;
    assert_eq!(ais.http("idle_conn_time"), "18s");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_before_is_not_said_to_be_in_effect() {
    let (world, ais) = (World::new("ais-unknown").await, Ais::start().await);
    // Another client changed the value after the nodes had started, so the value in effect is unknown.
    ais.set_http("idle_conn_time", &"20s".into());
    world.apply("prod", &spec(&ais, &json!({"intraCluster": {"idleConnTimeout": "20s"}}))).await;
    world.until_programmed("prod").await;
    assert_eq!(find(&world.status("prod").await, "InEffect").unwrap().status, "Unknown");
    assert_eq!(ais.puts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_has_no_place_for_is_unsupported() {
    let (world, ais) = (World::new("ais-unsupported").await, Ais::start().await);
    // The configuration of an older version has no such field.
    ais.remove_http("backend_idle_conn_time");
    let limits = json!({
        "server": {"idleTimeout": "35s"}, "intraCluster": {"idleConnTimeout": "20s"},
        "backend": {"idleConnTimeout": "30s", "maxConnsPerHost": 50},
    });
    world.apply("prod", &spec(&ais, &limits)).await;
    let status = world.until_programmed("prod").await;
    assert_eq!(status.unsupported, ["server.idleTimeout", "backend.idleConnTimeout", "backend.maxConnsPerHost"]);
    assert_eq!(ais.puts(), 1);
    assert_eq!(ais.http("backend_idle_conn_time"), Json::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_smaller_total_lowers_per_host_in_the_same_write_and_says_so() {
    let (world, ais) = (World::new("ais-pair").await, Ais::start().await);
    world.apply("prod", &spec(&ais, &json!({"intraCluster": {"maxIdleConns": 16}}))).await;
    let status = world.until_programmed("prod").await;
    assert_eq!((ais.puts(), ais.refused()), (1, 0));
    assert_eq!((ais.http("idle_conns"), ais.http("idle_conns_per_host")), (16.into(), 16.into()));
    assert!(find(&status, "Programmed").unwrap().message.contains("intraCluster.maxIdleConnsPerHost was lowered to 16"));
    world.delete("prod").await;
    assert_eq!((ais.http("idle_conns"), ais.http("idle_conns_per_host")), (256.into(), 32.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_presets_excess_is_capped_and_the_status_says_so() {
    let (world, ais) = (World::new("ais-cap").await, Ais::start().await);
    world.apply("prod", &json!({"target": target(&ais), "preset": "GoDefault"})).await;
    let status = world.until_programmed("prod").await;
    assert_eq!(
        (ais.http("idle_conn_time"), ais.http("idle_conns_per_host"), ais.http("backend_idle_conn_time")),
        ("29s".into(), 2.into(), "1m30s".into())
    );
    assert!(
        find(&status, "Accepted")
            .unwrap()
            .message
            .contains("the preset is limited to the maximum of the target: intraCluster.idleConnTimeout 29s")
    );
    assert!(status.unsupported.is_empty(), "what only the preset asks for is not reported: {:?}", status.unsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_per_host_of_minus_one_is_drift_and_is_restored_as_it_was() {
    let (world, ais) = (World::new("ais-minus").await, Ais::start().await);
    ais.set_http("idle_conns_per_host", &(-1).into());
    world.apply("prod", &spec(&ais, &json!({"intraCluster": {"maxIdleConnsPerHost": 64}}))).await;
    world.until_programmed("prod").await;
    assert_eq!(ais.http("idle_conns_per_host"), 64);
    world.delete("prod").await;
    assert_eq!(ais.http("idle_conns_per_host"), -1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_node_costs_an_edit_nothing_once_it_is_known() {
    let (world, ais) = (World::new("ais-hung").await, Ais::start().await);
    let policy = |seconds: u64| spec(&ais, &json!({"intraCluster": {"idleConnTimeout": format!("{seconds}s")}}));
    world.apply("prod", &policy(20)).await;
    world.until_programmed("prod").await;
    ais.set("target-t1", Life::Hung);
    world.until("prod", "it is seen to hang", |s| s.nodes.as_ref().is_some_and(|n| n.unreachable == 1)).await;
    let mut took = Vec::new();
    for seconds in [10, 11, 12, 13, 14] {
        let began = tokio::time::Instant::now();
        world.apply("prod", &policy(seconds)).await;
        world.until("prod", "four hold it", |s| s.nodes.as_ref().is_some_and(|n| n.summary == "4/5" && n.drifted == 0)).await;
        took.push(began.elapsed());
        assert_eq!(ais.http("idle_conn_time"), format!("{seconds}s"));
    }
    took.sort();
    assert!(took[2] < Duration::from_millis(3500), "from edit to status: {took:?}");
    println!("from edit to status with a hung node of five: {took:?}");
    ais.set("target-t1", Life::Running);
    world.until_programmed("prod").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_node_and_a_dead_one_are_named_and_the_others_are_programmed() {
    for (life, cause) in
        [(Life::Hung, "target-t1 did not answer the proxy within 3s"), (Life::Dead, "the proxy cannot reach target-t1")]
    {
        let (world, ais) = (World::new("ais-node").await, Ais::start().await);
        ais.set("target-t1", life);
        world.apply("prod", &spec(&ais, &json!({"intraCluster": {"idleConnTimeout": "20s"}}))).await;
        let status =
            world.until("prod", "four of five and the cause", |s| s.nodes.as_ref().is_some_and(|n| n.summary == "4/5")).await;
        let programmed = find(&status, "Programmed").unwrap();
        let message = format!("4 of 5 nodes hold the declared limits; {cause}");
        assert_eq!((programmed.reason.as_str(), programmed.message.as_str()), ("Partial", message.as_str()));
        assert_eq!(world.until_event("prod", "Partial").await, message);
        let nodes = status.nodes.clone().unwrap();
        assert_eq!(nodes.unreachable, 1, "{status:#?}");
        assert_eq!((nodes.worst[0].name.as_str(), nodes.worst[0].cause.as_str()), ("target-t1", cause));
        assert_eq!(find(&status, "Ready").unwrap().status, "True");
        assert_eq!(ais.puts(), 1, "the 200 that comes late is not asked for again");

        ais.set("target-t1", Life::Running);
        world.until_programmed("prod").await;
        assert_eq!(ais.puts(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_and_a_start_up_are_waited_out() {
    for (phase, said) in
        [(Phase::Election, "No primary proxy (502), as during an election"), (Phase::Starting, "is not ready (503)")]
    {
        let (world, ais) = (World::new("ais-wait").await, Ais::start().await);
        ais.cluster().phase = phase;
        world.apply("prod", &spec(&ais, &json!({"intraCluster": {"idleConnTimeout": "20s"}}))).await;
        let status = world.until_condition("prod", "Ready", "False", "ProgrammingFailed").await;
        assert!(find(&status, "Ready").unwrap().message.contains(said));
        assert_eq!(find(&status, "Reconciling").unwrap().status, "True");
        assert_eq!(ais.puts(), 0, "nothing is sent to a cluster that is not ready");
        ais.cluster().phase = Phase::Ready;
        world.until_programmed("prod").await;
        assert_eq!(ais.puts(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_final_and_shows_the_servers_own_message() {
    let (world, ais) = (World::new("ais-refusal").await, Ais::start().await);
    // With an unlimited total the server accepts no per-host value. Only the server knows this rule.
    ais.set_http("idle_conns_per_host", &(-1).into());
    ais.set_http("idle_conns", &0.into());
    world.apply("prod", &spec(&ais, &json!({"intraCluster": {"maxIdleConnsPerHost": 64}}))).await;
    let status = world.until_condition("prod", "Stalled", "True", "Rejected").await;
    let message = &find(&status, "Stalled").unwrap().message;
    assert!(
        message.contains("AIStore rejected the request (400): invalid idle_conns_per_host: 64 (expecting range [0 - 0])"),
        "{message}"
    );
    assert_eq!(find(&status, "Ready").unwrap().reason, "ProgrammingFailed");
    world.until_event("prod", "Rejected").await;
    let reads = ais.gets();
    eventually("three more looks", || async { (ais.gets() > reads + 2).then_some(()) }).await;
    assert_eq!(ais.refused(), 1, "the same is not sent again");

    world.apply("prod", &spec(&ais, &json!({"intraCluster": {"maxIdleConnsPerHost": 64, "maxIdleConns": 512}}))).await;
    world.until_programmed("prod").await;
    assert_eq!(ais.refused(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_reached_at_its_own_address_without_dns() {
    let world = World::new("ais-service").await;
    let services = Api::<Service>::namespaced(world.client.clone(), &world.namespace);
    let service = json!({"metadata": {"name": "ais-proxy"}, "spec": {"ports": [{"port": 51080}]}});
    let service = services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
    let ip = service.spec.unwrap().cluster_ip.unwrap();
    let ais = Ais::start_at(SocketAddr::new(ip.parse().unwrap(), 51080)).await;
    let target = json!({"type": "AIStore", "aistore": {"service": {"name": "ais-proxy", "port": 51080}}});
    world.apply("prod", &json!({"target": target, "limits": {"intraCluster": {"idleConnTimeout": "20s"}}})).await;
    world.until_programmed("prod").await;
    assert_eq!(ais.http("idle_conn_time"), "20s");

    let target = json!({"type": "AIStore", "aistore": {"service": {"name": "nowhere", "port": 51080}}});
    world.apply("lost", &json!({"target": target})).await;
    let status = world.until_condition("lost", "Ready", "False", "TargetNotFound").await;
    assert!(find(&status, "Ready").unwrap().message.contains("Service nowhere does not exist"));
}
