//! Logging.

use std::io::IsTerminal as _;

use tracing_subscriber::{
    EnvFilter,
    filter::ParseError,
    fmt,
    layer::SubscriberExt as _,
    util::{SubscriberInitExt as _, TryInitError},
};

use crate::config::LogFormat;

/// Starts logging to standard error.
///
/// # Errors
/// Returns an error if the level is invalid, or if logging was already started.
pub fn start(format: LogFormat, level: &str) -> Result<(), Error> {
    let filter = EnvFilter::builder().parse(level).map_err(|error| Error::Level(level.to_owned(), error))?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => registry
            .with(fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(std::io::stderr().is_terminal()))
            .try_init(),
        LogFormat::Json => registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init(),
    };
    Ok(started?)
}

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is invalid.
    #[error("invalid --log-level {0:?}; use error, warn, info, debug, trace or a list such as info,idleconn_operator=debug")]
    Level(String, #[source] ParseError),
    /// Logging was already started.
    #[error("logging was already started")]
    Twice(#[from] TryInitError),
}
