use std::{sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    api::{
        Format,
        conditions::{ConditionType, EventReason, Reason},
        status::{Control, MESSAGE_LENGTH, RestartControl, Restarting},
    },
    decide::{
        adaptive::{
            config::Config,
            pause::{By, Pause},
            signal::Reading,
            state::{State, Way},
            step::Phase,
            tuning::Tuning,
        },
        report::{
            condition,
            status::{self, ReportInput, report},
        },
    },
};

/// A server that takes every value while it runs.
const TRAITS: TargetCapabilities = TargetCapabilities::PLAIN;

const LIMIT: Limit = Limit::ServerIdleTimeout;

fn seconds(n: u64) -> Value {
    Value::Duration(Duration::from_secs(n))
}

fn unit(id: &str) -> Unit {
    Unit { id: id.into(), name: id.into(), address: "http://127.0.0.1:1".into(), role: None }
}

fn holding(secs: Option<u64>) -> UnitState {
    let site = ConfigPath { limit: LIMIT, place: "web".into() };
    let stored = Stored { value: secs.map(seconds), raw: secs.map(|s| json!(format!("{s}s"))) };
    let node = NodeState::new("n", Ok([(LIMIT, secs.map(seconds))].into()));
    UnitState { sites: [(site, stored)].into(), nodes: vec![node], ..UnitState::default() }
}

fn saved(secs: Option<u64>) -> Saved {
    let site = ConfigPath { limit: LIMIT, place: "web".into() };
    Saved {
        name: "n".into(),
        address: String::new(),
        target: Arc::default(),
        sites: Arc::new([(site, secs.map(|s| json!(format!("{s}s"))))].into()),
    }
}

/// A policy that declares 30 s, on one unit.
struct Scene {
    declared: Declared,
    units: Vec<(Unit, UnitState)>,
    saved: BTreeMap<String, Saved>,
    held: BTreeMap<String, LimitValues>,
    restarted: BTreeSet<String>,
    previous: IdleConnectionPolicyStatus,
    suspend: bool,
    drift_policy: DriftPolicy,
    now: Timestamp,
}

impl Scene {
    fn new(holds: Option<u64>) -> Self {
        Self {
            declared: Declared { settings: [(LIMIT, seconds(30))].into(), ..Declared::default() },
            units: vec![(unit("u"), holding(holds))],
            saved: BTreeMap::new(),
            held: BTreeMap::new(),
            restarted: BTreeSet::new(),
            previous: IdleConnectionPolicyStatus::default(),
            suspend: false,
            drift_policy: DriftPolicy::Correct,
            now: Timestamp::from_second(1_000_000).expect("a time"),
        }
    }

    fn captured(mut self, secs: Option<u64>) -> Self {
        self.saved.insert("u".into(), saved(secs));
        self
    }

    /// As after a successful reconcile.
    fn settled(mut self) -> Self {
        let settled = Self { units: vec![(unit("u"), holding(Some(30)))], ..Self::new(None) };
        self.previous = settled.report(&Plan { desired: settled.declared.clone(), ..Plan::default() }).0;
        self
    }

    fn decide(&self) -> Plan {
        decide(&Input {
            generation: Some(1),
            suspend: self.suspend,
            drift_policy: self.drift_policy,
            declared: &self.declared,
            traits: &TRAITS,
            units: &self.units,
            saved: &self.saved,
            held: &self.held,
            restarted: &self.restarted,
            lives: &Lives::new(),
            waiting: false,
            previous: &self.previous,
            adaptive: None,
            now: self.now,
        })
    }

    fn report(&self, plan: &Plan) -> (IdleConnectionPolicyStatus, Vec<condition::Notice>) {
        let results: Vec<_> =
            self.units.iter().map(|(u, s)| UnitResult { unit: u.clone(), state: Ok(s.clone()), write: None }).collect();
        report(&ReportInput {
            generation: Some(1),
            suspend: self.suspend,
            declared: &self.declared,
            traits: &TRAITS,
            problem: None,
            units: &results,
            plan,
            saved: &self.saved,
            original: None,
            lives: &Lives::new(),
            adaptive: None,
            advice: &[],
            shared: None,
            update: None,
            probes: None,
            previous: &self.previous,
            now: self.now,
        })
    }

    fn changes(&self) -> usize {
        self.decide().units.values().map(|unit| unit.changes.len()).sum()
    }
}

