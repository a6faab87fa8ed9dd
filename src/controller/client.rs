//! The way to the API server: asked once, its clock listened to, and nothing written without the lease.

use std::{net::IpAddr, time::Duration};

use http::{Method, Request, header::DATE};
use ipnet::IpNet;
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
};
use rustls::pki_types::InvalidDnsNameError;
use tower::{BoxError, ServiceBuilder, service_fn};

use crate::{
    clock,
    leader::Leadership,
    pool::{Patience, Pool, Settings, Trust},
};

/// The API server's connections, among the pool's providers.
pub const PROVIDER: &str = "kubernetes";

/// The connections over which the Lease is renewed.
pub const LEASE_PROVIDER: &str = "kubernetes-lease";

/// The API server gives up an idle connection after 90 s (`IdleTimeout` in Kubernetes' `secure_serving.go`): this side is
/// the first, so that no request meets one that is about to be closed.
const SETTINGS: Settings = Settings {
    // Each watch keeps one for itself, and there may be one for each policy: a request that waits for a watch's would wait for ever.
    max_sockets: 4096,
    // Passes run side by side, each with a request at a time: what they leave idle is used by the next.
    max_free_sockets: 64,
    timeout: Duration::from_secs(60),
    keep_alive: true,
    keep_alive_delay: Duration::from_secs(30),
    free_socket_timeout: Duration::from_secs(60),
    max_socket_lifetime: Duration::from_secs(600),
};

const PATIENCE: Patience = Patience {
    connecting: Duration::from_secs(10),
    head: SETTINGS.timeout,
    // A watch is begun anew after 290 s at the latest, as kube asks for it.
    silence: Duration::from_secs(330),
};

/// Where the environment names a proxy.
const PROXIES: [&str; 3] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"];

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Tokens, certificates and CAs.
    #[error("{0}")]
    Config(#[from] kube::Error),
    /// Requests go where they are sent, and nowhere else.
    #[error(
        "a proxy between the operator and the API server is not supported; remove proxy-url from the kubeconfig, or list the API server in NO_PROXY"
    )]
    Proxy,
    /// Not a name that a certificate can hold.
    #[error("tls-server-name {0:?} is neither a host name nor an IP address; correct the kubeconfig")]
    Name(String, #[source] InvalidDnsNameError),
}

/// A client over this pool's connections, that asks once. kube's own would ask again up to 15 times, for a quarter of an hour each, and hold
/// a worker while it does: whoever asks here has a back-off of its own, and a 429 from the Eviction API is an answer. Every answer says what
/// time it is.
pub fn client(config: &Config, pool: &Pool) -> Result<Client, Error> {
    client_of(config, pool, PROVIDER, SETTINGS)
}

/// The same over connections of its own, for the Lease alone: however many watches there are, it is renewed.
pub fn lease_client(config: &Config, pool: &Pool) -> Result<Client, Error> {
    client_of(config, pool, LEASE_PROVIDER, Settings { max_sockets: 4, max_free_sockets: 2, ..SETTINGS })
}

