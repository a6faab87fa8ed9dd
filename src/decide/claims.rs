//! Two policies on one target: which one wins, and which one waits until an older policy has been examined.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use ring::digest::{SHA256, digest};

use crate::api::status::{MAX_CLAIMS, PublishedClaims};

/// A policy, as far as conflicts go. `Ord` is the precedence: older first, then by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claimant {
    /// `metadata.creationTimestamp`.
    pub created: Timestamp,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// The identities of a policy's target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Identities from the API server or from the policy's own text: pod UIDs, addresses, the name of an object. Equal
    /// ones conflict across all namespaces.
    pub vouched: BTreeSet<String>,
    /// Identities that the target itself states, such as a cluster's UUID. Anyone can run a server that states the
    /// same, so equal ones conflict only within a namespace.
    pub stated: BTreeSet<String>,
}

impl Claim {
    /// A claim with identities from the API server or from the policy's own text only.
    #[must_use]
    pub fn vouched(identities: impl IntoIterator<Item = String>) -> Self {
        Self { vouched: identities.into_iter().collect(), stated: BTreeSet::new() }
    }

    /// The same claim with the hashes of those identities that another namespace can have, too. The claims of other shards
    /// are known as such hashes only.
    #[must_use]
    pub fn with_hashes(mut self) -> Self {
        // The UID of a pod and the name of a ConfigMap belong to one namespace.
        let crosses = |identity: &&String| !["pod/", "configmap/", HASH].iter().any(|start| identity.starts_with(start));
        for identities in [&mut self.vouched, &mut self.stated] {
            let hashes: Vec<_> = identities.iter().filter(crosses).map(|identity| hashed(identity)).collect();
            identities.extend(hashes);
        }
        self
    }
}

impl From<&PublishedClaims> for Claim {
    fn from(published: &PublishedClaims) -> Self {
        let marked = |hashes: &[String]| hashes.iter().map(|hash| format!("{HASH}{hash}")).collect();
        Self { vouched: marked(&published.targets), stated: marked(&published.reported) }
    }
}

/// Start of a hash. No identity begins with it.
const HASH: &str = "#";

/// 64 bits of a cryptographic hash: no user can choose an address that counts as that of another policy.
fn hashed(identity: &str) -> String {
    let digest = digest(&SHA256, identity.as_bytes());
    let start = digest.as_ref().first_chunk().copied().map(u64::from_be_bytes).unwrap_or_default();
    format!("{HASH}{start:016x}")
}

/// The key of an identity in the index. Stated identities are indexed within their namespace.
type Key = (Option<String>, String);

fn keys<'a>(claimant: &'a Claimant, claim: &'a Claim) -> impl Iterator<Item = Key> + 'a {
    let vouched = claim.vouched.iter().map(|identity| (None, identity.clone()));
    vouched.chain(claim.stated.iter().map(|identity| (Some(claimant.namespace.clone()), identity.clone())))
}

/// The policies that claim an identity. A policy with many identities is stored once.
type Holders = BTreeSet<Arc<Claimant>>;

/// The claims of all policies, by policy and by identity. A query costs as much as one policy's claim, however many
/// policies there are.
#[derive(Debug, Default)]
pub struct Claims {
    by_claimant: BTreeMap<Claimant, Claim>,
    holders: HashMap<Key, Holders>,
    /// Stated identities across all namespaces. Equal ones do not conflict, but both policies report them.
    stated: HashMap<String, Holders>,
}

impl Claims {
    /// A policy's claim, if the policy has been examined.
    #[must_use]
    pub fn get(&self, claimant: &Claimant) -> Option<&Claim> {
        self.by_claimant.get(claimant)
    }

    /// All policies that have been examined.
    pub fn claimants(&self) -> impl Iterator<Item = &Claimant> {
        self.by_claimant.keys()
    }

    /// Records a policy's claim. Returns the other policies that this affects: those that share an old or a new
    /// identity.
    pub fn insert(&mut self, me: &Claimant, claim: Claim) -> BTreeSet<Claimant> {
        if self.by_claimant.get(me) == Some(&claim) {
            return BTreeSet::new();
        }
        let mut concerned = self.remove(me);
        let holder = Arc::new(me.clone());
        for key in keys(me, &claim) {
            self.holders.entry(key).or_default().insert(holder.clone());
        }
        for identity in &claim.stated {
            self.stated.entry(identity.clone()).or_default().insert(holder.clone());
        }
        self.by_claimant.insert(me.clone(), claim);
        concerned.extend(self.rivals(me));
        concerned
    }

