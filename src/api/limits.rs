//! The knobs: every limit a policy can set, as the user writes it and as one flat table.

use std::{collections::BTreeMap, fmt, time::Duration};

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::GoDuration;

/// The limits of the three kinds of pool. A field that is absent is not managed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Connections that clients hold open to this server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// Connections that the nodes of one cluster hold open to each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intra_cluster: Option<IntraCluster>,
    /// Connections that a node holds open to what is behind it: upstreams, object stores, other services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
}

/// Limits of the server side of a connection.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// How long a client's keep-alive connection may be idle before the server closes it (Go: `http.Server.IdleTimeout`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<GoDuration>,
    /// How long a client may take to send a request's headers (Go: `http.Server.ReadHeaderTimeout`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_header_timeout: Option<GoDuration>,
    /// Requests over one client connection before the server closes it (nginx: `keepalive_requests`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000), extend("format" = "int32"))]
    pub max_requests_per_conn: Option<u32>,
}

/// Limits of the pools between the nodes of one cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct IntraCluster {
    /// How long an idle connection stays in the pool (Go: `http.Transport.IdleConnTimeout`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_conn_timeout: Option<GoDuration>,
    /// Idle connections to all hosts together (Go: `http.Transport.MaxIdleConns`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000), extend("format" = "int32"))]
    pub max_idle_conns: Option<u32>,
    /// Idle connections to one host (Go: `http.Transport.MaxIdleConnsPerHost`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000), extend("format" = "int32"))]
    pub max_idle_conns_per_host: Option<u32>,
}

/// Limits of the pools towards backends.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// How long an idle connection stays in the pool (Go: `http.Transport.IdleConnTimeout`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_conn_timeout: Option<GoDuration>,
    /// Idle connections to all hosts together (Go: `http.Transport.MaxIdleConns`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000), extend("format" = "int32"))]
    pub max_idle_conns: Option<u32>,
    /// Idle connections to one host (Go: `http.Transport.MaxIdleConnsPerHost`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000), extend("format" = "int32"))]
    pub max_idle_conns_per_host: Option<u32>,
    /// Connections to one host, idle or not; 0 is no limit (Go: `http.Transport.MaxConnsPerHost`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000), extend("format" = "int32"))]
    pub max_conns_per_host: Option<u32>,
    /// How long a connection may live, busy or not, before it is replaced (agentkeepalive: `socketActiveTTL`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_conn_lifetime: Option<GoDuration>,
    /// Time between TCP keep-alive probes (Go: `net.Dialer.KeepAlive`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_keep_alive: Option<GoDuration>,
    /// How long a TLS handshake may take (Go: `http.Transport.TLSHandshakeTimeout`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_handshake_timeout: Option<GoDuration>,
    /// How long to wait for `100 Continue` (Go: `http.Transport.ExpectContinueTimeout`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_continue_timeout: Option<GoDuration>,
    /// How long to wait for a response's headers (Go: `http.Transport.ResponseHeaderTimeout`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_timeout: Option<GoDuration>,
    /// How long a whole request may take (Go: `http.Client.Timeout`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<GoDuration>,
}

/// One limit, by its place in [`Limits`]. The order is the order of the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // Each is the field of the same name, documented there.
pub enum Knob {
    ServerIdleTimeout,
    ServerReadHeaderTimeout,
    ServerMaxRequestsPerConn,
    IntraClusterIdleConnTimeout,
    IntraClusterMaxIdleConns,
    IntraClusterMaxIdleConnsPerHost,
    BackendIdleConnTimeout,
    BackendMaxIdleConns,
    BackendMaxIdleConnsPerHost,
    BackendMaxConnsPerHost,
    BackendMaxConnLifetime,
    BackendTcpKeepAlive,
    BackendTlsHandshakeTimeout,
    BackendExpectContinueTimeout,
    BackendResponseHeaderTimeout,
    BackendRequestTimeout,
}

impl Knob {
    /// Every knob there is.
    pub const ALL: [Self; 16] = [
        Self::ServerIdleTimeout,
        Self::ServerReadHeaderTimeout,
        Self::ServerMaxRequestsPerConn,
        Self::IntraClusterIdleConnTimeout,
        Self::IntraClusterMaxIdleConns,
        Self::IntraClusterMaxIdleConnsPerHost,
        Self::BackendIdleConnTimeout,
        Self::BackendMaxIdleConns,
        Self::BackendMaxIdleConnsPerHost,
        Self::BackendMaxConnsPerHost,
        Self::BackendMaxConnLifetime,
        Self::BackendTcpKeepAlive,
        Self::BackendTlsHandshakeTimeout,
        Self::BackendExpectContinueTimeout,
        Self::BackendResponseHeaderTimeout,
        Self::BackendRequestTimeout,
    ];

