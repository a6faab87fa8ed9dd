//! Adaptive control without a cluster: the operator's decision code, run over a model or over a recorded trace.
//!
//! Pure like `decide/`: time is a number. `kubectl idleconn simulate` and the simulation suite share this module.

pub mod plant;
pub mod trace;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    api::{
        IdleConnectionPolicySpec, IdleConnectionPolicyStatus, Limit, LimitValues,
        adaptive::{Adaptive, Mode, Source},
        conditions::{ConditionType, Reason},
        policy::DriftPolicy,
    },
    decide::{
        self, AdaptiveInput, Change, ConfigPath, Input, Lives, NewValue, NodeState, Stored, TargetCapabilities, Unit, UnitResult,
        UnitState,
        adaptive::{
            config::Config,
            driver::AdaptiveDriver,
            openness::{self, Percent},
            signal::{Measure, NodeSample, Reading, Signal},
            step::{Outcome, Verdict},
        },
        order,
        originals::Saved,
        report::condition,
        report::status::{self, ReportInput},
    },
};
pub use plant::Plant;

/// Replacement of the deciding process by another, which continues from the status and starts to sample.
#[derive(Clone, Copy, Debug)]
pub struct Handover {
    /// Seconds from the start of the simulation.
    pub at: i64,
    /// Seconds in which no process decides.
    pub gap: i64,
}

/// One step, as printed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decided {
    /// Seconds from the start of the simulation.
    pub time: i64,
    /// Openness before the step.
    pub from_percent: Percent,
    /// Openness after the step.
    pub to_percent: Percent,
    /// Reason of the step.
    pub reason: String,
    /// Verdict on the step, if there is one.
    pub verdict: Option<String>,
}

impl Decided {
    /// Whether the step went towards the floor.
    #[must_use]
    pub const fn tightens(&self) -> bool {
        self.to_percent < self.from_percent
    }
}

/// The state at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Seconds from the start of the simulation.
    pub time: i64,
    /// Measured utilization of the deciding node; `None` if it was missing.
    pub pressure: Option<f64>,
    /// Openness of the limits.
    pub openness: Percent,
    /// True utilization of the fullest node, measured or not.
    pub truth: f64,
}

/// Summary of a simulation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Number of steps.
    pub changes: usize,
    /// Steps in the direction opposite to the previous step.
    pub reversals: usize,
    /// Minutes with a true utilization of 100% or more, measured or not.
    pub minutes_over_threshold: f64,
    /// Openness at the end.
    pub final_openness_percent: Percent,
    /// Reason of `TighteningEffective` at the end, or the worst verdict before: Ineffective or `PoolsTooSmall`.
    pub verdict: String,
}

impl Summary {
    /// `over` is the number of seconds with a true utilization of 100% or more.
    #[must_use]
    pub fn of(decisions: &[Decided], over: i64, final_openness_percent: Percent, verdict: String) -> Self {
        #[allow(clippy::cast_precision_loss)] // Minutes.
        let minutes_over_threshold = over as f64 / 60.0;
        Self {
            changes: decisions.len(),
            reversals: reversals(decisions),
            minutes_over_threshold,
            final_openness_percent,
            verdict,
        }
    }
}

/// The result of a simulation.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The steps.
    pub decisions: Vec<Decided>,
    /// The state over time.
    pub points: Vec<Point>,
    /// The summary.
    pub summary: Summary,
    /// Steps while the tasks could not be counted.
    pub blind: usize,
    /// Greatest length of the encoded state, in bytes.
    pub written: usize,
    /// Events and changed conditions.
    pub told: Vec<Told>,
}

/// A report at one moment: an Event, or a condition with a new status or reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Seconds from the start of the simulation.
    pub time: i64,
    /// The report in one line.
    pub line: String,
}

/// A target that applies every limit at once and supports all of them.
pub const TRAITS: TargetCapabilities = TargetCapabilities::PLAIN;

/// Start of the simulated time in Unix seconds; any value would do.
const EPOCH: i64 = 1_700_000_000;

/// The unit that stands for all nodes, which use what is written to it.
pub struct Virtual {
    /// The unit.
    pub unit: Unit,
    /// The stored values.
    pub state: UnitState,
}

impl Virtual {
    /// A unit that stores the declared limits.
    #[must_use]
    pub fn new(declared: &LimitValues) -> Self {
        let unit = Unit { id: "simulated".into(), name: "simulated".into(), address: String::new(), role: None };
        let mut new = Self { unit, state: UnitState::default() };
        for (limit, value) in declared {
            new.state.sites.insert(site(*limit), Stored { value: Some(*value), raw: None });
        }
        new.settle();
        new
    }

    /// Makes the node report the stored values.
    fn settle(&mut self) {
        let stored = self.state.sites.iter().map(|(site, stored)| (site.limit, stored.value)).collect();
        self.state.nodes = vec![NodeState::new("simulated", Ok(stored))];
    }

