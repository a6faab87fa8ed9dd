//! The report of adaptive control: its conditions, figures, history and Events. Figures change when something happens,
//! not whenever they move.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    attribution::Attribution,
    openness,
    pause::Pause,
    signal::{Reading, Signal},
    state::{Efficacy, State},
    step::{Harm, Outcome, Phase, QUICK_RETIGHTEN, Restriction, Verdict, Wait, budget_until},
    tuning::{EPISODE_END, RELAX_BELOW, Tuning},
};
use crate::api::{
    IdleConnectionPolicyStatus, LimitValues, Limits,
    adaptive::Mode,
    conditions::{ConditionType, EventReason, Reason, State as ConditionState},
    status::{Decision, Recommendation, Tasks},
    wording::{of_nodes, percent, spoken, with_noun},
};
use crate::decide::report::condition::{self, ConditionText, Notice, find, said, shortened, state, status_of, whole_seconds};

type Status = IdleConnectionPolicyStatus;

/// The maximum number of decisions in the history.
const MAX_DECISIONS: usize = 6;
/// A recommendation that moves by fewer points than this is the same.
const SAME: u32 = 10;

/// What adaptive control observed.
#[derive(Clone)]
#[allow(clippy::struct_excessive_bools)] // Independent facts, not a state machine.
pub struct SeenLoop<'a> {
    /// The parameters of the control law.
    pub tuning: &'a Tuning,
    /// The floor of the limits.
    pub floor: &'a LimitValues,
    /// The nodes' task counts.
    pub signal: &'a Signal,
    /// The gauge of each node that counts its tasks; `None` where the source is another one.
    pub metric: Option<&'a str>,
    /// What is paused.
    pub pause: &'a Pause,
    /// What is known of the pooled connections' share of the tasks.
    pub attribution: Attribution,
    /// Idle connections of all nodes, where they report them.
    pub idle_connections: Option<f64>,
    /// Whether a step's write closes idle connections.
    pub closes: bool,
    /// Whether a change of the budget is kept for taking a harmful step back.
    pub reserves: bool,
    /// Whether the source only says whether there are too many tasks, without a count.
    pub levels: bool,
    /// Whether the utilization has differed from the status for a while.
    pub moved: bool,
}

/// What a step's write closes. `connections`: the idle connections of all nodes; `None` where the nodes do not report it.
#[must_use]
pub fn closes(connections: Option<f64>) -> String {
    let about = |connections| format!("about {}", with_noun(whole(connections), "idle connection", "idle connections"));
    let closed = connections.map_or_else(|| "all idle connections of the target".into(), about);
    format!("closes {closed}, and clients reconnect")
}

/// Adds the report of adaptive control to a status whose other conditions are complete.
pub fn write_adaptive_status(
    seen: &SeenLoop<'_>,
    outcome: &Outcome,
    declared: &LimitValues,
    previous: &Status,
    status: &mut Status,
    now: Timestamp,
) -> Vec<Notice> {
    if seen.tuning.mode == Mode::Disabled {
        return Vec::new();
    }
    let conditions = [
        (ConditionType::MetricsAvailable, metrics(seen)),
        (ConditionType::HighTaskCount, high(seen, outcome)),
        (ConditionType::Tightened, tightened(seen, outcome)),
        (ConditionType::TighteningEffective, effective(seen, outcome)),
        (ConditionType::TighteningLimited, limited(seen, outcome, now)),
    ];
    let new_generation = previous.observed_generation != status.observed_generation;
    let is_first_round =
        matches!(seen.signal, Signal::Unasked { .. }) && outcome.state.watched.missing_for <= seen.tuning.most_age();
    if is_first_round && outcome.decision.is_none() && !new_generation {
        let before: Option<Vec<_>> = conditions.iter().map(|(type_, said)| unchanged(previous, *type_, said)).collect();
        if let Some(before) = before {
            // After a restart of the operator, the report stays as it is until the nodes have been asked once.
            status.conditions.extend(before.into_iter().cloned());
            status.openness_percent = Some(outcome.state.openness.into());
            status.recommendation.clone_from(&previous.recommendation);
            figures(seen, previous, status, false, now);
            history(seen, outcome, previous, status, now);
            return Vec::new();
        }
    }
    let flips = |(type_, said): &(ConditionType, ConditionText)| {
        // These messages have no figures that move. When a step is due to be judged is known only once it is in effect.
        let is_news = match said.reason {
            Reason::NotLimited | Reason::Paused | Reason::Locked | Reason::BudgetExhausted | Reason::Holding => true,
            Reason::AtFloor => *type_ == ConditionType::TighteningLimited,
            Reason::Measuring => outcome.due().is_some() || outcome.state.pending.is_none(),
            _ => false,
        };
        let is_new = |old: &Condition| is_news && old.message != said.message;
        has_flipped(previous, *type_, said.reason) || find(previous, *type_).is_some_and(is_new)
    };
    let refresh =
        seen.moved || outcome.decision.is_some() || outcome.judged.is_some() || conditions.iter().any(flips) || new_generation;
    let notices = notices(seen, outcome, previous, &conditions);
    for (type_, mut said) in conditions {
        // The figures of a harmful step are known only when it is judged.
        let has_figures = said.reason == Reason::Harmful && outcome.harm.is_none() && !has_flipped(previous, type_, said.reason);
        if let Some(old) = find(previous, type_).filter(|_| !refresh || has_figures) {
            said.message.clone_from(&old.message);
        }
        status.conditions.push(condition::condition(type_, &said, status.observed_generation, previous, now));
    }
    status.openness_percent = Some(outcome.state.openness.into());
    figures(seen, previous, status, refresh, now);
    history(seen, outcome, previous, status, now);
    recommendation(seen, outcome, declared, previous, status);
    notices
}

