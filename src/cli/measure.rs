//! Measurement of a server for `probe` and `path`, over several connections at the same time.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, uri::Authority};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::lookup_host, time::sleep};
use url::Url;

use super::{Error, progress::Progress};
use crate::{
    api::GoDuration,
    decide::measured::{Advertised, Requests, Spread},
    probe::{self, Ask, Observation, Opened, Server, http1, http2, trust},
};

/// Time between the first requests of parallel connections. A server that checks its connections at intervals then closes them at different
/// points of the interval.
const STAGGER: Duration = Duration::from_millis(150);

/// Options of the connections to servers.
#[derive(clap::Args, Debug)]
pub struct Reach {
    /// Number of parallel connections to each URL, each with one request.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub connections: u32,
    /// Maximum time that a connection is left idle; by default 6m, or a little longer than --expect.
    #[arg(long, value_name = "TIME")]
    pub max_wait: Option<GoDuration>,
    /// Accept any certificate.
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
    /// PEM file with the CA certificates of the servers; by default those of the system.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Header field of each request, such as "Authorization: Bearer abc".
    #[arg(long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// Host name for the Host field and for TLS; by default that of the URL.
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
}

/// An HTTP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
pub enum Version {
    /// HTTP/1.1.
    #[strum(serialize = "HTTP/1.1")]
    Http1,
    /// HTTP/2; over http:// with prior knowledge.
    #[strum(serialize = "HTTP/2")]
    Http2,
}

/// Measurement of a server in one HTTP version.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Time that idle connections stayed open.
    pub idle: Spread,
    /// The connections, in the order of their start.
    pub connections: Vec<Observation>,
    /// `Keep-Alive` field of the first answer that has one.
    pub advertised: Option<Advertised>,
    /// Requests that one connection took; `None` without `--requests`.
    pub requests: Option<Requests>,
    /// Why some of the connections were not measured.
    pub problem: Option<String>,
}

impl Measured {
    /// Returns the median of a time over all connections.
    fn median(&self, of: impl Fn(&Opened) -> Duration) -> Duration {
        let mut all: Vec<_> = self.connections.iter().map(|connection| of(&connection.opened)).collect();
        all.sort_unstable();
        all.get((all.len() - 1) / 2).copied().unwrap_or_default()
    }

    /// Returns the time of the TCP handshake.
    pub fn connect(&self) -> Duration {
        self.median(|opened| opened.connect)
    }

    /// Returns the time of the TLS handshake; `None` over http://.
    pub fn tls(&self) -> Option<Duration> {
        self.connections.first()?.opened.tls?;
        Some(self.median(|opened| opened.tls.unwrap_or_default()))
    }

    /// Returns the time that a request on an open connection saves: TCP and TLS.
    pub fn reuse_saves(&self) -> Duration {
        self.median(|opened| opened.connect + opened.tls.unwrap_or_default())
    }
}

/// Checked options of a measurement.
pub struct Prober {
    connections: u32,
    /// Maximum time that a connection is left idle.
    pub max_wait: Duration,
    tls: Arc<ClientConfig>,
    headers: HeaderMap,
    host: Option<String>,
}

impl Reach {
    /// Checks the options. `default_wait` is used without `--max-wait`.
    pub fn prober(&self, default_wait: Duration) -> Result<Prober, Error> {
        let unusable = |error: rustls::Error| Error::Other(format!("the certificates cannot be used: {error}"));
        let tls = match &self.ca {
            _ if self.insecure => trust::any().map_err(unusable)?,
            Some(path) => {
                let pem = std::fs::read(path).map_err(|error| Error::File(path.clone(), error))?;
                trust::verified(Some(&pem)).map_err(unusable)?
            }
            None => trust::verified(None).map_err(unusable)?,
        };
        let mut headers = HeaderMap::new();
        for field in &self.headers {
            let (name, value) =
                read_field(field).ok_or_else(|| Error::Usage(format!("--header {field:?} is not NAME: VALUE")))?;
            headers.append(name, value);
        }
        let max_wait = self.max_wait.as_ref().and_then(GoDuration::get).unwrap_or(default_wait);
        if max_wait.is_zero() {
            return Err(Error::Usage("--max-wait must be more than 0s".into()));
        }
        Ok(Prober { connections: self.connections, max_wait, tls, headers, host: self.host.clone() })
    }
}

fn read_field(field: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = field.split_once(':')?;
    Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
}

