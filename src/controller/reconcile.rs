//! One pass of one policy: gather, decide, apply, report.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::controller::Action,
};
use serde_json::json;
use tracing::{Instrument as _, Span};

use super::{
    Context, Error, PolicyRef, Subject,
    adaptation::{self, Adaptation, Look},
    apply,
    claims::{Scope, is_stated},
    connections, gather, in_time, logging,
    memory::{Memory, wait},
    originals, path,
    places::{self, Failure},
    planted,
    pods::Interest,
    report, restart, restore, scheduler,
    served::Served,
    verify,
};
use crate::{
    api::{
        FINALIZER, IdleConnectionPolicyStatus, StoredPolicy, conditions::Reason, policy::DriftPolicy, restart::RestartPolicy,
        status::RestartControl,
    },
    clock,
    decide::{
        self, Cause, Declared, Fault, Input, Plan, Traits, Unit, UnitState,
        adaptive::pause::Pause,
        advice::{self, Observed},
        claims::{Claimant, SHARED, sentence},
        conditions::{Problem, Seen, UnitResult, failure},
        contention, lives,
        truths::truths,
    },
    metrics::Step,
    targets::{self, Place, Target},
};

/// Requeue interval while the CRD is missing or too old: no event reports its upgrade.
const WHILE_OLDER: Duration = Duration::from_secs(1);
/// Requeue interval until the policies have been listed.
const WHILE_UNLISTED: Duration = Duration::from_millis(50);
/// Requeue interval during a restart: no event reports when the node is back.
const WHILE_RESTARTING: Duration = Duration::from_secs(2);
/// Added to a due time, so that the pass begins after it.
const MOMENT: Duration = Duration::from_millis(5);
/// Time after the begin of a pass during which nodes are written. The others are written in the next pass.
const WRITING: Duration = Duration::from_secs(60);

/// Makes one pass. Every log line of it carries the policy.
pub async fn reconcile(policy: Arc<StoredPolicy>, ctx: Arc<Context>) -> Result<Action, Error> {
    let reference = PolicyRef::from_obj(&*policy);
    // A span of a lower level would be missing from warnings where the log level is warn.
    let span = tracing::error_span!("reconcile", policy = %path(&reference), generation = tracing::field::Empty);
    async {
        let ended = attempt(&ctx, &reference).await;
        match &ended {
            Ok(action) => tracing::debug!(?action, "the pass ended"),
            Err(error) => tracing::debug!(error = logging::chain(error), "the pass failed"),
        }
        ended
    }
    .instrument(span)
    .await
}

/// Makes one pass if the operator may act. A panic affects only this policy.
async fn attempt(ctx: &Arc<Context>, reference: &PolicyRef) -> Result<Action, Error> {
    let Some(namespace) = reference.namespace.clone() else { return Err(Error::Nameless) };
    if !ctx.leadership.holds() {
        tracing::debug!("this replica is not the leader");
        // All policies are enqueued when this replica becomes the leader.
        return Ok(Action::await_change());
    }
    if let Served::Missing | Served::Older(_) = &*ctx.served() {
        return Ok(Action::requeue(WHILE_OLDER));
    }
    if !ctx.is_ready() {
        return Ok(Action::requeue(WHILE_UNLISTED));
    }
    let _due = ctx.scheduler.due();
    let visited = scheduler::contained(Box::pin(visit(ctx, reference, &namespace))).await;
    ctx.scheduler.end(reference);
    match visited {
        // The policy is being deleted: the pass for the deletion comes next.
        Ok(Err(Error::Cancelled)) => Ok(Action::requeue(MOMENT)),
        Ok(ended) => ended,
        Err(scheduler::Panicked) => {
            ctx.metrics.panicked();
            {
                let memory = ctx.memory(reference);
                let mut memory = memory.lock().await;
                // The state in memory may be inconsistent.
                *memory = Memory { failures: memory.failures, ..Memory::default() };
            }
            if let Ok(Err(error)) = scheduler::contained(Box::pin(report::internal_error(ctx, reference))).await {
                tracing::warn!(error = logging::chain(&error), "cannot write the internal error to the status");
            }
            Err(Error::Panicked)
        }
    }
}

