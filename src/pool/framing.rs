//! Where the body of a response ends: RFC 9112, section 6.3, and section 7.1 for chunks.

use http::{
    HeaderMap, Method, StatusCode, Version,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    response,
};
use httparse::Status;

use super::exchange::{Failure, MAX_FIELDS, Sink};

/// Most bytes of the line that begins a chunk.
const MAX_SIZE_LINE: usize = 4 * 1024;
/// Most bytes of all trailers; hyper has the same limit.
const MAX_TRAILERS: usize = 16 * 1024;

/// A response whose end cannot be known.
#[derive(Debug)]
pub struct Malformed;

/// How the rest of a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// This many bytes are left.
    Length(u64),
    /// The body ends with the connection.
    UntilClose,
    /// The connection ended, and so did the body.
    Closed,
    /// In chunks.
    Chunked(Chunk),
}

/// The next part of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// The line with the size.
    Size,
    /// This many bytes of data.
    Data(u64),
    /// The end of the line after the data.
    LineEnd,
    /// Trailers and the empty line after them.
    Trailers,
    /// Nothing.
    Ended,
}

impl Framing {
    /// How the body of this response is delimited.
    pub fn of(method: &Method, head: &response::Parts) -> Result<Self, Malformed> {
        if method == Method::HEAD || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Self::Length(0));
        }
        // A coding overrides a length.
        let Some(codings) = head.headers.get_all(TRANSFER_ENCODING).iter().next_back() else {
            return Ok(content_length(&head.headers)?.map_or(Self::UntilClose, Self::Length));
        };
        // HTTP/1.0 has no codings: something on the way does not understand what it passes on.
        if head.version == Version::HTTP_10 {
            return Err(Malformed);
        }
        let is_chunked = codings
            .to_str()
            .is_ok_and(|codings| codings.rsplit(',').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked")));
        Ok(if is_chunked { Self::Chunked(Chunk::Size) } else { Self::UntilClose })
    }

    /// Whether the end can be seen without the end of the connection.
    pub fn ends_itself(self) -> bool {
        !matches!(self, Self::UntilClose | Self::Closed)
    }

    /// Whether the whole body was decoded.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Length(0) | Self::Closed | Self::Chunked(Chunk::Ended))
    }

    /// The connection ended.
    pub fn close(&mut self) -> Result<(), Malformed> {
        if *self != Self::UntilClose {
            return Err(Malformed);
        }
        *self = Self::Closed;
        Ok(())
    }

    /// Passes on the data in these bytes. Returns the number of bytes that are done with.
    pub fn decode(&mut self, bytes: &[u8], sink: Sink<'_>) -> Result<usize, Failure> {
        match self {
            Self::Length(left) => data(left, bytes, sink),
            Self::UntilClose => {
                let mut any = u64::MAX;
                data(&mut any, bytes, sink)
            }
            Self::Closed => Ok(0),
            Self::Chunked(chunk) => {
                let mut used = 0;
                while let Some(step) = chunk.decode(&bytes[used..], sink)? {
                    used += step;
                }
                Ok(used)
            }
        }
    }
}

/// Passes on at most `left` bytes.
fn data(left: &mut u64, bytes: &[u8], sink: Sink<'_>) -> Result<usize, Failure> {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    if length > 0 {
        sink(&bytes[..length])?;
        *left -= length as u64;
    }
    Ok(length)
}

impl Chunk {
    /// Decodes one part and returns its length; `None` if more bytes are needed, or none.
    fn decode(&mut self, bytes: &[u8], sink: Sink<'_>) -> Result<Option<usize>, Failure> {
        let (next, used) = match *self {
            // The parser takes a line without digits for a size of 0.
            Self::Size if bytes.first().is_some_and(|first| !first.is_ascii_hexdigit()) => return Err(Failure::BrokenOff),
            Self::Size => match httparse::parse_chunk_size(bytes).map_err(|_| Failure::BrokenOff)? {
                Status::Complete((used, 0)) => (Self::Trailers, used),
                Status::Complete((used, size)) => (Self::Data(size), used),
                Status::Partial if bytes.len() > MAX_SIZE_LINE => return Err(Failure::BrokenOff),
                Status::Partial => return Ok(None),
            },
            Self::Data(_) if bytes.is_empty() => return Ok(None),
            Self::Data(mut left) => {
                let used = data(&mut left, bytes, sink)?;
                (if left == 0 { Self::LineEnd } else { Self::Data(left) }, used)
            }
            Self::LineEnd => match bytes {
                [b'\r', b'\n', ..] => (Self::Size, 2),
                [] | [b'\r'] => return Ok(None),
                _ => return Err(Failure::BrokenOff),
            },
            Self::Trailers => match trailers(bytes)? {
                Some(used) => (Self::Ended, used),
                None => return Ok(None),
            },
            Self::Ended => return Ok(None),
        };
        *self = next;
        Ok(Some(used))
    }
}

/// The length of the trailers, which are not used; `None` if more bytes are needed.
fn trailers(bytes: &[u8]) -> Result<Option<usize>, Failure> {
    let is_complete = bytes.starts_with(b"\r\n") || memchr::memmem::find(bytes, b"\r\n\r\n").is_some();
    if !is_complete {
        return if bytes.len() > MAX_TRAILERS { Err(Failure::BrokenOff) } else { Ok(None) };
    }
    match httparse::parse_headers(bytes, &mut [httparse::EMPTY_HEADER; MAX_FIELDS]) {
        Ok(Status::Complete((used, _))) => Ok(Some(used)),
        Ok(Status::Partial) | Err(_) => Err(Failure::BrokenOff),
    }
}

/// The length that all fields agree on.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut length = None;
    for field in headers.get_all(CONTENT_LENGTH) {
        for value in field.to_str().map_err(|_| Malformed)?.split(',').map(str::trim) {
            // `parse` accepts a sign.
            if !value.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Malformed);
            }
            let value: u64 = value.parse().map_err(|_| Malformed)?;
            if length.is_some_and(|other| other != value) {
                return Err(Malformed);
            }
            length = Some(value);
        }
    }
    Ok(length)
}
