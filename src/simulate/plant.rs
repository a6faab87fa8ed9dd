//! Model servers: first-order pools that drain with their idle timeout, other tasks that no limit affects, and noise.

use std::time::Duration;

use crate::{
    api::{Limit, LimitValues, Value},
    decide::adaptive::signal::{Counter, IdleTasks, Measure, NoSample},
};

/// A group of nodes that run tasks.
pub trait Plant {
    /// Number of nodes.
    fn nodes(&self) -> usize;
    /// Name of a node.
    fn name(&self, node: usize) -> String;
    /// Advances the time, in seconds, with these limits in effect.
    fn step(&mut self, time: i64, passed: i64, settings: &LimitValues);
    /// True utilization of the fullest node, measured or not.
    fn pressure(&self) -> f64;
    /// Current sample of a node.
    fn sample(&mut self, node: usize) -> Result<Measure, NoSample>;
    /// A write of another client at this time, if any.
    fn meddle(&mut self, _time: i64) -> Option<LimitValues> {
        None
    }
}

/// The models, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Kind {
    /// Two hours with more than twice the connections that fit.
    Burst,
    /// A slow rise to nearly twice the threshold, and back.
    Ramp,
    /// Noise around the threshold, which it often exceeds for a moment.
    Noise,
    /// A day and a night.
    Daily,
    /// Tasks that pile up for a reason other than connections.
    Leak,
    /// Too many tasks, a third of them in pools.
    Mixed,
    /// Too many tasks, half of them in pools.
    MixedHalf,
    /// A burst without samples in its middle.
    Gap,
    /// A burst in which at times half of the nodes or more give no samples.
    Outage,
    /// Nodes that restart often and are empty for a while.
    Storm,
    /// Another controller that keeps restoring the declared values.
    Controllers,
    /// Too many connections, none of them idle for as long as any limit.
    Busy,
}

impl Kind {
    /// All models.
    pub const ALL: [Self; 12] = [
        Self::Burst,
        Self::Ramp,
        Self::Noise,
        Self::Daily,
        Self::Leak,
        Self::Mixed,
        Self::MixedHalf,
        Self::Gap,
        Self::Outage,
        Self::Storm,
        Self::Controllers,
        Self::Busy,
    ];

    /// Name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

const HOUR: f64 = 3600.0;
/// Share of the other tasks that are connections of unmanaged pools, if writes close those too.
const UNMANAGED: f64 = 0.5;
/// Idle timeout of these connections in seconds: Caddy's default for clients.
pub const UNMANAGED_IDLE: f64 = 300.0;
/// Seconds between two requests of a busy client.
const ASKED_EVERY: f64 = 2.0;
/// Task count that fills a node.
const THRESHOLD: f64 = 10_000.0;

/// One of the models.
pub struct Model {
    kind: Kind,
    random: fastrand::Rng,
    seed: u64,
    declared: LimitValues,
    nodes: Vec<Node>,
    /// Common load of all nodes, as a factor that drifts.
    wander: f64,
    time: f64,
    /// The factor by which the gauge of idle connections is wrong, if there is one.
    gauge: Option<f64>,
    dark: Vec<bool>,
    /// If each write closes all idle connections: the last settings, and when they changed.
    flushes: Option<(LimitValues, f64)>,
    /// The counters of new connections and of requests, if there are any.
    counters: Option<Counters>,
}

/// Counters of new connections and of requests.
#[derive(Clone, Copy)]
pub struct Counters {
    /// How many times as many new connections a request needs under limits that are too low.
    pub growth: f64,
    /// Whether the nodes report their requests, too.
    pub requests: bool,
}

/// Share of the declared idle time below which a model with counters opens more connections.
const ENOUGH: f64 = 0.9;
/// Requests per second of a node at a utilization of 100%.
const REQUESTS: f64 = 400.0;
/// New connections of a request under the declared limits.
const OPENED: f64 = 0.02;

#[derive(Clone)]
struct Node {
    /// This node's share of the load.
    weight: f64,
    pool: f64,
    other: f64,
    restarted: f64,
    opened: f64,
    requests: f64,
}

impl Model {
    /// A model under limits. If `informed`, the nodes have a gauge of their idle connections with an error of up to half.
    #[must_use]
    pub fn new(kind: Kind, seed: u64, nodes: usize, informed: bool, declared: &LimitValues) -> Self {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ kind as u64);
        let one = |random: &mut fastrand::Rng| Node {
            weight: 1.0 + 0.06 * (random.f64() - 0.5),
            pool: 0.0,
            other: 0.0,
            restarted: -10.0 * HOUR,
            opened: 0.0,
            requests: 0.0,
        };
        let all = (0..nodes).map(|_| one(&mut random)).collect();
        let gauge = informed.then(|| 0.5 + random.f64());
        let mut model = Self {
            kind,
            random,
            seed,
            declared: declared.clone(),
            nodes: all,
            wander: 1.0,
            time: 0.0,
            gauge,
            dark: vec![false; nodes],
            flushes: None,
            counters: None,
        };
        let (pool, other) = model.wanted();
        for node in &mut model.nodes {
            (node.pool, node.other) = (pool, other);
        }
        model
    }