/// The condition as it was; `None` if there was none, or if a pause began or ended.
fn unchanged<'a>(previous: &'a Status, type_: ConditionType, said: &ConditionText) -> Option<&'a Condition> {
    let paused = |reason: &str| reason == <&str>::from(Reason::Paused);
    find(previous, type_).filter(|old| paused(&old.reason) == paused(said.reason.into()))
}

/// Whether the status or the reason of a condition changes.
fn has_flipped(previous: &Status, type_: ConditionType, reason: Reason) -> bool {
    condition::has_flipped(find(previous, type_), state(type_, reason).into(), reason.into())
}

fn metrics(seen: &SeenLoop<'_>) -> ConditionText {
    let reading = match seen.signal {
        Signal::Fresh(reading) => reading,
        Signal::Unasked { message } => return said(Reason::Pending, message.clone()),
        Signal::Missing { reason, message } => {
            let metric = seen.metric.filter(|_| matches!(reason, Reason::NoSeries | Reason::SeveralSeries));
            let metric = metric.map(|metric| format!("; spec.adaptive.signal.metric is {}", shortened(metric, 200)));
            return said(*reason, format!("{message}{}", metric.unwrap_or_default()));
        }
    };
    let nodes = of_nodes(reading.fresh, reading.expected);
    match &reading.idle_missing {
        _ if seen.levels => said(Reason::Fresh, format!("{nodes} report their alerts")),
        Some(node) => said(
            Reason::IdleConnectionsMissing,
            format!(
                "The tasks of {nodes} are counted, but {node} has no gauge of idle connections (see spec.adaptive.signal.idleConnections)"
            ),
        ),
        None => match reading.counter_missing() {
            Some((node, counted)) => said(
                Reason::NewConnectionsMissing,
                format!(
                    "The tasks of {nodes} are counted, but {node} has no counter of {counted} (see spec.adaptive.signal.newConnections)"
                ),
            ),
            None => said(Reason::Fresh, format!("The tasks of {nodes} are counted")),
        },
    }
}

fn high(seen: &SeenLoop<'_>, outcome: &Outcome) -> ConditionText {
    let Some(reading) = seen.signal.reading() else {
        return said(Reason::NotObserved, "The tasks cannot be counted (see MetricsAvailable)");
    };
    let over = match reading.over {
        0 => String::new(),
        over => format!("; {} over it", with_noun(over, "node is", "nodes are")),
    };
    let message = if seen.levels { alerts(reading) } else { format!("{}{over}", counted(reading)) };
    // The episode stays open while connections that a write closed come back. The condition describes the present
    // count.
    if outcome.state.episode.is_none() || outcome.has_dipped {
        return said(Reason::UnderThreshold, message);
    }
    let (average, end) = (percent(outcome.state.watched.fast), percent(EPISODE_END));
    let end = match reading.up {
        _ if seen.levels => String::new(),
        ..EPISODE_END => format!("; the average is {average}%, and the count is high until it is below {end}%"),
        _ => format!("; it counts as high until it is below {end}%"),
    };
    said(Reason::OverThreshold, message + &end)
}

/// The message for alerts without a count: it has no percentages.
fn alerts(reading: &Reading) -> String {
    let Reading { node, over, red, expected, .. } = reading;
    match (over, red) {
        (0, _) => "No node raises an alert for its task count".into(),
        (over, true) => format!("{} raise an alert for their task count, and {node} a critical one", of_nodes(*over, *expected)),
        (over, false) => format!("{} raise an alert for their task count, such as {node}", of_nodes(*over, *expected)),
    }
}

/// For example `22400 tasks, 112% of the threshold of 20000 (highest: gw-3)`.
#[must_use]
pub fn counted(reading: &Reading) -> String {
    let pressure = percent(reading.up);
    match (reading.percentile, reading.threshold) {
        (Some(tasks), Some(threshold)) => {
            format!("{tasks:.0} tasks, {pressure}% of the threshold of {threshold:.0} (highest: {})", reading.node)
        }
        _ => format!("{pressure}% of the threshold (highest: {})", reading.node),
    }
}

fn tightened(seen: &SeenLoop<'_>, outcome: &Outcome) -> ConditionText {
    let openness = outcome.state.openness;
    let at = format!("{openness}% (100% = declared, 0% = floor)");
    match outcome.phase {
        Phase::AsDeclared if seen.tuning.mode == Mode::Recommend => {
            said(Reason::AsDeclared, "The desired limits are the declared ones; mode Recommend changes nothing")
        }
        Phase::AsDeclared => said(Reason::AsDeclared, "The desired limits are the declared ones"),
        Phase::Tightening if outcome.limit == Some(Restriction::RestartForbidden) => {
            said(Reason::Tightening, format!("Limits were tightened to {at}; the nodes do not use them yet (see InEffect)"))
        }
        Phase::Tightening => said(Reason::Tightening, format!("Limits were tightened to {at}; the effect is being measured")),
        Phase::Holding | Phase::Relaxing if seen.pause.stops_relaxing() && seen.tuning.mode == Mode::Enforce => {
            said(Reason::Holding, format!("Limits stay at {at} while relaxing is paused: {}", seen.pause))
        }
        Phase::Holding if outcome.state.rollback.is_some() => said(
            Reason::Holding,
            format!("Limits are at {at}; they are relaxed as soon as possible, because tightening {}", blame(outcome)),
        ),
        Phase::Holding => said(
            Reason::Holding,
            format!(
                "Limits are at {at}; they are relaxed when the task count has stayed below {}% of the threshold for {}",
                percent(RELAX_BELOW),
                spoken(seen.tuning.relax_after)
            ),
        ),
        Phase::Relaxing => said(
            Reason::Relaxing,
            format!("Limits are at {at}; the task count is low, and the limits are relaxed if it stays low"),
        ),
        Phase::AtFloor => said(Reason::AtFloor, "All limits are at their floor"),
        Phase::FallbackHold => {
            said(Reason::FallbackHold, format!("Limits stay at {at} because the tasks cannot be counted (see MetricsAvailable)"))
        }
    }
}

