//! The API server and two nodes as values, and what each request does to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use idleconn_operator::{
    api::{
        FINALIZER, GoDuration, IdleConnectionPolicy, IdleConnectionPolicySpec, IdleConnectionPolicyStatus, Limit, StoredPolicy,
        Value,
        conditions::{ConditionType, EventReason},
    },
    decide::{
        Cause, Change, ConfigPath, Fault, NewValue, NodeState, Stored, UnitState,
        claims::Claimant,
        originals::{Log, Record},
        restart::eviction::Pod,
    },
    pass::{ApiError, Error},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value as Json, json};

#[path = "pods.rs"] // tests/it/explored.rs includes this file by its path, too.
mod pods;
#[allow(unused_imports)] // Only the exploration names the phase.
pub use pods::{Phase, Process};

/// Idle timeout of the server side.
pub const SERVER: Limit = Limit::ServerIdleTimeout;
/// Idle timeout of the client side. It has to end a second before that of the server.
pub const CLIENT: Limit = Limit::IntraClusterIdleConnTimeout;
/// The declared values of a version of the spec, server and client, in seconds.
pub type Spec = (Option<u64>, Option<u64>);
/// The versions in the scene of limits: the second narrows both, the third widens both, and the fourth no longer declares the
/// client's.
pub const SPECS: [Spec; 4] = [(Some(30), Some(20)), (Some(15), Some(10)), (Some(200), Some(150)), (Some(200), None)];
/// Pause between two batches.
const PAUSE: Duration = Duration::from_secs(10);
/// Number of nodes. They are alike.
pub const NODES: usize = 2;
/// Value that another client writes to the server side, in seconds.
const FOREIGN: u64 = 100;
/// Time of the API server at the beginning (Unix seconds).
pub const EPOCH: i64 = 1_790_000_100;
/// UID of the policy.
pub const UID: &str = "0b6e9a1c-7d52-4c2f-9a83-5f1f4f7c2d10";
/// UID of the other policy.
const RIVAL_UID: &str = "5d0c7f3e-2a41-4b8e-8c66-90e2f7b1a544";
/// Namespace of the policies.
pub const NAMESPACE: &str = "shop";
/// When the policy was created (Unix seconds).
const CREATED: i64 = 1_790_000_000;

/// Limits as a server writes them; `None` where nothing is set.
pub type Values = BTreeMap<Limit, Option<Json>>;

/// What is explored: a target, and the life of its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// Two servers that use each value at once.
    Limits,
    /// The same servers, each of which closes its connections at each write, so that they are written one after the other.
    Waves,
    /// A cluster of two nodes that read their limit when they start. The operator restarts them. No other client changes anything,
    /// because the first scene has that.
    Restarts,
    /// One of the servers of the first scene, and a second policy for it. The first scene has how two servers differ, how they
    /// restart, and edits.
    Rivals,
}

impl Scene {
    /// The declared values of each version of the spec.
    pub const fn specs(self) -> &'static [Spec] {
        match self {
            Self::Limits | Self::Rivals => &SPECS,
            Self::Waves => SPECS.split_at(2).0,
            Self::Restarts => &pods::SPECS,
        }
    }

    /// Ids of the units: each node, or the cluster as a whole.
    pub fn units(self) -> Vec<String> {
        match self {
            Self::Limits | Self::Waves => (0..NODES).map(name).collect(),
            Self::Rivals => vec![name(0)],
            Self::Restarts => vec!["aistore/one".into()],
        }
    }

    /// Passes without a fault after which everything is as the policy asks.
    pub const fn most_passes(self) -> usize {
        match self {
            Self::Limits => 12,
            Self::Waves => 16,
            Self::Restarts => 24,
            Self::Rivals => 40,
        }
    }

    /// Whether the API server's time goes on. Where no decision depends on it, it stands still, so that states that differ only
    /// in times of the status are the same.
    pub fn has_time(self) -> bool {
        self == Self::Restarts
    }
}

/// A request, as far as the model distinguishes them.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    ReadPolicy,
    SetFinalizers {
        version: Option<String>,
        finalizers: Vec<String>,
    },
    ClearStatus {
        version: Option<String>,
    },
    WriteStatus {
        version: Option<String>,
        status: Box<IdleConnectionPolicyStatus>,
    },
    Publish {
        reason: EventReason,
        note: String,
        seed: String,
    },
    ReadOriginals,
    ReadAllOriginals,
    SaveOriginal {
        revision: i64,
        record: Record,
    },
    DeleteOriginal(i64),
    Locate,
    Discover,
    Read(usize),
    Started(usize),
    /// As with Caddy's `If-Match`: refused if the node no longer holds what the changes were decided from.
    Write {
        node: usize,
        from: Values,
        changes: Vec<Change>,
    },
    Pods(BTreeSet<String>),
    Drain {
        node: usize,
        out: bool,
    },
    Evict {
        node: usize,
        uid: String,
    },
    Wait(Duration),
    Interrupted,
}

