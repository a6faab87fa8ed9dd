//! A clock that does not jump, and that all replicas read alike.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};

/// How far `Date` may be off before it is believed: it has whole seconds, and takes a while to arrive.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(2);

/// How long after an answer that agreed another one that does not is left out of account: where two API servers disagree, the time must not
/// go back and forth between them.
const AGREED_FOR: Duration = Duration::from_secs(60);

/// What the operator takes for the time: the API server's, as its answers tell it, carried on by a clock that nobody sets.
///
/// The wall clock of one's own machine would not do. What was decided is written down with its time, and read by another replica; one
/// whose clock is five minutes ahead would find every wait over. And a wall clock that is set an hour forward would make every node look
/// as if it had started an hour later than it did.
#[must_use]
pub fn now() -> Timestamp {
    clock().now()
}

/// Takes note of an answer's `Date`.
pub fn heard(date: &str) {
    clock().heard(date);
}

fn clock() -> &'static Clock {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    CLOCK.get_or_init(|| Clock::set(Timestamp::now()))
}

struct Clock {
    wall: Timestamp,
    monotonic: Instant,
    /// What to add, in milliseconds.
    correction: AtomicI64,
    /// Until when, in milliseconds since `monotonic`, an answer that disagrees is left out of account.
    agreed_until: AtomicI64,
}

impl Clock {
    fn set(wall: Timestamp) -> Self {
        Self { wall, monotonic: Instant::now(), correction: AtomicI64::new(0), agreed_until: AtomicI64::new(0) }
    }

    fn now(&self) -> Timestamp {
        let correction = SignedDuration::from_millis(self.correction.load(Ordering::Relaxed));
        self.uncorrected().checked_add(correction).unwrap_or(self.wall)
    }

    fn uncorrected(&self) -> Timestamp {
        self.wall.checked_add(self.monotonic.elapsed()).unwrap_or(self.wall)
    }

    fn heard(&self, date: &str) {
        let Ok(date) = rfc2822::parse(date) else { return };
        let since = i64::try_from(self.monotonic.elapsed().as_millis()).unwrap_or(i64::MAX);
        let agreed_until = since.saturating_add(i64::try_from(AGREED_FOR.as_millis()).unwrap_or(i64::MAX));
        // Cut off, not rounded: on average it is half a second later.
        let ahead = date.timestamp().duration_since(self.uncorrected()) + SignedDuration::from_millis(500);
        let known = SignedDuration::from_millis(self.correction.load(Ordering::Relaxed));
        if (ahead - known).abs() <= TOLERANCE {
            self.agreed_until.store(agreed_until, Ordering::Relaxed);
            return;
        }
        if since < self.agreed_until.load(Ordering::Relaxed) {
            return;
        }
        self.agreed_until.store(agreed_until, Ordering::Relaxed);
        // The whole of it, not what is missing: two answers that are heard at once correct it once.
        self.correction.store(i64::try_from(ahead.as_millis()).unwrap_or_default(), Ordering::Relaxed);
        tracing::warn!(
            seconds = ahead.as_secs(),
            "the clock here is not the API server's; going by the API server's, which is so much ahead"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_clock_that_is_wrong_by_minutes_is_put_right_and_one_that_is_right_is_left_alone() {
        for (wall, expected) in [
            ("2026-11-21T20:05:00Z", "2026-11-21T20:00:00.5Z"),
            ("2026-11-21T19:55:00Z", "2026-11-21T20:00:00.5Z"),
            ("2026-11-21T20:00:01.9Z", "2026-11-21T20:00:01.9Z"),
            ("2026-11-21T19:59:59.1Z", "2026-11-21T19:59:59.1Z"),
        ] {
            let clock = Clock::set(time(wall));
            clock.heard("Sat, 21 Nov 2026 20:00:00 GMT");
            let off = clock.now().duration_since(time(expected));
            assert!(off.abs() < SignedDuration::from_millis(400), "{wall}: off by {off}");
        }
    }

    #[test]
    fn two_servers_that_disagree_do_not_move_the_time_back_and_forth() {
        let clock = Clock::set(time("2026-11-21T20:00:00Z"));
        for date in ["Sat, 21 Nov 2026 20:00:00 GMT", "Sat, 21 Nov 2026 20:00:09 GMT", "Sat, 21 Nov 2026 19:50:00 GMT"] {
            clock.heard(date);
            assert!(clock.now().duration_since(time("2026-11-21T20:00:00Z")) < SignedDuration::from_secs(2), "{date}");
        }
        // A minute after the last answer that agreed, the others are right.
        clock.agreed_until.store(0, Ordering::Relaxed);
        clock.heard("Sat, 21 Nov 2026 20:00:09 GMT");
        assert!(clock.now() > time("2026-11-21T20:00:09Z"));
    }

    #[test]
    fn answers_that_are_heard_at_once_correct_it_once() {
        let clock = Clock::set(time("2026-11-21T20:05:00Z"));
        let barrier = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    clock.heard("Sat, 21 Nov 2026 20:00:00 GMT");
                });
            }
        });
        let off = clock.now().duration_since(time("2026-11-21T20:00:00.5Z"));
        assert!(off.abs() < SignedDuration::from_millis(400), "off by {off}");
    }

    #[test]
    fn what_is_no_date_sets_no_clock() {
        let clock = Clock::set(time("2026-11-21T20:00:00Z"));
        for date in ["", "yesterday", "Sat, 99 Nov 2026 20:00:00 GMT"] {
            clock.heard(date);
        }
        assert!(clock.now() < time("2026-11-21T20:00:01Z"));
    }
}
