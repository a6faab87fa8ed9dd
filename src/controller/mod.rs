//! Controller: watches, gathers, applies and reports. [`crate::decide`] makes the decisions.

mod adaptation;
mod apply;
mod claims;
mod client;
pub mod connections;
mod gather;
pub mod live;
mod logging;
mod memory;
mod originals;
mod places;
mod planted;
mod pods;
mod reachability;
mod reconcile;
mod report;
pub mod restart;
mod restore;
mod rollout;
pub mod scheduler;
pub mod served;
mod verify;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    future::ready,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    core::ParseExpressionError,
    runtime::{
        Config, Controller, Predicate as _, PredicateConfig, WatchStreamExt as _,
        controller::Action,
        predicates,
        reflector::{self, ObjectRef},
        watcher,
    },
};
use tokio::sync::{mpsc, watch};

use crate::{
    api::{FINALIZER, IdleConnectionPolicy, IdleConnectionPolicySpec, StoredPolicy},
    budget::Budget,
    decide::claims::Claimant,
    leader::Leadership,
    metrics::Metrics,
    pool::Pool,
    targets::{AllowList, Reach},
};
pub use client::{Error as ClientError, LEASE_PROVIDER, PROVIDER, client, lease_client};
use memory::Memory;

/// Timeout of a call to the API server. kube's own retries would hold a worker for many minutes.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum bytes of node responses that are kept until their passes end, for all namespaces; one namespace gets a quarter of it.
const KEPT: usize = 48 * 1024 * 1024;
/// Bytes that each namespace gets in any case.
const KEPT_FLOOR: usize = 256 * 1024;
/// Edits within this time of each other cause one pass.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// Namespace and name of a policy.
pub type PolicyRef = ObjectRef<StoredPolicy>;

/// Returns `namespace/name` of a policy, as in logs and metrics.
fn path(policy: &PolicyRef) -> String {
    format!("{}/{}", policy.namespace.as_deref().unwrap_or_default(), policy.name)
}

/// Reason why a pass failed. The operator retries; the status stays as it is, because nothing was observed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server rejected the request, or it failed.
    #[error("the request to the API server failed: {0}")]
    Kube(#[from] kube::Error),
    /// The API server did not answer.
    #[error("the API server did not answer within {API_TIMEOUT:?}")]
    TimedOut,
    /// The pods of this namespace were not listed in time.
    #[error("the pods in namespace {0} were not listed in time; check that the operator may list and watch pods there")]
    Pods(String),
    /// The operator has no right to watch pods.
    #[error("the operator lacks the right to list and watch pods; grant it in this namespace")]
    PodsForbidden,
    /// The label selector is not valid.
    #[error("the selector in spec.target is not a valid label selector")]
    Selector(#[from] ParseExpressionError),
    /// The original settings in this ControllerRevision cannot be read. The cause is left out: it quotes the content.
    #[error(
        "ControllerRevision {0} contains no readable original settings; repair or delete it, because nothing is written before that"
    )]
    Original(String),
    /// The original settings have not been read; nothing is written before that.
    #[error("the original settings of the nodes have not been read yet; nothing is written before that")]
    Unread,
    /// This version cannot read the policy, so it cannot write the status either.
    #[error("{0}")]
    Unreadable(String),
    /// The API server never sends a policy without these.
    #[error("the API server sent a policy without a namespace, uid or creation timestamp")]
    Nameless,
    /// The policy is being deleted; the pass for the deletion comes next.
    #[error("the pass was cancelled because the policy is being deleted")]
    Cancelled,
    /// A pass took too long.
    #[error("reading the nodes took more than {:?}; the operator retries", scheduler::DEADLINE)]
    Overdue,
    /// A panic was caught.
    #[error("a pass of this policy panicked, and other policies are not affected; report the panic with the operator's log")]
    Panicked,
    /// The API server rejected the status. The pass continues: the nodes are written all the same.
    #[error("the API server rejected the status: {0}")]
    StatusRefused(String),
    /// `release` could not restore the nodes of this number of policies.
    #[error(
        "policies that keep their finalizer because nodes could not be restored: {0}; fix the errors above and run release again"
    )]
    Unreleased(usize),
}

/// Waits for a call to the API server, at most [`API_TIMEOUT`].
async fn in_time<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(API_TIMEOUT, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Error::TimedOut),
    }
}

/// Settings of the controller, from flags.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespaces to watch; empty means all.
    pub namespaces: Vec<String>,
    /// Addresses that `endpoint` fields may name.
    pub allow_endpoints: AllowList,
    /// Interval at which nodes are read if nothing happens.
    pub resync: Duration,
    /// Decide and report, but write to no node.
    pub dry_run: bool,
    /// Name of this process in Events.
    pub instance: String,
}