async fn visit(ctx: &Arc<Context>, reference: &PolicyRef, namespace: &str) -> Result<Action, Error> {
    let memory = ctx.memory(reference);
    let mut memory = memory.lock().await;
    let mut slot = None;
    let mut generation = None;
    let action = loop {
        let Some(mut subject) = read(ctx, reference, namespace, &mut memory).await? else { return Ok(Action::await_change()) };
        if generation != subject.object.metadata.generation {
            generation = subject.object.metadata.generation;
            Span::current().record("generation", generation);
        }
        let deleted = subject.object.metadata.deletion_timestamp.is_some();
        // Steps that need only the API server come before the wait for a slot: younger policies wait for them.
        let place = if deleted {
            ctx.enqueue(ctx.board.keep(&subject.claimant));
            None
        } else {
            match Box::pin(place(ctx, &mut subject, &mut memory)).await? {
                Placed::Done(action) => break action,
                Placed::At(places) => Some(places),
            }
        };
        if slot.is_none() {
            let asked = tokio::time::Instant::now();
            slot = Some(ctx.scheduler.admit(namespace).await);
            if asked.elapsed() > MOMENT {
                // The policy may have changed since it was read.
                continue;
            }
        }
        break match place {
            None => {
                planted::panics("restore", &subject.path);
                restore::cleanup(ctx, &subject, &mut memory).await?
            }
            Some(places) => {
                subject.visit = ctx.scheduler.begin(reference);
                Box::pin(pass(ctx, &mut subject, &mut memory, places)).await?
            }
        };
    };
    memory.failures = 0;
    memory.logged.remove("error");
    ctx.metrics.reconciled();
    Ok(action)
}

/// Reads the policy and its saved original settings from the API server. `None` if the policy is gone.
async fn read(ctx: &Context, reference: &PolicyRef, namespace: &str, memory: &mut Memory) -> Result<Option<Subject>, Error> {
    // The watch may lag behind the operator's own writes. Reading again prevents double Events and writes.
    let api = Api::<StoredPolicy>::namespaced(ctx.client.clone(), namespace);
    let Some(object) = in_time(api.get_opt(&reference.name)).await? else {
        ctx.forget(reference);
        ctx.enqueue(ctx.board.forget(namespace, &reference.name, None));
        return Ok(None);
    };
    let subject = Subject::new(object)?;
    if memory.uid != subject.uid {
        *memory = Memory { uid: subject.uid.clone(), failures: memory.failures, ..Memory::default() };
        ctx.enqueue(ctx.board.forget(namespace, &subject.name, Some(&subject.claimant)));
    }
    if memory.originals.is_none() {
        let revisions = Api::<ControllerRevision>::namespaced(ctx.client.clone(), namespace);
        let log = originals::load(&revisions, &subject.name).await?;
        ctx.board.saved(&subject.claimant, &log);
        memory.originals = Some(log);
    }
    Ok(Some(subject))
}

/// Result of looking for the target: its location, or the end of the pass.
enum Placed {
    At(Vec<Place>),
    Done(Action),
}

/// Finds the target with requests to the API server only, and claims it.
async fn place(ctx: &Context, subject: &mut Subject, memory: &mut Memory) -> Result<Placed, Error> {
    let traits = traits(subject);
    let declared = decide::declare(subject.spec(), &traits);
    if let Some(message) = subject.refusal.clone().or_else(|| declared.invalid(&decide::floor(subject.spec(), &traits))) {
        ctx.enqueue(ctx.board.give_up(&subject.claimant));
        memory.adaptation = None;
        let problem = Problem::invalid(Reason::Invalid, message);
        return problem_report(ctx, subject, memory, &declared, &traits, &problem).await.map(Placed::Done);
    }
    let kind = subject.spec().target.type_;
    let places = match subscribed_places(ctx, subject).await {
        Ok(places) => places,
        Err(failure) => return failed(ctx, subject, memory, &declared, &traits, failure).await.map(Placed::Done),
    };
    let identities = targets::identities(&subject.spec().target, &subject.namespace, &places);
    tracing::debug!(kind = kind.name(), places = logging::names(places.iter().map(|place| &place.name)), "found the target");
    let claimed = ctx.board.claim_places(&subject.claimant, kind, identities);
    ctx.enqueue(claimed.concerned);
    if let Some(winner) = claimed.winner {
        return conflicted(ctx, subject, memory, &declared, &traits, &winner).await.map(Placed::Done);
    }
    if ctx.board.must_wait(&subject.claimant, &Scope::Places(kind)) {
        tracing::debug!("older policies are looked at first");
        // The policy is enqueued as soon as the older policies have claimed their targets.
        return Ok(Placed::Done(Action::requeue(resync(ctx, &subject.reference))));
    }
    Ok(Placed::At(places))
}

