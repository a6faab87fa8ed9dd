//! Builds the status and the Events from what was observed and done. They never state more than was observed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::condition::{
    ConditionText, Notice, condition, count, find, has_flipped, reason, said, shortened, shortened_to_bytes, state,
};
use crate::api::{
    IdleConnectionPolicyStatus, Limit, LimitValues, Limits, Value,
    conditions::{ConditionType, EventReason, Reason, State},
    status::{Confirmed, MAX_NODES_NAMED, NAME_LENGTH, NodeCause, Nodes, ObjectName, PendingRestart, StatusLimits},
    wording::{listed, of_nodes},
};
use crate::decide::{
    Capability, Cause, Declared, Drift, Fault, NodeState, PacedBy, Plan, Sites, TargetCapabilities, Unit, UnitResult, UnitState,
    adaptive::report::{self, SeenLoop},
    advice::Advice,
    originals::Saved,
    report::update::UpdateProgress,
    restart::{self, RestartReport as RestartState},
    uptimes::{self, Lives},
    verify::{Probes, refined, verified},
};

/// How long a changed file may take to reach a pod: the kubelet looks each minute, its cache may be as old again, and the pod reads.
pub const PROPAGATION: SignedDuration = SignedDuration::from_secs(180);

/// Why the nodes of a policy cannot be read at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The reason of the condition Ready.
    pub reason: Reason,
    /// What happened, to which object, and what to do.
    pub message: String,
    /// Whether Accepted is False: the policy is not valid, has no target, or lost its target to an older policy.
    pub refused: bool,
    /// Whether Stalled is True: the problem remains until a person removes its cause.
    pub stalled: bool,
}

impl Problem {
    /// The policy is not valid, or may not govern its target: Accepted is False, and Stalled is True.
    #[must_use]
    pub fn invalid(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), refused: true, stalled: true }
    }

    /// The policy is valid, but the operator lacks a right: Stalled is True.
    #[must_use]
    pub fn blocked(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), refused: false, stalled: true }
    }

    /// The policy is valid, and the operator retries: an object that it refers to is missing, or a server does not answer.
    #[must_use]
    pub fn waiting(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), refused: false, stalled: false }
    }

    /// The target does not exist: Accepted is False, and the operator retries.
    #[must_use]
    pub fn no_target(message: impl Into<String>) -> Self {
        Self { reason: Reason::TargetNotFound, message: message.into(), refused: true, stalled: false }
    }
}

/// Everything that a report depends on.
pub struct ReportInput<'a> {
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `spec.suspend`.
    pub suspend: bool,
    /// What the policy declares.
    pub declared: &'a Declared,
    /// What the target can do.
    pub traits: &'a TargetCapabilities,
    /// What prevents the operator from looking at the nodes; the rest is then empty.
    pub problem: Option<&'a Problem>,
    /// The units.
    pub units: &'a [UnitResult],
    /// The plan of this reconcile.
    pub plan: &'a Plan,
    /// What the units held before the first write.
    pub saved: &'a BTreeMap<String, Saved>,
    /// The newest record of the original values.
    pub original: Option<String>,
    /// What the nodes' processes are known to use.
    pub lives: &'a Lives,
    /// What adaptive control observed, if the policy has it.
    pub adaptive: Option<SeenLoop<'a>>,
    /// Advice on the policy.
    pub advice: &'a [Advice],
    /// The message of Accepted if a policy of another namespace governs a target that states the same identity.
    pub shared: Option<&'a str>,
    /// The update, if nodes wait for a later batch.
    pub update: Option<&'a UpdateProgress>,
    /// The nodes' probes; `None` where nothing is to be measured.
    pub probes: Option<&'a Probes>,
    /// The current status of the policy.
    pub previous: &'a IdleConnectionPolicyStatus,
    /// The current time.
    pub now: Timestamp,
}

impl ReportInput<'_> {
    /// What the nodes should hold: the declared limits at the current openness.
    const fn desired(&self) -> &Declared {
        if self.problem.is_some() { self.declared } else { &self.plan.desired }
    }

    /// What the nodes hold, with the number of limits where the target does not have all of them.
    fn held(&self, tally: &Tally) -> String {
        let which = self.which();
        let missing = self.declared.unsupported.union(&tally.placeless).count();
        if missing == 0 {
            return format!("the {which} limits");
        }
        let all = self.declared.settings.keys().chain(&self.declared.unsupported).collect::<BTreeSet<_>>().len();
        format!("{} of {all} {which} limits (see status.unsupported)", all - missing)
    }

    /// What to call these limits: "declared" if they are the declared ones.
    fn which(&self) -> &'static str {
        if self.desired().settings == self.declared.settings { "declared" } else { "desired" }
    }
}

