//! Scheduler of the passes, which are called visits here: fair between namespaces, with a deadline for each visit.
//!
//! It has slots, deadlines, cancellation, panics, and the check that work progresses. It does not know what a visit does.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use super::PolicyRef;
use crate::pass::{DEADLINE, Error};

/// Maximum visits that read nodes at the same time. A visit that waits for a slow node costs some kilobytes; [`crate::budget`]
/// bounds the memory of the responses.
const SLOTS: usize = 128;
/// A namespace may start a visit while the number of its running visits, times this, is less than the number of free slots. One
/// namespace alone gets 15 slots, and after 15 greedy namespaces 18 slots are still free.
const FAIRNESS: usize = 8;
/// Due work without progress for this time is stuck. It is longer than any visit may take, including its writes.
const STALLED: Duration = Duration::from_secs(300);

/// A caught panic. Its message is not kept, because it may quote the response of another server.
#[derive(Debug)]
pub struct Panicked;

/// Runs a future to its end. A panic in it ends only this future.
pub async fn contained<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_| Panicked)
}

/// Grants slots, and knows the running visits.
#[derive(Default)]
pub struct Scheduler {
    state: Mutex<State>,
}

struct State {
    free: usize,
    running: HashMap<String, usize>,
    waiting: BTreeMap<String, VecDeque<(u64, oneshot::Sender<Slot>)>>,
    visits: HashMap<PolicyRef, CancellationToken>,
    /// Visits that wait or run: number and start time.
    open: BTreeMap<u64, Instant>,
    next: u64,
    progressed: Instant,
}

impl Default for State {
    fn default() -> Self {
        Self {
            free: SLOTS,
            running: HashMap::new(),
            waiting: BTreeMap::new(),
            visits: HashMap::new(),
            open: BTreeMap::new(),
            next: 0,
            progressed: Instant::now(),
        }
    }
}

impl State {
    fn admits(&self, namespace: &str) -> bool {
        match self.running.get(namespace) {
            None => self.free > 0,
            Some(running) => running * FAIRNESS < self.free,
        }
    }

    fn take(&mut self, namespace: &str) {
        self.free -= 1;
        *self.running.entry(namespace.to_owned()).or_insert(0) += 1;
    }

    /// Returns the next namespace: of those that may start a visit, the one with the fewest running visits, then the one that has
    /// waited longest.
    fn turn(&self) -> Option<String> {
        let admitted = self.waiting.iter().filter(|(namespace, _)| self.admits(namespace));
        let order = |(namespace, queue): &(&String, &VecDeque<(u64, _)>)| {
            (self.running.get(*namespace).copied().unwrap_or(0), queue.front().map_or(u64::MAX, |(number, _)| *number))
        };
        admitted.min_by_key(order).map(|(namespace, _)| namespace.clone())
    }
}

/// Permission to read nodes. Dropping it returns the slot.
pub struct Slot {
    scheduler: Arc<Scheduler>,
    namespace: String,
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut state = self.scheduler.state();
            state.free += 1;
            if let Some(running) = state.running.get_mut(&self.namespace) {
                *running -= 1;
                if *running == 0 {
                    state.running.remove(&self.namespace);
                }
            }
        }
        self.scheduler.grant();
    }
}

/// A visit from when it is due until it ends.
pub struct Due {
    scheduler: Arc<Scheduler>,
    number: u64,
}

impl Drop for Due {
    fn drop(&mut self) {
        let mut state = self.scheduler.state();
        state.open.remove(&self.number);
        state.progressed = Instant::now();
    }
}

impl Scheduler {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a visit is due.
    pub fn due(self: &Arc<Self>) -> Due {
        let mut state = self.state();
        state.next += 1;
        let number = state.next;
        state.open.insert(number, Instant::now());
        Due { scheduler: self.clone(), number }
    }

    /// Waits for a slot.
    pub async fn admit(self: &Arc<Self>, namespace: &str) -> Slot {
        let granted = {
            let mut state = self.state();
            if state.waiting.get(namespace).is_none_or(VecDeque::is_empty) && state.admits(namespace) {
                state.take(namespace);
                return Slot { scheduler: self.clone(), namespace: namespace.to_owned() };
            }
            state.next += 1;
            let number = state.next;
            let (grant, granted) = oneshot::channel();
            state.waiting.entry(namespace.to_owned()).or_default().push_back((number, grant));
            granted
        };
        match granted.await {
            Ok(slot) => slot,
            // The sender is dropped only with the scheduler, which this future keeps alive.
            Err(_) => std::future::pending().await,
        }
    }

    /// Grants free slots to waiting visits. A visit that stopped waiting returns its slot at once.
    fn grant(self: &Arc<Self>) {
        loop {
            let (grant, slot) = {
                let mut state = self.state();
                let Some(namespace) = state.turn() else { return };
                let Some(queue) = state.waiting.get_mut(&namespace) else { return };
                let next = queue.pop_front();
                if queue.is_empty() {
                    state.waiting.remove(&namespace);
                }
                let Some((_, grant)) = next else { continue };
                if grant.is_closed() {
                    continue;
                }
                state.take(&namespace);
                (grant, Slot { scheduler: self.clone(), namespace })
            };
            drop(grant.send(slot));
        }
    }

    /// Begins a visit to a policy that is not being deleted. If the policy is deleted meanwhile, the visit is cancelled.
    pub fn begin(self: &Arc<Self>, policy: &PolicyRef) -> Visit {
        let visit = Visit::default();
        self.state().visits.insert(policy.clone(), visit.cancelled.clone());
        visit
    }

