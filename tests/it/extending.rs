//! The diffs in docs/extending.md apply to the current tree, and are as short as the page says.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use crate::support::cluster::ROOT;

/// Returns the diff in a section of the page.
fn diff(section: &str) -> String {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/extending.md")).unwrap();
    let section = page.split("\n## ").find(|part| part.starts_with(section)).unwrap_or_else(|| panic!("no section {section}"));
    let (_, diff) = section.split_once("```diff\n").expect("a diff");
    diff.split_once("```").expect("an end of the diff").0.to_owned()
}

/// Checks that git can apply the diff.
fn applies(diff: &str) -> Result<(), String> {
    let mut git = Command::new("git")
        .current_dir(ROOT)
        .args(["apply", "--check", "--verbose", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    git.stdin.take().unwrap().write_all(diff.as_bytes()).unwrap();
    let done = git.wait_with_output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    // git reports a file that it skips, and does not treat that as a failure.
    if done.status.success() && !said.contains("Skipped") { Ok(()) } else { Err(said) }
}

/// Returns the edited files with the number of hunks, and the added files.
fn edits(diff: &str) -> (Vec<(String, usize)>, Vec<String>) {
    let (mut edited, mut added): (Vec<(String, usize)>, Vec<String>) = (Vec::new(), Vec::new());
    let mut from = "";
    for line in diff.lines() {
        if let Some(old) = line.strip_prefix("--- ") {
            from = old;
        } else if let Some(new) = line.strip_prefix("+++ b/") {
            if from == "/dev/null" { added.push(new.into()) } else { edited.push((new.into(), 0)) }
        } else if line.starts_with("@@ ") && from != "/dev/null" {
            edited.last_mut().expect("a file before its hunk").1 += 1;
        }
    }
    (edited, added)
}

/// Checks that the context of each hunk occurs exactly once in its file.
fn is_clear(diff: &str) {
    let (mut file, mut before, mut hunks) = (String::new(), String::new(), Vec::new());
    for line in diff.lines().chain(["@@ end"]) {
        match line.split_at_checked(1) {
            _ if line.starts_with("--- ") || line.starts_with("+++ ") || line.starts_with("@@ ") => {
                if !before.is_empty() {
                    hunks.push((file.clone(), std::mem::take(&mut before)));
                }
                file = line.strip_prefix("+++ b/").map_or(file, str::to_owned);
            }
            Some((" " | "-", text)) => {
                before += text;
                before.push('\n');
            }
            _ => {}
        }
    }
    assert!(!hunks.is_empty());
    for (file, before) in hunks {
        let text = fs::read_to_string(Path::new(ROOT).join(&file)).unwrap();
        assert_eq!(text.matches(&before).count(), 1, "{file}:\n{before}");
    }
}

#[test]
fn a_limit_is_three_edits() {
    let diff = diff("A limit");
    assert_eq!(applies(&diff), Ok(()));
    is_clear(&diff);
    let (edited, added) = edits(&diff);
    let places: usize = edited.iter().map(|(_, hunks)| hunks).sum();
    assert!(places <= 3 && added.is_empty(), "{edited:?} {added:?}");
    assert_eq!(edited[0].0, "src/api/limits.rs");
}

#[test]
fn a_diff_that_does_not_fit_is_noticed() {
    let diff = diff("A limit").replace("Limit::BackendMaxConnLifetime", "Limit::BackendMaxConnLifetimes");
    assert!(applies(&diff).is_err());
}

#[test]
fn a_target_is_a_folder_its_spec_and_one_registration() {
    let diff = diff("A target");
    assert_eq!(applies(&diff), Ok(()));
    is_clear(&diff);
    let (edited, added) = edits(&diff);
    let edited: Vec<_> = edited.into_iter().map(|(file, _)| file).collect();
    assert_eq!(edited, ["src/api/mod.rs", "src/api/policy.rs", "src/targets/mod.rs"]);
    assert_eq!(added, ["src/api/example.rs", "src/targets/example/mod.rs"]);
}
