//! The API: its data, its authorization and its errors.

use std::{collections::BTreeSet, time::Duration};

use futures::StreamExt as _;
use idleconn_operator::{leader::Leadership, serve};
use reqwest::{Method, StatusCode};
use serde_json::{Value as Json, json};

use crate::{
    golden::check,
    support::{
        admin_api::AdminApi,
        api::{Api, answer, token},
        caddy::typical,
        eventually,
        operator::{World, restless},
    },
};

fn encoded(provider: &str) -> String {
    provider.replace('/', "%2F")
}

/// Starts an operator with a policy on one node.
async fn watched(about: &str) -> (World, AdminApi) {
    let world = World::empty(about).await;
    let node = AdminApi::start(typical()).await;
    world.apply("gw", &restless(&node, "1h")).await;
    (world, node)
}

/// Replaces values that differ between runs by placeholders.
fn masked(value: &Json, world: &World, node: &AdminApi) -> Json {
    const COUNTS: [&str; 9] = [
        "totalRequests",
        "reuseCount",
        "reuseRate",
        "overallReuseRate",
        "averageConnectionAge",
        "averageWait",
        "idleConnections",
        "totalIdleConnections",
        "totalConnections",
    ];
    const LIVE: [&str; 10] = [
        "activeConnections",
        "totalActiveConnections",
        "active",
        "idle",
        "total",
        "opened",
        "waits",
        "status",
        "closed",
        "closing",
    ];
    match value {
        Json::Object(fields) => fields
            .iter()
            .map(|(name, value)| {
                let masked = match value {
                    Json::Number(_) if COUNTS.contains(&name.as_str()) || LIVE.contains(&name.as_str()) => json!("NUMBER"),
                    Json::String(_) if name == "status" && fields.contains_key("performance") => json!("STATUS"),
                    Json::Object(_) if name == "closed" => json!("BY REASON"),
                    Json::Array(_) if name == "trend" => json!(["MOMENTS"]),
                    Json::String(time) if time.parse::<jiff::Timestamp>().is_ok() => json!("TIME"),
                    value => self::masked(value, world, node),
                };
                (name.clone(), masked)
            })
            .collect(),
        Json::Array(items) => items.iter().map(|item| masked(item, world, node)).collect(),
        Json::String(text) => {
            let host = node.address.trim_start_matches("http://");
            json!(text.replace(&world.namespace, "NAMESPACE").replace(host, "HOST:PORT"))
        }
        value => value.clone(),
    }
}

