//! Adaptive control in the controller: what is sampled, the state between passes, and when a pass is due.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kube::ResourceExt as _;

use super::{Context, PolicyRef, Subject, live::Point, memory::Memory, path, places, planted, reachability};
use crate::{
    api::{
        Settings,
        adaptive::{Signal as SignalSpec, Source as SourceName},
        conditions::Reason,
        lookup::Member,
    },
    clock,
    decide::{
        AdaptiveInput, Declared, Traits, Unit, UnitState,
        adaptive::{
            config::{Config, tasks_per_connection},
            driver::{AdaptiveDriver, Tick},
            openness,
            signal::Signal,
            state::State,
        },
    },
    metrics,
    signals::{
        Node, Permit, Sampler, Samples, Source, Watch,
        page::{Probe, Threshold},
        series::Selection,
    },
    targets,
};

/// Default threshold: 512 goroutines per CPU, AIStore's own first alert.
const PER_CPU: f64 = 512.0;
/// Node name of a Prometheus server.
const PROMETHEUS: &str = "prometheus";

/// Adaptive control of one policy, between passes.
pub struct Adaptation {
    /// State and rules.
    pub driver: AdaptiveDriver,
    sampler: Sampler,
    /// Why the samples do not count, such as a reference that cannot be resolved.
    obstacle: Option<Signal>,
}

/// Signal of one pass.
pub struct Look {
    signal: Signal,
    now: i64,
}

impl Look {
    /// Returns the signal.
    pub const fn signal(&self) -> &Signal {
        &self.signal
    }

    /// Returns the highest share of used file descriptors in percent, and its node.
    pub fn files(&self) -> Option<(u32, String)> {
        self.signal.reading()?.files.clone()
    }
}

impl Adaptation {
    /// Returns how many nodes are sampled, and the interval.
    pub fn asked(&self) -> (usize, Duration) {
        (self.sampler.count(), interval(self.driver.config()))
    }

    /// Returns the last samples of the nodes.
    pub fn samples(&self) -> Samples {
        self.sampler.samples()
    }

    /// Evaluates the samples now.
    pub fn look(&self) -> Look {
        let (now, config) = (clock::now().as_millisecond(), self.driver.config());
        let read = || self.sampler.signal(config.percentile, config.tuning.most_age(), now);
        Look { signal: self.obstacle.clone().unwrap_or_else(read), now }
    }

    /// Returns the input of the decision.
    pub const fn input<'a>(&'a self, look: &'a Look) -> AdaptiveInput<'a> {
        AdaptiveInput { driver: &self.driver, signal: &look.signal, now: look.now }
    }

    /// Evaluates a round of samples. Returns whether a pass is due, and the state of the policy.
    fn tick(&mut self) -> (bool, Point) {
        let Look { signal, now } = self.look();
        let Tick { is_pass_due, ask_in } = self.driver.tick(&signal, now);
        if let Some(wait) = ask_in {
            self.sampler.ask_in(Duration::from_millis(u64::try_from(wait).unwrap_or(0) + 1));
        }
        let reading = signal.reading();
        let point = Point {
            time: now,
            tasks: reading.and_then(|reading| reading.percentile),
            threshold: reading.and_then(|reading| reading.threshold),
            pressure: reading.filter(|_| !self.driver.config().levels).map(|reading| reading.up),
            idle_connections: self.driver.idle_connections(&signal),
            openness: self.driver.state().openness,
            is_fresh: reading.is_some(),
        };
        (is_pass_due, point)
    }
}

fn interval(config: &Config) -> Duration {
    Duration::from_millis(u64::try_from(config.tuning.interval).unwrap_or(10_000))
}

impl Context {
    /// Handles a round of samples, and enqueues the policy if a pass is due.
    pub(super) fn tick(&self, policy: &PolicyRef) {
        let memory = self.memories.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(policy).cloned();
        let Some(memory) = memory else { return };
        // A pass in progress evaluates the samples itself.
        let Ok(mut memory) = memory.try_lock() else { return };
        let Some(adaptation) = &mut memory.adaptation else { return };
        let path = path(policy);
        let _span = tracing::error_span!("sample", policy = %path).entered();
        planted::panics("sample", &path);
        let (is_pass_due, point) = adaptation.tick();
        tracing::debug!(
            fresh = point.is_fresh,
            tasks = point.tasks,
            threshold = point.threshold,
            utilization = point.pressure,
            openness = point.openness,
            pass_due = is_pass_due,
            "evaluated a round of samples"
        );
        let evaluation = metrics::Evaluation { is_fresh: point.is_fresh, pressure: point.pressure, openness: point.openness };
        self.metrics.looked(policy.namespace.as_deref().unwrap_or_default(), &policy.name, evaluation);
        self.live.sampled(policy, point);
        // While the target cannot be found, a pass could not act. The next attempt evaluates the samples.
        let backing_off = memory.failing.get("").is_some_and(|failing| failing.due > Instant::now());
        if is_pass_due && !backing_off {
            let _ = self.nudges.send(policy.clone());
        }
    }
}

