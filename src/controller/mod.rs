//! Controller: watches policies, begins passes, and carries out their requests. [`crate::pass`] says what comes next, and
//! [`crate::decide`] makes the decisions.

pub mod actors;
mod adaptation;
mod client;
pub mod connections;
pub mod crd_version;
mod discovery;
mod events;
mod known_pod;
pub mod live;
mod originals;
mod planted;
mod pods;
mod reachability;
mod reconcile;
mod release;
pub mod restart;
mod rollout;
mod saved_unit;
pub mod scheduler;
pub mod shell;
mod verify;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    future::ready,
    num::NonZeroU32,
    sync::{
        Arc, LazyLock, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    runtime::{
        Config, Controller, Predicate as _, PredicateConfig, WatchStreamExt as _,
        controller::Action,
        predicates,
        reflector::{self, ObjectRef},
        watcher,
    },
};
use tokio::sync::{Semaphore, mpsc};

pub use crate::pass::Error;
use crate::{
    api::{FINALIZER, StoredPolicy},
    budget::Budget,
    decide::{claims::Claimant, flush_rate::FlushRate, report::condition::shortened_to_bytes, shard::Shard},
    leader::Leadership,
    metrics::Metrics,
    pass::{
        API_TIMEOUT, ApiError, PolicyHandle,
        cache::{self, PolicyCache},
        claims::Registry,
        logging,
        world::Moment,
    },
    pool::Pool,
    targets::{self, AllowList},
};
pub use client::{Error as ClientError, LEASE_PROVIDER, PROVIDER, client, lease_client};

/// Maximum bytes of a message of the API server that are kept.
const MESSAGE_LENGTH: usize = 900;
/// Maximum bytes of node responses that are kept until their passes end, for all namespaces; one namespace gets a quarter of it.
const KEPT: usize = 48 * 1024 * 1024;
/// Bytes that each namespace gets in any case.
const KEPT_FLOOR: usize = 256 * 1024;
/// Most parts of reports (Events and statuses) that passes without a slot send at the same time, of the 64 requests to the API
/// server. If 1,000 policies are created, their nodes do not wait for the reports.
const REPORTS: usize = 8;
/// Most passes without a slot that have still to report; each holds some 25 KB. The others keep their slots until they have
/// reported.
const LEFT: usize = 640;
/// Edits within this time of each other cause one pass.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// Namespace and name of a policy.
pub type PolicyRef = ObjectRef<StoredPolicy>;

/// Returns `namespace/name` of a policy, as in logs and metrics.
fn path(policy: &PolicyRef) -> String {
    format!("{}/{}", policy.namespace.as_deref().unwrap_or_default(), policy.name)
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        let (code, message) = match &error {
            kube::Error::Api(status) => (Some(status.code), shortened_to_bytes(&status.message, MESSAGE_LENGTH)),
            _ => (None, String::new()),
        };
        Self::new(code, message, error)
    }
}

/// Returns the time since this process began.
fn moment() -> Moment {
    static BEGAN: LazyLock<tokio::time::Instant> = LazyLock::new(tokio::time::Instant::now);
    Moment(BEGAN.elapsed())
}

/// Waits for a call to the API server, at most [`API_TIMEOUT`].
async fn in_time<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(API_TIMEOUT, call).await {
        Ok(answer) => Ok(answer.map_err(ApiError::from)?),
        Err(_) => Err(Error::TimedOut),
    }
}

/// Settings of the controller, from flags.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// Namespaces to watch; empty means all.
    pub namespaces: Vec<String>,
    /// Addresses that `endpoint` fields may name.
    pub allow_endpoints: AllowList,
    /// Interval at which nodes are read if nothing happens.
    pub resync: Duration,
    /// Maximum number of nodes whose connections are closed by writes in any minute, by all shards together; `None` means no
    /// maximum.
    pub max_flushes_per_minute: Option<NonZeroU32>,
    /// Decide and report, but write to no node.
    pub dry_run: bool,
    /// Name of this process in Events.
    pub instance: String,
}

/// What is known of one policy between its passes.
#[derive(Default)]
struct Known {
    memory: tokio::sync::Mutex<PolicyCache>,
    running: Arc<Mutex<shell::Running>>,
}

