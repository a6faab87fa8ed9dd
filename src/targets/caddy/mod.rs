//! Caddy servers, through their admin API. Every limit takes effect at once: a change is a graceful reload, which
//! closes all idle connections.

pub mod config;
mod moved;
mod text;

use std::{
    collections::BTreeSet,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use http::Method;
use serde::{Deserialize, de::IgnoredAny};

use super::{Connection, Credentials, Kind, Target, TargetAddress};
use crate::{
    api::{
        Limit, Value,
        adaptive::Source,
        flush::{Closes, Flush},
    },
    decide::{Capability, Cause, Change, Fault, NodeState, PacedBy, Serves, TargetCapabilities, Unit, UnitState},
    pool::{Provider, Request, Response},
};

/// The capabilities of every Caddy.
pub const TRAITS: TargetCapabilities = TargetCapabilities {
    capability,
    paced_by: Some(PacedBy::Operator),
    inexpressible,
    value: config::parse,
    default_idle,
    moved: moved::moved,
    ..TargetCapabilities::PLAIN
};

/// The registration of this kind.
pub const KIND: Kind = Kind {
    traits: |_| TRAITS,
    identities: |_, _, places| places.iter().flat_map(|place| [place.id.clone(), place.address.clone()]).collect(),
    connect: |Connection { places, credentials, reach, .. }| Ok(Arc::new(Caddy::new(places, credentials, reach.provider))),
    source: Source::Nodes,
    units_are_nodes: true,
    states_identity: false,
};

/// Values to which Caddy 2.11 gives another meaning than no limit (`caddyhttp/app.go`,
/// `reverseproxy/httptransport.go`).
fn inexpressible(key: Limit, value: Value) -> Option<&'static str> {
    if !value.is_zero() {
        return None;
    }
    match key {
        Limit::ServerIdleTimeout => Some("Caddy uses its default of 5m for 0"),
        Limit::ServerReadHeaderTimeout => Some("Caddy uses its default of 1m for 0"),
        Limit::BackendIdleConnTimeout => Some("Caddy uses its default of 2m for 0"),
        Limit::BackendMaxIdleConnsPerHost => Some("Caddy uses its default of 32 for 0"),
        Limit::BackendTcpKeepAlive => Some("Caddy uses its default of 30s for 0"),
        Limit::BackendExpectContinueTimeout => Some("with 0, Go does not wait at all"),
        _ => None,
    }
}

/// Path of the servers, with the reverse proxies nested in their routes.
const SERVERS: &str = "/config/apps/http/servers";
/// Most bytes of the whole configuration, of a Caddy without servers.
const CONFIG: usize = 1024 * 1024;
/// Most bytes of a metrics page's line that are kept.
const MAX_LINE: usize = 128;
/// Timeout of a read.
const READ: Duration = Duration::from_secs(3);
/// Timeout of a write: a reload waits until the new configuration is provisioned.
const WRITE: Duration = Duration::from_secs(10);
/// Most attempts of a write if other clients write at the same time.
const RACES: usize = 5;

/// A write is a reload. For any change, Caddy closes all idle connections of its servers and proxies, and replaces the
/// pools.
const RELOAD: Flush = Flush { closes: Closes::AllPools, settle: Duration::ZERO };

/// Caddy's defaults (`caddyhttp.Server.IdleTimeout`, `reverseproxy.KeepAlive.IdleConnTimeout`).
const fn default_idle(key: Limit) -> Option<Duration> {
    match key {
        Limit::ServerIdleTimeout => Some(Duration::from_secs(300)),
        Limit::BackendIdleConnTimeout => Some(Duration::from_secs(120)),
        _ => None,
    }
}

fn capability(key: Limit) -> Capability {
    if config::LIMITS.iter().any(|(limit, _)| *limit == key) { Capability::Flush(RELOAD) } else { Capability::Unsupported }
}

/// A group of Caddy servers.
pub struct Caddy {
    places: Vec<TargetAddress>,
    credentials: Credentials,
    provider: Provider,
    /// Addresses of Caddys that require an Origin header.
    wants_origin: Mutex<BTreeSet<String>>,
}

