//! Numbers and lists in messages.

use std::fmt::Display;

/// Maximum number of names in one sentence.
const MAX_LISTED: usize = 3;

/// The noun that agrees with the number: `node`, `nodes`.
#[must_use]
pub fn noun<'a, N: PartialEq + From<u8>>(number: &N, one: &'a str, many: &'a str) -> &'a str {
    if *number == N::from(1) { one } else { many }
}

/// A number with its noun: `1 node`, `3 nodes`.
#[must_use]
pub fn with_noun<N: Copy + Display + PartialEq + From<u8>>(number: N, one: &str, many: &str) -> String {
    let noun = noun(&number, one, many);
    format!("{number} {noun}")
}

/// A part of a number of nodes: `0 of 1 node`, `2 of 3 nodes`.
#[must_use]
pub fn of_nodes<N: Copy + Display + PartialEq + From<u8>>(part: N, whole: N) -> String {
    format!("{part} of {}", with_noun(whole, "node", "nodes"))
}

/// The first three of a list and the number of the others: `gw-1, gw-2, gw-3 and 7 more`.
#[must_use]
pub fn listed(names: &[impl AsRef<str>]) -> String {
    let first: Vec<_> = names.iter().take(MAX_LISTED).map(AsRef::as_ref).collect();
    match names.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// A share in percent, for display.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Bounded.
pub fn percent(share: f64) -> u32 {
    (share.clamp(0.0, 1e6) * 100.0).round() as u32
}

/// A duration for display: `45s`, `12m`, `3h 5m`.
#[must_use]
pub fn spoken(ms: i64) -> String {
    let seconds = ms / 1000;
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        _ if seconds % 3600 < 60 => format!("{}h", seconds / 3600),
        _ => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noun_agrees_with_its_number() {
        assert_eq!([0_usize, 1, 2].map(|n| with_noun(n, "node", "nodes")), ["0 nodes", "1 node", "2 nodes"]);
        assert_eq!(with_noun(3_u32, "policy", "policies"), "3 policies");
        assert_eq!([(0, 1), (1, 3)].map(|(part, whole): (u32, u32)| of_nodes(part, whole)), ["0 of 1 node", "1 of 3 nodes"]);
    }

    #[test]
    fn a_long_list_is_limited_and_says_so() {
        let names = ["a", "b", "c", "d", "e"];
        assert_eq!([1, 3, 5].map(|n| listed(&names[..n])), ["a", "a, b, c", "a, b, c and 2 more"]);
    }
}