fn effective(seen: &SeenLoop<'_>, outcome: &Outcome) -> ConditionText {
    let attribution = &seen.attribution;
    match outcome.state.efficacy {
        Efficacy::Effective => said(Reason::Effective, "The last tightening lowered the task count"),
        Efficacy::Ineffective => {
            said(Reason::Ineffective, "Tightening did not lower the task count; idle connections are not the cause")
        }
        Efficacy::Harmful => {
            let figures = outcome.harm.as_ref().map(|harm| format!(": {}", frequencies(harm))).unwrap_or_default();
            let fix = "the limits are too low for the load, so raise spec.adaptive.floor";
            said(Reason::Harmful, format!("Tightening made new connections more than twice as frequent{figures}; {fix}"))
        }
        Efficacy::Measuring if outcome.state.pending.is_none() => {
            said(Reason::Measuring, "The verdict on the last tightening was inconclusive; the next tightening is judged again")
        }
        Efficacy::Measuring => {
            let latest = outcome.overdue().filter(|_| seen.closes).and_then(at);
            let latest = latest.map(|latest| format!(", the latest {latest}")).unwrap_or_default();
            let due = outcome.due().and_then(at).map(|due| format!("; the earliest time is {due}{latest}"));
            said(Reason::Measuring, format!("The last tightening has not been judged yet{}", due.unwrap_or_default()))
        }
        Efficacy::AwaitingUptimeMatch => said(
            Reason::AwaitingUptimeMatch,
            "Nodes restarted, which lowers the task count; the effect is judged when the processes are as old as before",
        ),
        Efficacy::NotAttributable => {
            said(Reason::NotAttributable, format!("{}; look for another cause, such as client connections", pooled(attribution)))
        }
        Efficacy::PoolsTooSmall => said(
            Reason::NotAttributable,
            format!(
                "{}, so emptying the pools is not enough; look for another cause, such as client connections",
                pooled(attribution)
            ),
        ),
        Efficacy::NotTightened => said(Reason::NotTightened, "Nothing has been tightened"),
    }
}

/// What a tightening that is taken back did.
const fn blame(outcome: &Outcome) -> &'static str {
    match outcome.state.efficacy {
        Efficacy::Harmful => "made new connections more than twice as frequent",
        _ => "did not help",
    }
}

/// For example `12.0 per second before, 40.3 after`.
fn frequencies(harm: &Harm) -> String {
    let Harm { before, after } = harm;
    match (before.requests, after.requests) {
        (Some(then), Some(now)) => {
            let each = |connections: f64, requests: f64| connections * 1000.0 / requests;
            let (then, now) = (each(before.connections, then), each(after.connections, now));
            format!("{then:.1} per 1000 requests before, {now:.1} after, which is {:.1} per second", after.connections)
        }
        _ => format!("{:.1} per second before, {:.1} after", before.connections, after.connections),
    }
}

/// A time for display, from Unix milliseconds.
fn at(time: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(time).ok().map(whole_seconds)
}

/// What the pools can account for, with the numbers where the limits give them.
fn pooled(attribution: &Attribution) -> String {
    attribution.bound.as_ref().map_or_else(
        || format!("Pooled connections account for at most {}% of the tasks", percent(attribution.share.most)),
        |bound| format!("Pooled connections account for at most {bound}"),
    )
}

/// What the next step waits for, where nothing keeps adaptive control from taking it in the end.
fn waiting(seen: &SeenLoop<'_>, outcome: &Outcome) -> String {
    let after = spoken(seen.tuning.tighten_after);
    let time = |time: i64| at(time).map(|time| time.to_string()).unwrap_or_default();
    match outcome.wait {
        None if seen.tuning.mode == Mode::Recommend && outcome.state.episode.is_some() => {
            "Mode Recommend takes no step (see status.recommendation)".into()
        }
        None => "No restriction is active".into(),
        Some(Wait::Settling(until)) => {
            let until = time(until);
            format!("The last change takes effect first; the next one is made after {until} if the task count stays high")
        }
        Some(Wait::FirstCounts(until)) => {
            format!("The operator has just begun to count the tasks; no step is made before {}", time(until))
        }
        Some(Wait::Verdict) => "The next step waits for the verdict on the last one (see TighteningEffective)".into(),
        // See `hesitation`.
        Some(Wait::FirstStep) => format!(
            "The limits are tightened when the task count has stayed high for {after}, or up to three quarters longer where it is barely above the threshold"
        ),
        Some(Wait::NextStep) => format!("The limits are tightened further when the task count has stayed high for {after}"),
    }
}

