//! Measures from outside how long a server keeps an idle connection: one connection, one request, then silence until
//! the server closes it.
//!
//! The server may be hostile, so every step is bounded in time and size: connecting, the TLS handshake, the response
//! and the silence. Redirects are not followed, proxies of the environment are not used, and a connection is opened
//! once. `crate::pool` closes its connections after a while, so probes do not use it. `crate::decide::measured` judges
//! the results.

mod dial;
pub mod http1;
pub mod http2;
pub mod trust;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, StatusCode, Uri, header, response::Parts};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::{Instant, timeout, timeout_at};

pub use self::dial::{Dialed, Stream, dial};
use crate::decide::measured::{Advertised, Idled, Requests};

/// Timeout for connecting, the TLS handshake and one response together.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a response's head.
const MAX_HEAD: usize = 64 * 1024;
/// Most bytes of a response's body, which must be read because the connection is idle only after it.
const MAX_BODY: usize = 1024 * 1024;

/// Why a server could not be measured. The texts name no address, because the caller knows it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host name has no address.
    #[error("the host name cannot be resolved: {0}")]
    Name(#[source] io::Error),
    /// No connection could be opened.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// The TLS handshake failed, usually because of the certificate.
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    /// The server chose another protocol in the TLS handshake, or none.
    #[error("the server does not offer {0}")]
    NotOffered(&'static str),
    /// Connecting, the handshake or the response took too long.
    #[error("no complete response within {0:?}")]
    TimedOut(Duration),
    /// The connection broke, or the server does not speak HTTP/1.1.
    #[error("the server does not speak HTTP/1.1: {0}")]
    Http1(#[from] hyper::Error),
    /// The connection broke, or the server does not speak HTTP/2.
    #[error("the server does not speak HTTP/2: {0}")]
    // Boxed, so that the operator, which speaks only HTTP/1.1, does not link h2.
    Http2(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server closed the connection before its response was complete.
    #[error("the server closed the connection without a response")]
    Closed,
    /// The body is longer than `MAX_BODY`.
    #[error("the response is longer than 1 MiB; use a path with a short response")]
    TooLong,
    /// The response says `Connection: close`, or is HTTP/1.0 without keep-alive.
    #[error("the server closes the connection after each response (status {0})")]
    NoKeepAlive(u16),
}

/// A server to measure.
#[derive(Clone)]
pub struct Server {
    /// The addresses, tried in this order until one accepts.
    pub addresses: Vec<SocketAddr>,
    /// TLS settings and server name; `None` is plain HTTP.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// The request of a probe.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Scheme, authority, path and query. HTTP/1.1 sends the authority as `Host`.
    pub uri: Uri,
    /// Additional header fields.
    pub headers: HeaderMap,
}

/// Facts about a connection before it became idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Duration of the TCP handshake.
    pub connect: Duration,
    /// Duration of the TLS handshake; `None` without TLS.
    pub tls: Option<Duration>,
    /// The response's status code.
    pub status: StatusCode,
    /// The response's `Keep-Alive` field.
    pub advertised: Option<Advertised>,
}

/// A connection that was left idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Facts from before it was idle.
    pub opened: Opened,
    /// How long it stayed open.
    pub idled: Idled,
}

/// Sends requests over one connection, with either protocol.
pub(crate) trait Exchange {
    /// Sends a request, reads the whole response and discards its body.
    async fn exchange(&mut self, request: Request<()>) -> Result<Parts, Error>;
}

/// An HTTP connection: the sender, and the future that ends when the server closes.
pub(crate) struct Session<E> {
    dialed: Dialed,
    sender: E,
    closed: BoxFuture<'static, Result<(), Error>>,
}

impl<E: Exchange> Session<E> {
    /// Sends one request and reads the whole response.
    async fn ask(&mut self, ask: &Ask) -> Result<Opened, Error> {
        let mut request = Request::new(());
        *request.uri_mut() = ask.uri.clone();
        *request.headers_mut() = ask.headers.clone();
        let answer = self.sender.exchange(request);
        tokio::pin!(answer);
        let head = tokio::select! {
            biased;
            head = &mut answer => head?,
            // Both futures may be ready at the same time.
            closed = &mut self.closed => match (answer.now_or_never(), closed) {
                (Some(Ok(head)), _) => return Err(Error::NoKeepAlive(head.status.as_u16())),
                (_, Err(error)) | (Some(Err(error)), Ok(())) => return Err(error),
                (None, Ok(())) => return Err(Error::Closed),
            },
        };
        if closes(&head) {
            return Err(Error::NoKeepAlive(head.status.as_u16()));
        }
        let advertised = head.headers.get("keep-alive").and_then(|value| Advertised::parse(value.to_str().ok()?));
        let Dialed { connect, tls } = self.dialed;
        Ok(Opened { connect, tls, status: head.status, advertised })
    }

    /// Waits until the server closes the connection, at most `max_wait`.
    async fn wait(&mut self, max_wait: Duration) -> Idled {
        let idle = Instant::now();
        // A reset and an unrequested response (408 before a close) end the connection like any other close.
        match timeout(max_wait, &mut self.closed).await {
            Ok(_) => Idled::Closed(idle.elapsed()),
            Err(_) => Idled::Open(max_wait),
        }
    }
}

/// Whether the server announces that it closes the connection.
fn closes(head: &Parts) -> bool {
    let says = |word: &str| {
        let values = head.headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    says("close") || (head.version == http::Version::HTTP_10 && !says("keep-alive"))
}

/// Sends one request over a new connection, then waits until the server closes it, at most `max_wait`. `opened` is called when
/// the connection becomes idle.
pub(crate) async fn idle<E: Exchange>(
    session: impl Future<Output = Result<Session<E>, Error>>,
    ask: &Ask,
    max_wait: Duration,
    opened: impl FnOnce(),
) -> Result<Observation, Error> {
    let first = async {
        let mut session = session.await?;
        let opened = session.ask(ask).await?;
        Ok::<_, Error>((session, opened))
    };
    let (mut session, before) = timeout(ANSWER_TIMEOUT, first).await.map_err(|_| Error::TimedOut(ANSWER_TIMEOUT))??;
    opened();
    Ok(Observation { opened: before, idled: session.wait(max_wait).await })
}

/// Sends up to `most` requests in sequence over a new connection, until the server closes it.
pub(crate) async fn requests<E: Exchange>(
    session: impl Future<Output = Result<Session<E>, Error>>,
    ask: &Ask,
    most: u32,
) -> Result<Requests, Error> {
    let mut until = Instant::now() + ANSWER_TIMEOUT;
    let late = |_| Error::TimedOut(ANSWER_TIMEOUT);
    let mut session = timeout_at(until, session).await.map_err(late)??;
    for answered in 0..most {
        match timeout_at(until, session.ask(ask)).await.map_err(late)? {
            Ok(_) => {}
            Err(Error::NoKeepAlive(_)) => return Ok(Requests::Closed(answered + 1)),
            Err(error) if answered == 0 => return Err(error),
            Err(_) => return Ok(Requests::Closed(answered)),
        }
        until = Instant::now() + ANSWER_TIMEOUT;
    }
    Ok(Requests::Open(most))
}
