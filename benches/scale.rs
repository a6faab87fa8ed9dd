//! The whole controller at scale: the shipped program, a real API server, and a farm of fakes of Caddy's admin API,
//! which are pods there.
//!
//! `IDLECONN_BINARY` names the program; `IDLECONN_NODES` and `IDLECONN_POLICIES` set the numbers (500 and 20 by
//! default). With `IDLECONN_ADAPTIVE=true`, each policy watches its nodes' goroutines. Prints a table, and fails if a
//! bound is missed.

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

const NAMESPACES: usize = 20;
const PORT: u16 = 2019;
/// Concurrent requests to the API server during the setup.
const CONCURRENCY: usize = 32;
/// The promised bounds.
const PROGRAMMED: Duration = Duration::from_secs(60);
const LOOKED_AT: Duration = Duration::from_secs(30);
const EDITED: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_secs(60);

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
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

async fn farm(nodes: usize) -> Vec<Arc<Node>> {
    let mut farm = Vec::new();
    for n in 0..nodes {
        let servers = Mutex::new((r#"{"web":{"listen":[":80"],"idle_timeout":"5m"}}"#.to_owned(), 0));
        let node = Arc::new(Node { servers, reads: AtomicUsize::new(0), writes: AtomicUsize::new(0) });
        let listener = tokio::net::TcpListener::bind((address(n), PORT)).await.unwrap();
        farm.push(node.clone());
        tokio::spawn(async move {
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
    farm
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
    fn memory(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }

    /// CPU time so far, in seconds.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

async fn apply(client: &Client, policy: usize, idle: &str, adaptive: bool) {
    let name = format!("p{policy}");
    let object = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": name}, "spec": spec(policy, idle, adaptive)});
    let api = Api::<IdleConnectionPolicy>::namespaced(client.clone(), &namespace(policy));
    api.patch(&name, &PatchParams::apply("scale").force(), &Patch::Apply(object)).await.unwrap();
}

async fn pod(client: &Client, n: usize, policies: usize) {
    let policy = n % policies;
    let api = Api::<Pod>::namespaced(client.clone(), &namespace(policy));
    let name = format!("node-{n}");
    let pod = json!({"metadata": {"name": name, "labels": {"policy": format!("p{policy}")}}, "spec": {"containers": [{"name": "caddy", "image": "caddy"}]}});
    api.create(&PostParams::default(), &from_value(pod).unwrap()).await.unwrap();
    let ip = address(n).to_string();
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

async fn scene(client: &Client, nodes: usize, policies: usize) {
    let crds = Api::<CustomResourceDefinition>::all(client.clone());
    let crd = idleconn_operator::api::crd::crd();
    crds.patch(crd["metadata"]["name"].as_str().unwrap(), &PatchParams::apply("scale").force(), &Patch::Apply(&crd))
        .await
        .unwrap();
    for n in 0..NAMESPACES {
        let object: Namespace = from_value(json!({"metadata": {"name": format!("fleet-{n}")}})).unwrap();
        Api::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
    }
    stream::iter(0..nodes).for_each_concurrent(CONCURRENCY, |n| pod(client, n, policies)).await;
}

#[tokio::main]
async fn main() {
    let (nodes, policies) = (number("IDLECONN_NODES", 500), number("IDLECONN_POLICIES", 20));
    let adaptive = std::env::var("IDLECONN_ADAPTIVE").is_ok_and(|text| text == "true");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cluster = Cluster::start();
    let file = Kubeconfig::read_from(&cluster.kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    let client = idleconn_operator::controller::client(&config, &Pool::default()).unwrap();
    let farm = farm(nodes).await;
    scene(&client, nodes, policies).await;
    let operator = Operator::start(&cluster, "127.0.0.1:28080");
    let mut missed = Vec::new();
    let mut row = |what: &str, seen: String, kept: bool| {
        println!("| {what} | {seen} |{}", if kept { "" } else { " missed" });
        if !kept {
            missed.push(what.to_owned());
        }
    };
    println!("| {nodes} nodes, {policies} policies{} | seen |\n|---|---|", if adaptive { ", adaptive" } else { "" });

    let begun = Instant::now();
    stream::iter(0..policies).for_each_concurrent(CONCURRENCY, |policy| apply(&client, policy, "30s", adaptive)).await;
    row("policies created after", format!("{:.1} s", begun.elapsed().as_secs_f64()), true);
    let all = until(PROGRAMMED * 4, || farm.iter().all(|node| node.writes.load(Ordering::Relaxed) > 0)).await;
    let left = farm.iter().filter(|node| node.writes.load(Ordering::Relaxed) == 0).count();
    let since = begun.elapsed();
    row(
        "all nodes programmed after the first creation",
        all.map_or_else(|| format!("never: {left} nodes are left"), |_| format!("{:.1} s", since.as_secs_f64())),
        all.is_some() && since < PROGRAMMED + Duration::from_secs(10),
    );

    // Wait for the last statuses; afterwards there must be no writes.
    let mut quiet = operator.metrics().await;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = operator.metrics().await;
        let same = now.get("idleconn_status_writes_total") == quiet.get("idleconn_status_writes_total");
        quiet = now;
        if same {
            break;
        }
    }
    let (cpu, reads) = (operator.cpu(), farm.iter().map(|node| node.reads.load(Ordering::Relaxed)).sum::<usize>());
    tokio::time::sleep(REST).await;
    let now = operator.metrics().await;
    let grown = |name: &str| {
        let of = |metrics: &BTreeMap<String, f64>| {
            metrics.iter().filter(|(key, _)| key.starts_with(name)).map(|(_, n)| n).sum::<f64>()
        };
        of(&now) - of(&quiet)
    };
    let seconds = REST.as_secs_f64();
    row("at rest: CPU", format!("{:.1}% of a core", (operator.cpu() - cpu) / seconds * 100.0), true);
    row(
        "at rest: memory now, at its peak",
        format!("{} MiB, {} MiB", operator.memory("VmRSS:"), operator.memory("VmHWM:")),
        true,
    );
    let read = farm.iter().map(|node| node.reads.load(Ordering::Relaxed)).sum::<usize>() - reads;
    #[allow(clippy::cast_precision_loss)]
    row("at rest: reads of nodes", format!("{:.0} a second", read as f64 / seconds), true);
    let asked = grown("idleconn_pool_requests_total{protocol=\"https\",provider=\"kubernetes\"}");
    row("at rest: requests to the API server", format!("{:.1} a second", asked / seconds), true);
    let written = grown("idleconn_status_writes_total") + grown("idleconn_node_writes_total");
    row("at rest: writes", format!("{written}"), written < 0.5);

    let edited = Instant::now();
    apply(&client, 0, "25s", adaptive).await;
    let own: Vec<_> = farm.iter().step_by(policies).collect();
    let reached = until(Duration::from_secs(30), || own.iter().all(|node| node.idle_timeout() == "25s")).await;
    let took = edited.elapsed();
    row(
        "an edit reaches the last node of its policy after",
        reached.map_or_else(|| "never".to_owned(), |_| format!("{:.2} s", took.as_secs_f64())),
        reached.is_some() && took < EDITED,
    );

    let written: usize = farm.iter().map(|node| node.writes.load(Ordering::Relaxed)).sum();
    drop(operator);
    let before: Vec<_> = farm.iter().map(|node| node.reads.load(Ordering::Relaxed)).collect();
    let operator = Operator::start(&cluster, "127.0.0.1:28081");
    let looked =
        until(LOOKED_AT * 3, || farm.iter().zip(&before).all(|(node, before)| node.reads.load(Ordering::Relaxed) > *before))
            .await;
    row(
        "after a restart every node has been read after",
        looked.map_or_else(|| "never".to_owned(), |took| format!("{:.1} s", took.as_secs_f64())),
        looked.is_some_and(|took| took < LOOKED_AT),
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    let again = farm.iter().map(|node| node.writes.load(Ordering::Relaxed)).sum::<usize>() - written;
    row("after a restart: writes to nodes", again.to_string(), again == 0);
    drop(operator);
    drop(cluster);
    assert!(missed.is_empty(), "missed: {}", missed.join("; "));
}
