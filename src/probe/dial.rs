//! Opens the connection of a probe: TCP, then TLS with exactly one offered protocol.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use super::{Error, Server};

/// A TCP or TLS connection.
pub type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// How a connection was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialed {
    /// The address that accepted.
    pub address: SocketAddr,
    /// Duration of the TCP handshake.
    pub connect: Duration,
    /// Duration of the TLS handshake; `None` without TLS.
    pub tls: Option<Duration>,
}

/// Connects and offers only `protocol`, an ALPN name. The caller sets the timeout.
pub async fn dial(server: &Server, protocol: &'static str) -> Result<(Stream, Dialed), Error> {
    let began = Instant::now();
    let (tcp, address) = accepted(&server.addresses).await?;
    tcp.set_nodelay(true).map_err(Error::Connect)?;
    let connect = began.elapsed();
    let Some((config, name)) = &server.tls else {
        return Ok((Either::Left(tcp), Dialed { address, connect, tls: None }));
    };
    let mut config = rustls::ClientConfig::clone(config);
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    // A resumed session would be faster than the handshake of a new client.
    config.resumption = rustls::client::Resumption::disabled();
    let began = Instant::now();
    let stream =
        TlsConnector::from(Arc::new(config)).connect(name.clone(), tcp).await.map_err(|error| refused(error, protocol))?;
    let tls = Some(began.elapsed());
    Ok((Either::Right(Box::new(stream)), Dialed { address, connect, tls }))
}

async fn accepted(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), Error> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for &address in addresses {
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok((tcp, address)),
            Err(error) => failure = error,
        }
    }
    Err(Error::Connect(failure))
}

fn refused(error: io::Error, protocol: &'static str) -> Error {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => Error::NotOffered(protocol),
        _ => Error::Tls(error),
    }
}
