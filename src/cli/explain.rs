//! A status in sentences, for a person at three in the morning: what is, why, and what to do.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::{
    api::{
        IdleConnectionPolicy, IdleConnectionPolicyStatus,
        adaptive::Mode,
        conditions::{ConditionType, Reason, State},
        restart::RestartPolicy,
    },
    decide::{
        self,
        adapt::spoken,
        condition::{find, reason},
        flushes,
        state::State as AdaptiveState,
    },
    targets,
};

/// The story of a policy.
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
        say(&format!(
            "{name}: the operator has not looked at this version of the policy yet. Is it running, and does it watch this namespace?"
        ));
        return text;
    }
    let message =
        |type_| find(status, type_).map(|condition| (state_of(status, type_), reason(status, type_), &condition.message));
    let nodes = status.nodes.as_ref().map(|nodes| format!(" on {} nodes", nodes.summary)).unwrap_or_default();
    match (message(ConditionType::Ready), message(ConditionType::Programmed)) {
        (Some((Some(State::True), Some(Reason::Succeeded), _)), Some((Some(State::False), Some(reason), message))) => {
            say(&format!("{name} was written, and is held{nodes} now ({reason}): {message}."));
        }
        (Some((Some(State::True), ..)), _) => say(&format!("{name} is in order{nodes}.")),
        (Some((_, Some(reason), message)), _) => say(&format!("{name} is not in order ({reason}): {message}.")),
        _ => say(&format!("{name}: nothing is known yet.")),
    }
    if let Some((_, Some(reason), message)) = message(ConditionType::InEffect) {
        let rolls = policy.spec.restart.as_ref().is_some_and(|restart| restart.policy == RestartPolicy::Rolling);
        let next = match reason {
            Reason::RollingOut => Some("The operator goes on by itself."),
            Reason::RestartStalled => Some("Mend that node; the operator goes on when it is back."),
            Reason::RestartRequired if rolls => Some("The operator restarts them when it may."),
            Reason::RestartRequired => Some("Restart those nodes, or set spec.restart.policy to Rolling."),
            _ => None,
        };
        match (next, reason) {
            (Some(next), _) => say(&format!("What is stored is not yet what the processes use: {message}. {next}")),
            (None, Reason::MeasuredDifferently) => say(&format!(
                "A server does not do what is programmed: {message}. Check that spec.verify probes the right port, and look for a proxy in front of it."
            )),
            (None, Reason::NotMeasured) => say(&format!("{message}.")),
            _ => {}
        }
    }
    if !status.unsupported.is_empty() {
        say(&format!(
            "Not governed, because the target has no place for it or no way to say it: {}.",
            status.unsupported.join(", ")
        ));
    }
    let traits = targets::traits(&policy.spec.target);
    for flushes in flushes::flushes(&decide::declare(&policy.spec, &traits), &traits) {
        say(&format!("{}.", flushes.sentence()));
    }
    let mode = policy.spec.adaptive.as_ref().map_or(Mode::Disabled, |adaptive| adaptive.mode);
    if mode == Mode::Disabled {
        say("The limits are what Git declares; nothing moves them (spec.adaptive is absent or Disabled).");
        return text;
    }
    if let Some((Some(State::False | State::Unknown), Some(reason), message)) = message(ConditionType::MetricsAvailable) {
        say(&format!("The tasks cannot be counted ({reason}): {message}. Until they can, nothing is tightened."));
    }
    if let Some((state, _, message)) = message(ConditionType::HighTaskCount) {
        match state {
            Some(State::True) => say(&format!("There are too many tasks: {message}.")),
            Some(State::False) => say(&format!("The task count is fine: {message}.")),
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
            "{} ago it {way} them from {} % to {} %, because of {}.",
            spoken(ago.max(0)),
            last.from_percent,
            last.to_percent,
            last.reason
        ));
    }
    if let Some((state, _, message)) =
        message(ConditionType::TighteningEffective).filter(|(_, reason, _)| *reason != Some(Reason::NotTightened))
    {
        say(&format!("{}: {message}.", if state == Some(State::True) { "It helped" } else { "Whether it helped" }));
    }
    let locked = adaptive_state(status).lockout.map(|lockout| lockout.until).filter(|until| *until > now.as_millisecond());
    if let Some(until) = locked.and_then(|until| Timestamp::from_millisecond(until).ok()) {
        say(&format!("Nothing is tightened until {until}, because the last attempt could not help."));
    }
    if let Some((Some(State::True), _, message)) = message(ConditionType::TighteningLimited) {
        say(&format!("It would do more and may not: {message}."));
    }
    if let Some(recommended) = &status.recommendation {
        say(&format!(
            "It recommends to go to {} % ({}). To let it: set spec.adaptive.mode to Enforce, and remove any pause.",
            recommended.openness_percent, recommended.reason
        ));
    }
    say(&format!("Next: {}", next(status)));
    text
}

