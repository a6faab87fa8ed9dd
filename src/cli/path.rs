//! `path`: finds the first hop at which the client keeps idle connections longer than the server.

use std::{path::PathBuf, time::Duration};

use futures::future::join_all;
use serde::Serialize;
use serde_json::Value as Json;
use url::Url;

use super::{
    CommandResult, Error,
    cluster::Cluster,
    lint::items,
    measure::{Prober, Reach, Version},
    output::{Output, ROWS, formats},
    progress::Progress,
    table::table,
    texts,
};
use crate::{
    api::{GoDuration, IdleConnectionPolicy, Limit, LimitValues, Limits, Value},
    decide::{
        self,
        measured::{Idled, time},
        path::{Change, ClientIdle, Side, Verdict, changes, known_client, verdict},
    },
    targets,
};

/// Name of the client of the first hop.
const FIRST: &str = "client";
/// Time for which a server is watched if its client is not known, and the maximum for known clients.
const DEFAULT_WAIT: Duration = Duration::from_secs(360);
/// Time for which a server is watched beyond the idle time of its client.
const MARGIN: Duration = Duration::from_millis(1_500);

/// `path`.
#[derive(clap::Args, Debug)]
pub struct Path {
    /// Servers in the order of the traffic: NAME=URL to measure one, or the NAME of a policy in --file or in the cluster.
    #[arg(required = true, value_name = "HOP")]
    pub hops: Vec<String>,
    /// File with policies. A policy with the name of a hop defines how long that hop keeps connections to the next.
    #[arg(short, long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Time that a hop keeps idle connections to the next, as NAME=TIME, or as NAME=SOFTWARE for its default. Omit NAME= for the first client.
    #[arg(long = "client-idle", value_name = "[NAME=]TIME|SOFTWARE")]
    pub client_idle: Vec<String>,
    /// Connections to servers.
    #[command(flatten)]
    pub reach: Reach,
    /// Cluster and namespace of policies.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Output format.
    #[arg(short, long, default_value = "table", value_parser = formats(ROWS))]
    pub output: Output,
}

/// A value and its source.
#[derive(Clone, Debug)]
struct Known<T> {
    value: T,
    source: String,
}

/// A server on the path.
struct Named {
    name: String,
    url: Option<Url>,
    policy: Option<IdleConnectionPolicy>,
}

/// One client and its server, for JSON and YAML. Times are milliseconds. Unknown values are absent, and so is the time of a client without a limit.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Hop {
    client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_idle_millis: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_idle_source: Option<String>,
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_idle_millis: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_idle_source: Option<String>,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<Proposed>,
    #[serde(skip)]
    client_idle: Option<ClientIdle>,
    #[serde(skip)]
    server_idle: Option<Idled>,
}

/// Change that fixes a hop, for JSON and YAML.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Proposed {
    side: &'static str,
    name: String,
    to_millis: u64,
    #[serde(skip)]
    change: Change,
}

/// Measures the servers and compares each with its client.
pub async fn run(options: &Path) -> Result<CommandResult, Error> {
    let mut servers = Vec::new();
    let files = policies(&options.files)?;
    for hop in &options.hops {
        servers.push(named(options, &files, hop).await?);
    }
    let given = options.client_idle.iter().map(|text| given(text)).collect::<Result<Vec<_>, _>>()?;
    for (name, _) in &given {
        if name != FIRST && !servers.iter().any(|server| server.name == *name) {
            return Err(Error::Usage(format!("--client-idle {name}=… names no hop")));
        }
    }
    let prober = options.reach.prober(DEFAULT_WAIT)?;
    let progress = Progress::default();
    let clients = [None].into_iter().chain(servers.iter().map(Some));
    let hops = clients.zip(&servers).map(|(client, server)| {
        let name = client.map_or(FIRST, |client| client.name.as_str());
        let idle = given.iter().find(|(of, _)| of == name).map(|(_, idle)| idle.clone());
        let idle = idle.or_else(|| from_policy(client?.policy.as_ref()?)).or_else(|| from_name(name));
        compare(&prober, &progress, name.to_owned(), idle, server)
    });
    let hops = progress.during(prober.max_wait, join_all(hops)).await;
    let is_failure = hops.iter().any(|hop| hop.verdict != "Safe");
    Ok(CommandResult { text: options.output.of(&hops, || text(&hops))?, is_failure, ..CommandResult::default() })
}

