//! Malicious servers, and the operator as a process under attack.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use kube::Client;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

use super::{caddy, cluster, eventually, operator::World};

/// Response of a server to a path and query: delay, status and body.
pub type Script = Arc<dyn Fn(&str) -> (Duration, u16, Vec<u8>) + Send + Sync>;

/// Server that follows a script. It ends with the test.
pub struct Hostile {
    pub address: String,
    state: Arc<Node>,
    task: JoinHandle<()>,
}

struct Node {
    script: Script,
    asked: AtomicUsize,
    first: OnceLock<Instant>,
}

impl Hostile {
    pub async fn start(script: Script) -> Self {
        let state = Arc::new(Node { script, asked: AtomicUsize::new(0), first: OnceLock::new() });
        let router = Router::new().fallback(answer).with_state(state.clone());
        let listener = TcpListener::bind((caddy::address(), 0)).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, state, task }
    }

    pub fn asked(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }

    /// Returns the time of the first request.
    pub fn first(&self) -> Option<Instant> {
        self.state.first.get().copied()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(node): State<Arc<Node>>, request: Request) -> Response {
    node.asked.fetch_add(1, Ordering::SeqCst);
    node.first.get_or_init(Instant::now);
    let (late, status, body) = (node.script)(request.uri().path_and_query().map_or("/", |path| path.as_str()));
    tokio::time::sleep(late).await;
    (StatusCode::from_u16(status).unwrap(), [("etag", "\"v\""), ("content-type", "application/json")], Body::from(body))
        .into_response()
}

/// Time before each later part of a list.
const LATE_PART: Duration = Duration::from_millis(300);

/// Proxy to the API server that can interrupt the watch of policies of one namespace. It ends with the test.
pub struct Interrupted {
    pub kubeconfig: PathBuf,
    way: Arc<Way>,
    task: JoinHandle<()>,
}

struct Way {
    client: Client,
    /// Part of the path of the watch.
    of: String,
    /// Whether the watch is interrupted.
    down: watch::Sender<bool>,
    /// Whether the next watch gets the error that it is too old, and has to start with a list.
    too_old: AtomicBool,
    /// Whether each part of a list has one policy, and the later parts are late.
    in_parts: AtomicBool,
}

impl Interrupted {
    pub async fn start(world: &World) -> Self {
        let of = format!("/namespaces/{}/idleconnectionpolicies", world.namespace);
        let (down, too_old, in_parts) = (watch::Sender::new(false), AtomicBool::new(false), AtomicBool::new(false));
        let way = Arc::new(Way { client: world.client.clone(), of, down, too_old, in_parts });
        let listener = TcpListener::bind((caddy::address(), 0)).await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(pass_on).with_state(way.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let kubeconfig = std::env::temp_dir().join(format!("idleconn-interrupted-{}", world.namespace));
        let config = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: \"{server}\"}}}}], \
             users: [{{name: u, user: {{}}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
        );
        std::fs::write(&kubeconfig, config).unwrap();
        Self { kubeconfig, way, task }
    }

    /// Ends the watch, and refuses new ones.
    pub fn cut(&self) {
        self.way.too_old.store(true, Ordering::SeqCst);
        self.way.down.send_replace(true);
    }

    /// From now on, each part of a list has one policy, and the later parts are late, as with thousands of policies.
    pub fn list_in_parts(&self) {
        self.way.in_parts.store(true, Ordering::SeqCst);
    }

    /// Allows the watch again, starting with a list.
    pub async fn restore(&self) {
        self.way.down.send_replace(false);
        eventually("the watch begins with a list", || async { (!self.way.too_old.load(Ordering::SeqCst)).then_some(()) }).await;
    }
}

impl Drop for Interrupted {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

async fn pass_on(State(way): State<Arc<Way>>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    parts.headers.remove("host");
    let mut path = parts.uri.path_and_query().unwrap().as_str().to_owned();
    let is_watch = path.contains(&way.of) && path.contains("watch=true");
    if is_watch && *way.down.borrow() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if is_watch && way.too_old.swap(false, Ordering::SeqCst) {
        let status = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"Expired","message":"too old","code":410}"#;
        return format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n").into_response();
    }
    if path.contains(&way.of) && way.in_parts.load(Ordering::SeqCst) {
        path = path.replace("limit=500", "limit=1");
        if path.contains("continue=") {
            tokio::time::sleep(LATE_PART).await;
        }
    }
    parts.uri = path.parse().unwrap();
    let asked = axum::http::Request::from_parts(parts, kube::client::Body::from(body.to_vec()));
    let Ok(answer) = way.client.send(asked).await else { return StatusCode::BAD_GATEWAY.into_response() };
    let answer = answer.map(Body::new);
    if !is_watch {
        return answer;
    }
    let mut down = way.down.subscribe();
    let until = async move {
        let _ = down.wait_for(|down| *down).await;
    };
    answer.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(until))))
}

