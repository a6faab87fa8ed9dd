//! The world of a pass: each request waits until the exploration answers it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, poll_fn},
    sync::{Arc, Mutex, MutexGuard},
    task::{Poll, Waker},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use idleconn_operator::{
    api::{
        IdleConnectionPolicyStatus, Limit, StoredPolicy,
        adaptive::Source,
        config_map::ConfigMap,
        policy::{Target as TargetSpec, TargetType},
    },
    decide::{
        Capability, Change, Declared, Fault, PacedBy, TargetCapabilities, Unit, UnitResult, UnitState,
        adaptive::{config::Config, signal::Signal},
        claims::Claimant,
        originals::{Log, Record, Saved},
        report::condition::Notice,
        restart::eviction::Pod,
        restart::rollout::Workload,
    },
    pass::{
        Error, Failure, PolicyHandle,
        claims::Registry,
        world::{Located, Moment, News, Probing, Sampling, Stage, Stay, Target, World},
    },
};
use jiff::Timestamp;

use super::cluster::{Answer, EPOCH, Effect, NODES, Scene, name, parsed};

/// Interval at which the nodes are read if nothing happens.
pub const RESYNC: Duration = Duration::from_secs(30);

/// A request that waits for its answer.
pub struct Open {
    pub number: u64,
    pub effect: Effect,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    open: Vec<Open>,
    answers: BTreeMap<u64, Answer>,
    time: Duration,
    interrupted: bool,
    gone: bool,
    ended: bool,
    woken: BTreeSet<Claimant>,
}

/// Requests and answers of one pass.
#[derive(Clone)]
pub struct Ports {
    scene: Scene,
    inner: Arc<Mutex<Inner>>,
    /// What the process knows of all policies.
    pub registry: Arc<Registry>,
}

impl Ports {
    pub fn at(scene: Scene, time: Duration, registry: Arc<Registry>) -> Self {
        let ports = Self { scene, inner: Arc::default(), registry };
        ports.inner().time = time;
        ports
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The requests that wait for an answer, in the order in which they were made.
    pub fn open(&self) -> Vec<(u64, Effect)> {
        self.inner().open.iter().map(|open| (open.number, open.effect.clone())).collect()
    }

    /// Answers a request.
    pub fn answer(&self, number: u64, answer: Answer) {
        let mut inner = self.inner();
        let at = inner.open.iter().position(|open| open.number == number).expect("an open request");
        let open = inner.open.remove(at);
        inner.answers.insert(number, answer);
        drop(inner);
        if let Some(waker) = open.waker {
            waker.wake();
        }
    }

    pub fn time(&self) -> Duration {
        self.inner().time
    }

    pub fn set_time(&self, time: Duration) {
        self.inner().time = time;
    }

    /// The controller has seen that the policy is being deleted.
    pub fn interrupt(&self) {
        self.inner().interrupted = true;
    }

    /// Whether the pass ended what ran for the policy.
    pub fn has_ended_all(&self) -> bool {
        self.inner().ended
    }

    /// Whether another policy needs a pass.
    pub fn has_woken_others(&self) -> bool {
        !self.inner().woken.is_empty()
    }

    /// Whether the pass found that the policy is gone.
    pub fn is_gone(&self) -> bool {
        self.inner().gone
    }

    fn unit_of(&self, unit: &Unit) -> usize {
        self.scene.units().iter().position(|id| *id == unit.id).expect("a unit of the model")
    }

    fn ask(&self, effect: Effect) -> impl Future<Output = Answer> + Send + use<> {
        let request = Request { ports: self.clone(), number: None, effect: Some(effect) };
        request.answer()
    }
}

/// A request is withdrawn when the pass drops it.
struct Request {
    ports: Ports,
    number: Option<u64>,
    effect: Option<Effect>,
}

impl Request {
    async fn answer(mut self) -> Answer {
        poll_fn(|cx| {
            let mut inner = self.ports.inner();
            if let Some(effect) = self.effect.take() {
                inner.next += 1;
                self.number = Some(inner.next);
                let number = inner.next;
                inner.open.push(Open { number, effect, waker: None });
            }
            let number = self.number.expect("a number");
            if let Some(answer) = inner.answers.remove(&number) {
                return Poll::Ready(answer);
            }
            let open = inner.open.iter_mut().find(|open| open.number == number).expect("an open request");
            open.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.ports.inner().open.retain(|open| open.number != number);
        }
    }
}

macro_rules! asked {
    ($ports:expr, $effect:expr, $Answer:ident) => {{
        let asked = $ports.ask($effect);
        async move {
            match asked.await {
                Answer::$Answer(answer) => answer,
                _ => panic!("an answer of another kind"),
            }
        }
        .boxed()
    }};
}

fn node_of(node: &str) -> usize {
    (0..NODES).find(|n| name(*n) == node).expect("a node of the model")
}

impl Target for Ports {
    fn discover(&self) -> BoxFuture<'_, Result<Vec<Unit>, Fault>> {
        let found: BoxFuture<'_, Result<(), Fault>> = asked!(self, Effect::Discover, Units);
        let unit =
            |(n, id): (usize, String)| Unit { name: id.clone(), id, address: format!("http://10.0.0.{n}:2019"), role: None };
        let units = self.scene.units().into_iter().enumerate().map(unit).collect();
        async move { found.await.map(|()| units) }.boxed()
    }

