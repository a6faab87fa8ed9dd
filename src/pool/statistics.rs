//! Exact counters of a pool's connections.

use std::{sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PoolSettings;

/// Protocol of a connection.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, strum::IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Protocol {
    /// HTTP over TCP, without TLS.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Protocol {
    /// Both protocols.
    pub const ALL: [Self; 2] = [Self::Http, Self::Https];

    /// The URL scheme.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Closed {
    /// Idle for longer than freeSocketTimeout.
    Expired,
    /// Older than maxSocketLifetime.
    Lifetime,
    /// The other side closed it, or sent unrequested bytes, while it was idle.
    Peer,
    /// There was no room for it among the idle connections, or a connection to another place needed its room.
    Full,
    /// The response was the last one: the server announced it, or keep-alive is off.
    Done,
    /// The connection broke, or the peer does not speak HTTP.
    Broken,
    /// The request timed out or was canceled.
    Abandoned,
    /// Closed by `destroy`, or with its provider.
    Destroyed,
}

impl Closed {
    /// All reasons.
    pub const ALL: [Self; 8] =
        [Self::Expired, Self::Lifetime, Self::Peer, Self::Full, Self::Done, Self::Broken, Self::Abandoned, Self::Destroyed];

    /// The name in metrics and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The counts of one provider and protocol. The counters start at the provider's first request; [`Tally::open`] is the
/// sum of three gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections that are being opened: TCP and, for HTTPS, TLS.
    pub connecting: u64,
    /// Connections with a request in progress.
    pub active: u64,
    /// Connections that wait for a request.
    pub idle: u64,
    /// Requests that wait for a connection because maxSockets connections are in use.
    pub waiting: u64,
    /// Most connections that were open at the same time.
    pub peak: u64,
    /// Requests that were sent on a connection; a retry on another connection counts twice.
    pub requests: u64,
    /// Requests on a connection that had served one before.
    pub reuses: u64,
    /// Connections opened.
    pub opened: u64,
    /// Connections opened with a TLS handshake.
    pub handshakes: u64,
    /// Connections that could not be opened.
    pub refused: u64,
    /// Requests that had to wait for a connection.
    pub waits: u64,
    /// Requests that stopped waiting without a connection.
    pub given_up: u64,
    /// Total waiting time, in nanoseconds.
    pub waited: u64,
    /// Sum of the opening times of the open connections, in milliseconds since the pool started.
    pub(super) born: u64,
    /// Connections closed, in the order of [`Closed::ALL`].
    pub(super) closed: [u64; Closed::ALL.len()],
}

impl Tally {
    /// Open connections: the system counts the same number of sockets for this process.
    #[must_use]
    pub const fn open(&self) -> u64 {
        self.connecting + self.active + self.idle
    }

    /// Connections that were closed for this reason.
    #[must_use]
    pub const fn closed(&self, reason: Closed) -> u64 {
        self.closed[reason as usize]
    }
}

/// The state of one provider over one protocol at one moment.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// The provider's name.
    pub provider: Arc<str>,
    /// The connections' protocol.
    pub protocol: Protocol,
    /// The settings of the connections.
    pub settings: PoolSettings,
    /// The counts.
    pub tally: Tally,
    /// Average age of the open connections; `None` if there are none.
    pub average_age: Option<Duration>,
}
