//! Fakes of Caddy's admin API: a correct one for large fleets, and some that misbehave.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::Value as Json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};

use super::caddy;

/// Node of a large fleet. It ends with the test.
pub struct AdminApi {
    pub address: String,
    state: Arc<Node>,
    task: JoinHandle<()>,
}

struct Node {
    servers: Mutex<(Json, u64)>,
    asked: AtomicUsize,
    reads: AtomicUsize,
    writes: AtomicUsize,
    written: OnceLock<Instant>,
    goroutines: AtomicUsize,
    /// While a test holds the lock, the server answers no request.
    answers: Arc<tokio::sync::Mutex<()>>,
    /// Whether the next write is the last request that is answered, until the guard is dropped.
    ends: AtomicBool,
    silent: Mutex<Option<tokio::sync::OwnedMutexGuard<()>>>,
    times: Mutex<Vec<Instant>>,
    late: Duration,
}

impl AdminApi {
    /// Starts a server that behaves like Caddy, with the header `ETag`.
    pub async fn start(servers: Json) -> Self {
        Self::late(servers, Duration::ZERO).await
    }

    /// Starts the same server with a delay before each response.
    pub async fn late(servers: Json, late: Duration) -> Self {
        let state = Arc::new(Node {
            servers: Mutex::new((servers, 0)),
            asked: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
            written: OnceLock::new(),
            goroutines: AtomicUsize::new(20),
            answers: Arc::default(),
            ends: AtomicBool::new(false),
            silent: Mutex::default(),
            times: Mutex::default(),
            late,
        });
        let router = Router::new()
            .route("/config/apps/http/servers", get(read).patch(write))
            .route("/metrics", get(metrics))
            .layer(middleware::from_fn_with_state(state.clone(), count))
            .with_state(state.clone());
        let listener = TcpListener::bind((caddy::address(), 0)).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, state, task }
    }

    pub fn servers(&self) -> Json {
        self.state.servers.lock().unwrap().0.clone()
    }

    /// Changes a value, as an administrator does manually.
    #[allow(dead_code)] // Only the attacks use it.
    pub fn store(&self, pointer: &str, value: Json) {
        let mut servers = self.state.servers.lock().unwrap();
        if let Some(place) = servers.0.pointer_mut(pointer) {
            *place = value;
        } else {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            servers.0.pointer_mut(parent).unwrap()[key] = value;
        }
        servers.1 += 1;
    }

    /// Returns the number of requests of any kind.
    pub fn asked(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }

    pub fn reads(&self) -> usize {
        self.state.reads.load(Ordering::Relaxed)
    }

    /// Sets the number of goroutines that the server reports.
    pub fn run(&self, goroutines: usize) {
        self.state.goroutines.store(goroutines, Ordering::Relaxed);
    }

    /// Accepts requests and answers none of them while the guard is held.
    pub async fn hold(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.state.answers.clone().lock_owned().await
    }

    /// Answers nothing any more after the next write, as a server that its new configuration breaks.
    pub fn end_with_the_next_write(&self) {
        self.state.ends.store(true, Ordering::SeqCst);
    }

    /// Goes on answering after a write.
    pub fn end_never(&self) {
        self.state.ends.store(false, Ordering::SeqCst);
    }

    /// Answers again.
    pub fn recover(&self) {
        drop(self.state.silent.lock().unwrap().take());
    }

    /// Returns the times of all writes.
    pub fn times(&self) -> Vec<Instant> {
        self.state.times.lock().unwrap().clone()
    }

    /// Returns the time of the first change.
    pub fn written(&self) -> Option<Instant> {
        self.state.written.get().copied()
    }

    pub fn writes(&self) -> usize {
        self.state.writes.load(Ordering::Relaxed)
    }
}

impl Drop for AdminApi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn count(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    node.asked.fetch_add(1, Ordering::SeqCst);
    tokio::time::sleep(node.late).await;
    next.run(request).await
}

async fn read(State(node): State<Arc<Node>>) -> Response {
    node.reads.fetch_add(1, Ordering::Relaxed);
    drop(node.answers.lock().await);
    let (servers, version) = node.servers.lock().unwrap().clone();
    ([("etag", format!("\"/config/apps/http/servers {version:x}\""))], axum::Json(servers)).into_response()
}

async fn metrics(State(node): State<Arc<Node>>) -> String {
    format!("# TYPE go_goroutines gauge\ngo_goroutines {}\n", node.goroutines.load(Ordering::Relaxed))
}

async fn write(State(node): State<Arc<Node>>, headers: HeaderMap, axum::Json(body): axum::Json<Json>) -> StatusCode {
    node.writes.fetch_add(1, Ordering::Relaxed);
    let mut servers = node.servers.lock().unwrap();
    let etag = format!("\"/config/apps/http/servers {:x}\"", servers.1);
    if headers.get("if-match").is_some_and(|given| given.to_str().ok() != Some(&etag)) {
        return StatusCode::PRECONDITION_FAILED;
    }
    node.written.get_or_init(Instant::now);
    node.times.lock().unwrap().push(Instant::now());
    *servers = (body, servers.1 + 1);
    if node.ends.swap(false, Ordering::SeqCst) {
        *node.silent.lock().unwrap() = node.answers.clone().try_lock_owned().ok();
    }
    StatusCode::OK
}

/// Node that misbehaves.
pub struct Misbehaving {
    pub address: String,
    pub asked: Arc<AtomicUsize>,
    /// Time at which a client first gave up waiting for a response.
    pub given_up: Arc<OnceLock<Instant>>,
    task: JoinHandle<()>,
}

impl Misbehaving {
    /// Starts a server that sends these bytes to every client. Without bytes, it accepts requests and never answers.
    pub async fn start(answer: Option<Vec<u8>>) -> Self {
        let listener = TcpListener::bind((caddy::address(), 0)).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let given_up = Arc::new(OnceLock::new());
        let end = given_up.clone();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let mut question = [0; 4096];
                if let Some(answer) = &answer {
                    let _ = stream.read(&mut question).await;
                    let _ = stream.write_all(answer).await;
                    let _ = stream.shutdown().await;
                } else {
                    let end = end.clone();
                    tokio::spawn(async move {
                        while stream.read(&mut question).await.is_ok_and(|n| n > 0) {}
                        end.get_or_init(Instant::now);
                    });
                }
            }
        });
        Self { address, asked, given_up, task }
    }

    pub async fn hangs() -> Self {
        Self::start(None).await
    }

    pub async fn talks_garbage() -> Self {
        Self::start(Some(b"\x00\xff SSH-2.0-not-http <secret-of-the-node>\r\n\r\n".to_vec())).await
    }

    /// Starts a server that speaks HTTP and sends a body that is not JSON.
    pub async fn answers(body: &str) -> Self {
        Self::start(Some(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes())).await
    }

    pub async fn answers_ten_megabytes() -> Self {
        let size = 10 * 1024 * 1024;
        let mut answer = format!("HTTP/1.1 200 OK\r\netag: \"x\"\r\ncontent-length: {size}\r\n\r\n{{\"a\":\"").into_bytes();
        answer.resize(answer.len() + size, b'a');
        Self::start(Some(answer)).await
    }

    /// Returns an address on which no server listens any more.
    pub async fn gone() -> String {
        let listener = TcpListener::bind((caddy::address(), 0)).await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }
}

impl Drop for Misbehaving {
    fn drop(&mut self) {
        self.task.abort();
    }
}
