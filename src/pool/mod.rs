//! The one place from which requests to nodes leave: bounded, counted, without proxies and without redirects.
//!
//! Lives here: connections and how they are made, one exchange over one of them, those that wait idle, name resolution for
//! Services, the cap on bodies, and the words for what went wrong. Nothing in here knows a target, and the HTTP is hyper's.

mod connect;
mod exchange;
mod idle;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use connect::{Names, Stream};
use exchange::{Exchanged, Failure, Message, Sink, exchange};
use http::{
    HeaderMap, Method,
    header::{CONTENT_TYPE, HOST, HeaderValue},
};
use idle::Idle;
use rustls::ClientConfig;
use tokio::task::JoinSet;
use url::{Position, Url};

use crate::leader::Leadership;

/// Most bytes of an answer that are read.
pub const MOST_BODY: usize = 4 * 1024 * 1024;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Different certificate authorities that are remembered.
const MOST_AUTHORITIES: usize = 64;

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
    /// Another replica acts by now.
    #[error("{0} was not asked to change anything: this replica does not hold the lease")]
    NotLeading(String),
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

/// Whom to trust, by the CA in PEM, with a number of its own: a connection made in one's name is not used in another's.
type Authorities = HashMap<Option<Vec<u8>>, (u64, Arc<ClientConfig>)>;

/// The pool.
#[derive(Clone, Default)]
pub struct Pool {
    names: Names,
    idle: Idle,
    authorities: Arc<Mutex<(u64, Authorities)>>,
    /// Questions that nobody waits for any more; each ends at its own time-out, and all of them with the pool.
    background: Arc<Mutex<JoinSet<()>>>,
    /// Where one of several processes acts: whether it is this one.
    leadership: Option<Leadership>,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty pool that changes something elsewhere only while this process may act.
    #[must_use]
    pub fn led(leadership: Leadership) -> Self {
        Self { leadership: Some(leadership), ..Self::default() }
    }

    /// Says where a Service is, so that its name can be used in an address and checked in its certificate.
    pub fn name(&self, host: &str, addresses: Vec<SocketAddr>) {
        self.names.insert(host, addresses);
    }

    /// Connections that wait for the next request.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle.count()
    }

    /// Asks, and reads the whole answer.
    ///
    /// Over a connection that was idle if there is one. If the other side turns out to have closed that, a new one is
    /// made, once, provided that asking twice is asking once: the method is safe, or nothing had been sent.
    pub async fn send(&self, ca: Option<&[u8]>, request: Request) -> Result<Response, Error> {
        let mut body = Vec::new();
        let response = self.read(ca, request, &mut |piece| body.extend_from_slice(piece)).await?;
        Ok(Response { body, ..response })
    }

    /// Like [`Pool::send`], but hands the body on while it comes, whatever the status, and keeps nothing of it. What was handed on
    /// before an error is part of no answer.
    pub async fn read(&self, ca: Option<&[u8]>, request: Request, sink: Sink<'_>) -> Result<Response, Error> {
        let timeout = request.timeout;
        match tokio::time::timeout(timeout, self.ask(ca, &request, sink)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::TimedOut(request.address, timeout)),
        }
    }

    async fn ask(&self, ca: Option<&[u8]>, request: &Request, sink: Sink<'_>) -> Result<Response, Error> {
        let address = &request.address;
        if !request.method.is_safe() && self.leadership.as_ref().is_some_and(|leadership| !leadership.holds()) {
            return Err(Error::NotLeading(address.clone()));
        }
        let url = Url::parse(&format!("{address}{}", request.path)).map_err(|_| Error::Address(address.clone()))?;
        let (authority, tls) = match url.scheme() {
            "http" => (0, None),
            "https" => self.tls(ca).map(|(number, tls)| (number, Some(tls)))?,
            _ => return Err(Error::Address(address.clone())),
        };
        let place = (address.clone(), authority);
        let mut message = message(&url, request)?;
        if let Some(stream) = self.idle.take(&place) {
            let again = request.method.is_safe().then(|| message.clone());
            match (exchange(stream, message, &mut *sink).await, again) {
                (Ok(exchanged), _) => return Ok(self.finish(place, exchanged)),
                (Err(Failure::Unsent(unsent)), _) => message = *unsent,
                (Err(Failure::Broken), Some(again)) => message = again,
                (Err(failure), _) => return Err(failure.told(address)),
            }
        }
        let stream = self.connect(tls, &url, address).await?;
        exchange(stream, message, sink)
            .await
            .map(|exchanged| self.finish(place, exchanged))
            .map_err(|failure| failure.told(address))
    }

    async fn connect(&self, tls: Option<Arc<ClientConfig>>, url: &Url, address: &str) -> Result<Stream, Error> {
        match tokio::time::timeout(CONNECT_TIMEOUT, connect::connect(&self.names, tls, url)).await {
            Ok(stream) => stream.map_err(|error| explain(&error, address)),
            Err(_) => Err(Error::TimedOut(address.to_owned(), CONNECT_TIMEOUT)),
        }
    }

    fn finish(&self, place: idle::Place, exchanged: Exchanged) -> Response {
        let Exchanged { status, headers, stream } = exchanged;
        if let Some(stream) = stream {
            self.idle.put(place, stream);
        }
        Response { status: status.as_u16(), headers, body: Vec::new() }
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

    fn tls(&self, ca: Option<&[u8]>) -> Result<(u64, Arc<ClientConfig>), Error> {
        let mut authorities = self.authorities.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, known) = &mut *authorities;
        let key = ca.map(<[u8]>::to_vec);
        if let Some((number, tls)) = known.get(&key) {
            return Ok((*number, tls.clone()));
        }
        let tls = Arc::new(connect::tls(ca).map_err(|_| Error::Ca)?);
        if known.len() >= MOST_AUTHORITIES {
            known.clear();
        }
        *last += 1;
        known.insert(key, (*last, tls.clone()));
        Ok((*last, tls))
    }
}

impl Failure {
    fn told(self, address: &str) -> Error {
        match self {
            Self::TooLarge => Error::TooLarge(address.to_owned()),
            Self::Broken | Self::BrokenOff | Self::Unsent(_) => Error::Broken(address.to_owned()),
        }
    }
}

/// A request as it goes over the wire.
fn message(url: &Url, request: &Request) -> Result<Message, Error> {
    let refused = || Error::Address(request.address.clone());
    let mut builder = http::Request::builder()
        .method(request.method.clone())
        .uri(&url[Position::BeforePath..Position::AfterQuery])
        .header(HOST, &url[Position::BeforeHost..Position::AfterPort]);
    for (name, value) in &request.headers {
        let mut value = HeaderValue::from_str(value).map_err(|_| refused())?;
        value.set_sensitive(name.eq_ignore_ascii_case("authorization"));
        builder = builder.header(*name, value);
    }
    if request.body.is_some() {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    builder.body(Bytes::from(request.body.clone().unwrap_or_default()).into()).map_err(|_| refused())
}

/// Our own words for it: the library's would name internals.
fn explain(error: &std::io::Error, address: &str) -> Error {
    let address = address.to_owned();
    match error.get_ref().and_then(|held| held.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => Error::Certificate(address),
        Some(_) => Error::Broken(address),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => Error::Broken(address),
        None => Error::Connect(address),
    }
}
