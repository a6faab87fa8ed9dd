//! Which node is restarted next, for limits that its process reads only when it starts.
//!
//! Nothing begins before it is recorded in `status.control.restart`. Once its pod is gone, a restart is completed,
//! whatever the policy says by then. Each action is repeated until its result is observed.

use std::collections::BTreeMap;

use super::{Act, RestartPlan, RestartReport, in_time};
use crate::{
    api::{
        restart::{Restart, RestartPolicy},
        status::{RestartControl, Restarting},
    },
    decide::observed::Process,
};

/// A node, as far as restarts go.
#[derive(Clone, Debug, PartialEq)]
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it stores the desired values and its process is known not to use them.
    pub pending: bool,
    /// Whether the node itself answers.
    pub answers: bool,
    /// Where its process runs, as its cluster reports.
    pub process: Option<&'a Process>,
}

/// A pod, as the API server reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: String,
    /// Its IP addresses.
    pub ips: Vec<String>,
    /// Its DNS name, `hostname.subdomain.namespace.svc`, if the cluster can mean this pod by it: the cluster is reached
    /// by a Service of the pod's own namespace.
    pub dns: Option<String>,
    /// Whether its condition Ready is True.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
}

/// Everything that the decision depends on.
pub struct RestartInput<'a> {
    /// `spec.restart`.
    pub spec: &'a Restart,
    /// Whether a restart may begin: nothing is suspended, and what is pending is worth it.
    pub may_begin: bool,
    /// The nodes of the target.
    pub nodes: &'a [Node<'a>],
    /// Pods by name, those of nodes that wait or are being restarted.
    pub pods: &'a BTreeMap<String, Pod>,
    /// What is recorded.
    pub control: &'a RestartControl,
    /// When the newest change that needs a restart was made (Unix milliseconds).
    pub changed: i64,
    /// The current time (Unix seconds).
    pub now: i64,
}

/// Decides the next actions.
#[must_use]
pub fn step(input: &RestartInput<'_>) -> RestartPlan {
    let mut outcome = RestartPlan::new(input.control, input.now);
    let permitted = input.may_begin && input.spec.policy == RestartPolicy::Rolling;
    outcome.control.nodes.clear();
    for current in &input.control.nodes {
        if go_on(input, current, permitted, &mut outcome) {
            outcome.control.nodes.push(current.clone());
        }
    }
    if permitted {
        begin(input, &mut outcome);
    }
    outcome
}

/// Nodes that were restarted for this change and now run in another pod.
pub fn replaced<'a>(
    control: &'a RestartControl,
    changed: i64,
    nodes: &'a [Node<'_>],
    pods: &'a BTreeMap<String, Pod>,
) -> impl Iterator<Item = &'a str> {
    let is_back = |current: &&Restarting| {
        let node = nodes.iter().find(|node| node.name == current.node);
        node.zip(pods.get(&current.pod)).is_some_and(|(node, pod)| is_back(current, node, pod))
    };
    control.nodes.iter().filter(move |_| control.change == changed).filter(is_back).map(|current| current.node.as_str())
}

/// Whether a node answers again, from a pod that has replaced the evicted one.
fn is_back(current: &Restarting, node: &Node<'_>, pod: &Pod) -> bool {
    pod.uid != current.uid && pod.ready && !pod.terminating && node.answers
}

