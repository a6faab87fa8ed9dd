//! Probes for `spec.verify`: one connection to each node in each interval. [`crate::decide::verify`] judges the results.
//!
//! The common pool closes idle connections itself, so probes use a separate dialer. Their number is limited for the whole
//! operator and for each namespace, because a node may keep a connection as long as it likes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use http::{HeaderMap, Uri};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
};
use tracing::Instrument as _;

use super::{Context, PolicyRef, reachability};
use crate::{
    api::{refs::Scheme, verify::HttpGet},
    clock,
    decide::{
        NodeState, Serves, Unit, UnitResult,
        hash::fnv1a,
        measured::tolerance,
        verify::{Probe, Probes, key, programmed, steady},
    },
    pass::{PolicyHandle, world::Probing},
    pool::Provider,
    probe::{self, Ask, Server, http1, trust},
};

/// Maximum open probes of all policies.
const MAX_OPEN: usize = 64;
/// Maximum open probes of one namespace.
const MAX_OPEN_OF_NAMESPACE: usize = 16;
/// Minimum idle time after which a server counts as one that does not close.
const MIN_WAIT: Duration = Duration::from_secs(360);
/// Maximum idle time of a probe.
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// Time that a connection is watched after the tolerated idle timeout.
const MARGIN: Duration = Duration::from_secs(1);
/// Minimum requeue interval for a due probe.
const MIN_REQUEUE: Duration = Duration::from_millis(100);
/// The first probes of nodes are spread over the interval divided by this.
const FIRST_PART: u32 = 60;

/// TLS settings of probes. As in a kubelet's probes, no certificate is checked: nothing secret is sent.
static TLS: LazyLock<Result<Arc<ClientConfig>, String>> =
    LazyLock::new(|| trust::any().map_err(|error| format!("TLS is not available: {error}")));

/// Limits the open probes.
pub struct Slots {
    all: Arc<Semaphore>,
    namespaces: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Default for Slots {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MAX_OPEN)), namespaces: Mutex::default() }
    }
}

impl Slots {
    /// Waits for a slot of the namespace, then for one of all. `None` only if the process ends.
    async fn turn(&self, namespace: &str) -> Option<[OwnedSemaphorePermit; 2]> {
        let own = {
            let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
            namespaces
                .retain(|_, semaphore| Arc::strong_count(semaphore) > 1 || semaphore.available_permits() < MAX_OPEN_OF_NAMESPACE);
            namespaces.entry(namespace.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(MAX_OPEN_OF_NAMESPACE))).clone()
        };
        let own = own.acquire_owned().await.ok()?;
        Some([own, self.all.clone().acquire_owned().await.ok()?])
    }
}

/// Probes of one policy. Dropping this ends them.
#[derive(Default)]
pub struct Verifier {
    nodes: BTreeMap<String, Node>,
    found: Arc<Mutex<Probes>>,
    /// Request of the probes. A new request invalidates the results.
    asks: Option<HttpGet>,
}

/// Schedule of the probes of a node.
struct Node {
    due: Instant,
    running: Option<AbortHandle>,
}

