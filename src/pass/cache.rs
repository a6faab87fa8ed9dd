//! State of each policy in memory. All of it can be lost: it saves time, and no fact exists only here.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;

use super::{
    waves::Waves,
    world::{Moment, SampledNode},
};
use crate::{
    api::LimitValues,
    decide::{
        Cause, Change, Fault, Lives, NodeState, Unit, UnitState,
        adaptive::{driver::AdaptiveDriver, signal::Signal},
        originals::{Log, Saved},
        uptimes,
        verify::Probes,
    },
};

/// Back-off after the first failure; it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Maximum back-off.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// State of one policy.
#[derive(Clone, Debug, Default)]
pub struct PolicyCache {
    /// UID of the policy. A new UID under the same name clears the state.
    pub uid: String,
    /// Original settings, from the API server; `None` until they have been read.
    pub originals: Option<Log>,
    /// Units that do not answer, with their back-off. The key "" stands for the target as a whole.
    pub failing: BTreeMap<String, Failing>,
    /// Units that answer but did not accept a change.
    pub unwritten: BTreeMap<String, Unwritten>,
    /// By unit: the desired values that it was last seen to hold.
    pub held: BTreeMap<String, LimitValues>,
    /// Start of each unit's process, if it was read.
    pub births: BTreeMap<String, String>,
    /// Consecutive failed passes.
    pub failures: u32,
    /// Units that are no longer part of the policy, with the time of the first attempt to restore them.
    pub departed: BTreeMap<String, Moment>,
    /// Time of the first pass after the policy was deleted.
    pub leaving: Option<Moment>,
    /// With shards: time at which the policy's claims were last published.
    pub published: Option<Moment>,
    /// With shards: time since which the policy waits for older ones.
    pub waiting: Option<Moment>,
    /// Last log message by subject, so that a message is logged once.
    pub logged: BTreeMap<String, String>,
    /// Adaptive control, if the policy has it.
    pub driver: Option<AdaptiveDriver>,
    /// Why the samples do not count, such as a reference that cannot be resolved.
    pub obstacle: Option<Signal>,
    /// Nodes whose tasks are counted.
    pub sampled: Vec<SampledNode>,
    /// Why the last restart step failed, if it did.
    pub restart_note: Option<String>,
    /// Names of the nodes that have been observed.
    pub nodes: BTreeSet<String>,
    /// Settings that the processes of the nodes are known to use.
    pub lives: Lives,
    /// Last results of the probes, with `spec.verify`.
    pub probes: Option<Probes>,
    /// Batches in which the nodes are written, where each write closes the idle connections of one node.
    pub waves: Waves,
}

/// Back-off of a unit that does not answer.
#[derive(Clone, Debug)]
pub struct Failing {
    /// Consecutive failures.
    pub times: u32,
    /// Time of the next attempt.
    pub due: Moment,
    /// Last fault.
    pub fault: Fault,
}

/// Changes that a unit did not accept.
#[derive(Clone, Debug)]
pub struct Unwritten {
    changes: Vec<Change>,
    /// Consecutive failures.
    pub times: u32,
    /// Time of the next attempt; `None` if the unit rejected the changes.
    pub due: Option<Moment>,
    fault: Fault,
}

impl PolicyCache {
    /// Returns the original settings of the units; empty until they have been read.
    #[must_use]
    pub fn saved(&self) -> &BTreeMap<String, Saved> {
        saved_units(self.originals.as_ref())
    }

    /// Records the result of reading a unit.
    pub fn ended(&mut self, unit: &str, fault: Option<&Fault>, now: Moment) {
        let Some(fault) = fault else {
            self.failing.remove(unit);
            return;
        };
        let times = self.failing.get(unit).map_or(0, |failing| failing.times);
        let due = now + wait(times);
        self.failing.insert(unit.to_owned(), Failing { times: times.saturating_add(1), due, fault: fault.clone() });
    }

    /// Records the result of a write. The unit is read in any case.
    pub fn written(&mut self, unit: &str, changes: &[Change], fault: Option<&Fault>, now: Moment) {
        let Some(fault) = fault else {
            self.unwritten.remove(unit);
            return;
        };
        let times =
            self.unwritten.get(unit).filter(|unwritten| unwritten.changes == changes).map_or(0, |unwritten| unwritten.times);
        let due = (fault.cause != Cause::Rejected).then(|| now + wait(times));
        let unwritten = Unwritten { changes: changes.to_vec(), times: times.saturating_add(1), due, fault: fault.clone() };
        self.unwritten.insert(unit.to_owned(), unwritten);
    }

    /// Records which of the desired values a unit holds. A value that was to be written and does not show is not known any more.
    pub fn seen(&mut self, unit: &str, state: &UnitState, desired: &LimitValues, changes: &[Change]) {
        let held = self.held.entry(unit.to_owned()).or_default();
        for (limit, value) in desired {
            let mut stored = state.sites.iter().filter(|(site, _)| site.limit == *limit).map(|(_, stored)| stored.value);
            if stored.all(|stored| stored == Some(*value)) {
                held.insert(*limit, *value);
            } else if changes.iter().any(|change| change.site.limit == *limit) {
                held.remove(limit);
            }
        }
    }

