//! `kubectl idleconn`.

use std::process::ExitCode;

use clap::Parser as _;
use idleconn_operator::cli::{Cli, run};

#[tokio::main]
async fn main() -> ExitCode {
    // Fails only where one is installed already, which is then as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(Cli::parse()).await {
        Ok(answer) => {
            use std::io::Write as _;
            // Whoever reads may have gone, as `head` does.
            let _ = std::io::stdout().write_all(answer.text.as_bytes());
            if answer.is_failure { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("kubectl idleconn: {error}");
            ExitCode::FAILURE
        }
    }
}