impl Effect {
    /// Node that the request is sent to.
    pub const fn node(&self) -> Option<usize> {
        match self {
            Self::Read(node) | Self::Started(node) | Self::Write { node, .. } => Some(*node),
            _ => None,
        }
    }

    /// Whether the request changes something, so that it matters whether a lost one was carried out.
    pub const fn changes(&self) -> bool {
        matches!(
            self,
            Self::SetFinalizers { .. }
                | Self::ClearStatus { .. }
                | Self::WriteStatus { .. }
                | Self::Publish { .. }
                | Self::SaveOriginal { .. }
                | Self::DeleteOriginal(_)
                | Self::Write { .. }
                | Self::Drain { .. }
                | Self::Evict { .. }
        )
    }

    /// Name in a counterexample.
    pub fn name(&self) -> String {
        match self {
            Self::SetFinalizers { finalizers, .. } => format!("set finalizers {finalizers:?}"),
            Self::WriteStatus { status, .. } => {
                let ready = status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| format!("{} {}", c.status, c.reason));
                format!("write status Ready={}", ready.unwrap_or_default())
            }
            Self::Publish { reason, .. } => format!("publish {reason}"),
            Self::SaveOriginal { revision, .. } => format!("save original {revision}"),
            Self::Write { node, changes, .. } => format!("write to node {node}: {}", wanted(changes)),
            Self::Drain { node, out: true } => format!("drain node {node}"),
            Self::Drain { node, out: false } => format!("put node {node} back into service"),
            other => format!("{other:?}").to_lowercase(),
        }
    }
}

fn wanted(changes: &[Change]) -> String {
    let one = |change: &Change| match &change.to {
        NewValue::Value(value) => format!("{}={value}", change.site.limit),
        NewValue::Raw(raw) => format!("{}={raw:?}", change.site.limit),
    };
    changes.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// The answer to a request.
pub enum Answer {
    Policy(Result<Option<Box<StoredPolicy>>, Error>),
    Done(Result<(), Error>),
    Version(Result<Option<String>, Error>),
    Originals(Result<Log, Error>),
    AllOriginals(Result<BTreeMap<String, Option<Log>>, Error>),
    Unit(Result<UnitState, Fault>),
    Written(Result<(), Fault>),
    Found(Result<(), Error>),
    Units(Result<(), Fault>),
    Started(Option<String>),
    Pods(Result<BTreeMap<String, Pod>, Error>),
    Evicted(Result<(), String>),
    Waited,
    Interrupted,
}

/// One node: what it stores, and what it had stored.
#[derive(Clone, Debug)]
pub struct Node {
    pub up: bool,
    pub boots: u32,
    /// Values by limit, as the server writes them; `None` where nothing is set.
    pub values: Values,
    /// Values that anyone but the operator has put there.
    pub foreign: BTreeMap<Limit, Vec<Option<Json>>>,
    /// Whether another client or a restart has ever changed its values.
    pub disturbed: bool,
    /// The process, where it uses other values than the node stores.
    pub process: Option<Process>,
}

/// A policy, and what the API server keeps for it.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // Facts that do not depend on each other.
pub struct Policy {
    pub name: &'static str,
    pub uid: &'static str,
    /// When it was created (Unix seconds).
    pub created: i64,
    pub version: u64,
    pub spec: usize,
    /// Version of the spec by generation.
    pub specs: BTreeMap<i64, usize>,
    pub suspended: bool,
    /// Whether a process of the operator has ended.
    pub crashed: bool,
    pub generation: i64,
    pub exists: bool,
    pub deleted: bool,
    pub finalizers: Vec<String>,
    pub status: Option<Box<IdleConnectionPolicyStatus>>,
    pub originals: BTreeMap<i64, Record>,
    pub events: BTreeSet<(String, String)>,
    /// Generations for which Programmed was True in a written status.
    pub programmed: BTreeSet<i64>,
}

/// What the rules need to know of a pass.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// What its last answered read of each node showed.
    pub seen: [Option<Values>; NODES],
    /// Nodes that it could see to be out of service.
    pub out: [bool; NODES],
    /// Requests that changed something.
    pub writes: u32,
    /// Nodes that had no connections to lose when the pass wrote to them.
    pub fresh: [bool; NODES],
    /// Whether it read a policy that asks for no restart: it is suspended, or being deleted.
    pub resting: Option<bool>,
    /// Whether an older policy had claimed the nodes when it began.
    pub outranked: bool,
}

