//! What a pool's connections have done, exactly, and so published that reading it holds up no request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
    time::Duration,
};

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

/// Words that a [`Tally`] is published in.
const WORDS: usize = 14 + Closed::ALL.len();

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

    fn words(&self) -> [u64; WORDS] {
        let Self {
            connecting,
            active,
            idle,
            waiting,
            peak,
            requests,
            reuses,
            opened,
            handshakes,
            refused,
            waits,
            given_up,
            waited,
            born,
            closed,
        } = *self;
        let mut words = [0; WORDS];
        words[..14].copy_from_slice(&[
            connecting, active, idle, waiting, peak, requests, reuses, opened, handshakes, refused, waits, given_up, waited, born,
        ]);
        words[14..].copy_from_slice(&closed);
        words
    }

    fn of(words: &[u64; WORDS]) -> Self {
        let mut closed = [0; Closed::ALL.len()];
        closed.copy_from_slice(&words[14..]);
        Self {
            connecting: words[0],
            active: words[1],
            idle: words[2],
            waiting: words[3],
            peak: words[4],
            requests: words[5],
            reuses: words[6],
            opened: words[7],
            handshakes: words[8],
            refused: words[9],
            waits: words[10],
            given_up: words[11],
            waited: words[12],
            born: words[13],
            closed,
        }
    }
}

/// A [`Tally`] that one writes and any number read. A sequence lock: the reader tries again where it met a writer, and the writer never waits.
pub(super) struct Published {
    version: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Default for Published {
    fn default() -> Self {
        Self { version: AtomicU64::new(0), words: [const { AtomicU64::new(0) }; WORDS] }
    }
}

impl Published {
    /// The caller sees to it that there is one writer at a time.
    pub fn write(&self, tally: &Tally) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in self.words.iter().zip(tally.words()) {
            word.store(value, Ordering::Relaxed);
        }
        self.version.store(version + 2, Ordering::Release);
    }

    pub fn read(&self) -> Tally {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let mut words = [0; WORDS];
            for (value, word) in words.iter_mut().zip(&self.words) {
                *value = word.load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return Tally::of(&words);
            }
            std::hint::spin_loop();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_was_written_as_one() {
        let published = Published::default();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..200_000 {
                    published.write(&Tally { active: n, born: n, closed: [n; Closed::ALL.len()], ..Tally::default() });
                }
                stop.store(true, Ordering::Relaxed);
            });
            let mut last = 0;
            while !stop.load(Ordering::Relaxed) {
                let Tally { active, born, closed, .. } = published.read();
                assert!(born == active && closed.iter().all(|n| *n == active), "{active} {born} {closed:?}");
                assert!(active >= last, "and in the order of writing");
                last = active;
            }
        });
        assert_eq!(published.read().active, 199_999);
    }

    #[test]
    fn every_count_comes_back() {
        let words: [u64; WORDS] = std::array::from_fn(|n| n as u64 + 1);
        assert_eq!(Tally::of(&words).words(), words);
    }
}
