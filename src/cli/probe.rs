//! `probe`: measures how long servers keep idle connections, without a cluster and without an operator.

use std::time::Duration;

use clap::ValueEnum;
use futures::future::join_all;
use serde::Serialize;
use url::Url;

use super::{
    CommandResult, Error,
    measure::{Measured, Prober, Reach, Version},
    output::{Output, ROWS, formats},
    progress::Progress,
    table::table,
};
use crate::{
    api::GoDuration,
    decide::measured::{Advertised, Requests, time, tolerance},
    probe,
};

/// A little longer than the longest common idle timeout, the 5m of Caddy.
const DEFAULT_WAIT: Duration = Duration::from_secs(360);
/// Time for which a connection is watched beyond the tolerated idle timeout.
const MARGIN: Duration = Duration::from_millis(500);

/// `probe`.
#[derive(clap::Args, Debug)]
pub struct Probe {
    /// URLs of the servers, http:// or https://. Redirects are not followed.
    #[arg(required = true, value_name = "URL")]
    pub urls: Vec<Url>,
    /// HTTP versions to measure.
    #[arg(long, value_enum, default_value_t = Protocol::Auto)]
    pub protocol: Protocol,
    /// Also count the requests, at most N, that one more connection takes until the server closes it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests: Option<u32>,
    /// Fail if an idle timeout differs from this by more than 5%, or 1 s if that is more.
    #[arg(long, value_name = "TIME")]
    pub expect: Option<GoDuration>,
    /// Connections to servers.
    #[command(flatten)]
    pub reach: Reach,
    /// Output format.
    #[arg(short, long, default_value = "table", value_parser = formats(ROWS))]
    pub output: Output,
}

/// HTTP versions to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1, and HTTP/2 if an https:// server offers it.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only; over http:// with prior knowledge.
    Http2,
    /// HTTP/1.1 and HTTP/2.
    Both,
}

impl Protocol {
    fn versions(self, url: &Url) -> &'static [Version] {
        match self {
            Self::Auto if url.scheme() == "https" => &[Version::Http1, Version::Http2],
            Self::Auto | Self::Http1 => &[Version::Http1],
            Self::Http2 => &[Version::Http2],
            Self::Both => &[Version::Http1, Version::Http2],
        }
    }
}

/// One server in one HTTP version, for JSON and YAML. Times are whole numbers. Values that were not measured are absent.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    url: String,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout: Option<IdleTimeout>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_alive: Option<KeepAlive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<RequestCount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_micros: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_handshake_micros: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reuse_saves_micros: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<Expected>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    measured: Option<Measured>,
    #[serde(skip)]
    is_failure: bool,
}

/// Idle timeout in milliseconds. For a connection that stayed open, it is the time that the probe waited.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct IdleTimeout {
    min_millis: u64,
    median_millis: u64,
    max_millis: u64,
    connections: usize,
    still_open: usize,
}

/// The `Keep-Alive` header field, and whether the server complied; absent if the probe ended too early to know.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct KeepAlive {
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_kept: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_kept: Option<bool>,
}

/// Requests that one connection took.
#[derive(Debug, Serialize)]
struct RequestCount {
    answered: u32,
    closed: bool,
}

/// Comparison with `--expect`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Expected {
    millis: u64,
    met: bool,
}

/// Measures all URLs at the same time.
pub async fn run(options: &Probe) -> Result<CommandResult, Error> {
    for url in &options.urls {
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(Error::Usage(format!("{url} is not an http:// or https:// URL")));
        }
    }
    let expect = options.expect.as_ref().and_then(GoDuration::get);
    let needed = expect.map(|expect| expect + tolerance(expect));
    let prober = options.reach.prober(needed.map_or(DEFAULT_WAIT, |needed| needed + MARGIN))?;
    if needed.is_some_and(|needed| prober.max_wait <= needed) {
        let least = needed.map(time).unwrap_or_default();
        return Err(Error::Usage(format!("--max-wait must be more than {least}: an idle timeout up to that meets --expect")));
    }
    let progress = Progress::default();
    let each = options.urls.iter().flat_map(|url| options.protocol.versions(url).iter().map(move |version| (url, *version)));
    let work = join_all(each.map(|(url, version)| row(options, &prober, &progress, url, version)));
    let rows: Vec<_> = progress.during(prober.max_wait, work).await.into_iter().flatten().collect();
    let is_failure = rows.iter().any(|row| row.is_failure);
    Ok(CommandResult { text: options.output.of(&rows, || text(&rows))?, is_failure, ..CommandResult::default() })
}

/// Measures a URL; `None` if HTTP/2 was only tried, and the server does not offer it.
async fn row(options: &Probe, prober: &Prober, progress: &Progress, url: &Url, version: Version) -> Option<Row> {
    let expect = options.expect.as_ref().and_then(GoDuration::get);
    let measured = prober.measure(url, version, options.requests, prober.max_wait, progress).await;
    if options.protocol == Protocol::Auto && version == Version::Http2 && matches!(measured, Err(probe::Error::NotOffered(_))) {
        return None;
    }
    let mut shown = url.clone();
    // A password is not printed.
    let _ = (shown.set_username(""), shown.set_password(None));
    Some(Row::of(shown.to_string(), version, measured, expect))
}