    fn read<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<UnitState, Fault>> {
        asked!(self, Effect::Read(self.unit_of(unit)), Unit)
    }

    fn started<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Option<String>> {
        asked!(self, Effect::Started(self.unit_of(unit)), Started)
    }

    fn drain<'a>(&'a self, _: &'a Unit, node: &'a str, out: bool) -> BoxFuture<'a, Result<(), Fault>> {
        asked!(self, Effect::Drain { node: node_of(node), out }, Written)
    }

    fn write<'a>(&'a self, unit: &'a Unit, state: &'a UnitState, changes: &'a [Change]) -> BoxFuture<'a, Result<(), Fault>> {
        let from = state.sites.iter().map(|(site, stored)| (site.limit, stored.raw.clone())).collect();
        asked!(self, Effect::Write { node: self.unit_of(unit), from, changes: changes.to_vec() }, Written)
    }
}

impl Located for Ports {
    fn identities(&self) -> BTreeSet<String> {
        self.scene.units().into_iter().collect()
    }

    fn connect<'a>(self: Box<Self>, _: &'a Declared) -> BoxFuture<'a, Result<Arc<dyn Target>, Failure>>
    where
        Self: 'a,
    {
        let target: Arc<dyn Target> = Arc::new(*self);
        futures::future::ready(Ok(target)).boxed()
    }
}

impl World for Ports {
    fn moment(&self) -> Moment {
        Moment(self.time())
    }

    fn now(&self) -> Timestamp {
        let passed = if self.scene.has_time() { self.time() } else { Duration::ZERO };
        Timestamp::from_second(EPOCH).unwrap() + passed
    }

    fn is_dry_run(&self) -> bool {
        false
    }

    fn resync(&self) -> Duration {
        RESYNC
    }

    fn traits(&self, _: &TargetSpec) -> TargetCapabilities {
        let capability: fn(Limit) -> Capability = match self.scene {
            Scene::Limits | Scene::Rivals | Scene::Waves => |_| Capability::Hot,
            Scene::Restarts => |_| Capability::AfterRestart,
        };
        let paced_by = (self.scene == Scene::Waves).then_some(PacedBy::Operator);
        TargetCapabilities { capability, paced_by, value: |_, raw| parsed(Some(raw)), ..TargetCapabilities::PLAIN }
    }

    fn states_identity(&self, _: TargetType) -> bool {
        self.scene == Scene::Restarts
    }

    fn units_are_nodes(&self, _: TargetType) -> bool {
        self.scene != Scene::Restarts
    }

    fn default_source(&self, _: TargetType) -> Source {
        Source::Nodes
    }

    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn enter(&self, _: Stage) -> Stay {
        Box::new(())
    }

    fn tell(&self, _: News<'_>) {}

    fn admitted(&self) -> BoxFuture<'_, bool> {
        futures::future::ready(false).boxed()
    }

    fn begin(&self) {}

    fn leave(&self) {}

