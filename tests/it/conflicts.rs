//! Two policies for one target.

use serde_json::json;

use crate::support::{
    ais::Ais,
    caddy::{Caddy, typical},
    operator::{World, endpoints, find, gateway},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_older_policy_wins_and_the_other_says_who() {
    let (world, ais) = (World::new("conflict").await, Ais::start().await);
    let spec = |proxy: usize, idle: &str| json!({"target": {"type": "AIStore", "aistore": {"endpoint": ais.proxies[proxy]}}, "limits": {"intraCluster": {"idleConnTimeout": idle}}});
    world.apply("first", &spec(0, "20s")).await;
    world.until_programmed("first").await;
    // Another address of the same cluster.
    world.apply("second", &spec(1, "10s")).await;
    let status = world.until_condition("second", "Accepted", "False", "Conflicted").await;
    let accepted = find(&status, "Accepted").unwrap();
    assert_eq!(accepted.message, "Policy first is older and governs the same target; delete one of them");
    assert_eq!(find(&status, "Stalled").unwrap().reason, "Conflicted");
    assert_eq!(find(&status, "Ready").unwrap().status, "False");
    world.until_event("second", "Conflicted").await;
    assert_eq!(ais.http("idle_conn_time"), "20s");
    // The first policy is deleted. The second takes over, with the original values from before both.
    world.delete("first").await;
    world.until_programmed("second").await;
    assert_eq!(ais.http("idle_conn_time"), "10s");
    world.delete("second").await;
    assert_eq!(ais.http("idle_conn_time"), "6s");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_shared_pod_loses_the_whole_policy() {
    let world = World::new("overlap").await;
    let (a, b) = (Caddy::typical().await, Caddy::typical().await);
    world.pod("gw-a", &json!({"app": "gateway"}), &a).await;
    world.pod("gw-b", &json!({"app": "gateway", "tier": "edge"}), &b).await;
    world.apply("one", &json!({"target": {"type": "Caddy", "caddy": {"selector": {"matchLabels": {"tier": "edge"}}}}, "limits": {"server": {"idleTimeout": "30s"}}})).await;
    world.until_programmed("one").await;
    world.apply("two", &json!({"target": gateway(), "limits": {"server": {"idleTimeout": "20s"}}})).await;
    world.until_condition("two", "Accepted", "False", "Conflicted").await;
    // The same server, named by its address.
    world.apply("zzz", &json!({"target": endpoints([b.admin().as_str()]), "limits": {"server": {"idleTimeout": "10s"}}})).await;
    world.until_condition("zzz", "Accepted", "False", "Conflicted").await;
    assert_eq!(a.servers().await, typical(), "a loser writes to no node, shared or not");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_the_older_still_wins() {
    let (mut world, ais) = (World::empty("restart").await, Ais::start().await);
    let spec = |idle: &str| json!({"target": {"type": "AIStore", "aistore": {"endpoint": ais.proxies[0]}}, "limits": {"intraCluster": {"idleConnTimeout": idle}}});
    // The order of the names is opposite to that of the ages, and all policies exist when the operator starts.
    world.apply("zzz-older", &spec("20s")).await;
    let older = world.get("zzz-older").await.metadata.creation_timestamp;
    crate::support::eventually("the clock ticks", || async {
        (jiff::Timestamp::now().as_second() > older.as_ref().unwrap().0.as_second()).then_some(())
    })
    .await;
    world.apply("aaa-younger", &spec("10s")).await;
    world.start(super::support::operator::RESYNC);
    world.until_programmed("zzz-older").await;
    world.until_condition("aaa-younger", "Accepted", "False", "Conflicted").await;
    assert_eq!((ais.http("idle_conn_time"), ais.puts()), ("20s".into(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_comes_to_overlap_hands_the_true_original_over() {
    let world = World::new("handover").await;
    let (a, b) = (Caddy::typical().await, Caddy::typical().await);
    world.apply("older", &json!({"target": endpoints([a.admin().as_str()]), "limits": {"server": {"idleTimeout": "30s"}}})).await;
    world.until_programmed("older").await;
    world
        .apply("younger", &json!({"target": endpoints([b.admin().as_str()]), "limits": {"server": {"idleTimeout": "20s"}}}))
        .await;
    world.until_programmed("younger").await;
    // The older policy now also claims the node of the younger one.
    world
        .apply(
            "older",
            &json!({"target": endpoints([a.admin().as_str(), b.admin().as_str()]), "limits": {"server": {"idleTimeout": "30s"}}}),
        )
        .await;
    world.until_condition("younger", "Accepted", "False", "Conflicted").await;
    b.shows("/web/idle_timeout", &json!("30s")).await;
    world.until_programmed("older").await;
    world.delete("younger").await;
    assert_eq!(
        b.servers().await["web"]["idle_timeout"],
        "30s",
        "the loser's deletion restores nothing that is not its own any more"
    );
    world.delete("older").await;
    assert_eq!(b.servers().await, typical(), "the original is what was there before both");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_does_not_answer_for_a_while_is_not_taken_over() {
    let (world, ais) = (World::new("away").await, Ais::start().await);
    let spec = |proxy: usize, idle: &str| json!({"target": {"type": "AIStore", "aistore": {"endpoint": ais.proxies[proxy]}}, "limits": {"intraCluster": {"idleConnTimeout": idle}}});
    world.apply("older", &spec(0, "20s")).await;
    world.until_programmed("older").await;
    ais.cluster().phase = crate::support::ais::Phase::Election;
    world.until_condition("older", "Ready", "False", "ProgrammingFailed").await;
    world.apply("younger", &spec(1, "10s")).await;
    world.until_condition("younger", "Ready", "False", "ProgrammingFailed").await;
    ais.cluster().phase = crate::support::ais::Phase::Ready;
    world.until_condition("younger", "Accepted", "False", "Conflicted").await;
    assert_eq!((ais.http("idle_conn_time"), ais.puts()), ("20s".into(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_worked_on_holds_up_no_other() {
    let mut world = World::empty("stuck").await;
    // The saved originals cannot be read, so the operator must not write: a second capture would be wrong.
    let revisions =
        kube::Api::<k8s_openapi::api::apps::v1::ControllerRevision>::namespaced(world.client.clone(), &world.namespace);
    let broken = json!({"metadata": {"name": "stuck-original", "labels": {"idleconn.io/policy": "stuck"}}, "revision": 1, "data": {"units": 7}});
    revisions.create(&kube::api::PostParams::default(), &serde_json::from_value(broken).unwrap()).await.unwrap();
    let (a, b) = (Caddy::typical().await, Caddy::typical().await);
    let spec = |node: &Caddy| json!({"target": endpoints([node.admin().as_str()]), "limits": {"server": {"idleTimeout": "30s"}}});
    world.apply("stuck", &spec(&a)).await;
    world.apply("well", &spec(&b)).await;
    world.start(super::support::operator::RESYNC);
    world.until_programmed("well").await;
    assert_eq!(a.servers().await, typical());
}
