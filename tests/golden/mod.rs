//! Golden files: readable files that are compared with the output of the code. `make generate` writes them; review the
//! differences.

use std::{fs, path::Path};

/// Text of a golden file, given by its path from the root of the repository.
#[allow(dead_code)] // Not every test that uses `check` reads.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Root of the repository, also from tests/pure.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|path| path.join("tests/golden").is_dir()).unwrap()
}

/// Compares a file, given by its path from the root of the repository, with a text.
pub fn check(path: &str, text: &str) {
    let at = root().join(path);
    if std::env::var_os("IDLECONN_GENERATE").is_some() {
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(&at, text).unwrap();
    }
    let there = fs::read_to_string(&at).unwrap_or_default();
    let first = there.lines().zip(text.lines()).find(|(a, b)| a != b);
    assert!(there == text, "{path} is not what the code says, first: {first:?}; run `make generate` and review what changed");
}
