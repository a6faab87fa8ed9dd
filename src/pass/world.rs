//! Every request that is made for a policy, as one trait. The controller carries the requests out; the exploration in
//! tests/model answers them from an API server and nodes that are values.
//!
//! A request can be done, refused, or lost: then it may have been carried out or not ([`super::Error::TimedOut`], or
//! an [`super::ApiError`] without a code).

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    ops::Add,
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use jiff::Timestamp;

use super::{Error, Failure, PolicyHandle, claims::Registry};
use crate::{
    api::{
        IdleConnectionPolicyStatus, StoredPolicy,
        adaptive::{Signal as SignalSpec, Source},
        config_map::ConfigMap,
        policy::{Target as TargetSpec, TargetType},
    },
    decide::{
        Change, Declared, Fault, TargetCapabilities, Unit, UnitResult, UnitState,
        adaptive::{config::Config, signal::Signal, step::Decision},
        claims::Claimant,
        originals::{Log, Record, Saved},
        report::condition::Notice,
        report::node_status::Truths,
        restart::{eviction::Pod, rollout::Workload},
        verify::Probes,
    },
};

/// A time of the monotonic clock: the time since this process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub Duration);

impl Moment {
    /// Returns the time since an earlier moment; zero if it is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait))
    }
}

/// Parts of a pass, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Stage {
    /// Find the target's nodes.
    Discover,
    /// Wait for nodes that are being read.
    Gather,
    /// Decide what to change.
    Decide,
    /// Save the original settings.
    Capture,
    /// Write to the nodes and read back.
    Write,
    /// Send Events and the status.
    Report,
    /// Restore the original settings.
    Restore,
}

/// A stage ends when this is dropped.
pub type Stay = Box<dyn Any + Send>;

/// What becomes known in a pass: metrics, the API and the page show it. Decisions do not depend on it.
pub enum News<'a> {
    /// The pass succeeded.
    Reconciled,
    /// The status that is reported, also if it is not written because nothing changed.
    Status(&'a IdleConnectionPolicyStatus),
    /// The API server rejected the status.
    StatusRefused,
    /// A step of adaptive control.
    Decided(&'a Decision),
    /// A unit was written: whether it accepted the changes.
    Wrote(bool),
    /// The truths of each node.
    Nodes(Vec<Truths>, Timestamp),
}

/// A node whose tasks are counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SampledNode {
    /// The node's name.
    pub name: String,
    /// `scheme://host:port`; empty if unknown, which makes the node count as missing.
    pub address: String,
    /// Whether only the node's own cluster names this address: then each request needs a permit.
    pub named: bool,
    /// Name of the pod that the node reports; empty if it reports none.
    pub pod: String,
    /// Path and query of the page. For a Prometheus server, the part before `/api`.
    pub path: String,
}

/// What is sampled for adaptive control.
pub struct Sampling<'a> {
    /// `spec.adaptive.signal`.
    pub signal: &'a SignalSpec,
    /// The source, with its default.
    pub source: Source,
    /// Interval between samples.
    pub interval: Duration,
    /// The nodes; empty for a Prometheus server.
    pub nodes: Vec<SampledNode>,
}

/// Probes of the servers, with `spec.verify`.
#[derive(Default)]
pub struct Probing {
    /// The results; `None` if nothing is to be measured.
    pub found: Option<Probes>,
    /// Time until the next probe is due.
    pub due: Option<Duration>,
}

/// A target that was found with requests to the API server only.
pub trait Located: Send + Sync {
    /// Returns its identities. Equal identities mean the same target.
    fn identities(&self) -> BTreeSet<String>;

    /// Reads its references and connects to it. No request is sent to a node yet.
    fn connect<'a>(self: Box<Self>, declared: &'a Declared) -> BoxFuture<'a, Result<Arc<dyn Target>, Failure>>
    where
        Self: 'a;
}

/// A connected target: one server, one cluster, or one file, in units that are written as a whole.
pub trait Target: Send + Sync {
    /// Finds the units. If there are none, the error is [`crate::decide::Cause::NotFound`].
    fn discover(&self) -> BoxFuture<'_, Result<Vec<Unit>, Fault>>;

