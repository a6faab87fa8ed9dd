//! The exploration of tests/model and the real thing: its API server answers as a real one does, and lives with a fault in them end
//! well on a real API server and real Caddy servers, through the shell that the operator runs.

#[allow(dead_code)] // The exploration uses the rest.
#[path = "../model/cluster.rs"]
mod cluster;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use idleconn_operator::{
    api::{IdleConnectionPolicyStatus, StoredPolicy, adaptive::Source, config_map::ConfigMap, policy::TargetType},
    controller::{
        Operator, PolicyRef,
        shell::{Running, Shell},
    },
    decide::{
        Cause, Change, Declared, Fault, TargetCapabilities, Unit, UnitResult, UnitState,
        adaptive::{config::Config, signal::Signal},
        claims::Claimant,
        originals::{Log, Record, Saved},
        report::condition::Notice,
        restart::eviction::Pod,
        restart::rollout::Workload,
    },
    leader::Leadership,
    metrics::Metrics,
    pass::{
        self, Error, Failure, Next, PolicyHandle,
        cache::{PolicyCache, wait},
        claims::Registry,
        world::{Located, Moment, News, Probing, Sampling, Stage, Stay, Target, World as PassWorld},
    },
    pool::Pool,
};
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::json;
use tokio::sync::Notify;

use crate::support::{
    caddy::Caddy,
    operator::{World, endpoints, find},
};
use cluster::{Answer, Cluster, Effect};

/// Interval at which nodes are read if nothing happens. A pass that asks for it has nothing left to do.
const RESYNC: Duration = Duration::from_secs(30);

/// What happens to one request.
#[derive(Clone, Copy, Debug)]
enum How {
    /// It is not carried out, and no answer arrives.
    Dropped,
    /// It is carried out, and its answer is lost.
    Lost,
    /// The process ends before it is sent.
    DiesBefore,
    /// The process ends after it was carried out.
    DiesAfter,
}

/// The fault of a life, at one of its requests.
struct Faults {
    made: AtomicUsize,
    at: usize,
    how: How,
    died: Notify,
}

impl Faults {
    /// Makes a request, or what happens in its place. `lost` is the answer where none arrives.
    async fn request<T>(&self, lost: impl FnOnce() -> T, request: impl Future<Output = T>) -> T {
        if self.made.fetch_add(1, Ordering::SeqCst) + 1 != self.at {
            return request.await;
        }
        match self.how {
            How::Dropped => lost(),
            How::Lost => {
                request.await;
                lost()
            }
            How::DiesBefore => self.die().await,
            How::DiesAfter => {
                request.await;
                self.die().await
            }
        }
    }

    async fn die<T>(&self) -> T {
        self.died.notify_one();
        std::future::pending().await
    }

    async fn api<T>(&self, request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.request(|| Err(Error::TimedOut), request).await
    }

    async fn node<T>(&self, request: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        self.request(|| Err(Fault::new(Cause::Unreachable, "the test dropped this request")), request).await
    }
}

/// The operator's shell, with a fault.
struct Faulty {
    shell: Shell,
    faults: Arc<Faults>,
}

struct FaultyTarget {
    target: Arc<dyn Target>,
    faults: Arc<Faults>,
}

struct FaultyPlace<'a> {
    located: Box<dyn Located + 'a>,
    faults: Arc<Faults>,
}

impl Target for FaultyTarget {
    fn discover(&self) -> BoxFuture<'_, Result<Vec<Unit>, Fault>> {
        self.faults.node(self.target.discover()).boxed()
    }

    fn read<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<UnitState, Fault>> {
        self.faults.node(self.target.read(unit)).boxed()
    }

    fn started<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Option<String>> {
        self.faults.request(|| None, self.target.started(unit)).boxed()
    }

    fn drain<'a>(&'a self, unit: &'a Unit, node: &'a str, out: bool) -> BoxFuture<'a, Result<(), Fault>> {
        self.faults.node(self.target.drain(unit, node, out)).boxed()
    }

    fn write<'a>(&'a self, unit: &'a Unit, state: &'a UnitState, changes: &'a [Change]) -> BoxFuture<'a, Result<(), Fault>> {
        self.faults.node(self.target.write(unit, state, changes)).boxed()
    }
}

