//! Several replicas: only the leader acts. If it is gone, frozen or has a wrong clock, nothing is lost and nothing is done twice.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use idleconn_operator::{
    controller,
    leader::{Election, LeaseConfig},
    pool::{Pool, PoolSettings},
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::{Value as Json, json};

use crate::support::{
    admin_api::AdminApi,
    caddy::typical,
    cluster::config,
    eventually,
    operator::{World, endpoints, restless},
    replica::{Replica, Times},
};

/// Short times, with the proportions of the defaults.
const SHORT: Times = ["4s", "3s", "500ms"];
/// Times that are too long to elapse in a test.
const LONG: Times = ["120s", "60s", "500ms"];

async fn lease(world: &World) -> (String, i32) {
    let lease = Api::<Lease>::namespaced(world.client.clone(), &world.namespace).get("idleconn-operator").await.unwrap();
    let spec = lease.spec.unwrap();
    (spec.holder_identity.unwrap_or_default(), spec.lease_transitions.unwrap_or_default())
}

/// Starts two replicas, each with a new log.
async fn two(world: &World, times: Times) -> (Replica, Replica) {
    let first = Replica::start(world, "first", times);
    first.until_it_leads().await;
    let second = Replica::start(world, "second", times);
    second.until_ready().await;
    (first, second)
}

fn idle(node: &AdminApi) -> Json {
    node.servers()["web"]["idle_timeout"].clone()
}

