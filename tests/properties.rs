//! Invariants of adaptive control: a million evaluations with random signals, clocks, pauses and failures.

#![allow(clippy::unwrap_used, clippy::panic, clippy::missing_panics_doc, clippy::cast_precision_loss, missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use idleconn_operator::{
    api::{
        IdleConnectionPolicyStatus, Limit, LimitValues, Value,
        adaptive::{Adaptive as Spec, Behavior, Fallback, FallbackBehavior, Mode, NewConnections, Profile},
        conditions::Reason,
        guarded::ConnectionRate,
        limits::WITHIN,
        policy::DriftPolicy,
    },
    decide::{
        self, AdaptiveInput, Declared, Input, Lives, NewValue, Plan,
        adaptive::{
            config::Config,
            disturbance::Disturbance,
            driver::AdaptiveDriver,
            openness::{self, MARGIN},
            pause::{By, Pause},
            signal::{Reading, Signal},
            state::State,
            step::Verdict,
            tuning::Tuning,
        },
        order,
        originals::Saved,
    },
    simulate::{TRAITS, Virtual},
};

const LIVES: u64 = 1000;
const LOOKS: usize = 1000;

fn seconds(s: u64) -> Value {
    Value::Duration(Duration::from_secs(s))
}

/// Returns limits and floors that the API server would accept.
fn limits(random: &mut fastrand::Rng) -> (LimitValues, LimitValues) {
    let server = random.u64(6..600);
    let client = random.u64(2..server);
    let server_floor = random.u64(3..=server);
    let client_floor = random.u64(1..server_floor).min(client);
    let total = random.u32(10..5000);
    let host = random.u32(2..=total);
    let total_floor = random.u32(1..=total);
    let host_floor = random.u32(1..=host).min(total_floor);
    let declared = LimitValues::from([
        (Limit::ServerIdleTimeout, seconds(server)),
        (Limit::IntraClusterIdleConnTimeout, seconds(client)),
        (Limit::BackendMaxIdleConns, Value::Count(total)),
        (Limit::BackendMaxIdleConnsPerHost, Value::Count(host)),
        (Limit::BackendTcpKeepAlive, seconds(60)),
    ]);
    let floor = LimitValues::from([
        (Limit::ServerIdleTimeout, seconds(server_floor)),
        (Limit::IntraClusterIdleConnTimeout, seconds(client_floor)),
        (Limit::BackendMaxIdleConns, Value::Count(total_floor)),
        (Limit::BackendMaxIdleConnsPerHost, Value::Count(host_floor)),
    ]);
    (declared, floor)
}

fn tuning(random: &mut fastrand::Rng) -> Tuning {
    let profile = [Profile::Conservative, Profile::Balanced, Profile::Aggressive][random.usize(0..3)];
    let behavior = FallbackBehavior::Declared;
    let fallback = random.bool().then(|| Fallback { behavior, ..Fallback::default() });
    let behavior = Behavior {
        profile,
        tighten_after: random.bool().then(|| Duration::from_secs(random.u64(1..200)).into()),
        relax_after: random.bool().then(|| Duration::from_secs(random.u64(1..900)).into()),
        max_changes_per_hour: random.bool().then(|| random.u32(1..10)),
        max_changes_per_day: None,
        relax_step_percent: random.bool().then(|| random.u32(1..100)),
    };
    Tuning::of(Some(&Spec { mode: Mode::Enforce, fallback, behavior: Some(behavior), ..Spec::default() }))
}

