//! Leader election over a Lease: one process acts, the others watch and wait.
//!
//! Not kube-lease-manager: it compares the Lease's times with its own clock, so a replica whose clock is five minutes ahead would take a Lease
//! that is being renewed. Here, as in client-go, what counts is for how long this process has seen the Lease unchanged.
//!
//! A holder that cannot renew stops before anybody else may begin: its writes are refused from `renew_deadline` after the beginning of its
//! last renewal that succeeded, and others wait for `duration`, which is longer, from when they saw it. Then the process ends.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ObjectMeta, PostParams},
};
use tokio::sync::watch;

use crate::{
    clock,
    decide::lease::{Move, Seen, next_move},
};

/// Why this process may not act any more, or may not try to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Times that would let two processes act at once.
    #[error("--lease-duration must be longer than --lease-renew-deadline, and that longer than --lease-retry-period")]
    Timing,
    /// Somebody else holds it.
    #[error("the lease {0} was taken by {1}; ending, so that nobody acts beside it")]
    Taken(String, String),
    /// It could not be renewed in time.
    #[error("the lease {0} could not be renewed for {1:?}; ending, so that another replica can act")]
    Lapsed(String, Duration),
    /// The Lease cannot be written.
    #[error("the lease {0} cannot be taken: {1}; may this identity get, create and update leases in its namespace?")]
    Refused(String, String),
}

/// Who one is, and how long one may be silent.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The Lease's namespace; empty: the client's own.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// This process, different from every other process that there is or was.
    pub identity: String,
    /// How long others wait for a holder that is not heard of; whole seconds.
    pub duration: Duration,
    /// How long after the beginning of its last renewal a holder acts.
    pub renew_deadline: Duration,
    /// How often it is renewed, or looked at.
    pub retry_period: Duration,
}

impl Terms {
    /// # Errors
    /// Where two processes could act at once.
    pub fn checked(self) -> Result<Self, Error> {
        let seconds = Duration::from_secs(self.duration.as_secs());
        let is_sound = seconds > self.renew_deadline && self.renew_deadline > self.retry_period && !self.retry_period.is_zero();
        if is_sound { Ok(Self { duration: seconds, ..self }) } else { Err(Error::Timing) }
    }
}

/// Whether this process may act. Asked before each write, and not remembered.
#[derive(Clone, Debug)]
pub struct Leadership(Arc<Term>);

#[derive(Debug)]
struct Term {
    /// When it ends if nothing is done, see [`since_start`].
    until: AtomicU64,
    /// The same by the wall clock, in Unix milliseconds.
    until_by_wall: AtomicU64,
    begun: watch::Sender<bool>,
}

impl Leadership {
    /// Of a process that acts alone.
    #[must_use]
    pub fn always() -> Self {
        Self(Arc::new(Term {
            until: AtomicU64::new(u64::MAX),
            until_by_wall: AtomicU64::new(u64::MAX),
            begun: watch::Sender::new(true),
        }))
    }

    /// Of a process that only watches.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new(Term { until: AtomicU64::new(0), until_by_wall: AtomicU64::new(0), begun: watch::Sender::new(false) }))
    }

    /// Whether this process may act at this moment.
    ///
    /// The monotonic clock stands still while a machine is suspended or a virtual machine is paused; the wall clock is often set right after
    /// that. Whichever says that the time is over is believed: a wall clock that was set forward costs the wait for the next renewal.
    #[must_use]
    pub fn holds(&self) -> bool {
        since_start(Instant::now()) < self.0.until.load(Ordering::Acquire)
            && wall_millis(SystemTime::now()) < self.0.until_by_wall.load(Ordering::Acquire)
    }

    /// For how long it may act if nothing is done; `None` where there is no election, and no end.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let until = self.0.until.load(Ordering::Acquire);
        (until != u64::MAX).then(|| Duration::from_millis(until.saturating_sub(since_start(Instant::now()))))
    }

    /// Waits until it may act for the first time.
    pub async fn begun(&self) {
        // Its sender lives as long as this.
        let _ = self.0.begun.subscribe().wait_for(|begun| *begun).await;
    }

    /// Carries it on; answers whether it was not held before.
    fn until(&self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        self.0.until_by_wall.store(wall_millis(SystemTime::now() + left), Ordering::Release);
        self.0.until.store(since_start(end), Ordering::Release);
        !self.0.begun.send_replace(true)
    }

    fn end(&self) {
        self.0.until.store(0, Ordering::Release);
    }
}

fn wall_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1)
}