    /// Removes a policy. Returns the other policies that this affects.
    pub fn remove(&mut self, me: &Claimant) -> BTreeSet<Claimant> {
        let concerned = self.rivals(me);
        let Some(claim) = self.by_claimant.remove(me) else { return concerned };
        for key in keys(me, &claim) {
            take(&mut self.holders, &key, me);
        }
        for identity in &claim.stated {
            take(&mut self.stated, identity, me);
        }
        concerned
    }

    /// The policy that this one loses to: the first in precedence that shares an identity with it.
    #[must_use]
    pub fn winner(&self, me: &Claimant) -> Option<&Claimant> {
        self.older_holder(me, self.by_claimant.get(me)?)
    }

    /// The first policy in precedence, before this one, that holds any of these identities.
    #[must_use]
    pub fn older_holder(&self, me: &Claimant, claim: &Claim) -> Option<&Claimant> {
        keys(me, claim).filter_map(|key| self.holders.get(&key)?.first()).map(Arc::as_ref).filter(|holder| *holder < me).min()
    }

    /// Whether a policy of another namespace, with which this one does not conflict, points at a target that states the
    /// same identity.
    #[must_use]
    pub fn is_shared(&self, me: &Claimant) -> bool {
        let stated = self.by_claimant.get(me).into_iter().flat_map(|claim| &claim.stated);
        stated.filter_map(|identity| self.stated.get(identity)).flatten().any(|other| other.namespace != me.namespace)
    }

    /// What a policy claims, for other shards: all hashes if they are few, otherwise those that another policy claims, too.
    #[must_use]
    pub fn published(&self, me: &Claimant) -> Option<PublishedClaims> {
        let claim = self.by_claimant.get(me)?;
        let hashes = |identities: &BTreeSet<String>| {
            identities.iter().filter_map(|identity| identity.strip_prefix(HASH)).map(str::to_owned).collect::<Vec<_>>()
        };
        let (mut targets, mut reported) = (hashes(&claim.vouched), hashes(&claim.stated));
        let partial = targets.len() > MAX_CLAIMS;
        if partial {
            let holders = |hash: &str| self.holders.get(&(None, format!("{HASH}{hash}")));
            targets.retain(|hash| holders(hash).is_some_and(|holders| holders.len() > 1));
            targets.truncate(MAX_CLAIMS);
        }
        reported.truncate(MAX_CLAIMS);
        Some(PublishedClaims { targets, reported, partial })
    }

    fn rivals(&self, me: &Claimant) -> BTreeSet<Claimant> {
        let Some(claim) = self.by_claimant.get(me) else { return BTreeSet::new() };
        let holders = keys(me, claim).filter_map(|key| self.holders.get(&key)).flatten();
        let namesakes = claim.stated.iter().filter_map(|identity| self.stated.get(identity)).flatten();
        holders.chain(namesakes).map(Arc::as_ref).filter(|other| *other != me).cloned().collect()
    }
}

fn take<K: std::hash::Hash + Eq>(index: &mut HashMap<K, Holders>, key: &K, me: &Claimant) {
    if let Some(holders) = index.get_mut(key) {
        holders.remove(me);
        if holders.is_empty() {
            index.remove(key);
        }
    }
}

/// Policies that exist and have not been examined. A younger policy waits for the older ones, because one of them may
/// have the first claim.
#[derive(Debug)]
pub struct Queue<S> {
    pending: HashMap<S, BTreeSet<Claimant>>,
    waiting: HashMap<S, BTreeSet<Claimant>>,
}

impl<S> Default for Queue<S> {
    fn default() -> Self {
        Self { pending: HashMap::new(), waiting: HashMap::new() }
    }
}

impl<S: Clone + Eq + std::hash::Hash> Queue<S> {
    /// Adds a policy whose target in this scope is not known yet.
    pub fn add(&mut self, scope: S, claimant: Claimant) {
        self.pending.entry(scope).or_default().insert(claimant);
    }

    /// The policies whose targets are not known in some scope.
    pub fn pending(&self) -> impl Iterator<Item = &Claimant> {
        self.pending.values().flatten()
    }