/// What all actors of a process share.
#[derive(Clone)]
pub struct Process {
    client: Client,
    pool: Pool,
    settings: ControllerConfig,
    /// The operator's own metrics.
    pub metrics: Metrics,
    scheduler: Arc<scheduler::Scheduler>,
    probes: Arc<verify::Slots>,
    kept: Arc<Budget>,
    reports: Arc<Semaphore>,
    left: Arc<Semaphore>,
    served: Arc<crd_version::Check>,
}

impl Process {
    /// Prepares a process. No request is sent yet.
    #[must_use]
    pub fn new(client: &Client, pool: &Pool, settings: ControllerConfig, metrics: Metrics) -> Self {
        Self {
            client: client.clone(),
            pool: pool.clone(),
            settings,
            metrics,
            scheduler: Arc::default(),
            probes: Arc::default(),
            kept: Arc::new(Budget::new(KEPT, KEPT_FLOOR)),
            reports: Arc::new(Semaphore::new(REPORTS)),
            left: Arc::new(Semaphore::new(LEFT)),
            served: Arc::default(),
        }
    }

    /// Prepares the actor of a shard. No request is sent yet.
    #[must_use]
    pub fn actor(&self, shard: Shard, leadership: Leadership) -> Operator {
        let Self { pool, settings, metrics, scheduler, probes, kept, reports, left, served, .. } = self.clone();
        let client = client::led(&self.client, leadership.clone());
        let (nudges, inbox) = mpsc::unbounded_channel();
        let (policies, writer) = reflector::store();
        let context = Arc::new_cyclic(|me| Context {
            me: me.clone(),
            shard,
            pods: pods::Pods::new(client.clone(), nudges.clone()),
            client,
            pool: pool.led(leadership.clone()),
            settings,
            metrics,
            registry: Registry::of(shard),
            scheduler,
            probes,
            kept,
            reports,
            left,
            nudges,
            known: Mutex::default(),
            policies,
            live: live::LiveView::default(),
            ready: AtomicBool::new(false),
            served,
            flushes: Mutex::default(),
            leadership,
        });
        Operator { context, writer, inbox }
    }
}

/// Shared state of all passes of one actor.
pub struct Context {
    /// Namespaces of this actor. Of other policies, it knows only what they claim.
    pub shard: Shard,
    client: Client,
    /// Connections of all requests, including those to the API server.
    pub pool: Pool,
    settings: ControllerConfig,
    /// The operator's own metrics.
    pub metrics: Metrics,
    pods: pods::Pods,
    registry: Registry,
    /// Schedules the passes.
    pub scheduler: Arc<scheduler::Scheduler>,
    /// Limits the probes of all policies.
    probes: Arc<verify::Slots>,
    /// Memory budget for node responses, by namespace.
    kept: Arc<Budget>,
    /// Limits what passes without a slot report at the same time.
    reports: Arc<Semaphore>,
    /// Limits the passes without a slot.
    left: Arc<Semaphore>,
    nudges: mpsc::UnboundedSender<PolicyRef>,
    known: Mutex<HashMap<PolicyRef, Arc<Known>>>,
    /// Policies from the watch.
    pub policies: reflector::Store<StoredPolicy>,
    /// Results of passes and samples, for the API and the metrics.
    pub live: live::LiveView,
    ready: AtomicBool,
    served: Arc<crd_version::Check>,
    /// Writes of the last minute that closed connections; `None` before this actor acts, and without a maximum.
    flushes: Mutex<Option<FlushRate>>,
    /// Whether this actor is the leader.
    pub leadership: Leadership,
    /// Weak reference to itself, for tasks that must not keep it alive.
    me: Weak<Context>,
}

