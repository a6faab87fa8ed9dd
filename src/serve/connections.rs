//! The API over the operator's own connections: statistics by provider, and closing them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, Uri},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    answer::{ApiResponse, Error},
    gate::Verb,
};
use crate::pool::{Closed, Protocol, Statistics};

/// Longest time for the body of a request to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a request's body.
const MAX_BODY: usize = 4096;
/// Reuse rate in percent: below the first one is an issue, above the second one is good.
const MIN_REUSE: f64 = 70.0;
const GOOD_REUSE: f64 = 90.0;
/// Requests below which a rate is not judged.
const MIN_REQUESTS: u64 = 20;
/// Idle connections above which there is an issue, in addition to those that providers are sized for.
const MAX_IDLE: u64 = 50;
/// An average age below this means that connections are opened too often.
const YOUNG: Duration = Duration::from_secs(10);

/// Totals over all providers.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Providers with at least one request.
    pub total_providers: u64,
    /// Connections that are in use or being opened.
    pub total_active_connections: u64,
    /// Connections that wait for a request.
    pub total_idle_connections: u64,
    /// Requests since the first request of each provider.
    pub total_requests: u64,
    /// Share of requests on a connection that had served one before, in percent.
    pub overall_reuse_rate: f64,
}

/// Totals over all providers, and the figures of each one.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
pub struct Stats {
    /// Totals over all providers.
    #[serde(flatten)]
    pub overview: Overview,
    /// Figures by provider and protocol.
    pub providers: Vec<Provider>,
}

/// Figures of one provider over one protocol.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Provider {
    /// Name of the provider: `namespace/name` of a policy for its target, `kubernetes` for the API server, or `kubernetes-lease`
    /// for the connections of the Lease.
    pub provider: String,
    /// Protocol of the connections.
    pub protocol: Protocol,
    /// Connections that are in use or being opened.
    pub active_connections: u64,
    /// Connections that wait for a request.
    pub idle_connections: u64,
    /// Requests since the provider's first one.
    pub total_requests: u64,
    /// Requests on a connection that had served one before.
    pub reuse_count: u64,
    /// `reuseCount` as a percentage of `totalRequests`.
    pub reuse_rate: f64,
}

/// Names of the providers.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[schemars(inline)]
pub struct Providers(pub Vec<String>);

/// Whether the operator's connections have issues.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Whether there are no issues.
    pub healthy: bool,
    /// All connections.
    pub total_connections: u64,
    /// Connections that are in use or being opened.
    pub active_connections: u64,
    /// Connections that wait for a request.
    pub idle_connections: u64,
    /// Share of requests on a connection that had served one before, in percent.
    pub reuse_rate: f64,
    /// The issues, as sentences.
    pub issues: Vec<String>,
}

/// All figures of the connections.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
pub struct Details {
    /// Totals over all providers.
    pub overview: Overview,
    /// All figures by provider and protocol.
    pub providers: Vec<Detail>,
}

/// All figures of one provider over one protocol.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[schemars(rename = "ProviderDetails")]
pub struct Detail {
    /// Name of the provider: `namespace/name` of a policy for its target, `kubernetes` for the API server, or `kubernetes-lease`
    /// for the connections of the Lease.
    pub provider: String,
    /// Protocol of the connections.
    pub protocol: Protocol,
    /// Connections that exist now.
    pub connections: Connections,
    /// Counters and averages.
    pub performance: Performance,
    /// State of the provider.
    pub status: ProviderState,
    /// Closed connections by reason; reasons that did not occur are absent.
    pub closed: BTreeMap<String, u64>,
    /// Settings of the connections.
    pub settings: Bounds,
}

/// Connections that exist now.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[schemars(rename = "ConnectionCounts")]
pub struct Connections {
    /// Connections that are in use or being opened.
    pub active: u64,
    /// Connections that wait for a request.
    pub idle: u64,
    /// All connections.
    pub total: u64,
}

/// Counters and averages of one provider over one protocol.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Performance {
    /// Requests since the provider's first one.
    pub total_requests: u64,
    /// Requests on a connection that had served one before.
    pub reuse_count: u64,
    /// `reuseCount` as a percentage of `totalRequests`.
    pub reuse_rate: f64,
    /// Average age of the open connections, in seconds; 0 if there are none.
    pub average_connection_age: f64,
    /// Connections opened.
    pub opened: u64,
    /// Connections opened with a TLS handshake.
    pub handshakes: u64,
    /// Connections that could not be opened.
    pub refused: u64,
    /// Number of requests that are waiting for a connection.
    pub waiting: u64,
    /// Requests that had to wait for a connection.
    pub waits: u64,
    /// Average wait for a connection, in milliseconds; 0 if no request had to wait.
    pub average_wait: f64,
}

