//! A steady state has no cost: no write to the API server, no write to a node, no additional connection.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use k8s_openapi::api::{apps::v1::ControllerRevision, events::v1::Event};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::{Value as Json, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::{
    admin_api::AdminApi,
    ais::Ais,
    caddy::typical,
    cluster,
    operator::{World, endpoints},
};

/// Duration of the test, from `IDLECONN_STEADY_SECONDS`. `make soak` sets two minutes.
fn window() -> Duration {
    Duration::from_secs(std::env::var("IDLECONN_STEADY_SECONDS").map_or(15, |s| s.parse().unwrap()))
}

/// Returns the number of connections to each node of this test. Other tests use the same ports on other addresses.
fn connections(nodes: &BTreeMap<SocketAddrV4, usize>) -> BTreeMap<SocketAddrV4, usize> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let established = table.lines().skip(1).filter(|line| line.split_whitespace().nth(3) == Some("01"));
    let mut found = BTreeMap::new();
    for line in established {
        let (host, port) = line.split_whitespace().nth(2).and_then(|remote| remote.split_once(':')).unwrap();
        // The kernel prints the address as the number that it has in memory.
        let host = Ipv4Addr::from(u32::from_str_radix(host, 16).unwrap().to_ne_bytes());
        let node = SocketAddrV4::new(host, u16::from_str_radix(port, 16).unwrap());
        if nodes.contains_key(&node) {
            *found.entry(node).or_default() += 1;
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_policies_at_rest_write_nothing_and_open_nothing() {
    let mut world = World::empty("steady").await;
    let mut caddies = Vec::new();
    let mut clusters = Vec::new();
    for n in 0..18 {
        let node = [AdminApi::start(typical()).await, AdminApi::start(typical()).await];
        let spec = json!({"target": endpoints(node.iter().map(|n| n.address.as_str())), "limits": {"server": {"idleTimeout": "30s"}, "backend": {"maxIdleConns": 50}}});
        world.apply(&format!("gw-{n}"), &spec).await;
        caddies.extend(node);
    }
    for n in 0..2 {
        let ais = Ais::start().await;
        let spec = json!({"target": {"type": "AIStore", "aistore": {"endpoint": ais.proxies[0]}}, "limits": {"intraCluster": {"idleConnTimeout": "20s"}}});
        world.apply(&format!("ais-{n}"), &spec).await;
        clusters.push(ais);
    }
    world.start(Duration::from_secs(2));
    for n in 0..18 {
        world.until_programmed(&format!("gw-{n}")).await;
    }
    for n in 0..2 {
        world.until_programmed(&format!("ais-{n}")).await;
    }
    // The most connections to each node that are used at the same time: the five nodes of a cluster are read through one proxy.
    let nodes = caddies.iter().map(|node| (&node.address, 1)).chain(clusters.iter().map(|ais| (&ais.proxies[0], 5)));
    let nodes: BTreeMap<SocketAddrV4, usize> =
        nodes.map(|(address, most)| (address.strip_prefix("http://").unwrap().parse().unwrap(), most)).collect();

    // The measurement counts at the start and at the end of this time.
    let began = Instant::now();
    let since = jiff::Timestamp::now();
    let writes = |world: &World| {
        (
            api_writes(&world.namespace, since),
            caddies.iter().map(AdminApi::writes).sum::<usize>(),
            clusters.iter().map(Ais::puts).sum::<usize>(),
        )
    };
    let (_, to_caddies, to_clusters) = writes(&world);
    let objects = versions(&world).await;
    let reads = caddies.iter().map(AdminApi::reads).sum::<usize>();
    sleep(Duration::from_secs(10).min(window() / 2)).await;
    let early = connections(&nodes);
    sleep_until(began + window()).await;
    let late = connections(&nodes);

    let after = writes(&world);
    assert_eq!(versions(&world).await, objects, "objects were written in a steady state");
    assert_eq!(after.0, Vec::<String>::new(), "writes to the API server in a steady state");
    assert_eq!((after.1, after.2), (to_caddies, to_clusters), "writes to nodes in a steady state");
    let looked = caddies.iter().map(AdminApi::reads).sum::<usize>() - reads;
    assert!(looked >= caddies.len() * 3, "the nodes were hardly looked at: {looked}");
    for (node, count) in &late {
        let before = early.get(node).copied().unwrap_or(0);
        assert!(*count <= before.max(nodes[node]), "{node}: {before} connections became {count}; all: {early:?}, then {late:?}");
    }
    println!(
        "steady for {:?}: 0 writes, {looked} reads of {} servers, {} connections, then {}",
        window(),
        caddies.len(),
        early.values().sum::<usize>(),
        late.values().sum::<usize>()
    );
}

/// Returns every object that the operator writes in the namespace, with its resource version.
async fn versions(world: &World) -> Vec<(String, Option<String>)> {
    let mut all = Vec::new();
    for policy in world.policies().list(&ListParams::default()).await.unwrap() {
        all.push((policy.name_any(), policy.resource_version()));
    }
    for revision in
        Api::<ControllerRevision>::namespaced(world.client.clone(), &world.namespace).list(&ListParams::default()).await.unwrap()
    {
        all.push((revision.name_any(), revision.resource_version()));
    }
    for event in Api::<Event>::namespaced(world.client.clone(), &world.namespace).list(&ListParams::default()).await.unwrap() {
        all.push((event.name_any(), event.resource_version()));
    }
    all
}

/// Returns the writing requests in a namespace from the audit log. The audit log of an existing cluster is not accessible.
fn api_writes(namespace: &str, since: jiff::Timestamp) -> Vec<String> {
    let Some(log) = cluster::audit_log() else {
        println!("this cluster's audit log cannot be read; the objects' versions have to do");
        return Vec::new();
    };
    let log = std::fs::read_to_string(log).unwrap();
    let events = log.lines().filter(|line| line.contains(namespace)).filter_map(|line| serde_json::from_str::<Json>(line).ok());
    events
        .filter(|event| event["objectRef"]["namespace"] == namespace)
        .filter(|event| !matches!(event["verb"].as_str(), Some("get" | "list" | "watch")))
        .filter(|event| event["requestReceivedTimestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap() > since)
        .map(|event| format!("{} {}", event["verb"], event["requestURI"]))
        .collect()
}
