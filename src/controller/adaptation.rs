//! Adaptive control in the controller: what is sampled, the state between passes, and when a pass is due.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kube::ResourceExt as _;

use super::{Context, PolicyRef, Subject, live::Point, memory::Memory, path, places, planted, reachability};
use crate::{
    api::{
        IdleConnectionPolicyStatus, Settings,
        adaptive::{IdleConnections, Mode, Signal as SignalSpec, Source as SourceName},
        conditions::Reason,
        lookup::Member,
        restart::{RestartFor, RestartPolicy},
        wording::percent,
    },
    clock,
    decide::{
        self, Adaptive, Declared, Lives, Standing, Traits, Unit, UnitState,
        adaptive::{
            attribution::{self, MostPooled},
            disturbance::{self, Disturbance},
            openness,
            pause::Pause,
            report::SeenLoop,
            signal::Signal,
            state::State,
            step::{self, Outcome},
            step_size::Share,
            tighten,
            tuning::Tuning,
        },
        originals::Saved,
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
/// Time that the utilization must differ from the status before a pass updates it (milliseconds).
const MOVED: i64 = 60_000;
/// Percentage points by which the utilization must differ from the status.
const POINTS: u32 = 10;
/// Node name of a Prometheus server.
const PROMETHEUS: &str = "prometheus";

/// Adaptive control of one policy, between passes.
#[allow(clippy::struct_excessive_bools)] // Independent facts, not a state machine.
pub struct Adaptation {
    tuning: Tuning,
    declared: Declared,
    floor: Settings,
    state: State,
    sampler: Sampler,
    percentile: u32,
    metric: Option<String>,
    pause: Pause,
    suspend: bool,
    standing: Standing,
    levels: bool,
    rolls: bool,
    most_pooled: Option<MostPooled>,
    disturbance: Option<Disturbance>,
    tasks_per_connection: u32,
    not_before: i64,
    obstacle: Option<Signal>,
    digest: String,
    told: Option<u32>,
    moved_since: Option<i64>,
    moved: bool,
}

/// Result of a round of samples.
struct Tick {
    /// Whether a pass is due.
    news: bool,
    /// Whether the tasks of enough nodes are known.
    fresh: bool,
    /// State of the policy.
    point: Point,
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
        (self.sampler.count(), Duration::from_millis(u64::try_from(self.tuning.interval).unwrap_or(10_000)))
    }

    /// Returns the last samples of the nodes.
    pub fn samples(&self) -> Samples {
        self.sampler.samples()
    }

    fn signal(&self, now: i64) -> Signal {
        if let Some(obstacle) = &self.obstacle {
            return obstacle.clone();
        }
        self.sampler.signal(self.percentile, self.tuning.most_age(), now)
    }

    /// Evaluates the samples now.
    pub fn look(&self) -> Look {
        let now = clock::now().as_millisecond();
        Look { signal: self.signal(now), now }
    }

    /// Records the maximum of pooled connections if all units have answered: it bounds the effect of tightening.
    pub fn bound(&mut self, traits: &Traits, saved: &BTreeMap<String, Saved>, answered: &[(Unit, UnitState)], all: bool) {
        let most = || attribution::most_pooled(&self.declared.settings, &self.floor, traits, saved, answered);
        self.most_pooled = all.then(most).flatten();
    }

    /// Returns the input of the decision.
    pub fn input<'a>(&'a self, look: &'a Look) -> Adaptive<'a> {
        Adaptive {
            tuning: &self.tuning,
            floor: &self.floor,
            state: &self.state,
            signal: &look.signal,
            pause: &self.pause,
            share: Share::UNKNOWN,
            most_pooled: self.most_pooled.as_ref(),
            levels: self.levels,
            disturbance: self.disturbance,
            rolls: self.rolls,
            not_before: self.not_before,
            now: look.now,
        }
    }

    /// Returns the number of idle connections on all nodes; `None` if a node does not report it.
    fn idle_connections(&self, look: &Look) -> Option<f64> {
        Some(look.signal.reading()?.idle_tasks? / f64::from(self.tasks_per_connection))
    }

    /// Returns the input of the report.
    pub fn seen<'a>(&'a self, look: &'a Look) -> SeenLoop<'a> {
        SeenLoop {
            tuning: &self.tuning,
            floor: &self.floor,
            signal: &look.signal,
            metric: self.metric.as_deref(),
            pause: &self.pause,
            not_before: self.not_before,
            attribution: self.input(look).attribution(),
            idle_connections: self.idle_connections(look),
            closes: self.disturbance.is_some(),
            levels: self.levels,
            moved: self.moved,
        }
    }

    /// Takes over the outcome of a pass whose report was written, with the state of the nodes at its end.
    pub fn commit<'a>(
        &mut self,
        outcome: &Outcome,
        look: &Look,
        status: &IdleConnectionPolicyStatus,
        traits: &Traits,
        lives: &Lives,
        units: impl IntoIterator<Item = (&'a Unit, &'a UnitState)>,
    ) {
        let changed = status.control.as_ref().map(|control| control.changed.clone()).unwrap_or_default();
        self.digest = outcome.digest(&look.signal);
        self.state = outcome.state.clone();
        self.told = status.utilization_percent;
        self.moved = false;
        self.standing = decide::standing(&self.declared, &self.floor, &self.state, traits, lives, &changed, units);
    }

    /// Evaluates a round of samples.
    fn tick(&mut self) -> Tick {
        let look = self.look();
        let facts = self.input(&look).facts(&self.declared.settings, self.suspend, self.standing);
        let outcome = step::step(&self.tuning, &facts, &self.state, &look.signal, look.now);
        let news = outcome.decision.is_some() || outcome.judged.is_some() || outcome.digest(&look.signal) != self.digest;
        // While samples are missing, the window does not advance, so sampling earlier would not help.
        let reading = look.signal.reading();
        let end = if reading.is_some() { tighten::next_end(&self.tuning, &outcome.state, look.now) } else { None };
        if let Some(wait) = end.filter(|wait| *wait < self.tuning.interval) {
            self.sampler.ask_in(Duration::from_millis(u64::try_from(wait).unwrap_or(0) + 1));
        }
        self.moved = self.moved || self.has_moved(&look);
        let news = news || self.moved;
        if !news {
            self.state = outcome.state;
        }
        let point = Point {
            time: look.now,
            tasks: reading.and_then(|reading| reading.percentile),
            threshold: reading.and_then(|reading| reading.threshold),
            pressure: reading.filter(|_| !self.levels).map(|reading| reading.up),
            idle_connections: self.idle_connections(&look),
            openness: self.state.openness,
        };
        Tick { news, fresh: reading.is_some(), point }
    }

    fn has_moved(&mut self, look: &Look) -> bool {
        // With alerts there is no utilization that could change.
        let Some(reading) = look.signal.reading().filter(|_| !self.levels) else {
            self.moved_since = None;
            return false;
        };
        if self.told.is_some_and(|told| told.abs_diff(percent(reading.up)) < POINTS) {
            self.moved_since = None;
            return false;
        }
        look.now - *self.moved_since.get_or_insert(look.now) >= MOVED
    }
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
        let Tick { news, fresh, point } = adaptation.tick();
        tracing::debug!(
            fresh,
            tasks = point.tasks,
            threshold = point.threshold,
            utilization = point.pressure,
            openness = point.openness,
            pass_due = news,
            "evaluated a round of samples"
        );
        let evaluation = metrics::Evaluation { is_fresh: fresh, pressure: point.pressure, openness: point.openness };
        self.metrics.looked(policy.namespace.as_deref().unwrap_or_default(), &policy.name, evaluation);
        self.live.sampled(policy, point);
        // While the target cannot be found, a pass could not act. The next attempt evaluates the samples.
        let backing_off = memory.failing.get("").is_some_and(|failing| failing.due > Instant::now());
        if news && !backing_off {
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
    let Some(adaptive) = spec.adaptive.as_ref().filter(|adaptive| adaptive.mode != Mode::Disabled) else {
        memory.adaptation = None;
        return;
    };
    let floor = decide::floor(spec, traits);
    let unset = SignalSpec::unset();
    let signal = adaptive.signal.as_ref().unwrap_or(&unset);
    let source = signal.source.unwrap_or(targets::kind(spec.target.type_).source);
    let tuning = Tuning::of(Some(adaptive));
    let threshold = threshold(signal);
    let mut obstacle = None;
    let mut watch = Watch {
        nodes: Vec::new(),
        source: Source::Nodes(std::sync::Arc::new(Probe::flags())),
        interval: Duration::from_millis(u64::try_from(tuning.interval).unwrap_or(10_000)),
        ca: memory.credentials.ca.clone(),
        token: None,
        permit: Some(permit(ctx, subject)),
        headers: Vec::new(),
        key: format!(
            "{source:?} {} {:?} {:?} {:?} {threshold:?} {:?}",
            signal.metric, signal.match_labels, signal.aggregation, signal.idle_connections, signal.prometheus
        ),
    };
    match (source, &signal.prometheus, threshold) {
        (SourceName::Prometheus, Some(prometheus), Threshold::Value(threshold)) => {
            match places::prometheus(ctx, subject, prometheus).await {
                Ok(server) => {
                    let path = prometheus.path_prefix.clone().unwrap_or_default();
                    watch.nodes =
                        vec![Node { name: PROMETHEUS.into(), address: server.address, named: false, pod: String::new(), path }];
                    (watch.ca, watch.token) = (server.credentials.ca, server.credentials.token);
                    watch.headers = server.headers;
                }
                Err(places::Failure::Problem(problem)) => {
                    obstacle = Some(Signal::Missing { reason: problem.reason, message: problem.message });
                }
                Err(places::Failure::Error(error)) => {
                    obstacle = Some(Signal::Missing { reason: Reason::QueryFailed, message: error.to_string() });
                }
            }
            watch.source = Source::Prometheus { query: prometheus.query.clone(), threshold };
        }
        (SourceName::Nodes, ..) => {
            let probe = probe(signal, threshold);
            watch.source = Source::Nodes(std::sync::Arc::new(probe));
            watch.nodes = nodes(subject, units, answered);
        }
        (SourceName::StateFlags, ..) => watch.nodes = nodes(subject, units, answered),
        (SourceName::Prometheus, ..) => {
            obstacle = Some(Signal::Missing {
                reason: Reason::QueryFailed,
                message: "adaptive.signal has no prometheus.query or no threshold.value; set both".into(),
            });
        }
    }
    if watch.nodes.is_empty() && source != SourceName::Prometheus {
        // The nodes could not be read in this pass: keep the last known ones.
        if let Some(old) = &memory.adaptation {
            watch.nodes = old.sampler.nodes();
        }
    }
    let pause = Pause::of(spec.suspend, subject.object.annotations(), clock::now());
    let metric = (source == SourceName::Nodes).then(|| signal.metric.clone());
    let levels = source == SourceName::StateFlags;
    let restart = spec.restart.clone().unwrap_or_default();
    let rolls = restart.policy == RestartPolicy::Rolling && restart.for_ == RestartFor::Any;
    let disturbance = disturbance(&declared.settings, &floor, traits, answered);
    if let Some(old) = &mut memory.adaptation {
        (old.disturbance, old.tasks_per_connection) = (disturbance, tasks_per_connection(signal));
        old.sampler.set(watch);
        let same = old.tuning.mode == tuning.mode;
        (old.tuning, old.declared, old.floor) = (tuning, declared.clone(), floor);
        (old.pause, old.metric, old.suspend) = (pause, metric, spec.suspend);
        (old.percentile, old.levels, old.rolls, old.obstacle) = (signal.percentile, levels, rolls, obstacle);
        if !same {
            old.digest.clear();
        }
        return;
    }
    let state = resume(subject, memory, declared, &floor, answered);
    let me = ctx.me.clone();
    let policy = subject.reference.clone();
    let seed = subject.uid.clone();
    let metrics = ctx.metrics.clone();
    let after = move || {
        if let Some(ctx) = me.upgrade() {
            ctx.tick(&policy);
        }
    };
    let sampler = Sampler::start(ctx.pool.provider(&subject.path), watch, &seed, after, move || metrics.panicked());
    let not_before = clock::now().as_millisecond() + tuning.tighten_after.min(120_000);
    memory.adaptation = Some(Adaptation {
        tuning,
        declared: declared.clone(),
        floor,
        state,
        sampler,
        percentile: signal.percentile,
        metric,
        pause,
        suspend: spec.suspend,
        standing: Standing::default(),
        levels,
        rolls,
        most_pooled: None,
        disturbance,
        tasks_per_connection: tasks_per_connection(signal),
        not_before,
        obstacle,
        digest: String::new(),
        told: subject.object.status.as_ref().and_then(|status| status.utilization_percent),
        moved_since: None,
        moved: false,
    });
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

/// Returns what a step itself does to the connections of the target.
fn disturbance(declared: &Settings, floor: &Settings, traits: &Traits, answered: &[(Unit, UnitState)]) -> Option<Disturbance> {
    disturbance::disturbance(declared, floor, traits, |knob| {
        let has = |(_, state): &(Unit, UnitState)| state.sites.keys().any(|site| site.knob == knob);
        // A file has every limit of its format. Until a server has answered, assume that it has the pool.
        traits.file.is_some() || answered.is_empty() || answered.iter().any(has)
    })
}

fn tasks_per_connection(signal: &SignalSpec) -> u32 {
    let declared = signal.idle_connections.as_ref().and_then(|idle| idle.tasks_per_connection);
    declared.unwrap_or(IdleConnections::TASKS_PER_CONNECTION).max(1)
}

/// Returns the state from the status; if the status is lost, the openness is inferred from the settings of the nodes.
fn resume(subject: &Subject, memory: &Memory, declared: &Declared, floor: &Settings, answered: &[(Unit, UnitState)]) -> State {
    let control = subject.object.status.as_ref().and_then(|status| status.control.as_ref());
    if let Some(text) = control.and_then(|control| control.adaptation.as_ref()) {
        return State::decode(text);
    }
    let ours = memory.originals.as_ref().is_some_and(|log| !log.units().is_empty());
    if control.is_some() || !ours {
        return State::default();
    }
    let nodes = answered.iter().flat_map(|(_, state)| &state.nodes).filter_map(|node| node.stored.as_ref().ok());
    let openness = nodes
        .map(|stored| {
            let stored: Settings = stored.iter().filter_map(|(knob, value)| Some((*knob, (*value)?))).collect();
            openness::infer(&declared.settings, floor, &stored)
        })
        .min()
        .unwrap_or(100);
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
