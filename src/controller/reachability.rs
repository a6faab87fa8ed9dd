//! Which addresses the operator connects to on a policy's behalf: the guard against server-side request forgery (SSRF).
//!
//! A policy, a node, an `EndpointSlice` and a saved original can all name any address, and their authors may be hostile. An
//! address is used only if an administrator lists it in `--allow-endpoints`, or if the API server reports at the time of use that
//! it belongs to the policy's own namespace. Of an address that a node names, only scheme, host and port are used.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use url::{Host, Url};

use super::{Context, Error, in_time};
use crate::{decide::restart::eviction::is_name, pool::Provider};

/// Scheme, host and port of an address that another party wrote; path, query and credentials are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: Host,
    port: u16,
}

impl Origin {
    /// Parses an address; `None` if it is not an HTTP address.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
        let host = match url.host()? {
            Host::Ipv4(ip) => Host::Ipv4(ip),
            // An IPv4 address may be written as an IPv6 address.
            Host::Ipv6(ip) => ip.to_ipv4_mapped().map_or(Host::Ipv6(ip), Host::Ipv4),
            Host::Domain(name) => Host::Domain(name.to_owned()),
        };
        Some(Self { scheme: url.scheme().to_owned(), host, port: url.port_or_known_default()? })
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

/// Returns the DNS name of a pod under its headless Service, `hostname.subdomain.namespace.svc`, without the cluster's domain.
/// `None` if the pod has no such name.
#[must_use]
pub fn pod_name_in_dns(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    Some(format!("{}.{}.{}.svc", spec.hostname.as_ref()?, spec.subdomain.as_ref()?, pod.namespace()?))
}

/// Returns the address of a node, as its own cluster names it, if it is permitted: an address in `--allow-endpoints`, of a pod of
/// the policy's namespace, or of such a pod's host with a port that the pod publishes there (`hostPort`).
pub async fn named_by_a_node(ctx: &Context, namespace: &str, provider: &Provider, text: &str) -> Option<String> {
    let origin = Origin::parse(text)?;
    if let Ok(listed) = ctx.settings.allow_endpoints.check(&origin.to_string()) {
        return Some(listed);
    }
    let ip = match &origin.host {
        Host::Ipv4(ip) => IpAddr::V4(*ip),
        Host::Ipv6(ip) => IpAddr::V6(*ip),
        Host::Domain(host) => {
            let pod = ctx.pods.named(namespace, host.split('.').next()?).await.ok()??;
            if !is_name(host, pod.dns.as_ref()?) {
                return None;
            }
            // DNS is not used: it could return any address.
            provider.name(host, pod.addresses.iter().map(|ip| SocketAddr::new(*ip, 0)).collect());
            return (!pod.addresses.is_empty()).then(|| origin.to_string());
        }
    };
    let is_pods = !ctx.pods.at(namespace, ip).await.ok()?.is_empty()
        || !ctx.pods.publishing(namespace, ip, origin.port).await.ok()?.is_empty();
    is_pods.then(|| origin.to_string())
}

/// Returns the same URL at the address of the pod in which the node reports to run. It is for nodes whose own address is a load
/// balancer or a host name, which the API server does not know. Every pod of the policy's namespace is permitted. `None` if there
/// is no such pod.
pub async fn of_its_pod(ctx: &Context, namespace: &str, pod: &str, text: &str) -> Option<String> {
    if pod.is_empty() {
        return None;
    }
    let origin = Origin::parse(text)?;
    let pod = ctx.pods.named(namespace, pod).await.ok()??;
    let host = match pod.addresses.first()? {
        IpAddr::V4(ip) => Host::Ipv4(*ip),
        IpAddr::V6(ip) => Host::Ipv6(*ip),
    };
    Some(Origin { host, ..origin }.to_string())
}

/// Returns the permitted address of a node as socket addresses. Only a name in `--allow-endpoints` is looked up in DNS.
pub async fn addresses(ctx: &Context, namespace: &str, provider: &Provider, text: &str) -> Option<Vec<SocketAddr>> {
    let permitted = Origin::parse(&named_by_a_node(ctx, namespace, provider, text).await?)?;
    let port = permitted.port;
    match &permitted.host {
        Host::Ipv4(ip) => Some(vec![SocketAddr::from((*ip, port))]),
        Host::Ipv6(ip) => Some(vec![SocketAddr::from((*ip, port))]),
        Host::Domain(host) if ctx.settings.allow_endpoints.check(&permitted.to_string()).is_ok() => {
            Some(tokio::net::lookup_host((host.as_str(), port)).await.ok()?.collect())
        }
        Host::Domain(host) => {
            let pod = ctx.pods.named(namespace, host.split('.').next()?).await.ok()??;
            Some(pod.addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect())
        }
    }
}

/// Kind of an endpoint of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The address belongs to a pod of the namespace, or is in `--allow-endpoints`.
    Known,
    /// The pod does not exist any more.
    Gone,
    /// The API server does not report that the address belongs to the namespace.
    Foreign,
}

