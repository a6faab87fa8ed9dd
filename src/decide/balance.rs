//! Balance: which shards a replica takes, and which it hands over, so that all replicas hold equally many.
//!
//! Every replica computes this from what it sees of the Leases. Replicas that see the same agree, so that only one of them
//! takes a free shard. The Lease decides where they do not agree.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Time after which any replica takes a shard whose holder is gone.
const EXPIRED_GRACE: Duration = Duration::from_secs(1);
/// Time after which any replica takes a shard that was released.
const RELEASED_GRACE: Duration = Duration::from_secs(5);

/// The Lease of a shard, as one replica sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardLease<'a> {
    /// A replica holds it.
    Held(&'a str),
    /// This replica held it and has not renewed it: the Lease expired this long ago.
    Expired(&'a str, Duration),
    /// No replica has held it for this long.
    Released(Duration),
}

/// What a replica does about a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Nothing new.
    Stay,
    /// Take the free Lease, or keep it.
    Hold,
    /// End the work and release the Lease.
    HandOver,
}

/// What `me` does about each shard. `replicas` are those that live; `me` is one of them.
///
/// A replica hands over only what it holds above its fair share, and only if another replica is below its own.
#[must_use]
pub fn moves(me: &str, replicas: &BTreeSet<&str>, shards: &[ShardLease<'_>]) -> Vec<Move> {
    let mut held: BTreeMap<&str, usize> = replicas.iter().chain([&me]).map(|replica| (*replica, 0)).collect();
    for shard in shards {
        match shard {
            ShardLease::Held(by) => held.get_mut(by).map_or((), |count| *count += 1),
            // The replica is gone, although its own Lease expires later.
            ShardLease::Expired(by, _) if *by != me => drop(held.remove(by)),
            ShardLease::Expired(..) | ShardLease::Released(_) => {}
        }
    }
    let mut moves: Vec<_> = shards.iter().map(|shard| take(me, *shard, &mut held)).collect();
    let mut excess = excess(me, &held);
    for (shard, made) in shards.iter().zip(&mut moves).rev() {
        if excess > 0 && *shard == ShardLease::Held(me) {
            *made = Move::HandOver;
            excess -= 1;
        }
    }
    moves
}

/// A free shard is for the replica with the fewest. If that one does not take it, any replica may.
fn take(me: &str, shard: ShardLease<'_>, held: &mut BTreeMap<&str, usize>) -> Move {
    let is_for_all = match shard {
        ShardLease::Held(by) => return if by == me { Move::Hold } else { Move::Stay },
        ShardLease::Expired(_, since) => since >= EXPIRED_GRACE,
        ShardLease::Released(since) => since >= RELEASED_GRACE,
    };
    let Some((first, count)) = held.iter_mut().min_by_key(|(name, count)| (**count, **name)) else { return Move::Stay };
    *count += 1;
    if *first == me || is_for_all { Move::Hold } else { Move::Stay }
}

/// How many shards `me` holds above its fair share. Where the shares differ by one, the larger ones are for those that
/// hold most, so that the fewest shards move.
fn excess(me: &str, held: &BTreeMap<&str, usize>) -> usize {
    let all: usize = held.values().sum();
    let mut order: Vec<_> = held.iter().collect();
    order.sort_by_key(|(name, count)| (Reverse(**count), **name));
    let Some(rank) = order.iter().position(|(name, _)| **name == me) else { return 0 };
    let share = all / order.len() + usize::from(rank < all % order.len());
    order[rank].1.saturating_sub(share)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn of(me: &str, replicas: &[&str], shards: &[ShardLease<'_>]) -> Vec<Move> {
        moves(me, &replicas.iter().copied().collect(), shards)
    }

    use Move::{HandOver, Hold, Stay};
    use ShardLease::{Expired, Held, Released};

    #[test]
    fn the_first_replica_takes_all_and_hands_half_to_the_second() {
        assert_eq!(of("a", &["a"], &[Released(NOW); 4]), [Hold; 4]);
        let held = [Held("a"); 4];
        assert_eq!(of("a", &["a", "b"], &held), [Hold, Hold, HandOver, HandOver]);
        assert_eq!(of("b", &["a", "b"], &held), [Stay; 4]);
    }

    #[test]
    fn what_is_even_up_to_one_stays() {
        let held = [Held("a"), Held("a"), Held("b"), Held("b"), Held("c")];
        assert_eq!(of("a", &["a", "b", "c"], &held), [Hold, Hold, Stay, Stay, Stay]);
        assert_eq!(of("c", &["a", "b", "c"], &held), [Stay, Stay, Stay, Stay, Hold]);
    }

    #[test]
    fn the_shards_of_a_killed_replica_go_to_those_with_the_fewest_at_once_and_to_all_after_a_second() {
        // The own Lease of the killed replica has not expired yet.
        let shards = |since| [Held("a"), Held("a"), Held("b"), Held("b"), Expired("c", since), Expired("c", since)];
        let all = ["a", "b", "c"];
        assert_eq!(of("a", &all, &shards(NOW))[4..], [Hold, Stay]);
        assert_eq!(of("b", &all, &shards(NOW))[4..], [Stay, Hold]);
        assert_eq!(of("b", &all, &shards(EXPIRED_GRACE))[4..], [Hold, Hold]);
    }

    #[test]
    fn a_released_shard_is_for_the_replica_below_its_share() {
        let shards = |since| [Held("a"), Held("a"), Released(since)];
        assert_eq!(of("a", &["a", "b"], &shards(NOW)), [Hold, Hold, Stay]);
        assert_eq!(of("b", &["a", "b"], &shards(NOW)), [Stay, Stay, Hold]);
        assert_eq!(of("a", &["a", "b"], &shards(RELEASED_GRACE)), [Hold, Hold, Hold]);
    }

    #[test]
    fn a_shard_of_a_replica_that_is_not_known_is_left_alone() {
        assert_eq!(of("a", &["a"], &[Held("stranger"), Held("a")]), [Stay, Hold]);
    }

    /// Replicas by name, and the holder of each shard.
    struct Cluster {
        replicas: BTreeSet<String>,
        shards: Vec<Option<String>>,
    }

    impl Cluster {
        /// Each replica moves in turn, by what it sees then, until nothing changes. Returns the number of shards that were
        /// handed over.
        fn settle(&mut self) -> usize {
            let mut handed_over = 0;
            for _ in 0..8 {
                let mut changed = false;
                for me in self.replicas.clone() {
                    let seen: Vec<_> = self.shards.iter().map(|holder| holder.as_deref().map_or(Released(NOW), Held)).collect();
                    let made = moves(&me, &self.replicas.iter().map(String::as_str).collect(), &seen);
                    for (shard, made) in self.shards.iter_mut().zip(made) {
                        let next = match made {
                            Stay => continue,
                            Hold => Some(me.clone()),
                            HandOver => None,
                        };
                        handed_over += usize::from(next.is_none());
                        changed |= *shard != next;
                        *shard = next;
                    }
                }
                if !changed {
                    return handed_over;
                }
            }
            panic!("the shards never come to rest: {:?}", self.shards);
        }

        fn counts(&self) -> Vec<usize> {
            let count = |replica: &String| self.shards.iter().filter(|holder| holder.as_ref() == Some(replica)).count();
            self.replicas.iter().map(count).collect()
        }
    }

    proptest! {
        #[test]
        fn replicas_that_come_and_go_end_with_even_shares_and_the_fewest_moves(
            shards in 1usize..24,
            events in prop::collection::vec((any::<bool>(), 0usize..8), 1..24),
        ) {
            let mut cluster = Cluster { replicas: BTreeSet::new(), shards: vec![None; shards] };
            for (joins, n) in events {
                let name = format!("replica-{n}");
                let necessary = if joins && !cluster.replicas.contains(&name) {
                    let before = cluster.replicas.len();
                    cluster.replicas.insert(name);
                    // The new replica needs its share from the others, and nothing else moves.
                    if before == 0 { 0 } else { shards / (before + 1) }
                } else if !joins && cluster.replicas.remove(&name) {
                    for shard in &mut cluster.shards {
                        *shard = shard.take().filter(|holder| *holder != name);
                    }
                    0
                } else {
                    continue;
                };
                prop_assert_eq!(cluster.settle(), necessary);
                let counts = cluster.counts();
                if let (Some(least), Some(most)) = (counts.iter().min(), counts.iter().max()) {
                    prop_assert!(most - least <= 1 && counts.iter().sum::<usize>() == shards, "{:?}", counts);
                }
            }
        }
    }
}
