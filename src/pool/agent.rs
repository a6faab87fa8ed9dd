//! One provider over one protocol: its queue, its idle connections, and its counters.
//!
//! A `Turn` is a permit of a fair semaphore; each connection that is being opened or in use has one. Idle connections
//! have none. If they leave no room for a connection to another place of the same provider, the oldest one is closed.
//! So at most maxSockets connections are open. A guard owns every connection, and a guard that is dropped early is
//! counted like any other end.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::{
    connect::{Stream, rests},
    settings::PoolSettings,
    statistics::{Closed, Protocol, Statistics, Tally},
};

/// The key of a connection: `scheme://host:port`, and the number of its TLS settings.
pub type ConnectionKey = (String, u64);

/// One provider over one protocol.
pub struct Agent {
    provider: Arc<str>,
    protocol: Protocol,
    epoch: Instant,
    turns: Arc<Semaphore>,
    /// One permit for each idle connection of the whole pool.
    room: Arc<Semaphore>,
    state: Mutex<State>,
    /// Size of the last body that was read completely.
    expected: AtomicUsize,
}

struct State {
    settings: PoolSettings,
    /// Permits to remove when they are returned, because maxSockets was reduced.
    owed: usize,
    /// Connections of an earlier generation are closed when their requests end.
    generation: u64,
    /// The provider was removed: no connection is kept.
    ended: bool,
    idle: HashMap<ConnectionKey, Vec<IdleConnection>>,
    tally: Tally,
}

struct IdleConnection {
    stream: Stream,
    since: Instant,
    born: u64,
    _room: OwnedSemaphorePermit,
}

