//! Samples for adaptive control: what is sampled, how, and what follows a round of samples.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use super::{Context, PolicyRef, discovery, live::Point, path, planted, reachability};
use crate::{
    api::{
        adaptive::{Aggregation, Signal as SignalSpec, Source as SourceName},
        conditions::Reason,
    },
    clock,
    decide::adaptive::{
        config::{Config, tasks_per_connection},
        driver::Tick,
        signal::{self, Signal},
    },
    metrics,
    pass::{
        Failure, PolicyHandle,
        cache::PolicyCache,
        world::{SampledNode, Sampling},
    },
    signals::{
        Permit, Sampler, Source, Watch,
        page::{Probe, Threshold},
        series::Selection,
    },
};

/// Default threshold: 512 goroutines per CPU, AIStore's own first alert.
const PER_CPU: f64 = 512.0;
/// Node name of a Prometheus server.
const PROMETHEUS: &str = "prometheus";

/// Evaluates the samples.
pub fn signal(sampler: Option<&Sampler>, config: &Config, now: i64) -> Signal {
    match sampler {
        Some(sampler) => sampler.signal(config.percentile, config.ages(), now),
        None => signal::read(&BTreeMap::new(), std::iter::empty(), config.percentile, config.ages(), now),
    }
}

/// Begins to sample.
pub fn start(ctx: &Context, reference: &PolicyRef, policy: &PolicyHandle, watch: Watch) -> Sampler {
    let (me, reference, metrics) = (ctx.me.clone(), reference.clone(), ctx.metrics.clone());
    let after = move || {
        if let Some(ctx) = me.upgrade() {
            ctx.tick(&reference);
        }
    };
    Sampler::start(ctx.pool.provider(&policy.path), watch, &policy.uid, after, move || metrics.panicked())
}

/// Evaluates a round of samples. Returns whether a pass is due, and the state of the policy.
fn tick(memory: &mut PolicyCache, sampler: &Sampler) -> Option<(bool, Point)> {
    let now = clock::now().as_millisecond();
    let driver = memory.driver.as_mut()?;
    let signal = memory.obstacle.clone().unwrap_or_else(|| self::signal(Some(sampler), driver.config(), now));
    let Tick { is_pass_due, ask_in } = driver.tick(&signal, now);
    if let Some(wait) = ask_in {
        sampler.ask_in(Duration::from_millis(u64::try_from(wait).unwrap_or(0) + 1));
    }
    let reading = signal.reading();
    let point = Point {
        time: now,
        tasks: reading.and_then(|reading| reading.percentile),
        threshold: reading.and_then(|reading| reading.threshold),
        pressure: reading.filter(|_| !driver.config().levels).map(|reading| reading.up),
        idle_connections: driver.idle_connections(&signal),
        openness: driver.state().openness,
        is_fresh: reading.is_some(),
    };
    Some((is_pass_due, point))
}

impl Context {
    /// Handles a round of samples, and enqueues the policy if a pass is due.
    fn tick(&self, policy: &PolicyRef) {
        let Some(known) = self.known(policy) else { return };
        // A pass in progress evaluates the samples itself.
        let Ok(mut memory) = known.memory.try_lock() else { return };
        let path = path(policy);
        let _span = tracing::error_span!("sample", policy = %path).entered();
        planted::panics("sample", &path);
        let ticked = {
            let running = known.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.sampler.as_ref().and_then(|sampler| tick(&mut memory, sampler))
        };
        let Some((is_pass_due, point)) = ticked else { return };
        tracing::debug!(
            fresh = point.is_fresh,
            tasks = point.tasks,
            threshold = point.threshold,
            utilization = point.pressure,
            openness = point.openness,
            pass_due = is_pass_due,
            "evaluated a round of samples"
        );
        let evaluation = metrics::Evaluation { is_fresh: point.is_fresh, pressure: point.pressure, openness: point.openness };
        self.metrics.policies.evaluated(policy.namespace.as_deref().unwrap_or_default(), &policy.name, evaluation);
        self.live.sampled(policy, point);
        // While the target cannot be found, a pass could not act. The next attempt evaluates the samples.
        let backing_off = memory.failing.get("").is_some_and(|failing| failing.due > super::moment());
        if is_pass_due && !backing_off {
            let _ = self.nudges.send(policy.clone());
        }
    }
}

