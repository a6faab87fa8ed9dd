//! The operator's own connections, by provider: statistics, health, and closing them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State},
    http::HeaderMap,
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    answer::{Answer, Error},
    gate::{Deed, Sight},
};
use crate::pool::{Closed, Protocol, Statistics};

/// Maximum time until the body of a request has arrived.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a body in bytes.
const MAX_BODY: usize = 4096;
/// Reuse rates in percent: below the first is a problem, above the second is good.
const LEAST_REUSE: f64 = 70.0;
const GOOD_REUSE: f64 = 90.0;
/// Minimum number of requests before a rate is judged.
const ENOUGH: u64 = 20;
/// Maximum total of idle connections, unless the nodes of a provider need more.
const MOST_IDLE: u64 = 50;
/// Average age of connections below which they are opened too often.
const YOUNG: Duration = Duration::from_secs(10);

/// Totals of all providers.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Number of providers to which the operator has sent requests.
    pub total_providers: u64,
    /// Number of active connections: those with a request, and those being opened.
    pub total_active_connections: u64,
    /// Number of idle connections.
    pub total_idle_connections: u64,
    /// Number of requests since the first request to each provider.
    pub total_requests: u64,
    /// Requests on a reused connection, in percent.
    pub overall_reuse_rate: f64,
}

/// Statistics of all providers together, and of each provider.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
pub struct Stats {
    /// Totals of all providers.
    #[serde(flatten)]
    pub overview: Overview,
    /// One entry for each provider and protocol.
    pub providers: Vec<Provider>,
}

/// Statistics of one provider over one protocol.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Provider {
    /// Name of the provider: `namespace/name` of a policy for its target, `kubernetes` for the API server, or `kubernetes-lease`
    /// for the connections of the Lease.
    pub provider: String,
    /// Protocol of the connections.
    pub protocol: Spoken,
    /// Number of active connections: those with a request, and those being opened.
    pub active_connections: u64,
    /// Number of idle connections.
    pub idle_connections: u64,
    /// Number of requests since the first request to the provider.
    pub total_requests: u64,
    /// Number of these requests that reused a connection.
    pub reuse_count: u64,
    /// Requests that reused a connection, in percent.
    pub reuse_rate: f64,
}

/// Names of the providers.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[schemars(inline)]
pub struct Providers(pub Vec<String>);

/// Protocol of the connections.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(rename = "Protocol")]
#[serde(rename_all = "lowercase")]
pub enum Spoken {
    /// HTTP over TCP, without TLS.
    Http,
    /// HTTP over TLS.
    Https,
}

/// Health of the operator's connections.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Whether there are no issues.
    pub healthy: bool,
    /// Number of connections.
    pub total_connections: u64,
    /// Number of active connections: those with a request, and those being opened.
    pub active_connections: u64,
    /// Number of idle connections.
    pub idle_connections: u64,
    /// Requests on a reused connection, in percent.
    pub reuse_rate: f64,
    /// Issues, each as a sentence.
    pub issues: Vec<String>,
}

/// Details of the connections of all providers.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
pub struct Details {
    /// Totals of all providers.
    pub overview: Overview,
    /// One entry for each provider and protocol.
    pub providers: Vec<Detail>,
}

/// Details of one provider over one protocol.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[schemars(rename = "ProviderDetails")]
pub struct Detail {
    /// Name of the provider: `namespace/name` of a policy for its target, `kubernetes` for the API server, or `kubernetes-lease`
    /// for the connections of the Lease.
    pub provider: String,
    /// Protocol of the connections.
    pub protocol: Spoken,
    /// Number of connections by state.
    pub connections: Connections,
    /// Counters of requests and connections.
    pub performance: Performance,
    /// State of the provider.
    pub status: Standing,
    /// Number of closed connections by reason. Reasons that have not occurred are absent.
    pub closed: BTreeMap<String, u64>,
    /// Limits of the connections.
    pub settings: Bounds,
}

/// Number of connections.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[schemars(rename = "ConnectionCounts")]
pub struct Connections {
    /// Connections with a request, and connections being opened.
    pub active: u64,
    /// Idle connections.
    pub idle: u64,
    /// Active and idle connections together.
    pub total: u64,
}