/// The nodes' reports, counted.
#[derive(Debug, Default)]
struct Tally {
    nodes: Nodes,
    answered: u32,
    programmed: LimitValues,
    in_effect: LimitValues,
    pending: BTreeSet<String>,
    pending_limits: BTreeSet<Limit>,
    behind: BTreeSet<String>,
    unknown: BTreeSet<Limit>,
    companions: LimitValues,
    placeless: BTreeSet<Limit>,
    /// Whether some node has any of the declared limits.
    governs: bool,
    write_fault: Option<Fault>,
    changed: BTreeMap<Limit, i64>,
}

/// The reason of Ready=False for a fault that affects everything.
#[must_use]
pub const fn failure(cause: Cause) -> Reason {
    match cause {
        Cause::Unauthorized => Reason::Unauthorized,
        Cause::Forbidden => Reason::Forbidden,
        Cause::Certificate => Reason::CertificateInvalid,
        Cause::NotPermitted => Reason::RefNotPermitted,
        Cause::NotFound => Reason::TargetNotFound,
        Cause::Conflict => Reason::Conflicted,
        Cause::Unreachable | Cause::NotReady | Cause::Busy | Cause::Rejected => Reason::ProgrammingFailed,
    }
}

/// The status that follows from what was observed, and the Events that are new in it.
#[must_use]
pub fn report(seen: &ReportInput<'_>) -> (IdleConnectionPolicyStatus, Vec<Notice>) {
    let tally = count_nodes(seen);
    let mut status = IdleConnectionPolicyStatus {
        observed_generation: seen.generation,
        conditions: conditions(seen, &tally),
        unsupported: seen.declared.unsupported.union(&tally.placeless).map(ToString::to_string).collect(),
        pending_restart: (!tally.pending.is_empty()).then(|| PendingRestart {
            count: count(tally.pending.len()),
            nodes: tally.pending.iter().take(MAX_NODES_NAMED).map(|name| shortened_to_bytes(name, NAME_LENGTH)).collect(),
        }),
        original_ref: seen.original.clone().map(|name| ObjectName { name }),
        ..IdleConnectionPolicyStatus::default()
    };
    let present = |settings: &LimitValues| (!settings.is_empty()).then(|| Limits::from(settings));
    let mut limits = StatusLimits { declared: present(&seen.declared.settings), ..StatusLimits::default() };
    let mut control = seen.plan.control.clone();
    if seen.problem.is_none() {
        let desired = &seen.plan.desired.settings;
        limits.desired = (*desired != seen.declared.settings).then(|| Limits::from(desired));
        limits.programmed = present(&tally.programmed);
        limits.in_effect = present(&tally.in_effect);
        limits.measured = measured(seen);
        control.confirmed = confirmed(seen, &tally);
        control.changed = tally.changed;
        let Nodes { programmed, total, .. } = tally.nodes;
        status.update = seen.update.map(|update| update.status(seen.generation, programmed, total));
        status.nodes = Some(tally.nodes);
    }
    status.limits = (limits != StatusLimits::default()).then_some(limits);

    let mut notices = notices(seen, &status);
    if let (Some(adaptive), Some(outcome), None) = (&seen.adaptive, &seen.plan.outcome, seen.problem) {
        notices.extend(report::write_adaptive_status(
            adaptive,
            outcome,
            &seen.declared.settings,
            seen.previous,
            &mut status,
            seen.now,
        ));
    } else if seen.problem.is_some() {
        // The nodes were not queried, so the earlier decisions still hold.
        status.openness_percent = seen.previous.openness_percent;
        status.update = seen.previous.update.clone().filter(|_| seen.problem.is_some_and(|problem| !problem.refused));
        status.history.clone_from(&seen.previous.history);
    }
    if let (Some(first), None) = (seen.advice.first(), seen.problem)
        && control.advised != seen.generation
    {
        control.advised = seen.generation;
        let more = match seen.advice.len() - 1 {
            0 => String::new(),
            more => format!("; {more} more from kubectl idleconn lint"),
        };
        notices.push(Notice { reason: EventReason::Advice, note: format!("{first}{more}") });
    }
    control.events = control.events.wrapping_add(count(notices.len())) & 0x7fff_ffff;
    status.control = (control != crate::api::status::Control::default()).then_some(control);
    (status, notices)
}

/// What was measured before, as long as this process has not measured a node yet: a new leader has no probes.
fn carried(seen: &ReportInput<'_>) -> Option<ConditionText> {
    let is_same = seen.previous.observed_generation == seen.generation;
    let before = find(seen.previous, ConditionType::InEffect).filter(|_| is_same && seen.probes.is_some_and(Probes::is_empty))?;
    let measured = [Reason::Measured, Reason::MeasuredDifferently, Reason::NotMeasured];
    let reason = reason(seen.previous, ConditionType::InEffect).filter(|reason| measured.contains(reason))?;
    Some(said(reason, &before.message))
}