fn limited(seen: &SeenLoop<'_>, outcome: &Outcome, now: Timestamp) -> ConditionText {
    let is_paused = seen.pause.stops_tightening() && seen.tuning.mode == Mode::Enforce;
    let is_minor = matches!(outcome.limit, None | Some(Restriction::Paused | Restriction::Flapping));
    if is_paused && (is_minor || seen.pause.stops_relaxing()) {
        return said(Reason::Paused, seen.pause.to_string());
    }
    match outcome.limit {
        None => said(Reason::NotLimited, waiting(seen, outcome)),
        Some(Restriction::AtFloor) if outcome.state.pending.is_some() => said(
            Reason::AtFloor,
            "The task count is above the threshold and all limits are at their floor; the effect of the last step is being measured",
        ),
        Some(Restriction::AtFloor) => said(
            Reason::AtFloor,
            "The task count is above the threshold and all limits are at their floor; lower spec.adaptive.floor or look for another cause",
        ),
        Some(Restriction::BudgetExhausted) => {
            let Tuning { per_hour, per_day, .. } = seen.tuning;
            let until = |tuning| budget_until(tuning, &outcome.state, now.as_millisecond()).and_then(at);
            let (until, kept) = match until(seen.tuning) {
                None if seen.reserves => (until(&seen.tuning.reserving()), ", except one change to take a harmful step back"),
                until => (until, ""),
            };
            let until = until.map(|time| format!(" until {time}")).unwrap_or_default();
            said(
                Reason::BudgetExhausted,
                format!(
                    "The budget of {per_hour} changes per hour or {per_day} per day is used up{kept}; the next change waits{until}"
                ),
            )
        }
        Some(Restriction::RestartForbidden) if outcome.state.openness == 100 => said(
            Reason::RestartForbidden,
            "Most nodes use the declared limits only after a restart, which may also raise them (see InEffect); tightening waits for it",
        ),
        Some(Restriction::RestartForbidden) => said(
            Reason::RestartForbidden,
            "Most nodes use the tightened limits only after a restart (see InEffect); nothing more is decided until then unless the task count falls",
        ),
        Some(Restriction::NotInEffect) => said(
            Reason::NotInEffect,
            "Most nodes are not known to use the declared limits, so the effect of a tightening could not be observed (see InEffect)",
        ),
        Some(Restriction::PoolsTooSmall) => said(
            Reason::PoolsTooSmall,
            format!("{}, so emptying all pools would not be enough; look for another cause", pooled(&seen.attribution)),
        ),
        Some(Restriction::Flapping) => {
            let within = spoken(QUICK_RETIGHTEN);
            said(Reason::Flapping, format!("Limits had to be tightened again within {within} of relaxing; relaxing is delayed"))
        }
        Some(Restriction::Locked) => {
            let until = outcome.state.lockout.and_then(|lockout| at(lockout.until));
            let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
            let (why, fix) = match outcome.state.efficacy {
                Efficacy::PoolsTooSmall => ("the pools are too small for tightening to help", "look for another cause"),
                Efficacy::Harmful => {
                    ("the last tightening made new connections more than twice as frequent", "raise spec.adaptive.floor")
                }
                _ => ("the last tightening did not lower the task count", "look for another cause"),
            };
            said(Reason::Locked, format!("Nothing is tightened{until}, because {why}; {fix}"))
        }
        Some(Restriction::Paused) => said(Reason::Paused, seen.pause.to_string()),
    }
}

fn figures(seen: &SeenLoop<'_>, previous: &Status, status: &mut Status, refresh: bool, now: Timestamp) {
    let Some(reading) = seen.signal.reading().filter(|_| refresh || previous.tasks.is_none()) else {
        status.tasks.clone_from(&previous.tasks);
        status.utilization_percent = previous.utilization_percent;
        if let (Some(nodes), Some(old)) = (&mut status.nodes, &previous.nodes) {
            nodes.over_threshold = old.over_threshold;
        }
        return;
    };
    status.utilization_percent = (!seen.levels).then(|| percent(reading.up));
    status.tasks = Some(Tasks {
        max: reading.max.map(whole),
        percentile: reading.percentile.map(whole),
        threshold: reading.threshold.map(whole),
        node: Some(shortened(&reading.node, 253)).filter(|node| !node.is_empty()),
        idle_connections: seen.idle_connections.map(whole),
        new_connections_per_second: reading.rate.map(|rate| whole(rate.connections)),
        time: Some(Time(whole_seconds(now))),
    });
    if let Some(nodes) = &mut status.nodes {
        nodes.over_threshold = Some(reading.over);
    }
}

fn history(seen: &SeenLoop<'_>, outcome: &Outcome, previous: &Status, status: &mut Status, now: Timestamp) {
    let tasks = seen.signal.reading().and_then(|reading| reading.percentile).map(whole);
    let said = |pressure: f64| (pressure.is_finite() && !seen.levels).then(|| percent(pressure));
    status.history.clone_from(&previous.history);
    // The verdict is on the last tightening: there is never an earlier one without a verdict. A step that was made at a
    // critical task count can turn out to be harmful after it was judged by its effect.
    let is_harmful = outcome.judged.is_some_and(|judged| judged.verdict == Verdict::Harmful);
    let is_open = |entry: &&mut Decision| entry.to_percent < entry.from_percent && (is_harmful || entry.verdict.is_none());
    let mut open = status.history.iter_mut().filter(is_open);
    if let Some((judged, entry)) = outcome.judged.zip(open.next()) {
        entry.verdict = Some(judged.verdict.to_string());
        entry.utilization_before = said(judged.before);
        entry.utilization_after = said(judged.after);
        entry.tasks_after = tasks;
    }
    if let Some(decision) = &outcome.decision {
        let entry = Decision {
            time: Time(whole_seconds(now)),
            from_percent: decision.from.into(),
            to_percent: decision.to.into(),
            reason: decision.reason.to_string(),
            utilization_before: said(decision.pressure),
            utilization_after: None,
            tasks_before: tasks,
            tasks_after: None,
            verdict: None,
        };
        status.history.insert(0, entry);
        status.history.truncate(MAX_DECISIONS);
    }
}

