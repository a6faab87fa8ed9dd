//! What the controller keeps in memory of each policy. All of it can be lost: it saves time, never truth.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{adaptation::Adaptation, verify::Verifier};
use crate::{
    decide::{
        Cause, Change, Fault, Lives, NodeState, Unit, lives,
        originals::{Log, Saved},
    },
    targets::Credentials,
};

/// The first wait after a failure; it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// One policy's memory.
#[derive(Default)]
pub struct Memory {
    /// The object it belongs to; another UID under the same name starts afresh.
    pub uid: String,
    /// What was there before the first write, as read from the API server; `None` until it has been read.
    pub originals: Option<Log>,
    /// The last credentials that could be read. In a namespace that is being deleted the Secret goes first.
    pub credentials: Credentials,
    /// Units that do not answer, and when each is asked again.
    pub failing: BTreeMap<String, Failing>,
    /// Units that answer and did not take a change.
    pub unwritten: BTreeMap<String, Unwritten>,
    /// Units whose last write did not end well.
    pub unfinished: BTreeSet<String>,
    /// When each unit's process started, as far as it was asked.
    pub births: BTreeMap<String, String>,
    /// Failures of the policy as a whole, in a row.
    pub failures: u32,
    /// When units that the policy no longer points at were first missed.
    pub departed: BTreeMap<String, Instant>,
    /// When the policy was first seen to be deleted.
    pub leaving: Option<Instant>,
    /// What was last said in the log, so that it is said once.
    pub logged: BTreeMap<String, String>,
    /// What moves the limits by itself, if anything does.
    pub adaptation: Option<Adaptation>,
    /// What stood in the way of the last restart, if anything did.
    pub restart_note: Option<String>,
    /// The nodes that have been watched.
    pub nodes: BTreeSet<String>,
    /// What their processes are known to use.
    pub lives: Lives,
    /// What measures their servers, if anything does.
    pub verifier: Option<Verifier>,
}

/// A unit that fails.
pub struct Failing {
    /// Failures in a row.
    pub times: u32,
    /// When it is asked again.
    pub due: Instant,
    /// Why.
    pub fault: Fault,
}

/// A change that a unit did not take.
pub struct Unwritten {
    changes: Vec<Change>,
    times: u32,
    /// When it is sent again; never, where the unit understood and refused.
    pub due: Option<Instant>,
    fault: Fault,
}

impl Memory {
    /// What the units held before the first write, as far as it has been read.
    #[must_use]
    pub fn saved(&self) -> BTreeMap<String, Saved> {
        self.originals.as_ref().map(Log::units).unwrap_or_default()
    }

    /// Notes how a unit's last reading ended.
    pub fn ended(&mut self, unit: &str, fault: Option<&Fault>, now: Instant) {
        let Some(fault) = fault else {
            self.failing.remove(unit);
            return;
        };
        let times = self.failing.get(unit).map_or(0, |failing| failing.times);
        let due = now + wait(times);
        self.failing.insert(unit.to_owned(), Failing { times: times.saturating_add(1), due, fault: fault.clone() });
    }

