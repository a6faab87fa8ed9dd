//! Progress on standard error of work that takes longer than two seconds.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::api::wording::with_noun;
use crate::decide::measured::time;

/// Work that takes less time has no line.
const QUIET: Duration = Duration::from_secs(2);
/// Interval at which the line on a terminal is rewritten.
const TICK: Duration = Duration::from_secs(1);
/// Removes the line of a terminal.
const CLEAR: &str = "\r\u{1b}[K";

/// Number of connections that are idle.
#[derive(Clone, Default)]
pub struct Progress {
    idle: Arc<AtomicUsize>,
}

/// One connection. It counts from [`Waiting::begin`] until it is dropped.
pub struct Waiting {
    idle: Arc<AtomicUsize>,
    counts: bool,
}

impl Waiting {
    /// Counts the connection as idle from now on.
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
    /// Adds a connection that is not idle yet.
    pub fn connection(&self) -> Waiting {
        Waiting { idle: self.idle.clone(), counts: false }
    }

    /// Does the work. After 2 s a terminal shows a line that is updated each second and removed at the end. If standard error is not a
    /// terminal, one line is written, once.
    pub async fn during<T>(&self, max_wait: Duration, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        if let Ok(done) = timeout(QUIET, &mut work).await {
            return done;
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
                    eprint!("{CLEAR}");
                    return done;
                }
                _ = ticks.tick() => {
                    eprint!("{CLEAR}{}", self.line(began.elapsed(), max_wait));
                    // If the terminal is gone, the work continues.
                    let _ = std::io::stderr().flush();
                }
            }
        }
    }

    fn line(&self, elapsed: Duration, max_wait: Duration) -> String {
        let idle = with_noun(self.idle.load(Ordering::Relaxed), "connection is", "connections are");
        let elapsed = Duration::from_secs(elapsed.as_secs());
        format!("{idle} idle after {}, at most {}", time(elapsed), time(max_wait))
    }
}

/// Does the work. After 2 s a terminal shows what it waits for, and the line is removed at the end. Anything else gets no line.
pub async fn waiting<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    if let Ok(done) = timeout(QUIET, &mut work).await {
        return done;
    }
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    eprint!("Waiting for {what}");
    let done = work.await;
    eprint!("{CLEAR}");
    done
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
