//! The whole controller at scale: the shipped program, a real API server, and a farm of fakes of Caddy's admin API,
//! which are pods there.
//!
//! `IDLECONN_BINARY` names the program. Runs the two fleets of `make bench`; with `IDLECONN_SCALE=full` all of them, and with
//! `IDLECONN_SCALE=5000/20` the one of 5,000 nodes and 20 policies. Each has a separate control plane. Prints a table for each fleet
//! and the growth over fleets, and fails if a bound is missed.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::{BufRead as _, BufReader},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use idleconn_operator::{api::IdleConnectionPolicy, pool::Pool};
use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value as Json, from_value, json};
use tokio::task::JoinSet;

const NAMESPACES: usize = 20;
const PORT: u16 = 2019;
/// Concurrent requests to the API server during the setup.
const CONCURRENCY: usize = 32;
/// Time at rest that is measured.
const REST: Duration = Duration::from_secs(60);
/// The operator's interval between reads of a node, in seconds.
const RESYNC: f64 = 30.0;
/// Edits that are measured; the median counts.
const EDITS: usize = 5;
/// Edits of one policy in a second, beside which the edits of the others are measured.
const FREQUENT_EDITS: Duration = Duration::from_millis(100);

/// A fleet, and the promised bounds.
#[derive(Clone, Copy)]
struct Fleet {
    nodes: usize,
    policies: usize,
    /// Pods that no policy selects.
    others: usize,
    /// Each policy watches its nodes' goroutines.
    adaptive: bool,
    bounds: Option<Bounds>,
}

#[derive(Clone, Copy)]
struct Bounds {
    /// From the first creation until all nodes have the limits, in seconds.
    programmed: f64,
    /// From an edit until the last node of the policy has it, in seconds; the median.
    edited: f64,
    /// At rest, in percent of a core.
    cpu: f64,
    /// At rest, in MiB.
    memory: f64,
    /// From a restart until every node has been read, in seconds.
    restarted: f64,
}

const ONE_POLICY: Fleet = Fleet {
    nodes: 5_000,
    policies: 1,
    others: 0,
    adaptive: false,
    bounds: Some(Bounds { programmed: 12.0, edited: 5.0, cpu: 4.0, memory: 96.0, restarted: 15.0 }),
};
const MANY_POLICIES: Fleet = Fleet {
    nodes: 5_000,
    policies: 1_000,
    others: 0,
    adaptive: true,
    bounds: Some(Bounds { programmed: 30.0, edited: 1.0, cpu: 12.0, memory: 128.0, restarted: 15.0 }),
};

const fn fleet(nodes: usize, policies: usize) -> Fleet {
    Fleet { nodes, policies, others: 0, adaptive: policies > 1, bounds: None }
}

/// Fleets of `make bench`.
const SHORT: [Fleet; 2] = [fleet(1_000, 1), fleet(1_000, 200)];
/// Growth with the nodes of one policy.
const NODES: [Fleet; 4] = [fleet(1_250, 1), fleet(2_500, 1), ONE_POLICY, fleet(10_000, 1)];
/// Growth with the policies of as many nodes.
const POLICIES: [Fleet; 4] = [fleet(5_000, 20), fleet(5_000, 300), MANY_POLICIES, fleet(5_000, 3_000)];

/// The smallest fleet among pods that no policy selects.
const AMONG_OTHERS: Fleet = Fleet { others: 5_000, ..NODES[0] };

/// The fleet of this size, with its bounds if it is one of the promised ones.
fn chosen(nodes: usize, policies: usize) -> Fleet {
    let promised = [ONE_POLICY, MANY_POLICIES].into_iter().find(|fleet| (fleet.nodes, fleet.policies) == (nodes, policies));
    promised.unwrap_or(fleet(nodes, policies))
}

/// What was seen at rest.
#[derive(Clone, Copy)]
struct Rest {
    /// In percent of a core.
    cpu: f64,
    /// In MiB.
    memory: f64,
}