/// Everything outside the operator.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub scene: Scene,
    /// Time of the API server (Unix milliseconds).
    pub now: i64,
    /// The policy that the next request is made for.
    pub policy: Policy,
    /// Another policy for the same nodes, also after it is gone.
    pub rival: Option<Box<Policy>>,
    pub nodes: [Node; NODES],
    pub pass: Pass,
    /// What the cluster has its nodes store, and when that last changed (Unix milliseconds); `None` where each node is alone.
    pub stored: Option<(Values, i64)>,
    /// Time since the beginning, where writes close connections.
    pub clock: Duration,
    /// When the last write closed the connections of each node, and the generation that it was made for.
    pub flushed: [Option<(Duration, i64)>; NODES],
    /// Whether each node has restarted since it was last written: then it has no connections to lose.
    pub fresh: [bool; NODES],
}

fn text(seconds: u64) -> Json {
    json!(Value::Duration(Duration::from_secs(seconds)).to_string())
}

/// Reads a setting as a limit.
pub fn parsed(raw: Option<&Json>) -> Option<Value> {
    let time: GoDuration = serde_json::from_value(raw?.clone()).ok()?;
    Some(Value::Duration(time.get()?))
}

/// Whether a client closes its connections a second before the server.
fn in_order(values: &Values) -> bool {
    let seconds = |limit| match parsed(values.get(&limit).and_then(Option::as_ref)) {
        Some(Value::Duration(time)) => time,
        _ => Duration::MAX,
    };
    seconds(SERVER) == Duration::MAX || seconds(CLIENT).saturating_add(Duration::from_secs(1)) <= seconds(SERVER)
}

impl Node {
    /// The server side is not set, so that the operator has to remove a setting to restore it.
    fn new() -> Self {
        let values: BTreeMap<_, _> = [(SERVER, None), (CLIENT, Some(text(90)))].into();
        let foreign = values.iter().map(|(limit, value)| (*limit, vec![value.clone()])).collect();
        Self { up: true, boots: 1, values, foreign, disturbed: false, process: None }
    }

    fn put(&mut self, limit: Limit, value: Option<Json>) {
        self.values.insert(limit, value.clone());
        let foreign = self.foreign.entry(limit).or_default();
        if !foreign.contains(&value) {
            foreign.push(value);
        }
    }

    /// Another client changes the node.
    pub fn changed_by_another(&mut self) {
        self.disturbed = true;
        self.put(SERVER, Some(text(FOREIGN)));
    }

    /// The process restarts and reads its own file again.
    pub fn restart(&mut self) {
        self.disturbed = true;
        self.boots += 1;
        self.values = Self::new().values;
    }

    fn state(&self, name: &str) -> UnitState {
        let sites = self.values.iter().map(|(limit, raw)| {
            let site = ConfigPath { limit: *limit, place: "srv0".into() };
            (site, Stored { value: parsed(raw.as_ref()), raw: raw.clone() })
        });
        let stored = self.values.iter().map(|(limit, raw)| (*limit, parsed(raw.as_ref()))).collect();
        UnitState { sites: sites.collect(), nodes: vec![NodeState::new(name, Ok(stored))], ..UnitState::default() }
    }

    /// Whether these values are what a spec declares. What is not declared is anyone's but the operator's.
    fn holds(&self, values: &Values, (server, client): Spec) -> bool {
        let declared = |limit| if limit == SERVER { server } else { client };
        values.iter().all(|(limit, value)| match declared(*limit) {
            Some(declared) => *value == Some(text(declared)),
            None => self.foreign[limit].contains(value),
        })
    }
}

/// The status that the CRD gives to an object without one.
fn default_status() -> IdleConnectionPolicyStatus {
    let ready = json!({
        "lastTransitionTime": "1970-01-01T00:00:00Z", "message": "Waiting for the operator", "reason": "Pending",
        "status": "Unknown", "type": "Ready",
    });
    serde_json::from_value(json!({"conditions": [ready], "observedGeneration": -1})).unwrap()
}

pub fn name(node: usize) -> String {
    format!("gateway-{node}")
}

impl Policy {
    fn new(name: &'static str, uid: &'static str, created: i64, spec: usize) -> Self {
        Self {
            name,
            uid,
            created,
            version: 1,
            spec,
            specs: [(1, spec)].into(),
            suspended: false,
            crashed: false,
            generation: 1,
            exists: true,
            deleted: false,
            finalizers: Vec::new(),
            status: Some(Box::new(default_status())),
            originals: BTreeMap::new(),
            events: BTreeSet::new(),
            programmed: BTreeSet::new(),
        }
    }

