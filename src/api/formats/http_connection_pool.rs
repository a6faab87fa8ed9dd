//! Format `http-connection-pool`: the `HttpConnectionPool` object of Node services, with the names of agentkeepalive and times in
//! milliseconds.
//!
//! agentkeepalive derives `timeout`, which ends requests in progress, from `freeSocketTimeout` if it is not set: twice that time,
//! at least 8 s. The file therefore always sets `timeout` beside `freeSocketTimeout`, so that a shorter idle time does not
//! shorten requests.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::super::{Limit, Value, flush::Reload};
use super::{MAX_MILLISECONDS, Named, Spec, milliseconds};

pub(super) const FORMAT: Spec = Spec {
    fields: &[
        (Limit::BackendMaxConnsPerHost, "maxSockets"),
        (Limit::BackendMaxIdleConnsPerHost, "maxFreeSockets"),
        (Limit::BackendRequestTimeout, TIMEOUT),
        (Limit::BackendTcpKeepAlive, "keepAliveMsecs"),
        (Limit::BackendIdleConnTimeout, IDLE),
        (Limit::BackendMaxConnLifetime, "maxSocketLifetime"),
    ],
    render: |named, providers| {
        let mut global = members(named);
        let providers: BTreeMap<_, _> = providers.iter().map(|(provider, named)| (provider, members(named))).collect();
        // A setting that a provider does not set is inherited from `global`.
        if std::iter::once(&global).chain(providers.values()).any(|agent| agent.contains_key(IDLE)) {
            global.entry(TIMEOUT).or_insert(0.into());
        }
        vec![("", format!("{:#}\n", json!({"enabled": true, "global": global, "providers": providers})))]
    },
    reader: "Node services (examples/node-service, agentkeepalive)",
    reload: |_| Reload::OWN_POOL,
    inexpressible: |limit, value| match value {
        Value::Duration(time) if time > MAX_MILLISECONDS => Some("Node cuts times of more than 24 days"),
        _ if limit == Limit::BackendMaxIdleConnsPerHost && value.is_zero() => {
            Some("Node keeps 256 idle connections per host for 0")
        }
        _ if limit == Limit::BackendTcpKeepAlive && value.is_zero() => Some("Node probes every second for 0"),
        _ => None,
    },
};

/// Time that a socket may be silent during a request; 0 means no limit.
const TIMEOUT: &str = "timeout";
/// Time that a socket may be silent between requests.
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