#[test]
fn the_first_write_saves_what_was_there() {
    let plan = Scene::new(Some(300)).decide();
    let unit = &plan.units["u"];
    assert_eq!(unit.capture.values().collect::<Vec<_>>(), [&Some(json!("300s"))]);
    assert_eq!(unit.changes[0].to, NewValue::Value(seconds(30)));
    assert!(plan.drift.is_empty());
}

#[test]
fn nothing_is_planned_where_nothing_differs() {
    let scene = Scene::new(Some(30));
    assert_eq!(scene.decide(), Plan { desired: scene.declared.clone(), ..Plan::default() });
    assert_eq!(Scene::new(Some(30)).captured(Some(300)).settled().decide().units, BTreeMap::new());
}

#[test]
fn what_is_saved_is_never_saved_again() {
    let scene = Scene::new(Some(77)).captured(Some(300)).settled();
    let plan = scene.decide();
    assert!(plan.units["u"].capture.is_empty());
    assert_eq!(plan.drift.len(), 1);
}

#[test]
fn only_a_value_that_the_unit_held_can_drift() {
    let drifts = |held: Option<LimitValues>| {
        let mut scene = Scene::new(Some(60)).captured(Some(300)).settled();
        scene.held.extend(held.map(|held| ("u".to_owned(), held)));
        let plan = scene.decide();
        assert_eq!(plan.units["u"].changes.len(), 1);
        !plan.drift.is_empty()
    };
    assert!(drifts(Some([(LIMIT, seconds(30))].into())), "it held the desired value");
    assert!(!drifts(Some([(LIMIT, seconds(60))].into())), "it was away when the policy was edited");
    assert!(!drifts(Some(LimitValues::new())), "a write to it did not succeed");
    assert!(drifts(None), "the operator has restarted, and the status says that all nodes held it");
}

#[test]
fn suspended_reported_and_contended_fields_are_not_written() {
    let drifted = || Scene::new(Some(77)).captured(Some(300)).settled();
    assert_eq!(drifted().changes(), 1);
    assert_eq!(Scene { suspend: true, ..drifted() }.changes(), 0);
    assert_eq!(Scene { drift_policy: DriftPolicy::Report, ..drifted() }.changes(), 0);
    let mut contended = drifted();
    contended.previous.control = Some(Control { contended: [(LIMIT, [1, 999_900, 0])].into(), ..Control::default() });
    let plan = contended.decide();
    assert_eq!((plan.units.len(), plan.contended.len()), (0, 1));
}

#[test]
fn a_restarted_node_is_programmed_again_however_often_it_restarts() {
    let mut scene = Scene::new(Some(300)).captured(Some(300)).settled();
    scene.restarted.insert("u".into());
    for _ in 0..5 {
        let plan = scene.decide();
        assert_eq!((plan.units["u"].changes.len(), plan.contended.len()), (1, 0));
        assert!(plan.drift[0].restarted);
        scene.previous.control = Some(plan.control);
    }
}

#[test]
fn only_what_is_put_back_counts_as_a_contest_and_each_time_once() {
    let counted = |policy, reason: &str| {
        let mut scene = Scene::new(Some(77)).captured(Some(300)).settled();
        scene.drift_policy = policy;
        scene.previous.conditions.retain(|condition| condition.type_ != "Programmed");
        scene.previous.conditions.push(programmed(reason));
        let plan = scene.decide();
        assert_eq!(plan.drift.len(), 1);
        !plan.control.contended.is_empty()
    };
    assert!(counted(DriftPolicy::Correct, "Programmed"));
    assert!(!counted(DriftPolicy::Correct, "Drifted"), "known already");
    assert!(!counted(DriftPolicy::Report, "Programmed"), "left as it is");
    assert!(!counted(DriftPolicy::Report, "Drifted"));
}

/// A file on three pods, with what each of them reports.
fn file(uses: [Option<bool>; 3]) -> (Scene, TargetCapabilities) {
    let mut scene = Scene::new(Some(30)).captured(None);
    let state = &mut scene.units[0].1;
    let node = state.nodes[0].clone();
    state.nodes = uses
        .iter()
        .zip(["a", "b", "c"])
        .map(|(uses, name)| NodeState { name: name.into(), uses: *uses, ..node.clone() })
        .collect();
    state.changed = Some(scene.now);
    (scene, TargetCapabilities { file: Some(Format::Yaml), ..TRAITS })
}