fn measured(seen: &ReportInput<'_>) -> Option<Limits> {
    if seen.probes.is_some_and(Probes::is_empty) && seen.previous.observed_generation == seen.generation {
        return seen.previous.limits.as_ref().and_then(|limits| limits.measured.clone());
    }
    let shared = verified(seen.units, seen.probes?).shared?;
    Some(Limits::from(&LimitValues::from([(Limit::ServerIdleTimeout, Value::Duration(shared))])))
}

/// The record of processes that read their settings when they start.
fn confirmed(seen: &ReportInput<'_>, tally: &Tally) -> Option<Confirmed> {
    let desired = uptimes::read_at_start(&seen.desired().settings, seen.traits);
    if desired.is_empty() {
        return None;
    }
    let (nodes, changed) = uptimes::answered(seen.units.iter().filter_map(|result| result.state.as_ref().ok()))?;
    let uses = |node: &NodeState| {
        let used = |key| in_use(key, seen.traits, &tally.changed, seen.lives, node) == Some(true);
        let stored = node.stored.as_ref().ok();
        stored.is_some_and(|stored| desired.iter().all(|(key, value)| stored.get(key) == Some(&Some(*value)) && used(*key)))
    };
    let now = uptimes::confirmation(&nodes, uses, &desired, changed)?;
    // Two readings of the same time differ slightly; that must not change the status.
    let before = seen.previous.control.as_ref().and_then(|control| control.confirmed.clone());
    Some(before.filter(|before| uptimes::agree(before, &now)).unwrap_or(now))
}

fn count_nodes(seen: &ReportInput<'_>) -> Tally {
    let mut tally = Tally::default();
    let traits = seen.traits;
    let mut changed = seen.plan.control.changed.clone();
    let desired = seen.desired();
    changed.retain(|key, _| desired.settings.contains_key(key));
    let mut programmed: BTreeMap<Limit, BTreeSet<Option<Value>>> = BTreeMap::new();
    let mut used: BTreeMap<Limit, BTreeSet<Option<Value>>> = BTreeMap::new();
    let mut with_place = BTreeSet::new();
    let (mut silent, mut drifted) = (Vec::new(), Vec::new());
    let cause = |name: &str, cause: &str| NodeCause { name: name.to_owned(), cause: cause.to_owned() };

    for result in seen.units {
        if tally.write_fault.is_none() || result.write.as_ref().is_some_and(|f| f.cause == Cause::Rejected) {
            tally.write_fault = result.write.as_ref().map(|fault| of_unit(&result.unit, fault)).or(tally.write_fault);
        }
        silent.extend(result.state.as_ref().err().map(|fault| cause(&result.unit.name, &fault.message)));
        let Ok(state) = &result.state else { continue };
        let saved = seen.saved.get(&result.unit.id).map(|saved| &*saved.sites);
        let settings = crate::decide::settings(desired, traits, &result.unit, state, saved);
        tally.companions.extend(settings.iter().filter(|(key, _)| !desired.settings.contains_key(key)));
        with_place.extend(settings.keys().copied().filter(|key| state.has_place(*key)));
        let not_back = crate::decide::not_back(&settings, state, saved);
        evidence(&mut changed, &settings, traits, state, saved);
        for node in &state.nodes {
            silent.extend(node.stored.as_ref().err().map(|fault| cause(&node.name, &fault.message)));
            let Ok(stored) = &node.stored else { continue };
            tally.answered += 1;
            let differs: Vec<_> =
                settings.iter().filter(|(key, value)| stored.get(key).is_some_and(|s| s != &Some(**value))).collect();
            let mut all_used = differs.is_empty() && not_back.is_empty();
            if !all_used {
                let waits = seen.update.filter(|update| update.waiting.contains(&result.unit.name)).map(UpdateProgress::cause);
                let held = || waits.unwrap_or_else(|| describe_difference(&differs, stored, seen.declared, &not_back));
                drifted.push(cause(&node.name, &result.write.as_ref().map_or_else(held, |fault| fault.message.clone())));
            }
            for (&key, &value) in &settings {
                let Some(&stored) = stored.get(&key) else { continue };
                programmed.entry(key).or_default().insert(stored);
                let in_use = in_use(key, traits, &changed, seen.lives, node);
                if in_use.is_none() {
                    tally.unknown.insert(key);
                } else if in_use == Some(false) && stored == Some(value) {
                    if matches!(traits.capability(key), Capability::Reported(_)) {
                        tally.behind.insert(node.name.clone());
                    } else {
                        tally.pending.insert(node.name.clone());
                        tally.pending_limits.insert(key);
                    }
                }
                all_used &= in_use == Some(true);
                used.entry(key).or_default().insert(if in_use == Some(true) { stored } else { None });
            }
            tally.nodes.in_effect += u32::from(all_used);
        }
    }

    tally.nodes.unreachable = count(silent.len());
    tally.nodes.drifted = count(drifted.len());
    tally.nodes.programmed = tally.answered - tally.nodes.drifted;
    tally.nodes.total = tally.answered + tally.nodes.unreachable;
    silent.sort_by(|a, b| a.name.cmp(&b.name));
    drifted.sort_by(|a, b| a.name.cmp(&b.name));
    let named = silent.iter().chain(&drifted).take(MAX_NODES_NAMED);
    let short = |node: &NodeCause| cause(&shortened_to_bytes(&node.name, NAME_LENGTH), &shortened(&node.cause, 240));
    tally.nodes.worst = named.map(short).collect();
    tally.nodes.summary = format!("{}/{}", tally.nodes.programmed, tally.nodes.total);
    tally.programmed = shared(&programmed);
    tally.in_effect = shared(&used);
    if tally.answered > 0 {
        let supported: BTreeSet<_> =
            seen.declared.written.iter().copied().filter(|key| seen.declared.settings.contains_key(key)).collect();
        tally.placeless = supported.difference(&with_place).copied().collect();
        tally.governs = !with_place.is_empty() || (seen.declared.settings.is_empty() && seen.declared.unsupported.is_empty());
    }
    tally.changed = changed;
    tally
}