impl Row {
    fn of(url: String, version: Version, measured: Result<Measured, probe::Error>, expect: Option<Duration>) -> Self {
        let (measured, error) = match measured {
            Ok(measured) => (Some(measured), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let found = measured.as_ref();
        let met = found.map(|found| expect.is_none_or(|expect| found.idle.meets(expect) == Some(true)));
        let error = error.or_else(|| found?.problem.clone());
        Self {
            url,
            protocol: version.into(),
            status: found.and_then(|found| Some(found.connections.first()?.opened.status.as_u16())),
            idle_timeout: found.map(IdleTimeout::of),
            keep_alive: found.and_then(|found| Some(KeepAlive::of(found.advertised?, found))),
            requests: found.and_then(|found| found.requests).map(RequestCount::of),
            connect_micros: found.map(|found| micros(found.connect())),
            tls_handshake_micros: found.and_then(|found| found.tls().map(micros)),
            reuse_saves_micros: found.map(|found| micros(found.reuse_saves())),
            expected: expect.map(|expect| Expected { millis: millis(expect), met: met == Some(true) }),
            is_failure: met != Some(true) || error.is_some(),
            error,
            measured,
        }
    }
}

impl IdleTimeout {
    fn of(measured: &Measured) -> Self {
        let is_open = |idled: &crate::decide::measured::Idled| matches!(idled, crate::decide::measured::Idled::Open(_));
        Self {
            min_millis: millis(measured.idle.min.time()),
            median_millis: millis(measured.idle.median.time()),
            max_millis: millis(measured.idle.max.time()),
            connections: measured.connections.len(),
            still_open: measured.connections.iter().filter(|one| is_open(&one.idled)).count(),
        }
    }
}

impl KeepAlive {
    fn of(advertised: Advertised, measured: &Measured) -> Self {
        Self {
            timeout_seconds: advertised.timeout.map(|timeout| timeout.as_secs()),
            timeout_kept: advertised.keeps_time(&measured.idle),
            max: advertised.max,
            max_kept: measured.requests.and_then(|requests| requests.keeps(advertised.max?)),
        }
    }
}

impl RequestCount {
    const fn of(requests: Requests) -> Self {
        match requests {
            Requests::Closed(answered) => Self { answered, closed: true },
            Requests::Open(answered) => Self { answered, closed: false },
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Returns the table, and remarks below it.
fn text(rows: &[Row]) -> String {
    let cells: Vec<_> = rows.iter().map(cells).collect();
    let headings = ["URL", "PROTOCOL", "IDLE-TIMEOUT", "MIN", "MAX", "ADVERTISED", "REQUESTS", "TLS", "REUSE-SAVES"];
    let remarks: String = rows.iter().flat_map(remarks).map(|remark| remark + "\n").collect();
    let gap = if remarks.is_empty() { "" } else { "\n" };
    format!("{}{gap}{remarks}", table(headings, &cells))
}

fn cells(row: &Row) -> [String; 9] {
    let none = || "-".to_owned();
    let of = |value: Option<String>| value.unwrap_or_else(none);
    let found = row.measured.as_ref();
    [
        row.url.clone(),
        row.protocol.to_owned(),
        found.map_or_else(|| "not measured".to_owned(), |found| found.idle.median.to_string()),
        of(found.map(|found| time(found.idle.min.time()))),
        of(found.map(|found| time(found.idle.max.time()))),
        of(found.and_then(|found| Some(found.advertised?.to_string()))),
        of(found.and_then(|found| Some(found.requests?.to_string()))),
        of(found.and_then(|found| found.tls().map(time))),
        of(found.map(|found| time(found.reuse_saves()))),
    ]
}

/// Returns remarks about a failure, a server that does not do what it advertises, or an expectation that was not met.
fn remarks(row: &Row) -> Vec<String> {
    let at = format!("{} {}", row.url, row.protocol);
    let mut remarks: Vec<_> = row.error.iter().map(|error| format!("{at}: {error}")).collect();
    let Some(found) = &row.measured else { return remarks };
    if let Some(advertised) = found.advertised {
        if let (Some(timeout), Some(false)) = (advertised.timeout, advertised.keeps_time(&found.idle)) {
            let (advertises, closed) = (time(timeout), found.idle.min);
            remarks
                .push(format!("{at}: the server advertises timeout={advertises} and closed an idle connection after {closed}"));
        }
        if let (Some(max), Some(requests @ Requests::Closed(_))) = (advertised.max, found.requests)
            && requests.keeps(max) == Some(false)
        {
            remarks.push(format!("{at}: the server advertises max={max} and closed a connection after {requests} requests"));
        }
    }
    if let Some(Expected { millis, met: false }) = row.expected {
        let (expected, min, max) = (time(Duration::from_millis(millis)), found.idle.min, found.idle.max);
        let seen = if min == max { min.to_string() } else { format!("{min} to {max}") };
        remarks.push(format!("{at}: the idle timeout is {seen}; {expected} is expected"));
    }
    remarks
}