#[test]
fn a_file_is_in_effect_when_every_pod_has_said_so() {
    let held = |secs, uses, later: i64| {
        let (mut scene, traits) = file(uses);
        scene.units[0].1.nodes.iter_mut().for_each(|node| node.stored = Ok([(LIMIT, Some(seconds(secs)))].into()));
        scene.now += jiff::SignedDuration::from_secs(later);
        let plan = Plan { desired: scene.declared.clone(), ..Plan::default() };
        let results = [UnitResult { unit: scene.units[0].0.clone(), state: Ok(scene.units[0].1.clone()), write: None }];
        let seen = ReportInput {
            generation: Some(1),
            suspend: false,
            declared: &scene.declared,
            traits: &traits,
            problem: None,
            units: &results,
            plan: &plan,
            saved: &scene.saved,
            original: None,
            lives: &Lives::new(),
            adaptive: None,
            advice: &[],
            shared: None,
            update: None,
            probes: None,
            previous: &scene.previous,
            now: scene.now,
        };
        let status = report(&seen).0;
        let condition = condition::find(&status, ConditionType::InEffect).expect("a condition").clone();
        let in_effect = status.limits.is_some_and(|limits| limits.in_effect.is_some());
        (condition.reason, condition.message, in_effect, status.nodes.map_or(0, |nodes| nodes.in_effect))
    };
    let said = |uses, later| held(30, uses, later);
    let (yes, no) = (Some(true), Some(false));
    let (reason, message, ..) = held(77, [no; 3], 0);
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("NotObserved", "Not all nodes are known to hold the declared limits (see Programmed)"),
        "no file is on its way"
    );
    assert_eq!(said([yes; 3], 0), ("InEffect".into(), "The processes of all 3 nodes use the declared limits".into(), true, 3));
    let (reason, message, in_effect, count) = said([yes, no, None], 179);
    assert_eq!((reason.as_str(), in_effect, count), ("Propagating", false, 1));
    assert_eq!(
        message,
        "1 of 3 pods report the new settings; b may not have received the file from the kubelet yet, which takes up to three minutes"
    );
    let (reason, message, ..) = said([yes, no, None], 180);
    assert_eq!(reason, "RestartRequired");
    assert!(message.contains("Restart it if it reads the file only at start"), "{message}");
    let (reason, message, in_effect, count) = said([yes, None, None], 0);
    assert_eq!((reason.as_str(), in_effect, count), ("NotObserved", false, 1));
    assert_eq!(
        message,
        "1 of 3 nodes use the declared limits; the other nodes do not report what they use, and started before the file was written"
    );
}

/// A node that has run for 100 s, or one that was seen to restart with what it stores.
fn watched(node: &NodeState, followed: bool, now: Timestamp) -> Lives {
    let ran = |secs| Some(Duration::from_secs(secs));
    let mut lives = Lives::new();
    for secs in if followed { vec![100, 3] } else { vec![100] } {
        uptimes::look(&mut lives, &NodeState { uptime: ran(secs), ..node.clone() }, false, now);
    }
    lives
}

#[test]
fn a_node_waits_for_a_restart_when_it_stores_what_is_wanted_and_is_older_than_that() {
    let after_restart = TargetCapabilities { capability: |_| Capability::AfterRestart, ..TRAITS };
    // The record of the change is lost. The unit itself reports when the change was made: at millisecond 1,000,000,000.
    let waits = |stores, was, followed: bool, traits: &TargetCapabilities| {
        let mut scene = Scene::new(Some(stores)).captured(Some(was));
        scene.units[0].1.changed = Some(scene.now);
        let results = [UnitResult { unit: scene.units[0].0.clone(), state: Ok(scene.units[0].1.clone()), write: None }];
        let lives = watched(&scene.units[0].1.nodes[0], followed, scene.now);
        let (nodes, changed) =
            status::restart_candidates(&scene.declared, traits, &BTreeMap::new(), &lives, &scene.saved, &results);
        assert_eq!(nodes.len(), 1);
        (nodes[0].pending, changed)
    };
    let at = 1_000_000_000;
    assert_eq!(waits(30, 300, false, &after_restart), (true, at));
    assert_eq!(waits(30, 300, true, &after_restart), (false, at), "it was seen to start since");
    assert_eq!(waits(77, 300, false, &after_restart), (false, at), "a restart cannot apply a value that is not stored");
    assert_eq!(waits(30, 30, false, &after_restart), (false, 0), "an original value was not changed");
    assert_eq!(waits(30, 300, false, &TRAITS), (false, 0), "a limit that is used at once needs no restart");
}

