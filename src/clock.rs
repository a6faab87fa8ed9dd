//! A clock that does not jump.

use std::{sync::OnceLock, time::Instant};

use jiff::Timestamp;

/// The time by the wall clock of when this process first asked, carried on by the monotonic one.
///
/// For judging how long ago something was: a wall clock that is set an hour forward would make every node look as if it
/// had started an hour later than it did.
#[must_use]
pub fn steady() -> Timestamp {
    static START: OnceLock<(Timestamp, Instant)> = OnceLock::new();
    let (wall, monotonic) = START.get_or_init(|| (Timestamp::now(), Instant::now()));
    wall.checked_add(monotonic.elapsed()).unwrap_or(*wall)
}
