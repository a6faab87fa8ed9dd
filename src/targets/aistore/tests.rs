use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::decide::Stored;

fn state(per_host: i64) -> UnitState {
    let site = ConfigPath { limit: Limit::IntraClusterMaxIdleConnsPerHost, place: "net.http.idle_conns_per_host".into() };
    UnitState { sites: [(site, Stored { value: None, raw: Some(per_host.into()) })].into(), ..UnitState::default() }
}

#[test]
fn per_host_goes_down_only_where_the_server_would_refuse_the_total() {
    let total = |n| LimitValues::from([(Limit::IntraClusterMaxIdleConns, Value::Count(n))]);
    let lowered = |declared: &LimitValues, now, before: Option<i64>| {
        let site = ConfigPath { limit: Limit::IntraClusterMaxIdleConnsPerHost, place: "net.http.idle_conns_per_host".into() };
        let saved = before.map(|n| BTreeMap::from([(site, Some(json!(n)))]));
        dependent_limits(declared, &state(now), saved.as_ref()).into_values().next()
    };
    assert_eq!(lowered(&total(16), 32, None), Some(Value::Count(16)));
    assert_eq!(lowered(&total(16), 16, Some(32)), Some(Value::Count(16)), "it stays down while the total does");
    assert_eq!(lowered(&total(64), 32, None), None);
    let mut both = total(16);
    both.insert(Limit::IntraClusterMaxIdleConnsPerHost, Value::Count(8));
    assert_eq!(lowered(&both, 32, None), None, "what is declared needs no company");
}

#[test]
fn one_body_has_all_fields_numbers_as_numbers_and_times_with_units() {
    let change = |limit, place: &str, to| Change { site: ConfigPath { limit, place: format!("net.http.{place}") }, to };
    let body = body(&[
        change(Limit::IntraClusterIdleConnTimeout, "idle_conn_time", NewValue::Value(Value::Duration(Duration::from_secs(20)))),
        change(Limit::IntraClusterMaxIdleConns, "idle_conns", NewValue::Value(Value::Count(2000))),
        change(Limit::IntraClusterMaxIdleConnsPerHost, "idle_conns_per_host", NewValue::Raw(Some(json!(-1)))),
    ]);
    assert_eq!(
        body,
        json!({"action": "set-config", "value": {"net": {"http": {"idle_conn_time": "20s", "idle_conns": 2000, "idle_conns_per_host": -1}}}})
    );
}

#[test]
fn the_servers_message_is_shown_without_control_characters_and_cut() {
    assert_eq!(wire::message(b"{\"message\":\"invalid\\nidle_conns \xff\"}").as_deref(), Some("invalid idle_conns \u{fffd}"));
    assert_eq!(
        wire::message(format!("{{\"message\":\"{}\"}}", "x".repeat(500)).as_bytes()).map(|m| m.chars().count()),
        Some(200)
    );
    for body in [&b"<html>secret</html>"[..], b"", b"{\"other\":1}", b"{\"message\":7}"] {
        assert_eq!(wire::message(body), None);
    }
}

#[test]
fn the_time_of_a_change_is_corrected_by_the_servers_clock() {
    let now = Timestamp::from_second(1_000_000_000).expect("a time");
    let written = "2026-11-21 02:10:10.106209284 +0000 UTC m=+15.038229268";
    // By the server's clock the change was 50 s ago, independent of that clock's offset.
    let local = wire::local_time(written, Some("Sat, 21 Nov 2026 02:11:00 GMT"), now).expect("a time");
    assert!((local.as_second() - (1_000_000_000 - 49)).abs() <= 1, "{local}");
    assert_eq!(wire::local_time("yesterday", Some("Sat, 21 Nov 2026 02:11:00 GMT"), now), None);
    assert_eq!(wire::local_time(written, None, now), None);
}

#[test]
fn pools_hold_no_more_than_their_counts_allow() {
    let limits = |total: u32, per_host: u32| {
        LimitValues::from([
            (Limit::IntraClusterMaxIdleConns, Value::Count(total)),
            (Limit::IntraClusterMaxIdleConnsPerHost, Value::Count(per_host)),
        ])
    };
    let node = |name: &str, drains| {
        let process = Some(Process { drains, ..Process::default() });
        NodeState { process, ..NodeState::new(name, Ok(BTreeMap::new())) }
    };
    let three = [node("p0", false), node("t0", true), node("t1", true), node("t2", true)];
    let most = |limits: &LimitValues, nodes: &[NodeState]| {
        let most = most_pooled(limits, &nodes.iter().collect::<Vec<_>>())?;
        Some(most.into_values().collect::<Vec<_>>())
    };
    // A target opens 300 over each of two transports, two goroutines each. It accepts as many, one each, and 100 that
    // the proxy passes on.
    let (proxy, target) = (3.0 * 2.0 * 300.0 + 2.0 * 300.0, 2.0 * 2.0 * 300.0 + 2.0 * 300.0 + 100.0);
    assert_eq!(most(&limits(2000, 100), &three), Some(vec![proxy, target, target, target]));
    assert!((target - 1900.0).abs() < 1e-9);
    let opened_50 = [3.0 * 2.0 * 50.0 + 600.0, 2.0 * 2.0 * 50.0 + 700.0];
    assert_eq!(
        most(&limits(50, 100), &three[..4]).map(|all| [all[0], all[1]]),
        Some(opened_50),
        "what others open is theirs to bound"
    );
    assert_eq!(most(&limits(0, 100), &three), most(&limits(2000, 100), &three), "no total bounds nothing more");
    let unknown = NodeState::new("p9", Ok(BTreeMap::new()));
    let pair = [unknown, node("t0", true)];
    assert_eq!(most(&limits(2000, 100), &pair), Some(vec![500.0 + 300.0, 700.0]), "a node that does not say may be a proxy");
    assert_eq!(most(&limits(2000, 100), &three[..1]), Some(vec![0.0]), "alone there is no other to talk to");
    assert_eq!(most(&limits(2000, 0), &three), None, "0 selects the server's default");
    assert_eq!(most(&LimitValues::new(), &three), None);
    let mut backend = limits(2000, 100);
    backend.insert(Limit::BackendIdleConnTimeout, Value::Duration(Duration::from_secs(9)));
    assert_eq!(most(&backend, &three), None, "nothing bounds the pools towards backends");
}

#[test]
fn a_server_that_wants_https_says_so_in_plain_text() {
    assert!(wire::wants_https(b"Client sent an HTTP request to an HTTPS server.\n"));
    assert!(!wire::wants_https(br#"{"message":"invalid request URI"}"#));
}
