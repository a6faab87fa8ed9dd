//! One request and its response over one connection.
//!
//! A client of hyper allocates channels and buffers for each connection, and this pool keeps no client while a
//! connection is idle. That cost more time than all the rest of a sample. So httparse parses the heads and the chunks, and
//! one buffer for each thread receives all responses. An idle connection is only a socket.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
    response,
};
use httparse::Status;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio_util::either::Either;

use super::{
    connect::Stream,
    framing::{Framing, Malformed},
};

/// Bytes of the buffer that receives responses; each thread has one.
const BUFFER: usize = 256 * 1024;
/// Most bytes of a response's head.
const MAX_HEAD: usize = 32 * 1024;
/// Most header fields of a response; hyper has the same limit.
pub const MAX_FIELDS: usize = 100;

/// A request as it is sent.
pub type Message = http::Request<Bytes>;

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
    /// Nothing of the message was sent.
    Unsent,
}

/// Takes a body piece by piece; an error ends the exchange.
pub type Sink<'a> = &'a mut (dyn FnMut(&[u8]) -> Result<(), Failure> + Send);

/// A response whose head arrived, and the connection that delivers the rest.
pub struct Flow {
    stream: Stream,
    input: Input,
    framing: Framing,
    lasts: bool,
}

/// Sends a request and waits for the head of the response.
pub async fn begin(stream: Stream, message: &Message) -> Result<(response::Parts, Flow), Failure> {
    let output = Output { bytes: encode(message), sent: 0, state: Sending::Writing };
    let mut opening = Opening { stream, input: Input::default(), output, scanned: 0 };
    let head = poll_fn(|cx| opening.poll_head(cx)).await?;
    let Opening { stream, input, output, .. } = opening;
    let framing = Framing::of(message.method(), &head).map_err(|Malformed| Failure::Broken)?;
    // A server that answers early may not read the rest of the request.
    let lasts = output.state == Sending::Done && framing.ends_itself() && lasts(&head);
    Ok((head, Flow { stream, input, framing, lasts }))
}

/// The message as bytes.
fn encode(message: &Message) -> Vec<u8> {
    let target = message.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let body = message.body();
    let mut bytes = Vec::with_capacity(512 + body.len());
    for part in [message.method().as_str(), " ", target, " HTTP/1.1\r\n"] {
        bytes.extend_from_slice(part.as_bytes());
    }
    let mut field = |name: &str, value: &[u8]| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    };
    for (name, value) in message.headers().iter().filter(|(name, _)| **name != CONTENT_LENGTH) {
        field(name.as_str(), value.as_bytes());
    }
    if !body.is_empty() || matches!(*message.method(), Method::POST | Method::PUT | Method::PATCH) {
        field(CONTENT_LENGTH.as_str(), body.len().to_string().as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// An exchange whose head has not arrived yet.
struct Opening {
    stream: Stream,
    input: Input,
    output: Output,
    /// Bytes of the input in which the head does not end.
    scanned: usize,
}

impl Opening {
    /// Sends and receives at the same time: a server may answer before it has read the whole request.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<response::Parts, Failure>> {
        self.input.open();
        loop {
            self.output.send(cx, &mut self.stream);
            if let Some(head) = self.head()? {
                return Poll::Ready(Ok(head));
            }
            match ready!(self.input.poll_fill(cx, &mut self.stream)) {
                Ok(1..) => {}
                // TLS may have sent a part of what it refused.
                Ok(0) | Err(_) if self.output.sent == 0 && matches!(self.stream, Either::Left(_)) => {
                    return Poll::Ready(Err(Failure::Unsent));
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(Failure::Broken)),
            }
        }
    }

    /// The head, if all of it is there. Informational responses are skipped.
    fn head(&mut self) -> Result<Option<response::Parts>, Failure> {
        loop {
            let unread = self.input.unread();
            // A server that sends single bytes must not make the parser start again with each.
            if !has_end(unread, self.scanned) {
                self.scanned = unread.len();
                return if unread.len() > MAX_HEAD { Err(Failure::Broken) } else { Ok(None) };
            }
            let Some((length, head)) = parse(unread)? else {
                self.scanned = unread.len();
                return Ok(None);
            };
            self.input.take(length);
            self.scanned = 0;
            match head.status {
                // This client asks for no other protocol.
                StatusCode::SWITCHING_PROTOCOLS => return Err(Failure::Broken),
                status if status.is_informational() => {}
                _ => return Ok(Some(head)),
            }
        }
    }
}

/// Whether a head can end in these bytes, of which the first `scanned` are known not to have an end.
fn has_end(bytes: &[u8], scanned: usize) -> bool {
    let from = scanned.saturating_sub(2);
    memchr::memchr_iter(b'\n', &bytes[from..]).any(|at| matches!(&bytes[from + at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

/// A head at the beginning of these bytes, and its length.
fn parse(bytes: &[u8]) -> Result<Option<(usize, response::Parts)>, Failure> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    let Status::Complete(length) = parsed.parse(bytes).map_err(|_| Failure::Broken)? else { return Ok(None) };
    let mut response = http::Response::new(());
    *response.version_mut() = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    *response.status_mut() = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Failure::Broken)?;
    response.headers_mut().reserve(parsed.headers.len());
    for field in parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Failure::Broken)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| Failure::Broken)?;
        response.headers_mut().append(name, value);
    }
    Ok(Some((length, response.into_parts().0)))
}