/// Returns what to sample, and why its samples do not count, if they do not.
pub async fn watch(ctx: &Context, policy: &PolicyHandle, ca: Option<Vec<u8>>, sampling: Sampling<'_>) -> (Watch, Option<Signal>) {
    let Sampling { signal, source, interval, nodes } = sampling;
    let threshold = threshold(signal);
    let page = if source == SourceName::Nodes { probe(signal, threshold) } else { Probe::flags() };
    let mut watch = Watch {
        nodes,
        source: Source::Nodes(Arc::new(page)),
        interval,
        ca,
        token: None,
        permit: Some(permit(ctx, policy)),
        headers: Vec::new(),
        key: format!(
            "{source:?} {} {:?} {:?} {:?} {:?} {threshold:?} {:?}",
            signal.metric,
            signal.match_labels,
            signal.aggregation,
            signal.idle_connections,
            signal.new_connections,
            signal.prometheus
        ),
    };
    let obstacle = match (source, &signal.prometheus, threshold) {
        (SourceName::Prometheus, Some(prometheus), Threshold::Value(threshold)) => {
            watch.source = Source::Prometheus { query: prometheus.query.clone(), threshold };
            match discovery::prometheus(ctx, policy, prometheus).await {
                Ok((address, credentials, headers)) => {
                    let path = prometheus.path_prefix.clone().unwrap_or_default();
                    watch.nodes = vec![SampledNode { name: PROMETHEUS.into(), address, named: false, pod: String::new(), path }];
                    (watch.ca, watch.token, watch.headers) = (credentials.ca, credentials.token, headers);
                    None
                }
                Err(Failure::Problem(problem)) => Some((problem.reason, problem.message)),
                Err(Failure::Error(error)) => Some((Reason::QueryFailed, error.to_string())),
            }
        }
        (SourceName::Prometheus, ..) => {
            let message = "adaptive.signal has no prometheus.query or no threshold.value; set both";
            Some((Reason::QueryFailed, message.into()))
        }
        (SourceName::Nodes | SourceName::StateFlags, ..) => None,
    };
    (watch, obstacle.map(|(reason, message)| Signal::Missing { reason, message }))
}

fn threshold(signal: &SignalSpec) -> Threshold {
    let Some(threshold) = &signal.threshold else { return Threshold::PerCpu(PER_CPU) };
    match (threshold.value, threshold.per_cpu) {
        (Some(value), _) => Threshold::Value(f64::from(value)),
        (None, each) => Threshold::PerCpu(each.map_or(PER_CPU, f64::from)),
    }
}

/// Returns what to read from the metrics page of each node.
fn probe(signal: &SignalSpec, threshold: Threshold) -> Probe {
    let selection = Selection::new(signal.match_labels.clone(), signal.aggregation.unwrap_or_default());
    let probe = Probe::gauge(&signal.metric, threshold).of_series(selection);
    let probe = match &signal.idle_connections {
        Some(idle) => {
            let selection = Selection::new(idle.match_labels.clone(), idle.aggregation.unwrap_or_default());
            probe.with_idle(&idle.metric, selection, tasks_per_connection(signal).into())
        }
        None => probe,
    };
    let Some(new) = &signal.new_connections else { return probe };
    let sum = |labels: &BTreeMap<String, String>| Selection::new(labels.clone(), Aggregation::Sum);
    let probe = probe.with_connections(&new.metric, sum(&new.match_labels));
    match &new.requests {
        Some(requests) => probe.with_requests(&requests.metric, sum(&requests.match_labels)),
        None => probe,
    }
}

fn permit(ctx: &Context, policy: &PolicyHandle) -> Permit {
    let (me, namespace) = (ctx.me.clone(), policy.namespace.clone());
    let provider = ctx.pool.provider(&policy.path);
    Arc::new(move |node| {
        let (me, namespace, provider) = (me.clone(), namespace.clone(), provider.clone());
        Box::pin(async move {
            let ctx = me.upgrade()?;
            match reachability::named_by_a_node(&ctx, &namespace, &provider, &node.address).await {
                Some(address) => Some(address),
                None => reachability::of_its_pod(&ctx, &namespace, &node.pod, &node.address).await,
            }
        })
    })
}