/// Counters of requests and connections.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Performance {
    /// Number of requests since the first request to the provider.
    pub total_requests: u64,
    /// Number of these requests that reused a connection.
    pub reuse_count: u64,
    /// Requests that reused a connection, in percent.
    pub reuse_rate: f64,
    /// Average age of the open connections, in seconds; 0 if there are none.
    pub average_connection_age: f64,
    /// Number of opened connections.
    pub opened: u64,
    /// Number of opened connections with a TLS handshake.
    pub handshakes: u64,
    /// Number of connections that could not be opened.
    pub refused: u64,
    /// Number of requests that are waiting for a connection.
    pub waiting: u64,
    /// Number of requests that had to wait for a connection.
    pub waits: u64,
    /// Average time that these requests waited, in milliseconds; 0 if none had to wait.
    pub average_wait: f64,
}

/// State of a provider.
#[derive(Serialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(rename = "ProviderState")]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Requests are waiting for a connection.
    Saturated,
    /// At least one connection is active.
    Active,
    /// All connections are idle.
    Idle,
    /// There is no connection.
    Closed,
}

/// Limits of a provider's connections, with the names of agentkeepalive. Times are in milliseconds.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[schemars(rename = "PoolLimits")]
#[serde(rename_all = "camelCase")]
pub struct Bounds {
    /// Maximum number of open connections.
    pub max_sockets: u32,
    /// Maximum number of idle connections.
    pub max_free_sockets: u32,
    /// Maximum time of a request.
    pub timeout: u64,
    /// Whether a connection can serve more than one request.
    pub keep_alive: bool,
    /// Time without traffic before TCP sends a keep-alive probe.
    pub keep_alive_msecs: u64,
    /// Maximum time that a connection stays idle.
    pub free_socket_timeout: u64,
    /// Maximum age of a connection.
    pub max_socket_lifetime: u64,
}

/// Query for one provider.
#[derive(Deserialize, JsonSchema, Debug)]
#[schemars(rename = "ProviderQuery")]
pub struct Asked {
    /// Protocol of the connections. Absent: the protocol with more requests.
    pub protocol: Option<Spoken>,
}

/// Request to close the connections of a provider.
#[derive(Deserialize, JsonSchema, Debug, Default)]
#[schemars(rename = "DestroyRequest")]
#[serde(deny_unknown_fields)]
pub struct Destroy {
    /// Protocol of the connections to close. Absent: both protocols.
    pub protocol: Option<Spoken>,
}

/// Result of closing the connections of a provider.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
pub struct Destroyed {
    /// Name of the provider.
    pub provider: String,
    /// Number of idle connections that were closed.
    pub closed: u64,
    /// Number of active connections, which are closed after their current request.
    pub closing: u64,
}

impl From<Protocol> for Spoken {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http => Self::Http,
            Protocol::Https => Self::Https,
        }
    }
}

impl From<Spoken> for Protocol {
    fn from(spoken: Spoken) -> Self {
        match spoken {
            Spoken::Http => Self::Http,
            Spoken::Https => Self::Https,
        }
    }
}

/// Percentage, rounded to two decimals; 0 if `whole` is 0.
#[allow(clippy::cast_precision_loss)] // Counts below 2^53.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64 * 10_000.0).round() / 100.0 }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const fn active(statistics: &Statistics) -> u64 {
    statistics.tally.active + statistics.tally.connecting
}

fn sum(all: &[Statistics], of: impl Fn(&Statistics) -> u64) -> u64 {
    all.iter().map(of).sum()
}

impl Overview {
    fn of(all: &[Statistics]) -> Self {
        let names: std::collections::BTreeSet<_> = all.iter().map(|one| &one.provider).collect();
        let requests = sum(all, |one| one.tally.requests);
        Self {
            total_providers: names.len() as u64,
            total_active_connections: sum(all, active),
            total_idle_connections: sum(all, |one| one.tally.idle),
            total_requests: requests,
            overall_reuse_rate: percent(sum(all, |one| one.tally.reuses), requests),
        }
    }
}

impl From<&Statistics> for Provider {
    fn from(one: &Statistics) -> Self {
        Self {
            provider: one.provider.to_string(),
            protocol: one.protocol.into(),
            active_connections: active(one),
            idle_connections: one.tally.idle,
            total_requests: one.tally.requests,
            reuse_count: one.tally.reuses,
            reuse_rate: percent(one.tally.reuses, one.tally.requests),
        }
    }
}