/// Adds the unit's name to a fault, because a condition is read alone.
fn of_unit(unit: &Unit, fault: &Fault) -> Fault {
    let is_named = fault.message.contains(&unit.name);
    Fault { message: if is_named { fault.message.clone() } else { format!("{}: {}", unit.name, fault.message) }, ..fault.clone() }
}

/// Limits of which all nodes have the same value.
fn shared(values: &BTreeMap<Limit, BTreeSet<Option<Value>>>) -> LimitValues {
    let same = values.iter().filter(|(_, values)| values.len() == 1);
    same.filter_map(|(key, values)| Some((*key, (*values.first()?)?))).collect()
}

/// If a restart is needed and the time of the change is not recorded (the process may have died right after the write),
/// the unit's own timestamp is the latest possible time.
fn evidence(
    changed: &mut BTreeMap<Limit, i64>,
    settings: &LimitValues,
    traits: &TargetCapabilities,
    state: &UnitState,
    saved: Option<&Sites>,
) {
    let Some(latest) = state.changed else { return };
    for (site, stored) in &state.sites {
        let ours = saved.and_then(|sites| sites.get(site)).is_some_and(|original| *original != stored.raw);
        if settings.contains_key(&site.limit) && traits.capability(site.limit) == Capability::AfterRestart && ours {
            changed.entry(site.limit).or_insert(latest.as_millisecond());
        }
    }
}

/// Whether a process uses what its node stores; `None` if that is not known.
pub(in crate::decide) fn in_use(
    key: Limit,
    traits: &TargetCapabilities,
    changed: &BTreeMap<Limit, i64>,
    lives: &Lives,
    node: &NodeState,
) -> Option<bool> {
    match traits.capability(key) {
        Capability::Hot | Capability::Flush(_) => Some(true),
        Capability::Reported(_) => node.uses,
        Capability::AfterRestart | Capability::Unsupported => {
            let stored = node.stored.as_ref().ok()?.get(&key).copied()??;
            lives.get(&node.name)?.uses(key, stored, changed.get(&key).copied())
        }
    }
}

/// The nodes, as far as restarts go, and when the newest change that needs one was made (Unix milliseconds).
#[must_use]
pub fn restart_candidates<'a>(
    desired: &Declared,
    traits: &TargetCapabilities,
    changed: &BTreeMap<Limit, i64>,
    lives: &Lives,
    saved: &BTreeMap<String, Saved>,
    units: &'a [UnitResult],
) -> (Vec<restart::eviction::Node<'a>>, i64) {
    let mut changed = changed.clone();
    changed.retain(|key, _| desired.settings.contains_key(key));
    let mut nodes = Vec::new();
    for result in units {
        let Ok(state) = &result.state else { continue };
        let saved = saved.get(&result.unit.id).map(|saved| &*saved.sites);
        let settings = crate::decide::settings(desired, traits, &result.unit, state, saved);
        evidence(&mut changed, &settings, traits, state, saved);
        for node in &state.nodes {
            let pending = node.stored.as_ref().is_ok_and(|stored| {
                let stores = |(key, value): (&Limit, &Value)| stored.get(key).is_none_or(|stored| *stored == Some(*value));
                let unused = |key: &Limit| in_use(*key, traits, &changed, lives, node) == Some(false);
                settings.iter().all(stores) && settings.keys().filter(|key| stored.contains_key(key)).any(unused)
            });
            nodes.push(restart::eviction::Node {
                name: &node.name,
                pending,
                answers: node.stored.is_ok(),
                process: node.process.as_ref(),
            });
        }
    }
    (nodes, changed.into_values().max().unwrap_or(0))
}