    /// Reads the values that a unit and its nodes store.
    fn read<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<UnitState, Fault>>;

    /// When the unit's process started, as it reports: any text that differs after a restart. `None` if it does not
    /// report this, or if a restart loses no stored value.
    fn started<'a>(&'a self, _unit: &'a Unit) -> BoxFuture<'a, Option<String>> {
        Box::pin(std::future::ready(None))
    }

    /// Takes a node out of service, or back into it, so that its restart disturbs no client.
    fn drain<'a>(&'a self, _unit: &'a Unit, _node: &'a str, _out: bool) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Writes all changes at once, against the state that they were decided from.
    ///
    /// A timeout is a fault like any other: the next read shows whether the values were stored.
    fn write<'a>(&'a self, unit: &'a Unit, state: &'a UnitState, changes: &'a [Change]) -> BoxFuture<'a, Result<(), Fault>>;
}

/// Everything that the work for one policy asks of the world.
pub trait World: Send + Sync {
    /// The current time of the monotonic clock.
    fn moment(&self) -> Moment;
    /// The current time, the same for all replicas.
    fn now(&self) -> Timestamp;
    /// Whether nothing is written to any node.
    fn is_dry_run(&self) -> bool;
    /// Interval at which the nodes are read if nothing happens.
    fn resync(&self) -> Duration;
    /// What a target can do.
    fn traits(&self, target: &TargetSpec) -> TargetCapabilities;
    /// Whether targets of this kind report an identity themselves.
    fn states_identity(&self, kind: TargetType) -> bool;
    /// Whether each unit of this kind is one node.
    fn units_are_nodes(&self, kind: TargetType) -> bool;
    /// The source of samples where `adaptive.signal.source` is not set.
    fn default_source(&self, kind: TargetType) -> Source;
    /// What the policies claim.
    fn registry(&self) -> &Registry;