impl From<&Statistics> for Detail {
    #[allow(clippy::cast_precision_loss)] // Nanoseconds below 2^53 are a hundred days.
    fn from(one: &Statistics) -> Self {
        let Statistics { provider, protocol, settings, tally, average_age } = one;
        let standing = match (tally.waiting, active(one), tally.idle) {
            (1.., ..) => Standing::Saturated,
            (_, 1.., _) => Standing::Active,
            (_, _, 1..) => Standing::Idle,
            _ => Standing::Closed,
        };
        let waited = if tally.waits == 0 { 0.0 } else { tally.waited as f64 / tally.waits as f64 / 1e6 };
        let closed = Closed::ALL.into_iter().map(|why| (why.name().to_owned(), tally.closed(why))).filter(|(_, n)| *n > 0);
        Self {
            provider: provider.to_string(),
            protocol: (*protocol).into(),
            connections: Connections { active: active(one), idle: tally.idle, total: tally.open() },
            performance: Performance {
                total_requests: tally.requests,
                reuse_count: tally.reuses,
                reuse_rate: percent(tally.reuses, tally.requests),
                average_connection_age: average_age.unwrap_or_default().as_secs_f64(),
                opened: tally.opened,
                handshakes: tally.handshakes,
                refused: tally.refused,
                waiting: tally.waiting,
                waits: tally.waits,
                average_wait: waited,
            },
            status: standing,
            closed: closed.collect(),
            settings: Bounds {
                max_sockets: settings.max_sockets,
                max_free_sockets: settings.max_free_sockets,
                timeout: millis(settings.timeout),
                keep_alive: settings.keep_alive,
                keep_alive_msecs: millis(settings.keep_alive_delay),
                free_socket_timeout: millis(settings.free_socket_timeout),
                max_socket_lifetime: millis(settings.max_socket_lifetime),
            },
        }
    }
}

/// Returns the statistics of all providers.
#[must_use]
pub fn stats(all: &[Statistics]) -> Stats {
    Stats { overview: Overview::of(all), providers: all.iter().map(Provider::from).collect() }
}

/// Returns the details of all providers.
#[must_use]
pub fn details(all: &[Statistics]) -> Details {
    Details { overview: Overview::of(all), providers: all.iter().map(Detail::from).collect() }
}

/// Returns the health of the connections. The reuse rate after only a few requests, and the age of connections in a young
/// process, are not judged.
#[must_use]
pub fn health(all: &[Statistics], up: Duration) -> Health {
    let overview = Overview::of(all);
    let mut issues = Vec::new();
    if overview.total_requests >= ENOUGH && overview.overall_reuse_rate < LEAST_REUSE {
        issues.push(format!(
            "Only {:.0}% of the requests reuse a connection; less than {LEAST_REUSE:.0}% is too low, more than {GOOD_REUSE:.0}% is good",
            overview.overall_reuse_rate
        ));
    }
    // A fleet needs one connection for each node, and the limits of its provider are set accordingly.
    let needed = sum(all, |one| {
        let usual = crate::pool::Settings::default().max_free_sockets;
        u64::from(one.settings.max_free_sockets.saturating_sub(usual))
    });
    let most = MOST_IDLE + needed;
    if overview.total_idle_connections > most {
        issues.push(format!(
            "{} connections are idle; more than {most} idle connections cost more than they save",
            overview.total_idle_connections
        ));
    }
    for one in all {
        let name = || format!("{} over {}", one.provider, one.protocol.name());
        if active(one) >= u64::from(one.settings.max_sockets) {
            issues.push(format!(
                "{}: all {} connections are in use, and {} requests are waiting",
                name(),
                one.settings.max_sockets,
                one.tally.waiting
            ));
        }
        if let Some(age) = one.average_age.filter(|age| up >= YOUNG * 6 && one.tally.requests >= ENOUGH && *age < YOUNG) {
            let seconds = age.as_secs_f64();
            issues.push(format!("{}: the average age of the connections is {seconds:.1}s; they are closed too early", name()));
        }
    }
    Health {
        healthy: issues.is_empty(),
        total_connections: overview.total_active_connections + overview.total_idle_connections,
        active_connections: overview.total_active_connections,
        idle_connections: overview.total_idle_connections,
        reuse_rate: overview.overall_reuse_rate,
        issues,
    }
}