fn traits(subject: &Subject) -> Traits {
    let rolling = subject.spec().restart.as_ref().is_some_and(|restart| restart.policy == RestartPolicy::Rolling);
    Traits { rolling, ..targets::traits(&subject.spec().target) }
}

async fn subscribed_places(ctx: &Context, subject: &Subject) -> Result<Vec<Place>, Failure> {
    let spec = subject.spec();
    let interest = match spec.target.selector() {
        Some(selector) => Some(Interest::of(selector)?),
        // An AIStore cluster names the addresses of its nodes, and a Service those of its endpoints: both are looked up among the
        // pods.
        None if spec.names_addresses() => Some(Interest::Addresses),
        None => None,
    };
    ctx.pods.subscribe(&subject.reference, interest);
    let places = places::places(ctx, subject, &spec.target).await?;
    if places.is_empty() {
        let message = format!(
            "No pod or endpoint in namespace {} matches spec.target; create one there, or correct spec.target",
            subject.namespace
        );
        return Err(Problem::no_target(message).into());
    }
    Ok(places)
}

/// Converts a fault of the whole target.
fn problem(Fault { cause, message }: Fault) -> Failure {
    let problem = match cause {
        Cause::NotPermitted | Cause::Conflict => Problem::invalid(failure(cause), message),
        Cause::NotFound => Problem::no_target(message),
        Cause::Forbidden => Problem::blocked(failure(cause), message),
        _ => Problem::waiting(failure(cause), message),
    };
    problem.into()
}

/// Reports why the target cannot be read.
async fn failed(
    ctx: &Context,
    subject: &mut Subject,
    memory: &mut Memory,
    declared: &Declared,
    traits: &Traits,
    failure: Failure,
) -> Result<Action, Error> {
    let problem = match failure {
        Failure::Error(error) => return Err(error),
        Failure::Problem(problem) => problem,
    };
    // A cluster that does not answer for a while keeps its claim.
    let concerned = if problem.refused { ctx.board.give_up(&subject.claimant) } else { ctx.board.keep(&subject.claimant) };
    ctx.enqueue(concerned);
    problem_report(ctx, subject, memory, declared, traits, &problem).await
}

async fn conflicted(
    ctx: &Context,
    subject: &mut Subject,
    memory: &mut Memory,
    declared: &Declared,
    traits: &Traits,
    winner: &Claimant,
) -> Result<Action, Error> {
    // The target of this policy is known, so policies that wait for it can continue.
    ctx.enqueue(ctx.board.keep(&subject.claimant));
    let problem = Problem::invalid(Reason::Conflicted, sentence(winner, &subject.claimant));
    problem_report(ctx, subject, memory, declared, traits, &problem).await
}

/// Connected target and its units.
struct Found {
    target: Arc<dyn Target>,
    units: Vec<Unit>,
}

async fn pass(ctx: &Context, subject: &mut Subject, memory: &mut Memory, places: Vec<Place>) -> Result<Action, Error> {
    let traits = &traits(subject);
    let declared = decide::declare(subject.spec(), traits);
    let visit = subject.visit.clone();
    let found = match visit.reading(find(ctx, subject, &declared, memory, places)).await? {
        Ok(found) => found,
        Err(failure) => return failed(ctx, subject, memory, &declared, traits, failure).await,
    };
    let stated = found.units.iter().map(|unit| unit.id.clone()).filter(|id| is_stated(id)).collect();
    let claimed = ctx.board.claim_stated(&subject.claimant, stated);
    ctx.enqueue(claimed.concerned);
    if let Some(winner) = claimed.winner {
        return conflicted(ctx, subject, memory, &declared, traits, &winner).await;
    }
    if ctx.board.must_wait(&subject.claimant, &Scope::Stated(subject.namespace.clone())) {
        tracing::debug!("older policies are looked at first");
        return Ok(Action::requeue(resync(ctx, &subject.reference)));
    }
    subject.shared = claimed.shared;
    Box::pin(work(ctx, subject, memory, &declared, traits, found)).await
}