/// Checks whether an endpoint of a Service is permitted. Anyone who may write Endpoints or `EndpointSlices` can put any address
/// into them (CVE-2021-25740), so the slice alone is not enough. `pod` is the UID and the name from the slice.
pub async fn endpoint(
    ctx: &Context,
    namespace: &str,
    pod: Option<&(String, String)>,
    address: SocketAddr,
) -> Result<Endpoint, Error> {
    let listed = ctx.settings.allow_endpoints.check(&format!("http://{address}")).is_ok();
    if listed || !ctx.pods.at(namespace, address.ip()).await?.is_empty() {
        return Ok(Endpoint::Known);
    }
    // The watch of pods may be behind the slice.
    let Some((uid, name)) = pod else { return Ok(Endpoint::Foreign) };
    Ok(match in_time(Api::<Pod>::namespaced(ctx.client.clone(), namespace).get_opt(name)).await? {
        None => Endpoint::Gone,
        Some(pod) if pod.uid().as_deref() != Some(uid) => Endpoint::Gone,
        Some(pod) if addresses_of(&pod).contains(&address.ip()) => Endpoint::Known,
        Some(_) => Endpoint::Foreign,
    })
}

/// Returns where a pod's ports are published, as the API server reports it: each address of its host with each `hostPort`.
#[must_use]
pub fn published_at(pod: &Pod) -> Vec<(IpAddr, u16)> {
    let status = pod.status.as_ref();
    let hosts =
        status.into_iter().flat_map(|status| status.host_ips.iter().flatten().map(|host| &host.ip).chain(&status.host_ip));
    let hosts: BTreeSet<IpAddr> = hosts.filter_map(|ip| ip.parse().ok()).collect();
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| port.host_port);
    let ports: Vec<u16> = ports.filter_map(|port| u16::try_from(port).ok()).filter(|port| *port > 0).collect();
    hosts.into_iter().flat_map(|host| ports.iter().map(move |port| (host, *port))).collect()
}

/// Returns the addresses of a pod, as the API server reports them.
#[must_use]
pub fn addresses_of(pod: &Pod) -> Vec<IpAddr> {
    let status = pod.status.as_ref();
    let all = status.into_iter().flat_map(|status| status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip));
    all.filter_map(|ip| ip.parse().ok()).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn of_a_foreign_address_only_scheme_host_and_port_are_kept() {
        for (text, kept) in [
            ("http://10.0.0.1:51080", Some("http://10.0.0.1:51080")),
            ("http://10.0.0.1/admin/quit?confirm=yes&", Some("http://10.0.0.1:80")),
            ("https://user:secret@10.0.0.1", Some("https://10.0.0.1:443")),
            ("http://[::ffff:10.0.0.1]:80", Some("http://10.0.0.1:80")),
            ("http://[fd00::7]:51080", Some("http://[fd00::7]:51080")),
            ("http://0x0a.1:80", Some("http://10.0.0.1:80")),
            ("HTTP://AIS-0.ais.svc#x", Some("http://ais-0.ais.svc:80")),
            ("file:///etc/passwd", None),
            ("gopher://10.0.0.1", None),
            ("10.0.0.1:80", None),
            ("", None),
        ] {
            assert_eq!(Origin::parse(text).map(|origin| origin.to_string()).as_deref(), kept, "{text}");
        }
    }

    #[test]
    fn a_name_in_dns_is_the_whole_name_of_a_pod() {
        let pod: Pod = from_value(
            json!({"metadata": {"name": "ais-0", "namespace": "here"}, "spec": {"hostname": "ais-0", "subdomain": "ais", "containers": []}}),
        )
        .expect("a pod");
        let name = pod_name_in_dns(&pod).expect("a name");
        for (host, is) in [
            ("ais-0.ais.here.svc", true),
            ("AIS-0.ais.here.svc.cluster.local.", true),
            ("ais-0.ais.here.svc.other.example", true),
            ("ais-0.ais.elsewhere.svc.cluster.local", false),
            ("ais-0.ais.here.svcx", false),
            ("ais-0.ais.here", false),
            ("ais-0", false),
            ("ais-1.ais.here.svc", false),
        ] {
            assert_eq!(is_name(host, &name), is, "{host}");
        }
        let lonely: Pod = from_value(json!({"metadata": {"name": "ais-0", "namespace": "here"}})).expect("a pod");
        assert_eq!(pod_name_in_dns(&lonely), None);
    }
}
