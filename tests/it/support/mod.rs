//! Shared test support: the control plane, real servers, fakes, and the operator itself.

pub mod admin_api;
pub mod ais;
pub mod api;
pub mod caddy;
pub mod cluster;
#[allow(dead_code)] // Only the attacks use it.
pub mod hostile;
#[allow(dead_code)] // Only the tests of flushes use it.
pub mod idle;
pub mod load;
pub mod operator;
pub mod proxy;
pub mod replica;
#[allow(dead_code)] // Only the probes use it.
pub mod scripted;
#[allow(dead_code)]
pub mod servers;
pub mod service;
pub mod slow_link;

use std::{process::Stdio, time::Duration};

/// Returns a command for a program that a shell ends when this process ends in any way, because the shell's standard input then
/// closes. The caller adds the arguments.
pub fn leashed(program: impl AsRef<std::ffi::OsStr>) -> std::process::Command {
    let mut command = std::process::Command::new("bash");
    command.args(["-c", r#""$@" </dev/null & pid=$!; cat >/dev/null; kill $pid 2>/dev/null; wait $pid 2>/dev/null"#, "leashed"]);
    command.arg(program).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Timeout of everything that a test waits for.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Polls until there is a result, for conditions that cannot be watched. On a timeout, the failure names the condition.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, waiting).await.unwrap_or_else(|_| panic!("never came true: {what}"))
}