    /// Returns why these changes are not sent to a unit now: it did not accept them, and the next attempt is not due.
    #[must_use]
    pub fn withheld(&self, unit: &str, changes: &[Change], now: Moment) -> Option<Fault> {
        let unwritten = self.unwritten.get(unit).filter(|unwritten| unwritten.changes == changes)?;
        unwritten.due.is_none_or(|due| now < due).then(|| unwritten.fault.clone())
    }

    /// Records what the nodes report. `all` means that these are all nodes of the policy.
    pub fn looked(&mut self, nodes: &[&NodeState], all: bool, now: Timestamp) {
        let watched = !self.nodes.is_empty();
        for node in nodes {
            let joined = watched && !self.nodes.contains(&node.name);
            uptimes::look(&mut self.lives, node, joined, now);
        }
        let names = nodes.iter().map(|node| node.name.clone());
        if all {
            self.nodes = names.collect();
            self.lives.retain(|name, _| self.nodes.contains(name));
        } else {
            self.nodes.extend(names);
        }
    }

    /// Forgets units that neither exist any more nor wait to be restored: pods come and go.
    pub fn keep_only(&mut self, units: &[Unit]) {
        let mut ids: BTreeSet<_> = units.iter().map(|unit| &unit.id).collect();
        ids.extend(saved_units(self.originals.as_ref()).keys());
        self.failing.retain(|id, _| ids.contains(id));
        self.unwritten.retain(|id, _| ids.contains(id));
        self.held.retain(|id, _| ids.contains(id));
        self.births.retain(|id, _| ids.contains(id));
        self.departed.retain(|id, _| ids.contains(id));
        self.logged.retain(|about, _| {
            ids.contains(about) || matches!(about.as_str(), "error" | "problem" | "restore" | "restart" | "status")
        });
    }

    /// Reports whether the last log message about a subject differs from this one, and records this one.
    pub fn is_new_message(&mut self, about: &str, said: &str) -> bool {
        self.logged.insert(about.to_owned(), said.to_owned()).as_deref() != Some(said)
    }
}

/// Returns the original settings of the units; none without a log.
#[must_use]
pub fn saved_units(log: Option<&Log>) -> &BTreeMap<String, Saved> {
    static NONE: BTreeMap<String, Saved> = BTreeMap::new();
    log.map_or(&NONE, Log::units)
}

/// Returns the back-off after a number of consecutive failures.
#[must_use]
pub fn wait(failures: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failures.min(16)).min(MAX_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{Limit, Value},
        decide::{ConfigPath, NewValue},
    };

    const LIMIT: Limit = Limit::IntraClusterMaxIdleConnsPerHost;

    #[test]
    fn a_node_joins_that_was_not_there_when_others_were_watched() {
        let node =
            |name: &str, uptime| NodeState { uptime, ..NodeState::new(name, Ok([(LIMIT, Some(Value::Count(80)))].into())) };
        let uptime = Some(Duration::from_secs(40));
        let mut memory = PolicyCache::default();
        let at = |second: i64| Timestamp::from_second(10_000 + second).expect("a time");
        let uses =
            |memory: &PolicyCache, name: &str| memory.lives.get(name).and_then(|life| life.uses(LIMIT, Value::Count(80), None));
        // One of the first two nodes does not report its uptime at first, and reports it later.
        memory.looked(&[&node("p0", uptime), &node("t0", None)], true, at(0));
        memory.looked(&[&node("p0", uptime), &node("t0", uptime), &node("t1", uptime)], true, at(30));
        assert_eq!([uses(&memory, "p0"), uses(&memory, "t0"), uses(&memory, "t1")], [None, None, Some(false)]);
        // A node that leaves and comes back has joined.
        memory.looked(&[&node("p0", uptime)], true, at(60));
        memory.looked(&[&node("p0", uptime), &node("t0", uptime)], true, at(90));
        assert_eq!(uses(&memory, "t0"), Some(false));
    }

    #[test]
    fn what_was_refused_is_never_sent_again_and_what_failed_is_sent_later() {
        let now = Moment::default();
        let later = now + Duration::from_secs(400);
        let change = |n| {
            [Change {
                site: ConfigPath { limit: Limit::BackendMaxIdleConns, place: "web".into() },
                to: NewValue::Value(Value::Count(n)),
            }]
        };
        let mut memory = PolicyCache::default();
        memory.written("u", &change(1), Some(&Fault::new(Cause::Rejected, "no")), now);
        assert!(memory.withheld("u", &change(1), later).is_some());
        assert!(memory.withheld("u", &change(2), now).is_none(), "other changes are sent");
        memory.written("u", &change(1), Some(&Fault::new(Cause::Busy, "later")), now);
        assert!(memory.withheld("u", &change(1), now).is_some());
        assert!(memory.withheld("u", &change(1), later).is_none());
        memory.written("u", &[], None, now);
        assert!(memory.withheld("u", &change(1), now).is_none());
    }

    #[test]
    fn waits_double_up_to_five_minutes() {
        assert_eq!([0, 1, 5, 9, 40].map(|n| wait(n).as_secs()), [1, 2, 32, 300, 300]);
    }
}