/// Shared state of all passes.
pub struct Context {
    client: Client,
    /// Connections of all requests, including those to the API server.
    pub pool: Pool,
    settings: Settings,
    /// The operator's own metrics.
    pub metrics: Metrics,
    pods: pods::Pods,
    board: claims::Board,
    /// Schedules the passes.
    pub scheduler: Arc<scheduler::Scheduler>,
    /// Limits the probes of all policies.
    probes: Arc<verify::Slots>,
    /// Memory budget for node responses, by namespace.
    kept: Budget,
    nudges: mpsc::UnboundedSender<PolicyRef>,
    memories: Mutex<HashMap<PolicyRef, Arc<tokio::sync::Mutex<Memory>>>>,
    /// Policies from the watch.
    pub policies: reflector::Store<StoredPolicy>,
    /// Results of passes and samples, for the API and the metrics.
    pub live: live::Board,
    ready: AtomicBool,
    served: watch::Sender<Arc<served::Served>>,
    /// Whether this process is the leader.
    pub leadership: Leadership,
    /// Weak reference to itself, for tasks that must not keep it alive.
    me: Weak<Context>,
}

impl Context {
    fn memory(&self, policy: &PolicyRef) -> Arc<tokio::sync::Mutex<Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).entry(policy.clone()).or_default().clone()
    }

    fn reach(&self, subject: &Subject) -> Reach {
        let provider = self.pool.provider(&subject.path);
        let observed = subject.object.status.as_ref().and_then(|status| status.observed_generation);
        let hurry = observed != subject.object.metadata.generation;
        Reach { client: self.client.clone(), namespace: subject.namespace.clone(), provider, hurry }
    }

    fn forget(&self, policy: &PolicyRef) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(policy);
        self.pods.subscribe(policy, None);
        self.pool.forget(&path(policy));
        self.live.forget(policy);
        self.metrics.forget(policy.namespace.as_deref().unwrap_or_default(), &policy.name);
    }

    /// Enqueues policies for another pass.
    fn enqueue(&self, claimants: BTreeSet<Claimant>) {
        for claimant in claimants {
            // This fails only after the controller has ended.
            let _ = self.nudges.send(PolicyRef::new(&claimant.name).within(&claimant.namespace));
        }
    }

    /// Forgets a policy that is gone, and enqueues the policies that waited for it or lost their target to it.
    fn gone(&self, policy: &PolicyRef) {
        self.forget(policy);
        self.enqueue(self.board.forget(policy.namespace.as_deref().unwrap_or_default(), &policy.name, None));
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
    pub fn new(client: &Client, pool: &Pool, settings: Settings, metrics: Metrics, leadership: Leadership) -> Self {
        let client = client::led(client, leadership.clone());
        let (nudges, inbox) = mpsc::unbounded_channel();
        let (policies, writer) = reflector::store();
        let context = Arc::new_cyclic(|me| Context {
            me: me.clone(),
            pods: pods::Pods::new(client.clone(), nudges.clone()),
            client,
            pool: pool.led(leadership.clone()),
            settings,
            metrics,
            board: claims::Board::default(),
            scheduler: Arc::default(),
            probes: Arc::default(),
            kept: Budget::new(KEPT, KEPT_FLOOR),
            nudges,
            memories: Mutex::default(),
            policies,
            live: live::Board::default(),
            ready: AtomicBool::new(false),
            served: watch::Sender::default(),
            leadership,
        });
        Self { context, writer, inbox }
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
        let gone = {
            let context = context.clone();
            move |name: &str, namespace: Option<&str>| {
                let Some(namespace) = namespace else { return };
                context.gone(&PolicyRef::new(name).within(namespace));
            }
        };
        let nudged = stream::unfold(inbox, |mut inbox| async { inbox.recv().await.map(|policy| (policy, inbox)) });
        let inherited = {
            let context = context.clone();
            stream::once(async move {
                context.leadership.begun().await;
                stream::iter(context.policies.state().into_iter().map(|policy| PolicyRef::from_obj(&*policy)).collect::<Vec<_>>())
            })
            .flatten()
        };
        let seen = context.clone();
        let controller = Controller::for_stream(triggers, reader)
            .with_config(Config::default().debounce(DEBOUNCE))
            .reconcile_on(stream::select(nudged, inherited))
            .graceful_shutdown_on(stop)
            .run(reconcile::reconcile, error_policy, context.clone())
            .for_each(move |result| {
                if let Err(kube::runtime::controller::Error::ObjectNotFound(policy)) = result {
                    gone(&policy.name, policy.namespace.as_deref());
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
        Box::pin(restore::release(&self.context, all)).await
    }
}

/// Watches the policies of all namespaces, or of the configured ones.
fn watch(context: &Arc<Context>) -> impl Stream<Item = Result<watcher::Event<StoredPolicy>, watcher::Error>> + Send + 'static {
    let apis: Vec<Api<StoredPolicy>> = match &context.settings.namespaces[..] {
        [] => vec![Api::all(context.client.clone())],
        listed => listed.iter().map(|namespace| Api::namespaced(context.client.clone(), namespace)).collect(),
    };
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
    let mut lists = Lists::of(context, streams.len());
    // Several lists fill one store. It is emptied once, at the start: a list that begins later must not empty it again.
    let begin = if several { vec![Ok(watcher::Event::Init), Ok(watcher::Event::InitDone)] } else { Vec::new() };
    let events = stream::select_all(streams).flat_map(move |(n, event)| stream::iter(lists.follow(n, event)));
    stream::iter(begin).chain(events)
}

/// Lists that fill the store of policies. A watch follows each list.
struct Lists {
    context: Arc<Context>,
    several: bool,
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
    fn of(context: &Arc<Context>, lists: usize) -> Self {
        Self {
            context: context.clone(),
            several: lists > 1,
            unlisted: (0..lists).collect(),
            listed: false,
            named: HashMap::new(),
            known: HashMap::new(),
            said: HashSet::new(),
        }
    }

    /// Converts an event of one list to the events for the store.
    fn follow(
        &mut self,
        n: usize,
        event: watcher::Result<watcher::Event<StoredPolicy>>,
    ) -> Vec<watcher::Result<watcher::Event<StoredPolicy>>> {
        let events = match event {
            Ok(watcher::Event::Init) => {
                self.named.insert(n, HashSet::new());
                if self.several { Vec::new() } else { vec![Ok(watcher::Event::Init)] }
            }
            Ok(watcher::Event::InitApply(policy)) => {
                self.named.entry(n).or_default().insert(PolicyRef::from_obj(&policy));
                self.seen(n, &policy);
                vec![Ok(if self.several { watcher::Event::Apply(policy) } else { watcher::Event::InitApply(policy) })]
            }
            Ok(watcher::Event::InitDone) => self.complete(n),
            Ok(watcher::Event::Apply(policy)) => {
                self.seen(n, &policy);
                vec![Ok(watcher::Event::Apply(policy))]
            }
            Ok(watcher::Event::Delete(policy)) => {
                let reference = PolicyRef::from_obj(&policy);
                self.known.entry(n).or_default().remove(&reference);
                self.context.gone(&reference);
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

    /// Records that a policy exists.
    fn seen(&mut self, n: usize, policy: &StoredPolicy) {
        let reference = PolicyRef::from_obj(policy);
        let deleted = policy.meta().deletion_timestamp.is_some();
        if deleted {
            self.context.scheduler.deletion_seen(&reference);
        }
        // A policy that is being deleted without the finalizer needs no pass.
        let over = deleted && !policy.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
        if !over && let Ok(subject) = Subject::new(policy.clone()) {
            self.context.board.listed(&subject.claimant, subject.spec().target.type_);
        }
        self.known.entry(n).or_default().insert(reference);
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
        if !self.several {
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
    if let Ok(subject) = Subject::new((*policy).clone()) {
        // Younger policies do not wait for one whose pass failed.
        context.enqueue(context.board.keep(&subject.claimant));
    }
    let policy = PolicyRef::from_obj(&*policy);
    let memory = context.memory(&policy);
    context.metrics.failed();
    let Ok(mut memory) = memory.try_lock() else { return Action::requeue(memory::wait(0)) };
    memory.failures = memory.failures.saturating_add(1);
    let text = logging::chain(error);
    if memory.news("error", &text) {
        tracing::warn!(policy = %path(&policy), error = text, "the pass failed; retrying");
    }
    Action::requeue(memory::wait(memory.failures - 1))
}

/// Policy with the metadata that the API server guarantees.
pub struct Subject {
    reference: PolicyRef,
    /// `namespace/name`, which also names the provider of its connections.
    path: String,
    namespace: String,
    name: String,
    uid: String,
    object: IdleConnectionPolicy,
    /// Message for the status if the policy has fields or values that this version does not know.
    refusal: Option<String>,
    claimant: Claimant,
    /// Whether a part of the status cannot be read. It counts as lost, and is written again.
    status_lost: bool,
    /// Deadline and cancellation of the current pass.
    visit: scheduler::Visit,
    /// Whether a policy in another namespace governs a target with the same identity.
    shared: bool,
}

impl Subject {
    fn new(stored: StoredPolicy) -> Result<Self, Error> {
        let refusal =
            |foreign| format!("{foreign}; upgrade the operator from {}, or remove it from the policy", env!("CARGO_PKG_VERSION"));
        let status_lost = stored.lost;
        let (object, foreign) = stored.read().map_err(|foreign| Error::Unreadable(refusal(foreign)))?;
        let (Some(namespace), Some(uid), Some(created)) = (object.namespace(), object.uid(), object.creation_timestamp()) else {
            return Err(Error::Nameless);
        };
        let name = object.name_any();
        let claimant = Claimant { created: created.0, namespace: namespace.clone(), name: name.clone() };
        Ok(Self {
            reference: PolicyRef::new(&name).within(&namespace),
            path: format!("{namespace}/{name}"),
            namespace,
            name,
            uid,
            object,
            refusal: foreign.map(refusal),
            claimant,
            status_lost,
            visit: scheduler::Visit::default(),
            shared: false,
        })
    }

    const fn spec(&self) -> &IdleConnectionPolicySpec {
        &self.object.spec
    }
}