async fn find(
    ctx: &Context,
    subject: &Subject,
    declared: &Declared,
    memory: &mut Memory,
    places: Vec<Place>,
) -> Result<Found, Failure> {
    let _timed = ctx.metrics.time(Step::Discover);
    planted::panics("discover", &subject.path);
    let spec = subject.spec();
    let credentials = places::credentials(ctx, &subject.namespace, &spec.target).await?;
    memory.credentials = credentials.clone();
    let target = targets::connect(&spec.target, &declared.providers, places, credentials, ctx.reach(subject)).map_err(problem)?;
    let units = target.discover().await.map_err(problem)?;
    logging::discovered(&units);
    Ok(Found { target, units })
}

async fn work(
    ctx: &Context,
    subject: &mut Subject,
    memory: &mut Memory,
    declared: &Declared,
    traits: &Traits,
    found: Found,
) -> Result<Action, Error> {
    let Found { target, units } = found;
    memory.failing.remove("");
    memory.logged.remove("problem");
    memory.keep_only(&units);
    bound(ctx, subject, memory, units.len());
    finalizer(ctx, subject).await?;
    planted::panics("gather", &subject.path);
    let began = Instant::now();
    let visit = subject.visit.clone();
    let tenant = ctx.kept.tenant(&subject.namespace);
    let mut gathering = gather::Gathering::begin(target.clone(), units.clone(), memory, &tenant);
    let job = Job { ctx, declared, traits, target: &target, units: &units, until: began + WRITING };
    let mut done = Done::default();
    loop {
        let timed = ctx.metrics.time(Step::Gather);
        let Some(answers) = visit.reading(gathering.next()).await? else { break };
        drop(timed);
        logging::read(&answers);
        let mut answered = Vec::new();
        for (unit, state) in answers {
            match state {
                Ok(state) => answered.push((unit, state)),
                Err(fault) => {
                    memory.ended(&unit.id, Some(&fault), Instant::now());
                    done.results.push(UnitResult { unit, state: Err(fault), write: None });
                }
            }
        }
        gathering.alongside(Box::pin(round(&job, subject, memory, &mut done, answered))).await?;
    }
    if done.plan.is_none() {
        // No unit was due, but adaptive control is evaluated in each pass.
        Box::pin(round(&job, subject, memory, &mut done, Vec::new())).await?;
    }
    done.results.extend(std::mem::take(&mut gathering.skipped).into_iter().map(|(unit, state)| UnitResult {
        unit,
        state,
        write: None,
    }));
    Box::pin(finish(&job, subject, memory, done)).await
}

/// Inputs of one pass.
struct Job<'a> {
    ctx: &'a Context,
    declared: &'a Declared,
    traits: &'a Traits,
    target: &'a Arc<dyn Target>,
    units: &'a [Unit],
    /// Nothing is written after this time.
    until: Instant,
}

/// Results of the groups of one pass.
#[derive(Default)]
struct Done {
    results: Vec<UnitResult>,
    plan: Option<Plan>,
    look: Option<Look>,
    /// Whether adaptive control took a step in this pass. The settings of later units are then not drift.
    stepped: bool,
}

