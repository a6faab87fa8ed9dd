//! The `HttpConnectionPool` object of Node services: global settings in milliseconds, by the names that agentkeepalive has for them.
//!
//! 0 is "no limit", which is what the agent does by itself where a setting is left out.

use serde_json::{Map, Value as Json, json};

use super::super::{Knob, Value};
use super::{Named, Spec, milliseconds};

pub(super) const FORMAT: Spec = Spec {
    fields: &[
        (Knob::BackendMaxConnsPerHost, "maxSockets"),
        (Knob::BackendMaxIdleConnsPerHost, "maxFreeSockets"),
        (Knob::BackendRequestTimeout, "timeout"),
        (Knob::BackendTcpKeepAlive, "keepAliveMsecs"),
        (Knob::BackendIdleConnTimeout, "freeSocketTimeout"),
        (Knob::BackendMaxConnLifetime, "maxSocketLifetime"),
    ],
    render: |named, providers| {
        let providers: Map<_, _> = providers.iter().map(|(provider, named)| (provider.clone(), agent(named))).collect();
        vec![("", format!("{:#}\n", json!({"enabled": true, "global": agent(named), "providers": providers})))]
    },
    reader: "Node services (examples/node-service, agentkeepalive)",
};

/// What an agent is made with.
fn agent(named: &Named) -> Json {
    let mut agent = Map::from_iter([("keepAlive".to_owned(), Json::Bool(true))]);
    for (_, name, value) in named {
        let value = match value {
            Value::Duration(time) => milliseconds(*time),
            Value::Count(n) => u64::from(*n),
        };
        if value > 0 {
            agent.insert((*name).to_owned(), value.into());
        }
    }
    Json::Object(agent)
}
