//! The operator's own connections, by provider: what is said of them, and how they are closed.

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

/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a body.
const MAX_BODY: usize = 4096;
/// Below this reuse rate (percent) something is amiss; above the other all is well.
const LEAST_REUSE: f64 = 70.0;
const GOOD_REUSE: f64 = 90.0;
/// Requests before a rate says anything.
const ENOUGH: u64 = 20;
/// Idle connections in all, where no provider's nodes need more.
const MOST_IDLE: u64 = 50;
/// Connections that do not grow older than this are opened too often.
const YOUNG: Duration = Duration::from_secs(10);

/// All providers together.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Providers that were asked.
    pub total_providers: u64,
    /// Connections with a request on them, or being made.
    pub total_active_connections: u64,
    /// Connections that wait for one.
    pub total_idle_connections: u64,
    /// Requests since each provider was first asked.
    pub total_requests: u64,
    /// Requests over a connection that had served before, percent.
    pub overall_reuse_rate: f64,
}

/// All providers together, and each.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
pub struct Stats {
    /// All together.
    #[serde(flatten)]
    pub overview: Overview,
    /// Each, by protocol.
    pub providers: Vec<Provider>,
}

/// One provider over one protocol.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Provider {
    /// A policy's target as `namespace/name`, or `kubernetes`.
    pub provider: String,
    /// What is spoken.
    pub protocol: Spoken,
    /// Connections with a request on them, or being made.
    pub active_connections: u64,
    /// Connections that wait for one.
    pub idle_connections: u64,
    /// Requests since it was first asked.
    pub total_requests: u64,
    /// Those of them over a connection that had served before.
    pub reuse_count: u64,
    /// The same in percent.
    pub reuse_rate: f64,
}

/// What is spoken.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Spoken {
    /// HTTP over TCP.
    Http,
    /// HTTP over TLS.
    Https,
}

/// Whether connections are used as they should be.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Whether there is no issue.
    pub healthy: bool,
    /// Connections there are.
    pub total_connections: u64,
    /// Those with a request on them, or being made.
    pub active_connections: u64,
    /// Those that wait for one.
    pub idle_connections: u64,
    /// Requests over a connection that had served before, percent.
    pub reuse_rate: f64,
    /// What is amiss, in sentences.
    pub issues: Vec<String>,
}

/// Everything there is to know of the connections.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
pub struct Details {
    /// All together.
    pub overview: Overview,
    /// Each, by protocol.
    pub providers: Vec<Detail>,
}

/// One provider over one protocol, in full.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
pub struct Detail {
    /// A policy's target as `namespace/name`, or `kubernetes`.
    pub provider: String,
    /// What is spoken.
    pub protocol: Spoken,
    /// What there is.
    pub connections: Connections,
    /// What was done.
    pub performance: Performance,
    /// How it stands.
    pub status: Standing,
    /// Connections that were closed, by reason; reasons that did not occur are absent.
    pub closed: BTreeMap<String, u64>,
    /// What bounds them.
    pub settings: Bounds,
}

/// Connections there are.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
pub struct Connections {
    /// With a request on them, or being made.
    pub active: u64,
    /// Waiting for one.
    pub idle: u64,
    /// Both.
    pub total: u64,
}

/// What was done.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Performance {
    /// Requests since it was first asked.
    pub total_requests: u64,
    /// Those of them over a connection that had served before.
    pub reuse_count: u64,
    /// The same in percent.
    pub reuse_rate: f64,
    /// How old the open connections are on the average, seconds; 0 where there are none.
    pub average_connection_age: f64,
    /// Connections made.
    pub opened: u64,
    /// Those of them with a TLS handshake.
    pub handshakes: u64,
    /// Connections that could not be made.
    pub refused: u64,
    /// Requests that wait for a connection now.
    pub waiting: u64,
    /// Requests that had to wait for one.
    pub waits: u64,
    /// How long they waited on the average, milliseconds; 0 where none had to.
    pub average_wait: f64,
}

/// How a provider stands.
#[derive(Serialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Requests wait for a connection.
    Saturated,
    /// Connections are in use.
    Active,
    /// Connections wait for requests.
    Idle,
    /// There is no connection.
    Closed,
}

/// What bounds a provider's connections, by agentkeepalive's names; times in milliseconds.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Bounds {
    /// Connections at once.
    pub max_sockets: u32,
    /// Idle connections that are kept.
    pub max_free_sockets: u32,
    /// The longest that a request may take.
    pub timeout: u64,
    /// Whether a connection serves more than one request.
    pub keep_alive: bool,
    /// How long a connection is silent before TCP asks whether the other side is still there.
    pub keep_alive_msecs: u64,
    /// How long an idle connection is kept.
    pub free_socket_timeout: u64,
    /// How old a connection may become.
    pub max_socket_lifetime: u64,
}