fn policy(node: &AdminApi, limit: &str) -> Json {
    json!({"target": endpoints([node.address.as_str()]), "limits": {"server": {"idleTimeout": limit}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn one_acts_and_hands_over_when_it_is_told_to_stop() {
    let (world, node) = (World::empty("leader").await, AdminApi::start(typical()).await);
    let (mut first, second) = two(&world, LONG).await;
    world.apply("gw", &policy(&node, "30s")).await;
    world.until_programmed("gw").await;
    assert!(!second.leads().await, "a replica that waits is ready and does nothing");
    assert_eq!(second.metric("idleconn_reconciles_total{outcome=\"succeeded\"} ").await, None);
    assert!(lease(&world).await.0.starts_with("first_"));

    first.signal("TERM");
    assert!(first.ended().await, "{}", first.log());
    // The Lease is valid for two minutes.
    second.until_it_leads().await;
    world.apply("gw", &policy(&node, "20s")).await;
    world.until_programmed("gw").await;
    assert_eq!((idle(&node), node.writes()), (json!("20s"), 2));
    assert_eq!(lease(&world).await.1, 1);
    world.delete("gw").await;
    first.clean();
    second.clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_frozen_in_the_middle_of_a_pass_writes_nothing_when_it_wakes() {
    let (world, node) = (World::empty("frozen").await, AdminApi::start(typical()).await);
    let (mut first, second) = two(&world, SHORT).await;
    let answers = node.hold().await;
    world.apply("gw", &policy(&node, "30s")).await;
    eventually("the first one has asked", || async { (node.reads() > 0).then_some(()) }).await;
    first.signal("STOP");
    drop(answers);
    second.until_it_leads().await;
    world.until_programmed("gw").await;
    assert_eq!((idle(&node), node.writes()), (json!("30s"), 1));
    let before = world.get("gw").await.metadata.resource_version;

    first.signal("CONT");
    assert!(!first.ended().await, "a replica that has lost its lease ends, and not well");
    assert!(first.log().contains("lease idleconn-operator"), "{}", first.log());
    assert_eq!(node.writes(), 1, "{}", first.log());
    assert_eq!(world.get("gw").await.metadata.resource_version, before);
    world.delete("gw").await;
    first.clean();
    second.clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn release_takes_the_lease_from_a_controller_that_runs() {
    let (world, node) = (World::empty("seized").await, AdminApi::start(typical()).await);
    let (mut first, second) = two(&world, SHORT).await;
    world.apply("gw", &policy(&node, "30s")).await;
    world.until_programmed("gw").await;
    let released = tokio::process::Command::new(env!("CARGO_BIN_EXE_idleconn-operator"))
        .args(["release", "--all", "--leader-election", "--namespaces", &world.namespace, "--lease-namespace", &world.namespace])
        .args(["--lease-duration", SHORT[0], "--lease-renew-deadline", SHORT[1], "--lease-retry-period", SHORT[2]])
        .args(["--allow-endpoints", "127.0.0.0/8", "--kubeconfig"])
        .arg(crate::support::cluster::kubeconfig())
        .env("POD_NAME", "uninstall")
        .output()
        .await
        .unwrap();
    assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    assert!(!first.ended().await, "the one that acted has ended");
    // No replica reconciles the policy for longer than the Lease was valid.
    let restarted = Replica::start(&world, "first", SHORT);
    restarted.until_ready().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!second.leads().await && !restarted.leads().await);
    assert_eq!(node.servers(), typical());
    assert!(world.get("gw").await.metadata.finalizers.is_none());
    first.clean();
    second.clean();
    restarted.clean();
}

/// Kills the leader as soon as it has decided, `rounds` times. Returns the time until the other replica has acted, for each
/// round.
async fn failovers(rounds: usize) -> Vec<Duration> {
    let (world, node) = (World::empty("failover").await, AdminApi::start(typical()).await);
    let (mut acting, mut waiting) = two(&world, SHORT).await;
    world.apply("gw", &restless(&node, "2s")).await;
    world.until_programmed("gw").await;
    let mut decisions: BTreeMap<i64, (u32, u32)> = BTreeMap::new();
    let mut took = Vec::new();
    for round in 0..rounds {
        let open = world.status("gw").await.openness_percent == Some(100);
        node.run(if open { 2000 } else { 10 });
        let known = decisions.len();
        let status = world
            .until("gw", "another decision", |s| s.history.iter().any(|d| !decisions.contains_key(&d.time.0.as_second())))
            .await;
        acting.kill().await;
        let killed = Instant::now();
        node.run(10);
        decisions.extend(status.history.iter().map(|d| (d.time.0.as_second(), (d.from_percent, d.to_percent))));
        assert!(decisions.len() > known, "round {round}");
        eventually("the other one has acted", || async {
            let passes = waiting.metric("idleconn_reconciles_total{outcome=\"succeeded\"} ").await;
            passes.is_some_and(|passes| passes > 0.0).then_some(())
        })
        .await;
        took.push(killed.elapsed());
        // The next leader carries out the decision.
        world
            .until("gw", "what is desired is stored", |s| {
                let limits = s.limits.clone().unwrap_or_default();
                limits.programmed.as_ref() == limits.desired.as_ref().or(limits.declared.as_ref())
            })
            .await;
        acting.clean();
        let next = Replica::start(&world, ["first", "second"][round % 2], SHORT);
        acting = std::mem::replace(&mut waiting, next);
        waiting.until_ready().await;
    }
    node.run(10);
    let status = world.until("gw", "as declared again", |s| s.openness_percent == Some(100)).await;
    decisions.extend(status.history.iter().map(|d| (d.time.0.as_second(), (d.from_percent, d.to_percent))));
    let mut at = 100;
    for (from, to) in decisions.values() {
        assert_eq!(*from, at, "a decision was forgotten, or made twice: {decisions:?}");
        at = *to;
    }
    let events = world.events("gw").await;
    let told = events.iter().filter(|reason| matches!(reason.as_str(), "Tightened" | "Relaxed")).count();
    assert_eq!(told, decisions.len(), "{decisions:?}, {events:?}");
    world.delete("gw").await;
    assert_eq!(node.servers(), typical());
    acting.clean();
    waiting.clean();
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_in_the_middle_of_a_change_is_followed_by_one_that_neither_forgets_nor_repeats_it() {
    failovers(3).await;
}

/// `make soak` runs this test alone on the machine.
#[tokio::test(flavor = "multi_thread")]
async fn soak_twenty_failovers_each_within_the_lease_and_two_seconds() {
    if std::env::var_os("IDLECONN_STEADY_SECONDS").is_none() {
        return;
    }
    let mut took = failovers(20).await;
    took.sort();
    println!("20 failovers, lease of 4 s: the other had acted after {:?} at the least, {:?} at the most", took[0], took[19]);
    assert!(took[19] <= Duration::from_secs(4 + 2), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_by_five_minutes_changes_nothing() {
    let preload = std::fs::read_dir("/usr/lib")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|path| path.exists())
        .expect("libfaketime is installed (Debian: apt install faketime)");
    let preload = preload.to_str().unwrap();
    for offset in ["+5m", "-5m"] {
        let (world, node) = (World::empty("clock").await, AdminApi::start(typical()).await);
        let mut right = Replica::start(&world, "right", SHORT);
        right.until_it_leads().await;
        let env = [("LD_PRELOAD", preload), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        let mut wrong = Replica::start_with(&world, "wrong", SHORT, &env);
        wrong.until_ready().await;
        node.run(2000);
        // The operator relaxes after one minute. It must not believe that five minutes have passed.
        world.apply("gw", &restless(&node, "1m")).await;
        let status = world.until("gw", "tightened", |s| s.openness_percent.is_some_and(|u| u < 100)).await;
        node.run(10);
        let holder = lease(&world).await;
        assert!(holder.0.starts_with("right_") && holder.1 == 0, "{offset}: {holder:?}");

        right.kill().await;
        wrong.until_it_leads().await;
        assert!(wrong.log().contains("the local clock differs from the API server's"), "{offset}: {}", wrong.log());
        let mut right = Replica::start(&world, "right", SHORT);
        right.until_ready().await;
        // The replica with the wrong clock acts, and the one with the right clock waits for longer than the Lease is valid.
        world
            .until("gw", "the calm is seen", |s| s.conditions.iter().any(|c| c.type_ == "HighTaskCount" && c.status == "False"))
            .await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let now = world.status("gw").await;
        assert_eq!(now.openness_percent, status.openness_percent, "{offset}: {:#?}", now.history);
        let holder = lease(&world).await;
        assert!(holder.0.starts_with("wrong_") && holder.1 == 1, "{offset}: {holder:?}");
        let renewed = Api::<Lease>::namespaced(world.client.clone(), &world.namespace).get("idleconn-operator").await.unwrap();
        let off = renewed.spec.unwrap().renew_time.unwrap().0.duration_since(jiff::Timestamp::now()).abs();
        assert!(off < jiff::SignedDuration::from_secs(5), "{offset}: the Lease's times are off by {off}");

        wrong.signal("TERM");
        assert!(wrong.ended().await, "{offset}");
        right.until_it_leads().await;
        world.delete("gw").await;
        assert_eq!(node.servers(), typical(), "{offset}");
        right.signal("TERM");
        assert!(right.ended().await);
        right.clean();
        wrong.clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_is_renewed_however_many_watches_take_the_other_connections() {
    let world = World::empty("lease").await;
    let (config, pool) = (config().await, Pool::default());
    let client = controller::client(&config, &pool).unwrap();
    pool.provider(controller::PROVIDER).configure(PoolSettings { max_sockets: 1, ..PoolSettings::default() });
    let watching = tokio::spawn({
        let watched = Api::<Lease>::namespaced(client.clone(), &world.namespace);
        async move {
            let stream = watched.watch(&kube::api::WatchParams::default(), "0").await.unwrap();
            std::pin::pin!(stream).for_each(|_| std::future::ready(())).await;
        }
    });
    let active = || {
        let all = pool.statistics();
        all.iter().any(|one| &*one.provider == controller::PROVIDER && one.tally.active == 1)
    };
    eventually("the watch has the connection", || async { active().then_some(()) }).await;
    let terms = LeaseConfig {
        namespace: world.namespace.clone(),
        name: "idleconn-operator".into(),
        identity: "one".into(),
        duration: Duration::from_secs(4),
        renew_deadline: Duration::from_secs(3),
        retry_period: Duration::from_millis(500),
        group: None,
    };
    let mut election = Election::new(controller::lease_client(&config, &pool).unwrap(), terms.checked().unwrap());
    let leadership = election.leadership();
    let run = tokio::spawn(async move { election.run().await });
    leadership.begun().await;
    // No other request gets a connection.
    let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(client, &world.namespace);
    assert!(tokio::time::timeout(Duration::from_secs(5), pods.get_opt("x")).await.is_err(), "the only connection is the watch's");
    assert!(leadership.holds() && !run.is_finished());
    watching.abort();
    run.abort();
}