#[test]
fn a_generation_that_was_written_stays_ready_while_its_limits_are_moved() {
    const MOVED: &str = "Declared limits were applied; adaptive control has changed them since (see Tightened)";
    const CHANGED: &str = "Declared limits were applied; another client has changed a node since (see Programmed)";
    struct Case {
        ready: (&'static str, &'static str),
        generation: i64,
        moving: bool,
        drift: bool,
        contended: bool,
    }
    let well = || Case { ready: ("True", "Succeeded"), generation: 1, moving: true, drift: false, contended: false };
    let said = |Case { ready: (status, reason), generation, moving, drift, contended }: Case| {
        let mut scene = Scene::new(Some(77));
        let condition = Condition { type_: "Ready".into(), status: status.into(), ..programmed(reason) };
        scene.previous = IdleConnectionPolicyStatus {
            observed_generation: Some(generation),
            conditions: vec![condition],
            ..IdleConnectionPolicyStatus::default()
        };
        let changes = if moving { vec![(1_700_000_000_000, Way::Tighten)] } else { Vec::new() };
        let state = State { changes, ..State::default() };
        let mut plan = Plan { desired: scene.declared.clone(), ..Plan::default() };
        plan.outcome = Some(Outcome { phase: Phase::Holding, ..Outcome::unmoved(state) });
        if drift {
            let (id, unit) = ("u".to_owned(), "u".to_owned());
            plan.drift.push(Drift { limit: LIMIT, id, unit, restarted: false, found: None, declared: seconds(30) });
        }
        plan.contended.extend(contended.then_some(LIMIT));
        let ready = condition::find(&scene.report(&plan).0, ConditionType::Ready).expect("a condition").clone();
        (ready.status == "True", ready.message)
    };
    let progressing = (false, "0 of 1 node hold the declared limits".to_owned());
    assert_eq!(said(well()), (true, MOVED.to_owned()));
    assert_eq!(said(Case { moving: false, ..well() }), progressing);
    assert_eq!(said(Case { generation: 0, ..well() }), progressing, "another generation was written");
    assert_eq!(said(Case { ready: ("False", "Succeeded"), ..well() }), progressing);
    assert_eq!(said(Case { ready: ("True", "Suspended"), ..well() }), progressing, "nothing was written then");
    assert_eq!(said(Case { drift: true, ..well() }), (true, CHANGED.to_owned()), "changed by another client");
    assert_eq!(said(Case { contended: true, ..well() }), (true, CHANGED.to_owned()));
    assert_eq!(said(Case { drift: true, moving: false, ready: ("False", "Progressing"), ..well() }), (true, CHANGED.to_owned()));
}

