//! Nouns that agree with their number, for messages.

use std::fmt::Display;

/// A number with its noun: `1 node`, `3 nodes`.
#[must_use]
pub fn with_noun<N: Display + PartialEq + From<u8>>(number: N, one: &str, many: &str) -> String {
    let noun = if number == N::from(1) { one } else { many };
    format!("{number} {noun}")
}

/// A part of a number of nodes: `0 of 1 node`, `2 of 3 nodes`.
#[must_use]
pub fn of_nodes<N: Display + PartialEq + From<u8>>(part: N, whole: N) -> String {
    format!("{part} of {}", with_noun(whole, "node", "nodes"))
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
}