/// Reads the policies in the files.
fn policies(files: &[PathBuf]) -> Result<Vec<IdleConnectionPolicy>, Error> {
    let mut found = Vec::new();
    for (path, text) in texts(files)? {
        let unreadable = |error: &dyn std::fmt::Display| Error::Policy(path.clone(), error.to_string());
        let documents: Vec<Json> = serde_saphyr::from_multiple(&text).map_err(|error| unreadable(&error))?;
        for document in documents.into_iter().flat_map(items).filter(|document| document["kind"] == "IdleConnectionPolicy") {
            found.push(serde_json::from_value(document).map_err(|error| unreadable(&error))?);
        }
    }
    Ok(found)
}

async fn named(options: &Path, files: &[IdleConnectionPolicy], hop: &str) -> Result<Named, Error> {
    let (name, url) = match hop.split_once('=') {
        Some((name, url)) => (name, Some(url)),
        None => (hop, None),
    };
    let unusable = || Error::Usage(format!("{hop} is neither NAME=URL with an http:// or https:// URL nor the name of a policy"));
    let url = url.map(|url| Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some()));
    let url = url.map(|url| url.ok_or_else(unusable)).transpose()?;
    let file = files.iter().find(|policy| policy.metadata.name.as_deref() == Some(name)).cloned();
    let policy = match (file, &url) {
        (Some(policy), _) => Some(policy),
        (None, Some(_)) => None,
        (None, None) if name.is_empty() || name.contains(['/', ':']) => return Err(unusable()),
        (None, None) => Some(options.cluster.policy(name).await?),
    };
    Ok(Named { name: name.to_owned(), url, policy })
}

/// Reads `NAME=TIME`, `NAME=SOFTWARE`, or either without a name.
fn given(text: &str) -> Result<(String, Known<ClientIdle>), Error> {
    let (name, value) = text.split_once('=').unwrap_or((FIRST, text));
    let idle = match value.parse::<GoDuration>().ok().and_then(|time| time.get()) {
        Some(time) => Some(Known { value: client_idle(time), source: "given".into() }),
        None => from_name(value),
    };
    let known: Vec<_> = decide::path::KNOWN_CLIENTS.iter().map(|client| client.name).collect();
    let unknown = || Error::Usage(format!("--client-idle {text}: {value} is neither a time nor one of {}", known.join(", ")));
    Ok((name.to_owned(), idle.ok_or_else(unknown)?))
}

/// Returns the idle time of a client; 0 means no limit.
fn client_idle(time: Duration) -> ClientIdle {
    if time.is_zero() { ClientIdle::Never } else { ClientIdle::After(time) }
}

fn from_name(name: &str) -> Option<Known<ClientIdle>> {
    known_client(name).map(|client| Known { value: client.idle, source: format!("default of {}", client.name) })
}

/// Returns the programmed limits, or the declared ones.
fn settings(policy: &IdleConnectionPolicy) -> (LimitValues, &'static str) {
    let limits = policy.status.as_ref().and_then(|status| status.limits.as_ref());
    match limits.and_then(|limits| limits.programmed.as_ref()) {
        Some(programmed) => (programmed.settings(), "programmed"),
        None => (decide::declare(&policy.spec, &targets::traits(&policy.spec.target)).settings, "declared"),
    }
}

fn duration(settings: &LimitValues, key: Limit) -> Option<Duration> {
    if let Some(Value::Duration(time)) = settings.get(&key) { Some(*time) } else { None }
}

fn from_policy(policy: &IdleConnectionPolicy) -> Option<Known<ClientIdle>> {
    let (settings, source) = settings(policy);
    let time = duration(&settings, Limit::BackendIdleConnTimeout)?;
    Some(Known { value: client_idle(time), source: format!("{source} in the policy") })
}

/// Returns the idle timeout of the server: measured now, measured by the operator, or from its policy.
async fn server_side(
    prober: &Prober,
    progress: &Progress,
    server: &Named,
    client: Option<ClientIdle>,
) -> Result<Known<Idled>, String> {
    if let Some(url) = &server.url {
        let needed = match client {
            Some(ClientIdle::After(idle)) => idle + MARGIN,
            Some(ClientIdle::Never) | None => Duration::MAX,
        };
        let measured = prober.measure(url, Version::Http1, None, needed.min(prober.max_wait), progress).await;
        let measured = measured.map_err(|error| error.to_string())?;
        return Ok(Known { value: measured.idle.min, source: "measured".into() });
    }
    let policy = server.policy.as_ref().ok_or("the hop has neither a URL nor a policy")?;
    let limits = policy.status.as_ref().and_then(|status| status.limits.as_ref());
    let measured = limits.and_then(|limits| limits.measured.as_ref()).map(Limits::settings);
    if let Some(time) = measured.and_then(|measured| duration(&measured, Limit::ServerIdleTimeout)) {
        return Ok(Known { value: Idled::Closed(time), source: "measured by the operator".into() });
    }
    let (settings, source) = settings(policy);
    let time = duration(&settings, Limit::ServerIdleTimeout);
    let time = time.ok_or("the policy has no server.idleTimeout; give NAME=URL to measure it")?;
    let value = if time.is_zero() { Idled::Open(Duration::MAX) } else { Idled::Closed(time) };
    Ok(Known { value, source: format!("{source} in the policy") })
}

