//! Caddy's JSON: where limits are in it, reading and writing them. Pure.
//!
//! A place is `SERVER` for a server's own settings and `SERVER/HANDLER` for a reverse proxy's, where HANDLER is its `@id`,
//! or else its upstreams and a number among those with the same; so that a place survives routes being added before it.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use serde_json::{Map, Value as Json};

use crate::{
    api::{GoDuration, Knob, Value},
    decide::{Change, Site, Stored, To},
    targets::go_duration,
};

const SERVER_KNOBS: [Knob; 2] = [Knob::ServerIdleTimeout, Knob::ServerReadHeaderTimeout];
const PROXY_KNOBS: [Knob; 8] = [
    Knob::BackendIdleConnTimeout,
    Knob::BackendMaxIdleConns,
    Knob::BackendMaxIdleConnsPerHost,
    Knob::BackendMaxConnsPerHost,
    Knob::BackendTcpKeepAlive,
    Knob::BackendTlsHandshakeTimeout,
    Knob::BackendExpectContinueTimeout,
    Knob::BackendResponseHeaderTimeout,
];

/// The way to a knob from a server or from a `reverse_proxy` handler.
const fn way(knob: Knob) -> &'static [&'static str] {
    match knob {
        Knob::ServerIdleTimeout => &["idle_timeout"],
        Knob::ServerReadHeaderTimeout => &["read_header_timeout"],
        Knob::BackendIdleConnTimeout => &["transport", "keep_alive", "idle_timeout"],
        Knob::BackendMaxIdleConns => &["transport", "keep_alive", "max_idle_conns"],
        Knob::BackendMaxIdleConnsPerHost => &["transport", "keep_alive", "max_idle_conns_per_host"],
        Knob::BackendTcpKeepAlive => &["transport", "keep_alive", "probe_interval"],
        Knob::BackendMaxConnsPerHost => &["transport", "max_conns_per_host"],
        Knob::BackendTlsHandshakeTimeout => &["transport", "tls", "handshake_timeout"],
        Knob::BackendExpectContinueTimeout => &["transport", "expect_continue_timeout"],
        Knob::BackendResponseHeaderTimeout => &["transport", "response_header_timeout"],
        Knob::ServerMaxRequestsPerConn
        | Knob::IntraClusterIdleConnTimeout
        | Knob::IntraClusterMaxIdleConns
        | Knob::IntraClusterMaxIdleConnsPerHost
        | Knob::BackendMaxConnLifetime
        | Knob::BackendRequestTimeout => &[],
    }
}

/// Every place that holds a limit or could.
pub fn sites(servers: &Json) -> BTreeMap<Site, Stored> {
    let mut sites = BTreeMap::new();
    let mut copy = servers.clone();
    visit(&mut copy, &mut |place, knobs, object| {
        for &knob in knobs {
            if has_place(object, knob) {
                let raw = way(knob).iter().try_fold(&*object, |at, key| at.get(key)).filter(|raw| !raw.is_null()).cloned();
                let value = raw.as_ref().and_then(|raw| parse(knob, raw));
                sites.insert(Site { knob, place: place.to_owned() }, Stored { value, raw });
            }
        }
    });
    sites
}

/// One word for each limit: the value where all its places agree.
pub fn stored(sites: &BTreeMap<Site, Stored>) -> BTreeMap<Knob, Option<Value>> {
    let mut all: BTreeMap<Knob, Option<Value>> = BTreeMap::new();
    for (site, stored) in sites {
        all.entry(site.knob).and_modify(|seen| *seen = seen.filter(|seen| Some(*seen) == stored.value)).or_insert(stored.value);
    }
    all
}

/// Makes the changes; those whose place is gone are passed over.
pub fn apply(servers: &mut Json, changes: &[Change]) {
    visit(servers, &mut |place, _, object| {
        for change in changes.iter().filter(|change| change.site.place == place) {
            if !has_place(object, change.site.knob) {
                continue;
            }
            match &change.to {
                To::Value(value) => set(object, way(change.site.knob), write(*value)),
                To::Raw(Some(raw)) => set(object, way(change.site.knob), raw.clone()),
                To::Raw(None) => unset(object, way(change.site.knob)),
            }
        }
    });
}

