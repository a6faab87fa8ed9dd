//! The `kubectl idleconn` plugin.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use idleconn_operator::cli::{Cli, run};

#[tokio::main]
async fn main() -> ExitCode {
    // An error means that a provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(Cli::parse()).await {
        Ok(answer) => {
            // The reader may have closed the pipe, as `head` does.
            let _ = std::io::stdout().write_all(answer.text.as_bytes());
            let _ = std::io::stderr().write_all(answer.notice.as_bytes());
            if answer.is_failure { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("{}", error.line());
            ExitCode::from(error.exit_code())
        }
    }
}