fn describe_difference(
    differs: &[(&Limit, &Value)],
    stored: &BTreeMap<Limit, Option<Value>>,
    declared: &Declared,
    not_back: &BTreeSet<Limit>,
) -> String {
    let dropped = not_back.iter().map(|key| format!("{key} is no longer declared and does not have its original value yet"));
    let parts: Vec<_> = differs
        .iter()
        .map(|(key, value)| {
            let found = stored.get(key).copied().flatten().map_or_else(|| "not set".into(), |v| v.to_string());
            let as_declared = declared.settings.get(key).is_none_or(|declared| declared == *value);
            format!("{key} is {found}, {} {value}", if as_declared { "declared" } else { "desired" })
        })
        .chain(dropped)
        .collect();
    parts.join("; ")
}

fn conditions(seen: &ReportInput<'_>, tally: &Tally) -> Vec<Condition> {
    let accepted = match seen.problem {
        Some(problem) if problem.refused => said(problem.reason, &problem.message),
        None if seen.shared.is_some() => said(Reason::SharedIdentity, seen.shared.unwrap_or_default()),
        _ => said(Reason::Accepted, accepted_message(seen)),
    };
    let rejected = tally.write_fault.as_ref().filter(|fault| fault.cause == Cause::Rejected);
    let ready = ready(seen, tally);
    let mut all = vec![(ConditionType::Accepted, accepted), (ConditionType::Ready, ready.clone())];
    let is_ready = state(ConditionType::Ready, ready.reason) == State::True;
    let stalled = match (seen.problem, rejected) {
        (Some(problem), _) => problem.stalled.then(|| said(problem.reason, &problem.message)),
        (None, Some(fault)) => Some(said(Reason::Rejected, &fault.message)),
        (None, None) => (ready.reason == Reason::Forbidden).then(|| ready.clone()),
    };
    match stalled {
        Some(stalled) => all.push((ConditionType::Stalled, stalled)),
        None if !is_ready => {
            let reason = if ready.reason == Reason::Progressing { Reason::Progressing } else { Reason::Retrying };
            all.push((ConditionType::Reconciling, said(reason, ready.message)));
        }
        None => {}
    }
    if seen.problem.is_none() {
        all.push((ConditionType::Programmed, programmed(seen, tally)));
        all.push((ConditionType::InEffect, in_effect(seen, tally)));
    }
    all.iter().map(|(type_, said)| condition(*type_, said, seen.generation, seen.previous, seen.now)).collect()
}

fn accepted_message(seen: &ReportInput<'_>) -> String {
    let Some((key, value)) = seen.declared.capped.iter().next() else {
        return "The policy is valid and governs its target".into();
    };
    let more = seen.declared.capped.len() - 1;
    let others = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("The policy is valid; the preset is limited to the maximum of the target: {key} {value}{others}")
}

fn ready(seen: &ReportInput<'_>, tally: &Tally) -> ConditionText {
    if let Some(problem) = seen.problem {
        return said(problem.reason, &problem.message);
    }
    let nodes = &tally.nodes;
    if seen.suspend {
        return said(Reason::Suspended, "spec.suspend is true; nothing is written to the nodes");
    }
    if tally.answered > 0 && !tally.governs {
        return said(Reason::NothingToProgram, nothing(seen));
    }
    if tally.answered == 0 {
        let fault = seen.units.iter().find_map(|result| result.state.as_ref().err());
        let reason = fault.map_or(Reason::ProgrammingFailed, |fault| failure(fault.cause));
        return said(
            reason,
            if nodes.total == 0 { "The target has no nodes".into() } else { format!("No node answered{}", worst(nodes)) },
        );
    }
    match &tally.write_fault {
        Some(fault) if matches!(fault.cause, Cause::Forbidden | Cause::Unauthorized) => {
            return said(failure(fault.cause), &fault.message);
        }
        Some(fault) if matches!(fault.cause, Cause::NotReady | Cause::Unreachable | Cause::Busy) && nodes.drifted == 0 => {}
        Some(fault) => return said(Reason::ProgrammingFailed, fault.message.clone()),
        None => {}
    }
    let held = seen.held(tally);
    if nodes.drifted > 0 {
        // Drift that is reported, contended or being corrected does not make this generation unwritten.
        let known = !seen.plan.drift.is_empty() || !seen.plan.contended.is_empty();
        // Limits that adaptive control moves were once written as declared: that stays true.
        let was_ready = seen.previous.observed_generation == seen.generation
            && reason(seen.previous, ConditionType::Ready) == Some(Reason::Succeeded);
        let moving = seen.plan.outcome.as_ref().is_some_and(|outcome| !outcome.state.changes.is_empty());
        return if known {
            said(Reason::Succeeded, "Declared limits were applied; another client has changed a node since (see Programmed)")
        } else if was_ready && moving {
            said(Reason::Succeeded, "Declared limits were applied; adaptive control has changed them since (see Tightened)")
        } else {
            progressing(seen, tally)
                .unwrap_or_else(|| said(Reason::Progressing, format!("{} hold {held}", of_nodes(nodes.programmed, nodes.total))))
        };
    }
    let message = if nodes.unreachable > 0 {
        format!("{} answered and hold {held}", of_nodes(nodes.programmed, nodes.total))
    } else {
        format!("{} {held}", all_nodes(nodes.total, "holds", "hold"))
    };
    said(Reason::Succeeded, message)
}

