//! What the probes of a policy's nodes say together, and what the condition `InEffect` says about them.

use std::{collections::BTreeMap, time::Duration};

use super::{
    NodeState, Unit, UnitResult,
    measured::{Idled, error, time},
    report::condition::{ConditionText, said, shortened, shortened_to_bytes, state},
};
use crate::api::{
    Limit, Value,
    conditions::{ConditionType, Reason, State},
    wording::with_noun,
};

/// The maximum length of a node's name (bytes) and of a reason (characters) in a condition.
const MAX_NAME: usize = 80;
const MAX_REASON: usize = 300;
/// The smallest step in which a measured time is reported, so that small differences do not change the status.
const STEP: Duration = Duration::from_millis(100);

/// The result of a node's last probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The idle timeout that the node stored when the probe began. The probe says nothing about another value.
    pub programmed: Option<Duration>,
    /// How long the connection stayed open, see [`steady`]; or why that was not measured.
    pub outcome: Result<Idled, String>,
}

/// The last probe of each node, by [`key`]. A node that has not been probed is absent.
pub type Probes = BTreeMap<String, Probe>;

/// A node's key among all nodes of a policy.
#[must_use]
pub fn key(unit: &Unit, node: &NodeState) -> String {
    format!("{} {}", unit.id, node.name)
}

/// The server's idle timeout that a node stores; `None` where it stores none, or no limit.
#[must_use]
pub fn programmed(node: &NodeState) -> Option<Duration> {
    match node.stored.as_ref().ok()?.get(&Limit::ServerIdleTimeout)? {
        Some(Value::Duration(time)) if !time.is_zero() => Some(*time),
        _ => None,
    }
}

/// A measured time as it is reported: the programmed time or the previous one, if it equals that within the error;
/// otherwise rounded.
#[must_use]
pub fn steady(measured: Idled, programmed: Option<Duration>, before: Option<Idled>) -> Idled {
    let Idled::Closed(after) = measured else { return measured };
    let near = |other: &Duration| is_same(after, *other);
    let before = before.and_then(|before| if let Idled::Closed(before) = before { Some(before) } else { None });
    if let Some(same) = programmed.filter(near).or_else(|| before.filter(near)) {
        return Idled::Closed(same);
    }
    let steps = (after.as_millis() + STEP.as_millis() / 2) / STEP.as_millis();
    Idled::Closed(STEP * u32::try_from(steps).unwrap_or(u32::MAX))
}

/// The combined probes of all nodes that answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The number of nodes to measure.
    nodes: usize,
    /// The number of nodes that do what they store.
    agree: usize,
    /// The first node by name that does something else: its name, what it does, and what it stores.
    differs: Option<(String, Idled, Duration)>,
    /// The number of nodes that do something else.
    different: usize,
    /// The first node by name that could not be measured, and why.
    failed: Option<(String, String)>,
    /// The idle timeout that was measured on every node, equal within 1% or 250 ms; `None` where one was not measured
    /// or differs.
    pub shared: Option<Duration>,
}

/// The probe of a node, unless the node has stored another value since.
#[must_use]
pub fn probe_of<'a>(probes: &'a Probes, unit: &Unit, node: &NodeState) -> Option<&'a Probe> {
    probes.get(&key(unit, node)).filter(|probe| probe.programmed == programmed(node))
}

