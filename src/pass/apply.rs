//! Applying: saves the original settings, writes, and reads back, in this order. Units are written in parallel.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{FutureExt as _, StreamExt as _, stream};

use super::{
    Error, Pass, PolicyHandle,
    pace::Pace,
    saved::append,
    world::{Moment, News, Stage, Target, World},
};
use crate::{
    api::{Limit, Limits, Value, conditions::EventReason, wording::listed},
    decide::{
        Cause, Change, Declared, Fault, Moved, NewValue, Plan, TargetCapabilities, Unit, UnitPlan, UnitResult, UnitState, order,
        originals::{Log, Saved},
        report::condition::{Notice, shortened_to_bytes},
    },
};

/// Renames saved original settings after the config paths of a unit have changed. Settings whose path is ambiguous now are
/// dropped, and an Event names them.
pub(super) async fn follow(pass: &mut Pass<'_>, units: &[(Unit, UnitState)]) -> Result<(), Error> {
    let Pass { world, policy, memory, declared, traits } = pass;
    if policy.spec().suspend || world.is_dry_run() {
        return Ok(());
    }
    let kept = memory.saved();
    let ours = written(policy, declared);
    let mut change = BTreeMap::new();
    for (unit, state) in units {
        let Some(saved) = kept.get(&unit.id) else { continue };
        let Some(moved) = (traits.moved)(&saved.sites, state, &ours) else { continue };
        tell_lost(*world, policy, &unit.name, &moved).await?;
        let saved = Saved { sites: Arc::new(moved.sites), ..saved.clone() };
        change.insert(unit.id.clone(), Some(saved).filter(|saved| !saved.sites.is_empty()));
    }
    append(*world, policy, memory, change).await
}

/// Returns the values that the operator may have written to a node of the policy.
pub fn written(policy: &PolicyHandle, declared: &Declared) -> BTreeSet<(Limit, Value)> {
    let programmed = policy.object.status.as_ref().and_then(|status| status.limits.as_ref()?.programmed.as_ref());
    let mut written = declared.values();
    written.extend(programmed.map(Limits::settings).unwrap_or_default());
    written
}

/// Publishes an Event with the config paths of a unit whose original settings are dropped, because they are ambiguous now.
pub async fn tell_lost(world: &dyn World, policy: &PolicyHandle, unit: &str, moved: &Moved) -> Result<(), Error> {
    if moved.lost.is_empty() {
        return Ok(());
    }
    let places: BTreeSet<_> = moved.lost.iter().map(|site| &*site.place).collect();
    let places: Vec<_> = places.iter().map(|place| shortened_to_bytes(place, 160)).collect();
    let note = format!(
        "{unit}: the routes of {} changed, and their reverse proxies cannot be matched with their original settings; they keep their current settings. Give each reverse proxy an @id to avoid this",
        listed(&places)
    );
    world.publish(policy, &Notice { reason: EventReason::RestoreAbandoned, note }, "moved").await
}

/// Saves the settings that the planned writes would overwrite. Nothing may be written before this has succeeded.
pub(super) async fn capture(pass: &mut Pass<'_>, units: &[(Unit, UnitState)], plan: &Plan) -> Result<(), Error> {
    let Pass { world, policy, memory, .. } = pass;
    let Some(log) = &memory.originals else { return Err(Error::Unread) };
    let captures = units.iter().filter_map(|(unit, _)| Some((unit, &plan.units.get(&unit.id)?.capture)));
    let captures: Vec<_> = captures.filter(|(_, capture)| !capture.is_empty()).collect();
    if captures.is_empty() {
        return Ok(());
    }
    read_others(*world, policy).await?;
    let target = Arc::new(serde_json::to_value(&policy.spec().target).unwrap_or_default());
    let mut change = BTreeMap::new();
    for (unit, capture) in captures {
        let mut saved = log.units().get(&unit.id).cloned().unwrap_or_else(|| Saved {
            name: unit.name.clone(),
            address: unit.address.clone(),
            target: target.clone(),
            sites: Arc::default(),
        });
        let before = world.registry().original(&policy.claimant, &unit.id);
        let sites = Arc::make_mut(&mut saved.sites);
        for (site, raw) in capture {
            sites.insert(site.clone(), before.get(site).unwrap_or(raw).clone());
        }
        change.insert(unit.id.clone(), Some(saved));
    }
    append(*world, policy, memory, change).await
}

/// Reads the original settings that other policies of the namespace saved, as far as this process has not. Values that
/// another policy wrote are not originals.
async fn read_others(world: &dyn World, policy: &PolicyHandle) -> Result<(), Error> {
    let unread = world.registry().unread(&policy.claimant);
    if unread.is_empty() {
        return Ok(());
    }
    let mut all = world.all_originals().await?;
    for other in unread {
        // A policy with an unreadable record writes nothing until that is repaired, and reports it. The others must not wait for
        // it.
        if let Some(log) = all.remove(&other.name).unwrap_or_else(|| Some(Log::default())) {
            world.registry().read(&other, &log);
        }
    }
    Ok(())
}