/// Which of a provider's two protocols is meant.
#[derive(Deserialize, JsonSchema, Debug)]
pub struct Asked {
    /// By default the one that was asked more.
    pub protocol: Option<Spoken>,
}

/// What `destroy` is told.
#[derive(Deserialize, JsonSchema, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Destroy {
    /// Only the connections that speak this; by default all.
    pub protocol: Option<Spoken>,
}

/// What `destroy` has done.
#[derive(Serialize, JsonSchema, Debug, PartialEq)]
pub struct Destroyed {
    /// The provider.
    pub provider: String,
    /// Idle connections that were closed.
    pub closed: u64,
    /// Connections in use, which are closed when they are done.
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

/// Percent, to a hundredth; 0 of nothing is 0.
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

/// All together, and each.
#[must_use]
pub fn stats(all: &[Statistics]) -> Stats {
    Stats { overview: Overview::of(all), providers: all.iter().map(Provider::from).collect() }
}

/// Everything.
#[must_use]
pub fn details(all: &[Statistics]) -> Details {
    Details { overview: Overview::of(all), providers: all.iter().map(Detail::from).collect() }
}

/// What is amiss. A rate of a few requests, and the age of connections that could not have grown older, say nothing.
#[must_use]
pub fn health(all: &[Statistics], up: Duration) -> Health {
    let overview = Overview::of(all);
    let mut issues = Vec::new();
    if overview.total_requests >= ENOUGH && overview.overall_reuse_rate < LEAST_REUSE {
        issues.push(format!(
            "{:.0} % of requests reuse a connection; less than {LEAST_REUSE:.0} % is too few, more than {GOOD_REUSE:.0} % is good",
            overview.overall_reuse_rate
        ));
    }
    // A fleet needs one for each node, and its provider is sized for that.
    let needed = sum(all, |one| {
        let usual = crate::pool::Settings::default().max_free_sockets;
        u64::from(one.settings.max_free_sockets.saturating_sub(usual))
    });
    let most = MOST_IDLE + needed;
    if overview.total_idle_connections > most {
        issues
            .push(format!("{} connections are idle; more than {most} cost more than they save", overview.total_idle_connections));
    }
    for one in all {
        let name = || format!("{} over {}", one.provider, one.protocol.name());
        if active(one) >= u64::from(one.settings.max_sockets) {
            issues.push(format!(
                "{}: all of its {} connections are in use, and {} requests wait",
                name(),
                one.settings.max_sockets,
                one.tally.waiting
            ));
        }
        if let Some(age) = one.average_age.filter(|age| up >= YOUNG * 6 && one.tally.requests >= ENOUGH && *age < YOUNG) {
            let seconds = age.as_secs_f64();
            issues.push(format!("{}: its connections are {seconds:.1} s old on the average; they are closed too soon", name()));
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

/// The namespace of a provider that is a policy's target.
fn namespace(provider: &str) -> Option<&str> {
    provider.split_once('/').map(|(namespace, _)| namespace)
}

impl Api {
    /// What a caller may see of the statistics.
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
pub async fn get_providers(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Json<Answer<Vec<String>>>, Error> {
    let mut names: Vec<_> = api.visible(&headers).await?.into_iter().map(|one| one.provider.to_string()).collect();
    names.dedup();
    Ok(Answer::of(names))
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
    // Who may not look there is not told either what is there.
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
        let form = || Error::Invalid("the body is not {} or {\"protocol\": \"http\"} or {\"protocol\": \"https\"}".to_owned());
        serde_json::from_slice(&body).map_err(|_| form())?
    };
    let (closed, closing) = api.context.pool.destroy(&provider, protocol.map(Into::into)).ok_or_else(|| unknown(&provider))?;
    let by = caller.as_ref().map_or("anybody: this is a demonstration", |caller| caller.name());
    tracing::info!(provider, by, closed, closing, "connections destroyed");
    Ok(Answer::of(Destroyed { provider, closed, closing }))
}

/// The body of a request whose caller is known.
async fn read_body(body: Body) -> Result<Bytes, Error> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Err(_) => Err(Error::Invalid(format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs()))),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Error::TooLarge),
        Ok(Err(_)) => Err(Error::Invalid("the body broke off".to_owned())),
    }
}

fn unknown(provider: &str) -> Error {
    let provider: String = provider.chars().take(160).collect();
    Error::NotFound(format!(
        "nothing was ever asked of a provider {provider:?} in that way; /api/connections/providers has their names, and a / in one is written %2F"
    ))
}
