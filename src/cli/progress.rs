//! One line on standard error while connections are left idle.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::decide::measured::time;

/// What takes less time has no line.
const QUIET: Duration = Duration::from_secs(2);
/// How often a terminal's line is written again.
const TICK: Duration = Duration::from_secs(1);

/// How many connections wait for their server.
#[derive(Clone, Default)]
pub struct Progress {
    idle: Arc<AtomicUsize>,
}

/// One connection; it counts from [`Waiting::begin`] until it is dropped.
pub struct Waiting {
    idle: Arc<AtomicUsize>,
    counts: bool,
}

impl Waiting {
    /// The connection is idle now.
    pub fn begin(&mut self) {
        if !std::mem::replace(&mut self.counts, true) {
            self.idle.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.counts {
            self.idle.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Progress {
    /// A connection that is not idle yet.
    pub fn connection(&self) -> Waiting {
        Waiting { idle: self.idle.clone(), counts: false }
    }

    /// Does the work. After 2 s a terminal gets a line each second, which is gone at the end; anything else gets one line.
    pub async fn during<T>(&self, max_wait: Duration, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = sleep(QUIET) => {}
        }
        let began = Instant::now().checked_sub(QUIET).unwrap_or_else(Instant::now);
        let is_terminal = std::io::stderr().is_terminal();
        if !is_terminal {
            eprintln!("{}", self.line(QUIET, max_wait));
            return work.await;
        }
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    eprint!("\r\u{1b}[K");
                    return done;
                }
                _ = ticks.tick() => {
                    eprint!("\r\u{1b}[K{}", self.line(began.elapsed(), max_wait));
                    // A terminal that is gone is no reason to stop.
                    let _ = std::io::stderr().flush();
                }
            }
        }
    }

    fn line(&self, elapsed: Duration, max_wait: Duration) -> String {
        let (idle, elapsed) = (self.idle.load(Ordering::Relaxed), Duration::from_secs(elapsed.as_secs()));
        let connections = if idle == 1 { "connection is" } else { "connections are" };
        format!("{idle} {connections} idle after {}, at most {}", time(elapsed), time(max_wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_while_it_is_idle() {
        let progress = Progress::default();
        let mut one = progress.connection();
        assert_eq!(progress.line(QUIET, Duration::from_secs(60)), "0 connections are idle after 2s, at most 1m");
        one.begin();
        one.begin();
        assert_eq!(progress.line(QUIET, Duration::from_secs(60)), "1 connection is idle after 2s, at most 1m");
        drop(one);
        assert!(progress.line(QUIET, QUIET).starts_with("0 connections"));
    }
}
