//! The limits: every one that a policy can set, in one table.
//!
//! A limit is one row of [`limits!`] below. The fields of the CRD, [`Knob`], its predicates, the names that Go readers use and the conversions
//! between [`Limits`] and [`Settings`] all come from the row, so none of them can miss one. docs/extending.md shows a row being added.

#[macro_use]
mod table;

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

/// What the number of a limit is a number of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Time for which a connection may be idle.
    IdleTime,
    /// Any other time.
    Time,
    /// Connections.
    Connections,
    /// Requests.
    Requests,
}

/// The side of a connection that a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that accepts connections.
    Server,
    /// The side that opens them and keeps them in a pool.
    Client,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its place under `spec.limits`.
    pub path: &'static str,
    /// The member of `spec.limits` that it is in.
    pub pool: &'static str,
    /// The side of a connection that it is about.
    pub side: Side,
    /// What it measures or counts.
    pub measure: Measure,
    /// The name of the field that Go's `net/http` or `net` has for it.
    pub go: Option<&'static str>,
}

// A pool is: its type, its field, its name in YAML and its side. A limit is: its name here, its field, its name in YAML, what it measures, and the
// name of Go's field where Go has one. Its comment is what `kubectl explain` shows.
limits! {
    /// Limits of the server side of a connection.
    Server server "server" Server {
        /// How long a client's keep-alive connection may be idle before the server closes it (Go: `http.Server.IdleTimeout`).
        ServerIdleTimeout idle_timeout "idleTimeout" IdleTime "IdleTimeout";
        /// How long a client may take to send a request's headers (Go: `http.Server.ReadHeaderTimeout`).
        ServerReadHeaderTimeout read_header_timeout "readHeaderTimeout" Time "ReadHeaderTimeout";
        /// Requests over one client connection before the server closes it (nginx: `keepalive_requests`).
        ServerMaxRequestsPerConn max_requests_per_conn "maxRequestsPerConn" Requests;
    }
    /// Limits of the pools between the nodes of one cluster.
    IntraCluster intra_cluster "intraCluster" Client {
        /// How long an idle connection stays in the pool (Go: `http.Transport.IdleConnTimeout`).
        IntraClusterIdleConnTimeout idle_conn_timeout "idleConnTimeout" IdleTime "IdleConnTimeout";
        /// Idle connections to all hosts together (Go: `http.Transport.MaxIdleConns`).
        IntraClusterMaxIdleConns max_idle_conns "maxIdleConns" Connections "MaxIdleConns";
        /// Idle connections to one host (Go: `http.Transport.MaxIdleConnsPerHost`).
        IntraClusterMaxIdleConnsPerHost max_idle_conns_per_host "maxIdleConnsPerHost" Connections "MaxIdleConnsPerHost";
    }
    /// Limits of the pools towards backends.
    Backend backend "backend" Client {
        /// How long an idle connection stays in the pool (Go: `http.Transport.IdleConnTimeout`).
        BackendIdleConnTimeout idle_conn_timeout "idleConnTimeout" IdleTime "IdleConnTimeout";
        /// Idle connections to all hosts together (Go: `http.Transport.MaxIdleConns`).
        BackendMaxIdleConns max_idle_conns "maxIdleConns" Connections "MaxIdleConns";
        /// Idle connections to one host (Go: `http.Transport.MaxIdleConnsPerHost`).
        BackendMaxIdleConnsPerHost max_idle_conns_per_host "maxIdleConnsPerHost" Connections "MaxIdleConnsPerHost";
        /// Connections to one host, idle or not; 0 is no limit (Go: `http.Transport.MaxConnsPerHost`).
        BackendMaxConnsPerHost max_conns_per_host "maxConnsPerHost" Connections "MaxConnsPerHost";
        /// How long a connection may live, busy or not, before it is replaced (agentkeepalive: `socketActiveTTL`).
        BackendMaxConnLifetime max_conn_lifetime "maxConnLifetime" Time;
        /// Time between TCP keep-alive probes (Go: `net.Dialer.KeepAlive`).
        BackendTcpKeepAlive tcp_keep_alive "tcpKeepAlive" Time "KeepAlive";
        /// How long a TLS handshake may take (Go: `http.Transport.TLSHandshakeTimeout`).
        BackendTlsHandshakeTimeout tls_handshake_timeout "tlsHandshakeTimeout" Time "TLSHandshakeTimeout";
        /// How long to wait for `100 Continue` (Go: `http.Transport.ExpectContinueTimeout`).
        BackendExpectContinueTimeout expect_continue_timeout "expectContinueTimeout" Time "ExpectContinueTimeout";
        /// How long to wait for a response's headers (Go: `http.Transport.ResponseHeaderTimeout`).
        BackendResponseHeaderTimeout response_header_timeout "responseHeaderTimeout" Time "ResponseHeaderTimeout";
        /// How long a whole request may take (Go: `http.Client.Timeout`).
        BackendRequestTimeout request_timeout "requestTimeout" Time "Timeout";
    }
}

