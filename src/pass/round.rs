//! The nodes of one policy in a pass: read, decided about and written in groups, then reported.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, stream};
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::{
    DUE_SLACK, Error, Next, Pass, PolicyHandle,
    adaptation::{self, SignalSnapshot, interval},
    apply,
    cache::{PolicyCache, Unwritten, saved_units, wait},
    gather::Gathering,
    logging,
    pace::Pace,
    reading, report, restart, restore,
    waves::Candidate,
    world::{Moment, News, Stage, Target, World},
};
use crate::{
    api::{FINALIZER, IdleConnectionPolicyStatus, LimitValues, Limits, policy::DriftPolicy, status::RestartControl},
    decide::{
        self, AdaptiveInput, Input, Plan, TargetCapabilities, Unit, UnitResult, UnitState,
        adaptive::pause::Pause,
        advice::{self, Observed},
        claims::SHARED,
        contention, originals,
        report::node_status::truths,
        report::status::{Problem, ReportInput},
        uptimes,
    },
};

/// Requeue interval during a restart: no event reports when the node is back.
const WHILE_RESTARTING: Duration = Duration::from_secs(2);
/// Time after the begin of a pass during which nodes are written. The others are written in the next pass.
const WRITING: Duration = Duration::from_secs(60);

/// Governs the units of the target.
pub(super) async fn work(mut pass: Pass<'_>, target: Arc<dyn Target>, units: Vec<Unit>) -> Result<Next, Error> {
    let pass = &mut pass;
    let world = pass.world;
    pass.memory.failing.remove("");
    pass.memory.logged.remove("problem");
    pass.memory.keep_only(&units);
    begin_batch(pass, &units);
    size_pool(world, pass.memory, units.len());
    finalizer(world, pass.policy).await?;
    let mut gathering = Gathering::begin(world, target.clone(), units.clone(), pass.memory);
    let job = Job { target: &target, units: &units, until: world.moment() + WRITING, pace: Pace::default() };
    let mut done = Done::default();
    loop {
        let waiting = world.enter(Stage::Gather);
        let Some(answers) = reading(world, gathering.next()).await? else { break };
        drop(waiting);
        logging::read(&answers);
        let mut answered = Vec::new();
        for (unit, state) in answers {
            match state {
                Ok(state) => answered.push((unit, state)),
                Err(fault) => {
                    pass.memory.ended(&unit.id, Some(&fault), world.moment());
                    done.results.push(UnitResult { unit, state: Err(fault), write: None });
                }
            }
        }
        let job = Job { pace: gathering.pace(), ..job };
        gathering.alongside(Box::pin(round(pass, &job, &mut done, answered))).await?;
    }
    if done.plan.is_none() {
        // No unit was due, but adaptive control is evaluated in each pass.
        Box::pin(round(pass, &job, &mut done, Vec::new())).await?;
    }
    done.results.extend(std::mem::take(&mut gathering.skipped).into_iter().map(|(unit, state)| UnitResult {
        unit,
        state,
        write: None,
    }));
    Box::pin(finish(pass, &job, done)).await
}

/// Nodes of one pass.
#[derive(Clone, Copy)]
struct Job<'a> {
    target: &'a Arc<dyn Target>,
    units: &'a [Unit],
    /// Nothing is written after this time.
    until: Moment,
    /// How fast the units have answered.
    pace: Pace,
}

/// Results of the groups of one pass.
#[derive(Default)]
struct Done {
    results: Vec<UnitResult>,
    plan: Option<Plan>,
    look: Option<SignalSnapshot>,
    /// Whether adaptive control took a step in this pass. The settings of later units are then not drift.
    stepped: bool,
}

