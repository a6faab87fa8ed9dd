//! Limits in Caddy's JSON: finding, reading and writing them. Pure.
//!
//! A place is `SERVER` for the settings of a server. For a reverse proxy it is `SERVER/@ID`, or
//! `SERVER/UPSTREAMS[HASH]` if the proxy has no `@id`. The hash covers the matchers of its routes and the members that
//! lead to it, so the place survives changes of other routes. Proxies that are equal in all of this are
//! `SERVER/UPSTREAMS[HASH]#1of2` and so on.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    time::Duration,
};

use serde_json::Value as Json;

use super::text;
use crate::{
    api::{Limit, Value},
    decide::{Change, ConfigPath, NewValue, Stored, hash::fnv1a, report::condition::shortened_to_bytes},
    targets::go_duration,
};

/// Caddy's limits and their paths: from a server, or from a `reverse_proxy` handler.
pub const LIMITS: [(Limit, &[&str]); 10] = [
    (Limit::ServerIdleTimeout, &["idle_timeout"]),
    (Limit::ServerReadHeaderTimeout, &["read_header_timeout"]),
    (Limit::BackendIdleConnTimeout, &["transport", "keep_alive", "idle_timeout"]),
    (Limit::BackendMaxIdleConns, &["transport", "keep_alive", "max_idle_conns"]),
    (Limit::BackendMaxIdleConnsPerHost, &["transport", "keep_alive", "max_idle_conns_per_host"]),
    (Limit::BackendMaxConnsPerHost, &["transport", "max_conns_per_host"]),
    (Limit::BackendTcpKeepAlive, &["transport", "keep_alive", "probe_interval"]),
    (Limit::BackendTlsHandshakeTimeout, &["transport", "tls", "handshake_timeout"]),
    (Limit::BackendExpectContinueTimeout, &["transport", "expect_continue_timeout"]),
    (Limit::BackendResponseHeaderTimeout, &["transport", "response_header_timeout"]),
];

/// The path of a limit; empty if Caddy does not have it.
fn way(key: Limit) -> &'static [&'static str] {
    LIMITS.iter().find(|(limit, _)| *limit == key).map_or(&[], |(_, way)| *way)
}

/// Most reverse proxies and most servers of one configuration.
const MAX_PROXIES: usize = 2000;
const MAX_SERVERS: usize = 500;
/// Most bytes of a value that can be a limit, and of a name that is kept unchanged.
const MAX_TEXT: usize = 256;
/// Most bytes of all names and values that are kept.
const MAX_KEPT: usize = 1024 * 1024;
/// Most bytes of a list of listeners that is parsed.
const MAX_LISTEN: usize = 4096;
/// How often the bytes of a configuration may be read: nested proxies are read again for each outer proxy.
const MAX_ROUNDS: usize = 64;

/// The configuration is larger than the operator supports.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "exceeds the supported size: at most {MAX_SERVERS} servers and {MAX_PROXIES} reverse proxies, with values of at most {MAX_TEXT} bytes"
)]
pub struct TooMuch;

/// A server, or an HTTP reverse proxy.
struct Object {
    /// The place of the object.
    place: String,
    /// The place in the format without matchers, if other proxies have the same upstreams.
    former: Option<String>,
    /// Whether it is a reverse proxy; otherwise it is a server.
    is_proxy: bool,
    span: Range<usize>,
}

/// Facts about a configuration.
#[derive(Debug, Default, PartialEq)]
pub struct ConfigFacts {
    /// All sites that have a limit or could have one.
    pub sites: BTreeMap<ConfigPath, Stored>,
    /// New places by the places of earlier operator versions, if the new place does not contain the earlier one.
    pub former: BTreeMap<String, String>,
    /// Whether a reverse proxy has no `stream_close_delay`.
    pub cuts_streams: bool,
    /// First TCP port on which a server listens, and whether with TLS.
    pub listens: Option<(u16, bool)>,
}

