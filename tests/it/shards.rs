//! Several shards: replicas share them evenly, and a policy has one actor, whichever replicas come and go.

use std::time::{Duration, Instant};

use idleconn_operator::decide::shard::Shard;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt, api::ListParams};
use reqwest::{StatusCode, header, redirect};
use serde_json::{Value as Json, json};

use crate::support::{
    admin_api::AdminApi,
    caddy::{Caddy, typical},
    eventually,
    operator::{World, endpoints, find, gateway},
    replica::{Replica, Times},
};

/// Short times, with the proportions of the defaults.
const SHORT: Times = ["4s", "3s", "500ms"];
/// Times of many replicas on a busy machine: a replica that gets no processor for seconds exits.
const BUSY: Times = ["6s", "5s", "500ms"];
/// Times that are too long to elapse in a test.
const LONG: Times = ["120s", "60s", "500ms"];

/// Returns a namespace of each shard, in the order of the shards.
async fn worlds(count: u32) -> Vec<World> {
    let mut of_shard: Vec<Option<World>> = (0..count).map(|_| None).collect();
    while of_shard.iter().any(Option::is_none) {
        let world = World::empty("shards").await;
        let shard = Shard::each(count).find(|shard| shard.has(&world.namespace)).unwrap();
        of_shard[shard.index() as usize].get_or_insert(world);
    }
    of_shard.into_iter().flatten().collect()
}

/// All at once: an edit that follows another one within ten seconds would wait for the pause between batches.
fn policy(node: &AdminApi, limit: &str) -> Json {
    json!({
        "target": endpoints([node.address.as_str()]),
        "limits": {"server": {"idleTimeout": limit}},
        "updateStrategy": {"type": "AllAtOnce"},
    })
}

fn idle(node: &AdminApi) -> Json {
    node.servers()["web"]["idle_timeout"].clone()
}

/// Waits until each shard has one actor, and the replicas have these numbers of shards.
async fn until_shared(replicas: &[&Replica], count: u32, expected: &[usize]) {
    eventually(&format!("the shards are shared as {expected:?}"), || async {
        let mut all = Vec::new();
        let mut sizes = Vec::new();
        for replica in replicas {
            let held = replica.shards().await;
            sizes.push(held.len());
            all.extend(held);
        }
        all.sort_unstable();
        (all.into_iter().eq(0..count) && sizes == expected).then_some(())
    })
    .await;
}