/// Decides about one group of units, writes, and reads back.
async fn round(pass: &mut Pass<'_>, job: &Job<'_>, done: &mut Done, answered: Vec<(Unit, UnitState)>) -> Result<(), Error> {
    apply::follow(pass, &answered).await?;
    if done.plan.is_none() {
        adaptation::prepare(pass, job.units, &answered).await;
        size_pool(pass.world, pass.memory, job.units.len());
        let saved = saved_units(pass.memory.originals.as_ref());
        if let Some(driver) = &mut pass.memory.driver {
            driver.bound(pass.traits, saved, &answered, answered.len() == job.units.len());
        }
        done.look = SignalSnapshot::at_samples(pass.world, pass.memory);
    }
    let mut plan = decided(pass, job, done, &answered).await;
    if pass.traits.has_batches() {
        let restarted = restarted_since(pass, job, &answered, &plan).await;
        hold_back(pass, done.look.as_ref(), &answered, &restarted, &mut plan);
    }
    let world = pass.world;
    let corrects = !plan.drift.is_empty()
        && plan.units.values().any(|unit| !unit.changes.is_empty())
        && pass.policy.spec().drift_policy == DriftPolicy::Correct;
    let decision = plan.outcome.as_ref().and_then(|outcome| outcome.decision.as_ref());
    if let Some(decision) = decision {
        world.tell(News::Decided(decision));
        done.stepped = true;
    }
    if corrects || decision.is_some() {
        // Report before writing: after a crash between the two, the correction is still reported, and the decision is not made
        // twice.
        let before: Vec<_> = answered
            .iter()
            .map(|(unit, state)| UnitResult { unit: unit.clone(), state: Ok(state.clone()), write: None })
            .chain(done.results.iter().cloned())
            .collect();
        report_status(pass, None, &plan, &before, done.look.as_ref()).await?;
        if let Some(outcome) = &mut plan.outcome {
            (outcome.decision, outcome.judged) = (None, None);
        }
    }

    let capturing = world.enter(Stage::Capture);
    apply::capture(pass, &answered, &plan).await?;
    drop(capturing);
    let written = apply::write(pass, job.target, answered, &plan, job.until, job.pace).await;
    let memory = &mut *pass.memory;
    record_results(memory, &written, &plan, pass.traits, world.moment());
    let unborn = |unit: &Unit| plan.units.contains_key(&unit.id) && !memory.births.contains_key(&unit.id);
    let unborn: Vec<_> = written.iter().map(|result| &result.unit).filter(|unit| unborn(unit)).collect();
    restarted(job, unborn, &mut memory.births).await;
    apply::forget(pass, &plan, &written).await?;
    done.results.extend(written);
    done.plan = Some(match done.plan.take() {
        None => plan,
        Some(before) => before.joined(plan),
    });
    Ok(())
}

/// Decides about one group of units. Adaptive control is evaluated once in a pass; later groups use its outcome.
async fn decided(pass: &mut Pass<'_>, job: &Job<'_>, done: &Done, answered: &[(Unit, UnitState)]) -> Plan {
    let Pass { world, policy, memory, declared, traits } = pass;
    let mut previous = policy.object.status.clone().unwrap_or_default();
    let mut held = Cow::Borrowed(&memory.held);
    let declared = done.plan.as_ref().map_or(*declared, |plan| &plan.desired);
    if let Some(plan) = &done.plan {
        previous.control = Some(plan.control.clone());
        if done.stepped {
            held.to_mut().extend(answered.iter().map(|(unit, _)| (unit.id.clone(), LimitValues::new())));
        }
    }
    let look = done.look.as_ref().filter(|_| done.plan.is_none());
    let input = Input {
        generation: policy.object.metadata.generation,
        suspend: policy.spec().suspend,
        drift_policy: policy.spec().drift_policy,
        declared,
        traits,
        units: answered,
        saved: saved_units(memory.originals.as_ref()),
        held: &held,
        restarted: &BTreeSet::new(),
        lives: &memory.lives,
        waiting: memory.waves.has_waited(),
        previous: &previous,
        adaptive: memory.driver.as_ref().zip(look).map(|(driver, look)| AdaptiveInput {
            driver,
            signal: &look.signal,
            now: look.now,
        }),
        now: world.now(),
    };
    let deciding = world.enter(Stage::Decide);
    let mut plan = decide::decide(&input);
    drop(deciding);
    if !plan.drift.is_empty() {
        // A restarted process has the settings of its config file: no client changed them. The start time costs a request, so it
        // is read only after drift.
        let drifted = |unit: &Unit| plan.drift.iter().any(|drift| drift.id == unit.id);
        let drifted: Vec<_> = answered.iter().map(|(unit, _)| unit).filter(|unit| drifted(unit)).collect();
        let restarted = restarted(job, drifted, &mut memory.births).await;
        plan = decide::decide(&Input { restarted: &restarted, ..input });
    }
    if let (Some(look), Some(outcome)) = (look, &plan.outcome) {
        logging::signal(&look.signal);
        logging::outcome(outcome);
    }
    logging::plan(&plan, answered);
    if world.is_dry_run() {
        plan.units.clear();
    }
    plan
}

