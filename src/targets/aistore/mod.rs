//! An AIStore cluster, through the REST API of its proxies. One write changes all nodes; each node reports what it
//! stores.
//!
//! docs/targets/aistore.md describes the behavior of the real server, and so the reasons for this code.

pub mod wire;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use http::Method;
use jiff::Timestamp;
use serde_json::{Map, Value as Json, json};
use tokio::time::Instant;

use super::{Connection, Credentials, Kind, Target, TargetAddress};
use crate::{
    api::{Limit, LimitValues, Value, adaptive::Source},
    clock,
    decide::{
        Capability, Cause, Change, ConfigPath, Fault, NewValue, NodeState, PacedBy, Process, Serves, Sites, TargetCapabilities,
        Unit, UnitState, adaptive::attribution::MostPooled,
    },
    pool::{Provider, Request, Response},
};

/// The capabilities of every AIStore cluster.
pub const TRAITS: TargetCapabilities = TargetCapabilities {
    paced_by: Some(PacedBy::Cluster),
    capability,
    value: wire::value,
    cap,
    companions: dependent_limits,
    most_pooled,
    ..TargetCapabilities::PLAIN
};

/// The registration of this kind.
pub const KIND: Kind = Kind {
    traits: |_| TRAITS,
    // A cluster is one target, through any of its proxies.
    identities: |_, _, places| {
        let addresses = places.iter().flat_map(|place| place.aliases.iter().chain([&place.address]));
        addresses.map(|address| format!("aistore at {address}")).collect()
    },
    connect: |Connection { places, credentials, reach, .. }| {
        Ok(Arc::new(AIStore::new(places, credentials, reach.provider, reach.hurry)))
    },
    source: Source::StateFlags,
    units_are_nodes: false,
    states_identity: true,
};

/// Path of the cluster map.
const MAP: &str = "/v1/cluster?what=smap";
/// Timeout of a read; a hung node never answers.
const READ: Duration = Duration::from_secs(3);
/// Timeout for reading all nodes of a cluster. The remaining nodes are read in the next pass.
const READS: Duration = Duration::from_secs(15);
/// Most bytes of a response. A cluster map is larger: it takes 550 bytes for each member (recorded), up to
/// [`wire::MAX_MEMBERS`] members.
const MAX_ANSWER: usize = 256 * 1024;
/// Most bytes of a cluster map.
const MAX_MAP: usize = 2 * 1024 * 1024;
/// How long a write continues in the background: with a hung node, the cluster takes 33 s to answer.
const WRITE: Duration = Duration::from_secs(45);
/// How long the caller waits for a write before it reads the nodes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout for starting or stopping a node's maintenance.
const MAINTENANCE: Duration = Duration::from_secs(10);
/// Most nodes of one cluster that are read at the same time, through its proxy. That many hung nodes cost one timeout
/// together.
const CONCURRENCY: usize = 16;
/// Longest idle timeout of a client pool, because the servers close their connections after 30 s.
const MAX_IDLE_TIME: Duration = Duration::from_secs(29);

/// The supported limits and their paths in the configuration.
const PLACES: [(Limit, &str); 4] = [
    (Limit::IntraClusterIdleConnTimeout, "idle_conn_time"),
    (Limit::IntraClusterMaxIdleConns, "idle_conns"),
    (Limit::IntraClusterMaxIdleConnsPerHost, "idle_conns_per_host"),
    (Limit::BackendIdleConnTimeout, "backend_idle_conn_time"),
];

/// Transports are created when the process starts and keep their settings.
fn capability(key: Limit) -> Capability {
    if PLACES.iter().any(|(limit, _)| *limit == key) { Capability::AfterRestart } else { Capability::Unsupported }
}

fn cap(key: Limit, value: Value) -> Value {
    match (key, value) {
        (Limit::IntraClusterIdleConnTimeout, Value::Duration(d)) => Value::Duration(d.min(MAX_IDLE_TIME)),
        (Limit::IntraClusterMaxIdleConns, Value::Count(n)) => Value::Count(n.min(4096)),
        (Limit::IntraClusterMaxIdleConnsPerHost, Value::Count(n)) => Value::Count(n.min(128)),
        (_, value) => value,
    }
}