impl Context {
    /// Returns what is known of a policy; nothing yet at its first pass.
    fn begin_to_know(&self, policy: &PolicyRef) -> Arc<Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).entry(policy.clone()).or_default().clone()
    }

    /// Returns what is known of a policy that has had a pass.
    fn known(&self, policy: &PolicyRef) -> Option<Arc<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(policy).cloned()
    }

    fn forget(&self, policy: &PolicyRef) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(policy);
        self.pods.subscribe(policy, None);
        self.pool.forget(&path(policy));
        self.live.forget(policy);
        self.metrics.policies.forget(policy.namespace.as_deref().unwrap_or_default(), &policy.name);
    }

    /// Returns the policies of all namespaces, or of each of the configured ones.
    fn policy_apis(&self) -> Vec<Api<StoredPolicy>> {
        match &self.settings.namespaces[..] {
            [] => vec![Api::all(self.client.clone())],
            listed => listed.iter().map(|namespace| Api::namespaced(self.client.clone(), namespace)).collect(),
        }
    }

    /// Enqueues policies for another pass.
    fn enqueue(&self, claimants: BTreeSet<Claimant>) {
        // Other policies learn it from the status of the policy that is concerned here.
        for claimant in claimants.into_iter().filter(|claimant| self.shard.has(&claimant.namespace)) {
            // This fails only after the controller has ended.
            let _ = self.nudges.send(PolicyRef::new(&claimant.name).within(&claimant.namespace));
        }
    }

    /// Forgets a policy that is gone, and enqueues the policies that waited for it or lost their target to it.
    fn gone(&self, policy: &PolicyRef) {
        if self.governs(policy) {
            self.forget(policy);
        }
        self.enqueue(self.registry.forget(policy.namespace.as_deref().unwrap_or_default(), &policy.name, None));
    }

    /// Reports whether a policy belongs to the shard of this actor.
    fn governs(&self, policy: &PolicyRef) -> bool {
        self.shard.has(policy.namespace.as_deref().unwrap_or_default())
    }

    /// Removes what the process shows of this actor's policies: another actor governs them from now on.
    pub fn retire(&self) {
        let known = std::mem::take(&mut *self.known.lock().unwrap_or_else(PoisonError::into_inner));
        for policy in known.keys() {
            self.forget(policy);
        }
    }

    /// Begins to count the writes that close connections. Another process may have acted until now.
    fn count_flushes(&self) {
        let most = self.settings.max_flushes_per_minute.and_then(|most| NonZeroU32::new(most.get() / self.shard.count()));
        let rate = most.map(|most| FlushRate::new(most, moment().0));
        *self.flushes.lock().unwrap_or_else(PoisonError::into_inner) = rate;
    }

    /// Grants a part of so many writes that close connections; see [`crate::pass::world::World::may_flush`].
    fn may_flush(&self, nodes: usize) -> (usize, Option<Moment>) {
        match &mut *self.flushes.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(rate) => {
                let (granted, next) = rate.grant(nodes, moment().0);
                (granted, next.map(Moment))
            }
            None => (nodes, None),
        }
    }

    /// Reports whether the policies have been listed once. No pass begins before that.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Reports whether the policies have been listed once and the operator supports the installed CRD.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_listed() && self.served().obstacle().is_none()
    }
}

/// Controller that is ready to run.
pub struct Operator {
    /// Shared state, also used by the HTTP servers.
    pub context: Arc<Context>,
    writer: reflector::store::Writer<StoredPolicy>,
    inbox: mpsc::UnboundedReceiver<PolicyRef>,
}

impl Operator {
    /// Prepares the controller. No request is sent yet.
    #[must_use]
    pub fn new(client: &Client, pool: &Pool, settings: ControllerConfig, metrics: Metrics, leadership: Leadership) -> Self {
        Process::new(client, pool, settings, metrics).actor(Shard::ALL, leadership)
    }

