//! Panics on demand, for tests that a panic affects one policy only. Only tests set the variable.

use std::sync::OnceLock;

/// `STAGE:NAMESPACE/NAME`: this stage of every pass of this policy panics.
const VARIABLE: &str = "IDLECONN_PLANT_PANIC";

/// Panics if the variable names this stage and policy.
pub fn panics(stage: &str, policy: &str) {
    static PLANTED: OnceLock<Option<(String, String)>> = OnceLock::new();
    let planted = PLANTED.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        text.split_once(':').map(|(stage, policy)| (stage.to_owned(), policy.to_owned()))
    });
    if let Some((in_stage, of_policy)) = planted {
        #[allow(clippy::manual_assert, clippy::panic)] // This file exists for this panic.
        if in_stage == stage && of_policy == policy {
            panic!("planted by {VARIABLE}");
        }
    }
}