impl Agent {
    pub fn new(
        provider: Arc<str>,
        protocol: Protocol,
        epoch: Instant,
        settings: PoolSettings,
        room: Arc<Semaphore>,
    ) -> Arc<Self> {
        let state = State { settings, owed: 0, generation: 0, ended: false, idle: HashMap::new(), tally: Tally::default() };
        Arc::new(Self {
            provider,
            protocol,
            epoch,
            turns: Arc::new(Semaphore::new(settings.max_sockets as usize)),
            room,
            state: Mutex::new(state),
            expected: AtomicUsize::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state. The caller drops the returned connections after the lock is released.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        state.tally.peak = state.tally.peak.max(state.tally.open());
        result
    }

    fn age(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Expected size of the next body: the size of the last one.
    pub fn expected(&self) -> usize {
        self.expected.load(Ordering::Relaxed)
    }

    pub fn settings(&self) -> PoolSettings {
        self.state().settings
    }

    /// Waits in order of arrival for a permit; `None` if there is none before `until`.
    pub async fn turn(self: &Arc<Self>, until: Instant) -> Option<Permit> {
        let permit = if let Ok(permit) = self.turns.clone().try_acquire_owned() {
            permit
        } else {
            let mut waiting = Waiting::begin(self);
            let permit = timeout_at(until, self.turns.clone().acquire_owned()).await.ok()?.ok()?;
            waiting.served = true;
            permit
        };
        Some(Permit { agent: self.clone(), permit: Some(permit) })
    }

    /// Changes the settings. Requests in progress continue. Surplus idle connections close now, others when their
    /// requests end.
    pub fn configure(&self, settings: PoolSettings) {
        let closed = self.change(|state| {
            if state.settings == settings {
                return Vec::new();
            }
            let (before, now) = (state.settings.max_sockets as usize, settings.max_sockets as usize);
            state.settings = settings;
            if now >= before {
                let back = state.owed.min(now - before);
                state.owed -= back;
                self.turns.add_permits(now - before - back);
            } else {
                state.owed += (before - now) - self.turns.forget_permits(before - now);
            }
            let most = u64::from(settings.max_free_sockets)
                .min(u64::from(settings.max_sockets).saturating_sub(state.tally.active + state.tally.connecting));
            state.trim(most)
        });
        drop(closed);
    }

    /// Closes idle connections that expired, that are too old, or that the other side closed.
    pub fn sweep(&self) {
        let now = self.age();
        let closed = self.change(|state| {
            let mut closed = Vec::new();
            let State { settings, idle, tally, .. } = state;
            idle.retain(|_, resting| {
                closed.extend(
                    resting.extract_if(.., |one| one.over(settings, now).inspect(|why| tally.rested(*why, one.born)).is_some()),
                );
                !resting.is_empty()
            });
            closed
        });
        drop(closed);
    }

    /// Closes the idle connections now, and those in use when their requests end. Returns the number of both.
    pub fn destroy(&self) -> (u64, u64) {
        let (closed, active) = self.change(|state| {
            state.generation += 1;
            (state.drain(), state.tally.active + state.tally.connecting)
        });
        (closed.len() as u64, active)
    }

    /// Like [`Agent::destroy`], and keeps no connection afterwards.
    pub fn end(&self) {
        self.change(|state| state.ended = true);
        self.destroy();
    }

    /// The settings and counters; `None` if there was no request yet.
    pub fn statistics(&self) -> Option<Statistics> {
        let (tally, settings) = {
            let state = self.state();
            (state.tally, state.settings)
        };
        if tally == Tally::default() {
            return None;
        }
        let there = tally.active + tally.idle;
        Some(Statistics {
            provider: self.provider.clone(),
            protocol: self.protocol,
            settings,
            average_age: (there > 0).then(|| Duration::from_millis(self.age().saturating_sub(tally.born / there))),
            tally,
        })
    }
}

impl IdleConnection {
    /// Why the connection cannot be used again, if so.
    fn over(&self, settings: &PoolSettings, now: u64) -> Option<Closed> {
        if !rests(&self.stream) {
            Some(Closed::Peer)
        } else if self.since.elapsed() >= settings.free_socket_timeout {
            Some(Closed::Expired)
        } else {
            settings.outlived(self.born, now).then_some(Closed::Lifetime)
        }
    }
}

impl PoolSettings {
    fn outlived(&self, born: u64, now: u64) -> bool {
        u128::from(now.saturating_sub(born)) >= self.max_socket_lifetime.as_millis()
    }
}

impl Tally {
    /// Counts an idle connection that was closed.
    fn rested(&mut self, why: Closed, born: u64) {
        self.idle -= 1;
        self.born -= born;
        self.closed[why as usize] += 1;
    }
}

impl State {
    /// Closes the oldest idle connections until `most` are left.
    fn trim(&mut self, most: u64) -> Vec<IdleConnection> {
        let mut closed = Vec::new();
        while self.tally.idle > most {
            // In each place the oldest connection comes first.
            let oldest = self.idle.iter().min_by_key(|(_, resting)| resting.first().map(|one| one.since));
            let Some(place) = oldest.map(|(place, _)| place.clone()) else { break };
            let Entry::Occupied(mut resting) = self.idle.entry(place) else { break };
            let one = resting.get_mut().remove(0);
            if resting.get().is_empty() {
                resting.remove();
            }
            self.tally.rested(Closed::Full, one.born);
            closed.push(one);
        }
        closed
    }

    fn drain(&mut self) -> Vec<IdleConnection> {
        let closed: Vec<_> = self.idle.drain().flat_map(|(_, resting)| resting).collect();
        for one in &closed {
            self.tally.rested(Closed::Destroyed, one.born);
        }
        closed
    }
}

/// A request in the queue.
struct Waiting {
    agent: Arc<Agent>,
    since: Instant,
    served: bool,
}

impl Waiting {
    fn begin(agent: &Arc<Agent>) -> Self {
        agent.change(|state| {
            state.tally.waiting += 1;
            state.tally.waits += 1;
        });
        Self { agent: agent.clone(), since: Instant::now(), served: false }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waited = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.agent.change(|state| {
            state.tally.waiting -= 1;
            state.tally.waited = state.tally.waited.saturating_add(waited);
            state.tally.given_up += u64::from(!self.served);
        });
    }
}

/// The permit for one connection.
pub struct Permit {
    agent: Arc<Agent>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// The last used idle connection to this place that is still usable. Returns the permit if there is none.
    pub fn reuse(self, place: &ConnectionKey) -> Result<(ActiveConnection, Stream), Self> {
        let now = self.agent.age();
        let (found, closed, generation) = self.agent.change(|state| {
            let (mut found, mut closed) = (None, Vec::new());
            let State { settings, idle, tally, generation, .. } = state;
            if let Entry::Occupied(mut resting) = idle.entry(place.clone()) {
                while let Some(one) = resting.get_mut().pop() {
                    if let Some(why) = one.over(settings, now) {
                        tally.rested(why, one.born);
                        closed.push(one);
                    } else {
                        tally.idle -= 1;
                        tally.active += 1;
                        tally.requests += 1;
                        tally.reuses += 1;
                        found = Some(one);
                        break;
                    }
                }
                if resting.get().is_empty() {
                    resting.remove();
                }
            }
            (found, closed, *generation)
        });
        drop(closed);
        match found {
            Some(IdleConnection { stream, born, .. }) => {
                Ok((ActiveConnection { turn: Some(self), born, generation, end: Closed::Abandoned }, stream))
            }
            None => Err(self),
        }
    }

    /// Closes idle connections if a new one would exceed maxSockets.
    pub fn connecting(self) -> Connecting {
        let closed = self.agent.change(|state| {
            let others = state.tally.active + state.tally.connecting + 1;
            let closed = state.trim(u64::from(state.settings.max_sockets).saturating_sub(others));
            state.tally.connecting += 1;
            closed
        });
        drop(closed);
        Connecting { turn: Some(self) }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut state = self.agent.state();
        if state.owed > 0 {
            state.owed -= 1;
            permit.forget();
        }
    }
}

/// A connection that is being opened.
pub struct Connecting {
    turn: Option<Permit>,
}

impl Connecting {
    /// The connection is open, and its first request begins.
    pub fn opened(mut self) -> Option<ActiveConnection> {
        let turn = self.turn.take()?;
        let born = turn.agent.age();
        let generation = turn.agent.change(|state| {
            let State { tally, generation, .. } = state;
            tally.connecting -= 1;
            tally.active += 1;
            tally.opened += 1;
            tally.handshakes += u64::from(turn.agent.protocol == Protocol::Https);
            tally.requests += 1;
            tally.born += born;
            *generation
        });
        Some(ActiveConnection { turn: Some(turn), born, generation, end: Closed::Abandoned })
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        let Some(turn) = self.turn.take() else { return };
        turn.agent.change(|state| {
            state.tally.connecting -= 1;
            state.tally.refused += 1;
        });
    }
}

/// A connection in use.
pub struct ActiveConnection {
    turn: Option<Permit>,
    born: u64,
    generation: u64,
    end: Closed,
}

impl ActiveConnection {
    /// Ends the request and keeps the connection for another one, or closes it if a limit is reached.
    pub fn keep(mut self, place: ConnectionKey, stream: Stream) {
        let Some(turn) = self.turn.take() else { return };
        let (born, generation, now) = (self.born, self.generation, turn.agent.age());
        let room = turn.agent.room.clone().try_acquire_owned();
        let closed = turn.agent.change(move |state| {
            let full = state.tally.idle >= u64::from(state.settings.max_free_sockets);
            let over = if state.generation != generation || state.ended {
                Some(Closed::Destroyed)
            } else if state.settings.outlived(born, now) {
                Some(Closed::Lifetime)
            } else {
                full.then_some(Closed::Full)
            };
            state.tally.active -= 1;
            match (over, room) {
                (None, Ok(room)) => {
                    let one = IdleConnection { stream, since: Instant::now(), born, _room: room };
                    state.idle.entry(place).or_default().push(one);
                    state.tally.idle += 1;
                    None
                }
                (why, _) => {
                    state.tally.born -= born;
                    state.tally.closed[why.unwrap_or(Closed::Full) as usize] += 1;
                    Some(stream)
                }
            }
        });
        drop(closed);
    }

    /// Records the size of the response's body.
    pub fn expect(&self, length: usize) {
        if let Some(turn) = &self.turn {
            turn.agent.expected.store(length, Ordering::Relaxed);
        }
    }

    /// Counts the connection as closed and returns the permit for a retry.
    pub fn closed(mut self, why: Closed) -> Option<Permit> {
        self.end = why;
        self.count()
    }

    fn count(&mut self) -> Option<Permit> {
        let turn = self.turn.take()?;
        turn.agent.change(|state| {
            state.tally.active -= 1;
            state.tally.born -= self.born;
            state.tally.closed[self.end as usize] += 1;
        });
        Some(turn)
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        drop(self.count());
    }
}
