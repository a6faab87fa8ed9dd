//! How many of the nodes' tasks can be pooled connections. Tightening cannot remove more than that.

use std::{collections::BTreeMap, fmt};

use serde_json::Value as Json;

use super::{signal::Reading, step_size::Share};
use crate::api::{Limit, LimitValues, Value, wording::with_noun};
use crate::decide::{NodeState, TargetCapabilities, Unit, UnitState, originals::Saved};

/// The highest number of tasks per node that pooled connections can be, by node name.
pub type MostPooled = BTreeMap<String, f64>;

/// What the limits say about the nodes that have too many tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// The highest number of these nodes' tasks that pooled connections can be.
    pub most: f64,
    /// The tasks of these nodes.
    pub tasks: f64,
    /// Whether `tasks` is a count; otherwise it is a lower bound.
    pub is_counted: bool,
    /// The number of these nodes.
    pub nodes: usize,
    /// One of them.
    pub node: String,
}

impl Bound {
    /// `None` where the pools or the tasks of a node are not known.
    #[must_use]
    pub fn of(most: &MostPooled, reading: &Reading) -> Option<Self> {
        let mut bound = Self {
            most: 0.0,
            tasks: 0.0,
            is_counted: reading.threshold.is_some(),
            nodes: reading.tasks_over_threshold.len(),
            node: reading.tasks_over_threshold.first()?.0.clone(),
        };
        for (node, tasks) in &reading.tasks_over_threshold {
            bound.most += most.get(node)?.min(*tasks);
            bound.tasks += tasks;
        }
        (bound.tasks > 0.0).then_some(bound)
    }

    /// `most` as a share of `tasks`, 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        (self.most / self.tasks).min(1.0)
    }
}

/// `1900 of 3019 tasks (63%) on target-t1`.
impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { most, tasks, is_counted, nodes, node } = self;
        let least = if *is_counted { "" } else { "at least " };
        write!(f, "{most:.0} of {least}{tasks:.0} tasks ({:.0}%) on ", self.share() * 100.0)?;
        if *nodes == 1 { write!(f, "{node}") } else { write!(f, "{}", with_noun(*nodes, "node", "nodes")) }
    }
}

/// What is known of the pooled connections' share of the tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribution {
    /// The share, bounded by the open files and the limits.
    pub share: Share,
    /// The numbers behind it, where the limits bound it.
    pub bound: Option<Bound>,
}

impl Attribution {
    /// The share from the nodes' own counts, bounded by the open files and the limits. Without a reading nothing is
    /// known.
    #[must_use]
    pub fn new(most_pooled: Option<&MostPooled>, reading: Option<&Reading>) -> Self {
        let Some(reading) = reading else { return Self { share: Share::UNKNOWN, bound: None } };
        let share = reading.idle_share.map_or(Share::UNKNOWN, Share::estimated);
        let share = reading.files_share.map_or(share, |most| share.at_most(most.min(1.0)));
        let bound = most_pooled.and_then(|most| Bound::of(most, reading)).filter(|bound| bound.share() < share.most);
        Self { share: bound.as_ref().map_or(share, |bound| share.at_most(bound.share())), bound }
    }
}

