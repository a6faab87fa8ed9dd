//! Simulation suite: the decision code with model servers, and many seeds for each. Every figure is printed and checked.
//!
//! `IDLECONN_GENERATE=1` writes the figures into docs/control-law.md.

#![allow(clippy::unwrap_used, clippy::panic, clippy::missing_panics_doc, clippy::cast_precision_loss, missing_docs)]

use std::{collections::BTreeMap, fmt::Write as _, path::Path, sync::Mutex};

use idleconn_operator::{
    api::adaptive::{Adaptive, Mode, NewConnections, RequestCounter},
    decide::adaptive::{
        config::Config,
        disturbance::Disturbance,
        openness::{self, Percent},
        tuning::Tuning,
    },
    simulate::{
        self, Decided, Handover, Run, Summary,
        plant::{Counters, Kind, Model, Plant, UNMANAGED_IDLE, policy},
    },
};

const SEEDS: u64 = 40;
const NODES: usize = 8;

fn config() -> Config {
    let (declared, floor) = policy();
    let adaptive = Adaptive { mode: Mode::Enforce, ..Adaptive::default() };
    Config::plain(declared, floor, Tuning::of(Some(&adaptive)))
}

/// Runs on a server whose writes close all idle connections, including pools that the policy does not manage. `knows` says
/// whether adaptive control knows this.
fn reloads(kind: Kind, knows: bool) -> Vec<Run> {
    #[allow(clippy::cast_possible_truncation)] // Minutes.
    let longest_idle = (UNMANAGED_IDLE * 1000.0) as i64;
    let config = Config { disturbance: knows.then_some(Disturbance { settle: 0, longest_idle }), ..config() };
    let run = |seed| {
        let mut plant = Model::new(kind, seed, NODES, false, &config.declared.settings).flushing();
        simulate::run(&config, &mut plant, hours(kind) * 3600, None)
    };
    (0..SEEDS).map(run).collect()
}

const fn hours(kind: Kind) -> i64 {
    if matches!(kind, Kind::Daily) { 24 } else { 6 }
}