struct World {
    random: fastrand::Rng,
    seed: u64,
    declared: Declared,
    floor: LimitValues,
    tuning: Tuning,
    nodes: Virtual,
    saved: BTreeMap<String, Saved>,
    state: State,
    status: IdleConnectionPolicyStatus,
    now: i64,
    jumps: bool,
    pressure: f64,
    /// Number of steps that were judged harmful.
    harmful: usize,
    /// Time of each decision, with the openness before and after.
    decided: Vec<(i64, u8, u8)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let (declared, floor) = limits(&mut random);
        let tuning = tuning(&mut random);
        let nodes = Virtual::new(&declared);
        Self {
            jumps: random.u8(0..4) == 0,
            random,
            seed,
            declared: Declared { settings: declared, ..Declared::default() },
            floor,
            tuning,
            saved: nodes.saved(),
            nodes,
            state: State::default(),
            status: IdleConnectionPolicyStatus { observed_generation: Some(1), ..IdleConnectionPolicyStatus::default() },
            now: 1_700_000_000_000,
            pressure: 0.5,
            harmful: 0,
            decided: Vec::new(),
        }
    }

    fn signal(&mut self) -> Signal {
        let step = self.random.f64();
        self.pressure = match self.random.u8(0..100) {
            0 => 3.0 * step,
            1 => 1e6 * step,
            2 => 0.0,
            _ => (self.pressure + 0.2 * (step - 0.5)).clamp(0.0, 3.0),
        };
        if self.random.u8(0..20) == 0 {
            return Signal::Missing { reason: Reason::BelowQuorum, message: String::new() };
        }
        let down = if self.random.u8(0..5) == 0 { self.pressure.max(1.0) } else { self.pressure };
        Signal::Fresh(Reading {
            up: self.pressure,
            down,
            fresh: 3,
            expected: 4,
            red: self.random.u8(0..50) == 0,
            files_share: (self.random.u8(0..4) == 0).then(|| self.random.f64()),
            idle_share: (self.random.u8(0..4) == 0).then(|| self.random.f64()),
            youngest: (self.random.u8(0..3) == 0).then(|| self.random.i64(0..100_000_000)),
            mean: self.pressure,
            rate: self.rate(),
            ..Reading::default()
        })
    }

    /// New connections, which are sometimes unknown, and sometimes become very frequent.
    fn rate(&mut self) -> Option<ConnectionRate> {
        let busy = if self.state.openness < 50 { 60.0 } else { 10.0 };
        let connections = if self.random.u8(0..100) == 0 { 1e12 } else { busy * self.random.f64() };
        let requests = self.seed.is_multiple_of(2).then(|| 100.0 * self.random.f64());
        (self.random.u8(0..10) != 0).then_some(ConnectionRate { connections, requests, nodes: 3.0 })
    }

    fn look(&mut self) {
        self.now += match self.random.u8(0..200) {
            0 if self.jumps => 3_600_000,
            1 if self.jumps => -3_600_000,
            2 => 600_000,
            _ => self.random.i64(500..30_000),
        };
        let signal = self.signal();
        let mut paused = || (self.random.u8(0..10) == 0).then_some(By::Annotation("idleconn.io/paused", None));
        let pause = Pause { all: None, tighten: paused(), relax: paused() };
        let levels = self.seed.is_multiple_of(7);
        let disturbance = self.seed.is_multiple_of(3).then_some(Disturbance { settle: 2_000, longest_idle: 300_000 });
        let new = NewConnections { metric: "opened".into(), match_labels: BTreeMap::new(), max_per_second: 20, requests: None };
        let guard = (!self.seed.is_multiple_of(5)).then_some(new);
        let units = [(self.nodes.unit.clone(), self.nodes.state.clone())];
        let config = Config {
            pause: pause.clone(),
            levels,
            disturbance,
            guard: guard.clone(),
            ..Config::plain(self.declared.settings.clone(), self.floor.clone(), self.tuning.clone())
        };
        let plan = |state: &State| -> Plan {
            // The process has observed the nodes since the beginning.
            let driver = AdaptiveDriver::new(config.clone(), state.clone(), None, 0);
            decide::decide(&Input {
                generation: Some(1),
                suspend: false,
                drift_policy: DriftPolicy::Correct,
                declared: &self.declared,
                traits: &TRAITS,
                units: &units,
                saved: &self.saved,
                held: &BTreeMap::new(),
                restarted: &BTreeSet::new(),
                lives: &Lives::new(),
                waiting: false,
                previous: &self.status,
                adaptive: Some(AdaptiveInput { driver: &driver, signal: &signal, now: self.now }),
                now: jiff::Timestamp::from_millisecond(self.now).unwrap(),
            })
        };
        let done = plan(&self.state);
        assert_eq!(done, plan(&self.state), "the same, decided twice");
        // After encoding and decoding, with the observed part carried over, the state continues in the same way.
        let written = serde_json::to_string(&self.state).unwrap();
        let resumed = State { watched: self.state.watched.clone(), ..serde_json::from_str(&written).unwrap() };
        assert_eq!(resumed, self.state, "written down and read back");
        assert_eq!(done, plan(&resumed));

        let outcome = done.outcome.as_ref().unwrap();
        assert!(outcome.state.openness <= 100);
        assert_eq!(outcome.harm.is_some(), outcome.judged.is_some_and(|judged| judged.verdict == Verdict::Harmful));
        if let Some(harm) = &outcome.harm {
            self.harmful += 1;
            assert!(guard.is_some() && harm.after.connections > 20.0, "{harm:?}");
            assert!(outcome.state.lockout.is_some_and(|lockout| lockout.until > self.now) && outcome.state.pending.is_none());
            assert!(outcome.decision.is_some_and(|decision| decision.to > decision.from) || outcome.state.rollback.is_some());
        }
        assert!(outcome.state.guarded.is_none() || guard.is_some(), "guarded without a counter");
        if let Some(decision) = &outcome.decision {
            let tightens = decision.to < decision.from;
            assert_ne!(decision.from, decision.to);
            assert_eq!(decision.to, outcome.state.openness);
            assert!(!(tightens && pause.stops_tightening()) && (tightens || !pause.stops_relaxing()), "paused");
            let missing = matches!(signal, Signal::Missing { .. });
            assert!(!missing || (!tightens && self.tuning.fallback_relaxes), "decided blindly");
            self.budget(decision.from, decision.to);
        }
        // Now and then a node does not accept the write.
        let takes = self.random.u8(0..10) != 0;
        for unit in done.units.values().filter(|_| takes) {
            for part in order::parts(&unit.changes, &self.nodes.state.clone(), &TRAITS) {
                assert!(
                    part.iter().all(|change| matches!(change.to, NewValue::Value(_))),
                    "nothing is put back while all is declared"
                );
                self.nodes.write(&part);
                self.holds();
            }
        }
        self.state = done.outcome.unwrap().state;
    }

    fn budget(&mut self, from: u8, to: u8) {
        let now = self.now;
        let last = self.decided.last().filter(|(_, old_from, old_to)| !self.jumps && (old_to < old_from) != (to < from));
        if let Some((before, old_from, _)) = last {
            let drain = openness::longest_idle(&self.declared.settings, &self.floor, *old_from);
            assert!(u128::try_from(now - before).unwrap() >= 2 * drain.as_millis(), "turned around inside the dead time");
        }
        self.decided.push((now, from, to));
        let within = |span: i64| self.decided.iter().filter(|(time, ..)| now - time < span - 1000).count();
        if !self.jumps {
            assert!(within(3_600_000) <= self.tuning.per_hour as usize, "changes in an hour");
            assert!(within(86_400_000) <= self.tuning.per_day as usize, "changes in a day");
        }
    }

    /// Checks the invariants after every write.
    fn holds(&self) {
        let now = self.nodes.settings();
        for (limit, value) in &now {
            let declared = &self.declared.settings[limit];
            assert!(value <= declared && *value >= self.floor.get(limit).copied().unwrap_or(*declared), "{limit} is {value}");
        }
        for (part, whole) in WITHIN {
            if let (Some(part), Some(whole)) = (now.get(&part), now.get(&whole)) {
                assert!(part <= whole, "{part} of {whole}");
            }
        }
        let (Value::Duration(client), Value::Duration(server)) =
            (now[&Limit::IntraClusterIdleConnTimeout], now[&Limit::ServerIdleTimeout])
        else {
            unreachable!()
        };
        assert!(client + MARGIN <= server, "the client holds for {client:?} and the server for {server:?}");
    }
}