impl Node {
    fn runs(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.is_finished())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

impl Verifier {
    /// Returns the results by node.
    fn found(&self) -> Probes {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets nodes that are gone.
    fn keep_only(&mut self, there: &BTreeSet<String>) {
        self.nodes.retain(|key, _| there.contains(key));
        self.found.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| there.contains(key));
    }
}

/// Begins the due probes, except of units that wait to be written.
pub fn look(
    ctx: &Context,
    reference: &PolicyRef,
    policy: &PolicyHandle,
    verifier: &mut Option<Verifier>,
    results: &[UnitResult],
    all: bool,
    waiting: &BTreeSet<String>,
) -> Probing {
    let Some(spec) = policy.spec().verify.as_ref().map(|verify| &verify.server) else {
        *verifier = None;
        return Probing::default();
    };
    let verifier = verifier.get_or_insert_default();
    if verifier.asks.as_ref() != Some(&spec.http_get) {
        *verifier = Verifier { asks: Some(spec.http_get.clone()), ..Verifier::default() };
    }
    let interval = spec.interval.get().unwrap_or(MAX_WAIT);
    let read = results.iter().filter_map(|result| Some((&result.unit, result.state.as_ref().ok()?)));
    let nodes = read.flat_map(|(unit, state)| state.nodes.iter().map(move |node| (unit, node)));
    let nodes: Vec<_> = nodes.filter(|(_, node)| node.stored.is_ok()).collect();
    if all {
        verifier.keep_only(&nodes.iter().map(|(unit, node)| key(unit, node)).collect());
    }
    let now = Instant::now();
    for (unit, node) in nodes.into_iter().filter(|(unit, _)| !waiting.contains(&unit.name)) {
        let key = key(unit, node);
        let first = || Node { due: now + interval / FIRST_PART * share(&key) / 1000, running: None };
        let known = verifier.nodes.entry(key.clone()).or_insert_with(first);
        if known.runs() || known.due > now {
            continue;
        }
        known.due = now + until_slot(clock::now().as_millisecond(), interval, &key);
        known.running = Some(begin(ctx, reference, policy, &spec.http_get, unit, node, verifier.found.clone()));
    }
    let idle = verifier.nodes.values().filter(|node| !node.runs());
    let due = idle.map(|node| node.due.saturating_duration_since(now).max(MIN_REQUEUE)).min();
    Probing { found: Some(verifier.found()), due }
}

/// Returns a node's fixed position in the interval, in thousandths. The low bits of FNV alone are similar for names that differ
/// only in the last digit.
fn share(key: &str) -> u32 {
    let hash = fnv1a(key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from((hash >> 32) % 1000).unwrap_or_default()
}

/// Returns the time until the node's position in the next interval: at least one interval, and less than two.
fn until_slot(now: i64, interval: Duration, key: &str) -> Duration {
    let length = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
    let own = i64::from(share(key)) * (length / 1000);
    interval + Duration::from_millis(u64::try_from((own - now).rem_euclid(length)).unwrap_or_default())
}

/// Probes one node in the background, and enqueues the policy if the result is new.
fn begin(
    ctx: &Context,
    reference: &PolicyRef,
    policy: &PolicyHandle,
    http_get: &HttpGet,
    unit: &Unit,
    node: &NodeState,
    found: Arc<Mutex<Probes>>,
) -> AbortHandle {
    let job = Job {
        namespace: policy.namespace.clone(),
        policy: reference.clone(),
        provider: ctx.pool.provider(&policy.path),
        http_get: http_get.clone(),
        serves: node.serves.clone(),
        programmed: programmed(node),
        key: key(unit, node),
    };
    let me = ctx.me.clone();
    let span = tracing::error_span!("probe", policy = policy.path, node = node.name);
    let probing = async move {
        let Some(slots) = me.upgrade().map(|ctx| ctx.probes.clone()) else { return };
        let Some(_turn) = slots.turn(&job.namespace).await else { return };
        // In a box, because thousands of nodes may wait for their turn.
        Box::pin(job.run(me, &found)).await;
    };
    tokio::spawn(probing.instrument(span)).abort_handle()
}

/// One probe.
struct Job {
    namespace: String,
    policy: PolicyRef,
    provider: Provider,
    http_get: HttpGet,
    serves: Option<Serves>,
    programmed: Option<Duration>,
    key: String,
}

impl Job {
    /// Probes the node and records the result. The context is not held while the connection is idle.
    async fn run(self, me: Weak<Context>, found: &Mutex<Probes>) {
        // The slot may have become free long after the pass.
        let Some(ctx) = me.upgrade().filter(|ctx| ctx.leadership.holds()) else { return };
        let target = self.target(&ctx).await;
        drop(ctx);
        let outcome = match target {
            Ok((server, ask)) => {
                probe::idle(http1::open(&server), &ask, self.wait(), || {}).await.map_err(|error| error.to_string())
            }
            Err(reason) => Err(reason),
        };
        match &outcome {
            Ok(observed) => {
                tracing::debug!(observed = ?observed.idled, programmed = ?self.programmed, "measured the idle timeout");
            }
            Err(reason) => tracing::debug!(reason, "cannot measure the idle timeout"),
        }
        let is_new = {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            let before = found.get(&self.key).and_then(|probe| probe.outcome.as_ref().ok().copied());
            let outcome = outcome.map(|observed| steady(observed.idled, self.programmed, before));
            let probe = Probe { programmed: self.programmed, outcome };
            found.insert(self.key.clone(), probe.clone()) != Some(probe)
        };
        if let Some(ctx) = me.upgrade().filter(|_| is_new) {
            // This fails only after the controller has ended.
            let _ = ctx.nudges.send(self.policy);
        }
    }

    /// Returns the maximum idle time: long enough to observe another idle timeout.
    fn wait(&self) -> Duration {
        let needed = self.programmed.map(|time| time + tolerance(time) + MARGIN).unwrap_or_default();
        needed.clamp(MIN_WAIT, MAX_WAIT)
    }

    /// Returns the server and the request. The address is checked like every other address that a node names.
    async fn target(&self, ctx: &Context) -> Result<(Server, Ask), String> {
        let serves = self.serves.as_ref().ok_or("the address of the node is not known")?;
        let port = self.http_get.port.or(serves.port).ok_or("the port is not known; set spec.verify.server.httpGet.port")?;
        let tls = self.http_get.scheme.map_or(serves.tls, |scheme| scheme == Scheme::Https);
        let scheme = if tls { "https" } else { "http" };
        let origin = format!("{scheme}://{}:{port}", serves.host);
        let addresses = reachability::addresses(ctx, &self.namespace, &self.provider, &origin).await;
        let addresses = addresses.ok_or_else(|| {
            format!("{origin} is neither an address of a pod of this namespace nor in the operator's --allow-endpoints")
        })?;
        let host = self.http_get.host.clone().unwrap_or_else(|| serves.host.clone());
        let unusable = || format!("{host} is not a valid host name");
        let tls = if tls {
            let name =
                ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']').to_owned()).map_err(|_| unusable())?;
            Some((TLS.clone()?, name))
        } else {
            None
        };
        let authority = if self.http_get.host.is_some() { host.clone() } else { format!("{host}:{port}") };
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(&*self.http_get.path).build();
        Ok((Server { addresses, tls }, Ask { uri: uri.map_err(|_| unusable())?, headers: HeaderMap::new() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_moment_in_the_interval() {
        let hour = Duration::from_secs(3600);
        let mut now = 1_790_000_123_456;
        let mut moments = Vec::new();
        for _ in 0..4 {
            let wait = until_slot(now, hour, "u1 gateway-1");
            assert!(wait >= hour && wait < hour * 2, "{wait:?}");
            now += i64::try_from(wait.as_millis()).expect("a time");
            moments.push(now % 3_600_000);
        }
        assert!(moments.windows(2).all(|pair| pair[0] == pair[1]), "{moments:?}");
        let places: std::collections::BTreeSet<_> = (0..1000).map(|n| share(&format!("u{n} gateway-{n}"))).collect();
        assert!(places.len() > 500, "nodes are spread: {}", places.len());
    }

    #[tokio::test]
    async fn a_namespace_has_a_part_of_the_turns() {
        let slots = Slots::default();
        let mut held = Vec::new();
        for namespace in ["a", "b", "c", "d", "e"] {
            for _ in 0..MAX_OPEN_OF_NAMESPACE {
                let turn = tokio::time::timeout(Duration::from_millis(50), slots.turn(namespace)).await;
                held.extend(turn.ok().flatten());
            }
            if namespace == "a" {
                let more = tokio::time::timeout(Duration::from_millis(50), slots.turn("a")).await;
                assert!(more.is_err(), "all slots of the namespace are used");
            }
        }
        assert_eq!(held.len(), MAX_OPEN);
    }
}