/// Whether the server keeps the connection open, and both sides agree where the next response begins.
fn lasts(head: &response::Parts) -> bool {
    let closes = |value: &str| value.split(',').any(|word| word.trim().eq_ignore_ascii_case("close"));
    let closes = head.headers.get_all(CONNECTION).iter().any(|value| value.to_str().is_ok_and(closes));
    let has_two_ends = [CONTENT_LENGTH, TRANSFER_ENCODING].iter().all(|field| head.headers.contains_key(field));
    head.version == Version::HTTP_11 && !closes && !has_two_ends
}

impl Flow {
    /// Passes on everything that arrived. Returns whether the body has ended.
    pub fn pass(&mut self, sink: Sink<'_>) -> Result<bool, Failure> {
        self.input.open();
        let used = self.framing.decode(self.input.unread(), sink)?;
        self.input.take(used);
        Ok(self.framing.has_ended())
    }

    /// Waits until more arrives.
    pub fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.input.open();
        Poll::Ready(match ready!(self.input.poll_fill(cx, &mut self.stream)) {
            Ok(1..) => Ok(()),
            Ok(0) => self.framing.close().map_err(|Malformed| Failure::BrokenOff),
            Err(_) => Err(Failure::BrokenOff),
        })
    }

    /// After the end of the body: the connection, if it can be used again.
    pub fn end(self) -> Option<Stream> {
        // Unrequested bytes would be read as the next response.
        (self.lasts && self.input.is_empty()).then_some(self.stream)
    }
}

/// The bytes of a request.
struct Output {
    bytes: Vec<u8>,
    /// Bytes that the connection accepted.
    sent: usize,
    state: Sending,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sending {
    Writing,
    Flushing,
    Done,
    /// The connection accepts no more. A response may arrive all the same.
    Refused,
}

impl Output {
    /// Sends as much as the connection accepts now.
    fn send(&mut self, cx: &mut Context<'_>, stream: &mut Stream) {
        loop {
            let mut stream = Pin::new(&mut *stream);
            let moved = match self.state {
                Sending::Writing => stream.as_mut().poll_write(cx, &self.bytes[self.sent..]),
                Sending::Flushing => stream.as_mut().poll_flush(cx).map_ok(|()| 0),
                Sending::Done | Sending::Refused => return,
            };
            self.state = match (moved, self.state) {
                (Poll::Pending, _) => return,
                (Poll::Ready(Ok(0)), Sending::Flushing) => Sending::Done,
                (Poll::Ready(Ok(moved @ 1..)), _) => {
                    self.sent += moved;
                    if self.sent < self.bytes.len() { Sending::Writing } else { Sending::Flushing }
                }
                (Poll::Ready(_), _) => Sending::Refused,
            };
        }
    }
}

thread_local! {
    /// The thread's buffer, while no response uses it.
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Bytes that arrived and are not decoded yet. They are in a thread's buffer while something is done with them, and in
/// a small block while the connection is silent.
#[derive(Default)]
struct Input {
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    parked: Vec<u8>,
}

impl Input {
    /// Takes the thread's buffer.
    fn open(&mut self) {
        if self.buffer.is_some() {
            return;
        }
        let spare = SPARE.try_with(Cell::take).ok().flatten();
        let mut buffer = spare.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice());
        (self.start, self.end) = (0, self.parked.len());
        buffer[..self.end].copy_from_slice(&self.parked);
        self.parked = Vec::new();
        self.buffer = Some(buffer);
    }

    /// Gives the thread's buffer back.
    fn park(&mut self) {
        self.parked = self.unread().to_vec();
        (self.start, self.end) = (0, 0);
        // The buffer is dropped if the thread ends.
        let _ = SPARE.try_with(|spare| spare.set(self.buffer.take()));
    }

    fn unread(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&self.parked, |buffer| &buffer[self.start..self.end])
    }

    fn is_empty(&self) -> bool {
        self.unread().is_empty()
    }

    fn take(&mut self, length: usize) {
        self.start += length;
    }

    /// Reads what is there; 0 at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<usize>> {
        let Some(buffer) = &mut self.buffer else { return Poll::Ready(Err(io::ErrorKind::InvalidInput.into())) };
        buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let mut room = ReadBuf::new(&mut buffer[self.end..]);
        if room.remaining() == 0 {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        let Poll::Ready(read) = Pin::new(stream).poll_read(cx, &mut room) else {
            self.park();
            return Poll::Pending;
        };
        let length = room.filled().len();
        self.end += length;
        Poll::Ready(read.map(|()| length))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if self.buffer.is_some() {
            self.park();
        }
    }
}
