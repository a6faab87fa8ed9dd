//! Files that people read, held to what the code says. `make generate` writes them; what changed in them is for review.

use std::{fs, path::Path};

/// Holds a file, by its path from the repository's root, to a text.
pub fn check(path: &str, text: &str) {
    // Run from tests/pure as well.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|path| path.join("tests/golden").is_dir()).unwrap();
    let at = root.join(path);
    if std::env::var_os("IDLECONN_GENERATE").is_some() {
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(&at, text).unwrap();
    }
    let there = fs::read_to_string(&at).unwrap_or_default();
    let first = there.lines().zip(text.lines()).find(|(a, b)| a != b);
    assert!(there == text, "{path} is not what the code says, first: {first:?}; run `make generate` and review what changed");
}