/// Returns the namespace of a provider that is the target of a policy.
fn namespace(provider: &str) -> Option<&str> {
    provider.split_once('/').map(|(namespace, _)| namespace)
}

impl Api {
    /// Returns the statistics that the caller may see.
    pub(super) async fn visible(&self, headers: &HeaderMap) -> Result<Vec<Statistics>, Error> {
        let caller = self.gate.caller(headers).await?;
        let all = self.context.pool.statistics();
        let sight = self.gate.sight(caller.as_ref(), self.namespaces(&all)).await?;
        Ok(seen(all, &sight))
    }

    fn namespaces(&self, all: &[Statistics]) -> std::collections::BTreeSet<String> {
        let of_providers = all.iter().filter_map(|one| namespace(&one.provider)).map(str::to_owned);
        of_providers.chain(self.policy_namespaces()).collect()
    }
}

fn seen(mut all: Vec<Statistics>, sight: &Sight) -> Vec<Statistics> {
    all.retain(|one| sight.has(namespace(&one.provider)));
    all
}

/// GET /api/connections/stats
pub async fn get_stats(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<Answer<Stats>>, Error> {
    Ok(Answer::of(stats(&api.visible(&headers).await?)))
}

/// GET /api/connections/providers
pub async fn get_providers(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<Answer<Providers>>, Error> {
    let mut names: Vec<_> = api.visible(&headers).await?.into_iter().map(|one| one.provider.to_string()).collect();
    names.dedup();
    Ok(Answer::of(Providers(names)))
}

/// GET /api/connections/health
pub async fn get_health(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<Answer<Health>>, Error> {
    Ok(Answer::of(health(&api.visible(&headers).await?, api.since.elapsed())))
}

/// GET /api/connections/details
pub async fn get_details(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<Answer<Details>>, Error> {
    Ok(Answer::of(details(&api.visible(&headers).await?)))
}

/// GET /api/connections/provider/{provider}
pub async fn get_provider(
    State(api): State<Arc<Api>>,
    Path(provider): Path<String>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<Json<Answer<Provider>>, Error> {
    let caller = api.gate.caller(&headers).await?;
    // The check comes first, so that a caller without the right does not learn which providers exist.
    api.gate.check(caller.as_ref(), Deed::Get, namespace(&provider)).await?;
    let all = api.context.pool.statistics();
    let wanted = all.iter().filter(|one| *one.provider == *provider && asked.protocol.is_none_or(|p| p == one.protocol.into()));
    let found = wanted.max_by_key(|one| one.tally.requests).ok_or_else(|| unknown(&provider))?;
    Ok(Answer::of(Provider::from(found)))
}

/// POST /api/connections/destroy/{provider}
pub async fn post_destroy(
    State(api): State<Arc<Api>>,
    Path(provider): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Answer<Destroyed>>, Error> {
    let caller = api.gate.caller(&headers).await?;
    api.gate.check(caller.as_ref(), Deed::Destroy, namespace(&provider)).await?;
    let body = read_body(body).await?;
    let Destroy { protocol } = if body.is_empty() {
        Destroy::default()
    } else {
        let form = || Error::Invalid("The body must be {}, {\"protocol\": \"http\"} or {\"protocol\": \"https\"}".to_owned());
        serde_json::from_slice(&body).map_err(|_| form())?
    };
    let (closed, closing) = api.context.pool.destroy(&provider, protocol.map(Into::into)).ok_or_else(|| unknown(&provider))?;
    let by = caller.as_ref().map_or("anonymous (demonstration)", |caller| caller.name());
    tracing::info!(provider, by, closed, closing, "closed connections");
    Ok(Answer::of(Destroyed { provider, closed, closing }))
}

/// Reads the body of a request whose caller is known.
async fn read_body(body: Body) -> Result<Bytes, Error> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Err(_) => Err(Error::Invalid(format!("The body did not arrive within {}s", BODY_TIMEOUT.as_secs()))),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Error::TooLarge),
        Ok(Err(_)) => Err(Error::Invalid("The connection broke off before the end of the body".to_owned())),
    }
}

fn unknown(provider: &str) -> Error {
    let provider: String = provider.chars().take(160).collect();
    Error::NotFound(format!(
        "Provider {provider:?} has no connections of this kind; /api/connections/providers lists the names, and a / in a name is written %2F"
    ))
}