/// Decides about one group of units, writes, and reads back.
async fn round(
    job: &Job<'_>,
    subject: &mut Subject,
    memory: &mut Memory,
    done: &mut Done,
    answered: Vec<(Unit, UnitState)>,
) -> Result<(), Error> {
    let Job { ctx, declared, traits, target, units, until } = *job;
    planted::panics("decide", &subject.path);
    apply::follow(ctx, subject, memory, declared, traits, &answered).await?;
    let mut plan = if done.plan.is_none() {
        adaptation::prepare(ctx, subject, memory, declared, traits, units, &answered).await;
        bound(ctx, subject, memory, units.len());
        let saved = memory.saved();
        if let Some(adaptation) = &mut memory.adaptation {
            adaptation.driver.bound(traits, &saved, &answered, answered.len() == units.len());
        }
        done.look = memory.adaptation.as_ref().map(Adaptation::look);
        decided(job, subject, memory, done, &answered).await
    } else {
        decided(job, subject, memory, done, &answered).await
    };
    let corrects = !plan.drift.is_empty()
        && plan.units.values().any(|unit| !unit.changes.is_empty())
        && subject.spec().drift_policy == DriftPolicy::Correct;
    let decision = plan.outcome.as_ref().and_then(|outcome| outcome.decision.as_ref());
    if let Some(decision) = decision {
        ctx.metrics.decided(&subject.namespace, &subject.name, decision);
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
        say(ctx, subject, memory, declared, traits, None, &plan, &before, done.look.as_ref()).await?;
        if let Some(outcome) = &mut plan.outcome {
            (outcome.decision, outcome.judged) = (None, None);
        }
    }

    planted::panics("capture", &subject.path);
    apply::capture(ctx, subject, memory, &answered, &plan).await?;
    planted::panics("write", &subject.path);
    let written = apply::write(ctx, subject, target, answered, &plan, traits, memory, until).await;
    note(memory, &written, &plan);
    let unborn = |unit: &Unit| plan.units.contains_key(&unit.id) && !memory.births.contains_key(&unit.id);
    let unborn: Vec<_> = written.iter().map(|result| &result.unit).filter(|unit| unborn(unit)).collect();
    restarted(target.as_ref(), &unborn, &mut memory.births).await;
    apply::forget(ctx, subject, memory, &plan, &written).await?;
    done.results.extend(written);
    done.plan = Some(match done.plan.take() {
        None => plan,
        Some(before) => before.joined(plan),
    });
    Ok(())
}

/// Decides about one group of units. Adaptive control is evaluated once in a pass; later groups use its outcome.
async fn decided(job: &Job<'_>, subject: &Subject, memory: &mut Memory, done: &Done, answered: &[(Unit, UnitState)]) -> Plan {
    let Job { ctx, declared, traits, target, .. } = *job;
    let saved = memory.saved();
    let mut previous = subject.object.status.clone().unwrap_or_default();
    let mut unfinished = memory.unfinished.clone();
    let declared = done.plan.as_ref().map_or(declared, |plan| &plan.desired);
    if let Some(plan) = &done.plan {
        previous.control = Some(plan.control.clone());
        if done.stepped {
            unfinished.extend(answered.iter().map(|(unit, _)| unit.id.clone()));
        }
    }
    let look = done.look.as_ref().filter(|_| done.plan.is_none());
    let input = Input {
        generation: subject.object.metadata.generation,
        suspend: subject.spec().suspend,
        drift_policy: subject.spec().drift_policy,
        declared,
        traits,
        units: answered,
        saved: &saved,
        unfinished: &unfinished,
        restarted: &BTreeSet::new(),
        lives: &memory.lives,
        previous: &previous,
        adaptive: memory.adaptation.as_ref().zip(look).map(|(adaptation, look)| adaptation.input(look)),
        now: clock::now(),
    };
    let mut plan = ctx.metrics.timed(Step::Decide, async { decide::decide(&input) }).await;
    if !plan.drift.is_empty() {
        // A restarted process has the settings of its config file: no client changed them. The start time costs a request, so it
        // is read only after drift.
        let drifted = |unit: &Unit| plan.drift.iter().any(|drift| drift.id == unit.id);
        let drifted: Vec<_> = answered.iter().map(|(unit, _)| unit).filter(|unit| drifted(unit)).collect();
        let restarted = restarted(target.as_ref(), &drifted, &mut memory.births).await;
        plan = decide::decide(&Input { restarted: &restarted, ..input });
    }
    if let (Some(look), Some(outcome)) = (look, &plan.outcome) {
        logging::signal(look.signal());
        logging::outcome(outcome);
    }
    logging::plan(&plan, answered);
    if ctx.settings.dry_run {
        plan.units.clear();
    }
    plan
}

