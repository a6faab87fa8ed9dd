//! Debug lines of a pass: the inputs of each decision, and the decision.
//!
//! They contain names, counts, limits and times: no secrets, and no responses of other servers. The span of the pass adds the
//! policy.

use std::error::Error;

use tracing::debug;

use super::{gather::UnitRead, waves::Admitted};
use crate::{
    api::wording::listed,
    decide::{
        Plan, Unit, UnitState,
        adaptive::{signal::Signal, step::Outcome},
        restart,
    },
};

/// Returns the text of an error with the texts of its sources, without those that it already contains.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// Joins the first few names, and counts the others.
pub fn names(names: impl IntoIterator<Item = impl ToString>) -> String {
    listed(&names.into_iter().map(|name| name.to_string()).collect::<Vec<_>>())
}

/// Logs which units the target has.
pub fn discovered(units: &[Unit]) {
    debug!(count = units.len(), units = names(units.iter().map(|unit| &unit.name)), "discovered the units");
}

/// Logs which units of a group were read.
pub fn read(answers: &[UnitRead]) {
    for (unit, state) in answers {
        match state {
            Ok(state) => {
                debug!(unit = unit.name, nodes = state.nodes.len(), config_paths = state.sites.len(), "read the unit");
            }
            Err(fault) => debug!(unit = unit.name, cause = ?fault.cause, "cannot read the unit"),
        }
    }
}

/// Logs which units of a group are written now, of so many that are to be written.
pub fn admitted(admitted: &Admitted, asked: usize) {
    let Admitted { flushed, started } = admitted;
    debug!(asked, written = flushed.len(), started = started.len(), "chose the units of the batch");
}

/// Logs the task count of the nodes.
pub fn signal(signal: &Signal) {
    match signal {
        Signal::Fresh(reading) => debug!(
            tasks = reading.percentile,
            threshold = reading.threshold,
            utilization = reading.up,
            utilization_for_relaxing = reading.down,
            fresh = reading.fresh,
            expected = reading.expected,
            over_threshold = reading.over,
            critical = reading.red,
            fullest = reading.node,
            "read the task count"
        ),
        Signal::Unasked { message } => debug!(cause = message, "the task count is not known yet"),
        Signal::Missing { reason, message } => debug!(%reason, cause = message, "the task count is not known"),
    }
}

/// Logs what adaptive control decided.
pub fn outcome(outcome: &Outcome) {
    let state = &outcome.state;
    debug!(
        phase = ?outcome.phase,
        limited = ?outcome.limit,
        openness = state.openness,
        episode = state.episode.is_some(),
        locked_out = state.lockout.is_some(),
        fallback = state.fallback,
        "evaluated adaptive control"
    );
    if let Some(judged) = &outcome.judged {
        let (verdict, before, after) = (<&str>::from(judged.verdict), judged.before, judged.after);
        debug!(verdict, utilization_before = before, utilization_after = after, "judged the last step");
    }
    if let Some(step) = &outcome.decision {
        debug!(from = step.from, to = step.to, reason = %step.reason, utilization = step.pressure, "decided on a step");
    }
    if let Some(step) = &outcome.recommendation {
        debug!(from = step.from, to = step.to, reason = %step.reason, utilization = step.pressure, "recommended a step");
    }
}

/// Logs how the units differ from the desired limits, and what is to be written.
pub fn plan(plan: &Plan, answered: &[(Unit, UnitState)]) {
    for drift in &plan.drift {
        debug!(
            unit = drift.unit,
            limit = %drift.limit,
            found = drift.found.map(|value| value.to_string()),
            desired = %drift.declared,
            restarted = drift.restarted,
            "another client or a restart changed a limit"
        );
    }
    for (unit, _) in answered {
        let Some(planned) = plan.units.get(&unit.id) else { continue };
        debug!(
            unit = unit.name,
            changes = planned.changes.len(),
            limits = names(planned.changes.iter().map(|change| change.site.limit)),
            originals_to_save = planned.capture.len(),
            originals_to_drop = planned.forget.len(),
            "the unit differs from the desired limits"
        );
    }
    debug!(
        units = answered.len(),
        differ = plan.units.len(),
        drift = plan.drift.len(),
        contended = names(&plan.contended),
        "compared the units with the desired limits"
    );
}

/// Logs what was decided about restarts.
pub fn restarts(outcome: &restart::RestartPlan, may_begin: bool, blocker: Option<&str>) {
    debug!(
        may_begin,
        restarting = names(outcome.control.nodes.iter().map(|node| &node.node)),
        finished = names(&outcome.finished),
        acts = ?outcome.acts,
        state = ?outcome.said,
        blocker,
        "decided about restarts"
    );
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
    use kube::core::Selector;
    use serde_json::json;
    use tracing::Level;

    use super::*;
    use crate::{
        api::Limit,
        decide::{Change, ConfigPath, NewValue, Stored, UnitPlan},
        pass,
    };

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_plan_is_logged_with_names_and_counts_and_without_content() {
        let site = ConfigPath { limit: Limit::BackendMaxIdleConns, place: "web".into() };
        let content = Some(json!("secret-of-the-node"));
        let unit = Unit { id: "u1".into(), name: "gateway-1".into(), address: "http://10.0.0.1:2019".into(), role: None };
        let stored = Stored { value: None, raw: content.clone() };
        let state = UnitState { sites: [(site.clone(), stored)].into(), ..UnitState::default() };
        let planned = UnitPlan {
            capture: [(site.clone(), content.clone())].into(),
            changes: vec![Change { site, to: NewValue::Raw(content) }],
            ..UnitPlan::default()
        };
        let planned = Plan { units: [("u1".to_owned(), planned)].into(), ..Plan::default() };
        let answered = [(unit, state)];

        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_max_level(Level::DEBUG).with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || plan(&planned, &answered));
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("UTF-8");
        for part in ["gateway-1", "changes=1", "backend.maxIdleConns", "differ=1"] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn a_chain_contains_each_text_once() {
        let wrong = LabelSelectorRequirement { key: "app".into(), operator: "Matches".into(), values: None };
        let selector = LabelSelector { match_expressions: Some(vec![wrong]), match_labels: None };
        let cause = Selector::try_from(selector).expect_err("no operator of Kubernetes");
        let text = cause.to_string();
        let whole = chain(&pass::Error::from(cause));
        assert!(whole.starts_with("the selector in spec.target") && whole.ends_with(&format!(": {text}")), "{whole}");
        let nested = io::Error::other(io::Error::other("connection refused"));
        assert_eq!(chain(&nested), "connection refused");
    }
}