impl Caddy {
    /// The servers at these places.
    #[must_use]
    pub const fn new(places: Vec<TargetAddress>, credentials: Credentials, provider: Provider) -> Self {
        Self { places, credentials, provider, wants_origin: Mutex::new(BTreeSet::new()) }
    }

    /// Sends an Origin header only to a Caddy that requires one (`admin.enforce_origin`). Caddy checks every Origin
    /// against `admin.origins`. For an API that listens on all addresses, that list has no address of a pod
    /// (`admin.go`, 2.11).
    async fn ask(&self, mut request: Request) -> Result<Response, Fault> {
        let ca = self.credentials.ca.as_deref();
        let wants = || self.wants_origin.lock().unwrap_or_else(PoisonError::into_inner);
        let origin = ("origin".into(), request.address.clone());
        if wants().contains(&request.address) {
            request.headers.push(origin);
            return Ok(self.provider.send(ca, request).await?);
        }
        // Every write follows a read, so the requirement is known by then.
        let again = (request.method == Method::GET).then(|| request.clone());
        let response = self.provider.send(ca, request).await?;
        let Some(mut again) = again.filter(|_| response.status == 403) else { return Ok(response) };
        drop(response);
        let address = again.address.clone();
        again.headers.push(origin);
        let response = self.provider.send(ca, again).await?;
        if response.status != 403 {
            wants().insert(address);
        }
        Ok(response)
    }

    /// The servers' configuration and its version.
    async fn servers(&self, address: &str) -> Result<Servers, Fault> {
        let response = self.ask(Request::get(address, SERVERS, READ)).await?;
        let unexpected =
            |what: &str| Fault::new(Cause::Unreachable, format!("{address} {what}; check that it is a Caddy admin API"));
        match response.status {
            200 => {}
            400 | 404 => return self.no_servers(address, &response).await,
            401 => return Err(Fault::new(Cause::Unauthorized, format!("{address} requires credentials (401)"))),
            403 => {
                let host = address.split("://").nth(1).unwrap_or(address);
                return Err(Fault::new(
                    Cause::Forbidden,
                    format!(
                        "{address} rejects requests to this host or from this origin (403); add {host} to Caddy's admin.origins"
                    ),
                ));
            }
            status => return Err(unexpected(&format!("returned {status}"))),
        }
        let valid = std::str::from_utf8(&response.body).ok().filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
        let Some(text) = valid.map(str::trim) else { return Err(unexpected("did not return JSON")) };
        if !(text.starts_with('{') || text == "null") {
            return Err(unexpected("did not return a list of servers"));
        }
        let etag = response.header("etag").ok_or_else(|| unexpected("returned no Etag"))?.to_owned();
        Ok(Servers { etag, response: Some(response) })
    }

    /// Handles the response for a missing path, which a Caddy without servers gives. Any server may answer 404. It
    /// counts only with Caddy's own error format, and if the whole configuration has a version.
    async fn no_servers(&self, address: &str, response: &Response) -> Result<Servers, Fault> {
        #[derive(Deserialize)]
        struct Error {
            #[serde(rename = "error")]
            _error: String,
        }
        let is_caddys = serde_json::from_slice::<Error>(&response.body).is_ok();
        let whole = self.ask(Request { most: CONFIG, ..Request::get(address, "/config/", READ) });
        if is_caddys && whole.await.is_ok_and(|whole| whole.status == 200 && whole.header("etag").is_some()) {
            return Ok(Servers { etag: String::new(), response: None });
        }
        let status = response.status;
        Err(Fault::new(
            Cause::Unreachable,
            format!("{address} returned {status}, and not as Caddy does; is it a Caddy admin API?"),
        ))
    }

