//! Registry of which policy governs which target, in memory, and of original settings that are handed over from one policy to
//! another in the same namespace.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    api::{policy::TargetType, status::PublishedClaims},
    decide::{
        Sites,
        claims::{Claim, Claimant, Claims, Queue},
        originals::{Log, Record},
        shard::Shard,
    },
};

/// Fact about older policies that a younger policy waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Location of the targets of this kind, which is known without a request to a node.
    Places(TargetType),
    /// Identities that the targets of this namespace report.
    Stated(String),
}

/// Targets and saved original settings of all policies.
#[derive(Default)]
pub struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Whether other actors govern policies of other namespaces.
    sharded: bool,
    /// Older policies of other shards that do not publish all of their claims.
    partial: BTreeSet<Claimant>,
    claims: Claims,
    queue: Queue<Scope>,
    /// By namespace and unit: original settings that each policy saved.
    saved: HashMap<(String, String), BTreeMap<Arc<Claimant>, Arc<Sites>>>,
    /// Units whose original settings each policy has saved.
    units: HashMap<Arc<Claimant>, BTreeSet<String>>,
    /// Policies whose saved original settings this process has not read yet.
    unread: BTreeSet<Claimant>,
}

/// Result of a claim.
pub struct Claimed {
    /// Older policy that governs the same target, if there is one.
    pub winner: Option<Claimant>,
    /// Whether a policy in another namespace governs a target that reports the same identity.
    pub shared: bool,
    /// Policies that need another pass.
    pub concerned: BTreeSet<Claimant>,
}

/// How an older policy governs a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// An older policy in the same namespace governs it and has saved its original settings.
    HandedOver,
    /// An older policy in the same namespace governs it and has not saved its original settings yet.
    NotSavedYet,
    /// An older policy in another namespace governs it.
    Elsewhere,
}