impl Knob {
    /// Its row of the table.
    #[must_use]
    pub const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Its place under `spec.limits`, such as `server.idleTimeout`.
    #[must_use]
    pub const fn path(self) -> &'static str {
        self.row().path
    }

    /// The member of `spec.limits` that it is in, such as `server`.
    #[must_use]
    pub const fn pool(self) -> &'static str {
        self.row().pool
    }

    /// Whether it is a number of connections or requests, rather than a length of time.
    #[must_use]
    pub const fn is_count(self) -> bool {
        matches!(self.row().measure, Measure::Connections | Measure::Requests)
    }

    /// Whether it is a number of connections.
    #[must_use]
    pub const fn is_of_connections(self) -> bool {
        matches!(self.row().measure, Measure::Connections)
    }

    /// Whether it is a time for which a connection may be idle.
    #[must_use]
    pub const fn is_idle_time(self) -> bool {
        matches!(self.row().measure, Measure::IdleTime)
    }

    /// Whether it is on the side that opens connections.
    #[must_use]
    pub const fn is_client(self) -> bool {
        matches!(self.row().side, Side::Client)
    }

    /// The knob at a path, if there is one.
    #[must_use]
    pub fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|knob| knob.path() == path)
    }
}

/// Pairs of which the first may not exceed the second.
pub const WITHIN: [(Knob, Knob); 3] = [
    (Knob::IntraClusterMaxIdleConnsPerHost, Knob::IntraClusterMaxIdleConns),
    (Knob::BackendMaxIdleConnsPerHost, Knob::BackendMaxIdleConns),
    (Knob::BackendMaxIdleConnsPerHost, Knob::BackendMaxConnsPerHost),
];

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

/// The type of a field of [`Limits`].
trait Field: Sized {
    /// As a value; `None` for a text that is no duration, which the API server refuses.
    fn value(&self) -> Option<Value>;

    /// From a value of the same type.
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

    #[test]
    fn what_a_limit_is_follows_from_its_row() {
        let of = |is: fn(Knob) -> bool| Knob::ALL.into_iter().filter(|knob| is(*knob)).map(Knob::path).collect::<Vec<_>>();
        assert_eq!(of(Knob::is_idle_time), ["server.idleTimeout", "intraCluster.idleConnTimeout", "backend.idleConnTimeout"]);
        assert_eq!(of(|knob| !knob.is_client()), ["server.idleTimeout", "server.readHeaderTimeout", "server.maxRequestsPerConn"]);
        assert_eq!(of(|knob| knob.is_count() && !knob.is_of_connections()), ["server.maxRequestsPerConn"]);
    }

    #[test]
    fn a_description_names_gos_field_where_the_row_does() {
        let schema = super::super::schema::own();
        for knob in Knob::ALL {
            let at = format!("/properties/spec/properties/limits/properties/{}", knob.path().replace('.', "/properties/"));
            let about = schema.pointer(&at).and_then(|field| field["description"].as_str()).expect("a description");
            match knob.row().go {
                Some(name) => assert!(about.contains("(Go: `") && about.ends_with(&format!(".{name}`).")), "{knob}: {about}"),
                None => assert!(!about.contains("Go:"), "{knob}: {about}"),
            }
        }
    }
}
