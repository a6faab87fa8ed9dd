//! Restarts of nodes that read their limits only when they start: one node after the other, without a second node out of service.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use futures::StreamExt as _;
use idleconn_operator::api::IdleConnectionPolicyStatus;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    runtime::watcher,
};
use serde_json::{Value as Json, json};
use tokio::task::JoinHandle;

use crate::support::{
    ais::{Ais, Life},
    eventually,
    operator::{World, find},
    proxy::{Proxy, Tripwire, killed_after_each},
};

const NODES: [&str; 5] = ["proxy-p0", "proxy-p1", "target-t0", "target-t1", "target-t2"];
/// Nodes with data come first. The primary comes last, because its restart causes an election.
const ORDER: [&str; 5] = ["target-t0", "target-t1", "target-t2", "proxy-p1", "proxy-p0"];

/// Fake kubelet and `StatefulSet` controller: a deleted pod comes back unless it is held.
struct Kubelet {
    pods: Api<Pod>,
    ip: String,
    ais: Arc<Ais>,
    seen: Arc<Mutex<Seen>>,
    task: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    /// Nodes in the order in which their pods were deleted, and whether each was in maintenance.
    gone: Vec<(String, bool)>,
    /// Nodes whose pods do not come back.
    held: BTreeSet<String>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Kubelet {
    /// Starts with a pod for each node of the cluster.
    async fn start(world: &World, ais: Arc<Ais>) -> Self {
        let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
        let ip = ais.proxies[0].trim_start_matches("http://").split(':').next().unwrap().to_owned();
        ais.cluster().pods = NODES.map(|node| (node.to_owned(), format!("ais-{node}"))).into();
        let mut kubelet = Self { pods, ip, ais, seen: Arc::default(), task: None };
        for node in NODES {
            kubelet.run(node).await;
        }
        let (me, mut events) = (kubelet.clone(), watcher(kubelet.pods.clone(), watcher::Config::default()).boxed());
        kubelet.task = Some(tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let Ok(watcher::Event::Delete(pod)) = event else { continue };
                let name = pod.name_any();
                let Some(node) = name.strip_prefix("ais-") else { continue };
                let held = {
                    let mut seen = me.seen.lock().unwrap();
                    seen.gone.push((node.to_owned(), me.ais.in_maintenance(node)));
                    seen.held.contains(node)
                };
                me.ais.set(node, Life::Dead);
                if !held {
                    me.ais.restart(node);
                    me.run(node).await;
                }
            }
        }));
        kubelet
    }

    fn clone(&self) -> Self {
        Self { pods: self.pods.clone(), ip: self.ip.clone(), ais: self.ais.clone(), seen: self.seen.clone(), task: None }
    }

    /// Creates a ready pod for the node.
    async fn run(&self, node: &str) {
        let name = format!("ais-{node}");
        let labels = json!({"app": "ais"});
        let pod =
            json!({"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "ais", "image": "ais"}]}});
        self.pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let ready = json!({"status": {"phase": "Running", "podIP": self.ip, "podIPs": [{"ip": self.ip}], "conditions": [{"type": "Ready", "status": "True"}]}});
        self.pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(ready)).await.unwrap();
    }

    fn gone(&self) -> Vec<String> {
        self.seen.lock().unwrap().gone.iter().map(|(node, _)| node.clone()).collect()
    }

    fn hold(&self, node: &str) {
        self.seen.lock().unwrap().held.insert(node.to_owned());
    }

    async fn let_go(&self, node: &str) {
        self.seen.lock().unwrap().held.remove(node);
        self.ais.restart(node);
        self.run(node).await;
    }
}

fn spec(endpoint: &str, idle: &str, restart: &Json) -> Json {
    json!({
        "target": {"type": "AIStore", "aistore": {"endpoint": endpoint}},
        "limits": {"intraCluster": {"idleConnTimeout": idle}},
        "restart": restart,
    })
}

fn rolling() -> Json {
    json!({"policy": "Rolling"})
}

