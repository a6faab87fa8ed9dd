//! Idle connections that a server closes at each change of a limit, whatever the new value is.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Idle connections that a change closes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closes {
    /// The connections of the pool to which the limit belongs.
    OwnPool,
    /// All connections of the process, including pools that no policy manages.
    AllPools,
}

/// Change that closes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flush {
    /// Connections that the change closes.
    pub closes: Closes,
    /// Time after the change during which the process continues to close connections.
    pub settle: Duration,
}

/// Reaction of a file's reader to a change of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The reader reads the limit only at its start.
    AtStart,
    /// The reader uses the new value and closes nothing.
    Hot,
    /// The reader uses the new value, and closes connections to do so.
    Flush(Flush),
}

impl Reload {
    /// Change that closes all idle connections of the process at once.
    pub const ALL_POOLS: Self = Self::Flush(Flush { closes: Closes::AllPools, settle: Duration::ZERO });
    /// Change that closes the idle connections of the limit's own pool at once.
    pub const OWN_POOL: Self = Self::Flush(Flush { closes: Closes::OwnPool, settle: Duration::ZERO });
}
