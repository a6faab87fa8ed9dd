//! Limits that a policy can set, in one table.
//!
//! Each limit is one row of `limits!` below. The fields of the CRD, [`Limit`] and its predicates, the names for Go readers and
//! the conversions between [`Limits`] and [`LimitValues`] are generated from the row, so none of them can miss a limit.
//! docs/extending.md shows how to add a row.

#[macro_use]
mod table;

use std::{collections::BTreeMap, fmt, time::Duration};

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::GoDuration;

/// Limits of the three kinds of pool. A limit that is absent is not managed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Connections that clients keep open to this server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// Connections that the nodes of one cluster keep open to each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intra_cluster: Option<IntraCluster>,
    /// Connections that a node keeps open to its backends: upstreams, object stores, other services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
}

/// Quantity that a limit measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Time that a connection may be idle.
    IdleTime,
    /// Any other time.
    Time,
    /// Connections.
    Connections,
    /// Requests.
    Requests,
}

/// Side of a connection to which a limit applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Side that accepts connections.
    Server,
    /// Side that opens connections and keeps them in a pool.
    Client,
}

/// Row of the table of limits.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Path under `spec.limits`.
    pub path: &'static str,
    /// Member of `spec.limits` that contains the limit.
    pub pool: &'static str,
    /// Side of a connection to which the limit applies.
    pub side: Side,
    /// Quantity that the limit measures.
    pub measure: Measure,
    /// Name of the field in Go's `net/http` or `net`, if there is one.
    pub go: Option<&'static str>,
}

// A pool has: its type, its field, its name in YAML and its side. A limit has: its name here, its field, its name in YAML, its
// quantity, and the name of Go's field if there is one. Its comment is the description in `kubectl explain`.
limits! {
    /// Limits of the server side of a connection.
    Server server "server" Server {
        /// Maximum time that a client's keep-alive connection may be idle before the server closes it (Go:
        /// `http.Server.IdleTimeout`).
        ServerIdleTimeout idle_timeout "idleTimeout" IdleTime "IdleTimeout";
        /// Maximum time that a client may take to send the headers of a request (Go: `http.Server.ReadHeaderTimeout`).
        ServerReadHeaderTimeout read_header_timeout "readHeaderTimeout" Time "ReadHeaderTimeout";
        /// Maximum number of requests over one client connection before the server closes it (nginx: `keepalive_requests`).
        ServerMaxRequestsPerConn max_requests_per_conn "maxRequestsPerConn" Requests;
    }
    /// Limits of the connection pools between the nodes of one cluster.
    IntraCluster intra_cluster "intraCluster" Client {
        /// Maximum time that an idle connection stays in the pool (Go: `http.Transport.IdleConnTimeout`).
        IntraClusterIdleConnTimeout idle_conn_timeout "idleConnTimeout" IdleTime "IdleConnTimeout";
        /// Maximum number of idle connections in the pool, to all hosts together (Go: `http.Transport.MaxIdleConns`).
        IntraClusterMaxIdleConns max_idle_conns "maxIdleConns" Connections "MaxIdleConns";
        /// Maximum number of idle connections in the pool to one host (Go: `http.Transport.MaxIdleConnsPerHost`).
        IntraClusterMaxIdleConnsPerHost max_idle_conns_per_host "maxIdleConnsPerHost" Connections "MaxIdleConnsPerHost";
    }
    /// Limits of the connection pools to backends.
    Backend backend "backend" Client {
        /// Maximum time that an idle connection stays in the pool (Go: `http.Transport.IdleConnTimeout`).
        BackendIdleConnTimeout idle_conn_timeout "idleConnTimeout" IdleTime "IdleConnTimeout";
        /// Maximum number of idle connections in the pool, to all hosts together (Go: `http.Transport.MaxIdleConns`).
        BackendMaxIdleConns max_idle_conns "maxIdleConns" Connections "MaxIdleConns";
        /// Maximum number of idle connections in the pool to one host (Go: `http.Transport.MaxIdleConnsPerHost`).
        BackendMaxIdleConnsPerHost max_idle_conns_per_host "maxIdleConnsPerHost" Connections "MaxIdleConnsPerHost";
        /// Maximum number of connections to one host, idle and active together (Go: `http.Transport.MaxConnsPerHost`).
        BackendMaxConnsPerHost max_conns_per_host "maxConnsPerHost" Connections "MaxConnsPerHost";
        /// Maximum age of a connection, idle or active, before it is replaced (agentkeepalive: `socketActiveTTL`).
        BackendMaxConnLifetime max_conn_lifetime "maxConnLifetime" Time;
        /// Time between TCP keep-alive probes (Go: `net.Dialer.KeepAlive`).
        BackendTcpKeepAlive tcp_keep_alive "tcpKeepAlive" Time "KeepAlive";
        /// Maximum time of a TLS handshake (Go: `http.Transport.TLSHandshakeTimeout`).
        BackendTlsHandshakeTimeout tls_handshake_timeout "tlsHandshakeTimeout" Time "TLSHandshakeTimeout";
        /// Maximum time to wait for `100 Continue` (Go: `http.Transport.ExpectContinueTimeout`).
        BackendExpectContinueTimeout expect_continue_timeout "expectContinueTimeout" Time "ExpectContinueTimeout";
        /// Maximum time to wait for the headers of a response (Go: `http.Transport.ResponseHeaderTimeout`).
        BackendResponseHeaderTimeout response_header_timeout "responseHeaderTimeout" Time "ResponseHeaderTimeout";
        /// Maximum time of a whole request (Go: `http.Client.Timeout`).
        BackendRequestTimeout request_timeout "requestTimeout" Time "Timeout";
    }
}

