//! Who points at what, in memory: the contest for a target, and originals handed from one policy to another of the same namespace.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use crate::{
    api::policy::TargetType,
    decide::{
        Sites,
        claims::{Claim, Claimant, Claims, Queue},
        originals::Log,
    },
    targets,
};

/// What an older policy has to be looked at for before a younger one goes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Where a target of this kind is: known without asking any node.
    Places(TargetType),
    /// What the targets of this namespace say of themselves.
    Stated(String),
}

/// What all policies were seen to point at and to have saved.
#[derive(Default)]
pub struct Board {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    claims: Claims,
    queue: Queue<Scope>,
    /// By namespace and unit: what each policy saved of it.
    saved: HashMap<(String, String), BTreeMap<Claimant, Sites>>,
    /// The units that each policy has saved.
    units: HashMap<Claimant, Vec<String>>,
}

/// Where a policy stands after it has said what it points at.
pub struct Claimed {
    /// The policy that it loses to.
    pub winner: Option<Claimant>,
    /// Whether a policy of another namespace governs a target that says the same of itself.
    pub shared: bool,
    /// Policies that have to look again.
    pub concerned: BTreeSet<Claimant>,
}

/// How a unit came to be another policy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// An older policy of the same namespace governs it and has saved what it held.
    HandedOver,
    /// An older policy of the same namespace governs it and has saved nothing yet.
    NotSavedYet,
    /// An older policy of another namespace governs it.
    Elsewhere,
}

impl Board {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A policy exists. Younger ones wait for it until it has been looked at.
    pub fn listed(&self, claimant: &Claimant, kind: TargetType) {
        self.with(|inner| {
            if inner.claims.get(claimant).is_none() {
                inner.queue.add(Scope::Places(kind), claimant.clone());
                if targets::kind(kind).states_identity {
                    inner.queue.add(Scope::Stated(claimant.namespace.clone()), claimant.clone());
                }
            }
        });
    }

    /// Whether an older policy has to be looked at first; then this one is among those that are answered once it has been.
    pub fn must_wait(&self, me: &Claimant, scope: &Scope) -> bool {
        self.with(|inner| inner.queue.must_wait(scope, me))
    }

    /// Notes where a policy's target is. What the target states stays as it was.
    pub fn claim_places(&self, me: &Claimant, kind: TargetType, vouched: BTreeSet<String>) -> Claimed {
        self.with(|inner| {
            let stated = inner.claims.get(me).map(|claim| claim.stated.clone()).unwrap_or_default();
            inner.claim(me, Claim { vouched, stated }, &[Scope::Places(kind)])
        })
    }

    /// Notes what a policy's target states of itself.
    pub fn claim_stated(&self, me: &Claimant, stated: BTreeSet<String>) -> Claimed {
        self.with(|inner| {
            let vouched = inner.claims.get(me).map(|claim| claim.vouched.clone()).unwrap_or_default();
            inner.claim(me, Claim { vouched, stated }, &[Scope::Stated(me.namespace.clone())])
        })
    }

    /// Notes that a policy points at nothing.
    pub fn give_up(&self, me: &Claimant) -> BTreeSet<Claimant> {
        self.with(|inner| {
            let mut concerned = inner.claims.insert(me, Claim::default());
            concerned.extend(inner.queue.done_everywhere(me));
            concerned
        })
    }

    /// Notes that a policy was looked at and could not be seen through: what it was seen to point at before, or has saved, stays its own.
    /// Answers the policies that waited for it.
    pub fn keep(&self, me: &Claimant) -> BTreeSet<Claimant> {
        self.with(|inner| {
            if inner.claims.get(me).is_none() {
                let units = inner.units.get(me).cloned().unwrap_or_default();
                let (stated, vouched) = units.into_iter().partition(|unit| is_stated(unit));
                inner.claims.insert(me, Claim { vouched, stated });
            }
            inner.queue.done_everywhere(me)
        })
    }

    /// Forgets policies by name, but for one; answers the policies that this concerns.
    pub fn forget(&self, namespace: &str, name: &str, but: Option<&Claimant>) -> BTreeSet<Claimant> {
        self.with(|inner| {
            let known = inner.claims.claimants().filter(|c| c.namespace == namespace && c.name == name);
            let gone: Vec<_> = known.filter(|claimant| Some(*claimant) != but).cloned().collect();
            gone.iter().flat_map(|claimant| inner.forget(claimant)).collect()
        })
    }

    /// Notes what a policy has saved.
    pub fn saved(&self, me: &Claimant, log: &Log) {
        self.with(|inner| {
            inner.drop_saved(me);
            let units = log.units();
            inner.units.insert(me.clone(), units.keys().cloned().collect());
            for (unit, saved) in units {
                inner.saved.entry((me.namespace.clone(), unit)).or_default().insert(me.clone(), saved.sites);
            }
        });
    }

    /// What another policy of the same namespace saved of a unit: the original is what was there before the first of them. What policies of
    /// other namespaces saved is their authors' word, and not used.
    pub fn original(&self, me: &Claimant, unit: &str) -> Sites {
        self.with(|inner| {
            let by = inner.saved.get(&(me.namespace.clone(), unit.to_owned())).into_iter().flatten();
            by.filter(|(other, _)| *other != me).flat_map(|(_, sites)| sites.clone()).collect()
        })
    }

    /// Units, each with what it could be recognised by, that an older policy governs.
    pub fn taken_over(&self, me: &Claimant, units: &BTreeMap<String, Claim>) -> BTreeMap<String, Taken> {
        self.with(|inner| {
            let taken = units.iter().filter_map(|(unit, claim)| {
                let other = inner.claims.older_holder(me, claim)?;
                let has_saved =
                    || inner.saved.get(&(me.namespace.clone(), unit.clone())).is_some_and(|by| by.contains_key(other));
                let how = if other.namespace != me.namespace {
                    Taken::Elsewhere
                } else if has_saved() {
                    Taken::HandedOver
                } else {
                    Taken::NotSavedYet
                };
                Some((unit.clone(), how))
            });
            taken.collect()
        })
    }
}

/// Whether an identity is one that a target states of itself.
pub fn is_stated(identity: &str) -> bool {
    identity.starts_with("aistore/")
}

impl Inner {
    fn claim(&mut self, me: &Claimant, claim: Claim, looked_at: &[Scope]) -> Claimed {
        let mut concerned = self.claims.insert(me, claim);
        for scope in looked_at {
            concerned.extend(self.queue.done(scope, me));
        }
        Claimed { winner: self.claims.winner(me).cloned(), shared: self.claims.is_shared(me), concerned }
    }

    fn forget(&mut self, claimant: &Claimant) -> BTreeSet<Claimant> {
        let mut concerned = self.claims.remove(claimant);
        concerned.extend(self.queue.done_everywhere(claimant));
        self.drop_saved(claimant);
        concerned
    }

    fn drop_saved(&mut self, claimant: &Claimant) {
        for unit in self.units.remove(claimant).unwrap_or_default() {
            let key = (claimant.namespace.clone(), unit);
            if let Some(by) = self.saved.get_mut(&key) {
                by.remove(claimant);
                if by.is_empty() {
                    self.saved.remove(&key);
                }
            }
        }
    }
}
