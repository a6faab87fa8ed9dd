//! A clock that does not jump and is the same for all replicas.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};

/// Greatest accepted difference from `Date`, which has whole seconds and takes a while to arrive.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(2);

/// Time after a matching `Date` during which a different one is ignored. If two API servers disagree, the time must not
/// go back and forth between them.
const AGREED_FOR: Duration = Duration::from_secs(60);

/// The current time: the API server's, from the `Date` of its responses, continued by the monotonic clock.
///
/// The machine's wall clock is not suitable. Another replica reads the stored times of decisions; if its clock is five
/// minutes ahead, every wait seems over. If a wall clock is set forward by an hour, every node seems to have started an
/// hour later.
#[must_use]
pub fn now() -> Timestamp {
    clock().now()
}

/// Corrects the clock by the `Date` of a response.
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
    /// Difference to add, in milliseconds.
    correction: AtomicI64,
    /// Until when a different `Date` is ignored, in milliseconds since `monotonic`.
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
        // `Date` is truncated, so the real time is half a second later on average.
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
        // Store the total difference, not an increment: two responses at the same time then correct it once.
        self.correction.store(i64::try_from(ahead.as_millis()).unwrap_or_default(), Ordering::Relaxed);
        tracing::warn!(
            seconds = ahead.as_secs(),
            "the local clock differs from the API server's; using the API server's, which is ahead by this many seconds"
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
        // A minute after the last match, the different time is accepted.
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
