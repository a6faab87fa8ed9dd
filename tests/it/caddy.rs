//! The target `caddy`, with real Caddy servers.

use serde_json::{Value as Json, json};

use crate::support::{
    admin_api::AdminApi,
    caddy::{Caddy, PROXY, set, typical},
    eventually,
    operator::{RESYNC, World, endpoints, find, gateway},
};

fn limits() -> Json {
    json!({"server": {"idleTimeout": "30s"}, "backend": {"idleConnTimeout": "20s", "maxIdleConnsPerHost": 100}})
}

fn at(place: &str) -> String {
    format!("{PROXY}/transport/{place}")
}

#[tokio::test(flavor = "multi_thread")]
async fn some_nodes_have_limits_of_their_own() {
    let world = World::new("overrides").await;
    let nodes = [Caddy::typical().await, Caddy::typical().await, Caddy::typical().await];
    for (n, (node, role)) in nodes.iter().zip(["edge", "edge", "core"]).enumerate() {
        world.pod(&format!("gw-{n}"), &json!({"app": "gateway", "app.kubernetes.io/component": role}), node).await;
    }
    let mut policy = json!({"target": gateway(), "limits": limits(), "overrides": [
        {"name": "edge", "role": "edge", "limits": {"server": {"idleTimeout": "10s"}, "backend": {"maxIdleConnsPerHost": 50}}},
        {"name": "small", "nodes": ["gw-1"], "limits": {"server": {"idleTimeout": "5s"}}},
    ]});
    world.apply("gw", &policy).await;
    let status = world.until("gw", "three nodes", |s| s.nodes.as_ref().is_some_and(|n| n.summary == "3/3")).await;
    let held = || async {
        let mut all = Vec::new();
        for node in &nodes {
            let servers = node.servers().await;
            let per_host = servers.pointer(&at("keep_alive/max_idle_conns_per_host")).unwrap().as_u64().unwrap();
            all.push((servers["web"]["idle_timeout"].as_str().unwrap().to_owned(), per_host));
        }
        all
    };
    let is = |all: [(&str, u64); 3]| all.map(|(idle, per_host)| (idle.to_owned(), per_host));
    assert_eq!(held().await, is([("10s", 50), ("5s", 50), ("30s", 100)]));
    assert_eq!(find(&status, "Programmed").unwrap().reason, "Programmed");
    // A value that the nodes do not share is absent from the status.
    let programmed = status.limits.as_ref().unwrap().programmed.as_ref().unwrap();
    assert_eq!((&programmed.server, programmed.backend.as_ref().unwrap().max_idle_conns_per_host), (&None, None));

    policy["overrides"] = json!([]);
    policy.as_object_mut().unwrap().remove("overrides");
    world.apply("gw", &policy).await;
    eventually("all nodes are alike", || async { (held().await == is([("30s", 100); 3])).then_some(()) }).await;
    policy["overrides"] = json!([
        {"name": "a", "nodes": ["gw-1"], "limits": {"server": {"idleTimeout": "9s"}}},
        {"name": "b", "nodes": ["gw-1"], "limits": {"server": {"idleTimeout": "8s"}}},
    ]);
    world.apply("gw", &policy).await;
    let status = world.until_condition("gw", "Accepted", "False", "Invalid").await;
    assert!(find(&status, "Accepted").unwrap().message.contains("names node gw-1 twice"));
    assert_eq!(held().await, is([("30s", 100); 3]), "nothing is written that is not clear");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_reaches_every_pod_and_goes_without_a_trace() {
    let world = World::new("life").await;
    let nodes = [Caddy::typical().await, Caddy::typical().await, Caddy::typical().await];
    for (n, node) in nodes.iter().enumerate() {
        world.pod(&format!("gw-{n}"), &json!({"app": "gateway"}), node).await;
    }
    let stranger = Caddy::typical().await;
    world.pod("other", &json!({"app": "other"}), &stranger).await;

    world.apply("gw", &json!({"target": gateway(), "limits": limits()})).await;
    let status = world.until("gw", "three nodes", |s| s.nodes.as_ref().is_some_and(|n| n.summary == "3/3")).await;
    for node in &nodes {
        let servers = node.servers().await;
        assert_eq!(servers["web"]["idle_timeout"], "30s");
        assert_eq!(servers.pointer(&at("keep_alive/idle_timeout")).unwrap(), "20s");
        assert_eq!(servers.pointer(&at("keep_alive/max_idle_conns_per_host")).unwrap(), 100);
    }
    for (type_, reason) in
        [("Ready", "Succeeded"), ("Accepted", "Accepted"), ("Programmed", "Programmed"), ("InEffect", "InEffect")]
    {
        let condition = find(&status, type_).unwrap();
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("True", reason));
    }
    assert!(find(&status, "Stalled").is_none() && find(&status, "Reconciling").is_none());
    // One for each batch.
    assert_eq!(world.originals("gw").await.1, ["gw-original", "gw-original-2", "gw-original-3"]);
    assert_eq!(status.original_ref.unwrap().name, "gw-original-3");

    world.delete("gw").await;
    for node in &nodes {
        assert_eq!(node.servers().await, typical());
    }
    assert_eq!(stranger.servers().await, typical());
    let mut events = world.events("gw").await;
    // The operator gives advice with the first report, even if not all nodes have answered by then.
    events.retain(|reason| reason != "Advice");
    assert_eq!(events, ["Accepted", "Programmed", "Restored"]);
    let advice = world.event_notes("gw").await.into_iter().filter(|(reason, _)| reason == "Advice").map(|(_, note)| note);
    assert_eq!(advice.collect::<Vec<_>>().len(), 1, "once for a generation");
    assert!(world.originals("gw").await.1.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_by_hand_is_put_back_and_told() {
    let (world, node) = (World::new("drift").await, Caddy::typical().await);
    world.apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": limits()})).await;
    world.until_programmed("gw").await;
    node.set("/web/idle_timeout", json!("77s")).await;
    let said = world.until_event("gw", "DriftCorrected").await;
    assert!(said.starts_with("Limit restored: Another client changed server.idleTimeout of "), "{said}");
    assert!(said.ends_with(" to 1m17s instead of 30s"), "{said}");
    node.shows("/web/idle_timeout", &json!("30s")).await;
    // A change of a limit that the policy does not declare is not drift.
    node.set("/web/read_timeout", json!("9s")).await;
    world.until_programmed("gw").await;
    assert_eq!(node.servers().await["web"]["read_timeout"], "9s");
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_only_reported_where_the_policy_says_so() {
    let (world, node) = (World::new("report").await, Caddy::typical().await);
    world.apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": limits(), "driftPolicy": "Report"})).await;
    world.until_programmed("gw").await;
    node.set("/web/idle_timeout", json!("77s")).await;
    let status = world.until_condition("gw", "Programmed", "False", "Drifted").await;
    assert_eq!(find(&status, "Ready").unwrap().status, "True");
    world.until_event("gw", "DriftDetected").await;
    assert_eq!(node.servers().await["web"]["idle_timeout"], "77s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_somebody_insists_on_is_left_alone() {
    let (world, node) = (World::new("contest").await, Caddy::typical().await);
    world.apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": limits()})).await;
    world.until_programmed("gw").await;
    node.set("/web/idle_timeout", json!("77s")).await;
    node.shows("/web/idle_timeout", &json!("30s")).await;
    world.until_programmed("gw").await;
    node.set("/web/idle_timeout", json!("77s")).await;
    let status = world.until_condition("gw", "Programmed", "False", "Contended").await;
    assert!(find(&status, "Programmed").unwrap().message.contains("server.idleTimeout"));
    assert_eq!(node.servers().await["web"]["idle_timeout"], "77s");
    world.until_event("gw", "Contended").await;
    // The other limits are still corrected.
    node.set(&at("keep_alive/idle_timeout"), json!("99s")).await;
    node.shows(&at("keep_alive/idle_timeout"), &json!("20s")).await;
    assert_eq!(node.servers().await["web"]["idle_timeout"], "77s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_policy_writes_nothing_and_still_restores() {
    let (world, node) = (World::new("suspend").await, Caddy::typical().await);
    let spec = |suspend: bool| json!({"target": endpoints([node.admin().as_str()]), "limits": limits(), "suspend": suspend});
    world.apply("gw", &spec(false)).await;
    world.until_programmed("gw").await;
    world.apply("gw", &spec(true)).await;
    world.until_condition("gw", "Ready", "True", "Suspended").await;
    node.set("/web/idle_timeout", json!("77s")).await;
    world.until_condition("gw", "Programmed", "False", "Drifted").await;
    assert_eq!(node.servers().await["web"]["idle_timeout"], "77s");
    world.delete("gw").await;
    assert_eq!(node.servers().await, typical());
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_can_leave_the_nodes_as_they_are() {
    let (world, node) = (World::new("retain").await, Caddy::typical().await);
    world
        .apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": limits(), "deletionPolicy": "Retain"}))
        .await;
    world.until_programmed("gw").await;
    world.delete("gw").await;
    assert_eq!(node.servers().await["web"]["idle_timeout"], "30s");
    assert!(world.originals("gw").await.1.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_no_longer_declared_gets_its_old_value_back() {
    let (world, node) = (World::new("dropped").await, Caddy::typical().await);
    let target = endpoints([node.admin().as_str()]);
    world.apply("gw", &json!({"target": target, "limits": limits()})).await;
    world.until_programmed("gw").await;
    world.apply("gw", &json!({"target": target, "limits": {"server": {"idleTimeout": "40s"}}})).await;
    world.until_programmed("gw").await;
    let servers = node.servers().await;
    assert_eq!(servers["web"]["idle_timeout"], "40s");
    assert_eq!(servers.pointer(&at("keep_alive")), None);
    let (units, _) = world.originals("gw").await;
    assert_eq!(units.values().next().unwrap(), &json!({"server.idleTimeout@web": "5m"}));
    world.delete("gw").await;
    assert_eq!(node.servers().await, typical());
}

/// The operator sends an Origin header only if the admin API requires one. An API on all addresses compares it with its own list,
/// which contains no pod.
#[tokio::test(flavor = "multi_thread")]
async fn an_admin_api_that_wants_an_origin_and_one_on_all_addresses_are_both_reached() {
    let port = 21_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    for (port, admin) in [
        (2019, json!({"listen": "IP:2019", "origins": ["IP:2019"], "enforce_origin": true})),
        (port, json!({"listen": format!(":{port}")})),
    ] {
        let world = World::new("origin").await;
        let node = Caddy::with_admin(typical(), port, &admin).await;
        world.apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": limits()})).await;
        world.until_programmed("gw").await;
        assert_eq!(node.servers().await["web"]["idle_timeout"], "30s");
        world.delete("gw").await;
        assert_eq!(node.servers().await, typical());
    }
}

/// Returns a route to one upstream, with the idle timeout of its proxy.
fn route(path: &str, idle: &str) -> Json {
    let transport = json!({"protocol": "http", "keep_alive": {"idle_timeout": idle}});
    let proxy = json!({"handler": "reverse_proxy", "upstreams": [{"dial": "127.0.0.1:9"}], "transport": transport});
    json!({"match": [{"path": [path]}], "handle": [proxy]})
}

/// Replaces the routes of a Caddy.
async fn set_routes(node: &Caddy, routes: &[Json]) {
    let mut web = node.servers().await["web"].clone();
    web["routes"] = routes.into();
    node.set("/web", web).await;
}

/// Starts a Caddy with two routes to one upstream. The policy gw has set their idle timeout to 20 s.
async fn two_routes(about: &str) -> (World, Caddy) {
    let (world, node) = (World::new(about).await, Caddy::typical().await);
    set_routes(&node, &[route("/a/*", "10s"), route("/b/*", "99s")]).await;
    world
        .apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": {"backend": {"idleConnTimeout": "20s"}}}))
        .await;
    world.until_programmed("gw").await;
    (world, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_gets_its_own_value_back_after_the_route_before_it_was_deleted() {
    let (world, node) = two_routes("identity").await;
    set_routes(&node, &[route("/b/*", "20s")]).await;
    world.delete("gw").await;
    assert_eq!(node.servers().await["web"]["routes"], json!([route("/b/*", "99s")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_that_cannot_be_told_apart_are_left_as_they_are_and_named() {
    let (world, node) = two_routes("alike").await;
    let both = [route("/c/*", "20s"), route("/d/*", "20s")];
    set_routes(&node, &both).await;
    world.delete("gw").await;
    assert_eq!(node.servers().await["web"]["routes"], json!(both));
    let told = world.until_event("gw", "RestoreAbandoned").await;
    assert!(told.contains("web/127.0.0.1:9[") && told.ends_with("Give each reverse proxy an @id to avoid this"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_leave_the_target_are_restored_and_new_ones_captured() {
    let world = World::new("leave").await;
    let (old, new) = (Caddy::typical().await, Caddy::typical().await);
    world.apply("gw", &json!({"target": endpoints([old.admin().as_str()]), "limits": limits()})).await;
    world.until_programmed("gw").await;
    world.apply("gw", &json!({"target": endpoints([new.admin().as_str()]), "limits": limits()})).await;
    new.shows("/web/idle_timeout", &json!("30s")).await;
    eventually("the old one is restored", || async { (old.servers().await == typical()).then_some(()) }).await;
    eventually("and forgotten", || async { (world.originals("gw").await.0.len() == 1).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_comes_later_and_one_that_restarts_are_programmed() {
    let world = World::new("later").await;
    let (first, mut second) = (Caddy::typical().await, Caddy::typical().await);
    world.pod("gw-0", &json!({"app": "gateway"}), &first).await;
    world.apply("gw", &json!({"target": gateway(), "limits": limits()})).await;
    world.until_programmed("gw").await;
    world.pod("gw-1", &json!({"app": "gateway"}), &second).await;
    world.until("gw", "both", |s| s.nodes.as_ref().is_some_and(|n| n.summary == "2/2")).await;
    // A restarted Caddy has the settings of its file again.
    for _ in 0..3 {
        second.stop();
        world.until_condition("gw", "Programmed", "False", "Partial").await;
        second.resume().await;
        // The limits are programmed each time, because a restart does not count as contention.
        world.until("gw", "both again", |s| s.nodes.as_ref().is_some_and(|n| n.summary == "2/2")).await;
        assert_eq!(second.servers().await["web"]["idle_timeout"], "30s");
    }
    assert!(!world.events("gw").await.contains(&"Contended".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_change_between_read_and_write_is_not_lost() {
    let (world, node) = (World::new("race").await, Caddy::typical().await);
    let (changing, stop) = (node.admin(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let stopped = stop.clone();
    let rival = tokio::spawn(async move {
        let mut n = 0u64;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            n += 1;
            set(&changing, "/web/max_header_bytes", &json!(10_000 + n)).await;
            tokio::time::sleep(std::time::Duration::from_millis(15)).await;
        }
        n
    });
    world.apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": limits()})).await;
    world.until_programmed("gw").await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let n = rival.await.unwrap();
    assert_eq!(node.servers().await["web"]["max_header_bytes"], 10_000 + n, "the rival's last write was lost");
    assert_eq!(node.servers().await["web"]["idle_timeout"], "30s");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_the_status_or_replacing_the_object_loses_no_original() {
    let (mut world, node) = (World::new("keep").await, Caddy::typical().await);
    let target = endpoints([node.admin().as_str()]);
    world.apply("gw", &json!({"target": target, "limits": limits()})).await;
    world.until_programmed("gw").await;

    // The test replaces the status with an empty one, as `kubectl replace --subresource=status` does, and removes the finalizers.
    let mut object = world.get("gw").await;
    object.status = None;
    object.metadata.managed_fields = None;
    world.policies().replace_status("gw", &kube::api::PostParams::default(), &object).await.unwrap();
    let mut object = world.get("gw").await;
    object.metadata.finalizers = None;
    object.metadata.managed_fields = None;
    world.policies().replace("gw", &kube::api::PostParams::default(), &object).await.unwrap();
    world.until_programmed("gw").await;
    eventually("the finalizer is back", || async { world.get("gw").await.metadata.finalizers.map(|_| ()) }).await;
    assert_eq!(world.originals("gw").await.0.values().next().unwrap()["server.idleTimeout@web"], "5m");

    // The policy is restored from a backup while no operator runs: another UID and no status.
    world.kill().await;
    let mut object = world.get("gw").await;
    object.metadata.finalizers = Some(vec![]);
    world.policies().replace("gw", &kube::api::PostParams::default(), &object).await.unwrap();
    world.policies().delete("gw", &kube::api::DeleteParams::default()).await.unwrap();
    world
        .apply(
            "gw",
            &json!({"target": target, "limits": {"server": {"idleTimeout": "20s"}, "backend": {"idleConnTimeout": "10s"}}}),
        )
        .await;
    world.start(RESYNC);
    world.until_programmed("gw").await;
    assert_eq!(world.originals("gw").await.0.values().next().unwrap()["server.idleTimeout@web"], "5m");
    world.delete("gw").await;
    assert_eq!(node.servers().await, typical());
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_run_reports_and_touches_no_node() {
    let (mut world, node) = (World::empty("dry").await, Caddy::typical().await);
    let mut settings = world.settings(RESYNC);
    settings.dry_run = true;
    world.start_with(settings);
    world.apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": limits()})).await;
    let status = world.until_condition("gw", "Programmed", "False", "Progressing").await;
    assert_eq!(status.nodes.unwrap().summary, "0/1");
    assert_eq!(node.servers().await, typical());
    assert!(world.originals("gw").await.1.is_empty());
    world.delete("gw").await;
}

/// Does what `idleconn-operator release` does.
async fn release(world: &World, all: bool) -> Result<(), idleconn_operator::controller::Error> {
    let settings = world.settings(RESYNC);
    let metrics = idleconn_operator::metrics::Metrics::new().unwrap();
    let leadership = idleconn_operator::leader::Leadership::always();
    let pool = idleconn_operator::pool::Pool::default();
    idleconn_operator::controller::Operator::new(&world.client, &pool, settings, metrics, leadership).release(all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn release_restores_and_lets_go_without_a_controller() {
    let (mut world, node) = (World::new("release").await, Caddy::typical().await);
    world.apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "limits": limits()})).await;
    world.until_programmed("gw").await;
    world.kill().await;
    release(&world, false).await.unwrap();
    assert_eq!(node.servers().await["web"]["idle_timeout"], "30s", "a policy that is not being deleted is left alone");
    release(&world, true).await.unwrap();
    assert_eq!(node.servers().await, typical());
    assert!(world.get("gw").await.metadata.finalizers.is_none());
    assert!(world.originals("gw").await.1.is_empty());
    let status = world.status("gw").await;
    let ready = find(&status, "Ready").unwrap();
    assert_eq!((&*ready.status, &*ready.reason, status.conditions.len()), ("Unknown", "Released", 1), "{}", ready.message);
    assert_eq!((status.limits, status.nodes, status.history.len()), (None, None, 0), "nothing is known of the nodes any more");
    // A new installation governs the target again.
    world.start(RESYNC);
    world.until_programmed("gw").await;
    assert_eq!(node.servers().await["web"]["idle_timeout"], "30s");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_continues_after_a_failed_release_blames_nobody() {
    let (mut world, mut nodes) = (World::new("unreleased").await, [Caddy::typical().await, Caddy::typical().await]);
    let admins = [nodes[0].admin(), nodes[1].admin()];
    world.apply("gw", &json!({"target": endpoints(admins.iter().map(String::as_str)), "limits": limits()})).await;
    world.until_programmed("gw").await;
    world.kill().await;
    nodes[1].stop();
    let error = release(&world, true).await.expect_err("a node does not answer").to_string();
    assert!(error.contains("policies that keep their finalizer"), "{error}");
    assert_eq!(nodes[0].servers().await, typical(), "the other node is restored");
    world.start(RESYNC);
    nodes[0].shows("/web/idle_timeout", &json!("30s")).await;
    nodes[1].resume().await;
    world.until("gw", "all nodes hold the limits", |s| s.nodes.as_ref().is_some_and(|nodes| nodes.summary == "2/2")).await;
    let events = world.events("gw").await;
    assert!(!events.iter().any(|event| event.starts_with("Drift")), "the operator's own release is no drift: {events:?}");
    world.delete("gw").await;
    for node in &nodes {
        assert_eq!(node.servers().await, typical());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_operator_works_in_all_the_namespaces_it_is_given_and_in_no_other() {
    let (mut here, there, elsewhere) = (World::empty("here").await, World::empty("there").await, World::empty("elsewhere").await);
    let nodes = [Caddy::typical().await, Caddy::typical().await, Caddy::typical().await];
    let spec = |node: &Caddy| json!({"target": endpoints([node.admin().as_str()]), "limits": limits()});
    // One policy exists before the operator starts, and one is created later.
    there.apply("gw", &spec(&nodes[1])).await;
    elsewhere.apply("gw", &spec(&nodes[2])).await;
    let mut settings = here.settings(RESYNC);
    settings.namespaces.push(there.namespace.clone());
    here.start_with(settings);
    there.until_programmed("gw").await;
    here.apply("gw", &spec(&nodes[0])).await;
    here.until_programmed("gw").await;
    there.delete("gw").await;
    here.delete("gw").await;
    for node in &nodes {
        assert_eq!(node.servers().await, typical());
    }
    assert_eq!(elsewhere.status("gw").await.observed_generation, Some(-1), "a namespace that was not listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_the_servers_have_no_place_for_is_unsupported() {
    let (world, node) = (World::new("placeless").await, Caddy::typical().await);
    // No transport of this server uses TLS, Caddy has no intra-cluster pools, and only the preset sets the other limits.
    let limits =
        json!({"backend": {"tlsHandshakeTimeout": "5s", "maxConnsPerHost": 400}, "intraCluster": {"idleConnTimeout": "5s"}});
    world.apply("gw", &json!({"target": endpoints([node.admin().as_str()]), "preset": "Production", "limits": limits})).await;
    let status = world.until_programmed("gw").await;
    assert_eq!(status.unsupported, ["intraCluster.idleConnTimeout", "backend.tlsHandshakeTimeout"]);
    assert_eq!(node.servers().await.pointer(&at("keep_alive/max_idle_conns")), Some(&json!(2000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_takes_the_largest_value_of_each_limit_and_each_zero_that_it_is_told() {
    let (world, node) = (World::new("largest").await, Caddy::typical().await);
    let target = endpoints([node.admin().as_str()]);
    let policy = |time: &str, count: u32| {
        json!({"target": target, "limits": {
            "server": {"idleTimeout": time, "readHeaderTimeout": time},
            "backend": {
                "idleConnTimeout": time, "maxIdleConns": count, "maxIdleConnsPerHost": count, "maxConnsPerHost": count, "tcpKeepAlive": time,
                "expectContinueTimeout": time, "responseHeaderTimeout": time,
            },
        }})
    };
    world.apply("gw", &policy("99999h", 1_000_000)).await;
    let status = world.until_programmed("gw").await;
    assert_eq!(status.unsupported, Vec::<String>::new());
    let idle = node.servers().await["web"]["idle_timeout"].clone();
    assert_eq!(idle, "99999h");
    world.apply("gw", &policy("0s", 0)).await;
    let status = world.until_programmed("gw").await;
    let zero: Vec<_> = ["idleTimeout", "readHeaderTimeout"].map(|name| format!("server.{name}")).into();
    assert!(zero.iter().all(|limit| status.unsupported.contains(limit)), "{:?}", status.unsupported);
    let servers = node.servers().await;
    assert_eq!((&servers["web"]["idle_timeout"], servers.pointer(&at("max_conns_per_host"))), (&json!("5m"), Some(&json!(0))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_caddy_cannot_be_told_is_not_written_and_a_server_without_places_is_not_programmed() {
    let world = World::new("nothing").await;
    let (node, empty) = (AdminApi::start(typical()).await, AdminApi::start(json!({})).await);
    // Caddy replaces 0 by its default of 5m.
    let spec = |node: &AdminApi, limits: &Json| json!({"target": endpoints([node.address.as_str()]), "limits": limits});
    world.apply("zero", &spec(&node, &json!({"server": {"idleTimeout": "0s", "readHeaderTimeout": "7s"}}))).await;
    let status = world.until_programmed("zero").await;
    assert_eq!(status.unsupported, ["server.idleTimeout"]);
    assert_eq!(
        (&node.servers()["web"]["idle_timeout"], &node.servers()["web"]["read_header_timeout"]),
        (&json!("5m"), &json!("7s"))
    );
    world.apply("empty", &spec(&empty, &json!({"server": {"idleTimeout": "30s"}}))).await;
    let status = world.until_condition("empty", "Programmed", "False", "NothingToProgram").await;
    assert_eq!(find(&status, "Ready").unwrap().status, "False");
    assert!(find(&status, "InEffect").unwrap().status != "True");
    let message = &find(&status, "Programmed").unwrap().message;
    assert!(message.contains("server.idleTimeout") && message.contains("check that the policy points"), "{message}");
    assert_eq!(empty.writes(), 0);
}