    /// Whether a policy has to wait. If so, [`Queue::done`] returns it once it no longer has to.
    pub fn must_wait(&mut self, scope: &S, me: &Claimant) -> bool {
        let waits = self.pending.get(scope).and_then(BTreeSet::first).is_some_and(|first| first < me);
        if waits {
            self.waiting.entry(scope.clone()).or_default().insert(me.clone());
        }
        waits
    }

    /// Records that a policy has been examined in this scope, or is gone. Returns those that no longer have to wait.
    pub fn done(&mut self, scope: &S, claimant: &Claimant) -> BTreeSet<Claimant> {
        if let Some(waiting) = self.waiting.get_mut(scope) {
            waiting.remove(claimant);
        }
        let Some(pending) = self.pending.get_mut(scope) else { return BTreeSet::new() };
        if !pending.remove(claimant) {
            return BTreeSet::new();
        }
        let waiting = self.waiting.remove(scope).unwrap_or_default();
        let (free, still) = match pending.first() {
            None => (waiting, BTreeSet::new()),
            Some(first) => waiting.into_iter().partition(|waiting| waiting <= first),
        };
        if pending.is_empty() {
            self.pending.remove(scope);
        }
        if !still.is_empty() {
            self.waiting.insert(scope.clone(), still);
        }
        free
    }

    /// Records that a policy is gone, or that no policy has to wait for it in any scope.
    pub fn done_everywhere(&mut self, claimant: &Claimant) -> BTreeSet<Claimant> {
        let scopes: Vec<_> =
            self.pending.iter().filter(|(_, pending)| pending.contains(claimant)).map(|(s, _)| s.clone()).collect();
        scopes.iter().flat_map(|scope| self.done(scope, claimant)).collect()
    }
}

/// The message for the policy that lost. It does not name a policy of another namespace, because the reader may not be
/// allowed to see that one.
#[must_use]
pub fn conflict_message(winner: &Claimant, me: &Claimant) -> String {
    if winner.namespace == me.namespace {
        format!("Policy {} is older and governs the same target; delete one of them", winner.name)
    } else {
        "An older policy in another namespace governs the same target; delete one of them".into()
    }
}