/// Compares a response with the golden file of this name.
fn shown(name: &str, body: &Json, world: &World, node: &AdminApi) {
    let text = serde_json::to_string_pretty(&masked(body, world, node)).unwrap() + "\n";
    check(&format!("tests/golden/api/{name}.json"), &text);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_says_what_is_there_in_its_shape() {
    let (world, node) = watched("routes").await;
    // The task count is set before the operator starts, so that the first sample has it.
    node.run(100);
    let api = Api::start(&[&world], true).await;
    world.until_condition("gw", "MetricsAvailable", "True", "Fresh").await;
    world.until_condition("gw", "InEffect", "True", "InEffect").await;
    let provider = encoded(&format!("{}/gw", world.namespace));
    eventually("the node was sampled and asked again", || async {
        let seen = api.data(&format!("/api/policies/{}/gw", world.namespace)).await;
        let reused = api.data("/api/connections/stats").await["overallReuseRate"].as_f64()? > 0.0;
        (reused && seen["trend"].as_array()?.len() > 1 && seen["sampled"].is_string()).then_some(())
    })
    .await;

    for (name, path) in [
        ("stats", "/api/connections/stats".to_owned()),
        ("provider", format!("/api/connections/provider/{provider}")),
        ("providers", "/api/connections/providers".to_owned()),
        ("health", "/api/connections/health".to_owned()),
        ("details", "/api/connections/details".to_owned()),
        ("policies", "/api/policies".to_owned()),
        ("policy", format!("/api/policies/{}/gw", world.namespace)),
        ("nodes", format!("/api/policies/{}/gw/nodes", world.namespace)),
    ] {
        let (status, body) = api.get(&path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        shown(name, &body, &world, &node);
    }
    for (name, path) in [
        ("connections-stream", "/api/connections/stream".to_owned()),
        ("policies-stream", format!("/api/policies/stream?policy={}/gw", world.namespace)),
    ] {
        let (event, _, data) = events(api.request(Method::GET, &path).send().await.unwrap(), 1).await.remove(0);
        shown(name, &json!({"event": event, "data": data}), &world, &node);
    }
    let gone = api.request(Method::POST, &format!("/api/connections/destroy/{provider}")).json(&json!({"protocol": "http"}));
    let (status, body) = answer(gone).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    shown("destroy", &body, &world, &node);
    let told = |n: &Json| n["closed"].as_u64().unwrap() + n["closing"].as_u64().unwrap();
    assert!(told(&body["data"]) >= 1, "{body}");
    let details = api.data("/api/connections/details").await;
    assert!(details["providers"][0]["closed"]["destroyed"].as_u64() >= body["data"]["closed"].as_u64(), "{details}");
    // The operator continues with new connections.
    let before = api.data("/api/connections/stats").await["totalRequests"].as_u64();
    eventually("the node is asked again", || async {
        (api.data("/api/connections/stats").await["totalRequests"].as_u64() > before).then_some(())
    })
    .await;
}

#[test]
fn the_document_says_what_there_is() {
    check("docs/openapi.json", &(serde_json::to_string_pretty(&serve::document()).unwrap() + "\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counts_are_what_the_nodes_saw() {
    let (world, node) = watched("counts").await;
    let api = Api::start(&[&world], true).await;
    world.until_programmed("gw").await;
    let provider = encoded(&format!("{}/gw", world.namespace));
    // The condition must hold at a moment without requests in progress.
    eventually("both have counted the same", || async {
        let before = node.asked();
        let counted = api.data(&format!("/api/connections/provider/{provider}")).await["totalRequests"].as_u64()?;
        (before == node.asked() && usize::try_from(counted).unwrap() == before && before > 4).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sees_what_the_api_server_lets_them_see_and_nothing_of_the_rest() {
    let (one, _nodes) = watched("mine").await;
    let (other, _others) = watched("theirs").await;
    let api = Api::start(&[&one, &other], false).await;
    one.until_programmed("gw").await;
    other.until_programmed("gw").await;
    let reader = token(&one, "reader", &[("get", "idleconnectionpolicies"), ("list", "idleconnectionpolicies")]).await;
    let closer = token(
        &one,
        "closer",
        &[
            ("get", "idleconnectionpolicies"),
            ("list", "idleconnectionpolicies"),
            ("delete", "idleconnectionpolicies/connections"),
        ],
    )
    .await;
    let stranger = token(&one, "stranger", &[]).await;
    let (mine, theirs) = (format!("{}/gw", one.namespace), format!("{}/gw", other.namespace));

    for (path, reads) in [
        ("/api/connections/stats".to_owned(), StatusCode::OK),
        ("/api/connections/health".to_owned(), StatusCode::OK),
        ("/api/connections/stream".to_owned(), StatusCode::OK),
        ("/api/policies/stream".to_owned(), StatusCode::OK),
        (format!("/api/policies/{mine}/nodes"), StatusCode::OK),
        (format!("/api/policies/{theirs}/nodes"), StatusCode::FORBIDDEN),
        (format!("/api/connections/provider/{}", encoded(&mine)), StatusCode::OK),
        (format!("/api/connections/provider/{}", encoded(&theirs)), StatusCode::FORBIDDEN),
        // A caller without the right does not learn whether the object exists.
        ("/api/connections/provider/nowhere%2Fgw".to_owned(), StatusCode::FORBIDDEN),
        ("/api/connections/provider/kubernetes".to_owned(), StatusCode::FORBIDDEN),
    ] {
        for (token, expected) in [
            (None, StatusCode::UNAUTHORIZED),
            (Some("made-up"), StatusCode::UNAUTHORIZED),
            (Some(stranger.as_str()), StatusCode::FORBIDDEN),
            (Some(reader.as_str()), reads),
        ] {
            let mut request = api.request(Method::GET, &path);
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), expected, "{path} with {token:?}");
            if expected != StatusCode::OK {
                let body: Json = response.json().await.unwrap();
                let code = if expected == StatusCode::FORBIDDEN { "Forbidden" } else { "Unauthorized" };
                assert_eq!((&body["success"], &body["error"]["code"]), (&json!(false), &json!(code)), "{path}: {body}");
            }
        }
    }
    let (_, policies) = api.get("/api/policies", Some(&reader)).await;
    let seen: BTreeSet<_> =
        policies["data"].as_array().unwrap().iter().map(|policy| policy["namespace"].as_str().unwrap()).collect();
    assert_eq!(seen, [one.namespace.as_str()].into());
    let (_, providers) = api.get("/api/connections/providers", Some(&reader)).await;
    assert_eq!(providers["data"], json!([mine]));

    for (token, expected) in [(&stranger, StatusCode::FORBIDDEN), (&reader, StatusCode::FORBIDDEN), (&closer, StatusCode::OK)] {
        let request = api.request(Method::POST, &format!("/api/connections/destroy/{}", encoded(&mine))).bearer_auth(token);
        let (status, body) = answer(request).await;
        assert_eq!(status, expected, "{body}");
    }
    let (_, refused) = api.get(&format!("/api/policies/{theirs}"), Some(&reader)).await;
    let user = format!("system:serviceaccount:{}:reader", one.namespace);
    let sentence = format!(
        "User {user:?} cannot get idleconnectionpolicies in namespace {:?}; ask a cluster administrator for this right",
        other.namespace
    );
    assert_eq!(refused["error"]["message"], json!(sentence));
    let page = api.request(Method::GET, "/").send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK, "the page itself says nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_in_the_shape_of_every_refusal() {
    let (world, _node) = watched("senseless").await;
    let api = Api::start(&[&world], true).await;
    world.until_programmed("gw").await;
    let provider = encoded(&format!("{}/gw", world.namespace));
    let destroy = format!("/api/connections/destroy/{provider}");
    let large = format!("{{\"protocol\": \"{}\"}}", "x".repeat(10_000));
    for (method, path, body, status, code) in [
        (Method::GET, "/api/connections/provider/no-such", "", StatusCode::NOT_FOUND, "NotFound"),
        (Method::POST, "/api/connections/destroy/no-such", "", StatusCode::NOT_FOUND, "NotFound"),
        (Method::POST, destroy.as_str(), r#"{"protocol": "https"}"#, StatusCode::NOT_FOUND, "NotFound"),
        (Method::POST, &destroy, r#"{"protocol": "gopher"}"#, StatusCode::BAD_REQUEST, "Invalid"),
        (Method::POST, &destroy, r#"{"protocols": "http"}"#, StatusCode::BAD_REQUEST, "Invalid"),
        (Method::POST, &destroy, "[]", StatusCode::BAD_REQUEST, "Invalid"),
        (Method::POST, &destroy, "{", StatusCode::BAD_REQUEST, "Invalid"),
        (Method::POST, &destroy, &large, StatusCode::PAYLOAD_TOO_LARGE, "TooLarge"),
        (Method::GET, &destroy, "", StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        (Method::DELETE, "/api/policies", "", StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        (Method::POST, "/", "", StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        (Method::GET, "/api/connections/provider/%ff", "", StatusCode::BAD_REQUEST, "Invalid"),
        (Method::GET, "/api/connections/provider/gw?protocol=gopher", "", StatusCode::BAD_REQUEST, "Invalid"),
        (Method::GET, "/api/policies/stream?policy=gw", "", StatusCode::BAD_REQUEST, "Invalid"),
        (Method::GET, "/api/policies/nowhere/gw", "", StatusCode::NOT_FOUND, "NotFound"),
        (Method::GET, "/api/policies/nowhere/gw/nodes", "", StatusCode::NOT_FOUND, "NotFound"),
        (Method::GET, "/api/policies/", "", StatusCode::NOT_FOUND, "NotFound"),
        (Method::GET, "/api", "", StatusCode::NOT_FOUND, "NotFound"),
        (Method::GET, "/../etc/passwd", "", StatusCode::NOT_FOUND, "NotFound"),
    ] {
        let (seen, refusal) = answer(api.request(method.clone(), path).body(body.to_owned())).await;
        assert_eq!((seen, &refusal["error"]["code"]), (status, &json!(code)), "{method} {path} {body:.40}: {refusal}");
        assert_eq!(refusal["success"], json!(false));
        assert!(refusal["error"]["message"].as_str().is_some_and(|message| message.len() > 20), "{refusal}");
    }
    let (status, _) = api.get(&format!("/api/connections/provider/{provider}"), None).await;
    assert_eq!(status, StatusCode::OK, "a slash in a name is written %2F");
    for (header, value) in [("origin", "http://evil.example"), ("host", "rebound.example")] {
        let request = api.request(Method::POST, &destroy).header(header, value);
        assert_eq!(answer(request).await.0, StatusCode::FORBIDDEN, "another origin's page");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_does_not_act_says_so_and_shows_what_the_api_server_has() {
    let (world, _node) = watched("standby").await;
    let acting = Api::start(&[&world], true).await;
    world.until_programmed("gw").await;
    let standby = Api::of(&[&world], true, Leadership::none()).await;
    eventually("the standby has listed the policies", || async {
        (standby.data("/api/policies").await.as_array()?.len() == 1).then_some(())
    })
    .await;
    let nodes = format!("/api/policies/{}/gw/nodes", world.namespace);
    assert_eq!(acting.get(&nodes, None).await.0, StatusCode::OK);
    let (status, body) = standby.get(&nodes, None).await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("NotLeading")), "{body}");
    let policy = standby.data(&format!("/api/policies/{}/gw", world.namespace)).await;
    assert_eq!((&policy["trend"], &policy["sampled"]), (&json!([]), &Json::Null), "what it has not seen it does not show");
}

/// Reads `many` events from a stream: name, id and data.
async fn events(response: reqwest::Response, many: usize) -> Vec<(String, String, Json)> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut pieces = response.bytes_stream();
    let (mut text, mut events) = (String::new(), Vec::new());
    while events.len() < many {
        let piece = tokio::time::timeout(Duration::from_secs(30), pieces.next()).await.expect("it goes on").unwrap().unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
        while let Some((event, rest)) = text.split_once("\n\n").map(|(event, rest)| (event.to_owned(), rest.to_owned())) {
            text = rest;
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).map(str::to_owned);
            if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
                events.push((name, field("id:").unwrap_or_default(), serde_json::from_str(&data).unwrap()));
            }
        }
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_shows_what_changes_and_tells_who_comes_back_what_they_missed() {
    let (world, node) = watched("stream").await;
    let api = Api::start(&[&world], true).await;
    world.until_condition("gw", "MetricsAvailable", "True", "Fresh").await;
    let path = format!("/api/policies/stream?policy={}/gw", world.namespace);
    let first = events(api.request(Method::GET, &path).send().await.unwrap(), 1).await.remove(0);
    assert_eq!((first.0.as_str(), &first.2["acting"], &first.2["policies"][0]["name"]), ("snapshot", &json!(true), &json!("gw")));
    assert_eq!(first.2["policy"]["name"], json!("gw"));
    node.run(5_000);
    eventually("the stream shows that it was tightened", || async {
        let seen = events(api.request(Method::GET, &path).send().await.unwrap(), 1).await.remove(0).2;
        (seen["policies"][0]["opennessPercent"].as_u64()? < 100 && seen["policy"]["history"][0]["toPercent"].as_u64()? < 100)
            .then_some(())
    })
    .await;

    let connections = "/api/connections/stream";
    let seen = events(api.request(Method::GET, connections).send().await.unwrap(), 3).await;
    let tick = |id: &str| id.split_once('-').unwrap().1.parse::<u64>().unwrap();
    let ticks: Vec<_> = seen.iter().map(|(name, id, _)| (name.as_str(), tick(id))).collect();
    assert_eq!(ticks, [("snapshot", ticks[0].1), ("snapshot", ticks[0].1 + 1), ("snapshot", ticks[0].1 + 2)], "one each 2 s");
    assert!(seen[0].2["overview"]["totalRequests"].as_u64() > Some(0));

    // The client reconnects after a while. It then reconnects to another process, whose ids have another meaning.
    let life = seen[0].1.split_once('-').unwrap().0;
    let away =
        events(api.request(Method::GET, connections).header("last-event-id", format!("{life}-0")).send().await.unwrap(), 2).await;
    let now = tick(&away[1].1);
    assert_eq!((away[0].0.as_str(), &away[0].2), ("missed", &json!({"snapshots": now - 1})));
    for id in ["0-0", "nonsense", ""] {
        let other = events(api.request(Method::GET, connections).header("last-event-id", id).send().await.unwrap(), 1).await;
        assert_eq!(other[0].0, "snapshot", "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_readers_are_refused_politely_beyond_those_that_are_served() {
    let (world, _node) = watched("crowd").await;
    let api = Api::start(&[&world], true).await;
    world.until_programmed("gw").await;
    let open: Vec<_> = futures::stream::iter(0..64)
        .map(|_| async { api.request(Method::GET, "/api/connections/stream").send().await.unwrap() })
        .buffered(8)
        .collect()
        .await;
    assert!(open.iter().all(|response| response.status() == StatusCode::OK));
    let refused = futures::stream::iter(0..10_000)
        .map(|_| async {
            let request = api.request(Method::GET, "/api/connections/stream").header("connection", "close");
            let response = request.send().await.expect("an answer, not a broken connection");
            assert_eq!(
                (response.status(), &response.headers()["retry-after"]),
                (StatusCode::SERVICE_UNAVAILABLE, &"5".parse().unwrap())
            );
            let body: Json = response.json().await.unwrap();
            assert_eq!(body["error"]["code"], json!("Busy"), "{body}");
        })
        .buffer_unordered(400)
        .count()
        .await;
    assert_eq!(refused, 10_000);
    api.data("/api/connections/stats").await;
    // Open streams continue, and a closed stream frees its place.
    let mut open = open.into_iter();
    assert_eq!(events(open.next().unwrap(), 2).await.len(), 2);
    drop(open);
    eventually("there is a place again", || async {
        let response = api.request(Method::GET, "/api/connections/stream").send().await.unwrap();
        (response.status() == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_caller_holds_no_more_than_their_share_of_the_streams() {
    let (world, _node) = watched("streams").await;
    let api = Api::start(&[&world], false).await;
    world.until_programmed("gw").await;
    let rights = [("get", "idleconnectionpolicies"), ("list", "idleconnectionpolicies")];
    let (greedy, other) = (token(&world, "greedy", &rights).await, token(&world, "other", &rights).await);
    let open = async |token: &str| api.request(Method::GET, "/api/policies/stream").bearer_auth(token).send().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(open(&greedy).await);
    }
    assert!(held.iter().all(|response| response.status() == StatusCode::OK));
    assert_eq!(open(&greedy).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(open(&other).await.status(), StatusCode::OK);

    // The right to read one policy is not the right to list all. A name that no namespace can have is not checked.
    let only_get = token(&world, "one", &[("get", "idleconnectionpolicies")]).await;
    assert_eq!(api.get(&format!("/api/policies/{}/gw", world.namespace), Some(&only_get)).await.0, StatusCode::OK);
    assert_eq!(api.get("/api/policies", Some(&only_get)).await.0, StatusCode::FORBIDDEN);
    let long = format!("/api/policies/{}/gw", "n".repeat(6000));
    assert_eq!(api.get(&long, Some(&greedy)).await.0, StatusCode::FORBIDDEN);
}