/// What adaptive control has written down; as at the beginning where it has not.
fn adaptive_state(status: &IdleConnectionPolicyStatus) -> AdaptiveState {
    let text = status.control.as_ref().and_then(|control| control.adaptation.as_deref());
    text.map_or_else(AdaptiveState::default, AdaptiveState::decode)
}

/// The status of a condition as this version knows its reason.
fn state_of(status: &IdleConnectionPolicyStatus, type_: ConditionType) -> Option<State> {
    type_.state(reason(status, type_)?)
}

/// What to do now.
fn next(status: &IdleConnectionPolicyStatus) -> &'static str {
    let is = |type_| reason(status, type_);
    let (ready, metrics) = (is(ConditionType::Ready), state_of(status, ConditionType::MetricsAvailable));
    if !matches!(ready, Some(Reason::Succeeded | Reason::Suspended)) {
        return "mend what the first sentence names; the operator tries again by itself.";
    }
    if metrics != Some(State::True) {
        return "make the task count available again: see adaptive.signal and the sentence above.";
    }
    let (limited, effective) = (is(ConditionType::TighteningLimited), is(ConditionType::TighteningEffective));
    if effective == Some(Reason::Ineffective) || (ready, limited) == (Some(Reason::Succeeded), Some(Reason::PoolsTooSmall)) {
        return "look for what else runs tasks: requests in flight, slow backends, a leak. A goroutine profile of the node named above tells.";
    }
    match limited {
        Some(Reason::AtFloor) => "lower adaptive.floor, add nodes, or find who opens so many connections.",
        Some(Reason::BudgetExhausted) => "wait, or raise adaptive.behavior.maxChangesPerHour.",
        // What is declared may be more than what the processes use: a restart is no remedy for too many tasks then.
        Some(Reason::RestartForbidden) if effective == Some(Reason::NotTightened) => {
            "compare limits.desired with what the processes were started with; a restart brings the declared limits into effect, lower or higher."
        }
        Some(Reason::RestartForbidden) => "restart the nodes, one after the other.",
        Some(Reason::NotInEffect) => {
            "let the nodes say what they use (target.configMap.hash), or restart them, one after the other."
        }
        Some(Reason::Paused) => "resume it by removing the annotation (or spec.suspend) when you are done.",
        _ => "nothing; it looks after itself.",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn told(adaptive: bool, conditions: &[(&str, &str, &str, &str)], more: &Json) -> String {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(t, s, r, m)| json!({"type": t, "status": s, "reason": r, "message": m, "lastTransitionTime": "2026-01-01T00:00:00Z"}))
            .collect();
        let mut status = json!({"observedGeneration": 1, "conditions": conditions, "nodes": {"summary": "3/3", "total": 3, "programmed": 3, "inEffect": 3, "unreachable": 0, "drifted": 0}});
        status.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        let mut spec = json!({"target": {"type": "Caddy", "caddy": {"endpoints": ["http://10.0.0.1:2019"]}}});
        if adaptive {
            spec["adaptive"] = json!({"mode": "Enforce"});
        }
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
            "gw is in order on 3/3 nodes.\nThe limits are what Git declares; nothing moves them (spec.adaptive is absent or Disabled).\n"
        );
    }

    #[test]
    fn a_policy_of_a_server_that_reloads_says_so() {
        let spec = json!({
            "target": {"type": "Caddy", "caddy": {"endpoints": ["http://10.0.0.1:2019"]}},
            "limits": {"server": {"idleTimeout": "30s"}},
        });
        let status = json!({"observedGeneration": 1, "conditions": []});
        let policy = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": "gw", "generation": 1}, "spec": spec, "status": status});
        let text = sentences(&serde_json::from_value(policy).expect("a policy"), Timestamp::UNIX_EPOCH);
        assert!(text.contains("\nEach change of these limits closes all idle connections of the server.\n"), "{text}");
    }

    #[test]
    fn a_policy_that_somebody_contests_is_not_in_order() {
        let contended = ("Programmed", "False", "Contended", "Somebody else keeps changing x");
        let text = told(false, &[READY, contended], &json!({}));
        assert!(
            text.starts_with("gw was written, and is held on 3/3 nodes now (Contended): Somebody else keeps changing x.\n"),
            "{text}"
        );
    }

    #[test]
    fn one_that_tightened_and_it_helped() {
        let history = json!({"history": [{"time": "2026-01-01T00:01:00Z", "fromPercent": 100, "toPercent": 55, "reason": "131 % of the threshold for 2m"}]});
        let text = told(
            true,
            &[
                READY,
                FRESH,
                ("HighTaskCount", "False", "UnderThreshold", "12 tasks"),
                ("Tightened", "True", "Holding", "The limits are 55 % open"),
                ("TighteningEffective", "True", "Effective", "The last tightening lowered the task count"),
                ("TighteningLimited", "False", "NotLimited", "-"),
            ],
            &history,
        );
        assert_eq!(
            text,
            "gw is in order on 3/3 nodes.\nThe task count is fine: 12 tasks.\nThe limits are 55 % open.\n4m ago it tightened them from 100 % to 55 %, \
             because of 131 % of the threshold for 2m.\nIt helped: The last tightening lowered the task count.\nNext: nothing; it looks after itself.\n"
        );
    }

    #[test]
    fn who_restarts_the_nodes_is_said() {
        for (reason, next) in [
            ("RestartRequired", "m. Restart those nodes, or set spec.restart.policy to Rolling."),
            ("RollingOut", "m. The operator goes on by itself."),
            ("RestartStalled", "m. Mend that node; the operator goes on when it is back."),
        ] {
            let text = told(false, &[READY, ("InEffect", "False", reason, "m")], &json!({}));
            assert!(text.contains(&format!("What is stored is not yet what the processes use: {next}")), "{text}");
        }
    }

    #[test]
    fn until_when_nothing_is_tightened_is_said() {
        let locked = |hours: i64| {
            let until = "2026-01-01T00:00:00Z".parse::<Timestamp>().expect("a time").as_millisecond() + hours * 3_600_000;
            let state =
                AdaptiveState { lockout: Some(crate::decide::state::Lockout { until, times: 0 }), ..AdaptiveState::default() };
            told(true, &[READY, FRESH], &json!({"control": {"loop": state.encode()}}))
        };
        let sentence = "Nothing is tightened until 2026-01-01T04:00:00Z, because the last attempt could not help.";
        assert!(locked(4).contains(sentence), "{}", locked(4));
        assert!(!locked(0).contains("Nothing is tightened until"), "it is over");
    }

    #[test]
    fn each_trouble_has_its_next_step() {
        for (conditions, next) in [
            (vec![READY, FRESH, ("TighteningLimited", "True", "AtFloor", "m")], "Next: lower adaptive.floor"),
            (vec![READY, FRESH, ("TighteningLimited", "True", "Paused", "m")], "Next: resume it"),
            (vec![READY, FRESH, ("TighteningEffective", "False", "Ineffective", "m")], "Next: look for what else runs tasks"),
            (vec![READY, FRESH, ("TighteningLimited", "True", "RestartForbidden", "m")], "Next: restart the nodes"),
            (vec![READY, FRESH, ("TighteningLimited", "True", "NotInEffect", "m")], "Next: let the nodes say what they use"),
            (vec![READY, ("MetricsAvailable", "False", "NoSeries", "m")], "Next: make the task count available again"),
            (vec![("Ready", "False", "TargetNotFound", "m")], "Next: mend what the first sentence names"),
        ] {
            let text = told(true, &conditions, &json!({}));
            assert!(text.contains(next), "{text}");
        }
    }
}
