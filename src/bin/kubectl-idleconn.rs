//! The `kubectl idleconn` plugin.

use std::process::ExitCode;

use clap::Parser as _;
use idleconn_operator::cli::{Cli, run};

#[tokio::main]
async fn main() -> ExitCode {
    // This fails only if a provider is already installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(Cli::parse()).await {
        Ok(answer) => {
            use std::io::Write as _;
            // The reader may have closed the pipe, as `head` does.
            let _ = std::io::stdout().write_all(answer.text.as_bytes());
            if answer.is_failure { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("kubectl idleconn: {error}");
            ExitCode::FAILURE
        }
    }
}