/// The server rejects a total below its per-host value, so the same write must lower the per-host value.
fn dependent_limits(declared: &LimitValues, state: &UnitState, saved: Option<&Sites>) -> LimitValues {
    let mut companions = LimitValues::new();
    let (total, per_host) = (Limit::IntraClusterMaxIdleConns, Limit::IntraClusterMaxIdleConnsPerHost);
    if let (Some(Value::Count(total)), None) = (declared.get(&total), declared.get(&per_host)) {
        let is_per_host = |site: &ConfigPath| site.limit == per_host;
        let now = state.sites.iter().find(|(site, _)| is_per_host(site)).and_then(|(_, stored)| stored.raw.as_ref()?.as_i64());
        let before = saved.and_then(|sites| sites.iter().find(|(site, _)| is_per_host(site))?.1.as_ref()?.as_i64());
        if before.max(now).is_some_and(|most| most > i64::from(*total)) {
            companions.insert(per_host, Value::Count((*total).min(128)));
        }
    }
    companions
}

/// Transports of every node, each with connections to every other node: control and data.
const TRANSPORTS: f64 = 2.0;
/// Goroutines of an idle connection on the node that opened it: a reader and a writer.
const OPENED: f64 = 2.0;
/// Goroutines of an idle connection on the node that accepted it.
const ACCEPTED: f64 = 1.0;

/// Upper bound of pooled goroutines, from the number of idle connections between each node and every other node.
///
/// A proxy has a third transport for requests that it passes on (`ais/prxrev.go`). The cluster does not pool
/// connections of outside clients, and its limits do not apply to them. Connections to backends have no upper bound.
fn most_pooled(limits: &LimitValues, nodes: &[&NodeState]) -> Option<MostPooled> {
    if limits.contains_key(&Limit::BackendIdleConnTimeout) {
        return None;
    }
    let Some(Value::Count(per_host @ 1..)) = limits.get(&Limit::IntraClusterMaxIdleConnsPerHost) else { return None };
    let per_host = f64::from(*per_host);
    let total = match limits.get(&Limit::IntraClusterMaxIdleConns) {
        Some(Value::Count(total @ 1..)) => f64::from(*total),
        _ => f64::INFINITY,
    };
    let count = |n: usize| u32::try_from(n).map(f64::from).ok();
    let others = count(nodes.len().saturating_sub(1))?;
    // For a node without a known role, use the larger figure.
    let is_target = |node: &NodeState| node.process.as_ref().is_some_and(|process| process.drains);
    let proxies = count(nodes.iter().filter(|node| !is_target(node)).count())?;
    let of = |node: &&NodeState| {
        let (transports, passed_on) = if is_target(node) { (TRANSPORTS, proxies) } else { (TRANSPORTS + 1.0, proxies - 1.0) };
        let opened = OPENED * transports * (per_host * others).min(total);
        let accepted = ACCEPTED * per_host * TRANSPORTS.mul_add(others, passed_on);
        (node.name.clone(), opened + accepted)
    };
    Some(nodes.iter().map(of).collect())
}

/// One cluster.
pub struct AIStore {
    places: Vec<TargetAddress>,
    credentials: Credentials,
    provider: Provider,
    /// Whether to skip nodes that did not answer the last request: while a new generation waits, and after a write.
    hurry: AtomicBool,
}

impl AIStore {
    /// The cluster with proxies at these places. For `hurry`, see [`super::Reach`].
    #[must_use]
    pub const fn new(places: Vec<TargetAddress>, credentials: Credentials, provider: Provider, hurry: bool) -> Self {
        Self { places, credentials, provider, hurry: AtomicBool::new(hurry) }
    }

    fn request(&self, address: &str, path: &str, node: Option<&str>) -> Request {
        let most = if path == MAP { MAX_MAP } else { MAX_ANSWER };
        let mut request = Request { most, ..Request::get(address, path, READ) };
        if let Some(token) = &self.credentials.token {
            request.headers.push(("authorization".into(), format!("Bearer {token}")));
        }
        if let Some(node) = node {
            request.headers.push(("ais-node-id".into(), node.to_owned()));
        }
        request
    }

    /// A request that changes the cluster.
    fn change(&self, address: &str, body: &Json, timeout: Duration) -> Request {
        let body = Some(body.to_string().into_bytes());
        Request { method: Method::PUT, timeout, body, ..self.request(address, "/v1/cluster", None) }
    }

    fn checked(&self, address: &str, response: Response) -> Result<Response, Fault> {
        checked(address, self.credentials.token.is_some(), response)
    }

    async fn get(&self, address: &str, path: &str, node: Option<&str>) -> Result<Response, Fault> {
        let response = self.provider.send(self.credentials.ca.as_deref(), self.request(address, path, node)).await?;
        self.checked(address, response)
    }