    async fn try_write(&self, address: &str, changes: &[Change]) -> Result<bool, Fault> {
        let (body, etag, held) = {
            let servers = self.servers(address).await?;
            let wanted = config::apply(&servers, changes).map_err(|error| too_much(address, &error))?;
            if wanted == *servers {
                return Ok(true);
            }
            if wanted.len() > CONFIG {
                // A written configuration must be readable, and restorable later.
                let message = format!(
                    "{address}: the configuration with the limits would have {} bytes; the maximum is {CONFIG}, so nothing was written",
                    wanted.len()
                );
                return Err(Fault::new(Cause::Rejected, message));
            }
            (wanted.into_bytes(), servers.etag, servers.response.and_then(Response::into_memory))
        };
        let response = self
            .ask(Request {
                method: Method::PATCH,
                address: address.to_owned(),
                path: SERVERS.into(),
                headers: vec![("if-match".into(), etag)],
                body: Some(body),
                timeout: WRITE,
                most: 64 * 1024,
                held,
            })
            .await?;
        match response.status {
            200..300 => Ok(true),
            412 => Ok(false),
            401 => Err(Fault::new(Cause::Unauthorized, format!("{address} requires credentials for changes (401)"))),
            403 => Err(Fault::new(Cause::Forbidden, format!("{address} forbids changes (403)"))),
            400 => Err(Fault::new(
                Cause::Rejected,
                format!("{address}: Caddy rejected the new settings (400) and kept the old ones"),
            )),
            status => Err(Fault::new(Cause::Unreachable, format!("{address} returned {status} to a change"))),
        }
    }
}

/// Finds the start time of a process in a metrics page. Only an incomplete line is kept.
#[derive(Default)]
struct Started {
    line: Vec<u8>,
    value: Option<String>,
}

impl Started {
    fn push(&mut self, piece: &[u8]) {
        for byte in piece {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                let found = line.strip_prefix(b"process_start_time_seconds ").and_then(|value| std::str::from_utf8(value).ok());
                self.value = self.value.take().or_else(|| found.map(str::to_owned));
            } else if self.line.len() < MAX_LINE {
                self.line.push(*byte);
            }
        }
    }
}

/// The servers of a configuration, as text. Its memory is accounted for as long as this exists.
struct Servers {
    etag: String,
    response: Option<Response>,
}

impl Deref for Servers {
    type Target = str;

    fn deref(&self) -> &str {
        let body = self.response.as_ref().map_or(&b"null"[..], |response| &response.body);
        std::str::from_utf8(body).unwrap_or("null")
    }
}

fn too_much(address: &str, error: &config::TooMuch) -> Fault {
    Fault::new(Cause::Unreachable, format!("The configuration of {address} {error}"))
}

impl Target for Caddy {
    fn discover(&self) -> BoxFuture<'_, Result<Vec<Unit>, Fault>> {
        let unit = |place: &TargetAddress| Unit {
            id: place.id.clone(),
            name: place.name.clone(),
            address: place.address.clone(),
            role: place.role.clone(),
        };
        let units = self.places.iter().map(unit).collect();
        async move { Ok(units) }.boxed()
    }

    fn read<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<UnitState, Fault>> {
        async move {
            let config::ConfigFacts { sites, former, cuts_streams, listens } = {
                let servers = self.servers(&unit.address).await?;
                config::see(&servers).map_err(|error| too_much(&unit.address, &error))?
            };
            let serves = listens.and_then(|(port, tls)| Some(Serves { port: Some(port), tls, ..Serves::parse(&unit.address)? }));
            let serves = serves.or_else(|| Some(Serves { port: None, tls: false, ..Serves::parse(&unit.address)? }));
            let node = NodeState { serves, ..NodeState::new(&unit.name, Ok(config::stored(&sites))) };
            Ok(UnitState { sites, nodes: vec![node], former, cuts_streams, ..UnitState::default() })
        }
        .boxed()
    }

    fn started<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Option<String>> {
        async move {
            let mut started = Started::default();
            let request = Request::get(&unit.address, "/metrics", READ);
            self.provider.read(self.credentials.ca.as_deref(), request, &mut |piece| started.push(piece)).await.ok()?;
            started.value
        }
        .boxed()
    }

    fn write<'a>(&'a self, unit: &'a Unit, _state: &'a UnitState, changes: &'a [Change]) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            // Only the limits of a read are kept, not the text, so fetch the text again.
            for _ in 0..RACES {
                if self.try_write(&unit.address, changes).await? {
                    return Ok(());
                }
            }
            Err(Fault::new(Cause::Busy, format!("Another client changed {} {RACES} times during the write", unit.address)))
        }
        .boxed()
    }
}
