//! The loop's place in the controller: what is sampled, what is remembered between passes, and when a pass is worth making.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::{Context, PolicyRef, Subject, live::Point, memory::Memory, path, places, planted, reachability};
use crate::{
    api::{
        self, IdleConnectionPolicyStatus, Settings,
        adaptive::{IdleConnections, Mode, Signal as SignalSpec, Source as SourceName},
        conditions::Reason,
        lookup::Member,
        restart::{RestartFor, RestartPolicy},
    },
    clock,
    decide::{
        self, Adaptive, Declared, Lives, Pause, Standing, Traits, Unit, UnitState,
        adapt::{self, Disturbance, Outcome, percent},
        attribution::{self, MostPooled},
        loop_conditions::{Closes, SeenLoop},
        openness,
        originals::Saved,
        signal::Signal,
        state::State,
        tighten::Share,
        tuning::Tuning,
    },
    metrics,
    signals::{
        Node, Permit, Sampler, Samples, Source, Watch,
        page::{Probe, Threshold},
        series::Selection,
    },
    targets,
};

/// A threshold where the user gives none: AIStore's own first line, 512 goroutines a CPU.
const PER_CPU: f64 = 512.0;
/// How long the pressure must be elsewhere before the status follows.
const MOVED: i64 = 60_000;
/// By how many points.
const POINTS: u32 = 10;
/// What a Prometheus server is called among the nodes.
const PROMETHEUS: &str = "prometheus";

/// One policy's loop, between passes.
#[allow(clippy::struct_excessive_bools)] // Independent facts, not a state machine.
pub struct Adaptation {
    tuning: Tuning,
    declared: Declared,
    floor: Settings,
    state: State,
    sampler: Sampler,
    percentile: u32,
    pause: Pause,
    unreadable: Option<&'static str>,
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

/// What came of a round of samples.
struct Tick {
    /// Whether a pass is worth making.
    news: bool,
    /// Whether enough nodes were counted.
    fresh: bool,
    /// How the policy stands.
    point: Point,
}

/// What the loop is told in one pass.
pub struct Look {
    signal: Signal,
    now: i64,
}

impl Look {
    /// What the samples say.
    pub const fn signal(&self) -> &Signal {
        &self.signal
    }

    /// Open files in percent of what a process may have, and the node where that is highest.
    pub fn files(&self) -> Option<(u32, String)> {
        self.signal.reading()?.files.clone()
    }
}

impl Adaptation {
    /// How many nodes are asked for samples, and how often.
    pub fn asked(&self) -> (usize, Duration) {
        (self.sampler.count(), Duration::from_millis(u64::try_from(self.tuning.interval).unwrap_or(10_000)))
    }

    /// What the nodes last ran, as it comes.
    pub fn samples(&self) -> Samples {
        self.sampler.samples()
    }

    fn signal(&self, now: i64) -> Signal {
        if let Some(obstacle) = &self.obstacle {
            return obstacle.clone();
        }
        self.sampler.signal(self.percentile, self.tuning.most_age(), now)
    }

    /// Looks once more, now.
    pub fn look(&self) -> Look {
        let now = clock::now().as_millisecond();
        Look { signal: self.signal(now), now }
    }

    /// Takes note of what the units say of their pools, where all of them have: it bounds what tightening can do.
    pub fn bound(&mut self, traits: &Traits, saved: &BTreeMap<String, Saved>, answered: &[(Unit, UnitState)], all: bool) {
        let most = || attribution::most_pooled(&self.declared.settings, &self.floor, traits, saved, answered);
        self.most_pooled = all.then(most).flatten();
    }

    /// For the decision.
    pub fn input<'a>(&'a self, look: &'a Look) -> Adaptive<'a> {
        Adaptive {
            tuning: &self.tuning,
            floor: &self.floor,
            state: &self.state,
            signal: &look.signal,
            pause: self.pause,
            share: Share::UNKNOWN,
            most_pooled: self.most_pooled.as_ref(),
            levels: self.levels,
            disturbance: self.disturbance,
            rolls: self.rolls,
            not_before: self.not_before,
            now: look.now,
        }
    }

    /// How many connections idle on all nodes, where they say so.
    fn idle_connections(&self, look: &Look) -> Option<f64> {
        Some(look.signal.reading()?.idle_tasks? / f64::from(self.tasks_per_connection))
    }

    /// For the report.
    pub fn seen<'a>(&'a self, look: &'a Look) -> SeenLoop<'a> {
        SeenLoop {
            tuning: &self.tuning,
            floor: &self.floor,
            signal: &look.signal,
            pause: self.pause,
            unreadable: self.unreadable,
            attribution: self.input(look).attribution(),
            idle_connections: self.idle_connections(look),
            closes: self.disturbance.map(|_| Closes { connections: self.idle_connections(look) }),
            levels: self.levels,
            moved: self.moved,
        }
    }

    /// After a pass whose report has been written, with what the nodes held at its end.
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