fn one(kind: Kind, seed: u64, informed: bool, handover: Option<Handover>) -> Run {
    let config = config();
    let mut plant = Model::new(kind, seed, NODES, informed, &config.declared.settings);
    simulate::run(&config, &mut plant, hours(kind) * 3600, handover)
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<_> = values.into_iter().collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// A naive rule for comparison: ten points down while there are too many tasks, otherwise ten points up, at every
/// evaluation. It reads a missing count as zero.
fn threshold_rule(config: &Config, plant: &mut dyn Plant, seconds: i64) -> Summary {
    let interval = (config.tuning.interval / 1000).max(1);
    let mut openness: Percent = 100;
    let mut decisions = Vec::new();
    let mut over = 0;
    let mut time = 0;
    while time < seconds {
        plant.step(time, interval, &openness::at(&config.declared.settings, &config.floor, openness));
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
    Summary::of(&decisions, over, openness, String::new())
}

/// Runs of all seeds of a model, with those of the plain rule for comparison.
struct Batch {
    runs: Vec<Run>,
    naive: Vec<Summary>,
}

impl Batch {
    fn of(kind: Kind, informed: bool) -> Self {
        let config = config();
        let runs: Vec<_> = (0..SEEDS).map(|seed| one(kind, seed, informed, None)).collect();
        let naive: Vec<_> = (0..SEEDS)
            .map(|seed| {
                threshold_rule(&config, &mut Model::new(kind, seed, NODES, false, &config.declared.settings), hours(kind) * 3600)
            })
            .collect();
        let batch = Self { runs, naive };
        batch.show(kind, informed);
        batch
    }

    fn mean(&self, value: fn(&Summary) -> f64) -> f64 {
        mean(self.runs.iter().map(|run| value(&run.summary)))
    }

    fn most(&self, value: fn(&Summary) -> usize) -> usize {
        self.runs.iter().map(|run| value(&run.summary)).max().unwrap()
    }

    fn ended(&self, verdicts: &[&str]) -> usize {
        self.runs.iter().filter(|run| verdicts.contains(&run.summary.verdict.as_str())).count()
    }

    fn blind(&self) -> usize {
        self.runs.iter().map(|run| run.blind).sum()
    }

    fn show(&self, kind: Kind, informed: bool) {
        let naive = |value: fn(&Summary) -> f64| mean(self.naive.iter().map(value));
        let row = format!(
            "| {} | {} | {:.1} (most {}) | {:.1} (most {}) | {:.0} | {} | {} | {:.0} / {:.0} / {:.0} |",
            kind.name(),
            if informed { "±50%" } else { "unknown" },
            self.mean(|s| s.changes as f64),
            self.most(|s| s.changes),
            self.mean(|s| s.reversals as f64),
            self.most(|s| s.reversals),
            self.mean(|s| s.minutes_over_threshold),
            self.ended(&["Ineffective"]),
            self.ended(&["PoolsTooSmall"]),
            naive(|s| s.changes as f64),
            naive(|s| s.reversals as f64),
            naive(|s| s.minutes_over_threshold),
        );
        println!("{row}");
        generated("plants", &format!("{} {informed}", kind.name()), &row);
    }
}

/// Writes rows between two markers of docs/control-law.md if `IDLECONN_GENERATE` is set.
fn generated(table: &str, key: &str, row: &str) {
    static ROWS: Mutex<BTreeMap<(String, String), String>> = Mutex::new(BTreeMap::new());
    if std::env::var_os("IDLECONN_GENERATE").is_none() {
        return;
    }
    let mut rows = ROWS.lock().unwrap();
    rows.insert((table.to_owned(), key.to_owned()), row.to_owned());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/control-law.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {table} -->\n"), format!("<!-- /{table} -->"));
    let (head, rest) = text.split_once(&begin).unwrap();
    let (old, tail) = rest.split_once(&end).unwrap();
    let heading: String = old.lines().take(2).fold(String::new(), |text, line| text + line + "\n");
    let body: String = rows.iter().filter(|((t, _), _)| t == table).fold(String::new(), |text, (_, row)| text + row + "\n");
    std::fs::write(&path, format!("{head}{begin}{heading}{body}{end}{tail}")).unwrap();
}

#[test]
fn a_burst_takes_few_changes_and_one_reversal() {
    for informed in [false, true] {
        let batch = Batch::of(Kind::Burst, informed);
        assert!(batch.most(|s| s.changes) <= 10, "changes");
        assert!(batch.most(|s| s.reversals) <= 1, "reversals");
        assert_eq!(batch.ended(&["Ineffective", "PoolsTooSmall"]), 0, "falsely given up");
        assert!(batch.mean(|s| s.minutes_over_threshold) < 10.0);
        assert!(batch.runs.iter().all(|run| run.summary.final_openness_percent == 100), "not all relaxed again");
        assert!(mean(batch.naive.iter().map(|s| s.changes as f64)) > 100.0, "the plain rule has become a good one");
    }
}

#[test]
fn a_ramp_is_followed_and_never_given_up() {
    for informed in [false, true] {
        let batch = Batch::of(Kind::Ramp, informed);
        assert!(batch.most(|s| s.changes) <= 12);
        assert!(batch.most(|s| s.reversals) <= 3);
        assert_eq!(batch.ended(&["Ineffective", "PoolsTooSmall"]), 0, "falsely given up");
        assert!(batch.mean(|s| s.minutes_over_threshold) < 15.0);
    }
}

#[test]
fn noise_is_let_be() {
    for informed in [false, true] {
        let batch = Batch::of(Kind::Noise, informed);
        assert!(batch.most(|s| s.changes) <= 2, "changes");
        assert!(batch.most(|s| s.reversals) <= 1);
        assert_eq!(batch.ended(&["Ineffective", "PoolsTooSmall"]), 0, "falsely given up");
    }
}

#[test]
fn a_day_and_a_night_stay_within_the_budget() {
    for informed in [false, true] {
        let batch = Batch::of(Kind::Daily, informed);
        assert!(batch.most(|s| s.changes) <= 24);
        assert!(batch.mean(|s| s.minutes_over_threshold) < 20.0);
        assert_eq!(batch.ended(&["Ineffective", "PoolsTooSmall"]), 0, "falsely given up");
    }
}

#[test]
fn tasks_that_pools_do_not_hold_are_named_and_the_limits_go_back() {
    for informed in [false, true] {
        let batch = Batch::of(Kind::Leak, informed);
        let named = batch.ended(&["Ineffective", "PoolsTooSmall"]);
        assert!(named * 100 >= batch.runs.len() * 95, "named in {named} of {}", batch.runs.len());
        for run in &batch.runs {
            // The limits are back at the openness at the start, or at the last step that lowered the task count.
            let helped = run.decisions.iter().rfind(|d| d.verdict.as_deref() == Some("Effective")).map_or(100, |d| d.to_percent);
            let last = run.decisions.last().unwrap();
            assert!(run.summary.final_openness_percent >= helped, "{:#?}", run.decisions);
            assert!(!last.tightens() || last.to_percent == helped, "{:#?}", run.decisions);
        }
    }
}

#[test]
fn what_can_be_helped_is_not_given_up() {
    let mut given_up = 0;
    let mut all = 0;
    for kind in [Kind::Mixed, Kind::MixedHalf] {
        for informed in [false, true] {
            let batch = Batch::of(kind, informed);
            given_up += batch.ended(&["Ineffective", "PoolsTooSmall"]);
            all += batch.runs.len();
            assert!(batch.mean(|s| s.minutes_over_threshold) < 15.0);
            assert!(batch.most(|s| s.changes) <= 12);
        }
    }
    println!("feasible mixes given up: {given_up} of {all}");
    assert!(given_up * 1000 <= all * 25, "{given_up} of {all}");
}

#[test]
fn nothing_moves_the_wrong_way_in_the_dark() {
    for kind in [Kind::Gap, Kind::Outage] {
        for informed in [false, true] {
            let batch = Batch::of(kind, informed);
            assert_eq!(batch.blind(), 0, "steps without a quorum");
            assert!(batch.most(|s| s.changes) <= 10);
            assert!(batch.most(|s| s.reversals) <= 1);
        }
    }
    for kind in [Kind::Gap, Kind::Outage] {
        for seed in 0..SEEDS {
            let run = one(kind, seed, false, None);
            assert_eq!(wrong(&run), [].as_slice(), "{} seed {seed}", kind.name());
        }
    }
}

/// Steps in the wrong direction: a relaxing with hardly any room, or a tightening with room.
fn wrong(run: &Run) -> Vec<Decided> {
    let truth = |time| run.points.iter().find(|point| point.time == time).map_or(f64::NAN, |point| point.truth);
    run.decisions.iter().filter(|d| if d.tightens() { truth(d.time) < 0.8 } else { truth(d.time) > 0.9 }).cloned().collect()
}

#[test]
fn restarts_and_another_controller_do_not_make_it_swing() {
    for kind in [Kind::Storm, Kind::Controllers] {
        for informed in [false, true] {
            let batch = Batch::of(kind, informed);
            assert!(batch.most(|s| s.changes) <= 10);
            assert!(batch.most(|s| s.reversals) <= 1);
        }
    }
}

/// Number of runs with a step that got this verdict.
fn judged(runs: &[Run], verdict: &str) -> usize {
    runs.iter().filter(|run| run.decisions.iter().any(|d| d.verdict.as_deref() == Some(verdict))).count()
}

#[test]
fn a_reload_is_not_taken_for_an_effect() {
    for kind in [Kind::Busy, Kind::Leak, Kind::Mixed, Kind::MixedHalf, Kind::Burst, Kind::Ramp] {
        let (told, untold) = (reloads(kind, true), reloads(kind, false));
        let effective = judged(&told, "Effective");
        let given_up = told.iter().filter(|run| ["Ineffective", "PoolsTooSmall"].contains(&run.summary.verdict.as_str())).count();
        let most = |value: fn(&Summary) -> usize| told.iter().map(|run| value(&run.summary)).max().unwrap();
        let over = mean(told.iter().map(|run| run.summary.minutes_over_threshold));
        let row = format!(
            "| {} | {effective} of {SEEDS} | {given_up} of {SEEDS} | {} | {} | {over:.0} | {} of {SEEDS} |",
            kind.name(),
            most(|s| s.changes),
            most(|s| s.reversals),
            judged(&untold, "Effective"),
        );
        println!("reload {row}");
        generated("reload", kind.name(), &row);
        let back = told.iter().filter(|run| run.summary.final_openness_percent == 100).count();
        match kind {
            // Tightening has no lasting effect: adaptive control never claims one, and takes the limits back. It tries again
            // hours later.
            Kind::Busy | Kind::Leak => {
                let undone = |run: &&Run| run.decisions.iter().any(|d| d.to_percent == 100);
                assert_eq!((effective, given_up, told.iter().filter(undone).count()), (0, 40, 40), "{}", kind.name());
            }
            Kind::Mixed | Kind::MixedHalf => {
                assert!(effective >= 39 && given_up == 0 && over < 15.0 && most(|s| s.changes) <= 12, "{}", kind.name());
            }
            Kind::Burst => {
                assert!(effective >= 39 && given_up == 0 && back == 40 && over < 10.0);
                assert!(most(|s| s.changes) <= 10 && most(|s| s.reversals) <= 1);
            }
            _ => {
                assert!(given_up == 0 && over < 15.0);
                assert!(most(|s| s.changes) <= 12 && most(|s| s.reversals) <= 3);
            }
        }
    }
}

/// A server with counters of new connections.
struct Counted {
    kind: Kind,
    /// How many times as many connections a request opens under tightened limits.
    growth: f64,
    /// Whether requests are counted, too.
    requests: bool,
    /// Whether each write closes all connections.
    flushes: bool,
    /// Whether another process takes over while the first step is being measured.
    handover: bool,
}

impl Counted {
    const fn new(kind: Kind, growth: f64, requests: bool) -> Self {
        Self { kind, growth, requests, flushes: false, handover: false }
    }

    const fn flushing(self) -> Self {
        Self { flushes: true, ..self }
    }

    const fn handed_over(self) -> Self {
        Self { handover: true, ..self }
    }

    /// Runs with a guard that allows 20 new connections per second.
    fn runs(&self) -> Vec<Run> {
        let requests = RequestCounter { metric: "requests".into(), match_labels: BTreeMap::new() };
        let guard = NewConnections {
            metric: "opened".into(),
            match_labels: BTreeMap::new(),
            max_per_second: 20,
            requests: self.requests.then_some(requests),
        };
        #[allow(clippy::cast_possible_truncation)] // Minutes.
        let longest_idle = (UNMANAGED_IDLE * 1000.0) as i64;
        let disturbance = self.flushes.then_some(Disturbance { settle: 0, longest_idle });
        let config = Config { guard: Some(guard), disturbance, ..config() };
        let run = |seed, handover| {
            let counters = Counters { growth: self.growth, requests: self.requests };
            let plant = Model::new(self.kind, seed, NODES, false, &config.declared.settings).counting(counters);
            let mut plant = if self.flushes { plant.flushing() } else { plant };
            simulate::run(&config, &mut plant, hours(self.kind) * 3600, handover)
        };
        let first = |run: &Run| run.decisions.first().map(|step| Handover { at: step.time + 60, gap: 60 });
        let handed = |seed| if self.handover { run(seed, first(&run(seed, None))) } else { run(seed, None) };
        (0..SEEDS).map(handed).collect()
    }

    /// Runs, and returns in how many of them a step was judged harmful.
    fn harmful(&self) -> (usize, Vec<Run>) {
        let Self { kind, growth, requests, flushes, handover } = self;
        let runs = self.runs();
        let harmful = judged(&runs, "Harmful");
        println!(
            "guard | {} | {growth} times | requests {requests} | flushes {flushes} | handover {handover} | {harmful} of {SEEDS}",
            kind.name()
        );
        (harmful, runs)
    }
}

#[test]
fn a_step_that_makes_new_connections_too_frequent_is_taken_back() {
    for case in [
        Counted::new(Kind::Mixed, 2.6, false),
        Counted::new(Kind::Mixed, 2.6, true),
        Counted::new(Kind::Mixed, 2.6, true).flushing(),
        Counted::new(Kind::MixedHalf, 2.6, false).handed_over(),
        Counted::new(Kind::Burst, 2.6, true),
    ] {
        let (harmful, runs) = case.harmful();
        assert!(harmful >= 39, "{harmful}");
        for run in &runs {
            let Some(at) = run.decisions.iter().position(|step| step.verdict.as_deref() == Some("Harmful")) else { continue };
            let back = run.decisions[at + 1..].iter().find(|step| !step.tightens()).unwrap();
            assert_eq!(back.reason, "tightening made new connections more than twice as frequent");
            let again = run.decisions.iter().find(|step| step.tightens() && step.time > back.time);
            assert!(again.is_none_or(|step| step.time >= back.time + 4 * 3600), "during the lock-out: {:#?}", run.decisions);
        }
    }
}

#[test]
fn no_other_step_is_taken_for_harmful() {
    for case in [
        Counted::new(Kind::Mixed, 1.0, false),
        Counted::new(Kind::MixedHalf, 1.0, false).flushing(),
        Counted::new(Kind::Mixed, 1.0, false).handed_over(),
        Counted::new(Kind::Mixed, 1.6, true),
        // Whatever the load does, each request opens as many connections as before.
        Counted::new(Kind::Burst, 1.0, true),
        Counted::new(Kind::Burst, 1.0, true).flushing(),
        Counted::new(Kind::Ramp, 1.0, true),
        Counted::new(Kind::Storm, 1.0, true),
        Counted::new(Kind::Outage, 1.0, true),
        Counted::new(Kind::Leak, 1.0, true),
    ] {
        assert_eq!(case.harmful().0, 0);
    }
}

/// A new leader continues from the status and starts to observe. A decision may be delayed by up to the leader's own window, and
/// no decision in the wrong direction is added.
#[test]
fn a_new_leader_decides_later_and_never_the_wrong_way() {
    const GAP: i64 = 60;
    for kind in Kind::ALL {
        let (mut misled, mut same, mut latest) = (0, 0, 0);
        for seed in 0..SEEDS {
            let at = 1800 + i64::try_from(seed).unwrap() * 450;
            let plain = one(kind, seed, false, None);
            let run = one(kind, seed, false, Some(Handover { at, gap: GAP }));
            let before = plain.decisions.iter().filter(|d| d.time < at).count();
            assert_eq!(plain.decisions[..before], run.decisions[..before], "the past changed");
            assert_eq!(run.blind, 0, "{} seed {seed}", kind.name());
            misled += usize::from(wrong(&run).len() > wrong(&plain).len());
            let next = plain.decisions.get(before).zip(run.decisions.get(before));
            let same_way = next.filter(|(a, b)| a.tightens() == b.tightens());
            same += usize::from(same_way.is_some() || plain.decisions.len() == before);
            latest = latest.max(same_way.map_or(0, |(a, b)| b.time - a.time));
            if matches!(kind, Kind::Burst | Kind::Gap | Kind::Outage) {
                assert_eq!(wrong(&run), [].as_slice(), "{} seed {seed}", kind.name());
                assert!(run.summary.reversals <= 1, "{} seed {seed}", kind.name());
            }
        }
        let row = format!("| {} | {same} of {SEEDS} | {latest} s | {misled} |", kind.name());
        println!("new leader {row}");
        generated("handover", kind.name(), &row);
        assert_eq!(misled, 0, "{}", kind.name());
    }
}

#[test]
fn what_is_written_down_stays_small() {
    let mut longest = 0;
    for kind in Kind::ALL {
        longest = longest.max(one(kind, 1, true, None).written);
    }
    let mut text = String::new();
    let _ = writeln!(text, "longest state written down: {longest} bytes");
    println!("{text}");
    assert!(longest <= 1024);
}
