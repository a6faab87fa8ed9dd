//! Format `thanos-objstore`: the `http_config` of clients that use the objstore library of Thanos (`exthttp.HTTPConfig`). Cortex,
//! Mimir and Loki have other names for the same settings (`max_idle_connections`, `max_idle_connections_per_host`,
//! `max_connections_per_host`) and refuse these.

use serde_json::{Map, json};

use super::super::{Limit, flush::Reload};
use super::{HEADER, Spec, inexpressible_in_go};

pub(super) const FORMAT: Spec = Spec {
    fields: &[
        (Limit::BackendIdleConnTimeout, "idle_conn_timeout"),
        (Limit::BackendMaxIdleConns, "max_idle_conns"),
        (Limit::BackendMaxIdleConnsPerHost, "max_idle_conns_per_host"),
        (Limit::BackendMaxConnsPerHost, "max_conns_per_host"),
        (Limit::BackendTlsHandshakeTimeout, "tls_handshake_timeout"),
        (Limit::BackendExpectContinueTimeout, "expect_continue_timeout"),
        (Limit::BackendResponseHeaderTimeout, "response_header_timeout"),
    ],
    render: |named, _| {
        let config: Map<_, _> = named.iter().map(|(_, name, limit)| ((*name).to_owned(), limit.json())).collect();
        let text = serde_saphyr::to_string(&json!({"http_config": config})).unwrap_or_default();
        vec![("", format!("# {HEADER}\n{}\n", text.trim_end()))]
    },
    reader: "object-store clients of Thanos",
    reload: |_| Reload::AtStart,
    inexpressible: inexpressible_in_go,
};
