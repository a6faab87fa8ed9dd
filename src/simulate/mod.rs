//! The loop without a cluster: the very code that decides, over a plant that is modelled or a trace that was recorded.
//!
//! Pure like `decide/`: time is a number. What lives here is what `kubectl idleconn simulate` and the simulation suite share.

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
        self, Adaptive, Change, Declared, Input, NodeState, Pause, Site, Stored, To, Traits, Unit, UnitState, adapt, condition,
        conditions::{self, Seen, UnitResult},
        loop_conditions::{Closes, SeenLoop},
        openness::{self, Percent},
        order,
        originals::Saved,
        signal::{Measure, NodeSample, Reading},
        state::State,
        tighten::Share,
        tuning::Tuning,
    },
};
pub use plant::Plant;

/// What is simulated.
#[derive(Clone)]
pub struct Setup {
    /// What is declared.
    pub declared: Settings,
    /// How far it may be tightened.
    pub floor: Settings,
    /// The numbers.
    pub tuning: Tuning,
    /// Which of the nodes counts.
    pub percentile: u32,
    /// What a change does by itself; `None` where it closes nothing.
    pub disturbance: Option<adapt::Disturbance>,
}

/// When the process that decides is replaced by another: it goes on from what is in the status, and begins to watch.
#[derive(Clone, Copy, Debug)]
pub struct Handover {
    /// Seconds from the start.
    pub at: i64,
    /// Seconds in which no process decides.
    pub gap: i64,
}

/// One step, as it is printed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decided {
    /// Seconds from the start.
    pub time: i64,
    /// Openness before.
    pub from_percent: Percent,
    /// Openness after.
    pub to_percent: Percent,
    /// Why.
    pub reason: String,
    /// Whether it helped, if that was judged.
    pub verdict: Option<String>,
}

impl Decided {
    /// Whether it went towards the floor.
    #[must_use]
    pub const fn tightens(&self) -> bool {
        self.to_percent < self.from_percent
    }
}

/// One moment.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Seconds from the start.
    pub time: i64,
    /// Pressure of the node that counts; `None` where it was missing.
    pub pressure: Option<f64>,
    /// Openness.
    pub openness: Percent,
    /// The true pressure of the fullest node, counted or not.
    pub truth: f64,
}

/// All of it in a few numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Steps.
    pub changes: usize,
    /// Steps that went the other way than the one before.
    pub reversals: usize,
    /// How long there really were too many tasks, whether it was seen or not.
    pub minutes_over_threshold: f64,
    /// Where it ended.
    pub final_openness_percent: Percent,
    /// The reason of `TighteningEffective` at the end, or the worst verdict on the way: Ineffective or `PoolsTooSmall`.
    pub verdict: String,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Run {
    /// The steps.
    pub decisions: Vec<Decided>,
    /// The course.
    pub points: Vec<Point>,
    /// The sum.
    pub summary: Summary,
    /// Steps that were made while the tasks could not be counted.
    pub blind: usize,
    /// The longest that the loop's state was, written down (bytes).
    pub written: usize,
    /// What was said on the way.
    pub told: Vec<Told>,
}

/// What was said at one moment: Events, and conditions whose status or reason changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Seconds from the start.
    pub time: i64,
    /// One line.
    pub line: String,
}

/// Everything is used at once, and nothing is refused.
pub const TRAITS: Traits = Traits::PLAIN;

/// When the simulated time begins (Unix seconds); any moment would do.
const EPOCH: i64 = 1_700_000_000;

/// The unit that stands for all nodes: what is written to it, they use.
pub struct Virtual {
    /// Which.
    pub unit: Unit,
    /// What it holds.
    pub state: UnitState,
}

impl Virtual {
    /// As declared.
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

    /// The node behind it says what it stores.
    fn settle(&mut self) {
        let stored = self.state.sites.iter().map(|(site, stored)| (site.knob, stored.value)).collect();
        self.state.nodes = vec![NodeState::new("simulated", Ok(stored))];
    }

    /// What it held before the first write: nothing.
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

    /// Takes a write.
    pub fn write(&mut self, changes: &[Change]) {
        for change in changes {
            if let To::Value(value) = change.to {
                self.state.sites.insert(change.site.clone(), Stored { value: Some(value), raw: None });
            }
        }
        self.settle();
    }

    /// What it holds, flat.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.state.sites.iter().filter_map(|(site, stored)| Some((site.knob, stored.value?))).collect()
    }
}

fn site(knob: Knob) -> Site {
    Site { knob, place: "simulated".into() }
}

/// Runs a plant for some seconds.
#[allow(clippy::too_many_lines)] // One turn of a clock, told from top to bottom.
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
        let signal =
            decide::signal::read(&samples, names.iter().map(AsRef::as_ref), setup.percentile, setup.tuning.most_age(), now);
        let stamp = Timestamp::from_millisecond(now).unwrap_or_default();
        let share = plant.share().unwrap_or(Share::UNKNOWN);
        let adaptive = Adaptive {
            tuning: &setup.tuning,
            floor: &setup.floor,
            state: &state,
            signal: &signal,
            pause: Pause::default(),
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
                pause: Pause::default(),
                unreadable: None,
                attribution: adaptive.attribution(),
                closes: setup.disturbance.map(|_| Closes { connections: None }),
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
        if condition::reason(&status, ConditionType::Limited) == Some(Reason::PoolsTooSmall) {
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

/// Conditions whose status or reason changed.
fn turned<'a>(
    before: &'a IdleConnectionPolicyStatus,
    after: &'a IdleConnectionPolicyStatus,
) -> impl Iterator<Item = String> + 'a {
    after.conditions.iter().filter_map(|condition| {
        let old = before.conditions.iter().find(|old| old.type_ == condition.type_);
        let same = old.is_some_and(|old| old.status == condition.status && old.reason == condition.reason);
        (!same).then(|| format!("{}={}/{}: {}", condition.type_, condition.status, condition.reason, condition.message))
    })
}

fn point(time: i64, reading: Option<&Reading>, openness: Percent, truth: f64) -> Point {
    Point { time, pressure: reading.map(|reading| reading.up), openness, truth }
}

/// Steps that went the other way than the one before.
#[must_use]
pub fn reversals(decisions: &[Decided]) -> usize {
    decisions.windows(2).filter(|pair| pair[0].tightens() != pair[1].tightens()).count()
}

/// What a rule that everybody writes first would do: ten points down while there are too many tasks, ten up while there are not,
/// at every look; what is missing is zero.
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

/// A policy's setup.
///
/// # Errors
/// Where its limits and its floor cannot be.
pub fn setup(spec: &crate::api::IdleConnectionPolicySpec, traits: &Traits) -> Result<Setup, String> {
    let declared = decide::declare(spec, traits).settings;
    let adaptive = spec.adaptive.as_ref().ok_or("the policy has no spec.adaptive: there is nothing to simulate")?;
    let floor = decide::floor(spec, traits);
    if let Some(sentence) = openness::invalid(&declared, &floor) {
        return Err(sentence);
    }
    Ok(Setup {
        disturbance: decide::disturbance(&declared, &floor, traits, |_| true),
        declared,
        floor,
        tuning: Tuning::of(Some(adaptive)),
        percentile: adaptive.signal.as_ref().map_or(95, |signal| signal.percentile),
    })
}

/// A sample of so many tasks.
#[must_use]
pub fn measure(tasks: f64, threshold: f64) -> Measure {
    Measure { tasks: Some(tasks), threshold: Some(threshold), pressure: tasks / threshold, ..Measure::default() }
}