    async fn json<T: serde::de::DeserializeOwned>(
        &self,
        address: &str,
        path: &str,
        node: Option<&str>,
    ) -> Result<(T, Response), Fault> {
        let response = self.get(address, path, node).await?;
        let value = serde_json::from_slice(&response.body).map_err(|_| {
            Fault::new(Cause::Unreachable, format!("{address} did not respond like AIStore; check that it is an AIStore proxy"))
        })?;
        Ok((value, response))
    }

    /// The cluster map. Fails if the map is too large.
    async fn map(&self, address: &str) -> Result<wire::ClusterMap, Fault> {
        let (map, _) = self.json::<wire::ClusterMap>(address, MAP, None).await?;
        if map.exceeds() {
            let message = format!(
                "{address} reports more than {} cluster members, or an id that is too long; such a cluster is not supported",
                wire::MAX_MEMBERS
            );
            return Err(Fault::new(Cause::Unreachable, message));
        }
        Ok(map)
    }

    /// The values that one node stores, unless `until` has passed.
    async fn node_until(&self, address: &str, id: &str, until: Instant) -> (NodeState, Option<Timestamp>) {
        let late = || {
            let message = format!("{id} was not read: the other nodes of the cluster took more than {READS:?}");
            (NodeState::new(id, Err(Fault::new(Cause::NotReady, message))), None)
        };
        if Instant::now() >= until {
            return late();
        }
        if self.hurry.load(Ordering::Relaxed) && self.provider.is_silent(id) {
            return (NodeState::new(id, Err(silent(id))), None);
        }
        let answer = self.node(address, id).await;
        self.provider.note_silent(id, answer.0.stored.as_ref().is_err_and(|fault| *fault == silent(id)));
        answer
    }

    /// The values that one node stores, and its uptime, as it reports them. The request goes through the proxy: the
    /// node's address from the cluster map is not trusted with a token.
    async fn node(&self, address: &str, id: &str) -> (NodeState, Option<Timestamp>) {
        let config = self.json::<wire::Config>(address, "/v1/reverse/daemon?what=config", Some(id)).await;
        let (config, response) = match config {
            Ok(answer) => answer,
            Err(fault) => {
                let fault = node_fault(id, fault);
                return (NodeState::new(id, Err(fault)), None);
            }
        };
        let http = config.net.http;
        let stored =
            PLACES.iter().filter_map(|(limit, key)| http.get(key).map(|raw| (*limit, wire::value(*limit, &raw)))).collect();
        // Without its status, a node still counts as programmed; only its restarts are unknown.
        let status = self.json::<wire::NodeStatus>(address, "/v1/reverse/daemon?what=node_status", Some(id)).await;
        let status = status.ok().map(|(status, _)| status);
        let uptime = status.as_ref().and_then(wire::NodeStatus::uptime);
        let process = status.map(|status| Process { pod: status.pod(), ..Process::default() });
        let changed = wire::local_time(&config.lastupdate_time, response.header("date"), clock::now());
        (NodeState { uptime, process, ..NodeState::new(id, Ok(stored)) }, changed)
    }
}