/// State of a provider.
#[derive(Serialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(rename = "ProviderState")]
#[serde(rename_all = "lowercase")]
pub enum ProviderState {
    /// Requests are waiting for a connection.
    Saturated,
    /// At least one connection is active.
    Active,
    /// All connections are idle.
    Idle,
    /// There are no connections.
    Closed,
}

/// Settings of a provider's connections. The names are agentkeepalive's; times are in milliseconds.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[schemars(rename = "PoolLimits")]
#[serde(rename_all = "camelCase")]
pub struct Bounds {
    /// Most connections at the same time.
    pub max_sockets: u32,
    /// Most idle connections.
    pub max_free_sockets: u32,
    /// Longest time of a request.
    pub timeout: u64,
    /// Whether a connection can serve more than one request.
    pub keep_alive: bool,
    /// Silence after which TCP keep-alive begins to probe the other side.
    pub keep_alive_msecs: u64,
    /// Longest time that a connection stays idle.
    pub free_socket_timeout: u64,
    /// Greatest age of a connection.
    pub max_socket_lifetime: u64,
}

/// Selects one of a provider's two protocols.
#[derive(Deserialize, JsonSchema, Debug)]
#[schemars(rename = "ProviderQuery")]
pub struct Asked {
    /// Protocol of the figures; by default the one with more requests.
    pub protocol: Option<Protocol>,
}

/// The body of a `destroy` request.
#[derive(Deserialize, JsonSchema, Debug, Default)]
#[schemars(rename = "DestroyRequest")]
#[serde(deny_unknown_fields)]
pub struct Destroy {
    /// Closes only connections of this protocol; by default all.
    pub protocol: Option<Protocol>,
}

/// The result of a `destroy` request.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
pub struct Destroyed {
    /// The provider's name.
    pub provider: String,
    /// Number of idle connections that were closed.
    pub closed: u64,
    /// Connections in use, which close when their requests end.
    pub closing: u64,
}

