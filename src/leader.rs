//! Leader election over a Lease: the leader acts, the standby replicas watch and wait.
//!
//! This is not kube-lease-manager, because that compares the Lease's times with its own clock. A replica whose clock is
//! five minutes ahead would take a Lease that is being renewed. As in client-go, the time counts for which this process
//! has seen the Lease unchanged.
//!
//! A leader that cannot renew stops before another replica can start. Its writes are refused from `renew_deadline`
//! after the start of its last successful renewal. The others wait for the longer `duration` after they saw that
//! renewal. Then the process ends.

pub mod group;

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
    decide::lease::{LeaseObservation, Move, next_move},
};

/// Why this process may not act any longer, or may not campaign.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// These times would let two processes act at the same time.
    #[error(
        "--lease-duration must be longer than --lease-renew-deadline, and --lease-renew-deadline longer than --lease-retry-period"
    )]
    Timing,
    /// Another process holds the Lease.
    #[error("lost lease {0} to {1}; exiting")]
    Taken(String, String),
    /// The Lease was not renewed in time.
    #[error("lease {0} was not renewed for {1:?}; exiting so that another replica can lead")]
    Lapsed(String, Duration),
    /// The Lease cannot be written.
    #[error("cannot acquire lease {0}: {1}; check that this identity may get, create and update leases in its namespace")]
    Refused(String, String),
}

/// Identity and times of the election.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// The Lease's namespace; if empty, the client's default namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// Identity of this process, different from that of every other process, also of past ones.
    pub identity: String,
    /// Time that other replicas wait after the last renewal they saw; whole seconds.
    pub duration: Duration,
    /// Time after the start of the last successful renewal during which the leader may act.
    pub renew_deadline: Duration,
    /// Interval of renewals; a standby reads the Lease twice as often.
    pub retry_period: Duration,
    /// Value of the label [`group::LABEL`], by which the Leases of all shards and replicas are listed; `None` without
    /// shards.
    pub group: Option<String>,
}

impl LeaseConfig {
    /// # Errors
    /// Returns an error if two processes could act at the same time.
    pub fn checked(self) -> Result<Self, Error> {
        let seconds = Duration::from_secs(self.duration.as_secs());
        let is_sound = seconds > self.renew_deadline && self.renew_deadline > self.retry_period && !self.retry_period.is_zero();
        if is_sound { Ok(Self { duration: seconds, ..self }) } else { Err(Error::Timing) }
    }
}

/// Whether this process may act. Check it before each write, and do not cache it.
#[derive(Clone, Debug)]
pub struct Leadership {
    term: Arc<Term>,
    /// The term of the Lease of all shards, if there are several.
    common: Option<Arc<Term>>,
}

#[derive(Debug)]
struct Term {
    /// End of the term unless it is renewed, see [`since_start`].
    until: AtomicU64,
    /// The same by the wall clock, in Unix milliseconds.
    until_by_wall: AtomicU64,
    begun: watch::Sender<bool>,
}

impl Leadership {
    /// For a process without election.
    #[must_use]
    pub fn always() -> Self {
        Self::of(u64::MAX, true)
    }

    /// For a process that never acts.
    #[must_use]
    pub fn none() -> Self {
        Self::of(0, false)
    }

    fn of(until: u64, begun: bool) -> Self {
        let (until, until_by_wall) = (AtomicU64::new(until), AtomicU64::new(until));
        Self { term: Arc::new(Term { until, until_by_wall, begun: watch::Sender::new(begun) }), common: None }
    }

    /// The same leadership for a process that may act only while it holds another Lease, too.
    #[must_use]
    pub fn within(self, common: &Self) -> Self {
        Self { common: Some(common.term.clone()), ..self }
    }