fn programmed(seen: &ReportInput<'_>, tally: &Tally) -> ConditionText {
    let nodes = &tally.nodes;
    let some = || format!("{} hold {}{}", of_nodes(nodes.programmed, nodes.total), seen.held(tally), worst(nodes));
    let spreading = || match seen.traits.paced_by {
        Some(PacedBy::Cluster) if tally.write_fault.is_none() => {
            format!("{}; the cluster itself spreads a change to its nodes", some())
        }
        _ => some(),
    };
    if nodes.drifted > 0 {
        return match seen.plan.drift.first() {
            _ if !seen.plan.contended.is_empty() => said(Reason::Contended, contended(seen, tally)),
            Some(drift) => said(Reason::Drifted, drifted(drift)),
            None => progressing(seen, tally).unwrap_or_else(|| said(Reason::Progressing, spreading())),
        };
    }
    if nodes.total == 0 {
        return said(Reason::Partial, "The target has no nodes");
    }
    if nodes.unreachable > 0 {
        return said(Reason::Partial, some());
    }
    if !tally.governs {
        return said(Reason::NothingToProgram, nothing(seen));
    }
    let more = match tally.companions.iter().next() {
        Some((key, value)) => format!("{key} was lowered to {value} with maxIdleConns"),
        None => "the operator read them back".into(),
    };
    said(Reason::Programmed, format!("{} {}; {more}", all_nodes(nodes.total, "stores", "store"), seen.held(tally)))
}

/// The condition during an update that writes the nodes in batches.
fn progressing(seen: &ReportInput<'_>, tally: &Tally) -> Option<ConditionText> {
    let update = seen.update?;
    let held = format!("{} hold {}", of_nodes(tally.nodes.programmed, tally.nodes.total), seen.held(tally));
    let reason = if update.stopped_by.is_some() { Reason::UpdateStopped } else { Reason::Progressing };
    Some(said(reason, update.message(&held)))
}

/// For example `The node holds` or `All 3 nodes hold`.
fn all_nodes(n: u32, one: &str, many: &str) -> String {
    if n == 1 { format!("The node {one}") } else { format!("All {n} nodes {many}") }
}

/// The worst node and its cause, as the end of a sentence.
fn worst(nodes: &Nodes) -> String {
    match nodes.worst.first() {
        Some(node) if node.cause.contains(&node.name) => format!("; {}", node.cause),
        Some(node) => format!("; {}: {}", node.name, node.cause),
        None => String::new(),
    }
}

/// Which limits are left alone, what they hold, and until when.
fn contended(seen: &ReportInput<'_>, tally: &Tally) -> String {
    let desired = &seen.desired().settings;
    let field = |key: &Limit| {
        let drift = seen.plan.drift.iter().find(|drift| drift.limit == *key);
        let found = drift.map_or_else(|| tally.programmed.get(key).copied(), |drift| drift.found);
        let now = found.map_or_else(|| "different on the nodes".into(), |found| format!("now {found}"));
        let declared = desired.get(key).map_or_else(String::new, |value| format!(", declared {value}"));
        format!("{key} ({now}{declared})")
    };
    let fields: Vec<_> = seen.plan.contended.iter().map(field).collect();
    let ends = seen.plan.contended.iter().filter_map(|key| seen.plan.control.contended.get(key).map(|[_, _, until]| *until));
    let until = ends.min().and_then(|end| Timestamp::from_second(end).ok());
    let until = until.map_or_else(String::new, |until| format!(" until {until}"));
    format!(
        "Another client keeps changing {}; the operator leaves it alone{until}. Stop the other client, or declare its value; a new \
         version of the policy is written at once",
        listed(&fields)
    )
}

/// The message if none of the declared limits can be written.
fn nothing(seen: &ReportInput<'_>) -> String {
    let limits: Vec<_> = seen.declared.settings.keys().chain(&seen.declared.unsupported).map(|key| key.path()).collect();
    format!(
        "No node has a place for any declared limit ({}); check that the policy points at the server that has them (see \
         status.unsupported)",
        listed(&limits)
    )
}