    /// Its place in the order of the policies.
    pub fn claimant(&self) -> Claimant {
        let created = Timestamp::from_second(self.created).unwrap();
        Claimant { created, namespace: NAMESPACE.into(), name: self.name.into() }
    }

    /// Whether it has saved the original of a limit of a unit.
    fn has_saved(&self, unit: &str, limit: Limit) -> bool {
        let saved = Log::of(self.originals.clone()).units().get(unit).cloned();
        saved.is_some_and(|saved| saved.sites.keys().any(|site| site.limit == limit))
    }

    /// Whether an Event says that something was not restored.
    pub fn has_abandoned(&self) -> bool {
        self.events.iter().any(|(reason, _)| reason == "RestoreAbandoned")
    }

    /// After a status is written, no pass publishes the Events that it makes old news.
    pub fn untold(&self) -> Option<String> {
        let tells = |(reason, _): &&(String, String)| matches!(reason.as_str(), "Programmed" | "DriftCorrected");
        let told = self.events.iter().filter(tells).count();
        (told < self.programmed.len()).then(|| "Programmed is True in the status, and no Event says so".into())
    }

    fn is_contended(&self) -> bool {
        self.condition("Programmed").is_some_and(|condition| condition.reason == "Contended")
    }

    fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.iter().flat_map(|status| &status.conditions).find(|condition| condition.type_ == type_)
    }
}

fn refused(code: u16, what: &str) -> Error {
    ApiError::new(Some(code), what, what.to_owned()).into()
}

impl Cluster {
    /// A policy that was just created, and nodes that no policy governs.
    pub fn new() -> Self {
        Self {
            scene: Scene::Limits,
            now: EPOCH * 1000,
            policy: Policy::new("gateway", UID, CREATED, 0),
            rival: None,
            nodes: [Node::new(), Node::new()],
            pass: Pass::default(),
            stored: None,
            clock: Duration::ZERO,
            flushed: [None; NODES],
            fresh: [false; NODES],
        }
    }

    /// The beginning of a scene.
    pub fn of(scene: Scene) -> Self {
        match scene {
            Scene::Limits => Self::new(),
            Scene::Restarts => Self::with_pods(),
            Scene::Rivals | Scene::Waves => Self { scene, ..Self::new() },
        }
    }

    /// Another policy for the same nodes appears. An older one was about other nodes until now.
    pub fn compete(&mut self, older: bool) {
        let created = if older { CREATED - 10 } else { CREATED + 10 };
        self.rival = Some(Box::new(Policy::new("rival", RIVAL_UID, created, 1)));
    }

    /// The next request is made for the other policy.
    pub fn turn(&mut self) {
        if let Some(rival) = &mut self.rival {
            std::mem::swap(&mut self.policy, rival);
        }
    }

    /// The other policy, while it exists.
    pub fn other(&self) -> Option<&Policy> {
        self.rival.as_deref().filter(|rival| rival.exists)
    }

    /// Whether the other policy has left values on a node, which an Event says.
    fn has_inherited(&self) -> bool {
        self.rival.as_ref().is_some_and(|rival| rival.has_abandoned())
    }

    /// The nodes of the target.
    fn governed(&self) -> &[Node] {
        if self.scene == Scene::Rivals { &self.nodes[..1] } else { &self.nodes }
    }

    fn has_older(&self) -> bool {
        self.other().is_some_and(|other| !other.deleted && other.created < self.policy.created)
    }

