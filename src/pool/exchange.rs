//! One request and its response over one connection.
//!
//! The HTTP is hyper's. hyper's buffers and channels exist only during a request. An idle connection is only a socket,
//! so thousands of them cost almost nothing.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderMap, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
    response,
};
use http_body_util::Full;
use hyper::{
    body::{Body as _, Incoming},
    client::conn::http1::{self, Parts},
};
use hyper_util::rt::TokioIo;

use super::connect::Stream;

/// Bytes of one read for large bodies. musl maps larger blocks for each request, and the page faults cost more than the
/// reads save: 1,000 pages of 227 KB took 0.47 s with 128 KiB, 0.34 s with this size, and no less with 16 KiB (`make
/// bench`).
const READ: usize = 24 * 1024;
/// Size from which a body is large. For smaller ones, a buffer of [`READ`] bytes costs more than it saves (`make
/// bench`).
const LARGE: usize = 32 * 1024;

/// A request as it is sent.
pub type Message = http::Request<Full<Bytes>>;

/// Why there is no response.
pub enum Failure {
    /// The body is larger than the request allows.
    TooLarge,
    /// Not a failure: the reader of the body wants no more of it.
    Enough,
    /// There is no memory for the rest of the body.
    NoMemory,
    /// The connection broke before the response began, or the peer does not speak HTTP.
    Broken,
    /// The connection broke within the body.
    BrokenOff,
    /// Nothing of the message was sent; this returns it.
    Unsent(Box<Message>),
}

/// A response whose head arrived, and the connection that delivers the rest.
pub struct Flow {
    connection: Connection,
    body: Incoming,
    lasts: bool,
}

type Ended = hyper::Result<Parts<TokioIo<Stream>>>;

/// hyper's side of a connection. It sends and receives only while it is polled.
struct Connection {
    running: Pin<Box<dyn Future<Output = Ended> + Send>>,
    ended: Option<Ended>,
}

impl Connection {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if self.ended.is_none()
            && let Poll::Ready(ended) = self.running.as_mut().poll(cx)
        {
            self.ended = Some(ended);
        }
    }
}

/// Sends a request and waits for the head of the response. The buffer fits a body of the `expected` size; if that is
/// small, the buffer grows on demand.
pub async fn begin(stream: Stream, message: Message, expected: usize) -> Result<(response::Parts, Flow), Failure> {
    let mut builder = http1::Builder::new();
    if expected >= LARGE {
        builder.read_buf_exact_size(Some(READ));
    }
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Broken)?;
    let mut connection = Connection { running: Box::pin(connection.without_shutdown()), ended: None };
    let sent = {
        let mut sending = pin!(sender.try_send_request(message));
        poll_fn(|cx| {
            connection.drive(cx);
            sending.as_mut().poll(cx)
        })
        .await
    };
    let response = sent.map_err(|mut error| error.take_message().map_or(Failure::Broken, |m| Failure::Unsent(Box::new(m))))?;
    // Dropping the sender tells hyper that no request follows.
    drop(sender);
    let (head, body) = response.into_parts();
    let lasts = lasts(head.version, head.status, &head.headers);
    Ok((head, Flow { connection, body, lasts }))
}

impl Flow {
    /// The next piece of the body; `None` at its end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        loop {
            self.connection.drive(cx);
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else { return Poll::Ready(None) };
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(piece)) => return Poll::Ready(Some(Ok(piece))),
                // Trailers are not used.
                Ok(Err(_)) => {}
                Err(_) => return Poll::Ready(Some(Err(Failure::BrokenOff))),
            }
        }
    }

    /// After the end of the body: the connection, if it can be used again.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Stream>> {
        if !self.lasts {
            return Poll::Ready(None);
        }
        self.connection.drive(cx);
        match self.connection.ended.take() {
            None => Poll::Pending,
            // Unrequested bytes would be read as the next response.
            Some(ended) => Poll::Ready(ended.ok().filter(|parts| parts.read_buf.is_empty()).map(|parts| parts.io.into_inner())),
        }
    }
}

/// Whether the server keeps the connection open, by its headers. A body that ends with the connection leaves none.
fn lasts(version: Version, status: StatusCode, headers: &HeaderMap) -> bool {
    let closes = |value: &str| value.split(',').any(|word| word.trim().eq_ignore_ascii_case("close"));
    let closes = headers.get_all(CONNECTION).iter().any(|value| value.to_str().is_ok_and(closes));
    let ends = headers.contains_key(CONTENT_LENGTH)
        || headers.contains_key(TRANSFER_ENCODING)
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    version == Version::HTTP_11 && ends && !closes
}
