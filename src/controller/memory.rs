//! What the controller keeps in memory of each policy. All of it can be lost: it saves time, never truth.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::adaptation::Adaptation;
use crate::{
    decide::{
        Cause, Change, Fault, NodeState, Unit,
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
    /// By node: uptime when last seen, when that was, and a time after which the process started.
    pub lives: BTreeMap<String, Life>,
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

/// What is known of a node's process.
#[derive(Clone, Copy)]
pub struct Life {
    uptime: Duration,
    seen: Timestamp,
    /// The process started after this (Unix milliseconds).
    pub started_after: i64,
}

impl Memory {
    /// What the units held before the first write, as far as it has been read.
    #[must_use]
    pub fn saved(&self) -> BTreeMap<String, Saved> {
        self.originals.as_ref().map(Log::units).unwrap_or_default()
    }

    /// By node: a time (Unix milliseconds) after which its process is known to have started.
    #[must_use]
    pub fn started(&self) -> BTreeMap<String, i64> {
        self.lives.iter().map(|(name, life)| (name.clone(), life.started_after)).collect()
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

    /// Notes how long a node's process has run: what it says is too little rather than too much, so the latest of all that
    /// follows from several looks is kept.
    pub fn lived(&mut self, node: &NodeState, now: Timestamp) {
        let Some(uptime) = node.uptime else { return };
        // Both are a node's own word, and may be any number.
        let most = i64::try_from(uptime.at_least.saturating_add(uptime.slack).as_millis()).unwrap_or(i64::MAX);
        let bound = now.as_millisecond().saturating_sub(most).saturating_sub(1);
        let life =
            self.lives.entry(node.name.clone()).or_insert(Life { uptime: uptime.at_least, seen: now, started_after: bound });
        // A process that has run for less time than when it was last seen was started since.
        let restarted = if uptime.at_least < life.uptime { life.seen.as_millisecond() } else { i64::MIN };
        *life = Life { uptime: uptime.at_least, seen: now, started_after: life.started_after.max(bound).max(restarted) };
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

    /// Forgets nodes that are not there any more.
    pub fn lives_only(&mut self, nodes: &BTreeSet<&str>) {
        self.lives.retain(|name, _| nodes.contains(name.as_str()));
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

    fn node(uptime: u64) -> NodeState {
        let uptime = Uptime { at_least: Duration::from_secs(uptime), slack: Duration::from_secs(10) };
        NodeState { uptime: Some(uptime), ..NodeState::new("t1", Ok(BTreeMap::new())) }
    }

    fn started_after(looks: &[(i64, u64)]) -> i64 {
        let mut memory = Memory::default();
        for (at, uptime) in looks {
            memory.lived(&node(*uptime), Timestamp::from_second(10_000 + at).expect("a time"));
        }
        memory.lives["t1"].started_after - 10_000_000
    }

    #[test]
    fn a_start_is_never_taken_for_later_than_it_was() {
        assert_eq!(started_after(&[(0, 100)]), -110_001);
        assert_eq!(started_after(&[(0, 100), (5, 100)]), -105_001);
        assert_eq!(started_after(&[(0, 100), (5, 100), (6, 106)]), -105_001);
    }

    #[test]
    fn an_uptime_beyond_all_measure_is_an_early_start() {
        let uptime = Uptime { at_least: Duration::MAX, slack: Duration::MAX };
        let mut memory = Memory::default();
        let node = NodeState { uptime: Some(uptime), ..NodeState::new("t1", Ok(BTreeMap::new())) };
        memory.lived(&node, Timestamp::MIN);
        memory.lived(&node, Timestamp::MAX);
        assert!(memory.lives["t1"].started_after < Timestamp::MAX.as_millisecond());
    }

    #[test]
    fn an_uptime_that_went_down_is_a_restart_since_the_last_look() {
        assert_eq!(started_after(&[(0, 100), (30, 2)]), 17_999);
        assert_eq!(started_after(&[(0, 100), (8, 2)]), 0);
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
