//! Carries out every request that a pass makes. What comes next is decided in [`crate::pass`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
    core::NamespaceResourceScope,
};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Context, PolicyRef, adaptation, connections,
    discovery::{self, Places},
    events, in_time, logging, originals, path, planted, restart, rollout, saved_unit,
    scheduler::{Slot, Visit},
    verify::{self, Verifier},
};
use crate::{
    api::{
        IdleConnectionPolicy, IdleConnectionPolicyStatus, MANAGER, StoredPolicy,
        adaptive::Source,
        config_map::ConfigMap,
        policy::{Target as TargetSpec, TargetType},
    },
    budget::Reservation,
    clock,
    decide::{
        self, Fault, TargetCapabilities, UnitResult,
        adaptive::{config::Config, signal::Signal},
        claims::Claimant,
        originals::{Log, Record, Saved},
        report::condition::Notice,
        restart::rollout::Workload,
    },
    pass::{
        Error, Failure, PolicyHandle,
        claims::Registry,
        world::{Located, Moment, News, Probing, Sampling, Stage, Stay, Target, World},
    },
    signals::Sampler,
    targets::{self, Credentials, Reach},
};

/// What runs for a policy between its passes.
#[derive(Default)]
pub struct Running {
    /// Samples of the nodes, with adaptive control.
    pub sampler: Option<Sampler>,
    /// Probes of the servers, with `spec.verify`.
    pub verifier: Option<Verifier>,
    /// Last credentials that could be read. In a namespace that is being deleted, the Secret is deleted before the policy.
    pub credentials: Credentials,
    /// Version of the policy that the API server returned last, and when; `None` after a write whose result is not known.
    pub confirmed: Option<(String, Moment)>,
}

/// One pass, as seen from the controller.
pub struct Shell {
    ctx: Arc<Context>,
    policy: PolicyRef,
    namespace: String,
    path: String,
    pass: Mutex<Pass>,
    running: Arc<Mutex<Running>>,
}

/// What a pass holds until it ends.
struct Pass {
    visit: Visit,
    slot: Option<Slot>,
    /// Permit to go on without a slot.
    left: Option<OwnedSemaphorePermit>,
    kept: Reservation,
}

impl Shell {
    /// Begins a pass of a policy.
    pub fn new(ctx: Arc<Context>, policy: PolicyRef, running: Arc<Mutex<Running>>) -> Self {
        let namespace = policy.namespace.clone().unwrap_or_default();
        let kept = ctx.kept.tenant(&namespace).nothing();
        let pass = Mutex::new(Pass { visit: Visit::default(), slot: None, left: None, kept });
        Self { path: path(&policy), ctx, policy, namespace, pass, running }
    }

    fn pass(&self) -> MutexGuard<'_, Pass> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the objects of one kind in the policy's namespace.
    fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.ctx.client.clone(), &self.namespace)
    }

    /// Waits until a pass without a slot may send a part of its report.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let has_slot = self.pass().slot.is_some();
        // The semaphore is never closed.
        if has_slot { None } else { self.ctx.reports.clone().acquire_owned().await.ok() }
    }

    /// Remembers the version of the policy that the API server returned.
    fn confirm(&self, version: Option<String>) {
        self.running().confirmed = version.map(|version| (version, super::moment()));
    }

    /// Sends a change of the policy. Its version is not known until the API server has answered.
    async fn written(&self, change: impl Future<Output = kube::Result<StoredPolicy>>) -> Result<StoredPolicy, Error> {
        self.confirm(None);
        let written = in_time(change).await?;
        self.confirm(written.resource_version());
        Ok(written)
    }

    /// Returns the watched policy, if it is as new as all that this process read and wrote, and was compared with the API server
    /// recently. Most of the passes for a new policy follow each other within seconds.
    fn confirmed(&self) -> Option<StoredPolicy> {
        let (version, at) = self.running().confirmed.clone()?;
        let watched = self.ctx.policies.get(&self.policy)?;
        // Of the passes that nothing but the time causes, every other one reads the policy: the connection of the watch may hang.
        let is_recent = super::moment().since(at) < self.ctx.settings.resync * 3 / 2;
        (is_recent && watched.resource_version() == Some(version)).then(|| (*watched).clone())
    }

    fn reach(&self, policy: &PolicyHandle) -> Reach {
        let observed = policy.object.status.as_ref().and_then(|status| status.observed_generation);
        Reach {
            client: self.ctx.client.clone(),
            namespace: self.namespace.clone(),
            provider: self.ctx.pool.provider(&self.path),
            hurry: observed != policy.object.metadata.generation,
        }
    }
}

