//! `explain`: the state of a policy in sentences, the reasons, and the next step for its owner.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::{
    api::{
        IdleConnectionPolicy, IdleConnectionPolicyStatus,
        adaptive::{Adaptive, Mode},
        conditions::{ConditionType, REASONS, Reason, State},
        policy::DriftPolicy,
        restart::RestartPolicy,
        wording::{noun, spoken, with_noun},
    },
    decide::{
        self,
        adaptive::{disturbance, report::closes},
        flushes,
        report::condition::{find, reason, status_of},
    },
    targets,
};

/// Explains a policy: one sentence in each line, and the next step in the last.
pub fn sentences(policy: &IdleConnectionPolicy, now: Timestamp) -> String {
    let unseen = IdleConnectionPolicyStatus::default();
    let status = policy.status.as_ref().unwrap_or(&unseen);
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut say = |line: &str| {
        let _ = writeln!(text, "{line}");
    };
    if status.observed_generation != policy.metadata.generation {
        say(&format!("{name}: the operator has not processed this version of the policy yet."));
        say("Next: check that the operator runs and watches this namespace.");
        return text;
    }
    let message = |type_| find(status, type_).map(|c| (status_of(status, type_), c.reason.as_str(), &c.message));
    let on_nodes = status
        .nodes
        .as_ref()
        .map_or_else(String::new, |nodes| format!(" on {} {}", nodes.summary, noun(&nodes.total, "node", "nodes")));
    match (message(ConditionType::Ready), message(ConditionType::Programmed)) {
        (Some((Some(State::True), ready, _)), Some((Some(State::False), reason, message)))
            if ready == <&str>::from(Reason::Succeeded) =>
        {
            say(&format!("{name} was applied, and its limits are now stored{on_nodes} ({reason}): {message}."));
        }
        (Some((Some(State::True), ready, _)), _) if ready == <&str>::from(Reason::Suspended) => {
            say(&format!("{name} is suspended: nothing is written, and drift is not corrected."));
        }
        (Some((Some(State::True), ..)), _) => say(&format!("The limits of {name} are in order{on_nodes}.")),
        (Some((_, reason, message)), _) => say(&format!("{name} is not in order ({reason}): {message}.")),
        (None, _) => say(&format!("{name}: the operator has reported nothing yet.")),
    }
    if status_of(status, ConditionType::Accepted) == Some(State::False)
        || reason(status, ConditionType::Ready) == Some(Reason::Released)
    {
        // The policy governs nothing, so that nothing else can be said about it.
        say(&format!("Next: {}.", fix(status)));
        return text;
    }
    if let Some(line) = in_effect(policy, status) {
        say(&line);
    }
    if !status.unsupported.is_empty() {
        say(&format!(
            "The operator does not manage {}, because the target has no place for the limit (backend limits need a reverse proxy) or cannot represent the value.",
            status.unsupported.join(", ")
        ));
    }
    let traits = targets::traits(&policy.spec.target);
    let declared = decide::declare(&policy.spec, &traits);
    let flushes = flushes::flushes(&declared, &traits);
    for flushes in &flushes {
        say(&format!("{}.", flushes.sentence()));
    }
    if let Some(nodes) = status.nodes.as_ref().filter(|_| traits.has_batches() && !flushes.is_empty()) {
        say(&pace(policy, nodes.total));
    }
    let adaptive = policy.spec.adaptive.as_ref().filter(|adaptive| adaptive.mode != Mode::Disabled);
    let Some(adaptive) = adaptive else {
        say("The limits stay as declared, because spec.adaptive is absent or Disabled.");
        say(&next_line(policy, status));
        return text;
    };
    // A step moves all limits with a floor.
    if disturbance::disturbance(&declared.settings, &decide::floor(&policy.spec, &traits), &traits, |_| true).is_some() {
        say(&cost(adaptive, status));
    }
    match message(ConditionType::MetricsAvailable) {
        Some((Some(State::Unknown), _, message)) => say(&format!("The tasks are not counted yet: {message}.")),
        Some((Some(State::False), reason, message)) => {
            say(&format!(
                "The tasks cannot be counted ({reason}): {message}. Until they are counted again, nothing is tightened."
            ));
        }
        _ => {}
    }
    if let Some((state, _, message)) = message(ConditionType::HighTaskCount) {
        match state {
            Some(State::True) => say(&format!("The task count reached the threshold: {message}.")),
            Some(State::False) => say(&format!("The task count is below the threshold: {message}.")),
            _ => {}
        }
    }
    if let Some((_, _, message)) = message(ConditionType::Tightened) {
        say(&format!("{message}."));
    }
    if let Some(last) = status.history.first() {
        let ago = now.as_millisecond() - last.time.0.as_millisecond();
        let way = if last.to_percent < last.from_percent { "tightened" } else { "relaxed" };
        say(&format!(
            "{} ago the limits were {way} from {}% to {}% ({}).",
            spoken(ago.max(0)),
            last.from_percent,
            last.to_percent,
            last.reason
        ));
    }
    if let Some((_, _, message)) =
        message(ConditionType::TighteningEffective).filter(|(_, reason, _)| *reason != <&str>::from(Reason::NotTightened))
    {
        say(&format!("{message}."));
    }
    match (message(ConditionType::TighteningLimited), status_of(status, ConditionType::HighTaskCount)) {
        (Some((Some(State::True), _, message)), _) => say(&format!("Adaptive control is limited: {message}.")),
        // The message says what the next step waits for.
        (Some((Some(State::False), _, message)), Some(State::True)) if adaptive.mode == Mode::Enforce => {
            say(&format!("{message}."));
        }
        _ => {}
    }
    if let Some(recommended) = &status.recommendation {
        let percent = recommended.openness_percent;
        say(&format!("Adaptive control recommends an openness of {percent}% ({}).", recommended.reason));
    }
    say(&next_line(policy, status));
    text
}