/// The highest number of tasks per node that the pools which tightening shrinks can hold. It uses the highest value of
/// each limit that a process may still be using: declared, stored, or from before the first write. `None` where nothing
/// bounds the pools, or a node is not known.
#[must_use]
pub fn most_pooled(
    declared: &LimitValues,
    floor: &LimitValues,
    traits: &TargetCapabilities,
    saved: &BTreeMap<String, Saved>,
    units: &[(Unit, UnitState)],
) -> Option<MostPooled> {
    let mut most = declared.clone();
    let mut raise = |limit: Limit, value: Value| {
        let known = most.entry(limit).or_insert(value);
        // 0 means no limit, which is more than any value.
        let unlimited = Value::Count(0);
        *known = if [*known, value].contains(&unlimited) { unlimited } else { value.max(*known) };
    };
    let nodes: Vec<&NodeState> = units.iter().flat_map(|(_, state)| &state.nodes).collect();
    for (unit, state) in units {
        for node in &state.nodes {
            for (limit, value) in node.stored.as_ref().ok()? {
                raise(*limit, (*value)?);
            }
        }
        for (site, raw) in saved.get(&unit.id).into_iter().flat_map(|saved| &*saved.sites) {
            if let Some(count) = raw.as_ref().and_then(Json::as_u64) {
                raise(site.limit, Value::Count(u32::try_from(count).ok()?));
            }
        }
    }
    // A pool without a floor does not shrink, whatever it holds.
    most.retain(|limit, _| floor.contains_key(limit) || !matches!(limit, Limit::BackendIdleConnTimeout));
    (traits.most_pooled)(&most, &nodes)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use serde_json::json;

    use super::*;
    use crate::decide::ConfigPath;

    #[test]
    fn pools_are_bounded_by_the_highest_limit_that_a_process_may_still_use() {
        const PER_HOST: Limit = Limit::IntraClusterMaxIdleConnsPerHost;
        fn value_of(value: Value) -> f64 {
            if let Value::Count(n) = value { f64::from(n) } else { f64::NAN }
        }
        let bounded = TargetCapabilities {
            most_pooled: |limits, nodes| match limits.get(&PER_HOST) {
                Some(Value::Count(0)) | None => None,
                Some(value) if limits.len() == 1 => {
                    Some(nodes.iter().map(|node| (node.name.clone(), value_of(*value))).collect())
                }
                Some(_) => Some(MostPooled::new()),
            },
            ..TargetCapabilities::PLAIN
        };
        let limits = |n| LimitValues::from([(PER_HOST, Value::Count(n))]);
        let most = |declared: u32, stored: &[Option<u32>], before: Option<u32>, extra: bool| {
            let site = ConfigPath { limit: PER_HOST, place: "x".into() };
            let node =
                |(at, n): (usize, &Option<u32>)| NodeState::new(format!("n{at}"), Ok([(PER_HOST, n.map(Value::Count))].into()));
            let unit = Unit { id: "u".into(), name: "u".into(), address: String::new(), role: None };
            let state = UnitState { nodes: stored.iter().enumerate().map(node).collect(), ..UnitState::default() };
            let saved = Saved {
                name: "u".into(),
                address: String::new(),
                target: Arc::default(),
                sites: Arc::new(before.map(|n| (site, Some(json!(n)))).into_iter().collect()),
            };
            let mut declared = limits(declared);
            let mut floor = limits(1);
            // Always declared; only a floor makes it count.
            declared.insert(Limit::BackendIdleConnTimeout, Value::Duration(Duration::from_secs(1)));
            if extra {
                floor.insert(Limit::BackendIdleConnTimeout, Value::Duration(Duration::from_secs(1)));
            }
            let most = most_pooled(&declared, &floor, &bounded, &[("u".into(), saved)].into(), &[(unit, state)]);
            most.map(|most| most.into_values().collect::<Vec<_>>())
        };
        assert_eq!(most(7, &[Some(5), Some(9)], None, false), Some(vec![9.0, 9.0]));
        assert_eq!(most(7, &[Some(5), Some(6)], None, false), Some(vec![7.0, 7.0]));
        assert_eq!(
            most(7, &[Some(5)], Some(32), false),
            Some(vec![32.0]),
            "a process may still use the value from before the first write"
        );
        assert_eq!(most(7, &[Some(5), None], None, false), None, "a value that is no limit bounds nothing");
        assert_eq!(most(7, &[Some(0)], None, false), None, "no limit is more than any");
        assert_eq!(most(0, &[Some(7)], None, false), None);
        assert_eq!(most(7, &[Some(5)], None, true), Some(vec![]), "a floor on it makes it count");
    }

    #[test]
    fn the_pools_part_is_the_least_of_what_files_and_limits_allow() {
        let pooled = |most: f64| Some(MostPooled::from([("a".to_owned(), most)]));
        let crowd = |tasks: f64| vec![("a".to_owned(), tasks)];
        for (files, pooled, crowd, most, bounds) in [
            (None, None, crowd(100.0), 1.0, false),
            (Some(0.5), None, Vec::new(), 0.5, false),
            (None, pooled(20.0), crowd(100.0), 0.2, true),
            (Some(0.1), pooled(20.0), crowd(100.0), 0.1, false),
            (None, pooled(500.0), crowd(100.0), 1.0, false),
            (None, pooled(20.0), Vec::new(), 1.0, false),
            (None, pooled(20.0), vec![("b".to_owned(), 100.0)], 1.0, false),
            (None, pooled(20.0), vec![("a".to_owned(), 0.0)], 1.0, false),
        ] {
            let reading = Reading { files_share: files, tasks_over_threshold: crowd, ..Reading::of(2.0) };
            let attribution = Attribution::new(pooled.as_ref(), Some(&reading));
            assert!((attribution.share.most - most).abs() < 1e-9, "{attribution:?}");
            assert_eq!(attribution.bound.is_some(), bounds, "{attribution:?}");
        }
    }

    #[test]
    fn what_the_nodes_count_themselves_is_the_estimate() {
        let reading = |idle_share, files_share| Reading { idle_share, files_share, ..Reading::of(2.0) };
        let share = |reading: &Reading| Attribution::new(None, Some(reading)).share;
        assert_eq!(share(&reading(Some(0.2), None)), Share::estimated(0.2));
        assert_eq!(
            share(&reading(Some(0.2), Some(0.1))),
            Share { estimate: Some(0.1), most: 0.1 },
            "the open files still bound the estimate"
        );
        assert_eq!(share(&reading(None, None)), Share::UNKNOWN);
    }

    #[test]
    fn nodes_are_bounded_each_by_its_own_pools() {
        let most = MostPooled::from([("p0".to_owned(), 2400.0), ("t0".to_owned(), 1900.0), ("t1".to_owned(), 1900.0)]);
        let bound = |crowd: &[(&str, f64)], threshold| {
            let crowd = crowd.iter().map(|(node, tasks)| ((*node).to_owned(), *tasks)).collect();
            Bound::of(&most, &Reading { threshold, tasks_over_threshold: crowd, ..Reading::of(2.0) })
                .map(|bound| bound.to_string())
        };
        let said = |crowd: &[(&str, f64)]| bound(crowd, Some(1024.0)).unwrap_or_default();
        assert_eq!(said(&[("t1", 3019.0)]), "1900 of 3019 tasks (63%) on t1");
        assert_eq!(
            said(&[("p0", 3000.0), ("t0", 1000.0)]),
            "3400 of 4000 tasks (85%) on 2 nodes",
            "no node has more than it runs"
        );
        assert_eq!(bound(&[("t0", 2048.0)], None).as_deref(), Some("1900 of at least 2048 tasks (93%) on t0"));
        assert_eq!(bound(&[("t0", 2048.0), ("t9", 1.0)], None), None, "a node whose pools are not known");
    }
}