/// Whether a unit that another client changed stores the desired value again.
fn holds_now(seen: &ReportInput<'_>, drift: &Drift) -> bool {
    let of = seen.units.iter().find(|result| result.unit.id == drift.id).and_then(|result| result.state.as_ref().ok());
    of.is_some_and(|state| {
        state.sites.iter().filter(|(site, _)| site.limit == drift.limit).all(|(_, stored)| stored.value == Some(drift.declared))
    })
}

/// The message about drift, for the condition and the Event.
fn drifted(drift: &Drift) -> String {
    let Drift { unit, limit: key, declared, .. } = drift;
    let found = drift.found.map_or_else(|| "unset".into(), |found| found.to_string());
    if drift.restarted {
        return format!("{unit} restarted with {key} {found} instead of {declared}");
    }
    format!("Another client changed {key} of {unit} to {found} instead of {declared}")
}

/// What configurations and processes report, and what probes add to it.
fn in_effect(seen: &ReportInput<'_>, tally: &Tally) -> ConditionText {
    let said = in_effect_said(seen, tally);
    let Some(probes) = seen.probes else { return said };
    if let Some(before) = carried(seen).filter(|_| state(ConditionType::InEffect, said.reason) == State::True) {
        return before;
    }
    refined(said, &verified(seen.units, probes))
}

fn in_effect_said(seen: &ReportInput<'_>, tally: &Tally) -> ConditionText {
    let nodes = &tally.nodes;
    if tally.answered == 0 {
        return said(Reason::NotObserved, "No node answered");
    }
    if !tally.governs {
        return said(Reason::NothingToProgram, "None of the declared limits can be written to the target (see Programmed)");
    }
    let using = format!("{} use {}", of_nodes(nodes.in_effect, nodes.total), seen.held(tally));
    if let Some((reason, doing)) = restarting(seen) {
        return said(reason, format!("{using}; {doing}"));
    }
    if !tally.pending.is_empty() {
        let keys: Vec<_> = tally.pending_limits.iter().map(|key| key.path()).collect();
        let named: Vec<_> = tally.pending.iter().map(|name| shortened_to_bytes(name, 80)).collect();
        let message = format!(
            "{} use {} only after a restart ({})",
            of_nodes(count(named.len()), nodes.total),
            listed(&keys),
            listed(&named)
        );
        return said(Reason::RestartRequired, message);
    }
    if !tally.behind.is_empty() {
        return behind(seen, tally);
    }
    if let Some(known) = known_otherwise(seen) {
        return known;
    }
    if nodes.drifted > 0 || nodes.unreachable > 0 {
        let message = format!("Not all nodes are known to hold the {} limits (see Programmed)", seen.which());
        return said(Reason::NotObserved, message);
    }
    if !tally.unknown.is_empty() && seen.traits.file.is_some() {
        let message = format!("{using}; the other nodes do not report what they use, and started before the file was written");
        return said(Reason::NotObserved, message);
    }
    if !tally.unknown.is_empty() {
        let message = format!(
            "{using}; the other nodes were not observed to start with these values. A restart confirms it, and is not needed if their own files have these values"
        );
        return said(Reason::NotObserved, message);
    }
    let using = match nodes.total {
        1 => "The process of the node uses".into(),
        total => format!("The processes of all {total} nodes use"),
    };
    said(Reason::InEffect, format!("{using} {}", seen.held(tally)))
}

/// The reason and the message of `InEffect` while a restart is in progress or due; `None` otherwise.
fn restarting(seen: &ReportInput<'_>) -> Option<(Reason, String)> {
    let (restart, why) = seen.plan.restart.as_ref()?;
    let why = why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    let (reason, doing) = match restart.said.as_ref()? {
        RestartState::Rolling(node) => (Reason::RollingOut, format!("restarting {node}")),
        RestartState::Stalled(node) => {
            (Reason::RestartStalled, format!("{node} did not come back in time, and no other node is restarted"))
        }
        RestartState::Unavailable(node) => {
            (Reason::RestartRequired, format!("no node is restarted while {node} is out of service"))
        }
        RestartState::Budget => {
            let spent = "the restarts of the last 24 hours are used up (restart.maxPerDay)";
            return Some((Reason::RestartRequired, spent.into()));
        }
        RestartState::NoWorkload => (Reason::RestartRequired, "the workload of the selected pods is not known".into()),
        RestartState::NoPod(node) => (Reason::RestartRequired, format!("the pod of {node} is not known")),
    };
    Some((reason, doing + &why))
}

