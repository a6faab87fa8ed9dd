//! The nodes' values from before the first write: a log of records, in which the newest record of each unit wins.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::observed::Sites;

/// What one unit held before the first write to it, and how to reach it again.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Saved {
    /// The name for display.
    pub name: String,
    /// The address at the time.
    pub address: String,
    /// `spec.target` at the time, so that the unit can be restored after the policy points elsewhere.
    pub target: Arc<Json>,
    /// The value of each config path as the server wrote it; null where nothing was set.
    pub sites: Arc<Sites>,
}

/// One record of the log: units with their original values, or null for a unit that is no longer kept.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// By unit id.
    pub units: BTreeMap<String, Option<Saved>>,
}

/// The maximum size of one record (bytes); an object in etcd may have 1.5 MiB.
pub const MAX_RECORD_BYTES: usize = 512 * 1024;

/// The log. It keeps what the newest record of each unit says, and of the others only which units they name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    /// By revision: the units that the record names, and whether it keeps them.
    records: BTreeMap<i64, BTreeMap<String, bool>>,
    units: BTreeMap<String, Saved>,
}

impl Log {
    /// The log of these records, by revision.
    #[must_use]
    pub fn of(records: BTreeMap<i64, Record>) -> Self {
        let mut log = Self::default();
        for (revision, record) in records {
            log.append(revision, record);
        }
        log
    }

    /// Adds a record, which is newer than all others.
    pub fn append(&mut self, revision: i64, record: Record) {
        let named = record.units.iter().map(|(id, saved)| (id.clone(), saved.is_some())).collect();
        self.records.insert(revision, named);
        for (id, saved) in record.units {
            let Some(mut saved) = saved else {
                self.units.remove(&id);
                continue;
            };
            // Most units were saved with the same target.
            if let Some(last) = self.units.values().next_back().filter(|last| last.target == saved.target) {
                saved.target = last.target.clone();
            }
            self.units.insert(id, saved);
        }
    }

    /// Removes a superseded record.
    pub fn remove(&mut self, revision: i64) {
        self.records.remove(&revision);
    }

    /// The current content, by unit id.
    #[must_use]
    pub fn units(&self) -> &BTreeMap<String, Saved> {
        &self.units
    }

    /// The revisions of the records, oldest first.
    #[must_use]
    pub fn revisions(&self) -> impl DoubleEndedIterator<Item = i64> {
        self.records.keys().copied()
    }

    /// Revisions that are no longer needed: later ones state all that they state, or they remove only units that no
    /// earlier record has.
    #[must_use]
    pub fn superseded(&self) -> Vec<i64> {
        let mut later = BTreeSet::new();
        let mut superseded = Vec::new();
        for (revision, record) in self.records.iter().rev() {
            let earlier = |id: &String| self.records.range(..revision).any(|(_, named)| named.contains_key(id));
            if record.iter().all(|(id, keeps)| later.contains(id) || (!keeps && !earlier(id))) {
                superseded.push(*revision);
            } else {
                later.extend(record.keys());
            }
        }
        // Oldest first, so that an interruption never leaves an old record without the one that overrides it.
        superseded.reverse();
        superseded
    }

    /// The revision after the newest.
    #[must_use]
    pub fn next(&self) -> i64 {
        self.records.keys().next_back().map_or(1, |newest| newest.saturating_add(1))
    }
}

/// The name of the object that holds the record of a revision.
#[must_use]
pub fn name(policy: &str, revision: i64) -> String {
    if revision == 1 { format!("{policy}-original") } else { format!("{policy}-original-{revision}") }
}

/// Splits a change into records that each fit into one object.
#[must_use]
pub fn split(change: BTreeMap<String, Option<Saved>>) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let mut bytes = MAX_RECORD_BYTES;
    for (id, saved) in change {
        let size = id.len() + serde_json::to_vec(&saved).map_or(0, |v| v.len());
        if bytes + size > MAX_RECORD_BYTES {
            records.push(Record::default());
            bytes = 0;
        }
        bytes += size;
        if let Some(record) = records.last_mut() {
            record.units.insert(id, saved);
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(name: &str) -> Saved {
        Saved { name: name.into(), address: "http://127.0.0.1:1".into(), target: Arc::default(), sites: Arc::default() }
    }

    type Units<'a> = &'a [(&'a str, Option<&'a str>)];

    fn log(records: &[(i64, Units<'_>)]) -> Log {
        let record =
            |units: Units<'_>| Record { units: units.iter().map(|(id, name)| ((*id).to_owned(), name.map(saved))).collect() };
        Log::of(records.iter().map(|(revision, units)| (*revision, record(units))).collect())
    }

    #[test]
    fn the_newest_word_on_a_unit_counts() {
        let log = log(&[(1, &[("a", Some("a1")), ("b", Some("b1"))]), (2, &[("a", Some("a2"))]), (3, &[("b", None)])]);
        let names: Vec<_> = log.units().values().map(|s| s.name.clone()).collect();
        assert_eq!(names, ["a2"]);
    }

    #[test]
    fn a_record_goes_only_when_nothing_is_lost_with_it() {
        for (records, gone) in [
            (log(&[(1, &[("a", Some("x"))])]), vec![]),
            (log(&[(1, &[("a", Some("x"))]), (2, &[("a", Some("y"))])]), vec![1]),
            (log(&[(1, &[("a", Some("x")), ("b", Some("x"))]), (2, &[("a", None)])]), vec![]),
            (log(&[(2, &[("a", None)])]), vec![2]),
            (log(&[(1, &[("a", Some("x"))]), (2, &[("a", None)])]), vec![1]),
        ] {
            assert_eq!(records.superseded(), gone, "{records:?}");
            let mut rest = records.clone();
            for revision in gone {
                rest.remove(revision);
            }
            assert_eq!(rest.units(), records.units());
        }
    }

    #[test]
    fn revisions_go_up_from_one() {
        assert_eq!([log(&[]).next(), log(&[(1, &[])]).next(), log(&[(3, &[]), (7, &[])]).next()], [1, 2, 8]);
    }

    #[test]
    fn a_record_is_filled_to_the_brim_and_no_further() {
        // The size of a unit is that of its id and of what is saved of it.
        let one = |id: &str, fill: usize| (id.to_owned(), Some(Saved { name: "x".repeat(fill), ..saved("") }));
        let size = |(id, saved): &(String, Option<Saved>)| id.len() + serde_json::to_vec(saved).map_or(0, |v| v.len());
        let first = one("a", 300_000);
        let rest = 524_288 - size(&first) - size(&one("b", 0));
        let cut =
            |fill| split([first.clone(), one("b", fill)].into()).into_iter().map(|record| record.units.len()).collect::<Vec<_>>();
        assert_eq!((cut(rest), cut(rest + 1)), (vec![2], vec![1, 1]));
    }

    #[test]
    fn a_large_change_becomes_several_records() {
        let many = (0..20_000).map(|n| (format!("unit-{n}"), Some(saved("some name")))).collect();
        let records = split(many);
        assert!(records.len() > 1);
        assert_eq!(records.iter().map(|r| r.units.len()).sum::<usize>(), 20_000);
        assert!(records.iter().all(|r| serde_json::to_vec(r).is_ok_and(|v| v.len() < 1024 * 1024)));
    }
}
