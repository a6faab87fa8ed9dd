//! Which limits a process uses, if it reads its settings only when it starts. Pure.
//!
//! After a write a node stores the new value, and its process keeps the old one until it restarts. A value is known to
//! be in use after a restart only: the node reported that it stores the value, and later reported a smaller uptime. A
//! node that joins builds its connections from its own file before the cluster sends it anything, and the operator
//! cannot read that file.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;

use super::{
    Capability, TargetCapabilities,
    hash::fnv1a,
    observed::{NodeState, UnitState},
};
use crate::api::{Limit, LimitValues, Value, status::Confirmed};

/// By node name.
pub type Lives = BTreeMap<String, ProcessUptime>;

/// What is known of a node's process.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessUptime {
    uptime: Duration,
    /// What the node stored when it was last seen.
    stored: LimitValues,
    /// What its process is known to use.
    uses: LimitValues,
    /// The process started before this (Unix milliseconds). A reported uptime is never too long; it can be too short.
    started_before: i64,
    /// Whether the node joined while other nodes were already watched, and has not restarted since.
    joined: bool,
}

impl ProcessUptime {
    /// Whether the process uses this value; `None` if that is not known. `changed`: when the limit last changed (Unix
    /// milliseconds).
    #[must_use]
    pub fn uses(&self, limit: Limit, value: Value, changed: Option<i64>) -> Option<bool> {
        match self.uses.get(&limit) {
            Some(used) => Some(*used == value),
            // It did not start with this value: it is older than the change, or it joined and got the value after its
            // start.
            None => (self.joined || changed.is_some_and(|changed| self.started_before <= changed)).then_some(false),
        }
    }
}

/// Records a node's report. `joined`: other nodes were watched before this one appeared.
pub fn look(lives: &mut Lives, node: &NodeState, joined: bool, now: Timestamp) {
    // A node without its own uptime may be one that the cluster answers for.
    let (Some(uptime), Ok(stored)) = (node.uptime, &node.stored) else { return };
    // The node reports this figure itself, so it may be any number.
    let ran = i64::try_from(uptime.as_millis()).unwrap_or(i64::MAX);
    let started_before = now.as_millisecond().saturating_sub(ran);
    let stored: LimitValues = stored.iter().filter_map(|(limit, value)| Some((*limit, (*value)?))).collect();
    let Some(life) = lives.get_mut(&node.name) else {
        let life = ProcessUptime { uptime, stored, uses: LimitValues::new(), started_before, joined };
        lives.insert(node.name.clone(), life);
        return;
    };
    if uptime < life.uptime {
        // Another process. It started with what was stored when the previous one was last seen.
        life.uses = std::mem::take(&mut life.stored);
        (life.joined, life.started_before) = (false, started_before);
    }
    life.started_before = life.started_before.min(started_before);
    (life.uptime, life.stored) = (uptime, stored);
}

/// The limits that a process reads when it starts.
#[must_use]
pub fn read_at_start(settings: &LimitValues, traits: &TargetCapabilities) -> LimitValues {
    let read = |limit: &Limit| traits.capability(*limit) == Capability::AfterRestart;
    settings.iter().filter(|(limit, _)| read(limit)).map(|(limit, value)| (*limit, *value)).collect()
}

/// Maximum number of nodes that are recorded one by one, so that `status.control` stays small. In a larger cluster, if
/// the operator restarts during a rollout, the nodes that were restarted before count as not observed.
const MAX_NAMED: usize = 32;
/// Tolerance when two readings of one node timestamp are compared (milliseconds): the clock offset comes from `Date`,
/// in whole seconds.
const SAME_TIME: u64 = 5_000;

fn hash_of(values: &LimitValues) -> String {
    let text: Vec<_> = values.iter().map(|(limit, value)| format!("{limit}={value}")).collect();
    format!("{:016x}", fnv1a(&text.join(";")))
}

fn hash_of_all<'a>(nodes: impl IntoIterator<Item = &'a NodeState>) -> String {
    let mut names: Vec<_> = nodes.into_iter().map(|node| node.name.as_str()).collect();
    names.sort_unstable();
    format!("{:016x}", fnv1a(&names.join(";")))
}

fn hash_of_one(node: &NodeState) -> String {
    let hash = fnv1a(&node.name);
    format!("{:08x}", (hash ^ (hash >> 32)) & 0xffff_ffff)
}

/// The nodes that answered, and when they report that their configuration last changed (Unix milliseconds); `None`
/// where none reports it.
#[must_use]
pub fn answered<'a>(states: impl Iterator<Item = &'a UnitState> + Clone) -> Option<(Vec<&'a NodeState>, i64)> {
    let changed = states.clone().filter_map(|state| state.changed).max()?.as_millisecond();
    Some((states.flat_map(|state| &state.nodes).collect(), changed))
}