/// Returns a script of an AIStore with this uuid and number of members, and a delay before each response.
pub fn aistore(uuid: &str, members: usize, late: Duration, stats_time: &str, uptime: &str) -> Script {
    let targets: Vec<_> = (0..members).map(|n| format!("\"t{n:08}\":{{}}")).collect();
    let map =
        format!(r#"{{"uuid":"{uuid}","pmap":{{"p0":{{}}}},"tmap":{{{}}},"proxy_si":{{"daemon_id":"p0"}}}}"#, targets.join(","));
    let config = format!(
        r#"{{"net":{{"http":{{"idle_conn_time":"6s","idle_conns":64,"idle_conns_per_host":8}}}},"periodic":{{"stats_time":"{stats_time}"}},"lastupdate_time":""}}"#
    );
    let status = format!(r#"{{"tracker":{{"up.ns.time":{uptime}}},"k8s_pod_name":""}}"#);
    Arc::new(move |path| {
        let (late, body) = match path {
            _ if path.starts_with("/v1/health") => (Duration::ZERO, String::new()),
            _ if path.contains("what=smap") => (Duration::ZERO, map.clone()),
            _ if path.contains("what=node_status") => (late, status.clone()),
            _ if path.contains("reverse") => (late, config.clone()),
            _ => (Duration::ZERO, config.clone()),
        };
        (late, 200, body.into_bytes())
    })
}

/// Operator as a process: the program of this build, or the one that `IDLECONN_BINARY` names.
pub struct Process {
    child: Child,
    pub metrics: String,
    pub api: String,
    log: PathBuf,
}

/// Reports whether the program is the release binary. Its memory and time are then checked against the promised limits.
pub fn is_released() -> bool {
    std::env::var_os("IDLECONN_BINARY").is_some()
}

impl Process {
    /// Starts the operator in these namespaces.
    pub async fn start(worlds: &[&World], env: &[(&str, &str)]) -> Self {
        Self::start_at(worlds, env, cluster::kubeconfig()).await
    }

    /// Starts the operator with the API server of this kubeconfig.
    pub async fn start_at(worlds: &[&World], env: &[(&str, &str)], kubeconfig: &Path) -> Self {
        let binary = std::env::var("IDLECONN_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_idleconn-operator").into());
        Self::of(&binary, worlds, env, kubeconfig).await
    }

    /// Starts another program in the same way.
    pub async fn of(binary: &str, worlds: &[&World], env: &[(&str, &str)], kubeconfig: &Path) -> Self {
        let (metrics, api) = (format!("{}:8080", caddy::address()), format!("{}:8081", caddy::address()));
        let log = std::env::temp_dir().join(format!("idleconn-attack-{}.log", worlds[0].namespace));
        let namespaces: Vec<_> = worlds.iter().map(|world| world.namespace.as_str()).collect();
        let child = Command::new(binary)
            .args(["run", "--resync-interval", "5s"])
            .env("IDLECONN_ALLOW_ENDPOINTS", "127.0.0.0/8")
            .args(["--metrics-address", &metrics, "--api-address", &api, "--namespaces", &namespaces.join(",")])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let process = Self { child, metrics: format!("http://{metrics}"), api: format!("http://{api}"), log };
        eventually("the operator is ready", || async {
            reqwest::get(format!("{}/readyz", process.metrics)).await.is_ok_and(|r| r.status().is_success()).then_some(())
        })
        .await;
        process
    }

    /// Fails if the process has exited.
    pub fn lives(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "the operator ended: {ended:?}; {}", std::fs::read_to_string(&self.log).unwrap());
    }

    /// Returns the peak memory of the process in MiB.
    pub fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().expect("it runs"))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }

    pub async fn metric(&self, name: &str) -> Option<f64> {
        let page = reqwest::get(format!("{}/metrics", self.metrics)).await.ok()?.text().await.ok()?;
        page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}
