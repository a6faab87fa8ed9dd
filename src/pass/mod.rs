//! The work for one policy, in its order: read, find the target, read the nodes, decide, announce, save, write, read back, report;
//! restore; restart.
//!
//! It is written as async functions over the trait [`world::World`], and the compiler makes the state machine from them. Nothing in
//! here does I/O, reads a clock, or knows a runtime: the controller carries the requests out, and the exploration in tests/model
//! polls the same functions and answers each request from values, in every order and with every fault.

mod adaptation;
mod apply;
pub mod claims;
mod error;
mod gather;
mod handle;
pub mod logging;
pub mod memory;
pub mod report;
mod restart;
mod restore;
mod round;
mod saved;
pub mod world;

use std::{future::Future, sync::Arc, time::Duration};

use futures::future::{Either, select};

pub use self::{
    adaptation::{Look, interval},
    error::{API_TIMEOUT, ApiError, DEADLINE, Error, Failure, no_right},
    handle::PolicyHandle,
    restore::release,
};
use self::{
    claims::{Scope, is_stated},
    memory::{Memory, wait},
    world::{Located, News, Stage, Target, World},
};
use crate::{
    api::{conditions::Reason, restart::RestartPolicy},
    decide::{
        self, Declared, Fault, Plan, Traits, Unit,
        claims::{Claimant, sentence},
        conditions::Problem,
        observed::Cause,
    },
};

/// Added to a due time, so that the pass begins after it.
pub const MOMENT: Duration = Duration::from_millis(5);

/// When the next pass of the policy is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// After this time, or when something changes.
    After(Duration),
    /// When something changes.
    Changed,
}

/// Makes one pass.
///
/// # Errors
/// Why the pass failed. The status stays as it is; the operator retries.
pub async fn visit(world: &dyn World, memory: &mut Memory) -> Result<Next, Error> {
    let mut admitted = false;
    let next = loop {
        let Some(mut policy) = read(world, memory).await? else { return Ok(Next::Changed) };
        tracing::Span::current().record("generation", policy.object.metadata.generation);
        // Steps that need only the API server come before the wait for a slot: younger policies wait for them.
        let located = if policy.is_deleted() {
            world.wake(world.registry().keep(&policy.claimant));
            None
        } else {
            match locate(world, &mut policy, memory).await? {
                Found::Done(next) => break next,
                Found::At(located) => Some(located),
            }
        };
        if !admitted {
            admitted = true;
            if world.admitted().await {
                // The policy may have changed since it was read.
                continue;
            }
        }
        break match located {
            None => {
                let _stage = world.enter(Stage::Restore);
                restore::cleanup(world, &policy, memory).await?
            }
            Some(located) => {
                world.begin();
                Box::pin(govern(world, &mut policy, memory, located)).await?
            }
        };
    };
    memory.failures = 0;
    memory.logged.remove("error");
    world.tell(News::Reconciled);
    Ok(next)
}

/// Reads the policy and its saved original settings from the API server. `None` if the policy is gone.
async fn read(world: &dyn World, memory: &mut Memory) -> Result<Option<PolicyHandle>, Error> {
    // The watch may lag behind the operator's own writes. Reading again prevents double Events and writes.
    let Some(object) = world.policy().await? else {
        world.forget();
        return Ok(None);
    };
    let policy = PolicyHandle::new(object)?;
    if memory.uid != policy.uid {
        *memory = Memory { uid: policy.uid.clone(), failures: memory.failures, ..Memory::default() };
        world.end_all();
        world.wake(world.registry().forget(&policy.namespace, &policy.name, Some(&policy.claimant)));
    }
    if memory.originals.is_none() {
        let log = world.originals().await?;
        world.registry().saved(&policy.claimant, &log);
        memory.originals = Some(log);
    }
    Ok(Some(policy))
}

/// Result of looking for the target: where it is, or the end of the pass.
enum Found<'a> {
    At(Box<dyn Located + 'a>),
    Done(Next),
}

/// Finds the target with requests to the API server only, and claims it.
async fn locate<'a>(world: &'a dyn World, policy: &mut PolicyHandle, memory: &mut Memory) -> Result<Found<'a>, Error> {
    let traits = traits(world, policy);
    let declared = decide::declare(policy.spec(), &traits);
    if let Some(message) = policy.refusal.clone().or_else(|| declared.invalid(&decide::floor(policy.spec(), &traits))) {
        world.wake(world.registry().give_up(&policy.claimant));
        adaptation::end(world, policy, memory).await;
        let problem = Problem::invalid(Reason::Invalid, message);
        return problem_report(world, policy, memory, &declared, &traits, &problem).await.map(Found::Done);
    }
    let kind = policy.spec().target.type_;
    let located = match world.locate(policy).await {
        Ok(located) => located,
        Err(failure) => return failed(world, policy, memory, &declared, &traits, failure).await.map(Found::Done),
    };
    let claimed = world.registry().claim_places(&policy.claimant, kind, located.identities());
    world.wake(claimed.concerned);
    if let Some(winner) = claimed.winner {
        return conflicted(world, policy, memory, &declared, &traits, &winner).await.map(Found::Done);
    }
    if world.registry().must_wait(&policy.claimant, &Scope::Places(kind)) {
        tracing::debug!("older policies are looked at first");
        // The policy is enqueued as soon as the older policies have claimed their targets.
        return Ok(Found::Done(Next::After(world.resync())));
    }
    Ok(Found::At(located))
}