fn recommendation(seen: &SeenLoop<'_>, outcome: &Outcome, declared: &LimitValues, previous: &Status, status: &mut Status) {
    let Some(decision) = &outcome.recommendation else { return };
    let to = u32::from(decision.to);
    let same = previous.recommendation.as_ref().filter(|old| {
        old.openness_percent.abs_diff(to) < SAME && (old.openness_percent < decision.from.into()) == (decision.to < decision.from)
    });
    status.recommendation = Some(same.cloned().unwrap_or_else(|| Recommendation {
        openness_percent: to,
        limits: Some(Limits::from(&openness::at(declared, seen.floor, decision.to))),
        reason: decision.reason.to_string(),
    }));
}

fn notices(
    seen: &SeenLoop<'_>,
    outcome: &Outcome,
    previous: &Status,
    conditions: &[(ConditionType, ConditionText)],
) -> Vec<Notice> {
    let mut notices = Vec::new();
    let recorded = recorded(previous);
    let mut tell = |reason, note: String| notices.push(Notice { reason, note });
    for (type_, ConditionText { reason, message }) in
        conditions.iter().filter(|(type_, said)| has_flipped(previous, *type_, said.reason))
    {
        let was_lost = status_of(previous, *type_) == Some(ConditionState::False) || recorded.is_some_and(|state| state.lost);
        let fell = outcome
            .judged
            .filter(|judged| judged.verdict != Verdict::Harmful)
            .filter(|_| !seen.levels && *type_ == ConditionType::TighteningEffective)
            .map(|judged| format!(" ({}% of the threshold before, {}% after)", percent(judged.before), percent(judged.after)));
        let event = match (type_, state(*type_, *reason), reason) {
            (ConditionType::MetricsAvailable, ConditionState::False, _) if !was_lost => EventReason::MetricsLost,
            (ConditionType::MetricsAvailable, ConditionState::True, _) if was_lost => EventReason::MetricsRestored,
            // One Event for one episode, even if the count was missing for a while.
            (ConditionType::HighTaskCount, ConditionState::True, _) if !was_told(outcome, previous) => EventReason::HighTaskCount,
            (ConditionType::TighteningEffective, _, Reason::Ineffective | Reason::NotAttributable) => EventReason::Ineffective,
            (ConditionType::TighteningEffective, _, Reason::Harmful) => EventReason::Harmful,
            _ => continue,
        };
        tell(event, format!("{message}{}", fell.unwrap_or_default()));
    }
    if let Some(decision) = &outcome.decision {
        let counted =
            seen.signal.reading().filter(|_| !seen.levels).map(|reading| format!("; {}", counted(reading))).unwrap_or_default();
        let cost = if seen.closes { format!("; {}", closes(seen.idle_connections)) } else { String::new() };
        let tightens = decision.to < decision.from;
        let (event, way) = if tightens { (EventReason::Tightened, "tightened") } else { (EventReason::Relaxed, "relaxed") };
        tell(event, format!("Limits {way} from {}% to {}%: {}{counted}{cost}", decision.from, decision.to, decision.reason));
        if tightens && decision.to == 0 {
            let note = "All limits are at their floor; if the task count stays high, lower spec.adaptive.floor or look for another cause";
            tell(EventReason::ReachedFloor, note.into());
        }
    }
    notices
}

/// Whether an earlier status was written in the same episode of too many tasks.
fn was_told(outcome: &Outcome, previous: &Status) -> bool {
    let since = |state: &State| state.episode.map(|episode| episode.since);
    since(&outcome.state).is_some() && recorded(previous).is_some_and(|written| since(written) == since(&outcome.state))
}

/// The state of adaptive control in a status.
fn recorded(status: &Status) -> Option<&State> {
    status.control.as_ref()?.adaptive.as_deref()
}

