//! Probes over HTTP/1.1.

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderValue, Request, Uri, header, response::Parts};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{
    TrySendError,
    http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;

use super::{Error, Exchange, MAX_BODY, MAX_HEAD, Server, Session, dial};

impl Exchange for SendRequest<Full<Bytes>> {
    async fn exchange(&mut self, mut request: Request<()>) -> Result<Parts, Error> {
        // In HTTP/1.1 the authority stands in `Host`.
        let uri = std::mem::take(request.uri_mut());
        if let Some(host) = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
            request.headers_mut().insert(header::HOST, host);
        }
        *request.uri_mut() = uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
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

/// Opens a connection for HTTP/1.1.
pub(crate) async fn open(server: &Server) -> Result<Session<SendRequest<Full<Bytes>>>, Error> {
    let (stream, dialed) = dial(server, "http/1.1").await?;
    let (sender, connection) = Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
    Ok(Session { dialed, sender, closed: connection.without_shutdown().map(|end| end.map(drop).map_err(Error::from)).boxed() })
}