#[test]
fn whatever_happens() {
    let (mut decisions, mut harmful) = (0, 0);
    for seed in 0..LIVES {
        let mut world = World::new(seed);
        for look in 0..LOOKS {
            let guarded = std::panic::AssertUnwindSafe(|| world.look());
            if let Err(panic) = std::panic::catch_unwind(guarded) {
                eprintln!("seed {seed}, look {look}");
                std::panic::resume_unwind(panic);
            }
        }
        decisions += world.decided.len();
        harmful += world.harmful;
    }
    println!("{} looks, {decisions} decisions, {harmful} harmful steps", LIVES * LOOKS as u64);
    assert!(harmful >= 5, "the guard has nothing to do: {harmful} harmful steps");
    assert!(decisions > 1000, "the worlds are too quiet: {decisions} decisions");
}

/// A clock that jumps an hour forward or back at any time does not cause a decision.
#[test]
fn a_clock_that_jumps_moves_nothing() {
    for seed in 0..2000 {
        let mut world = World::new(seed);
        world.jumps = true;
        for _ in 0..100 {
            world.look();
        }
        for jump in [3_600_000, -3_600_000] {
            let facts = decide::adaptive::step::Facts::undisturbed(&world.declared.settings, &world.floor);
            for pressure in [0.1, 2.0] {
                let signal = Signal::Fresh(Reading { up: pressure, down: pressure, fresh: 4, expected: 4, ..Reading::default() });
                // A decision that was due before the jump is due after it. A window that was still running has not ended.
                let state = State {
                    watched: decide::adaptive::state::Watched {
                        high_for: 0,
                        low_for: 0,
                        floor_for: 0,
                        ..world.state.watched.clone()
                    },
                    pending: None,
                    rollback: None,
                    ..world.state.clone()
                };
                let outcome = decide::adaptive::step::step(&world.tuning, &facts, &state, &signal, world.now + jump);
                assert_eq!(outcome.decision, None, "seed {seed}, {jump} ms, {pressure}");
            }
        }
    }
}