    /// After a round of samples: whether a pass is worth making.
    fn tick(&mut self) -> Tick {
        let look = self.look();
        let facts = self.input(&look).facts(&self.declared.settings, self.suspend, self.standing);
        let outcome = adapt::step(&self.tuning, &facts, &self.state, &look.signal, look.now);
        let news = outcome.decision.is_some() || outcome.judged.is_some() || outcome.digest(&look.signal) != self.digest;
        // While samples are missing the window stands still, and asking sooner would not bring its end nearer.
        let reading = look.signal.reading();
        let end = if reading.is_some() { adapt::next_end(&self.tuning, &outcome.state, look.now) } else { None };
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
        // An alert is either raised or not: there is no figure that could move.
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
    /// After a round of samples.
    pub(super) fn tick(&self, policy: &PolicyRef) {
        let memory = self.memories.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(policy).cloned();
        let Some(memory) = memory else { return };
        // A pass that is being made looks for itself.
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
        // While the target cannot be found nothing can be done about it: the pass that is due will look.
        let backing_off = memory.failing.get("").is_some_and(|failing| failing.due > Instant::now());
        if news && !backing_off {
            let _ = self.nudges.send(policy.clone());
        }
    }
}

/// What annotations say: what is paused, one that cannot be read, and when the first of them ends.
pub fn pauses(subject: &Subject, now: Timestamp) -> (Pause, Option<&'static str>, Option<Timestamp>) {
    let mut unreadable = None;
    let mut next: Option<Timestamp> = None;
    let mut paused = |name: &'static str| {
        let Some(value) = subject.object.annotations().get(name) else { return false };
        match (value.as_str(), value.parse::<Timestamp>()) {
            ("true", _) => true,
            ("false", _) => false,
            (_, Ok(until)) => {
                if now < until {
                    next = Some(next.map_or(until, |next| next.min(until)));
                }
                now < until
            }
            (_, Err(_)) => {
                unreadable = Some(name);
                true
            }
        }
    };
    let all = paused(api::PAUSED);
    let (tighten, relax) = (paused(api::PAUSED_TIGHTEN), paused(api::PAUSED_RELAX));
    (Pause { tighten: all || tighten, relax: all || relax }, unreadable, next)
}

/// Brings the loop up to what the policy says now; `None` where it has none.
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
    let threshold =
        signal.threshold.as_ref().map_or(Threshold::PerCpu(PER_CPU), |threshold| match (threshold.value, threshold.per_cpu) {
            (Some(value), _) => Threshold::Value(f64::from(value)),
            (None, each) => Threshold::PerCpu(each.map_or(PER_CPU, f64::from)),
        });
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
        // Membership could not be read this time: it is what it was.
        if let Some(old) = &memory.adaptation {
            watch.nodes = old.sampler.nodes();
        }
    }
    let (pause, unreadable, _) = pauses(subject, clock::now());
    let levels = source == SourceName::StateFlags;
    let restart = spec.restart.clone().unwrap_or_default();
    let rolls = restart.policy == RestartPolicy::Rolling && restart.for_ == RestartFor::Any;
    let disturbance = disturbance(&declared.settings, &floor, traits, answered);
    if let Some(old) = &mut memory.adaptation {
        (old.disturbance, old.tasks_per_connection) = (disturbance, tasks_per_connection(signal));
        old.sampler.set(watch);
        let same = old.tuning.mode == tuning.mode;
        (old.tuning, old.declared, old.floor) = (tuning, declared.clone(), floor);
        (old.pause, old.unreadable, old.suspend) = (pause, unreadable, spec.suspend);
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
        pause,
        unreadable,
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

/// What is looked for in each node's page.
fn probe(signal: &SignalSpec, threshold: Threshold) -> Probe {
    let selection = Selection::new(signal.match_labels.clone(), signal.aggregation.unwrap_or_default());
    let probe = Probe::gauge(&signal.metric, threshold).of_series(selection);
    let Some(idle) = &signal.idle_connections else { return probe };
    let selection = Selection::new(idle.match_labels.clone(), idle.aggregation.unwrap_or_default());
    probe.with_idle(&idle.metric, selection, tasks_per_connection(signal).into())
}

/// What a step does by itself to the target as it answered.
fn disturbance(declared: &Settings, floor: &Settings, traits: &Traits, answered: &[(Unit, UnitState)]) -> Option<Disturbance> {
    decide::disturbance(declared, floor, traits, |knob| {
        let has = |(_, state): &(Unit, UnitState)| state.sites.keys().any(|site| site.knob == knob);
        // A file has every limit of its format. Until a server has answered, assume that it has the pool.
        traits.file.is_some() || answered.is_empty() || answered.iter().any(has)
    })
}

fn tasks_per_connection(signal: &SignalSpec) -> u32 {
    let declared = signal.idle_connections.as_ref().and_then(|idle| idle.tasks_per_connection);
    declared.unwrap_or(IdleConnections::TASKS_PER_CONNECTION).max(1)
}

/// From what was written down; where that is lost, from what the nodes hold.
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

/// The nodes and where their pages are. An address that a node's own cluster names needs a permit each time that it is asked.
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
            // Where a ConfigMap's pod is, the API server says.
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
