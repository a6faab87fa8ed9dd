//! What a pool's connections have done, exactly.

use std::{sync::Arc, time::Duration};

use super::Settings;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP over TCP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Http, Self::Https];

    /// As it stands in a URL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Idle for longer than freeSocketTimeout.
    Expired,
    /// Older than maxSocketLifetime.
    Lifetime,
    /// The other side had closed it, or had said what nobody asked for, while it was idle.
    Peer,
    /// There was no room for it among the idle ones, or another one needed its place.
    Full,
    /// Its answer was its last: the server said so, or keep-alive is off.
    Done,
    /// It broke, or what came was not HTTP.
    Broken,
    /// Its request ran out of time or was given up.
    Abandoned,
    /// By `destroy`, or with its provider.
    Destroyed,
}

impl Closed {
    /// All.
    pub const ALL: [Self; 8] =
        [Self::Expired, Self::Lifetime, Self::Peer, Self::Full, Self::Done, Self::Broken, Self::Abandoned, Self::Destroyed];

    /// As metrics and messages say it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Lifetime => "lifetime",
            Self::Peer => "peer",
            Self::Full => "full",
            Self::Done => "done",
            Self::Broken => "broken",
            Self::Abandoned => "abandoned",
            Self::Destroyed => "destroyed",
        }
    }
}

/// The counts of one provider and protocol. Counters since the provider was first asked; [`Tally::open`] is the sum of three of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections that are being made: TCP and, where it is spoken, TLS.
    pub connecting: u64,
    /// Connections with a request on them.
    pub active: u64,
    /// Connections that wait for one.
    pub idle: u64,
    /// Requests that wait for a connection because there are maxSockets.
    pub waiting: u64,
    /// The most that were open at once.
    pub peak: u64,
    /// Requests that were put on a connection; one that was repeated on another counts twice.
    pub requests: u64,
    /// Those of them whose connection had served before.
    pub reuses: u64,
    /// Connections made.
    pub opened: u64,
    /// Those of them with a TLS handshake.
    pub handshakes: u64,
    /// Connections that could not be made.
    pub refused: u64,
    /// Requests that had to wait, and those of them that waited in vain.
    pub waits: u64,
    /// See `waits`.
    pub given_up: u64,
    /// How long they waited in all, nanoseconds.
    pub waited: u64,
    /// When the open connections were made, milliseconds after the pool began, added up.
    pub(super) born: u64,
    /// Connections closed, in the order of [`Closed::ALL`].
    pub(super) closed: [u64; Closed::ALL.len()],
}

impl Tally {
    /// Connections that are there: what the system counts as this process's sockets.
    #[must_use]
    pub const fn open(&self) -> u64 {
        self.connecting + self.active + self.idle
    }

    /// How many were closed for this reason.
    #[must_use]
    pub const fn closed(&self, reason: Closed) -> u64 {
        self.closed[reason as usize]
    }
}

/// One provider over one protocol, at one moment.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Whom the connections lead to.
    pub provider: Arc<str>,
    /// What they speak.
    pub protocol: Protocol,
    /// What bounds them.
    pub settings: Settings,
    /// The counts.
    pub tally: Tally,
    /// How old the open connections are, on the average; `None` where there are none.
    pub average_age: Option<Duration>,
}