/// Reads a configuration. `servers` must be valid JSON.
pub fn see(servers: &str) -> Result<ConfigFacts, TooMuch> {
    let mut seen = ConfigFacts::default();
    let mut kept = 0;
    for object in objects(servers)? {
        if let Some(name) = object.former {
            kept += name.len() + object.place.len();
            seen.former.insert(name, object.place.clone());
        }
        if !object.is_proxy && seen.listens.is_none() {
            seen.listens = listens(servers, object.span.start);
        }
        seen.cuts_streams |= object.is_proxy && text::at(servers, object.span.start, &["stream_close_delay"]).is_none();
        for (key, way) in LIMITS.into_iter().filter(|(key, _)| key.is_client() == object.is_proxy) {
            if !has_place(servers, object.span.start, key) {
                continue;
            }
            let raw = text::at(servers, object.span.start, way).map(|span| &servers[span]).filter(|raw| *raw != "null");
            if raw.is_some_and(|raw| raw.len() > MAX_TEXT) {
                return Err(TooMuch);
            }
            kept += object.place.len() + raw.map_or(0, str::len);
            if kept > MAX_KEPT {
                return Err(TooMuch);
            }
            let raw: Option<Json> = raw.and_then(|raw| serde_json::from_str(raw).ok());
            let value = raw.as_ref().and_then(|raw| parse(key, raw));
            seen.sites.insert(ConfigPath { limit: key, place: object.place.clone() }, Stored { value, raw });
        }
    }
    Ok(seen)
}

/// The first TCP port of a server, and whether it uses TLS: on port 443, or with connection policies.
fn listens(servers: &str, server: usize) -> Option<(u16, bool)> {
    let list = text::at(servers, server, &["listen"]).filter(|list| list.len() <= MAX_LISTEN)?;
    let port = text::elements(servers, list.start).into_iter().find_map(|span| tcp_port(&text::unescaped(&servers[span])))?;
    let policies = text::at(servers, server, &["tls_connection_policies"]);
    Some((port, port == 443 || policies.is_some_and(|span| servers[span].starts_with('['))))
}

/// The port of `:443` or `tcp/host:8080`; for a range, the first port.
fn tcp_port(listen: &str) -> Option<u16> {
    let address = match listen.split_once('/') {
        Some((network, address)) if network.starts_with("tcp") => address,
        Some(_) => return None,
        None => listen,
    };
    let port = address.rsplit_once(':')?.1.split('-').next()?;
    port.parse().ok().filter(|port| *port > 0)
}

/// The value of each limit if all its places agree, otherwise `None`.
#[must_use]
pub fn stored(sites: &BTreeMap<ConfigPath, Stored>) -> BTreeMap<Limit, Option<Value>> {
    let mut all: BTreeMap<Limit, Option<Value>> = BTreeMap::new();
    for (site, stored) in sites {
        all.entry(site.limit).and_modify(|seen| *seen = seen.filter(|seen| Some(*seen) == stored.value)).or_insert(stored.value);
    }
    all
}

/// Applies the changes and skips those without a place. All other bytes stay unchanged.
pub fn apply(servers: &str, changes: &[Change]) -> Result<String, TooMuch> {
    let mut by_place: HashMap<&str, Vec<&Change>> = HashMap::new();
    for change in changes {
        by_place.entry(&change.site.place).or_default().push(change);
    }
    let mut objects: Vec<_> = objects(servers)?.into_iter().filter(|object| by_place.contains_key(&*object.place)).collect();
    // An object comes before the objects within it.
    objects.sort_by_key(|object| object.span.start);
    let mut rest = &objects[..];
    let mut after = String::with_capacity(servers.len() + 4096);
    changed(servers, 0..servers.len(), &mut rest, &by_place, &mut after);
    Ok(after)
}

/// Copies a part of the text, with the changes in the objects that begin within it.
fn changed(
    servers: &str,
    span: Range<usize>,
    objects: &mut &[Object],
    by_place: &HashMap<&str, Vec<&Change>>,
    after: &mut String,
) {
    let mut at = span.start;
    while let Some((object, rest)) = objects.split_first().filter(|(object, _)| object.span.start < span.end) {
        *objects = rest;
        after.push_str(&servers[at..object.span.start]);
        let mut text = String::new();
        changed(servers, object.span.clone(), objects, by_place, &mut text);
        for change in by_place.get(&*object.place).into_iter().flatten() {
            text = with(text, change);
        }
        after.push_str(&text);
        at = object.span.end;
    }
    after.push_str(&servers[at..span.end]);
}