/// Applies the current policy to adaptive control; ends it if the policy has none.
pub async fn prepare(
    ctx: &Context,
    subject: &Subject,
    memory: &mut Memory,
    declared: &Declared,
    traits: &Traits,
    units: &[Unit],
    answered: &[(Unit, UnitState)],
) {
    let spec = subject.spec();
    let unset = SignalSpec::unset();
    let signal = spec.adaptive.as_ref().and_then(|adaptive| adaptive.signal.as_ref()).unwrap_or(&unset);
    let source = signal.source.unwrap_or(targets::kind(spec.target.type_).source);
    let has_pool = |knob| {
        let has = |(_, state): &(Unit, UnitState)| state.sites.keys().any(|site| site.knob == knob);
        // A file has every limit of its format. Until a server has answered, assume that it has the pool.
        traits.file.is_some() || answered.is_empty() || answered.iter().any(has)
    };
    let Some(config) = Config::of(spec, subject.object.annotations(), declared, traits, source, has_pool, clock::now()) else {
        memory.adaptation = None;
        return;
    };
    let (mut watch, obstacle) = watch(ctx, subject, memory, signal, source, interval(&config)).await;
    if source != SourceName::Prometheus {
        watch.nodes = nodes(subject, units, answered);
        if let Some(old) = memory.adaptation.as_ref().filter(|_| watch.nodes.is_empty()) {
            // The nodes could not be read in this pass: keep the last known ones.
            watch.nodes = old.sampler.nodes();
        }
    }
    if let Some(old) = &mut memory.adaptation {
        old.sampler.set(watch);
        old.driver.configure(config);
        old.obstacle = obstacle;
        return;
    }
    let state = resume(subject, memory, &config, answered);
    let told = subject.object.status.as_ref().and_then(|status| status.utilization_percent);
    let driver = AdaptiveDriver::new(config, state, told, clock::now().as_millisecond());
    let (me, policy, metrics) = (ctx.me.clone(), subject.reference.clone(), ctx.metrics.clone());
    let after = move || {
        if let Some(ctx) = me.upgrade() {
            ctx.tick(&policy);
        }
    };
    let sampler = Sampler::start(ctx.pool.provider(&subject.path), watch, &subject.uid, after, move || metrics.panicked());
    memory.adaptation = Some(Adaptation { driver, sampler, obstacle });
}

/// Returns what to sample, without the nodes of the target, and why its samples do not count, if they do not.
async fn watch(
    ctx: &Context,
    subject: &Subject,
    memory: &Memory,
    signal: &SignalSpec,
    source: SourceName,
    interval: Duration,
) -> (Watch, Option<Signal>) {
    let threshold = threshold(signal);
    let mut watch = Watch {
        nodes: Vec::new(),
        source: Source::Nodes(std::sync::Arc::new(Probe::flags())),
        interval,
        ca: memory.credentials.ca.clone(),
        token: None,
        permit: Some(permit(ctx, subject)),
        headers: Vec::new(),
        key: format!(
            "{source:?} {} {:?} {:?} {:?} {threshold:?} {:?}",
            signal.metric, signal.match_labels, signal.aggregation, signal.idle_connections, signal.prometheus
        ),
    };
    let obstacle = match (source, &signal.prometheus, threshold) {
        (SourceName::Prometheus, Some(prometheus), Threshold::Value(threshold)) => {
            watch.source = Source::Prometheus { query: prometheus.query.clone(), threshold };
            match places::prometheus(ctx, subject, prometheus).await {
                Ok(server) => {
                    let path = prometheus.path_prefix.clone().unwrap_or_default();
                    watch.nodes =
                        vec![Node { name: PROMETHEUS.into(), address: server.address, named: false, pod: String::new(), path }];
                    (watch.ca, watch.token) = (server.credentials.ca, server.credentials.token);
                    watch.headers = server.headers;
                    None
                }
                Err(places::Failure::Problem(problem)) => Some((problem.reason, problem.message)),
                Err(places::Failure::Error(error)) => Some((Reason::QueryFailed, error.to_string())),
            }
        }
        (SourceName::Prometheus, ..) => {
            let message = "adaptive.signal has no prometheus.query or no threshold.value; set both";
            Some((Reason::QueryFailed, message.into()))
        }
        (SourceName::Nodes, ..) => {
            watch.source = Source::Nodes(std::sync::Arc::new(probe(signal, threshold)));
            None
        }
        (SourceName::StateFlags, ..) => None,
    };
    (watch, obstacle.map(|(reason, message)| Signal::Missing { reason, message }))
}