/// Counts the probes of the nodes that answered.
#[must_use]
pub fn verified(units: &[UnitResult], probes: &Probes) -> Verified {
    let mut found = Verified::default();
    let mut times = Vec::new();
    for (unit, node) in units
        .iter()
        .filter_map(|result| Some((&result.unit, result.state.as_ref().ok()?)))
        .flat_map(|(unit, state)| state.nodes.iter().filter(|node| node.stored.is_ok()).map(move |node| (unit, node)))
    {
        found.nodes += 1;
        let Some(probe) = probe_of(probes, unit, node) else { continue };
        let name = || shortened_to_bytes(&node.name, MAX_NAME);
        let first = |seen: Option<&String>| seen.is_none_or(|seen| *seen > node.name);
        match (&probe.outcome, probe.programmed) {
            (Ok(idled), Some(expected)) if idled.meets(expected) == Some(false) => {
                found.different += 1;
                if first(found.differs.as_ref().map(|(name, ..)| name)) {
                    found.differs = Some((name(), *idled, expected));
                }
            }
            (Ok(Idled::Open(after)), Some(_)) => {
                if first(found.failed.as_ref().map(|(name, _)| name)) {
                    let reason = format!("its connection was still open after {}, when the probe ended", time(*after));
                    found.failed = Some((name(), reason));
                }
            }
            (Ok(_), expected) => found.agree += usize::from(expected.is_some()),
            (Err(reason), _) => {
                if first(found.failed.as_ref().map(|(name, _)| name)) {
                    found.failed = Some((name(), shortened(reason, MAX_REASON)));
                }
            }
        }
        if let Ok(Idled::Closed(after)) = probe.outcome {
            times.push(after);
        }
    }
    let answered = times.len();
    found.shared = shared(times).filter(|_| answered == found.nodes);
    found
}

/// The median of times that differ by no more than the error of a measurement.
fn shared(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    let (first, last) = (times.first()?, times.last()?);
    is_same(*last, *first).then(|| times[(times.len() - 1) / 2])
}

/// Whether two times are equal within the error of a measurement.
fn is_same(measured: Duration, other: Duration) -> bool {
    measured.abs_diff(other) <= error(other)
}

