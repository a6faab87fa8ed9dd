//! Where requests are lost on a path: a client that keeps idle connections longer than its server does.
//!
//! A client whose connection was closed by the server at the moment of the next request cannot know whether the request
//! was handled. It may repeat only idempotent requests (RFC 9110, 9.2.2).

use std::time::Duration;

use super::measured::{Idled, time};

/// How much sooner than its server a client has to close an idle connection.
const MARGIN: Duration = Duration::from_secs(1);
/// Allowance for the error of a measurement.
const MEASUREMENT_ERROR: Duration = Duration::from_millis(250);
/// A client's idle time below which a pool is of little use: then the server is changed first.
const MIN_CLIENT_IDLE: Duration = Duration::from_secs(2);

/// How long a client keeps an idle connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientIdle {
    /// At most this long.
    After(Duration),
    /// Until the server closes.
    Never,
}

impl std::fmt::Display for ClientIdle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::After(after) => f.write_str(&time(*after)),
            Self::Never => f.write_str("no limit"),
        }
    }
}

/// The verdict on one hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The client closes first.
    Safe,
    /// The server may close while the client sends a request.
    Trap,
    /// The connection was still open when the probe ended, and the client may keep connections longer than that.
    Undecided,
}

/// Compares the two sides of a hop. The server's side is the connection that it closed first.
#[must_use]
pub fn verdict(client: ClientIdle, server: Idled) -> Verdict {
    let fits = |limit: Duration| matches!(client, ClientIdle::After(idle) if idle + MARGIN <= limit);
    match server {
        Idled::Closed(after) if fits(after + MEASUREMENT_ERROR) => Verdict::Safe,
        Idled::Closed(_) => Verdict::Trap,
        Idled::Open(after) if fits(after) => Verdict::Safe,
        Idled::Open(_) => Verdict::Undecided,
    }
}

/// Which side of a hop is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's idle time is lowered.
    Client,
    /// The server's idle timeout is raised.
    Server,
}

/// A change that removes a trap: the side, and its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which side.
    pub side: Side,
    /// At most this, for the client; at least this, for the server.
    pub to: Duration,
}

/// The changes that remove a trap, the better one first. A lower idle time of the client costs the server nothing. If
/// the server's timeout is very short, raising it comes first, because a pool that keeps nothing is useless.
#[must_use]
pub fn changes(client: ClientIdle, server: Duration) -> Vec<Change> {
    let lower = (server + MEASUREMENT_ERROR).saturating_sub(MARGIN);
    let lower = Duration::from_secs(lower.as_secs());
    let lower = (!lower.is_zero()).then_some(Change { side: Side::Client, to: lower });
    let raise = match client {
        ClientIdle::After(idle) => Some(Change { side: Side::Server, to: whole_seconds(idle + MARGIN) }),
        ClientIdle::Never => None,
    };
    let is_short = lower.is_some_and(|lower| lower.to < MIN_CLIENT_IDLE);
    let ordered = if is_short { [raise, lower] } else { [lower, raise] };
    ordered.into_iter().flatten().collect()
}

fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs() + u64::from(time.subsec_nanos() > 0))
}

/// A client with a known default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownClient {
    /// The name on the command line.
    pub name: &'static str,
    /// The product and its setting.
    pub setting: &'static str,
    /// Its default.
    pub idle: ClientIdle,
    /// The vendor's documentation of the default.
    pub source: &'static str,
}

/// A client without the documentation of its default, so that none can be left out.
struct Undocumented(KnownClient);

const fn known(name: &'static str, setting: &'static str, seconds: u64) -> Undocumented {
    Undocumented(KnownClient { name, setting, idle: ClientIdle::After(Duration::from_secs(seconds)), source: "" })
}

impl Undocumented {
    const fn source(self, source: &'static str) -> KnownClient {
        KnownClient { source, ..self.0 }
    }
}

