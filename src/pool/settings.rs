//! How many connections, and for how long. The names are agentkeepalive's, as HTTP services know them.

use std::time::Duration;

/// What a provider's connections are bound by, each protocol for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Connections at once: being made, in use and idle together. A request beyond it waits, first come, first served. At least 1.
    pub max_sockets: u32,
    /// Idle connections that are kept. 0 keeps none.
    pub max_free_sockets: u32,
    /// The longest that a request may take, the waiting and the body included; a request's own time-out may be shorter.
    pub timeout: Duration,
    /// Whether a connection serves more than one request.
    pub keep_alive: bool,
    /// How long a connection is silent before TCP asks whether the other side is still there.
    pub keep_alive_delay: Duration,
    /// How long an idle connection is kept.
    pub free_socket_timeout: Duration,
    /// How old a connection may become; one in use is closed when it is done.
    pub max_socket_lifetime: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_sockets: 50,
            max_free_sockets: 10,
            timeout: Duration::from_secs(30),
            keep_alive: true,
            keep_alive_delay: Duration::from_secs(60),
            free_socket_timeout: Duration::from_secs(15),
            max_socket_lifetime: Duration::from_secs(600),
        }
    }
}

impl Settings {
    /// After how long a silence TCP asks for the other side, if at all.
    pub(super) fn probes(&self) -> Option<Duration> {
        self.keep_alive.then_some(self.keep_alive_delay)
    }

    /// The same, with what cannot work made into the nearest that can.
    #[must_use]
    pub fn checked(self) -> Self {
        Self {
            max_sockets: self.max_sockets.max(1),
            max_free_sockets: self.max_free_sockets.min(self.max_sockets.max(1)),
            ..self
        }
    }
}
