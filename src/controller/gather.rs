//! Gather: read the units side by side. One that hangs holds up neither the others nor what is done with them.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};

use super::memory::Memory;
use crate::{
    decide::{Fault, Unit, UnitState},
    targets::Target,
};

/// Units that are asked at the same time.
const AT_ONCE: usize = 64;
/// After this long, the work goes on with those that have answered.
const SOFT_DEADLINE: Duration = Duration::from_millis(400);

/// A unit and what it said.
pub type Answer = (Unit, Result<UnitState, Fault>);

/// What was read, and the questions that are still open.
pub struct Gathered {
    /// Units that have answered, one way or the other.
    pub answers: Vec<Answer>,
    /// Units that have failed before and are not due to be asked again.
    pub skipped: Vec<Answer>,
    open: FuturesUnordered<BoxFuture<'static, Answer>>,
    waiting: Vec<Unit>,
    target: Arc<dyn Target>,
}

/// Reads all units that are due.
pub async fn gather(target: Arc<dyn Target>, units: Vec<Unit>, memory: &Memory, now: Instant) -> Gathered {
    let mut gathered =
        Gathered { answers: Vec::new(), skipped: Vec::new(), open: FuturesUnordered::new(), waiting: Vec::new(), target };
    for unit in units {
        match memory.failing.get(&unit.id) {
            Some(failing) if now < failing.due => gathered.skipped.push((unit, Err(failing.fault.clone()))),
            _ => gathered.waiting.push(unit),
        }
    }
    gathered.waiting.reverse();
    let deadline = tokio::time::sleep(SOFT_DEADLINE);
    tokio::pin!(deadline);
    loop {
        gathered.fill();
        tokio::select! {
            biased;
            answer = gathered.open.next() => match answer {
                Some(answer) => gathered.answers.push(answer),
                None => break,
            },
            () = &mut deadline, if !gathered.answers.is_empty() && gathered.waiting.is_empty() => break,
        }
    }
    gathered
}

impl Gathered {
    fn fill(&mut self) {
        while self.open.len() < AT_ONCE {
            let Some(unit) = self.waiting.pop() else { return };
            let target = self.target.clone();
            self.open.push(
                async move {
                    let state = target.read(&unit).await;
                    (unit, state)
                }
                .boxed(),
            );
        }
    }

    /// Waits for the open questions while `work` is done. They were not decided upon, and are asked again soon.
    pub async fn while_waiting<T>(&mut self, work: impl Future<Output = T>) -> (T, Vec<Answer>) {
        let open = std::mem::take(&mut self.open);
        futures::join!(work, open.collect())
    }
}