/// Clients with known defaults, by name. docs/measured.md shows this table.
pub const KNOWN_CLIENTS: &[KnownClient] = &[
    known("agentkeepalive", "agentkeepalive for Node: `freeSocketTimeout`", 4)
        .source("https://github.com/node-modules/agentkeepalive"),
    known("aiohttp", "aiohttp: `TCPConnector(keepalive_timeout)`", 15)
        .source("https://docs.aiohttp.org/en/stable/client_reference.html"),
    known("aws-alb", "AWS Application Load Balancer: connection idle timeout", 60)
        .source("https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-load-balancer-attributes.html"),
    known("caddy", "Caddy: `reverse_proxy` transport, `keepalive`", 120)
        .source("https://caddyserver.com/docs/caddyfile/directives/reverse_proxy"),
    known("dotnet", ".NET 6 and newer: `PooledConnectionIdleTimeout`", 60)
        .source("https://learn.microsoft.com/en-us/dotnet/api/system.net.http.socketshttphandler.pooledconnectionidletimeout"),
    known("envoy", "Envoy: a cluster's `idle_timeout`", 3600)
        .source("https://www.envoyproxy.io/docs/envoy/latest/faq/configuration/timeouts"),
    known("gcp-lb", "Google Cloud external Application Load Balancer: backend keepalive timeout", 600)
        .source("https://cloud.google.com/load-balancing/docs/https#timeouts_and_retries"),
    known("go", "Go: `http.DefaultTransport.IdleConnTimeout`", 90).source("https://pkg.go.dev/net/http#DefaultTransport"),
    known("httpx", "HTTPX: `Limits(keepalive_expiry)`", 5).source("https://www.python-httpx.org/advanced/resource-limits/"),
    known("java", "Java 20 and newer: `jdk.httpclient.keepalive.timeout`", 30)
        .source("https://docs.oracle.com/en/java/javase/21/docs/api/java.net.http/module-summary.html"),
    known("nginx", "nginx: `keepalive_timeout` of an `upstream`", 60)
        .source("https://nginx.org/en/docs/http/ngx_http_upstream_module.html#keepalive_timeout"),
    known("node", "Node 19 and newer: `http.globalAgent`", 5).source("https://nodejs.org/api/http.html#httpglobalagent"),
    known("okhttp", "OkHttp: `ConnectionPool`", 300)
        .source("https://square.github.io/okhttp/5.x/okhttp/okhttp3/-connection-pool/"),
    known("reqwest", "reqwest: `pool_idle_timeout`", 90)
        .source("https://docs.rs/reqwest/latest/reqwest/struct.ClientBuilder.html#method.pool_idle_timeout"),
    known("traefik", "Traefik: `forwardingTimeouts.idleConnTimeout`", 90)
        .source("https://doc.traefik.io/traefik/routing/services/#transport-configuration"),
    known("undici", "undici, which is Node's `fetch`: `keepAliveTimeout`", 4)
        .source("https://undici.nodejs.org/#/docs/api/Client"),
];

/// The known client with this name, in upper or lower case.
#[must_use]
pub fn known_client(name: &str) -> Option<&'static KnownClient> {
    KNOWN_CLIENTS.iter().find(|client| client.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn client(n: u64) -> ClientIdle {
        ClientIdle::After(ms(n))
    }

    #[test]
    fn a_client_has_to_close_a_second_before_its_server() {
        for (idle, server, expected) in [
            (client(4_000), Idled::Closed(ms(5_000)), Verdict::Safe),
            (client(4_000), Idled::Closed(ms(4_990)), Verdict::Safe),
            (client(4_000), Idled::Closed(ms(4_700)), Verdict::Trap),
            (client(60_000), Idled::Closed(ms(6_000)), Verdict::Trap),
            (ClientIdle::Never, Idled::Closed(ms(3_600_000)), Verdict::Trap),
            (client(90_000), Idled::Open(ms(91_000)), Verdict::Safe),
            (client(90_000), Idled::Open(ms(90_900)), Verdict::Undecided),
            (ClientIdle::Never, Idled::Open(ms(90_000)), Verdict::Undecided),
        ] {
            assert_eq!(verdict(idle, server), expected, "{idle} {server}");
        }
    }

    #[test]
    fn the_client_is_lowered_unless_little_would_be_left() {
        let change = |side, n| Change { side, to: ms(n) };
        assert_eq!(changes(client(60_000), ms(6_001)), [change(Side::Client, 5_000), change(Side::Server, 61_000)]);
        assert_eq!(changes(client(60_500), ms(4_998)), [change(Side::Client, 4_000), change(Side::Server, 62_000)]);
        assert_eq!(changes(client(60_000), ms(2_000)), [change(Side::Server, 61_000), change(Side::Client, 1_000)]);
        assert_eq!(changes(client(60_000), ms(1_000)), [change(Side::Server, 61_000)]);
        assert_eq!(changes(ClientIdle::Never, ms(30_000)), [change(Side::Client, 29_000)]);
    }

    #[test]
    fn what_is_advised_ends_the_trap() {
        for (idle, server) in [(60_000, 6_001), (4_000, 4_700), (90_000, 2_000), (1_500, 1_600), (5_000, 5_749)] {
            assert_eq!(verdict(client(idle), Idled::Closed(ms(server))), Verdict::Trap, "{idle} {server}");
            for Change { side, to } in changes(client(idle), ms(server)) {
                let (idle, server) = match side {
                    Side::Client => (ClientIdle::After(to), ms(server)),
                    Side::Server => (client(idle), to),
                };
                assert_eq!(verdict(idle, Idled::Closed(server)), Verdict::Safe, "{side:?} {to:?}");
            }
        }
    }

    #[test]
    fn known_clients_have_one_name_each_in_order() {
        assert!(KNOWN_CLIENTS.is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(known_client("Go").map(|client| client.idle), Some(client(90_000)));
    }
}