fn with(object: String, change: &Change) -> String {
    let key = change.site.limit;
    if !has_place(&object, 0, key) {
        return object;
    }
    let new = match &change.to {
        NewValue::Value(value) => value.json(),
        NewValue::Raw(Some(raw)) => raw.clone(),
        NewValue::Raw(None) => return text::unset(&object, way(key), &is_idle),
    };
    let now = text::at(&object, 0, way(key)).and_then(|span| serde_json::from_str::<Json>(&object[span]).ok());
    if now.as_ref() == Some(&new) { object } else { text::set(&object, way(key), &new.to_string(), &fresh) }
}

/// A transport is a Caddy module and must have its name.
fn fresh(key: &str) -> &'static str {
    if key == "transport" { r#"{"protocol":"http"}"# } else { "{}" }
}

/// Whether an object has no effect any more. A `tls` object turns TLS on even if it is empty.
fn is_idle(key: &str, object: &str) -> bool {
    let members = text::members(object, 0);
    if key == "transport" {
        members.iter().all(|member| member.key == "protocol" && &object[member.value.clone()] == "\"http\"")
            && members.iter().any(|member| member.key == "protocol")
    } else {
        key != "tls" && members.is_empty()
    }
}

/// Whether a limit can be set at this server or handler without another effect.
fn has_place(text: &str, object: usize, key: Limit) -> bool {
    let at = |way: &[&str]| text::at(text, object, way).map(|span| &text[span]);
    match way(key) {
        // Without a `tls` object there is no handshake to limit, and creating one would turn TLS on.
        ["transport", "tls", ..] => at(&["transport", "tls"]).is_some_and(|tls| tls.starts_with('{')),
        ["transport", "keep_alive", ..] => at(&["transport", "keep_alive", "enabled"]) != Some("false"),
        [] => false,
        _ => true,
    }
}

/// Each server and each HTTP reverse proxy at any depth, by server and then by the names of the members that lead to
/// it.
fn objects(servers: &str) -> Result<Vec<Object>, TooMuch> {
    let start = text::blanks(servers, 0);
    // The last of several members with one name counts.
    let by_name: BTreeMap<_, _> = text::members(servers, start).into_iter().map(|member| (member.key, member.value)).collect();
    let mut walk = Walk { text: servers, proxies: 0, again: 0 };
    let mut objects = Vec::new();
    for (n, (name, span)) in by_name.into_iter().filter(|(_, span)| servers[span.clone()].starts_with('{')).enumerate() {
        if n >= MAX_SERVERS {
            return Err(TooMuch);
        }
        let name = bounded(&name);
        objects.push(Object { place: name.clone(), former: None, is_proxy: false, span: span.clone() });
        let proxies = walk.value(span.start)?.1;
        let families: Vec<_> =
            proxies.iter().map(|proxy| format!("{name}/{}", handler_name(servers, proxy.span.start))).collect();
        let (mut same, mut alike) = (Numbers::default(), Numbers::default());
        let named: Vec<_> = families
            .iter()
            .zip(&proxies)
            .map(|(family, proxy)| {
                let has_id = family[name.len()..].starts_with("/@");
                let key = if has_id { family.clone() } else { format!("{family}[{:016x}]", proxy.way) };
                (same.number(family), alike.number(&key), key)
            })
            .collect();
        for (((nth, copy, key), family), proxy) in named.into_iter().zip(&families).zip(proxies) {
            let place = match alike.of[&key] {
                1 => key,
                all => format!("{key}#{}of{all}", copy + 1),
            };
            let former = (same.of[family] > 1).then(|| if nth == 0 { family.clone() } else { format!("{family}#{nth}") });
            objects.push(Object { place, former, is_proxy: true, span: proxy.span });
        }
    }
    Ok(objects)
}

/// Counts how often each name occurs.
#[derive(Default)]
struct Numbers {
    of: HashMap<String, usize>,
}

impl Numbers {
    /// How often the name occurred before.
    fn number(&mut self, name: &str) -> usize {
        let of = self.of.entry(name.to_owned()).or_default();
        *of += 1;
        *of - 1
    }
}

/// A reverse proxy in the text.
struct Proxy {
    span: Range<usize>,
    /// A hash of the matchers above it, and of the members that lead to it.
    way: u64,
}

/// Reads a text once and finds its reverse proxies.
struct Walk<'t> {
    text: &'t str,
    proxies: usize,
    /// Bytes of proxies, which are read again.
    again: usize,
}