impl Located for FaultyPlace<'_> {
    fn identities(&self) -> BTreeSet<String> {
        self.located.identities()
    }

    fn connect<'a>(self: Box<Self>, declared: &'a Declared) -> BoxFuture<'a, Result<Arc<dyn Target>, Failure>>
    where
        Self: 'a,
    {
        async move {
            let Self { located, faults } = *self;
            let target = located.connect(declared).await?;
            Ok(Arc::new(FaultyTarget { target, faults }) as Arc<dyn Target>)
        }
        .boxed()
    }
}

impl PassWorld for Faulty {
    fn moment(&self) -> Moment {
        self.shell.moment()
    }

    fn now(&self) -> Timestamp {
        self.shell.now()
    }

    fn is_dry_run(&self) -> bool {
        self.shell.is_dry_run()
    }

    fn resync(&self) -> Duration {
        RESYNC
    }

    fn traits(&self, target: &idleconn_operator::api::policy::Target) -> TargetCapabilities {
        self.shell.traits(target)
    }

    fn states_identity(&self, kind: TargetType) -> bool {
        self.shell.states_identity(kind)
    }

    fn units_are_nodes(&self, kind: TargetType) -> bool {
        self.shell.units_are_nodes(kind)
    }

    fn default_source(&self, kind: TargetType) -> Source {
        self.shell.default_source(kind)
    }

    fn registry(&self) -> &Registry {
        self.shell.registry()
    }

    fn enter(&self, stage: Stage) -> Stay {
        self.shell.enter(stage)
    }

    fn tell(&self, news: News<'_>) {
        self.shell.tell(news);
    }

