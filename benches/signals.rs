//! The speed of the operator's page parser, and of a decision. `make bench`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_precision_loss, missing_docs)]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    hint::black_box,
    time::{Duration, Instant},
};

use idleconn_operator::{
    api::adaptive::{Adaptive, Mode},
    decide::adaptive::{
        config::Config,
        driver::AdaptiveDriver,
        signal::{self, Ages, Measure, NodeSample},
        state::State,
        tuning::Tuning,
    },
    signals::page::{Probe, Threshold},
    simulate::plant::policy,
};

/// Duration of each measurement.
const WINDOW: Duration = Duration::from_millis(600);
/// Measurements of each kind; the median counts.
const TIMES: usize = 7;

/// A page of a busy Go service with runtime metrics, histograms and labeled counters, of about `bytes` bytes.
fn page(bytes: usize) -> String {
    let mut page = String::new();
    let mut n = 0;
    while page.len() < bytes {
        let route = format!("/api/v1/objects/{}", n % 97);
        let _ = writeln!(
            page,
            "# HELP http_request_duration_seconds_{n} How long requests took.\n# TYPE http_request_duration_seconds_{n} histogram"
        );
        for le in ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf"] {
            let _ = writeln!(
                page,
                "http_request_duration_seconds_{n}_bucket{{code=\"200\",handler=\"{route}\",method=\"get\",le=\"{le}\"}} {}",
                n * 17 + le.len()
            );
        }
        let _ = writeln!(
            page,
            "http_request_duration_seconds_{n}_sum{{code=\"200\",handler=\"{route}\",method=\"get\"}} {}.{n}",
            n * 3
        );
        let _ = writeln!(
            page,
            "http_request_duration_seconds_{n}_count{{code=\"200\",handler=\"{route}\",method=\"get\"}} {}",
            n * 17
        );
        n += 1;
    }
    page.push_str(
        "# HELP go_goroutines Number of goroutines that currently exist.\n# TYPE go_goroutines gauge\ngo_goroutines 2517\n",
    );
    page
}

/// Median throughput in bytes per second.
fn throughput(bytes: usize, mut read: impl FnMut()) -> f64 {
    let mut rates: Vec<f64> = (0..TIMES)
        .map(|_| {
            let began = Instant::now();
            let mut rounds = 0usize;
            while began.elapsed() < WINDOW {
                read();
                rounds += 1;
            }
            (rounds * bytes) as f64 / began.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_unstable_by(f64::total_cmp);
    rates[TIMES / 2]
}

fn main() {
    // `cargo test --benches` only checks that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut missed = Vec::new();
    let mut gate = |what: &str, met: bool| {
        if !met {
            missed.push(what.to_owned());
        }
    };
    for size in [12_000, 200_000] {
        let text = page(size);
        let bytes = text.as_bytes();
        let probe = Probe::gauge("go_goroutines", Threshold::Value(1e6));
        let rate = throughput(bytes.len(), || {
            black_box(probe.read(black_box(bytes))).unwrap();
        });
        println!("page of {} KB: {:.1} GB/s", bytes.len() / 1000, rate / 1e9);
        gate("1 GB/s", rate >= 1e9);
    }

    let (declared, floor) = policy();
    let tuning = Tuning::of(Some(&Adaptive { mode: Mode::Enforce, ..Adaptive::default() }));
    let names: Vec<String> = (0..100).map(|n| format!("node-{n}")).collect();
    let measure = |n: usize| Measure {
        tasks: Some(9000.0 + n as f64),
        threshold: Some(10_000.0),
        pressure: 0.9 + n as f64 / 1e4,
        ..Measure::default()
    };
    let samples: BTreeMap<String, NodeSample> = names
        .iter()
        .enumerate()
        .map(|(n, name)| (name.clone(), NodeSample { last: Some((1000, measure(n))), ..NodeSample::default() }))
        .collect();
    let mut driver = AdaptiveDriver::new(Config::plain(declared, floor, tuning), State::default(), None, 0);
    let looks = throughput(1, || {
        let signal = signal::read(&samples, names.iter().map(String::as_str), 95, Ages { most: 90_000, young: 0 }, 1000);
        black_box(driver.tick(&signal, 1000));
    });
    println!("a decision over 100 nodes: {:.1} µs", 1e6 / looks);
    gate("a decision within 20 µs", looks >= 50_000.0);
    assert!(missed.is_empty(), "missed: {missed:?}");
}
