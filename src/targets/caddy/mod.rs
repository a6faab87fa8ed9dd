//! Caddy servers, through their admin API. Every setting is used at once: a change is a graceful reload.

mod config;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use http::Method;
use serde_json::{Value as Json, json};

use super::{Credentials, Place, Target};
use crate::{
    api::Knob,
    decide::{Capability, Cause, Change, Fault, NodeState, Traits, Unit, UnitState},
    pool::{Provider, Request, Response},
};

/// What is true of every Caddy.
pub const TRAITS: Traits = Traits { capability, ..Traits::PLAIN };

/// Where the servers and, nested in their routes, the reverse proxies are.
const SERVERS: &str = "/config/apps/http/servers";
/// How long a read may take.
const READ: Duration = Duration::from_secs(3);
/// How long a write may take: a reload waits for the new configuration to be provisioned.
const WRITE: Duration = Duration::from_secs(10);
/// How often a write is tried again when somebody else was faster.
const RACES: usize = 5;

const fn capability(knob: Knob) -> Capability {
    match knob {
        Knob::ServerMaxRequestsPerConn
        | Knob::IntraClusterIdleConnTimeout
        | Knob::IntraClusterMaxIdleConns
        | Knob::IntraClusterMaxIdleConnsPerHost
        | Knob::BackendMaxConnLifetime
        | Knob::BackendRequestTimeout => Capability::Unsupported,
        Knob::ServerIdleTimeout
        | Knob::ServerReadHeaderTimeout
        | Knob::BackendIdleConnTimeout
        | Knob::BackendMaxIdleConns
        | Knob::BackendMaxIdleConnsPerHost
        | Knob::BackendMaxConnsPerHost
        | Knob::BackendTcpKeepAlive
        | Knob::BackendTlsHandshakeTimeout
        | Knob::BackendExpectContinueTimeout
        | Knob::BackendResponseHeaderTimeout => Capability::Hot,
    }
}

/// Some Caddy servers.
pub struct Caddy {
    places: Vec<Place>,
    credentials: Credentials,
    provider: Provider,
}

impl Caddy {
    /// The servers at these places.
    #[must_use]
    pub const fn new(places: Vec<Place>, credentials: Credentials, provider: Provider) -> Self {
        Self { places, credentials, provider }
    }

    async fn ask(&self, request: Request) -> Result<Response, Fault> {
        Ok(self.provider.send(self.credentials.ca.as_deref(), request).await?)
    }

    /// The servers' configuration and its version.
    async fn servers(&self, address: &str) -> Result<(Json, String), Fault> {
        let response = self.ask(Request::get(address, SERVERS, READ)).await?;
        let unexpected = |what: &str| Fault::new(Cause::Unreachable, format!("{address} {what}; is it a Caddy admin API?"));
        match response.status {
            200 => {}
            // A path that does not exist yet: no server is configured.
            400 | 404 => return Ok((Json::Null, String::new())),
            401 => return Err(Fault::new(Cause::Unauthorized, format!("{address} wants credentials (401)"))),
            403 => {
                return Err(Fault::new(
                    Cause::Forbidden,
                    format!("{address} refuses this host or origin (403); see Caddy's admin.origins"),
                ));
            }
            status => return Err(unexpected(&format!("answered {status}"))),
        }
        let servers: Json =
            serde_json::from_slice(&response.body).map_err(|_| unexpected("answered with something that is not JSON"))?;
        let etag = response.header("etag").ok_or_else(|| unexpected("answered without an Etag"))?.to_owned();
        if servers.is_object() || servers.is_null() {
            Ok((servers, etag))
        } else {
            Err(unexpected("answered with something else than servers"))
        }
    }

    async fn try_write(&self, address: &str, servers: &Json, etag: &str, changes: &[Change]) -> Result<bool, Fault> {
        let mut wanted = servers.clone();
        config::apply(&mut wanted, changes);
        if wanted == *servers {
            return Ok(true);
        }
        let body = serde_json::to_vec(&wanted).unwrap_or_default();
        let response = self
            .ask(Request {
                method: Method::PATCH,
                address: address.to_owned(),
                path: SERVERS.into(),
                headers: vec![("if-match", etag.to_owned())],
                body: Some(body),
                timeout: WRITE,
                most: 64 * 1024,
            })
            .await?;
        match response.status {
            200..300 => Ok(true),
            412 => Ok(false),
            401 => Err(Fault::new(Cause::Unauthorized, format!("{address} wants credentials to be changed (401)"))),
            403 => Err(Fault::new(Cause::Forbidden, format!("{address} forbids changes (403)"))),
            400 => {
                Err(Fault::new(Cause::Rejected, format!("{address}: Caddy refused the new settings (400) and kept the old ones")))
            }
            status => Err(Fault::new(Cause::Unreachable, format!("{address} answered {status} to a change"))),
        }
    }
}

impl Target for Caddy {
    fn discover(&self) -> BoxFuture<'_, Result<Vec<Unit>, Fault>> {
        let unit = |place: &Place| Unit {
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
            let (servers, etag) = self.servers(&unit.address).await?;
            let sites = config::sites(&servers);
            let node = NodeState::new(&unit.name, Ok(config::stored(&sites)));
            let native = Arc::new(json!({"servers": servers, "etag": etag}));
            Ok(UnitState { sites, nodes: vec![node], changed: None, hash: None, native })
        }
        .boxed()
    }

    fn started<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Option<String>> {
        async move {
            let page = self.ask(Request::get(&unit.address, "/metrics", READ)).await.ok()?;
            let page = String::from_utf8(page.body).ok()?;
            page.lines().find_map(|line| line.strip_prefix("process_start_time_seconds ")).map(str::to_owned)
        }
        .boxed()
    }

    fn write<'a>(&'a self, unit: &'a Unit, state: &'a UnitState, changes: &'a [Change]) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let mut servers = state.native["servers"].clone();
            let mut etag = state.native["etag"].as_str().unwrap_or_default().to_owned();
            for _ in 0..RACES {
                if self.try_write(&unit.address, &servers, &etag, changes).await? {
                    return Ok(());
                }
                (servers, etag) = self.servers(&unit.address).await?;
            }
            Err(Fault::new(Cause::Busy, format!("{} was changed by somebody else {RACES} times meanwhile", unit.address)))
        }
        .boxed()
    }
}