/// The record of processes that are known to use the stored values. It is kept in the status, because a restarted
/// operator or a new leader has not observed those restarts. `values` are the limits that a process reads at its start;
/// `changed` is when the nodes say that their configuration last changed (Unix milliseconds).
#[must_use]
pub fn confirmation(
    nodes: &[&NodeState],
    uses: impl Fn(&NodeState) -> bool,
    values: &LimitValues,
    changed: i64,
) -> Option<Confirmed> {
    let using: Vec<_> = nodes.iter().filter(|node| uses(node)).collect();
    let names = if !using.is_empty() && using.len() == nodes.len() {
        hash_of_all(nodes.iter().copied())
    } else if (1..=MAX_NAMED).contains(&using.len()) {
        // Eight digits and a space each: no list is as long as the hash of all nodes.
        let mut names: Vec<_> = using.into_iter().map(|node| hash_of_one(node)).collect();
        names.sort();
        names.join(" ") + " "
    } else {
        return None;
    };
    Some(Confirmed { values: hash_of(values), nodes: names, changed })
}

/// Whether both records state the same about the same configuration.
#[must_use]
pub fn agree(a: &Confirmed, b: &Confirmed) -> bool {
    a.values == b.values && a.nodes == b.nodes && a.changed.abs_diff(b.changed) <= SAME_TIME
}

/// Records that the operator replaced a node's process after the node had stored these values. A node that does not store
/// them is not changed: they are those of a later change, which has not reached it.
pub fn replaced(lives: &mut Lives, node: &str, values: &LimitValues) {
    let stores = |life: &ProcessUptime| values.iter().all(|(limit, value)| life.stored.get(limit).is_none_or(|s| s == value));
    if let Some(life) = lives.get_mut(node).filter(|life| stores(life)) {
        life.uses.clone_from(values);
        life.joined = false;
    }
}

