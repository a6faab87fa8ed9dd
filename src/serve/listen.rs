//! Accepts connections: a limited number at the same time, each with a timeout for its request.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
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
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::answer::{Error, RETRY_AFTER};

/// Binds a listener. If the address is `[::]` and this machine has no IPv6, it binds `0.0.0.0`.
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

/// Linux: EAFNOSUPPORT if the kernel has no IPv6, EADDRNOTAVAIL if IPv6 is disabled.
fn has_no_ipv6(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(97 | 99))
}

/// Most connections that are served at the same time.
const MAX_CONNECTIONS: usize = 256;
/// Most served connections from one address, so that one peer cannot take all of them.
const MAX_PER_CLIENT: usize = MAX_CONNECTIONS / 2;
/// Most bytes of a request's head. 256 connections on each of both ports take 8 MiB at most.
const HEAD_BYTES: usize = 16 * 1024;
/// Most connections beyond [`MAX_CONNECTIONS`] that get a refusal as their response. Further ones are closed without a response.
const MAX_REFUSED: usize = 1024;
/// Timeout for a request's head, and for an idle connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// Time after which a peer that accepts no data is dropped.
const STALLED: Duration = Duration::from_secs(30);
/// Timeout for the request of a connection that is refused.
const REFUSED: Duration = Duration::from_secs(5);
/// Pause after a failed accept, which usually means that too many files are open.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Places of the connections, by address.
#[derive(Default)]
struct Peers(HashMap<IpAddr, Arc<Semaphore>>);

impl Peers {
    /// Counts one more connection of this address until the permit is dropped, unless the address has its maximum.
    fn admit(&mut self, address: IpAddr) -> Option<OwnedSemaphorePermit> {
        self.0.retain(|_, places| places.available_permits() < MAX_PER_CLIENT);
        let places = self.0.entry(address).or_insert_with(|| Arc::new(Semaphore::new(MAX_PER_CLIENT)));
        places.clone().try_acquire_owned().ok()
    }
}

/// Serves until the process ends.
pub async fn listen(listener: TcpListener, router: Router) -> std::io::Result<()> {
    let (served, refused) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Arc::new(Semaphore::new(MAX_REFUSED)));
    let mut peers = Peers::default();
    loop {
        let Ok((tcp, from)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            continue;
        };
        let turn = peers.admit(from.ip()).and_then(|peer| Some((served.clone().try_acquire_owned().ok()?, peer)));
        if let Some(turn) = turn {
            let router = router.clone();
            tokio::spawn(async move {
                // Errors of one connection concern only its peer.
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
    // The kernel drops a peer that accepts no data earlier than this program could.
    SockRef::from(&tcp).set_tcp_user_timeout(Some(STALLED))?;
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .max_buf_size(HEAD_BYTES)
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(tcp), TowerToHyperService::new(router))
        .await?;
    Ok(())
}

/// Sends the error for too many connections. The request is read first, because an earlier response could be lost with
/// the connection.
async fn refuse(mut tcp: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
        if tcp.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let body = serde_json::to_string(&Error::Busy("All connections of this server are in use").refusal())?;
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
