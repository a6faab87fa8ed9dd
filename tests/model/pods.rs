//! A cluster of nodes that read their limit when they start, each in a pod; the rules for their restarts.
//!
//! It behaves like AIStore: one write changes what all nodes store, a node that joins gets what the cluster has, and the
//! cluster answers for a node that is drained.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use idleconn_operator::decide::{
    Change, ConfigPath, Fault, NodeState, Process as Reported, Stored, UnitState, restart::eviction::Pod,
};
use jiff::Timestamp;

use super::{CLIENT, Cause, Cluster, EPOCH, Json, Limit, NODES, Node, Scene, Spec, Values, changed_to, name, parsed, silent};

/// The versions of the spec: the second has another value.
pub const SPECS: [Spec; 2] = [(None, Some(20)), (None, Some(10))];
/// Time for which the processes have run at the beginning (milliseconds).
const RAN: i64 = 3_600_000;

/// Where the pod of a node is in its life. A pod that is gone and one that is terminating are the same for each decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Running,
    Terminating,
    /// The next pod is there, and its process has read its values; it is not ready yet.
    Starting,
}

/// The process of a node, and its pod.
#[derive(Clone, Debug)]
pub struct Process {
    /// The values that it read when it started.
    pub running: Values,
    /// When it became ready (Unix milliseconds): what a node reports of its uptime begins late.
    pub started: i64,
    pub phase: Phase,
    /// Number of the pod; its UID.
    pub pod: u32,
    /// The cluster keeps this while the process is gone.
    pub drained: bool,
    /// Whether it has restarted by itself since the last eviction.
    pub restarted: bool,
    /// Evictions by the operator.
    pub evictions: usize,
    /// Whether the operator's eviction is why the node is not ready.
    pub evicted: bool,
}

impl Node {
    fn in_pod() -> Self {
        let mut node = Self::new();
        node.values.retain(|limit, _| *limit == CLIENT);
        node.process = Some(Process {
            running: node.values.clone(),
            started: EPOCH * 1000 - RAN,
            phase: Phase::Running,
            pod: 0,
            drained: false,
            restarted: false,
            evictions: 0,
            evicted: false,
        });
        node
    }

    pub fn phase(&self) -> Option<Phase> {
        self.process.as_ref().map(|process| process.phase)
    }

    /// Whether a write reaches the node.
    pub fn is_written(&self) -> bool {
        self.up && self.phase().is_none_or(|phase| phase == Phase::Running)
    }

    pub fn is_drained(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.drained)
    }

    /// The values of the process, for a counterexample.
    pub fn runs(&self) -> String {
        format!("{:?}", self.process.as_ref().map(|process| &process.running))
    }

    pub fn has_restarted_itself(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.restarted)
    }

    /// Whether the operator has taken the node out of service.
    fn is_taken_out(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.drained || process.evicted)
    }

    fn process_mut(&mut self) -> &mut Process {
        self.process.as_mut().expect("a node in a pod")
    }

    /// The process of the next pod begins, with the values that its node stored last.
    pub fn start(&mut self) {
        let values = self.values.clone();
        let process = self.process_mut();
        (process.running, process.phase, process.pod) = (values, Phase::Starting, process.pod + 1);
    }

    /// The next pod is ready, and its node has joined: from now on it stores what the cluster has.
    pub fn join(&mut self, stored: &Values, now: i64) {
        (self.up, self.values) = (true, stored.clone());
        let process = self.process_mut();
        (process.phase, process.started, process.evicted) = (Phase::Running, now, false);
    }

    /// The process ends and begins again in its pod.
    pub fn restart_in_pod(&mut self, now: i64) {
        let values = self.values.clone();
        let process = self.process_mut();
        (process.running, process.started, process.restarted) = (values, now, true);
    }

    /// What the node reports, or the cluster in its place.
    fn reported(&self, node: usize, stored: &Values, now: i64) -> NodeState {
        let process = self.process.as_ref().expect("a node in a pod");
        let as_values = |values: &Values| values.iter().map(|(limit, raw)| (*limit, parsed(raw.as_ref()))).collect();
        let itself = self.is_written() && !process.drained;
        let answer = match (process.drained, itself) {
            (true, _) => Ok(as_values(stored)),
            (false, true) => Ok(as_values(&self.values)),
            (false, false) => Err(silent(node)),
        };
        let ran = Duration::from_millis(u64::try_from(now - process.started).unwrap_or(0));
        NodeState {
            uptime: itself.then_some(ran),
            process: Some(Reported {
                pod: if itself { pod_name(node) } else { String::new() },
                hosts: vec![address(node)],
                drained: process.drained,
                drains: true,
                rank: 0,
            }),
            ..NodeState::new(name(node), answer)
        }
    }
}

fn pod_name(node: usize) -> String {
    format!("pod-{node}")
}

fn address(node: usize) -> String {
    format!("10.0.0.{node}")
}

impl Cluster {
    /// A policy that was just created, and a cluster that has run for long.
    pub fn with_pods() -> Self {
        let nodes = [Node::in_pod(), Node::in_pod()];
        let stored = Some((nodes[0].values.clone(), EPOCH * 1000 - RAN));
        Self { scene: Scene::Restarts, nodes, stored, ..Self::new() }
    }

    /// A node answers again: it stores what its cluster has.
    pub fn come_up(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        at.up = true;
        if let Some((stored, _)) = &self.stored
            && at.is_written()
        {
            at.values.clone_from(stored);
        }
    }

    /// The next pod of a node is ready.
    pub fn join(&mut self, node: usize) {
        let (stored, _) = self.stored.as_ref().expect("a cluster");
        self.nodes[node].join(stored, self.now);
    }