/// Returns the last line: the next step for the owner of the policy.
fn next_line(policy: &IdleConnectionPolicy, status: &IdleConnectionPolicyStatus) -> String {
    next(policy, status).map_or_else(|| "No action needed.".to_owned(), |next| format!("Next: {next}."))
}

/// Returns what the table of reasons advises for the reason of Ready, as the end of a sentence.
fn fix(status: &IdleConnectionPolicyStatus) -> String {
    let is_ready = |(type_, _): &(ConditionType, State)| *type_ == ConditionType::Ready;
    let row = reason(status, ConditionType::Ready)
        .and_then(|reason| REASONS.iter().find(|row| row.reason == reason && row.on.iter().any(is_ready) && !row.fix.is_empty()));
    let Some(row) = row else { return "fix the problem above; the operator retries automatically".into() };
    let plain = row.fix.replace('`', "");
    let mut letters = plain.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// Returns what is to be said about the condition `InEffect`; `None` where the processes use the limits.
fn in_effect(policy: &IdleConnectionPolicy, status: &IdleConnectionPolicyStatus) -> Option<String> {
    let message = &find(status, ConditionType::InEffect)?.message;
    let rolls = policy.spec.restart.as_ref().is_some_and(|restart| restart.policy == RestartPolicy::Rolling);
    let next = match reason(status, ConditionType::InEffect)? {
        Reason::RollingOut => "The operator continues automatically.",
        Reason::RestartStalled => "Repair that node; the operator continues when the node is back.",
        Reason::RestartRequired if rolls => "The operator restarts the nodes when spec.restart allows it.",
        Reason::RestartRequired => "Restart those nodes, or set spec.restart.policy to Rolling.",
        Reason::MeasuredDifferently => {
            return Some(format!(
                "A server does not do what is programmed: {message}. Check that spec.verify probes the right port, and look for a proxy in front of the server."
            ));
        }
        Reason::NotMeasured | Reason::Drifted | Reason::Contended => return Some(format!("{message}.")),
        _ => return None,
    };
    Some(format!("The processes do not use the stored limits yet: {message}. {next}"))
}

/// Returns how many nodes an update writes at the same time, and how long it takes.
fn pace(policy: &IdleConnectionPolicy, nodes: u32) -> String {
    let Some(batches) = policy.spec.batches() else {
        return "A change is written to all nodes at the same time (spec.updateStrategy).".into();
    };
    let total = usize::try_from(nodes).unwrap_or(usize::MAX);
    let (count, time) = batches.takes(total);
    let most = with_noun(batches.max_nodes.of(total), "node", "nodes");
    if count <= 1 {
        return format!("A change is written in batches of at most {most} (spec.updateStrategy).");
    }
    let time = spoken(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
    format!("A change is written in {count} batches of at most {most}, which takes at least {time} (spec.updateStrategy).")
}

/// Returns what a step of adaptive control closes, in the words of its Event.
#[allow(clippy::cast_precision_loss)] // Connections of all nodes.
fn cost(adaptive: &Adaptive, status: &IdleConnectionPolicyStatus) -> String {
    let connections = status.tasks.as_ref().and_then(|tasks| tasks.idle_connections).map(|count| count as f64);
    let is_counted = adaptive.signal.as_ref().is_some_and(|signal| signal.idle_connections.is_some());
    let hint = if connections.is_none() && !is_counted {
        " To see how many there are, set spec.adaptive.signal.idleConnections."
    } else {
        ""
    };
    format!("Each step of adaptive control {}.{hint}", closes(connections))
}

/// Returns the next step for the owner of the policy; `None` if no action is needed.
fn next(policy: &IdleConnectionPolicy, status: &IdleConnectionPolicyStatus) -> Option<String> {
    let is = |type_| reason(status, type_);
    let (ready, metrics) = (is(ConditionType::Ready), status_of(status, ConditionType::MetricsAvailable));
    match (status_of(status, ConditionType::Ready), is(ConditionType::Programmed)) {
        (Some(State::True), Some(Reason::Drifted)) if policy.spec.drift_policy == DriftPolicy::Report => {
            return Some("change the limit back on the node, or set spec.driftPolicy to Correct".into());
        }
        (Some(State::True), Some(Reason::Contended)) => {
            return Some("find the other client and stop it, or declare its value".into());
        }
        (Some(State::True), Some(Reason::Partial)) => return Some("check the nodes that do not answer".into()),
        (Some(State::True), _) => {}
        _ => return Some(fix(status)),
    }
    let mode = policy.spec.adaptive.as_ref().map_or(Mode::Disabled, |adaptive| adaptive.mode);
    if mode == Mode::Disabled {
        return None;
    }
    if is(ConditionType::MetricsAvailable) == Some(Reason::Pending) {
        return Some("wait until the nodes have been asked".into());
    }
    if metrics != Some(State::True) {
        return Some("make the task count available again; see spec.adaptive.signal and the cause above".into());
    }
    let (limited, effective) = (is(ConditionType::TighteningLimited), is(ConditionType::TighteningEffective));
    if effective == Some(Reason::Ineffective) || (ready, limited) == (Some(Reason::Succeeded), Some(Reason::PoolsTooSmall)) {
        let node = status.tasks.as_ref().and_then(|tasks| tasks.node.as_deref()).unwrap_or("the node with the most tasks");
        return Some(format!("take a goroutine profile of {node}; the tasks are not idle connections"));
    }
    if effective == Some(Reason::Harmful) {
        return Some("raise spec.adaptive.floor: at the tightened limits the load opens more connections than it saves".into());
    }
    let next = match limited? {
        Reason::AtFloor if effective == Some(Reason::Measuring) => return None,
        Reason::AtFloor => "lower spec.adaptive.floor, add nodes, or find the clients that open so many connections",
        Reason::BudgetExhausted => "wait, or raise spec.adaptive.behavior.maxChangesPerHour",
        // The declared limits may be higher than those that the processes use. Then a restart does not lower the task count.
        Reason::RestartForbidden if effective == Some(Reason::NotTightened) => {
            "compare status.limits.desired with the limits that the processes started with; a restart brings the declared limits into effect, lower or higher"
        }
        Reason::RestartForbidden => "restart the nodes, one after the other",
        Reason::NotInEffect => {
            "make the nodes report the limits that they use (spec.target.configMap.hash), or restart them, one after the other"
        }
        Reason::Paused if policy.spec.suspend => "to resume, set spec.suspend to false",
        Reason::Paused => return Some(format!("to resume, run {}", resume(policy))),
        _ if status.recommendation.is_some() && mode == Mode::Recommend => {
            "to apply the recommendation, set spec.adaptive.mode to Enforce"
        }
        _ => return None,
    };
    Some(next.into())
}

/// Returns the command that ends the pauses of a policy.
fn resume(policy: &IdleConnectionPolicy) -> String {
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    let namespace = policy.metadata.namespace.as_ref().map(|namespace| format!(" -n {namespace}")).unwrap_or_default();
    format!("kubectl idleconn resume {name}{namespace}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn told(adaptive: bool, conditions: &[(&str, &str, &str, &str)], more: &Json) -> String {
        let spec = if adaptive { json!({"adaptive": {"mode": "Enforce"}}) } else { json!({}) };
        explained(&spec, conditions, more)
    }

    fn explained(spec: &Json, conditions: &[(&str, &str, &str, &str)], more: &Json) -> String {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(t, s, r, m)| json!({"type": t, "status": s, "reason": r, "message": m, "lastTransitionTime": "2026-01-01T00:00:00Z"}))
            .collect();
        let mut status = json!({"observedGeneration": 1, "conditions": conditions, "nodes": {"summary": "3/3", "total": 3, "programmed": 3, "inEffect": 3, "unreachable": 0, "drifted": 0}});
        status.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        let mut spec = spec.clone();
        spec["target"] = json!({"type": "Caddy", "caddy": {"endpoints": ["http://10.0.0.1:2019"]}});
        let policy = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": "gw", "generation": 1}, "spec": spec, "status": status});
        let policy = serde_json::from_value(policy).expect("a policy");
        sentences(&policy, "2026-01-01T00:05:00Z".parse().expect("a time"))
    }

    const READY: (&str, &str, &str, &str) = ("Ready", "True", "Succeeded", "All 3 nodes");
    const FRESH: (&str, &str, &str, &str) = ("MetricsAvailable", "True", "Fresh", "3 of 3");

    #[test]
    fn a_policy_at_rest() {
        assert_eq!(
            told(false, &[READY], &json!({})),
            "The limits of gw are in order on 3/3 nodes.\nThe limits stay as declared, because spec.adaptive is absent or Disabled.\nNo action needed.\n"
        );
    }

    #[test]
    fn the_time_of_an_update_is_named() {
        let told = |spec: Json, total: u32| {
            let limits = json!({"limits": {"server": {"idleTimeout": "30s"}}});
            let mut spec = spec;
            spec.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
            let nodes = json!({"summary": "", "total": total, "programmed": 0, "inEffect": 0, "unreachable": 0, "drifted": 0});
            explained(&spec, &[("Ready", "True", "Succeeded", "")], &json!({"nodes": nodes}))
        };
        let slow = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxNodes": 10, "pause": "10s"}}});
        for (spec, total, sentence) in [
            (
                slow,
                5_000,
                "A change is written in 500 batches of at most 10 nodes, which takes at least 83m (spec.updateStrategy).",
            ),
            (
                json!({}),
                20,
                "A change is written in 4 batches of at most 5 nodes, which takes at least 30s (spec.updateStrategy).",
            ),
            (json!({}), 1, "A change is written in batches of at most 1 node (spec.updateStrategy)."),
            (
                json!({"updateStrategy": {"type": "AllAtOnce"}}),
                20,
                "A change is written to all nodes at the same time (spec.updateStrategy).",
            ),
        ] {
            let text = told(spec, total);
            assert!(text.contains(sentence), "{text}");
        }
    }

    #[test]
    fn the_cost_of_a_change_is_named() {
        let explained = |adaptive: Json, tasks: Json| {
            let mut spec = json!({
                "target": {"type": "Caddy", "caddy": {"endpoints": ["http://10.0.0.1:2019"]}},
                "limits": {"server": {"idleTimeout": "30s"}},
            });
            spec.as_object_mut().expect("an object").extend(adaptive.as_object().cloned().unwrap_or_default());
            let status = json!({"observedGeneration": 1, "conditions": [], "tasks": tasks});
            let policy = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": "gw", "generation": 1}, "spec": spec, "status": status});
            sentences(&serde_json::from_value(policy).expect("a policy"), Timestamp::UNIX_EPOCH)
        };
        let text = explained(json!({}), json!({}));
        assert!(text.contains("\nEach change of these limits closes all idle connections of the server.\n"), "{text}");
        assert!(!text.contains("Each step"), "{text}");

        let floor = json!({"server": {"idleTimeout": "1s"}});
        let text = explained(json!({"adaptive": {"mode": "Enforce", "floor": floor}}), json!({}));
        let all = "\nEach step of adaptive control closes all idle connections of the target, and clients reconnect.";
        assert!(
            text.contains(&format!("{all} To see how many there are, set spec.adaptive.signal.idleConnections.\n")),
            "{text}"
        );
        let signal = json!({"idleConnections": {"metric": "idle"}});
        let counted = json!({"adaptive": {"mode": "Enforce", "floor": floor, "signal": signal}});
        assert!(explained(counted.clone(), json!({})).contains(&format!("{all}\n")));
        let text = explained(counted, json!({"idleConnections": 4300}));
        let some = "\nEach step of adaptive control closes about 4300 idle connections, and clients reconnect.\n";
        assert!(text.contains(some), "{text}");
    }

    #[test]
    fn the_profile_is_of_the_node_with_the_most_tasks() {
        let ineffective = ("TighteningEffective", "False", "Ineffective", "m");
        let text = told(true, &[READY, FRESH, ineffective], &json!({"tasks": {"node": "gw-3"}}));
        assert!(text.ends_with("Next: take a goroutine profile of gw-3; the tasks are not idle connections.\n"), "{text}");
    }

    #[test]
    fn a_contended_policy_is_not_in_order() {
        let contended = ("Programmed", "False", "Contended", "Another client keeps changing x");
        let text = told(false, &[READY, contended], &json!({}));
        assert!(
            text.starts_with(
                "gw was applied, and its limits are now stored on 3/3 nodes (Contended): Another client keeps changing x.\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_tightening_that_helped() {
        let history = json!({"history": [{"time": "2026-01-01T00:01:00Z", "fromPercent": 100, "toPercent": 55, "reason": "131% of the threshold for 2m"}]});
        let text = told(
            true,
            &[
                READY,
                FRESH,
                ("HighTaskCount", "False", "UnderThreshold", "12 tasks"),
                ("Tightened", "True", "Holding", "The limits are held at 55%"),
                ("TighteningEffective", "True", "Effective", "The last tightening lowered the task count"),
                ("TighteningLimited", "False", "NotLimited", "-"),
            ],
            &history,
        );
        assert_eq!(
            text,
            "The limits of gw are in order on 3/3 nodes.\nThe task count is below the threshold: 12 tasks.\nThe limits are held at 55%.\n4m ago the limits were \
             tightened from 100% to 55% (131% of the threshold for 2m).\nThe last tightening lowered the task count.\n\
             No action needed.\n"
        );
    }

    #[test]
    fn explain_names_who_restarts_the_nodes() {
        for (reason, next) in [
            ("RestartRequired", "m. Restart those nodes, or set spec.restart.policy to Rolling."),
            ("RollingOut", "m. The operator continues automatically."),
            ("RestartStalled", "m. Repair that node; the operator continues when the node is back."),
        ] {
            let text = told(false, &[READY, ("InEffect", "False", reason, "m")], &json!({}));
            assert!(text.contains(&format!("The processes do not use the stored limits yet: {next}")), "{text}");
        }
    }

    #[test]
    fn what_the_next_step_waits_for_is_told_during_an_episode_only() {
        for (high, limited, expected) in [
            ("True", ("False", "NotLimited"), "\nm1.\n"),
            ("False", ("False", "NotLimited"), ""),
            ("True", ("True", "Locked"), "\nAdaptive control is limited: m1.\n"),
            ("False", ("True", "Locked"), "\nAdaptive control is limited: m1.\n"),
        ] {
            let (high_reason, (status, reason)) = (if high == "True" { "OverThreshold" } else { "UnderThreshold" }, limited);
            let high = ("HighTaskCount", high, high_reason, "m0");
            let text = told(true, &[READY, FRESH, high, ("TighteningLimited", status, reason, "m1")], &json!({}));
            assert_eq!(text.contains("m1"), !expected.is_empty(), "{text}");
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn nothing_more_is_said_about_a_policy_that_governs_nothing() {
        let conflicted = ("Ready", "False", "Conflicted", "An older policy governs it");
        let refused = ("Accepted", "False", "Conflicted", "An older policy governs it");
        assert_eq!(
            told(true, &[conflicted, refused], &json!({})),
            "gw is not in order (Conflicted): An older policy governs it.\n\
             Next: delete one of the policies, or change its target (for a ConfigMap, another key); the message names the other owner.\n"
        );
        assert_eq!(
            told(true, &[("Ready", "Unknown", "Released", "The operator was uninstalled")], &json!({})),
            "gw is not in order (Released): The operator was uninstalled.\n\
             Next: install the operator again, or delete the policy.\n"
        );
    }

    #[test]
    fn reported_drift_has_its_next_step_and_corrected_drift_has_none() {
        let drifted = [READY, ("Programmed", "False", "Drifted", "m"), ("InEffect", "False", "Drifted", "gw-1 uses 77s")];
        for (policy, next) in [
            ("Report", "Next: change the limit back on the node, or set spec.driftPolicy to Correct.\n"),
            ("Correct", "No action needed.\n"),
        ] {
            let text = explained(&json!({"driftPolicy": policy}), &drifted, &json!({}));
            assert!(text.contains("gw-1 uses 77s.\n") && text.ends_with(next), "{text}");
        }
    }

    #[test]
    fn a_reason_of_another_version_is_told_in_its_words() {
        for (status, expected) in [
            ("False", "gw is not in order (OfTomorrow): All is otherwise.\n"),
            ("True", "The limits of gw are in order on 3/3 nodes.\n"),
        ] {
            let text = told(false, &[("Ready", status, "OfTomorrow", "All is otherwise")], &json!({}));
            assert!(text.starts_with(expected), "{text}");
        }
    }

    #[test]
    fn each_problem_has_its_next_step() {
        for (conditions, next) in [
            (vec![READY, FRESH, ("TighteningLimited", "True", "AtFloor", "m")], "Next: lower spec.adaptive.floor"),
            (
                vec![READY, FRESH, ("TighteningLimited", "True", "Paused", "m")],
                "Next: to resume, run kubectl idleconn resume gw.\n",
            ),
            (
                vec![READY, FRESH, ("TighteningEffective", "False", "Ineffective", "m")],
                "Next: take a goroutine profile of the node with the most tasks; the tasks are not idle connections.",
            ),
            (
                vec![
                    READY,
                    FRESH,
                    ("TighteningEffective", "False", "Harmful", "m"),
                    ("TighteningLimited", "True", "Locked", "m"),
                ],
                "Next: raise spec.adaptive.floor: at the tightened limits the load opens more connections than it saves.",
            ),
            (vec![READY, FRESH, ("TighteningLimited", "True", "RestartForbidden", "m")], "Next: restart the nodes"),
            (
                vec![READY, FRESH, ("TighteningLimited", "True", "NotInEffect", "m")],
                "Next: make the nodes report the limits that they use",
            ),
            (vec![READY, ("MetricsAvailable", "False", "NoSeries", "m")], "Next: make the task count available again"),
            (
                vec![("Ready", "False", "TargetNotFound", "m")],
                "Next: create one in the namespace of the policy, or correct spec.target.\n",
            ),
            (vec![("Ready", "False", "Progressing", "m")], "Next: fix the problem above; the operator retries automatically."),
            (vec![READY, ("Programmed", "False", "Contended", "m")], "Next: find the other client and stop it"),
            (vec![READY, ("Programmed", "False", "Partial", "m")], "Next: check the nodes that do not answer"),
        ] {
            let text = told(true, &conditions, &json!({}));
            assert!(text.contains(next), "{text}");
        }
    }
}