impl Target for AIStore {
    fn discover(&self) -> BoxFuture<'_, Result<Vec<Unit>, Fault>> {
        async move {
            let Some(place) = self.places.first() else { return Err(Fault::new(Cause::NotFound, "No AIStore proxy was found")) };
            // Only this request shows that the cluster has a primary that accepts changes.
            self.get(&place.address, "/v1/health?prr=true", None).await?;
            let map = self.map(&place.address).await?;
            Ok(vec![Unit {
                id: format!("aistore/{}", map.uuid),
                name: place.name.clone(),
                address: place.address.clone(),
                role: None,
            }])
        }
        .boxed()
    }

    fn read<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<UnitState, Fault>> {
        async move {
            let address = &unit.address;
            let map = self.map(address).await?;
            let (config, _) = self.json::<wire::Config>(address, "/v1/cluster?what=cluster_config", None).await?;
            let primary = map.proxy_si.daemon_id;
            let targets = map.tmap.by_id.len();
            let members: Vec<_> = map.tmap.by_id.into_iter().chain(map.pmap.by_id).collect();
            let there: BTreeSet<_> = members.iter().map(|(id, _)| id.as_str()).collect();
            self.provider.keep_silent(|id| there.contains(id));
            let until = Instant::now() + READS;
            let ids: Vec<String> = members.iter().map(|(id, _)| id.clone()).collect();
            let questions = stream::iter(ids).map(|id| async move { self.node_until(address, &id, until).await });
            let mut nodes: Vec<_> = questions.buffered(CONCURRENCY).collect().await;
            for (n, ((node, _), (id, member))) in nodes.iter_mut().zip(members).enumerate() {
                // In maintenance, the proxy answers for the node and does not know its pod.
                let process = node.process.get_or_insert_default();
                process.hosts = member.hosts();
                process.drained = member.in_maintenance();
                // Only nodes with data are drained. The primary goes last, because its restart causes an election.
                process.drains = n < targets;
                process.rank = if process.drains { 0 } else { 1 + u8::from(id == primary) };
                // An empty address means that the node has no page; the unit's address is a proxy's, which is another
                // node.
                node.serves = Serves::parse(&member.public_net.direct_url);
                node.metrics = Some(member.public_net.direct_url);
            }
            let sites = PLACES.iter().filter_map(|(limit, key)| {
                let raw = config.net.http.get(key)?;
                let stored = crate::decide::Stored { value: wire::value(*limit, &raw), raw: Some(raw) };
                Some((ConfigPath { limit: *limit, place: format!("net.http.{key}") }, stored))
            });
            Ok(UnitState {
                sites: sites.collect(),
                // The primary reports the time of the change before the last one, so take the latest time of all nodes.
                changed: nodes.iter().filter_map(|(_, changed)| *changed).max(),
                nodes: nodes.into_iter().map(|(node, _)| node).collect(),
                ..UnitState::default()
            })
        }
        .boxed()
    }

    fn drain<'a>(&'a self, unit: &'a Unit, node: &'a str, out: bool) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let action = if out { "start-maintenance" } else { "stop-maintenance" };
            let body = json!({"action": action, "value": {"sid": node, "skip_rebalance": true}});
            let request = self.change(&unit.address, &body, MAINTENANCE);
            let response = self.provider.send(self.credentials.ca.as_deref(), request).await?;
            self.checked(&unit.address, response).map(|_| ())
        }
        .boxed()
    }

    fn write<'a>(&'a self, unit: &'a Unit, _state: &'a UnitState, changes: &'a [Change]) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            self.hurry.store(true, Ordering::Relaxed);
            let request = self.change(&unit.address, &body(changes), WRITE);
            let response = self.provider.send_patiently(self.credentials.ca.clone(), request, WRITE_TIMEOUT).await?;
            self.checked(&unit.address, response).map(|_| ())
        }
        .boxed()
    }
}

/// One write with all fields: the cluster accepts all of them or none.
fn body(changes: &[Change]) -> Json {
    let fields = changes.iter().filter_map(|change| {
        let key = change.site.place.strip_prefix("net.http.")?;
        let value = match &change.to {
            NewValue::Value(value) => value.json(),
            NewValue::Raw(raw) => raw.clone()?,
        };
        Some((key.to_owned(), value))
    });
    json!({"action": "set-config", "value": {"net": {"http": Json::Object(fields.collect::<Map<_, _>>())}}})
}

/// The fault for a status other than 200.
fn checked(address: &str, with_token: bool, response: Response) -> Result<Response, Fault> {
    let said = || wire::message(&response.body).map_or_else(String::new, |message| format!(": {message}"));
    Err(match response.status {
        200..300 => return Ok(response),
        // The cause comes first, because long messages are shortened at the end.
        401 if !with_token => Fault::new(
            Cause::Unauthorized,
            format!("The cluster requires a token (401) and the policy has none; set tokenSecretRef{}", said()),
        ),
        401 => Fault::new(Cause::Unauthorized, format!("The cluster rejected the token (401){}", said())),
        403 => Fault::new(Cause::Forbidden, format!("The token lacks the permission (403){}", said())),
        502 => Fault::new(Cause::NotReady, format!("No primary proxy (502), as during an election; {address}{}", said())),
        503 | 504 => Fault::new(Cause::NotReady, format!("{address} is not ready ({}){}", response.status, said())),
        400 if wire::wants_https(&response.body) => {
            Fault::new(Cause::Rejected, format!("{address} requires HTTPS; set scheme: https, or https:// in the endpoint"))
        }
        400 | 405 | 501 => Fault::new(Cause::Rejected, format!("AIStore rejected the request ({}){}", response.status, said())),
        status => Fault::new(Cause::Unreachable, format!("{address} returned {status}{}", said())),
    })
}

/// The fault of one node behind the proxy, with the node's name.
fn node_fault(id: &str, fault: Fault) -> Fault {
    match fault.cause {
        Cause::NotReady => Fault::new(Cause::Unreachable, format!("the proxy cannot reach {id}")),
        Cause::Unreachable if fault.message.contains("did not answer") => silent(id),
        _ => fault,
    }
}

/// The fault of a node that hangs.
fn silent(id: &str) -> Fault {
    Fault::new(Cause::Unreachable, format!("{id} did not answer the proxy within {READ:?}"))
}

#[cfg(test)]
mod tests;