    /// The same server, but each write of its settings closes all idle connections, also those of unmanaged pools.
    #[must_use]
    pub fn flushing(mut self) -> Self {
        self.flushes = Some((self.declared.clone(), -10.0 * HOUR));
        self
    }

    /// The same server with counters.
    #[must_use]
    pub fn counting(mut self, counters: Counters) -> Self {
        self.counters = Some(counters);
        self
    }

    /// Counts the requests of the load, and the connections that they open, also those that a write closed.
    fn count(&mut self, passed: f64, load: f64, idle_share: f64, reopened: f64) {
        let Some(counters) = self.counters else { return };
        let each = if idle_share < ENOUGH { OPENED * counters.growth } else { OPENED };
        for node in &mut self.nodes {
            // Not from the common generator: the counters must not change the load.
            let moment = self.time.to_bits() ^ node.weight.to_bits() ^ self.seed.rotate_left(16);
            let noise = 1.0 + 0.2 * gauss(&mut fastrand::Rng::with_seed(moment));
            let requests = REQUESTS * load * node.weight * self.wander * passed;
            node.requests += requests.max(0.0).round();
            node.opened += (requests * each * noise + reopened * THRESHOLD).max(0.0).round();
        }
    }

    /// Fraction of the connections of pools with this idle timeout that returned since the last write.
    fn returned(&self, idle: f64) -> f64 {
        self.flushes.as_ref().map_or(1.0, |(_, at)| ((self.time - at) / idle).clamp(0.0, 1.0))
    }

    /// Utilization by the pools at full openness, and by everything else.
    fn wanted(&self) -> (f64, f64) {
        let t = self.time / HOUR;
        let between = |from: f64, to: f64, high: f64, low: f64| if t >= from && t < to { high } else { low };
        match self.kind {
            Kind::Burst | Kind::Gap | Kind::Outage | Kind::Controllers => (between(1.0, 3.0, 2.1, 0.4), 0.1),
            Kind::Ramp => {
                let rise = ((t - 0.5) / 3.5).clamp(0.0, 1.0) - ((t - 4.0) / 1.0).clamp(0.0, 1.0);
                (0.4 + 1.4 * rise, 0.1)
            }
            Kind::Noise => (0.64, 0.15),
            Kind::Daily => (0.7 - 0.7 * (t / 24.0 * std::f64::consts::TAU).cos(), 0.1),
            Kind::Leak => (0.1, 0.5 + 0.42 * t),
            Kind::Busy => (between(0.5, 99.0, 0.9, 0.3), between(0.5, 99.0, 0.3, 0.2)),
            Kind::Mixed => (between(0.5, 99.0, 0.47, 0.2), between(0.5, 99.0, 0.83, 0.4)),
            Kind::MixedHalf => (between(0.5, 99.0, 0.65, 0.2), between(0.5, 99.0, 0.65, 0.4)),
            Kind::Storm => (between(1.0, 3.0, 1.3, 0.4), 0.2),
        }
    }

    /// Restarts some nodes: they are empty and fill up only after a while.
    fn restart(&mut self, time: i64, passed: i64) {
        #[allow(clippy::cast_precision_loss)] // Seconds.
        let chance = passed as f64 / (25.0 * 60.0);
        for node in &mut self.nodes {
            if self.random.f64() < chance {
                #[allow(clippy::cast_precision_loss)] // Seconds.
                let now = time as f64;
                (node.pool, node.other, node.restarted) = (0.0, 0.01, now);
                (node.opened, node.requests) = (0.0, 0.0);
            }
        }
    }

    fn darken(&mut self) {
        let t = self.time / HOUR;
        match self.kind {
            Kind::Gap => self.dark.fill((1.4..2.1).contains(&t)),
            Kind::Outage => {
                // Every ten minutes, other nodes give no samples: 0 to 75% of them.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Six an hour.
                let turn = (t * 6.0) as usize;
                let silent = self.nodes.len() * ((turn * 7) % 4) / 4;
                for (n, dark) in self.dark.iter_mut().enumerate() {
                    *dark = (n + turn) % self.nodes.len().max(1) < silent;
                }
            }
            _ => {}
        }
    }
}

