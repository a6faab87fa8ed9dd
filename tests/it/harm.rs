//! The harm guard, with the example service as the owner of a pool and as its upstream, under real load.

use std::time::Duration;

use idleconn_operator::api::IdleConnectionPolicyStatus;
use serde_json::{Value as Json, json};

use crate::support::{
    eventually,
    load::Busy,
    operator::{World, find},
    service::{Service, target},
};

/// Requests that are in flight at the same time, three times per second.
const CONCURRENCY: usize = 40;

/// Policy for the pool towards the upstream. Its floor is far below the concurrency of the load. `guard`: the counters.
fn policy(mode: &str, threshold: u32, guard: &Json) -> Json {
    json!({
        "target": target("yaml"),
        "limits": {"backend": {"maxIdleConns": 100, "maxIdleConnsPerHost": 100, "idleConnTimeout": "3s"}},
        "adaptive": {
            "mode": mode,
            "floor": {"backend": {"maxIdleConnsPerHost": 1, "idleConnTimeout": "3s"}},
            "signal": {"threshold": {"value": threshold}, "interval": "1s", "newConnections": guard},
            "behavior": {"tightenAfter": "1s", "relaxAfter": "1h", "maxChangesPerHour": 60, "maxChangesPerDay": 60},
        },
    })
}

/// The counters of the pool: connections that requests got, and those of them that were new.
fn counters(max_per_second: u32) -> Json {
    let pool = json!({"pool": "backend", "reused": "false"});
    let requests = json!({"metric": "idleconn_client_connections_got_total", "matchLabels": {"pool": "backend"}});
    json!({"metric": "idleconn_client_connections_got_total", "matchLabels": pool, "maxPerSecond": max_per_second, "requests": requests})
}

/// A service whose pool is under load, the upstream that answers it, and the clients.
struct Gateway {
    service: Service,
    upstream: Service,
    _clients: Busy,
}

impl Gateway {
    /// Starts all of them, with a policy that only recommends, and waits until the pool is warm.
    async fn warm(world: &World, threshold: u32, guard: &Json) -> Self {
        let upstream = Service::alone(&[]).await;
        // All requests of a round are answered at the same time, and their connections are idle together.
        let asks = format!("-upstream=http://{}/?after=100ms", upstream.listen());
        let mut service = Service::start(world, "gw-0", &[&asks]).await;
        service.mount(world, "gateway-http", "http.yaml");
        world.apply("gw", &policy("Recommend", threshold, guard)).await;
        world.until_condition("gw", "InEffect", "True", "InEffect").await;
        let clients = Busy::asking(service.listen(), "/upstream", CONCURRENCY, Duration::from_millis(333));
        let gateway = Self { service, upstream, _clients: clients };
        world.until_condition("gw", "HighTaskCount", "True", "OverThreshold").await;
        // Two windows of 3 s are averaged before a step. Here are 8 s and more, so that the opening of the pool is not among them.
        eventually("the pool is warm", || async { (gateway.asked().await >= 1000.0).then_some(()) }).await;
        gateway
    }

    /// Returns how many connections the upstream has accepted.
    async fn opened(&self) -> f64 {
        self.upstream.metric("idleconn_server_connections_opened_total").await
    }

    /// Returns how many requests the upstream has answered.
    async fn asked(&self) -> f64 {
        self.upstream.metric("idleconn_server_requests_total").await
    }

    /// Returns new connections per request, over some hundred requests.
    async fn frequency(&self) -> f64 {
        let (opened, asked) = (self.opened().await, self.asked().await);
        let end = eventually("300 more requests", || async {
            let now = self.asked().await;
            (now >= asked + 300.0).then_some(now)
        })
        .await;
        (self.opened().await - opened) / (end - asked)
    }
}

