use serde_json::json;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn proxy(transport: &Json) -> Json {
    let mut handler = json!({"handler": "reverse_proxy", "upstreams": [{"dial": "10.0.0.1:80"}]});
    if !transport.is_null() {
        handler["transport"] = transport.clone();
    }
    handler
}

fn servers(handlers: &[Json]) -> Json {
    json!({"web": {"listen": [":80"], "routes": [{"handle": [{"handler": "subroute", "routes": [{"handle": handlers}]}]}]}})
}

fn change(servers: &Json, limit: Limit, to: &NewValue) -> Json {
    let changes: Vec<_> =
        sites(servers).into_keys().filter(|site| site.limit == limit).map(|site| Change { site, to: to.clone() }).collect();
    serde_json::from_str(&apply(&servers.to_string(), &changes).expect("few enough")).expect("JSON")
}

fn sites(servers: &Json) -> BTreeMap<ConfigPath, Stored> {
    see(&servers.to_string()).expect("few enough").sites
}

fn places(servers: &Json, limit: Limit) -> Vec<String> {
    sites(servers).into_keys().filter(|site| site.limit == limit).map(|site| site.place).collect()
}

/// A place without the hash of its matchers.
fn readable(place: &str) -> String {
    match (place.find('['), place.find(']')) {
        (Some(start), Some(end)) => format!("{}{}", &place[..start], &place[end + 1..]),
        _ => place.to_owned(),
    }
}

#[test]
fn proxies_are_found_wherever_they_are_nested_and_only_http_ones() {
    let found = |handlers: &[Json]| {
        places(&servers(handlers), Limit::BackendMaxIdleConns).iter().map(|place| readable(place)).collect::<Vec<_>>()
    };
    assert_eq!(found(&[proxy(&Json::Null)]), ["web/10.0.0.1:80"]);
    assert_eq!(
        found(&[proxy(&json!({"protocol": "http"})), proxy(&Json::Null)]),
        ["web/10.0.0.1:80#1of2", "web/10.0.0.1:80#2of2"]
    );
    assert_eq!(found(&[proxy(&json!({"protocol": "fastcgi"}))]), Vec::<String>::new());
    let mut named = proxy(&Json::Null);
    named["@id"] = "api".into();
    named["handle_response"] = json!([{"routes": [{"handle": [proxy(&Json::Null)]}]}]);
    assert_eq!(found(&[named]), ["web/10.0.0.1:80", "web/@api"]);
    assert_eq!(found(&[json!({"handler": "static_response", "body": "reverse_proxy"})]), Vec::<String>::new());
}

#[test]
fn what_is_unset_is_created_and_removed_again_without_a_trace() {
    for (transport, limit) in [
        (Json::Null, Limit::BackendIdleConnTimeout),
        (Json::Null, Limit::BackendMaxConnsPerHost),
        (json!({"protocol": "http", "dial_timeout": "3s"}), Limit::BackendMaxIdleConns),
        (json!({"protocol": "http", "tls": {}}), Limit::BackendTlsHandshakeTimeout),
        (json!({"protocol": "http", "keep_alive": {"enabled": true}}), Limit::BackendTcpKeepAlive),
    ] {
        let before = servers(&[proxy(&transport)]);
        let value = if matches!(limit, Limit::BackendMaxConnsPerHost | Limit::BackendMaxIdleConns) {
            Value::Count(7)
        } else {
            Value::Duration(SECOND)
        };
        let set = change(&before, limit, &NewValue::Value(value));
        assert_eq!(stored(&sites(&set))[&limit], Some(value), "{limit}");
        assert_eq!(change(&set, limit, &NewValue::Raw(None)), before, "{limit}");
    }
}

#[test]
fn tls_is_never_turned_on() {
    let plain = servers(&[proxy(&json!({"protocol": "http"}))]);
    assert!(places(&plain, Limit::BackendTlsHandshakeTimeout).is_empty());
}

#[test]
fn a_pool_that_is_off_has_no_place_for_limits_and_stays_off() {
    let off = servers(&[proxy(&json!({"protocol": "http", "keep_alive": {"enabled": false}}))]);
    assert!(places(&off, Limit::BackendIdleConnTimeout).is_empty());
    assert_eq!(places(&off, Limit::BackendMaxConnsPerHost).len(), 1);
}

#[test]
fn values_are_compared_as_time_in_whatever_way_they_are_written() {
    for raw in [json!("30s"), json!("0.5m"), json!(30_000_000_000u64), json!("30000ms")] {
        let mut config = servers(&[]);
        config["web"]["idle_timeout"] = raw.clone();
        assert_eq!(stored(&sites(&config))[&Limit::ServerIdleTimeout], Some(Value::Duration(30 * SECOND)), "{raw}");
    }
    for raw in [json!("never"), json!(-1), json!(true), json!({"a": 1})] {
        let mut config = servers(&[]);
        config["web"]["idle_timeout"] = raw.clone();
        assert_eq!(stored(&sites(&config))[&Limit::ServerIdleTimeout], None, "{raw}");
    }
}

