//! The benefit of the pool. `make bench`. All measurements are in the same run, in sequence.
//!
//! - Requests over TLS with 20 ms of latency each way: with the pool, without it, with plain reqwest, and with Node's
//!   agentkeepalive.
//! - Throughput on loopback, compared with reqwest's.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../tests/it/support/slow_link.rs"]
mod slow_link;

use std::{
    convert::Infallible,
    net::SocketAddr,
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use idleconn_operator::pool::{Pool, PoolSettings, Request};
use slow_link::SlowLink;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring::default_provider,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

/// Requests through the slow link.
const REQUESTS: usize = 1_000;
/// Concurrent requests through the slow link.
const CONCURRENCY: usize = 8;
/// Latency one way. It does not delay the TCP handshake, so a new connection looks cheaper than it is.
const LATENCY: Duration = Duration::from_millis(20);
/// Requests on loopback for each client and round.
const LOOPBACK: usize = 40_000;
/// Concurrent requests on loopback.
const LOOPBACK_CONCURRENCY: usize = 32;
/// Rounds on loopback; the median counts.
const ROUNDS: usize = 5;
const LONG: Duration = Duration::from_secs(30);

/// Counters of a server.
#[derive(Clone, Default)]
struct Seen(Arc<AtomicUsize>, Arc<AtomicUsize>);

impl Seen {
    /// Connections (with TLS: handshakes) and requests since the last call.
    fn take(&self) -> (usize, usize) {
        (self.0.swap(0, Ordering::SeqCst), self.1.swap(0, Ordering::SeqCst))
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, seen: Seen) {
    seen.0.fetch_add(1, Ordering::SeqCst);
    let service = service_fn(|_| {
        seen.1.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok::<_, Infallible>(hyper::Response::new(Full::new(Bytes::from_static(b"ok")))))
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// A server in a separate runtime, so that its cost does not count for the clients.
fn serve(tls: Option<TlsAcceptor>) -> (SocketAddr, Seen) {
    let (seen, counted) = (Seen::default(), Seen::default());
    let counted = Seen(seen.0.clone(), counted.1);
    let seen = Seen(seen.0, counted.1.clone());
    let (sender, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let (tls, counted) = (tls.clone(), counted.clone());
                tokio::spawn(async move {
                    match tls {
                        None => answer(tcp, counted).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(tcp).await {
                                answer(stream, counted).await;
                            }
                        }
                    }
                });
            }
        });
    });
    (address.recv().unwrap(), seen)
}

fn certificate() -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
}

/// Sends this many requests with this concurrency, each worker in its own task as in the operator.
async fn load<F, A>(requests: usize, at_once: usize, ask: A) -> Duration
where
    F: Future<Output = ()> + Send,
    A: Fn() -> F + Clone + Send + 'static,
{
    let began = Instant::now();
    let mut askers = JoinSet::new();
    for asker in 0..at_once {
        let (ask, mine) = (ask.clone(), requests / at_once + usize::from(asker < requests % at_once));
        askers.spawn(async move {
            for _ in 0..mine {
                ask().await;
            }
        });
    }
    askers.join_all().await;
    began.elapsed()
}

/// Sends this many requests with this concurrency through the pool.
async fn pooled(settings: PoolSettings, address: &str, ca: Option<&[u8]>, requests: usize, at_once: usize) -> (Duration, f64) {
    let pool = Pool::new(settings);
    let provider = pool.provider("bench");
    let (address, ca): (Arc<str>, Option<Arc<[u8]>>) = (address.into(), ca.map(Into::into));
    let took = load(requests, at_once, move || {
        let (provider, address, ca) = (provider.clone(), address.clone(), ca.clone());
        async move {
            let answer = provider.send(ca.as_deref(), Request::get(&address, "/", LONG)).await.unwrap();
            assert_eq!(answer.body, b"ok");
        }
    })
    .await;
    let tally = pool.statistics()[0].tally;
    assert_eq!(usize::try_from(tally.requests).unwrap(), requests);
    #[allow(clippy::cast_precision_loss)] // Thousands.
    (took, tally.reuses as f64 / tally.requests as f64 * 100.0)
}