fn threshold(signal: &SignalSpec) -> Threshold {
    let Some(threshold) = &signal.threshold else { return Threshold::PerCpu(PER_CPU) };
    match (threshold.value, threshold.per_cpu) {
        (Some(value), _) => Threshold::Value(f64::from(value)),
        (None, each) => Threshold::PerCpu(each.map_or(PER_CPU, f64::from)),
    }
}

/// Returns what to read from the metrics page of each node.
fn probe(signal: &SignalSpec, threshold: Threshold) -> Probe {
    let selection = Selection::new(signal.match_labels.clone(), signal.aggregation.unwrap_or_default());
    let probe = Probe::gauge(&signal.metric, threshold).of_series(selection);
    let Some(idle) = &signal.idle_connections else { return probe };
    let selection = Selection::new(idle.match_labels.clone(), idle.aggregation.unwrap_or_default());
    probe.with_idle(&idle.metric, selection, tasks_per_connection(signal).into())
}

/// Returns the state from the status; if the status is lost, the openness is inferred from the settings of the nodes.
fn resume(subject: &Subject, memory: &Memory, config: &Config, answered: &[(Unit, UnitState)]) -> State {
    let status = subject.object.status.as_ref();
    let control = status.and_then(|status| status.control.as_ref());
    if let Some(state) = control.and_then(|control| control.adaptive.clone()) {
        return *state;
    }
    let ours = memory.originals.as_ref().is_some_and(|log| !log.units().is_empty());
    // A status without a state is that of a former version if it has tightened.
    let tightened = status.and_then(|status| status.openness_percent).is_some_and(|openness| openness < 100);
    if !ours || (control.is_some() && !tightened) {
        return State::default();
    }
    let nodes = answered.iter().flat_map(|(_, state)| &state.nodes).filter_map(|node| node.stored.as_ref().ok());
    let nodes: Vec<Settings> =
        nodes.map(|stored| stored.iter().filter_map(|(knob, value)| Some((*knob, (*value)?))).collect()).collect();
    let (declared, floor) = (&config.declared.settings, &config.floor);
    // Several values of the openness can give the same limits: the one in the status counts if it is one of them.
    let told = status.and_then(|status| u8::try_from(status.openness_percent?).ok());
    let told = told.filter(|told| *told <= 100 && nodes.iter().all(|stored| openness::fits(declared, floor, *told, stored)));
    let inferred = || nodes.iter().map(|stored| openness::infer(declared, floor, stored)).min().unwrap_or(100);
    let openness = told.unwrap_or_else(inferred);
    State { openness, ..State::default() }
}

/// Returns the nodes with the URLs of their metrics pages. An address that the node's own cluster names needs a permit at each
/// request.
fn nodes(subject: &Subject, units: &[Unit], answered: &[(Unit, UnitState)]) -> Vec<Node> {
    let states: BTreeMap<&str, &UnitState> = answered.iter().map(|(unit, state)| (unit.id.as_str(), state)).collect();
    let target = &subject.spec().target;
    let path = target.member().and_then(Member::metrics_path).unwrap_or("/metrics").to_owned();
    let mut nodes = Vec::new();
    for unit in units {
        let Some(state) = states.get(unit.id.as_str()) else {
            if targets::kind(target.type_).units_are_nodes {
                let (name, address) = (unit.name.clone(), unit.address.clone());
                nodes.push(Node { name, address, named: false, pod: String::new(), path: path.clone() });
            }
            continue;
        };
        for node in &state.nodes {
            let address = node.metrics.as_ref().unwrap_or(&unit.address).clone();
            // For pods that mount a ConfigMap, the API server supplies the address.
            let named = node.metrics.is_some() && target.member().is_some_and(Member::names_its_nodes);
            let pod = node.process.as_ref().map(|process| process.pod.clone()).unwrap_or_default();
            nodes.push(Node { name: node.name.clone(), address, named, pod, path: path.clone() });
        }
    }
    nodes
}

fn permit(ctx: &Context, subject: &Subject) -> Permit {
    let (me, namespace) = (ctx.me.clone(), subject.namespace.clone());
    let provider = ctx.pool.provider(&subject.path);
    std::sync::Arc::new(move |node| {
        let (me, namespace, provider) = (me.clone(), namespace.clone(), provider.clone());
        Box::pin(async move {
            let ctx = me.upgrade()?;
            match reachability::named_by_a_node(&ctx, &namespace, &provider, &node.address).await {
                Some(address) => Some(address),
                None => reachability::of_its_pod(&ctx, &namespace, &node.pod, &node.address).await,
            }
        })
    })
}