#[test]
fn news_is_told_once_and_again_only_when_it_is_another() {
    let scene = |held| Scene::new(Some(held));
    let problem = status::Problem::invalid(Reason::Conflicted, "an older one");
    let plan = |drift: bool, contended: bool, said: Option<restart::RestartReport>| {
        let mut plan = Plan { desired: scene(30).declared, ..Plan::default() };
        if drift {
            let (id, unit) = ("u".to_owned(), "u".to_owned());
            plan.drift.push(Drift { limit: LIMIT, id, unit, restarted: false, found: None, declared: seconds(30) });
        }
        plan.contended.extend(contended.then_some(LIMIT));
        plan.restart = said.map(|said| (restart::RestartPlan { said: Some(said), ..restart::RestartPlan::default() }, None));
        plan
    };
    let cases = vec![
        (EventReason::Conflicted, scene(30), plan(false, false, None), Some(&problem)),
        (EventReason::DriftDetected, scene(77), plan(true, false, None), None),
        (EventReason::Contended, scene(77), plan(true, true, None), None),
        (EventReason::RestartStalled, scene(30), plan(false, false, Some(restart::RestartReport::Stalled("n".into()))), None),
        (EventReason::RestartRequired, scene(30), plan(false, false, Some(restart::RestartReport::Budget)), None),
        (EventReason::Rejected, scene(77), plan(false, false, None), None),
    ];
    for (reason, mut scene, plan, problem) in cases {
        let refused = (reason == EventReason::Rejected).then(|| Fault::new(Cause::Rejected, "no"));
        let told = |scene: &Scene| {
            let results: Vec<_> = scene
                .units
                .iter()
                .map(|(u, s)| UnitResult { unit: u.clone(), state: Ok(s.clone()), write: refused.clone() })
                .collect();
            let (status, notices) = report(&ReportInput {
                generation: Some(1),
                suspend: false,
                declared: &scene.declared,
                traits: &TRAITS,
                problem,
                units: if problem.is_some() { &[] } else { &results },
                plan: &plan,
                saved: &scene.saved,
                original: None,
                lives: &Lives::new(),
                adaptive: None,
                advice: &[],
                shared: None,
                update: None,
                probes: None,
                previous: &scene.previous,
                now: scene.now,
            });
            (status, notices.iter().filter(|notice| notice.reason == reason).count())
        };
        let (status, count) = told(&scene);
        assert_eq!(count, 1, "{reason}");
        scene.previous = status;
        assert_eq!(told(&scene).1, 0, "{reason} is not reported again");
        // The same status with another reason is reported again.
        scene.previous.conditions.iter_mut().for_each(|condition| condition.reason = "Progressing".into());
        assert_eq!(told(&scene).1, 1, "{reason}");
    }
}

#[test]
fn a_long_message_is_cut_and_says_so() {
    assert_eq!(["abcd", "abcde", "äöüßé"].map(|text| condition::shortened(text, 4)), ["abcd", "abc…", "äöü…"]);
}

#[test]
fn advice_is_given_once_for_a_generation_and_not_while_something_stands_in_the_way() {
    let advice = |n: usize| vec![advice::Advice { rule: "free-share", sentence: "too many are free".into() }; n];
    let told = |n, advised, problem: bool| {
        let scene = Scene::new(Some(30));
        let obstacle = status::Problem::invalid(Reason::Invalid, "x");
        let plan = Plan { control: Control { advised, ..Control::default() }, ..Plan::default() };
        let seen = ReportInput {
            generation: Some(7),
            suspend: false,
            declared: &scene.declared,
            traits: &TRAITS,
            problem: problem.then_some(&obstacle),
            units: &[],
            plan: &plan,
            saved: &scene.saved,
            original: None,
            lives: &Lives::new(),
            adaptive: None,
            advice: &advice(n),
            shared: None,
            update: None,
            probes: None,
            previous: &scene.previous,
            now: scene.now,
        };
        let (status, notices) = report(&seen);
        let notes: Vec<_> = notices.into_iter().filter(|notice| notice.reason == EventReason::Advice).collect();
        assert!(notes.iter().all(|notice| notice.reason.is_warning()));
        (notes.into_iter().map(|notice| notice.note).collect::<Vec<_>>(), status.control.and_then(|control| control.advised))
    };
    assert_eq!(told(1, None, false), (vec!["too many are free (free-share)".to_owned()], Some(7)));
    assert_eq!(told(3, Some(6), false).0, ["too many are free (free-share); 2 more from kubectl idleconn lint"]);
    assert_eq!(told(3, Some(7), false), (vec![], Some(7)));
    assert_eq!(told(0, Some(6), false), (vec![], Some(6)));
    assert_eq!(told(1, None, true).0, Vec::<String>::new());
}

#[test]
fn a_field_that_is_no_longer_declared_goes_back_and_is_forgotten() {
    let mut scene = Scene::new(Some(30)).captured(None).settled();
    scene.declared = Declared::default();
    let plan = scene.decide();
    assert_eq!(plan.units["u"].changes[0].to, NewValue::Raw(None));
    assert_eq!(plan.units["u"].forget.len(), 1);
}

