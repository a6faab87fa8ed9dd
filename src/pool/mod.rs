//! The one place from which requests to nodes leave: bounded, counted, without proxies and without redirects.
//!
//! Lives here: the HTTP client, name resolution for Services, the cap on bodies, and the words for what went wrong.
//! Nothing in here knows a target.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{
    Method, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{HeaderMap, HeaderName, HeaderValue},
};
use tokio::task::JoinSet;

/// Most bytes of an answer that are read.
pub const MOST_BODY: usize = 4 * 1024 * 1024;
/// Idle connections kept to one host.
const IDLE_PER_HOST: usize = 4;
/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Clients for different certificate authorities that are kept.
const MOST_CLIENTS: usize = 64;

/// Why there is no answer.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// Nobody listens, or the way is barred.
    #[error("cannot connect to {0}: connection refused or unreachable")]
    Connect(String),
    /// The certificate is not trusted.
    #[error("{0} shows a certificate that no CA given for it vouches for")]
    Certificate(String),
    /// No answer in time.
    #[error("{0} did not answer within {1:?}")]
    TimedOut(String, Duration),
    /// The connection broke, or what came is not HTTP.
    #[error("{0} broke off, or does not speak HTTP")]
    Broken(String),
    /// The answer is larger than any that is expected.
    #[error("{0} answered with more than {max} MiB", max = MOST_BODY / 1024 / 1024)]
    TooLarge(String),
    /// The CA is not PEM.
    #[error("the CA holds no certificate in PEM")]
    Ca,
    /// The address or a header cannot be put into a request.
    #[error("{0} is not an address that can be asked")]
    Address(String),
}

/// A question to a node. Never printed: its header fields hold tokens.
#[derive(Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// `scheme://host:port`.
    pub address: String,
    /// Path and query.
    pub path: String,
    /// Header fields.
    pub headers: Vec<(&'static str, String)>,
    /// JSON to send.
    pub body: Option<Vec<u8>>,
    /// How long it may take, the body included.
    pub timeout: Duration,
}

impl Request {
    /// A GET without header fields.
    #[must_use]
    pub fn get(address: &str, path: &str, timeout: Duration) -> Self {
        Self { method: Method::GET, address: address.to_owned(), path: path.to_owned(), headers: Vec::new(), body: None, timeout }
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// The body, at most [`MOST_BODY`].
    pub body: Vec<u8>,
}

impl Response {
    /// A header field as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Names of Services and their addresses, as the API server gave them: no DNS is asked for these.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name.as_str()).cloned();
        Box::pin(async move {
            if let Some(addresses) = known {
                Ok(Box::new(addresses.into_iter()) as Addrs)
            } else {
                let found = tokio::net::lookup_host((name.as_str().to_owned(), 0)).await?;
                Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs)
            }
        })
    }
}

/// The pool: one client for each certificate authority in use.
#[derive(Clone, Default)]
pub struct Pool {
    names: Names,
    clients: Arc<Mutex<HashMap<Option<Vec<u8>>, reqwest::Client>>>,
    /// Questions that nobody waits for any more; each ends at its own time-out, and all of them with the pool.
    background: Arc<Mutex<JoinSet<()>>>,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says where a Service is, so that its name can be used in an address and checked in its certificate.
    pub fn name(&self, host: &str, addresses: Vec<SocketAddr>) {
        self.names.0.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), addresses);
    }

    /// Asks, and reads the whole answer.
    pub async fn send(&self, ca: Option<&[u8]>, request: Request) -> Result<Response, Error> {
        let Request { method, address, path, headers, body, timeout } = request;
        let client = self.client(ca)?;
        let url = Url::parse(&format!("{address}{path}")).map_err(|_| Error::Address(address.clone()))?;
        let mut fields = HeaderMap::new();
        for (name, value) in headers {
            let mut value = HeaderValue::from_str(&value).map_err(|_| Error::Address(address.clone()))?;
            value.set_sensitive(name.eq_ignore_ascii_case("authorization"));
            fields.insert(HeaderName::from_static(name), value);
        }
        let mut builder = client.request(method, url).headers(fields).timeout(timeout);
        if let Some(body) = body {
            builder = builder.header("content-type", "application/json").body(body);
        }
        let explain = |error: &reqwest::Error| explain(error, &address, timeout);
        let mut response = builder.send().await.map_err(|e| explain(&e))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| explain(&e))? {
            if body.len() + chunk.len() > MOST_BODY {
                return Err(Error::TooLarge(address));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Response { status, headers, body })
    }

    /// Like [`Pool::send`], but waits for `patience` only: the question goes on in the background, so that a server
    /// which acts while nobody waits is not told that nobody does.
    pub async fn send_patiently(&self, ca: Option<Vec<u8>>, request: Request, patience: Duration) -> Result<Response, Error> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let address = request.address.clone();
        let pool = self.clone();
        {
            let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
            while background.try_join_next().is_some() {}
            background.spawn(async move {
                // Nobody may be listening any more, and then nobody needs to know.
                let _ = answer.send(pool.send(ca.as_deref(), request).await);
            });
        }
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::Broken(address)),
            Err(_) => Err(Error::TimedOut(address, patience)),
        }
    }

    fn client(&self, ca: Option<&[u8]>) -> Result<reqwest::Client, Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = ca.map(<[u8]>::to_vec);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .dns_resolver(self.names.clone());
        if let Some(pem) = ca {
            let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(|_| Error::Ca)?;
            if certificates.is_empty() {
                return Err(Error::Ca);
            }
            // Only those: a policy that names its CA means no other.
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder.build().map_err(|_| Error::Ca)?;
        if clients.len() >= MOST_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

/// Our own words for it: the library's would name internals, and might repeat what a node sent.
fn explain(error: &reqwest::Error, address: &str, timeout: Duration) -> Error {
    let address = address.to_owned();
    if error.is_timeout() {
        return Error::TimedOut(address, timeout);
    }
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => Error::Certificate(address),
        None if error.is_connect() => Error::Connect(address),
        _ => Error::Broken(address),
    }
}

/// The TLS library's own word, from wherever it is wrapped: I/O errors hide what they hold from `source`.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(tls) = error.downcast_ref() {
        return Some(tls);
    }
    let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match held {
        Some(held) => tls_error(held),
        None => tls_error(error.source()?),
    }
}
