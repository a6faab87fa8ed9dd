//! Reporting: Events, then the status, each only if something is new.

use kube::Resource;

use super::{
    Error, PolicyHandle,
    world::{News, Stage, World},
};
use crate::{
    api::{
        IdleConnectionPolicyStatus,
        conditions::{ConditionType, EventReason, Reason},
        policy::DeletionPolicy,
    },
    decide::report::condition::{self, Notice, reason, said},
};

/// Events of a decision. Such an Event is the same until a decision is in the status: if a process ended between the Event and
/// the status, the next process decides again, perhaps with another text and with other Events beside it.
const STEPS: [EventReason; 3] = [EventReason::Tightened, EventReason::Relaxed, EventReason::ReachedFloor];

/// Times that a status is written again after a conflict. A client that writes the policy faster than that ends the pass, which is
/// retried with back-off.
const CONFLICTS: usize = 8;

/// Publishes what is new. Events are first: after a crash between the two, a written status would hide that they are missing.
pub async fn report(
    world: &dyn World,
    policy: &mut PolicyHandle,
    status: &IdleConnectionPolicyStatus,
    notices: &[Notice],
) -> Result<(), Error> {
    let _stage = world.enter(Stage::Report);
    let previous = policy.object.status.clone().unwrap_or_default();
    world.tell(News::Status(status));
    let told = previous.control.as_ref().map_or(0, |control| control.events);
    let decided = previous.history.first().map(|decision| decision.time.0.as_second());
    for (n, notice) in notices.iter().enumerate() {
        let seed = if STEPS.contains(&notice.reason) {
            format!("after {decided:?}")
        } else {
            // The next process may report other news beside this one.
            let alike = notices[..n].iter().filter(|earlier| *earlier == notice).count();
            format!("{told}/{alike}/{:?}", previous.observed_generation)
        };
        world.publish(policy, notice, &seed).await?;
    }
    if *status == previous && !policy.status_lost {
        return Ok(());
    }
    if policy.status_lost {
        // A write would keep fields that another client has set.
        policy.object.metadata.resource_version = world.clear_status(policy).await?;
    }
    write(world, policy, status).await
}

/// Writes the status of this object, and of no newer one of the same name. An edit or another client's write in between does not
/// matter: the status says which generation it is about.
pub(super) async fn write(
    world: &dyn World,
    policy: &mut PolicyHandle,
    status: &IdleConnectionPolicyStatus,
) -> Result<(), Error> {
    let mut written = world.write_status(policy, status).await;
    for _ in 0..CONFLICTS {
        if written.as_ref().err().and_then(Error::code) != Some(409) {
            break;
        }
        let read = world.policy().await?;
        let metadata = read.as_ref().map(Resource::meta).filter(|metadata| metadata.uid.as_deref() == Some(&policy.uid));
        policy.object.metadata.resource_version.clone_from(&metadata.ok_or(Error::Gone)?.resource_version);
        written = world.write_status(policy, status).await;
    }
    policy.object.metadata.resource_version = written?;
    Ok(())
}

/// Reports an internal error in the status. It uses no decision code, because that code may be what failed.
pub async fn internal_error(world: &dyn World) -> Result<(), Error> {
    let Some(object) = world.policy().await? else { return Ok(()) };
    let mut policy = PolicyHandle::new(object)?;
    let generation = policy.object.metadata.generation;
    let mut status = policy.object.status.clone().unwrap_or_default();
    let message = "The operator failed on this policy with an internal error and retries; report it with the operator's log";
    if reason(&status, ConditionType::Ready) == Some(Reason::InternalError) && status.observed_generation == generation {
        return Ok(());
    }
    status.observed_generation = generation;
    let ready =
        condition::condition(ConditionType::Ready, &said(Reason::InternalError, message), generation, &status, world.now());
    match status.conditions.iter_mut().find(|condition| condition.type_ == ready.type_) {
        Some(old) => *old = ready,
        None => status.conditions.push(ready),
    }
    world.tell(News::Status(&status));
    write(world, &mut policy, &status).await
}

/// Reports that the operator was uninstalled and governs the target no longer. Nothing else that was
/// observed remains in the status: it would not be true for long. With the internal state, a new installation continues at the same
/// openness.
pub async fn released(world: &dyn World, policy: &mut PolicyHandle) -> Result<(), Error> {
    let back = match policy.spec().deletion_policy {
        DeletionPolicy::Restore => "the original settings are back",
        DeletionPolicy::Retain => "the nodes keep their limits (spec.deletionPolicy is Retain)",
    };
    let message =
        format!("The operator was uninstalled; {back}, and nothing governs the target. Install it again, or delete the policy");
    let generation = policy.object.metadata.generation;
    let previous = policy.object.status.clone().unwrap_or_default();
    let ready = condition::condition(ConditionType::Ready, &said(Reason::Released, message), generation, &previous, world.now());
    let status = IdleConnectionPolicyStatus {
        observed_generation: generation,
        conditions: vec![ready],
        control: previous.control,
        ..IdleConnectionPolicyStatus::default()
    };
    write(world, policy, &status).await
}
