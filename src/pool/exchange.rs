//! One request and its answer over one connection.
//!
//! The HTTP is hyper's. What hyper holds of a connection (buffers, channels) lasts as long as the request: in between, an idle
//! connection is a socket and nothing else, so that thousands of them cost next to nothing.

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

/// Bytes read at once of large bodies. Of 32 to 256 KiB this took the least CPU for pages of 227 KB, and the next larger only more memory
/// (`make bench`).
const READ: usize = 128 * 1024;
/// A body of this size is large: for smaller ones a buffer of [`READ`] bytes costs more than it saves (`make bench`).
const LARGE: usize = 32 * 1024;

/// What goes out.
pub type Message = http::Request<Full<Bytes>>;

/// Why nothing came back.
pub enum Failure {
    /// The body is larger than any that is expected.
    TooLarge,
    /// Nothing is wrong: whoever reads the body wants no more of it.
    Enough,
    /// There is no memory for the rest of the body.
    NoMemory,
    /// The connection broke before an answer began, or what came is not HTTP.
    Broken,
    /// It broke within the body.
    BrokenOff,
    /// Nothing of the message had been sent: here it is again.
    Unsent(Box<Message>),
}

/// An answer whose head is there, and the connection over which the rest comes.
pub struct Flow {
    connection: Connection,
    body: Incoming,
    lasts: bool,
}

type Ended = hyper::Result<Parts<TokioIo<Stream>>>;

/// hyper's side of a connection: nothing is sent or received but while it is polled.
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

/// Sends, and waits for the head of the answer. The buffer is made for a body of the `expected` size; it grows with what comes where that is
/// small.
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
    // Its end is what tells hyper that nothing more will be asked.
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
                // Trailers say nothing to anybody here.
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
            // Bytes that nobody asked for would be taken for the next answer.
            Some(ended) => Poll::Ready(ended.ok().filter(|parts| parts.read_buf.is_empty()).map(|parts| parts.io.into_inner())),
        }
    }
}

/// Whether the server keeps the connection, by what it said: an answer that ends with its connection leaves none.
fn lasts(version: Version, status: StatusCode, headers: &HeaderMap) -> bool {
    let closes = headers
        .get_all(CONNECTION)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case("close"))));
    let ends = headers.contains_key(CONTENT_LENGTH)
        || headers.contains_key(TRANSFER_ENCODING)
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    version == Version::HTTP_11 && ends && !closes
}
