//! A response in progress and its connection, which counts as in use until the last byte.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::response;
use hyper::body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    Error, Pool, Shared,
    agent::{ActiveConnection, ConnectionKey},
    exchange::{Failure, Flow},
    statistics::Closed,
};

/// Takes a body piece by piece; an error ends the exchange.
pub type Sink<'a> = &'a mut (dyn FnMut(&[u8]) -> Result<(), Failure> + Send);

/// A response in progress. Dropping it early closes its connection, because the rest would be read as the next
/// response.
pub struct PendingResponse {
    pub head: response::Parts,
    flow: Flow,
    ending: Completion,
}

/// What happens to the connection at the end.
struct Completion {
    pool: Weak<Shared>,
    lent: Option<ActiveConnection>,
    place: ConnectionKey,
    keep_alive: bool,
}

impl PendingResponse {
    pub fn new(
        pool: &Pool,
        (head, flow): (response::Parts, Flow),
        lent: ActiveConnection,
        place: ConnectionKey,
        keep_alive: bool,
    ) -> Self {
        let ending = Completion { pool: Arc::downgrade(&pool.shared), lent: Some(lent), place, keep_alive };
        Self { head, flow, ending }
    }

    /// Passes the body on piece by piece, at most `most` bytes in total.
    pub async fn read(mut self, most: usize, sink: Sink<'_>) -> Result<response::Parts, Failure> {
        let mut length: usize = 0;
        while let Some(piece) = poll_fn(|cx| self.flow.poll_piece(cx)).await {
            let piece = piece.and_then(|piece| {
                length = length.saturating_add(piece.len());
                if length > most { Err(Failure::TooLarge) } else { sink(&piece) }
            });
            match piece {
                Ok(()) => {}
                Err(Failure::Enough) => {
                    self.ending.closed(Closed::Abandoned);
                    return Ok(self.head);
                }
                Err(failure) => {
                    self.ending.closed(Closed::Broken);
                    return Err(failure);
                }
            }
        }
        let Self { head, mut flow, mut ending } = self;
        if let Some(lent) = &ending.lent {
            lent.expect(length);
        }
        poll_fn(|cx| ending.poll(&mut flow, cx)).await;
        Ok(head)
    }

    /// The body, to be read as it arrives. It ends with an error after a time of `silence`.
    pub fn follow(self, silence: Duration) -> http::Response<Following> {
        let Self { head, flow, ending } = self;
        let over = Box::pin(sleep(silence));
        http::Response::from_parts(head, Following { flow, ending, silence, over, read: false })
    }
}

impl Completion {
    /// After the end of the body, keeps the connection for the next request or closes it.
    fn poll(&mut self, flow: &mut Flow, cx: &mut Context<'_>) -> Poll<()> {
        flow.poll_end(cx).map(|stream| {
            let Some(lent) = self.lent.take() else { return };
            match (stream.filter(|_| self.keep_alive), self.pool.upgrade()) {
                (Some(stream), Some(shared)) => {
                    lent.keep(self.place.clone(), stream);
                    shared.kept();
                }
                _ => drop(lent.closed(Closed::Done)),
            }
        })
    }

    fn closed(&mut self, why: Closed) {
        if let Some(lent) = self.lent.take() {
            lent.closed(why);
        }
    }
}

/// A body that is read as it arrives, without a total timeout.
pub struct Following {
    flow: Flow,
    ending: Completion,
    silence: Duration,
    over: Pin<Box<Sleep>>,
    /// The body was read to its end.
    read: bool,
}

impl Body for Following {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if this.ending.lent.is_none() {
            return Poll::Ready(None);
        }
        if !this.read {
            match this.flow.poll_piece(cx) {
                Poll::Ready(Some(Ok(piece))) => {
                    this.over.as_mut().reset(Instant::now() + this.silence);
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Poll::Ready(Some(Err(failure))) => {
                    let error = failure.told(&this.ending.place.0, 0);
                    this.ending.closed(Closed::Broken);
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => this.read = true,
                Poll::Pending => {}
            }
        }
        if this.read && this.ending.poll(&mut this.flow, cx).is_ready() {
            return Poll::Ready(None);
        }
        if this.over.as_mut().poll(cx).is_ready() {
            let error = Error::TimedOut(this.ending.place.0.clone(), this.silence);
            this.ending.closed(Closed::Broken);
            return Poll::Ready(Some(Err(error)));
        }
        Poll::Pending
    }
}
