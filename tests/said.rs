//! Status in every situation, as readable text: tests/golden/status.txt. `make generate` writes the file.

#![allow(clippy::unwrap_used, clippy::panic, clippy::missing_panics_doc, missing_docs)]

#[path = "golden/mod.rs"]
mod golden;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use idleconn_operator::{
    api::{
        IdleConnectionPolicyStatus, Limit, Value,
        adaptive::{Adaptive, Mode},
        conditions::Reason,
        flush::Reload,
        guarded::ConnectionRate,
        update::RollingUpdate,
    },
    decide::{
        Capability, Cause, ConfigPath, Declared, Drift, Fault, Lives, NodeState, Plan, Stored, TargetCapabilities, Unit,
        UnitResult, UnitState,
        adaptive::{
            attribution::Attribution,
            pause::{By, Pause},
            report::{SeenLoop, write_adaptive_status},
            signal::{Ages, NoSample, NodeSample, Reading, Signal, read},
            state::{Efficacy, Episode, Lockout, Pending, State, Watched, Way},
            step::{self, Decision, Harm, Judged, Outcome as Look, Phase, Restriction, Verdict, Wait},
            step_size::Share,
            tuning::Tuning,
        },
        measured::Idled,
        report::{
            status::{Problem, ReportInput, report},
            update::UpdateProgress,
        },
        restart::{RestartPlan, RestartReport},
        uptimes,
        verify::{Probe, Probes},
    },
};
use jiff::Timestamp;
use serde_json::json;
use strum::IntoEnumIterator as _;

const SERVER: Limit = Limit::ServerIdleTimeout;
const TOTAL: Limit = Limit::BackendMaxIdleConns;

/// The timeout of the server takes effect at once, the size of the pool after a restart.
const TRAITS: TargetCapabilities = TargetCapabilities {
    capability: |key| if matches!(key, TOTAL) { Capability::AfterRestart } else { Capability::Hot },
    ..TargetCapabilities::PLAIN
};

/// Nodes with names as a Deployment gives them.
const NODES: [&str; 3] = ["gateway-7f4c9d-abcde", "gateway-7f4c9d-fghjk", "gateway-7f4c9d-mnpqr"];

fn seconds(s: u64) -> Value {
    Value::Duration(Duration::from_secs(s))
}

/// Policy that declares 30 s on three nodes.
#[derive(Clone)]
struct Scene {
    generation: i64,
    suspend: bool,
    declared: Declared,
    traits: TargetCapabilities,
    problem: Option<Problem>,
    units: Vec<UnitResult>,
    plan: Plan,
    lives: Lives,
    update: Option<UpdateProgress>,
    probes: Option<Probes>,
    previous: IdleConnectionPolicyStatus,
}

fn holding(name: &str, settings: &[(Limit, Value)]) -> UnitResult {
    let unit = Unit { id: name.into(), name: name.into(), address: format!("http://{name}"), role: None };
    let sites = settings.iter().map(|(key, value)| {
        (ConfigPath { limit: *key, place: "web".into() }, Stored { value: Some(*value), raw: Some(json!(value.to_string())) })
    });
    let node = NodeState::new(name, Ok(settings.iter().map(|(key, value)| (*key, Some(*value))).collect()));
    let state = UnitState { sites: sites.collect(), nodes: vec![node], ..UnitState::default() };
    UnitResult { unit, state: Ok(state), write: None }
}

impl Scene {
    fn new() -> Self {
        let declared = Declared { settings: [(SERVER, seconds(30))].into(), written: [SERVER].into(), ..Declared::default() };
        Self {
            generation: 1,
            suspend: false,
            plan: Plan { desired: declared.clone(), ..Plan::default() },
            declared,
            traits: TRAITS,
            problem: None,
            units: NODES.map(|name| holding(name, &[(SERVER, seconds(30))])).into(),
            lives: Lives::new(),
            update: None,
            probes: None,
            previous: IdleConnectionPolicyStatus::default(),
        }
    }