impl Walk<'_> {
    /// The end of the value at this position, and the proxies in it.
    fn value(&mut self, at: usize) -> Result<(usize, Vec<Proxy>), TooMuch> {
        match self.text.as_bytes().get(at) {
            Some(b'{') => self.object(at),
            Some(b'[') => self.array(at),
            _ => Ok((text::value_end(self.text, at), Vec::new())),
        }
    }

    fn array(&mut self, start: usize) -> Result<(usize, Vec<Proxy>), TooMuch> {
        let mut found = Vec::new();
        let mut at = text::blanks(self.text, start + 1);
        while self.text.as_bytes().get(at).is_some_and(|byte| *byte != b']') {
            let (end, within) = self.value(at)?;
            found.extend(within);
            at = text::next(self.text, end);
        }
        Ok((at + 1, found))
    }

    fn object(&mut self, start: usize) -> Result<(usize, Vec<Proxy>), TooMuch> {
        let mut within: BTreeMap<_, Vec<Proxy>> = BTreeMap::new();
        let (mut is_proxy, mut is_http) = (false, true);
        let mut matchers = None;
        let mut at = text::blanks(self.text, start + 1);
        while self.text.as_bytes().get(at) == Some(&b'"') {
            let key_end = text::string_end(self.text, at);
            let value = text::blanks(self.text, text::blanks(self.text, key_end) + 1);
            let (end, found) = self.value(value)?;
            let key = text::unescaped(&self.text[at..key_end]);
            match &*key {
                "match" => {
                    self.again += end - value;
                    matchers = Some(value..end);
                }
                "handler" => is_proxy = text::unescaped(&self.text[value..end]) == "reverse_proxy",
                "transport" => {
                    self.again += end - value;
                    // A missing transport is HTTP; fastcgi and others have no such pool.
                    let protocol = text::at(self.text, value, &["protocol"]).map(|span| &self.text[span]);
                    is_http = protocol.is_none_or(|protocol| protocol == "null" || text::unescaped(protocol) == "http");
                }
                _ => {}
            }
            if found.is_empty() {
                within.remove(&key);
            } else {
                within.insert(key, found);
            }
            at = text::next(self.text, end);
        }
        let end = at + 1;
        let matchers = matchers.map_or(0, |span| fnv1a(&text::compact(&self.text[span])));
        let way = |key: &str, way: u64| fnv1a(&format!("{key} {matchers:x} {way:x}"));
        let led = |(key, found): (std::borrow::Cow<'_, str>, Vec<Proxy>)| {
            let way = |proxy: Proxy| Proxy { way: way(&key, proxy.way), ..proxy };
            found.into_iter().map(way).collect::<Vec<_>>()
        };
        let mut found: Vec<_> = within.into_iter().flat_map(led).collect();
        if is_proxy && is_http {
            self.proxies += 1;
            self.again += end - start;
            if self.proxies > MAX_PROXIES {
                return Err(TooMuch);
            }
            found.insert(0, Proxy { span: start..end, way: 0 });
        }
        if self.again / MAX_ROUNDS > self.text.len() { Err(TooMuch) } else { Ok((end, found)) }
    }
}

fn handler_name(text: &str, proxy: usize) -> String {
    let string = |span: Range<usize>| Some(&text[span]).filter(|text| text.starts_with('"')).map(text::unescaped);
    if let Some(id) = text::member(text, proxy, "@id").and_then(string) {
        return bounded(&format!("@{id}"));
    }
    let upstreams = text::member(text, proxy, "upstreams").map(|span| text::elements(text, span.start)).unwrap_or_default();
    let dials: Vec<_> =
        upstreams.into_iter().filter_map(|upstream| text::member(text, upstream.start, "dial").and_then(string)).collect();
    if dials.is_empty() { "dynamic".into() } else { bounded(&dials.join(",")) }
}

/// A name of limited length; a long one is shortened and gets its hash.
fn bounded(name: &str) -> String {
    if name.len() <= MAX_TEXT {
        return name.to_owned();
    }
    format!("{}~{:016x}", shortened_to_bytes(name, 200), fnv1a(name))
}

/// Reads a setting as a limit; `None` if it is not valid for one.
pub fn parse(key: Limit, raw: &Json) -> Option<Value> {
    if key.is_count() {
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
