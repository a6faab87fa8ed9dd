//! Gathering: units are read in parallel and returned in groups as they answer. A slow unit does not delay the others: it is in a
//! later group of the same pass.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Either, select},
    stream::FuturesUnordered,
};

use super::{
    cache::PolicyCache,
    pace::Pace,
    world::{Moment, Target, World},
};
use crate::decide::{Cause, Fault, Unit, UnitState};

/// Time that the first answer of a group waits for more.
const GROUPING: Duration = Duration::from_millis(400);
/// Timeout of all reads together. Units that were not read by then are read in the next pass, in which the units that did not
/// answer are not due.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Unit, and its state or why it cannot be read.
pub type UnitRead = (Unit, Result<UnitState, Fault>);

/// Reads that are in progress.
pub struct Gathering<'a> {
    /// Units that were not read: their back-off is not over, or there was no time left.
    pub skipped: Vec<UnitRead>,
    world: &'a dyn World,
    open: FuturesUnordered<BoxFuture<'static, UnitRead>>,
    /// By id: units that are being read, and since when.
    asked: BTreeMap<String, (Unit, Moment)>,
    pace: Pace,
    units: usize,
    waiting: Vec<Unit>,
    answered: Vec<UnitRead>,
    target: Arc<dyn Target>,
    /// Bytes of the answers.
    kept: usize,
    until: Moment,
}

impl<'a> Gathering<'a> {
    /// Begins to read all units that are due.
    pub fn begin(world: &'a dyn World, target: Arc<dyn Target>, units: Vec<Unit>, memory: &PolicyCache) -> Self {
        let now = world.moment();
        let (mut skipped, mut waiting, pace) = (Vec::new(), Vec::new(), Pace::default());
        for unit in units {
            match memory.failing.get(&unit.id) {
                Some(failing) if now < failing.due && !memory.waves.wait_for(&unit.id) => {
                    skipped.push((unit, Err(failing.fault.clone())));
                }
                _ => waiting.push(unit),
            }
        }
        waiting.reverse();
        let (open, answered, asked) = (FuturesUnordered::new(), Vec::new(), BTreeMap::new());
        let units = waiting.len();
        Self { skipped, world, open, asked, pace, units, waiting, answered, target, kept: 0, until: now + TIMEOUT }
    }

    /// Returns how fast the units have answered so far.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Returns the next group of answers: when all units have answered, or a moment after the first answer. `None` after the last
    /// group.
    pub async fn next(&mut self) -> Option<Vec<UnitRead>> {
        self.fill();
        if self.answered.is_empty()
            && let Some(answer) = self.one_until(self.until).await
        {
            self.take(answer);
        }
        let until = self.until.min(self.world.moment() + GROUPING);
        self.fill();
        while let Some(answer) = self.one_until(until).await {
            self.take(answer);
            self.fill();
        }
        if self.world.moment() >= self.until {
            self.give_up();
        }
        let answers = std::mem::take(&mut self.answered);
        (!answers.is_empty()).then_some(answers)
    }

    /// Runs other work while the reads continue.
    pub async fn alongside<T>(&mut self, work: impl Future<Output = T> + Send) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            self.fill();
            if self.open.is_empty() {
                return work.await;
            }
            match select(work.as_mut(), self.open.next()).await {
                Either::Left((done, _)) => return done,
                Either::Right((answer, _)) => answer.into_iter().for_each(|answer| self.take(answer)),
            }
        }
    }

    /// Returns an answer; `None` if nothing is being read, or if the time is over.
    async fn one_until(&mut self, until: Moment) -> Option<UnitRead> {
        if self.open.is_empty() {
            return None;
        }
        match select(self.open.next(), self.world.wait_until(until)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => None,
        }
    }

    /// Ends the reads that took too long.
    fn give_up(&mut self) {
        self.open.clear();
        for (unit, _) in std::mem::take(&mut self.asked).into_values() {
            let fault = Fault::new(Cause::Unreachable, format!("{} did not answer within {TIMEOUT:?}", unit.name));
            self.answered.push((unit, Err(fault)));
        }
        let late = std::mem::take(&mut self.waiting).into_iter().map(|unit| {
            let message = format!("{} was not read: the other nodes took more than {TIMEOUT:?}; it is read next", unit.name);
            (unit, Err(Fault::new(Cause::NotReady, message)))
        });
        self.skipped.extend(late);
    }

    fn take(&mut self, (unit, state): UnitRead) {
        if let Some((_, since)) = self.asked.remove(&unit.id) {
            self.pace.answered(self.world.moment().since(since));
        }
        let state = state.and_then(|state| {
            let kept = self.kept + state.size();
            if self.world.may_keep(kept) {
                self.kept = kept;
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
        while self.open.len() < self.pace.concurrency(self.units) {
            let Some(unit) = self.waiting.pop() else { return };
            let target = self.target.clone();
            self.asked.insert(unit.id.clone(), (unit.clone(), self.world.moment()));
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
