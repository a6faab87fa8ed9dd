//! Connections to nodes: names, TCP, TLS.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use rustls_platform_verifier::BuilderVerifierExt as _;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use url::{Host, Url};

use super::TlsIdentity;

/// A TCP or TLS connection.
pub type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Whether an idle connection is usable: the other side neither closed it nor sent unrequested bytes.
pub fn rests(stream: &Stream) -> bool {
    let tcp = match stream {
        Either::Left(tcp) => tcp,
        Either::Right(tls) => tls.get_ref().0,
    };
    matches!(tcp.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Addresses of Services, from the API server. DNS is not used for these names.
#[derive(Clone, Default)]
pub struct Names(Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>);

impl Names {
    pub fn insert(&self, host: &str, addresses: Vec<SocketAddr>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), addresses);
    }

    pub fn remove(&self, host: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned();
        match known {
            Some(addresses) => Ok(addresses.into_iter().map(|address| SocketAddr::new(address.ip(), port)).collect()),
            None => Ok(tokio::net::lookup_host((host, port)).await?.collect()),
        }
    }
}

/// Connects. TLS errors hold a `rustls::Error`. `probes`: silence after which TCP keep-alive begins to probe the other
/// side.
pub async fn connect(names: &Names, trust: Option<&TlsIdentity>, url: &Url, probes: Option<Duration>) -> io::Result<Stream> {
    let unusable = || io::Error::from(io::ErrorKind::InvalidInput);
    let port = url.port_or_known_default().ok_or_else(unusable)?;
    let (addresses, name) = match url.host().ok_or_else(unusable)? {
        Host::Ipv4(ip) => (vec![SocketAddr::from((ip, port))], ServerName::from(IpAddr::V4(ip))),
        Host::Ipv6(ip) => (vec![SocketAddr::from((ip, port))], ServerName::from(IpAddr::V6(ip))),
        Host::Domain(host) => {
            let name = ServerName::try_from(host.to_owned()).map_err(|_| unusable())?;
            (names.resolve(host, port).await?, name)
        }
    };
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                if let Some(after) = probes {
                    SockRef::from(&tcp).set_tcp_keepalive(&TcpKeepalive::new().with_time(after))?;
                }
                return Ok(match trust {
                    None => Either::Left(tcp),
                    Some(TlsIdentity { config, name: other, .. }) => {
                        let name = other.clone().unwrap_or(name);
                        Either::Right(Box::new(TlsConnector::from(config.clone()).connect(name, tcp).await?))
                    }
                });
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// TLS settings that trust only this CA, or the system's CAs if there is none.
pub fn tls(ca: Option<&[u8]>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match ca {
        None => builder.with_platform_verifier()?,
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                roots.add(certificate.map_err(|_| rustls::Error::General("not PEM".to_owned()))?)?;
            }
            if roots.is_empty() {
                return Err(rustls::Error::General("no certificate".to_owned()));
            }
            builder.with_root_certificates(roots)
        }
    };
    Ok(spoken(builder.with_no_client_auth()))
}

/// Announces HTTP/1.1 in the TLS handshake.
pub fn spoken(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}
