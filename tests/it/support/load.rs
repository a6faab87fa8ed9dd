//! Real connections that idle: opened at a rate, each with one request, and left to whoever closes it.

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

/// Clients that come at a rate, ask once and stay as long as the server lets them. End with the test.
pub struct Clients {
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Clients {
    /// So many at the beginning, and so many a second from then on.
    pub fn start(server: SocketAddr, first: usize, a_second: usize) -> Self {
        Self::asking(server, "/", first, a_second)
    }

    /// The same, with a request for this path.
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
            // Ten times a second a tenth of them: a pace, not a wait for something.
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

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server that takes every connection and never answers.
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

/// Clients that ask again and again over connections that they keep, and come back at once when theirs is closed. End with the test.
pub struct Busy {
    tasks: Vec<JoinHandle<()>>,
}

impl Busy {
    /// So many, each of which asks this often.
    pub fn start(server: SocketAddr, clients: usize, every: Duration) -> Self {
        Self { tasks: (0..clients).map(|_| tokio::spawn(Self::ask(server, every))).collect() }
    }

    async fn ask(server: SocketAddr, every: Duration) {
        let mut tick = tokio::time::interval(every);
        let mut buffer = [0; 1024];
        loop {
            tick.tick().await;
            let Ok(mut stream) = TcpStream::connect(server).await else { continue };
            while stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.is_ok()
                && matches!(stream.read(&mut buffer).await, Ok(1..))
            {
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
