//! Adaptive control on real servers: it tightens, measures the effect and relaxes, or reports that tightening did not help.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value as Json, json};

use crate::support::{
    ais::{Ais, Load},
    caddy::Caddy,
    eventually, leashed,
    load::{Busy, Clients, Silent},
    operator::{World, endpoints, find},
};

/// Starts a Caddy that answers itself, or that proxies to a silent upstream.
async fn gateway(silent: Option<SocketAddr>) -> (Caddy, SocketAddr) {
    let handler = silent.map_or_else(
        || json!({"handler": "static_response", "body": "hello"}),
        |silent| json!({"handler": "reverse_proxy", "upstreams": [{"dial": silent.to_string()}]}),
    );
    let caddy = Caddy::start(json!({"web": {"listen": ["IP:8080"], "routes": [{"handle": [handler]}]}})).await;
    let listen = SocketAddr::from((caddy.ip, 8080));
    (caddy, listen)
}

/// Policy with the shortest possible windows.
fn policy(caddy: &Caddy, mode: &str, threshold: u32, limit: &str, floor: &str) -> Json {
    json!({
        "target": endpoints([caddy.admin().as_str()]),
        "limits": {"server": {"idleTimeout": limit}},
        "adaptive": {
            "mode": mode,
            "floor": {"server": {"idleTimeout": floor}},
            "signal": {"threshold": {"value": threshold}, "interval": "1s"},
            "behavior": {"tightenAfter": "1s", "relaxAfter": "2s", "maxChangesPerHour": 60, "maxChangesPerDay": 60},
        },
    })
}

