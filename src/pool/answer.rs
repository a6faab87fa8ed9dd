//! A response in progress and its connection, which counts as in use until the last byte.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::response;
use hyper::body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    Error, Pool, Shared,
    agent::{ActiveConnection, ConnectionKey},
    exchange::{Failure, Flow, Sink},
    statistics::Closed,
};

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
        let mut counted = |piece: &[u8]| {
            length = length.saturating_add(piece.len());
            if length > most { Err(Failure::TooLarge) } else { sink(piece) }
        };
        let read = poll_fn(|cx| {
            loop {
                if self.flow.pass(&mut counted)? {
                    return Poll::Ready(Ok(()));
                }
                ready!(self.flow.poll_more(cx))?;
            }
        });
        match read.await {
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
        let Self { head, flow, mut ending } = self;
        if let Some(lent) = &ending.lent {
            lent.expect(length);
        }
        ending.completed(flow);
        Ok(head)
    }

    /// The body, to be read as it arrives. It ends with an error after a time of `silence`.
    pub fn follow(self, silence: Duration) -> http::Response<Following> {
        let Self { head, flow, ending } = self;
        let over = Box::pin(sleep(silence));
        http::Response::from_parts(head, Following { flow: Some(flow), ending, silence, over })
    }
}

impl Completion {
    /// After the end of the body, keeps the connection for the next request or closes it.
    fn completed(&mut self, flow: Flow) {
        let Some(lent) = self.lent.take() else { return };
        match (flow.end().filter(|_| self.keep_alive), self.pool.upgrade()) {
            (Some(stream), Some(shared)) => {
                lent.keep(self.place.clone(), stream);
                shared.kept();
            }
            _ => drop(lent.closed(Closed::Done)),
        }
    }

    fn closed(&mut self, why: Closed) {
        if let Some(lent) = self.lent.take() {
            lent.closed(why);
        }
    }
}

/// A body that is read as it arrives, without a total timeout.
pub struct Following {
    /// `None` after the end.
    flow: Option<Flow>,
    ending: Completion,
    silence: Duration,
    over: Pin<Box<Sleep>>,
}

impl Following {
    /// Everything that arrived; `None` at the end of the body.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        let Some(flow) = &mut self.flow else { return Poll::Ready(None) };
        let mut piece = Vec::new();
        loop {
            let has_ended = flow.pass(&mut |part| {
                piece.extend_from_slice(part);
                Ok(())
            })?;
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(piece.into())));
            }
            if has_ended {
                if let Some(flow) = self.flow.take() {
                    self.ending.completed(flow);
                }
                return Poll::Ready(None);
            }
            ready!(flow.poll_more(cx))?;
        }
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.flow = None;
        self.ending.closed(Closed::Broken);
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for Following {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match this.poll_piece(cx) {
            Poll::Ready(Some(Ok(piece))) => {
                this.over.as_mut().reset(Instant::now() + this.silence);
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Poll::Ready(Some(Err(failure))) => {
                let error = failure.told(&this.ending.place.0, 0);
                this.fail(error)
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if this.over.as_mut().poll(cx).is_ready() => {
                let error = Error::TimedOut(this.ending.place.0.clone(), this.silence);
                this.fail(error)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