    /// Runs until `stop`. As a standby, it only watches, so that it knows the policies when it becomes the leader. It waits for
    /// a missing CRD.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + Sync + 'static) {
        let Self { context, writer, inbox } = self;
        let reader = context.policies.clone();
        let triggers = watch(&context).reflect(writer).applied_objects().predicate_filter(
            predicates::generation.combine(predicates::finalizers).combine(predicates::annotations),
            PredicateConfig::default(),
        );
        let nudged = stream::unfold(inbox, |mut inbox| async { inbox.recv().await.map(|policy| (policy, inbox)) });
        let standby = context.clone();
        let inherited = stream::once(async move {
            standby.leadership.begun().await;
            standby.count_flushes();
            stream::iter(standby.policies.state().into_iter().map(|policy| PolicyRef::from_obj(&*policy)).collect::<Vec<_>>())
        })
        .flatten();
        let (seen, known) = (context.clone(), context.clone());
        let controller = Controller::for_stream(triggers, reader)
            .with_config(Config::default().debounce(DEBOUNCE))
            .reconcile_on(stream::select(nudged, inherited))
            .graceful_shutdown_on(stop)
            .run(reconcile::reconcile, error_policy, context.clone())
            .for_each(move |result| {
                if let Err(kube::runtime::controller::Error::ObjectNotFound(policy)) = result
                    && let Some(namespace) = &policy.namespace
                {
                    known.gone(&PolicyRef::new(&policy.name).within(namespace));
                }
                ready(())
            });
        tokio::select! {
            () = controller => {}
            () = seen.watch_served() => {}
        }
    }

    /// Restores the original settings and removes the finalizers of all policies, or only of those that are being deleted.
    ///
    /// # Errors
    /// If a request to the API server fails, or if a node cannot be restored. The log names such nodes, and their policies keep
    /// the finalizer.
    pub async fn release(self, all: bool) -> Result<(), Error> {
        Box::pin(release::release(&self.context, all)).await
    }
}

/// Watches the policies of all namespaces, or of the configured ones.
fn watch(context: &Arc<Context>) -> impl Stream<Item = Result<watcher::Event<StoredPolicy>, watcher::Error>> + Send + 'static {
    let apis = context.policy_apis();
    let several = apis.len() > 1;
    let streams = apis.into_iter().enumerate().map(|(n, api)| {
        let events = watcher(api, watcher::Config::default()).default_backoff();
        let trimmed = events.modify(|policy| {
            policy.managed_fields_mut().clear();
            // The annotations of an object may have up to 256 KiB.
            policy.annotations_mut().retain(|name, _| crate::api::PAUSES.contains(&name.as_str()));
        });
        trimmed.map(move |event| (n, event)).boxed()
    });
    let mut lists = Lists {
        context: context.clone(),
        merges: several,
        unlisted: (0..streams.len()).collect(),
        listed: false,
        named: HashMap::new(),
        known: HashMap::new(),
        said: HashSet::new(),
    };
    // Several lists fill one store. It is emptied once, at the start: a list that begins later must not empty it again.
    let begin = if several { vec![Ok(watcher::Event::Init), Ok(watcher::Event::InitDone)] } else { Vec::new() };
    let events = stream::select_all(streams).flat_map(move |(n, event)| stream::iter(lists.follow(n, event)));
    stream::iter(begin).chain(events)
}

/// Lists that fill the store of policies. A watch follows each list.
struct Lists {
    context: Arc<Context>,
    /// Whether each policy is stored as soon as it is named. If there is one watch, its first list is stored as a whole, and no
    /// pass begins before that. Later a pass can begin before the list is complete, and would find no new policy and the old
    /// version of an edited one.
    merges: bool,
    /// Indexes of the lists that are not complete yet.
    unlisted: HashSet<usize>,
    /// Whether a list has been complete.
    listed: bool,
    /// By list: policies of the list that is being read.
    named: HashMap<usize, HashSet<PolicyRef>>,
    /// By list: policies that exist, as far as known.
    known: HashMap<usize, HashSet<PolicyRef>>,
    said: HashSet<String>,
}