impl Limit {
    /// Returns the row of the limit.
    #[must_use]
    pub const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Returns the path under `spec.limits`, such as `server.idleTimeout`.
    #[must_use]
    pub const fn path(self) -> &'static str {
        self.row().path
    }

    /// Returns the member of `spec.limits` that contains the limit, such as `server`.
    #[must_use]
    pub const fn pool(self) -> &'static str {
        self.row().pool
    }

    /// Reports whether the limit is a number of connections or requests, and not a time.
    #[must_use]
    pub const fn is_count(self) -> bool {
        matches!(self.row().measure, Measure::Connections | Measure::Requests)
    }

    /// Reports whether the limit is a number of connections.
    #[must_use]
    pub const fn is_of_connections(self) -> bool {
        matches!(self.row().measure, Measure::Connections)
    }

    /// Reports whether the limit is a time that a connection may be idle.
    #[must_use]
    pub const fn is_idle_time(self) -> bool {
        matches!(self.row().measure, Measure::IdleTime)
    }

    /// Reports whether the limit applies to the side that opens connections.
    #[must_use]
    pub const fn is_client(self) -> bool {
        matches!(self.row().side, Side::Client)
    }

    /// Returns the limit at a path, if there is one.
    #[must_use]
    pub fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|limit| limit.path() == path)
    }
}

/// Pairs of limits of which the first must not exceed the second.
pub const WITHIN: [(Limit, Limit); 3] = [
    (Limit::IntraClusterMaxIdleConnsPerHost, Limit::IntraClusterMaxIdleConns),
    (Limit::BackendMaxIdleConnsPerHost, Limit::BackendMaxIdleConns),
    (Limit::BackendMaxIdleConnsPerHost, Limit::BackendMaxConnsPerHost),
];

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

// A limit is serialized as its path, so that stored data is readable and independent of the order of the enum.
impl Serialize for Limit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.path())
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = String::deserialize(deserializer)?;
        Self::at(&path).ok_or_else(|| serde::de::Error::custom(format!("no limit is called {path:?}")))
    }
}

/// Value of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// Time.
    Duration(Duration),
    /// Number of connections or requests.
    Count(u32),
}

impl Value {
    /// Reports whether the value is 0, which means "no limit".
    #[must_use]
    pub const fn is_zero(self) -> bool {
        match self {
            Self::Duration(time) => time.is_zero(),
            Self::Count(n) => n == 0,
        }
    }

    /// Returns a duration as text in Go's spelling, and a count as a number.
    #[must_use]
    pub fn json(self) -> serde_json::Value {
        match self {
            Self::Duration(_) => self.to_string().into(),
            Self::Count(n) => n.into(),
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

/// Limits that are set, with their values.
pub type LimitValues = BTreeMap<Limit, Value>;

/// Type of a field of [`Limits`].
trait Field: Sized {
    /// Converts the field to a value; `None` for a text that is not a duration, which the API server refuses.
    fn value(&self) -> Option<Value>;

    /// Converts a value of the same type to a field.
    fn of(value: Value) -> Option<Self>;
}

impl Field for GoDuration {
    fn value(&self) -> Option<Value> {
        self.get().map(Value::Duration)
    }

    fn of(value: Value) -> Option<Self> {
        if let Value::Duration(time) = value { Some(time.into()) } else { None }
    }
}

impl Field for u32 {
    fn value(&self) -> Option<Value> {
        Some(Value::Count(*self))
    }

    fn of(value: Value) -> Option<Self> {
        if let Value::Count(n) = value { Some(n) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_survives_the_way_to_limits_and_back() {
        let settings: LimitValues = Limit::ALL
            .into_iter()
            .map(|limit| {
                let counted = limit.is_count();
                (limit, if counted { Value::Count(7) } else { Value::Duration(Duration::from_secs(9)) })
            })
            .collect();
        assert_eq!(Limits::from(&settings).settings(), settings);
    }

    #[test]
    fn a_limits_path_is_its_place_in_the_users_yaml() {
        for limit in Limit::ALL {
            let value = if limit.is_count() { "7" } else { "\"9s\"" };
            let (pool, field) = limit.path().split_once('.').expect("pool.field");
            let limits: Limits = serde_json::from_str(&format!("{{\"{pool}\":{{\"{field}\":{value}}}}}")).expect("limits");
            assert_eq!(limits.settings().keys().copied().collect::<Vec<_>>(), [limit]);
            assert_eq!(Limit::at(limit.path()), Some(limit));
        }
    }

    #[test]
    fn what_a_limit_is_follows_from_its_row() {
        let of = |is: fn(Limit) -> bool| Limit::ALL.into_iter().filter(|limit| is(*limit)).map(Limit::path).collect::<Vec<_>>();
        assert_eq!(of(Limit::is_idle_time), ["server.idleTimeout", "intraCluster.idleConnTimeout", "backend.idleConnTimeout"]);
        assert_eq!(
            of(|limit| !limit.is_client()),
            ["server.idleTimeout", "server.readHeaderTimeout", "server.maxRequestsPerConn"]
        );
        assert_eq!(of(|limit| limit.is_count() && !limit.is_of_connections()), ["server.maxRequestsPerConn"]);
    }

    #[test]
    fn a_description_names_gos_field_where_the_row_does() {
        let schema = super::super::schema::own();
        for limit in Limit::ALL {
            let at = format!("/properties/spec/properties/limits/properties/{}", limit.path().replace('.', "/properties/"));
            let about =
                schema.pointer(&at).and_then(|field| field["description"].as_str()).expect("a description").replace('\n', " ");
            match limit.row().go {
                Some(name) => assert!(about.contains("(Go: `") && about.ends_with(&format!(".{name}`).")), "{limit}: {about}"),
                None => assert!(!about.contains("Go:"), "{limit}: {about}"),
            }
        }
    }
}
