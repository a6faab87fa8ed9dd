//! The order of writes. A client has to close a connection before its server does, also while both settings are being
//! changed.

use super::{Change, NewValue, TargetCapabilities, UnitState};
use crate::api::{Limit, Value};

/// Whether a limit is an idle timeout of the client's side, or of the server's.
const fn is_time_of(limit: Limit, client: bool) -> bool {
    limit.is_idle_time() && limit.is_client() == client
}

/// One unit's changes in the order of writing; each part is read back before the next is written. The first part widens
/// the distance between client and server (a client's timeout shrinks, a server's grows), the second narrows it. There
/// is one part where the idle timeouts of only one side change.
#[must_use]
pub fn parts(changes: &[Change], state: &UnitState, traits: &TargetCapabilities) -> Vec<Vec<Change>> {
    let timed = |client: bool| changes.iter().any(|change| is_time_of(change.site.limit, client));
    if !(timed(true) && timed(false)) {
        return vec![changes.to_vec()];
    }
    let (first, then): (Vec<_>, Vec<_>) = changes.iter().cloned().partition(|change| !narrows(change, state, traits));
    [first, then].into_iter().filter(|part| !part.is_empty()).collect()
}

/// The changes of a file that may be written now. A file that is written is not yet used. A change that narrows the
/// distance between client and server therefore waits until no node reports that it uses an older file.
#[must_use]
pub fn due(changes: &[Change], state: &UnitState, traits: &TargetCapabilities) -> Vec<Change> {
    let timed = |client: bool| {
        let set = state.sites.iter().any(|(site, stored)| is_time_of(site.limit, client) && stored.value.is_some());
        set || changes.iter().any(|change| is_time_of(change.site.limit, client))
    };
    if !(timed(true) && timed(false)) {
        return changes.to_vec();
    }
    let widening: Vec<_> = changes.iter().filter(|change| !narrows(change, state, traits)).cloned().collect();
    let behind = state.nodes.iter().any(|node| node.uses == Some(false));
    // The first file is read at once and as a whole: there is nothing to keep in step with.
    let first = state.sites.values().all(|stored| stored.value.is_none());
    match widening.len() {
        _ if first => changes.to_vec(),
        0 if behind => Vec::new(),
        0 => changes.to_vec(),
        _ => widening,
    }
}

/// Whether a change narrows the distance between client and server: a client's idle timeout grows, or a server's
/// shrinks.
fn narrows(change: &Change, state: &UnitState, traits: &TargetCapabilities) -> bool {
    is_time_of(change.site.limit, grows(change, state, traits))
}