#[test]
fn a_node_is_programmed_only_once_a_field_that_is_no_longer_declared_is_back() {
    let mut scene = Scene::new(Some(30)).captured(Some(300)).settled();
    scene.declared = Declared::default();
    let plan = scene.decide();
    let of = |status: &IdleConnectionPolicyStatus, type_| {
        let condition = condition::find(status, type_).expect("the condition");
        (condition.status.clone(), condition.reason.clone())
    };
    // The write was not carried out.
    let (before, notices) = scene.report(&plan);
    assert_eq!(of(&before, ConditionType::Programmed), ("False".into(), "Progressing".into()));
    assert_eq!(of(&before, ConditionType::Ready), ("False".into(), "Progressing".into()));
    assert_eq!(of(&before, ConditionType::InEffect), ("Unknown".into(), "NotObserved".into()));
    let nodes = before.nodes.as_ref().expect("nodes");
    assert_eq!((&*nodes.summary, nodes.drifted), ("0/1", 1));
    assert_eq!(nodes.worst[0].cause, "server.idleTimeout is no longer declared and does not have its original value yet");
    assert!(notices.is_empty(), "{notices:?}");
    // The write was carried out.
    scene.units = vec![(unit("u"), holding(Some(300)))];
    scene.saved.clear();
    let (after, _) = scene.report(&plan);
    assert_eq!(of(&after, ConditionType::Programmed), ("True".into(), "Programmed".into()));
    assert_eq!(of(&after, ConditionType::Ready), ("True".into(), "Succeeded".into()));
}

#[test]
fn the_second_report_of_the_same_is_the_same_and_says_nothing() {
    let mut scene = Scene::new(Some(30));
    let (first, notices) = scene.report(&scene.decide());
    assert_eq!(notices.iter().map(|n| n.reason).collect::<Vec<_>>(), [EventReason::Accepted, EventReason::Programmed]);
    scene.previous = first.clone();
    scene.now = scene.now.checked_add(Duration::from_secs(3600)).expect("a time");
    let plan = scene.decide();
    let (second, notices) = scene.report(&plan);
    assert_eq!((second, notices), (first, vec![]));
}

#[test]
fn a_large_fleet_has_a_small_status() {
    let mut scene = Scene::new(None);
    scene.units.clear();
    for n in 0..5000 {
        scene.units.push((unit(&format!("pod/00000000-0000-0000-0000-{n:012}:2019")), holding(Some(n % 40))));
    }
    let (status, _) = scene.report(&Plan::default());
    let bytes = serde_json::to_vec(&status).expect("JSON").len();
    assert!(bytes < 8 * 1024, "{bytes} bytes");
    let aistore = [
        Limit::IntraClusterIdleConnTimeout,
        Limit::IntraClusterMaxIdleConns,
        Limit::IntraClusterMaxIdleConnsPerHost,
        Limit::BackendIdleConnTimeout,
    ];
    let longest: BTreeMap<_, _> =
        Limit::ALL.into_iter().rev().take(6).map(|key| (key, [19, 1_795_238_282, 1_795_238_282])).collect();
    for control in [
        Control {
            events: u32::MAX,
            changed: aistore.map(|k| (k, 1_795_238_282_000)).into(),
            contended: aistore.map(|k| (k, [19, 1_795_238_282, 1_795_238_282])).into(),
            ..Control::default()
        },
        Control {
            events: u32::MAX,
            changed: aistore.map(|k| (k, 1_795_238_282_000)).into(),
            restart: RestartControl {
                change: 1_795_238_282_000,
                begun: vec![1_795_238_282],
                nodes: vec![Restarting {
                    node: "target-t0".into(),
                    pod: "ais-target-0".into(),
                    uid: "b0f5b8a4-8a3e-4f6b-9f0a-0d5f3f1c2a11".into(),
                    since: 1_795_238_282,
                }],
            },
            ..Control::default()
        },
        Control { events: u32::MAX, contended: longest, ..Control::default() },
    ] {
        let nodes: Vec<_> = (0..200).map(|n| NodeState::new(format!("n{n}"), Ok(BTreeMap::new()))).collect();
        let nodes: Vec<_> = nodes.iter().collect();
        let named = |node: &NodeState| node.name.len() == 2 || (node.name.len() == 3 && node.name.as_str() < "n32");
        let confirmed = uptimes::confirmation(&nodes, named, &LimitValues::new(), i64::MAX);
        assert!(confirmed.as_ref().is_some_and(|confirmed| confirmed.nodes.len() == 32 * 9));
        let bytes = serde_json::to_vec(&Control { confirmed, ..control }).expect("JSON").len();
        assert!(bytes <= 1024, "{bytes} bytes");
    }
    assert!(status.conditions.iter().all(|c| c.message.chars().count() <= MESSAGE_LENGTH));
}