/// Restores the record for these nodes, which must be all nodes of the policy. A node that is already known, or that
/// does not store the values, is not changed.
pub fn take_up(lives: &mut Lives, written: &Confirmed, nodes: &[&NodeState], values: &LimitValues, changed: i64) {
    if written.values != hash_of(values) || written.changed.abs_diff(changed) > SAME_TIME {
        return;
    }
    let all = written.nodes == hash_of_all(nodes.iter().copied());
    let named: BTreeSet<&str> = written.nodes.split_ascii_whitespace().collect();
    for node in nodes.iter().filter(|node| all || named.contains(hash_of_one(node).as_str())) {
        let stores = |life: &ProcessUptime| values.iter().all(|(limit, value)| life.stored.get(limit) == Some(value));
        if let Some(life) = lives.get_mut(&node.name).filter(|life| life.uses.is_empty() && !life.joined && stores(life)) {
            life.uses.clone_from(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit::IntraClusterMaxIdleConnsPerHost;

    fn node(name: &str, uptime: Option<u64>, stores: u32) -> NodeState {
        let uptime = uptime.map(Duration::from_secs);
        NodeState { uptime, ..NodeState::new(name, Ok([(LIMIT, Some(Value::Count(stores)))].into())) }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(10_000 + second).expect("a time")
    }

    /// Observes one node at these seconds, with its reported uptime and its stored value. `joined`: it appeared after
    /// others.
    fn seen(looks: &[(i64, Option<u64>, u32)], joined: bool) -> Lives {
        let mut lives = Lives::new();
        for (second, uptime, stores) in looks {
            look(&mut lives, &node("t1", *uptime, *stores), joined, at(*second));
        }
        lives
    }

    /// Whether the node uses 80, which was written at second 100.
    fn uses(looks: &[(i64, Option<u64>, u32)], joined: bool) -> Option<bool> {
        seen(looks, joined).get("t1")?.uses(LIMIT, Value::Count(80), Some(10_100_000))
    }

    #[test]
    fn only_what_was_stored_before_a_start_is_used_after_it() {
        for (what, looks, joined, expected) in [
            ("a process that is older than the change", vec![(101, Some(500), 80)], false, Some(false)),
            ("a process that may be younger, whose start was not observed", vec![(200, Some(40), 80)], false, None),
            (
                "it was seen to store the value, and then to be younger",
                vec![(101, Some(500), 80), (200, Some(3), 80)],
                false,
                Some(true),
            ),
            ("it stays in use", vec![(101, Some(500), 80), (200, Some(3), 80), (900, Some(700), 80)], false, Some(true)),
            ("it was down when the change was made (D1b)", vec![(50, Some(500), 52), (200, Some(3), 80)], false, Some(false)),
            ("it joined after the change (D1a)", vec![(200, Some(3), 80)], true, Some(false)),
            ("it joined and was then restarted", vec![(200, Some(30), 80), (300, Some(3), 80)], true, Some(true)),
            (
                "frozen during its start, across the change (D1c): the uptime starts late",
                vec![(90, Some(500), 52), (99, Some(0), 52), (130, Some(1), 80)],
                false,
                Some(false),
            ),
            (
                "an edit by hand that was put back (D2)",
                vec![(101, Some(500), 80), (200, Some(3), 80), (300, Some(103), 7), (304, Some(107), 80)],
                false,
                Some(true),
            ),
            (
                "restarted during the edit by hand",
                vec![(101, Some(500), 80), (200, Some(3), 80), (300, Some(103), 7), (310, Some(2), 80)],
                false,
                Some(false),
            ),
            ("the cluster answers for a node in maintenance", vec![(101, Some(500), 80), (200, None, 80)], false, Some(false)),
        ] {
            assert_eq!(uses(&looks, joined), expected, "{what}");
        }
        assert_eq!(uses(&[(101, None, 80)], false), None);
    }

    #[test]
    fn figures_beyond_all_measure_harm_nobody() {
        let mut lives = Lives::new();
        let node = NodeState { uptime: Some(Duration::MAX), ..node("t1", None, 80) };
        look(&mut lives, &node, false, Timestamp::MIN);
        look(&mut lives, &node, false, Timestamp::MAX);
        assert_eq!(lives["t1"].uses(LIMIT, Value::Count(80), Some(0)), Some(false));
    }

    #[test]
    fn what_was_written_down_holds_for_the_same_nodes_values_and_configuration() {
        let values = LimitValues::from([(LIMIT, Value::Count(80))]);
        let nodes = [node("p0", Some(40), 80), node("t1", Some(40), 80), node("t2", Some(40), 80)];
        let nodes: Vec<_> = nodes.iter().collect();
        let all = confirmation(&nodes, |_| true, &values, 1_000_000).expect("something");
        let one = confirmation(&nodes, |node| node.name == "t1", &values, 1_000_000).expect("something");
        assert_eq!(confirmation(&nodes, |_| false, &values, 1_000_000), None);
        assert!(agree(&all, &Confirmed { changed: 1_004_000, ..all.clone() }) && !agree(&all, &one));
        let used = |written: &Confirmed, there: &[&NodeState], values: &LimitValues, changed, joined| {
            let mut lives = Lives::new();
            for node in there {
                look(&mut lives, node, joined, at(200));
            }
            take_up(&mut lives, written, there, values, changed);
            there.iter().filter(|node| lives[&node.name].uses(LIMIT, Value::Count(80), None) == Some(true)).count()
        };
        assert_eq!(used(&all, &nodes, &values, 1_001_000, false), 3);
        assert_eq!(used(&one, &nodes, &values, 1_001_000, false), 1);
        assert_eq!(used(&one, &nodes[..2], &values, 1_001_000, false), 1, "another node has left");
        assert_eq!(used(&all, &nodes[..2], &values, 1_001_000, false), 0, "the record of all nodes needs all nodes");
        assert_eq!(used(&all, &nodes, &[(LIMIT, Value::Count(81))].into(), 1_001_000, false), 0);
        assert_eq!(used(&all, &nodes, &values, 1_006_000, false), 0, "the configuration was changed meanwhile");
        assert_eq!(used(&all, &nodes, &values, 1_001_000, true), 0, "the node joined since");
        let other = node("t2", Some(40), 52);
        assert_eq!(used(&all, &[nodes[0], nodes[1], &other], &values, 1_001_000, false), 2, "the node stores another value");
        let mut evicted = seen(&[(200, Some(3), 80)], false);
        replaced(&mut evicted, "t1", &values);
        assert_eq!(evicted["t1"].uses(LIMIT, Value::Count(80), Some(10_100_000)), Some(true));
        let mut earlier = seen(&[(200, Some(3), 52)], false);
        replaced(&mut earlier, "t1", &values);
        assert_eq!(earlier["t1"].uses(LIMIT, Value::Count(80), Some(10_100_000)), None, "the node stores an earlier value");
        let mut young = seen(&[(200, Some(0), 80)], true);
        replaced(&mut young, "t1", &values);
        assert_eq!(young["t1"].uses(LIMIT, Value::Count(80), None), Some(true), "the uptime is too short to become shorter");
        let many: Vec<_> = (0..40).map(|n| node(&format!("t{n}"), Some(40), 80)).collect();
        let many: Vec<_> = many.iter().collect();
        assert!(confirmation(&many, |node| node.name != "t0", &values, 0).is_none());
        assert_eq!(used(&confirmation(&many, |_| true, &values, 0).expect("something"), &many, &values, 0, false), 40);
    }
}
