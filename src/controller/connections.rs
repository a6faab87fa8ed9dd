//! Connection settings for the requests to the nodes of one policy.

use std::time::Duration;

use crate::pool::PoolSettings;

/// Maximum time of a request: `AIStore`'s own timeout for a write, and a margin.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum idle time of a connection, the same as in Go's `http.DefaultTransport`.
const MAX_IDLE_TIME: Duration = Duration::from_secs(90);
/// Connections to each node: it may be read and scraped at the same time.
const CONNECTIONS_PER_NODE: u32 = 2;

/// Returns settings that keep the connections to nodes open between requests at the interval `every`: a connection that is
/// closed in between costs a handshake at each request.
#[must_use]
pub fn settings(nodes: usize, every: Duration) -> PoolSettings {
    let settings = PoolSettings::default();
    let wanted = u32::try_from(nodes).unwrap_or(u32::MAX).saturating_mul(CONNECTIONS_PER_NODE);
    let max_free_sockets = settings.max_free_sockets.max(wanted);
    PoolSettings {
        max_free_sockets,
        // The default number in addition, for new connections while all the others are idle.
        max_sockets: settings.max_sockets.saturating_add(max_free_sockets - settings.max_free_sockets),
        timeout: TIMEOUT,
        free_socket_timeout: (every * 3).clamp(settings.free_socket_timeout, MAX_IDLE_TIME),
        ..settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_every_node_and_for_long_enough() {
        for (nodes, every, free, sockets, idle) in
            [(0, 1, 10, 50, 15), (3, 10, 10, 50, 30), (100, 30, 200, 240, 90), (5_000, 3_600, 10_000, 10_040, 90)]
        {
            let settings = settings(nodes, Duration::from_secs(every));
            let seen = (settings.max_free_sockets, settings.max_sockets, settings.free_socket_timeout.as_secs());
            assert_eq!(seen, (free, sockets, idle), "{nodes} nodes each {every} s");
        }
    }
}