/// The message for both policies if their targets state the same identity in two namespaces.
pub const SHARED: &str =
    "A policy in another namespace governs a cluster with the same uuid; if it is the same cluster, delete one of the policies";

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant(second: i64, namespace: &str, name: &str) -> Claimant {
        Claimant { created: Timestamp::from_second(second).expect("a time"), namespace: namespace.into(), name: name.into() }
    }

    fn vouched(identities: &[&str]) -> Claim {
        Claim::vouched(identities.iter().map(|identity| (*identity).to_owned()))
    }

    fn stated(identity: &str) -> Claim {
        Claim { vouched: BTreeSet::new(), stated: [identity.to_owned()].into() }
    }

    #[test]
    fn the_older_wins_then_the_name() {
        let (old, young, twin) = (claimant(1, "b", "old"), claimant(2, "a", "young"), claimant(1, "b", "zzz"));
        let mut claims = Claims::default();
        for policy in [&young, &twin, &old] {
            claims.insert(policy, vouched(&["x"]));
        }
        assert_eq!([&young, &twin, &old].map(|me| claims.winner(me)), [Some(&old), Some(&old), None]);
        assert_eq!(claims.remove(&old), [twin.clone(), young.clone()].into());
        assert_eq!([&young, &twin].map(|me| claims.winner(me)), [Some(&twin), None]);
    }

    #[test]
    fn any_overlap_is_enough_and_none_is_none() {
        let (old, young) = (claimant(1, "a", "old"), claimant(2, "a", "young"));
        let mut claims = Claims::default();
        claims.insert(&old, vouched(&["x", "y"]));
        assert_eq!(claims.insert(&young, vouched(&["z", "y"])), [old.clone()].into());
        assert_eq!(claims.winner(&young), Some(&old));
        assert_eq!(
            claims.insert(&young, vouched(&["z"])),
            [old.clone()].into(),
            "the other policy is affected by an identity that is no longer shared"
        );
        assert_eq!(claims.winner(&young), None);
        assert!(claims.insert(&young, vouched(&["z"])).is_empty(), "the same claim again affects no policy");
    }

    #[test]
    fn what_a_target_states_conflicts_within_its_namespace_only() {
        let (old, young, other) = (claimant(1, "a", "old"), claimant(2, "a", "young"), claimant(3, "b", "other"));
        let mut claims = Claims::default();
        claims.insert(&old, stated("uuid"));
        claims.insert(&young, stated("uuid"));
        assert_eq!(claims.insert(&other, stated("uuid")), [old.clone(), young.clone()].into(), "the other policies are affected");
        assert_eq!(claims.winner(&young), Some(&old));
        assert_eq!(claims.winner(&other), None);
        assert!(claims.is_shared(&other) && claims.is_shared(&old));
        claims.remove(&other);
        assert!(!claims.is_shared(&old));
    }

    #[test]
    fn a_younger_policy_waits_until_every_older_one_has_been_looked_at() {
        let [first, second, third] = [1, 2, 3].map(|n| claimant(n, "a", &format!("p{n}")));
        let mut queue = Queue::default();
        for policy in [&first, &second, &third] {
            queue.add("caddy", policy.clone());
        }
        assert!(!queue.must_wait(&"caddy", &first));
        assert!(queue.must_wait(&"caddy", &second) && queue.must_wait(&"caddy", &third));
        assert!(!queue.must_wait(&"aistore", &third), "policies of another kind are not waited for");
        assert_eq!(queue.done(&"caddy", &first), [second.clone()].into());
        assert!(queue.done(&"caddy", &first).is_empty());
        assert_eq!(queue.done_everywhere(&second), [third.clone()].into());
        assert!(!queue.must_wait(&"caddy", &third));
    }

    /// The claims of another shard: `me` is in this one, `other` in the other one.
    fn foreign(claims: &mut Claims, other: &Claimant, claim: Claim) -> BTreeSet<Claimant> {
        let mut theirs = Claims::default();
        theirs.insert(other, claim.with_hashes());
        claims.insert(other, Claim::from(&theirs.published(other).expect("it is known")))
    }

    #[test]
    fn the_older_wins_across_shards_too() {
        let (old, young) = (claimant(1, "a", "old"), claimant(2, "b", "young"));
        let shared = |pod: &str| vouched(&[pod, "http://10.0.0.1:2019"]);
        let mut claims = Claims::default();
        claims.insert(&young, shared("pod/u2:2019").with_hashes());
        assert_eq!(foreign(&mut claims, &old, shared("pod/u1:2019")), [young.clone()].into(), "the loser is affected");
        assert_eq!(claims.winner(&young), Some(&old));
        assert!(foreign(&mut claims, &old, vouched(&["pod/u2:2019", "configmap/a/b/c"])).contains(&young));
        assert_eq!(claims.winner(&young), None, "what belongs to one namespace is not compared");
    }

    #[test]
    fn a_large_policy_publishes_what_another_one_claims() {
        let (large, small) = (claimant(1, "a", "large"), claimant(2, "b", "small"));
        let addresses: Vec<_> = (0..5000).map(|n| format!("http://10.0.{}.{}:2019", n / 250, n % 250)).collect();
        let mut claims = Claims::default();
        claims.insert(&large, Claim::vouched(addresses.clone()).with_hashes());
        let alone = claims.published(&large).expect("it is known");
        assert!(alone.partial && alone.targets.is_empty());
        assert_eq!(foreign(&mut claims, &small, Claim::vouched([addresses[7].clone()])), [large.clone()].into());
        let shared = claims.published(&large).expect("it is known");
        assert_eq!((shared.targets.len(), shared.partial), (1, true));
        let mut theirs = Claims::default();
        theirs.insert(&small, Claim::vouched([addresses[7].clone()]).with_hashes());
        theirs.insert(&large, Claim::from(&shared));
        assert_eq!(theirs.winner(&small), Some(&large));
    }

    #[test]
    fn clusters_that_state_the_same_in_two_shards_are_shared() {
        let (old, young) = (claimant(1, "a", "old"), claimant(2, "b", "young"));
        let mut claims = Claims::default();
        claims.insert(&young, stated("aistore/uuid").with_hashes());
        foreign(&mut claims, &old, stated("aistore/uuid"));
        assert!(claims.winner(&young).is_none() && claims.is_shared(&young));
    }

    #[test]
    fn a_policy_of_another_namespace_is_not_named() {
        let me = claimant(2, "mine", "me");
        assert!(conflict_message(&claimant(1, "mine", "older-one"), &me).contains("older-one"));
        assert!(!conflict_message(&claimant(1, "theirs", "secret-project"), &me).contains("secret-project"));
    }
}