/// Whether a setting can be at this server or handler without changing what else it does.
fn has_place(object: &Json, knob: Knob) -> bool {
    let keep_alive_off = object.pointer("/transport/keep_alive/enabled") == Some(&Json::Bool(false));
    match way(knob) {
        // Without a `tls` object there is no handshake to time, and creating one would turn TLS on.
        ["transport", "tls", ..] => object.pointer("/transport/tls").is_some_and(Json::is_object),
        ["transport", "keep_alive", ..] => !keep_alive_off,
        [] => false,
        _ => true,
    }
}

/// Calls `at` for each server and each HTTP reverse proxy, wherever nested.
fn visit(servers: &mut Json, at: &mut impl FnMut(&str, &[Knob], &mut Json)) {
    let Some(servers) = servers.as_object_mut() else { return };
    for (name, server) in servers.iter_mut() {
        if !server.is_object() {
            continue;
        }
        at(name, &SERVER_KNOBS, server);
        let mut seen = HashMap::new();
        proxies(server, &mut |proxy| {
            let handler = handler_name(proxy);
            let nth: &mut usize = seen.entry(handler.clone()).or_default();
            let place = if *nth == 0 { format!("{name}/{handler}") } else { format!("{name}/{handler}#{nth}") };
            *nth += 1;
            at(&place, &PROXY_KNOBS, proxy);
        });
    }
}

fn proxies(json: &mut Json, at: &mut impl FnMut(&mut Json)) {
    match json {
        Json::Object(map) => {
            let proxy = map.get("handler").and_then(Json::as_str) == Some("reverse_proxy");
            // No transport at all is HTTP; fastcgi and others have no pool of this kind.
            let http = map.get("transport").is_none_or(|t| t.is_null() || t["protocol"] == "http" || t["protocol"].is_null());
            if proxy && http {
                at(json);
            }
            if let Json::Object(map) = json {
                map.values_mut().for_each(|value| proxies(value, at));
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| proxies(item, at)),
        _ => {}
    }
}

fn handler_name(proxy: &Json) -> String {
    if let Some(id) = proxy["@id"].as_str() {
        return format!("@{id}");
    }
    let dials: Vec<_> = proxy["upstreams"].as_array().into_iter().flatten().filter_map(|u| u["dial"].as_str()).collect();
    if dials.is_empty() { "dynamic".into() } else { dials.join(",") }
}

fn set(object: &mut Json, way: &[&str], value: Json) {
    let Some((last, parents)) = way.split_last() else { return };
    let mut at = object;
    for key in parents {
        let Some(map) = at.as_object_mut() else { return };
        let child = map.entry(*key).or_insert(Json::Null);
        if !child.is_object() {
            // A transport is a module and has to name itself.
            let fresh = if *key == "transport" { Map::from_iter([("protocol".into(), "http".into())]) } else { Map::new() };
            *child = Json::Object(fresh);
        }
        at = child;
    }
    if let Some(map) = at.as_object_mut() {
        map.insert((*last).into(), value);
    }
}

/// Removes a setting, and the objects that would be left with nothing to say.
fn unset(object: &mut Json, way: &[&str]) {
    let Some((first, rest)) = way.split_first() else { return };
    let Some(map) = object.as_object_mut() else { return };
    if rest.is_empty() {
        map.remove(*first);
        return;
    }
    let Some(child) = map.get_mut(*first) else { return };
    unset(child, rest);
    let idle = match child.as_object() {
        Some(child) if *first == "transport" => {
            child.keys().all(|key| key == "protocol") && child.get("protocol") == Some(&Json::from("http"))
        }
        Some(child) => *first != "tls" && child.is_empty(),
        None => false,
    };
    if idle {
        map.remove(*first);
    }
}

fn write(value: Value) -> Json {
    match value {
        Value::Duration(duration) => GoDuration::from(duration).to_string().into(),
        Value::Count(count) => count.into(),
    }
}

fn parse(knob: Knob, raw: &Json) -> Option<Value> {
    let counted = matches!(knob, Knob::BackendMaxIdleConns | Knob::BackendMaxIdleConnsPerHost | Knob::BackendMaxConnsPerHost);
    if counted {
        return raw.as_u64().and_then(|n| u32::try_from(n).ok()).map(Value::Count);
    }
    match raw {
        Json::Number(n) => n.as_u64().map(|ns| Value::Duration(Duration::from_nanos(ns))),
        Json::String(text) => go_duration::parse(text).map(Value::Duration),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
