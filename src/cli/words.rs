//! Words for numbers.

/// Counts: `1 node`, `3 nodes`.
#[must_use]
pub fn counted(n: usize, one: &str, several: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { several })
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
