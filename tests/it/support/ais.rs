//! Fake of an AIStore 5.0 cluster with its quirks: two proxies and three targets. It behaves like the recordings in
//! tests/fixtures/aistore, and replay.rs checks that.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header::HeaderValue},
    response::{IntoResponse as _, Response},
};
use idleconn_operator::targets::go_duration;
use jiff::Timestamp;
use serde_json::{Value as Json, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::Instant};

use super::{caddy, cluster::ROOT};

/// Speed of the fake's clock for waits that take half a minute on the real server.
const HURRY: u32 = 10;
/// Time of a PUT with a hung node in the cluster: 33 s on the real server.
const HUNG: Duration = Duration::from_secs(33);
/// Time of a PUT with a dead node in the cluster: 8 s on the real server.
const DEAD: Duration = Duration::from_secs(8);

/// Delay after a start until a node begins to count its uptime.
const LATE: Duration = Duration::from_secs(9);

/// Rights of a token.
#[derive(Clone, Copy, PartialEq)]
pub enum Token {
    Admin,
    /// The token may read buckets, and nothing of the cluster.
    BucketsOnly,
    /// The token may read the configuration of the cluster, and not change it.
    ReadOnly,
    Expired,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Life {
    Running,
    /// The process is stopped: it accepts connections and answers nothing.
    Hung,
    Dead,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Phase {
    Ready,
    Starting,
    /// The primary is gone, and the next primary is not elected yet.
    Election,
}

struct Node {
    life: Life,
    maintenance: bool,
    started: Instant,
    /// Delay after the start until the node begins to count its uptime: 9 to 38 s on the real server, which counts from the time
    /// at which it has observed the start of its cluster.
    late: Duration,
    /// Values with which the transports of the node were created.
    in_use: Json,
    /// Own file of the node, from which its next process starts. The configuration of the cluster arrives later and changes the
    /// file.
    file: Json,
}

pub struct Cluster {
    config: Json,
    version: u64,
    updated: String,
    updated_before: String,
    nodes: BTreeMap<String, Node>,
    pub phase: Phase,
    pub tokens: BTreeMap<String, Token>,
    pub auth: bool,
    /// Whether the node speaks TLS only. Clients without TLS get an error in plain text.
    pub https: bool,
    pub uuid: String,
    /// Pods in which the nodes run.
    pub pods: BTreeMap<String, String>,
}

/// Running fake. It ends with the test.
pub struct Ais {
    /// `http://host:port` of the primary proxy p0 and of p1.
    pub proxies: [String; 2],
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// Load of the nodes.
#[derive(Clone, Copy, Default)]
pub struct Load {
    /// Goroutines that are not related to pools.
    pub other: f64,
    /// New pooled connections per second. Each stays open for the idle timeout of the transports.
    pub arrivals: f64,
    /// Time until an empty pool is full, in seconds.
    pub fill: f64,
}

/// Number of CPUs of every node.
const GOMAXPROCS: f64 = 2.0;

struct Shared {
    load: Mutex<Load>,
    /// Connections of external clients, by node.
    clients: Mutex<BTreeMap<String, f64>>,
    pages: Mutex<BTreeMap<String, String>>,
    cluster: Mutex<Cluster>,
    resumed: watch::Sender<()>,
    puts: AtomicUsize,
    gets: AtomicUsize,
    refused: AtomicUsize,
}

/// Returns the body of a recording.
pub fn fixture(name: &str) -> Json {
    let text = std::fs::read_to_string(format!("{ROOT}/tests/fixtures/aistore/{name}.txt")).unwrap();
    let line = text.lines().find(|line| line.starts_with('{')).unwrap();
    serde_json::from_str(line).unwrap()
}

fn now_text() -> String {
    format!("{} +0000 UTC m=+684.8", Timestamp::now().strftime("%Y-%m-%d %H:%M:%S%.9f"))
}

impl Ais {
    pub async fn start() -> Self {
        Self::start_at(SocketAddr::from((caddy::address(), 0))).await
    }

    /// Starts the fake with p0 at this address.
    pub async fn start_at(address: SocketAddr) -> Self {
        let config = fixture("03-cluster-config");
        let in_use = config["net"]["http"].clone();
        let node = |_| Node {
            life: Life::Running,
            maintenance: false,
            started: Instant::now() - Duration::from_secs(3600),
            late: LATE,
            in_use: in_use.clone(),
            file: in_use.clone(),
        };
        let nodes = ["proxy-p0", "proxy-p1", "target-t0", "target-t1", "target-t2"];
        let long_ago = "2026-01-01 00:00:00.1 +0000 UTC m=+1.0".to_owned();
        let cluster = Cluster {
            config,
            version: 1,
            updated: long_ago.clone(),
            updated_before: long_ago,
            nodes: nodes.iter().enumerate().map(|(n, name)| ((*name).to_owned(), node(n))).collect(),
            phase: Phase::Ready,
            tokens: BTreeMap::new(),
            auth: false,
            https: false,
            pods: BTreeMap::new(),
            uuid: format!("uuid-{}", address.ip()),
        };
        let shared = Arc::new(Shared {
            cluster: Mutex::new(cluster),
            resumed: watch::Sender::new(()),
            puts: AtomicUsize::new(0),
            gets: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            load: Mutex::default(),
            clients: Mutex::default(),
            pages: Mutex::default(),
        });
        let mut proxies = Vec::new();
        let mut tasks = Vec::new();
        for (name, address) in [("proxy-p0", address), ("proxy-p1", SocketAddr::new(address.ip(), 0))] {
            let listener = TcpListener::bind(address).await.unwrap();
            proxies.push(format!("http://{}", listener.local_addr().unwrap()));
            let router = Router::new().fallback(answer).with_state((shared.clone(), name));
            tasks.push(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
        }
        for name in nodes {
            let listener = TcpListener::bind(SocketAddr::new(address.ip(), 0)).await.unwrap();
            shared.pages.lock().unwrap().insert(name.to_owned(), format!("http://{}", listener.local_addr().unwrap()));
            let router = Router::new().route("/metrics", axum::routing::get(page)).with_state((shared.clone(), name));
            tasks.push(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
        }
        Self { proxies: proxies.try_into().unwrap(), shared, tasks }
    }

    /// Sets the load of the nodes.
    pub fn load(&self, load: Load) {
        *self.shared.load.lock().unwrap() = load;
    }

    /// Sets the number of connections of external clients to a node. Each costs one goroutine and is in no pool of the cluster.
    pub fn clients(&self, node: &str, connections: f64) {
        self.shared.clients.lock().unwrap().insert(node.to_owned(), connections);
    }

    /// Removes a node from the cluster.
    pub fn leave(&self, node: &str) {
        self.cluster().nodes.remove(node).unwrap();
    }

    /// Returns the number of goroutines of a node.
    pub fn goroutines(&self, node: &str) -> f64 {
        self.shared.goroutines(node)
    }

    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.shared.cluster.lock().unwrap()
    }

    /// Returns the hosts of the nodes' addresses in the cluster map.
    pub fn hosts(&self) -> std::collections::BTreeSet<std::net::IpAddr> {
        let pages = self.shared.pages.lock().unwrap();
        let host = |page: &String| page.parse::<axum::http::Uri>().ok()?.host()?.parse().ok();
        pages.values().filter_map(host).collect()
    }

    pub fn puts(&self) -> usize {
        self.shared.puts.load(Ordering::Relaxed)
    }

    pub fn gets(&self) -> usize {
        self.shared.gets.load(Ordering::Relaxed)
    }

    /// Returns the number of refused changes.
    pub fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::Relaxed)
    }

    pub fn set(&self, node: &str, life: Life) {
        self.cluster().nodes.get_mut(node).unwrap().life = life;
        self.shared.resumed.send_replace(());
    }

    /// Restarts a node: the new process creates its transports from its own file, then joins the cluster and receives the
    /// configuration.
    pub fn restart(&self, node: &str) {
        let mut cluster = self.cluster();
        let http = cluster.config["net"]["http"].clone();
        let node = cluster.nodes.get_mut(node).unwrap();
        let in_use = std::mem::replace(&mut node.file, http);
        (node.life, node.started, node.late, node.in_use) = (Life::Running, Instant::now(), LATE / HURRY, in_use);
    }

    /// Returns the uptime that a node reports.
    pub fn uptime(&self, node: &str) -> Duration {
        Duration::from_nanos(self.cluster().status_of(node)["tracker"]["up.ns.time"].as_u64().unwrap())
    }

    /// Adds a new node, with its own file.
    pub fn join(&self, node: &str) {
        let mut cluster = self.cluster();
        let file = cluster.config["net"]["http"].clone();
        let in_use = fixture("03-cluster-config")["net"]["http"].clone();
        let (life, maintenance, started) = (Life::Running, false, Instant::now());
        cluster.nodes.insert(node.to_owned(), Node { life, maintenance, started, late: LATE / HURRY, in_use, file });
    }

    /// Changes the maintenance mode manually, as `ais cluster add-remove-nodes` does.
    pub fn maintain(&self, node: &str, maintenance: bool) {
        self.cluster().nodes.get_mut(node).unwrap().maintenance = maintenance;
    }

    pub fn in_maintenance(&self, node: &str) -> bool {
        self.cluster().nodes[node].maintenance
    }

    /// Sets the interval at which the statistics, including the uptime, are refreshed.
    pub fn refresh_every(&self, time: &str) {
        self.cluster().config["periodic"]["stats_time"] = time.into();
    }

    /// Returns a stored field of `net.http`.
    pub fn http(&self, key: &str) -> Json {
        self.cluster().config["net"]["http"][key].clone()
    }

    /// Returns a field of `net.http` as the transports of a node use it.
    pub fn in_use(&self, node: &str, key: &str) -> Json {
        self.cluster().nodes[node].in_use[key].clone()
    }

    /// Changes a field manually, as `ais config cluster` does.
    pub fn set_http(&self, key: &str, value: &Json) {
        self.cluster().change(|http| http[key] = value.clone());
    }

    /// Removes a field, as in a cluster of an older version.
    pub fn remove_http(&self, key: &str) {
        self.cluster().config["net"]["http"].as_object_mut().unwrap().remove(key);
    }
}

impl Drop for Ais {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Cluster {
    fn change(&mut self, edit: impl FnOnce(&mut Json)) {
        edit(&mut self.config["net"]["http"]);
        let http = &self.config["net"]["http"];
        for node in self.nodes.values_mut().filter(|node| node.life == Life::Running) {
            node.file.clone_from(http);
        }
        self.version += 1;
        self.updated_before = std::mem::replace(&mut self.updated, now_text());
    }

    /// Returns the configuration that a node reports. The primary reports the current values, with everything else one version
    /// old.
    fn config_of(&self, node: &str) -> Json {
        let primary = node == "proxy-p0";
        let mut config = self.config.clone();
        config["uuid"] = self.uuid.clone().into();
        config["config_version"] = (self.version - u64::from(primary && self.version > 1)).to_string().into();
        config["lastupdate_time"] = if primary { self.updated_before.clone() } else { self.updated.clone() }.into();
        config
    }

    fn map(&self, pages: &BTreeMap<String, String>) -> Json {
        let mut map = fixture("02c-smap-cluster");
        map["uuid"] = self.uuid.clone().into();
        for kind in ["pmap", "tmap"] {
            map[kind].as_object_mut().unwrap().retain(|name, _| self.nodes.contains_key(name));
        }
        for (name, node) in &self.nodes {
            let kind = if name.starts_with("proxy") { "pmap" } else { "tmap" };
            if map[kind][name].is_null() {
                let like = map[kind].as_object().unwrap().values().next().unwrap().clone();
                map[kind][name] = like;
                map[kind][name]["daemon_id"] = name.as_str().into();
                map[kind][name]["public_net"]["direct_url"] = "".into();
            }
            if node.maintenance {
                map[kind][name]["flags"] = 4.into();
            }
            if let Some(page) = pages.get(name) {
                map[kind][name]["public_net"]["direct_url"] = page.clone().into();
            }
        }
        map
    }

    fn status_of(&self, name: &str) -> Json {
        let node = &self.nodes[name];
        if node.maintenance {
            return fixture("79j-status-maint-node");
        }
        let mut status = fixture("50b-node-status-reverse");
        let up = node.started.elapsed().saturating_sub(node.late);
        // The uptime is refreshed only at each tick of the statistics.
        let tick = go_duration::parse(self.config["periodic"]["stats_time"].as_str().unwrap()).unwrap();
        let ticks = u32::try_from(up.as_nanos() / tick.as_nanos()).unwrap();
        status["tracker"]["up.ns.time"] = u64::try_from((tick * ticks).as_nanos()).unwrap().into();
        status["snode"]["daemon_id"] = name.into();
        status["k8s_pod_name"] = self.pods.get(name).map_or("", String::as_str).into();
        status
    }
}

impl Shared {
    fn goroutines(&self, name: &str) -> f64 {
        let Load { other, arrivals, fill } = *self.load.lock().unwrap();
        let cluster = self.cluster.lock().unwrap();
        let node = &cluster.nodes[name];
        let idle = go_duration::parse(node.in_use["idle_conn_time"].as_str().unwrap()).unwrap().as_secs_f64();
        let filled = 1.0 - (-node.started.elapsed().as_secs_f64() / fill.max(0.001)).exp();
        let clients = self.clients.lock().unwrap().get(name).copied().unwrap_or_default();
        // Limited to what the transports keep: control and data connections to each other node.
        let limit = |key: &str| node.in_use[key].as_f64().unwrap();
        #[allow(clippy::cast_precision_loss)] // A few nodes.
        let others = (cluster.nodes.len() - 1) as f64;
        let pooled = (arrivals * idle).min(2.0 * (limit("idle_conns_per_host") * others).min(limit("idle_conns")));
        (16.0 + clients + (other + 2.0 * pooled) * filled).round()
    }
}

/// Returns the recorded page with the current figures.
async fn page(State((shared, name)): State<(Arc<Shared>, &'static str)>) -> Response {
    let recording = if name.starts_with("proxy") { "62b-metrics-proxy-goruntime" } else { "62-metrics-target-goruntime" };
    let text = std::fs::read_to_string(format!("{ROOT}/tests/fixtures/aistore/{recording}.txt")).unwrap();
    let goroutines = shared.goroutines(name);
    let alert = match goroutines / GOMAXPROCS {
        1024.0.. => 1u64 << 15,
        512.0.. => 1 << 14,
        _ => 0,
    };
    #[allow(clippy::cast_precision_loss)] // Far below 2^53.
    let flags = (0x0020_0006 | alert) as f64;
    let uptime = shared.cluster.lock().unwrap().nodes[name].started.elapsed().as_secs_f64();
    let lines = text.lines().skip_while(|line| !line.starts_with("# HELP")).map(|line| {
        let value = match line.split('{').next() {
            Some("go_goroutines") => goroutines,
            Some("ais_target_state_flags" | "ais_proxy_state_flags") => flags,
            Some("ais_target_uptime" | "ais_proxy_uptime") => uptime,
            _ => return line.to_owned(),
        };
        format!("{} {value:e}", line.rsplit_once(' ').unwrap().0)
    });
    lines.collect::<Vec<_>>().join("\n").into_response()
}

async fn answer(
    State((shared, me)): State<(Arc<Shared>, &'static str)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let https = shared.cluster.lock().unwrap().https;
    let mut response = if https {
        (StatusCode::BAD_REQUEST, "Client sent an HTTP request to an HTTPS server.\n").into_response()
    } else {
        route(&shared, me, &method, &uri, &headers, &body).await
    };
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now()).unwrap();
    response.headers_mut().insert("date", HeaderValue::from_str(&date).unwrap());
    response
}

async fn route(shared: &Shared, me: &str, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Response {
    let query: BTreeMap<String, String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (k.into(), v.into()))
        .collect();
    let what = query.get("what").map(String::as_str);
    let fail = |status: u16, message: &str, path: &str| error(status, message, method, path, me, None);
    let path = uri.path();
    if path == "/v1/health" {
        let mut response = StatusCode::OK.into_response();
        if query.contains_key("prr") {
            *response.status_mut() = match shared.cluster.lock().unwrap().phase {
                Phase::Ready => StatusCode::OK,
                Phase::Starting => StatusCode::SERVICE_UNAVAILABLE,
                Phase::Election => StatusCode::BAD_GATEWAY,
            };
        }
        for name in ["ais-cluster-uptime", "ais-node-uptime"] {
            response.headers_mut().insert(name, HeaderValue::from_static("43046650925"));
        }
        return response;
    }
    let forwarded = path.replace("/v1/reverse/", "/v1/");
    if let Err((status, message)) = authorised(shared, method, headers) {
        if method == Method::PUT {
            shared.refused.fetch_add(1, Ordering::Relaxed);
        }
        return fail(status, &message, &forwarded);
    }
    match (method.as_str(), path, what) {
        ("GET", "/v1/cluster" | "/v1/daemon", Some("smap")) => {
            let pages = shared.pages.lock().unwrap().clone();
            axum::Json(shared.cluster.lock().unwrap().map(&pages)).into_response()
        }
        ("GET", "/v1/cluster", Some("cluster_config")) => {
            shared.gets.fetch_add(1, Ordering::Relaxed);
            axum::Json(shared.cluster.lock().unwrap().config_of(me)).into_response()
        }
        ("GET", "/v1/reverse/daemon", Some(what)) => {
            let Some(id) = headers.get("ais-node-id").and_then(|id| id.to_str().ok()) else {
                return fail(400, "missing node ID", "/v1/daemon");
            };
            reverse(shared, me, method, id, what).await
        }
        ("PUT", "/v1/cluster", _) if query.contains_key("transient") => {
            let message = "cannot transiently update config.net - operation not supported";
            error(501, message, method, path, me, Some("ErrUnsupp"))
        }
        ("PUT", "/v1/cluster", _) if action(body).is_some_and(|action| action.ends_with("-maintenance")) => {
            maintain(shared, me, method, body)
        }
        ("PUT", "/v1/cluster", _) => put(shared, me, method, path, from_body(me, body)).await,
        ("PUT", "/v1/cluster/set-config", _) => put(shared, me, method, path, from_query(&query)).await,
        _ => fail(400, &format!("invalid request URI: '{method} {path}'"), path),
    }
}

fn error(status: u16, message: &str, method: &Method, path: &str, me: &str, code: Option<&str>) -> Response {
    let kind = if me.starts_with("proxy") { 'p' } else { 't' };
    let mut body = json!({
        "message": message, "method": method.as_str(), "url_path": path, "remote_addr": "127.0.0.1:1", "caller": "",
        "node": format!("{kind}[{me}]"), "status": status,
    });
    if let Some(code) = code {
        body["tcode"] = code.into();
    }
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

fn authorised(shared: &Shared, method: &Method, headers: &HeaderMap) -> Result<(), (u16, String)> {
    let cluster = shared.cluster.lock().unwrap();
    if !cluster.auth {
        return Ok(());
    }
    let given = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(token) = given.strip_prefix("Bearer ") else { return Err((401, "token required".into())) };
    let invalid = |why: &str| Err((401, format!("invalid token from header \"Authorization\": invalid token [err: {why}]")));
    let denied = |user: &str, granted: &str| {
        let cluster = &cluster.uuid;
        Err((
            403,
            format!(
                "user `{user}` has insufficient permissions: [cluster {cluster}, user {user}, token expires in 59m58s, granted({granted})]"
            ),
        ))
    };
    match cluster.tokens.get(token) {
        Some(Token::Admin) => Ok(()),
        Some(Token::ReadOnly) if *method == Method::GET => Ok(()),
        Some(Token::ReadOnly) => denied("ro", "SHOW-CLUSTER"),
        Some(Token::BucketsOnly) => denied("ro", "LIST-BUCKETS"),
        Some(Token::Expired) => invalid("token expired"),
        None => invalid("token is malformed: token contains an invalid number of segments"),
    }
}

async fn reverse(shared: &Shared, me: &str, method: &Method, id: &str, what: &str) -> Response {
    let mut resumed = shared.resumed.subscribe();
    loop {
        {
            let cluster = shared.cluster.lock().unwrap();
            let life = cluster.nodes.get(id).map(|node| node.life);
            match (life, what) {
                (None, _) => {
                    let message = format!("p[{me}]: cannot forward request to node node {id} not present in Smap v8");
                    return error(404, &message, method, "/v1/daemon", me, Some("errNodeNotFound"));
                }
                (Some(Life::Dead), _) => return StatusCode::BAD_GATEWAY.into_response(),
                (Some(Life::Hung), _) => {}
                (Some(_), "config") => return axum::Json(cluster.config_of(id)).into_response(),
                (Some(_), "node_status") => return axum::Json(cluster.status_of(id)).into_response(),
                (Some(_), _) => return error(400, "invalid what", method, "/v1/daemon", me, None),
            }
        }
        // The proxy has no timeout: it answers when the node does.
        resumed.changed().await.unwrap();
    }
}

fn action(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Json>(body).ok()?["action"].as_str().map(str::to_owned)
}

/// Starts and stops maintenance. The response to a stop is the id of the rebalancing that it starts.
fn maintain(shared: &Shared, me: &str, method: &Method, body: &[u8]) -> Response {
    let message: Json = serde_json::from_slice(body).unwrap();
    let mut cluster = shared.cluster.lock().unwrap();
    let id = message["value"]["sid"].as_str().unwrap_or_default().to_owned();
    let Some(node) = cluster.nodes.get_mut(&id) else {
        return error(404, &format!("node {id:?} is not present"), method, "/v1/cluster", me, None);
    };
    let rebalances = message["value"]["skip_rebalance"] != true;
    match (message["action"].as_str(), node.maintenance) {
        (Some("start-maintenance"), _) => node.maintenance = true,
        (_, true) => node.maintenance = false,
        (_, false) => return error(400, &format!("{id} is not in maintenance mode"), method, "/v1/cluster", me, None),
    }
    if rebalances { "g3".into_response() } else { StatusCode::OK.into_response() }
}

/// Fields to change, or the error in them.
type Fields = Result<Vec<(String, Json)>, (Option<&'static str>, String)>;

fn from_body(me: &str, body: &[u8]) -> Fields {
    let message: Json = serde_json::from_slice(body)
        .map_err(|_| (None, format!("p[{me}]: failed to unmarshal [*apc.ActMsg] (PUT), err: EOF")))?;
    match message["action"].as_str() {
        Some("set-config") => {}
        other => return Err((None, format!("invalid action {:?}", other.unwrap_or_default()))),
    }
    let mut fields = Vec::new();
    let bad = |err: &str| {
        (
            None,
            format!(
                "p[{me}]: failed to unmarshal set-config (map[string]interface {{}}), err: cmn.ConfigToSet.Net: cmn.NetConfToSet.HTTP: cmn.HTTPConfToSet.{err}"
            ),
        )
    };
    for (key, value) in message.pointer("/value/net/http").and_then(Json::as_object).into_iter().flatten() {
        match (key.as_str(), value) {
            (_, Json::Null) => continue,
            ("idle_conn_time" | "backend_idle_conn_time", Json::String(text)) => {
                if signed(text).is_none() {
                    return Err(bad(&format!("IdleConnTimeout: unmarshalerDecoder: time: invalid duration {text:?}")));
                }
            }
            ("idle_conn_time" | "backend_idle_conn_time", other) => {
                let first = other.to_string().chars().next().unwrap();
                return Err(bad(&format!("IdleConnTimeout: unmarshalerDecoder: ReadString: expects \" or n, but found {first}")));
            }
            ("idle_conns" | "idle_conns_per_host" | "write_buffer_size" | "read_buffer_size", Json::Number(_)) => {}
            ("idle_conns" | "idle_conns_per_host", _) => {
                return Err(bad("MaxIdleConns: readUint64: unexpected character: \u{fffd}"));
            }
            _ => return Err(bad(&format!("ReadObject: found unknown field: {key}"))),
        }
        fields.push((key.clone(), value.clone()));
    }
    Ok(fields)
}

fn from_query(query: &BTreeMap<String, String>) -> Fields {
    let mut fields = Vec::new();
    for (name, value) in query {
        let Some(key) = name.strip_prefix("net.http.") else { return Err((None, format!("unknown property {name:?}"))) };
        let value = match key {
            "idle_conn_time" | "backend_idle_conn_time" => value.as_str().into(),
            "idle_conns" | "idle_conns_per_host" => value.parse::<i64>().map_err(|e| (Some("NumError"), e.to_string()))?.into(),
            _ => return Err((None, format!("unknown property {name:?}"))),
        };
        fields.push((key.to_owned(), value));
    }
    Ok(fields)
}

/// Parses a number of seconds, which may be negative.
fn signed(text: &str) -> Option<f64> {
    match text.strip_prefix('-') {
        Some(text) => go_duration::parse(text).map(|d| -d.as_secs_f64()),
        None => go_duration::parse(text).map(|d| d.as_secs_f64()),
    }
}

/// Formats a duration as AIStore does: Go's spelling without trailing zero seconds.
fn spelled(seconds: f64) -> String {
    let ms = u64::try_from(Duration::from_secs_f64(seconds).as_millis()).unwrap();
    let (h, m, s, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    match (h, m, s, ms) {
        (0, 0, 0, ms) => format!("{ms}ms"),
        (0, 0, s, 0) => format!("{s}s"),
        (0, 0, s, ms) => format!("{s}.{}s", format!("{ms:03}").trim_end_matches('0')),
        (0, m, 0, _) => format!("{m}m"),
        (0, m, s, _) => format!("{m}m{s}s"),
        (h, m, 0, _) => format!("{h}h{m}m"),
        (h, m, s, _) => format!("{h}h{m}m{s}s"),
    }
}

/// Applies all fields or none, with the validation of the primary.
fn merged(http: &Json, fields: &[(String, Json)]) -> Result<Json, String> {
    let mut next = http.clone();
    for (key, value) in fields {
        next[key] = match (key.as_str(), value) {
            ("idle_conn_time" | "backend_idle_conn_time", Json::String(text)) => {
                let seconds = signed(text).ok_or_else(|| format!("time: invalid duration {text:?}"))?;
                let said = if seconds < 0.0 { format!("-{}", spelled(-seconds)) } else { long(seconds) };
                if key == "idle_conn_time" && !(0.0..=30.0).contains(&seconds) {
                    return Err(format!(
                        "invalid idle_conn_time {said} (expecting a positive value below max = 30s, or 0 for system default 6s)"
                    ));
                }
                if seconds < 0.0 {
                    return Err(format!("invalid {key} {said} (expecting a positive value or 0 for system default 6s)"));
                }
                if seconds == 0.0 { "6s".into() } else { spelled(seconds).into() }
            }
            ("idle_conns_per_host", value) if value.as_i64() == Some(0) => 32.into(),
            (_, value) => value.clone(),
        };
    }
    let total = next["idle_conns"].as_i64().unwrap();
    if !(0..=4096).contains(&total) {
        return Err(format!("invalid idle_conns {total} (expecting range [0 - 4096])"));
    }
    let per_host = next["idle_conns_per_host"].as_i64().unwrap();
    let most = total.min(128);
    // The server accepts a negative value, which disables keep-alive.
    if per_host > most {
        return Err(format!("invalid idle_conns_per_host: {per_host} (expecting range [0 - {most}])"));
    }
    Ok(next)
}

/// Formats a duration in Go's spelling, which the messages use.
fn long(seconds: f64) -> String {
    let text = spelled(seconds);
    if text.ends_with('m') { format!("{text}0s") } else { text }
}

async fn put(shared: &Shared, me: &str, method: &Method, path: &str, fields: Fields) -> Response {
    shared.puts.fetch_add(1, Ordering::Relaxed);
    let refuse = |code: Option<&str>, message: &str, status| {
        shared.refused.fetch_add(1, Ordering::Relaxed);
        error(status, message, method, path, "proxy-p0", code)
    };
    let wait = {
        let mut cluster = shared.cluster.lock().unwrap();
        match cluster.phase {
            Phase::Election => return StatusCode::BAD_GATEWAY.into_response(),
            Phase::Starting => return refuse(None, &format!("p[{me}] primary: not ready yet (cluster is starting up)"), 503),
            Phase::Ready => {}
        }
        let fields = match fields {
            Ok(fields) => fields,
            Err((code, message)) => return refuse(code, &message, 400),
        };
        match merged(&cluster.config["net"]["http"], &fields) {
            Ok(next) => cluster.change(|http| *http = next),
            Err(message) => return refuse(None, &message, 400),
        }
        let has = |life| cluster.nodes.values().any(|node| node.life == life);
        if has(Life::Hung) {
            HUNG
        } else if has(Life::Dead) {
            DEAD
        } else {
            Duration::ZERO
        }
    };
    // A response with status 200 does not mean that all nodes have the change.
    tokio::time::sleep(wait / HURRY).await;
    StatusCode::OK.into_response()
}