    fn report(&self, now: i64) -> (IdleConnectionPolicyStatus, Vec<String>) {
        let (status, notices) = report(&ReportInput {
            generation: Some(self.generation),
            suspend: self.suspend,
            declared: &self.declared,
            traits: &self.traits,
            problem: self.problem.as_ref(),
            units: &self.units,
            plan: &self.plan,
            saved: &BTreeMap::new(),
            original: Some("gateway-original".into()),
            lives: &self.lives,
            adaptive: None,
            advice: &[],
            shared: None,
            update: self.update.as_ref(),
            probes: self.probes.as_ref(),
            previous: &self.previous,
            now: Timestamp::from_second(1_800_000_000 + now).unwrap(),
        });
        (status, notices.iter().map(ToString::to_string).collect())
    }

    /// Sets the measured times of the servers of gw-1 and so on, in seconds, or the reason why they were not measured.
    fn measure(&mut self, outcomes: &[Result<u64, &str>]) {
        let probe = |outcome: &Result<u64, &str>| Probe {
            programmed: Some(Duration::from_secs(30)),
            outcome: outcome.map(|n| Idled::Closed(Duration::from_secs(n))).map_err(str::to_owned),
        };
        self.probes = Some((1..).zip(outcomes).map(|(n, outcome)| (format!("{0} {0}", NODES[n - 1]), probe(outcome))).collect());
    }

    /// Continues from the status before the edit.
    fn then(&self, edit: impl FnOnce(&mut Self)) -> Self {
        let mut next = Self { previous: self.report(0).0, ..self.clone() };
        edit(&mut next);
        next
    }

    fn desire(&mut self, settings: &[(Limit, Value)]) {
        self.declared.settings = settings.iter().copied().collect();
        self.declared.written = settings.iter().map(|(key, _)| *key).collect();
        self.plan.desired = self.declared.clone();
    }

    fn fail(&mut self, node: usize, cause: Cause, message: &str) {
        self.units[node].state = Err(Fault::new(cause, message));
    }

    fn refuse(&mut self, node: usize, cause: Cause, message: &str) {
        self.hold(node, 60);
        self.units[node].write = Some(Fault::new(cause, message));
    }

    fn hold(&mut self, node: usize, secs: u64) {
        let name = self.units[node].unit.name.clone();
        self.units[node] = holding(&name, &[(SERVER, seconds(secs))]);
    }

    fn drift(&mut self, restarted: bool) {
        self.hold(1, 77);
        self.plan.drift.push(Drift {
            limit: SERVER,
            id: "gateway-7f4c9d-fghjk".into(),
            unit: "gateway-7f4c9d-fghjk".into(),
            restarted,
            found: Some(seconds(77)),
            declared: seconds(30),
        });
    }

    /// The size of the pool was changed at 1 s. It is known for these processes whether they started with it; nothing is known
    /// for others.
    fn pools(&mut self, started: &[(&str, bool)]) {
        let settings = [(SERVER, seconds(30)), (TOTAL, Value::Count(50))];
        self.desire(&settings);
        self.units = NODES.map(|name| holding(name, &settings)).into();
        self.plan.control.changed = [(TOTAL, 1000)].into();
        let ran = |secs| Some(Duration::from_secs(secs));
        let seen = Timestamp::from_second(50).unwrap();
        self.lives.clear();
        for result in &self.units {
            let Some((name, with_it)) = started.iter().find(|(name, _)| *name == result.unit.name) else { continue };
            let node = &result.state.as_ref().unwrap().nodes[0];
            assert_eq!(node.name, *name);
            for secs in if *with_it { vec![100, 3] } else { vec![100] } {
                uptimes::look(&mut self.lives, &NodeState { uptime: ran(secs), ..node.clone() }, false, seen);
            }
        }
    }

    fn restarting(&mut self, said: RestartReport, why: Option<&str>) {
        self.pools(&[("gateway-7f4c9d-abcde", true), ("gateway-7f4c9d-fghjk", false), ("gateway-7f4c9d-mnpqr", false)]);
        let finished = vec!["gateway-7f4c9d-abcde".to_owned()];
        self.plan.restart = Some((RestartPlan { said: Some(said), finished, ..RestartPlan::default() }, why.map(str::to_owned)));
    }

