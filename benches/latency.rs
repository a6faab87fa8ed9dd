//! Time from a spec edit until every node has it and the status shows it. `make bench`.
//!
//! The same run also makes the same writes without an operator, for a ratio that does not depend on the machine.

#![allow(clippy::unwrap_used, clippy::panic, clippy::large_futures, missing_docs, dead_code, unused_imports)]

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use kube::{Api, runtime::wait::await_condition};
use serde_json::{Value as Json, json};
use support::{
    admin_api::AdminApi,
    caddy::{Caddy, typical},
    load::Clients,
    operator::{World, endpoints, find},
};

/// Edits for three nodes, and for fifty.
const EDITS: usize = 20;
/// Edits of which the first batch is measured.
const BATCHES: usize = 5;
/// Greatest median for three nodes.
const THREE: Duration = Duration::from_millis(250);
/// Greatest time of the first batch.
const BATCH: Duration = Duration::from_millis(250);
/// Greatest time for fifty nodes.
const FIFTY: Duration = Duration::from_secs(1);

/// Greatest reaction time without dwell: one interval of a second, and two more.
const REACTION: Duration = Duration::from_secs(3);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let missed = runtime.block_on(async {
        support::cluster::client().await;
        let caddies = [Caddy::typical().await, Caddy::typical().await, Caddy::typical().await];
        let bare = bare(&caddies).await;
        println!("three Caddies, read, changed and read again side by side without an operator: median {bare:?}");

        let three = edits(caddies.iter().map(Caddy::admin).collect()).await;
        let ratio = three[three.len() / 2].as_secs_f64() / bare.as_secs_f64();
        println!("3 real nodes, {EDITS} edits: {} ({ratio:.1} times the bare writes)", figures(&three));

        let mut stand_ins = Vec::new();
        for _ in 0..47 {
            stand_ins.push(AdminApi::start(typical()).await);
        }
        let all = caddies.iter().map(Caddy::admin).chain(stand_ins.iter().map(|node| node.address.clone())).collect();
        let fifty = edits(all).await;
        println!("50 nodes, 3 of them real, {EDITS} edits: {}", figures(&fifty));
        let batches = first_batches(&stand_ins).await;
        println!("first batch of 47 nodes with the default strategy, {BATCHES} edits: {}", figures(&batches));
        let reaction = reaction().await;
        println!(
            "from 3,000 connections opened on a real Caddy to its idle_timeout changed, sampled every second: {reaction:.1?}"
        );
        three[three.len() / 2] > THREE
            || fifty[fifty.len() - 1] > FIFTY
            || batches[batches.len() - 1] > BATCH
            || reaction > REACTION
    });
    if missed {
        println!(
            "missed: the median of three nodes must be under {THREE:?}, every edit of fifty under {FIFTY:?}, every first batch under {BATCH:?}, a reaction within {REACTION:?}"
        );
        std::process::exit(1);
    }
}

fn figures(sorted: &[Duration]) -> String {
    let last = sorted.len() - 1;
    format!("median {:.0?}, p95 {:.0?}, max {:.0?}", sorted[sorted.len() / 2], sorted[last * 95 / 100], sorted[last])
}

async fn edits(mut nodes: Vec<String>) -> Vec<Duration> {
    let mut world = World::empty("bench").await;
    world.start(Duration::from_secs(30));
    // A policy has at most 64 endpoints.
    nodes.truncate(64);
    let mut took = Vec::new();
    for n in 0..=EDITS {
        let spec = spec(&nodes, n, "AllAtOnce");
        let began = Instant::now();
        world.apply("gw", &spec).await;
        let status = world.until_programmed("gw").await;
        assert_eq!(status.nodes.unwrap().programmed as usize, nodes.len());
        // Skip the first one, which is not an edit: the originals are saved before it.
        if n > 0 {
            took.push(began.elapsed());
        }
    }
    world.delete("gw").await;
    took.sort();
    took
}

fn spec(nodes: &[String], n: usize, strategy: &str) -> Json {
    json!({
        "target": endpoints(nodes.iter().map(String::as_str)),
        "limits": {"server": {"idleTimeout": format!("{}s", 200 + n)}, "backend": {"maxIdleConns": 100 + n}},
        "updateStrategy": {"type": strategy},
    })
}

/// Times from an edit until the whole first batch is written, with the default strategy.
async fn first_batches(nodes: &[AdminApi]) -> Vec<Duration> {
    let mut world = World::empty("batches").await;
    world.start(Duration::from_secs(30));
    let addresses: Vec<_> = nodes.iter().map(|node| node.address.clone()).collect();
    world.apply("gw", &spec(&addresses, 0, "AllAtOnce")).await;
    world.until_programmed("gw").await;
    let mut took = Vec::new();
    for n in 1..=BATCHES {
        // An update that follows another one within the pause waits for the rest of it.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let before: Vec<_> = nodes.iter().map(AdminApi::writes).collect();
        let began = Instant::now();
        world.apply("gw", &spec(&addresses, n, "RollingUpdate")).await;
        support::eventually("the first batch is written", || async {
            let written = nodes.iter().zip(&before).filter(|(node, before)| node.writes() > **before).count();
            (written >= nodes.len() / 4).then_some(())
        })
        .await;
        took.push(began.elapsed());
    }
    world.delete("gw").await;
    took.sort();
    took
}

/// Time from opening 3,000 connections at once until the server has shorter limits.
async fn reaction() -> Duration {
    let caddy =
        Caddy::start(json!({"web": {"listen": ["IP:8080"], "routes": [{"handle": [{"handler": "static_response"}]}]}})).await;
    let mut world = World::empty("reaction").await;
    world.start(Duration::from_secs(30));
    let spec = json!({
        "target": endpoints([caddy.admin().as_str()]),
        "limits": {"server": {"idleTimeout": "2m"}},
        // By default the step would wait until 10 s after the first write.
        "updateStrategy": {"type": "AllAtOnce"},
        "adaptive": {
            "mode": "Enforce",
            "floor": {"server": {"idleTimeout": "5s"}},
            "signal": {"threshold": {"value": 1000}, "interval": "1s"},
            "behavior": {"tightenAfter": "1s", "relaxAfter": "1m"},
        },
    });
    world.apply("gw", &spec).await;
    world.until_condition("gw", "HighTaskCount", "False", "UnderThreshold").await;
    let clients = Clients::start((caddy.ip, 8080).into(), 3000, 0);
    support::eventually("3,000 connections are open", || async { (clients.open() >= 3000).then_some(()) }).await;
    let began = Instant::now();
    support::eventually("the server has shorter limits", || async {
        (caddy.servers().await["web"]["idle_timeout"] != json!("2m")).then_some(())
    })
    .await;
    began.elapsed()
}

/// The minimum for comparison: read, change and read every node again.
async fn bare(caddies: &[Caddy]) -> Duration {
    let mut took = Vec::new();
    for n in 0..EDITS {
        let began = Instant::now();
        futures::future::join_all(caddies.iter().map(|caddy| async move {
            caddy.servers().await;
            caddy.set("/web/idle_timeout", json!(format!("{}s", 60 + n))).await;
            caddy.servers().await;
        }))
        .await;
        took.push(began.elapsed());
    }
    futures::future::join_all(caddies.iter().map(|caddy| caddy.set("/web/idle_timeout", json!("5m")))).await;
    took.sort();
    took[took.len() / 2]
}
