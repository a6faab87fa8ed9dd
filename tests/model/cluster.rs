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
        originals::{Log, Record},
    },
    pass::{ApiError, Error},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value as Json, json};

/// Idle timeout of the server side.
pub const SERVER: Limit = Limit::ServerIdleTimeout;
/// Idle timeout of the client side. It has to end a second before that of the server.
pub const CLIENT: Limit = Limit::IntraClusterIdleConnTimeout;
/// The declared values of each version of the spec, server and client, in seconds: the second narrows both, the third
/// widens both, and the fourth no longer declares the client's.
pub const SPECS: [(u64, Option<u64>); 4] = [(30, Some(20)), (15, Some(10)), (200, Some(150)), (200, None)];
/// Number of nodes. They are alike.
pub const NODES: usize = 2;
/// Value that another client writes to the server side, in seconds.
const FOREIGN: u64 = 100;
/// UID of the policy.
pub const UID: &str = "0b6e9a1c-7d52-4c2f-9a83-5f1f4f7c2d10";

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
        from: BTreeMap<Limit, Option<Json>>,
        changes: Vec<Change>,
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
    Unit(Result<UnitState, Fault>),
    Written(Result<(), Fault>),
    Found(Result<(), Error>),
    Units(Result<(), Fault>),
    Started(Option<String>),
    Waited,
    Interrupted,
}

/// One node: what it stores, and what it had stored.
#[derive(Clone, Debug)]
pub struct Node {
    pub up: bool,
    pub boots: u32,
    /// Values by limit, as the server writes them; `None` where nothing is set.
    pub values: BTreeMap<Limit, Option<Json>>,
    /// Values that anyone but the operator has put there.
    pub foreign: BTreeMap<Limit, Vec<Option<Json>>>,
    /// Whether another client or a restart has ever changed its values.
    pub disturbed: bool,
    /// What the last answered read of the current pass showed.
    pub seen: Option<BTreeMap<Limit, Option<Json>>>,
}