/// Begins the batch of this pass.
fn begin_batch(pass: &mut Pass<'_>, units: &[Unit]) {
    if pass.traits.has_batches() {
        let object = &pass.policy.object;
        let update = object.status.as_ref().and_then(|status| status.update.as_ref());
        pass.memory.waves.begin(units, object.metadata.generation, update, pass.world.moment());
    }
}

/// Returns the units that are to be written and have restarted since they were last read. The start time costs a request, so it is
/// read only where a unit does not hold what it last held.
async fn restarted_since(pass: &mut Pass<'_>, job: &Job<'_>, answered: &[(Unit, UnitState)], plan: &Plan) -> BTreeSet<String> {
    let memory = &mut *pass.memory;
    let known: BTreeSet<_> = plan.drift.iter().map(|drift| &drift.id).collect();
    let lost = |unit: &Unit, state: &UnitState| {
        let held = memory.held.get(&unit.id);
        let mut before = state.sites.iter().filter_map(|(site, now)| Some((held?.get(&site.limit)?, now)));
        before.any(|(held, now)| now.value != Some(*held))
    };
    let is_asked =
        |(unit, state): &&(Unit, UnitState)| plan.units.contains_key(&unit.id) && !known.contains(&unit.id) && lost(unit, state);
    let asked = answered.iter().filter(is_asked).map(|(unit, _)| unit).collect();
    let mut restarted = restarted(job, asked, &mut memory.births).await;
    restarted.extend(plan.drift.iter().filter(|drift| drift.restarted).map(|drift| drift.id.clone()));
    restarted
}

/// Takes those units out of the plan that wait for a later batch. Their original settings are saved then.
fn hold_back(
    pass: &mut Pass<'_>,
    look: Option<&SignalSnapshot>,
    answered: &[(Unit, UnitState)],
    restarted: &BTreeSet<String>,
    plan: &mut Plan,
) {
    let Pass { world, policy, memory, .. } = pass;
    let now = world.moment();
    let changes = |unit: &Unit| plan.units.get(&unit.id).map(|unit| &unit.changes[..]).unwrap_or_default();
    let (mut candidates, mut done) = (Vec::new(), false);
    let twice = look.and_then(|look| look.signal.reading()).map(|reading| &reading.twice[..]).unwrap_or_default();
    for (unit, _) in answered {
        let changes = changes(unit);
        memory.waves.answered(&unit.id, changes.is_empty());
        done |= changes.is_empty();
        if changes.is_empty() || memory.withheld(&unit.id, changes, now).is_some() {
            continue;
        }
        candidates.push(Candidate {
            unit,
            restarted: restarted.contains(&unit.id),
            urgent: twice.contains(&unit.name),
            failures: memory.unwritten.get(&unit.id).map_or(0, |unwritten| unwritten.times),
        });
    }
    if candidates.is_empty() {
        return;
    }
    let reported = policy.object.status.as_ref().and_then(|status| status.observed_generation);
    if done && reported != policy.object.metadata.generation && !memory.saved().is_empty() {
        memory.waves.found_half_written(now);
    }
    let asked: BTreeSet<_> = candidates.iter().map(|candidate| candidate.unit.id.clone()).collect();
    let admitted = memory
        .waves
        .admit(policy.spec().batches().as_ref(), candidates, &plan.desired.settings, now, |nodes| world.may_flush(nodes));
    logging::admitted(&admitted, asked.len());
    let written: BTreeSet<_> = admitted.flushed.into_iter().chain(admitted.started).collect();
    plan.units.retain(|id, _| written.contains(id) || !asked.contains(id));
}

