//! Client of the API server: each request is sent once, each response sets the clock, and nothing is written without the lease.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, header::DATE};
use hyper::body::Frame;
use ipnet::IpNet;
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
};
use rustls::pki_types::InvalidDnsNameError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{BoxError, ServiceBuilder, service_fn};

use crate::{
    clock,
    leader::Leadership,
    pool::{self, Following, Pool, PoolSettings, Timeouts, TlsIdentity},
};

/// Provider of the connections to the API server in the pool.
pub const PROVIDER: &str = "kubernetes";

/// Provider of the connections for the Lease.
pub const LEASE_PROVIDER: &str = "kubernetes-lease";

/// The API server closes an idle connection after 90 s (`IdleTimeout` in Kubernetes' `secure_serving.go`). The operator closes it
/// earlier, so that no request uses a connection that the server is about to close.
const SETTINGS: PoolSettings = PoolSettings {
    // Each watch occupies a connection, and there may be a watch for each policy: a request that waits for such a connection
    // would wait forever.
    max_sockets: 4096,
    // As many requests that are no watches are sent at the same time. Each uses a connection that an earlier one left idle; with
    // more at a time, most would begin with a TLS handshake.
    max_free_sockets: 64,
    timeout: Duration::from_secs(60),
    keep_alive: true,
    keep_alive_delay: Duration::from_secs(30),
    free_socket_timeout: Duration::from_secs(60),
    max_socket_lifetime: Duration::from_secs(600),
};

const TIMEOUTS: Timeouts = Timeouts {
    connecting: Duration::from_secs(10),
    head: SETTINGS.timeout,
    // kube restarts a watch after at most 290 s.
    silence: Duration::from_secs(330),
};

/// Environment variables that name a proxy.
const PROXIES: [&str; 3] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"];

/// Reason why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Tokens, certificates or CAs are not usable.
    #[error("{0}")]
    Config(#[from] kube::Error),
    /// The configuration names a proxy, which is not supported.
    #[error(
        "a proxy between the operator and the API server is not supported; remove proxy-url from the kubeconfig, or list the API server in NO_PROXY"
    )]
    Proxy,
    /// A certificate cannot contain this server name.
    #[error("tls-server-name {0:?} is neither a host name nor an IP address; correct the kubeconfig")]
    Name(String, #[source] InvalidDnsNameError),
}

/// Returns a client that uses the connections of this pool and sends each request once. kube's own client would retry up to 15
/// times, for a quarter of an hour each, and would hold a worker meanwhile. The callers have their own back-off, and for them a
/// 429 from the Eviction API is a result. The date of each response sets the clock.
pub fn client(config: &Config, pool: &Pool) -> Result<Client, Error> {
    client_of(config, pool, PROVIDER, SETTINGS)
}

/// Returns a client with separate connections for the Leases, so that they are renewed however many watches there are.
pub fn lease_client(config: &Config, pool: &Pool) -> Result<Client, Error> {
    client_of(config, pool, LEASE_PROVIDER, PoolSettings { max_sockets: 4, max_free_sockets: 4, ..SETTINGS })
}

fn client_of(config: &Config, pool: &Pool, provider: &'static str, settings: PoolSettings) -> Result<Client, Error> {
    if let Some(proxy) = &config.proxy_url {
        let is_ours =
            |name: &str| std::env::var(name).is_ok_and(|value| value.parse::<http::Uri>().is_ok_and(|value| value == *proxy));
        let of_environment = PROXIES.iter().any(|name| is_ours(name) || is_ours(&name.to_lowercase()));
        let direct = std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy")).unwrap_or_default();
        // A proxy-url in the kubeconfig applies to this server.
        if !of_environment || !is_direct(&direct, &config.cluster_url) {
            return Err(Error::Proxy);
        }
    }
    pool.provider(provider).configure(settings);
    let (pool, trust) = (pool.clone(), trust(config, pool)?);
    let turns = Arc::new(Semaphore::new(settings.max_free_sockets as usize));
    let asked = service_fn(move |request: Request<Body>| {
        let (provider, trust, turns) = (pool.provider(provider), trust.clone(), turns.clone());
        async move {
            let turn = if is_watch(request.uri()) { None } else { Some(turns.acquire_owned().await?) };
            let (head, body) = request.into_parts();
            let request = Request::from_parts(head, body.collect_bytes().await.map_err(plain)?);
            let response = provider.follow(trust.as_ref(), request, TIMEOUTS).await?;
            if let Some(date) = response.headers().get(DATE).and_then(|date| date.to_str().ok()) {
                clock::heard(date);
            }
            Ok::<_, BoxError>(response.map(|body| InTurn { body, _turn: turn }))
        }
    });
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .service(asked);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// Reports whether a request is a watch, whose response goes on for minutes.
fn is_watch(uri: &http::Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|part| matches!(part, "watch=true" | "watch=1")))
}

/// The body of a response. The next request has its turn when the body has been read, which leaves the connection idle.
struct InTurn {
    body: Following,
    _turn: Option<OwnedSemaphorePermit>,
}

