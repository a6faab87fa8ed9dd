//! Network link with a delay in each direction, as between two zones: one end learns only later that the other has closed a
//! connection.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

pub struct SlowLink {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl SlowLink {
    pub async fn start(at: SocketAddr, to: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut links = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                links.spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    for stream in [&near, &far] {
                        let _ = stream.set_nodelay(true);
                    }
                    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(near_read, far_write, delay), carry(far_read, near_write, delay));
                });
                while links.try_join_next().is_some() {}
            }
        });
        Self { address, task }
    }
}

/// Forwards all data in order with a delay, and the end of the stream too.
async fn carry(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, delay: Duration) {
    let (sender, mut under_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let _ = sender.send((Instant::now() + delay, buffer[..n].to_vec()));
        }
        let _ = sender.send((Instant::now() + delay, Vec::new()));
    };
    let write = async move {
        while let Some((at, bytes)) = under_way.recv().await {
            tokio::time::sleep_until(at).await;
            if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}