async fn scene(about: &str) -> (World, Arc<Ais>, Kubelet) {
    let (world, ais) = (World::new(about).await, Arc::new(Ais::start().await));
    ais.refresh_every("1s");
    let kubelet = Kubelet::start(&world, ais.clone()).await;
    (world, ais, kubelet)
}

fn message(status: &IdleConnectionPolicyStatus) -> String {
    find(status, "InEffect").unwrap().message.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_after_the_other_each_in_maintenance_and_back_in_service_before_the_next() {
    let (world, ais, kubelet) = scene("restart").await;
    world.apply("prod", &spec(&ais.proxies[0], "20s", &rolling())).await;
    world.until_condition("prod", "InEffect", "False", "RollingOut").await;
    let status = world.until_condition("prod", "InEffect", "True", "InEffect").await;
    assert_eq!(kubelet.gone(), ORDER);
    for (node, in_maintenance) in &kubelet.seen.lock().unwrap().gone {
        assert_eq!(*in_maintenance, node.starts_with("target"), "{node}");
    }
    assert!(NODES.iter().all(|node| !ais.in_maintenance(node)));
    assert!(NODES.iter().all(|node| ais.in_use(node, "idle_conn_time") == "20s"));
    assert_eq!(find(&status, "Ready").unwrap().status, "True");
    let events = world.events("prod").await;
    assert_eq!(events.iter().filter(|reason| *reason == "NodeRestarted").count(), 5, "{events:?}");
    let control = status.control.unwrap().restart;
    assert_eq!((control.begun.len(), control.nodes.len()), (1, 0));

    // The restarts of the day are used up: the next change waits, and the status gives the reason.
    world.apply("prod", &spec(&ais.proxies[0], "10s", &rolling())).await;
    let status = world.until_condition("prod", "InEffect", "False", "RestartRequired").await;
    assert_eq!(
        message(&status),
        "0 of 5 nodes use the declared limits; the restarts of the last 24 hours are used up (restart.maxPerDay)"
    );
    assert_eq!(kubelet.gone().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disruption_budget_is_waited_for_and_nothing_is_deleted_past_it() {
    let (world, ais, kubelet) = scene("restart-pdb").await;
    let budgets = Api::<PodDisruptionBudget>::namespaced(world.client.clone(), &world.namespace);
    let budget = json!({"metadata": {"name": "ais"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "ais"}}}});
    let budget = budgets.create(&PostParams::default(), &serde_json::from_value(budget).unwrap()).await.unwrap();
    let allow = async |n: i32| {
        let generation = budget.metadata.generation;
        let status = json!({"status": {"observedGeneration": generation, "disruptionsAllowed": n, "currentHealthy": 5, "desiredHealthy": 4, "expectedPods": 5, "disruptedPods": null}});
        budgets.patch_status("ais", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    };
    allow(0).await;
    world.apply("prod", &spec(&ais.proxies[0], "20s", &rolling())).await;
    let waits = "0 of 5 nodes use the declared limits; restarting target-t0: \
                 a PodDisruptionBudget does not allow the eviction of pod ais-target-t0 yet";
    world.until("prod", "waiting for the budget", |s| find(s, "InEffect").is_some_and(|c| c.message == waits)).await;
    assert_eq!(kubelet.gone(), [""; 0]);
    allow(5).await;
    world.until_condition("prod", "InEffect", "True", "InEffect").await;
    assert_eq!(kubelet.gone(), ORDER);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_that_does_not_come_back_is_the_last_that_goes() {
    let (world, ais, kubelet) = scene("restart-lost").await;
    kubelet.hold("target-t1");
    let restart = json!({"policy": "Rolling", "timeout": "15s"});
    world.apply("prod", &spec(&ais.proxies[0], "20s", &restart)).await;
    let status = world.until_condition("prod", "InEffect", "False", "RestartStalled").await;
    assert_eq!(
        message(&status),
        "1 of 5 nodes use the declared limits; target-t1 did not come back in time, and no other node is restarted"
    );
    world.until_event("prod", "RestartStalled").await;
    assert_eq!(kubelet.gone(), ORDER[..2]);
    assert!(ais.in_maintenance("target-t1"), "what it holds is not rebuilt elsewhere");
    // The restarts continue when the node comes back.
    kubelet.let_go("target-t1").await;
    world.until_condition("prod", "InEffect", "True", "InEffect").await;
    assert_eq!(kubelet.gone(), ORDER);
    assert!(!ais.in_maintenance("target-t1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_out_of_service_already_counts() {
    let (world, ais, kubelet) = scene("restart-out").await;
    ais.maintain("target-t2", true);
    world.apply("prod", &spec(&ais.proxies[0], "20s", &rolling())).await;
    let waits = "0 of 5 nodes use the declared limits; no node is restarted while target-t2 is out of service";
    world.until("prod", "waiting for t2", |s| find(s, "InEffect").is_some_and(|c| c.message == waits)).await;
    assert_eq!(kubelet.gone(), [""; 0]);
    assert!(ais.in_maintenance("target-t2"), "another client set the maintenance");
    ais.maintain("target-t2", false);
    world.until_condition("prod", "InEffect", "True", "InEffect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_goes_leaves_no_node_in_maintenance() {
    let (world, ais, kubelet) = scene("restart-deleted").await;
    kubelet.hold("target-t0");
    world.apply("prod", &spec(&ais.proxies[0], "20s", &rolling())).await;
    eventually("target-t0 is gone", || async { (!kubelet.gone().is_empty()).then_some(()) }).await;
    world.delete("prod").await;
    assert!(NODES.iter().all(|node| !ais.in_maintenance(node)));
    assert_eq!(kubelet.gone(), ["target-t0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_only_the_cluster_calls_its_own_is_not_touched() {
    let (world, ais, kubelet) = scene("restart-foreign").await;
    let victim = json!({"metadata": {"name": "victim"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    kubelet.pods.create(&PostParams::default(), &serde_json::from_value(victim).unwrap()).await.unwrap();
    ais.cluster().pods = NODES.map(|node| (node.to_owned(), "victim".to_owned())).into();
    world.apply("prod", &spec(&ais.proxies[0], "20s", &rolling())).await;
    let waits = "0 of 5 nodes use the declared limits; the pod of target-t0 is not known";
    world.until("prod", "no pod", |s| find(s, "InEffect").is_some_and(|c| c.message == waits)).await;
    assert!(kubelet.pods.get_opt("victim").await.unwrap().is_some());
}

/// Rolls out a change, and kills the operator after this write. Returns the restarted pods, the values in effect, the Events and
/// the number of writes.
async fn life(kill_after: usize) -> ((Vec<String>, Vec<Json>, BTreeMap<String, usize>), usize) {
    let (world, ais) = (World::empty("crash-restart").await, Arc::new(Ais::start().await));
    ais.refresh_every("1s");
    let kubelet = Kubelet::start(&world, ais.clone()).await;
    let tripwire = Tripwire::new(kill_after, &world.namespace);
    let node = Proxy::to_node(ais.proxies[0].clone(), tripwire.clone()).await;
    let api = Proxy::to_api(world.client.clone(), tripwire.clone()).await;
    tripwire.start_operator(&api.address);
    world.apply("prod", &spec(&node.address, "20s", &rolling())).await;
    world.until_condition("prod", "InEffect", "True", "InEffect").await;
    let in_use = NODES.map(|node| ais.in_use(node, "idle_conn_time")).to_vec();
    assert!(NODES.iter().all(|node| !ais.in_maintenance(node)));
    let mut told = BTreeMap::new();
    for reason in world.events("prod").await {
        *told.entry(reason).or_default() += 1;
    }
    world.delete("prod").await;
    tripwire.clean();
    ((kubelet.gone(), in_use, told), tripwire.writes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_restarts_no_node_twice_and_leaves_none_out_of_service() {
    let (expected, writes) = life(usize::MAX).await;
    assert_eq!(expected.0, ORDER);
    assert_eq!(expected.2.get("NodeRestarted"), Some(&5));
    assert!((25..50).contains(&writes), "{writes} writes; is one missing, or one made twice?");
    killed_after_each(writes, &expected, life).await;
    println!("killed after each of {writes} writes: every node was restarted once");
}
