//! Servers with scripted behavior on each connection, byte by byte, and counters.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::caddy::address;

/// Counters of a server.
#[derive(Default)]
pub struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

/// Server that ends with the test.
pub struct Scripted {
    pub listen: SocketAddr,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

/// Connection of which the test reads requests.
pub struct Connection {
    pub stream: TcpStream,
    counts: Arc<Counts>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Connection {
    /// Reads to the end of a request's head; `None` at the end of the connection.
    pub async fn request(&mut self) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.stream.read_u8().await.ok()?);
        }
        self.counts.requests.fetch_add(1, Ordering::SeqCst);
        Some(())
    }

    /// Writes a text; `None` if the client has closed the connection.
    pub async fn write(&mut self, text: &str) -> Option<()> {
        self.stream.write_all(text.as_bytes()).await.ok()
    }

    /// Writes a short response with these header fields.
    pub async fn answer(&mut self, fields: &str) -> Option<()> {
        self.write(&format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{fields}\r\nok")).await
    }

    /// Waits until the client closes.
    pub async fn until_closed(&mut self) {
        let mut rest = [0; 256];
        while matches!(self.stream.read(&mut rest).await, Ok(1..)) {}
    }
}

impl Scripted {
    /// Starts a server that runs `each` for each connection.
    pub async fn start<F: Future<Output = ()> + Send + 'static>(each: impl Fn(Connection) -> F + Send + 'static) -> Self {
        Self::at(SocketAddr::from((address(), 0)), each).await
    }

    pub async fn at<F: Future<Output = ()> + Send + 'static>(
        at: SocketAddr,
        each: impl Fn(Connection) -> F + Send + 'static,
    ) -> Self {
        Self::counted(at, Arc::default(), each).await
    }

    /// Starts a server at another address that shares the counters of this one.
    pub async fn beside<F: Future<Output = ()> + Send + 'static>(
        &self,
        at: SocketAddr,
        each: impl Fn(Connection) -> F + Send + 'static,
    ) -> Self {
        Self::counted(at, self.counts.clone(), each).await
    }

    async fn counted<F: Future<Output = ()> + Send + 'static>(
        at: SocketAddr,
        counts: Arc<Counts>,
        each: impl Fn(Connection) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let listen = listener.local_addr().unwrap();
        let counted = counts.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.connections.fetch_add(1, Ordering::SeqCst);
                let open = counted.open.fetch_add(1, Ordering::SeqCst) + 1;
                counted.most_open.fetch_max(open, Ordering::SeqCst);
                tokio::spawn(each(Connection { stream, counts: counted.clone() }));
            }
        });
        Self { listen, counts, task }
    }

    /// Starts a server that answers one request with these header fields and closes the connection after an idle time of `idle`.
    pub async fn idle(idle: Duration, fields: &'static str) -> Self {
        Self::start(move |connection| closing(connection, idle, fields)).await
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.listen)
    }

    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::SeqCst)
    }

    /// Returns the highest number of concurrent connections.
    pub fn most_open(&self) -> usize {
        self.counts.most_open.load(Ordering::SeqCst)
    }
}

/// Answers requests until there has been none for `idle`.
pub async fn closing(mut connection: Connection, idle: Duration, fields: &str) {
    while let Ok(Some(())) = tokio::time::timeout(idle, connection.request()).await {
        if connection.answer(fields).await.is_none() {
            return;
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}