/// Three units that other clients may change at any time, and reconciles that may die after any write.
#[derive(Clone, Debug)]
enum Step {
    Pass { die_after: usize },
    ByHand { unit: usize, secs: Option<u64> },
    Declare(Option<u64>),
    Later(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0usize..6).prop_map(|die_after| Step::Pass { die_after }),
        2 => (0usize..3, proptest::option::of(1u64..200)).prop_map(|(unit, secs)| Step::ByHand { unit, secs }),
        2 => proptest::option::of(1u64..60).prop_map(Step::Declare),
        1 => (1u64..5000).prop_map(Step::Later),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens in between, a config path is restored from its first capture, and a decision made twice is the
    /// same.
    #[test]
    fn originals_survive_everything(steps in steps()) {
        let mut scene = Scene::new(None);
        scene.units = (0..3).map(|n| (unit(&format!("u{n}")), holding(Some(100 + n)))).collect();
        let mut originals: BTreeMap<String, Option<Json>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::ByHand { unit, secs } => scene.units[unit].1 = holding(secs),
                Step::Declare(secs) => {
                    scene.declared.settings = secs.map(|s| (LIMIT, seconds(s))).into_iter().collect();
                    scene.previous.observed_generation = None;
                }
                Step::Later(secs) => scene.now = scene.now.checked_add(Duration::from_secs(secs)).expect("a time"),
                Step::Pass { die_after } => {
                    let plan = scene.decide();
                    prop_assert_eq!(&plan, &scene.decide());
                    let mut writes = 0;
                    // All captures are one write, before the others.
                    for (id, unit) in &plan.units {
                        for (site, raw) in &unit.capture {
                            prop_assert!(!originals.contains_key(id), "captured twice");
                            originals.insert(id.clone(), raw.clone());
                            let saved = scene.saved.entry(id.clone()).or_insert_with(|| Saved { sites: Arc::default(), ..saved(None) });
                            Arc::make_mut(&mut saved.sites).insert(site.clone(), raw.clone());
                        }
                    }
                    for (id, unit_plan) in &plan.units {
                        if writes == die_after { break }
                        let at = scene.units.iter().position(|(u, _)| u.id == *id).expect("a unit");
                        for change in &unit_plan.changes {
                            prop_assert!(originals.contains_key(id), "written before it was saved");
                            let secs = match &change.to {
                                NewValue::Value(Value::Duration(d)) => Some(d.as_secs()),
                                NewValue::Raw(raw) => {
                                    prop_assert_eq!(raw, &originals[id], "not what was there");
                                    raw.as_ref().and_then(Json::as_str).and_then(|t| t.trim_end_matches('s').parse().ok())
                                }
                                NewValue::Value(Value::Count(_)) => None,
                            };
                            scene.units[at].1 = holding(secs);
                            writes += 1;
                        }
                        if !unit_plan.forget.is_empty() {
                            originals.remove(id);
                            scene.saved.remove(id);
                        }
                    }
                    if writes < die_after {
                        scene.previous = scene.report(&plan).0;
                    }
                }
            }
        }
    }
}

#[test]
fn a_pause_stops_its_own_way_and_suspend_stops_both() {
    let signal = Signal::Missing { reason: Reason::Stale, message: String::new() };
    let cases = [
        ((false, false), false, (false, false, true)),
        ((true, false), false, (true, false, true)),
        ((false, true), false, (false, true, true)),
        ((false, false), true, (true, true, false)),
        ((true, true), true, (true, true, false)),
    ];
    for ((tighten, relax), suspend, expected) in cases {
        let by = |is_paused: bool| is_paused.then_some(By::Annotation("idleconn.io/paused", None));
        let pause = Pause { all: suspend.then_some(By::Suspend), tighten: by(tighten), relax: by(relax) };
        let config = Config { pause, rolls: true, ..Config::plain(LimitValues::new(), LimitValues::new(), Tuning::of(None)) };
        let driver = AdaptiveDriver::new(config, State::default(), None, 0);
        let facts = driver.facts(&signal, NodeProgress::default());
        assert_eq!((facts.no_tightening, facts.no_relaxing, facts.rolls), expected, "{tighten} {relax} {suspend}");
    }
}