/// A percentage, rounded to hundredths; 0 if `whole` is 0.
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
            protocol: one.protocol,
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
            (1.., ..) => ProviderState::Saturated,
            (_, 1.., _) => ProviderState::Active,
            (_, _, 1..) => ProviderState::Idle,
            _ => ProviderState::Closed,
        };
        let waited = if tally.waits == 0 { 0.0 } else { tally.waited as f64 / tally.waits as f64 / 1e6 };
        let closed = Closed::ALL.into_iter().map(|why| (why.name().to_owned(), tally.closed(why))).filter(|(_, n)| *n > 0);
        Self {
            provider: provider.to_string(),
            protocol: *protocol,
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

/// Totals over all providers, and the figures of each one.
#[must_use]
pub fn stats(all: &[Statistics]) -> Stats {
    Stats { overview: Overview::of(all), providers: all.iter().map(Provider::from).collect() }
}

/// All figures of the connections.
#[must_use]
pub fn details(all: &[Statistics]) -> Details {
    Details { overview: Overview::of(all), providers: all.iter().map(Detail::from).collect() }
}

/// The issues of the connections. Rates of few requests are not judged, nor is the age of connections soon after the
/// start.
#[must_use]
pub fn health(all: &[Statistics], up: Duration) -> Health {
    let overview = Overview::of(all);
    let mut issues = Vec::new();
    if overview.total_requests >= MIN_REQUESTS && overview.overall_reuse_rate < MIN_REUSE {
        issues.push(format!(
            "Only {:.0}% of the requests reuse a connection; less than {MIN_REUSE:.0}% is too low, more than {GOOD_REUSE:.0}% is good",
            overview.overall_reuse_rate
        ));
    }
    // A fleet needs one idle connection for each node, and its provider is sized for that.
    let needed = sum(all, |one| {
        let usual = crate::pool::PoolSettings::default().max_free_sockets;
        u64::from(one.settings.max_free_sockets.saturating_sub(usual))
    });
    let most = MAX_IDLE + needed;
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
        if let Some(age) = one.average_age.filter(|age| up >= YOUNG * 6 && one.tally.requests >= MIN_REQUESTS && *age < YOUNG) {
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

/// The namespace of a provider that belongs to a policy's target.
fn namespace(provider: &str) -> Option<&str> {
    provider.split_once('/').map(|(namespace, _)| namespace)
}

impl Api {
    /// Fails if another replica acts for the policy of this provider, and its URL is known.
    async fn here(&self, provider: &str, asked: &Uri) -> Result<(), Error> {
        let Some(namespace) = namespace(provider) else { return Ok(()) };
        match self.acting(namespace, asked).await {
            Err(elsewhere @ Error::Elsewhere(_)) => Err(elsewhere),
            _ => Ok(()),
        }
    }

    /// The statistics that a caller may see.
    pub(super) async fn visible(&self, headers: &HeaderMap) -> Result<Vec<Statistics>, Error> {
        let caller = self.gate.caller(headers).await?;
        let mut all = self.actors.any().pool.statistics();
        let of_providers = all.iter().filter_map(|one| namespace(&one.provider)).map(str::to_owned);
        let sight = self.gate.sight(caller.as_ref(), of_providers.chain(self.policy_namespaces()).collect()).await?;
        all.retain(|one| sight.has(namespace(&one.provider)));
        Ok(all)
    }
}

/// GET /api/connections/stats
pub async fn get_stats(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<ApiResponse<Stats>>, Error> {
    Ok(ApiResponse::of(stats(&api.visible(&headers).await?)))
}

/// GET /api/connections/providers
pub async fn get_providers(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<ApiResponse<Providers>>, Error> {
    let mut names: Vec<_> = api.visible(&headers).await?.into_iter().map(|one| one.provider.to_string()).collect();
    names.dedup();
    Ok(ApiResponse::of(Providers(names)))
}

/// GET /api/connections/health
pub async fn get_health(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<ApiResponse<Health>>, Error> {
    Ok(ApiResponse::of(health(&api.visible(&headers).await?, api.since.elapsed())))
}

/// GET /api/connections/details
pub async fn get_details(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<ApiResponse<Details>>, Error> {
    Ok(ApiResponse::of(details(&api.visible(&headers).await?)))
}

/// GET /api/connections/provider/{provider}
pub async fn get_provider(
    State(api): State<Arc<Api>>,
    Path(provider): Path<String>,
    Query(wanted): Query<Asked>,
    asked: Uri,
    headers: HeaderMap,
) -> Result<Json<ApiResponse<Provider>>, Error> {
    let caller = api.gate.caller(&headers).await?;
    // Check the right first, so that a caller without it does not learn which providers exist.
    api.gate.check(caller.as_ref(), Verb::Get, namespace(&provider)).await?;
    api.here(&provider, &asked).await?;
    let all = api.actors.any().pool.statistics();
    let all = all.iter().filter(|one| *one.provider == *provider && wanted.protocol.is_none_or(|p| p == one.protocol));
    let found = all.max_by_key(|one| one.tally.requests).ok_or_else(|| unknown(&provider))?;
    Ok(ApiResponse::of(Provider::from(found)))
}

/// POST /api/connections/destroy/{provider}
pub async fn post_destroy(
    State(api): State<Arc<Api>>,
    Path(provider): Path<String>,
    asked: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ApiResponse<Destroyed>>, Error> {
    let caller = api.gate.caller(&headers).await?;
    api.gate.check(caller.as_ref(), Verb::Destroy, namespace(&provider)).await?;
    api.here(&provider, &asked).await?;
    let body = read_body(body).await?;
    let Destroy { protocol } = if body.is_empty() {
        Destroy::default()
    } else {
        let form = || Error::Invalid("The body must be {}, {\"protocol\": \"http\"} or {\"protocol\": \"https\"}".to_owned());
        serde_json::from_slice(&body).map_err(|_| form())?
    };
    let (closed, closing) = api.actors.any().pool.destroy(&provider, protocol).ok_or_else(|| unknown(&provider))?;
    let by = caller.as_ref().map_or("anonymous (demonstration)", |caller| caller.name());
    tracing::info!(provider, by, closed, closing, "closed connections");
    Ok(ApiResponse::of(Destroyed { provider, closed, closing }))
}

/// Reads a request's body; the caller is authorized by then.
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