/// What is known where another client changed a limit that a process uses as soon as it is stored.
fn known_otherwise(seen: &ReportInput<'_>) -> Option<ConditionText> {
    let is_used = |drift: &&Drift| matches!(seen.traits.capability(drift.limit), Capability::Hot | Capability::Flush(_));
    let drift = seen.plan.drift.iter().filter(is_used).find(|drift| !holds_now(seen, drift))?;
    let reason = if seen.plan.contended.is_empty() { Reason::Drifted } else { Reason::Contended };
    let found = drift.found.map_or_else(|| "its default".into(), |found| found.to_string());
    let Drift { unit, limit: key, declared, .. } = drift;
    Some(said(reason, format!("{unit} uses {key} {found} instead of {declared} (see Programmed)")))
}

/// The message if some pods report an older file.
fn behind(seen: &ReportInput<'_>, tally: &Tally) -> ConditionText {
    let (names, nodes): (Vec<_>, _) = (tally.behind.iter().collect(), &tally.nodes);
    let written = seen.units.iter().filter_map(|result| result.state.as_ref().ok()?.changed).max();
    let counted = format!("{} of {} pods report the new settings", nodes.in_effect, nodes.total);
    if written.is_some_and(|at| seen.now.duration_since(at) < PROPAGATION) {
        let message = format!(
            "{counted}; {} may not have received the file from the kubelet yet, which takes up to three minutes",
            listed(&names)
        );
        return said(Reason::Propagating, message);
    }
    let (verb, them) = if names.len() == 1 { ("reports", "it if it reads") } else { ("report", "them if they read") };
    let message = format!("{counted}; {} still {verb} an older file. Restart {them} the file only at start", listed(&names));
    said(Reason::RestartRequired, message)
}

fn notices(seen: &ReportInput<'_>, status: &IdleConnectionPolicyStatus) -> Vec<Notice> {
    let mut notices = Vec::new();
    let mut tell = |reason, note: &str| notices.push(Notice { reason, note: note.to_owned() });
    let new_generation = seen.previous.observed_generation != seen.generation;
    let is_silent = status.nodes.as_ref().is_some_and(|nodes| nodes.unreachable > 0);
    for node in seen.plan.restart.iter().flat_map(|(restart, _)| &restart.finished) {
        tell(EventReason::NodeRestarted, &format!("{node} was restarted and uses the {} limits", seen.which()));
    }
    for type_ in [ConditionType::Accepted, ConditionType::Programmed, ConditionType::InEffect, ConditionType::Stalled] {
        let (Some(new), Some(reason)) = (find(status, type_), reason(status, type_)) else { continue };
        let old = find(seen.previous, type_);
        let flipped = has_flipped(old, &new.status, &new.reason);
        let was = self::reason(seen.previous, type_);
        let event = match (type_, state(type_, reason), reason) {
            (ConditionType::Accepted, State::True, _) if old.is_none_or(|old| old.status != new.status) => EventReason::Accepted,
            (ConditionType::Accepted, _, Reason::Conflicted) if flipped => EventReason::Conflicted,
            (ConditionType::Programmed, _, reason)
                if was == Some(Reason::Drifted) && !new_generation && !matches!(reason, Reason::Drifted | Reason::Contended) =>
            {
                tell(EventReason::DriftCorrected, &format!("Limit restored: {}", old.map_or("", |old| old.message.as_str())));
                continue;
            }
            (ConditionType::Programmed, State::True, _) if flipped || new_generation => EventReason::Programmed,
            (ConditionType::Programmed, _, Reason::Contended) if flipped => EventReason::Contended,
            (ConditionType::Programmed, _, Reason::Drifted) if flipped => EventReason::DriftDetected,
            (ConditionType::Programmed, _, Reason::Partial) if flipped && is_silent => EventReason::Partial,
            (ConditionType::Programmed, _, Reason::UpdateStopped) if flipped => EventReason::UpdateStopped,
            (ConditionType::Programmed, _, Reason::Contended) => {
                // Other limits are put back anyway.
                let back = |drift: &&Drift| !seen.plan.contended.contains(&drift.limit) && holds_now(seen, drift);
                for drift in seen.plan.drift.iter().filter(back) {
                    tell(EventReason::DriftCorrected, &format!("Limit restored: {}", drifted(drift)));
                }
                continue;
            }
            (ConditionType::InEffect, _, Reason::RestartRequired) if flipped || new_generation => EventReason::RestartRequired,
            (ConditionType::InEffect, _, Reason::MeasuredDifferently) if flipped => EventReason::MeasuredDifferently,
            (ConditionType::InEffect, _, Reason::RestartStalled) if flipped => EventReason::RestartStalled,
            (ConditionType::Stalled, _, Reason::Rejected) if flipped || new_generation => EventReason::Rejected,
            _ => continue,
        };
        tell(event, &new.message);
    }
    notices
}