/// A target that was found, with what is needed to connect to it.
struct Found<'a> {
    shell: &'a Shell,
    spec: TargetSpec,
    places: Places,
    reach: Reach,
}

impl Located for Found<'_> {
    fn identities(&self) -> BTreeSet<String> {
        targets::identities(&self.spec, &self.shell.namespace, &self.places)
    }

    fn connect<'a>(self: Box<Self>, declared: &'a decide::Declared) -> BoxFuture<'a, Result<Arc<dyn Target>, Failure>>
    where
        Self: 'a,
    {
        Box::pin(async move {
            let Self { shell, spec, places, reach } = *self;
            let credentials = discovery::credentials(&shell.ctx, &shell.namespace, &spec).await?;
            shell.running().credentials = credentials.clone();
            Ok(targets::connect(&spec, &declared.providers, places, credentials, reach)?)
        })
    }
}

/// The label of a stage in `idleconn_reconcile_step_seconds`; `None` for those that are parts of another.
fn step(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Capture | Stage::Restore => None,
        Stage::Write => Some("apply"),
        other => Some(other.into()),
    }
}

impl World for Shell {
    fn moment(&self) -> Moment {
        super::moment()
    }

    fn now(&self) -> Timestamp {
        clock::now()
    }

    fn is_dry_run(&self) -> bool {
        self.ctx.settings.dry_run
    }

    fn resync(&self) -> Duration {
        // Spread by a tenth, so that policies are not resynced at the same time.
        let spread = self.policy.name.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 200;
        self.ctx.settings.resync * (900 + spread) / 1000
    }

    fn traits(&self, target: &TargetSpec) -> TargetCapabilities {
        targets::traits(target)
    }

    fn states_identity(&self, kind: TargetType) -> bool {
        targets::kind(kind).states_identity
    }

    fn units_are_nodes(&self, kind: TargetType) -> bool {
        targets::kind(kind).units_are_nodes
    }

    fn default_source(&self, kind: TargetType) -> Source {
        targets::kind(kind).source
    }

    fn registry(&self) -> &Registry {
        &self.ctx.registry
    }

    fn enter(&self, stage: Stage) -> Stay {
        planted::panics(stage.into(), &self.path);
        Box::new(step(stage).map(|step| self.ctx.metrics.time(step)))
    }

    fn tell(&self, news: News<'_>) {
        let (namespace, name) = (&*self.namespace, &*self.policy.name);
        match news {
            News::Reconciled => self.ctx.metrics.reconciled(),
            News::Status(status) => self.ctx.metrics.policies.reported(namespace, name, status),
            News::StatusRefused => self.ctx.metrics.status_refused(),
            News::Decided(decision) => self.ctx.metrics.policies.decided(namespace, name, decision),
            News::Wrote(accepted) => self.ctx.metrics.wrote(accepted),
            News::Nodes(truths, now) => {
                let samples = self.running().sampler.as_ref().map(Sampler::samples);
                self.ctx.live.passed(&self.policy, truths, samples, now);
            }
        }
    }