    fn admitted(&self) -> BoxFuture<'_, bool> {
        self.shell.admitted()
    }

    fn begin(&self) {
        self.shell.begin();
    }

    fn leave(&self) {
        self.shell.leave();
    }

    fn interrupted(&self) -> BoxFuture<'_, Error> {
        self.shell.interrupted()
    }

    fn is_interrupted(&self) -> bool {
        self.shell.is_interrupted()
    }

    fn wait_until(&self, moment: Moment) -> BoxFuture<'_, ()> {
        self.shell.wait_until(moment)
    }

    fn wake(&self, policies: BTreeSet<Claimant>) {
        self.shell.wake(policies);
    }

    fn end_all(&self) {
        self.shell.end_all();
    }

    fn forget(&self) {
        self.shell.forget();
    }

    fn may_keep(&self, bytes: usize) -> bool {
        self.shell.may_keep(bytes)
    }

    fn policy(&self) -> BoxFuture<'_, Result<Option<StoredPolicy>, Error>> {
        self.faults.api(self.shell.policy()).boxed()
    }

    fn set_finalizers<'a>(
        &'a self,
        policy: &'a PolicyHandle,
        finalizers: &'a [String],
    ) -> BoxFuture<'a, Result<Option<StoredPolicy>, Error>> {
        self.faults.api(self.shell.set_finalizers(policy, finalizers)).boxed()
    }

    fn clear_status<'a>(&'a self, policy: &'a PolicyHandle) -> BoxFuture<'a, Result<Option<String>, Error>> {
        self.faults.api(self.shell.clear_status(policy)).boxed()
    }

    fn write_status<'a>(
        &'a self,
        policy: &'a PolicyHandle,
        status: &'a IdleConnectionPolicyStatus,
    ) -> BoxFuture<'a, Result<Option<String>, Error>> {
        self.faults.api(self.shell.write_status(policy, status)).boxed()
    }

    fn publish<'a>(&'a self, policy: &'a PolicyHandle, notice: &'a Notice, seed: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        self.faults.api(self.shell.publish(policy, notice, seed)).boxed()
    }

    fn originals(&self) -> BoxFuture<'_, Result<Log, Error>> {
        self.faults.api(self.shell.originals()).boxed()
    }

    fn all_originals(&self) -> BoxFuture<'_, Result<BTreeMap<String, Option<Log>>, Error>> {
        self.faults.api(self.shell.all_originals()).boxed()
    }

    fn save_original<'a>(&'a self, revision: i64, record: &'a Record) -> BoxFuture<'a, Result<(), Error>> {
        self.faults.api(self.shell.save_original(revision, record)).boxed()
    }

    fn delete_original(&self, revision: i64) -> BoxFuture<'_, Result<(), Error>> {
        self.faults.api(self.shell.delete_original(revision)).boxed()
    }

    fn locate<'a, 'p>(&'a self, policy: &'p PolicyHandle) -> BoxFuture<'p, Result<Box<dyn Located + 'a>, Failure>>
    where
        'a: 'p,
    {
        async move {
            let located = self.shell.locate(policy).await?;
            Ok(Box::new(FaultyPlace { located, faults: self.faults.clone() }) as Box<dyn Located + 'a>)
        }
        .boxed()
    }

    fn connect_saved<'a>(
        &'a self,
        policy: &'a PolicyHandle,
        id: &'a str,
        saved: &'a Saved,
        target: &'a idleconn_operator::api::policy::Target,
    ) -> BoxFuture<'a, Result<Option<Arc<dyn Target>>, Fault>> {
        async move {
            let target = self.shell.connect_saved(policy, id, saved, target).await?;
            let faulty = |target| Arc::new(FaultyTarget { target, faults: self.faults.clone() }) as Arc<dyn Target>;
            Ok(target.map(faulty))
        }
        .boxed()
    }

    fn may_flush(&self, nodes: usize) -> (usize, Option<Moment>) {
        self.shell.may_flush(nodes)
    }

    fn writes_ended(&self) -> BoxFuture<'_, ()> {
        self.shell.writes_ended()
    }

    fn size_pool(&self, units: usize, sampled: Option<(usize, Duration)>) {
        self.shell.size_pool(units, sampled);
    }

    fn pods(&self, names: BTreeSet<String>, behind_service: bool) -> BoxFuture<'_, Result<BTreeMap<String, Pod>, Error>> {
        PassWorld::pods(&self.shell, names, behind_service)
    }

    fn evict<'a>(&'a self, node: &'a str, pod: &'a str, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        self.shell.evict(node, pod, uid)
    }

    fn workload<'a>(&'a self, config_map: &'a ConfigMap) -> BoxFuture<'a, Result<Option<Workload>, Error>> {
        self.shell.workload(config_map)
    }

    fn roll<'a>(&'a self, kind: &'a str, name: &'a str, hash: &'a str) -> BoxFuture<'a, Result<(), String>> {
        self.shell.roll(kind, name, hash)
    }

    fn sample<'a>(&'a self, policy: &'a PolicyHandle, sampling: Option<Sampling<'a>>) -> BoxFuture<'a, Option<Signal>> {
        self.shell.sample(policy, sampling)
    }

    fn signal(&self, config: &Config, now: i64) -> Signal {
        self.shell.signal(config, now)
    }

    fn probe(&self, policy: &PolicyHandle, units: &[UnitResult], all: bool, waiting: &BTreeSet<String>) -> Probing {
        self.shell.probe(policy, units, all, waiting)
    }
}

/// A policy and the operator's work for it, without the controller around it.
struct Life<'a> {
    world: &'a World,
    operator: &'a Operator,
    name: String,
    faults: Arc<Faults>,
    memory: PolicyCache,
    running: Arc<std::sync::Mutex<Running>>,
}

impl Life<'_> {
    /// Makes passes until nothing is left to do.
    async fn settle(&mut self) {
        for _ in 0..20 {
            let policy = PolicyRef::new(&self.name).within(&self.world.namespace);
            let shell = Shell::new(self.operator.context.clone(), policy, self.running.clone());
            let faulty = Faulty { shell, faults: self.faults.clone() };
            let ended = tokio::select! {
                ended = pass::visit(&faulty, &mut self.memory) => ended,
                () = self.faults.died.notified() => {
                    (self.memory, self.running) = (PolicyCache::default(), Arc::default());
                    continue;
                }
            };
            match ended {
                Ok(Next::Changed) => return,
                Ok(Next::After(due)) if due >= RESYNC => return,
                Ok(Next::After(due)) => tokio::time::sleep(due).await,
                Err(_) => {
                    self.memory.failures += 1;
                    tokio::time::sleep(wait(self.memory.failures - 1)).await;
                }
            }
        }
        panic!("20 passes were not enough: {:#?}", self.world.status(&self.name).await);
    }

    async fn is_programmed(&self) {
        let policy = self.world.get(&self.name).await;
        let status = policy.status.clone().unwrap_or_default();
        assert_eq!(status.observed_generation, policy.metadata.generation, "{status:#?}");
        for type_ in ["Programmed", "InEffect", "Ready"] {
            assert_eq!(find(&status, type_).unwrap().status, "True", "{type_}: {status:#?}");
        }
    }
}

