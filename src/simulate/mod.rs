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
        IdleConnectionPolicyStatus, Knob, Settings,
        conditions::{ConditionType, Reason},
        policy::DriftPolicy,
    },
    decide::{
        self, Adaptive, Change, Declared, Input, NodeState, Site, Stored, To, Traits, Unit, UnitState,
        adaptive::{
            disturbance::{self, Disturbance},
            openness::{self, Percent},
            pause::Pause,
            report::SeenLoop,
            signal::{Measure, NodeSample, Reading},
            state::State,
            step_size::Share,
            tuning::Tuning,
        },
        condition,
        conditions::{self, Seen, UnitResult},
        order,
        originals::Saved,
    },
};
pub use plant::Plant;

/// The input of a simulation.
#[derive(Clone)]
pub struct Setup {
    /// The declared limits.
    pub declared: Settings,
    /// The floor of adaptive control.
    pub floor: Settings,
    /// The parameters of adaptive control.
    pub tuning: Tuning,
    /// Percentile of the nodes that decides.
    pub percentile: u32,
    /// Disturbance by a change itself; `None` if changes close no connections.
    pub disturbance: Option<Disturbance>,
}

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

/// The result of a simulation.
#[derive(Clone, Debug)]
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
pub const TRAITS: Traits = Traits::PLAIN;

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
    pub fn new(declared: &Settings) -> Self {
        let unit = Unit { id: "simulated".into(), name: "simulated".into(), address: String::new(), role: None };
        let mut new = Self { unit, state: UnitState::default() };
        for (knob, value) in declared {
            new.state.sites.insert(site(*knob), Stored { value: Some(*value), raw: None });
        }
        new.settle();
        new
    }

    /// Makes the node report the stored values.
    fn settle(&mut self) {
        let stored = self.state.sites.iter().map(|(site, stored)| (site.knob, stored.value)).collect();
        self.state.nodes = vec![NodeState::new("simulated", Ok(stored))];
    }

    /// The saved originals: no value existed before the first write.
    #[must_use]
    pub fn saved(&self) -> BTreeMap<String, Saved> {
        let saved = Saved {
            name: self.unit.name.clone(),
            address: String::new(),
            target: serde_json::Value::Null,
            sites: self.state.sites.iter().map(|(site, stored)| (site.clone(), stored.raw.clone())).collect(),
        };
        BTreeMap::from([(self.unit.id.clone(), saved)])
    }

    /// Stores changes.
    pub fn write(&mut self, changes: &[Change]) {
        for change in changes {
            if let To::Value(value) = change.to {
                self.state.sites.insert(change.site.clone(), Stored { value: Some(value), raw: None });
            }
        }
        self.settle();
    }

    /// The stored values by limit.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.state.sites.iter().filter_map(|(site, stored)| Some((site.knob, stored.value?))).collect()
    }
}

fn site(knob: Knob) -> Site {
    Site { knob, place: "simulated".into() }
}

