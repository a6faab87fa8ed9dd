//! Addresses of targets, and the list of allowed addresses.

use std::{
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use jiff::Timestamp;
use url::Url;

/// An address of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetAddress {
    /// Stable identity: a pod's UID and port, or the address.
    pub id: String,
    /// Name for messages.
    pub name: String,
    /// `scheme://host:port`. For a pod that mounts a file, only its IP address; empty until it has one.
    pub address: String,
    /// Other addresses of the same target, from the API server.
    pub aliases: Vec<String>,
    /// The pod's label `app.kubernetes.io/component`, if any.
    pub role: Option<String>,
    /// More facts about a pod that mounts a file.
    pub pod: Option<PodFacts>,
}

impl TargetAddress {
    /// A place without further facts.
    #[must_use]
    pub fn new(id: impl Into<String>, name: impl Into<String>, address: impl Into<String>) -> Self {
        Self { id: id.into(), name: name.into(), address: address.into(), aliases: Vec::new(), role: None, pod: None }
    }
}

/// Facts about a pod, from the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// All containers of the pod started after this time.
    pub started: Option<Timestamp>,
    /// Hash of the settings for which the pod was started.
    pub hash: Option<String>,
}

/// Host names, compared literally, and networks that `endpoint` fields may use.
///
/// Loopback, link-local, multicast, unspecified and cloud metadata addresses need an entry that lies within these
/// ranges. An entry such as `0.0.0.0/0` is meant for other servers and does not allow them.
///
/// A name is allowed only if it is listed. A name that resolves into a listed network could resolve to another address
/// a moment later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    hosts: Vec<String>,
    networks: Vec<IpNet>,
}

/// Why an entry or an address is rejected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The entry is neither a network nor a host name.
    #[error("{0:?} is neither a network such as 10.0.0.0/8 nor a host name")]
    Entry(String),
    /// The text is not an address.
    #[error("{0:?} is not http://host:port or https://host:port")]
    Address(String),
    /// The address is not in the list.
    #[error("{0} is not in the operator's --allow-endpoints; ask a cluster administrator to add it, or use a Service")]
    NotAllowed(String),
}

impl FromStr for AllowList {
    type Err = Error;

    /// Parses a comma-separated list.
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut list = Self::default();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            if let Ok(network) = entry.parse::<IpNet>() {
                list.networks.push(network);
            } else if let Ok(address) = entry.parse::<IpAddr>() {
                list.networks.push(address.into());
            } else if entry.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.') {
                list.hosts.push(entry.to_ascii_lowercase());
            } else {
                return Err(Error::Entry(entry.to_owned()));
            }
        }
        Ok(list)
    }
}

/// Ranges that no wider entry allows: this host, its links, and the addresses that serve credentials in clouds.
///
/// The latter are 169.254.169.254 of most clouds, `fd00:ec2::254` of AWS, 100.100.100.200 of Alibaba Cloud, 192.0.0.192
/// of Oracle Cloud, and 168.63.129.16 of Azure.
const SPECIAL: [&str; 13] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "100.100.100.200/32",
    "192.0.0.192/32",
    "168.63.129.16/32",
    "::/128",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::254/128",
];

/// The IPv4 address inside an IPv6 address, if there is one; otherwise the address itself.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(long) = address else { return address };
    let bits = u128::from(long);
    // The low 32 bits of IPv4-compatible addresses, and of the well-known prefix of NAT64 (RFC 6052).
    let low = u32::try_from(bits & 0xffff_ffff).unwrap_or_default();
    let (compatible, nat64) = (bits >> 32 == 0 && low > 1, bits >> 32 == 0x0064_ff9b_u128 << 64);
    if compatible || nat64 { IpAddr::V4(low.into()) } else { Ipv6Addr::to_canonical(&long) }
}

impl AllowList {
    fn allows(&self, address: IpAddr) -> bool {
        let address = plain(address);
        let special = SPECIAL.iter().filter_map(|range| range.parse::<IpNet>().ok()).find(|range| range.contains(&address));
        let counts = |network: &&IpNet| special.is_none_or(|special| special.contains(*network));
        self.networks.iter().filter(counts).any(|network| network.contains(&address))
    }