    /// Begins a stage of the pass.
    fn enter(&self, stage: Stage) -> Stay;
    /// Shows what became known.
    fn tell(&self, news: News<'_>);
    /// Waits until this policy may read nodes. Reports whether it had to wait.
    fn admitted(&self) -> BoxFuture<'_, bool>;
    /// Begins the time in which nodes may be read.
    fn begin(&self);
    /// The nodes have been read and written, so another policy may read its nodes. What this pass has to report is sent after
    /// the requests that other policies need before their nodes are written.
    fn leave(&self);
    /// Waits until the pass must read no further: [`Error::Cancelled`] or [`Error::Overdue`].
    fn interrupted(&self) -> BoxFuture<'_, Error>;
    /// Reports whether the pass may begin no further work.
    fn is_interrupted(&self) -> bool;
    /// Waits until a time of the monotonic clock.
    fn wait_until(&self, moment: Moment) -> BoxFuture<'_, ()>;
    /// Requests a pass of other policies.
    fn wake(&self, policies: BTreeSet<Claimant>);
    /// Ends what runs for the policy between its passes, and drops its credentials.
    fn end_all(&self);
    /// Ends all of that and forgets the policy, which is gone.
    fn forget(&self);
    /// Reports whether the namespace may keep this number of bytes of responses until the pass ends.
    fn may_keep(&self, bytes: usize) -> bool;

    /// Reads the policy; `None` if it does not exist.
    fn policy(&self) -> BoxFuture<'_, Result<Option<StoredPolicy>, Error>>;
    /// Writes the list of finalizers, if no client has written the object since it was read. `None` if it does not exist.
    fn set_finalizers<'a>(
        &'a self,
        policy: &'a PolicyHandle,
        finalizers: &'a [String],
    ) -> BoxFuture<'a, Result<Option<StoredPolicy>, Error>>;
    /// Removes the whole status, with the fields that another client has set, if no client has written the object since it was
    /// read. Returns the object's new resourceVersion.
    fn clear_status<'a>(&'a self, policy: &'a PolicyHandle) -> BoxFuture<'a, Result<Option<String>, Error>>;
    /// Writes the status, if no client has written the object since it was read. Returns the object's new resourceVersion.
    fn write_status<'a>(
        &'a self,
        policy: &'a PolicyHandle,
        status: &'a IdleConnectionPolicyStatus,
    ) -> BoxFuture<'a, Result<Option<String>, Error>>;
    /// Publishes an Event. The same news with the same seed is published once.
    fn publish<'a>(&'a self, policy: &'a PolicyHandle, notice: &'a Notice, seed: &'a str) -> BoxFuture<'a, Result<(), Error>>;
    /// Reads the original settings that this policy has saved.
    fn originals(&self) -> BoxFuture<'_, Result<Log, Error>>;
    /// Reads those that all policies of the namespace have saved, by policy; `None` if a record cannot be read.
    fn all_originals(&self) -> BoxFuture<'_, Result<BTreeMap<String, Option<Log>>, Error>>;
    /// Creates a record of original settings. Fails if this revision exists.
    fn save_original<'a>(&'a self, revision: i64, record: &'a Record) -> BoxFuture<'a, Result<(), Error>>;
    /// Deletes a record of original settings. It is no error if it does not exist.
    fn delete_original(&self, revision: i64) -> BoxFuture<'_, Result<(), Error>>;

    /// Finds the target of the policy.
    fn locate<'a, 'p>(&'a self, policy: &'p PolicyHandle) -> BoxFuture<'p, Result<Box<dyn Located + 'a>, Failure>>
    where
        'a: 'p;
    /// Connects to a saved unit where this target finds it now; `None` if the unit does not exist any more.
    fn connect_saved<'a>(
        &'a self,
        policy: &'a PolicyHandle,
        id: &'a str,
        saved: &'a Saved,
        target: &'a TargetSpec,
    ) -> BoxFuture<'a, Result<Option<Arc<dyn Target>>, Fault>>;
    /// Grants a part of so many writes that each close the idle connections of a node. If it is not all, returns the time at which
    /// more is granted.
    fn may_flush(&self, nodes: usize) -> (usize, Option<Moment>);
    /// Waits until no earlier write to a node of this policy is in progress.
    fn writes_ended(&self) -> BoxFuture<'_, ()>;
    /// Sizes the connection pool for the nodes that are read, and those that are sampled at an interval.
    fn size_pool(&self, units: usize, sampled: Option<(usize, Duration)>);

    /// Reads pods. `behind_service`: the target is reached by a Service of this namespace, so that DNS names in it can mean
    /// its pods.
    fn pods(&self, names: BTreeSet<String>, behind_service: bool) -> BoxFuture<'_, Result<BTreeMap<String, Pod>, Error>>;
    /// Evicts exactly this pod.
    ///
    /// # Errors
    /// Why it is not evicted, for the status.
    fn evict<'a>(&'a self, node: &'a str, pod: &'a str, uid: &'a str) -> BoxFuture<'a, Result<(), String>>;
    /// Reads the workload of the selected pods; `None` if it is not known.
    fn workload<'a>(&'a self, config_map: &'a ConfigMap) -> BoxFuture<'a, Result<Option<Workload>, Error>>;
    /// Annotates the pod template of a workload so that its pods are replaced.
    ///
    /// # Errors
    /// Why it is not annotated, for the status.
    fn roll<'a>(&'a self, kind: &'a str, name: &'a str, hash: &'a str) -> BoxFuture<'a, Result<(), String>>;

    /// Samples these nodes from now on; `None` ends it. Returns why the samples do not count, if they do not.
    fn sample<'a>(&'a self, policy: &'a PolicyHandle, sampling: Option<Sampling<'a>>) -> BoxFuture<'a, Option<Signal>>;
    /// Evaluates the samples.
    fn signal(&self, config: &Config, now: i64) -> Signal;
    /// Begins the probes that are due, except of units that wait to be written: what they do now is soon out of date. `all` means
    /// that these are all units of the policy.
    fn probe(&self, policy: &PolicyHandle, units: &[UnitResult], all: bool, waiting: &BTreeSet<String>) -> Probing;
}