/// Drops saved original settings that are restored.
pub(super) async fn forget(pass: &mut Pass<'_>, plan: &Plan, results: &[UnitResult]) -> Result<(), Error> {
    let Pass { world, policy, memory, .. } = pass;
    let Some(log) = memory.originals.as_ref() else { return Ok(()) };
    let mut change = BTreeMap::new();
    for result in results {
        let Some(UnitPlan { forget, .. }) = plan.units.get(&result.unit.id) else { continue };
        let (Some(saved), Ok(state)) = (log.units().get(&result.unit.id), &result.state) else { continue };
        let (mut saved, before) = (saved.clone(), saved.sites.len());
        // Drop only settings that were read back.
        let sites = Arc::make_mut(&mut saved.sites);
        sites.retain(|site, raw| !(forget.contains(site) && state.sites.get(site).is_none_or(|stored| stored.raw == *raw)));
        if sites.len() != before {
            change.insert(result.unit.id.clone(), Some(saved).filter(|saved| !saved.sites.is_empty()));
        }
    }
    append(*world, policy, memory, change).await
}

/// Makes the planned writes and reads every written unit back, at the pace at which the units were read. After `until`, or if the
/// visit is cancelled, no further unit is written.
pub(super) async fn write(
    pass: &Pass<'_>,
    target: &Arc<dyn Target>,
    units: Vec<(Unit, UnitState)>,
    plan: &Plan,
    until: Moment,
    pace: Pace,
) -> Vec<UnitResult> {
    let Pass { world, memory, traits, .. } = pass;
    let _stage = world.enter(Stage::Write);
    if plan.units.values().any(|unit| !unit.changes.is_empty()) {
        // An older write in progress could overwrite these.
        world.writes_ended().await;
    }
    let jobs: Vec<_> = units
        .into_iter()
        .map(|(unit, state)| {
            let changes = plan.units.get(&unit.id).map(|plan| &plan.changes[..]).unwrap_or_default();
            let held_back = memory.withheld(&unit.id, changes, world.moment());
            async move {
                let changes = if traits.file.is_some() { &order::due(changes, &state, traits)[..] } else { changes };
                let withheld = if changes.is_empty() {
                    None
                } else if held_back.is_some() {
                    tracing::debug!(unit = unit.name, "changes are withheld: the unit rejected them, or the retry is not due");
                    held_back
                } else if world.moment() >= until || world.is_interrupted() {
                    let message =
                        format!("{} was not written yet, because earlier writes took too long; it is written next", unit.name);
                    Some(Fault::new(Cause::NotReady, message))
                } else {
                    return write_one(*world, target.as_ref(), traits, unit, &state, changes).await;
                };
                UnitResult { unit, state: Ok(state), write: withheld }
            }
            .boxed()
        })
        .collect();
    let concurrency = pace.concurrency(jobs.len());
    let results: Vec<_> = stream::iter(jobs).buffer_unordered(concurrency).collect().await;
    let failed = results.iter().filter(|result| result.write.is_some() || result.state.is_err()).count();
    tracing::debug!(units = results.len(), failed, "wrote a group of units");
    results
}

/// Writes one unit and reads it back: status 200 alone does not prove the change.
pub async fn write_one(
    world: &dyn World,
    target: &dyn Target,
    traits: &TargetCapabilities,
    unit: Unit,
    state: &UnitState,
    changes: &[Change],
) -> UnitResult {
    let mut state = Cow::Borrowed(state);
    let mut done: Vec<Change> = Vec::new();
    for part in order::parts(changes, &state, traits) {
        done.extend(part.iter().cloned());
        let written = target.write(&unit, &state, &part).await;
        world.tell(News::Wrote(written.is_ok()));
        let result = read_back(target, unit.clone(), written, part.len(), &done).await;
        match (result.state, result.write) {
            (Ok(now), None) if done.len() < changes.len() => state = Cow::Owned(now),
            // A change that narrows the margin between client and server is written only after the one that widens it was read
            // back.
            (state, write) => return UnitResult { unit, state, write },
        }
    }
    UnitResult { unit, state: Ok(state.into_owned()), write: None }
}

async fn read_back(target: &dyn Target, unit: Unit, written: Result<(), Fault>, part: usize, changes: &[Change]) -> UnitResult {
    let mut now = target.read(&unit).await;
    if now.as_ref().is_err_and(|fault| fault.cause == Cause::Unreachable) {
        // A reload may have closed the connection of this request.
        now = target.read(&unit).await;
    }
    // The stored settings count, not the response: a change that took longer than the timeout is a change.
    let shows = now.as_ref().is_ok_and(|now| stored(now, changes));
    tracing::debug!(unit = unit.name, changes = part, accepted = written.is_ok(), read_back = shows, "wrote the unit");
    let write = match written {
        Err(fault) if !shows => Some(fault),
        Ok(()) if !shows && now.is_ok() => {
            Some(Fault::new(Cause::Busy, format!("{} accepted the change and does not show it", unit.name)))
        }
        Ok(()) | Err(_) => None,
    };
    UnitResult { unit, state: now, write }
}

/// Reports whether every config path that still exists has the value of its change.
fn stored(now: &UnitState, changes: &[Change]) -> bool {
    changes.iter().all(|change| {
        now.sites.get(&change.site).is_none_or(|stored| match &change.to {
            NewValue::Value(value) => stored.value == Some(*value),
            NewValue::Raw(raw) => stored.raw == *raw,
        })
    })
}
