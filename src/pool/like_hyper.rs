//! The same bytes, read by this pool and by hyper's client: the same status and body, or an error of both.

use std::{
    future::poll_fn,
    task::{Poll, ready},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::either::Either;

use super::exchange::{Failure, Message, begin};

/// Status and body; `None` for any error.
type Outcome = Option<(u16, Vec<u8>)>;

/// A connection whose other side waits for a request, sends these bytes in pieces, and closes.
async fn connection(bytes: Vec<u8>, pieces: Vec<usize>) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
    let (mut server, _) = listener.accept().await.expect("a client");
    tokio::spawn(async move {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") && matches!(server.read_buf(&mut request).await, Ok(1..)) {}
        let mut rest = &bytes[..];
        for piece in pieces {
            let (now, later) = rest.split_at(piece.min(rest.len()));
            if server.write_all(now).await.is_err() {
                return;
            }
            // The reader gets the piece before the next one is sent, most of the time.
            tokio::task::yield_now().await;
            rest = later;
        }
        let _ = server.write_all(rest).await;
        let _ = server.shutdown().await;
        // A reset would discard what the client has not read.
        while matches!(server.read(&mut [0; 64]).await, Ok(1..)) {}
    });
    client
}

async fn ours(bytes: Vec<u8>, pieces: Vec<usize>) -> Outcome {
    let stream = Either::Left(connection(bytes, pieces).await);
    let message: Message = http::Request::get("/metrics").header("host", "node").body(Bytes::new()).expect("a request");
    let (head, mut flow) = begin(stream, &message).await.ok()?;
    let mut body = Vec::new();
    let mut sink = |piece: &[u8]| {
        body.extend_from_slice(piece);
        Ok(())
    };
    let read = poll_fn(|cx| {
        loop {
            if flow.pass(&mut sink)? {
                return Poll::Ready(Ok::<_, Failure>(()));
            }
            ready!(flow.poll_more(cx))?;
        }
    });
    read.await.ok()?;
    Some((head.status.as_u16(), body))
}

async fn hypers(bytes: Vec<u8>, pieces: Vec<usize>) -> Outcome {
    let stream = connection(bytes, pieces).await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let request = http::Request::get("/metrics").header("host", "node").body(Empty::<Bytes>::new()).expect("a request");
    let response = sender.send_request(request).await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.into_body().collect().await.ok()?.to_bytes().to_vec()))
}

fn chunked(body: &[u8], sizes: &[usize], extension: &str, trailer: &str) -> Vec<u8> {
    let mut coded = Vec::new();
    let mut rest = body;
    for size in sizes.iter().copied().chain(std::iter::once(usize::MAX)) {
        let (now, later) = rest.split_at(size.min(rest.len()));
        if !now.is_empty() {
            coded.extend_from_slice(format!("{:x}{extension}\r\n", now.len()).as_bytes());
            coded.extend_from_slice(now);
            coded.extend_from_slice(b"\r\n");
        }
        rest = later;
    }
    coded.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
    coded
}

prop_compose! {
    fn response()(
        before in prop_oneof![4 => Just(""), 1 => Just("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"), 1 => Just("HTTP/1.1 100 Continue\r\n\r\n")],
        version in prop_oneof![6 => Just("HTTP/1.1"), 1 => Just("HTTP/1.0")],
        status in prop_oneof![6 => Just("200 OK"), 1 => Just("204 No Content"), 1 => Just("304 Not Modified"), 1 => Just("503 Service Unavailable"), 1 => Just("200")],
        fields in prop::collection::vec(prop_oneof![Just("content-type: text/plain\r\n"), Just("Connection: close\r\n"), Just("Connection: keep-alive\r\n"), Just("x-empty:\r\n")], 0..4),
        length in prop_oneof![6 => Just(Some(0)), 2 => Just(None), 1 => (-3_isize..3).prop_map(Some)],
        twice in prop::bool::weighted(0.1),
        coding in prop_oneof![3 => Just(""), 3 => Just("Transfer-Encoding: chunked\r\n"), 1 => Just("transfer-encoding: gzip, Chunked\r\n")],
        body in prop::collection::vec(prop::sample::select(b"ab\r\n0;:\xff".to_vec()), 0..3000),
        sizes in prop::collection::vec(1_usize..900, 0..6),
        extension in prop_oneof![4 => Just(""), 1 => Just(";a=b"), 1 => Just(" ")],
        trailer in prop_oneof![4 => Just(""), 1 => Just("x-sum: 1\r\n")],
    ) -> Vec<u8> {
        let coded = if coding.is_empty() { body.clone() } else { chunked(&body, &sizes, extension, trailer) };
        let mut bytes = format!("{before}{version} {status}\r\n{}{coding}", fields.concat()).into_bytes();
        if let Some(off) = length.filter(|_| coding.is_empty()) {
            let length = body.len().saturating_add_signed(off);
            for _ in 0..=usize::from(twice) {
                bytes.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
            }
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&coded);
        bytes
    }
}

/// A change of one byte, or the loss of the rest.
#[derive(Clone, Debug)]
enum Damage {
    None,
    Changed(prop::sample::Index, u8),
    Lost(prop::sample::Index),
    Cut(prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        2 => Just(Damage::None),
        2 => (at(), prop::sample::select(b"\r\n:;, 0f\0\xff".to_vec())).prop_map(|(at, byte)| Damage::Changed(at, byte)),
        1 => at().prop_map(Damage::Lost),
        1 => at().prop_map(Damage::Cut),
    ]
}

fn damaged(mut bytes: Vec<u8>, damage: &Damage) -> Vec<u8> {
    match damage {
        Damage::None => {}
        Damage::Changed(at, byte) => {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        Damage::Lost(at) => drop(bytes.remove(at.index(bytes.len()))),
        Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn a_response_is_read_as_hyper_reads_it(
        bytes in response(),
        damage in damage(),
        pieces in prop::collection::vec(1_usize..400, 0..8),
    ) {
        let bytes = damaged(bytes, &damage);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (ours, hypers) = runtime.block_on(async {
            (ours(bytes.clone(), pieces.clone()).await, hypers(bytes.clone(), pieces.clone()).await)
        });
        prop_assert_eq!(ours, hypers, "{}", String::from_utf8_lossy(&bytes));
    }
}

/// Number of responses: `IDLECONN_RESPONSES`, or 1,000.
fn cases() -> u32 {
    std::env::var("IDLECONN_RESPONSES").ok().and_then(|number| number.parse().ok()).unwrap_or(1000)
}
