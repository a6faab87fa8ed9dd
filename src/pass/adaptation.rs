//! Adaptive control in a pass: what is sampled, and the state after a restart of the operator.

use std::{collections::BTreeMap, time::Duration};

use kube::ResourceExt as _;

use super::{
    Pass, PolicyHandle,
    cache::PolicyCache,
    world::{SampledNode, Sampling, World},
};
use crate::{
    api::{
        LimitValues,
        adaptive::{Signal as SignalSpec, Source},
        lookup::Member,
    },
    decide::{
        Unit, UnitState,
        adaptive::{config::Config, driver::AdaptiveDriver, openness, signal::Signal, state::State},
    },
};

/// Signal of one pass.
pub struct SignalSnapshot {
    /// The tasks of the nodes.
    pub signal: Signal,
    /// Time of the evaluation (Unix milliseconds).
    pub now: i64,
}

impl SignalSnapshot {
    /// Evaluates the samples now; `None` without adaptive control.
    pub fn at_samples(world: &dyn World, memory: &PolicyCache) -> Option<Self> {
        let driver = memory.driver.as_ref()?;
        let now = world.now().as_millisecond();
        let signal = memory.obstacle.clone().unwrap_or_else(|| world.signal(driver.config(), now));
        Some(Self { signal, now })
    }
}

/// Returns the interval between samples.
#[must_use]
pub fn interval(config: &Config) -> Duration {
    Duration::from_millis(u64::try_from(config.tuning.interval).unwrap_or(10_000))
}

/// Applies the current policy to adaptive control; ends it if the policy has none.
pub(super) async fn prepare(pass: &mut Pass<'_>, units: &[Unit], answered: &[(Unit, UnitState)]) {
    let Pass { world, policy, memory, declared, traits } = pass;
    let spec = policy.spec();
    let unset = SignalSpec::unset();
    let signal = spec.adaptive.as_ref().and_then(|adaptive| adaptive.signal.as_ref()).unwrap_or(&unset);
    let source = signal.source.unwrap_or_else(|| world.default_source(spec.target.type_));
    let has_pool = |limit| {
        let has = |(_, state): &(Unit, UnitState)| state.sites.keys().any(|site| site.limit == limit);
        // A file has every limit of its format. Until a server has answered, assume that it has the pool.
        traits.file.is_some() || answered.is_empty() || answered.iter().any(has)
    };
    let config = Config::of(spec, policy.object.annotations(), declared, traits, source, has_pool, world.now());
    let Some(config) = config else {
        end(*world, policy, memory).await;
        return;
    };
    let nodes = if source == Source::Prometheus { Vec::new() } else { nodes(*world, policy, units, answered) };
    // If the nodes could not be read in this pass, keep the last known ones.
    let kept = source != Source::Prometheus && nodes.is_empty() && memory.driver.is_some();
    if !kept {
        memory.sampled = nodes;
    }
    let sampling = Sampling { signal, source, interval: interval(&config), nodes: memory.sampled.clone() };
    if let Some(driver) = &mut memory.driver {
        driver.configure(config);
    } else {
        let state = resume(policy, memory, &config, answered);
        let told = policy.object.status.as_ref().and_then(|status| status.utilization_percent);
        memory.driver = Some(AdaptiveDriver::new(config, state, told, world.now().as_millisecond()));
    }
    memory.obstacle = world.sample(policy, Some(sampling)).await;
}

/// Ends adaptive control.
pub async fn end(world: &dyn World, policy: &PolicyHandle, memory: &mut PolicyCache) {
    (memory.driver, memory.obstacle) = (None, None);
    memory.sampled.clear();
    world.sample(policy, None).await;
}

/// Returns the state from the status; if the status is lost, the openness is inferred from the settings of the nodes.
fn resume(policy: &PolicyHandle, memory: &PolicyCache, config: &Config, answered: &[(Unit, UnitState)]) -> State {
    let status = policy.object.status.as_ref();
    let control = status.and_then(|status| status.control.as_ref());
    if let Some(state) = control.and_then(|control| control.adaptive.clone()) {
        return *state;
    }
    let ours = memory.originals.as_ref().is_some_and(|log| !log.units().is_empty());
    // A status without a state is that of a former version if it has tightened.
    let tightened = status.and_then(|status| status.openness_percent).is_some_and(|openness| openness < 100);
    if !ours || (control.is_some() && !tightened) {
        return State::default();
    }
    let nodes = answered.iter().flat_map(|(_, state)| &state.nodes).filter_map(|node| node.stored.as_ref().ok());
    let nodes: Vec<LimitValues> =
        nodes.map(|stored| stored.iter().filter_map(|(limit, value)| Some((*limit, (*value)?))).collect()).collect();
    let (declared, floor) = (&config.declared.settings, &config.floor);
    // Several values of the openness can give the same limits: the one in the status counts if it is one of them.
    let told = status.and_then(|status| u8::try_from(status.openness_percent?).ok());
    let told = told.filter(|told| *told <= 100 && nodes.iter().all(|stored| openness::fits(declared, floor, *told, stored)));
    let inferred = || nodes.iter().map(|stored| openness::infer(declared, floor, stored)).min().unwrap_or(100);
    let openness = told.unwrap_or_else(inferred);
    State { openness, ..State::default() }
}

/// Returns the nodes with the URLs of their metrics pages. An address that the node's own cluster names needs a permit at each
/// request.
fn nodes(world: &dyn World, policy: &PolicyHandle, units: &[Unit], answered: &[(Unit, UnitState)]) -> Vec<SampledNode> {
    let states: BTreeMap<&str, &UnitState> = answered.iter().map(|(unit, state)| (unit.id.as_str(), state)).collect();
    let target = &policy.spec().target;
    let path = target.member().and_then(Member::metrics_path).unwrap_or("/metrics").to_owned();
    let mut nodes = Vec::new();
    for unit in units {
        let Some(state) = states.get(unit.id.as_str()) else {
            if world.units_are_nodes(target.type_) {
                let (name, address) = (unit.name.clone(), unit.address.clone());
                nodes.push(SampledNode { name, address, named: false, pod: String::new(), path: path.clone() });
            }
            continue;
        };
        for node in &state.nodes {
            let address = node.metrics.as_ref().unwrap_or(&unit.address).clone();
            // For pods that mount a ConfigMap, the API server supplies the address.
            let named = node.metrics.is_some() && target.member().is_some_and(Member::names_its_nodes);
            let pod = node.process.as_ref().map(|process| process.pod.clone()).unwrap_or_default();
            nodes.push(SampledNode { name: node.name.clone(), address, named, pod, path: path.clone() });
        }
    }
    nodes
}
