//! Probes over HTTP/1.1.

use std::{pin::Pin, time::Duration};

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderValue, Request, Uri, header, response::Parts};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{
    TrySendError,
    http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;

use super::{Ask, Error, Exchange, MAX_BODY, MAX_HEAD, Observation, Opened, Server, Session, dial};
use crate::decide::measured::Requests;

type Closed = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

impl Exchange for SendRequest<Full<Bytes>> {
    async fn exchange(&mut self, request: Request<()>) -> Result<Parts, Error> {
        self.ready().await?;
        let (head, mut body) =
            self.try_send_request(request.map(|()| Full::default())).await.map_err(TrySendError::into_error)?.into_parts();
        let mut read = 0;
        while let Some(piece) = body.frame().await {
            read += piece?.data_ref().map_or(0, Bytes::len);
            if read > MAX_BODY {
                return Err(Error::TooLong);
            }
        }
        Ok(head)
    }
}

/// Sends one request over one connection, then waits until the server closes it, at most `max_wait`. `opened` is called
/// when the connection becomes idle.
pub async fn idle(server: &Server, ask: &Ask, max_wait: Duration, opened: impl FnOnce(&Opened)) -> Result<Observation, Error> {
    let (ask, uri) = prepared(ask);
    super::idle(open(server), &ask, &uri, max_wait, opened).await
}

/// Sends up to `most` requests over one connection until the server closes it.
pub async fn requests(server: &Server, ask: &Ask, most: u32) -> Result<Requests, Error> {
    let (ask, uri) = prepared(ask);
    super::requests(open(server), &ask, &uri, most).await
}

async fn open(server: &Server) -> Result<Session<SendRequest<Full<Bytes>>, Closed>, Error> {
    let (stream, dialed) = dial(server, "http/1.1").await?;
    let (sender, connection) = Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
    Ok(Session { dialed, sender, closed: connection.without_shutdown().map(|end| end.map(drop).map_err(Error::from)).boxed() })
}

/// The request in HTTP/1.1 form: the authority moves to `Host`.
fn prepared(ask: &Ask) -> (Ask, Uri) {
    let path = ask.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::try_from(path).unwrap_or_default();
    let mut ask = ask.clone();
    let host = ask.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        ask.headers.insert(header::HOST, host);
    }
    (ask, uri)
}
