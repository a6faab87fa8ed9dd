//! Lines for an environment: `Backend_MaxIdleConns=100`, Go's own names behind the pool's. No quoting is ever needed.

use super::super::Knob;
use super::{HEADER, Spec, inexpressible_in_go};

pub(super) const FORMAT: Spec = Spec {
    fields: &[
        (Knob::ServerIdleTimeout, "Server_IdleTimeout"),
        (Knob::ServerReadHeaderTimeout, "Server_ReadHeaderTimeout"),
        (Knob::IntraClusterIdleConnTimeout, "IntraCluster_IdleConnTimeout"),
        (Knob::IntraClusterMaxIdleConns, "IntraCluster_MaxIdleConns"),
        (Knob::IntraClusterMaxIdleConnsPerHost, "IntraCluster_MaxIdleConnsPerHost"),
        (Knob::BackendIdleConnTimeout, "Backend_IdleConnTimeout"),
        (Knob::BackendMaxIdleConns, "Backend_MaxIdleConns"),
        (Knob::BackendMaxIdleConnsPerHost, "Backend_MaxIdleConnsPerHost"),
        (Knob::BackendMaxConnsPerHost, "Backend_MaxConnsPerHost"),
        (Knob::BackendTcpKeepAlive, "Backend_KeepAlive"),
        (Knob::BackendTlsHandshakeTimeout, "Backend_TLSHandshakeTimeout"),
        (Knob::BackendExpectContinueTimeout, "Backend_ExpectContinueTimeout"),
        (Knob::BackendResponseHeaderTimeout, "Backend_ResponseHeaderTimeout"),
        (Knob::BackendRequestTimeout, "Backend_Timeout"),
    ],
    render: |named, _| {
        let lines: Vec<_> = named.iter().map(|(_, name, value)| format!("{name}={value}")).collect();
        vec![("", [&[format!("# {HEADER}")], &lines[..], &[String::new()]].concat().join("\n"))]
    },
    reader: "anything that is started with an environment file",
    inexpressible: inexpressible_in_go,
};