    /// Its place under `spec.limits`, such as `server.idleTimeout`.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::ServerIdleTimeout => "server.idleTimeout",
            Self::ServerReadHeaderTimeout => "server.readHeaderTimeout",
            Self::ServerMaxRequestsPerConn => "server.maxRequestsPerConn",
            Self::IntraClusterIdleConnTimeout => "intraCluster.idleConnTimeout",
            Self::IntraClusterMaxIdleConns => "intraCluster.maxIdleConns",
            Self::IntraClusterMaxIdleConnsPerHost => "intraCluster.maxIdleConnsPerHost",
            Self::BackendIdleConnTimeout => "backend.idleConnTimeout",
            Self::BackendMaxIdleConns => "backend.maxIdleConns",
            Self::BackendMaxIdleConnsPerHost => "backend.maxIdleConnsPerHost",
            Self::BackendMaxConnsPerHost => "backend.maxConnsPerHost",
            Self::BackendMaxConnLifetime => "backend.maxConnLifetime",
            Self::BackendTcpKeepAlive => "backend.tcpKeepAlive",
            Self::BackendTlsHandshakeTimeout => "backend.tlsHandshakeTimeout",
            Self::BackendExpectContinueTimeout => "backend.expectContinueTimeout",
            Self::BackendResponseHeaderTimeout => "backend.responseHeaderTimeout",
            Self::BackendRequestTimeout => "backend.requestTimeout",
        }
    }

    /// Whether it is a number of connections or requests, rather than a length of time.
    #[must_use]
    pub const fn is_count(self) -> bool {
        match self {
            Self::ServerMaxRequestsPerConn
            | Self::IntraClusterMaxIdleConns
            | Self::IntraClusterMaxIdleConnsPerHost
            | Self::BackendMaxIdleConns
            | Self::BackendMaxIdleConnsPerHost
            | Self::BackendMaxConnsPerHost => true,
            Self::ServerIdleTimeout
            | Self::ServerReadHeaderTimeout
            | Self::IntraClusterIdleConnTimeout
            | Self::BackendIdleConnTimeout
            | Self::BackendMaxConnLifetime
            | Self::BackendTcpKeepAlive
            | Self::BackendTlsHandshakeTimeout
            | Self::BackendExpectContinueTimeout
            | Self::BackendResponseHeaderTimeout
            | Self::BackendRequestTimeout => false,
        }
    }

    /// The knob at a path, if there is one.
    #[must_use]
    pub fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|knob| knob.path() == path)
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

// As a path, so that what is stored stays readable and survives a reordering of the enum.
impl Serialize for Knob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.path())
    }
}

impl<'de> Deserialize<'de> for Knob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = String::deserialize(deserializer)?;
        Self::at(&path).ok_or_else(|| serde::de::Error::custom(format!("no limit is called {path:?}")))
    }
}

/// What a knob is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// A length of time.
    Duration(Duration),
    /// A number of connections.
    Count(u32),
}

impl Value {
    /// Whether it is 0, "no limit".
    #[must_use]
    pub const fn is_zero(self) -> bool {
        match self {
            Self::Duration(time) => time.is_zero(),
            Self::Count(n) => n == 0,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duration(d) => GoDuration::from(*d).fmt(f),
            Self::Count(n) => n.fmt(f),
        }
    }
}

/// The knobs that are set, and to what.
pub type Settings = BTreeMap<Knob, Value>;