/// Reports the results of the pass, performs restarts, and returns when the next pass is due.
async fn finish(pass: &mut Pass<'_>, job: &Job<'_>, done: Done) -> Result<Next, Error> {
    let (world, traits) = (pass.world, pass.traits);
    let Done { mut results, plan, look, .. } = done;
    let mut plan = plan.unwrap_or_default();
    results.sort_by(|a, b| a.unit.name.cmp(&b.unit.name));
    let stamp = world.now();
    let nodes: Vec<_> = results.iter().filter_map(|result| result.state.as_ref().ok()).flat_map(|state| &state.nodes).collect();
    let all = results.len() == job.units.len() && results.iter().all(|result| result.state.is_ok());
    pass.memory.looked(&nodes, all, stamp);
    if traits.has_batches() {
        pass.memory.waves.end();
    }
    if let Some(driver) = &mut pass.memory.driver {
        driver.updating(pass.memory.waves.is_under_way());
    }
    take_up(pass.policy, pass.memory, &plan, traits, &results, all);
    unrecorded_changes(pass.policy, &mut plan, traits, &results);
    plan_changed(&mut plan, &results, traits, stamp);
    log_faults(pass.memory, &results);

    let probing = world.probe(pass.policy, &results, all, pass.memory.waves.waiting());
    pass.memory.probes = probing.found;
    let departed = restore::departed(world, pass.policy, pass.memory, job.units).await?;
    let written_down = plan.control.restart.clone();
    restart::look(pass, &mut plan, &results).await?;
    world.leave();
    Box::pin(report_status(pass, None, &plan, &results, look.as_ref())).await?;
    let memory = &mut *pass.memory;
    if let (Some(driver), Some(outcome), Some(look)) = (&mut memory.driver, &plan.outcome, &look) {
        let status = pass.policy.object.status.clone().unwrap_or_default();
        let units = results.iter().filter_map(|result| Some((&result.unit, result.state.as_ref().ok()?)));
        driver.commit(outcome, &look.signal, &status, traits, &memory.lives, units);
    }
    // Begin only restarts that are in the status by now.
    restart::act(world, memory, &plan, job.target.as_ref(), &results).await;
    let mut next = next_look(world, pass.policy, memory, &plan);
    next = next.min(fast_requeue(&plan, &results, &written_down, stamp).unwrap_or(next));
    if departed {
        next = next.min(wait(2));
    }
    Ok(Next::After(probing.due.map_or(next, |probe| next.min(probe))))
}

/// Sizes the connection pool of the policy for the nodes that are read and sampled.
fn size_pool(world: &dyn World, memory: &PolicyCache, units: usize) {
    world.size_pool(units, memory.driver.as_ref().map(|driver| (memory.sampled.len(), interval(driver.config()))));
}

/// Returns the requeue interval for changes that no event reports: restarts in progress, and files that are propagating.
fn fast_requeue(plan: &Plan, results: &[UnitResult], written_down: &RestartControl, now: Timestamp) -> Option<Duration> {
    if plan.control.restart != *written_down {
        return Some(DUE_SLACK);
    }
    let restarting = plan.restart.as_ref().is_some_and(|(outcome, _)| outcome.is_going_on());
    (restarting || is_propagating(results, now)).then_some(WHILE_RESTARTING)
}

/// Reports whether a file was changed recently and some pods do not report it yet. No event tells when they do.
fn is_propagating(results: &[UnitResult], now: Timestamp) -> bool {
    let behind = |state: &UnitState| state.nodes.iter().any(|node| node.uses == Some(false));
    let fresh = |state: &UnitState| {
        let age = state.changed.map(|at| now.duration_since(at));
        age.is_some_and(|age| age < decide::report::status::PROPAGATION)
    };
    results.iter().filter_map(|result| result.state.as_ref().ok()).any(|state| behind(state) && fresh(state))
}

/// Returns when the next pass is due if nothing happens: at the end of a back-off, contention or pause, and at the latest at the
/// resync.
fn next_look(world: &dyn World, policy: &PolicyHandle, memory: &PolicyCache, plan: &Plan) -> Duration {
    let now = world.now();
    let contended = contention::next_end(&plan.control.contended, now).and_then(|end| Timestamp::from_second(end + 1).ok());
    let contended = contended.and_then(|end| Duration::try_from(end.duration_since(now)).ok());
    // A unit that does not answer is not written before it answers.
    let answers = |(id, _): &(&String, &Unwritten)| !memory.failing.contains_key(*id);
    let unwritten = memory.unwritten.iter().filter(answers).filter_map(|(_, unwritten)| unwritten.due);
    let due = memory.failing.values().map(|failing| failing.due).chain(unwritten).min();
    let due = due.map(|due| due.since(world.moment()) + DUE_SLACK);
    let batch = memory.waves.next(policy.spec().batches().as_ref()).map(|next| next.since(world.moment()) + DUE_SLACK);
    let pause = Pause::next_end(policy.object.annotations(), now)
        .and_then(|end| Duration::try_from(end.duration_since(now)).ok())
        .map(|left| left + DUE_SLACK);
    due.into_iter().chain(contended).chain(pause).chain(batch).chain([world.resync()]).min().unwrap_or(DUE_SLACK)
}