/// Reports the results of the pass, performs restarts, and returns when the next pass is due.
async fn finish(job: &Job<'_>, subject: &mut Subject, memory: &mut Memory, done: Done) -> Result<Action, Error> {
    let Job { ctx, declared, traits, target, units, .. } = *job;
    let Done { mut results, plan, look, .. } = done;
    let mut plan = plan.unwrap_or_default();
    results.sort_by(|a, b| a.unit.name.cmp(&b.unit.name));
    let stamp = clock::now();
    let nodes: Vec<_> = results.iter().filter_map(|result| result.state.as_ref().ok()).flat_map(|state| &state.nodes).collect();
    let all = results.len() == units.len() && results.iter().all(|result| result.state.is_ok());
    memory.looked(&nodes, all, stamp);
    take_up(subject, memory, &plan, traits, &results, all);
    plan_changed(&mut plan, &results, traits, stamp);
    log_faults(memory, &results);

    let probe = verify::look(ctx, subject, memory, &results, all);
    let departed = restore::departed(ctx, subject, memory, units).await?;
    let written_down = plan.control.restart.clone();
    restart::look(ctx, subject, memory, &mut plan, traits, &results).await?;
    planted::panics("report", &subject.path);
    say(ctx, subject, memory, declared, traits, None, &plan, &results, look.as_ref()).await?;
    if let (Some(adaptation), Some(outcome), Some(look)) = (&mut memory.adaptation, &plan.outcome, &look) {
        let status = subject.object.status.clone().unwrap_or_default();
        let units = results.iter().filter_map(|result| Some((&result.unit, result.state.as_ref().ok()?)));
        adaptation.driver.commit(outcome, look.signal(), &status, traits, &memory.lives, units);
    }
    // Begin only restarts that are in the status by now.
    restart::act(ctx, subject, memory, &plan, target.as_ref(), &results).await;
    let mut next = next_look(ctx, subject, memory, &plan);
    next = next.min(hurried(&plan, &results, &written_down).unwrap_or(next));
    if departed {
        next = next.min(wait(2));
    }
    Ok(Action::requeue(probe.map_or(next, |probe| next.min(probe))))
}

/// Sizes the connection pool of the policy for the nodes that are read and sampled.
fn bound(ctx: &Context, subject: &Subject, memory: &Memory, units: usize) {
    let (nodes, every) = memory.adaptation.as_ref().map_or((0, ctx.settings.resync), Adaptation::asked);
    let settings = connections::settings(units.max(nodes), every.max(ctx.settings.resync));
    ctx.pool.provider(&subject.path).configure(settings);
}

/// Returns the requeue interval for changes that no event reports: restarts in progress, and files that are propagating.
fn hurried(plan: &Plan, results: &[UnitResult], written_down: &RestartControl) -> Option<Duration> {
    if plan.control.restart != *written_down {
        return Some(MOMENT);
    }
    let restarting = plan.restart.as_ref().is_some_and(|(outcome, _)| outcome.is_going_on());
    (restarting || is_propagating(results)).then_some(WHILE_RESTARTING)
}

/// Reports whether a file was changed recently and some pods do not report it yet. No event tells when they do.
fn is_propagating(results: &[UnitResult]) -> bool {
    let behind = |state: &UnitState| state.nodes.iter().any(|node| node.uses == Some(false));
    let fresh = |state: &UnitState| {
        let age = state.changed.map(|at| clock::now().duration_since(at));
        age.is_some_and(|age| age < decide::conditions::PROPAGATION)
    };
    results.iter().filter_map(|result| result.state.as_ref().ok()).any(|state| behind(state) && fresh(state))
}

/// Returns when the next pass is due if nothing happens: at the end of a back-off, contention or pause, and at the latest at the
/// resync.
fn next_look(ctx: &Context, subject: &Subject, memory: &Memory, plan: &Plan) -> Duration {
    let now = clock::now();
    let contended = contention::next_end(&plan.control.contended, now).and_then(|end| Timestamp::from_second(end + 1).ok());
    let contended = contended.and_then(|end| Duration::try_from(end.duration_since(now)).ok());
    let unwritten = memory.unwritten.values().filter_map(|unwritten| unwritten.due);
    let due = memory.failing.values().map(|failing| failing.due).chain(unwritten).min();
    let due = due.map(|due| due.saturating_duration_since(Instant::now()) + MOMENT);
    let pause = Pause::next_end(subject.object.annotations(), now)
        .and_then(|end| Duration::try_from(end.duration_since(now)).ok())
        .map(|left| left + MOMENT);
    due.into_iter().chain(contended).chain(pause).chain([resync(ctx, &subject.reference)]).min().unwrap_or(MOMENT)
}

