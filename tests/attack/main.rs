//! Attacks by a tenant, a node or anyone who can reach the pod. The operator runs as a separate process. Every test checks that
//! another tenant is still served.
//!
//! `make attack` runs these tests with the static release binary and then also checks the limits of time and memory. A debug
//! build is slower and larger.

#![allow(clippy::large_futures, clippy::unwrap_used, clippy::panic, clippy::missing_panics_doc, missing_docs)]
// A separate test program, because it uses the whole machine. It does not use all of the shared test support.
#![allow(dead_code)]

mod lifecycle;
mod reach;
#[path = "../it/support/mod.rs"]
mod support;
mod upgrade;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use idleconn_operator::controller::restart::eviction;
use k8s_openapi::{
    api::{core::v1::Pod, policy::v1::Eviction},
    apimachinery::pkg::apis::meta::v1::Status,
};
use kube::{Api, api::PostParams};
use serde_json::{Value as Json, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::support::{
    admin_api::AdminApi,
    ais::Ais,
    caddy::typical,
    eventually,
    hostile::{Hostile, Interrupted, Process, Script, aistore, is_released},
    operator::{World, endpoints, find},
};

/// Maximum memory of the operator under attack, in MiB.
const MEMORY: u64 = 128;

fn ais(address: &str) -> Json {
    json!({"target": {"type": "AIStore", "aistore": {"endpoint": address}}, "limits": {"intraCluster": {"idleConnTimeout": "20s"}}})
}

fn caddies<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Json {
    json!({"target": endpoints(addresses), "limits": {"server": {"idleTimeout": "30s"}}})
}

/// Returns a promised time. A debug build on a busy machine gets more.
fn within(seconds: f64) -> Duration {
    Duration::from_secs_f64(if is_released() { seconds } else { seconds * 6.0 })
}

/// Checks that the policy of another tenant is programmed in time.
async fn another_tenant_is_served(world: &World) {
    let node = AdminApi::start(typical()).await;
    let begun = Instant::now();
    world.apply("innocent", &caddies([node.address.as_str()])).await;
    let written = eventually("the innocent policy is programmed", || async { node.written() }).await;
    assert!(written - begun < within(5.0), "programmed after {:?}", written - begun);
}

async fn holds(operator: &mut Process, world: &World) {
    another_tenant_is_served(world).await;
    operator.lives();
    assert_eq!(operator.metric("idleconn_panics_total").await, Some(0.0));
    let peak = operator.peak();
    println!("memory at its peak: {peak} MiB");
    assert!(!is_released() || peak < MEMORY, "{peak} MiB");
}

async fn until_asked(server: &Hostile, times: usize) {
    eventually("the hostile server is asked", || async { (server.asked() >= times).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_beyond_all_measure_ends_nothing() {
    let (evil, good) = (World::empty("overflow").await, World::empty("innocent").await);
    let mut operator = Process::start(&[&evil, &good], &[]).await;
    let script = aistore("overflow", 1, Duration::ZERO, "18446744073709549568s", "18446744073709551615");
    let server = Hostile::start(script).await;
    evil.apply("evil", &ais(&server.address)).await;
    until_asked(&server, 12).await;
    holds(&mut operator, &good).await;
}

fn answers(body: Vec<u8>) -> Script {
    Arc::new(move |_| (Duration::ZERO, 200, body.clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_takes_no_more_memory_than_it_has_bytes() {
    let (evil, map, good) = (World::empty("memory").await, World::empty("map").await, World::empty("innocent").await);
    let mut operator = Process::start(&[&evil, &map, &good], &[]).await;
    let mut servers = Vec::new();
    for mebibytes in [4, 7] {
        let body = format!(r#"{{"web":{{"x":[{}{{}}]}}}}"#, r#"{"":0},"#.repeat(mebibytes * 1024 * 1024 / 7));
        for _ in 0..8 {
            servers.push(Hostile::start(answers(body.clone().into_bytes())).await);
        }
    }
    evil.apply("evil", &caddies(servers.iter().map(|server| server.address.as_str()))).await;
    for server in &servers {
        until_asked(server, 1).await;
    }
    let members: Vec<_> = (0..60_000).map(|n| format!("\"a{n:05}\":{{}}")).collect();
    let large = format!(r#"{{"uuid":"large","pmap":{{}},"tmap":{{{}}}}}"#, members.join(","));
    let script: Script = Arc::new(move |path| {
        let body = if path.contains("what=smap") { large.clone().into_bytes() } else { Vec::new() };
        (Duration::ZERO, 200, body)
    });
    let large = Hostile::start(script).await;
    map.apply("large", &ais(&large.address)).await;
    let status = map.until_condition("large", "Ready", "False", "ProgrammingFailed").await;
    let message = &find(&status, "Ready").unwrap().message;
    assert!(message.contains("more than 2000 cluster members"), "{message}");
    holds(&mut operator, &good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clusters_of_many_members_starve_nobody() {
    let evil = World::empty("starve").await;
    let good = World::empty("innocent").await;
    let mut operator = Process::start(&[&evil, &good], &[]).await;
    let mut servers = Vec::new();
    for n in 0..16 {
        let server = Hostile::start(aistore(&format!("slow-{n}"), 1500, Duration::from_millis(2500), "10s", "1")).await;
        evil.apply(&format!("evil-{n}"), &ais(&server.address)).await;
        servers.push(server);
    }
    for server in &servers {
        until_asked(server, 4).await;
    }
    holds(&mut operator, &good).await;
    // A deletion ends the reading of the node.
    evil.delete("evil-0").await;
    let asked = servers[0].asked();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(servers[0].asked() <= asked + 4, "asked {} times more", servers[0].asked() - asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sixteenth_namespace_begins_at_once_while_fifteen_take_all_they_can() {
    let mut worlds = Vec::new();
    for _ in 0..15 {
        worlds.push(World::empty("greedy").await);
    }
    let good = World::empty("sixteenth").await;
    let all: Vec<_> = worlds.iter().chain([&good]).collect();
    let mut operator = Process::start(&all, &[]).await;
    let mut servers = Vec::new();
    for (n, world) in worlds.iter().enumerate() {
        for k in 0..20 {
            let server = Hostile::start(aistore(&format!("g-{n}-{k}"), 200, Duration::from_millis(2500), "10s", "1")).await;
            world.apply(&format!("greedy-{k}"), &ais(&server.address)).await;
            servers.push(server);
        }
    }
    let busy = || servers.iter().filter(|server| server.asked() > 4).count();
    eventually("the slots are taken", || async { (busy() > 80).then_some(()) }).await;
    let node = Hostile::start(Arc::new(|_| (Duration::ZERO, 200, br#"{"web":{}}"#.to_vec()))).await;
    let begun = Instant::now();
    good.apply("gw", &caddies([node.address.as_str()])).await;
    let first = eventually("the sixteenth is read", || async { node.first() }).await;
    assert!(first - begun < within(1.0), "first read after {:?}", first - begun);
    operator.lives();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_node_is_programmed_and_its_policy_does_not_spin() {
    let world = World::empty("slow").await;
    let _operator = Process::start(&[&world], &[]).await;
    let mut nodes = Vec::new();
    for millis in [0, 450, 600, 750, 2500] {
        nodes.push((millis, AdminApi::late(typical(), Duration::from_millis(millis)).await));
    }
    let mut spec = caddies(nodes.iter().map(|(_, node)| node.address.as_str()));
    // Without batches: their pauses would hide a policy that reads its nodes again and again.
    spec["updateStrategy"] = json!({"type": "AllAtOnce"});
    world.apply("gw", &spec).await;
    world.until("gw", "five nodes", |s| s.nodes.as_ref().is_some_and(|n| n.summary == "5/5")).await;
    let fast = nodes[0].1.reads();
    for (millis, node) in &nodes {
        assert!(node.reads() <= fast + 2, "{millis} ms: read {} times, the fast one {fast} times", node.reads());
        assert_eq!(node.writes(), 1, "{millis} ms");
    }
    // One reconciliation in each interval of 5 s, with a jitter of a tenth.
    let before: Vec<_> = nodes.iter().map(|(_, node)| node.reads()).collect();
    tokio::time::sleep(Duration::from_secs(16)).await;
    for ((millis, node), before) in nodes.iter().zip(before) {
        assert!(node.reads() - before <= 4, "{millis} ms: {} passes in 16 s", node.reads() - before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_vanished_while_nothing_was_watched_holds_up_no_younger_one() {
    let (a, b) = (World::empty("ghost").await, World::empty("young").await);
    let way = Interrupted::start(&a).await;
    let _operator = Process::start_at(&[&a, &b], &[], &way.kubeconfig).await;
    // Two overrides for one node: such a policy has no finalizer and can disappear at any moment.
    let node = AdminApi::start(typical()).await;
    let mut old = caddies([node.address.as_str()]);
    let one = |name: &str, idle: &str| json!({"name": name, "nodes": ["x"], "limits": {"server": {"idleTimeout": idle}}});
    old["overrides"] = json!([one("a", "9s"), one("b", "8s")]);
    a.apply("old", &old).await;
    a.until_condition("old", "Accepted", "False", "Invalid").await;
    let created = a.get("old").await.metadata.creation_timestamp.unwrap().0.as_second();
    eventually("the clock ticks", || async { (jiff::Timestamp::now().as_second() > created).then_some(()) }).await;
    let young = AdminApi::start(typical()).await;
    let spec = |idle: &str| json!({"target": endpoints([young.address.as_str()]), "limits": {"server": {"idleTimeout": idle}}});
    b.apply("young", &spec("30s")).await;
    b.until_programmed("young").await;

    way.cut();
    a.policies().delete("old", &kube::api::DeleteParams::default()).await.unwrap();
    way.restore().await;
    // By then the operator would have reconciled the old policy once more and found that it is gone.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let asked = young.reads();
    let edited = Instant::now();
    b.apply("young", &spec("20s")).await;
    eventually("the edit arrives", || async { (young.servers()["web"]["idle_timeout"] == "20s").then_some(()) }).await;
    assert!(edited.elapsed() < within(5.0), "{:?}", edited.elapsed());
    assert!(young.reads() - asked < 12, "read {} times for one edit", young.reads() - asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_a_list_that_arrives_in_parts_are_all_looked_at() {
    let world = World::empty("parts").await;
    let way = Interrupted::start(&world).await;
    let _operator = Process::start_at(&[&world], &[], &way.kubeconfig).await;
    let nodes = [AdminApi::start(typical()).await, AdminApi::start(typical()).await];
    let spec = |n: usize, idle: &str| json!({"target": endpoints([nodes[n].address.as_str()]), "limits": {"server": {"idleTimeout": idle}}});
    world.apply("known", &spec(0, "30s")).await;
    world.until_programmed("known").await;
    way.cut();
    way.list_in_parts();
    // The list names both before its last part arrives, and the store has neither the edit nor the new policy until then.
    world.apply("known", &spec(0, "20s")).await;
    world.apply("a-new", &spec(1, "20s")).await;
    world.apply("z-last", &json!({"target": endpoints(["http://127.0.0.1:1"])})).await;
    way.restore().await;
    for node in &nodes {
        eventually("the limit arrives", || async { (node.servers()["web"]["idle_timeout"] == "20s").then_some(()) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_port_cannot_be_held() {
    let good = World::empty("innocent").await;
    let mut operator = Process::start(&[&good], &[]).await;
    let address = operator.metrics.trim_start_matches("http://").to_owned();
    let header = format!("x-padding: {}\r\n", "x".repeat(1000));
    let mut held = Vec::new();
    for n in 0..600 {
        let Ok(mut stream) = TcpStream::connect(&address).await else { continue };
        if n < 300 {
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n")).await;
            let _ = tokio::time::timeout(Duration::from_millis(50), stream.write_all(header.repeat(360).as_bytes())).await;
        }
        held.push(stream);
    }
    another_tenant_is_served(&good).await;
    operator.lives();
    assert!(!is_released() || operator.peak() < MEMORY, "{} MiB", operator.peak());
    let asked = Instant::now();
    eventually("the port answers", || async {
        reqwest::get(format!("{}/healthz", operator.metrics)).await.is_ok_and(|r| r.status().is_success()).then_some(())
    })
    .await;
    assert!(asked.elapsed() < Duration::from_secs(30), "held for {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_body_without_a_token_holds_no_connection() {
    let world = World::empty("bodies").await;
    let operator = Process::start(&[&world], &[]).await;
    let address = operator.api.trim_start_matches("http://").to_owned();
    let mut held = Vec::new();
    for _ in 0..256 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"POST /api/connections/destroy/x HTTP/1.1\r\nhost: x\r\ncontent-length: 4000\r\n\r\n{").await.unwrap();
        held.push(stream);
    }
    let begun = Instant::now();
    eventually("the API answers", || async {
        let answer = reqwest::get(format!("{}/api/connections/stats", operator.api)).await.ok()?;
        (answer.status() == reqwest::StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_one_policys_failure_in_every_stage() {
    for stage in ["discover", "gather", "decide", "capture", "write", "report", "sample", "restore"] {
        let world = World::empty("panic").await;
        let planted = format!("{stage}:{}/evil", world.namespace);
        let mut operator = Process::start(&[&world], &[("IDLECONN_PLANT_PANIC", &planted)]).await;
        let node = AdminApi::start(typical()).await;
        let mut spec = caddies([node.address.as_str()]);
        if stage == "sample" {
            spec["adaptive"] = json!({"mode": "Enforce", "floor": {"server": {"idleTimeout": "5s"}}, "signal": {"threshold": {"value": 1000}, "interval": "1s"}});
        }
        world.apply("evil", &spec).await;
        if stage == "restore" {
            world.until_programmed("evil").await;
            world.policies().delete("evil", &kube::api::DeleteParams::default()).await.unwrap();
        }
        eventually(&format!("{stage} panics"), || async { operator.metric("idleconn_panics_total").await.filter(|n| *n > 0.0) })
            .await;
        if stage != "sample" {
            world.until_condition("evil", "Ready", "False", "InternalError").await;
        }
        another_tenant_is_served(&world).await;
        operator.lives();
        let health = reqwest::get(format!("{}/healthz", operator.metrics)).await.unwrap();
        assert!(health.status().is_success(), "{stage}");
        if stage == "restore" {
            world
                .policies()
                .patch(
                    "evil",
                    &kube::api::PatchParams::default(),
                    &kube::api::Patch::Merge(json!({"metadata": {"finalizers": []}})),
                )
                .await
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_holds_beyond_the_specs_ranges_is_said_and_corrected() {
    let world = World::empty("ranges").await;
    let _operator = Process::start(&[&world], &[]).await;
    let node = AdminApi::start(typical()).await;
    world.apply("gw", &caddies([node.address.as_str()])).await;
    world.until_programmed("gw").await;
    node.store("/web/idle_timeout", json!("2562047h47m16s"));
    eventually("the drift is corrected", || async { (node.servers()["web"]["idle_timeout"] == "30s").then_some(()) }).await;

    let proxy = "/web/routes/0/handle/0/routes/0/handle/0/transport";
    let odd = AdminApi::start(typical()).await;
    assert!(odd.servers().pointer("/web/routes/0/handle/0/routes/0/handle/0").is_some());
    odd.store(proxy, json!({"protocol": "http", "keep_alive": {"max_idle_conns": 2_000_000_000, "idle_timeout": "250us"}}));
    let spec = json!({"target": endpoints([odd.address.as_str()]), "suspend": true, "limits": {"backend": {"maxIdleConns": 10, "idleConnTimeout": "20s"}}});
    world.apply("odd", &spec).await;
    let status = world.until_condition("odd", "Ready", "True", "Suspended").await;
    let programmed = status.limits.unwrap().programmed.unwrap().backend.unwrap();
    assert_eq!(programmed.max_idle_conns, Some(2_000_000_000));
    assert_eq!(programmed.idle_conn_timeout.unwrap().to_string(), "250us", "what is stored is said as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uuid_from_another_namespace_takes_nothing_and_poisons_nothing() {
    let (evil, good) = (World::empty("evil").await, World::empty("victim").await);
    let operator = Process::start(&[&evil, &good], &[]).await;
    let real = Ais::start().await;
    let uuid = real.cluster().uuid.clone();
    // The older policy belongs to the attacker. Its server reports the uuid of the victim and a poisonous original value.
    let fake = Hostile::start(Arc::new({
        let script = aistore(&uuid, 1, Duration::ZERO, "10s", "1");
        move |path| {
            let (late, status, body) = script(path);
            (late, status, String::from_utf8(body).unwrap().replace("\"6s\"", "\"1ms\"").into_bytes())
        }
    }))
    .await;
    evil.apply("older", &ais(&fake.address)).await;
    until_asked(&fake, 8).await;
    good.apply("prod", &ais(&real.proxies[0])).await;
    let status = good.until_programmed("prod").await;
    let accepted = find(&status, "Accepted").unwrap();
    assert_eq!((accepted.status.as_str(), accepted.reason.as_str()), ("True", "SharedIdentity"));
    assert_eq!(real.http("idle_conn_time"), "20s");
    evil.until_condition("older", "Accepted", "True", "SharedIdentity").await;
    good.delete("prod").await;
    assert_eq!(real.http("idle_conn_time"), "6s", "restored to what it held itself");
    let restored = good.event_notes("prod").await.into_iter().find(|(reason, _)| reason == "Restored").map(|(_, note)| note);
    assert_eq!(restored.as_deref(), Some("1 node has its original settings back"));
    evil.until("older", "the other is gone", |s| find(s, "Accepted").is_some_and(|c| c.reason != "SharedIdentity")).await;
    drop(operator);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_came_back_under_its_name_is_not_evicted_again() {
    let world = World::empty("evict").await;
    let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let pod = json!({"metadata": {"name": "t1"}, "spec": {"containers": [{"name": "t1", "image": "ais"}]}});
    let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let evict = async |uid: &str| {
        let eviction = eviction("t1", uid);
        pods.create_subresource::<Eviction, Status>("eviction", "t1", &PostParams::default(), &eviction).await
    };
    let refused = evict("00000000-0000-0000-0000-000000000000").await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.is_conflict()), "{refused}");
    assert!(pods.get_opt("t1").await.unwrap().is_some());
    evict(pod.metadata.uid.as_deref().unwrap()).await.unwrap();
    assert!(pods.get_opt("t1").await.unwrap().is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()));
}