/// Milliseconds since this process first asked, plus one, so that 0 is before every time.
fn since_start(at: Instant) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(at.saturating_duration_since(*START.get_or_init(Instant::now)).as_millis()).unwrap_or(u64::MAX - 1) + 1
}

/// A candidate.
pub struct Election {
    api: Api<Lease>,
    terms: Terms,
    leadership: Leadership,
    /// The Lease as last seen, and since when it has been like that.
    seen: Option<(Lease, Instant)>,
    /// When the last renewal that succeeded began.
    renewed: Option<Instant>,
}

impl Election {
    /// A candidate that has not asked anybody yet.
    #[must_use]
    pub fn new(client: Client, terms: Terms) -> Self {
        let namespace = if terms.namespace.is_empty() { client.default_namespace() } else { &terms.namespace }.to_owned();
        Self { api: Api::namespaced(client, &namespace), terms, leadership: Leadership::none(), seen: None, renewed: None }
    }

    /// Whether it may act, for those who do.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Takes the Lease from whoever holds it, and waits until that one has noticed or acts no more.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn seize(&mut self) -> Result<(), Error> {
        let refused = |terms: &Terms, error: &dyn std::fmt::Display| Error::Refused(terms.name.clone(), error.to_string());
        let begun = Instant::now();
        let before = loop {
            let Ok(taken) = tokio::time::timeout(self.terms.renew_deadline, self.usurp()).await else {
                return Err(refused(&self.terms, &"the API server does not answer"));
            };
            match taken {
                Ok(before) => break before,
                // The holder renews; a writer that is faster again and again is no holder.
                Err(kube::Error::Api(status)) if status.is_conflict() && begun.elapsed() < self.terms.renew_deadline => {}
                Err(error) => return Err(refused(&self.terms, &error)),
            }
        };
        if let Some(before) = before {
            tracing::info!(lease = self.terms.name, before, "taken; waiting until its holder has noticed");
            let acts_no_more = tokio::time::sleep(self.terms.renew_deadline);
            tokio::select! {
                () = acts_no_more => {}
                error = self.stand() => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes one's own name whoever is there, and answers who was.
    async fn usurp(&mut self) -> kube::Result<Option<String>> {
        let began = Instant::now();
        let (before, lease) = match self.api.get_opt(&self.terms.name).await? {
            Some(lease) => {
                let before = holder(&lease).filter(|holder| !holder.is_empty() && *holder != self.terms.identity);
                let before = before.map(str::to_owned);
                (before, self.api.replace(&self.terms.name, &PostParams::default(), &self.named(lease)).await?)
            }
            None => (None, self.api.create(&PostParams::default(), &self.named(self.unnamed())).await?),
        };
        self.note(lease, Move::Take);
        self.renewed = Some(began);
        self.leadership.until(began + self.terms.renew_deadline);
        Ok(before)
    }

    /// Stands for election, and renews once elected; ends only when the Lease was lost, and answers why.
    pub async fn run(&mut self) -> Error {
        let lost = self.stand().await;
        self.leadership.end();
        lost
    }

    async fn stand(&mut self) -> Error {
        let mut said = String::new();
        loop {
            let began = Instant::now();
            let left = self.renewed.map_or(self.terms.renew_deadline, |renewed| {
                self.terms.renew_deadline.saturating_sub(began.saturating_duration_since(renewed))
            });
            if left.is_zero() {
                return Error::Lapsed(self.terms.name.clone(), self.terms.renew_deadline);
            }
            let pause = match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(Move::Renew | Move::Take)) => {
                    self.renewed = Some(began);
                    if self.leadership.until(began + self.terms.renew_deadline) {
                        tracing::info!(lease = self.terms.name, identity = self.terms.identity, "leading");
                    }
                    said.clear();
                    self.terms.retry_period
                }
                Ok(Ok(Move::Wait(most))) => {
                    let holder = self.seen.as_ref().and_then(|(lease, _)| holder(lease)).unwrap_or_default().to_owned();
                    if self.renewed.is_some() {
                        return Error::Taken(self.terms.name.clone(), holder);
                    }
                    if said != holder {
                        tracing::info!(lease = self.terms.name, holder, "another replica leads; waiting");
                        said = holder;
                    }
                    // Looked at twice as often as it is renewed: a renewal is then seen soon after it was made.
                    most.min(self.terms.retry_period / 2)
                }
                // Somebody was faster: looked at anew.
                Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => Duration::ZERO,
                Ok(Err(error)) => {
                    let error = Error::Refused(self.terms.name.clone(), error.to_string()).to_string();
                    if said != error {
                        tracing::warn!("{error} Trying again");
                        said = error;
                    }
                    self.terms.retry_period / 2
                }
                Err(_) => Duration::ZERO,
            };
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    /// One look, and what follows from it. `Take` and `Renew`: it is held now.
    async fn attempt(&mut self) -> kube::Result<Move> {
        // A holder knows what is there unless somebody else has written.
        if let Some((lease, _)) = self.seen.as_ref().filter(|(lease, _)| holder(lease) == Some(self.terms.identity.as_str())) {
            let renewal = self.named(lease.clone());
            match self.api.replace(&self.terms.name, &PostParams::default(), &renewal).await {
                Ok(lease) => return Ok(self.note(lease, Move::Renew)),
                Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let Some(lease) = self.api.get_opt(&self.terms.name).await? else {
            let lease = self.api.create(&PostParams::default(), &self.named(self.unnamed())).await?;
            return Ok(self.note(lease, Move::Take));
        };
        let known = self.seen.take().filter(|(known, _)| known.resource_version() == lease.resource_version());
        let (lease, since) = known.unwrap_or_else(|| (lease, Instant::now()));
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let seen = Seen {
            holder: holder(&lease),
            valid_for: seconds.and_then(|s| u64::try_from(s).ok()).map_or(self.terms.duration, Duration::from_secs),
            unchanged_for: since.elapsed(),
        };
        let next = next_move(seen, &self.terms.identity);
        let mine = self.named(lease.clone());
        self.seen = Some((lease, since));
        if let Move::Wait(_) = next {
            return Ok(next);
        }
        // Fails where somebody has written since: then that is what is looked at next.
        let lease = self.api.replace(&self.terms.name, &PostParams::default(), &mine).await?;
        Ok(self.note(lease, next))
    }

    fn unnamed(&self) -> Lease {
        Lease { metadata: ObjectMeta { name: Some(self.terms.name.clone()), ..ObjectMeta::default() }, spec: None }
    }

    fn note(&mut self, lease: Lease, made: Move) -> Move {
        self.seen = Some((lease, Instant::now()));
        made
    }

    /// The Lease with one's own name in it; written only if it is still as it was seen.
    fn named(&self, mut lease: Lease) -> Lease {
        let now = MicroTime(clock::now());
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if spec.holder_identity.as_deref() != Some(&self.terms.identity) {
            spec.holder_identity = Some(self.terms.identity.clone());
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |before| before.saturating_add(1)));
        }
        spec.renew_time = Some(now);
        spec.lease_duration_seconds = i32::try_from(self.terms.duration.as_secs()).ok();
        lease
    }

    /// Acts no more, and gives the Lease up, if it is held, so that others need not wait; where that fails, they do.
    pub async fn give_up(&mut self) {
        self.leave(|spec| spec.holder_identity = None).await;
    }

    /// Acts no more, and keeps others from it for so long.
    pub async fn bar(&mut self, time: Duration) {
        self.leave(|spec| spec.lease_duration_seconds = i32::try_from(time.as_secs()).ok()).await;
    }

    async fn leave(&mut self, last_words: impl Fn(&mut LeaseSpec)) {
        self.leadership.end();
        let mut seen = self.seen.take().map(|(lease, _)| lease);
        let left = async {
            while let Some(lease) = seen.filter(|lease| holder(lease) == Some(self.terms.identity.as_str())) {
                let mut lease = self.named(lease);
                lease.spec.as_mut().map(&last_words);
                match self.api.replace(&self.terms.name, &PostParams::default(), &lease).await {
                    // A renewal that nobody waited for any more had arrived.
                    Err(kube::Error::Api(status)) if status.is_conflict() => seen = self.api.get_opt(&self.terms.name).await?,
                    done => return done.map(|_| ()),
                }
            }
            Ok(())
        };
        if !matches!(tokio::time::timeout(self.terms.renew_deadline, left).await, Ok(Ok(()))) {
            tracing::warn!(lease = self.terms.name, "could not be given up; others wait until it has run out");
        }
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

/// Up to a tenth shorter, so that replicas do not march in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 - fastrand::f64() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_was_paused_does_not_act_before_it_has_renewed() {
        let leadership = Leadership::none();
        leadership.until(Instant::now() + Duration::from_secs(10));
        assert!(leadership.holds());
        // The monotonic clock stood still, and the wall clock has been set since.
        leadership.0.until_by_wall.store(wall_millis(SystemTime::now() - Duration::from_secs(60)), Ordering::Release);
        assert!(!leadership.holds());
        leadership.until(Instant::now() + Duration::from_secs(10));
        assert!(leadership.holds());
        leadership.end();
        assert!(!leadership.holds());
        assert!(Leadership::always().holds() && !Leadership::none().holds());
    }
}
