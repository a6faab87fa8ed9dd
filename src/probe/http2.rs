//! Probes over HTTP/2. GOAWAY counts as the close, because a client must not start another request after it. Only the
//! plugin uses this module.

use bytes::Bytes;
use futures::FutureExt as _;
use h2::client::{Builder, SendRequest};
use http::{Request, response::Parts};
use tokio_util::either::Either;

use super::{Error, Exchange, MAX_BODY, MAX_HEAD, Server, Session, dial};

impl From<h2::Error> for Error {
    fn from(error: h2::Error) -> Self {
        Self::Http2(Box::new(error))
    }
}

impl Exchange for SendRequest<Bytes> {
    async fn exchange(&mut self, request: Request<()>) -> Result<Parts, Error> {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await?;
        let (response, _) = self.send_request(request, true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut read = 0;
        while let Some(piece) = body.data().await {
            let length = piece?.len();
            read += length;
            if read > MAX_BODY {
                return Err(Error::TooLong);
            }
            body.flow_control().release_capacity(length)?;
        }
        Ok(head)
    }
}

/// Opens a connection for HTTP/2; over `http://` with prior knowledge.
pub(crate) async fn open(server: &Server) -> Result<Session<SendRequest<Bytes>>, Error> {
    let (stream, dialed) = dial(server, "h2").await?;
    if let Either::Right(tls) = &stream
        && tls.get_ref().1.alpn_protocol() != Some(b"h2")
    {
        return Err(Error::NotOffered("HTTP/2"));
    }
    let mut builder = Builder::new();
    builder.enable_push(false).max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
    let (sender, connection) = builder.handshake(stream).await?;
    Ok(Session { dialed, sender, closed: connection.map(|end| Ok(end?)).boxed() })
}