/// One server of the farm.
struct Node {
    servers: Mutex<(String, u64)>,
    reads: AtomicUsize,
    writes: AtomicUsize,
}

impl Node {
    fn answer(&self, method: &Method, path: &str, if_match: Option<&str>, body: &[u8]) -> Response<Full<Bytes>> {
        let answer = |status, etag: u64, body: String| {
            let builder = Response::builder().status(status).header("etag", format!("\"{etag:x}\""));
            builder.header("content-type", "application/json").body(Full::new(Bytes::from(body))).unwrap()
        };
        if path == "/metrics" {
            return answer(StatusCode::OK, 0, "# TYPE go_goroutines gauge\ngo_goroutines 20\n".to_owned());
        }
        let mut servers = self.servers.lock().unwrap();
        if *method == Method::GET {
            self.reads.fetch_add(1, Ordering::Relaxed);
            return answer(StatusCode::OK, servers.1, servers.0.clone());
        }
        if if_match.is_some_and(|given| given != format!("\"{:x}\"", servers.1)) {
            return answer(StatusCode::PRECONDITION_FAILED, servers.1, String::new());
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        *servers = (String::from_utf8(body.to_vec()).unwrap(), servers.1 + 1);
        answer(StatusCode::OK, servers.1, String::new())
    }

    fn idle_timeout(&self) -> String {
        let servers: Json = serde_json::from_str(&self.servers.lock().unwrap().0).unwrap();
        servers["web"]["idle_timeout"].as_str().unwrap_or_default().to_owned()
    }
}

fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 20, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250 + 1).unwrap())
}

/// The servers, which end when this is dropped.
struct Farm {
    nodes: Vec<Arc<Node>>,
    _listeners: JoinSet<()>,
}

async fn farm(nodes: usize) -> Farm {
    let (mut farm, mut listeners) = (Vec::new(), JoinSet::new());
    for n in 0..nodes {
        let servers = Mutex::new((r#"{"web":{"listen":[":80"],"idle_timeout":"5m"}}"#.to_owned(), 0));
        let node = Arc::new(Node { servers, reads: AtomicUsize::new(0), writes: AtomicUsize::new(0) });
        let listener = tokio::net::TcpListener::bind((address(n), PORT)).await.unwrap();
        farm.push(node.clone());
        listeners.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let node = node.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let node = node.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let if_match = head.headers.get("if-match").and_then(|value| value.to_str().ok());
                        Ok::<_, Infallible>(node.answer(&head.method, head.uri.path(), if_match, &body))
                    }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
    }
    Farm { nodes: farm, _listeners: listeners }
}

/// A control plane, which ends when this is dropped.
struct Cluster {
    kubeconfig: PathBuf,
    serve: Child,
}

impl Cluster {
    fn start() -> Self {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/cluster");
        let dir = std::env::temp_dir().join(format!("idleconn-scale-{}", std::process::id()));
        let mut serve = Command::new(tools).arg("serve").arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(serve.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.trim().is_empty(), "the control plane did not start");
        Self { kubeconfig: line.trim().into(), serve }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.serve.stdin.take());
        let _ = self.serve.wait();
    }
}

/// The operator as a process, which ends when this is dropped.
struct Operator {
    child: Child,
    metrics: String,
}

impl Operator {
    fn start(cluster: &Cluster, metrics: &str) -> Self {
        let binary = std::env::var("IDLECONN_BINARY").expect("IDLECONN_BINARY names the operator's program; make scale sets it");
        let log = std::fs::File::create(cluster.kubeconfig.with_extension("operator.log")).unwrap();
        let child = Command::new(binary)
            .args(["run", "--api-address", "none", "--metrics-address", metrics, "--kubeconfig"])
            .arg(&cluster.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, metrics: metrics.to_owned() }
    }