#[test]
fn places_that_differ_have_no_common_value() {
    let mut config = servers(&[]);
    config["web"]["idle_timeout"] = "30s".into();
    config["api"] = json!({"idle_timeout": "40s"});
    assert_eq!(stored(&sites(&config))[&Limit::ServerIdleTimeout], None);
}

#[test]
fn a_proxy_without_a_delay_ends_its_streams() {
    let with = |delay: Json| {
        let mut handler = proxy(&Json::Null);
        if !delay.is_null() {
            handler["stream_close_delay"] = delay;
        }
        see(&servers(&[handler]).to_string()).expect("few enough").cuts_streams
    };
    assert_eq!([with(Json::Null), with(json!("5m"))], [true, false]);
    assert!(!see(&servers(&[]).to_string()).expect("few enough").cuts_streams);
}

#[test]
fn a_place_survives_routes_that_come_before_it() {
    let before = servers(&[proxy(&Json::Null)]);
    let mut after = before.clone();
    after["web"]["routes"].as_array_mut().expect("routes").insert(0, json!({"handle": [{"handler": "headers"}]}));
    assert_eq!(places(&before, Limit::BackendMaxIdleConns), places(&after, Limit::BackendMaxIdleConns));
}

#[test]
fn the_way_to_a_proxy_is_part_of_its_name_and_blanks_and_other_routes_are_not() {
    let with = |routes: Json| json!({"web": {"routes": routes}});
    let route = |host: &str| json!({"match": [{"host": [host]}], "handle": [proxy(&Json::Null)]});
    let name = |servers: &Json| places(servers, Limit::BackendMaxIdleConns);
    let (a, b) = (name(&with(json!([route("a.example")]))), name(&with(json!([route("b.example")]))));
    assert_ne!(a, b);
    assert_eq!(name(&with(json!([{"handle": []}, route("a.example")]))), a);
    let nested = with(
        json!([{"match": [{"host": ["a.example"]}], "handle": [{"handler": "subroute", "routes": [{"handle": [proxy(&Json::Null)]}]}]}]),
    );
    assert_ne!(name(&nested), a);
    let blanks = serde_json::to_string_pretty(&with(json!([route("a.example")]))).expect("JSON");
    let seen = see(&blanks).expect("few enough");
    assert!(seen.sites.keys().any(|site| site.place == a[0]));
    assert!(seen.former.is_empty());
    let former = see(&with(json!([route("a.example"), route("b.example")])).to_string()).expect("few enough").former;
    assert_eq!(former, [("web/10.0.0.1:80".to_owned(), a[0].clone()), ("web/10.0.0.1:80#1".to_owned(), b[0].clone())].into());
}

#[test]
fn what_is_no_configuration_has_no_places() {
    for config in [Json::Null, json!([]), json!("x"), json!({"web": null}), json!({"web": [1, 2]})] {
        assert!(sites(&config).is_empty(), "{config}");
        assert_eq!(apply(&config.to_string(), &[]), Ok(config.to_string()));
    }
}

#[test]
fn what_no_change_is_about_stays_byte_for_byte() {
    let before = r#"{ "web" : {"routes":[{"handle":[{"handler":"reverse_proxy" , "upstreams":[{"dial":"a:1"}], "weight":1.0e3}]}], "x":18446744073709551616, "idle_timeout" : "5m" } }"#;
    let proxy = see(before).expect("few enough").sites.into_keys().find(|site| site.limit == Limit::BackendMaxIdleConns);
    let proxy = proxy.expect("a proxy").place;
    let change = |limit, place: &str, to| Change { site: ConfigPath { limit, place: place.into() }, to };
    let after = apply(
        before,
        &[
            change(Limit::ServerIdleTimeout, "web", NewValue::Value(Value::Duration(30 * SECOND))),
            change(Limit::BackendMaxIdleConns, &proxy, NewValue::Value(Value::Count(7))),
            change(Limit::BackendMaxConnsPerHost, &proxy, NewValue::Value(Value::Count(9))),
        ],
    );
    let expected = r#"{ "web" : {"routes":[{"handle":[{"handler":"reverse_proxy" , "upstreams":[{"dial":"a:1"}], "weight":1.0e3,"transport":{"protocol":"http","keep_alive":{"max_idle_conns":7},"max_conns_per_host":9}}]}], "x":18446744073709551616, "idle_timeout" : "30s" } }"#;
    assert_eq!(after.as_deref(), Ok(expected));
    let back = apply(
        expected,
        &[
            change(Limit::ServerIdleTimeout, "web", NewValue::Raw(Some("5m".into()))),
            change(Limit::BackendMaxIdleConns, &proxy, NewValue::Raw(None)),
            change(Limit::BackendMaxConnsPerHost, &proxy, NewValue::Raw(None)),
        ],
    );
    assert_eq!(back.as_deref(), Ok(before));
}