fn client_of(config: &Config, pool: &Pool, provider: &'static str, settings: Settings) -> Result<Client, Error> {
    if let Some(proxy) = &config.proxy_url {
        let is_ours =
            |name: &str| std::env::var(name).is_ok_and(|value| value.parse::<http::Uri>().is_ok_and(|value| value == *proxy));
        let of_environment = PROXIES.iter().any(|name| is_ours(name) || is_ours(&name.to_lowercase()));
        let direct = std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy")).unwrap_or_default();
        // A proxy-url in the kubeconfig is meant for this very server.
        if !of_environment || !is_direct(&direct, &config.cluster_url) {
            return Err(Error::Proxy);
        }
    }
    pool.provider(provider).configure(settings);
    let (pool, trust) = (pool.clone(), trust(config, pool)?);
    let asked = service_fn(move |request: Request<Body>| {
        let (provider, trust) = (pool.provider(provider), trust.clone());
        async move {
            let (head, body) = request.into_parts();
            let request = Request::from_parts(head, body.collect_bytes().await.map_err(plain)?);
            let response = provider.follow(trust.as_ref(), request, PATIENCE).await?;
            if let Some(date) = response.headers().get(DATE).and_then(|date| date.to_str().ok()) {
                clock::heard(date);
            }
            Ok::<_, BoxError>(response)
        }
    });
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .service(asked);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// Whether `NO_PROXY` names a server, by the rules of Go's `httpproxy`: `*`, an address, a network, or a domain with all below it, each
/// but a network with an optional port.
fn is_direct(no_proxy: &str, server: &http::Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let port = server.port_u16().unwrap_or(if server.scheme_str() == Some("http") { 80 } else { 443 });
    let ip = host.parse::<IpAddr>().ok();
    no_proxy.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Ok(network) = entry.parse::<IpNet>() {
            return ip.is_some_and(|ip| network.contains(&ip));
        }
        if let Ok(address) = entry.parse::<IpAddr>() {
            return ip == Some(address);
        }
        let (name, wanted) =
            entry.rsplit_once(':').map_or((entry.as_str(), None), |(name, port)| (name, port.parse::<u16>().ok()));
        let name = name.trim_start_matches('[').trim_end_matches(']').trim_start_matches('*').trim_start_matches('.');
        let below = host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        below && !name.is_empty() && wanted.is_none_or(|wanted| wanted == port)
    })
}

/// None over plain HTTP, where there is nothing to check.
fn trust(config: &Config, pool: &Pool) -> Result<Option<Trust>, Error> {
    if config.cluster_url.scheme_str() != Some("https") {
        return Ok(None);
    }
    let name = config.tls_server_name.clone();
    let name = name.map(|name| name.clone().try_into().map_err(|error| Error::Name(name, error))).transpose()?;
    Ok(Some(pool.trust(config.rustls_client_config()?, name)))
}

/// The same, but it writes only while this process may act: the last look is right before a request leaves.
#[must_use]
pub fn led(client: &Client, leadership: Leadership) -> Client {
    let (namespace, client) = (client.default_namespace().to_owned(), client.clone());
    let guarded = service_fn(move |request: Request<Body>| {
        let may = matches!(*request.method(), Method::GET | Method::HEAD) || leadership.holds();
        let client = client.clone();
        async move {
            if !may {
                return Err("no change was sent to the API server: this replica does not hold the lease".into());
            }
            client.send(request).await.map_err(plain)
        }
    });
    Client::new(guarded, namespace)
}

/// What the layer below said, without that layer's wrapping: it is wrapped again above.
fn plain(error: kube::Error) -> BoxError {
    match error {
        kube::Error::Service(error) => error,
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_names_servers_as_gos_does() {
        for (list, server, direct) in [
            ("", "https://10.96.0.1", false),
            ("*", "https://10.96.0.1", true),
            ("10.96.0.1", "https://10.96.0.1:443", true),
            ("10.96.0.0/12", "https://10.96.0.1", true),
            ("10.97.0.0/16", "https://10.96.0.1", false),
            ("localhost, .svc,.cluster.local", "https://kubernetes.default.svc:443", true),
            ("svc", "https://kubernetes.default.svc", true),
            ("default.svc", "https://kubernetes-default.svc", false),
            ("api.example.com:6443", "https://api.example.com:6443", true),
            ("api.example.com:6443", "https://api.example.com", false),
            ("API.Example.com", "https://api.example.com", true),
            ("fd00::1", "https://[fd00::1]:6443", true),
            ("fd00::/8", "https://[fd00::1]:6443", true),
            (",,", "https://api.example.com", false),
        ] {
            assert_eq!(is_direct(list, &server.parse().expect("a URI")), direct, "{list} {server}");
        }
    }
}