    /// Waits until the operator answers. Fails if its process ends.
    async fn answers(&mut self) {
        while self.metrics().await.is_empty() {
            assert!(self.child.try_wait().unwrap().is_none(), "the operator ended; its log is beside the kubeconfig");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// All metrics, by name and labels.
    async fn metrics(&self) -> BTreeMap<String, f64> {
        let Ok(answer) = reqwest::get(format!("http://{}/metrics", self.metrics)).await else { return BTreeMap::new() };
        let page = answer.text().await.unwrap_or_default();
        page.lines()
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, n)| Some((name.into(), n.parse().ok()?)))
            .collect()
    }

    /// Resident memory in MiB.
    fn memory(&self, what: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// CPU time so far, in seconds.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until the condition is true and returns the time it took; `None` after `limit`.
async fn until(limit: Duration, mut so: impl FnMut() -> bool) -> Option<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if so() {
            return Some(begun.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    None
}

fn spec(policy: usize, idle: &str, adaptive: bool) -> Json {
    let mut spec = json!({
        "target": {"type": "Caddy", "caddy": {"selector": {"matchLabels": {"policy": format!("p{policy}")}}, "adminPort": PORT}},
        "limits": {"server": {"idleTimeout": idle}},
        // Measured is the operator, not the pause between batches.
        "updateStrategy": {"type": "AllAtOnce"},
    });
    if adaptive {
        spec["adaptive"] =
            json!({"mode": "Enforce", "floor": {"server": {"idleTimeout": "5s"}}, "signal": {"threshold": {"value": 1000}}});
    }
    spec
}

fn namespace(policy: usize) -> String {
    format!("fleet-{}", policy % NAMESPACES)
}

fn object(policy: usize, idle: &str, adaptive: bool) -> Json {
    json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": format!("p{policy}")}, "spec": spec(policy, idle, adaptive)})
}

async fn create(client: &Client, policy: usize, idle: &str, adaptive: bool) {
    let api = Api::<IdleConnectionPolicy>::namespaced(client.clone(), &namespace(policy));
    api.create(&PostParams::default(), &from_value(object(policy, idle, adaptive)).unwrap()).await.unwrap();
}

async fn apply(client: &Client, policy: usize, idle: &str, adaptive: bool) {
    let (name, object) = (format!("p{policy}"), object(policy, idle, adaptive));
    let api = Api::<IdleConnectionPolicy>::namespaced(client.clone(), &namespace(policy));
    api.patch(&name, &PatchParams::apply("scale").force(), &Patch::Apply(object)).await.unwrap();
}

async fn node(client: &Client, n: usize, policies: usize) {
    let policy = n % policies;
    pod(client, &namespace(policy), &format!("node-{n}"), &format!("p{policy}"), address(n)).await;
}

async fn other(client: &Client, n: usize) {
    let ip = Ipv4Addr::new(10, 20, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250 + 1).unwrap());
    pod(client, &namespace(n), &format!("other-{n}"), "none", ip).await;
}

async fn pod(client: &Client, namespace: &str, name: &str, policy: &str, ip: Ipv4Addr) {
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let pod = json!({"metadata": {"name": name, "labels": {"policy": policy}}, "spec": {"containers": [{"name": "caddy", "image": "caddy"}]}});
    api.create(&PostParams::default(), &from_value(pod).unwrap()).await.unwrap();
    let ip = ip.to_string();
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

async fn scene(client: &Client, fleet: &Fleet) {
    let crds = Api::<CustomResourceDefinition>::all(client.clone());
    let crd = idleconn_operator::api::crd::crd();
    crds.patch(crd["metadata"]["name"].as_str().unwrap(), &PatchParams::apply("scale").force(), &Patch::Apply(&crd))
        .await
        .unwrap();
    for n in 0..NAMESPACES {
        let object: Namespace = from_value(json!({"metadata": {"name": format!("fleet-{n}")}})).unwrap();
        Api::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
    }
    stream::iter(0..fleet.nodes).for_each_concurrent(CONCURRENCY, |n| node(client, n, fleet.policies)).await;
    stream::iter(0..fleet.others).for_each_concurrent(CONCURRENCY, |n| other(client, n)).await;
}

/// The table of a fleet. Records the bounds that are missed.
struct Table {
    fleet: String,
    missed: Vec<String>,
}

impl Table {
    fn row(&mut self, what: &str, seen: &str, kept: bool) {
        println!("| {what} | {seen} |{}", if kept { "" } else { " missed" });
        if !kept {
            self.missed.push(format!("{}: {what}", self.fleet));
        }
    }

    /// A time that must be at most `bound` seconds, if there is a bound. `None` is a miss.
    fn time(&mut self, what: &str, seen: Option<Duration>, bound: Option<f64>) {
        let text = seen.map_or_else(|| "never".to_owned(), |seen| format!("{:.2} s", seen.as_secs_f64()));
        self.at_most(what, &text, seen.map_or(f64::INFINITY, |seen| seen.as_secs_f64()), bound.or(Some(f64::MAX)));
    }

    fn at_most(&mut self, what: &str, text: &str, seen: f64, bound: Option<f64>) {
        let promised = bound.filter(|bound| *bound < f64::MAX).map(|bound| format!(" (at most {bound})")).unwrap_or_default();
        self.row(what, &format!("{text}{promised}"), bound.is_none_or(|bound| seen <= bound));
    }
}

/// A fleet with the operator that governs it.
struct World {
    fleet: Fleet,
    cluster: Cluster,
    client: Client,
    farm: Farm,
    operator: Operator,
    table: Table,
}

impl World {
    async fn start(fleet: Fleet) -> Self {
        let cluster = Cluster::start();
        let file = Kubeconfig::read_from(&cluster.kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        let client = idleconn_operator::controller::client(&config, &Pool::default()).unwrap();
        let farm = farm(fleet.nodes).await;
        scene(&client, &fleet).await;
        let mut operator = Operator::start(&cluster, "127.0.0.1:28080");
        operator.answers().await;
        let policies = if fleet.policies == 1 { "policy" } else { "policies" };
        let adaptive = if fleet.adaptive { ", adaptive" } else { "" };
        let others = if fleet.others > 0 { format!(", {} other pods", fleet.others) } else { String::new() };
        let name = format!("{} nodes, {} {policies}{adaptive}{others}", fleet.nodes, fleet.policies);
        println!("\n| {name} | seen |\n|---|---|");
        Self { fleet, cluster, client, farm, operator, table: Table { fleet: name, missed: Vec::new() } }
    }

    fn count(&self, of: impl Fn(&Node) -> &AtomicUsize) -> usize {
        self.farm.nodes.iter().map(|node| of(node).load(Ordering::Relaxed)).sum()
    }

    async fn apply(&self, policy: usize, idle: &str) {
        apply(&self.client, policy, idle, self.fleet.adaptive).await;
    }

    async fn program(&mut self) {
        let begun = Instant::now();
        let create = |policy| create(&self.client, policy, "30s", self.fleet.adaptive);
        stream::iter(0..self.fleet.policies).for_each_concurrent(CONCURRENCY, create).await;
        let created = begun.elapsed();
        let all = |node: &Arc<Node>| node.writes.load(Ordering::Relaxed) > 0;
        let programmed = until(Duration::from_secs(240), || self.farm.nodes.iter().all(all)).await.map(|_| begun.elapsed());
        if programmed.is_none() {
            println!("{} nodes are not programmed", self.farm.nodes.iter().filter(|node| !all(node)).count());
        }
        self.table.time("policies created after", Some(created), None);
        let bound = self.fleet.bounds.map(|bounds| bounds.programmed);
        self.table.time("all nodes programmed after the first creation", programmed, bound);
    }

    /// Waits until no status has been written for a while.
    async fn settle(&self) {
        let mut before = None;
        for _ in 0..60 {
            let metrics = self.operator.metrics().await;
            let written = metrics.get("idleconn_status_writes_total").copied();
            if written.is_some() && written == before {
                return;
            }
            before = written;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// Waits for the begin of a pass. One policy reads all nodes together, so a minute that begins at any time has one pass
    /// or two. Passes of many policies are spread.
    async fn pass_begins(&self) {
        if self.fleet.policies > 1 {
            return;
        }
        let reads = || self.count(|node| &node.reads);
        let mut known = usize::MAX;
        while reads() != known {
            known = reads();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        while reads() == known {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn rest(&mut self) -> Rest {
        self.pass_begins().await;
        let (cpu, reads, before) = (self.operator.cpu(), self.count(|node| &node.reads), self.operator.metrics().await);
        tokio::time::sleep(REST).await;
        let (seconds, after) = (REST.as_secs_f64(), self.operator.metrics().await);
        let grown = |name: &str| {
            let of = |metrics: &BTreeMap<String, f64>| {
                metrics.iter().filter(|(key, _)| key.starts_with(name)).map(|(_, n)| n).sum::<f64>()
            };
            of(&after) - of(&before)
        };
        let cpu = (self.operator.cpu() - cpu) / seconds * 100.0;
        let memory = self.operator.memory("VmRSS:");
        let bounds = self.fleet.bounds;
        self.table.at_most("at rest: CPU", &format!("{cpu:.1}% of a core"), cpu, bounds.map(|bounds| bounds.cpu));
        self.table.at_most("at rest: memory", &format!("{memory:.0} MiB"), memory, bounds.map(|bounds| bounds.memory));
        self.table.row("memory at its peak", &format!("{:.0} MiB", self.operator.memory("VmHWM:")), true);
        #[allow(clippy::cast_precision_loss)]
        let (read, due) = ((self.count(|node| &node.reads) - reads) as f64 / seconds, self.fleet.nodes as f64 / RESYNC);
        let kept = (read - due).abs() <= due / 10.0;
        self.table.row("at rest: reads of nodes", &format!("{read:.0} a second (due: {due:.0} ± 10%)"), kept);
        let asked = grown("idleconn_pool_requests_total{protocol=\"https\",provider=\"kubernetes\"}");
        self.table.row("at rest: requests to the API server", &format!("{:.1} a second", asked / seconds), true);
        let written = grown("idleconn_status_writes_total") + grown("idleconn_node_writes_total");
        self.table.row("at rest: writes", &written.to_string(), written < 0.5);
        Rest { cpu, memory }
    }

    /// Edits a policy, and returns the time until its last node has the new value.
    async fn edit(&self, policy: usize, idle: &str) -> Option<Duration> {
        let edited = Instant::now();
        self.apply(policy, idle).await;
        let own: Vec<_> = self.farm.nodes.iter().skip(policy).step_by(self.fleet.policies).collect();
        until(Duration::from_secs(60), || own.iter().all(|node| node.idle_timeout() == idle)).await?;
        Some(edited.elapsed())
    }

    async fn edits(&self) -> Option<Duration> {
        let mut took = Vec::new();
        for n in 0..EDITS {
            took.push(self.edit(n % self.fleet.policies, &format!("{}s", 25 - n)).await?);
            self.settle().await;
        }
        took.sort();
        Some(took[EDITS / 2])
    }

    /// Edits the last policy ten times a second, and measures edits of the others meanwhile.
    async fn edits_beside_frequent_ones(&mut self) {
        let frequent = async {
            let mut every = tokio::time::interval(FREQUENT_EDITS);
            for n in 0.. {
                every.tick().await;
                self.apply(self.fleet.policies - 1, &format!("{}s", 40 + n % 10)).await;
            }
        };
        let edits = async {
            let mut took = Vec::new();
            for n in 0..EDITS {
                took.push(self.edit(n, &format!("{}s", 35 - n)).await?);
            }
            took.into_iter().max()
        };
        let slowest = tokio::select! {
            slowest = edits => slowest,
            () = frequent => None,
        };
        self.table.time("while one policy is edited ten times a second, the slowest of the others' edits", slowest, Some(1.0));
    }

    async fn restart(&mut self) {
        self.settle().await;
        let written = self.count(|node| &node.writes);
        let before: Vec<_> = self.farm.nodes.iter().map(|node| node.reads.load(Ordering::Relaxed)).collect();
        self.operator.kill();
        self.operator = Operator::start(&self.cluster, "127.0.0.1:28081");
        let read = |(node, before): (&Arc<Node>, &usize)| node.reads.load(Ordering::Relaxed) > *before;
        let all = until(Duration::from_secs(120), || self.farm.nodes.iter().zip(&before).all(read)).await;
        self.table.time("after a restart every node has been read after", all, self.fleet.bounds.map(|bounds| bounds.restarted));
        self.settle().await;
        let again = self.count(|node| &node.writes) - written;
        self.table.row("after a restart: writes to nodes", &again.to_string(), again == 0);
    }
}

/// Measures a fleet. Returns what was seen at rest, and the bounds that were missed.
async fn measure(fleet: Fleet) -> (Rest, Vec<String>) {
    let mut world = World::start(fleet).await;
    world.program().await;
    world.settle().await;
    let rest = world.rest().await;
    let edited = world.edits().await;
    let bound = fleet.bounds.map(|bounds| bounds.edited);
    world.table.time("an edit reaches the last node of its policy after (median of five)", edited, bound);
    if fleet.policies > EDITS {
        world.edits_beside_frequent_ones().await;
    }
    world.restart().await;
    (rest, world.table.missed)
}

/// Prints the line through the points that fits best.
#[allow(clippy::cast_precision_loss)]
fn line(what: &str, unit: &str, seen: &[(Fleet, Rest)], x: impl Fn(&Fleet) -> usize, y: impl Fn(&Rest) -> f64) {
    let points: Vec<_> = seen.iter().map(|(fleet, rest)| (x(fleet) as f64, y(rest))).collect();
    let n = points.len() as f64;
    let (mx, my) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let slope =
        points.iter().map(|p| (p.0 - mx) * (p.1 - my)).sum::<f64>() / points.iter().map(|p| (p.0 - mx).powi(2)).sum::<f64>();
    let base = my - slope * mx;
    let off = points.iter().map(|p| (p.1 - base - slope * p.0).abs()).fold(0.0, f64::max);
    let each: Vec<_> = points.iter().map(|p| format!("{:.0}: {:.1}", p.0, p.1)).collect();
    println!(
        "| {what} | {base:.1} {unit} and {:.2} {unit} for each 1,000; at most {off:.1} off ({}) |",
        slope * 1000.0,
        each.join(", ")
    );
}

fn growth(title: &str, seen: &[(Fleet, Rest)], x: impl Fn(&Fleet) -> usize + Copy) {
    println!("\n| {title} | line |\n|---|---|");
    line("CPU", "% of a core", seen, x, |rest| rest.cpu);
    line("memory", "MiB", seen, x, |rest| rest.memory);
}

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let scale = std::env::var("IDLECONN_SCALE").unwrap_or_default();
    let one = scale.split_once('/').map(|(nodes, policies)| [chosen(nodes.parse().unwrap(), policies.parse().unwrap())]);
    let fleets: Vec<&[Fleet]> = match (&one, &*scale) {
        (Some(one), _) => vec![one],
        (None, "full") => vec![&NODES, &POLICIES],
        (None, _) => vec![&SHORT],
    };
    let (mut missed, mut groups) = (Vec::new(), Vec::new());
    for group in fleets {
        let mut seen = Vec::new();
        for fleet in group {
            let (rest, lacks) = measure(*fleet).await;
            missed.extend(lacks);
            seen.push((*fleet, rest));
        }
        groups.push(seen);
    }
    if let [nodes, policies] = &groups[..] {
        let (rest, lacks) = measure(AMONG_OTHERS).await;
        missed.extend(lacks);
        growth("growth with the nodes of one policy", nodes, |fleet| fleet.nodes);
        growth("growth with the policies of 5,000 nodes", policies, |fleet| fleet.policies);
        growth("growth with pods that no policy selects", &[nodes[0], (AMONG_OTHERS, rest)], |fleet| fleet.others);
    }
    assert!(missed.is_empty(), "missed: {}", missed.join("; "));
}