fn verdicts(status: &IdleConnectionPolicyStatus) -> Vec<&str> {
    status.history.iter().filter_map(|step| step.verdict.as_deref()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_tightened_below_its_concurrency_is_given_back() {
    let world = World::new("harm").await;
    let gateway = Gateway::warm(&world, 100, &counters(5)).await;
    let before = gateway.frequency().await;
    assert!(before < 0.05, "the pool is large enough: {before} new connections per request");

    world.apply("gw", &policy("Enforce", 100, &counters(5))).await;
    world.until("gw", "tightened", |s| s.openness_percent.is_some_and(|open| open < 100)).await;
    let tightened = gateway.frequency().await;
    assert!(tightened > 2.0 * before && tightened > 0.1, "{before} new connections per request before, {tightened} after");

    let status = world.until_condition("gw", "TighteningEffective", "False", "Harmful").await;
    let note = world.until_event("gw", "Harmful").await;
    assert!(note.starts_with("Tightening made new connections more than twice as frequent: "), "{note}");
    assert!(note.contains(" per 1000 requests before, "), "{note}");
    assert!(find(&status, "TighteningEffective").unwrap().message.contains("raise spec.adaptive.floor"), "{status:#?}");
    let status = world.until("gw", "taken back", |s| s.openness_percent == Some(100)).await;
    assert_eq!(verdicts(&status), ["Harmful"], "{:#?}", status.history);
    assert_eq!(status.history[0].reason, "tightening made new connections more than twice as frequent");
    let state = status.control.as_ref().unwrap().adaptive.as_ref().unwrap();
    assert!(state.lockout.is_some() && state.guarded.is_none(), "{state:#?}");
    world.until_condition("gw", "TighteningLimited", "True", "Locked").await;

    // The declared pool is in use again, and stays: there are still too many tasks, and tightening is locked.
    eventually("connections are reused again", || async { (gateway.frequency().await < 0.05).then_some(()) }).await;
    assert!(gateway.service.metric("go_goroutines").await > 100.0);
    assert_eq!(world.status("gw").await.openness_percent, Some(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_that_are_few_enough_are_no_harm() {
    let world = World::new("harmless").await;
    let guard = counters(1_000_000);
    let gateway = Gateway::warm(&world, 100, &guard).await;
    world.apply("gw", &policy("Enforce", 100, &guard)).await;
    world.until("gw", "tightened", |s| s.openness_percent.is_some_and(|open| open < 100)).await;
    let status = world.until("gw", "judged", |s| s.history.iter().any(|step| step.verdict.is_some())).await;
    assert!(!verdicts(&status).contains(&"Harmful"), "{:#?}", status.history);
    assert!(status.tasks.unwrap().new_connections_per_second.is_some(), "the figure to choose the maximum by");
    assert!(gateway.asked().await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_counter_is_named_and_never_zero() {
    let world = World::new("no-counter").await;
    let mut service = Service::start(&world, "gw-0", &[]).await;
    service.mount(&world, "gateway-http", "http.yaml");
    let none = json!({"metric": "no_such_counter", "maxPerSecond": 1});
    let gauge = json!({"metric": "idleconn_server_connections", "maxPerSecond": 1});
    let opened = "idleconn_server_connections_opened_total";
    let no_requests = json!({"metric": opened, "maxPerSecond": 1, "requests": {"metric": "no_such_counter"}});
    for (guard, counted) in [(none, "new connections"), (gauge, "new connections"), (no_requests, "requests")] {
        world.apply("gw", &policy("Recommend", 100_000, &guard)).await;
        let words = format!("gw-0 has no counter of {counted} (see spec.adaptive.signal.newConnections)");
        let status = world
            .until("gw", "the missing counter is named", |s| {
                let available = find(s, "MetricsAvailable");
                available.is_some_and(|c| c.reason == "NewConnectionsMissing" && c.message.contains(&words))
            })
            .await;
        assert_eq!(find(&status, "MetricsAvailable").unwrap().status, "True", "the tasks are counted all the same");
        assert_eq!(status.tasks.and_then(|tasks| tasks.new_connections_per_second), None, "a missing counter is not 0");
    }
    let requests = json!({"metric": "idleconn_server_requests_total"});
    world.apply("gw", &policy("Recommend", 100_000, &json!({"metric": opened, "maxPerSecond": 1, "requests": requests}))).await;
    world.until_condition("gw", "MetricsAvailable", "True", "Fresh").await;
}