    fn problem(&mut self, problem: impl FnOnce(&'static str) -> Problem) {
        self.problem = Some(problem("What happened, to what, and what to do"));
        self.units.clear();
    }
}

fn told(title: &str, scene: &Scene) -> String {
    let (status, events) = scene.report(60);
    let mut text = format!("# {title}\n");
    let transitions: BTreeSet<_> =
        status.conditions.iter().map(|c| c.last_transition_time.0.as_second() - 1_800_000_000).collect();
    for condition in &status.conditions {
        let _ = writeln!(text, "{}={}/{}: {}", condition.type_, condition.status, condition.reason, condition.message);
    }
    let _ = writeln!(text, "transitions at {transitions:?}, of generation {:?}", status.conditions[0].observed_generation);
    if let Some(nodes) = &status.nodes {
        let idleconn_operator::api::status::Nodes {
            summary,
            total,
            programmed,
            in_effect,
            unreachable,
            drifted,
            over_threshold: _,
            worst,
        } = nodes;
        let _ = writeln!(
            text,
            "nodes {summary}: total {total}, programmed {programmed}, in effect {in_effect}, unreachable {unreachable}, drifted {drifted}"
        );
        for node in worst {
            let _ = writeln!(text, "  {}: {}", node.name, node.cause);
        }
    }
    if let Some(limits) = &status.limits {
        let _ = writeln!(text, "limits {}", serde_json::to_string(limits).unwrap());
    }
    if let Some(update) = &status.update {
        let _ = writeln!(text, "update {}", serde_json::to_string(update).unwrap());
    }
    if let Some(pending) = &status.pending_restart {
        let _ = writeln!(text, "pending restart: {} of {:?}", pending.count, pending.nodes);
    }
    if !status.unsupported.is_empty() {
        let _ = writeln!(text, "unsupported {:?}", status.unsupported);
    }
    if let Some(control) = &status.control {
        let _ = writeln!(text, "control {}", serde_json::to_string(control).unwrap());
    }
    for event in events {
        let _ = writeln!(text, "Event {event}");
    }
    text + "\n"
}

#[test]
#[allow(clippy::too_many_lines)] // One situation after the other.
fn every_situation_is_said_as_it_was_reviewed() {
    let new = Scene::new();
    let after = |edit: &dyn Fn(&mut Scene)| new.then(|scene| edit(scene));
    let drifted = after(&|scene| scene.drift(false));
    let update = |stopped_by: Option<&str>| UpdateProgress {
        waiting: NODES[1..].iter().map(ToString::to_string).collect(),
        batches: Some(RollingUpdate::default()),
        most: 1,
        stopped_by: stopped_by.map(str::to_owned),
    };
    let edit = |scene: &mut Scene| {
        scene.generation = 2;
        scene.desire(&[(SERVER, seconds(20))]);
        scene.hold(0, 20);
        scene.update = Some(update(None));
    };
    let finish = |scene: &mut Scene| {
        (0..3).for_each(|node| scene.hold(node, 20));
        scene.update = None;
    };
    let edited = after(&edit);
    let stopped = after(&|scene| {
        edit(scene);
        scene.fail(0, Cause::Unreachable, "http://gateway-7f4c9d-abcde did not answer within 3s");
        scene.update = Some(update(Some("gateway-7f4c9d-abcde")));
    });
    let situations: Vec<(&str, Scene)> = vec![
        ("a new policy, written everywhere", new.clone()),
        ("the same again", after(&|_| {})),
        ("the same, another generation", after(&|scene| scene.generation = 2)),
        ("being written", {
            let mut scene = new.clone();
            scene.hold(0, 60);
            scene
        }),
        ("an edit is written in batches", edited.clone()),
        ("an edit is written in batches, already reported", edited.then(|_| {})),
        ("a node of the first batch does not answer", stopped.clone()),
        ("a node of the first batch does not answer, already reported", stopped.then(|_| {})),
        ("the node answers, and the next batch is due", stopped.then(|scene| edit(scene))),
        ("all batches are written", edited.then(|scene| finish(scene))),
        (
            "a step of adaptive control waits for the maximum of the cluster",
            after(&|scene| {
                edit(scene);
                scene.generation = 1;
                scene.update = Some(UpdateProgress { batches: None, ..update(None) });
            }),
        ),
        ("suspended", after(&|scene| scene.suspend = true)),
        (
            "a node does not answer",
            after(&|scene| scene.fail(1, Cause::Unreachable, "http://gateway-7f4c9d-fghjk did not answer within 3s")),
        ),
        ("no node answers", after(&|scene| (0..3).for_each(|n| scene.fail(n, Cause::Unreachable, "no answer")))),
        (
            "all nodes reject the token",
            after(&|scene| (0..3).for_each(|n| scene.fail(n, Cause::Unauthorized, "The cluster rejected the token (401)"))),
        ),
        ("there is no node", after(&|scene| scene.units.clear())),
        ("a node refuses", after(&|scene| scene.refuse(1, Cause::Rejected, "Caddy refused: no such module"))),
        (
            "a node refuses another generation",
            after(&|scene| {
                scene.generation = 2;
                scene.refuse(1, Cause::Rejected, "Caddy refused: no such module");
            }),
        ),
        (
            "two nodes fail, one of them permanently",
            after(&|scene| {
                scene.refuse(0, Cause::Unreachable, "broke off");
                scene.refuse(1, Cause::Rejected, "Caddy refused: no such module");
            }),
        ),
        ("a node forbids the write", after(&|scene| scene.refuse(1, Cause::Forbidden, "The token lacks the permission (403)"))),
        (
            "a node's token has expired",
            after(&|scene| scene.refuse(1, Cause::Unauthorized, "The cluster rejected the token (401)")),
        ),
        ("a write broke off", after(&|scene| scene.refuse(1, Cause::Unreachable, "broke off"))),
        (
            "a write broke off and was stored",
            after(&|scene| scene.units[1].write = Some(Fault::new(Cause::Unreachable, "broke off"))),
        ),
        ("another client changed a node", drifted.clone()),
        ("another client changed a node, already reported", drifted.then(|_| {})),
        (
            "the limit was restored",
            drifted.then(|scene| {
                scene.plan.drift.clear();
                scene.hold(1, 30);
            }),
        ),
        ("a node was restarted with its own file", after(&|scene| scene.drift(true))),
        (
            "another client keeps changing a node",
            after(&|scene| {
                scene.hold(1, 77);
                scene.plan.contended = [SERVER].into();
            }),
        ),
        ("another client changed a node to the declared value", after(&|scene| scene.plan.contended = [SERVER].into())),
        ("the policy is not valid", after(&|scene| scene.problem(|text| Problem::invalid(Reason::Invalid, text)))),
        ("another policy is older", after(&|scene| scene.problem(|text| Problem::invalid(Reason::Conflicted, text)))),
        ("the target does not exist", after(&|scene| scene.problem(Problem::no_target))),
        ("a Secret is missing", after(&|scene| scene.problem(|text| Problem::waiting(Reason::RefNotFound, text)))),
        ("the operator lacks a right", after(&|scene| scene.problem(|text| Problem::blocked(Reason::Forbidden, text)))),
        ("a restart is needed", after(&|scene| scene.pools(&[("gateway-7f4c9d-abcde", true), ("gateway-7f4c9d-fghjk", false)]))),
        (
            "all were restarted",
            after(&|scene| {
                scene.pools(&[("gateway-7f4c9d-abcde", true), ("gateway-7f4c9d-fghjk", true), ("gateway-7f4c9d-mnpqr", true)]);
            }),
        ),
        (
            "what is in use is not known",
            after(&|scene| {
                scene.pools(&[]);
                scene.plan.control.changed.clear();
            }),
        ),
        (
            "one node was not observed to start",
            after(&|scene| {
                scene.pools(&[("gateway-7f4c9d-abcde", true), ("gateway-7f4c9d-fghjk", true), ("gateway-7f4c9d-mnpqr", false)]);
                scene.plan.control.changed.clear();
                for result in &mut scene.units {
                    result.state.as_mut().unwrap().changed = Some(Timestamp::from_millisecond(5000).unwrap());
                }
            }),
        ),
        (
            "a node is being restarted",
            after(&|scene| scene.restarting(RestartReport::Rolling("gateway-7f4c9d-fghjk".into()), None)),
        ),
        (
            "the eviction waits",
            after(&|scene| {
                scene.restarting(
                    RestartReport::Rolling("gateway-7f4c9d-fghjk".into()),
                    Some("PodDisruptionBudget gateway allows no disruption"),
                );
            }),
        ),
        (
            "a node did not come back",
            after(&|scene| scene.restarting(RestartReport::Stalled("gateway-7f4c9d-fghjk".into()), None)),
        ),
        (
            "another node is out of service",
            after(&|scene| scene.restarting(RestartReport::Unavailable("gateway-7f4c9d-mnpqr".into()), None)),
        ),
        ("the restarts of the day are used up", after(&|scene| scene.restarting(RestartReport::Budget, None))),
        (
            "a pod is not known",
            after(&|scene| scene.restarting(RestartReport::NoPod("gateway-7f4c9d-fghjk".into()), Some("no right"))),
        ),
        (
            "a limit lowers another limit",
            after(&|scene| {
                scene.traits.companions = |_, _, _| [(Limit::BackendMaxIdleConnsPerHost, Value::Count(7))].into();
            }),
        ),
        (
            "the preset exceeds the maximum of the target",
            after(&|scene| {
                scene.declared.capped = [(SERVER, seconds(29)), (TOTAL, Value::Count(9))].into();
                scene.plan.desired = scene.declared.clone();
            }),
        ),
        ("the preset exceeds the maximum by one limit", after(&|scene| scene.declared.capped = [(SERVER, seconds(29))].into())),
        (
            "one limit has no place, another is unsupported",
            after(&|scene| {
                let settings = [(SERVER, seconds(30)), (TOTAL, Value::Count(9))];
                scene.desire(&settings);
                scene.declared.unsupported = [Limit::BackendTcpKeepAlive].into();
            }),
        ),
        (
            "the limits are tightened",
            after(&|scene| {
                scene.plan.desired.settings = [(SERVER, seconds(9))].into();
                (0..3).for_each(|n| scene.hold(n, 9));
            }),
        ),
        (
            "adaptive control is changing the limits",
            after(&|scene| {
                scene.hold(1, 20);
                let state = State { openness: 60, changes: vec![(0, Way::Tighten)], ..State::default() };
                scene.plan.outcome = Some(Look { phase: Phase::Holding, ..Look::unmoved(state) });
            }),
        ),
        (
            "a pod reports an older file",
            after(&|scene| {
                scene.traits.capability = |_| Capability::Reported(Reload::Hot);
                for (n, result) in scene.units.iter_mut().enumerate() {
                    result.state.as_mut().unwrap().nodes[0].uses = Some(n != 1);
                }
            }),
        ),
        (
            "many nodes hold other values",
            after(&|scene| {
                scene.units = (0..9).map(|n| holding(&format!("gateway-7f4c9d-node{n}"), &[(SERVER, seconds(60 + n))])).collect();
            }),
        ),
        (
            "a node holds nothing",
            after(&|scene| {
                let state = scene.units[1].state.as_mut().unwrap();
                state.nodes[0].stored = Ok([(SERVER, None)].into());
            }),
        ),
        (
            "one node of a cluster does not answer",
            after(&|scene| {
                let state = scene.units[1].state.as_mut().unwrap();
                state.nodes[0].stored = Err(Fault::new(Cause::Unreachable, "the proxy cannot reach gateway-7f4c9d-fghjk"));
            }),
        ),
        ("all servers close when they are programmed to", after(&|scene| scene.measure(&[Ok(30), Ok(30), Ok(30)]))),
        ("one server closes at another time", after(&|scene| scene.measure(&[Ok(300), Ok(30), Ok(30)]))),
        ("one server cannot be measured", after(&|scene| scene.measure(&[Ok(30), Err("cannot connect: refused"), Ok(30)]))),
        (
            "a new leader has not measured yet",
            after(&|scene| scene.measure(&[Ok(300), Ok(30), Ok(30)])).then(|scene| scene.probes = Some(Probes::new())),
        ),
    ];
    let text: String = situations.iter().map(|(title, scene)| told(title, scene)).collect();
    assert!(!text.contains('…'), "a line is cut: {text}");
    golden::check("tests/golden/status.txt", &text);
}

/// A step that waits for its verdict.
fn measuring(openness: u8) -> State {
    let episode = Episode { since: 0, from: 100, base: None, steps: 1, helped: None, failed: 0, learned: None };
    let (wait, before) = (120_000, 1.1);
    let pending =
        Pending { decided: 0, since: Some(0), wait, before, slope: 0.0, from: 100, to: openness, expected: None, life: None };
    State { openness, episode: Some(episode), pending: Some(pending), efficacy: Efficacy::Measuring, ..State::default() }
}

/// Each kind of pause.
const PAUSES: &[Pause] = &[
    Pause { all: Some(By::Suspend), ..Pause::NONE },
    Pause { all: Some(By::Unreadable("idleconn.io/paused")), ..Pause::NONE },
    Pause { all: Some(By::Annotation("idleconn.io/paused", None)), ..Pause::NONE },
    Pause {
        all: None,
        tighten: Some(By::Annotation("idleconn.io/paused-tighten", Some(Timestamp::constant(3600, 0)))),
        relax: Some(By::Annotation("idleconn.io/paused-relax", None)),
    },
    Pause { relax: Some(By::Annotation("idleconn.io/paused-relax", None)), ..Pause::NONE },
];

/// A step that is taken back because of its new connections.
fn harmful(requests: Option<f64>) -> Look {
    let rate = |connections| ConnectionRate { connections, requests, nodes: 12.0 };
    let lockout = Some(Lockout { until: 14_400_000, times: 0 });
    let state = State { openness: 26, efficacy: Efficacy::Harmful, lockout, rollback: Some(100), ..State::default() };
    Look {
        judged: Some(Judged { verdict: Verdict::Harmful, before: 1.12, after: 0.9 }),
        harm: Some(Harm { before: rate(8.0), after: rate(41.5) }),
        limit: Some(Restriction::Locked),
        phase: Phase::Holding,
        ..Look::unmoved(state)
    }
}

/// Everything that conditions and Events of adaptive control say, one line for each message.
fn adaptive_messages() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let mut report = |signal: &Signal, outcome: &Look, edit: &dyn Fn(&mut SeenLoop<'_>)| {
        let tuning = Tuning::of(Some(&Adaptive { mode: Mode::Enforce, ..Adaptive::default() }));
        let (floor, previous, mut status) =
            (BTreeMap::new(), IdleConnectionPolicyStatus::default(), IdleConnectionPolicyStatus::default());
        let attribution = Attribution { share: Share::UNKNOWN, bound: None };
        let mut seen = SeenLoop {
            tuning: &tuning,
            floor: &floor,
            signal,
            metric: Some("go_goroutines"),
            pause: &Pause::NONE,
            attribution,
            idle_connections: None,
            closes: false,
            reserves: false,
            levels: false,
            moved: false,
        };
        edit(&mut seen);
        let notices = write_adaptive_status(&seen, outcome, &BTreeMap::new(), &previous, &mut status, Timestamp::UNIX_EPOCH);
        lines.extend(status.conditions.iter().map(|c| format!("{}={}/{}: {}", c.type_, c.status, c.reason, c.message)));
        lines.extend(notices.iter().map(|notice| format!("Event {notice}")));
    };
    let plain = |_: &mut SeenLoop<'_>| {};
    let reading = Reading {
        up: 1.12,
        down: 1.12,
        fresh: 12,
        expected: 12,
        over: 2,
        max: Some(22_400.0),
        percentile: Some(22_400.0),
        threshold: Some(20_000.0),
        node: NODES[0].into(),
        tasks_over_threshold: vec![(NODES[0].into(), 22_400.0)],
        ..Reading::default()
    };
    let fresh = Signal::Fresh(reading.clone());
    let low = Signal::Fresh(Reading { up: 0.4, over: 0, percentile: Some(8000.0), ..reading.clone() });
    let unmoved = || Look::unmoved(State::default());
    let episode = Some(Episode { since: 0, from: 100, base: None, steps: 0, helped: None, failed: 0, learned: None });
    report(&low, &unmoved(), &plain);
    report(&fresh, &Look { state: State { episode, ..State::default() }, ..unmoved() }, &plain);
    report(&Signal::Fresh(Reading { idle_missing: Some(NODES[1].into()), ..reading.clone() }), &unmoved(), &plain);
    report(&Signal::Fresh(Reading { connections_missing: Some(NODES[1].into()), ..reading.clone() }), &unmoved(), &plain);
    report(&Signal::Fresh(Reading { requests_missing: Some(NODES[1].into()), ..reading.clone() }), &unmoved(), &plain);
    for (over, critical) in [(0, false), (3, false), (3, true)] {
        let alerts = Signal::Fresh(Reading { over, red: critical, ..reading.clone() });
        let state = State { episode: episode.filter(|_| over > 0), ..State::default() };
        report(&alerts, &Look { state, ..unmoved() }, &|seen| seen.levels = true);
    }
    for phase in Phase::iter() {
        report(&fresh, &Look { phase, state: State { openness: 26, ..State::default() }, ..unmoved() }, &plain);
    }
    let bound = |seen: &mut SeenLoop<'_>| {
        let most = [(NODES[0].to_owned(), 1900.0)].into();
        seen.attribution = Attribution::new(Some(&most), Some(&reading));
    };
    for limit in Restriction::iter().filter(|limit| *limit != Restriction::Paused) {
        for openness in [100, 26] {
            let lockout = (limit == Restriction::Locked).then_some(Lockout { until: 14_400_000, times: 0 });
            let state = State { openness, lockout, ..State::default() };
            let phase = if openness < 100 { Phase::Tightening } else { Phase::AsDeclared };
            report(&fresh, &Look { limit: Some(limit), phase, state, ..unmoved() }, &bound);
        }
    }
    for pause in PAUSES {
        report(&fresh, &unmoved(), &|seen| seen.pause = pause);
    }
    for wait in [Wait::Settling(60_000), Wait::FirstCounts(60_000), Wait::Verdict, Wait::FirstStep, Wait::NextStep] {
        report(&fresh, &Look { wait: Some(wait), ..unmoved() }, &plain);
    }
    for closes in [false, true] {
        let at_floor = Look { limit: Some(Restriction::AtFloor), state: measuring(0), ..unmoved() };
        report(&fresh, &at_floor, &|seen| seen.closes = closes);
    }
    let rollback = State { openness: 26, rollback: Some(100), ..State::default() };
    report(&fresh, &Look { state: rollback, phase: Phase::Holding, ..unmoved() }, &plain);
    let relaxing = Look { state: State { openness: 26, ..State::default() }, phase: Phase::Relaxing, ..unmoved() };
    report(&low, &relaxing, &|seen| seen.pause = &PAUSES[4]);
    let dropped = State { episode, watched: Watched { fast: 1.07, ..Watched::default() }, ..State::default() };
    report(&low, &Look { state: dropped, ..unmoved() }, &plain);
    let used_up = State { changes: (0..6).map(|n| (n * 1000, Way::Tighten)).collect(), ..State::default() };
    report(&fresh, &Look { limit: Some(Restriction::BudgetExhausted), state: used_up, ..unmoved() }, &plain);
    let nearly = State { changes: (0..3).map(|n| (n * 1000, Way::Tighten)).collect(), ..State::default() };
    report(&fresh, &Look { limit: Some(Restriction::BudgetExhausted), state: nearly, ..unmoved() }, &|seen| seen.reserves = true);
    let none = Signal::Missing { reason: Reason::NoSeries, message: format!("{} does not have the requested series", NODES[0]) };
    report(&none, &unmoved(), &plain);
    for efficacy in Efficacy::iter() {
        report(&fresh, &Look { state: State { efficacy, ..State::default() }, ..unmoved() }, &bound);
    }
    for outcome in [None, Some(400.0)].map(harmful) {
        report(&fresh, &outcome, &plain);
    }
    for (from, to, reason) in [
        (100, 70, step::Reason::High { pressure: Some(1.12), lasted: 120_000 }),
        (70, 0, step::Reason::High { pressure: None, lasted: 120_000 }),
        (26, 56, step::Reason::Low { pressure: Some(0.4), lasted: 900_000 }),
        (26, 56, step::Reason::Low { pressure: None, lasted: 900_000 }),
        (26, 100, step::Reason::Ineffective),
        (26, 100, step::Reason::PoolsTooSmall),
        (26, 100, step::Reason::Harmful),
        (26, 100, step::Reason::Withdrawn),
        (26, 100, step::Reason::SignalGone),
    ] {
        let decision = Some(Decision { from, to, reason, pressure: 1.12 });
        for (closes, connections) in [(false, None), (true, None), (true, Some(4300.0))] {
            report(&fresh, &Look { decision, ..unmoved() }, &|seen| {
                (seen.closes, seen.idle_connections) = (closes, connections);
            });
        }
    }
    for gap in NoSample::iter().flat_map(with_figures) {
        let sample = NodeSample { gap: Some(gap), ..NodeSample::default() };
        let samples = NODES.map(|node| (node.to_owned(), sample.clone())).into();
        report(&read(&samples, NODES, 95, Ages { most: 90_000, young: 0 }, 0), &unmoved(), &plain);
    }
    lines
}