    fn stored_policy(&self) -> StoredPolicy {
        let (server, client) = self.scene.specs()[self.policy.spec];
        let mut spec = json!({
            "restoreTimeout": "5s",
            "suspend": self.policy.suspended,
            "limits": {
                "server": server.map(|server| json!({"idleTimeout": format!("{server}s")})),
                "intraCluster": client.map(|client| json!({"idleConnTimeout": format!("{client}s")})),
            },
        });
        spec["target"] = match self.scene {
            Scene::Limits | Scene::Rivals | Scene::Waves => {
                json!({"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "gateway"}}}})
            }
            Scene::Restarts => json!({"type": "AIStore", "aistore": {"endpoint": "http://10.0.0.9:51080"}}),
        };
        if self.scene == Scene::Restarts {
            spec["restart"] = json!({"policy": "Rolling", "maxPerDay": 24, "timeout": "1s"});
        }
        let spec: IdleConnectionPolicySpec = serde_json::from_value(spec).unwrap();
        let mut policy = IdleConnectionPolicy::new(self.policy.name, spec);
        let created = Time(Timestamp::from_second(self.policy.created).unwrap());
        policy.metadata.namespace = Some(NAMESPACE.into());
        policy.metadata.uid = Some(self.policy.uid.into());
        policy.metadata.creation_timestamp = Some(created.clone());
        policy.metadata.generation = Some(self.policy.generation);
        policy.metadata.resource_version = Some(self.policy.version.to_string());
        policy.metadata.finalizers = Some(self.policy.finalizers.clone());
        policy.metadata.deletion_timestamp = self.policy.deleted.then_some(created);
        policy.status = self.policy.status.as_deref().cloned();
        StoredPolicy { policy: Ok(Box::new(policy)), unknown: Vec::new(), lost: false }
    }

    /// A person changes the declared values.
    pub fn edit(&mut self) {
        self.policy.spec += 1;
        self.changed();
    }

    /// A person suspends the policy, or resumes it.
    pub fn suspend(&mut self, suspended: bool) {
        self.policy.suspended = suspended;
        self.changed();
    }

    fn changed(&mut self) {
        self.policy.generation += 1;
        self.policy.version += 1;
        self.policy.specs.insert(self.policy.generation, self.policy.spec);
    }

    /// A person deletes the policy.
    pub fn delete(&mut self) {
        self.policy.deleted = true;
        self.policy.generation += 1;
        self.policy.version += 1;
        self.collect();
    }

    /// Sets the API server's clock to a time after the beginning.
    pub fn set_time(&mut self, since: Duration) {
        if self.scene == Scene::Waves {
            self.clock = since;
        }
        if self.scene.has_time() {
            self.now = EPOCH * 1000 + i64::try_from(since.as_millis()).unwrap_or(i64::MAX / 2);
        }
    }

    /// The process of a node restarts, with its own file.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].restart();
        self.fresh[node] = self.scene == Scene::Waves;
    }

    /// The same cluster with times relative to now: what matters is whether the pause after a batch is over.
    pub fn ago(mut self) -> Self {
        let clock = std::mem::take(&mut self.clock);
        let ago = |(at, generation)| Some((clock.saturating_sub(at), generation)).filter(|(ago, _)| *ago < PAUSE);
        self.flushed.iter_mut().for_each(|flushed| *flushed = flushed.and_then(ago));
        self
    }

    /// The process ends. The next one does not know when an update ended that the status reports as complete: that has been a
    /// separate change.
    pub fn crash(&mut self) {
        self.policy.crashed = true;
        let complete = self.policy.status.as_ref().filter(|status| status.update.is_none());
        let complete = complete.and_then(|status| status.observed_generation);
        let is_known = |(_, generation): &(Duration, i64)| Some(*generation) != complete;
        self.flushed.iter_mut().for_each(|flushed| *flushed = flushed.filter(is_known));
    }

    /// The rule that a write breaks which closes the connections of a node while the pause after another one is not over.
    fn flush(&mut self, node: usize) -> Option<String> {
        // A write may have two parts.
        self.pass.fresh[node] |= std::mem::take(&mut self.fresh[node]);
        if self.scene != Scene::Waves || self.policy.deleted || self.pass.fresh[node] {
            return None;
        }
        let clock = self.clock;
        self.flushed[node] = Some((clock, self.policy.generation));
        let since = |other: usize| {
            self.flushed[other].map(|(at, _)| clock.saturating_sub(at)).filter(|since| other != node && *since < PAUSE)
        };
        let (other, since) = (0..NODES).find_map(|other| Some((other, since(other)?)))?;
        Some(format!("node {node} is written {since:?} after node {other}"))
    }

    /// What a read of a unit can show.
    pub fn shows(&self, unit: usize) -> String {
        match &self.stored {
            Some(stored) => format!("{stored:?}{:?}", self.nodes),
            None => format!("{:?}", (&self.nodes[unit].values, self.nodes[unit].up)),
        }
    }

    fn collect(&mut self) {
        if self.policy.deleted && self.policy.finalizers.is_empty() {
            self.policy.exists = false;
        }
    }

    /// Carries a request out. Returns the answer, and the rule that the request breaks, if it breaks one.
    pub fn carry_out(&mut self, effect: &Effect) -> (Answer, Option<String>) {
        if !effect.changes() {
            return (self.answer(effect), None);
        }
        let before = self.clone();
        let answer = self.answer(effect);
        let flushed = match effect {
            Effect::Write { node, .. } if before.nodes[*node].values != self.nodes[*node].values => self.flush(*node),
            _ => None,
        };
        let broken = self.broken_rule(&before, effect).or(flushed);
        self.pass.writes += 1;
        (answer, broken)
    }

    fn answer(&mut self, effect: &Effect) -> Answer {
        match effect {
            Effect::ReadPolicy => {
                // A pass is about the policy as it first read it; what it reads after a conflict counts for the status only.
                self.pass.resting.get_or_insert(self.policy.suspended || self.policy.deleted);
                Answer::Policy(Ok(self.policy.exists.then(|| Box::new(self.stored_policy()))))
            }
            Effect::SetFinalizers { version, finalizers } => Answer::Policy(self.set_finalizers(version.as_deref(), finalizers)),
            Effect::ClearStatus { version } => Answer::Version(self.write_status(version.as_deref(), None)),
            Effect::WriteStatus { version, status } => {
                Answer::Version(self.write_status(version.as_deref(), Some(status.clone())))
            }
            Effect::Publish { reason, seed, .. } => {
                self.policy.events.insert((reason.to_string(), seed.clone()));
                Answer::Done(Ok(()))
            }
            Effect::ReadOriginals => Answer::Originals(Ok(Log::of(self.policy.originals.clone()))),
            Effect::ReadAllOriginals => {
                let all = [Some(&self.policy), self.other()].into_iter().flatten();
                let log = |policy: &Policy| (policy.name.to_owned(), Some(Log::of(policy.originals.clone())));
                Answer::AllOriginals(Ok(all.map(log).collect()))
            }
            Effect::SaveOriginal { revision, record } => Answer::Done(if self.policy.originals.contains_key(revision) {
                Err(refused(409, "the object already exists"))
            } else {
                self.policy.originals.insert(*revision, record.clone());
                Ok(())
            }),
            Effect::DeleteOriginal(revision) => {
                self.policy.originals.remove(revision);
                Answer::Done(Ok(()))
            }
            Effect::Locate => Answer::Found(Ok(())),
            Effect::Discover => Answer::Units(Ok(())),
            Effect::Read(_) if self.stored.is_some() => Answer::Unit(Ok(self.read_all())),
            Effect::Read(node) => {
                let at = &self.nodes[*node];
                self.pass.seen[*node] = at.up.then(|| at.values.clone());
                Answer::Unit(if at.up { Ok(at.state(&name(*node))) } else { Err(silent(*node)) })
            }
            Effect::Started(node) => {
                let at = &self.nodes[*node];
                Answer::Started(at.up.then(|| format!("boot {}", at.boots)))
            }
            Effect::Write { changes, .. } if self.stored.is_some() => {
                self.write_all(changes);
                Answer::Written(Ok(()))
            }
            Effect::Write { node, from, changes } => Answer::Written(self.write(*node, from, changes)),
            Effect::Pods(names) => Answer::Pods(Ok(self.pods(names))),
            Effect::Drain { node, out } => Answer::Written(self.drain(*node, *out)),
            Effect::Evict { node, uid } => {
                self.evict(*node, uid);
                Answer::Evicted(Ok(()))
            }
            Effect::Wait(_) => Answer::Waited,
            Effect::Interrupted => Answer::Interrupted,
        }
    }

    /// The answer to a request without a response.
    pub fn no_answer(effect: &Effect) -> Answer {
        match effect {
            Effect::ReadPolicy | Effect::SetFinalizers { .. } => Answer::Policy(Err(Error::TimedOut)),
            Effect::Publish { .. } | Effect::SaveOriginal { .. } | Effect::DeleteOriginal(_) => {
                Answer::Done(Err(Error::TimedOut))
            }
            Effect::ClearStatus { .. } | Effect::WriteStatus { .. } => Answer::Version(Err(Error::TimedOut)),
            Effect::ReadOriginals => Answer::Originals(Err(Error::TimedOut)),
            Effect::ReadAllOriginals => Answer::AllOriginals(Err(Error::TimedOut)),
            Effect::Locate => Answer::Found(Err(Error::TimedOut)),
            Effect::Discover => Answer::Units(Err(silent(0))),
            Effect::Read(node) => Answer::Unit(Err(silent(*node))),
            Effect::Started(_) => Answer::Started(None),
            Effect::Write { node, .. } | Effect::Drain { node, .. } => Answer::Written(Err(silent(*node))),
            Effect::Pods(_) => Answer::Pods(Err(Error::TimedOut)),
            Effect::Evict { .. } => Answer::Evicted(Err("the API server did not answer".into())),
            Effect::Wait(_) => Answer::Waited,
            Effect::Interrupted => Answer::Interrupted,
        }
    }

    fn set_finalizers(&mut self, version: Option<&str>, finalizers: &[String]) -> Result<Option<Box<StoredPolicy>>, Error> {
        if !self.policy.exists {
            return Ok(None);
        }
        if version != Some(&*self.policy.version.to_string()) {
            return Err(refused(409, "the object has been modified"));
        }
        let adds = finalizers.iter().any(|finalizer| !self.policy.finalizers.contains(finalizer));
        if self.policy.deleted && adds {
            return Err(refused(422, "no new finalizers can be added if the object is being deleted"));
        }
        self.policy.version += u64::from(self.policy.finalizers != finalizers);
        self.policy.finalizers = finalizers.to_vec();
        let policy = self.stored_policy();
        self.collect();
        Ok(Some(Box::new(policy)))
    }

    fn write_status(
        &mut self,
        version: Option<&str>,
        status: Option<Box<IdleConnectionPolicyStatus>>,
    ) -> Result<Option<String>, Error> {
        if !self.policy.exists {
            return Err(refused(404, "the policy does not exist"));
        }
        if version != Some(&*self.policy.version.to_string()) {
            return Err(refused(409, "the object has been modified"));
        }
        let programmed = status.as_ref().and_then(|status| {
            let condition = status.conditions.iter().find(|condition| condition.type_ == "Programmed")?;
            (condition.status == "True").then_some(condition.observed_generation?)
        });
        self.policy.programmed.extend(programmed);
        let status = status.or_else(|| Some(Box::new(default_status())));
        // A write that changes nothing makes no new version.
        self.policy.version += u64::from(self.policy.status != status);
        self.policy.status = status;
        Ok(Some(self.policy.version.to_string()))
    }

    fn write(&mut self, node: usize, from: &Values, changes: &[Change]) -> Result<(), Fault> {
        let at = &mut self.nodes[node];
        if !at.up {
            return Err(silent(node));
        }
        if at.values != *from {
            return Err(Fault::new(Cause::Busy, format!("{} changed meanwhile", name(node))));
        }
        at.values.extend(changes.iter().map(changed_to));
        // For one policy, the other one is another client: the pass that it overtakes goes on to its end.
        at.disturbed |= self.rival.is_some();
        Ok(())
    }

    /// The rules that hold in every state, whatever is yet to come.
    fn broken_rule(&self, before: &Self, effect: &Effect) -> Option<String> {
        match effect {
            Effect::Write { node, .. } => {
                if !self.policy.finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
                    return Some(format!("node {node} was written without the finalizer"));
                }
                if self.pass.outranked && self.other().is_some() {
                    return Some(format!("{} writes to node {node}, and an older policy has claimed it", self.policy.name));
                }
                let (was, is) = (&before.nodes[*node].values, &self.nodes[*node].values);
                (in_order(was) && !in_order(is))
                    .then(|| format!("node {node}: the client keeps connections longer than the server"))
            }
            // What another policy could not restore, and an Event says so, is taken as it is.
            Effect::SaveOriginal { .. } if self.has_inherited() => None,
            Effect::SaveOriginal { record, .. } => {
                let saved = record.units.iter().filter_map(|(id, saved)| Some((id, saved.as_ref()?)));
                let mut sites = saved.flat_map(|(id, saved)| saved.sites.iter().map(move |(site, raw)| (id, site, raw)));
                sites.find_map(|(id, site, raw)| {
                    let node = self.scene.units().iter().position(|unit| unit == id)?;
                    let foreign = &self.nodes[node].foreign[&site.limit];
                    (!foreign.contains(raw))
                        .then(|| format!("{site} of {id}: {raw:?} was saved as the original, and is the operator's own value"))
                })
            }
            Effect::WriteStatus { status, .. } => {
                let begun = self.begins_out_of_turn(before);
                self.untrue_status(status).or_else(|| self.policy.untold()).or_else(|| self.blames(status)).or(begun)
            }
            Effect::Drain { .. } | Effect::Evict { .. } => self.restarts_wrongly(before),
            Effect::SetFinalizers { finalizers, .. }
                if before.policy.exists && finalizers.is_empty() && self.policy.finalizers.is_empty() =>
            {
                self.not_restored(&before.policy.finalizers)
            }
            _ => None,
        }
    }

