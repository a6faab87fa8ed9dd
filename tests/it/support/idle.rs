//! Idle connections on both sides of a server, counted by those who hold them: its clients, and the servers behind it.

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

/// Clients of a server, and connections that it keeps to each server behind it.
pub const CONNECTIONS: usize = 4;

/// A server that answers when it has [`CONNECTIONS`] requests at a time, so that each has a separate connection.
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

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// Connections that there have ever been.
    pub fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// Waits until it has no connection any more.
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

    /// Asks once on each connection, all at the same time: says how many of them answered and stay open.
    pub async fn ask(&mut self, path: &str) -> usize {
        let all = join_all(self.0.iter_mut().map(|stream| ask(stream, path)));
        // The upstream waits for all of them: where some connections are closed, the others get no answer.
        let answers = tokio::time::timeout(super::PATIENCE, all).await.expect("all clients are answered");
        answers.into_iter().flatten().count()
    }

    /// Waits until the server has closed each of them. Not for long: Node closes idle connections after 5 s anyway.
    pub async fn are_left(&mut self) {
        let ended = async |stream: &mut TcpStream| while let Ok(1..) = stream.read(&mut [0; 64]).await {};
        let all = join_all(self.0.iter_mut().map(ended));
        tokio::time::timeout(Duration::from_secs(4), all).await.expect("the server closes its idle connections");
    }
}

/// One request; `None` where the connection is closed, or will be.
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