    /// Notes how a unit's last write ended. It is read all the same.
    pub fn written(&mut self, unit: &str, changes: &[Change], fault: Option<&Fault>, now: Instant) {
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

    /// Why these changes are not sent to a unit now: it did not take them, and is not due to be asked again.
    #[must_use]
    pub fn held_back(&self, unit: &str, changes: &[Change], now: Instant) -> Option<Fault> {
        let unwritten = self.unwritten.get(unit).filter(|unwritten| unwritten.changes == changes)?;
        unwritten.due.is_none_or(|due| now < due).then(|| unwritten.fault.clone())
    }

    /// Notes what the nodes say of themselves. `all`: every node of the policy is among them.
    pub fn looked(&mut self, nodes: &[&NodeState], all: bool, now: Timestamp) {
        let watched = !self.nodes.is_empty();
        for node in nodes {
            let joined = watched && !self.nodes.contains(&node.name);
            lives::look(&mut self.lives, node, joined, now);
        }
        let names = nodes.iter().map(|node| node.name.clone());
        if all {
            self.nodes = names.collect();
            self.lives.retain(|name, _| self.nodes.contains(name));
        } else {
            self.nodes.extend(names);
        }
    }

    /// Forgets units that are neither there any more nor waiting to be restored: pods come and go.
    pub fn keep_only(&mut self, units: &[Unit]) {
        let mut ids: BTreeSet<_> = units.iter().map(|unit| unit.id.clone()).collect();
        ids.extend(self.originals.iter().flat_map(|log| log.units().into_keys()));
        self.failing.retain(|id, _| ids.contains(id));
        self.unwritten.retain(|id, _| ids.contains(id));
        self.unfinished.retain(|id| ids.contains(id));
        self.births.retain(|id, _| ids.contains(id));
        self.departed.retain(|id, _| ids.contains(id));
        self.logged.retain(|about, _| {
            ids.contains(about) || matches!(about.as_str(), "error" | "problem" | "restore" | "restart" | "status")
        });
    }

    /// Whether this was not said before; it is noted as said.
    pub fn news(&mut self, about: &str, said: &str) -> bool {
        self.logged.insert(about.to_owned(), said.to_owned()).as_deref() != Some(said)
    }
}

/// How long to wait after so many failures in a row.
#[must_use]
pub fn wait(failures: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failures.min(16)).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{Knob, Value},
        decide::{Site, To, observed::Uptime},
    };

    const KNOB: Knob = Knob::IntraClusterMaxIdleConnsPerHost;

    #[test]
    fn a_node_joins_that_was_not_there_when_others_were_watched() {
        let node = |name: &str, uptime| NodeState { uptime, ..NodeState::new(name, Ok([(KNOB, Some(Value::Count(80)))].into())) };
        let uptime = Some(Uptime { at_least: Duration::from_secs(40), slack: Duration::from_secs(10) });
        let mut memory = Memory::default();
        let at = |second: i64| Timestamp::from_second(10_000 + second).expect("a time");
        let uses = |memory: &Memory, name: &str| memory.lives.get(name).and_then(|life| life.uses(KNOB, Value::Count(80), None));
        // One of the first two does not say how long it has run, and does so later.
        memory.looked(&[&node("p0", uptime), &node("t0", None)], true, at(0));
        memory.looked(&[&node("p0", uptime), &node("t0", uptime), &node("t1", uptime)], true, at(30));
        assert_eq!([uses(&memory, "p0"), uses(&memory, "t0"), uses(&memory, "t1")], [None, None, Some(false)]);
        // One that leaves and comes back has joined.
        memory.looked(&[&node("p0", uptime)], true, at(60));
        memory.looked(&[&node("p0", uptime), &node("t0", uptime)], true, at(90));
        assert_eq!(uses(&memory, "t0"), Some(false));
    }

    #[test]
    fn what_was_refused_is_never_sent_again_and_what_failed_is_sent_later() {
        let now = Instant::now();
        let later = now + Duration::from_secs(400);
        let change =
            |n| [Change { site: Site { knob: Knob::BackendMaxIdleConns, place: "web".into() }, to: To::Value(Value::Count(n)) }];
        let mut memory = Memory::default();
        memory.written("u", &change(1), Some(&Fault::new(Cause::Rejected, "no")), now);
        assert!(memory.held_back("u", &change(1), later).is_some());
        assert!(memory.held_back("u", &change(2), now).is_none(), "another change is another question");
        memory.written("u", &change(1), Some(&Fault::new(Cause::Busy, "later")), now);
        assert!(memory.held_back("u", &change(1), now).is_some());
        assert!(memory.held_back("u", &change(1), later).is_none());
        memory.written("u", &[], None, now);
        assert!(memory.held_back("u", &change(1), now).is_none());
    }

    #[test]
    fn waits_double_up_to_five_minutes() {
        assert_eq!([0, 1, 5, 9, 40].map(|n| wait(n).as_secs()), [1, 2, 32, 300, 300]);
    }
}
