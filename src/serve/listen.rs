//! Takes connections in, so many at once, each with a time for its request to come.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::answer::{Error, RETRY_AFTER};

/// Listens. Where every address is meant and this machine has no IPv6, every IPv4 address is.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    bind_by(address, TcpListener::bind).await
}

async fn bind_by<T, F: Future<Output = std::io::Result<T>>>(
    address: SocketAddr,
    bind: impl Fn(SocketAddr) -> F,
) -> std::io::Result<T> {
    match bind(address).await {
        Err(error) if address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED) && has_no_ipv6(&error) => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()))).await
        }
        bound => bound,
    }
}

/// Linux: EAFNOSUPPORT where the kernel has no IPv6, EADDRNOTAVAIL where it is switched off.
fn has_no_ipv6(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(97 | 99))
}

/// Connections that are served at once.
const MOST: usize = 256;
/// And of them from one address, so that one peer cannot take them all.
const MOST_OF_ONE: usize = MOST / 2;
/// Bytes that are kept of a request's head. 256 connections of both ports take 8 MiB at most.
const HEAD_BYTES: usize = 16 * 1024;
/// Connections beyond those that are told so at once; whoever comes on top of them is not.
const MOST_REFUSED: usize = 1024;
/// How long a request's head may take to come, and how long a connection is kept for the next one.
const HEAD: Duration = Duration::from_secs(15);
/// How long a reader may take nothing of what it was sent.
const STALLED: Duration = Duration::from_secs(30);
/// How long somebody who is refused may take to ask.
const REFUSED: Duration = Duration::from_secs(1);
/// What to wait after accepting has failed: there are too many files open.
const BREATH: Duration = Duration::from_millis(100);

/// Connections of each address.
#[derive(Clone, Default)]
struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Peers {
    /// One more of this address, unless it has its part already.
    fn admit(&self, address: IpAddr) -> Option<Peer> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_insert(0);
        if *count >= MOST_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Peer { peers: self.clone(), address })
    }
}

/// A connection that is counted.
struct Peer {
    peers: Peers,
    address: IpAddr,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let mut open = self.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Serves until the process ends.
pub async fn listen(listener: TcpListener, router: Router) -> std::io::Result<()> {
    let (served, refused) = (Arc::new(Semaphore::new(MOST)), Arc::new(Semaphore::new(MOST_REFUSED)));
    let peers = Peers::default();
    loop {
        let Ok((tcp, from)) = listener.accept().await else {
            tokio::time::sleep(BREATH).await;
            continue;
        };
        let turn = peers.admit(from.ip()).and_then(|peer| Some((served.clone().try_acquire_owned().ok()?, peer)));
        if let Some(turn) = turn {
            let router = router.clone();
            tokio::spawn(async move {
                // How it ended is the other side's affair.
                let _ = serve(tcp, router).await;
                drop(turn);
            });
        } else if let Ok(turn) = refused.clone().try_acquire_owned() {
            tokio::spawn(async move {
                let _ = tokio::time::timeout(REFUSED, refuse(tcp)).await;
                drop(turn);
            });
        }
    }
}

async fn serve(tcp: TcpStream, router: Router) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    tcp.set_nodelay(true)?;
    // A reader that takes nothing is left: the system sees that before this program can.
    SockRef::from(&tcp).set_tcp_user_timeout(Some(STALLED))?;
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .max_buf_size(HEAD_BYTES)
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(tcp), TowerToHyperService::new(router))
        .await?;
    Ok(())
}

/// Says that there are too many. The request is read first: an answer before it would be lost with the connection.
async fn refuse(mut tcp: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
        if tcp.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let body = serde_json::to_string(&Error::Busy("as many connections are open as this server has").refusal())?;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: {RETRY_AFTER}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    tcp.write_all(answer.as_bytes()).await?;
    tcp.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_is_every_ipv4_address_where_there_is_no_ipv6() {
        for (asked, code, expected) in [
            ("[::]:8080", 97, Some("0.0.0.0:8080")),
            ("[::]:8080", 99, Some("0.0.0.0:8080")),
            ("[::]:8080", 98, None),
            ("[::1]:8080", 97, None),
        ] {
            let bind = |address: SocketAddr| async move {
                if address.is_ipv6() { Err(std::io::Error::from_raw_os_error(code)) } else { Ok(address) }
            };
            let bound = bind_by(asked.parse().expect("an address"), bind).await;
            assert_eq!(bound.ok().map(|address| address.to_string()).as_deref(), expected, "{asked} {code}");
        }
    }
}