/// An approximate normal distribution: the sum of twelve uniform numbers.
fn gauss(random: &mut fastrand::Rng) -> f64 {
    (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
}

fn idle(settings: &LimitValues) -> f64 {
    let longest = settings.iter().filter(|(limit, _)| limit.is_idle_time()).filter_map(|(_, value)| match value {
        Value::Duration(d) => Some(d.as_secs_f64()),
        Value::Count(_) => None,
    });
    longest.fold(0.0, f64::max).max(0.001)
}

impl Plant for Model {
    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn name(&self, node: usize) -> String {
        format!("node-{node}")
    }

    #[allow(clippy::cast_precision_loss)] // Seconds.
    fn step(&mut self, time: i64, passed: i64, settings: &LimitValues) {
        self.time = time as f64;
        let passed_s = passed as f64;
        if self.kind == Kind::Storm {
            self.restart(time, passed);
        }
        // The load drifts slowly by a few percent; that of the noisy model drifts more and faster.
        let (spread, memory) = if self.kind == Kind::Noise { (0.22, 30.0) } else { (0.06, 120.0) };
        let keep = (-passed_s / memory).exp();
        let push = gauss(&mut self.random) * spread * (1.0 - keep * keep).sqrt();
        self.wander = (1.0 + (self.wander - 1.0) * keep + push).max(0.05);
        let (pool, other) = self.wanted();
        if let Some((known, at)) = self.flushes.as_mut().filter(|(known, _)| known != settings) {
            (*known, *at) = (settings.clone(), time as f64);
            for node in &mut self.nodes {
                (node.pool, node.other) = (0.0, node.other * (1.0 - UNMANAGED));
            }
        }
        // Frequent requests keep their connections open under any limits.
        let open = if self.kind == Kind::Busy { 1.0 } else { (idle(settings) / idle(&self.declared)).min(1.0) };
        let back = self.returned(if self.kind == Kind::Busy { ASKED_EVERY } else { idle(settings) });
        let others = if self.flushes.is_some() { 1.0 - UNMANAGED * (1.0 - self.returned(UNMANAGED_IDLE)) } else { 1.0 };
        let reopened = if back < 1.0 { pool * open * passed_s / idle(settings) } else { 0.0 };
        let drain = (-passed_s / idle(settings).max(1.0)).exp();
        for node in &mut self.nodes {
            let wanted = pool * node.weight * self.wander * open * back;
            // Returning connections come at the pace of the clients, not at the pace of draining.
            node.pool = if back < 1.0 { wanted } else { wanted + (node.pool - wanted) * drain };
            let recover = (-passed_s / 240.0).exp();
            let fast = if time as f64 - node.restarted < HOUR { recover } else { (-passed_s / 30.0).exp() };
            let wanted = other * others * node.weight * (if self.kind == Kind::Noise { self.wander } else { 1.0 });
            node.other = wanted + (node.other - wanted) * fast;
        }
        self.count(passed_s, pool, idle(settings) / idle(&self.declared), reopened);
        self.darken();
    }

    fn pressure(&self) -> f64 {
        self.nodes.iter().map(|node| node.pool + node.other).fold(0.0, f64::max)
    }

    fn sample(&mut self, node: usize) -> Result<Measure, NoSample> {
        // Not from the common generator: the number of samples must not change their values.
        let moment = (self.time.to_bits() ^ self.seed.rotate_left(32)).wrapping_add(node as u64);
        let mut own = fastrand::Rng::with_seed(moment.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let noise = 1.0 + 0.02 * gauss(&mut own);
        if self.dark[node] {
            return Err(NoSample::NoSeries);
        }
        let Node { pool, other, restarted, opened, requests, .. } = self.nodes[node];
        let counted = |value| Counter::Counted { value, series: 1 };
        let pressure = ((pool + other) * noise).max(0.0);
        let idle = self.gauge.map(|wrong| IdleTasks::Counted((pool * noise * wrong * THRESHOLD).max(0.0).round()));
        Ok(Measure {
            started: Some(restarted + 1_700_000_000.0),
            idle: idle.unwrap_or_default(),
            connections: self.counters.map(|_| counted(opened)).unwrap_or_default(),
            requests: self.counters.filter(|counters| counters.requests).map(|_| counted(requests)).unwrap_or_default(),
            ..super::measure((pressure * THRESHOLD).round(), THRESHOLD)
        })
    }

    fn meddle(&mut self, time: i64) -> Option<LimitValues> {
        (self.kind == Kind::Controllers && time % 1200 == 600).then(|| {
            let idle = [Limit::ServerIdleTimeout, Limit::BackendIdleConnTimeout];
            self.declared.iter().filter(|(limit, _)| idle.contains(limit)).map(|(limit, value)| (*limit, *value)).collect()
        })
    }
}

/// The policy for the built-in models: declared limits and floor.
#[must_use]
pub fn policy() -> (LimitValues, LimitValues) {
    let limits = |server, backend, total, host| {
        LimitValues::from([
            (Limit::ServerIdleTimeout, Value::Duration(Duration::from_secs(server))),
            (Limit::BackendIdleConnTimeout, Value::Duration(Duration::from_secs(backend))),
            (Limit::BackendMaxIdleConns, Value::Count(total)),
            (Limit::BackendMaxIdleConnsPerHost, Value::Count(host)),
        ])
    };
    (limits(60, 50, 2000, 100), limits(4, 3, 100, 5))
}