    fn untrue_status(&self, status: &IdleConnectionPolicyStatus) -> Option<String> {
        for type_ in [ConditionType::Programmed, ConditionType::InEffect] {
            let name: &str = type_.into();
            let Some(condition) = status.conditions.iter().find(|condition| condition.type_ == name) else { continue };
            if condition.status != "True" {
                continue;
            }
            let generation = condition.observed_generation.unwrap_or(0);
            let spec = self.scene.specs()[*self.policy.specs.get(&generation).unwrap_or(&self.policy.spec)];
            for (n, node) in self.governed().iter().enumerate() {
                let seen = self.pass.seen[n].as_ref().is_some_and(|seen| node.holds(seen, spec));
                if !seen {
                    return Some(format!("{name} is True, and node {n} was not seen with the values of generation {generation}"));
                }
                let used = node.process.as_ref().is_none_or(|process| node.holds(&process.running, spec));
                if type_ == ConditionType::InEffect && !used {
                    return Some(format!("{name} is True, and the process of node {n} runs with {}", node.runs()));
                }
            }
        }
        None
    }

    /// Another client is blamed only if there was one.
    fn blames(&self, status: &IdleConnectionPolicyStatus) -> Option<String> {
        let drifted = status.conditions.iter().any(|condition| condition.reason == "Drifted");
        let disturbed = self.governed().iter().any(|node| node.disturbed);
        (drifted && !disturbed).then(|| "another client is blamed, and there was none".into())
    }