/// Takes the next step of a restart that has begun; false when there is nothing left to do.
fn go_on(input: &RestartInput<'_>, current: &Restarting, permitted: bool, outcome: &mut RestartPlan) -> bool {
    let in_time = in_time(input.spec, current, input.now);
    let name = || current.node.clone();
    outcome.said = Some(if in_time { RestartReport::Rolling(name()) } else { RestartReport::Stalled(name()) });
    let Some(node) = input.nodes.iter().find(|node| node.name == current.node) else {
        // Other nodes answer, and this one has been missing for too long: it has left its cluster.
        let left = !in_time && !input.nodes.is_empty();
        if left {
            outcome.said = None;
        }
        return !left;
    };
    let drained = node.process.is_some_and(|process| process.drained);
    match input.pods.get(&current.pod) {
        Some(pod) if pod.uid == current.uid && !pod.terminating => {
            // The cluster's report may have changed since the restart was recorded.
            let elsewhere = node.process.is_some_and(|process| !is_in(process, pod));
            if !permitted || elsewhere {
                // Called off before the pod was gone.
                outcome.said = elsewhere.then(|| RestartReport::NoPod(name()));
                outcome.acts.extend(drained.then(|| Act::Undrain(name())));
                return drained;
            }
            // Another node may have gone out of service since this restart was recorded.
            let mut others = input.nodes.iter().filter(|other| other.name != node.name && is_out(input, other));
            if !drained && others.clone().count() >= input.spec.max_unavailable as usize {
                outcome.said = others.next().map(|other| RestartReport::Unavailable(other.name.to_owned()));
                return true;
            }
            let drains = node.process.is_some_and(|process| process.drains);
            outcome.acts.push(if drains && !drained {
                Act::Drain(name())
            } else {
                Act::Evict { node: name(), pod: current.pod.clone(), uid: current.uid.clone() }
            });
            true
        }
        Some(pod) if is_back(current, node, pod) => {
            if drained {
                outcome.acts.push(Act::Undrain(name()));
                return true;
            }
            if !node.pending {
                outcome.finished.push(name());
            }
            // Another change was made meanwhile: the node has to be restarted once more for it, in its turn.
            let outdated = input.control.change != input.changed;
            if !node.pending || outdated {
                outcome.said = None;
            }
            node.pending && !outdated
        }
        // The pod is terminating, gone, or on its way back.
        _ => true,
    }
}

/// Whether an address that the cluster reports is the pod's, besides the name. Pods of two clusters often have the same
/// name.
fn is_in(process: &Process, pod: &Pod) -> bool {
    let named = |host: &str| pod.dns.as_deref().is_some_and(|name| is_name(host, name));
    process.hosts.iter().any(|host| pod.ips.contains(host) || named(host))
}

/// Whether a host name is this name, with or without a cluster's domain after it.
#[must_use]
pub fn is_name(host: &str, name: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
        && matches!(host.as_bytes().get(name.len()), None | Some(b'.'))
}

/// Whether a node is out of service, for whatever reason.
fn is_out(input: &RestartInput<'_>, node: &Node<'_>) -> bool {
    let is_down = |process: &Process| input.pods.get(&process.pod).is_some_and(|pod| !pod.ready || pod.terminating);
    !node.answers || node.process.is_some_and(|process| process.drained || is_down(process))
}

