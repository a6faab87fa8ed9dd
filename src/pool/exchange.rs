//! One request and its answer over one connection.
//!
//! The HTTP is hyper's. What hyper holds of a connection (buffers, channels) lasts as long as the request: in between, an idle
//! connection is a socket and nothing else, so that thousands of them cost next to nothing.

use std::{future::poll_fn, pin::pin, task::Poll};

use bytes::Bytes;
use http::{
    HeaderMap, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::{MOST_BODY, connect::Stream};

/// Bytes read at once. Of 32 to 256 KiB this took the least CPU for pages of 227 KB, and the next larger only more memory
/// (`make bench`).
const READ: usize = 128 * 1024;

/// What goes out.
pub type Message = http::Request<Full<Bytes>>;

/// Takes a body as it comes.
pub type Sink<'a> = &'a mut (dyn FnMut(&[u8]) + Send);

/// What came back besides the body, and the connection if it can be used again.
pub struct Exchanged {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub stream: Option<Stream>,
}

/// Why nothing came back.
pub enum Failure {
    /// The body is larger than any that is expected.
    TooLarge,
    /// The connection broke before an answer began, or what came is not HTTP.
    Broken,
    /// It broke within the body.
    BrokenOff,
    /// Nothing of the message had been sent: here it is again.
    Unsent(Box<Message>),
}

/// Sends, and reads the whole answer.
pub async fn exchange(stream: Stream, message: Message, sink: Sink<'_>) -> Result<Exchanged, Failure> {
    let mut builder = http1::Builder::new();
    builder.read_buf_exact_size(Some(READ));
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Broken)?;
    let mut connection = pin!(connection.without_shutdown());
    let mut talk = pin!(async move {
        let sent = sender.try_send_request(message).await;
        let response =
            sent.map_err(|mut error| error.take_message().map_or(Failure::Broken, |m| Failure::Unsent(Box::new(m))))?;
        // Its end is what tells hyper that nothing more will be asked.
        drop(sender);
        let (head, body) = response.into_parts();
        pass(body, sink).await?;
        Ok(head)
    });
    let mut end = None;
    let head = poll_fn(|cx| {
        if end.is_none()
            && let Poll::Ready(parts) = connection.as_mut().poll(cx)
        {
            end = Some(parts);
        }
        talk.as_mut().poll(cx)
    })
    .await?;
    let stream = if lasts(head.version, head.status, &head.headers) {
        let end = match end {
            Some(end) => end,
            None => connection.await,
        };
        // Bytes that nobody asked for would be taken for the next answer.
        end.ok().filter(|parts| parts.read_buf.is_empty()).map(|parts| parts.io.into_inner())
    } else {
        None
    };
    Ok(Exchanged { status: head.status, headers: head.headers, stream })
}

/// Hands a body on, piece by piece: the next is read to where the last one was.
async fn pass(mut body: hyper::body::Incoming, sink: Sink<'_>) -> Result<(), Failure> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Failure::BrokenOff)?.into_data() else { continue };
        length += data.len();
        if length > MOST_BODY {
            return Err(Failure::TooLarge);
        }
        sink(&data);
    }
    Ok(())
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