    fn not_restored(&self, before: &[String]) -> Option<String> {
        if before.is_empty() || self.policy.has_abandoned() || self.has_inherited() {
            return None;
        }
        // What another policy has saved, it restores.
        let saved = |n, limit| self.other().is_some_and(|other| other.has_saved(&name(n), limit));
        let mine = |(n, node): (usize, &Node)| {
            let left = |(limit, value): (&Limit, &Option<Json>)| !node.foreign[limit].contains(value) && !saved(n, *limit);
            node.is_written() && node.values.iter().any(left)
        };
        if let Some(left) = self.governed().iter().enumerate().position(mine) {
            return Some(format!("the finalizer was removed, and node {left} still holds a value of the operator"));
        }
        let left = self.governed().iter().position(Node::is_drained)?;
        Some(format!("the finalizer was removed, and node {left} is still out of service"))
    }

    /// Why this is not the state that the policy asks for; `None` if it is.
    pub fn unfinished(&self) -> Option<String> {
        if self.policy.deleted {
            // What could not be restored stays saved.
            return self.policy.exists.then(|| "the policy still exists".into()).or_else(|| {
                (!self.policy.originals.is_empty() && !self.policy.has_abandoned())
                    .then(|| "saved original settings remain".to_owned())
            });
        }
        if self.has_older() {
            let ready = self.policy.condition("Ready");
            return ready.is_none_or(|ready| ready.reason != "Conflicted").then(|| {
                let said = ready.map(|ready| format!("{} {}", ready.status, ready.reason));
                format!("{} is the younger policy, and Ready is {}", self.policy.name, said.unwrap_or_else(|| "absent".into()))
            });
        }
        if self.policy.is_contended() {
            // The status says that the limit is left alone, and until when. The clock of the model stands still.
            return None;
        }
        let Some(status) = &self.policy.status else { return Some("there is no status".into()) };
        if status.observed_generation != Some(self.policy.generation) {
            return Some("the status is about another generation".into());
        }
        if let Some(node) = self.governed().iter().position(Node::is_drained) {
            return Some(format!("node {node} is still out of service"));
        }
        if self.policy.suspended {
            return None;
        }
        let spec = self.scene.specs()[self.policy.spec];
        if let Some(node) = self.governed().iter().position(|node| !node.holds(&node.values, spec)) {
            return Some(format!("node {node} does not hold the declared values: {:?}", self.nodes[node].values));
        }
        // If a new process of the operator does not know whether a restart began before or after an edit, InEffect stays Unknown, and
        // no node is restarted that is not known to use an older value.
        let lost = self.policy.crashed && self.policy.spec > 0;
        let runs = |node: &Node| node.process.as_ref().is_none_or(|process| node.holds(&process.running, spec));
        if let Some(node) = self.governed().iter().position(|node| !runs(node) && !lost) {
            return Some(format!("the process of node {node} runs with {}", self.nodes[node].runs()));
        }
        for name in ["Ready", "Programmed", "InEffect"] {
            let condition = status.conditions.iter().find(|condition| condition.type_ == name);
            // If a process started by itself and the operator did not see it, only its next start shows what it uses.
            let unseen = name == "InEffect" && (lost || self.governed().iter().any(Node::has_restarted_itself));
            let is_known = |condition: &&Condition| condition.status == "True" || (unseen && condition.reason == "NotObserved");
            if condition.is_none_or(|condition| !is_known(&condition)) {
                let said = condition.map(|condition| format!("{} {}", condition.status, condition.reason));
                return Some(format!("{name} is {}", said.unwrap_or_else(|| "absent".into())));
            }
        }
        None
    }
}

/// The limit of a change, and its value as a server writes it.
fn changed_to(change: &Change) -> (Limit, Option<Json>) {
    let raw = match &change.to {
        NewValue::Value(value) => Some(json!(value.to_string())),
        NewValue::Raw(raw) => raw.clone(),
    };
    (change.site.limit, raw)
}

fn silent(node: usize) -> Fault {
    Fault::new(Cause::Unreachable, format!("{} did not answer", name(node)))
}