/// The message of `InEffect` with the probes. A process that is known not to use the limits comes first: probes only
/// add to what configurations say.
#[must_use]
pub fn refined(base: ConditionText, verified: &Verified) -> ConditionText {
    if state(ConditionType::InEffect, base.reason) == State::False {
        return base;
    }
    if let Some((name, idled, expected)) = &verified.differs {
        let did = match idled {
            Idled::Closed(after) => format!("closed an idle connection after {}", time(*after)),
            Idled::Open(after) => format!("kept an idle connection open for more than {}", time(*after)),
        };
        let more = match verified.different - 1 {
            0 => String::new(),
            more => format!("; {} differed too", with_noun(more, "other node", "other nodes")),
        };
        return said(Reason::MeasuredDifferently, format!("{name} {did}; {} is programmed{more}", time(*expected)));
    }
    if state(ConditionType::InEffect, base.reason) != State::True {
        return base;
    }
    if let Some((name, reason)) = &verified.failed {
        return said(Reason::NotMeasured, format!("{}; {name} was not measured: {reason}", base.message));
    }
    if verified.nodes > 0 && verified.agree == verified.nodes {
        let message = match verified.nodes {
            1 => "The server of the node closes idle connections after the programmed time".to_owned(),
            nodes => format!("The servers of all {nodes} nodes close idle connections after the programmed time"),
        };
        return said(Reason::Measured, message);
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::UnitState;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn base() -> ConditionText {
        said(Reason::InEffect, "The processes of all nodes use the declared limits".to_owned())
    }

    /// Nodes that store 30 s, each with the result of its probe.
    fn of(outcomes: &[Option<Result<Idled, &str>>]) -> Verified {
        let unit = |n: usize| Unit { id: format!("u{n}"), name: format!("gateway-{n}"), address: String::new(), role: None };
        let node = |n: usize| {
            let stored = [(Limit::ServerIdleTimeout, Some(Value::Duration(ms(30_000))))];
            NodeState::new(format!("gateway-{n}"), Ok(stored.into()))
        };
        let state = |n| Ok(UnitState { nodes: vec![node(n)], ..UnitState::default() });
        let units: Vec<_> = (0..outcomes.len()).map(|n| UnitResult { unit: unit(n), state: state(n), write: None }).collect();
        let probe =
            |outcome: Result<Idled, &str>| Probe { programmed: Some(ms(30_000)), outcome: outcome.map_err(str::to_owned) };
        let probes = outcomes.iter().enumerate().filter_map(|(n, outcome)| Some((key(&unit(n), &node(n)), probe((*outcome)?))));
        verified(&units, &probes.collect())
    }

    const AGREES: Option<Result<Idled, &str>> = Some(Ok(Idled::Closed(ms(30_000))));

    #[test]
    fn in_effect_says_what_was_measured_and_never_a_guess() {
        let late = Some(Ok(Idled::Closed(ms(300_000))));
        let open = Some(Ok(Idled::Open(ms(360_000))));
        for (outcomes, reason, part) in [
            (&[AGREES, AGREES][..], Reason::Measured, "all 2 nodes"),
            (&[AGREES, None], Reason::InEffect, "use the declared"),
            (&[AGREES, late], Reason::MeasuredDifferently, "gateway-1 closed an idle connection after 5m; 30s is programmed"),
            (
                &[late, open, late],
                Reason::MeasuredDifferently,
                "gateway-0 closed an idle connection after 5m; 30s is programmed; 2 other nodes differed too",
            ),
            (&[open], Reason::MeasuredDifferently, "gateway-0 kept an idle connection open for more than 6m; 30s is programmed"),
            (&[AGREES, Some(Err("cannot connect"))], Reason::NotMeasured, "gateway-1 was not measured: cannot connect"),
            (&[Some(Err("cannot connect")), late], Reason::MeasuredDifferently, "gateway-1"),
            (&[Some(Ok(Idled::Open(ms(20_000))))], Reason::NotMeasured, "still open after 20s"),
            (&[], Reason::InEffect, "use the declared"),
        ] {
            let said = refined(base(), &of(outcomes));
            assert_eq!(said.reason, reason, "{outcomes:?}");
            assert!(said.message.contains(part), "{}", said.message);
        }
        let pending = || said(Reason::RestartRequired, "2 of 2 nodes".to_owned());
        assert_eq!(refined(pending(), &of(&[late])), pending(), "what is known comes first");
        let unknown = || said(Reason::NotObserved, "m".to_owned());
        assert_eq!(refined(unknown(), &of(&[AGREES])), unknown());
        assert_eq!(refined(unknown(), &of(&[late])).reason, Reason::MeasuredDifferently);
    }

    #[test]
    fn one_time_is_reported_where_all_nodes_have_it() {
        assert_eq!(of(&[AGREES, AGREES]).shared, Some(ms(30_000)));
        assert_eq!(of(&[AGREES, None]).shared, None);
        assert_eq!(of(&[AGREES, Some(Ok(Idled::Closed(ms(30_300)))), AGREES]).shared, Some(ms(30_000)), "no more than an error");
        assert_eq!(of(&[AGREES, Some(Ok(Idled::Closed(ms(30_301))))]).shared, None);
        assert_eq!(of(&[AGREES, Some(Ok(Idled::Closed(ms(9_000))))]).shared, None);
    }

    #[test]
    fn a_probe_says_nothing_of_another_value() {
        let unit = Unit { id: "u".into(), name: "u".into(), address: String::new(), role: None };
        let node = NodeState::new("n", Ok([(Limit::ServerIdleTimeout, Some(Value::Duration(ms(9_000))))].into()));
        let probe = Probe { programmed: Some(ms(30_000)), outcome: Ok(Idled::Closed(ms(30_000))) };
        assert_eq!(probe_of(&[(key(&unit, &node), probe)].into(), &unit, &node), None);
    }

    #[test]
    fn a_little_more_or_less_is_no_news() {
        let closed = |n| Idled::Closed(ms(n));
        for (measured, programmed, before, reported) in [
            (30_004, Some(30_000), None, 30_000),
            (30_290, Some(30_000), None, 30_000),
            (30_310, Some(30_000), None, 30_300),
            (30_310, Some(30_000), Some(30_200), 30_200),
            (29_987, None, None, 30_000),
            (30_049, None, Some(30_000), 30_000),
            (300_012, Some(30_000), None, 300_000),
        ] {
            let found = steady(closed(measured), programmed.map(ms), before.map(closed));
            assert_eq!(found, closed(reported), "{measured} {programmed:?} {before:?}");
        }
        assert_eq!(steady(Idled::Open(ms(7)), None, None), Idled::Open(ms(7)));
    }
}