async fn compare(
    prober: &Prober,
    progress: &Progress,
    client: String,
    client_idle: Option<Known<ClientIdle>>,
    server: &Named,
) -> Hop {
    let idle = client_idle.as_ref().map(|known| known.value);
    let (server_idle, failure) = match server_side(prober, progress, server, idle).await {
        Ok(known) => (Some(known), None),
        Err(failure) => (None, Some(format!("{} was not measured: {failure}", server.name))),
    };
    let found = server_idle.as_ref().map(|known| known.value);
    let (verdict, reason) = match (idle, found) {
        (Some(idle), Some(found)) => match verdict(idle, found) {
            Verdict::Safe => ("Safe", None),
            Verdict::Trap => ("Trap", None),
            Verdict::Undecided => {
                let reason =
                    format!("{} keeps connections {found}; give a longer --max-wait, or a limit for {client}", server.name);
                ("Undecided", Some(reason))
            }
        },
        (_, None) => ("Undecided", failure),
        (None, _) => {
            let reason = format!("the idle time of {client} is not known; give --client-idle {client}=TIME, or its software");
            ("Undecided", Some(reason))
        }
    };
    let proposed = match (verdict, idle, found) {
        ("Trap", Some(idle), Some(found)) => changes(idle, found.time()),
        _ => Vec::new(),
    };
    let changes = proposed.into_iter().map(|change| {
        let (side, name) = match change.side {
            Side::Client => ("client", client.clone()),
            Side::Server => ("server", server.name.clone()),
        };
        Proposed { side, name, to_millis: millis(change.to), change }
    });
    Hop {
        changes: changes.collect(),
        client,
        client_idle_millis: idle.and_then(|idle| if let ClientIdle::After(time) = idle { Some(millis(time)) } else { None }),
        client_idle_source: client_idle.map(|known| known.source),
        server: server.name.clone(),
        server_idle_millis: found.map(|found| millis(found.time())),
        server_idle_source: server_idle.map(|known| known.source),
        verdict,
        reason,
        client_idle: idle,
        server_idle: found,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the table, the first hop at which requests are lost, and the hops that could not be compared.
fn text(hops: &[Hop]) -> String {
    let cells = |hop: &Hop| {
        let with = |value: Option<String>, source: &Option<String>| match (value, source) {
            (Some(value), Some(source)) => format!("{value} ({source})"),
            _ => "unknown".to_owned(),
        };
        [
            hop.client.clone(),
            with(hop.client_idle.map(|idle| idle.to_string()), &hop.client_idle_source),
            hop.server.clone(),
            with(hop.server_idle.map(|idle| idle.to_string()), &hop.server_idle_source),
            hop.verdict.to_owned(),
        ]
    };
    let rows: Vec<_> = hops.iter().map(cells).collect();
    let mut text = table(["CLIENT", "KEEPS-IDLE", "SERVER", "CLOSES-AFTER", "VERDICT"], &rows);
    if let Some(trap) = hops.iter().find(|hop| hop.verdict == "Trap") {
        text = text + "\n" + &sentences(trap);
    }
    for reason in hops.iter().filter_map(|hop| hop.reason.as_ref()) {
        text = text + "\n" + reason + "\n";
    }
    text
}

fn sentences(trap: &Hop) -> String {
    let (Some(client), Some(server)) = (trap.client_idle, trap.server_idle) else { return String::new() };
    let keeps = match client {
        ClientIdle::After(idle) => format!("for {}", time(idle)),
        ClientIdle::Never => "without a limit".to_owned(),
    };
    let change = |proposed: &Proposed| {
        let to = time(proposed.change.to);
        match proposed.change.side {
            Side::Client => format!("lower the idle time of {} from {client} to {to} or less", proposed.name),
            Side::Server => format!("raise the idle timeout of {} from {server} to {to} or more", proposed.name),
        }
    };
    let advised: Vec<_> = trap.changes.iter().map(change).collect();
    format!(
        "Requests are lost between {0} and {1}: {0} keeps idle connections {keeps}, and {1} closes them after {server}.\n\
         A request that {0} sends while {1} closes is lost. {0} may repeat GET, HEAD, PUT and DELETE; POST and PATCH fail.\n\
         To fix it, {2}.\n",
        trap.client,
        trap.server,
        advised.join(", or "),
    )
}
