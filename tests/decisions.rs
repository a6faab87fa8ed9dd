//! Decisions and conditions of adaptive control on every model server, as readable text: tests/golden/loop/.
//!
//! A changed rule shows here as a changed course. `make generate` writes the files; review the differences.

#![allow(clippy::unwrap_used, clippy::panic, clippy::missing_panics_doc, missing_docs)]

#[path = "golden/mod.rs"]
mod golden;

use std::{collections::BTreeMap, fmt::Write as _};

use idleconn_operator::{
    api::adaptive::{Adaptive, Behavior, Fallback, FallbackBehavior, Mode, NewConnections, Profile, RequestCounter},
    decide::adaptive::{config::Config, tuning::Tuning},
    simulate::{
        self, Handover, Run,
        plant::{Counters, Kind, Model, policy},
    },
};

const SEED: u64 = 2;
const NODES: usize = 8;

fn adaptive(mode: Mode, profile: Profile) -> Adaptive {
    Adaptive { mode, behavior: Some(Behavior { profile, ..Behavior::default() }), ..Adaptive::default() }
}

fn balanced() -> Adaptive {
    adaptive(Mode::Enforce, Profile::Balanced)
}

/// Course of one run from its start to its end.
fn course(title: &str, kind: Kind, adaptive: &Adaptive, informed: bool, handover: Option<Handover>) -> String {
    let (declared, floor) = policy();
    let config = Config::plain(declared.clone(), floor, Tuning::of(Some(adaptive)));
    let hours = if kind == Kind::Daily { 24 } else { 6 };
    let run = simulate::run(&config, &mut Model::new(kind, SEED, NODES, informed, &declared), hours * 3600, handover);
    told(title, run)
}

/// Text of a run.
fn told(title: &str, run: Run) -> String {
    let mut text = format!("# {title}\n");
    let mut lines: Vec<_> = run.told.into_iter().map(|told| (told.time, told.line)).collect();
    for step in &run.decisions {
        let verdict = step.verdict.as_deref().map_or(String::new(), |verdict| format!(" ({verdict})"));
        lines.push((step.time, format!("{}% -> {}%: {}{verdict}", step.from_percent, step.to_percent, step.reason)));
    }
    lines.sort_by_key(|(time, _)| *time);
    for (time, line) in lines {
        let _ = writeln!(text, "{:>2}:{:02}:{:02} {line}", time / 3600, time % 3600 / 60, time % 60);
    }
    let simulate::Summary { changes, reversals, minutes_over_threshold, final_openness_percent, verdict } = run.summary;
    let _ = writeln!(
        text,
        "{changes} changes, {reversals} reversals, {minutes_over_threshold:.0} min over, {final_openness_percent}% in the end, {verdict}\n"
    );
    text
}

/// Course on a server with counters, on which tightened limits open `growth` times as many connections for each request.
fn guarded(title: &str, growth: f64, requests: bool) -> String {
    let (declared, floor) = policy();
    let counter = RequestCounter { metric: "requests".into(), match_labels: BTreeMap::new() };
    let guard = NewConnections {
        metric: "opened".into(),
        match_labels: BTreeMap::new(),
        max_per_second: 20,
        requests: requests.then_some(counter),
    };
    let config = Config { guard: Some(guard), ..Config::plain(declared.clone(), floor, Tuning::of(Some(&balanced()))) };
    let mut plant = Model::new(Kind::Mixed, SEED, NODES, false, &declared).counting(Counters { growth, requests });
    told(title, simulate::run(&config, &mut plant, 6 * 3600, None))
}

fn hold(name: &str, text: &str) {
    golden::check(&format!("tests/golden/loop/{name}.txt"), text);
}

#[test]
fn every_plant_takes_the_course_that_was_reviewed() {
    for kind in Kind::ALL {
        let text = course("the pools' share is unknown", kind, &balanced(), false, None)
            + &course("the pools' share is known to half", kind, &balanced(), true, None);
        hold(kind.name(), &text);
    }
}

#[test]
fn so_does_every_way_to_behave() {
    let text = course("Conservative", Kind::Burst, &adaptive(Mode::Enforce, Profile::Conservative), false, None)
        + &course("Aggressive", Kind::Burst, &adaptive(Mode::Enforce, Profile::Aggressive), false, None)
        + &course("Recommend", Kind::Burst, &adaptive(Mode::Recommend, Profile::Balanced), false, None)
        + &course("Disabled", Kind::Burst, &adaptive(Mode::Disabled, Profile::Balanced), false, None);
    hold("behaviour", &text);
}

#[test]
fn so_does_a_harmful_step() {
    let text = guarded("2.6 times as many new connections", 2.6, false)
        + &guarded("2.6 times as many new connections, with a counter of requests", 2.6, true)
        + &guarded("as many new connections as before", 1.0, true);
    hold("harm", &text);
}

#[test]
fn so_does_the_dark() {
    let declared =
        Adaptive { fallback: Some(Fallback { behavior: FallbackBehavior::Declared, ..Fallback::default() }), ..balanced() };
    let text = course("fallback Declared in a gap", Kind::Gap, &declared, false, None)
        + &course("fallback Declared in an outage", Kind::Outage, &declared, false, None);
    hold("fallback", &text);
}

#[test]
fn so_does_a_change_of_leader() {
    let mut text = String::new();
    for at in [3900, 11_000] {
        let title = format!("another one from {at} s on, which begins to watch");
        text += &course(&title, Kind::Mixed, &balanced(), true, Some(Handover { at, gap: 60 }));
        text += &course(&title, Kind::Leak, &balanced(), false, Some(Handover { at, gap: 60 }));
    }
    hold("change-of-leader", &text);
}
