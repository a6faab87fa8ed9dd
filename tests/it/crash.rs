//! Kill -9 after any write: the final state is the same as without it.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use crate::support::{
    admin_api::AdminApi,
    caddy::typical,
    operator::{World, endpoints},
    proxy::{Proxy, Tripwire, killed_after_each},
};

/// State that must be the same.
#[derive(Debug, PartialEq)]
struct End {
    originals: Vec<Json>,
    original_objects: Vec<String>,
    edited: Vec<Json>,
    corrected: Vec<Json>,
    restored: Vec<Json>,
    events: BTreeMap<(String, String), usize>,
}

/// Runs the whole life of a policy, and kills the operator after this write. Also returns the number of writes.
async fn life(kill_after: usize) -> (End, usize) {
    let world = World::empty("crash").await;
    let tripwire = Tripwire::new(kill_after, &world.namespace);
    let nodes = [AdminApi::start(typical()).await, AdminApi::start(typical()).await];
    let mut proxies = Vec::new();
    for node in &nodes {
        proxies.push(Proxy::to_node(node.address.clone(), tripwire.clone()).await);
    }
    let api = Proxy::to_api(world.client.clone(), tripwire.clone()).await;
    tripwire.start_operator(&api.address);
    let target = endpoints(proxies.iter().map(|proxy| proxy.address.as_str()));
    // Two batches, one right after the other.
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"pause": "0s"}});
    let servers = || nodes.iter().map(AdminApi::servers).collect::<Vec<_>>();

    world
        .apply("gw", &json!({"target": target, "limits": {"server": {"idleTimeout": "30s"}, "backend": {"maxIdleConns": 50}}, "updateStrategy": strategy}))
        .await;
    world.until_programmed("gw").await;
    world
        .apply("gw", &json!({"target": target, "limits": {"server": {"idleTimeout": "20s"}, "backend": {"maxIdleConns": 50}}, "updateStrategy": strategy}))
        .await;
    world.until_programmed("gw").await;
    let edited = servers();

    let drifted =
        json!({"web": {"idle_timeout": "77s", "routes": edited[0]["web"]["routes"], "listen": edited[0]["web"]["listen"]}});
    let client = reqwest::Client::new();
    let changed = client.patch(format!("{}/config/apps/http/servers", nodes[0].address)).json(&drifted).send().await.unwrap();
    assert!(changed.status().is_success());
    world.until_event("gw", "DriftCorrected").await;
    world.until_programmed("gw").await;
    let corrected = servers();
    let (originals, original_objects) = world.originals("gw").await;

    world.delete("gw").await;
    let restored = servers();
    let events = events(&world, &proxies).await;
    assert!(world.originals("gw").await.1.is_empty(), "originals are left behind");
    tripwire.clean();
    // Keyed by node, because addresses differ between runs.
    let originals = proxies.iter().map(|proxy| originals[&proxy.address].clone()).collect();
    (End { originals, original_objects, edited, corrected, restored, events }, tripwire.writes())
}

/// Returns the number of Events for each reason and note.
async fn events(world: &World, proxies: &[Proxy]) -> BTreeMap<(String, String), usize> {
    let mut events = BTreeMap::new();
    for (reason, mut note) in world.event_notes("gw").await {
        for (n, proxy) in proxies.iter().enumerate() {
            note = note.replace(proxy.address.trim_start_matches("http://"), &format!("node-{n}"));
        }
        *events.entry((reason, note)).or_default() += 1;
    }
    events
}

/// Runs one step of adaptive control, and kills the operator after this write. Returns the limits, the decisions, the Events and
/// the number of writes.
async fn step(kill_after: usize) -> ((Json, Vec<(u32, u32)>, BTreeMap<String, usize>), usize) {
    let world = World::empty("crash-loop").await;
    let tripwire = Tripwire::new(kill_after, &world.namespace);
    let node = AdminApi::start(typical()).await;
    node.run(2000);
    let proxies = [Proxy::to_node(node.address.clone(), tripwire.clone()).await];
    let api = Proxy::to_api(world.client.clone(), tripwire.clone()).await;
    tripwire.start_operator(&api.address);
    let policy = json!({
        "target": endpoints([proxies[0].address.as_str()]),
        "limits": {"server": {"idleTimeout": "2m"}},
        "adaptive": {
            "mode": "Enforce",
            "floor": {"server": {"idleTimeout": "5s"}},
            "signal": {"threshold": {"value": 1000}, "interval": "1s"},
            // Only one step is allowed, so that the result does not depend on the start time of a restarted operator.
            "behavior": {"tightenAfter": "1s", "maxChangesPerHour": 1},
        },
    });
    world.apply("gw", &policy).await;
    world
        .until("gw", "tightened, stored and said", |s| {
            let stored = s.limits.as_ref().is_some_and(|l| l.desired.is_some() && l.desired == l.programmed);
            stored && s.openness_percent.is_some_and(|u| u < 100)
        })
        .await;
    world.until_event("gw", "Tightened").await;
    let decided = world.status("gw").await.history.iter().map(|d| (d.from_percent, d.to_percent)).collect();
    let mut told = BTreeMap::new();
    for ((reason, _), n) in events(&world, &proxies).await {
        *told.entry(reason).or_default() += n;
    }
    // A restarted operator does not know the task count until the first sample, and may report it again.
    let high = told.remove("HighTaskCount");
    assert!(matches!(high, Some(1 | 2)), "{high:?} times, killed after write {kill_after}");
    let end = (node.servers(), decided, told);
    world.delete("gw").await;
    assert_eq!(node.servers(), typical(), "killed after write {kill_after}");
    tripwire.clean();
    (end, tripwire.writes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_a_decision_and_its_write_neither_forgets_nor_repeats_it() {
    let (expected, writes) = step(usize::MAX).await;
    let (servers, decided, told) = &expected;
    assert!(servers["web"]["idle_timeout"] != "2m" && decided.len() == 1 && decided[0].1 < decided[0].0, "{expected:?}");
    assert_eq!(told.get("Tightened"), Some(&1));
    assert!((8..25).contains(&writes), "{writes} writes; is one missing, or one made twice?");
    killed_after_each(writes, &expected, step).await;
    println!("killed after each of {writes} writes: one step, made once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_after_any_write_changes_nothing() {
    let (expected, writes) = life(usize::MAX).await;
    assert_eq!(expected.restored, [typical(), typical()]);
    assert_eq!(expected.corrected, expected.edited);
    let reasons: Vec<_> = expected.events.iter().map(|((reason, _), n)| (reason.as_str(), *n)).collect();
    assert_eq!(
        reasons,
        [("Accepted", 1), ("Advice", 2), ("DriftCorrected", 1), ("DriftDetected", 1), ("Programmed", 2), ("Restored", 1)]
    );
    assert!((18..30).contains(&writes), "{writes} writes in a life; is one missing, or one made twice?");

    killed_after_each(writes, &expected, life).await;
    println!("killed after each of {writes} writes: the end was the same");
}
