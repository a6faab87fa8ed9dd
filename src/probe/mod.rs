//! Measures from outside how long a server keeps an idle connection: one connection, one request, then silence until the server closes.
//!
//! Every step is bounded in time and size, because the server may be hostile: connecting, the TLS handshake, the answer and the silence.
//! Redirects are not followed, proxies of the environment are not used, and a connection is opened once. Connections of `crate::pool` are
//! closed by this side after a while, so nothing in here goes through it. What a measurement means is judged in `crate::decide::measured`.

mod dial;
pub mod http1;
pub mod http2;
pub mod trust;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::FutureExt as _;
use http::{HeaderMap, Request, StatusCode, Uri, header, response::Parts};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::{Instant, timeout, timeout_at};

pub use self::dial::{Dialed, Stream, dial};
use crate::decide::measured::{Advertised, Idled, Requests};

/// How long connecting, the TLS handshake and one answer may take together.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer's head.
const MAX_HEAD: usize = 64 * 1024;
/// Most bytes of an answer's body. The body has to be read, because a connection is idle only after it.
const MAX_BODY: usize = 1024 * 1024;

/// Why a server could not be measured. The sentence names no address: the caller knows which it asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host name has no address.
    #[error("the host name cannot be resolved: {0}")]
    Name(#[source] io::Error),
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// The TLS handshake failed, most often over the certificate.
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    /// The server chose another protocol in the TLS handshake, or none.
    #[error("the server does not offer {0}")]
    NotOffered(&'static str),
    /// Connecting, the handshake or the answer took too long.
    #[error("no complete answer within {0:?}")]
    TimedOut(Duration),
    /// The connection broke, or what came is not HTTP/1.1.
    #[error("the server does not answer in HTTP/1.1: {0}")]
    Http1(#[from] hyper::Error),
    /// The connection broke, or what came is not HTTP/2.
    #[error("the server does not answer in HTTP/2: {0}")]
    // Boxed, so that the operator, which speaks HTTP/1.1 only, has nothing of h2 in it.
    Http2(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server closed the connection before its answer was complete.
    #[error("the server closed the connection without an answer")]
    Closed,
    /// The body is longer than [`MAX_BODY`].
    #[error("the answer is longer than 1 MiB; give a path with a short answer")]
    TooLong,
    /// The answer says `Connection: close`, or is HTTP/1.0 without keep-alive.
    #[error("the server closes the connection after each answer (status {0})")]
    NoKeepAlive(u16),
}

/// A server to measure.
#[derive(Clone)]
pub struct Server {
    /// The addresses, tried in this order until one accepts.
    pub addresses: Vec<SocketAddr>,
    /// How TLS is spoken and under which name; `None` is plain HTTP.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// The request of a probe.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Scheme, authority, path and query. HTTP/1.1 sends path and query, and the authority as `Host`.
    pub uri: Uri,
    /// More header fields.
    pub headers: HeaderMap,
}

/// What one connection showed before it was idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The address that accepted.
    pub address: SocketAddr,
    /// How long TCP took.
    pub connect: Duration,
    /// How long the TLS handshake took; `None` without TLS.
    pub tls: Option<Duration>,
    /// How long the answer took, from the request to the end of the body.
    pub answer: Duration,
    /// The answer's status code.
    pub status: StatusCode,
    /// What the answer's `Keep-Alive` field says.
    pub advertised: Option<Advertised>,
}

/// A connection that was left idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Before it was idle.
    pub opened: Opened,
    /// How long it stayed open.
    pub idled: Idled,
}

/// Sends requests over one connection, in either protocol.
trait Exchange {
    /// Sends a request, reads the whole answer and discards its body.
    async fn exchange(&mut self, request: Request<()>) -> Result<Parts, Error>;
}

/// A connection on which HTTP is spoken: the sender, and the future that ends when the server closes.
struct Session<E, C> {
    dialed: Dialed,
    sender: E,
    closed: C,
}

impl<E: Exchange, C: Future<Output = Result<(), Error>> + Unpin> Session<E, C> {
    /// Sends one request and reads the whole answer.
    async fn ask(&mut self, ask: &Ask, uri: &Uri) -> Result<Opened, Error> {
        let began = Instant::now();
        let mut request = Request::new(());
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = ask.headers.clone();
        let answer = self.sender.exchange(request);
        tokio::pin!(answer);
        let head = tokio::select! {
            biased;
            head = &mut answer => head?,
            // Both may be ready in the same moment.
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
        let Dialed { address, connect, tls, .. } = self.dialed;
        Ok(Opened { address, connect, tls, answer: began.elapsed(), status: head.status, advertised })
    }

    /// Says nothing until the server closes, at most `max_wait`.
    async fn wait(&mut self, max_wait: Duration) -> Idled {
        let idle = Instant::now();
        // A reset, and an answer that nothing asked for (408 before a close), end the connection like any other close.
        match timeout(max_wait, &mut self.closed).await {
            Ok(_) => Idled::Closed(idle.elapsed()),
            Err(_) => Idled::Open(max_wait),
        }
    }
}

/// Whether the server announces that it closes now.
fn closes(head: &Parts) -> bool {
    let says = |word: &str| {
        let values = head.headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    says("close") || (head.version == http::Version::HTTP_10 && !says("keep-alive"))
}

/// One request over a new connection, then silence.
async fn idle<E, C>(
    session: impl Future<Output = Result<Session<E, C>, Error>>,
    ask: &Ask,
    uri: &Uri,
    max_wait: Duration,
    opened: impl FnOnce(&Opened),
) -> Result<Observation, Error>
where
    E: Exchange,
    C: Future<Output = Result<(), Error>> + Unpin,
{
    let first = async {
        let mut session = session.await?;
        let opened = session.ask(ask, uri).await?;
        Ok::<_, Error>((session, opened))
    };
    let (mut session, before) = timeout(ANSWER_TIMEOUT, first).await.map_err(|_| Error::TimedOut(ANSWER_TIMEOUT))??;
    opened(&before);
    Ok(Observation { opened: before, idled: session.wait(max_wait).await })
}

/// Up to `most` requests over one new connection, one after the other, until the server closes.
async fn requests<E, C>(
    session: impl Future<Output = Result<Session<E, C>, Error>>,
    ask: &Ask,
    uri: &Uri,
    most: u32,
) -> Result<Requests, Error>
where
    E: Exchange,
    C: Future<Output = Result<(), Error>> + Unpin,
{
    let mut until = Instant::now() + ANSWER_TIMEOUT;
    let late = |_| Error::TimedOut(ANSWER_TIMEOUT);
    let mut session = timeout_at(until, session).await.map_err(late)??;
    for answered in 0..most {
        match timeout_at(until, session.ask(ask, uri)).await.map_err(late)? {
            Ok(_) => {}
            Err(Error::NoKeepAlive(_)) => return Ok(Requests::Closed(answered + 1)),
            Err(error) if answered == 0 => return Err(error),
            Err(_) => return Ok(Requests::Closed(answered)),
        }
        until = Instant::now() + ANSWER_TIMEOUT;
    }
    Ok(Requests::Open(most))
}
