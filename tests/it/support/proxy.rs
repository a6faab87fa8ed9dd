//! Proxy that counts writes and kills the operator directly after one of them, when the write is done and not yet answered.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode, Uri, header::HOST},
    response::{IntoResponse as _, Response},
};
use http_body_util::BodyExt as _;
use kube::Client;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

/// Operator as a process, which restarts when it is killed.
pub struct Victim {
    kubeconfig: PathBuf,
    namespace: String,
    child: Arc<Mutex<Option<Child>>>,
}

impl Victim {
    /// Log of all processes. It is kept if a test fails.
    pub fn log(&self) -> PathBuf {
        self.kubeconfig.with_extension("log")
    }

    pub fn start(&self) {
        let child = Command::new(env!("CARGO_BIN_EXE_idleconn-operator"))
            .args([
                "run",
                "--metrics-address",
                "127.0.0.1:0",
                "--api-address",
                "none",
                "--resync-interval",
                "1s",
                "--allow-endpoints",
                "127.0.0.0/8",
            ])
            .args(["--namespaces", &self.namespace, "--kubeconfig"])
            .arg(&self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        *self.child.lock().unwrap() = Some(child);
    }
}

/// Counter of writes that kills the operator after a given write.
#[derive(Clone)]
pub struct Tripwire {
    writes: Arc<AtomicUsize>,
    at: usize,
    victim: Arc<Victim>,
}

impl Tripwire {
    pub fn new(at: usize, namespace: &str) -> Self {
        let kubeconfig = std::env::temp_dir().join(format!("idleconn-kubeconfig-{namespace}"));
        let victim = Victim { kubeconfig, namespace: namespace.to_owned(), child: Arc::default() };
        Self { writes: Arc::default(), at, victim: Arc::new(victim) }
    }

    /// Starts the operator with this API server.
    pub fn start_operator(&self, api: &str) {
        let config = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: \"{api}\"}}}}], \
             users: [{{name: u, user: {{}}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
        );
        std::fs::write(&self.victim.kubeconfig, config).unwrap();
        self.victim.start();
    }

    /// Returns the log of all processes of the operator.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.victim.log()).unwrap()
    }

    /// Removes the files of the operator after a successful test.
    pub fn clean(&self) {
        std::fs::remove_file(&self.victim.kubeconfig).unwrap();
        std::fs::remove_file(self.victim.log()).unwrap();
    }

    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    /// Counts a write and reports whether it is the given one. If so, the operator is dead when this returns, and another one
    /// starts.
    async fn step(&self) -> bool {
        if self.writes.fetch_add(1, Ordering::SeqCst) + 1 != self.at {
            return false;
        }
        let child = self.victim.child.lock().unwrap().take();
        if let Some(mut child) = child {
            child.kill().await.unwrap();
        }
        self.victim.start();
        true
    }
}

/// Runs `life` once for each of `writes` writes, with the operator killed after that write. Every run must end as expected.
pub async fn killed_after_each<E, F>(writes: usize, expected: &E, life: impl Fn(usize) -> F)
where
    E: std::fmt::Debug + PartialEq + Send + 'static,
    F: Future<Output = (E, usize)> + Send + 'static,
{
    let at_once = Arc::new(Semaphore::new(6));
    let mut lives = JoinSet::new();
    for kill_after in 1..=writes {
        let (at_once, life) = (at_once.clone(), life(kill_after));
        lives.spawn(async move {
            let _permit = at_once.acquire().await.unwrap();
            (kill_after, life.await.0)
        });
    }
    while let Some(life) = lives.join_next().await {
        let (kill_after, end) = life.unwrap();
        assert_eq!(end, *expected, "killed after write {kill_after}");
    }
}

#[derive(Clone)]
enum Upstream {
    Api(Client),
    Node(String, reqwest::Client),
}

/// The proxy ends with the test.
pub struct Proxy {
    pub address: String,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn to_api(client: Client, tripwire: Tripwire) -> Self {
        Self::start(Upstream::Api(client), tripwire).await
    }

    pub async fn to_node(address: String, tripwire: Tripwire) -> Self {
        Self::start(Upstream::Node(address, reqwest::Client::new()), tripwire).await
    }

    async fn start(upstream: Upstream, tripwire: Tripwire) -> Self {
        let listener = TcpListener::bind((super::caddy::address(), 0)).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(forward).with_state((upstream, tripwire));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(State((upstream, tripwire)): State<(Upstream, Tripwire)>, request: Request) -> Response {
    let writes = request.method() != Method::GET;
    // The request runs in a separate task, because this task ends with the connection, which ends with the operator.
    let answered = tokio::spawn(async move {
        let response = send(upstream, request).await;
        let killed = writes && response.status().is_success() && tripwire.step().await;
        // The client is dead, so there is no response.
        if killed { StatusCode::BAD_GATEWAY.into_response() } else { response }
    });
    answered.await.unwrap()
}

async fn send(upstream: Upstream, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    parts.headers.remove(HOST);
    let path = parts.uri.path_and_query().unwrap().as_str().to_owned();
    match upstream {
        Upstream::Api(client) => {
            parts.uri = path.parse::<Uri>().unwrap();
            let request = axum::http::Request::from_parts(parts, kube::client::Body::from(body.to_vec()));
            match client.send(request).await {
                Ok(response) => response.map(Body::new),
                Err(_) => StatusCode::BAD_GATEWAY.into_response(),
            }
        }
        Upstream::Node(address, client) => {
            let sent = client.request(parts.method, format!("{address}{path}")).headers(parts.headers).body(body).send().await;
            match sent {
                Ok(response) => {
                    let (status, headers) = (response.status(), response.headers().clone());
                    (status, headers, response.bytes().await.unwrap()).into_response()
                }
                Err(_) => StatusCode::BAD_GATEWAY.into_response(),
            }
        }
    }
}