/// Whether a change makes an idle timeout longer. An unset one is the server's default, which counts as longer than any
/// value.
fn grows(change: &Change, state: &UnitState, traits: &TargetCapabilities) -> bool {
    let old = state.sites.get(&change.site).and_then(|stored| stored.value);
    let new = match &change.to {
        NewValue::Value(value) => Some(*value),
        NewValue::Raw(raw) => raw.as_ref().and_then(|raw| (traits.value)(change.site.limit, raw)),
    };
    match (new, old) {
        (Some(Value::Duration(new)), Some(Value::Duration(old))) if old.is_zero() => new.is_zero(),
        (Some(Value::Duration(new)), Some(Value::Duration(old))) => new.is_zero() || new > old,
        (Some(_), _) => false,
        (None, _) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::decide::{ConfigPath, NodeState, Stored};

    fn site(limit: Limit) -> ConfigPath {
        ConfigPath { limit, place: "x".into() }
    }

    fn seconds(s: u64) -> Value {
        Value::Duration(Duration::from_secs(s))
    }

    fn order(from: &[(Limit, Option<u64>)], to: &[(Limit, u64)]) -> Vec<Vec<Limit>> {
        let state = UnitState {
            sites: from.iter().map(|(limit, s)| (site(*limit), Stored { value: s.map(seconds), raw: None })).collect(),
            ..UnitState::default()
        };
        let changes: Vec<_> =
            to.iter().map(|(limit, s)| Change { site: site(*limit), to: NewValue::Value(seconds(*s)) }).collect();
        parts(&changes, &state, &TargetCapabilities::PLAIN)
            .into_iter()
            .map(|part| part.into_iter().map(|change| change.site.limit).collect())
            .collect()
    }

    const CLIENT: Limit = Limit::IntraClusterIdleConnTimeout;
    const SERVER: Limit = Limit::ServerIdleTimeout;
    const OTHER: Limit = Limit::ServerReadHeaderTimeout;

    #[test]
    fn shrinking_begins_with_the_client_and_growing_with_the_server() {
        let (wide, narrow) = (
            [(CLIENT, Some(20)), (SERVER, Some(30)), (OTHER, Some(1))],
            [(CLIENT, Some(5)), (SERVER, Some(6)), (OTHER, Some(1))],
        );
        assert_eq!(order(&wide, &[(CLIENT, 5), (SERVER, 6), (OTHER, 2)]), [vec![CLIENT, OTHER], vec![SERVER]]);
        assert_eq!(order(&narrow, &[(CLIENT, 20), (SERVER, 30)]), [[SERVER], [CLIENT]]);
        assert_eq!(order(&wide, &[(CLIENT, 5), (SERVER, 60)]), [[CLIENT, SERVER]], "both widen the distance");
        assert_eq!(order(&wide, &[(CLIENT, 25), (SERVER, 28)]), [[CLIENT, SERVER]], "both narrow it");
    }

    #[test]
    fn originals_are_put_back_in_the_order_of_what_they_are() {
        let traits = TargetCapabilities { value: |_, raw| raw.as_u64().map(seconds), ..TargetCapabilities::PLAIN };
        let restored = |from: [u64; 2], to: [Option<u64>; 2]| {
            let sites = [CLIENT, SERVER].map(site);
            let held = sites.iter().cloned().zip(from.map(|s| Stored { value: Some(seconds(s)), raw: None }));
            let state = UnitState { sites: held.collect(), ..UnitState::default() };
            let back = |(site, s): (ConfigPath, Option<u64>)| Change { site, to: NewValue::Raw(s.map(Into::into)) };
            let changes: Vec<_> = sites.into_iter().zip(to).map(back).collect();
            let first = parts(&changes, &state, &traits).remove(0);
            first.into_iter().map(|change| change.site.limit).collect::<Vec<_>>()
        };
        assert_eq!(restored([20, 30], [Some(90), Some(100)]), [SERVER], "the policy had tightened");
        assert_eq!(restored([150, 200], [Some(90), Some(100)]), [CLIENT], "the policy had widened");
        assert_eq!(restored([20, 30], [None, None]), [SERVER], "nothing was set");
    }

    #[test]
    fn one_side_alone_is_written_at_once() {
        assert_eq!(order(&[(CLIENT, Some(20)), (OTHER, Some(1))], &[(CLIENT, 5), (OTHER, 2)]), [[CLIENT, OTHER]]);
    }

    #[test]
    fn no_limit_and_unset_are_the_longest() {
        assert_eq!(order(&[(CLIENT, None), (SERVER, None)], &[(CLIENT, 5), (SERVER, 6)]), [[CLIENT], [SERVER]]);
        assert_eq!(order(&[(CLIENT, Some(0)), (SERVER, Some(0))], &[(CLIENT, 5), (SERVER, 6)]), [[CLIENT], [SERVER]]);
        assert_eq!(order(&[(CLIENT, Some(5)), (SERVER, Some(6))], &[(CLIENT, 7), (SERVER, 0)]), [[SERVER], [CLIENT]]);
    }

    #[test]
    fn a_clients_limit_that_is_no_time_does_not_make_two_parts() {
        let (from, to) =
            ([(SERVER, Some(30)), (Limit::BackendMaxIdleConns, Some(9))], [(SERVER, 6), (Limit::BackendMaxIdleConns, 5)]);
        assert_eq!(order(&from, &to), [[SERVER, Limit::BackendMaxIdleConns]]);
    }

    /// The changes of a file that may be written now.
    fn may(from: &[(Limit, Option<u64>)], to: &[(Limit, u64)], uses: &[Option<bool>]) -> Vec<Limit> {
        let node = |uses: &Option<bool>| NodeState { uses: *uses, ..NodeState::new("n", Ok(BTreeMap::new())) };
        let state = UnitState {
            sites: from.iter().map(|(limit, s)| (site(*limit), Stored { value: s.map(seconds), raw: None })).collect(),
            nodes: uses.iter().map(node).collect(),
            ..UnitState::default()
        };
        let changes: Vec<_> =
            to.iter().map(|(limit, s)| Change { site: site(*limit), to: NewValue::Value(seconds(*s)) }).collect();
        due(&changes, &state, &TargetCapabilities::PLAIN).into_iter().map(|change| change.site.limit).collect()
    }

    #[test]
    fn a_files_narrower_pair_waits_for_everybody_to_use_the_wider_one() {
        let (wide, narrow) = ([(CLIENT, Some(20)), (SERVER, Some(30))], [(CLIENT, Some(5)), (SERVER, Some(6))]);
        let (used, behind) = (&[Some(true), Some(true)][..], &[Some(true), Some(false)][..]);
        assert_eq!(
            may(&wide, &[(CLIENT, 5), (SERVER, 6), (OTHER, 2)], used),
            [CLIENT, OTHER],
            "widening changes go first, whatever the nodes use"
        );
        assert_eq!(may(&wide, &[(CLIENT, 5), (SERVER, 6)], behind), [CLIENT]);
        assert_eq!(may(&narrow, &[(CLIENT, 20), (SERVER, 30)], behind), [SERVER]);
        let between = [(CLIENT, Some(5)), (SERVER, Some(30))];
        assert_eq!(may(&between, &[(SERVER, 6)], behind), []);
        assert_eq!(may(&between, &[(SERVER, 6)], used), [SERVER]);
        assert_eq!(may(&between, &[(SERVER, 6)], &[Some(true), None]), [SERVER], "a node that reports nothing is not waited for");
    }

    #[test]
    fn a_file_with_one_side_or_none_yet_is_written_as_a_whole() {
        let behind = &[Some(false)][..];
        assert_eq!(may(&[(CLIENT, Some(20)), (OTHER, Some(1))], &[(CLIENT, 30), (OTHER, 2)], behind), [CLIENT, OTHER]);
        assert_eq!(may(&[(SERVER, Some(20)), (OTHER, Some(1))], &[(SERVER, 10)], behind), [SERVER]);
        assert_eq!(
            may(&[(CLIENT, None), (SERVER, None)], &[(CLIENT, 5), (SERVER, 6)], behind),
            [CLIENT, SERVER],
            "the first file"
        );
        assert_eq!(
            may(&[(CLIENT, Some(5)), (SERVER, None)], &[(SERVER, 6)], behind),
            [],
            "the second side is added to one that is in use"
        );
    }
}