#[test]
fn a_proxy_within_a_proxy_is_changed_with_it() {
    let mut outer = proxy(&Json::Null);
    outer["handle_response"] = json!([{"routes": [{"handle": [proxy(&json!({"protocol": "http", "max_conns_per_host": 3}))]}]}]);
    let before = servers(&[outer, proxy(&Json::Null)]);
    let after = change(&before, Limit::BackendMaxConnsPerHost, &NewValue::Value(Value::Count(7)));
    let held: Vec<_> = sites(&after).into_iter().filter(|(site, _)| site.limit == Limit::BackendMaxConnsPerHost).collect();
    assert_eq!(held.len(), 3);
    assert!(held.iter().all(|(_, stored)| stored.value == Some(Value::Count(7))));
}

#[test]
fn a_configuration_beyond_all_measure_is_refused() {
    let one = r#"{"handler":"reverse_proxy"}"#;
    let many = |n: usize| format!(r#"{{"web":{{"routes":[{}]}}}}"#, vec![one; n].join(","));
    assert!(see(&many(MAX_PROXIES)).is_ok());
    assert_eq!(see(&many(MAX_PROXIES + 1)), Err(TooMuch));
    let servers = |n: usize| format!("{{{}}}", (0..n).map(|n| format!("\"s{n}\":{{}}")).collect::<Vec<_>>().join(","));
    assert!(see(&servers(MAX_SERVERS)).is_ok());
    assert_eq!(see(&servers(MAX_SERVERS + 1)), Err(TooMuch));
    assert_eq!(see(&format!(r#"{{"web":{{"idle_timeout":"{}"}}}}"#, "x".repeat(300))), Err(TooMuch));
    let long = format!(r#"{{"web":{{"a":{{"handler":"reverse_proxy","@id":"{}"}}}}}}"#, "é".repeat(500));
    assert!(see(&long).is_ok_and(|seen| seen.sites.keys().all(|site| site.place.len() < 256)));
}

#[test]
fn the_first_tcp_port_of_a_server_is_where_it_serves() {
    let of = |server: &str| see(&format!(r#"{{"web":{server}}}"#)).map(|seen| seen.listens);
    for (listen, more, found) in [
        (r#"[":8080"]"#, "", Some((8080, false))),
        (r#"[":443"]"#, "", Some((443, true))),
        (r#"["unix//run/web", "udp/:53", "tcp4/10.0.0.1:8443-8450"]"#, r#","tls_connection_policies":[{}]"#, Some((8443, true))),
        (r#"["[::]:9090"]"#, r#","tls_connection_policies":null"#, Some((9090, false))),
        (r#"[":0", 7, "web", ":x"]"#, "", None),
        (r#"{"a": ":8080"}"#, "", None),
    ] {
        assert_eq!(of(&format!(r#"{{"listen":{listen}{more}}}"#)), Ok(found), "{listen}");
    }
    let long = format!("[{}\":8080\"]", "0,".repeat(4096));
    assert_eq!(of(&format!(r#"{{"listen":{long}}}"#)), Ok(None), "what is longer than any real list is not looked into");
    assert_eq!(see(r#"{"a":{},"b":{"listen":[":81"]}}"#).map(|seen| seen.listens), Ok(Some((81, false))));
}

#[test]
fn eight_mebibytes_made_to_take_long_take_little() {
    const SIZE: usize = 8 * 1024 * 1024;
    let filled = |piece: &str| piece.repeat(SIZE / piece.len());
    let nested = r#"{"handler":"reverse_proxy","transport":"#;
    let deep = format!("{}{{\"x\":\"{}\"}}{}", nested.repeat(60), filled("y"), "}".repeat(60));
    for within in [
        format!("[{}{{}}]", filled(r#"{"":0},"#)),
        format!("[{}0]", filled("0,")),
        format!("\"{}\"", filled("\\u0041")),
        format!("{{{}\"z\":0}}", filled("\"a\":0,")),
        deep,
    ] {
        let text = format!(r#"{{"web":{{"x":{within}}}}}"#);
        let begun = std::time::Instant::now();
        let _ = see(&text);
        assert!(begun.elapsed() < 10 * SECOND, "{:?} for {}…", begun.elapsed(), &text[..40]);
    }
}