/// Returns the units whose process has restarted since the last call, and records the start times.
async fn restarted(job: &Job<'_>, units: Vec<&Unit>, births: &mut BTreeMap<String, String>) -> BTreeSet<String> {
    let concurrency = job.pace.concurrency(units.len());
    let questions = units.into_iter().map(|unit| async { (unit.id.clone(), job.target.started(unit).await) }.boxed());
    let answers = stream::iter(questions.collect::<Vec<_>>()).buffer_unordered(concurrency);
    let mut restarted = BTreeSet::new();
    for (id, started) in answers.collect::<Vec<_>>().await {
        let Some(started) = started else { continue };
        let before = births.insert(id.clone(), started.clone());
        if before.is_some_and(|before| before != started) {
            restarted.insert(id);
        }
    }
    restarted
}

/// Takes over from the status what the processes of the nodes use, after the operator has restarted.
fn take_up(
    policy: &PolicyHandle,
    memory: &mut PolicyCache,
    plan: &Plan,
    traits: &TargetCapabilities,
    results: &[UnitResult],
    all: bool,
) {
    let written = policy.object.status.as_ref().and_then(|status| status.control.as_ref()?.confirmed.as_ref());
    let Some(written) = written.filter(|_| all) else { return };
    let desired = uptimes::read_at_start(&plan.desired.settings, traits);
    let states = results.iter().filter_map(|result| result.state.as_ref().ok());
    let Some((nodes, changed)) = uptimes::answered(states) else { return };
    uptimes::take_up(&mut memory.lives, written, &nodes, &desired, changed);
}

/// Records when limits that need a restart were changed, where a process of the operator ended between the write and the
/// status: the nodes have the desired value, and the status is about another one. The unit's own timestamp is the latest
/// possible time.
fn unrecorded_changes(policy: &PolicyHandle, plan: &mut Plan, traits: &TargetCapabilities, results: &[UnitResult]) {
    let limits = policy.object.status.as_ref().and_then(|status| status.limits.as_ref());
    let Some(before) = limits.and_then(|limits| limits.desired.as_ref().or(limits.declared.as_ref())).map(Limits::settings)
    else {
        return;
    };
    for state in results.iter().filter_map(|result| result.state.as_ref().ok()) {
        let Some(changed) = state.changed else { continue };
        for (limit, desired) in uptimes::read_at_start(&plan.desired.settings, traits) {
            let mut stored = state.sites.iter().filter(|(site, _)| site.limit == limit).map(|(_, stored)| stored.value);
            if before.get(&limit).is_some_and(|before| *before != desired) && stored.any(|stored| stored == Some(desired)) {
                plan.control.changed.insert(limit, changed.as_millisecond());
            }
        }
    }
}

/// Records when limits that need a restart were changed: an older process does not use them. A restored value is no change: a
/// process that was not restarted meanwhile has used it all the time.
fn plan_changed(plan: &mut Plan, results: &[UnitResult], traits: &TargetCapabilities, now: Timestamp) {
    let put_back: BTreeSet<_> = plan.drift.iter().map(|drift| (drift.id.clone(), drift.limit)).collect();
    for result in results.iter().filter(|result| result.write.is_none()) {
        for change in plan.units.get(&result.unit.id).map(|unit| &unit.changes[..]).unwrap_or_default() {
            if put_back.contains(&(result.unit.id.clone(), change.site.limit)) {
                continue;
            }
            if traits.capability(change.site.limit) == decide::Capability::AfterRestart {
                plan.control.changed.insert(change.site.limit, now.as_millisecond());
            }
        }
    }
}

/// Records the results of the writes.
fn record_results(memory: &mut PolicyCache, written: &[UnitResult], plan: &Plan, traits: &TargetCapabilities, now: Moment) {
    for result in written {
        let id = &result.unit.id;
        let changes = plan.units.get(id).map(|unit| &unit.changes[..]).unwrap_or_default();
        memory.ended(id, result.state.as_ref().err(), now);
        if memory.withheld(id, changes, now).is_none() {
            if traits.has_batches() && !changes.is_empty() {
                memory.waves.written(&result.unit, result.state.is_ok(), now);
            }
            memory.written(id, changes, result.write.as_ref(), now);
        }
        match &result.state {
            Ok(state) => {
                let saved = memory.saved().get(id).map(|saved| &*saved.sites);
                let desired = decide::settings(&plan.desired, traits, &result.unit, state, saved);
                memory.seen(id, state, &desired, changes);
            }
            // What it holds after a write is not known.
            Err(_) if !changes.is_empty() => {
                memory.held.insert(id.clone(), LimitValues::new());
            }
            Err(_) => {}
        }
    }
}