    /// Whether this process may act at this moment.
    ///
    /// The monotonic clock stops while a machine is suspended or a virtual machine is paused. The wall clock is often
    /// set soon after that. The term ends when either clock says so. A wall clock that was set forward thus only pauses
    /// the leader until its next renewal.
    #[must_use]
    pub fn holds(&self) -> bool {
        let (now, wall) = (since_start(Instant::now()), wall_millis(SystemTime::now()));
        self.terms().all(|term| now < term.until.load(Ordering::Acquire) && wall < term.until_by_wall.load(Ordering::Acquire))
    }

    fn terms(&self) -> impl Iterator<Item = &Arc<Term>> {
        [&self.term].into_iter().chain(&self.common)
    }

    /// Remaining time of the term unless it is renewed; `None` without election.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let until = self.terms().map(|term| term.until.load(Ordering::Acquire)).min().unwrap_or_default();
        (until != u64::MAX).then(|| Duration::from_millis(until.saturating_sub(since_start(Instant::now()))))
    }

    /// Waits until this process may act for the first time.
    pub async fn begun(&self) {
        // The wait cannot fail: the sender lives as long as `self`.
        let _ = self.term.begun.subscribe().wait_for(|begun| *begun).await;
    }

    /// Extends the term. Returns whether this is its first start.
    fn until(&self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        self.term.until_by_wall.store(wall_millis(SystemTime::now() + left), Ordering::Release);
        self.term.until.store(since_start(end), Ordering::Release);
        !self.term.begun.send_replace(true)
    }

    fn end(&self) {
        self.term.until.store(0, Ordering::Release);
    }
}

fn wall_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1)
}

/// Milliseconds since the first call, plus one, so that 0 is before every time.
fn since_start(at: Instant) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(at.saturating_duration_since(*START.get_or_init(Instant::now)).as_millis()).unwrap_or(u64::MAX - 1) + 1
}

/// A candidate.
pub struct Election {
    api: Api<Lease>,
    terms: LeaseConfig,
    leadership: Leadership,
    /// The last seen Lease, and when it was first seen in this state.
    seen: Option<(Lease, Instant)>,
    /// Start of the last successful renewal.
    renewed: Option<Instant>,
    /// For a Lease that several processes hold under one identity: start of the attempt that last saw it.
    common: Option<Instant>,
}

impl Election {
    /// A candidate that has not sent a request yet.
    #[must_use]
    pub fn new(client: Client, terms: LeaseConfig) -> Self {
        Self { api: leases(client, &terms), terms, leadership: Leadership::none(), seen: None, renewed: None, common: None }
    }

    /// A candidate for a Lease that several processes hold under one identity. Whether one or another of them renews it does not
    /// matter.
    #[must_use]
    pub fn in_common(client: Client, terms: LeaseConfig) -> Self {
        Self { common: Some(Instant::now()), ..Self::new(client, terms) }
    }

    /// Whether this process has held the Lease.
    #[must_use]
    pub const fn has_held(&self) -> bool {
        self.renewed.is_some()
    }