    /// Each pod that is out comes back.
    pub fn come_back(&mut self) {
        for node in 0..NODES {
            if self.nodes[node].phase() == Some(Phase::Terminating) {
                self.nodes[node].start();
            }
            if self.nodes[node].phase() == Some(Phase::Starting) {
                self.join(node);
            }
        }
    }

    /// What the cluster reports of all its nodes.
    pub fn read_all(&mut self) -> UnitState {
        let (stored, changed) = self.stored.clone().expect("a cluster");
        let nodes: Vec<_> = self.nodes.iter().enumerate().map(|(n, node)| node.reported(n, &stored, self.now)).collect();
        for (n, (node, reported)) in self.nodes.iter().zip(&nodes).enumerate() {
            self.pass.seen[n] = match (&reported.stored, node.is_drained()) {
                (Ok(_), true) => Some(stored.clone()),
                (Ok(_), false) => Some(node.values.clone()),
                (Err(_), _) => None,
            };
            self.pass.out[n] |= reported.stored.is_err() || reported.process.as_ref().is_some_and(|p| p.drained);
        }
        let site = |(limit, raw): (&Limit, &Option<Json>)| {
            let site = ConfigPath { limit: *limit, place: "net.http".into() };
            (site, Stored { value: parsed(raw.as_ref()), raw: raw.clone() })
        };
        let changed = Timestamp::from_millisecond(changed).ok();
        UnitState { sites: stored.iter().map(site).collect(), nodes, changed, ..UnitState::default() }
    }

    /// Changes what all nodes store; those that are out of service get it when they join.
    pub fn write_all(&mut self, changes: &[Change]) {
        let now = self.now;
        let (stored, at) = self.stored.as_mut().expect("a cluster");
        stored.extend(changes.iter().map(changed_to));
        *at = now;
        for node in self.nodes.iter_mut().filter(|node| node.is_written()) {
            node.values.clone_from(stored);
        }
    }

    pub fn pods(&mut self, names: &BTreeSet<String>) -> BTreeMap<String, Pod> {
        let mut pods = BTreeMap::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let ready = node.is_written();
            let process = node.process.as_ref().expect("a node in a pod");
            let pod = Pod {
                uid: format!("uid-{n}-{}", process.pod),
                ips: vec![address(n)],
                dns: None,
                ready,
                terminating: process.phase == Phase::Terminating,
            };
            if names.contains(&pod_name(n)) {
                self.pass.out[n] |= !ready;
                pods.insert(pod_name(n), pod);
            }
        }
        pods
    }

    /// As in AIStore, a node that is not drained cannot be put back.
    pub fn drain(&mut self, node: usize, out: bool) -> Result<(), Fault> {
        let process = self.nodes[node].process_mut();
        if !out && !process.drained {
            return Err(Fault::new(Cause::Rejected, format!("{} is not in maintenance", name(node))));
        }
        process.drained = out;
        Ok(())
    }

    /// An eviction of a pod that is gone, or has a successor, is done.
    pub fn evict(&mut self, node: usize, uid: &str) {
        let process = self.nodes[node].process_mut();
        if uid == format!("uid-{node}-{}", process.pod) && process.phase == Phase::Running {
            (process.phase, process.evicted) = (Phase::Terminating, true);
            (process.evictions, process.restarted) = (process.evictions + 1, false);
        }
    }

    /// A request to drain or to evict came at a wrong time.
    pub fn restarts_wrongly(&self, before: &Self) -> Option<String> {
        for (n, (was, is)) in before.nodes.iter().zip(&self.nodes).enumerate() {
            let (Some(was), Some(is)) = (&was.process, &is.process) else { continue };
            let acted = (is.drained && !was.drained) || (is.evicted && !was.evicted);
            if acted && self.pass.resting == Some(true) {
                return Some(format!("node {n} is taken out of service for a policy that is suspended or being deleted"));
            }
            let goes_out = acted && !was.drained;
            if let Some(other) = self.seen_out(n).filter(|_| goes_out) {
                return Some(format!("node {n} is taken out of service while node {other} is out of service"));
            }
            if was.drained && !is.drained && is.phase != Phase::Running && self.pass.resting == Some(false) {
                return Some(format!("node {n} is put back into service before its pod is ready"));
            }
            // A change that is made during a restart may need another one.
            let changes = self.policy.spec + 1;
            if is.evictions > changes {
                return Some(format!("node {n} is restarted {} times for {changes} changes", is.evictions));
            }
        }
        let out = self.nodes.iter().filter(|node| node.is_taken_out()).count();
        (out > 1).then(|| format!("the operator has taken {out} nodes out of service"))
    }

    /// A restart is recorded in the status although another node is out of service.
    pub fn begins_out_of_turn(&self, before: &Self) -> Option<String> {
        let recorded = |cluster: &Self| -> BTreeSet<String> {
            let control = cluster.policy.status.as_ref().and_then(|status| status.control.as_ref());
            control.into_iter().flat_map(|control| &control.restart.nodes).map(|current| current.node.clone()).collect()
        };
        let begun: BTreeSet<_> = recorded(self).difference(&recorded(before)).cloned().collect();
        let node = (0..NODES).find(|n| begun.contains(&name(*n)))?;
        let other = self.seen_out(node)?;
        Some(format!("a restart of node {node} begins while node {other} is out of service"))
    }

    /// Another node that the current pass could see to be out of service, for whatever reason.
    fn seen_out(&self, but: usize) -> Option<usize> {
        (0..NODES).find(|n| *n != but && self.pass.out[*n])
    }
}