/// Returns the units whose process has restarted since the last call, and records the start times.
async fn restarted(target: &dyn Target, units: &[&Unit], births: &mut BTreeMap<String, String>) -> BTreeSet<String> {
    let questions = units.iter().map(|unit| async { (unit.id.clone(), target.started(unit).await) });
    let mut restarted = BTreeSet::new();
    for (id, started) in futures::future::join_all(questions).await {
        let Some(started) = started else { continue };
        let before = births.insert(id.clone(), started.clone());
        if before.is_some_and(|before| before != started) {
            restarted.insert(id);
        }
    }
    restarted
}

/// Takes over from the status what the processes of the nodes use, after the operator has restarted.
fn take_up(subject: &Subject, memory: &mut Memory, plan: &Plan, traits: &Traits, results: &[UnitResult], all: bool) {
    let written = subject.object.status.as_ref().and_then(|status| status.control.as_ref()?.confirmed.as_ref());
    let Some(written) = written.filter(|_| all) else { return };
    let desired = lives::read_at_start(&plan.desired.settings, traits);
    let states = results.iter().filter_map(|result| result.state.as_ref().ok());
    let Some((nodes, changed)) = lives::answered(states) else { return };
    lives::take_up(&mut memory.lives, written, &nodes, &desired, changed);
}

/// Records when limits that need a restart were changed: an older process does not use them. A restored value is no change: a
/// process that was not restarted meanwhile has used it all the time.
fn plan_changed(plan: &mut Plan, results: &[UnitResult], traits: &Traits, now: Timestamp) {
    let put_back: BTreeSet<_> = plan.drift.iter().map(|drift| (drift.id.clone(), drift.knob)).collect();
    for result in results.iter().filter(|result| result.write.is_none()) {
        for change in plan.units.get(&result.unit.id).map(|unit| &unit.changes[..]).unwrap_or_default() {
            if put_back.contains(&(result.unit.id.clone(), change.site.knob)) {
                continue;
            }
            if traits.capability(change.site.knob) == decide::Capability::AfterRestart {
                plan.control.changed.insert(change.site.knob, now.as_millisecond());
            }
        }
    }
}

fn note(memory: &mut Memory, written: &[UnitResult], plan: &Plan) {
    let now = Instant::now();
    for result in written {
        let id = &result.unit.id;
        let changes = plan.units.get(id).map(|unit| &unit.changes[..]).unwrap_or_default();
        memory.ended(id, result.state.as_ref().err(), now);
        if memory.held_back(id, changes, now).is_none() {
            memory.written(id, changes, result.write.as_ref(), now);
        }
        if result.state.is_err() || result.write.is_some() {
            memory.unfinished.insert(id.clone());
        } else {
            memory.unfinished.remove(id);
        }
    }
}

/// Logs a fault of a unit once, and once that the unit recovered.
fn log_faults(memory: &mut Memory, results: &[UnitResult]) {
    for result in results {
        let said = match (&result.state, &result.write) {
            (Err(fault), _) | (Ok(_), Some(fault)) => fault.message.clone(),
            (Ok(_), None) => String::new(),
        };
        let known = memory.logged.contains_key(&result.unit.id);
        if (known || !said.is_empty()) && memory.news(&result.unit.id, &said) {
            if said.is_empty() {
                tracing::info!(unit = result.unit.name, "the unit recovered");
            } else {
                tracing::warn!(unit = result.unit.name, "{said}");
            }
        }
    }
}

