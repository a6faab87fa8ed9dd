//! Connections that wait for the next request: so many to a place, so many in all, for so long.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::connect::{Stream, rests};

/// Idle connections kept to one place.
const MOST_PER_PLACE: usize = 4;
/// Idle connections kept in all, where the process may open enough files.
const MOST: usize = 8192;
/// How long one is kept: longer than nodes are left alone between two looks, and as long as Go's own client does
/// (`http.DefaultTransport`).
const TIMEOUT: Duration = Duration::from_secs(90);
/// How often those that have waited too long, or that the other side has closed, are closed here.
const SWEEP: Duration = Duration::from_secs(15);

/// Where a connection leads: `scheme://host:port`, and whom it trusts.
pub type Place = (String, u64);

/// The idle connections; the latest used is the first taken.
#[derive(Clone)]
pub struct Idle(Arc<Mutex<Waiting>>);

struct Waiting {
    places: HashMap<Place, Vec<(Instant, Stream)>>,
    count: usize,
    most: usize,
    swept: bool,
}

impl Default for Idle {
    fn default() -> Self {
        // Half of the files stay for what is under way.
        let most = open_files().map_or(256, |files| files / 2).min(MOST);
        Self(Arc::new(Mutex::new(Waiting { places: HashMap::new(), count: 0, most, swept: false })))
    }
}

impl Idle {
    /// One that the other side has not closed, as far as is known.
    pub fn take(&self, place: &Place) -> Option<Stream> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut streams) = waiting.places.entry(place.clone()) else { return None };
        let (mut found, mut gone) = (None, 0);
        while let Some((since, stream)) = streams.get_mut().pop() {
            gone += 1;
            if since.elapsed() < TIMEOUT && rests(&stream) {
                found = Some(stream);
                break;
            }
        }
        if streams.get().is_empty() {
            streams.remove();
        }
        waiting.count -= gone;
        found
    }

    /// Keeps one, if there is room.
    pub fn put(&self, place: Place, stream: Stream) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.count >= waiting.most {
            return;
        }
        let streams = waiting.places.entry(place).or_default();
        if streams.len() >= MOST_PER_PLACE {
            return;
        }
        streams.push((Instant::now(), stream));
        waiting.count += 1;
        if !std::mem::replace(&mut waiting.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.0)));
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).count
    }
}

/// Closes what has waited too long, until the pool is gone.
async fn sweep(waiting: Weak<Mutex<Waiting>>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(waiting) = waiting.upgrade() else { return };
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.places.retain(|_, streams| {
            streams.retain(|(since, stream)| since.elapsed() < TIMEOUT && rests(stream));
            !streams.is_empty()
        });
        waiting.count = waiting.places.values().map(Vec::len).sum();
    }
}

/// Files that this process may have open, where the system says so.
fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}
