//! The exploration: the code that the operator runs, against an API server and nodes that are values, in every order and
//! with every fault within a bound.
//!
//! `IDLECONN_FAULTS` sets the number of faults and surprises in one life of a policy (default 1), `IDLECONN_MINUTES` the
//! time after which the search ends (default 10; all lives with one fault take half a minute).

#![allow(clippy::unwrap_used, clippy::panic, clippy::missing_panics_doc, missing_docs)]

mod cluster;
mod explore;
mod world;

use std::{
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use cluster::{Cluster, Effect, Scene};
use explore::{Explored, Explorer};
use idleconn_operator::pass::{self, cache::PolicyCache};
use world::Ports;

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn what_ran_for_a_former_policy_of_the_same_name_ends() {
    let ends = |former: &str| {
        let (ports, mut cluster) = (Ports::at(Scene::Limits, Duration::ZERO, Arc::default()), Cluster::new());
        let mut memory = PolicyCache { uid: former.into(), ..PolicyCache::default() };
        let mut visit = Box::pin(pass::visit(&ports, &mut memory));
        let mut context = Context::from_waker(Waker::noop());
        assert!(visit.as_mut().poll(&mut context).is_pending());
        let (number, effect) = ports.open().remove(0);
        assert_eq!(effect, Effect::ReadPolicy);
        ports.answer(number, cluster.carry_out(&effect).0);
        assert!(visit.as_mut().poll(&mut context).is_pending());
        ports.has_ended_all()
    };
    assert!(ends("6f2c") && !ends(cluster::UID));
}

/// Explores a scene, and prints how much there was of it.
fn explore(scene: Scene) {
    let faults = number("IDLECONN_FAULTS", 1);
    let most = Duration::from_secs(60 * u64::from(number("IDLECONN_MINUTES", 10)));
    match Explorer::explore(scene, faults, most) {
        Ok(Explored { between, within, longest, complete, took }) => {
            let all = if complete { "all" } else { "not all" };
            println!(
                "{scene:?}: {all} states with {faults} faults: {between} between passes, {within} within, longest way to the end {longest} requests, {took:.1?}"
            );
            assert!(complete || faults > 1, "the bound of CI was not reached in time");
        }
        Err(found) => panic!("{found}"),
    }
}

#[test]
fn whatever_fails_the_policy_is_applied_and_the_status_is_true() {
    explore(Scene::Limits);
}

#[test]
fn whatever_fails_a_pause_lies_between_the_writes_of_two_nodes() {
    explore(Scene::Waves);
}

#[test]
fn whatever_fails_each_node_is_restarted_once_and_in_its_turn() {
    explore(Scene::Restarts);
}

#[test]
fn whatever_fails_only_the_older_of_two_policies_writes_and_the_younger_takes_over() {
    explore(Scene::Rivals);
}