impl Limits {
    /// The fields that are set, flat. A text that is no duration is left out: the API server refuses it.
    #[must_use]
    pub fn settings(&self) -> Settings {
        // Destructured without `..`, so that a new field cannot be forgotten here.
        let Self { server, intra_cluster, backend } = self;
        let time = |d: Option<&GoDuration>| d.and_then(GoDuration::get).map(Value::Duration);
        let count = |n: Option<u32>| n.map(Value::Count);
        let mut all = Vec::new();
        if let Some(Server { idle_timeout, read_header_timeout, max_requests_per_conn }) = server {
            all.extend([
                (Knob::ServerIdleTimeout, time(idle_timeout.as_ref())),
                (Knob::ServerReadHeaderTimeout, time(read_header_timeout.as_ref())),
                (Knob::ServerMaxRequestsPerConn, count(*max_requests_per_conn)),
            ]);
        }
        if let Some(IntraCluster { idle_conn_timeout, max_idle_conns, max_idle_conns_per_host }) = intra_cluster {
            all.extend([
                (Knob::IntraClusterIdleConnTimeout, time(idle_conn_timeout.as_ref())),
                (Knob::IntraClusterMaxIdleConns, count(*max_idle_conns)),
                (Knob::IntraClusterMaxIdleConnsPerHost, count(*max_idle_conns_per_host)),
            ]);
        }
        if let Some(Backend {
            idle_conn_timeout,
            max_idle_conns,
            max_idle_conns_per_host,
            max_conns_per_host,
            max_conn_lifetime,
            tcp_keep_alive,
            tls_handshake_timeout,
            expect_continue_timeout,
            response_header_timeout,
            request_timeout,
        }) = backend
        {
            all.extend([
                (Knob::BackendIdleConnTimeout, time(idle_conn_timeout.as_ref())),
                (Knob::BackendMaxIdleConns, count(*max_idle_conns)),
                (Knob::BackendMaxIdleConnsPerHost, count(*max_idle_conns_per_host)),
                (Knob::BackendMaxConnsPerHost, count(*max_conns_per_host)),
                (Knob::BackendMaxConnLifetime, time(max_conn_lifetime.as_ref())),
                (Knob::BackendTcpKeepAlive, time(tcp_keep_alive.as_ref())),
                (Knob::BackendTlsHandshakeTimeout, time(tls_handshake_timeout.as_ref())),
                (Knob::BackendExpectContinueTimeout, time(expect_continue_timeout.as_ref())),
                (Knob::BackendResponseHeaderTimeout, time(response_header_timeout.as_ref())),
                (Knob::BackendRequestTimeout, time(request_timeout.as_ref())),
            ]);
        }
        all.into_iter().filter_map(|(knob, value)| Some((knob, value?))).collect()
    }
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
        let time = |knob| match settings.get(&knob) {
            Some(Value::Duration(d)) => Some(GoDuration::from(*d)),
            _ => None,
        };
        let count = |knob| match settings.get(&knob) {
            Some(Value::Count(n)) => Some(*n),
            _ => None,
        };
        let server = Server {
            idle_timeout: time(Knob::ServerIdleTimeout),
            read_header_timeout: time(Knob::ServerReadHeaderTimeout),
            max_requests_per_conn: count(Knob::ServerMaxRequestsPerConn),
        };
        let intra_cluster = IntraCluster {
            idle_conn_timeout: time(Knob::IntraClusterIdleConnTimeout),
            max_idle_conns: count(Knob::IntraClusterMaxIdleConns),
            max_idle_conns_per_host: count(Knob::IntraClusterMaxIdleConnsPerHost),
        };
        let backend = Backend {
            idle_conn_timeout: time(Knob::BackendIdleConnTimeout),
            max_idle_conns: count(Knob::BackendMaxIdleConns),
            max_idle_conns_per_host: count(Knob::BackendMaxIdleConnsPerHost),
            max_conns_per_host: count(Knob::BackendMaxConnsPerHost),
            max_conn_lifetime: time(Knob::BackendMaxConnLifetime),
            tcp_keep_alive: time(Knob::BackendTcpKeepAlive),
            tls_handshake_timeout: time(Knob::BackendTlsHandshakeTimeout),
            expect_continue_timeout: time(Knob::BackendExpectContinueTimeout),
            response_header_timeout: time(Knob::BackendResponseHeaderTimeout),
            request_timeout: time(Knob::BackendRequestTimeout),
        };
        Self {
            server: (server != Server::default()).then_some(server),
            intra_cluster: (intra_cluster != IntraCluster::default()).then_some(intra_cluster),
            backend: (backend != Backend::default()).then_some(backend),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_knob_survives_the_way_to_limits_and_back() {
        let settings: Settings = Knob::ALL
            .into_iter()
            .map(|knob| {
                let counted = knob.is_count();
                (knob, if counted { Value::Count(7) } else { Value::Duration(Duration::from_secs(9)) })
            })
            .collect();
        assert_eq!(Limits::from(&settings).settings(), settings);
    }

    #[test]
    fn a_knobs_path_is_its_place_in_the_users_yaml() {
        for knob in Knob::ALL {
            let value = if knob.is_count() { "7" } else { "\"9s\"" };
            let (pool, field) = knob.path().split_once('.').expect("pool.field");
            let limits: Limits = serde_json::from_str(&format!("{{\"{pool}\":{{\"{field}\":{value}}}}}")).expect("limits");
            assert_eq!(limits.settings().keys().copied().collect::<Vec<_>>(), [knob]);
            assert_eq!(Knob::at(knob.path()), Some(knob));
        }
    }
}
