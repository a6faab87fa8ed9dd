//! Restores original settings when a policy is deleted, changes its target, or is released.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, stream};
use kube::ResourceExt as _;
use serde::Deserialize as _;

use super::{
    Error, Next, PolicyHandle, apply,
    cache::PolicyCache,
    claims::{Taken, is_stated},
    logging, report, restart,
    saved::append,
    world::World,
};
use crate::{
    api::{
        FINALIZER, StoredPolicy,
        conditions::EventReason,
        policy::{DeletionPolicy, Target},
        wording::with_noun,
    },
    decide::{self, Cause, Fault, Unit, claims::Claim, originals::Saved, report::condition::Notice},
};

/// Maximum units that are restored at the same time.
const CONCURRENCY: usize = 64;
/// Time in which one attempt begins to restore units.
const TRY: Duration = Duration::from_secs(60);
/// Interval between attempts while a deletion waits.
const NEXT_TRY: Duration = Duration::from_secs(2);

/// Handles a policy that is being deleted.
pub async fn cleanup(world: &dyn World, policy: &PolicyHandle, memory: &mut PolicyCache) -> Result<Next, Error> {
    if !policy.object.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(Next::Changed);
    }
    if world.is_dry_run() {
        if memory.is_new_message("restore", "dry run") {
            tracing::warn!("the policy is being deleted; --dry-run restores nothing and keeps the finalizer");
        }
        return Ok(Next::Changed);
    }
    // Measured by this process, not from the deletion time: with a clock that is an hour ahead it would give up at once.
    let began = *memory.leaving.get_or_insert_with(|| world.moment());
    let timeout = policy.spec().restore_timeout.get().unwrap_or(Duration::from_secs(300));
    let mut left = restore_all(world, policy, memory).await?;
    left.unrestored.extend(restart::call_off(world, policy).await.err());
    if let Some((name, fault)) = left.unrestored.first() {
        let waited = world.moment().since(began);
        if waited < timeout {
            if memory.is_new_message("restore", &fault.message) {
                tracing::warn!(unit = name, "the unit is not restored yet: {fault}");
            }
            return Ok(Next::After(NEXT_TRY.min(timeout.saturating_sub(waited))));
        }
        let what = if world.states_identity(policy.spec().target.type_) {
            "The cluster was".into()
        } else {
            with_noun(left.unrestored.len(), "node was", "nodes were")
        };
        let note = format!("{what} not restored within {}: {name}: {fault}", policy.spec().restore_timeout);
        let notice = Notice { reason: EventReason::RestoreAbandoned, note };
        world.publish(policy, &notice, "restore").await?;
    }
    finish(world, policy, memory, &left).await?;
    Ok(Next::Changed)
}

/// Restores all saved original settings. Returns what became of the units.
async fn restore_all(world: &dyn World, policy: &PolicyHandle, memory: &mut PolicyCache) -> Result<Left, Error> {
    if policy.spec().deletion_policy == DeletionPolicy::Retain {
        return Ok(Left::default());
    }
    // An older write in progress could overwrite the restored settings.
    world.writes_ended().await;
    let mut units = memory.saved().clone();
    let taken = world.registry().taken_over(&policy.claimant, &recognised(&units));
    let mut left = Left::default();
    for (id, how) in taken {
        let Some(saved) = units.remove(&id) else { continue };
        match how {
            Taken::HandedOver => left.handed_over += 1,
            Taken::NotSavedYet => {
                let message = "An older policy now governs this target and has not saved its original settings yet";
                left.unrestored.push((saved.name, Fault::new(Cause::Busy, message)));
            }
            Taken::Elsewhere => {
                let message = "An older policy in another namespace governs this target, so its settings stay as they are";
                left.unrestored.push((saved.name, Fault::new(Cause::Conflict, message)));
            }
        }
    }
    tracing::debug!(units = units.len(), handed_over = left.handed_over, blocked = left.unrestored.len(), "restoring units");
    let now = world.moment();
    for (id, end) in restore(world, policy, memory, &units).await {
        tracing::debug!(
            unit = units.get(&id).map(|saved| saved.name.as_str()),
            restored = end.is_ok(),
            "tried to restore the unit"
        );
        memory.ended(&id, end.as_ref().err(), now);
        if end.is_ok() {
            left.done.push(id.clone());
        }
        match (end, units.get(&id)) {
            (Ok(Restored::Seen), _) => left.seen += 1,
            (Ok(Restored::Gone), _) => left.gone += 1,
            (Err(fault), Some(saved)) => left.unrestored.push((saved.name.clone(), fault)),
            (Err(_), None) => {}
        }
    }
    Ok(left)
}

/// Returns the identities of saved units.
fn recognised(units: &BTreeMap<String, Saved>) -> BTreeMap<String, Claim> {
    let claim = |(id, saved): (&String, &Saved)| {
        let claim = if is_stated(id) {
            let vouched = [format!("aistore at {}", saved.address)].into();
            Claim { vouched, stated: [id.clone()].into() }
        } else {
            Claim::vouched([id.clone()])
        };
        (id.clone(), claim)
    };
    units.iter().map(claim).collect()
}