impl Registry {
    /// The registry of an actor.
    #[must_use]
    pub fn of(shard: Shard) -> Self {
        Self { inner: Mutex::new(Inner { sharded: shard.has_others(), ..Inner::default() }) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a policy. Younger policies wait until a pass has looked for its target. `states_identity`: targets of this kind report an
    /// identity themselves.
    pub fn listed(&self, claimant: &Claimant, kind: TargetType, states_identity: bool) {
        let inner = &mut *self.inner();
        if !inner.units.contains_key(claimant) {
            inner.unread.insert(claimant.clone());
        }
        if inner.claims.get(claimant).is_none() {
            inner.queue.add(Scope::Places(kind), claimant.clone());
            if states_identity {
                inner.queue.add(Scope::Stated(claimant.namespace.clone()), claimant.clone());
            }
        }
    }

    /// Records what a policy of another shard has published; `None` if it has published nothing yet, so that younger policies
    /// wait. Returns the policies that need another pass.
    pub fn foreign(&self, other: &Claimant, kind: TargetType, published: Option<&PublishedClaims>) -> BTreeSet<Claimant> {
        let inner = &mut *self.inner();
        let Some(published) = published else {
            if inner.claims.get(other).is_none() && crosses(kind) {
                inner.queue.add(Scope::Places(kind), other.clone());
            }
            return BTreeSet::new();
        };
        if published.partial {
            inner.partial.insert(other.clone());
        } else {
            inner.partial.remove(other);
        }
        let mut concerned = inner.claims.insert(other, published.into());
        concerned.extend(inner.queue.done_everywhere(other));
        concerned
    }

    /// Returns what the policy claims, for other shards; `None` without shards, if it is not known, and if no policy of another
    /// namespace can claim the same.
    #[must_use]
    pub fn published(&self, me: &Claimant, kind: TargetType) -> Option<PublishedClaims> {
        let inner = self.inner();
        (inner.sharded && crosses(kind)).then(|| inner.claims.published(me)).flatten()
    }

    /// Reports whether there are other shards.
    #[must_use]
    pub fn is_sharded(&self) -> bool {
        self.inner().sharded
    }

    /// Reports whether an older policy of another shard may have to publish more after it has seen the claims of this one.
    #[must_use]
    pub fn is_answered_later(&self, me: &Claimant) -> bool {
        self.inner().partial.first().is_some_and(|first| first < me)
    }

    /// Reports whether a policy must wait for an older one. If so, the claim of the older one returns it as concerned.
    pub fn must_wait(&self, me: &Claimant, scope: &Scope) -> bool {
        self.inner().queue.must_wait(scope, me)
    }

    /// Claims the location of a policy's target. The identities that the target reports stay as they were.
    pub fn claim_places(&self, me: &Claimant, kind: TargetType, vouched: BTreeSet<String>) -> Claimed {
        let inner = &mut *self.inner();
        let stated = inner.claims.get(me).map(|claim| claim.stated.clone()).unwrap_or_default();
        inner.claim(me, Claim { vouched, stated }, &[Scope::Places(kind)])
    }

    /// Claims the identities that a policy's target reports.
    pub fn claim_stated(&self, me: &Claimant, stated: BTreeSet<String>) -> Claimed {
        let inner = &mut *self.inner();
        let vouched = inner.claims.get(me).map(|claim| claim.vouched.clone()).unwrap_or_default();
        inner.claim(me, Claim { vouched, stated }, &[Scope::Stated(me.namespace.clone())])
    }

    /// Records that a policy has no target. Returns the policies that need another pass.
    pub fn give_up(&self, me: &Claimant) -> BTreeSet<Claimant> {
        let inner = &mut *self.inner();
        let mut concerned = inner.claims.insert(me, Claim::default());
        concerned.extend(inner.queue.done_everywhere(me));
        concerned
    }

    /// Records that the target of a policy could not be determined: the policy keeps what it claimed before, or the units whose
    /// settings it has saved. Returns the policies that waited for it.
    pub fn keep(&self, me: &Claimant) -> BTreeSet<Claimant> {
        let inner = &mut *self.inner();
        if inner.claims.get(me).is_none() {
            let units = inner.units.get(me).cloned().unwrap_or_default();
            let (stated, vouched) = units.into_iter().partition(|unit| is_stated(unit));
            let claim = inner.comparable(Claim { vouched, stated });
            inner.claims.insert(me, claim);
        }
        inner.queue.done_everywhere(me)
    }

    /// Forgets the policies with this name, except one. Returns the policies that need another pass.
    pub fn forget(&self, namespace: &str, name: &str, but: Option<&Claimant>) -> BTreeSet<Claimant> {
        let inner = &mut *self.inner();
        let known = inner.claims.claimants().chain(inner.queue.pending());
        let known = known.filter(|c| c.namespace == namespace && c.name == name);
        let gone: BTreeSet<_> = known.filter(|claimant| Some(*claimant) != but).cloned().collect();
        gone.iter().flat_map(|claimant| inner.forget(claimant)).collect()
    }

    /// Records the original settings that a policy has saved.
    pub fn saved(&self, me: &Claimant, log: &Log) {
        self.inner().save(me, log);
    }

    /// Records a change of the original settings that a policy has saved.
    pub fn changed(&self, me: &Claimant, record: &Record) {
        let inner = &mut *self.inner();
        for (unit, saved) in &record.units {
            match saved {
                Some(saved) => inner.save_unit(me, unit, &saved.sites),
                None => inner.drop_unit(me, unit),
            }
        }
    }

    /// Returns the other policies of the namespace whose saved original settings this process has not read yet.
    pub fn unread(&self, me: &Claimant) -> Vec<Claimant> {
        let inner = &*self.inner();
        inner.unread.iter().filter(|other| other.namespace == me.namespace && *other != me).cloned().collect()
    }

    /// Records the original settings that another policy has saved, unless that policy has read them itself meanwhile.
    pub fn read(&self, other: &Claimant, log: &Log) {
        let inner = &mut *self.inner();
        if inner.unread.contains(other) {
            inner.save(other, log);
        }
    }

    /// Returns the original settings of a unit that another policy of the same namespace saved: those from before the first
    /// policy are the original ones. Records of other namespaces are not used, because their authors could have written anything.
    pub fn original(&self, me: &Claimant, unit: &str) -> Sites {
        let inner = &mut *self.inner();
        let by = inner.saved.get(&(me.namespace.clone(), unit.to_owned())).into_iter().flatten();
        by.filter(|(other, _)| ***other != *me).flat_map(|(_, sites)| Sites::clone(sites)).collect()
    }

    /// Returns those of the units, given with their identities, that an older policy governs.
    pub fn taken_over(&self, me: &Claimant, units: &BTreeMap<String, Claim>) -> BTreeMap<String, Taken> {
        let inner = &*self.inner();
        let taken = units.iter().filter_map(|(unit, claim)| {
            let other = inner.claims.older_holder(me, &inner.comparable(claim.clone()))?;
            let has_saved = || inner.saved.get(&(me.namespace.clone(), unit.clone())).is_some_and(|by| by.contains_key(other));
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
    }
}

/// Reports whether an identity is one that a target reports.
#[must_use]
pub fn is_stated(identity: &str) -> bool {
    identity.starts_with("aistore/")
}

/// Reports whether policies of two namespaces can claim the same target of this kind.
const fn crosses(kind: TargetType) -> bool {
    !matches!(kind, TargetType::ConfigMap)
}

impl Inner {
    /// The claim, so that it can be compared with those of other shards.
    fn comparable(&self, claim: Claim) -> Claim {
        if self.sharded { claim.with_hashes() } else { claim }
    }

    fn claim(&mut self, me: &Claimant, claim: Claim, looked_at: &[Scope]) -> Claimed {
        let claim = self.comparable(claim);
        let mut concerned = self.claims.insert(me, claim);
        for scope in looked_at {
            concerned.extend(self.queue.done(scope, me));
        }
        Claimed { winner: self.claims.winner(me).cloned(), shared: self.claims.is_shared(me), concerned }
    }

    fn save(&mut self, claimant: &Claimant, log: &Log) {
        self.drop_saved(claimant);
        self.unread.remove(claimant);
        self.units.insert(Arc::new(claimant.clone()), BTreeSet::new());
        for (unit, saved) in log.units() {
            self.save_unit(claimant, unit, &saved.sites);
        }
    }

    fn save_unit(&mut self, claimant: &Claimant, unit: &str, sites: &Arc<Sites>) {
        let known = self.units.get_key_value(claimant).map(|(claimant, _)| claimant.clone());
        let claimant = known.unwrap_or_else(|| Arc::new(claimant.clone()));
        self.units.entry(claimant.clone()).or_default().insert(unit.to_owned());
        let key = (claimant.namespace.clone(), unit.to_owned());
        self.saved.entry(key).or_default().insert(claimant, sites.clone());
    }

    fn forget(&mut self, claimant: &Claimant) -> BTreeSet<Claimant> {
        self.unread.remove(claimant);
        self.partial.remove(claimant);
        let mut concerned = self.claims.remove(claimant);
        concerned.extend(self.queue.done_everywhere(claimant));
        self.drop_saved(claimant);
        concerned
    }

    fn drop_saved(&mut self, claimant: &Claimant) {
        for unit in self.units.remove(claimant).unwrap_or_default() {
            self.drop_unit(claimant, &unit);
        }
    }

    fn drop_unit(&mut self, claimant: &Claimant, unit: &str) {
        self.units.get_mut(claimant).map(|units| units.remove(unit));
        let key = (claimant.namespace.clone(), unit.to_owned());
        if let Some(by) = self.saved.get_mut(&key) {
            by.remove(claimant);
            if by.is_empty() {
                self.saved.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    const CADDY: TargetType = TargetType::Caddy;

    fn claimant(second: i64, namespace: &str) -> Claimant {
        Claimant { created: Timestamp::from_second(second).expect("a time"), namespace: namespace.into(), name: "gw".into() }
    }

    fn sharded() -> Registry {
        let shard = Shard::each(2).find(|shard| shard.has("mine"));
        Registry::of(shard.expect("a shard"))
    }

    fn at(address: &str) -> BTreeSet<String> {
        [address.to_owned()].into()
    }

    #[test]
    fn a_younger_policy_waits_until_the_older_one_of_another_shard_has_published_its_claims() {
        let (registry, old, me) = (sharded(), claimant(1, "theirs"), claimant(2, "mine"));
        assert!(registry.foreign(&old, CADDY, None).is_empty());
        assert!(registry.foreign(&claimant(1, "files"), TargetType::ConfigMap, None).is_empty());
        assert!(registry.claim_places(&me, CADDY, at("http://10.0.0.1:2019")).winner.is_none());
        assert!(registry.must_wait(&me, &Scope::Places(CADDY)));
        let other = sharded();
        other.claim_places(&old, CADDY, at("http://10.0.0.1:2019"));
        let published = other.published(&old, CADDY);
        assert_eq!(registry.foreign(&old, CADDY, published.as_ref()), [me.clone()].into());
        assert!(!registry.must_wait(&me, &Scope::Places(CADDY)));
        // The same claim again: the result does not depend on how often a pass claims.
        for _ in 0..2 {
            assert_eq!(registry.claim_places(&me, CADDY, at("http://10.0.0.1:2019")).winner, Some(old.clone()));
        }
        assert_eq!(registry.published(&me, CADDY), published, "a policy that loses publishes its claims, too");
        assert_eq!(registry.forget("theirs", "gw", None), [me.clone()].into());
        assert!(registry.claim_places(&me, CADDY, at("http://10.0.0.1:2019")).winner.is_none());
    }

    #[test]
    fn a_policy_that_is_deleted_before_it_published_anything_is_waited_for_no_longer() {
        let (registry, old, me) = (sharded(), claimant(1, "theirs"), claimant(2, "mine"));
        registry.foreign(&old, CADDY, None);
        registry.claim_places(&me, CADDY, at("http://10.0.0.1:2019"));
        assert!(registry.must_wait(&me, &Scope::Places(CADDY)));
        assert_eq!(registry.forget("theirs", "gw", None), [me.clone()].into());
        assert!(!registry.must_wait(&me, &Scope::Places(CADDY)));
    }

    #[test]
    fn without_shards_nothing_is_published() {
        let (registry, me) = (Registry::default(), claimant(1, "mine"));
        registry.claim_places(&me, CADDY, at("http://10.0.0.1:2019"));
        assert_eq!(registry.published(&me, CADDY), None);
    }
}