    /// Ends the visit.
    pub fn end(&self, policy: &PolicyRef) {
        self.state().visits.remove(policy);
    }

    /// Cancels the visit to a policy that is being deleted: its results are no longer needed.
    pub fn deletion_seen(&self, policy: &PolicyRef) {
        if let Some(visit) = self.state().visits.get(policy) {
            visit.cancel();
        }
    }

    /// Returns for how long due work has had no progress, if that is too long.
    #[must_use]
    pub fn stalled(&self) -> Option<Duration> {
        let state = self.state();
        let oldest = state.open.values().next()?.max(&state.progressed).elapsed();
        (oldest > STALLED).then_some(oldest)
    }
}

/// Deadline and cancellation of a visit.
#[derive(Clone)]
pub struct Visit {
    cancelled: CancellationToken,
    until: Instant,
}

impl Default for Visit {
    fn default() -> Self {
        Self { cancelled: CancellationToken::new(), until: Instant::now() + DEADLINE }
    }
}

impl Visit {
    /// Reports whether the visit may begin no new work.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.cancelled.is_cancelled() || Instant::now() >= self.until
    }

    /// Waits until the visit is cancelled or overdue. Writes do not end then: a write must be completed.
    pub async fn interrupted(&self) -> Error {
        tokio::select! {
            biased;
            () = self.cancelled.cancelled() => Error::Cancelled,
            () = tokio::time::sleep_until(self.until) => Error::Overdue,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::ready, pin::pin};

    use futures::future::{Either, select};

    use super::*;

    async fn now(scheduler: &Arc<Scheduler>, namespace: &str) -> Option<Slot> {
        tokio::time::timeout(Duration::from_millis(5), scheduler.admit(namespace)).await.ok()
    }

    async fn saturate(scheduler: &Arc<Scheduler>, namespace: &str) -> Vec<Slot> {
        let mut slots = Vec::new();
        while let Some(slot) = now(scheduler, namespace).await {
            slots.push(slot);
        }
        slots
    }

    #[tokio::test(start_paused = true)]
    async fn fifteen_greedy_namespaces_leave_slots_for_the_sixteenth() {
        let scheduler = Arc::<Scheduler>::default();
        let mut held = Vec::new();
        for n in 0..15 {
            held.push(saturate(&scheduler, &format!("greedy-{n}")).await);
        }
        assert_eq!(held[0].len(), 15, "one namespace alone gets a part");
        assert!(held.iter().all(|slots| !slots.is_empty()));
        assert!(now(&scheduler, "innocent").await.is_some());
        assert_eq!(scheduler.state().free, 18);
    }

    #[tokio::test(start_paused = true)]
    async fn a_free_slot_goes_to_the_namespace_with_the_fewest() {
        let scheduler = Arc::<Scheduler>::default();
        let mut held: Vec<Slot> = Vec::new();
        for n in 0..SLOTS {
            held.extend(now(&scheduler, &format!("ns-{n}")).await);
        }
        assert_eq!(scheduler.state().free, 0);
        let greedy = tokio::spawn({
            let scheduler = scheduler.clone();
            async move { scheduler.admit("ns-0").await }
        });
        tokio::task::yield_now().await;
        let newcomer = tokio::spawn({
            let scheduler = scheduler.clone();
            async move { scheduler.admit("newcomer").await }
        });
        tokio::task::yield_now().await;
        held.pop();
        newcomer.await.expect("a slot");
        assert!(!greedy.is_finished());
        greedy.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_stopped_waiting_takes_no_slot() {
        let scheduler = Arc::<Scheduler>::default();
        let mut held = Vec::new();
        for n in 0..SLOTS {
            held.extend(now(&scheduler, &format!("ns-{n}")).await);
        }
        assert!(now(&scheduler, "late").await.is_none());
        drop(held);
        assert_eq!(scheduler.state().free, SLOTS);
        assert!(scheduler.state().running.is_empty() && scheduler.state().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_visit_ends_with_its_time_or_with_a_deletion() {
        let scheduler = Arc::<Scheduler>::default();
        let policy = PolicyRef::new("gw").within("shop");
        let visit = scheduler.begin(&policy);
        let reading = async |visit: &Visit| match select(pin!(visit.interrupted()), ready(7)).await {
            Either::Left((error, _)) => Err(error),
            Either::Right((answer, _)) => Ok(answer),
        };
        assert!(!visit.is_interrupted() && reading(&visit).await.is_ok_and(|answer| answer == 7));
        assert!(matches!(visit.interrupted().await, Error::Overdue));
        assert!(visit.is_interrupted());
        let visit = scheduler.begin(&policy);
        scheduler.deletion_seen(&policy);
        assert!(visit.is_interrupted() && matches!(reading(&visit).await, Err(Error::Cancelled)));
        scheduler.end(&policy);
        assert!(scheduler.state().visits.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_due_and_does_not_progress_is_stalled() {
        let scheduler = Arc::<Scheduler>::default();
        tokio::time::advance(STALLED * 3).await;
        assert_eq!(scheduler.stalled(), None, "nothing is due");
        let stuck = scheduler.due();
        tokio::time::advance(STALLED * 2 / 3).await;
        drop(scheduler.due());
        tokio::time::advance(STALLED * 2 / 3).await;
        assert_eq!(scheduler.stalled(), None, "another visit has ended");
        tokio::time::advance(STALLED).await;
        assert!(scheduler.stalled().is_some());
        drop(stuck);
        assert_eq!(scheduler.stalled(), None);
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_future_only() {
        assert!(contained(async { panic!("planted") }).await.is_err());
        assert!(contained(async { 7 }).await.is_ok_and(|answer| answer == 7));
    }
}