    fn interrupted(&self) -> BoxFuture<'_, Error> {
        let asked = self.ask(Effect::Interrupted);
        async move {
            asked.await;
            Error::Cancelled
        }
        .boxed()
    }

    fn is_interrupted(&self) -> bool {
        self.inner().interrupted
    }

    fn wait_until(&self, moment: Moment) -> BoxFuture<'_, ()> {
        let asked = self.ask(Effect::Wait(moment.0));
        async move {
            asked.await;
        }
        .boxed()
    }

    fn wake(&self, policies: BTreeSet<Claimant>) {
        self.inner().woken.extend(policies);
    }

    fn end_all(&self) {
        self.inner().ended = true;
    }

    fn forget(&self) {
        self.inner().gone = true;
    }

    fn may_keep(&self, _: usize) -> bool {
        true
    }

    fn policy(&self) -> BoxFuture<'_, Result<Option<StoredPolicy>, Error>> {
        let asked: BoxFuture<'_, Result<_, Error>> = asked!(self, Effect::ReadPolicy, Policy);
        async move { Ok(asked.await?.map(|policy| *policy)) }.boxed()
    }

    fn set_finalizers<'a>(
        &'a self,
        policy: &'a PolicyHandle,
        finalizers: &'a [String],
    ) -> BoxFuture<'a, Result<Option<StoredPolicy>, Error>> {
        let version = policy.object.metadata.resource_version.clone();
        let asked: BoxFuture<'_, Result<_, Error>> =
            asked!(self, Effect::SetFinalizers { version, finalizers: finalizers.to_vec() }, Policy);
        async move { Ok(asked.await?.map(|policy| *policy)) }.boxed()
    }

    fn clear_status<'a>(&'a self, policy: &'a PolicyHandle) -> BoxFuture<'a, Result<Option<String>, Error>> {
        asked!(self, Effect::ClearStatus { version: policy.object.metadata.resource_version.clone() }, Version)
    }

    fn write_status<'a>(
        &'a self,
        policy: &'a PolicyHandle,
        status: &'a IdleConnectionPolicyStatus,
    ) -> BoxFuture<'a, Result<Option<String>, Error>> {
        let version = policy.object.metadata.resource_version.clone();
        asked!(self, Effect::WriteStatus { version, status: Box::new(status.clone()) }, Version)
    }

    fn publish<'a>(&'a self, _: &'a PolicyHandle, notice: &'a Notice, seed: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let Notice { reason, note } = notice.clone();
        asked!(self, Effect::Publish { reason, note, seed: seed.to_owned() }, Done)
    }

    fn originals(&self) -> BoxFuture<'_, Result<Log, Error>> {
        asked!(self, Effect::ReadOriginals, Originals)
    }

    fn all_originals(&self) -> BoxFuture<'_, Result<BTreeMap<String, Option<Log>>, Error>> {
        asked!(self, Effect::ReadAllOriginals, AllOriginals)
    }

    fn save_original<'a>(&'a self, revision: i64, record: &'a Record) -> BoxFuture<'a, Result<(), Error>> {
        asked!(self, Effect::SaveOriginal { revision, record: record.clone() }, Done)
    }

    fn delete_original(&self, revision: i64) -> BoxFuture<'_, Result<(), Error>> {
        asked!(self, Effect::DeleteOriginal(revision), Done)
    }

    fn locate<'a, 'p>(&'a self, _: &'p PolicyHandle) -> BoxFuture<'p, Result<Box<dyn Located + 'a>, Failure>>
    where
        'a: 'p,
    {
        let found: BoxFuture<'_, Result<(), Error>> = asked!(self, Effect::Locate, Found);
        async move { Ok(found.await.map(|()| Box::new(self.clone()) as Box<dyn Located + 'a>)?) }.boxed()
    }

    fn connect_saved<'a>(
        &'a self,
        _: &'a PolicyHandle,
        _: &'a str,
        _: &'a Saved,
        _: &'a TargetSpec,
    ) -> BoxFuture<'a, Result<Option<Arc<dyn Target>>, Fault>> {
        let target: Arc<dyn Target> = Arc::new(self.clone());
        futures::future::ready(Ok(Some(target))).boxed()
    }

    fn may_flush(&self, nodes: usize) -> (usize, Option<Moment>) {
        (nodes, None)
    }

    fn writes_ended(&self) -> BoxFuture<'_, ()> {
        futures::future::ready(()).boxed()
    }

    fn size_pool(&self, _: usize, _: Option<(usize, Duration)>) {}

    fn pods(&self, names: BTreeSet<String>, _: bool) -> BoxFuture<'_, Result<BTreeMap<String, Pod>, Error>> {
        asked!(self, Effect::Pods(names), Pods)
    }

    fn evict<'a>(&'a self, node: &'a str, _: &'a str, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        asked!(self, Effect::Evict { node: node_of(node), uid: uid.to_owned() }, Evicted)
    }

    fn workload<'a>(&'a self, _: &'a ConfigMap) -> BoxFuture<'a, Result<Option<Workload>, Error>> {
        futures::future::ready(Ok(None)).boxed()
    }

    fn roll<'a>(&'a self, _: &'a str, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), String>> {
        futures::future::ready(Ok(())).boxed()
    }

    fn sample<'a>(&'a self, _: &'a PolicyHandle, _: Option<Sampling<'a>>) -> BoxFuture<'a, Option<Signal>> {
        futures::future::ready(None).boxed()
    }

    fn signal(&self, _: &Config, _: i64) -> Signal {
        unreachable!("the policy of the model has no adaptive control")
    }

    fn probe(&self, _: &PolicyHandle, _: &[UnitResult], _: bool, _: &BTreeSet<String>) -> Probing {
        Probing::default()
    }
}