/// Simulates a plant for this many seconds.
#[allow(clippy::too_many_lines)] // A single pass over time, in order.
pub fn run(setup: &Setup, plant: &mut dyn Plant, seconds: i64, handover: Option<Handover>) -> Run {
    let declared = Declared { settings: setup.declared.clone(), ..Declared::default() };
    let mut nodes = Virtual::new(&setup.declared);
    let saved = nodes.saved();
    let interval = (setup.tuning.interval / 1000).max(1);
    let names: Vec<Arc<str>> = (0..plant.nodes()).map(|n| Arc::from(plant.name(n))).collect();
    let mut samples: BTreeMap<String, NodeSample> = BTreeMap::new();
    let mut state = State::default();
    let mut written = state.encode();
    let mut digest = String::new();
    let mut status = IdleConnectionPolicyStatus { observed_generation: Some(1), ..IdleConnectionPolicyStatus::default() };
    let mut not_before = 0;
    let mut run =
        Run { decisions: Vec::new(), points: Vec::new(), summary: Summary::default(), blind: 0, written: 0, told: Vec::new() };
    let mut over = 0;
    let mut worst = None;

    let mut time = 0;
    while time < seconds {
        let now = (EPOCH + time) * 1000;
        plant.step(time, interval, &nodes.settings());
        if plant.pressure() >= 1.0 {
            over += interval;
        }
        if let Some(change) = plant.meddle(time) {
            nodes.write(
                &change.into_iter().map(|(knob, value)| Change { site: site(knob), to: To::Value(value) }).collect::<Vec<_>>(),
            );
        }
        let handed = handover.filter(|handover| time >= handover.at);
        let is_between_leaders = handed.is_some_and(|handover| time < handover.at + handover.gap);
        if is_between_leaders {
            time += interval;
            continue;
        }
        if handed.is_some_and(|Handover { at, gap }| time < at + gap + interval) {
            state = State::decode(&written);
            samples.clear();
            not_before = now + setup.tuning.tighten_after.min(120_000);
        }
        for (n, name) in names.iter().enumerate() {
            let sample = samples.entry(name.to_string()).or_default();
            match plant.sample(n) {
                Ok(measure) => *sample = NodeSample { last: Some((now, measure)), gap: None },
                Err(gap) => sample.gap = Some(gap),
            }
        }
        let signal = decide::adaptive::signal::read(
            &samples,
            names.iter().map(AsRef::as_ref),
            setup.percentile,
            setup.tuning.most_age(),
            now,
        );
        let stamp = Timestamp::from_millisecond(now).unwrap_or_default();
        let share = plant.share().unwrap_or(Share::UNKNOWN);
        let adaptive = Adaptive {
            tuning: &setup.tuning,
            floor: &setup.floor,
            state: &state,
            signal: &signal,
            pause: &Pause::NONE,
            share,
            most_pooled: None,
            levels: false,
            disturbance: setup.disturbance,
            rolls: false,
            not_before,
            now,
        };
        let units = [(nodes.unit.clone(), nodes.state.clone())];
        let plan = decide::decide(&Input {
            generation: Some(1),
            suspend: false,
            drift_policy: DriftPolicy::Correct,
            declared: &declared,
            traits: &TRAITS,
            units: &units,
            saved: &saved,
            unfinished: &BTreeSet::new(),
            restarted: &BTreeSet::new(),
            lives: &decide::Lives::new(),
            previous: &status,
            adaptive: Some(adaptive),
            now: stamp,
        });
        if let Some(unit) = plan.units.get(&nodes.unit.id) {
            for part in order::parts(&unit.changes, &nodes.state.clone()) {
                nodes.write(&part);
            }
        }
        let Some(outcome) = plan.outcome.clone() else { break };
        let reading = signal.reading();
        let now_written = outcome.state.encode();
        let now_digest = outcome.digest(&signal);
        let news = outcome.decision.is_some()
            || outcome.judged.is_some()
            || now_digest != digest
            || !plan.drift.is_empty()
            || !plan.units.is_empty();
        if news || status.conditions.is_empty() {
            let results = [UnitResult { unit: nodes.unit.clone(), state: Ok(nodes.state.clone()), write: None }];
            let seen = SeenLoop {
                tuning: &setup.tuning,
                floor: &setup.floor,
                signal: &signal,
                metric: None,
                pause: &Pause::NONE,
                not_before,
                attribution: adaptive.attribution(),
                idle_connections: None,
                closes: setup.disturbance.is_some(),
                levels: false,
                moved: false,
            };
            let (next, notices) = conditions::report(&Seen {
                generation: Some(1),
                suspend: false,
                declared: &declared,
                traits: &TRAITS,
                problem: None,
                units: &results,
                plan: &plan,
                saved: &saved,
                original: None,
                lives: &decide::Lives::new(),
                adaptive: Some(seen),
                advice: &[],
                shared: None,
                probes: None,
                previous: &status,
                now: stamp,
            });
            run.told.extend(notices.iter().map(|notice| Told { time, line: notice.to_string() }));
            run.told.extend(turned(&status, &next).map(|line| Told { time, line }));
            status = next;
        }
        let unjudged = run.decisions.iter_mut().rev().find(|d| d.tightens() && d.verdict.is_none());
        if let (Some(judged), Some(entry)) = (&outcome.judged, unjudged) {
            entry.verdict = Some(judged.verdict.name().into());
        }
        if let Some(decision) = &outcome.decision {
            run.blind += usize::from(reading.is_none());
            run.decisions.push(Decided {
                time,
                from_percent: decision.from,
                to_percent: decision.to,
                reason: decision.reason.to_string(),
                verdict: None,
            });
        }
        let efficacy = condition::reason(&status, ConditionType::TighteningEffective);
        if condition::reason(&status, ConditionType::TighteningLimited) == Some(Reason::PoolsTooSmall) {
            worst.get_or_insert(Reason::PoolsTooSmall);
        } else if efficacy == Some(Reason::Ineffective) {
            worst.get_or_insert(Reason::Ineffective);
        }
        run.summary.verdict = worst.or(efficacy).map(|reason| reason.to_string()).unwrap_or_default();
        run.written = run.written.max(now_written.len());
        run.points.push(point(time, reading, outcome.state.openness, plant.pressure()));
        state = outcome.state;
        written = now_written;
        digest = now_digest;
        time += interval;
    }
    run.summary.changes = run.decisions.len();
    run.summary.reversals = reversals(&run.decisions);
    #[allow(clippy::cast_precision_loss)] // Minutes.
    let minutes = over as f64 / 60.0;
    run.summary.minutes_over_threshold = minutes;
    run.summary.final_openness_percent = state.openness;
    run
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

/// A naive rule for comparison: ten points down while there are too many tasks, otherwise ten points up, at every
/// evaluation. It reads a missing count as zero.
#[must_use]
pub fn threshold_rule(setup: &Setup, plant: &mut dyn Plant, seconds: i64) -> Summary {
    let interval = (setup.tuning.interval / 1000).max(1);
    let mut openness: Percent = 100;
    let mut decisions = Vec::new();
    let mut over = 0;
    let mut time = 0;
    while time < seconds {
        plant.step(time, interval, &openness::at(&setup.declared, &setup.floor, openness));
        if plant.pressure() >= 1.0 {
            over += interval;
        }
        let highest = (0..plant.nodes()).map(|n| plant.sample(n).map_or(0.0, |m| m.pressure)).fold(0.0, f64::max);
        let to = if highest >= 1.0 { openness.saturating_sub(10) } else { (openness + 10).min(100) };
        if to != openness {
            decisions.push(Decided { time, from_percent: openness, to_percent: to, reason: String::new(), verdict: None });
        }
        openness = to;
        time += interval;
    }
    #[allow(clippy::cast_precision_loss)] // Minutes.
    let minutes = over as f64 / 60.0;
    Summary {
        changes: decisions.len(),
        reversals: reversals(&decisions),
        minutes_over_threshold: minutes,
        final_openness_percent: openness,
        verdict: String::new(),
    }
}

/// The setup of a policy.
///
/// # Errors
/// Returns an error if the policy has no adaptive control, or if its limits and its floor contradict each other.
pub fn setup(spec: &crate::api::IdleConnectionPolicySpec, traits: &Traits) -> Result<Setup, String> {
    let declared = decide::declare(spec, traits).settings;
    let adaptive = spec.adaptive.as_ref().ok_or("the policy has no spec.adaptive; nothing to simulate")?;
    let floor = decide::floor(spec, traits);
    if let Some(sentence) = openness::invalid(&declared, &floor) {
        return Err(sentence);
    }
    Ok(Setup {
        disturbance: disturbance::disturbance(&declared, &floor, traits, |_| true),
        declared,
        floor,
        tuning: Tuning::of(Some(adaptive)),
        percentile: adaptive.signal.as_ref().map_or(95, |signal| signal.percentile),
    })
}

/// A sample with this task count and threshold.
#[must_use]
pub fn measure(tasks: f64, threshold: f64) -> Measure {
    Measure { tasks: Some(tasks), threshold: Some(threshold), pressure: tasks / threshold, ..Measure::default() }
}