    fn admitted(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            let asked = super::moment();
            let slot = self.ctx.scheduler.admit(&self.namespace).await;
            self.pass().slot = Some(slot);
            super::moment().since(asked) > crate::pass::DUE_SLACK
        })
    }

    fn begin(&self) {
        self.pass().visit = self.ctx.scheduler.begin(&self.policy);
    }

    fn leave(&self) {
        if let Ok(left) = self.ctx.left.clone().try_acquire_owned() {
            let mut pass = self.pass();
            (pass.slot, pass.left) = (None, Some(left));
        }
    }

    fn interrupted(&self) -> BoxFuture<'_, Error> {
        let visit = self.pass().visit.clone();
        async move { visit.interrupted().await }.boxed()
    }

    fn is_interrupted(&self) -> bool {
        self.pass().visit.is_interrupted()
    }

    fn wait_until(&self, moment: Moment) -> BoxFuture<'_, ()> {
        tokio::time::sleep(moment.since(super::moment())).boxed()
    }

    fn wake(&self, policies: BTreeSet<Claimant>) {
        self.ctx.enqueue(policies);
    }

    fn end_all(&self) {
        *self.running() = Running::default();
    }

    fn forget(&self) {
        self.ctx.gone(&self.policy);
    }

    fn may_keep(&self, bytes: usize) -> bool {
        self.pass().kept.try_grow(bytes)
    }

    fn policy(&self) -> BoxFuture<'_, Result<Option<StoredPolicy>, Error>> {
        async {
            if let Some(policy) = self.confirmed() {
                return Ok(Some(policy));
            }
            let read = in_time(self.api::<StoredPolicy>().get_opt(&self.policy.name)).await?;
            self.confirm(read.as_ref().and_then(StoredPolicy::resource_version));
            Ok(read)
        }
        .boxed()
    }

    fn set_finalizers<'a>(
        &'a self,
        policy: &'a PolicyHandle,
        finalizers: &'a [String],
    ) -> BoxFuture<'a, Result<Option<StoredPolicy>, Error>> {
        Box::pin(async move {
            let version = policy.object.resource_version();
            let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": version, "uid": policy.uid}});
            let (api, params) = (self.api::<StoredPolicy>(), PatchParams::default());
            match self.written(api.patch(&policy.name, &params, &Patch::Merge(patch))).await {
                Err(error) if error.is_not_found() => Ok(None),
                written => written.map(Some),
            }
        })
    }

    fn clear_status<'a>(&'a self, policy: &'a PolicyHandle) -> BoxFuture<'a, Result<Option<String>, Error>> {
        Box::pin(async move {
            let version = policy.object.resource_version();
            let empty = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "status": null}));
            let (api, params) = (self.api::<StoredPolicy>(), PatchParams::default());
            Ok(self.written(api.patch_status(&policy.name, &params, &empty)).await?.resource_version())
        })
    }

    fn write_status<'a>(
        &'a self,
        policy: &'a PolicyHandle,
        status: &'a IdleConnectionPolicyStatus,
    ) -> BoxFuture<'a, Result<Option<String>, Error>> {
        Box::pin(async move {
            let name = &policy.name;
            let body = json!({
                "apiVersion": IdleConnectionPolicy::api_version(&()),
                "kind": IdleConnectionPolicy::kind(&()),
                // The version protects a newer object of the same name. The API server ignores a UID here.
                "metadata": {"name": name, "resourceVersion": policy.object.resource_version()},
                "status": status,
            });
            let params = PatchParams::apply(MANAGER).force();
            let _turn = self.turn().await;
            let written = self.written(self.api::<StoredPolicy>().patch_status(name, &params, &Patch::Apply(body))).await?;
            self.ctx.metrics.status_written();
            Ok(written.resource_version())
        })
    }

    fn publish<'a>(&'a self, policy: &'a PolicyHandle, notice: &'a Notice, seed: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let _turn = self.turn().await;
            events::publish(&self.ctx.client, &self.ctx.settings.instance, policy, notice, seed).await
        })
    }

    fn originals(&self) -> BoxFuture<'_, Result<Log, Error>> {
        async move { originals::load(&self.api(), &self.policy.name).await }.boxed()
    }

    fn all_originals(&self) -> BoxFuture<'_, Result<BTreeMap<String, Option<Log>>, Error>> {
        async move { originals::load_all(&self.api()).await }.boxed()
    }

    fn save_original<'a>(&'a self, revision: i64, record: &'a Record) -> BoxFuture<'a, Result<(), Error>> {
        async move { originals::create(&self.api(), &self.policy.name, revision, record).await }.boxed()
    }

    fn delete_original(&self, revision: i64) -> BoxFuture<'_, Result<(), Error>> {
        async move { originals::delete(&self.api(), &self.policy.name, revision).await }.boxed()
    }

    fn locate<'a, 'p>(&'a self, policy: &'p PolicyHandle) -> BoxFuture<'p, Result<Box<dyn Located + 'a>, Failure>>
    where
        'a: 'p,
    {
        Box::pin(async move {
            let places = discovery::subscribed(&self.ctx, &self.policy, policy).await?;
            let kind = policy.spec().target.type_.name();
            tracing::debug!(kind, places = logging::names(places.iter().map(|place| &place.name)), "found the target");
            let found = Found { shell: self, spec: policy.spec().target.clone(), places, reach: self.reach(policy) };
            Ok(Box::new(found) as Box<dyn Located + 'a>)
        })
    }

    fn connect_saved<'a>(
        &'a self,
        policy: &'a PolicyHandle,
        id: &'a str,
        saved: &'a Saved,
        target: &'a TargetSpec,
    ) -> BoxFuture<'a, Result<Option<Arc<dyn Target>>, Fault>> {
        Box::pin(async move {
            let Some(places) = saved_unit::place(&self.ctx, policy, id, saved, target).await? else { return Ok(None) };
            // In a namespace that is being deleted, the Secret is deleted before the policy. Then the credentials that were last
            // read are used.
            let credentials = match discovery::credentials(&self.ctx, &self.namespace, target).await {
                Ok(credentials) => credentials,
                Err(_) => self.running().credentials.clone(),
            };
            Ok(Some(targets::connect(target, &BTreeMap::new(), places, credentials, self.reach(policy))?))
        })
    }

    fn may_flush(&self, nodes: usize) -> (usize, Option<Moment>) {
        self.ctx.may_flush(nodes)
    }

    fn writes_ended(&self) -> BoxFuture<'_, ()> {
        let provider = self.ctx.pool.provider(&self.path);
        async move { provider.writes_ended().await }.boxed()
    }

    fn size_pool(&self, units: usize, sampled: Option<(usize, Duration)>) {
        let resync = self.ctx.settings.resync;
        let (nodes, every) = sampled.unwrap_or((0, resync));
        let settings = connections::settings(units.max(nodes), every.max(resync));
        self.ctx.pool.provider(&self.path).configure(settings);
    }

    fn pods(
        &self,
        names: BTreeSet<String>,
        behind_service: bool,
    ) -> BoxFuture<'_, Result<BTreeMap<String, decide::restart::eviction::Pod>, Error>> {
        async move { restart::pods(&self.api(), names, behind_service).await }.boxed()
    }

    fn evict<'a>(&'a self, node: &'a str, pod: &'a str, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        async move { restart::evict(&self.api(), node, pod, uid).await }.boxed()
    }

    fn workload<'a>(&'a self, config_map: &'a ConfigMap) -> BoxFuture<'a, Result<Option<Workload>, Error>> {
        rollout::workload(&self.ctx, &self.namespace, config_map).boxed()
    }

    fn roll<'a>(&'a self, kind: &'a str, name: &'a str, hash: &'a str) -> BoxFuture<'a, Result<(), String>> {
        rollout::roll(&self.ctx, &self.namespace, kind, name, hash).boxed()
    }

    fn sample<'a>(&'a self, policy: &'a PolicyHandle, sampling: Option<Sampling<'a>>) -> BoxFuture<'a, Option<Signal>> {
        Box::pin(async move {
            let Some(sampling) = sampling else {
                self.running().sampler = None;
                return None;
            };
            let ca = self.running().credentials.ca.clone();
            let (watch, obstacle) = adaptation::watch(&self.ctx, policy, ca, sampling).await;
            match &mut self.running().sampler {
                Some(sampler) => sampler.set(watch),
                none => *none = Some(adaptation::start(&self.ctx, &self.policy, policy, watch)),
            }
            obstacle
        })
    }

    fn signal(&self, config: &Config, now: i64) -> Signal {
        adaptation::signal(self.running().sampler.as_ref(), config, now)
    }

    fn probe(&self, policy: &PolicyHandle, units: &[UnitResult], all: bool, waiting: &BTreeSet<String>) -> Probing {
        let verifier = &mut self.running().verifier;
        verify::look(&self.ctx, &self.policy, policy, verifier, units, all, waiting)
    }
}