impl hyper::body::Body for InTurn {
    type Data = Bytes;
    type Error = pool::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, pool::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

/// Reports whether `NO_PROXY` contains a server, by the rules of Go's `httpproxy`: `*`, an address, a network, or a domain with
/// its subdomains. All except a network may have a port.
fn is_direct(no_proxy: &str, server: &http::Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let port = server.port_u16().unwrap_or(if server.scheme_str() == Some("http") { 80 } else { 443 });
    let ip = host.parse::<IpAddr>().ok();
    no_proxy.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Ok(network) = entry.parse::<IpNet>() {
            return ip.is_some_and(|ip| network.contains(&ip));
        }
        if let Ok(address) = entry.parse::<IpAddr>() {
            return ip == Some(address);
        }
        let (name, wanted) =
            entry.rsplit_once(':').map_or((entry.as_str(), None), |(name, port)| (name, port.parse::<u16>().ok()));
        let name = name.trim_start_matches('[').trim_end_matches(']').trim_start_matches('*').trim_start_matches('.');
        let below = host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        below && !name.is_empty() && wanted.is_none_or(|wanted| wanted == port)
    })
}

/// Returns the TLS settings; `None` for plain HTTP.
fn trust(config: &Config, pool: &Pool) -> Result<Option<TlsIdentity>, Error> {
    if config.cluster_url.scheme_str() != Some("https") {
        return Ok(None);
    }
    let name = config.tls_server_name.clone();
    let name = name.map(|name| name.clone().try_into().map_err(|error| Error::Name(name, error))).transpose()?;
    Ok(Some(pool.trust(config.rustls_client_config()?, name)))
}

/// Returns a client that writes only while this process is the leader. The last check is directly before a request is sent.
#[must_use]
pub fn led(client: &Client, leadership: Leadership) -> Client {
    let (namespace, client) = (client.default_namespace().to_owned(), client.clone());
    let guarded = service_fn(move |request: Request<Body>| {
        let may = matches!(*request.method(), Method::GET | Method::HEAD) || leadership.holds();
        let client = client.clone();
        async move {
            if !may {
                return Err("no change was sent to the API server: this replica does not hold the lease".into());
            }
            client.send(request).await.map_err(plain)
        }
    });
    Client::new(guarded, namespace)
}

/// Unwraps the error of the layer below, because the layer above wraps it again.
fn plain(error: kube::Error) -> BoxError {
    match error {
        kube::Error::Service(error) => error,
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures::future::join_all;
    use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
    use hyper_util::rt::TokioIo;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Api, api::WatchParams};

    use super::*;

    /// A body without an end.
    struct Endless;

    impl hyper::body::Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    /// An API server with one ConfigMap. Returns its address and the number of connections so far.
    async fn server() -> (String, Arc<AtomicUsize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let (address, opened) = (listener.local_addr().expect("an address"), Arc::new(AtomicUsize::new(0)));
        let counted = opened.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let service = hyper::service::service_fn(async |request: Request<hyper::body::Incoming>| {
                    let body: BoxBody<Bytes, Infallible> = if is_watch(request.uri()) {
                        Endless.boxed()
                    } else {
                        Full::new(Bytes::from(r#"{"metadata": {"name": "settings"}}"#)).boxed()
                    };
                    Ok::<_, Infallible>(http::Response::new(body))
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        (format!("http://{address}"), opened)
    }

    #[tokio::test]
    async fn a_thousand_requests_share_a_few_connections_and_watches_take_no_turn() {
        let (address, opened) = server().await;
        let client = client(&Config::new(address.parse().expect("a URI")), &Pool::default()).expect("a client");
        let api = Api::<ConfigMap>::namespaced(client, "shop");
        let watches: Vec<_> = join_all((0..80).map(async |_| api.watch(&WatchParams::default(), "0").await)).await;
        assert!(watches.iter().all(Result::is_ok));
        for _ in 0..2 {
            let answers = join_all((0..1_000).map(async |_| api.get("settings").await)).await;
            assert!(answers.iter().all(Result::is_ok), "{:?}", answers.iter().find(|answer| answer.is_err()));
            assert!(opened.load(Ordering::Relaxed) <= 80 + 64, "{} connections", opened.load(Ordering::Relaxed));
        }
    }

    #[test]
    fn no_proxy_names_servers_as_gos_does() {
        for (list, server, direct) in [
            ("", "https://10.96.0.1", false),
            ("*", "https://10.96.0.1", true),
            ("10.96.0.1", "https://10.96.0.1:443", true),
            ("10.96.0.0/12", "https://10.96.0.1", true),
            ("10.97.0.0/16", "https://10.96.0.1", false),
            ("localhost, .svc,.cluster.local", "https://kubernetes.default.svc:443", true),
            ("svc", "https://kubernetes.default.svc", true),
            ("default.svc", "https://kubernetes-default.svc", false),
            ("api.example.com:6443", "https://api.example.com:6443", true),
            ("api.example.com:6443", "https://api.example.com", false),
            ("API.Example.com", "https://api.example.com", true),
            ("fd00::1", "https://[fd00::1]:6443", true),
            ("fd00::/8", "https://[fd00::1]:6443", true),
            (",,", "https://api.example.com", false),
        ] {
            assert_eq!(is_direct(list, &server.parse().expect("a URI")), direct, "{list} {server}");
        }
    }
}