/// Records the next nodes to restart, as many as may be out of service.
fn begin(input: &RestartInput<'_>, outcome: &mut RestartPlan) {
    let current = |outcome: &RestartPlan, name: &str| outcome.control.nodes.iter().any(|current| current.node == name);
    let mut waiting: Vec<_> = input.nodes.iter().filter(|node| node.pending && !current(outcome, node.name)).collect();
    waiting.sort_by_key(|node| (node.process.map(|process| process.rank), node.name));
    for node in waiting {
        let known = node.process.and_then(|process| {
            let pod = input.pods.get(&process.pod)?;
            is_in(process, pod).then_some((process, pod))
        });
        let Some((process, pod)) = known else {
            outcome.said.get_or_insert(RestartReport::NoPod(node.name.to_owned()));
            return;
        };
        // A node that is being restarted may be missing from the list.
        let mut out_of_service: Vec<_> = outcome.control.nodes.iter().map(|current| current.node.clone()).collect();
        let others = input.nodes.iter().filter(|node| !current(outcome, node.name) && is_out(input, node));
        out_of_service.extend(others.map(|node| node.name.to_owned()));
        if out_of_service.len() >= input.spec.max_unavailable as usize {
            let first = out_of_service.into_iter().next().unwrap_or_default();
            outcome.said.get_or_insert(RestartReport::Unavailable(first));
            return;
        }
        if input.now.saturating_mul(1000) <= input.changed {
            // The time of a change may be known to a second or two only. A process that started before the end of that
            // time could not be distinguished from one that started before the change.
            outcome.said.get_or_insert(RestartReport::Rolling(node.name.to_owned()));
            outcome.soon = true;
            return;
        }
        if outcome.control.change != input.changed {
            if outcome.control.begun.len() >= input.spec.max_per_day as usize {
                outcome.said.get_or_insert(RestartReport::Budget);
                return;
            }
            outcome.control.change = input.changed;
            outcome.control.begun.push(input.now);
        }
        outcome.control.nodes.push(Restarting {
            node: node.name.to_owned(),
            pod: process.pod.clone(),
            uid: pod.uid.clone(),
            since: input.now,
        });
        outcome.said.get_or_insert(RestartReport::Rolling(node.name.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    struct Scene {
        spec: Restart,
        processes: Vec<(&'static str, Process, bool, bool)>,
        pods: BTreeMap<String, Pod>,
        control: RestartControl,
        changed: i64,
        may_begin: bool,
    }

    impl Scene {
        /// Three nodes that wait for a restart. The first is the primary; the others hold data.
        fn new() -> Self {
            let process = |n: u8, drains| Process {
                pod: format!("pod-{n}"),
                hosts: vec![format!("10.0.0.{n}")],
                drained: false,
                drains,
                rank: if drains { 0 } else { 2 },
            };
            let pod = |n: u8| Pod {
                uid: format!("uid-{n}"),
                ips: vec![format!("10.0.0.{n}")],
                dns: Some(format!("pod-{n}.targets.ais.svc")),
                ready: true,
                terminating: false,
            };
            Self {
                spec: Restart { policy: RestartPolicy::Rolling, ..Restart::default() },
                processes: vec![
                    ("p0", process(0, false), true, true),
                    ("t1", process(1, true), true, true),
                    ("t2", process(2, true), true, true),
                ],
                pods: (0..3).map(|n| (format!("pod-{n}"), pod(n))).collect(),
                control: RestartControl::default(),
                changed: 1,
                may_begin: true,
            }
        }

        fn at(&self, now: i64) -> RestartPlan {
            let nodes: Vec<_> = self
                .processes
                .iter()
                .map(|(name, process, pending, answers)| Node {
                    name,
                    pending: *pending,
                    answers: *answers,
                    process: Some(process),
                })
                .collect();
            step(&RestartInput {
                spec: &self.spec,
                may_begin: self.may_begin,
                nodes: &nodes,
                pods: &self.pods,
                control: &self.control,
                changed: self.changed,
                now,
            })
        }

        /// Decides, and records the result.
        fn look(&mut self) -> RestartPlan {
            let outcome = self.at(NOW);
            self.control = outcome.control.clone();
            outcome
        }

        fn node(&mut self, name: &str) -> &mut (&'static str, Process, bool, bool) {
            self.processes.iter_mut().find(|(n, ..)| *n == name).unwrap()
        }

        fn pod(&mut self, name: &str) -> &mut Pod {
            self.pods.get_mut(name).unwrap()
        }

        /// t1 is drained, and its pod has been replaced by one that is ready.
        fn replaced() -> Self {
            let mut scene = Self::new();
            scene.look();
            scene.node("t1").1.drained = true;
            scene.pod("pod-1").uid = "uid-new".into();
            scene
        }
    }

    #[allow(clippy::unnecessary_wraps)] // It is compared with an `Option`.
    fn rolling(name: &str) -> Option<RestartReport> {
        Some(RestartReport::Rolling(name.into()))
    }

    #[test]
    fn a_recorded_restart_waits_while_another_node_is_out_of_service() {
        let mut scene = Scene::new();
        scene.look();
        scene.node("p0").3 = false;
        let waiting = scene.look();
        assert_eq!((waiting.acts.len(), waiting.said), (0, Some(RestartReport::Unavailable("p0".into()))));
        assert_eq!(waiting.control.nodes.len(), 1, "the restart stays recorded");
        scene.node("p0").3 = true;
        assert_eq!(scene.look().acts, [Act::Drain("t1".into())]);
        scene.node("p0").3 = false;
        scene.node("t1").1.drained = true;
        let evict = Act::Evict { node: "t1".into(), pod: "pod-1".into(), uid: "uid-1".into() };
        assert_eq!(scene.look().acts, [evict], "the drained node is out of service already");
    }

    #[test]
    fn it_is_written_down_then_drained_then_evicted_and_then_seen_through() {
        let mut scene = Scene::new();
        let first = scene.look();
        assert_eq!(
            (first.acts.len(), first.control.nodes.len(), first.said.clone()),
            (0, 1, rolling("t1")),
            "data first, by name"
        );
        assert!(first.is_going_on());
        assert_eq!(scene.look().acts, [Act::Drain("t1".into())]);
        assert_eq!(scene.look().acts, [Act::Drain("t1".into())], "repeated until its result is observed");
        scene.node("t1").1.drained = true;
        let evict = Act::Evict { node: "t1".into(), pod: "pod-1".into(), uid: "uid-1".into() };
        assert_eq!(scene.look().acts, std::slice::from_ref(&evict));
        assert_eq!(scene.look().acts, [evict], "a budget may have refused it");
        scene.pod("pod-1").terminating = true;
        assert_eq!(scene.look().acts, []);
        let old = scene.pods.remove("pod-1").unwrap();
        assert_eq!(scene.look().acts, []);
        scene.pods.insert("pod-1".into(), Pod { uid: "uid-new".into(), ready: false, terminating: false, ..old });
        assert_eq!(scene.look().acts, []);
        scene.pod("pod-1").ready = true;
        scene.node("t1").3 = false;
        assert_eq!(scene.look().acts, [], "a ready pod has not joined the cluster yet");
        scene.node("t1").3 = true;
        assert_eq!(scene.look().acts, [Act::Undrain("t1".into())]);
        scene.node("t1").1.drained = false;
        let waiting = scene.look();
        assert_eq!(
            (waiting.acts.len(), waiting.finished.len(), waiting.said),
            (0, 0, rolling("t1")),
            "the node has not reported what it uses"
        );
        scene.node("t1").2 = false;
        let last = scene.look();
        assert_eq!((last.finished, last.said), (vec!["t1".to_owned()], rolling("t2")), "the next restart begins");
        assert_eq!(last.control.begun, [NOW], "one entry for all nodes");
    }

    #[test]
    fn a_proxy_is_evicted_without_being_drained() {
        let mut scene = Scene::new();
        scene.processes.truncate(1);
        scene.look();
        assert_eq!(scene.look().acts, [Act::Evict { node: "p0".into(), pod: "pod-0".into(), uid: "uid-0".into() }]);
    }

    #[test]
    fn never_more_than_may_are_out_of_service() {
        for most in 1..=3 {
            let mut scene = Scene::new();
            scene.spec.max_unavailable = most;
            let outcome = scene.look();
            assert_eq!(outcome.control.nodes.len(), most as usize);
            assert_eq!(scene.look().control.nodes.len(), most as usize);
        }
        let out: [fn(&mut Scene); 4] = [
            |scene| scene.node("p0").3 = false,
            |scene| scene.node("p0").1.drained = true,
            |scene| scene.pod("pod-0").ready = false,
            |scene| scene.pod("pod-0").terminating = true,
        ];
        for other in out {
            let mut scene = Scene::new();
            other(&mut scene);
            let outcome = scene.look();
            assert_eq!((outcome.control.nodes.len(), outcome.said), (0, Some(RestartReport::Unavailable("p0".into()))));
            assert!(outcome.control.begun.is_empty(), "no budget is spent");
        }
    }

    #[test]
    fn a_node_that_does_not_come_back_stops_all_others() {
        let mut scene = Scene::replaced();
        scene.pod("pod-1").ready = false;
        assert_eq!(scene.at(NOW + 600).said, rolling("t1"));
        let late = scene.at(NOW + 601);
        assert_eq!((late.said, late.control.nodes.len(), late.acts.len()), (Some(RestartReport::Stalled("t1".into())), 1, 0));
        scene.pod("pod-1").ready = true;
        assert_eq!(scene.at(NOW + 9999).acts, [Act::Undrain("t1".into())], "a late pod still counts");
    }

    #[test]
    fn the_day_has_so_many() {
        let mut scene = Scene::new();
        scene.control = RestartControl { change: 1, begun: vec![NOW - 86_399], nodes: Vec::new() };
        assert_eq!(scene.at(NOW).said, rolling("t1"), "the same change continues");
        scene.changed = 2;
        assert_eq!(scene.at(NOW).said, Some(RestartReport::Budget));
        assert_eq!(scene.at(NOW).control.nodes, []);
        assert_eq!(scene.at(NOW + 1).said, rolling("t1"), "a day later");
        assert_eq!(scene.at(NOW + 1).control.begun, [NOW + 1]);
        scene.spec.max_per_day = 2;
        assert_eq!(scene.at(NOW).control.begun, [NOW - 86_399, NOW]);
        assert_eq!(scene.at(NOW).control.change, 2);
    }

    #[test]
    fn a_pod_that_is_not_surely_the_nodes_is_left_alone() {
        let cases: [fn(&mut Scene); 5] = [
            |scene| scene.node("t1").1.pod = "another-pod".into(),
            |scene| scene.node("t1").1.hosts = vec!["10.9.9.9".into(), "pod-2.ais.svc".into(), "pod-1".into()],
            |scene| scene.pod("pod-1").ips.clear(),
            // Disaster recovery usually pairs two clusters whose pods have the same names.
            |scene| scene.node("t1").1.hosts = vec!["pod-1.targets.elsewhere.svc.other.example".into()],
            |scene| {
                scene.node("t1").1.hosts = vec!["pod-1.targets.ais.svc.cluster.local".into()];
                scene.pod("pod-1").dns = None;
            },
        ];
        for case in cases {
            let mut scene = Scene::new();
            case(&mut scene);
            let outcome = scene.look();
            assert_eq!((outcome.said, outcome.control.nodes.len()), (Some(RestartReport::NoPod("t1".into())), 0));
        }
    }

    #[test]
    fn a_node_that_moves_to_another_cluster_before_its_eviction_is_not_evicted() {
        let mut scene = Scene::new();
        assert_eq!(scene.look().control.nodes.len(), 1);
        scene.node("t1").1.drained = true;
        scene.node("t1").1.hosts = vec!["10.9.9.9".into()];
        let outcome = scene.look();
        assert_eq!((outcome.acts, outcome.said), (vec![Act::Undrain("t1".into())], Some(RestartReport::NoPod("t1".into()))));
    }

    #[test]
    fn a_change_is_certainly_past_before_the_first_node_goes() {
        let mut scene = Scene::new();
        for (changed, begins) in [(NOW * 1000 - 1, true), (NOW * 1000, false), (NOW * 1000 + 2400, false)] {
            scene.changed = changed;
            let outcome = scene.at(NOW);
            assert_eq!((outcome.control.nodes.len() == 1, outcome.soon, outcome.said.clone()), (begins, !begins, rolling("t1")));
            assert!(outcome.is_going_on(), "it looks again soon");
        }
    }

    #[test]
    fn a_change_in_the_middle_holds_nobody_up() {
        let mut scene = Scene::replaced();
        scene.node("t1").1.drained = false;
        assert_eq!(scene.look().said, rolling("t1"), "the node has not reported what it uses");
        scene.changed = 2;
        scene.spec.max_per_day = 2;
        let outcome = scene.look();
        assert_eq!((outcome.finished.len(), outcome.control.begun.len(), outcome.control.change), (0, 2, 2));
        assert_eq!(outcome.control.nodes[0].uid, "uid-new", "once more, for the new change");
        scene.spec.max_per_day = 1;
        let mut scene = Scene::replaced();
        scene.node("t1").1.drained = false;
        scene.changed = 2;
        let outcome = scene.look();
        assert_eq!((outcome.control.nodes.len(), outcome.said), (0, Some(RestartReport::Budget)), "if the budget allows it");
    }

    #[test]
    fn a_node_that_left_its_cluster_is_not_waited_for_for_ever() {
        let mut scene = Scene::replaced();
        scene.processes.retain(|(name, ..)| *name != "t1");
        assert_eq!((scene.at(NOW + 600).said, scene.at(NOW + 600).control.nodes.len()), (rolling("t1"), 1));
        let gone = scene.at(NOW + 601);
        assert_eq!((gone.said, gone.finished.len()), (rolling("t2"), 0));
        scene.processes.clear();
        assert_eq!(scene.at(NOW + 601).said, Some(RestartReport::Stalled("t1".into())), "no node answers");
    }

    #[test]
    fn a_name_in_dns_is_an_address_too() {
        let mut scene = Scene::new();
        scene.node("t1").1.hosts = vec!["pod-1.targets.ais.svc.cluster.local".into()];
        assert_eq!(scene.look().said, rolling("t1"));
    }

    #[test]
    fn what_is_called_off_is_put_back() {
        for call_off in
            [|scene: &mut Scene| scene.may_begin = false, |scene: &mut Scene| scene.spec.policy = RestartPolicy::Never]
        {
            let mut scene = Scene::new();
            scene.look();
            scene.node("t1").1.drained = true;
            call_off(&mut scene);
            let outcome = scene.look();
            assert_eq!((outcome.acts, outcome.said), (vec![Act::Undrain("t1".into())], None));
            scene.node("t1").1.drained = false;
            let outcome = scene.look();
            assert_eq!((outcome.acts.len(), outcome.control.nodes.len(), outcome.finished.len()), (0, 0, 0));

            // Once its pod is gone, the restart is completed anyway.
            let mut scene = Scene::replaced();
            call_off(&mut scene);
            assert_eq!(scene.look().acts, [Act::Undrain("t1".into())]);
            scene.node("t1").1.drained = false;
            scene.node("t1").2 = false;
            let outcome = scene.look();
            assert_eq!((outcome.finished.len(), outcome.control.nodes.len(), outcome.said), (1, 0, None));
        }
    }

    #[test]
    fn what_is_under_way_is_not_begun_again() {
        let mut scene = Scene::new();
        assert!(!RestartPlan::default().is_going_on());
        assert!(scene.look().is_going_on());
        scene.spec.max_unavailable = 2;
        let names: Vec<_> = scene.look().control.nodes.into_iter().map(|node| node.node).collect();
        assert_eq!(names, ["t1", "t2"]);
        scene.spec.max_per_day = 1;
        scene.control = RestartControl { change: 0, begun: vec![NOW], nodes: Vec::new() };
        assert!(!scene.at(NOW).is_going_on(), "a budget that is used up needs no early requeue");
    }

    #[test]
    fn nothing_is_begun_that_may_not() {
        let mut scene = Scene::new();
        scene.may_begin = false;
        assert_eq!(scene.look(), RestartPlan::default());
        let mut scene = Scene::new();
        scene.processes.iter_mut().for_each(|(_, _, pending, _)| *pending = false);
        assert_eq!(scene.look(), RestartPlan::default());
    }
}
