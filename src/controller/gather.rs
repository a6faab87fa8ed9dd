//! Gathering: units are read in parallel and returned in groups as they answer. A slow unit does not delay the others: it is in a
//! later group of the same pass.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::Instant;

use super::memory::Memory;
use crate::{
    budget::{Reservation, Tenant},
    decide::{Cause, Fault, Unit, UnitState},
    targets::Target,
};

/// Maximum units that are read at the same time.
const CONCURRENCY: usize = 64;
/// Time that the first answer of a group waits for more.
const GROUPING: Duration = Duration::from_millis(400);
/// Timeout of all reads together. Units that were not read by then are read in the next pass, in which the units that did not
/// answer are not due.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Unit, and its state or why it cannot be read.
pub type Answer = (Unit, Result<UnitState, Fault>);

/// Reads that are in progress.
pub struct Gathering {
    /// Units that were not read: their back-off is not over, or there was no time left.
    pub skipped: Vec<Answer>,
    open: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Units that are being read, by id.
    asked: BTreeMap<String, Unit>,
    waiting: Vec<Unit>,
    answered: Vec<Answer>,
    target: Arc<dyn Target>,
    /// Memory of the answers, until the pass ends.
    held: Reservation,
    until: Instant,
}

impl Gathering {
    /// Begins to read all units that are due. Their answers count against the namespace's memory as long as this exists.
    pub fn begin(target: Arc<dyn Target>, units: Vec<Unit>, memory: &Memory, tenant: &Arc<Tenant>) -> Self {
        let now = std::time::Instant::now();
        let (mut skipped, mut waiting) = (Vec::new(), Vec::new());
        for unit in units {
            match memory.failing.get(&unit.id) {
                Some(failing) if now < failing.due => skipped.push((unit, Err(failing.fault.clone()))),
                _ => waiting.push(unit),
            }
        }
        waiting.reverse();
        let (open, answered, held) = (FuturesUnordered::new(), Vec::new(), tenant.nothing());
        Self { skipped, open, asked: BTreeMap::new(), waiting, answered, target, held, until: Instant::now() + TIMEOUT }
    }

    /// Returns the next group of answers: when all units have answered, or a moment after the first answer. `None` after the last
    /// group.
    pub async fn next(&mut self) -> Option<Vec<Answer>> {
        let mut until = self.until;
        if !self.answered.is_empty() {
            until = until.min(Instant::now() + GROUPING);
        }
        loop {
            self.fill();
            if self.open.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                Some(answer) = self.open.next() => {
                    if self.answered.is_empty() {
                        until = until.min(Instant::now() + GROUPING);
                    }
                    self.take(answer);
                }
                () = tokio::time::sleep_until(until) => break,
            }
        }
        if Instant::now() >= self.until {
            self.open.clear();
            for unit in std::mem::take(&mut self.asked).into_values() {
                let fault = Fault::new(Cause::Unreachable, format!("{} did not answer within {TIMEOUT:?}", unit.name));
                self.answered.push((unit, Err(fault)));
            }
            let late = std::mem::take(&mut self.waiting).into_iter().map(|unit| {
                let message = format!("{} was not read: the other nodes took more than {TIMEOUT:?}; it is read next", unit.name);
                (unit, Err(Fault::new(Cause::NotReady, message)))
            });
            self.skipped.extend(late);
        }
        let answers = std::mem::take(&mut self.answered);
        (!answers.is_empty()).then_some(answers)
    }

    /// Runs other work while the reads continue.
    pub async fn alongside<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            self.fill();
            tokio::select! {
                biased;
                done = &mut work => return done,
                Some(answer) = self.open.next(), if !self.open.is_empty() => self.take(answer),
            }
        }
    }

    fn take(&mut self, (unit, state): Answer) {
        self.asked.remove(&unit.id);
        let state = state.and_then(|state| {
            let held = self.held.bytes() + state.size();
            if self.held.try_grow(held) {
                return Ok(state);
            }
            let message = format!(
                "The configuration of {} needs more memory than the operator has for this namespace; select fewer nodes in one policy",
                unit.name
            );
            Err(Fault::new(Cause::Busy, message))
        });
        self.answered.push((unit, state));
    }

    fn fill(&mut self) {
        while self.open.len() < CONCURRENCY {
            let Some(unit) = self.waiting.pop() else { return };
            let target = self.target.clone();
            self.asked.insert(unit.id.clone(), unit.clone());
            self.open.push(
                async move {
                    let state = target.read(&unit).await;
                    (unit, state)
                }
                .boxed(),
            );
        }
    }
}
