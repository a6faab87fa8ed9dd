//! Numbers and times of connections. The names are agentkeepalive's, which HTTP services know.

use std::time::Duration;

/// The bounds of a provider's connections. They apply to each protocol separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Most connections: opening, in use and idle together. A further request waits in order of arrival. At least 1.
    pub max_sockets: u32,
    /// Most idle connections. 0 keeps none.
    pub max_free_sockets: u32,
    /// Longest time of a request, including the wait and the body. A request may have a shorter timeout.
    pub timeout: Duration,
    /// Whether a connection serves more than one request.
    pub keep_alive: bool,
    /// Silence after which TCP keep-alive begins to probe the other side.
    pub keep_alive_delay: Duration,
    /// Longest time that a connection stays idle.
    pub free_socket_timeout: Duration,
    /// Greatest age of a connection; one in use closes when its request ends.
    pub max_socket_lifetime: Duration,
}

impl Default for PoolSettings {
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

impl PoolSettings {
    /// Silence after which TCP keep-alive begins to probe the other side; `None` if keep-alive is off.
    pub(super) fn probes(&self) -> Option<Duration> {
        self.keep_alive.then_some(self.keep_alive_delay)
    }

    /// The same settings, with impossible values replaced by the nearest possible ones.
    #[must_use]
    pub fn checked(self) -> Self {
        Self {
            max_sockets: self.max_sockets.max(1),
            max_free_sockets: self.max_free_sockets.min(self.max_sockets.max(1)),
            ..self
        }
    }
}