    /// The saved originals: no value existed before the first write.
    #[must_use]
    pub fn saved(&self) -> BTreeMap<String, Saved> {
        let saved = Saved {
            name: self.unit.name.clone(),
            address: String::new(),
            target: Arc::default(),
            sites: Arc::new(self.state.sites.iter().map(|(site, stored)| (site.clone(), stored.raw.clone())).collect()),
        };
        BTreeMap::from([(self.unit.id.clone(), saved)])
    }

    /// Stores changes.
    pub fn write(&mut self, changes: &[Change]) {
        for change in changes {
            if let NewValue::Value(value) = change.to {
                self.state.sites.insert(change.site.clone(), Stored { value: Some(value), raw: None });
            }
        }
        self.settle();
    }

    /// The stored values by limit.
    #[must_use]
    pub fn settings(&self) -> LimitValues {
        self.state.sites.iter().filter_map(|(site, stored)| Some((site.limit, stored.value?))).collect()
    }
}

fn site(limit: Limit) -> ConfigPath {
    ConfigPath { limit, place: "simulated".into() }
}

/// Simulates a plant for this many seconds: the driver of the controller, with a plant instead of nodes.
pub fn run(config: &Config, plant: &mut dyn Plant, seconds: i64, handover: Option<Handover>) -> Run {
    let interval = (config.tuning.interval / 1000).max(1);
    let names: Vec<Arc<str>> = (0..plant.nodes()).map(|n| Arc::from(plant.name(n))).collect();
    let mut samples: BTreeMap<String, NodeSample> = BTreeMap::new();
    let mut world = World::new(config);
    let (mut over, mut time) = (0, 0);
    while time < seconds {
        let now = (EPOCH + time) * 1000;
        plant.step(time, interval, &world.nodes.settings());
        over += if plant.pressure() >= 1.0 { interval } else { 0 };
        if let Some(changed) = plant.meddle(time) {
            let change = |(limit, value)| Change { site: site(limit), to: NewValue::Value(value) };
            world.nodes.write(&changed.into_iter().map(change).collect::<Vec<_>>());
        }
        let handed = handover.filter(|handover| time >= handover.at);
        if handed.is_some_and(|handover| time < handover.at + handover.gap) {
            time += interval;
            continue;
        }
        if handed.is_some_and(|Handover { at, gap }| time < at + gap + interval) {
            samples.clear();
            world.driver = resumed(config, &world.status, now);
        }
        for (n, name) in names.iter().enumerate() {
            let sample = samples.entry(name.to_string()).or_default();
            match plant.sample(n) {
                Ok(measure) => sample.record(now, measure),
                Err(gap) => sample.gap = Some(gap),
            }
        }
        let signal =
            decide::adaptive::signal::read(&samples, names.iter().map(AsRef::as_ref), config.percentile, config.ages(), now);
        if world.driver.tick(&signal, now).is_pass_due || time % RESYNC < interval {
            world.pass(&signal, time, now);
        }
        world.run.points.push(point(time, signal.reading(), world.driver.state().openness, plant.pressure()));
        time += interval;
    }
    world.summed_up(over)
}

/// Seconds between two passes if nothing else calls for one: the default of `--resync-interval`.
const RESYNC: i64 = 30;

/// The driver of a process that continues from a status.
fn resumed(config: &Config, status: &IdleConnectionPolicyStatus, now: i64) -> AdaptiveDriver {
    let state = status.control.as_ref().and_then(|control| control.adaptive.clone()).unwrap_or_default();
    AdaptiveDriver::new(config.clone(), *state, status.utilization_percent, now)
}

/// The nodes, the status, and the operator in between.
struct World {
    driver: AdaptiveDriver,
    nodes: Virtual,
    saved: BTreeMap<String, Saved>,
    status: IdleConnectionPolicyStatus,
    /// The worst verdict so far.
    worst: Option<Reason>,
    run: Run,
}

impl World {
    fn new(config: &Config) -> Self {
        let nodes = Virtual::new(&config.declared.settings);
        let status = IdleConnectionPolicyStatus { observed_generation: Some(1), ..IdleConnectionPolicyStatus::default() };
        Self {
            driver: resumed(config, &status, EPOCH * 1000),
            saved: nodes.saved(),
            nodes,
            status,
            worst: None,
            run: Run::default(),
        }
    }