    /// The normalized address, `scheme://host:port`, if it is allowed.
    pub fn check(&self, endpoint: &str) -> Result<String, Error> {
        let bad = || Error::Address(endpoint.chars().take(80).collect());
        let url = Url::parse(endpoint).map_err(|_| bad())?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return Err(bad()) };
        let more = url.path() != "/" || url.query().is_some() || url.fragment().is_some();
        if !matches!(url.scheme(), "http" | "https") || more || !url.username().is_empty() || url.password().is_some() {
            return Err(bad());
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let allowed = match bare.parse::<IpAddr>() {
            Ok(address) => self.allows(address),
            Err(_) => self.hosts.iter().any(|listed| listed.eq_ignore_ascii_case(host)),
        };
        if allowed { Ok(format!("{}://{host}:{port}", url.scheme())) } else { Err(Error::NotAllowed(format!("{host}:{port}"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_may_be_reached() {
        let list: AllowList = "127.0.0.0/8, fd00::/8,ais.example.com".parse().expect("a list");
        for (endpoint, answer) in [
            ("http://127.0.0.1:51080", Some("http://127.0.0.1:51080")),
            ("http://127.1:80", Some("http://127.0.0.1:80")),
            ("https://[fd00::1]:443", Some("https://[fd00::1]:443")),
            ("https://AIS.example.com", Some("https://ais.example.com:443")),
            ("http://10.0.0.1:80", None),
            ("http://evil.example.com", None),
            ("http://localhost:80", None),
            ("http://169.254.169.254", None),
            ("http://[::ffff:10.0.0.1]:80", None),
        ] {
            assert_eq!(list.check(endpoint).ok().as_deref(), answer, "{endpoint}");
        }
    }

    #[test]
    fn a_wide_entry_allows_no_loopback_link_or_metadata_address() {
        let wide: AllowList = "0.0.0.0/0,::/0".parse().expect("a list");
        assert!(wide.check("http://10.0.0.1:80").is_ok() && wide.check("http://[2001:db8::1]:80").is_ok());
        for endpoint in [
            "http://127.0.0.1",
            "http://127.1",
            "http://2130706433",
            "http://0x7f.1",
            "http://0177.0.0.1",
            "http://0.0.0.0",
            "http://[::]",
            "http://[::1]",
            "http://[::127.0.0.1]",
            "http://[::ffff:127.0.0.1]",
            "http://[::ffff:7f00:1]",
            "http://[64:ff9b::7f00:1]",
            "http://169.254.169.254",
            "http://[::ffff:169.254.169.254]",
            "http://[64:ff9b::a9fe:a9fe]",
            "http://[fe80::1]",
            "http://[fd00:ec2::254]",
            "http://100.100.100.200",
            "http://192.0.0.192",
            "http://168.63.129.16",
            "http://224.0.0.1",
            "http://[ff02::1]",
            "http://255.255.255.255",
        ] {
            assert!(matches!(wide.check(endpoint), Err(Error::NotAllowed(_))), "{endpoint}");
        }
        let local: AllowList = "127.0.0.0/8,::1".parse().expect("a list");
        assert!(local.check("http://127.0.0.1").is_ok() && local.check("http://[::1]").is_ok());
        assert!(local.check("http://[::ffff:127.0.0.1]").is_ok(), "the same address");
    }

    #[test]
    fn an_empty_list_allows_nothing() {
        assert!(matches!(AllowList::default().check("http://127.0.0.1:1"), Err(Error::NotAllowed(_))));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let list: AllowList = "0.0.0.0/0".parse().expect("a list");
        for endpoint in ["ftp://1.2.3.4", "http://u:p@1.2.3.4", "http://1.2.3.4/path", "1.2.3.4:80", ""] {
            assert!(matches!(list.check(endpoint), Err(Error::Address(_))), "{endpoint}");
        }
        assert!("10.0.0.0/99x!".parse::<AllowList>().is_err());
    }
}
