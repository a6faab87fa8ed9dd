//! The work for one policy, in its order: read, find the target, read the nodes, decide, announce, save, write, read back, report;
//! restore; restart.
//!
//! It is written as async functions over the trait [`world::World`], and the compiler makes the state machine from them. Nothing in
//! here does I/O, reads a clock, or knows a runtime: the controller carries the requests out, and the exploration in tests/model
//! polls the same functions and answers each request from values, in every order and with every fault.

mod adaptation;
mod apply;
pub mod cache;
pub mod claims;
mod error;
mod gather;
mod handle;
pub mod logging;
mod pace;
pub mod report;
mod restart;
mod restore;
mod round;
mod saved;
pub mod waves;
pub mod world;

use std::{future::Future, sync::Arc, time::Duration};

use futures::future::{Either, select};

pub use self::{
    adaptation::{SignalSnapshot, interval},
    error::{API_TIMEOUT, ApiError, DEADLINE, Error, Failure, no_right},
    handle::PolicyHandle,
    restore::release,
};
use self::{
    cache::{PolicyCache, wait},
    claims::{Claimed, Scope, is_stated},
    world::{Located, News, Stage, Target, World},
};
use crate::{
    api::{IdleConnectionPolicyStatus, conditions::Reason, restart::RestartPolicy},
    decide::{
        self, Declared, Fault, Plan, TargetCapabilities, Unit, claims::conflict_message, observed::Cause, report::status::Problem,
    },
};

/// Added to a due time, so that the pass begins after it.
pub const DUE_SLACK: Duration = Duration::from_millis(5);
/// With shards: maximum time that a policy waits until the older ones of other shards have published what they claim.
const CLAIMS_TIMEOUT: Duration = Duration::from_secs(60);
/// With shards: time for an older policy that publishes only shared claims to see those of a younger one.
const CLAIMS_SETTLE: Duration = Duration::from_secs(2);

/// When the next pass of the policy is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// After this time, or when something changes.
    After(Duration),
    /// When something changes.
    Changed,
}

/// The state of a pass whose target was found.
struct Pass<'a> {
    world: &'a dyn World,
    policy: &'a mut PolicyHandle,
    memory: &'a mut PolicyCache,
    declared: &'a Declared,
    traits: &'a TargetCapabilities,
}

/// Makes one pass.
///
/// # Errors
/// Why the pass failed. The status stays as it is; the operator retries.
pub async fn visit(world: &dyn World, memory: &mut PolicyCache) -> Result<Next, Error> {
    let mut admitted = false;
    let next = loop {
        // Boxes keep a pass that waits small: 1,000 may wait.
        let Some(mut policy) = Box::pin(read(world, memory)).await? else { return Ok(Next::Changed) };
        tracing::Span::current().record("generation", policy.object.metadata.generation);
        // Steps that need only the API server come before the wait for a slot: younger policies wait for them.
        let located = if policy.is_deleted() {
            world.wake(world.registry().keep(&policy.claimant));
            None
        } else {
            match Box::pin(locate(world, &mut policy, memory)).await {
                Ok(located) => Some(located),
                Err(stop) => break stopped(world, &mut policy, memory, stop).await?,
            }
        };
        if !admitted {
            admitted = true;
            if world.admitted().await {
                // The policy may have changed since it was read.
                continue;
            }
        }
        let Some(located) = located else {
            let _stage = world.enter(Stage::Restore);
            break restore::cleanup(world, &policy, memory).await?;
        };
        world.begin();
        break match Box::pin(govern(world, &mut policy, memory, located)).await {
            Err(stop) => stopped(world, &mut policy, memory, stop).await?,
            Ok(next) => next,
        };
    };
    memory.failures = 0;
    memory.logged.remove("error");
    world.tell(News::Reconciled);
    Ok(next)
}

/// Reads the policy and its saved original settings from the API server. `None` if the policy is gone.
async fn read(world: &dyn World, memory: &mut PolicyCache) -> Result<Option<PolicyHandle>, Error> {
    // The watch may lag behind the operator's own writes. Reading again prevents double Events and writes.
    let Some(object) = world.policy().await? else {
        world.forget();
        return Ok(None);
    };
    let policy = PolicyHandle::new(object)?;
    if memory.uid != policy.uid {
        *memory = PolicyCache { uid: policy.uid.clone(), failures: memory.failures, ..PolicyCache::default() };
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

/// Why a pass ends before it has read the nodes.
enum Stop {
    /// The target cannot be read.
    Failure(Failure),
    /// Older policies are looked at first, for at most this time.
    Waits(Duration),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failure(Failure::Error(error))
    }
}

/// Finds the target with requests to the API server only, and claims it.
async fn locate<'a>(
    world: &'a dyn World,
    policy: &mut PolicyHandle,
    memory: &mut PolicyCache,
) -> Result<Box<dyn Located + 'a>, Stop> {
    let traits = traits(world, policy);
    let declared = decide::declare(policy.spec(), &traits);
    if let Some(message) = policy.refusal.clone().or_else(|| declared.invalid(&decide::floor(policy.spec(), &traits))) {
        world.wake(world.registry().give_up(&policy.claimant));
        adaptation::end(world, policy, memory).await;
        return Err(Stop::Failure(Problem::invalid(Reason::Invalid, message).into()));
    }
    let kind = policy.spec().target.type_;
    let located = world.locate(policy).await.map_err(|failure| unreadable(world, policy, failure))?;
    let claimed = world.registry().claim_places(&policy.claimant, kind, located.identities());
    publish(world, policy, memory).await?;
    has_turn(world, policy, memory, claimed, &Scope::Places(kind))?;
    Ok(located)
}