/// Reports the results of the pass, or the problem that prevents it.
#[allow(clippy::too_many_arguments)] // A struct would repeat `Seen`.
async fn say(
    ctx: &Context,
    subject: &mut Subject,
    memory: &mut Memory,
    declared: &Declared,
    traits: &Traits,
    problem: Option<&Problem>,
    plan: &Plan,
    results: &[UnitResult],
    look: Option<&Look>,
) -> Result<(), Error> {
    let previous = subject.object.status.clone().unwrap_or_default();
    let log = memory.originals.as_ref();
    let files = look.and_then(Look::files);
    let observed = Observed {
        open_files: files.as_ref().map(|(percent, node)| (*percent, node.as_str())),
        cut_streams: cut_streams(results),
        ..Observed::default()
    };
    let probes = memory.verifier.as_ref().map(verify::Verifier::found);
    let verified = probes.as_ref().map(|probes| decide::verify::verified(results, probes));
    let observed = Observed { server_idle: verified.as_ref().and_then(|verified| verified.shared), ..observed };
    let advice = advice::advice(subject.spec(), declared, traits, observed);
    let mut plan = plan.clone();
    plan.control.events = previous.control.as_ref().map_or(0, |control| control.events);
    let seen = Seen {
        generation: subject.object.metadata.generation,
        suspend: subject.spec().suspend,
        declared,
        traits,
        problem,
        units: results,
        plan: &plan,
        saved: &memory.saved(),
        original: log.and_then(|log| log.records.keys().next_back()).map(|newest| originals::name(&subject.name, *newest)),
        lives: &memory.lives,
        adaptive: memory.adaptation.as_ref().zip(look).map(|(adaptation, look)| adaptation.driver.seen(look.signal())),
        advice: &advice,
        shared: subject.shared.then_some(SHARED),
        probes: probes.as_ref(),
        previous: &previous,
        now: clock::now(),
    };
    let (status, notices) = decide::conditions::report(&seen);
    let samples = memory.adaptation.as_ref().map(Adaptation::samples);
    ctx.live.passed(&subject.reference, truths(&seen, &status), samples, seen.now);
    match report::report(ctx, subject, &status, &notices).await {
        Ok(()) => {
            memory.logged.remove("status");
            subject.object.status = Some(status);
            Ok(())
        }
        // A rejected status must not block writes to the nodes.
        Err(Error::StatusRefused(message)) => {
            if memory.news("status", &message) {
                tracing::error!(error = message, "the API server rejected the status of this policy");
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

async fn problem_report(
    ctx: &Context,
    subject: &mut Subject,
    memory: &mut Memory,
    declared: &Declared,
    traits: &Traits,
    problem: &Problem,
) -> Result<Action, Error> {
    let control = subject.object.status.as_ref().and_then(|status| status.control.clone()).unwrap_or_default();
    let plan = Plan { control, desired: declared.clone(), ..Plan::default() };
    if memory.news("problem", &problem.message) {
        tracing::warn!(reason = %problem.reason, "{}", problem.message);
    }
    Box::pin(say(ctx, subject, memory, declared, traits, Some(problem), &plan, &[], None)).await?;
    let times = memory.failing.get("").map_or(0, |failing| failing.times);
    memory.ended("", Some(&Fault::new(Cause::Unreachable, problem.message.clone())), Instant::now());
    // No event reports that a missing reference or cluster appears: retry with a growing interval.
    Ok(Action::requeue(wait(times).min(resync(ctx, &subject.reference))))
}

/// Adds the finalizer before anything is saved or written.
async fn finalizer(ctx: &Context, subject: &mut Subject) -> Result<(), Error> {
    if subject.object.finalizers().iter().any(|f| f == FINALIZER) || ctx.settings.dry_run {
        return Ok(());
    }
    let mut finalizers = subject.object.finalizers().to_vec();
    finalizers.push(FINALIZER.into());
    let status = subject.object.status.take();
    subject.object = set_finalizers(ctx, subject, &finalizers).await?.read().map_err(Error::Unreadable)?.0;
    if subject.object.status.is_none() {
        subject.object.status = status.or_else(|| Some(IdleConnectionPolicyStatus::default()));
    }
    Ok(())
}

/// Writes the list of finalizers. Fails if another client has written the object since.
pub async fn set_finalizers(ctx: &Context, subject: &Subject, finalizers: &[String]) -> Result<StoredPolicy, Error> {
    let api = Api::<StoredPolicy>::namespaced(ctx.client.clone(), &subject.namespace);
    let patch =
        json!({"metadata": {"finalizers": finalizers, "resourceVersion": subject.object.resource_version(), "uid": subject.uid}});
    in_time(api.patch(&subject.name, &PatchParams::default(), &Patch::Merge(patch))).await
}

/// Returns the resync interval of a policy, spread by a tenth so that policies are not resynced at the same time.
fn resync(ctx: &Context, policy: &PolicyRef) -> Duration {
    let spread = policy.name.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 200;
    ctx.settings.resync * (900 + spread) / 1000
}