async fn tasks(caddy: &Caddy) -> f64 {
    let page = eventually("Caddy shows its metrics", || async {
        reqwest::get(format!("{}/metrics", caddy.admin())).await.ok()?.text().await.ok()
    })
    .await;
    page.lines().find_map(|line| line.strip_prefix("go_goroutines ")).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_tightened_away_and_the_limits_come_back_when_they_have_gone() {
    let world = World::new("effective").await;
    let (caddy, listen) = gateway(None).await;
    world.apply("gw", &policy(&caddy, "Enforce", 600, "4s", "1s")).await;
    let status = world.until_condition("gw", "MetricsAvailable", "True", "Fresh").await;
    assert_eq!(status.openness_percent, Some(100));
    world.until_condition("gw", "Tightened", "False", "AsDeclared").await;

    let clients = Clients::start(listen, 1000, 250);
    world.until_condition("gw", "HighTaskCount", "True", "OverThreshold").await;
    let status = world.until("gw", "tightened", |s| s.openness_percent.is_some_and(|u| u < 100)).await;
    assert_eq!(find(&status, "Ready").unwrap().status, "True", "tightening never touches Ready");
    // The desired, programmed and in-effect values differ at first; here they become the same.
    let status = world
        .until("gw", "the desired limits are stored", |s| {
            let limits = s.limits.as_ref().unwrap();
            limits.desired.is_some()
                && limits.desired.as_ref().unwrap().server == limits.programmed.as_ref().and_then(|l| l.server.clone())
        })
        .await;
    assert_ne!(status.limits.as_ref().unwrap().declared, status.limits.as_ref().unwrap().desired);
    let status = world.until_condition("gw", "TighteningEffective", "True", "Effective").await;
    let judged = status.history.iter().find(|decision| decision.verdict.as_deref() == Some("Effective")).unwrap();
    assert!(judged.utilization_after < judged.utilization_before, "{judged:?}");
    world.until_condition("gw", "HighTaskCount", "False", "UnderThreshold").await;
    assert!(tasks(&caddy).await < 600.0, "the real count is under the threshold");
    // On a busy machine most of the clients may be about to connect again at any one time.
    eventually("the clients still come", || async { (clients.open() > 100).then_some(()) }).await;

    drop(clients);
    let status = world.until("gw", "as declared again", |s| s.openness_percent == Some(100)).await;
    assert!(status.history.iter().filter(|d| d.to_percent > d.from_percent).count() >= 2, "in steps: {:#?}", status.history);
    caddy.shows("/web/idle_timeout", &json!("4s")).await;
    let events = world.events("gw").await;
    for reason in ["HighTaskCount", "Tightened", "Relaxed"] {
        assert!(events.iter().any(|event| event == reason), "no {reason} in {events:?}");
    }
    let size = serde_json::to_string(&status).unwrap().len();
    assert!(size < 8192, "{size} bytes of status");
    assert!(serde_json::to_string(&status.control).unwrap().len() <= 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_are_not_idle_connections_which_is_named_and_taken_back() {
    let world = World::new("ineffective").await;
    let silent = Silent::start(SocketAddr::from((crate::support::caddy::address(), 0))).await;
    let (caddy, listen) = gateway(Some(silent.address)).await;
    let _clients = Clients::start(listen, 300, 0);
    eventually("requests are in flight", || async { (tasks(&caddy).await > 600.0).then_some(()) }).await;
    let mut spec = policy(&caddy, "Enforce", 500, "2s", "500ms");
    // A verdict waits until the connections of every pool are gone, including pools that the policy does not manage: two minutes
    // by default.
    spec["limits"]["backend"] = json!({"idleConnTimeout": "2s"});
    world.apply("gw", &spec).await;
    world.until("gw", "tightened", |s| s.openness_percent.is_some_and(|u| u < 100)).await;
    let status = world.until_condition("gw", "TighteningEffective", "False", "Ineffective").await;
    let status = if status.openness_percent == Some(100) {
        status
    } else {
        world.until("gw", "rolled back", |s| s.openness_percent == Some(100)).await
    };
    assert_eq!(status.history[0].reason, "tightening did not help");
    assert!(status.history.iter().any(|d| d.verdict.as_deref() == Some("Ineffective")), "{:#?}", status.history);
    caddy.shows("/web/idle_timeout", &json!("2s")).await;
    let note = world.until_event("gw", "Ineffective").await;
    assert!(note.contains("idle connections are not the cause"), "{note}");
    // Tightening is locked: the task count stays above the threshold for longer than every window, and the limits do not change.
    assert!(status.control.unwrap().adaptive.unwrap().lockout.is_some(), "no lock-out is remembered");
    let before = world.status("gw").await.history;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(world.status("gw").await.history, before);
    assert!(tasks(&caddy).await > 500.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reload_closes_is_not_credited_to_a_limit_that_no_connection_reaches() {
    let world = World::new("busy").await;
    let (caddy, listen) = gateway(None).await;
    // No connection is ever idle for as long as one of the limits.
    let _clients = Busy::start(listen, 400, Duration::from_millis(300));
    eventually("400 clients are served", || async { (tasks(&caddy).await > 400.0).then_some(()) }).await;
    world.apply("gw", &policy(&caddy, "Enforce", 300, "4s", "1s")).await;
    let status = world.until("gw", "tightened", |s| s.openness_percent.is_some_and(|open| open < 100)).await;
    let note = world.until_event("gw", "Tightened").await;
    assert!(note.ends_with("closes all idle connections of the target, and clients reconnect"), "{note}");
    assert!(status.history[0].to_percent <= 70, "fewer and larger steps, for each closes all connections: {:#?}", status.history);
    world.until_condition("gw", "TighteningEffective", "False", "Ineffective").await;
    let status = world.until("gw", "rolled back", |s| s.openness_percent == Some(100)).await;
    assert!(status.history.iter().all(|step| step.verdict.as_deref() != Some("Effective")), "{:#?}", status.history);
    caddy.shows("/web/idle_timeout", &json!("4s")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_aistore_nothing_is_credited_before_a_restart_nor_to_it() {
    let world = World::new("restart").await;
    let ais = Ais::start().await;
    let load = Load { other: 200.0, arrivals: 150.0, fill: 2.0 };
    ais.load(load);
    // The pools can hold that many connections.
    ais.set_http("idle_conns", &json!(4096));
    ais.set_http("idle_conns_per_host", &json!(128));
    let nodes = ["proxy-p0", "proxy-p1", "target-t0", "target-t1", "target-t2"];
    // A process starts with the limits from its own file, which has these limits after the first start.
    for node in nodes.into_iter().chain(nodes) {
        ais.restart(node);
    }
    ais.refresh_every("1s");
    world
        .apply(
            "ais",
            &json!({
                "target": {"type": "AIStore", "aistore": {"endpoint": ais.proxies[0]}},
                "limits": {"intraCluster": {"idleConnTimeout": "4s"}},
                "adaptive": {
                    "mode": "Enforce",
                    "floor": {"intraCluster": {"idleConnTimeout": "1s"}},
                    "signal": {"source": "Nodes", "interval": "1s"},
                    "behavior": {"tightenAfter": "1s", "relaxAfter": "30s", "maxChangesPerHour": 60, "maxChangesPerDay": 60},
                },
            }),
        )
        .await;
    world.until_programmed("ais").await;
    // The first step waits until the declared limits are in effect.
    world.until_condition("ais", "TighteningLimited", "True", "RestartForbidden").await;
    assert_eq!(world.status("ais").await.openness_percent, Some(100));
    // The first process is young when the operator first observes it, and its pools are full soon after.
    for node in nodes {
        ais.restart(node);
    }
    world.until("ais", "tightened", |s| s.openness_percent.is_some_and(|u| u < 100)).await;
    world.until("ais", "stored", |s| s.limits.as_ref().is_some_and(|l| l.desired.is_some() && l.desired == l.programmed)).await;
    let before = ais.goroutines("target-t0");
    assert!(before > 1024.0, "{before}: nothing has changed before a restart");
    let status = world.until_condition("ais", "TighteningLimited", "True", "RestartForbidden").await;
    assert_eq!(find(&status, "TighteningEffective").unwrap().reason, "Measuring");
    assert_eq!(status.history.len(), 1, "nothing more is decided as long as the first is not in effect");
    world.until_condition("ais", "InEffect", "False", "RestartRequired").await;

    // A restart empties the pools, which is not an effect of the limits. The verdict compares the task counts at the same uptime.
    ais.load(Load { arrivals: 50.0, ..load });
    for node in nodes {
        ais.restart(node);
    }
    let status = world.until_condition("ais", "TighteningEffective", "Unknown", "AwaitingUptimeMatch").await;
    assert!(status.history[0].verdict.is_none(), "a low count right after a restart is not credited: {:#?}", status.history);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_aistores_pools_cannot_hold_is_not_looked_for_in_them() {
    let world = World::new("bound").await;
    let ais = Ais::start().await;
    let policy = json!({
        "target": {"type": "AIStore", "aistore": {"endpoint": ais.proxies[0]}},
        "limits": {"intraCluster": {"idleConnTimeout": "20s"}},
        "adaptive": {
            "mode": "Enforce",
            "floor": {"intraCluster": {"idleConnTimeout": "5s"}},
            "signal": {"source": "Nodes", "interval": "1s"},
            "behavior": {"tightenAfter": "1s", "relaxAfter": "1h"},
        },
    });
    // Five nodes with at most 32 connections to each other: 1,536 goroutines.
    ais.load(Load { other: 12_000.0, ..Load::default() });
    world.apply("ais", &policy).await;
    let status = world.until_condition("ais", "TighteningLimited", "True", "PoolsTooSmall").await;
    let puts = ais.puts();
    assert_eq!((status.openness_percent, status.history.len()), (Some(100), 0), "{:#?}", status.history);
    ais.load(Load { other: 40_000.0, ..Load::default() });
    world.until_condition("ais", "TighteningEffective", "Unknown", "NotAttributable").await;
    assert_eq!(ais.puts(), puts, "nothing is written that could not help");
}

/// Starts a cluster of one proxy and three targets whose processes use the declared limits, and waits for its metrics.
async fn four_nodes(world: &World, limits: Json, signal: &Json, relax_after: &str) -> Ais {
    let ais = Ais::start().await;
    ais.leave("proxy-p1");
    ais.refresh_every("1s");
    let spec = json!({
        "target": {"type": "AIStore", "aistore": {"endpoint": ais.proxies[0]}},
        "limits": {"intraCluster": limits},
        "adaptive": {
            "mode": "Enforce",
            "floor": {"intraCluster": {"idleConnTimeout": "5s", "maxIdleConnsPerHost": 8}},
            "signal": signal,
            "behavior": {"tightenAfter": "1s", "relaxAfter": relax_after, "maxChangesPerHour": 60, "maxChangesPerDay": 60},
        },
    });
    world.apply("ais", &spec).await;
    world.until_programmed("ais").await;
    // The operator has observed that the nodes store the limits, and the nodes start with them.
    world.until("ais", "watched", |s| find(s, "MetricsAvailable").is_some_and(|c| c.status == "True")).await;
    for node in ["proxy-p0", "target-t0", "target-t1", "target-t2"] {
        ais.restart(node);
    }
    world.until_condition("ais", "InEffect", "True", "InEffect").await;
    ais
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_connections_of_clients_are_not_taken_for_pools() {
    let counted = json!({"source": "Nodes", "interval": "1s"});
    let alerts = json!({"source": "StateFlags", "interval": "1s"});
    // Goroutines of a target: two transports with per-host connections to each of three other nodes, two goroutines for each
    // connection; as many connections from the other nodes, one goroutine for each; and the connections that the proxy forwards.
    for (name, per_host, signal, numbers) in [
        ("counted", 100, &counted, "at most 1900 of 3016 tasks (63%) on target-t1"),
        ("alerts", 32, &alerts, "at most 608 of at least 2048 tasks (30%) on target-t1"),
    ] {
        let world = World::new(name).await;
        let limits = json!({"idleConnTimeout": "20s", "maxIdleConns": 2000, "maxIdleConnsPerHost": per_host});
        let ais = four_nodes(&world, limits, signal, "1h").await;
        let puts = ais.puts();
        ais.clients("target-t1", 3000.0);
        let status = world.until_condition("ais", "TighteningLimited", "True", "PoolsTooSmall").await;
        for (type_, reason) in [("TighteningLimited", "PoolsTooSmall"), ("TighteningEffective", "NotAttributable")] {
            let condition = find(&status, type_).unwrap();
            assert_eq!(condition.reason, reason, "{name}");
            assert!(condition.message.contains(numbers), "{name}: {}", condition.message);
        }
        let note = world.until_event("ais", "Ineffective").await;
        assert!(note.contains(numbers), "{name}: {note}");
        assert_eq!((status.openness_percent, status.history.len(), ais.puts()), (Some(100), 0, puts), "{name}");
        assert_eq!(status.utilization_percent.is_some(), name == "counted", "{name}: an alert is no percentage");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_waits_for_a_restart_is_taken_back_when_the_load_is_gone() {
    let world = World::new("withdrawn").await;
    let signal = json!({"source": "Nodes", "interval": "1s"});
    let ais = four_nodes(&world, json!({"idleConnTimeout": "20s", "maxIdleConnsPerHost": 100}), &signal, "2s").await;
    ais.clients("target-t1", 1100.0);
    let status = world.until("ais", "tightened", |s| s.openness_percent.is_some_and(|open| open < 100)).await;
    assert_eq!(status.history.len(), 1);
    let status = world.until_condition("ais", "TighteningLimited", "True", "RestartForbidden").await;
    assert!(find(&status, "Tightened").unwrap().message.contains("the nodes do not use them yet"), "{status:#?}");
    ais.clients("target-t1", 0.0);
    let status = world.until("ais", "taken back", |s| s.openness_percent == Some(100)).await;
    let reasons: Vec<_> = status.history.iter().map(|step| (step.to_percent, step.reason.as_str())).collect();
    assert_eq!(reasons[0], (100, "the task count fell before the last step was in effect"), "{reasons:?}");
    assert_eq!((reasons.len(), status.history[1].verdict.as_deref()), (2, Some("Inconclusive")));
    // The processes use the declared limits from the start, so no restart is pending.
    world.until_condition("ais", "InEffect", "True", "InEffect").await;
    assert_eq!(world.status("ais").await.pending_restart, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn aistores_own_alerts_are_what_its_policies_go_by() {
    let world = World::new("flags").await;
    let ais = Ais::start().await;
    // Each node has 2 CPUs, so it is yellow from 1,024 goroutines on.
    let load = |other| ais.load(Load { other, ..Load::default() });
    load(200.0);
    let policy = json!({
        "target": {"type": "AIStore", "aistore": {"endpoint": ais.proxies[0]}},
        "limits": {"intraCluster": {"idleConnTimeout": "20s"}},
        "adaptive": {
            "mode": "Enforce",
            "floor": {"intraCluster": {"idleConnTimeout": "5s"}},
            "signal": {"interval": "1s"},
            "behavior": {"tightenAfter": "1s", "relaxAfter": "1h"},
        },
    });
    world.apply("ais", &policy).await;
    world.until_condition("ais", "MetricsAvailable", "True", "Fresh").await;
    let status = world.until_condition("ais", "HighTaskCount", "False", "UnderThreshold").await;
    assert!(
        status.tasks.as_ref().is_some_and(|t| t.max.is_none() && t.threshold.is_none()),
        "alert bits are no count: {:?}",
        status.tasks
    );
    assert_eq!(status.openness_percent, Some(100));

    load(1100.0);
    world.until_condition("ais", "TighteningLimited", "True", "RestartForbidden").await;
    assert_eq!(world.status("ais").await.openness_percent, Some(100), "what is declared is not in effect yet");
    for node in ["proxy-p0", "proxy-p1", "target-t0", "target-t1", "target-t2"] {
        ais.restart(node);
    }
    let status = world.until_condition("ais", "HighTaskCount", "True", "OverThreshold").await;
    let message = &find(&status, "HighTaskCount").unwrap().message;
    assert!(message.starts_with("5 of 5 nodes raise an alert for their task count, such as "), "{message}");
    assert_eq!(find(&status, "MetricsAvailable").unwrap().message, "5 of 5 nodes report their alerts");
    world.until("ais", "tightened", |s| s.openness_percent.is_some_and(|u| u < 100)).await;
    world.until_condition("ais", "TighteningLimited", "True", "RestartForbidden").await;
    load(200.0);
    let status = world.until_condition("ais", "HighTaskCount", "False", "UnderThreshold").await;
    assert_eq!(status.history.len(), 1, "nothing more was decided while nothing was in effect: {:#?}", status.history);
    let all = serde_json::to_string(&status).unwrap();
    assert!(!all.contains("of the threshold") && !all.contains("pressure"), "alerts are not said in percent: {all}");
    assert!(status.history[0].reason.starts_with("task count alert raised for "), "{:#?}", status.history);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recommendation_writes_nothing_and_a_pause_neither() {
    let world = World::new("recommend").await;
    let (caddy, listen) = gateway(None).await;
    world.apply("gw", &policy(&caddy, "Recommend", 500, "2m", "1s")).await;
    world.until_programmed("gw").await;
    let _clients = Clients::start(listen, 800, 0);
    let status = world.until("gw", "a recommendation", |s| s.recommendation.is_some()).await;
    let recommended = status.recommendation.unwrap();
    assert!(recommended.openness_percent < 100 && recommended.limits.is_some());
    assert_eq!((status.openness_percent, status.history.len()), (Some(100), 0));
    caddy.shows("/web/idle_timeout", &json!("2m")).await;

    let annotate = |value: Json| {
        let patch = json!({"metadata": {"annotations": {"idleconn.io/paused": value}}});
        let api = world.policies();
        async move { api.patch("gw", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(patch)).await.unwrap() }
    };
    annotate("soon".into()).await;
    world.apply("gw", &policy(&caddy, "Enforce", 500, "2m", "1s")).await;
    let status = world.until_condition("gw", "TighteningLimited", "True", "Paused").await;
    assert_eq!(
        find(&status, "TighteningLimited").unwrap().message,
        "Annotation idleconn.io/paused is neither true nor a time, so adaptive control is paused"
    );
    assert_eq!(status.openness_percent, Some(100));
    let soon = jiff::Timestamp::now() + std::time::Duration::from_secs(2);
    annotate(soon.to_string().into()).await;
    let status = world.until("gw", "tightened after the pause", |s| s.openness_percent.is_some_and(|u| u < 100)).await;
    assert!(status.history[0].time.0 >= soon - std::time::Duration::from_secs(1), "not before the pause was over");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_counted_moves_nothing_and_says_why() {
    let world = World::new("uncounted").await;
    let (caddy, _) = gateway(None).await;
    for (name, metric, reason, words) in [
        ("none", "no_such_gauge", "NoSeries", "does not have the requested series"),
        ("counter", "go_memstats_alloc_bytes_total", "NoSeries", "has the series as a counter; name a gauge"),
        ("several", "go_gc_duration_seconds", "NoSeries", "has the series as a summary; name a gauge"),
        ("buckets", "caddy_admin_http_requests_total", "NoSeries", "The tasks of 0 of 1 node are counted"),
    ] {
        let mut spec = policy(&caddy, "Enforce", 1, "30s", "5s");
        spec["adaptive"]["signal"]["metric"] = metric.into();
        world.apply("gw", &spec).await;
        let status = world.until_condition("gw", "MetricsAvailable", "False", reason).await;
        let status = if find(&status, "MetricsAvailable").unwrap().message.contains(words) {
            status
        } else {
            world.until("gw", words, |s| find(s, "MetricsAvailable").is_some_and(|c| c.message.contains(words))).await
        };
        assert_eq!(find(&status, "HighTaskCount").unwrap().status, "Unknown", "{name}");
        assert_eq!((status.openness_percent, status.tasks), (Some(100), None), "{name}: a missing metric is never zero");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floor_above_what_the_target_makes_of_a_preset_is_refused_in_the_status() {
    let world = World::new("floor").await;
    let ais = Ais::start().await;
    let spec = json!({
        "target": {"type": "AIStore", "aistore": {"endpoint": ais.proxies[0]}},
        "preset": "GoDefault",
        "adaptive": {"mode": "Enforce", "floor": {"intraCluster": {"idleConnTimeout": "40s"}}},
    });
    world.apply("ais", &spec).await;
    let status = world.until_condition("ais", "Accepted", "False", "Invalid").await;
    let message = &find(&status, "Accepted").unwrap().message;
    assert!(message.starts_with("spec.adaptive.floor.intraCluster.idleConnTimeout 40s exceeds the limit 29s"), "{message}");
    assert_eq!(ais.puts(), 0);
}

/// Real Prometheus that scrapes a real Caddy. It ends with the test.
struct Prometheus {
    address: String,
    folder: std::path::PathBuf,
    process: std::process::Child,
}

impl Prometheus {
    async fn start(caddy: &Caddy) -> Self {
        let ip = crate::support::caddy::address();
        let folder = std::env::temp_dir().join(format!("idleconn-prometheus-{ip}"));
        std::fs::create_dir_all(&folder).unwrap();
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "gateway", "static_configs": [{"targets": [format!("{}:2019", caddy.ip)]}]}],
        });
        let rule = json!({"groups": [{"name": "g", "rules": [{"alert": "TooMany", "expr": "go_goroutines > 500", "labels": {"severity": "warning"}}]}]});
        std::fs::write(folder.join("prometheus.yml"), config.to_string()).unwrap();
        std::fs::write(folder.join("rules.yml"), rule.to_string()).unwrap();
        let listen = format!("{ip}:9090");
        let process = leashed("prometheus")
            .arg("--log.level=error")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={listen}"))
            .spawn()
            .unwrap();
        let address = format!("http://{listen}");
        eventually("Prometheus is ready (is it installed?)", || async {
            reqwest::get(format!("{address}/-/ready")).await.ok()?.error_for_status().ok()
        })
        .await;
        Self { address, folder, process }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_query_or_an_alert_of_it_is_a_source_too() {
    let world = World::new("prometheus").await;
    let (caddy, listen) = gateway(None).await;
    let prometheus = Prometheus::start(&caddy).await;
    let query = |query: &str, threshold: u32| {
        let mut spec = policy(&caddy, "Enforce", 1, "4s", "1s");
        spec["adaptive"]["signal"] = json!({
            "source": "Prometheus", "interval": "1s", "threshold": {"value": threshold},
            "prometheus": {"endpoint": prometheus.address, "query": query},
        });
        spec
    };
    for (text, reason, words) in [
        ("no_such_series", "NoSeries", "prometheus does not have the requested series"),
        (
            "{__name__=~\"go_goroutines|go_threads\"}",
            "QueryFailed",
            "prometheus answers with several series; aggregate them in the query",
        ),
        ("go_goroutines{", "QueryFailed", "prometheus refused the query"),
        ("vector(0) / 0", "NoSeries", "prometheus answers with a value that is NaN, infinite or negative"),
        ("ALERTS{alertname=\"TooMany\",alertstate=\"firing\"}", "NoSeries", "prometheus does not have the requested series"),
    ] {
        world.apply("gw", &query(text, 500)).await;
        let status = world
            .until("gw", words, |s| find(s, "MetricsAvailable").is_some_and(|c| c.reason == reason && c.message.contains(words)))
            .await;
        assert_eq!((status.openness_percent, status.tasks), (Some(100), None), "{text}");
    }
    // The query converts the alert to a number: 1 while it fires, 0 otherwise.
    world.apply("gw", &query("max(ALERTS{alertname=\"TooMany\",alertstate=\"firing\"}) or vector(0)", 1)).await;
    world.until_condition("gw", "HighTaskCount", "False", "UnderThreshold").await;
    let clients = Clients::start(listen, 800, 200);
    let status = world.until("gw", "tightened by the alert", |s| s.openness_percent.is_some_and(|u| u < 100)).await;
    assert_eq!(find(&status, "HighTaskCount").unwrap().reason, "OverThreshold");
    drop(clients);
    world.until("gw", "relaxed when the alert was over", |s| s.openness_percent == Some(100)).await;
}