impl Prober {
    /// Measures one server in one HTTP version. Connections are left idle for at most `max_wait`. If all connections fail, the error is that of the
    /// first.
    pub async fn measure(
        &self,
        url: &Url,
        version: Version,
        requests: Option<u32>,
        max_wait: Duration,
        progress: &Progress,
    ) -> Result<Measured, probe::Error> {
        let (server, ask) = self.target(url).await?;
        let (server, ask) = (&server, &ask);
        let each = (0..self.connections).map(|n| async move {
            sleep(STAGGER * n).await;
            let mut waiting = progress.connection();
            let opened = || waiting.begin();
            match version {
                Version::Http1 => probe::idle(http1::open(server), ask, max_wait, opened).await,
                Version::Http2 => probe::idle(http2::open(server), ask, max_wait, opened).await,
            }
        });
        let counted = async {
            match (requests, version) {
                (None, _) => Ok(None),
                (Some(most), Version::Http1) => probe::requests(http1::open(server), ask, most).await.map(Some),
                (Some(most), Version::Http2) => probe::requests(http2::open(server), ask, most).await.map(Some),
            }
        };
        let (all, counted) = futures::future::join(join_all(each), counted).await;
        let total = all.len();
        let (mut connections, mut failures) = (Vec::new(), Vec::new());
        for one in all {
            match one {
                Ok(observed) => connections.push(observed),
                Err(error) => failures.push(error),
            }
        }
        let Some(idle) = Spread::of(&connections.iter().map(|one| one.idled).collect::<Vec<_>>()) else {
            return Err(failures.swap_remove(0));
        };
        let some = failures.first().map(|first| format!("{} of {total} connections: {first}", failures.len()));
        let uncounted = counted.as_ref().err().map(|error| format!("--requests: {error}"));
        let problem = some.into_iter().chain(uncounted).reduce(|some, uncounted| format!("{some}; {uncounted}"));
        let advertised = connections.iter().find_map(|one| one.opened.advertised);
        Ok(Measured { idle, connections, advertised, requests: counted.ok().flatten(), problem })
    }

    /// Resolves a URL to a server and a request.
    async fn target(&self, url: &Url) -> Result<(Server, Ask), probe::Error> {
        let name = |kind| probe::Error::Name(std::io::Error::from(kind));
        let host = url.host_str().ok_or_else(|| name(std::io::ErrorKind::InvalidInput))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default().unwrap_or(80);
        let addresses: Vec<_> = lookup_host((host, port)).await.map_err(probe::Error::Name)?.collect();
        let shown = self.host.as_deref();
        let server_name = shown.map_or(host, |shown| shown.split(':').next().unwrap_or(shown)).to_owned();
        let tls = match url.scheme() {
            "https" => {
                let server_name = ServerName::try_from(server_name).map_err(|_| name(std::io::ErrorKind::InvalidInput))?;
                Some((self.tls.clone(), server_name))
            }
            _ => None,
        };
        let uri = uri(url, shown).ok_or_else(|| name(std::io::ErrorKind::InvalidInput))?;
        Ok((Server { addresses, tls }, Ask { uri, headers: self.headers.clone() }))
    }
}

/// Returns the URI of a request: without user, password and fragment, and with the other host name if there is one.
fn uri(url: &Url, host: Option<&str>) -> Option<Uri> {
    let own = || Some(&url[url::Position::BeforeHost..url::Position::AfterPort]);
    let authority: Authority = host.or_else(own)?.parse().ok()?;
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    Uri::builder().scheme(url.scheme()).authority(authority).path_and_query(path).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_url_without_credentials_and_fragment() {
        let of = |url: &str, host| uri(&Url::parse(url).expect("a URL"), host).expect("a request").to_string();
        assert_eq!(of("http://user:secret@gw:8080/a?b=c#d", None), "http://gw:8080/a?b=c");
        assert_eq!(of("https://[::1]", None), "https://[::1]/");
        assert_eq!(of("https://10.0.0.1:8443/x", Some("api.example")), "https://api.example/x");
    }

    #[test]
    fn a_header_field_has_a_name_and_a_value() {
        let read = |text: &str| read_field(text).map(|(name, value)| format!("{name}={}", value.to_str().unwrap_or_default()));
        assert_eq!(read("X-Tenant:  a:b ").as_deref(), Some("x-tenant=a:b"));
        for text in ["X-Tenant", ": value", "a b: c", "a: b\nc: d"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
