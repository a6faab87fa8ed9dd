//! Opens the connection of a probe: TCP, then TLS with exactly one offered protocol.

use std::{io, sync::Arc, time::Duration};

use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use super::{Error, Server};

/// A TCP or TLS connection.
pub type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// How a connection was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialed {
    /// Duration of the TCP handshake.
    pub connect: Duration,
    /// Duration of the TLS handshake; `None` without TLS.
    pub tls: Option<Duration>,
}

/// Connects and offers only `protocol`, an ALPN name. The caller sets the timeout.
pub async fn dial(server: &Server, protocol: &'static str) -> Result<(Stream, Dialed), Error> {
    if server.addresses.is_empty() {
        return Err(Error::Connect(io::ErrorKind::AddrNotAvailable.into()));
    }
    let began = Instant::now();
    let tcp = TcpStream::connect(&*server.addresses).await.map_err(Error::Connect)?;
    tcp.set_nodelay(true).map_err(Error::Connect)?;
    let connect = began.elapsed();
    let Some((config, name)) = &server.tls else {
        return Ok((Either::Left(tcp), Dialed { connect, tls: None }));
    };
    let mut config = rustls::ClientConfig::clone(config);
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    // A resumed session would be faster than the handshake of a new client.
    config.resumption = rustls::client::Resumption::disabled();
    let began = Instant::now();
    let stream =
        TlsConnector::from(Arc::new(config)).connect(name.clone(), tcp).await.map_err(|error| refused(error, protocol))?;
    let tls = Some(began.elapsed());
    Ok((Either::Right(Box::new(stream)), Dialed { connect, tls }))
}

fn refused(error: io::Error, protocol: &'static str) -> Error {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => Error::NotOffered(protocol),
        _ => Error::Tls(error),
    }
}