#[allow(clippy::cast_possible_truncation)] // Tasks of one node.
fn whole(value: f64) -> i64 {
    value.clamp(0.0, 1e15).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{adaptive::Adaptive, status::Control},
        decide::adaptive::{
            pause::By,
            state::Episode,
            step::{Judged, Phase, Reason as Cause, Verdict},
            step_size::Share,
        },
    };

    fn outcome() -> Outcome {
        Outcome::unmoved(State::default())
    }

    fn seen<'a>(tuning: &'a Tuning, signal: &'a Signal) -> SeenLoop<'a> {
        static FLOOR: LimitValues = LimitValues::new();
        SeenLoop {
            tuning,
            floor: &FLOOR,
            signal,
            metric: None,
            pause: &Pause::NONE,
            attribution: Attribution { share: Share::UNKNOWN, bound: None },
            idle_connections: None,
            closes: false,
            reserves: false,
            levels: false,
            moved: false,
        }
    }

    /// Everything that a status, its Events and its history say after an evaluation.
    fn everything_said(signal: &Signal, outcome: &Outcome, edit: impl FnOnce(&mut SeenLoop<'_>)) -> String {
        let tuning = Tuning::of(Some(&Adaptive { mode: Mode::Enforce, ..Adaptive::default() }));
        let mut seen = seen(&tuning, signal);
        edit(&mut seen);
        let mut status = IdleConnectionPolicyStatus::default();
        let previous = IdleConnectionPolicyStatus::default();
        let notices = write_adaptive_status(&seen, outcome, &LimitValues::new(), &previous, &mut status, Timestamp::UNIX_EPOCH);
        let notes: Vec<_> = notices.into_iter().map(|notice| notice.note).collect();
        format!("{}\n{}", serde_json::to_string_pretty(&status).expect("a status"), notes.join("\n"))
    }

    #[test]
    fn what_a_step_costs_is_said_with_it() {
        let signal = Signal::Fresh(Reading::of(1.2));
        let said = |closes, connections| {
            let edit = |seen: &mut SeenLoop<'_>| (seen.closes, seen.idle_connections) = (closes, connections);
            let text = everything_said(&signal, &decided(100, 70), edit);
            text.lines()
                .find_map(|line| line.strip_prefix("Limits tightened from 100% to 70%: "))
                .map(str::to_owned)
                .unwrap_or_default()
        };
        assert!(said(true, Some(4300.4)).ends_with("; closes about 4300 idle connections, and clients reconnect"));
        assert!(said(true, None).ends_with("; closes all idle connections of the target, and clients reconnect"));
        assert!(!said(false, Some(4300.4)).contains("closes"));
    }

    #[test]
    fn alerts_are_never_said_in_percent() {
        let alert = Reading { fresh: 4, expected: 4, over: 4, red: true, node: "target-t1".into(), ..Reading::of(2.0) };
        let reason = Cause::High { pressure: None, lasted: 60_000 };
        let decided = Outcome {
            state: State { openness: 50, episode: Some(Episode::begin(0, 100)), ..State::default() },
            decision: Some(crate::decide::adaptive::step::Decision { from: 100, to: 50, reason, pressure: 2.0 }),
            judged: Some(Judged { verdict: Verdict::Ineffective, before: 2.0, after: 2.0 }),
            phase: Phase::Tightening,
            ..outcome()
        };
        let text = everything_said(&Signal::Fresh(alert), &decided, |seen| seen.levels = true);
        assert!(text.contains("4 of 4 nodes raise an alert for their task count, and target-t1 a critical one"), "{text}");
        assert!(text.contains("task count alert raised for 60s"), "{text}");
        assert!(text.contains("4 of 4 nodes report their alerts"), "{text}");
        assert!(!text.contains("of the threshold") && !text.contains("pressure") && !text.contains("counted"), "{text}");
        let low = Reading { fresh: 4, expected: 4, ..Reading::of(0.5) };
        let text = everything_said(&Signal::Fresh(low), &outcome(), |seen| seen.levels = true);
        assert!(text.contains("No node raises an alert for its task count") && !text.contains('%'), "{text}");
    }

    #[test]
    fn what_the_pools_cannot_account_for_is_said_with_its_numbers() {
        let reading =
            Reading { tasks_over_threshold: vec![("target-t1".into(), 3019.0)], threshold: Some(1024.0), ..Reading::of(2.95) };
        let most = [("target-t1".to_owned(), 1900.0)].into();
        let attribution = Attribution::new(Some(&most), Some(&reading));
        for (efficacy, limit, words) in [
            (Efficacy::PoolsTooSmall, Some(Restriction::PoolsTooSmall), "so emptying all pools would not be enough"),
            (Efficacy::PoolsTooSmall, None, "so emptying the pools is not enough"),
            (Efficacy::NotAttributable, None, "look for another cause"),
        ] {
            let outcome = Outcome { state: State { efficacy, ..State::default() }, limit, ..outcome() };
            let text = everything_said(&Signal::Fresh(reading.clone()), &outcome, |seen| seen.attribution = attribution.clone());
            let bound = "Pooled connections account for at most 1900 of 3019 tasks (63%) on target-t1";
            assert!(text.contains(bound) && text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_step_that_no_node_uses_yet_is_not_being_measured() {
        let signal = Signal::Fresh(Reading::of(1.2));
        for (limit, words) in [
            (Some(Restriction::RestartForbidden), "the nodes do not use them yet (see InEffect)"),
            (None, "the effect is being measured"),
        ] {
            let outcome =
                Outcome { state: State { openness: 50, ..State::default() }, limit, phase: Phase::Tightening, ..outcome() };
            let text = everything_said(&signal, &outcome, |_| {});
            assert!(text.contains(words), "{text}");
        }
    }

    /// The status at a utilization and a second.
    fn said(
        previous: &IdleConnectionPolicyStatus,
        generation: i64,
        pressure: f64,
        outcome: &Outcome,
        moved: bool,
        at: i64,
    ) -> IdleConnectionPolicyStatus {
        let signal =
            Signal::Fresh(Reading { fresh: 1, expected: 1, percentile: Some(pressure * 100.0), ..Reading::of(pressure) });
        told(previous, generation, &signal, outcome, moved, at).0
    }

    /// The status, and the reasons of the Events.
    fn told(
        previous: &IdleConnectionPolicyStatus,
        generation: i64,
        signal: &Signal,
        outcome: &Outcome,
        moved: bool,
        at: i64,
    ) -> (IdleConnectionPolicyStatus, Vec<EventReason>) {
        let tuning = Tuning::of(Some(&Adaptive { mode: Mode::Enforce, ..Adaptive::default() }));
        let seen = SeenLoop { moved, ..seen(&tuning, signal) };
        let mut status =
            IdleConnectionPolicyStatus { observed_generation: Some(generation), ..IdleConnectionPolicyStatus::default() };
        let now = Timestamp::from_second(1_700_000_000 + at).unwrap_or_default();
        let notices = write_adaptive_status(&seen, outcome, &LimitValues::new(), previous, &mut status, now);
        (status, notices.into_iter().map(|notice| notice.reason).collect())
    }

    #[test]
    fn a_count_that_is_lost_is_lost_once_whatever_else_is_found_out_about_it() {
        let missing = |reason| Signal::Missing { reason, message: "gw-0 does not answer".into() };
        let fresh = Signal::Fresh(Reading::of(0.5));
        let mut status = IdleConnectionPolicyStatus::default();
        for (signal, expected) in [
            (fresh.clone(), &[][..]),
            (missing(Reason::Stale), &[EventReason::MetricsLost]),
            (missing(Reason::NoSeries), &[]),
            (fresh, &[EventReason::MetricsRestored]),
        ] {
            let (next, reasons) = told(&status, 1, &signal, &outcome(), false, 0);
            assert_eq!(reasons, expected, "{signal:?}");
            status = next;
        }
    }

    #[test]
    fn a_restart_of_the_operator_changes_no_report_before_the_nodes_have_been_asked() {
        let unasked = Signal::Unasked { message: "The tasks of 0 of 1 nodes are counted; gw-0 has not been asked yet".into() };
        let first = said(&IdleConnectionPolicyStatus::default(), 1, 0.25, &outcome(), false, 0);
        assert_eq!(told(&first, 1, &unasked, &outcome(), false, 60), (first.clone(), Vec::new()));
        let pending = |status: &IdleConnectionPolicyStatus| condition::reason(status, ConditionType::MetricsAvailable);
        let mut stuck = outcome();
        stuck.state.watched.missing_for = 120_000;
        assert_eq!(pending(&told(&first, 1, &unasked, &stuck, false, 60).0), Some(Reason::Pending), "no round ends");
        let edited = told(&first, 2, &unasked, &outcome(), false, 60).0;
        assert_eq!(pending(&edited), Some(Reason::Pending), "another signal may be declared");
        let new = told(&IdleConnectionPolicyStatus::default(), 1, &unasked, &outcome(), false, 0).0;
        assert_eq!(pending(&new), Some(Reason::Pending));
        let no_nodes = Signal::Missing { reason: Reason::Pending, message: "No node with a task count is known yet".into() };
        assert_eq!(pending(&told(&first, 1, &no_nodes, &outcome(), false, 60).0), Some(Reason::Pending));
    }

    #[test]
    fn a_count_that_comes_back_after_a_corrected_signal_is_told() {
        let missing = |reason| Signal::Missing { reason, message: "gw-0 does not answer".into() };
        let lost = Outcome { state: State { lost: true, ..State::default() }, ..outcome() };
        let mut status = IdleConnectionPolicyStatus::default();
        for (signal, outcome, expected) in [
            (missing(Reason::NoSeries), &lost, &[EventReason::MetricsLost][..]),
            // The corrected gauge has not been asked for yet.
            (missing(Reason::Pending), &lost, &[]),
            (Signal::Fresh(Reading::of(0.5)), &outcome(), &[EventReason::MetricsRestored]),
            (Signal::Fresh(Reading::of(0.5)), &outcome(), &[]),
        ] {
            let (mut next, reasons) = told(&status, 1, &signal, outcome, false, 0);
            assert_eq!(reasons, expected, "{signal:?}");
            next.control = Some(Control { adaptive: Some(Box::new(outcome.state.stored())), ..Control::default() });
            status = next;
        }
    }

    #[test]
    fn a_pause_is_said_from_its_begin_to_its_end() {
        let signal = Signal::Fresh(Reading::of(0.5));
        let limited = |outcome: &Outcome, pause: &Pause| {
            let tuning = Tuning::of(Some(&Adaptive { mode: Mode::Enforce, ..Adaptive::default() }));
            limited(&SeenLoop { pause, ..seen(&tuning, &signal) }, outcome, Timestamp::UNIX_EPOCH).reason
        };
        let both = Pause { all: Some(By::Suspend), ..Pause::NONE };
        let one = Pause { tighten: Some(By::Annotation("idleconn.io/paused-tighten", None)), ..Pause::NONE };
        let relaxing = Pause { relax: Some(By::Annotation("idleconn.io/paused-relax", None)), ..Pause::NONE };
        let at_floor = Outcome { limit: Some(Restriction::AtFloor), ..outcome() };
        assert_eq!(limited(&outcome(), &relaxing), Reason::NotLimited, "tightening is free");
        assert_eq!(limited(&outcome(), &Pause::NONE), Reason::NotLimited);
        assert_eq!([&both, &one].map(|pause| limited(&outcome(), pause)), [Reason::Paused, Reason::Paused]);
        assert_eq!([&both, &one].map(|pause| limited(&at_floor, pause)), [Reason::Paused, Reason::AtFloor]);
    }

    #[test]
    fn an_episode_is_told_once_also_where_the_target_was_away_meanwhile() {
        let signal = Signal::Fresh(Reading::of(1.5));
        let high =
            |since| Outcome { state: State { episode: Some(Episode::begin(since, 100)), ..State::default() }, ..outcome() };
        let away = |outcome: &Outcome| {
            // While the target does not answer, its conditions are gone, but what was decided is still recorded.
            let control = Control { adaptive: Some(Box::new(outcome.state.stored())), ..Control::default() };
            IdleConnectionPolicyStatus { control: Some(control), ..IdleConnectionPolicyStatus::default() }
        };
        let events = |previous: &IdleConnectionPolicyStatus, since| told(previous, 1, &signal, &high(since), false, 0).1;
        assert_eq!(events(&IdleConnectionPolicyStatus::default(), 60_000), [EventReason::HighTaskCount]);
        assert_eq!(events(&away(&outcome()), 60_000), [EventReason::HighTaskCount]);
        assert_eq!(events(&away(&high(60_000)), 60_000), Vec::<EventReason>::new());
        assert_eq!(events(&away(&high(60_000)), 120_000), [EventReason::HighTaskCount], "another episode");
    }

    #[test]
    fn the_fullest_node_is_named_where_there_is_a_name() {
        for (node, expected) in [("t-7", Some("t-7")), ("", None)] {
            let signal = Signal::Fresh(Reading { node: node.into(), ..Reading::of(0.5) });
            let (status, _) = told(&IdleConnectionPolicyStatus::default(), 1, &signal, &outcome(), false, 0);
            assert_eq!(status.tasks.and_then(|tasks| tasks.node).as_deref(), expected);
        }
    }

    #[test]
    fn figures_are_said_when_something_happens_and_not_as_they_move() {
        let nothing = IdleConnectionPolicyStatus { observed_generation: Some(1), ..IdleConnectionPolicyStatus::default() };
        let first = said(&nothing, 1, 0.25, &outcome(), false, 0);
        assert_eq!((first.utilization_percent, first.conditions.len()), (Some(25), 5));
        assert_eq!(said(&first, 1, 0.5, &outcome(), false, 60), first, "nothing has happened: nothing is written");

        let judged = Outcome { judged: Some(Judged { verdict: Verdict::Effective, before: 1.0, after: 0.5 }), ..outcome() };
        for (what, generation, outcome, moved) in [
            ("it moved for good", 1, outcome(), true),
            ("a verdict", 1, judged, false),
            ("another generation", 2, outcome(), false),
        ] {
            let then = said(&first, generation, 0.5, &outcome, moved, 60);
            assert_eq!(then.utilization_percent, Some(50), "{what}");
            let high = find(&then, ConditionType::HighTaskCount).cloned();
            let before = find(&first, ConditionType::HighTaskCount).cloned();
            assert_ne!(high.as_ref().map(|c| &c.message), before.as_ref().map(|c| &c.message), "{what}");
            assert_eq!(high.map(|c| c.last_transition_time), before.map(|c| c.last_transition_time), "it is as it was since");
        }

        // A condition that flips updates all figures, and only that condition gets a new transition time.
        let episode = Episode { since: 0, from: 100, base: None, steps: 0, helped: None, failed: 0, learned: None };
        let over = Outcome { state: State { episode: Some(episode), ..State::default() }, ..outcome() };
        let then = said(&first, 1, 1.5, &over, false, 60);
        assert_eq!(then.utilization_percent, Some(150));
        let since = |status: &IdleConnectionPolicyStatus, type_| find(status, type_).map(|c| c.last_transition_time.clone());
        assert_ne!(since(&then, ConditionType::HighTaskCount), since(&first, ConditionType::HighTaskCount));
        assert_eq!(since(&then, ConditionType::Tightened), since(&first, ConditionType::Tightened));
        // The same status with another reason is a flip too, without a new transition time.
        let floor = said(&then, 1, 1.6, &Outcome { limit: Some(Restriction::BudgetExhausted), ..over.clone() }, false, 120);
        assert_eq!(floor.utilization_percent, Some(160));
        let other = said(&floor, 1, 1.7, &Outcome { limit: Some(Restriction::AtFloor), ..over }, false, 180);
        assert_eq!(
            (other.utilization_percent, since(&other, ConditionType::TighteningLimited)),
            (Some(170), since(&floor, ConditionType::TighteningLimited))
        );
    }

    fn decided(from: u8, to: u8) -> Outcome {
        let decision = crate::decide::adaptive::step::Decision { from, to, reason: Cause::Ineffective, pressure: 1.2 };
        Outcome { decision: Some(decision), ..outcome() }
    }

    #[test]
    fn a_verdict_falls_on_the_last_tightening_that_has_none() {
        let judged = Judged { verdict: Verdict::Effective, before: 1.25, after: 0.5 };
        let mut status = IdleConnectionPolicyStatus { observed_generation: Some(1), ..IdleConnectionPolicyStatus::default() };
        for (from, to) in [(100, 80), (80, 90), (90, 90)] {
            status = said(&status, 1, 0.25, &decided(from, to), false, 0);
        }
        let status = said(&status, 1, 0.75, &Outcome { judged: Some(judged), ..outcome() }, false, 60);
        let told: Vec<_> = status
            .history
            .iter()
            .map(|d| (d.from_percent, d.to_percent, d.verdict.as_deref(), d.tasks_before, d.tasks_after))
            .collect();
        assert_eq!(
            told,
            [(90, 90, None, Some(25), None), (80, 90, None, Some(25), None), (100, 80, Some("Effective"), Some(25), Some(75)),]
        );
        assert_eq!((status.history[2].utilization_before, status.history[2].utilization_after), (Some(125), Some(50)));
        let again = Judged { verdict: Verdict::Ineffective, before: 1.0, after: 1.0 };
        let status = said(&status, 1, 0.75, &Outcome { judged: Some(again), ..decided(90, 70) }, false, 120);
        assert_eq!(status.history[3].verdict.as_deref(), Some("Effective"), "a verdict stands");
        assert_eq!((status.history.len(), status.history[0].verdict.as_deref()), (4, None), "and a new step has none");
        let mut status = status;
        for to in 0..9 {
            status = said(&status, 1, 0.25, &decided(100, to), false, 180);
        }
        assert_eq!(status.history.len(), 6);
    }

    #[test]
    fn a_recommendation_stays_while_it_is_about_the_same() {
        let recommended = |from, to| Outcome { recommendation: decided(from, to).decision, ..outcome() };
        let first = said(&IdleConnectionPolicyStatus::default(), 1, 1.2, &recommended(100, 60), false, 0);
        let then = |from, to| {
            let status = said(&first, 1, 1.2, &recommended(from, to), false, 60);
            status.recommendation.map(|recommendation| recommendation.openness_percent)
        };
        assert_eq!(then(100, 60), Some(60));
        assert_eq!([then(100, 51), then(100, 69)], [Some(60), Some(60)], "less than ten points");
        assert_eq!([then(100, 50), then(100, 70)], [Some(50), Some(70)], "ten points");
        assert_eq!([then(62, 65), then(60, 65)], [Some(65), Some(60)], "the other way is another thing");
        assert_eq!(said(&first, 1, 1.2, &outcome(), false, 60).recommendation, None);
    }
}