/// Logs a fault of a unit once, and once that the unit recovered.
fn log_faults(memory: &mut PolicyCache, results: &[UnitResult]) {
    for result in results {
        let said = match (&result.state, &result.write) {
            (Err(fault), _) | (Ok(_), Some(fault)) => fault.message.clone(),
            (Ok(_), None) => String::new(),
        };
        let known = memory.logged.contains_key(&result.unit.id);
        if (known || !said.is_empty()) && memory.is_new_message(&result.unit.id, &said) {
            if said.is_empty() {
                tracing::info!(unit = result.unit.name, "the unit recovered");
            } else {
                tracing::warn!(unit = result.unit.name, "{said}");
            }
        }
    }
}

/// Reports the results of the pass, or the problem that prevents it.
pub(super) async fn report_status(
    pass: &mut Pass<'_>,
    problem: Option<&Problem>,
    plan: &Plan,
    results: &[UnitResult],
    look: Option<&SignalSnapshot>,
) -> Result<(), Error> {
    let Pass { world, policy, memory, declared, traits } = pass;
    let previous = policy.object.status.clone().unwrap_or_default();
    let log = memory.originals.as_ref();
    let files = look.and_then(|look| look.signal.reading()?.files.as_ref());
    let observed = Observed {
        open_files: files.map(|(percent, node)| (*percent, node.as_str())),
        cut_streams: cut_streams(results),
        ..Observed::default()
    };
    let verified = memory.probes.as_ref().map(|probes| decide::verify::verified(results, probes));
    let observed = Observed { server_idle: verified.as_ref().and_then(|verified| verified.shared), ..observed };
    let advice = advice::advice(policy.spec(), declared, traits, observed);
    let update = memory.waves.progress(policy.spec().batches().as_ref());
    let mut plan = plan.clone();
    plan.control.events = previous.control.as_ref().map_or(0, |control| control.events);
    let seen = ReportInput {
        generation: policy.object.metadata.generation,
        suspend: policy.spec().suspend,
        declared,
        traits,
        problem,
        units: results,
        plan: &plan,
        saved: memory.saved(),
        original: log.and_then(|log| log.revisions().next_back()).map(|newest| originals::name(&policy.name, newest)),
        lives: &memory.lives,
        adaptive: memory.driver.as_ref().zip(look).map(|(driver, look)| driver.seen(&look.signal)),
        advice: &advice,
        shared: policy.shared.then_some(SHARED),
        update: update.as_ref(),
        probes: memory.probes.as_ref(),
        previous: &previous,
        now: world.now(),
    };
    let (mut status, notices) = decide::report::status::report(&seen);
    let registry = world.registry();
    if registry.is_sharded() {
        let published = registry.published(&policy.claimant, policy.spec().target.type_);
        status.claims = published.or_else(|| previous.claims.clone());
    }
    world.tell(News::Nodes(truths(&seen, &status), seen.now));
    match report::report(*world, policy, &status, &notices).await {
        Ok(()) => {
            memory.logged.remove("status");
            policy.object.status = Some(status);
            Ok(())
        }
        // A rejected status must not block writes to the nodes.
        Err(Error::Api(refusal)) if refusal.code == Some(422) => {
            world.tell(News::StatusRefused);
            if memory.is_new_message("status", &refusal.message) {
                tracing::error!(error = refusal.message, "the API server rejected the status of this policy");
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Returns a unit that closes streams when its configuration is changed.
fn cut_streams(results: &[UnitResult]) -> Option<&str> {
    let cuts = |result: &&UnitResult| result.state.as_ref().is_ok_and(|state| state.cuts_streams);
    results.iter().find(cuts).map(|result| &*result.unit.name)
}

/// Adds the finalizer before anything is saved or written.
async fn finalizer(world: &dyn World, policy: &mut PolicyHandle) -> Result<(), Error> {
    if policy.object.finalizers().iter().any(|f| f == FINALIZER) || world.is_dry_run() {
        return Ok(());
    }
    let mut finalizers = policy.object.finalizers().to_vec();
    finalizers.push(FINALIZER.into());
    let status = policy.object.status.take();
    let Some(stored) = world.set_finalizers(policy, &finalizers).await? else { return Err(Error::Gone) };
    policy.object = stored.read().map_err(Error::Unreadable)?.0;
    if policy.object.status.is_none() {
        policy.object.status = status.or_else(|| Some(IdleConnectionPolicyStatus::default()));
    }
    Ok(())
}
