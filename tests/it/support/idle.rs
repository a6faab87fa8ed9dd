//! Idle connections on both sides of a server, counted at the other ends: by its clients and by its upstreams.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Barrier,
    task::{JoinHandle, JoinSet},
};

use super::{caddy::address, eventually};

/// Number of clients of a server, and of connections to each upstream.
pub const CONNECTIONS: usize = 4;

/// Upstream that answers when it has [`CONNECTIONS`] concurrent requests, so that each has a separate connection.
pub struct Upstream {
    pub address: SocketAddr,
    counts: Arc<Counts>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
}

impl Upstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((address(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (counts, together) = (Arc::<Counts>::default(), Arc::new(Barrier::new(CONNECTIONS)));
        let counted = counts.clone();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.accepted.fetch_add(1, Ordering::SeqCst);
                counted.open.fetch_add(1, Ordering::SeqCst);
                let (counted, together) = (counted.clone(), together.clone());
                connections.spawn(async move {
                    answer(stream, &together).await;
                    counted.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, counts, serving }
    }

    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// Returns the number of connections that were ever accepted.
    pub fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// Waits until no connection is open.
    pub async fn is_left(&self) {
        eventually("all connections to the upstream are closed", || async { (self.open() == 0).then_some(()) }).await;
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Answers requests until the connection is closed.
async fn answer(mut stream: TcpStream, together: &Barrier) {
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut piece).await {
        head.extend_from_slice(&piece[..n]);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            together.wait().await;
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                return;
            }
        }
    }
}

/// Keep-alive connections of clients.
pub struct Clients(Vec<TcpStream>);

impl Clients {
    pub async fn connect(ip: Ipv4Addr, port: u16) -> Self {
        let connect = || eventually("the server takes a connection", || async move { TcpStream::connect((ip, port)).await.ok() });
        Self(join_all((0..CONNECTIONS).map(|_| connect())).await)
    }

    /// Sends one request on each connection, all at the same time. Returns the number of connections that got a response and stay
    /// open.
    pub async fn ask(&mut self, path: &str) -> usize {
        let all = join_all(self.0.iter_mut().map(|stream| ask(stream, path)));
        // The upstream waits for all requests. If some connections are closed, the others get no response.
        let answers = tokio::time::timeout(super::TIMEOUT, all).await.expect("all clients are answered");
        answers.into_iter().flatten().count()
    }

    /// Waits until the server has closed each connection. The wait is short, because Node closes idle connections after 5 s
    /// anyway.
    pub async fn are_left(&mut self) {
        let ended = async |stream: &mut TcpStream| while let Ok(1..) = stream.read(&mut [0; 64]).await {};
        let all = join_all(self.0.iter_mut().map(ended));
        tokio::time::timeout(Duration::from_secs(4), all).await.expect("the server closes its idle connections");
    }
}

/// Sends one request; `None` if the connection is closed or will be.
async fn ask(stream: &mut TcpStream, path: &str) -> Option<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: service\r\n\r\n").as_bytes()).await.ok()?;
    let mut text = String::new();
    let mut piece = [0; 4096];
    while !(text.ends_with("\r\n\r\nok") || text.ends_with("ok\r\n0\r\n\r\n")) {
        match stream.read(&mut piece).await {
            Ok(n @ 1..) => text.push_str(std::str::from_utf8(&piece[..n]).ok()?),
            _ => return None,
        }
    }
    let text = text.to_ascii_lowercase();
    (text.starts_with("http/1.1 200") && !text.contains("connection: close")).then_some(())
}