/// Writes what the policy claims into its status, for the actors of other shards, before anything is written to its nodes.
async fn publish(world: &dyn World, policy: &mut PolicyHandle, memory: &mut PolicyCache) -> Result<(), Error> {
    let claims = world.registry().published(&policy.claimant, policy.spec().target.type_);
    let status = policy.object.status.clone().unwrap_or_default();
    if claims.is_none() || claims == status.claims {
        return Ok(());
    }
    let status = IdleConnectionPolicyStatus { claims, ..status };
    report::write(world, policy, &status).await?;
    policy.object.status = Some(status);
    memory.published = Some(world.moment());
    Ok(())
}

fn traits(world: &dyn World, policy: &PolicyHandle) -> TargetCapabilities {
    let rolling = policy.spec().restart.as_ref().is_some_and(|restart| restart.policy == RestartPolicy::Rolling);
    TargetCapabilities { rolling, ..world.traits(&policy.spec().target) }
}

/// Connects to the target, claims the identities that it reports, and governs it.
async fn govern(
    world: &dyn World,
    policy: &mut PolicyHandle,
    memory: &mut PolicyCache,
    located: Box<dyn Located + '_>,
) -> Result<Next, Stop> {
    let traits = &traits(world, policy);
    let declared = &decide::declare(policy.spec(), traits);
    let found = reading(world, connect(world, declared, located)).await?;
    let (target, units) = found.map_err(|failure| unreadable(world, policy, failure))?;
    let stated = units.iter().map(|unit| unit.id.clone()).filter(|id| is_stated(id)).collect();
    let claimed = world.registry().claim_stated(&policy.claimant, stated);
    let shared = claimed.shared;
    has_turn(world, policy, memory, claimed, &Scope::Stated(policy.namespace.clone()))?;
    policy.shared = shared;
    Ok(Box::pin(round::work(Pass { world, policy, memory, declared, traits }, target, units)).await?)
}

/// Ends the pass if an older policy governs the target, or if older policies are looked at first.
fn has_turn(
    world: &dyn World,
    policy: &PolicyHandle,
    memory: &mut PolicyCache,
    claimed: Claimed,
    scope: &Scope,
) -> Result<(), Stop> {
    let registry = world.registry();
    world.wake(claimed.concerned);
    if let Some(winner) = claimed.winner {
        // The target of this policy is known, so policies that wait for it can continue.
        world.wake(registry.keep(&policy.claimant));
        let message = conflict_message(&winner, &policy.claimant);
        return Err(Stop::Failure(Problem::invalid(Reason::Conflicted, message).into()));
    }
    let must_wait = registry.must_wait(&policy.claimant, scope);
    if !registry.is_sharded() {
        return if must_wait { Err(Stop::Waits(Duration::MAX)) } else { Ok(()) };
    }
    let now = world.moment();
    let left = if must_wait {
        // A shard may have no replica that acts for it.
        CLAIMS_TIMEOUT.saturating_sub(now.since(*memory.waiting.get_or_insert(now)))
    } else {
        memory.waiting = None;
        let published = memory.published.filter(|_| registry.is_answered_later(&policy.claimant));
        published.map_or(Duration::ZERO, |published| CLAIMS_SETTLE.saturating_sub(now.since(published)))
    };
    if left.is_zero() { Ok(()) } else { Err(Stop::Waits(left)) }
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

/// Gives up or keeps the claims of a policy whose target cannot be read.
fn unreadable(world: &dyn World, policy: &PolicyHandle, failure: Failure) -> Stop {
    if let Failure::Problem(problem) = &failure {
        // A cluster that does not answer for a while keeps its claim.
        let registry = world.registry();
        world.wake(if problem.refused { registry.give_up(&policy.claimant) } else { registry.keep(&policy.claimant) });
    }
    Stop::Failure(failure)
}

/// Reports why the pass ends, and returns when the next one is due.
async fn stopped(world: &dyn World, policy: &mut PolicyHandle, memory: &mut PolicyCache, stop: Stop) -> Result<Next, Error> {
    let problem = &match stop {
        Stop::Failure(Failure::Problem(problem)) => problem,
        Stop::Failure(Failure::Error(error)) => return Err(error),
        Stop::Waits(most) => {
            tracing::debug!("older policies are looked at first");
            // The policy is enqueued as soon as the older policies have claimed their targets.
            return Ok(Next::After(world.resync().min(most)));
        }
    };
    let traits = &traits(world, policy);
    let declared = &decide::declare(policy.spec(), traits);
    let control = policy.object.status.as_ref().and_then(|status| status.control.clone()).unwrap_or_default();
    let plan = Plan { control, desired: declared.clone(), ..Plan::default() };
    if memory.is_new_message("problem", &problem.message) {
        tracing::warn!(reason = %problem.reason, "{}", problem.message);
    }
    let pass = &mut Pass { world, policy, memory, declared, traits };
    Box::pin(round::report_status(pass, Some(problem), &plan, &[], None)).await?;
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
