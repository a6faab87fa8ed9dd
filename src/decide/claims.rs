//! Two policies on one target: who wins.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// A policy as far as the contest goes. The order is the order of precedence: older first, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// `metadata.creationTimestamp`.
    pub created: Timestamp,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// What every policy was seen to point at.
pub type Claims = BTreeMap<Claimant, Vec<String>>;

/// The policy that this one loses to: the first in precedence that shares anything with it.
#[must_use]
pub fn winner<'a>(claims: &'a Claims, me: &Claimant, identities: &[String]) -> Option<&'a Claimant> {
    claims
        .iter()
        .take_while(|(other, _)| *other < me)
        .find(|(_, theirs)| theirs.iter().any(|identity| identities.contains(identity)))
        .map(|(other, _)| other)
}

/// Those that have lost to this one, or may have, and must look again when it changes.
#[must_use]
pub fn rivals(claims: &Claims, me: &Claimant, identities: &[String]) -> Vec<Claimant> {
    claims
        .iter()
        .filter(|(other, theirs)| *other != me && theirs.iter().any(|identity| identities.contains(identity)))
        .map(|(other, _)| other.clone())
        .collect()
}

/// What the loser is told; a policy of another namespace is not named, because the reader may not see it.
#[must_use]
pub fn sentence(winner: &Claimant, me: &Claimant) -> String {
    if winner.namespace == me.namespace {
        format!("policy {} is older and governs the same target; delete one of them", winner.name)
    } else {
        "an older policy in another namespace governs the same target".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant(second: i64, namespace: &str, name: &str) -> Claimant {
        Claimant { created: Timestamp::from_second(second).expect("a time"), namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn the_older_wins_then_the_name() {
        let (old, young, twin) = (claimant(1, "b", "old"), claimant(2, "a", "young"), claimant(1, "b", "zzz"));
        let one = vec!["x".to_owned()];
        let claims = Claims::from([(old.clone(), one.clone()), (young.clone(), one.clone()), (twin.clone(), one.clone())]);
        assert_eq!(winner(&claims, &young, &one), Some(&old));
        assert_eq!(winner(&claims, &twin, &one), Some(&old));
        assert_eq!(winner(&claims, &old, &one), None);
        assert_eq!(rivals(&claims, &old, &one), [twin, young]);
    }

    #[test]
    fn any_overlap_is_enough_and_none_is_none() {
        let (old, young) = (claimant(1, "a", "old"), claimant(2, "a", "young"));
        let claims = Claims::from([(old.clone(), vec!["x".into(), "y".into()])]);
        assert_eq!(winner(&claims, &young, &["z".into(), "y".into()]), Some(&old));
        assert_eq!(winner(&claims, &young, &["z".into()]), None);
    }

    #[test]
    fn a_policy_of_another_namespace_is_not_named() {
        let me = claimant(2, "mine", "me");
        assert!(sentence(&claimant(1, "mine", "older-one"), &me).contains("older-one"));
        assert!(!sentence(&claimant(1, "theirs", "secret-project"), &me).contains("secret-project"));
    }
}