/// Applies a policy, edits it, deletes it, with a fault at one of the requests.
async fn life(world: &World, operator: &Operator, nodes: &[Caddy; 2], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let how = [How::Dropped, How::Lost, How::DiesBefore, How::DiesAfter][random.usize(..4)];
    let faults = Arc::new(Faults { made: AtomicUsize::new(0), at: random.usize(1..=45), how, died: Notify::new() });
    let before = [nodes[0].servers().await, nodes[1].servers().await];
    let name = format!("life-{seed}");
    let mut life = Life { world, operator, name: name.clone(), faults, memory: PolicyCache::default(), running: Arc::default() };
    let admins = [nodes[0].admin(), nodes[1].admin()];
    for (server, client) in [("30s", "20s"), ("15s", "10s")] {
        let limits = json!({"server": {"idleTimeout": server}, "backend": {"idleConnTimeout": client}});
        // Two batches, one right after the other.
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"pause": "0s"}});
        let target = endpoints(admins.iter().map(String::as_str));
        world.apply(&name, &json!({"target": target, "limits": limits, "updateStrategy": strategy})).await;
        life.settle().await;
        life.is_programmed().await;
        for node in nodes {
            assert_eq!(node.servers().await["web"]["idle_timeout"], server, "seed {seed}");
        }
    }
    world.policies().delete(&name, &kube::api::DeleteParams::default()).await.unwrap();
    life.settle().await;
    assert!(world.policies().get_opt(&name).await.unwrap().is_none(), "seed {seed}");
    assert_eq!([nodes[0].servers().await, nodes[1].servers().await], before, "seed {seed}");
    let made = life.faults.made.load(Ordering::SeqCst);
    assert!(made >= life.faults.at, "seed {seed}: the life had {made} requests, and its fault was to be at {}", life.faults.at);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_with_a_fault_in_it_ends_well_on_a_real_cluster() {
    let lives: u64 = std::env::var("IDLECONN_LIVES").ok().map_or(50, |text| text.parse().unwrap());
    let world = World::empty("explored").await;
    let (pool, metrics) = (Pool::default(), Metrics::new().unwrap());
    let operator = Operator::new(&world.client, &pool, world.settings(RESYNC), metrics, Leadership::always());
    let workers: u64 = 5;
    let work = |worker| {
        let (world, operator) = (&world, &operator);
        async move {
            let nodes = [Caddy::typical().await, Caddy::typical().await];
            for seed in (1..=lives).filter(|seed| seed % workers == worker) {
                life(world, operator, &nodes, seed).await;
            }
        }
    };
    futures::future::join_all((0..workers).map(work)).await;
}

/// What both API servers answer, as far as the operator distinguishes it.
fn said<T>(answer: &Result<T, Error>, content: impl Fn(&T) -> String) -> String {
    match answer {
        Ok(content_of) => content(content_of),
        Err(error) => format!("refused with {:?}", error.code()),
    }
}

