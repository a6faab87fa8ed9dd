//! Addresses: which may be reached, and where a policy's target is.

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;
use jiff::Timestamp;
use url::Url;

/// Somewhere a target can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Stable as long as it is the same thing: a pod's UID and port, or the address.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// `scheme://host:port`; of a pod that mounts a file its IP alone, and nothing as long as it has none.
    pub address: String,
    /// Other addresses of the same thing, by the API server's word.
    pub aliases: Vec<String>,
    /// What its pod calls its part (`app.kubernetes.io/component`), where it is one and does.
    pub role: Option<String>,
    /// What else is known of a pod that mounts a file.
    pub pod: Option<PodFacts>,
}

impl Place {
    /// A place of which nothing more is known than how it is reached.
    #[must_use]
    pub fn new(id: impl Into<String>, name: impl Into<String>, address: impl Into<String>) -> Self {
        Self { id: id.into(), name: name.into(), address: address.into(), aliases: Vec::new(), role: None, pod: None }
    }
}

/// What the API server knows of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// All its containers started after this.
    pub started: Option<Timestamp>,
    /// The hash of the settings that it was started for.
    pub hash: Option<String>,
}

/// What `endpoint` fields may reach: host names, word for word, and networks.
///
/// A name is allowed only where it is listed: one that merely resolves into a listed network could resolve elsewhere a
/// moment later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    hosts: Vec<String>,
    networks: Vec<IpNet>,
}

/// Why an entry of the list, or an address, cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Neither a network nor a host name.
    #[error("{0:?} is neither a network such as 10.0.0.0/8 nor a host name")]
    Entry(String),
    /// Not an address.
    #[error("{0:?} is not http://host:port or https://host:port")]
    Address(String),
    /// Outside the list.
    #[error("{0} is outside the operator's --allow-endpoints; ask its administrator to list it, or use a Service")]
    NotAllowed(String),
}

impl FromStr for AllowList {
    type Err = Error;

    /// Comma-separated.
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

impl AllowList {
    /// The address in one spelling, `scheme://host:port`, if it may be reached.
    pub fn check(&self, endpoint: &str) -> Result<String, Error> {
        let bad = || Error::Address(endpoint.chars().take(80).collect());
        let url = Url::parse(endpoint).map_err(|_| bad())?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return Err(bad()) };
        if !matches!(url.scheme(), "http" | "https") || url.path() != "/" || url.query().is_some() || !url.username().is_empty() {
            return Err(bad());
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let allowed = match bare.parse::<IpAddr>() {
            Ok(address) => self.networks.iter().any(|network| network.contains(&address)),
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
