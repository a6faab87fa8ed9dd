//! Policies that the API server accepts or refuses, and the message of each refusal: server-side dry run on a real API server.

use std::path::Path;

use axum::http;
use idleconn_operator::{api::IdleConnectionPolicy, cli::lint};
use kube::{Api, api::PostParams};
use serde_json::{Value as Json, json};

use crate::support::cluster;

/// Accepted.
const OK: &str = "";

fn ais(extra: &Json) -> Json {
    merge(json!({"target": {"type": "AIStore", "aistore": {"service": {"name": "ais-proxy", "port": 51080}}}}), extra)
}

fn caddy(extra: &Json) -> Json {
    merge(json!({"target": {"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "gateway"}}}}}), extra)
}

fn merge(mut base: Json, extra: &Json) -> Json {
    base.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    base
}

fn intra(fields: &Json) -> Json {
    json!({"limits": {"intraCluster": fields}})
}

fn backend(fields: &Json) -> Json {
    json!({"limits": {"backend": fields}})
}

/// ConfigMap policy, with some fields of its target and of its spec replaced.
fn file(target: &Json, extra: &Json) -> Json {
    let target_of =
        json!({"name": "gateway-http", "key": "http.yaml", "format": "yaml", "selector": {"matchLabels": {"app": "gateway"}}});
    merge(json!({"target": {"type": "ConfigMap", "configMap": merge(target_of, target)}}), extra)
}

fn aistore(member: &Json) -> Json {
    json!({"target": {"type": "AIStore", "aistore": member}})
}

fn caddies(member: &Json) -> Json {
    json!({"target": {"type": "Caddy", "caddy": member}})
}

#[allow(clippy::too_many_lines)] // A table.
fn table() -> Vec<(Json, &'static str)> {
    let service = json!({"name": "ais-proxy", "port": 51080});
    let selector = json!({"matchLabels": {"app": "gateway"}});
    let key = json!({"name": "a", "key": "b"});
    let cases = vec![
        // Targets
        (ais(&json!({})), OK),
        (caddy(&json!({})), OK),
        (json!({}), "spec.target: Required value"),
        (json!({"target": {"type": "AIStore"}}), "target: set exactly one of aistore, caddy, configMap"),
        (json!({"target": {"type": "Caddy"}}), "target: set exactly one of aistore, caddy, configMap"),
        (
            json!({"target": {"type": "AIStore", "aistore": {"service": service}, "caddy": {"selector": selector}}}),
            "target: set exactly one of aistore, caddy, configMap",
        ),
        (
            json!({"target": {"type": "Caddy", "aistore": {"service": service}}}),
            "target.type must name the member that is set: AIStore with aistore, Caddy with caddy, ConfigMap with configMap",
        ),
        (
            json!({"target": {"type": "Nginx", "caddy": {"selector": selector}}}),
            "Unsupported value: \"Nginx\": supported values: \"AIStore\", \"Caddy\", \"ConfigMap\"",
        ),
        (aistore(&json!({})), "target.aistore: set exactly one of service, endpoint"),
        (
            aistore(&json!({"service": service, "endpoint": "http://10.0.0.1:51080"})),
            "target.aistore: set exactly one of service, endpoint",
        ),
        (aistore(&json!({"endpoint": "http://10.0.0.1:51080"})), OK),
        (aistore(&json!({"endpoint": "https://ais.example.com"})), OK),
        (
            aistore(&json!({"endpoint": "ftp://10.0.0.1"})),
            "target.aistore.endpoint must be http://host:port or https://host:port",
        ),
        (aistore(&json!({"endpoint": "http://u:p@10.0.0.1"})), "without path, query or credentials"),
        (aistore(&json!({"endpoint": "http://10.0.0.1/v1"})), "without path, query or credentials"),
        (
            aistore(&json!({"service": {"name": "ais-proxy", "port": 0}})),
            "spec.target.aistore.service.port in body should be greater than or equal to 1",
        ),
        (aistore(&json!({"service": {"name": "ais-proxy", "port": 65536}})), "should be less than or equal to 65535"),
        (aistore(&json!({"service": {"name": "ais-proxy"}})), "spec.target.aistore.service.port: Required value"),
        (
            aistore(&json!({"service": {"name": "ais-proxy", "port": 1, "scheme": "gopher"}})),
            "supported values: \"http\", \"https\"",
        ),
        (aistore(&json!({"service": service, "tokenSecretRef": key, "caConfigMapRef": key})), OK),
        (aistore(&json!({"service": service, "caSecretRef": key})), OK),
        (
            aistore(&json!({"service": service, "caSecretRef": key, "caConfigMapRef": key})),
            "target.aistore: set at most one of caConfigMapRef, caSecretRef",
        ),
        (aistore(&json!({"service": service, "tokenSecretRef": {"name": "a"}})), "tokenSecretRef.key: Required value"),
        (caddies(&json!({})), "target.caddy: set exactly one of selector, service, endpoints"),
        (
            caddies(&json!({"selector": selector, "service": service})),
            "target.caddy: set exactly one of selector, service, endpoints",
        ),
        (caddies(&json!({"selector": {}})), "target.caddy.selector must not be empty: it would match every pod of the namespace"),
        (caddies(&json!({"selector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}})), OK),
        (caddies(&json!({"service": service})), OK),
        (caddies(&json!({"endpoints": ["http://10.0.0.1:2019", "https://10.0.0.2:2019"]})), OK),
        (caddies(&json!({"endpoints": []})), "spec.target.caddy.endpoints in body should have at least 1 items"),
        (caddies(&json!({"endpoints": ["10.0.0.1:2019"]})), "spec.target.caddy.endpoints[0] in body should match"),
        (caddies(&json!({"endpoints": ["http://10.0.0.1:1", "http://10.0.0.1:1"]})), "Duplicate value"),
        (caddies(&json!({"selector": selector, "adminPort": 70000})), "should be less than or equal to 65535"),
        (
            caddies(&json!({"selector": selector, "caSecretRef": key, "caConfigMapRef": key})),
            "target.caddy: set at most one of caConfigMapRef, caSecretRef",
        ),
        // Durations and counts
        (caddy(&json!({"limits": {"server": {"idleTimeout": "30s"}}})), OK),
        (caddy(&json!({"limits": {"server": {"idleTimeout": "1m30s"}}})), OK),
        (caddy(&json!({"limits": {"server": {"idleTimeout": "0s"}}})), OK),
        (caddy(&json!({"limits": {"server": {"idleTimeout": "30"}}})), "spec.limits.server.idleTimeout"),
        (caddy(&json!({"limits": {"server": {"idleTimeout": "-5s"}}})), "spec.limits.server.idleTimeout"),
        (caddy(&json!({"limits": {"server": {"idleTimeout": "1.5s"}}})), "spec.limits.server.idleTimeout"),
        (caddy(&json!({"limits": {"server": {"idleTimeout": "1d"}}})), "spec.limits.server.idleTimeout"),
        (caddy(&json!({"limits": {"server": {"idleTimeout": 30}}})), "spec.limits.server.idleTimeout"),
        (caddy(&json!({"limits": {"server": {"readHeaderTimeout": "10s"}}})), OK),
        (caddy(&backend(&json!({"maxIdleConns": -1}))), "should be greater than or equal to 0"),
        (caddy(&backend(&json!({"maxIdleConns": 1_000_001}))), "should be less than or equal to 1000000"),
        (caddy(&backend(&json!({"maxIdleConns": 1.5}))), "spec.limits.backend.maxIdleConns"),
        (
            caddy(&backend(&json!({
                "idleConnTimeout": "20s", "maxIdleConns": 2000, "maxIdleConnsPerHost": 100, "maxConnsPerHost": 400, "tcpKeepAlive": "60s",
                "tlsHandshakeTimeout": "10s", "expectContinueTimeout": "1s", "responseHeaderTimeout": "30s",
            }))),
            OK,
        ),
        (caddy(&backend(&json!({"idelConnTimeout": "20s"}))), "unknown field \"spec.limits.backend.idelConnTimeout\""),
        // Pools
        (caddy(&backend(&json!({"maxIdleConns": 10, "maxIdleConnsPerHost": 10}))), OK),
        (
            caddy(&backend(&json!({"maxIdleConns": 10, "maxIdleConnsPerHost": 11}))),
            "limits.backend.maxIdleConnsPerHost must not exceed limits.backend.maxIdleConns: lower the first or raise the second",
        ),
        (caddy(&backend(&json!({"maxIdleConns": 0, "maxIdleConnsPerHost": 11}))), OK),
        (
            caddy(&backend(&json!({"maxConnsPerHost": 10, "maxIdleConnsPerHost": 11}))),
            "limits.backend.maxIdleConnsPerHost must not exceed limits.backend.maxConnsPerHost",
        ),
        (caddy(&backend(&json!({"maxConnsPerHost": 0, "maxIdleConnsPerHost": 11}))), OK),
        (
            ais(&intra(&json!({"maxIdleConns": 10, "maxIdleConnsPerHost": 11}))),
            "limits.intraCluster.maxIdleConnsPerHost must not exceed limits.intraCluster.maxIdleConns",
        ),
        // Files
        (file(&json!({}), &json!({})), OK),
        (file(&json!({"metrics": {"port": 8080}, "hash": {"port": 8080, "path": "/hash", "scheme": "https"}}), &json!({})), OK),
        (file(&json!({"key": "http yaml"}), &json!({})), "target.configMap.key"),
        (file(&json!({"key": "x".repeat(55)}), &json!({})), "target.configMap.key"),
        (file(&json!({"format": "toml"}), &json!({})), "supported values: \"yaml\", \"json\", \"env\""),
        (file(&json!({"selector": {}}), &json!({})), "target.configMap.selector must not be empty"),
        (file(&json!({"metrics": {"port": 0}}), &json!({})), "metrics.port"),
        (file(&json!({"metrics": {"port": 80, "path": "metrics"}}), &json!({})), "the path of metrics or hash must start with /"),
        (
            file(
                &json!({}),
                &json!({"limits": {"server": {"idleTimeout": "9s"}}, "adaptive": {"floor": {"server": {"idleTimeout": "1s"}}}}),
            ),
            "target.configMap.metrics must be set: adaptive control reads the task count",
        ),
        (
            file(
                &json!({"metrics": {"port": 80}}),
                &json!({"limits": {"server": {"idleTimeout": "9s"}}, "adaptive": {"floor": {"server": {"idleTimeout": "1s"}}}}),
            ),
            OK,
        ),
        (
            file(
                &json!({"metrics": {"port": 80}}),
                &json!({"limits": {"server": {"idleTimeout": "9s"}}, "adaptive": {"floor": {"server": {"idleTimeout": "1s"}}, "signal": {"source": "StateFlags"}}}),
            ),
            "only AIStore has StateFlags",
        ),
        (file(&json!({}), &json!({"limits": {"server": {"maxRequestsPerConn": -1}}})), "maxRequestsPerConn"),
        (file(&json!({}), &json!({"limits": {"backend": {"maxConnLifetime": "10m", "requestTimeout": "30s"}}})), OK),
        // Overrides
        (
            caddy(
                &json!({"overrides": [{"name": "small", "nodes": ["gw-3"], "limits": {"backend": {"maxIdleConns": 9}}}, {"name": "edge", "role": "edge", "limits": {}}]}),
            ),
            OK,
        ),
        (caddy(&json!({"overrides": [{"name": "small", "limits": {}}]})), "overrides: set exactly one of role, nodes, provider"),
        (
            caddy(&json!({"overrides": [{"name": "small", "nodes": ["gw-3"], "role": "edge", "limits": {}}]})),
            "overrides: set exactly one of role, nodes, provider",
        ),
        (
            caddy(&json!({"overrides": [{"name": "a", "provider": "anthropic", "limits": {}}]})),
            "provider needs a ConfigMap in the format http-connection-pool",
        ),
        (ais(&json!({"overrides": [{"name": "a", "nodes": ["t1"], "limits": {}}]})), "other targets have no overrides"),
        (
            file(&json!({}), &json!({"overrides": [{"name": "a", "provider": "anthropic", "limits": {}}]})),
            "role and nodes need target Caddy",
        ),
        (
            file(
                &json!({"format": "http-connection-pool"}),
                &json!({"overrides": [{"name": "a", "provider": "anthropic", "limits": {"backend": {"maxConnsPerHost": 20}}}]}),
            ),
            OK,
        ),
        (
            caddy(
                &json!({"overrides": [{"name": "a", "role": "edge", "limits": {}}, {"name": "b", "role": "edge", "limits": {}}]}),
            ),
            "overrides: each role and each provider may occur only once",
        ),
        (
            caddy(
                &json!({"overrides": [{"name": "a", "role": "edge", "limits": {}}, {"name": "a", "role": "core", "limits": {}}]}),
            ),
            "Duplicate value",
        ),
        // Presets that set further limits
        (file(&json!({}), &json!({"preset": "HighTraffic"})), OK),
        (
            file(&json!({}), &json!({"preset": "HighTraffic", "limits": {"backend": {"maxIdleConnsPerHost": 101}}})),
            "limits.backend.maxIdleConnsPerHost must not exceed limits.backend.maxConnsPerHost",
        ),
        (file(&json!({}), &json!({"preset": "Production", "limits": {"backend": {"maxIdleConnsPerHost": 101}}})), OK),
        // Rules include the presets
        (caddy(&json!({"preset": "Production"})), OK),
        (ais(&json!({"preset": "GoDefault"})), OK),
        (
            caddy(&json!({"preset": "Recommended"})),
            "supported values: \"Production\", \"Constrained\", \"GoDefault\", \"LowTraffic\"",
        ),
        (
            caddy(&merge(json!({"preset": "Production"}), &backend(&json!({"maxIdleConns": 50})))),
            "limits.backend.maxIdleConnsPerHost must not exceed limits.backend.maxIdleConns",
        ),
        (caddy(&merge(json!({"preset": "GoDefault"}), &backend(&json!({"maxIdleConns": 50})))), OK),
        (
            caddy(&merge(json!({"preset": "GoDefault"}), &backend(&json!({"maxIdleConnsPerHost": 101})))),
            "(preset may set either)",
        ),
        (
            caddy(&merge(json!({"preset": "Production"}), &backend(&json!({"maxConnsPerHost": 99})))),
            "limits.backend.maxIdleConnsPerHost must not exceed limits.backend.maxConnsPerHost",
        ),
        // A client closes before its server
        (caddy(&json!({"limits": {"server": {"idleTimeout": "21s"}, "intraCluster": {"idleConnTimeout": "20s"}}})), OK),
        (
            caddy(&json!({"limits": {"server": {"idleTimeout": "20s"}, "intraCluster": {"idleConnTimeout": "20s"}}})),
            "limits.intraCluster.idleConnTimeout must be at least 1s shorter than limits.server.idleTimeout: a client must close an idle connection before its server does",
        ),
        (caddy(&json!({"limits": {"server": {"idleTimeout": "0s"}, "intraCluster": {"idleConnTimeout": "20s"}}})), OK),
        (
            caddy(&json!({"limits": {"server": {"idleTimeout": "20s"}, "intraCluster": {"idleConnTimeout": "0s"}}})),
            "must be at least 1s shorter",
        ),
        (caddy(&json!({"preset": "Production", "limits": {"server": {"idleTimeout": "20s"}}})), "must be at least 1s shorter"),
        (
            caddy(&json!({"preset": "Production", "limits": {"intraCluster": {"idleConnTimeout": "29s500ms"}}})),
            "must be at least 1s shorter",
        ),
        // AIStore's own ranges
        (ais(&intra(&json!({"idleConnTimeout": "29s", "maxIdleConns": 4096, "maxIdleConnsPerHost": 128}))), OK),
        (
            ais(&intra(&json!({"idleConnTimeout": "30s"}))),
            "limits.intraCluster.idleConnTimeout: AIStore accepts 1ms to 29s; its servers close at 30s",
        ),
        (ais(&intra(&json!({"idleConnTimeout": "0s"}))), "limits.intraCluster.idleConnTimeout: AIStore accepts 1ms to 29s"),
        (ais(&intra(&json!({"maxIdleConns": 0}))), "limits.intraCluster.maxIdleConns: AIStore accepts 1 to 4096"),
        (ais(&intra(&json!({"maxIdleConns": 4097}))), "limits.intraCluster.maxIdleConns: AIStore accepts 1 to 4096"),
        (ais(&intra(&json!({"maxIdleConnsPerHost": 0}))), "limits.intraCluster.maxIdleConnsPerHost: AIStore accepts 1 to 128"),
        (ais(&intra(&json!({"maxIdleConnsPerHost": 129}))), "limits.intraCluster.maxIdleConnsPerHost: AIStore accepts 1 to 128"),
        (ais(&backend(&json!({"idleConnTimeout": "1h"}))), OK),
        (ais(&backend(&json!({"idleConnTimeout": "0s"}))), "limits.backend.idleConnTimeout: AIStore accepts more than 0s"),
        (caddy(&intra(&json!({"idleConnTimeout": "10m", "maxIdleConnsPerHost": 500}))), OK),
        // Other fields
        (caddy(&json!({"driftPolicy": "Report", "deletionPolicy": "Retain", "suspend": true, "restoreTimeout": "10s"})), OK),
        (caddy(&json!({"restart": {}})), OK),
        (
            caddy(
                &json!({"restart": {"policy": "Rolling", "for": "Any", "maxUnavailable": 3, "maxPerDay": 24, "timeout": "1h"}}),
            ),
            OK,
        ),
        (caddy(&json!({"restart": {"policy": "Always"}})), "supported values: \"Never\", \"Rolling\""),
        (caddy(&json!({"restart": {"for": "Fun"}})), "supported values: \"Declared\", \"Any\""),
        (caddy(&json!({"restart": {"maxUnavailable": 0}})), "should be greater than or equal to 1"),
        (caddy(&json!({"restart": {"maxPerDay": 25}})), "should be less than or equal to 24"),
        (caddy(&json!({"restart": {"timeout": "0s"}})), "restart.timeout must be between 1s and 24h"),
        (caddy(&json!({"driftPolicy": "Ignore"})), "supported values: \"Correct\", \"Report\""),
        (caddy(&json!({"deletionPolicy": "Delete"})), "supported values: \"Restore\", \"Retain\""),
        (caddy(&json!({"verify": {"server": {}}})), OK),
        (
            caddy(
                &json!({"verify": {"server": {"interval": "5m", "httpGet": {"port": 8443, "path": "/healthz?full", "scheme": "https", "host": "gateway.example"}}}}),
            ),
            OK,
        ),
        (caddy(&json!({"verify": {"server": {"interval": "299s"}}})), "verify.server.interval must be between 5m and 24h"),
        (caddy(&json!({"verify": {"server": {"interval": "25h"}}})), "verify.server.interval must be between 5m and 24h"),
        (caddy(&json!({"verify": {"server": {"httpGet": {"path": "healthz"}}}})), "verify.server.httpGet.path must start with /"),
        (caddy(&json!({"verify": {"server": {"httpGet": {"path": "/a b"}}}})), "verify.server.httpGet.path must start with /"),
        (caddy(&json!({"verify": {"server": {"httpGet": {"host": "a:80"}}}})), "spec.verify.server.httpGet.host"),
        (caddy(&json!({"verify": {}})), "spec.verify.server: Required value"),
        (caddy(&json!({"restoreTimeout": "0s"})), "restoreTimeout must be between 1s and 24h"),
        (caddy(&json!({"restoreTimeout": "25h"})), "restoreTimeout must be between 1s and 24h"),
        (caddy(&json!({"suspend": "yes"})), "spec.suspend"),
    ];
    cases.into_iter().chain(adaptive_cases()).collect()
}

/// `spec.adaptive`: floors, signals and numbers.
#[allow(clippy::too_many_lines)] // A table.
fn adaptive_cases() -> Vec<(Json, &'static str)> {
    let caddy = |limits: Json, adaptive: Json| json!({"target": {"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "gateway"}}}}, "limits": limits, "adaptive": adaptive});
    let ais = |limits: Json, adaptive: Json| json!({"target": {"type": "AIStore", "aistore": {"service": {"name": "p", "port": 1}}}, "limits": limits, "adaptive": adaptive});
    let idle = || json!({"server": {"idleTimeout": "30s"}});
    let floor = || json!({"server": {"idleTimeout": "5s"}});
    let signal = |signal: Json| caddy(idle(), json!({"mode": "Enforce", "floor": floor(), "signal": signal}));
    let behavior = |behavior: Json| caddy(idle(), json!({"mode": "Enforce", "floor": floor(), "behavior": behavior}));
    let prometheus = || json!({"endpoint": "http://10.0.0.1:9090", "query": "max(go_goroutines)"});
    let floors = |limits: Json, floor: Json| caddy(limits, json!({"mode": "Enforce", "floor": floor}));
    let pools = || json!({"backend": {"idleConnTimeout": "20s", "maxIdleConns": 2000, "maxIdleConnsPerHost": 100, "maxConnsPerHost": 400}});
    let pair = || json!({"server": {"idleTimeout": "30s"}, "intraCluster": {"idleConnTimeout": "20s"}});
    vec![
        (caddy(idle(), json!({"mode": "Enforce", "floor": floor()})), OK),
        (caddy(idle(), json!({"mode": "Disabled"})), OK),
        (caddy(idle(), json!({"floor": floor()})), OK),
        (caddy(idle(), json!({"mode": "Enforce"})), "adaptive: set adaptive.floor, because only a limit with a floor"),
        (
            caddy(idle(), json!({"mode": "Sometimes", "floor": floor()})),
            "supported values: \"Enforce\", \"Recommend\", \"Disabled\"",
        ),
        (
            floors(idle(), json!({"server": {"idleTimeout": "31s"}})),
            "adaptive.floor.server.idleTimeout must be more than 0 and must not exceed limits.server.idleTimeout",
        ),
        (floors(idle(), json!({"server": {"idleTimeout": "0s"}})), "adaptive.floor.server.idleTimeout must be more than 0"),
        (floors(json!({"server": {"idleTimeout": "0s"}}), floor()), "which must be set and not 0 (by limits or preset)"),
        (floors(json!({"server": {"readHeaderTimeout": "5s"}}), floor()), "which must be set and not 0 (by limits or preset)"),
        (floors(pools(), json!({"backend": {"maxIdleConns": 100, "maxIdleConnsPerHost": 5}})), OK),
        (
            floors(pools(), json!({"backend": {"maxIdleConns": 50}})),
            "adaptive.floor.backend.maxIdleConns must not be less than adaptive.floor.backend.maxIdleConnsPerHost",
        ),
        (
            floors(pools(), json!({"backend": {"maxConnsPerHost": 4, "maxIdleConnsPerHost": 5}})),
            "adaptive.floor.backend.maxConnsPerHost must not be less than",
        ),
        (
            floors(pools(), json!({"backend": {"maxIdleConns": 2001}})),
            "adaptive.floor.backend.maxIdleConns must be more than 0 and must not exceed",
        ),
        (floors(pair(), json!({"server": {"idleTimeout": "5s"}, "intraCluster": {"idleConnTimeout": "4s"}})), OK),
        (
            floors(pair(), json!({"server": {"idleTimeout": "5s"}, "intraCluster": {"idleConnTimeout": "5s"}})),
            "adaptive.floor.intraCluster.idleConnTimeout must be at least 1s shorter than adaptive.floor.server.idleTimeout",
        ),
        (
            floors(pair(), json!({"server": {"idleTimeout": "5s"}})),
            "must be at least 1s shorter than adaptive.floor.server.idleTimeout",
        ),
        (
            json!({"target": {"type": "Caddy", "caddy": {"selector": {"matchLabels": {"a": "b"}}}}, "preset": "Production", "adaptive": {"floor": {"backend": {"maxIdleConnsPerHost": 101}}}}),
            "adaptive.floor.backend.maxIdleConnsPerHost must be more than 0 and must not exceed limits.backend.maxIdleConnsPerHost",
        ),
        (
            signal(
                json!({"source": "Nodes", "metric": "go_goroutines", "threshold": {"value": 20000}, "percentile": 95, "interval": "10s"}),
            ),
            OK,
        ),
        (
            signal(json!({"threshold": {"value": 0}})),
            "spec.adaptive.signal.threshold.value in body should be greater than or equal to 1",
        ),
        (signal(json!({"threshold": {"value": 1, "perCPU": 1}})), "adaptive.signal.threshold: set exactly one of value, perCPU"),
        (signal(json!({"threshold": {}})), "adaptive.signal.threshold: set exactly one of value, perCPU"),
        (signal(json!({"metric": "go goroutines"})), "spec.adaptive.signal.metric in body should match"),
        (signal(json!({"idleConnections": {"metric": "connections", "matchLabels": {"state": "idle"}, "tasksPerConnection": 1}})), OK),
        (
            signal(json!({"idleConnections": {"metric": "connections", "tasksPerConnection": 9}})),
            "spec.adaptive.signal.idleConnections.tasksPerConnection in body should be less than or equal to 8",
        ),
        (signal(json!({"newConnections": {"metric": "opened", "matchLabels": {"reused": "false"}, "maxPerSecond": 20}})), OK),
        (signal(json!({"newConnections": {"metric": "opened", "maxPerSecond": 20, "requests": {"metric": "asked"}}})), OK),
        (signal(json!({"newConnections": {"metric": "opened"}})), "spec.adaptive.signal.newConnections.maxPerSecond: Required value"),
        (
            signal(json!({"newConnections": {"metric": "opened", "maxPerSecond": 0}})),
            "spec.adaptive.signal.newConnections.maxPerSecond in body should be greater than or equal to 1",
        ),
        (
            signal(json!({"source": "Prometheus", "threshold": {"value": 1}, "prometheus": prometheus(), "newConnections": {"metric": "c", "maxPerSecond": 1}})),
            "adaptive.signal.newConnections needs source Nodes",
        ),
        (
            signal(json!({"source": "Prometheus", "threshold": {"value": 1}, "prometheus": prometheus(), "idleConnections": {"metric": "c"}})),
            "adaptive.signal.idleConnections needs source Nodes",
        ),
        (signal(json!({"percentile": 0})), "spec.adaptive.signal.percentile in body should be greater than or equal to 1"),
        (signal(json!({"interval": "500ms"})), "adaptive.signal.interval must be between 1s and 10m"),
        (signal(json!({"source": "StateFlags"})), "adaptive.signal.source: only AIStore has StateFlags; use Nodes or Prometheus"),
        (
            ais(
                json!({"intraCluster": {"idleConnTimeout": "20s"}}),
                json!({"floor": {"intraCluster": {"idleConnTimeout": "4s"}}, "signal": {"newConnections": {"metric": "opened", "maxPerSecond": 1}}}),
            ),
            "adaptive.signal.newConnections needs source: Nodes; set it, because AIStore's default is StateFlags",
        ),
        (
            ais(
                json!({"intraCluster": {"idleConnTimeout": "20s"}}),
                json!({"floor": {"intraCluster": {"idleConnTimeout": "4s"}}, "signal": {"source": "StateFlags"}}),
            ),
            OK,
        ),
        (
            ais(
                json!({"intraCluster": {"idleConnTimeout": "20s"}}),
                json!({"floor": {"intraCluster": {"idleConnTimeout": "4s"}}, "signal": {"source": "StateFlags", "threshold": {"value": 5}}}),
            ),
            "adaptive.signal: StateFlags has no threshold",
        ),
        (signal(json!({"source": "Prometheus", "threshold": {"value": 1}, "prometheus": prometheus()})), OK),
        (
            signal(json!({"source": "Prometheus", "threshold": {"value": 1}})),
            "adaptive.signal.prometheus must be set if and only if signal.source is Prometheus",
        ),
        (
            signal(json!({"prometheus": prometheus()})),
            "adaptive.signal.prometheus must be set if and only if signal.source is Prometheus",
        ),
        (
            signal(json!({"source": "Prometheus", "threshold": {"perCPU": 1}, "prometheus": prometheus()})),
            "source Prometheus needs threshold.value",
        ),
        (
            signal(json!({"source": "Prometheus", "threshold": {"value": 1}, "prometheus": {"query": "up"}})),
            "adaptive.signal.prometheus: set exactly one of service, endpoint",
        ),
        (
            behavior(
                json!({"profile": "Aggressive", "tightenAfter": "1s", "relaxAfter": "1s", "maxChangesPerHour": 60, "maxChangesPerDay": 60}),
            ),
            OK,
        ),
        (behavior(json!({"tightenAfter": "0s"})), "adaptive.behavior.tightenAfter must be between 1s and 24h"),
        (behavior(json!({"relaxAfter": "500ms"})), "adaptive.behavior.relaxAfter must be between 1s and 24h"),
        (
            behavior(json!({"maxChangesPerHour": 5, "maxChangesPerDay": 4})),
            "adaptive.behavior.maxChangesPerHour must not exceed maxChangesPerDay",
        ),
        (behavior(json!({"maxChangesPerDay": 61})), "should be less than or equal to 60"),
        (behavior(json!({"profile": "Reckless"})), "supported values: \"Conservative\", \"Balanced\", \"Aggressive\""),
        (
            caddy(idle(), json!({"floor": floor(), "fallback": {"after": "1m"}})),
            "adaptive.fallback.after must be between 3m and 24h",
        ),
    ]
    .into_iter()
    .chain(series_cases())
    .collect()
}

/// `spec.adaptive.signal`: which series count, and how Prometheus is asked.
fn series_cases() -> Vec<(Json, &'static str)> {
    let caddy = |signal: Json| {
        caddy(&json!({
            "limits": {"server": {"idleTimeout": "30s"}},
            "adaptive": {"mode": "Enforce", "floor": {"server": {"idleTimeout": "5s"}}, "signal": signal},
        }))
    };
    let ais = |signal: Json| {
        ais(&json!({
            "limits": {"intraCluster": {"idleConnTimeout": "20s"}},
            "adaptive": {"floor": {"intraCluster": {"idleConnTimeout": "4s"}}, "signal": signal},
        }))
    };
    let prometheus = |extra: Json| {
        let server = merge(json!({"endpoint": "http://10.0.0.1:9090", "query": "max(go_goroutines)"}), &extra);
        caddy(json!({"source": "Prometheus", "threshold": {"value": 1}, "prometheus": server}))
    };
    let header = |name: &str| json!({"name": name, "secretRef": {"name": "mimir", "key": "tenant"}});
    let many: serde_json::Map<_, _> = (0..9).map(|n| (format!("l{n}"), "v".into())).collect();
    let nine: Vec<_> = (0..9).map(|n| header(&format!("X-{n}"))).collect();
    let forbidden = "adaptive.signal.prometheus.headers: Host, Authorization and headers of the connection cannot be set";
    let prefix = "adaptive.signal.prometheus.pathPrefix must be a path such as /prometheus";
    let source = "adaptive.signal: matchLabels and aggregation need source Nodes";
    vec![
        (caddy(json!({"matchLabels": {"pid": "7", "a.b": ""}, "aggregation": "Sum"})), OK),
        (caddy(json!({"source": "Nodes", "aggregation": "Max"})), OK),
        (caddy(json!({"aggregation": "Mean"})), "supported values: \"ExactlyOne\", \"Sum\", \"Max\""),
        (caddy(json!({"matchLabels": many})), "must have at most 8 items"),
        (caddy(json!({"matchLabels": {"": "x"}})), "adaptive.signal.matchLabels: a label name has 1 to 128 characters"),
        (
            caddy(json!({"matchLabels": {"x": "v".repeat(257)}})),
            "adaptive.signal.matchLabels: a label name has 1 to 128 characters",
        ),
        (ais(json!({"source": "Nodes", "aggregation": "Sum"})), OK),
        (ais(json!({"source": "StateFlags", "aggregation": "Sum"})), source),
        (ais(json!({"aggregation": "Sum"})), "adaptive.signal: matchLabels and aggregation need source: Nodes"),
        (ais(json!({"matchLabels": {"a": "b"}})), "adaptive.signal: matchLabels and aggregation need source: Nodes"),
        (prometheus(json!({"pathPrefix": "/prometheus"})), OK),
        (prometheus(json!({"pathPrefix": "/api/prom/"})), OK),
        (prometheus(json!({"pathPrefix": "prometheus"})), prefix),
        (prometheus(json!({"pathPrefix": "/a?b"})), prefix),
        (prometheus(json!({"pathPrefix": "/"})), prefix),
        (prometheus(json!({"headers": [header("X-Scope-OrgID"), header("X-Other")]})), OK),
        (prometheus(json!({"headers": [header("Host")]})), forbidden),
        (prometheus(json!({"headers": [header("AUTHORIZATION")]})), forbidden),
        (prometheus(json!({"headers": [header("content-length")]})), forbidden),
        (prometheus(json!({"headers": [header("X Scope")]})), "prometheus.headers[0].name in body should match"),
        (
            prometheus(json!({"headers": [header("X-Scope-OrgID"), header("x-scope-orgid")]})),
            "adaptive.signal.prometheus.headers: a header may occur only once",
        ),
        (prometheus(json!({"headers": nine})), "headers: Too many: 9: must have at most 8 items"),
        (file(&json!({"metrics": {"port": 80, "path": "/v1/metrics?format=prometheus&x=%20"}}), &json!({})), OK),
        (
            file(&json!({"metrics": {"port": 80, "path": "/metrics#top"}}), &json!({})),
            "target.configMap: the path of metrics or hash must start with / and must not have blanks or a fragment (#)",
        ),
    ]
}

/// Collects the messages of the rules.
fn messages(value: &Json, into: &mut Vec<String>) {
    match value {
        Json::Object(map) => {
            let rules = map.get("x-kubernetes-validations").and_then(Json::as_array);
            into.extend(rules.into_iter().flatten().filter_map(|rule| rule["message"].as_str().map(str::to_owned)));
            map.values().for_each(|value| messages(value, into));
        }
        Json::Array(items) => items.iter().for_each(|item| messages(item, into)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_names_the_field_and_the_fix() {
    let client = cluster::client().await;
    let namespace = cluster::namespace(&client, "crd").await;
    // Strict validation as in kubectl, so that a misspelt field is refused too.
    let url =
        format!("/apis/idleconn.io/v1alpha1/namespaces/{namespace}/idleconnectionpolicies?dryRun=All&fieldValidation=Strict");
    let table = table();
    assert!(table.len() >= 60);
    let mut wrong = Vec::new();
    let mut sentences = Vec::new();
    let linter = lint::Linter::new().unwrap();
    messages(&idleconn_operator::api::crd::crd(), &mut sentences);
    for (spec, sentence) in &table {
        let object = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": "p"}, "spec": spec});
        // `lint` gives the same result without a cluster. If the message is one of the CRD, it is identical.
        let linted: Vec<_> =
            linter.file(Path::new("p.yaml"), &object.to_string(), None).1.into_iter().filter(|found| found.is_error).collect();
        let rule = sentences.iter().any(|rule| rule.contains(*sentence));
        let agrees = match *sentence {
            OK => linted.is_empty(),
            sentence if rule => linted.iter().any(|found| found.message.contains(sentence)),
            _ => !linted.is_empty(),
        };
        if !agrees {
            wrong.push(format!("{spec}: expected {sentence:?}, lint says {linted:#?}"));
        }
        let request =
            http::Request::post(&url).header("content-type", "application/json").body(object.to_string().into_bytes()).unwrap();
        match (client.request::<Json>(request).await, *sentence) {
            (Ok(created), OK) => {
                let status = &created["status"];
                assert_eq!((&status["observedGeneration"], &status["conditions"][0]["reason"]), (&json!(-1), &json!("Pending")));
            }
            (Err(kube::Error::Api(status)), sentence) if sentence != OK && status.message.contains(sentence) => {
                if status.message.matches("spec").count() > 8 {
                    wrong.push(format!("{spec}: too much is said: {}", status.message));
                }
            }
            (answer, sentence) => wrong.push(format!("{spec}: expected {sentence:?}, got {:?}", answer.map(|_| "accepted"))),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kind_of_target_cannot_be_changed_and_long_names_are_refused() {
    let client = cluster::client().await;
    let namespace = cluster::namespace(&client, "crd").await;
    let api = Api::<IdleConnectionPolicy>::namespaced(client, &namespace);
    let object = |name: &str, spec: Json| serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
    let mut created = api.create(&PostParams::default(), &object("p", caddy(&json!({})))).await.unwrap();
    created.spec = serde_json::from_value(ais(&json!({}))).unwrap();
    let refused = api.replace("p", &PostParams::default(), &created).await.unwrap_err().to_string();
    assert!(refused.contains("target.type is immutable: delete the policy and create another"), "{refused}");

    let name = "x".repeat(64);
    let refused = api.create(&PostParams::default(), &object(&name, caddy(&json!({})))).await.unwrap_err().to_string();
    assert!(refused.contains("metadata.name must be at most 63 characters"), "{refused}");
}