fn traits(world: &dyn World, policy: &PolicyHandle) -> Traits {
    let rolling = policy.spec().restart.as_ref().is_some_and(|restart| restart.policy == RestartPolicy::Rolling);
    Traits { rolling, ..world.traits(&policy.spec().target) }
}

/// Connects to the target, claims the identities that it reports, and governs it.
async fn govern(
    world: &dyn World,
    policy: &mut PolicyHandle,
    memory: &mut Memory,
    located: Box<dyn Located + '_>,
) -> Result<Next, Error> {
    let traits = &traits(world, policy);
    let declared = decide::declare(policy.spec(), traits);
    let (target, units) = match reading(world, connect(world, &declared, located)).await? {
        Ok(found) => found,
        Err(failure) => return failed(world, policy, memory, &declared, traits, failure).await,
    };
    let stated = units.iter().map(|unit| unit.id.clone()).filter(|id| is_stated(id)).collect();
    let claimed = world.registry().claim_stated(&policy.claimant, stated);
    world.wake(claimed.concerned);
    if let Some(winner) = claimed.winner {
        return conflicted(world, policy, memory, &declared, traits, &winner).await;
    }
    if world.registry().must_wait(&policy.claimant, &Scope::Stated(policy.namespace.clone())) {
        tracing::debug!("older policies are looked at first");
        return Ok(Next::After(world.resync()));
    }
    policy.shared = claimed.shared;
    Box::pin(round::work(world, policy, memory, &declared, traits, target, units)).await
}

async fn connect(
    world: &dyn World,
    declared: &Declared,
    located: Box<dyn Located + '_>,
) -> Result<(Arc<dyn Target>, Vec<Unit>), Failure> {
    let _stage = world.enter(Stage::Discover);
    let target = located.connect(declared).await?;
    let units = target.discover().await?;
    logging::discovered(&units);
    Ok((target, units))
}

/// Reports why the target cannot be read.
async fn failed(
    world: &dyn World,
    policy: &mut PolicyHandle,
    memory: &mut Memory,
    declared: &Declared,
    traits: &Traits,
    failure: Failure,
) -> Result<Next, Error> {
    let problem = match failure {
        Failure::Error(error) => return Err(error),
        Failure::Problem(problem) => problem,
    };
    // A cluster that does not answer for a while keeps its claim.
    let registry = world.registry();
    world.wake(if problem.refused { registry.give_up(&policy.claimant) } else { registry.keep(&policy.claimant) });
    problem_report(world, policy, memory, declared, traits, &problem).await
}

async fn conflicted(
    world: &dyn World,
    policy: &mut PolicyHandle,
    memory: &mut Memory,
    declared: &Declared,
    traits: &Traits,
    winner: &Claimant,
) -> Result<Next, Error> {
    // The target of this policy is known, so policies that wait for it can continue.
    world.wake(world.registry().keep(&policy.claimant));
    let problem = Problem::invalid(Reason::Conflicted, sentence(winner, &policy.claimant));
    problem_report(world, policy, memory, declared, traits, &problem).await
}

async fn problem_report(
    world: &dyn World,
    policy: &mut PolicyHandle,
    memory: &mut Memory,
    declared: &Declared,
    traits: &Traits,
    problem: &Problem,
) -> Result<Next, Error> {
    let control = policy.object.status.as_ref().and_then(|status| status.control.clone()).unwrap_or_default();
    let plan = Plan { control, desired: declared.clone(), ..Plan::default() };
    if memory.news("problem", &problem.message) {
        tracing::warn!(reason = %problem.reason, "{}", problem.message);
    }
    Box::pin(round::say(world, policy, memory, declared, traits, Some(problem), &plan, &[], None)).await?;
    let times = memory.failing.get("").map_or(0, |failing| failing.times);
    memory.ended("", Some(&Fault::new(Cause::Unreachable, problem.message.clone())), world.moment());
    // No event reports that a missing reference or cluster appears: retry with a growing interval.
    Ok(Next::After(wait(times).min(world.resync())))
}

/// Waits for a read until the pass is cancelled or overdue. Not for writes: a write must be completed.
async fn reading<T>(world: &dyn World, read: impl Future<Output = T> + Send) -> Result<T, Error> {
    match select(world.interrupted(), std::pin::pin!(read)).await {
        Either::Left((error, _)) => Err(error),
        Either::Right((answer, _)) => Ok(answer),
    }
}

/// Returns what a failure says to the user.
fn text(failure: Failure) -> String {
    match failure {
        Failure::Problem(problem) => problem.message,
        Failure::Error(error) => error.to_string(),
    }
}