#[test]
fn open_files_bound_the_pools_share() {
    let config = Config::plain(LimitValues::new(), LimitValues::new(), Tuning::of(None));
    let driver = AdaptiveDriver::new(config, State::default(), None, 0);
    let most = |files_share| {
        let signal = Signal::Fresh(Reading { files_share, ..Reading::of(1.0) });
        driver.facts(&signal, NodeProgress::default()).share.most
    };
    assert!((most(Some(0.25)) - 0.25).abs() < 1e-9);
    assert!((most(None) - 1.0).abs() < 1e-9);
}

#[test]
fn what_most_nodes_use_is_in_effect() {
    let declared = Declared { settings: LimitValues::from([(LIMIT, seconds(30))]), ..Declared::default() };
    let floor = LimitValues::from([(LIMIT, seconds(5))]);
    let restarts = TargetCapabilities { capability: |_| Capability::AfterRestart, ..TRAITS };
    let standing = |held: &[u64], traits: &TargetCapabilities, followed: bool| {
        let changed = BTreeMap::from([(LIMIT, 1000)]);
        let lives = watched(&holding(Some(30)).nodes[0], followed, Timestamp::from_millisecond(1001).expect("a time"));
        let units: Vec<_> = held.iter().map(|secs| (unit("n"), holding(Some(*secs)))).collect();
        let units = units.iter().map(|(unit, state)| (unit, state));
        NodeProgress::of(&declared, &floor, 100, traits, &lives, &changed, units)
    };
    let hot = |held: &[u64]| standing(held, &TRAITS, false).in_effect;
    assert_eq!(
        [hot(&[]), hot(&[30]), hot(&[9]), hot(&[30, 9]), hot(&[30, 30, 9]), hot(&[30, 9, 9])],
        [false, true, false, false, true, false]
    );
    assert!(!standing(&[30], &TRAITS, false).needs_restart);
    // Where a limit takes a restart, only processes that were seen to start with it use it; the first step waits for
    // that as well (D5).
    let restarted = |held: &[u64], followed| standing(held, &restarts, followed);
    assert_eq!(
        (restarted(&[30], true).in_effect, restarted(&[30], false).in_effect, restarted(&[9], true).in_effect),
        (true, false, false)
    );
    assert!(restarted(&[30], true).needs_restart);
}

#[test]
fn restoring_writes_what_differs_from_what_was_there() {
    let site = ConfigPath { limit: LIMIT, place: "web".into() };
    let sites = |secs: Option<u64>| saved(secs).sites;
    let change = |secs: Option<u64>| vec![Change { site: site.clone(), to: NewValue::Raw(secs.map(|s| json!(format!("{s}s")))) }];
    assert_eq!(restore(&holding(Some(30)), &sites(Some(60))), change(Some(60)));
    assert_eq!(restore(&holding(Some(30)), &sites(None)), change(None));
    assert_eq!(restore(&holding(Some(30)), &sites(Some(30))), []);
    assert_eq!(restore(&holding(Some(30)), &BTreeMap::new()), []);
}

fn programmed(reason: &str) -> Condition {
    Condition {
        type_: "Programmed".into(),
        status: if reason == "Programmed" { "True" } else { "False" }.into(),
        reason: reason.into(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

#[test]
fn only_what_was_settled_can_drift() {
    let drift = |edit: fn(&mut Scene)| {
        let mut scene = Scene::new(Some(77));
        scene.saved = BTreeMap::from([("u".to_owned(), saved(Some(100)))]);
        scene.previous.observed_generation = Some(1);
        scene.previous.conditions.push(programmed("Programmed"));
        edit(&mut scene);
        scene.decide().drift.len()
    };
    assert_eq!(drift(|_| {}), 1);
    assert_eq!(drift(|scene| scene.previous.observed_generation = Some(0)), 0, "another generation");
    assert_eq!(drift(|scene| scene.previous.conditions.clear()), 0, "no condition was reported yet");
    assert_eq!(drift(|scene| scene.previous.conditions[0] = programmed("Progressing")), 0);
    assert_eq!(drift(|scene| scene.previous.conditions[0] = programmed("Partial")), 0, "perhaps the unit was not reached then");
    let held = |scene: &mut Scene| {
        scene.previous.conditions[0] = programmed("Partial");
        scene.held = BTreeMap::from([("u".to_owned(), [(LIMIT, seconds(30))].into())]);
    };
    assert_eq!(drift(held), 1, "another unit was not reached then");
    assert_eq!(drift(|scene| scene.saved.clear()), 0, "the unit was never written");
}
