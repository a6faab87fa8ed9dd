//! Words for numbers.

/// The noun that agrees with the number: `node`, `nodes`.
#[must_use]
pub const fn noun<'a>(n: usize, one: &'a str, several: &'a str) -> &'a str {
    if n == 1 { one } else { several }
}

/// The number with its noun: `1 node`, `3 nodes`.
#[must_use]
pub fn counted(n: usize, one: &str, several: &str) -> String {
    format!("{n} {}", noun(n, one, several))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_agree() {
        let nodes = [0, 1, 2].map(|n| counted(n, "node", "nodes"));
        assert_eq!(nodes, ["0 nodes", "1 node", "2 nodes"]);
        assert_eq!(counted(2, "policy", "policies"), "2 policies");
    }
}
