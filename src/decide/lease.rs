//! Leader election: what to do about a Lease, given its holder and how long it has not changed.
//!
//! Time is measured as client-go does: by how long *this* process has seen the Lease unchanged, on a monotonic clock.
//! The times in the Lease are for people; a clock that is wrong by minutes elects no leader.

use std::time::Duration;

/// An observation of a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseObservation<'a> {
    /// The holder; `None` if the Lease was released or never held.
    pub holder: Option<&'a str>,
    /// How long the holder may go without renewing, according to the Lease.
    pub valid_for: Duration,
    /// How long this process has seen the Lease unchanged.
    pub unchanged_for: Duration,
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// No replica holds it any more: write the name of this replica.
    Take,
    /// This replica holds it: renew it.
    Renew,
    /// Another replica holds it, for at most this much longer if it does not renew.
    Wait(Duration),
}

/// What `me` does next.
#[must_use]
pub fn next_move(seen: LeaseObservation<'_>, me: &str) -> Move {
    let left = seen.valid_for.saturating_sub(seen.unchanged_for);
    match seen.holder.filter(|holder| !holder.is_empty()) {
        Some(holder) if holder == me => Move::Renew,
        Some(_) if !left.is_zero() => Move::Wait(left),
        _ => Move::Take,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: Option<&str>, unchanged_for: u64) -> LeaseObservation<'_> {
        LeaseObservation { holder, valid_for: Duration::from_secs(15), unchanged_for: Duration::from_secs(unchanged_for) }
    }

    #[test]
    fn a_holder_is_left_alone_until_it_has_been_silent_for_as_long_as_it_may() {
        for (holder, unchanged_for, expected) in [
            (Some("other"), 0, Move::Wait(Duration::from_secs(15))),
            (Some("other"), 14, Move::Wait(Duration::from_secs(1))),
            (Some("other"), 15, Move::Take),
            (Some("me"), 0, Move::Renew),
            (Some("me"), 99, Move::Renew),
            (Some(""), 0, Move::Take),
            (None, 0, Move::Take),
        ] {
            assert_eq!(next_move(seen(holder, unchanged_for), "me"), expected, "{holder:?}, {unchanged_for} s");
        }
    }
}
