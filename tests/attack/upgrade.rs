//! Upgrade of the operator with live policies: the previous version runs, and this version takes over.

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value as Json, json};

use super::{ais, caddies};
use crate::support::{
    admin_api::AdminApi,
    ais::Ais,
    caddy::typical,
    cluster::kubeconfig,
    eventually,
    hostile::Process,
    operator::{World, restless},
};

/// Returns the openness of a policy and its saved originals, without the hash in the paths, which the previous version does not
/// have.
async fn held(world: &World, name: &str) -> (Option<u32>, Json) {
    let (units, _) = world.originals(name).await;
    let plain = |site: &String| match (site.find('['), site.find(']')) {
        (Some(start), Some(end)) => format!("{}{}", &site[..start], &site[end + 1..]),
        _ => site.clone(),
    };
    let plain = |sites: &Json| -> Json {
        sites.as_object().unwrap().iter().map(|(site, raw)| (plain(site), raw.clone())).collect::<serde_json::Map<_, _>>().into()
    };
    let units: std::collections::BTreeMap<_, _> = units.iter().map(|(unit, sites)| (unit, plain(sites))).collect();
    (world.status(name).await.openness_percent, serde_json::to_value(units).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the former program: make upgrade"]
async fn an_upgrade_writes_to_no_node_and_keeps_openness_and_originals() {
    let former = std::env::var("IDLECONN_FORMER").expect("IDLECONN_FORMER names the former program");
    let world = World::empty("upgrade").await;
    let (plain, busy, cluster) = (AdminApi::start(typical()).await, AdminApi::start(typical()).await, Ais::start().await);
    let before = Process::of(&former, &[&world], &[], kubeconfig()).await;
    world.apply("plain", &caddies([plain.address.as_str()])).await;
    busy.run(5000);
    world.apply("busy", &restless(&busy, "1h")).await;
    world.apply("ais", &ais(&cluster.proxies[0])).await;
    for name in ["plain", "ais"] {
        world.until_programmed(name).await;
    }
    world.until("busy", "tightened", |status| status.openness_percent.is_some_and(|openness| openness < 100)).await;
    // The policy is paused, because this test does not cover further decisions of adaptive control.
    let pause = Patch::Merge(json!({"metadata": {"annotations": {"idleconn.io/paused": "true"}}}));
    world.policies().patch("busy", &PatchParams::default(), &pause).await.unwrap();
    world.until_condition("busy", "TighteningLimited", "True", "Paused").await;
    world.until_programmed("busy").await;
    let written = |name: &str| match name {
        "plain" => plain.writes(),
        "busy" => busy.writes(),
        _ => cluster.puts(),
    };
    let names = ["plain", "busy", "ais"];
    let writes: Vec<_> = names.iter().map(|name| written(name)).collect();
    let mut holds = Vec::new();
    for name in names {
        holds.push(held(&world, name).await);
    }
    drop(before);
    let (reads, asked) = ((plain.reads(), busy.reads()), cluster.gets());
    let _after = Process::start(&[&world], &[]).await;
    // Each policy is reconciled three times.
    eventually("all have been looked at", || async {
        (plain.reads() >= reads.0 + 3 && busy.reads() >= reads.1 + 3 && cluster.gets() >= asked + 3).then_some(())
    })
    .await;
    for ((name, writes), before) in names.iter().zip(writes).zip(holds) {
        assert_eq!(written(name), writes, "{name} was written");
        assert_eq!(held(&world, name).await, before, "{name}");
    }
    for name in names {
        world.policies().delete(name, &DeleteParams::default()).await.unwrap();
        eventually("the policy is gone", || async { world.policies().get_opt(name).await.unwrap().is_none().then_some(()) })
            .await;
    }
    assert_eq!((&plain.servers()["web"]["idle_timeout"], &busy.servers()["web"]["idle_timeout"]), (&json!("5m"), &json!("5m")));
    assert_eq!(cluster.http("idle_conn_time"), "6s", "the former program's originals are restored");
}
