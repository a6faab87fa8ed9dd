//! Shards: which part of the namespaces one actor governs.

use super::hash::fnv1a;

/// Maximum number of shards.
pub const MAX_SHARDS: u32 = 64;

/// One shard of the namespaces. The shard of a namespace depends on its name and on the number of shards only, so that
/// all replicas agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard {
    index: u32,
    count: u32,
}

impl Shard {
    /// All namespaces.
    pub const ALL: Self = Self { index: 0, count: 1 };

    /// The shards of the namespaces, by index. `count` is 1 to [`MAX_SHARDS`].
    pub fn each(count: u32) -> impl Iterator<Item = Self> {
        let count = count.clamp(1, MAX_SHARDS);
        (0..count).map(move |index| Self { index, count })
    }

    /// Number of this shard, from 0.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.index
    }

    /// Number of shards.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.count
    }

    /// Whether there are other shards.
    #[must_use]
    pub const fn has_others(self) -> bool {
        self.count > 1
    }

    /// Whether a namespace belongs to this shard.
    #[must_use]
    pub fn has(self, namespace: &str) -> bool {
        fnv1a(namespace) % u64::from(self.count) == u64::from(self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_namespace_belongs_to_one_shard() {
        for count in [1, 2, 6, 64] {
            for namespace in ["default", "ais", "shop", "kube-system", ""] {
                assert_eq!(Shard::each(count).filter(|shard| shard.has(namespace)).count(), 1, "{namespace} of {count}");
            }
        }
        assert!(Shard::ALL.has("anything") && Shard::each(1).eq([Shard::ALL]) && !Shard::ALL.has_others());
    }

    #[test]
    fn a_namespace_keeps_its_shard_in_every_version() {
        // Two versions of the operator that disagree here would both act on a namespace.
        let of = |namespace: &str| Shard::each(6).find(|shard| shard.has(namespace)).map(Shard::index);
        assert_eq!(["default", "ais", "shop"].map(of), [Some(0), Some(0), Some(5)]);
    }

    #[test]
    fn many_namespaces_are_spread_evenly() {
        let mut sizes = [0; 6];
        for n in 0..6000 {
            let namespace = format!("team-{n}");
            for shard in Shard::each(6).filter(|shard| shard.has(&namespace)) {
                sizes[usize::try_from(shard.index()).expect("a number")] += 1;
            }
        }
        assert!(sizes.iter().all(|size| (800..1200).contains(size)), "{sizes:?}");
    }
}