/// Everything outside the operator.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub version: u64,
    pub spec: usize,
    pub generation: i64,
    pub exists: bool,
    pub deleted: bool,
    pub finalizers: Vec<String>,
    pub status: Option<Box<IdleConnectionPolicyStatus>>,
    pub originals: BTreeMap<i64, Record>,
    pub events: BTreeSet<(String, String)>,
    pub nodes: [Node; NODES],
    /// Generations for which Programmed was True in a written status.
    pub programmed: BTreeSet<i64>,
    /// Writes that were carried out since this was reset.
    pub writes: u32,
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
fn in_order(values: &BTreeMap<Limit, Option<Json>>) -> bool {
    let seconds = |limit| match parsed(values[&limit].as_ref()) {
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
        Self { up: true, boots: 1, values, foreign, disturbed: false, seen: None }
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

    /// Whether these values are what this version of the spec declares. What is not declared is anyone's but the operator's.
    fn holds(&self, values: &BTreeMap<Limit, Option<Json>>, spec: usize) -> bool {
        let (server, client) = SPECS[spec];
        let back = |value: &Option<Json>| self.foreign[&CLIENT].contains(value);
        let client = client.map_or_else(|| back(&values[&CLIENT]), |client| values[&CLIENT] == Some(text(client)));
        values[&SERVER] == Some(text(server)) && client
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

fn refused(code: u16, what: &str) -> Error {
    ApiError::new(Some(code), what, what.to_owned()).into()
}

impl Cluster {
    /// A policy that was just created, and nodes that no policy governs.
    pub fn new() -> Self {
        Self {
            version: 1,
            spec: 0,
            generation: 1,
            exists: true,
            deleted: false,
            finalizers: Vec::new(),
            status: Some(Box::new(default_status())),
            originals: BTreeMap::new(),
            events: BTreeSet::new(),
            nodes: [Node::new(), Node::new()],
            programmed: BTreeSet::new(),
            writes: 0,
        }
    }

    fn policy(&self) -> StoredPolicy {
        let (server, client) = SPECS[self.spec];
        let spec: IdleConnectionPolicySpec = serde_json::from_value(json!({
            "target": {"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "gateway"}}}},
            "restoreTimeout": "5s",
            "limits": {
                "server": {"idleTimeout": format!("{server}s")},
                "intraCluster": client.map(|client| json!({"idleConnTimeout": format!("{client}s")})),
            },
        }))
        .unwrap();
        let mut policy = IdleConnectionPolicy::new("gateway", spec);
        let created = Time(Timestamp::from_second(1_790_000_000).unwrap());
        policy.metadata.namespace = Some("shop".into());
        policy.metadata.uid = Some(UID.into());
        policy.metadata.creation_timestamp = Some(created.clone());
        policy.metadata.generation = Some(self.generation);
        policy.metadata.resource_version = Some(self.version.to_string());
        policy.metadata.finalizers = Some(self.finalizers.clone());
        policy.metadata.deletion_timestamp = self.deleted.then_some(created);
        policy.status = self.status.as_deref().cloned();
        StoredPolicy { policy: Ok(policy), unknown: Vec::new(), lost: false }
    }

    /// A person changes the declared values.
    pub fn edit(&mut self) {
        self.spec += 1;
        self.generation += 1;
        self.version += 1;
    }

    /// A person deletes the policy.
    pub fn delete(&mut self) {
        self.deleted = true;
        self.generation += 1;
        self.version += 1;
        self.collect();
    }

    fn collect(&mut self) {
        if self.deleted && self.finalizers.is_empty() {
            self.exists = false;
        }
    }

    /// Carries a request out. Returns the answer, and the rule that the request breaks, if it breaks one.
    pub fn carry_out(&mut self, effect: &Effect) -> (Answer, Option<String>) {
        let before = self.clone();
        let answer = self.answer(effect);
        let broken = self.broken_rule(&before, effect);
        if effect.changes() {
            self.writes += 1;
        }
        (answer, broken)
    }

    fn answer(&mut self, effect: &Effect) -> Answer {
        match effect {
            Effect::ReadPolicy => Answer::Policy(Ok(self.exists.then(|| Box::new(self.policy())))),
            Effect::SetFinalizers { version, finalizers } => Answer::Policy(self.set_finalizers(version.as_deref(), finalizers)),
            Effect::ClearStatus { version } => Answer::Version(self.write_status(version.as_deref(), None)),
            Effect::WriteStatus { version, status } => {
                Answer::Version(self.write_status(version.as_deref(), Some(status.clone())))
            }
            Effect::Publish { reason, seed, .. } => {
                self.events.insert((reason.to_string(), seed.clone()));
                Answer::Done(Ok(()))
            }
            Effect::ReadOriginals => Answer::Originals(Ok(Log { records: self.originals.clone() })),
            Effect::SaveOriginal { revision, record } => Answer::Done(if self.originals.contains_key(revision) {
                Err(refused(409, "the object already exists"))
            } else {
                self.originals.insert(*revision, record.clone());
                Ok(())
            }),
            Effect::DeleteOriginal(revision) => {
                self.originals.remove(revision);
                Answer::Done(Ok(()))
            }
            Effect::Locate => Answer::Found(Ok(())),
            Effect::Discover => Answer::Units(Ok(())),
            Effect::Read(node) => {
                let at = &mut self.nodes[*node];
                at.seen = at.up.then(|| at.values.clone());
                Answer::Unit(if at.up { Ok(at.state(&name(*node))) } else { Err(silent(*node)) })
            }
            Effect::Started(node) => {
                let at = &self.nodes[*node];
                Answer::Started(at.up.then(|| format!("boot {}", at.boots)))
            }
            Effect::Write { node, from, changes } => Answer::Written(self.write(*node, from, changes)),
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
            Effect::Locate => Answer::Found(Err(Error::TimedOut)),
            Effect::Discover => Answer::Units(Err(silent(0))),
            Effect::Read(node) => Answer::Unit(Err(silent(*node))),
            Effect::Started(_) => Answer::Started(None),
            Effect::Write { node, .. } => Answer::Written(Err(silent(*node))),
            Effect::Wait(_) => Answer::Waited,
            Effect::Interrupted => Answer::Interrupted,
        }
    }

    fn set_finalizers(&mut self, version: Option<&str>, finalizers: &[String]) -> Result<Option<Box<StoredPolicy>>, Error> {
        if !self.exists {
            return Ok(None);
        }
        if version != Some(&*self.version.to_string()) {
            return Err(refused(409, "the object has been modified"));
        }
        let adds = finalizers.iter().any(|finalizer| !self.finalizers.contains(finalizer));
        if self.deleted && adds {
            return Err(refused(422, "no new finalizers can be added if the object is being deleted"));
        }
        self.version += u64::from(self.finalizers != finalizers);
        self.finalizers = finalizers.to_vec();
        let policy = self.policy();
        self.collect();
        Ok(Some(Box::new(policy)))
    }

    fn write_status(
        &mut self,
        version: Option<&str>,
        status: Option<Box<IdleConnectionPolicyStatus>>,
    ) -> Result<Option<String>, Error> {
        if !self.exists {
            return Err(refused(404, "the policy does not exist"));
        }
        if version != Some(&*self.version.to_string()) {
            return Err(refused(409, "the object has been modified"));
        }
        let programmed = status.as_ref().and_then(|status| {
            let condition = status.conditions.iter().find(|condition| condition.type_ == "Programmed")?;
            (condition.status == "True").then_some(condition.observed_generation?)
        });
        self.programmed.extend(programmed);
        let status = status.or_else(|| Some(Box::new(default_status())));
        // A write that changes nothing makes no new version.
        self.version += u64::from(self.status != status);
        self.status = status;
        Ok(Some(self.version.to_string()))
    }

    fn write(&mut self, node: usize, from: &BTreeMap<Limit, Option<Json>>, changes: &[Change]) -> Result<(), Fault> {
        let at = &mut self.nodes[node];
        if !at.up {
            return Err(silent(node));
        }
        if at.values != *from {
            return Err(Fault::new(Cause::Busy, format!("{} changed meanwhile", name(node))));
        }
        for change in changes {
            let raw = match &change.to {
                NewValue::Value(value) => Some(json!(value.to_string())),
                NewValue::Raw(raw) => raw.clone(),
            };
            at.values.insert(change.site.limit, raw);
        }
        Ok(())
    }

    /// The rules that hold in every state, whatever is yet to come.
    fn broken_rule(&self, before: &Self, effect: &Effect) -> Option<String> {
        match effect {
            Effect::Write { node, .. } => {
                if !self.finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
                    return Some(format!("node {node} was written without the finalizer"));
                }
                let (was, is) = (&before.nodes[*node].values, &self.nodes[*node].values);
                (in_order(was) && !in_order(is))
                    .then(|| format!("node {node}: the client keeps connections longer than the server"))
            }
            Effect::SaveOriginal { record, .. } => {
                let saved = record.units.iter().filter_map(|(id, saved)| Some((id, saved.as_ref()?)));
                let mut sites = saved.flat_map(|(id, saved)| saved.sites.iter().map(move |(site, raw)| (id, site, raw)));
                sites.find_map(|(id, site, raw)| {
                    let node = (0..NODES).find(|node| name(*node) == *id)?;
                    let foreign = &self.nodes[node].foreign[&site.limit];
                    (!foreign.contains(raw))
                        .then(|| format!("{site} of {id}: {raw:?} was saved as the original, and is the operator's own value"))
                })
            }
            Effect::WriteStatus { status, .. } => {
                self.untrue_status(status).or_else(|| self.untold()).or_else(|| self.blames(status))
            }
            Effect::SetFinalizers { finalizers, .. } if before.exists && finalizers.is_empty() && self.finalizers.is_empty() => {
                self.not_restored(&before.finalizers)
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
            let spec = usize::try_from(generation).unwrap_or(0).saturating_sub(1).min(SPECS.len() - 1);
            for (n, node) in self.nodes.iter().enumerate() {
                let seen = node.seen.as_ref().is_some_and(|seen| node.holds(seen, spec));
                if !seen {
                    return Some(format!("{name} is True, and node {n} was not seen with the values of generation {generation}"));
                }
            }
        }
        None
    }

    /// Whether an Event says that something was not restored.
    pub fn has_abandoned(&self) -> bool {
        self.events.iter().any(|(reason, _)| reason == "RestoreAbandoned")
    }

    fn is_contended(&self) -> bool {
        let conditions = self.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|condition| condition.type_ == "Programmed" && condition.reason == "Contended")
    }

    /// Another client is blamed only if there was one.
    fn blames(&self, status: &IdleConnectionPolicyStatus) -> Option<String> {
        let drifted = status.conditions.iter().any(|condition| condition.reason == "Drifted");
        let disturbed = self.nodes.iter().any(|node| node.disturbed);
        (drifted && !disturbed).then(|| "another client is blamed, and there was none".into())
    }

    /// After a status is written, no pass publishes the Events that it makes old news.
    pub fn untold(&self) -> Option<String> {
        let tells = |(reason, _): &&(String, String)| matches!(reason.as_str(), "Programmed" | "DriftCorrected");
        let told = self.events.iter().filter(tells).count();
        (told < self.programmed.len()).then(|| "Programmed is True in the status, and no Event says so".into())
    }

    fn not_restored(&self, before: &[String]) -> Option<String> {
        if before.is_empty() || self.has_abandoned() {
            return None;
        }
        let mine = |node: &&Node| node.up && node.values.iter().any(|(limit, value)| !node.foreign[limit].contains(value));
        let left = self.nodes.iter().position(|node| mine(&node))?;
        Some(format!("the finalizer was removed, and node {left} still holds a value of the operator"))
    }

    /// Why this is not the state that the policy asks for; `None` if it is.
    pub fn unfinished(&self) -> Option<String> {
        if self.deleted {
            // What could not be restored stays saved.
            return self.exists.then(|| "the policy still exists".into()).or_else(|| {
                (!self.originals.is_empty() && !self.has_abandoned()).then(|| "saved original settings remain".to_owned())
            });
        }
        if self.is_contended() {
            // The status says that the limit is left alone, and until when. The clock of the model stands still.
            return None;
        }
        if let Some(node) = self.nodes.iter().position(|node| !node.holds(&node.values, self.spec)) {
            return Some(format!("node {node} does not hold the declared values: {:?}", self.nodes[node].values));
        }
        let Some(status) = &self.status else { return Some("there is no status".into()) };
        if status.observed_generation != Some(self.generation) {
            return Some("the status is about another generation".into());
        }
        for name in ["Ready", "Programmed", "InEffect"] {
            let condition = status.conditions.iter().find(|condition| condition.type_ == name);
            if condition.is_none_or(|condition| condition.status != "True") {
                let said = condition.map(|condition| format!("{} {}", condition.status, condition.reason));
                return Some(format!("{name} is {}", said.unwrap_or_else(|| "absent".into())));
            }
        }
        None
    }
}

fn silent(node: usize) -> Fault {
    Fault::new(Cause::Unreachable, format!("{} did not answer", name(node)))
}
