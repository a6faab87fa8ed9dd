//! Who points at what, in memory: the contest for a target, and originals handed from one policy to another.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use crate::decide::{
    Sites,
    claims::{Claimant, Claims, rivals, winner},
    originals::Log,
};

/// What all policies were seen to point at and to have saved.
#[derive(Default)]
pub struct Board {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    claims: Claims,
    saved: BTreeMap<Claimant, BTreeMap<String, Sites>>,
}

impl Board {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes what a policy points at; answers the one that it loses to, and whom the news concerns.
    pub fn claim(&self, me: &Claimant, identities: &[String]) -> (Option<Claimant>, Vec<Claimant>) {
        self.with(|inner| {
            let before = inner.claims.insert(me.clone(), identities.to_vec());
            let concerned = if before.as_deref() == Some(identities) {
                Vec::new()
            } else {
                let all: Vec<_> = before.unwrap_or_default().into_iter().chain(identities.iter().cloned()).collect();
                rivals(&inner.claims, me, &all)
            };
            (winner(&inner.claims, me, identities).cloned(), concerned)
        })
    }

    /// Notes that a policy was looked at and could not be seen through; what it was seen to point at before, or has saved, stays its own.
    pub fn keep(&self, me: &Claimant) {
        self.with(|inner| {
            let saved = inner.saved.get(me).map(|units| units.keys().cloned().collect()).unwrap_or_default();
            inner.claims.entry(me.clone()).or_insert(saved);
        });
    }

    /// Whether a policy has been looked at.
    pub fn knows(&self, policy: &Claimant) -> bool {
        self.with(|inner| inner.claims.contains_key(policy))
    }

    /// Forgets policies by name, but for one; answers whom that concerns.
    pub fn forget(&self, namespace: &str, name: &str, but: Option<&Claimant>) -> Vec<Claimant> {
        self.with(|inner| {
            let gone: Vec<_> =
                inner.claims.keys().filter(|c| c.namespace == namespace && c.name == name && Some(*c) != but).cloned().collect();
            let mut concerned = Vec::new();
            for claimant in gone {
                let identities = inner.claims.remove(&claimant).unwrap_or_default();
                inner.saved.remove(&claimant);
                concerned.extend(rivals(&inner.claims, &claimant, &identities));
            }
            concerned
        })
    }

    /// Notes what a policy has saved.
    pub fn saved(&self, me: &Claimant, log: &Log) {
        let units = log.units().into_iter().map(|(id, saved)| (id, saved.sites)).collect();
        self.with(|inner| inner.saved.insert(me.clone(), units));
    }

    /// What another policy saved of a unit: the original is what was there before the first of them.
    pub fn original(&self, me: &Claimant, unit: &str) -> Sites {
        self.with(|inner| {
            let others = inner.saved.iter().filter(|(other, _)| *other != me);
            others.filter_map(|(_, units)| units.get(unit)).flatten().map(|(site, raw)| (site.clone(), raw.clone())).collect()
        })
    }

    /// Units that an older policy points at; true where it has saved what was there.
    pub fn taken_over(&self, me: &Claimant, units: &BTreeSet<String>) -> BTreeMap<String, bool> {
        self.with(|inner| {
            let mut taken = BTreeMap::new();
            for (other, identities) in inner.claims.iter().take_while(|(other, _)| *other < me) {
                for unit in units.iter().filter(|unit| identities.contains(unit)) {
                    let saved = inner.saved.get(other).is_some_and(|saved| saved.contains_key(unit));
                    let known = taken.entry(unit.clone()).or_insert(false);
                    *known |= saved;
                }
            }
            taken
        })
    }
}