    /// One pass: decides, writes, and reports.
    fn pass(&mut self, signal: &Signal, time: i64, now: i64) {
        let stamp = Timestamp::from_millisecond(now).unwrap_or_default();
        let units = [(self.nodes.unit.clone(), self.nodes.state.clone())];
        let declared = &self.driver.config().declared;
        let plan = decide::decide(&Input {
            generation: Some(1),
            suspend: false,
            drift_policy: DriftPolicy::Correct,
            declared,
            traits: &TRAITS,
            units: &units,
            saved: &self.saved,
            held: &BTreeMap::new(),
            restarted: &BTreeSet::new(),
            lives: &Lives::new(),
            waiting: false,
            previous: &self.status,
            adaptive: Some(AdaptiveInput { driver: &self.driver, signal, now }),
            now: stamp,
        });
        if let Some(unit) = plan.units.get(&self.nodes.unit.id) {
            for part in order::parts(&unit.changes, &self.nodes.state.clone(), &TRAITS) {
                self.nodes.write(&part);
            }
        }
        let results = [UnitResult { unit: self.nodes.unit.clone(), state: Ok(self.nodes.state.clone()), write: None }];
        let (next, notices) = status::report(&ReportInput {
            generation: Some(1),
            suspend: false,
            declared,
            traits: &TRAITS,
            problem: None,
            units: &results,
            plan: &plan,
            saved: &self.saved,
            original: None,
            lives: &Lives::new(),
            adaptive: Some(self.driver.seen(signal)),
            advice: &[],
            shared: None,
            update: None,
            probes: None,
            previous: &self.status,
            now: stamp,
        });
        self.run.told.extend(notices.iter().map(|notice| Told { time, line: notice.to_string() }));
        self.run.told.extend(turned(&self.status, &next).map(|line| Told { time, line }));
        self.status = next;
        let Some(outcome) = plan.outcome else { return };
        self.record(&outcome, signal, time);
        let units = [(&self.nodes.unit, &self.nodes.state)];
        self.driver.commit(&outcome, signal, &self.status, &TRAITS, &Lives::new(), units);
    }

    /// Records what a pass decided and found out.
    fn record(&mut self, outcome: &Outcome, signal: &Signal, time: i64) {
        let is_harmful = outcome.judged.is_some_and(|judged| judged.verdict == Verdict::Harmful);
        let unjudged = self.run.decisions.iter_mut().rev().find(|d| d.tightens() && (is_harmful || d.verdict.is_none()));
        if let (Some(judged), Some(entry)) = (&outcome.judged, unjudged) {
            entry.verdict = Some(judged.verdict.to_string());
        }
        if let Some(decision) = &outcome.decision {
            self.run.blind += usize::from(signal.reading().is_none());
            self.run.decisions.push(Decided {
                time,
                from_percent: decision.from,
                to_percent: decision.to,
                reason: decision.reason.to_string(),
                verdict: None,
            });
        }
        let efficacy = condition::reason(&self.status, ConditionType::TighteningEffective);
        if condition::reason(&self.status, ConditionType::TighteningLimited) == Some(Reason::PoolsTooSmall) {
            self.worst.get_or_insert(Reason::PoolsTooSmall);
        } else if efficacy == Some(Reason::Ineffective) {
            self.worst.get_or_insert(Reason::Ineffective);
        }
        self.run.summary.verdict = self.worst.or(efficacy).map(|reason| reason.to_string()).unwrap_or_default();
        self.run.written = self.run.written.max(serde_json::to_string(&outcome.state).map_or(0, |text| text.len()));
    }

    fn summed_up(mut self, over: i64) -> Run {
        let verdict = std::mem::take(&mut self.run.summary.verdict);
        self.run.summary = Summary::of(&self.run.decisions, over, self.driver.state().openness, verdict);
        self.run
    }
}

/// Conditions with a new status or reason.
fn turned<'a>(
    before: &'a IdleConnectionPolicyStatus,
    after: &'a IdleConnectionPolicyStatus,
) -> impl Iterator<Item = String> + 'a {
    after.conditions.iter().filter_map(|condition| {
        let old = before.conditions.iter().find(|old| old.type_ == condition.type_);
        let is_new = condition::has_flipped(old, &condition.status, &condition.reason);
        is_new.then(|| format!("{}={}/{}: {}", condition.type_, condition.status, condition.reason, condition.message))
    })
}

fn point(time: i64, reading: Option<&Reading>, openness: Percent, truth: f64) -> Point {
    Point { time, pressure: reading.map(|reading| reading.up), openness, truth }
}

/// Number of steps in the direction opposite to the previous step.
#[must_use]
pub fn reversals(decisions: &[Decided]) -> usize {
    decisions.windows(2).filter(|pair| pair[0].tightens() != pair[1].tightens()).count()
}

/// The configuration of a policy whose tasks are counted. The simulation shows what adaptive control would do, whatever
/// the mode and the pauses of the policy are.
///
/// # Errors
/// Returns an error if the policy has no adaptive control, or if its limits and its floor contradict each other.
pub fn config(spec: &IdleConnectionPolicySpec, traits: &TargetCapabilities) -> Result<Config, String> {
    let declared = decide::declare(spec, traits);
    let adaptive = spec.adaptive.clone().map(|adaptive| Adaptive { mode: Mode::Enforce, ..adaptive });
    let spec = &IdleConnectionPolicySpec { adaptive, suspend: false, ..spec.clone() };
    let config = Config::of(spec, &BTreeMap::new(), &declared, traits, Source::Nodes, |_| true, Timestamp::UNIX_EPOCH)
        .ok_or("the policy has no spec.adaptive; nothing to simulate")?;
    match openness::invalid(&declared.settings, &config.floor) {
        Some(sentence) => Err(sentence),
        None => Ok(config),
    }
}

/// A sample with this task count and threshold.
#[must_use]
pub fn measure(tasks: f64, threshold: f64) -> Measure {
    Measure { tasks: Some(tasks), threshold: Some(threshold), pressure: tasks / threshold, ..Measure::default() }
}