/// What became of the saved units.
#[derive(Default)]
struct Left {
    /// Units that could not be restored, with the cause.
    unrestored: Vec<(String, Fault)>,
    /// Units whose original settings were read back.
    seen: usize,
    /// Units that do not exist any more.
    gone: usize,
    /// The ids of both.
    done: Vec<String>,
    /// Units whose original settings another policy of the namespace has saved.
    handed_over: usize,
}

impl Left {
    /// Returns the note of the Event; `None` if there was no unit.
    fn note(&self) -> Option<String> {
        let parts = [
            (self.seen, "node has its original settings back", "nodes have their original settings back"),
            (self.gone, "node no longer exists", "nodes no longer exist"),
            (
                self.handed_over,
                "node was handed over to an older policy, which keeps its original settings",
                "nodes were handed over to an older policy, which keeps their original settings",
            ),
        ];
        let parts: Vec<_> =
            parts.into_iter().filter(|(count, ..)| *count > 0).map(|(count, one, more)| with_noun(count, one, more)).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Result of restoring a unit.
enum Restored {
    /// The original settings were read back.
    Seen,
    /// The unit does not exist any more, or another one has replaced it.
    Gone,
}

/// Publishes the Event, deletes the saved original settings, and removes the finalizer.
async fn finish(world: &dyn World, policy: &PolicyHandle, memory: &mut PolicyCache, left: &Left) -> Result<(), Error> {
    let restored = left.unrestored.is_empty();
    if restored && let Some(note) = left.note() {
        world.publish(policy, &Notice { reason: EventReason::Restored, note }, "restore").await?;
    }
    if restored && let Some(log) = memory.originals.take() {
        // The newest record is deleted last: if this stops half-way, the record that counts remains.
        for revision in log.revisions() {
            world.delete_original(revision).await?;
        }
    }
    // Settings that could not be restored stay saved: a policy of the same name restores them later.
    let finalizers: Vec<_> = policy.object.finalizers().iter().filter(|f| *f != FINALIZER).cloned().collect();
    world.set_finalizers(policy, &finalizers).await?;
    world.forget();
    tracing::info!(restored, "released the policy");
    Ok(())
}

/// Restores units that are no longer part of the policy. Returns true while some are left.
pub async fn departed(world: &dyn World, policy: &PolicyHandle, memory: &mut PolicyCache, units: &[Unit]) -> Result<bool, Error> {
    if policy.spec().suspend || world.is_dry_run() {
        return Ok(false);
    }
    let present: BTreeSet<_> = units.iter().map(|unit| &unit.id).collect();
    let gone = memory.saved().iter().filter(|(id, _)| !present.contains(*id));
    let mut gone: BTreeMap<_, _> = gone.map(|(id, saved)| (id.clone(), saved.clone())).collect();
    if gone.is_empty() {
        memory.departed.clear();
        return Ok(false);
    }
    world.writes_ended().await;
    let taken = world.registry().taken_over(&policy.claimant, &recognised(&gone));
    let handed_over = taken.iter().filter(|(_, how)| **how == Taken::HandedOver);
    let mut change: BTreeMap<String, Option<Saved>> = handed_over.map(|(id, _)| (id.clone(), None)).collect();
    gone.retain(|id, _| !taken.contains_key(id));
    let now = world.moment();
    let timeout = policy.spec().restore_timeout.get().unwrap_or(Duration::from_secs(300));
    let due = |memory: &PolicyCache, id: &String| memory.failing.get(id).is_none_or(|failing| failing.due <= now);
    let asked: BTreeMap<_, _> =
        gone.iter().filter(|(id, _)| due(memory, id)).map(|(id, saved)| (id.clone(), saved.clone())).collect();
    for (id, end) in restore(world, policy, memory, &asked).await {
        let since = *memory.departed.entry(id.clone()).or_insert(now);
        memory.ended(&id, end.as_ref().err(), now);
        if let Err(fault) = end {
            if now.since(since) < timeout {
                continue;
            }
            let note = format!(
                "{} is no longer part of the policy and was not restored within {}: {fault}",
                gone[&id].name,
                policy.spec().restore_timeout
            );
            world.publish(policy, &Notice { reason: EventReason::RestoreAbandoned, note }, &id).await?;
        }
        memory.departed.remove(&id);
        memory.failing.remove(&id);
        change.insert(id, None);
    }
    let left = gone.keys().any(|id| !change.contains_key(id));
    append(world, policy, memory, change).await?;
    Ok(left)
}

/// Restores units in parallel: as many as a batch has, where each write closes the idle connections of one node. There is no
/// pause, because a deletion must end in time. Units that have not failed are first, so that units which hang do not delay the
/// others. Units that
/// are not begun in time are restored in the next attempt.
async fn restore(
    world: &dyn World,
    policy: &PolicyHandle,
    memory: &PolicyCache,
    units: &BTreeMap<String, Saved>,
) -> Vec<(String, Result<Restored, Fault>)> {
    let mut order: Vec<_> = units.iter().collect();
    order.sort_by_key(|(id, _)| memory.failing.get(*id).map_or(0, |failing| failing.times));
    let until = world.moment() + TRY;
    let jobs: Vec<_> = order
        .into_iter()
        .map(|(id, saved)| {
            async move {
                if world.moment() >= until {
                    let message = format!("Not restored yet, because the nodes before this one took more than {TRY:?}");
                    return (id.clone(), Err(Fault::new(Cause::NotReady, message)));
                }
                (id.clone(), restore_one(world, policy, id, saved).await)
            }
            .boxed()
        })
        .collect();
    let batches = policy.spec().batches().filter(|_| world.traits(&policy.spec().target).has_batches());
    let most = batches.map_or(usize::MAX, |batches| batches.max_nodes.of(units.len())).min(CONCURRENCY);
    stream::iter(jobs).buffer_unordered(most).collect().await
}

/// Restores a unit at the saved target, or at the current target of the policy if it finds the same unit there: Services are
/// renamed, and schemes change.
async fn restore_one(world: &dyn World, policy: &PolicyHandle, id: &str, saved: &Saved) -> Result<Restored, Fault> {
    let then: Target = Target::deserialize(&*saved.target).map_err(|error| {
        tracing::debug!(unit = saved.name, %error, "cannot read the saved target");
        Fault::new(Cause::NotFound, "The saved original settings name no valid target")
    })?;
    let now = &policy.spec().target;
    let first = restore_at(world, policy, id, saved, &then).await;
    if matches!(first, Ok(Restored::Seen)) || then == *now || then.type_ != now.type_ {
        return first;
    }
    match restore_at(world, policy, id, saved, now).await {
        Ok(Restored::Seen) => Ok(Restored::Seen),
        _ => first,
    }
}

async fn restore_at(world: &dyn World, policy: &PolicyHandle, id: &str, saved: &Saved, spec: &Target) -> Result<Restored, Fault> {
    let Some(target) = world.connect_saved(policy, id, saved, spec).await? else { return Ok(Restored::Gone) };
    let units = match target.discover().await {
        Ok(units) => units,
        // Another client owns it now, so the operator's values are gone.
        Err(fault) if fault.cause == Cause::Conflict => return Ok(Restored::Gone),
        Err(fault) => return Err(fault),
    };
    let Some(unit) = units.into_iter().find(|unit| unit.id == id) else {
        // Another cluster answers at the address: the saved one is gone.
        return Ok(Restored::Gone);
    };
    let state = target.read(&unit).await?;
    let traits = world.traits(spec);
    let ours = apply::written(policy, &decide::declare(policy.spec(), &traits));
    let moved = (traits.moved)(&saved.sites, &state, &ours);
    if let Some(moved) = &moved
        && let Err(error) = apply::tell_lost(world, policy, &saved.name, moved).await
    {
        tracing::debug!(unit = saved.name, error = logging::chain(&error), "cannot create the Event");
        return Err(Fault::new(Cause::NotReady, "The Event about settings that are not restored could not be created"));
    }
    let sites = moved.as_ref().map_or(&*saved.sites, |moved| &moved.sites);
    let changes = decide::restore(&state, sites);
    if changes.is_empty() {
        return Ok(Restored::Seen);
    }
    // Counted, but not held back: a deletion must end in time.
    world.may_flush(usize::from(traits.has_batches()));
    let result = apply::write_one(world, target.as_ref(), &traits, unit, &state, &changes).await;
    match (result.state, result.write) {
        (Err(fault), _) | (Ok(_), Some(fault)) => Err(fault),
        (Ok(state), None) if decide::restore(&state, sites).is_empty() => Ok(Restored::Seen),
        (Ok(_), None) => Err(Fault::new(Cause::Busy, "The original settings were accepted and do not show")),
    }
}

/// Restores one policy before the operator is uninstalled, and removes its finalizer. Returns false if a node could not be restored.
pub async fn release(world: &dyn World, stored: StoredPolicy) -> Result<bool, Error> {
    let mut policy = match PolicyHandle::new(stored) {
        Ok(policy) => policy,
        Err(error) => {
            tracing::error!("the policy cannot be released: {error}");
            return Ok(false);
        }
    };
    let mut memory = PolicyCache { originals: Some(world.originals().await?), ..PolicyCache::default() };
    let left = restore_all(world, &policy, &mut memory).await?;
    for (name, fault) in &left.unrestored {
        tracing::error!(unit = name, "the unit cannot be restored: {fault}");
    }
    if !left.unrestored.is_empty() {
        // An operator that continues captures these again. Otherwise it would take the restored settings for a change by another
        // client.
        let restored = left.done.into_iter().map(|id| (id, None)).collect();
        append(world, &policy, &mut memory, restored).await?;
        return Ok(false);
    }
    if policy.object.metadata.deletion_timestamp.is_none() {
        report::released(world, &mut policy).await?;
    }
    finish(world, &policy, &mut memory, &left).await?;
    Ok(true)
}