async fn plain(client: &reqwest::Client, address: &str, requests: usize, at_once: usize) -> Duration {
    let (client, address): (_, Arc<str>) = (client.clone(), address.into());
    load(requests, at_once, move || {
        let (client, address) = (client.clone(), address.clone());
        async move {
            let answer = client.get(&*address).send().await.unwrap();
            assert_eq!(answer.bytes().await.unwrap(), "ok");
        }
    })
    .await
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

#[tokio::main]
async fn main() -> ExitCode {
    let _ = default_provider().install_default();
    let mut missed = Vec::new();
    let (acceptor, ca) = certificate();
    let (server, seen) = serve(Some(acceptor));
    let link = SlowLink::start("127.0.0.1:0".parse().unwrap(), server, LATENCY).await;
    let address = format!("https://{}", link.address);
    let pem = Some(ca.as_bytes());
    println!("{REQUESTS} requests over TLS, {CONCURRENCY} at a time, {} ms each way", LATENCY.as_millis());
    let (without, _) =
        pooled(PoolSettings { keep_alive: false, ..PoolSettings::default() }, &address, pem, REQUESTS, CONCURRENCY).await;
    let (every, _) = seen.take();
    let (with, reuse) = pooled(PoolSettings::default(), &address, pem, REQUESTS, CONCURRENCY).await;
    let (few, _) = seen.take();
    #[allow(clippy::cast_precision_loss)] // Thousands.
    let spared = (1.0 - few as f64 / every as f64) * 100.0;
    let saved = (1.0 - with.as_secs_f64() / without.as_secs_f64()) * 100.0;
    println!("  one connection a request: {without:.1?}, {every} handshakes");
    println!(
        "  the pool: {with:.1?}, {few} handshakes; {reuse:.1}% reused, {spared:.1}% of the handshakes and {saved:.0}% of the time saved"
    );
    if reuse <= 90.0 || spared < 99.0 {
        missed.push("more than 90% reused and 99% of the handshakes spared");
    }
    let trusted = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
    let client = reqwest::Client::builder().tls_backend_rustls().tls_certs_only([trusted]).build().unwrap();
    let took = plain(&client, &address, REQUESTS, CONCURRENCY).await;
    println!("  reqwest: {took:.1?}, {} handshakes", seen.take().0);
    let path = std::env::temp_dir().join(format!("idleconn-bench-{}.pem", std::process::id()));
    std::fs::write(&path, &ca).unwrap();
    let node = Command::new("node")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/agentkeepalive/main.mjs"))
        .args([&address, &REQUESTS.to_string(), &CONCURRENCY.to_string()])
        .env("NODE_EXTRA_CA_CERTS", &path)
        .output();
    std::fs::remove_file(path).unwrap();
    match node {
        Ok(node) if node.status.success() => {
            println!("  agentkeepalive: {}, {} handshakes", String::from_utf8_lossy(&node.stdout).trim(), seen.take().0);
        }
        Ok(node) => missed.push(Box::leak(String::from_utf8_lossy(&node.stderr).into_owned().into_boxed_str())),
        Err(_) => missed.push("Node, for agentkeepalive"),
    }

    let (server, _) = serve(None);
    let address = format!("http://{server}");
    let client = reqwest::Client::builder().tls_backend_rustls().build().unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    #[allow(clippy::cast_precision_loss)] // Thousands.
    let rate = |took: Duration| LOOPBACK as f64 / took.as_secs_f64();
    for _ in 0..ROUNDS {
        theirs.push(rate(plain(&client, &address, LOOPBACK, LOOPBACK_CONCURRENCY).await));
        ours.push(rate(pooled(PoolSettings::default(), &address, None, LOOPBACK, LOOPBACK_CONCURRENCY).await.0));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!(
        "loopback, {LOOPBACK_CONCURRENCY} at a time: {ours:.0} requests a second, reqwest {theirs:.0}: {:.0}% of it",
        ours / theirs * 100.0
    );
    if ours < theirs * 0.9 {
        missed.push("90% of reqwest's throughput on loopback");
    }
    if missed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("missed: {}", missed.join("; "));
    ExitCode::FAILURE
}
