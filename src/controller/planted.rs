//! A panic on demand, to show that the panic of one policy is that policy's failure. Only tests set the variable.

use std::sync::OnceLock;

/// `STAGE:NAMESPACE/NAME`: that stage of every visit to that policy panics.
const VARIABLE: &str = "IDLECONN_PLANT_PANIC";

/// Panics where a test has asked for it.
pub fn panics(stage: &str, policy: &str) {
    static PLANTED: OnceLock<Option<(String, String)>> = OnceLock::new();
    let planted = PLANTED.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        text.split_once(':').map(|(stage, policy)| (stage.to_owned(), policy.to_owned()))
    });
    if let Some((in_stage, of_policy)) = planted {
        #[allow(clippy::manual_assert, clippy::panic)] // What this file is for.
        if in_stage == stage && of_policy == policy {
            panic!("planted by {VARIABLE}");
        }
    }
}