impl Lists {
    /// Converts an event of one list to the events for the store.
    fn follow(
        &mut self,
        n: usize,
        event: watcher::Result<watcher::Event<StoredPolicy>>,
    ) -> Vec<watcher::Result<watcher::Event<StoredPolicy>>> {
        let events = match event {
            Ok(watcher::Event::Init) => {
                self.named.insert(n, HashSet::new());
                if self.merges { Vec::new() } else { vec![Ok(watcher::Event::Init)] }
            }
            Ok(watcher::Event::InitApply(policy)) => {
                self.named.entry(n).or_default().insert(PolicyRef::from_obj(&policy));
                if !self.seen(n, &policy) {
                    return Vec::new();
                }
                vec![Ok(if self.merges { watcher::Event::Apply(policy) } else { watcher::Event::InitApply(policy) })]
            }
            Ok(watcher::Event::InitDone) => self.complete(n),
            Ok(watcher::Event::Apply(policy)) => {
                if !self.seen(n, &policy) {
                    return Vec::new();
                }
                vec![Ok(watcher::Event::Apply(policy))]
            }
            Ok(watcher::Event::Delete(policy)) => {
                let reference = PolicyRef::from_obj(&policy);
                self.known.entry(n).or_default().remove(&reference);
                self.context.gone(&reference);
                if !self.context.governs(&reference) {
                    return Vec::new();
                }
                vec![Ok(watcher::Event::Delete(policy))]
            }
            Err(error) => {
                self.failed(n, &error);
                vec![Err(error)]
            }
        };
        if self.listed && self.unlisted.is_empty() && !self.context.ready.swap(true, Ordering::Relaxed) {
            tracing::info!("listed the policies; ready");
        }
        events
    }

    /// Records that a policy exists. Returns whether it is one of this actor.
    fn seen(&mut self, n: usize, policy: &StoredPolicy) -> bool {
        let reference = PolicyRef::from_obj(policy);
        let governed = self.context.governs(&reference);
        let deleted = policy.meta().deletion_timestamp.is_some();
        if deleted && governed {
            self.context.scheduler.deletion_seen(&reference);
        }
        // A policy that is being deleted without the finalizer needs no pass.
        let over = deleted && !policy.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
        if !over && let Ok(policy) = PolicyHandle::new(policy.clone()) {
            let kind = policy.spec().target.type_;
            let states_identity = targets::kind(kind).states_identity;
            let published = policy.object.status.as_ref().and_then(|status| status.claims.as_ref());
            if governed {
                self.context.registry.listed(&policy.claimant, kind, states_identity);
            } else if published.is_some() || !deleted {
                self.context.enqueue(self.context.registry.foreign(&policy.claimant, kind, published));
            }
        }
        self.known.entry(n).or_default().insert(reference);
        governed
    }

    /// Completes a list. Known policies that it does not contain were deleted while there was no watch.
    fn complete(&mut self, n: usize) -> Vec<watcher::Result<watcher::Event<StoredPolicy>>> {
        self.said.clear();
        self.unlisted.remove(&n);
        self.listed = true;
        let named = self.named.remove(&n).unwrap_or_default();
        let before = self.known.insert(n, named.clone()).unwrap_or_default();
        let gone: Vec<_> = before.difference(&named).collect();
        for reference in &gone {
            self.context.gone(reference);
        }
        if !self.merges {
            self.merges = true;
            return vec![Ok(watcher::Event::InitDone)];
        }
        let policies = gone.into_iter().filter_map(|reference| self.context.policies.get(reference));
        policies.map(|policy| Ok(watcher::Event::Delete((*policy).clone()))).collect()
    }

    fn failed(&mut self, n: usize, error: &watcher::Error) {
        let text = error.to_string();
        if self.said.insert(text.clone()) {
            tracing::warn!(
                error = text,
                "policies cannot be watched; check that the CRD is installed and that the operator may watch policies; retrying"
            );
        }
        // A namespace in which the operator has no rights does not delay the others.
        if pods::is_forbidden(error) {
            self.unlisted.remove(&n);
        }
    }
}

#[allow(clippy::needless_pass_by_value)] // The signature is kube's.
fn error_policy(policy: Arc<StoredPolicy>, error: &Error, context: Arc<Context>) -> Action {
    if let Ok(policy) = PolicyHandle::new((*policy).clone()) {
        // Younger policies do not wait for one whose pass failed.
        context.enqueue(context.registry.keep(&policy.claimant));
    }
    let policy = PolicyRef::from_obj(&*policy);
    let known = context.begin_to_know(&policy);
    context.metrics.failed();
    let Ok(mut memory) = known.memory.try_lock() else { return Action::requeue(cache::wait(0)) };
    memory.failures = memory.failures.saturating_add(1);
    let text = logging::chain(error);
    if memory.is_new_message("error", &text) {
        tracing::warn!(policy = %path(&policy), error = text, "the pass failed; retrying");
    }
    Action::requeue(cache::wait(memory.failures - 1))
}
