//! Real idle connections: opened at a rate, each with one request, and then left open.

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
    task::{JoinHandle, JoinSet},
};

/// Clients that arrive at a rate, send one request, and stay until the server closes the connection. They end with the test.
pub struct Clients {
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Clients {
    /// Starts `first` clients at once, and then `a_second` clients per second.
    pub fn start(server: SocketAddr, first: usize, a_second: usize) -> Self {
        Self::asking(server, "/", first, a_second)
    }

    /// Starts clients that request this path.
    pub fn asking(server: SocketAddr, path: &str, first: usize, a_second: usize) -> Self {
        let request = Arc::<str>::from(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let open = Arc::new(AtomicUsize::new(0));
        let count = open.clone();
        let task = tokio::spawn(async move {
            let mut clients = JoinSet::new();
            let client = |count: Arc<AtomicUsize>| {
                let request = request.clone();
                async move {
                    let Ok(mut stream) = TcpStream::connect(server).await else { return };
                    if stream.write_all(request.as_bytes()).await.is_err() {
                        return;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    let mut buffer = [0; 512];
                    while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
                    count.fetch_sub(1, Ordering::Relaxed);
                }
            };
            for _ in 0..first {
                clients.spawn(client(count.clone()));
            }
            // A tenth of the clients starts ten times per second. The interval sets the pace and does not wait for an event.
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            loop {
                tick.tick().await;
                for _ in 0..a_second / 10 {
                    clients.spawn(client(count.clone()));
                }
                while clients.try_join_next().is_some() {}
            }
        });
        Self { open, task }
    }

    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Server that accepts every connection and never answers.
pub struct Silent {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Silent {
    pub async fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        Self { address, task }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Clients that send requests repeatedly on persistent connections, and reconnect at once when a connection is closed. They end
/// with the test.
pub struct Busy {
    tasks: Vec<JoinHandle<()>>,
}

impl Busy {
    /// Starts clients that send a request at this interval.
    pub fn start(server: SocketAddr, clients: usize, every: Duration) -> Self {
        Self::asking(server, "/", clients, every)
    }

    /// Starts clients that request this path, all of them at the same moments.
    pub fn asking(server: SocketAddr, path: &str, clients: usize, every: Duration) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        Self { tasks: (0..clients).map(|_| tokio::spawn(Self::ask(server, request.clone(), every))).collect() }
    }

    async fn ask(server: SocketAddr, request: String, every: Duration) {
        let mut tick = tokio::time::interval(every);
        let mut buffer = [0; 1024];
        loop {
            tick.tick().await;
            let Ok(mut stream) = TcpStream::connect(server).await else { continue };
            while stream.write_all(request.as_bytes()).await.is_ok() && matches!(stream.read(&mut buffer).await, Ok(1..)) {
                tick.tick().await;
            }
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