/// A gap with figures and texts as they occur.
fn with_figures(gap: NoSample) -> Vec<NoSample> {
    vec![match gap {
        NoSample::TooLarge(_) => NoSample::TooLarge(8),
        NoSample::Status(_) => NoSample::Status(404),
        NoSample::Redirect(..) => return vec![NoSample::Redirect(301, None), NoSample::Redirect(307, Some("/metrics/".into()))],
        NoSample::Unauthorized(_) => NoSample::Unauthorized(403),
        NoSample::TooManySeries(_) => NoSample::TooManySeries(10_000),
        NoSample::NotGauge(_) => NoSample::NotGauge("counter"),
        NoSample::QueryFailed(_) => NoSample::QueryFailed(400),
        NoSample::QueryStatus(_) => NoSample::QueryStatus(503),
        NoSample::NotANumber(_) => NoSample::NotANumber("string"),
        other => other,
    }]
}

/// Every message of conditions and Events in one list, for review: those of the situations of status.txt, and those of adaptive control.
#[test]
fn every_message_is_in_one_list() {
    let status = golden::read("tests/golden/status.txt");
    let is_message =
        |line: &&str| line.starts_with("Event ") || ["=True/", "=False/", "=Unknown/"].iter().any(|part| line.contains(part));
    let mut lines: BTreeSet<String> = status.lines().filter(is_message).map(str::to_owned).collect();
    lines.extend(adaptive_messages());
    let mut text = String::new();
    for line in &lines {
        let message = line.split_once(": ").unwrap().1;
        let first = message.chars().next().unwrap();
        // A message may begin with a node's name or address.
        assert!(
            first.is_uppercase()
                || NODES.iter().any(|node| message.starts_with(node))
                || message.starts_with(|c: char| c.is_ascii_digit())
                || message.starts_with("http")
                || message.starts_with("spec."),
            "{line}"
        );
        assert!(!message.ends_with('.') && !message.contains('…') && !message.contains(" %"), "{line}");
        text.push_str(line);
        text.push('\n');
    }
    golden::check("tests/golden/messages.txt", &text);
}