    /// A handle that says whether this process may act.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Takes the Lease from its holder, and waits until the holder must have stopped.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn take_over(&mut self) -> Result<(), Error> {
        let refused = |terms: &LeaseConfig, error: &dyn std::fmt::Display| Error::Refused(terms.name.clone(), error.to_string());
        let begun = Instant::now();
        let before = loop {
            let Ok(taken) = tokio::time::timeout(self.terms.renew_deadline, self.force_acquire()).await else {
                return Err(refused(&self.terms, &"the API server does not answer"));
            };
            match taken {
                Ok(before) => break before,
                // A conflict is a renewal of the holder. A writer that is faster for the whole deadline is not a
                // holder.
                Err(kube::Error::Api(status)) if status.is_conflict() && begun.elapsed() < self.terms.renew_deadline => {}
                Err(error) => return Err(refused(&self.terms, &error)),
            }
        };
        if let Some(before) = before {
            tracing::info!(lease = self.terms.name, before, "took the lease; waiting until its previous holder has stopped");
            let acts_no_more = tokio::time::sleep(self.terms.renew_deadline);
            tokio::select! {
                () = acts_no_more => {}
                error = self.stand() => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes this process's identity over any holder. Returns the previous holder.
    async fn force_acquire(&mut self) -> kube::Result<Option<String>> {
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

    /// Tries once to take the Lease, if it is free. `seen` is how it was last seen, and since when it is like that. Returns
    /// whether this process holds it now.
    ///
    /// # Errors
    /// [`Error::Refused`], if the API server refuses the request or does not answer.
    pub async fn try_take(&mut self, seen: Option<(Lease, Instant)>) -> Result<bool, Error> {
        self.seen = seen;
        let began = Instant::now();
        match tokio::time::timeout(self.terms.renew_deadline, self.attempt()).await {
            Ok(Ok(Move::Take | Move::Renew)) => {
                self.renewed_at(began);
                Ok(true)
            }
            Ok(Ok(Move::Wait(_))) => Ok(false),
            // Another process was faster.
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => Ok(false),
            Ok(Err(error)) => Err(Error::Refused(self.terms.name.clone(), error.to_string())),
            Err(_) => Err(Error::Refused(self.terms.name.clone(), "the API server does not answer".into())),
        }
    }

    fn renewed_at(&mut self, began: Instant) {
        self.renewed = Some(began);
        if self.leadership.until(began + self.terms.renew_deadline) {
            tracing::info!(lease = self.terms.name, identity = self.terms.identity, "leading");
        }
    }

    /// Campaigns, and renews once elected. Returns why the Lease was lost.
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
            let pause = match tokio::time::timeout(left, self.renewal(began)).await {
                Ok(Ok((Move::Renew | Move::Take, renewed))) => {
                    self.renewed_at(renewed);
                    said.clear();
                    self.terms.retry_period
                }
                Ok(Ok((Move::Wait(most), _))) => {
                    let holder = self.seen.as_ref().and_then(|(lease, _)| holder(lease)).unwrap_or_default().to_owned();
                    if self.renewed.is_some() {
                        return Error::Taken(self.terms.name.clone(), holder);
                    }
                    if said != holder {
                        tracing::info!(lease = self.terms.name, holder, "another replica is the leader; waiting");
                        said = holder;
                    }
                    // Read the Lease twice as often as it is renewed, so that each renewal is seen soon.
                    most.min(self.terms.retry_period / 2)
                }
                // Another process was faster: read the Lease again at once.
                Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => Duration::ZERO,
                Ok(Err(error)) => {
                    let error = Error::Refused(self.terms.name.clone(), error.to_string()).to_string();
                    if said != error {
                        tracing::warn!("{error}; retrying");
                        said = error;
                    }
                    self.terms.retry_period / 2
                }
                Err(_) => Duration::ZERO,
            };
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    /// Reads or renews the Lease once. `Take` and `Renew` mean that this process holds it, and that it was renewed after the
    /// returned time.
    async fn renewal(&mut self, began: Instant) -> kube::Result<(Move, Instant)> {
        match self.renewed_in_common(began).await? {
            Some(renewed) => Ok((Move::Renew, renewed)),
            None => Ok((self.attempt().await?, began)),
        }
    }

    /// Looks whether another process with the same identity has renewed the Lease. If all of them wrote, their writes would
    /// conflict. The Lease has changed since the last attempt saw it, so it was renewed after the start of that attempt, which is
    /// returned.
    async fn renewed_in_common(&mut self, began: Instant) -> kube::Result<Option<Instant>> {
        let Some(before) = self.common else { return Ok(None) };
        let mut renewed = None;
        if let Some((known, _)) = self.seen.as_ref().filter(|(lease, _)| holder(lease) == Some(&self.terms.identity)) {
            let lease = self.api.get_opt(&self.terms.name).await?;
            let changed = lease.filter(|lease| lease.resource_version() != known.resource_version());
            renewed = changed.filter(|lease| holder(lease) == Some(&self.terms.identity));
        }
        self.common = Some(began);
        Ok(renewed.map(|lease| {
            self.note(lease, Move::Renew);
            before
        }))
    }

    /// Reads or renews the Lease once. `Take` and `Renew` mean that this process holds it now.
    async fn attempt(&mut self) -> kube::Result<Move> {
        // A holder knows the Lease's content unless another process has written it.
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
        let seen = LeaseObservation {
            holder: holder(&lease),
            valid_for: valid_for(&lease, self.terms.duration),
            unchanged_for: since.elapsed(),
        };
        let next = next_move(seen, &self.terms.identity);
        let mine = self.named(lease.clone());
        self.seen = Some((lease, since));
        if let Move::Wait(_) = next {
            return Ok(next);
        }
        // This fails if another process has written since; the next attempt reads that.
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

    /// The Lease with this process's identity. It has the seen resource version, so a write fails after another one.
    fn named(&self, mut lease: Lease) -> Lease {
        let now = MicroTime(clock::now());
        if let Some(group) = &self.terms.group {
            lease.labels_mut().insert(group::LABEL.into(), group.clone());
        }
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

    /// Stops acting and releases the Lease, if held, so that others need not wait. If the release fails, they wait.
    pub async fn give_up(&mut self) {
        self.leave(|spec| spec.holder_identity = None).await;
    }

    /// Stops acting and keeps others from acting for `time`.
    pub async fn bar(&mut self, time: Duration) {
        self.leave(|spec| spec.lease_duration_seconds = i32::try_from(time.as_secs()).ok()).await;
    }

    /// Stops acting and releases the Lease, unless it was renewed since this process last did so: several processes may hold
    /// a Lease under one identity.
    pub async fn give_up_unless_renewed(&mut self) {
        self.leadership.end();
        let Some((lease, _)) = self.seen.take().filter(|(lease, _)| holder(lease) == Some(self.terms.identity.as_str())) else {
            return;
        };
        let mut lease = self.named(lease);
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
        }
        let params = PostParams::default();
        let released = self.api.replace(&self.terms.name, &params, &lease);
        // If it fails, others wait until the Lease expires.
        let _ = tokio::time::timeout(self.terms.renew_deadline, released).await;
    }

    async fn leave(&mut self, last_words: impl Fn(&mut LeaseSpec)) {
        self.leadership.end();
        let mut seen = self.seen.take().map(|(lease, _)| lease);
        let left = async {
            while let Some(lease) = seen.filter(|lease| holder(lease) == Some(self.terms.identity.as_str())) {
                let mut lease = self.named(lease);
                lease.spec.as_mut().map(&last_words);
                match self.api.replace(&self.terms.name, &PostParams::default(), &lease).await {
                    // An earlier renewal arrived after its timeout.
                    Err(kube::Error::Api(status)) if status.is_conflict() => seen = self.api.get_opt(&self.terms.name).await?,
                    done => return done.map(|_| ()),
                }
            }
            Ok(())
        };
        if !matches!(tokio::time::timeout(self.terms.renew_deadline, left).await, Ok(Ok(()))) {
            tracing::warn!(lease = self.terms.name, "lease could not be released; other replicas wait until it expires");
        }
    }
}

fn leases(client: Client, terms: &LeaseConfig) -> Api<Lease> {
    let namespace = if terms.namespace.is_empty() { client.default_namespace() } else { &terms.namespace }.to_owned();
    Api::namespaced(client, &namespace)
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

/// How long the holder may go without renewing.
fn valid_for(lease: &Lease, default: Duration) -> Duration {
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
    seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(default, Duration::from_secs)
}

/// Shortens a pause by up to a tenth, so that replicas do not run in step.
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
        // The monotonic clock stopped, and the wall clock was set afterwards.
        leadership.term.until_by_wall.store(wall_millis(SystemTime::now() - Duration::from_secs(60)), Ordering::Release);
        assert!(!leadership.holds());
        leadership.until(Instant::now() + Duration::from_secs(10));
        assert!(leadership.holds());
        leadership.end();
        assert!(!leadership.holds());
        assert!(Leadership::always().holds() && !Leadership::none().holds());
    }
}
