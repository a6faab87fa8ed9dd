//! The `HttpConnectionPool` object of Node services: global settings in milliseconds, by the names that agentkeepalive has for them.
//!
//! agentkeepalive derives `timeout`, which ends requests that are under way, from `freeSocketTimeout` where it is not given: twice as long, at least
//! 8 s. So it is always given beside `freeSocketTimeout`: a shorter idle time must not shorten a request.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::super::{Knob, Value, flush::Reload};
use super::{MAX_MILLISECONDS, Named, Spec, milliseconds};

pub(super) const FORMAT: Spec = Spec {
    fields: &[
        (Knob::BackendMaxConnsPerHost, "maxSockets"),
        (Knob::BackendMaxIdleConnsPerHost, "maxFreeSockets"),
        (Knob::BackendRequestTimeout, TIMEOUT),
        (Knob::BackendTcpKeepAlive, "keepAliveMsecs"),
        (Knob::BackendIdleConnTimeout, IDLE),
        (Knob::BackendMaxConnLifetime, "maxSocketLifetime"),
    ],
    render: |named, providers| {
        let mut global = members(named);
        let providers: BTreeMap<_, _> = providers.iter().map(|(provider, named)| (provider, members(named))).collect();
        // What a provider does not say holds for it as it does for all.
        if std::iter::once(&global).chain(providers.values()).any(|agent| agent.contains_key(IDLE)) {
            global.entry(TIMEOUT).or_insert(0.into());
        }
        vec![("", format!("{:#}\n", json!({"enabled": true, "global": global, "providers": providers})))]
    },
    reader: "Node services (examples/node-service, agentkeepalive)",
    reload: |_| Reload::OWN_POOL,
    inexpressible: |knob, value| match value {
        Value::Duration(time) if time > MAX_MILLISECONDS => Some("Node cuts times of more than 24 days"),
        _ if knob == Knob::BackendMaxIdleConnsPerHost && value.is_zero() => {
            Some("Node keeps 256 idle connections per host for 0")
        }
        _ if knob == Knob::BackendTcpKeepAlive && value.is_zero() => Some("Node probes every second for 0"),
        _ => None,
    },
};

/// How long a socket may be silent while a request is under way; 0 is for ever.
const TIMEOUT: &str = "timeout";
/// How long it may be silent in between.
const IDLE: &str = "freeSocketTimeout";

fn members(named: &Named) -> Map<String, Json> {
    let mut agent = Map::from_iter([("keepAlive".to_owned(), Json::Bool(true))]);
    for (_, name, value) in named {
        let value = match value {
            Value::Duration(time) => milliseconds(*time),
            Value::Count(n) => u64::from(*n),
        };
        agent.insert((*name).to_owned(), value.into());
    }
    agent
}