/// Waits until this second is over: the creation time of a policy has whole seconds.
async fn until_next_second() {
    let begun = jiff::Timestamp::now().as_second();
    eventually("the clock ticks", || async { (jiff::Timestamp::now().as_second() > begun).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_come_and_go_share_the_shards_evenly() {
    let worlds = worlds(4).await;
    let mut first = Replica::start_shards(&worlds, "first", LONG, "4");
    until_shared(&[&first], 4, &[4]).await;
    let second = Replica::start_shards(&worlds, "second", LONG, "4");
    until_shared(&[&first, &second], 4, &[2, 2]).await;
    first.signal("TERM");
    assert!(first.ended().await, "{}", first.log());
    // The Leases are valid for two minutes.
    until_shared(&[&second], 4, &[4]).await;
    first.clean();
    second.clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_policy_wins_across_shards() {
    let worlds = worlds(2).await;
    let replica = Replica::start_shards(&worlds, "only", LONG, "2");
    let (node, pod) = (AdminApi::start(typical()).await, Caddy::typical().await);
    worlds[1].apply("zzz", &policy(&node, "30s")).await;
    worlds[1].pod("gw", &json!({"app": "gateway"}), &pod).await;
    worlds[1].apply("pods", &json!({"target": gateway(), "limits": {"server": {"idleTimeout": "30s"}}})).await;
    until_next_second().await;
    let same_pod = json!({"target": endpoints([pod.admin().as_str()]), "limits": {"server": {"idleTimeout": "20s"}}});
    worlds[0].apply("same-pod", &same_pod).await;
    worlds[0].apply("aaa", &policy(&node, "20s")).await;
    for name in ["aaa", "same-pod"] {
        let status = worlds[0].until_condition(name, "Accepted", "False", "Conflicted").await;
        let accepted = find(&status, "Accepted").unwrap();
        assert_eq!(accepted.message, "An older policy in another namespace governs the same target; delete one of them");
    }
    worlds[1].until_programmed("zzz").await;
    worlds[1].until_programmed("pods").await;
    assert_eq!((idle(&node), node.writes()), (json!("30s"), 1));
    let claims = worlds[1].status("zzz").await.claims.unwrap();
    assert_eq!((claims.targets.len(), claims.partial), (1, false));

    worlds[1].delete("zzz").await;
    worlds[0].until_programmed("aaa").await;
    assert_eq!(idle(&node), json!("20s"));
    worlds[0].delete("aaa").await;
    assert_eq!(node.servers(), typical());
    replica.clean();
}

/// Kills a replica of three right after an edit of each of its policies, `rounds` times. Returns the time until all edits were
/// written and all shards had an actor, for each round; it is at most the Lease and two seconds.
async fn failovers(rounds: usize) -> Vec<Duration> {
    const SHARDS: u32 = 6;
    let worlds = worlds(SHARDS).await;
    let mut nodes = Vec::new();
    for world in &worlds {
        let node = AdminApi::start(typical()).await;
        world.apply("gw", &policy(&node, "10s")).await;
        nodes.push((node, 1));
    }
    let start = |n: usize| Replica::start_shards(&worlds, ["first", "second", "third"][n], BUSY, "6");
    let mut replicas = [start(0), start(1), start(2)];
    let mut took = Vec::new();
    for round in 0..rounds {
        until_shared(&replicas.iter().collect::<Vec<_>>(), SHARDS, &[2, 2, 2]).await;
        for world in &worlds {
            world.until_programmed("gw").await;
        }
        let victim = round % replicas.len();
        let limit = format!("{}s", 11 + round);
        let shards = replicas[victim].shards().await;
        for shard in &shards {
            let (world, (node, writes)) = (&worlds[*shard as usize], &mut nodes[*shard as usize]);
            world.apply("gw", &policy(node, &limit)).await;
            *writes += 1;
        }
        replicas[victim].kill().await;
        let killed = Instant::now();
        for shard in &shards {
            let node = &nodes[*shard as usize].0;
            eventually("the edit is written", || async { (idle(node) == json!(limit)).then_some(()) }).await;
        }
        // Each shard has an actor again, also those whose edit the killed replica had written.
        let others: Vec<_> = replicas.iter().enumerate().filter(|(n, _)| *n != victim).map(|(_, replica)| replica).collect();
        until_shared(&others, SHARDS, &[3, 3]).await;
        let acted = killed.elapsed();
        // Here, so that the logs of the replicas are kept.
        assert!(acted <= Duration::from_secs(6 + 2), "in round {round}, acted on after {acted:?}");
        took.push(acted);
        replicas[victim].clean();
        replicas[victim] = start(victim);
    }
    until_shared(&replicas.iter().collect::<Vec<_>>(), SHARDS, &[2, 2, 2]).await;
    for (world, (node, writes)) in worlds.iter().zip(&nodes) {
        world.until_programmed("gw").await;
        assert_eq!(node.writes(), *writes, "an edit was written twice, or not at all");
        world.delete("gw").await;
        assert_eq!(node.servers(), typical());
    }
    // Two of the Leases of killed replicas can be there still; older ones are deleted.
    let leases = Api::<Lease>::namespaced(worlds[0].client.clone(), &worlds[0].namespace);
    let members = leases.list(&ListParams::default()).await.unwrap().items;
    let members = members.iter().filter(|lease| lease.name_any().contains("-replica-")).count();
    assert!((3..=5).contains(&members), "{members} Leases of replicas");
    for replica in &replicas {
        replica.clean();
    }
    took
}

/// [`failovers`] checks the time of each round. `IDLECONN_ROUNDS` sets the number of rounds, 3 by default.
#[tokio::test(flavor = "multi_thread")]
async fn the_policies_of_a_killed_replica_are_acted_on_within_the_lease_and_two_seconds() {
    let rounds = std::env::var("IDLECONN_ROUNDS").map_or(3, |rounds| rounds.parse().unwrap());
    let mut took = failovers(rounds).await;
    took.sort();
    println!("{rounds} rounds, Leases of 6 s: acted on after {:?} at the least, {:?} at the most", took[0], took[took.len() - 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_shards_never_means_two_actors() {
    let worlds = worlds(2).await;
    let node = AdminApi::start(typical()).await;
    worlds[1].apply("gw", &policy(&node, "30s")).await;
    let mut before = Replica::start_shards(&worlds, "before", SHORT, "2");
    worlds[1].until_programmed("gw").await;
    let mut replicas = Vec::new();
    for (n, shards) in ["1", "3", "2"].into_iter().enumerate() {
        let next = Replica::start_shards(&worlds, &format!("next-{n}"), SHORT, shards);
        next.until_ready().await;
        let acts = || async { next.leads().await || !next.shards().await.is_empty() };
        let limit = format!("{}s", 20 + n);
        worlds[1].apply("gw", &policy(&node, &limit)).await;
        worlds[1].until_programmed("gw").await;
        assert!(!acts().await, "it waits for the replicas with another number of shards");
        if shards == "2" {
            // The former replica is frozen and finds another number of shards when it wakes.
            before.signal("STOP");
            eventually("the next replica acts", || async { acts().await.then_some(()) }).await;
            worlds[1].apply("gw", &policy(&node, "40s")).await;
            worlds[1].until_programmed("gw").await;
            let writes = node.writes();
            before.signal("CONT");
            assert!(!before.ended().await, "a replica that has lost its Lease ends, and not well");
            assert_eq!(node.writes(), writes);
        } else {
            before.signal("TERM");
            assert!(before.ended().await, "{}", before.log());
            eventually("the next replica acts", || async { acts().await.then_some(()) }).await;
        }
        replicas.push(std::mem::replace(&mut before, next));
    }
    // Each edit was written once.
    assert_eq!((idle(&node), node.writes()), (json!("40s"), 5));
    for replica in replicas.iter().chain([&before]) {
        replica.clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn release_stops_the_actors_of_all_shards() {
    let worlds = worlds(2).await;
    let mut nodes = Vec::new();
    for world in &worlds {
        let node = AdminApi::start(typical()).await;
        world.apply("gw", &policy(&node, "30s")).await;
        nodes.push(node);
    }
    let mut replicas = ["first", "second"].map(|name| Replica::start_shards(&worlds, name, SHORT, "2"));
    until_shared(&replicas.iter().collect::<Vec<_>>(), 2, &[1, 1]).await;
    for world in &worlds {
        world.until_programmed("gw").await;
    }
    let namespaces: Vec<_> = worlds.iter().map(|world| world.namespace.as_str()).collect();
    let released = tokio::process::Command::new(env!("CARGO_BIN_EXE_idleconn-operator"))
        .args(["release", "--all", "--leader-election", "--shards", "2", "--namespaces", &namespaces.join(",")])
        .args(["--lease-duration", SHORT[0], "--lease-renew-deadline", SHORT[1], "--lease-retry-period", SHORT[2]])
        .args(["--allow-endpoints", "127.0.0.0/8", "--lease-namespace", &worlds[0].namespace, "--kubeconfig"])
        .arg(crate::support::cluster::kubeconfig())
        .output()
        .await
        .unwrap();
    assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    for replica in &mut replicas {
        assert!(!replica.ended().await, "a replica that has lost the Lease of all replicas ends");
        replica.clean();
    }
    for node in &nodes {
        assert_eq!(node.servers(), typical());
    }
    let leases = Api::<Lease>::namespaced(worlds[0].client.clone(), &worlds[0].namespace);
    let left: Vec<_> = leases.list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, ["idleconn-operator"], "the Leases of shards and replicas are deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_replica_answers_for_a_policy_or_redirects_to_the_one_that_acts() {
    let worlds = worlds(2).await;
    let node = AdminApi::start(typical()).await;
    worlds[0].apply("gw", &policy(&node, "30s")).await;
    let (first, second) =
        (Replica::start_shards(&worlds, "first", LONG, "2"), Replica::start_shards(&worlds, "second", LONG, "2"));
    until_shared(&[&first, &second], 2, &[1, 1]).await;
    worlds[0].until_programmed("gw").await;
    let first_acts = first.shards().await == [0];
    let (acting, other) = if first_acts { (&first, &second) } else { (&second, &first) };

    let direct = reqwest::Client::builder().redirect(redirect::Policy::none()).build().unwrap();
    let policies: Json = direct.get(format!("{}/api/policies", other.api)).send().await.unwrap().json().await.unwrap();
    assert_eq!((&policies["data"][0]["name"], &policies["data"][0]["acting"]), (&json!("gw"), &json!(false)));
    let nodes = format!("/api/policies/{}/gw/nodes", worlds[0].namespace);
    eventually("the actor has observed the node", || async {
        (direct.get(format!("{}{nodes}", acting.api)).send().await.ok()?.status() == StatusCode::OK).then_some(())
    })
    .await;
    let destroy = format!("/api/connections/destroy/{}%2Fgw", worlds[0].namespace);
    for request in [direct.get(format!("{}{nodes}", other.api)), direct.post(format!("{}{destroy}", other.api))] {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
        assert!(answer.headers()[header::LOCATION].to_str().unwrap().starts_with(&acting.api));
    }
    let followed: Json = reqwest::get(format!("{}{nodes}", other.api)).await.unwrap().json().await.unwrap();
    assert_eq!(followed["data"]["nodes"][0]["stage"], "InEffect", "{followed}");
    worlds[0].delete("gw").await;
    first.clean();
    second.clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_while_a_shard_changes_hands() {
    let worlds = worlds(2).await;
    let node = AdminApi::start(typical()).await;
    for world in &worlds {
        world.apply("gw", &policy(&node, "30s")).await;
    }
    let first = Replica::start_shards(&worlds, "first", LONG, "2");
    until_shared(&[&first], 2, &[2]).await;
    let second = Replica::start_shards(&worlds, "second", LONG, "2");
    let direct = reqwest::Client::builder().redirect(redirect::Policy::none()).build().unwrap();
    let asking = async {
        loop {
            for (replica, world) in
                [&first, &second].into_iter().flat_map(|replica| worlds.iter().map(move |world| (replica, world)))
            {
                let nodes = format!("{}/api/policies/{}/gw/nodes", replica.api, world.namespace);
                // It is refused until the API listens.
                let Ok(answer) = direct.get(nodes).send().await else { continue };
                let said = answer.text().await.unwrap();
                assert!(!said.contains("NotLeading"), "{said}");
            }
        }
    };
    let replicas = [&first, &second];
    tokio::select! {
        () = until_shared(&replicas, 2, &[1, 1]) => {}
        never = asking => never,
    }
    first.clean();
    second.clean();
}