fn policy_said(policy: Option<&StoredPolicy>) -> String {
    let Some(policy) = policy else { return "no policy".into() };
    let policy = policy.policy.as_ref().unwrap();
    let deleted = policy.metadata.deletion_timestamp.is_some();
    let observed = policy.status.as_ref().and_then(|status| status.observed_generation);
    format!(
        "generation {:?}, finalizers {:?}, deleted {deleted}, observed {observed:?}",
        policy.metadata.generation,
        policy.finalizers()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_of_the_exploration_answers_as_a_real_one() {
    let world = World::empty("conforms").await;
    let (pool, metrics) = (Pool::default(), Metrics::new().unwrap());
    let operator = Operator::new(&world.client, &pool, world.settings(RESYNC), metrics, Leadership::always());
    for seed in 1..=20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let name = format!("gw-{seed}");
        let mut model = Cluster::new();
        let limits = |n: u32| json!({"target": endpoints(["http://127.0.0.1:2019"]), "limits": {"server": {"idleTimeout": format!("{n}s")}}});
        world.apply(&name, &limits(30)).await;
        let shell = Shell::new(operator.context.clone(), PolicyRef::new(&name).within(&world.namespace), Arc::default());
        // The policy as it was read before an edit or the deletion, with the version that the model had then. Whether a write that
        // changes nothing makes a new version depends on more than the model knows.
        let mut old: Vec<(PolicyHandle, String)> = Vec::new();
        let mut course = Vec::new();
        for step in 0..30 {
            let now = shell.policy().await.unwrap().map(|stored| PolicyHandle::new(stored).unwrap());
            let what = random.u8(..9);
            let stale = !old.is_empty() && (now.is_none() || random.bool());
            let (handle, version) = match &now {
                Some(now) if !stale => (now, Some(model.policy.version.to_string())),
                _ => {
                    let (handle, version) = &old[random.usize(..old.len())];
                    (handle, Some(version.clone()))
                }
            };
            let (effect, real) = match what {
                0 => {
                    let read = shell.policy().await;
                    (Effect::ReadPolicy, said(&read, |policy| policy_said(policy.as_ref())))
                }
                1 | 2 => {
                    let finalizers: Vec<String> = if what == 1 { vec!["idleconn.io/restore".into()] } else { Vec::new() };
                    let written = shell.set_finalizers(handle, &finalizers).await;
                    (Effect::SetFinalizers { version, finalizers }, said(&written, |policy| policy_said(policy.as_ref())))
                }
                3 => {
                    let status =
                        IdleConnectionPolicyStatus { observed_generation: Some(step), ..IdleConnectionPolicyStatus::default() };
                    let written = shell.write_status(handle, &status).await;
                    (Effect::WriteStatus { version, status: Box::new(status) }, said(&written, |_| "written".into()))
                }
                4 => {
                    let cleared = shell.clear_status(handle).await;
                    (Effect::ClearStatus { version }, said(&cleared, |_| "written".into()))
                }
                5 => {
                    let (revision, record) = (random.i64(1..4), Record::default());
                    let saved = shell.save_original(revision, &record).await;
                    (Effect::SaveOriginal { revision, record }, said(&saved, |()| "done".into()))
                }
                6 => {
                    let revision = random.i64(1..4);
                    (Effect::DeleteOriginal(revision), said(&shell.delete_original(revision).await, |()| "done".into()))
                }
                7 => (
                    Effect::ReadOriginals,
                    said(&shell.originals().await, |log| format!("{:?}", log.revisions().collect::<Vec<_>>())),
                ),
                _ => {
                    // What a person does.
                    let before = model.policy.version.to_string();
                    if random.bool()
                        && model.policy.exists
                        && !model.policy.deleted
                        && model.policy.spec + 1 < cluster::SPECS.len()
                    {
                        model.edit();
                        course.push("edit".to_owned());
                        old.extend(now.map(|now| (now, before)));
                        world.apply(&name, &limits(100 + u32::try_from(model.policy.spec).unwrap())).await;
                    } else if random.u8(..4) == 0 && model.policy.exists && !model.policy.deleted {
                        model.delete();
                        course.push("delete".to_owned());
                        old.extend(now.map(|now| (now, before)));
                        world.policies().delete(&name, &kube::api::DeleteParams::default()).await.unwrap();
                    }
                    continue;
                }
            };
            let expected = match model.carry_out(&effect).0 {
                Answer::Policy(answer) => said(&answer, |policy| policy_said(policy.as_deref())),
                Answer::Version(answer) => said(&answer, |_| "written".into()),
                Answer::Done(answer) => said(&answer, |()| "done".into()),
                Answer::Originals(answer) => said(&answer, |log| format!("{:?}", log.revisions().collect::<Vec<_>>())),
                _ => unreachable!("a request to a node"),
            };
            let version = handle.object.resource_version();
            course.push(format!("{effect:?} at {version:?}: {real}"));
            assert_eq!(real, expected, "seed {seed}, step {step}: {course:#?}");
        }
    }
}
