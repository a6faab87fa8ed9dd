//! What a change of a limit closes by itself, whatever the new value is.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which idle connections a change closes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closes {
    /// Those of the pool that the limit is of.
    OwnPool,
    /// All of the process, also those of pools that no policy manages.
    AllPools,
}

/// A change that closes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flush {
    /// Which idle connections are closed.
    pub closes: Closes,
    /// How long after the change the process goes on closing them.
    pub settle: Duration,
}

/// What the reader of a file does when the file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Nothing: it reads the limit only when it starts.
    AtStart,
    /// It uses the new value and closes nothing.
    Hot,
    /// It uses the new value and closes connections to do so.
    Flush(Flush),
}

impl Reload {
    /// A change that closes all idle connections of the process at once.
    pub const ALL_POOLS: Self = Self::Flush(Flush { closes: Closes::AllPools, settle: Duration::ZERO });
    /// A change that closes the idle connections of the limit's own pool at once.
    pub const OWN_POOL: Self = Self::Flush(Flush { closes: Closes::OwnPool, settle: Duration::ZERO });
}
